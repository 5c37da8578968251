//! The manifest: the final data of a record stream, which names its segments.

use std::ops::Range;

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
/// is the active one; `first_index` lies in the first segment or at its base; `lost` is in index order, no range is
/// empty and none touches the next.
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
    /// Bytes of the active segment's file, which gets no shorter while it is active; 0 if they are not known.
    pub active_bytes: u64,
    /// Segments in index order; the last is active.
    pub segments: Vec<SegmentEntry>,
    /// Records that a repair found to be lost: acknowledged once, and no longer to be read.
    pub lost: Vec<Range<u64>>,
}

/// Why bytes are not a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestFault {
    /// Not a manifest.
    #[error("not a stream manifest: magic {0:#010x}")]
    Magic(u32),
    /// From a newer program.
    #[error("manifest version {0}, this program reads versions up to {VERSION_LOST}: use a newer lsfs")]
    Version(u32),
    /// The length does not fit the numbers of segments and lost ranges.
    #[error("manifest of {segments} segments and {lost} lost ranges has {found} bytes")]
    Length {
        /// In the manifest.
        segments: u32,
        /// In the manifest.
        lost: u32,
        /// Of the whole.
        found: usize,
    },
    /// The entries contradict each other.
    #[error("manifest names no segments, or segments out of order at base index {0}")]
    Order(u64),
    /// The lost ranges contradict each other.
    #[error("manifest names empty lost ranges, or lost ranges out of order at record {0}")]
    Lost(u64),
}

const MAGIC: u32 = u32::from_le_bytes(*b"LMAN");
const VERSION: u32 = 1;
/// Of a manifest with lost ranges; without any the version is 1, so that those who do not know of them read it too.
const VERSION_LOST: u32 = 2;
const FIXED_BYTES: usize = 48;
const ENTRY_BYTES: usize = 32;
const LOST_BYTES: usize = 16;
/// The length of the active file, at the very end if it is known.
const LENGTH_BYTES: usize = 8;

impl Manifest {
    /// The manifest's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let variable = self.segments.len() * ENTRY_BYTES + self.lost.len() * LOST_BYTES;
        let mut bytes = Vec::with_capacity(FIXED_BYTES + variable + LENGTH_BYTES);
        let version = if self.lost.is_empty() { VERSION } else { VERSION_LOST };
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend(version.to_le_bytes());
        bytes.extend(self.stream_id.0);
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(u32::from(self.closed).to_le_bytes());
        bytes.extend(self.first_index.to_le_bytes());
        bytes.extend((self.lost.len() as u32).to_le_bytes());
        bytes.extend((self.segments.len() as u32).to_le_bytes());
        for segment in &self.segments {
            bytes.extend(segment.segment_id.to_le_bytes());
            bytes.extend(segment.base_index.to_le_bytes());
            bytes.extend(segment.next_index.to_le_bytes());
            bytes.extend(segment.end_position.to_le_bytes());
        }
        for range in &self.lost {
            bytes.extend(range.start.to_le_bytes());
            bytes.extend(range.end.to_le_bytes());
        }
        if self.active_bytes > 0 {
            bytes.extend(self.active_bytes.to_le_bytes());
        }
        bytes
    }

    /// Reads and checks a manifest. Integrity is the final data's checksum; this checks meaning.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestFault> {
        if bytes.len() < FIXED_BYTES {
            return Err(ManifestFault::Length { segments: 0, lost: 0, found: bytes.len() });
        }
        let fields = Fields(bytes);
        if fields.u32(0) != MAGIC {
            return Err(ManifestFault::Magic(fields.u32(0)));
        }
        let lost_count = match fields.u32(4) {
            // Reserved in this version.
            VERSION => 0,
            VERSION_LOST => fields.u32(40),
            newer => return Err(ManifestFault::Version(newer)),
        };
        let count = fields.u32(44);
        let entries_end = FIXED_BYTES as u64 + u64::from(count) * ENTRY_BYTES as u64;
        let lost_end = entries_end + u64::from(lost_count) * LOST_BYTES as u64;
        let active_bytes = match (bytes.len() as u64).checked_sub(lost_end) {
            Some(0) => 0,
            Some(8) => fields.u64(lost_end as usize),
            _ => return Err(ManifestFault::Length { segments: count, lost: lost_count, found: bytes.len() }),
        };
        let (entries, lost) =
            bytes[FIXED_BYTES..lost_end as usize].split_at(entries_end as usize - FIXED_BYTES);
        let segments: Vec<SegmentEntry> = entries
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
        let lost: Vec<Range<u64>> =
            lost.chunks_exact(LOST_BYTES).map(|range| Fields(range).u64(0)..Fields(range).u64(8)).collect();
        let is_apart = |pair: &[Range<u64>]| pair[0].end < pair[1].start;
        if let Some(range) = lost.iter().find(|range| range.is_empty()) {
            return Err(ManifestFault::Lost(range.start));
        }
        if let Some(pair) = lost.windows(2).find(|pair| !is_apart(pair)) {
            return Err(ManifestFault::Lost(pair[1].start));
        }
        Ok(Manifest {
            stream_id: StreamId(fields.array(8)),
            epoch: fields.u32(24),
            closed: fields.u32(28) != 0,
            first_index,
            active_bytes,
            segments,
            lost,
        })
    }

    /// The active segment.
    pub fn active(&self) -> &SegmentEntry {
        self.segments.last().expect("a manifest names at least one segment")
    }

    /// The lost range that this record is in.
    pub fn lost_range_of(&self, index: u64) -> Option<&Range<u64>> {
        lost_range_of(&self.lost, index)
    }

    /// Forgets lost ranges outside of the records that the stream holds now: they were purged or truncated.
    pub fn clip_lost(&mut self) {
        let held = self.first_index..self.active().next_index;
        for range in &mut self.lost {
            *range = range.start.max(held.start)..range.end.min(held.end);
        }
        self.lost.retain(|range| !range.is_empty());
    }
}

