//! The frame: one entry of a segment set, a header and then the body in one contiguous piece.

use super::{Fields, FileHeader, crc32c, put};

/// Bytes of a frame header before its piece checksums.
const FIXED_BYTES: usize = 16;
/// Bytes of the smallest frame header: with one piece checksum.
pub const FRAME_HEADER_BYTES_MIN: usize = FIXED_BYTES + 4;
/// Of these, bytes that the header's checksum covers.
const COVERED_BYTES_MIN: usize = FRAME_HEADER_BYTES_MIN - 4;
/// A body is checksummed in pieces of this size; the last one is shorter.
pub const FRAME_PIECE_BYTES: usize = 64 << 10;
/// In [`BodyLayout::Aligned`] the body of a frame with at least [`FRAME_PIECE_BYTES`] begins at a multiple of this.
pub const FRAME_BODY_ALIGNMENT: u64 = 4096;
/// The largest body a frame can have.
pub const FRAME_BODY_BYTES_MAX: u32 = 1 << 30;

/// In the high nibble of byte 8; the low one holds the flags.
const MAGIC: u8 = 0xE0;
const MAGIC_MASK: u8 = 0xF0;
const FLAG_MORE: u8 = 1;
const FLAG_WITNESS: u8 = 2;
const FLAG_FOOTER: u8 = 4;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The batch goes on with the next frame: without that one, this one does not count.
    pub more: bool,
    /// Watermark: every byte of the segment before this frame was durable when it was written.
    pub witness: bool,
    /// This is the segment's footer, not an entry.
    pub footer: bool,
    /// The user's own byte.
    pub kind: u8,
    /// The writer's epoch, counted from the one in which the segment was made. Later frames never have a lower one.
    pub epoch: u16,
    /// Bytes of the body.
    pub body_bytes: u32,
}

/// Why bytes are not the frame expected there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// Only zeros where the header should be: never written.
    #[error("nothing was written here")]
    Empty,
    /// Not a frame at all.
    #[error("frame magic is {0:#04x}, expected 0xe0 to 0xe7")]
    Magic(u8),
    /// A frame of another segment, or of an earlier life of the file.
    #[error("frame is tagged with segment id ..{found:08x}, expected ..{expected:08x}")]
    Segment {
        /// In the header.
        found: u32,
        /// The low 32 bits of the segment's id.
        expected: u32,
    },
    /// The body is longer than the set allows.
    #[error("frame says its body has {found} bytes, the limit is {limit}")]
    Length {
        /// In the header.
        found: u32,
        /// Of the set.
        limit: u32,
    },
    /// The header's bytes changed, or it is of another place or life of the file.
    #[error("frame header checksum: stored {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// In the header.
        stored: u32,
        /// Of the header's bytes.
        computed: u32,
    },
    /// A piece of the body changed.
    #[error("checksum of the body's piece {piece}: stored {stored:#010x}, computed {computed:#010x}")]
    Piece {
        /// Number of the piece of 64 KiB.
        piece: usize,
        /// In the header.
        stored: u32,
        /// Of the piece's bytes.
        computed: u32,
    },
    /// The bytes end before the frame does.
    #[error("frame of {needed} bytes is cut short at {found}")]
    Short {
        /// Bytes from the frame's position on that are needed.
        needed: u64,
        /// That are there.
        found: u64,
    },
    /// A frame of an epoch that the segment list does not know: a later list was lost.
    #[error("frame is of epoch {found}, the segment list knows epoch {known}: a later list is gone")]
    Epoch {
        /// Of the frame.
        found: u64,
        /// In the segment list.
        known: u64,
    },
    /// A later frame witnesses that these bytes were durable.
    #[error("the frame at {witness} says that all bytes before it were durable")]
    Witnessed {
        /// Position of the later frame.
        witness: u64,
    },
}

/// How many piece checksums a body has that is not empty.
fn pieces(body_bytes: u32) -> usize {
    (body_bytes as usize).div_ceil(FRAME_PIECE_BYTES)
}

/// Bytes of the header of a frame with this body. An empty one has a piece checksum all the same.
#[inline]
pub fn frame_header_bytes(body_bytes: u32) -> usize {
    match body_bytes as usize <= FRAME_PIECE_BYTES {
        true => FRAME_HEADER_BYTES_MIN,
        false => FIXED_BYTES + 4 * pieces(body_bytes),
    }
}

