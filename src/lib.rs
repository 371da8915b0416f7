//! wechat-sidecar: a reverse proxy beside your app that puts the current `access_token` into its WeChat calls.
//!
//! # The request's way
//! `accept → record → route → hold → credential → inject → forward → inspect → (refresh → replay) → reply → record closes`
//!
//! It reads from top to bottom in [`proxy`]. A call goes to WeChat twice only because WeChat itself said that the
//! token it carried was bad.
//!
//! # The three planes
//! - **Data**: [`server`] accepts on workers, each a thread with its own runtime, listener and upstream
//!   connections; [`proxy`] carries a call. Nothing on this way crosses a thread or takes a lock.
//! - **Control**: [`token`] keeps each account's token alive, on the control thread.
//! - **Operator**: [`config`] reads what was asked for, [`admin`] shows what is, [`app`] wires it all.
//!
//! # Modules in reading order
//! [`app`], [`proxy`] and its children, [`account`], [`token`] and its children, then the shelf: [`server`],
//! [`deadline`], [`buffer`], [`policy`], [`rates`], [`slots`], [`clients`], [`error`], [`credentials`], [`origin`], [`hosts`],
//! [`tls`], [`ca`], [`metrics`], [`telemetry`], [`signal`], [`harden`]. [`sim`] is WeChat itself, as far as we know it, for
//! tests and laptops.

pub mod account;
pub mod admin;
pub mod app;
pub mod buffer;
pub mod ca;
pub mod clients;
pub mod config;
pub mod credentials;
pub mod deadline;
pub mod error;
pub mod files;
pub mod harden;
pub mod hosts;
pub mod metrics;
pub mod origin;
pub mod policy;
pub mod proxy;
pub mod rates;
pub mod server;
pub mod signal;
pub mod sim;
pub mod slots;
pub mod syntax;
pub mod telemetry;
pub mod tls;
pub mod token;
