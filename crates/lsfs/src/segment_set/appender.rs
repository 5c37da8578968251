//! The write path: entries into frames, frames to the disk, waiters to their answers.
//!
//! The principal type is [`Appender`]. Entries become frames in the open buffer under one short lock; one thread at a
//! time carries a buffer to the disk ([`WritePath`]). What is different from a record stream: a write need not be synced,
//! and so *written* and *durable* are two places.
//!
//! **Invariants.** One write of frames at a time. `durable <= written <= appended`, and `durable` moves only after a
//! write or sync that covers it has returned success. A frame says that it is a witness only if everything before it
//! was durable when its write began. After the first failed write or sync nothing is written any more. While a segment
//! that is full is not sealed in the list, nothing is written into the next one. Lock order: next, then list, then
//! segments, then tail; only the first two are held during I/O.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use crate::codec::{
    Checksum, Compression, FOOTER_BYTES, FRAME_HEADER_BYTES_MAX, FileHeader, FileKind, Footer, FrameHeader,
    FrameIdentity, FrameLayout, Pointer, SegmentList, StreamId, Tally, piece_checksums, piece_checksums_of,
};
use crate::directory::{self, WriterLock};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::final_data::StatePair;
use crate::io::{Access, AlignedBuf, File, SharedPage, Step, WriteSync};
use crate::metrics::{Counter, Histogram};
use crate::mutant::{self, Mutant};
use crate::segment_set::image::{Image, OpenBuffer, RecentImages};
use crate::segment_set::options::{Durability, PAGE_BYTES, SEGMENT_BYTES_MAX, SetKind, SetOptions};
use crate::segment_set::segment::{FrameSource, OpenSegment, Segment, SegmentPlace, Window, segment_name};
use crate::write_path::group_commit::{
    Filling, GATHER_PAUSE, GroupCommit, Sequence, Turns, WritePath, parity,
};
use crate::write_path::live::{self, Published};
use crate::write_path::space::{Space, Spare};

/// Buffered entries are written after this time at the latest.
const BUFFERED_FOR_MAX: Duration = Duration::from_millis(100);
/// So many buffered bytes are worth a write of their own.
const BUFFERED_BYTES_MAX: usize = 1 << 20;
/// The list learns the end of the active segment anew after so many bytes: what an open has to verify.
const LIST_REFRESH_BYTES: u64 = 8 << 20;
/// What a footer without bytes of the user takes; kept free in every segment.
const FOOTER_RESERVE_BYTES: u64 = (FRAME_HEADER_BYTES_MAX + FOOTER_BYTES) as u64;

/// The shared core of an open set.
pub(crate) struct Appender {
    pub(crate) env: Env,
    pub(crate) dir: PathBuf,
    pub(crate) options: SetOptions,
    pub(crate) set_id: StreamId,
    pub(crate) were_live_bytes_exact: bool,
    epoch: u32,
    place: SegmentPlace,
    list: Mutex<ListFile>,
    /// Version of the list, and the end of the active segment as it has it.
    list_version: AtomicU64,
    listed_end: AtomicU64,
    /// All segments by number, the active one included.
    segments: RwLock<BTreeMap<u32, Arc<Segment>>>,
    /// Held by who makes the file of the next segment: there is only one of its name.
    next: Mutex<()>,
    tail: Mutex<Tail>,
    group: GroupCommit,
    disk_was_full: AtomicBool,
    pub(crate) space: Space,
    live: Box<dyn SharedPage>,
    lock: Mutex<Option<WriterLock>>,
    pub(crate) metrics: Metrics,
}

/// The list on the disk.
#[derive(Debug)]
struct ListFile {
    pair: StatePair,
}

/// What the appender counts.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) writes: Counter,
    pub(crate) written_bytes: Counter,
    pub(crate) syncs: Counter,
    pub(crate) reclaimed_segments: Counter,
    pub(crate) write_latency: Histogram,
}

/// The state behind the one lock of the write path.
pub(crate) struct Tail {
    active: Arc<Segment>,
    file: Arc<dyn File>,
    identity: FrameIdentity,
    /// Of new frames in the active segment.
    frame_epoch: u16,
    capacity_bytes: u64,
    /// Follows the active segment; no list names it yet.
    next: Option<NextSegment>,
    /// The segment before the active one, until the list says that it is sealed.
    sealing: Option<Sealing>,
    /// Of the segments before the active one.
    sealed_bytes: u64,
    buffer: OpenBuffer,
    appended: Tally,
    written: Tally,
    durable: Tally,
    /// Entries appended since the open, and bytes of their bodies.
    counted: (u64, u64),
    turns: Turns,
    /// When the oldest buffered entry came that nobody waits for.
    buffered_since: Option<Duration>,
    /// The committer will look by itself when buffered entries are old enough.
    committer_pauses: bool,
    recent: RecentImages,
    average_write_bytes: u64,
    failure: Option<Failure>,
    closed: bool,
}

/// A spare that was made a segment before it is needed: its header is durable.
pub(crate) struct NextSegment {
    segment: Arc<Segment>,
    open: Arc<OpenSegment>,
    capacity_bytes: u64,
    /// The name it has until it is used.
    spare_path: Option<PathBuf>,
}

/// A segment that is full, of which the last frames and the footer are on their way.
#[derive(Clone)]
struct Sealing {
    segment: Arc<Segment>,
    file: Arc<dyn File>,
    /// Everything in it, but for the footer.
    tally: Tally,
    durable: Tally,
    /// What was written before was not synced.
    has_unsynced: bool,
    /// The last frames, with the footer behind them.
    image: Arc<Image>,
    batch: Sequence,
}

#[derive(Clone, Debug)]
struct Failure {
    cause: Error,
    batch: Sequence,
    path: PathBuf,
    positions: Range<u64>,
}

type TailGuard<'a> = MutexGuard<'a, Tail>;

/// An entry with the checksums of its body, which are made before any lock is taken.
pub(crate) struct Entry<'a> {
    kind: u8,
    body: [&'a [u8]; 2],
    first_checksum: u32,
    more_checksums: Vec<u32>,
}

