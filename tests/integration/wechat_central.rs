//! One central token server and those who take their token from it: what that costs WeChat, what a key is good for,
//! and a central server that lies.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::ffi::OsString;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::Full;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use wechat_sidecar::credentials::{AppId, Secret};
use wechat_sidecar::origin::Origin;
use wechat_sidecar::tls::ExtraRoots;
use wechat_sidecar::token::Token;
use wechat_sidecar::token::keeper::{Reason, Refresh, Refusal, Said, TokenKeeper};
use wechat_sidecar::token::source::{CentralSource, central};
use wechat_sidecar::token::store::MemoryStore;

use crate::wechat_process;
use crate::wechat_rig::{APPID, Answer, App, PATIENCE, SEND, Sidecar, Wechat, until, within};

/// The key of the followers.
const KEY: &str = "followers-key-5f0c9d1e";
/// One for another account.
const OTHERS: &str = "others-key-77aa88bb99cc";
const NEWS: Refusal = Refusal { said: Said::Errcode(40001), chronic: false };

/// A sidecar that is a central token server, in front of a WeChat.
struct Central {
    wechat: Wechat,
    /// `None` while it is down.
    side: Option<Sidecar>,
    app: App,
    files: TempDir,
}

impl Central {
    async fn start() -> Self {
        let wechat = Wechat::plain().await;
        let files = tempfile::tempdir().unwrap();
        std::fs::write(
            files.path().join("keys"),
            format!("# for the tests\n{KEY} {APPID},wxnothere # all of ours\n{OTHERS} wxother\n"),
        )
        .unwrap();
        std::fs::write(files.path().join("key"), format!("{KEY}\n")).unwrap();
        let side = Self::side(&wechat, &files, "127.0.0.1:0");
        let app = App::new(side.addresses);
        app.until_ready().await;
        Self { wechat, side: Some(side), app, files }
    }

    fn side(wechat: &Wechat, files: &TempDir, admin: &str) -> Sidecar {
        let keys = files.path().join("keys");
        let mut args = wechat.settings(&["--workers", "1", "--central-keys-file", keys.to_str().unwrap()]);
        let at = args.iter().position(|arg| arg == "--admin-listen").unwrap();
        args[at + 1] = admin.into();
        Sidecar::start(&args, &wechat.env())
    }

    /// Ends, and comes again at the same admin port after what is done meanwhile.
    async fn restart(&mut self, meanwhile: impl AsyncFnOnce()) {
        let side = self.side.take().unwrap();
        let admin = side.addresses.admin.to_string();
        side.stop().await;
        meanwhile().await;
        let side = Self::side(&self.wechat, &self.files, &admin);
        self.app = App::new(side.addresses);
        self.side = Some(side);
        self.app.until_ready().await;
    }

    fn url(&self) -> String {
        format!("http://{}", self.side.as_ref().unwrap().addresses.admin)
    }

    /// A sidecar that takes its token from here, and has no secret.
    fn follower(&self) -> (Sidecar, App) {
        let key = self.files.path().join("key");
        let mut args =
            self.wechat.settings(&["--workers", "1", "--central", &self.url(), "--central-key-file"]);
        args.push(OsString::from(key));
        let side = Sidecar::start(&args, &[("WECHAT_SIDECAR_TOKEN_WAIT".into(), "20s".into())]);
        let app = App::new(side.addresses);
        (side, app)
    }

