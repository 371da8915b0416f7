//! When the worker may fetch: pure arithmetic on the monotonic clock, so that every schedule can be read and tested
//! without a worker.
//!
//! - [`due`]: when a live token is renewed.
//! - [`Backoff`]: after fetches that failed.
//! - [`Refusals`]: after fetches that brought what WeChat then refused.
//! - [`Budget`]: over all of them, so that no bug of ours burns a daily quota.
//! - [`ForceBudget`]: over those that void the token, of which WeChat grants 20 a day.

use std::time::Duration;

use tokio::time::Instant;

use crate::token::Token;
use crate::token::source::{Class, FetchError, Pace};

/// When to renew `token`: with `ahead` of its life left, a little less by chance, and never before half of what it
/// had left when it came, because stable_token hands out tokens in the middle of their lives.
pub(super) fn due(token: &Token, pace: &Pace) -> Instant {
    let by_chance = pace.jitter.mul_f64(fastrand::f64());
    let margin = pace.ahead.saturating_sub(by_chance).min(token.remaining() / 2);
    token.expires_at() - margin
}

/// The waits between fetches that fail.
#[derive(Default)]
pub(super) struct Backoff {
    class: Option<Class>,
    failures: u32,
}

impl Backoff {
    /// How long to wait after this failure: the least its kind asks for, doubling to the most, 20 % more or less so
    /// that replicas drift apart, but never less than the least.
    pub(super) fn after(&mut self, error: &FetchError) -> Duration {
        if self.class.replace(error.class) != Some(error.class) {
            self.failures = 0;
        }
        let doubled = error.retry_after.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        let wait = doubled.min(error.at_most).mul_f64(0.8 + 0.4 * fastrand::f64());
        wait.max(error.retry_after)
    }
}

/// The first wait after a fetch that did not help.
const FIRST_REFUSAL_WAIT: Duration = Duration::from_secs(2);

/// Fetches in a row that bring another token, refused before it was ever accepted, until the breaker closes. When
/// someone else fetches at the same time as we do, one of the two tokens is dead on arrival; five are no accident.
const FREE_FETCHES: u32 = 5;

/// The breaker on refusals: a fetch helps when what it brings is accepted. While it does not, the next refusal waits
/// 2 s, 4 s, 8 s ... for its fetch, up to the pace's `refusal_wait`: from the first time on where the very same token
/// came back, and after [`FREE_FETCHES`] where there was another each time. Where WeChat accepted the token in
/// between, there is no wait at all: someone else voids it.
pub(super) struct Refusals {
    longest: Duration,
    last: Option<Token>,
    streak: u32,
    closed_until: Option<Instant>,
}

impl Refusals {
    pub(super) fn new(pace: &Pace) -> Self {
        Self { longest: pace.refusal_wait, last: None, streak: 0, closed_until: None }
    }

    /// How long a refusal of `token` has to wait for a fetch.
    pub(super) fn wait(&self, token: &Token) -> Duration {
        match self.closed_until {
            Some(until) if !self.is_news(token) => until.saturating_duration_since(Instant::now()),
            _ => Duration::ZERO,
        }
    }

    /// Until when refusals wait for their fetch, if they did of late.
    pub(super) fn closed_until(&self) -> Option<Instant> {
        self.closed_until
    }

    /// A fetch begins because `token` was refused.
    pub(super) fn begin(&mut self, token: &Token) {
        let long_quiet = self.closed_until.is_some_and(|until| until.elapsed() > self.longest);
        if self.is_news(token) || long_quiet {
            self.streak = 0;
        }
        self.streak = self.streak.saturating_add(1);
        self.last = Some(token.clone());
    }

    /// It ended, and brought the `same` token or another.
    pub(super) fn end(&mut self, same: bool) {
        let unhelpful = if same { self.streak } else { self.streak.saturating_sub(FREE_FETCHES) };
        let wait = match unhelpful {
            0 => Duration::ZERO,
            n => FIRST_REFUSAL_WAIT.saturating_mul(2_u32.saturating_pow(n - 1)).min(self.longest),
        };
        self.closed_until = Some(Instant::now() + wait);
    }

    /// Whether WeChat took this token at some time since the last refusal.
    fn is_news(&self, token: &Token) -> bool {
        token.was_accepted() && self.last.as_ref() != Some(token)
    }
}

/// A token bucket over all fetches.
pub(super) struct Budget {
    burst: u32,
    refill: Duration,
    left: u32,
    counted_at: Instant,
}

impl Budget {
    pub(super) fn new(pace: &Pace) -> Self {
        Self { burst: pace.burst, refill: pace.refill, left: pace.burst, counted_at: Instant::now() }
    }

    /// Takes one fetch.
    ///
    /// # Errors
    /// How long until there is one.
    pub(super) fn take(&mut self) -> Result<(), Duration> {
        let whole = self.counted_at.elapsed().as_nanos() / self.refill.as_nanos().max(1);
        let whole = u32::try_from(whole).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(whole).min(self.burst);
        if self.left == self.burst {
            self.counted_at = Instant::now();
        } else {
            self.counted_at += self.refill.saturating_mul(whole);
        }
        if self.left == 0 {
            return Err(self.refill.saturating_sub(self.counted_at.elapsed()));
        }
        self.left -= 1;
        Ok(())
    }
}

