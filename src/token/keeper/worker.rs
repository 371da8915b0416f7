//! The one who fetches one account's token and writes it: [`Worker`].
//!
//! It walks one line, over and over: `wake → load → adopt? → lease → load again → adopt? → fetch → save → publish →
//! release → sleep` ([`Worker::run`], then `renew`). Between its rounds it listens to the store (`hear`): what another
//! replica fetched is adopted at once, and what another replica had refused is known here before a call finds out.
//!
//! The store decides which of two tokens is the newer one, since it alone sees every save; a store that lost the
//! newest, by a restart or a failover, is given it again.

use std::sync::Arc;
mod sharing;

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::counts::{Asked, Counts};
use super::pacing::{Backoff, Budget, ForceBudget, Refusals, due};
use super::{Ask, REMEMBERED, Reason, Refresh, Refusal, Said, State};
use crate::credentials::AppId;
use crate::token::source::{Class, FetchError, Pace, Supplier, TokenSource, Want};
use crate::token::store::{Kept, Standing, StoreError, TokenStore};
use crate::token::{Fingerprint, Token};

/// The one who fetches one account's token and writes it.
pub struct Worker<S: TokenSource, T: TokenStore> {
    appid: AppId,
    source: S,
    store: T,
    state: watch::Sender<State>,
    asks: mpsc::Receiver<Ask>,
    news: watch::Receiver<()>,
    counts: Arc<Counts>,
    pace: Pace,
    /// Why the next round, if nobody asks for one before, will be.
    next_reason: Reason,
    /// What the last round comes to for those who waited for it.
    answer: Refresh,
    /// It asked a central server for what it has, and told it of no refusal; so it answers none.
    unaware: bool,
    backoff: Backoff,
    refusals: Refusals,
    /// The round under way is one that the breaker on refusals counts.
    governed: bool,
    /// The refusal that the round under way is for says that the token is bad, not that the call was.
    is_news: bool,
    budget: Budget,
    forced: ForceBudget,
    fetched_at: Option<Instant>,
    /// The store has failed in this round: it is not waited for again before there is a token to save.
    store_is_out: bool,
    /// At what the store has failed, and when that was said, if it has not worked since.
    store_failed: Option<(Asked, Instant)>,
    /// The store may not have the token that is served.
    unsaved: bool,
    healed_at: Option<Instant>,
    /// Tokens that were refused here and replaced: a store that could not be written may still call one good.
    refused_before: Vec<Fingerprint>,
    /// When the last refusal came to us.
    rejected_at: Option<Instant>,
    failure_told: Option<(Class, Option<i64>, Instant)>,
    foreign_told: Option<Instant>,
}

/// However short its life, a token is not fetched again sooner.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// The longest a store may take for one thing. The calls that wait for a token have about 2 s.
const STORE_PATIENCE: Duration = Duration::from_millis(500);
/// While another replica holds the lease it is fetching: its token is news, and a lease that it left behind is found by
/// asking again this often, at first...
const LEASE_PAUSE: Duration = Duration::from_millis(100);
/// ...and at last, since a fetch that takes so long takes longer.
const LONGEST_LEASE_PAUSE: Duration = Duration::from_secs(1);
/// A lease that is held for longer than a fetch may take is not waited for...
const LEASE_PATIENCE: Duration = Duration::from_secs(12);
/// ...but while WeChat is slow it may go from hand to hand, each of them with a fetch of its own. Nobody knows of it
/// but by news that bring nothing new, so that long is waited in all.
const LEASES_PATIENCE: Duration = Duration::from_secs(60);
/// How long one who never fetches waits for the others to do it.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(5);
/// Where a fetch voids the token before it, one who cannot ask the store leaves a live token alone until its last
/// minutes: the store may be back by then, and a fetch by each replica would void those of the others.
const SOLO_AHEAD: Duration = Duration::from_secs(240);
/// By how much more, by chance, so that replicas without their store do not fetch at the same moment.
const SOLO_JITTER: Duration = Duration::from_secs(60);
/// And looks for the store this often.
const SOLO_PAUSE: Duration = Duration::from_secs(5);
/// Two replicas know of one fetch when it was by their own clocks, give or take the time a message takes.
const CLOCK_SLACK: Duration = Duration::from_secs(1);
/// Two fetches of one token are two when they are further apart than a message takes.
const MESSAGE_SLACK: Duration = Duration::from_millis(250);
/// A refused token with more life than this did not end by itself: WeChat renews in the last five minutes.
const YOUNG: Duration = Duration::from_secs(300);
/// A failure that goes on is told again after this long.
const TELL_FAILURE_AGAIN: Duration = Duration::from_secs(600);
/// And someone else who fetches, after this long.
const TELL_FOREIGN_AGAIN: Duration = Duration::from_secs(3600);

