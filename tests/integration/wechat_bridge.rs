//! The bridge for apps that have yet to move, over a real Redis: what their SDKs find there, for how long, and which
//! of their tokens are taken.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use wechat_sidecar::sim::{DEFAULT_SECRET, ExpiresIn, Kind};

use crate::redis_rig::Server;
use crate::wechat_rig::{APPID, PLACEHOLDER, Rig, Sidecar, Wechat, until, within};

const WXJAVA: &str = "wx:access_token:wx0123456789abcdef";
const POWERWECHAT: &str = "powerwechat.access_token.";

/// A sidecar with a bridge in front of this WeChat, ready.
async fn rig(wechat: Wechat, redis: &Server, formats: &str, more: &[&str]) -> Rig {
    let url = redis.url();
    let args = [&["--bridge", formats, "--bridge-store", &url], more].concat();
    let rig = Rig::unready(wechat, &args).await;
    rig.app.until_ready().await;
    rig
}

/// What stands there; nothing where nothing does.
fn get(redis: &Server, key: &str) -> String {
    redis.cli(&["GET", key])
}

/// As an app would write it; 0 is for ever.
fn set(redis: &Server, key: &str, value: &str, seconds: u64) {
    let seconds = seconds.to_string();
    let end: &[&str] = if seconds == "0" { &[] } else { &["EX", &seconds] };
    assert_eq!(redis.cli(&[&["SET", key, value], end].concat()), "OK");
}

/// Milliseconds; -1 where it stays for ever, -2 where it is gone.
fn left(redis: &Server, key: &str) -> i64 {
    redis.cli(&["PTTL", key]).parse().unwrap()
}

fn keys(redis: &Server) -> Vec<String> {
    redis.cli(&["KEYS", "*"]).lines().map(str::to_owned).filter(|key| !key.is_empty()).collect()
}

#[expect(clippy::disallowed_methods, reason = "wechatpy keeps a time of day")]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What stands there, as soon as something does.
async fn there(redis: &Server, key: &str) -> String {
    until(key, async || !get(redis, key).is_empty()).await;
    get(redis, key)
}

async fn until_there(redis: &Server, key: &str, value: &str) {
    until(key, async || get(redis, key) == value).await;
}

/// The token that WeChat takes.
fn live(rig: &Rig) -> String {
    rig.sim.live_token(APPID).unwrap()
}

#[tokio::test]
async fn every_sdk_finds_the_token_in_its_own_bytes() {
    let redis = Server::start(&[]);
    let formats = "wxjava-mp, wxjava-mp=wx:mp:multi, wxjava-miniapp, silenceper-mp, silenceper-mp-stable, \
                   silenceper-miniapp, silenceper-miniapp-stable, powerwechat, wechatpy, easywechat=team.{appid}, \
                   easywechat=official_account.access_token.{appid}.{secret}.0, \
                   easywechat=mini_app.access_token.{appid}.{secret}.1";
    let before = now();
    let rig = rig(Wechat::plain().await, &redis, formats, &[]).await;
    let token = live(&rig);
    // Written in the order of the setting, so that with the last of them all are there.
    let last = format!("mini_app.access_token.{APPID}.{DEFAULT_SECRET}.1");
    let php = there(&redis, &last).await;
    // s:157:"...";
    let (length, rest) = php.strip_prefix("s:").unwrap().split_once(":\"").unwrap();
    assert_eq!(rest, format!("{token}\";"));
    assert_eq!(length, token.len().to_string());
    let keys = keys(&redis);
    assert_eq!(keys.len(), 13, "{keys:?}");
    let powerwechat = keys.iter().find(|key| key.starts_with(POWERWECHAT)).unwrap();
    let json = format!("{{\"access_token\":\"{token}\",\"expires_in\":");
    assert!(get(&redis, powerwechat).starts_with(&json));
    for (key, value) in [
        (WXJAVA.to_owned(), token.clone()),
        (format!("wx:mp:multi:access_token:{APPID}"), token.clone()),
        (format!("wa:access_token:{APPID}"), token.clone()),
        (format!("gowechat_officialaccount__access_token_{APPID}"), token.clone()),
        (format!("gowechat_officialaccount__stable_access_token_{APPID}"), token.clone()),
        (format!("gowechat_miniprogram__access_token_{APPID}"), token.clone()),
        (format!("gowechat_miniprogram__stable_access_token_{APPID}"), token.clone()),
        (format!("wechatpy:{APPID}_access_token"), format!("\"{token}\"")),
        (format!("team.{APPID}"), php.clone()),
        (format!("official_account.access_token.{APPID}.{DEFAULT_SECRET}.0"), php.clone()),
        (last, php),
    ] {
        assert_eq!(get(&redis, &key), value, "{key}");
    }
    let ends: u64 = get(&redis, &format!("wechatpy:{APPID}_access_token_expires_at")).parse().unwrap();
    assert!((before + 7100..now() + 7141).contains(&ends), "{ends}");
    for key in &keys {
        let left = self::left(&redis, key);
        assert!((7_000_000..=7_140_000).contains(&left), "{key}: {left} ms of a token that lives 7200 s");
    }
    // None of it went to WeChat, and a call works as ever.
    rig.app.message("as ever").await.assert_ok();
    assert_eq!(rig.fetches(), 1);
    rig.assert_clean();
}

