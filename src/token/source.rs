//! stub
use crate::origin::Origin;
use crate::tls::ExtraRoots;
use std::time::Duration;
/// Which of WeChat's two endpoints issues the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /cgi-bin/stable_token`, normal mode: replicas that know nothing of each other get the same token.
    #[default]
    Stable,
    /// `GET /cgi-bin/token`: every fetch voids the last token after five minutes.
    Classic,
}
/// Where and how patiently tokens are fetched.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// WeChat.
    pub origin: Origin,
    /// Roots to trust beside Mozilla's.
    pub roots: ExtraRoots,
    /// The longest a connection may take.
    pub connect_timeout: Duration,
    /// The longest a whole fetch may take.
    pub fetch_timeout: Duration,
}
