//! Sequential read-back of a whole store, cold.

use super::{Case, Entry};
use crate::contenders::ContenderId;
use crate::goal::Goal;
use crate::job::{Content, Job};
use crate::metric::Metric;

/// Payload bytes of the store.
const STORE_BYTES: u64 = 512 << 20;

/// Records of one append while the store is filled.
const FILL_BATCH: usize = 64;

/// Reads a store of `record_bytes` records from front to back.
pub fn read_back(name: &'static str, record_bytes: usize) -> Case {
    let content = Content::of_bytes(STORE_BYTES, record_bytes, FILL_BATCH);
    let read = Job::ReadBack(content);
    let owner = if ContenderId::Lsfs.is_available() { ContenderId::Lsfs } else { ContenderId::RaftEngine };
    let raw = Entry { files_of: Some(owner.name()), ..Entry::fresh(ContenderId::RawRead, read.clone()) };
    let stores = [ContenderId::RaftEngine, ContenderId::Okaywal, ContenderId::Lsfs];
    let mut entries = vec![raw];
    entries.extend(stores.map(|id| Entry::fresh(id, read.clone()).after(Job::Fill(content))));
    Case {
        name,
        title: format!(
            "reading back {} MiB of {record_bytes} B records, written {FILL_BATCH} a sync, cold",
            STORE_BYTES >> 20
        ),
        notes: vec![
            format!("raw-read: 1 MiB O_DIRECT reads of the files of {}, unverified", owner.name()),
            "MB/s of payload for every row: raw-read is credited with the payload in the files it moves"
                .into(),
            "raft-engine: fetch by index after opening; okaywal: recovery, its only way to read all".into(),
        ],
        entries,
        columns: vec![
            Metric::RecordsPerSecond,
            Metric::MbPerSecond,
            Metric::CpuUsPerRecord,
            Metric::OthersCpuPercent,
            Metric::PeakRssMib,
        ],
        ratio_metric: Metric::MbPerSecond,
        ratio_against: vec!["raw-read", "raft-engine", "okaywal"],
        goals: vec![Goal::at_least("lsfs", Metric::MbPerSecond, 0.9).against("raw-read")],
        is_large: false,
        is_steady: false,
    }
}
