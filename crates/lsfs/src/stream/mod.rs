//! Record streams: logs of numbered records.
//!
//! The principal type is [`RecordStream`], a stream open for writing; [`Reader`] reads beside a writer in the same or
//! another process. A stream is a directory: segments named by their first record's index, a manifest (final data)
//! that names them, a lock, and the page on which a writer publishes what is durable.
//!
//! The way of a record: [`RecordStream::append`] → [`recorder`] (index, buffer, group commit) → `block::BlockWriter`
//! (slices) → `io::File::write_at`. And back: [`RecordStream::read`] → [`cursor`] (which block) → `block::Records`
//! (verified slices) → the payload.

mod cursor;
mod look;
mod mapped;
mod options;
mod pending;
mod read_ahead;
mod reader;
mod record_cache;
mod recorder;
mod recovery;
pub mod repair;
mod segment;
mod survey;
mod verify;

use std::ops::{Bound, Range, RangeBounds};
use std::path::Path;
use std::sync::Arc;

pub use cursor::{Cursor, Record, RecordRef, ReverseCursor};
pub use options::StreamOptions;
pub use pending::Pending;
pub use reader::Reader;
pub use verify::{Progress, SegmentInfo, StreamInfo, VerifyReport, inspect, verify};

use crate::codec::{Manifest, ManifestFault, SegmentEntry};
use crate::data_stream::DataStream;
use crate::directory::{self, WriterLock};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::final_data::{FinalDataOptions, StatePair};
use crate::io::{Access, OpenMode};
use crate::metrics::Latencies;
use crate::mutant::{self, Mutant};
use crate::write_path::space::{self, Space};
pub(crate) use cursor::PlacedRecord;
use cursor::Source;
use recorder::{Payload, Recorder, Recovered};
use recovery::Layout;
pub(crate) use segment::Extent;

/// Stem of the manifest's pair of files.
pub(crate) const MANIFEST_STEM: &str = "manifest";
/// Blocks of a manifest file before the other one takes over.
const MANIFEST_LIMIT_BLOCKS: u32 = 16;
/// What stands at the path, for messages.
const STREAM: &str = "a record stream";

/// A record stream open for writing.
///
/// Cloning is cheap; all clones are one stream. One process has it open for writing; others use [`Reader`]. When the last
/// clone goes away the stream is closed as by [`RecordStream::close`], with errors logged instead of returned.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let stream = lsfs::RecordStream::open(dir.path().join("events"), lsfs::StreamOptions::default())?;
/// let index = stream.append(7, b"signed in")?; // durable on return
/// assert_eq!(stream.read(index)?.payload, b"signed in");
/// stream.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RecordStream {
    owner: Arc<Owner>,
}

/// Closes the stream when the last handle goes.
#[derive(Debug)]
struct Owner {
    recorder: Arc<Recorder>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Err(error) = self.recorder.close() {
            tracing::warn!(dir = %self.recorder.dir.display(), %error, "stream was not closed cleanly");
        }
    }
}

/// What a stream has counted since it was opened, and what it holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamStats {
    /// Index of the oldest record.
    pub first_index: u64,
    /// Index the next record will have.
    pub next_index: u64,
    /// Records below this index are on the medium.
    pub durable_index: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of blocks in use, headers included.
    pub live_bytes: u64,
    /// Bytes made ready for records to come: the rest of the active segment, and spares.
    pub ready_bytes: u64,
    /// Memory held by recent records and the buffer being filled.
    pub memory_bytes: u64,
    /// Records appended since the open.
    pub appended_records: u64,
    /// Their payload bytes, uncompressed.
    pub appended_bytes: u64,
    /// Durable writes since the open; each is one sync.
    pub writes: u64,
    /// Bytes of blocks they carried.
    pub written_bytes: u64,
    /// Zeros written ahead, which no record asked for.
    pub zero_bytes: u64,
    /// Purged segments that were kept to be used again.
    pub recycled_segments: u64,
    /// How long durable writes took.
    pub write_latency: Latencies,
    /// How long blocking appends took, waiting included.
    pub append_latency: Latencies,
    /// Whether the active segment is written with direct I/O.
    pub access: Access,
    /// The writer's epoch: grows with every open and truncation.
    pub epoch: u32,
}

