//! What an operator can see: a port of its own, so that nothing here ever shadows a path of WeChat's.
//!
//! - `/`: the [`page`] for people; `/status`: the same as JSON; `/metrics`: for Prometheus.
//! - `/livez`: 200 while the process serves at all.
//! - `/startupz`: 200 once every account has had a token.
//! - `/readyz`: 200 when every account has a token that lives, else 503; JSON that names what is pending or failing
//!   and why. 503 as soon as a stop was asked for, so that nothing new is sent here. `?account=APPID` asks about one.
//! - `POST /quit`: a clean stop, where `quit_endpoint` allows it, and from this machine only.

pub mod metrics;
pub mod page;
pub mod status;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::admin::page::Page;
use crate::admin::status::Overview;
use crate::server::{Connection, Handler, Limits};

/// Where probes are answered.
#[derive(Clone, Debug)]
pub struct Config {
    /// The admin port's address. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether `POST /quit` stops the process, for Jobs.
    pub quit: bool,
}

/// What a probe may cost.
pub const LIMITS: Limits = Limits { max_head: 16 * 1024, idle_timeout: Duration::from_secs(10) };

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Answers the admin port.
pub struct Admin {
    overview: Rc<Overview>,
    page: Page,
    /// Hears of a stop that was asked for here; `None` where that is not allowed.
    quit: Option<mpsc::UnboundedSender<()>>,
}

impl Admin {
    /// What an operator can see of this.
    #[must_use]
    pub fn new(overview: Rc<Overview>) -> Self {
        Self { overview, page: Page::new(), quit: None }
    }

    /// Lets `POST /quit` from this machine ask for a stop.
    #[must_use]
    pub fn with_quit(mut self, quit: Option<mpsc::UnboundedSender<()>>) -> Self {
        self.quit = quit;
        self
    }

    fn get(&self, path: &str, query: &str) -> Option<Response<Full<Bytes>>> {
        Some(match path {
            "/" => self.page(),
            "/livez" => reply(StatusCode::OK, TEXT, "ok\n".into()),
            "/startupz" => self.probe(query, |started, _| started),
            "/readyz" => self.probe(query, |_, ready| ready),
            "/status" => reply(StatusCode::OK, JSON, json(&self.overview.snapshot())),
            "/metrics" => reply(StatusCode::OK, metrics::CONTENT_TYPE, metrics::exposition(&self.overview)),
            _ => return None,
        })
    }

    fn page(&self) -> Response<Full<Bytes>> {
        let mut page = reply(StatusCode::OK, "text/html; charset=utf-8", self.page.html.clone());
        if let Ok(policy) = HeaderValue::from_str(&self.page.policy) {
            page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
        }
        page.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        page
    }

    /// Whether all accounts, or the one that is asked about, have had a token, or have one.
    fn probe(&self, query: &str, wanted: impl Fn(bool, bool) -> bool) -> Response<Full<Bytes>> {
        let asked = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "account");
        let snapshot = self.overview.snapshot();
        let mut accounts = snapshot.accounts;
        if let Some((_, appid)) = &asked {
            accounts.retain(|account| account.appid == **appid);
            if accounts.is_empty() {
                let told = "there is no such account here; give an appid of the settings";
                return reply(StatusCode::NOT_FOUND, JSON, json(&serde_json::json!({ "error": told })));
            }
        }
        let started = accounts.iter().all(|account| account.last_refresh.is_some());
        let ready = !snapshot.stopping && accounts.iter().all(|account| account.ready);
        let shown: Vec<_> = accounts
            .into_iter()
            .map(|account| {
                serde_json::json!({
                    "appid": account.appid,
                    "ready": account.ready,
                    "token": account.token,
                    "life_left_seconds": account.life_left_seconds,
                    "problem": account.problem,
                    "next_fetch_in_seconds": account.next_fetch_in_seconds,
                })
            })
            .collect();
        let body = serde_json::json!({
            "ready": ready, "started": started, "stopping": snapshot.stopping, "accounts": shown,
        });
        let well = wanted(started, ready);
        let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        reply(status, JSON, json(&body))
    }

    /// SECURITY: whoever may end the process must be on this machine, and no web page that a browser here shows: that
    /// one would send an `Origin`.
    fn quit(&self, request: &Request<Incoming>, connection: &Connection) -> Response<Full<Bytes>> {
        let Some(quit) = &self.quit else {
            return reply(StatusCode::NOT_FOUND, TEXT, "set quit_endpoint = true to allow this\n".into());
        };
        let local = connection.peer().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
        if !local || request.headers().contains_key(header::ORIGIN) {
            return reply(
                StatusCode::FORBIDDEN,
                TEXT,
                "only from this machine, and not from a web page\n".into(),
            );
        }
        // Nobody listening any more means that a stop is under way.
        let _ = quit.send(());
        reply(StatusCode::ACCEPTED, TEXT, "stopping\n".into())
    }
}

impl Handler for Admin {
    type Body = Full<Bytes>;

    async fn handle(&self, request: Request<Incoming>, connection: &Connection) -> Response<Full<Bytes>> {
        let uri = request.uri();
        let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
        let answer = match uri.path() {
            "/quit" if request.method() == Method::POST => return self.quit(&request, connection),
            "/quit" => Some(wrong_method("POST")),
            path if is_get => self.get(path, uri.query().unwrap_or_default()),
            "/" | "/livez" | "/startupz" | "/readyz" | "/status" | "/metrics" => {
                Some(wrong_method("GET, HEAD"))
            }
            _ => None,
        };
        answer.unwrap_or_else(|| {
            let told = "this is wechat-sidecar's admin port: / for people, /status, /metrics, /livez, /startupz, /readyz\n";
            reply(StatusCode::NOT_FOUND, TEXT, told.into())
        })
    }
}

fn json(value: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text
}

fn wrong_method(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut refused = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, format!("use {allowed}\n"));
    refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    refused
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}
