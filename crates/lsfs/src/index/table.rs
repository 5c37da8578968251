//! The entries of one segment, in memory.

use std::path::Path;

use crate::codec::{INDEX_ENTRY_BYTES, IndexEntry};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::io::{ANY_UNIT_BYTES, AlignedBuf, OpenMode};

/// An index file is read in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// Entries in the order of their offsets, one for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexTable {
    entries: Vec<IndexEntry>,
}

/// What a file held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredIndex {
    pub(crate) table: IndexTable,
    /// Whether the file has its entries in order, each once: it can then be looked up as it is.
    pub(crate) is_in_order: bool,
    /// Bytes that belong to no entry: an odd end, or what lies beyond the limit.
    pub(crate) surplus_bytes: u64,
}

impl IndexTable {
    /// From entries in any order; of those with the same offset the last counts.
    pub(crate) fn from_entries(mut entries: Vec<IndexEntry>) -> IndexTable {
        if !is_in_order(&entries) {
            // Stable: equal offsets stay in the order they came in.
            entries.sort_by_key(|entry| entry.offset);
            entries.reverse();
            entries.dedup_by_key(|entry| entry.offset);
            entries.reverse();
        }
        IndexTable { entries }
    }

    /// The entries, in order.
    pub(crate) fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Reads the index at `path`; `None` if there is none.
    ///
    /// `first` is where the segment's first record would be: an entry of zeros counts only if it is that one, and the
    /// first of the file. Zeros behind the last entry are space that was made ready. At most `limit` entries are read.
    ///
    /// # Errors
    /// Only if the file cannot be read: any bytes are an index.
    pub(crate) fn read(env: &Env, path: &Path, first: IndexEntry, limit: u64) -> Result<Option<StoredIndex>> {
        let file = match env.disk.open(path, OpenMode::Read, ANY_UNIT_BYTES) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", path, error)),
        };
        let read_error = |error| Error::io("read", path, error);
        let len = file.len().map_err(read_error)?;
        let wanted = (len / INDEX_ENTRY_BYTES as u64).min(limit) * INDEX_ENTRY_BYTES as u64;
        let mut entries = Vec::new();
        let mut piece =
            AlignedBuf::zeroed(PIECE_BYTES.min((wanted as usize).next_multiple_of(ANY_UNIT_BYTES)));
        let mut position = 0;
        while position < wanted {
            let count = file.read_full_at(&mut piece, position).map_err(read_error)?;
            let usable = count.min(usize::try_from(wanted - position).unwrap_or(usize::MAX));
            entries.extend(piece[..usable].as_chunks().0.iter().map(IndexEntry::decode));
            if count < piece.len() {
                break;
            }
            position += count as u64;
        }
        Ok(Some(StoredIndex::from_file(entries, first, len - wanted)))
    }
}

impl StoredIndex {
    fn from_file(mut entries: Vec<IndexEntry>, first: IndexEntry, surplus_bytes: u64) -> StoredIndex {
        let used = entries.iter().rposition(|entry| !entry.is_zero()).map_or(0, |last| last + 1);
        let begins_with_zeros = first.is_zero() && entries.first().is_some_and(IndexEntry::is_zero);
        entries.truncate(used.max(usize::from(begins_with_zeros)));
        let mut number = 0;
        entries.retain(|entry| {
            number += 1;
            !entry.is_zero() || (first.is_zero() && number == 1)
        });
        let is_in_order = number == entries.len() && is_in_order(&entries);
        StoredIndex { table: IndexTable::from_entries(entries), is_in_order, surplus_bytes }
    }
}

