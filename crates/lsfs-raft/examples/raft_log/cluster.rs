//! A cluster of openraft nodes in one process, each with a log of its own, and the network between them.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lsfs_raft::RaftLog;
use lsfs_raft::openraft::{LogStore, SnapshotData, SnapshotStore};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, VoteOf};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::EmptyNode;
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{Config, OptionalSend, Raft};

use crate::machine::{Machine, Set, Types};

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

// ---- the network: calls to whoever is alive ----

#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) raft: Raft<Types, Machine>,
    pub(crate) machine: Machine,
    pub(crate) log: RaftLog,
}

#[derive(Clone, Default)]
pub(crate) struct Network(Arc<Mutex<BTreeMap<u64, Node>>>);

impl Network {
    fn nodes(&self) -> MutexGuard<'_, BTreeMap<u64, Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn node(&self, id: u64) -> Option<Node> {
        self.nodes().get(&id).cloned()
    }
}

pub(crate) struct Connection {
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

pub(crate) struct Cluster {
    /// Opens the log of a node.
    open: Box<dyn Fn(u64) -> lsfs_raft::Result<RaftLog> + Send + Sync>,
    config: Arc<Config>,
    pub(crate) network: Network,
}

/// How long anything may take here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

impl Cluster {
    pub(crate) fn new(
        config: Config,
        open: impl Fn(u64) -> lsfs_raft::Result<RaftLog> + Send + Sync + 'static,
    ) -> Result<Cluster, Failure> {
        let config = Arc::new(config.validate()?);
        Ok(Cluster { open: Box::new(open), config, network: Network::default() })
    }

    pub(crate) async fn start(&self, id: u64) -> Result<(), Failure> {
        let log = (self.open)(id)?;
        let last = log.last_id()?.map_or("nothing".to_string(), |last| {
            format!("entries up to {} of term {}", last.index, last.term)
        });
        let vote = log.vote()?.map_or(String::new(), |vote| format!(", its vote of term {}", vote.term));
        println!("node {id} starts with {last}{vote}");
        let machine = Machine::new(&log)?;
        let (store, network) = (LogStore::new(&log)?, self.network.clone());
        let raft = Raft::new(id, Arc::clone(&self.config), network, store, machine.clone()).await?;
        self.network.nodes().insert(id, Node { raft, machine, log });
        Ok(())
    }

    /// Ends a node without a word to the others. Its log is dropped with it.
    pub(crate) async fn kill(&self, id: u64) -> Result<(), Failure> {
        println!("node {id} is killed");
        let node = self.network.nodes().remove(&id).ok_or("it is not there")?;
        node.raft.shutdown().await?;
        let log = node.log.clone();
        drop(node);
        // Whoever still talks to the node lets it go; then the directory can be opened again.
        log.stop()?;
        Ok(())
    }

    pub(crate) fn any(&self) -> Result<Node, Failure> {
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
    pub(crate) async fn ready_leader(&self) -> Result<(u64, Raft<Types, Machine>), Failure> {
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

    pub(crate) async fn write(&self, count: u64, word: &str) -> Result<(), Failure> {
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
    pub(crate) async fn agree(&self) -> Result<(), Failure> {
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
