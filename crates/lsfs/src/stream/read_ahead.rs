//! Reading the next run while the present one is decoded.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::io::{AlignedBuf, Background, Runtime, Step};
use crate::stream::cursor::Source;
use crate::stream::segment::Extent;

/// One background fetch at a time, of blocks that a cursor will want next.
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
enum State {
    #[default]
    Idle,
    Asked(Ask),
    Fetching,
    Fetched(Run),
    /// The fetch failed, or fetched nothing: the cursor fetches itself and meets the error there.
    Failed,
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
            move || {
                shared.fetch(&*source);
                Step::Idle
            }
        };
        let background = runtime
            .spawn("lsfs-read", Box::new(task))
            .map_err(|error| Error::io("start a thread to read", std::path::Path::new("a stream"), error))?;
        Ok(ReadAhead { shared, background, runtime })
    }

    /// Begins to fetch; what was fetched before and not taken is given up.
    pub(crate) fn ask(&self, extent: Extent, first: u32, buf: AlignedBuf) {
        let mut state = self.shared.lock();
        if matches!(*state, State::Fetching | State::Asked(_)) {
            return;
        }
        *state = State::Asked(Ask { extent, first, buf });
        drop(state);
        self.background.kick();
    }

    /// The run that was asked for last, waiting for it if it is on its way; `None` if none is.
    pub(crate) fn take(&self) -> Option<Run> {
        let mut state = self.shared.lock();
        while matches!(*state, State::Asked(_) | State::Fetching) {
            drop(state);
            let ran = self.runtime.run_instead_of_waiting();
            state = self.shared.lock();
            if !ran && matches!(*state, State::Asked(_) | State::Fetching) {
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        match std::mem::take(&mut *state) {
            State::Fetched(run) => Some(run),
            _ => None,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetch(&self, source: &dyn Source) {
        let ask = match std::mem::replace(&mut *self.lock(), State::Fetching) {
            State::Asked(ask) => ask,
            other => {
                *self.lock() = other;
                return;
            }
        };
        let Ask { extent, first, mut buf } = ask;
        let fetched = source.fetch(&extent, first, &mut buf);
        *self.lock() = match fetched {
            Ok(count) if count > 0 => State::Fetched(Run { extent, first, buf, count }),
            _ => State::Failed,
        };
        self.changed.notify_all();
    }
}
