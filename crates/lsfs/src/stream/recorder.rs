//! The write path: records into blocks, blocks to the disk, waiters to their answers.
//!
//! The principal type is [`Recorder`]. Appenders encode their records into the open buffer under one short lock. One
//! thread at a time carries a buffer to the disk: a lone blocking caller does so itself, inline; when more is waiting
//! at the end of a write, the background committer goes on ([`WritePath`]).
//!
//! **Invariants.** Blocks of a stream are written by one write at a time, each durable before the next begins.
//! `durable_index` only grows within an epoch, and only after the write that carried the records returned success.
//! After the first failed write nothing is written any more. Lock order: manifest, then tail; no lock is held during
//! I/O except the manifest's.

mod rewrite;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::block::{BlockWriter, Identity, PendingRecord};
use crate::codec::{Compression, FileHeader, FileKind, FrameLayout, Manifest, StreamId};
use crate::directory::{self, WriterLock};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::final_data::StatePair;
use crate::io::{Access, AlignedBuf, SharedPage, Step, WriteSync};
use crate::metrics::{Counter, Histogram};
use crate::mutant::{self, Mutant};
use crate::stream::cursor::Source;
use crate::stream::options::StreamOptions;
use crate::stream::record_cache::RecordCache;
use crate::stream::recovery;
use crate::stream::segment::{Extent, OpenFiles, Segment};
pub(crate) use crate::write_path::group_commit::Sequence;
use crate::write_path::group_commit::{Filling, GATHER_PAUSE, GroupCommit, Turns, WritePath, parity};
use crate::write_path::live::{self, Published};
use crate::write_path::space::{Space, Spare};

/// What a caller of `append_then` is called with.
pub(crate) type Callback = Box<dyn FnOnce(Result<u64>) + Send>;

/// Stands for the batch that a failure hit when it hit none.
const NO_BATCH: Sequence = 0;

/// The shared core of an open stream.
pub(crate) struct Recorder {
    pub(crate) env: Env,
    pub(crate) dir: PathBuf,
    pub(crate) options: StreamOptions,
    pub(crate) stream_id: StreamId,
    tail: Mutex<Tail>,
    group: GroupCommit,
    manifest: Mutex<ManifestFile>,
    pub(crate) space: Space,
    /// Segments were dropped and their names' absence is not durable yet.
    names_dropped: AtomicBool,
    live: Box<dyn SharedPage>,
    lock: Mutex<Option<WriterLock>>,
    pub(crate) metrics: Metrics,
}

#[derive(Debug)]
pub(crate) struct ManifestFile {
    pair: StatePair,
    value: Manifest,
}

/// What the recorder counts.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) appended_records: Counter,
    pub(crate) appended_bytes: Counter,
    pub(crate) writes: Counter,
    pub(crate) written_bytes: Counter,
    pub(crate) write_latency: Histogram,
    pub(crate) append_latency: Histogram,
}

/// The state behind the one lock of the write path.
pub(crate) struct Tail {
    writer: BlockWriter,
    active: Arc<Segment>,
    capacity_bytes: u64,
    /// The active segment ends with this many records.
    segment_records: u64,
    /// Segments before the active one.
    sealed: Vec<Extent>,
    sealed_bytes: u64,
    first_index: u64,
    next_index: u64,
    durable_index: u64,
    durable_position: u64,
    epoch: u32,
    turns: Turns,
    callbacks: [Vec<(u64, Callback)>; 2],
    wakers: [Vec<Waker>; 2],
    cache: RecordCache,
    average_write_bytes: u64,
    /// What the larger batches of late took.
    expected_batch_bytes: usize,
    failure: Option<Failure>,
    closed: bool,
}

#[derive(Clone, Debug)]
struct Failure {
    cause: Error,
    batch: Sequence,
    records: Range<u64>,
}

type TailGuard<'a> = MutexGuard<'a, Tail>;

/// The places of a stream at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) first_index: u64,
    pub(crate) next_index: u64,
    pub(crate) durable_index: u64,
    pub(crate) epoch: u32,
}

/// What a stream is built from once its directory was recovered.
pub(crate) struct Recovered {
    pub(crate) manifest: Manifest,
    pub(crate) pair: StatePair,
    pub(crate) sealed: Vec<Extent>,
    pub(crate) active: Extent,
}

impl Recorder {
    /// Builds the write path on a recovered directory, in a new epoch.
    pub(crate) fn start(
        env: Env,
        dir: &Path,
        options: StreamOptions,
        lock: WriterLock,
        recovered: Recovered,
    ) -> Result<Arc<Recorder>> {
        let Recovered { manifest, pair, sealed, active } = recovered;
        let space = Space::new(&env, dir, options.space());
        let live_path = dir.join(directory::LIVE_NAME);
        let live = env
            .disk
            .shared_page(&live_path, true)
            .map_err(|error| Error::write("create", &live_path, 4096, error))?;
        let open = active.segment.open()?;
        let capacity_bytes =
            open.file.len().map_err(|error| Error::io("measure", active.segment.path(), error))?;
        let in_flight_bytes = open.header.in_flight_bytes as usize;
        let first_block = active.end_position.div_ceil(options.block_bytes as u64) as u32;
        let writer = BlockWriter::new(
            identity(&options, active.segment.segment_id, manifest.epoch),
            first_block,
            in_flight_bytes,
            None,
        );
        let tail = Tail {
            writer,
            active: active.segment,
            capacity_bytes,
            segment_records: options.segment_records,
            sealed_bytes: sealed.iter().map(|extent| extent.end_position).sum(),
            sealed,
            first_index: manifest.first_index,
            next_index: active.next_index,
            durable_index: active.next_index,
            durable_position: active.end_position,
            epoch: manifest.epoch,
            turns: Turns::default(),
            callbacks: [Vec::new(), Vec::new()],
            wakers: [Vec::new(), Vec::new()],
            cache: RecordCache::new(options.cache_bytes),
            average_write_bytes: 0,
            expected_batch_bytes: 0,
            failure: None,
            closed: false,
        };
        let recorder = Arc::new(Recorder {
            stream_id: manifest.stream_id,
            group: GroupCommit::new(Arc::clone(&env.runtime)),
            env,
            dir: dir.to_path_buf(),
            options,
            tail: Mutex::new(tail),
            manifest: Mutex::new(ManifestFile { pair, value: manifest }),
            space,
            names_dropped: AtomicBool::new(false),
            live,
            lock: Mutex::new(Some(lock)),
            metrics: Metrics::default(),
        });
        recorder.spawn_background()?;
        recorder.publish(&recorder.tail());
        Ok(recorder)
    }

