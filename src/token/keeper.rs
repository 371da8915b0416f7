//! When a token is refreshed, and who waits: [`TokenKeeper`], what everyone holds, and [`Worker`], the one writer.
//!
//! The worker walks one line, over and over ([`Worker::run`], then `renew`); the keeper reads what it
//! published, through a `watch`, and asks it when WeChat refuses a token. Nobody else fetches, so a thousand
//! refusals are one fetch; everyone names the token that was refused, so that late ones get the new token and no
//! fetch at all.
//!
//! A live token is served through every failure, a dead one never.

mod pacing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::source::{Class, FetchError, Pace, TokenSource};
use super::store::{StoreError, TokenStore};
use super::{Fingerprint, Token};
use crate::credentials::AppId;
use pacing::{Backoff, Budget, Refusals, due};

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
    Operator,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Startup => f.write_str("startup"),
            Self::Ahead => f.write_str("ahead of its end"),
            Self::Reject { refused, refusal } => {
                write!(f, "{} was refused with {}", refused.fingerprint(), refusal.errcode)
            }
            Self::SecretChange => f.write_str("the secret changed"),
            Self::Operator => f.write_str("an operator asked"),
        }
    }
}

/// What WeChat said of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 40001, 40014 or 42001.
    pub errcode: i64,
    /// Whether a new token did not help the last call of this kind. Such a refusal says little about the token, and
    /// waits for the breaker; so does any other of a token that WeChat has not taken since it came or was last
    /// refused. The rest is news, and has its fetch at once, within the budget.
    pub chronic: bool,
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
}

/// One account's token, as everyone but the worker sees it. Cheap to clone; on any thread.
#[derive(Clone)]
pub struct TokenKeeper {
    appid: AppId,
    state: watch::Receiver<State>,
    asks: mpsc::Sender<Ask>,
}

/// Tokens that were replaced and are remembered: WeChat takes the last one for five more minutes, and may speak of
/// those before it.
const REMEMBERED: usize = 8;

/// What the worker publishes.
struct State {
    token: Option<Token>,
    /// Those before it, the latest last.
    replaced: Vec<Token>,
    failure: Option<FetchError>,
    /// A round is under way, or due at once.
    busy: bool,
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

    /// Whether there is nothing to wait for: a token that lives, or a worker that backs off. A dead token without a
    /// failure is one whose renewal is due at once.
    fn has_settled(&self) -> bool {
        self.live_token().is_some() || (self.failure.is_some() && !self.busy)
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
            replaced: Vec::new(),
            failure: None,
            busy: true,
            next_at: Instant::now(),
            rounds: 0,
            fetches: 0,
            failures: 0,
            foreign_rotations: 0,
        });
        let (asks, asked) = mpsc::channel(QUEUE);
        let pace = source.pace();
        let worker = Worker {
            appid: appid.clone(),
            source,
            store,
            state,
            asks: asked,
            pace,
            next_reason: Reason::Startup,
            answer: Refresh::No("nothing was fetched yet".to_owned()),
            backoff: Backoff::default(),
            refusals: Refusals::new(&pace),
            governed: false,
            budget: Budget::new(&pace),
            fetched_at: None,
            store_is_out: false,
            store_failed: false,
            failure_told: None,
            foreign_told: None,
        };
        (Self { appid, state: read, asks }, worker)
    }

    /// The token to send, if there is one that lives. One `watch` borrow.
    #[must_use]
    pub fn current(&self) -> Option<Token> {
        self.state.borrow().live_token()
    }

    /// The token and those it replaced, for masking them where they would leak.
    #[must_use]
    pub fn known(&self) -> Vec<Token> {
        let state = self.state.borrow();
        state.replaced.iter().chain(&state.token).cloned().collect()
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

    /// Has one fetch made whatever the backoff says, within the budget: for a secret that changed and for a person.
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
        }
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

/// The one who fetches one account's token and writes it.
pub struct Worker<S: TokenSource, T: TokenStore> {
    appid: AppId,
    source: S,
    store: T,
    state: watch::Sender<State>,
    asks: mpsc::Receiver<Ask>,
    pace: Pace,
    /// Why the next round, if nobody asks for one before, will be.
    next_reason: Reason,
    /// What the last round comes to for those who waited for it.
    answer: Refresh,
    backoff: Backoff,
    refusals: Refusals,
    /// The round under way is one that the breaker on refusals counts.
    governed: bool,
    budget: Budget,
    fetched_at: Option<Instant>,
    /// The store has failed in this round: it is not waited for again before there is a token to save.
    store_is_out: bool,
    /// The store has failed, it was said, and it has not worked since.
    store_failed: bool,
    failure_told: Option<(Class, Option<i64>, Instant)>,
    foreign_told: Option<Instant>,
}

