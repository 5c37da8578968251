//! Reading records: by index, forward, backward.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::block::{BlockReader, FoundRecord, Records, Step};
use crate::codec::{BLOCK_HEADER_BYTES, BlockHeader, Compression, RecordTailer, SliceView, lost_range_of};
use crate::error::{Error, Result};
use crate::io::{AlignedBuf, Runtime};
use crate::stream::read_ahead::{self, ReadAhead};
use crate::stream::recorder::Bounds;
use crate::stream::segment::{Extent, Segment};

/// Blocks are fetched in runs of this many bytes by cursors; a read by index fetches what it needs.
const RUN_BYTES: usize = 1 << 20;
/// How often a block that does not verify is read before it is called damaged.
const READ_ATTEMPTS: u32 = 3;
/// The first run of a cursor is small: most look-ups read one record.
const FIRST_RUN_BYTES: usize = 16 << 10;

/// A record with its own payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The record's number in the stream.
    pub index: u64,
    /// The caller's 64-bit type code.
    pub type_code: u64,
    /// What was appended.
    pub payload: Vec<u8>,
}

/// A record borrowed from a cursor's buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// The record's number in the stream.
    pub index: u64,
    /// The caller's 64-bit type code.
    pub type_code: u64,
    /// What was appended; owned only if it had to be decompressed.
    pub payload: Cow<'a, [u8]>,
}

impl RecordRef<'_> {
    /// The record with a payload of its own.
    pub fn into_owned(self) -> Record {
        Record { index: self.index, type_code: self.type_code, payload: self.payload.into_owned() }
    }
}

/// Where a cursor gets blocks from: a stream open for writing, or a reader beside it.
pub(crate) trait Source: Send + Sync + fmt::Debug {
    /// What there is to read now.
    fn bounds(&self) -> Result<Bounds>;
    /// Reads again which segments there are, whatever is known of them.
    fn look_anew(&self) -> Result<()>;
    /// The segment that holds, or would next hold, the record.
    fn extent_of(&self, index: u64) -> Result<Extent>;
    /// The sealed segment that holds the record; `None` if it is in the active one or out of bounds.
    fn sealed_extent_of(&self, index: u64) -> Result<Option<Extent>>;
    /// Blocks from `first` on, none of them behind the last one with a record; whole blocks, as many as fit.
    fn fetch(&self, extent: &Extent, first: u32, target: &mut [u8]) -> Result<usize>;
    /// The block in which the record begins, if it is known without looking.
    fn block_in_memory(&self, segment: &Segment, index: u64) -> Option<u32>;
    /// Clock and threads.
    fn runtime(&self) -> Arc<dyn Runtime>;
    /// The records that a repair found to be lost.
    fn lost_ranges(&self) -> Vec<Range<u64>>;
}

impl Source for crate::stream::recorder::Recorder {
    fn bounds(&self) -> Result<Bounds> {
        Ok(self.bounds())
    }
    fn look_anew(&self) -> Result<()> {
        Ok(())
    }
    fn extent_of(&self, index: u64) -> Result<Extent> {
        Ok(self.extent_of(index))
    }
    fn sealed_extent_of(&self, index: u64) -> Result<Option<Extent>> {
        Ok(self.sealed_extent_of(index))
    }
    fn fetch(&self, extent: &Extent, first: u32, target: &mut [u8]) -> Result<usize> {
        self.fetch(extent, first, target)
    }
    fn block_in_memory(&self, segment: &Segment, index: u64) -> Option<u32> {
        self.block_in_memory(segment, index)
    }
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::clone(&self.env.runtime)
    }
    fn lost_ranges(&self) -> Vec<Range<u64>> {
        self.lost_ranges()
    }
}

/// What reading record `index` came to; if a repair has named it lost, the error says so, with all that is lost there.
fn name_lost(source: &dyn Source, index: u64, error: Error) -> Error {
    let (path, position, reason) = match &error {
        Error::Corrupt(damage) => (damage.path.clone(), damage.position, damage.reason.clone()),
        Error::Gone { path } => (path.clone(), 0, "the file is missing or is another segment".to_string()),
        _ => return error,
    };
    match lost_range_of(&source.lost_ranges(), index) {
        Some(range) => {
            Error::corrupt(&path, position, Some(range.clone()), format!("lost, as a repair found: {reason}"))
        }
        None => name_missing(source, index, error),
    }
}

