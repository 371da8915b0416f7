//! What the app sees when the token endpoint fails: nothing while a token lives, a 503 that says why when none does,
//! and nothing again when the failure has ended.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use wechat_sidecar::sim::{Canned, Errcode, ExpiresIn, FOREVER, FetchFailure};

use crate::wechat_rig::{APPID, Rig, SEND, Wechat, until, within};

/// So long a token lives here, by WeChat's word; WeChat itself would take it for two hours.
fn short_life(wechat: &Wechat, seconds: u64) {
    wechat.sim.expires_in(Some(ExpiresIn::Value(json!(seconds))));
}

#[tokio::test]
async fn a_failing_token_endpoint_is_no_affair_of_a_call_while_the_token_lives() {
    for failure in [
        FetchFailure::Errcode(-1),
        FetchFailure::Errcode(40164),
        FetchFailure::Status(502),
        FetchFailure::Drop,
        FetchFailure::Garbage,
        FetchFailure::Empty,
    ] {
        let wechat = Wechat::plain().await;
        // Renewed half way, and only the first token is to be had.
        short_life(&wechat, 60);
        let rig = Rig::unready(wechat, &[]).await;
        rig.app.until_ready().await;
        rig.sim.fail_fetches(failure.clone(), FOREVER);
        rig.sim.always_refuse("/wxa/", 40001);
        // A refusal makes the sidecar fetch, in vain: the app gets WeChat's own answer.
        let refused = rig.app.post("/wxa/anything", "{}").await;
        assert_eq!(
            (refused.status, refused.errcode(), refused.attempts()),
            (200, 40001, None),
            "{failure:?}"
        );
        assert!(rig.fetches() >= 2, "{failure:?}");
        for n in 0..20 {
            let reply = rig.app.message(&format!("{n}")).await;
            reply.assert_ok();
            assert_eq!(reply.attempts(), None);
        }
        assert_eq!(rig.app.admin("/readyz").await.status, 200, "{failure:?}: what lives is served");
        assert_eq!(rig.sim.counts().max_sends_of_a_call, 1);
    }
}

#[tokio::test]
async fn a_token_that_dies_in_an_outage_leaves_503_at_once_and_comes_back_by_itself() {
    let wechat = Wechat::plain().await;
    short_life(&wechat, 2);
    let rig = Rig::unready(wechat, &[]).await;
    rig.app.until_ready().await;
    rig.sim.fail_fetches(FetchFailure::Status(502), FOREVER);
    rig.sim.reset_counts();
    until("the token dies", async || rig.app.admin("/readyz").await.status == 503).await;
    let before = rig.sim.counts().all_calls();
    let no_token = rig.app.message("in the outage").await;
    no_token.assert_no_token();
    assert!(no_token.text().contains("502"), "{no_token:?}");
    assert_eq!(rig.sim.counts().all_calls(), before, "a call without a token is not sent");

    rig.sim.reset_levers();
    until("the sidecar is ready again", async || rig.app.admin("/readyz").await.status == 200).await;
    rig.app.message("after the outage").await.assert_ok();
}

#[tokio::test]
async fn a_dead_token_and_a_failing_fetch_give_the_app_wechats_refusal() {
    let rig = Rig::plain(&[]).await;
    rig.sim.expire_now(APPID);
    rig.sim.fail_fetches(FetchFailure::Errcode(45009), FOREVER);
    for n in 0..50 {
        let reply = rig.app.message(&format!("{n}")).await;
        assert_eq!((reply.status, reply.errcode(), reply.attempts()), (200, 42001, None), "{reply:?}");
    }
    assert_eq!(rig.fetches(), 2, "the day's quota is not spent on asking for the day's quota");
    assert_eq!(rig.sim.counts().max_sends_of_a_call, 1);
}