impl RecordStream {
    /// Opens the stream in `dir` for writing, or creates it.
    ///
    /// Opening costs a few reads and two small writes, whatever the size. After a crash it drops what a torn write left
    /// (docs/durability.md).
    ///
    /// # Errors
    /// [`Error::Locked`] if another writer has it open; [`Error::Corrupt`] if durable bytes no longer verify: then
    /// nothing is changed, and [`Reader`] still reads what is intact; [`Error::NotFound`] if there is something else.
    pub fn open(dir: impl AsRef<Path>, options: StreamOptions) -> Result<RecordStream> {
        RecordStream::open_in(Env::default(), dir, options)
    }

    /// As [`RecordStream::open`], on the given disk and runtime.
    pub fn open_in(env: Env, dir: impl AsRef<Path>, options: StreamOptions) -> Result<RecordStream> {
        let dir = dir.as_ref();
        if env.disk.exists(dir) && DataStream::is_in(&env, dir).unwrap_or(false) {
            // Records among its chunks would break the stream of bytes.
            let reason = "it is a data stream; open it as one".to_string();
            return Err(Error::NotFound { path: dir.to_path_buf(), expected: STREAM, reason });
        }
        RecordStream::open_records(env, dir, options)
    }

    /// Opens the records, whatever they are the records of.
    pub(crate) fn open_records(env: Env, dir: &Path, options: StreamOptions) -> Result<RecordStream> {
        options.check()?;
        if options.create {
            directory::create(&env, dir)?;
        }
        let exists = stream_exists(&env, dir)?;
        if !exists && !options.create {
            let reason = "it has no manifest".to_string();
            return Err(Error::NotFound { path: dir.to_path_buf(), expected: STREAM, reason });
        }
        if !exists {
            refuse_occupied(&env, dir)?;
        }
        let lock = WriterLock::acquire(&env, dir)?;
        let manifest_options = FinalDataOptions {
            block_bytes: options.block_bytes,
            limit_blocks: MANIFEST_LIMIT_BLOCKS,
            ..FinalDataOptions::default()
        };
        let pair = StatePair::open(env.clone(), dir, MANIFEST_STEM, manifest_options)?;
        let (options, recovered) = match pair.state() {
            Some(state) => {
                let manifest = decode_manifest(dir, &state.bytes)?;
                recover(&env, dir, options, pair, manifest)?
            }
            None => create(&env, dir, options, pair)?,
        };
        let recorder = Recorder::start(env, dir, options, lock, recovered)?;
        Ok(RecordStream { owner: Arc::new(Owner { recorder }) })
    }

    fn recorder(&self) -> &Recorder {
        &self.owner.recorder
    }

    /// Appends a record; durable on return. Answers its index.
    ///
    /// # Errors
    /// [`Error::TooLarge`] changes nothing. [`Error::Indeterminate`] if the write that carried the record failed: after
    /// reopening it may be there or not. [`Error::Poisoned`] after any earlier failure.
    pub fn append(&self, type_code: u64, payload: &[u8]) -> Result<u64> {
        self.recorder().append(type_code, &Payload::new(payload, &self.recorder().options)?)
    }

    /// Appends records one behind the other; all are durable on return. Answers their indexes.
    ///
    /// Not atomic: after a crash before the return, a first part of them may be there. Records of other threads may come
    /// between them; the range is exact only for a single appender, its start and end always are.
    ///
    /// # Errors
    /// As for [`RecordStream::append`].
    pub fn append_batch<P: AsRef<[u8]>>(&self, records: &[(u64, P)]) -> Result<Range<u64>> {
        let mut range: Option<Range<u64>> = None;
        for (type_code, payload) in records {
            let index = self.append_buffered(*type_code, payload.as_ref())?;
            range = Some(range.map_or(index, |range| range.start)..index + 1);
        }
        self.sync()?;
        let next = self.next_index();
        Ok(range.unwrap_or(next..next))
    }

