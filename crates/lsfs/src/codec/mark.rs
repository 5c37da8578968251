//! The mark: a durable end point of a data stream.

use super::{Fields, put};

/// Bytes of a mark.
pub const MARK_BYTES: usize = 60;

const MAGIC: u32 = u32::from_le_bytes(*b"LMRK");
const VERSION: u32 = 1;

/// Where a data stream durably ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// 1 for the first mark of the stream, then 2, 3, ...
    pub number: u64,
    /// Bytes of the data stream before the mark.
    pub byte_count: u64,
    /// Records (chunks) of the underlying stream before the mark.
    pub record_count: u64,
    /// Segment that holds the first byte after the previous mark.
    pub first_segment_base: u64,
    /// Block of that byte's slice.
    pub first_block: u32,
    /// Offset of that slice in its block.
    pub first_offset: u16,
    /// Block that holds the last byte before this mark.
    pub last_block: u32,
}

/// Why bytes are not a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkFault {
    /// Wrong length.
    #[error("a mark has {MARK_BYTES} bytes, found {0}")]
    Length(usize),
    /// Not a mark.
    #[error("not a mark: magic {0:#010x}")]
    Magic(u32),
    /// From a newer program.
    #[error("mark version {0}, this program reads version {VERSION}: use a newer lsfs")]
    Version(u32),
}

impl Mark {
    /// The mark's bytes.
    pub fn encode(&self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        put(&mut bytes, 0, &MAGIC.to_le_bytes());
        put(&mut bytes, 4, &VERSION.to_le_bytes());
        put(&mut bytes, 8, &self.number.to_le_bytes());
        put(&mut bytes, 16, &self.byte_count.to_le_bytes());
        put(&mut bytes, 24, &self.record_count.to_le_bytes());
        put(&mut bytes, 32, &self.first_segment_base.to_le_bytes());
        put(&mut bytes, 40, &self.first_block.to_le_bytes());
        put(&mut bytes, 44, &self.last_block.to_le_bytes());
        put(&mut bytes, 48, &self.first_offset.to_le_bytes());
        bytes
    }

    /// Reads a mark. Integrity is the final data's checksum.
    pub fn decode(bytes: &[u8]) -> Result<Mark, MarkFault> {
        if bytes.len() != MARK_BYTES {
            return Err(MarkFault::Length(bytes.len()));
        }
        let fields = Fields(bytes);
        if fields.u32(0) != MAGIC {
            return Err(MarkFault::Magic(fields.u32(0)));
        }
        if fields.u32(4) != VERSION {
            return Err(MarkFault::Version(fields.u32(4)));
        }
        Ok(Mark {
            number: fields.u64(8),
            byte_count: fields.u64(16),
            record_count: fields.u64(24),
            first_segment_base: fields.u64(32),
            first_block: fields.u32(40),
            last_block: fields.u32(44),
            first_offset: fields.u16(48),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let mark = Mark {
            number: 3,
            byte_count: 1 << 40,
            record_count: 99,
            first_segment_base: 64,
            first_block: 5,
            first_offset: 50,
            last_block: 8,
        };
        assert_eq!(Mark::decode(&mark.encode()), Ok(mark));
        assert_eq!(Mark::decode(&[0; MARK_BYTES]), Err(MarkFault::Magic(0)));
        assert_eq!(Mark::decode(&[0; 3]), Err(MarkFault::Length(3)));
        let mut newer = mark.encode();
        newer[4] = 9;
        assert_eq!(Mark::decode(&newer), Err(MarkFault::Version(9)));
    }
}
