//! Reading records of sealed segments by index, from memory.
//!
//! The principal type is [`MappedSegment`]. Nothing is written to a sealed segment any more, so the page cache serves it
//! well, and a record is read without a system call: by the clerk's index if there is one, else by the blocks' own
//! headers.
//!
//! **Invariants.** Bytes are copied first and verified on the copy. What is answered was verified as a cursor verifies
//! it: the block is of this segment, at its place, the slice's checksum holds, it is the first of this record, and it
//! lies before the segment's end. Whatever does not hold is not judged here: `None` sends the caller the long way, which
//! reads the disk and knows what is damaged and what is gone.

use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::block::{BlockReader, Records, Step};
use crate::codec::{BLOCK_HEADER_BYTES, BlockHeader, Checksum, RecordHeader, SLICE_HEADER_BYTES, SliceView};
use crate::directory;
use crate::env::Env;
use crate::index::IndexView;
use crate::io::{FileMap, MapAdvice};
use crate::stream::cursor::{self, Record};
use crate::stream::segment::{Extent, Segment};

/// An index that was not there is looked for again after so many look-ups without it.
const LOOKUPS_WITHOUT_INDEX: u32 = 4096;
/// Records that need more memory than this go the long way.
const SCRATCH_BYTES_MAX: usize = 1 << 20;

