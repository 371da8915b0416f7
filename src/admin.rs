//! What an operator, the app in the pod and other sidecars can see and ask for, on a port of its own so that it never
//! shadows a path of WeChat's. The admin port's front page: what there is, and the probes.
//!
//! - `/`: the [`page`] for people; `/status`: the same as JSON; `/metrics`: for Prometheus.
//! - `/livez`: 200 while the process serves at all.
//! - `/startupz`: 200 once every account has had a token.
//! - `/readyz`: 200 when every account has a token that lives, else 503; JSON that names what is pending or failing
//!   and why. 503 as soon as a stop was asked for, so that nothing new is sent here. `?account=APPID` asks about one.
//! - `GET /v1/token` and `POST /v1/token/refresh`: the central token server (`central`), for those with a key.
//! - `POST /refresh`: the passive refresh (`refresh`), for the app in the pod and for operators.
//! - `POST /quit`: a clean stop, where `quit_endpoint` allows it, and from this machine only.
//!
//! The `views` are open to all who reach the port. The rest acts or hands out a token: `guard` stands before it, [`keys`]
//! says who is let in.

mod central;
mod guard;
pub mod keys;
pub mod metrics;
pub mod page;
mod refresh;
pub mod status;
mod views;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::account::Account;
use crate::error::{Cause, Failure};
use crate::server::{self, Connection, Handler, Limits};
use crate::tls::ServerIdentity;
use crate::token::Fingerprint;
use crate::token::source::central::{REFRESH_PATH, TOKEN_PATH};

use guard::{Bucket, Callers};
use keys::Keys;
use status::Overview;
use views::Views;

/// Where it is and who is let in.
#[derive(Clone, Debug)]
pub struct Config {
    /// The admin port's address. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Names it goes by, beside its addresses and localhost.
    pub hosts: Vec<String>,
    /// With it, it speaks TLS.
    pub identity: Option<ServerIdentity>,
    /// With them, it is a central token server, for those who hold one.
    pub central_keys: Option<Keys>,
    /// Who may refresh from other machines, and by force.
    pub operator_keys: Option<Keys>,
    /// Whether `POST /quit` stops the process, for Jobs.
    pub quit: bool,
}

/// What a request may cost.
pub const LIMITS: Limits = Limits {
    max_head: 16 * 1024,
    idle_timeout: Duration::from_secs(10),
    head_timeout: server::HEAD_TIMEOUT,
    keep_alive: server::KEEP_ALIVE,
};

/// Where a Job asks for a stop.
const QUIT_PATH: &str = "/quit";

/// The largest body: a token has at most 4096 characters.
const MAX_BODY: usize = 8 * 1024;
/// The longest until it has come.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// The longest a request waits for a token or a fetch: less than the 10 s that a sidecar gives its central server.
const PATIENCE: Duration = Duration::from_secs(8);

/// Answers the admin port.
pub struct Admin {
    accounts: Vec<Account>,
    views: Views,
    /// Hears of a stop that was asked for here; `None` where that is not allowed.
    quit: Option<mpsc::UnboundedSender<()>>,
    hosts: Vec<String>,
    central: Option<Callers>,
    operators: Option<Callers>,
    /// What is left of passive refreshes, an account each.
    refreshes: Vec<Bucket>,
    /// The token that WeChat last held to although it was refused, and when; an account each.
    held: Vec<Cell<Option<(Fingerprint, Instant)>>>,
}

/// A whole reply.
type Reply = Response<Full<Bytes>>;

impl Admin {
    /// The admin port of these accounts, of which `overview` says how they stand.
    #[must_use]
    pub fn new(config: &Config, accounts: Vec<Account>, overview: Rc<Overview>) -> Self {
        let callers = |keys: &Option<Keys>, setting| keys.clone().map(|keys| Callers::new(keys, setting));
        Self {
            refreshes: accounts.iter().map(|_| refresh::budget()).collect(),
            held: accounts.iter().map(|_| Cell::new(None)).collect(),
            accounts,
            views: Views::new(overview),
            quit: None,
            hosts: config.hosts.clone(),
            central: callers(&config.central_keys, "central_keys_file"),
            operators: callers(&config.operator_keys, "operator_keys_file"),
        }
    }

    /// Lets `POST /quit` from this machine ask for a stop.
    #[must_use]
    pub fn with_quit(mut self, quit: Option<mpsc::UnboundedSender<()>>) -> Self {
        self.quit = quit;
        self
    }

    /// How often a wrong key came, where keys are asked for.
    fn wrong_keys(&self) -> Option<u64> {
        let wrong = [&self.central, &self.operators].into_iter().flatten().map(Callers::wrong);
        wrong.reduce(|one, other| one + other)
    }

    /// SECURITY: whoever may end the process must be on this machine.
    fn quit(&self, is_here: bool) -> Reply {
        let text = "text/plain; charset=utf-8";
        let Some(quit) = &self.quit else {
            return reply(StatusCode::NOT_FOUND, text, "set quit_endpoint = true to allow this\n");
        };
        if !is_here {
            return reply(StatusCode::FORBIDDEN, text, "only from this machine\n");
        }
        // Nobody listening any more means that a stop is under way.
        let _ = quit.send(());
        reply(StatusCode::ACCEPTED, text, "stopping\n")
    }