/// A segment that went away is no damage, unless the manifest still names it: files go after their names.
fn name_missing(source: &dyn Source, index: u64, error: Error) -> Error {
    let Error::Gone { path } = &error else { return error };
    let named = source.look_anew().and_then(|()| source.bounds()).and_then(|bounds| {
        Ok((bounds.first_index..bounds.next_index).contains(&index).then_some(source.extent_of(index)?))
    });
    match named {
        Ok(Some(extent))
            if extent.segment.path() == path && matches!(extent.segment.open(), Err(Error::Gone { .. })) =>
        {
            let records = Some(extent.segment.base_index..extent.next_index);
            Error::corrupt(path, 0, records, "the file is missing or is another segment")
        }
        Ok(_) => error,
        Err(other) => other,
    }
}

/// Finds the block in which record `index` begins, or one shortly before it.
///
/// The blocks' own headers are the index: they say the first record of each block. Interpolation finds it in one or
/// two reads when records are of similar size, halving bounds the reads when they are not.
fn find_block(source: &dyn Source, extent: &Extent, index: u64) -> Result<u32> {
    let segment = &extent.segment;
    if let Some(block) = source.block_in_memory(segment, index) {
        return Ok(block);
    }
    let reader = segment.open()?.reader;
    let mut image = AlignedBuf::zeroed(segment.block_bytes);
    let (mut low, mut low_index) = (1, segment.base_index);
    let (mut high, mut high_index) = (extent.last_block() + 1, extent.next_index);
    let mut halve = false;
    // The index is a hint where to look first; what is found there decides.
    let mut hint = segment.index_hint(index).filter(|block| (low + 1..high).contains(block));
    while high - low > 1 {
        let middle = if let Some(hint) = hint.take() {
            hint
        } else if halve {
            low + (high - low) / 2
        } else {
            let span = u128::from(high_index.saturating_sub(low_index).max(1));
            let steps = u128::from(index.saturating_sub(low_index)) * u128::from(high - low) / span;
            low + (steps as u32).clamp(1, high - low - 1)
        };
        halve = !halve;
        // A damaged block says nothing, the ones behind it may: what is readable there stays readable.
        let mut probed = middle;
        let mut probe = Probe::Unknown;
        while matches!(probe, Probe::Unknown) && probed < high {
            probe = begins_at_or_before(source, extent, &reader, probed, index, &mut image)?;
            probed += 1;
        }
        match probe {
            Probe::Before { last_index } if last_index >= index => return Ok(probed - 1),
            Probe::Before { last_index } => (low, low_index) = (probed - 1, last_index),
            Probe::After { first_index } => (high, high_index) = (middle, first_index),
            Probe::Unknown => high = middle,
        }
    }
    Ok(low)
}

enum Probe {
    /// The record begins in this block or behind it; the block's last record is `last_index`.
    Before {
        last_index: u64,
    },
    /// The record begins in an earlier block.
    After {
        first_index: u64,
    },
    Unknown,
}

fn begins_at_or_before(
    source: &dyn Source,
    extent: &Extent,
    reader: &BlockReader,
    block: u32,
    index: u64,
    image: &mut AlignedBuf,
) -> Result<Probe> {
    if source.fetch(extent, block, image)? == 0 {
        return Ok(Probe::Unknown);
    }
    let Ok(header) = reader.header(image, block) else { return Ok(Probe::Unknown) };
    let Some(Ok(first)) = reader.slices(image, header).next() else { return Ok(Probe::Unknown) };
    if header.first_index > index || (header.first_index == index && first.number > 0) {
        return Ok(Probe::After { first_index: header.first_index });
    }
    let Ok(last_start) = reader.last_slice_start(image, &header) else { return Ok(Probe::Unknown) };
    match SliceView::decode(image, &header, usize::from(last_start), reader.checksum) {
        Ok(last) => Ok(Probe::Before { last_index: last.index }),
        Err(_) => Ok(Probe::Unknown),
    }
}

