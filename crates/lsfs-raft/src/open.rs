//! Opening a log: the files, and what a crash left undone.
//!
//! The steps are numbered in docs/durability.md, "Raft logs".

use std::path::Path;
use std::sync::Arc;

use lsfs::{Env, FinalData, FinalDataOptions, RecordStream, StreamOptions};

use crate::error::{Error, Result};
use crate::names;
use crate::options::LogOptions;
use crate::replaced::ReplacedEntries;
use crate::shared::Shared;
use crate::state::State;
use crate::writer::{self, Writer};

/// Opens or creates the log in `dir`.
pub(crate) fn open(env: &Env, dir: &Path, options: &LogOptions) -> Result<(Arc<Shared>, Writer)> {
    options.check()?;
    // 1. The state; its lock is the log's.
    let state_dir = dir.join("state");
    let state_options = FinalDataOptions {
        block_bytes: options.stream.block_bytes,
        checksum: options.stream.checksum,
        ..FinalDataOptions::default()
    };
    let state_file = FinalData::open_in(env.clone(), &state_dir, state_options)?;
    let stored = state_file.get().map(|stored| State::decode(&stored.bytes)).transpose();
    let stored = stored.map_err(|fault| Error::State { path: state_dir, fault })?;
    // 2. The entries.
    let stream_options = StreamOptions { first_index: options.first_index, ..options.stream.clone() };
    let entries = RecordStream::open_in(env.clone(), dir.join("entries"), stream_options)?;
    // 3. A log without a state is new.
    let mut state = match stored {
        Some(state) => state,
        None => begin(dir, options, &entries, &state_file)?,
    };
    if state.origin != options.first_index {
        let (path, stored, asked) = (dir.to_path_buf(), state.origin, options.first_index);
        return Err(Error::FirstIndex { path, stored, asked });
    }
    // 4. The entries that took the place of others.
    let replaced = open_replaced(env, dir, options, &mut state, &state_file)?;
    let doubted: Vec<_> = state.doubted.iter().map(|doubt| doubt.indexes.clone()).collect();
    let shared = Shared::new(env.clone(), dir.to_path_buf(), options.clone(), entries, state, replaced);
    let shared = Arc::new(shared);
    shared.entries.lost_ranges().into_iter().for_each(|range| shared.note_repaired(range));
    doubted.into_iter().for_each(|indexes| shared.note_loss(indexes));
    // 5. A purge that the state decided and the entries have not seen.
    let (purged, restarted) = {
        let view = shared.view();
        (view.state.purged, view.state.restarted)
    };
    if let Some(purged) = purged.filter(|purged| shared.entries.first_index() <= purged.index) {
        // Entries that were not durable yet may be missing at the end.
        let begin = purged.index + 1;
        writer::carry_out_purge(&shared, begin, restarted || shared.entries.next_index() < begin)?;
    }
    let mut writer = Writer::new(Arc::clone(&shared), state_file);
    let bounds = shared.bounds();
    // 6. What the state says of entries that did not become durable, or were cut off; not of those that are lost.
    let end = bounds.next.max(shared.missing_end(&shared.view()).end);
    writer.forget_from(end)?;
    shared.view_mut().replaced.cut_before(bounds.first);
    let replaced = shared.view().replaced.reach_of();
    let known = shared.view().state.replaced;
    if replaced.is_some_and(|(low, high)| known.is_none_or(|known| low < known.0 || high > known.1)) {
        // The state was to follow when the machine stopped.
        writer.change_state(|state| state.replaced = replaced)?;
    }
    // 7. What was committed and applied when the last entry was stored.
    if !bounds.is_empty() {
        let last = shared.read_with(bounds.next - 1, |raw| (raw.id(), raw.progress()));
        match last {
            Ok((id, _)) if shared.id_of(id.index) != Some(id) => {
                let known = shared.id_of(id.index).map(|known| known.term);
                return Err(Error::StateBehind {
                    path: dir.to_path_buf(),
                    index: id.index,
                    term: id.term,
                    known,
                });
            }
            Ok((_, (commit_next, applied_next))) => shared.advance(commit_next, applied_next),
            Err(error) if error.is_corruption() => {}
            Err(error) => return Err(error),
        }
    }
    // 8. Snapshots that nothing names.
    writer::clear_unnamed_slots(&shared);
    Ok((shared, writer))
}

fn begin(dir: &Path, options: &LogOptions, entries: &RecordStream, state_file: &FinalData) -> Result<State> {
    if entries.next_index() > entries.first_index() {
        return Err(Error::StateMissing { path: dir.to_path_buf() });
    }
    if entries.next_index() != options.first_index {
        // Its creation was cut short, with other options.
        entries.reset_to(options.first_index)?;
    }
    let state = State::new(options.first_index);
    state_file.set(&state.encode())?;
    Ok(state)
}

/// The replaced entries. If their streams are damaged, what is left goes into new ones; the rest is in doubt from now on,
/// for it cannot be told from what it replaced.
fn open_replaced(
    env: &Env,
    dir: &Path,
    options: &LogOptions,
    state: &mut State,
    state_file: &FinalData,
) -> Result<ReplacedEntries> {
    match ReplacedEntries::open(env, dir, state.replaced_dir, options, state.replaced.is_some()) {
        Err(Error::Engine(error)) if names::is_gone(&error) => {
            let salvage = ReplacedEntries::salvage(env, dir, state.replaced_dir, state.replaced)?;
            tracing::error!(dir = %dir.display(), %error, lost = ?salvage.doubts, "replaced entries are damaged");
            state.replaced_dir += 1;
            let replaced = ReplacedEntries::renew(env, dir, state.replaced_dir, options, &salvage)?;
            salvage.doubts.iter().for_each(|doubt| state.doubted.add(doubt.indexes.clone(), doubt.of));
            state.replaced = replaced.reach_of();
            state_file.set(&state.encode())?;
            Ok(replaced)
        }
        other => other,
    }
}
