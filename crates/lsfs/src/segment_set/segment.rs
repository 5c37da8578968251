//! One segment file of a set, and reading frames from it.

use std::iter::repeat_n;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::codec::{
    FRAME_PIECE_BYTES, FileHeader, FileHeaderFault, FileKind, FrameFault, FrameHeader, FrameIdentity,
    ListedSegment, Pointer, Tally, check_pieces,
};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::io::{AlignedBuf, File, FileMap, MapAdvice, OpenMode};
use crate::segment_set::image::Image;
use crate::segment_set::options::PAGE_BYTES;

/// What is known of a set's segments without opening them.
#[derive(Clone, Debug)]
pub(crate) struct SegmentPlace {
    pub(crate) env: Env,
    pub(crate) dir: PathBuf,
    pub(crate) mode: OpenMode,
    /// Bytes that do not verify are gone, not corrupt.
    pub(crate) is_cache: bool,
}

/// A segment of a set. Whoever holds it can read it, also after it was reclaimed.
#[derive(Debug)]
pub(crate) struct Segment {
    place: SegmentPlace,
    path: PathBuf,
    pub(crate) number: u32,
    pub(crate) segment_id: u64,
    /// Empty until it is needed, and again once the segment is mapped: a set of many segments must not hold a
    /// descriptor for each.
    open: Mutex<Option<Arc<OpenSegment>>>,
    /// The segment in memory; `None` inside if it could not be mapped.
    mapped: OnceLock<Option<Mapped>>,
    /// Frames before this position are in the file for good, and it is the best place to read them: nobody has them in
    /// memory. Of an active segment that this process writes; else 0.
    settled_end: AtomicU64,
    /// What lies in it, once it is sealed.
    sealed: OnceLock<Tally>,
    released_bytes: AtomicU64,
}

/// A segment file whose header was checked.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) file: Arc<dyn File>,
    pub(crate) header: FileHeader,
    pub(crate) identity: FrameIdentity,
}

/// The frames of a segment that can be read from its mapping.
pub(super) struct MappedPart<'a> {
    pub(super) segment: u32,
    pub(super) map: &'a dyn FileMap,
    pub(super) identity: &'a FrameIdentity,
    /// Frames end here at the latest.
    pub(super) end: u64,
}

/// A segment in memory.
#[derive(Debug)]
struct Mapped {
    map: Box<dyn FileMap>,
    identity: FrameIdentity,
}

impl OpenSegment {
    pub(crate) fn new(file: Arc<dyn File>, header: FileHeader) -> Self {
        let identity = FrameIdentity::of(&header);
        OpenSegment { file, header, identity }
    }
}

/// Bytes that were read, without a copy where they were in memory.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    bytes: WindowBytes,
    range: Range<usize>,
}

#[derive(Clone, Debug)]
enum WindowBytes {
    Read(Arc<AlignedBuf>),
    Copied(Arc<[u8]>),
    Written(Arc<Image>),
}

impl Window {
    pub(crate) fn copied(bytes: Arc<[u8]>) -> Self {
        let range = 0..bytes.len();
        Window { bytes: WindowBytes::Copied(bytes), range }
    }

    pub(crate) fn written(image: &Arc<Image>, range: Range<u64>) -> Self {
        let range = (range.start - image.start) as usize..(range.end - image.start) as usize;
        Window { bytes: WindowBytes::Written(Arc::clone(image)), range }
    }

    /// A part of it.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.range.len(), "{range:?} of {:?}", self.range);
        let start = self.range.start;
        Window { bytes: self.bytes.clone(), range: start + range.start..start + range.end }
    }
}

impl Deref for Window {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.bytes {
            WindowBytes::Read(bytes) => &bytes[self.range.clone()],
            WindowBytes::Copied(bytes) => &bytes[self.range.clone()],
            WindowBytes::Written(image) => &image[self.range.clone()],
        }
    }
}

/// Name of a segment's file.
pub(crate) fn segment_name(number: u32) -> String {
    format!("data-{number:05}.seg")
}

