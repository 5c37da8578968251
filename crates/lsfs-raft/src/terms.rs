//! Which term and leader an entry is of, without reading it.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::entry::EntryId;

/// The runs of entries of one term and leader: each begins at an index and goes on to the next run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    runs: BTreeMap<u64, (u64, u64)>,
}

impl Terms {
    /// From this entry on, entries are of its term and leader.
    pub(crate) fn begin(&mut self, id: EntryId) {
        self.runs.insert(id.index, (id.term, id.leader));
    }

    /// The name of the entry with this index; `None` before the first run.
    pub(crate) fn id_of(&self, index: u64) -> Option<EntryId> {
        let (_, &(term, leader)) = self.runs.range(..=index).next_back()?;
        Some(EntryId { index, term, leader })
    }

    /// The last run's term and leader.
    pub(crate) fn last(&self) -> Option<(u64, u64)> {
        self.runs.last_key_value().map(|(_, &of)| of)
    }

    /// Whether a run begins at or behind this index.
    pub(crate) fn reach(&self, index: u64) -> bool {
        self.runs.range(index..).next().is_some()
    }

    /// Forgets runs from this index on.
    pub(crate) fn cut_from(&mut self, index: u64) {
        self.runs.split_off(&index);
    }

    /// Forgets runs that end before this index.
    pub(crate) fn cut_before(&mut self, index: u64) {
        if let Some(id) = self.id_of(index) {
            self.runs = self.runs.split_off(&index);
            self.begin(id);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }

    /// The first entry of each run.
    pub(crate) fn runs(&self) -> impl Iterator<Item = EntryId> {
        self.runs.iter().map(|(&index, &(term, leader))| EntryId { index, term, leader })
    }

    /// A range of indexes, cut where the term or leader changes; each with the name of its first entry.
    pub(crate) fn split(&self, range: Range<u64>) -> Vec<(Range<u64>, Option<EntryId>)> {
        let mut parts = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let next_run = self.runs.range(start + 1..).next().map_or(u64::MAX, |(&index, _)| index);
            let end = next_run.min(range.end);
            parts.push((start..end, self.id_of(start)));
            start = end;
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(runs: &[(u64, u64)]) -> Terms {
        let mut terms = Terms::default();
        runs.iter().for_each(|&(index, term)| terms.begin(EntryId { index, term, leader: 0 }));
        terms
    }

    fn term_of(terms: &Terms, index: u64) -> Option<u64> {
        terms.id_of(index).map(|id| id.term)
    }

    #[test]
    fn runs_answer_between_their_beginnings() {
        let terms = terms(&[(1, 1), (5, 2), (6, 4)]);
        assert_eq!(
            [0, 1, 4, 5, 6, 99].map(|index| term_of(&terms, index)),
            [None, Some(1), Some(1), Some(2), Some(4), Some(4)]
        );
        assert!(terms.reach(6) && !terms.reach(7));
        assert_eq!(terms.last(), Some((4, 0)));
    }

    #[test]
    fn cutting_keeps_what_covers_the_rest() {
        let mut terms = terms(&[(1, 1), (5, 2), (9, 4)]);
        terms.cut_before(7);
        assert_eq!(terms.runs().map(|id| (id.index, id.term)).collect::<Vec<_>>(), [(7, 2), (9, 4)]);
        terms.cut_from(9);
        assert_eq!((term_of(&terms, 20), terms.reach(8)), (Some(2), false));
        terms.cut_from(0);
        assert_eq!((terms.last(), terms.clone()), (None, Terms::default()));
        terms.cut_before(3);
        assert_eq!(terms, Terms::default());
    }

    #[test]
    fn a_range_is_split_where_terms_change() {
        let terms = terms(&[(3, 1), (5, 2)]);
        let parts = terms.split(1..8);
        let shown: Vec<_> = parts.into_iter().map(|(range, id)| (range, id.map(|id| id.term))).collect();
        assert_eq!(shown, [(1..3, None), (3..5, Some(1)), (5..8, Some(2))]);
        assert!(terms.split(4..4).is_empty());
    }
}
