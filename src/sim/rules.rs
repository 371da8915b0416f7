//! What WeChat does with tokens, as far as we know it (`wechat-api.md` 1-3): a pure state machine.
//!
//! It opens no socket and reads no clock: every method is told `now`, the time since the simulation began, and
//! what looks random comes from a seed. So a test runs days in microseconds and always sees the same tokens.
//!
//! Where the documents are silent, this is the stricter reading, so that what works here works there:
//! - An account has two [`Kind`]s of token that never touch each other. Of each kind at most two work at a time:
//!   the newest, and the one before it during the handover.
//! - A handover ends the older token five minutes later, for both kinds; a third token ends the first at once.
//! - A forced refresh ends everything older at once. The documents speak of two forced calls to kill a leaked token,
//!   so the real one may be gentler (`wechat-api.md` 8, point 1).
//! - A token that was replaced answers 40001, one whose life ran out 42001, one never issued here 40014.
//! - A day is 24 hours and a minute 60 seconds, counted from the start.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::errcode::Errcode;

/// Quotas count per day of this length.
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Quotas count per minute of this length.
pub const MINUTE: Duration = Duration::from_secs(60);
/// How many issued tokens are remembered. An older one is as good as never issued: 40014.
const REMEMBERED: usize = 10_000;
/// No token is shorter than this: it must stay unique.
const SHORTEST: usize = 16;
/// And none longer: a slip of the finger must not fill the memory.
const LONGEST: usize = 1 << 20;

/// Which endpoint issued a token. The two never invalidate each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `GET /cgi-bin/token`: every fetch makes a new token.
    Classic,
    /// `POST /cgi-bin/stable_token`: the same token until its last five minutes.
    Stable,
}

/// The numbers in the rules. The default is what is documented.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A token's life in seconds.
    pub life: u64,
    /// How long the older token still works in a handover, and a stable token's early renewal, in seconds.
    /// Never more than half the life, so that a short life is still a life.
    pub overlap: u64,
    /// Classic fetches a day.
    pub classic_per_day: u64,
    /// Stable fetches a minute.
    pub stable_per_minute: u64,
    /// Stable fetches a day.
    pub stable_per_day: u64,
    /// Forced refreshes a day.
    pub forced_per_day: u64,
    /// The least seconds between two forced refreshes; sooner, the current token comes back.
    pub forced_gap: u64,
    /// Quota resets (`clear_quota`) a month of 30 days.
    pub resets_per_month: u64,
    /// A new token's length in characters.
    pub token_length: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            life: 7200,
            overlap: 300,
            classic_per_day: 2000,
            stable_per_minute: 10_000,
            stable_per_day: 500_000,
            forced_per_day: 20,
            forced_gap: 30,
            resets_per_month: 10,
            token_length: 512,
        }
    }
}

impl Limits {
    fn life(&self) -> Duration {
        Duration::from_secs(self.life)
    }

    fn window(&self) -> Duration {
        Duration::from_secs(self.overlap).min(self.life() / 2)
    }
}

/// What a fetch got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The token.
    pub token: String,
    /// Its remaining life in whole seconds.
    pub expires_in: u64,
    /// Whether it was made for this fetch.
    pub fresh: bool,
}

/// Whose a good token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The account.
    pub appid: String,
    /// Which endpoint issued it; `None` for one a test declared good.
    pub kind: Option<Kind>,
}

/// How a token that works ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its life runs out: 42001.
    RunsOut,
    /// Another took its place: 40001.
    Replaced,
}

#[derive(Debug)]
struct Issued {
    appid: String,
    kind: Kind,
    serial: u64,
    /// The end it was given when issued.
    expires_at: Duration,
    /// When it really stops working.
    ends_at: Duration,
    end: End,
}

/// The last two tokens of one kind.
#[derive(Debug, Default)]
struct Line {
    current: Option<String>,
    previous: Option<String>,
}

/// A quota: how often within the present period.
#[derive(Debug, Default)]
struct Meter {
    period: u64,
    used: u64,
}

