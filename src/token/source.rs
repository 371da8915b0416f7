//! How a token is fetched, within which quotas, and which errors are final: [`TokenSource`], WeChat's two endpoints,
//! and two sources for those who are not to fetch: [`CentralSource`] and [`FollowerSource`].
//!
//! [`StableSource`] is the default: in normal mode it hands everyone who asks the same token until its last five
//! minutes, so replicas that know nothing of each other stay correct. [`ClassicSource`] voids the last token with
//! every fetch. Neither ever forces a refresh by itself: that is 20 a day, and an operator's act.
//!
//! SECURITY: both send the AppSecret, one of them in the query. What that asks of the way out is in `client`.

pub mod central;

mod client;
mod egress;
mod errcode;
mod follower;
mod reply;
mod secret;
#[cfg(test)]
mod tests;

pub use central::CentralSource;
pub use egress::Egress;
pub use errcode::{Class, FetchError};
pub use follower::FollowerSource;
pub use reply::parse_reply;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::CONTENT_TYPE;
use serde::Serialize;
use zeroize::Zeroizing;

use secret::SecretSlot;

use super::Token;
use crate::credentials::encoded::PercentEncoded;
use crate::credentials::{AppId, Secret};
use crate::origin::Origin;
use crate::tls::ExtraRoots;
use client::{Client, Names, Way};

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
    /// The proxy that fetches go through, if one is named.
    pub proxy: Option<Egress>,
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
    /// The store that replicas agree by is out, so that each of them may be fetching now: the fetch must not void the
    /// token of the others, where that can be helped.
    pub alone: bool,
    /// A fetch is wanted for its own sake, by a person or because of another AppSecret: no token that someone fetched
    /// before will do.
    pub afresh: bool,
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
    /// How often it is asked whether there is another token by now, where asking costs nobody a fetch; a fifth more or
    /// less by chance.
    pub look_again: Option<Duration>,
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
    look_again: None,
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
    look_again: None,
};

/// The source that was configured.
pub enum Source {
    /// See [`StableSource`].
    Stable(StableSource),
    /// See [`ClassicSource`].
    Classic(ClassicSource),
    /// See [`CentralSource`].
    Central(CentralSource),
    /// See [`FollowerSource`].
    Follower(FollowerSource),
}

impl Source {
    /// WeChat, by the endpoint that `config` names.
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
    /// brings a token, and not before. `None` takes the proposal back. One that sends none has no use for it.
    pub fn propose_secret(&self, secret: Option<Secret>) {
        match self {
            Self::Stable(StableSource(asker)) | Self::Classic(ClassicSource(asker)) => {
                asker.secret.propose(secret)
            }
            Self::Central(_) | Self::Follower(_) => {}
        }
    }
}

impl TokenSource for Source {
    fn name(&self) -> &'static str {
        match self {
            Self::Stable(source) => source.name(),
            Self::Classic(source) => source.name(),
            Self::Central(source) => source.name(),
            Self::Follower(source) => source.name(),
        }
    }

    fn pace(&self) -> Pace {
        match self {
            Self::Stable(source) => source.pace(),
            Self::Classic(source) => source.pace(),
            Self::Central(source) => source.pace(),
            Self::Follower(source) => source.pace(),
        }
    }

    fn supplier(&self) -> Supplier {
        match self {
            Self::Stable(source) => source.supplier(),
            Self::Classic(source) => source.supplier(),
            Self::Central(source) => source.supplier(),
            Self::Follower(source) => source.supplier(),
        }
    }

    async fn fetch(&self, want: Want<'_>) -> Result<Token, FetchError> {
        match self {
            Self::Stable(source) => source.fetch(want).await,
            Self::Classic(source) => source.fetch(want).await,
            Self::Central(source) => source.fetch(want).await,
            Self::Follower(source) => source.fetch(want).await,
        }
    }
}

/// `POST /cgi-bin/stable_token` in normal mode. The secret travels in the body.
pub struct StableSource(Asker);

impl StableSource {
    /// # Errors
    /// A sentence, when no HTTP client can be built.
    pub fn new(config: &Config, appid: AppId, secret: Secret) -> Result<Self, String> {
        Ok(Self(Asker::new(config, appid, secret)?))
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
        self.0.stable(want.force, want.new_secret).await
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
pub struct ClassicSource(Asker);

impl ClassicSource {
    /// # Errors
    /// A sentence, when no HTTP client can be built.
    pub fn new(config: &Config, appid: AppId, secret: Secret) -> Result<Self, String> {
        Ok(Self(Asker::new(config, appid, secret)?))
    }
}

impl TokenSource for ClassicSource {
    fn name(&self) -> &'static str {
        "token"
    }

    fn pace(&self) -> Pace {
        CLASSIC
    }

    /// Every fetch voids the token before it, so there is nothing to force. One who is alone asks the other endpoint,
    /// whose tokens are apart from these and the same for all who ask (`wechat-api.md` 2): sixteen replicas that lost
    /// their store would void each other's tokens for as long as it is out.
    async fn fetch(&self, want: Want<'_>) -> Result<Token, FetchError> {
        if want.alone && !want.force {
            match self.0.stable(false, want.new_secret).await {
                // It may not be for this account.
                Err(refused) if refused.class != Class::Transient => {}
                outcome => return outcome,
            }
        }
        self.0.classic(want.new_secret).await
    }
}

/// What both of WeChat's endpoints share: the way there, and who asks.
struct Asker {
    client: Client,
    appid: AppId,
    secret: SecretSlot,
}

/// What messages about WeChat call things.
const WECHAT: Names = Names { who: "WeChat", setting: "upstream", roots: "upstream_ca_file" };

impl Asker {
    async fn stable(&self, force: bool, new_secret: bool) -> Result<Token, FetchError> {
        let secret = self.secret.get(new_secret);
        let question = Question {
            grant_type: "client_credential",
            appid: self.appid.as_str(),
            secret: secret.expose(),
            force_refresh: force,
        };
        // SECURITY: room enough that it never moves and leaves a copy; wiped when the request lets go of it.
        let mut body = Zeroizing::new(Vec::with_capacity(1024));
        serde_json::to_writer(&mut *body, &question)
            .map_err(|_| FetchError::transient("the token request could not be written"))?;
        let request = self
            .client
            .request(Method::POST, "/cgi-bin/stable_token")
            .header(CONTENT_TYPE, "application/json")
            .body(Bytes::from_owner(body));
        self.ask(request, &secret).await
    }

    async fn classic(&self, new_secret: bool) -> Result<Token, FetchError> {
        let secret = self.secret.get(new_secret);
        let target = Zeroizing::new(format!(
            "/cgi-bin/token?grant_type=client_credential&appid={}&secret={}",
            self.appid,
            PercentEncoded::of(secret.expose()).expose()
        ));
        self.ask(self.client.request(Method::GET, &target), &secret).await
    }

    fn new(config: &Config, appid: AppId, secret: Secret) -> Result<Self, String> {
        let client = Client::new(&Way {
            origin: &config.origin,
            roots: &config.roots,
            proxy: config.proxy.as_ref(),
            connect_timeout: config.connect_timeout,
            fetch_timeout: config.fetch_timeout,
            names: WECHAT,
        })?;
        Ok(Self { client, appid, secret: SecretSlot::new(secret) })
    }

    async fn ask(&self, request: reqwest::RequestBuilder, secret: &Secret) -> Result<Token, FetchError> {
        let reply = self.client.ask(request, secret).await?;
        let token = reply::parse_reply(reply.status, &reply.body, reply.asked_at, secret)?;
        self.secret.proved(secret);
        Ok(token)
    }
}
