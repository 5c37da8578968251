//! A sorted run: a file of keys in order, each with the place of its last command in a stretch of the log.
//! `docs/format.md`, "Sorted runs".
//!
//! **Invariants.** A run is written once and never changed. Its header is written when everything else is durable.
//! Nothing that was read from it is believed before its checksum was.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lsfs::Env;
use lsfs::codec::{FRAME_BODY_BYTES_MAX, FrameLayout, Pointer, crc32c};
use lsfs::io::{AlignedBuf, File, FileMap, OpenMode, WriteSync};

use super::Place;
use super::sorted::{Sorted, Spot};
use crate::error::{Error, Result};
use crate::record::KEY_BYTES_MAX;

/// Names of runs: this, then 16 hexadecimal digits of the run's id.
const NAME_PREFIX: &str = "run-";
const MAGIC: [u8; 8] = *b"KVSorder";
const VERSION: u32 = 2;
/// Bytes before the first block, of which the header takes the first; also the unit of the file.
const HEADER_BYTES: usize = 4096;
const CHECKED_HEADER: std::ops::Range<usize> = 16..88;
const BLOCK_HEADER_BYTES: usize = 16;
/// A block is ended when it has so many bytes.
const BLOCK_BYTES: usize = 4096;
/// No block is longer: one entry short of being ended, and the longest entry.
const BLOCK_BYTES_MAX: usize = BLOCK_BYTES + KEY_BYTES_MAX + 32;
/// Bytes of one write.
const WRITE_BYTES: usize = 1 << 20;
/// No run has more levels of blocks.
const LEVELS_MAX: u8 = 16;

/// Whether a file name is that of a run.
pub(crate) fn is_run(name: &str) -> bool {
    id_of(name).is_some()
}

/// The id in a run's file name.
pub(super) fn id_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(NAME_PREFIX).filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

fn path_of(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{NAME_PREFIX}{id:016x}"))
}

/// What a run says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunHeader {
    pub(super) id: u64,
    /// Id of the index file beside which it was made: a store whose index was made anew has other runs.
    pub(super) owner: u64,
    /// The stretch of the log.
    pub(super) from: Place,
    pub(super) to: Place,
    pub(super) entries: u64,
    root: BlockPlace,
    /// Of its leaves, the blocks of level 0.
    last_leaf: BlockPlace,
    levels: u8,
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockPlace {
    position: u64,
    bytes: u32,
}

impl RunHeader {
    fn encode(&self) -> [u8; CHECKED_HEADER.end] {
        let mut bytes = [0; CHECKED_HEADER.end];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.owner.to_le_bytes());
        let places = [self.from.0, self.from.1, self.to.0, self.to.1];
        for (target, value) in bytes[32..48].as_chunks_mut::<4>().0.iter_mut().zip(places) {
            *target = value.to_le_bytes();
        }
        bytes[48..56].copy_from_slice(&self.entries.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.root.position.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.last_leaf.position.to_le_bytes());
        bytes[72..76].copy_from_slice(&self.root.bytes.to_le_bytes());
        bytes[76..80].copy_from_slice(&self.last_leaf.bytes.to_le_bytes());
        bytes[80] = self.levels;
        let checksum = crc32c(0, &bytes[CHECKED_HEADER]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<RunHeader, RunFault> {
        let too_short = RunFault::Short { found: bytes.len(), needed: CHECKED_HEADER.end };
        let bytes: &[u8; CHECKED_HEADER.end] = bytes.first_chunk().ok_or(too_short)?;
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let magic: [u8; 8] = *bytes.first_chunk().expect("the header begins with 8 bytes");
        if magic != MAGIC {
            return Err(RunFault::Magic(magic));
        }
        if u32_at(8) != VERSION {
            return Err(RunFault::Version(u32_at(8)));
        }
        let (stored, computed) = (u32_at(12), crc32c(0, &bytes[CHECKED_HEADER]));
        if stored != computed {
            return Err(RunFault::Checksum { stored, computed });
        }
        Ok(RunHeader {
            id: u64_at(16),
            owner: u64_at(24),
            from: (u32_at(32), u32_at(36)),
            to: (u32_at(40), u32_at(44)),
            entries: u64_at(48),
            root: BlockPlace { position: u64_at(56), bytes: u32_at(72) },
            last_leaf: BlockPlace { position: u64_at(64), bytes: u32_at(76) },
            levels: bytes[80],
        })
    }
}

/// Why bytes are not what a run should have there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RunFault {
    #[error("it begins with {0:02x?}")]
    Magic([u8; 8]),
    #[error("format version {0}, this program knows version {VERSION}")]
    Version(u32),
    #[error("checksum {stored:#010x} stored, {computed:#010x} computed")]
    Checksum { stored: u32, computed: u32 },
    #[error("{found} bytes, {needed} are needed")]
    Short { found: usize, needed: usize },
    #[error("a block of {0} bytes is not possible")]
    Length(usize),
    #[error("a block of level {found}, expected level {expected}")]
    Level { found: u8, expected: u8 },
    #[error("its entries do not fill it in order")]
    Entries,
    #[error("run id {found:016x}, expected {expected:016x}")]
    Id { found: u64, expected: u64 },
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    #[error("it contradicts the block before it, or the one above it")]
    Place,
    #[error("{found} commands, the header says {expected}")]
    Count { found: u64, expected: u64 },
}