    fn manifest(&self) -> MutexGuard<'_, ManifestFile> {
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- appending ----

    /// Puts a record into the open buffer; answers its index and its batch.
    fn enqueue<'a>(
        &'a self,
        mut tail: TailGuard<'a>,
        type_code: u64,
        payload: &Payload<'_>,
    ) -> Result<(TailGuard<'a>, u64, Sequence)> {
        loop {
            self.check_usable(&tail)?;
            if tail.turns.exclusive {
                tail = self.group.wait_for_room(tail);
            } else if tail.must_roll(payload.stored.len()) {
                tail = self.roll(tail, payload.stored.len())?;
            } else if tail.writer.fits(payload.stored.len()) {
                break;
            } else if tail.turns.flushing {
                tail = self.group.wait_for_room(tail);
            } else if !tail.writer.is_empty() {
                tail = self.flush(tail);
            } else {
                tail = self.enter_exclusive(tail)?;
                if tail.must_roll(payload.stored.len()) {
                    // Others appended while we waited.
                    self.leave_exclusive(tail);
                    tail = self.tail();
                    continue;
                }
                return self.enqueue_large(tail, type_code, payload);
            }
        }
        let index = tail.next_index;
        let mut record = payload.pending(index, type_code);
        assert!(tail.writer.put(&mut record), "the buffer has room for the record");
        tail.next_index += 1;
        let batch = tail.turns.filling;
        Ok((tail, index, batch))
    }

    /// A record larger than a buffer passes through several of them; the caller is exclusive, and no longer after.
    fn enqueue_large<'a>(
        &'a self,
        mut tail: TailGuard<'a>,
        type_code: u64,
        payload: &Payload<'_>,
    ) -> Result<(TailGuard<'a>, u64, Sequence)> {
        let index = tail.next_index;
        let mut record = payload.pending(index, type_code);
        while !tail.writer.put(&mut record) {
            tail = self.flush(tail);
            if tail.failure.is_some() {
                tail.turns.exclusive = false;
                self.group.announce_room(&tail.turns);
                self.check_usable(&tail)?;
            }
        }
        tail.next_index += 1;
        let batch = tail.turns.filling;
        tail.turns.exclusive = false;
        self.group.announce_room(&tail.turns);
        Ok((tail, index, batch))
    }

    pub(crate) fn append(&self, type_code: u64, payload: &Payload<'_>) -> Result<u64> {
        let started = self.env.runtime.now();
        let (mut tail, index, batch) = self.enqueue(self.tail(), type_code, payload)?;
        self.group.count_waiter(&mut *tail);
        self.count_append(payload);
        self.commit(tail, batch)?;
        self.metrics.append_latency.record(self.env.runtime.now().saturating_sub(started));
        Ok(index)
    }

    pub(crate) fn append_buffered(&self, type_code: u64, payload: &Payload<'_>) -> Result<u64> {
        let (tail, index, _) = self.enqueue(self.tail(), type_code, payload)?;
        self.count_append(payload);
        // So much is worth a write of its own; another buffer takes what comes meanwhile. And who came while this call
        // was flushing for want of room must not be left waiting.
        if tail.turns.filling_waiters > 0
            || tail.writer.pending_bytes() * 4 >= self.options.in_flight_bytes * 3
        {
            self.kick_committer(tail);
        }
        Ok(index)
    }

    pub(crate) fn append_pending(&self, type_code: u64, payload: &Payload<'_>) -> Result<(u64, Sequence)> {
        let (mut tail, index, batch) = self.enqueue(self.tail(), type_code, payload)?;
        self.group.count_waiter(&mut *tail);
        self.count_append(payload);
        self.kick_committer(tail);
        Ok((index, batch))
    }

    pub(crate) fn append_then(
        &self,
        type_code: u64,
        payload: &Payload<'_>,
        callback: Callback,
    ) -> Result<u64> {
        let (mut tail, index, batch) = self.enqueue(self.tail(), type_code, payload)?;
        self.count_append(payload);
        self.group.count_waiter(&mut *tail);
        tail.callbacks[parity(batch)].push((index, callback));
        self.kick_committer(tail);
        Ok(index)
    }

    /// Makes everything appended so far durable.
    pub(crate) fn sync(&self) -> Result<()> {
        let tail = self.tail();
        let batch = if tail.writer.is_empty() { tail.turns.filling - 1 } else { tail.turns.filling };
        self.commit(tail, batch)
    }

    fn count_append(&self, payload: &Payload<'_>) {
        self.metrics.appended_records.add(1);
        self.metrics.appended_bytes.add(u64::from(payload.raw_bytes));
    }

    /// What the failure means for a batch that was waiting.
    fn error_of(&self, failure: &Failure, batch: Sequence) -> Error {
        if batch == failure.batch {
            let records = failure.records.clone();
            return Error::Indeterminate { records, cause: Box::new(failure.cause.clone()) };
        }
        Error::Poisoned { path: self.dir.clone(), cause: Box::new(failure.cause.clone()) }
    }

    /// Polls for a batch on behalf of a future; `slot` remembers where its waker is kept.
    pub(crate) fn poll_done(
        &self,
        batch: Sequence,
        context: &mut Context<'_>,
        slot: &mut Option<usize>,
    ) -> Poll<Result<()>> {
        if self.group.is_done(batch) {
            return Poll::Ready(Ok(()));
        }
        let mut tail = self.tail();
        if let Some(outcome) = self.outcome(&tail, batch) {
            return Poll::Ready(outcome);
        }
        let wakers = &mut tail.wakers[parity(batch)];
        match slot.and_then(|at| wakers.get_mut(at)) {
            Some(waker) => waker.clone_from(context.waker()),
            None => {
                *slot = Some(wakers.len());
                wakers.push(context.waker().clone());
            }
        }
        Poll::Pending
    }

    /// Blocks until the batch is durable.
    pub(crate) fn wait_done(&self, batch: Sequence) -> Result<()> {
        self.commit(self.tail(), batch)
    }

    // ---- flushing ----

    /// Carries the open buffer to the disk and answers those who wait for it.
    ///
    /// The caller has seen, under this lock, that nobody else is flushing. Afterwards there may be a new buffer to
    /// flush; if the caller goes away it kicks the committer.
    fn flush<'a>(&'a self, mut tail: TailGuard<'a>) -> TailGuard<'a> {
        debug_assert!(!tail.turns.flushing && !tail.writer.is_empty());
        let sequence = tail.turns.next_batch();
        let records = tail.durable_index..tail.next_index;
        let batch = Arc::new(tail.seal());
        let segment = Arc::clone(&tail.active);
        tail.cache.push(segment.base_index, Arc::clone(&batch));
        tail.turns.flushing = true;
        self.group.announce_room(&tail.turns);
        drop(tail);

        let started = self.env.runtime.now();
        let written = segment.open().and_then(|open| {
            let len = batch.bytes().len() as u64;
            let failed = |error| Error::write("write", segment.path(), len, error);
            open.file.write_all_at(batch.bytes(), batch.position(), WriteSync::Durable).map_err(failed)
        });
        self.metrics.write_latency.record(self.env.runtime.now().saturating_sub(started));
        self.metrics.writes.add(1);
        self.metrics.written_bytes.add(batch.bytes().len() as u64);

        let mut tail = self.tail();
        match written {
            Ok(()) => {
                let len = batch.bytes().len() as u64;
                tail.average_write_bytes = (tail.average_write_bytes * 7 + len) / 8;
                tail.durable_index = records.end;
                tail.durable_position = batch.end_position();
                self.publish(&tail);
                self.group.set_done(sequence);
            }
            Err(cause) => self.fail(&mut tail, cause, sequence, records),
        }
        drop(batch);
        self.answer(tail, sequence)
    }

    /// Wakes and calls everybody who waited for this batch, or for any batch after a failure.
    fn answer<'a>(&'a self, mut tail: TailGuard<'a>, sequence: Sequence) -> TailGuard<'a> {
        let failure = tail.failure.clone();
        let own = parity(sequence);
        let parities = if failure.is_none() { own..own + 1 } else { 0..2 };
        for parity in parities {
            let has_sleepers = tail.turns.take_sleepers(parity);
            let wakers = std::mem::take(&mut tail.wakers[parity]);
            let callbacks = std::mem::take(&mut tail.callbacks[parity]);
            if !has_sleepers && wakers.is_empty() && callbacks.is_empty() {
                continue;
            }
            // Still flushing: the next batch's callbacks must not overtake these.
            drop(tail);
            if has_sleepers {
                self.group.wake(parity);
            }
            wakers.into_iter().for_each(|waker| contain_panic(|| waker.wake()));
            let of_batch = if parity == own { sequence } else { sequence + 1 };
            for (index, callback) in callbacks {
                let outcome = match &failure {
                    None => Ok(index),
                    Some(failure) => Err(self.error_of(failure, of_batch)),
                };
                contain_panic(|| callback(outcome));
            }
            tail = self.tail();
        }
        tail.turns.flushing = false;
        self.group.announce_room(&tail.turns);
        if tail.wants_spare_look() && !tail.turns.exclusive {
            let (live, unused, _) = tail.space_facts();
            if self.space.wants_spare(live, unused) {
                drop(tail);
                self.group.kick_preparer();
                tail = self.tail();
            }
        }
        tail
    }

    /// The first failure: nothing more is written, what was not acknowledged is forgotten.
    fn fail(&self, tail: &mut Tail, cause: Error, batch: Sequence, records: Range<u64>) {
        if tail.failure.is_some() {
            return;
        }
        tracing::error!(dir = %self.dir.display(), %cause, ?records, "stream stopped by a failed write");
        tail.failure = Some(Failure { cause, batch, records });
        tail.cache.clear();
        tail.next_index = tail.durable_index;
    }

    fn publish(&self, tail: &Tail) {
        live::publish(
            &*self.live,
            &Published {
                epoch: tail.epoch,
                segment_base: tail.active.base_index,
                durable_index: tail.durable_index,
                durable_position: tail.durable_position,
                first_index: tail.first_index,
            },
        );
    }

    // ---- what needs the stream for itself ----

    /// Runs `change` with the stream for itself and no lock held; an error poisons the stream.
    fn change<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let tail = self.enter_exclusive(self.tail())?;
        drop(tail);
        self.end_change(change())
    }

    /// Ends what [`Recorder::enter_exclusive`] began; an error poisons the stream.
    fn end_change<T>(&self, result: Result<T>) -> Result<T> {
        let mut tail = self.tail();
        if let Err(error) = &result
            && !matches!(
                error,
                Error::OutOfRange { .. }
                    | Error::LeftOut { .. }
                    | Error::InvalidOption { .. }
                    | Error::Corrupt(_)
            )
        {
            let (batch, records) = (tail.turns.filling, tail.durable_index..tail.durable_index);
            self.fail(&mut tail, error.clone(), batch, records);
        }
        self.leave_exclusive(tail);
        if self.names_dropped.load(Ordering::Acquire) {
            self.group.kick_preparer();
        }
        result
    }

    /// Goes on in a new segment, with room for a record of `stored_bytes`.
    fn roll<'a>(&'a self, tail: TailGuard<'a>, stored_bytes: usize) -> Result<TailGuard<'a>> {
        let tail = self.enter_exclusive(tail)?;
        let needed = PendingRecord::space_bytes_max(stored_bytes, self.options.block_bytes);
        if !tail.must_roll(stored_bytes) {
            // Somebody else did it while we waited.
            self.leave_exclusive(tail);
        } else if tail.next_index == tail.active.base_index {
            drop(tail);
            self.end_change(self.extend_active(needed))?;
        } else {
            self.seal_active(tail, needed)?;
        }
        Ok(self.tail())
    }

    /// Seals the active segment and goes on in a new one with room for `needed` bytes.
    ///
    /// The caller is exclusive, and not any more afterwards: once the new segment is known in memory others append to
    /// its first batch, which is not written before the segment has its durable name and its place in the manifest.
    fn seal_active(&self, tail: TailGuard<'_>, needed: u64) -> Result<()> {
        let (live, _, average) = tail.space_facts();
        let new = NewSegment {
            stream_id: self.stream_id,
            base_index: tail.next_index,
            epoch: tail.epoch,
            files: Arc::clone(&tail.active.files),
        };
        drop(tail);
        let spare = match self.space.take(live, needed + self.options.block_bytes as u64, average) {
            Ok(spare) => spare,
            Err(error) => return self.end_change(Err(error)),
        };
        let (segment, header) = new.on(&self.env, &self.dir, &self.options, &spare);
        let mut manifest = self.manifest();
        let mut tail = self.tail();
        let sealed = tail.active_extent();
        tail.sealed_bytes += sealed.end_position;
        tail.sealed.push(sealed.clone());
        tail.begin_segment(&self.options, Arc::new(segment), spare.len);
        tail.turns.flushing = true;
        tail.turns.exclusive = false;
        self.group.announce_room(&tail.turns);
        drop(tail);

        let mut made =
            establish(&self.env, &header, &spare, &directory::segment_path(&self.dir, header.base_index));
        if !mutant::is(Mutant::NoManifestAtRotation) {
            made = made.and_then(|()| manifest.save(self));
        }
        drop(manifest);
        if made.is_ok() {
            self.publish(&self.tail());
            tracing::debug!(
                dir = %self.dir.display(),
                base = sealed.segment.base_index,
                next = sealed.next_index,
                bytes = sealed.end_position,
                "segment sealed"
            );
            self.trim(&sealed);
        }
        let mut tail = self.tail();
        if let Err(error) = &made {
            let nothing_written = tail.durable_index..tail.durable_index;
            self.fail(&mut tail, error.clone(), NO_BATCH, nothing_written);
        }
        let last = tail.turns.filling - 1;
        let tail = self.answer(tail, last);
        if !tail.writer.is_empty() && tail.failure.is_none() {
            self.kick_committer(tail);
        }
        made
    }

    /// A first record that is larger than its segment: the file grows before it is written.
    fn extend_active(&self, needed_bytes: u64) -> Result<()> {
        let (segment, end) = {
            let tail = self.tail();
            (Arc::clone(&tail.active), tail.writer.end_position())
        };
        let len = (end + needed_bytes).next_multiple_of(self.options.block_bytes as u64);
        let open = segment.open()?;
        let file = &open.file;
        file.allocate(len)
            .and_then(|()| file.sync())
            .map_err(|error| Error::write("extend", segment.path(), needed_bytes, error))?;
        self.tail().capacity_bytes = len;
        Ok(())
    }

    /// Makes the file of a new segment and gives it its durable name.
    fn new_segment(
        &self,
        base_index: u64,
        min_bytes: u64,
        live_bytes: u64,
        average_write_bytes: u64,
    ) -> Result<(Arc<Segment>, u64)> {
        let spare = self.space.take(live_bytes, min_bytes, average_write_bytes)?;
        let epoch = self.tail().epoch;
        let len = spare.len;
        let files = Arc::clone(&self.tail().active.files);
        let new = NewSegment { stream_id: self.stream_id, base_index, epoch, files };
        let segment = create_segment(&self.env, &self.dir, &self.options, new, &spare)?;
        Ok((Arc::new(segment), len))
    }

    /// Gives back what a sealed segment did not use, if that is worth a change of the file. It keeps its length: the file
    /// may have been another segment before, which readers in other processes still have mapped.
    fn trim(&self, sealed: &Extent) {
        let Ok(open) = sealed.segment.open() else { return };
        let used = sealed.end_position.next_multiple_of(self.options.block_bytes as u64);
        let trimmed = open.file.len().and_then(|len| {
            if len - used.min(len) > (len / 8).max(64 << 10) { open.file.release(used..len) } else { Ok(()) }
        });
        if let Err(error) = trimmed {
            tracing::warn!(path = %sealed.segment.path().display(), %error, "could not trim a sealed segment");
        }
    }

    /// See `RecordStream::truncate_after`.
    pub(crate) fn truncate_after(&self, source: &Arc<dyn Source>, index: u64) -> Result<()> {
        self.change(|| {
            let bounds = self.bounds();
            if index.checked_add(1) == Some(bounds.next_index) {
                return Ok(());
            }
            if index < bounds.first_index || index >= bounds.next_index {
                return Err(Error::OutOfRange { index, held: bounds.first_index..bounds.next_index });
            }
            let (extent, end_position) = crate::stream::cursor::end_of_record(self, index)?;
            match extent.segment.open()?.header.is_sparse {
                true => self.end_in_rewritten(source, &extent, index + 1),
                false => self.end_at(extent, index + 1, end_position),
            }
        })
    }

    /// See `RecordStream::reset_to`.
    pub(crate) fn reset_to(&self, index: u64) -> Result<()> {
        self.change(|| {
            let bounds = self.bounds();
            let epoch = directory::next_epoch(&self.dir, self.tail().epoch)?;
            let start = self.options.block_bytes as u64;
            if let Some(extent) = self.writable_extent_at(index)? {
                self.tail().first_index = index;
                return self.end_at(Extent { next_index: index, ..extent }, index, start);
            }
            let (live, _, average) = self.tail().space_facts();
            let (segment, capacity) = self.new_segment(index, start * 2, live, average)?;
            let mut manifest = self.manifest();
            let mut tail = self.tail();
            let dropped = tail.take_all_extents();
            tail.first_index = index;
            tail.next_index = index;
            tail.epoch = epoch;
            tail.begin_segment(&self.options, segment, capacity);
            drop(tail);
            manifest.save(self)?;
            self.publish(&self.tail());
            self.drop_segments(dropped);
            tracing::info!(dir = %self.dir.display(), ?bounds, index, "stream reset");
            Ok(())
        })
    }

    /// The segment that begins with this record, if records may be appended to it: nothing is ever written to a rewritten
    /// one, whose name is of its own and in which a lost record would look like one that was left out.
    fn writable_extent_at(&self, base_index: u64) -> Result<Option<Extent>> {
        let extent = self.extents().into_iter().find(|extent| extent.segment.base_index == base_index);
        Ok(match extent {
            Some(extent) if !extent.segment.open()?.header.is_sparse => Some(extent),
            _ => None,
        })
    }

    /// Ends the stream in `extent` at `end_position`, before record `next_index`: the decision is made durable in the
    /// manifest first, then the files follow.
    fn end_at(&self, extent: Extent, next_index: u64, end_position: u64) -> Result<()> {
        let capacity = {
            // The segment may have been sealed; it is written to again.
            let open = extent.segment.open()?;
            let file = &open.file;
            file.len().map_err(|error| Error::io("measure", extent.segment.path(), error))?
        };
        let mut manifest = self.manifest();
        let mut tail = self.tail();
        if !mutant::is(Mutant::NoEpochAtTruncation) {
            tail.epoch = directory::next_epoch(&self.dir, tail.epoch)?;
        }
        let mut dropped = tail.take_all_extents();
        let keep = |candidate: &Extent| {
            candidate.segment.base_index < extent.segment.base_index
                && candidate.next_index > tail.first_index
        };
        let kept: Vec<Extent> = dropped.iter().filter(|candidate| keep(candidate)).cloned().collect();
        dropped.retain(|candidate| {
            candidate.segment.base_index != extent.segment.base_index && !keep(candidate)
        });
        tail.sealed_bytes = kept.iter().map(|extent| extent.end_position).sum();
        tail.sealed = kept;
        tail.next_index = next_index;
        tail.begin_segment(&self.options, Arc::clone(&extent.segment), capacity);
        tail.resume_at(&self.options, end_position);
        drop(tail);
        if mutant::is(Mutant::CleanBeforeManifest) {
            recovery::clean_end(&extent.segment, end_position)?;
        }
        manifest.save(self)?;
        recovery::clean_end(&extent.segment, end_position)?;
        self.publish(&self.tail());
        tracing::info!(dir = %self.dir.display(), next_index, end_position, "stream truncated");
        self.drop_segments(dropped);
        Ok(())
    }

    /// See `RecordStream::purge_before`.
    pub(crate) fn purge_before(&self, index: u64) -> Result<()> {
        self.change(|| {
            let mut manifest = self.manifest();
            let mut tail = self.tail();
            if index > tail.durable_index {
                return Err(Error::OutOfRange { index, held: tail.first_index..tail.next_index });
            }
            if index <= tail.first_index {
                return Ok(());
            }
            tail.first_index = index;
            let count = tail.sealed.partition_point(|extent| extent.next_index <= index);
            let dropped: Vec<Extent> = tail.sealed.drain(..count).collect();
            tail.sealed_bytes -= dropped.iter().map(|extent| extent.end_position).sum::<u64>();
            drop(tail);
            if mutant::is(Mutant::PurgeBeforeManifest) {
                self.drop_segments(dropped.clone());
            }
            manifest.save(self)?;
            self.publish(&self.tail());
            self.drop_segments(dropped);
            Ok(())
        })
    }

    /// Recycles or removes the files of segments that the durable manifest no longer names.
    fn drop_segments(&self, dropped: Vec<Extent>) {
        if dropped.is_empty() {
            return;
        }
        let (live, unused, _) = self.tail().space_facts();
        for extent in dropped {
            // Opened first: only then is the name of a rewritten segment known.
            let open = extent.segment.open().ok();
            let path = extent.segment.path().to_path_buf();
            tracing::debug!(path = %path.display(), next = extent.next_index, "segment dropped");
            directory::remove_companions(&self.env, &path);
            // A reader that still holds the segment goes on reading the old file; it must not be written to.
            let file = match Arc::try_unwrap(extent.segment) {
                Ok(_segment) => open.map(|open| Arc::clone(&open.file)),
                Err(_held) => None,
            };
            self.space.recycle(&path, file, live, unused);
        }
        self.names_dropped.store(true, Ordering::Release);
    }

    /// Makes the absence of dropped segments durable. Nobody waits for it: a name that a power failure brings back is
    /// one that the manifest does not name.
    fn sync_dropped_names(&self) {
        if self.names_dropped.swap(false, Ordering::AcqRel)
            && let Err(error) = self.env.disk.sync_dir(&self.dir)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "could not sync the directory after a removal");
        }
    }

    /// Makes everything durable, leaves a witness of it, gives spare space back and lets the lock go.
    pub(crate) fn close(&self) -> Result<()> {
        let tail = self.tail();
        if tail.closed {
            return Ok(());
        }
        let entered = self.enter_exclusive(tail);
        let result = entered.and_then(|mut tail| {
            tail.closed = true;
            drop(tail);
            let mut manifest = self.manifest();
            let saved = manifest.save(self).and_then(|()| manifest.pair.close());
            drop(manifest);
            self.leave_exclusive(self.tail());
            saved
        });
        self.tail().closed = true;
        self.space.discard();
        live::withdraw(&*self.live);
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        result
    }

    // ---- what readers ask ----

    pub(crate) fn bounds(&self) -> Bounds {
        let tail = self.tail();
        Bounds {
            first_index: tail.first_index,
            next_index: tail.next_index,
            durable_index: tail.durable_index,
            epoch: tail.epoch,
        }
    }

    /// All segments, oldest first; the active one as far as it is filled.
    pub(crate) fn extents(&self) -> Vec<Extent> {
        let tail = self.tail();
        tail.sealed.iter().cloned().chain([tail.active_extent()]).collect()
    }

    /// The records that a repair found to be lost.
    pub(crate) fn lost_ranges(&self) -> Vec<Range<u64>> {
        self.manifest().value.lost.clone()
    }

    pub(crate) fn extent_of(&self, index: u64) -> Extent {
        let tail = self.tail();
        let at = tail.sealed.partition_point(|extent| extent.next_index <= index);
        tail.sealed.get(at).cloned().unwrap_or_else(|| tail.active_extent())
    }

    /// The sealed segment with the record, if it is within the stream's bounds.
    pub(crate) fn sealed_extent_of(&self, index: u64) -> Option<Extent> {
        let tail = self.tail();
        let at = tail.sealed.partition_point(|extent| extent.next_index <= index);
        tail.sealed.get(at).filter(|_| index >= tail.first_index).cloned()
    }

    /// The block of the segment in which the record begins, if it is in memory.
    pub(crate) fn block_in_memory(&self, segment: &Segment, index: u64) -> Option<u32> {
        let tail = self.tail();
        if tail.active.segment_id == segment.segment_id
            && let Some(block) = tail.writer.block_of(index)
        {
            return Some(block);
        }
        tail.cache.block_of(segment.base_index, index)
    }

    /// Fills `target` with blocks of the segment from `first` on: from memory where they are, else from the disk.
    pub(crate) fn fetch(&self, extent: &Extent, first: u32, target: &mut [u8]) -> Result<usize> {
        let segment = &extent.segment;
        let mut end = extent.last_block() + 1;
        {
            let tail = self.tail();
            if tail.active.segment_id == segment.segment_id && tail.failure.is_none() {
                end = tail.writer.first_block();
                if first >= end {
                    return Ok(tail.writer.copy_blocks(first, target));
                }
            }
            let copied = tail.cache.copy_blocks(segment.base_index, first, end, target);
            if copied > 0 {
                return Ok(copied);
            }
            if let Some(cached) = tail.cache.first_block(segment.base_index)
                && cached > first
            {
                end = end.min(cached);
            }
        }
        let wanted = end.saturating_sub(first) as usize * segment.block_bytes;
        let len = wanted.min(target.len());
        segment.read_blocks(first, &mut target[..len])
    }

    pub(crate) fn facts(&self) -> Facts {
        let tail = self.tail();
        let (live_bytes, unused_bytes, _) = tail.space_facts();
        Facts {
            segments: tail.sealed.len() as u64 + 1,
            live_bytes,
            unused_bytes,
            memory_bytes: (tail.cache.memory_bytes() + tail.writer.memory_bytes()) as u64,
            access: tail.active.open().map_or(Access::Buffered, |open| open.file.access()),
            epoch: tail.epoch,
        }
    }
}

