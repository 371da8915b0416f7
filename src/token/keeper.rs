//! When a token is refreshed, and who waits: [`TokenKeeper`], what everyone holds, and [`Worker`], the one writer.
//!
//! The worker walks one line, over and over ([`Worker::run`]); the keeper reads what it published, through a `watch`,
//! and asks it when WeChat refuses a token. Nobody else fetches, so a thousand refusals are one fetch; everyone names
//! the token that was refused, so that late ones get the new token and no fetch at all.
//!
//! A live token is served through every failure, a dead one never.

mod counts;
mod pacing;
#[cfg(test)]
mod tests;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::source::{FetchError, Supplier, TokenSource};
use super::store::TokenStore;
use super::{Fingerprint, Token};
use crate::credentials::AppId;
use crate::metrics::trouble::Trouble;

pub use counts::Counted;
use counts::Counts;
pub use worker::Worker;

/// Why a fetch is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no token yet.
    Startup,
    /// The token nears its end.
    Ahead,
    /// WeChat refused this token.
    Reject {
        /// The token the call went out with.
        refused: Token,
        /// What WeChat said.
        refusal: Refusal,
    },
    /// There is another AppSecret.
    SecretChange,
    /// A person asked for it.
    Operator {
        /// Voiding whatever token there is.
        force: bool,
    },
    /// The store has another token: nothing is fetched.
    News,
    /// Whoever passes tokens on may have another by now.
    Look,
}

impl Reason {
    /// The token that was refused, if that is why.
    fn refused(&self) -> Option<&Token> {
        match self {
            Self::Reject { refused, .. } => Some(refused),
            Self::Startup
            | Self::Ahead
            | Self::SecretChange
            | Self::Operator { .. }
            | Self::News
            | Self::Look => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Startup => f.write_str("startup"),
            Self::Ahead => f.write_str("ahead of its end"),
            Self::Reject { refused, refusal } => {
                let refused = refused.fingerprint();
                match refusal.said {
                    Said::Errcode(errcode) => write!(f, "{refused} was refused with {errcode}"),
                    Said::Reported => write!(f, "{refused} was reported as refused"),
                    Said::Elsewhere => write!(f, "{refused} was refused at another replica"),
                }
            }
            Self::SecretChange => f.write_str("the secret changed"),
            Self::Operator { force: false } => f.write_str("an operator asked"),
            Self::Operator { force: true } => f.write_str("an operator forced it"),
            Self::News => f.write_str("another replica fetched"),
            Self::Look => f.write_str("looked for another"),
        }
    }
}

/// What WeChat said of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// How it came to us.
    pub said: Said,
    /// Whether a new token did not help the last call of this kind. Such a refusal says little about the token, and
    /// waits for the breaker; so does any other of a token that WeChat has not taken since it came or was last
    /// refused. The rest is news, and has its fetch at once, within the budget.
    pub chronic: bool,
}

/// How a refusal came to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// From WeChat: 40001, 40014 or 42001.
    Errcode(i64),
    /// From someone who called WeChat by another way than ours, and asks for a passive refresh.
    Reported,
    /// From another replica, through the store.
    Elsewhere,
}

/// What became of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// There is another token: go again with it.
    Another(Token),
    /// WeChat holds to the very token it refused. That can pass, so go again once.
    Same(Token),
    /// Do not go again; why, for the log.
    No(String),
}

impl Refresh {
    /// Whether it is, as another token, the one whose refusal asked for it.
    fn brings_refused(&self, reason: &Reason) -> bool {
        matches!((self, reason), (Self::Another(brought), Reason::Reject { refused, .. }) if brought == refused)
    }
}

/// There is no token that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// A sentence for whoever reads the app's log.
    pub message: String,
    /// When asking again may help, never less than a second.
    pub retry_after: Duration,
}

/// What a keeper is doing, for readiness, status and metrics.
#[derive(Clone, Debug)]
pub struct Status {
    /// Whose token it is.
    pub appid: AppId,
    /// The name and the life left of the token that is being served, if there is one.
    pub token: Option<(Fingerprint, Duration)>,
    /// What the last fetch failed with; `None` after one that did not.
    pub failure: Option<FetchError>,
    /// Time to the next attempt; `None` while one is under way.
    pub next_attempt: Option<Duration>,
    /// Attempts to fetch, ever.
    pub fetches: u64,
    /// How many of them failed.
    pub failures: u64,
    /// Young tokens that were voided by someone else who fetches for this appid.
    pub foreign_rotations: u64,
    /// What the worker has counted.
    pub counted: Counted,
    /// The source's name.
    pub source: &'static str,
    /// The store's name.
    pub store: &'static str,
    /// Where its tokens come from.
    pub supplier: Supplier,
}

