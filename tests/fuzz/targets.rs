//! What is fuzzed: each target takes any bytes and panics where a promise is broken. cargo-fuzz drives them
//! (`fuzz_targets/`), and so does `cargo test`, over a seeded generator (`tests/integration/fuzz.rs`).

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use wechat_sidecar::app::App;
use wechat_sidecar::config;
use wechat_sidecar::credentials::{AppId, Secret};
use wechat_sidecar::origin::Origin;
use wechat_sidecar::proxy::inspect::{Inspector, PREFIX, Verdict, base_resp};
use wechat_sidecar::tls::ExtraRoots;
use wechat_sidecar::token::bridge::{Bridge, format::Format};
use wechat_sidecar::token::redis::{self, Redis};
use wechat_sidecar::token::source::{CentralSource, central as source, parse_reply};
use wechat_sidecar::token::store::redis::Seals;
use wechat_sidecar::token::store::redis::record::{self, CLOCK_SLACK_MS, LONGEST_LIFE_MS, Owner};
use wechat_sidecar::token::{Fingerprint, Token};

const APPID: &str = "wx0123456789abcdef";
const SECRET: &str = "5ec2e75ec2e75ec2e75ec2e75ec2e75e";
const TOKEN: &str = "THE-ONE-TOKEN";

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// An app's bytes on a connection, through the whole sidecar, to the bytes that reach WeChat: sound HTTP/1.1 with one
/// Host and one length, our token and no other, and no token fetch but our own.
pub(crate) fn head(input: &[u8]) {
    let rig = rig();
    let mut app = TcpStream::connect(rig.proxy).expect("the sidecar accepts");
    app.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    // It may hang up before it has all.
    let _ = app.write_all(input);
    let _ = app.shutdown(Shutdown::Write);
    let mut told = Vec::new();
    match app.read_to_end(&mut told) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no end of {input:?}"),
        _ => {}
    }
    assert!(told.is_empty() || told.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&told));
    let shown = String::from_utf8_lossy(&told);
    assert!(!shown.contains(TOKEN) && !shown.contains(SECRET), "a credential came back: {shown}");
    let wrongs = std::mem::take(&mut *rig.wrongs.lock().expect("no panic"));
    assert!(wrongs.is_empty(), "{:?} led to {wrongs:?}", String::from_utf8_lossy(input));
}

/// One reply body, whole and cut as its first bytes say: one verdict, and a refusal only of what has its code in it.
pub(crate) fn inspect(input: &[u8]) {
    let (cuts, body) = input.split_at(input.len().min(4));
    let mut whole = Inspector::new();
    let early = whole.push(body);
    let verdict = whole.finish();
    if early == Verdict::Clean {
        assert_eq!(verdict, Verdict::Clean, "clean stays clean");
    }
    let mut pieces = Inspector::new();
    let (mut rest, mut n) = (body, 0);
    while !rest.is_empty() {
        let size = cuts.get(n % 4).map_or(1, |&cut| usize::from(cut % 16) + 1);
        let (now, later) = rest.split_at(size.min(rest.len()));
        let _ = pieces.push(now);
        (rest, n) = (later, n + 1);
    }
    assert_eq!(pieces.finish(), verdict, "{:?}", String::from_utf8_lossy(body));
    for verdict in [verdict, base_resp(body)] {
        if let Verdict::Refused(code) = verdict {
            assert!([40001, 40014, 42001].contains(&code));
            let code = code.to_string();
            assert!(
                body.windows(5).any(|five| five == code.as_bytes()),
                "{:?}",
                String::from_utf8_lossy(body)
            );
        }
    }
    if body.len() > PREFIX {
        assert_eq!(verdict, Verdict::Clean, "what is longer streams");
    }
}

/// A file of settings: taken or told, and the secret is not seen.
pub(crate) fn settings(input: &[u8]) {
    static FILE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FILE.get_or_init(|| tempfile::tempdir().expect("a folder"));
    let path = folder.path().join("sidecar.toml");
    std::fs::write(&path, input).expect("a file");
    let flags = vec![("config", path.display().to_string())];
    let env = [("WECHAT_SIDECAR_SECRET".into(), SECRET.into())];
    let told = match config::load(flags, env) {
        Ok(config) => format!("{config:?}"),
        Err(problems) => format!("{problems} {problems:?}"),
    };
    let theirs = input.windows(6).any(|six| six == b"5ec2e7");
    assert!(theirs || !told.contains("5ec2e7"), "{told}");
}

