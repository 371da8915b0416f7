//! The rig: a simulated WeChat, the real sidecar in front of it on free ports, and an app that knows an address and
//! nothing else. Nothing here waits for a time to pass, only for a thing to happen, and no longer than [`PATIENCE`].

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wechat_sidecar::app::{Addresses, App as Served};
use wechat_sidecar::config::cli::{self, Invocation, Stop};
use wechat_sidecar::sim::{self, DEFAULT_APPID, DEFAULT_SECRET, Seen, Sim};

/// The account every rig has.
pub(crate) const APPID: &str = DEFAULT_APPID;
/// What its apps are given in place of a token.
pub(crate) const PLACEHOLDER: &str =
    "WECHAT-SIDECAR_wx0123456789abcdef_not-a-token_the-sidecar-puts-the-real-one-into-each-call";
/// A customer service message: the call that must never be sent twice.
pub(crate) const SEND: &str = "/cgi-bin/message/custom/send";
/// And its body.
pub(crate) const MESSAGE: &str = r#"{"touser":"oAAAA","msgtype":"text","text":{"content":"你好 hello"}}"#;
/// An upload of WeChat's.
pub(crate) const UPLOAD: &str = "/cgi-bin/media/upload?type=image";
/// What takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// WeChat, the sidecar and the app.
pub(crate) struct Rig {
    pub(crate) sim: Sim,
    pub(crate) app: App,
    /// Runs as long as the rig is there.
    _side: Sidecar,
}

impl Rig {
    /// Over clear text, ready to serve. `args` are further flags of the sidecar.
    pub(crate) async fn plain(args: &[&str]) -> Self {
        let rig = Self::unready(Wechat::plain().await, args).await;
        rig.app.until_ready().await;
        rig
    }

    /// Over TLS, under the simulation's own authority.
    pub(crate) async fn tls(args: &[&str]) -> Self {
        let rig = Self::unready(Wechat::tls().await, args).await;
        rig.app.until_ready().await;
        rig
    }

    /// In front of this WeChat, and perhaps without a token yet.
    pub(crate) async fn unready(wechat: Wechat, args: &[&str]) -> Self {
        let side = Sidecar::start(&wechat.settings(args), &wechat.env());
        let app = App::new(side.addresses);
        Self { sim: wechat.sim.clone(), app, _side: side }
    }

    /// The fetches so far.
    pub(crate) fn fetches(&self) -> u64 {
        self.sim.counts().all_fetches()
    }

    /// The calls WeChat saw, without token fetches.
    pub(crate) fn seen_calls(&self) -> Vec<Seen> {
        let is_fetch = |seen: &Seen| matches!(seen.path(), "/cgi-bin/token" | "/cgi-bin/stable_token");
        self.sim.seen().into_iter().filter(|seen| !is_fetch(seen)).collect()
    }

    /// The last of them.
    pub(crate) fn last_call(&self) -> Seen {
        self.seen_calls().pop().expect("WeChat saw no call")
    }

    /// Nothing reached WeChat that it should never see.
    pub(crate) fn assert_clean(&self) {
        let counts = self.sim.counts();
        assert_eq!(counts.placeholders, 0, "a placeholder reached WeChat");
        assert_eq!(counts.unknown_tokens, 0, "a token of the app's reached WeChat");
        assert_eq!(counts.duplicate_tokens, 0, "a call carried two tokens");
        assert_eq!(counts.chunked_refused, 0, "a call went out chunked");
        assert_eq!(counts.broken_off, 0, "a body broke off");
    }
}

/// A simulated WeChat and where its authority lies.
pub(crate) struct Wechat {
    pub(crate) sim: Sim,
    ca: Option<PathBuf>,
}

impl Wechat {
    pub(crate) async fn plain() -> Self {
        Self { sim: Sim::start(sim::Config::default()).await.unwrap(), ca: None }
    }

