//! The store, open for writing.
//!
//! The way of a set: [`KvStore::put`] → [`KvStore::commit`] (the frame into the log and a note of it, under one lock; then
//! the group commit of the log, without it) → [`recent`](crate::recent) (its address into the index). Of a get: [`KvStore::get_bytes`] →
//! [`SharedTable::find`](crate::lookup::SharedTable::find).
//!
//! **Invariants.** The order of commands is the order of their frames, and of their changes of the index. Lock order:
//! maintenance, writer, table; none of the last two is held during a sync.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lsfs::codec::Pointer;
use lsfs::io::{Background, Step};
use lsfs::{Durability, Entry, Env, SegmentSet};
use smallvec::SmallVec;

use crate::backup::refuse_unfinished;
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::feed::{Feed, FeedLog, FeedStart, Position};
use crate::index::KeyHasher;
use crate::lookup::{Damaged, Hit, SharedTable, bad_record, value_of};
use crate::maintenance::Maintenance;
use crate::options::{Options, SEGMENT_BYTES_MAX};
use crate::order::{Order, SetFrame};
use crate::recent::{Recent, Replaces};
use crate::record::{
    Command, EncodedRecord, KEY_BYTES_MAX, Record, VALUE_BYTES_MAX, encode_original, encode_remove,
    encode_set, is_remove,
};
use crate::tail::Unlisted;

/// A key-value store in a directory, open for writing.
///
/// Cloning is cheap; all clones are one store, and may be used from many threads. One process has a store open for
/// writing. When the last clone goes away the store is closed as by [`KvStore::close`], with errors logged.
///
/// ```
/// # fn main() -> kvs::Result<()> {
/// # let temporary = tempfile::tempdir().unwrap();
/// # let dir = temporary.path().join("store");
/// use kvs::KvStore;
///
/// let store = KvStore::open(&dir)?;
/// store.set("key".to_string(), "value".to_string())?; // on the medium when it returns
/// assert_eq!(store.get("key".to_string())?, Some("value".to_string()));
/// store.put(b"\xff", [0; 3])?; // any bytes
/// store.remove("key".to_string())?;
/// assert_eq!(store.get("key".to_string())?, None);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct KvStore {
    owner: Arc<Owner>,
    durability: Durability,
}

/// Closes the store when the last handle goes.
#[derive(Debug)]
pub(crate) struct Owner {
    inner: Arc<Inner>,
    background: Option<Box<dyn Background>>,
}

impl Owner {
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Waits for the step under way: it may still write.
        drop(self.background.take());
        if let Err(error) = self.inner.close() {
            tracing::warn!(dir = %self.inner.dir.display(), %error, "the store was not closed cleanly");
        }
    }
}

/// What the clones share.
pub(crate) struct Inner {
    pub(crate) dir: PathBuf,
    pub(crate) options: Options,
    pub(crate) log: SegmentSet,
    pub(crate) table: SharedTable,
    pub(crate) hasher: KeyHasher,
    writer: Mutex<Writer>,
    pub(crate) maintenance: Mutex<Maintenance>,
    /// Segments that are not needed any more, as the durable log says: to be reclaimed in the next call of the owner.
    pub(crate) reclaimable: Mutex<Vec<u32>>,
    pub(crate) has_reclaimable: AtomicBool,
    /// The most that was live when that was looked at.
    pub(crate) most_live_bytes: AtomicU64,
    /// Commands that the open has read are not in the index yet.
    pub(crate) has_unsettled: AtomicBool,
    /// Bytes written since maintenance was last thought of.
    unwatched_bytes: AtomicU64,
    /// What scans and snapshots read.
    pub(crate) order: Order,
    /// A background step found its own caller inside, and left.
    pub(crate) is_postponed: AtomicBool,
    /// How often the index was made anew from the log since the open, that included.
    pub(crate) rebuilds: AtomicU64,
    pub(crate) report: OpenReport,
}

thread_local! {
    static INSIDE: Cell<u32> = const { Cell::new(0) };
}

