//! Frames in memory: the buffer that is being filled, and the images of what was written from it.
//!
//! **Invariants.** A buffer begins at a page of the file and holds that page's earlier bytes unchanged, so writing it
//! repeats what is there. Every frame lies whole in the buffer that it was put into.

use std::collections::VecDeque;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::codec::{FrameHeader, FrameIdentity};
use crate::io::AlignedBuf;
use crate::segment_set::options::PAGE_BYTES;

const FIRST_BUFFER_BYTES: usize = 64 << 10;

/// The buffer that is being filled.
#[derive(Debug)]
pub(crate) struct OpenBuffer {
    bytes: AlignedBuf,
    /// Position of the first byte in the file, a multiple of the page.
    start: u64,
    used: usize,
    /// Bytes from here on were never written.
    new_from: usize,
}

/// What was, or is being, written: whole pages, of which the bytes up to `end` are in use.
#[derive(Debug)]
pub(crate) struct Image {
    bytes: AlignedBuf,
    pub(crate) segment: u32,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

fn page_of(position: u64) -> u64 {
    position / PAGE_BYTES as u64 * PAGE_BYTES as u64
}

impl OpenBuffer {
    /// A buffer that goes on at `position`; `page` holds the bytes of its page before it.
    pub(crate) fn new(position: u64, page: &[u8]) -> Self {
        let start = page_of(position);
        let used = (position - start) as usize;
        let mut bytes = AlignedBuf::zeroed(FIRST_BUFFER_BYTES);
        bytes[..used].copy_from_slice(&page[..used]);
        OpenBuffer { bytes, start, used, new_from: used }
    }

    /// Goes on at the beginning of a page, in the same memory; nothing may wait to be written.
    pub(crate) fn go_to(&mut self, start: u64) {
        debug_assert!(self.pending_bytes() == 0 && page_of(start) == start);
        (self.start, self.used, self.new_from) = (start, 0, 0);
    }

    /// Position behind the last frame.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.used as u64
    }

    /// Bytes that wait to be written.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.used - self.new_from
    }

    /// Position of the first byte that waits to be written.
    pub(crate) fn first_new(&self) -> u64 {
        self.start + self.new_from as u64
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a frame whose body is made of `parts`.
    pub(crate) fn put(
        &mut self,
        identity: &FrameIdentity,
        header: &FrameHeader,
        checksums: impl Iterator<Item = u32>,
        parts: &[&[u8]],
    ) {
        let position = self.end();
        let header_bytes = identity.layout.header_bytes(header.body_bytes);
        let body_at = (identity.body_position(position, header.body_bytes) - self.start) as usize;
        let end = (identity.frame_end(position, header.body_bytes) - self.start) as usize;
        self.reserve(end.next_multiple_of(PAGE_BYTES));
        header.encode(&mut self.bytes[self.used..], identity, position, checksums);
        self.bytes[self.used + header_bytes..body_at].fill(0);
        let mut at = body_at;
        for part in parts {
            self.bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        debug_assert_eq!(at, end);
        self.used = end;
    }

    fn reserve(&mut self, len: usize) {
        if len > self.bytes.len() {
            let grown = len.max(self.bytes.len() * 2);
            let mut bytes = AlignedBuf::zeroed(grown);
            bytes[..self.used].copy_from_slice(&self.bytes[..self.used]);
            self.bytes = bytes;
        }
    }

    /// Takes what is in the buffer to be written, and goes on behind it, in `spare` if that is of use.
    ///
    /// With `witness` the first new frame says that everything before it is durable.
    pub(crate) fn take(
        &mut self,
        identity: &FrameIdentity,
        segment: u32,
        witness: bool,
        spare: Option<AlignedBuf>,
    ) -> Image {
        debug_assert!(self.pending_bytes() > 0);
        if witness {
            let position = self.first_new();
            FrameHeader::set_witness(&mut self.bytes[self.new_from..self.used], identity, position);
        }
        let whole = self.used.next_multiple_of(PAGE_BYTES);
        self.bytes[self.used..whole].fill(0);
        let (start, end) = (self.start, self.end());
        let mut next = spare.unwrap_or_else(|| AlignedBuf::zeroed(FIRST_BUFFER_BYTES));
        let kept = page_of(end);
        let partial = (kept - start) as usize..self.used;
        next[..partial.len()].copy_from_slice(&self.bytes[partial.clone()]);
        let fresh = OpenBuffer { bytes: next, start: kept, used: partial.len(), new_from: partial.len() };
        let full = std::mem::replace(self, fresh);
        Image { bytes: full.bytes, segment, start, end }
    }

    /// The bytes of a range of positions that begins in the buffer, as far as they are there.
    pub(crate) fn bytes_from(&self, range: Range<u64>) -> Option<&[u8]> {
        let end = range.end.min(self.end());
        (range.start >= self.start && range.start < end)
            .then(|| &self.bytes[(range.start - self.start) as usize..(end - self.start) as usize])
    }
}

impl Image {
    /// The whole pages to write.
    pub(crate) fn pages(&self) -> &[u8] {
        &self.bytes[..((self.end - self.start) as usize).next_multiple_of(PAGE_BYTES)]
    }
}

impl Deref for Image {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..(self.end - self.start) as usize]
    }
}

