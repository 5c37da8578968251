//! A runtime without threads or clock: background steps run inline, in seeded order.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::rng::SplitMix;
use crate::io::{Background, Runtime, Step, Task};

/// 2025-01-01T00:00:00Z, where the simulated wall clock starts.
const START_MS: u64 = 1_735_689_600_000;

/// A runtime in which nothing happens at the same time and everything follows from the seed.
///
/// [`Background::kick`] draws for each task with outstanding work whether it runs at once, on the caller's
/// stack, or later: at another kick, when somebody would wait for it, or in [`SimRuntime::settle`]. A kick
/// from inside a step is acted upon when the step is over. A clone is the same runtime.
///
/// It is made for tests of one thread: with several nothing deadlocks inside the runtime, but a thread that
/// waits for a step which another thread is running is not told by it.
#[derive(Clone)]
pub struct SimRuntime {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    random: SplitMix,
    schedule: SplitMix,
    inline_percent: u64,
    clock_us: u64,
    /// In the order of spawning.
    tasks: Vec<Arc<SimTask>>,
    /// Steps under way, nested ones counted.
    depth: usize,
}

struct SimTask {
    name: String,
    state: Mutex<TaskState>,
    /// Held during a step. Empty after the handle was dropped.
    task: Mutex<Option<Task>>,
}

#[derive(Default)]
struct TaskState {
    /// Kicked and not yet idle again.
    outstanding: bool,
    /// Drawn to run when the steps under way are over.
    due: bool,
    /// When a task that asked for a pause has outstanding work again.
    resumes_at_us: Option<u64>,
    runner: Option<ThreadId>,
    ended: bool,
}

impl SimRuntime {
    /// A runtime whose kicks run a step inline with probability 1/2.
    pub fn new(seed: u64) -> Self {
        SimRuntime::with_inline_percent(seed, 50)
    }

    /// A runtime whose kicks always run the task until it is idle.
    pub fn always_inline(seed: u64) -> Self {
        SimRuntime::with_inline_percent(seed, 100)
    }

    /// A runtime whose kicks run a step inline with this probability; with 0 only waiting and
    /// [`SimRuntime::settle`] run anything.
    pub fn with_inline_percent(seed: u64, percent: u32) -> Self {
        let shared = Shared {
            random: SplitMix::from_parts(&[seed, 1]),
            schedule: SplitMix::from_parts(&[seed, 2]),
            inline_percent: u64::from(percent),
            clock_us: 0,
            tasks: Vec::new(),
            depth: 0,
        };
        SimRuntime { shared: Arc::new(Mutex::new(shared)) }
    }

    /// Runs all outstanding steps; `true` if there were any.
    pub fn settle(&self) -> bool {
        self.run(|task| task.outstanding)
    }

    /// The number of tasks with outstanding steps.
    pub fn outstanding(&self) -> usize {
        self.shared().tasks.iter().filter(|task| task.state().outstanding).count()
    }

    /// Moves the clock forward; tasks whose pause is over then have outstanding work.
    pub fn advance(&self, by: Duration) {
        let mut shared = self.shared();
        shared.clock_us += by.as_micros() as u64;
        for task in &shared.tasks {
            let mut state = task.state();
            if state.resumes_at_us.is_some_and(|at| at <= shared.clock_us) {
                (state.outstanding, state.resumes_at_us) = (true, None);
            }
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Runs tasks drawn from those that are `ready`, until none is left; `true` if there were any. A task
    /// whose step is under way, by a caller further up this stack or by another thread, is left to that
    /// caller.
    fn run(&self, ready: impl Fn(&TaskState) -> bool) -> bool {
        let mut any = false;
        loop {
            let mut shared = self.shared();
            let is_ready = |task: &&Arc<SimTask>| {
                let state = task.state();
                state.runner.is_none() && ready(&state)
            };
            let choice: Vec<Arc<SimTask>> = shared.tasks.iter().filter(is_ready).map(Arc::clone).collect();
            if choice.is_empty() {
                return any;
            }
            let task = &choice[shared.schedule.below(choice.len() as u64) as usize];
            let mut state = task.state();
            (state.outstanding, state.due, state.resumes_at_us) = (false, false, None);
            state.runner = Some(thread::current().id());
            drop(state);
            shared.depth += 1;
            drop(shared);
            // Restored also if the step panics: a test may catch that.
            let _under_way = UnderWay { runtime: self, task };
            let step = task.step();
            any = true;
            let mut shared = self.shared();
            let mut state = task.state();
            match step {
                Step::Idle => {}
                Step::Again => {
                    // Between two steps of a task other work may come; `due` lets this one go on at once.
                    state.due = shared.draw_inline();
                    state.outstanding = true;
                }
                Step::After(pause) => {
                    state.resumes_at_us = Some(shared.clock_us + pause.as_micros() as u64);
                }
            }
        }
    }
}

impl Shared {
    fn draw_inline(&mut self) -> bool {
        self.schedule.below(100) < self.inline_percent
    }
}

struct UnderWay<'a> {
    runtime: &'a SimRuntime,
    task: &'a SimTask,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.runtime.shared().depth -= 1;
        self.task.state().runner = None;
        self.task.drop_if_ended();
    }
}

