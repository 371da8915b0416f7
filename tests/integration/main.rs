//! The whole sidecar against apps and upstreams that speak bytes. The hostile half: requests and replies as they
//! should not be, and what must come through unchanged.

#![allow(clippy::unwrap_used, reason = "what fails in a test is a failed test")]

mod rig;

mod bad_bodies;
mod bad_heads;
mod bad_targets;
mod entries;
mod forwarding;
mod replay;
mod replay_limits;
mod replies;
mod upstream_cuts;
mod upstream_fails;
