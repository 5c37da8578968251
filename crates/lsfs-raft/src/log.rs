//! The Raft log: its API, and the open log behind it.

use std::future::Future;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::task::{Context, Poll};

use lsfs::io::{Background, Step};
use lsfs::{Env, Pending};

use crate::entry::{Entry, EntryId, NewEntry, OwnedEntry};
use crate::error::{Error, Result};
use crate::losses::LostRange;
use crate::open;
use crate::options::LogOptions;
use crate::order::{Deferred, Order, Turn};
use crate::shared::{RawEntries, Shared};
use crate::snapshot::{SnapshotReader, SnapshotWriter};
use crate::state::{ClusterConfig, SnapshotMeta, Vote};
use crate::statistics::Statistics;
use crate::writer::Writer;

/// The log of one Raft node.
///
/// Entries are numbered from [`LogOptions::first_index`] on, 1 by default. All writes pass through one queue: what a
/// call made durable, everything that was called before is durable too. Cloning is cheap; all clones are one log. One
/// process has it open. When the last clone goes away the log is closed.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// use lsfs_raft::{LogOptions, NewEntry, RaftLog};
///
/// let log = RaftLog::open(dir.path().join("log"), LogOptions::default())?;
/// log.set_term(1)?;
/// log.vote_for(7)?; // durable on return
/// let index = log.append(&NewEntry::command(1, 7, b"x = 1"))?;
/// assert_eq!((index, log.last_term()?), (1, 1));
/// log.set_commit_index(index)?;
/// log.stop()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RaftLog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    env: Env,
    dir: PathBuf,
    options: LogOptions,
    core: RwLock<Option<Arc<Core>>>,
}

/// An open log.
#[derive(Debug)]
pub(crate) struct Core {
    shared: Arc<Shared>,
    order: Order<Writer>,
    /// Bytes of snapshots are written beside the order of the log, until they are whole.
    beside: Order<()>,
}

impl Core {
    pub(crate) fn open(env: &Env, dir: &Path, options: &LogOptions) -> Result<Arc<Core>> {
        let (shared, writer) = open::open(env, dir, options)?;
        let core = Arc::new(Core {
            order: Order::new(Arc::clone(&env.runtime), writer),
            beside: Order::new(Arc::clone(&env.runtime), ()),
            shared,
        });
        core.order.employ(core.worker("lsfs-raft", |core| core.order.run_jobs())?);
        core.beside.employ(core.worker("lsfs-raft-snapshot", |core| core.beside.run_jobs())?);
        Ok(core)
    }

    /// A background task that runs jobs of this log as long as the log is open.
    fn worker(self: &Arc<Self>, name: &str, run: fn(&Core)) -> Result<Box<dyn Background>> {
        let weak: Weak<Core> = Arc::downgrade(self);
        let step = move || {
            if let Some(core) = weak.upgrade() {
                run(&core);
            }
            Step::Idle
        };
        self.shared.env.runtime.spawn(name, Box::new(step)).map_err(|source| {
            let (action, path) = ("start a thread for", self.shared.dir.clone());
            Error::Engine(lsfs::Error::Io { action, path, source: Arc::new(source) })
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The turn to write, after everything that was called before.
    pub(crate) fn turn(&self) -> Result<Turn<'_, Writer>> {
        let turn = self.order.turn();
        turn.check_usable()?;
        Ok(turn)
    }

    /// Puts work in line; it is done in the order of the calls.
    pub(crate) fn defer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> T + Send + 'static,
    ) -> Deferred<T> {
        let (promise, deferred) = Deferred::new(Arc::clone(&self.shared.env.runtime));
        self.order.submit(Box::new(move |writer| promise.fulfil(work(writer))));
        deferred
    }

    /// Does work on the bytes of a snapshot, one after the other, while the log goes on.
    pub(crate) fn defer_beside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Deferred<T> {
        let (promise, deferred) = Deferred::new(Arc::clone(&self.shared.env.runtime));
        self.beside.submit(Box::new(move |()| promise.fulfil(work())));
        deferred
    }

    pub(crate) fn close(&self) -> Result<()> {
        self.order.turn().close()
    }

    /// See [`RaftLog::last_index`].
    pub(crate) fn last_index(&self) -> u64 {
        let view = self.shared.view();
        let purged = view.state.purged.map_or(0, |id| id.index);
        drop(view);
        let bounds = self.shared.bounds();
        if bounds.is_empty() { purged } else { bounds.next - 1 }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(dir = %self.shared.dir.display(), %error, "Raft log was not closed cleanly");
        }
    }
}

