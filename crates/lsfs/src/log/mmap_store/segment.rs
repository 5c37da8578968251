//! Segments of a mapped store: finding a frame by its offset.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use super::files::{self, MappedFile, frame_at};
use crate::codec::{
    INDEX_ENTRY_BYTES, IndexEntry, MAPPED_FRAME_HEADER_BYTES, MappedFrameLook, mapped_frame_header,
};
use crate::directory;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::index::IndexTable;
use crate::io::{FileMap, MapAdvice};

/// A place in a segment: a frame, or where the next one would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) position: u64,
}

/// The segment that is appended to, or in a store open for reading the last one.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) base: u64,
    /// Position of each frame.
    pub(super) positions: Vec<u64>,
    /// Position behind the last frame.
    pub(super) end: u64,
    pub(super) log: MappedFile,
    /// Missing only in a store open for reading.
    pub(super) index: Option<MappedFile>,
    /// What lies behind the last frame.
    pub(super) behind: MappedFrameLook,
}

impl Active {
    /// The segment in these files, not looked at yet.
    pub(super) fn new(base: u64, log: MappedFile, index: Option<MappedFile>) -> Active {
        Active { base, positions: Vec::new(), end: 0, log, index, behind: MappedFrameLook::Free }
    }

    pub(super) fn next(&self) -> u64 {
        self.base + self.positions.len() as u64
    }

    /// Takes in the frames behind the last known one.
    pub(super) fn scan(&mut self, limit_bytes: u64) -> Result<()> {
        loop {
            self.behind = self.log.frame_at(self.end, limit_bytes)?;
            let MappedFrameLook::Frame { end, .. } = self.behind else { return Ok(()) };
            self.positions.push(self.end);
            self.end = end;
        }
    }

    /// As [`Active::scan`] beside a writer: only what it has published in the index, whose entries it writes after the
    /// frames.
    pub(super) fn scan_published(&mut self, limit_bytes: u64) -> Result<()> {
        self.behind = MappedFrameLook::Free;
        let Some(index) = &self.index else { return Ok(()) };
        let entries = index.len() / INDEX_ENTRY_BYTES as u64;
        while (self.positions.len() as u64) < entries {
            let expected = IndexEntry { offset: self.next(), position: self.end };
            if read_entry(index, self.positions.len() as u64)? != expected {
                return Ok(());
            }
            // An entry of zeros may be free space: then the frame decides, whose header is one aligned word.
            match self.log.frame_at(self.end, limit_bytes)? {
                MappedFrameLook::Frame { end, .. } => {
                    self.positions.push(self.end);
                    self.end = end;
                }
                over @ MappedFrameLook::OverLimit { .. } => {
                    self.behind = over;
                    return Ok(());
                }
                MappedFrameLook::Free | MappedFrameLook::Torn { .. } => return Ok(()),
            }
        }
        Ok(())
    }

    /// Adds a frame; the caller has reserved the space.
    pub(super) fn push(&mut self, payload: &[u8]) -> Result<u64> {
        let (offset, position) = (self.next(), self.end);
        // The length last, then the entry: whoever sees the one finds the other.
        self.log.write(position + MAPPED_FRAME_HEADER_BYTES, payload)?;
        self.log.write(position, &mapped_frame_header(payload.len() as u64))?;
        self.write_entry(self.positions.len() as u64, IndexEntry { offset, position })?;
        self.positions.push(position);
        self.end = position + MAPPED_FRAME_HEADER_BYTES + payload.len() as u64;
        Ok(offset)
    }

    fn write_entry(&self, number: u64, entry: IndexEntry) -> Result<()> {
        match &self.index {
            Some(index) => index.write(number * INDEX_ENTRY_BYTES as u64, &entry.encode()),
            None => Ok(()),
        }
    }

    /// Makes the index say what the frames are.
    pub(super) fn mend_index(&mut self) -> Result<()> {
        let count = self.positions.len() as u64;
        let Some(index) = &mut self.index else { return Ok(()) };
        index.reserve(count * INDEX_ENTRY_BYTES as u64, 0)?;
        let mut mended = 0u64;
        for number in 0..count {
            let entry = IndexEntry { offset: self.base + number, position: self.positions[number as usize] };
            let index = self.index.as_ref().expect("just seen");
            if read_entry(index, number)? != entry {
                self.write_entry(number, entry)?;
                mended += 1;
            }
        }
        let index = self.index.as_ref().expect("just seen");
        let had_more = index.clear_from(count * INDEX_ENTRY_BYTES as u64)?;
        if mended > 0 || had_more {
            tracing::warn!(path = %index.path.display(), mended, had_more, "index mended");
        }
        Ok(())
    }
}

