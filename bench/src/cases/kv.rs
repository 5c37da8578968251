//! Key-value stores: kvs against fjall, redb, sled, LMDB and RocksDB.

use super::append::{self, COLUMNS};
use super::{Case, Entry};
use crate::cli::Options;
use crate::contenders::ContenderId;
use crate::goal::Goal;
use crate::job::Job;
use crate::kv_data::{KEY_BYTES, VALUE_BYTES};
use crate::kv_job::{KvContent, KvJob, Rounds};
use crate::metric::Metric;

/// Who meets in most cases.
const STORES: [ContenderId; 6] = [
    ContenderId::Kvs,
    ContenderId::Fjall,
    ContenderId::Redb,
    ContenderId::Sled,
    ContenderId::Lmdb,
    ContenderId::RocksDb,
];

/// The peers that ratios are shown of.
const PEERS: [&str; 5] = ["fjall", "redb", "sled", "lmdb", "rocksdb"];

/// Keys of one batch.
const BATCH: usize = 1000;
/// How often the keys are overwritten.
const TIMES: u64 = 10;
/// Starts of the command.
const COMMAND_RUNS: u32 = 21;

/// What every such case says first.
fn notes(more: &[&str]) -> Vec<String> {
    let common = [
        "sled: its flush calls sync_file_range, which is not power-safe: its durable figures promise nothing",
        "redb and lmdb begin a transaction for each write; lmdb without sync may lose the whole file in a crash",
    ];
    common.iter().chain(more).map(|note| (*note).to_string()).collect()
}

fn small(options: &Options) -> KvContent {
    KvContent { keys: options.keys, value_bytes: VALUE_BYTES, is_scanned: false }
}

/// As many large values as make some hundred MiB with the usual number of keys.
fn large(options: &Options, value_bytes: usize) -> KvContent {
    let share = if value_bytes > 16 << 10 { 128 } else { 16 };
    KvContent { keys: (options.keys / share).max(16), value_bytes, is_scanned: false }
}

fn fill(content: KvContent) -> Job {
    Job::KeyValue(KvJob::Load {
        content,
        batch: BATCH.min(1 << 20 >> content.value_bytes.ilog2()),
        cap_seconds: 3600.0,
    })
}

/// A case of these stores, each with the same job in a fresh directory.
fn fresh(name: &'static str, title: String, ids: &[ContenderId], job: &KvJob) -> Case {
    Case {
        name,
        title,
        notes: notes(&[]),
        entries: ids.iter().map(|&id| Entry::fresh(id, Job::KeyValue(job.clone()))).collect(),
        columns: vec![
            Metric::RecordsPerSecond,
            Metric::MillionsWritten,
            Metric::CpuUsPerRecord,
            Metric::OthersCpuPercent,
            Metric::PeakRssMib,
            Metric::WriteAmplification,
            Metric::ZeroMib,
            Metric::FinalSpace,
        ],
        ratio_metric: Metric::RecordsPerSecond,
        ratio_against: PEERS.into(),
        goals: Vec::new(),
        is_large: false,
        is_steady: false,
    }
}

/// The same on stores that are filled once.
fn filled(name: &'static str, title: String, content: KvContent, job: &KvJob) -> Case {
    let mut case = fresh(name, title, &STORES, job);
    case.entries = case.entries.into_iter().map(|entry| entry.after(fill(content))).collect();
    case.columns =
        vec![Metric::RecordsPerSecond, Metric::CpuUsPerRecord, Metric::OthersCpuPercent, Metric::PeakRssMib];
    case
}

fn described(content: KvContent) -> String {
    format!("{} keys of {KEY_BYTES} B, values of {} B", content.keys, content.value_bytes)
}

/// Setting all keys, one by one or in batches.
pub fn load(name: &'static str, batch: usize, options: &Options) -> Case {
    let content = small(options);
    let how = if batch == 1 { "one by one".to_string() } else { format!("{batch} as one") };
    let job = KvJob::Load { content, batch, cap_seconds: options.cap_seconds };
    let title = format!("load: {}, {how}, no sync for each, one at the end", described(content));
    let mut case = fresh(name, title, &STORES, &job);
    case.columns.push(Metric::IndexBytesPerKey);
    case.goals = vec![
        Goal::at_least("kvs", Metric::RecordsPerSecond, if batch == 1 { 4.0 } else { 1.0 }).against("fjall"),
        Goal::at_most("kvs", Metric::IndexBytesPerKey, 12.4),
    ];
    case
}

/// Loads one by one.
pub fn load_single(options: &Options) -> Case {
    load("kv-load", 1, options)
}

/// Loads in batches.
pub fn load_batches(options: &Options) -> Case {
    load("kv-load-batch", BATCH, options)
}

