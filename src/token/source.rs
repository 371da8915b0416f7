//! How a token is fetched, within which quotas, and which errors are final: [`TokenSource`] and WeChat's two
//! endpoints.
//!
//! [`StableSource`] is the default: in normal mode it hands everyone who asks the same token until its last five
//! minutes, so replicas that know nothing of each other stay correct. [`ClassicSource`] voids the last token with
//! every fetch. Neither ever forces a refresh by itself: that is 20 a day, and an operator's act.
//!
//! SECURITY: both send the AppSecret, one of them in the query. So an error is put into our own words, without its
//! URL; a redirect is not followed; no proxy is taken from the environment.

mod errcode;
mod reply;
mod secret;
#[cfg(test)]
mod tests;

pub use errcode::{Class, FetchError};

use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{CONTENT_TYPE, HOST};
use serde::Serialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use secret::SecretSlot;

use super::{Token, percent_encode};
use crate::credentials::{AppId, Secret};
use crate::origin::{Origin, Reach};
use crate::tls::{self, ExtraRoots};

/// Which of WeChat's two endpoints issues the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /cgi-bin/stable_token`, normal mode: replicas that know nothing of each other get the same token.
    #[default]
    Stable,
    /// `GET /cgi-bin/token`: every fetch voids the last token after five minutes.
    Classic,
}

/// Where and how patiently tokens are fetched.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// WeChat.
    pub origin: Origin,
    /// Roots to trust beside Mozilla's.
    pub roots: ExtraRoots,
    /// The longest a connection may take.
    pub connect_timeout: Duration,
    /// The longest a whole fetch may take.
    pub fetch_timeout: Duration,
}

/// Whoever issues tokens. One fetch at a time is asked of it, and it must end by itself.
pub trait TokenSource: Send + Sync + 'static {
    /// Its name in logs and in the status.
    fn name(&self) -> &'static str;

    /// How often and how early it may be asked.
    fn pace(&self) -> Pace;

    /// Where its tokens come from.
    fn supplier(&self) -> Supplier {
        Supplier::WeChat
    }

    /// Asks once, for one token.
    fn fetch(&self, want: Want<'_>) -> impl Future<Output = Result<Token, FetchError>> + Send;
}

/// Where tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supplier {
    /// WeChat issues them: another token than the last is a new one.
    WeChat,
    /// A central token server passes them on: another token may be one it has had for long.
    Central,
    /// The store has them, and nobody here fetches.
    Store,
}

/// What a fetch is for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Want<'a> {
    /// The token that WeChat refused, if that is why.
    pub refused: Option<&'a Token>,
    /// WeChat had taken that token before, and the call was none of those that are refused whatever the token.
    pub news: bool,
    /// Void whatever token there is: `force_refresh`, of which WeChat grants 20 a day. Only ever a person's wish.
    pub force: bool,
    /// Prove the AppSecret that was [proposed](Source::propose_secret), if one was.
    pub new_secret: bool,
}

/// A source on which something else keeps a hand, such as the one that learns of a new secret.
impl<S: TokenSource> TokenSource for Arc<S> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn pace(&self) -> Pace {
        (**self).pace()
    }

    fn supplier(&self) -> Supplier {
        (**self).supplier()
    }

    fn fetch(&self, want: Want<'_>) -> impl Future<Output = Result<Token, FetchError>> + Send {
        (**self).fetch(want)
    }
}

/// How a source wants to be asked.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Life left when a token is renewed ahead of its end.
    pub ahead: Duration,
    /// By how much less, at most, so that replicas do not ask at the same moment.
    pub jitter: Duration,
    /// Fetches that may come in a row...
    pub burst: u32,
    /// ...after which they come this far apart. Together they keep any bug of ours within the daily quota.
    pub refill: Duration,
    /// The longest that a refusal waits for its fetch once fetching has not helped. While it waits, a token that
    /// someone else voids in that very time is not noticed; so it is short where fetching is cheap and harmless.
    pub refusal_wait: Duration,
    /// Whether a fetch voids the token before it, so that two who fetch for one appid fight.
    pub voids_the_last: bool,
}

/// `POST /cgi-bin/stable_token`: a new token from the last five minutes on, the same one before, so asking earlier
/// is useless. Quota 500,000 a day and 10,000 a minute (`wechat-api.md` 2); ours is at most 86,500 a day.
const STABLE: Pace = Pace {
    ahead: Duration::from_secs(300),
    jitter: Duration::from_secs(30),
    burst: 100,
    refill: Duration::from_secs(1),
    refusal_wait: Duration::from_secs(16),
    voids_the_last: false,
};

