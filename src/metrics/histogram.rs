//! How long things took, in buckets: [`Histogram`], which one worker writes, and [`Distribution`], the sum of all.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::{add, add_n, read};

/// Upper bounds in microseconds for what a network is part of: 1 ms to a minute.
pub(super) const TIME_BOUNDS: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];

/// And for our own work, which is tens of microseconds (`perf.md`).
pub(super) const OWN_BOUNDS: [u64; 12] =
    [10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000];

/// One writer's observations.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds: &'static [u64],
    /// One for each bound, and one for what is above all of them.
    buckets: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [u64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum: AtomicU64::new(0) }
    }

    pub(super) fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = self.bounds.iter().position(|bound| micros <= *bound).unwrap_or(self.bounds.len());
        add(&self.buckets[bucket]);
        add_n(&self.sum, micros);
    }

    pub(super) fn add_to(&self, sum: &mut Distribution) {
        sum.counts.iter_mut().zip(&self.buckets).for_each(|(count, bucket)| *count += read(bucket));
        sum.micros += read(&self.sum);
    }
}

/// All workers' observations of one thing.
#[derive(Clone, Debug)]
pub struct Distribution {
    bounds: &'static [u64],
    counts: Vec<u64>,
    micros: u64,
}

impl Distribution {
    pub(super) fn empty(bounds: &'static [u64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], micros: 0 }
    }

    /// How many observations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together, in seconds.
    #[must_use]
    pub fn sum_seconds(&self) -> f64 {
        Duration::from_micros(self.micros).as_secs_f64()
    }

    /// Each bucket's upper bound in seconds and how many are in it alone; the last has no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().map(|&micros| Duration::from_micros(micros).as_secs_f64());
        bounds.chain([f64::INFINITY]).zip(self.counts.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_is_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::new(&OWN_BOUNDS);
        for micros in [0, 10, 11, 100_000, 100_001, 5_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut sum = Distribution::empty(&OWN_BOUNDS);
        histogram.add_to(&mut sum);
        histogram.add_to(&mut sum);
        let buckets: Vec<_> = sum.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(buckets, [(0.00001, 4), (0.000_025, 2), (0.1, 2), (f64::INFINITY, 4)]);
        assert_eq!(sum.count(), 12);
        assert!((sum.sum_seconds() - 2.0 * 5.200_022).abs() < 1e-9);
    }
}
