//! The two stores of a log side by side: appends with and without a sync, reading in order and at random, opening.

use super::append::{self, COLUMNS};
use super::index::READS;
use super::{Case, Entry};
use crate::cli::Options;
use crate::contenders::ContenderId;
use crate::job::{Content, Job};
use crate::metric::Metric;

/// Payload bytes of a record.
const RECORD_BYTES: usize = 256;
/// Payload bytes of a store that is read or opened.
const STORE_BYTES: u64 = 512 << 20;
/// Records of one append where a sync is shared.
const BATCH: usize = 64;

/// What both stores do alike.
fn case(name: &'static str, title: String, columns: Vec<Metric>, ratio_metric: Metric) -> Case {
    Case {
        name,
        title: format!("logs by store: {title}"),
        notes: vec!["the mapped store has no checksums: what it reads is not verified".into()],
        entries: Vec::new(),
        columns,
        ratio_metric,
        ratio_against: vec![ContenderId::LsfsLogBlock.name()],
        goals: vec![],
        is_large: false,
        is_steady: false,
    }
}

/// `job` by each of the stores.
fn by_store(job: &Job) -> impl Iterator<Item = Entry> {
    [ContenderId::LsfsLogBlock, ContenderId::LsfsLogMmap].map(|id| Entry::fresh(id, job.clone())).into_iter()
}

/// One writer: a sync each, or a sync for `batch` records.
fn synced(name: &'static str, batch: usize, options: &Options) -> Case {
    let job = append::job(RECORD_BYTES, 1, batch, options);
    let title = match batch {
        1 => format!("one writer, {RECORD_BYTES} B records, a sync each"),
        _ => format!("one writer, {RECORD_BYTES} B records, a sync for {batch}"),
    };
    let mut case = case(name, title, COLUMNS.into(), Metric::RecordsPerSecond);
    case.entries =
        std::iter::once(Entry::fresh(ContenderId::RawDirect, job.clone())).chain(by_store(&job)).collect();
    case.ratio_against.insert(0, "raw-direct");
    case
}

/// One writer that waits for each record.
pub fn one(options: &Options) -> Case {
    synced("store-one", 1, options)
}

/// One writer that appends many records with each sync.
pub fn batch(options: &Options) -> Case {
    synced("store-batch", BATCH, options)
}

/// One writer that waits for no disk.
pub fn unsynced(options: &Options) -> Case {
    let job = append::unsynced_job(RECORD_BYTES, 1, options);
    let title = format!("one writer, {RECORD_BYTES} B records, no sync");
    let mut case = case("store-unsynced", title, COLUMNS.into(), Metric::RecordsPerSecond);
    case.notes.push(append::UNSYNCED_NOTE.into());
    let raw = Entry::fresh(ContenderId::RawBuffered, job.clone()).labelled("raw-buffered, no sync");
    case.entries = std::iter::once(raw).chain(by_store(&job)).collect();
    case.ratio_against.insert(0, "raw-buffered, no sync");
    case
}

/// What the stores hold that are read or opened.
fn content() -> Content {
    Content::of_bytes(STORE_BYTES, RECORD_BYTES, BATCH)
}

/// `job` on stores that hold [`content`].
fn on_filled(name: &'static str, title: &str, job: &Job, columns: Vec<Metric>, ratio_metric: Metric) -> Case {
    let title = format!("{title} {} MiB of {RECORD_BYTES} B records", STORE_BYTES >> 20);
    let mut case = case(name, title, columns, ratio_metric);
    case.entries = by_store(job).map(|entry| entry.after(Job::Fill(content()))).collect();
    case
}

/// Reading everything in order, cold.
pub fn read() -> Case {
    let columns = vec![
        Metric::RecordsPerSecond,
        Metric::MbPerSecond,
        Metric::CpuUsPerRecord,
        Metric::OthersCpuPercent,
        Metric::PeakRssMib,
    ];
    let mut case = on_filled(
        "store-read",
        "reading back, cold,",
        &Job::ReadBack(content()),
        columns,
        Metric::MbPerSecond,
    );
    case.notes.push("memory: pages of a mapping count as long as they are in memory".into());
    case
}

/// Reading single records, all of them in memory.
pub fn random() -> Case {
    let columns =
        vec![Metric::RecordsPerSecond, Metric::CpuUsPerRecord, Metric::OthersCpuPercent, Metric::PeakRssMib];
    let job = Job::ReadRandom { content: content(), reads: READS };
    let mut case = on_filled("store-random", "single records of", &job, columns, Metric::RecordsPerSecond);
    case.notes.push("the block store has no clerk's index here; random-256 shows what one brings".into());
    case
}

/// Opening for writing, cold.
pub fn open() -> Case {
    let columns = vec![Metric::OpenMs, Metric::PeakRssMib];
    let mut case = on_filled("store-open", "opening, cold,", &Job::Open, columns, Metric::OpenMs);
    case.notes.push("the mapped store walks the frames of its last segment".into());
    case
}
