//! What a clerk counted in one segment.

use super::{Checksum, Fields, put};

/// Bytes of a statistics file.
pub const SEGMENT_STATISTICS_BYTES: usize = 4096;
/// Type codes that are counted one by one; records of further ones are counted together.
pub const TYPE_COUNTS_MAX: usize = (SEGMENT_STATISTICS_BYTES - FIXED_BYTES) / TYPE_COUNT_BYTES;

const MAGIC: u64 = u64::from_le_bytes(*b"LSFSstat");
const VERSION: u32 = 1;
const FIXED_BYTES: usize = 112;
const TYPE_COUNT_BYTES: usize = 16;
const CHECKSUM: Checksum = Checksum::Crc32c;

/// How many records have a type code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeCount {
    /// The type code.
    pub type_code: u64,
    /// Records with it.
    pub records: u64,
}

/// What a segment holds, as far as it was counted; derived data, as the index beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentStatistics {
    /// The segment that was counted.
    pub segment_id: u64,
    /// Index of its first record, or the base index if there is none.
    pub first_index: u64,
    /// Index after the last record counted.
    pub next_index: u64,
    /// Position behind the last record counted.
    pub end_position: u64,
    /// Where the last record counted begins, or 0 if there is none.
    pub last_position: u64,
    /// Epoch of the block where it begins: a truncation cannot have changed what was counted while that block is there.
    pub last_epoch: u32,
    /// Whether the segment was sealed, and all of it was counted.
    pub is_sealed: bool,
    /// Records, which is also the number of entries in the index.
    pub records: u64,
    /// Payload bytes as they were appended.
    pub payload_bytes: u64,
    /// Payload bytes as they are stored.
    pub stored_bytes: u64,
    /// CRC-32C of the index's entries.
    pub index_checksum: u32,
    /// Records by type code, in the order in which the types came, at most [`TYPE_COUNTS_MAX`].
    pub types: Vec<TypeCount>,
    /// Records of types that came after those.
    pub other_types_records: u64,
}

/// Why bytes are not statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatisticsFault {
    /// The file is too short.
    #[error("statistics have {0} bytes, expected {SEGMENT_STATISTICS_BYTES}")]
    Short(usize),
    /// Not statistics.
    #[error("not segment statistics: magic {0:#018x}")]
    Magic(u64),
    /// From another program.
    #[error("statistics version {0}, this program reads version {VERSION}")]
    Version(u32),
    /// The bytes changed.
    #[error("statistics checksum: stored {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// In the file.
        stored: u32,
        /// Of its bytes.
        computed: u32,
    },
    /// More types than there is room for.
    #[error("statistics say they count {0} types, at most {TYPE_COUNTS_MAX} fit")]
    Types(u32),
}

impl SegmentStatistics {
    /// Writes the statistics into `target`, which is a whole file.
    ///
    /// # Panics
    /// If there are more than [`TYPE_COUNTS_MAX`] types.
    pub fn encode(&self, target: &mut [u8]) {
        assert!(self.types.len() <= TYPE_COUNTS_MAX, "{} types", self.types.len());
        let bytes = &mut target[..SEGMENT_STATISTICS_BYTES];
        bytes.fill(0);
        put(bytes, 0, &MAGIC.to_le_bytes());
        put(bytes, 8, &VERSION.to_le_bytes());
        put(bytes, 16, &self.segment_id.to_le_bytes());
        put(bytes, 24, &self.first_index.to_le_bytes());
        put(bytes, 32, &self.next_index.to_le_bytes());
        put(bytes, 40, &self.end_position.to_le_bytes());
        put(bytes, 48, &self.last_position.to_le_bytes());
        put(bytes, 56, &self.records.to_le_bytes());
        put(bytes, 64, &self.payload_bytes.to_le_bytes());
        put(bytes, 72, &self.stored_bytes.to_le_bytes());
        put(bytes, 80, &self.other_types_records.to_le_bytes());
        put(bytes, 88, &self.last_epoch.to_le_bytes());
        put(bytes, 92, &u32::from(self.is_sealed).to_le_bytes());
        put(bytes, 96, &self.index_checksum.to_le_bytes());
        put(bytes, 100, &(self.types.len() as u32).to_le_bytes());
        for (count, at) in self.types.iter().zip((FIXED_BYTES..).step_by(TYPE_COUNT_BYTES)) {
            put(bytes, at, &count.type_code.to_le_bytes());
            put(bytes, at + 8, &count.records.to_le_bytes());
        }
        let checksum = CHECKSUM.of(0, &bytes[16..]);
        put(bytes, 12, &checksum.to_le_bytes());
    }

