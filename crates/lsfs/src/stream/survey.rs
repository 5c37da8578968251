//! Reading all of a segment: which records verify, which are lost, where the records end.
//!
//! The principal function is [`survey`]. It walks a [`Stretch`] of a segment's blocks; damage does not stop it: it goes
//! on with the next block in which a record begins, so what is named lost is what no reader can answer.

use std::ops::{Range, RangeInclusive};
use std::path::Path;

use crate::block::{BlockReader, Fault, Reason, Records, Step};
use crate::codec::{BLOCK_TAILER_BYTES, BlockTailer};
use crate::error::{Corruption, Error, Result};
use crate::io::{AlignedBuf, File};
use crate::stream::recovery::Watermark;

const RUN_BYTES: usize = 1 << 20;
/// How often a block that does not verify is read before it is called damaged.
const READ_ATTEMPTS: u32 = 3;

/// The blocks of one segment file.
#[derive(Clone, Copy)]
pub(crate) struct SegmentBlocks<'a> {
    pub(crate) path: &'a Path,
    pub(crate) file: &'a dyn File,
    pub(crate) reader: BlockReader,
}

/// What of a segment is read.
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    /// Where the first slice is expected: block and offset.
    pub(crate) start: (u32, usize),
    /// The record that comes first.
    pub(crate) first_index: u64,
    /// Blocks of an earlier epoch are leftovers; a later one no manifest knows.
    pub(crate) epochs: RangeInclusive<u32>,
    pub(crate) last_block: u32,
    /// Records from this one on are not looked at.
    pub(crate) until: u64,
    /// What was durable: whatever does not verify below it is damage; above it, it is torn and ends the records.
    pub(crate) durable: Watermark,
    /// Two blocks that verify, of which the second does not follow from the first, are the end: a tail that was given
    /// up. Without a manifest nothing else tells such a tail.
    pub(crate) ends_where_chain_breaks: bool,
}

impl Stretch {
    /// The records of a segment that are all known to have been durable.
    pub(crate) fn durable(base_index: u64, next_index: u64, last_block: u32, epoch_max: u32) -> Stretch {
        Stretch {
            start: (1, 0),
            first_index: base_index,
            epochs: 0..=epoch_max,
            last_block,
            until: next_index,
            durable: Watermark { position: u64::MAX, index: next_index },
            ends_where_chain_breaks: false,
        }
    }
}

/// What a stretch holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surveyed {
    /// Records that verify.
    pub(crate) records: u64,
    /// Their payload bytes as stored.
    pub(crate) stored_bytes: u64,
    /// Every damage, in order, with the records that are lost by it.
    pub(crate) damage: Vec<Corruption>,
    /// Blocks whose tailer does not fit, which costs no record.
    pub(crate) bad_tailers: Vec<u32>,
    /// Position behind the last record that verifies, and the index after it.
    pub(crate) end: Option<(u64, u64)>,
}

impl SegmentBlocks<'_> {
    pub(crate) fn position_of(&self, block: u32) -> u64 {
        u64::from(block) * self.reader.block_bytes as u64
    }

    /// Reads blocks from `first` on; returns how many whole bytes of blocks the file had.
    pub(crate) fn read(&self, first: u32, buf: &mut [u8]) -> Result<usize> {
        let count = self
            .file
            .read_full_at(buf, self.position_of(first))
            .map_err(|error| Error::io("read", self.path, error))?;
        Ok(count / self.reader.block_bytes * self.reader.block_bytes)
    }

    /// Calls `see` with the number and the image of every block from `first` on.
    pub(crate) fn each(&self, first: u32, mut see: impl FnMut(u32, &[u8])) -> Result<()> {
        let mut run = AlignedBuf::zeroed(RUN_BYTES);
        let mut next = first;
        loop {
            let count = self.read(next, &mut run)?;
            if count == 0 {
                return Ok(());
            }
            for image in run[..count].chunks_exact(self.reader.block_bytes) {
                see(next, image);
                next += 1;
            }
        }
    }
}