impl WritePath for Recorder {
    type Tail = Tail;

    fn lock(&self) -> &Mutex<Tail> {
        &self.tail
    }

    fn group(&self) -> &GroupCommit {
        &self.group
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn failure_of(&self, tail: &Tail, batch: Sequence) -> Option<Error> {
        tail.failure.as_ref().map(|failure| self.error_of(failure, batch))
    }

    fn flush_durably<'a>(&'a self, tail: TailGuard<'a>) -> TailGuard<'a> {
        self.flush(tail)
    }

    /// A step of the background committer, which carries on as long as there is something to write, or likely to be at
    /// once. One batch each, so that streams that share a thread take turns.
    fn commit_step(&self) -> Step {
        let mut tail = self.tail();
        tail.turns.committer_kicked = false;
        if tail.turns.flushing || tail.turns.exclusive || tail.failure.is_some() {
            return Step::Idle;
        }
        let first_pause = if tail.writer.is_empty() { FIRST_ARRIVAL_PAUSE } else { GATHER_PAUSE };
        tail = self.gather(tail, first_pause);
        if tail.writer.is_empty() {
            self.group.announce_room(&tail.turns);
            return Step::Idle;
        }
        // From here to the next step nobody needs to kick.
        tail = self.flush(tail);
        tail.turns.committer_kicked = true;
        Step::Again
    }

    fn prepare_step(&self) -> Step {
        self.sync_dropped_names();
        let (live, unused, average) = self.tail().space_facts();
        if let Err(error) = self.space.prepare(live, unused, average) {
            // Not fatal: the next segment is then made when it is needed, or fails there with its own message.
            tracing::warn!(dir = %self.dir.display(), %error, "could not make a spare segment ready");
        }
        Step::Idle
    }
}

impl Filling for Tail {
    fn turns(&self) -> &Turns {
        &self.turns
    }

