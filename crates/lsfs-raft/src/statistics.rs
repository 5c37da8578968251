//! Numbers about a log.

use std::sync::{Mutex, PoisonError};

/// Numbers about a log at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    /// Entries in the log.
    pub record_count: u64,
    /// Entries behind the last snapshot.
    pub records_since_snapshot: u64,
    /// Entries stored in the last minute.
    pub records_per_minute: u64,
    /// Bytes of the entries on the disk, with all that is around them.
    pub total_bytes: u64,
    /// How much of the space meant for the log is left, in percent.
    pub capacity_left_percent: f64,
    /// Index of the last entry in the snapshot, if there is one.
    pub snapshot_index: Option<u64>,
    /// When the last entry was stored: milliseconds since the Unix epoch by this node's clock.
    pub last_record_ms: Option<u64>,
}

const SECONDS: usize = 60;

/// Counts entries of the last minute, second by second.
#[derive(Debug)]
pub(crate) struct Rate(Mutex<Seconds>);

#[derive(Debug)]
struct Seconds {
    counts: [u64; SECONDS],
    /// The second that is being counted, since the Unix epoch.
    now: u64,
}

impl Seconds {
    /// Empties the seconds that have passed since the last look. A clock that went back changes nothing.
    fn move_to(&mut self, second: u64) {
        let passed = second.saturating_sub(self.now).min(SECONDS as u64);
        for step in 1..=passed {
            self.counts[((self.now + step) % SECONDS as u64) as usize] = 0;
        }
        if passed == SECONDS as u64 {
            self.counts = [0; SECONDS];
        }
        self.now = self.now.max(second);
    }
}

impl Rate {
    pub(crate) fn new(now_ms: u64) -> Rate {
        Rate(Mutex::new(Seconds { counts: [0; SECONDS], now: now_ms / 1000 }))
    }

    pub(crate) fn count(&self, now_ms: u64, entries: u64) {
        let mut seconds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now_ms / 1000 != seconds.now {
            seconds.move_to(now_ms / 1000);
        }
        let at = (seconds.now % SECONDS as u64) as usize;
        seconds.counts[at] += entries;
    }

    pub(crate) fn per_minute(&self, now_ms: u64) -> u64 {
        let mut seconds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seconds.move_to(now_ms / 1000);
        seconds.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minute_is_counted() {
        let rate = Rate::new(1_000_000);
        rate.count(1_000_000, 5);
        rate.count(1_030_500, 2);
        assert_eq!(rate.per_minute(1_030_999), 7);
        assert_eq!(rate.per_minute(1_059_999), 7);
        assert_eq!(rate.per_minute(1_060_000), 2);
        rate.count(1_059_000, 1);
        assert_eq!(rate.per_minute(1_061_000), 3, "a clock that goes back loses nothing");
        assert_eq!(rate.per_minute(9_000_000), 0);
    }
}
