//! Apps that have no base URL to set: the sidecar as their HTTP proxy, as their HTTPS proxy, and as the host itself.
//! Real clients over sockets; the upstream tells what was sent, and above all what was not.

use std::net::SocketAddr;

use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use wechat_sidecar::app::{Addresses, App};
use wechat_sidecar::ca;
use wechat_sidecar::config::{self, Config};
use wechat_sidecar::hosts::Hosts;
use wechat_sidecar::tls::{self, ExtraRoots};

use crate::rig::tls::Authority;
use crate::rig::{APPID, Gate, RawUpstream, SECRET, Setup, Step, Tokens, ms, no_one_listens, say, within};

const HOST: &str = "api.weixin.qq.com";
const CALL: &str = "GET /cgi-bin/user/get HTTP/1.1\r\nHost: api.weixin.qq.com\r\n\r\n";

/// A sidecar with all its entries open, and the CA its apps trust.
struct Open {
    addresses: Addresses,
    ca: TempDir,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<std::io::Result<()>>,
    _tokens: Tokens,
}

impl Open {
    async fn before(upstream: &RawUpstream) -> Self {
        Self::with(upstream, &[]).await
    }

    async fn with(upstream: &RawUpstream, more: &[(&'static str, &str)]) -> Self {
        let tokens = Tokens::start().await;
        // The rig's settings, with those of the entries beside them.
        let mut source = None;
        let _ = Setup::new(&upstream.origin(), &tokens).with(|config| source = Some(config.source.clone()));
        let ca = tempfile::tempdir().unwrap();
        ca::make(ca.path(), &Hosts::default()).unwrap();
        let entries = [("ca_dir", ca.path().to_str().unwrap()), ("tls_listen", "127.0.0.1:0")];
        let more: Vec<_> = entries.iter().chain(more).copied().collect();
        let mut config = settings(&upstream.origin(), &more).unwrap();
        config.source = source.unwrap();
        let (addresses, stop, running) = start(config).await;
        Self { addresses, ca, stop: Some(stop), running, _tokens: tokens }
    }

    /// An app's TLS, over any socket, asking for this name.
    async fn handshake(
        &self,
        stream: TcpStream,
        name: &str,
    ) -> std::io::Result<Client<TlsStream<TcpStream>>> {
        let roots = ExtraRoots::read(&self.ca.path().join(ca::CERTIFICATE)).unwrap();
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(tls::client_config(&roots));
        within("a handshake", connector.connect(name, stream)).await.map(Client)
    }

    /// Through the HTTPS proxy.
    async fn tunnel(&self) -> Client<TlsStream<TcpStream>> {
        let mut client = Client::connect(self.addresses.proxy).await;
        let reply = client.head(&connect("api.weixin.qq.com:443")).await;
        assert_eq!(reply, "HTTP/1.1 200 Connection established\r\n\r\n");
        self.handshake(client.0, HOST).await.unwrap()
    }

    /// To the host itself.
    async fn host(&self) -> Client<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.addresses.tls.unwrap()).await.unwrap();
        self.handshake(stream, HOST).await.unwrap()
    }

    async fn stopped(mut self) {
        drop(self.stop.take());
        within("the stop", self.running).await.unwrap().unwrap();
    }
}

