//! Entries copied into a buffer of the caller: out of the mapping of their segment where there is one.
//!
//! A mapping may show other bytes than the entry's, if the file was recycled meanwhile or the page cache is behind a
//! direct write. So what does not verify there is read again by the way that every other read takes, which knows what
//! it means.

use crate::codec::{FRAME_HEADER_BYTES_MAX, FrameFault, FrameHeader, Pointer, check_pieces};
use crate::error::Result;
use crate::segment_set::segment::{
    Expected, FrameSource, MappedPart, SeenHeader, Segment, fetch_if_long, read_frame, read_header,
};

/// An entry without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHead {
    /// Where it lies, and how long it is.
    pub pointer: Pointer,
    /// The user's byte.
    pub kind: u8,
    /// Whether it is the last of the batch it was appended in.
    pub ends_batch: bool,
}

impl EntryHead {
    pub(super) fn new(segment: &Segment, pointer: Pointer, header: &FrameHeader) -> Result<EntryHead> {
        if header.footer {
            let reason = "the segment's footer lies there".to_string();
            return Err(segment.no_entry(pointer.position.into(), reason));
        }
        Ok(EntryHead { pointer, kind: header.kind, ends_batch: !header.more })
    }
}

/// So much of an entry is asked for at once: a small one comes from the memory in the time of its first line.
const FETCHED_BYTES: u64 = 256;

/// Makes `body` the body of the entry at a place, verified.
pub(super) fn read_into(
    source: &dyn FrameSource,
    segment: &Segment,
    position: u32,
    body: &mut Vec<u8>,
) -> Result<EntryHead> {
    let position = u64::from(position);
    let part = segment.mapped_part(position);
    if let Some(part) = part {
        // What follows the header is on its way while that is looked at.
        part.map.prefetch(position, FETCHED_BYTES);
        if let Some((header, pointer)) = part.copy_frame(position, body) {
            return EntryHead::new(segment, pointer, &header);
        }
    }
    let end = source.readable_end(segment, position + 1)?;
    let frame = read_frame(source, segment, Expected { position, len: None, end })?;
    body.clear();
    body.extend_from_slice(&frame.body);
    EntryHead::new(segment, frame.pointer, &frame.header)
}

/// What is asked for of an entry whose first bytes are peeked at: a header and two lines of memory, which may be three.
const PEEKED_BYTES: u64 = FRAME_HEADER_BYTES_MAX as u64 + 128;

/// Asks the processor for the beginning of the frame at a position, if it is read from a mapping that is there.
pub(super) fn prefetch(segment: &Segment, position: u32) {
    if let Some(map) = segment.map_if_there() {
        map.prefetch(position.into(), PEEKED_BYTES);
    }
}

/// Fills `start` with the first bytes of the body at a place, as far as it has so many; answers how many, too. Of a body
/// that has checksums of its own these are not looked at.
pub(super) fn peek(
    source: &dyn FrameSource,
    segment: &Segment,
    position: u32,
    start: &mut [u8],
) -> Result<(EntryHead, usize)> {
    let position = u64::from(position);
    let part = segment.mapped_part(position);
    if let Some(part) = &part {
        part.map.prefetch(position, PEEKED_BYTES);
    }
    if let Some((header, pointer, count)) = part.and_then(|part| part.copy_start(position, start)) {
        return Ok((EntryHead::new(segment, pointer, &header)?, count));
    }
    let end = source.readable_end(segment, position + 1)?;
    let SeenHeader { pointer, header, body, window } =
        read_header(source, segment, Expected { position, len: None, end })?;
    let count = start.len().min(header.body_bytes as usize);
    let from = (body.start - position) as usize;
    match window.get(from..from + count) {
        Some(bytes) => start[..count].copy_from_slice(bytes),
        None => {
            let bytes = source.window(segment, body.start..body.start + count as u64)?;
            start[..count].copy_from_slice(&bytes[..count]);
        }
    }
    Ok((EntryHead::new(segment, pointer, &header)?, count))
}

