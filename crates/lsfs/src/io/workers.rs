//! The threads that the background tasks of a process share.
//!
//! A task has no thread of its own: a kick puts it into a queue, and a worker takes it out for one step. Workers are
//! made when they are needed and go when they are not, so a thousand idle streams cost no thread. Most steps wait for
//! the disk, so more of them run at a time than there are processors, but beyond [`WORKERS_MAX`] a step waits for its
//! turn, unless nothing moves any more: then those under way may be waiting for it, and it gets a worker all the same.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::{Background, Step, Task};

/// Workers beyond this number are only made when the others are stuck.
const WORKERS_MAX: usize = 32;
/// How long no step may begin, with some waiting, before the workers count as stuck.
const STUCK_AFTER: Duration = Duration::from_millis(2);
/// How long a worker waits for something to do before it goes.
const IDLE_TIME: Duration = Duration::from_secs(5);

static WORKERS: LazyLock<Workers> = LazyLock::new(Workers::default);

/// Starts a background task that sleeps until kicked.
pub(super) fn spawn(name: &str, task: Task) -> io::Result<Box<dyn Background>> {
    // An error to make threads should show here, where somebody can be told.
    WORKERS.ensure_one()?;
    let job = Arc::new(Job {
        name: name.to_string(),
        state: Mutex::default(),
        step_over: Condvar::new(),
        task: Mutex::new(Some(task)),
    });
    Ok(Box::new(Handle { job }))
}

#[derive(Debug, Default)]
struct Workers {
    queue: Mutex<Queue>,
    /// Something is due.
    due: Condvar,
    /// Something is due and all workers are busy.
    overdue: Condvar,
    pauses: Mutex<Pauses>,
    /// A pause may end earlier than those that were known.
    paused: Condvar,
}

/// The jobs that asked for a pause, in the order in which the pauses end.
#[derive(Debug, Default)]
struct Pauses {
    ends: BTreeMap<(Instant, u64), Weak<Job>>,
    has_timer: bool,
}

#[derive(Debug, Default)]
struct Queue {
    due: VecDeque<Arc<Job>>,
    threads: usize,
    idle: usize,
    /// Counts the steps begun.
    begun: u64,
    has_watcher: bool,
}

/// A background task: at any time idle, in the queue once, or at a worker.
struct Job {
    name: String,
    state: Mutex<JobState>,
    step_over: Condvar,
    /// Locked during a step only. Empty once the task has ended.
    task: Mutex<Option<Task>>,
}

#[derive(Debug, Default)]
struct JobState {
    kicked: bool,
    is_queued: bool,
    runner: Option<ThreadId>,
    has_ended: bool,
    /// The pause that a kick has not ended.
    pause: Option<u64>,
    /// The last pause as the timer knows it, so that it knows one for each job.
    timed: Option<(Instant, u64)>,
}

/// What a worker does with a job after a step.
enum Next {
    Rest,
    Queue,
    Pause { end: (Instant, u64), replaces: Option<(Instant, u64)> },
}

impl Workers {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ensure_one(&'static self) -> io::Result<()> {
        let mut queue = self.lock();
        if queue.threads == 0 { self.add_worker(&mut queue) } else { Ok(()) }
    }

    fn add_worker(&'static self, queue: &mut Queue) -> io::Result<()> {
        thread::Builder::new().name("lsfs-worker".to_string()).spawn(|| self.work())?;
        queue.threads += 1;
        Ok(())
    }

    fn submit(&'static self, job: Arc<Job>) {
        let mut queue = self.lock();
        queue.due.push_back(job);
        if queue.due.len() <= queue.idle {
            drop(queue);
            self.due.notify_one();
        } else if queue.threads < WORKERS_MAX {
            self.add_worker_or_log(&mut queue);
        } else if !queue.has_watcher {
            queue.has_watcher =
                thread::Builder::new().name("lsfs-watch".to_string()).spawn(|| self.watch()).is_ok();
        } else {
            drop(queue);
            self.overdue.notify_one();
        }
    }

    fn add_worker_or_log(&'static self, queue: &mut Queue) {
        if let Err(error) = self.add_worker(queue) {
            // Those that are there take it when they come to it.
            tracing::warn!(threads = queue.threads, %error, "could not start a worker");
        }
    }