/// Where bodies of 64 KiB and more lie; smaller ones always follow their header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BodyLayout {
    /// At the next multiple of 4 KiB behind their header: they can be sent or mapped as they are.
    #[default]
    Aligned,
    /// Right behind their header: nothing is lost between them.
    Packed,
}

/// Where the body of a frame at `position` begins.
#[inline]
pub fn frame_body_position(position: u64, body_bytes: u32, layout: BodyLayout) -> u64 {
    let behind_header = position + frame_header_bytes(body_bytes) as u64;
    match layout {
        BodyLayout::Aligned if body_bytes as usize >= FRAME_PIECE_BYTES => {
            behind_header.next_multiple_of(FRAME_BODY_ALIGNMENT)
        }
        BodyLayout::Aligned | BodyLayout::Packed => behind_header,
    }
}

/// Where the next frame begins.
#[inline]
pub fn frame_end(position: u64, body_bytes: u32, layout: BodyLayout) -> u64 {
    frame_body_position(position, body_bytes, layout) + u64::from(body_bytes)
}

/// The checksum seed of a segment's frame headers; the frame's position is mixed in as well.
///
/// Together with the tag (the low 32 bits of the id) this is as good as the whole id: two ids with equal low halves
/// differ within 32 consecutive bits, and so never have the same CRC.
pub fn frame_seed(segment_id: u64) -> u32 {
    crc32c(0, &segment_id.to_le_bytes())
}

fn header_checksum(seed: u32, position: u64, covered: &[u8]) -> u32 {
    // Most headers have one piece checksum: one call for both is faster.
    if let Ok(covered) = <&[u8; COVERED_BYTES_MIN]>::try_from(covered) {
        let mut bytes = [0; 8 + COVERED_BYTES_MIN];
        bytes[..8].copy_from_slice(&position.to_le_bytes());
        bytes[8..].copy_from_slice(covered);
        return crc32c(seed, &bytes);
    }
    crc32c(crc32c(seed, &position.to_le_bytes()), covered)
}

/// The checksum of each piece of a body; of an empty body, one.
pub fn piece_checksums(body: &[u8]) -> impl Iterator<Item = u32> + '_ {
    let empty = body.is_empty().then_some(0);
    empty.into_iter().chain(body.chunks(FRAME_PIECE_BYTES).map(|piece| crc32c(0, piece)))
}

/// What all frames of a segment share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameIdentity {
    /// The segment's id.
    pub segment_id: u64,
    /// [`frame_seed`] of it.
    pub seed: u32,
    /// The largest body in bytes.
    pub body_limit_bytes: u32,
    /// Where large bodies lie.
    pub layout: BodyLayout,
}

impl FrameIdentity {
    /// Of a segment, its body limit, and where its large bodies lie.
    pub fn new(segment_id: u64, body_limit_bytes: u32, layout: BodyLayout) -> Self {
        FrameIdentity { segment_id, seed: frame_seed(segment_id), body_limit_bytes, layout }
    }

    /// As the file header says.
    pub fn of(header: &FileHeader) -> Self {
        FrameIdentity::new(header.segment_id, header.record_limit_bytes, header.body_layout)
    }

    /// Where the body of a frame at `position` begins.
    pub fn body_position(&self, position: u64, body_bytes: u32) -> u64 {
        frame_body_position(position, body_bytes, self.layout)
    }

    /// Where the frame behind one at `position` begins.
    pub fn frame_end(&self, position: u64, body_bytes: u32) -> u64 {
        frame_end(position, body_bytes, self.layout)
    }

    fn tag(&self) -> u32 {
        self.segment_id as u32
    }

    /// The bytes 4 to 7 of every frame header of the segment: what a search for frames looks for.
    pub fn tag_bytes(&self) -> [u8; 4] {
        self.tag().to_le_bytes()
    }
}

impl FrameHeader {
    /// Writes the header at the start of `target`, with the checksums of the body's pieces.
    pub fn encode(
        &self,
        target: &mut [u8],
        identity: &FrameIdentity,
        position: u64,
        checksums: impl Iterator<Item = u32>,
    ) {
        put(target, 4, &identity.tag_bytes());
        target[8] = MAGIC
            | (if self.more { FLAG_MORE } else { 0 })
            | (if self.witness { FLAG_WITNESS } else { 0 })
            | (if self.footer { FLAG_FOOTER } else { 0 });
        target[9] = self.kind;
        put(target, 10, &self.epoch.to_le_bytes());
        put(target, 12, &self.body_bytes.to_le_bytes());
        let mut at = FIXED_BYTES;
        for checksum in checksums {
            put(target, at, &checksum.to_le_bytes());
            at += 4;
        }
        debug_assert_eq!(at, frame_header_bytes(self.body_bytes));
        let crc = header_checksum(identity.seed, position, &target[4..at]);
        put(target, 0, &crc.to_le_bytes());
    }

