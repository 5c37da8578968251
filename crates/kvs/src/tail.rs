//! Places of commands by the hash of their keys, in memory and in the file `tail`: `docs/format.md`, "The tail".
//!
//! An open needs to know where the commands behind the checkpoint lie. To read them costs it a second for each 100 MiB of
//! them; so while the store is written, the background appends to the file, for each few MiB of the log, a *list* of the
//! commands there. An open reads the lists, and of the log only what none covers. A list is looked at as it lies in the
//! file ([`Part`]): what is opened may have millions of commands.
//!
//! **Invariants.** What a list names is durable before the list is written. Lists follow each other without a gap from the
//! checkpoint on: one that does not begin where the one before ends is a leftover, and so is all behind it. A list is
//! derived from the log, so no list is ever missed: the log is read instead.

mod part;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use lsfs::Env;
use lsfs::codec::{Pointer, crc32c};
use lsfs::io::{AlignedBuf, File, OpenMode, WriteSync};

use crate::error::{Error, Result};
use crate::order::Place;

use part::Image;
pub(crate) use part::Part;

/// The file, in the store's directory.
pub(crate) const TAIL_NAME: &str = "tail";
const MAGIC: [u8; 8] = *b"KVStail\x02";
const HEADER_BYTES: usize = 64;
/// Lists begin at multiples of this.
const PAGE_BYTES: usize = 4096;
/// A longer list is not one of ours.
const LIST_BYTES_MAX: u64 = 64 << 20;
/// Bits of a hash that a list has. Two keys may share them, which costs a look at a frame.
const PREFIX_BITS: u32 = 24;
/// The file is read in pieces that grow up to this size.
const READ_BYTES_MAX: usize = 8 << 20;
const FIRST_READ_BYTES: usize = 1 << 20;

/// Where a command lies, by the first bits of the hash of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    prefix: u32,
    pub(crate) segment: u32,
    pub(crate) position: u32,
}

impl Spot {
    pub(crate) fn new(hash: u64, segment: u32, position: u32) -> Spot {
        Spot { prefix: prefix_of(hash), segment, position }
    }

    /// Whether it may be for a key with this hash.
    pub(crate) fn is_of(&self, hash: u64) -> bool {
        self.prefix == prefix_of(hash)
    }

    /// As the numbers that are kept of it.
    pub(crate) fn to_numbers(self) -> [u32; 3] {
        [self.prefix, self.segment, self.position]
    }

    /// From the numbers that were kept of it.
    pub(crate) fn from_numbers([prefix, segment, position]: [u32; 3]) -> Spot {
        Spot { prefix, segment, position }
    }
}

fn prefix_of(hash: u64) -> u32 {
    (hash >> (u64::BITS - PREFIX_BITS)) as u32
}

/// A stretch of the log whose commands are listed.
#[derive(Debug)]
pub(crate) struct List {
    pub(crate) from: Place,
    /// Behind the last command.
    pub(crate) to: Place,
    /// Bytes of frames.
    pub(crate) frame_bytes: u64,
    pub(crate) part: Part,
}

/// Why bytes are not the list that is looked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ListFault {
    #[error("it begins with {0:02x?}")]
    Magic([u8; 8]),
    #[error("it has {found} bytes, its fields say {expected}")]
    Length { found: u64, expected: u64 },
    #[error("checksum {stored:#010x} stored, {computed:#010x} computed")]
    Checksum { stored: u32, computed: u32 },
    #[error("it was made beside index {0:016x}")]
    Index(u64),
    #[error("its commands are not in order or not in it")]
    Commands,
}

impl List {
    /// Its commands, without those in segments that are gone: these say nothing.
    pub(crate) fn part_of(mut self, there: &HashSet<u32>) -> Part {
        self.part.leave_out(|segment| !there.contains(&segment));
        self.part
    }

