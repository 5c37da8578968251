//! Finding the end of the active segment; the steps are those of docs/durability.md, "Recovery".

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::block::{Fault, Reason, Records, Step};
use crate::codec::{
    BLOCK_HEADER_BYTES, BlockFault, BlockHeader, FileHeader, Manifest, SegmentEntry, SliceView,
};
use crate::directory;
use crate::env::Env;
use crate::error::{Corruption, Error, Result};
use crate::io::{ANY_UNIT_BYTES, AlignedBuf, OpenMode, WriteSync};
use crate::mutant::{self, Mutant};
use crate::stream::segment::{Extent, Segment, read_file_header};

/// The segments of a stream, and where they end.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) sealed: Vec<Extent>,
    pub(crate) active: Extent,
    /// The active segment's header: it has the stream's fixed settings.
    pub(crate) header: FileHeader,
    /// Something behind the end was torn or abandoned.
    pub(crate) leftovers: bool,
    /// The active segment's durable bytes do not verify.
    pub(crate) damage: Option<Corruption>,
}

impl Layout {
    /// The segments as the manifest names them, the active one up to what the manifest knows.
    pub(crate) fn named(env: &Env, dir: &Path, manifest: &Manifest, mode: OpenMode) -> Result<Layout> {
        let active = manifest.active();
        let path = directory::segment_path(dir, active.base_index);
        let file = match env.disk.open(&path, OpenMode::Read, ANY_UNIT_BYTES) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::Corrupt(Box::new(missing(dir, active))));
            }
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let header = read_file_header(&*file, ANY_UNIT_BYTES)?;
        if header.segment_id != active.segment_id || header.stream_id != manifest.stream_id {
            let reason = format!(
                "the manifest names segment {:#018x} here, the file is segment {:#018x}",
                active.segment_id, header.segment_id
            );
            return Err(Error::corrupt(&path, 0, Some(active.base_index..active.next_index), reason));
        }
        let files = Arc::default();
        let mut extents: Vec<Extent> = manifest
            .segments
            .iter()
            .map(|entry| Extent {
                segment: Arc::new(Segment::new(env, dir, entry, header.block_bytes as usize, mode, &files)),
                next_index: entry.next_index,
                end_position: entry.end_position,
            })
            .collect();
        let active = extents.pop().expect("a manifest names at least one segment");
        Ok(Layout { sealed: extents, active, header, leftovers: false, damage: None })
    }

    /// The segments with the end of the active one found on the disk. A named file that is missing or short is damage.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the active segment's file or its header is lost, or if a file shows that a newer manifest
    /// was lost.
    pub(crate) fn find(env: &Env, dir: &Path, manifest: &Manifest, mode: OpenMode) -> Result<Layout> {
        let mut layout = Layout::named(env, dir, manifest, mode)?;
        let missing = check_names(env, dir, manifest, &layout.sealed)?;
        let found = find_end(&layout.active.segment, manifest)?;
        layout.active.end_position = found.end_position;
        layout.active.next_index = found.next_index;
        layout.leftovers = found.leftovers;
        layout.damage = missing.or(found.damage);
        Ok(layout)
    }
}

fn missing(dir: &Path, entry: &SegmentEntry) -> Corruption {
    Corruption {
        path: directory::segment_path(dir, entry.base_index),
        position: 0,
        records: Some(entry.base_index..entry.next_index),
        reason: "the segment's file is missing or has no header".to_string(),
    }
}

