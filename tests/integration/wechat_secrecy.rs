//! No token and no secret in anything the process writes, at the loudest settings, through a life of good calls,
//! refusals, failures and bad input; and none in anything the app gets.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::collections::HashSet;
use std::ffi::OsString;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use wechat_sidecar::config;
use wechat_sidecar::credentials::{AppId, Secret};
use wechat_sidecar::sim::{DropWhen, FetchFailure};
use wechat_sidecar::token::Token;
use wechat_sidecar::token::keeper::Refresh;
use wechat_sidecar::token::store::{Kept, Standing};

use crate::wechat_process::{Process, command, run};
use crate::wechat_rig::{APPID, Answer, SEND, UPLOAD, Wechat, noise, within};

/// A secret that looks different wherever it is escaped.
const SECRET: &str = "Q7wk/Zr+Tn=Hy&Vb%Lm?Xc'Jd\"Ps<Fg\\";
/// What apps write into a query: no affair of a log, either.
const PRIVATE: &str = "private-query-value-8c1f";
/// And in a body.
const BODY: &str = r#"{"touser":"oAAAA","text":{"content":"private-body-text-52d0"}}"#;
/// So much of a secret in a row is too much.
const WINDOW: usize = 12;

/// Everything that must not be seen, as it comes up.
#[derive(Default)]
struct Watch {
    hidden: Vec<String>,
    got: Vec<String>,
}

impl Watch {
    fn note_tokens(&mut self, wechat: &Wechat) {
        self.hidden.extend(wechat.sim.live_tokens(APPID).into_iter().map(|live| live.token));
    }

    fn got(&mut self, answer: &Answer) {
        let body = String::from_utf8_lossy(&answer.body[..answer.body.len().min(100_000)]);
        self.got.push(format!("{:?}\n{body}", answer.headers));
    }

    fn assert_unseen(&self, place: &str, text: &str) {
        let plain = unescaped(text);
        let windows: HashSet<&[u8]> =
            text.as_bytes().windows(WINDOW).chain(plain.as_bytes().windows(WINDOW)).collect();
        for hidden in &self.hidden {
            if let Some(part) = hidden.as_bytes().windows(WINDOW).find(|part| windows.contains(part)) {
                let part = String::from_utf8_lossy(part);
                let line =
                    text.lines().find(|line| line.contains(&*part) || unescaped(line).contains(&*part));
                panic!("{place} shows {part:?} of a credential: {}", line.unwrap_or_default());
            }
        }
    }
}

/// The text with every escape of URLs and of JSON taken off.
fn unescaped(text: &str) -> String {
    let once = percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let twice = percent_encoding::percent_decode_str(&once).decode_utf8_lossy().into_owned();
    twice.replace("\\\"", "\"").replace("\\\\", "\\")
}

async fn raw(process: &Process, bytes: &[u8]) -> String {
    let mut app = TcpStream::connect(process.addresses.proxy).await.unwrap();
    app.write_all(bytes).await.unwrap();
    app.shutdown().await.unwrap();
    let mut reply = Vec::new();
    let _ = within("a bad request is answered", app.read_to_end(&mut reply)).await;
    String::from_utf8_lossy(&reply).into_owned()
}

