//! The mapped store: plain frames in memory-mapped files, for trusted directories.
//!
//! The principal type is [`MmapStore`]. A segment is a `.log` file of frames, eight bytes of length and the payload, and
//! a `.idx` file of entries beside it; the next segment's name says where it ends. There is no manifest: directories
//! that other programs write open as they are (docs/format.md, "The mapped store").
//!
//! **Invariants.** A file is never cut while it has its name, so that no mapping of it in any process faults; space is
//! allocated before it is mapped. A frame's payload is written before its length, both before its index entry. A
//! segment is durable as a whole before the next one has a name. The stored index is compared with the frames before
//! it is used, and at every use. Lock order: flushing, then state.

mod files;
mod recovery;
mod rewrite;
mod segment;
mod verify;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::codec::{INDEX_ENTRY_BYTES, MAPPED_FRAME_HEADER_BYTES, MappedFrameLook};
use crate::directory::{self, LOCK_NAME, WriterLock};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::io::FileMap;
use crate::log::backend::{Durability, LogRecords, LogSegment, StorageBackend, StoreKind};
use crate::log::cleanup::{DroppedSegment, StorageCleanup};
use crate::stream::{Record, RecordRef};
use files::MappedFile;
pub use recovery::is_mmap_log;
pub(crate) use recovery::refuse_occupied;
use segment::{Active, OpenSealed, OpenSegments, Place, Sealed, damage, read_frame};
pub use verify::{MmapInfo, MmapSegmentInfo, inspect_mmap, verify_mmap};

/// Settings of a mapped store.
#[derive(Clone, Debug)]
pub(crate) struct MmapOptions {
    /// A segment ends before it would grow beyond this many bytes.
    pub(crate) segment_bytes: u64,
    /// A segment ends with this many records.
    pub(crate) segment_entries: u64,
    /// Largest payload, in bytes.
    pub(crate) record_limit_bytes: u64,
    /// Offset of the first record of a new log.
    pub(crate) first_offset: u64,
}

/// A log in memory-mapped files. See the module.
#[derive(Debug)]
pub(crate) struct MmapStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    env: Env,
    dir: PathBuf,
    options: MmapOptions,
    cleanup: Arc<dyn StorageCleanup>,
    writable: bool,
    state: RwLock<State>,
    /// Held while something is made durable: who waits for it finds his records durable too.
    flushing: Mutex<Flushed>,
    kept: OpenSegments,
    lock: Mutex<Option<WriterLock>>,
}

#[derive(Debug)]
struct State {
    sealed: Vec<Arc<Sealed>>,
    active: Active,
    failure: Option<Failure>,
    closed: bool,
}

/// How far the active segment is on the medium.
#[derive(Clone, Copy, Debug)]
struct Flushed {
    base: u64,
    next: u64,
    position: u64,
}

/// The first failed sync.
#[derive(Clone, Debug)]
struct Failure {
    cause: Error,
    /// The records that were in flight.
    records: Range<u64>,
}

impl MmapStore {
    /// Opens the log in `dir` for writing, or makes a new one there: docs/durability.md, "The mapped store".
    pub(crate) fn open(
        env: Env,
        dir: &Path,
        options: MmapOptions,
        cleanup: Arc<dyn StorageCleanup>,
    ) -> Result<MmapStore> {
        let lock = WriterLock::acquire(&env, dir)?;
        let (sealed, active) =
            recovery::recover(&env, dir, &options, &*cleanup).inspect_err(|_| remove_lock_file(&env, dir))?;
        Ok(MmapStore::with(env, dir, options, cleanup, true, sealed, active, Some(lock)))
    }