/// The number in a segment's file name; `None` for any other name.
pub(crate) fn number_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("data-")?.strip_suffix(".seg")?;
    let number: u32 = digits.parse().ok()?;
    (segment_name(number) == name).then_some(number)
}

impl Segment {
    /// A segment that the list names. It is opened when it is first read.
    pub(crate) fn listed(place: &SegmentPlace, entry: &ListedSegment) -> Self {
        Segment {
            place: place.clone(),
            path: place.dir.join(segment_name(entry.number)),
            number: entry.number,
            segment_id: entry.segment_id,
            open: Mutex::default(),
            mapped: OnceLock::new(),
            settled_end: AtomicU64::new(0),
            sealed: OnceLock::new(),
            released_bytes: AtomicU64::new(entry.released_bytes.into()),
        }
    }

    /// A segment whose file was just made.
    pub(crate) fn created(place: &SegmentPlace, file: Arc<dyn File>, header: FileHeader) -> Self {
        let entry = ListedSegment {
            segment_id: header.segment_id,
            number: header.base_index as u32,
            tally: Tally::default(),
            released_bytes: 0,
        };
        let segment = Segment::listed(place, &entry);
        *segment.open_slot() = Some(Arc::new(OpenSegment::new(file, header)));
        segment
    }

    fn open_slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<OpenSegment>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the segment for good.
    pub(crate) fn seal(&self, tally: Tally) {
        // Sealed once, by its writer or from the list.
        let _first = self.sealed.set(tally);
    }

    /// What lies in it, if it is sealed.
    pub(crate) fn sealed(&self) -> Option<&Tally> {
        self.sealed.get()
    }

    pub(crate) fn release(&self, frame_bytes: u64) {
        self.released_bytes.fetch_add(frame_bytes, Ordering::Relaxed);
    }