impl<'a> Entry<'a> {
    pub(crate) fn new(kind: u8, body: [&'a [u8]; 2], options: &SetOptions) -> Result<Self> {
        let size_bytes = body[0].len() as u64 + body[1].len() as u64;
        if size_bytes > options.body_limit_bytes.into() {
            let limit_bytes = options.body_limit_bytes.into();
            return Err(Error::TooLarge { size_bytes, limit_bytes });
        }
        let mut checksums = piece_checksums_of(body);
        let first_checksum = checksums.next().expect("every body has a piece");
        Ok(Entry { kind, body, first_checksum, more_checksums: checksums.collect() })
    }

    fn body_bytes(&self) -> u32 {
        (self.body[0].len() + self.body[1].len()) as u32
    }

    fn checksums(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::once(self.first_checksum).chain(self.more_checksums.iter().copied())
    }
}

/// What a set is built from once its directory was recovered.
pub(crate) struct Recovered {
    pub(crate) set_id: StreamId,
    pub(crate) epoch: u32,
    pub(crate) pair: StatePair,
    pub(crate) sealed: Vec<Arc<Segment>>,
    pub(crate) active: Arc<Segment>,
    pub(crate) tally: Tally,
    pub(crate) were_live_bytes_exact: bool,
}

impl Appender {
    /// Builds the write path on a recovered directory.
    pub(crate) fn start(
        place: SegmentPlace,
        options: SetOptions,
        space: Space,
        lock: WriterLock,
        recovered: Recovered,
    ) -> Result<Arc<Appender>> {
        let Recovered { set_id, epoch, pair, sealed, active, tally, were_live_bytes_exact } = recovered;
        let SegmentPlace { env, dir, .. } = place.clone();
        let live_path = dir.join(directory::LIVE_NAME);
        let live = env
            .disk
            .shared_page(&live_path, true)
            .map_err(|error| Error::write("create", &live_path, 4096, error))?;
        let mut tail = Tail::on(&active, tally, epoch, RecentImages::new(options.cache_bytes))?;
        tail.sealed_bytes = sealed.iter().filter_map(|segment| Some(u64::from(segment.sealed()?.end))).sum();
        let list_version = AtomicU64::new(pair.state().map_or(0, |state| state.version));
        let segments = sealed.into_iter().chain([active]).map(|segment| (segment.number, segment)).collect();
        let group = GroupCommit::new(Arc::clone(&env.runtime));
        let appender = Arc::new(Appender {
            env,
            dir,
            options,
            set_id,
            were_live_bytes_exact,
            epoch,
            place,
            list: Mutex::new(ListFile { pair }),
            list_version,
            listed_end: AtomicU64::new(tally.end.into()),
            segments: RwLock::new(segments),
            next: Mutex::default(),
            tail: Mutex::new(tail),
            group,
            disk_was_full: AtomicBool::new(false),
            space,
            live,
            lock: Mutex::new(Some(lock)),
            metrics: Metrics::default(),
        });
        appender.spawn_background()?;
        if appender.frame_epoch_is_used_up() {
            // Frames have 16 bits for the epoch; a new segment counts from its own.
            appender.seal_active()?;
        }
        appender.publish(&appender.tail());
        Ok(appender)
    }

    fn frame_epoch_is_used_up(&self) -> bool {
        self.tail().frame_epoch == u16::MAX
    }

    fn list(&self) -> MutexGuard<'_, ListFile> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_durable(&self) -> bool {
        self.options.kind == SetKind::Durable
    }

    // ---- appending ----

    /// Appends entries one behind the other in one segment; after a crash all of them are there, or none. Tells `placed`
    /// where each lies.
    pub(crate) fn append(
        &self,
        entries: &[Entry<'_>],
        durability: Durability,
        placed: impl FnMut(Pointer),
    ) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        // A layout with gaps takes most.
        let batch_bytes = end_of(PAGE_BYTES as u64, entries, FrameLayout::Aligned);
        if batch_bytes > SEGMENT_BYTES_MAX {
            return Err(Error::TooLarge { size_bytes: batch_bytes, limit_bytes: SEGMENT_BYTES_MAX });
        }
        let (mut tail, batch) = self.enqueue(self.tail(), entries, placed)?;
        if durability == Durability::Sync && self.is_durable() {
            self.group.count_waiter(&mut *tail);
            return self.commit(tail, batch);
        }
        self.leave_buffered(tail);
        Ok(())
    }

