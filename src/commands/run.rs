//! `run`: serve until told to stop.

use wechat_sidecar::app::{App, BindError};
use wechat_sidecar::config::Config;

use super::{PORT_TAKEN, UntilStopped, complain, prepare};

pub(super) async fn run(config: Config) -> u8 {
    let signals = match prepare(&config.telemetry) {
        Ok(signals) => signals,
        Err(code) => return code,
    };
    if !config.core_dumps
        && let Err(error) = wechat_sidecar::harden::harden()
    {
        tracing::warn!(%error, "core dumps could not be turned off, so a crash may write secrets to a file");
    }
    #[cfg(feature = "otel")]
    let _traces = match wechat_sidecar::telemetry::traces::init() {
        Ok(traces) => traces,
        Err(error) => {
            complain(&error);
            return 1;
        }
    };
    // A call takes two files, and many systems start a process with 1024; the hard limit is what it may have.
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::debug!(limit, "files that may be open"),
        Err(error) => tracing::debug!(%error, "the limit on open files stays as it is"),
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if config.accounts.len() > 1 {
        let (appid, accounts) = (&config.accounts[0].appid, config.accounts.len());
        tracing::info!(default = %appid, accounts, "calls that name no account are made as the default one");
    }
    let app = match App::bind(config) {
        Ok(app) => app,
        Err(error) => {
            complain(&error.to_string());
            return match error {
                BindError::Port { .. } | BindError::Socket { .. } => PORT_TAKEN,
                BindError::Other(_) => 1,
            };
        }
    };
    let addresses = app.addresses();
    let version = env!("CARGO_PKG_VERSION");
    match app.socket() {
        None => tracing::info!(
            version,
            listen = %addresses.proxy,
            admin = %addresses.admin,
            "serving; point the app's WeChat base URL at http://{}", addresses.proxy
        ),
        Some(socket) => tracing::info!(
            version,
            listen = %format_args!("unix:{}", socket.display()),
            admin = %addresses.admin,
            "serving; let the app's HTTP client connect to this socket"
        ),
    }
    if let Some(tls) = addresses.tls {
        tracing::info!(tls_listen = %tls, "serving as api.weixin.qq.com, over TLS");
    }
    let (hang_up, mut hangups) = (app.hangups(), signals.hangups());
    tokio::spawn(async move {
        while hangups.changed().await.is_ok() {
            hang_up.send_replace(());
        }
    });
    let stop = async move {
        signals.requested().await;
    };
    match app.run(Box::pin(stop) as UntilStopped).await {
        Ok(()) => {
            tracing::info!("stopped");
            0
        }
        Err(error) => {
            tracing::error!(%error, "stopped by a failure");
            1
        }
    }
}
