//! The bytes of one simulated file, in shared copy-on-write pages.

use std::ops::Range;
use std::sync::Arc;

use crate::io::SECTOR_BYTES;

pub(super) const PAGE_BYTES: usize = 4096;
const SECTORS_PER_PAGE: usize = PAGE_BYTES / SECTOR_BYTES;
static ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

pub(super) type Page = Arc<[u8; PAGE_BYTES]>;

/// One page of a file.
#[derive(Clone, Debug, Default)]
enum Slot {
    /// No space allocated; reads as zero.
    #[default]
    Hole,
    /// Allocated; reads as zero.
    Zero,
    Data(Page),
}

/// The length, allocation and bytes of a file. A clone costs a pointer per page.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    len: u64,
    /// May end before `len`: the rest is a hole.
    slots: Vec<Slot>,
    allocated: u64,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.allocated * PAGE_BYTES as u64
    }

    /// The bytes that must still be allocated before `position..end` can be written.
    pub(super) fn unallocated_bytes(&self, position: u64, end: u64) -> u64 {
        let holes =
            pages(position, end).filter(|&index| matches!(self.slots.get(index), None | Some(Slot::Hole)));
        holes.count() as u64 * PAGE_BYTES as u64
    }

    pub(super) fn read(&self, buf: &mut [u8], position: u64) -> usize {
        let count = self.len.saturating_sub(position).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < count {
            let at = position as usize + done;
            let (index, from) = (at / PAGE_BYTES, at % PAGE_BYTES);
            let part = (PAGE_BYTES - from).min(count - done);
            let target = &mut buf[done..done + part];
            match self.slots.get(index) {
                Some(Slot::Data(page)) => target.copy_from_slice(&page[from..from + part]),
                _ => target.fill(0),
            }
            done += part;
        }
        count
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.read(&mut bytes, 0);
        bytes
    }

    /// Writes all of `patch` and extends the file to its end.
    pub(super) fn apply(&mut self, patch: &Patch) {
        for chunk in patch.chunks.iter() {
            self.apply_sectors(chunk, chunk.sectors());
        }
        self.extend(patch.end);
    }

    /// Writes those sectors of `chunk` that are in the mask. The length stays: bytes beyond it come into view
    /// when it grows, unless [`Content::clip`] is called before.
    pub(super) fn apply_sectors(&mut self, chunk: &Chunk, sectors: u8) {
        if sectors == 0 {
            return;
        }
        let whole = chunk.to - chunk.from == PAGE_BYTES && sectors == chunk.sectors();
        let slot = self.slot_mut(chunk.index);
        match (&chunk.data, &*slot) {
            (Some(page), _) if whole => *slot = Slot::Data(Arc::clone(page)),
            (None, _) if whole => *slot = Slot::Zero,
            (None, Slot::Hole | Slot::Zero) => *slot = Slot::Zero,
            _ => {
                let source: &[u8; PAGE_BYTES] = chunk.data.as_deref().unwrap_or(&ZERO_PAGE);
                let target = slot.page_mut();
                for sector in (0..SECTORS_PER_PAGE).filter(|sector| sectors >> sector & 1 == 1) {
                    let from = chunk.from.max(sector * SECTOR_BYTES);
                    let to = chunk.to.min((sector + 1) * SECTOR_BYTES);
                    target[from..to].copy_from_slice(&source[from..to]);
                }
            }
        }
    }

    /// Makes the file at least `len` bytes long.
    pub(super) fn extend(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Reserves space up to `len` and extends the file to it.
    pub(super) fn allocate(&mut self, len: u64) {
        for index in pages(0, len) {
            let slot = self.slot_mut(index);
            if matches!(slot, Slot::Hole) {
                *slot = Slot::Zero;
            }
        }
        self.extend(len);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        self.len = len;
        self.clip();
    }

    /// Gives up the space of whole pages; all bytes of the range read as zero.
    pub(super) fn release(&mut self, range: &Range<u64>) {
        let end = range.end.min(self.len);
        for index in pages(range.start, end) {
            let Some(slot) = self.slots.get_mut(index) else { return };
            let start = (index * PAGE_BYTES) as u64;
            let from = range.start.saturating_sub(start) as usize;
            let to = (end - start).min(PAGE_BYTES as u64) as usize;
            if from == 0 && (to == PAGE_BYTES || end == self.len) {
                self.allocated -= u64::from(!matches!(slot, Slot::Hole));
                *slot = Slot::Hole;
            } else if let Slot::Data(page) = slot {
                Arc::make_mut(page)[from..to].fill(0);
            }
        }
    }

    /// Drops what lies beyond the length, so that a later extension shows zeros.
    pub(super) fn clip(&mut self) {
        let pages = self.len.div_ceil(PAGE_BYTES as u64) as usize;
        if pages < self.slots.len() {
            let freed = self.slots.drain(pages..).filter(|slot| !matches!(slot, Slot::Hole)).count();
            self.allocated -= freed as u64;
        }
        let tail = self.len as usize % PAGE_BYTES;
        if tail != 0
            && pages == self.slots.len()
            && let Some(Slot::Data(page)) = self.slots.last_mut()
            && page[tail..] != ZERO_PAGE[tail..]
        {
            Arc::make_mut(page)[tail..].fill(0);
        }
    }

    /// The page at `index`, about to be written: counted as allocated from here on.
    fn slot_mut(&mut self, index: usize) -> &mut Slot {
        if index >= self.slots.len() {
            self.slots.resize(index + 1, Slot::Hole);
        }
        let slot = &mut self.slots[index];
        if matches!(slot, Slot::Hole) {
            self.allocated += 1;
        }
        slot
    }

    /// Applies a silent damage. The caller has checked the positions.
    pub(super) fn damage(&mut self, damage: &Damage) {
        match *damage {
            Damage::FlipBit(bit) => {
                let mut byte = [0];
                self.read(&mut byte, bit / 8);
                self.overwrite(bit / 8, &[byte[0] ^ (1 << (bit % 8))]);
            }
            Damage::ZeroSector(sector) => self.overwrite(sector_start(sector), &[0; SECTOR_BYTES]),
            Damage::SwapSectors(one, other) => {
                let (mut first, mut second) = ([0; SECTOR_BYTES], [0; SECTOR_BYTES]);
                self.read(&mut first, sector_start(one));
                self.read(&mut second, sector_start(other));
                self.overwrite(sector_start(one), &second);
                self.overwrite(sector_start(other), &first);
            }
            Damage::Truncate(len) => self.set_len(len),
        }
    }

    /// Writes what lies within the length.
    fn overwrite(&mut self, position: u64, bytes: &[u8]) {
        let within = self.len.saturating_sub(position).min(bytes.len() as u64) as usize;
        if within > 0 {
            self.apply(&Patch::new(position, &bytes[..within]));
        }
    }
}