/// A call of this thread is under way that may hold locks of a store.
///
/// A simulated runtime has no threads: what the engine kicks may run a background step of ours on the stack of such a
/// call. That step must leave ([`Inside::is_occupied`]) and come again later.
pub(crate) struct Inside(());

impl Inside {
    pub(crate) fn enter() -> Inside {
        INSIDE.set(INSIDE.get() + 1);
        Inside(())
    }

    pub(crate) fn is_occupied() -> bool {
        INSIDE.get() > 0
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(INSIDE.get() - 1);
    }
}

/// What an open found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Commands that were read from the log.
    pub replayed: u64,
    /// Whether the whole log was read, since there was no checkpoint that could be used.
    pub rebuilt: bool,
    /// Ranges of the log that do not verify and were left out, as segment and positions; only with
    /// [`Options::repair`].
    pub left_out: Vec<(u32, std::ops::Range<u64>)>,
}

/// What the one who writes has in hand.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Segment and position where the next frame goes, as far as is known: no frame of the index lies behind it.
    pub(crate) log_end: (u32, u32),
    /// Keys that have a value.
    pub(crate) keys: u64,
    /// Bytes of frames that the last checkpoint does not cover, and how many these are.
    pub(crate) tail_bytes: u64,
    pub(crate) tail_commands: u64,
    /// Removes to which the index points, by segment.
    pub(crate) removes: HashMap<u32, Removes>,
    /// What the index has not yet.
    pub(crate) recent: Recent,
    /// What the file `tail` has not yet.
    pub(crate) unlisted: Unlisted,
}

/// Removes in a segment to which the index points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removes {
    pub(crate) count: u32,
    pub(crate) bytes: u64,
}

/// What [`KvStore::verify`] found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Commands in the log.
    pub commands: u64,
    /// Of these, commands that the index points to: values, and removes that still hide something.
    pub live: u64,
    /// What does not verify.
    pub damage: Vec<Error>,
}

/// What became of a [`KvStore::compare_and_swap`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The key had the expected value and has the new one.
    Done,
    /// The key has another value than expected; nothing was changed.
    Differs {
        /// The key's value.
        current: Option<Vec<u8>>,
    },
}

/// What a store holds and has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Keys that have a value.
    pub keys: u64,
    /// Segment files of the log.
    pub segments: u64,
    /// Bytes of the log in use.
    pub log_bytes: u64,
    /// Of these, bytes that no key needs.
    pub stale_bytes: u64,
    /// Bytes of the log made ready for what comes.
    pub ready_bytes: u64,
    /// Pages of the index.
    pub index_pages: u64,
    /// Bytes of memory the index takes.
    pub index_memory_bytes: u64,
    /// Bytes of the log written since the last checkpoint: what an open has to read, as far as it is not listed.
    pub tail_bytes: u64,
    /// Bytes written to the log since the open, whole pages counted.
    pub written_bytes: u64,
    /// Zeros written ahead since the open, so that what follows need not change the file system's metadata.
    pub zero_bytes: u64,
    /// Durable writes since the open.
    pub syncs: u64,
    /// Segments whose space was given back since the open.
    pub reclaimed_segments: u64,
    /// Sorted runs of keys.
    pub sorted_runs: u64,
    /// Bytes of the log of which there is no sorted run: what the first scan has to read.
    pub unsorted_bytes: u64,
    /// How often the index was made anew from the log since the open, that included: because it was damaged, or because
    /// there was no checkpoint.
    pub index_rebuilds: u64,
    /// Commands that do not verify, so that the keys they may be for cannot be read until they are set or removed; more
    /// damage may be found when it is met.
    pub lost_commands: u64,
    /// Whether a failed write has stopped the log: nothing is written until the store is opened again.
    pub is_stopped: bool,
}

/// A command on its way.
struct Prepared<'a> {
    key: &'a [u8],
    hash: u64,
    record: EncodedRecord<'a>,
}

