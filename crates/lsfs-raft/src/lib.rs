//! A Raft log on [`lsfs`]: entries, vote, configuration and snapshots of one node.
//!
//! The principal type is [`RaftLog`]. Entries are records of a record stream (record index = Raft index, type code =
//! kind), written with group commit; term, vote and configuration are one state, replaced as a whole; snapshots are data
//! streams, sent and taken in chunks with resume. All writes pass through one ordered queue. What was lost to damage is
//! named by index and term, the rest stays usable ([`RaftLog::lost`], [`RaftLog::restore`]).
//!
//! It knows no network and no async runtime; futures run on any executor. With the feature `openraft`, the module
//! `openraft` has the storage traits of that library.
//!
//! What each call promises about power failures is in `docs/durability.md`, the bytes on disk in `docs/format.md`, the
//! decisions in `docs/design/0012-raft-log.md`.

mod entry;
mod error;
mod fields;
#[cfg(test)]
mod format_examples;
#[cfg(feature = "openraft")]
mod formed;
mod log;
mod losses;
mod moment;
mod names;
mod open;
#[cfg(feature = "openraft")]
pub mod openraft;
mod options;
mod order;
mod repair;
mod replaced;
mod shared;
mod snapshot;
mod state;
mod statistics;
mod terms;
mod writer;

pub use entry::{ENTRY_MAGIC, Entry, EntryHeader, EntryId, EntryKind, NewEntry};
pub use error::{EntryFault, Error, Result, StateFault};
pub use log::{Appending, Entries, RaftLog};
pub use losses::LostRange;
pub use options::LogOptions;
pub use order::Deferred;
pub use repair::{Repair, repair};
pub use snapshot::{SnapshotChunk, SnapshotReader, SnapshotWriter};
pub use state::{ClusterConfig, ClusterNode, SnapshotMeta, Vote};
pub use statistics::Statistics;