/// A token endpoint's reply: a sound token, or an error that shows no secret.
pub(crate) fn reply(input: &[u8]) {
    let (how, body) = first(input);
    let status = status(how);
    let secret = Secret::parse(SECRET).expect("a secret");
    match parse_reply(status, body, tokio::time::Instant::now(), &secret) {
        Ok(token) => {
            assert!(status.is_success());
            sound(&token);
        }
        Err(error) => told(&error.sentence, error.retry_after),
    }
}

/// What lies in a store's key, beside Redis's clock and the key's life: a sound record of ours that ends when it says, or
/// none. Where there is a key, only what was sealed with it.
pub(crate) fn records(input: &[u8]) {
    static SEALS: OnceLock<Seals> = OnceLock::new();
    let seals = SEALS.get_or_init(|| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n").expect("it is written");
        Seals::read(file.path()).expect("a key")
    });
    // How, and where the clock stands: the corpus is from a second of 2026.
    let (how, text) = first(input);
    let seals = (how & 1 == 1).then_some(seals);
    let now = [SAVED_MS, SAVED_MS + 3_600_000, SAVED_MS + 7_200_000, 0, u64::MAX][usize::from(how >> 1) % 5];
    let left = [7_200_000, 3_600_000, 1, -1, i64::MAX][usize::from(how >> 4) % 5];
    let owner = Owner { appid: APPID.to_owned(), endpoint: "token" };
    let Ok(record) = record::read(&owner, text, (now, left), seals) else { return };
    let shown = String::from_utf8_lossy(text);
    assert!(shown.contains(&Fingerprint::of(&record.token).to_string()), "{shown}");
    assert!(seals.is_none() || (*record.token == TOKEN && !shown.contains(TOKEN)), "{shown}");
    assert!(record.fetched_ms <= now.saturating_add(CLOCK_SLACK_MS), "{shown}");
    assert!(record.ends_ms <= now.saturating_add(left.unsigned_abs()) && left >= 0, "{shown}");
    assert!(record.ends_ms <= record.fetched_ms.saturating_add(LONGEST_LIFE_MS), "{shown}");
}

/// A central server's reply: a sound token no older than a day, or an error that shows no key.
pub(crate) fn central(input: &[u8]) {
    static SOURCE: OnceLock<CentralSource> = OnceLock::new();
    let source = SOURCE.get_or_init(|| {
        let config = source::Config {
            origin: Origin::parse("http://127.0.0.1:1").expect("an origin"),
            key: Secret::parse(SECRET).expect("a key"),
            roots: ExtraRoots::default(),
            connect_timeout: PATIENCE,
            fetch_timeout: PATIENCE,
        };
        CentralSource::new(&config, AppId::parse(APPID).expect("an appid")).expect("a client")
    });
    let (how, rest) = first(input);
    let status = status(how);
    // The first line is what Retry-After says.
    let at = rest.iter().position(|&b| b == b'\n').unwrap_or(0);
    let mut headers = http::HeaderMap::new();
    if let Ok(value) = http::HeaderValue::from_bytes(&rest[..at]) {
        headers.insert("retry-after", value);
    }
    let asked_at = tokio::time::Instant::now();
    match source.parse(status, &headers, &rest[at..], asked_at) {
        Ok(token) => {
            assert!(status.is_success() && token.fetched_at() <= asked_at);
            sound(&token);
        }
        Err(error) => {
            told(&error.sentence, error.retry_after);
            assert!(error.retry_after <= Duration::from_secs(30) && error.retry_after <= error.at_most);
        }
    }
}