    fn work(&'static self) {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.due.pop_front() {
                queue.begun += 1;
                drop(queue);
                let next = job.step();
                if let Next::Pause { end, replaces } = next {
                    self.pause(&job, end, replaces);
                }
                queue = self.lock();
                if matches!(next, Next::Queue) {
                    // This worker takes the next one itself: nobody needs to be woken.
                    queue.due.push_back(job);
                }
                continue;
            }
            queue.idle += 1;
            let (guard, waited) =
                self.due.wait_timeout(queue, IDLE_TIME).unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            queue.idle -= 1;
            // The last one stays: that threads can be made was promised when the tasks were.
            if waited.timed_out() && queue.due.is_empty() && queue.threads > 1 {
                queue.threads -= 1;
                return;
            }
        }
    }

    fn pauses(&self) -> MutexGuard<'_, Pauses> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pause(&'static self, job: &Arc<Job>, end: (Instant, u64), replaces: Option<(Instant, u64)>) {
        let mut pauses = self.pauses();
        replaces.and_then(|replaced| pauses.ends.remove(&replaced));
        pauses.ends.insert(end, Arc::downgrade(job));
        if !pauses.has_timer {
            let timer = thread::Builder::new().name("lsfs-timer".to_string()).spawn(|| self.end_pauses());
            pauses.has_timer = timer.is_ok();
            if let Err(error) = timer {
                // Kicks still come through; the next pause tries again.
                tracing::warn!(task = job.name, %error, "could not start a timer");
            }
        }
        drop(pauses);
        self.paused.notify_one();
    }

    /// Queues jobs whose pause is over.
    fn end_pauses(&'static self) {
        let mut pauses = self.pauses();
        loop {
            let now = Instant::now();
            let Some((&(end, number), _)) = pauses.ends.first_key_value() else {
                pauses = self.paused.wait(pauses).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            if end > now {
                let waited = self.paused.wait_timeout(pauses, end - now);
                pauses = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let ended = pauses.ends.pop_first().and_then(|(_, job)| job.upgrade());
            drop(pauses);
            if let Some(job) = ended
                && job.end_pause(number)
            {
                self.submit(job);
            }
            pauses = self.pauses();
        }
    }

    /// Adds a worker whenever something is due and no step has begun for a while.
    fn watch(&'static self) {
        let mut queue = self.lock();
        loop {
            if queue.due.is_empty() {
                queue = self.overdue.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let begun = queue.begun;
            drop(queue);
            thread::sleep(STUCK_AFTER);
            queue = self.lock();
            if queue.begun == begun && queue.due.len() > queue.idle {
                self.add_worker_or_log(&mut queue);
            }
        }
    }
}

impl Job {
    fn state(&self) -> MutexGuard<'_, JobState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn task(&self) -> MutexGuard<'_, Option<Task>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the job is to be queued because it was kicked: it is not if it is queued, or under way and told.
    fn kick(&self) -> bool {
        let mut state = self.state();
        state.kicked = true;
        state.pause = None;
        state.queue_if_at_rest()
    }

    /// Whether the job is to be queued because this pause is over: it is not if a kick was earlier.
    fn end_pause(&self, number: u64) -> bool {
        let mut state = self.state();
        state.pause == Some(number) && state.queue_if_at_rest()
    }

    /// Runs one step.
    fn step(&self) -> Next {
        let mut state = self.state();
        state.is_queued = false;
        if state.has_ended {
            return Next::Rest;
        }
        state.kicked = false;
        state.runner = Some(thread::current().id());
        drop(state);
        let mut task = self.task();
        let step = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match task.as_mut() {
            Some(task) => task(),
            None => Step::Idle,
        }));
        if step.is_err() {
            tracing::error!(task = self.name, "a background task panicked");
            self.state().has_ended = true;
        }
        // Its owner may have gone meanwhile, or the step itself was the owner. What a task owns may own tasks.
        let ended = if self.state().has_ended { task.take() } else { None };
        drop(task);
        drop(ended);
        let mut state = self.state();
        state.runner = None;
        let next = match step {
            _ if state.has_ended => Next::Rest,
            _ if state.kicked => Next::Queue,
            Ok(Step::Again) => Next::Queue,
            // A pause without an end that a clock could show is only ended by a kick.
            Ok(Step::After(pause)) => match Instant::now().checked_add(pause) {
                Some(until) => Next::Pause { end: (until, next_pause()), replaces: state.timed },
                None => Next::Rest,
            },
            Ok(Step::Idle) | Err(_) => Next::Rest,
        };
        match next {
            Next::Queue => state.is_queued = true,
            Next::Pause { end, .. } => (state.pause, state.timed) = (Some(end.1), Some(end)),
            Next::Rest => {}
        }
        let has_ended = state.has_ended;
        drop(state);
        // Only who ends a task waits for its step.
        if has_ended {
            self.step_over.notify_all();
        }
        next
    }
}

impl JobState {
    fn queue_if_at_rest(&mut self) -> bool {
        let is_at_rest = !self.is_queued && self.runner.is_none() && !self.has_ended;
        self.is_queued |= is_at_rest;
        is_at_rest
    }
}

/// A number that no pause had before.
fn next_pause() -> u64 {
    static PAUSES: AtomicU64 = AtomicU64::new(1);
    PAUSES.fetch_add(1, Ordering::Relaxed)
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("name", &self.name).field("state", &*self.state()).finish()
    }
}

/// A task's owner.
#[derive(Debug)]
struct Handle {
    job: Arc<Job>,
}