    fn turns_mut(&mut self) -> &mut Turns {
        &mut self.turns
    }

    fn pending_bytes(&self) -> usize {
        self.writer.pending_bytes()
    }

    fn has_undurable(&self) -> bool {
        !self.writer.is_empty()
    }

    fn stopped_by(&self) -> Option<&Error> {
        self.failure.as_ref().map(|failure| &failure.cause)
    }

    fn is_closed(&self) -> bool {
        self.closed
    }
}

/// Facts for statistics.
pub(crate) struct Facts {
    pub(crate) segments: u64,
    pub(crate) live_bytes: u64,
    pub(crate) unused_bytes: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) access: Access,
    pub(crate) epoch: u32,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("dir", &self.dir).field("stream_id", &self.stream_id).finish()
    }
}

impl ManifestFile {
    /// Makes the stream's present segments and bounds durable.
    fn save(&mut self, recorder: &Recorder) -> Result<()> {
        let tail = recorder.tail();
        let mut active = tail.active_extent().entry();
        // Of the active segment only what is durable counts.
        active.next_index = tail.durable_index.max(active.base_index);
        active.end_position = tail.durable_position;
        self.value.epoch = tail.epoch;
        self.value.closed = tail.closed;
        self.value.first_index = tail.first_index;
        self.value.active_bytes = tail.capacity_bytes;
        self.value.segments = tail.sealed.iter().map(Extent::entry).chain([active]).collect();
        self.value.clip_lost();
        drop(tail);
        self.pair.set(&self.value.encode()).map(|_version| ())
    }
}

