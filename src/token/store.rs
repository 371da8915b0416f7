//! How replicas agree on a token: [`TokenStore`], what they share; [`MemoryStore`], for a process that shares with
//! nobody; [`redis`], for those that do. [`Store`] is the one that was configured.
//!
//! A store is a help, never a condition: the lease is advisory, and one that is down costs one extra fetch and no
//! call.

mod any;
pub mod redis;

pub use any::{Config, Lease, Store, Stores};

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::Token;

/// One account's token where every replica sees it.
///
/// Lives travel as durations, so that replicas need no agreeing clocks: a token that is loaded must end when the one
/// that was saved does, or earlier. A call that takes long is given up by the keeper.
pub trait TokenStore: Send + Sync + 'static {
    /// The right to fetch, which ends by drop.
    type Lease: Send;

    /// Its name in logs and in the status.
    fn name(&self) -> &'static str;

    /// The newest token that was saved and still lives, refused or not.
    fn load(&self) -> impl Future<Output = Result<Option<Kept>, StoreError>> + Send;

    /// Keeps a token, unless the one it has was fetched later: the newest fetch wins, not the newest save. A token
    /// that is fetched again after it was refused is no longer refused.
    fn save(&self, token: &Token) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Notes for every replica that WeChat refused this token, if it is the one that is kept. `news` as in
    /// [`Standing::Refused`].
    fn refuse(&self, token: &Token, news: bool) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Asks for the right to fetch. `None` while another holds it; never waits for it. One whose holder has died is
    /// free again by itself.
    fn lease(&self) -> impl Future<Output = Result<Option<Self::Lease>, StoreError>> + Send;

    /// Changes when there may be something to see for who looks: a token that was saved or refused, a lease that was
    /// given back, and now and then without a cause, for whoever missed the rest.
    fn news(&self) -> watch::Receiver<()>;
}

/// A token as a store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The token, with what is left of its life.
    pub token: Token,
    /// Whether WeChat still takes it, as far as any replica knows.
    pub standing: Standing,
}

/// Whether WeChat takes a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody heard otherwise.
    Good,
    /// A replica had it refused.
    Refused {
        /// WeChat had taken it before, and the call was none of those that are refused whatever the token: so it is
        /// the token that is bad, and a fetch helps.
        news: bool,
    },
}

/// What is wrong with a store: a sentence for the operator, without a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError(pub String);

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StoreError {}

/// A store in this process's memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryStore {
    kept: Arc<Mutex<Option<Kept>>>,
    leased: Arc<AtomicBool>,
    news: watch::Sender<()>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Has something else from now on, as a store does that lost what it had.
    #[cfg(test)]
    pub(crate) fn becomes(&self, kept: Option<Kept>) {
        *self.kept.lock().unwrap() = kept;
        self.poke();
    }

    /// Has whoever listens look.
    #[cfg(test)]
    pub(crate) fn poke(&self) {
        self.news.send_replace(());
    }
}

impl TokenStore for MemoryStore {
    type Lease = MemoryLease;

    fn name(&self) -> &'static str {
        "memory"
    }

    async fn load(&self) -> Result<Option<Kept>, StoreError> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(kept.clone().filter(|kept| kept.token.is_alive()))
    }

    async fn save(&self, token: &Token) -> Result<(), StoreError> {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.as_ref().is_some_and(|kept| kept.token.fetched_at() >= token.fetched_at()) {
                return Ok(());
            }
            *kept = Some(Kept { token: token.clone(), standing: Standing::Good });
        }
        self.news.send_replace(());
        Ok(())
    }

    async fn refuse(&self, token: &Token, news: bool) -> Result<(), StoreError> {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *kept {
                Some(kept) if kept.token == *token => kept.standing = Standing::Refused { news },
                _ => return Ok(()),
            }
        }
        self.news.send_replace(());
        Ok(())
    }

    async fn lease(&self) -> Result<Option<MemoryLease>, StoreError> {
        let free = !self.leased.swap(true, Ordering::AcqRel);
        Ok(free.then(|| MemoryLease(Arc::clone(&self.leased), self.news.clone())))
    }

    fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }
}

/// The right to fetch within this process.
pub struct MemoryLease(Arc<AtomicBool>, watch::Sender<()>);

impl Drop for MemoryLease {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
        self.1.send_replace(());
    }
}

/// What every store promises. A store's own tests call [`contract::holds`] with two replicas' views of one empty
/// store.
#[cfg(test)]
pub(crate) mod contract {
    use std::time::Duration;

    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    /// Panics where `here` and `there`, two views of one empty store, break the contract. Takes a few seconds of the
    /// runtime's clock.
    pub(crate) async fn holds<S: TokenStore>(here: &S, there: &S) {
        assert!(here.load().await.unwrap().is_none(), "an empty store has nothing");
        here.refuse(&token("stranger", Instant::now(), 1000), true).await.unwrap();
        what_is_saved_is_loaded_with_its_life(here, there).await;
        the_newest_fetch_wins(here, there).await;
        a_refusal_is_known_to_all_until_the_token_is_fetched_again(here, there).await;
        whatever_happens_is_news_to_the_others(here, there).await;
        a_lease_is_held_once_and_ends_by_drop(here, there).await;
        the_dead_are_not_handed_out(here, there).await;
    }