impl Meter {
    fn used(&mut self, now: Duration, period: Duration) -> u64 {
        let present = now.as_secs() / period.as_secs();
        if present != self.period {
            *self = Self { period: present, used: 0 };
        }
        self.used
    }

    /// Counts one more, or says that the limit is reached.
    fn take(&mut self, now: Duration, period: Duration, limit: u64) -> bool {
        let free = self.used(now, period) < limit;
        if free {
            self.used += 1;
        }
        free
    }
}

#[derive(Debug, Default)]
struct Account {
    secret: String,
    classic: Line,
    stable: Line,
    classic_day: Meter,
    stable_minute: Meter,
    stable_day: Meter,
    forced_day: Meter,
    resets: Meter,
    forced_at: Option<Duration>,
    /// Tokens a test declared good.
    extra: Vec<String>,
}

/// A token as an observer sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Live {
    /// Which endpoint issued it.
    pub kind: Kind,
    /// The token.
    pub token: String,
    /// Seconds until it stops working.
    pub works_for: u64,
}

/// The accounts, their tokens and their quotas.
#[derive(Debug)]
pub struct Rules {
    limits: Limits,
    accounts: BTreeMap<String, Account>,
    issued: HashMap<String, Issued>,
    order: VecDeque<String>,
    serial: u64,
    random: fastrand::Rng,
}

impl Rules {
    /// A WeChat without accounts.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            accounts: BTreeMap::new(),
            issued: HashMap::new(),
            order: VecDeque::new(),
            serial: 0,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// Registers an account, or changes the secret of one.
    pub fn set_account(&mut self, appid: &str, secret: &str) {
        self.accounts.entry(appid.to_owned()).or_default().secret = secret.to_owned();
    }

    /// The accounts, in alphabetical order.
    pub fn appids(&self) -> impl Iterator<Item = &str> {
        self.accounts.keys().map(String::as_str)
    }

    /// The numbers in force.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Changes the numbers. Tokens already issued keep their life.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether this appid and secret belong together.
    ///
    /// # Errors
    /// 41002, 41004, 40013 or 40125.
    pub fn authenticate(&self, appid: Option<&str>, secret: Option<&str>) -> Result<(), Errcode> {
        let appid = appid.filter(|text| !text.is_empty()).ok_or(Errcode::APPID_MISSING)?;
        let secret = secret.filter(|text| !text.is_empty()).ok_or(Errcode::SECRET_MISSING)?;
        let account = self.accounts.get(appid).ok_or(Errcode::APPID)?;
        if account.secret == secret { Ok(()) } else { Err(Errcode::SECRET) }
    }

    /// `GET /cgi-bin/token`, after [`Self::authenticate`]: always a new token.
    ///
    /// # Errors
    /// 40013 for no such account, 45009 beyond the day's quota.
    pub fn fetch_classic(&mut self, appid: &str, now: Duration) -> Result<Grant, Errcode> {
        let limit = self.limits.classic_per_day;
        let account = self.accounts.get_mut(appid).ok_or(Errcode::APPID)?;
        if !account.classic_day.take(now, DAY, limit) {
            return Err(Errcode::DAY_QUOTA);
        }
        Ok(self.issue(appid, Kind::Classic, self.limits.window(), now))
    }

