//! Several accounts behind one sidecar: how a call chooses one, and that none suffers with another.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::ffi::OsString;

use wechat_sidecar::credentials::{AppId, Secret};
use wechat_sidecar::sim::Sim;

use crate::wechat_rig::{APPID, App, SEND, Sidecar, Wechat, until, within};

const SECOND: &str = "wxbbbbbbbbbbbbbbbb";
const THIRD: &str = "wxcccccccccccccccc";

fn placeholder(appid: &str) -> String {
    format!("WECHAT-SIDECAR_{appid}_not-a-token_the-sidecar-puts-the-real-one-into-each-call")
}

fn secret_of(appid: &str) -> String {
    format!("{:x<32}", &appid[..6])
}

struct House {
    sim: Sim,
    app: App,
    _side: Sidecar,
}

/// Three accounts; the secret of the third is not what WeChat has, unless `well`.
async fn house(well: bool) -> House {
    let wechat = Wechat::tls().await;
    let register = |appid: &str, secret: &str| {
        wechat.sim.set_account(&AppId::parse(appid).unwrap(), &Secret::parse(secret).unwrap());
    };
    register(SECOND, &secret_of(SECOND));
    let third = if well { secret_of(THIRD) } else { "another-secret-than-the-sidecars".to_owned() };
    register(THIRD, &third);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for appid in [SECOND, THIRD] {
        use std::io::Write;
        writeln!(file, "[[account]]\nappid = \"{appid}\"\nsecret = \"{}\"", secret_of(appid)).unwrap();
    }
    let mut args = wechat.settings(&["--token-wait", "20s", "--config"]);
    args.push(OsString::from(file.path()));
    let side = Sidecar::start(&args, &wechat.env());
    let app = App::new(side.addresses);
    House { sim: wechat.sim.clone(), app, _side: side }
}

/// Whose token the last call carried.
fn acted_as(sim: &Sim) -> String {
    let seen = sim.seen();
    let call = seen.iter().rev().find(|seen| !seen.path().ends_with("token")).unwrap();
    call.appid.clone().unwrap_or_else(|| panic!("{call:?}"))
}

#[tokio::test]
async fn a_call_names_its_account_by_placeholder_or_prefix_or_not_at_all() {
    let House { sim, app, _side } = house(true).await;
    app.until_ready().await;
    let query = "openid=o&lang=zh_CN";
    for (target, expected) in [
        (format!("/cgi-bin/user/info?{query}"), APPID),
        (format!("/cgi-bin/user/info?{query}&access_token={}", placeholder(SECOND)), SECOND),
        (format!("/cgi-bin/user/info?access_token={}&{query}", placeholder(THIRD)), THIRD),
        (format!("/{SECOND}/cgi-bin/user/info?{query}"), SECOND),
        (format!("/{THIRD}/cgi-bin/user/info?{query}&access_token=stale"), THIRD),
        (format!("/{SECOND}/cgi-bin/user/info?{query}&access_token={}", placeholder(THIRD)), THIRD),
        (format!("/{APPID}/cgi-bin/user/info?{query}"), APPID),
        (format!("/cgi-bin/user/info?{query}&access_token={}", &placeholder(SECOND)[..40]), SECOND),
    ] {
        app.get(&target).await.assert_ok();
        assert_eq!(acted_as(&sim), expected, "{target}");
        let seen = sim.seen().pop().unwrap();
        assert_eq!(seen.path(), "/cgi-bin/user/info", "{target}: the prefix is the sidecar's");
    }
    let calls = sim.seen().len();
    for target in [
        format!("/cgi-bin/user/info?{query}&access_token={}", placeholder("wxffffffffffffffff")),
        format!("/cgi-bin/user/info?{query}&access_token={}", &placeholder(SECOND)[..25]),
        format!("/wxffffffffffffffff/cgi-bin/user/info?{query}"),
    ] {
        let reply = app.get(&target).await;
        assert_eq!((reply.status, reply.errcode()), (200, 40013), "{target}: it must not act as ours");
    }
    assert_eq!(sim.seen().len(), calls, "WeChat was not asked");
    for (target, expected) in [
        ("/sns/jscode2session?js_code=1".to_owned(), APPID),
        (format!("/{SECOND}/sns/jscode2session?js_code=2"), SECOND),
        (format!("/sns/jscode2session?js_code=3&appid={THIRD}&secret=x"), THIRD),
        (format!("/sns/jscode2session?js_code=4&access_token={}", placeholder(SECOND)), SECOND),
    ] {
        app.get(&target).await.assert_ok();
        let seen = sim.seen().pop().unwrap();
        assert!(seen.target.contains(&format!("appid={expected}&secret=")), "{target}: {}", seen.target);
    }
    for appid in [APPID, SECOND, THIRD] {
        let told =
            app.get(&format!("/cgi-bin/token?grant_type=client_credential&appid={appid}&secret=x")).await;
        assert_eq!(told.json()["access_token"], placeholder(appid));
    }
    let counts = sim.counts();
    assert_eq!((counts.all_fetches(), counts.placeholders, counts.unknown_tokens), (3, 0, 0));
}

#[tokio::test]
async fn a_dead_token_of_one_account_is_renewed_for_that_one_only() {
    let House { sim, app, _side } = house(true).await;
    app.until_ready().await;
    let others = sim.live_token(APPID).unwrap();
    sim.expire_now(SECOND);
    let reply = app.post(&format!("/{SECOND}{SEND}"), "{}").await;
    assert_eq!((reply.errcode(), reply.attempts()), (0, Some("2")));
    assert_eq!(sim.live_token(APPID).unwrap(), others);
    assert_eq!(app.post(SEND, "{}").await.attempts(), None);
    assert_eq!(sim.counts().all_fetches(), 4);
}

#[tokio::test]
async fn an_account_with_a_wrong_secret_fails_alone() {
    let House { sim, app, _side } = house(false).await;
    until("the third account has failed", async || app.admin("/readyz").await.text().contains("40125")).await;
    let ready = app.admin("/readyz").await;
    assert_eq!(ready.status, 503, "an account without a token is not ready");
    assert!(ready.text().contains(THIRD), "{}", ready.text());
    for n in 0..20 {
        let failing = app.post(&format!("/{THIRD}{SEND}"), "{}").await;
        failing.assert_no_token();
        assert!(failing.text().contains(THIRD) && failing.text().contains("40125"), "{failing:?}");
        for target in [SEND.to_owned(), format!("/{SECOND}{SEND}")] {
            app.post(&target, "{}").await.assert_ok();
            assert_eq!(acted_as(&sim), if target == SEND { APPID } else { SECOND }, "{n}");
        }
    }
    assert_eq!(sim.counts().fetches.refusals.get(&40125), Some(&1), "asked once, not with every call");
}

#[tokio::test]
async fn a_fetch_that_hangs_for_one_account_delays_no_other() {
    let House { sim, app, _side } = house(true).await;
    app.until_ready().await;
    sim.expire_now(SECOND);
    sim.hold_fetches();
    let waiting = {
        let app = app.clone();
        tokio::spawn(async move { app.post(&format!("/{SECOND}{SEND}"), "{}").await })
    };
    within("the fetch comes", sim.until(|counts| counts.all_fetches() == 4)).await;
    app.post(SEND, "{}").await.assert_ok();
    app.post(&format!("/{THIRD}{SEND}"), "{}").await.assert_ok();
    assert!(!waiting.is_finished(), "the second account's call still waits");
    sim.release_fetches();
    assert_eq!(waiting.await.unwrap().assert_ok().attempts(), Some("2"));
}