    /// Opens the log in `dir` for reading: changes nothing, takes no lock, follows a writer.
    pub(crate) fn open_read_only(
        env: Env,
        dir: &Path,
        options: MmapOptions,
        cleanup: Arc<dyn StorageCleanup>,
    ) -> Result<MmapStore> {
        let (sealed, active) = recovery::look(&env, dir, &options)?;
        Ok(MmapStore::with(env, dir, options, cleanup, false, sealed, active, None))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of the one value, from two places")]
    fn with(
        env: Env,
        dir: &Path,
        options: MmapOptions,
        cleanup: Arc<dyn StorageCleanup>,
        writable: bool,
        sealed: Vec<Arc<Sealed>>,
        active: Active,
        lock: Option<WriterLock>,
    ) -> MmapStore {
        let flushed = Flushed { base: active.base, next: active.next(), position: active.end };
        let state = State { sealed, active, failure: None, closed: false };
        let shared = Shared {
            env,
            dir: dir.to_path_buf(),
            options,
            cleanup,
            writable,
            state: RwLock::new(state),
            flushing: Mutex::new(flushed),
            kept: OpenSegments::default(),
            lock: Mutex::new(lock),
        };
        MmapStore { shared: Arc::new(shared) }
    }
}

impl Shared {
    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn flushing(&self) -> MutexGuard<'_, Flushed> {
        self.flushing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether writing may go on.
    fn check_usable(&self, state: &State) -> Result<()> {
        if !self.writable {
            let source = std::io::Error::new(
                std::io::ErrorKind::ReadOnlyFilesystem,
                "the log is open for reading only",
            );
            return Err(Error::io("write to", &self.dir, source));
        }
        if let Some(failure) = &state.failure {
            let cause = Box::new(failure.cause.clone());
            return Err(Error::Poisoned { path: self.dir.clone(), cause });
        }
        if state.closed { Err(Error::Closed { path: self.dir.clone() }) } else { Ok(()) }
    }

    /// Remembers the first failure of a write or sync: nothing is written any more.
    fn fail<T>(&self, records: Range<u64>, cause: Error) -> Result<T> {
        let mut state = self.write_state();
        tracing::error!(dir = %self.dir.display(), %cause, ?records, "log stopped by a failed write");
        state.failure.get_or_insert(Failure { cause: cause.clone(), records: records.clone() });
        Err(Error::Indeterminate { records, cause: Box::new(cause) })
    }

    /// Whether a frame can hold this.
    fn check_payload(&self, type_code: u64, payload: &[u8]) -> Result<()> {
        if type_code != 0 {
            let expected = "0: the frames of a mapped store have no place for a type code".to_string();
            return Err(Error::InvalidOption { option: "type_code", value: type_code.to_string(), expected });
        }
        if payload.is_empty() {
            let expected = "at least 1 byte: an empty frame looks like free space".to_string();
            return Err(Error::InvalidOption { option: "payload", value: "0 bytes".to_string(), expected });
        }
        let (size_bytes, limit_bytes) = (payload.len() as u64, self.options.record_limit_bytes);
        if size_bytes > limit_bytes {
            return Err(Error::TooLarge { size_bytes, limit_bytes });
        }
        Ok(())
    }

    fn append(&self, type_code: u64, payload: &[u8]) -> Result<u64> {
        self.check_payload(type_code, payload)?;
        let size_bytes = payload.len() as u64;
        loop {
            let mut state = self.write_state();
            self.check_usable(&state)?;
            let active = &mut state.active;
            let (count, end) =
                (active.positions.len() as u64, active.end + MAPPED_FRAME_HEADER_BYTES + size_bytes);
            if count > 0 && (end > self.options.segment_bytes || count >= self.options.segment_entries) {
                let full = active.base;
                drop(state);
                self.rotate(Some(full))?;
                continue;
            }
            active.log.reserve(end, self.options.segment_bytes)?;
            let entries_max =
                self.options.segment_entries.min(self.options.segment_bytes / MAPPED_FRAME_HEADER_BYTES);
            let index = active.index.as_mut().expect("a store open for writing has an index");
            let index_bytes = entries_max.saturating_mul(INDEX_ENTRY_BYTES as u64);
            index.reserve((count + 1) * INDEX_ENTRY_BYTES as u64, index_bytes)?;
            return active.push(payload);
        }
    }

    /// Makes the records below `next` durable.
    fn flush_below(&self, next: u64) -> Result<()> {
        let mut flushed = self.flushing();
        self.flush_with(&mut flushed, next)
    }

    fn flush_with(&self, flushed: &mut Flushed, next: u64) -> Result<()> {
        let (log, base, end_next, end) = {
            let state = self.read_state();
            // What was sealed was flushed before.
            if next <= flushed.next.max(state.active.base) {
                return Ok(());
            }
            if let Some(failure) = &state.failure {
                let cause = Box::new(failure.cause.clone());
                return Err(match failure.records.end > next - 1 && failure.records.start < next {
                    true => Error::Indeterminate { records: failure.records.clone(), cause },
                    false => Error::Poisoned { path: self.dir.clone(), cause },
                });
            }
            self.check_usable(&state)?;
            (state.active.log.clone(), state.active.base, state.active.next(), state.active.end)
        };
        let from = if flushed.base == base { flushed.position } else { 0 };
        if let Err(error) = log.flush(from..end) {
            return self.fail(flushed.next.max(base)..end_next, error);
        }
        *flushed = Flushed { base, next: end_next, position: end };
        Ok(())
    }

