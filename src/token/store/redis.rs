//! The store on Redis: [`RedisStore`], one account's view, and [`RedisLease`].
//!
//! Every step is one Lua script, so that it happens whole or not at all, and every time in Redis is of Redis's own
//! clock: replicas need no agreeing ones. A script returns the time, and what is known of the moment it was taken
//! (after the question left, before the answer came) maps the one clock to the other (`Sample`).
//!
//! | Key | What is in it |
//! |---|---|
//! | `{prefix}:{appid}:{endpoint}:token` | the record (`redis/record.rs`), which expires with the token |
//! | `{prefix}:{appid}:{endpoint}:lease` | who may fetch, with a sign of life |
//! | `{prefix}:{appid}:{endpoint}:news` | the channel, where one word is published on each change |
//!
//! The braces around the appid are part of the name: they keep an account's keys in one slot of a Cluster.

pub mod record;
mod seal;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::Cmd;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::{Kept, Standing, StoreError, TokenStore};
use crate::credentials::AppId;
use crate::token::redis::{self, Fault, Redis};
use crate::token::source::Endpoint;
use crate::token::{Fingerprint, Token};

use record::{LONGEST_LIFE_MS, Owner, Record};
pub use seal::Seals;

/// What every account's store has in common.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which Redis.
    pub server: redis::Config,
    /// What every key begins with.
    pub prefix: String,
    /// What a lease lives for when its holder falls silent in the worst moment: longer than a fetch may take.
    pub lease: Duration,
    /// The keys that seal the token, where it is not to lie in plain.
    pub seals: Option<Seals>,
}

/// A holder shows that it lives this often...
const HEARTBEAT: Duration = Duration::from_millis(300);
/// ...and after this long without counts as dead: five signs that are missing are no hiccup of the network.
const SILENCE: Duration = Duration::from_millis(1500);
/// How often giving back is tried; what fails ends by the silence.
const RELEASES: u32 = 3;
/// Fetches whose times are remembered, exactly as they stand in Redis.
const REMEMBERED: usize = 8;

const SAVE: &str = concat!(include_str!("redis/kept.lua"), include_str!("redis/save.lua"));
const REFUSE: &str = concat!(include_str!("redis/kept.lua"), include_str!("redis/refuse.lua"));
const LOAD: &str = include_str!("redis/load.lua");
const ACQUIRE: &str = include_str!("redis/acquire.lua");
const RENEW: &str = include_str!("redis/renew.lua");
const RELEASE: &str = include_str!("redis/release.lua");

/// One account's token in Redis.
pub struct RedisStore {
    redis: Redis,
    owner: Owner,
    keys: Arc<Keys>,
    lease: Duration,
    seals: Option<Seals>,
    news: watch::Sender<()>,
    known: Mutex<Vec<Known>>,
    /// A record that is none was told of, and there has been no good one since.
    told: AtomicBool,
}

struct Keys {
    token: String,
    lease: String,
    news: String,
}

/// A fetch, by both clocks: what is saved or loaded again must be the very same one, not one a millisecond apart.
struct Known {
    fingerprint: Fingerprint,
    fetched: (u64, Instant),
    ends: (u64, Instant),
}

/// One moment of Redis's clock: it was this time at some moment between the two instants.
#[derive(Clone, Copy)]
struct Sample {
    millis: u64,
    sent: Instant,
    came: Instant,
}

/// What lies in the key.
enum Found {
    Nothing,
    Garbage(&'static str),
    Text(Vec<u8>, i64),
}

impl RedisStore {
    /// This account's store in `redis`, which has yet to run. Does no IO.
    #[must_use]
    pub fn new(redis: &Redis, config: &Config, appid: &AppId, endpoint: Endpoint) -> Self {
        let endpoint = match endpoint {
            Endpoint::Stable => "stable_token",
            Endpoint::Classic => "token",
        };
        let key = |what| format!("{}:{{{appid}}}:{endpoint}:{what}", config.prefix);
        let keys = Arc::new(Keys { token: key("token"), lease: key("lease"), news: key("news") });
        Self {
            news: redis.listen(&keys.news),
            redis: redis.clone(),
            owner: Owner { appid: appid.to_string(), endpoint },
            keys,
            lease: config.lease,
            seals: config.seals.clone(),
            known: Mutex::default(),
            told: AtomicBool::new(false),
        }
    }

    /// Looks into the key.
    async fn look(&self) -> Result<(Sample, Found), Fault> {
        let sent = Instant::now();
        let (seconds, micros, kind, left, text): (u64, u64, String, i64, Vec<u8>) =
            self.redis.ask(script(LOAD).arg(&self.keys.token)).await?;
        // Saturating, here and below: a clock beyond all time is none, but no reason to die.
        let millis = seconds.saturating_mul(1000).saturating_add(micros / 1000);
        let sample = Sample { millis, sent, came: Instant::now() };
        let found = match kind.as_str() {
            "none" => Found::Nothing,
            "text" => Found::Text(text, left),
            "long" => Found::Garbage("it is far too long"),
            _ => Found::Garbage("its key is not a string"),
        };
        Ok((sample, found))
    }

