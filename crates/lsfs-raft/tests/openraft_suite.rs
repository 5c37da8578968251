//! openraft's own suite: on the store as it is, on a store that is closed and opened again after every call, and on one
//! whose machine loses power after every call.

#[path = "../examples/raft_log/machine.rs"]
#[allow(dead_code, reason = "the example looks at more of it")]
mod machine;
mod support;

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex};

use futures_util::Stream;
use lsfs::Env;
use lsfs::io::{CrashStyle, SimDisk, SimRuntime};
use lsfs_raft::openraft::{LogReader, LogStore};
use lsfs_raft::{LogOptions, RaftLog};
use machine::{Machine, Types};
use openraft::alias::{LeaderIdOf, LogIdOf, VoteOf};
use openraft::storage::{IOFlushed, LeaderBoundedStreamError, LogState, RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::alias::EntryOf;
use openraft::{OptionalSend, StorageError};
use support::small_options;

/// Runs the suite; the clock of its pauses does not wait.
fn run<L, G, B>(builder: B)
where
    L: RaftLogStorage<Types>,
    G: Send + Sync,
    B: StoreBuilder<Types, L, Machine, G>,
{
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(Suite::test_all(builder)).unwrap();
}

struct OnDisk;

impl StoreBuilder<Types, LogStore<Types>, Machine, tempfile::TempDir> for OnDisk {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore<Types>, Machine), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions { first_index: 0, ..LogOptions::default() };
        let log = RaftLog::open(dir.path().join("log"), options).unwrap();
        Ok((dir, LogStore::new(&log).unwrap(), Machine::new(&log).unwrap()))
    }
}

#[test]
fn the_suite_passes() {
    run(OnDisk);
}

/// What happens to the node after every call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Reopen,
    PowerFail,
}

/// A store of which nothing but the disk outlives a call.
struct Interrupted {
    then: Then,
    node: Arc<Mutex<Node>>,
}

struct Node {
    disk: SimDisk,
    opens: u64,
    /// `None` while it is opened again.
    open: Option<(RaftLog, LogStore<Types>)>,
}

const DIR: &str = "/raft";

impl Node {
    fn open(&mut self) {
        self.opens += 1;
        let runtime = SimRuntime::always_inline(self.opens);
        let env = Env { disk: Arc::new(self.disk.clone()), runtime: Arc::new(runtime) };
        let log = RaftLog::open_in(env, DIR, small_options(0)).unwrap();
        let store = LogStore::new(&log).unwrap();
        self.open = Some((log, store));
    }

    fn interrupt(&mut self, then: Then) {
        let (log, store) = self.open.take().unwrap();
        match then {
            Then::Reopen => {
                drop(store);
                log.stop().unwrap();
            }
            Then::PowerFail => {
                let style = CrashStyle::ALL[self.opens as usize % CrashStyle::ALL.len()];
                let found = self.disk.power_fail(style, self.opens);
                // What is in memory goes to a disk that nobody looks at.
                drop((log, store));
                self.disk = found;
            }
        }
        self.open();
    }
}

impl Interrupted {
    fn store(&self) -> LogStore<Types> {
        LogStore::new(&self.node.lock().unwrap().open.as_ref().unwrap().0).unwrap()
    }

    fn interrupt(&self) {
        self.node.lock().unwrap().interrupt(self.then);
    }
}

impl RaftLogStorage<Types> for Interrupted {
    type LogReader = InterruptedReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        self.store().get_log_state().await
    }

    async fn get_log_reader(&mut self) -> InterruptedReader {
        InterruptedReader { node: Arc::clone(&self.node) }
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> io::Result<()> {
        self.store().save_vote(vote).await?;
        self.interrupt();
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<Types>>) -> io::Result<()> {
        self.store().save_committed(committed).await?;
        // It is promised to be durable with the next durable call.
        let log = self.store().log().clone();
        log.sync().unwrap();
        self.interrupt();
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<Types>>> {
        self.store().read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        // The runtime has no threads: what was kicked has been written when the call returns.
        self.store().append(entries, callback).await?;
        self.interrupt();
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> io::Result<()> {
        self.store().truncate_after(last).await?;
        self.interrupt();
        Ok(())
    }

    async fn purge(&mut self, last: LogIdOf<Types>) -> io::Result<()> {
        self.store().purge(last).await?;
        self.interrupt();
        Ok(())
    }
}

/// Reads from the store as it is open now.
struct InterruptedReader {
    node: Arc<Mutex<Node>>,
}

impl InterruptedReader {
    async fn reader(&self) -> LogReader<Types> {
        let log = self.node.lock().unwrap().open.as_ref().unwrap().0.clone();
        LogStore::new(&log).unwrap().get_log_reader().await
    }
}

impl RaftLogReader<Types> for InterruptedReader {
    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: LeaderIdOf<Types>,
        range: RB,
    ) -> impl Stream<Item = Result<EntryOf<Types>, LeaderBoundedStreamError<Types>>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let mut reader = self.reader().await;
        let items: Vec<_> =
            futures_util::StreamExt::collect(reader.leader_bounded_stream(leader, range).await).await;
        futures_util::stream::iter(items)
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<EntryOf<Types>, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let mut reader = self.reader().await;
        let items: Vec<_> = futures_util::StreamExt::collect(reader.entries_stream(range).await).await;
        futures_util::stream::iter(items)
    }

    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<EntryOf<Types>>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.reader().await.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<Types>>> {
        self.reader().await.read_vote().await
    }
}

struct InterruptedAfterEveryCall(Then);

impl StoreBuilder<Types, Interrupted, Machine> for InterruptedAfterEveryCall {
    async fn build(&self) -> Result<((), Interrupted, Machine), StorageError<Types>> {
        let mut node = Node { disk: SimDisk::new(1), opens: 0, open: None };
        node.open();
        // The suite keeps one state machine throughout: its snapshots lie elsewhere.
        let env = Env { disk: Arc::new(SimDisk::new(2)), runtime: Arc::new(SimRuntime::always_inline(2)) };
        let snapshots = RaftLog::open_in(env, DIR, small_options(0)).unwrap();
        let store = Interrupted { then: self.0, node: Arc::new(Mutex::new(node)) };
        Ok(((), store, Machine::new(&snapshots).unwrap()))
    }
}

#[test]
fn the_suite_passes_when_the_log_is_reopened_after_every_call() {
    run(InterruptedAfterEveryCall(Then::Reopen));
}

#[test]
fn the_suite_passes_when_power_fails_after_every_call() {
    run(InterruptedAfterEveryCall(Then::PowerFail));
}
