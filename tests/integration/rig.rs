//! What every test stands on: a [`Sidecar`], which is the real `App` on port 0, between a [`RawClient`] and a
//! [`RawUpstream`] that both speak bytes, and [`Tokens`], which issues TOKEN-1, TOKEN-2 and so on.
//!
//! No test depends on how fast the machine is: what is waited for has [`PATIENCE`], far more than it needs, and only
//! so that a defect fails a test instead of hanging it.

mod client;
pub(crate) mod faults;
pub(crate) mod tls;
mod upstream;

use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use wechat_sidecar::app::{Addresses, App};
use wechat_sidecar::config::{self, Config};
use wechat_sidecar::origin::Origin;

pub(crate) use client::{End, RawClient, Reply};
pub(crate) use upstream::{Gate, Idle, RawUpstream, Step, no_one_listens, say};

/// How long anything may take before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The account of every test.
pub(crate) const APPID: &str = "wx0123456789abcdef";
/// Its secret.
pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Milliseconds, for timeouts under test.
pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Waits for `future`, and fails the test when it takes longer than anything may.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} took longer than {PATIENCE:?}"),
    }
}

/// What a sidecar is to be like.
pub(crate) struct Setup {
    config: Config,
    _tokens: Option<Tokens>,
}

impl Setup {
    /// A sidecar for `upstream` (an origin), with one worker, the default limits, and tokens from `tokens`.
    pub(crate) fn new(upstream: &str, tokens: &Tokens) -> Self {
        Self::with_settings(upstream, tokens, &[])
    }