impl<'a> Prepared<'a> {
    /// With what it replaces.
    fn replacing(&self, replaces: Replaces<&'a [u8]>) -> Work<'a, '_> {
        (self, replaces)
    }
}

/// A command that is carried out.
type Work<'a, 'b> = (&'b Prepared<'a>, Replaces<&'a [u8]>);

/// Says of what keys are now whether they are changed.
type Condition<'a> = &'a mut dyn FnMut(&[Option<Hit>]) -> Result<bool>;

impl KvStore {
    /// Opens or creates the store in a directory, with the default [`Options`].
    ///
    /// # Errors
    /// [`Error::Engine`] with [`lsfs::Error::Locked`] if another writer has it open; [`Error::NotAStore`] if the
    /// directory holds something else; an error that [is corruption](Error::is_corruption) if what was durable no longer
    /// verifies.
    pub fn open(path: impl Into<PathBuf>) -> Result<KvStore> {
        KvStore::open_with(path, Options::default())
    }

    /// Opens or creates a store.
    ///
    /// # Errors
    /// As for [`KvStore::open`]; [`lsfs::Error::InvalidOption`] for an impossible option.
    pub fn open_with(path: impl Into<PathBuf>, options: Options) -> Result<KvStore> {
        let path = path.into();
        refuse_unfinished(&options.env, &path)?;
        KvStore::open_to_fill(path, options)
    }

    /// Opens a store also if it is not finished.
    pub(crate) fn open_to_fill(path: impl Into<PathBuf>, options: Options) -> Result<KvStore> {
        let durability = options.durability;
        let inner = Arc::new(Inner::open(path.into(), options)?);
        let background = inner.start_background()?;
        Ok(KvStore { owner: Arc::new(Owner { inner, background }), durability })
    }

    fn inner(&self) -> &Inner {
        &self.owner.inner
    }

    pub(crate) fn env(&self) -> &Env {
        &self.inner().options.env
    }

    /// Sets the key of a frame of another store, whose value is taken as it is stored there.
    pub(crate) fn put_frame(&self, frame: &SetFrame<'_>) -> Result<()> {
        let key = frame.key;
        let record = encode_original(frame.head.kind, frame.body);
        let change = Prepared { key, hash: self.inner().hasher.hash(key), record };
        self.commit(std::slice::from_ref(&change), None)?;
        Ok(())
    }

    pub(crate) fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    /// A handle on the same store whose writes return at another moment.
    #[must_use]
    pub fn with_durability(&self, durability: Durability) -> KvStore {
        KvStore { owner: Arc::clone(&self.owner), durability }
    }

    /// Sets a key to a value.
    ///
    /// # Errors
    /// As for [`KvStore::put`].
    pub fn set(&self, key: String, value: String) -> Result<()> {
        self.put(key, value)
    }

    /// The value of a key; `None` if it is not there.
    ///
    /// # Errors
    /// As for [`KvStore::get_bytes`]; [`Error::NotUtf8`] if the value is not a string.
    pub fn get(&self, key: String) -> Result<Option<String>> {
        let value = self.get_bytes(&key)?;
        string_of(key, value)
    }

    /// Removes a key.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`] if it is not there; else as for [`KvStore::put`].
    pub fn remove(&self, key: String) -> Result<()> {
        if self.delete(key)? { Ok(()) } else { Err(Error::KeyNotFound) }
    }

    /// Sets a key to a value; with [`Durability::Sync`] it is on the medium when this returns.
    ///
    /// # Errors
    /// [`Error::TooLarge`], and [`lsfs::Error::NoSpace`] when the log cannot grow, change nothing. After any other error
    /// the key has its old value or the new one once the store is opened again; until then it cannot be written.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        let change = self.inner().prepare(key.as_ref(), Some(value.as_ref()))?;
        self.commit(std::slice::from_ref(&change), None)?;
        Ok(())
    }

    /// The value of a key; `None` if it is not there.
    ///
    /// # Errors
    /// An error that [is corruption](Error::is_corruption) if the value, or a frame that may be the key's, does not
    /// verify.
    pub fn get_bytes(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        let mut value = Vec::new();
        Ok(self.get_into(key, &mut value)?.then_some(value))
    }

    /// Makes `value` the value of a key; `false` if it is not there, and then `value` holds anything.
    ///
    /// As [`KvStore::get_bytes`], without an allocation where the buffer has room for key and value.
    ///
    /// # Errors
    /// As for [`KvStore::get_bytes`].
    pub fn get_into(&self, key: impl AsRef<[u8]>, value: &mut Vec<u8>) -> Result<bool> {
        let (key, inner) = (key.as_ref(), self.inner());
        inner.healing(|| inner.table.get(&inner.log, key, inner.hasher.hash(key), value))
    }

    /// The values of several keys, in their order; not of one moment.
    ///
    /// # Errors
    /// As for [`KvStore::get_bytes`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Vec<u8>>>> {
        keys.iter().map(|key| self.get_bytes(key)).collect()
    }

    /// Whether a key has a value.
    ///
    /// # Errors
    /// As for [`KvStore::get_bytes`].
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        let (key, inner) = (key.as_ref(), self.inner());
        let hit = inner.healing(|| inner.find(key, inner.hasher.hash(key), Damaged::Fail))?;
        Ok(hit.is_some_and(|hit| !hit.is_remove()))
    }

    /// Removes a key; answers whether it was there, or may have been, if the frame that would say it does not verify.
    ///
    /// # Errors
    /// As for [`KvStore::put`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        let change = self.inner().prepare(key.as_ref(), None)?;
        let written = self.commit(std::slice::from_ref(&change), None)?;
        Ok(written > 0)
    }

    /// Carries out a batch as one: after a crash all of it is there, or nothing.
    ///
    /// # Errors
    /// As for [`KvStore::put`]; [`Error::TooLarge`] also if the batch has more than 64 MiB.
    pub fn write(&self, batch: &Batch) -> Result<()> {
        let mut last = HashMap::with_capacity(batch.len());
        for (at, change) in batch.changes.iter().enumerate() {
            last.insert(&change.key[..], at);
        }
        let mut prepared = Vec::with_capacity(last.len());
        for (at, change) in batch.changes.iter().enumerate() {
            if last[&change.key[..]] == at {
                prepared.push(self.inner().prepare(&change.key, change.value.as_deref())?);
            }
        }
        let size_bytes: u64 = prepared.iter().map(|change| change.record.body_bytes() as u64).sum();
        if prepared.len() > 1 && size_bytes > SEGMENT_BYTES_MAX {
            return Err(Error::TooLarge { what: "batch", size_bytes, limit_bytes: SEGMENT_BYTES_MAX });
        }
        self.commit(&prepared, None)?;
        Ok(())
    }

    /// Sets a key to `new` (`None`: removes it) if its value is `expected` (`None`: if it is not there).
    ///
    /// # Errors
    /// As for [`KvStore::put`] and [`KvStore::get_bytes`].
    pub fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<Swap> {
        let change = self.inner().prepare(key.as_ref(), new)?;
        let mut outcome = Swap::Done;
        let mut is_as_expected = |hits: &[Option<Hit>]| {
            let read = |hit: &Hit| value_of(&self.inner().log.read(hit.head.pointer)?);
            let current = hits[0].as_ref().map_or(Ok(None), read)?;
            let is_expected = current.as_deref() == expected;
            if !is_expected {
                outcome = Swap::Differs { current };
            }
            Ok(is_expected)
        };
        self.commit(std::slice::from_ref(&change), Some(&mut is_as_expected))?;
        Ok(outcome)
    }

    /// Returns when everything written before the call is on the medium.
    ///
    /// # Errors
    /// As for [`KvStore::put`].
    pub fn sync(&self) -> Result<()> {
        Ok(self.inner().log.sync()?)
    }

    /// Makes a checkpoint: the next open reads only what is written after it.
    ///
    /// # Errors
    /// An I/O error, or a full disk. The store goes on.
    pub fn checkpoint(&self) -> Result<()> {
        self.inner().checkpoint()
    }

    /// Makes a checkpoint if so much was written since the last one that it is worth it; answers whether. For programs
    /// that work long without a background, which does the same.
    ///
    /// # Errors
    /// As for [`KvStore::checkpoint`].
    pub fn checkpoint_if_due(&self) -> Result<bool> {
        let is_due = self.inner().checkpoint_is_due();
        if is_due {
            self.inner().checkpoint()?;
        }
        Ok(is_due)
    }

    /// Gives back the space of what no key needs any more. `progress` is called behind each segment with how many were
    /// compacted; `false` from it ends the work.
    ///
    /// # Errors
    /// As for [`KvStore::put`]. What was compacted before is kept.
    pub fn compact(&self, progress: impl FnMut(u64) -> bool) -> Result<()> {
        self.inner().compact_all(progress)
    }

    /// Writes all keys and values as they are now as lines of JSON, which [`JsonLines`](crate::JsonLines) reads, in the
    /// order of the keys; answers how many.
    ///
    /// # Errors
    /// As for [`KvStore::snapshot`] and [`KvStore::get_bytes`], and errors of `target`.
    pub fn export(&self, target: impl Write) -> Result<u64> {
        self.snapshot()?.export(target)
    }

    /// The place in the log behind everything that is durable now.
    ///
    /// # Errors
    /// An I/O error.
    pub fn position(&self) -> Result<Position> {
        FeedLog::Writer(self.inner().log.clone()).position()
    }

    /// The changes from a place on, in the order in which they were made.
    ///
    /// # Errors
    /// [`Error::PositionGone`] if compaction has given them back, [`Error::WrongPosition`] for a position of another
    /// store.
    pub fn changes(&self, from: FeedStart) -> Result<Feed> {
        let (log, runtime) = (self.inner().log.clone(), Arc::clone(&self.inner().options.env.runtime));
        Feed::new(FeedLog::Writer(log), runtime, from)
    }

    /// Reads the whole log and the whole index and compares them, and reads the sorted runs. Maintenance waits meanwhile. While others write, each is
    /// checked, but they are not compared.
    ///
    /// # Errors
    /// I/O errors; damage is in the report.
    pub fn verify(&self) -> Result<VerifyReport> {
        let _inside = Inside::enter();
        // Frames that compaction moves would be met twice.
        let _maintenance = self.inner().maintenance();
        let appended_entries = || self.inner().log.stats().appended_entries;
        let before = appended_entries();
        // What is appended behind this is not read, but in the index.
        self.sync()?;
        let (mut report, mut damage) = (VerifyReport::default(), Vec::new());
        let each = |entry: &Entry, record: &Record<'_>, address: Option<u64>| {
            report.commands += 1;
            report.live += u64::from(address.is_some());
            if let (Some(_), Command::Set(value)) = (address, record.command) {
                value.to_vec().map_err(|fault| bad_record(entry.pointer, fault))?;
            }
            Ok(())
        };
        self.inner().for_each_frame(each, |error| {
            damage.push(error);
            Ok(())
        })?;
        let slots = self.inner().table.write().index.count_slots(|error| damage.push(error))?;
        if damage.is_empty() && slots != report.live && appended_entries() == before {
            let reason = format!("it has {slots} addresses, the log has frames for {}", report.live);
            damage.push(self.inner().table.read().index.damaged(reason));
        }
        self.inner().verify_runs(|error| damage.push(error))?;
        report.damage = damage;
        Ok(report)
    }

    /// What the store holds and has done. The first call after an open may have to put the commands behind the last
    /// checkpoint into the index; if that fails, which is logged, they are not counted.
    pub fn stats(&self) -> Stats {
        let inner = self.inner();
        if let Err(error) = inner.healing(|| inner.settle_whole()) {
            tracing::warn!(dir = %inner.dir.display(), %error, "not everything is counted");
        }
        let (log, segments) = (inner.log.stats(), inner.log.segments());
        let (sorted_runs, unsorted_bytes) = inner.order_stats();
        let (index, lost_commands) = {
            let table = inner.table.read();
            (table.index.stats(), table.lost.spots().len() as u64)
        };
        let writer = inner.writer();
        let log_bytes = segments.iter().map(|segment| segment.total_bytes).sum();
        let live_bytes: u64 = segments.iter().map(|segment| segment.live_bytes).sum();
        Stats {
            keys: writer.keys,
            segments: log.segments,
            log_bytes,
            stale_bytes: log_bytes - live_bytes,
            ready_bytes: log.ready_bytes,
            index_pages: index.pages as u64,
            index_memory_bytes: index.memory_bytes as u64,
            tail_bytes: writer.tail_bytes,
            written_bytes: log.written_bytes,
            zero_bytes: log.zero_bytes,
            syncs: log.syncs,
            reclaimed_segments: log.reclaimed_segments,
            sorted_runs,
            unsorted_bytes,
            index_rebuilds: inner.rebuilds.load(Ordering::Relaxed),
            lost_commands,
            is_stopped: log.is_stopped,
        }
    }

    /// What the open found and did.
    pub fn open_report(&self) -> &OpenReport {
        &self.inner().report
    }

    /// The store's directory.
    pub fn path(&self) -> &Path {
        &self.inner().dir
    }

    /// Makes everything durable, makes a checkpoint if it is worth it, and lets the store go. Later writes fail.
    ///
    /// # Errors
    /// As for [`KvStore::sync`] and [`KvStore::checkpoint`]; the store is closed all the same.
    pub fn close(&self) -> Result<()> {
        self.inner().close()
    }

    /// Carries out commands for different keys as one, on a condition if there is one. Removes of keys that are not there
    /// are left out. Answers how many commands were carried out.
    fn commit(&self, changes: &[Prepared<'_>], mut condition: Option<Condition<'_>>) -> Result<usize> {
        let inner = self.inner();
        let mut append = || inner.append(changes, &mut condition);
        let mut written = append();
        if written.as_ref().is_err_and(Error::is_full) && inner.free_space() {
            written = append();
        }
        let only_removes = changes.iter().all(|change| is_remove(change.record.kind));
        if written.as_ref().is_err_and(Error::is_full) && only_removes && inner.use_reserve() {
            written = append();
        }
        let written = written?;
        if written > 0 && self.durability == Durability::Sync {
            inner.log.sync()?;
        }
        if inner.has_reclaimable.load(Ordering::Relaxed)
            && let Err(error) = inner.reclaim_compacted()
        {
            // The write has succeeded; if the log is stopped now, the next one says so.
            tracing::warn!(dir = %inner.dir.display(), %error, "segments were not given back");
        }
        if let Some(background) = &self.owner.background
            && inner.wants_maintenance(changes)
        {
            background.kick();
            inner.catch_up();
        }
        Ok(written)
    }
}

