//! Numbers about a log.

use std::sync::atomic::{AtomicU64, Ordering};

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

const SECONDS: u64 = 60;

/// Counts entries of the last minute, second by second. Whoever has the turn counts; anybody may ask.
#[derive(Debug)]
pub(crate) struct Rate {
    /// For each second of a minute: which one since the Unix epoch (its low half), and the entries in it.
    seconds: [AtomicU64; SECONDS as usize],
}

impl Rate {
    pub(crate) fn new() -> Rate {
        Rate { seconds: [const { AtomicU64::new(0) }; SECONDS as usize] }
    }

    /// Counts entries. A clock that went back by less than a minute loses what it counts again, nothing else.
    pub(crate) fn count(&self, now_ms: u64, entries: u64) {
        let now = now_ms / 1000;
        let second = &self.seconds[(now % SECONDS) as usize];
        let (counted, count) = unpack(second.load(Ordering::Relaxed));
        let before = if counted == now as u32 { count } else { 0 };
        let count = u64::from(before).saturating_add(entries).min(u64::from(u32::MAX));
        second.store(u64::from(now as u32) << 32 | count, Ordering::Relaxed);
    }

    /// The entries of the minute that ends now.
    pub(crate) fn per_minute(&self, now_ms: u64) -> u64 {
        let now = (now_ms / 1000) as u32;
        let counts = self.seconds.iter().map(|second| unpack(second.load(Ordering::Relaxed)));
        counts
            .filter(|&(counted, _)| u64::from(now.wrapping_sub(counted)) < SECONDS)
            .map(|(_, count)| u64::from(count))
            .sum()
    }
}

/// Which second, and how many entries.
fn unpack(second: u64) -> (u32, u32) {
    ((second >> 32) as u32, second as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minute_is_counted() {
        let rate = Rate::new();
        assert_eq!(rate.per_minute(1_000_000), 0);
        rate.count(1_000_000, 5);
        rate.count(1_030_500, 2);
        assert_eq!(rate.per_minute(1_030_999), 7);
        assert_eq!(rate.per_minute(1_059_999), 7);
        assert_eq!(rate.per_minute(1_060_000), 2);
        rate.count(1_059_000, 1);
        rate.count(1_059_999, 3);
        assert_eq!(rate.per_minute(1_061_000), 6, "a clock that goes back a little loses nothing");
        rate.count(1_119_000, 4);
        assert_eq!(rate.per_minute(1_119_000), 4, "a minute later the second is another one");
        assert_eq!(rate.per_minute(9_000_000), 0);
        rate.count(9_000_000, u64::MAX);
        assert_eq!(rate.per_minute(9_000_000), u64::from(u32::MAX));
    }
}