    pub(crate) async fn tls() -> Self {
        let plain = sim::Config::default();
        let config = sim::Config { tls_listen: Some(plain.listen), ..plain };
        let sim = Sim::start(config).await.unwrap();
        // One file a simulation, in the folder cargo gives to tests.
        let name = format!("ca-{}-{}.pem", std::process::id(), sim.tls_addr().unwrap().port());
        let ca = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&ca, sim.ca_pem().unwrap()).unwrap();
        Self { sim, ca: Some(ca) }
    }

    /// The flags of a sidecar in front of it.
    pub(crate) fn settings(&self, more: &[&str]) -> Vec<OsString> {
        let mut args = self.reach(&["--appid", APPID]);
        args.extend(more.iter().map(OsString::from));
        args
    }

    /// The same without an account.
    pub(crate) fn reach(&self, more: &[&str]) -> Vec<OsString> {
        let upstream = match &self.ca {
            Some(_) => self.sim.tls_base_url().unwrap(),
            None => self.sim.base_url(),
        };
        let mut args: Vec<OsString> = vec!["--upstream".into(), upstream.into()];
        if let Some(ca) = &self.ca {
            args.extend(["--upstream-ca-file".into(), ca.into()]);
        }
        args.extend(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"].map(OsString::from));
        args.extend(more.iter().map(OsString::from));
        args
    }

    /// The environment of a sidecar in front of it: the secret, and patience for a busy machine, which a flag beats.
    pub(crate) fn env(&self) -> Vec<(OsString, OsString)> {
        vec![
            ("WECHAT_SIDECAR_SECRET".into(), DEFAULT_SECRET.into()),
            ("WECHAT_SIDECAR_TOKEN_WAIT".into(), "20s".into()),
        ]
    }
}

impl Drop for Wechat {
    fn drop(&mut self) {
        if let Some(ca) = &self.ca {
            let _ = std::fs::remove_file(ca);
        }
    }
}

/// A sidecar in this process, with threads of its own. It stops when dropped.
pub(crate) struct Sidecar {
    pub(crate) addresses: Addresses,
    stop: oneshot::Sender<()>,
    running: JoinHandle<std::io::Result<()>>,
}

impl Sidecar {
    /// Started the way a user does it: flags and environment.
    pub(crate) fn start(args: &[OsString], env: &[(OsString, OsString)]) -> Self {
        let args = ["wechat-sidecar", "run"].map(OsString::from).into_iter().chain(args.iter().cloned());
        let config = match cli::parse(args, env.iter().cloned()) {
            Ok(Invocation::Run(config)) => *config,
            Ok(_) => panic!("not the settings of `run`"),
            Err(Stop::Told(text) | Stop::Refused(text)) => panic!("{text}"),
        };
        let served = Served::bind(config).unwrap();
        let addresses = served.addresses();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(served.run(async {
            // Also when the rig is dropped.
            let _ = stopped.await;
        }));
        Self { addresses, stop, running }
    }

    /// A clean stop, which is waited for.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        within("the sidecar stops", self.running).await.unwrap().unwrap();
    }
}

/// An app: it has the sidecar's address, and sometimes a token it was told.
#[derive(Clone)]
pub(crate) struct App {
    http: Client<HttpConnector, Full<Bytes>>,
    at: Addresses,
}

impl App {
    pub(crate) fn new(at: Addresses) -> Self {
        Self::with_pool(at, usize::MAX)
    }

    /// One that opens a connection for every call.
    pub(crate) fn without_pool(at: Addresses) -> Self {
        Self::with_pool(at, 0)
    }