fn read_entry(index: &MappedFile, number: u64) -> Result<IndexEntry> {
    let mut bytes = [0; INDEX_ENTRY_BYTES];
    index
        .map
        .read(number * INDEX_ENTRY_BYTES as u64, &mut bytes)
        .map_err(|error| Error::io("read", &index.path, error))?;
    Ok(IndexEntry::decode(&bytes))
}

/// The sealed segments that are kept mapped.
#[derive(Debug, Default)]
pub(super) struct OpenSegments(Mutex<VecDeque<Arc<OpenSealed>>>);

const OPEN_SEGMENTS_MAX: usize = 64;

/// A sealed segment, mapped when it is needed.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) base: u64,
    /// Offset after its last record: where the next segment begins.
    pub(super) next: u64,
    pub(super) log_path: PathBuf,
    open: Mutex<Weak<OpenSealed>>,
}

/// A mapped sealed segment.
#[derive(Debug)]
pub(super) struct OpenSealed {
    pub(super) log: MappedFile,
    base: u64,
    pub(super) next: u64,
    limit_bytes: u64,
    /// The stored index, as long as it has not been caught lying.
    index: Option<MappedFile>,
    /// The offsets of a rewritten segment.
    sparse: Option<Vec<u64>>,
    /// Made from the frames once the stored index will not do.
    walked: OnceLock<IndexTable>,
}

impl Sealed {
    pub(super) fn new(base: u64, next: u64, log_path: PathBuf) -> Sealed {
        Sealed { base, next, log_path, open: Mutex::default() }
    }

    pub(super) fn open(
        &self,
        env: &Env,
        dir: &Path,
        limit_bytes: u64,
        kept: &OpenSegments,
    ) -> Result<Arc<OpenSealed>> {
        let mut slot = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = slot.upgrade() {
            return Ok(open);
        }
        let log = MappedFile::open(env, &self.log_path, false)?;
        log.map.advise(MapAdvice::Random);
        let sparse = files::read_sparse(env, dir, self.base)?;
        if let Some(table) = &sparse
            && table.next_offset != self.next
        {
            let path = files::path_of(dir, self.base, files::SPARSE_EXTENSION);
            let reason =
                format!("the segment ends at {}, its sparse table at {}", self.next, table.next_offset);
            return Err(Error::corrupt(&path, 0, Some(self.base..self.next), reason));
        }
        let index_path = files::path_of(dir, self.base, directory::INDEX_EXTENSION);
        let index = match MappedFile::open(env, &index_path, false) {
            Ok(index) => Some(index),
            Err(Error::Gone { .. }) => None,
            Err(error) => return Err(error),
        };
        let mut open = OpenSealed {
            log,
            base: self.base,
            next: self.next,
            limit_bytes,
            index: index.filter(|_| sparse.is_none()),
            sparse: sparse.map(|table| table.offsets),
            walked: OnceLock::new(),
        };
        if !open.index_is_right()? {
            open.index = None;
        }
        let open = Arc::new(open);
        *slot = Arc::downgrade(&open);
        let mut kept = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= OPEN_SEGMENTS_MAX {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&open));
        Ok(open)
    }
}