    pub(crate) fn released_bytes(&self) -> u64 {
        self.released_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn set_released_bytes(&self, bytes: u64) {
        self.released_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The segment as the list has it, with what lies in it up to some place.
    pub(crate) fn entry(&self, tally: Tally) -> ListedSegment {
        let frames_bytes = u64::from(tally.end).saturating_sub(PAGE_BYTES as u64);
        ListedSegment {
            segment_id: self.segment_id,
            number: self.number,
            tally,
            released_bytes: self.released_bytes().min(frames_bytes) as u32,
        }
    }

    /// The open file; if it is not open, it is opened and checked to be the segment it should be.
    pub(crate) fn open(&self) -> Result<Arc<OpenSegment>> {
        let mut slot = self.open_slot();
        if let Some(open) = &*slot {
            return Ok(Arc::clone(open));
        }
        // Opening for writing empties the page cache. A sealed segment is only read, and was durable before it was sealed.
        let open = Arc::new(self.open_for(if self.sealed.get().is_some() {
            OpenMode::Read
        } else {
            self.place.mode
        })?);
        *slot = Some(Arc::clone(&open));
        Ok(open)
    }

    fn open_for(&self, mode: OpenMode) -> Result<OpenSegment> {
        let file = match self.place.env.disk.open(&self.path, mode, PAGE_BYTES) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::Gone { path: self.path.clone() });
            }
            Err(error) => return Err(Error::io("open", &self.path, error)),
        };
        let header = match read_file_header(&*file) {
            Err(error) if error.is_corruption() && self.place.is_cache => {
                return Err(Error::Gone { path: self.path.clone() });
            }
            other => other?,
        };
        if header.segment_id != self.segment_id {
            return Err(Error::Gone { path: self.path.clone() });
        }
        Ok(OpenSegment::new(file, header))
    }

    /// The file, to be used for another segment: nobody can read this one any more but the caller.
    pub(crate) fn into_file(self) -> Option<Arc<dyn File>> {
        self.open_for(OpenMode::Write).ok().map(|open| open.file)
    }

    /// What frames of the segment are checked against.
    pub(crate) fn identity(&self) -> Result<FrameIdentity> {
        match self.mapped() {
            Some(mapped) => Ok(mapped.identity),
            None => Ok(self.open()?.identity),
        }
    }

    /// Opens or maps it, so that it stays readable whatever becomes of its name.
    pub(crate) fn hold(&self) -> Result<()> {
        self.identity().map(|_identity| ())
    }

    /// The segment in memory, if it is sealed and can be mapped.
    fn mapped(&self) -> Option<&Mapped> {
        self.sealed.get()?;
        self.map_once()
    }

    /// Its mapping, if it was mapped before.
    pub(super) fn map_if_there(&self) -> Option<&dyn FileMap> {
        self.mapped.get()?.as_ref().map(|mapped| &*mapped.map)
    }

    fn map_once(&self) -> Option<&Mapped> {
        let map = || {
            let open = self.open().ok()?;
            let map = open.file.map(open.file.len().ok()?).ok()?;
            map.advise(MapAdvice::Random);
            if self.sealed.get().is_some() {
                *self.open_slot() = None;
            }
            Some(Mapped { map, identity: open.identity })
        };
        self.mapped.get_or_init(map).as_ref()
    }

    /// What can be read from memory, if the frame at this position is a part of it.
    pub(super) fn mapped_part(&self, position: u64) -> Option<MappedPart<'_>> {
        let end = match self.sealed.get() {
            Some(tally) => tally.end.into(),
            None => self.settled_end.load(Ordering::Acquire),
        };
        if position < PAGE_BYTES as u64 || position >= end {
            return None;
        }
        let Mapped { map, identity } = self.map_once()?;
        Some(MappedPart { segment: self.number, map: &**map, identity, end: end.min(map.len()) })
    }

    /// Reads frames from a position on into the system's cache, as far as they are read from there; answers up to where.
    pub(crate) fn load_from(&self, position: u64) -> u64 {
        let Some(part) = self.mapped_part(position.max(PAGE_BYTES as u64)) else { return position };
        if self.sealed.get().is_some() {
            // What is left behind the entries makes the last page whole, or huge.
            part.map.load(position..part.map.len());
            return part.end.max(position);
        }
        // The page of an active segment that is still written to is left to the next time.
        let end = part.end / PAGE_BYTES as u64 * PAGE_BYTES as u64;
        if position < end {
            part.map.load(position..end);
        }
        end.max(position)
    }

    /// Frames before this position are in the file, and this process does not keep them in memory.
    pub(crate) fn settle_before(&self, position: u64) {
        self.settled_end.store(position, Ordering::Release);
    }

    /// Whether somebody may read it from memory: then its file must not be cut.
    pub(crate) fn is_mapped(&self) -> bool {
        self.mapped.get().is_some_and(Option::is_some)
    }

    /// Lets the descriptor go that a sealed segment in memory does not need.
    pub(crate) fn let_descriptor_go(&self) {
        if self.is_mapped() {
            *self.open_slot() = None;
        }
    }

    /// The length of its file.
    pub(crate) fn file_bytes(&self) -> Result<u64> {
        self.open()?.file.len().map_err(|error| Error::io("measure", &self.path, error))
    }

    /// Reads a range of positions, from memory if the segment is sealed.
    pub(crate) fn read_window(&self, range: Range<u64>) -> Result<Window> {
        if let Some(mapped) = self.mapped() {
            let mut bytes: Arc<[u8]> = repeat_n(0, (range.end - range.start) as usize).collect();
            let target = Arc::get_mut(&mut bytes).expect("nobody else has it yet");
            fetch_if_long(&*mapped.map, range.clone());
            if mapped.map.read(range.start, target).is_ok() {
                return Ok(Window::copied(bytes));
            }
        }
        let open = self.open()?;
        let page = PAGE_BYTES as u64;
        let start = range.start / page * page;
        let mut bytes = AlignedBuf::zeroed((range.end.next_multiple_of(page) - start) as usize);
        let count =
            open.file.read_full_at(&mut bytes, start).map_err(|error| Error::io("read", &self.path, error))?
                as u64;
        if start + count < range.end {
            let found = (start + count).saturating_sub(range.start);
            return Err(
                self.failure(range.start, &FrameFault::Short { needed: range.end - range.start, found })
            );
        }
        let range = (range.start - start) as usize..(range.end - start) as usize;
        Ok(Window { bytes: WindowBytes::Read(Arc::new(bytes)), range })
    }

    /// Whether the file of this name is no longer this segment: it was reclaimed, or used for another one since.
    fn was_replaced(&self) -> bool {
        let Ok(open) = self.open() else { return true };
        if !self.place.env.disk.exists(&self.path) {
            return true;
        }
        read_file_header(&*open.file).is_ok_and(|header| header.segment_id != self.segment_id)
    }

    /// What bytes that do not verify mean: the segment is gone, or damaged.
    pub(crate) fn failure(&self, position: u64, fault: &FrameFault) -> Error {
        if self.place.is_cache || self.was_replaced() {
            return Error::Gone { path: self.path.clone() };
        }
        Error::corrupt(&self.path, position, None, fault)
    }

    /// That a place lies before or behind the entries. In a cache those behind may have been lost.
    fn outside(&self, position: u64, end: u64) -> Error {
        if self.place.is_cache && position >= PAGE_BYTES as u64 {
            return Error::Gone { path: self.path.clone() };
        }
        self.no_entry(position, format!("the segment's entries lie from {PAGE_BYTES} to {end}"))
    }

    /// That there is no entry at a place.
    pub(crate) fn no_entry(&self, position: u64, reason: String) -> Error {
        Error::NoEntry { path: self.path.clone(), position, reason }
    }
}