/// An open run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(super) header: RunHeader,
    path: PathBuf,
    bytes: Bytes,
}

/// Where its bytes are read from.
#[derive(Debug)]
enum Bytes {
    Mapped(Box<dyn FileMap>),
    File(Arc<dyn File>),
}

/// What was verified of a run so far.
#[derive(Debug, Default)]
struct Seen {
    entries: u64,
    /// The last leaf, where it ends, and its last key.
    leaf: Option<BlockPlace>,
    end: u64,
    last_key: Option<Vec<u8>>,
}

/// A block, taken apart.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// In a leaf the commands; above, for the first key of each block below, its place: the position in `segment`
    /// (high half) and `position`, the bytes in `len`.
    pub(super) entries: Sorted,
    place: Option<BlockPlace>,
    previous_bytes: u32,
    /// The bytes it was read from; kept for the next one.
    image: Vec<u8>,
}

impl Run {
    /// Opens the run with this id.
    pub(super) fn open(env: &Env, dir: &Path, id: u64) -> Result<Run> {
        let path = path_of(dir, id);
        let file = env
            .disk
            .open(&path, OpenMode::Read, HEADER_BYTES)
            .map_err(|error| Error::io("open", &path, 0, error))?;
        let mut image = AlignedBuf::zeroed(HEADER_BYTES);
        let count = file.read_full_at(&mut image, 0).map_err(|error| Error::io("read", &path, 0, error))?;
        let damaged = |fault: RunFault| damaged(&path, 0, fault);
        let header = RunHeader::decode(&image[..count]).map_err(damaged)?;
        if header.id != id {
            return Err(damaged(RunFault::Id { found: header.id, expected: id }));
        }
        Ok(Run::of(header, path, file))
    }

    fn of(header: RunHeader, path: PathBuf, file: Arc<dyn File>) -> Run {
        let mapped = file.len().and_then(|len| file.map(len));
        Run { header, path, bytes: mapped.map_or_else(|_| Bytes::File(file), Bytes::Mapped) }
    }

    fn damaged(&self, position: u64, fault: RunFault) -> Error {
        damaged(&self.path, position, fault)
    }