/// One account's token, as everyone but the worker sees it. Cheap to clone; on any thread.
#[derive(Clone)]
pub struct TokenKeeper {
    appid: AppId,
    state: watch::Receiver<State>,
    asks: mpsc::Sender<Ask>,
    counts: Arc<Counts>,
    source: &'static str,
    store: &'static str,
    supplier: Supplier,
}

/// Tokens that were replaced and are remembered: WeChat takes the last one for five more minutes, and may speak of
/// those before it.
const REMEMBERED: usize = 8;

/// What the worker publishes.
struct State {
    token: Option<Token>,
    /// Those before it, the latest last, and it.
    known: Arc<[Token]>,
    failure: Option<FetchError>,
    /// A round is under way, or due at once.
    busy: bool,
    /// Another replica had the token refused, and the round under way brings the next one: calls wait for it.
    suspect: bool,
    /// When the next one is due, if none is.
    next_at: Instant,
    /// Rounds that have ended.
    rounds: u64,
    fetches: u64,
    failures: u64,
    foreign_rotations: u64,
}

impl State {
    fn live_token(&self) -> Option<Token> {
        self.token.clone().filter(Token::is_alive)
    }

    /// From now on it is this one.
    fn replace(&mut self, token: Token) {
        let before = self.token.replace(token.clone());
        let known = self.known.iter().filter(|known| **known != token);
        let forgotten = known.clone().count().saturating_sub(REMEMBERED);
        self.known = known.skip(forgotten).chain([&token]).cloned().collect();
        drop(before);
    }

    /// The token that a call may be sent with now.
    fn sendable(&self, now: Instant) -> Option<Token> {
        self.token.as_ref().filter(|token| token.is_alive_at(now) && !self.suspect).cloned()
    }

    /// Whether there is nothing to wait for: a token that lives, or a worker that backs off. A dead token without a
    /// failure is one whose renewal is due at once.
    fn has_settled(&self) -> bool {
        self.sendable(Instant::now()).is_some() || (self.failure.is_some() && !self.busy)
    }
}

/// A wish for a fetch. `rounds` is how many had ended when it was made: one that has ended since answers it.
struct Ask {
    reason: Reason,
    rounds: u64,
    reply: oneshot::Sender<Refresh>,
}

/// Asks that may queue while a fetch runs; more wait in their own calls, each no longer than it said.
const QUEUE: usize = 1024;

impl TokenKeeper {
    /// A keeper and the worker behind it, which has to be [run](Worker::run). The worker ends when the last clone of
    /// the keeper is gone.
    pub fn new<S: TokenSource, T: TokenStore>(appid: AppId, source: S, store: T) -> (Self, Worker<S, T>) {
        let (state, read) = watch::channel(State {
            token: None,
            known: Arc::default(),
            failure: None,
            busy: true,
            suspect: false,
            next_at: Instant::now(),
            rounds: 0,
            fetches: 0,
            failures: 0,
            foreign_rotations: 0,
        });
        let (asks, asked) = mpsc::channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let keeper = Self {
            appid: appid.clone(),
            state: read,
            asks,
            counts: Arc::clone(&counts),
            source: source.name(),
            store: store.name(),
            supplier: source.supplier(),
        };
        let worker = Worker::new(appid, source, store, state, asked, counts);
        (keeper, worker)
    }

    /// The token to send, if there is one that lives and that no other replica had refused just now. One `watch`
    /// borrow.
    #[must_use]
    pub fn current(&self) -> Option<Token> {
        self.current_at(Instant::now())
    }

    /// The same for whoever knows what time it is.
    #[must_use]
    pub fn current_at(&self, now: Instant) -> Option<Token> {
        self.state.borrow().sendable(now)
    }

