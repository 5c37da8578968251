//! Comparing indexes and statistics with their segments.

use std::path::{Path, PathBuf};

use crate::clerk::desk::Count;
use crate::clerk::{ATTEMPTS, end_of_loss};
use crate::codec::{IndexEntry, SegmentStatistics};
use crate::directory;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::index::{IndexTable, StoredIndex, read_statistics};
use crate::stream::{Extent, Progress, Reader};

/// An index of more entries than this many for each record is not read further.
const ENTRIES_PER_RECORD: u64 = 2;
/// Faults of one segment are listed up to this many; the last one says how many more there are.
const FAULTS_LISTED: usize = 16;

/// What a comparison of the indexes with their segments found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexReport {
    /// Segments that have an index.
    pub indexed_segments: u64,
    /// Segments that have none.
    pub unindexed_segments: u64,
    /// Entries that are right.
    pub entries: u64,
    /// Records without an entry; reading them takes a little longer.
    pub unindexed_records: u64,
    /// What is wrong, in order.
    pub faults: Vec<IndexFault>,
}

/// Something wrong in an index or in statistics. No read is wrong because of it; `rebuild` mends it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct IndexFault {
    /// The file.
    pub path: PathBuf,
    /// The record concerned, if it is about one.
    pub index: Option<u64>,
    /// What does not agree.
    pub reason: String,
}

/// Compares every entry of the stream's indexes, and the statistics, with the segments. Changes nothing, takes no lock.
///
/// # Errors
/// As for [`Reader::open`], or if a file cannot be read. Damaged segments are compared up to the damage.
pub fn verify_index(env: &Env, dir: &Path, mut progress: impl FnMut(Progress)) -> Result<IndexReport> {
    let reader = Reader::open_in(env.clone(), dir)?;
    let mut attempts = 1;
    loop {
        let (bounds, extents) = reader.segments()?;
        let total_bytes = extents.iter().map(|extent| extent.end_position).sum();
        let (mut report, mut done_bytes) = (IndexReport::default(), 0);
        for (at, extent) in extents.iter().enumerate() {
            let is_sealed = at + 1 < extents.len();
            match (Check { env, reader: &reader, extent, is_sealed }).run(&mut report) {
                // Purged meanwhile: nothing is wrong with what is gone.
                Ok(()) | Err(Error::Gone { .. } | Error::OutOfRange { .. }) => {}
                Err(error) => return Err(error),
            }
            done_bytes += extent.end_position;
            progress(Progress { done_bytes, total_bytes });
        }
        // A stream that is changed meanwhile contradicts indexes of what it was; a clerk needs its time, too.
        let (now, _) = reader.segments()?;
        let is_same = (now.epoch, now.first_index) == (bounds.epoch, bounds.first_index);
        if is_same || report.faults.is_empty() || attempts == ATTEMPTS {
            return Ok(report);
        }
        attempts += 1;
    }
}

/// The comparison of one segment.
struct Check<'a> {
    env: &'a Env,
    reader: &'a Reader,
    extent: &'a Extent,
    is_sealed: bool,
}