    /// The token of a sound record that still lives.
    fn kept(&self, record: &Record, sample: Sample) -> Result<Option<Kept>, &'static str> {
        let fingerprint = Fingerprint::of(&record.token);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let same = known.iter().find(|known| known.is_fetch(fingerprint, record.fetched_ms));
        let ends_at = match same {
            Some(known) if known.ends.0 <= record.ends_ms => Some(known.ends.1),
            _ => sample.never_after(record.ends_ms),
        };
        let Some(ends_at) = ends_at else { return Ok(None) };
        let fetched_at = match same {
            Some(known) => known.fetched.1,
            // A machine that started after the fetch may have no name for its moment.
            None => sample.about(record.fetched_ms).unwrap_or(sample.sent),
        };
        drop(known);
        let life = ends_at.saturating_duration_since(fetched_at);
        let token = Token::new(&record.token, fetched_at, life)?;
        self.remember(&token, record.fetched_ms, record.ends_ms);
        Ok(token.is_alive().then_some(Kept { token, standing: record.standing }))
    }

    fn remember(&self, token: &Token, fetched_ms: u64, ends_ms: u64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|known| !known.is_fetch(token.fingerprint(), fetched_ms));
        if known.len() == REMEMBERED {
            known.remove(0);
        }
        known.push(Known {
            fingerprint: token.fingerprint(),
            fetched: (fetched_ms, token.fetched_at()),
            ends: (ends_ms, token.expires_at()),
        });
    }

    /// When it was fetched and ends, by Redis's clock.
    fn times_of(&self, token: &Token, sample: Sample) -> (u64, u64) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let same = known
            .iter()
            .find(|known| known.fingerprint == token.fingerprint() && known.fetched.1 == token.fetched_at());
        same.map_or_else(
            || (sample.millis_about(token.fetched_at()), sample.millis_never_after(token.expires_at())),
            |known| (known.fetched.0, known.ends.0),
        )
    }

    /// Once on each change: a record that is none stays until the next good save.
    fn tell(&self, why: &str) {
        let (appid, key) = (&self.owner.appid, &self.keys.token);
        if self.told.swap(true, Ordering::Relaxed) {
            tracing::debug!(%appid, key, why, "what is in the store is ignored");
        } else {
            tracing::warn!(
                %appid, key, why,
                "what is in the store is ignored, and the next token that is fetched replaces it; if this goes on, \
                 something else writes to this key: give this sidecar another store_prefix, and all replicas the same \
                 version and the same store_key_file"
            );
        }
    }
}

impl TokenStore for RedisStore {
    type Lease = RedisLease;

    fn name(&self) -> &'static str {
        "redis"
    }

    async fn load(&self) -> Result<Option<Kept>, StoreError> {
        let (sample, found) = self.look().await?;
        let read = match found {
            Found::Nothing => return Ok(None),
            Found::Garbage(why) => Err(why),
            Found::Text(text, left) => {
                let text = zeroize::Zeroizing::new(text);
                record::read(&self.owner, &text, (sample.millis, left), self.seals.as_ref())
            }
        };
        match read.and_then(|record| self.kept(&record, sample)) {
            Ok(kept) => {
                self.told.store(false, Ordering::Relaxed);
                Ok(kept)
            }
            Err(why) => {
                self.tell(why);
                Ok(None)
            }
        }
    }

    async fn save(&self, token: &Token) -> Result<(), StoreError> {
        // A fresh sample, however long the fetch took.
        let (sample, _) = self.look().await?;
        self.write(token, sample).await
    }

    async fn refuse(&self, token: &Token, news: bool) -> Result<(), StoreError> {
        let mut refuse = script(REFUSE);
        self.about(refuse.arg(&self.keys.token))
            .arg(token.fingerprint().to_string())
            .arg(Standing::Refused { news }.word());
        let _: i64 = self.redis.ask(&refuse).await?;
        Ok(())
    }

    async fn lease(&self) -> Result<Option<RedisLease>, StoreError> {
        let (redis, keys) = (self.redis.clone(), Arc::clone(&self.keys));
        // From here on a drop gives it back: an answer that does not come may be lost, and the lease ours.
        let mut lease = RedisLease { redis, keys, life: self.lease, owner: random_name(), beat: None };
        let mut acquire = script(ACQUIRE);
        acquire.arg(&self.keys.lease).arg(&lease.owner).arg(millis(self.lease)).arg(millis(SILENCE));
        if self.redis.ask::<i64>(&acquire).await? == 1 {
            lease.beat = Some(tokio::spawn(lease.live_on()).abort_handle());
            Ok(Some(lease))
        } else {
            lease.owner.clear();
            Ok(None)
        }
    }

    fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }
}