    /// Appends entries that nobody waits for, each by itself. Tells `placed` where each lies, also before an error.
    pub(crate) fn append_each(&self, entries: &[Entry<'_>], mut placed: impl FnMut(Pointer)) -> Result<()> {
        let mut tail = self.tail();
        for entry in entries {
            (tail, _) = match self.enqueue(tail, std::slice::from_ref(entry), &mut placed) {
                Ok(enqueued) => enqueued,
                Err(error) => {
                    self.leave_buffered(self.tail());
                    return Err(error);
                }
            };
        }
        self.leave_buffered(tail);
        Ok(())
    }

    /// Leaves what was appended to the committer.
    fn leave_buffered(&self, mut tail: TailGuard<'_>) {
        if tail.buffered_since.is_none() && tail.buffer.pending_bytes() > 0 {
            tail.buffered_since = Some(self.env.runtime.now());
        }
        self.kick_committer(tail);
    }

    /// Puts entries into the open buffer, and tells `placed` where; answers which buffer that is.
    fn enqueue<'a>(
        &'a self,
        mut tail: TailGuard<'a>,
        entries: &[Entry<'_>],
        mut placed: impl FnMut(Pointer),
    ) -> Result<(TailGuard<'a>, Sequence)> {
        loop {
            self.check_usable(&tail)?;
            let needed = tail.end_with(entries) - tail.buffer.end();
            let must_seal = tail.must_seal(entries);
            if tail.turns.exclusive || (must_seal && tail.turns.flushing) {
                tail = self.group.wait_for_room(tail);
            } else if must_seal && tail.sealing.is_some() {
                tail = self.flush(tail, false);
            } else if must_seal {
                self.go_on(tail, entries)?;
                tail = self.tail();
            } else if tail.buffer.pending_bytes() == 0
                || tail.buffer.pending_bytes() as u64 + needed <= self.options.in_flight_bytes as u64
            {
                break;
            } else if tail.turns.flushing {
                tail = self.group.wait_for_room(tail);
            } else {
                tail = self.flush(tail, false);
                if tail.buffer.pending_bytes() > 0 {
                    self.kick_committer(tail);
                    tail = self.tail();
                }
            }
        }
        for (number, entry) in entries.iter().enumerate() {
            placed(tail.put(entry, number + 1 < entries.len()));
        }
        let batch = tail.turns.filling;
        Ok((tail, batch))
    }

    /// Makes everything appended so far durable, and seals what is full; in a cache, hands it to the system.
    pub(crate) fn sync(&self) -> Result<()> {
        self.sync_appended()?;
        self.finish_sealing();
        Ok(())
    }

    fn sync_appended(&self) -> Result<()> {
        let mut tail = self.tail();
        if tail.buffer.pending_bytes() == 0 {
            let last = tail.turns.filling - 1;
            return self.commit(tail, last);
        }
        // Counted, so that nobody takes the buffer for one that nobody waits for.
        self.group.count_waiter(&mut *tail);
        let batch = tail.turns.filling;
        self.commit(tail, batch)
    }

    /// What the failure means for a buffer that was waiting.
    fn error_of(&self, failure: &Failure, batch: Sequence) -> Error {
        let cause = Box::new(failure.cause.clone());
        if batch == failure.batch {
            let (path, positions) = (failure.path.clone(), failure.positions.clone());
            return Error::IndeterminateEntries { path, positions, cause };
        }
        Error::Poisoned { path: self.dir.clone(), cause }
    }

    // ---- flushing ----

    /// Carries the open buffer to the disk, and everything written before to the medium if `sync` says so or somebody
    /// waits; then answers those who wait.
    ///
    /// The caller has seen, under this lock, that nobody else is flushing. Afterwards there may be a new buffer to
    /// flush; if the caller goes away it kicks the committer.
    fn flush<'a>(&'a self, mut tail: TailGuard<'a>, sync: bool) -> TailGuard<'a> {
        debug_assert!(!tail.turns.flushing);
        if tail.failure.is_some() {
            self.group.announce_room(&tail.turns);
            return tail;
        }
        if let Some(sealing) = tail.sealing.clone()
            && !(mutant::is(Mutant::NextBeforeList) && tail.buffer.pending_bytes() > 0)
        {
            // Another flush follows for what is in the buffer.
            return self.finish_seal(tail, sealing);
        }
        let sync = (sync || tail.turns.filling_waiters > 0) && self.is_durable();
        let image = (tail.buffer.pending_bytes() > 0).then(|| tail.take_buffer());
        if image.is_none() && !(sync && tail.durable != tail.written) {
            self.group.announce_room(&tail.turns);
            return tail;
        }
        let (written, batch) = (tail.appended, tail.turns.filling - 1);
        let unsynced = tail.durable != tail.written;
        let start = u64::from(tail.durable.end);
        let (file, segment) = (Arc::clone(&tail.file), Arc::clone(&tail.active));
        tail.turns.flushing = true;
        self.group.announce_room(&tail.turns);
        drop(tail);

        let started = self.env.runtime.now();
        let outcome = self.carry(&*file, segment.path(), image.as_deref(), sync, unsynced);
        self.metrics.write_latency.record(self.env.runtime.now().saturating_sub(started));

        let mut tail = self.tail();
        match outcome {
            Ok(()) => {
                if let Some(image) = &image {
                    let len = image.pages().len() as u64;
                    tail.average_write_bytes = (tail.average_write_bytes * 7 + len) / 8;
                    self.space.expect_entries_of(tail.counted.1.checked_div(tail.counted.0).unwrap_or(0));
                }
                tail.written = written;
                if sync || !self.is_durable() {
                    tail.durable = written;
                    self.publish(&tail);
                    self.group.set_done(batch);
                }
            }
            Err(cause) => {
                let end = image.as_ref().map_or(written.end.into(), |image| image.end);
                self.fail(&mut tail, cause, batch, start..end);
            }
        }
        drop(image);
        self.answer(tail, batch)
    }

    /// Writes an image and syncs as needed.
    fn carry(
        &self,
        file: &dyn File,
        path: &Path,
        image: Option<&Image>,
        sync: bool,
        unsynced: bool,
    ) -> Result<()> {
        let unsynced = unsynced && !mutant::is(Mutant::OwnFramesSyncedOnly);
        if let Some(image) = image {
            let pages = image.pages();
            // A durable write vouches for its own bytes only, not for those written before without a sync.
            let how = if sync && !unsynced { WriteSync::Durable } else { WriteSync::Later };
            file.write_all_at(pages, image.start, how)
                .map_err(|error| Error::write("write", path, pages.len() as u64, error))?;
            self.metrics.writes.add(1);
            self.metrics.written_bytes.add(pages.len() as u64);
        }
        if sync {
            self.metrics.syncs.add(1);
            if unsynced {
                file.sync().map_err(|error| Error::io("sync", path, error))?;
            }
        }
        Ok(())
    }

    /// Wakes everybody who waited for this buffer, and looks after what is due.
    fn answer<'a>(&'a self, mut tail: TailGuard<'a>, batch: Sequence) -> TailGuard<'a> {
        tail.turns.flushing = false;
        self.group.announce_room(&tail.turns);
        let has_sleepers = tail.turns.take_sleepers(parity(batch));
        let is_due = self.is_background_due(&tail);
        if !has_sleepers && !is_due {
            return tail;
        }
        drop(tail);
        if has_sleepers {
            self.group.wake(parity(batch));
        }
        if is_due {
            self.group.kick_preparer();
        }
        self.tail()
    }

    /// The first failure: nothing more is written, what was not written is forgotten.
    fn fail(&self, tail: &mut Tail, cause: Error, batch: Sequence, positions: Range<u64>) {
        self.notice_full_disk(&cause);
        if tail.failure.is_some() {
            return;
        }
        let path = tail.listed_as_active().0.path().to_path_buf();
        tracing::error!(path = %path.display(), %cause, ?positions, "segment set stopped by a failure");
        tail.failure = Some(Failure { cause, batch, path, positions });
        tail.recent.clear();
        tail.appended = tail.durable;
        if let Some(sealing) = &mut tail.sealing {
            sealing.tally = sealing.durable;
        }
        // Whoever waits for a buffer or for room is told, wherever the failure came from.
        for parity in 0..2 {
            if tail.turns.take_sleepers(parity) {
                self.group.wake(parity);
            }
        }
        self.group.announce_room(&tail.turns);
    }

    fn notice_full_disk(&self, cause: &Error) {
        if matches!(cause, Error::NoSpace { .. }) {
            self.disk_was_full.store(true, Ordering::Relaxed);
        }
    }

    /// Tells readers in other processes which list counts and where the active segment ends.
    fn publish(&self, tail: &Tail) {
        let (segment, durable) = tail.listed_as_active();
        live::publish(
            &*self.live,
            &Published {
                epoch: self.epoch,
                segment_base: segment.number.into(),
                durable_index: durable.entries.into(),
                durable_position: durable.end.into(),
                first_index: self.list_version.load(Ordering::Acquire),
            },
        );
    }

    // ---- what happens beside ----

    fn is_background_due(&self, tail: &Tail) -> bool {
        tail.failure.is_none() && !tail.turns.exclusive && (self.is_list_stale(tail) || self.wants_next(tail))
    }

    /// Whether the next segment is to be made ready.
    fn wants_next(&self, tail: &Tail) -> bool {
        let has_space =
            || self.space.has_spare() || self.space.wants_spare(tail.used_bytes(), tail.unused_bytes());
        self.options.spares && tail.next.is_none() && tail.wants_next_look() && has_space()
    }

    fn is_list_stale(&self, tail: &Tail) -> bool {
        u64::from(tail.durable.end) >= self.listed_end.load(Ordering::Relaxed) + LIST_REFRESH_BYTES
    }

    /// Makes the present ends and released bytes durable in the list.
    pub(crate) fn refresh_list(&self) -> Result<()> {
        let mut list = self.list();
        {
            let tail = self.tail();
            if tail.closed || tail.failure.is_some() || tail.turns.exclusive {
                return Ok(());
            }
        }
        self.save(&mut list, false)
    }

    /// Writes the list; a failure stops the set.
    fn save(&self, list: &mut ListFile, closed: bool) -> Result<()> {
        self.save_without(list, &[], closed)
    }

    /// As [`Appender::save`], without some of the segments.
    fn save_without(&self, list: &mut ListFile, left_out: &[u32], closed: bool) -> Result<()> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let tail = self.tail();
        let (active, durable) = tail.listed_as_active();
        let (active_number, active_end) = (active.number, u64::from(durable.end));
        let listed = segments.range(..=active_number).map(|(_, segment)| segment);
        let listed = listed.filter(|segment| !left_out.contains(&segment.number));
        let entries = listed.map(|segment| match segment.sealed() {
            Some(tally) => segment.entry(*tally),
            None => segment.entry(durable),
        });
        let value = SegmentList {
            set_id: self.set_id,
            epoch: self.epoch,
            closed,
            cache: !self.is_durable(),
            segments: entries.collect(),
        };
        drop((tail, segments));
        match list.pair.set(&value.encode()) {
            Ok(version) => {
                self.list_version.store(version, Ordering::Release);
                self.listed_end.store(active_end, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                let mut tail = self.tail();
                let (batch, end) = (tail.turns.filling, tail.written.end.into());
                self.fail(&mut tail, error.clone(), batch, end..end);
                Err(error)
            }
        }
    }

    // ---- what needs the set for itself ----

    /// Lets the others go on, and has done what is due.
    fn let_go(&self, tail: TailGuard<'_>) {
        self.leave_exclusive(tail);
        if self.is_background_due(&self.tail()) {
            self.group.kick_preparer();
        }
    }

    /// Goes on in the next segment, which `entries` need: in the one that was made ready, if the old one can be left to
    /// the next flush.
    fn go_on(&self, tail: TailGuard<'_>, entries: &[Entry<'_>]) -> Result<()> {
        let is_ready = self.can_leave(&tail, entries);
        drop(tail);
        if !is_ready {
            return self.roll(Some(entries)).map(drop);
        }
        let _next = self.next();
        // Nobody else takes it: he would need the lock we hold.
        let named = match self.tail().next.as_mut() {
            Some(next) => next.segment_to_name(),
            None => return Ok(()),
        };
        // Files change their names inside calls of the owner, never behind somebody who walks the directory.
        if let Some((segment, spare_path)) = named
            && let Err(error) = give_name(&self.place, &spare_path, &segment)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "the next segment is made anew");
            self.space.remove(&spare_path);
            self.tail().next = None;
            return Ok(());
        }
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        let mut tail = self.tail();
        // Somebody else may be flushing now.
        if self.can_leave(&tail, entries)
            && let Some(next) = tail.next.take()
        {
            segments.insert(next.segment.number, Arc::clone(&next.segment));
            tail.leave_for(next, self.epoch);
        }
        drop(segments);
        self.kick_committer(tail);
        Ok(())
    }

    /// Whether the active segment, which has no room for these entries, can be sealed while the next one is filled.
    fn can_leave(&self, tail: &Tail, entries: &[Entry<'_>]) -> bool {
        let is_free = !tail.turns.exclusive && !tail.turns.flushing && tail.sealing.is_none();
        let has_room_for_footer = tail.buffer.end() + FOOTER_RESERVE_BYTES <= tail.capacity_bytes;
        // The owner is asked for his part of a footer while nothing is locked.
        let is_simple = self.options.footer.is_none() && tail.appended.entries > 0;
        is_free
            && has_room_for_footer
            && is_simple
            && tail.next.is_some()
            && tail.failure.is_none()
            && tail.must_seal(entries)
    }

    /// Writes the last frames of a segment that was left, with its footer, and then says in the list that it is sealed.
    fn finish_seal<'a>(&'a self, mut tail: TailGuard<'a>, sealing: Sealing) -> TailGuard<'a> {
        let Sealing { segment, file, tally, durable, has_unsynced, image, batch } = sealing;
        tail.turns.flushing = true;
        self.group.announce_room(&tail.turns);
        drop(tail);

        let started = self.env.runtime.now();
        let outcome = self.carry(&*file, segment.path(), Some(&image), self.is_durable(), has_unsynced);
        self.metrics.write_latency.record(self.env.runtime.now().saturating_sub(started));

        let mut tail = self.tail();
        if let Err(cause) = outcome {
            self.fail(&mut tail, cause, batch, durable.end.into()..image.end);
            return self.answer(tail, batch);
        }
        let active = Arc::clone(&tail.active);
        if let Some(sealing) = &mut tail.sealing {
            sealing.durable = tally;
        }
        // Whatever becomes of the list: these are durable, and whoever was told so finds them from every process.
        self.publish(&tail);
        self.group.set_done(batch);
        let has_sleepers = tail.turns.take_sleepers(parity(batch));
        drop(tail);
        if has_sleepers {
            self.group.wake(parity(batch));
        }
        // A failure has stopped the set; whoever appends next is told.
        let listed = match self.sync_name(&active) {
            Ok(()) => self.list_sealed(self.list(), &segment, tally),
            Err(error) => {
                let mut tail = self.tail();
                let (batch, end) = (tail.turns.filling, tail.written.end.into());
                self.fail(&mut tail, error.clone(), batch, end..end);
                Err(error)
            }
        };
        if listed.is_ok() {
            self.trim(&segment, &*file, image.end);
            segment.let_descriptor_go();
        }
        self.answer(self.tail(), batch)
    }

    /// Says in the list that a segment is sealed and the next one is active, as it is in memory.
    fn list_sealed(&self, mut list: MutexGuard<'_, ListFile>, segment: &Segment, tally: Tally) -> Result<()> {
        {
            let mut tail = self.tail();
            segment.seal(tally);
            tail.sealing = None;
            let active = tail.active.number;
            tail.recent.forget_before(active);
        }
        self.save(&mut list, false)?;
        drop(list);
        self.publish(&self.tail());
        tracing::debug!(path = %segment.path().display(), entries = tally.entries, end = tally.end, "segment sealed");
        Ok(())
    }

    /// Returns when no segment is half sealed.
    fn finish_sealing(&self) {
        let mut tail = self.tail();
        while tail.sealing.is_some() && tail.failure.is_none() {
            tail = match tail.turns.flushing || tail.turns.exclusive {
                true => self.group.wait_for_room(tail),
                false => self.flush(tail, false),
            };
        }
        // Whoever appended meanwhile has seen that somebody flushes, and sleeps.
        if tail.buffer.pending_bytes() > 0 {
            self.kick_committer(tail);
        }
    }

    /// Makes the next segment before it is needed, if there is none.
    fn prepare_next(&self) -> Result<()> {
        let _next = self.next();
        let (number, used, unused, average) = {
            let tail = self.tail();
            if tail.next.is_some() || tail.failure.is_some() || tail.closed {
                return Ok(());
            }
            let (used, unused, average) = tail.space_facts();
            (tail.active.number + 1, used, unused, average)
        };
        self.space.prepare(used, unused, average)?;
        let Some(spare) = self.space.take_ready() else { return Ok(()) };
        let next = self.make_next(spare, number)?;
        // The number has not changed: whoever goes on in another segment holds the lock we have.
        self.tail().next = Some(next);
        Ok(())
    }

    fn make_next(&self, spare: Spare, number: u32) -> Result<NextSegment> {
        let spare_path = spare.path.clone();
        let made = NextSegment::make(&self.place, &self.options, self.set_id, self.epoch, number, spare);
        made.inspect_err(|_| self.space.remove(&spare_path))
    }

    /// Makes the name of a new segment durable.
    fn sync_name(&self, segment: &Segment) -> Result<()> {
        match self.is_durable() {
            true => directory::sync_parent(&self.env, segment.path()),
            false => Ok(()),
        }
    }

    fn next(&self) -> MutexGuard<'_, ()> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the segment that was made ready.
    fn discard_next(&self) {
        let _next = self.next();
        if let Some(next) = self.tail().next.take() {
            self.space.remove(next.path());
        }
    }

    /// Seals the active segment and goes on in a new one. Answers the sealed one's number.
    pub(crate) fn seal_active(&self) -> Result<u32> {
        self.roll(None)
    }

    /// Goes on in a new segment, if `entries` do not fit the active one or there are none.
    fn roll(&self, entries: Option<&[Entry<'_>]>) -> Result<u32> {
        let tail = self.enter_exclusive(self.tail())?;
        let number = tail.active.number;
        // Somebody else may have done it while we waited.
        if entries.is_some_and(|entries| !tail.must_seal(entries)) {
            self.let_go(tail);
            return Ok(number);
        }
        let needed = entries.map_or(0, |entries| tail.end_with(entries) - tail.buffer.end());
        let is_empty = tail.appended.entries == 0;
        drop(tail);
        let result = match entries {
            // A first batch that is larger than its segment: the file grows before it is written.
            Some(_) if is_empty => self.extend_active(needed),
            _ => self.seal_exclusively(needed),
        };
        if let Err(error) = &result {
            self.notice_full_disk(error);
        }
        let mut tail = self.tail();
        if let Err(error) = &result
            // Of these two nothing was written: the set goes on, and reclaiming gives space back.
            && !matches!(error, Error::NoSpace { .. } | Error::TooLarge { .. })
        {
            let (batch, end) = (tail.turns.filling, tail.written.end.into());
            self.fail(&mut tail, error.clone(), batch, end..end);
        }
        self.let_go(tail);
        result.map(|()| number)
    }

    /// Makes the active segment's file longer.
    fn extend_active(&self, needed_bytes: u64) -> Result<()> {
        let (file, active, end) = {
            let tail = self.tail();
            (Arc::clone(&tail.file), Arc::clone(&tail.active), tail.buffer.end())
        };
        let len = (end + needed_bytes + FOOTER_RESERVE_BYTES).next_multiple_of(PAGE_BYTES as u64);
        file.allocate(len)
            .and_then(|()| file.sync())
            .map_err(|error| Error::write("extend", active.path(), needed_bytes, error))?;
        self.tail().capacity_bytes = len;
        Ok(())
    }

    fn seal_exclusively(&self, needed_bytes: u64) -> Result<()> {
        let (old, file, tally) = {
            let tail = self.tail();
            (Arc::clone(&tail.active), Arc::clone(&tail.file), tail.appended)
        };
        let users_bytes = self.options.footer.as_ref().map_or(Vec::new(), |hook| hook(old.number));
        let footer_bytes = (users_bytes.len() + FOOTER_BYTES) as u64;
        if footer_bytes > self.options.body_limit_bytes.into() {
            let limit_bytes = self.options.body_limit_bytes.into();
            return Err(Error::TooLarge { size_bytes: footer_bytes, limit_bytes });
        }
        // Held until the new segment is the active one: before, another one of its number could be made.
        let held = self.next();
        let next = self.next_of(&held, needed_bytes)?;
        let new = Arc::clone(&next.segment);
        if let Err(error) = self.write_footer(&old, tally, &users_bytes) {
            self.space.remove(new.path());
            return Err(error);
        }
        let list = self.list();
        old.seal(tally);
        self.segments.write().unwrap_or_else(PoisonError::into_inner).insert(new.number, new);
        self.tail().begin(next, self.epoch);
        drop(held);
        self.list_sealed(list, &old, tally)?;
        self.trim(&old, &*file, old.identity()?.frame_end(tally.end.into(), footer_bytes as u32));
        old.let_descriptor_go();
        Ok(())
    }

    /// The segment that follows: the one that is ready, or another of which `needed_bytes` are for entries. Its name is
    /// durable.
    fn next_of(&self, _held: &MutexGuard<'_, ()>, needed_bytes: u64) -> Result<NextSegment> {
        let min_bytes = PAGE_BYTES as u64 + needed_bytes + FOOTER_RESERVE_BYTES;
        let (ready, number, used, average) = {
            let mut tail = self.tail();
            let (used, _, average) = tail.space_facts();
            (tail.next.take(), tail.active.number + 1, used, average)
        };
        let mut next = match ready {
            Some(next) if next.capacity_bytes >= min_bytes => next,
            too_small => {
                if let Some(next) = too_small {
                    self.space.remove(next.path());
                }
                self.make_next(self.space.take(used, min_bytes, average)?, number)?
            }
        };
        let named = match next.segment_to_name() {
            Some((segment, spare_path)) => {
                give_name(&self.place, &spare_path, &segment).inspect_err(|_| self.space.remove(&spare_path))
            }
            None => Ok(()),
        };
        // Where its name is not durable, nothing names it yet.
        named.and_then(|()| self.sync_name(&next.segment).inspect_err(|_| self.space.remove(next.path())))?;
        Ok(next)
    }

    fn write_footer(&self, old: &Segment, tally: Tally, users_bytes: &[u8]) -> Result<()> {
        let body_bytes = (FOOTER_BYTES + users_bytes.len()) as u32;
        let end = old.identity()?.frame_end(tally.end.into(), body_bytes);
        if end > self.tail().capacity_bytes {
            self.extend_active(end - u64::from(tally.end))?;
        }
        let released_bytes = old.entry(tally).released_bytes;
        let fixed = Footer { number: old.number, tally, released_bytes }.encode();
        let whole: Vec<u8> = fixed.iter().chain(users_bytes).copied().collect();
        let mut tail = self.tail();
        tail.put_footer(&whole);
        let tail = self.flush(tail, true);
        match &tail.failure {
            Some(failure) => Err(failure.cause.clone()),
            None => Ok(()),
        }
    }

    /// Gives back what a sealed segment did not use, if that is worth a change of the file.
    fn trim(&self, sealed: &Segment, file: &dyn File, end: u64) {
        if self.space.recycled_segments.get() > 0 {
            // It may be a file that readers in other processes have mapped in its former life: never cut those.
            return;
        }
        let used = end.next_multiple_of(PAGE_BYTES as u64);
        let trimmed = file.len().and_then(|len| match len - used.min(len) > (len / 8).max(64 << 10) {
            true if sealed.is_mapped() => file.release(used..len),
            true => file.set_len(used),
            false => Ok(()),
        });
        if let Err(error) = trimmed {
            tracing::warn!(path = %sealed.path().display(), %error, "could not trim a sealed segment");
        }
    }

    /// See `SegmentSet::reclaim`.
    pub(crate) fn reclaim(&self, numbers: &[u32]) -> Result<()> {
        self.finish_sealing();
        let mut list = self.list();
        {
            let tail = self.tail();
            if let Some(number) = numbers.iter().find(|number| tail.is_open(**number)) {
                let reason = format!("segment {number} is the active one; seal it first");
                return Err(tail.active.no_entry(0, reason));
            }
            // A full disk must not keep anybody from making room; after other failures nothing is written.
            match &tail.failure {
                Some(Failure { cause: Error::NoSpace { .. }, .. }) if !tail.closed => {}
                _ => self.check_usable(&tail)?,
            }
        }
        if numbers.is_empty() {
            return Ok(());
        }
        for number in numbers {
            let segment = self.segment(*number)?;
            if mutant::is(Mutant::ReclaimBeforeList) {
                self.space.remove(segment.path());
            }
        }
        // The list decides first: after an error nobody knows until the next open what it names, and what is there can still
        // be read.
        self.save_without(&mut list, numbers, false)?;
        let dropped: Vec<_> = {
            let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
            numbers.iter().filter_map(|number| segments.remove(number)).collect()
        };
        drop(list);
        let freed: u64 = dropped.iter().filter_map(|segment| Some(u64::from(segment.sealed()?.end))).sum();
        let (used, unused) = {
            let mut tail = self.tail();
            tail.sealed_bytes = tail.sealed_bytes.saturating_sub(freed);
            self.publish(&tail);
            (tail.used_bytes(), tail.unused_bytes())
        };
        self.metrics.reclaimed_segments.add(dropped.len() as u64);
        // On a full disk somebody else may need the space more.
        let keeps_files = self.options.spares && !self.disk_was_full.load(Ordering::Relaxed);
        for segment in dropped {
            let path = segment.path().to_path_buf();
            tracing::debug!(path = %path.display(), "segment reclaimed");
            // A reader that still holds the segment goes on reading the old file; it must not be written to.
            match Arc::try_unwrap(segment).ok().and_then(Segment::into_file) {
                Some(file) if keeps_files => self.space.recycle(&path, Some(file), used, unused),
                _ => self.space.remove(&path),
            }
        }
        if let Err(error) = self.env.disk.sync_dir(&self.dir) {
            // The list does not name them any more: the next open removes what comes back.
            tracing::warn!(dir = %self.dir.display(), %error, "could not sync the directory after a removal");
        }
        Ok(())
    }

    /// Makes everything durable, leaves a witness of it, gives spare space back and lets the lock go.
    pub(crate) fn close(&self) -> Result<()> {
        let tail = self.tail();
        if tail.closed {
            return Ok(());
        }
        let result = self.enter_exclusive(tail).and_then(|mut tail| {
            tail.closed = true;
            drop(tail);
            let mut list = self.list();
            let saved = self.save(&mut list, true).and_then(|()| list.pair.close());
            drop(list);
            self.let_go(self.tail());
            saved
        });
        self.tail().closed = true;
        self.discard_next();
        self.space.discard();
        live::withdraw(&*self.live);
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        result
    }

    // ---- what readers ask ----

    /// The segment with this number.
    pub(crate) fn segment(&self, number: u32) -> Result<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments
            .get(&number)
            .cloned()
            .ok_or_else(|| Error::Gone { path: self.dir.join(segment_name(number)) })
    }

    /// Calls `each` with every place whose segment is there, under one lock: nothing in it may wait.
    pub(crate) fn visit<T>(&self, places: impl Iterator<Item = (u32, T)>, mut each: impl FnMut(&Segment, T)) {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        for (number, place) in places {
            if let Some(segment) = segments.get(&number) {
                each(segment, place);
            }
        }
    }

    /// Position behind the last entry of the segment, also if it is not durable yet.
    pub(crate) fn appended_end(&self, segment: &Segment) -> u64 {
        match segment.sealed() {
            Some(tally) => tally.end.into(),
            None => {
                let tail = self.tail();
                // It may have been sealed meanwhile.
                segment.sealed().copied().unwrap_or_else(|| tail.appended_in(segment)).end.into()
            }
        }
    }

    /// Every segment with what lies in it, oldest first.
    pub(crate) fn tallies(&self) -> Vec<(Arc<Segment>, Tally)> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let tail = self.tail();
        segments
            .values()
            .map(|segment| match segment.sealed() {
                Some(tally) => (Arc::clone(segment), *tally),
                None => (Arc::clone(segment), tail.appended_in(segment)),
            })
            .collect()
    }

    pub(crate) fn facts(&self) -> Facts {
        let tail = self.tail();
        let (active, durable) = tail.listed_as_active();
        Facts {
            active: active.number,
            durable_end: durable.end,
            used_bytes: tail.used_bytes(),
            unused_bytes: tail.unused_bytes(),
            next_bytes: tail.next.as_ref().map_or(0, |next| next.capacity_bytes),
            memory_bytes: (tail.recent.memory_bytes() + tail.buffer.memory_bytes()) as u64,
            access: tail.file.access(),
            epoch: self.epoch,
            appended_entries: tail.counted.0,
            appended_bytes: tail.counted.1,
            is_stopped: tail.failure.is_some(),
        }
    }
}