/// `GET /cgi-bin/token`: the old token works for five more minutes, so the fetch comes with at least as much life
/// left. Quota 2000 a day (`wechat-api.md` 1); ours is at most 1470.
const CLASSIC: Pace = Pace {
    ahead: Duration::from_secs(600),
    jitter: Duration::from_secs(60),
    burst: 30,
    refill: Duration::from_secs(60),
    refusal_wait: Duration::from_secs(300),
    voids_the_last: true,
};

/// WeChat, by the endpoint that was configured.
pub enum Source {
    /// See [`StableSource`].
    Stable(StableSource),
    /// See [`ClassicSource`].
    Classic(ClassicSource),
}

impl Source {
    /// The source `config` names.
    ///
    /// # Errors
    /// A sentence, when no HTTP client can be built.
    pub fn new(config: &Config, appid: AppId, secret: Secret) -> Result<Self, String> {
        Ok(match config.endpoint {
            Endpoint::Stable => Self::Stable(StableSource::new(config, appid, secret)?),
            Endpoint::Classic => Self::Classic(ClassicSource::new(config, appid, secret)?),
        })
    }

    /// Has the next fetch for [`Want::new_secret`] try this AppSecret. It takes the place of the one in force when it
    /// brings a token, and not before. `None` takes the proposal back.
    pub fn propose_secret(&self, secret: Option<Secret>) {
        let client = match self {
            Self::Stable(StableSource(client)) | Self::Classic(ClassicSource(client)) => client,
        };
        client.secret.propose(secret);
    }
}

impl TokenSource for Source {
    fn name(&self) -> &'static str {
        match self {
            Self::Stable(source) => source.name(),
            Self::Classic(source) => source.name(),
        }
    }

    fn pace(&self) -> Pace {
        match self {
            Self::Stable(source) => source.pace(),
            Self::Classic(source) => source.pace(),
        }
    }

    async fn fetch(&self, want: Want<'_>) -> Result<Token, FetchError> {
        match self {
            Self::Stable(source) => source.fetch(want).await,
            Self::Classic(source) => source.fetch(want).await,
        }
    }
}

/// `POST /cgi-bin/stable_token` in normal mode. The secret travels in the body.
pub struct StableSource(Client);

impl StableSource {
    /// # Errors
    /// A sentence, when no HTTP client can be built.
    pub fn new(config: &Config, appid: AppId, secret: Secret) -> Result<Self, String> {
        Ok(Self(Client::new(config, appid, secret)?))
    }
}

impl TokenSource for StableSource {
    fn name(&self) -> &'static str {
        "stable_token"
    }

    fn pace(&self) -> Pace {
        STABLE
    }

    async fn fetch(&self, want: Want<'_>) -> Result<Token, FetchError> {
        let secret = self.0.secret.get(want.new_secret);
        let question = Question {
            grant_type: "client_credential",
            appid: self.0.appid.as_str(),
            secret: secret.expose(),
            force_refresh: want.force,
        };
        // SECURITY: room enough that it never moves and leaves a copy; wiped when the request lets go of it.
        let mut body = Zeroizing::new(Vec::with_capacity(1024));
        serde_json::to_writer(&mut *body, &question)
            .map_err(|_| FetchError::transient("the token request could not be written"))?;
        let request = self
            .0
            .request(Method::POST, "/cgi-bin/stable_token")
            .header(CONTENT_TYPE, "application/json")
            .body(Bytes::from_owner(body));
        self.0.ask(request, &secret).await
    }
}

/// The body of a stable_token request, in the order of WeChat's own example.
#[derive(Serialize)]
struct Question<'a> {
    grant_type: &'a str,
    appid: &'a str,
    secret: &'a str,
    force_refresh: bool,
}

/// `GET /cgi-bin/token`. SECURITY: the secret travels in the query, there is no other way.
pub struct ClassicSource(Client);

impl ClassicSource {
    /// # Errors
    /// A sentence, when no HTTP client can be built.
    pub fn new(config: &Config, appid: AppId, secret: Secret) -> Result<Self, String> {
        Ok(Self(Client::new(config, appid, secret)?))
    }
}

