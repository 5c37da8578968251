//! Removing what truncation and rewriting leave behind.

use std::fmt::Debug;
use std::path::PathBuf;

use crate::env::Env;
use crate::error::{Error, Result};

/// What is left of a segment that nothing names any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DroppedSegment {
    /// Its first offset.
    pub base_offset: u64,
    /// The names of its files or objects in the log, data first.
    pub names: Vec<String>,
}

/// Deletes what a log drops, wherever it lies.
///
/// A log calls it for one segment after the other, oldest first, and after a crash again for what it finds left over.
pub trait StorageCleanup: Send + Sync + Debug {
    /// Removes everything the segment names; gone for good on return. What is gone already is no error.
    fn remove(&self, dropped: &DroppedSegment) -> Result<()>;
}

/// Removes files of a directory.
#[derive(Clone, Debug)]
pub struct LocalFileSystem {
    env: Env,
    dir: PathBuf,
}

impl LocalFileSystem {
    /// For the log in `dir`.
    pub fn new(env: Env, dir: impl Into<PathBuf>) -> LocalFileSystem {
        LocalFileSystem { env, dir: dir.into() }
    }
}

impl StorageCleanup for LocalFileSystem {
    fn remove(&self, dropped: &DroppedSegment) -> Result<()> {
        for name in &dropped.names {
            let path = self.dir.join(name);
            match self.env.disk.remove(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path, error));
                }
                _ => tracing::debug!(path = %path.display(), "removed"),
            }
        }
        self.env.disk.sync_dir(&self.dir).map_err(|error| Error::io("sync directory", &self.dir, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_no_error_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.log", "a.idx", "b.log"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let cleanup = LocalFileSystem::new(Env::default(), dir.path());
        let dropped =
            DroppedSegment { base_offset: 0, names: vec!["a.log".into(), "a.idx".into(), "a.x".into()] };
        cleanup.remove(&dropped).unwrap();
        cleanup.remove(&dropped).unwrap();
        let left: Vec<_> = dir.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["b.log"]);
    }
}
