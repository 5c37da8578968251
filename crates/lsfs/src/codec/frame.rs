//! The frame: one entry of a segment set, a header and then the body in one contiguous piece.
//!
//! There are two headers, and the segment's [`FrameLayout`] says which one a frame has: the wide one, and in packed
//! segments the narrow one. A narrow frame with a short body has one checksum for all of it; every other frame has one for
//! its header and one for each piece of its body.

use super::{Fields, FileHeader, crc32c, put};

/// Bytes of a wide header before its piece checksums.
const WIDE_BYTES: usize = 16;
/// Of the smallest wide header, with one piece checksum, bytes that the header's checksum covers.
const WIDE_COVERED_BYTES: usize = WIDE_BYTES;
/// Bytes of a narrow header of a short body.
const SHORT_BYTES: usize = 9;
/// Bytes of a narrow header of a longer body, before its piece checksums.
const NARROW_BYTES: usize = SHORT_BYTES + 4;
/// In a packed segment a body with fewer bytes than this is short: one checksum covers header and body.
pub const SHORT_BODY_BYTES_END: usize = 1 << 10;
/// No frame header is longer, if its body has one piece.
pub const FRAME_HEADER_BYTES_MAX: usize = WIDE_BYTES + 4;
/// A body is checksummed in pieces of this size; the last one is shorter.
pub const FRAME_PIECE_BYTES: usize = 64 << 10;
/// In [`FrameLayout::Aligned`] the body of a frame with at least [`FRAME_PIECE_BYTES`] begins at a multiple of this.
pub const FRAME_BODY_ALIGNMENT: u64 = 4096;
/// The largest body a frame can have.
pub const FRAME_BODY_BYTES_MAX: u32 = 1 << 30;

/// In the high nibble of byte 8 of a wide header; the low one holds the flags.
const MAGIC: u8 = 0xE0;
const MAGIC_MASK: u8 = 0xF0;
const FLAG_MORE: u8 = 1;
const FLAG_WITNESS: u8 = 2;
const FLAG_FOOTER: u8 = 4;

/// Of the word at byte 6 of a narrow header: the length of a short body, two bits that are always the same, the flags as
/// above, and whether the length is a field of its own.
const WORD_LENGTH_MASK: u16 = SHORT_BODY_BYTES_END as u16 - 1;
const WORD_MAGIC: u16 = 1 << 10;
const WORD_MAGIC_MASK: u16 = 3 << 10;
const WORD_FLAGS_SHIFT: u32 = 12;
const WORD_LONG: u16 = 1 << 15;

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
    /// The length and the flags of a narrow header are none.
    #[error("length and flags of the frame are {0:#06x}, which no frame has")]
    Word(u16),
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

/// How frames lie in a segment of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrameLayout {
    /// Bodies of 64 KiB and more lie at the next multiple of 4 KiB behind their header: they can be sent or mapped as they
    /// are. Every header has a checksum of its own: a part of any entry can be read without the rest.
    #[default]
    Aligned,
    /// Narrow headers, and every body right behind its own: nothing is lost between entries, and 9 bytes for each whose
    /// body has less than 1 KiB.
    Packed,
}

impl FrameLayout {
    /// Whether one checksum covers header and body.
    #[inline]
    pub fn is_short(self, body_bytes: u32) -> bool {
        self == FrameLayout::Packed && (body_bytes as usize) < SHORT_BODY_BYTES_END
    }

    /// Bytes of the header of a frame with this body.
    #[inline]
    pub fn header_bytes(self, body_bytes: u32) -> usize {
        match self {
            // An empty body has a piece checksum all the same.
            FrameLayout::Aligned => WIDE_BYTES + 4 * pieces(body_bytes).max(1),
            FrameLayout::Packed if self.is_short(body_bytes) => SHORT_BYTES,
            FrameLayout::Packed => NARROW_BYTES + 4 * pieces(body_bytes),
        }
    }

    /// Bytes of the smallest header there is.
    #[inline]
    pub fn header_bytes_min(self) -> usize {
        self.header_bytes(0)
    }

