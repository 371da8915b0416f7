//! `check`: is this configuration good? Fetches one token an account and explains what came of it.

use wechat_sidecar::app::reach;
use wechat_sidecar::config::Config;
use wechat_sidecar::telemetry;
use wechat_sidecar::token::source::{Supplier, TokenSource, Want};

use super::{complain, say};

pub(super) async fn check(config: Config) -> u8 {
    if let Err(error) = telemetry::init(&config.telemetry) {
        complain(&error);
        return 1;
    }
    for warning in &config.warnings {
        say(&format!("warning  {warning}"));
    }
    say(&format!("ok       the settings are valid; upstream is {}", config.upstream.origin));
    if let Err(error) = reach::check(&config) {
        say(&format!("failed   {error}"));
        return 1;
    }
    let mut failed = 0;
    for account in &config.accounts {
        let appid = &account.appid;
        let (who, fetched) = match config.token_source(account) {
            Ok(source) => {
                let who = match source.supplier() {
                    Supplier::WeChat => "WeChat",
                    Supplier::Central => "the central server",
                    Supplier::Store => {
                        say(&format!("ok       {appid}: a follower, so nothing is fetched"));
                        continue;
                    }
                };
                (who, source.fetch(Want::default()).await.map_err(|error| error.sentence))
            }
            Err(error) => ("nobody", Err(error)),
        };
        match fetched {
            Ok(token) => say(&format!(
                "ok       {appid}: {who} gave a token (fingerprint {}, good for {} s)",
                token.fingerprint(),
                token.remaining().as_secs()
            )),
            Err(error) => {
                failed += 1;
                say(&format!("failed   {appid}: {error}"));
            }
        }
    }
    if failed == 0 {
        say("ready: `wechat-sidecar run` with these settings will work");
        0
    } else {
        say(&format!("{failed} of {} accounts cannot get a token", config.accounts.len()));
        1
    }
}