/// What an app left in its Redis: a sound token that is worth taking, or a reason that shows none of it.
pub(crate) fn bridge(input: &[u8]) {
    static BRIDGE: OnceLock<(Bridge, Vec<Format>)> = OnceLock::new();
    let (bridge, formats) = BRIDGE.get_or_init(|| {
        let address = redis::Address::parse("redis://127.0.0.1:1").expect("an address");
        // It is never asked.
        let redis = Redis::new(redis::Config { address, roots: None });
        let formats = ["wxjava-mp", "powerwechat", "wechatpy", "easywechat=k"];
        let formats = formats.map(|format| Format::parse(format).expect("a format")).to_vec();
        let appid = AppId::parse(APPID).expect("an appid");
        let is_placeholder: fn(&str) -> bool = |token| token.starts_with("WECHAT-SIDECAR_");
        (Bridge::new(appid, None, &formats, redis, true, is_placeholder), formats)
    });
    let (how, value) = first(input);
    let format = &formats[usize::from(how & 3)];
    let seconds = [7000, 1, 0, u64::MAX / 1000, 86_400][usize::from(how >> 2) % 5];
    let left = (how >> 5 != 7).then(|| Duration::from_secs(seconds));
    let Ok(token) = bridge.take(format, value, left) else { return };
    sound(&token);
    assert!(format.is_adoptable(), "{} is not taken", format.name());
    assert!(left.is_some_and(|left| token.remaining() <= left && left <= Duration::from_secs(86_400)));
    assert!(token.expose().len() >= 32 && !token.expose().starts_with("WECHAT-SIDECAR_"));
}

/// When the corpus of records was written, by Redis's clock.
const SAVED_MS: u64 = 1_785_000_000_000;

/// The first byte, and the rest.
fn first(input: &[u8]) -> (u8, &[u8]) {
    input.split_first().map_or((0, input), |(&how, rest)| (how, rest))
}

fn status(how: u8) -> http::StatusCode {
    const ALL: [u16; 13] = [200, 200, 200, 201, 302, 400, 401, 403, 404, 429, 500, 502, 503];
    http::StatusCode::from_u16(ALL[usize::from(how) % ALL.len()]).expect("a status")
}

/// Fit for a query, and it lives for a time and not for ever.
fn sound(token: &Token) {
    assert!(!token.expose().is_empty() && token.expose().bytes().all(|b| b.is_ascii_graphic()));
    assert!(token.expires_at() >= token.fetched_at());
    assert!(token.remaining() <= Duration::from_secs(86_400));
}

/// Fit for a log, and not asked again at once.
fn told(sentence: &str, retry_after: Duration) {
    assert!(!sentence.contains(SECRET) && !sentence.contains(TOKEN), "{sentence}");
    assert!(!sentence.chars().any(char::is_control), "{sentence}");
    assert!(retry_after >= Duration::from_secs(1));
}

/// The real sidecar before an upstream that reads by the letter. One for the whole process.
struct Rig {
    proxy: SocketAddr,
    wrongs: Arc<Mutex<Vec<String>>>,
}

fn rig() -> &'static Rig {
    static RIG: OnceLock<Rig> = OnceLock::new();
    RIG.get_or_init(|| {
        let wrongs = Arc::new(Mutex::new(Vec::new()));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let upstream = listener.local_addr().expect("its address");
        let noted = Arc::clone(&wrongs);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let noted = Arc::clone(&noted);
                std::thread::spawn(move || {
                    if let Err(wrong) = serve(stream, &upstream.to_string()) {
                        noted.lock().expect("no panic").push(wrong);
                    }
                });
            }
        });
        let flags = [
            ("appid", APPID),
            ("upstream", &format!("http://{upstream}")),
            ("listen", "127.0.0.1:0"),
            ("admin_listen", "127.0.0.1:0"),
            ("workers", "1"),
            ("token_wait", "10s"),
        ];
        let flags = flags.map(|(key, value)| (key, value.to_owned())).into();
        let env = [("WECHAT_SIDECAR_SECRET".into(), SECRET.into())];
        let config = config::load(flags, env).unwrap_or_else(|problems| panic!("{problems}"));
        let (said, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let app = App::bind(config).unwrap_or_else(|error| panic!("{error}"));
                let _ = said.send(app.addresses().proxy);
                let _ = app.run(std::future::pending::<()>()).await;
            });
        });
        let proxy = told.recv().expect("the sidecar starts");
        let rig = Rig { proxy, wrongs };
        // The first call waits for the token.
        let mut app = TcpStream::connect(proxy).expect("the sidecar accepts");
        let _ = app.write_all(b"GET /cgi-bin/x HTTP/1.0\r\n\r\n");
        let mut told = Vec::new();
        let _ = app.read_to_end(&mut told);
        assert!(told.starts_with(b"HTTP/1.0 200 "), "{:?}", String::from_utf8_lossy(&told));
        rig
    })
}

