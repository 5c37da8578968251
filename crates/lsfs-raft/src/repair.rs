//! Making a damaged log usable again, explicitly.

use std::path::Path;

use lsfs::repair::{RepairMode, plan};
use lsfs::{Corruption, Env, FinalData, FinalDataOptions, Reader};

use crate::error::{Error, Result};
use crate::losses::Ranges;
use crate::shared::RawEntry;
use crate::state::State;

/// What a repair found and did.
#[derive(Clone, Debug, Default)]
pub struct Repair {
    /// Everything that did not verify.
    pub findings: Vec<Corruption>,
    /// The indexes of the entries that are lost; the opened log names their terms, see `RaftLog::lost`.
    pub lost: Vec<std::ops::Range<u64>>,
    /// The state (term, vote, configuration) may be an older one: the log is marked as broken, for the node could vote
    /// twice in a term.
    pub state_is_doubtful: bool,
}

/// Repairs the log in `dir`, which must be stopped: keeps every entry that verifies, names those that are lost, and lets
/// the log be opened again. What is changed is copied before (docs/durability.md, "Repair"). A log in order stays as it is.
///
/// # Errors
/// [`Error::Engine`] with `lsfs::Error::Locked` if it is open, with `lsfs::Error::Corrupt` if nothing is left to repair
/// it from, as when no state verifies.
pub fn repair(env: &Env, dir: impl AsRef<Path>) -> Result<Repair> {
    let dir = dir.as_ref();
    let mut report = Repair::default();
    let state_dir = dir.join("state");
    let of_state = plan(env, &state_dir, RepairMode::Keep)?;
    if !of_state.steps.is_empty() {
        of_state.apply()?;
    }
    let of_entries = plan(env, dir.join("entries"), RepairMode::Keep)?;
    if !of_entries.steps.is_empty() {
        of_entries.apply()?;
    }
    let is_mended = !of_state.steps.is_empty();
    report.state_is_doubtful = catch_up(env, dir, &state_dir, is_mended)?;
    report.findings = of_state.findings.into_iter().chain(of_entries.findings).collect();
    let mut lost = Ranges::default();
    of_entries.lost.into_iter().for_each(|range| lost.add(range));
    report.lost = lost.iter().cloned().collect();
    Ok(report)
}

/// Reads from the entries which terms the state has missed, and marks the node as broken if it was mended or behind: a
/// vote may be forgotten. Answers whether it was.
fn catch_up(env: &Env, dir: &Path, state_dir: &Path, is_mended: bool) -> Result<bool> {
    let file = FinalData::open_in(env.clone(), state_dir, FinalDataOptions::default())?;
    let Some(stored) = file.get() else { return Ok(false) };
    let wrong = |fault| Error::State { path: state_dir.to_path_buf(), fault };
    let mut state = State::decode(&stored.bytes).map_err(wrong)?;
    let entries = Reader::open_in(env.clone(), dir.join("entries"))?;
    let held = entries.bounds()?;
    let known = state.terms.runs().last().map_or(held.start, |run| run.index.max(held.start));
    let mut missed = 0;
    for index in known..held.end {
        let id = match entries.read(index) {
            Ok(record) => RawEntry::decode(index, record.type_code, &record.payload)?.id(),
            Err(error) if error.is_corruption() => continue,
            Err(error) => return Err(error.into()),
        };
        if state.terms.id_of(index) != Some(id) {
            state.terms.begin(id);
            missed += 1;
        }
    }
    let is_doubtful = is_mended || missed > 0;
    if is_doubtful {
        state.term = state.term.max(state.terms.last().map_or(0, |(term, _)| term));
        let reason = "the state was repaired and may be an older one: its vote may be forgotten";
        state.broken = Some(reason.to_string());
        file.set(&state.encode())?;
    }
    file.close()?;
    Ok(is_doubtful)
}