/// The images written last: direct I/O leaves nothing in the page cache, and what was just appended is often read.
///
/// **Invariants.** Images are in the order they were written; each begins behind the beginning of the one before it.
/// The memory held is at most the limit plus the last image.
#[derive(Debug)]
pub(crate) struct RecentImages {
    images: VecDeque<Arc<Image>>,
    memory_bytes: usize,
    limit_bytes: usize,
    spare: Option<AlignedBuf>,
}

/// A buffer kept for reuse is at most this long: a single large batch must not hold its memory for ever.
const SPARE_BYTES_MAX: usize = 4 << 20;

impl RecentImages {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        RecentImages { images: VecDeque::new(), memory_bytes: 0, limit_bytes, spare: None }
    }

    pub(crate) fn push(&mut self, image: Arc<Image>) {
        // A lone writer rewrites its last page many times: images that a newer one covers are of no use.
        while let Some(last) = self.images.back()
            && last.segment == image.segment
            && last.start >= image.start
        {
            self.remove(self.images.len() - 1);
        }
        self.memory_bytes += image.bytes.len();
        self.images.push_back(image);
        while self.memory_bytes > self.limit_bytes && self.images.len() > 1 {
            self.remove(0);
        }
    }

    fn remove(&mut self, at: usize) {
        let Some(removed) = self.images.remove(at) else { return };
        self.memory_bytes -= removed.bytes.len();
        if let Some(image) = Arc::into_inner(removed)
            && image.bytes.len() <= SPARE_BYTES_MAX
            && self.spare.as_ref().is_none_or(|spare| spare.len() <= image.bytes.len())
        {
            self.spare = Some(image.bytes);
        }
    }

    /// Memory of an image that is not needed any more.
    pub(crate) fn take_spare(&mut self) -> Option<AlignedBuf> {
        self.spare.take()
    }

    /// Position of the first byte of a segment that is in memory.
    pub(crate) fn start_of(&self, segment: u32) -> Option<u64> {
        self.images.iter().find(|image| image.segment == segment).map(|image| image.start)
    }

    /// Forgets what belongs to older segments.
    pub(crate) fn forget_before(&mut self, segment: u32) {
        while self.images.front().is_some_and(|image| image.segment < segment) {
            self.remove(0);
        }
    }

    /// Forgets all images; the memory of one is kept for reuse.
    pub(crate) fn clear(&mut self) {
        while !self.images.is_empty() {
            self.remove(0);
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// The image that holds this position of the segment; with it, the whole frame that begins there.
    pub(crate) fn find(&self, segment: u32, position: u64) -> Option<&Arc<Image>> {
        let behind = self.images.partition_point(|image| (image.segment, image.start) <= (segment, position));
        let image = self.images.get(behind.checked_sub(1)?)?;
        (image.segment == segment && position < image.end).then_some(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{FrameLayout, piece_checksums};

    const IDENTITY_BODY_LIMIT: u32 = 1 << 20;

    fn put(buffer: &mut OpenBuffer, identity: &FrameIdentity, body: &[u8]) -> u64 {
        let position = buffer.end();
        let header = FrameHeader {
            more: false,
            witness: false,
            footer: false,
            kind: 0,
            epoch: 0,
            body_bytes: body.len() as u32,
        };
        buffer.put(identity, &header, piece_checksums(body), &[body]);
        position
    }

    #[test]
    fn each_image_repeats_the_page_it_begins_in() {
        let identity = FrameIdentity::new(1, IDENTITY_BODY_LIMIT, FrameLayout::Aligned);
        let mut buffer = OpenBuffer::new(4096 + 10, &[7; 10]);
        let mut recent = RecentImages::new(1 << 20);
        let mut positions = Vec::new();
        for round in 0..60u8 {
            positions.push((put(&mut buffer, &identity, &[round; 300]), round));
            let image = buffer.take(&identity, 3, true, recent.take_spare());
            assert_eq!(image.start % 4096, 0);
            assert_eq!(image.pages().len() % 4096, 0);
            assert!(image.pages()[image.len()..].iter().all(|&byte| byte == 0), "nothing behind the end");
            if image.start == 4096 {
                assert_eq!(image[..10], [7; 10]);
            }
            recent.push(Arc::new(image));
        }
        for (position, round) in positions {
            let image = recent.find(3, position).expect("all of it fits the cache");
            let frame = &image[(position - image.start) as usize..];
            let header = FrameHeader::decode(frame, &identity, position).unwrap();
            assert!(header.witness);
            assert_eq!(frame[20..320], [round; 300]);
        }
        assert!(recent.find(2, 5000).is_none() && recent.find(4, 5000).is_none());
        assert!(recent.images.len() <= 60 * 320 / 4096 + 2, "covered images were dropped");
    }
}
