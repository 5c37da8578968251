//! One segment file.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::block::{BlockReader, Fault};
use crate::codec::{FileHeader, FileHeaderFault, FileKind, SegmentEntry};
use crate::directory::{self, index_path};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::index::IndexView;
use crate::io::{AlignedBuf, File, OpenMode, parent_of};
use crate::stream::cursor::Record;
use crate::stream::mapped::MappedSegment;

/// The segment files of one stream that are kept open: enough to read in several places, few enough for any limit. And
/// those that are kept mapped, which takes no descriptor.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles {
    open: Mutex<VecDeque<Arc<OpenSegment>>>,
    mapped: Mutex<Mappings>,
}

/// Mapped segments, the one mapped longest ago in front.
#[derive(Debug, Default)]
struct Mappings {
    kept: VecDeque<Arc<MappedSegment>>,
    bytes: u64,
}

const OPEN_FILES_MAX: usize = 16;
/// Far from the 65530 mappings that Linux allows a process.
const MAPPINGS_MAX: usize = 1024;
/// Far from the 128 TiB of addresses that a process has.
const MAPPED_BYTES_MAX: u64 = 1 << 40;

impl OpenFiles {
    fn keep(&self, open: &Arc<OpenSegment>) {
        let mut kept = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= OPEN_FILES_MAX {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(open));
    }

    fn keep_mapped(&self, mapped: &Arc<MappedSegment>) {
        let mut mappings = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        mappings.bytes += mapped.len();
        mappings.kept.push_back(Arc::clone(mapped));
        // What was read since the last round gets another one; after a round of those, the oldest goes.
        let mut spared = 0;
        while mappings.kept.len() > MAPPINGS_MAX || mappings.bytes > MAPPED_BYTES_MAX {
            let Some(oldest) = mappings.kept.pop_front() else { break };
            if oldest.take_used() && spared < MAPPINGS_MAX {
                spared += 1;
                mappings.kept.push_back(oldest);
            } else {
                mappings.bytes -= oldest.len();
            }
        }
    }
}

/// A segment that is opened when it is needed: opening a stream must not cost a look at every file, nor may a stream of
/// many segments hold them all open.
#[derive(Debug)]
pub(crate) struct Segment {
    env: Env,
    path: PathBuf,
    /// Its file, if the segment was rewritten; known once the segment was open.
    rewritten_path: OnceLock<PathBuf>,
    pub(crate) segment_id: u64,
    pub(crate) base_index: u64,
    pub(crate) block_bytes: usize,
    mode: OpenMode,
    open: Mutex<Weak<OpenSegment>>,
    mapped: Mutex<Weak<MappedSegment>>,
    index: Mutex<IndexHints>,
    pub(crate) files: Arc<OpenFiles>,
}

/// A segment file whose header was checked.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) file: Arc<dyn File>,
    pub(crate) header: FileHeader,
    pub(crate) reader: BlockReader,
}

/// The segment's index as it was when it was last looked for; a clerk may have made more of it since.
#[derive(Debug, Default)]
struct IndexHints {
    view: Option<IndexView>,
    misses: u32,
}

/// An index that did not know a record is looked for again after so many more of them.
const INDEX_MISSES: u32 = 64;

/// Where a segment's records lie.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    pub(crate) segment: Arc<Segment>,
    /// Index after the last record.
    pub(crate) next_index: u64,
    /// Position behind the last record.
    pub(crate) end_position: u64,
}

impl Extent {
    /// Number of the last block that holds a record, or 0.
    pub(crate) fn last_block(&self) -> u32 {
        (self.end_position.div_ceil(self.segment.block_bytes as u64).saturating_sub(1)) as u32
    }

    pub(crate) fn entry(&self) -> SegmentEntry {
        SegmentEntry {
            segment_id: self.segment.segment_id,
            base_index: self.segment.base_index,
            next_index: self.next_index,
            end_position: self.end_position,
        }
    }
}

impl Segment {
    pub(crate) fn new(
        env: &Env,
        dir: &Path,
        entry: &SegmentEntry,
        block_bytes: usize,
        mode: OpenMode,
        files: &Arc<OpenFiles>,
    ) -> Self {
        Segment {
            env: env.clone(),
            path: directory::segment_path(dir, entry.base_index),
            rewritten_path: OnceLock::new(),
            segment_id: entry.segment_id,
            base_index: entry.base_index,
            block_bytes,
            mode,
            open: Mutex::default(),
            mapped: Mutex::default(),
            index: Mutex::default(),
            files: Arc::clone(files),
        }
    }

    /// A segment whose file was just written.
    pub(crate) fn created(
        env: &Env,
        path: PathBuf,
        file: Arc<dyn File>,
        header: FileHeader,
        files: &Arc<OpenFiles>,
    ) -> Self {
        let segment = Segment {
            env: env.clone(),
            path,
            rewritten_path: OnceLock::new(),
            segment_id: header.segment_id,
            base_index: header.base_index,
            block_bytes: header.block_bytes as usize,
            mode: OpenMode::Write,
            open: Mutex::default(),
            mapped: Mutex::default(),
            index: Mutex::default(),
            files: Arc::clone(files),
        };
        segment.remember(OpenSegment::new(file, header));
        segment
    }

    /// The segment's file.
    pub(crate) fn path(&self) -> &Path {
        self.rewritten_path.get().unwrap_or(&self.path)
    }

