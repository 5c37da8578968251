//! Bulk: large records, one sync per MiB.

use super::append::{COLUMNS, warmup_seconds};
use super::{Case, Entry};
use crate::cli::Options;
use crate::contenders::{ContenderId, StorePlan};
use crate::goal::Goal;
use crate::job::Job;
use crate::measure::Load;
use crate::metric::Metric;

/// Most payload bytes of a measured window.
const CAP_BYTES: u64 = 512 << 20;

/// Payload bytes that contenders prepare files for.
const PREPARED_BYTES: u64 = 640 << 20;

/// 64 KiB records, 16 of them with each sync.
pub fn bulk(options: &Options) -> Case {
    let job = Job::Append {
        plan: StorePlan { expected_bytes: PREPARED_BYTES, keeps_records: false, is_synced: true },
        load: Load {
            record_bytes: 64 << 10,
            producers: 1,
            batch: 16,
            warmup_seconds: warmup_seconds(options).min(0.2),
            seconds: options.seconds_per_run,
            cap_bytes: CAP_BYTES,
        },
    };
    let contenders = [
        ContenderId::RawDirect,
        ContenderId::RawFallocated,
        ContenderId::RaftEngine,
        ContenderId::RaftEngineWarm,
        ContenderId::Okaywal,
        ContenderId::Lsfs,
        ContenderId::LsfsRecycled,
    ];
    Case {
        name: "bulk",
        title: "64 KiB records, one sync per MiB".into(),
        notes: vec![
            format!("a run ends after {} MiB if time is left; latency is of one MiB", CAP_BYTES >> 20),
            "raw-direct, raft-engine-warm, okaywal, lsfs-recycled write over old space; the others into new"
                .into(),
        ],
        entries: contenders.map(|id| Entry::fresh(id, job.clone())).into(),
        columns: COLUMNS.into(),
        ratio_metric: Metric::MbPerSecond,
        ratio_against: vec!["raw-direct", "raw-fallocated", "raft-engine", "raft-engine-warm", "okaywal"],
        goals: vec![
            Goal::at_least("lsfs", Metric::MbPerSecond, 0.8).against("raw-fallocated"),
            Goal::at_least("lsfs-recycled", Metric::MbPerSecond, 0.8).against("raw-direct"),
            Goal::at_least("lsfs-recycled", Metric::MbPerSecond, 2.5).against("raft-engine"),
        ],
        is_large: false,
        is_steady: false,
    }
}
