//! Commands that are lost: a list names their places, and what lies there does not verify.
//!
//! For which key such a command was cannot be known, only the first bits of the key's hash. So it may be the last command
//! of each key with these bits, unless a later one is found for that key.
//!
//! **Invariants.** Of two frames for a key the one that lies behind the other is the newer one, also where one of them is
//! lost. Compaction, which writes frames again behind all others, therefore leaves those alone that may be older than a lost
//! one; and it keeps the segment of a lost one, as of any frame that does not verify. A checkpoint carries them on.

use crate::order::Place;
use crate::tail::Spot;

/// With more of them the log is so damaged that only a repair helps.
pub(crate) const LOST_MAX: usize = 1024;

/// The places of lost commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// By the bits of the hash, then in the order of the log.
    spots: Vec<Spot>,
}

impl Lost {
    pub(crate) fn new(mut spots: Vec<Spot>) -> Lost {
        spots.sort_unstable();
        spots.dedup();
        Lost { spots }
    }

    pub(crate) fn spots(&self) -> &[Spot] {
        &self.spots
    }

    pub(crate) fn add(&mut self, spot: Spot) {
        if let Err(at) = self.spots.binary_search(&spot) {
            self.spots.insert(at, spot);
        }
    }

    /// Where the last one lies that may be for a key with this hash, if that is behind a place.
    #[inline]
    pub(crate) fn behind(&self, hash: u64, place: Place) -> Option<Place> {
        if self.spots.is_empty() {
            return None;
        }
        let end = self.spots.partition_point(|spot| *spot <= Spot::new(hash, u32::MAX, u32::MAX));
        let last = self.spots[..end].last().filter(|spot| spot.is_of(hash))?;
        Some((last.segment, last.position)).filter(|&lost| lost > place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_of_a_hash_counts_and_only_behind_what_was_found() {
        let spot = |prefix: u64, segment, position| Spot::new(prefix << 40, segment, position);
        let mut lost = Lost::new(vec![spot(7, 2, 50), spot(9, 1, 0), spot(7, 1, 100), spot(9, 1, 0)]);
        assert_eq!(lost.spots().len(), 3);
        assert_eq!(lost.behind(7 << 40 | 5, (0, 0)), Some((2, 50)));
        assert_eq!(lost.behind(7 << 40, (2, 49)), Some((2, 50)));
        assert_eq!(lost.behind(7 << 40, (2, 50)), None);
        assert_eq!(lost.behind(7 << 40, (3, 0)), None);
        assert_eq!(lost.behind(8 << 40, (0, 0)), None, "another hash");
        assert_eq!(lost.behind(0, (0, 0)), None);
        assert_eq!(lost.behind(u64::MAX, (0, 0)), None);
        lost.add(spot(7, 3, 1));
        lost.add(spot(7, 3, 1));
        assert_eq!((lost.spots().len(), lost.behind(7 << 40, (3, 0))), (4, Some((3, 1))));
        assert_eq!(Lost::default().behind(7, (0, 0)), None);
    }
}
