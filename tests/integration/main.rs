//! The whole sidecar, one binary of tests, a module a subject. `wechat_*` has it as its users do, in front of a
//! simulated WeChat; the others put it against apps and upstreams that speak bytes: requests and replies as they
//! should not be, and what must come through unchanged.

#![allow(clippy::unwrap_used, reason = "what fails in a test is a failed test")]

mod allow;
mod bad_bodies;
mod bad_heads;
mod bad_targets;
mod client_keys;
mod corpus;
mod entries;
mod forwarding;
mod fuzz;
mod gate;
mod hardening;
mod leaks;
mod ledger;
mod limits;
mod pins;
mod properties;
mod redis_rig;
mod replay;
mod replay_limits;
mod replies;
mod rig;
mod splitting;
mod threads;
mod unix_socket;
mod upstream_cuts;
mod upstream_fails;
mod wechat_accounts;
mod wechat_admin;
mod wechat_bridge;
mod wechat_calls;
mod wechat_central;
mod wechat_classic;
mod wechat_commands;
mod wechat_economy;
mod wechat_egress;
mod wechat_fleet;
mod wechat_herd;
mod wechat_outage;
mod wechat_process;
mod wechat_redis;
mod wechat_refresh;
mod wechat_refusals;
mod wechat_reload;
mod wechat_rig;
mod wechat_routes;
mod wechat_secrecy;
mod wechat_stop;
#[cfg(feature = "otel")]
mod wechat_traces;
