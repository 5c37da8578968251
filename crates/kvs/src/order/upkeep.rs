//! The sorted parts of a store that is open for writing.
//!
//! **What is paid where.** A set or a get pays nothing. The first scan of a store reads the part of the log that no run
//! covers; from then on the background makes runs of what is written, and a scan reads the rest. A close then makes a run
//! of what was written, as it does for a store that has runs. `compact` makes one.
//!
//! **Locks.** That of [`Order`] is taken behind that of maintenance and before that of the writer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::gather::gather;
use super::run::remove_run;
use super::view::{Keeper, View};
use super::{Part, Place, START, end_of, find_runs, mend, merge_into_run, merge_newest, parts_to_merge};
use crate::error::{Error, Result};
use crate::maintenance::Maintenance;
use crate::store::{Inner, Inside, Owner};

/// The background makes a run of so many units of the log, once scans are asked for.
const RUN_UNITS: u64 = 16;
/// A close makes a run from here on.
const CLOSE_UNITS: u64 = 1;
/// A close makes a run of at most this for each byte that was written since the open.
const CLOSE_PER_WRITTEN_BYTE: u64 = 64;
/// Sorted commands in memory for each byte of a unit, at most; the rest is in runs.
const MEMORY_PER_UNIT_BYTE: u64 = 64;

/// The sorted parts of a store.
#[derive(Debug, Default)]
pub(crate) struct Order {
    state: Mutex<State>,
    /// Scans were asked for.
    is_wanted: AtomicBool,
    /// For each segment number, how many views need it and those before it.
    pins: Mutex<BTreeMap<u32, usize>>,
    /// Ids of runs that nothing needs any more: removed in the next call of the owner.
    obsolete: Mutex<Vec<u64>>,
}

#[derive(Debug, Default)]
struct State {
    /// The runs of the directory were looked for.
    is_loaded: bool,
    parts: Vec<Part>,
    /// Parts before it are being written into a run and stay as they are.
    frozen_to: Place,
}