/// Compares the directory with the manifest; answers the first sealed segment that is missing or short. (Of the active
/// one the file was just opened, and its end is looked for.)
fn check_names(env: &Env, dir: &Path, manifest: &Manifest, sealed: &[Extent]) -> Result<Option<Corruption>> {
    let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let on_disk: std::collections::BTreeMap<u64, u64> = entries
        .iter()
        .filter_map(|entry| directory::base_index_of(&entry.name).map(|base| (base, entry.len)))
        .collect();
    let rewritten: std::collections::BTreeMap<(u64, u64), u64> = entries
        .iter()
        .filter_map(|entry| directory::rewritten_of(&entry.name).map(|name| (name, entry.len)))
        .collect();
    refuse_orphans(env, dir, Some(manifest))?;
    for (entry, extent) in manifest.segments.iter().zip(sealed) {
        let block_bytes = extent.segment.block_bytes as u64;
        // A repair has named what is lost.
        let held = entry.base_index.max(manifest.first_index)..entry.next_index;
        let last_is_lost = held.is_empty() || manifest.lost_range_of(held.end - 1).is_some();
        let all_is_lost = held.is_empty()
            || manifest.lost_range_of(held.end - 1).is_some_and(|lost| lost.start <= held.start);
        let rewritten = rewritten.get(&(entry.base_index, entry.segment_id));
        match rewritten.or_else(|| on_disk.get(&entry.base_index)) {
            None if all_is_lost => {}
            None => return Ok(Some(missing(dir, entry))),
            Some(_) if last_is_lost => {}
            Some(&len) if len < entry.end_position.next_multiple_of(block_bytes) => {
                let reason = format!("the file has {len} bytes, {} were durable", entry.end_position);
                let fault =
                    Fault { block: (len / block_bytes) as u32, offset: 0, reason: Reason::Chain(reason) };
                let found = Search::new(&extent.segment, 0)
                    .and_then(|mut search| search.damaged_at(fault, Watermark::named(entry)));
                // Without a header it is no segment any more.
                return Ok(found.map_or_else(|_| Some(missing(dir, entry)), |found| found.damage));
            }
            Some(_) => {}
        }
    }
    Ok(None)
}

/// Looks at the segments that the manifest does not name: leftovers of changes cut short, unless one holds records
/// that were acknowledged under a manifest we do not see.
///
/// A segment gets its first records after the manifest that names it is durable; one that was dropped is of an earlier
/// epoch or from before the active segment.
pub(crate) fn refuse_orphans(env: &Env, dir: &Path, manifest: Option<&Manifest>) -> Result<()> {
    let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    for base in entries.iter().filter_map(|entry| directory::base_index_of(&entry.name)) {
        if manifest.is_some_and(|manifest| base <= manifest.active().base_index) {
            continue;
        }
        let path = directory::segment_path(dir, base);
        let Ok(file) = env.disk.open(&path, OpenMode::Read, ANY_UNIT_BYTES) else { continue };
        let Ok(header) = read_file_header(&*file, ANY_UNIT_BYTES) else { continue };
        if manifest.is_some_and(|m| header.stream_id != m.stream_id || header.epoch < m.epoch) {
            continue;
        }
        let entry = SegmentEntry {
            segment_id: header.segment_id,
            base_index: base,
            next_index: base,
            end_position: 0,
        };
        let block_bytes = header.block_bytes as usize;
        let segment = Segment::new(env, dir, &entry, block_bytes, OpenMode::Read, &Arc::default());
        let mut block = AlignedBuf::zeroed(segment.block_bytes);
        segment.read_blocks(1, &mut block)?;
        if segment.open()?.reader.header(&block, 1).is_ok() {
            let reason = "the segment holds records, but the manifest that named it is gone";
            return Err(Error::corrupt(&path, 0, Some(base..base + 1), reason));
        }
    }
    Ok(())
}

/// Where a segment ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundEnd {
    /// Position behind the last complete record.
    pub(crate) end_position: u64,
    /// Index after it.
    pub(crate) next_index: u64,
    /// Bytes behind the end in its block, or blocks behind it, that a torn write or a truncation left.
    pub(crate) leftovers: bool,
    /// Durable bytes do not verify: the end is then where durable data is known to end.
    pub(crate) damage: Option<Corruption>,
}

/// A durable watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watermark {
    pub(crate) position: u64,
    pub(crate) index: u64,
}

/// Blocks are read in runs of this many where many are read.
const RUN_BLOCKS_MAX: u32 = 256;

struct Search<'a> {
    segment: &'a Segment,
    /// Blocks behind the known end count only from this epoch on.
    epoch: u32,
    file_blocks: u32,
    block: AlignedBuf,
}