/// The one message about someone else who fetches.
const FOREIGN: &str = "someone else is fetching tokens for this appid: a token with life left was refused and WeChat \
    issued another. Likely causes: another program with this AppSecret (an old server, a cron job, a laptop, a test \
    environment, an SDK that fetches by itself), a call of the classic /cgi-bin/token, a force_refresh, a reset of the \
    AppSecret. Remedy: let everything fetch through this sidecar; if you cannot find it, reset the AppSecret and give \
    the new one to the sidecar only";

/// What wakes the worker.
enum Wake {
    /// A round is due, or someone asks for one.
    Round(Reason, Option<Ask>),
    /// The store may have something new.
    News,
}

/// What a round comes to when it does not fail.
enum Renewed {
    /// A token, new or the same.
    Brought(Refresh),
    /// The token lives long enough to try again after this long.
    Later(Duration),
}

/// What the store has to say.
enum Found {
    /// Nothing that we did not know.
    Nothing,
    /// A token that is to be served from now on.
    Better(Token),
    /// The token that we serve was refused at another replica.
    Refused { news: bool },
}

/// How it stands with the right to fetch.
enum Right<L> {
    /// To fetch, with the lease or without one: it only saves fetches.
    Fetch(Option<L>),
    /// The one who had it has fetched.
    Adopt(Token),
}

impl<S: TokenSource, T: TokenStore> Worker<S, T> {
    pub(super) fn new(
        appid: AppId,
        source: S,
        store: T,
        state: watch::Sender<State>,
        asks: mpsc::Receiver<Ask>,
        counts: Arc<Counts>,
    ) -> Self {
        let (pace, news) = (source.pace(), store.news());
        Self {
            appid,
            source,
            store,
            state,
            asks,
            news,
            counts,
            pace,
            next_reason: Reason::Startup,
            answer: Refresh::No("nothing was fetched yet".to_owned()),
            unaware: false,
            backoff: Backoff::default(),
            refusals: Refusals::new(&pace),
            governed: false,
            is_news: false,
            budget: Budget::new(&pace),
            forced: ForceBudget::default(),
            fetched_at: None,
            store_is_out: false,
            store_failed: None,
            unsaved: false,
            healed_at: None,
            refused_before: Vec::new(),
            rejected_at: None,
            failure_told: None,
            foreign_told: None,
        }
    }

    /// Keeps the token alive until the last keeper is gone.
    pub async fn run(mut self) {
        self.introduce();
        while let Some(wake) = self.wake().await {
            let (reason, ask) = match wake {
                Wake::Round(reason, ask) => (reason, ask),
                Wake::News => match self.hear().await {
                    Some(reason) => (reason, None),
                    None => continue,
                },
            };
            let renewed = self.renew(&reason).await;
            match (&reason, renewed) {
                (Reason::SecretChange | Reason::Operator { .. }, Err(failure)) => self.keep_on(&failure),
                (_, renewed) => self.settle(reason, renewed),
            }
            if let Some(ask) = ask {
                // The others who wait for this round are in the queue, and answered when the worker comes to them.
                let _ = ask.reply.send(self.answer.clone());
            }
        }
    }