impl Order {
    pub(crate) fn new(is_wanted: bool) -> Order {
        Order { is_wanted: AtomicBool::new(is_wanted), ..Order::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pins(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn obsolete(&self) -> MutexGuard<'_, Vec<u64>> {
        self.obsolete.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is taken from the runs any more; they go in the next call of the owner. Views keep theirs.
    pub(crate) fn forget_runs(&self) {
        let mut state = self.state();
        self.obsolete().extend(state.parts.iter().filter_map(Part::run_id));
        // What is in memory lies behind them, and a part begins where the one before it ends.
        state.parts.clear();
    }

    /// Segments up to this number are needed by views; 0 if none are.
    pub(crate) fn pinned_to(&self) -> u32 {
        self.pins().last_key_value().map_or(0, |(&segment, _)| segment)
    }
}

/// Keeps the segments up to a number from being reclaimed.
#[derive(Debug)]
struct Pin {
    inner: Arc<Inner>,
    segment: u32,
}

impl Pin {
    /// Keeps all segments.
    fn all(inner: &Arc<Inner>) -> Pin {
        // Not while somebody reclaims: it is all or nothing for each segment.
        let _reclaimable = inner.reclaimable();
        *inner.order.pins().entry(u32::MAX).or_default() += 1;
        Pin { inner: Arc::clone(inner), segment: u32::MAX }
    }

    /// Keeps the segments up to this one only.
    fn lower_to(&mut self, segment: u32) {
        *self.inner.order.pins().entry(segment).or_default() += 1;
        self.let_go();
        self.segment = segment;
    }

    fn let_go(&self) {
        let mut pins = self.inner.order.pins();
        if let Some(count) = pins.get_mut(&self.segment) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.segment);
            }
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// What a view of a writer keeps: its segments, and the store open.
#[derive(Debug)]
struct StoreKeeper {
    // In this order: the owner may close the store, which then finds the segments free.
    pin: Pin,
    _owner: Arc<Owner>,
}

impl Keeper for StoreKeeper {
    fn mended(&self, part: &Part) {
        let order = &self.pin.inner.order;
        let mut state = order.state();
        let damaged = state.parts.iter_mut().find(|other| (other.from, other.to) == (part.from, part.to));
        if let Some(damaged) = damaged {
            order.obsolete().extend(damaged.run_id());
            *damaged = part.clone();
        }
    }
}

/// A view of the store as it is now.
pub(crate) fn view_of(owner: &Arc<Owner>) -> Result<Arc<View>> {
    let _inside = Inside::enter();
    let inner = owner.inner();
    inner.order.is_wanted.store(true, Ordering::Relaxed);
    let mut pin = Pin::all(inner);
    let (parts, end) = {
        let mut state = inner.order.state();
        let end = inner.writer().log_end;
        inner.catch_up_order(&mut state, end)?;
        (state.parts.clone(), end)
    };
    pin.lower_to(end.0);
    let keeper = Box::new(StoreKeeper { pin, _owner: Arc::clone(owner) });
    Ok(Arc::new(View::new(parts, Arc::new(inner.log.clone()), keeper)?))
}

impl Inner {
    /// The id that the store's runs carry.
    fn run_owner(&self) -> u64 {
        self.table.read().index.file_id()
    }

    fn memory_max(&self) -> usize {
        (MEMORY_PER_UNIT_BYTE * self.options.unit_bytes()) as usize
    }

    /// Looks for runs, once.
    fn load_order(&self, state: &mut State) -> Result<()> {
        if !state.is_loaded {
            let end = self.writer().log_end;
            let found = find_runs(&self.options.env, &self.dir, self.run_owner(), end)?;
            self.order.obsolete().extend(found.others);
            state.parts = found.parts;
            state.is_loaded = true;
        }
        Ok(())
    }

    /// Reads the log up to `end`, so that the parts cover it. The caller keeps the segments.
    fn catch_up_order(&self, state: &mut State, end: Place) -> Result<()> {
        self.load_order(state)?;
        while end_of(&state.parts) < end {
            let gathered = gather(&self.log, end_of(&state.parts), Some(end), self.memory_max())?;
            state.parts.push(gathered.part);
            state.merge_small()?;
            if !gathered.is_whole {
                // More than fits into memory: paid here, once.
                self.write_memory_parts(state);
            }
        }
        Ok(())
    }

    /// Makes a run of the parts in memory; if that fails they stay there.
    fn write_memory_parts(&self, state: &mut State) {
        let first = state.first_in_memory();
        if first == state.parts.len() || state.frozen_to > START {
            return;
        }
        let written =
            self.log.sync().map_err(Into::into).and_then(|()| self.write_run(&state.parts[first..]));
        match written {
            Ok(run) => {
                state.parts.truncate(first);
                state.parts.push(run);
            }
            Err(error) => tracing::warn!(dir = %self.dir.display(), %error, "no sorted run was written"),
        }
    }

    /// Writes parts, of which the log is durable, into a run.
    fn write_run(&self, parts: &[Part]) -> Result<Part> {
        let numbers: Vec<u32> = self.log.segments().iter().map(|info| info.number).collect();
        let is_dead = |segment| numbers.binary_search(&segment).is_err();
        merge_into_run(&self.options.env, &self.dir, self.run_owner(), parts, is_dead)
    }

    /// Bytes of the log that no run covers.
    fn bytes_without_run(&self, state: &State) -> u64 {
        let (segment, position) = end_of(&state.parts[..state.first_in_memory()]);
        let behind = self.log.segments().into_iter().filter(|info| info.number >= segment);
        behind
            .map(|info| match info.number == segment {
                true => u64::from(info.end.saturating_sub(position)),
                false => info.total_bytes,
            })
            .sum()
    }

    /// A step of the background: makes a run if enough was written, and scans are asked for.
    pub(crate) fn tend_order(&self, maintenance: &mut Maintenance) -> Result<()> {
        if !self.order.is_wanted.load(Ordering::Relaxed) {
            return Ok(());
        }
        let is_due = {
            let mut state = self.order.state();
            self.load_order(&mut state)?;
            self.bytes_without_run(&state) >= RUN_UNITS * self.options.unit_bytes()
        };
        if is_due {
            self.sort_log(maintenance, false)?;
            // The next call of the owner removes the runs that were merged.
            self.has_reclaimable.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes a run of what was written since the open, if that is worth it, for a store whose order somebody asked for: in
    /// this process, or in an earlier one that has left a run.
    pub(crate) fn sort_at_close(&self, maintenance: &mut Maintenance) -> Result<()> {
        let written = self.log.stats().appended_bytes;
        if written < CLOSE_UNITS * self.options.unit_bytes() {
            return Ok(());
        }
        let (has_runs, uncovered) = {
            let mut state = self.order.state();
            self.load_order(&mut state)?;
            (state.first_in_memory() > 0, self.bytes_without_run(&state))
        };
        let is_wanted = has_runs || self.order.is_wanted.load(Ordering::Relaxed);
        let is_worth_it = is_wanted && uncovered >= CLOSE_UNITS * self.options.unit_bytes();
        match is_worth_it && uncovered <= CLOSE_PER_WRITTEN_BYTE.saturating_mul(written) {
            true => self.sort_log(maintenance, false),
            false => Ok(()),
        }
    }

    /// Makes a run of all of the log that has none, and merges runs: those that should be, or all into one.
    pub(crate) fn sort_log(&self, _one_at_a_time: &mut Maintenance, into_one: bool) -> Result<()> {
        {
            let mut state = self.order.state();
            let end = self.writer().log_end;
            self.catch_up_order(&mut state, end)?;
        }
        loop {
            let parts = {
                let mut state = self.order.state();
                let first = state.first_to_merge(into_one);
                let parts = state.parts[first..].to_vec();
                if parts.is_empty() || (parts.len() == 1 && parts[0].is_run()) {
                    return Ok(());
                }
                state.frozen_to = end_of(&parts);
                parts
            };
            // Without the lock: scans go on. What they have added before is in the parts, too, and a run must not know what
            // a crash can lose.
            let run = self.log.sync().map_err(Into::into).and_then(|()| self.write_run(&parts));
            let mut state = self.order.state();
            state.frozen_to = START;
            let run = match run {
                Ok(run) => run,
                Err(error) => {
                    let damaged: Vec<u64> = parts.iter().filter_map(Part::run_id).collect();
                    let mended = mend(&self.log, &mut state.parts, &[], error)?;
                    let is_gone = |id: &u64| !state.parts.iter().any(|part| part.run_id() == Some(*id));
                    self.order.obsolete().extend(damaged.into_iter().filter(is_gone));
                    tracing::debug!(is_mended = mended.is_some(), "merged again");
                    continue;
                }
            };
            if let Some(unused) = state.replace(parts.len(), run) {
                self.order.obsolete().extend(unused.run_id());
                return Ok(());
            }
            self.order.obsolete().extend(parts.iter().filter_map(Part::run_id));
        }
    }

    /// Reads all runs; what does not verify goes to `damaged`, and is made anew when a scan meets it. A file whose header does
    /// not verify is no run: so does a crash leave it.
    pub(crate) fn verify_runs(&self, mut damaged: impl FnMut(Error)) -> Result<()> {
        let parts = {
            let mut state = self.order.state();
            self.load_order(&mut state)?;
            state.parts.clone()
        };
        for part in &parts {
            match part.verify() {
                Err(error @ Error::RunDamaged { .. }) => damaged(error),
                other => other?,
            }
        }
        Ok(())
    }

    /// Removes runs that nothing needs any more; in a call of the owner.
    pub(crate) fn remove_obsolete_runs(&self) {
        for id in std::mem::take(&mut *self.order.obsolete()) {
            remove_run(&self.options.env, &self.dir, id);
        }
    }

    /// How many runs there are, and bytes of the log that none of them covers.
    pub(crate) fn order_stats(&self) -> (u64, u64) {
        let mut state = self.order.state();
        if let Err(error) = self.load_order(&mut state) {
            tracing::warn!(dir = %self.dir.display(), %error, "the sorted runs cannot be looked for");
        }
        (state.first_in_memory() as u64, self.bytes_without_run(&state))
    }
}

impl State {
    /// Runs come first.
    fn first_in_memory(&self) -> usize {
        self.parts.iter().position(|part| !part.is_run()).unwrap_or(self.parts.len())
    }

    /// Merges small parts in memory.
    fn merge_small(&mut self) -> Result<()> {
        merge_newest(&mut self.parts, self.frozen_to)
    }

    /// The first of the last parts that are to become one run.
    fn first_to_merge(&self, into_one: bool) -> usize {
        let in_memory = self.first_in_memory();
        let should_be = self.parts.len() - parts_to_merge(&self.parts).max(1).min(self.parts.len());
        match into_one {
            true => 0,
            false => in_memory.min(should_be),
        }
    }

    /// Puts a run in the place of the `count` parts that it was made of; answers it if they are not there any more.
    fn replace(&mut self, count: usize, run: Part) -> Option<Part> {
        let first = self.parts.iter().position(|part| part.from == run.from);
        let last = self.parts.iter().position(|part| part.to == run.to);
        match (first, last) {
            (Some(first), Some(last)) if first + count == last + 1 => {
                self.parts.splice(first..=last, [run]);
                None
            }
            _ => Some(run),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Keys;
    use super::super::sorted::{Sorted, Spot};
    use super::*;

    fn part(number: u32, keys: usize) -> Part {
        let mut sorted = Sorted::default();
        let pointer = lsfs::codec::Pointer::new(number, 0, 0, lsfs::codec::FrameLayout::Packed);
        (0..keys).for_each(|n| sorted.push(&(n as u32).to_be_bytes(), Spot { pointer, is_remove: false }));
        Part { from: (number, 0), to: (number + 1, 0), keys: Keys::Memory(Arc::new(sorted)) }
    }

    #[test]
    fn small_parts_become_large_ones_and_few() {
        let mut state = State::default();
        for n in 0..1000 {
            state.parts.push(part(n, 1));
            state.merge_small().unwrap();
            assert_eq!(end_of(&state.parts), (n + 1, 0));
            assert!(state.parts.windows(2).all(|two| two[0].to == two[1].from));
            assert!(state.parts.len() < 9, "{n}: {}", state.parts.len());
        }
    }

    #[test]
    fn parts_that_are_being_written_are_left_alone() {
        let parts = vec![part(0, 4), part(1, 1)];
        let mut state = State { parts, frozen_to: (2, 0), ..State::default() };
        state.parts.push(part(2, 9));
        state.merge_small().unwrap();
        assert_eq!(state.parts.len(), 3);
        let run = Part { to: (2, 0), ..part(0, 4) };
        assert!(state.replace(2, run).is_none());
        assert_eq!(state.parts.iter().map(|part| part.from).collect::<Vec<_>>(), [(0, 0), (2, 0)]);
        let foreign = Part { to: (9, 0), ..part(0, 1) };
        assert!(state.replace(1, foreign).is_some());
    }
}
