//! The segment list: the final data of a segment set, which names its segments.

use super::{BLOCK_BYTES_DEFAULT, Fields, FrameIdentity, StreamId, crc32c};

/// What lies in a segment up to a place in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Position behind the last entry.
    pub end: u32,
    /// Position of the last entry; 0 if there is none.
    pub last: u32,
    /// Entries.
    pub entries: u32,
    /// Bytes of their bodies.
    pub body_bytes: u32,
    /// CRC-32C over the piece checksums of all entries, in order; also of those that do not store them.
    pub digest: u32,
}

impl Tally {
    /// Of a segment without entries, whose frames begin behind the page of the file header.
    pub fn of_empty() -> Tally {
        Tally { end: BLOCK_BYTES_DEFAULT as u32, ..Tally::default() }
    }

    /// With one entry of the segment more, at `position`, whose body has these piece checksums.
    pub fn with(
        self,
        segment: &FrameIdentity,
        position: u64,
        body_bytes: u32,
        checksums: impl Iterator<Item = u32>,
    ) -> Tally {
        let digest = checksums.fold(self.digest, |digest, checksum| crc32c(digest, &checksum.to_le_bytes()));
        Tally {
            end: segment.frame_end(position, body_bytes) as u32,
            last: position as u32,
            entries: self.entries + 1,
            body_bytes: self.body_bytes.wrapping_add(body_bytes),
            digest,
        }
    }
}

/// One segment as the list knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedSegment {
    /// The id in its file header, mixed into each of its frames.
    pub segment_id: u64,
    /// Its number; its file is named by it.
    pub number: u32,
    /// What lies in it. For the active segment: what is known durable.
    pub tally: Tally,
    /// Bytes of frames that their owner released; see docs/durability.md for when this is exact.
    pub released_bytes: u32,
}

/// The state of a segment set that does not follow from its segment files.
///
/// Relations: `segments` is never empty and in the order of their numbers; the last is the active one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentList {
    /// The set's identity.
    pub set_id: StreamId,
    /// Frames behind the active segment's end with a lower epoch are leftovers.
    pub epoch: u32,
    /// Whether the set was closed: then the active segment ends exactly at its end, and released bytes are exact.
    pub closed: bool,
    /// Whether the set is a cache: then nothing in it is durable for certain.
    pub cache: bool,
    /// Segments in the order of their numbers; the last is active.
    pub segments: Vec<ListedSegment>,
}

/// Why bytes are not a segment list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentListFault {
    /// Not a segment list.
    #[error("not a segment list: magic {0:#010x}")]
    Magic(u32),
    /// From a newer program.
    #[error("segment list version {0}, this program reads version {VERSION}: use a newer lsfs")]
    Version(u32),
    /// The length does not fit the number of segments.
    #[error("segment list of {segments} segments has {found} bytes")]
    Length {
        /// In the list.
        segments: u32,
        /// Of the whole.
        found: usize,
    },
    /// A flag that this version does not know.
    #[error("segment list has the flags {0:#x}")]
    Flags(u32),
    /// The entries contradict each other.
    #[error("segment list names no segments, or segments out of order at number {0}")]
    Order(u32),
}

const MAGIC: u32 = u32::from_le_bytes(*b"LSEG");
const VERSION: u32 = 1;
const FIXED_BYTES: usize = 40;
const ENTRY_BYTES: usize = 40;
const FLAG_CLOSED: u32 = 1;
const FLAG_CACHE: u32 = 2;

