//! `check`: is this configuration good? Fetches one token an account and explains what came of it.

use wechat_sidecar::app::reach;
use wechat_sidecar::config::Config;
use wechat_sidecar::origin::{Origin, Reach};
use wechat_sidecar::telemetry;
use wechat_sidecar::token::source::{Class, FetchError, Source, TokenSource, Want};

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
    find(&config.upstream.origin).await;
    let mut failed = 0;
    for account in &config.accounts {
        let appid = &account.appid;
        let fetched = match Source::new(&config.source_for(account), appid.clone(), account.secret.clone()) {
            Ok(source) => source.fetch(Want::default()).await,
            Err(error) => Err(FetchError::transient(error)),
        };
        match fetched {
            Ok(token) => say(&format!(
                "ok       {appid}: WeChat gave a token (fingerprint {}, good for {} s)",
                token.fingerprint(),
                token.remaining().as_secs()
            )),
            Err(error) => {
                failed += 1;
                say(&format!("failed   {appid}: {}", error.sentence));
                say(&format!("         {}", outlook(error.class)));
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

/// Says where the upstream is found, which tells a DNS of one's own from WeChat's.
async fn find(origin: &Origin) {
    if let Reach::Address(_) = origin.reach() {
        return;
    }
    match tokio::net::lookup_host((origin.host(), origin.port())).await {
        Ok(found) => {
            let mut found: Vec<_> = found.map(|address| address.ip().to_string()).collect();
            found.dedup();
            say(&format!("ok       {} is found at {}", origin.host(), found.join(", ")));
        }
        Err(error) => say(&format!(
            "failed   {} is not found ({error}); check this machine's DNS, and whether a network policy lets it be asked",
            origin.host()
        )),
    }
}

/// Who can end a failure, and whether it helps to try again: what an init step does by itself.
fn outlook(class: Class) -> &'static str {
    match class {
        Class::Transient => "This may pass by itself: trying again is right.",
        Class::Quota => "Time ends this, or the WeChat console; trying again uses up more.",
        Class::Config => "The settings have to change; trying again does not help.",
        Class::Ip => {
            "The account's IP whitelist has to change. What counts is the address WeChat saw, mostly that of a NAT \
             gateway and not this machine's own; trying again does not help until then."
        }
        Class::AwaitAdmin => {
            "The account's administrator has to act in WeChat; trying again too often gets the address blocked."
        }
        Class::Human => "A person has to act in the WeChat console; trying again does not help.",
    }
}
