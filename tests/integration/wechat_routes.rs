//! The paths that do not get the app's token: users' tokens, calls that want the secret, and the token endpoints,
//! which the sidecar answers itself.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use http::Method;
use wechat_sidecar::sim::DEFAULT_SECRET;

use crate::wechat_rig::{APPID, Answer, PLACEHOLDER, Rig};

/// A user logs in: its token and openid.
async fn login(rig: &Rig, code: &str) -> (String, String, String) {
    let reply =
        rig.app.get(&format!("/sns/oauth2/access_token?code={code}&grant_type=authorization_code")).await;
    let user = reply.assert_ok().json();
    let text = |name: &str| user[name].as_str().unwrap().to_owned();
    (text("access_token"), text("openid"), text("refresh_token"))
}

#[tokio::test]
async fn a_users_token_passes_untouched() {
    let rig = Rig::tls(&[]).await;
    let (token, openid, refresh) = login(&rig, "c1").await;
    assert!(rig.last_call().target.ends_with(&format!("&appid={APPID}&secret={DEFAULT_SECRET}")));
    for target in [
        format!("/sns/userinfo?access_token={token}&openid={openid}&lang=zh_CN"),
        format!("/sns/auth?openid={openid}&access_token={token}"),
    ] {
        rig.app.get(&target).await.assert_ok();
        assert_eq!(rig.last_call().target, target, "nothing was added, moved or taken away");
    }
    let renewed = rig
        .app
        .get(&format!("/sns/oauth2/refresh_token?grant_type=refresh_token&refresh_token={refresh}"))
        .await;
    renewed.assert_ok();
    let target = rig.last_call().target;
    assert!(target.ends_with(&format!("&appid={APPID}")) && !target.contains(DEFAULT_SECRET), "{target}");
    assert_eq!(rig.fetches(), 1);
}

#[tokio::test]
async fn a_refused_user_token_is_the_users_affair_and_costs_no_fetch() {
    let rig = Rig::tls(&[]).await;
    let (token, openid, _) = login(&rig, "c1").await;
    rig.sim.expire_user_tokens();
    for (token, errcode) in [(token.as_str(), 42001), ("90_unknown", 40001)] {
        let reply = rig.app.get(&format!("/sns/userinfo?access_token={token}&openid={openid}")).await;
        assert_eq!((reply.errcode(), reply.attempts(), reply.ours()), (errcode, None, None), "{reply:?}");
        assert_eq!(reply.header("content-type"), Some("text/plain"));
    }
    let reply = rig.app.get(&format!("/sns/userinfo?access_token={PLACEHOLDER}&openid={openid}")).await;
    assert_eq!(reply.errcode(), 41001, "a placeholder is no user's token, and is not shown to WeChat");
    assert!(!rig.last_call().target.contains("access_token"));
    assert_eq!(rig.sim.counts().calls_to("/sns/userinfo"), 3);
    assert_eq!(rig.fetches(), 1);
}

#[tokio::test]
async fn a_login_gets_appid_and_secret_and_loses_the_placeholder() {
    let rig = Rig::tls(&[]).await;
    let secret = format!("secret={DEFAULT_SECRET}");
    for (n, (query, expected)) in [
        ("js_code=CODE&grant_type=g".to_owned(), format!("js_code=CODE&grant_type=g&appid={APPID}&{secret}")),
        (
            format!("access_token={PLACEHOLDER}&js_code=CODE&grant_type=g"),
            format!("js_code=CODE&grant_type=g&appid={APPID}&{secret}"),
        ),
        (
            format!("js_code=CODE&appid={APPID}&grant_type=g&secret=dummy"),
            format!("js_code=CODE&appid={APPID}&grant_type=g&{secret}"),
        ),
        (
            format!("appid={APPID}&secret=a&js_code=CODE&secret=b&grant_type=g"),
            format!("appid={APPID}&js_code=CODE&grant_type=g&{secret}"),
        ),
        (
            "appid=&secret=&js_code=CODE&grant_type=g".to_owned(),
            format!("js_code=CODE&grant_type=g&appid={APPID}&{secret}"),
        ),
        (
            format!("%61ppid={APPID}&s%65cret=a&js_code=CODE&grant_type=g"),
            format!("%61ppid={APPID}&js_code=CODE&grant_type=g&{secret}"),
        ),
    ]
    .iter()
    .enumerate()
    {
        let code = format!("code{n}");
        let with_code = |text: &str| format!("/sns/jscode2session?{}", text.replace("CODE", &code));
        let reply = rig.app.get(&with_code(query)).await;
        assert!(reply.assert_ok().json()["session_key"].is_string());
        assert_eq!(rig.last_call().target, with_code(expected), "{query}");
        assert!(!reply.text().contains(DEFAULT_SECRET));
    }
    let foreign = rig.app.get("/sns/jscode2session?appid=wxffffffffffffffff&secret=x&js_code=c").await;
    assert_eq!((foreign.status, foreign.errcode()), (200, 40013));
    assert_eq!(
        rig.sim.counts().calls_to("/sns/jscode2session"),
        6,
        "an account we do not hold is not asked for"
    );
    assert_eq!(rig.fetches(), 1);
}

