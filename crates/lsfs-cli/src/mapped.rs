//! Logs in memory-mapped frames: how `record`, `cat`, `inspect` and `verify` do with them what they do with streams.

use std::path::Path;

use lsfs::log::{LogRecords, MmapInfo, MmapSegmentInfo, inspect_mmap};
use lsfs::{Env, Error, Log, LogOptions};

use crate::report::{Contents, Health, Kind, MappedReport, Segment, StreamContents};

/// Opens the log in `dir` for reading.
pub(crate) fn open(dir: &Path) -> lsfs::Result<Log> {
    Log::open_read_only(dir)
}

/// Opens the log in `dir` for writing, or makes it.
pub(crate) fn create(dir: &Path, segment_bytes: u64, record_limit_bytes: u32) -> lsfs::Result<Log> {
    let store = lsfs::StoreKind::Mmap;
    Log::open(dir, LogOptions { store, segment_bytes, record_limit_bytes, ..LogOptions::default() })
}

/// The records from `from` on, or from the lowest offset.
pub(crate) fn records_from(log: &Log, from: Option<u64>) -> lsfs::Result<Box<dyn LogRecords>> {
    let held = log.lowest_offset()?..log.next_offset()?;
    match from {
        Some(from) if from > held.end => Err(Error::OutOfRange { index: from, held }),
        from => log.iter(from.unwrap_or(held.start)..),
    }
}

/// Calls `see` with the records from `from` down, or from the newest, until it has had enough.
pub(crate) fn each_backward(
    log: &Log,
    from: Option<u64>,
    mut see: impl FnMut(&lsfs::Record) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let held = log.lowest_offset()?..log.next_offset()?;
    if let Some(index) = from
        && !held.contains(&index)
    {
        return Err(Error::OutOfRange { index, held }.into());
    }
    for offset in (held.start..from.map_or(held.end, |from| from + 1)).rev() {
        match log.read(offset) {
            Ok(record) => {
                if !see(&record)? {
                    break;
                }
            }
            Err(Error::LeftOut { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Describes the log in `dir`.
pub(crate) fn inspect(dir: &Path, pid: Option<u32>) -> lsfs::Result<MappedReport> {
    let MmapInfo { first_offset, next_offset, segments, is_open, has_torn_tail, .. } =
        inspect_mmap(&Env::default(), dir)?;
    let health = match (is_open, has_torn_tail) {
        (true, _) => Health::Open { pid },
        (false, true) => Health::TornTail,
        (false, false) => Health::Intact,
    };
    let segments = segments.iter().map(|info: &MmapSegmentInfo| Segment::mapped(info)).collect();
    let contents = StreamContents {
        first_index: first_offset,
        next_index: next_offset,
        byte_count: None,
        lost: Vec::new(),
        segments,
    };
    Ok(MappedReport {
        path: dir.to_path_buf(),
        kind: Kind::MappedLog,
        contents: Contents::Stream(contents),
        health,
    })
}
