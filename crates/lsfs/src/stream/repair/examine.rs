//! What each segment file is, and which of its records verify.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::block::BlockReader;
use crate::codec::{
    BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BLOCK_HEADER_BYTES, BlockHeader, Checksum, Compression, FileHeader,
    FileHeaderFault, FileKind, FrameLayout, Manifest, SegmentEntry, StreamId,
};
use crate::directory;
use crate::env::Env;
use crate::error::{Corruption, Error, Result};
use crate::io::{ANY_UNIT_BYTES, AlignedBuf, File, OpenMode};
use crate::stream::options::StreamOptions;
use crate::stream::recovery::Watermark;
use crate::stream::segment::read_file_header;
use crate::stream::survey::{SegmentBlocks, Stretch, Surveyed, survey};

/// A segment file that can be read, if need be with a header that is not in it.
#[derive(Clone, Debug)]
pub(super) struct Readable {
    pub(super) path: PathBuf,
    file: Arc<dyn File>,
    pub(super) header: FileHeader,
    /// The header in the file is damaged; this one is taken from the blocks behind it.
    pub(super) is_inferred: bool,
}

/// What lies at a segment's name.
#[derive(Debug)]
pub(super) enum Examined {
    Readable(Readable),
    /// Nothing to be read: no file, or one that is not the segment.
    Unreadable(Corruption),
    /// A segment of the same stream that a later manifest must have named.
    Newer,
}

/// What a file is expected to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    pub(super) base_index: u64,
    pub(super) stream_id: Option<StreamId>,
    /// The manifest's entry and epoch.
    pub(super) named: Option<(&'a SegmentEntry, u32)>,
}

/// Looks at the file of the segment that begins at the expected base index.
pub(super) fn examine(env: &Env, dir: &Path, expected: Expected<'_>) -> Result<Examined> {
    let rewritten =
        expected.named.map(|(entry, _)| directory::rewritten_path(dir, entry.base_index, entry.segment_id));
    let mut path = rewritten
        .filter(|path| env.disk.exists(path))
        .unwrap_or_else(|| directory::segment_path(dir, expected.base_index));
    if expected.named.is_none() && !env.disk.exists(&path) {
        // Without a manifest nothing says which id a rewritten segment must have.
        let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
        let is_it =
            |name: &str| directory::rewritten_of(name).is_some_and(|(base, _)| base == expected.base_index);
        if let Some(entry) = entries.iter().find(|entry| is_it(&entry.name)) {
            path = dir.join(&entry.name);
        }
    }
    let records = expected.named.map(|(entry, _)| entry.base_index..entry.next_index);
    let unreadable = |reason: String| {
        Ok(Examined::Unreadable(Corruption {
            path: path.clone(),
            position: 0,
            records: records.clone(),
            reason,
        }))
    };
    let file = match env.disk.open(&path, OpenMode::Read, ANY_UNIT_BYTES) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return unreadable("the segment's file is missing".to_string());
        }
        Err(error) => return Err(Error::io("open", &path, error)),
    };
    let readable = |header: FileHeader, is_inferred| {
        let file = env
            .disk
            .open(&path, OpenMode::Read, header.block_bytes as usize)
            .map_err(|error| Error::io("open", &path, error))?;
        Ok(Examined::Readable(Readable { path: path.clone(), file, header, is_inferred }))
    };
    match read_file_header(&*file, ANY_UNIT_BYTES) {
        Ok(header) => {
            let is_stream = expected.stream_id.is_none_or(|id| id == header.stream_id);
            match expected.named {
                Some((entry, epoch)) if entry.segment_id != header.segment_id || !is_stream => {
                    if is_stream && header.epoch > epoch {
                        return Ok(Examined::Newer);
                    }
                    let (found, named) = (header.segment_id, entry.segment_id);
                    unreadable(format!(
                        "the manifest names segment {named:#018x} here, the file is {found:#018x}"
                    ))
                }
                _ if header.base_index != expected.base_index => {
                    unreadable(format!("the file is the segment that begins at {}", header.base_index))
                }
                _ if !is_stream => unreadable(format!("the file is of the stream {}", header.stream_id)),
                _ => readable(header, false),
            }
        }
        Err(error @ (Error::Corrupt(_) | Error::Format { .. })) => {
            match (infer_header(&*file, expected)?, error) {
                (Some(header), _) => readable(header, true),
                (None, Error::Corrupt(damage)) => unreadable(damage.reason),
                // No block of this version behind a header of another one: nothing says that it is damaged.
                (None, error @ Error::Format { fault: FileHeaderFault::Version { .. }, .. }) => Err(error),
                (None, other) => unreadable(other.to_string()),
            }
        }
        Err(error) => Err(error),
    }
}

