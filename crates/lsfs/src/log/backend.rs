//! What a log needs of its storage.

use std::fmt::Debug;
use std::ops::Range;

use crate::error::Result;
use crate::stream::{Record, RecordRef};

/// How a log keeps its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreKind {
    /// A record stream: checksummed blocks, direct I/O.
    #[default]
    Block,
    /// Memory-mapped plain frames, for trusted directories; no checksums, no type codes.
    Mmap,
}

/// When an append returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// At once; the record is durable with the next [`StorageBackend::flush`].
    Buffered,
    /// Once the record is on the medium.
    Durable,
}

/// One segment of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSegment {
    /// First offset that may be in it.
    pub base_offset: u64,
    /// Offset after the last that may be in it.
    pub next_offset: u64,
    /// Bytes of records with what the store adds to them, where known without reading them.
    pub bytes: u64,
    /// Whether it is closed for good. Only the last one is not.
    pub is_sealed: bool,
}

/// The storage of one log: numbered records in segments.
///
/// Offsets are given out in order, one after the other; a rewritten segment may hold gaps. Segments stand for ranges of
/// offsets that follow each other without gaps; all but the last are sealed. Nothing here says where bytes lie: a store
/// may keep them in local files or elsewhere.
///
/// What was appended is visible to every method at once. Errors of a failed write or sync stop all further writing until
/// the log is opened again; reading goes on.
pub trait StorageBackend: Send + Sync + Debug {
    /// Which store this is.
    fn kind(&self) -> StoreKind;
    /// Appends a record and answers its offset.
    fn append(&self, type_code: u64, payload: &[u8], durability: Durability) -> Result<u64>;
    /// Makes everything appended before the call durable.
    fn flush(&self) -> Result<()>;
    /// The record with this offset.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) outside the log, [`Error::LeftOut`](crate::Error::LeftOut) in a
    /// gap that a rewrite left.
    fn read(&self, offset: u64) -> Result<Record>;
    /// Reads the records of a range in order, gaps left out.
    fn records(&self, range: Range<u64>) -> Result<Box<dyn LogRecords>>;
    /// Lowest offset, and the one the next record will have.
    fn range(&self) -> Result<Range<u64>>;
    /// The segments, oldest first; there is always one.
    fn segments(&self) -> Result<Vec<LogSegment>>;
    /// Seals the active segment and begins a new one, unless it is empty.
    fn rotate(&self) -> Result<()>;
    /// Drops the sealed segments whose records all lie before `offset`, oldest first.
    fn drop_before(&self, offset: u64) -> Result<()>;
    /// Replaces the sealed segments that stand for `run` by one with `records`, whose offsets rise within the run.
    /// Whole or not at all, also if power fails.
    fn replace(&self, run: Range<u64>, records: &mut dyn Iterator<Item = Result<Record>>) -> Result<()>;
    /// Drops all records; the next one will be `offset`. Whole or not at all.
    fn reset(&self, offset: u64) -> Result<()>;
    /// Makes everything durable and lets the log go.
    fn close(&self) -> Result<()>;

    /// Appends records one behind the other and answers their offsets; not atomic.
    fn append_batch(&self, records: &[(u64, &[u8])], durability: Durability) -> Result<Range<u64>> {
        let mut range: Option<Range<u64>> = None;
        for (type_code, payload) in records {
            let offset = self.append(*type_code, payload, Durability::Buffered)?;
            range = Some(range.map_or(offset, |range| range.start)..offset + 1);
        }
        if durability == Durability::Durable {
            self.flush()?;
        }
        match range {
            Some(range) => Ok(range),
            None => self.range().map(|range| range.end..range.end),
        }
    }

    /// Bytes of all segments.
    fn total_bytes(&self) -> Result<u64> {
        Ok(self.segments()?.iter().map(|segment| segment.bytes).sum())
    }
}

/// Reads records forward.
pub trait LogRecords: Send + Debug {
    /// The next record; `None` at the end of the range, or at the end of the log for now: it may be called again.
    ///
    /// # Errors
    /// As for [`StorageBackend::read`].
    fn next_record(&mut self) -> Result<Option<RecordRef<'_>>>;
}