/// So many bytes are several pages: those that are not in the page cache are read together.
const FETCHED_BYTES_MIN: u64 = 16 << 10;

/// Has a long range of a mapping read in one piece that is about to be copied out of it.
pub(super) fn fetch_if_long(map: &dyn FileMap, range: Range<u64>) {
    if range.end - range.start >= FETCHED_BYTES_MIN {
        map.fetch(range);
    }
}

/// Reads and checks the header of a segment file.
pub(crate) fn read_file_header(file: &dyn File) -> Result<FileHeader> {
    let mut page = AlignedBuf::zeroed(PAGE_BYTES);
    let count = file.read_full_at(&mut page, 0).map_err(|error| Error::io("read", file.path(), error))?;
    let damaged = |fault: FileHeaderFault| Error::corrupt(file.path(), 0, None, fault);
    match FileHeader::decode(&page[..count]) {
        Ok(header) if header.kind == FileKind::SetSegment => Ok(header),
        Ok(header) => Err(damaged(FileHeaderFault::Field { field: "kind", value: header.kind as u64 })),
        Err(fault @ FileHeaderFault::Version { .. }) => {
            Err(Error::Format { path: file.path().to_path_buf(), fault })
        }
        Err(fault) => Err(damaged(fault)),
    }
}

/// Where frames are read from: a writer, which has the newest in memory, or a reader beside it.
pub(crate) trait FrameSource: Send + Sync + std::fmt::Debug {
    /// The segment with this number or, if there is none, the next one.
    fn segment_from(&self, number: u32) -> Result<Option<Arc<Segment>>>;
    /// Position behind the last entry that cursors show.
    fn shown_end(&self, segment: &Segment) -> Result<u64>;
    /// Position behind the last entry that can be read by its place, if possible at least `wanted`.
    fn readable_end(&self, segment: &Segment, wanted: u64) -> Result<u64>;
    /// The bytes of a range of positions, from memory or the disk. If it begins at a frame in memory, they may end behind
    /// that frame.
    fn window(&self, segment: &Segment, range: Range<u64>) -> Result<Window>;
}

/// A frame whose bytes verified.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) pointer: Pointer,
    pub(crate) header: FrameHeader,
    pub(crate) body: Window,
}

/// What is known of a frame before it is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) position: u64,
    /// Bytes of the body, if known.
    pub(crate) len: Option<u32>,
    /// Frames end here at the latest.
    pub(crate) end: u64,
}

impl Expected {
    pub(crate) fn of(pointer: &Pointer, end: u64) -> Self {
        Expected { position: pointer.position.into(), len: Some(pointer.len), end }
    }
}

/// Without a length: so much is read at first.
pub(super) const FIRST_LOOK_BYTES: u64 = 4096;

