//! Segmented logs over interchangeable stores.
//!
//! The principal type is [`Log`], numbered records in segments, behind which stands a [`StorageBackend`]: the
//! `block` store (a [`RecordStream`](crate::RecordStream)) or the `mmap` store (plain frames in mapped files). What a
//! log drops is removed by a [`StorageCleanup`], here from the [`LocalFileSystem`].

mod backend;
mod block_store;
mod cleanup;
mod mmap_store;

use std::ops::{Bound, Range, RangeBounds};
use std::path::Path;
use std::sync::Arc;

pub use backend::{Durability, LogRecords, LogSegment, StorageBackend, StoreKind};
pub use cleanup::{DroppedSegment, LocalFileSystem, StorageCleanup};
pub use mmap_store::{MmapInfo, MmapSegmentInfo, inspect_mmap, is_mmap_log, verify_mmap};

use crate::directory;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::stream::{Record, StreamOptions};
use block_store::BlockStore;
use mmap_store::{MmapOptions, MmapStore};

/// What stands at the path, for messages.
const LOG: &str = "a log";

/// Settings of a log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The store of a new log; an existing one is recognised.
    pub store: StoreKind,
    /// A segment ends before it would grow beyond this many bytes, unless its first record is larger.
    pub segment_bytes: u64,
    /// A segment ends with this many records.
    pub segment_entries: u64,
    /// Largest payload in bytes. The block store keeps the limit a log was made with.
    pub record_limit_bytes: u32,
    /// Offset of the first record of a new log.
    pub first_offset: u64,
    /// Whether a missing log is made.
    pub create: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        let stream = StreamOptions::default();
        LogOptions {
            store: StoreKind::default(),
            segment_bytes: stream.segment_bytes,
            segment_entries: u64::MAX,
            record_limit_bytes: stream.record_limit_bytes,
            first_offset: 0,
            create: true,
        }
    }
}

impl LogOptions {
    fn mmap(&self) -> MmapOptions {
        MmapOptions {
            segment_bytes: self.segment_bytes,
            segment_entries: self.segment_entries,
            record_limit_bytes: self.record_limit_bytes.into(),
            first_offset: self.first_offset,
        }
    }

    fn stream(&self) -> StreamOptions {
        StreamOptions {
            segment_bytes: self.segment_bytes,
            segment_records: self.segment_entries,
            record_limit_bytes: self.record_limit_bytes,
            first_index: self.first_offset,
            create: self.create,
            ..StreamOptions::default()
        }
    }

    fn check(&self) -> Result<()> {
        if self.segment_entries == 0 {
            let (option, value) = ("segment_entries", "0".to_string());
            return Err(Error::InvalidOption { option, value, expected: "at least 1".to_string() });
        }
        self.stream().check()
    }
}

/// A log: records numbered 0, 1, 2, ... in segments.
///
/// A handle for any number of threads. One process has a log open for writing; any number read it beside.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// use lsfs::{Log, LogOptions, StoreKind};
///
/// let options = LogOptions { store: StoreKind::Mmap, ..LogOptions::default() };
/// let log = Log::open(dir.path().join("events"), options)?;
/// log.append_buffered(0, b"signed in")?;
/// let offset = log.append(0, b"signed out")?; // both are durable on return
/// assert_eq!(log.read(offset)?.payload, b"signed out");
/// log.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Log {
    backend: Box<dyn StorageBackend>,
}

impl Log {
    /// Opens the log in `dir` for writing, or makes it.
    ///
    /// # Errors
    /// [`Error::Locked`] if another writer has it open, [`Error::Corrupt`] if it is damaged where it would be written,
    /// [`Error::NotFound`] if there is something else.
    pub fn open(dir: impl AsRef<Path>, options: LogOptions) -> Result<Log> {
        Log::open_in(Env::default(), dir, options)
    }

    /// As [`Log::open`], on the given disk and runtime.
    pub fn open_in(env: Env, dir: impl AsRef<Path>, options: LogOptions) -> Result<Log> {
        let dir = dir.as_ref();
        let cleanup = Arc::new(LocalFileSystem::new(env.clone(), dir));
        Log::open_with(env, dir, options, cleanup)
    }

    /// As [`Log::open_in`]; what the log drops is removed by `cleanup`.
    pub fn open_with(
        env: Env,
        dir: &Path,
        options: LogOptions,
        cleanup: Arc<dyn StorageCleanup>,
    ) -> Result<Log> {
        options.check()?;
        if options.create {
            directory::create(&env, dir)?;
        }
        let backend: Box<dyn StorageBackend> = match store_in(&env, dir)?.unwrap_or(options.store) {
            StoreKind::Block => Box::new(BlockStore::open(env, dir, options.stream(), cleanup)?),
            StoreKind::Mmap => {
                if store_in(&env, dir)?.is_none() {
                    if !options.create {
                        return Err(not_found(dir));
                    }
                    mmap_store::refuse_occupied(&env, dir)?;
                }
                Box::new(MmapStore::open(env, dir, options.mmap(), cleanup)?)
            }
        };
        Ok(Log { backend })
    }