    /// From so many bytes it can be told whether they begin with a header: the longest one, or a short frame.
    pub fn decoded_bytes_max(self, body_limit_bytes: u32) -> usize {
        self.header_bytes(body_limit_bytes).max(SHORT_BYTES + SHORT_BODY_BYTES_END)
    }

    /// Where the body of a frame at `position` begins.
    #[inline]
    pub fn body_position(self, position: u64, body_bytes: u32) -> u64 {
        let behind_header = position + self.header_bytes(body_bytes) as u64;
        match self {
            FrameLayout::Aligned if body_bytes as usize >= FRAME_PIECE_BYTES => {
                behind_header.next_multiple_of(FRAME_BODY_ALIGNMENT)
            }
            FrameLayout::Aligned | FrameLayout::Packed => behind_header,
        }
    }

    /// Where the next frame begins.
    #[inline]
    pub fn frame_end(self, position: u64, body_bytes: u32) -> u64 {
        self.body_position(position, body_bytes) + u64::from(body_bytes)
    }
}

/// The checksum of each piece of a body; of an empty body, one.
pub fn piece_checksums(body: &[u8]) -> impl Iterator<Item = u32> + '_ {
    piece_checksums_of([body, &[]])
}

/// As [`piece_checksums`], of a body that lies in two parts.
pub fn piece_checksums_of(parts: [&[u8]; 2]) -> impl Iterator<Item = u32> + '_ {
    let [first, second] = parts;
    let (middle, end) = (first.len(), first.len() + second.len());
    let starts = (0..end.max(1)).step_by(FRAME_PIECE_BYTES);
    starts.map(move |from| {
        let to = end.min(from + FRAME_PIECE_BYTES);
        let of_first = crc32c(0, &first[from.min(middle)..to.min(middle)]);
        crc32c(of_first, &second[from.saturating_sub(middle)..to.saturating_sub(middle)])
    })
}

/// What all frames of a segment share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameIdentity {
    /// The segment's id.
    pub segment_id: u64,
    /// The checksum of it: every header's checksum begins with that.
    ///
    /// Together with the tag (the low 32 bits of the id) it is as good as the whole id: two ids with equal low halves differ
    /// within 32 consecutive bits, and so never have the same CRC. A narrow header has no tag, and 16 bits of the id in
    /// its epoch.
    seed: u32,
    /// The largest body in bytes.
    pub body_limit_bytes: u32,
    /// How they lie.
    pub layout: FrameLayout,
}

impl FrameIdentity {
    /// Of a segment, its body limit, and how its frames lie.
    pub fn new(segment_id: u64, body_limit_bytes: u32, layout: FrameLayout) -> Self {
        FrameIdentity { segment_id, seed: crc32c(0, &segment_id.to_le_bytes()), body_limit_bytes, layout }
    }

    /// As the file header says.
    pub fn of(header: &FileHeader) -> Self {
        FrameIdentity::new(header.segment_id, header.record_limit_bytes, header.frame_layout)
    }

    /// Where the body of a frame at `position` begins.
    #[inline]
    pub fn body_position(&self, position: u64, body_bytes: u32) -> u64 {
        self.layout.body_position(position, body_bytes)
    }

    /// Where the frame behind one at `position` begins.
    #[inline]
    pub fn frame_end(&self, position: u64, body_bytes: u32) -> u64 {
        self.layout.frame_end(position, body_bytes)
    }

    fn tag(&self) -> u32 {
        self.segment_id as u32
    }

    fn masked(&self, epoch: u16) -> u16 {
        epoch ^ self.segment_id as u16
    }

    /// Whether a header may begin with these bytes, perhaps only one of this epoch: what a search for frames looks at
    /// before it computes a checksum.
    #[inline]
    pub fn may_begin(&self, bytes: &[u8], epoch: Option<u16>) -> bool {
        if bytes.len() < self.layout.header_bytes_min() {
            return false;
        }
        let fields = Fields(bytes);
        match self.layout {
            FrameLayout::Aligned => fields.u32(4) == self.tag(),
            FrameLayout::Packed => {
                fields.u16(6) & WORD_MAGIC_MASK == WORD_MAGIC
                    && epoch.is_none_or(|epoch| fields.u16(4) == self.masked(epoch))
            }
        }
    }