impl MappedPart<'_> {
    /// The header of the frame at a position, with its bytes; `None` if the mapping does not show one. A short body verifies
    /// with it: `room` answers where it goes.
    fn header<'b>(
        &self,
        position: u64,
        room: impl FnOnce(usize) -> &'b mut [u8],
    ) -> Option<(FrameHeader, HeaderBytes)> {
        let mut fixed = [0; FRAME_HEADER_BYTES_MAX];
        // The last frame may be shorter than that.
        let len = (self.end - position).min(FRAME_HEADER_BYTES_MAX as u64) as usize;
        self.map.read(position, &mut fixed[..len]).ok()?;
        let body = |body_bytes| {
            let body = room(body_bytes as usize);
            self.map.read(self.identity.body_position(position, body_bytes), body).ok()?;
            Some(&*body)
        };
        match FrameHeader::decode_apart(&fixed[..len], self.identity, position, body) {
            Ok(header) => Some((header, HeaderBytes::One(fixed))),
            // A large body has a checksum for each of its pieces.
            Err(FrameFault::Short { needed, .. }) if position + needed <= self.end => {
                let mut bytes = vec![0; needed as usize];
                self.map.read(position, &mut bytes).ok()?;
                let header = FrameHeader::decode(&bytes, self.identity, position).ok()?;
                // A short body is where `room` said, or was not read.
                let is_short = self.identity.layout.is_short(header.body_bytes);
                (!is_short).then_some((header, HeaderBytes::Many(bytes)))
            }
            Err(_) => None,
        }
    }

    fn copy_frame(&self, position: u64, body: &mut Vec<u8>) -> Option<(FrameHeader, Pointer)> {
        // What was in the buffer need not be zeroed: all of it is replaced.
        let (header, bytes) = self.header(position, |len| {
            body.resize(len, 0);
            body
        })?;
        let pointer = self.pointer(position, &header)?;
        if !self.identity.layout.is_short(header.body_bytes) {
            fetch_if_long(self.map, position..pointer.end());
            body.resize(header.body_bytes as usize, 0);
            self.map.read(self.identity.body_position(position, header.body_bytes), body).ok()?;
            let stored = header.stored_checksums(bytes.as_slice(), self.identity.layout);
            check_pieces(stored, 0, body).ok()?;
        }
        Some((header, pointer))
    }

    fn copy_start(&self, position: u64, start: &mut [u8]) -> Option<(FrameHeader, Pointer, usize)> {
        let (mut small, mut large) = ([0; SMALL_BODY_BYTES], Vec::new());
        let mut copied = None;
        let (header, _) = self.header(position, |len| {
            copied = Some(len);
            match small.get_mut(..len) {
                Some(small) => small,
                None => {
                    large.resize(len, 0);
                    &mut large
                }
            }
        })?;
        let pointer = self.pointer(position, &header)?;
        let count = start.len().min(header.body_bytes as usize);
        let start = &mut start[..count];
        match copied {
            Some(len) if len <= SMALL_BODY_BYTES => start.copy_from_slice(&small[..count]),
            Some(_) => start.copy_from_slice(&large[..count]),
            None => {
                self.map.read(self.identity.body_position(position, header.body_bytes), start).ok()?;
            }
        }
        Some((header, pointer, count))
    }

    /// To a frame, if it ends where frames may.
    fn pointer(&self, position: u64, header: &FrameHeader) -> Option<Pointer> {
        let layout = self.identity.layout;
        let pointer = Pointer::new(self.segment, position as u32, header.body_bytes, layout);
        (pointer.end() <= self.end).then_some(pointer)
    }
}

/// Bodies up to this length need no memory to be looked at.
const SMALL_BODY_BYTES: usize = 256;

/// The bytes of a frame's header; most are short.
enum HeaderBytes {
    One([u8; FRAME_HEADER_BYTES_MAX]),
    Many(Vec<u8>),
}

impl HeaderBytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            HeaderBytes::One(bytes) => bytes,
            HeaderBytes::Many(bytes) => bytes,
        }
    }
}