    /// Opens the log in `dir` for reading: without a lock, beside a writer, on a read-only file system. Changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no log.
    pub fn open_read_only(dir: impl AsRef<Path>) -> Result<Log> {
        Log::open_read_only_in(Env::default(), dir, LogOptions::default())
    }

    /// As [`Log::open_read_only`], on the given disk and runtime; of the options the record limit counts.
    pub fn open_read_only_in(env: Env, dir: impl AsRef<Path>, options: LogOptions) -> Result<Log> {
        let dir = dir.as_ref();
        let cleanup = Arc::new(LocalFileSystem::new(env.clone(), dir));
        let backend: Box<dyn StorageBackend> = match store_in(&env, dir)? {
            Some(StoreKind::Mmap) => Box::new(MmapStore::open_read_only(env, dir, options.mmap(), cleanup)?),
            Some(StoreKind::Block) => Box::new(BlockStore::open_read_only(env, dir, cleanup)?),
            None => return Err(not_found(dir)),
        };
        Ok(Log { backend })
    }

    /// A log over a store of one's own.
    pub fn over(backend: Box<dyn StorageBackend>) -> Log {
        Log { backend }
    }

    /// Which store the log has.
    pub fn store(&self) -> StoreKind {
        self.backend.kind()
    }

    /// Appends a record; durable on return. Answers its offset.
    ///
    /// # Errors
    /// [`Error::TooLarge`] and [`Error::InvalidOption`] (in the mapped store: an empty payload, a type code) change
    /// nothing; nor does [`Error::NoSpace`] in the mapped store. [`Error::Indeterminate`] if the sync failed: after
    /// reopening the record may be there or not. [`Error::Poisoned`] after any earlier failure.
    pub fn append(&self, type_code: u64, payload: &[u8]) -> Result<u64> {
        self.backend.append(type_code, payload, Durability::Durable)
    }

    /// Appends a record; it is durable with the next [`Log::flush`], [`Log::append`] or the end of its segment.
    ///
    /// # Errors
    /// As for [`Log::append`].
    pub fn append_buffered(&self, type_code: u64, payload: &[u8]) -> Result<u64> {
        self.backend.append(type_code, payload, Durability::Buffered)
    }

    /// Appends records one behind the other; durable on return, not atomic.
    ///
    /// # Errors
    /// As for [`Log::append`].
    pub fn append_batch(&self, records: &[(u64, &[u8])]) -> Result<Range<u64>> {
        self.backend.append_batch(records, Durability::Durable)
    }

    /// Makes everything appended before the call durable.
    ///
    /// # Errors
    /// As for [`Log::append`].
    pub fn flush(&self) -> Result<()> {
        self.backend.flush()
    }

    /// The record with this offset.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] outside the log, [`Error::LeftOut`] in a gap that a rewrite left, [`Error::Corrupt`] if it
    /// is damaged.
    pub fn read(&self, offset: u64) -> Result<Record> {
        self.backend.read(offset)
    }