    /// Sleeps until a round is due, someone asks for one that may be, or the store has news. `None` when nobody is
    /// left to fetch for.
    async fn wake(&mut self) -> Option<Wake> {
        loop {
            let next_at = self.state.borrow().next_at;
            tokio::select! {
                biased;
                () = sleep_until(next_at) => return Some(Wake::Round(self.next_reason.clone(), None)),
                ask = self.asks.recv() => {
                    if let Some(ask) = self.answer(ask?) {
                        return Some(Wake::Round(ask.reason.clone(), Some(ask)));
                    }
                }
                () = heard(&mut self.news) => return Some(Wake::News),
            }
        }
    }

    /// Adopts what another replica fetched, or says why a round is wanted.
    async fn hear(&mut self) -> Option<Reason> {
        self.store_is_out = false;
        match self.look(None).await {
            Found::Nothing => None,
            Found::Better(token) => {
                let adopted = self.adopt(token, &Reason::News);
                self.settle(Reason::News, Ok(adopted));
                None
            }
            Found::Refused { news } => {
                let refused = self.state.borrow().live_token()?;
                if news {
                    refused.mark_accepted();
                }
                let refusal = Refusal { said: Said::Elsewhere, chronic: !news };
                // What holds back our own refusals holds back those of others.
                self.why_not(&refused, refusal).is_none().then(|| self.reject(refused, refusal))
            }
        }
    }

    /// One round: load → adopt? → lease → load again → adopt? → fetch → save → publish → release.
    async fn renew(&mut self, reason: &Reason) -> Result<Renewed, FetchError> {
        let elsewhere =
            matches!(reason, Reason::Reject { refusal: Refusal { said: Said::Elsewhere, .. }, .. });
        self.state.send_modify(|state| {
            state.busy = true;
            // Not while fetches fail: what may be good after all is then better than nothing.
            state.suspect = elsewhere && state.failure.is_none();
        });
        self.store_is_out = false;
        if let Some(token) = self.adoptable(reason).await {
            return Ok(self.adopt(token, reason));
        }
        if let Some(wait) = self.can_wait_for_the_store(reason) {
            return Ok(Renewed::Later(wait));
        }
        let lease = match self.right(reason).await {
            Right::Fetch(lease) => lease,
            Right::Adopt(token) => return Ok(self.adopt(token, reason)),
        };
        if let Some(token) = self.adoptable(reason).await {
            return Ok(self.adopt(token, reason));
        }
        if self.source.supplier() != Supplier::Store {
            self.spread(reason).await;
        }
        let fetched = self.fetch(reason).await;
        let token = fetched.inspect_err(|error| self.counts.fetch(reason, Err(error)))?;
        if let Some(ours) = self.newer_than(&token, reason) {
            self.counts.fetch(reason, Ok(true));
            return Ok(Renewed::Brought(Refresh::Same(ours)));
        }
        self.notice_foreign_fetch(&token, reason);
        // The others first, since one token is for all; but nobody waits for a store that is out. What is asked for every
        // minute and is still the same is no news to the other replicas.
        let is_news = *reason != Reason::Look || self.state.borrow().token.as_ref() != Some(&token);
        let first = is_news && !self.store_is_out;
        if first {
            self.save(&token).await;
        }
        let brought = self.publish(token.clone(), reason, "fetched a token");
        if *reason != Reason::Look || matches!(brought, Refresh::Another(_)) {
            self.counts.refreshed(reason, false);
        }
        self.counts.fetch(reason, Ok(matches!(brought, Refresh::Same(_))));
        if is_news && !first {
            self.save(&token).await;
        }
        drop(lease);
        Ok(Renewed::Brought(brought))
    }

    fn adopt(&mut self, token: Token, reason: &Reason) -> Renewed {
        self.counts.refreshed(reason, true);
        Renewed::Brought(self.publish(token, reason, "adopted a token from the store"))
    }