    /// Sets the witness flag of an encoded header, whose checksum follows.
    pub fn set_witness(target: &mut [u8], identity: &FrameIdentity, position: u64) {
        target[8] |= FLAG_WITNESS;
        let end = frame_header_bytes(Fields(target).u32(12));
        let crc = header_checksum(identity.seed, position, &target[4..end]);
        put(target, 0, &crc.to_le_bytes());
    }

    /// Reads and checks the header at the start of `bytes`, which may go on behind it.
    pub fn decode(bytes: &[u8], identity: &FrameIdentity, position: u64) -> Result<FrameHeader, FrameFault> {
        let short = |needed: usize| FrameFault::Short { needed: needed as u64, found: bytes.len() as u64 };
        if bytes.len() < FRAME_HEADER_BYTES_MIN {
            return Err(short(FRAME_HEADER_BYTES_MIN));
        }
        let fields = Fields(bytes);
        let magic = bytes[8];
        if magic & MAGIC_MASK != MAGIC || magic & !(MAGIC_MASK | FLAG_MORE | FLAG_WITNESS | FLAG_FOOTER) != 0
        {
            let empty = bytes[..FRAME_HEADER_BYTES_MIN].iter().all(|&byte| byte == 0);
            return Err(if empty { FrameFault::Empty } else { FrameFault::Magic(magic) });
        }
        let found = fields.u32(4);
        if found != identity.tag() {
            return Err(FrameFault::Segment { found, expected: identity.tag() });
        }
        let body_bytes = fields.u32(12);
        if body_bytes > identity.body_limit_bytes {
            return Err(FrameFault::Length { found: body_bytes, limit: identity.body_limit_bytes });
        }
        let end = frame_header_bytes(body_bytes);
        if bytes.len() < end {
            return Err(short(end));
        }
        let (stored, computed) = (fields.u32(0), header_checksum(identity.seed, position, &bytes[4..end]));
        if stored != computed {
            return Err(FrameFault::Checksum { stored, computed });
        }
        Ok(FrameHeader {
            more: magic & FLAG_MORE != 0,
            witness: magic & FLAG_WITNESS != 0,
            footer: magic & FLAG_FOOTER != 0,
            kind: bytes[9],
            epoch: fields.u16(10),
            body_bytes,
        })
    }
}

/// The piece checksums in a header that [`FrameHeader::decode`] has accepted, as they lie there.
pub fn stored_checksums(header: &[u8], body_bytes: u32) -> &[u8] {
    &header[FIXED_BYTES..frame_header_bytes(body_bytes)]
}