/// Finds the end of `segment`, the active one of the manifest.
///
/// Cost: a logarithmic number of single-block reads, one look ahead of the in-flight limit, and the verification of
/// what lies behind the highest watermark.
pub(crate) fn find_end(segment: &Segment, manifest: &Manifest) -> Result<FoundEnd> {
    let (known, epoch) = (manifest.active(), manifest.epoch);
    let open = segment.open()?;
    let block_bytes = segment.block_bytes as u64;
    let mut search = Search::new(segment, epoch)?;
    let file_blocks = search.file_blocks;

    // 1. The file must have its length, unless the manifest knows the end, and the block with the last byte known durable.
    let len = open.file.len().map_err(|error| Error::io("measure", segment.path(), error))?;
    if len < manifest.active_bytes && !manifest.closed {
        let reason = format!("the file has {len} bytes, it had {}", manifest.active_bytes);
        let end = search.proven_end(known)?;
        let fault = Fault { block: file_blocks, offset: 0, reason: Reason::Chain(reason) };
        return search.damaged_at(fault, end);
    }
    let known_block = (known.end_position.saturating_sub(1) / block_bytes) as u32;
    let mut tail = None;
    if known_block > 0 {
        match search.header(known_block)? {
            Ok(header) => tail = Some(header),
            Err(fault) => {
                let end = search.proven_end(known)?;
                return search.damaged_at(Fault::of_block(known_block, fault), end);
            }
        }
    }

    // 2. The last block that verifies, by doubling and halving from there.
    let last = search.last_written(known_block)?;
    if last > known_block {
        tail = search.header(last)?.ok();
    }

    // A block of a later epoch was written under a later manifest.
    if let Some(header) = tail.filter(|header| header.epoch > epoch) {
        let reason = BlockFault::Epoch { found: header.epoch, manifest: epoch };
        return search.damaged_at(Fault::of_block(header.block_number, reason), Watermark::named(known));
    }

    // 3. Look ahead one in-flight limit: a block there may prove that more was durable.
    let durable = Watermark::named(known);
    let live_tail = tail.filter(|header| header.epoch >= epoch);
    let seen = live_tail.map_or(durable, |header| durable.and(Watermark::of(&header)));
    let ahead_blocks = open.header.in_flight_bytes / segment.block_bytes as u32 + 1;
    let ahead_end = last.saturating_add(1 + ahead_blocks).min(file_blocks);
    let ahead_end = if mutant::is(Mutant::NoLookAhead) { last + 1 } else { ahead_end };
    let proven = search.highest_watermark(last + 1, ahead_end)?.map_or(seen, |ahead| seen.and(ahead));

    // 4. Verify from the watermark that block carries to the first thing that does not follow.
    let walked = search.walk(known, seen, last)?;

    // 5. Below a watermark that is corruption; above it a torn write.
    if !walked.reaches(proven.position, block_bytes) && !mutant::is(Mutant::DamageTruncated) {
        let end = search.proven_end(known)?;
        return search.damaged_at(walked.fault, end);
    }
    if walked.next_index < proven.index {
        let reason =
            format!("the records end with {}, those below {} were durable", walked.next_index, proven.index);
        let block = (walked.end_position.saturating_sub(1) / block_bytes) as u32;
        let end = search.proven_end(known)?;
        return search.damaged_at(Fault { block, offset: 0, reason: Reason::Chain(reason) }, end);
    }
    let (end_block, end_used) = (walked.end_position / block_bytes, walked.end_position % block_bytes);
    let leftovers = if end_used == 0 {
        u64::from(last) >= end_block
    } else {
        u64::from(last) > end_block
            || search.header(end_block as u32)?.is_ok_and(|header| u64::from(header.used_bytes) != end_used)
    };
    Ok(FoundEnd { end_position: walked.end_position, next_index: walked.next_index, leftovers, damage: None })
}

impl Watermark {
    fn named(known: &SegmentEntry) -> Self {
        Watermark { position: known.end_position, index: known.next_index }
    }

    pub(crate) fn of(header: &BlockHeader) -> Self {
        Watermark { position: header.durable_position, index: header.durable_index }
    }

