//! Looking at a stream without changing it: what it is, and whether every byte verifies.

use std::path::{Path, PathBuf};

use crate::block::{BlockReader, Records, Step};
use crate::codec::{BlockTailer, Checksum, FORMAT_VERSION, StreamId};
use crate::env::Env;
use crate::error::{Corruption, Error, Result};
use crate::io::{Access, AlignedBuf};
use crate::stream::look::{Look, is_written};
use crate::stream::segment::{Extent, Segment};

/// What a stream is made of.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    /// The stream's identity.
    pub stream_id: StreamId,
    /// Version of its format.
    pub format_version: u32,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// How blocks are checked.
    pub checksum: Checksum,
    /// Index of the oldest record.
    pub first_index: u64,
    /// Index after the last record.
    pub next_index: u64,
    /// Segments, oldest first; the last is active.
    pub segments: Vec<SegmentInfo>,
    /// How this machine reaches the files.
    pub access: Access,
    /// Whether a writer has the stream open now.
    pub is_open: bool,
    /// Whether the last writer closed it.
    pub is_closed: bool,
    /// Behind the end lies what a torn write left; the next writer truncates it.
    pub has_torn_tail: bool,
    /// Damage that keeps the stream from being written.
    pub damage: Option<Corruption>,
}

/// One segment of a stream.
#[derive(Clone, Debug)]
pub struct SegmentInfo {
    /// Its file.
    pub path: PathBuf,
    /// Index of its first record.
    pub base_index: u64,
    /// Index after its last record.
    pub next_index: u64,
    /// Bytes in use, the file header included.
    pub used_bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Bytes the file system has allocated.
    pub allocated_bytes: u64,
    /// Whether it is closed for good.
    pub is_sealed: bool,
}

/// What a verification found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Records that verified.
    pub records: u64,
    /// Their payload bytes as stored.
    pub stored_bytes: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Every damage, in order.
    pub damage: Vec<Corruption>,
}

impl VerifyReport {
    fn add(&mut self, part: VerifyReport) {
        self.records += part.records;
        self.stored_bytes += part.stored_bytes;
        self.blocks += part.blocks;
        self.damage.extend(part.damage);
    }
}

/// How far a verification has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes verified.
    pub done_bytes: u64,
    /// Bytes to verify in all.
    pub total_bytes: u64,
}

/// Describes the stream in `dir` without a lock.
///
/// # Errors
/// As for `Reader::open`; damage in the active segment is part of the description, not an error.
pub fn inspect(env: &Env, dir: &Path) -> Result<StreamInfo> {
    let Look { manifest, layout, page, .. } = Look::at(env, dir)?;
    let is_open = page.is_some() || is_written(env, dir)?;
    let access = layout.active.segment.open()?.file.access();
    let next_index = layout.active.next_index;
    let header = layout.header;
    let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let describe = |extent: &Extent, is_sealed| {
        let path = extent.segment.path().to_path_buf();
        let entry = entries.iter().find(|entry| path.ends_with(&entry.name));
        SegmentInfo {
            base_index: extent.segment.base_index,
            next_index: extent.next_index,
            used_bytes: extent.end_position,
            file_bytes: entry.map_or(0, |entry| entry.len),
            allocated_bytes: entry.map_or(0, |entry| entry.allocated),
            is_sealed,
            path,
        }
    };
    let mut segments: Vec<_> = layout.sealed.iter().map(|extent| describe(extent, true)).collect();
    segments.push(describe(&layout.active, false));
    Ok(StreamInfo {
        stream_id: manifest.stream_id,
        format_version: FORMAT_VERSION,
        block_bytes: header.block_bytes,
        checksum: header.checksum,
        first_index: manifest.first_index,
        next_index,
        segments,
        access,
        is_open,
        is_closed: manifest.closed,
        has_torn_tail: layout.leftovers && !is_open,
        damage: layout.damage,
    })
}