    /// A request to the admin port.
    async fn ask(&self, method: Method, target: &str, key: Option<&str>, body: &str) -> Answer {
        let mut request = self.app.to_admin(method, target);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        self.app.send(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await
    }

    fn fetches(&self) -> u64 {
        self.wechat.sim.counts().all_fetches()
    }
}

/// A keeper that takes its token from a central server.
fn keeper(url: &str, key: &str) -> (TokenKeeper, JoinHandle<()>) {
    let config = central::Config {
        origin: Origin::parse(url).unwrap(),
        key: Secret::parse(key).unwrap(),
        roots: ExtraRoots::default(),
        connect_timeout: PATIENCE,
        fetch_timeout: PATIENCE,
    };
    let appid = AppId::parse(APPID).unwrap();
    let source = CentralSource::new(&config, appid.clone()).unwrap();
    let (keeper, worker) = TokenKeeper::new(appid, source, MemoryStore::new());
    (keeper, tokio::spawn(worker.run()))
}

fn another(refresh: Refresh) -> Token {
    match refresh {
        Refresh::Another(token) => token,
        other => panic!("{other:?}"),
    }
}

fn no(refresh: Refresh) -> String {
    match refresh {
        Refresh::No(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn sixty_four_followers_on_one_central_server_cost_one_fetch_a_life() {
    let central = Central::start().await;
    let sim = &central.wechat.sim;
    let keepers: Vec<_> = (0..64).map(|_| keeper(&central.url(), KEY)).collect();
    let sidecars: Vec<_> = (0..3).map(|_| central.follower()).collect();
    for (n, (_, app)) in sidecars.iter().enumerate() {
        app.until_ready().await;
        app.message(&format!("first call of {n}")).await.assert_ok();
    }
    for (keeper, _) in &keepers {
        assert_eq!(keeper.token(PATIENCE).await.unwrap().expose(), sim.live_token(APPID).unwrap());
    }
    assert_eq!(central.fetches(), 1);
    for life in 2..=12 {
        // By its end, or by a foreign caller; everyone hears of it at once.
        if life % 2 == 0 {
            sim.expire_now(APPID)
        } else {
            sim.rotate(APPID)
        }
        let mut heard = JoinSet::new();
        for (keeper, _) in &keepers {
            let (keeper, held) = (keeper.clone(), keeper.current().unwrap());
            held.mark_accepted();
            heard.spawn(async move { another(keeper.refresh(&held, NEWS, PATIENCE).await) });
        }
        for (n, (_, app)) in sidecars.iter().enumerate() {
            let reply = app.message(&format!("call of {n} in life {life}")).await;
            assert_eq!(reply.assert_ok().attempts(), Some("2"));
        }
        let tokens = within("all have another token", heard.join_all()).await;
        let live = sim.live_token(APPID).unwrap();
        assert!(tokens.iter().all(|token| token.expose() == live));
        assert_eq!(central.fetches(), life, "one a life, for all 67 and the server itself");
    }
    let counts = sim.counts();
    assert_eq!((counts.fetches.forced, counts.max_accepts_of_a_call, counts.unknown_tokens), (0, 1, 0));
}

#[tokio::test]
async fn the_central_server_restarts_without_one_failed_call() {
    let mut central = Central::start().await;
    let followers: Vec<_> = (0..3).map(|_| central.follower()).collect();
    for (_, app) in &followers {
        app.until_ready().await;
    }
    let calls = async || {
        for n in 0..20 {
            for (_, app) in &followers {
                let reply = app.message(&format!("{n}")).await;
                assert_eq!(reply.assert_ok().attempts(), None);
            }
        }
    };
    central.restart(calls).await;
    calls().await;
    central.wechat.sim.rotate(APPID);
    for (_, app) in &followers {
        let reply = app.post(SEND, "{}").await;
        assert_eq!(reply.assert_ok().attempts(), Some("2"), "and it is heard again");
    }
}

#[tokio::test]
async fn a_follower_has_no_secret_and_says_so_where_one_is_wanted() {
    let central = Central::start().await;
    let (_side, app) = central.follower();
    app.until_ready().await;
    let calls = central.wechat.sim.seen().len();
    for target in
        ["/sns/jscode2session?js_code=1", "/sns/oauth2/access_token?code=1", "/donut/code2verifyinfo?code=1"]
    {
        let reply = app.get(target).await;
        assert_eq!(
            (reply.status, reply.ours(), reply.errcode()),
            (403, Some("no-secret"), 48001),
            "{target}"
        );
        assert!(reply.text().contains("secret_file"), "{reply:?}");
    }
    for body in ["", "{}", r#"{"appid":"wx0123456789abcdef","appsecret":"x"}"#] {
        let reply = app.post("/cgi-bin/clear_quota/v2", body).await;
        assert_eq!((reply.status, reply.ours()), (403, Some("no-secret")), "{body}");
    }
    assert_eq!(central.wechat.sim.seen().len(), calls, "nothing was sent");
    app.post(SEND, "{}").await.assert_ok();
    // With a secret beside it, it is for login calls; tokens come from the central server all the same.
    let key = central.files.path().join("key");
    let mut args = central.wechat.settings(&["--central", &central.url(), "--central-key-file"]);
    args.push(OsString::from(key));
    let side = Sidecar::start(&args, &central.wechat.env());
    let app = App::new(side.addresses);
    app.until_ready().await;
    app.get("/sns/jscode2session?js_code=2").await.assert_ok();
    app.post(SEND, "{}").await.assert_ok();
    assert_eq!(central.fetches(), 1);
}

#[tokio::test]
async fn a_token_is_handed_to_those_whose_key_is_for_it_and_a_refused_one_replaced_once() {
    let central = Central::start().await;
    let sim = &central.wechat.sim;
    let target = format!("/v1/token?appid={APPID}");
    let first = central.ask(Method::GET, &target, Some(KEY), "").await;
    assert_eq!((first.status, first.header("cache-control")), (200, Some("no-store")));
    let said = first.json();
    assert_eq!(said["access_token"], sim.live_token(APPID).unwrap());
    assert!((7100..=7200).contains(&said["expires_in"].as_u64().unwrap()), "{said}");
    assert!(
        said["age_seconds"].as_f64().unwrap() >= 0.0 && said["errcode"].is_null() && said["result"].is_null()
    );
    let token = said["access_token"].as_str().unwrap();
    let fingerprint = said["fingerprint"].as_str().unwrap();
    // Refused, and WeChat holds to it.
    let refused = |what: &str| format!(r#"{{"appid":"{APPID}","refused":"{what}"}}"#);
    let same = central.ask(Method::POST, "/v1/token/refresh", Some(KEY), &refused(fingerprint)).await;
    assert_eq!((same.status, &same.json()["result"], central.fetches()), (200, &"same".into(), 2));
    let held = central.ask(Method::POST, "/v1/token/refresh", Some(KEY), &refused(token)).await;
    assert_eq!((held.status, held.ours(), held.errcode()), (503, Some("not-refreshed"), -1));
    assert!(held.header("retry-after").is_some() && held.text().contains("goes on being served"), "{held:?}");
    assert_eq!(central.fetches(), 2, "the breaker holds it back");
    let again = central.ask(Method::GET, &target, Some(KEY), "").await.json();
    assert_eq!(again["access_token"], token, "the old one is served meanwhile");
    // Refused, and there is another. The breaker opens for it.
    sim.rotate(APPID);
    let mut another = None;
    until("there is another token", async || {
        let reply = central.ask(Method::POST, "/v1/token/refresh", Some(KEY), &refused(token)).await;
        another = (reply.status == 200).then(|| reply.json());
        another.is_some()
    })
    .await;
    let another = another.unwrap();
    assert_eq!(another["result"], "another");
    assert_eq!(another["access_token"], sim.live_token(APPID).unwrap());
    let fetches = central.fetches();
    // Not ours any more, or never: ours is the answer, and costs nothing.
    for what in [token, fingerprint, "0123456789abcdef", "50_never-issued"] {
        let reply = central.ask(Method::POST, "/v1/token/refresh", Some(KEY), &refused(what)).await;
        assert_eq!(reply.json()["access_token"], another["access_token"], "{what}");
    }
    assert_eq!(central.fetches(), fetches);
}

#[tokio::test]
async fn many_who_report_a_token_that_wechat_holds_to_are_not_a_fetch_each() {
    let central = Central::start().await;
    let token = central.ask(Method::GET, "/v1/token", Some(KEY), "").await.json();
    let report = format!(r#"{{"refused":{},"news":true}}"#, token["fingerprint"]);
    let began = Instant::now();
    for _ in 0..50 {
        let reply = central.ask(Method::POST, "/v1/token/refresh", Some(KEY), &report).await;
        assert!(matches!(reply.status, 200 | 503), "{reply:?}");
    }
    // One is news, the next is free, then the breaker; late reports are news again after 2 s.
    let most = 3 + began.elapsed().as_secs();
    assert!(central.fetches() <= 1 + most, "{} in {:?}", central.fetches(), began.elapsed());
}

#[tokio::test]
async fn what_is_asked_for_wrongly_gets_a_clear_error_and_costs_nothing() {
    let central = Central::start().await;
    let refresh = "/v1/token/refresh";
    let long = format!(r#"{{"refused":"{}"}}"#, "x".repeat(10_000));
    for (method, target, key, body, status, cause) in [
        ("GET", "/v1/token", None, "", 401, "no-key"),
        ("GET", "/v1/token?appid=wxnothere", Some(KEY), "", 403, "foreign-appid"),
        ("GET", "/v1/token?appid=wx-unknown", Some(KEY), "", 403, "foreign-appid"),
        ("GET", "/v1/token", Some(OTHERS), "", 403, "foreign-appid"),
        ("GET", "/v1/token?appid=wxother", Some(OTHERS), "", 403, "foreign-appid"),
        ("GET", "/v1/token?appid=a&appid=b", Some(KEY), "", 400, "request-body"),
        ("GET", "/v1/token?appi=a", Some(KEY), "", 400, "request-body"),
        ("GET", "/v1/token?force=true", Some(KEY), "", 400, "request-body"),
        ("POST", "/v1/token", Some(KEY), "", 405, "method-not-allowed"),
        ("GET", refresh, Some(KEY), "", 405, "method-not-allowed"),
        ("POST", refresh, None, "{}", 401, "no-key"),
        ("POST", refresh, Some(KEY), "", 400, "request-body"),
        ("POST", refresh, Some(KEY), "{}", 400, "request-body"),
        ("POST", refresh, Some(KEY), r#"{"refused":""}"#, 400, "request-body"),
        ("POST", refresh, Some(KEY), r#"{"refused":7}"#, 400, "request-body"),
        ("POST", refresh, Some(KEY), r#"{"refused":"x","news":"maybe"}"#, 400, "request-body"),
        ("POST", refresh, Some(KEY), r#"{"refused":"x","force":true}"#, 400, "request-body"),
        ("POST", refresh, Some(KEY), "[]", 400, "request-body"),
        ("POST", refresh, Some(KEY), "refused=x", 400, "request-body"),
        ("POST", refresh, Some(KEY), &long, 413, "body-too-large"),
        ("POST", refresh, Some(OTHERS), r#"{"refused":"x"}"#, 403, "foreign-appid"),
    ] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let reply = central.ask(method, target, key, body).await;
        assert_eq!((reply.status, reply.ours()), (status, Some(cause)), "{target} {body}: {reply:?}");
        assert!(reply.errcode() != 0 && reply.text().contains("wechat-sidecar: "), "{reply:?}");
        assert_eq!(reply.header("www-authenticate").is_some(), status == 401);
        assert_eq!(reply.header("allow").is_some(), status == 405);
    }
    assert_eq!(central.fetches(), 1);
    let wechat = Wechat::plain().await;
    let side = Sidecar::start(&wechat.settings(&[]), &wechat.env());
    let app = App::new(side.addresses);
    let reply = app.admin("/v1/token").await;
    assert_eq!((reply.status, reply.ours()), (404, Some("not-offered")), "{reply:?}");
}

#[tokio::test]
async fn a_wrong_key_is_counted_and_slowed_and_the_follower_with_it_says_what_is_wrong() {
    let central = Central::start().await;
    let began = Instant::now();
    let reply = central.ask(Method::GET, "/v1/token", Some("wrong-key-0123456789"), "").await;
    assert!(began.elapsed() >= Duration::from_millis(250));
    assert_eq!((reply.status, reply.ours(), reply.errcode()), (401, Some("no-key"), 48001));
    assert!(!reply.text().contains("wrong-key-01"));
    assert_eq!(central.app.admin("/readyz").await.json()["wrong_keys"], 1);
    let (keeper, _worker) = keeper(&central.url(), "wrong-key-0123456789");
    until("it has failed", async || keeper.status().failure.is_some()).await;
    let told = keeper.token(Duration::ZERO).await.unwrap_err().message;
    assert!(told.contains("does not know our key") && told.contains("central_key_file"), "{told}");
    assert_eq!(central.app.admin("/readyz").await.json()["wrong_keys"], 2);
    assert_eq!(central.fetches(), 1);
}

#[tokio::test]
async fn what_the_central_server_cannot_get_its_followers_are_told() {
    let wechat = Wechat::plain().await;
    let secret = Secret::parse("another-secret-than-the-servers!").unwrap();
    wechat.sim.set_account(&AppId::parse(APPID).unwrap(), &secret);
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("keys"), format!("{KEY} *")).unwrap();
    let side = Central::side(&wechat, &files, "127.0.0.1:0");
    let app = App::new(side.addresses);
    let (keeper, _worker) = keeper(&format!("http://{}", side.addresses.admin), KEY);
    until("it has failed", async || keeper.status().failure.is_some()).await;
    let told = keeper.token(Duration::ZERO).await.unwrap_err().message;
    assert!(told.contains("40125") && told.contains("secret_file"), "{told}");
    let request = app.to_admin(Method::GET, "/v1/token").header("authorization", format!("Bearer {KEY}"));
    let reply = app.send(request.body(Full::default()).unwrap()).await;
    reply.assert_no_token();
    assert!(reply.text().contains("40125"), "{reply:?}");
}

#[tokio::test]
async fn check_asks_the_central_server_and_one_that_is_itself_is_refused() {
    let central = Central::start().await;
    let key = central.files.path().join("key");
    let with = |command: &str, url: &str, more: &[&str]| {
        let mut args = vec![OsString::from(command)];
        args.extend(central.wechat.settings(&[
            "--central",
            url,
            "--central-key-file",
            key.to_str().unwrap(),
        ]));
        let at = args.iter().position(|arg| arg == "--admin-listen").unwrap();
        more.iter().for_each(|admin| args[at + 1] = admin.into());
        wechat_process::command(args, [])
    };
    let ended = wechat_process::run(with("check", &central.url(), &[])).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    assert!(ended.out.contains("the central server gave a token"), "{}", ended.out);
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let ended = wechat_process::run(with("run", &format!("http://{free}"), &[&free])).await;
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    assert!(ended.err.contains("admin port of this sidecar itself"), "{}", ended.err);
}

/// Answers every request on every connection with the same bytes.
struct Liar {
    url: String,
    says: Arc<Mutex<String>>,
    asked: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Liar {
    async fn start(says: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (says, asked) = (Arc::new(Mutex::new(says)), Arc::new(Mutex::new(Vec::new())));
        let (words, heard) = (Arc::clone(&says), Arc::clone(&asked));
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                let whole = |request: &[u8]| {
                    let text = String::from_utf8_lossy(request).into_owned();
                    text.contains("\r\n\r\n") && (text.starts_with("GET") || text.ends_with('}'))
                };
                while !whole(&request) && stream.read_buf(&mut request).await.unwrap_or(0) > 0 {}
                heard.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
                let words = words.lock().unwrap().clone();
                let _ = stream.write_all(words.as_bytes()).await;
            }
        });
        Self { url, says, asked, serving }
    }

    fn says(&self, reply: String) {
        *self.says.lock().unwrap() = reply;
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn reply(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn token(value: &str, expires_in: i64, age: u64) -> String {
    let body = format!(r#"{{"access_token":"{value}","expires_in":{expires_in},"age_seconds":{age}}}"#);
    reply("200 OK", "", &body)
}

#[tokio::test]
async fn a_central_server_that_lies_costs_no_live_token() {
    let liar = Liar::start(token("FIRST", 7000, 100)).await;
    let (keeper, _worker) = keeper(&liar.url, KEY);
    let first = keeper.token(PATIENCE).await.unwrap();
    assert_eq!(first.expose(), "FIRST");
    let asked = liar.asked.lock().unwrap()[0].to_ascii_lowercase();
    assert!(asked.starts_with(&format!("get /v1/token?appid={APPID} http/1.1\r\n")), "{asked}");
    assert!(asked.contains(&format!("authorization: bearer {KEY}\r\n")), "{asked}");
    let elsewhere = Liar::start(token("ELSEWHERE", 7000, 0)).await;
    let huge = "x".repeat(200_000);
    for (says, words) in [
        (token("DYING", 1, 0), "about to die"),
        (token("DEAD", 0, 0), "about to die"),
        (token("ABSURD", 1_000_000, 0), "absurd"),
        (token("a b", 7000, 0), "white space"),
        (reply("200 OK", "", "{\"access_token\":"), "no access_token"),
        (reply("200 OK", "", "<html>sign in</html>"), "no access_token"),
        (reply("200 OK", "", r#"{"errcode":40125,"errmsg":"invalid appsecret"}"#), "invalid appsecret"),
        (reply("200 OK", "", &huge), "longer than 65536"),
        (reply("302 Found", &format!("Location: {}/v1/token\r\n", elsewhere.url), ""), "redirect"),
        (reply("401 Unauthorized", "", ""), "does not know our key"),
        (reply("403 Forbidden", "", ""), "does not let us have"),
        (reply("404 Not Found", "", ""), "no central token server"),
        (reply("429 Too Many Requests", "Retry-After: 2\r\n", ""), "too often"),
        (
            reply("503 Service Unavailable", "Retry-After: 2\r\n", r#"{"errmsg":"40164 there"}"#),
            "40164 there",
        ),
        (reply("500 Oops", "", ""), "HTTP 500"),
        ("not HTTP at all\r\n\r\n".to_owned(), "broke off"),
        (String::new(), "broke off"),
    ] {
        liar.says(says);
        let told = no(keeper.fetch_now(Reason::Operator { force: false }, PATIENCE).await);
        assert!(told.contains(words) && told.contains("; "), "{words}: {told}");
        assert!(!told.contains(KEY) && !told.contains("FIRST"), "{told}");
        assert_eq!(keeper.current(), Some(first.clone()), "{words}");
    }
    assert!(elsewhere.asked.lock().unwrap().is_empty(), "the key went nowhere else");
    // One older than ours is not taken, and the one that was refused is the same.
    liar.says(token("OLDER", 7000, 3000));
    let told = keeper.fetch_now(Reason::Operator { force: false }, PATIENCE).await;
    assert_eq!(told, Refresh::Same(first.clone()));
    liar.says(token("FIRST", 7000, 100));
    first.mark_accepted();
    assert_eq!(keeper.refresh(&first, NEWS, PATIENCE).await, Refresh::Same(first.clone()));
    let reported = liar.asked.lock().unwrap().last().unwrap().clone();
    let body = format!(r#"{{"appid":"{APPID}","refused":"{}","news":true}}"#, first.fingerprint());
    assert!(
        reported.starts_with("POST /v1/token/refresh HTTP/1.1\r\n") && reported.ends_with(&body),
        "{reported}"
    );
    // A newer one is the newest fetch, and wins.
    liar.says(token("NEWER", 6000, 1));
    let told = keeper.fetch_now(Reason::Operator { force: false }, PATIENCE).await;
    assert_eq!(another(told).expose(), "NEWER");
    let told = no(keeper.fetch_now(Reason::Operator { force: true }, PATIENCE).await);
    assert!(told.contains("force it at the central server"), "{told}");
}
