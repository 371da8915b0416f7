//! No line repeats itself thousands of times: [`Repeats`] lets each place in the code log so many lines in a row, and
//! then so many a minute. What it left out is counted, for the metrics.
//!
//! What was asked for at debug and below is exempt; and the access log, one line a call, does not come by here
//! ([`access`](super::access)).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines in a row. More than the accounts of most sidecars, each of which says a few things at the start.
const BURST: u32 = 200;
/// And then one in so long.
const REFILL: Duration = Duration::from_secs(6);

/// Lines left out by this process.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// How many lines were left out since the process began.
#[must_use]
pub fn left_out() -> u64 {
    LEFT_OUT.load(Ordering::Relaxed)
}

/// Counts lines that were left out, whatever for.
pub(super) fn count(lines: u64) {
    LEFT_OUT.fetch_add(lines, Ordering::Relaxed);
}

/// Leaves out what repeats itself.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<Identifier, Bucket>>);

#[derive(Debug)]
struct Bucket {
    left: u32,
    counted_at: Instant,
}

impl Bucket {
    fn take(&mut self) -> bool {
        let due = self.counted_at.elapsed().as_nanos() / REFILL.as_nanos();
        let due = u32::try_from(due).unwrap_or(u32::MAX);
        if due > 0 {
            self.left = self.left.saturating_add(due).min(BURST);
            self.counted_at = Instant::now();
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

impl<S: Subscriber> Layer<S> for Repeats {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let line = event.metadata();
        if *line.level() > Level::INFO {
            return true;
        }
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets
            .entry(line.callsite())
            .or_insert_with(|| Bucket { left: BURST, counted_at: Instant::now() });
        let may = bucket.take();
        if !may {
            count(1);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::tests::Lines;
    use crate::telemetry::{Format, access};

    #[tokio::test(start_paused = true)]
    async fn a_storm_of_one_line_is_a_few_and_drowns_no_other() {
        let lines = Lines::default();
        let _on = tracing::dispatcher::set_default(&lines.dispatch("trace", Format::Text));
        let storm = || tracing::warn!("a storm");
        let before = left_out();
        for _ in 0..5000 {
            storm();
            access::write(&access::tests::plain());
            tracing::debug!("asked for");
        }
        tracing::warn!("another");
        let count = |words: &str| lines.text().lines().filter(|line| line.contains(words)).count();
        assert_eq!(count("a storm"), BURST as usize);
        assert_eq!((count("access: call"), count("asked for"), count("another")), (5000, 5000, 1));
        assert!(left_out() - before >= 5000 - u64::from(BURST));
        tokio::time::advance(REFILL * 3).await;
        for _ in 0..10 {
            storm();
        }
        assert_eq!(count("a storm"), BURST as usize + 3, "and goes on slowly");
    }
}
