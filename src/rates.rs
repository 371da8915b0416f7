//! How often a path may be called: [`Rates`] are limits such as `60/m /wxa/getwxacodeunlimit`, which spread a burst over
//! time instead of letting WeChat refuse its end (45009, 45011; `wechat-api.md` 6).
//!
//! Each limit is a leaky bucket (GCRA): one number that says when the next call is due, moved on by one atomic for every
//! call that takes its turn. A tenth of the limit may come at once, and the rest is spaced so that no period, wherever
//! it begins, sees more calls than the limit says. A turn that lies further ahead than a caller will wait is not taken.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use crate::policy::{Rule, Rules};

/// One limit as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rate {
    calls: u32,
    period: Duration,
    rule: Rule,
}

impl Rate {
    /// Reads `60/m /wxa/getwxacodeunlimit`: calls, a slash, `s`, `m`, `h` or `d`, and a rule.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let told = |what: &str| format!("{text:?} {what}; write it as 60/m /wxa/getwxacodeunlimit");
        let (limit, rule) =
            text.split_once(char::is_whitespace).ok_or_else(|| told("is not a limit and a path"))?;
        let (calls, unit) = limit.split_once('/').ok_or_else(|| told("does not begin with a limit"))?;
        let calls = Some(calls).filter(|calls| calls.bytes().all(|b| b.is_ascii_digit()));
        let calls = calls
            .and_then(|calls| calls.parse().ok())
            .filter(|calls| (1..=1_000_000).contains(calls))
            .ok_or_else(|| told("has no number of calls from 1 to 1000000"))?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(told("has a unit that is not s, m, h or d")),
        };
        Ok(Self { calls, period: Duration::from_secs(seconds), rule: Rule::parse(rule)? })
    }

    /// A list of them, with commas between.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        text.split(',').map(Self::parse).collect()
    }
}

/// The limits of an account, for all workers. Cheap to clone.
#[derive(Clone)]
pub struct Rates(Arc<Inner>);

struct Inner {
    rules: Rules,
    buckets: Vec<Bucket>,
    began: Instant,
}

/// In nanoseconds since the beginning.
struct Bucket {
    /// How far apart calls are.
    interval: u64,
    /// How far calls may run ahead of that.
    ahead: u64,
    /// When the call after the last one is due.
    due: AtomicU64,
}

/// A call that has to wait for longer than it will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooSoon {
    /// The limit, as a person wrote it.
    pub limit: String,
    /// When it will be its turn.
    pub after: Duration,
}

impl fmt::Debug for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rates({:?})", self.0.rules)
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Rates {
    /// These limits; a call is held to the first that matches it.
    #[must_use]
    pub fn new(rates: Vec<Rate>) -> Self {
        let bucket = |rate: &Rate| {
            // A period that begins with those at once has room for the others, evenly.
            let at_once = (rate.calls / 10).max(1);
            let interval = nanos(rate.period) / u64::from(rate.calls - at_once + 1);
            Bucket { interval, ahead: interval * u64::from(at_once), due: AtomicU64::new(0) }
        };
        let buckets = rates.iter().map(bucket).collect();
        let rules = Rules::new(rates.into_iter().map(|rate| rate.rule).collect());
        Self(Arc::new(Inner { rules, buckets, began: Instant::now() }))
    }

    /// Takes a turn: how long the call has to wait for it, at most `patience`.
    ///
    /// # Errors
    /// It would be longer; no turn was taken.
    pub fn turn(&self, method: &Method, path: &str, patience: Duration) -> Result<Duration, TooSoon> {
        let Some(number) = self.0.rules.find(method, path) else { return Ok(Duration::ZERO) };
        let bucket = &self.0.buckets[number];
        let now = nanos(self.0.began.elapsed());
        let mut wait = 0;
        let taken = bucket.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| {
            let next = due.max(now).saturating_add(bucket.interval);
            wait = next.saturating_sub(bucket.ahead).saturating_sub(now);
            (wait <= nanos(patience)).then_some(next)
        });
        let wait = Duration::from_nanos(wait);
        match taken {
            Ok(_) => Ok(wait),
            Err(_) => Err(TooSoon { limit: self.0.rules.name(number).to_owned(), after: wait }),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(list: &str) -> Rates {
        Rates::new(Rate::parse_list(list).unwrap())
    }

    /// When, in milliseconds, each of so many calls is let through that come as fast as they are.
    async fn passed(rates: &Rates, path: &str, calls: usize) -> Vec<u128> {
        let began = Instant::now();
        let mut times = Vec::new();
        for _ in 0..calls {
            let wait = rates.turn(&Method::POST, path, Duration::MAX).unwrap();
            tokio::time::sleep(wait).await;
            times.push(began.elapsed().as_millis());
        }
        times
    }

    #[tokio::test(start_paused = true)]
    async fn no_period_wherever_it_begins_sees_more_calls_than_the_limit() {
        for (limit, calls, period) in
            [("60/m", 60, 60_000), ("10/s", 10, 1000), ("5/m", 5, 60_000), ("2/s", 2, 1000)]
        {
            let times = passed(&rates(&format!("{limit} /a")), "/a", calls * 4).await;
            for (n, begin) in times.iter().enumerate() {
                // A turn is a little early where the interval is no whole number of milliseconds.
                let within = times[n..].iter().filter(|time| **time + 2 < begin + period).count();
                assert!(within <= calls, "{limit}: {within} calls within a period from {begin}");
            }
            let took = times.last().unwrap() - times[0];
            assert!(took < 4 * period * 3 / 2, "{limit}: and not much fewer: {took} ms for four periods");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_at_once_then_is_spread_and_beyond_patience_is_refused() {
        let rates = rates("20/m POST /wxa/code, 1/d /wxa/*");
        let turn = |method: Method, path| rates.turn(&method, path, Duration::from_secs(4));
        let waits: Vec<_> = (0..3).map(|_| turn(Method::POST, "/wxa/code").unwrap().as_millis()).collect();
        assert_eq!(waits, [0, 0, 3157]);
        let refused = turn(Method::POST, "/wxa/code").unwrap_err();
        assert_eq!((&refused.limit[..], refused.after.as_millis()), ("POST /wxa/code", 6315));
        assert!(turn(Method::POST, "/wxa/code").is_err(), "a call that is refused takes no turn");
        assert_eq!(turn(Method::GET, "/other"), Ok(Duration::ZERO), "no limit is on it");
        assert_eq!(turn(Method::GET, "/wxa/code"), Ok(Duration::ZERO), "it is another limit's");
        assert!(turn(Method::GET, "/wxa/x").is_err());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(turn(Method::POST, "/wxa/code"), Ok(Duration::ZERO), "rest is remembered");
    }

    #[test]
    fn a_limit_that_cannot_be_read_is_refused_with_the_remedy() {
        for bad in [
            "",
            "60/m",
            "/a",
            "60 /a",
            "60/w /a",
            "0/m /a",
            "-1/m /a",
            "+1/m /a",
            "1000001/s /a",
            "6e1/m /a",
            "/m /a",
        ] {
            assert!(Rate::parse(bad).unwrap_err().contains("; write it as 60/m"), "{bad}");
        }
        assert!(Rate::parse("60/m a").unwrap_err().contains("; write it as POST"));
        assert_eq!(Rate::parse_list("5/s POST /a/**, 1/d /b").unwrap().len(), 2);
    }
}
