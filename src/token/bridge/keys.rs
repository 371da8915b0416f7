//! The little that the bridge asks of Redis: to read, write and delete a key. Commands that every Redis and every
//! proxy in front of one knows, one key each, so that a Cluster takes them, too.

use std::time::Duration;

use ::redis::cmd;
use zeroize::Zeroizing;

use super::format::Entry;
use crate::token::redis::{Fault, Redis};

/// A value and how long it is still there.
pub(super) struct Found {
    pub(super) value: Zeroizing<Vec<u8>>,
    /// `None` where it stays for good.
    pub(super) ttl: Option<Duration>,
}

/// What stands under `key`.
pub(super) async fn get(redis: &Redis, key: &str) -> Result<Option<Found>, Fault> {
    let value: Option<Vec<u8>> = redis.ask(cmd("GET").arg(key)).await?;
    let Some(value) = value.map(Zeroizing::new) else { return Ok(None) };
    let ttl = match redis.ask(cmd("PTTL").arg(key)).await? {
        -1 => None,
        // -2 where it ended in between.
        millis => Some(Duration::from_millis(u64::try_from(millis).unwrap_or(0))),
    };
    Ok(Some(Found { value, ttl }))
}

/// Sets these for `ttl` seconds, one after the other.
pub(super) async fn set(redis: &Redis, entries: &[Entry], ttl: u64) -> Result<(), Fault> {
    for Entry { key, value } in entries {
        let (key, value, millis) = (key.as_str(), value.as_str(), ttl * 1000);
        redis.ask::<()>(cmd("SET").arg(key).arg(value).arg("PX").arg(millis)).await?;
    }
    Ok(())
}

/// Deletes these.
pub(super) async fn delete(redis: &Redis, keys: &[&str]) -> Result<(), Fault> {
    for key in keys {
        redis.ask::<()>(cmd("DEL").arg(key)).await?;
    }
    Ok(())
}