/// However short its life, a token is not fetched again sooner.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// The longest a store may take for one thing. The calls that wait for a token have about 2 s.
const STORE_PATIENCE: Duration = Duration::from_millis(500);
/// While another replica holds the lease it is most likely fetching: look again this often...
const LEASE_PAUSE: Duration = Duration::from_millis(100);
/// ...this many times, then fetch without it. A fetch is one request, so a second is enough.
const LEASE_TRIES: u32 = 10;
/// A refused token with more life than this did not end by itself: WeChat renews in the last five minutes.
const YOUNG: Duration = Duration::from_secs(300);
/// A failure that goes on is told again after this long.
const TELL_FAILURE_AGAIN: Duration = Duration::from_secs(600);
/// And someone else who fetches, after this long.
const TELL_FOREIGN_AGAIN: Duration = Duration::from_secs(3600);

impl<S: TokenSource, T: TokenStore> Worker<S, T> {
    /// Keeps the token alive until the last keeper is gone.
    pub async fn run(mut self) {
        self.introduce();
        while let Some((reason, ask)) = self.wake().await {
            let renewed = self.renew(&reason).await;
            self.settle(reason, renewed);
            if let Some(ask) = ask {
                // The others who wait for this round are in the queue, and answered when the worker comes to them.
                let _ = ask.reply.send(self.answer.clone());
            }
        }
    }

    /// Sleeps until a round is due, or someone asks for one that may be. `None` when nobody is left to fetch for.
    async fn wake(&mut self) -> Option<(Reason, Option<Ask>)> {
        loop {
            let next_at = self.state.borrow().next_at;
            tokio::select! {
                biased;
                () = sleep_until(next_at) => return Some((self.next_reason.clone(), None)),
                ask = self.asks.recv() => {
                    if let Some(ask) = self.answer(ask?) {
                        return Some((ask.reason.clone(), Some(ask)));
                    }
                }
            }
        }
    }

    /// One round: load → adopt? → lease → load again → adopt? → fetch → save → publish → release.
    async fn renew(&mut self, reason: &Reason) -> Result<Refresh, FetchError> {
        self.state.send_modify(|state| state.busy = true);
        self.store_is_out = false;
        if let Some(token) = self.adoptable(reason).await {
            return Ok(self.publish(token, reason, "adopted a token from the store"));
        }
        let lease = self.lease().await;
        if let Some(token) = self.adoptable(reason).await {
            return Ok(self.publish(token, reason, "adopted a token from the store"));
        }
        let token = self.fetch().await?;
        self.notice_foreign_fetch(&token, reason);
        self.save(&token).await;
        let brought = self.publish(token, reason, "fetched a token");
        drop(lease);
        Ok(brought)
    }

    /// Ends a round: when the next one is, and what those who waited are told.
    fn settle(&mut self, reason: Reason, renewed: Result<Refresh, FetchError>) {
        if std::mem::take(&mut self.governed) {
            self.refusals.end(matches!(renewed, Ok(Refresh::Same(_))));
        }
        let (wait, failure) = match renewed {
            Ok(brought) => {
                self.answer = brought;
                self.backoff = Backoff::default();
                self.next_reason = Reason::Ahead;
                (self.until_due(), None)
            }
            Err(failure) => {
                self.answer = Refresh::No(failure.sentence.clone());
                let wait = self.backoff.after(&failure);
                self.tell_failure(&failure, &reason, wait);
                // The want stays: it is tried again for the same reason until it succeeds.
                self.next_reason = reason;
                (wait, Some(failure))
            }
        };
        if failure.is_none() && self.failure_told.take().is_some() {
            tracing::info!(appid = %self.appid, "token fetches succeed again");
        }
        self.state.send_modify(|state| {
            state.busy = false;
            state.rounds += 1;
            state.failures += u64::from(failure.is_some());
            state.failure = failure;
            state.next_at = Instant::now() + wait;
        });
    }

