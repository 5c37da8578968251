//! The files of a mapped store: their names, and mappings of them that grow.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::{MappedFrameLook, SparseTable};
use crate::directory;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::io::{ANY_UNIT_BYTES, AlignedBuf, File, FileMap, OpenMode, WriteSync};

pub(super) const LOG_EXTENSION: &str = "log";
pub(super) const SPARSE_EXTENSION: &str = "sparse";
pub(super) const RESET_EXTENSION: &str = "reset";
/// Behind the name of a file that is not in its place yet.
const NEW_SUFFIX: &str = ".new";

/// A file of the store by its segment's base offset and extension.
pub(super) fn path_of(dir: &Path, base: u64, extension: &str) -> PathBuf {
    dir.join(format!("{base:020}.{extension}"))
}

/// A rewritten data file before it takes the place of the segments it replaces.
pub(super) fn rewritten_path(dir: &Path, base: u64, rewrite_id: u64) -> PathBuf {
    dir.join(format!("{base:020}.{rewrite_id:016x}.{LOG_EXTENSION}{NEW_SUFFIX}"))
}

/// A file of this extension before it gets its name.
pub(super) fn new_path(dir: &Path, base: u64, extension: &str) -> PathBuf {
    dir.join(format!("{base:020}.{extension}{NEW_SUFFIX}"))
}

/// The names in a directory, by what they are.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Base offsets of `.log` files, rising.
    pub(super) logs: Vec<u64>,
    pub(super) indexes: Vec<u64>,
    pub(super) sparse: Vec<u64>,
    /// A reset that was decided and perhaps not finished.
    pub(super) reset: Option<u64>,
    /// Files under a name for the time being: base offset, and the rewrite's id of a data file.
    pub(super) unfinished: Vec<(String, Option<(u64, u64)>)>,
}

impl Names {
    pub(super) fn list(env: &Env, dir: &Path) -> Result<Names> {
        let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
        let mut names = Names::default();
        for entry in entries {
            let base = |extension| directory::base_index_before(&entry.name, extension);
            if let Some(base) = base(LOG_EXTENSION) {
                names.logs.push(base);
            } else if let Some(base) = base(directory::INDEX_EXTENSION) {
                names.indexes.push(base);
            } else if let Some(base) = base(SPARSE_EXTENSION) {
                names.sparse.push(base);
            } else if let Some(base) = base(RESET_EXTENSION) {
                names.reset = Some(base);
            } else if entry.name.ends_with(NEW_SUFFIX) {
                names.unfinished.push((entry.name.clone(), rewrite_of(&entry.name)));
            }
        }
        names.logs.sort_unstable();
        names.sparse.sort_unstable();
        Ok(names)
    }
}

/// Base offset and id in the name of a rewritten data file.
fn rewrite_of(name: &str) -> Option<(u64, u64)> {
    let stem = name.strip_suffix(NEW_SUFFIX)?.strip_suffix(LOG_EXTENSION)?.strip_suffix('.')?;
    let (base, id) = stem.split_once('.')?;
    let is_base = base.len() == 20 && base.bytes().all(|byte| byte.is_ascii_digit());
    (is_base && id.len() == 16).then(|| Some((base.parse().ok()?, u64::from_str_radix(id, 16).ok()?)))?
}

/// A file in memory.
#[derive(Clone, Debug)]
pub(super) struct MappedFile {
    pub(super) path: PathBuf,
    file: Arc<dyn File>,
    pub(super) map: Arc<dyn FileMap>,
}

/// Files grow by their own length, within these bounds.
const GROWTH_BYTES: std::ops::RangeInclusive<u64> = (64 << 10)..=(1 << 20);

impl MappedFile {
    /// Makes a file of `len` zeros, durable but for its name, and maps it for writing.
    pub(super) fn create(env: &Env, path: &Path, len: u64) -> Result<MappedFile> {
        let failed = |error| Error::write("create", path, len, error);
        let file = env.disk.open(path, OpenMode::CreateNew, ANY_UNIT_BYTES).map_err(failed)?;
        let map = file.map_mut(len).and_then(|map| file.sync().map(|()| map));
        match map {
            Ok(map) => Ok(MappedFile { path: path.to_path_buf(), file, map: map.into() }),
            Err(error) => {
                // Nothing names it; what cannot be removed now is found by the next open.
                if let Err(error) = env.disk.remove(path) {
                    tracing::debug!(path = %path.display(), %error, "could not remove an unused file");
                }
                Err(failed(error))
            }
        }
    }