    /// The list as it is written, made beside the index with this id: whole pages, and how many of their bytes count.
    pub(crate) fn encode(&self, index_id: u64) -> (AlignedBuf, usize) {
        let (part, spans, bucket_bits) = self.part.encoded();
        let len = HEADER_BYTES + part.len();
        let mut bytes = AlignedBuf::zeroed(len.next_multiple_of(PAGE_BYTES));
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[12..16].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&index_id.to_le_bytes());
        for (n, number) in [self.from.0, self.from.1, self.to.0, self.to.1].into_iter().enumerate() {
            bytes[24 + 4 * n..][..4].copy_from_slice(&number.to_le_bytes());
        }
        bytes[40..48].copy_from_slice(&self.frame_bytes.to_le_bytes());
        bytes[48..52].copy_from_slice(&(self.part.count() as u32).to_le_bytes());
        bytes[52..56].copy_from_slice(&(spans as u32).to_le_bytes());
        bytes[56] = bucket_bits as u8;
        bytes[HEADER_BYTES..len].copy_from_slice(part);
        let checksum = crc32c(0, &bytes[12..len]);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        (bytes, len)
    }

    /// How many bytes the list has that begins here.
    fn len_of(header: &[u8]) -> Result<usize, ListFault> {
        let header: &[u8; HEADER_BYTES] = header
            .first_chunk()
            .ok_or(ListFault::Length { found: header.len() as u64, expected: HEADER_BYTES as u64 })?;
        let magic: [u8; 8] = *header.first_chunk().expect("64 bytes begin with 8");
        if magic != MAGIC {
            return Err(ListFault::Magic(magic));
        }
        let len = u32_at(header, 12) as usize;
        match (HEADER_BYTES as u64..=LIST_BYTES_MAX).contains(&(len as u64)) {
            true => Ok(len),
            false => Err(ListFault::Length { found: len as u64, expected: LIST_BYTES_MAX }),
        }
    }

    /// The list that these bytes are.
    fn decode(image: Image, index_id: u64) -> Result<List, ListFault> {
        let bytes = &image.bytes[image.start..image.end];
        let len = List::len_of(bytes)?;
        if bytes.len() != len {
            return Err(ListFault::Length { found: bytes.len() as u64, expected: len as u64 });
        }
        let (stored, computed) = (u32_at(bytes, 8), crc32c(0, &bytes[12..]));
        if stored != computed {
            return Err(ListFault::Checksum { stored, computed });
        }
        let u64_at = |at: usize| u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32;
        if u64_at(16) != index_id {
            return Err(ListFault::Index(u64_at(16)));
        }
        let (from, to) = ((u32_at(bytes, 24), u32_at(bytes, 28)), (u32_at(bytes, 32), u32_at(bytes, 36)));
        let frame_bytes = u64_at(40);
        let (commands, spans) = (u32_at(bytes, 48) as usize, u32_at(bytes, 52) as usize);
        let bucket_bits = bytes[56].into();
        let part = Image { start: image.start + HEADER_BYTES, ..image };
        let part = Part::from_image(part, spans, bucket_bits, commands).ok_or(ListFault::Commands)?;
        Ok(List { from, to, frame_bytes, part })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The lists of a checkpoint, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    pub(crate) lists: Vec<List>,
    /// Where the next one goes in the file.
    position: u64,
}

impl Lists {
    /// Up to where the log is listed, if there are lists.
    pub(crate) fn end(&self) -> Option<Place> {
        Some(self.lists.last()?.to)
    }

