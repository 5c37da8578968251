//! Places of commands by the hash of their keys, in memory and in the file `tail`: `docs/format.md`, "The tail".
//!
//! An open needs to know where the commands behind the checkpoint lie. To read them costs it a second for each 100 MiB of
//! them; so while the store is written, the background appends to the file, for each few MiB of the log, a *list* of the
//! commands there. An open reads the lists, and of the log only what none covers.
//!
//! **Invariants.** What a list names is durable before the list is written. Lists follow each other without a gap from the
//! checkpoint on: one that does not begin where the one before ends is a leftover, and so is all behind it. A list is
//! derived from the log, so no list is ever missed: the log is read instead.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use lsfs::Env;
use lsfs::codec::{Pointer, crc32c};
use lsfs::io::{AlignedBuf, File, OpenMode, WriteSync};

use crate::error::{Error, Result};
use crate::order::Place;
use crate::segments::POSITION_MAX;

/// The file, in the store's directory.
pub(crate) const TAIL_NAME: &str = "tail";
const MAGIC: [u8; 8] = *b"KVStail\x01";
const HEADER_BYTES: usize = 64;
const SPAN_BYTES: usize = 12;
/// Lists begin at multiples of this.
const PAGE_BYTES: usize = 4096;
/// A longer list is not one of ours.
const LIST_BYTES_MAX: u64 = 64 << 20;
/// Bits of a hash that a list has. Two keys may share them, which costs a look at a frame.
const PREFIX_BITS: u32 = 24;
/// A position that no frame has: the command is settled.
const SETTLED: u32 = u32::MAX;

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
}

fn prefix_of(hash: u64) -> u32 {
    (hash >> (u64::BITS - PREFIX_BITS)) as u32
}

/// The commands of a stretch of the log.
#[derive(Debug, Default)]
pub(crate) struct Part {
    /// By the bits of the hash, then in the order of the log.
    spots: Vec<Spot>,
}

impl Part {
    pub(crate) fn new(mut spots: Vec<Spot>) -> Part {
        // Numbers of segments grow, so this is the order of the log for each hash.
        spots.sort_unstable();
        Part { spots }
    }

    /// Whether everything is settled.
    pub(crate) fn is_empty(&self) -> bool {
        self.spots.is_empty()
    }

    /// What is not settled of what a key with this hash may have. There may be very many, of one key that is set all the
    /// time.
    pub(crate) fn spots(&self, hash: u64) -> &[Spot] {
        &self.spots[self.range_of(prefix_of(hash))]
    }

    fn range_of(&self, prefix: u32) -> Range<usize> {
        let first = self.spots.partition_point(|spot| spot.prefix < prefix);
        let of_prefix = self.spots[first..].partition_point(|spot| spot.prefix == prefix);
        // The oldest leave first.
        let is_settled = |spot: &Spot| spot.position == SETTLED;
        let settled = self.spots[first..first + of_prefix].partition_point(is_settled);
        first + settled..first + of_prefix
    }

    /// A hash for which there may be commands.
    pub(crate) fn any_hash(&self) -> Option<u64> {
        self.spots.last().map(|spot| u64::from(spot.prefix) << (u64::BITS - PREFIX_BITS))
    }

    /// The oldest command for its hash is settled.
    pub(crate) fn settled(&mut self, oldest: Spot) {
        let at = self.range_of(oldest.prefix).start;
        if let Some(found) = self.spots.get_mut(at)
            && *found == oldest
        {
            found.position = SETTLED;
        }
        while self.spots.last().is_some_and(|last| last.position == SETTLED) {
            self.spots.pop();
        }
        if self.spots.is_empty() {
            self.spots = Vec::new();
        }
    }
}

/// A stretch of the log whose commands are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct List {
    pub(crate) from: Place,
    /// Behind the last command.
    pub(crate) to: Place,
    /// Bytes of frames.
    pub(crate) frame_bytes: u64,
    /// In the order of the log.
    pub(crate) spots: Vec<Spot>,
}