/// The range of `lost`, which is in index order, that a record is in.
pub(crate) fn lost_range_of(lost: &[Range<u64>], index: u64) -> Option<&Range<u64>> {
    let at = lost.partition_point(|range| range.end <= index);
    lost.get(at).filter(|range| range.contains(&index))
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
            active_bytes: 40_000,
            segments: vec![entry(0), entry(10), entry(20)],
            lost: vec![],
        }
    }

    #[expect(clippy::single_range_in_vec_init, reason = "one lost range")]
    fn with_lost() -> [Manifest; 2] {
        [Manifest { lost: vec![4..9], ..manifest() }, Manifest { lost: vec![4..9, 10..20], ..manifest() }]
    }

    #[test]
    fn round_trip() {
        assert_eq!(Manifest::decode(&manifest().encode()), Ok(manifest()));
        for lost in with_lost() {
            assert_eq!(Manifest::decode(&lost.encode()), Ok(lost));
        }
    }

    #[test]
    fn without_lost_ranges_it_is_of_version_1() {
        assert_eq!(manifest().encode()[4..8], [1, 0, 0, 0]);
        assert_eq!(with_lost()[0].encode()[4..8], [2, 0, 0, 0]);
        // What was reserved then is not looked at.
        let mut older = manifest().encode();
        older[40] = 7;
        assert_eq!(Manifest::decode(&older), Ok(manifest()));
    }

    #[test]
    fn lost_ranges_are_clipped_to_the_records_held() {
        let mut manifest = Manifest { lost: vec![0..2, 2..4, 8..12, 29..40, 50..60], ..manifest() };
        manifest.clip_lost();
        assert_eq!(manifest.lost, [3..4, 8..12, 29..30]);
        assert_eq!(manifest.lost_range_of(11), Some(&(8..12)));
        assert_eq!(manifest.lost_range_of(12), None);
        assert_eq!(manifest.lost_range_of(7), None);
    }

    #[test]
    fn contradictions_are_refused() {
        let bytes = manifest().encode();
        assert!(matches!(Manifest::decode(&bytes[..bytes.len() - 1]), Err(ManifestFault::Length { .. })));
        let uncounted = Manifest { active_bytes: 0, ..manifest() };
        assert_eq!(Manifest::decode(&bytes[..bytes.len() - 8]), Ok(uncounted.clone()));
        assert_eq!(uncounted.encode().len(), bytes.len() - 8);
        assert!(matches!(Manifest::decode(&[0; 48]), Err(ManifestFault::Magic(0))));
        let mut newer = bytes.clone();
        newer[4] = 3;
        assert_eq!(Manifest::decode(&newer), Err(ManifestFault::Version(3)));
        let gap = Manifest { segments: vec![manifest().segments[0], manifest().segments[2]], ..manifest() };
        assert_eq!(Manifest::decode(&gap.encode()), Err(ManifestFault::Order(20)));
        let none = Manifest { segments: vec![], ..manifest() };
        assert_eq!(Manifest::decode(&none.encode()), Err(ManifestFault::Order(0)));
        for (lost, at) in [(vec![4..9, 9..12], 9), (vec![12..14, 4..9], 4), (vec![4..9, 20..20], 20)] {
            let wrong = Manifest { lost, ..manifest() };
            assert_eq!(Manifest::decode(&wrong.encode()), Err(ManifestFault::Lost(at)));
        }
        let mut absurd = bytes;
        absurd[44..48].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Manifest::decode(&absurd), Err(ManifestFault::Length { .. })));
    }
}