impl Tail {
    fn seal(&mut self) -> crate::block::Batch {
        let spare = self.next_buffer();
        if mutant::is(Mutant::WatermarkTooHigh) {
            return self.writer.seal(self.next_index, self.writer.end_position(), spare);
        }
        self.writer.seal(self.durable_index, self.durable_position, spare)
    }

    /// A buffer for the next batch, as large as the larger ones of late: growing means copying, and fresh memory means
    /// page faults.
    fn next_buffer(&mut self) -> Option<AlignedBuf> {
        let forgotten = self.expected_batch_bytes / 16;
        self.expected_batch_bytes = self.writer.pending_bytes().max(self.expected_batch_bytes - forgotten);
        let wanted = self.writer.buffer_bytes_for(self.expected_batch_bytes);
        Some(self.cache.take_spare(wanted).unwrap_or_else(|| AlignedBuf::zeroed(wanted)))
    }

    /// Whether a record of this size does not go into the active segment any more.
    fn must_roll(&self, stored_bytes: usize) -> bool {
        let block_bytes = self.active.block_bytes;
        let needed = PendingRecord::space_bytes_max(stored_bytes, block_bytes);
        self.writer.end_position().next_multiple_of(block_bytes as u64) + needed > self.capacity_bytes
            || self.next_index - self.active.base_index >= self.segment_records
    }

