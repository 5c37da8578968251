//! The storage traits of openraft.
//!
//! [`LogStore`] is a [`RaftLogStorage`](::openraft::storage::RaftLogStorage), [`LogReader`] its reader, [`SnapshotStore`]
//! what a state machine keeps its snapshots in. Open the log with [`LogOptions::first_index`](crate::LogOptions) 0:
//! openraft counts from there.
//!
//! A whole cluster is in the example `raft_log`.
//!
//! **Types.** Terms and node ids are `u64`. Application data and nodes say how they are stored by [`Stored`].
//!
//! **Writes.** `append` returns when the entries can be read; many may be on their way under one sync, each `IOFlushed`
//! is called when its entries are durable. Vote, truncation and purge stand in line with them and are durable before
//! their future resolves; no executor thread waits for the disk, but for room in the write buffer.
//!
//! **Committed.** `save_committed` costs no write: the id is stored with the next entry, vote, purge or snapshot. After a
//! crash `read_committed` may answer an earlier one, never a later.
//!
//! **Losses.** A node with a hole keeps its vote and its last log id, so it neither votes twice nor for a log that is
//! shorter than its own was. A read of the hole fails with [`Error::Lost`] inside the [`io::Error`],
//! of kind `InvalidData`; openraft then stops the node. Before it is started again, ask
//! [`RaftLog::check`](crate::RaftLog::check), fetch those entries from a peer and give them to [`LogStore::restore`]; or
//! install a snapshot that covers them.

mod encoding;
mod reader;
mod snapshots;
mod store;

use std::io;

use ::openraft::alias::{CommittedLeaderIdOf, LogIdOf};
use ::openraft::vote::RaftLeaderId;
use ::openraft::{LogId, RaftTypeConfig};

pub use encoding::{CommittedLeader, Stored, StoredEntry};
pub use reader::LogReader;
pub use snapshots::{SnapshotData, SnapshotStore};
pub use store::LogStore;

pub use crate::snapshot::{SnapshotReader, SnapshotWriter};

use crate::entry::EntryId;
use crate::error::Error;

/// Type configurations whose entries and votes can be stored here: implemented for all that fit.
pub trait StoredConfig:
    RaftTypeConfig<
        Term = u64,
        NodeId = u64,
        Node: Stored,
        Entry: StoredEntry,
        LeaderId: RaftLeaderId<Committed: CommittedLeader>,
    >
{
}

impl<C> StoredConfig for C where
    C: RaftTypeConfig<
            Term = u64,
            NodeId = u64,
            Node: Stored,
            Entry: StoredEntry,
            LeaderId: RaftLeaderId<Committed: CommittedLeader>,
        >
{
}

/// The error inside an [`io::Error`]: damage is invalid data, the rest is itself.
fn io_error(error: Error) -> io::Error {
    match error.is_corruption() {
        true => io::Error::new(io::ErrorKind::InvalidData, error),
        false => io::Error::other(error),
    }
}

fn leader_of<C: StoredConfig>(term: u64, leader: u64) -> CommittedLeaderIdOf<C> {
    <C::LeaderId as RaftLeaderId>::new(term, leader).to_committed()
}

fn log_id<C: StoredConfig>(id: EntryId) -> LogIdOf<C> {
    LogId::new(leader_of::<C>(id.term, id.leader), id.index)
}

fn entry_id<C: StoredConfig>(log_id: &LogIdOf<C>) -> EntryId {
    let (term, leader) = log_id.leader_id.parts();
    EntryId { index: log_id.index, term, leader }
}