    fn token(value: &str, asked_at: Instant, millis: u64) -> Token {
        Token::new(value, asked_at, Duration::from_millis(millis)).unwrap()
    }

    async fn loaded<S: TokenStore>(view: &S) -> Kept {
        view.load().await.unwrap().expect("what was saved")
    }

    async fn what_is_saved_is_loaded_with_its_life<S: TokenStore>(here: &S, there: &S) {
        let saved = token("saved", Instant::now(), 7_200_000);
        here.save(&saved).await.unwrap();
        for view in [here, there] {
            let Kept { token: loaded, standing } = loaded(view).await;
            assert_eq!((&loaded, standing), (&saved, Standing::Good));
            assert!(loaded.expires_at() <= saved.expires_at(), "a life must not grow on the way");
            assert!(loaded.remaining() > Duration::from_secs(7100), "nor shrink");
            let apart =
                loaded.fetched_at().max(saved.fetched_at()) - loaded.fetched_at().min(saved.fetched_at());
            assert!(apart < Duration::from_secs(10), "when it was fetched is known: {apart:?}");
        }
    }

    async fn the_newest_fetch_wins<S: TokenStore>(here: &S, there: &S) {
        sleep(Duration::from_millis(20)).await;
        let older = token("older", Instant::now(), 7_200_000);
        sleep(Duration::from_millis(20)).await;
        let newer = token("newer", Instant::now(), 7_200_000);
        there.save(&newer).await.unwrap();
        here.save(&older).await.unwrap();
        assert_eq!(loaded(there).await.token.expose(), "newer", "a late save of an early fetch");
        assert_eq!(loaded(here).await.token.expose(), "newer");
    }

    async fn a_refusal_is_known_to_all_until_the_token_is_fetched_again<S: TokenStore>(here: &S, there: &S) {
        let kept = loaded(here).await.token;
        for news in [false, true] {
            there.refuse(&kept, news).await.unwrap();
            let refused = loaded(here).await;
            assert_eq!((refused.token, refused.standing), (kept.clone(), Standing::Refused { news }));
        }
        here.refuse(&token("older", Instant::now(), 1000), true).await.unwrap();
        assert_eq!(loaded(here).await.token, kept, "another token's refusal says nothing of this one");
        sleep(Duration::from_millis(50)).await;
        here.save(&token(kept.expose(), Instant::now(), 7_100_000)).await.unwrap();
        assert_eq!(loaded(there).await.standing, Standing::Good, "WeChat holds to it");
        assert!(loaded(there).await.token.remaining() <= Duration::from_secs(7100));
    }

    async fn whatever_happens_is_news_to_the_others<S: TokenStore>(here: &S, there: &S) {
        sleep(Duration::from_millis(50)).await;
        let next = token("next", Instant::now(), 7_200_000);
        heard(there, async || here.save(&next).await.unwrap()).await;
        heard(there, async || here.refuse(&next, true).await.unwrap()).await;
        let lease = here.lease().await.unwrap();
        assert!(lease.is_some());
        heard(there, async || drop(lease)).await;
    }

    /// Fails unless `what` is heard of, sooner than by a slow poll.
    async fn heard<S: TokenStore>(view: &S, what: impl AsyncFnOnce()) {
        let mut news = view.news();
        // What came before may still be on its way.
        while timeout(Duration::from_millis(300), news.changed()).await.is_ok() {}
        what().await;
        timeout(Duration::from_secs(3), news.changed()).await.expect("news").unwrap();
    }

    async fn a_lease_is_held_once_and_ends_by_drop<S: TokenStore>(here: &S, there: &S) {
        let held = free(here).await;
        assert!(there.lease().await.unwrap().is_none(), "to one");
        assert!(here.lease().await.unwrap().is_none(), "and not twice to the same");
        drop(held);
        free(there).await;
    }

    /// A lease, as soon as it is free: a remote store may need a moment to hear of a drop.
    async fn free<S: TokenStore>(view: &S) -> S::Lease {
        for _ in 0..50 {
            if let Some(lease) = view.lease().await.unwrap() {
                return lease;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("a lease ends by drop");
    }

    async fn the_dead_are_not_handed_out<S: TokenStore>(here: &S, there: &S) {
        here.save(&token("brief", Instant::now(), 100)).await.unwrap();
        sleep(Duration::from_millis(200)).await;
        for view in [here, there] {
            assert!(view.load().await.unwrap().is_none(), "a dead token is not handed out");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_memory_store_keeps_the_contract() {
        let store = MemoryStore::new();
        contract::holds(&store, &store.clone()).await;
    }
}
