//! The sorted parts of a store that is read beside its writer.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use lsfs::{Env, SegmentSetReader};

use super::gather::{SegmentLog, gather};
use super::view::{Keeper, View};
use super::{Part, Place, end_of, find_runs};
use crate::error::{Error, Result};

/// The writer may give back segments between our looks.
const ATTEMPTS: usize = 32;
/// So many commands in memory are reason to look for newer runs.
const MEMORY_COMMANDS_MAX: u64 = 1 << 18;
/// A view holds so many segments, the newest, so that it stays what it is when the writer gives them back.
const HELD_SEGMENTS_MAX: usize = 1024;
/// Behind all places.
const NO_END: Place = (u32::MAX, u32::MAX);

/// The sorted parts of a store, as a reader knows them.
#[derive(Debug, Default)]
pub(crate) struct ReaderOrder {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Id of the index beside which the runs were made.
    owner: Option<u64>,
    is_loaded: bool,
    parts: Vec<Part>,
    /// With so many commands in memory, newer runs are looked for.
    memory_commands_max: u64,
}

/// A reader holds nothing: the writer does not know of it.
#[derive(Debug)]
struct NoKeeper;

impl Keeper for NoKeeper {
    fn mended(&self, _part: &Part) {}
}

impl ReaderOrder {
    /// A view of what is durable now. `owner` is the id of the index of the last checkpoint.
    pub(crate) fn view(
        &self,
        env: &Env,
        dir: &Path,
        log: &SegmentSetReader,
        owner: Option<u64>,
    ) -> Result<Arc<View>> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match self.try_view(env, dir, log, owner) {
                Err(error @ Error::Outdated { .. }) => last = Some(error),
                other => return other.map(Arc::new),
            }
        }
        Err(last.expect("only an error starts it again"))
    }

    fn try_view(&self, env: &Env, dir: &Path, log: &SegmentSetReader, owner: Option<u64>) -> Result<View> {
        // Before the log is read: what was live in a segment that is gone now is found behind it.
        let numbers = SegmentLog::numbers(log)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let in_memory =
            |state: &State| -> u64 { state.parts.iter().filter(|part| !part.is_run()).map(Part::len).sum() };
        if !state.is_loaded || state.owner != owner || in_memory(&state) > state.memory_commands_max {
            let found = match owner {
                Some(owner) => find_runs(env, dir, owner, NO_END)?.parts,
                None => Vec::new(),
            };
            *state = State { owner, is_loaded: true, parts: found, memory_commands_max: 0 };
        }
        let part = gather(log, end_of(&state.parts), None, usize::MAX)?.part;
        if part.to > part.from {
            state.parts.push(part);
            super::merge_newest(&mut state.parts, super::START)?;
        }
        if state.memory_commands_max == 0 {
            state.memory_commands_max = MEMORY_COMMANDS_MAX.max(2 * in_memory(&state));
        }
        let parts = state.parts.clone();
        drop(state);
        let view = View::with_numbers(parts, Arc::new(log.clone()), numbers, Box::new(NoKeeper));
        view.hold(HELD_SEGMENTS_MAX)?;
        Ok(view)
    }
}
