//! Counters and latency histograms that a caller can read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A count that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sub-buckets per power of two: values are exact to one part in eight.
const SUB_BUCKETS: usize = 8;
const BUCKETS: usize = (64 - 2) * SUB_BUCKETS;

/// Latencies in buckets of about 12 % width, from a nanosecond to centuries. Recording is one relaxed increment.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: Box<[AtomicU64]>,
    max_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), max_ns: AtomicU64::new(0) }
    }
}

/// A summary of latencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// How many were measured.
    pub count: u64,
    /// Half took no longer than this.
    pub p50: Duration,
    /// 99 of 100 took no longer than this.
    pub p99: Duration,
    /// 999 of 1000 took no longer than this.
    pub p999: Duration,
    /// The longest.
    pub max: Duration,
}

impl Histogram {
    pub(crate) fn record(&self, elapsed: Duration) {
        let ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
        self.max_ns.fetch_max(ns, Ordering::Relaxed);
    }

    pub(crate) fn summary(&self) -> Latencies {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        let max_ns = self.max_ns.load(Ordering::Relaxed);
        let at = |per_mille: u64| {
            let rank = (count * per_mille).div_ceil(1000).max(1);
            let mut seen = 0;
            let bucket = counts.iter().position(|bucket| {
                seen += bucket;
                seen >= rank
            });
            Duration::from_nanos(bucket.map_or(0, upper_bound).min(max_ns))
        };
        Latencies { count, p50: at(500), p99: at(990), p999: at(999), max: Duration::from_nanos(max_ns) }
    }
}

fn bucket_of(ns: u64) -> usize {
    if ns < SUB_BUCKETS as u64 {
        return ns as usize;
    }
    let log = ns.ilog2() as usize;
    let sub = (ns >> (log - 3)) as usize & (SUB_BUCKETS - 1);
    (log - 2) * SUB_BUCKETS + sub
}

fn upper_bound(bucket: usize) -> u64 {
    if bucket < SUB_BUCKETS {
        return bucket as u64;
    }
    let (log, sub) = (bucket / SUB_BUCKETS + 2, (bucket % SUB_BUCKETS) as u64);
    ((SUB_BUCKETS as u64 + sub + 1) << (log - 3)).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_ordered_and_tight() {
        for ns in (0..10_000).chain([1 << 20, u64::MAX / 2, u64::MAX]) {
            let upper = upper_bound(bucket_of(ns));
            assert!(upper >= ns && upper - ns <= ns / 8 + 1, "{ns} in bucket up to {upper}");
        }
    }

    #[test]
    fn percentiles_of_a_known_distribution() {
        let histogram = Histogram::default();
        (1..=1000u64).for_each(|us| histogram.record(Duration::from_micros(us)));
        let summary = histogram.summary();
        assert_eq!((summary.count, summary.max), (1000, Duration::from_millis(1)));
        assert!((500..=565).contains(&(summary.p50.as_micros() as u64)), "{summary:?}");
        assert!((990..=1000).contains(&(summary.p99.as_micros() as u64)), "{summary:?}");
    }
}