/// A value as a string.
pub(crate) fn string_of(key: String, value: Option<Vec<u8>>) -> Result<Option<String>> {
    value.map(String::from_utf8).transpose().map_err(|error| {
        let valid_up_to = error.utf8_error().valid_up_to();
        Error::NotUtf8 { key, valid_up_to }
    })
}

impl Inner {
    pub(crate) fn new(
        dir: PathBuf,
        options: Options,
        log: SegmentSet,
        table: SharedTable,
        maintenance: Maintenance,
        writer: Writer,
        report: OpenReport,
    ) -> Inner {
        let hasher = table.read().index.hasher();
        let order = Order::new(options.ordered);
        Inner {
            dir,
            options,
            log,
            table,
            hasher,
            writer: Mutex::new(writer),
            maintenance: Mutex::new(maintenance),
            reclaimable: Mutex::default(),
            has_reclaimable: AtomicBool::new(false),
            most_live_bytes: AtomicU64::new(0),
            has_unsettled: AtomicBool::new(false),
            unwatched_bytes: AtomicU64::new(0),
            order,
            is_postponed: AtomicBool::new(false),
            rebuilds: AtomicU64::new(0),
            report,
        }
    }

    fn start_background(self: &Arc<Self>) -> Result<Option<Box<dyn Background>>> {
        if !self.options.background {
            return Ok(None);
        }
        let weak = Arc::downgrade(self);
        let task = Box::new(move || weak.upgrade().map_or(Step::Idle, |inner| inner.maintain()));
        let spawned = self.options.env.runtime.spawn("kvs", task);
        let background = spawned.map_err(|error| Error::io("start a thread for", &self.dir, 0, error))?;
        if self.has_unsettled.load(Ordering::Relaxed) {
            background.kick();
        }
        Ok(Some(background))
    }

