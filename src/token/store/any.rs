//! The store that was configured: [`Stores`] makes one an account, [`Store`] is either kind.

use tokio::sync::watch;

use super::redis::{self, RedisLease, RedisStore};
use super::{Kept, MemoryLease, MemoryStore, StoreError, TokenStore};
use crate::credentials::AppId;
use crate::token::Token;
use crate::token::redis::Redis;
use crate::token::source::Endpoint;

/// Where tokens are kept.
#[derive(Clone, Debug, Default)]
pub enum Config {
    /// In this process: shared with nobody.
    #[default]
    Memory,
    /// In Redis, for all replicas.
    Redis(Box<redis::Config>),
}

/// Makes the stores of all accounts, which share what connections there are.
pub struct Stores(Option<(Redis, Box<redis::Config>)>);

impl Stores {
    /// As configured. Does no IO.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self(match config {
            Config::Memory => None,
            Config::Redis(config) => Some((Redis::new(config.server.clone()), config.clone())),
        })
    }

    /// One account's.
    #[must_use]
    pub fn of(&self, appid: &AppId, endpoint: Endpoint) -> Store {
        match &self.0 {
            None => Store::Memory(MemoryStore::new()),
            Some((redis, config)) => Store::Redis(RedisStore::new(redis, config, appid, endpoint)),
        }
    }

    /// What has to [run](Redis::run) once all accounts have their stores.
    #[must_use]
    pub fn redis(&self) -> Option<&Redis> {
        self.0.as_ref().map(|(redis, _)| redis)
    }
}

/// A store of either kind.
pub enum Store {
    /// See [`MemoryStore`].
    Memory(MemoryStore),
    /// See [`RedisStore`].
    Redis(RedisStore),
}

/// A lease of either kind, given back by drop.
pub enum Lease {
    /// See [`MemoryLease`].
    Memory(MemoryLease),
    /// See [`RedisLease`].
    Redis(RedisLease),
}

impl TokenStore for Store {
    type Lease = Lease;

    fn name(&self) -> &'static str {
        match self {
            Self::Memory(store) => store.name(),
            Self::Redis(store) => store.name(),
        }
    }

    async fn load(&self) -> Result<Option<Kept>, StoreError> {
        match self {
            Self::Memory(store) => store.load().await,
            Self::Redis(store) => store.load().await,
        }
    }

    async fn save(&self, token: &Token) -> Result<(), StoreError> {
        match self {
            Self::Memory(store) => store.save(token).await,
            Self::Redis(store) => store.save(token).await,
        }
    }

    async fn refuse(&self, token: &Token, news: bool) -> Result<(), StoreError> {
        match self {
            Self::Memory(store) => store.refuse(token, news).await,
            Self::Redis(store) => store.refuse(token, news).await,
        }
    }

    async fn lease(&self) -> Result<Option<Lease>, StoreError> {
        Ok(match self {
            Self::Memory(store) => store.lease().await?.map(Lease::Memory),
            Self::Redis(store) => store.lease().await?.map(Lease::Redis),
        })
    }

    fn news(&self) -> watch::Receiver<()> {
        match self {
            Self::Memory(store) => store.news(),
            Self::Redis(store) => store.news(),
        }
    }
}