/// The header of a frame, which verified; with it the body, if that is short.
#[derive(Debug)]
pub(crate) struct SeenHeader {
    pub(crate) pointer: Pointer,
    pub(crate) header: FrameHeader,
    /// Positions of its body.
    pub(crate) body: Range<u64>,
    /// What was read, from the frame's position on; it may hold the body as well.
    pub(crate) window: Window,
}

/// Reads and checks a frame's header.
pub(crate) fn read_header(
    source: &dyn FrameSource,
    segment: &Segment,
    expected: Expected,
) -> Result<SeenHeader> {
    let Expected { position, len, end } = expected;
    let outside = || segment.outside(position, end);
    if position < PAGE_BYTES as u64 || position >= end {
        return Err(outside());
    }
    let identity = segment.identity()?;
    let wanted = match len {
        Some(len) if identity.frame_end(position, len) > end => return Err(outside()),
        Some(len) if (len as usize) < FRAME_PIECE_BYTES => identity.frame_end(position, len),
        Some(len) => position + identity.layout.header_bytes(len) as u64,
        None => position + FIRST_LOOK_BYTES,
    };
    let mut window = source.window(segment, position..wanted.min(end))?;
    let decoded = match FrameHeader::decode(&window, &identity, position) {
        Err(FrameFault::Short { needed, .. }) if position + needed <= end => {
            window = source.window(segment, position..position + needed)?;
            FrameHeader::decode(&window, &identity, position)
        }
        other => other,
    };
    let header = decoded.map_err(|fault| segment.failure(position, &fault))?;
    if identity.frame_end(position, header.body_bytes) > end {
        return Err(outside());
    }
    if let Some(len) = len
        && len != header.body_bytes
    {
        let reason = format!("the pointer says {len} bytes, the entry has {}", header.body_bytes);
        return Err(segment.no_entry(position, reason));
    }
    let body =
        identity.body_position(position, header.body_bytes)..identity.frame_end(position, header.body_bytes);
    let pointer = Pointer::new(segment.number, position as u32, header.body_bytes, identity.layout);
    Ok(SeenHeader { pointer, header, body, window })
}

/// Reads and checks a whole frame.
pub(crate) fn read_frame(source: &dyn FrameSource, segment: &Segment, expected: Expected) -> Result<Frame> {
    let position = expected.position;
    let SeenHeader { pointer, header, body, window } = read_header(source, segment, expected)?;
    let in_window = (body.start - position) as usize..(body.end - position) as usize;
    let body = match in_window.end <= window.len() {
        true => window.part(in_window),
        false => source.window(segment, body)?,
    };
    let stored = header.stored_checksums(&window, pointer.layout);
    check_pieces(stored, 0, &body).map_err(|fault| segment.failure(position, &fault))?;
    Ok(Frame { pointer, header, body })
}

/// Reads a part of a frame's body, and checks the pieces it touches.
pub(crate) fn read_part(
    source: &dyn FrameSource,
    segment: &Segment,
    expected: Expected,
    part: Range<u32>,
) -> Result<Window> {
    let position = expected.position;
    let SeenHeader { pointer, header, body, window } = read_header(source, segment, expected)?;
    if part.start > part.end || part.end > header.body_bytes {
        let reason = format!("bytes {} to {} of {} were asked for", part.start, part.end, header.body_bytes);
        return Err(segment.no_entry(position, reason));
    }
    let piece_bytes = FRAME_PIECE_BYTES as u32;
    let first = (part.start / piece_bytes) as usize;
    let from = part.start / piece_bytes * piece_bytes;
    let to = part.end.div_ceil(piece_bytes).saturating_mul(piece_bytes).min(header.body_bytes).max(from);
    let range = body.start + u64::from(from)..body.start + u64::from(to);
    let in_window = (range.start - position) as usize..(range.end - position) as usize;
    let pieces = match in_window.end <= window.len() {
        true => window.part(in_window),
        false => source.window(segment, range)?,
    };
    if part.start < part.end {
        check_pieces(header.stored_checksums(&window, pointer.layout), first, &pieces)
            .map_err(|fault| segment.failure(position, &fault))?;
    }
    Ok(pieces.part((part.start - from) as usize..(part.end - from) as usize))
}