    /// A run is derived: one that cannot be read is made anew like one that does not verify.
    fn unreadable(&self, position: u64, error: &std::io::Error) -> Error {
        self.damaged(position, RunFault::Unreadable(error.to_string()))
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// [`Error::RunDamaged`] for the first block that does not verify, or contradicts the others.
    pub(super) fn verify(&self) -> Result<()> {
        let mut seen = Seen { end: HEADER_BYTES as u64, ..Seen::default() };
        if let Some(level) = self.header.levels.checked_sub(1) {
            self.verify_below(self.header.root, level, None, &mut seen)?;
        }
        let is_last_leaf = self.header.levels == 0 || seen.leaf == Some(self.header.last_leaf);
        let expected = self.header.entries;
        match seen.entries {
            found if found != expected => Err(self.damaged(0, RunFault::Count { found, expected })),
            _ if !is_last_leaf => Err(self.damaged(self.header.last_leaf.position, RunFault::Place)),
            _ => Ok(()),
        }
    }

    /// Goes through a block and those below it; `first_key` is what the block above has for it.
    fn verify_below(
        &self,
        place: BlockPlace,
        level: u8,
        first_key: Option<&[u8]>,
        seen: &mut Seen,
    ) -> Result<()> {
        let mut block = Block::default();
        self.load(place.position, Some(place.bytes), level, &mut block)?;
        let keys = &block.entries;
        if first_key.is_some_and(|key| key != keys.key(0)) {
            return Err(self.damaged(place.position, RunFault::Place));
        }
        if level > 0 {
            return (0..keys.len()).try_for_each(|n| {
                self.verify_below(child_of(keys.spot(n).pointer), level - 1, Some(keys.key(n)), seen)
            });
        }
        // Leaves lie one behind the other: scans go from each to the next.
        let previous_bytes = seen.leaf.map_or(0, |leaf| leaf.bytes);
        let is_in_order = |n: usize| match n {
            0 => seen.last_key.as_deref().is_none_or(|last| last < keys.key(0)),
            _ => keys.key(n - 1) < keys.key(n),
        };
        let is_of_stretch = |n: usize| {
            let Pointer { segment, position, .. } = keys.spot(n).pointer;
            (self.header.from..self.header.to).contains(&(segment, position))
        };
        if (place.position, block.previous_bytes) != (seen.end, previous_bytes)
            || !(0..keys.len()).all(|n| is_in_order(n) && is_of_stretch(n))
        {
            return Err(self.damaged(place.position, RunFault::Place));
        }
        seen.last_key = Some(keys.key(keys.len() - 1).to_vec());
        seen.end = place.position + u64::from(place.bytes);
        seen.leaf = Some(place);
        seen.entries += keys.len() as u64;
        Ok(())
    }

    pub(super) fn is_at(&self, path: &Path) -> bool {
        self.path == path
    }

    /// What it says of a key.
    pub(super) fn find(&self, key: &[u8]) -> Result<Option<Spot>> {
        let mut block = Block::default();
        let is_loaded = self.load_leaf(Bound::Included(key), false, &mut block)?;
        Ok(if is_loaded { block.entries.find(key) } else { None })
    }

    /// Fills `image` with `len` bytes from `position` on.
    fn read(&self, position: u64, len: usize, image: &mut Vec<u8>) -> Result<()> {
        image.clear();
        image.resize(len, 0);
        match &self.bytes {
            Bytes::Mapped(map) if position.saturating_add(len as u64) <= map.len() => {
                map.read(position, image).map_err(|error| self.unreadable(position, &error))
            }
            Bytes::Mapped(map) => {
                let found = map.len().saturating_sub(position) as usize;
                Err(self.damaged(position, RunFault::Short { found, needed: len }))
            }
            Bytes::File(file) => {
                let unit = HEADER_BYTES as u64;
                let start = position / unit * unit;
                let skipped = (position - start) as usize;
                let mut pages = AlignedBuf::zeroed((skipped + len).next_multiple_of(HEADER_BYTES));
                let count = file.read_full_at(&mut pages, start);
                let count = count.map_err(|error| self.unreadable(position, &error))?;
                if count < skipped + len {
                    let found = count.saturating_sub(skipped);
                    return Err(self.damaged(position, RunFault::Short { found, needed: len }));
                }
                image.copy_from_slice(&pages[skipped..skipped + len]);
                Ok(())
            }
        }
    }

    /// Reads a block; without a length, the one in its header counts.
    fn load(&self, position: u64, bytes: Option<u32>, level: u8, block: &mut Block) -> Result<()> {
        let bytes = match bytes {
            Some(bytes) => bytes as usize,
            None => {
                self.read(position, BLOCK_HEADER_BYTES, &mut block.image)?;
                let payload: [u8; 4] = *block.image[4..].first_chunk().expect("16 bytes");
                (u32::from_le_bytes(payload) as usize).saturating_add(BLOCK_HEADER_BYTES)
            }
        };
        if !(BLOCK_HEADER_BYTES..=BLOCK_BYTES_MAX).contains(&bytes) {
            return Err(self.damaged(position, RunFault::Length(bytes)));
        }
        self.read(position, bytes, &mut block.image)?;
        let previous = decode_block(&block.image, self.header.id, position, level, &mut block.entries)
            .map_err(|fault| self.damaged(position, fault))?;
        block.place = Some(BlockPlace { position, bytes: bytes as u32 });
        block.previous_bytes = previous;
        Ok(())
    }

    /// Loads the leaf in which a key would lie; `Unbounded` is the first one, or the last one if `from_end`. `false` if
    /// there is none.
    pub(super) fn load_leaf(&self, bound: Bound<&[u8]>, from_end: bool, block: &mut Block) -> Result<bool> {
        let Some(mut level) = self.header.levels.checked_sub(1) else { return Ok(false) };
        let mut place = self.header.root;
        loop {
            self.load(place.position, Some(place.bytes), level, block)?;
            if level == 0 {
                return Ok(true);
            }
            let child = match bound {
                Bound::Unbounded if from_end => block.entries.len() - 1,
                Bound::Unbounded => 0,
                Bound::Included(key) | Bound::Excluded(key) => {
                    block.entries.end_within(Bound::Included(key)).saturating_sub(1)
                }
            };
            place = child_of(block.entries.spot(child).pointer);
            level -= 1;
        }
    }

    /// Loads the leaf behind the loaded one; `false` if that was the last.
    pub(super) fn load_next(&self, block: &mut Block) -> Result<bool> {
        let Some(place) = block.place.filter(|place| place.position != self.header.last_leaf.position) else {
            return Ok(false);
        };
        self.load(place.position + u64::from(place.bytes), None, 0, block)?;
        Ok(true)
    }

    /// Loads the leaf before the loaded one; `false` if that was the first.
    pub(super) fn load_previous(&self, block: &mut Block) -> Result<bool> {
        let Some(place) = block.place.filter(|place| place.position > HEADER_BYTES as u64) else {
            return Ok(false);
        };
        let bytes = block.previous_bytes;
        let position = place.position.saturating_sub(bytes.into());
        self.load(position, Some(bytes), 0, block)?;
        Ok(true)
    }
}

fn damaged(path: &Path, position: u64, fault: RunFault) -> Error {
    Error::RunDamaged { path: path.to_path_buf(), position, reason: fault.to_string() }
}

/// The place of a block, as an entry above it has it.
fn child_of(pointer: Pointer) -> BlockPlace {
    BlockPlace {
        position: u64::from(pointer.segment) << 32 | u64::from(pointer.position),
        bytes: pointer.len,
    }
}

fn entry_of(place: BlockPlace) -> Spot {
    let (segment, position) = ((place.position >> 32) as u32, place.position as u32);
    Spot { pointer: Pointer::new(segment, position, place.bytes, FrameLayout::Aligned), is_remove: false }
}

/// What the low bits of an entry's length say; above them it counts bytes.
const REMOVE: u64 = 1;
const PACKED: u64 = 2;
const LENGTH_SHIFT: u32 = 2;

/// Writes a number, seven bits in a byte, the lowest first; the high bit says that more follow.
fn put_varint(target: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        target.push(value as u8 | 0x80);
        value >>= 7;
    }
    target.push(value as u8);
}

