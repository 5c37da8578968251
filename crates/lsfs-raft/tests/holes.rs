//! A cluster of openraft nodes of which one has lost entries to damage: openraft is refused what is not there, gets it
//! from a peer, and the log goes on.

#![allow(clippy::print_stdout, reason = "the cluster of the example says what it does")]

#[path = "../examples/raft_log/cluster.rs"]
#[allow(dead_code, reason = "the example does more with it")]
mod cluster;
#[path = "../examples/raft_log/machine.rs"]
#[allow(dead_code, reason = "the example looks at more of it")]
mod machine;
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cluster::{Cluster, Failure, PATIENCE};
use lsfs::Env;
use lsfs::io::{OsRuntime, SimDisk};
use lsfs_raft::{Entry, LostRange, NewEntry, RaftLog, repair};
use openraft::impls::EmptyNode;
use openraft::{Config, SnapshotPolicy};
use support::small_options;

/// Three nodes on one simulated disk, with the threads and clocks of the machine.
struct Nodes {
    disk: SimDisk,
    cluster: Cluster,
}

fn dir_of(id: u64) -> PathBuf {
    PathBuf::from(format!("/node-{id}"))
}

fn env(disk: &SimDisk) -> Env {
    Env { disk: Arc::new(disk.clone()), runtime: Arc::new(OsRuntime::default()) }
}

impl Nodes {
    /// A cluster with so many writes, all of them on all nodes.
    async fn begin(writes: u64) -> Result<Nodes, Failure> {
        let config = Config {
            cluster_name: "holes".to_string(),
            election_timeout_min: 300,
            election_timeout_max: 600,
            heartbeat_interval: 100,
            max_in_snapshot_log_to_keep: 100_000,
            snapshot_policy: SnapshotPolicy::Never,
            ..Config::default()
        };
        let disk = SimDisk::new(8);
        let on_disk = disk.clone();
        let cluster =
            Cluster::new(config, move |id| RaftLog::open_in(env(&on_disk), dir_of(id), small_options(0)))?;
        for id in 1..=3 {
            cluster.start(id).await?;
        }
        let members: BTreeMap<u64, EmptyNode> = (1..=3).map(|id| (id, EmptyNode::new())).collect();
        cluster.any()?.raft.initialize(members).await?;
        cluster.write(writes, "early").await?;
        cluster.agree().await?;
        Ok(Nodes { disk, cluster })
    }

    fn log(&self, id: u64) -> RaftLog {
        RaftLog::open_in(env(&self.disk), dir_of(id), small_options(0)).unwrap()
    }

    fn segments(&self, id: u64) -> Vec<PathBuf> {
        let of_entries = |path: &PathBuf| {
            path.starts_with(dir_of(id).join("entries")) && path.extension().is_some_and(|e| e == "seg")
        };
        let mut segments: Vec<_> = self.disk.paths().into_iter().filter(of_entries).collect();
        segments.sort();
        segments
    }

    /// Damages a block of a sealed segment in the middle; the node must be down.
    fn damage_the_middle(&self, id: u64) {
        let segments = self.segments(id);
        self.disk.zero_sector(&segments[segments.len() / 2], 4).unwrap();
    }

    /// The entries that a node has lost, found by reading all of it.
    fn lost(&self, id: u64) -> Vec<LostRange> {
        let log = self.log(id);
        let lost = log.check().unwrap();
        log.stop().unwrap();
        lost
    }

    /// Entries as another node has them.
    fn fetch(&self, from: u64, lost: &[LostRange]) -> Vec<Entry> {
        let log = self.log(from);
        let indexes = lost.iter().flat_map(|lost| lost.indexes.clone());
        let entries = indexes.map(|index| log.read(index).unwrap()).collect();
        log.stop().unwrap();
        entries
    }

    async fn stop(&self, ids: &[u64]) -> Result<(), Failure> {
        for id in ids {
            self.cluster.kill(*id).await?;
        }
        Ok(())
    }
}

fn new_entry(entry: &Entry) -> NewEntry<'_> {
    let Entry { term, leader, serial, kind, .. } = *entry;
    NewEntry { term, leader, serial, kind, command: &entry.command }
}

fn run(test: impl Future<Output = Result<(), Failure>>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test).unwrap();
}

/// The errors of openraft and of the log below it, in one line.
fn said(error: &Failure) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn a_node_that_must_apply_a_hole_is_refused_until_a_peer_has_filled_it() {
    run(async {
        let nodes = Nodes::begin(300).await?;
        nodes.stop(&[1, 2, 3]).await?;
        nodes.damage_the_middle(1);
        // Its words are in memory only: it applies its log again when it starts, and finds the hole.
        let error = nodes.cluster.start(1).await.unwrap_err();
        assert!(said(&error).contains("lost: fetch them from a peer"), "{}", said(&error));
        let lost = nodes.lost(1);
        assert!(!lost.is_empty());
        let entries = nodes.fetch(2, &lost);
        let log = nodes.log(1);
        for entry in &entries {
            log.restore(entry.index, &new_entry(entry))?;
        }
        assert_eq!(log.check()?, []);
        log.stop()?;
        for id in 1..=3 {
            nodes.cluster.start(id).await?;
        }
        nodes.cluster.write(50, "late").await?;
        nodes.cluster.agree().await?;
        nodes.stop(&[1, 2, 3]).await?;
        assert_eq!(nodes.lost(1), []);
        Ok(())
    });
}