    /// `POST /cgi-bin/stable_token`, after [`Self::authenticate`]: the same token until its last five minutes,
    /// unless `force`.
    ///
    /// # Errors
    /// 40013 for no such account, 45011 and 45009 beyond the minute's, the day's or the forced quota.
    pub fn fetch_stable(&mut self, appid: &str, force: bool, now: Duration) -> Result<Grant, Errcode> {
        let limits = self.limits.clone();
        let account = self.accounts.get_mut(appid).ok_or(Errcode::APPID)?;
        if !account.stable_minute.take(now, MINUTE, limits.stable_per_minute) {
            return Err(Errcode::MINUTE_QUOTA);
        }
        if !account.stable_day.take(now, DAY, limits.stable_per_day) {
            return Err(Errcode::DAY_QUOTA);
        }
        let rested = account
            .forced_at
            .is_none_or(|at| now.saturating_sub(at) >= Duration::from_secs(limits.forced_gap));
        if force && rested {
            if !account.forced_day.take(now, DAY, limits.forced_per_day) {
                return Err(Errcode::DAY_QUOTA);
            }
            account.forced_at = Some(now);
            return Ok(self.issue(appid, Kind::Stable, Duration::ZERO, now));
        }
        let kept = account.stable.current.clone().and_then(|token| {
            let issued = self.issued.get(&token).filter(|issued| now < issued.ends_at)?;
            let remaining = issued.expires_at.saturating_sub(now);
            // Documented: at any moment expires_in >= 300, so the token is kept to that second and not beyond.
            (remaining >= limits.window()).then_some(Grant {
                token,
                expires_in: remaining.as_secs(),
                fresh: false,
            })
        });
        Ok(kept.unwrap_or_else(|| self.issue(appid, Kind::Stable, limits.window(), now)))
    }

    /// Judges the token of a business call.
    ///
    /// # Errors
    /// 41001 without one, 40014 for one never issued, 40001 for one that was replaced, 42001 for one that ran out.
    pub fn judge(&self, token: Option<&str>, now: Duration) -> Result<Owner, Errcode> {
        let token = token.filter(|text| !text.is_empty()).ok_or(Errcode::TOKEN_MISSING)?;
        if let Some(issued) = self.issued.get(token) {
            return if now < issued.ends_at {
                Ok(Owner { appid: issued.appid.clone(), kind: Some(issued.kind) })
            } else if issued.end == End::Replaced {
                Err(Errcode::NOT_LATEST)
            } else {
                Err(Errcode::EXPIRED)
            };
        }
        self.accounts
            .iter()
            .find(|(_, account)| account.extra.iter().any(|extra| extra == token))
            .map(|(appid, _)| Owner { appid: appid.clone(), kind: None })
            .ok_or(Errcode::INVALID_TOKEN)
    }

    /// Whether this token was ever issued here, or declared good.
    #[must_use]
    pub fn knows(&self, token: &str) -> bool {
        self.issued.contains_key(token)
            || self.accounts.values().any(|account| account.extra.iter().any(|extra| extra == token))
    }

    /// The tokens of an account that work now, the newest first.
    #[must_use]
    pub fn live(&self, appid: &str, now: Duration) -> Vec<Live> {
        let Some(account) = self.accounts.get(appid) else { return Vec::new() };
        let held = [&account.classic, &account.stable].into_iter();
        let mut found: Vec<(&Issued, &String)> = held
            .flat_map(|line| [&line.current, &line.previous])
            .flatten()
            .filter_map(|token| Some((self.issued.get(token)?, token)))
            .filter(|(issued, _)| now < issued.ends_at)
            .collect();
        found.sort_by_key(|(issued, _)| std::cmp::Reverse(issued.serial));
        found
            .into_iter()
            .map(|(issued, token)| Live {
                kind: issued.kind,
                token: token.clone(),
                works_for: issued.ends_at.saturating_sub(now).as_secs(),
            })
            .collect()
    }

    /// Lets every token of an account run out now: 42001.
    pub fn expire(&mut self, appid: &str, now: Duration) {
        for live in self.live(appid, now) {
            self.end(&live.token, End::RunsOut, now, now);
        }
    }

    /// Another caller takes a new token. `at_once` ends the older ones now, as a forced refresh does; otherwise they
    /// have their handover. It costs the account no quota.
    pub fn rotate(&mut self, appid: &str, kind: Kind, at_once: bool, now: Duration) -> Option<Grant> {
        if !self.accounts.contains_key(appid) {
            return None;
        }
        let overlap = if at_once { Duration::ZERO } else { self.limits.window() };
        Some(self.issue(appid, kind, overlap, now))
    }

    /// Ends handovers now: of each kind only the newest token still works.
    pub fn revoke_overlap(&mut self, appid: &str, now: Duration) {
        let Some(account) = self.accounts.get(appid) else { return };
        for token in [account.classic.previous.clone(), account.stable.previous.clone()].into_iter().flatten()
        {
            self.end(&token, End::Replaced, now, now);
        }
    }