    /// The account a request is for: the one it names, else the default; and its place in the list.
    fn account(&self, appid: Option<&str>) -> Option<(usize, &Account)> {
        match appid {
            None => self.accounts.first().map(|account| (0, account)),
            Some(appid) => {
                self.accounts.iter().enumerate().find(|(_, account)| account.appid().as_str() == appid)
            }
        }
    }
}

impl Handler for Admin {
    type Body = Full<Bytes>;

    async fn handle(&self, request: Request<Incoming>, connection: &Connection) -> Reply {
        let text = "text/plain; charset=utf-8";
        let path = request.uri().path().to_owned();
        let (allow, view) = match &path[..] {
            path if views::PATHS.contains(&path) => ("GET, HEAD", true),
            TOKEN_PATH => ("GET", false),
            REFRESH_PATH | refresh::PATH | QUIT_PATH => ("POST", false),
            _ => {
                return reply(
                    StatusCode::NOT_FOUND,
                    text,
                    format!(
                        "this is wechat-sidecar's admin port: / for people, {}, POST {}, GET {TOKEN_PATH}, POST {REFRESH_PATH}\n",
                        views::PATHS[1..].join(", "),
                        refresh::PATH
                    ),
                );
            }
        };
        if !allow.split(", ").any(|method| method == request.method()) {
            let mut refused = if view {
                reply(StatusCode::METHOD_NOT_ALLOWED, text, "use GET\n")
            } else {
                failed(&Failure::new(
                    Cause::MethodNotAllowed,
                    format!(
                        "{path} does not take {}; nothing was done. Use {allow}",
                        shown(request.method())
                    ),
                ))
            };
            refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
            return refused;
        }
        let query = request.uri().query().unwrap_or_default();
        if view && let Some(view) = self.views.get(&path, query, self.wrong_keys()) {
            return view;
        }
        // SECURITY: everything from here on acts or hands out.
        let answered = match guard::no_web_page(&request, &self.hosts) {
            Err(failure) => Err(failure),
            Ok(()) => match &path[..] {
                TOKEN_PATH => self.hand_out(request, connection).await,
                REFRESH_PATH => self.refresh_for_another(request, connection).await,
                QUIT_PATH => Ok(self.quit(guard::is_here(&request, connection))),
                _ => self.refresh(request, connection).await,
            },
        };
        answered.unwrap_or_else(|failure| {
            tracing::debug!(cause = failure.cause.name(), %path, "{}", failure.message);
            failed(&failure)
        })
    }
}

fn shown(method: &Method) -> String {
    method.as_str().chars().take(20).collect()
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

fn failed(failure: &Failure) -> Reply {
    let mut reply = failure.reply().map(Full::new);
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if failure.cause == Cause::NoKey {
        reply.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    reply
}

/// What a request says, in its query and in its JSON body, each name once.
struct Asked(Map<String, Value>);

impl Asked {
    /// Reads a request's query and body, which may have these names in them.
    async fn read(request: Request<Incoming>, names: &[&str]) -> Result<Self, Failure> {
        let bad = |what: String| Failure::new(Cause::RequestBody, format!("{what}; nothing was done"));
        let query = request.uri().query().unwrap_or_default().to_owned();
        let mut fields = Map::new();
        let body = whole(request.into_body()).await?;
        if !body.trim_ascii().is_empty() {
            fields = serde_json::from_slice(&body).map_err(|_| {
                bad("the body is not a JSON object; send one, or nothing and the parameters in the query"
                    .to_owned())
            })?;
        }
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if fields.insert(name.to_string(), Value::from(value)).is_some() {
                return Err(bad("a name comes twice, in the query or the body; send it once".to_owned()));
            }
        }
        match fields.keys().find(|name| !names.contains(&name.as_str())) {
            Some(_) => Err(bad(format!(
                "there is a name that is not known here; send no others than {}",
                names.join(", ")
            ))),
            None => Ok(Self(fields)),
        }
    }

    /// Text under a name; empty is none.
    fn text(&self, name: &str) -> Result<Option<&str>, Failure> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(&text[..]).filter(|text| !text.is_empty())),
            Some(_) => Err(Failure::new(
                Cause::RequestBody,
                format!("{name} is not text; nothing was done. Write it in quotes"),
            )),
        }
    }

    /// Yes or no under a name; absent is no.
    fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
            Some(_) => Err(Failure::new(
                Cause::RequestBody,
                format!("{name} is neither true nor false; nothing was done. Write one of them"),
            )),
        }
    }
}

/// A body within bounds.
async fn whole(body: Incoming) -> Result<Bytes, Failure> {
    let too_large = || {
        Failure::new(
            Cause::BodyTooLarge,
            format!(
                "the body is larger than {MAX_BODY} bytes; nothing was done. Send just the names that are documented"
            ),
        )
    };
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_PATIENCE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Failure::new(
            Cause::RequestBody,
            "the body broke off or was not valid HTTP; nothing was done. Send it again",
        )),
        Err(_) => Err(Failure::new(
            Cause::RequestTimeout,
            format!("the body did not come within {BODY_PATIENCE:?}; nothing was done. Send it again"),
        )),
    }
}
