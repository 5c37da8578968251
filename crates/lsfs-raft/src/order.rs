//! One ordered queue of all that is written.
//!
//! Whoever writes has the *turn*: appends keep it while they put entries into the engine's buffer, whose order is the
//! order on the disk; everything else keeps it until it is durable. Work that a caller does not wait for stands in line
//! as a *job*, which a background task runs; a direct call that comes later waits for the jobs before it. So the order
//! of the calls is the order on the medium, and no executor is blocked.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use lsfs::io::{Background, Runtime};

pub(crate) type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

/// The queue. `T` is what only the owner of the turn may touch.
#[derive(Debug)]
pub(crate) struct Order<T> {
    runtime: Arc<dyn Runtime>,
    owned: Mutex<T>,
    line: Mutex<Line<T>>,
    /// A job was done.
    moved: Condvar,
    /// Jobs handed in, and jobs done.
    submitted: AtomicU64,
    done: AtomicU64,
    worker: OnceLock<Box<dyn Background>>,
}

struct Line<T>(VecDeque<Job<T>>);

impl<T> std::fmt::Debug for Line<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} jobs", self.0.len())
    }
}

/// The right to write; given back on drop.
pub(crate) struct Turn<'a, T> {
    order: &'a Order<T>,
    /// `None` only while it is dropped: the lock goes before the worker is kicked.
    owned: Option<MutexGuard<'a, T>>,
}

impl<T> std::ops::Deref for Turn<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.owned.as_deref().expect("held until the drop")
    }
}

impl<T> std::ops::DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.owned.as_deref_mut().expect("held until the drop")
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        drop(self.owned.take());
        if self.order.has_jobs() {
            self.order.kick();
        }
    }
}

impl<T> Order<T> {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, owned: T) -> Self {
        Order {
            runtime,
            owned: Mutex::new(owned),
            line: Mutex::new(Line(VecDeque::new())),
            moved: Condvar::new(),
            submitted: AtomicU64::new(0),
            done: AtomicU64::new(0),
            worker: OnceLock::new(),
        }
    }

    /// Gives the queue its background task, whose step is [`Order::run_jobs`].
    pub(crate) fn employ(&self, worker: Box<dyn Background>) {
        // A second worker would be dropped here: there is only one call.
        let _first = self.worker.set(worker);
    }

    fn has_jobs(&self) -> bool {
        self.done.load(Ordering::SeqCst) < self.submitted.load(Ordering::SeqCst)
    }

    fn kick(&self) {
        if let Some(worker) = self.worker.get() {
            worker.kick();
        }
    }

    fn line(&self) -> MutexGuard<'_, Line<T>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the jobs handed in so far, then for the turn.
    pub(crate) fn turn(&self) -> Turn<'_, T> {
        if self.has_jobs() {
            self.wait_for_jobs(self.submitted.load(Ordering::SeqCst));
        }
        let owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        Turn { order: self, owned: Some(owned) }
    }

    fn wait_for_jobs(&self, count: u64) {
        self.kick();
        while self.done.load(Ordering::SeqCst) < count {
            if self.runtime.run_instead_of_waiting() {
                continue;
            }
            let line = self.line();
            if self.done.load(Ordering::SeqCst) < count {
                drop(self.moved.wait(line).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// Puts a job in line and returns.
    pub(crate) fn submit(&self, job: Job<T>) {
        let mut line = self.line();
        line.0.push_back(job);
        self.submitted.fetch_add(1, Ordering::SeqCst);
        drop(line);
        self.kick();
    }

    /// Runs what stands in line. If somebody has the turn, whoever gives it back kicks the worker again.
    pub(crate) fn run_jobs(&self) {
        while self.has_jobs() {
            let mut owned = match self.owned.try_lock() {
                Ok(owned) => owned,
                Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(std::sync::TryLockError::WouldBlock) => return,
            };
            let Some(job) = self.line().0.pop_front() else { return };
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(&mut owned)));
            drop(owned);
            if outcome.is_err() {
                tracing::error!("a job of a Raft log panicked");
            }
            let _line = self.line();
            self.done.fetch_add(1, Ordering::SeqCst);
            self.moved.notify_all();
        }
    }
}

/// The outcome of work that stands in line: a future for any executor; [`Deferred::wait`] blocks instead.
///
/// Dropping it changes nothing: the work is done all the same.
#[derive(Debug)]
#[must_use = "work whose outcome nobody looks at may have failed without notice"]
pub struct Deferred<T> {
    slot: Arc<Slot<T>>,
    runtime: Arc<dyn Runtime>,
}

#[derive(Debug)]
struct Slot<T> {
    state: Mutex<SlotState<T>>,
    filled: Condvar,
}

#[derive(Debug)]
struct SlotState<T> {
    value: Option<T>,
    waker: Option<Waker>,
    /// Nobody will fill the slot any more.
    abandoned: bool,
}

/// Fills the slot of a [`Deferred`].
pub(crate) struct Promise<T>(Arc<Slot<T>>);

impl<T> Slot<T> {
    fn state(&self) -> MutexGuard<'_, SlotState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Promise<T> {
    pub(crate) fn fulfil(self, value: T) {
        self.0.state().value = Some(value);
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.abandoned = state.value.is_none();
        let waker = state.waker.take();
        drop(state);
        self.0.filled.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Deferred<T> {
    pub(crate) fn new(runtime: Arc<dyn Runtime>) -> (Promise<T>, Deferred<T>) {
        let state = Mutex::new(SlotState { value: None, waker: None, abandoned: false });
        let slot = Arc::new(Slot { state, filled: Condvar::new() });
        (Promise(Arc::clone(&slot)), Deferred { slot, runtime })
    }

    /// Blocks until the work is done.
    ///
    /// # Panics
    /// If the work itself panicked.
    pub fn wait(self) -> T {
        let mut state = self.slot.state();
        loop {
            if let Some(value) = state.value.take() {
                return value;
            }
            assert!(!state.abandoned, "the work in line panicked");
            drop(state);
            let ran = self.runtime.run_instead_of_waiting();
            state = self.slot.state();
            if !ran && state.value.is_none() && !state.abandoned {
                state = self.slot.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl<T> Future for Deferred<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut state = self.slot.state();
        match state.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                assert!(!state.abandoned, "the work in line panicked");
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
