//! Settings of a record stream.

use crate::codec::{BLOCK_BYTES_DEFAULT, Checksum, Compression, is_block_size};
use crate::error::{Error, Result};
use crate::write_path::space::{READY_PART, SpaceOptions, SpacePolicy};

/// Settings of a record stream. Those marked *fixed* are kept from its creation on.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Bytes of a block: a power of two from 512 to 32768. Fixed.
    pub block_bytes: usize,
    /// How blocks and slices are checked. Fixed.
    pub checksum: Checksum,
    /// Compression of new records.
    pub compression: Compression,
    /// Largest payload of a record in bytes; at most 1 GiB. Fixed.
    pub record_limit_bytes: u32,
    /// Segments grow up to this size, from half a MiB in proportion to the live bytes.
    pub segment_bytes: u64,
    /// A segment ends with this many records at the latest.
    pub segment_records: u64,
    /// Most bytes written before they are synced: also the size of a write buffer. Fixed per segment.
    pub in_flight_bytes: usize,
    /// Memory for recent records, in bytes.
    pub cache_bytes: usize,
    /// How space is made ready.
    pub space: SpacePolicy,
    /// Index of the first record of a new stream.
    pub first_index: u64,
    /// Whether a missing stream is created.
    pub create: bool,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions {
            block_bytes: BLOCK_BYTES_DEFAULT,
            checksum: Checksum::default(),
            compression: Compression::None,
            record_limit_bytes: 256 << 20,
            segment_bytes: 64 << 20,
            segment_records: u64::MAX,
            in_flight_bytes: 2 << 20,
            cache_bytes: 4 << 20,
            space: SpacePolicy::default(),
            first_index: 0,
            create: true,
        }
    }
}

impl StreamOptions {
    /// The largest record limit: lengths and their sums stay far from 32 bits.
    pub(crate) const RECORD_LIMIT_BYTES_MAX: u32 = 1 << 30;

    /// Settings that suit the block size of an existing stream, whatever was asked for.
    pub(crate) fn fitted_to_blocks(self) -> Self {
        let in_flight_bytes =
            self.in_flight_bytes.max(self.block_bytes * 4).next_multiple_of(self.block_bytes);
        let segment_bytes = self.segment_bytes.max((self.block_bytes * 8) as u64);
        StreamOptions { in_flight_bytes, segment_bytes, ..self }
    }

    /// What spare segments need to know.
    pub(crate) fn space(&self) -> SpaceOptions {
        let StreamOptions { block_bytes, segment_bytes, space: policy, .. } = *self;
        SpaceOptions { block_bytes, segment_bytes, ready_part: READY_PART, policy }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let wrong =
            |option, value: String, expected: String| Err(Error::InvalidOption { option, value, expected });
        if !is_block_size(self.block_bytes) {
            let expected = "a power of two from 512 to 32768".to_string();
            return wrong("block_bytes", self.block_bytes.to_string(), expected);
        }
        if self.checksum == Checksum::None && self.block_bytes > BLOCK_BYTES_DEFAULT {
            // Only writes of 4 KiB are assumed to be atomic.
            let expected = format!("at most {BLOCK_BYTES_DEFAULT} without checksums");
            return wrong("block_bytes", self.block_bytes.to_string(), expected);
        }
        if self.record_limit_bytes > Self::RECORD_LIMIT_BYTES_MAX {
            let expected = format!("at most {}", Self::RECORD_LIMIT_BYTES_MAX);
            return wrong("record_limit_bytes", self.record_limit_bytes.to_string(), expected);
        }
        let in_flight_min = self.block_bytes * 4;
        if self.in_flight_bytes < in_flight_min
            || self.in_flight_bytes > 1 << 30
            || !self.in_flight_bytes.is_multiple_of(self.block_bytes)
        {
            let expected = format!("a multiple of the block size from {in_flight_min} to 1 GiB");
            return wrong("in_flight_bytes", self.in_flight_bytes.to_string(), expected);
        }
        let segment_min = (self.block_bytes * 8) as u64;
        if self.segment_bytes < segment_min || self.segment_bytes > 1 << 40 {
            let expected = format!("from {segment_min} bytes to 1 TiB");
            return wrong("segment_bytes", self.segment_bytes.to_string(), expected);
        }
        if self.segment_records == 0 {
            return wrong("segment_records", "0".to_string(), "at least 1".to_string());
        }
        if self.first_index > u64::MAX / 2 {
            let expected = "below 2^63".to_string();
            return wrong("first_index", self.first_index.to_string(), expected);
        }
        Ok(())
    }
}