impl RedisStore {
    /// Saves it by the times that `sample` gives it, however late that is done.
    async fn write(&self, token: &Token, sample: Sample) -> Result<(), StoreError> {
        let (fetched_ms, ends_ms) = self.times_of(token, sample);
        if ends_ms <= sample.millis {
            return Ok(());
        }
        let written = record::write(&self.owner, token.expose(), (fetched_ms, ends_ms), self.seals.as_ref());
        let written = written.map_err(|why| StoreError(format!("{why}; it is saved with the next fetch")))?;
        let mut save = script(SAVE);
        self.about(save.arg(&self.keys.token)).arg(fetched_ms).arg(ends_ms).arg(written.as_bytes());
        let _: i64 = self.redis.ask(&save).await?;
        self.remember(token, fetched_ms, ends_ms);
        Ok(())
    }

    /// What the scripts that look into the record are told first.
    fn about<'a>(&self, script: &'a mut Cmd) -> &'a mut Cmd {
        let Owner { appid, endpoint } = &self.owner;
        script.arg(appid).arg(endpoint).arg(LONGEST_LIFE_MS).arg(&self.keys.news)
    }
}

impl Known {
    fn is_fetch(&self, fingerprint: Fingerprint, fetched_ms: u64) -> bool {
        self.fingerprint == fingerprint && self.fetched.0 == fetched_ms
    }
}

impl Sample {
    /// The instant at which Redis's clock shows `millis`, or earlier. `None` for one before this machine began.
    fn never_after(self, millis: u64) -> Option<Instant> {
        apart(self.sent, millis, self.millis)
    }

    /// The instant at which it does, give or take half the time the answer took.
    fn about(self, millis: u64) -> Option<Instant> {
        apart(self.middle(), millis, self.millis)
    }

    /// What Redis's clock shows at this instant, or less.
    fn millis_never_after(self, at: Instant) -> u64 {
        millis_at(self.millis, self.came, at)
    }

    fn millis_about(self, at: Instant) -> u64 {
        millis_at(self.millis, self.middle(), at)
    }

    fn middle(self) -> Instant {
        self.sent + (self.came - self.sent) / 2
    }
}

/// The instant that is as far from `from` as `to` is from `zero`.
fn apart(from: Instant, to: u64, zero: u64) -> Option<Instant> {
    let distance = Duration::from_millis(to.abs_diff(zero));
    if to >= zero { from.checked_add(distance) } else { from.checked_sub(distance) }
}

fn millis_at(zero: u64, at_zero: Instant, at: Instant) -> u64 {
    match at.checked_duration_since(at_zero) {
        Some(later) => zero.saturating_add(millis(later)),
        // Rounded away from it: an end must not move on.
        None => zero.saturating_sub(millis(at_zero - at) + 1),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `EVAL` of a script with one key, which is to be added first. Not EVALSHA: scripts run a few times an hour, and so a
/// Redis that restarted needs nothing told again, and a user one right less.
fn script(text: &str) -> Cmd {
    let mut command = ::redis::cmd("EVAL");
    command.arg(text).arg(1);
    command
}

fn random_name() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

/// The right to fetch, among all replicas. Given back by drop; where that fails it ends by silence.
pub struct RedisLease {
    redis: Redis,
    keys: Arc<Keys>,
    life: Duration,
    /// Empty when there is nothing to give back.
    owner: String,
    beat: Option<AbortHandle>,
}

impl RedisLease {
    /// Shows that we live, until it is aborted or somebody else has the lease.
    fn live_on(&self) -> impl Future<Output = ()> + Send + 'static {
        let redis = self.redis.clone();
        let mut renew = script(RENEW);
        renew.arg(&self.keys.lease).arg(&self.owner).arg(millis(self.life));
        async move {
            loop {
                sleep(HEARTBEAT).await;
                match redis.ask::<i64>(&renew).await {
                    Ok(1) => {}
                    Ok(_) => return tracing::debug!("another replica took the lease over"),
                    Err(error) => tracing::debug!(%error, "the lease was not renewed"),
                }
            }
        }
    }
}

impl Drop for RedisLease {
    fn drop(&mut self) {
        if let Some(beat) = &self.beat {
            beat.abort();
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.owner.is_empty() {
            return;
        }
        let redis = self.redis.clone();
        let mut release = script(RELEASE);
        release.arg(&self.keys.lease).arg(&self.owner).arg(millis(self.life)).arg(&self.keys.news);
        runtime.spawn(async move {
            for _ in 0..RELEASES {
                match redis.ask::<i64>(&release).await {
                    Ok(_) => return,
                    Err(error) => tracing::debug!(%error, "the lease was not given back"),
                }
                sleep(HEARTBEAT).await;
            }
        });
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        Self(fault.to_string())
    }
}
