//! Opening a mapped store; the steps are those of docs/durability.md, "The mapped store".

use std::path::Path;
use std::sync::Arc;

use super::files::{self, LOG_EXTENSION, MappedFile, Names, RESET_EXTENSION, SPARSE_EXTENSION};
use super::segment::{Active, Place, Sealed, damage};
use super::{MmapOptions, is_written, open_active};
use crate::codec::MappedFrameLook;
use crate::directory::{self, INDEX_EXTENSION};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::log::cleanup::{DroppedSegment, StorageCleanup};

/// What stands at the path, for messages.
const MMAP_LOG: &str = "a mapped log";
/// A new segment's files are this long.
const INITIAL_BYTES: u64 = 64 << 10;
const INITIAL_INDEX_BYTES: u64 = 4096;
/// The writer may rotate or drop segments between our looks at its files.
const ATTEMPTS: usize = 20;

/// Whether `dir` holds a mapped log: segment files of its names, or what a reset in progress left.
pub fn is_mmap_log(env: &Env, dir: &Path) -> Result<bool> {
    let names = Names::list(env, dir)?;
    Ok(!names.logs.is_empty() || names.reset.is_some())
}

/// A new log starts in an empty directory, or in one where starting was interrupted: then an index lies there alone.
pub(crate) fn refuse_occupied(env: &Env, dir: &Path) -> Result<()> {
    let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let is_ours = |name: &str| {
        directory::is_control(name) || directory::base_index_before(name, INDEX_EXTENSION).is_some()
    };
    match entries.iter().find(|entry| !is_ours(&entry.name)) {
        None => Ok(()),
        Some(entry) => {
            let reason = format!("it holds the file {}; use an empty or new directory", entry.name);
            Err(Error::NotFound { path: dir.to_path_buf(), expected: MMAP_LOG, reason })
        }
    }
}

/// The names of all files a segment may have.
pub(super) fn names_of(base: u64) -> Vec<String> {
    // The table of offsets goes after the data that needs it.
    [LOG_EXTENSION, INDEX_EXTENSION, SPARSE_EXTENSION]
        .iter()
        .map(|extension| format!("{base:020}.{extension}"))
        .collect()
}

/// Makes the files of an empty segment and their durable names.
pub(super) fn create_segment(env: &Env, dir: &Path, base: u64) -> Result<Active> {
    // The index first: a name ending in `.log` is what makes a segment. An older one is of a segment long dropped.
    let index_path = files::path_of(dir, base, INDEX_EXTENSION);
    remove_if_there(env, &index_path)?;
    let index = MappedFile::create(env, &index_path, INITIAL_INDEX_BYTES)?;
    let log = MappedFile::create(env, &files::path_of(dir, base, LOG_EXTENSION), INITIAL_BYTES)?;
    directory::sync_parent(env, &log.path)?;
    Ok(Active::new(base, log, Some(index)))
}

