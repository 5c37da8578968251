//! Small synced appends: one writer, and 64 producers.

use super::{Case, Entry};
use crate::cli::Options;
use crate::contenders::{ContenderId, StorePlan};
use crate::disk::BLOCK_BYTES;
use crate::goal::Goal;
use crate::job::Job;
use crate::measure::Load;
use crate::metric::Metric;

/// Producers of the concurrent case.
const PRODUCERS: usize = 64;

/// Columns of every appending case.
pub const COLUMNS: [Metric; 8] = [
    Metric::RecordsPerSecond,
    Metric::MbPerSecond,
    Metric::P50Us,
    Metric::P99Us,
    Metric::MaxUs,
    Metric::CpuUsPerRecord,
    Metric::OthersCpuPercent,
    Metric::PeakRssMib,
];

/// Seconds of warm-up: long enough to be past the first allocations, short beside the run.
pub fn warmup_seconds(options: &Options) -> f64 {
    (options.seconds_per_run * 0.25).clamp(0.1, 0.5)
}

/// An appending job.
pub fn job(record_bytes: usize, producers: usize, batch: usize, options: &Options) -> Job {
    let warmup_seconds = warmup_seconds(options);
    let seconds = options.seconds_per_run;
    // Whoever prepares files prepares for this rate; above it, files are used again or grow.
    let bytes_per_second = (60_000 * record_bytes as u64).clamp(48 << 20, 128 << 20);
    let expected_bytes = (bytes_per_second as f64 * (warmup_seconds + seconds)) as u64;
    Job::Append {
        plan: StorePlan { expected_bytes, keeps_records: false, is_synced: true },
        load: Load { record_bytes, producers, batch, warmup_seconds, seconds, cap_bytes: u64::MAX },
    }
}

/// What to know about cases without syncs.
pub const UNSYNCED_NOTE: &str =
    "a run ends after 512 MiB if time is left; writing back at the end is not measured";

/// An appending job that waits for no disk.
pub fn unsynced_job(record_bytes: usize, batch: usize, options: &Options) -> Job {
    const CAP_BYTES: u64 = 512 << 20;
    Job::Append {
        plan: StorePlan { expected_bytes: CAP_BYTES, keeps_records: false, is_synced: false },
        load: Load {
            record_bytes,
            producers: 1,
            batch,
            warmup_seconds: warmup_seconds(options).min(0.2),
            seconds: options.seconds_per_run,
            cap_bytes: CAP_BYTES,
        },
    }
}

/// One writer that waits for each record.
pub fn one_writer(name: &'static str, record_bytes: usize, options: &Options) -> Case {
    let one = job(record_bytes, 1, 1, options);
    let contenders = [
        ContenderId::RawDirect,
        ContenderId::RawDsync,
        ContenderId::RawBuffered,
        ContenderId::RaftEngine,
        ContenderId::RaftEngineWarm,
        ContenderId::Okaywal,
        ContenderId::Lsfs,
    ];
    let mut entries: Vec<_> = contenders.map(|id| Entry::fresh(id, one.clone())).into();
    let mut notes = Vec::new();
    if record_bytes.is_multiple_of(BLOCK_BYTES) {
        // What any format with headers must write for such a record.
        let two_blocks = job(record_bytes + BLOCK_BYTES, 1, 1, options);
        entries.insert(2, Entry::fresh(ContenderId::RawDsync, two_blocks).labelled("raw-dsync +4k"));
        notes
            .push("raw-dsync +4k: one block more with each sync, for a record and its header need it".into());
    }
    Case {
        name,
        title: format!("one writer, {record_bytes} B records, a sync each"),
        notes,
        entries,
        columns: COLUMNS.into(),
        ratio_metric: Metric::RecordsPerSecond,
        ratio_against: vec!["raw-direct", "raw-dsync +4k", "raft-engine", "raft-engine-warm", "okaywal"],
        goals: vec![Goal::at_least("lsfs", Metric::RecordsPerSecond, 0.95).against("raw-direct")],
        is_large: false,
        is_steady: false,
    }
}