    /// Of a header without a short body: of its bytes behind the checksum.
    fn header_checksum(&self, position: u64, covered: &[u8]) -> u32 {
        // Most wide headers have one piece checksum: one call for both is faster.
        if let Ok(covered) = <&[u8; WIDE_COVERED_BYTES]>::try_from(covered) {
            let mut bytes = [0; 8 + WIDE_COVERED_BYTES];
            bytes[..8].copy_from_slice(&position.to_le_bytes());
            bytes[8..].copy_from_slice(covered);
            return crc32c(self.seed, &bytes);
        }
        crc32c(crc32c(self.seed, &position.to_le_bytes()), covered)
    }

    /// Of a frame with a short body. The body comes first, so that most of it is computed before the place is known.
    #[inline]
    fn short_checksum(&self, position: u64, covered: &[u8; SHORT_BYTES - 4], body_checksum: u32) -> u32 {
        let mut bytes = [0; 16 + SHORT_BYTES - 4];
        bytes[..8].copy_from_slice(&self.segment_id.to_le_bytes());
        bytes[8..16].copy_from_slice(&position.to_le_bytes());
        bytes[16..].copy_from_slice(covered);
        crc32c(body_checksum, &bytes)
    }
}

fn flags_of(header: &FrameHeader) -> u8 {
    (if header.more { FLAG_MORE } else { 0 })
        | (if header.witness { FLAG_WITNESS } else { 0 })
        | (if header.footer { FLAG_FOOTER } else { 0 })
}

impl FrameHeader {
    /// Writes the header at the start of `target`, with the checksums of the body's pieces.
    pub fn encode(
        &self,
        target: &mut [u8],
        identity: &FrameIdentity,
        position: u64,
        mut checksums: impl Iterator<Item = u32>,
    ) {
        let mut at = match identity.layout {
            FrameLayout::Aligned => {
                put(target, 4, &identity.tag().to_le_bytes());
                target[8] = MAGIC | flags_of(self);
                target[9] = self.kind;
                put(target, 10, &self.epoch.to_le_bytes());
                put(target, 12, &self.body_bytes.to_le_bytes());
                WIDE_BYTES
            }
            FrameLayout::Packed => {
                let is_short = identity.layout.is_short(self.body_bytes);
                let length = if is_short { self.body_bytes as u16 } else { WORD_LONG };
                let word = WORD_MAGIC | u16::from(flags_of(self)) << WORD_FLAGS_SHIFT | length;
                put(target, 4, &identity.masked(self.epoch).to_le_bytes());
                put(target, 6, &word.to_le_bytes());
                target[8] = self.kind;
                if is_short {
                    let body_checksum = checksums.next().expect("every body has a piece");
                    let covered = Fields(target).array(4);
                    let crc = identity.short_checksum(position, &covered, body_checksum);
                    put(target, 0, &crc.to_le_bytes());
                    return;
                }
                put(target, SHORT_BYTES, &self.body_bytes.to_le_bytes());
                NARROW_BYTES
            }
        };
        for checksum in checksums {
            put(target, at, &checksum.to_le_bytes());
            at += 4;
        }
        debug_assert_eq!(at, identity.layout.header_bytes(self.body_bytes));
        let crc = identity.header_checksum(position, &target[4..at]);
        put(target, 0, &crc.to_le_bytes());
    }

    /// Sets the witness flag of an encoded frame, whose checksum follows.
    pub fn set_witness(target: &mut [u8], identity: &FrameIdentity, position: u64) {
        match identity.layout {
            FrameLayout::Aligned => target[8] |= FLAG_WITNESS,
            FrameLayout::Packed => target[7] |= FLAG_WITNESS << (WORD_FLAGS_SHIFT - 8),
        }
        let body_bytes = match Self::fields(target, identity) {
            Ok(header) => header.body_bytes,
            Err(fault) => unreachable!("the frame was just encoded: {fault}"),
        };
        let end = identity.layout.header_bytes(body_bytes);
        let crc = match identity.layout.is_short(body_bytes) {
            true => {
                let body_checksum = crc32c(0, &target[end..end + body_bytes as usize]);
                identity.short_checksum(position, &Fields(target).array(4), body_checksum)
            }
            false => identity.header_checksum(position, &target[4..end]),
        };
        put(target, 0, &crc.to_le_bytes());
    }