/// Forced refreshes that WeChat grants a day, and how far apart (`wechat-api.md` 2): a call that comes sooner is
/// answered with the token there is, and counts all the same.
const FORCED_A_DAY: usize = 20;
const FORCED_APART: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is left of WeChat's budget for forced refreshes, as far as this process knows.
#[derive(Default)]
pub(super) struct ForceBudget(Vec<Instant>);

impl ForceBudget {
    /// Takes one forced refresh.
    ///
    /// # Errors
    /// A sentence that says why not, and when.
    pub(super) fn take(&mut self) -> Result<(), String> {
        self.0.retain(|at| at.elapsed() < DAY);
        let since = self.0.last().map(Instant::elapsed);
        if let Some(wait) = since.and_then(|since| FORCED_APART.checked_sub(since)).filter(|w| !w.is_zero()) {
            let wait = wait.as_secs_f64().ceil();
            return Err(format!(
                "WeChat takes one forced refresh in 30 s, and the last was just now; try again in {wait} s"
            ));
        }
        if self.0.len() >= FORCED_A_DAY {
            return Err(format!(
                "WeChat grants {FORCED_A_DAY} forced refreshes a day, and they are used up; an unforced refresh is always possible"
            ));
        }
        self.0.push(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn pace(burst: u32, refill: u64) -> Pace {
        Pace {
            ahead: secs(300),
            jitter: secs(30),
            burst,
            refill: secs(refill),
            refusal_wait: secs(300),
            voids_the_last: false,
        }
    }

    fn token(value: &str, life: u64) -> Token {
        Token::new(value, Instant::now(), secs(life)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_in_its_last_five_minutes_or_half_way() {
        for _ in 0..100 {
            let left = |life| {
                let token = token("t", life);
                token.expires_at() - due(&token, &pace(1, 1))
            };
            assert!(left(7200) <= secs(300) && left(7200) >= secs(270));
            assert_eq!(left(300), secs(150));
            assert_eq!(left(1), Duration::from_millis(500));
        }
    }

    #[test]
    fn waits_double_from_the_least_to_the_most() {
        let mut backoff = Backoff::default();
        let busy = FetchError::transient("busy");
        for expected in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let wait = backoff.after(&busy);
            assert!(wait >= secs(expected).mul_f64(0.8) && wait <= secs(expected).mul_f64(1.2), "{wait:?}");
            assert!(wait >= secs(1));
        }
        let config = FetchError { class: Class::Config, retry_after: secs(60), ..busy };
        assert!(backoff.after(&config) < secs(73), "another class begins anew");
        for _ in 0..100 {
            assert!(backoff.after(&config) >= secs(60));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_keeps_being_refused_waits_longer_and_longer() {
        let mut refusals = Refusals::new(&pace(1, 1));
        let same = token("same", 7200);
        same.mark_accepted();
        for expected in [0, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            assert_eq!(refusals.wait(&same), secs(expected));
            advance(secs(expected)).await;
            refusals.begin(&same);
            refusals.end(true);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_that_are_never_accepted_wait_longer_and_longer_and_accepted_ones_not_at_all() {
        let mut refusals = Refusals::new(&pace(1, 1));
        for (n, expected) in [0, 0, 0, 0, 0, 0, 2, 4, 8].into_iter().enumerate() {
            let fresh = token(&format!("t{n}"), 7200);
            assert_eq!(refusals.wait(&fresh), secs(expected));
            advance(secs(expected)).await;
            refusals.begin(&fresh);
            refusals.end(false);
        }
        for n in 0..100 {
            let good = token(&format!("good{n}"), 7200);
            good.mark_accepted();
            assert_eq!(refusals.wait(&good), Duration::ZERO);
            refusals.begin(&good);
            refusals.end(false);
        }
        // An hour later the streak is forgotten.
        advance(secs(3600)).await;
        refusals.begin(&token("x", 7200));
        refusals.end(true);
        assert_eq!(refusals.wait(&token("y", 7200)), secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_is_a_burst_and_then_a_trickle() {
        let mut budget = Budget::new(&pace(3, 60));
        for _ in 0..3 {
            assert_eq!(budget.take(), Ok(()));
        }
        assert_eq!(budget.take(), Err(secs(60)));
        advance(secs(45)).await;
        assert_eq!(budget.take(), Err(secs(15)));
        advance(secs(15)).await;
        assert_eq!(budget.take(), Ok(()));
        assert_eq!(budget.take(), Err(secs(60)));
        advance(secs(86_400 * 365)).await;
        for _ in 0..3 {
            assert_eq!(budget.take(), Ok(()));
        }
        assert!(budget.take().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn twenty_forced_refreshes_a_day_and_no_two_within_30_seconds() {
        let mut budget = ForceBudget::default();
        for _ in 0..20 {
            assert_eq!(budget.take(), Ok(()));
            assert!(budget.take().unwrap_err().contains("in 30 s"));
            advance(secs(30)).await;
        }
        assert!(budget.take().unwrap_err().contains("a day"));
        advance(secs(86_400 - 20 * 30)).await;
        assert_eq!(budget.take(), Ok(()));
    }
}
