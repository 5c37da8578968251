//! The block: what one aligned write carries.

use super::{Checksum, Fields, crc32c, put};
use crate::mutant::{self, Mutant};

/// Bytes of a block header.
pub const BLOCK_HEADER_BYTES: usize = 50;
/// Bytes of a block tailer, at the very end of the block.
pub const BLOCK_TAILER_BYTES: usize = 8;

const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"LBLK");
const TAILER_MAGIC: u32 = u32::from_le_bytes(*b"blkE");

/// The header of a block.
///
/// Relations that hold in every valid block: `BLOCK_HEADER_BYTES <= used_bytes <= block size -
/// BLOCK_TAILER_BYTES`; `durable_index <= ` the index of every record that begins after `durable_position`;
/// `durable_position` is at or before the end of this block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// The file this block was written for; compared, so that blocks of a recycled file never verify.
    pub segment_id: u64,
    /// Number of the block in its file, so that a misdirected write never verifies.
    pub block_number: u32,
    /// The writer's epoch: higher after every open and every truncation. Later blocks of a file never have a lower
    /// one, which is how leftovers of an abandoned tail are told from its continuation.
    pub epoch: u32,
    /// Index of the record that the first slice belongs to.
    pub first_index: u64,
    /// Watermark: records below this index were durable when the block was formed.
    pub durable_index: u64,
    /// Watermark: bytes of this file below this position were durable when the block was formed.
    pub durable_position: u64,
    /// Bytes in use from the start of the block: header and slices.
    pub used_bytes: u16,
}

/// Why bytes are not the block expected there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockFault {
    /// Only zeros where the header should be: never written.
    #[error("nothing was written here")]
    Empty,
    /// Not a block at all.
    #[error("block magic is {0:#010x}, expected {HEADER_MAGIC:#010x}")]
    Magic(u32),
    /// The header's bytes changed.
    #[error("block header checksum: stored {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// In the header.
        stored: u32,
        /// Of the header's bytes.
        computed: u32,
    },
    /// A block of another (recycled) file.
    #[error("block belongs to segment {found:#018x}, expected {expected:#018x}")]
    Segment {
        /// In the header.
        found: u64,
        /// Of the file.
        expected: u64,
    },
    /// A block of another place.
    #[error("block says it is number {found}, expected {expected}")]
    Number {
        /// In the header.
        found: u32,
        /// By its position.
        expected: u32,
    },
    /// The length in use is impossible.
    #[error("block says {0} bytes are in use")]
    Used(u16),
    /// A block of an epoch that the manifest does not know: a later manifest was lost.
    #[error("block is of epoch {found}, the manifest knows epoch {manifest}: a later manifest is gone")]
    Epoch {
        /// In the header.
        found: u32,
        /// In the manifest.
        manifest: u32,
    },
    /// The buffer is shorter than a block.
    #[error("block is cut short")]
    Short,
}

/// The checksum seed of everything inside a block: bytes that verify here verify nowhere else.
pub fn block_seed(segment_id: u64, block_number: u32, epoch: u32) -> u32 {
    let mut bytes = [0; 16];
    put(&mut bytes, 0, &segment_id.to_le_bytes());
    put(&mut bytes, 8, &block_number.to_le_bytes());
    put(&mut bytes, 12, &epoch.to_le_bytes());
    crc32c(0, &bytes)
}

impl BlockHeader {
    /// Writes the header and the tailer of `block`.
    ///
    /// `last_slice_start` is the offset of the last slice in the block, from which one walks backward.
    pub fn encode(&self, block: &mut [u8], last_slice_start: u16, checksum: Checksum) {
        put(block, 0, &HEADER_MAGIC.to_le_bytes());
        put(block, 8, &self.segment_id.to_le_bytes());
        put(block, 16, &self.block_number.to_le_bytes());
        put(block, 20, &self.epoch.to_le_bytes());
        put(block, 24, &self.first_index.to_le_bytes());
        put(block, 32, &self.durable_index.to_le_bytes());
        put(block, 40, &self.durable_position.to_le_bytes());
        put(block, 48, &self.used_bytes.to_le_bytes());
        let crc = checksum.of(0, &block[8..BLOCK_HEADER_BYTES]);
        put(block, 4, &crc.to_le_bytes());
        let tailer = block.len() - BLOCK_TAILER_BYTES;
        put(block, tailer, &last_slice_start.to_le_bytes());
        put(block, tailer + 2, &self.used_bytes.to_le_bytes());
        put(block, tailer + 4, &TAILER_MAGIC.to_le_bytes());
    }