impl OpenSegments {
    /// Whether all of them still have their names: none was dropped or rewritten.
    pub(super) fn are_linked(&self) -> Result<bool> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for open in kept.iter() {
            if !open.log.is_linked()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl OpenSealed {
    /// Walks the frames once and compares the stored index with them, as far as it has to be right.
    ///
    /// Looking only at an entry and its neighbours would not do: an index that leaves a record out agrees with the frames
    /// everywhere but at one place.
    fn index_is_right(&self) -> Result<bool> {
        let (Some(index), count) = (&self.index, self.next - self.base) else { return Ok(false) };
        if count == 0 || index.len() / (INDEX_ENTRY_BYTES as u64) < count {
            return Ok(false);
        }
        let mut position = 0;
        for number in 0..count {
            let entry = IndexEntry { offset: self.base + number, position };
            match self.frame_end(position)? {
                Some(end) if read_entry(index, number)? == entry => position = end,
                _ => return Ok(false),
            }
        }
        Ok(self.log.frame_at(position, self.limit_bytes)? == MappedFrameLook::Free)
    }

    /// The frame of the first record from `offset` on; `None` if the segment holds none.
    pub(super) fn find(&self, offset: u64) -> Result<Option<Place>> {
        if let (Some(index), None) = (&self.index, self.walked.get())
            && let Some(position) = self.checked_look_up(index, offset)?
        {
            return Ok(Some(Place { offset, position }));
        }
        let table = self.table()?;
        let at = table.entries().partition_point(|entry| entry.offset < offset);
        Ok(table.entries().get(at).map(|entry| Place { offset: entry.offset, position: entry.position }))
    }

    /// Looks the offset up in the stored index, which was right when it was mapped; it is believed only as long as the
    /// frames before, at and behind the position meet where the entries say.
    fn checked_look_up(&self, index: &MappedFile, offset: u64) -> Result<Option<u64>> {
        let number = offset - self.base;
        let entry = read_entry(index, number)?;
        let starts_well = match number.checked_sub(1) {
            None => entry.position == 0,
            Some(before) => {
                let before = read_entry(index, before)?;
                before.offset.checked_add(1) == Some(offset)
                    && self.frame_end(before.position)? == Some(entry.position)
            }
        };
        let Some(end) = self.frame_end(entry.position)?.filter(|_| starts_well && entry.offset == offset)
        else {
            return Ok(None);
        };
        let ends_well = match offset + 1 == self.next {
            true => self.log.frame_at(end, self.limit_bytes)? == MappedFrameLook::Free,
            false => read_entry(index, number + 1)? == IndexEntry { offset: offset + 1, position: end },
        };
        Ok(ends_well.then_some(entry.position))
    }

    fn frame_end(&self, position: u64) -> Result<Option<u64>> {
        match self.log.frame_at(position, self.limit_bytes)? {
            MappedFrameLook::Frame { end, .. } => Ok(Some(end)),
            _ => Ok(None),
        }
    }

    /// The places of all frames, found by walking them.
    fn table(&self) -> Result<&IndexTable> {
        if let Some(table) = self.walked.get() {
            return Ok(table);
        }
        let table = self.walk()?.0;
        Ok(self.walked.get_or_init(|| table))
    }

    /// Walks the frames; also answers what lies behind the last, and where.
    pub(super) fn walk(&self) -> Result<(IndexTable, MappedFrameLook, u64)> {
        let mut entries: Vec<IndexEntry> = Vec::new();
        let mut position = 0;
        let behind = loop {
            let look = self.log.frame_at(position, self.limit_bytes)?;
            let MappedFrameLook::Frame { end, .. } = look else { break look };
            let number = entries.len();
            let offset = match &self.sparse {
                None => self.base + number as u64,
                Some(offsets) => match offsets.get(number) {
                    Some(&offset) => offset,
                    None => break look,
                },
            };
            entries.push(IndexEntry { offset, position });
            position = end;
        };
        Ok((IndexTable::from_entries(entries), behind, position))
    }

    /// How many records the segment must hold.
    pub(super) fn expected_count(&self) -> u64 {
        self.sparse.as_ref().map_or(self.next - self.base, |offsets| offsets.len() as u64)
    }

    pub(super) fn is_sparse(&self) -> bool {
        self.sparse.is_some()
    }

    /// Whether the record must be in the segment.
    pub(super) fn must_hold(&self, offset: u64) -> bool {
        self.sparse.as_ref().is_none_or(|offsets| offsets.binary_search(&offset).is_ok())
    }

    /// Whether the stored index says what the frames are; `None` if there is none to compare.
    pub(super) fn index_agrees(&self, table: &IndexTable) -> Result<Option<bool>> {
        let Some(index) = &self.index else { return Ok(None) };
        for (number, entry) in table.entries().iter().enumerate() {
            if read_entry(index, number as u64)? != *entry {
                return Ok(Some(false));
            }
        }
        Ok(Some(true))
    }
}

/// Copies the payload of the frame at `position` behind what `payload` holds; answers the position behind it.
///
/// The length is taken from the copy of the header that was checked, so a change by another process is at worst a wrong
/// payload of a right length.
pub(super) fn read_frame(
    map: &dyn FileMap,
    path: &Path,
    place: Place,
    limit_bytes: u64,
    payload: &mut Vec<u8>,
) -> Result<u64> {
    match frame_at(map, path, place.position, limit_bytes)? {
        MappedFrameLook::Frame { payload_bytes, end } => {
            payload.clear();
            payload.resize(payload_bytes as usize, 0);
            map.read(place.position + MAPPED_FRAME_HEADER_BYTES, payload)
                .map_err(|error| Error::io("read", path, error))?;
            Ok(end)
        }
        other => Err(damage(path, place, other, limit_bytes)),
    }
}

/// The error that anything but a frame is where one must be.
pub(super) fn damage(path: &Path, place: Place, look: MappedFrameLook, limit_bytes: u64) -> Error {
    let reason = match look {
        MappedFrameLook::OverLimit { payload_bytes } => format!(
            "the frame's length of {payload_bytes} bytes is over the record limit of {limit_bytes}; open the log with a \
             larger limit if it was written so"
        ),
        MappedFrameLook::Torn { payload_bytes } => {
            format!("the frame's length of {payload_bytes} bytes reaches beyond the file")
        }
        MappedFrameLook::Free => "zeros where a frame should be".to_string(),
        MappedFrameLook::Frame { payload_bytes, .. } => {
            format!("a frame of {payload_bytes} bytes where none should be")
        }
    };
    Error::corrupt(path, place.position, Some(place.offset..place.offset + 1), reason)
}