/// Appended entries on their way to the disk. Resolves to the index of the last one when all are durable; needs no
/// particular runtime. [`Appending::wait`] blocks instead.
///
/// Dropping it changes nothing: the entries are written all the same.
#[derive(Debug)]
#[must_use = "entries whose outcome nobody looks at may be lost without notice"]
pub struct Appending {
    pending: Pending,
}

impl Appending {
    /// Index of the last entry, known from the start.
    pub fn index(&self) -> u64 {
        self.pending.index()
    }

    /// Blocks until the entries are durable.
    ///
    /// # Errors
    /// If the write that carried them failed.
    pub fn wait(self) -> Result<u64> {
        Ok(self.pending.wait()?)
    }
}

impl Future for Appending {
    type Output = Result<u64>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.pending).poll(context).map_err(Error::from)
    }
}

/// Reads entries forward; see [`RaftLog::entries`].
#[derive(Debug)]
pub struct Entries {
    raw: RawEntries,
}

impl Entries {
    /// The next entry, or `None` at the end of the range.
    ///
    /// # Errors
    /// [`Error::Lost`] at a loss; reading goes on behind it after [`Entries::skip_to`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.raw.next_with(|raw| raw.to_entry())
    }

    /// Index of the entry that comes next.
    pub fn next_index(&self) -> u64 {
        self.raw.next_index()
    }

    /// Goes on at a later entry, as behind a loss.
    pub fn skip_to(&mut self, index: u64) {
        self.raw.skip_to(index);
    }
}

