//! Looking at one file of blocks on its own: a segment, or one of the two files of final data.
//!
//! A file alone cannot say all that its directory can: which of its last bytes were acknowledged is known only up to the
//! highest watermark found in its own blocks, and whether it is still part of a stream is not known at all.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context;
use lsfs::codec::{
    BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES, BlockFault, BlockHeader, FILE_HEADER_BYTES, FileHeader, SliceView,
};
use lsfs::{Corruption, Error};

/// What a file holds.
#[derive(Clone, Debug)]
pub(crate) struct BlockFile {
    /// What it says of itself.
    pub(crate) header: FileHeader,
    /// Version of its format.
    pub(crate) format_version: u32,
    /// Length of the file.
    pub(crate) file_bytes: u64,
    /// Bytes up to the end of the last slice that verifies and follows the one before.
    pub(crate) used_bytes: u64,
    /// Index after the last record that ends in the used bytes.
    pub(crate) next_index: u64,
    /// The first bytes that do not verify although a later block says that they were durable.
    pub(crate) damage: Option<Corruption>,
    /// Whether blocks behind the used bytes verify: what is between is a torn write or damage, the file alone cannot say.
    pub(crate) has_gap: bool,
}

/// Reads the whole file and verifies it as far as it goes.
///
/// # Errors
/// [`Error::Format`] if it is not one of ours, or newer.
pub(crate) fn read(path: &Path) -> anyhow::Result<BlockFile> {
    let cannot_read = || format!("could not read {}", path.display());
    let mut file = File::open(path).with_context(cannot_read)?;
    let mut start = Vec::new();
    file.by_ref().take(FILE_HEADER_BYTES as u64).read_to_end(&mut start).with_context(cannot_read)?;
    let format_error = |fault| Error::Format { path: path.to_path_buf(), fault };
    let header = FileHeader::decode(&start).map_err(format_error)?;
    let file_bytes = file.metadata().with_context(cannot_read)?.len();
    file.seek(SeekFrom::Start(header.block_bytes.into())).with_context(cannot_read)?;
    let mut walk = Walk::new(header);
    walk.read_all(&mut BufReader::with_capacity(1 << 20, file)).with_context(cannot_read)?;
    let damage = walk.damage(path.to_path_buf());
    Ok(BlockFile {
        header,
        format_version: u32::from_le_bytes([start[8], start[9], start[10], start[11]]),
        file_bytes,
        used_bytes: walk.end_position,
        next_index: walk.next_index,
        damage,
        has_gap: walk.has_gap,
    })
}

/// The walk over a file's blocks.
struct Walk {
    header: FileHeader,
    epoch: u32,
    end_position: u64,
    next_index: u64,
    /// Where the walk ended, and why.
    fault: Option<(u64, String)>,
    /// A block behind the fault verifies.
    has_gap: bool,
    /// The highest durable position and index in any block of the last epoch or a later one.
    durable_position: u64,
    durable_index: u64,
}

impl Walk {
    fn new(header: FileHeader) -> Walk {
        Walk {
            header,
            epoch: 0,
            end_position: header.block_bytes.into(),
            next_index: header.base_index,
            fault: None,
            has_gap: false,
            durable_position: 0,
            durable_index: 0,
        }
    }

    fn read_all(&mut self, input: &mut impl Read) -> io::Result<()> {
        let mut buffer = [0; BLOCK_BYTES_MAX];
        let block = &mut buffer[..self.header.block_bytes as usize];
        for number in 1.. {
            match input.read_exact(block) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                other => other?,
            }
            self.look_at(block, number);
        }
        Ok(())
    }

    fn look_at(&mut self, block: &[u8], number: u32) {
        let position = u64::from(number) * u64::from(self.header.block_bytes);
        match BlockHeader::decode(block, self.header.segment_id, number, self.header.checksum) {
            // Behind the end, blocks of an earlier epoch are leftovers of a tail that was given up.
            Ok(found) if found.epoch >= self.epoch => {
                self.durable_position = self.durable_position.max(found.durable_position);
                self.durable_index = self.durable_index.max(found.durable_index);
                match self.fault {
                    Some(_) => self.has_gap = true,
                    None => {
                        self.epoch = found.epoch;
                        self.walk_slices(block, &found, position);
                    }
                }
            }
            Ok(_) => self.end_at(position, "the block belongs to an earlier epoch"),
            Err(BlockFault::Segment { .. }) => self.end_at(position, "the block belongs to another segment"),
            Err(fault) => self.end_at(position, fault),
        }
    }

    fn walk_slices(&mut self, block: &[u8], header: &BlockHeader, position: u64) {
        let mut start = BLOCK_HEADER_BYTES;
        while start < usize::from(header.used_bytes) {
            match SliceView::decode(block, header, start, self.header.checksum) {
                Ok(slice) if slice.is_last => {
                    self.next_index = slice.index + 1;
                    start = slice.end();
                }
                Ok(slice) => start = slice.end(),
                Err(fault) => return self.end_at(position + start as u64, fault),
            }
            self.end_position = position + start as u64;
        }
    }

    fn end_at(&mut self, position: u64, reason: impl ToString) {
        if self.fault.is_none() {
            self.fault = Some((position, reason.to_string()));
        }
    }

    fn damage(&self, path: PathBuf) -> Option<Corruption> {
        let (position, reason) = self.fault.clone()?;
        let records: Range<u64> = self.next_index..self.durable_index.max(self.next_index + 1);
        let is_durable = position < self.durable_position;
        is_durable.then_some(Corruption { path, position, records: Some(records), reason })
    }
}
