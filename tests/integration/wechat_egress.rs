//! Token fetches through an egress proxy, and nothing else through it.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::ffi::OsString;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::rig::tls::Authority;
use crate::wechat_rig::{APPID, App, SEND, Sidecar, Wechat, until};

/// `Basic` of `me:p@ss`.
const LOGIN: &str = "proxy-authorization: Basic bWU6cEBzcw==";

/// A CONNECT proxy of a few lines.
struct Proxy {
    port: u16,
    /// The heads it was sent.
    heads: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Proxy {
    /// One that tunnels, if the head has these words in it.
    async fn start(wanted: &'static str, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, tls) = (Arc::clone(&seen), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => tunnel(stream, wanted, &seen).await,
                        Some(tls) => match TlsAcceptor::from(tls).accept(stream).await {
                            Ok(stream) => tunnel(stream, wanted, &seen).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { port, heads, serving }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    wanted: &str,
    seen: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    seen.lock().unwrap().push(head.clone());
    let target = head.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    if !head.to_ascii_lowercase().contains(&wanted.to_ascii_lowercase()) {
        let refused = b"HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(refused).await.ok()?;
        return None;
    }
    let mut wechat = TcpStream::connect(target).await.ok()?;
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
    copy_bidirectional(&mut stream, &mut wechat).await.ok()?;
    Some(())
}

/// A sidecar whose fetches go through this proxy.
fn sidecar(wechat: &Wechat, proxy: &str, more: &[&str]) -> (Sidecar, App) {
    let mut env = wechat.env();
    env.push(("WECHAT_SIDECAR_TOKEN_PROXY".into(), proxy.into()));
    let side = Sidecar::start(&wechat.settings(more), &env);
    let app = App::new(side.addresses);
    (side, app)
}

#[tokio::test]
async fn token_fetches_go_through_the_proxy_end_to_end_and_calls_do_not() {
    let wechat = Wechat::tls().await;
    for endpoint in ["stable_token", "token"] {
        let proxy = Proxy::start(LOGIN, None).await;
        let url = format!("http://me:p%40ss@127.0.0.1:{}", proxy.port);
        let (_side, app) = sidecar(&wechat, &url, &["--token-endpoint", endpoint]);
        app.until_ready().await;
        for _ in 0..5 {
            app.post(SEND, "{}").await.assert_ok();
        }
        wechat.sim.expire_now(APPID);
        assert_eq!(app.post(SEND, "{}").await.assert_ok().attempts(), Some("2"));
        let upstream = wechat.sim.tls_base_url().unwrap().replace("https://", "CONNECT ");
        let heads = proxy.heads();
        assert_eq!(heads.len(), 2, "a fetch each, and no call: {heads:?}");
        for head in heads {
            assert!(head.starts_with(&format!("{upstream} HTTP/1.1\r\n")), "{head}");
        }
    }
}

#[tokio::test]
async fn a_proxy_may_itself_speak_tls() {
    let wechat = Wechat::tls().await;
    let authority = Authority::new();
    let proxy = Proxy::start("", Some(authority.server("localhost"))).await;
    let mut roots = tempfile::NamedTempFile::new().unwrap();
    let args = wechat.settings(&[]);
    let ca = args.iter().position(|arg| arg == "--upstream-ca-file").unwrap() + 1;
    let both = format!("{}{}", std::fs::read_to_string(&args[ca]).unwrap(), authority.pem());
    std::io::Write::write_all(&mut roots, both.as_bytes()).unwrap();
    let mut args = args;
    args[ca] = OsString::from(roots.path());
    let mut env = wechat.env();
    let url = format!("https://localhost:{}", proxy.port);
    env.push(("WECHAT_SIDECAR_TOKEN_PROXY".into(), url.into()));
    let side = Sidecar::start(&args, &env);
    let app = App::new(side.addresses);
    app.until_ready().await;
    app.post(SEND, "{}").await.assert_ok();
    assert_eq!(proxy.heads().len(), 1);
}

#[tokio::test]
async fn a_proxy_that_is_not_there_or_does_not_let_us_through_is_named_without_its_password() {
    let wechat = Wechat::tls().await;
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let refusing = Proxy::start(LOGIN, None).await;
    for (port, words) in [(closed, "refused"), (refusing.port, "authorization required")] {
        let (_side, app) = sidecar(&wechat, &format!("http://me:hunter2@127.0.0.1:{port}"), &[]);
        let mut told = String::new();
        until("it says what is wrong", async || {
            let ready = app.admin("/readyz").await.json();
            told = ready["accounts"][0]["problem"].as_str().unwrap_or_default().to_owned();
            !told.is_empty()
        })
        .await;
        let way = format!("through token_proxy http://127.0.0.1:{port}");
        assert!(told.contains(&way) && told.contains(words) && told.contains("check token_proxy"), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
    assert_eq!(wechat.sim.counts().all_fetches(), 0, "nothing goes around it");
}
