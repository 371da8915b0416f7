//! stub
use std::net::SocketAddr;
/// Where probes are answered.
#[derive(Clone, Debug)]
pub struct Config {
    /// The admin port's address. Port 0 takes a free one.
    pub listen: SocketAddr,
}
