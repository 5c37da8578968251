//! What lies at a path: which of the engine's three kinds of directory, or a single file.

use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use lsfs::log::is_mmap_log;
use lsfs::{DataStream, Env, FinalData};

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A directory with a record stream.
    RecordStream,
    /// A directory with a data stream; below it is a record stream too.
    DataStream,
    /// A directory with a log in memory-mapped frames.
    MappedLog,
    /// A directory with final data.
    FinalData,
    /// A file.
    File,
}

/// Looks what lies at `path`.
///
/// # Errors
/// If nothing does, or nothing of ours.
pub(crate) fn look(path: &Path) -> anyhow::Result<Place> {
    let metadata = path.metadata().with_context(|| format!("could not look at {}", path.display()))?;
    if !metadata.is_dir() {
        return Ok(Place::File);
    }
    let env = Env::default();
    if DataStream::is_in(&env, path)? {
        return Ok(Place::DataStream);
    }
    if FinalData::is_in(&env, path)? {
        return Ok(Place::FinalData);
    }
    let entries = env.disk.list(path).with_context(|| format!("could not list {}", path.display()))?;
    if entries.iter().any(|entry| entry.name.starts_with("manifest.") || entry.name.ends_with(".seg")) {
        return Ok(Place::RecordStream);
    }
    if is_mmap_log(&env, path)? {
        return Ok(Place::MappedLog);
    }
    let found = match entries.first() {
        Some(entry) => format!("it holds {} and nothing of ours", entry.name),
        None => "it holds no files".to_string(),
    };
    bail!("{} is not a record stream, a mapped log, a data stream or final data: {found}", path.display());
}

/// Refuses a directory of another kind, with the command that is for it. A path that is missing or unknown passes: the
/// engine says what is wrong with it.
pub(crate) fn refuse_other(path: &Path, wanted: Place) -> anyhow::Result<()> {
    match look(path) {
        Ok(found) if found != wanted => match found {
            Place::DataStream => bail!("{} is a data stream: use `lsfs data`", path.display()),
            Place::FinalData => bail!("{} is final data: use `lsfs state`", path.display()),
            Place::RecordStream => {
                bail!("{} is a record stream: use `lsfs record` and `lsfs cat`", path.display())
            }
            Place::MappedLog => {
                bail!("{} is a mapped log: use `lsfs record` and `lsfs cat`", path.display())
            }
            Place::File => bail!("{} is a file, not a directory", path.display()),
        },
        _ => Ok(()),
    }
}

/// Whether somebody has the directory open for writing, and who.
pub(crate) fn writer_of(dir: &Path) -> io::Result<Option<Writer>> {
    let lock = dir.join("lock");
    if !Env::default().disk.is_locked(&lock)? {
        return Ok(None);
    }
    let pid = std::fs::read_to_string(lock).ok().and_then(|text| text.trim().parse().ok());
    Ok(Some(Writer { pid }))
}

/// A process that has a directory open for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Writer {
    /// Its id, if it could be read.
    pub(crate) pid: Option<u32>,
}
