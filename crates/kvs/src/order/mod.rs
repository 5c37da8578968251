//! The order of keys: sorted parts of the log, which scans and snapshots read.
//!
//! A [`Part`] covers a stretch of the log, from one place to another, and has for each key in it the *last* command. Parts
//! lie one behind the other without gaps from the start of the log on, so the newest part that has a key says what the
//! key is. Old parts are files ([`Run`]), new ones are in memory ([`Sorted`]); small ones are merged into larger ones.
//! [`upkeep`] keeps them for a store that is open for writing, [`reading`] for one that is read beside its writer, and a
//! [`View`] is what both give to a scan.
//!
//! **Invariants.** Everything here is derived from the log. A command in a segment that was reclaimed says nothing: what
//! was live there was written again behind it, and what was not is hidden by something newer, or was removed.

mod gather;
mod merge;
mod reading;
mod run;
mod sorted;
mod upkeep;
mod view;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use lsfs::Env;

use crate::error::{Error, Result};

use self::gather::{SegmentLog, gather};
pub(crate) use self::merge::{Direction, Merge};
pub(crate) use self::reading::ReaderOrder;
#[cfg(test)]
pub(crate) use self::run::examples;
pub(crate) use self::run::is_run;
use self::run::{Run, RunWriter, id_of};
use self::sorted::Spot;
pub(crate) use self::sorted::{Sorted, is_above, is_below};
pub(crate) use self::upkeep::{Order, view_of};
pub(crate) use self::view::{SegmentTable, SetFrame, SetFrames, View};

/// Segment and position of a command in the log.
pub(crate) type Place = (u32, u32);

/// Before the first command.
const START: Place = (0, 0);

/// The last commands of all keys in a stretch of the log.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    from: Place,
    to: Place,
    keys: Keys,
}

#[derive(Clone, Debug)]
enum Keys {
    Memory(Arc<Sorted>),
    Run(Arc<Run>),
}

impl Part {
    /// How many keys it has.
    fn len(&self) -> u64 {
        match &self.keys {
            Keys::Memory(keys) => keys.len() as u64,
            Keys::Run(run) => run.header.entries,
        }
    }

    /// What it says of a key.
    fn find(&self, key: &[u8]) -> Result<Option<Spot>> {
        match &self.keys {
            Keys::Memory(keys) => Ok(keys.find(key)),
            Keys::Run(run) => run.find(key),
        }
    }

    /// Reads all of it, if it is a run.
    fn verify(&self) -> Result<()> {
        match &self.keys {
            Keys::Memory(_) => Ok(()),
            Keys::Run(run) => run.verify(),
        }
    }

    fn is_run(&self) -> bool {
        matches!(self.keys, Keys::Run(_))
    }

    fn run_id(&self) -> Option<u64> {
        match &self.keys {
            Keys::Memory(_) => None,
            Keys::Run(run) => Some(run.header.id),
        }
    }
}

/// The end of what consecutive parts cover.
fn end_of(parts: &[Part]) -> Place {
    parts.last().map_or(START, |part| part.to)
}

/// A part is merged with newer ones that have together at least this share of its keys.
const MERGE_SHARE: u64 = 2;

/// How many of the last parts are to be merged so that each part has more keys than [`MERGE_SHARE`] times all newer ones;
/// fewer than two are not.
fn parts_to_merge(parts: &[Part]) -> usize {
    let (mut count, mut keys) = (0, 0);
    for (n, part) in parts.iter().rev().enumerate() {
        if n > 0 && part.len() > MERGE_SHARE * keys {
            break;
        }
        keys += part.len();
        count = n + 1;
    }
    count
}

/// Merges the newest parts in memory that begin at `from` or behind it, so that there are few.
fn merge_newest(parts: &mut Vec<Part>, from: Place) -> Result<()> {
    let is_fixed = |part: &Part| part.is_run() || part.from < from;
    let first = parts.iter().rposition(is_fixed).map_or(0, |last| last + 1);
    let count = parts_to_merge(&parts[first..]);
    if count > 1 {
        let merged = merge_in_memory(&parts[parts.len() - count..])?;
        parts.truncate(parts.len() - count);
        parts.push(merged);
    }
    Ok(())
}

