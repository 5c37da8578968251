//! Taking records out of blocks.

use std::fmt;
use std::ops::{Range, RangeInclusive};

use crate::codec::{
    BLOCK_HEADER_BYTES, BlockFault, BlockHeader, BlockTailer, Checksum, Compression, RECORD_TAILER_BYTES,
    RecordFault, RecordHeader, RecordTailer, SLICE_HEADER_BYTES, SliceFault, SliceView,
};
use crate::mutant::{self, Mutant};

/// Where and why blocks do not hold what they should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) block: u32,
    pub(crate) offset: usize,
    pub(crate) reason: Reason,
}

/// What does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Reason {
    #[error(transparent)]
    Block(#[from] BlockFault),
    #[error(transparent)]
    Slice(#[from] SliceFault),
    #[error(transparent)]
    Record(#[from] RecordFault),
    #[error("{0}")]
    Chain(String),
}

impl Fault {
    /// The block itself is at fault.
    pub(crate) fn of_block(block: u32, fault: BlockFault) -> Self {
        Fault { block, offset: 0, reason: fault.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)
    }
}

/// Reads the blocks of one file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockReader {
    pub(crate) segment_id: u64,
    pub(crate) checksum: Checksum,
    pub(crate) block_bytes: usize,
    pub(crate) record_limit_bytes: u32,
    /// Records may be left out.
    pub(crate) is_sparse: bool,
}

/// A record found by [`Records`]; its payload is still where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundRecord {
    pub(crate) index: u64,
    pub(crate) type_code: u64,
    pub(crate) compression: Compression,
    pub(crate) raw_bytes: u32,
    pub(crate) stored_bytes: u32,
    /// The stored payload: a range of the run given to [`Records::next`], or `None` if it was assembled from
    /// several slices into [`Records::assembled`].
    pub(crate) in_run: Option<Range<usize>>,
    /// Block and offset of the first slice.
    pub(crate) start: (u32, u16),
    /// Block and offset behind the last slice.
    pub(crate) end: (u32, u16),
}

impl BlockReader {
    /// Checks the header of block `number`, whose image this is.
    pub(crate) fn header(&self, image: &[u8], number: u32) -> Result<BlockHeader, BlockFault> {
        BlockHeader::decode(image, self.segment_id, number, self.checksum)
    }

    /// Walks the slices of one block.
    pub(crate) fn slices<'a>(&self, image: &'a [u8], header: BlockHeader) -> Slices<'a> {
        Slices { image, header, at: BLOCK_HEADER_BYTES, checksum: self.checksum }
    }

    /// Offset of the last slice of a verified block: by the tailer, or by walking if the tailer is wrong.
    pub(crate) fn last_slice_start(&self, image: &[u8], header: &BlockHeader) -> Result<u16, SliceFault> {
        let used = usize::from(header.used_bytes);
        if let Some(tailer) = BlockTailer::decode(image)
            && tailer.used_bytes == header.used_bytes
            && let Ok(slice) =
                SliceView::decode(image, header, usize::from(tailer.last_slice_start), self.checksum)
            && slice.end() == used
        {
            return Ok(tailer.last_slice_start);
        }
        let mut last = BLOCK_HEADER_BYTES as u16;
        for slice in self.slices(image, *header) {
            last = slice?.start;
        }
        Ok(last)
    }
}

/// The slices of a block, in order; ends after the first fault.
pub(crate) struct Slices<'a> {
    image: &'a [u8],
    header: BlockHeader,
    at: usize,
    checksum: Checksum,
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<SliceView<'a>, SliceFault>;

    fn next(&mut self) -> Option<Self::Item> {
        let used = usize::from(self.header.used_bytes);
        if self.at >= used {
            return None;
        }
        let slice = SliceView::decode(self.image, &self.header, self.at, self.checksum);
        self.at = slice.as_ref().map_or(used, SliceView::end);
        Some(slice)
    }
}