/// Reads a number off the front; `None` if it does not end or has more than 35 bits.
fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = bytes.split_first()?;
    if first < 0x80 {
        *bytes = rest;
        return Some(first.into());
    }
    let mut value = 0;
    for (n, &byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * n);
        if byte < 0x80 {
            *bytes = &bytes[n + 1..];
            return Some(value);
        }
    }
    None
}

fn block_checksum(id: u64, position: u64, covered: &[u8]) -> u32 {
    crc32c(crc32c(crc32c(0, &id.to_le_bytes()), &position.to_le_bytes()), covered)
}

/// Takes a block apart; answers the bytes of the one before.
fn decode_block(
    image: &[u8],
    id: u64,
    position: u64,
    level: u8,
    entries: &mut Sorted,
) -> Result<u32, RunFault> {
    let u32_at = |at: usize| u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]]);
    let (stored, computed) = (u32_at(0), block_checksum(id, position, &image[4..]));
    if stored != computed {
        return Err(RunFault::Checksum { stored, computed });
    }
    if u32_at(4) as usize + BLOCK_HEADER_BYTES != image.len() {
        return Err(RunFault::Length(u32_at(4) as usize + BLOCK_HEADER_BYTES));
    }
    if image[14] != level {
        return Err(RunFault::Level { found: image[14], expected: level });
    }
    entries.clear();
    let mut rest = &image[BLOCK_HEADER_BYTES..];
    let mut last_len = 0;
    for _ in 0..u16::from_le_bytes([image[12], image[13]]) {
        last_len = take_entry(&mut rest, last_len, entries).ok_or(RunFault::Entries)?;
    }
    if !rest.is_empty() || entries.len() == 0 {
        return Err(RunFault::Entries);
    }
    Ok(u32_at(8))
}