impl Slot {
    fn page_mut(&mut self) -> &mut [u8; PAGE_BYTES] {
        if !matches!(self, Slot::Data(_)) {
            *self = Slot::Data(Arc::new(ZERO_PAGE));
        }
        match self {
            Slot::Data(page) => Arc::make_mut(page),
            Slot::Hole | Slot::Zero => unreachable!("made a data page just above"),
        }
    }
}

/// Silent damage of the bytes on the medium.
#[derive(Clone, Debug)]
pub(super) enum Damage {
    FlipBit(u64),
    ZeroSector(u64),
    SwapSectors(u64, u64),
    Truncate(u64),
}

pub(super) fn sector_start(sector: u64) -> u64 {
    sector * SECTOR_BYTES as u64
}

/// The indexes of the pages that `position..end` touches.
fn pages(position: u64, end: u64) -> Range<usize> {
    if end <= position {
        return 0..0;
    }
    position as usize / PAGE_BYTES..end.div_ceil(PAGE_BYTES as u64) as usize
}

/// The part of a write that lies in one page.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    index: usize,
    /// The written bytes of the page are `from..to`.
    from: usize,
    to: usize,
    /// A page that holds them at their place; `None` if they are zero.
    data: Option<Page>,
}

impl Chunk {
    /// The touched sectors of the page, the first in the lowest bit.
    pub(super) fn sectors(&self) -> u8 {
        let (first, end) = (self.from / SECTOR_BYTES, self.to.div_ceil(SECTOR_BYTES));
        ((1u16 << end) - (1u16 << first)) as u8
    }

    /// The chunk without `from..to`, addresses in the file; up to two pieces.
    fn without(&self, from: u64, to: u64) -> impl Iterator<Item = Chunk> {
        let start = (self.index * PAGE_BYTES) as u64;
        let in_page = |address: u64| address.saturating_sub(start).min(PAGE_BYTES as u64) as usize;
        let (before, after) = (in_page(from), in_page(to));
        [(self.from, self.to.min(before)), (self.from.max(after), self.to)]
            .into_iter()
            .filter(|(from, to)| from < to)
            .map(|(from, to)| Chunk { from, to, ..self.clone() })
    }
}