    /// Reads the lists from a place of the log on, as far as they are there and reach no further than `log_end`.
    pub(crate) fn read(env: &Env, dir: &Path, index_id: u64, from: Place, log_end: Place) -> Lists {
        let path = dir.join(TAIL_NAME);
        let mut found = Lists::default();
        let Ok(file) = env.disk.open(&path, OpenMode::Read, PAGE_BYTES) else { return found };
        let mut pieces = Pieces { file: &*file, start: 0, bytes: None, next_bytes: FIRST_READ_BYTES };
        let mut next = from;
        loop {
            match pieces.list(found.position, index_id) {
                Ok((list, len)) if list.from == next && list.to <= log_end => {
                    found.position += (len as u64).next_multiple_of(PAGE_BYTES as u64);
                    next = list.to;
                    found.lists.push(list);
                }
                Ok((list, _)) => {
                    tracing::debug!(?next, from = ?list.from, to = ?list.to, "a list of another checkpoint");
                    return found;
                }
                Err(fault) => {
                    tracing::debug!(position = found.position, %fault, "no list");
                    return found;
                }
            }
        }
    }
}

/// The file, read in pieces: lists lie one behind the other, and an open waits for them.
struct Pieces<'a> {
    file: &'a dyn File,
    /// Where the last piece begins, ...
    start: u64,
    /// ... and what it is. A page of zeros follows it.
    bytes: Option<Arc<AlignedBuf>>,
    next_bytes: usize,
}

impl Pieces<'_> {
    /// The list at a position, and how many bytes it has.
    fn list(&mut self, position: u64, index_id: u64) -> Result<(List, usize), String> {
        let header = self.image(position, HEADER_BYTES)?;
        let len = List::len_of(&header.bytes[header.start..header.end]).map_err(|fault| fault.to_string())?;
        let list = List::decode(self.image(position, len)?, index_id);
        list.map(|list| (list, len)).map_err(|fault| fault.to_string())
    }

    /// Bytes from a position on, which is that of a page.
    fn image(&mut self, position: u64, len: usize) -> Result<Image, String> {
        let last = self.bytes.as_ref().filter(|bytes| {
            let end = self.start + (bytes.len() - PAGE_BYTES) as u64;
            self.start <= position && position + len as u64 <= end
        });
        let bytes = match last {
            Some(bytes) => Arc::clone(bytes),
            None => self.read(position, len)?,
        };
        let start = (position - self.start) as usize;
        Ok(Image { bytes, start, end: start + len })
    }

    /// Reads a piece that has at least so many bytes.
    fn read(&mut self, position: u64, len: usize) -> Result<Arc<AlignedBuf>, String> {
        let left = self.file.len().map_err(|error| error.to_string())?.saturating_sub(position);
        if (left as usize) < len {
            return Err(format!("it would end at {}, behind the file", position + len as u64));
        }
        let piece_bytes = len.max(self.next_bytes).min(left as usize).next_multiple_of(PAGE_BYTES);
        self.next_bytes = (2 * self.next_bytes).min(READ_BYTES_MAX);
        let mut bytes = AlignedBuf::zeroed(piece_bytes + PAGE_BYTES);
        self.file.read_full_at(&mut bytes[..piece_bytes], position).map_err(|error| error.to_string())?;
        let bytes = Arc::new(bytes);
        (self.start, self.bytes) = (position, Some(Arc::clone(&bytes)));
        Ok(bytes)
    }
}

/// The file as who makes lists knows it.
#[derive(Debug)]
pub(crate) struct TailFile {
    /// Opened for the first list.
    file: Option<Arc<dyn File>>,
    index_id: u64,
    /// Where the next list goes.
    position: u64,
    /// Up to where the log is listed.
    pub(crate) listed_to: Place,
}

impl TailFile {
    /// For lists behind a checkpoint. There is none yet, or there are these.
    pub(crate) fn behind(checkpoint: Place, index_id: u64, lists: &Lists) -> TailFile {
        let listed_to = lists.end().unwrap_or(checkpoint);
        TailFile { file: None, index_id, position: lists.position, listed_to }
    }

    /// The same file for lists behind another checkpoint, which is durable: those that are there may be overwritten.
    pub(crate) fn begin_anew(self, checkpoint: Place, index_id: u64) -> TailFile {
        if let Some(file) = &self.file
            && let Err(error) = file.release(0..self.position)
        {
            tracing::warn!(path = %file.path().display(), %error, "lists that are not needed any more keep their space");
        }
        TailFile { file: self.file, ..TailFile::behind(checkpoint, index_id, &Lists::default()) }
    }