#[tokio::test]
async fn a_new_token_is_there_at_once() {
    let redis = Server::start(&[]);
    let rig = rig(Wechat::plain().await, &redis, "wxjava-mp,wechatpy", &[]).await;
    until_there(&redis, WXJAVA, &live(&rig)).await;
    // By the poll alone these would take a minute and a half.
    within("ten rotations", async {
        for n in 0..10 {
            let before = live(&rig);
            rig.sim.rotate(APPID);
            rig.app.message(&format!("{n}")).await.assert_ok();
            let token = live(&rig);
            assert_ne!(before, token);
            until_there(&redis, WXJAVA, &token).await;
            until_there(&redis, &format!("wechatpy:{APPID}_access_token"), &format!("\"{token}\"")).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_value_ends_before_its_token_and_by_itself() {
    for (life, least, most) in [(7200, 7_000_000, 7_140_000), (301, 200_000, 241_000), (10, 1, 7_000)] {
        let redis = Server::start(&[]);
        let wechat = Wechat::plain().await;
        wechat.sim.expires_in(Some(ExpiresIn::Value(json!(life))));
        let url = redis.url();
        let args = wechat.settings(&["--bridge", "wxjava-mp", "--bridge-store", &url]);
        let side = Sidecar::start(&args, &wechat.env());
        there(&redis, WXJAVA).await;
        let ttl = left(&redis, WXJAVA);
        assert!((least..=most).contains(&ttl), "{ttl} ms of {life} s");
        // What a sidecar leaves behind when it stops stays no longer.
        side.stop().await;
        let ttl = left(&redis, WXJAVA);
        assert!(ttl != -1 && ttl <= most, "{ttl} ms of {life} s");
        if life == 10 {
            until("it ends by itself", async || keys(&redis).is_empty()).await;
        }
    }
}

#[tokio::test]
async fn a_token_that_lives_a_second_is_not_given_at_all() {
    let redis = Server::start(&[]);
    let wechat = Wechat::plain().await;
    wechat.sim.expires_in(Some(ExpiresIn::Value(json!(1))));
    let url = redis.url();
    let rig = Rig::unready(wechat, &["--bridge", "wxjava-mp", "--bridge-store", &url]).await;
    rig.sim.until(|counts| counts.all_fetches() >= 3).await;
    assert!(keys(&redis).is_empty());
    // And the same bridge gives what lives longer.
    rig.sim.expires_in(None);
    there(&redis, WXJAVA).await;
}

#[tokio::test]
async fn what_vanished_is_given_again_and_what_an_app_wrote_is_left() {
    let redis = Server::start(&[]);
    let rig = rig(Wechat::plain().await, &redis, "wxjava-mp,silenceper-mp,wxjava-miniapp", &[]).await;
    let silenceper = format!("gowechat_officialaccount__access_token_{APPID}");
    let miniapp = format!("wa:access_token:{APPID}");
    let token = live(&rig);
    until_there(&redis, &miniapp, &token).await;
    redis.cli(&["DEL", WXJAVA]);
    set(&redis, &silenceper, "a token that an app fetched for itself", 7000);
    set(&redis, &miniapp, PLACEHOLDER, 7000);
    until_there(&redis, &miniapp, &token).await;
    assert_eq!(get(&redis, WXJAVA), token, "it comes before the last");
    assert_eq!(get(&redis, &silenceper), "a token that an app fetched for itself");
    // Until there is a new one of ours.
    rig.sim.rotate(APPID);
    rig.app.message("heals").await.assert_ok();
    until_there(&redis, &silenceper, &live(&rig)).await;
    assert!(left(&redis, &silenceper) <= 7_140_000);
}

#[tokio::test]
async fn a_redis_that_is_down_costs_no_call_and_is_found_when_it_is_back() {
    let mut redis = Server::start(&[]);
    let url = redis.url();
    redis.kill();
    let args = ["--bridge", "wxjava-mp", "--bridge-store", &url, "--bridge-adopt", "true"];
    let rig = Rig::unready(Wechat::plain().await, &args).await;
    rig.app.until_ready().await;
    rig.app.message("without Redis").await.assert_ok();
    rig.sim.rotate(APPID);
    rig.app.message("without Redis, after a rotation").await.assert_ok();
    assert_eq!(rig.fetches(), 2);
    redis.start_again();
    until_there(&redis, WXJAVA, &live(&rig)).await;
}

/// With the classic endpoint, where a fetch of ours would void the app's token.
const ADOPT: &[&str] = &["--bridge-adopt", "true", "--token-endpoint", "token"];

#[tokio::test]
async fn a_token_that_an_app_fetched_is_taken_instead_of_fetching() {
    for (formats, key, json) in [
        ("wxjava-mp", WXJAVA.to_owned(), false),
        ("wxjava-mp,wechatpy", format!("wechatpy:{APPID}_access_token"), true),
    ] {
        let redis = Server::start(&[]);
        let wechat = Wechat::plain().await;
        let theirs = wechat.sim.rotate_kind(APPID, Kind::Classic, true).unwrap();
        let value = if json { format!("\"{theirs}\"") } else { theirs.clone() };
        set(&redis, &key, &value, 7000);
        let rig = rig(wechat, &redis, formats, ADOPT).await;
        rig.app.message("with theirs").await.assert_ok();
        assert!(rig.last_call().target.ends_with(&theirs));
        assert_eq!(rig.fetches(), 0);
        // Theirs is voided, and the app fetches another: so has everyone else it.
        let next = rig.sim.rotate_kind(APPID, Kind::Classic, true).unwrap();
        let value = if json { format!("\"{next}\"") } else { next.clone() };
        set(&redis, &key, &value, 7000);
        rig.app.message("heals with theirs").await.assert_ok();
        assert!(rig.last_call().target.ends_with(&next));
        assert_eq!(rig.fetches(), 0);
        until_there(&redis, WXJAVA, &next).await;
        rig.assert_clean();
    }
}

#[tokio::test]
async fn a_dead_token_of_an_app_costs_no_call_and_is_replaced() {
    let redis = Server::start(&[]);
    let wechat = Wechat::plain().await;
    let theirs = wechat.sim.rotate_kind(APPID, Kind::Classic, true).unwrap();
    wechat.sim.rotate_kind(APPID, Kind::Classic, true).unwrap();
    set(&redis, WXJAVA, &theirs, 7000);
    let rig = rig(wechat, &redis, "wxjava-mp", ADOPT).await;
    assert_eq!(rig.fetches(), 0, "nobody knows yet");
    rig.app.message("heals by a fetch").await.assert_ok();
    assert_eq!(rig.fetches(), 1);
    assert!(!rig.last_call().target.ends_with(&theirs));
    let ours = rig.last_call().target;
    until("the dead one is replaced", async || {
        let value = get(&redis, WXJAVA);
        !value.is_empty() && ours.ends_with(&value)
    })
    .await;
}

#[tokio::test]
async fn what_is_no_token_of_another_is_not_taken() {
    let long = "x".repeat(5000);
    let sound = "50_a-token-that-an-app-fetched-for-itself_0123456789";
    for (value, ttl) in [
        (sound, 0),
        (sound, 90_000),
        (sound, 300),
        ("", 7000),
        ("short", 7000),
        (&long, 7000),
        ("a token with a\r\nHost: example.com in it, 0123456789", 7000),
        (PLACEHOLDER, 7000),
    ] {
        let redis = Server::start(&[]);
        set(&redis, WXJAVA, value, ttl);
        let rig = rig(Wechat::plain().await, &redis, "wxjava-mp", ADOPT).await;
        assert_eq!(rig.fetches(), 1, "{value:.60} for {ttl} s");
        rig.app.message("with ours").await.assert_ok();
        // One that is sound and ends soon is the app's, and left to it.
        let stays = if ttl == 300 { value.to_owned() } else { live(&rig) };
        until_there(&redis, WXJAVA, &stays).await;
        rig.assert_clean();
    }
}

#[tokio::test]
async fn the_fetch_that_a_renewal_makes_takes_nothing_that_ends_soon() {
    let redis = Server::start(&[]);
    let wechat = Wechat::plain().await;
    // Renewed half way, again and again; what the bridge wrote is there each time.
    wechat.sim.expires_in(Some(ExpiresIn::Value(json!(4))));
    let rig = rig(wechat, &redis, "wxjava-mp", &["--bridge-adopt", "true"]).await;
    rig.sim.until(|counts| counts.all_fetches() >= 4).await;
    there(&redis, WXJAVA).await;
    tokio::time::timeout(Duration::from_secs(30), rig.app.message("works")).await.unwrap().assert_ok();
}