/// What [`Records::next`] came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Record(FoundRecord),
    /// The run is used up: go on with one that begins with [`Records::block`].
    EndOfRun,
}

/// A record of several slices in the making.
#[derive(Debug)]
struct Assembly {
    index: u64,
    /// `None` when reading began in the middle of the record.
    header: Option<RecordHeader>,
    next_number: u32,
    start: (u32, u16),
    stored_bytes: u64,
}

/// Walks records forward over runs of block images and checks that each follows from the one before: indexes
/// without gaps (in a sparse segment, rising), slices in consecutive blocks, epochs never falling.
#[derive(Debug)]
pub(crate) struct Records {
    reader: BlockReader,
    /// Where the next slice is expected.
    block: u32,
    offset: usize,
    /// The header of `block` and the seed of its slices, once seen.
    current: Option<(BlockHeader, u32)>,
    epoch: u32,
    epoch_max: u32,
    next_index: Option<u64>,
    assembly: Option<Assembly>,
    /// Block and offset behind the last slice that followed.
    verified: Option<(u32, u16)>,
    /// Block and offset behind the last record that ended, and the index after it.
    ended: Option<((u32, u16), u64)>,
    assembled: Vec<u8>,
    /// Whether payloads of several slices are collected; otherwise they are only verified.
    collect: bool,
}

impl Records {
    /// Begins at a block and offset (a slice's start or the block's end) whose next record is `next_index`, if known.
    pub(crate) fn new(
        reader: BlockReader,
        block: u32,
        offset: usize,
        next_index: Option<u64>,
        collect: bool,
    ) -> Self {
        Records {
            reader,
            block,
            offset: offset.max(BLOCK_HEADER_BYTES),
            current: None,
            epoch: 0,
            epoch_max: u32::MAX,
            next_index,
            assembly: None,
            verified: None,
            ended: None,
            assembled: Vec::new(),
            collect,
        }
    }

    /// The same, for blocks of these epochs: those of an earlier one are leftovers, those of a later one are unknown to
    /// the manifest.
    pub(crate) fn with_epochs(self, epochs: &RangeInclusive<u32>) -> Self {
        Records { epoch: *epochs.start(), epoch_max: *epochs.end(), ..self }
    }

    /// Goes on at the beginning of a block, whatever record comes next; epochs still never fall.
    pub(crate) fn restart_at(&mut self, block: u32) {
        let epochs = self.epoch..=self.epoch_max;
        let fresh = Records::new(self.reader, block, 0, None, self.collect).with_epochs(&epochs);
        *self = Records { ended: self.ended, ..fresh };
    }

    /// The block where the next slice is expected.
    pub(crate) fn block(&self) -> u32 {
        self.block
    }

    /// The epoch of the last block looked into.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The epochs that the next block may be of.
    pub(crate) fn epochs(&self) -> RangeInclusive<u32> {
        self.epoch..=self.epoch_max
    }

    /// The stored payload of the last record found with `in_run == None`.
    pub(crate) fn assembled(&self) -> &[u8] {
        &self.assembled
    }

    /// Block and offset behind the last record that ended, and the index after it; also of one whose beginning was
    /// not seen.
    pub(crate) fn ended(&self) -> Option<((u32, u16), u64)> {
        self.ended
    }

    /// Block and offset behind the last slice that verified and followed.
    pub(crate) fn verified(&self) -> Option<(u32, u16)> {
        self.verified
    }

    /// The record begun but not ended: its index and the block of its first slice.
    pub(crate) fn unfinished(&self) -> Option<(u64, u32)> {
        self.assembly.as_ref().map(|assembly| (assembly.index, assembly.start.0))
    }

