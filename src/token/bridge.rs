//! The bridge for a fleet that moves: apps that have yet to come to the sidecar find its token where their own SDK
//! keeps one, in their Redis ([`Bridge::give`]); and a token that such an app fetched may be taken instead of fetching
//! another ([`adopt`]). Opt-in and temporary.
//!
//! SECURITY: this is the one place where a real token leaves for somewhere other than WeChat. Whoever reads that Redis
//! has it, and with some SDKs the key holds the AppSecret too; [`Bridge::warning`] says so at every start.
//!
//! - A value ends by itself, before its token does ([`mod@format`]): a sidecar that is gone leaves nothing behind.
//! - What an app wrote for itself is left alone until there is a new token; a token of ours that is no longer the
//!   newest, and a placeholder, which is good for nothing outside a sidecar, are replaced.
//! - Reading and writing are two steps, without a script or a lock: the SDKs' own locks are theirs, and old Redis
//!   proxies know only plain commands. An app that writes in between is overwritten with a token that works as well.
//! - No call waits for any of it, and a Redis that fails is told once.

pub mod adopt;
pub mod format;

mod keys;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use zeroize::Zeroizing;

use super::keeper::TokenKeeper;
use super::redis::{Address, Fault, Redis};
use super::{Fingerprint, Token};
use crate::credentials::{AppId, Secret};
use format::Format;
use keys::Found;

/// How often it is looked whether everything is still there...
const POLL: Duration = Duration::from_secs(8);
/// ...and by how much more, by chance, so that replicas do not look at the same moment.
const POLL_JITTER: Duration = Duration::from_secs(4);
/// Tokens that are remembered as ours. WeChat takes the last one for five more minutes.
const REMEMBERED: usize = 8;
/// No token that WeChat issues is shorter: today's have more than a hundred characters.
const MIN_TOKEN_LENGTH: usize = 32;
/// WeChat's tokens live for two hours. What is to live for longer than this is none of them.
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);
/// An app begins to count a token's life when the answer arrives, which is later than WeChat does.
const LATE: Duration = Duration::from_secs(5);

/// The keys of one account in the Redis of apps that have yet to move.
pub struct Bridge {
    appid: AppId,
    places: Vec<Place>,
    redis: Redis,
    /// Whether what an app fetched may be taken, and so is not overwritten.
    adopts: bool,
    is_placeholder: fn(&str) -> bool,
    /// Tokens that were given out from here, the latest last.
    ours: Mutex<Vec<Token>>,
}

/// Where one SDK looks for its token.
struct Place {
    format: Format,
    /// SECURITY: may have the AppSecret in it.
    key: Zeroizing<String>,
}

/// What is to be done about a place.
#[derive(Debug, PartialEq, Eq)]
enum Act {
    Leave,
    Write(u64),
    Delete,
}

impl Bridge {
    /// A bridge to these formats' keys in `redis`, but for those that need a secret where there is none.
    /// `is_placeholder` knows what our own apps are given.
    #[must_use]
    pub fn new(
        appid: AppId,
        secret: Option<&Secret>,
        formats: &[Format],
        redis: Redis,
        adopts: bool,
        is_placeholder: fn(&str) -> bool,
    ) -> Self {
        let place =
            |format: &Format| Some(Place { key: format.key(&appid, secret)?, format: format.clone() });
        let places = formats.iter().filter_map(place).collect();
        Self { appid, places, redis, adopts, is_placeholder, ours: Mutex::new(Vec::new()) }
    }

    /// What a person should know at every start.
    #[must_use]
    pub fn warning(appid: &AppId, formats: &[Format], redis: &Address) -> String {
        let keys: Vec<_> = formats.iter().map(|format| format.shown(appid)).collect();
        let secret = if formats.iter().any(Format::has_secret_in_key) {
            "; THE APPSECRET ITSELF STANDS IN A KEY, where MONITOR, SLOWLOG, SCAN and every dump show it: give those \
             apps a key of their own with setKey() instead"
        } else {
            ""
        };
        format!(
            "bridge: the REAL access token of {appid} is handed out to whoever can read the Redis at {redis}, as {}{secret}. \
             This is for the time of a move only. To end it, let those apps call through this sidecar and remove the \
             setting bridge; what is there then ends by itself, within two hours",
            keys.join(", ")
        )
    }

    /// Keeps giving out the keeper's token, until the keeper stops.
    pub async fn give(self: Arc<Self>, mut keeper: TokenKeeper) {
        let mut given: Vec<Option<Fingerprint>> = vec![None; self.places.len()];
        let mut failing = false;
        let mut poll_at = Instant::now();
        loop {
            let due = poll_at <= Instant::now();
            if due {
                poll_at = Instant::now() + POLL + POLL_JITTER.mul_f64(fastrand::f64());
            }
            // While another replica had it refused there is none, and what is there stays until the next one comes.
            if let Some(token) = keeper.current() {
                let new = given.iter().any(|given| *given != Some(token.fingerprint()));
                if due || new {
                    self.remember(&token);
                    let tended = self.tend(&token, &mut given).await;
                    self.tell(tended, &mut failing);
                }
            }
            tokio::select! {
                alive = keeper.changed() => if !alive { return },
                () = sleep_until(poll_at) => {}
            }
        }
    }

