//! A cluster of three openraft nodes in one process, each with a log in a directory of its own. Nodes are killed and
//! started again; a killed one comes back with its log, one that was away for long is sent a snapshot.
//!
//! `cargo run --release -p lsfs-raft --features openraft --example raft_log`

#![allow(clippy::print_stdout, reason = "it says what it does")]

mod cluster;
mod machine;

use std::collections::BTreeMap;
use std::path::Path;

use cluster::{Cluster, Failure, PATIENCE};
use lsfs_raft::{LogOptions, RaftLog};
use openraft::impls::EmptyNode;
use openraft::{Config, SnapshotPolicy};

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
    let dir = dir.to_path_buf();
    let cluster = Cluster::new(config, move |id| {
        RaftLog::open(dir.join(format!("node-{id}")), LogOptions { first_index: 0, ..LogOptions::default() })
    })?;
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