/// The bytes of one write, cut into pages once and shared by the live view, the pending list, the durable
/// content and the trace.
#[derive(Clone, Debug)]
pub(super) struct Patch {
    pub(super) position: u64,
    pub(super) end: u64,
    pub(super) chunks: Arc<[Chunk]>,
}

impl Patch {
    pub(super) fn new(position: u64, bytes: &[u8]) -> Self {
        let end = position + bytes.len() as u64;
        let chunk = |index: usize| {
            let start = (index * PAGE_BYTES) as u64;
            let from = position.saturating_sub(start) as usize;
            let to = (end - start).min(PAGE_BYTES as u64) as usize;
            let part = &bytes[(start + from as u64 - position) as usize..][..to - from];
            let data = if *part == ZERO_PAGE[..part.len()] {
                None
            } else if part.len() == PAGE_BYTES {
                Some(Arc::<[u8]>::from(part).try_into().expect("the length was just compared"))
            } else {
                let mut page = ZERO_PAGE;
                page[from..to].copy_from_slice(part);
                Some(Arc::new(page))
            };
            Chunk { index, from, to, data }
        };
        Patch { position, end, chunks: pages(position, end).map(chunk).collect() }
    }

    /// How many sectors it touches.
    pub(super) fn sectors(&self) -> u32 {
        self.chunks.iter().map(|chunk| chunk.sectors().count_ones()).sum()
    }

    /// Forgets the bytes of `from..to`, because something later decided them.
    pub(super) fn forget(&mut self, from: u64, to: u64) {
        if from < self.end && self.position < to {
            self.chunks = self.chunks.iter().flat_map(|chunk| chunk.without(from, to)).collect();
        }
    }

    /// Forgets everything from `len` on, the extension too.
    pub(super) fn cut(&mut self, len: u64) {
        self.forget(len, u64::MAX);
        self.end = self.end.min(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(len: usize) -> Content {
        let mut content = Content::default();
        content.apply(&Patch::new(0, &vec![9; len]));
        content
    }

    #[test]
    fn patches_of_any_range_read_back() {
        for (position, len) in [(0, 4096), (512, 512), (4000, 200), (100, 9000), (8192, 1), (0, 12288)] {
            let bytes: Vec<u8> = (0..len).map(|at| at as u8 | 1).collect();
            let mut content = content(10_000);
            let mut expected = content.to_vec();
            content.apply(&Patch::new(position as u64, &bytes));
            expected.resize(expected.len().max(position + len), 0);
            expected[position..position + len].copy_from_slice(&bytes);
            assert_eq!(content.to_vec(), expected, "{len} bytes at {position}");
        }
    }

    #[test]
    fn allocation_is_counted_by_page() {
        let mut content = content(5000);
        assert_eq!((content.allocated_bytes(), content.unallocated_bytes(0, 8192)), (8192, 0));
        assert_eq!(content.unallocated_bytes(8192, 8193), 4096);
        content.set_len(100_000);
        assert_eq!((content.len(), content.allocated_bytes()), (100_000, 8192));
        content.allocate(16384);
        assert_eq!((content.len(), content.allocated_bytes()), (100_000, 16384));
        content.apply(&Patch::new(65536, &[0; 4096]));
        assert_eq!(content.allocated_bytes(), 20480);
        content.set_len(4096);
        assert_eq!((content.len(), content.allocated_bytes()), (4096, 4096));
    }

    #[test]
    fn a_cut_tail_comes_back_as_zeros() {
        let mut content = content(4096);
        content.set_len(700);
        content.set_len(4096);
        assert_eq!(content.to_vec(), [vec![9; 700], vec![0; 3396]].concat());
    }

    #[test]
    fn a_patch_forgets_ranges() {
        let mut patch = Patch::new(0, &[1; 12288]);
        patch.forget(5000, 5500);
        patch.cut(9000);
        let mut content = Content::default();
        content.apply(&patch);
        assert_eq!(content.to_vec(), [vec![1; 5000], vec![0; 500], vec![1; 3500]].concat());
        assert_eq!(Patch::new(512, &[1; 4096]).sectors(), 8);
        assert_eq!(Patch::new(0, &[1; 700]).sectors(), 2);
    }

    #[test]
    fn damage_stays_within_the_length() {
        let mut damaged = content(1000);
        damaged.damage(&Damage::FlipBit(8 * 999));
        damaged.damage(&Damage::SwapSectors(0, 1));
        assert_eq!(damaged.len(), 1000);
        assert_eq!(damaged.to_vec()[487], 8);
        damaged.damage(&Damage::ZeroSector(1));
        assert_eq!(damaged.to_vec()[512..], [0; 488]);
    }
}