/// Takes an entry off the front; answers the length of its key.
fn take_entry(rest: &mut &[u8], last_len: usize, entries: &mut Sorted) -> Option<usize> {
    let shared = take_varint(rest)? as usize;
    let more = take_varint(rest)? as usize;
    if shared > last_len || shared + more > KEY_BYTES_MAX {
        return None;
    }
    let (key, behind) = rest.split_at_checked(more)?;
    *rest = behind;
    let segment = u32::try_from(take_varint(rest)?).ok()?;
    let position = u32::try_from(take_varint(rest)?).ok()?;
    let length = take_varint(rest)?;
    let layout = if length & PACKED == 0 { FrameLayout::Aligned } else { FrameLayout::Packed };
    let len = u32::try_from(length >> LENGTH_SHIFT).ok().filter(|len| *len <= FRAME_BODY_BYTES_MAX)?;
    let pointer = Pointer::new(segment, position, len, layout);
    entries.push_shared(shared, key, Spot { pointer, is_remove: length & REMOVE != 0 });
    Some(shared + more)
}

/// A block that is being filled.
#[derive(Debug, Default)]
struct OpenBlock {
    image: Vec<u8>,
    count: u16,
    first_key: Vec<u8>,
    last_key: Vec<u8>,
}

impl OpenBlock {
    fn push(&mut self, key: &[u8], spot: Spot) {
        if self.count == 0 {
            self.image.clear();
            self.image.resize(BLOCK_HEADER_BYTES, 0);
            self.first_key.clear();
            self.first_key.extend_from_slice(key);
            self.last_key.clear();
        }
        let shared = key.iter().zip(&self.last_key).take_while(|(one, other)| one == other).count();
        put_varint(&mut self.image, shared as u64);
        put_varint(&mut self.image, (key.len() - shared) as u64);
        self.image.extend_from_slice(&key[shared..]);
        put_varint(&mut self.image, spot.pointer.segment.into());
        put_varint(&mut self.image, spot.pointer.position.into());
        let length = u64::from(spot.pointer.len) << LENGTH_SHIFT
            | (if spot.pointer.layout == FrameLayout::Packed { PACKED } else { 0 })
            | (if spot.is_remove { REMOVE } else { 0 });
        put_varint(&mut self.image, length);
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
        self.count += 1;
    }

    fn is_full(&self) -> bool {
        self.image.len() >= BLOCK_BYTES || self.count == u16::MAX
    }

    /// Writes the block's header; the image is whole then.
    fn finish(&mut self, id: u64, position: u64, level: u8, previous_bytes: u32) {
        let payload = (self.image.len() - BLOCK_HEADER_BYTES) as u32;
        self.image[4..8].copy_from_slice(&payload.to_le_bytes());
        self.image[8..12].copy_from_slice(&previous_bytes.to_le_bytes());
        self.image[12..14].copy_from_slice(&self.count.to_le_bytes());
        self.image[14] = level;
        let checksum = block_checksum(id, position, &self.image[4..]);
        self.image[..4].copy_from_slice(&checksum.to_le_bytes());
        self.count = 0;
    }
}

/// Writes a run, key by key.
#[derive(Debug)]
pub(super) struct RunWriter {
    env: Env,
    dir: PathBuf,
    id: u64,
    path: PathBuf,
    file: Arc<dyn File>,
    /// What is not written yet; it begins at `written`.
    pending: AlignedBuf,
    filled: usize,
    written: u64,
    block: OpenBlock,
    /// The first key and the place of each block of the level that is being written.
    fences: Vec<(Vec<u8>, BlockPlace)>,
    entries: u64,
}

impl RunWriter {
    pub(super) fn create(env: &Env, dir: &Path) -> Result<RunWriter> {
        let id = env.runtime.random();
        let path = path_of(dir, id);
        let file = env
            .disk
            .open(&path, OpenMode::CreateNew, HEADER_BYTES)
            .map_err(|error| Error::io("create", &path, HEADER_BYTES as u64, error))?;
        Ok(RunWriter {
            env: env.clone(),
            dir: dir.to_path_buf(),
            id,
            path,
            file,
            pending: AlignedBuf::zeroed(WRITE_BYTES),
            filled: HEADER_BYTES,
            written: 0,
            block: OpenBlock::default(),
            fences: Vec::new(),
            entries: 0,
        })
    }