    /// Appends a list and makes it durable. After an error the next one takes its place.
    pub(crate) fn append(&mut self, env: &Env, dir: &Path, list: &List) -> Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(open(env, dir)?),
        };
        let (image, _) = list.encode(self.index_id);
        let error = |error| Error::io("write", file.path(), image.len() as u64, error);
        file.write_all_at(&image, self.position, WriteSync::Later).map_err(error)?;
        file.sync().map_err(error)?;
        self.position += image.len() as u64;
        self.listed_to = list.to;
        Ok(())
    }
}

fn open(env: &Env, dir: &Path) -> Result<Arc<dyn File>> {
    let path = dir.join(TAIL_NAME);
    let is_there = env.disk.exists(&path);
    let mode = if is_there { OpenMode::Write } else { OpenMode::CreateNew };
    let file = env.disk.open(&path, mode, PAGE_BYTES);
    let file = file.map_err(|error| Error::io("open", &path, PAGE_BYTES as u64, error))?;
    // Also where it was there: its name may not be durable yet.
    env.disk.sync_dir(dir).map_err(|error| Error::io("sync directory", dir, 0, error))?;
    Ok(file)
}

/// Removes the file, of which nothing is needed: everything is in the checkpoint.
pub(crate) fn remove(env: &Env, dir: &Path) -> Result<()> {
    let path = dir.join(TAIL_NAME);
    match env.disk.exists(&path) {
        true => env.disk.remove(&path).map_err(|error| Error::io("remove", &path, 0, error)),
        false => Ok(()),
    }
}

/// So many commands wait for a list only if none can be written.
const UNLISTED_MAX: usize = 1 << 22;

/// Commands that were appended since the last list.
#[derive(Debug, Default)]
pub(crate) struct Unlisted {
    /// Off until there is a checkpoint for lists to begin at, and where nobody makes them.
    is_on: bool,
    spots: Vec<Spot>,
    frame_bytes: u64,
}

impl Unlisted {
    /// Keeps commands for the next list, which begins with these.
    pub(crate) fn beginning_with(spots: Vec<Spot>, frame_bytes: u64) -> Unlisted {
        Unlisted { is_on: true, spots, frame_bytes }
    }

