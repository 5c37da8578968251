//! The records every contender writes: slices of one pool of pseudo-random bytes, which nothing can compress.

use std::sync::OnceLock;

/// Bytes in the pool. Small enough to stay near the processor, so that producing records costs nobody anything.
const POOL_BYTES: usize = 2 << 20;

/// The pool, made once per process and always of the same bytes.
fn pool() -> &'static [u8] {
    static POOL: OnceLock<Vec<u8>> = OnceLock::new();
    POOL.get_or_init(|| random_bytes(POOL_BYTES, 0x6c73_6673))
}

/// Pseudo-random bytes from a splitmix64 generator.
fn random_bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// The `len` bytes at a place of the pool that `seed` says.
pub fn slice(seed: u64, len: usize) -> &'static [u8] {
    let from = (seed % ((POOL_BYTES - len) as u64 / 8)) as usize * 8;
    &pool()[from..from + len]
}

/// An endless sequence of records for one producer.
pub struct Feed {
    record_bytes: usize,
    next: usize,
}

impl Feed {
    /// The records of producer `number`; each producer starts at another place of the pool.
    pub fn new(number: usize, record_bytes: usize) -> Self {
        assert!(record_bytes > 0 && record_bytes < POOL_BYTES, "a record must fit the pool");
        let next = (number * 8191 * 8) % (POOL_BYTES - record_bytes);
        Feed { record_bytes, next }
    }

    /// The next record.
    pub fn next_record(&mut self) -> &'static [u8] {
        let record = &pool()[self.next..self.next + self.record_bytes];
        // A step that is no divisor of the pool, so that records differ from one lap to the next.
        self.next = (self.next + self.record_bytes + 8) % (POOL_BYTES - self.record_bytes);
        record
    }

    /// Replaces the content of `batch` with its capacity's worth of `count` records.
    pub fn fill(&mut self, batch: &mut Vec<&'static [u8]>, count: usize) {
        batch.clear();
        batch.extend((0..count).map(|_| self.next_record()));
    }
}
