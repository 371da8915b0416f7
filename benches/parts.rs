//! One part of a call, so many times: `parts NAME TIMES`. `benches/instructions.py` runs it under callgrind, twice, and
//! the difference is what one time costs.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Uri};
use tokio::time::Instant;

use wechat_sidecar::account::Account;
use wechat_sidecar::credentials::{AppId, Secret};
use wechat_sidecar::origin::Origin;
use wechat_sidecar::proxy::call::{Call, Heading, Limits, ReplayBudget};
use wechat_sidecar::proxy::credential;
use wechat_sidecar::proxy::inject;
use wechat_sidecar::proxy::inspect::{Inspector, Verdict};
use wechat_sidecar::proxy::route::Routes;
use wechat_sidecar::server::Connection;
use wechat_sidecar::server::framing::RawHead;
use wechat_sidecar::tls::ExtraRoots;
use wechat_sidecar::token::Token;
use wechat_sidecar::token::keeper::TokenKeeper;
use wechat_sidecar::token::source::{Config, Endpoint, Source};
use wechat_sidecar::token::store::MemoryStore;

const TARGET: &str = "/cgi-bin/message/template/send?debug=1";

/// A small reply whose errcode stands last.
const REPLY: &str = r#"{"msgid":200228332,"list":[{"id":1,"name":"a"},{"id":2,"name":"b"}],"note":"a reply of the size that most replies have","errmsg":"ok","errcode":0}"#;

const RAW: &[u8] = b"POST /cgi-bin/message/template/send?debug=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: wrk\r\nAuthorization: Basic dXNlcjpwYXNz\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n";

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let (Some(name), Some(times)) = (args.next(), args.next()) else {
        // `cargo bench` and `cargo test --benches` run it without a word.
        return;
    };
    let times: usize = times.parse().unwrap_or_else(|_| panic!("{times} is no number"));
    match name.as_str() {
        "inject" => run_inject(times),
        "inspect" => run_inspect(times),
        "route" => run_route(times),
        "replay" => run_replay(times),
        other => panic!("there is no part {other}"),
    }
}

fn run_inject(times: usize) {
    let (target, token) = (target(), token());
    for _ in 0..times {
        let written = inject::inject(black_box(&target), black_box(token.encoded().in_query()));
        assert!(written.is_ok());
    }
}

fn run_inspect(times: usize) {
    for _ in 0..times {
        let mut inspector = Inspector::new();
        let verdict = inspector.push(black_box(REPLY.as_bytes()));
        assert!(verdict == Verdict::Clean || inspector.finish() == Verdict::Clean);
    }
}

/// Finds the way of a call, and writes its credential.
fn run_route(times: usize) {
    let (routes, token) = (routes(), token());
    let uri = Uri::from(target());
    for _ in 0..times {
        let route = routes.find(black_box(&Method::POST), black_box(&uri));
        let route = route.unwrap_or_else(|failure| panic!("{}", failure.message));
        assert!(credential::write(&route, Some(&token)).is_ok());
    }
}

/// Holds a call, makes it ready to go, and to go again.
fn run_replay(times: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build_local(Default::default());
    let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
    let limits = Limits {
        max_body: 1 << 20,
        replay_limit: 1 << 20,
        idle_timeout: Duration::from_secs(60),
        budget: ReplayBudget::new(1 << 30),
    };
    let (host, connection, body) =
        (HeaderValue::from_static("api.weixin.qq.com"), Connection::default(), Bytes::from(vec![b'x'; 200]));
    let written =
        credential::write(&routes().find(&Method::POST, &target().into()).expect("a route"), Some(&token()));
    let target = written.unwrap_or_else(|failure| panic!("{}", failure.message));
    runtime.block_on(async {
        for _ in 0..times {
            let raw = RawHead::sound(RAW);
            let request = Request::post(TARGET)
                .header("Host", "127.0.0.1")
                .header("User-Agent", "wrk")
                .header("Authorization", "Basic dXNlcjpwYXNz")
                .header("Content-Type", "application/json")
                .header("Content-Length", "200");
            let (mut head, ()) = request.body(()).expect("a request").into_parts();
            let heading = Heading {
                private: &[],
                raw: &raw,
                host: &host,
                identity: true,
                connection: &connection,
                came_at: Instant::now(),
            };
            let mut call = Call::of(&mut head, body.clone(), heading, &limits);
            drop(black_box(call.with(&target)));
            assert!(call.again().await);
            drop(black_box(call.with(&target)));
        }
    });
}

fn target() -> PathAndQuery {
    PathAndQuery::from_static(TARGET)
}

fn token() -> Token {
    let life = Duration::from_secs(7200);
    Token::new(&"0123456789abcdef".repeat(32), Instant::now(), life).expect("512 characters")
}

fn routes() -> Routes {
    let config = Config {
        proxy: None,
        endpoint: Endpoint::Stable,
        origin: Origin::parse("http://127.0.0.1:1").expect("an origin"),
        roots: ExtraRoots::default(),
        connect_timeout: Duration::from_secs(1),
        fetch_timeout: Duration::from_secs(1),
    };
    let appid = AppId::parse("wx0123456789abcdef").expect("an appid");
    let secret = Secret::parse("0123456789abcdef0123456789abcdef").expect("a secret");
    let source = Source::new(&config, appid.clone(), secret.clone()).expect("a source");
    let (keeper, _worker) = TokenKeeper::new(appid.clone(), source, MemoryStore::new());
    Routes::new(vec![Account::new(appid, Some(secret), keeper)])
}