    pub(crate) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, key: &[u8], hash: u64, damaged: Damaged) -> Result<Option<Hit>> {
        self.table.find(&self.log, key, hash, damaged)
    }

    /// Checks and encodes a command, without any lock.
    fn prepare<'a>(&self, key: &'a [u8], value: Option<&'a [u8]>) -> Result<Prepared<'a>> {
        let within = |what, size: usize, limit: usize| match size <= limit {
            true => Ok(()),
            false => Err(Error::TooLarge { what, size_bytes: size as u64, limit_bytes: limit as u64 }),
        };
        within("key", key.len(), KEY_BYTES_MAX)?;
        let record = match value {
            Some(value) => {
                within("value", value.len(), VALUE_BYTES_MAX)?;
                encode_set(key, value, self.options.compression)
            }
            None => encode_remove(key),
        };
        Ok(Prepared { key, hash: self.hasher.hash(key), record })
    }

    /// Carries out a commit in memory. If the index is damaged, it is made anew.
    fn append(&self, changes: &[Prepared<'_>], condition: &mut Option<Condition<'_>>) -> Result<usize> {
        match self.append_once(changes, condition) {
            Err(error) if error.index_damage().is_some() => {
                self.heal(&error)?;
                self.append_once(changes, condition)
            }
            other => other,
        }
    }

    /// The part of a commit under the writer's lock: the log, and what look-ups know of it, change together. Whatever
    /// fails, fails before the log is changed, or as the log is.
    fn append_once(&self, changes: &[Prepared<'_>], condition: &mut Option<Condition<'_>>) -> Result<usize> {
        let _inside = Inside::enter();
        let mut writer = self.writer();
        if writer.recent.is_full() {
            self.settle_recent(&mut writer)?;
        }
        for change in changes {
            self.settle(&mut writer, change.hash)?;
        }
        let work = self.work_of(changes, condition)?;
        match &work[..] {
            [] => {}
            [(only, replaces)] => {
                let record = &only.record;
                let pointer = self.log.append_parts(record.kind, record.parts(), Durability::Buffer)?;
                self.note(&mut writer, [(only.hash, record.kind, pointer, replaces.clone())]);
            }
            several => {
                let entries = several.iter().map(|(change, _)| (change.record.kind, change.record.parts()));
                let pointers = self.log.append_batch_of_parts(entries, Durability::Buffer)?;
                let placed = several.iter().zip(pointers).map(|((change, replaces), pointer)| {
                    (change.hash, change.record.kind, pointer, replaces.clone())
                });
                self.note(&mut writer, placed);
            }
        }
        Ok(work.len())
    }

    /// The changes to carry out. What is only set need not be looked up now.
    fn work_of<'a, 'b>(
        &self,
        changes: &'b [Prepared<'a>],
        condition: &mut Option<Condition<'_>>,
    ) -> Result<SmallVec<[Work<'a, 'b>; 1]>> {
        let find = |change: &Prepared<'_>| self.find(change.key, change.hash, Damaged::Fail);
        let is_needed = |change: &Prepared<'_>, hit: &Option<Hit>| {
            !is_remove(change.record.kind) || hit.as_ref().is_some_and(|hit| !hit.is_remove())
        };
        let mut work = SmallVec::with_capacity(changes.len());
        let Some(decide) = condition else {
            for change in changes {
                if !is_remove(change.record.kind) {
                    work.push(change.replacing(Replaces::LastOf(change.key)));
                    continue;
                }
                let hit = match find(change) {
                    // What the key is cannot be known. Afterwards it is not there.
                    Err(error) if error.is_corruption() && error.index_damage().is_none() => {
                        let hit = self.find(change.key, change.hash, Damaged::Ignore)?;
                        work.push(change.replacing(Replaces::Known(hit)));
                        continue;
                    }
                    other => other?,
                };
                if is_needed(change, &hit) {
                    work.push(change.replacing(Replaces::Known(hit)));
                }
            }
            return Ok(work);
        };
        let hits: SmallVec<[Option<Hit>; 1]> = changes.iter().map(find).collect::<Result<_>>()?;
        if decide(&hits)? {
            let needed = changes.iter().zip(hits).filter(|(change, hit)| is_needed(change, hit));
            work.extend(needed.map(|(change, hit)| change.replacing(Replaces::Known(hit))));
        }
        Ok(work)
    }

    /// Whether so much was written that maintenance should look.
    fn wants_maintenance(&self, changes: &[Prepared<'_>]) -> bool {
        let bytes: u64 = changes.iter().map(|change| change.record.body_bytes() as u64).sum();
        let unwatched = self.unwatched_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Looked at before it is changed: a change costs as much as the rest of this.
        let was_postponed =
            || self.is_postponed.load(Ordering::Relaxed) && self.is_postponed.swap(false, Ordering::Relaxed);
        let is_time = unwatched >= self.options.unit_bytes() / WATCHES_PER_UNIT || was_postponed();
        if is_time {
            self.unwatched_bytes.store(0, Ordering::Relaxed);
        }
        is_time
    }
}