    /// Declares a token good that was not issued here.
    pub fn accept_extra(&mut self, appid: &str, token: &str) {
        if let Some(account) = self.accounts.get_mut(appid) {
            account.extra.push(token.to_owned());
        }
    }

    /// `clear_quota`: the day's counts begin anew.
    ///
    /// # Errors
    /// 48006 when the month's resets are used up.
    pub fn clear_quota(&mut self, appid: &str, now: Duration) -> Result<(), Errcode> {
        let limit = self.limits.resets_per_month;
        let account = self.accounts.get_mut(appid).ok_or(Errcode::APPID)?;
        if !account.resets.take(now, DAY * 30, limit) {
            return Err(Errcode::RESETS_USED);
        }
        account.classic_day = Meter::default();
        account.stable_day = Meter::default();
        account.forced_day = Meter::default();
        Ok(())
    }

    /// How many classic, stable and forced fetches an account made today.
    pub fn used_today(&mut self, appid: &str, now: Duration) -> (u64, u64, u64) {
        self.accounts.get_mut(appid).map_or((0, 0, 0), |account| {
            let classic = account.classic_day.used(now, DAY);
            (classic, account.stable_day.used(now, DAY), account.forced_day.used(now, DAY))
        })
    }

    /// Text that looks random: `[A-Za-z0-9_-]`, from the seed.
    pub fn scribble(&mut self, length: usize) -> String {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
        (0..length).map(|_| char::from(ALPHABET[self.random.usize(..64)])).collect()
    }

    /// A request's name in an errmsg: `654df33c-64386a2f-29857782`, the first part a time in seconds.
    pub fn rid(&mut self, now: Duration) -> String {
        // Seconds of a fixed day: a simulation has no date, and a test wants the same text twice.
        let first = (0x654d_f33c + now.as_secs()) & 0xffff_ffff;
        format!("{first:08x}-{:08x}-{:08x}", self.random.u32(..), self.random.u32(..))
    }

    /// Makes a token and hands over to it: the current one works for `overlap` more, the one before it ends now.
    fn issue(&mut self, appid: &str, kind: Kind, overlap: Duration, now: Duration) -> Grant {
        let length = self.limits.token_length.clamp(SHORTEST, LONGEST);
        let token = loop {
            let number = 50 + self.serial % 50;
            let token = format!("{number}_{}", self.scribble(length - 3));
            if !self.issued.contains_key(&token) {
                break token;
            }
        };
        self.serial += 1;
        let mut nobody = Line::default();
        let line = match self.accounts.get_mut(appid) {
            Some(account) if kind == Kind::Classic => &mut account.classic,
            Some(account) => &mut account.stable,
            None => &mut nobody,
        };
        let current = line.current.replace(token.clone());
        let before = std::mem::replace(&mut line.previous, current.clone());
        if let Some(before) = before {
            self.end(&before, End::Replaced, now, now);
        }
        if let Some(current) = current {
            self.end(&current, End::Replaced, now, now + overlap);
        }
        let ends_at = now + self.limits.life();
        self.issued.insert(
            token.clone(),
            Issued {
                appid: appid.to_owned(),
                kind,
                serial: self.serial,
                expires_at: ends_at,
                ends_at,
                end: End::RunsOut,
            },
        );
        self.order.push_back(token.clone());
        self.forget(now);
        Grant { token, expires_in: self.limits.life, fresh: true }
    }

    /// Sets when and of what a token will end. One that is dead already stays dead of what it died of.
    fn end(&mut self, token: &str, end: End, now: Duration, at: Duration) {
        if let Some(issued) = self.issued.get_mut(token)
            && now < issued.ends_at
        {
            issued.end = end;
            issued.ends_at = at;
        }
    }

    /// Forgets the oldest tokens beyond what is remembered, but none that still works.
    fn forget(&mut self, now: Duration) {
        while self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            if self.issued.get(&oldest).is_some_and(|issued| now < issued.ends_at) {
                self.order.push_back(oldest);
            } else {
                self.issued.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests;