impl SimTask {
    fn state(&self) -> MutexGuard<'_, TaskState> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn task(&self) -> MutexGuard<'_, Option<Task>> {
        self.task.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn step(&self) -> Step {
        match self.task().as_mut() {
            Some(task) => task(),
            None => Step::Idle,
        }
    }

    /// Drops what the task owns, with no lock held: that may end other tasks.
    fn drop_if_ended(&self) {
        if self.state().ended {
            let task = self.task().take();
            drop(task);
        }
    }
}

impl Runtime for SimRuntime {
    fn now(&self) -> Duration {
        let mut shared = self.shared();
        shared.clock_us += 1;
        Duration::from_micros(shared.clock_us)
    }

    fn sleep(&self, duration: Duration) {
        self.shared().clock_us += duration.as_micros() as u64;
    }

    fn wall_clock_ms(&self) -> u64 {
        START_MS + self.now().as_millis() as u64
    }

    fn random(&self) -> u64 {
        self.shared().random.next()
    }

    fn spawn(&self, name: &str, task: Task) -> io::Result<Box<dyn Background>> {
        let (state, task) = (Mutex::default(), Mutex::new(Some(task)));
        let task = Arc::new(SimTask { name: name.to_string(), state, task });
        self.shared().tasks.push(Arc::clone(&task));
        Ok(Box::new(SimBackground { runtime: self.clone(), task }))
    }

    fn run_instead_of_waiting(&self) -> bool {
        self.settle()
    }
}

impl fmt::Debug for SimRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = self.shared();
        write!(f, "SimRuntime({} tasks at {} us)", shared.tasks.len(), shared.clock_us)
    }
}

struct SimBackground {
    runtime: SimRuntime,
    task: Arc<SimTask>,
}

impl Background for SimBackground {
    fn kick(&self) {
        let mut guard = self.runtime.shared();
        let shared = &mut *guard;
        self.task.state().outstanding = true;
        for task in &shared.tasks {
            let mut state = task.state();
            // `state.outstanding` first: only tasks with work draw.
            if state.outstanding && shared.schedule.below(100) < shared.inline_percent {
                state.due = true;
            }
        }
        let inside_a_step = shared.depth > 0;
        drop(guard);
        if !inside_a_step {
            self.runtime.run(|task| task.due);
        }
    }
}

impl fmt::Debug for SimBackground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimBackground({})", self.task.name)
    }
}