impl TokenSource for ClassicSource {
    fn name(&self) -> &'static str {
        "token"
    }

    fn pace(&self) -> Pace {
        CLASSIC
    }

    /// Every fetch voids the token before it, so there is nothing to force.
    async fn fetch(&self, want: Want<'_>) -> Result<Token, FetchError> {
        let secret = self.0.secret.get(want.new_secret);
        let target = Zeroizing::new(format!(
            "/cgi-bin/token?grant_type=client_credential&appid={}&secret={}",
            self.0.appid,
            *Zeroizing::new(percent_encode(secret.expose()))
        ));
        self.0.ask(self.0.request(Method::GET, &target), &secret).await
    }
}

/// The longest reply that is read; a real one is under a kilobyte.
const MAX_REPLY: usize = 64 * 1024;

/// What both endpoints share: one HTTP client, who asks, and how a reply is read.
struct Client {
    http: reqwest::Client,
    origin: Origin,
    appid: AppId,
    secret: SecretSlot,
    connect_timeout: Duration,
    fetch_timeout: Duration,
}

impl Client {
    fn new(config: &Config, appid: AppId, secret: Secret) -> Result<Self, String> {
        let mut http = reqwest::Client::builder()
            .tls_backend_preconfigured(Arc::unwrap_or_clone(tls::client_config(&config.roots)))
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .user_agent(concat!("wechat-sidecar/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(config.connect_timeout)
            .timeout(config.fetch_timeout)
            // Fetches are hours apart: a kept connection would be dead by then, and cost the attempt.
            .pool_max_idle_per_host(0);
        if let Reach::Address(address) = config.origin.reach() {
            http = http.resolve(config.origin.host(), address);
        }
        let http = http
            .build()
            .map_err(|error| format!("no HTTP client for token fetches can be built: {error}"))?;
        Ok(Self {
            http,
            origin: config.origin.clone(),
            appid,
            secret: SecretSlot::new(secret),
            connect_timeout: config.connect_timeout,
            fetch_timeout: config.fetch_timeout,
        })
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let origin = &self.origin;
        if let Reach::Address(_) = origin.reach() {
            // A port in the URL would take the place of the address's.
            let scheme = if origin.is_tls() { "https" } else { "http" };
            let url = Zeroizing::new(format!("{scheme}://{}{path}", origin.host()));
            return self.http.request(method, url.as_str()).header(HOST, origin.host_header());
        }
        let url = Zeroizing::new(origin.url(path));
        self.http.request(method, url.as_str())
    }

    async fn ask(&self, request: reqwest::RequestBuilder, secret: &Secret) -> Result<Token, FetchError> {
        let asked_at = Instant::now();
        let mut reply = request.send().await.map_err(|error| self.unreached(error, secret))?;
        // SECURITY: room enough that it never moves and leaves a copy of the token.
        let mut body = Zeroizing::new(Vec::with_capacity(MAX_REPLY));
        while let Some(chunk) = reply.chunk().await.map_err(|error| self.unreached(error, secret))? {
            if body.len() + chunk.len() > MAX_REPLY {
                return Err(FetchError::transient(format!(
                    "the reply to the token request is longer than {MAX_REPLY} bytes; something else than WeChat answers at {}, check upstream",
                    self.origin
                )));
            }
            body.extend_from_slice(&chunk);
        }
        let token = reply::parse_reply(reply.status(), &body, asked_at, secret)?;
        self.secret.proved(secret);
        Ok(token)
    }

    /// What kept the request from being answered, in our own words.
    ///
    /// SECURITY: reqwest's own text begins with the URL, which may hold the secret, so only the innermost cause is
    /// quoted, and even that is searched for it.
    fn unreached(&self, error: reqwest::Error, secret: &Secret) -> FetchError {
        let origin = &self.origin;
        let error = error.without_url();
        let because = errcode::presentable(&innermost(&error), secret);
        FetchError::transient(match (error.is_connect(), error.is_timeout()) {
            (true, true) => format!(
                "no connection to {origin} within {:?}; check DNS, the firewall and the way out of this network",
                self.connect_timeout
            ),
            (true, false) if is_distrust(&error) => format!(
                "no trusted connection to {origin} ({because}); check the clock and upstream; if a company proxy or a test upstream signs with its own CA, name it in upstream_ca_file"
            ),
            (true, false) => format!(
                "no connection to {origin} ({because}); check DNS, the firewall, the clock and upstream"
            ),
            (false, true) => format!(
                "{origin} did not answer the token request within {:?}; it is asked again shortly",
                self.fetch_timeout
            ),
            (false, false) => {
                format!("the token request to {origin} broke off ({because}); it is asked again shortly")
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