    /// Appends a record to the buffer in memory and returns at once with its index.
    ///
    /// It becomes durable with the next [`RecordStream::sync`], or earlier, when the buffer is full or somebody else's
    /// append is synced. May wait for room in the buffer.
    ///
    /// # Errors
    /// As for [`RecordStream::append`]; the outcome of the record itself is that of the `sync`.
    pub fn append_buffered(&self, type_code: u64, payload: &[u8]) -> Result<u64> {
        self.recorder().append_buffered(type_code, &Payload::new(payload, &self.recorder().options)?)
    }

    /// Appends a record and returns a future of its durability, for any executor; [`Pending::wait`] blocks instead.
    ///
    /// Writing starts whether or not the future is polled. The call itself may wait for room in the buffer or for a new
    /// segment.
    ///
    /// # Errors
    /// As for [`RecordStream::append`].
    pub fn append_async(&self, type_code: u64, payload: &[u8]) -> Result<Pending> {
        let recorder = &self.owner.recorder;
        let (index, batch) =
            recorder.append_pending(type_code, &Payload::new(payload, &recorder.options)?)?;
        Ok(Pending::new(Arc::clone(recorder), index, batch))
    }

    /// Appends a record and calls `callback` with its index once it is durable, or with the failure.
    ///
    /// Callbacks run in index order on the thread that wrote the batch, shortly after the record became durable; they must
    /// not block on this stream. Answers the index at once.
    ///
    /// # Errors
    /// As for [`RecordStream::append`]; the callback is then not called.
    pub fn append_then(
        &self,
        type_code: u64,
        payload: &[u8],
        callback: impl FnOnce(Result<u64>) + Send + 'static,
    ) -> Result<u64> {
        let payload = Payload::new(payload, &self.recorder().options)?;
        self.recorder().append_then(type_code, &payload, Box::new(callback))
    }

    /// Returns when everything appended before the call is durable.
    ///
    /// # Errors
    /// As for [`RecordStream::append`].
    pub fn sync(&self) -> Result<()> {
        self.recorder().sync()
    }

    /// The record with this index, also if it is not durable yet.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there is none; [`Error::Corrupt`] if its bytes do not verify.
    pub fn read(&self, index: u64) -> Result<Record> {
        read_one(&self.source(), index)
    }

    /// Whether the record with this index is among the recent ones in memory: reading it does not wait for the disk.
    pub fn is_in_memory(&self, index: u64) -> bool {
        let extent = self.recorder().extent_of(index);
        self.recorder().block_in_memory(&extent.segment, index).is_some()
    }

    /// Reads forward over a range of indexes, also records that are not durable yet.
    pub fn iter(&self, range: impl RangeBounds<u64>) -> Cursor {
        forward(self.source(), range, self.first_index(), false)
    }

    /// Reads backward over a range of indexes, from its end or the stream's.
    pub fn iter_reverse(&self, range: impl RangeBounds<u64>) -> ReverseCursor {
        backward(self.source(), range, self.next_index())
    }

    /// Reads forward from `index`, durable records only; `None` means: not yet.
    pub fn follow(&self, index: u64) -> Cursor {
        Cursor::new(self.source(), index, u64::MAX, true)
    }