/// Reads records forward, each following from the one before.
///
/// A record that is truncated away while the cursor is on its way may still be answered, as it was; never a mixture.
/// The cursor sees records appended after it was made; [`Cursor::next_record`] answers `None` at the end for now and may
/// be called again.
#[derive(Debug)]
pub struct Cursor {
    source: Arc<dyn Source>,
    next: u64,
    /// The end asked for, exclusive.
    end: u64,
    durable_only: bool,
    /// The end last seen, so that not every record asks for it.
    known_end: u64,
    /// The writer's epoch at that time.
    epoch: u32,
    place: Option<Place>,
    run: AlignedBuf,
    run_blocks: Range<u32>,
    /// Runs fetched one behind the other; from the second on the next one is fetched ahead.
    runs_in_order: u32,
    read_ahead: Option<ReadAhead>,
    /// Whether payloads are wanted; otherwise records are only verified and placed, also those that are purged but there.
    collect: bool,
    /// The blocks that were asked for ahead and not taken yet, one range for each run.
    asked: VecDeque<Range<u32>>,
    /// A buffer whose run was decoded.
    spare: Option<AlignedBuf>,
    /// Records of the run that were verified together; those before `answered` were given out.
    ready: Vec<FoundRecord>,
    answered: u32,
}

/// Where a cursor found a record.
#[derive(Debug)]
pub(crate) struct PlacedRecord<'a> {
    pub(crate) segment_id: u64,
    /// Epoch of its blocks.
    pub(crate) epoch: u32,
    pub(crate) found: &'a FoundRecord,
}

#[derive(Debug)]
struct Place {
    extent: Extent,
    records: Records,
}

impl Cursor {
    pub(crate) fn new(source: Arc<dyn Source>, start: u64, end: u64, durable_only: bool) -> Self {
        Cursor {
            source,
            next: start,
            end,
            durable_only,
            known_end: 0,
            epoch: 0,
            place: None,
            run: AlignedBuf::zeroed(0),
            run_blocks: 0..0,
            runs_in_order: 0,
            read_ahead: None,
            collect: true,
            asked: VecDeque::new(),
            spare: None,
            ready: Vec::new(),
            answered: 0,
        }
    }

    /// A cursor that verifies durable records and tells where they lie.
    pub(crate) fn of_places(source: Arc<dyn Source>, start: u64) -> Self {
        Cursor { collect: false, ..Cursor::new(source, start, u64::MAX, true) }
    }