/// Facts for statistics.
pub(crate) struct Facts {
    pub(crate) active: u32,
    pub(crate) durable_end: u32,
    pub(crate) used_bytes: u64,
    pub(crate) unused_bytes: u64,
    pub(crate) next_bytes: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) access: Access,
    pub(crate) epoch: u32,
    pub(crate) appended_entries: u64,
    pub(crate) appended_bytes: u64,
    pub(crate) is_stopped: bool,
}

impl WritePath for Appender {
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
        self.flush(tail, true)
    }

    /// The background committer: carries on as long as somebody waits, and writes what was buffered long enough.
    fn commit_step(&self) -> Step {
        let mut tail = self.tail();
        (tail.turns.committer_kicked, tail.committer_pauses) = (false, false);
        while !tail.turns.flushing
            && !tail.turns.exclusive
            && tail.failure.is_none()
            && (tail.buffer.pending_bytes() > 0 || tail.sealing.is_some())
        {
            if tail.sealing.is_some() {
                tail = self.flush(tail, false);
                continue;
            }
            if tail.turns.filling_waiters > 0 {
                tail = self.flush(self.gather(tail, GATHER_PAUSE), true);
                continue;
            }
            let age = tail
                .buffered_since
                .map_or(Duration::ZERO, |since| self.env.runtime.now().saturating_sub(since));
            if tail.buffer.pending_bytes() < BUFFERED_BYTES_MAX && age < BUFFERED_FOR_MAX {
                tail.committer_pauses = true;
                return Step::After(BUFFERED_FOR_MAX - age);
            }
            tail = self.flush(tail, false);
        }
        Step::Idle
    }

    fn prepare_step(&self) -> Step {
        let (is_stale, wants_next) = {
            let tail = self.tail();
            (self.is_list_stale(&tail), self.wants_next(&tail))
        };
        if is_stale {
            // A failure has stopped the set; whoever appends next is told.
            let _told = self.refresh_list();
        }
        if wants_next && let Err(error) = self.prepare_next() {
            // Not fatal: the next segment is then made when it is needed, or fails there with its own message.
            tracing::warn!(dir = %self.dir.display(), %error, "could not make the next segment ready");
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
        self.buffer.pending_bytes()
    }

    fn has_undurable(&self) -> bool {
        self.buffer.pending_bytes() > 0 || self.durable != self.written || self.sealing.is_some()
    }

    fn stopped_by(&self) -> Option<&Error> {
        self.failure.as_ref().map(|failure| &failure.cause)
    }

    fn is_closed(&self) -> bool {
        self.closed
    }

    /// What nobody waits for is written when the committer comes by itself.
    fn is_worth_a_kick(&self) -> bool {
        let is_urgent = self.turns.filling_waiters > 0
            || self.buffer.pending_bytes() >= BUFFERED_BYTES_MAX
            || self.sealing.is_some();
        is_urgent || !self.committer_pauses
    }
}