    /// The next record of a run whose first block is `run_first`. Blocks before `last_block` were complete when the run
    /// was read; that one may have grown since.
    pub(crate) fn next(&mut self, run: &[u8], run_first: u32, last_block: u32) -> Result<Step, Fault> {
        let block_bytes = self.reader.block_bytes;
        let run_blocks = (run.len() / block_bytes) as u32;
        debug_assert!(self.block >= run_first, "the run begins at or before the next block");
        loop {
            let at = self.block - run_first;
            if at >= run_blocks {
                return Ok(Step::EndOfRun);
            }
            let image_start = at as usize * block_bytes;
            let image = &run[image_start..image_start + block_bytes];
            let (header, seed) = match self.current {
                Some(current) => current,
                None => self.enter(image)?,
            };
            if self.offset >= usize::from(header.used_bytes) {
                self.current = None;
                if self.block >= last_block {
                    return Ok(Step::EndOfRun);
                }
                self.block += 1;
                self.offset = BLOCK_HEADER_BYTES;
                continue;
            }
            let slice = SliceView::decode_seeded(image, &header, seed, self.offset, self.reader.checksum)
                .map_err(|fault| self.fault(fault))?;
            let found = self.take_slice(&slice, image_start)?;
            self.offset = slice.end();
            self.verified = Some((self.block, self.offset as u16));
            if self.assembly.is_none() {
                self.ended = Some(((self.block, self.offset as u16), slice.index.saturating_add(1)));
            }
            if let Some(found) = found {
                return Ok(Step::Record(found));
            }
        }
    }

    /// As [`Records::next`], for who reads on: the next record, and behind it those of its block that lie in one slice
    /// each. Nothing means the end of the run. What does not hold is met by the call behind the last that does.
    pub(crate) fn next_of_block(
        &mut self,
        run: &[u8],
        run_first: u32,
        last_block: u32,
        found: &mut Vec<FoundRecord>,
    ) -> Result<(), Fault> {
        match self.next(run, run_first, last_block)? {
            Step::Record(first) => found.push(first),
            Step::EndOfRun => return Ok(()),
        }
        let (Some((header, seed)), Some(mut index)) = (self.current, self.next_index) else { return Ok(()) };
        let (block, checksum, limit) = (self.block, self.reader.checksum, self.reader.record_limit_bytes);
        let image_start = (block - run_first) as usize * self.reader.block_bytes;
        let image = &run[image_start..image_start + self.reader.block_bytes];
        let (used, mut offset) = (usize::from(header.used_bytes), self.offset);
        while offset < used && SliceView::is_whole_record(image, offset) {
            let Ok(slice) = SliceView::decode_seeded(image, &header, seed, offset, checksum) else { break };
            let Ok((record, header_bytes)) = RecordHeader::decode(slice.body, limit) else { break };
            let stored_bytes = slice.body.len() - header_bytes;
            if slice.index != index || record.stored_bytes as usize != stored_bytes {
                break;
            }
            let payload_start = image_start + offset + SLICE_HEADER_BYTES + header_bytes;
            let end = slice.end();
            found.push(FoundRecord {
                index,
                type_code: record.type_code,
                compression: record.compression,
                raw_bytes: record.raw_bytes,
                stored_bytes: record.stored_bytes,
                in_run: Some(payload_start..payload_start + stored_bytes),
                start: (block, offset as u16),
                end: (block, end as u16),
            });
            offset = end;
            index = index.saturating_add(1);
        }
        if offset > self.offset {
            self.offset = offset;
            self.next_index = Some(index);
            self.verified = Some((block, offset as u16));
            self.ended = Some(((block, offset as u16), index));
        }
        Ok(())
    }

    fn fault(&self, reason: impl Into<Reason>) -> Fault {
        Fault { block: self.block, offset: self.offset, reason: reason.into() }
    }

    fn chain_fault(&self, reason: String) -> Fault {
        self.fault(Reason::Chain(reason))
    }