    /// Reads the records of a range in order. Without a start it begins at the lowest offset.
    ///
    /// # Errors
    /// If the log's present bounds cannot be read.
    pub fn iter(&self, range: impl RangeBounds<u64>) -> Result<Box<dyn LogRecords>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => self.lowest_offset()?,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.backend.records(start..end)
    }

    /// The lowest offset there is; that of the next record in an empty log.
    ///
    /// # Errors
    /// Only in a log open for reading, if it changed and cannot be read any more.
    pub fn lowest_offset(&self) -> Result<u64> {
        Ok(self.backend.range()?.start)
    }

    /// The highest offset given out, or `None` in an empty log.
    ///
    /// # Errors
    /// As for [`Log::lowest_offset`].
    pub fn highest_offset(&self) -> Result<Option<u64>> {
        let range = self.backend.range()?;
        Ok(if range.is_empty() { None } else { Some(range.end - 1) })
    }

    /// The offset the next record will have.
    ///
    /// # Errors
    /// As for [`Log::lowest_offset`].
    pub fn next_offset(&self) -> Result<u64> {
        Ok(self.backend.range()?.end)
    }

    /// Bytes of all segments.
    ///
    /// # Errors
    /// As for [`Log::lowest_offset`].
    pub fn total_bytes(&self) -> Result<u64> {
        self.backend.total_bytes()
    }

    /// How many segments there are.
    ///
    /// # Errors
    /// As for [`Log::lowest_offset`].
    pub fn segment_count(&self) -> Result<usize> {
        Ok(self.backend.segments()?.len())
    }

    /// The segments, oldest first; the last is the active one.
    ///
    /// # Errors
    /// As for [`Log::lowest_offset`].
    pub fn segments(&self) -> Result<Vec<LogSegment>> {
        self.backend.segments()
    }

    /// Seals the active segment and begins a new one, unless it is empty.
    ///
    /// # Errors
    /// As for [`Log::append`].
    pub fn rotate(&self) -> Result<()> {
        self.backend.rotate()
    }

    /// Drops the segments that lie wholly before `offset`; the active one stays. Durable on return.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] behind the end. If a file cannot be removed, the segments before it are gone and the rest
    /// is as it was.
    pub fn truncate_before(&self, offset: u64) -> Result<()> {
        self.backend.drop_before(offset)
    }

    /// Replaces the sealed segments that stand for exactly the offsets of `run` by one that holds `records`: whole or
    /// not at all, also if power fails. Offsets must rise; those left out are gaps from then on.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if `run` does not begin and end with sealed segments, or a record does not belong in it:
    /// then nothing has changed.
    pub fn replace(&self, run: Range<u64>, records: impl IntoIterator<Item = Result<Record>>) -> Result<()> {
        self.backend.replace(run, &mut records.into_iter())
    }

    /// Drops all records; the next one will be `offset`. Durable on return, whole or not at all.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for an offset of 2^63 or more.
    pub fn reset(&self, offset: u64) -> Result<()> {
        LogOptions { first_offset: offset, ..LogOptions::default() }.check()?;
        self.backend.reset(offset)
    }

    /// Makes everything durable and lets the log go. Later appends fail with [`Error::Closed`].
    ///
    /// # Errors
    /// As for [`Log::append`]; the log is let go all the same.
    pub fn close(&self) -> Result<()> {
        self.backend.close()
    }
}

/// Which store has a log in `dir`; `None` if there is none.
///
/// # Errors
/// If the directory cannot be listed.
pub fn store_in(env: &Env, dir: &Path) -> Result<Option<StoreKind>> {
    match env.disk.list(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("list", dir, error)),
        Ok(_) if is_mmap_log(env, dir)? => Ok(Some(StoreKind::Mmap)),
        Ok(_) if crate::stream::stream_exists(env, dir)? => Ok(Some(StoreKind::Block)),
        Ok(_) => Ok(None),
    }
}

fn not_found(dir: &Path) -> Error {
    let reason = "it holds no segments".to_string();
    Error::NotFound { path: dir.to_path_buf(), expected: LOG, reason }
}

/// The sealed segments, given by their ranges in order, that stand for exactly `run`: the first, and how many.
pub(crate) fn find_run(
    run: &Range<u64>,
    mut ranges: impl Iterator<Item = Range<u64>>,
) -> Result<(usize, usize)> {
    let wrong = || Error::InvalidOption {
        option: "run",
        value: format!("{} to {} (exclusive)", run.start, run.end),
        expected: "offsets at which sealed segments begin and end".to_string(),
    };
    let mut first = 0;
    let begins = loop {
        match ranges.next() {
            Some(range) if range.start == run.start => break range,
            Some(_) => first += 1,
            None => return Err(wrong()),
        }
    };
    let (mut end, mut count) = (begins.end, 1);
    while end < run.end {
        end = ranges.next().ok_or_else(wrong)?.end;
        count += 1;
    }
    if end == run.end { Ok((first, count)) } else { Err(wrong()) }
}

/// Refuses a record that does not belong behind `previous` in a rewritten run.
pub(crate) fn check_rewritten(run: &Range<u64>, previous: Option<u64>, record: &Record) -> Result<()> {
    if run.contains(&record.index) && previous.is_none_or(|previous| previous < record.index) {
        return Ok(());
    }
    let from = previous.map_or(run.start, |previous| previous + 1);
    Err(Error::InvalidOption {
        option: "offset of a rewritten record",
        value: record.index.to_string(),
        expected: format!("rising, here from {from} to {} (exclusive)", run.end),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_begins_and_ends_with_segments() {
        let find = |run| find_run(&run, [0..10, 10..30, 30..31, 31..50].into_iter()).ok();
        assert_eq!(find(0..10), Some((0, 1)));
        assert_eq!(find(10..31), Some((1, 2)));
        assert_eq!(find(0..50), Some((0, 4)));
        for wrong in [0..11, 1..10, 10..51, 50..60, 30..30] {
            assert_eq!(find(wrong.clone()), None, "{wrong:?}");
        }
    }
}
