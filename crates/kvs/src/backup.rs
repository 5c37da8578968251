//! Backup and restore: a copy of a store, made while it is written.
//!
//! Both are the same: a [`Snapshot`] is written into a new store, frame by frame, and the new store is verified. A backup
//! is a store like any other; it can be read where it is.
//!
//! **Invariants.** From its first moment to its last the new store has a file beside it that says that it is not
//! finished, and nobody opens such a store. The file goes, durably, when everything else is durable and verified.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lsfs::io::OpenMode;
use lsfs::{Durability, Env};

use crate::error::{Error, Result};
use crate::feed::Position;
use crate::open::{CHECKPOINT_NAME, LOG_NAME};
use crate::options::Options;
use crate::reader::KvReader;
use crate::snapshot::Snapshot;
use crate::store::KvStore;

/// Beside a store that is not whole yet.
pub(crate) const UNFINISHED: &str = "unfinished";
/// Beside a writer, which may give back what the copy needs: so many snapshots are tried.
const ATTEMPTS: u32 = 5;

/// What a backup or a restore has copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupReport {
    /// Keys.
    pub keys: u64,
    /// Bytes of the copy's log in use.
    pub log_bytes: u64,
    /// In the log of the store that was copied: a feed from here has all that the copy does not have. It may begin with
    /// changes that the copy has already, which change nothing.
    pub position: Position,
}

impl KvStore {
    /// Copies the store, as it is at one moment of the call, into a directory that is empty or not there. Writes go on.
    ///
    /// The copy is a store of its own, verified and durable when this returns. Until then, and if this fails or is cut
    /// short, nobody can open it: remove the directory. While it is made, the segments that it needs are not given back.
    ///
    /// # Errors
    /// [`Error::NotEmpty`]; an error that [is corruption](Error::is_corruption) if a value does not verify; an I/O error
    /// or a full disk.
    pub fn backup(&self, dir: impl AsRef<Path>) -> Result<BackupReport> {
        let copy = Copying::begin(self.env(), dir.as_ref())?;
        self.sync()?;
        let position = self.position()?;
        let snapshot = self.snapshot()?;
        // The snapshot may show what is not durable yet; the copy must not have what a crash here takes.
        self.sync()?;
        copy.fill(&snapshot)?;
        copy.finish(position)
    }
}

impl KvReader {
    /// As [`KvStore::backup`], beside a writer or without one. It sees what is durable.
    ///
    /// A writer in another process may give back segments that the copy needs; then it is begun again, with a newer
    /// snapshot.
    ///
    /// # Errors
    /// As for [`KvStore::backup`]; [`Error::Outdated`] if the writer was faster several times.
    pub fn backup(&self, dir: impl AsRef<Path>) -> Result<BackupReport> {
        let copy = Copying::begin(self.env(), dir.as_ref())?;
        let mut attempts = ATTEMPTS;
        loop {
            attempts -= 1;
            let position = self.position()?;
            let snapshot = self.snapshot()?;
            match copy.fill(&snapshot) {
                Err(error @ Error::Outdated { .. }) if attempts > 0 => {
                    tracing::info!(%error, "the copy is begun again");
                }
                other => {
                    other?;
                    if attempts < ATTEMPTS - 1 {
                        copy.remove_others(&snapshot)?;
                    }
                    return copy.finish(position);
                }
            }
        }
    }
}

/// Makes a store from a backup, in a directory that is empty or not there; the backup is only read.
///
/// It is [`KvReader::backup`] the other way round, and promises the same.
///
/// # Errors
/// As there; [`Error::NotAStore`] if there is no backup, or one that was not finished.
pub fn restore(backup: impl Into<PathBuf>, dir: impl AsRef<Path>) -> Result<BackupReport> {
    KvReader::open(backup)?.backup(dir)
}

/// Fails if a backup or a restore into this directory was not finished.
pub(crate) fn refuse_unfinished(env: &Env, dir: &Path) -> Result<()> {
    if !env.disk.exists(&dir.join(UNFINISHED)) {
        return Ok(());
    }
    let reason = format!(
        "a backup or restore into it was not finished, or goes on (there is a file {UNFINISHED}); if none does, remove the directory and begin again"
    );
    Err(Error::NotAStore { path: dir.to_path_buf(), reason })
}

/// A copy that is being made.
struct Copying {
    env: Env,
    dir: PathBuf,
    store: KvStore,
}

impl Copying {
    fn begin(env: &Env, dir: &Path) -> Result<Copying> {
        let disk = &env.disk;
        disk.create_dir_all(dir).map_err(|error| Error::io("create directory", dir, 4096, error))?;
        let files = disk.list(dir).map_err(|error| Error::io("list", dir, 0, error))?;
        let below = [LOG_NAME, CHECKPOINT_NAME].into_iter().filter(|name| disk.exists(&dir.join(name)));
        let found: BTreeSet<&str> = files.iter().map(|file| file.name.as_str()).chain(below).collect();
        if let Some(&found) = found.first() {
            refuse_unfinished(env, dir)?;
            return Err(Error::NotEmpty { path: dir.to_path_buf(), found: found.to_string() });
        }
        let marker = dir.join(UNFINISHED);
        disk.open(&marker, OpenMode::CreateNew, 4096)
            .map_err(|error| Error::io("create", &marker, 4096, error))?;
        sync_dir(env, dir)?;
        let options = Options {
            background: false,
            durability: Durability::Buffer,
            env: env.clone(),
            ..Options::default()
        };
        let store = KvStore::open_to_fill(dir, options)?;
        Ok(Copying { env: env.clone(), dir: dir.to_path_buf(), store })
    }

    fn fill(&self, snapshot: &Snapshot) -> Result<()> {
        snapshot.iter().for_each_frame(|frame| self.store.put_frame(frame))
    }

    /// Removes what an earlier attempt has copied and this snapshot does not have.
    fn remove_others(&self, snapshot: &Snapshot) -> Result<()> {
        for key in self.store.iter()?.keys() {
            let key = key?;
            if !snapshot.contains(&key)? {
                self.store.delete(&key)?;
            }
        }
        Ok(())
    }

    /// Makes it durable, verifies it, and lets others open it.
    fn finish(self, position: Position) -> Result<BackupReport> {
        let Copying { env, dir, store } = self;
        store.checkpoint()?;
        if let Some(damage) = store.verify()?.damage.into_iter().next() {
            return Err(damage);
        }
        let stats = store.stats();
        store.close()?;
        let marker = dir.join(UNFINISHED);
        env.disk.remove(&marker).map_err(|error| Error::io("remove", &marker, 0, error))?;
        sync_dir(&env, &dir)?;
        Ok(BackupReport { keys: stats.keys, log_bytes: stats.log_bytes, position })
    }
}

fn sync_dir(env: &Env, dir: &Path) -> Result<()> {
    env.disk.sync_dir(dir).map_err(|error| Error::io("sync directory", dir, 0, error))
}
