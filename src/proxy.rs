//! stub
pub mod upstream;
use std::time::Duration;
/// The limits of a call.
#[derive(Clone, Debug)]
pub struct Config {
    /// The largest request body, in bytes; above it the answer is 413.
    pub max_body: u64,
    /// The largest body that is kept so that the call can go again, in bytes.
    pub replay_limit: u64,
    /// What all kept bodies may take together, in bytes.
    pub replay_budget: u64,
    /// The longest a call waits for a token.
    pub token_wait: Duration,
}