    fn enter(&mut self, image: &[u8]) -> Result<(BlockHeader, u32), Fault> {
        let header = self.reader.header(image, self.block).map_err(|fault| Fault {
            block: self.block,
            offset: 0,
            reason: fault.into(),
        })?;
        if header.epoch < self.epoch && !mutant::is(Mutant::EpochsMayFall) {
            return Err(self.chain_fault(format!(
                "block of epoch {} behind one of epoch {}: a leftover of an abandoned tail",
                header.epoch, self.epoch
            )));
        }
        if header.epoch > self.epoch_max {
            return Err(self.fault(BlockFault::Epoch { found: header.epoch, manifest: self.epoch_max }));
        }
        self.epoch = header.epoch;
        let current = (header, header.seed());
        self.current = Some(current);
        Ok(current)
    }

    fn take_slice(
        &mut self,
        slice: &SliceView<'_>,
        image_start: usize,
    ) -> Result<Option<FoundRecord>, Fault> {
        if slice.number == 0 { self.begin_record(slice, image_start) } else { self.continue_record(slice) }
    }

    fn begin_record(
        &mut self,
        slice: &SliceView<'_>,
        image_start: usize,
    ) -> Result<Option<FoundRecord>, Fault> {
        if let Some(assembly) = &self.assembly {
            return Err(self.chain_fault(format!(
                "record {} begins although record {} has not ended",
                slice.index, assembly.index
            )));
        }
        if let Some(expected) = self.next_index
            && expected != slice.index
            && !(self.reader.is_sparse && expected < slice.index)
        {
            return Err(self.chain_fault(format!("found record {}, expected {expected}", slice.index)));
        }
        let (header, header_bytes) = RecordHeader::decode(slice.body, self.reader.record_limit_bytes)
            .map_err(|fault| self.fault(fault))?;
        let body = &slice.body[header_bytes..];
        self.next_index = Some(slice.index.saturating_add(1));
        let start = (self.block, slice.start);
        if slice.is_last {
            self.check_size(&header, body.len() as u64)?;
            let payload_start = image_start + usize::from(slice.start) + SLICE_HEADER_BYTES + header_bytes;
            return Ok(Some(FoundRecord {
                index: slice.index,
                type_code: header.type_code,
                compression: header.compression,
                raw_bytes: header.raw_bytes,
                stored_bytes: header.stored_bytes,
                in_run: Some(payload_start..payload_start + body.len()),
                start,
                end: (self.block, slice.end() as u16),
            }));
        }
        self.assembled.clear();
        if self.collect {
            self.assembled.extend_from_slice(body);
        }
        let stored_bytes = body.len() as u64;
        self.assembly =
            Some(Assembly { index: slice.index, header: Some(header), next_number: 1, start, stored_bytes });
        Ok(None)
    }

    fn continue_record(&mut self, slice: &SliceView<'_>) -> Result<Option<FoundRecord>, Fault> {
        let mut assembly = match self.assembly.take() {
            Some(assembly) => assembly,
            // Reading began inside this record: follow it to its end without its payload.
            None if self.next_index.is_none() => Assembly {
                index: slice.index,
                header: None,
                next_number: slice.number,
                start: (self.block.saturating_sub(slice.number), 0),
                stored_bytes: 0,
            },
            None => {
                let reason =
                    format!("slice {} of record {} without its beginning", slice.number, slice.index);
                return Err(self.chain_fault(reason));
            }
        };
        if (slice.index, slice.number) != (assembly.index, assembly.next_number) {
            let reason = format!(
                "slice {} of record {} where slice {} of record {} was expected",
                slice.number, slice.index, assembly.next_number, assembly.index
            );
            // The record that lost its continuation is still the unfinished one.
            self.assembly = Some(assembly);
            return Err(self.chain_fault(reason));
        }
        let payload_bytes = if slice.is_last {
            let tailer = RecordTailer::decode(slice.body).map_err(|fault| self.fault(fault))?;
            let same_start = tailer.first_block == assembly.start.0
                && (assembly.header.is_none() || tailer.first_offset == assembly.start.1);
            let same_type = assembly.header.is_none_or(|header| header.type_code == tailer.type_code);
            if tailer.index != assembly.index || !same_start || !same_type {
                return Err(self.fault(RecordFault::Tailer));
            }
            assembly.start.1 = tailer.first_offset;
            slice.body.len() - RECORD_TAILER_BYTES
        } else {
            slice.body.len()
        };
        assembly.next_number += 1;
        assembly.stored_bytes += payload_bytes as u64;
        if self.collect && assembly.header.is_some() {
            let limit = assembly.header.map_or(0, |header| header.stored_bytes as usize);
            if self.assembled.len() + payload_bytes <= limit {
                self.assembled.extend_from_slice(&slice.body[..payload_bytes]);
            }
        }
        self.next_index = Some(assembly.index.saturating_add(1));
        if !slice.is_last {
            self.assembly = Some(assembly);
            return Ok(None);
        }
        let Some(header) = assembly.header else {
            return Ok(None);
        };
        self.check_size(&header, assembly.stored_bytes)?;
        Ok(Some(FoundRecord {
            index: assembly.index,
            type_code: header.type_code,
            compression: header.compression,
            raw_bytes: header.raw_bytes,
            stored_bytes: header.stored_bytes,
            in_run: None,
            start: assembly.start,
            end: (self.block, slice.end() as u16),
        }))
    }

