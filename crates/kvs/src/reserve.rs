//! Space put by for a full disk: a file that is given up so that removes and compaction can still be written.

use std::io;
use std::path::Path;

use lsfs::Env;
use lsfs::io::OpenMode;

/// Name of the file, in the store's directory.
const NAME: &str = "reserve";
/// Enough for a segment of removes, another of what compaction moves, and a checkpoint.
const BYTES_MAX: u64 = 2 << 20;
/// Enough for the smallest segment that the log makes, and a checkpoint of a small store.
const BYTES_MIN: u64 = 768 << 10;
/// It is at most this part of the log, if that is more than the least.
const LOG_SHARE: u64 = 32;
/// It is made only where so many times its size are free: it must not be what fills the disk.
const FREE_TIMES_MIN: u64 = 2;
/// A page, the unit of the file.
const UNIT_BYTES: usize = 4096;

/// Puts the space by, if it is not, and if there is enough.
pub(crate) fn keep(env: &Env, dir: &Path, log_bytes: u64) {
    let path = dir.join(NAME);
    let bytes = (log_bytes / LOG_SHARE).clamp(BYTES_MIN, BYTES_MAX).next_multiple_of(UNIT_BYTES as u64);
    let is_short = |free| free < FREE_TIMES_MIN * bytes;
    if env.disk.exists(&path) || env.disk.free_bytes(dir).is_ok_and(is_short) {
        return;
    }
    let kept = env.disk.open(&path, OpenMode::CreateNew, UNIT_BYTES).and_then(|file| file.allocate(bytes));
    if let Err(error) = kept {
        tracing::debug!(%error, path = %path.display(), "no space was put by");
    }
}

/// Gives the space up; `true` if there was some.
pub(crate) fn give_up(env: &Env, dir: &Path) -> bool {
    let path = dir.join(NAME);
    match env.disk.remove(&path) {
        Ok(()) => {
            tracing::warn!(path = %path.display(), "the disk is full: the space put by is used");
            true
        }
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::debug!(%error, path = %path.display(), "the space put by could not be given up");
            }
            false
        }
    }
}