    fn source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.owner.recorder) as Arc<dyn Source>
    }

    /// Index of the oldest record; the next index if there is none.
    pub fn first_index(&self) -> u64 {
        self.recorder().bounds().first_index
    }

    /// Index the next record will have.
    pub fn next_index(&self) -> u64 {
        self.recorder().bounds().next_index
    }

    /// Records below this index are on the medium.
    pub fn durable_index(&self) -> u64 {
        self.recorder().bounds().durable_index
    }

    /// The records that are lost, in order: they were acknowledged, and a [repair](crate::repair) found that they no
    /// longer verify. Reading one is [`Error::Corrupt`] with its whole range; all others are there.
    ///
    /// They stay named until they are purged or truncated, or until a repair finds them again.
    pub fn lost_ranges(&self) -> Vec<Range<u64>> {
        self.recorder().lost_ranges()
    }

    /// Drops all records behind `index`; durable on return. The next record will be `index + 1`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there is no such record (use [`RecordStream::reset_to`] to drop all).
    pub fn truncate_after(&self, index: u64) -> Result<()> {
        self.recorder().truncate_after(&self.source(), index)
    }

    /// Drops the records before `index`; durable on return. Space comes back in whole segments.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if `index` is behind the durable end. Below the first index nothing happens.
    pub fn purge_before(&self, index: u64) -> Result<()> {
        self.recorder().purge_before(index)
    }

    /// Drops all records; the next one will be `index`. Durable on return.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for an index of 2^63 or more.
    pub fn reset_to(&self, index: u64) -> Result<()> {
        StreamOptions { first_index: index, ..StreamOptions::default() }.check()?;
        self.recorder().reset_to(index)
    }

    /// Goes on in a new segment, unless the active one is empty.
    ///
    /// # Errors
    /// As for [`RecordStream::append`].
    pub fn rotate(&self) -> Result<()> {
        self.recorder().rotate()
    }

    /// Replaces the sealed segments that hold exactly the indexes of `run` by one with `records`, whose indexes rise within
    /// the run; those left out read as [`Error::LeftOut`] from then on. Durable on return, whole or not at all.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if sealed segments do not begin and end there, or a record does not belong there: then
    /// nothing has changed.
    pub fn replace_sealed(
        &self,
        run: Range<u64>,
        records: &mut dyn Iterator<Item = Result<Record>>,
    ) -> Result<()> {
        self.recorder().replace_sealed(run, records)
    }

    /// All segments, oldest first; the active one as far as it is filled.
    pub(crate) fn extents(&self) -> Vec<Extent> {
        self.recorder().extents()
    }

    /// The largest payload of a record, in bytes.
    pub fn record_limit_bytes(&self) -> u32 {
        self.recorder().options.record_limit_bytes
    }

    /// What the stream counted and holds.
    pub fn stats(&self) -> StreamStats {
        let recorder = self.recorder();
        let (bounds, facts, metrics) = (recorder.bounds(), recorder.facts(), &recorder.metrics);
        StreamStats {
            first_index: bounds.first_index,
            next_index: bounds.next_index,
            durable_index: bounds.durable_index,
            segments: facts.segments,
            live_bytes: facts.live_bytes,
            ready_bytes: facts.unused_bytes + recorder.space.ready_bytes(),
            memory_bytes: facts.memory_bytes,
            appended_records: metrics.appended_records.get(),
            appended_bytes: metrics.appended_bytes.get(),
            writes: metrics.writes.get(),
            written_bytes: metrics.written_bytes.get(),
            zero_bytes: recorder.space.zero_bytes.get(),
            recycled_segments: recorder.space.recycled_segments.get(),
            write_latency: metrics.write_latency.summary(),
            append_latency: metrics.append_latency.summary(),
            access: facts.access,
            epoch: facts.epoch,
        }
    }

    /// Makes everything durable, leaves a witness of it, and lets the lock go. Later appends fail with
    /// [`Error::Closed`].
    ///
    /// # Errors
    /// As for [`RecordStream::append`]; the lock is let go all the same.
    pub fn close(&self) -> Result<()> {
        self.recorder().close()
    }

    /// The extents of the records in this range: for the data stream's marks.
    pub(crate) fn place_of(&self, index: u64) -> Result<RecordPlace> {
        let located = cursor::locate(&*self.source(), index)?;
        Ok(RecordPlace {
            segment_base: located.extent.segment.base_index,
            start: located.found.start,
            end: located.found.end,
        })
    }
}

/// Where a record lies: its segment, and block and offset of its beginning and of its end.
pub(crate) struct RecordPlace {
    pub(crate) segment_base: u64,
    pub(crate) start: (u32, u16),
    pub(crate) end: (u32, u16),
}

/// Whether `dir` holds a record stream.
pub(crate) fn stream_exists(env: &Env, dir: &Path) -> Result<bool> {
    match env.disk.list(dir) {
        Ok(_) => StatePair::exists(env, dir, MANIFEST_STEM),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let reason = "no such directory".to_string();
            Err(Error::NotFound { path: dir.to_path_buf(), expected: STREAM, reason })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            let reason = "it is a file, not a directory".to_string();
            Err(Error::NotFound { path: dir.to_path_buf(), expected: STREAM, reason })
        }
        Err(error) => Err(Error::io("list", dir, error)),
    }
}

