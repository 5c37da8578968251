//! The sparse table: the offsets of a rewritten segment of the mapped store, whose frames do not say them.

use super::{Fields, put};

/// The offsets that a rewritten segment still holds, and which offsets it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseTable {
    /// Ties the table to the data file it was written with.
    pub rewrite_id: u64,
    /// First offset of the rewritten run.
    pub base_offset: u64,
    /// Offset after the run.
    pub next_offset: u64,
    /// Offset of each frame, in order.
    pub offsets: Vec<u64>,
}

/// Why bytes are not a sparse table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SparseTableFault {
    /// Not a sparse table.
    #[error("not a sparse table: magic {0:02x?}")]
    Magic([u8; 8]),
    /// From a newer program.
    #[error("sparse table version {0}, this program reads version {VERSION}: use a newer lsfs")]
    Version(u32),
    /// The bytes changed, or some are missing.
    #[error("sparse table of {0} bytes does not match its checksum")]
    Checksum(usize),
    /// The offsets do not rise within the run.
    #[error("sparse table: offset {0} is out of order or outside its run")]
    Order(u64),
}

const MAGIC: [u8; 8] = *b"LSFSspar";
const VERSION: u32 = 1;
/// Bytes before the first offset.
pub const SPARSE_TABLE_HEADER_BYTES: usize = 48;

impl SparseTable {
    /// The table's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SPARSE_TABLE_HEADER_BYTES];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 16, &self.rewrite_id.to_le_bytes());
        put(&mut bytes, 24, &self.base_offset.to_le_bytes());
        put(&mut bytes, 32, &self.next_offset.to_le_bytes());
        put(&mut bytes, 40, &(self.offsets.len() as u64).to_le_bytes());
        bytes.extend(self.offsets.iter().flat_map(|offset| offset.to_le_bytes()));
        let crc = super::crc32c(0, &bytes[16..]);
        put(&mut bytes, 12, &crc.to_le_bytes());
        bytes
    }

    /// Reads and checks a table; zeros may follow it.
    pub fn decode(bytes: &[u8]) -> Result<SparseTable, SparseTableFault> {
        if bytes.len() < SPARSE_TABLE_HEADER_BYTES {
            return Err(SparseTableFault::Checksum(bytes.len()));
        }
        let fields = Fields(bytes);
        let magic = fields.array(0);
        if magic != MAGIC {
            return Err(SparseTableFault::Magic(magic));
        }
        if fields.u32(8) != VERSION {
            return Err(SparseTableFault::Version(fields.u32(8)));
        }
        let count = fields.u64(40);
        let table_bytes = count
            .checked_mul(8)
            .and_then(|bytes| bytes.checked_add(SPARSE_TABLE_HEADER_BYTES as u64))
            .filter(|&len| len <= bytes.len() as u64)
            .ok_or(SparseTableFault::Checksum(bytes.len()))? as usize;
        if super::crc32c(0, &bytes[16..table_bytes]) != fields.u32(12) {
            return Err(SparseTableFault::Checksum(bytes.len()));
        }
        let offsets: Vec<u64> = bytes[SPARSE_TABLE_HEADER_BYTES..table_bytes]
            .as_chunks()
            .0
            .iter()
            .map(|chunk| u64::from_le_bytes(*chunk))
            .collect();
        let (base_offset, next_offset) = (fields.u64(24), fields.u64(32));
        let run = base_offset..next_offset;
        let falls = offsets.windows(2).find(|pair| pair[0] >= pair[1]).map(|pair| pair[1]);
        match falls.or_else(|| offsets.iter().copied().find(|offset| !run.contains(offset))) {
            Some(offset) => Err(SparseTableFault::Order(offset)),
            None => Ok(SparseTable { rewrite_id: fields.u64(16), base_offset, next_offset, offsets }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> SparseTable {
        SparseTable { rewrite_id: 77, base_offset: 100, next_offset: 200, offsets: vec![100, 103, 199] }
    }

    #[test]
    fn round_trip_with_zeros_behind() {
        let mut bytes = table().encode();
        assert_eq!(SparseTable::decode(&bytes), Ok(table()));
        bytes.resize(4096, 0);
        assert_eq!(SparseTable::decode(&bytes), Ok(table()));
    }

    #[test]
    fn no_bit_may_change_and_no_byte_be_missing() {
        let bytes = table().encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SparseTable::decode(&damaged).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(SparseTable::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        let unordered = SparseTable { offsets: vec![103, 101], ..table() };
        assert_eq!(SparseTable::decode(&unordered.encode()), Err(SparseTableFault::Order(101)));
        let outside = SparseTable { offsets: vec![99], ..table() };
        assert_eq!(SparseTable::decode(&outside.encode()), Err(SparseTableFault::Order(99)));
    }
}
