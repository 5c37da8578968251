//! From a key to the 64 bits by which the index finds it.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The hash of one index: XXH3 with the index's own random seed, then [`spread`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyHasher {
    pub(crate) seed: u64,
}

impl KeyHasher {
    pub(crate) fn hash(self, key: &[u8]) -> u64 {
        spread(xxh3_64_with_seed(key, self.seed))
    }
}

/// The hashes below each of 64 equal parts of the range keep their order, but get a share of the range that grows
/// from part to part: the first gets half of what the last gets.
///
/// A uniform hash would fill all pages at the same time, and split them all at the same time. With this one some
/// pages are full and some are just split at every size of the index.
fn spread(hash: u64) -> u64 {
    let part = hash >> PART_SHIFT;
    let within = hash & ((1 << PART_SHIFT) - 1);
    let below = FIRST_SHARE * part + GROWTH / 2 * part * part.saturating_sub(1);
    let share = FIRST_SHARE + GROWTH * part;
    let spread = (u128::from(below) << PART_SHIFT) + u128::from(share) * u128::from(within);
    (spread >> (SHARES_LOG2 - 6)) as u64
}

const PART_SHIFT: u32 = 64 - 6;
/// The share of part `i` is `FIRST_SHARE + GROWTH * i`, of a range of `1 << SHARES_LOG2`.
const FIRST_SHARE: u64 = 1355;
const GROWTH: u64 = 22;
const SHARES_LOG2: u32 = 17;
const _: () = assert!(64 * FIRST_SHARE + GROWTH * (63 * 64 / 2) == 1 << SHARES_LOG2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreading_keeps_the_order_and_uses_the_whole_range() {
        assert_eq!(spread(0), 0);
        assert!(spread(u64::MAX) > u64::MAX - (1 << 12));
        let mut last = 0;
        for step in 1..=4096u64 {
            // Around each of 4096 points, the borders of the parts among them.
            let point = (step << 52).wrapping_sub(1);
            let spread = spread(point);
            assert!(spread > last, "{point:x}");
            last = spread;
        }
    }

    #[test]
    fn the_density_falls_by_half() {
        let width = |part: u64| spread((part << 58) | 0xffff) - spread(part << 58);
        let (first, last) = (width(0), width(63));
        assert!((1.9..2.1).contains(&(last as f64 / first as f64)), "{first} {last}");
    }

    #[test]
    fn the_hash_is_what_it_was() {
        // On disk: an index that is opened again must find its keys.
        let hasher = KeyHasher { seed: 7 };
        assert_eq!(hasher.hash(b"key"), KeyHasher { seed: 7 }.hash(b"key"));
        assert_ne!(hasher.hash(b"key"), KeyHasher { seed: 8 }.hash(b"key"));
        assert_ne!(hasher.hash(b""), hasher.hash(b"\0"));
    }
}
