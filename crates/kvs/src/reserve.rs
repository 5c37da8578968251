//! Space put by for a full disk: a file that is given up so that removes and compaction can still be written.

use std::io;
use std::path::Path;

use lsfs::Env;
use lsfs::io::OpenMode;

/// Name of the file, in the store's directory.
const NAME: &str = "reserve";
/// Enough for a segment of removes, another of what compaction moves, and a checkpoint.
const BYTES: u64 = 2 << 20;
/// It is made only where so much is free: it must not be what fills the disk.
const FREE_BYTES_MIN: u64 = 16 * BYTES;
/// A page, the unit of the file.
const UNIT_BYTES: usize = 4096;

/// Puts the space by, if it is not, and if there is plenty.
pub(crate) fn keep(env: &Env, dir: &Path) {
    let path = dir.join(NAME);
    if env.disk.exists(&path) || env.disk.free_bytes(dir).is_ok_and(|free| free < FREE_BYTES_MIN) {
        return;
    }
    let kept = env.disk.open(&path, OpenMode::CreateNew, UNIT_BYTES).and_then(|file| file.allocate(BYTES));
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
