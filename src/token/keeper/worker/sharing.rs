//! What the worker does with the store: looks into it, gives it what it lost, asks for the right to fetch, and goes on
//! without it. A store is a help, never a condition.

use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};

use super::*;

impl<S: TokenSource, T: TokenStore> Worker<S, T> {
    /// The store's token, if it is to be served from now on. One who wants a fetch for its own sake adopts nothing.
    pub(super) async fn adoptable(&mut self, reason: &Reason) -> Option<Token> {
        if wants_a_fetch(reason) {
            return None;
        }
        match self.look(reason.refused()).await {
            Found::Better(token) => Some(token),
            Found::Nothing | Found::Refused { .. } => None,
        }
    }

    /// Looks into the store: what it has that we do not, or gives it what we have and it lost. `refused` is the token
    /// that the round under way is to replace.
    pub(super) async fn look(&mut self, refused: Option<&Token>) -> Found {
        if self.store_is_out {
            return Found::Nothing;
        }
        let ours = self.state.borrow().live_token().filter(|ours| Some(ours) != refused);
        if let (true, Some(ours)) = (self.unsaved, &ours) {
            self.save(ours).await;
            // One that cannot be written may still be read, and have a token from one who can write.
            self.store_is_out = false;
        }
        let loaded = timeout(STORE_PATIENCE, self.store.load()).await;
        let Some(kept) = self.of_store(Asked::Load, loaded) else { return Found::Nothing };
        let Some(Kept { token, standing }) = kept else { return self.heal(ours).await };
        let newest = self.state.borrow().token.clone();
        let lost =
            newest.as_ref().is_some_and(|newest| token.fetched_at() + CLOCK_SLACK < newest.fetched_at());
        let surely_newer = newest.is_none_or(|newest| token.fetched_at() > newest.fetched_at() + CLOCK_SLACK);
        let was_refused = !surely_newer && self.refused_before.contains(&token.fingerprint());
        // Another replica has fetched since, and WeChat holds to the very token: it can pass, and is ours to try again.
        let held_to = Some(&token) == refused
            && self.rejected_at.is_some_and(|at| token.fetched_at() + MESSAGE_SLACK >= at)
            && refused.is_some_and(|refused| token.fetched_at() > refused.fetched_at() + MESSAGE_SLACK);
        match (standing, ours) {
            // What we fetched since is newer than what the store has heard.
            (_, ours) if lost => self.heal(ours).await,
            (Standing::Refused { news }, Some(ours)) if token == ours => Found::Refused { news },
            (Standing::Good, Some(ours)) if token == ours => Found::Nothing,
            (Standing::Good, _) if held_to => Found::Better(token),
            (Standing::Good, _) if token.is_alive() && Some(&token) != refused && !was_refused => {
                Found::Better(token)
            }
            (Standing::Good | Standing::Refused { .. }, _) => Found::Nothing,
        }
    }

    /// The store lost our token, by a restart or by a failover to one that never had it. Not more than once a second:
    /// a store without room may lose it again at once.
    pub(super) async fn heal(&mut self, ours: Option<Token>) -> Found {
        if let Some(ours) = ours.filter(|_| self.healed_at.is_none_or(|at| at.elapsed() >= LEAST_PAUSE))
            && self.source.supplier() != Supplier::Store
        {
            self.healed_at = Some(Instant::now());
            self.save(&ours).await;
        }
        Found::Nothing
    }

    /// How long a token that lives can do without the store, if a fetch without it would harm the other replicas.
    pub(super) fn can_wait_for_the_store(&self, reason: &Reason) -> Option<Duration> {
        if !self.store_is_out || *reason != Reason::Ahead || !self.pace.voids_the_last {
            return None;
        }
        let left = self.state.borrow().live_token()?.remaining();
        let until = SOLO_AHEAD + SOLO_JITTER.mul_f64(fastrand::f64());
        left.checked_sub(until).filter(|wait| !wait.is_zero()).map(|wait| wait.min(SOLO_PAUSE))
    }

    /// The right to fetch, or the token of the one who has it. It only saves fetches, so a round goes on without it
    /// where the store is out, or the lease is held for too long.
    pub(super) async fn right(&mut self, reason: &Reason) -> Right<T::Lease> {
        let follows = self.source.supplier() == Supplier::Store;
        if follows {
            self.spread(reason).await;
        }
        let began = Instant::now();
        let mut until = began + if follows { FOLLOW_PATIENCE } else { LEASE_PATIENCE };
        let mut pause = LEASE_PAUSE;
        while !self.store_is_out {
            if !follows {
                let leased = timeout(STORE_PATIENCE, self.store.lease()).await;
                match self.of_store(Asked::Lease, leased) {
                    Some(Some(lease)) => return Right::Fetch(Some(lease)),
                    Some(None) => self.counts.lease_held(),
                    None => break,
                }
            }
            if Instant::now() >= until {
                if !follows {
                    let store = self.store.name();
                    tracing::warn!(appid = %self.appid, store, "another replica holds the lease for longer than a fetch may take; fetching without it");
                }
                break;
            }
            if timeout(pause, heard(&mut self.news)).await.is_ok() && !follows {
                until = (Instant::now() + LEASE_PATIENCE).min(began + LEASES_PATIENCE);
            }
            pause = (pause * 2).min(LONGEST_LEASE_PAUSE);
            if let Some(token) = self.adoptable(reason).await {
                return Right::Adopt(token);
            }
        }
        Right::Fetch(None)
    }

    /// Lets every replica know what was refused here.
    pub(super) async fn spread(&mut self, reason: &Reason) {
        let Reason::Reject { refused, refusal } = reason else { return };
        if self.store_is_out || refusal.said == Said::Elsewhere {
            return;
        }
        let noted = timeout(STORE_PATIENCE, self.store.refuse(refused, self.is_news)).await;
        self.of_store(Asked::Refuse, noted);
    }

    pub(super) async fn save(&mut self, token: &Token) {
        let saved = timeout(STORE_PATIENCE, self.store.save(token)).await;
        self.unsaved = self.of_store(Asked::Save, saved).is_none();
    }

    /// A store's outcome, or `None` and a word about it when it failed or took too long.
    pub(super) fn of_store<R>(
        &mut self,
        asked: Asked,
        outcome: Result<Result<R, StoreError>, Elapsed>,
    ) -> Option<R> {
        let store = self.store.name();
        self.counts.store(asked, matches!(outcome, Ok(Ok(_))));
        let why = match outcome {
            Ok(Ok(done)) => {
                // One that is full or read-only can still be read: that is no news.
                if self.store_failed.is_some_and(|(failed, _)| failed.is_a_write() == asked.is_a_write()) {
                    self.store_failed = None;
                    tracing::info!(appid = %self.appid, store, "the token store works again");
                }
                return Some(done);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {STORE_PATIENCE:?}"),
        };
        self.store_is_out = true;
        self.counts.troubles.tell(
            "store",
            Some(&self.appid),
            &format!(
                "the token store ({store}) fails: {why}; each replica fetches for itself until it works"
            ),
        );
        if self.store_failed.is_none_or(|(_, told_at)| told_at.elapsed() >= TELL_FAILURE_AGAIN) {
            self.store_failed = Some((asked, Instant::now()));
            tracing::warn!(
                appid = %self.appid, store, error = why, at = ?asked,
                "the token store fails; going on without it, each replica fetches for itself"
            );
        }
        None
    }
}