    /// Index of the record that comes next.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The next record, or `None` at the end of the range or of the stream.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the record was purged meanwhile, [`Error::Corrupt`] if it does not verify,
    /// [`Error::Gone`] if its segment went away under a reader.
    pub fn next_record(&mut self) -> Result<Option<RecordRef<'_>>> {
        if !self.is_next_ready() && !self.prepare_next()? {
            return Ok(None);
        }
        let found = &self.ready[self.answered as usize];
        if found.index >= self.end {
            self.next = found.index;
            return Ok(None);
        }
        self.answered += 1;
        self.next = found.index.saturating_add(1);
        let place = self.place.as_ref().expect("a found record has a place");
        let stored = match &found.in_run {
            Some(range) => &self.run[range.clone()],
            None => place.records.assembled(),
        };
        let payload = match found.compression {
            Compression::None => Cow::Borrowed(stored),
            _ => payload_of(found, stored, &place.extent.segment)?,
        };
        Ok(Some(RecordRef { index: found.index, type_code: found.type_code, payload }))
    }

    /// Whether the next record was verified with an earlier one, and may be answered without another look at the bounds.
    #[inline]
    fn is_next_ready(&self) -> bool {
        (self.answered as usize) < self.ready.len() && self.next < self.known_end && self.next < self.end
    }

    /// Has the next record ready for [`Cursor::next_record`]; `false` at the end.
    fn prepare_next(&mut self) -> Result<bool> {
        if self.next >= self.end || !self.has_next()? {
            return Ok(false);
        }
        let mut attempts = 1;
        loop {
            match self.find_next() {
                // Rewritten since the last look: the records are in another segment now.
                Err(Error::Gone { .. }) if attempts < READ_ATTEMPTS => {
                    attempts += 1;
                    self.known_end = 0;
                    self.leave_place();
                    if !self.has_next()? {
                        return Ok(false);
                    }
                }
                other => return other.map_err(|error| name_lost(&*self.source, self.next, error)),
            }
        }
    }

    /// Where the next record lies, or `None` at the end for now.
    ///
    /// # Errors
    /// As for [`Cursor::next_record`].
    pub(crate) fn next_place(&mut self) -> Result<Option<PlacedRecord<'_>>> {
        if !self.is_next_ready() && (self.next >= self.end || !self.has_next()? || !self.find_next()?) {
            return Ok(None);
        }
        let found = &self.ready[self.answered as usize];
        self.answered += 1;
        self.next = found.index.saturating_add(1);
        let place = self.place.as_ref().expect("a found record has a place");
        let (segment_id, epoch) = (place.extent.segment.segment_id, place.records.epoch());
        Ok(Some(PlacedRecord { segment_id, epoch, found }))
    }

    fn has_next(&mut self) -> Result<bool> {
        if self.next >= self.known_end {
            let bounds = self.source.bounds()?;
            if bounds.epoch != self.epoch {
                // The tail may have been truncated and written anew: what was fetched of it is history.
                self.epoch = bounds.epoch;
                self.leave_place();
            }
            self.known_end = if self.durable_only { bounds.durable_index } else { bounds.next_index };
            if self.next < bounds.first_index && self.collect {
                let held = bounds.first_index..bounds.next_index;
                return Err(Error::OutOfRange { index: self.next, held });
            }
        }
        Ok(self.next < self.known_end)
    }

    /// Forgets where reading was, and what was fetched.
    fn leave_place(&mut self) {
        self.place = None;
        self.run_blocks = 0..0;
        self.drop_ready();
        self.stop_ahead();
    }

    fn drop_ready(&mut self) {
        self.ready.clear();
        self.answered = 0;
    }

    /// Finds the record with the next index, or of a sparse segment the first one behind it: it is the first that is
    /// ready. `false` at the end.
    fn find_next(&mut self) -> Result<bool> {
        let mut fetched_at = None;
        let mut attempts = 1;
        loop {
            if let Some(found) = self.ready.get(self.answered as usize) {
                if found.index < self.next {
                    self.answered += 1;
                    continue;
                }
                let place = self.place.as_ref().expect("what is ready has a place");
                if found.index == self.next || place.extent.segment.open()?.reader.is_sparse {
                    return Ok(true);
                }
                let position = place.extent.segment.position_of(found.start.0) + u64::from(found.start.1);
                let reason = format!("found record {}, expected {}", found.index, self.next);
                let records = Some(self.next..found.index);
                let path = place.extent.segment.path().to_path_buf();
                self.place = None;
                self.drop_ready();
                return Err(Error::corrupt(&path, position, records, reason));
            }
            if self.place.is_none() {
                self.seek()?;
                fetched_at = None;
            }
            self.drop_ready();
            let place = self.place.as_mut().expect("seek sets the place");
            let run_bytes = self.run_blocks.len() * place.extent.segment.block_bytes;
            let step = if self.run_blocks.contains(&place.records.block()) {
                let run = &self.run[..run_bytes];
                let last_block = place.extent.last_block();
                place.records.next_of_block(run, self.run_blocks.start, last_block, &mut self.ready)
            } else {
                Ok(())
            };
            match step {
                Ok(()) if !self.ready.is_empty() => {}
                Ok(()) => {
                    let block = place.records.block();
                    if fetched_at == Some(block) {
                        self.leave_segment()?;
                        if self.next >= self.end || !self.has_next()? {
                            return Ok(false);
                        }
                        continue;
                    }
                    fetched_at = Some(block);
                    self.fetch(block)?;
                }
                // At the moving tail a block may be read while it is being written: look again before judging.
                Err(_) if attempts < READ_ATTEMPTS => {
                    attempts += 1;
                    self.place = None;
                }
                Err(fault) => {
                    let segment = Arc::clone(&place.extent.segment);
                    let error = segment.corruption(&fault, Some(self.next..self.next + 1));
                    self.place = None;
                    return Err(self.explain(&segment, error));
                }
            }
        }
    }

    /// A segment that was recycled under us is gone, not damaged.
    fn explain(&self, segment: &Segment, error: Error) -> Error {
        if segment.was_replaced() {
            return Error::Gone { path: segment.path().to_path_buf() };
        }
        match self.source.bounds() {
            Ok(bounds) if self.next < bounds.first_index => {
                Error::OutOfRange { index: self.next, held: bounds.first_index..bounds.next_index }
            }
            _ => error,
        }
    }

    fn seek(&mut self) -> Result<()> {
        let extent = self.source.extent_of(self.next)?;
        let block = find_block(&*self.source, &extent, self.next)?;
        let reader = extent.segment.open()?.reader;
        let records = Records::new(reader, block, 0, None, self.collect);
        self.run_blocks = 0..0;
        self.place = Some(Place { extent, records });
        Ok(())
    }

    fn fetch(&mut self, block: u32) -> Result<()> {
        let Some(place) = &mut self.place else { return Ok(()) };
        let block_bytes = place.extent.segment.block_bytes;
        self.runs_in_order = if block == self.run_blocks.end { self.runs_in_order + 1 } else { 0 };
        let was_asked = self.asked.pop_front().is_some_and(|asked| asked.start == block);
        let ahead = self.read_ahead.as_ref().filter(|_| was_asked).and_then(ReadAhead::take).filter(|run| {
            run.first == block && run.extent.segment.segment_id == place.extent.segment.segment_id
        });
        match ahead {
            Some(run) => {
                place.extent = run.extent;
                self.run_blocks = block..block + (run.count / block_bytes) as u32;
                self.spare = Some(std::mem::replace(&mut self.run, run.buf));
            }
            None => {
                self.stop_ahead();
                let wanted = if self.run.is_empty() { FIRST_RUN_BYTES } else { RUN_BYTES };
                let Some(place) = &mut self.place else { return Ok(()) };
                match self.source.extent_of(self.next)? {
                    newer if newer.segment.segment_id == place.extent.segment.segment_id => {
                        place.extent = newer
                    }
                    _ => {}
                }
                size_run(&mut self.run, wanted, &place.extent);
                let count = self.source.fetch(&place.extent, block, &mut self.run)?;
                self.run_blocks = block..block + (count / block_bytes) as u32;
            }
        }
        self.look_ahead()
    }

    /// Gives up what was asked for ahead: reading goes on elsewhere.
    fn stop_ahead(&mut self) {
        self.asked.clear();
        if let Some(read_ahead) = &self.read_ahead {
            read_ahead.give_up();
        }
    }

    /// Has the next runs fetched while this one is decoded, once reading has shown to be sequential.
    fn look_ahead(&mut self) -> Result<()> {
        let Some(place) = &self.place else { return Ok(()) };
        let block_bytes = place.extent.segment.block_bytes;
        if self.runs_in_order < 2 {
            return Ok(());
        }
        while self.asked.len() < read_ahead::DEPTH {
            let next = self.asked.back().map_or(self.run_blocks.end, |asked| asked.end);
            // The last block may still grow: it is read when it is wanted.
            let final_blocks = place.extent.last_block().saturating_sub(next) as usize;
            if final_blocks == 0 {
                break;
            }
            if self.read_ahead.is_none() {
                self.read_ahead = Some(ReadAhead::start(&self.source)?);
            }
            let blocks = final_blocks.min(RUN_BYTES / block_bytes);
            let fitting = self.spare.take().filter(|spare| spare.len() == blocks * block_bytes);
            let buf = fitting.unwrap_or_else(|| AlignedBuf::zeroed(blocks * block_bytes));
            if let Some(read_ahead) = &self.read_ahead {
                read_ahead.ask(place.extent.clone(), next, buf);
            }
            self.asked.push_back(next..next + blocks as u32);
        }
        Ok(())
    }

    /// The segment holds no more records: the next one must be in another.
    fn leave_segment(&mut self) -> Result<()> {
        let Some(place) = self.place.take() else { return Ok(()) };
        if place.extent.segment.open()?.reader.is_sparse && place.records.unfinished().is_none() {
            // What is left of the run was left out.
            self.next = self.next.max(place.extent.next_index);
            return Ok(());
        }
        let next = self.source.extent_of(self.next)?;
        if next.segment.segment_id != place.extent.segment.segment_id {
            return Ok(());
        }
        let segment = &place.extent.segment;
        let position = segment.position_of(place.records.block());
        let records = Some(self.next..place.extent.next_index.max(self.next + 1));
        let error = Error::corrupt(segment.path(), position, records, "the record is missing");
        Err(self.explain(segment, error))
    }
}

