//! What the admin port does for the app in the pod and for operators, and for no web page: the passive refresh, keys,
//! and TLS.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::ffi::OsString;
use std::io::Write;

use bytes::Bytes;
use http::Method;
use http_body_util::Full;
use tempfile::TempDir;
use wechat_sidecar::sim::Sim;

use crate::rig::tls::Authority;
use crate::wechat_process::{Process, command};
use crate::wechat_rig::{APPID, Answer, App, PLACEHOLDER, SEND, Sidecar, Wechat, until};

const OPERATOR: &str = "operators-key-93be0f";
const STRANGER: &str = "strangers-key-17ac2d";
const FOLLOWER: &str = "followers-key-5f0c9d";

struct House {
    sim: Sim,
    app: App,
    _side: Sidecar,
}

/// A sidecar with a key for an operator, and one for the operator of another account.
async fn house() -> House {
    let wechat = Wechat::plain().await;
    let mut keys = tempfile::NamedTempFile::new().unwrap();
    writeln!(keys, "{OPERATOR} {APPID}\n{STRANGER} wxother").unwrap();
    let mut args = wechat.settings(&["--workers", "1", "--operator-keys-file"]);
    args.push(OsString::from(keys.path()));
    let side = Sidecar::start(&args, &wechat.env());
    let app = App::new(side.addresses);
    app.until_ready().await;
    House { sim: wechat.sim.clone(), app, _side: side }
}

