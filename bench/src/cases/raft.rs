//! Raft logs: appends to flushed with one and with 64 on their way, and opening.

use super::append::{self, COLUMNS};
use super::{Case, Entry};
use crate::cli::Options;
use crate::contenders::ContenderId;
use crate::goal::Goal;
use crate::job::{Content, Job};
use crate::metric::Metric;

/// Appends on their way in the concurrent rows.
const IN_FLIGHT: usize = 64;

/// Entries of the log that is opened.
const OPEN_ENTRIES: u64 = 10_000_000;
const OPEN_ENTRY_BYTES: usize = 64;
const OPEN_BATCH: usize = 1000;

/// Longest time that opening may take, in milliseconds, and most memory of the process.
const OPEN_MS: f64 = 20.0;
const OPEN_RSS_MIB: f64 = 64.0;

/// Entries of `record_bytes`: each store with one append on its way and with 64.
pub fn appends(name: &'static str, record_bytes: usize, options: &Options) -> Case {
    let rows = [
        (ContenderId::LsfsRaft, 1, "lsfs-raft x1"),
        (ContenderId::RaftLog, 1, "raft-log x1"),
        (ContenderId::RaftEngine, 1, "raft-engine x1"),
        (ContenderId::LsfsRaft, IN_FLIGHT, "lsfs-raft x64"),
        (ContenderId::RaftLog, IN_FLIGHT, "raft-log x64"),
        (ContenderId::RaftEngine, IN_FLIGHT, "raft-engine x64"),
    ];
    let rate = |factor, peer| Goal::at_least("lsfs-raft x64", Metric::RecordsPerSecond, factor).against(peer);
    let goals = match record_bytes {
        ..1024 => vec![rate(8.0, "raft-log x64"), rate(2.0, "raft-engine x64")],
        _ => Vec::new(),
    };
    Case {
        name,
        title: format!("Raft logs, {record_bytes} B entries, append to flushed with 1 and 64 on their way"),
        notes: vec![
            "lsfs-raft: openraft's RaftLogStorage::append, each waits for its IOFlushed; one executor thread"
                .into(),
            "raft-log: append and flush(sync) for each entry, its callbacks wake the same executor".into(),
            "raft-engine: write(batch, sync) from as many threads, each with a region of its own".into(),
        ],
        entries: rows
            .map(|(id, producers, label)| {
                Entry::fresh(id, append::job(record_bytes, producers, 1, options)).labelled(label)
            })
            .into(),
        columns: COLUMNS.into(),
        ratio_metric: Metric::RecordsPerSecond,
        ratio_against: vec!["raft-log x1", "raft-engine x1", "raft-log x64", "raft-engine x64"],
        goals,
        is_large: false,
        is_steady: false,
    }
}

/// Opening logs of ten million small entries.
pub fn open() -> Case {
    let content = Content { records: OPEN_ENTRIES, record_bytes: OPEN_ENTRY_BYTES, batch: OPEN_BATCH };
    let entry = |id| Entry::fresh(id, Job::Open).after(Job::Fill(content));
    Case {
        name: "raft-open",
        title: format!("opening a Raft log of {OPEN_ENTRIES} entries of {OPEN_ENTRY_BYTES} B, cold"),
        notes: vec!["raft-log reads its whole log, and keeps the newest 100000 entries in memory".into()],
        entries: vec![entry(ContenderId::LsfsRaft), entry(ContenderId::RaftLog)],
        columns: vec![Metric::OpenMs, Metric::PeakRssMib],
        ratio_metric: Metric::OpenMs,
        ratio_against: vec!["raft-log"],
        goals: vec![
            Goal::at_most("lsfs-raft", Metric::OpenMs, OPEN_MS),
            Goal::at_most("lsfs-raft", Metric::PeakRssMib, OPEN_RSS_MIB),
        ],
        is_large: true,
        is_steady: false,
    }
}