    /// Sees to it that every place has the token, unless an app put another one there.
    ///
    /// # Errors
    /// The last that went wrong; the other places are seen to nevertheless.
    async fn tend(&self, token: &Token, given: &mut [Option<Fingerprint>]) -> Result<(), String> {
        let mut outcome = Ok(());
        for (place, given) in self.places.iter().zip(given) {
            let new = *given != Some(token.fingerprint());
            match self.tend_one(place, token, new).await {
                Ok(()) => *given = Some(token.fingerprint()),
                Err(error) => outcome = Err(format!("{}: {error}", place.format.name())),
            }
        }
        outcome
    }

    async fn tend_one(&self, place: &Place, token: &Token, new: bool) -> Result<(), Fault> {
        let Place { format, key } = place;
        let found = keys::get(&self.redis, key).await?;
        let act = self.act(format, found.as_ref(), token, new);
        let (appid, format_name, fingerprint) = (&self.appid, format.name(), token.fingerprint());
        match act {
            Act::Leave => {}
            Act::Write(ttl) => {
                let entries = format.entries(key, token.expose(), ttl, now());
                keys::set(&self.redis, &entries, ttl).await?;
                if new {
                    tracing::info!(%appid, token = %fingerprint, format = format_name, ttl_s = ttl, "gave the token to apps that have yet to move");
                } else {
                    tracing::debug!(%appid, token = %fingerprint, format = format_name, ttl_s = ttl, "gave the token again, it was gone");
                }
            }
            Act::Delete => {
                let companion = format.companion(key);
                let keys: Vec<&str> = std::iter::once(key.as_str()).chain(companion.as_deref()).collect();
                keys::delete(&self.redis, &keys).await?;
                tracing::debug!(%appid, token = %fingerprint, format = format_name, "took back a token that is about to end");
            }
        }
        Ok(())
    }

    /// What is to be done about a place where this was found. `new` says that the token was not given there yet.
    fn act(&self, format: &Format, found: Option<&Found>, token: &Token, new: bool) -> Act {
        let ttl = format::ttl(token.expires_at() - token.fetched_at(), token.remaining());
        let there = found.and_then(|found| format.token(&found.value));
        let is = |ours: &Token| there.as_ref().is_some_and(|there| **there == ours.expose());
        let is_current = is(token);
        let is_ours = is_current
            || self.ours().iter().any(is)
            || there.as_ref().is_some_and(|there| (self.is_placeholder)(there));
        let Some(ttl) = ttl else { return if is_ours { Act::Delete } else { Act::Leave } };
        let write = match found {
            None => true,
            // Not where it ends too late, or never.
            Some(found) if is_current => found.ttl.is_none_or(|left| left >= token.remaining()),
            Some(_) if is_ours => true,
            Some(found) => new && !(self.adopts && self.take(format, &found.value, found.ttl).is_ok()),
        };
        if write { Act::Write(ttl) } else { Act::Leave }
    }

    /// The token that an app put there for itself, in this value of a key that is there for `ttl` more.
    ///
    /// # Errors
    /// Why it is none that may be taken; no secret in it.
    pub fn take(&self, format: &Format, value: &[u8], ttl: Option<Duration>) -> Result<Token, &'static str> {
        if !format.is_adoptable() {
            return Err("tokens in this format are not taken");
        }
        let Some(left) = ttl else { return Err("it has no end") };
        if left > MAX_LIFE {
            return Err("it is to live for more than a day");
        }
        let value = format.token(value).ok_or("it is not in this format")?;
        if value.len() < MIN_TOKEN_LENGTH {
            return Err("it is too short");
        }
        if (self.is_placeholder)(&value) {
            return Err("it is a placeholder of ours");
        }
        let token = Token::new(&value, Instant::now(), left.saturating_sub(LATE))?;
        if self.ours().contains(&token) { Err("it is one of ours") } else { Ok(token) }
    }

    fn ours(&self) -> std::sync::MutexGuard<'_, Vec<Token>> {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, token: &Token) {
        let mut ours = self.ours();
        if !ours.contains(token) {
            if ours.len() == REMEMBERED {
                ours.remove(0);
            }
            ours.push(token.clone());
        }
    }

    /// Once when it begins to fail, and once when it is over.
    fn tell(&self, tended: Result<(), String>, failing: &mut bool) {
        let appid = &self.appid;
        match tended {
            Ok(()) if std::mem::take(failing) => {
                tracing::info!(%appid, "apps that have yet to move get the token again");
            }
            Ok(()) => {}
            Err(error) if !std::mem::replace(failing, true) => tracing::warn!(
                %appid, error,
                "apps that have yet to move do not get the token: their Redis fails. They keep what they have, and then \
                 fetch for themselves; look after bridge_store. Calls through this sidecar are not harmed"
            ),
            Err(error) => {
                tracing::debug!(%appid, error, "apps that have yet to move still do not get the token")
            }
        }
    }
}

/// The time of day in seconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "wechatpy compares a stored time of day with its own clock; no life is measured by it"
)]
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
