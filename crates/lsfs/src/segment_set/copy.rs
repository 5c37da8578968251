//! Entries copied into a buffer of the caller: out of the mapping of their segment where there is one.
//!
//! A mapping may show other bytes than the entry's, if the file was recycled meanwhile or the page cache is behind a
//! direct write. So what does not verify there is read again by the way that every other read takes, which knows what
//! it means.

use crate::codec::{
    FRAME_HEADER_BYTES_MIN, FrameFault, FrameHeader, Pointer, check_pieces, stored_checksums,
};
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
    pub(super) fn new(segment: &Segment, position: u64, header: &FrameHeader) -> Result<EntryHead> {
        if header.footer {
            return Err(segment.no_entry(position, "the segment's footer lies there".to_string()));
        }
        let pointer = segment.pointer(position, header.body_bytes)?;
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
        if let Some(header) = part.copy_frame(position, body) {
            return EntryHead::new(segment, position, &header);
        }
    }
    let end = source.readable_end(segment, position + 1)?;
    let frame = read_frame(source, segment, Expected { position, len: None, end })?;
    body.clear();
    body.extend_from_slice(&frame.body);
    EntryHead::new(segment, position, &frame.header)
}

/// What is asked for of an entry whose first bytes are peeked at: its header and a line of memory, which may be two.
const PEEKED_BYTES: u64 = FRAME_HEADER_BYTES_MIN as u64 + 64;

/// Asks the processor for the beginning of the frame at a position, if it is read from a mapping that is there.
pub(super) fn prefetch(segment: &Segment, position: u32) {
    if let Some(map) = segment.map_if_there() {
        map.prefetch(position.into(), PEEKED_BYTES);
    }
}

/// Fills `start` with the first bytes of the body at a place, as far as it has so many; answers how many, too. Only the
/// frame's header is verified.
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
    if let Some((header, count)) = part.and_then(|part| part.copy_start(position, start)) {
        return Ok((EntryHead::new(segment, position, &header)?, count));
    }
    let end = source.readable_end(segment, position + 1)?;
    let SeenHeader { header, body, window } =
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
    Ok((EntryHead::new(segment, position, &header)?, count))
}

impl MappedPart<'_> {
    /// The header of the frame at a position, with its bytes; `None` if the mapping does not show one.
    fn header(&self, position: u64) -> Option<(FrameHeader, HeaderBytes)> {
        let mut fixed = [0; FRAME_HEADER_BYTES_MIN];
        self.map.read(position, &mut fixed).ok()?;
        match FrameHeader::decode(&fixed, self.identity, position) {
            Ok(header) => Some((header, HeaderBytes::One(fixed))),
            // A large body has a checksum for each of its pieces.
            Err(FrameFault::Short { needed, .. }) if position + needed <= self.end => {
                let mut bytes = vec![0; needed as usize];
                self.map.read(position, &mut bytes).ok()?;
                let header = FrameHeader::decode(&bytes, self.identity, position).ok()?;
                Some((header, HeaderBytes::Many(bytes)))
            }
            Err(_) => None,
        }
    }

    fn copy_frame(&self, position: u64, body: &mut Vec<u8>) -> Option<FrameHeader> {
        let (header, bytes) = self.header(position)?;
        if self.identity.frame_end(position, header.body_bytes) > self.end {
            return None;
        }
        fetch_if_long(self.map, position..self.identity.frame_end(position, header.body_bytes));
        // What was in the buffer need not be zeroed: all of it is replaced.
        body.resize(header.body_bytes as usize, 0);
        self.map.read(self.identity.body_position(position, header.body_bytes), body).ok()?;
        check_pieces(stored_checksums(bytes.as_slice(), header.body_bytes), 0, body).ok()?;
        Some(header)
    }

    fn copy_start(&self, position: u64, start: &mut [u8]) -> Option<(FrameHeader, usize)> {
        let (header, _) = self.header(position)?;
        if self.identity.frame_end(position, header.body_bytes) > self.end {
            return None;
        }
        let count = start.len().min(header.body_bytes as usize);
        self.map.read(self.identity.body_position(position, header.body_bytes), &mut start[..count]).ok()?;
        Some((header, count))
    }
}

/// The bytes of a frame's header; most are short.
enum HeaderBytes {
    One([u8; FRAME_HEADER_BYTES_MIN]),
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