impl SegmentList {
    /// The list's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let flags = (u32::from(self.closed) * FLAG_CLOSED) | (u32::from(self.cache) * FLAG_CACHE);
        let mut bytes = Vec::with_capacity(FIXED_BYTES + self.segments.len() * ENTRY_BYTES);
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.set_id.0);
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend((self.segments.len() as u32).to_le_bytes());
        for segment in &self.segments {
            let ListedSegment { segment_id, number, tally, released_bytes } = segment;
            bytes.extend(segment_id.to_le_bytes());
            for word in [*number, tally.end, tally.last, tally.entries, tally.body_bytes, tally.digest] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.extend(released_bytes.to_le_bytes());
            bytes.extend(0u32.to_le_bytes());
        }
        bytes
    }

    /// Reads and checks a list. Integrity is the final data's checksum; this checks meaning.
    pub fn decode(bytes: &[u8]) -> Result<SegmentList, SegmentListFault> {
        if bytes.len() < FIXED_BYTES {
            return Err(SegmentListFault::Length { segments: 0, found: bytes.len() });
        }
        let fields = Fields(bytes);
        if fields.u32(0) != MAGIC {
            return Err(SegmentListFault::Magic(fields.u32(0)));
        }
        if fields.u32(4) != VERSION {
            return Err(SegmentListFault::Version(fields.u32(4)));
        }
        let flags = fields.u32(28);
        if flags & !(FLAG_CLOSED | FLAG_CACHE) != 0 {
            return Err(SegmentListFault::Flags(flags));
        }
        let count = fields.u32(36);
        if bytes.len() as u64 != FIXED_BYTES as u64 + u64::from(count) * ENTRY_BYTES as u64 {
            return Err(SegmentListFault::Length { segments: count, found: bytes.len() });
        }
        let segments: Vec<ListedSegment> = bytes[FIXED_BYTES..]
            .chunks_exact(ENTRY_BYTES)
            .map(|entry| {
                let entry = Fields(entry);
                let tally = Tally {
                    end: entry.u32(12),
                    last: entry.u32(16),
                    entries: entry.u32(20),
                    body_bytes: entry.u32(24),
                    digest: entry.u32(28),
                };
                ListedSegment {
                    segment_id: entry.u64(0),
                    number: entry.u32(8),
                    tally,
                    released_bytes: entry.u32(32),
                }
            })
            .collect();
        if segments.is_empty() {
            return Err(SegmentListFault::Order(0));
        }
        if let Some(pair) = segments.windows(2).find(|pair| pair[0].number >= pair[1].number) {
            return Err(SegmentListFault::Order(pair[1].number));
        }
        Ok(SegmentList {
            set_id: StreamId(fields.array(8)),
            epoch: fields.u32(24),
            closed: flags & FLAG_CLOSED != 0,
            cache: flags & FLAG_CACHE != 0,
            segments,
        })
    }

    /// The active segment.
    pub fn active(&self) -> &ListedSegment {
        self.segments.last().expect("a segment list names at least one segment")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> SegmentList {
        let segment = |number: u32| ListedSegment {
            segment_id: u64::from(number) << 40,
            number,
            tally: Tally { end: 9000, last: 8000, entries: 11, body_bytes: 4000, digest: 0xABCD },
            released_bytes: 500,
        };
        SegmentList {
            set_id: StreamId([7; 16]),
            epoch: 5,
            closed: true,
            cache: false,
            segments: vec![segment(1), segment(4), segment(5)],
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(SegmentList::decode(&list().encode()), Ok(list()));
        let cache = SegmentList { closed: false, cache: true, ..list() };
        assert_eq!(SegmentList::decode(&cache.encode()), Ok(cache));
    }

    #[test]
    fn contradictions_are_refused() {
        let bytes = list().encode();
        assert!(matches!(
            SegmentList::decode(&bytes[..bytes.len() - 1]),
            Err(SegmentListFault::Length { .. })
        ));
        assert_eq!(SegmentList::decode(&[0; 40]), Err(SegmentListFault::Magic(0)));
        let damaged = |at: usize, value: u8| {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            SegmentList::decode(&damaged)
        };
        assert_eq!(damaged(4, 2), Err(SegmentListFault::Version(2)));
        assert_eq!(damaged(28, 9), Err(SegmentListFault::Flags(9)));
        assert!(matches!(damaged(39, 0xFF), Err(SegmentListFault::Length { .. })));
        let twice = SegmentList { segments: vec![list().segments[1]; 2], ..list() };
        assert_eq!(SegmentList::decode(&twice.encode()), Err(SegmentListFault::Order(4)));
        let none = SegmentList { segments: vec![], ..list() };
        assert_eq!(SegmentList::decode(&none.encode()), Err(SegmentListFault::Order(0)));
    }
}
