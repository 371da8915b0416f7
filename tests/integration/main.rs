//! The whole sidecar, one binary of tests, a module a subject. `wechat_*` has it as its users do, in front of a
//! simulated WeChat; the others put it against apps and upstreams that speak bytes: requests and replies as they
//! should not be, and what must come through unchanged.

#![allow(clippy::unwrap_used, reason = "what fails in a test is a failed test")]

mod bad_bodies;
mod bad_heads;
mod bad_targets;
mod entries;
mod forwarding;
mod leaks;
mod replay;
mod replay_limits;
mod replies;
mod rig;
mod upstream_cuts;
mod upstream_fails;
mod wechat_accounts;
mod wechat_admin;
mod wechat_calls;
mod wechat_classic;
mod wechat_commands;
mod wechat_economy;
mod wechat_fleet;
mod wechat_herd;
mod wechat_outage;
mod wechat_process;
mod wechat_refusals;
mod wechat_reload;
mod wechat_rig;
mod wechat_routes;
mod wechat_secrecy;
mod wechat_stop;