    /// Takes note of a command that was just appended.
    pub(crate) fn push(&mut self, hash: u64, pointer: Pointer) {
        if self.spots.len() == UNLISTED_MAX {
            // Nobody lists them any more: an open reads the log, and the next checkpoint begins again.
            *self = Unlisted::default();
        }
        if self.is_on {
            self.spots.push(Spot::new(hash, pointer.segment, pointer.position));
            self.frame_bytes += pointer.frame_bytes();
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    pub(crate) fn frame_bytes(&self) -> u64 {
        self.frame_bytes
    }

    /// Takes what there is; what is appended from now on comes behind it.
    pub(crate) fn take(&mut self) -> Unlisted {
        let is_on = self.is_on;
        std::mem::replace(self, Unlisted { is_on, ..Unlisted::default() })
    }

    /// Puts back what was taken and is not listed.
    pub(crate) fn put_back(&mut self, mut taken: Unlisted) {
        // If either is off, there is a gap: then nothing is listed until the next checkpoint.
        if !(taken.is_on && self.is_on) {
            *self = Unlisted::default();
            return;
        }
        taken.spots.append(&mut self.spots);
        taken.frame_bytes += self.frame_bytes;
        *self = taken;
    }

    /// The list of these commands.
    pub(crate) fn list(&self, from: Place, to: Place) -> List {
        List { from, to, frame_bytes: self.frame_bytes, part: Part::new(&self.spots) }
    }
}

#[cfg(test)]
pub(crate) mod examples {
    use super::*;

    fn spots() -> Vec<Spot> {
        let spot = |prefix: u64, segment, position| Spot::new(prefix << 40, segment, position);
        vec![spot(0x20_0000, 3, 8192), spot(0x10_0000, 3, 8322), spot(0x20_0001, 4, 4096)]
    }

    /// The list of `docs/format.md`.
    pub(crate) fn list() -> List {
        List { from: (3, 8192), to: (4, 4226), frame_bytes: 390, part: Part::new(&spots()) }
    }

    /// Its bytes, made beside the index with this id.
    pub(crate) fn encoded(list: &List, index_id: u64) -> Vec<u8> {
        let (bytes, len) = list.encode(index_id);
        bytes[..len].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::examples::{encoded, list as example};
    use super::*;

    fn decode(bytes: &[u8], index_id: u64) -> Result<List, ListFault> {
        let mut padded = AlignedBuf::zeroed(bytes.len().next_multiple_of(PAGE_BYTES) + PAGE_BYTES);
        padded[..bytes.len()].copy_from_slice(bytes);
        List::decode(Image { bytes: Arc::new(padded), start: 0, end: bytes.len() }, index_id)
    }

    fn fault(bytes: &[u8], index_id: u64) -> ListFault {
        decode(bytes, index_id).map(drop).expect_err("a fault")
    }

    #[test]
    fn lists_are_read_back_and_every_damage_is_noticed() {
        let bytes = encoded(&example(), 7);
        let list = decode(&bytes, 7).unwrap();
        assert_eq!((list.from, list.to, list.frame_bytes), ((3, 8192), (4, 4226), 390));
        assert_eq!(encoded(&list, 7), bytes);
        assert_eq!(fault(&bytes, 8), ListFault::Index(7));
        for len in 0..bytes.len() {
            assert!(matches!(fault(&bytes[..len], 7), ListFault::Length { .. }), "{len}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, 7).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn many_commands_in_many_segments_are_read_back() {
        for round in 0..50 {
            let spots = part::tests::many_spots(round);
            let to = spots.last().map_or((0, 0), |spot| (spot.segment, spot.position));
            let list = List { from: (0, 0), to, frame_bytes: round << 20, part: Part::new(&spots) };
            let read = decode(&encoded(&list, round), round).unwrap();
            part::tests::check(&read.part, &spots);
        }
    }

    #[test]
    fn bytes_that_verify_and_contradict_themselves_are_refused() {
        let good = encoded(&example(), 7);
        let changed = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            let checksum = crc32c(0, &bad[12..]);
            bad[8..12].copy_from_slice(&checksum.to_le_bytes());
            decode(&bad, 7)
        };
        // Too many commands or spans for its length; one command less than there is; too many buckets.
        for (at, byte) in [(51, 0xff), (55, 0xff), (48, 2), (56, 1), (56, 17), (56, 0xff)] {
            assert_eq!(changed(at, byte).map(drop), Err(ListFault::Commands), "{at}");
        }
        // Spans out of order; a position that no address has; a bucket that ends elsewhere.
        for (at, byte) in [(76, 1), (71, 0xff), (88, 2)] {
            assert_eq!(changed(at, byte).map(drop), Err(ListFault::Commands), "{at}");
        }
        // An offset behind the last span leads to where no frame is.
        let behind = changed(good.len() - 4, 0xff).unwrap();
        assert!(
            behind
                .part
                .spots(0x20_0001 << 40)
                .chain(behind.part.spots(0x20_0000 << 40))
                .any(|spot| { spot.position == crate::segments::POSITION_MAX })
        );
    }

    #[test]
    fn only_lists_that_follow_each_other_count() {
        let disk = lsfs::io::SimDisk::new(1);
        let env = Env { disk: Arc::new(disk.clone()), runtime: Arc::new(lsfs::io::SimRuntime::new(1)) };
        let dir = Path::new("/store");
        env.disk.create_dir_all(dir).unwrap();
        let list = |from: Place, to: Place| List { from, to, ..example() };
        let (one, two, three) = (list((3, 0), (3, 9)), list((3, 9), (4, 7)), list((4, 7), (5, 1)));
        let mut file = TailFile::behind((3, 0), 7, &Lists::default());
        for list in [&one, &two, &three] {
            file.append(&env, dir, list).unwrap();
        }
        let read = |index_id, from, log_end| {
            let lists = Lists::read(&env, dir, index_id, from, log_end).lists;
            lists.iter().map(|list| list.to).collect::<Vec<_>>()
        };
        assert_eq!(read(7, (3, 0), (5, 1)), [(3, 9), (4, 7), (5, 1)]);
        assert_eq!(read(7, (3, 0), (5, 0)), [(3, 9), (4, 7)], "the log is shorter");
        assert_eq!(read(8, (3, 0), (5, 1)), [], "of another index");
        assert_eq!(read(7, (3, 9), (5, 1)), [], "of another checkpoint");
        let mut file = file.begin_anew((5, 1), 7);
        file.append(&env, dir, &list((5, 1), (6, 0))).unwrap();
        assert_eq!(read(7, (5, 1), (6, 0)), [(6, 0)], "behind it lie leftovers");
        assert_eq!(read(7, (3, 0), (6, 0)), []);
        remove(&env, dir).unwrap();
        assert_eq!(read(7, (5, 1), (6, 0)), []);
    }

    #[test]
    fn lists_of_all_sizes_are_read_in_pieces() {
        let disk = lsfs::io::SimDisk::new(1);
        let env = Env { disk: Arc::new(disk.clone()), runtime: Arc::new(lsfs::io::SimRuntime::new(1)) };
        let dir = Path::new("/store");
        env.disk.create_dir_all(dir).unwrap();
        let mut file = TailFile::behind((1, 0), 7, &Lists::default());
        // Of some pages, of exactly one, and longer than what is read at first.
        let counts = [1000, (PAGE_BYTES - HEADER_BYTES - 12 - 4 * 4) / 5, 300_000, 3, 250_000];
        for (n, count) in counts.into_iter().enumerate() {
            let spots: Vec<Spot> = (0..count as u64)
                .map(|m| Spot::new(m.wrapping_mul(0x9E37_79B9_7F4A_7C15), 1, 4096 + m as u32))
                .collect();
            let (from, to) = ((n as u32 + 1, 0), (n as u32 + 2, 0));
            file.append(&env, dir, &List { from, to, frame_bytes: 0, part: Part::new(&spots) }).unwrap();
        }
        let lists = Lists::read(&env, dir, 7, (1, 0), (9, 0)).lists;
        assert_eq!(lists.iter().map(|list| list.part.count()).collect::<Vec<_>>(), counts);
        for list in lists {
            for m in 0..list.part.count() as u64 {
                let hash = m.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                assert!(list.part.spots(hash).any(|spot| spot.position == 4096 + m as u32));
            }
        }
    }

    #[test]
    fn what_was_not_listed_is_put_back_unless_there_is_a_gap_behind_it() {
        let pointer = |position| Pointer::new(1, position, 10, lsfs::codec::FrameLayout::Packed);
        let mut unlisted = Unlisted::beginning_with(Vec::new(), 0);
        unlisted.push(1, pointer(1));
        let taken = unlisted.take();
        unlisted.push(2, pointer(2));
        unlisted.put_back(taken);
        assert_eq!(unlisted.spots, [Spot::new(1, 1, 1), Spot::new(2, 1, 2)]);
        let taken = unlisted.take();
        // So many that they are forgotten.
        (0..=UNLISTED_MAX as u32).for_each(|n| unlisted.push(n.into(), pointer(n)));
        assert!(!unlisted.is_on());
        unlisted.put_back(taken);
        assert!(!unlisted.is_on() && unlisted.spots.is_empty());
    }
}
