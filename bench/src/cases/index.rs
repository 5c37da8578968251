//! What a clerk costs and what it brings: the rate of building an index, random reads with and without one, and a
//! writer beside a clerk and readers.

use super::append::{self, COLUMNS};
use super::{Case, Entry};
use crate::cli::Options;
use crate::contenders::ContenderId;
use crate::goal::Goal;
use crate::job::{Content, Job};
use crate::metric::Metric;

/// Payload bytes of the stores that are indexed and read at random.
const STORE_BYTES: u64 = 512 << 20;
/// Records of one append while a store is filled.
const FILL_BATCH: usize = 64;
/// Reads of one run.
pub const READS: u64 = 1_000_000;

/// Builds the index of a store of `record_bytes` records, cold.
pub fn build(name: &'static str, record_bytes: usize) -> Case {
    let content = Content::of_bytes(STORE_BYTES, record_bytes, FILL_BATCH);
    let raw = Entry { files_of: Some("clerk"), ..Entry::fresh(ContenderId::RawRead, Job::ReadBack(content)) };
    let clerk = Entry::fresh(ContenderId::Lsfs, Job::BuildIndex(content)).labelled("clerk");
    Case {
        name,
        title: format!("building the index of {} MiB of {record_bytes} B records", STORE_BYTES >> 20),
        notes: vec![
            "raw-read: 1 MiB O_DIRECT reads of the same files; both are credited with the payload".into(),
            "on a directory in memory (--dir) the clerk's rate is that of one core".into(),
        ],
        entries: vec![raw, clerk.after(Job::Fill(content))],
        columns: vec![
            Metric::RecordsPerSecond,
            Metric::MbPerSecond,
            Metric::CpuUsPerRecord,
            Metric::OthersCpuPercent,
            Metric::PeakRssMib,
        ],
        ratio_metric: Metric::MbPerSecond,
        ratio_against: vec!["raw-read"],
        goals: vec![
            Goal::at_least("clerk", Metric::MbPerSecond, 0.8).against("raw-read"),
            Goal::at_most("clerk", Metric::CpuUsPerRecord, 1.0 / 3.0),
        ],
        is_large: false,
        is_steady: false,
    }
}

/// Reads records at random indexes, all of them in memory.
pub fn random_reads(name: &'static str, record_bytes: usize) -> Case {
    let content = Content::of_bytes(STORE_BYTES, record_bytes, FILL_BATCH);
    let read = Job::ReadRandom { content, reads: READS };
    let of_lsfs = |id| Entry { files_of: Some("lsfs"), ..Entry::fresh(id, read.clone()) };
    let filled = |id| Entry::fresh(id, read.clone()).after(Job::Fill(content));
    let entries = vec![
        of_lsfs(ContenderId::RawPread),
        of_lsfs(ContenderId::RawMap),
        filled(ContenderId::RaftEngine),
        filled(ContenderId::Lsfs),
        of_lsfs(ContenderId::LsfsIndexed),
    ];
    Case {
        name,
        title: format!("one thread reads {record_bytes} B records at random from {} MiB", STORE_BYTES >> 20),
        notes: vec![
            "raw rows copy as many bytes from random places of the same files, cached, unverified".into(),
            "lsfs: a reader beside no writer, no index; lsfs-indexed: with the clerk's index".into(),
        ],
        entries,
        columns: vec![
            Metric::RecordsPerSecond,
            Metric::CpuUsPerRecord,
            Metric::OthersCpuPercent,
            Metric::PeakRssMib,
        ],
        ratio_metric: Metric::RecordsPerSecond,
        ratio_against: vec!["raw-pread", "raw-map", "raft-engine"],
        goals: vec![
            Goal::at_least("lsfs", Metric::RecordsPerSecond, 500_000.0),
            Goal::at_least("lsfs-indexed", Metric::RecordsPerSecond, 500_000.0),
            Goal::at_least("lsfs-indexed", Metric::RecordsPerSecond, 1.0).against("raft-engine"),
        ],
        is_large: false,
        is_steady: false,
    }
}

/// One writer alone, and beside a clerk and a reader in processes of their own.
pub fn beside(name: &'static str, record_bytes: usize, options: &Options) -> Case {
    let job = append::job(record_bytes, 1, 1, options);
    Case {
        name,
        title: format!("one writer of {record_bytes} B records, alone and beside a clerk and a reader"),
        notes: vec![
            "the reader asks for a record at random every millisecond, all the time".into(),
            "a round runs both, so each ratio is that of a pair".into(),
        ],
        entries: vec![
            Entry::fresh(ContenderId::Lsfs, job.clone()),
            Entry::fresh(ContenderId::LsfsBeside, job),
        ],
        columns: COLUMNS.into(),
        ratio_metric: Metric::RecordsPerSecond,
        ratio_against: vec!["lsfs"],
        goals: vec![Goal::at_least("lsfs-beside", Metric::RecordsPerSecond, 0.9).against("lsfs")],
        is_large: false,
        is_steady: false,
    }
}
