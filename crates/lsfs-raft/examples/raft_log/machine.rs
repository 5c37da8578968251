//! The state machine: a map of words to numbers, in memory, with its snapshots beside the log.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{Stream, StreamExt};
use lsfs_raft::RaftLog;
use lsfs_raft::openraft::{SnapshotData, SnapshotReader, SnapshotStore, Stored};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::entry::{RaftEntry, RaftPayload};
use openraft::impls::EmptyNode;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};

/// Sets a word to a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) word: String,
    pub(crate) number: u64,
}

impl std::fmt::Display for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.word, self.number)
    }
}

impl Stored for Set {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.to_string().into_bytes());
    }

    fn decode(bytes: &[u8]) -> io::Result<Self> {
        let text = String::decode(bytes)?;
        let parsed = text
            .split_once('=')
            .and_then(|(word, number)| Some(Set { word: word.to_string(), number: number.parse().ok()? }));
        parsed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} sets nothing")))
    }
}

openraft::declare_raft_types!(
    /// Numbers for nodes, words for commands, nothing for answers.
    pub(crate) Types:
        D = Set,
        R = (),
        Node = EmptyNode,
        AsyncRuntime = openraft_rt_tokio::TokioRuntime,
);

#[derive(Debug, Default)]
pub(crate) struct Words {
    pub(crate) numbers: BTreeMap<String, u64>,
    pub(crate) applied: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
}

#[derive(Clone, Debug)]
pub(crate) struct Machine {
    words: Arc<Mutex<Words>>,
    pub(crate) snapshots: SnapshotStore<Types>,
}

impl Machine {
    /// A machine without words, whose snapshots lie beside this log.
    pub(crate) fn new(log: &RaftLog) -> lsfs_raft::Result<Machine> {
        Ok(Machine { words: Arc::default(), snapshots: SnapshotStore::new(log)? })
    }

    pub(crate) fn words(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, meta: &SnapshotMetaOf<Types>, mut reader: SnapshotReader) -> io::Result<()> {
        let mut text = String::new();
        reader.read_to_string(&mut text)?;
        let mut numbers = BTreeMap::new();
        for line in text.lines() {
            let Set { word, number } = Set::decode(line.as_bytes())?;
            numbers.insert(word, number);
        }
        *self.words() =
            Words { numbers, applied: meta.last_log_id, membership: meta.last_membership.clone() };
        Ok(())
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types, SnapshotData>> {
        let (meta, text) = {
            let words = self.words();
            let text: String =
                words.numbers.iter().map(|(word, number)| format!("{word}={number}\n")).collect();
            let (last_log_id, last_membership) = (words.applied, words.membership.clone());
            (SnapshotMetaOf::<Types> { last_log_id, last_membership }, text)
        };
        self.snapshots.build(&meta, move |out| out.write_all(text.as_bytes())).await
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> io::Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>)> {
        let words = self.words();
        Ok((words.applied, words.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            {
                let mut words = self.words();
                words.applied = Some(entry.log_id());
                if let Some(membership) = entry.payload.get_membership() {
                    words.membership = StoredMembershipOf::<Types>::new(Some(entry.log_id()), membership);
                }
                if let EntryPayload::Normal(Set { word, number }) = entry.payload {
                    words.numbers.insert(word, number);
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
        let reader = self.snapshots.install(meta, snapshot).await?;
        self.load(meta, reader)
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types, SnapshotData>>> {
        self.snapshots.current()
    }
}