    /// Adds a key behind the last one.
    pub(super) fn push(&mut self, key: &[u8], spot: Spot) -> Result<()> {
        self.entries += 1;
        self.push_to_block(key, spot, 0)
    }

    fn push_to_block(&mut self, key: &[u8], spot: Spot, level: u8) -> Result<()> {
        self.block.push(key, spot);
        if self.block.is_full() { self.end_block(level) } else { Ok(()) }
    }

    fn end_block(&mut self, level: u8) -> Result<()> {
        if self.block.count == 0 {
            return Ok(());
        }
        let position = self.written + self.filled as u64;
        let previous_bytes = self.fences.last().map_or(0, |(_, place)| place.bytes);
        self.block.finish(self.id, position, level, previous_bytes);
        let place = BlockPlace { position, bytes: self.block.image.len() as u32 };
        self.fences.push((self.block.first_key.clone(), place));
        let image = std::mem::take(&mut self.block.image);
        let mut rest = &image[..];
        while !rest.is_empty() {
            let count = rest.len().min(WRITE_BYTES - self.filled);
            self.pending[self.filled..self.filled + count].copy_from_slice(&rest[..count]);
            self.filled += count;
            rest = &rest[count..];
            if self.filled == WRITE_BYTES {
                self.flush()?;
            }
        }
        self.block.image = image;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let bytes = self.filled.next_multiple_of(HEADER_BYTES);
        self.pending[self.filled..bytes].fill(0);
        self.file
            .write_all_at(&self.pending[..bytes], self.written, WriteSync::Later)
            .map_err(|error| Error::io("write", &self.path, bytes as u64, error))?;
        self.written += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    /// Ends the run, which covers a stretch of the log, and makes it durable.
    pub(super) fn finish(mut self, owner: u64, from: Place, to: Place) -> Result<Run> {
        let finished = self.try_finish(owner, from, to);
        if finished.is_err() {
            self.abandon();
        }
        finished
    }

    fn try_finish(&mut self, owner: u64, from: Place, to: Place) -> Result<Run> {
        self.end_block(0)?;
        let nowhere = BlockPlace { position: 0, bytes: 0 };
        let last_leaf = self.fences.last().map_or(nowhere, |fence| fence.1);
        let mut levels = u8::from(!self.fences.is_empty());
        while self.fences.len() > 1 {
            for (key, place) in std::mem::take(&mut self.fences) {
                self.push_to_block(&key, entry_of(place), levels)?;
            }
            self.end_block(levels)?;
            levels += 1;
        }
        debug_assert!(levels <= LEVELS_MAX);
        self.flush()?;
        let sync = || self.file.sync().map_err(|error| Error::io("sync", &self.path, 0, error));
        // A header is a promise that the rest is there.
        sync()?;
        let header = RunHeader {
            id: self.id,
            owner,
            from,
            to,
            entries: self.entries,
            root: self.fences.first().map_or(nowhere, |fence| fence.1),
            last_leaf,
            levels,
        };
        self.write_header(&header)?;
        sync()?;
        let dir = &self.dir;
        self.env.disk.sync_dir(dir).map_err(|error| Error::io("sync directory", dir, 0, error))?;
        Ok(Run::of(header, self.path.clone(), Arc::clone(&self.file)))
    }

    fn write_header(&self, header: &RunHeader) -> Result<()> {
        let mut image = AlignedBuf::zeroed(HEADER_BYTES);
        // The blocks begin behind the page of the header.
        image[..CHECKED_HEADER.end].copy_from_slice(&header.encode());
        self.file
            .write_all_at(&image, 0, WriteSync::Later)
            .map_err(|error| Error::io("write", &self.path, HEADER_BYTES as u64, error))
    }

    /// Removes what was written of a run that is not to be.
    pub(super) fn abandon(&self) {
        remove(&self.env, &self.path);
    }
}

/// Removes the run with this id; one that stays is not believed, or named anew, by the next open.
pub(super) fn remove_run(env: &Env, dir: &Path, id: u64) {
    remove(env, &path_of(dir, id));
}

fn remove(env: &Env, path: &Path) {
    if let Err(error) = env.disk.remove(path) {
        tracing::debug!(%error, path = %path.display(), "a sorted run was not removed");
    }
}

#[cfg(test)]
pub(crate) mod examples {
    use super::*;

