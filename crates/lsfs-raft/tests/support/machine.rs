//! A state machine for tests: it counts commands in memory and keeps snapshots in a [`SnapshotStore`].

use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{Stream, StreamExt};
use lsfs_raft::RaftLog;
use lsfs_raft::openraft::{SnapshotData, SnapshotReader, SnapshotStore, Stored};
use openraft::OptionalSend;
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::entry::{RaftEntry, RaftPayload};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};

/// A command: any bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Command(pub(crate) Vec<u8>);

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Stored for Command {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
    fn decode(bytes: &[u8]) -> io::Result<Self> {
        Ok(Command(bytes.to_vec()))
    }
}

openraft::declare_raft_types!(
    /// Numbers for nodes, bytes for commands, nothing for answers.
    pub(crate) Types:
        D = Command,
        R = (),
        Node = openraft::impls::EmptyNode,
        AsyncRuntime = openraft_rt_tokio::TokioRuntime,
);

#[derive(Debug, Default)]
struct Applied {
    last: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
    /// How many entries were applied.
    count: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Machine {
    applied: Arc<Mutex<Applied>>,
    store: SnapshotStore<Types>,
}

impl Machine {
    pub(crate) fn new(log: &RaftLog) -> Machine {
        Machine { applied: Arc::default(), store: SnapshotStore::new(log).unwrap() }
    }

    fn applied(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().unwrap()
    }

    fn load(&self, meta: &SnapshotMetaOf<Types>, mut reader: SnapshotReader) -> io::Result<()> {
        let mut count = [0; 8];
        reader.read_exact(&mut count)?;
        let (last, membership) = (meta.last_log_id, meta.last_membership.clone());
        *self.applied() = Applied { last, membership, count: u64::from_le_bytes(count) };
        Ok(())
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types, SnapshotData>> {
        let (meta, count) = {
            let applied = self.applied();
            let (last_log_id, last_membership) = (applied.last, applied.membership.clone());
            (SnapshotMetaOf::<Types> { last_log_id, last_membership }, applied.count)
        };
        self.store.build(&meta, |out| out.write_all(&count.to_le_bytes()))
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> io::Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>)> {
        let applied = self.applied();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            {
                let mut applied = self.applied();
                applied.last = Some(entry.log_id());
                applied.count += 1;
                if let Some(membership) = entry.payload.get_membership() {
                    applied.membership = StoredMembershipOf::<Types>::new(Some(entry.log_id()), membership);
                }
            }
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let reader = self.store.install(meta, snapshot)?;
        self.load(meta, reader)
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types, SnapshotData>>> {
        self.store.current()
    }
}