/// A part of a segment that a list covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    segment: u32,
    /// Position of the first command.
    from: u32,
    /// From there to the last one.
    len: u32,
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
    /// The segments in which its commands lie: few, so each command costs next to nothing.
    pub(crate) fn segments(&self) -> Vec<u32> {
        let mut segments = Vec::new();
        for spot in &self.spots {
            if !segments.contains(&spot.segment) {
                segments.push(spot.segment);
            }
        }
        segments
    }

    /// Its commands, without those in segments that are gone: these say nothing.
    pub(crate) fn part_of(mut self, there: &HashSet<u32>) -> Part {
        let mut gone = self.segments();
        gone.retain(|segment| !there.contains(segment));
        if !gone.is_empty() {
            self.spots.retain(|spot| !gone.contains(&spot.segment));
        }
        Part::new(self.spots)
    }

    fn spans(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        for &Spot { segment, position, .. } in &self.spots {
            match spans.last_mut() {
                Some(span) if span.segment == segment => span.len = position - span.from,
                _ => spans.push(Span { segment, from: position, len: 0 }),
            }
        }
        spans
    }

    /// The list as bytes, made beside the index with this id.
    pub(crate) fn encode(&self, index_id: u64) -> Vec<u8> {
        let spans = self.spans();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + spans.len() * SPAN_BYTES + self.spots.len() * 5);
        bytes.extend(MAGIC);
        bytes.extend([0; 8]);
        bytes.extend(index_id.to_le_bytes());
        for number in [self.from.0, self.from.1, self.to.0, self.to.1] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.frame_bytes.to_le_bytes());
        bytes.extend((self.spots.len() as u32).to_le_bytes());
        bytes.extend((spans.len() as u32).to_le_bytes());
        bytes.resize(HEADER_BYTES, 0);
        for span in &spans {
            for number in [span.segment, span.from, span.len] {
                bytes.extend(number.to_le_bytes());
            }
        }
        let offset_bytes = offset_bytes(&spans);
        let (mut base, mut at) = (0, 0);
        let mut entries: Vec<(u32, u64)> = Vec::with_capacity(self.spots.len());
        for &Spot { prefix, segment, position } in &self.spots {
            if spans[at].segment != segment {
                base += u64::from(spans[at].len) + 1;
                at += 1;
            }
            entries.push((prefix, base + u64::from(position - spans[at].from)));
        }
        entries.sort_unstable();
        let mut last = 0;
        for (prefix, offset) in entries {
            put_varint(&mut bytes, prefix - last);
            bytes.extend(&offset.to_le_bytes()[..offset_bytes]);
            last = prefix;
        }
        let len = bytes.len() as u32;
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        let checksum = crc32c(0, &bytes[12..]);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        bytes
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

    /// The list that these bytes are; its commands are in the order of their hashes.
    pub(crate) fn decode(bytes: &[u8], index_id: u64) -> Result<List, ListFault> {
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
        let (commands, spans) = (u32_at(bytes, 48) as usize, u32_at(bytes, 52) as usize);
        let entries_at = HEADER_BYTES as u64 + spans as u64 * SPAN_BYTES as u64;
        // A command takes two bytes and more.
        let expected = entries_at + 2 * commands as u64;
        if expected > len as u64 {
            return Err(ListFault::Length { found: len as u64, expected });
        }
        let spans: Vec<Span> = (0..spans)
            .map(|n| HEADER_BYTES + n * SPAN_BYTES)
            .map(|at| Span {
                segment: u32_at(bytes, at),
                from: u32_at(bytes, at + 4),
                len: u32_at(bytes, at + 8),
            })
            .collect();
        let spots =
            decode_spots(&bytes[entries_at as usize..], &spans, commands).ok_or(ListFault::Commands)?;
        Ok(List {
            from: (u32_at(bytes, 24), u32_at(bytes, 28)),
            to: (u32_at(bytes, 32), u32_at(bytes, 36)),
            frame_bytes: u64_at(40),
            spots,
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Offsets count through all spans.
fn offset_bytes(spans: &[Span]) -> usize {
    let total: u64 = spans.iter().map(|span| u64::from(span.len) + 1).sum();
    (u64::BITS - total.leading_zeros()).div_ceil(u8::BITS) as usize
}

fn decode_spots(mut bytes: &[u8], spans: &[Span], commands: usize) -> Option<Vec<Spot>> {
    if !spans.is_sorted_by(|one, other| one.segment < other.segment)
        || spans.iter().any(|span| u64::from(span.from) + u64::from(span.len) > POSITION_MAX.into())
    {
        return None;
    }
    let offset_bytes = offset_bytes(spans);
    let ends: Vec<u64> = spans
        .iter()
        .scan(0, |end, span| {
            *end += u64::from(span.len) + 1;
            Some(*end)
        })
        .collect();
    let mut spots = Vec::with_capacity(commands);
    let mut prefix = 0u32;
    for _ in 0..commands {
        prefix = prefix.checked_add(take_varint(&mut bytes)?).filter(|prefix| prefix >> PREFIX_BITS == 0)?;
        let (offset, rest) = bytes.split_at_checked(offset_bytes)?;
        bytes = rest;
        let mut word = [0; 8];
        word[..offset_bytes].copy_from_slice(offset);
        let offset = u64::from_le_bytes(word);
        let span = ends.partition_point(|&end| end <= offset);
        let Span { segment, from, .. } = *spans.get(span)?;
        let before = if span == 0 { 0 } else { ends[span - 1] };
        spots.push(Spot { prefix, segment, position: from + (offset - before) as u32 });
    }
    (bytes.is_empty() && spots.is_sorted()).then_some(spots)
}

/// LEB128.
fn put_varint(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0;
    for shift in (0..28).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u32::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
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
        let mut next = from;
        loop {
            match read_list(&*file, found.position, index_id) {
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

fn read_list(file: &dyn File, position: u64, index_id: u64) -> Result<(List, usize), String> {
    let mut page = AlignedBuf::zeroed(PAGE_BYTES);
    let count = file.read_full_at(&mut page, position).map_err(|error| error.to_string())?;
    let len = List::len_of(&page[..count]).map_err(|fault| fault.to_string())?;
    if position + len as u64 > file.len().map_err(|error| error.to_string())? {
        return Err(format!("it would end at {}, behind the file", position + len as u64));
    }
    let mut bytes = AlignedBuf::zeroed(len.next_multiple_of(PAGE_BYTES));
    file.read_full_at(&mut bytes, position).map_err(|error| error.to_string())?;
    List::decode(&bytes[..len], index_id).map(|list| (list, len)).map_err(|fault| fault.to_string())
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
        let bytes = list.encode(self.index_id);
        let mut image = AlignedBuf::zeroed(bytes.len().next_multiple_of(PAGE_BYTES));
        image[..bytes.len()].copy_from_slice(&bytes);
        let error = |error| Error::io("write", file.path(), bytes.len() as u64, error);
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
        if taken.is_on {
            taken.spots.append(&mut self.spots);
            taken.frame_bytes += self.frame_bytes;
        }
        *self = taken;
    }

    /// The list of these commands.
    pub(crate) fn list(&self, from: Place, to: Place) -> List {
        List { from, to, frame_bytes: self.frame_bytes, spots: self.spots.clone() }
    }
}

#[cfg(test)]
pub(crate) mod examples {
    use super::*;

    /// The list of `docs/format.md`.
    pub(crate) fn list() -> List {
        let spot = |prefix: u64, segment, position| Spot::new(prefix << 40, segment, position);
        List {
            from: (3, 8192),
            to: (4, 4226),
            frame_bytes: 390,
            spots: vec![spot(0x20_0000, 3, 8192), spot(0x10_0000, 3, 8322), spot(0x20_0001, 4, 4096)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::examples::list as example;
    use super::*;

    fn sorted(mut list: List) -> List {
        list.spots.sort_unstable();
        list
    }

    #[test]
    fn lists_are_read_back_and_every_damage_is_noticed() {
        let bytes = example().encode(7);
        assert_eq!(List::decode(&bytes, 7), Ok(sorted(example())));
        assert_eq!(List::decode(&bytes, 8), Err(ListFault::Index(7)));
        for len in 0..bytes.len() {
            assert!(matches!(List::decode(&bytes[..len], 7), Err(ListFault::Length { .. })), "{len}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(List::decode(&bad, 7).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn many_commands_in_many_segments_are_read_back() {
        let mut state = 1u64;
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        for round in 0..50 {
            let (mut segment, mut position) = (next(100) as u32, 4096);
            let mut spots = Vec::new();
            for _ in 0..next(2_000) {
                if next(50) == 0 {
                    (segment, position) = (segment + 1 + next(3) as u32, 4096);
                }
                spots.push(Spot::new(next(1 << 24) << 40, segment, position));
                position += 24 + next(1 << (4 + round % 12)) as u32;
            }
            let list = List { from: (0, 0), to: (segment, position), frame_bytes: next(1 << 31), spots };
            let bytes = list.encode(round);
            assert_eq!(List::decode(&bytes, round), Ok(sorted(list)));
        }
    }

    #[test]
    fn bytes_that_verify_and_contradict_themselves_are_refused() {
        let sealed = |mut bytes: Vec<u8>| {
            let checksum = crc32c(0, &bytes[12..]);
            bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
            bytes
        };
        let good = example().encode(7);
        let changed = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            List::decode(&sealed(bad), 7).unwrap_err()
        };
        // Too many commands or spans for its length; one command less than there is.
        assert!(matches!(changed(51, 0xff), ListFault::Length { .. }), "no allocation by a wrong count");
        assert!(matches!(changed(55, 0xff), ListFault::Length { .. }));
        assert_eq!(changed(48, 2), ListFault::Commands);
        // Spans out of order; a position that no address has; an offset behind the last span.
        assert_eq!(changed(76, 1), ListFault::Commands);
        assert_eq!(changed(71, 0xff), ListFault::Commands);
        assert_eq!(changed(good.len() - 1, 0xff), ListFault::Commands);
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
}
