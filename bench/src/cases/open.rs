//! Opening a large store, closed cleanly or after its writer was killed.

use super::{Case, Entry};
use crate::contenders::ContenderId;
use crate::goal::Goal;
use crate::job::{Content, Job};
use crate::metric::Metric;

/// Payload bytes of a record.
const RECORD_BYTES: usize = 1024;

/// Records of one append while the store is filled.
const FILL_BATCH: usize = 64;

/// Longest time lsfs may take, in milliseconds.
const GOAL_MS: f64 = 10.0;

/// 1 GiB: lsfs and the peers.
pub fn open_1g() -> Case {
    let stores = [
        (ContenderId::Lsfs, "lsfs", "lsfs, killed"),
        (ContenderId::RaftEngine, "raft-engine", "raft-engine, killed"),
        (ContenderId::Okaywal, "okaywal", "okaywal, killed"),
    ];
    case("open-1g", 1, &stores, false)
}

/// 8 GiB: lsfs only.
pub fn open_8g() -> Case {
    case("open-8g", 8, &[(ContenderId::Lsfs, "lsfs", "lsfs, killed")], true)
}

/// Opens stores of `gib` GiB.
fn case(
    name: &'static str,
    gib: u64,
    stores: &[(ContenderId, &'static str, &'static str)],
    is_large: bool,
) -> Case {
    let content = Content::of_bytes(gib << 30, RECORD_BYTES, FILL_BATCH);
    let entries = stores.iter().flat_map(|&(id, clean, killed)| {
        let entry = Entry::fresh(id, Job::Open).after(Job::Fill(content));
        let after_kill = Entry { killed_writer: Some(killed_writer()), ..entry.clone() };
        [entry.labelled(clean), after_kill.labelled(killed)]
    });
    Case {
        name,
        title: format!("opening {gib} GiB of {RECORD_BYTES} B records, written {FILL_BATCH} a sync, cold"),
        notes: vec![
            "killed: before each round a process opens the store, writes, and gets SIGKILL in mid-write"
                .into(),
        ],
        entries: entries.collect(),
        columns: vec![Metric::OpenMs, Metric::PeakRssMib],
        ratio_metric: Metric::OpenMs,
        ratio_against: vec!["raft-engine", "raft-engine, killed", "okaywal"],
        goals: vec![
            Goal::at_most("lsfs", Metric::OpenMs, GOAL_MS),
            Goal::at_most("lsfs, killed", Metric::OpenMs, GOAL_MS),
        ],
        is_large,
        is_steady: false,
    }
}

/// A writer of small synced batches, killed after some of them.
fn killed_writer() -> Job {
    Job::WriteUntilKilled(Content { records: 16 * 200, record_bytes: RECORD_BYTES, batch: 16 })
}