/// It is looked whether a checkpoint or a compaction is due after this part of a unit.
const WATCHES_PER_UNIT: u64 = 4;

/// Takes note of a frame that nothing needs any more.
pub(crate) fn release(log: &SegmentSet, pointer: Pointer) {
    if let Err(error) = log.release(pointer) {
        tracing::debug!(%error, ?pointer, "a stale frame was not counted");
    }
}

impl Writer {
    pub(crate) fn new(keys: u64, removes: HashMap<u32, Removes>) -> Writer {
        let (recent, unlisted) = (Recent::default(), Unlisted::default());
        Writer { log_end: (0, 0), keys, tail_bytes: 0, tail_commands: 0, removes, recent, unlisted }
    }

    /// Takes note of a frame that was appended.
    pub(crate) fn count_appended(&mut self, hash: u64, pointer: Pointer) {
        self.log_end = (pointer.segment, pointer.end() as u32);
        self.tail_bytes += pointer.frame_bytes();
        self.tail_commands += 1;
        self.unlisted.push(hash, pointer);
    }

    /// Takes note of a frame that the index points to now, instead of another, which is to be released, or of none.
    pub(crate) fn count_replaced(&mut self, old: Option<&Hit>, kind: u8, pointer: Pointer) {
        let was_there = old.is_some_and(|hit| !hit.is_remove());
        match (was_there, !is_remove(kind)) {
            (false, true) => self.keys += 1,
            (true, false) => self.keys -= 1,
            _ => {}
        }
        if is_remove(kind) {
            let removes = self.removes.entry(pointer.segment).or_default();
            removes.count += 1;
            removes.bytes += pointer.frame_bytes();
        }
        if let Some(hit) = old
            && hit.is_remove()
        {
            self.uncount_remove(hit.head.pointer);
        }
    }

    /// The index does not point to this remove any more.
    pub(crate) fn uncount_remove(&mut self, pointer: Pointer) {
        if let Some(removes) = self.removes.get_mut(&pointer.segment) {
            removes.count = removes.count.saturating_sub(1);
            removes.bytes = removes.bytes.saturating_sub(pointer.frame_bytes());
        }
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("dir", &self.dir).finish_non_exhaustive()
    }
}
