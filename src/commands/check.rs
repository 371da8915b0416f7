//! `check`: is this configuration good? Tries the store, fetches one token an account, and explains what came of it.

use wechat_sidecar::app::reach;
use wechat_sidecar::config::Config;
use wechat_sidecar::telemetry;
use wechat_sidecar::token::source::{Source, TokenSource, Want};
use wechat_sidecar::token::store::{Kept, Standing, Store, Stores, TokenStore};

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
    let stores = Stores::new(&config.store);
    let accounts = config.accounts.iter().map(|account| stores.of(&account.appid, account.endpoint));
    let accounts: Vec<Store> = accounts.collect();
    match stores.redis().cloned() {
        None => examine(&config, &accounts).await,
        Some(redis) => tokio::select! {
            code = examine(&config, &accounts) => code,
            () = redis.run() => unreachable!("it never ends"),
        },
    }
}

/// Tries everything that needs others, account by account.
async fn examine(config: &Config, stores: &[Store]) -> u8 {
    let mut failed = 0;
    for (account, store) in config.accounts.iter().zip(stores) {
        let appid = &account.appid;
        let mut stored = Ok(());
        if let Store::Redis(_) = store {
            stored = try_store(store).await.map(|found| say(&format!("ok       {appid}: {found}")));
        }
        let fetched = match Source::new(&config.source_for(account), appid.clone(), account.secret.clone()) {
            Ok(source) => source.fetch(Want::default()).await.map_err(|error| error.sentence),
            Err(error) => Err(error),
        };
        match fetched {
            Ok(token) => {
                say(&format!(
                    "ok       {appid}: WeChat gave a token (fingerprint {}, good for {} s)",
                    token.fingerprint(),
                    token.remaining().as_secs()
                ));
                // It may have voided the one that the replicas are at.
                stored = match stored {
                    Ok(()) => store.save(&token).await.map_err(|error| error.to_string()),
                    failed => failed,
                };
            }
            Err(error) => {
                failed += 1;
                say(&format!("failed   {appid}: {error}"));
            }
        }
        if let Err(error) = stored {
            failed += 1;
            say(&format!("failed   {appid}: the store does not work: {error}"));
        }
    }
    if failed == 0 {
        say("ready: `wechat-sidecar run` with these settings will work");
        0
    } else {
        say(&format!("{failed} of these things failed, for {} accounts", config.accounts.len()));
        1
    }
}

/// Reads and writes, as a replica does around a fetch, and says what it found.
async fn try_store(store: &Store) -> Result<String, String> {
    let told = |error: wechat_sidecar::token::store::StoreError| error.to_string();
    let found = match store.load().await.map_err(told)? {
        None => "the store has no token yet".to_owned(),
        Some(Kept { token, standing }) => format!(
            "the store has a token (fingerprint {}, good for {} s{})",
            token.fingerprint(),
            token.remaining().as_secs(),
            if standing == Standing::Good { "" } else { ", but refused" }
        ),
    };
    Ok(match store.lease().await.map_err(told)? {
        Some(_) => found,
        None => format!("{found}, and another replica is fetching one now"),
    })
}