/// A new stream starts in an empty directory, or in one where starting was interrupted.
fn refuse_occupied(env: &Env, dir: &Path) -> Result<()> {
    let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let ours = |name: &str| {
        space::is_spare(name)
            || directory::base_index_of(name).or(directory::companion_base_of(name)).is_some()
            || directory::rewritten_of(name).is_some()
            || directory::is_control(name)
    };
    match entries.iter().find(|entry| !ours(&entry.name)) {
        None => Ok(()),
        Some(entry) => Err(Error::NotFound {
            path: dir.to_path_buf(),
            expected: STREAM,
            reason: format!("it holds the file {}; use an empty or new directory", entry.name),
        }),
    }
}

pub(crate) fn decode_manifest(dir: &Path, bytes: &[u8]) -> Result<Manifest> {
    Manifest::decode(bytes).map_err(|fault| match fault {
        ManifestFault::Version(_) => {
            Error::NotFound { path: dir.to_path_buf(), expected: STREAM, reason: fault.to_string() }
        }
        _ => Error::corrupt(&dir.join(format!("{MANIFEST_STEM}.a")), 0, None, fault),
    })
}

/// Makes the first segment and the first manifest.
fn create(
    env: &Env,
    dir: &Path,
    options: StreamOptions,
    mut pair: StatePair,
) -> Result<(StreamOptions, Recovered)> {
    // Without a manifest there are no records, unless the manifest was lost: those are not to be removed.
    recovery::refuse_orphans(env, dir, None)?;
    let stream_id = directory::new_stream_id(env);
    let space = Space::new(env, dir, options.space());
    remove_unnamed(env, dir, &space, &[])?;
    let base_index = options.first_index;
    let spare = space.first()?;
    let active_bytes = spare.len;
    let segment = recorder::create_segment(
        env,
        dir,
        &options,
        recorder::NewSegment { stream_id, base_index, epoch: 1, files: Arc::default() },
        &spare,
    )?;
    let end_position = options.block_bytes as u64;
    let active = Extent { segment: Arc::new(segment), next_index: base_index, end_position };
    let manifest = Manifest {
        stream_id,
        epoch: 1,
        closed: false,
        first_index: base_index,
        active_bytes,
        segments: vec![active.entry()],
        lost: Vec::new(),
    };
    pair.set(&manifest.encode())?;
    tracing::info!(dir = %dir.display(), %stream_id, "stream created");
    Ok((options, Recovered { manifest, pair, sealed: Vec::new(), active }))
}

/// Brings a stream back: docs/durability.md, "Recovery".
fn recover(
    env: &Env,
    dir: &Path,
    options: StreamOptions,
    mut pair: StatePair,
    mut manifest: Manifest,
) -> Result<(StreamOptions, Recovered)> {
    let found = Layout::find(env, dir, &manifest, OpenMode::Write)?;
    if let Some(damage) = found.damage {
        return Err(Error::Corrupt(Box::new(damage)));
    }
    let Layout { sealed, active, leftovers, header, .. } = found;
    let options = StreamOptions {
        block_bytes: header.block_bytes as usize,
        checksum: header.checksum,
        record_limit_bytes: header.record_limit_bytes,
        ..options
    }
    .fitted_to_blocks();
    // What was read may still be in the device's cache only; from now on others may rely on it.
    let open = active.segment.open()?;
    if !mutant::is(Mutant::NoSegmentSyncAtOpen) {
        open.file.sync().map_err(|error| Error::io("sync", active.segment.path(), error))?;
    }
    // The decision where the stream ends is durable before anything changes; a new epoch shuts out what lies behind.
    let was_closed = manifest.closed;
    if !mutant::is(Mutant::NoEpochAtOpen) {
        manifest.epoch = directory::next_epoch(dir, manifest.epoch)?;
    }
    manifest.closed = false;
    manifest.active_bytes =
        open.file.len().map_err(|error| Error::io("measure", active.segment.path(), error))?;
    manifest.segments.pop();
    manifest.segments.push(active.entry());
    pair.set(&manifest.encode())?;
    recovery::clean_end(&active.segment, active.end_position)?;
    let space = Space::new(env, dir, options.space());
    remove_unnamed(env, dir, &space, &manifest.segments)?;
    if leftovers && !was_closed {
        let (next, position) = (active.next_index, active.end_position);
        tracing::warn!(dir = %dir.display(), next, position, "torn tail truncated");
    }
    tracing::info!(dir = %dir.display(), next = active.next_index, was_closed, "stream opened");
    Ok((options, Recovered { manifest, pair, sealed, active }))
}

