//! Segment sets: appends with and without a sync, reading by pointer, opening.

use super::append::{self, COLUMNS};
use super::index::READS;
use super::{Case, Entry};
use crate::cli::Options;
use crate::contenders::ContenderId;
use crate::goal::Goal;
use crate::job::{Content, Job};
use crate::metric::Metric;

/// Body bytes of a small entry.
const SMALL_BYTES: usize = 256;
/// Body bytes of an entry that begins at a page of its own.
const LARGE_BYTES: usize = 64 << 10;
/// Body bytes of a set that is read or opened.
const SET_BYTES: u64 = 512 << 20;
/// Entries of one append while a set is filled.
const FILL_BATCH: usize = 64;
/// Producers of the concurrent rows.
const PRODUCERS: usize = 64;

/// Small durable entries, from one producer and from many.
pub fn appends(options: &Options) -> Case {
    let rows = [
        (ContenderId::RawDirect, 1, "raw-direct x1"),
        (ContenderId::RaftEngine, 1, "raft-engine x1"),
        (ContenderId::Lsfs, 1, "lsfs stream x1"),
        (ContenderId::LsfsSet, 1, "lsfs-set x1"),
        (ContenderId::RaftEngine, PRODUCERS, "raft-engine x64"),
        (ContenderId::Lsfs, PRODUCERS, "lsfs stream x64"),
        (ContenderId::LsfsSet, PRODUCERS, "lsfs-set x64"),
    ];
    Case {
        name: "set-256",
        title: format!("segment set, {SMALL_BYTES} B entries, each producer waits for its own"),
        notes: vec!["lsfs stream: a record stream under the same load, which shares the group commit".into()],
        entries: rows
            .map(|(id, producers, label)| {
                Entry::fresh(id, append::job(SMALL_BYTES, producers, 1, options)).labelled(label)
            })
            .into(),
        columns: COLUMNS.into(),
        ratio_metric: Metric::RecordsPerSecond,
        ratio_against: vec!["raw-direct x1", "raft-engine x1", "raft-engine x64"],
        goals: vec![],
        is_large: false,
        is_steady: false,
    }
}

/// Large entries that wait for no disk.
pub fn cache(options: &Options) -> Case {
    let job = append::unsynced_job(LARGE_BYTES, 1, options);
    Case {
        name: "set-cache",
        title: format!("segment set, one producer, {} KiB entries, no sync", LARGE_BYTES >> 10),
        notes: vec![
            append::UNSYNCED_NOTE.into(),
            "raw-buffered and the cache write into the page cache; lsfs-set writes to the device by direct I/O".into(),
        ],
        entries: vec![
            Entry::fresh(ContenderId::RawBuffered, job.clone()).labelled("raw-buffered, no sync"),
            Entry::fresh(ContenderId::LsfsSet, job.clone()),
            Entry::fresh(ContenderId::LsfsSetCache, job),
        ],
        columns: COLUMNS.into(),
        ratio_metric: Metric::MbPerSecond,
        ratio_against: vec!["raw-buffered, no sync"],
        goals: vec![],
        is_large: false,
        is_steady: false,
    }
}

/// Single small entries by pointer, all of them in memory.
pub fn reads() -> Case {
    let content = Content::of_bytes(SET_BYTES, SMALL_BYTES, FILL_BATCH);
    let read = Job::ReadRandom { content, reads: READS };
    let of_set = |id| Entry { files_of: Some("lsfs-set"), ..Entry::fresh(id, read.clone()) };
    let filled = |id| Entry::fresh(id, read.clone()).after(Job::Fill(content));
    Case {
        name: "set-read",
        title: format!(
            "one thread reads {SMALL_BYTES} B entries at random from {} MiB by pointer",
            SET_BYTES >> 20
        ),
        notes: vec![
            "raw rows copy as many bytes from random places of the same files, cached, unverified".into(),
            "all segments are sealed; pointers lie in memory, 12 bytes each".into(),
        ],
        entries: vec![
            of_set(ContenderId::RawPread),
            of_set(ContenderId::RawMap),
            filled(ContenderId::RaftEngine),
            filled(ContenderId::LsfsSet),
            of_set(ContenderId::LsfsSetReader),
        ],
        columns: vec![
            Metric::RecordsPerSecond,
            Metric::CpuUsPerRecord,
            Metric::OthersCpuPercent,
            Metric::PeakRssMib,
        ],
        ratio_metric: Metric::RecordsPerSecond,
        ratio_against: vec!["raw-pread", "raw-map", "raft-engine"],
        goals: vec![
            Goal::at_least("lsfs-set", Metric::RecordsPerSecond, 500_000.0),
            Goal::at_least("lsfs-set-reader", Metric::RecordsPerSecond, 500_000.0),
            Goal::at_least("lsfs-set", Metric::RecordsPerSecond, 1.0).against("raw-pread").stretch(),
        ],
        is_large: false,
        is_steady: false,
    }
}

/// Opening for writing, cold.
pub fn open() -> Case {
    let content = Content::of_bytes(SET_BYTES, SMALL_BYTES, FILL_BATCH);
    let filled = |id| Entry::fresh(id, Job::Open).after(Job::Fill(content));
    Case {
        name: "set-open",
        title: format!("opening a set of {} MiB of {SMALL_BYTES} B entries, cold", SET_BYTES >> 20),
        notes: vec![],
        entries: vec![filled(ContenderId::RaftEngine), filled(ContenderId::LsfsSet)],
        columns: vec![Metric::OpenMs, Metric::PeakRssMib],
        ratio_metric: Metric::OpenMs,
        ratio_against: vec!["raft-engine"],
        goals: vec![Goal::at_most("lsfs-set", Metric::OpenMs, 10.0)],
        is_large: false,
        is_steady: false,
    }
}