/// Gives a run buffer room for `wanted` bytes, or for the whole segment if that is less.
fn size_run(run: &mut AlignedBuf, wanted: usize, extent: &Extent) {
    let block_bytes = extent.segment.block_bytes;
    let segment_bytes = (extent.last_block() as usize).saturating_mul(block_bytes);
    let wanted = wanted.min(segment_bytes).max(block_bytes * 2);
    if run.len() < wanted {
        *run = AlignedBuf::zeroed(wanted);
    }
}

pub(crate) fn payload_of<'a>(
    found: &FoundRecord,
    stored: &'a [u8],
    segment: &Segment,
) -> Result<Cow<'a, [u8]>> {
    if found.compression == Compression::None {
        return Ok(Cow::Borrowed(stored));
    }
    found.compression.decompress(stored, found.raw_bytes).map(Cow::Owned).map_err(|fault| {
        let position = segment.position_of(found.start.0) + u64::from(found.start.1);
        Error::corrupt(segment.path(), position, Some(found.index..found.index.saturating_add(1)), fault)
    })
}

/// The segment of a record and the position behind it.
pub(crate) fn end_of_record(source: &dyn Source, index: u64) -> Result<(Extent, u64)> {
    let located = locate(source, index)?;
    let end = located.extent.segment.position_of(located.found.end.0) + u64::from(located.found.end.1);
    Ok((located.extent, end))
}