    /// The fields of the header at the start of `bytes`; nothing is verified but what they can be.
    #[inline]
    fn fields(bytes: &[u8], identity: &FrameIdentity) -> Result<FrameHeader, FrameFault> {
        let short = |needed: usize| FrameFault::Short { needed: needed as u64, found: bytes.len() as u64 };
        let least = identity.layout.header_bytes_min();
        if bytes.len() < least {
            return Err(short(least));
        }
        let or_empty = |fault| match bytes[..least].iter().all(|&byte| byte == 0) {
            true => FrameFault::Empty,
            false => fault,
        };
        let fields = Fields(bytes);
        let (flags, kind, epoch, body_bytes) = match identity.layout {
            FrameLayout::Aligned => {
                let magic = bytes[8];
                let flags = magic & !MAGIC_MASK;
                if magic & MAGIC_MASK != MAGIC || flags & !(FLAG_MORE | FLAG_WITNESS | FLAG_FOOTER) != 0 {
                    return Err(or_empty(FrameFault::Magic(magic)));
                }
                let found = fields.u32(4);
                if found != identity.tag() {
                    return Err(FrameFault::Segment { found, expected: identity.tag() });
                }
                (flags, bytes[9], fields.u16(10), fields.u32(12))
            }
            FrameLayout::Packed => {
                let word = fields.u16(6);
                if word & WORD_MAGIC_MASK != WORD_MAGIC {
                    return Err(or_empty(FrameFault::Word(word)));
                }
                let short_bytes = word & WORD_LENGTH_MASK;
                let body_bytes = if word & WORD_LONG == 0 {
                    u32::from(short_bytes)
                } else if bytes.len() < NARROW_BYTES {
                    return Err(short(NARROW_BYTES));
                } else {
                    fields.u32(SHORT_BYTES)
                };
                // One length has one header.
                if word & WORD_LONG != 0 && (short_bytes != 0 || identity.layout.is_short(body_bytes)) {
                    return Err(FrameFault::Word(word));
                }
                let flags = (word & !WORD_LONG) >> WORD_FLAGS_SHIFT;
                (flags as u8, bytes[8], identity.masked(fields.u16(4)), body_bytes)
            }
        };
        if body_bytes > identity.body_limit_bytes {
            return Err(FrameFault::Length { found: body_bytes, limit: identity.body_limit_bytes });
        }
        Ok(FrameHeader {
            more: flags & FLAG_MORE != 0,
            witness: flags & FLAG_WITNESS != 0,
            footer: flags & FLAG_FOOTER != 0,
            kind,
            epoch,
            body_bytes,
        })
    }

    /// Reads and checks the header at the start of `bytes`, which may go on behind it. If the body is short, and has no
    /// checksum of its own, it must be there, too, and is checked with it.
    pub fn decode(bytes: &[u8], identity: &FrameIdentity, position: u64) -> Result<FrameHeader, FrameFault> {
        let header = Self::fields(bytes, identity)?;
        let header_bytes = identity.layout.header_bytes(header.body_bytes);
        let is_short = identity.layout.is_short(header.body_bytes);
        let needed = header_bytes + if is_short { header.body_bytes as usize } else { 0 };
        let Some(bytes) = bytes.get(..needed) else {
            return Err(FrameFault::Short { needed: needed as u64, found: bytes.len() as u64 });
        };
        let (head, body) = bytes.split_at(header_bytes);
        Self::check(&header, head, body, identity, position)?;
        Ok(header)
    }

