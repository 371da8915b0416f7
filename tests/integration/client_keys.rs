//! Who may call, where keys are asked for: nobody without one, each key for its accounts and its paths, and no key is
//! seen anywhere.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::rig::{APPID, RawUpstream, Reply, Sidecar, within};
use crate::wechat_process::Process;
use crate::wechat_rig::{Wechat, until};

const KEY: &str = "key-of-the-shop-0123456789";
const NARROW: &str = "key-of-the-mailer-9876543210";
const UNBOUND: &str =
    "WECHAT-SIDECAR_wx0123456789abcdef_not-a-token_the-sidecar-puts-the-real-one-into-each-call";

struct Keys(TempDir);

impl Keys {
    fn new() -> Self {
        let keys = Self(tempfile::tempdir().unwrap());
        keys.write(&format!("{KEY} {APPID}\n{NARROW} * allow=POST /cgi-bin/message/**, /sns/**\n"));
        keys
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("keys")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    async fn sidecar(&self, upstream: &RawUpstream) -> Sidecar {
        Sidecar::set(upstream, &[("client_keys_file", self.path().to_str().unwrap())]).await
    }
}

async fn ask(sidecar: &Sidecar, line: &str, headers: &str) -> Reply {
    sidecar.call(format!("{line} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n")).await
}

/// What the token endpoint answers to this secret, both of its forms.
async fn token(sidecar: &Sidecar, secret: &str) -> serde_json::Value {
    let query = format!("grant_type=client_credential&appid={APPID}&secret={secret}");
    let classic = ask(sidecar, &format!("GET /cgi-bin/token?{query}"), "").await;
    let body = format!(r#"{{"grant_type":"client_credential","appid":"{APPID}","secret":"{secret}"}}"#);
    let length = format!("Content-Length: {}\r\n", body.len());
    let stable = sidecar
        .call(format!("POST /cgi-bin/stable_token HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}\r\n{body}"))
        .await;
    assert_eq!((classic.status, stable.status), (200, 200));
    assert_eq!(classic.text(), stable.text());
    serde_json::from_slice(&classic.body).unwrap()
}

#[tokio::test]
async fn without_a_key_nothing_passes() {
    let (upstream, keys) = (RawUpstream::start().await, Keys::new());
    let sidecar = keys.sidecar(&upstream).await;
    let other = wechat_sidecar::clients::tag(
        "key-of-somebody-else-000",
        &wechat_sidecar::credentials::AppId::parse(APPID).unwrap(),
    );
    let bound = format!("WECHAT-SIDECAR_{APPID}_not-a-token_key-{other}");
    for (line, header) in [
        ("GET /cgi-bin/user/get".to_owned(), ""),
        (format!("GET /cgi-bin/user/get?access_token={UNBOUND}"), ""),
        (format!("GET /cgi-bin/user/get?access_token={bound}"), ""),
        (format!("GET /cgi-bin/user/get?access_token={KEY}"), ""),
        ("GET /cgi-bin/user/get?access_token=50_real".to_owned(), ""),
        ("GET /cgi-bin/user/get".to_owned(), "X-Wechat-Sidecar-Key: wrong-key-0123456789\r\n"),
        ("GET /cgi-bin/user/get".to_owned(), "X-Wechat-Sidecar-Key: \r\n"),
        (format!("GET /{APPID}/cgi-bin/user/get"), ""),
        ("GET /sns/jscode2session?js_code=c&secret=wrong".to_owned(), ""),
        ("GET /sns/userinfo?access_token=users".to_owned(), ""),
        (format!("GET /sns/userinfo?secret={KEY}"), ""),
    ] {
        let reply = ask(&sidecar, &line, header).await;
        reply.assert_ours(403, "client-key");
        assert!(reply.text().contains("48001") && !reply.text().contains(KEY), "{line}: {reply:?}");
    }
    assert_eq!(token(&sidecar, "any-secret-as-before").await["errcode"], 40125);
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
}

#[tokio::test]
async fn an_sdk_with_a_key_for_its_secret_gets_a_placeholder_that_opens_the_door() {
    let (upstream, keys) = (RawUpstream::start().await, Keys::new());
    let sidecar = keys.sidecar(&upstream).await;
    let answer = token(&sidecar, KEY).await;
    assert_eq!(answer["expires_in"], 7200);
    let placeholder = answer["access_token"].as_str().unwrap().to_owned();
    assert!(placeholder.starts_with(&format!("WECHAT-SIDECAR_{APPID}_")) && !placeholder.contains(KEY));
    let reply = ask(&sidecar, &format!("GET /cgi-bin/user/get?access_token={placeholder}&a=1"), "").await;
    reply.assert_wechats(200, r#"{"errcode":0,"errmsg":"ok"}"#);
    assert_eq!(upstream.the_call().target(), "/cgi-bin/user/get?a=1&access_token=TOKEN-1");
    // The same on a replica, and after a restart: SDKs keep it.
    let replica = keys.sidecar(&upstream).await;
    assert_eq!(token(&replica, KEY).await["access_token"], placeholder);
    assert_ne!(token(&replica, NARROW).await["access_token"], placeholder);
    let login = ask(&sidecar, &format!("GET /sns/jscode2session?js_code=c&secret={KEY}"), "").await;
    assert_eq!(login.cause(), "-", "a login shows it as the secret");
    assert!(!upstream.the_call().head.contains(KEY));
}

#[tokio::test]
async fn a_key_in_the_header_opens_the_door_and_goes_no_further() {
    let (upstream, keys) = (RawUpstream::start().await, Keys::new());
    let sidecar = keys.sidecar(&upstream).await;
    for name in ["x-wechat-sidecar-key", "X-Wechat-Sidecar-Key", "X-WECHAT-SIDECAR-KEY"] {
        let headers = format!("A: 1\r\n{name}: {KEY}\r\nB: 2\r\n");
        assert_eq!(ask(&sidecar, "GET /sns/userinfo?access_token=users", &headers).await.cause(), "-");
        let head = upstream.the_call().head;
        assert!(!head.contains(KEY) && !head.to_ascii_lowercase().contains("sidecar-key"), "{head}");
        assert!(head.contains("A: 1\r\n") && head.contains("B: 2\r\n"), "{head}");
    }
    let (right, wrong) = (token(&sidecar, KEY).await, "X-Wechat-Sidecar-Key: wrong-key-0123456789\r\n");
    let placeholder = right["access_token"].as_str().unwrap();
    let reply = ask(&sidecar, &format!("GET /cgi-bin/x?access_token={placeholder}"), wrong).await;
    reply.assert_ours(403, "client-key");
    let open = RawUpstream::start().await;
    let unguarded = Sidecar::before(&open).await;
    assert_eq!(
        ask(&unguarded, "GET /cgi-bin/x", &format!("x-wechat-sidecar-key: {KEY}\r\n")).await.cause(),
        "-"
    );
    assert!(!open.the_call().head.contains(KEY), "nor where nobody asks for one");
}

#[tokio::test]
async fn a_key_is_good_for_its_paths_and_its_accounts_only() {
    let (upstream, keys) = (RawUpstream::start().await, Keys::new());
    let sidecar = keys.sidecar(&upstream).await;
    let narrow = format!("X-Wechat-Sidecar-Key: {NARROW}\r\n");
    assert_eq!(
        ask(&sidecar, "POST /cgi-bin/message/custom/send", &format!("{narrow}Content-Length: 0\r\n"))
            .await
            .cause(),
        "-"
    );
    for (line, status, cause) in [
        ("GET /cgi-bin/message/custom/send", 403, "not-allowed"),
        ("GET /cgi-bin/user/get", 403, "not-allowed"),
        ("POST /cgi-bin/user/../message/x", 403, "not-allowed"),
        ("POST /cgi-bin/message/../user/x", 400, "ambiguous-path"),
        ("POST /cgi-bin/message/%2e%2e/user/x", 400, "ambiguous-path"),
        ("GET /sns/../cgi-bin/user/get", 400, "ambiguous-path"),
    ] {
        let reply = ask(&sidecar, line, &narrow).await;
        reply.assert_ours(status, cause);
        assert!(cause != "not-allowed" || reply.text().contains("line 2 of client_keys_file"), "{reply:?}");
    }
    let foreign = ask(
        &sidecar,
        "GET /wxfedcba9876543210/cgi-bin/user/get",
        &format!("x-wechat-sidecar-key: {KEY}\r\n"),
    )
    .await;
    assert!(foreign.text().contains("40013"), "as any account that is not there: {foreign:?}");
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn a_changed_file_counts_without_a_restart() {
    let (upstream, keys) = (RawUpstream::start().await, Keys::new());
    let sidecar = keys.sidecar(&upstream).await;
    let with = async |key: &str| {
        ask(&sidecar, "GET /cgi-bin/x", &format!("x-wechat-sidecar-key: {key}\r\n")).await.cause().to_owned()
    };
    assert_eq!(with(KEY).await, "-");
    keys.write(&format!("a-new-key-for-the-shop-1 {APPID}\n"));
    within("the new file", async {
        while with("a-new-key-for-the-shop-1").await != "-" {
            tokio::time::sleep(crate::rig::ms(20)).await;
        }
    })
    .await;
    assert_eq!(with(KEY).await, "client-key", "and the old key has gone");
}

#[tokio::test]
async fn no_key_and_no_placeholder_made_from_one_is_in_a_log_at_any_level() {
    let (wechat, keys) = (Wechat::plain().await, Keys::new());
    let path = keys.path();
    let more = ["--client-keys-file", path.to_str().unwrap(), "--log", "trace"];
    let process = Process::start(&wechat, &more).await;
    process.app.until_ready().await;
    let target = format!("/cgi-bin/token?grant_type=client_credential&appid={APPID}&secret={KEY}");
    let token = process.app.get(&target).await;
    let placeholder = token.json()["access_token"].as_str().unwrap().to_owned();
    let (_, tag) = placeholder.split_once("_key-").unwrap();
    let header = |key: &str| {
        let request =
            process.app.request(http::Method::GET, "/cgi-bin/user/get").header("x-wechat-sidecar-key", key);
        process.app.send(request.body(Default::default()).unwrap())
    };
    header(KEY).await.assert_ok();
    process.app.get(&format!("/cgi-bin/user/get?access_token={placeholder}")).await.assert_ok();
    process.app.get(&format!("/sns/jscode2session?js_code=c&secret={KEY}")).await.assert_ok();
    for refused in [
        header("wrong-0123456789abcdef").await,
        process.app.get(&format!("/cgi-bin/user/get?access_token={placeholder}x")).await,
        process.app.get(&format!("/cgi-bin/user/get?secret={KEY}")).await,
    ] {
        assert_eq!(refused.ours(), Some("client-key"));
        assert!(!refused.text().contains(KEY) && !refused.text().contains(tag), "{refused:?}");
    }
    keys.write(&format!("{KEY} nobody\n"));
    process.until_logged("client_keys_file stays as it was").await;
    process.signal("-TERM");
    let (_, log) = process.end().await;
    for secret in [KEY, NARROW, tag, "wrong-0123456789abcdef"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
    assert!(
        log.contains("client=line 1") || log.contains("client=\"line 1\""),
        "a line says whose key it was: {log}"
    );
}

#[tokio::test]
async fn a_pipe_in_place_of_the_keys_stops_nothing() {
    let (wechat, keys) = (Wechat::plain().await, Keys::new());
    let process = Process::ready(&wechat, &["--client-keys-file", keys.path().to_str().unwrap()]).await;
    std::fs::remove_file(keys.path()).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(keys.path()).status().unwrap().success());
    // Nobody writes to it. The admin port is on the thread that keeps the tokens.
    until("the pipe is given up", async || {
        assert_eq!(within("the admin port", process.app.admin("/readyz")).await.status, 200);
        process.output().contains("client_keys_file stays as it was")
    })
    .await;
}