impl Check<'_> {
    fn run(&self, report: &mut IndexReport) -> Result<()> {
        let segment = &self.extent.segment;
        let (path, statistics_path) =
            (directory::index_path(segment.path()), directory::statistics_path(segment.path()));
        // Before the index: what they count is in it, whatever a clerk adds meanwhile.
        let statistics = read_statistics(self.env, &statistics_path)?
            .filter(|statistics| statistics.segment_id == segment.segment_id);
        let held = self.extent.next_index - segment.base_index;
        let first = IndexEntry { offset: segment.base_index, position: segment.position_of(1) };
        let limit = held.saturating_mul(ENTRIES_PER_RECORD).saturating_add(1 << 16);
        let Some(stored) = IndexTable::read(self.env, &path, first, limit)? else {
            report.unindexed_segments += 1;
            report.unindexed_records += held;
            return Ok(());
        };
        report.indexed_segments += 1;
        let mut faults = Faults { path: &path, found: Vec::new(), more: 0 };
        let counted = self.compare_entries(&stored, statistics.as_ref(), report, &mut faults)?;
        self.check_file(&stored, statistics.as_ref(), &mut faults);
        report.faults.extend(faults.list());
        if let Some((statistics, counted)) = statistics.zip(counted)
            && statistics != counted
        {
            let reason = format!(
                "statistics count {} records and {} bytes up to record {}, there are {} and {}",
                statistics.records,
                statistics.stored_bytes,
                statistics.next_index,
                counted.records,
                counted.stored_bytes
            );
            report.faults.push(IndexFault { path: statistics_path, index: None, reason });
        }
        Ok(())
    }

    /// Compares each entry with its record; answers what the statistics should be.
    fn compare_entries(
        &self,
        stored: &StoredIndex,
        statistics: Option<&SegmentStatistics>,
        report: &mut IndexReport,
        faults: &mut Faults<'_>,
    ) -> Result<Option<SegmentStatistics>> {
        let segment = &self.extent.segment;
        let mut entries = stored.table.entries().iter().peekable();
        let mut cursor = self.reader.places(segment.base_index);
        let mut count = Count::of(self.extent);
        let mut counted = None;
        while cursor.position() < self.extent.next_index {
            let placed = match cursor.next_place() {
                Ok(Some(placed)) if placed.segment_id == segment.segment_id => placed,
                Ok(Some(_)) => return Err(Error::Gone { path: segment.path().to_path_buf() }),
                Ok(None) => break,
                Err(error) => match end_of_loss(self.reader, &error, cursor.position())? {
                    Some(end) => {
                        let end = end.min(self.extent.next_index);
                        report.unindexed_records += end - cursor.position();
                        count.statistics.next_index = end;
                        cursor = self.reader.places(end);
                        continue;
                    }
                    None if error.is_corruption() => break,
                    None => return Err(error),
                },
            };
            let right = count.add(&placed, self.extent);
            if statistics.is_some_and(|statistics| statistics.next_index == count.statistics.next_index) {
                counted = Some(count.take_stock().clone());
            }
            while let Some(stray) = entries.next_if(|entry| entry.offset < right.offset) {
                faults.add(stray, "there is no such record in the segment".to_string());
            }
            match entries.next_if(|entry| entry.offset == right.offset) {
                Some(entry) if *entry == right => report.entries += 1,
                Some(entry) => {
                    faults.add(entry, format!("says position {}, it is {}", entry.position, right.position));
                }
                None => report.unindexed_records += 1,
            }
        }
        if cursor.position() < self.extent.next_index {
            // Damaged: what is behind it cannot be compared.
            report.unindexed_records += self.extent.next_index - cursor.position();
            return Ok(counted);
        }
        // A growing segment may have grown since the look.
        let next_index = match self.is_sealed {
            true => self.extent.next_index,
            false => self.reader.bounds()?.end,
        };
        for stray in entries.filter(|entry| entry.offset >= next_index) {
            faults.add(stray, format!("the segment ends before record {next_index}"));
        }
        Ok(counted.map(|counted| SegmentStatistics {
            is_sealed: statistics.is_some_and(|statistics| statistics.is_sealed),
            ..counted
        }))
    }

    /// What an index that a clerk has finished may not be.
    fn check_file(
        &self,
        stored: &StoredIndex,
        statistics: Option<&SegmentStatistics>,
        faults: &mut Faults<'_>,
    ) {
        if !self.is_sealed || !statistics.is_some_and(|statistics| statistics.is_sealed) {
            return;
        }
        let mut wrong = |reason: String| {
            faults.found.push(IndexFault { path: faults.path.to_path_buf(), index: None, reason });
        };
        if !stored.is_in_order {
            wrong("the segment is sealed, the entries are not in order".to_string());
        }
        if stored.surplus_bytes > 0 {
            wrong(format!("{} bytes behind the entries", stored.surplus_bytes));
        }
    }
}

/// The faults of one index.
struct Faults<'a> {
    path: &'a Path,
    found: Vec<IndexFault>,
    more: u64,
}

impl Faults<'_> {
    fn add(&mut self, entry: &IndexEntry, what: String) {
        if self.found.len() >= FAULTS_LISTED {
            self.more += 1;
            return;
        }
        let reason = format!("entry of record {}: {what}", entry.offset);
        self.found.push(IndexFault { path: self.path.to_path_buf(), index: Some(entry.offset), reason });
    }

    fn list(mut self) -> Vec<IndexFault> {
        if self.more > 0 {
            let reason = format!("{} more entries are wrong", self.more);
            self.found.push(IndexFault { path: self.path.to_path_buf(), index: None, reason });
        }
        self.found
    }
}