/// How far behind a damaged header blocks are looked for, in blocks.
const INFER_BLOCKS: usize = 16;

/// The header that a segment must have had, from the first of its blocks that verifies.
fn infer_header(file: &dyn File, expected: Expected<'_>) -> Result<Option<FileHeader>> {
    let Some(stream_id) = expected.stream_id else { return Ok(None) };
    let mut head = AlignedBuf::zeroed((INFER_BLOCKS + 1) * BLOCK_BYTES_MAX);
    let count = file.read_full_at(&mut head, 0).map_err(|error| Error::io("read", file.path(), error))?;
    let head = &head[..count];
    for checksum in [Checksum::Crc32c, Checksum::None] {
        for shift in BLOCK_BYTES_MIN.ilog2()..=BLOCK_BYTES_MAX.ilog2() {
            let block_bytes = 1usize << shift;
            for (number, image) in head.chunks_exact(block_bytes).enumerate().take(INFER_BLOCKS + 1).skip(1) {
                let id_in_block = u64::from_le_bytes(image[8..16].try_into().expect("eight bytes"));
                let segment_id = match expected.named {
                    Some((entry, _)) => entry.segment_id,
                    // Without a checksum any bytes would do.
                    None if checksum == Checksum::None => continue,
                    None => id_in_block,
                };
                let Ok(block) = BlockHeader::decode(image, segment_id, number as u32, checksum) else {
                    continue;
                };
                debug_assert!(usize::from(block.used_bytes) >= BLOCK_HEADER_BYTES);
                return Ok(Some(FileHeader {
                    kind: FileKind::Segment,
                    checksum,
                    compression: Compression::None,
                    block_bytes: block_bytes as u32,
                    stream_id,
                    segment_id,
                    base_index: expected.base_index,
                    epoch: block.epoch,
                    in_flight_bytes: StreamOptions::default().in_flight_bytes as u32,
                    record_limit_bytes: StreamOptions::RECORD_LIMIT_BYTES_MAX,
                    is_sparse: is_rewritten(file.path()),
                    frame_layout: FrameLayout::Aligned,
                }));
            }
        }
    }
    Ok(None)
}

/// What the blocks of a segment from some block on say of its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Witness {
    /// The highest watermark.
    durable: Watermark,
    last_block: u32,
    pub(super) epoch: u32,
}

/// Whether the name is that of a rewritten segment.
fn is_rewritten(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| directory::rewritten_of(name).is_some())
}

impl Readable {
    /// The name of its file in the directory.
    pub(super) fn name(&self) -> String {
        self.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    pub(super) fn block_bytes(&self) -> u64 {
        self.header.block_bytes.into()
    }

    pub(super) fn blocks(&self) -> SegmentBlocks<'_> {
        let header = &self.header;
        let reader = BlockReader {
            segment_id: header.segment_id,
            checksum: header.checksum,
            block_bytes: header.block_bytes as usize,
            record_limit_bytes: header.record_limit_bytes,
            is_sparse: header.is_sparse,
        };
        SegmentBlocks { path: &self.path, file: &*self.file, reader }
    }

    /// The records of a segment that is known to hold those up to `next_index` in the bytes up to `end_position`, in
    /// blocks of epochs up to `epoch_max`.
    pub(super) fn known(
        &self,
        next_index: u64,
        end_position: u64,
        epoch_max: u32,
        progress: impl FnMut(u64),
    ) -> Result<Surveyed> {
        let last_block = end_position.div_ceil(self.block_bytes()).saturating_sub(1) as u32;
        let stretch = Stretch::durable(self.header.base_index, next_index, last_block, epoch_max);
        survey(self.blocks(), &stretch, progress)
    }