/// Durable sets of new keys.
pub fn durable(name: &'static str, writers: usize, options: &Options) -> Case {
    let job = append::job(VALUE_BYTES, writers, 1, options);
    let mut entries: Vec<_> = STORES.iter().map(|&id| Entry::fresh(id, job.clone())).collect();
    entries.push(Entry::fresh(ContenderId::RawDsync, job));
    let rate = |factor, peer| Goal::at_least("kvs", Metric::RecordsPerSecond, factor).against(peer);
    Case {
        name,
        title: format!("durable sets of new keys, {writers} writers, values of {VALUE_BYTES} B"),
        notes: notes(&["raw-dsync: one file, each writer writes a block of its own and syncs it"]),
        entries,
        columns: COLUMNS.into(),
        ratio_metric: Metric::RecordsPerSecond,
        ratio_against: [&PEERS[..], &["raw-dsync"]].concat(),
        goals: match writers {
            1 => vec![rate(1.0, "fjall"), rate(0.9, "raw-dsync")],
            _ => vec![rate(2.0, "rocksdb"), Goal::at_most("kvs", Metric::P99Us, 1000.0)],
        },
        is_large: false,
        is_steady: false,
    }
}

/// Sets without sync in a store that is full.
pub fn set(options: &Options) -> Case {
    let content = small(options);
    let title = format!("sets without sync at random, one writer, in {}", described(content));
    let job = KvJob::Set { content, seconds: options.seconds_per_run };
    let mut case = filled("kv-set", title, content, &job);
    case.goals = vec![Goal::at_least("kvs", Metric::RecordsPerSecond, 4.0).against("fjall")];
    case
}

/// Gets of all kinds.
pub fn get(options: &Options) -> Case {
    let content = small(options);
    let job = KvJob::Get { content, reads: options.reads, all_kinds: true };
    let title =
        format!("gets of {}: equally likely, Zipf's law, not there; 1 and 2 threads", described(content));
    let mut case = filled("kv-get", title, content, &job);
    let of = |id, label| Entry { files_of: Some(label), ..Entry::fresh(id, Job::KeyValue(job.clone())) };
    case.entries.insert(1, of(ContenderId::KvsSmall, "kvs"));
    case.entries.push(of(ContenderId::LmdbView, "lmdb"));
    case.notes.extend([
        "every value is copied to the caller; all keys were read once before".to_string(),
        "lmdb: a transaction for each get, as the newest state needs it; lmdb-view and redb: one for all gets"
            .to_string(),
        "memory: 256 MiB for caches or the index (kvs-2mib: 2 MiB); RSS counts mapped files (kvs, lmdb) in full"
            .to_string(),
    ]);
    case.columns = vec![
        Metric::Gets,
        Metric::Gets2,
        Metric::ZipfGets,
        Metric::ZipfGets2,
        Metric::Misses,
        Metric::Misses2,
        Metric::OthersCpuPercent,
        Metric::PeakRssMib,
        Metric::IndexBytesPerKey,
    ];
    case.ratio_metric = Metric::Gets;
    case.ratio_against = [&PEERS[..], &["lmdb-view"]].concat();
    case.goals = vec![
        Goal::at_least("kvs", Metric::Gets, 1.5).against("lmdb"),
        Goal::at_least("kvs", Metric::Gets, 4.0).against("rocksdb"),
        Goal::at_least("kvs", Metric::Misses, 3.0).against("rocksdb"),
        Goal::at_most("kvs", Metric::IndexBytesPerKey, 12.4),
        Goal::at_least("kvs-2mib", Metric::Gets, 100_000.0),
    ];
    case
}

/// Gets of large values.
pub fn get_large(name: &'static str, value_bytes: usize, options: &Options) -> Case {
    let content = large(options, value_bytes);
    let job = KvJob::Get { content, reads: options.reads.min(4 * content.keys), all_kinds: false };
    let mut case = filled(name, format!("gets of {}, equally likely", described(content)), content, &job);
    case.columns = vec![Metric::Gets, Metric::OthersCpuPercent, Metric::PeakRssMib];
    case.ratio_metric = Metric::Gets;
    case
}

/// Everything in order.
pub fn scan(options: &Options) -> Case {
    let content = KvContent { is_scanned: true, ..small(options) };
    let title = format!("ordered scan of {}", described(content));
    let mut case = filled("kv-scan", title, content, &KvJob::Scan(content));
    case.notes.extend([
        "the second scan is measured".to_string(),
        "kvs is opened with `ordered`: its close leaves a sorted run".to_string(),
    ]);
    case.goals = vec![Goal::at_least("kvs", Metric::RecordsPerSecond, 1.0).against("rocksdb")];
    case
}

/// Removes of everything.
pub fn delete(options: &Options) -> Case {
    let content = small(options);
    let job = KvJob::Delete { content, cap_seconds: options.cap_seconds };
    let title = format!("removes without sync, one writer, of all {}", described(content));
    let mut case = fresh("kv-delete", title, &STORES, &job);
    case.columns = vec![
        Metric::RecordsPerSecond,
        Metric::MillionsWritten,
        Metric::CpuUsPerRecord,
        Metric::OthersCpuPercent,
        Metric::PeakRssMib,
        Metric::AllocatedMib,
    ];
    case.goals = vec![Goal::at_least("kvs", Metric::RecordsPerSecond, 3.0).against("fjall")];
    case
}