    /// As [`FrameHeader::decode`], with the body elsewhere: `body` makes room for one of so many bytes, and fills it with
    /// what follows the header. It is only asked for if it is short.
    #[inline]
    pub fn decode_apart<'b>(
        head: &[u8],
        identity: &FrameIdentity,
        position: u64,
        body: impl FnOnce(u32) -> Option<&'b [u8]>,
    ) -> Result<FrameHeader, FrameFault> {
        let header = Self::fields(head, identity)?;
        let needed = identity.layout.header_bytes(header.body_bytes);
        let short = |needed: usize| FrameFault::Short { needed: needed as u64, found: head.len() as u64 };
        let head_only = head.get(..needed).ok_or(short(needed))?;
        let body = match identity.layout.is_short(header.body_bytes) {
            true => body(header.body_bytes).ok_or(short(needed + header.body_bytes as usize))?,
            false => &[],
        };
        Self::check(&header, head_only, body, identity, position)?;
        Ok(header)
    }

    #[inline]
    fn check(
        header: &FrameHeader,
        head: &[u8],
        body: &[u8],
        identity: &FrameIdentity,
        position: u64,
    ) -> Result<(), FrameFault> {
        let fields = Fields(head);
        let computed = match identity.layout.is_short(header.body_bytes) {
            true => identity.short_checksum(position, &fields.array(4), crc32c(0, body)),
            false => identity.header_checksum(position, &head[4..]),
        };
        match fields.u32(0) {
            stored if stored == computed => Ok(()),
            stored => Err(FrameFault::Checksum { stored, computed }),
        }
    }

    /// The piece checksums in the header at the start of `bytes`, which [`FrameHeader::decode`] has accepted; none if the
    /// body is short.
    pub fn stored_checksums<'a>(&self, bytes: &'a [u8], layout: FrameLayout) -> &'a [u8] {
        let start = match layout {
            FrameLayout::Aligned => WIDE_BYTES,
            FrameLayout::Packed if layout.is_short(self.body_bytes) => SHORT_BYTES,
            FrameLayout::Packed => NARROW_BYTES,
        };
        &bytes[start..layout.header_bytes(self.body_bytes)]
    }
}

impl FrameHeader {
    /// The checksums of the pieces of a body, which has verified: those in the header at the start of `bytes` or, if the body
    /// is short, its own.
    pub fn piece_checksums<'a>(
        &self,
        bytes: &'a [u8],
        layout: FrameLayout,
        body: &[u8],
    ) -> impl Iterator<Item = u32> + use<'a> {
        let stored = self.stored_checksums(bytes, layout).as_chunks::<4>().0;
        let of_short = layout.is_short(self.body_bytes).then(|| crc32c(0, body));
        stored.iter().map(|word| u32::from_le_bytes(*word)).chain(of_short)
    }
}

