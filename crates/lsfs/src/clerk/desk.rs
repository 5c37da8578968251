//! The index and the statistics of one segment in the making.

use std::path::PathBuf;

use crate::codec::{Checksum, IndexEntry, SegmentStatistics, SliceView, TYPE_COUNTS_MAX, TypeCount};
use crate::directory;
use crate::env::Env;
use crate::error::Result;
use crate::index::{IndexTable, IndexWriter, read_statistics, write_statistics};
use crate::io::{AlignedBuf, WriteSync};
use crate::stream::{Extent, PlacedRecord};

/// So many bytes of entries are written whatever their age.
const PENDING_BYTES_MAX: usize = 64 << 10;

/// Where a segment is worked on.
#[derive(Debug)]
pub(super) struct Desk {
    env: Env,
    base_index: u64,
    statistics_path: PathBuf,
    writer: Option<IndexWriter>,
    count: Count,
    /// The stream's epoch when all of this was last known to hold.
    epoch: u32,
    /// The index was begun and nobody was told yet.
    has_begun: bool,
    /// Statistics were written as they are.
    is_written: bool,
}

impl Desk {
    /// Goes on where an earlier clerk was, as far as that holds.
    pub(super) fn open(env: &Env, extent: &Extent, is_sealed: bool) -> Result<Desk> {
        let index_path = directory::index_path(extent.segment.path());
        let statistics_path = directory::statistics_path(extent.segment.path());
        let Some(mut statistics) = read_statistics(env, &statistics_path)? else {
            return Desk::anew(env, extent);
        };
        if statistics.segment_id != extent.segment.segment_id || !holds(&statistics, extent)? {
            return Desk::anew(env, extent);
        }
        // An index of any other length or content is that of another time.
        let first = IndexEntry { offset: extent.segment.base_index, position: extent.segment.position_of(1) };
        let stored = IndexTable::read(env, &index_path, first, statistics.records)?.unwrap_or_default();
        let entries = stored.table.entries();
        let checksum = entries.iter().fold(0, |sum, entry| Checksum::Crc32c.of(sum, &entry.encode()));
        let is_whole = stored.is_in_order && entries.len() as u64 == statistics.records;
        let is_exact = !statistics.is_sealed || stored.surplus_bytes == 0;
        if !is_whole || !is_exact || checksum != statistics.index_checksum {
            return Desk::anew(env, extent);
        }
        statistics.is_sealed &= is_sealed && statistics.next_index == extent.next_index;
        let writer = match statistics.is_sealed {
            true => None,
            false => Some(IndexWriter::resume(env, &index_path, statistics.records)?),
        };
        if writer.as_ref().is_some_and(|writer| writer.entries() != statistics.records) {
            return Desk::anew(env, extent);
        }
        Ok(Desk {
            env: env.clone(),
            base_index: extent.segment.base_index,
            statistics_path,
            writer,
            count: Count::from(statistics),
            epoch: 0,
            has_begun: false,
            is_written: true,
        })
    }

    /// Begins with nothing.
    pub(super) fn anew(env: &Env, extent: &Extent) -> Result<Desk> {
        let segment = &extent.segment;
        let writer = IndexWriter::replace(env, &directory::index_path(segment.path()))?;
        Ok(Desk {
            env: env.clone(),
            base_index: segment.base_index,
            statistics_path: directory::statistics_path(segment.path()),
            writer: Some(writer),
            count: Count::of(extent),
            epoch: 0,
            has_begun: true,
            is_written: false,
        })
    }

    /// Everything counted but the checksum of the entries.
    pub(super) fn statistics(&self) -> &SegmentStatistics {
        &self.count.statistics
    }

    pub(super) fn segment_id(&self) -> u64 {
        self.count.statistics.segment_id
    }

    pub(super) fn base_index(&self) -> u64 {
        self.base_index
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    pub(super) fn set_epoch(&mut self, epoch: u32) {
        self.epoch = epoch;
    }

    /// Whether all of the segment was indexed when it was sealed, by an earlier clerk.
    pub(super) fn is_sealed(&self) -> bool {
        self.writer.is_none()
    }

    /// Whether the index was begun anew since the last call.
    pub(super) fn take_begun(&mut self) -> bool {
        std::mem::take(&mut self.has_begun)
    }

    /// Whether what is indexed is still in the segment after a change of epoch.
    pub(super) fn still_holds(&self, extent: &Extent) -> Result<bool> {
        holds(&self.count.statistics, extent)
    }

    /// Adds the next record.
    pub(super) fn add(&mut self, placed: &PlacedRecord<'_>, extent: &Extent) -> Result<()> {
        let entry = self.count.add(placed, extent);
        self.is_written = false;
        match &mut self.writer {
            Some(writer) => writer.append(entry),
            None => Ok(()),
        }
    }

    /// Goes on behind records that are lost.
    pub(super) fn skip_to(&mut self, index: u64) {
        self.count.statistics.next_index = index;
        self.is_written = false;
    }

    /// Whether so much has come together that it should be written.
    pub(super) fn has_much(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| writer.pending_bytes() >= PENDING_BYTES_MAX)
    }