    /// Ends a round: when the next one is, and what those who waited are told.
    fn settle(&mut self, reason: Reason, renewed: Result<Renewed, FetchError>) {
        self.is_news = false;
        self.unaware = self.source.supplier() == Supplier::Central && reason.refused().is_none();
        if std::mem::take(&mut self.governed) {
            self.refusals.end(matches!(renewed, Ok(Renewed::Brought(Refresh::Same(_)))));
            self.counts.held_back(self.refusals.closed_until());
        }
        let (wait, failure) = match renewed {
            Ok(Renewed::Brought(brought)) => {
                self.answer = brought;
                self.backoff = Backoff::default();
                let (wait, why) = self.until_due();
                self.next_reason = why;
                (wait, None)
            }
            Ok(Renewed::Later(wait)) => {
                // Nothing was tried: what was wrong before still is.
                self.state.send_modify(|state| {
                    (state.busy, state.suspect) = (false, false);
                    state.rounds += 1;
                    state.next_at = Instant::now() + wait;
                });
                return;
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
            (state.busy, state.suspect) = (false, false);
            state.rounds += 1;
            state.failures += u64::from(failure.is_some());
            state.failure = failure;
            state.next_at = Instant::now() + wait;
        });
    }

    /// Ends a round that was to prove a new secret or that a person asked for, and failed: everything else stays as it
    /// was. By itself nothing of it is tried again.
    fn keep_on(&mut self, failure: &FetchError) {
        self.answer = Refresh::No(failure.sentence.clone());
        self.state.send_modify(|state| {
            (state.busy, state.suspect) = (false, false);
            state.rounds += 1;
            state.failures += 1;
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
            (_, Reason::Operator { force: true }) => match self.forced.take() {
                Ok(()) => return Some(ask),
                Err(why) => Refresh::No(why),
            },
            // A round has ended since it was made, which makes it one of those who waited for that round. Not so
            // where that round brought the very token that is refused here: it was published before it ended.
            _ if ask.rounds < rounds && self.answers(&ask.reason) => self.answer.clone(),
            (_, Reason::Reject { refused, refusal }) => match self.why_not(refused, *refusal) {
                Some(why) => Refresh::No(why),
                None => {
                    self.reject(refused.clone(), *refusal);
                    return Some(ask);
                }
            },
            _ => return Some(ask),
        };
        // Gone in this very moment is no different from gone before.
        let _ = ask.reply.send(answer);
        None
    }

    /// Whether the last round is an answer to who waited for it.
    fn answers(&self, reason: &Reason) -> bool {
        let unheard = self.unaware && reason.refused().is_some();
        !unheard && !self.answer.brings_refused(reason)
    }

    /// A round begins because `refused` was.
    fn reject(&mut self, refused: Token, refusal: Refusal) -> Reason {
        let (appid, token) = (&self.appid, refused.fingerprint());
        match refusal.said {
            Said::Errcode(errcode) => tracing::info!(%appid, %token, errcode, "WeChat refused the token"),
            Said::Reported => tracing::info!(%appid, %token, "the token was reported as refused"),
            Said::Elsewhere => tracing::info!(%appid, %token, "WeChat refused the token at another replica"),
        }
        self.is_news = !refusal.chronic && refused.was_accepted();
        self.governed = !self.is_news;
        if self.governed {
            self.refusals.begin(&refused);
        }
        refused.forget_accepted();
        self.rejected_at = Some(Instant::now());
        Reason::Reject { refused, refusal }
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

    async fn fetch(&mut self, reason: &Reason) -> Result<Token, FetchError> {
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
        let force = matches!(reason, Reason::Operator { force: true });
        let (afresh, alone) = (wants_a_fetch(reason), self.store_is_out);
        let new_secret = *reason == Reason::SecretChange;
        let want = Want { refused: reason.refused(), news: self.is_news, force, alone, afresh, new_secret };
        let token = self.source.fetch(want).await?;
        if !token.is_alive() {
            return Err(FetchError::transient("the token was dead before it arrived; it is asked again"));
        }
        Ok(token)
    }

    /// Our token, if it is newer than the one that was brought and nobody refused it: a central server that was
    /// restarted, or is one of several, may know an older one. The newest fetch wins.
    fn newer_than(&self, brought: &Token, reason: &Reason) -> Option<Token> {
        let ours = self.state.borrow().live_token()?;
        let older = brought.fetched_at() + CLOCK_SLACK < ours.fetched_at();
        (older && *brought != ours && reason.refused() != Some(&ours)).then_some(ours)
    }

    /// Makes `token` the one that is served, and says what that is to those who waited.
    fn publish(&mut self, token: Token, reason: &Reason, how: &str) -> Refresh {
        let before = self.state.borrow().token.clone();
        let same = before.as_ref() == Some(&token);
        if let Some(refused) = reason.refused().filter(|refused| **refused != token) {
            if self.refused_before.len() == REMEMBERED {
                self.refused_before.remove(0);
            }
            self.refused_before.push(refused.fingerprint());
        }
        if same && before.is_some_and(|before| before.was_accepted()) {
            token.mark_accepted();
        }
        if same && *reason == Reason::Look {
            tracing::debug!(appid = %self.appid, token = %token.fingerprint(), "there is no other token");
        } else {
            tracing::info!(
                appid = %self.appid, token = %token.fingerprint(), life_s = token.remaining().as_secs(), %reason,
                "{how}{}", if same { ", the same again" } else { "" }
            );
        }
        self.state.send_modify(|state| state.replace(token.clone()));
        if same { Refresh::Same(token) } else { Refresh::Another(token) }
    }

    /// From now until the token wants to be renewed, or whoever passes it on to be asked for another.
    fn until_due(&self) -> (Duration, Reason) {
        let state = self.state.borrow();
        let due = state.token.as_ref().map_or_else(Instant::now, |token| due(token, &self.pace));
        let look =
            self.pace.look_again.map(|every| Instant::now() + every.mul_f64(0.8 + 0.4 * fastrand::f64()));
        let (at, why) = match look {
            Some(look) if look < due => (look, Reason::Look),
            _ => (due, Reason::Ahead),
        };
        let not_before = self.fetched_at.map(|at| at + LEAST_PAUSE);
        (not_before.map_or(at, |least| at.max(least)).saturating_duration_since(Instant::now()), why)
    }

    fn introduce(&self) {
        let (appid, source, store) = (&self.appid, self.source.name(), self.store.name());
        if self.pace.voids_the_last && store == "memory" {
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
        self.counts.troubles.tell("token", Some(appid), sentence);
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
        if brought == refused || refused.remaining() <= YOUNG || self.source.supplier() != Supplier::WeChat {
            return;
        }
        let mut times = 0;
        self.state.send_modify(|state| {
            state.foreign_rotations += 1;
            times = state.foreign_rotations;
        });
        self.counts.troubles.tell("foreign-rotation", Some(&self.appid), FOREIGN);
        if self.foreign_told.is_none_or(|at| at.elapsed() >= TELL_FOREIGN_AGAIN) {
            self.foreign_told = Some(Instant::now());
            tracing::warn!(
                appid = %self.appid, token = %refused.fingerprint(), life_left_s = refused.remaining().as_secs(), times,
                "{FOREIGN}"
            );
        }
    }
}

/// Whether a fetch is wanted for its own sake.
fn wants_a_fetch(reason: &Reason) -> bool {
    matches!(reason, Reason::SecretChange | Reason::Operator { .. })
}

/// Until the store has news. One that is gone has none ever again.
async fn heard(news: &mut watch::Receiver<()>) {
    if news.changed().await.is_err() {
        std::future::pending().await
    }
}
