//! What the record layer puts into slice bodies.

use super::{Compression, Fields, SLICE_OVERHEAD_BYTES, put};

/// Bytes of the longest record header: that of a compressed record.
pub const RECORD_HEADER_BYTES_MAX: usize = 17;
/// Bytes of a record tailer.
pub const RECORD_TAILER_BYTES: usize = 23;

const HEADER_BYTES_PLAIN: usize = 13;
/// High nibble of a record header's first byte; the low nibble is the compression code.
const HEADER_MAGIC: u8 = 0xD0;
const TAILER_MAGIC: u8 = 0xDE;

/// The header of a record, at the start of its first slice's body. The record index is the slice's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// The caller's 64-bit type code.
    pub type_code: u64,
    /// How the stored bytes are compressed.
    pub compression: Compression,
    /// Payload bytes as stored.
    pub stored_bytes: u32,
    /// Payload bytes as the caller gave them; equal to `stored_bytes` without compression.
    pub raw_bytes: u32,
}

/// Why a body is not a valid record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// The body is too short for a record header.
    #[error("record header is cut short: {0} bytes")]
    Short(usize),
    /// The body does not begin with a record header.
    #[error("record magic is {0:#04x}")]
    Magic(u8),
    /// The lengths are over the limit of the stream.
    #[error("record says {stored_bytes} stored and {raw_bytes} raw bytes, the limit is {limit_bytes}")]
    Length {
        /// As stored.
        stored_bytes: u32,
        /// Uncompressed.
        raw_bytes: u32,
        /// Of the stream.
        limit_bytes: u32,
    },
    /// The slices hold more or fewer bytes than the header says.
    #[error("record says {expected} stored bytes, its slices hold {found}")]
    Size {
        /// In the header.
        expected: u32,
        /// In the slices.
        found: u64,
    },
    /// The record tailer does not match the header.
    #[error("record tailer does not match the record")]
    Tailer,
}

impl RecordHeader {
    /// Writes the header into `target` and returns its length.
    pub fn encode(&self, target: &mut [u8; RECORD_HEADER_BYTES_MAX]) -> usize {
        target[0] = HEADER_MAGIC | self.compression.code();
        put(target, 1, &self.type_code.to_le_bytes());
        put(target, 9, &self.stored_bytes.to_le_bytes());
        if self.compression == Compression::None {
            return HEADER_BYTES_PLAIN;
        }
        put(target, 13, &self.raw_bytes.to_le_bytes());
        RECORD_HEADER_BYTES_MAX
    }

    /// Reads the header at the start of a first slice's body; returns it with its length.
    pub fn decode(body: &[u8], limit_bytes: u32) -> Result<(RecordHeader, usize), RecordFault> {
        let first = *body.first().ok_or(RecordFault::Short(0))?;
        let compression = Compression::from_code(first & 0x0F);
        let (HEADER_MAGIC, Some(compression)) = (first & 0xF0, compression) else {
            return Err(RecordFault::Magic(first));
        };
        let header_bytes =
            if compression == Compression::None { HEADER_BYTES_PLAIN } else { RECORD_HEADER_BYTES_MAX };
        if body.len() < header_bytes {
            return Err(RecordFault::Short(body.len()));
        }
        let fields = Fields(body);
        let stored_bytes = fields.u32(9);
        let raw_bytes = if compression == Compression::None { stored_bytes } else { fields.u32(13) };
        if stored_bytes > limit_bytes || raw_bytes > limit_bytes {
            return Err(RecordFault::Length { stored_bytes, raw_bytes, limit_bytes });
        }
        Ok((RecordHeader { type_code: fields.u64(1), compression, stored_bytes, raw_bytes }, header_bytes))
    }

    /// Bytes of the encoded header.
    pub fn encoded_bytes(&self) -> usize {
        if self.compression == Compression::None { HEADER_BYTES_PLAIN } else { RECORD_HEADER_BYTES_MAX }
    }
}

/// The tailer of a record of several slices, at the end of its last slice's body. A record of one slice needs none:
/// its slice tailer says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordTailer {
    /// The record's index.
    pub index: u64,
    /// The record's type code.
    pub type_code: u64,
    /// Block of the record's first slice.
    pub first_block: u32,
    /// Offset of the first slice in that block.
    pub first_offset: u16,
}

impl RecordTailer {
    /// The tailer's bytes.
    pub fn encode(&self) -> [u8; RECORD_TAILER_BYTES] {
        let mut bytes = [0; RECORD_TAILER_BYTES];
        put(&mut bytes, 0, &self.index.to_le_bytes());
        put(&mut bytes, 8, &self.type_code.to_le_bytes());
        put(&mut bytes, 16, &self.first_block.to_le_bytes());
        put(&mut bytes, 20, &self.first_offset.to_le_bytes());
        bytes[22] = TAILER_MAGIC;
        bytes
    }

    /// Reads the tailer at the end of a last slice's body.
    pub fn decode(body: &[u8]) -> Result<RecordTailer, RecordFault> {
        let start = body.len().checked_sub(RECORD_TAILER_BYTES).ok_or(RecordFault::Tailer)?;
        let fields = Fields(&body[start..]);
        if fields.0[22] != TAILER_MAGIC {
            return Err(RecordFault::Tailer);
        }
        Ok(RecordTailer {
            index: fields.u64(0),
            type_code: fields.u64(8),
            first_block: fields.u32(16),
            first_offset: fields.u16(20),
        })
    }
}

/// Bytes that a record in a single slice adds to its uncompressed payload, block overhead apart.
pub const fn record_overhead_bytes() -> usize {
    SLICE_OVERHEAD_BYTES + HEADER_BYTES_PLAIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip() {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let raw_bytes = if compression == Compression::None { 300 } else { 900 };
            let header = RecordHeader { type_code: u64::MAX - 1, compression, stored_bytes: 300, raw_bytes };
            let mut bytes = [0; RECORD_HEADER_BYTES_MAX];
            let len = header.encode(&mut bytes);
            assert_eq!(len, header.encoded_bytes());
            assert_eq!(RecordHeader::decode(&bytes, 1000), Ok((header, len)));
            assert!(matches!(RecordHeader::decode(&bytes, 299), Err(RecordFault::Length { .. })));
            assert_eq!(RecordHeader::decode(&bytes[..len - 1], 1000), Err(RecordFault::Short(len - 1)));
        }
    }

    #[test]
    fn foreign_bytes_are_refused() {
        assert_eq!(RecordHeader::decode(&[], 9), Err(RecordFault::Short(0)));
        assert_eq!(RecordHeader::decode(&[0; 20], 9), Err(RecordFault::Magic(0)));
        assert_eq!(RecordHeader::decode(&[0xDF; 20], 9), Err(RecordFault::Magic(0xDF)));
        assert_eq!(RecordTailer::decode(&[0; 40]), Err(RecordFault::Tailer));
        assert_eq!(RecordTailer::decode(&[0; 4]), Err(RecordFault::Tailer));
    }

    #[test]
    fn tailers_round_trip() {
        let tailer = RecordTailer { index: 1 << 40, type_code: 7, first_block: 12, first_offset: 3000 };
        assert_eq!(RecordTailer::decode(&tailer.encode()), Ok(tailer));
    }
}
