//! What an operator can see: probes on a port of their own, so that they never shadow a path of WeChat's.
//!
//! - `/livez`: 200 while the process serves at all.
//! - `/readyz`: 200 when every account has a token that lives, else 503; JSON that names what is pending or failing
//!   and why. 503 as soon as a stop has begun, so that nothing new is sent here.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::sync::watch;

use crate::account::Account;
use crate::server::{self, Connection, Handler, Limits, Phase};

use std::net::SocketAddr;
use std::time::Duration;

/// Where probes are answered.
#[derive(Clone, Debug)]
pub struct Config {
    /// The admin port's address. Port 0 takes a free one.
    pub listen: SocketAddr,
}

/// What a probe may cost.
pub const LIMITS: Limits = Limits {
    max_head: 16 * 1024,
    idle_timeout: Duration::from_secs(10),
    head_timeout: server::HEAD_TIMEOUT,
    keep_alive: server::KEEP_ALIVE,
};

/// Answers the admin port.
pub struct Admin {
    accounts: Vec<Account>,
    phase: watch::Receiver<Phase>,
}

impl Admin {
    /// Probes for these accounts; `phase` is the proxy's, so that readiness ends when a stop begins.
    #[must_use]
    pub fn new(accounts: Vec<Account>, phase: watch::Receiver<Phase>) -> Self {
        Self { accounts, phase }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let stopping = *self.phase.borrow() >= Phase::Drain;
        let mut ready = !stopping;
        let mut accounts = Vec::new();
        for account in &self.accounts {
            let status = account.keeper().status();
            ready &= status.token.is_some();
            accounts.push(serde_json::json!({
                "appid": account.appid().as_str(),
                "ready": status.token.is_some(),
                "token": status.token.map(|(fingerprint, _)| fingerprint.to_string()),
                "life_left_seconds": status.token.map(|(_, left)| left.as_secs()),
                "problem": status.failure.map(|failure| failure.sentence),
                "next_fetch_in_seconds": status.next_attempt.map(|wait| wait.as_secs()),
            }));
        }
        let body = serde_json::json!({ "ready": ready, "stopping": stopping, "accounts": accounts });
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        reply(status, "application/json", format!("{body}\n"))
    }
}

impl Handler for Admin {
    type Body = Full<Bytes>;

    async fn handle(&self, request: Request<Incoming>, _connection: &Connection) -> Response<Full<Bytes>> {
        let text = "text/plain; charset=utf-8";
        match (request.uri().path(), request.method()) {
            ("/livez" | "/readyz", method) if method != Method::GET && method != Method::HEAD => {
                let mut refused = reply(StatusCode::METHOD_NOT_ALLOWED, text, "use GET\n".into());
                refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
                refused
            }
            ("/livez", _) => reply(StatusCode::OK, text, "ok\n".into()),
            ("/readyz", _) => self.ready(),
            _ => reply(
                StatusCode::NOT_FOUND,
                text,
                "this is wechat-sidecar's admin port: /livez, /readyz\n".into(),
            ),
        }
    }
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}