    /// Writes the entries, then the statistics that say how many there are. Not durable: both can be derived again.
    pub(super) fn write(&mut self) -> Result<()> {
        if self.is_written {
            return Ok(());
        }
        if let Some(writer) = &mut self.writer {
            writer.publish()?;
        }
        write_statistics(&self.env, &self.statistics_path, self.count.take_stock(), WriteSync::Later)?;
        self.is_written = true;
        Ok(())
    }

    /// Finishes the index of a sealed segment: entries, then statistics, both durable.
    pub(super) fn seal(mut self) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            writer.seal()?;
        }
        self.count.statistics.is_sealed = true;
        write_statistics(&self.env, &self.statistics_path, self.count.take_stock(), WriteSync::Durable)
    }
}

/// So many bytes of entries are taken into their checksum at once.
const UNSUMMED_BYTES: usize = 1024;

/// Statistics that grow with each record.
#[derive(Debug)]
pub(super) struct Count {
    /// All but the checksum of the entries, which lags behind: see [`Count::take_stock`].
    pub(super) statistics: SegmentStatistics,
    /// Entries that are not in their checksum yet.
    unsummed: Vec<u8>,
    /// Which of the counted types the last record had: mostly the next one has it too.
    last_type: usize,
}

impl Count {
    /// Of nothing yet.
    pub(super) fn of(extent: &Extent) -> Count {
        let segment = &extent.segment;
        let statistics = SegmentStatistics {
            segment_id: segment.segment_id,
            first_index: segment.base_index,
            next_index: segment.base_index,
            end_position: segment.position_of(1),
            ..SegmentStatistics::default()
        };
        Count::from(statistics)
    }

    /// Goes on from here.
    fn from(statistics: SegmentStatistics) -> Count {
        Count { statistics, unsummed: Vec::with_capacity(UNSUMMED_BYTES), last_type: 0 }
    }

    /// Everything counted, the checksum of the entries too.
    pub(super) fn take_stock(&mut self) -> &SegmentStatistics {
        let sum = &mut self.statistics.index_checksum;
        *sum = Checksum::Crc32c.of(*sum, &self.unsummed);
        self.unsummed.clear();
        &self.statistics
    }

    /// Counts the next record; answers its entry in the index.
    pub(super) fn add(&mut self, placed: &PlacedRecord<'_>, extent: &Extent) -> IndexEntry {
        let (found, block_bytes) = (&placed.found, extent.segment.block_bytes as u64);
        let position_of = |(block, offset): (u32, u16)| u64::from(block) * block_bytes + u64::from(offset);
        let entry = IndexEntry { offset: found.index, position: position_of(found.start) };
        let statistics = &mut self.statistics;
        if statistics.records == 0 {
            statistics.first_index = found.index;
        }
        statistics.next_index = found.index + 1;
        statistics.end_position = position_of(found.end);
        statistics.last_position = entry.position;
        statistics.last_epoch = placed.epoch;
        statistics.records += 1;
        statistics.payload_bytes += u64::from(found.raw_bytes);
        statistics.stored_bytes += u64::from(found.stored_bytes);
        self.count_type(found.type_code);
        self.unsummed.extend_from_slice(&entry.encode());
        if self.unsummed.len() >= UNSUMMED_BYTES {
            self.take_stock();
        }
        entry
    }

    fn count_type(&mut self, type_code: u64) {
        let types = &mut self.statistics.types;
        if let Some(count) = types.get_mut(self.last_type).filter(|count| count.type_code == type_code) {
            count.records += 1;
            return;
        }
        match types.iter().position(|count| count.type_code == type_code) {
            Some(at) => {
                types[at].records += 1;
                self.last_type = at;
            }
            None if types.len() < TYPE_COUNTS_MAX => {
                self.last_type = types.len();
                types.push(TypeCount { type_code, records: 1 });
            }
            None => self.statistics.other_types_records += 1,
        }
    }
}

/// Whether what was counted is in the segment as it is now.
///
/// It is if the last record counted is where it was, in a block of the same epoch: a truncation before it would have
/// taken it away, and what is appended after one is in blocks of a later epoch.
fn holds(statistics: &SegmentStatistics, extent: &Extent) -> Result<bool> {
    let segment = &extent.segment;
    if statistics.next_index > extent.next_index || statistics.end_position > extent.end_position {
        return Ok(false);
    }
    if statistics.records == 0 {
        return Ok(true);
    }
    let block_bytes = segment.block_bytes as u64;
    let Ok(block) = u32::try_from(statistics.last_position / block_bytes) else { return Ok(false) };
    let mut image = AlignedBuf::zeroed(segment.block_bytes);
    if block == 0 || segment.read_blocks(block, &mut image)? == 0 {
        return Ok(false);
    }
    let reader = segment.open()?.reader;
    let Ok(header) = reader.header(&image, block) else { return Ok(false) };
    let start = (statistics.last_position % block_bytes) as usize;
    let slice = SliceView::decode(&image, &header, start, reader.checksum);
    Ok(header.epoch == statistics.last_epoch
        && slice.is_ok_and(|slice| slice.index < statistics.next_index && slice.number == 0))
}