    /// Reads and checks the header of `block`, which must be the whole block.
    pub fn decode(
        block: &[u8],
        segment_id: u64,
        block_number: u32,
        checksum: Checksum,
    ) -> Result<BlockHeader, BlockFault> {
        if block.len() < BLOCK_HEADER_BYTES + BLOCK_TAILER_BYTES {
            return Err(BlockFault::Short);
        }
        let fields = Fields(block);
        match fields.u32(0) {
            HEADER_MAGIC => {}
            0 if block[..BLOCK_HEADER_BYTES].iter().all(|&byte| byte == 0) => return Err(BlockFault::Empty),
            magic => return Err(BlockFault::Magic(magic)),
        }
        let stored = fields.u32(4);
        if !checksum.matches(0, &block[8..BLOCK_HEADER_BYTES], stored) {
            let computed = checksum.of(0, &block[8..BLOCK_HEADER_BYTES]);
            return Err(BlockFault::Checksum { stored, computed });
        }
        let header = BlockHeader {
            segment_id: fields.u64(8),
            block_number: fields.u32(16),
            epoch: fields.u32(20),
            first_index: fields.u64(24),
            durable_index: fields.u64(32),
            durable_position: fields.u64(40),
            used_bytes: fields.u16(48),
        };
        if header.segment_id != segment_id && !mutant::is(Mutant::StaleBlockAccepted) {
            return Err(BlockFault::Segment { found: header.segment_id, expected: segment_id });
        }
        if header.block_number != block_number {
            return Err(BlockFault::Number { found: header.block_number, expected: block_number });
        }
        let used = usize::from(header.used_bytes);
        if used < BLOCK_HEADER_BYTES || used > block.len() - BLOCK_TAILER_BYTES {
            return Err(BlockFault::Used(header.used_bytes));
        }
        Ok(header)
    }

    /// The checksum seed of this block's slices.
    pub fn seed(&self) -> u32 {
        block_seed(self.segment_id, self.block_number, self.epoch)
    }
}

/// What the end of a block says; a hint for walking backward, always verified by what it points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockTailer {
    /// Offset of the last slice's header in the block.
    pub last_slice_start: u16,
    /// The same count as the block header's.
    pub used_bytes: u16,
}

impl BlockTailer {
    /// Reads the tailer of a whole block; `None` if the magic is wrong or the buffer too short.
    pub fn decode(block: &[u8]) -> Option<BlockTailer> {
        let at = block.len().checked_sub(BLOCK_TAILER_BYTES)?;
        let fields = Fields(block);
        (fields.u32(at + 4) == TAILER_MAGIC)
            .then(|| BlockTailer { last_slice_start: fields.u16(at), used_bytes: fields.u16(at + 2) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: BlockHeader = BlockHeader {
        segment_id: 0x1122_3344_5566_7788,
        block_number: 9,
        epoch: 3,
        first_index: 1000,
        durable_index: 990,
        durable_position: 32_000,
        used_bytes: 77,
    };

    fn encoded() -> Vec<u8> {
        let mut block = vec![0; 512];
        HEADER.encode(&mut block, 50, Checksum::Crc32c);
        block
    }

    fn decode(block: &[u8]) -> Result<BlockHeader, BlockFault> {
        BlockHeader::decode(block, HEADER.segment_id, 9, Checksum::Crc32c)
    }

    #[test]
    fn round_trip() {
        let block = encoded();
        assert_eq!(decode(&block), Ok(HEADER));
        assert_eq!(BlockTailer::decode(&block), Some(BlockTailer { last_slice_start: 50, used_bytes: 77 }));
    }

    #[test]
    fn every_damage_has_its_own_error() {
        assert_eq!(decode(&[0; 512]), Err(BlockFault::Empty));
        assert_eq!(decode(&[0; 20]), Err(BlockFault::Short));
        let mut block = encoded();
        block[0] ^= 1;
        assert!(matches!(decode(&block), Err(BlockFault::Magic(_))));
        for at in 4..BLOCK_HEADER_BYTES {
            let mut block = encoded();
            block[at] ^= 0x10;
            assert!(matches!(decode(&block), Err(BlockFault::Checksum { .. })), "byte {at}");
        }
        let block = encoded();
        assert!(matches!(
            BlockHeader::decode(&block, 7, 9, Checksum::Crc32c),
            Err(BlockFault::Segment { expected: 7, .. })
        ));
        assert_eq!(
            BlockHeader::decode(&block, HEADER.segment_id, 8, Checksum::Crc32c),
            Err(BlockFault::Number { found: 9, expected: 8 })
        );
        for used_bytes in [0, 49, 505] {
            let mut block = vec![0; 512];
            BlockHeader { used_bytes, ..HEADER }.encode(&mut block, 50, Checksum::Crc32c);
            assert_eq!(decode(&block), Err(BlockFault::Used(used_bytes)));
        }
    }

    #[test]
    fn without_checksum_only_the_structure_is_checked() {
        let mut block = vec![0; 512];
        HEADER.encode(&mut block, 50, Checksum::None);
        assert_eq!(block[4..8], [0; 4]);
        block[30] ^= 1;
        assert!(BlockHeader::decode(&block, HEADER.segment_id, 9, Checksum::None).is_ok());
    }
}