/// Reads every block of the stream in `dir` and checks every checksum, header, tailer and index, without a lock.
///
/// Damage does not stop it: the rest is verified too. Beside a live writer it verifies what was durable when it
/// began and was not purged or truncated meanwhile.
///
/// # Errors
/// If there is no stream, or reading itself fails. A damaged manifest is in the report.
pub fn verify(env: &Env, dir: &Path, mut progress: impl FnMut(Progress)) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let layout = match Look::at(env, dir) {
        Ok(look) => look.layout,
        Err(Error::Corrupt(damage)) => {
            report.damage.push(*damage);
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    let extents: Vec<&Extent> = layout.sealed.iter().chain([&layout.active]).collect();
    let total_bytes = extents.iter().map(|extent| extent.end_position).sum();
    let mut done_bytes = 0;
    for extent in extents {
        let found = verify_extent(env, dir, extent, |bytes| {
            progress(Progress { done_bytes: done_bytes + bytes, total_bytes });
        })?;
        report.add(found);
        done_bytes += extent.end_position;
        progress(Progress { done_bytes, total_bytes });
    }
    if let Some(damage) = layout.damage
        && !report.damage.iter().any(|known| known.path == damage.path)
    {
        report.damage.push(damage);
    }
    Ok(report)
}

/// Verifies one segment; what a writer purged or truncated meanwhile is no damage.
fn verify_extent(
    env: &Env,
    dir: &Path,
    extent: &Extent,
    mut progress: impl FnMut(u64),
) -> Result<VerifyReport> {
    let mut extent = extent.clone();
    loop {
        let mut report = VerifyReport::default();
        match SegmentVerifier::new(&extent).and_then(|mut verifier| verifier.run(&mut report, &mut progress))
        {
            Ok(()) => {}
            Err(Error::Corrupt(damage)) => report.damage.push(*damage),
            Err(Error::Gone { path }) => report.damage.push(Corruption {
                path,
                position: 0,
                records: Some(extent.segment.base_index..extent.next_index),
                reason: "the file is missing or is another segment".to_string(),
            }),
            Err(error) => return Err(error),
        }
        if report.damage.is_empty() {
            return Ok(report);
        }
        let now = Look::at(env, dir)?.layout;
        let is_same = |newer: &&Extent| newer.segment.segment_id == extent.segment.segment_id;
        match now.sealed.iter().chain([&now.active]).find(is_same) {
            None => return Ok(VerifyReport::default()),
            Some(newer) if newer.end_position < extent.end_position => extent = newer.clone(),
            Some(_) => return Ok(report),
        }
    }
}

const RUN_BYTES: usize = 1 << 20;
/// How often a block that does not verify is read before it is called damaged.
const READ_ATTEMPTS: u32 = 3;

struct SegmentVerifier<'a> {
    segment: &'a Segment,
    reader: BlockReader,
    /// Index after the last record, and number of the last block.
    next_index: u64,
    last_block: u32,
    expected: u64,
}

impl<'a> SegmentVerifier<'a> {
    fn new(extent: &'a Extent) -> Result<Self> {
        Ok(SegmentVerifier {
            segment: &extent.segment,
            reader: extent.segment.open()?.reader,
            next_index: extent.next_index,
            last_block: extent.last_block(),
            expected: extent.segment.base_index,
        })
    }