    /// What two watermarks of one segment say together.
    pub(crate) fn and(self, other: Watermark) -> Self {
        Watermark { position: self.position.max(other.position), index: self.index.max(other.index) }
    }
}

/// What [`Search::walk`] came to.
struct Walked {
    end_position: u64,
    next_index: u64,
    /// Behind the last slice that verifies and follows.
    verified_position: u64,
    /// The first thing that does not verify or does not follow.
    fault: Fault,
}

impl Walked {
    /// Whether all bytes below `position` verify and follow. A block may say too early that it ends, so it is not
    /// enough that nothing below is at fault.
    fn reaches(&self, position: u64, block_bytes: u64) -> bool {
        let fault_position = u64::from(self.fault.block) * block_bytes + self.fault.offset as u64;
        // Where a block begins, the one before has ended.
        let between_blocks = position.is_multiple_of(block_bytes) && fault_position >= position;
        self.verified_position >= position || between_blocks
    }
}

impl<'a> Search<'a> {
    fn new(segment: &'a Segment, epoch: u32) -> Result<Self> {
        let len = segment.open()?.file.len().map_err(|error| Error::io("measure", segment.path(), error))?;
        let file_blocks = u32::try_from(len / segment.block_bytes as u64).unwrap_or(u32::MAX);
        Ok(Search { segment, epoch, file_blocks, block: AlignedBuf::zeroed(segment.block_bytes) })
    }

    fn header(&mut self, number: u32) -> Result<Result<BlockHeader, BlockFault>> {
        if self.segment.read_blocks(number, &mut self.block)? == 0 {
            return Ok(Err(BlockFault::Short));
        }
        Ok(self.segment.open()?.reader.header(&self.block, number))
    }

    fn is_written(&mut self, number: u32) -> Result<bool> {
        Ok(number < self.file_blocks && self.header(number)?.is_ok_and(|header| header.epoch >= self.epoch))
    }