    /// The same with further settings, as a user writes them.
    pub(crate) fn with_settings(upstream: &str, tokens: &Tokens, more: &[(&'static str, &str)]) -> Self {
        let flags = [
            ("appid", APPID),
            ("upstream", upstream),
            ("listen", "127.0.0.1:0"),
            ("admin_listen", "127.0.0.1:0"),
            ("workers", "1"),
            ("token_wait", "10s"),
            // What the tests' apps write for a host, where it does not matter.
            ("listen_hosts", "a,b,x"),
        ];
        let flags = flags.iter().chain(more).map(|&(key, value)| (key, value.to_owned())).collect();
        let env = [("WECHAT_SIDECAR_SECRET".into(), SECRET.into())];
        let mut config = config::load(flags, env).unwrap_or_else(|problems| panic!("{problems}"));
        config.source.origin = tokens.origin.clone();
        Self { config, _tokens: None }
    }

    /// Changes anything else.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// This many worker threads.
    pub(crate) fn workers(self, workers: usize) -> Self {
        self.with(|config| config.server.workers = NonZeroUsize::new(workers).expect("at least one"))
    }

    /// Starts it, and waits until it has its first token and is at rest.
    pub(crate) async fn start(self) -> Sidecar {
        let app = App::bind(self.config).unwrap_or_else(|error| panic!("{error}"));
        let socket = app.socket().map(Path::to_owned);
        let Addresses { proxy, admin, .. } = app.addresses();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(app.run(async move { drop(stopped.await) }));
        let at_rest = async || {
            let reply = RawClient::connect(admin).await.call("GET /readyz HTTP/1.0\r\n\r\n").await;
            let ready: serde_json::Value = serde_json::from_slice(&reply.body).expect("readiness is JSON");
            reply.status == 200 && ready["accounts"][0]["next_fetch_in_seconds"].is_number()
        };
        within("the first token", async {
            while !at_rest().await {
                tokio::time::sleep(ms(2)).await;
            }
        })
        .await;
        Sidecar { proxy, admin, socket, stop: Some(stop), running: Some(running), _tokens: self._tokens }
    }
}

/// Starts a sidecar of any settings, and waits until its first account has a token.
pub(crate) async fn start(config: Config) -> Sidecar {
    Setup { config, _tokens: None }.start().await
}

/// The real `App`, running. Told to stop when it is dropped.
pub(crate) struct Sidecar {
    /// Where apps call.
    pub(crate) proxy: SocketAddr,
    /// Where operators look.
    pub(crate) admin: SocketAddr,
    /// Or where they call instead.
    pub(crate) socket: Option<PathBuf>,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<std::io::Result<()>>>,
    _tokens: Option<Tokens>,
}

impl Sidecar {
    /// One with the default limits, and tokens of its own.
    pub(crate) async fn before(upstream: &RawUpstream) -> Self {
        Self::configured(upstream, |_| {}).await
    }

    /// One with other settings, and tokens of its own.
    pub(crate) async fn configured(upstream: &RawUpstream, change: impl FnOnce(&mut Config)) -> Self {
        let tokens = Tokens::start().await;
        let mut setup = Setup::new(&upstream.origin(), &tokens).with(change);
        setup._tokens = Some(tokens);
        setup.start().await
    }

    /// One with these settings, and tokens of its own.
    pub(crate) async fn set(upstream: &RawUpstream, more: &[(&'static str, &str)]) -> Self {
        let tokens = Tokens::start().await;
        let mut setup = Setup::with_settings(&upstream.origin(), &tokens, more);
        setup._tokens = Some(tokens);
        setup.start().await
    }

    /// A new connection of an app.
    pub(crate) async fn connect(&self) -> RawClient {
        RawClient::connect(self.proxy).await
    }

    /// One request on a connection of its own, and its reply.
    pub(crate) async fn call(&self, request: impl AsRef<[u8]>) -> Reply {
        let mut client = self.connect().await;
        client.call(request).await
    }

    /// Stops it as SIGTERM would, and waits until it has.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        let running = self.running.take().expect("it is stopped once");
        within("the stop", running).await.expect("it does not panic").expect("a clean stop");
    }
}

/// WeChat's `stable_token`, on a port of its own so that it does not disturb the upstream's script.
pub(crate) struct Tokens {
    origin: Origin,
    fetches: Arc<AtomicUsize>,
    same: Arc<AtomicBool>,
    gate: Arc<Mutex<Option<Gate>>>,
    serving: JoinHandle<()>,
}

impl Tokens {
    /// Issues TOKEN-1 first, then TOKEN-2 and so on, each for two hours.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (fetches, same) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let gate = Arc::new(Mutex::new(None::<Gate>));
        let (counted, keep, closed) = (Arc::clone(&fetches), Arc::clone(&same), Arc::clone(&gate));
        let serving = tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { continue };
                let n = counted.fetch_add(1, Ordering::SeqCst) + 1;
                let n = if keep.load(Ordering::SeqCst) { 1 } else { n };
                let gate = closed.lock().expect("no panic").clone();
                tokio::spawn(async move {
                    if let Some(gate) = gate {
                        gate.pass().await;
                    }
                    let mut request = Vec::new();
                    // The body is the last thing sent and ends with its brace.
                    while !request.ends_with(b"}") {
                        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let body = format!(r#"{{"access_token":"TOKEN-{n}","expires_in":7200}}"#);
                    let reply = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    let _ = stream.write_all(reply.as_bytes()).await;
                });
            }
        });
        let origin = Origin::parse(&format!("http://{address}")).expect("an origin");
        Self { origin, fetches, same, gate, serving }
    }

    /// Where it is.
    pub(crate) fn origin(&self) -> Origin {
        self.origin.clone()
    }

    /// How often it was asked.
    pub(crate) fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    /// Waits until it was asked so often.
    pub(crate) async fn until_asked(&self, times: usize) {
        within("a fetch", async {
            while self.fetches() < times {
                tokio::time::sleep(ms(1)).await;
            }
        })
        .await;
    }

    /// From now on it answers only once this gate is open.
    pub(crate) fn wait_for(&self, gate: &Gate) {
        *self.gate.lock().expect("no panic") = Some(gate.clone());
    }

    /// From now on it issues TOKEN-1 and no other.
    pub(crate) fn hold_to_the_first(&self) {
        self.same.store(true, Ordering::SeqCst);
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
