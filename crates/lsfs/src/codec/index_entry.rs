//! One entry of an index file.

use super::{Fields, put};

/// Bytes of an index entry.
pub const INDEX_ENTRY_BYTES: usize = 16;

/// Where a record begins in its segment; derived from the segment, and never more than a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IndexEntry {
    /// The record's index.
    pub offset: u64,
    /// Byte address of the record in its segment file.
    pub position: u64,
}

impl IndexEntry {
    /// The entry's bytes.
    pub fn encode(&self) -> [u8; INDEX_ENTRY_BYTES] {
        let mut bytes = [0; INDEX_ENTRY_BYTES];
        put(&mut bytes, 0, &self.offset.to_le_bytes());
        put(&mut bytes, 8, &self.position.to_le_bytes());
        bytes
    }

    /// Reads an entry. Any 16 bytes are one; sixteen zero bytes are also what unused space looks like.
    pub fn decode(bytes: &[u8; INDEX_ENTRY_BYTES]) -> IndexEntry {
        let fields = Fields(bytes);
        IndexEntry { offset: fields.u64(0), position: fields.u64(8) }
    }

    /// Whether all sixteen bytes are zero.
    pub fn is_zero(&self) -> bool {
        (self.offset, self.position) == (0, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip() {
        for (offset, position) in [(0, 0), (1, 4146), (u64::MAX, 1), (1 << 40, u64::MAX)] {
            let entry = IndexEntry { offset, position };
            assert_eq!(IndexEntry::decode(&entry.encode()), entry);
            assert_eq!(entry.is_zero(), entry.encode() == [0; INDEX_ENTRY_BYTES]);
        }
    }

    #[test]
    fn the_offset_comes_first_and_both_are_little_endian() {
        let bytes = IndexEntry { offset: 0x0102, position: 0x0304 }.encode();
        assert_eq!(bytes, [2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0]);
    }
}
