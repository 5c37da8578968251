//! The root of a checkpoint: what an open needs to know of the index and of the log. `docs/format.md`, "The root".

use crate::index::IndexRoot;
use crate::tail::Spot;

const MAGIC: [u8; 8] = *b"KVSroot\x01";
const VERSION: u32 = 2;
const FIXED_BYTES: usize = 72;
const SEGMENT_BYTES: usize = 28;
const LOST_BYTES: usize = 12;
/// Instead of a slot.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// A checkpoint, as final data keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) index: IndexRoot,
    /// Segment and position in the log of the first frame that is not in the index.
    pub(crate) log_end: (u32, u32),
    /// Keys that have a value.
    pub(crate) keys: u64,
    pub(crate) segments: Vec<RootSegment>,
    /// Commands that do not verify and are in no page of the index.
    pub(crate) lost: Vec<Spot>,
}

/// A segment of the log at the time of the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RootSegment {
    /// In addresses; [`NO_SLOT`] if no address is in this segment.
    pub(crate) slot: u32,
    pub(crate) number: u32,
    /// Bytes of frames to which the index does not point.
    pub(crate) stale_bytes: u64,
    /// Bytes of removes to which the index points.
    pub(crate) remove_bytes: u64,
    /// How many these are.
    pub(crate) removes: u32,
}

/// Why bytes are not a root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RootFault {
    #[error("it begins with {0:02x?}")]
    Magic([u8; 8]),
    #[error("it has version {0}, this program knows version {VERSION}")]
    Version(u32),
    #[error("it has {found} bytes, its fields say {expected}")]
    Length { found: usize, expected: u64 },
}

impl Root {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(u32::from(self.index.depth).to_le_bytes());
        bytes.extend(self.index.file_id.to_le_bytes());
        bytes.extend(self.index.hash_seed.to_le_bytes());
        bytes.extend(self.log_end.0.to_le_bytes());
        bytes.extend(self.log_end.1.to_le_bytes());
        bytes.extend(self.keys.to_le_bytes());
        bytes.extend((self.index.directory.len() as u32).to_le_bytes());
        bytes.extend((self.segments.len() as u32).to_le_bytes());
        bytes.extend(self.index.generation.to_le_bytes());
        bytes.extend((self.lost.len() as u32).to_le_bytes());
        bytes.resize(FIXED_BYTES, 0);
        for place in &self.index.directory {
            bytes.extend(place.to_le_bytes());
        }
        for segment in &self.segments {
            bytes.extend(segment.slot.to_le_bytes());
            bytes.extend(segment.number.to_le_bytes());
            bytes.extend(segment.stale_bytes.to_le_bytes());
            bytes.extend(segment.remove_bytes.to_le_bytes());
            bytes.extend(segment.removes.to_le_bytes());
        }
        for number in self.lost.iter().flat_map(|spot| spot.to_numbers()) {
            bytes.extend(number.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Root, RootFault> {
        let too_short = RootFault::Length { found: bytes.len(), expected: FIXED_BYTES as u64 };
        let fixed: &[u8; FIXED_BYTES] = bytes.first_chunk().ok_or(too_short)?;
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let magic: [u8; 8] = *fixed.first_chunk().expect("72 bytes begin with 8");
        if magic != MAGIC {
            return Err(RootFault::Magic(magic));
        }
        if u32_at(8) != VERSION {
            return Err(RootFault::Version(u32_at(8)));
        }
        let (places, segments, lost) = (u32_at(48) as usize, u32_at(52) as usize, u32_at(60) as usize);
        let expected = FIXED_BYTES as u64
            + places as u64 * 4
            + segments as u64 * SEGMENT_BYTES as u64
            + lost as u64 * LOST_BYTES as u64;
        if bytes.len() as u64 != expected {
            return Err(RootFault::Length { found: bytes.len(), expected });
        }
        let segments_at = FIXED_BYTES + places * 4;
        let lost_at = segments_at + segments * SEGMENT_BYTES;
        Ok(Root {
            index: IndexRoot {
                depth: u32_at(12).try_into().unwrap_or(u8::MAX),
                file_id: u64_at(16),
                hash_seed: u64_at(24),
                generation: u32_at(56),
                directory: (0..places).map(|n| u32_at(FIXED_BYTES + 4 * n)).collect(),
            },
            log_end: (u32_at(32), u32_at(36)),
            keys: u64_at(40),
            segments: (0..segments)
                .map(|n| segments_at + n * SEGMENT_BYTES)
                .map(|at| RootSegment {
                    slot: u32_at(at),
                    number: u32_at(at + 4),
                    stale_bytes: u64_at(at + 8),
                    remove_bytes: u64_at(at + 16),
                    removes: u32_at(at + 24),
                })
                .collect(),
            lost: (0..lost)
                .map(|n| lost_at + n * LOST_BYTES)
                .map(|at| Spot::from_numbers([u32_at(at), u32_at(at + 4), u32_at(at + 8)]))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Root {
        Root {
            index: IndexRoot { file_id: 1, hash_seed: 2, depth: 3, generation: 12, directory: vec![4, 5] },
            log_end: (6, 7),
            keys: 8,
            segments: vec![
                RootSegment { slot: 0, number: 9, stale_bytes: 1 << 40, remove_bytes: 3, removes: 2 },
                RootSegment { slot: 2, number: 10, stale_bytes: 11, remove_bytes: 0, removes: 0 },
            ],
            lost: vec![Spot::new(3 << 40, 9, 4096), Spot::new(5 << 40, 10, 8192)],
        }
    }

    #[test]
    fn roots_are_read_back_and_anything_else_is_refused() {
        let bytes = root().encode();
        assert_eq!(Root::decode(&bytes), Ok(root()));
        for len in 0..bytes.len() {
            assert!(matches!(Root::decode(&bytes[..len]), Err(RootFault::Length { .. })), "{len}");
        }
        let with = |at: usize, byte: u8| {
            let mut bad = bytes.clone();
            bad[at] = byte;
            Root::decode(&bad)
        };
        assert!(matches!(with(0, 0), Err(RootFault::Magic(_))));
        assert_eq!(with(8, 1), Err(RootFault::Version(1)));
        assert!(matches!(with(51, 0xff), Err(RootFault::Length { .. })), "no allocation by a wrong length");
        assert!(matches!(with(55, 0xff), Err(RootFault::Length { .. })));
        assert!(matches!(with(63, 0xff), Err(RootFault::Length { .. })));
    }
}