    fn header() -> RunHeader {
        RunHeader {
            id: 0x0102_0304_0506_0708,
            owner: 0x1122_3344_5566_7788,
            from: (0, 0),
            to: (3, 8192),
            entries: 2,
            root: BlockPlace { position: 4096, bytes: 38 },
            last_leaf: BlockPlace { position: 4096, bytes: 38 },
            levels: 1,
        }
    }

    /// The header of the run in docs/format.md.
    pub(crate) fn header_image() -> Vec<u8> {
        header().encode().to_vec()
    }

    /// The only block of the run in docs/format.md.
    pub(crate) fn block_image() -> Vec<u8> {
        let mut block = OpenBlock::default();
        let pointer = |position, len| Pointer::new(3, position, len, FrameLayout::Packed);
        block.push(b"apple", Spot { pointer: pointer(4096, 12), is_remove: false });
        block.push(b"apricot", Spot { pointer: pointer(4300, 9), is_remove: true });
        block.finish(header().id, 4096, 0, 0);
        block.image
    }

    #[test]
    fn the_documents_run_is_read_back() {
        assert_eq!(RunHeader::decode(&header_image()), Ok(header()));
        let (image, mut entries) = (block_image(), Sorted::default());
        assert_eq!(decode_block(&image, header().id, 4096, 0, &mut entries), Ok(0));
        assert_eq!(image.len(), 38);
        assert_eq!((entries.key(0), entries.key(1)), (&b"apple"[..], &b"apricot"[..]));
        assert!(!entries.spot(0).is_remove && entries.spot(1).is_remove);
        assert_eq!(entries.spot(1).pointer, Pointer::new(3, 4300, 9, FrameLayout::Packed));
    }

    #[test]
    fn each_damage_has_its_error() {
        let with = |at: usize, flip: u8| {
            let mut image = header_image();
            image[at] ^= flip;
            RunHeader::decode(&image).unwrap_err()
        };
        assert!(matches!(with(0, 1), RunFault::Magic(_)));
        assert_eq!(with(8, 3), RunFault::Version(1));
        for at in 12..CHECKED_HEADER.end {
            assert!(matches!(with(at, 1), RunFault::Checksum { .. }), "byte {at}");
        }
        assert!(matches!(RunHeader::decode(&header_image()[..50]), Err(RunFault::Short { .. })));
        let (image, mut entries) = (block_image(), Sorted::default());
        for at in 0..image.len() {
            let mut bad = image.clone();
            bad[at] ^= 1;
            let fault = decode_block(&bad, header().id, 4096, 0, &mut entries).unwrap_err();
            assert!(matches!(fault, RunFault::Checksum { .. }), "byte {at}");
        }
        let mut fault = |id, position, level| decode_block(&image, id, position, level, &mut entries);
        assert!(matches!(fault(9, 4096, 0), Err(RunFault::Checksum { .. })), "of another run");
        assert!(matches!(fault(header().id, 8192, 0), Err(RunFault::Checksum { .. })), "of another place");
        assert_eq!(fault(header().id, 4096, 1), Err(RunFault::Level { found: 0, expected: 1 }));
    }

    #[test]
    fn a_block_that_verifies_and_is_none_is_refused() {
        let decode = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut image = block_image();
            change(&mut image);
            let checksum = block_checksum(header().id, 4096, &image[4..]);
            image[..4].copy_from_slice(&checksum.to_le_bytes());
            decode_block(&image, header().id, 4096, 0, &mut Sorted::default()).unwrap_err()
        };
        let length = decode(&|image| image[4] += 1);
        assert!(matches!(length, RunFault::Length(39)), "{length}");
        assert_eq!(decode(&|image| image[12] = 1), RunFault::Entries, "too few entries");
        assert_eq!(decode(&|image| image[12] = 3), RunFault::Entries, "too many");
        assert_eq!(
            decode(&|image| image[BLOCK_HEADER_BYTES] = 1),
            RunFault::Entries,
            "shares what is not there"
        );
        assert_eq!(
            decode(&|image| image[BLOCK_HEADER_BYTES + 1] = 0x7f),
            RunFault::Entries,
            "a key without end"
        );
    }
}