    fn remember(&self, open: OpenSegment) -> Arc<OpenSegment> {
        let open = Arc::new(open);
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&open);
        self.files.keep(&open);
        open
    }

    /// The open file; if it is not open, it is opened and checked to be the segment it should be.
    pub(crate) fn open(&self) -> Result<Arc<OpenSegment>> {
        if let Some(open) = self.open.lock().unwrap_or_else(PoisonError::into_inner).upgrade() {
            return Ok(open);
        }
        if let Some(open) = self.open_at(self.path())? {
            return Ok(self.remember(open));
        }
        // A rewritten segment has a file of its own name.
        let dir = parent_of(&self.path);
        let rewritten = directory::rewritten_path(&dir, self.base_index, self.segment_id);
        match self.open_at(&rewritten)? {
            Some(open) => {
                // Set by whoever comes first: it is the same path.
                let _already = self.rewritten_path.set(rewritten);
                Ok(self.remember(open))
            }
            None => Err(Error::Gone { path: self.path().to_path_buf() }),
        }
    }

    /// Opens the file at `path` if it is this segment.
    fn open_at(&self, path: &Path) -> Result<Option<OpenSegment>> {
        let file = match self.env.disk.open(path, self.mode, self.block_bytes) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", path, error)),
        };
        let header = read_file_header(&*file, self.block_bytes)?;
        if header.segment_id != self.segment_id || header.block_bytes as usize != self.block_bytes {
            return Ok(None);
        }
        Ok(Some(OpenSegment::new(file, header)))
    }

    /// The block in which the record begins as far as the index knows: a hint.
    pub(crate) fn index_hint(&self, index: u64) -> Option<u32> {
        let mut hints = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let known = hints.view.as_ref().and_then(|view| view.get(index));
        let position = known.or_else(|| {
            let is_due = hints.misses.is_multiple_of(INDEX_MISSES);
            hints.misses = hints.misses.wrapping_add(1);
            if is_due {
                hints.view = IndexView::open(&self.env, &index_path(&self.path), self.base_index);
            }
            hints.view.as_ref().filter(|_| is_due)?.get(index)
        })?;
        u32::try_from(position / self.block_bytes as u64).ok()
    }

    /// Reads a record of this sealed segment from memory, by the index if there is one; `None` if anything about it does
    /// not hold: the caller then reads the disk.
    pub(crate) fn read_mapped(&self, extent: &Extent, index: u64) -> Option<Record> {
        let known = self.mapped.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let mapped = match known.filter(|mapped| mapped.is_of(extent)) {
            Some(mapped) => mapped,
            None => {
                let mapped = Arc::new(MappedSegment::new(extent)?);
                self.files.keep_mapped(&mapped);
                *self.mapped.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&mapped);
                mapped
            }
        };
        mapped.read(&self.env, self, index)
    }

    /// Position of a block.
    pub(crate) fn position_of(&self, block: u32) -> u64 {
        u64::from(block) * self.block_bytes as u64
    }

    /// Reads blocks from `first` on; returns how many whole bytes of blocks the file had.
    pub(crate) fn read_blocks(&self, first: u32, buf: &mut [u8]) -> Result<usize> {
        let position = self.position_of(first);
        let count = self
            .open()?
            .file
            .read_full_at(buf, position)
            .map_err(|error| Error::io("read", self.path(), error))?;
        Ok(count / self.block_bytes * self.block_bytes)
    }

    /// Whether the file of this name is no longer this segment: it was removed, or recycled for another.
    pub(crate) fn was_replaced(&self) -> bool {
        let Ok(open) = self.open() else { return true };
        if !self.env.disk.exists(self.path()) {
            return true;
        }
        match read_file_header(&*open.file, self.block_bytes) {
            Ok(header) => header.segment_id != self.segment_id,
            Err(_) => false,
        }
    }

    /// The corruption that a fault in this segment is.
    pub(crate) fn corruption(&self, fault: &Fault, records: Option<std::ops::Range<u64>>) -> Error {
        Error::corrupt(self.path(), self.position_of(fault.block) + fault.offset as u64, records, fault)
    }
}

impl OpenSegment {
    fn new(file: Arc<dyn File>, header: FileHeader) -> Self {
        let reader = BlockReader {
            segment_id: header.segment_id,
            checksum: header.checksum,
            block_bytes: header.block_bytes as usize,
            record_limit_bytes: header.record_limit_bytes,
            is_sparse: header.is_sparse,
        };
        OpenSegment { file, header, reader }
    }
}

/// Reads and checks the header of a segment file.
pub(crate) fn read_file_header(file: &dyn File, unit_bytes: usize) -> Result<FileHeader> {
    let mut block = AlignedBuf::zeroed(unit_bytes);
    let count = file.read_full_at(&mut block, 0).map_err(|error| Error::io("read", file.path(), error))?;
    let damaged = |fault: FileHeaderFault| Error::corrupt(file.path(), 0, None, fault);
    match FileHeader::decode(&block[..count]) {
        Ok(header) if header.kind == FileKind::Segment => Ok(header),
        Ok(header) => Err(damaged(FileHeaderFault::Field { field: "kind", value: header.kind as u64 })),
        Err(fault @ FileHeaderFault::Version { .. }) => {
            Err(Error::Format { path: file.path().to_path_buf(), fault })
        }
        // A file that the manifest names was durable: whatever else its header says, it was damaged.
        Err(fault) => Err(damaged(fault)),
    }
}