#[tokio::test]
async fn a_quota_reset_by_secret_gets_the_secret() {
    let rig = Rig::tls(&[]).await;
    let target = format!("/cgi-bin/clear_quota/v2?appid={APPID}&appsecret=dummy&access_token=x");
    rig.app.post(&target, "").await.assert_ok();
    assert_eq!(
        rig.last_call().target,
        format!("/cgi-bin/clear_quota/v2?appid={APPID}&appsecret={DEFAULT_SECRET}")
    );
}

#[tokio::test]
async fn a_login_that_takes_both_gets_token_and_secret_and_survives_a_dead_token() {
    let rig = Rig::tls(&[]).await;
    for (n, given) in [
        String::new(),
        format!("access_token={PLACEHOLDER}&appid={APPID}&appsecret=dummy&"),
        "appsecret=dummy&".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        rig.sim.expire_now(APPID);
        let target = format!("/donut/code2verifyinfo?{given}grant_type=authorization_code&code=c{n}");
        let reply = rig.app.get(&target).await;
        assert!(reply.assert_ok().json()["user_info"]["user_id"].is_string(), "{target}");
        assert!(!reply.text().contains(DEFAULT_SECRET));
        let sent = rig.last_call().target;
        for (part, times) in
            [("appid=", 1), ("appsecret=", 1), ("access_token=", 1), (DEFAULT_SECRET, 1), ("dummy", 0)]
        {
            assert_eq!(sent.matches(part).count(), times, "{part} in {sent}");
        }
    }
    let foreign = rig.app.get("/donut/code2verifyinfo?appid=wxffffffffffffffff&code=c").await;
    assert_eq!((foreign.status, foreign.errcode()), (200, 40013));
}

