//! How replicas agree on a token: [`TokenStore`], what they share, and [`MemoryStore`], for a process that shares
//! with nobody.
//!
//! A store is a help, never a condition: the lease is advisory, and one that is down costs one extra fetch and no
//! call.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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

    /// The newest token that was saved and still lives.
    fn load(&self) -> impl Future<Output = Result<Option<Token>, StoreError>> + Send;

    /// Keeps a token, unless the one it has was fetched later: the newest fetch wins, not the newest save.
    fn save(&self, token: &Token) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Asks for the right to fetch. `None` while another holds it; never waits for it.
    fn lease(&self) -> impl Future<Output = Result<Option<Self::Lease>, StoreError>> + Send;
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
    token: Arc<Mutex<Option<Token>>>,
    leased: Arc<AtomicBool>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl TokenStore for MemoryStore {
    type Lease = MemoryLease;

    fn name(&self) -> &'static str {
        "memory"
    }

    async fn load(&self) -> Result<Option<Token>, StoreError> {
        let kept = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(kept.clone().filter(Token::is_alive))
    }

    async fn save(&self, token: &Token) -> Result<(), StoreError> {
        let mut kept = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|kept| kept.fetched_at() <= token.fetched_at()) {
            *kept = Some(token.clone());
        }
        Ok(())
    }

    async fn lease(&self) -> Result<Option<MemoryLease>, StoreError> {
        let free = !self.leased.swap(true, Ordering::AcqRel);
        Ok(free.then(|| MemoryLease(Arc::clone(&self.leased))))
    }
}

/// The right to fetch within this process.
pub struct MemoryLease(Arc<AtomicBool>);

impl Drop for MemoryLease {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What every store promises. A store's own tests call [`contract::holds`] with two replicas' views of one empty
/// store.
#[cfg(test)]
pub(crate) mod contract {
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    /// Panics where `here` and `there`, two views of one empty store, break the contract. Takes about two seconds of
    /// the runtime's clock.
    pub(crate) async fn holds<S: TokenStore>(here: &S, there: &S) {
        assert!(here.load().await.unwrap().is_none(), "an empty store has nothing");
        what_is_saved_is_loaded_with_its_life(here, there).await;
        the_newest_fetch_wins(here, there).await;
        a_lease_is_held_once_and_ends_by_drop(here, there).await;
        the_dead_are_not_handed_out(here, there).await;
    }

    fn token(value: &str, asked_at: Instant, millis: u64) -> Token {
        Token::new(value, asked_at, Duration::from_millis(millis)).unwrap()
    }

    async fn what_is_saved_is_loaded_with_its_life<S: TokenStore>(here: &S, there: &S) {
        let saved = token("saved", Instant::now(), 7_200_000);
        here.save(&saved).await.unwrap();
        for view in [here, there] {
            let loaded = view.load().await.unwrap().expect("what was saved");
            assert_eq!(loaded, saved);
            assert!(loaded.expires_at() <= saved.expires_at(), "a life must not grow on the way");
            assert!(loaded.remaining() > Duration::from_secs(7100), "nor shrink");
        }
    }

    async fn the_newest_fetch_wins<S: TokenStore>(here: &S, there: &S) {
        sleep(Duration::from_millis(20)).await;
        let older = token("older", Instant::now(), 7_200_000);
        sleep(Duration::from_millis(20)).await;
        let newer = token("newer", Instant::now(), 7_200_000);
        there.save(&newer).await.unwrap();
        here.save(&older).await.unwrap();
        assert_eq!(there.load().await.unwrap().unwrap().expose(), "newer", "a late save of an early fetch");
        assert_eq!(here.load().await.unwrap().unwrap().expose(), "newer");
    }

    async fn a_lease_is_held_once_and_ends_by_drop<S: TokenStore>(here: &S, there: &S) {
        let held = here.lease().await.unwrap();
        assert!(held.is_some(), "a free lease is given");
        assert!(there.lease().await.unwrap().is_none(), "to one");
        assert!(here.lease().await.unwrap().is_none(), "and not twice to the same");
        drop(held);
        // A remote store may need a moment to hear of it.
        for _ in 0..50 {
            if there.lease().await.unwrap().is_some() {
                return;
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