/// Answers what comes, and says what is wrong with it.
fn serve(mut stream: TcpStream, host: &str) -> Result<(), String> {
    let mut unread = Vec::new();
    loop {
        let Some(end) = unread.windows(4).position(|four| four == b"\r\n\r\n") else {
            if !more(&mut stream, &mut unread) {
                return Ok(());
            }
            continue;
        };
        let head: Vec<u8> = unread.drain(..end + 4).collect();
        let (fetch, no_body, length) = judge(&head[..end], host)?;
        while unread.len() < length {
            if !more(&mut stream, &mut unread) {
                return Ok(());
            }
        }
        unread.drain(..length);
        let body = if fetch {
            format!(r#"{{"access_token":"{TOKEN}","expires_in":7200}}"#)
        } else {
            r#"{"errcode":0,"errmsg":"ok"}"#.to_owned()
        };
        let mut reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        if !no_body {
            reply.push_str(&body);
        }
        if stream.write_all(reply.as_bytes()).is_err() {
            return Ok(());
        }
    }
}

fn more(stream: &mut TcpStream, unread: &mut Vec<u8>) -> bool {
    let mut piece = [0; 16 * 1024];
    match stream.read(&mut piece) {
        Ok(n) if n > 0 => {
            unread.extend_from_slice(&piece[..n]);
            true
        }
        _ => false,
    }
}

/// Reads a request's head by the letter: whether it is a token fetch, whether its answer has no body, and how long its
/// own is.
fn judge(head: &[u8], host: &str) -> Result<(bool, bool, usize), String> {
    let wrong = |what: &str| format!("{what}: {:?}", String::from_utf8_lossy(head));
    let text = String::from_utf8_lossy(head).into_owned();
    if head.iter().any(|&b| (b < b' ' && !b"\t\r\n".contains(&b)) || b == 0x7f) {
        return Err(wrong("a control character"));
    }
    let mut lines = text.split("\r\n");
    let line = lines.next().unwrap_or_default();
    let parts: Vec<_> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else { return Err(wrong("no request line")) };
    if !target.starts_with('/') || target.starts_with("//") || target.contains('#') {
        return Err(wrong("no path"));
    }
    let (mut hosts, mut lengths) = (Vec::new(), Vec::new());
    let mut ours = false;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return Err(wrong("no header")) };
        if name.is_empty() || line.contains(['\r', '\n']) || name.contains([' ', '\t']) {
            return Err(wrong("a header that can be read in two ways"));
        }
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" => hosts.push(value.to_owned()),
            "content-length" => lengths.push(value.to_owned()),
            "transfer-encoding"
            | "te"
            | "trailer"
            | "upgrade"
            | "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authorization" => return Err(wrong("a header between neighbours")),
            "user-agent" => ours = value.starts_with("wechat-sidecar/"),
            _ => {}
        }
    }
    if hosts != [host] || lengths.len() > 1 {
        return Err(wrong("not one Host, or several lengths"));
    }
    let length = match lengths.first() {
        Some(length) => length.parse().map_err(|_| wrong("a length that is none"))?,
        None => 0,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let fetch = path == "/cgi-bin/stable_token";
    if path == "/cgi-bin/token" || (fetch && !ours) {
        return Err(wrong("a token fetch that is not ours"));
    }
    let params: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    let tokens: Vec<_> =
        params.iter().filter(|(name, _)| name == "access_token").map(|(_, token)| token).collect();
    let theirs = path.starts_with("/sns/")
        || path.starts_with("/cgi-bin/component/")
        || path == "/cgi-bin/clear_quota/v2"
        || params.iter().any(|(name, _)| name == "component_access_token");
    if !fetch && !theirs && (tokens.len() != 1 || tokens[0] != TOKEN) {
        return Err(wrong("not one token, ours"));
    }
    if theirs && tokens.iter().any(|token| *token == TOKEN) {
        return Err(wrong("our token where it has no place"));
    }
    if tokens.iter().any(|token| token.starts_with("WECHAT-SIDECAR_")) {
        return Err(wrong("a placeholder"));
    }
    Ok((fetch, method == "HEAD", length))
}