/// A record's place.
pub(crate) struct Located {
    pub(crate) extent: Extent,
    pub(crate) found: FoundRecord,
}

/// Finds a record that is within bounds.
pub(crate) fn locate(source: &dyn Source, index: u64) -> Result<Located> {
    let located = locate_from(source, index).map_err(|error| name_lost(source, index, error))?;
    match located {
        (extent, Some(found)) if found.index == index => Ok(Located { extent, found }),
        (extent, other) => {
            Err(Error::LeftOut { index, next: other.map_or(extent.next_index, |found| found.index) })
        }
    }
}

/// Finds the first record from `index` on in its segment; there may be none if the segment is sparse.
fn locate_from(source: &dyn Source, index: u64) -> Result<(Extent, Option<FoundRecord>)> {
    let extent = source.extent_of(index)?;
    let mut block = find_block(source, &extent, index)?;
    let reader = extent.segment.open()?.reader;
    let mut records = Records::new(reader, block, 0, None, false);
    let mut run = AlignedBuf::zeroed(FIRST_RUN_BYTES.max(extent.segment.block_bytes * 2));
    let mut fetched_at = None;
    loop {
        if fetched_at == Some(block) || block > extent.last_block() {
            if reader.is_sparse && records.unfinished().is_none() {
                return Ok((extent, None));
            }
            let position = extent.segment.position_of(block);
            let records = Some(index..index + 1);
            return Err(Error::corrupt(extent.segment.path(), position, records, "the record is missing"));
        }
        fetched_at = Some(block);
        let count = source.fetch(&extent, block, &mut run)?;
        loop {
            match records.next(&run[..count], block, extent.last_block()) {
                Ok(Step::Record(found))
                    if found.index == index || (found.index > index && reader.is_sparse) =>
                {
                    return Ok((extent, Some(found)));
                }
                Ok(Step::Record(found)) if found.index > index => {
                    let position = extent.segment.position_of(found.start.0) + u64::from(found.start.1);
                    let reason = format!("found record {}, expected {index}", found.index);
                    let records = Some(index..found.index);
                    return Err(Error::corrupt(extent.segment.path(), position, records, reason));
                }
                Ok(Step::Record(_)) => {}
                Ok(Step::EndOfRun) => break,
                Err(fault) => return Err(extent.segment.corruption(&fault, Some(index..index + 1))),
            }
        }
        block = records.block();
    }
}