/// Checks whole pieces of a body, the first of which is number `first`, against [`FrameHeader::stored_checksums`]. What has
/// none was checked with its header.
pub fn check_pieces(stored_checksums: &[u8], first: usize, bytes: &[u8]) -> Result<(), FrameFault> {
    if stored_checksums.is_empty() {
        return Ok(());
    }
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
    const LAYOUTS: [FrameLayout; 2] = [FrameLayout::Aligned, FrameLayout::Packed];

    fn identity(layout: FrameLayout) -> FrameIdentity {
        FrameIdentity::new(0x1122_3344_5566_7788, 1 << 20, layout)
    }

    fn header(body_bytes: u32) -> FrameHeader {
        FrameHeader { more: true, witness: false, footer: false, kind: 9, epoch: 3, body_bytes }
    }

    #[test]
    fn checksums_do_not_depend_on_where_a_body_is_cut() {
        let body: Vec<u8> = (0..2 * FRAME_PIECE_BYTES + 5).map(|n| (n * n / 7) as u8).collect();
        for len in [0, 1, FRAME_PIECE_BYTES - 1, FRAME_PIECE_BYTES, FRAME_PIECE_BYTES + 1, body.len()] {
            let body = &body[..len];
            let whole: Vec<u32> = match len {
                0 => vec![0],
                _ => body.chunks(FRAME_PIECE_BYTES).map(|piece| crc32c(0, piece)).collect(),
            };
            assert_eq!(piece_checksums(body).collect::<Vec<_>>(), whole, "{len}");
            for cut in [0, 1, 17, FRAME_PIECE_BYTES, FRAME_PIECE_BYTES + 3].map(|cut| cut.min(len)) {
                let (first, second) = body.split_at(cut);
                assert_eq!(piece_checksums_of([first, second]).collect::<Vec<_>>(), whole, "{cut} of {len}");
            }
        }
    }

    /// A header, and what has to follow it to be decoded.
    fn encoded(body: &[u8], layout: FrameLayout) -> Vec<u8> {
        let header = header(body.len() as u32);
        let mut bytes = vec![0; layout.header_bytes(header.body_bytes)];
        header.encode(&mut bytes, &identity(layout), POSITION, piece_checksums(body));
        if layout.is_short(header.body_bytes) {
            bytes.extend_from_slice(body);
        }
        bytes
    }

    fn body_of(len: u32) -> Vec<u8> {
        (0..len).map(|at| at as u8).collect()
    }

    #[test]
    fn round_trips_of_all_sizes() {
        for layout in LAYOUTS {
            for len in [0, 1, 100, 1023, 1024, 65_535, 65_536, 65_537, 200_000] {
                let (body, identity) = (body_of(len), identity(layout));
                let bytes = encoded(&body, layout);
                assert_eq!(FrameHeader::decode(&bytes, &identity, POSITION), Ok(header(len)), "{len}");
                let stored = header(len).stored_checksums(&bytes, layout);
                assert_eq!(stored.is_empty(), layout == FrameLayout::Packed && len < 1024);
                assert_eq!(check_pieces(stored, 0, &body), Ok(()));
                if let Some(second) = body.get(FRAME_PIECE_BYTES..).filter(|second| !second.is_empty()) {
                    assert_eq!(check_pieces(stored, 1, second), Ok(()), "the second piece alone, of {len}");
                }
                let all: Vec<u32> = header(len).piece_checksums(&bytes, layout, &body).collect();
                assert_eq!(all, piece_checksums(&body).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_header_is_decoded_apart_from_its_body() {
        for (layout, len) in
            LAYOUTS.into_iter().flat_map(|layout| [0, 5, 1023, 1024].map(|len| (layout, len)))
        {
            let (body, identity) = (body_of(len), identity(layout));
            let bytes = encoded(&body, layout);
            let head = &bytes[..layout.header_bytes(len)];
            let apart = |body| FrameHeader::decode_apart(head, &identity, POSITION, |_| Some(body));
            assert_eq!(apart(&body), Ok(header(len)));
            if layout.is_short(len) && len > 0 {
                assert!(matches!(apart(&body[1..]), Err(FrameFault::Checksum { .. })));
                let none = FrameHeader::decode_apart(head, &identity, POSITION, |_| None);
                assert!(matches!(none, Err(FrameFault::Short { .. })), "{none:?}");
            }
        }
    }

    #[test]
    fn large_bodies_are_aligned_and_small_ones_follow_their_header() {
        let layout = FrameLayout::Aligned;
        assert_eq!(layout.body_position(100, 0), 120);
        assert_eq!(layout.frame_end(100, 0), 120);
        assert_eq!(layout.frame_end(100, 65_535), 120 + 65_535);
        assert_eq!(layout.body_position(100, 65_536), 4096);
        assert_eq!(layout.body_position(4090, 65_536), 8192);
        assert_eq!(layout.body_position(8192 - 20, 65_536), 8192, "no gap if the header ends there");
        assert_eq!(layout.frame_end(100, FRAME_BODY_BYTES_MAX) >> 30, 1);
        assert_eq!(layout.header_bytes(65_536), FRAME_HEADER_BYTES_MAX);
    }

    #[test]
    fn packed_bodies_follow_their_header_whatever_their_length() {
        for (len, header_bytes) in
            [(0, 9), (1023, 9), (1024, 17), (65_535, 17), (65_536, 17), (65_537, 21), (1 << 20, 77)]
        {
            let layout = FrameLayout::Packed;
            assert_eq!(layout.header_bytes(len), header_bytes, "{len}");
            assert_eq!(layout.body_position(101, len), 101 + header_bytes as u64, "{len}");
            assert_eq!(layout.frame_end(101, len), 101 + header_bytes as u64 + u64::from(len), "{len}");
        }
    }

    #[test]
    fn every_damage_has_its_own_error() {
        let bytes = encoded(b"hello", FrameLayout::Aligned);
        let decode = |bytes: &[u8]| FrameHeader::decode(bytes, &identity(FrameLayout::Aligned), POSITION);
        assert_eq!(decode(&[0; 20]), Err(FrameFault::Empty));
        assert_eq!(decode(&bytes[..15]), Err(FrameFault::Short { needed: 20, found: 15 }));
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
        let stored = header(5).stored_checksums(&bytes, FrameLayout::Aligned);
        assert!(matches!(check_pieces(stored, 0, b"jello"), Err(FrameFault::Piece { piece: 0, .. })));
    }

    #[test]
    fn every_damage_of_a_narrow_header_has_its_own_error() {
        let decode = |bytes: &[u8]| FrameHeader::decode(bytes, &identity(FrameLayout::Packed), POSITION);
        assert_eq!(decode(&[0; 9]), Err(FrameFault::Empty));
        let bytes = encoded(b"hello", FrameLayout::Packed);
        assert_eq!(decode(&bytes[..8]), Err(FrameFault::Short { needed: 9, found: 8 }));
        assert_eq!(decode(&bytes[..13]), Err(FrameFault::Short { needed: 14, found: 13 }));
        let long = encoded(&body_of(2000), FrameLayout::Packed);
        assert_eq!(decode(&long[..12]), Err(FrameFault::Short { needed: 13, found: 12 }));
        assert_eq!(decode(&long[..16]), Err(FrameFault::Short { needed: 17, found: 16 }));
        for bytes in [bytes, long] {
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                let fault = decode(&damaged).expect_err("a flipped bit");
                match fault {
                    FrameFault::Checksum { .. } => {}
                    // Its two bits of magic; or that a long body is short, or the other way round.
                    FrameFault::Word(_) => {
                        assert!((48..64).contains(&bit) || bit / 8 == 10, "{bit}: {fault}")
                    }
                    FrameFault::Short { .. } => {
                        assert!((48..64).contains(&bit) || bit >= 72, "{bit}: {fault}")
                    }
                    FrameFault::Length { .. } => {
                        assert!((72..104).contains(&bit) || bit == 63, "{bit}: {fault}")
                    }
                    _ => panic!("{bit}: {fault}"),
                }
            }
        }
    }

    #[test]
    fn a_frame_verifies_only_in_its_segment_and_place() {
        for layout in LAYOUTS {
            let bytes = encoded(b"hello", layout);
            let at = |position| FrameHeader::decode(&bytes, &identity(layout), position);
            assert!(matches!(at(POSITION + 4096), Err(FrameFault::Checksum { .. })));
            // Ids that differ only above the tag are told apart by the seed, always.
            for bit in 0..64 {
                let other = FrameIdentity::new(identity(layout).segment_id ^ (1 << bit), 1 << 20, layout);
                let found = FrameHeader::decode(&bytes, &other, POSITION);
                match layout {
                    FrameLayout::Aligned if bit < 32 => {
                        assert!(matches!(found, Err(FrameFault::Segment { .. })))
                    }
                    _ => assert!(matches!(found, Err(FrameFault::Checksum { .. })), "bit {bit}"),
                }
            }
        }
    }

    #[test]
    fn the_witness_is_set_later() {
        for (layout, len) in LAYOUTS.into_iter().flat_map(|layout| [5, 2000].map(|len| (layout, len))) {
            let body = body_of(len);
            let mut bytes = encoded(&body, layout);
            FrameHeader::set_witness(&mut bytes, &identity(layout), POSITION);
            let found = FrameHeader::decode(&bytes, &identity(layout), POSITION);
            assert_eq!(found, Ok(FrameHeader { witness: true, ..header(len) }));
        }
    }

    #[test]
    fn a_search_finds_every_header() {
        for (layout, len) in LAYOUTS.into_iter().flat_map(|layout| [0, 5, 2000].map(|len| (layout, len))) {
            let bytes = encoded(&body_of(len), layout);
            assert!(identity(layout).may_begin(&bytes, None) && identity(layout).may_begin(&bytes, Some(3)));
            assert_eq!(identity(layout).may_begin(&bytes, Some(4)), layout == FrameLayout::Aligned);
            assert!(!identity(layout).may_begin(&[0; 20], None));
            assert!(!identity(layout).may_begin(&bytes[..layout.header_bytes_min() - 1], None));
        }
    }
}