    /// Answers an ask, or hands it back when only a round can.
    fn answer(&mut self, ask: Ask) -> Option<Ask> {
        // Its call is gone; it costs nothing.
        if ask.reply.is_closed() {
            return None;
        }
        let (current, rounds) = {
            let state = self.state.borrow();
            (state.live_token(), state.rounds)
        };
        let answer = match (current, &ask.reason) {
            (Some(token), Reason::Reject { refused, .. }) if token != *refused => Refresh::Another(token),
            // The round before may have been made with the secret before.
            (_, Reason::SecretChange) => return Some(ask),
            // A round has ended since it was made, which makes it one of those who waited for that round. Not so
            // where that round brought the very token that is refused here: it was published before it ended.
            _ if ask.rounds < rounds && !self.answer.brings_refused(&ask.reason) => self.answer.clone(),
            (_, Reason::Reject { refused, refusal }) => match self.why_not(refused, *refusal) {
                Some(why) => Refresh::No(why),
                None => {
                    let Refusal { errcode, chronic } = *refusal;
                    tracing::info!(appid = %self.appid, token = %refused.fingerprint(), errcode, "WeChat refused the token");
                    self.governed = chronic || !refused.was_accepted();
                    if self.governed {
                        self.refusals.begin(refused);
                    }
                    refused.forget_accepted();
                    return Some(ask);
                }
            },
            _ => return Some(ask),
        };
        // Gone in this very moment is no different from gone before.
        let _ = ask.reply.send(answer);
        None
    }

    /// Why a refusal of `refused` may not have a fetch now.
    fn why_not(&self, refused: &Token, refusal: Refusal) -> Option<String> {
        let state = self.state.borrow();
        if let Some(failure) = &state.failure {
            let next = state.next_at.saturating_duration_since(Instant::now()).as_secs_f64().ceil();
            return Some(format!("{}; next attempt in {next} s", failure.sentence));
        }
        if !refusal.chronic && refused.was_accepted() {
            return None;
        }
        let wait = self.refusals.wait(refused);
        (state.live_token().is_some() && !wait.is_zero()).then(|| {
            format!(
                "WeChat refuses what it issues: fetching did not help the last time, so the next fetch for a refusal is in {} s",
                wait.as_secs_f64().ceil()
            )
        })
    }

    /// The store's token, if it is better than ours: alive, ending later, and not the one that was refused.
    ///
    /// The later end is the newer token, as every token of one account lives equally long, and it is the one thing
    /// about a token that every store has to know.
    async fn adoptable(&mut self, reason: &Reason) -> Option<Token> {
        if self.store_is_out {
            return None;
        }
        let loaded = timeout(STORE_PATIENCE, self.store.load()).await;
        let token = self.of_store(loaded)??;
        let better = match &self.state.borrow().token {
            Some(ours) => token != *ours && token.expires_at() > ours.expires_at(),
            None => true,
        };
        let refused = matches!(reason, Reason::Reject { refused, .. } if token == *refused);
        (better && !refused && token.is_alive()).then_some(token)
    }

    /// The right to fetch, or none after a while: it only saves fetches, so a round goes on without it.
    async fn lease(&mut self) -> Option<T::Lease> {
        if self.store_is_out {
            return None;
        }
        for _ in 0..LEASE_TRIES {
            let leased = timeout(STORE_PATIENCE, self.store.lease()).await;
            if let Some(lease) = self.of_store(leased)? {
                return Some(lease);
            }
            sleep(LEASE_PAUSE).await;
        }
        tracing::info!(appid = %self.appid, store = self.store.name(), "another replica holds the lease; fetching without it");
        None
    }

    async fn fetch(&mut self) -> Result<Token, FetchError> {
        self.budget.take().map_err(|wait| {
            FetchError::held_back(
                format!(
                    "this sidecar's own budget of token fetches, which protects WeChat's quota, is used up; one fetch every {:?} from here on; tokens that live only seconds, or that are refused as soon as they are fetched, do this",
                    self.pace.refill
                ),
                wait,
            )
        })?;
        self.state.send_modify(|state| state.fetches += 1);
        self.fetched_at = Some(Instant::now());
        let token = self.source.fetch().await?;
        if !token.is_alive() {
            return Err(FetchError::transient("the token was dead before it arrived; it is asked again"));
        }
        Ok(token)
    }

    async fn save(&mut self, token: &Token) {
        let saved = timeout(STORE_PATIENCE, self.store.save(token)).await;
        if self.of_store(saved).is_some() && std::mem::take(&mut self.store_failed) {
            tracing::info!(appid = %self.appid, store = self.store.name(), "the token store works again");
        }
    }

