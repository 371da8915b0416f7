//! The last hours, a minute at a time, for the page's charts: [`History`], a bounded ring of what was added to the
//! counters in each minute. Minutes are counted back from now, so that no wall clock is needed.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

/// How long a step is.
pub const STEP: Duration = Duration::from_secs(60);

/// How many steps are kept: six hours.
pub const STEPS: usize = 360;

/// Counts since the process began, or within one minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Calls that ended.
    pub calls: u64,
    /// Calls that failed: our own errors, and WeChat's.
    pub errors: u64,
    /// Calls whose token WeChat refused.
    pub refusals: u64,
    /// Calls that WeChat was sent twice.
    pub replays: u64,
    /// Token fetches.
    pub refreshes: u64,
}

impl Counts {
    fn since(self, before: Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(before.calls),
            errors: self.errors.saturating_sub(before.errors),
            refusals: self.refusals.saturating_sub(before.refusals),
            replays: self.replays.saturating_sub(before.replays),
            refreshes: self.refreshes.saturating_sub(before.refreshes),
        }
    }
}

/// The last hours.
#[derive(Debug, Default)]
pub struct History {
    minutes: VecDeque<Counts>,
    at_last_step: Counts,
}

impl History {
    /// A minute has passed; `now` is what the counters say.
    pub fn step(&mut self, now: Counts) {
        if self.minutes.len() == STEPS {
            self.minutes.pop_front();
        }
        self.minutes.push_back(now.since(self.at_last_step));
        self.at_last_step = now;
    }

    /// The minutes so far, the one that is under way last.
    #[must_use]
    pub fn minutes(&self, now: Counts) -> Vec<Counts> {
        self.minutes.iter().copied().chain([now.since(self.at_last_step)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_minute_has_what_was_added_in_it_and_the_oldest_goes() {
        let mut history = History::default();
        let counts = |calls| Counts { calls, ..Counts::default() };
        history.step(counts(5));
        history.step(counts(5));
        history.step(counts(12));
        let calls = |now| history.minutes(counts(now)).iter().map(|m| m.calls).collect::<Vec<_>>();
        assert_eq!(calls(13), [5, 0, 7, 1]);
        for n in 0..2 * STEPS as u64 {
            history.step(counts(12 + n));
        }
        assert_eq!(history.minutes(counts(0)).len(), STEPS + 1);
        assert_eq!(history.minutes(counts(0))[0].calls, 1);
    }
}
