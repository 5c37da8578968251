//! A cluster of three openraft nodes in one process, each with a log in a directory of its own. Nodes are killed and
//! started again; a killed one comes back with its log, one that was away for long is sent a snapshot.
//!
//! `cargo run --release -p lsfs-raft --features openraft --example raft_log`

#![allow(clippy::print_stdout, reason = "it says what it does")]

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use lsfs_raft::openraft::{LogStore, SnapshotData, SnapshotReader, SnapshotStore, Stored};
use lsfs_raft::{LogOptions, RaftLog};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf};
use openraft::entry::{RaftEntry, RaftPayload};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::EmptyNode;
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{Config, EntryPayload, OptionalSend, Raft, SnapshotPolicy};

type Failure = Box<dyn std::error::Error + Send + Sync>;

// ---- the state machine: a map of words to numbers, with its snapshots beside the log ----

/// Sets a word to a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Set {
    word: String,
    number: u64,
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
    Types:
        D = Set,
        R = (),
        Node = EmptyNode,
        AsyncRuntime = openraft_rt_tokio::TokioRuntime,
);

#[derive(Debug, Default)]
struct Words {
    numbers: BTreeMap<String, u64>,
    applied: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
}

#[derive(Clone, Debug)]
struct Machine {
    words: Arc<Mutex<Words>>,
    snapshots: SnapshotStore<Types>,
}

impl Machine {
    fn words(&self) -> MutexGuard<'_, Words> {
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
        self.snapshots.build(&meta, |out| out.write_all(text.as_bytes()))
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
        let reader = self.snapshots.install(meta, snapshot)?;
        self.load(meta, reader)
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types, SnapshotData>>> {
        self.snapshots.current()
    }
}

// ---- the network: calls to whoever is alive ----

#[derive(Clone)]
struct Node {
    raft: Raft<Types, Machine>,
    machine: Machine,
    log: RaftLog,
}

#[derive(Clone, Default)]
struct Network(Arc<Mutex<BTreeMap<u64, Node>>>);

impl Network {
    fn nodes(&self) -> MutexGuard<'_, BTreeMap<u64, Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, id: u64) -> Option<Node> {
        self.nodes().get(&id).cloned()
    }
}

struct Connection {
    network: Network,
    target: u64,
}

impl Connection {
    fn target(&self) -> Result<Node, Unreachable<Types>> {
        self.network.node(self.target).ok_or_else(|| unreachable(format!("node {} is down", self.target)))
    }
}

fn unreachable(reason: impl ToString) -> Unreachable<Types> {
    Unreachable::from_string(reason)
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Connection {
        Connection { network: self.clone(), target }
    }
}

impl RaftNetworkV2<Types> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let answer = self.target()?.raft.append_entries(rpc).await;
        answer.map_err(|error| RPCError::Unreachable(unreachable(error)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let answer = self.target()?.raft.vote(rpc).await;
        answer.map_err(|error| RPCError::Unreachable(unreachable(error)))
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, SnapshotData>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let target = self.target()?;
        let meta = snapshot.meta;
        let received = copy_in_chunks(&target.machine.snapshots, &meta, snapshot.snapshot);
        let snapshot = received.map_err(|error| StreamingError::Unreachable(unreachable(error)))?;
        let answer = target.raft.install_full_snapshot(vote, SnapshotOf::<Types, _> { meta, snapshot }).await;
        answer.map_err(|error| StreamingError::Unreachable(unreachable(error)))
    }
}

/// What a network would send: chunk by chunk, beginning where an interrupted transfer ended.
fn copy_in_chunks(
    to: &SnapshotStore<Types>,
    meta: &SnapshotMetaOf<Types>,
    data: SnapshotData,
) -> Result<SnapshotData, Failure> {
    let SnapshotData::Stored(mut reader) = data else { return Err("only a stored snapshot is sent".into()) };
    let mut writer = to.receive(meta)?;
    loop {
        let chunk = reader.chunk(writer.position(), 256)?;
        writer.write_chunk(chunk.offset, &chunk.bytes)?;
        if chunk.is_last {
            return Ok(SnapshotData::Received(writer));
        }
    }
}

// ---- the cluster ----

struct Cluster {
    dir: PathBuf,
    config: Arc<Config>,
    network: Network,
}

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(10);

impl Cluster {
    fn log_dir(&self, id: u64) -> PathBuf {
        self.dir.join(format!("node-{id}"))
    }

    async fn start(&self, id: u64) -> Result<(), Failure> {
        let options = LogOptions { first_index: 0, ..LogOptions::default() };
        let log = RaftLog::open(self.log_dir(id), options)?;
        let last = log.last_id()?.map_or("nothing".to_string(), |last| {
            format!("entries up to {} of term {}", last.index, last.term)
        });
        let vote = log.vote()?.map_or(String::new(), |vote| format!(", its vote of term {}", vote.term));
        println!("node {id} starts with {last}{vote}");
        let machine = Machine { words: Arc::default(), snapshots: SnapshotStore::new(&log)? };
        let (store, network) = (LogStore::new(&log)?, self.network.clone());
        let raft = Raft::new(id, Arc::clone(&self.config), network, store, machine.clone()).await?;
        self.network.nodes().insert(id, Node { raft, machine, log });
        Ok(())
    }

    /// Ends a node without a word to the others. Its log is dropped with it.
    async fn kill(&self, id: u64) -> Result<(), Failure> {
        println!("node {id} is killed");
        let node = self.network.nodes().remove(&id).ok_or("it is not there")?;
        node.raft.shutdown().await?;
        let log = node.log.clone();
        drop(node);
        // Whoever still talks to the node lets it go; then the directory can be opened again.
        log.stop()?;
        Ok(())
    }