impl FrameSource for Appender {
    fn segment_from(&self, number: u32) -> Result<Option<Arc<Segment>>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        Ok(segments.range(number..).next().map(|(_, segment)| Arc::clone(segment)))
    }

    fn shown_end(&self, segment: &Segment) -> Result<u64> {
        let tail = self.tail();
        Ok(segment.sealed().copied().unwrap_or_else(|| tail.durable_in(segment)).end.into())
    }

    fn readable_end(&self, segment: &Segment, _wanted: u64) -> Result<u64> {
        Ok(self.appended_end(segment))
    }

    fn window(&self, segment: &Segment, range: Range<u64>) -> Result<Window> {
        if segment.sealed().is_none() {
            let tail = self.tail();
            if tail.failure.is_none() {
                if tail.active.number == segment.number
                    && let Some(bytes) = tail.buffer.bytes_from(range.clone())
                {
                    return Ok(Window::copied(bytes.into()));
                }
                if let Some(image) = tail.recent.find(segment.number, range.start) {
                    return Ok(Window::written(image, range.start..range.end.min(image.end)));
                }
            }
        }
        segment.read_window(range)
    }
}

impl std::fmt::Debug for Appender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Appender").field("dir", &self.dir).field("set_id", &self.set_id).finish()
    }
}