fn settings(upstream: &str, more: &[(&'static str, &str)]) -> Result<Config, config::Problems> {
    let flags = [
        ("appid", APPID),
        ("upstream", upstream),
        ("listen", "127.0.0.1:0"),
        ("admin_listen", "127.0.0.1:0"),
        ("workers", "1"),
        ("token_wait", "10s"),
    ];
    let flags = flags.iter().chain(more).map(|&(key, value)| (key, value.to_owned())).collect();
    config::load(flags, [("WECHAT_SIDECAR_SECRET".into(), SECRET.into())])
}

async fn start(config: Config) -> (Addresses, oneshot::Sender<()>, JoinHandle<std::io::Result<()>>) {
    let app = App::bind(config).unwrap_or_else(|error| panic!("{error}"));
    let addresses = app.addresses();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(app.run(async move { drop(stopped.await) }));
    (addresses, stop, running)
}

/// An app's side of a connection, in clear or not.
struct Client<S>(S);

impl Client<TcpStream> {
    async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn send(&mut self, text: &str) {
        // A refusal may come before all of it has gone out.
        let _ = self.0.write_all(text.as_bytes()).await;
        let _ = self.0.flush().await;
    }

    /// Sends a request and reads a head.
    async fn head(&mut self, request: &str) -> String {
        self.send(request).await;
        let mut head = Vec::new();
        within("a head", async {
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.0.read_u8().await.expect("a whole head"));
            }
        })
        .await;
        String::from_utf8(head).unwrap()
    }

    /// Sends a request and reads a reply: its head and its body.
    async fn call(&mut self, request: &str) -> (String, String) {
        let head = self.head(request).await.to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).map_or(0, |rest| {
            rest.split("\r\n").next().and_then(|length| length.parse().ok()).expect("a length")
        });
        let mut body = vec![0; length];
        within("a body", self.0.read_exact(&mut body)).await.unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    /// Sends what gets this error of ours, whole and in our form.
    async fn refused(&mut self, request: &str, status: u16, cause: &str) -> String {
        let (head, body) = self.call(request).await;
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{request:?} got {head}{body}");
        assert!(head.contains(&format!("x-wechat-sidecar-error: {cause}\r\n")), "{request:?} got {head}");
        assert!(head.contains("content-type: application/json\r\n"), "{head}");
        let told: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(told["errcode"].as_i64().is_some_and(|code| code > 0), "{told}");
        told["errmsg"].as_str().unwrap().to_owned()
    }

    /// What still comes until the end, however it ends.
    async fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        within("the end", self.0.read_to_end(&mut rest)).await.map(|_| rest)
    }
}

