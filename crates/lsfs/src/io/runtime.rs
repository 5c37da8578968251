//! Time, randomness, background work and waiting.

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::workers;

/// What a background task's step reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do until the next [`Background::kick`].
    Idle,
    /// Call again soon.
    Again,
    /// Call again after this time, or at the next kick.
    After(Duration),
}

/// One step of background work; called by one thread at a time.
pub type Task = Box<dyn FnMut() -> Step + Send>;

/// A running background task. Dropping it waits for the step under way and ends the task.
pub trait Background: Send + Sync + Debug {
    /// Asks for at least one step after this call. Never blocks; must be called with no lock held, since a
    /// simulated runtime may run the step inside the call.
    fn kick(&self);
}

/// The engine's door to clock, randomness and threads.
pub trait Runtime: Send + Sync + Debug {
    /// Monotonic time since some fixed moment.
    fn now(&self) -> Duration;
    /// Wall-clock milliseconds since the Unix epoch, for information only.
    fn wall_clock_ms(&self) -> u64;
    /// A random number, unpredictable enough for identifiers.
    fn random(&self) -> u64;
    /// Starts a background task that sleeps until kicked. Tasks may share threads: a step that waits for another task
    /// is served, but late.
    fn spawn(&self, name: &str, task: Task) -> std::io::Result<Box<dyn Background>>;
    /// Lets other threads run; a simulated runtime has none.
    fn yield_now(&self) {}
    /// Waits so long; in a simulated runtime only its clock goes on.
    fn sleep(&self, duration: Duration);
    /// Called before the calling thread waits for background work. A simulated runtime, which has no threads,
    /// runs the outstanding steps instead and returns `true`: look again before waiting.
    fn run_instead_of_waiting(&self) -> bool {
        false
    }
}

/// Threads and clocks of the operating system.
#[derive(Debug)]
pub struct OsRuntime {
    start: Instant,
}

impl Default for OsRuntime {
    fn default() -> Self {
        OsRuntime { start: Instant::now() }
    }
}

impl Runtime for OsRuntime {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall_clock_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
    }

    fn random(&self) -> u64 {
        // The standard library seeds each RandomState from the operating system's random numbers.
        RandomState::new().hash_one(self.start.elapsed())
    }

    fn yield_now(&self) {
        thread::yield_now();
    }

    fn sleep(&self, duration: Duration) {
        thread::sleep(duration);
    }

    fn spawn(&self, name: &str, task: Task) -> std::io::Result<Box<dyn Background>> {
        workers::spawn(name, task)
    }
}

/// A word that many threads sleep on and one system call wakes.
///
/// A condition variable wakes its sleepers one after another through its mutex; a futex wakes all sleepers of one
/// batch at once and takes no lock, which is what bounds the rate of many blocking producers.
#[derive(Debug, Default)]
pub(crate) struct EventWord(AtomicU32);

impl EventWord {
    /// The current value, to be passed to [`EventWord::wait`].
    pub(crate) fn load(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Sleeps while the word equals `seen`; may return early.
    pub(crate) fn wait(&self, seen: u32) {
        use rustix::thread::futex;
        // EAGAIN (value changed) and EINTR both mean: look again, which every caller does in a loop.
        let _look_again = futex::wait(&self.0, futex::Flags::PRIVATE, seen, None);
    }

    /// Changes the word and wakes every sleeper.
    pub(crate) fn set_and_wake_all(&self, value: u32) {
        use rustix::thread::futex;
        self.0.store(value, Ordering::Release);
        // Waking cannot fail on a valid address.
        let _woken = futex::wake(&self.0, futex::Flags::PRIVATE, i32::MAX as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn one_store_wakes_all_sleepers() {
        let word = Arc::new(EventWord::default());
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let word = Arc::clone(&word);
                thread::spawn(move || {
                    while word.load() == 0 {
                        word.wait(0);
                    }
                })
            })
            .collect();
        word.set_and_wake_all(1);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
