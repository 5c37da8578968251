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
            self.0.extend(outside(&known, &range).into_iter().filter(|part| !part.is_empty()));
        }
    }

    pub(crate) fn containing(&self, index: u64) -> Option<&Range<u64>> {
        self.0.iter().find(|range| range.contains(&index))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }
}

/// Entries that a damaged stream had and the log must not answer from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Doubt {
    pub(crate) indexes: Range<u64>,
    /// Their term and leader, if they are known.
    pub(crate) of: Option<(u64, u64)>,
}

/// Disjoint ranges of such entries, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doubts(Vec<Doubt>);

impl Doubts {
    /// Adds a range; it counts instead of what was known of these indexes.
    pub(crate) fn add(&mut self, mut indexes: Range<u64>, of: Option<(u64, u64)>) {
        if indexes.is_empty() {
            return;
        }
        self.remove(indexes.clone());
        self.0.retain(|known| {
            let joins =
                known.of == of && (known.indexes.end == indexes.start || indexes.end == known.indexes.start);
            if joins {
                indexes = known.indexes.start.min(indexes.start)..known.indexes.end.max(indexes.end);
            }
            !joins
        });
        let at = self.0.partition_point(|known| known.indexes.start < indexes.start);
        self.0.insert(at, Doubt { indexes, of });
    }

    /// Takes a range out.
    pub(crate) fn remove(&mut self, range: Range<u64>) {
        let parts = std::mem::take(&mut self.0);
        for Doubt { indexes, of } in parts {
            let kept = outside(&indexes, &range).into_iter().filter(|part| !part.is_empty());
            self.0.extend(kept.map(|indexes| Doubt { indexes, of }));
        }
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Doubt> {
        self.0.iter()
    }

    pub(crate) fn containing(&self, index: u64) -> Option<&Doubt> {
        let at = self.0.partition_point(|doubt| doubt.indexes.end <= index);
        self.0.get(at).filter(|doubt| doubt.indexes.start <= index)
    }

    /// Whether an entry from this index on is in doubt.
    pub(crate) fn reach(&self, index: u64) -> bool {
        self.0.last().is_some_and(|doubt| doubt.indexes.end > index)
    }

    /// A range cut where doubts begin and end; each part with its doubt.
    pub(crate) fn split(&self, range: Range<u64>) -> Vec<(Range<u64>, Option<&Doubt>)> {
        let mut parts = Vec::new();
        let mut start = range.start;
        let overlapping = self.0.iter().filter(|doubt| doubt.indexes.end > range.start);
        for doubt in overlapping.take_while(|doubt| doubt.indexes.start < range.end) {
            let (from, to) = (doubt.indexes.start.max(start), doubt.indexes.end.min(range.end));
            if start < from {
                parts.push((start..from, None));
            }
            parts.push((from..to, Some(doubt)));
            start = to;
        }
        if start < range.end {
            parts.push((start..range.end, None));
        }
        parts
    }
}

/// What is left of `known` before and behind `range`.
fn outside(known: &Range<u64>, range: &Range<u64>) -> [Range<u64>; 2] {
    [known.start..known.end.min(range.start), known.start.max(range.end)..known.end]
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
    fn doubts_are_joined_where_they_are_of_one_leader() {
        let mut doubts = Doubts::default();
        doubts.add(1..9, None);
        doubts.add(4..5, Some((2, 7)));
        doubts.add(5..6, Some((2, 7)));
        doubts.add(6..7, Some((3, 7)));
        let shown = |doubts: &Doubts| {
            doubts.iter().map(|doubt| (doubt.indexes.clone(), doubt.of.map(|of| of.0))).collect::<Vec<_>>()
        };
        assert_eq!(shown(&doubts), [(1..4, None), (4..6, Some(2)), (6..7, Some(3)), (7..9, None)]);
        assert_eq!(doubts.containing(5).unwrap().of, Some((2, 7)));
        assert_eq!((doubts.containing(0), doubts.containing(9)), (None, None));
        assert!(doubts.reach(8) && !doubts.reach(9));
        doubts.remove(2..5);
        assert_eq!(shown(&doubts), [(1..2, None), (5..6, Some(2)), (6..7, Some(3)), (7..9, None)]);
        let parts = doubts.split(0..8);
        let shown: Vec<_> = parts.into_iter().map(|(range, doubt)| (range, doubt.is_some())).collect();
        assert_eq!(
            shown,
            [(0..1, false), (1..2, true), (2..5, false), (5..6, true), (6..7, true), (7..8, true)]
        );
        assert_eq!(doubts.split(2..4), [(2..4, None)]);
        doubts.add(3..3, None);
        doubts.remove(0..u64::MAX);
        assert_eq!(doubts, Doubts::default());
    }

    #[test]
    fn a_loss_is_named_by_index_and_term() {
        let lost = |indexes, term| LostRange { indexes, term, leader: None }.to_string();
        assert_eq!(lost(4..5, Some(2)), "entry 4 of term 2");
        assert_eq!(lost(4..9, None), "entries 4 to 8 of an unknown term");
    }
}