    /// Maps a file as it is; for writing it is given its space.
    pub(super) fn open(env: &Env, path: &Path, writable: bool) -> Result<MappedFile> {
        let mode = if writable { OpenMode::Write } else { OpenMode::Read };
        let file = match env.disk.open(path, mode, ANY_UNIT_BYTES) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::Gone { path: path.to_path_buf() });
            }
            Err(error) => return Err(Error::io("open", path, error)),
        };
        let len = file.len().map_err(|error| Error::io("measure", path, error))?;
        let map = if writable { file.map_mut(len) } else { file.map(len) };
        let map = map.map_err(|error| Error::write("map", path, len, error))?.into();
        Ok(MappedFile { path: path.to_path_buf(), file, map })
    }

    pub(super) fn len(&self) -> u64 {
        self.map.len()
    }

    /// Whether the file still has a name.
    pub(super) fn is_linked(&self) -> Result<bool> {
        self.file.is_linked().map_err(|error| Error::io("look at", &self.path, error))
    }

    /// Maps what a file open for reading has grown by.
    pub(super) fn remap(&mut self) -> Result<()> {
        let failed = |error| Error::io("map", &self.path, error);
        let len = self.file.len().map_err(failed)?;
        if len > self.len() {
            self.map = self.file.map(len).map_err(failed)?.into();
        }
        Ok(())
    }

    /// Makes the file at least `needed` bytes long, and if there is room longer, up to `most`.
    pub(super) fn reserve(&mut self, needed: u64, most: u64) -> Result<()> {
        if needed <= self.len() {
            return Ok(());
        }
        let unit = ANY_UNIT_BYTES as u64;
        let grown = self.len() + self.len().clamp(*GROWTH_BYTES.start(), *GROWTH_BYTES.end());
        let least = needed.next_multiple_of(unit);
        let wanted = grown.min(most.next_multiple_of(unit)).max(least);
        let map = match self.file.map_mut(wanted) {
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull && wanted > least => {
                self.file.map_mut(least)
            }
            other => other,
        };
        let missing = needed - self.len();
        self.map = map.map_err(|error| Error::write("grow", &self.path, missing, error))?.into();
        Ok(())
    }

    pub(super) fn write(&self, position: u64, bytes: &[u8]) -> Result<()> {
        self.map.write(position, bytes).map_err(|error| Error::io("write", &self.path, error))
    }

    pub(super) fn flush(&self, range: std::ops::Range<u64>) -> Result<()> {
        self.map.flush(range).map_err(|error| Error::io("sync", &self.path, error))
    }

    /// Looks at the frame at `position`.
    pub(super) fn frame_at(&self, position: u64, limit_bytes: u64) -> Result<MappedFrameLook> {
        frame_at(&*self.map, &self.path, position, limit_bytes)
    }

    /// Writes zeros over whatever is not zero from `position` on; answers whether there was anything.
    pub(super) fn clear_from(&self, position: u64) -> Result<bool> {
        let mut piece = vec![0; 64 << 10];
        let (mut at, mut found) = (position, false);
        while at < self.len() {
            let count = piece.len().min((self.len() - at) as usize);
            self.map.read(at, &mut piece[..count]).map_err(|error| Error::io("read", &self.path, error))?;
            let dirty = piece[..count].iter().position(|&byte| byte != 0);
            if let (Some(first), Some(last)) = (dirty, piece[..count].iter().rposition(|&byte| byte != 0)) {
                piece[first..=last].fill(0);
                self.write(at + first as u64, &piece[first..=last])?;
                found = true;
            }
            at += count as u64;
        }
        if found {
            self.flush(position..self.len())?;
        }
        Ok(found)
    }
}

/// Looks at the frame at `position` of a map.
pub(super) fn frame_at(
    map: &dyn FileMap,
    path: &Path,
    position: u64,
    limit_bytes: u64,
) -> Result<MappedFrameLook> {
    let mut header = [0; 8];
    let count = header.len().min(map.len().saturating_sub(position) as usize);
    map.read(position.min(map.len()), &mut header[..count])
        .map_err(|error| Error::io("read", path, error))?;
    Ok(MappedFrameLook::at(&header[..count], position, map.len(), limit_bytes))
}

/// The sparse table of the segment at `base`, if it was rewritten.
pub(super) fn read_sparse(env: &Env, dir: &Path, base: u64) -> Result<Option<SparseTable>> {
    let path = path_of(dir, base, SPARSE_EXTENSION);
    let Some(bytes) = directory::read_whole(env, &path)? else { return Ok(None) };
    match SparseTable::decode(&bytes) {
        Ok(table) if table.base_offset == base => Ok(Some(table)),
        Ok(table) => {
            let reason = format!("the sparse table is that of segment {}", table.base_offset);
            Err(Error::corrupt(&path, 0, None, reason))
        }
        Err(fault) => Err(Error::corrupt(&path, 0, None, fault)),
    }
}

/// Writes a file whole and durable but for its name.
pub(super) fn write_whole(env: &Env, path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |error| Error::write("write", path, bytes.len() as u64, error);
    match env.disk.remove(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let file = env.disk.open(path, OpenMode::CreateNew, ANY_UNIT_BYTES).map_err(failed)?;
    let mut buf = AlignedBuf::zeroed(bytes.len().next_multiple_of(ANY_UNIT_BYTES));
    buf[..bytes.len()].copy_from_slice(bytes);
    file.write_all_at(&buf, 0, WriteSync::Later).and_then(|()| file.sync()).map_err(failed)
}
