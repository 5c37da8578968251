//! Looking up an index file where it lies.

use std::path::Path;

use crate::codec::{INDEX_ENTRY_BYTES, IndexEntry};
use crate::env::Env;
use crate::io::{ANY_UNIT_BYTES, FileMap, MapAdvice, OpenMode};

/// The index file of a segment, mapped.
///
/// It answers from whatever bytes are there, also while they are written: every answer is a hint.
#[derive(Debug)]
pub(crate) struct IndexView {
    map: Box<dyn FileMap>,
    /// Entries that fit the mapping; zeros behind the last one that was written are among them.
    slots: u64,
    first_offset: u64,
}

impl IndexView {
    /// Maps the index at `path`, of a segment whose records begin at `first_offset`; `None` if there is nothing to
    /// map.
    pub(crate) fn open(env: &Env, path: &Path, first_offset: u64) -> Option<IndexView> {
        let file = env.disk.open(path, OpenMode::Read, ANY_UNIT_BYTES).ok()?;
        let slots = file.len().ok()? / INDEX_ENTRY_BYTES as u64;
        if slots == 0 {
            return None;
        }
        let map = file.map(slots * INDEX_ENTRY_BYTES as u64).ok()?;
        map.advise(MapAdvice::Random);
        Some(IndexView { map, slots, first_offset })
    }

    /// Where the record with this offset begins, as far as the index knows.
    pub(crate) fn get(&self, offset: u64) -> Option<u64> {
        let slot = offset.checked_sub(self.first_offset)?;
        if let Some(entry) = self.entry(slot)
            && entry.offset == offset
            && !entry.is_zero()
        {
            return Some(entry.position);
        }
        // With gaps the entry lies before the slot it would have without.
        let (mut low, mut high) = (0, slot.min(self.slots));
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.entry(middle)?;
            match entry.offset.cmp(&offset) {
                std::cmp::Ordering::Equal if !entry.is_zero() => return Some(entry.position),
                // What was not written yet counts as behind everything.
                std::cmp::Ordering::Less if !entry.is_zero() => low = middle + 1,
                _ => high = middle,
            }
        }
        None
    }

    fn entry(&self, slot: u64) -> Option<IndexEntry> {
        if slot >= self.slots {
            return None;
        }
        let mut bytes = [0; INDEX_ENTRY_BYTES];
        self.map.read(slot * INDEX_ENTRY_BYTES as u64, &mut bytes).ok()?;
        Some(IndexEntry::decode(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexWriter;
    use proptest::prelude::*;

    #[test]
    fn dense_and_sparse_offsets_are_found_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (env, path) = (Env::default(), dir.path().join("x.idx"));
        for step in [1, 2, 7] {
            let mut writer = IndexWriter::replace(&env, &path).unwrap();
            for n in 0..1000 {
                writer.append(IndexEntry { offset: 50 + n * step, position: 512 + n }).unwrap();
            }
            writer.publish().unwrap();
            let view = IndexView::open(&env, &path, 50).unwrap();
            for offset in 40..8000u64 {
                let number = offset.checked_sub(50).filter(|past| past % step == 0).map(|past| past / step);
                let expected = number.filter(|number| *number < 1000).map(|number| 512 + number);
                assert_eq!(view.get(offset), expected, "offset {offset}, step {step}");
            }
            assert_eq!(view.get(u64::MAX), None);
        }
        assert!(IndexView::open(&env, &dir.path().join("none.idx"), 0).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_answer_something(words in proptest::collection::vec(0..20u64, 0..200), asked in 0..40u64) {
            let dir = tempfile::tempdir().unwrap();
            let (env, path) = (Env::default(), dir.path().join("x.idx"));
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            std::fs::write(&path, bytes).unwrap();
            if let Some(position) = IndexView::open(&env, &path, 3).and_then(|view| view.get(asked)) {
                let pairs = words.as_chunks::<2>().0;
                prop_assert!(pairs.contains(&[asked, position]));
            }
        }
    }
}