    /// The last block of the run of written ones that begins behind `known_block`, or `known_block`.
    fn last_written(&mut self, known_block: u32) -> Result<u32> {
        let (mut low, mut step) = (known_block, 1);
        let mut high = loop {
            let probe = low.saturating_add(step).min(self.file_blocks);
            if !self.is_written(probe)? {
                break probe;
            }
            low = probe;
            step *= 2;
        };
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.is_written(middle)? { low = middle } else { high = middle }
        }
        Ok(low)
    }

    fn highest_watermark(&mut self, first: u32, end: u32) -> Result<Option<Watermark>> {
        let reader = self.segment.open()?.reader;
        let mut highest = None;
        let mut run = AlignedBuf::zeroed(
            end.saturating_sub(first).min(RUN_BLOCKS_MAX) as usize * self.segment.block_bytes,
        );
        for first in (first..end).step_by(RUN_BLOCKS_MAX as usize) {
            let len = ((end - first).min(RUN_BLOCKS_MAX)) as usize * self.segment.block_bytes;
            let count = self.segment.read_blocks(first, &mut run[..len])?;
            let blocks = run[..count].chunks_exact(self.segment.block_bytes).zip(first..);
            let seen = blocks
                .filter_map(|(image, number)| reader.header(image, number).ok())
                .filter(|header| header.epoch >= self.epoch)
                .map(|header| Watermark::of(&header))
                .reduce(Watermark::and);
            highest = highest.into_iter().chain(seen).reduce(Watermark::and);
        }
        Ok(highest)
    }

    fn walk(&mut self, known: &SegmentEntry, from: Watermark, last: u32) -> Result<Walked> {
        let block_bytes = self.segment.block_bytes as u64;
        let reader = self.segment.open()?.reader;
        let known_block = (known.end_position.saturating_sub(1) / block_bytes) as u32;
        // Slices behind the known end in a block of an earlier epoch were abandoned by a truncation or recovery.
        let known_is_old =
            known_block == 0 || self.header(known_block)?.is_ok_and(|header| header.epoch < self.epoch);
        let mut block = (from.position.saturating_sub(1) / block_bytes).max(1) as u32;
        let mut verified_position = u64::from(block) * block_bytes;
        let mut expected = None;
        if known_is_old && block <= known_block.max(1) {
            // What the manifest calls durable is verified by itself, up to the known end.
            if let Some(fault) = self.check_known_tail(known, known_block)? {
                return Ok(Walked {
                    end_position: u64::from(known_block) * block_bytes,
                    next_index: known.next_index.saturating_sub(1),
                    verified_position: u64::from(known_block) * block_bytes,
                    fault,
                });
            }
            block = known_block + 1;
            expected = Some(known.next_index);
            verified_position = known.end_position;
        }
        let mut records = Records::new(reader, block, 0, expected, false);
        let fault = self.walk_records(&mut records, last)?;
        let missing = || Reason::Chain("durable blocks are missing".to_string());
        let position = |(block, offset): (u32, u16)| u64::from(block) * block_bytes + u64::from(offset);
        let mut walked = Walked {
            end_position: known.end_position,
            next_index: known.next_index,
            verified_position: records.verified().map_or(verified_position, position),
            fault: fault.unwrap_or_else(|| Fault { block: last + 1, offset: 0, reason: missing() }),
        };
        if let Some((end, next_index)) = records.ended() {
            walked.end_position = position(end);
            walked.next_index = next_index;
        } else if let Some((index, first_block)) = records.unfinished() {
            walked.end_position = self.start_of_last_slice(first_block)?;
            walked.next_index = index;
        }
        if walked.end_position < known.end_position {
            // Nothing ended behind the known end.
            walked.end_position = known.end_position;
            walked.next_index = known.next_index;
        }
        Ok(walked)
    }

    /// Walks to the fault that ends the records; none if they end with block `last`.
    fn walk_records(&mut self, records: &mut Records, last: u32) -> Result<Option<Fault>> {
        let mut previous = None;
        while records.block() <= last {
            let first = records.block();
            let blocks = (last - first + 1).min(RUN_BLOCKS_MAX);
            let mut run = AlignedBuf::zeroed(blocks as usize * self.segment.block_bytes);
            let count = self.segment.read_blocks(first, &mut run)?;
            loop {
                match records.next(&run[..count], first, last) {
                    Ok(Step::Record(_)) => {}
                    Ok(Step::EndOfRun) => break,
                    Err(fault) => return Ok(Some(fault)),
                }
            }
            // The last block of a run is offered again; a second time means that it is the end.
            if previous == Some(records.block()) {
                return Ok(None);
            }
            previous = Some(records.block());
        }
        Ok(None)
    }

    /// Verifies the slices of the block with the known end, up to that end.
    fn check_known_tail(&mut self, known: &SegmentEntry, known_block: u32) -> Result<Option<Fault>> {
        if known_block == 0 {
            return Ok(None);
        }
        let fault = |offset: usize, reason: Reason| Ok(Some(Fault { block: known_block, offset, reason }));
        let header = match self.header(known_block)? {
            Ok(header) => header,
            Err(reason) => return fault(0, reason.into()),
        };
        let end = (known.end_position - self.segment.position_of(known_block)) as usize;
        let mut at = BLOCK_HEADER_BYTES;
        for slice in self.segment.open()?.reader.slices(&self.block, header) {
            if at >= end {
                break;
            }
            match slice {
                Ok(slice) => at = slice.end(),
                Err(reason) => return fault(at, reason.into()),
            }
        }
        // A block that is used up to its last byte ends where the next begins.
        if at == end || end == self.segment.block_bytes {
            return Ok(None);
        }
        fault(at, Reason::Chain(format!("block ends at offset {at}, it was durable up to {end}")))
    }

    /// Position of the first slice of a record that does not end: the last slice of its block.
    fn start_of_last_slice(&mut self, block: u32) -> Result<u64> {
        let position = self.segment.position_of(block);
        let Ok(header) = self.header(block)? else { return Ok(position) };
        let reader = self.segment.open()?.reader;
        match reader.last_slice_start(&self.block, &header) {
            Ok(start) if usize::from(start) > BLOCK_HEADER_BYTES => Ok(position + u64::from(start)),
            _ => Ok(position),
        }
    }

    /// Where durable data is known to end, be it far behind damage, so that what is intact there is read.
    fn proven_end(&mut self, known: &SegmentEntry) -> Result<Watermark> {
        let named = Watermark::named(known);
        let walked = self.walk(known, named, self.file_blocks.saturating_sub(1))?;
        let whole = Watermark { position: walked.end_position, index: walked.next_index };
        let seen = self.highest_watermark(1, self.file_blocks)?;
        Ok(named.and(whole).and(seen.unwrap_or(named)))
    }

    /// The answer for a segment whose durable bytes do not verify.
    fn damaged_at(&mut self, fault: Fault, mut end: Watermark) -> Result<FoundEnd> {
        // A forged watermark may point anywhere; there is nothing to read behind the file's end.
        end.position = end.position.min(u64::from(self.file_blocks) * self.segment.block_bytes as u64);
        let damage = Corruption {
            path: self.segment.path().to_path_buf(),
            position: self.segment.position_of(fault.block) + fault.offset as u64,
            records: Some(self.lost_records(&fault, end)?),
            reason: fault.to_string(),
        };
        Ok(FoundEnd {
            end_position: end.position,
            next_index: end.index,
            leftovers: false,
            damage: Some(damage),
        })
    }

    /// The records that a fault takes: from the last one that is whole before it to the first that begins in a block
    /// behind it.
    fn lost_records(&mut self, fault: &Fault, end: Watermark) -> Result<Range<u64>> {
        let reader = self.segment.open()?.reader;
        let mut first = self.segment.base_index;
        for number in (1..=fault.block.min(self.file_blocks)).rev() {
            let Ok(header) = self.header(number)? else { continue };
            let limit = if number == fault.block { fault.offset } else { usize::MAX };
            let whole = |slice: &SliceView<'_>| slice.end() <= limit;
            let slices = reader.slices(&self.block, header).map_while(|slice| slice.ok().filter(whole));
            if let Some(last) = slices.last() {
                first = last.index + u64::from(last.is_last);
                break;
            }
        }
        let last_block = (end.position.saturating_sub(1) / self.segment.block_bytes as u64) as u32;
        for number in fault.block.saturating_add(1)..=last_block {
            let Ok(header) = self.header(number)? else { continue };
            let mut slices = reader.slices(&self.block, header).map_while(|slice| slice.ok());
            if let Some(begins) = slices.find(|slice| slice.number == 0 && slice.index >= first) {
                return Ok(first..begins.index.max(first + 1));
            }
        }
        Ok(first..end.index.max(first + 1))
    }
}

