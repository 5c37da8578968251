//! Making a damaged log usable again, explicitly.

use std::path::Path;

use lsfs::repair::{RepairMode, plan};
use lsfs::{Corruption, Env, FinalData, FinalDataOptions};

use crate::error::{Error, Result};
use crate::losses::Ranges;
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
        doubt_state(env, &state_dir)?;
        report.state_is_doubtful = true;
    }
    let of_entries = plan(env, dir.join("entries"), RepairMode::Keep)?;
    if !of_entries.steps.is_empty() {
        of_entries.apply()?;
    }
    report.findings = of_state.findings.into_iter().chain(of_entries.findings).collect();
    let mut lost = Ranges::default();
    of_entries.lost.into_iter().for_each(|range| lost.add(range));
    report.lost = lost.iter().cloned().collect();
    Ok(report)
}

/// Marks the node as broken: a vote may be forgotten.
fn doubt_state(env: &Env, dir: &Path) -> Result<()> {
    let file = FinalData::open_in(env.clone(), dir, FinalDataOptions::default())?;
    if let Some(stored) = file.get() {
        let wrong = |fault| Error::State { path: dir.to_path_buf(), fault };
        let mut state = State::decode(&stored.bytes).map_err(wrong)?;
        let reason = "the state was repaired and may be an older one: its vote may be forgotten";
        state.broken = Some(reason.to_string());
        file.set(&state.encode())?;
    }
    Ok(file.close()?)
}
