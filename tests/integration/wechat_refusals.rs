//! A token that dies under the app: every sort of call, every way WeChat has of saying so, and the refusal that a
//! new token does not mend.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use bytes::Bytes;
use http::Method;
use wechat_sidecar::sim::{Canned, FetchFailure, RefusalShape};

use crate::wechat_rig::{APPID, Answer, MESSAGE, Rig, SEND, UPLOAD, Wechat, multipart, noise, sha256};

/// A call: a name, the method, the target, the content type, the body.
type Call = (&'static str, Method, &'static str, &'static str, Bytes);

fn calls() -> Vec<Call> {
    let json = "application/json";
    let (form, form_type) = multipart(&noise(20 * 1024));
    vec![
        ("a message", Method::POST, SEND, json, MESSAGE.into()),
        ("a read", Method::GET, "/cgi-bin/user/get?next_openid=", "", Bytes::new()),
        ("a picture", Method::POST, "/wxa/getwxacodeunlimit", json, r#"{"scene":"a=1"}"#.into()),
        ("a form", Method::POST, UPLOAD, form_type, form),
        ("a large file", Method::POST, UPLOAD, "image/jpeg", noise(5 * 1024 * 1024)),
        ("a download", Method::GET, "/cgi-bin/media/get?media_id=big-5000000", "", Bytes::new()),
    ]
}

/// Makes the call meet a dead token, and checks that only a header tells the app so.
async fn meets_a_dead_token(rig: &Rig, (name, method, target, content_type, body): Call) {
    let fetches = rig.fetches();
    let reply = rig.app.call(method, target, content_type, body.clone(), name).await;
    reply.assert_ok();
    assert_eq!(reply.attempts(), Some("2"), "{name}: {reply:?}");
    assert_eq!(rig.sim.sends_of(name), (2, 1), "{name}: sent twice, accepted once");
    assert_eq!(rig.fetches(), fetches + 1, "{name}");
    let calls = rig.seen_calls();
    let [.., first, second] = calls.as_slice() else { panic!("{name}: two sends") };
    for sent in [first, second] {
        assert_eq!((sent.body_length, &sent.body_sha256), (body.len() as u64, &sha256(&body)), "{name}");
    }
    let tokenless = |headers: &[(String, String)], target: &str| {
        (headers.to_vec(), target.split("access_token").next().unwrap().to_owned())
    };
    assert_eq!(
        tokenless(&first.headers, &first.target),
        tokenless(&second.headers, &second.target),
        "{name}: the very same call"
    );
    assert_eq!(second.target.matches("access_token=").count(), 1, "{name}");
}

#[tokio::test]
async fn a_token_that_ran_out_is_not_noticed_by_the_app() {
    let rig = Rig::tls(&[]).await;
    for call in calls() {
        rig.sim.expire_now(APPID);
        meets_a_dead_token(&rig, call).await;
    }
    assert_eq!(rig.sim.counts().refused_with(42001), calls().len() as u64);
    rig.assert_clean();
}

#[tokio::test]
async fn a_token_that_another_caller_replaced_is_not_noticed_by_the_app() {
    let rig = Rig::tls(&[]).await;
    for call in calls() {
        rig.sim.rotate(APPID);
        meets_a_dead_token(&rig, call).await;
    }
    assert_eq!(rig.sim.counts().refused_with(40001), calls().len() as u64);
    rig.assert_clean();
}

#[tokio::test]
async fn a_token_that_was_never_one_is_not_noticed_by_the_app() {
    for call in calls() {
        let wechat = Wechat::tls().await;
        let never = r#"{"access_token":"50_never_issued_by_anyone_0123456789","expires_in":7200}"#;
        wechat.sim.fail_fetches(FetchFailure::Body(never.to_owned()), 1);
        let rig = Rig::unready(wechat, &[]).await;
        rig.app.until_ready().await;
        meets_a_dead_token(&rig, call).await;
        assert_eq!(rig.sim.counts().refused_with(40014), 1);
    }
}

#[tokio::test]
async fn a_refusal_is_noticed_however_it_is_labelled() {
    let rig = Rig::tls(&[]).await;
    for (n, content_type) in
        ["image/jpeg", "image/png", "text/plain", "application/octet-stream", "", "video/mp4", "text/html"]
            .iter()
            .enumerate()
    {
        // The token is as good as ever, so WeChat hands out the same again: that can pass, and is tried once.
        let rig = if n == 0 { &rig } else { &Rig::tls(&[]).await };
        let body = r#"{"errcode":40001,"errmsg":"invalid credential rid: 1-2-3"}"#.to_owned();
        let canned = Canned { body, status: 200, content_type: (*content_type).to_owned() };
        rig.sim.fail_calls("/wxa/getwxacodeunlimit", canned, 1);
        let reply = rig
            .app
            .call(Method::POST, "/wxa/getwxacodeunlimit", "a/b", r#"{"scene":"a=1"}"#.into(), "c")
            .await;
        assert_eq!(reply.attempts(), Some("2"), "{content_type}: {reply:?}");
        assert!(reply.body.starts_with(b"\xff\xd8"), "{content_type}: the picture came");
        assert_eq!(rig.sim.sends_of("c"), (2, 1), "{content_type}");
    }
}

#[tokio::test]
async fn every_way_to_write_a_refusal_is_noticed() {
    let rig = Rig::tls(&[]).await;
    for shape in [
        RefusalShape::Plain,
        RefusalShape::String,
        RefusalShape::Last,
        RefusalShape::Spaced,
        RefusalShape::Control,
    ] {
        rig.sim.refusal_shape(shape);
        rig.sim.expire_now(APPID);
        let name = format!("{shape:?}");
        let reply = rig.app.message(&name).await;
        reply.assert_ok();
        assert_eq!((reply.attempts(), rig.sim.sends_of(&name)), (Some("2"), (2, 1)), "{name}");
    }
}

#[tokio::test]
async fn an_errcode_that_is_not_at_the_top_is_the_apps_affair() {
    let rig = Rig::tls(&[]).await;
    rig.sim.refusal_shape(RefusalShape::Nested);
    rig.sim.expire_now(APPID);
    let reply = rig.app.message("nested").await;
    assert_eq!((reply.status, reply.attempts(), reply.ours()), (200, None, None));
    assert_eq!(reply.json()["base_resp"]["errcode"], 42001);
    assert_eq!(rig.sim.sends_of("nested").0, 1);
    assert_eq!(rig.fetches(), 1);
}

#[tokio::test]
async fn the_nested_errcode_of_a_device_interface_is_a_refusal() {
    let rig = Rig::tls(&[]).await;
    rig.sim.refusal_shape(RefusalShape::Nested);
    for _ in 0..2 {
        rig.sim.expire_now(APPID);
        let reply = rig.app.get("/device/get_stat?device_id=lamp").await;
        assert_eq!(reply.assert_ok().attempts(), Some("2"), "{reply:?}");
    }
    assert_eq!(rig.sim.counts().calls_to("/device/get_stat"), 4);
    // A long reply and one that is no JSON go through whole.
    let long = format!(r#"{{"base_resp":{{"errcode":42001}},"more":"{}"}}"#, "x".repeat(8000));
    for body in [long, "[1]".to_owned(), String::new()] {
        let canned = Canned { body: body.clone(), ..Canned::default() };
        rig.sim.fail_calls("/device/get_stat", canned, 1);
        let reply = rig.app.get("/device/get_stat?device_id=lamp").await;
        assert_eq!((reply.text(), reply.attempts()), (body.as_str(), None));
    }
}

#[tokio::test]
async fn what_only_looks_like_a_refusal_goes_once() {
    let rig = Rig::tls(&[]).await;
    for (n, body) in [
        r#"{"errcode":40002,"errmsg":"40001"}"#.to_owned(),
        r#"{"errcode":42007,"errmsg":"user changed password"}"#.to_owned(),
        r#"{"errcode":-1,"errmsg":"system error"}"#.to_owned(),
        r#"{"errcode":45009,"errmsg":"reach max api daily quota limit"}"#.to_owned(),
        r#"[{"errcode":40001}]"#.to_owned(),
        r#""errcode":40001"#.to_owned(),
        r#"{"data":{"errcode":40001},"errcode":0}"#.to_owned(),
        r#"{"text":"\"errcode\":40001","n":1}"#.to_owned(),
        format!(r#"{{"pad":"{}","errcode":40001}}"#, "x".repeat(5000)),
        r#"{"errcode":40001"#.to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        let canned = Canned { body: body.clone(), ..Canned::default() };
        rig.sim.fail_calls(SEND, canned, 1);
        let name = format!("look-alike {n}");
        let reply = rig.app.message(&name).await;
        assert_eq!((reply.status, reply.attempts(), reply.ours()), (200, None, None), "{body}");
        assert!(reply.body == body, "{body}: it came as {reply:?}");
        assert_eq!(rig.sim.sends_of(&name).0, 1, "{body}");
    }
    assert_eq!(rig.fetches(), 1, "none of them is about the token");
}

/// What WeChat wrote, but for the rid, which is another in every reply.
fn without_rid(reply: &Answer) -> String {
    reply.text().split(" rid: ").next().unwrap().to_owned()
}

#[tokio::test]
async fn a_second_refusal_goes_to_the_app_as_wechat_wrote_it() {
    for errcode in [40001, 40014, 42001] {
        let rig = Rig::tls(&[]).await;
        rig.sim.always_refuse(SEND, errcode);
        let reply = rig.app.message("twice").await;
        assert_eq!((reply.status, reply.errcode(), reply.attempts()), (200, errcode, Some("2")));
        assert_eq!(
            (reply.ours(), reply.header("content-type")),
            (None, Some("application/json; encoding=utf-8"))
        );
        assert_eq!(rig.sim.sends_of("twice"), (2, 0));
        // The rid tells the two refusals apart: the app has the second one, whole.
        let told = format!(r#"{{"errcode":{errcode},"errmsg":""#);
        assert!(without_rid(&reply).starts_with(&told) && reply.text().ends_with("\"}"), "{reply:?}");
        assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    }
}

#[tokio::test]
async fn a_second_refusal_keeps_every_byte() {
    let rig = Rig::tls(&[]).await;
    let first = r#"{"errcode":40001,"errmsg":"the first"}"#.to_owned();
    let second = "\r\n{ \"errmsg\" : \"the\tsecond 你好\",\t\"errcode\" : \"42001\" }\n ".to_owned();
    for body in [&first, &second] {
        let canned = Canned { body: body.clone(), status: 200, content_type: "Text/Plain;x=y".to_owned() };
        rig.sim.fail_calls(SEND, canned, 1);
    }
    let reply = rig.app.message("bytes").await;
    assert!(reply.body == second, "{reply:?}");
    assert_eq!((reply.header("content-type"), reply.attempts()), (Some("Text/Plain;x=y"), Some("2")));
}

#[tokio::test]
async fn a_path_that_is_always_refused_costs_few_fetches_and_harms_no_other() {
    let rig = Rig::plain(&[]).await;
    rig.sim.always_refuse("/wxa/", 40001);
    for n in 0..200 {
        let refused = rig.app.post("/wxa/business/getuserphonenumber", r#"{"code":"c"}"#).await;
        assert_eq!((refused.status, refused.errcode(), refused.ours()), (200, 40001, None), "{n}");
        let well = rig.app.message(&format!("other {n}")).await;
        well.assert_ok();
        assert_eq!(well.attempts(), None);
        assert_eq!(rig.sim.sends_of(&format!("other {n}")), (1, 1));
    }
    let counts = rig.sim.counts();
    // The first at once, the next after 2 s, 4 s, 8 s, ...; 200 calls take far less than a minute.
    assert!(counts.all_fetches() <= 7, "{} fetches for 200 refused calls", counts.all_fetches());
    assert!(counts.calls_to("/wxa/business/getuserphonenumber") <= 200 + counts.all_fetches());
    assert_eq!(counts.fetches.forced, 0);
    assert_eq!(rig.sim.live_tokens(APPID).len(), 1, "nothing was rotated for it");
}

#[tokio::test]
async fn a_death_while_another_path_is_always_refused_is_not_noticed() {
    let rig = Rig::plain(&[]).await;
    rig.sim.always_refuse("/wxa/", 40001);
    for n in 0..20 {
        rig.app.post("/wxa/anything", "{}").await;
        rig.app.message(&format!("before {n}")).await.assert_ok();
    }
    let before = rig.fetches();
    assert!(before <= 4, "{before} fetches");
    for n in 0..3 {
        rig.sim.rotate(APPID);
        let reply = rig.app.message(&format!("after {n}")).await;
        assert_eq!(reply.assert_ok().attempts(), Some("2"));
    }
    assert_eq!(rig.fetches(), before + 3);
}