    /// That a sealed segment's file ends before the segment does, though all its records were found: its last record
    /// cannot be the one that was written.
    pub(super) fn cut_end(&self, entry: &SegmentEntry, surveyed: &Surveyed) -> Result<Option<Corruption>> {
        let len = self.file.len().map_err(|error| Error::io("measure", &self.path, error))?;
        let is_whole = len >= entry.end_position.next_multiple_of(self.block_bytes());
        let is_named = surveyed.end.is_none_or(|(_, next_index)| next_index < entry.next_index);
        if is_whole || is_named || entry.next_index == entry.base_index {
            return Ok(None);
        }
        Ok(Some(Corruption {
            path: self.path.clone(),
            position: len,
            records: Some(entry.next_index - 1..entry.next_index),
            reason: format!("the file has {len} bytes, {} were durable", entry.end_position),
        }))
    }

    /// That the active segment's file is shorter than it was, though nothing below a watermark is missing.
    pub(super) fn cut_active(&self, manifest: &Manifest, good_end: (u64, u64)) -> Result<Option<Corruption>> {
        let len = self.file.len().map_err(|error| Error::io("measure", &self.path, error))?;
        if manifest.closed || len >= manifest.active_bytes {
            return Ok(None);
        }
        let (had, next) = (manifest.active_bytes, good_end.1);
        let reason = format!(
            "the file has {len} bytes, it had {had}; whether records behind {next} were in the rest is not known"
        );
        Ok(Some(Corruption { path: self.path.clone(), position: len, records: None, reason }))
    }

    /// What lies behind the end that a manifest knows; without one, behind the file header.
    pub(super) fn behind(
        &self,
        known: Option<(&SegmentEntry, u32)>,
        progress: impl FnMut(u64),
    ) -> Result<(Surveyed, Witness)> {
        let start = (self.header.base_index, self.block_bytes());
        let (next_index, end) = known.map_or(start, |(entry, _)| (entry.next_index, entry.end_position));
        let epoch = known.map_or(0, |(_, epoch)| epoch);
        let known_block = (end.saturating_sub(1) / self.block_bytes()) as u32;
        let mut first = (known_block + 1, 0);
        if known_block > 0 && !end.is_multiple_of(self.block_bytes()) {
            let mut image = AlignedBuf::zeroed(self.header.block_bytes as usize);
            self.blocks().read(known_block, &mut image)?;
            if self.blocks().reader.header(&image, known_block).is_ok_and(|header| header.epoch >= epoch) {
                // The block with the known end was written on in the same epoch.
                first = (known_block, (end % self.block_bytes()) as usize);
            }
        }
        let known_end = Watermark { position: end, index: next_index };
        let witness = self.witness(first.0, epoch, known_end)?;
        let stretch = Stretch {
            start: first,
            first_index: next_index,
            epochs: epoch..=u32::MAX,
            last_block: witness.last_block,
            until: u64::MAX,
            durable: witness.durable,
            ends_where_chain_breaks: known.is_none(),
        };
        Ok((survey(self.blocks(), &stretch, progress)?, witness))
    }

    /// Blocks of an earlier epoch than one before them are leftovers and say nothing.
    fn witness(&self, first: u32, epoch: u32, known: Watermark) -> Result<Witness> {
        let mut witness = Witness { durable: known, last_block: first.saturating_sub(1), epoch };
        let reader = self.blocks().reader;
        self.blocks().each(first, |number, image| {
            if let Ok(header) = reader.header(image, number)
                && header.epoch >= witness.epoch
            {
                witness.epoch = header.epoch;
                witness.last_block = number;
                witness.durable = witness.durable.and(Watermark::of(&header));
            }
        })?;
        Ok(witness)
    }

    /// The blocks in use, as bytes of the file.
    pub(super) fn written(&self, witness: &Witness) -> Range<u64> {
        0..(u64::from(witness.last_block) + 1) * self.block_bytes()
    }
}
