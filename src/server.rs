//! stub
use std::net::SocketAddr;
/// Where and with how many workers calls are accepted.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address apps call. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Worker threads, each with its own runtime, listener and upstream connections.
    pub workers: std::num::NonZeroUsize,
    /// The largest request head, in bytes; above it the answer is 431.
    pub max_head: usize,
}