#[tokio::test]
async fn without_a_token_the_app_is_told_why_and_what_to_do() {
    for (failure, words) in [
        (FetchFailure::Errcode(40164), &["40164", "101.45.43.1", "whitelist"][..]),
        (FetchFailure::Errcode(61004), &["61004", "101.45.43.1", "whitelist"]),
        (FetchFailure::Errcode(40125), &["40125", "AppSecret", "put the current one into secret"]),
        (FetchFailure::Errcode(40013), &["40013", "appid"]),
        (FetchFailure::Errcode(40243), &["40243", "unfreeze"]),
        (FetchFailure::Errcode(89503), &["89503", "administrator", "10 minutes"]),
        (FetchFailure::Errcode(89506), &["89506", "24 hours"]),
        (FetchFailure::Errcode(45009), &["45009", "quota"]),
        (FetchFailure::Errcode(45011), &["45011", "minute"]),
        (FetchFailure::Errcode(-1), &["busy"]),
        (FetchFailure::Status(502), &["502"]),
        (FetchFailure::Garbage, &["JSON"]),
        (FetchFailure::Empty, &["0 bytes"]),
        (FetchFailure::Drop, &["closed"]),
        (FetchFailure::Body(r#"{"access_token":"","expires_in":7200}"#.to_owned()), &["token"]),
        (FetchFailure::Body(r#"{"access_token":"x","expires_in":-1}"#.to_owned()), &["expires_in"]),
    ] {
        let wechat = Wechat::plain().await;
        wechat.sim.fail_fetches(failure.clone(), FOREVER);
        let rig = Rig::unready(wechat, &["--token-wait", "20s"]).await;
        // The first fetch is awaited, however long token_wait is; it fails, and nothing more is.
        let started = Instant::now();
        let reply = rig.app.message("c").await;
        reply.assert_no_token();
        assert!(started.elapsed() < Duration::from_secs(15), "{failure:?}: at once, not after token_wait");
        let told = reply.json()["errmsg"].as_str().unwrap().to_owned();
        assert!(told.starts_with("wechat-sidecar: no access token for wx0123456789abcdef"), "{told}");
        for word in words {
            assert!(told.contains(word), "{failure:?}: {told:?} says nothing of {word}");
        }
        let ready = rig.app.admin("/readyz").await;
        assert_eq!(ready.status, 503);
        for word in words {
            assert!(ready.text().contains(word), "{failure:?}: {} says nothing of {word}", ready.text());
        }
        assert_eq!(rig.sim.counts().all_calls(), 0);
    }
}

#[tokio::test]
async fn retry_after_is_as_long_as_wechat_wants() {
    for (errcode, least) in
        [(40125, 60), (45011, 60), (89503, 590), (89507, 3590), (89506, 86_390), (45009, 290)]
    {
        let wechat = Wechat::plain().await;
        wechat.sim.fail_fetches(FetchFailure::Errcode(errcode), FOREVER);
        let rig = Rig::unready(wechat, &[]).await;
        let no_token = async || rig.app.message("c").await.header("retry-after").map(str::to_owned);
        // While the very first fetch is still under way it is short.
        let seconds = || async { no_token().await.unwrap().parse::<u64>().unwrap() };
        until(&format!("{errcode}"), async || seconds().await >= least - 5).await;
        assert_eq!(rig.fetches(), 1, "{errcode}");
    }
}

#[tokio::test]
async fn a_call_waits_for_a_fetch_that_hangs_no_longer_than_it_should() {
    let wechat = Wechat::plain().await;
    wechat.sim.fail_fetches(FetchFailure::Hang, 1);
    let rig = Rig::unready(wechat, &["--token-wait", "200ms", "--fetch-timeout", "1s"]).await;
    let ready = rig.app.admin("/readyz").await;
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json()["accounts"][0]["appid"], APPID);
    let started = Instant::now();
    let reply = rig.app.message("early").await;
    reply.assert_no_token();
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(reply.text().contains("under way"), "{reply:?}");
    rig.app.until_ready().await;
    rig.app.message("late").await.assert_ok();
    assert_eq!(rig.sim.sends_of("early"), (0, 0));
}

#[tokio::test]
async fn calls_that_come_before_the_first_token_wait_for_it() {
    let wechat = Wechat::plain().await;
    wechat.sim.hold_fetches();
    let rig = Rig::unready(wechat, &["--token-wait", "20s"]).await;
    let calls: Vec<_> = (0..20)
        .map(|n| {
            let app = rig.app.clone();
            tokio::spawn(async move { app.message(&format!("{n}")).await })
        })
        .collect();
    within("the fetch comes", rig.sim.until(|counts| counts.all_fetches() == 1)).await;
    assert_eq!(rig.sim.counts().all_calls(), 0);
    rig.sim.release_fetches();
    for call in calls {
        call.await.unwrap().assert_ok();
    }
    assert_eq!(rig.fetches(), 1);
}

#[tokio::test]
async fn a_busy_wechat_is_asked_for_a_call_once() {
    let rig = Rig::plain(&[]).await;
    for errcode in [-1, 45009, 45011, 48001, 41001, 40164] {
        let body = format!(r#"{{"errcode":{errcode},"errmsg":"{}"}}"#, Errcode(errcode).errmsg("1.2.3.4"));
        rig.sim.fail_calls(SEND, Canned { body: body.clone(), ..Canned::default() }, 1);
        let name = format!("{errcode}");
        let reply = rig.app.message(&name).await;
        assert_eq!((reply.status, reply.text(), reply.attempts()), (200, body.as_str(), None));
        assert_eq!(rig.sim.sends_of(&name).0, 1);
    }
    for status in [500, 502, 503, 504, 301, 404] {
        let body = "<html>bad</html>".to_owned();
        rig.sim.fail_calls(SEND, Canned { body: body.clone(), status, content_type: "text/html".into() }, 1);
        let name = format!("status {status}");
        let reply = rig.app.message(&name).await;
        assert_eq!((reply.status, reply.text(), reply.ours()), (status, body.as_str(), None));
        assert_eq!(rig.sim.sends_of(&name).0, 1);
    }
    assert_eq!(rig.fetches(), 1);
}