    /// Seals the active segment if it has records, and if given, if it is the one that begins at `full`.
    fn rotate(&self, full: Option<u64>) -> Result<()> {
        let mut flushed = self.flushing();
        let next = {
            let state = self.read_state();
            self.check_usable(&state)?;
            if state.active.positions.is_empty() || full.is_some_and(|base| base != state.active.base) {
                return Ok(());
            }
            state.active.next()
        };
        // Appends may go on meanwhile; the last of them are flushed under the lock.
        self.flush_with(&mut flushed, next)?;
        let mut state = self.write_state();
        self.check_usable(&state)?;
        let (base, next) = (state.active.base, state.active.next());
        let end = state.active.end;
        let from = if flushed.base == base { flushed.position } else { 0 };
        let sealed = state.active.log.flush(from..end).and_then(|()| match &state.active.index {
            Some(index) => index.flush(0..(next - base) * INDEX_ENTRY_BYTES as u64),
            None => Ok(()),
        });
        if let Err(error) = sealed {
            drop(state);
            return self.fail(flushed.next.max(base)..next, error);
        }
        let active = recovery::create_segment(&self.env, &self.dir, next)?;
        let log_path = files::path_of(&self.dir, base, files::LOG_EXTENSION);
        state.sealed.push(Arc::new(Sealed::new(base, next, log_path)));
        state.active = active;
        *flushed = Flushed { base: next, next, position: 0 };
        tracing::debug!(dir = %self.dir.display(), base, next, bytes = end, "segment sealed");
        Ok(())
    }

    /// Looks at the directory again, in a store open for reading.
    fn refresh(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        let mut state = self.write_state();
        let State { sealed, active, .. } = &mut *state;
        let is_same = self.kept.are_linked()?;
        if is_same && recovery::follow(&self.env, &self.dir, &self.options, sealed, active)? {
            return Ok(());
        }
        self.look_again(&mut state)
    }

    /// Looks at the whole directory again.
    fn look_again(&self, state: &mut State) -> Result<()> {
        let (sealed, active) = recovery::look(&self.env, &self.dir, &self.options)?;
        self.kept.forget();
        state.sealed = sealed;
        state.active = active;
        Ok(())
    }

    fn range(&self) -> Range<u64> {
        self.read_state().range()
    }

    fn open_sealed(&self, sealed: &Sealed) -> Result<Arc<OpenSealed>> {
        sealed.open(&self.env, &self.dir, self.options.record_limit_bytes, &self.kept)
    }

    /// Where to read the first record from `offset` on; `None` behind the last.
    fn locate(&self, offset: u64) -> Result<Option<Run>> {
        let mut offset = offset;
        loop {
            let sealed = {
                let state = self.read_state();
                let range = state.range();
                if offset < range.start {
                    return Err(Error::OutOfRange { index: offset, held: range });
                }
                let at = state.sealed.partition_point(|sealed| sealed.next <= offset);
                match state.sealed.get(at) {
                    Some(sealed) => Arc::clone(sealed),
                    None => return state.locate_in_active(offset, self.options.record_limit_bytes),
                }
            };
            if offset < sealed.base {
                let path = &sealed.log_path;
                let reason = format!("the records before {} are missing", sealed.base);
                return Err(Error::corrupt(path, 0, Some(offset..sealed.base), reason));
            }
            let open = self.open_sealed(&sealed)?;
            match open.find(offset)? {
                Some(place) => {
                    return Ok(Some(Run {
                        place,
                        next: open.next,
                        map: Arc::clone(&open.log.map),
                        sealed: Some(open),
                    }));
                }
                None if open.must_hold(offset) => {
                    let (table, behind, position) = open.walk()?;
                    let first_missing = table.entries().last().map_or(sealed.base, |last| last.offset + 1);
                    let place = Place { offset: first_missing, position };
                    return Err(damage(&sealed.log_path, place, behind, self.options.record_limit_bytes));
                }
                None => offset = sealed.next,
            }
        }
    }

    fn cursor(self: &Arc<Self>, range: Range<u64>) -> MmapCursor {
        MmapCursor {
            shared: Arc::clone(self),
            next: range.start,
            end: range.end,
            run: None,
            payload: Vec::new(),
        }
    }
}

impl State {
    fn range(&self) -> Range<u64> {
        let start = self.sealed.first().map_or(self.active.base, |sealed| sealed.base);
        start..self.active.next()
    }

