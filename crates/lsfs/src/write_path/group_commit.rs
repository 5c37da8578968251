//! Group commit: many append, one write goes to the disk at a time, and each is told when his batch is durable.
//!
//! The principal types are [`WritePath`], what both write paths do in the same way, and [`GroupCommit`], what they share
//! beside their lock. Whoever finds nobody writing carries the open buffer to the disk himself; the others sleep until
//! their batch is done, or have left a callback. While a buffer is in flight the other one fills, so the size of a batch
//! follows from the load (docs/design/0002-group-commit.md).
//!
//! **Invariants.** One flush at a time, and none while somebody is exclusive but his own. Batches are done in the order
//! of their numbers. No lock is held while anybody sleeps, gathers or is woken.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::io::{Background, EventWord, Runtime, Step};

/// The number of a batch, from 1; batches become durable in this order.
pub(crate) type Sequence = u64;

/// How long a batch waits for the next of those who are expected; about a sixth of a sync.
pub(crate) const GATHER_PAUSE: Duration = Duration::from_micros(20);
/// What stands for the number of arrivals once there is nothing more to wait for.
const ENOUGH: u32 = u32::MAX;
/// A batch this long is not worth waiting for more: writing it takes longer than the sync behind it saves.
const GATHER_BYTES_MAX: usize = 64 << 10;

/// Which of two, of everything that is kept for the batch in flight and for the one being filled.
pub(crate) fn parity(batch: Sequence) -> usize {
    (batch % 2) as usize
}

/// Whose turn it is: what group commit keeps under the lock of a write path.
#[derive(Debug)]
pub(crate) struct Turns {
    /// The batch that is being filled, and how many wait for it and waited for the last one.
    pub(crate) filling: Sequence,
    pub(crate) filling_waiters: u32,
    last_waiters: u32,
    /// A batch is on its way to the disk.
    pub(crate) flushing: bool,
    /// Somebody changes more than the buffer: nobody else may append or flush.
    pub(crate) exclusive: bool,
    pub(crate) committer_kicked: bool,
    room_waiters: u32,
    sleepers: [u32; 2],
}

impl Default for Turns {
    fn default() -> Self {
        Turns {
            filling: 1,
            filling_waiters: 0,
            last_waiters: 0,
            flushing: false,
            exclusive: false,
            committer_kicked: false,
            room_waiters: 0,
            sleepers: [0; 2],
        }
    }
}

impl Turns {
    /// The batch being filled leaves, another one begins; answers the number of the one that leaves.
    pub(crate) fn next_batch(&mut self) -> Sequence {
        self.filling += 1;
        self.last_waiters = std::mem::take(&mut self.filling_waiters);
        self.filling - 1
    }

    /// Whether anybody sleeps until a batch of this parity is done; they are about to be woken.
    pub(crate) fn take_sleepers(&mut self, parity: usize) -> bool {
        std::mem::take(&mut self.sleepers[parity]) > 0
    }
}

/// The state behind the one lock of a write path.
pub(crate) trait Filling {
    fn turns(&self) -> &Turns;
    fn turns_mut(&mut self) -> &mut Turns;
    /// Bytes that the next batch would write, those it repeats included.
    fn pending_bytes(&self) -> usize;
    /// Whether there is anything that a flush would make durable, if nothing has failed.
    fn has_undurable(&self) -> bool;
    /// The first failure: nothing is written after it.
    fn stopped_by(&self) -> Option<&Error>;
    fn is_closed(&self) -> bool;
    /// Whether the committer has a reason to look at the buffer now.
    fn is_worth_a_kick(&self) -> bool {
        true
    }
}

/// What a write path has beside its lock.
pub(crate) struct GroupCommit {
    runtime: Arc<dyn Runtime>,
    /// Appenders waiting for room in the buffer, and whoever waits to be exclusive.
    room: Condvar,
    /// Every batch up to this one is durable.
    done: AtomicU64,
    /// How many waiters are in the batch being filled, or [`ENOUGH`]; for whoever gathers, who holds no lock.
    arrived: AtomicU32,
    /// Sleepers wait on the word of their batch's parity, so one wake reaches just that batch.
    words: [EventWord; 2],
    committer: OnceLock<Box<dyn Background>>,
    preparer: OnceLock<Box<dyn Background>>,
}

impl GroupCommit {
    pub(crate) fn new(runtime: Arc<dyn Runtime>) -> GroupCommit {
        GroupCommit {
            runtime,
            room: Condvar::new(),
            done: AtomicU64::new(0),
            arrived: AtomicU32::new(0),
            words: Default::default(),
            committer: OnceLock::new(),
            preparer: OnceLock::new(),
        }
    }