/// Rewrites the block with the end so that it holds nothing behind it, and a tailer that fits, if it does not already.
///
/// The slices that stay keep their bytes, so a torn rewrite loses none of them.
pub(crate) fn clean_end(segment: &Segment, end_position: u64) -> Result<()> {
    let block_bytes = segment.block_bytes as u64;
    let (number, used) = ((end_position / block_bytes) as u32, (end_position % block_bytes) as usize);
    if used == 0 || number == 0 {
        return Ok(());
    }
    let open = segment.open()?;
    let mut image = AlignedBuf::zeroed(segment.block_bytes);
    segment.read_blocks(number, &mut image)?;
    let corrupt = |fault: BlockFault| Error::corrupt(segment.path(), end_position - used as u64, None, fault);
    let found = image.to_vec();
    let mut header = open.reader.header(&image, number).map_err(corrupt)?;
    let last_slice_start = open
        .reader
        .slices(&image, header)
        .map_while(|slice| slice.ok().filter(|slice| slice.end() <= used))
        .last()
        .map_or(BLOCK_HEADER_BYTES as u16, |slice| slice.start);
    image[used..].fill(0);
    header.used_bytes = used as u16;
    header.encode(&mut image, last_slice_start, open.reader.checksum);
    if image[..] == found[..] {
        return Ok(());
    }
    let position = segment.position_of(number);
    open.file
        .write_all_at(&image, position, WriteSync::Durable)
        .map_err(|error| Error::write("clean the end of", segment.path(), block_bytes, error))
}
