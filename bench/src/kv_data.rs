//! The keys and values that every key-value store gets, and the orders in which they are asked for.

use crate::payload;

/// Bytes of a key.
pub const KEY_BYTES: usize = 16;

/// Bytes of a value, where a case does not say otherwise.
pub const VALUE_BYTES: usize = 100;

/// A key: 16 hexadecimal digits, so that it can be typed.
pub type Key = [u8; KEY_BYTES];

/// The key with this number. Neighbours in number are far from each other in order, and no two are the same.
pub fn key(number: u64) -> Key {
    let mixed = mix(number);
    let mut key = [0; KEY_BYTES];
    for (n, digit) in key.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(mixed >> (60 - 4 * n)) as usize & 15];
    }
    key
}

/// The value of a key in its `version`-th life.
pub fn value(number: u64, version: u64, bytes: usize) -> &'static [u8] {
    payload::slice(mix(number ^ version.rotate_right(8)), bytes)
}

/// A permutation of all words: the output step of splitmix64.
fn mix(number: u64) -> u64 {
    let mut word = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Pseudo-random words.
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Random(mix(seed))
    }

    /// The next word.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(limit)) >> 64) as u64
    }

    /// A number from 0 to 1.
    fn fraction(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Numbers below a limit of which few are drawn often: Zipf's law with the exponent of the Yahoo! Cloud Serving Benchmark.
///
/// The method is that of J. Gray et al., "Quickly generating billion-record synthetic databases", SIGMOD 1994.
pub struct Zipf {
    count: u64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

/// The exponent.
const THETA: f64 = 0.99;

impl Zipf {
    /// Draws from `count` numbers.
    pub fn new(count: u64) -> Self {
        let zeta_of = |count: u64| (1..=count).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>();
        let zeta = zeta_of(count);
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - THETA)) / (1.0 - zeta_of(2.min(count)) / zeta);
        Zipf { count, alpha: 1.0 / (1.0 - THETA), zeta, eta }
    }

    /// The next number. The frequent ones are spread over all of them.
    pub fn draw(&self, random: &mut Random) -> u64 {
        let fraction = random.fraction();
        let scaled = fraction * self.zeta;
        let rank = if scaled < 1.0 {
            0
        } else if scaled < 1.0 + 0.5f64.powf(THETA) {
            1
        } else {
            (self.count as f64 * (self.eta * fraction - self.eta + 1.0).powf(self.alpha)) as u64
        };
        mix(rank.min(self.count - 1)) % self.count
    }
}

/// All numbers below `count`, each once, in an order that is far from theirs.
pub fn shuffled(count: u64) -> impl Iterator<Item = u64> {
    // A step without a common divisor comes by every number.
    let step = (count * 5 / 8 + 1..).find(|&step| divisor(step, count) == 1).expect("a prime is among them");
    (0..count).map(move |turn| ((u128::from(turn) * u128::from(step)) % u128::from(count)) as u64)
}

/// The greatest common divisor.
fn divisor(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { divisor(other, one % other) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_differ_and_are_text() {
        let keys: HashSet<Key> = (0..1000).map(key).collect();
        assert_eq!(keys.len(), 1000);
        assert!(keys.iter().all(|key| key.iter().all(u8::is_ascii_hexdigit)));
    }

    #[test]
    fn shuffling_meets_every_number_once() {
        for count in [1, 2, 7, 64, 1000] {
            let mut met: Vec<u64> = shuffled(count).collect();
            met.sort_unstable();
            assert!(met.into_iter().eq(0..count), "{count}");
        }
    }

    #[test]
    fn few_are_drawn_often() {
        let (zipf, mut random) = (Zipf::new(10_000), Random::new(1));
        let mut counts = vec![0u32; 10_000];
        (0..100_000).for_each(|_| counts[zipf.draw(&mut random) as usize] += 1);
        counts.sort_unstable_by(|one, other| other.cmp(one));
        let top: u32 = counts[..100].iter().sum();
        assert!((45_000..65_000).contains(&top), "the first hundredth was drawn {top} times of 100000");
        let mut random = Random::new(2);
        assert!((0..1000).all(|_| random.below(10) < 10));
    }
}