    fn active_extent(&self) -> Extent {
        let (next_index, end_position) = match self.failure {
            None => (self.next_index, self.writer.end_position()),
            Some(_) => (self.durable_index, self.durable_position),
        };
        Extent { segment: Arc::clone(&self.active), next_index, end_position }
    }

    /// Takes the segments away; what is in memory of them may change its place.
    fn take_all_extents(&mut self) -> Vec<Extent> {
        let active = self.active_extent();
        self.cache.clear();
        self.sealed_bytes = 0;
        std::mem::take(&mut self.sealed).into_iter().chain([active]).collect()
    }

    /// Makes `segment` the active one, empty, in the present epoch.
    fn begin_segment(&mut self, options: &StreamOptions, segment: Arc<Segment>, capacity_bytes: u64) {
        self.active = segment;
        self.capacity_bytes = capacity_bytes;
        self.resume_at(options, options.block_bytes as u64);
    }

    /// Goes on in the block behind `end_position`; nothing unwritten may be pending.
    fn resume_at(&mut self, options: &StreamOptions, end_position: u64) {
        let first_block = end_position.div_ceil(options.block_bytes as u64) as u32;
        let in_flight_bytes =
            self.active.open().map_or(options.in_flight_bytes, |open| open.header.in_flight_bytes as usize);
        let identity = identity(options, self.active.segment_id, self.epoch);
        let buffer = self.writer.take_buffer();
        self.writer = BlockWriter::new(identity, first_block, in_flight_bytes, Some(buffer));
        self.durable_index = self.next_index;
        self.durable_position = end_position;
    }