thread_local! {
    /// Where a thread copies what it verifies.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A sealed segment in memory.
#[derive(Debug)]
pub(crate) struct MappedSegment {
    map: Box<dyn FileMap>,
    reader: BlockReader,
    base_index: u64,
    next_index: u64,
    end_position: u64,
    /// The index, once there is one for the whole segment.
    index: OnceLock<IndexView>,
    lookups_without_index: AtomicU32,
    /// Read since somebody looked for a mapping to give up.
    was_used: AtomicBool,
}

impl MappedSegment {
    /// Maps the blocks of `extent`; `None` if the file is not what it should be, or cannot be mapped.
    pub(crate) fn new(extent: &Extent) -> Option<MappedSegment> {
        let open = extent.segment.open().ok()?;
        let len = extent.end_position.next_multiple_of(extent.segment.block_bytes as u64);
        let map = open.file.map(len).ok()?;
        map.advise(MapAdvice::Random);
        Some(MappedSegment {
            map,
            reader: open.reader,
            base_index: extent.segment.base_index,
            next_index: extent.next_index,
            end_position: extent.end_position,
            index: OnceLock::new(),
            lookups_without_index: AtomicU32::new(0),
            was_used: AtomicBool::new(true),
        })
    }

    /// Bytes of memory addresses it takes.
    pub(crate) fn len(&self) -> u64 {
        self.map.len()
    }

    /// Whether this maps `extent` as it is now: a truncation may have made it shorter, and appends long again.
    pub(crate) fn is_of(&self, extent: &Extent) -> bool {
        (self.next_index, self.end_position) == (extent.next_index, extent.end_position)
    }

    /// Whether it was read since the last call.
    pub(crate) fn take_used(&self) -> bool {
        self.was_used.swap(false, Ordering::Relaxed)
    }

    /// The record with this index, if all of it verifies.
    pub(crate) fn read(&self, env: &Env, segment: &Segment, index: u64) -> Option<Record> {
        if !self.was_used.load(Ordering::Relaxed) {
            self.was_used.store(true, Ordering::Relaxed);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let hint = self.index(env, segment).and_then(|view| view.get(index));
            hint.and_then(|position| self.read_at_hint(segment, index, position, scratch))
                .or_else(|| self.find(segment, index, scratch))
        })
    }

    fn index(&self, env: &Env, segment: &Segment) -> Option<&IndexView> {
        if let Some(view) = self.index.get() {
            return Some(view);
        }
        if !self.lookups_without_index.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOKUPS_WITHOUT_INDEX) {
            return None;
        }
        let view = IndexView::open(env, &directory::index_path(segment.path()), self.base_index)?;
        view.get(self.next_index.checked_sub(1)?)?;
        // Another thread may have been first; either will do.
        Some(self.index.get_or_init(|| view))
    }

    /// The record that should begin at this position.
    fn read_at_hint(
        &self,
        segment: &Segment,
        index: u64,
        position: u64,
        scratch: &mut Vec<u8>,
    ) -> Option<Record> {
        let block_bytes = self.reader.block_bytes;
        if position >= self.end_position {
            return None;
        }
        let block = u32::try_from(position / block_bytes as u64).ok().filter(|block| *block > 0)?;
        if self.reader.checksum == Checksum::None {
            // Bytes of a payload could pass for a slice: only the chain of slices tells where one begins.
            return self.read_in_block(segment, index, block, scratch);
        }
        let header = self.header(block, scratch)?;
        self.read_slice(segment, index, &header, (position % block_bytes as u64) as usize, scratch)
    }

    /// Copies and checks the header of a block.
    fn header(&self, block: u32, scratch: &mut Vec<u8>) -> Option<BlockHeader> {
        self.copy(block, 0..BLOCK_HEADER_BYTES, scratch)?;
        self.reader.header(&scratch[..self.reader.block_bytes], block).ok()
    }

    /// Copies a part of a block to its place in the scratch buffer, which has the length of a block at least.
    fn copy(&self, block: u32, range: std::ops::Range<usize>, scratch: &mut Vec<u8>) -> Option<()> {
        let block_bytes = self.reader.block_bytes;
        if scratch.len() < block_bytes {
            scratch.resize(block_bytes, 0);
        }
        let position = u64::from(block) * block_bytes as u64 + range.start as u64;
        self.map.read(position, scratch.get_mut(range)?).ok()
    }

    /// The record whose first slice begins at `start` of the block with this verified header.
    fn read_slice(
        &self,
        segment: &Segment,
        index: u64,
        header: &BlockHeader,
        start: usize,
        scratch: &mut Vec<u8>,
    ) -> Option<Record> {
        let used = usize::from(header.used_bytes);
        if start < BLOCK_HEADER_BYTES || start + SLICE_HEADER_BYTES > used {
            return None;
        }
        self.copy(header.block_number, start..start + SLICE_HEADER_BYTES, scratch)?;
        let end = SliceView::end_of(&scratch[..used], start).filter(|end| *end <= used)?;
        self.copy(header.block_number, start..end, scratch)?;
        let image = &scratch[..self.reader.block_bytes];
        let slice = SliceView::decode(image, header, start, self.reader.checksum).ok()?;
        let block_position = u64::from(header.block_number) * self.reader.block_bytes as u64;
        if (slice.index, slice.number) != (index, 0) || block_position + end as u64 > self.end_position {
            return None;
        }
        let (record, header_bytes) = RecordHeader::decode(slice.body, self.reader.record_limit_bytes).ok()?;
        if !slice.is_last {
            return self.read_slices(segment, index, (header.block_number, start), &record, scratch);
        }
        let stored = &slice.body[header_bytes..];
        if stored.len() != record.stored_bytes as usize {
            return None;
        }
        let payload = record.compression.decompress(stored, record.raw_bytes).ok()?;
        Some(Record { index, type_code: record.type_code, payload })
    }

    /// The record of several slices that begins at a block and offset.
    fn read_slices(
        &self,
        segment: &Segment,
        index: u64,
        (block, start): (u32, usize),
        record: &RecordHeader,
        scratch: &mut Vec<u8>,
    ) -> Option<Record> {
        let block_bytes = self.reader.block_bytes as u64;
        let position = u64::from(block) * block_bytes;
        // More than half of each block between the first and the last is payload.
        let wanted = (u64::from(record.stored_bytes) * 2).next_multiple_of(block_bytes) + 3 * block_bytes;
        let len = wanted.min(self.map.len().checked_sub(position)?) as usize;
        if len > SCRATCH_BYTES_MAX {
            return None;
        }
        if scratch.len() < len {
            scratch.resize(len, 0);
        }
        let run = &mut scratch[..len];
        self.map.read(position, run).ok()?;
        let last_block = (self.end_position.div_ceil(block_bytes) - 1) as u32;
        let mut records = Records::new(self.reader, block, start, Some(index), true);
        match records.next(run, block, last_block).ok()? {
            Step::Record(found) if found.index == index && found.in_run.is_none() => {
                let payload = cursor::payload_of(&found, records.assembled(), segment).ok()?.into_owned();
                Some(Record { index, type_code: found.type_code, payload })
            }
            _ => None,
        }
    }

    /// The record without an index: by the first indexes in the headers of the blocks.
    fn find(&self, segment: &Segment, index: u64, scratch: &mut Vec<u8>) -> Option<Record> {
        let last_block = (self.end_position.div_ceil(self.reader.block_bytes as u64) - 1) as u32;
        let (mut low, mut low_index) = (1, self.base_index);
        let (mut high, mut high_index) = (last_block + 1, self.next_index);
        let mut halve = false;
        while high - low > 1 {
            let middle = if halve {
                low + (high - low) / 2
            } else {
                let span = u128::from(high_index.saturating_sub(low_index).max(1));
                let steps = u128::from(index.saturating_sub(low_index)) * u128::from(high - low) / span;
                low + (steps as u32).clamp(1, high - low - 1)
            };
            halve = !halve;
            let first_index = self.header(middle, scratch)?.first_index;
            if first_index > index {
                (high, high_index) = (middle, first_index);
                continue;
            }
            if first_index < index
                && let Some(record) = self.read_in_block(segment, index, middle, scratch)
            {
                return Some(record);
            }
            (low, low_index) = (middle, first_index);
        }
        self.read_in_block(segment, index, low, scratch)
    }

    /// The record that begins in a block, or in an earlier one from which the block's first slice goes on.
    fn read_in_block(
        &self,
        segment: &Segment,
        index: u64,
        block: u32,
        scratch: &mut Vec<u8>,
    ) -> Option<Record> {
        let (header, start, number) = self.slice_in_block(index, block, scratch)?;
        if number == 0 {
            return self.read_slice(segment, index, &header, start, scratch);
        }
        let first = block.checked_sub(number).filter(|first| *first > 0)?;
        let (header, start, number) = self.slice_in_block(index, first, scratch)?;
        if number == 0 { self.read_slice(segment, index, &header, start, scratch) } else { None }
    }

    /// The header of a block, and offset and number of the record's slice in it.
    fn slice_in_block(
        &self,
        index: u64,
        block: u32,
        scratch: &mut Vec<u8>,
    ) -> Option<(BlockHeader, usize, u32)> {
        let header = self.header(block, scratch)?;
        let used = usize::from(header.used_bytes);
        self.copy(block, BLOCK_HEADER_BYTES..used, scratch)?;
        let (start, number) = SliceView::find(&scratch[..used], &header, index)?;
        Some((header, start, number))
    }
}