    fn any(&self) -> Result<Node, Failure> {
        self.network.nodes().values().next().cloned().ok_or_else(|| "nobody is alive".into())
    }

    async fn leader(&self) -> Result<u64, Failure> {
        let alive: Vec<u64> = self.network.nodes().keys().copied().collect();
        let is_led = |leader: Option<u64>| leader.is_some_and(|leader| alive.contains(&leader));
        let wait = self.any()?.raft.wait(Some(PATIENCE));
        let metrics =
            wait.metrics(|metrics| is_led(metrics.current_leader), "a leader that is alive").await?;
        metrics.current_leader.ok_or_else(|| "there is no leader".into())
    }

    /// A leader that answers: one that was elected just now has to hear from the others first.
    async fn ready_leader(&self) -> Result<(u64, Raft<Types, Machine>), Failure> {
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let leader = self.leader().await?;
            let raft = self.network.node(leader).ok_or("the leader is gone")?.raft;
            match raft.client_write(Set { word: "first".to_string(), number: leader }).await {
                Ok(_) => return Ok((leader, raft)),
                Err(error) if std::time::Instant::now() > until => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn write(&self, count: u64, word: &str) -> Result<(), Failure> {
        let (leader, raft) = self.ready_leader().await?;
        let started = std::time::Instant::now();
        // Many at once: their entries share the leader's syncs, and the followers'.
        let writes = (0..count).map(|number| {
            let raft = raft.clone();
            let word = format!("{word}-{}", number % 7);
            async move { raft.client_write(Set { word, number }).await }
        });
        for outcome in futures_util::future::join_all(writes).await {
            outcome?;
        }
        let ms = started.elapsed().as_millis();
        println!("leader {leader} commits {count} writes in {ms} ms");
        Ok(())
    }

    /// Waits until everybody alive has applied what the leader has, and compares.
    async fn agree(&self) -> Result<(), Failure> {
        let (leader, _) = self.ready_leader().await?;
        let leading = self.network.node(leader).ok_or("the leader is gone")?;
        let applied = leading.machine.words().applied;
        let expected = leading.machine.words().numbers.clone();
        let nodes: Vec<(u64, Node)> =
            self.network.nodes().iter().map(|(&id, node)| (id, node.clone())).collect();
        for (id, node) in nodes {
            let caught_up = |last: Option<LogIdOf<Types>>| last >= applied;
            let wait = node.raft.wait(Some(PATIENCE));
            wait.metrics(|metrics| caught_up(metrics.last_applied), "all is applied").await?;
            if node.machine.words().numbers != expected {
                return Err(format!("node {id} has other words than leader {leader}").into());
            }
            let (purged, last) = (node.log.purged_id()?, node.log.last_index()?);
            let begin = purged.map_or(0, |purged| purged.index + 1);
            println!("  node {id} has all {} words; its log holds entries {begin} to {last}", expected.len());
        }
        Ok(())
    }
}

async fn play(dir: &Path) -> Result<(), Failure> {
    let config = Config {
        cluster_name: "words".to_string(),
        election_timeout_min: 300,
        election_timeout_max: 600,
        heartbeat_interval: 100,
        max_in_snapshot_log_to_keep: 0,
        snapshot_policy: SnapshotPolicy::Never,
        ..Config::default()
    };
    let config = Arc::new(config.validate()?);
    let cluster = Cluster { dir: dir.to_path_buf(), config, network: Network::default() };
    for id in 1..=3 {
        cluster.start(id).await?;
    }
    let members: BTreeMap<u64, EmptyNode> = (1..=3).map(|id| (id, EmptyNode::new())).collect();
    cluster.any()?.raft.initialize(members).await?;
    cluster.write(1000, "early").await?;
    cluster.agree().await?;

    let (leader, _) = cluster.ready_leader().await?;
    cluster.kill(leader).await?;
    cluster.write(1000, "without").await?;
    cluster.start(leader).await?;
    cluster.agree().await?;

    let away = (1..=3).find(|&id| id != leader).ok_or("there are three")?;
    cluster.kill(away).await?;
    cluster.write(1000, "unseen").await?;
    let (leader, _) = cluster.ready_leader().await?;
    let leading = cluster.network.node(leader).ok_or("the leader is gone")?;
    let applied = leading.machine.words().applied;
    leading.raft.trigger().snapshot().await?;
    let wait = leading.raft.wait(Some(PATIENCE));
    wait.metrics(|metrics| metrics.snapshot >= applied, "a snapshot").await?;
    leading.raft.trigger().purge_log(applied.map_or(0, |applied| applied.index)).await?;
    let wait = leading.raft.wait(Some(PATIENCE));
    wait.metrics(|metrics| metrics.purged >= applied, "its entries are purged").await?;
    println!("leader {leader} takes a snapshot and purges the entries in it");
    drop(leading);
    cluster.start(away).await?;
    cluster.agree().await?;
    let returned = cluster.network.node(away).ok_or("it was started")?;
    let snapshot = returned.log.snapshot()?.and_then(|snapshot| snapshot.last);
    let until = snapshot.ok_or("it was sent no snapshot")?.index;
    println!("  node {away} was sent a snapshot up to entry {until}");
    drop(returned);

    println!("all nodes are killed");
    for id in 1..=3 {
        cluster.kill(id).await?;
    }
    for id in 1..=3 {
        cluster.start(id).await?;
    }
    cluster.write(10, "late").await?;
    cluster.agree().await?;
    for id in 1..=3 {
        cluster.kill(id).await?;
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let dir = std::env::temp_dir().join(format!("lsfs-raft-example-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(play(&dir));
    std::fs::remove_dir_all(&dir)?;
    outcome?;
    println!("done");
    Ok(())
}