    /// Whether the batch is durable.
    #[inline]
    pub(crate) fn is_done(&self, batch: Sequence) -> bool {
        self.done.load(Ordering::Acquire) >= batch
    }

    /// Says that the batch, and all before it, are durable; wake them next.
    pub(crate) fn set_done(&self, batch: Sequence) {
        self.done.store(batch, Ordering::Release);
    }

    /// Wakes those who sleep until a batch of this parity is done.
    pub(crate) fn wake(&self, parity: usize) {
        let word = &self.words[parity];
        word.set_and_wake_all(word.load().wrapping_add(1));
    }

    pub(crate) fn announce_room(&self, turns: &Turns) {
        if turns.room_waiters > 0 {
            self.room.notify_all();
        }
    }

    pub(crate) fn wait_for_room<'a, T: Filling>(&self, mut tail: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        tail.turns_mut().room_waiters += 1;
        let mut tail = self.room.wait(tail).unwrap_or_else(PoisonError::into_inner);
        tail.turns_mut().room_waiters -= 1;
        tail
    }

    /// Counts somebody who waits for the batch being filled.
    pub(crate) fn count_waiter(&self, tail: &mut impl Filling) {
        tail.turns_mut().filling_waiters += 1;
        let arrived = if is_gathered(tail) { ENOUGH } else { tail.turns().filling_waiters };
        self.arrived.store(arrived, Ordering::Release);
    }

    pub(crate) fn kick_preparer(&self) {
        if let Some(preparer) = self.preparer.get() {
            preparer.kick();
        }
    }
}

impl fmt::Debug for GroupCommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupCommit").field("done", &self.done).finish_non_exhaustive()
    }
}

/// Whether as many wait as did for the last batch, or for so many bytes that gathering does not pay.
fn is_gathered(tail: &impl Filling) -> bool {
    tail.turns().filling_waiters >= tail.turns().last_waiters || tail.pending_bytes() >= GATHER_BYTES_MAX
}

fn needs_flush(tail: &impl Filling) -> bool {
    tail.stopped_by().is_none() && tail.has_undurable()
}