/// Walks the records of a stretch.
pub(crate) fn survey(
    blocks: SegmentBlocks<'_>,
    stretch: &Stretch,
    progress: impl FnMut(u64),
) -> Result<Surveyed> {
    let mut walk = Walk { blocks, stretch, expected: stretch.first_index, found: Surveyed::default() };
    walk.run(progress)?;
    Ok(walk.found)
}

struct Walk<'a> {
    blocks: SegmentBlocks<'a>,
    stretch: &'a Stretch,
    expected: u64,
    found: Surveyed,
}

impl Walk<'_> {
    fn run(&mut self, mut progress: impl FnMut(u64)) -> Result<()> {
        let Stretch { start, last_block, until, durable, .. } = *self.stretch;
        let block_bytes = self.blocks.reader.block_bytes;
        let mut run = AlignedBuf::zeroed(RUN_BYTES);
        let mut records = Records::new(self.blocks.reader, start.0, start.1, Some(self.expected), false)
            .with_epochs(&self.stretch.epochs);
        let (mut first, mut count, mut checked_below) = (start.0, 0, start.0);
        let mut attempts = 1;
        // Of a sparse segment the last records may be left out: then the blocks say that it is whole.
        let mut saw_last_block = last_block == 0;
        while self.expected < until {
            let run_end = first + (count / block_bytes) as u32;
            let step = if (first..run_end).contains(&records.block()) {
                records.next(&run[..count], first, last_block)
            } else {
                Ok(Step::EndOfRun)
            };
            match step {
                Ok(Step::Record(found)) if found.index < self.expected => {}
                Ok(Step::Record(found)) if found.index < until => {
                    if found.index > self.expected && !self.blocks.reader.is_sparse {
                        let position = self.blocks.position_of(found.start.0);
                        let reason = format!("found record {}, expected {}", found.index, self.expected);
                        self.lose(position, found.index, reason);
                        attempts = 1;
                    }
                    self.found.records += 1;
                    self.found.stored_bytes += u64::from(found.stored_bytes);
                    self.expected = found.index + 1;
                    let end = self.blocks.position_of(found.end.0) + u64::from(found.end.1);
                    self.found.end = Some((end, self.expected));
                }
                Ok(Step::Record(_)) => break,
                Ok(Step::EndOfRun) => {
                    let block = records.block();
                    if block > last_block || (block == last_block && (first..run_end).contains(&block)) {
                        saw_last_block = records.unfinished().is_none();
                        break;
                    }
                    let wanted = (last_block + 1 - block) as usize * block_bytes;
                    let read = self.blocks.read(block, &mut run[..wanted.min(RUN_BYTES)])?;
                    if read == 0 {
                        break;
                    }
                    (first, count) = (block, read);
                    checked_below = self.check_tailers(&run[..count], first, checked_below);
                    progress(self.blocks.position_of(block));
                }
                Err(fault) if self.is_torn(&fault) => break,
                Err(fault) if self.is_given_up(&fault) => return Ok(()),
                // Beside a writer the last block may be read while it is being written: look again before judging.
                Err(fault) if attempts < READ_ATTEMPTS => {
                    attempts += 1;
                    let restart = records.unfinished().map_or(fault.block, |(_, first_block)| first_block);
                    records.restart_at(restart);
                    count = 0;
                }
                Err(fault) => {
                    attempts = 1;
                    let position = self.blocks.position_of(fault.block) + fault.offset as u64;
                    // Where records can be read again, the lost range ends.
                    let resumed = self.resume_behind(fault.block, &records)?;
                    let lost_end = resumed.map_or(durable.index, |(_, index)| index).max(self.expected);
                    self.lose(position, lost_end, fault.to_string());
                    let Some((block, _)) = resumed else { return Ok(()) };
                    records.restart_at(block);
                    count = 0;
                }
            }
        }
        if self.expected < durable.index && !(self.blocks.reader.is_sparse && saw_last_block) {
            let position = self.blocks.position_of(records.block());
            self.lose(position, durable.index, "the records are missing".to_string());
        } else if self.found.damage.is_empty() && !self.reaches(&records, durable.position) {
            // No whole record, but the first part of one was durable.
            let position = self.blocks.position_of(last_block.saturating_add(1));
            self.lose(position, self.expected, "durable blocks are missing".to_string());
        }
        Ok(())
    }

    /// Whether the blocks verify up to a position that a watermark calls durable.
    fn reaches(&self, records: &Records, durable_position: u64) -> bool {
        let (block, offset) = records.verified().map_or(self.stretch.start, |(block, at)| (block, at.into()));
        let verified = self.blocks.position_of(block) + offset as u64;
        let blocks_end = self.blocks.position_of(self.stretch.last_block.saturating_add(1));
        // Where a block begins, the one before has ended. Of a stretch that is durable as a whole, the position is not
        // known.
        let is_between_blocks = durable_position.is_multiple_of(self.blocks.reader.block_bytes as u64);
        durable_position == u64::MAX
            || verified >= durable_position
            || (is_between_blocks && durable_position <= blocks_end)
    }

    /// Whether the fault lies behind all that was durable.
    fn is_torn(&self, fault: &Fault) -> bool {
        self.blocks.position_of(fault.block) + fault.offset as u64 >= self.stretch.durable.position
    }

    /// Whether a tail that was given up begins here.
    fn is_given_up(&self, fault: &Fault) -> bool {
        matches!(fault.reason, Reason::Chain(_)) && self.stretch.ends_where_chain_breaks
    }

    /// The records from the expected one up to `end` do not verify.
    fn lose(&mut self, position: u64, end: u64, reason: String) {
        let records = self.expected..end;
        self.found.damage.push(self.damage(position, records, reason));
        self.expected = end;
    }

    fn damage(&self, position: u64, records: Range<u64>, reason: String) -> Corruption {
        Corruption { path: self.blocks.path.to_path_buf(), position, records: Some(records), reason }
    }

    /// The next block behind `block` in which a record begins that may follow, and that record's index.
    fn resume_behind(&self, block: u32, records: &Records) -> Result<Option<(u32, u64)>> {
        let mut image = AlignedBuf::zeroed(self.blocks.reader.block_bytes);
        let wanted = self.expected..=self.stretch.durable.index;
        for number in block + 1..=self.stretch.last_block {
            if self.blocks.read(number, &mut image)? == 0 {
                return Ok(None);
            }
            let Ok(header) = self.blocks.reader.header(&image, number) else { continue };
            if !records.epochs().contains(&header.epoch) {
                continue;
            }
            let begins = self
                .blocks
                .reader
                .slices(&image, header)
                .map_while(|slice| slice.ok())
                .find(|slice| slice.number == 0 && wanted.contains(&slice.index));
            if let Some(slice) = begins {
                return Ok(Some((number, slice.index)));
            }
        }
        Ok(None)
    }

    /// Compares the tailers of a run's blocks with their headers; records do not need them, walking backward does.
    fn check_tailers(&mut self, run: &[u8], first: u32, checked_below: u32) -> u32 {
        let reader = self.blocks.reader;
        let mut end = first;
        for (image, number) in run.chunks_exact(reader.block_bytes).zip(first..) {
            end = number + 1;
            // The last block's tailer may be that of a torn rewrite; the next writer mends it.
            let is_durable = self.blocks.position_of(end) <= self.stretch.durable.position;
            if number < checked_below || number >= self.stretch.last_block || !is_durable {
                continue;
            }
            let Ok(header) = reader.header(image, number) else { continue };
            let Some(last) = reader.slices(image, header).map_while(|slice| slice.ok()).last() else {
                continue;
            };
            let good = BlockTailer { last_slice_start: last.start, used_bytes: header.used_bytes };
            if last.end() == usize::from(header.used_bytes) && BlockTailer::decode(image) != Some(good) {
                let position = self.blocks.position_of(end) - BLOCK_TAILER_BYTES as u64;
                let reason = "block tailer does not match the block".to_string();
                self.found.damage.push(self.damage(position, last.index..last.index, reason));
                self.found.bad_tailers.push(number);
            }
        }
        end.max(checked_below)
    }
}