    /// Reads and checks statistics.
    pub fn decode(bytes: &[u8]) -> Result<SegmentStatistics, StatisticsFault> {
        let bytes = bytes.get(..SEGMENT_STATISTICS_BYTES).ok_or(StatisticsFault::Short(bytes.len()))?;
        let fields = Fields(bytes);
        if fields.u64(0) != MAGIC {
            return Err(StatisticsFault::Magic(fields.u64(0)));
        }
        if fields.u32(8) != VERSION {
            return Err(StatisticsFault::Version(fields.u32(8)));
        }
        let (stored, computed) = (fields.u32(12), CHECKSUM.of(0, &bytes[16..]));
        if stored != computed {
            return Err(StatisticsFault::Checksum { stored, computed });
        }
        let count = fields.u32(100);
        if count as usize > TYPE_COUNTS_MAX {
            return Err(StatisticsFault::Types(count));
        }
        let types = (FIXED_BYTES..).step_by(TYPE_COUNT_BYTES).take(count as usize);
        Ok(SegmentStatistics {
            segment_id: fields.u64(16),
            first_index: fields.u64(24),
            next_index: fields.u64(32),
            end_position: fields.u64(40),
            last_position: fields.u64(48),
            records: fields.u64(56),
            payload_bytes: fields.u64(64),
            stored_bytes: fields.u64(72),
            other_types_records: fields.u64(80),
            last_epoch: fields.u32(88),
            is_sealed: fields.u32(92) & 1 != 0,
            index_checksum: fields.u32(96),
            types: types
                .map(|at| TypeCount { type_code: fields.u64(at), records: fields.u64(at + 8) })
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(types: u64) -> SegmentStatistics {
        SegmentStatistics {
            segment_id: 0x1122_3344_5566_7788,
            first_index: 1000,
            next_index: 1007,
            end_position: 9000,
            last_position: 8000,
            last_epoch: 3,
            is_sealed: true,
            records: 7,
            payload_bytes: 700,
            stored_bytes: 500,
            index_checksum: 0xABCD,
            types: (0..types).map(|n| TypeCount { type_code: u64::MAX - n, records: n + 1 }).collect(),
            other_types_records: 2,
        }
    }

    fn encoded(types: u64) -> Vec<u8> {
        let mut bytes = vec![7; SEGMENT_STATISTICS_BYTES];
        statistics(types).encode(&mut bytes);
        bytes
    }

    #[test]
    fn statistics_round_trip() {
        for types in [0, 1, TYPE_COUNTS_MAX as u64] {
            assert_eq!(SegmentStatistics::decode(&encoded(types)), Ok(statistics(types)));
        }
        let empty = SegmentStatistics::default();
        let mut bytes = vec![0; SEGMENT_STATISTICS_BYTES];
        empty.encode(&mut bytes);
        assert_eq!(SegmentStatistics::decode(&bytes), Ok(empty));
    }

    #[test]
    fn every_damage_has_its_own_error() {
        let bytes = encoded(3);
        assert_eq!(SegmentStatistics::decode(&bytes[1..]), Err(StatisticsFault::Short(4095)));
        assert_eq!(SegmentStatistics::decode(&[0; 4096]), Err(StatisticsFault::Magic(0)));
        let changed = |at: usize| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 4;
            SegmentStatistics::decode(&bytes)
        };
        assert!(matches!(changed(0), Err(StatisticsFault::Magic(_))));
        assert_eq!(changed(8), Err(StatisticsFault::Version(5)));
        for at in 12..SEGMENT_STATISTICS_BYTES {
            assert!(matches!(changed(at), Err(StatisticsFault::Checksum { .. })), "byte {at}");
        }
        let mut absurd = bytes;
        absurd[100..104].copy_from_slice(&u32::MAX.to_le_bytes());
        let checksum = CHECKSUM.of(0, &absurd[16..]);
        absurd[12..16].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(SegmentStatistics::decode(&absurd), Err(StatisticsFault::Types(u32::MAX)));
    }
}