    fn locate_in_active(&self, offset: u64, limit_bytes: u64) -> Result<Option<Run>> {
        let active = &self.active;
        let number = offset.saturating_sub(active.base) as usize;
        let Some(&position) = active.positions.get(number) else {
            // An over-long frame is no end of the log.
            let place = Place { offset: active.next(), position: active.end };
            return match active.behind {
                look @ MappedFrameLook::OverLimit { .. } => {
                    Err(damage(&active.log.path, place, look, limit_bytes))
                }
                _ => Ok(None),
            };
        };
        let place = Place { offset: active.base + number as u64, position };
        Ok(Some(Run { place, next: active.next(), map: Arc::clone(&active.log.map), sealed: None }))
    }
}

/// Frames that follow each other in one map.
#[derive(Debug)]
struct Run {
    place: Place,
    /// Offset after the last record that can be read here.
    next: u64,
    map: Arc<dyn FileMap>,
    sealed: Option<Arc<OpenSealed>>,
}

/// Reads frames in order.
#[derive(Debug)]
struct MmapCursor {
    shared: Arc<Shared>,
    next: u64,
    end: u64,
    run: Option<Run>,
    payload: Vec<u8>,
}

impl LogRecords for MmapCursor {
    fn next_record(&mut self) -> Result<Option<RecordRef<'_>>> {
        if self.next >= self.end {
            return Ok(None);
        }
        let usable =
            self.run.as_ref().is_some_and(|run| run.place.offset == self.next && self.next < run.next);
        if !usable {
            self.run = self.shared.locate(self.next)?;
            if self.run.is_none() && !self.shared.writable {
                self.shared.refresh()?;
                self.run = self.shared.locate(self.next)?;
            }
        }
        let Some(run) = &mut self.run else { return Ok(None) };
        if run.place.offset >= self.end {
            self.next = self.end;
            return Ok(None);
        }
        let limit = self.shared.options.record_limit_bytes;
        let offset = run.place.offset;
        let path = run.sealed.as_ref().map(|open| open.log.path.clone());
        let path = path.unwrap_or_else(|| files::path_of(&self.shared.dir, offset, files::LOG_EXTENSION));
        let end = read_frame(&*run.map, &path, run.place, limit, &mut self.payload)?;
        self.next = offset + 1;
        run.place = Place { offset: offset + 1, position: end };
        if run.sealed.as_ref().is_some_and(|open| open.is_sparse()) {
            // The next frame's offset is not the next number.
            self.run = None;
        }
        Ok(Some(RecordRef { index: offset, type_code: 0, payload: (&self.payload[..]).into() }))
    }
}