/// The start and end of a range of indexes.
pub(crate) fn range_of(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLog {
    /// Opens the log in `dir`, or creates it, and starts it.
    ///
    /// Opening costs a few reads and small writes, whatever the size; what a crash left undone is done
    /// (docs/durability.md).
    ///
    /// # Errors
    /// [`Error::FirstIndex`] if it counts from another index; [`Error::Engine`] with `lsfs::Error::Locked` if another
    /// process has it open, with `lsfs::Error::Corrupt` if its end or its state no longer verifies.
    pub fn open(dir: impl AsRef<Path>, options: LogOptions) -> Result<RaftLog> {
        RaftLog::open_in(Env::default(), dir, options)
    }

    /// As [`RaftLog::open`], on the given disk and runtime.
    ///
    /// # Errors
    /// As for [`RaftLog::open`].
    pub fn open_in(env: Env, dir: impl AsRef<Path>, options: LogOptions) -> Result<RaftLog> {
        let dir = dir.as_ref().to_path_buf();
        let core = Core::open(&env, &dir, &options)?;
        Ok(RaftLog { inner: Arc::new(Inner { env, dir, options, core: RwLock::new(Some(core)) }) })
    }

    /// Starts a stopped log again, on the disk as it is; a running one goes on.
    ///
    /// # Errors
    /// As for [`RaftLog::open`].
    pub fn start(&self) -> Result<()> {
        let mut core = self.inner.core.write().unwrap_or_else(PoisonError::into_inner);
        if core.is_none() {
            *core = Some(Core::open(&self.inner.env, &self.inner.dir, &self.inner.options)?);
        }
        Ok(())
    }

    /// Makes everything durable, leaves a witness of it and lets the files go. Later calls fail with
    /// [`Error::Stopped`] until [`RaftLog::start`].
    ///
    /// # Errors
    /// If something could not be written; the log is stopped all the same.
    pub fn stop(&self) -> Result<()> {
        let core = self.inner.core.write().unwrap_or_else(PoisonError::into_inner).take();
        core.map_or(Ok(()), |core| core.close())
    }

    /// Whether the log is started.
    pub fn is_running(&self) -> bool {
        self.core().is_ok()
    }

    /// The directory of the log.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    pub(crate) fn core(&self) -> Result<Arc<Core>> {
        let core = self.inner.core.read().unwrap_or_else(PoisonError::into_inner);
        core.clone().ok_or_else(|| Error::Stopped { path: self.inner.dir.clone() })
    }

    /// Does `work` in line with all other writes, and returns at once: for callers that must not block.
    fn write_later<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> Result<T> + Send + 'static,
    ) -> Result<Deferred<Result<T>>> {
        Ok(self.core()?.defer(|writer| {
            writer.check_usable()?;
            work(writer)
        }))
    }

    // ---- what a node knows of itself ----

    /// Marks the node as broken, with a reason; durable on return. The log itself does not mind: whoever runs the node
    /// should refuse to start it, until [`RaftLog::set_fixed`].
    ///
    /// # Errors
    /// If the state cannot be written.
    pub fn set_broken(&self, reason: &str) -> Result<()> {
        self.core()?.turn()?.change_state(|state| state.broken = Some(reason.to_string()))
    }

    /// Takes the mark of [`RaftLog::set_broken`] away; durable on return.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub fn set_fixed(&self) -> Result<()> {
        self.core()?.turn()?.change_state(|state| state.broken = None)
    }

    /// Why the node is broken; `None` if it is not.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn broken(&self) -> Result<Option<String>> {
        Ok(self.core()?.shared.view().state.broken.clone())
    }

    /// How other nodes reach this one; empty if it was never set.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn uri(&self) -> Result<String> {
        Ok(self.core()?.shared.view().state.uri.clone())
    }

    /// Sets how other nodes reach this one; durable on return.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub fn set_uri(&self, uri: &str) -> Result<()> {
        self.core()?.turn()?.change_state(|state| state.uri = uri.to_string())
    }

    // ---- term and vote ----

    /// The current term; 0 at first.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn term(&self) -> Result<u64> {
        Ok(self.core()?.shared.view().state.term)
    }

    /// Goes to a later term, in which nobody has the vote yet; durable on return. The present term changes nothing.
    ///
    /// # Errors
    /// [`Error::TermBehind`] for an earlier term; if the state cannot be written.
    pub fn set_term(&self, term: u64) -> Result<()> {
        self.core()?.turn()?.set_term(term)
    }

    /// As [`RaftLog::set_term`], in line.
    ///
    /// # Errors
    /// [`Error::Stopped`]; otherwise the outcome is the future's.
    pub fn set_term_async(&self, term: u64) -> Result<Deferred<Result<()>>> {
        self.write_later(move |writer| writer.set_term(term))
    }

    /// Goes to the next term, in which nobody has the vote yet; durable on return. Answers it.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub fn increment_term(&self) -> Result<u64> {
        self.core()?.turn()?.increment_term()
    }

    /// As [`RaftLog::increment_term`], in line.
    ///
    /// # Errors
    /// [`Error::Stopped`]; otherwise the outcome is the future's.
    pub fn increment_term_async(&self) -> Result<Deferred<Result<u64>>> {
        self.write_later(Writer::increment_term)
    }

    /// Who has the vote of the current term.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn voted_for(&self) -> Result<Option<u64>> {
        Ok(self.vote()?.map(|vote| vote.candidate))
    }

    /// The vote of the current term, with whether it is known to have won.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn vote(&self) -> Result<Option<Vote>> {
        Ok(self.core()?.shared.vote())
    }

    /// Gives the vote of the current term; durable on return, with every entry appended before. Giving it to the same
    /// candidate again changes nothing.
    ///
    /// # Errors
    /// [`Error::AlreadyVoted`] if another one has it; if the state cannot be written.
    pub fn vote_for(&self, candidate: u64) -> Result<()> {
        self.core()?.turn()?.vote_for(candidate)
    }

    /// As [`RaftLog::vote_for`], in line.
    ///
    /// # Errors
    /// [`Error::Stopped`]; otherwise the outcome is the future's.
    pub fn vote_for_async(&self, candidate: u64) -> Result<Deferred<Result<()>>> {
        self.write_later(move |writer| writer.vote_for(candidate))
    }

    // ---- writing entries ----

    /// Appends an entry; durable on return. Answers its index. Callers on several threads share one sync.
    ///
    /// The first entry of another term than the last entry's costs a second durable write: the log keeps where terms
    /// begin beside the entries.
    ///
    /// # Errors
    /// [`Error::Engine`]: after a failed write the entry may be there or not when the log is opened again.
    pub fn append(&self, entry: &NewEntry<'_>) -> Result<u64> {
        self.append_async(entry)?.wait()
    }

    /// Appends entries one behind the other, under one sync if they fit; durable on return. Answers their indexes.
    ///
    /// Not atomic: after a crash before the return, a first part of them may be there.
    ///
    /// # Errors
    /// As for [`RaftLog::append`].
    pub fn append_all(&self, entries: &[NewEntry<'_>]) -> Result<Range<u64>> {
        let core = self.core()?;
        let appended = core.turn()?.append_pending(entries)?;
        let next = core.shared.bounds().next;
        match appended {
            None => Ok(next..next),
            Some(pending) => {
                let end = pending.wait()? + 1;
                Ok(end - entries.len() as u64..end)
            }
        }
    }

    /// As [`RaftLog::append_all`], for entries that have an index already: a follower's, from its leader. A log that
    /// never had an entry may begin at any index.
    ///
    /// # Errors
    /// [`Error::NotNext`] if the first of them does not follow the last entry; as for [`RaftLog::append`].
    pub fn append_at(&self, index: u64, entries: &[NewEntry<'_>]) -> Result<()> {
        let core = self.core()?;
        let mut turn = core.turn()?;
        turn.expect_next(index)?;
        let appended = turn.append_pending(entries)?;
        drop(turn);
        appended.map_or(Ok(()), |pending| Ok(pending.wait().map(|_index| ())?))
    }

    /// Appends an entry, which can be read at once, and returns a future of its durability.
    ///
    /// # Errors
    /// As for [`RaftLog::append`].
    pub fn append_async(&self, entry: &NewEntry<'_>) -> Result<Appending> {
        let pending = self.core()?.turn()?.append_pending(std::slice::from_ref(entry))?;
        Ok(Appending { pending: pending.expect("one entry was appended") })
    }

    /// Appends entries, which can be read at once, and has `callback` called when all are durable, or failed: on the
    /// thread that wrote them, in the order of the calls. It must not write to this log.
    ///
    /// # Errors
    /// As for [`RaftLog::append`]; the callback is then not called.
    pub fn append_then(
        &self,
        entries: &[NewEntry<'_>],
        callback: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        self.core()?.turn()?.append_then(entries, callback)
    }

    /// Puts an entry at an index: in the place of the one that is there, as [`RaftLog::replace`], or behind the last one.
    ///
    /// # Errors
    /// [`Error::BelowFirst`], [`Error::NotNext`] beyond the end; as for [`RaftLog::append`].
    pub fn insert(&self, index: u64, entry: &NewEntry<'_>) -> Result<()> {
        let pending = self.core()?.turn()?.insert(index, entry)?;
        pending.map_or(Ok(()), |pending| Ok(pending.wait().map(|_index| ())?))
    }

    /// As [`RaftLog::insert`], in line. Where many entries are appended, [`RaftLog::append_async`] has them share syncs.
    ///
    /// # Errors
    /// [`Error::Stopped`]; otherwise the outcome is the future's.
    pub fn insert_async(&self, index: u64, entry: &NewEntry<'_>) -> Result<Deferred<Result<()>>> {
        let entry = OwnedEntry::of(entry);
        self.write_later(move |writer| {
            let pending = writer.insert(index, &entry.borrowed())?;
            pending.map_or(Ok(()), |pending| Ok(pending.wait().map(|_index| ())?))
        })
    }

    /// Puts an entry in the place of the one at an index; those behind it stay. Durable on return.
    ///
    /// # Errors
    /// [`Error::BelowFirst`], [`Error::BeyondEnd`]; as for [`RaftLog::append`].
    pub fn replace(&self, index: u64, entry: &NewEntry<'_>) -> Result<()> {
        self.core()?.turn()?.replace(index, entry)
    }

    /// As [`RaftLog::replace`], in line.
    ///
    /// # Errors
    /// [`Error::Stopped`]; otherwise the outcome is the future's.
    pub fn replace_async(&self, index: u64, entry: &NewEntry<'_>) -> Result<Deferred<Result<()>>> {
        let entry = OwnedEntry::of(entry);
        self.write_later(move |writer| writer.replace(index, &entry.borrowed()))
    }

    /// Puts back an entry that was lost; durable on return. It is no loss any more then.
    ///
    /// # Errors
    /// [`Error::NotLost`] if that entry was not lost, or was of another term; as for [`RaftLog::append`].
    pub fn restore(&self, index: u64, entry: &NewEntry<'_>) -> Result<()> {
        self.core()?.turn()?.restore(index, entry)
    }

    /// As [`RaftLog::restore`], in line.
    ///
    /// # Errors
    /// [`Error::Stopped`]; otherwise the outcome is the future's.
    pub fn restore_async(&self, index: u64, entry: &NewEntry<'_>) -> Result<Deferred<Result<()>>> {
        let entry = OwnedEntry::of(entry);
        self.write_later(move |writer| writer.restore(index, &entry.borrowed()))
    }

    /// Deletes all entries from an index on; durable on return. The next entry will have this index. Beyond the end
    /// there is nothing to delete.
    ///
    /// # Errors
    /// [`Error::BelowFirst`], [`Error::Committed`]; if the engine fails.
    pub fn delete_all_from(&self, index: u64) -> Result<()> {
        self.core()?.turn()?.delete_from(index)
    }

    /// As [`RaftLog::delete_all_from`], in line.
    ///
    /// # Errors
    /// [`Error::Stopped`]; otherwise the outcome is the future's.
    pub fn delete_all_from_async(&self, index: u64) -> Result<Deferred<Result<()>>> {
        self.write_later(move |writer| writer.delete_from(index))
    }

    /// Drops the entries up to an index, which must be applied; durable on return. Space comes back in whole segments.
    /// Below the first index nothing happens.
    ///
    /// # Errors
    /// [`Error::BeyondEnd`], [`Error::NotApplied`]; if the engine fails.
    pub fn purge(&self, index: u64) -> Result<()> {
        self.core()?.turn()?.purge_applied(index)
    }

    /// As [`RaftLog::purge`], in line.
    ///
    /// # Errors
    /// [`Error::Stopped`]; otherwise the outcome is the future's.
    pub fn purge_async(&self, index: u64) -> Result<Deferred<Result<()>>> {
        self.write_later(move |writer| writer.purge_applied(index))
    }

    /// Returns when everything called before is durable, with commit and applied index.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn sync(&self) -> Result<()> {
        self.core()?.turn()?.change_state(|_state| {})
    }

    /// As [`RaftLog::sync`], in line.
    ///
    /// # Errors
    /// [`Error::Stopped`]; otherwise the outcome is the future's.
    pub fn sync_async(&self) -> Result<Deferred<Result<()>>> {
        self.write_later(|writer| writer.change_state(|_state| {}))
    }

    // ---- reading entries ----

    /// The entry with this index, also if it is not durable yet.
    ///
    /// # Errors
    /// [`Error::BelowFirst`], [`Error::BeyondEnd`], [`Error::Lost`].
    pub fn read(&self, index: u64) -> Result<Entry> {
        self.core()?.shared.read_with(index, |raw| raw.to_entry())
    }

    /// The last entry; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn read_last(&self) -> Result<Option<Entry>> {
        let core = self.core()?;
        let bounds = core.shared.bounds();
        if bounds.is_empty() {
            return Ok(None);
        }
        core.shared.read_with(bounds.next - 1, |raw| raw.to_entry()).map(Some)
    }

    /// The entries of a range, all in memory. Both ends must be there; an empty range has none.
    ///
    /// # Errors
    /// [`Error::BelowFirst`], [`Error::BeyondEnd`], [`Error::Lost`].
    pub fn read_range(&self, range: Range<u64>) -> Result<Vec<Entry>> {
        let core = self.core()?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let bounds = core.shared.bounds();
        bounds.check(range.start)?;
        bounds.check(range.end - 1)?;
        let mut raw = RawEntries::new(Arc::clone(&core.shared), range);
        std::iter::from_fn(|| raw.next_with(|raw| raw.to_entry()).transpose()).collect()
    }

    /// Reads forward over what there is of a range.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn entries(&self, range: impl RangeBounds<u64>) -> Result<Entries> {
        let core = self.core()?;
        Ok(Entries { raw: RawEntries::new(Arc::clone(&core.shared), range_of(&range)) })
    }

    // ---- where the log begins and ends ----

    /// Index of the first entry; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn first_index(&self) -> Result<Option<u64>> {
        let bounds = self.core()?.shared.bounds();
        Ok((!bounds.is_empty()).then_some(bounds.first))
    }

    /// Index of the last entry; without entries that of the last one that was dropped at the front, as by a snapshot;
    /// without that 0. A log that counts from 0 tells an entry 0 from none by [`RaftLog::last_id`].
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn last_index(&self) -> Result<u64> {
        Ok(self.core()?.last_index())
    }

    /// Index that the next entry will have.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn next_index(&self) -> Result<u64> {
        Ok(self.core()?.shared.bounds().next)
    }

    /// Term of the first entry; 0 if there is none.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn first_term(&self) -> Result<u64> {
        let core = self.core()?;
        let bounds = core.shared.bounds();
        let id = if bounds.is_empty() { None } else { core.shared.id_of(bounds.first) };
        Ok(id.map_or(0, |id| id.term))
    }

    /// Term of the last entry; without entries that of the last one that was dropped at the front, as by a snapshot;
    /// without that 0.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn last_term(&self) -> Result<u64> {
        Ok(self.last_id()?.map_or(0, |id| id.term))
    }

    /// The name of the last entry, or of the last one that was dropped at the front; `None` for a log that had none.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn last_id(&self) -> Result<Option<EntryId>> {
        Ok(self.core()?.shared.last_id())
    }

    /// The name of the last entry that was dropped at the front.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn purged_id(&self) -> Result<Option<EntryId>> {
        Ok(self.core()?.shared.view().state.purged)
    }

    /// The name of an entry, without reading it: also of the last one dropped, and of a lost one. `None` if the log
    /// does not know.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn id_of(&self, index: u64) -> Result<Option<EntryId>> {
        Ok(self.core()?.shared.id_of(index))
    }

    // ---- commit and applied index ----

    /// The last index known to be committed.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn commit_index(&self) -> Result<Option<u64>> {
        Ok(self.core()?.shared.commit_index())
    }

    /// Moves the commit index forward; a lower one changes nothing. Costs no write: it is durable with the next entry,
    /// or any other durable call.
    ///
    /// # Errors
    /// [`Error::BeyondEnd`] if there is no such entry.
    pub fn set_commit_index(&self, index: u64) -> Result<()> {
        let shared = Arc::clone(&self.core()?.shared);
        let next = shared.bounds().next;
        if index >= next {
            return Err(Error::BeyondEnd { index, next });
        }
        shared.advance(index + 1, 0);
        Ok(())
    }

    /// The last index known to be applied to the state machine.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn applied_index(&self) -> Result<Option<u64>> {
        Ok(self.core()?.shared.applied_index())
    }

    /// Moves the applied index forward, as [`RaftLog::set_commit_index`] does.
    ///
    /// # Errors
    /// [`Error::NotCommitted`] if it is not.
    pub fn set_applied_index(&self, index: u64) -> Result<()> {
        let shared = Arc::clone(&self.core()?.shared);
        let commit = shared.commit_index();
        if commit.is_none_or(|commit| commit < index) {
            return Err(Error::NotCommitted { index, commit });
        }
        shared.advance(0, index + 1);
        Ok(())
    }

    // ---- the cluster ----

    /// The configuration saved last.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn cluster_config(&self) -> Result<Option<ClusterConfig>> {
        Ok(self.core()?.shared.view().state.config.clone())
    }

    /// Saves a configuration; durable on return, with every entry appended before.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub fn save_cluster_config(&self, config: ClusterConfig) -> Result<()> {
        self.core()?.turn()?.change_state(|state| state.config = Some(config))
    }

    /// As [`RaftLog::save_cluster_config`], in line.
    ///
    /// # Errors
    /// [`Error::Stopped`]; otherwise the outcome is the future's.
    pub fn save_cluster_config_async(&self, config: ClusterConfig) -> Result<Deferred<Result<()>>> {
        self.write_later(move |writer| writer.change_state(|state| state.config = Some(config)))
    }

    // ---- snapshots ----

    /// Begins a snapshot that this node makes of its own state.
    ///
    /// # Errors
    /// If its files cannot be made.
    pub fn begin_snapshot(&self, meta: SnapshotMeta) -> Result<SnapshotWriter> {
        SnapshotWriter::begin(&self.core()?, meta)
    }

    /// Begins to take a snapshot from another node, or goes on with it: if a transfer of the same one was interrupted,
    /// [`SnapshotWriter::position`] says where.
    ///
    /// # Errors
    /// If its files cannot be made.
    pub fn receive_snapshot(&self, meta: SnapshotMeta) -> Result<SnapshotWriter> {
        SnapshotWriter::receive(&self.core()?, meta)
    }

    /// As [`RaftLog::receive_snapshot`], aside.
    ///
    /// # Errors
    /// [`Error::Stopped`]; otherwise the outcome is the future's.
    pub fn receive_snapshot_async(&self, meta: SnapshotMeta) -> Result<Deferred<Result<SnapshotWriter>>> {
        let core = self.core()?;
        let work_core = Arc::clone(&core);
        Ok(core.defer_beside(move || SnapshotWriter::receive(&work_core, meta)))
    }

    /// Installs a snapshot that is whole in memory; see [`SnapshotWriter::install`].
    ///
    /// # Errors
    /// As for [`SnapshotWriter::install`].
    pub fn install_snapshot(&self, meta: SnapshotMeta, bytes: &[u8]) -> Result<()> {
        let mut writer = self.begin_snapshot(meta)?;
        writer.write_chunk(0, bytes)?;
        writer.install()
    }

    /// As [`RaftLog::install_snapshot`], in line: what is called later waits until its bytes are written, too. For a
    /// large one there is [`SnapshotWriter::write_chunk_async`].
    ///
    /// # Errors
    /// [`Error::Stopped`]; otherwise the outcome is the future's.
    pub fn install_snapshot_async(&self, meta: SnapshotMeta, bytes: Vec<u8>) -> Result<Deferred<Result<()>>> {
        let core = self.core()?;
        self.write_later(move |writer| {
            let mut snapshot = SnapshotWriter::begin_in_turn(&core, meta)?;
            snapshot.write_chunk(0, &bytes)?;
            snapshot.finish_in_turn(writer, true)
        })
    }

    /// Has `write` write a snapshot of this node's own state, aside, and saves it in line
    /// ([`SnapshotWriter::save`]): entries can be appended all the while.
    ///
    /// # Errors
    /// [`Error::Stopped`]; otherwise the outcome is the future's, also the error of `write`: the log's snapshot stays.
    pub fn build_snapshot_async(
        &self,
        meta: SnapshotMeta,
        write: impl FnOnce(&mut dyn io::Write) -> io::Result<()> + Send + 'static,
    ) -> Result<Deferred<Result<()>>> {
        let core = self.core()?;
        let work_core = Arc::clone(&core);
        Ok(core.defer_beside(move || SnapshotWriter::build(&work_core, meta, write)))
    }

    /// What the log's snapshot is of; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn snapshot(&self) -> Result<Option<SnapshotMeta>> {
        Ok(self.core()?.shared.view().state.snapshot.as_ref().map(|snapshot| snapshot.meta.clone()))
    }

    /// Opens the log's snapshot for reading, as a whole or in chunks.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`].
    pub fn read_snapshot(&self) -> Result<SnapshotReader> {
        SnapshotReader::open(&self.core()?.shared)
    }

    /// What the interrupted transfer is of that [`RaftLog::receive_snapshot`] would go on with.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn incoming_snapshot(&self) -> Result<Option<SnapshotMeta>> {
        Ok(self.core()?.shared.view().state.incoming.as_ref().map(|snapshot| snapshot.meta.clone()))
    }

    // ---- losses and numbers ----

    /// The entries that are known to be lost: found by reads, by [`RaftLog::check`], or when the log was opened.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn lost(&self) -> Result<Vec<LostRange>> {
        Ok(self.core()?.shared.lost())
    }

    /// Reads every entry and answers all that are lost.
    ///
    /// # Errors
    /// If reading itself fails.
    pub fn check(&self) -> Result<Vec<LostRange>> {
        let core = self.core()?;
        let bounds = core.shared.bounds();
        let mut raw = RawEntries::new(Arc::clone(&core.shared), bounds.first..bounds.next);
        loop {
            match raw.next_with(|_raw| ()) {
                Ok(Some(())) => {}
                Ok(None) => return Ok(core.shared.lost()),
                Err(Error::Lost { lost }) => raw.skip_to(lost.indexes.end),
                // Purged while it was read.
                Err(Error::BelowFirst { first, .. }) => raw.skip_to(first),
                Err(Error::BeyondEnd { .. }) => return Ok(core.shared.lost()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Numbers about the log.
    ///
    /// # Errors
    /// If the disk does not say how much is free.
    pub fn statistics(&self) -> Result<Statistics> {
        self.core()?.shared.statistics()
    }
}