/// WeChat answered.
#[track_caller]
fn is_ok((head, body): (String, String)) {
    assert!(head.starts_with("http/1.1 200 ok") && body.contains(r#""errcode":0"#), "{head}{body}");
}

fn connect(authority: &str) -> String {
    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Connection: keep-alive\r\n\r\n")
}

#[tokio::test]
async fn as_an_http_proxy_it_takes_urls_of_the_api_and_sends_their_paths() {
    let upstream = RawUpstream::start().await;
    let sidecar = Open::before(&upstream).await;
    let mut client = Client::connect(sidecar.addresses.proxy).await;
    for (n, url) in [
        "http://api.weixin.qq.com/cgi-bin/user/get?a=1",
        "http://API.weixin.qq.com.:80/cgi-bin/user/get?a=1",
        // As axios does to an HTTP proxy.
        "https://api.weixin.qq.com/cgi-bin/user/get?a=1",
        "https://hk.api.weixin.qq.com:443/cgi-bin/user/get?a=1",
        &format!("{}/cgi-bin/user/get?a=1", upstream.origin()),
    ]
    .into_iter()
    .enumerate()
    {
        let request = format!(
            "GET {url} HTTP/1.1\r\nHost: api.weixin.qq.com\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\n\r\n"
        );
        let reply = client.call(&request).await;
        assert!(reply.0.starts_with("http/1.1 200 "), "{url}: {reply:?}");
        let seen = upstream.the_call();
        assert_eq!(seen.target(), "/cgi-bin/user/get?a=1&access_token=TOKEN-1", "{n}");
        assert_eq!(seen.all("host"), [upstream.address.to_string()]);
        assert!(seen.all("proxy-connection").is_empty() && seen.all("proxy-authorization").is_empty());
    }
}

#[tokio::test]
async fn as_an_http_proxy_it_is_for_nobody_else() {
    let upstream = RawUpstream::start().await;
    let sidecar = Open::before(&upstream).await;
    for url in [
        "http://evil.example/cgi-bin/user/get",
        "http://mp.weixin.qq.com/cgi-bin/showqrcode",
        "http://api.weixin.qq.com.evil.example/cgi-bin/user/get",
        "http://x@api.weixin.qq.com/cgi-bin/user/get",
        "http://api.weixin.qq.com:x@evil.example/cgi-bin/user/get",
        "http://api.weixin.qq.com:22/cgi-bin/user/get",
        "http://api.weixin.qq.com//evil.example/",
        "http://127.0.0.1:1/cgi-bin/user/get",
        "ftp://api.weixin.qq.com/cgi-bin/user/get",
        "file:///etc/passwd",
    ] {
        let mut client = Client::connect(sidecar.addresses.proxy).await;
        let (head, _) = client.call(&format!("GET {url} HTTP/1.1\r\nHost: api.weixin.qq.com\r\n\r\n")).await;
        assert!(head.starts_with("http/1.1 400 "), "{url}: {head}");
    }
    assert_eq!(upstream.connections(), 0, "nothing was sent");
}

#[tokio::test]
async fn as_an_https_proxy_it_answers_the_tunnel_itself_and_serves_call_after_call() {
    let upstream = RawUpstream::start().await;
    let sidecar = Open::before(&upstream).await;
    let mut client = sidecar.tunnel().await;
    for _ in 0..5 {
        is_ok(client.call(CALL).await);
    }
    let body =
        "POST /cgi-bin/menu/create HTTP/1.1\r\nHost: api.weixin.qq.com:443\r\nContent-Length: 2\r\n\r\n{}";
    is_ok(client.call(body).await);
    let seen = upstream.take_seen();
    assert_eq!(seen.len(), 6);
    assert!(seen.iter().all(|seen| seen.token() == "TOKEN-1"));
    // The port is an HTTP port all the while, for other methods too.
    let mut plain = Client::connect(sidecar.addresses.proxy).await;
    is_ok(plain.call(CALL).await);
    is_ok(plain.call(&CALL.replace("GET", "DELETE")).await);
}

#[tokio::test]
async fn a_connect_may_come_in_pieces_and_with_the_handshake_behind_it() {
    let upstream = RawUpstream::start().await;
    let sidecar = Open::before(&upstream).await;
    for request in [
        connect("API.weixin.qq.com:443"),
        connect("api2.weixin.qq.com.:443"),
        "CONNECT api.weixin.qq.com:443 HTTP/1.0\r\n\r\n".to_owned(),
        format!("CONNECT api.weixin.qq.com:443 HTTP/1.1\r\nHost: x\r\nLong: {}\r\n\r\n", "x".repeat(5000)),
    ] {
        let mut client = Client::connect(sidecar.addresses.proxy).await;
        client.0.set_nodelay(true).unwrap();
        for piece in request.as_bytes().chunks(request.len().div_ceil(40)) {
            client.0.write_all(piece).await.unwrap();
            tokio::time::sleep(ms(1)).await;
        }
        assert!(client.head("").await.starts_with("HTTP/1.1 200 "), "{request}");
        let mut client = sidecar.handshake(client.0, HOST).await.unwrap();
        is_ok(client.call(CALL).await);
    }

    // A client in a hurry: the first bytes of its TLS are with us before we have said a word.
    let mut hello = Vec::new();
    let config = tls::client_config(&ExtraRoots::read(&sidecar.ca.path().join(ca::CERTIFICATE)).unwrap());
    let mut tls = rustls::ClientConnection::new(config, HOST.try_into().unwrap()).unwrap();
    tls.write_tls(&mut hello).unwrap();
    let mut client = Client::connect(sidecar.addresses.proxy).await;
    client.0.write_all(&[connect("api.weixin.qq.com:443").as_bytes(), &hello].concat()).await.unwrap();
    assert!(client.head("").await.starts_with("HTTP/1.1 200 "));
    assert_eq!(client.0.read_u8().await.unwrap(), 0x16, "a ServerHello");
}

#[tokio::test]
async fn no_tunnel_leads_to_another_host() {
    let upstream = RawUpstream::start().await;
    let sidecar = Open::before(&upstream).await;
    for authority in [
        "evil.example:443",
        "mp.weixin.qq.com:443",
        "api.weixin.qq.com.evil.example:443",
        "api.weixin.qq.com:80",
        "api.weixin.qq.com:22",
        "127.0.0.1:443",
        "[::1]:443",
        "localhost:443",
        // A certificate is for names: the test's own upstream is none.
        &upstream.address.to_string(),
    ] {
        let mut client = Client::connect(sidecar.addresses.proxy).await;
        let told = client.refused(&connect(authority), 403, "foreign-host").await;
        assert!(told.contains("nothing was sent") && told.contains("NO_PROXY"), "{told}");
        assert_eq!(client.rest().await.unwrap(), b"", "{authority}: closed");
    }
    assert_eq!(upstream.connections(), 0, "nothing was sent");
}

#[tokio::test]
async fn a_connect_that_can_be_read_in_two_ways_is_refused() {
    let upstream = RawUpstream::start().await;
    let sidecar = Open::before(&upstream).await;
    for (why, request) in [
        ("no port", connect("api.weixin.qq.com")),
        ("an empty port", connect("api.weixin.qq.com:")),
        ("user info", connect("api.weixin.qq.com@evil.example:443")),
        ("two ports", connect("api.weixin.qq.com:443:443")),
        ("a URL", connect("https://api.weixin.qq.com:443/")),
        ("a path", connect("/cgi-bin/user/get")),
        ("a bare LF", connect("api.weixin.qq.com:443").replace("HTTP/1.1\r\n", "HTTP/1.1\n")),
        ("HTTP/2", connect("api.weixin.qq.com:443").replace("HTTP/1.1", "HTTP/2.0")),
        ("a body", connect("api.weixin.qq.com:443").replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\n")),
        (
            "a chunked body",
            connect("api.weixin.qq.com:443").replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ),
        ("a NUL", connect("api.weixin.qq.com:443").replace("keep-alive", "\0")),
        (
            "too many headers",
            connect("api.weixin.qq.com:443")
                .replace("\r\n\r\n", &format!("{}\r\n\r\n", "\r\na: b".repeat(100))),
        ),
        (
            "too large a head",
            connect("api.weixin.qq.com:443")
                .replace("\r\n\r\n", &format!("\r\na: {}\r\n\r\n", "x".repeat(20_000))),
        ),
    ] {
        let mut client = Client::connect(sidecar.addresses.proxy).await;
        client.refused(&request, 400, "bad-target").await;
        assert_eq!(client.rest().await.unwrap(), b"", "{why}: closed");
    }
    let mut client = Client::connect(sidecar.addresses.proxy).await;
    client.refused("COPY /cgi-bin/x HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method-not-allowed").await;
    // Not the first request: hyper's by then.
    let mut client = Client::connect(sidecar.addresses.proxy).await;
    is_ok(client.call(CALL).await);
    client.refused(&connect("api.weixin.qq.com:443"), 405, "method-not-allowed").await;
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn without_a_ca_there_are_no_tunnels_and_it_says_what_makes_one() {
    let upstream = RawUpstream::start().await;
    let (addresses, _stop, _running) = start(settings(&upstream.origin(), &[]).unwrap()).await;
    assert!(addresses.tls.is_none());
    let mut client = Client::connect(addresses.proxy).await;
    let told = client.refused(&connect("api.weixin.qq.com:443"), 405, "method-not-allowed").await;
    assert!(told.contains("`wechat-sidecar ca`"), "{told}");
}

#[tokio::test]
async fn as_the_host_it_serves_those_who_ask_for_the_host() {
    let upstream = RawUpstream::start().await;
    let sidecar = Open::before(&upstream).await;
    let mut client = sidecar.host().await;
    for host in ["api.weixin.qq.com", "api.weixin.qq.com:443", "API2.weixin.qq.com", "api.weixin.qq.com:8443"]
    {
        let request = format!("GET /cgi-bin/user/get HTTP/1.1\r\nHost: {host}\r\n\r\n");
        is_ok(client.call(&request).await);
        assert_eq!(upstream.the_call().all("host"), [upstream.address.to_string()], "{host}");
    }
    for host in ["evil.example", "mp.weixin.qq.com", "api.weixin.qq.com@evil.example", "", "127.0.0.1"] {
        let request = format!("GET /cgi-bin/user/get HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let told = client.refused(&request, 421, "misdirected").await;
        assert!(told.contains("nothing was sent"), "{told}");
    }
    assert_eq!(upstream.calls(), 0);
    // Through the tunnel no less.
    let mut client = sidecar.tunnel().await;
    client.refused(&CALL.replace(HOST, "evil.example"), 421, "misdirected").await;
    assert_eq!(upstream.calls(), 0);
}

#[tokio::test]
async fn a_handshake_for_another_host_or_for_none_gets_no_certificate() {
    let upstream = RawUpstream::start().await;
    let sidecar = Open::before(&upstream).await;
    let tls = sidecar.addresses.tls.unwrap();
    for name in ["evil.example", "mp.weixin.qq.com", "x.api.weixin.qq.com", "127.0.0.1"] {
        let stream = TcpStream::connect(tls).await.unwrap();
        let error = sidecar.handshake(stream, name).await.err().expect("no certificate");
        assert!(error.to_string().contains("alert"), "{name}: {error}");
    }
    for name in Hosts::default().certified() {
        let stream = TcpStream::connect(tls).await.unwrap();
        sidecar.handshake(stream, name).await.unwrap();
    }
}

#[tokio::test]
async fn what_speaks_no_tls_is_told_or_dropped_and_harms_nobody() {
    let upstream = RawUpstream::start().await;
    let sidecar = Open::before(&upstream).await;
    let tls = sidecar.addresses.tls.unwrap();
    let told = Client::connect(tls).await.refused(CALL, 400, "plain-http").await;
    assert!(told.contains("speaks TLS"), "{told}");
    let mut client = Client::connect(sidecar.addresses.proxy).await;
    client.head(&connect("api.weixin.qq.com:443")).await;
    client.refused(CALL, 400, "plain-http").await;

    for garbage in ["\0\0\0\0", "\u{16}\u{3}\u{1}\0\u{5}hello", "\u{80}\u{2e}\u{1}\0\u{2}", "\u{16}"] {
        let mut client = Client::connect(tls).await;
        client.send(garbage).await;
        client.0.shutdown().await.unwrap();
        // An alert or nothing, and then the end.
        let rest = client.rest().await.unwrap_or_default();
        assert!(rest.len() < 20, "{garbage:?}: {rest:?}");
    }
    drop(Client::connect(tls).await);
    is_ok(sidecar.host().await.call(CALL).await);
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn a_handshake_that_does_not_come_ends_and_keeps_nobody_waiting() {
    let upstream = RawUpstream::start().await;
    let sidecar = Open::before(&upstream).await;
    let mut slow = Client::connect(sidecar.addresses.tls.unwrap()).await;
    slow.send("\u{16}\u{3}\u{1}\u{1}").await;
    let mut silent = Client::connect(sidecar.addresses.proxy).await;
    silent.head(&connect("api.weixin.qq.com:443")).await;
    is_ok(sidecar.tunnel().await.call(CALL).await);
    let (slow, silent) = tokio::join!(slow.rest(), silent.rest());
    assert!(slow.unwrap_or_default().is_empty() && silent.unwrap_or_default().is_empty());
}

#[tokio::test]
async fn the_framing_guard_stands_inside_tls_too() {
    let upstream = RawUpstream::start().await;
    let sidecar = Open::before(&upstream).await;
    let smuggled = "POST /cgi-bin/x HTTP/1.1\r\nHost: api.weixin.qq.com\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /cgi-bin/y HTTP/1.1\r\nHost: api.weixin.qq.com\r\n\r\n";
    for mut client in [sidecar.tunnel().await, sidecar.host().await] {
        let head = client.head(smuggled).await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        let body = client.rest().await.expect("closed, and with a close_notify");
        assert!(String::from_utf8_lossy(&body).contains("not sound HTTP/1.1"), "{head}");
    }
    assert_eq!(upstream.connections(), 0, "nothing was sent");
}

#[tokio::test]
async fn lists_keys_and_the_gate_stand_in_every_way_in() {
    let (upstream, keys) = (RawUpstream::start().await, tempfile::NamedTempFile::new().unwrap());
    std::fs::write(keys.path(), format!("key-0123456789abcdef {APPID}\n")).unwrap();
    let settings = [("deny", "/cgi-bin/menu/**"), ("client_keys_file", keys.path().to_str().unwrap())];
    let sidecar = Open::with(&upstream, &settings).await;
    let key = "x-wechat-sidecar-key: key-0123456789abcdef\r\n";
    for (cause, target, headers) in [
        ("not-allowed", "/cgi-bin/menu/get", key),
        ("ambiguous-path", "/cgi-bin/x/../menu/get", key),
        ("client-key", "/cgi-bin/user/get", ""),
        ("browser", "/cgi-bin/user/get", &format!("{key}Origin: https://evil.example\r\n")),
    ] {
        let request = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n");
        let told = format!("x-wechat-sidecar-error: {cause}\r\n");
        let mut proxy = Client::connect(sidecar.addresses.proxy).await;
        let answers = [
            proxy.call(&request(&format!("http://{HOST}{target}"))).await.0,
            sidecar.tunnel().await.call(&request(target)).await.0,
            sidecar.host().await.call(&request(target)).await.0,
        ];
        for answer in answers {
            assert!(answer.contains(&told), "{cause}: {answer}");
        }
    }
    assert_eq!(upstream.calls(), 0);
    let good = CALL.replace("\r\n\r\n", &format!("\r\n{key}\r\n"));
    is_ok(sidecar.tunnel().await.call(&good).await);
    is_ok(sidecar.host().await.call(&good).await);
    assert!(upstream.seen().iter().all(|seen| !seen.head.contains("key-0123")), "and no key goes further");
    sidecar.stopped().await;
}

#[tokio::test]
async fn a_reply_that_was_cut_does_not_look_whole_through_tls() {
    let cut = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".to_vec();
    let upstream = RawUpstream::playing([vec![Step::ReadBody, Step::Say(cut), Step::Close]]).await;
    let sidecar = Open::before(&upstream).await;
    let mut client = sidecar.host().await;
    client.send("GET /cgi-bin/media/get HTTP/1.0\r\nHost: api.weixin.qq.com\r\n\r\n").await;
    assert!(client.rest().await.is_err(), "no clean end");
}

#[tokio::test]
async fn a_call_in_flight_through_tls_finishes_when_told_to_stop() {
    let gate = Gate::new();
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"errcode\":0}".to_vec();
    let held = || vec![Step::ReadBody, Step::Wait(gate.clone()), Step::Say(ok.clone())];
    let upstream = RawUpstream::start().await;
    let sidecar = Open::before(&upstream).await;
    let (mut tunnel, mut host) = (sidecar.tunnel().await, sidecar.host().await);
    let mut idle = sidecar.host().await;
    is_ok(idle.call(CALL).await);
    upstream.play([held(), held()]);
    // Not even begun: they must not hold up the stop.
    let _silent = Client::connect(sidecar.addresses.tls.unwrap()).await;
    let _half = Client::connect(sidecar.addresses.proxy).await.send("CONNECT api").await;
    tunnel.send(CALL).await;
    host.send(CALL).await;
    upstream.until("both calls", |log| log.seen.len() == 3).await;
    let (proxy, tls) = (sidecar.addresses.proxy, sidecar.addresses.tls.unwrap());
    let stopping = tokio::spawn(sidecar.stopped());
    within("the listeners' end", async {
        while TcpStream::connect(tls).await.is_ok() || TcpStream::connect(proxy).await.is_ok() {
            tokio::time::sleep(ms(5)).await;
        }
    })
    .await;
    assert_eq!(idle.rest().await.unwrap(), b"", "an idle connection is closed properly");
    gate.open();
    is_ok(tunnel.call("").await);
    is_ok(host.call("").await);
    // A connection lingers until its app has closed, too.
    drop((tunnel, host, idle));
    stopping.await.unwrap();
}

#[tokio::test]
async fn an_upstream_is_found_at_the_address_that_was_given_under_its_own_name() {
    let authority = Authority::new();
    for (upstream_setting, host) in
        [("https://wechat.test", "wechat.test"), ("https://wechat.test:8443", "wechat.test:8443")]
    {
        let upstream = RawUpstream::with_tls(authority.server("wechat.test")).await;
        let token = r#"{"access_token":"TOKEN-AT-ITS-ADDRESS","expires_in":7200}"#;
        upstream.play([say(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{token}",
            token.len()
        ))]);
        let address = upstream.address.to_string();
        let mut config = settings(upstream_setting, &[("upstream_address", &address)]).unwrap();
        (config.upstream.roots, config.source.roots) = (authority.roots(), authority.roots());
        let (addresses, _stop, _running) = start(config).await;
        is_ok(Client::connect(addresses.proxy).await.call(CALL).await);
        let seen = upstream.take_seen();
        assert_eq!(seen.len(), 2, "{seen:#?}");
        assert_eq!(seen[0].target(), "/cgi-bin/stable_token");
        assert_eq!(seen[1].token(), "TOKEN-AT-ITS-ADDRESS");
        assert!(seen.iter().all(|seen| seen.all("host") == [host]), "{seen:#?}");
    }
}

#[tokio::test]
async fn a_sidecar_that_would_call_itself_does_not_start() {
    let ca = tempfile::tempdir().unwrap();
    ca::make(ca.path(), &Hosts::default()).unwrap();
    let (here, held) = no_one_listens();
    drop(held);
    let here = here.replace("http://", "");
    let entries = [("ca_dir", ca.path().to_str().unwrap()), ("tls_listen", here.as_str())];
    let bind = |upstream: &str, more: &[(&'static str, &str)]| {
        let all: Vec<_> = entries.iter().chain(more).copied().collect();
        App::bind(settings(upstream, &all).unwrap()).map(drop).map_err(|error| error.to_string())
    };
    for told in [
        bind(&format!("https://{here}"), &[]).unwrap_err(),
        bind("https://api.weixin.qq.com", &[("upstream_address", &here)]).unwrap_err(),
    ] {
        assert!(told.contains("listens; set upstream_address") && told.contains("api2"), "{told}");
    }
    // A test's own WeChat on this machine is meant.
    let (own, _held) = no_one_listens();
    bind(&own, &[]).unwrap();
    bind("https://api.weixin.qq.com", &[("upstream_address", "192.0.2.1")]).unwrap();
}

#[test]
fn settings_that_cannot_work_are_told_with_their_remedy() {
    let told =
        |upstream: &str, more: &[(&'static str, &str)]| settings(upstream, more).unwrap_err().to_string();
    let wechat = "https://api.weixin.qq.com";
    for (told, parts) in [
        (told(wechat, &[("tls_listen", "127.0.0.1:0")]), ["there is no ca_dir", "`wechat-sidecar ca`"]),
        (
            told(wechat, &[("ca_dir", "/nonexistent")]),
            ["cannot be read", "`wechat-sidecar ca --dir /nonexistent`"],
        ),
        (told(wechat, &[("upstream_hosts", "*.qq.com")]), ["wildcard", "gateway.example.com"]),
        (told(wechat, &[("upstream_address", "api2.weixin.qq.com")]), ["not an IP address", "203.0.113.7"]),
        (told("https://192.0.2.1", &[("upstream_address", "192.0.2.2")]), ["an address itself", "leave"]),
        (told("http://localhost", &[("upstream_address", "192.0.2.2")]), ["in clear", "https://"]),
    ] {
        assert!(told.contains("There is 1 problem"), "{told}");
        for part in parts {
            assert!(told.contains(part), "no {part:?} in {told}");
        }
    }
    let ca = tempfile::tempdir().unwrap();
    ca::make(ca.path(), &Hosts::default()).unwrap();
    let dir = ("ca_dir", ca.path().to_str().unwrap());
    let beyond = told(wechat, &[dir, ("upstream_hosts", "gateway.example.com")]);
    assert!(beyond.contains("not good for gateway.example.com"), "{beyond}");
    let config = settings(wechat, &[dir, ("tls_listen", "0.0.0.0:0")]).unwrap();
    assert!(
        config.warnings.iter().any(|warning| warning.starts_with("tls_listen = ")),
        "{:?}",
        config.warnings
    );
    assert!(config.authority.is_some());
}
