//! The manifest: the final data of a record stream, which names its segments.

use super::{Fields, StreamId};

/// One segment as the manifest knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    /// The id in its file header and in each of its blocks.
    pub segment_id: u64,
    /// Index of its first record; its file is named by it.
    pub base_index: u64,
    /// Index after its last record. For the active segment: after the last one known durable.
    pub next_index: u64,
    /// Position behind its last record. For the active segment: behind the last byte known durable.
    pub end_position: u64,
}

/// The state of a record stream that does not follow from its segment files.
///
/// Relations: `segments` is never empty and in index order; each segment begins where the one before ends; the last
/// is the active one; `first_index` lies in the first segment or at its base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The stream's identity.
    pub stream_id: StreamId,
    /// Epoch of blocks written after this manifest: those behind the active segment's `end_position` with a lower
    /// epoch are leftovers.
    pub epoch: u32,
    /// Whether the stream was closed: then the active segment ends exactly at `end_position`.
    pub closed: bool,
    /// Records below this index are purged.
    pub first_index: u64,
    /// Segments in index order; the last is active.
    pub segments: Vec<SegmentEntry>,
}

/// Why bytes are not a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestFault {
    /// Not a manifest.
    #[error("not a stream manifest: magic {0:#010x}")]
    Magic(u32),
    /// From a newer program.
    #[error("manifest version {0}, this program reads version {VERSION}: use a newer lsfs")]
    Version(u32),
    /// The length does not fit the number of segments.
    #[error("manifest of {segments} segments has {found} bytes")]
    Length {
        /// In the manifest.
        segments: u32,
        /// Of the whole.
        found: usize,
    },
    /// The entries contradict each other.
    #[error("manifest names no segments, or segments out of order at base index {0}")]
    Order(u64),
}

const MAGIC: u32 = u32::from_le_bytes(*b"LMAN");
const VERSION: u32 = 1;
const FIXED_BYTES: usize = 48;
const ENTRY_BYTES: usize = 32;

impl Manifest {
    /// The manifest's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_BYTES + self.segments.len() * ENTRY_BYTES);
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.stream_id.0);
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(u32::from(self.closed).to_le_bytes());
        bytes.extend(self.first_index.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend((self.segments.len() as u32).to_le_bytes());
        for segment in &self.segments {
            bytes.extend(segment.segment_id.to_le_bytes());
            bytes.extend(segment.base_index.to_le_bytes());
            bytes.extend(segment.next_index.to_le_bytes());
            bytes.extend(segment.end_position.to_le_bytes());
        }
        bytes
    }

    /// Reads and checks a manifest. Integrity is the final data's checksum; this checks meaning.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestFault> {
        if bytes.len() < FIXED_BYTES {
            return Err(ManifestFault::Length { segments: 0, found: bytes.len() });
        }
        let fields = Fields(bytes);
        if fields.u32(0) != MAGIC {
            return Err(ManifestFault::Magic(fields.u32(0)));
        }
        if fields.u32(4) != VERSION {
            return Err(ManifestFault::Version(fields.u32(4)));
        }
        let count = fields.u32(44);
        if bytes.len() as u64 != FIXED_BYTES as u64 + u64::from(count) * ENTRY_BYTES as u64 {
            return Err(ManifestFault::Length { segments: count, found: bytes.len() });
        }
        let segments: Vec<SegmentEntry> = bytes[FIXED_BYTES..]
            .chunks_exact(ENTRY_BYTES)
            .map(|entry| {
                let entry = Fields(entry);
                SegmentEntry {
                    segment_id: entry.u64(0),
                    base_index: entry.u64(8),
                    next_index: entry.u64(16),
                    end_position: entry.u64(24),
                }
            })
            .collect();
        let first = segments.first().ok_or(ManifestFault::Order(0))?;
        let first_index = fields.u64(32);
        if first_index < first.base_index {
            return Err(ManifestFault::Order(first.base_index));
        }
        let follows = |pair: &[SegmentEntry]| pair[0].next_index == pair[1].base_index;
        if let Some(pair) = segments.windows(2).find(|pair| !follows(pair)) {
            return Err(ManifestFault::Order(pair[1].base_index));
        }
        if let Some(entry) = segments.iter().find(|entry| entry.next_index < entry.base_index) {
            return Err(ManifestFault::Order(entry.base_index));
        }
        Ok(Manifest {
            stream_id: StreamId(fields.array(8)),
            epoch: fields.u32(24),
            closed: fields.u32(28) != 0,
            first_index,
            segments,
        })
    }

    /// The active segment.
    pub fn active(&self) -> &SegmentEntry {
        self.segments.last().expect("a manifest names at least one segment")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let entry = |base: u64| SegmentEntry {
            segment_id: base + 1,
            base_index: base,
            next_index: base + 10,
            end_position: 8000,
        };
        Manifest {
            stream_id: StreamId([7; 16]),
            epoch: 5,
            closed: true,
            first_index: 3,
            segments: vec![entry(0), entry(10), entry(20)],
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(Manifest::decode(&manifest().encode()), Ok(manifest()));
    }

    #[test]
    fn contradictions_are_refused() {
        let bytes = manifest().encode();
        assert!(matches!(Manifest::decode(&bytes[..bytes.len() - 1]), Err(ManifestFault::Length { .. })));
        assert!(matches!(Manifest::decode(&[0; 48]), Err(ManifestFault::Magic(0))));
        let mut newer = bytes.clone();
        newer[4] = 2;
        assert_eq!(Manifest::decode(&newer), Err(ManifestFault::Version(2)));
        let gap = Manifest { segments: vec![manifest().segments[0], manifest().segments[2]], ..manifest() };
        assert_eq!(Manifest::decode(&gap.encode()), Err(ManifestFault::Order(20)));
        let none = Manifest { segments: vec![], ..manifest() };
        assert_eq!(Manifest::decode(&none.encode()), Err(ManifestFault::Order(0)));
        let mut absurd = bytes;
        absurd[44..48].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Manifest::decode(&absurd), Err(ManifestFault::Length { .. })));
    }
}