/// Streams side by side, one blocking writer each, against one stream with one writer or as many.
pub fn many_streams(options: &Options) -> Case {
    const RECORD_BYTES: usize = 256;
    let rows = [
        (ContenderId::RawDsync, 1, "raw-dsync, 1 writer"),
        (ContenderId::LsfsStreams, 1, "1 stream"),
        (ContenderId::LsfsStreams, 4, "4 streams"),
        (ContenderId::LsfsStreams, 16, "16 streams"),
        (ContenderId::RawDsync, 4, "raw-dsync, 4 writers"),
        (ContenderId::RawDsync, 16, "raw-dsync, 16 writers"),
        (ContenderId::Lsfs, 16, "1 stream, 16 writers"),
    ];
    Case {
        name: "streams",
        title: format!("streams on one disk, a blocking writer each, {RECORD_BYTES} B records"),
        notes: vec![
            "raw rows: writers of one file, each writes a block of its own and syncs it".into(),
            "what several streams gain over one is what the kernel and the device share of their syncs"
                .into(),
        ],
        entries: rows
            .map(|(id, producers, label)| {
                Entry::fresh(id, job(RECORD_BYTES, producers, 1, options)).labelled(label)
            })
            .into(),
        columns: COLUMNS.into(),
        ratio_metric: Metric::RecordsPerSecond,
        ratio_against: vec!["1 stream", "raw-dsync, 4 writers", "raw-dsync, 16 writers"],
        goals: vec![],
        is_large: false,
        is_steady: false,
    }
}

/// 64 producers, each of which waits for its own record: threads for everybody, futures for lsfs as well.
pub fn many_producers(name: &'static str, record_bytes: usize, options: &Options) -> Case {
    let threads = job(record_bytes, PRODUCERS, 1, options);
    let batching = job(record_bytes, 1, PRODUCERS, options);
    let mut entries = vec![
        Entry::fresh(ContenderId::RawDirect, batching.clone()).labelled("raw-direct x64"),
        Entry::fresh(ContenderId::RawDsync, batching.clone()).labelled("raw-dsync x64"),
        Entry::fresh(ContenderId::RawBuffered, batching).labelled("raw-buffered x64"),
    ];
    let threaded = [
        ContenderId::RaftEngine,
        ContenderId::RaftEngineWarm,
        ContenderId::Okaywal,
        ContenderId::Lsfs,
        ContenderId::LsfsFutures,
    ];
    entries.extend(threaded.map(|id| Entry::fresh(id, threads.clone())));
    if record_bytes >= 1024 {
        // Small records do not come to the end of their space in a run; large ones are measured on old space, too.
        entries.push(Entry::fresh(ContenderId::LsfsRecycled, threads));
    }
    Case {
        name,
        title: format!("64 producers, {record_bytes} B records, each waits for its own"),
        notes: vec![
            "raw rows: one thread that appends 64 records with one sync; latency is of the 64".into(),
            "peers and lsfs: 64 OS threads; lsfs-futures: 64 futures on one executor thread".into(),
        ],
        entries,
        columns: COLUMNS.into(),
        ratio_metric: Metric::RecordsPerSecond,
        ratio_against: vec!["raw-direct x64", "raft-engine", "raft-engine-warm", "okaywal"],
        goals: many_goals(record_bytes),
        is_large: false,
        is_steady: false,
    }
}

/// What lsfs should reach with many producers.
fn many_goals(record_bytes: usize) -> Vec<Goal> {
    let rate = |row, factor| Goal::at_least(row, Metric::RecordsPerSecond, factor).against("raft-engine");
    let p99 = |row| Goal::at_most(row, Metric::P99Us, 1.0).against("raft-engine");
    let cpu = Goal::at_most("lsfs-futures", Metric::CpuUsPerRecord, 0.5).against("raft-engine");
    let rates = match record_bytes {
        ..1024 => vec![rate("lsfs", 1.0), rate("lsfs", 1.5).stretch(), rate("lsfs-futures", 3.0)],
        _ => vec![rate("lsfs", 2.0), rate("lsfs-futures", 2.0)],
    };
    rates.into_iter().chain([p99("lsfs"), p99("lsfs-futures"), cpu]).collect()
}
