//! The sidecar as its users have it, in front of a simulated WeChat: one binary of tests, a module a subject.

mod wechat_accounts;
mod wechat_calls;
mod wechat_classic;
mod wechat_commands;
mod wechat_economy;
mod wechat_fleet;
mod wechat_herd;
mod wechat_outage;
mod wechat_process;
mod wechat_refusals;
mod wechat_rig;
mod wechat_routes;
mod wechat_secrecy;
mod wechat_stop;