/// Checks whole pieces of a body, the first of which is number `first`, against [`stored_checksums`].
pub fn check_pieces(stored_checksums: &[u8], first: usize, bytes: &[u8]) -> Result<(), FrameFault> {
    // Most bodies are one piece.
    if let (Ok(stored), true, 0) = (stored_checksums.try_into(), bytes.len() <= FRAME_PIECE_BYTES, first) {
        let (stored, computed) = (u32::from_le_bytes(stored), crc32c(0, bytes));
        return if stored == computed {
            Ok(())
        } else {
            Err(FrameFault::Piece { piece: 0, stored, computed })
        };
    }
    let words = stored_checksums.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    for ((piece, stored), computed) in words.enumerate().skip(first).zip(piece_checksums(bytes)) {
        if stored != computed {
            return Err(FrameFault::Piece { piece, stored, computed });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POSITION: u64 = 70_000;

    fn identity() -> FrameIdentity {
        FrameIdentity::new(0x1122_3344_5566_7788, 1 << 20, BodyLayout::Aligned)
    }

    fn header(body_bytes: u32) -> FrameHeader {
        FrameHeader { more: true, witness: false, footer: false, kind: 9, epoch: 3, body_bytes }
    }

    fn encoded(body: &[u8]) -> Vec<u8> {
        let header = header(body.len() as u32);
        let mut bytes = vec![0; frame_header_bytes(header.body_bytes)];
        header.encode(&mut bytes, &identity(), POSITION, piece_checksums(body));
        bytes
    }

    #[test]
    fn round_trips_of_all_sizes() {
        for len in [0, 1, 100, 65_535, 65_536, 65_537, 200_000] {
            let body: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let bytes = encoded(&body);
            assert_eq!(bytes.len(), 16 + 4 * (len as usize).div_ceil(65_536).max(1));
            assert_eq!(FrameHeader::decode(&bytes, &identity(), POSITION), Ok(header(len)));
            let stored = stored_checksums(&bytes, len);
            assert_eq!(check_pieces(stored, 0, &body), Ok(()));
            if let Some(second) = body.get(FRAME_PIECE_BYTES..).filter(|second| !second.is_empty()) {
                assert_eq!(check_pieces(stored, 1, second), Ok(()), "the second piece alone, of {len}");
            }
        }
    }

    #[test]
    fn large_bodies_are_aligned_and_small_ones_follow_their_header() {
        let layout = BodyLayout::Aligned;
        assert_eq!(frame_body_position(100, 0, layout), 120);
        assert_eq!(frame_end(100, 0, layout), 120);
        assert_eq!(frame_end(100, 65_535, layout), 120 + 65_535);
        assert_eq!(frame_body_position(100, 65_536, layout), 4096);
        assert_eq!(frame_body_position(4090, 65_536, layout), 8192);
        assert_eq!(frame_body_position(8192 - 20, 65_536, layout), 8192, "no gap if the header ends there");
        assert_eq!(frame_end(100, FRAME_BODY_BYTES_MAX, layout) >> 30, 1);
    }

    #[test]
    fn packed_bodies_follow_their_header_whatever_their_length() {
        for (len, header_bytes) in [(0, 20), (65_535, 20), (65_536, 20), (65_537, 24), (1 << 20, 80)] {
            assert_eq!(frame_body_position(101, len, BodyLayout::Packed), 101 + header_bytes, "{len}");
            assert_eq!(frame_end(101, len, BodyLayout::Packed), 101 + header_bytes + u64::from(len), "{len}");
        }
    }

    #[test]
    fn every_damage_has_its_own_error() {
        let bytes = encoded(b"hello");
        let decode = |bytes: &[u8]| FrameHeader::decode(bytes, &identity(), POSITION);
        assert_eq!(decode(&[0; 20]), Err(FrameFault::Empty));
        assert_eq!(decode(&bytes[..19]), Err(FrameFault::Short { needed: 20, found: 19 }));
        for bit in 0..160 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let fault = decode(&damaged).expect_err("a flipped bit");
            match bit / 8 {
                4..8 => assert!(matches!(fault, FrameFault::Segment { .. }), "{bit}: {fault}"),
                8 if bit >= 67 => assert!(matches!(fault, FrameFault::Magic(_)), "{bit}: {fault}"),
                12..16 if bit >= 116 => assert!(matches!(fault, FrameFault::Length { .. }), "{bit}: {fault}"),
                14 => assert!(matches!(fault, FrameFault::Short { .. } | FrameFault::Checksum { .. })),
                _ => assert!(matches!(fault, FrameFault::Checksum { .. }), "{bit}: {fault}"),
            }
        }
        let stored = stored_checksums(&bytes, 5);
        assert!(matches!(check_pieces(stored, 0, b"jello"), Err(FrameFault::Piece { piece: 0, .. })));
    }

    #[test]
    fn a_frame_verifies_only_in_its_segment_and_place() {
        let bytes = encoded(b"hello");
        let at = |position| FrameHeader::decode(&bytes, &identity(), position);
        assert!(matches!(at(POSITION + 4096), Err(FrameFault::Checksum { .. })));
        // Ids that differ only above the tag are told apart by the seed, always.
        for bit in 32..64 {
            let segment_id = identity().segment_id ^ (1 << bit);
            let other = FrameIdentity::new(segment_id, 1 << 20, BodyLayout::Aligned);
            let found = FrameHeader::decode(&bytes, &other, POSITION);
            assert!(matches!(found, Err(FrameFault::Checksum { .. })), "bit {bit}");
        }
        let other = FrameIdentity::new(identity().segment_id ^ 1, 1 << 20, BodyLayout::Aligned);
        assert!(matches!(FrameHeader::decode(&bytes, &other, POSITION), Err(FrameFault::Segment { .. })));
    }

    #[test]
    fn the_witness_is_set_later() {
        let mut bytes = encoded(b"hello");
        FrameHeader::set_witness(&mut bytes, &identity(), POSITION);
        let found = FrameHeader::decode(&bytes, &identity(), POSITION);
        assert_eq!(found, Ok(FrameHeader { witness: true, ..header(5) }));
    }
}