impl Drop for SimBackground {
    fn drop(&mut self) {
        self.runtime.shared().tasks.retain(|task| !Arc::ptr_eq(task, &self.task));
        let mut state = self.task.state();
        state.ended = true;
        (state.outstanding, state.due) = (false, false);
        // Dropped by its own step: the runner drops the task when the step is over.
        let own_step = state.runner == Some(thread::current().id());
        drop(state);
        if !own_step {
            // Waits for a step under way in another thread.
            self.task.drop_if_ended();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A task that counts its steps and is idle after every `steps`.
    fn counter(runtime: &SimRuntime, steps: usize) -> (Box<dyn Background>, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let step = move || {
            let done = counted.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(steps) { Step::Idle } else { Step::Again }
        };
        (runtime.spawn("counter", Box::new(step)).unwrap(), count)
    }

    #[test]
    fn an_inline_kick_runs_until_idle() {
        let runtime = SimRuntime::always_inline(0);
        let (background, count) = counter(&runtime, 3);
        background.kick();
        assert_eq!((count.load(Ordering::Relaxed), runtime.outstanding()), (3, 0));
        assert!(!runtime.run_instead_of_waiting());
    }

    #[test]
    fn outstanding_steps_run_when_somebody_would_wait() {
        let runtime = SimRuntime::with_inline_percent(0, 0);
        let (one, count) = counter(&runtime, 3);
        let (_other, never) = counter(&runtime, 1);
        one.kick();
        assert_eq!((count.load(Ordering::Relaxed), runtime.outstanding()), (0, 1));
        assert!(runtime.run_instead_of_waiting());
        assert!(!runtime.settle());
        assert_eq!((count.load(Ordering::Relaxed), never.load(Ordering::Relaxed)), (3, 0));
    }

    #[test]
    fn the_seed_decides_what_runs_inline() {
        let run = |seed| {
            let runtime = SimRuntime::new(seed);
            let (background, count) = counter(&runtime, 2);
            let counts: Vec<usize> = (0..20)
                .map(|_| {
                    background.kick();
                    count.load(Ordering::Relaxed)
                })
                .collect();
            (counts, runtime.random(), runtime.now())
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1).0, run(2).0);
        assert_ne!(run(1).1, run(2).1);
    }

    #[test]
    fn a_task_may_kick_itself_and_wait_for_another() {
        let runtime = SimRuntime::always_inline(0);
        let (helper, helped) = counter(&runtime, 2);
        let own: Arc<OnceLock<Arc<dyn Background>>> = Arc::default();
        let mut left = 3;
        let step = {
            let (runtime, own, helped) = (runtime.clone(), Arc::clone(&own), Arc::clone(&helped));
            move || {
                let before = helped.load(Ordering::Relaxed);
                left -= 1;
                if left > 0 {
                    // Outstanding while it waits below, and yet not run inside itself.
                    own.get().unwrap().kick();
                }
                helper.kick();
                assert_eq!(helped.load(Ordering::Relaxed), before, "a kick inside a step runs nothing");
                assert!(runtime.run_instead_of_waiting());
                assert_eq!(helped.load(Ordering::Relaxed), before + 2);
                Step::Idle
            }
        };
        let background = runtime.spawn("main", Box::new(step)).unwrap();
        assert!(own.set(Arc::from(background)).is_ok());
        own.get().unwrap().kick();
        assert_eq!(helped.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn a_dropped_task_does_not_run_and_frees_what_it_owns() {
        let runtime = SimRuntime::with_inline_percent(0, 0);
        let (background, count) = counter(&runtime, 1);
        background.kick();
        drop(background);
        assert!(!runtime.settle());
        assert_eq!((count.load(Ordering::Relaxed), Arc::strong_count(&count)), (0, 1));
    }

    #[test]
    fn a_task_may_drop_its_own_handle() {
        let runtime = SimRuntime::always_inline(0);
        let owned = Arc::new(());
        let held = Arc::clone(&owned);
        let own: Arc<Mutex<Option<Box<dyn Background>>>> = Arc::default();
        let slot = Arc::clone(&own);
        let step = move || {
            let _held = &held;
            drop(slot.lock().unwrap().take());
            Step::Again
        };
        let background: Arc<dyn Background> = Arc::from(runtime.spawn("mayfly", Box::new(step)).unwrap());
        #[derive(Debug)]
        struct Handle(Arc<dyn Background>);
        impl Background for Handle {
            fn kick(&self) {
                self.0.kick();
            }
        }
        let weak = Arc::downgrade(&background);
        *own.lock().unwrap() = Some(Box::new(Handle(background)));
        let kicker = weak.upgrade().unwrap();
        runtime.shared().depth += 1;
        kicker.kick();
        drop(kicker);
        runtime.shared().depth -= 1;
        assert!(runtime.settle());
        assert_eq!((Arc::strong_count(&owned), runtime.outstanding()), (1, 0));
    }

    #[test]
    fn a_panicking_step_leaves_the_runtime_usable() {
        let runtime = SimRuntime::always_inline(0);
        let background = runtime.spawn("panics", Box::new(|| panic!("as the test wants"))).unwrap();
        let kick = std::panic::AssertUnwindSafe(|| background.kick());
        assert!(std::panic::catch_unwind(kick).is_err());
        let (other, count) = counter(&runtime, 1);
        other.kick();
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_clock_moves_a_microsecond_per_look() {
        let runtime = SimRuntime::new(0);
        assert_eq!(runtime.now(), Duration::from_micros(1));
        runtime.advance(Duration::from_secs(2));
        assert_eq!(runtime.now(), Duration::from_micros(2_000_002));
        assert_eq!(runtime.wall_clock_ms(), START_MS + 2000);
    }
}