/// Removes spares and segments that no manifest names: leftovers of a rotation, purge or truncation cut short.
fn remove_unnamed(env: &Env, dir: &Path, space: &Space, named: &[SegmentEntry]) -> Result<()> {
    let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let rewritten: Vec<(u64, u64)> =
        entries.iter().filter_map(|entry| directory::rewritten_of(&entry.name)).collect();
    for entry in entries {
        // Beside a rewritten segment that is named, the one it replaced is not.
        let is_replaced = |base| {
            named.iter().any(|entry| {
                entry.base_index == base && rewritten.contains(&(entry.base_index, entry.segment_id))
            })
        };
        let is_named = |base| named.iter().any(|entry| entry.base_index == base);
        let is_rewrite_named =
            |(base, id)| named.iter().any(|entry| (entry.base_index, entry.segment_id) == (base, id));
        let unnamed = directory::base_index_of(&entry.name)
            .is_some_and(|base| !is_named(base) || is_replaced(base))
            || directory::companion_base_of(&entry.name).is_some_and(|base| !is_named(base))
            || directory::rewritten_of(&entry.name).is_some_and(|name| !is_rewrite_named(name));
        if unnamed || space::is_spare(&entry.name) {
            tracing::debug!(file = entry.name, "removing an unnamed file");
            space.remove(&dir.join(&entry.name));
        }
    }
    Ok(())
}

/// Reads one record: from memory if its segment is sealed, else as a cursor does.
pub(crate) fn read_one(source: &Arc<dyn Source>, index: u64) -> Result<Record> {
    if let Some(extent) = source.sealed_extent_of(index)?
        && let Some(record) = extent.segment.read_mapped(&extent, index)
    {
        return Ok(record);
    }
    let bounds = source.bounds()?;
    if index < bounds.first_index || index >= bounds.next_index {
        return Err(Error::OutOfRange { index, held: bounds.first_index..bounds.next_index });
    }
    let mut cursor = Cursor::new(Arc::clone(source), index, index + 1, false);
    if let Some(record) = cursor.next_record()? {
        return Ok(record.into_owned());
    }
    match cursor.position() {
        next if next > index => Err(Error::LeftOut { index, next }),
        _ => Err(Error::OutOfRange { index, held: bounds.first_index..bounds.next_index }),
    }
}

/// A forward cursor over a range; without a start it begins at the first record.
pub(crate) fn forward(
    source: Arc<dyn Source>,
    range: impl RangeBounds<u64>,
    first_index: u64,
    durable_only: bool,
) -> Cursor {
    let start = start_of(&range).unwrap_or(first_index);
    Cursor::new(source, start, end_of(&range).unwrap_or(u64::MAX), durable_only)
}

/// A backward cursor over a range; it ends at the stream's end at the latest.
pub(crate) fn backward(
    source: Arc<dyn Source>,
    range: impl RangeBounds<u64>,
    next_index: u64,
) -> ReverseCursor {
    let end = end_of(&range).unwrap_or(u64::MAX).min(next_index);
    ReverseCursor::new(source, start_of(&range).unwrap_or(0), end)
}

fn start_of(range: &impl RangeBounds<u64>) -> Option<u64> {
    match range.start_bound() {
        Bound::Included(start) => Some(*start),
        Bound::Excluded(start) => Some(start.saturating_add(1)),
        Bound::Unbounded => None,
    }
}

fn end_of(range: &impl RangeBounds<u64>) -> Option<u64> {
    match range.end_bound() {
        Bound::Included(end) => Some(end.saturating_add(1)),
        Bound::Excluded(end) => Some(*end),
        Bound::Unbounded => None,
    }
}