/// Everything ten times over.
pub fn overwrite(name: &'static str, order: Rounds, options: &Options) -> Case {
    let content = small(options);
    let job = KvJob::Overwrite { content, times: TIMES, order, cap_seconds: options.cap_seconds };
    let (how, amplification) = match order {
        Rounds::InTurn => ("in turn", 1.3),
        Rounds::Random => ("at random", 1.8),
    };
    let title = format!("overwrite x{TIMES}, keys {how}, 100 as one without sync: {}", described(content));
    let mut case = fresh(name, title, &STORES, &job);
    case.columns.insert(7, Metric::PeakSpace);
    case.notes.extend([
        format!("M written: {:.2} if time sufficed; --cap-seconds gives more", (content.keys * TIMES) as f64 / 1e6),
        "space: allocated bytes over the bytes of the keys and values that are there".to_string(),
        "write amp: bytes this process caused to be written, without zeros written ahead, over keys and values"
            .to_string(),
    ]);
    case.goals = vec![
        Goal::at_most("kvs", Metric::WriteAmplification, amplification),
        Goal::at_most("kvs", Metric::PeakSpace, 2.0),
        Goal::at_most("kvs", Metric::FinalSpace, 1.3),
    ];
    case.is_steady = true;
    case
}

/// Opening after a close, and after a kill in the middle of sets.
pub fn open(options: &Options) -> Case {
    let content = small(options);
    let killed = Job::KeyValue(KvJob::SetUntilKilled { content, sets: content.keys / 10 });
    let rows = [
        (ContenderId::Kvs, "kvs", "kvs, killed"),
        (ContenderId::Fjall, "fjall", "fjall, killed"),
        (ContenderId::Redb, "redb", "redb, killed"),
        (ContenderId::Sled, "sled", "sled, killed"),
        (ContenderId::Lmdb, "lmdb", "lmdb, killed"),
        (ContenderId::RocksDb, "rocksdb", "rocksdb, killed"),
    ];
    let entries = rows.into_iter().flat_map(|(id, closed, after_kill)| {
        let entry = Entry::fresh(id, Job::Open).after(fill(content));
        let after_kill_entry = Entry { killed_writer: Some(killed.clone()), ..entry.clone() };
        [entry.labelled(closed), after_kill_entry.labelled(after_kill)]
    });
    Case {
        name: "kv-open",
        title: format!("opening {}, cold", described(content)),
        notes: notes(&[
            "killed: before each round a process sets a tenth of the keys without sync and gets SIGKILL in the middle",
        ]),
        entries: entries.collect(),
        columns: vec![Metric::OpenMs, Metric::PeakRssMib],
        ratio_metric: Metric::OpenMs,
        ratio_against: PEERS.into(),
        goals: vec![
            Goal::at_most("kvs", Metric::OpenMs, 5.0),
            Goal::at_most("kvs, killed", Metric::OpenMs, 30.0),
        ],
        is_large: false,
        is_steady: false,
    }
}

/// Setting large values one by one.
pub fn load_large(name: &'static str, value_bytes: usize, options: &Options) -> Case {
    let content = large(options, value_bytes);
    let job = KvJob::Load { content, batch: 1, cap_seconds: options.cap_seconds };
    let title = format!("load: {}, one by one, no sync for each, one at the end", described(content));
    let mut case = fresh(name, title, &STORES, &job);
    case.columns.insert(1, Metric::MbPerSecond);
    case.notes.push("fjall and rocksdb keep these values apart from the keys".to_string());
    case.ratio_metric = Metric::MbPerSecond;
    case.goals = ["fjall", "rocksdb"]
        .map(|peer| Goal::at_least("kvs", Metric::MbPerSecond, 2.0).against(peer))
        .into_iter()
        .chain([Goal::at_most("kvs", Metric::WriteAmplification, 1.05)])
        .collect();
    case
}

/// The command `kvs get` on a large store.
pub fn command(options: &Options) -> Case {
    let content = KvContent { keys: options.command_keys, ..small(options) };
    let job = KvJob::Command { content, program: options.kvs.clone(), runs: COMMAND_RUNS };
    Case {
        name: "kv-command",
        title: format!("the command `kvs get` on {}", described(content)),
        notes: vec![
            format!("medians of {COMMAND_RUNS} starts, each for another key; the process is new each time"),
            "uncached: none of the store's files is in the page cache; the command itself is".to_string(),
        ],
        entries: vec![Entry::fresh(ContenderId::Kvs, Job::KeyValue(job)).after(fill(content))],
        columns: vec![Metric::CommandMs, Metric::ColdCommandMs],
        ratio_metric: Metric::CommandMs,
        ratio_against: Vec::new(),
        goals: vec![
            Goal::at_most("kvs", Metric::CommandMs, 30.0),
            Goal::at_most("kvs", Metric::ColdCommandMs, 30.0),
        ],
        is_large: true,
        is_steady: false,
    }
}