/// A write path that commits in groups.
pub(crate) trait WritePath: Send + Sync + Sized + 'static {
    type Tail: Filling + Send;

    fn lock(&self) -> &Mutex<Self::Tail>;
    fn group(&self) -> &GroupCommit;
    fn dir(&self) -> &Path;

    /// What an earlier failure means for a batch that is not done; `None` if nothing has failed.
    fn failure_of(&self, tail: &Self::Tail, batch: Sequence) -> Option<Error>;
    /// Makes the open buffer, and everything before it, durable, and answers those who wait for it.
    ///
    /// The caller has seen, under this lock, that nobody else is flushing. Afterwards there may be a new buffer to
    /// flush; if the caller goes away it kicks the committer.
    fn flush_durably<'a>(&'a self, tail: MutexGuard<'a, Self::Tail>) -> MutexGuard<'a, Self::Tail>;
    /// A step of the background committer.
    fn commit_step(&self) -> Step;
    /// A step of the task that makes spares ready, and does what else nobody should wait for.
    fn prepare_step(&self) -> Step;

    /// Starts the background tasks; once, before anybody else has the write path.
    fn spawn_background(self: &Arc<Self>) -> Result<()> {
        let spawn = |name, step: fn(&Self) -> Step| {
            let path: Weak<Self> = Arc::downgrade(self);
            let task = Box::new(move || path.upgrade().map_or(Step::Idle, |path| step(&path)));
            let failed = |error| Error::io("start a thread for", self.dir(), error);
            self.group().runtime.spawn(name, task).map_err(failed)
        };
        let (committer, preparer) =
            (spawn("lsfs-commit", Self::commit_step)?, spawn("lsfs-space", Self::prepare_step)?);
        let _first = (self.group().committer.set(committer), self.group().preparer.set(preparer));
        Ok(())
    }

    fn tail(&self) -> MutexGuard<'_, Self::Tail> {
        self.lock().lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything may still be written.
    fn check_usable(&self, tail: &Self::Tail) -> Result<()> {
        if let Some(cause) = tail.stopped_by() {
            return Err(Error::Poisoned { path: self.dir().to_path_buf(), cause: Box::new(cause.clone()) });
        }
        if tail.is_closed() { Err(Error::Closed { path: self.dir().to_path_buf() }) } else { Ok(()) }
    }

    /// What became of a batch, if that is known.
    fn outcome(&self, tail: &Self::Tail, batch: Sequence) -> Option<Result<()>> {
        if self.group().is_done(batch) {
            return Some(Ok(()));
        }
        self.failure_of(tail, batch).map(Err)
    }

    /// Returns when the batch is durable: flushes it here if nobody else is flushing, sleeps otherwise.
    fn commit<'a>(&'a self, mut tail: MutexGuard<'a, Self::Tail>, batch: Sequence) -> Result<()> {
        loop {
            if let Some(outcome) = self.outcome(&tail, batch) {
                return outcome;
            }
            if !tail.turns().flushing && !tail.turns().exclusive {
                tail = self.flush_durably(self.gather(tail, GATHER_PAUSE));
                if tail.has_undurable() && !tail.turns().flushing {
                    self.kick_committer(tail);
                    tail = self.tail();
                }
                continue;
            }
            match self.sleep(tail, batch) {
                Some(again) => tail = again,
                None => return Ok(()),
            }
        }
    }

    /// Sleeps until the batch was answered; `None` if it is durable.
    fn sleep<'a>(
        &'a self,
        mut tail: MutexGuard<'a, Self::Tail>,
        batch: Sequence,
    ) -> Option<MutexGuard<'a, Self::Tail>> {
        let group = self.group();
        let word = &group.words[parity(batch)];
        tail.turns_mut().sleepers[parity(batch)] += 1;
        // Whoever wakes changes the word after this, for he takes the lock first.
        let seen = word.load();
        drop(tail);
        if !group.runtime.run_instead_of_waiting() && !group.is_done(batch) {
            word.wait(seen);
        }
        (!group.is_done(batch)).then(|| self.tail())
    }

    /// Sees to it that what is in the buffer is written by somebody else.
    fn kick_committer(&self, mut tail: MutexGuard<'_, Self::Tail>) {
        let turns = tail.turns();
        if turns.flushing || turns.committer_kicked || turns.exclusive || !tail.is_worth_a_kick() {
            // Whoever flushes or is exclusive looks again before it goes.
            return;
        }
        tail.turns_mut().committer_kicked = true;
        drop(tail);
        if let Some(committer) = self.group().committer.get() {
            committer.kick();
        }
    }

    /// Lets those who were woken by the last batch come back before the next one leaves.
    ///
    /// After a batch that many waited for, they append again within microseconds; to leave with the first of them would
    /// make every other batch a batch of one. The wait ends when as many are back as were in the last batch, or when
    /// nobody came for a moment (for the first, `first_pause`); a lone caller never waits. It takes no lock while it
    /// looks, for those it waits for need it.
    fn gather<'a>(
        &'a self,
        mut tail: MutexGuard<'a, Self::Tail>,
        first_pause: Duration,
    ) -> MutexGuard<'a, Self::Tail> {
        if tail.turns().last_waiters < 2 || is_gathered(&*tail) {
            return tail;
        }
        let group = self.group();
        // Others sleep or return meanwhile, as while a batch is in flight.
        tail.turns_mut().flushing = true;
        let mut seen = tail.turns().filling_waiters;
        group.arrived.store(seen, Ordering::Release);
        drop(tail);
        let mut pause = first_pause;
        let mut last_arrival = group.runtime.now();
        loop {
            let arrived = group.arrived.load(Ordering::Acquire);
            if arrived == ENOUGH {
                break;
            }
            let now = group.runtime.now();
            if arrived != seen {
                (seen, last_arrival, pause) = (arrived, now, GATHER_PAUSE);
            } else if now.saturating_sub(last_arrival) > pause {
                break;
            }
            group.runtime.yield_now();
        }
        let mut tail = self.tail();
        tail.turns_mut().flushing = false;
        tail
    }

    /// Waits until nobody appends or flushes and everything appended is durable.
    fn enter_exclusive<'a>(
        &'a self,
        mut tail: MutexGuard<'a, Self::Tail>,
    ) -> Result<MutexGuard<'a, Self::Tail>> {
        while tail.turns().exclusive {
            tail = self.group().wait_for_room(tail);
        }
        self.check_usable(&tail)?;
        tail.turns_mut().exclusive = true;
        while tail.turns().flushing {
            tail = self.group().wait_for_room(tail);
        }
        while needs_flush(&*tail) {
            tail = self.flush_durably(tail);
        }
        if let Err(error) = self.check_usable(&tail) {
            self.leave_exclusive(tail);
            return Err(error);
        }
        Ok(tail)
    }

    /// Lets the others go on.
    fn leave_exclusive(&self, mut tail: MutexGuard<'_, Self::Tail>) {
        tail.turns_mut().exclusive = false;
        self.group().announce_room(tail.turns());
        if needs_flush(&*tail) {
            self.kick_committer(tail);
        }
    }
}
