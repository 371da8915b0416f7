//! `simulate`: be WeChat, offline, until told to stop.

use std::io::ErrorKind;

use wechat_sidecar::config::cli::Simulate;
use wechat_sidecar::sim::command::{SimulateOptions, run_command};

use super::{PORT_TAKEN, complain, prepare, say};

pub(super) async fn simulate(options: Simulate) -> u8 {
    let signals = match prepare(&options.telemetry) {
        Ok(signals) => signals,
        Err(code) => return code,
    };
    let options = SimulateOptions {
        listen: options.listen,
        tls_listen: options.tls_listen,
        control_listen: Some(options.control_listen),
        appid: options.appid,
        secret: options.app_secret,
        ca_out: options.ca_out,
        token_length: options.token_length,
        expires_in: options.expires_in.as_secs(),
    };
    let stop = async {
        signals.requested().await;
    };
    match run_command(options, say, stop).await {
        Ok(()) => 0,
        Err(error) => {
            complain(&error.to_string());
            if error.kind() == ErrorKind::AddrInUse { PORT_TAKEN } else { 1 }
        }
    }
}
