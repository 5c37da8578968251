//! What every directory of ours needs: its lock, its durable names, protection of foreign files.

use std::io;
use std::path::{Path, PathBuf};

use crate::codec::StreamId;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::io::{ANY_UNIT_BYTES, AlignedBuf, LockError, LockGuard, OpenMode, parent_of};

/// Name of the lock file; it holds the writer's process id.
pub(crate) const LOCK_NAME: &str = "lock";
/// Name of the page on which a writer publishes what is durable.
pub(crate) const LIVE_NAME: &str = "live";
/// Name of the lock that a clerk holds.
pub(crate) const CLERK_LOCK_NAME: &str = "clerk";
/// Largest file read whole: final data of the largest state, twice, and some.
const WHOLE_FILE_BYTES_MAX: u64 = 1 << 30;

/// The right to write in a directory.
#[derive(Debug)]
pub(crate) struct WriterLock {
    _guard: Box<dyn LockGuard>,
}

impl WriterLock {
    pub(crate) fn acquire(env: &Env, dir: &Path) -> Result<WriterLock> {
        match env.disk.lock(&dir.join(LOCK_NAME)) {
            Ok(guard) => Ok(WriterLock { _guard: guard }),
            Err(LockError::Held { pid }) => Err(Error::Locked { path: dir.to_path_buf(), pid }),
            Err(LockError::Io(error)) => Err(Error::write("lock", &dir.join(LOCK_NAME), 4096, error)),
        }
    }
}

/// Creates `dir` durably if it is missing.
pub(crate) fn create(env: &Env, dir: &Path) -> Result<()> {
    env.disk.create_dir_all(dir).map_err(|error| Error::write("create directory", dir, 4096, error))
}

/// Refuses to start in a directory that holds somebody else's files.
pub(crate) fn refuse_foreign(env: &Env, dir: &Path, expected: &'static str) -> Result<()> {
    let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    match entries.iter().find(|entry| !is_control(&entry.name)) {
        None => Ok(()),
        Some(entry) => Err(Error::NotFound {
            path: dir.to_path_buf(),
            expected,
            reason: format!("it holds the file {}; use an empty or new directory", entry.name),
        }),
    }
}

/// Whether a file name is one that every writer leaves.
pub(crate) fn is_control(name: &str) -> bool {
    name == LOCK_NAME || name == LIVE_NAME || name == CLERK_LOCK_NAME
}

/// Makes the name of `path` durable.
pub(crate) fn sync_parent(env: &Env, path: &Path) -> Result<()> {
    let dir = parent_of(path);
    env.disk.sync_dir(&dir).map_err(|error| Error::io("sync directory", &dir, error))
}

/// The whole of a small file, or `None` if there is none; zeros follow up to a whole 4 KiB.
pub(crate) fn read_whole(env: &Env, path: &Path) -> Result<Option<AlignedBuf>> {
    let file = match env.disk.open(path, OpenMode::Read, ANY_UNIT_BYTES) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path, error)),
    };
    let read_error = |error| Error::io("read", path, error);
    let len = file.len().map_err(read_error)?;
    if len > WHOLE_FILE_BYTES_MAX {
        let reason = io::Error::new(io::ErrorKind::FileTooLarge, format!("{len} bytes"));
        return Err(Error::io("read", path, reason));
    }
    let mut buf = AlignedBuf::zeroed((len as usize).next_multiple_of(ANY_UNIT_BYTES));
    let count = file.read_full_at(&mut buf, 0).map_err(read_error)?;
    buf[count..].fill(0);
    Ok(Some(buf))
}

/// A new random identity.
pub(crate) fn new_stream_id(env: &Env) -> StreamId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&env.runtime.random().to_le_bytes());
    id[8..].copy_from_slice(&env.runtime.random().to_le_bytes());
    StreamId(id)
}

/// The file of the segment that begins at `base_index`.
pub(crate) fn segment_path(dir: &Path, base_index: u64) -> PathBuf {
    dir.join(format!("{base_index:020}.{SEGMENT_EXTENSION}"))
}

/// Extension of segment files.
pub(crate) const SEGMENT_EXTENSION: &str = "seg";
/// Extension of index files, which lie beside their segments.
pub(crate) const INDEX_EXTENSION: &str = "idx";

/// Extension of statistics files, which lie beside their segments.
pub(crate) const STATISTICS_EXTENSION: &str = "stats";

/// The statistics of the segment in this file.
pub(crate) fn statistics_path(segment_path: &Path) -> PathBuf {
    companion_path(segment_path, STATISTICS_EXTENSION)
}

/// The base index in the name of an index or of statistics; `None` for any other name.
pub(crate) fn companion_base_of(name: &str) -> Option<u64> {
    [INDEX_EXTENSION, STATISTICS_EXTENSION].iter().find_map(|extension| base_index_before(name, extension))
}

/// Removes index and statistics of a segment that is gone; they would only take space.
pub(crate) fn remove_companions(env: &Env, segment_path: &Path) {
    for path in [index_path(segment_path), statistics_path(segment_path)] {
        match env.disk.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "could not remove a file of a dropped segment");
            }
            _ => {}
        }
    }
}

/// The index of the segment in this file.
pub(crate) fn index_path(segment_path: &Path) -> PathBuf {
    companion_path(segment_path, INDEX_EXTENSION)
}

/// A file beside a segment, named by its base index; so also beside a rewritten segment, whose own name says more.
fn companion_path(segment_path: &Path, extension: &str) -> PathBuf {
    let name = segment_path.file_name().and_then(|name| name.to_str());
    match name.and_then(rewritten_of) {
        Some((base, _)) => segment_path.with_file_name(format!("{base:020}.{extension}")),
        None => segment_path.with_extension(extension),
    }
}

/// The file of a rewritten segment: it lies beside the one it replaces until the manifest names it.
pub(crate) fn rewritten_path(dir: &Path, base_index: u64, segment_id: u64) -> PathBuf {
    dir.join(format!("{base_index:020}-{segment_id:016x}.{SEGMENT_EXTENSION}"))
}

/// Base index and segment id in the file name of a rewritten segment; `None` for any other name.
pub(crate) fn rewritten_of(name: &str) -> Option<(u64, u64)> {
    let (base, id) = name.strip_suffix(SEGMENT_EXTENSION)?.strip_suffix('.')?.split_once('-')?;
    let is_number = |text: &str, len| text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_number(base, 20) && is_number(id, 16))
        .then(|| Some((base.parse().ok()?, u64::from_str_radix(id, 16).ok()?)))?
}

/// The base index in a segment's file name; `None` for any other name.
pub(crate) fn base_index_of(name: &str) -> Option<u64> {
    base_index_before(name, SEGMENT_EXTENSION)
}

/// The base index in a file name of twenty digits and this extension; `None` for any other name.
pub(crate) fn base_index_before(name: &str, extension: &str) -> Option<u64> {
    let digits = name.strip_suffix(extension)?.strip_suffix('.')?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// The epoch after this one, in the stream or set in `dir`.
pub(crate) fn next_epoch(dir: &Path, epoch: u32) -> Result<u32> {
    epoch.checked_add(1).ok_or_else(|| Error::EpochsUsedUp { path: dir.to_path_buf() })
}
