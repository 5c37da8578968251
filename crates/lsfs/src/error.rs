//! What can go wrong, for whoever must act on it.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::FileHeaderFault;

/// The result of an engine call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the engine. Each kind asks for a different action.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation of the operating system failed.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause, part of the message.
        source: Arc<io::Error>,
    },
    /// The disk is full. What was acknowledged stays readable.
    #[error("no space left for {}: {needed_bytes} more bytes needed; free some and reopen", path.display())]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
        /// How many bytes it wanted.
        needed_bytes: u64,
    },
    /// Another writer has the directory open.
    #[error(
        "{} is open for writing by {}; close it there or open read-only",
        path.display(),
        pid.map_or("another process".to_string(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The holder's process id, if it could be read.
        pid: Option<u32>,
    },
    /// Another clerk keeps the stream's indexes.
    #[error(
        "the indexes of {} are kept by {}; one clerk is enough",
        path.display(),
        pid.map_or("another process".to_string(), |pid| format!("process {pid}"))
    )]
    ClerkThere {
        /// The stream's directory.
        path: PathBuf,
        /// The clerk's process id, if it could be read.
        pid: Option<u32>,
    },
    /// There is nothing of ours at this path.
    #[error("{} is not {expected}: {reason}", path.display())]
    NotFound {
        /// The path asked for.
        path: PathBuf,
        /// What was expected there.
        expected: &'static str,
        /// What was found instead.
        reason: String,
    },
    /// A file is not of this format, or of a newer one.
    #[error("{}: {fault}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with its header.
        fault: FileHeaderFault,
    },
    /// Bytes that were durable no longer verify. Nothing is dropped; writing past them is refused.
    #[error(transparent)]
    Corrupt(Box<Corruption>),
    /// The record is larger than the stream allows.
    #[error("record of {size_bytes} bytes is over the limit of {limit_bytes} bytes")]
    TooLarge {
        /// Payload bytes.
        size_bytes: u64,
        /// The stream's limit.
        limit_bytes: u64,
    },
    /// There is no record with this index.
    #[error("record {index} is not in the stream, which holds {} to {} (exclusive)", held.start, held.end)]
    OutOfRange {
        /// The index asked for.
        index: u64,
        /// The indexes the stream holds.
        held: Range<u64>,
    },
    /// These records were being written when the write failed: after reopening they may be there or not.
    #[error("records {} to {} (exclusive) are indeterminate: {cause}", records.start, records.end)]
    Indeterminate {
        /// The records in flight.
        records: Range<u64>,
        /// What failed.
        cause: Box<Error>,
    },
    /// An earlier write or sync failed; nothing is written until the stream is reopened.
    #[error("{} was stopped by an earlier failure and must be reopened: {cause}", path.display())]
    Poisoned {
        /// The stream's directory.
        path: PathBuf,
        /// The first failure.
        cause: Box<Error>,
    },
    /// The stream was closed.
    #[error("{} is closed", path.display())]
    Closed {
        /// The stream's directory.
        path: PathBuf,
    },
    /// These entries of a segment set were being written when the write failed: after reopening they may be there or
    /// not.
    #[error("entries at {} to {} (exclusive) of {} are indeterminate: {cause}", positions.start, positions.end, path.display())]
    IndeterminateEntries {
        /// The segment's file.
        path: PathBuf,
        /// The positions in flight.
        positions: Range<u64>,
        /// What failed.
        cause: Box<Error>,
    },
    /// There is no such entry in the segment.
    #[error("{} has no such entry at byte {position}: {reason}", path.display())]
    NoEntry {
        /// The segment's file.
        path: PathBuf,
        /// The position asked for.
        position: u64,
        /// What is there instead.
        reason: String,
    },
    /// The segment went away under a reader: it was purged, truncated or reclaimed. Start again from the first index.
    #[error("segment {} is gone: purged, truncated or reclaimed", path.display())]
    Gone {
        /// The segment's file.
        path: PathBuf,
    },
    /// The directory is not what it was when the repair was planned; nothing was changed.
    #[error("{} has changed since the repair was planned; plan it again", path.display())]
    PlanOutdated {
        /// The directory.
        path: PathBuf,
    },
    /// Every open, truncation and reset takes an epoch, and they are used up; nothing was changed. Readers still read.
    #[error("{} has used up its 2^32 epochs; copy what it holds into a new directory", path.display())]
    EpochsUsedUp {
        /// The directory.
        path: PathBuf,
    },
    /// There is a gap: the record was left out when its segment was rewritten.
    #[error("record {index} was left out when its segment was rewritten; the next one is {next}")]
    LeftOut {
        /// The index asked for.
        index: u64,
        /// The first record behind the gap, or the end of the segment.
        next: u64,
    },
    /// An option has an impossible value.
    #[error("option {option}: {value} is not allowed, expected {expected}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// The value given.
        value: String,
        /// What would be good.
        expected: String,
    },
}

/// Where durable bytes no longer verify.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "corruption in {} at byte {position}{}: {reason}; keep the file and restore from a copy",
    path.display(),
    records.as_ref().map_or(String::new(), |range| format!(" (records {} to {} exclusive)", range.start, range.end))
)]
pub struct Corruption {
    /// The damaged file.
    pub path: PathBuf,
    /// The first byte of the block or slice that does not verify.
    pub position: u64,
    /// The records that are lost or in doubt, where known.
    pub records: Option<Range<u64>>,
    /// What does not agree.
    pub reason: String,
}

impl Error {
    /// Wraps an I/O error with what was tried on which file.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Io { action, path: path.to_path_buf(), source: Arc::new(source) }
    }

    /// As [`Error::io`], naming the bytes needed when the disk is full.
    pub(crate) fn write(action: &'static str, path: &Path, needed_bytes: u64, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::NoSpace { path: path.to_path_buf(), needed_bytes }
            }
            _ => Error::io(action, path, source),
        }
    }

    pub(crate) fn corrupt(
        path: &Path,
        position: u64,
        records: Option<Range<u64>>,
        reason: impl ToString,
    ) -> Error {
        Error::Corrupt(Box::new(Corruption {
            path: path.to_path_buf(),
            position,
            records,
            reason: reason.to_string(),
        }))
    }

    /// Whether durable bytes were found damaged.
    pub fn is_corruption(&self) -> bool {
        match self {
            Error::Corrupt(_) => true,
            Error::Indeterminate { cause, .. }
            | Error::IndeterminateEntries { cause, .. }
            | Error::Poisoned { cause, .. } => cause.is_corruption(),
            _ => false,
        }
    }
}