    /// Makes `token` the one that is served, and says what that is to those who waited.
    fn publish(&mut self, token: Token, reason: &Reason, how: &str) -> Refresh {
        let before = self.state.borrow().token.clone();
        let same = before.as_ref() == Some(&token);
        if same && before.is_some_and(|before| before.was_accepted()) {
            token.mark_accepted();
        }
        tracing::info!(
            appid = %self.appid, token = %token.fingerprint(), life_s = token.remaining().as_secs(), %reason,
            "{how}{}", if same { ", the same again" } else { "" }
        );
        self.state.send_modify(|state| {
            let before = state.token.replace(token.clone());
            if let Some(before) = before.filter(|_| !same) {
                if state.replaced.len() == REMEMBERED {
                    state.replaced.remove(0);
                }
                state.replaced.push(before);
            }
        });
        if same { Refresh::Same(token) } else { Refresh::Another(token) }
    }

    /// From now until the token wants to be renewed.
    fn until_due(&self) -> Duration {
        let state = self.state.borrow();
        let due = state.token.as_ref().map_or_else(Instant::now, |token| due(token, &self.pace));
        let not_before = self.fetched_at.map(|at| at + LEAST_PAUSE);
        not_before.map_or(due, |least| due.max(least)).saturating_duration_since(Instant::now())
    }

    /// A store's outcome, or `None` and a word about it when it failed or took too long.
    fn of_store<R>(
        &mut self,
        outcome: Result<Result<R, StoreError>, tokio::time::error::Elapsed>,
    ) -> Option<R> {
        let why = match outcome {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {STORE_PATIENCE:?}"),
        };
        self.store_is_out = true;
        if !std::mem::replace(&mut self.store_failed, true) {
            tracing::warn!(
                appid = %self.appid, store = self.store.name(), error = why,
                "the token store fails; going on without it, each replica fetches for itself"
            );
        }
        None
    }

    fn introduce(&self) {
        let (appid, source, store) = (&self.appid, self.source.name(), self.store.name());
        if self.pace.voids_the_last {
            tracing::warn!(
                %appid, source, store,
                "every fetch from this endpoint voids the token before it: run one replica only, or give all of them one store"
            );
        } else {
            tracing::info!(%appid, source, store, "keeping the access token");
        }
    }

    /// Once on each change of what is wrong, and every ten minutes while it goes on: a log is for reading.
    fn tell_failure(&mut self, failure: &FetchError, reason: &Reason, wait: Duration) {
        let news = self.failure_told.is_none_or(|(class, errcode, told_at)| {
            (class, errcode) != (failure.class, failure.errcode) || told_at.elapsed() >= TELL_FAILURE_AGAIN
        });
        let (appid, class, errcode) = (&self.appid, failure.class.name(), failure.errcode);
        let (sentence, next_attempt_s) = (&failure.sentence, wait.as_secs());
        if news {
            self.failure_told = Some((failure.class, failure.errcode, Instant::now()));
            tracing::warn!(%appid, class, errcode, %reason, next_attempt_s, "no token was fetched: {sentence}");
        } else {
            tracing::debug!(%appid, class, errcode, %reason, next_attempt_s, "no token was fetched: {sentence}");
        }
    }

    /// A young token was refused and WeChat has another one: we did not make it, so someone else did.
    fn notice_foreign_fetch(&mut self, brought: &Token, reason: &Reason) {
        let Reason::Reject { refused, .. } = reason else { return };
        if brought == refused || refused.remaining() <= YOUNG {
            return;
        }
        let mut times = 0;
        self.state.send_modify(|state| {
            state.foreign_rotations += 1;
            times = state.foreign_rotations;
        });
        if self.foreign_told.is_none_or(|at| at.elapsed() >= TELL_FOREIGN_AGAIN) {
            self.foreign_told = Some(Instant::now());
            tracing::warn!(
                appid = %self.appid, token = %refused.fingerprint(), life_left_s = refused.remaining().as_secs(), times,
                "someone else is fetching tokens for this appid: a token with life left was refused and WeChat issued \
                 another. Likely causes: another program with this AppSecret (an old server, a cron job, a laptop, a test \
                 environment, an SDK that fetches by itself), a call of the classic /cgi-bin/token, a force_refresh, a \
                 reset of the AppSecret. Remedy: let everything fetch through this sidecar; if you cannot find it, reset \
                 the AppSecret and give the new one to the sidecar only"
            );
        }
    }
}