pub(super) fn remove_if_there(env: &Env, path: &Path) -> Result<()> {
    match env.disk.remove(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Brings the log back for writing; the caller has the lock.
pub(super) fn recover(
    env: &Env,
    dir: &Path,
    options: &MmapOptions,
    cleanup: &dyn StorageCleanup,
) -> Result<(Vec<Arc<Sealed>>, Active)> {
    // 1. A reset that was decided is finished.
    let mut names = Names::list(env, dir)?;
    if let Some(offset) = names.reset {
        finish_reset(env, dir, offset, cleanup)?;
        names = Names::list(env, dir)?;
    }

    // 2. A rewrite whose table has its name is finished, any other is dropped.
    for (name, rewrite) in &names.unfinished {
        match rewrite {
            Some((base, id))
                if files::read_sparse(env, dir, *base)?.is_some_and(|table| table.rewrite_id == *id) =>
            {
                finish_rewrite(env, dir, *base, *id, cleanup)?;
            }
            _ => remove_if_there(env, &dir.join(name))?,
        }
    }
    if !names.unfinished.is_empty() {
        names = Names::list(env, dir)?;
    }

    // 3. Each segment ends where the next begins; tables and indexes without a segment are left-overs.
    for base in
        names.sparse.iter().chain(&names.indexes).filter(|base| names.logs.binary_search(base).is_err())
    {
        cleanup.remove(&DroppedSegment { base_offset: *base, names: names_of(*base) })?;
    }
    let Some((&last, sealed)) = names.logs.split_last() else {
        return Ok((Vec::new(), create_segment(env, dir, options.first_offset)?));
    };
    let mut sealed = sealed_of(dir, sealed, last);
    if let Some(table) = files::read_sparse(env, dir, last)? {
        // The segment behind a rewritten one is missing, as after a crash that lost its empty file.
        sealed.push(Arc::new(Sealed::new(last, table.next_offset, files::path_of(dir, last, LOG_EXTENSION))));
        return Ok((sealed, create_segment(env, dir, table.next_offset)?));
    }

    // 4. The frames of the last segment are walked; what is behind them is cleared, durably, before anything follows.
    let mut active = open_active(env, dir, last, true)?;
    active.scan(options.record_limit_bytes)?;
    let place = Place { offset: active.next(), position: active.end };
    if let look @ MappedFrameLook::OverLimit { .. } = active.behind {
        return Err(damage(&active.log.path, place, look, options.record_limit_bytes));
    }
    if active.log.clear_from(active.end)? {
        tracing::warn!(path = %active.log.path.display(), ?place, behind = ?active.behind, "torn tail cleared");
    }
    active.behind = MappedFrameLook::Free;
    // What was read may be in the page cache only; from now on others may rely on it.
    active.log.flush(0..active.end)?;
    // The same for its name: whoever created it may have been killed before it was durable.
    directory::sync_parent(env, &active.log.path)?;

    // 5. The index of the last segment is made to say what the frames are.
    active.mend_index()?;
    tracing::info!(dir = %dir.display(), next = active.next(), segments = sealed.len() + 1, "mapped log opened");
    Ok((sealed, active))
}

fn sealed_of(dir: &Path, bases: &[u64], last: u64) -> Vec<Arc<Sealed>> {
    let nexts = bases.iter().skip(1).chain([&last]);
    let segment =
        |(&base, &next)| Arc::new(Sealed::new(base, next, files::path_of(dir, base, LOG_EXTENSION)));
    bases.iter().zip(nexts).map(segment).collect()
}

/// Looks at the log without changing anything.
pub(super) fn look(env: &Env, dir: &Path, options: &MmapOptions) -> Result<(Vec<Arc<Sealed>>, Active)> {
    for _ in 1..ATTEMPTS {
        match look_once(env, dir, options) {
            Err(Error::Gone { .. }) => continue,
            other => return other,
        }
    }
    look_once(env, dir, options)
}

fn look_once(env: &Env, dir: &Path, options: &MmapOptions) -> Result<(Vec<Arc<Sealed>>, Active)> {
    let mut names = Names::list(env, dir)?;
    if let Some(offset) = names.reset {
        // Decided and not finished: the log is empty, or has what was appended since.
        names.logs.retain(|base| *base == offset);
        if names.logs.is_empty() || is_left_from_before(env, dir, offset)? {
            // As it is once the reset is finished; the marker is an empty file.
            let marker = MappedFile::open(env, &files::path_of(dir, offset, RESET_EXTENSION), false)?;
            return Ok((Vec::new(), Active::new(offset, marker, None)));
        }
    }
    let mut rewritten = Vec::new();
    for (base, id) in names.unfinished.iter().filter_map(|(_, rewrite)| *rewrite) {
        if let Some(table) = files::read_sparse(env, dir, base)?
            && table.rewrite_id == id
        {
            names.logs.retain(|other| !(base..table.next_offset).contains(other));
            rewritten.push(Arc::new(Sealed::new(
                base,
                table.next_offset,
                files::rewritten_path(dir, base, id),
            )));
        }
    }
    let Some((&last, sealed)) = names.logs.split_last() else {
        let reason = "it holds no segments".to_string();
        return Err(Error::NotFound { path: dir.to_path_buf(), expected: MMAP_LOG, reason });
    };
    let mut sealed = sealed_of(dir, sealed, last);
    for segment in rewritten {
        // The segment before it was taken to reach to the one after it.
        let at = sealed.partition_point(|other| other.base < segment.base);
        if let Some(before) = at.checked_sub(1) {
            let (base, path) = (sealed[before].base, sealed[before].log_path.clone());
            sealed[before] = Arc::new(Sealed::new(base, segment.base, path));
        }
        sealed.insert(at, segment);
    }
    let mut active = open_active(env, dir, last, false)?;
    extend(env, dir, options, &mut active)?;
    Ok((sealed, active))
}

/// Takes in what the last segment holds by now, of a writer's what it published.
fn extend(env: &Env, dir: &Path, options: &MmapOptions, active: &mut Active) -> Result<()> {
    for _ in 0..ATTEMPTS {
        if is_written(env, dir)? {
            return active.scan_published(options.record_limit_bytes);
        }
        let (known, end) = (active.positions.len(), active.end);
        active.scan(options.record_limit_bytes)?;
        if !is_written(env, dir)? {
            return Ok(());
        }
        // A writer that came meanwhile may have been in the middle of a frame's length.
        active.positions.truncate(known);
        active.end = end;
    }
    Ok(())
}

/// Brings a look up to date if only the last segment grew; `false` if more has changed.
pub(super) fn follow(
    env: &Env,
    dir: &Path,
    options: &MmapOptions,
    sealed: &[Arc<Sealed>],
    active: &mut Active,
) -> Result<bool> {
    let oldest = sealed.first().map_or(&active.log.path, |oldest| &oldest.log_path);
    if !active.log.is_linked()? || !env.disk.exists(oldest) {
        return Ok(false);
    }
    active.log.remap()?;
    match &mut active.index {
        Some(index) if index.is_linked()? => index.remap()?,
        _ => return Ok(false),
    }
    extend(env, dir, options, active)?;
    let rotated =
        !active.positions.is_empty() && env.disk.exists(&files::path_of(dir, active.next(), LOG_EXTENSION));
    Ok(!rotated)
}

/// Whether the segment with the name that a reset makes is still the old one: it holds frames.
fn is_left_from_before(env: &Env, dir: &Path, offset: u64) -> Result<bool> {
    let active = open_active(env, dir, offset, false)?;
    Ok(active.log.frame_at(0, u64::MAX)? != MappedFrameLook::Free)
}

/// Finishes a reset whose marker has its name. Nothing is appended before the marker is gone.
pub(super) fn finish_reset(
    env: &Env,
    dir: &Path,
    offset: u64,
    cleanup: &dyn StorageCleanup,
) -> Result<Active> {
    let names = Names::list(env, dir)?;
    let mut bases: Vec<u64> = [names.logs, names.indexes, names.sparse].concat();
    bases.sort_unstable();
    bases.dedup();
    for base_offset in bases {
        cleanup.remove(&DroppedSegment { base_offset, names: names_of(base_offset) })?;
    }
    for (name, _) in &names.unfinished {
        remove_if_there(env, &dir.join(name))?;
    }
    let active = create_segment(env, dir, offset)?;
    let marker = files::path_of(dir, offset, RESET_EXTENSION);
    remove_if_there(env, &marker)?;
    directory::sync_parent(env, &marker)?;
    Ok(active)
}

/// Finishes a rewrite whose table has its name: the data file takes its place, the segments it replaces go.
pub(super) fn finish_rewrite(
    env: &Env,
    dir: &Path,
    base: u64,
    id: u64,
    cleanup: &dyn StorageCleanup,
) -> Result<()> {
    let Some(table) = files::read_sparse(env, dir, base)? else { return Ok(()) };
    for base_offset in Names::list(env, dir)?.logs {
        if base_offset > base && base_offset < table.next_offset {
            cleanup.remove(&DroppedSegment { base_offset, names: names_of(base_offset) })?;
        }
    }
    // The old index is of the old frames.
    remove_if_there(env, &files::path_of(dir, base, INDEX_EXTENSION))?;
    let index = files::new_path(dir, base, INDEX_EXTENSION);
    if env.disk.exists(&index) {
        let path = files::path_of(dir, base, INDEX_EXTENSION);
        env.disk.rename(&index, &path).map_err(|error| Error::io("rename an index to", &path, error))?;
    }
    let path = files::path_of(dir, base, LOG_EXTENSION);
    let from = files::rewritten_path(dir, base, id);
    env.disk
        .rename(&from, &path)
        .map_err(|error| Error::io("rename a rewritten segment to", &path, error))?;
    directory::sync_parent(env, &path)
}