    /// The token of this name, if it is the one that is served or one of those before it.
    #[must_use]
    pub fn find(&self, name: Fingerprint) -> Option<Token> {
        self.known().iter().find(|token| token.fingerprint() == name).cloned()
    }

    /// The token and those it replaced, itself the last, for masking them where they would leak.
    #[must_use]
    pub fn known(&self) -> Arc<[Token]> {
        Arc::clone(&self.state.borrow().known)
    }

    /// The token to send. Where there is none, waits for it no longer than `wait`, and only while a fetch is under
    /// way: a worker that backs off has nothing to wait for.
    ///
    /// # Errors
    /// Why there is none, and when there may be one.
    pub async fn token(&self, wait: Duration) -> Result<Token, Unavailable> {
        if let Some(token) = self.current() {
            return Ok(token);
        }
        let mut state = self.state.clone();
        let settled = timeout(wait, state.wait_for(State::has_settled)).await;
        let stopped = matches!(settled, Ok(Err(_))) || self.asks.is_closed();
        drop(settled);
        let state = self.state.borrow();
        state.live_token().ok_or_else(|| self.unavailable(&state, stopped))
    }

    /// WeChat refused `refused`: gets another token, or says why there is none, within `wait`.
    pub async fn refresh(&self, refused: &Token, refusal: Refusal, wait: Duration) -> Refresh {
        self.ask(Reason::Reject { refused: refused.clone(), refusal }, wait).await
    }

    /// Has one fetch made whatever the backoff says, within the budgets: for a secret that changed and for a person.
    pub async fn fetch_now(&self, reason: Reason, wait: Duration) -> Refresh {
        self.ask(reason, wait).await
    }

    /// What the keeper is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        let state = self.state.borrow();
        Status {
            appid: self.appid.clone(),
            token: state.live_token().map(|token| (token.fingerprint(), token.remaining())),
            failure: state.failure.clone(),
            next_attempt: (!state.busy).then(|| state.next_at.saturating_duration_since(Instant::now())),
            fetches: state.fetches,
            failures: state.failures,
            foreign_rotations: state.foreign_rotations,
            counted: self.counts.read(),
            source: self.source,
            store: self.store,
            supplier: self.supplier,
        }
    }

    /// Keeps an error for people to read.
    pub fn trouble(&self, kind: &'static str, sentence: &str) {
        self.counts.troubles.tell(kind, Some(&self.appid), sentence);
    }

    /// What went wrong of late, the newest last.
    #[must_use]
    pub fn troubles(&self) -> Vec<Trouble> {
        self.counts.troubles.recent()
    }

    /// Waits until the worker has published something this clone has not waited for. `false` when it has stopped.
    pub async fn changed(&mut self) -> bool {
        self.state.changed().await.is_ok()
    }

    async fn ask(&self, reason: Reason, wait: Duration) -> Refresh {
        let rounds = {
            let state = self.state.borrow();
            match (state.live_token(), &reason) {
                (Some(token), Reason::Reject { refused, .. }) if token != *refused => {
                    return Refresh::Another(token);
                }
                _ => state.rounds,
            }
        };
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.asks.send(Ask { reason, rounds, reply }).await.ok()?;
            answer.await.ok()
        };
        match timeout(wait, asked).await {
            Ok(Some(refresh)) => refresh,
            Ok(None) => Refresh::No("the token keeper has stopped".to_owned()),
            Err(_) => Refresh::No(format!("the token fetch is taking longer than {wait:?}")),
        }
    }

    fn unavailable(&self, state: &State, stopped: bool) -> Unavailable {
        let appid = &self.appid;
        let next = state.next_at.saturating_duration_since(Instant::now());
        let message = match &state.failure {
            _ if stopped => {
                format!("no access token for {appid}: its keeper has stopped; restart the sidecar")
            }
            Some(failure) if state.busy => {
                format!("no access token for {appid}: {}; it is being asked again now", failure.sentence)
            }
            Some(failure) => {
                let seconds = next.as_secs_f64().ceil();
                format!("no access token for {appid}: {}; next attempt in {seconds} s", failure.sentence)
            }
            None => format!("no access token for {appid} yet: the fetch is still under way"),
        };
        let retry_after = if state.busy { Duration::ZERO } else { next };
        Unavailable { message, retry_after: retry_after.max(Duration::from_secs(1)) }
    }
}
