//! Many entries read into one buffer: what a scan reads.
//!
//! Each is copied once, header and all, out of the mapping of its segment, and verified there. What is not mapped or
//! does not verify is read by the way that every other read takes, which knows what it means.

use std::collections::HashMap;

use crate::codec::{FrameHeader, Pointer, check_pieces};
use crate::error::{Error, Result};
use crate::segment_set::options::PAGE_BYTES;
use crate::segment_set::segment::{MappedPart, fetch_if_long};
use crate::segment_set::{EntryHead, SegmentHandle};

/// So many entries are asked for before they are read, so that the memory answers several at a time.
const PREFETCH_ENTRIES: usize = 12;
/// Of a longer entry the processor sees by itself what comes.
const PREFETCH_BYTES_MAX: u64 = 512;

/// Entries of several segments in memory, one behind the other; read again and again, it allocates nothing.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// use lsfs::{Durability, EntryBuffer, SegmentSet, SetOptions};
///
/// let set = SegmentSet::open(dir.path().join("values"), SetOptions::default())?;
/// let one = set.append(0, b"one", Durability::Buffer)?;
/// let two = set.append(0, b"two", Durability::Sync)?;
/// let mut entries = EntryBuffer::default();
/// entries.read(&[set.segment(one.segment)?], &[(0, two), (0, one)]);
/// assert_eq!(entries.entry(0).unwrap().1, b"two");
/// assert_eq!(entries.entry(1).unwrap().1, b"one");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct EntryBuffer {
    /// What lies behind `used` is of an earlier use.
    bytes: Vec<u8>,
    used: usize,
    /// With the number of the first byte of the body; [`FAILED`] if it could not be read.
    entries: Vec<(EntryHead, usize)>,
    errors: HashMap<usize, Error>,
}

/// Where no body begins.
const FAILED: usize = usize::MAX;

impl EntryBuffer {
    /// Reads entries in this order; each is named by the number of its segment in `segments` and its pointer. Those of an
    /// earlier call are forgotten. No system call and no memory for each, where the segments are mapped.
    ///
    /// # Panics
    /// If there is no segment with a number.
    pub fn read(&mut self, segments: &[SegmentHandle], wanted: &[(u32, Pointer)]) {
        self.used = 0;
        self.entries.clear();
        self.errors.clear();
        self.entries.reserve(wanted.len());
        let mut parts = Parts { segments, known: segments.iter().map(|_| None).collect() };
        wanted.iter().take(PREFETCH_ENTRIES).for_each(|one| parts.ask_for(one));
        for (n, one) in wanted.iter().enumerate() {
            if let Some(ahead) = wanted.get(n + PREFETCH_ENTRIES) {
                parts.ask_for(ahead);
            }
            let (nth, pointer) = (one.0 as usize, &one.1);
            match parts.of(nth, pointer).and_then(|part| self.copy(part, pointer)) {
                Some(entry) => self.entries.push(entry),
                None => self.read_slowly(n, &segments[nth], pointer),
            }
        }
    }

    /// The entry with this number among those that were asked for, verified.
    ///
    /// # Errors
    /// As of [`SegmentHandle::read`].
    #[inline]
    pub fn entry(&self, n: usize) -> Result<(EntryHead, &[u8]), &Error> {
        match self.entries[n] {
            (_, FAILED) => Err(&self.errors[&n]),
            (head, start) => Ok((head, &self.bytes[start..start + head.pointer.len as usize])),
        }
    }

    /// Room for so many bytes behind what is used.
    fn room(&mut self, len: usize) -> &mut [u8] {
        let end = self.used + len;
        if end > self.bytes.len() {
            self.bytes.resize(end.max(2 * self.bytes.len()), 0);
        }
        &mut self.bytes[self.used..end]
    }

    /// Copies a whole frame out of a mapping; `None` if that does not show it.
    fn copy(&mut self, part: &MappedPart<'_>, pointer: &Pointer) -> Option<(EntryHead, usize)> {
        let (position, len) = (u64::from(pointer.position), pointer.len);
        let end = part.identity.frame_end(position, len);
        if position < PAGE_BYTES as u64 || end > part.end || pointer.layout != part.identity.layout {
            return None;
        }
        fetch_if_long(part.map, position..end);
        let frame_bytes = (end - position) as usize;
        let frame = self.room(frame_bytes);
        part.map.read(position, frame).ok()?;
        let header = FrameHeader::decode(frame, part.identity, position).ok()?;
        if header.footer || header.body_bytes != len {
            return None;
        }
        let body_at = frame_bytes - len as usize;
        check_pieces(header.stored_checksums(frame, pointer.layout), 0, &frame[body_at..]).ok()?;
        let start = self.used + body_at;
        self.used += frame_bytes;
        Some((EntryHead { pointer: *pointer, kind: header.kind, ends_batch: !header.more }, start))
    }

    #[cold]
    fn read_slowly(&mut self, n: usize, segment: &SegmentHandle, pointer: &Pointer) {
        match segment.read(*pointer) {
            Ok(entry) => {
                self.room(entry.body.len()).copy_from_slice(&entry.body);
                self.entries.push((entry.head(), self.used));
                self.used += entry.body.len();
            }
            Err(error) => {
                self.errors.insert(n, error);
                self.entries.push((EntryHead { pointer: *pointer, kind: 0, ends_batch: false }, FAILED));
            }
        }
    }
}

/// What can be read of segments from memory, looked at once.
struct Parts<'a> {
    segments: &'a [SegmentHandle],
    known: Vec<Option<Option<MappedPart<'a>>>>,
}

impl<'a> Parts<'a> {
    /// Of the segment with this number, if a pointer is one into it.
    fn of(&mut self, nth: usize, pointer: &Pointer) -> Option<&MappedPart<'a>> {
        let segment = &self.segments[nth].segment;
        let part = self.known[nth].get_or_insert_with(|| segment.mapped_part(PAGE_BYTES as u64));
        part.as_ref().filter(|_| segment.number == pointer.segment)
    }

    fn ask_for(&mut self, (nth, pointer): &(u32, Pointer)) {
        if let Some(part) = self.of(*nth as usize, pointer) {
            part.map.prefetch(pointer.position.into(), pointer.frame_bytes().min(PREFETCH_BYTES_MAX));
        }
    }
}