impl Tail {
    /// The write path at the end of a segment.
    fn on(active: &Arc<Segment>, tally: Tally, epoch: u32, recent: RecentImages) -> Result<Tail> {
        let open = active.open()?;
        let capacity_bytes = open.file.len().map_err(|error| Error::io("measure", active.path(), error))?;
        let end = u64::from(tally.end);
        let page = end / PAGE_BYTES as u64 * PAGE_BYTES as u64;
        // What is there is written again with the next frames, unchanged.
        let buffer = match page < end {
            true => OpenBuffer::new(end, &active.read_window(page..end)?),
            false => OpenBuffer::new(end, &[]),
        };
        active.settle_before(end);
        let frame_epoch = u16::try_from(epoch.saturating_sub(open.header.epoch)).unwrap_or(u16::MAX);
        Ok(Tail {
            active: Arc::clone(active),
            file: Arc::clone(&open.file),
            identity: open.identity,
            frame_epoch,
            capacity_bytes,
            next: None,
            sealing: None,
            sealed_bytes: 0,
            buffer,
            appended: tally,
            written: tally,
            durable: tally,
            counted: (0, 0),
            turns: Turns::default(),
            buffered_since: None,
            committer_pauses: false,
            recent,
            average_write_bytes: 0,
            failure: None,
            closed: false,
        })
    }