impl StorageBackend for MmapStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Mmap
    }

    fn append(&self, type_code: u64, payload: &[u8], durability: Durability) -> Result<u64> {
        let offset = self.shared.append(type_code, payload)?;
        if durability == Durability::Durable {
            self.shared.flush_below(offset + 1)?;
        }
        Ok(offset)
    }

    fn flush(&self) -> Result<()> {
        let next = {
            let state = self.shared.read_state();
            self.shared.check_usable(&state)?;
            state.active.next()
        };
        self.shared.flush_below(next)
    }

    fn read(&self, offset: u64) -> Result<Record> {
        let shared = &self.shared;
        if offset >= shared.range().end {
            shared.refresh()?;
        }
        let held = shared.range();
        if !held.contains(&offset) {
            return Err(Error::OutOfRange { index: offset, held });
        }
        let mut run = shared.locate(offset);
        if matches!(run, Err(Error::Gone { .. })) && !shared.writable {
            // The writer dropped or rewrote it since the last look.
            shared.look_again(&mut shared.write_state())?;
            run = shared.locate(offset);
        }
        // Within the log, and no record there or behind it.
        let Some(run) = run? else { return Err(Error::LeftOut { index: offset, next: held.end }) };
        if run.place.offset != offset {
            return Err(Error::LeftOut { index: offset, next: run.place.offset });
        }
        let path = run.sealed.as_ref().map_or(&shared.dir, |open| &open.log.path);
        let mut payload = Vec::new();
        read_frame(&*run.map, path, run.place, shared.options.record_limit_bytes, &mut payload)?;
        Ok(Record { index: offset, type_code: 0, payload })
    }

    fn records(&self, range: Range<u64>) -> Result<Box<dyn LogRecords>> {
        Ok(Box::new(self.shared.cursor(range)))
    }

    fn range(&self) -> Result<Range<u64>> {
        self.shared.refresh()?;
        Ok(self.shared.range())
    }

    fn segments(&self) -> Result<Vec<LogSegment>> {
        self.shared.refresh()?;
        let (sealed, active) = {
            let state = self.shared.read_state();
            let active = &state.active;
            let active = LogSegment {
                base_offset: active.base,
                next_offset: active.next(),
                bytes: active.end,
                is_sealed: false,
            };
            (state.sealed.clone(), active)
        };
        let mut segments = Vec::with_capacity(sealed.len() + 1);
        for sealed in sealed {
            let bytes = self.shared.open_sealed(&sealed)?.used_bytes()?;
            segments.push(LogSegment {
                base_offset: sealed.base,
                next_offset: sealed.next,
                bytes,
                is_sealed: true,
            });
        }
        segments.push(active);
        Ok(segments)
    }

    fn rotate(&self) -> Result<()> {
        self.shared.rotate(None)
    }

    fn drop_before(&self, offset: u64) -> Result<()> {
        loop {
            // The files go one segment after the other, oldest first, so that a crash leaves no hole.
            let _flushing = self.shared.flushing();
            let oldest = {
                let mut state = self.shared.write_state();
                self.shared.check_usable(&state)?;
                let held = state.range();
                if offset > held.end {
                    return Err(Error::OutOfRange { index: offset, held });
                }
                match state.sealed.first() {
                    Some(oldest) if oldest.next <= offset => state.sealed.remove(0),
                    _ => return Ok(()),
                }
            };
            let dropped = DroppedSegment { base_offset: oldest.base, names: recovery::names_of(oldest.base) };
            if let Err(error) = self.shared.cleanup.remove(&dropped) {
                self.shared.write_state().sealed.insert(0, oldest);
                return Err(error);
            }
        }
    }

    fn replace(&self, run: Range<u64>, records: &mut dyn Iterator<Item = Result<Record>>) -> Result<()> {
        self.shared.replace(run, records)
    }

    fn reset(&self, offset: u64) -> Result<()> {
        self.shared.reset(offset)
    }

    fn close(&self) -> Result<()> {
        if !self.shared.writable || self.shared.read_state().closed {
            return Ok(());
        }
        let flushed = self.flush();
        self.shared.write_state().closed = true;
        let mut lock = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_some() {
            remove_lock_file(&self.shared.env, &self.shared.dir);
        }
        lock.take();
        flushed
    }
}

impl Drop for MmapStore {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(dir = %self.shared.dir.display(), %error, "log was not closed cleanly");
        }
    }
}

/// Removes the lock file, by whoever holds the lock: other programs may take every name in the directory for a
/// segment's.
fn remove_lock_file(env: &Env, dir: &Path) {
    let path = dir.join(LOCK_NAME);
    if let Err(error) = env.disk.remove(&path) {
        tracing::debug!(path = %path.display(), %error, "could not remove the lock file");
    }
}

/// Whether a writer has the log open.
fn is_written(env: &Env, dir: &Path) -> Result<bool> {
    let path = dir.join(directory::LOCK_NAME);
    env.disk.is_locked(&path).map_err(|error| Error::io("look at the lock", &path, error))
}

impl OpenSealed {
    /// Position behind the last frame.
    fn used_bytes(&self) -> Result<u64> {
        match self.find(self.next.saturating_sub(1))? {
            Some(last) => match self.log.frame_at(last.position, u64::MAX)? {
                MappedFrameLook::Frame { end, .. } => Ok(end),
                _ => Ok(self.log.len()),
            },
            None => self.walk().map(|(_, _, end)| end),
        }
    }
}

/// A segment's files as an active one: for recovery and for looking.
fn open_active(env: &Env, dir: &Path, base: u64, writable: bool) -> Result<Active> {
    let log = MappedFile::open(env, &files::path_of(dir, base, files::LOG_EXTENSION), writable)?;
    let index_path = files::path_of(dir, base, directory::INDEX_EXTENSION);
    let index = match MappedFile::open(env, &index_path, writable) {
        Ok(index) => Some(index),
        Err(Error::Gone { .. }) if writable => Some(MappedFile::create(env, &index_path, 0)?),
        Err(Error::Gone { .. }) => None,
        Err(error) => return Err(error),
    };
    Ok(Active::new(base, log, index))
}