/// Whether offsets rise from each entry to the next.
fn is_in_order(entries: &[IndexEntry]) -> bool {
    entries.is_sorted_by(|one, next| one.offset < next.offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexWriter;
    use crate::io::{File, WriteSync};
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn entry(offset: u64, position: u64) -> IndexEntry {
        IndexEntry { offset, position }
    }

    const SOME: IndexEntry = IndexEntry { offset: 5, position: 4146 };

    fn read(bytes: &[u8], first: IndexEntry, limit: u64) -> Option<StoredIndex> {
        let dir = tempfile::tempdir().unwrap();
        let (env, path) = (Env::default(), dir.path().join("x.idx"));
        let file: Arc<dyn File> = env.disk.open(&path, OpenMode::CreateNew, ANY_UNIT_BYTES).unwrap();
        let mut buf = AlignedBuf::zeroed(bytes.len().next_multiple_of(ANY_UNIT_BYTES));
        buf[..bytes.len()].copy_from_slice(bytes);
        file.write_all_at(&buf, 0, WriteSync::Later).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        IndexTable::read(&env, &path, first, limit).unwrap()
    }

    fn bytes_of(entries: &[IndexEntry]) -> Vec<u8> {
        entries.iter().flat_map(IndexEntry::encode).collect()
    }

    #[test]
    fn what_a_file_may_hold() {
        let (a, b, c) = (entry(5, 4146), entry(6, 4200), entry(7, 9000));
        let zero = entry(0, 0);
        let stored = |entries: &[IndexEntry], is_in_order, surplus_bytes| StoredIndex {
            table: IndexTable { entries: entries.to_vec() },
            is_in_order,
            surplus_bytes,
        };
        // name, bytes, first entry of the segment, expected
        let table: [(&str, Vec<u8>, IndexEntry, StoredIndex); 11] = [
            ("empty", vec![], SOME, stored(&[], true, 0)),
            ("in order", bytes_of(&[a, b, c]), SOME, stored(&[a, b, c], true, 0)),
            ("any order", bytes_of(&[c, a, b]), SOME, stored(&[a, b, c], false, 0)),
            ("the last of equals", bytes_of(&[a, b, entry(5, 1)]), SOME, stored(&[entry(5, 1), b], false, 0)),
            ("zeros ahead", bytes_of(&[a, b, zero, zero]), SOME, stored(&[a, b], true, 0)),
            ("zeros between", bytes_of(&[a, zero, b]), SOME, stored(&[a, b], false, 0)),
            ("only zeros", vec![0; 8192], SOME, stored(&[], true, 0)),
            ("only zeros, which may be the first", vec![0; 8192], zero, stored(&[zero], true, 0)),
            (
                "zeros first",
                bytes_of(&[zero, entry(1, 20), zero]),
                zero,
                stored(&[zero, entry(1, 20)], true, 0),
            ),
            ("an odd end", [&bytes_of(&[a, b])[..], &[9; 7]].concat(), SOME, stored(&[a, b], true, 7)),
            ("a torn entry", bytes_of(&[a, b])[..25].to_vec(), SOME, stored(&[a], true, 9)),
        ];
        for (name, bytes, first, expected) in table {
            assert_eq!(read(&bytes, first, 1000), Some(expected), "{name}");
        }
        assert_eq!(read(&bytes_of(&[a, b, c]), SOME, 2), Some(stored(&[a, b], true, 16)), "over-long");
        let many: Vec<_> = (0..200_000).map(|n| entry(n + 5, n * 40 + 4146)).collect();
        assert_eq!(read(&bytes_of(&many), SOME, 1 << 40), Some(stored(&many, true, 0)), "several pieces");
        let missing = Path::new("there/is/none.idx");
        assert_eq!(IndexTable::read(&Env::default(), missing, SOME, 9).unwrap(), None);
    }

    #[test]
    fn a_written_table_is_read_back_and_has_no_surplus() {
        let dir = tempfile::tempdir().unwrap();
        let (env, path) = (Env::default(), dir.path().join("x.idx"));
        for count in [0, 1, 255, 256, 257, 70_000] {
            let table = IndexTable::from_entries((0..count).map(|n| entry(n * 3 + 5, n + 512)).collect());
            let mut writer = IndexWriter::replace(&env, &path).unwrap();
            table.entries().iter().for_each(|entry| writer.append(*entry).unwrap());
            writer.seal().unwrap();
            assert_eq!(path.metadata().unwrap().len(), count * 16);
            let stored = IndexTable::read(&env, &path, SOME, 1 << 20).unwrap().unwrap();
            assert_eq!(stored, StoredIndex { table, is_in_order: true, surplus_bytes: 0 });
        }
        assert_eq!(dir.path().read_dir().unwrap().count(), 1, "nothing else is left");
    }

    proptest! {
        #[test]
        fn a_table_is_a_map(entries in proptest::collection::vec((0..60u64, 1..1000u64), 0..80)) {
            let map: BTreeMap<u64, u64> = entries.iter().copied().collect();
            let all = entries.iter().map(|&(offset, position)| entry(offset, position)).collect();
            let expected: Vec<_> = map.iter().map(|(&offset, &position)| entry(offset, position)).collect();
            prop_assert_eq!(IndexTable::from_entries(all), IndexTable { entries: expected });
        }

        #[test]
        fn any_bytes_are_an_index(bytes in proptest::collection::vec(any::<u8>(), 0..400), limit in 0..30u64) {
            let stored = read(&bytes, SOME, limit).unwrap();
            prop_assert!(stored.table.entries().len() as u64 <= limit);
            prop_assert!(is_in_order(stored.table.entries()));
        }
    }
}
