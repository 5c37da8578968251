//! What can go wrong, for whoever must act on it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::feed::Position;

/// The result of a call of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the store. Each kind asks for a different action.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The key to remove is not there.
    #[error("key not found")]
    KeyNotFound,
    /// A value read through the string API is not UTF-8; [`KvStore::get_bytes`](crate::KvStore::get_bytes) reads it.
    #[error("the value of key {key:?} is not UTF-8: the byte at {valid_up_to} is wrong; read it as bytes")]
    NotUtf8 {
        /// The key asked for.
        key: String,
        /// How many bytes of the value are UTF-8.
        valid_up_to: usize,
    },
    /// A key read through the string API is not UTF-8; [`Range`](crate::Range) itself gives it as bytes.
    #[error("the key {} is not UTF-8: the byte at {valid_up_to} is wrong; read it as bytes", key.escape_ascii())]
    KeyNotUtf8 {
        /// The key.
        key: Vec<u8>,
        /// How many bytes of it are UTF-8.
        valid_up_to: usize,
    },
    /// A key or value is larger than the format allows; nothing was changed.
    #[error("a {what} of {size_bytes} bytes is over the limit of {limit_bytes} bytes")]
    TooLarge {
        /// `"key"`, `"value"` or `"batch"`.
        what: &'static str,
        /// Its bytes.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// There is no store at this path, or something else.
    #[error("{} is not a key-value store: {reason}", path.display())]
    NotAStore {
        /// The path asked for.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A backup or a restore was asked into a directory that holds something.
    #[error("{} is not empty, it holds {found}; use an empty or new directory", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// A page of the index does not verify. Nothing is lost: a store that meets it makes the index anew from the log, and
    /// the call goes on. So it is met outside only in what [`KvStore::verify`](crate::KvStore::verify) reports, and if the
    /// new index is damaged at once as well.
    #[error(
        "the index is damaged in {} at page {page}: {reason}; nothing is lost: whoever writes and meets it makes the \
         index anew from the log, and so does repair",
        path.display()
    )]
    IndexDamaged {
        /// The index file.
        path: PathBuf,
        /// The page in it.
        page: u32,
        /// What does not agree.
        reason: String,
    },
    /// There is no index that can be used, and the log of which it would be made is damaged as well.
    /// [`Options::repair`](crate::Options::repair) leaves out what is damaged.
    #[error(
        "there is no usable index, and it cannot be made anew: {log}; or let repair leave out what is damaged and name it"
    )]
    LogAndIndexDamaged {
        /// The damage of the log.
        log: Box<Error>,
    },
    /// A frame of the log verifies, but is no command of this store.
    #[error("the log is damaged in segment {segment} at byte {position}: {reason}; restore it from a copy")]
    BadRecord {
        /// Number of the segment.
        segment: u32,
        /// Position of the frame.
        position: u32,
        /// What is wrong.
        reason: String,
    },
    /// The last command of a key may be one that is lost: it is known where it lies and not for which key it was, since it
    /// does not verify. Setting or removing the key mends it.
    #[error(
        "the last command of this key may be the one in segment {segment} at byte {position}, which does not verify: set or \
         remove the key, or let repair leave the command out"
    )]
    CommandLost {
        /// Number of the segment.
        segment: u32,
        /// Position of the frame.
        position: u32,
    },
    /// A sorted run does not verify. It is met outside only in what [`KvStore::verify`](crate::KvStore::verify) reports: who
    /// scans makes the run anew from the log.
    #[error("the sorted run {} is damaged at byte {position}: {reason}; nothing is lost: it is made anew from the log", path.display())]
    RunDamaged {
        /// The run.
        path: PathBuf,
        /// Position of the block in it.
        position: u64,
        /// What does not agree.
        reason: String,
    },
    /// A view of a [`KvReader`](crate::KvReader) needs a part of the log that the writer has given back since.
    #[error("the writer has given back segment {segment}, which this view needs: take a new view")]
    Outdated {
        /// Number of the segment.
        segment: u32,
    },
    /// What comes behind a position of the change feed is not in the log any more: compaction has given it back.
    #[error(
        "changes behind position {position} were given back by compaction: begin again from a backup or a dump"
    )]
    PositionGone {
        /// The position asked for, or reached.
        position: Position,
    },
    /// A position is not one of this store.
    #[error("{position} is not a position of this store: {reason}")]
    WrongPosition {
        /// The position asked for.
        position: Position,
        /// What does not agree.
        reason: String,
    },
    /// A text is not a position.
    #[error(
        "{text:?} is not a position; expected one as the change feed gives them, such as 0123456789abcdef-1-4096"
    )]
    NotAPosition {
        /// The text.
        text: String,
    },
    /// What was exported could not be written.
    #[error("could not write what was exported: {0}")]
    Export(Arc<io::Error>),
    /// An error of the engine: I/O, a full disk, another writer, corruption of the log.
    #[error(transparent)]
    Engine(#[from] lsfs::Error),
}

impl Error {
    /// Wraps an I/O error with what was tried on which file; a full disk names the bytes needed.
    pub(crate) fn io(action: &'static str, path: &Path, needed_bytes: u64, source: io::Error) -> Error {
        let path = path.to_path_buf();
        Error::Engine(match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                lsfs::Error::NoSpace { path, needed_bytes }
            }
            _ => lsfs::Error::Io { action, path, source: Arc::new(source) },
        })
    }

    /// Whether durable bytes were found damaged.
    pub fn is_corruption(&self) -> bool {
        match self {
            // An address of ours at which there is no entry is damage too.
            Error::Engine(lsfs::Error::NoEntry { .. }) => true,
            Error::Engine(error) => error.is_corruption(),
            Error::IndexDamaged { .. } | Error::RunDamaged { .. } => true,
            Error::BadRecord { .. } | Error::CommandLost { .. } => true,
            Error::LogAndIndexDamaged { log } => log.is_corruption(),
            _ => false,
        }
    }

    /// The damage of the index that this is.
    pub(crate) fn index_damage(&self) -> Option<&Error> {
        match self {
            Error::IndexDamaged { .. } => Some(self),
            _ => None,
        }
    }

    /// Whether the disk is full.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Error::Engine(lsfs::Error::NoSpace { .. }))
    }

    /// Whether another writer has the store open.
    pub fn is_locked(&self) -> bool {
        matches!(self, Error::Engine(lsfs::Error::Locked { .. }))
    }
}