/// After an error: makes the damaged run among the parts anew from the log, in memory, and answers the new part; `None` if
/// it is not among them any more. Any other error is answered. What is needed of the log, segments in order, must be there
/// still.
fn mend(log: &dyn SegmentLog, parts: &mut [Part], needed: &[u32], error: Error) -> Result<Option<Part>> {
    let Error::RunDamaged { path, .. } = &error else { return Err(error) };
    let is_damaged = |part: &&mut Part| matches!(&part.keys, Keys::Run(run) if run.is_at(path));
    let Some(part) = parts.iter_mut().find(is_damaged) else { return Ok(None) };
    tracing::warn!(%error, "the sorted run is made anew");
    let anew = gather(log, part.from, Some(part.to), usize::MAX)?.part;
    // What was reclaimed since was left out.
    let there = log.numbers()?;
    let of_part = needed.iter().filter(|&&segment| (part.from.0..=part.to.0).contains(&segment));
    if let Some(&segment) = of_part.into_iter().find(|segment| there.binary_search(segment).is_err()) {
        return Err(Error::Outdated { segment });
    }
    *part = anew;
    Ok(Some(part.clone()))
}

/// Merges parts into one in memory.
fn merge_in_memory(parts: &[Part]) -> Result<Part> {
    let mut merge = Merge::seek(parts.iter(), std::ops::Bound::Unbounded, Direction::Forward)?;
    let mut keys = Sorted::default();
    merge.each(|key, spot| {
        keys.push(key, spot);
        ControlFlow::Continue(())
    })?;
    Ok(Part { from: parts[0].from, to: end_of(parts), keys: Keys::Memory(Arc::new(keys)) })
}

/// Merges parts into a run. Commands for which `is_dead` holds are left out; so are removes, if there is nothing before
/// the parts.
fn merge_into_run(
    env: &Env,
    dir: &Path,
    owner: u64,
    parts: &[Part],
    is_dead: impl Fn(u32) -> bool,
) -> Result<Part> {
    let (from, to) = (parts[0].from, end_of(parts));
    let mut merge = Merge::seek(parts.iter(), std::ops::Bound::Unbounded, Direction::Forward)?;
    let mut writer = RunWriter::create(env, dir)?;
    let mut written = Ok(());
    let copied = merge.each(|key, spot| {
        let hides_nothing = spot.is_remove && from == START;
        if !hides_nothing && !is_dead(spot.pointer.segment) {
            written = writer.push(key, spot);
        }
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    if let Err(error) = written.and(copied) {
        writer.abandon();
        return Err(error);
    }
    let run = writer.finish(owner, from, to)?;
    tracing::debug!(keys = run.header.entries, ?from, ?to, "sorted run written");
    Ok(Part { from, to, keys: Keys::Run(Arc::new(run)) })
}

/// The runs in a directory.
#[derive(Debug, Default)]
struct FoundRuns {
    /// Those that belong to the store and cover the log from its start on without gaps, oldest first.
    parts: Vec<Part>,
    /// Ids of all others.
    others: Vec<u64>,
}

/// Opens the runs of a store. What is damaged, of another index, or beyond the end of the log is none of them.
fn find_runs(env: &Env, dir: &Path, owner: u64, log_end: Place) -> Result<FoundRuns> {
    let mut found = FoundRuns::default();
    let mut runs = Vec::new();
    for entry in env.disk.list(dir).map_err(|error| Error::io("list", dir, 0, error))? {
        let Some(id) = id_of(&entry.name) else { continue };
        match Run::open(env, dir, id) {
            Ok(run) if run.header.owner == owner && run.header.to <= log_end => runs.push(run),
            Ok(_) => found.others.push(id),
            Err(error) => {
                tracing::warn!(%error, "a sorted run cannot be used and is made anew");
                found.others.push(id);
            }
        }
    }
    // Of those that begin at a place, the one that covers most; the others were merged into it.
    runs.sort_by_key(|run| (run.header.from, std::cmp::Reverse(run.header.to)));
    for run in runs {
        if run.header.from == end_of(&found.parts) && run.header.to > run.header.from {
            let (from, to) = (run.header.from, run.header.to);
            found.parts.push(Part { from, to, keys: Keys::Run(Arc::new(run)) });
        } else {
            found.others.push(run.header.id);
        }
    }
    Ok(found)
}