/// Good calls on every sort of route.
async fn good_calls(process: &Process, watch: &mut Watch) {
    let app = &process.app;
    for target in [
        format!("/cgi-bin/user/info?openid={PRIVATE}&access_token={PRIVATE}"),
        "/cgi-bin/user/get".to_owned(),
        "/cgi-bin/media/get?media_id=big-100000".to_owned(),
        "/cgi-bin/ticket/getticket?type=jsapi".to_owned(),
        format!("/sns/jscode2session?js_code={PRIVATE}{}", fastrand::u64(..)),
        format!("/cgi-bin/token?grant_type=client_credential&appid={APPID}&secret={PRIVATE}"),
        format!("/cgi-bin/token?grant_type=client_credential&appid=wx1&secret={PRIVATE}"),
        format!("/sns/userinfo?access_token={PRIVATE}&openid=x"),
        format!("/nothing/here?x={PRIVATE}"),
        format!("//evil.example/cgi-bin/token?x={PRIVATE}"),
        format!("/sns/jscode2session/../../cgi-bin/token?x={PRIVATE}"),
    ] {
        watch.got(&app.get(&target).await);
    }
    watch.got(&app.post(SEND, BODY).await);
    watch.got(&app.post("/cgi-bin/clear_quota/v2", "").await);
    watch.got(&app.post("/wxa/getwxacodeunlimit", r#"{"scene":"a=1"}"#).await);
    watch.got(&app.call(Method::POST, UPLOAD, "image/jpeg", noise(20_000), "u").await);
}

/// Everything the admin port shows.
async fn admin_port(process: &Process, watch: &mut Watch) {
    for path in ["/", "/status", "/metrics", "/readyz", "/startupz"] {
        watch.got(&process.app.admin(path).await);
    }
}

async fn a_life(classic: bool, format: &str, filter: &str) {
    let wechat = Wechat::tls().await;
    wechat.sim.set_account(&AppId::parse(APPID).unwrap(), &Secret::parse(SECRET).unwrap());
    let mut watch = Watch {
        hidden: vec![SECRET.to_owned(), PRIVATE.to_owned(), BODY[30..].to_owned()],
        ..Watch::default()
    };
    // A fetch that says too much, in every field, before one that works.
    let echo = format!(
        r#"{{"errcode":-1,"errmsg":"you sent secret={} as {APPID}"}}"#,
        SECRET.replace('\\', "\\\\").replace('"', "\\\"")
    );
    wechat.sim.fail_fetches(FetchFailure::Body(echo), 1);
    let leaky = "50_leaked-in-a-reply-that-is-no-good-0123456789";
    wechat
        .sim
        .fail_fetches(FetchFailure::Body(format!(r#"{{"access_token":"{leaky}","expires_in":"soon"}}"#)), 1);
    watch.hidden.push(leaky.to_owned());

    let endpoint = if classic { "token" } else { "stable_token" };
    let mut args = vec![OsString::from("run")];
    args.extend(wechat.settings(&["--log", filter, "--log-format", format, "--token-endpoint", endpoint]));
    args.extend(
        ["--fetch-timeout", "5s", "--token-wait", "20s", "--grace-period", "200ms"].map(OsString::from),
    );
    let process = Process::spawn(command(args, [("WECHAT_SIDECAR_SECRET".into(), SECRET.into())])).await;
    watch.got(&process.app.message("without a token").await);
    admin_port(&process, &mut watch).await;
    process.app.until_ready().await;
    watch.note_tokens(&wechat);
    good_calls(&process, &mut watch).await;

    // Tokens that die, calls that break.
    for _ in 0..2 {
        wechat.sim.expire_now(APPID);
        watch.got(process.app.message("dead").await.assert_ok());
        watch.note_tokens(&wechat);
        wechat.sim.rotate(APPID);
        watch.note_tokens(&wechat);
        watch.got(&process.app.message("rotated").await);
        watch.note_tokens(&wechat);
    }
    wechat.sim.drop_connection("/cgi-bin/menu", DropWhen::BeforeReply, 1);
    watch.got(&process.app.get(&format!("/cgi-bin/menu/get?x={PRIVATE}")).await);
    wechat.sim.drop_connection("/cgi-bin/media/get", DropWhen::MidReply, 1);
    watch
        .got
        .push(raw(&process, b"GET /cgi-bin/media/get?media_id=big-300000 HTTP/1.1\r\nhost: x\r\n\r\n").await);
    wechat.sim.always_refuse("/wxa/", 40001);
    for _ in 0..5 {
        watch.got(&process.app.post("/wxa/anything", "{}").await);
    }
    watch.note_tokens(&wechat);
    admin_port(&process, &mut watch).await;

    // Bad input, with something private in each.
    for bad in [
        format!("GET /cgi-bin/x?access_token={PRIVATE} HTTP/9.9\r\n\r\n"),
        format!(
            "GET /cgi-bin/x?a={PRIVATE} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"
        ),
        format!("GET http://evil.example/x?a={PRIVATE} HTTP/1.1\r\nhost: x\r\n\r\n"),
        format!("POST {SEND}?a={PRIVATE} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nshort"),
        format!("GET /cgi-bin/x?a={PRIVATE}\0 HTTP/1.1\r\nhost: x\r\n\r\n"),
        format!("GET /cgi-bin/x?a={} HTTP/1.1\r\nhost: x\r\n\r\n", PRIVATE.repeat(4000)),
        format!("CONNECT api.weixin.qq.com:443 HTTP/1.1\r\nx-private: {PRIVATE}\r\n\r\n"),
        format!("{PRIVATE}\r\n\r\n"),
    ] {
        watch.got.push(raw(&process, bad.as_bytes()).await);
    }

    // The token endpoint fails for good, and the process ends with a call in flight.
    wechat.sim.fail_fetches(FetchFailure::Errcode(40125), 1);
    wechat.sim.expire_now(APPID);
    watch.got(&process.app.message("refused for good").await);
    admin_port(&process, &mut watch).await;
    wechat.sim.gather(SEND, 2);
    let before = wechat.sim.counts().all_calls();
    let mut in_flight = TcpStream::connect(process.addresses.proxy).await.unwrap();
    let call = format!(
        "POST {SEND}?a={PRIVATE} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    in_flight.write_all(call.as_bytes()).await.unwrap();
    within("the call is at WeChat", wechat.sim.until(|counts| counts.all_calls() == before + 1)).await;
    process.signal("-TERM");
    let (status, log) = process.end().await;
    assert_eq!(status.code(), Some(0));
    drop(in_flight);

    // What it says at this level.
    let (quiet, mute) = (filter.starts_with("warn,"), filter.starts_with("error,"));
    assert_eq!(log.contains("access"), !quiet && !mute, "{filter}: {log}");
    assert_eq!(log.contains("grace period is over"), !mute, "{filter}: {log}");
    assert!(watch.hidden.len() >= 6, "{} tokens", watch.hidden.len());
    watch.assert_unseen("the log", &log);
    // Calls carry private values back to the app that sent them; tokens and secret they never do.
    watch.hidden.retain(|hidden| hidden != PRIVATE && !BODY.contains(hidden.as_str()));
    for got in &watch.got {
        watch.assert_unseen("an answer", got);
    }
}

#[tokio::test]
async fn nothing_is_given_away_at_log_trace() {
    a_life(false, "text", "trace").await;
}

#[tokio::test]
async fn nothing_is_given_away_at_log_trace_in_json_and_by_the_classic_endpoint() {
    a_life(true, "json", "trace").await;
}

#[tokio::test]
async fn nothing_is_given_away_by_other_crates_at_their_loudest() {
    const LOUD: &str = "wechat_sidecar=trace,access=trace,hyper=trace,hyper_util=trace,reqwest=trace,rustls=trace,\
                        tokio_rustls=trace,mio=trace,tokio=trace,h2=trace,tower=trace";
    tokio::join!(a_life(false, "json", LOUD), a_life(true, "text", LOUD));
}

#[tokio::test]
async fn nothing_is_given_away_at_any_other_level_of_the_log() {
    // Where it listens is said at info, and asked for here.
    const LISTENS: &str = "wechat_sidecar::commands=info";
    let (error, warn) = (format!("error,{LISTENS}"), format!("warn,{LISTENS}"));
    for levels in [[&*error, &*warn], ["info", "debug"]] {
        tokio::join!(a_life(false, "text", levels[0]), a_life(true, "json", levels[1]));
    }
}

#[test]
fn nothing_is_given_away_by_a_panic_whatever_value_it_shows() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let hidden =
        ["7c1e55d0b2-of-central", "3ab94f1c70-of-people", "e0d2c8b7a6-of-a-client", "5ec2e7-of-an-address"];
    let seal = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let flags = vec![
        ("appid", APPID.to_owned()),
        ("central_keys_file", file("central", &format!("{} {APPID}\n", hidden[0]))),
        ("operator_keys_file", file("operator", &format!("{} {APPID}\n", hidden[1]))),
        ("client_keys_file", file("client", &format!("{} {APPID}\n", hidden[2]))),
        ("store_key_file", file("seal", seal)),
        ("bridge", "wxjava-mp".to_owned()),
    ];
    let with_password = |scheme: &str| format!("{scheme}://user:{}@127.0.0.1:1", hidden[3]);
    let env = [
        ("WECHAT_SIDECAR_SECRET", SECRET.to_owned()),
        ("WECHAT_SIDECAR_STORE", with_password("redis")),
        ("WECHAT_SIDECAR_BRIDGE_STORE", with_password("redis")),
        ("WECHAT_SIDECAR_TOKEN_PROXY", with_password("http")),
    ];
    let config = config::load(flags, env.map(|(name, value)| (name.into(), value.into())))
        .unwrap_or_else(|problems| panic!("{problems}"));
    let secret = Secret::parse(SECRET).unwrap();
    let real = "50_a-token-that-is-as-real-as-any-0123456789";
    let token = Token::new(real, Instant::now(), Duration::from_secs(7200)).unwrap();
    let kept = Kept { token: token.clone(), standing: Standing::Good };
    let failed: Result<(), _> = Err((kept.clone(), secret.clone()));
    let panics: [&dyn Fn(); 6] = [
        &|| panic!("{config:?} {config:#?}"),
        &|| panic!("a secret: {secret} {secret:?} {:#?}", Some(&secret)),
        &|| panic!("{token:?} {token:#?} {}", token.fingerprint()),
        &|| panic!("{:?} {:?}", Refresh::Another(token.clone()), Refresh::Same(token.clone())),
        &|| *failed.as_ref().expect("what `expect` shows of an error"),
        &|| assert_eq!(Some(&kept), None, "what a comparison shows"),
    ];
    let mut watch = Watch { hidden: vec![SECRET.into(), real.into(), seal.into()], ..Watch::default() };
    watch.hidden.extend(hidden.map(String::from));
    for (number, panic) in panics.into_iter().enumerate() {
        let payload = std::panic::catch_unwind(AssertUnwindSafe(panic)).unwrap_err();
        let message = payload.downcast_ref::<String>().unwrap();
        assert!(message.len() > 10, "{number}: it says something: {message}");
        watch.assert_unseen(&format!("panic {number}"), message);
    }
}

#[tokio::test]
async fn nothing_is_given_away_by_check_or_by_settings_that_are_refused() {
    let wechat = Wechat::tls().await;
    wechat.sim.set_account(&AppId::parse(APPID).unwrap(), &Secret::parse(SECRET).unwrap());
    let mut watch = Watch { hidden: vec![SECRET.to_owned()], ..Watch::default() };
    let env = || [("WECHAT_SIDECAR_SECRET".into(), OsString::from(SECRET))];
    let mut args = vec![OsString::from("check")];
    args.extend(wechat.settings(&["--log", "trace"]));
    let ended = run(command(args.clone(), env())).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    watch.note_tokens(&wechat);
    watch.assert_unseen("check", &format!("{}{}", ended.out, ended.err));
    for failure in [FetchFailure::Errcode(40125), FetchFailure::Drop, FetchFailure::Garbage] {
        for endpoint in ["token", "stable_token"] {
            wechat.sim.fail_fetches(failure.clone(), 1);
            let mut args = args.clone();
            args.extend(["--token-endpoint", endpoint].map(OsString::from));
            let ended = run(command(args, env())).await;
            assert_eq!(ended.code, Some(1));
            watch.assert_unseen("check", &format!("{}{}", ended.out, ended.err));
        }
    }
    let hex = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
    watch.hidden.push(hex.to_owned());
    for args in [
        vec!["run", "--secret", hex, "--appid", APPID],
        vec!["run", hex],
        vec!["run", "--appid", APPID, "--secret-file", hex],
        vec!["run", "--appid", hex],
    ] {
        let ended = run(command(args, [])).await;
        assert_eq!(ended.code, Some(64), "{}", ended.err);
        watch.assert_unseen("a refusal", &format!("{}{}", ended.out, ended.err));
    }
}