    /// Live bytes, bytes of the active segment not used yet, average bytes of a write.
    fn space_facts(&self) -> (u64, u64, u64) {
        let used = self.writer.end_position();
        (self.sealed_bytes + used, self.capacity_bytes.saturating_sub(used), self.average_write_bytes)
    }

    /// Whether the active segment is used up far enough that a spare will soon be needed.
    fn wants_spare_look(&self) -> bool {
        let (live, unused, _) = self.space_facts();
        unused < self.capacity_bytes / 2 && live > 0 && !self.sealed.is_empty() && self.failure.is_none()
    }
}

/// How long the committer waits for the first of them: they have to be woken before they can come.
const FIRST_ARRIVAL_PAUSE: Duration = Duration::from_micros(80);
/// Runs foreign code on the thread that flushes: its panic must not leave the stream flushing for ever.
fn contain_panic(call: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err() {
        tracing::error!("a callback of an append panicked");
    }
}

fn identity(options: &StreamOptions, segment_id: u64, epoch: u32) -> Identity {
    Identity { segment_id, epoch, checksum: options.checksum, block_bytes: options.block_bytes }
}

/// What is new about a segment.
pub(crate) struct NewSegment {
    pub(crate) stream_id: StreamId,
    pub(crate) base_index: u64,
    pub(crate) epoch: u32,
    pub(crate) files: Arc<OpenFiles>,
}

