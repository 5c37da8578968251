//! Bytes on disk beyond the payload.

use super::{Case, Entry};
use crate::contenders::ContenderId;
use crate::goal::Goal;
use crate::job::{Content, Job};
use crate::metric::Metric;

/// Most bytes lsfs may add to a record.
const GOAL_BYTES: f64 = 48.0;

/// 256 B records, 64 with each sync.
pub fn space() -> Case {
    let content = Content { records: 64 * 2048, record_bytes: 256, batch: 64 };
    let stores = [ContenderId::RaftEngine, ContenderId::Okaywal, ContenderId::Lsfs];
    Case {
        name: "space",
        title: format!("space of {} records of 256 B, 64 a sync", content.records),
        notes: vec![
            "live: up to the last byte of each file that is not zero, after a clean close; prepared space is not \
             counted"
                .into(),
        ],
        entries: stores.map(|id| Entry::fresh(id, Job::Space(content))).into(),
        columns: vec![Metric::OverheadBytes, Metric::LiveMib, Metric::AllocatedMib],
        ratio_metric: Metric::OverheadBytes,
        ratio_against: vec!["raft-engine", "okaywal"],
        goals: vec![Goal::at_most("lsfs", Metric::OverheadBytes, GOAL_BYTES)],
        is_large: false,
        is_steady: true,
    }
}
