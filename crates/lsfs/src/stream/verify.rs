//! Looking at a stream without changing it: what it is, and whether every byte verifies.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::codec::{Checksum, SegmentStatistics, StreamId, lost_range_of};
use crate::directory;
use crate::env::Env;
use crate::error::{Corruption, Error, Result};
use crate::index::read_statistics;
use crate::io::Access;
use crate::stream::look::{Look, is_written};
use crate::stream::segment::Extent;
use crate::stream::survey::{SegmentBlocks, Stretch, Surveyed, survey};

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
    /// Records that a repair found to be lost, in order.
    pub lost: Vec<Range<u64>>,
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
    /// What a clerk counted in it, if one was there; its index goes as far.
    pub statistics: Option<SegmentStatistics>,
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
    /// Every damage, in order; without records that are known to be lost.
    pub damage: Vec<Corruption>,
    /// Records that a repair found to be lost, in order.
    pub lost: Vec<Range<u64>>,
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
    let describe = |extent: &Extent, is_sealed| -> Result<SegmentInfo> {
        let path = extent.segment.path().to_path_buf();
        let statistics = read_statistics(env, &directory::statistics_path(&path))?
            .filter(|statistics| statistics.segment_id == extent.segment.segment_id);
        let entry = entries.iter().find(|entry| path.ends_with(&entry.name));
        Ok(SegmentInfo {
            base_index: extent.segment.base_index,
            next_index: extent.next_index,
            used_bytes: extent.end_position,
            file_bytes: entry.map_or(0, |entry| entry.len),
            allocated_bytes: entry.map_or(0, |entry| entry.allocated),
            is_sealed,
            statistics,
            path,
        })
    };
    let sealed = layout.sealed.iter().map(|extent| describe(extent, true));
    let segments = sealed.chain([describe(&layout.active, false)]).collect::<Result<_>>()?;
    Ok(StreamInfo {
        stream_id: manifest.stream_id,
        format_version: header.version(),
        block_bytes: header.block_bytes,
        checksum: header.checksum,
        first_index: manifest.first_index,
        next_index,
        segments,
        access,
        is_open,
        is_closed: manifest.closed,
        lost: manifest.lost,
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
    let (layout, epoch) = match Look::at(env, dir) {
        Ok(look) => {
            report.lost = look.manifest.lost;
            (look.layout, look.manifest.epoch)
        }
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
        let found = verify_extent(env, dir, extent, epoch, |bytes| {
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
    let VerifyReport { damage, lost, .. } = &mut report;
    damage.retain(|damage| !is_known(damage, lost));
    Ok(report)
}

/// Whether a repair has named all records of this damage lost.
pub(crate) fn is_known(damage: &Corruption, lost: &[Range<u64>]) -> bool {
    let Some(records) = damage.records.as_ref().filter(|records| !records.is_empty()) else { return false };
    lost_range_of(lost, records.start).is_some_and(|range| range.end >= records.end)
}

/// Verifies one segment; what a writer purged or truncated meanwhile is no damage.
fn verify_extent(
    env: &Env,
    dir: &Path,
    extent: &Extent,
    mut epoch: u32,
    mut progress: impl FnMut(u64),
) -> Result<VerifyReport> {
    let mut extent = extent.clone();
    loop {
        let mut report = VerifyReport::default();
        match survey_extent(&extent, epoch, &mut progress) {
            Ok(Surveyed { records, stored_bytes, damage, .. }) => {
                let blocks = u64::from(extent.last_block());
                report = VerifyReport { records, stored_bytes, blocks, damage, ..report };
            }
            Err(Error::Corrupt(damage)) => {
                // The file as a whole: all its records are concerned.
                let all = extent.segment.base_index..extent.next_index;
                report.damage.push(Corruption { records: damage.records.clone().or(Some(all)), ..*damage });
            }
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
        let Look { layout: now, manifest, .. } = Look::at(env, dir)?;
        let is_outdated = manifest.epoch > epoch;
        epoch = manifest.epoch;
        let is_same = |newer: &&Extent| newer.segment.segment_id == extent.segment.segment_id;
        match now.sealed.iter().chain([&now.active]).find(is_same) {
            None => return Ok(VerifyReport::default()),
            Some(newer) if newer.end_position < extent.end_position || is_outdated => extent = newer.clone(),
            Some(_) => return Ok(report),
        }
    }
}

/// Walks all records of a segment, in blocks of epochs up to `epoch`.
fn survey_extent(extent: &Extent, epoch: u32, progress: impl FnMut(u64)) -> Result<Surveyed> {
    let open = extent.segment.open()?;
    let blocks = SegmentBlocks { path: extent.segment.path(), file: &*open.file, reader: open.reader };
    let stretch = Stretch::durable(extent.segment.base_index, extent.next_index, extent.last_block(), epoch);
    survey(blocks, &stretch, progress)
}