fn assert_placeholder(reply: &Answer) {
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    assert_eq!(reply.text(), format!(r#"{{"access_token":"{PLACEHOLDER}","expires_in":7200}}"#));
}

#[tokio::test]
async fn an_app_that_fetches_a_token_gets_the_placeholder_and_costs_nothing() {
    let rig = Rig::tls(&[]).await;
    let form = format!("grant_type=client_credential&appid={APPID}&secret=whatever");
    let json = |force| {
        format!(
            r#"{{"grant_type":"client_credential","appid":"{APPID}","secret":"x","force_refresh":{force}}}"#
        )
    };
    for _ in 0..5 {
        assert_placeholder(&rig.app.get(&format!("/cgi-bin/token?{form}")).await);
        let posted = rig.app.call(
            Method::POST,
            "/cgi-bin/token",
            "application/x-www-form-urlencoded",
            form.clone().into(),
            "-",
        );
        assert_placeholder(&posted.await);
        assert_placeholder(&rig.app.post("/cgi-bin/stable_token", json(false)).await);
        assert_placeholder(&rig.app.post("/cgi-bin/stable_token", json(true)).await);
    }
    let counts = rig.sim.counts();
    assert_eq!((counts.all_fetches(), counts.fetches.forced, counts.all_calls()), (1, 0, 0));
    rig.app.get(&format!("/cgi-bin/user/get?access_token={PLACEHOLDER}")).await.assert_ok();
}

#[tokio::test]
async fn a_wrong_token_request_is_told_what_wechat_would_say() {
    let rig = Rig::plain(&[]).await;
    let get = async |query: &str| rig.app.get(&format!("/cgi-bin/token?{query}")).await;
    let post = async |body: &str| rig.app.post("/cgi-bin/stable_token", body.to_owned()).await;
    let cc = "grant_type=client_credential";
    for (reply, errcode) in [
        (get(&format!("{cc}&appid=wxffffffffffffffff&secret=x")).await, 40013),
        (get(&format!("{cc}&appid={APPID}")).await, 41004),
        (get(&format!("{cc}&secret=x")).await, 41002),
        (get(&format!("appid={APPID}&secret=x")).await, 40002),
        (get("").await, 40002),
        (rig.app.get("/cgi-bin/stable_token").await, 43002),
        (
            post(r#"{"grant_type":"client_credential","appid":"wxffffffffffffffff","secret":"x"}"#).await,
            40013,
        ),
        (post(r#"{"grant_type":"client_credential","secret":"x"}"#).await, 41002),
        (post(&format!(r#"{{"grant_type":"client_credential","appid":"{APPID}"}}"#)).await, 41004),
        (post(r#"{"grant_type":"authorization_code"}"#).await, 40002),
        (post("").await, 40002),
        (post("[1]").await, 40002),
    ] {
        assert_eq!((reply.status, reply.errcode()), (200, errcode), "{reply:?}");
        assert!(!reply.text().contains("access_token\""), "{reply:?}");
    }
    assert_eq!(rig.sim.counts().requests, 1, "only the sidecar's own fetch reached WeChat");
}

#[tokio::test]
async fn a_path_that_could_mean_a_guarded_one_is_refused() {
    let rig = Rig::plain(&[]).await;
    for path in [
        "/sns/jscode2session/../../cgi-bin/token",
        "/cgi-bin//token",
        "/cgi-bin/token/",
        "/cgi-bin/%74oken",
        "/cgi-bin/%2574oken",
        "/cgi-bin%2Ftoken",
        "/cgi-bin/x/%2e%2e/token",
        "/cgi-bin/./stable_token",
        "/CGI-BIN/token",
        "/cgi-bin/token;a=b",
        "/cgi-bin/token%00",
        "/wxa/../sns/jscode2session",
        "/sns/../cgi-bin/user/get",
        "/sns%2fjscode2session",
        "/wx0123456789abcdef/../sns/jscode2session",
        "/wx0123456789abcdef/cgi-bin/./token",
    ] {
        for method in [Method::GET, Method::POST] {
            let reply = rig.app.call(method, &format!("{path}?js_code=c"), "", "".into(), "-").await;
            assert_eq!((reply.status, reply.ours()), (400, Some("ambiguous-path")), "{path}: {reply:?}");
        }
    }
    assert_eq!(rig.sim.counts().requests, 1, "none of them reached WeChat");
}

#[tokio::test]
async fn an_odd_path_whose_meaning_is_the_same_goes_as_it_came() {
    let rig = Rig::plain(&[]).await;
    let token = rig.sim.live_token(APPID).unwrap();
    for path in ["/cgi-bin/menu/%67et", "/cgi-bin/menu//get", "/cgi-bin/x/../menu/get", "/cgi-bin/Menu/Get/"]
    {
        rig.app.get(path).await.assert_ok();
        assert_eq!(rig.last_call().target, format!("{path}?access_token={token}"));
    }
}

#[tokio::test]
async fn acting_for_a_component_brings_its_own_token() {
    let rig = Rig::plain(&[]).await;
    let target = "/cgi-bin/component/api_query_auth?component_access_token=61_theirs";
    rig.app.post(target, "{}").await;
    assert_eq!(rig.last_call().target, target);
    let target = "/wxa/anything?component_access_token=61_theirs";
    rig.app.post(target, "{}").await;
    assert_eq!(rig.last_call().target, target);
    assert_eq!(rig.fetches(), 1);
}
