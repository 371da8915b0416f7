//! stub
use crate::origin::Origin;
use crate::tls::ExtraRoots;
use std::time::Duration;
/// Where WeChat is and how long it may take.
#[derive(Clone, Debug)]
pub struct Config {
    /// The one host calls go to.
    pub origin: Origin,
    /// Roots to trust beside Mozilla's.
    pub roots: ExtraRoots,
    /// The longest a connection, TLS included, may take.
    pub connect_timeout: Duration,
    /// The longest until the reply's head, from the last byte of the request.
    pub response_timeout: Duration,
    /// The longest pause in a body, either way.
    pub idle_timeout: Duration,
}
