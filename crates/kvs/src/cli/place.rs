//! Where the store is, and how a command opens it.

use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvs::{Compression, Error, KvReader, KvStore, Options};

/// How long a command waits for another writer.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Where the store is.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// The store's directory
    #[arg(long, global = true, env = "KVS_DIR", value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

impl Place {
    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the store for a command that sets keys: creates it, with missing parents.
    pub(crate) fn create(&self, compression: Compression) -> kvs::Result<KvStore> {
        self.open_with(|| Options { compression, ..options() })
    }

    /// As [`Place::create`], for a command that leaves the keys in order: a `list` behind it need not sort them.
    pub(crate) fn create_in_order(&self, compression: Compression) -> kvs::Result<KvStore> {
        self.open_with(|| Options { compression, ordered: true, ..options() })
    }

    /// Opens the store that is there; `None` if there is nothing.
    pub(crate) fn open(&self) -> kvs::Result<Option<KvStore>> {
        match self.open_with(|| Options { create: false, ..options() }) {
            Err(Error::NotAStore { .. }) if self.is_empty() => Ok(None),
            other => other.map(Some),
        }
    }

    /// Opens the store that is there for reading, without a lock; `None` if there is nothing.
    pub(crate) fn read(&self) -> kvs::Result<Option<KvReader>> {
        match KvReader::open(&self.dir) {
            Err(Error::NotAStore { .. }) if self.is_empty() => Ok(None),
            other => other.map(Some),
        }
    }

    /// Opens the store that is there for reading, without a lock, for a command that needs one.
    pub(crate) fn read_existing(&self) -> kvs::Result<KvReader> {
        KvReader::open(&self.dir)
    }

    /// Opens the store that is there, for a command that needs one.
    pub(crate) fn open_existing(&self) -> kvs::Result<KvStore> {
        self.open_with(|| Options { create: false, ..options() })
    }

    /// Opens the store that is there, leaving out what is damaged.
    pub(crate) fn repair(&self) -> kvs::Result<KvStore> {
        self.open_with(|| Options { create: false, repair: true, ..options() })
    }

    /// Nothing is there, or a directory without files.
    fn is_empty(&self) -> bool {
        let is_file = |entry: std::io::Result<DirEntry>| {
            entry.and_then(|entry| entry.file_type()).is_ok_and(|kind| kind.is_file())
        };
        self.dir.read_dir().map_or_else(
            |error| error.kind() == std::io::ErrorKind::NotFound,
            |mut entries| !entries.any(is_file),
        )
    }

    fn open_with(&self, options: impl Fn() -> Options) -> kvs::Result<KvStore> {
        let started = Instant::now();
        loop {
            match KvStore::open_with(&self.dir, options()) {
                Err(error) if error.is_locked() && started.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                other => return other,
            }
        }
    }
}

/// No background: what a command does is done when it ends.
fn options() -> Options {
    Options { background: false, ..Options::default() }
}