impl NewSegment {
    /// The segment that a spare will be, and its header; nothing is written yet.
    fn on(self, env: &Env, dir: &Path, options: &StreamOptions, spare: &Spare) -> (Segment, FileHeader) {
        let header = FileHeader {
            kind: FileKind::Segment,
            checksum: options.checksum,
            compression: options.compression,
            block_bytes: options.block_bytes as u32,
            stream_id: self.stream_id,
            segment_id: env.runtime.random(),
            base_index: self.base_index,
            epoch: self.epoch,
            in_flight_bytes: options.in_flight_bytes as u32,
            record_limit_bytes: options.record_limit_bytes,
            is_sparse: false,
            frame_layout: FrameLayout::Aligned,
        };
        let path = directory::segment_path(dir, self.base_index);
        (Segment::created(env, path, Arc::clone(&spare.file), header, &self.files), header)
    }
}

/// Writes a segment's header into a spare, then gives that its durable name.
fn establish(env: &Env, header: &FileHeader, spare: &Spare, path: &Path) -> Result<()> {
    let mut block = AlignedBuf::zeroed(header.block_bytes as usize);
    header.encode(&mut block);
    let len = block.len() as u64;
    spare
        .file
        .write_all_at(&block, 0, WriteSync::Durable)
        .map_err(|error| Error::write("write the header of", &spare.path, len, error))?;
    env.disk.rename(&spare.path, path).map_err(|error| Error::io("rename a spare to", path, error))?;
    directory::sync_parent(env, path)
}

/// Makes a spare the segment that begins at a base index, durably.
pub(crate) fn create_segment(
    env: &Env,
    dir: &Path,
    options: &StreamOptions,
    new: NewSegment,
    spare: &Spare,
) -> Result<Segment> {
    let (segment, header) = new.on(env, dir, options, spare);
    establish(env, &header, spare, segment.path())?;
    Ok(segment)
}

/// A payload as it will be stored.
pub(crate) struct Payload<'a> {
    pub(crate) stored: std::borrow::Cow<'a, [u8]>,
    pub(crate) compression: Compression,
    pub(crate) raw_bytes: u32,
}

impl<'a> Payload<'a> {
    /// Checks the limit and compresses if that makes it smaller.
    pub(crate) fn new(raw: &'a [u8], options: &StreamOptions) -> Result<Payload<'a>> {
        let limit_bytes = u64::from(options.record_limit_bytes);
        if raw.len() as u64 > limit_bytes {
            return Err(Error::TooLarge { size_bytes: raw.len() as u64, limit_bytes });
        }
        let raw_bytes = raw.len() as u32;
        Ok(match options.compression.compress(raw) {
            Some(stored) => Payload { stored: stored.into(), compression: options.compression, raw_bytes },
            None => Payload { stored: raw.into(), compression: Compression::None, raw_bytes },
        })
    }

    fn pending(&self, index: u64, type_code: u64) -> PendingRecord<'_> {
        PendingRecord::new(index, type_code, self.compression, &self.stored, self.raw_bytes)
    }
}