    /// Goes on in a new segment; nothing may be in the buffer.
    fn begin(&mut self, next: NextSegment, epoch: u32) {
        let NextSegment { segment, open, capacity_bytes, .. } = next;
        self.sealed_bytes += u64::from(self.appended.end);
        self.active = segment;
        self.file = Arc::clone(&open.file);
        self.identity = open.identity;
        self.frame_epoch = u16::try_from(epoch.saturating_sub(open.header.epoch)).unwrap_or(u16::MAX);
        self.capacity_bytes = capacity_bytes;
        self.buffer.go_to(PAGE_BYTES as u64);
        let tally = Tally::of_empty();
        (self.appended, self.written, self.durable) = (tally, tally, tally);
    }

    /// Ends the active segment with a footer, takes what is to be written of it, and goes on in the next one.
    fn leave_for(&mut self, next: NextSegment, epoch: u32) {
        let (segment, file, tally) = (Arc::clone(&self.active), Arc::clone(&self.file), self.appended);
        let released_bytes = segment.entry(tally).released_bytes;
        self.put_footer(&Footer { number: segment.number, tally, released_bytes }.encode());
        let (durable, has_unsynced) = (self.durable, self.durable != self.written);
        let image = self.take_buffer();
        let batch = self.turns.filling - 1;
        self.sealing = Some(Sealing { segment, file, tally, durable, has_unsynced, image, batch });
        self.begin(next, epoch);
    }

    fn put_footer(&mut self, body: &[u8]) {
        let header = FrameHeader {
            more: false,
            witness: false,
            footer: true,
            kind: 0,
            epoch: self.frame_epoch,
            body_bytes: body.len() as u32,
        };
        let identity = self.identity;
        self.buffer.put(&identity, &header, piece_checksums(body), &[body]);
    }

