//! The classic endpoint, `GET /cgi-bin/token`, whose every fetch voids the token before it after five minutes.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::time::Duration;

use serde_json::json;
use wechat_sidecar::sim::{DEFAULT_SECRET, ExpiresIn, Kind};

use crate::wechat_rig::{APPID, PLACEHOLDER, Rig, Wechat, within};

const CLASSIC: &[&str] = &["--token-endpoint", "token"];

#[tokio::test]
async fn calls_work_with_a_token_of_the_classic_endpoint() {
    let rig = Rig::tls(CLASSIC).await;
    for n in 0..20 {
        rig.app.message(&format!("{n}")).await.assert_ok();
    }
    let asked =
        rig.app.get(&format!("/cgi-bin/token?grant_type=client_credential&appid={APPID}&secret=x")).await;
    assert_eq!(asked.json()["access_token"], PLACEHOLDER);
    let counts = rig.sim.counts();
    assert_eq!((counts.fetches.classic, counts.fetches.stable), (1, 0));
    let fetch = rig.sim.seen().into_iter().find(|seen| seen.path() == "/cgi-bin/token").unwrap();
    let query = format!("grant_type=client_credential&appid={APPID}&secret={DEFAULT_SECRET}");
    assert_eq!(fetch.target, format!("/cgi-bin/token?{query}"));
    rig.assert_clean();
}

#[tokio::test]
async fn a_renewal_ahead_of_the_end_is_not_noticed_by_a_single_call() {
    let wechat = Wechat::plain().await;
    // Renewed half way; WeChat itself takes each of them for longer, and the one before it during the handover.
    wechat.sim.expires_in(Some(ExpiresIn::Value(json!(3))));
    let rig = Rig::unready(wechat, CLASSIC).await;
    rig.app.until_ready().await;
    let mut n = 0;
    within("three renewals", async {
        while rig.sim.counts().fetches.classic < 4 {
            let reply = rig.app.message(&format!("{n}")).await;
            reply.assert_ok();
            assert_eq!(reply.attempts(), None, "call {n}");
            n += 1;
        }
    })
    .await;
    assert_eq!(rig.sim.counts().refusals.len(), 0, "no token was refused in {n} calls");
}

#[tokio::test]
async fn a_rotation_by_another_caller_is_not_noticed_by_the_app() {
    let rig = Rig::plain(CLASSIC).await;
    let ours = rig.sim.live_token(APPID).unwrap();
    let theirs = rig.sim.rotate_kind(APPID, Kind::Classic, false).unwrap();
    // For five minutes both work, and nothing is fetched.
    rig.app.message("during the handover").await.assert_ok();
    assert!(rig.last_call().target.ends_with(&ours));
    assert_eq!(rig.fetches(), 1);

    rig.sim.advance(Duration::from_secs(301));
    let reply = rig.app.message("after it").await;
    reply.assert_ok();
    assert_eq!((reply.attempts(), rig.sim.sends_of("after it")), (Some("2"), (2, 1)));
    assert_eq!((rig.fetches(), rig.sim.counts().refused_with(40001)), (2, 1));
    let live: Vec<String> = rig.sim.live_tokens(APPID).into_iter().map(|live| live.token).collect();
    assert!(
        live.len() == 2 && live[1] == theirs && live[0] != ours,
        "the other caller has its five minutes, too"
    );
}

#[tokio::test]
async fn two_who_fetch_for_one_appid_cost_a_fetch_a_rotation_and_no_call() {
    let rig = Rig::plain(CLASSIC).await;
    for n in 0..10 {
        rig.sim.rotate_kind(APPID, Kind::Classic, true).unwrap();
        for call in 0..5 {
            let reply = rig.app.message(&format!("{n} {call}")).await;
            reply.assert_ok();
            assert_eq!(reply.attempts(), (call == 0).then_some("2"));
        }
    }
    assert_eq!(rig.fetches(), 11);
}

#[tokio::test]
async fn the_day_quota_survives_a_path_that_is_always_refused() {
    let rig = Rig::plain(CLASSIC).await;
    rig.sim.always_refuse("/wxa/", 40001);
    for n in 0..100 {
        rig.app.post("/wxa/anything", "{}").await;
        rig.app.message(&format!("{n}")).await.assert_ok();
    }
    // Here every fetch brings another token, which other paths accept and this one refuses.
    assert!(rig.fetches() <= 31, "{} fetches for 100 refused calls", rig.fetches());
}