    fn with_pool(at: Addresses, idle: usize) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_max_idle_per_host(idle).retry_canceled_requests(false);
        Self { http: builder.build_http(), at }
    }

    /// A request to this path and query, byte for byte.
    pub(crate) fn request(&self, method: Method, target: &str) -> http::request::Builder {
        let uri: Uri = format!("http://{}{target}", self.at.proxy).parse().unwrap();
        Request::builder().method(method).uri(uri)
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let what = request.uri().to_string();
        let exchange = async {
            let reply = self.http.request(request).await.unwrap_or_else(|e| panic!("{what}: {e:?}"));
            let (head, body) = reply.into_parts();
            let body = body.collect().await.unwrap_or_else(|e| panic!("{what}: {e:?}")).to_bytes();
            Answer { status: head.status.as_u16(), headers: head.headers, body }
        };
        within(&what, exchange).await
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.send(self.request(Method::GET, target).body(Full::default()).unwrap()).await
    }

    pub(crate) async fn post(&self, target: &str, body: impl Into<Bytes>) -> Answer {
        self.call(Method::POST, target, "application/json", body.into(), "-").await
    }

    /// A call with a name, by which the simulation counts how often it came.
    pub(crate) async fn call(
        &self,
        method: Method,
        target: &str,
        content_type: &str,
        body: Bytes,
        call_id: &str,
    ) -> Answer {
        let mut request = self.request(method, target).header("x-call-id", call_id);
        if !body.is_empty() {
            request = request.header("content-type", content_type);
        }
        self.send(request.body(Full::new(body)).unwrap()).await
    }

    /// The message of [`SEND`] under a name.
    pub(crate) async fn message(&self, call_id: &str) -> Answer {
        self.call(Method::POST, SEND, "application/json", MESSAGE.into(), call_id).await
    }

    /// An answer of the admin port.
    pub(crate) async fn admin(&self, path: &str) -> Answer {
        self.send(Request::get(self.admin_url(path)).body(Full::default()).unwrap()).await
    }

    pub(crate) fn admin_url(&self, path: &str) -> Uri {
        format!("http://{}{path}", self.at.admin).parse().unwrap()
    }

    pub(crate) async fn until_ready(&self) {
        until("the sidecar is ready", async || self.admin("/readyz").await.status == 200).await;
    }
}

/// What the app got.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = &self.body[..self.body.len().min(400)];
        write!(f, "{} {:?} {}", self.status, self.headers, String::from_utf8_lossy(body))
    }
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn errcode(&self) -> i64 {
        self.json()["errcode"].as_i64().unwrap_or(0)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// How often WeChat was sent the call, as far as the app is told.
    pub(crate) fn attempts(&self) -> Option<&str> {
        self.header("x-wechat-sidecar-attempts")
    }

    /// The cause, where it is an error of the sidecar's.
    pub(crate) fn ours(&self) -> Option<&str> {
        self.header("x-wechat-sidecar-error")
    }

    /// WeChat carried it out.
    #[track_caller]
    pub(crate) fn assert_ok(&self) -> &Self {
        assert_eq!((self.status, self.ours()), (200, None), "{self:?}");
        if self.body.first() == Some(&b'{') {
            assert_eq!(self.errcode(), 0, "{self:?}");
        }
        self
    }

    /// The sidecar has no token.
    #[track_caller]
    pub(crate) fn assert_no_token(&self) -> &Self {
        assert_eq!((self.status, self.ours(), self.errcode()), (503, Some("no-token"), -1), "{self:?}");
        let seconds: u64 = self.header("retry-after").expect("Retry-After").parse().unwrap();
        assert!(seconds >= 1, "{self:?}");
        self
    }
}

/// Polls until `done`.
pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// What never comes fails the test instead of hanging it.
pub(crate) async fn within<T>(what: &str, wanted: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, wanted).await {
        Ok(had) => had,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// Bytes that look like a file and do not repeat soon.
pub(crate) fn noise(length: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(length as u64);
    (0..length).map(|_| random.u8(..)).collect()
}

/// As the simulation writes it.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A multipart form with one file, and its content type.
pub(crate) fn multipart(file: &[u8]) -> (Bytes, &'static str) {
    let head = "--b0undary\r\nContent-Disposition: form-data; name=\"media\"; filename=\"a.jpg\"\r\n\
                Content-Type: image/jpeg\r\n\r\n";
    let body = [head.as_bytes(), file, b"\r\n--b0undary--\r\n"].concat();
    (body.into(), "multipart/form-data; boundary=b0undary")
}