impl House {
    async fn refresh(&self, target: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = self.app.to_admin(Method::POST, target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let reply = self.app.send(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await;
        for live in self.sim.live_tokens(APPID) {
            assert!(!reply.text().contains(&live.token), "never the token: {reply:?}");
        }
        reply
    }

    async fn readiness(&self) -> String {
        let ready = self.app.admin("/readyz").await.json();
        ready["accounts"][0]["token"].as_str().unwrap().to_owned()
    }
}

fn bearer(key: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {key}"))
}

#[track_caller]
fn assert_result(reply: &Answer, result: &str, words: &str) {
    assert_eq!((reply.status, reply.json()["result"].as_str()), (200, Some(result)), "{reply:?}");
    let message = reply.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains(words), "{reply:?}");
    assert!(
        reply.json()["expires_in"].as_u64().unwrap() > 7000
            && reply.header("cache-control") == Some("no-store")
    );
}

#[tokio::test]
async fn a_report_of_a_refused_token_has_another_fetched_once_and_is_held_back_when_it_does_not_help() {
    let house = house().await;
    let first = house.readiness().await;
    house.sim.rotate(APPID);
    let reply = house.refresh("/refresh", &[], "").await;
    assert_result(&reply, "another", "in use from now on");
    assert_eq!(reply.json()["fingerprint"], house.readiness().await);
    assert_eq!(house.app.post(SEND, "{}").await.assert_ok().attempts(), None, "it is in use");
    let body = format!(r#"{{"appid":"{APPID}","refused":"{first}"}}"#);
    let reply = house.refresh("/refresh", &[], &body).await;
    assert_result(&reply, "another", "already replaced");
    let reply = house.refresh(&format!("/refresh?refused=50_some-token&appid={APPID}"), &[], "").await;
    assert_result(&reply, "another", "already replaced");
    assert_eq!(house.sim.counts().all_fetches(), 2);
    // The placeholder stands for the token there is, and WeChat holds to that.
    let body = format!(r#"{{"refused":"{PLACEHOLDER}"}}"#);
    let reply = house.refresh("/refresh", &[], &body).await;
    assert_result(&reply, "same", "not the token that is bad");
    let reply = house.refresh("/refresh", &[], "").await;
    assert_result(&reply, "held back", "goes on being served");
    assert_eq!(house.sim.counts().all_fetches(), 3);
    // In a loop it gets no further.
    let mut limited = None;
    until("it is too much", async || {
        let reply = house.refresh("/refresh", &[], "").await;
        limited = (reply.status == 429).then_some(reply);
        limited.is_some()
    })
    .await;
    let limited = limited.unwrap();
    assert_eq!((limited.ours(), limited.errcode()), (Some("rate-limited"), 45011));
    assert!(limited.header("retry-after").is_some());
    assert_eq!(house.sim.counts().fetches.forced, 0);
}

#[tokio::test]
async fn a_token_is_voided_by_an_operator_with_a_key_only_and_within_wechats_budget() {
    let house = house().await;
    let (name, operator) = bearer(OPERATOR);
    let (_, stranger) = bearer(STRANGER);
    let (_, wrong) = bearer("wrong-key-0123456789");
    let force = "/refresh?force=true";
    for (headers, status, cause) in [
        (vec![], 401, "no-key"),
        (vec![(name, &wrong[..])], 401, "no-key"),
        (vec![(name, &stranger[..])], 403, "foreign-appid"),
        (vec![("origin", "http://127.0.0.1"), (name, &operator[..])], 403, "cross-site"),
        (vec![("sec-fetch-site", "same-site"), (name, &operator[..])], 403, "cross-site"),
        (vec![("host", "evil.example"), (name, &operator[..])], 403, "cross-site"),
    ] {
        let reply = house.refresh(force, &headers, "").await;
        assert_eq!((reply.status, reply.ours()), (status, Some(cause)), "{headers:?}: {reply:?}");
    }
    assert_eq!((house.sim.counts().all_fetches(), house.sim.counts().fetches.forced), (1, 0));
    let before = house.sim.live_token(APPID).unwrap();
    let reply = house.refresh(force, &[(name, &operator)], "").await;
    assert_result(&reply, "another", "in use from now on");
    assert_ne!(house.sim.live_token(APPID).unwrap(), before);
    assert_eq!(house.app.post(SEND, "{}").await.assert_ok().attempts(), None);
    let reply = house.refresh("/refresh", &[(name, &operator)], r#"{"force":true}"#).await;
    assert_result(&reply, "held back", "one forced refresh in 30 s");
    assert_eq!(house.sim.counts().fetches.forced, 1);
    assert_eq!(house.app.admin("/readyz").await.json()["wrong_keys"], 1);
}

#[tokio::test]
async fn who_is_not_here_or_speaks_for_another_needs_a_key() {
    let house = house().await;
    for passed_on in [("x-forwarded-for", "10.0.0.7"), ("forwarded", "for=10.0.0.7"), ("via", "1.1 gate")] {
        let reply = house.refresh("/refresh", &[passed_on], "").await;
        assert_eq!((reply.status, reply.ours()), (401, Some("no-key")), "{passed_on:?}");
        let (name, operator) = bearer(OPERATOR);
        let reply = house.refresh("/refresh?refused=x", &[passed_on, (name, &operator)], "").await;
        assert_result(&reply, "another", "already replaced");
    }
    // A page, a form, a rebound name: nothing acts.
    for headers in [
        vec![("origin", "null")],
        vec![("sec-fetch-site", "cross-site")],
        vec![("host", "localhost.evil.example")],
    ] {
        let reply = house.refresh("/refresh", &headers, "refused=x").await;
        assert_eq!(
            (reply.status, reply.ours(), reply.errcode()),
            (403, Some("cross-site"), 48001),
            "{headers:?}"
        );
    }
    for (target, body, status, cause) in [
        ("/refresh?appid=wx-unknown", "", 403, "foreign-appid"),
        ("/refresh", r#"{"refused":"WECHAT-SIDECAR_wx-unknown_not-a-token"}"#, 403, "foreign-appid"),
        ("/refresh?appid=wx-unknown", &format!(r#"{{"refused":"{PLACEHOLDER}"}}"#), 400, "two-appids"),
        ("/refresh?refused=x", r#"{"refused":"y"}"#, 400, "request-body"),
        ("/refresh?forced=true", "", 400, "request-body"),
        ("/refresh?force=1", "", 400, "request-body"),
        ("/refresh", "[1]", 400, "request-body"),
        ("/refresh", "refused", 400, "request-body"),
        ("/refresh", &"x".repeat(9000), 413, "body-too-large"),
    ] {
        let reply = house.refresh(target, &[], body).await;
        assert_eq!((reply.status, reply.ours()), (status, Some(cause)), "{target} {body}: {reply:?}");
    }
    let reply = house.app.admin("/refresh").await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")), "{reply:?}");
    assert_eq!(house.sim.counts().all_fetches(), 1);
}

#[tokio::test]
async fn without_operators_the_app_in_the_pod_may_ask_and_nobody_may_force() {
    let wechat = Wechat::plain().await;
    let side = Sidecar::start(&wechat.settings(&[]), &wechat.env());
    let app = App::new(side.addresses);
    app.until_ready().await;
    let house = House { sim: wechat.sim.clone(), app, _side: side };
    assert_result(&house.refresh("/refresh?refused=x", &[], "").await, "another", "already replaced");
    for (target, headers) in [
        ("/refresh?force=true", vec![]),
        ("/refresh", vec![("authorization", "Bearer some-key-0123456789")]),
        ("/refresh", vec![("via", "1.1 gate")]),
    ] {
        let reply = house.refresh(target, &headers, "").await;
        assert_eq!((reply.status, reply.ours()), (401, Some("no-key")), "{target}");
        assert!(reply.text().contains("no operator_keys_file"), "{reply:?}");
    }
    assert_eq!(house.sim.counts().all_fetches(), 1);
}

/// A certificate for localhost and 127.0.0.1, its key, and the CA, as files.
fn certificate(files: &TempDir) -> [String; 3] {
    let authority = Authority::new();
    let (certificate, key) = authority.certify(&["localhost", "127.0.0.1"]);
    [("cert.pem", certificate), ("key.pem", key), ("ca.pem", authority.pem())].map(|(name, pem)| {
        let path = files.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    })
}

#[tokio::test]
async fn a_central_server_for_other_machines_speaks_tls_and_nothing_it_or_its_follower_writes_is_a_credential()
 {
    let wechat = Wechat::tls().await;
    let files = tempfile::tempdir().unwrap();
    let [cert, key, ca] = certificate(&files);
    let keys = files.path().join("keys");
    std::fs::write(&keys, format!("{FOLLOWER} {APPID}\n{OPERATOR} *\n")).unwrap();
    let keys = keys.to_str().unwrap();
    let mut args = wechat.settings(&["--admin-cert-file", &cert, "--admin-key-file", &key, "--log", "trace"]);
    args.extend(["--central-keys-file", keys, "--operator-keys-file", keys].map(OsString::from));
    let at = args.iter().position(|arg| arg == "--admin-listen").unwrap();
    args[at + 1] = "0.0.0.0:0".into();
    let run = |args: Vec<OsString>| command(["run".into()].into_iter().chain(args), wechat.env());
    let server = Process::spawn(run(args)).await;
    let port = server.addresses.admin.port();
    let mut local = server.addresses;
    local.admin = ([127, 0, 0, 1], port).into();
    let clear = App::new(local);
    clear.until_ready().await;

    std::fs::write(files.path().join("key"), FOLLOWER).unwrap();
    let key = files.path().join("key");
    let central = format!("https://localhost:{port}");
    let follower = |ca: &str| {
        let more = ["--log", "trace", "--central", &central, "--central-ca-file", ca, "--central-key-file"];
        let mut args = wechat.settings(&more);
        args.push(OsString::from(&key));
        command(["run".into()].into_iter().chain(args), [])
    };
    let side = Process::spawn(follower(&ca)).await;
    side.app.until_ready().await;
    side.app.post(SEND, "{}").await.assert_ok();
    wechat.sim.rotate(APPID);
    assert_eq!(side.app.post(SEND, "{}").await.assert_ok().attempts(), Some("2"));
    assert_eq!(wechat.sim.counts().all_fetches(), 2);
    // Who does not trust the CA is told how to.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Process::spawn(follower(&certificate(&elsewhere)[2])).await;
    until("it says what is wrong", async || {
        other.app.admin("/readyz").await.text().contains("central_ca_file")
    })
    .await;

    let mut answers = Vec::new();
    for (target, key) in [
        ("/refresh", None),
        ("/refresh", Some(OPERATOR)),
        ("/refresh?force=true", Some(OPERATOR)),
        ("/refresh?force=true", Some(FOLLOWER)),
        ("/refresh?force=true", Some("wrong-key-0123456789")),
        ("/v1/token/refresh?refused=x", Some("wrong-key-0123456789")),
    ] {
        let mut request = clear.to_admin(Method::POST, target);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        answers.push(clear.send(request.body(Full::default()).unwrap()).await);
    }
    for app in [&clear, &side.app, &other.app] {
        answers.push(app.admin("/readyz").await);
        answers.push(app.get("/cgi-bin/user/get").await);
    }
    let answers: String =
        answers.iter().map(|answer| format!("{:?} {}", answer.headers, answer.text())).collect();
    let mut hidden: Vec<String> = wechat.sim.live_tokens(APPID).into_iter().map(|live| live.token).collect();
    hidden.extend([FOLLOWER, OPERATOR, STRANGER, "wrong-key-0123456789"].map(str::to_owned));
    hidden.extend(wechat.env().into_iter().take(1).map(|(_, secret)| secret.into_string().unwrap()));
    assert_eq!(hidden.len(), 6);
    for (place, text) in [
        ("the answers", &answers),
        ("the server's log", &server.output()),
        ("the follower's log", &side.output()),
        ("the other follower's log", &other.output()),
    ] {
        for hidden in &hidden {
            assert!(!text.contains(&hidden[..18]), "{place} shows {}...: {text}", &hidden[..4]);
        }
    }
    assert!(server.output().contains("a request came with a wrong key"), "{}", server.output());
}