#[test]
fn a_leader_that_must_send_a_hole_stops_and_another_one_takes_over() {
    run(async {
        let nodes = Nodes::begin(20).await?;
        nodes.stop(&[3]).await?;
        nodes.cluster.write(300, "unseen").await?;
        // With a snapshot it need not apply what is before it; its entries stay.
        let node = nodes.cluster.network.node(1).ok_or("it runs")?;
        let wait = node.raft.wait(Some(PATIENCE));
        let has_applied =
            wait.metrics(|metrics| metrics.last_applied.is_some_and(|last| last.index > 300), "all");
        let applied = has_applied.await?.last_applied;
        node.raft.trigger().snapshot().await?;
        node.raft.wait(Some(PATIENCE)).metrics(|metrics| metrics.snapshot >= applied, "a snapshot").await?;
        drop(node);
        nodes.stop(&[1, 2]).await?;
        nodes.damage_the_middle(1);
        // Only node 1 can lead node 3, which lacks what node 1 has lost.
        nodes.cluster.start(1).await?;
        nodes.cluster.start(3).await?;
        let node = nodes.cluster.network.node(1).ok_or("it runs")?;
        let wait = node.raft.wait(Some(PATIENCE));
        let stopped = wait.metrics(|metrics| metrics.running_state.is_err(), "it stops").await?;
        let reason = format!("{:?}", stopped.running_state);
        assert!(reason.contains("lost: fetch them from a peer"), "{reason}");
        drop((node, wait));
        nodes.stop(&[1]).await?;
        // Node 2 has all of it and leads node 3.
        nodes.cluster.start(2).await?;
        nodes.cluster.write(20, "taken over").await?;
        nodes.cluster.agree().await?;
        // Node 1 takes its part back from node 3 now, and follows.
        nodes.stop(&[3]).await?;
        let lost = nodes.lost(1);
        let entries = nodes.fetch(3, &lost);
        let log = nodes.log(1);
        for entry in &entries {
            log.restore_async(entry.index, &new_entry(entry))?.await?;
        }
        log.stop()?;
        for id in [1, 3] {
            nodes.cluster.start(id).await?;
        }
        nodes.cluster.write(20, "all").await?;
        nodes.cluster.agree().await?;
        nodes.stop(&[1, 2, 3]).await?;
        assert_eq!(nodes.lost(1), []);
        Ok(())
    });
}

#[test]
fn a_snapshot_of_a_peer_covers_a_hole() {
    run(async {
        let nodes = Nodes::begin(300).await?;
        nodes.stop(&[1]).await?;
        nodes.damage_the_middle(1);
        assert!(!nodes.lost(1).is_empty());
        let node = nodes.cluster.network.node(2).ok_or("it runs")?;
        let applied = node.machine.words().applied;
        node.raft.trigger().snapshot().await?;
        node.raft.wait(Some(PATIENCE)).metrics(|metrics| metrics.snapshot >= applied, "a snapshot").await?;
        let mut reader = node.log.read_snapshot()?;
        let log = nodes.log(1);
        let mut writer = log.receive_snapshot(reader.meta().clone())?;
        loop {
            let chunk = reader.chunk(writer.position(), 64)?;
            writer.write_chunk(chunk.offset, &chunk.bytes)?;
            if chunk.is_last {
                break;
            }
        }
        writer.install_async().await?;
        assert_eq!(log.check()?, []);
        log.stop()?;
        drop((reader, node));
        nodes.cluster.start(1).await?;
        nodes.cluster.write(50, "late").await?;
        nodes.cluster.agree().await?;
        nodes.stop(&[1, 2, 3]).await?;
        Ok(())
    });
}

#[test]
fn a_node_whose_end_is_lost_is_refused_until_it_is_back() {
    run(async {
        let nodes = Nodes::begin(300).await?;
        nodes.stop(&[1, 2, 3]).await?;
        let last = nodes.segments(1).pop().ok_or("there are segments")?;
        nodes.disk.truncate_raw(&last, 512)?;
        let error = nodes.cluster.start(1).await.unwrap_err();
        assert!(said(&error).contains("corrupt"), "{}", said(&error));
        repair(&env(&nodes.disk), Path::new(&dir_of(1)))?;
        // A shorter log than it acknowledged could elect a leader that lacks committed entries.
        let error = nodes.cluster.start(1).await.unwrap_err();
        assert!(said(&error).contains("lost: fetch them from a peer"), "{}", said(&error));
        let lost = nodes.lost(1);
        let entries = nodes.fetch(2, &lost);
        let log = nodes.log(1);
        let next = log.next_index()?;
        for entry in &entries {
            match entry.index < next {
                true => log.restore(entry.index, &new_entry(entry))?,
                false => log.append_at(entry.index, &[new_entry(entry)])?,
            }
        }
        assert_eq!(log.check()?, []);
        log.stop()?;
        for id in 1..=3 {
            nodes.cluster.start(id).await?;
        }
        nodes.cluster.write(20, "late").await?;
        nodes.cluster.agree().await?;
        nodes.stop(&[1, 2, 3]).await?;
        Ok(())
    });
}