    fn run(&mut self, report: &mut VerifyReport, mut progress: impl FnMut(u64)) -> Result<()> {
        let mut run = AlignedBuf::zeroed(RUN_BYTES);
        let mut records = Records::new(self.reader, 1, 0, Some(self.expected), false);
        let (mut first, mut count, mut checked_below) = (1, 0, 1);
        let mut attempts = 1;
        while self.expected < self.next_index {
            let block_bytes = self.segment.block_bytes;
            let run_end = first + (count / block_bytes) as u32;
            let step = if (first..run_end).contains(&records.block()) {
                records.next(&run[..count], first, self.last_block)
            } else {
                Ok(Step::EndOfRun)
            };
            match step {
                Ok(Step::Record(found)) if found.index < self.expected => {}
                Ok(Step::Record(found)) if found.index < self.next_index => {
                    if found.index > self.expected {
                        let position = self.segment.position_of(found.start.0);
                        let reason = format!("found record {}, expected {}", found.index, self.expected);
                        report.damage.push(self.damage(position, self.expected..found.index, reason));
                    }
                    report.records += 1;
                    report.stored_bytes += u64::from(found.stored_bytes);
                    self.expected = found.index + 1;
                }
                Ok(Step::Record(_)) => break,
                Ok(Step::EndOfRun) => {
                    let block = records.block();
                    if block >= self.last_block && (first..run_end).contains(&block) {
                        break;
                    }
                    let wanted = (self.last_block + 1 - block) as usize * block_bytes;
                    let read = self.segment.read_blocks(block, &mut run[..wanted.min(RUN_BYTES)])?;
                    if read == 0 {
                        break;
                    }
                    (first, count) = (block, read);
                    checked_below = self.check_tailers(&run[..count], first, checked_below, report);
                    progress(self.segment.position_of(block));
                }
                // Beside a writer the last block may be read while it is being written: look again before judging.
                Err(fault) if attempts < READ_ATTEMPTS => {
                    attempts += 1;
                    let restart = records.unfinished().map_or(fault.block, |(_, first_block)| first_block);
                    records = Records::new(self.reader, restart, 0, None, false);
                    count = 0;
                }
                Err(fault) => {
                    attempts = 1;
                    let position = self.segment.position_of(fault.block) + fault.offset as u64;
                    // Where records can be read again, the lost range ends.
                    let resumed = self.resume_behind(fault.block)?;
                    let lost_end = resumed.map_or(self.next_index, |(_, index)| index).max(self.expected);
                    report.damage.push(self.damage(position, self.expected..lost_end, fault.to_string()));
                    self.expected = lost_end;
                    let Some((block, _)) = resumed else { break };
                    records = Records::new(self.reader, block, 0, None, false);
                    count = 0;
                }
            }
        }
        report.blocks += u64::from(self.last_block);
        if self.expected < self.next_index {
            let position = self.segment.position_of(records.block());
            let reason = "the records are missing".to_string();
            report.damage.push(self.damage(position, self.expected..self.next_index, reason));
        }
        Ok(())
    }

    fn damage(&self, position: u64, records: std::ops::Range<u64>, reason: String) -> Corruption {
        Corruption { path: self.segment.path().to_path_buf(), position, records: Some(records), reason }
    }

    /// The next block behind `block` in which a record begins, and that record's index.
    fn resume_behind(&self, block: u32) -> Result<Option<(u32, u64)>> {
        let mut image = AlignedBuf::zeroed(self.segment.block_bytes);
        for number in block + 1..=self.last_block {
            if self.segment.read_blocks(number, &mut image)? == 0 {
                return Ok(None);
            }
            let Ok(header) = self.reader.header(&image, number) else { continue };
            let begins = self
                .reader
                .slices(&image, header)
                .map_while(|slice| slice.ok())
                .find(|slice| slice.number == 0 && slice.index >= self.expected);
            if let Some(slice) = begins {
                return Ok(Some((number, slice.index)));
            }
        }
        Ok(None)
    }

    /// Compares the tailers of a run's blocks with their headers; records do not need them, walking backward does.
    fn check_tailers(&self, run: &[u8], first: u32, checked_below: u32, report: &mut VerifyReport) -> u32 {
        let mut end = first;
        for (image, number) in run.chunks_exact(self.segment.block_bytes).zip(first..) {
            end = number + 1;
            // The last block's tailer may be that of a torn rewrite; the next writer mends it.
            if number < checked_below || number >= self.last_block {
                continue;
            }
            let Ok(header) = self.reader.header(image, number) else { continue };
            let Some(last) = self.reader.slices(image, header).map_while(|slice| slice.ok()).last() else {
                continue;
            };
            let good = BlockTailer { last_slice_start: last.start, used_bytes: header.used_bytes };
            if last.end() == usize::from(header.used_bytes) && BlockTailer::decode(image) != Some(good) {
                let position = self.segment.position_of(number + 1) - crate::codec::BLOCK_TAILER_BYTES as u64;
                let reason = "block tailer does not match the block".to_string();
                report.damage.push(self.damage(position, last.index..last.index, reason));
            }
        }
        end.max(checked_below)
    }
}