impl Background for Handle {
    fn kick(&self) {
        if self.job.kick() {
            WORKERS.submit(Arc::clone(&self.job));
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.job.state();
        state.has_ended = true;
        // The last owner may be the task itself (a callback that drops the stream): it cannot wait for itself.
        if state.runner == Some(thread::current().id()) {
            return;
        }
        while state.runner.is_some() {
            state = self.job.step_over.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let task = self.job.task().take();
        drop(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    #[test]
    fn a_kick_runs_steps_until_idle_and_drop_ends_the_task() {
        let (sender, receiver) = mpsc::channel();
        let mut left = 3;
        let task = Box::new(move || {
            sender.send(left).unwrap();
            left -= 1;
            if left > 0 { Step::Again } else { Step::Idle }
        });
        let background = spawn("test", task).unwrap();
        background.kick();
        assert_eq!((receiver.recv(), receiver.recv(), receiver.recv()), (Ok(3), Ok(2), Ok(1)));
        drop(background);
        assert!(receiver.recv().is_err());
    }

    #[test]
    fn a_kick_during_a_step_runs_another() {
        let (started, is_started) = mpsc::channel();
        let (go, may_go) = mpsc::channel();
        let task = Box::new(move || {
            started.send(()).unwrap();
            may_go.recv().unwrap();
            Step::Idle
        });
        let background = spawn("test", task).unwrap();
        background.kick();
        is_started.recv().unwrap();
        background.kick();
        go.send(()).unwrap();
        is_started.recv().unwrap();
        go.send(()).unwrap();
    }

    #[test]
    fn a_task_is_called_again_after_its_pause_or_at_a_kick() {
        let (sender, receiver) = mpsc::channel();
        let mut pauses = [Duration::from_millis(1), Duration::from_secs(3600)].into_iter();
        let task = move || {
            sender.send(()).unwrap();
            pauses.next().map_or(Step::Idle, Step::After)
        };
        let background = spawn("test", Box::new(task)).unwrap();
        background.kick();
        assert_eq!((receiver.recv(), receiver.recv()), (Ok(()), Ok(())));
        background.kick();
        assert_eq!(receiver.recv(), Ok(()));
        drop(background);
        assert!(receiver.recv().is_err());
    }

    #[test]
    fn many_tasks_share_few_threads() {
        let steps = Arc::new(AtomicUsize::new(0));
        let (sender, receiver) = mpsc::channel();
        let tasks: Vec<_> = (0..1000)
            .map(|_| {
                let (steps, sender) = (Arc::clone(&steps), sender.clone());
                let task = Box::new(move || {
                    steps.fetch_add(1, Ordering::Relaxed);
                    sender.send(thread::current().id()).unwrap();
                    Step::Idle
                });
                spawn("test", task).unwrap()
            })
            .collect();
        tasks.iter().for_each(|task| task.kick());
        let threads: std::collections::HashSet<_> = receiver.iter().take(1000).collect();
        assert_eq!(steps.load(Ordering::Relaxed), 1000);
        // Tests run beside this one may have got the workers stuck and more added.
        assert!(threads.len() < 200, "{} threads", threads.len());
    }

    #[test]
    fn a_step_that_others_wait_for_gets_a_worker_beyond_the_limit() {
        let (sender, receiver) = mpsc::channel();
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let stuck: Vec<_> = (0..WORKERS_MAX + 8)
            .map(|_| {
                let (gate, sender) = (Arc::clone(&gate), sender.clone());
                let task = Box::new(move || {
                    let (open, changed) = &*gate;
                    let _open = changed.wait_while(open.lock().unwrap(), |open| !*open).unwrap();
                    sender.send(()).unwrap();
                    Step::Idle
                });
                let task = spawn("waits", task).unwrap();
                task.kick();
                task
            })
            .collect();
        let opener = {
            let gate = Arc::clone(&gate);
            let task = Box::new(move || {
                *gate.0.lock().unwrap() = true;
                gate.1.notify_all();
                Step::Idle
            });
            spawn("opens", task).unwrap()
        };
        opener.kick();
        assert_eq!(receiver.iter().take(stuck.len()).count(), stuck.len());
    }

    #[test]
    fn a_task_that_drops_its_own_handle_or_panics_ends() {
        let slot: Arc<Mutex<Option<Box<dyn Background>>>> = Arc::default();
        let (sender, receiver) = mpsc::channel();
        let task = {
            let slot = Arc::clone(&slot);
            Box::new(move || {
                drop(slot.lock().unwrap().take());
                sender.send(()).unwrap();
                Step::Again
            })
        };
        let background = spawn("mayfly", task).unwrap();
        let mut guard = slot.lock().unwrap();
        guard.insert(background).kick();
        drop(guard);
        assert_eq!(receiver.recv(), Ok(()));
        assert!(receiver.recv().is_err(), "the task was dropped");

        let background = spawn("panics", Box::new(|| panic!("as the test wants"))).unwrap();
        background.kick();
        drop(background);
    }
}