    /// The segment that the list has as the active one, and what is durable of it.
    fn listed_as_active(&self) -> (&Segment, Tally) {
        match &self.sealing {
            Some(sealing) => (&sealing.segment, sealing.durable),
            None => (&self.active, self.durable),
        }
    }

    /// Whether the segment with this number is active, or not sealed yet.
    fn is_open(&self, number: u32) -> bool {
        self.active.number == number
            || self.sealing.as_ref().is_some_and(|sealing| sealing.segment.number == number)
    }

    /// What was appended to a segment that is not sealed.
    fn appended_in(&self, segment: &Segment) -> Tally {
        match &self.sealing {
            Some(sealing) if sealing.segment.number == segment.number => sealing.tally,
            _ if self.active.number == segment.number => self.appended,
            // Between being made and being used.
            _ => Tally::of_empty(),
        }
    }

    /// What is durable of a segment that is not sealed.
    fn durable_in(&self, segment: &Segment) -> Tally {
        match self.listed_as_active() {
            (listed, durable) if listed.number == segment.number => durable,
            _ if self.active.number == segment.number => self.durable,
            _ => Tally::of_empty(),
        }
    }

    /// Where the last of these entries would end.
    fn end_with(&self, entries: &[Entry<'_>]) -> u64 {
        end_of(self.buffer.end(), entries, self.identity.layout)
    }

    /// Whether these entries, and a footer behind them, do not go into the active segment any more.
    fn must_seal(&self, entries: &[Entry<'_>]) -> bool {
        self.end_with(entries) + FOOTER_RESERVE_BYTES > self.capacity_bytes
    }

    fn put(&mut self, entry: &Entry<'_>, more: bool) -> Pointer {
        let position = self.buffer.end();
        let body_bytes = entry.body_bytes();
        let header = FrameHeader {
            more,
            witness: false,
            footer: false,
            kind: entry.kind,
            epoch: self.frame_epoch,
            body_bytes,
        };
        self.buffer.put(&self.identity, &header, entry.checksums(), &entry.body);
        self.appended = self.appended.with(&self.identity, position, body_bytes, entry.checksums());
        self.counted.0 += 1;
        self.counted.1 += u64::from(body_bytes);
        Pointer::new(self.active.number, position as u32, body_bytes, self.identity.layout)
    }

    /// Takes the open buffer to be written; its first frame is a witness if everything before it is durable.
    fn take_buffer(&mut self) -> Arc<Image> {
        self.turns.next_batch();
        self.buffered_since = None;
        let is_witness = self.durable == self.written || mutant::is(Mutant::WitnessTooEarly);
        let spare = self.recent.take_spare();
        let (identity, segment) = (self.identity, self.active.number);
        let image = Arc::new(self.buffer.take(&identity, segment, is_witness, spare));
        self.recent.push(Arc::clone(&image));
        // One buffer is written at a time, so what lies before the oldest in memory was written.
        if let Some(start) = self.recent.start_of(self.active.number) {
            self.active.settle_before(start);
        }
        image
    }

    fn used_bytes(&self) -> u64 {
        self.sealed_bytes + u64::from(self.appended.end)
    }

    fn unused_bytes(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.buffer.end())
    }

    /// Bytes in use, bytes of the active segment not used yet, average bytes of a write.
    fn space_facts(&self) -> (u64, u64, u64) {
        (self.used_bytes(), self.unused_bytes(), self.average_write_bytes)
    }

    /// Whether the active segment is used up far enough that the next one will soon be needed.
    fn wants_next_look(&self) -> bool {
        self.unused_bytes() < self.capacity_bytes / 2 && self.sealed_bytes > 0 && self.failure.is_none()
    }
}

/// Where entries end that begin at a position.
fn end_of(position: u64, entries: &[Entry<'_>], layout: FrameLayout) -> u64 {
    entries.iter().fold(position, |end, entry| layout.frame_end(end, entry.body_bytes()))
}

impl NextSegment {
    /// Makes a spare the segment with this number, but for its name: writes its header.
    fn make(
        place: &SegmentPlace,
        options: &SetOptions,
        set_id: StreamId,
        epoch: u32,
        number: u32,
        spare: Spare,
    ) -> Result<NextSegment> {
        let header = FileHeader {
            kind: FileKind::SetSegment,
            checksum: Checksum::Crc32c,
            compression: Compression::None,
            block_bytes: PAGE_BYTES as u32,
            stream_id: set_id,
            segment_id: place.env.runtime.random(),
            base_index: number.into(),
            epoch,
            in_flight_bytes: options.in_flight_bytes as u32,
            record_limit_bytes: options.body_limit_bytes,
            is_sparse: false,
            frame_layout: options.frame_layout,
        };
        let mut page = AlignedBuf::zeroed(PAGE_BYTES);
        header.encode(&mut page);
        let how = if place.is_cache { WriteSync::Later } else { WriteSync::Durable };
        spare
            .file
            .write_all_at(&page, 0, how)
            .map_err(|error| Error::write("write the header of", &spare.path, PAGE_BYTES as u64, error))?;
        let segment = Arc::new(Segment::created(place, spare.file, header));
        let open = segment.open()?;
        Ok(NextSegment { segment, open, capacity_bytes: spare.len, spare_path: Some(spare.path) })
    }

    /// The segment, and what its file is called now, if it has not its name: to be given once.
    fn segment_to_name(&mut self) -> Option<(Arc<Segment>, PathBuf)> {
        Some((Arc::clone(&self.segment), self.spare_path.take()?))
    }

    /// What its file is called.
    fn path(&self) -> &Path {
        self.spare_path.as_deref().unwrap_or(self.segment.path())
    }
}

/// Gives the file of a new segment its name; that it has it is not durable yet.
fn give_name(place: &SegmentPlace, spare_path: &Path, segment: &Segment) -> Result<()> {
    let renamed = place.env.disk.rename(spare_path, segment.path());
    renamed.map_err(|error| Error::write("rename a spare to", segment.path(), 4096, error))
}

/// Makes a spare the segment with this number: writes its header, then gives it its name.
pub(crate) fn create_segment(
    place: &SegmentPlace,
    options: &SetOptions,
    set_id: StreamId,
    epoch: u32,
    number: u32,
    spare: Spare,
) -> Result<Arc<Segment>> {
    let spare_path = spare.path.clone();
    let segment = NextSegment::make(place, options, set_id, epoch, number, spare)?.segment;
    give_name(place, &spare_path, &segment)?;
    if !place.is_cache {
        directory::sync_parent(&place.env, segment.path()).inspect_err(|_| {
            // It has its name, and nothing names it.
            let _left_to_the_next_open = place.env.disk.remove(segment.path());
        })?;
    }
    Ok(segment)
}