    fn check_size(&self, header: &RecordHeader, found: u64) -> Result<(), Fault> {
        let expected = header.stored_bytes;
        if u64::from(expected) == found {
            Ok(())
        } else {
            Err(self.fault(RecordFault::Size { expected, found }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockWriter, Identity, PendingRecord};

    const READER: BlockReader = BlockReader {
        segment_id: 9,
        checksum: Checksum::Crc32c,
        block_bytes: 512,
        record_limit_bytes: 1 << 20,
        is_sparse: false,
    };

    fn run_of(payloads: &[Vec<u8>]) -> Vec<u8> {
        let identity = Identity { segment_id: 9, epoch: 1, checksum: Checksum::Crc32c, block_bytes: 512 };
        let mut writer = BlockWriter::new(identity, 1, 1 << 20, None);
        for (index, payload) in payloads.iter().enumerate() {
            let record =
                &mut PendingRecord::new(index as u64, 5, Compression::None, payload, payload.len() as u32);
            assert!(writer.put(record));
        }
        writer.seal(0, 512, None).bytes().to_vec()
    }

    fn read_all(run: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        let mut records = Records::new(READER, 1, 0, Some(0), true);
        let mut payloads = Vec::new();
        loop {
            match records.next(run, 1, u32::MAX)? {
                Step::EndOfRun => return Ok(payloads),
                Step::Record(found) => payloads.push(match found.in_run {
                    Some(range) => run[range].to_vec(),
                    None => records.assembled().to_vec(),
                }),
            }
        }
    }

    #[test]
    fn every_payload_length_round_trips_at_every_offset() {
        for length in (0..1400).step_by(7) {
            let payloads: Vec<_> = (0..6).map(|n| vec![n as u8; length + n * 41]).collect();
            assert_eq!(read_all(&run_of(&payloads)).unwrap(), payloads, "length {length}");
        }
    }

    #[test]
    fn a_lost_or_foreign_block_is_a_fault_at_that_block() {
        let payloads: Vec<_> = (0..4).map(|n| vec![n as u8; 700]).collect();
        let run = run_of(&payloads);
        for block in 0..run.len() / 512 {
            let mut damaged = run.clone();
            damaged[block * 512..(block + 1) * 512].fill(0);
            let fault = read_all(&damaged).unwrap_err();
            assert_eq!(fault.block, block as u32 + 1);
            assert_eq!(fault.reason, Reason::Block(BlockFault::Empty));
        }
    }

    #[test]
    fn reading_may_begin_inside_a_record() {
        let run = run_of(&[vec![1; 2000], vec![2; 10]]);
        let mut records = Records::new(READER, 3, 0, None, false);
        match records.next(&run[1024..], 3, u32::MAX).unwrap() {
            Step::Record(found) => assert_eq!(found.index, 1),
            other => panic!("{other:?}"),
        }
    }
}
