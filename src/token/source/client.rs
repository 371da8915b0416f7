//! The way out that every source shares: one HTTP client to one origin, perhaps through the egress proxy, and what
//! goes wrong on it in our own words.
//!
//! SECURITY: what is sent is a credential, in the query, the body or a header. So an error is put into our own words,
//! without its URL; a redirect is not followed; no proxy is taken from the environment.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderMap, Method, StatusCode};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::egress::Egress;
use super::errcode::{self, FetchError};
use crate::credentials::Secret;
use crate::origin::{Origin, Reach};
use crate::tls::{self, ExtraRoots};

/// The longest reply that is read; a real one is under a kilobyte.
const MAX_REPLY: usize = 64 * 1024;

/// Where a client leads and how patient it is.
pub(super) struct Way<'a> {
    pub(super) origin: &'a Origin,
    pub(super) roots: &'a ExtraRoots,
    pub(super) proxy: Option<&'a Egress>,
    pub(super) connect_timeout: Duration,
    pub(super) fetch_timeout: Duration,
    pub(super) names: Names,
}

/// What messages call things.
#[derive(Clone, Copy)]
pub(super) struct Names {
    /// Who should answer.
    pub(super) who: &'static str,
    /// The setting that names the origin.
    pub(super) setting: &'static str,
    /// The one that names further roots.
    pub(super) roots: &'static str,
}

/// One HTTP client to one origin.
pub(super) struct Client {
    http: reqwest::Client,
    origin: Origin,
    proxy: Option<Egress>,
    connect_timeout: Duration,
    fetch_timeout: Duration,
    names: Names,
}

/// A reply, whole.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Zeroizing<Vec<u8>>,
    /// When the request was sent.
    pub(super) asked_at: Instant,
}

impl Client {
    pub(super) fn new(way: &Way<'_>) -> Result<Self, String> {
        let no_client = |error| format!("no HTTP client for token fetches can be built: {error}");
        let mut http = reqwest::Client::builder()
            .tls_backend_preconfigured(Arc::unwrap_or_clone(tls::client_config(way.roots)))
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .user_agent(concat!("wechat-sidecar/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(way.connect_timeout)
            .timeout(way.fetch_timeout)
            // Fetches are a minute or hours apart: a kept connection would be dead by then, and cost the attempt.
            .pool_max_idle_per_host(0);
        if let Some(egress) = way.proxy {
            http = http.proxy(egress.proxy().map_err(no_client)?);
        } else if let Reach::Address(address) = way.origin.reach() {
            http = http.resolve(way.origin.host(), address);
        }
        Ok(Self {
            http: http.build().map_err(no_client)?,
            origin: way.origin.clone(),
            proxy: way.proxy.cloned(),
            connect_timeout: way.connect_timeout,
            fetch_timeout: way.fetch_timeout,
            names: way.names,
        })
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(super) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let origin = &self.origin;
        // The proxy finds the host by its name, whatever address we would have used.
        if let (Reach::Address(_), None) = (origin.reach(), &self.proxy) {
            // A port in the URL would take the place of the address's.
            let scheme = if origin.is_tls() { "https" } else { "http" };
            let url = Zeroizing::new(format!("{scheme}://{}{path}", origin.host()));
            return self.http.request(method, url.as_str()).header(HOST, origin.host_header());
        }
        let url = Zeroizing::new(origin.url(path));
        self.http.request(method, url.as_str())
    }

    /// Sends it and reads the reply. `secret` is only looked for, to keep it out of the error.
    pub(super) async fn ask(
        &self,
        request: reqwest::RequestBuilder,
        secret: &Secret,
    ) -> Result<Reply, FetchError> {
        let asked_at = Instant::now();
        let mut reply = request.send().await.map_err(|error| self.unreached(error, secret))?;
        // SECURITY: room enough that it never moves and leaves a copy of the token.
        let mut body = Zeroizing::new(Vec::with_capacity(MAX_REPLY));
        while let Some(chunk) = reply.chunk().await.map_err(|error| self.unreached(error, secret))? {
            if body.len() + chunk.len() > MAX_REPLY {
                let Names { who, setting, .. } = self.names;
                return Err(FetchError::transient(format!(
                    "the reply to the token request is longer than {MAX_REPLY} bytes; something else than {who} answers at {}, check {setting}",
                    self.origin
                )));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Reply { status: reply.status(), headers: std::mem::take(reply.headers_mut()), body, asked_at })
    }

    /// What kept the request from being answered, in our own words.
    ///
    /// SECURITY: reqwest's own text begins with the URL, which may hold the secret, so only the innermost cause is
    /// quoted, and even that is searched for it.
    fn unreached(&self, error: reqwest::Error, secret: &Secret) -> FetchError {
        let Self { origin, names: Names { setting, roots, .. }, .. } = self;
        let error = error.without_url();
        let because = errcode::presentable(&innermost(&error), secret);
        let (way, check) = match &self.proxy {
            Some(proxy) => (format!(" through token_proxy {proxy}"), "token_proxy, DNS, the firewall"),
            None => (String::new(), "DNS, the firewall"),
        };
        FetchError::transient(match (error.is_connect(), error.is_timeout()) {
            (true, true) => format!(
                "no connection to {origin}{way} within {:?}; check {check} and the way out of this network",
                self.connect_timeout
            ),
            (true, false) if is_distrust(&error) => format!(
                "no trusted connection to {origin}{way} ({because}); check the clock and {setting}; if a company proxy or a server of your own signs with its own CA, name it in {roots}"
            ),
            (true, false) => {
                format!("no connection to {origin}{way} ({because}); check {check}, the clock and {setting}")
            }
            (false, true) => format!(
                "{origin} did not answer the token request{way} within {:?}; it is asked again shortly",
                self.fetch_timeout
            ),
            (false, false) => {
                format!("the token request to {origin}{way} broke off ({because}); it is asked again shortly")
            }
        })
    }
}

/// Whether the connection came about, but TLS on it did not.
fn is_distrust(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.is::<rustls::Error>() {
            return true;
        }
        // An io::Error made from another is no link of its own in the chain: its source is the other's.
        let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = held.map(|held| held as _).or_else(|| error.source());
    }
    false
}

fn innermost(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    let mut text = None;
    while let Some(error) = cause {
        text = Some(error.to_string());
        cause = error.source();
    }
    text.unwrap_or_else(|| "no further reason was given".to_owned())
}
