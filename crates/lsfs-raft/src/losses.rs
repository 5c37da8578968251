//! What was acknowledged and is gone, named by index and term.

use std::fmt;
use std::ops::Range;

/// Entries of one term that were acknowledged and no longer verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRange {
    /// Their indexes.
    pub indexes: Range<u64>,
    /// Their term; `None` if what said so is lost as well.
    pub term: Option<u64>,
    /// The leader of that term.
    pub leader: Option<u64>,
}

impl fmt::Display for LostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.indexes;
        match end - start {
            1 => write!(f, "entry {start}")?,
            _ => write!(f, "entries {start} to {}", end - 1)?,
        }
        match self.term {
            Some(term) => write!(f, " of term {term}"),
            None => f.write_str(" of an unknown term"),
        }
    }
}

/// Disjoint ranges of indexes, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds a range; ranges that touch become one.
    pub(crate) fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut merged = range;
        self.0.retain(|known| {
            let touches = known.start <= merged.end && merged.start <= known.end;
            if touches {
                merged = merged.start.min(known.start)..merged.end.max(known.end);
            }
            !touches
        });
        let at = self.0.partition_point(|known| known.start < merged.start);
        self.0.insert(at, merged);
    }

    /// Takes a range out.
    pub(crate) fn remove(&mut self, range: Range<u64>) {
        let parts = std::mem::take(&mut self.0);
        for known in parts {
            let before = known.start..known.end.min(range.start);
            let behind = known.start.max(range.end)..known.end;
            self.0.extend([before, behind].into_iter().filter(|part| !part.is_empty()));
        }
    }

    pub(crate) fn containing(&self, index: u64) -> Option<&Range<u64>> {
        self.0.iter().find(|range| range.contains(&index))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_cut() {
        let mut ranges = Ranges::default();
        for range in [5..7, 1..2, 7..9, 20..21, 3..3] {
            ranges.add(range);
        }
        assert_eq!(ranges.iter().cloned().collect::<Vec<_>>(), [1..2, 5..9, 20..21]);
        ranges.remove(6..7);
        assert_eq!(ranges.iter().cloned().collect::<Vec<_>>(), [1..2, 5..6, 7..9, 20..21]);
        assert_eq!((ranges.containing(8), ranges.containing(6)), (Some(&(7..9)), None));
        ranges.remove(0..u64::MAX);
        assert_eq!(ranges, Ranges::default());
    }

    #[test]
    fn a_loss_is_named_by_index_and_term() {
        let lost = |indexes, term| LostRange { indexes, term, leader: None }.to_string();
        assert_eq!(lost(4..5, Some(2)), "entry 4 of term 2");
        assert_eq!(lost(4..9, None), "entries 4 to 8 of an unknown term");
    }
}
