//! Reading the next run while the present one is decoded.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::io::{AlignedBuf, Background, Runtime, Step};
use crate::stream::cursor::Source;
use crate::stream::segment::Extent;

/// Fetches under way or waiting to be taken: with two, the disk goes on while a finished one is handed over.
pub(crate) const DEPTH: usize = 2;

/// Background fetches, one at a time, of the runs that a cursor will want next, in order.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    shared: Arc<Shared>,
    background: Box<dyn Background>,
    runtime: Arc<dyn Runtime>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    asked: VecDeque<Ask>,
    fetching: bool,
    fetched: VecDeque<Run>,
    /// Counts the times that all was given up: what was being fetched then is not wanted any more.
    generation: u64,
}

impl State {
    fn is_waited_for(&self) -> bool {
        self.fetched.is_empty() && (self.fetching || !self.asked.is_empty())
    }

    fn give_up(&mut self) {
        self.asked.clear();
        self.fetched.clear();
        self.generation += 1;
    }
}

#[derive(Debug)]
struct Ask {
    extent: Extent,
    first: u32,
    buf: AlignedBuf,
}

/// Blocks fetched ahead. Those before the extent's last block were complete when they were fetched.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) extent: Extent,
    pub(crate) first: u32,
    pub(crate) buf: AlignedBuf,
    pub(crate) count: usize,
}

impl ReadAhead {
    pub(crate) fn start(source: &Arc<dyn Source>) -> Result<ReadAhead> {
        let shared = Arc::new(Shared::default());
        let runtime = source.runtime();
        let task = {
            let (shared, source) = (Arc::clone(&shared), Arc::clone(source));
            move || shared.fetch(&*source)
        };
        let background = runtime
            .spawn("lsfs-read", Box::new(task))
            .map_err(|error| Error::io("start a thread to read", std::path::Path::new("a stream"), error))?;
        Ok(ReadAhead { shared, background, runtime })
    }

    /// Begins to fetch, behind what was asked for before; at most [`DEPTH`] fetches may be asked for and not taken.
    pub(crate) fn ask(&self, extent: Extent, first: u32, buf: AlignedBuf) {
        self.shared.lock().asked.push_back(Ask { extent, first, buf });
        self.background.kick();
    }

    /// The run that was asked for first, waiting for it if it is on its way; `None` if there is none, or if fetching it
    /// failed: the cursor then fetches itself and meets the error there.
    pub(crate) fn take(&self) -> Option<Run> {
        let mut state = self.shared.lock();
        while state.is_waited_for() {
            drop(state);
            let ran = self.runtime.run_instead_of_waiting();
            state = self.shared.lock();
            if !ran && state.is_waited_for() {
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.fetched.pop_front()
    }

    /// Gives up all that was asked for.
    pub(crate) fn give_up(&self) {
        self.shared.lock().give_up();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetch(&self, source: &dyn Source) -> Step {
        let mut state = self.lock();
        let Some(Ask { extent, first, mut buf }) = state.asked.pop_front() else { return Step::Idle };
        state.fetching = true;
        let generation = state.generation;
        drop(state);
        let fetched = source.fetch(&extent, first, &mut buf);
        let mut state = self.lock();
        state.fetching = false;
        if state.generation == generation {
            match fetched {
                Ok(count) if count > 0 => state.fetched.push_back(Run { extent, first, buf, count }),
                // What follows is of no use without it.
                _ => state.give_up(),
            }
        }
        let step = if state.asked.is_empty() { Step::Idle } else { Step::Again };
        drop(state);
        self.changed.notify_all();
        step
    }
}