/// Reads records backward.
///
/// From a block's tailer to its last slice, from each slice's start to the tailer of the one before, and for a record of
/// several slices by its record tailer to its beginning: nothing is read forward but the record itself.
#[derive(Debug)]
pub struct ReverseCursor {
    source: Arc<dyn Source>,
    /// Index after the record that comes next.
    next: u64,
    start: u64,
    /// The oldest index when it was last asked for: at the beginning, and at every change of segment.
    first_index: Option<u64>,
    place: Option<ReversePlace>,
    run: AlignedBuf,
    run_blocks: Range<u32>,
}

#[derive(Debug)]
struct ReversePlace {
    extent: Extent,
    block: u32,
    /// Offset behind the slice that comes next; `None` at the end of the block.
    end: Option<usize>,
}

impl ReverseCursor {
    pub(crate) fn new(source: Arc<dyn Source>, start: u64, end: u64) -> Self {
        ReverseCursor {
            source,
            next: end,
            start,
            first_index: None,
            place: None,
            run: AlignedBuf::zeroed(0),
            run_blocks: 0..0,
        }
    }

    /// The record before the one answered last, or `None` at the start of the range or of the stream.
    ///
    /// # Errors
    /// As for [`Cursor::next_record`].
    pub fn next_record(&mut self) -> Result<Option<Record>> {
        let first_index = match self.first_index {
            Some(first_index) => first_index,
            None => *self.first_index.insert(self.source.bounds()?.first_index),
        };
        if self.next <= self.start.max(first_index) {
            return Ok(None);
        }
        let index = self.next - 1;
        let mut attempts = 1;
        let record = loop {
            match self.read_previous(index) {
                // At the moving tail a block may be read while it is being written: look again before judging.
                Err(error) if error.is_corruption() && attempts < READ_ATTEMPTS => {
                    attempts += 1;
                    self.place = None;
                }
                other => break other.map_err(|error| name_lost(&*self.source, index, error))?,
            }
        };
        let Some(record) = record else {
            // Only gaps are left.
            self.next = self.start;
            return Ok(None);
        };
        self.next = record.index;
        Ok(Some(record))
    }

    /// The last record up to `index`, which is that one unless it was left out.
    fn read_previous(&mut self, index: u64) -> Result<Option<Record>> {
        if self.place.is_none() {
            let (extent, found) = locate_from(&*self.source, index)?;
            let (block, end) = match found {
                Some(found) if found.index == index => (found.end.0, Some(usize::from(found.end.1))),
                // In a gap: backward from the record behind it, or from the end.
                Some(found) => (found.start.0, Some(usize::from(found.start.1))),
                None => (extent.last_block(), None),
            };
            self.place = Some(ReversePlace { extent, block, end });
            self.run_blocks = 0..0;
        }
        self.step(index)
    }

    fn step(&mut self, mut index: u64) -> Result<Option<Record>> {
        loop {
            if index < self.start {
                return Ok(None);
            }
            let place = self.place.as_mut().expect("the caller set the place");
            let segment = Arc::clone(&place.extent.segment);
            if index < segment.base_index {
                let bounds = self.source.bounds()?;
                if index < bounds.first_index {
                    return Err(Error::OutOfRange { index, held: bounds.first_index..bounds.next_index });
                }
                self.first_index = Some(bounds.first_index);
                let extent = self.source.extent_of(index)?;
                let block = extent.last_block();
                *place = ReversePlace { extent, block, end: None };
                self.run_blocks = 0..0;
                continue;
            }
            let block = place.block;
            if block == 0 && segment.open()?.reader.is_sparse {
                // The segment begins with a gap.
                match segment.base_index.checked_sub(1) {
                    Some(before) if Some(before) >= self.first_index => index = before,
                    _ => return Ok(None),
                }
                continue;
            }
            if block == 0 {
                return Err(lost(&segment, block, index, "the record is missing"));
            }
            self.cover(block)?;
            let place = self.place.as_mut().expect("still set");
            let at = (block - self.run_blocks.start) as usize * segment.block_bytes;
            let image = &self.run[at..at + segment.block_bytes];
            let reader = segment.open()?.reader;
            let header: BlockHeader =
                reader.header(image, block).map_err(|fault| lost(&segment, block, index, fault))?;
            let start = match place.end {
                Some(end) if end <= BLOCK_HEADER_BYTES => {
                    (place.block, place.end) = (block - 1, None);
                    continue;
                }
                Some(end) => SliceView::start_of_previous(image, end)
                    .ok_or_else(|| lost(&segment, block, index, "no slice ends where one should"))?,
                None => usize::from(
                    reader
                        .last_slice_start(image, &header)
                        .map_err(|fault| lost(&segment, block, index, fault))?,
                ),
            };
            let slice = SliceView::decode(image, &header, start, reader.checksum)
                .map_err(|fault| lost(&segment, block, index, fault))?;
            if slice.index > index || !slice.is_last {
                place.end = Some(start);
                continue;
            }
            if slice.index < index && reader.is_sparse {
                index = slice.index;
                continue;
            }
            if slice.index < index {
                let reason = format!("found record {}, expected {index}", slice.index);
                return Err(lost(&segment, block, index, reason));
            }
            let first = match slice.number {
                0 => (block, start),
                _ => {
                    let tailer = RecordTailer::decode(slice.body)
                        .map_err(|fault| lost(&segment, block, index, fault))?;
                    (tailer.first_block, usize::from(tailer.first_offset))
                }
            };
            (place.block, place.end) = (first.0, Some(first.1));
            return self.read_at(index, first).map(Some);
        }
    }

    /// Reads the record that begins at a block and offset.
    fn read_at(&mut self, index: u64, first: (u32, usize)) -> Result<Record> {
        let extent = self.place.as_ref().expect("still set").extent.clone();
        let segment = &extent.segment;
        let reader = segment.open()?.reader;
        let mut records = Records::new(reader, first.0, first.1, Some(index), true);
        if !self.run_blocks.contains(&first.0) {
            self.cover(first.0)?;
        }
        loop {
            let run_bytes = self.run_blocks.len() * segment.block_bytes;
            match records.next(&self.run[..run_bytes], self.run_blocks.start, extent.last_block()) {
                Ok(Step::Record(found)) => {
                    let stored = match found.in_run.clone() {
                        Some(range) => &self.run[range],
                        None => records.assembled(),
                    };
                    let payload = payload_of(&found, stored, segment)?.into_owned();
                    return Ok(Record { index: found.index, type_code: found.type_code, payload });
                }
                Ok(Step::EndOfRun) => {
                    let block = records.block();
                    let before = self.run_blocks.clone();
                    self.fetch_from(block)?;
                    if self.run_blocks == before {
                        return Err(lost(segment, block, index, "the record does not end"));
                    }
                }
                Err(fault) => return Err(segment.corruption(&fault, Some(index..index + 1))),
            }
        }
    }

    /// Fetches a run that ends with `block`, unless it is at hand.
    fn cover(&mut self, block: u32) -> Result<()> {
        if self.run_blocks.contains(&block) {
            return Ok(());
        }
        let block_bytes = self.place.as_ref().map_or(512, |place| place.extent.segment.block_bytes);
        let blocks = (RUN_BYTES / 4 / block_bytes).max(2) as u32;
        let first = block.saturating_add(1).saturating_sub(blocks).max(1);
        self.fetch_from(first)?;
        // Blocks in memory and on disk come in separate fetches.
        while !self.run_blocks.contains(&block) && !self.run_blocks.is_empty() {
            let next = self.run_blocks.end;
            self.fetch_from(next)?;
        }
        if self.run_blocks.contains(&block) {
            return Ok(());
        }
        let segment = Arc::clone(&self.place.as_ref().expect("still set").extent.segment);
        Err(lost(&segment, block, self.next.saturating_sub(1), "the block is missing"))
    }

    fn fetch_from(&mut self, first: u32) -> Result<()> {
        let place = self.place.as_ref().expect("still set");
        let block_bytes = place.extent.segment.block_bytes;
        size_run(&mut self.run, RUN_BYTES / 4, &place.extent);
        let count = self.source.fetch(&place.extent, first, &mut self.run)?;
        self.run_blocks = first..first + (count / block_bytes) as u32;
        Ok(())
    }
}

fn lost(segment: &Segment, block: u32, index: u64, reason: impl ToString) -> Error {
    Error::corrupt(segment.path(), segment.position_of(block), Some(index..index + 1), reason)
}
