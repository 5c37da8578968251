//! A page of slots, and its image in the index file.
//!
//! **Invariants.** Slots are sorted. The key of each has a hash that begins with the page's `prefix` of `depth` bits.
//! A tag says the bits behind those: `known` of them, at least [`KNOWN_BITS_MIN`], from the top, then a marker bit, then
//! zeros; so no tag, and no slot, is zero.

use std::hint::black_box;
use std::slice;

use lsfs::codec::crc32c;

/// Bytes of a page, in memory and in the file.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Slots of a page.
pub(crate) const PAGE_SLOTS: usize = (PAGE_BYTES - PAGE_HEADER_BYTES) / 8;
/// Bytes before the slots.
pub(crate) const PAGE_HEADER_BYTES: usize = 32;
/// Slots in a line of the processor's caches.
const LINE_SLOTS: usize = 64 / 8;
/// Bits of an address.
pub(crate) const ADDRESS_BITS: u32 = 48;
/// The largest address.
pub(crate) const ADDRESS_MAX: u64 = (1 << ADDRESS_BITS) - 1;
/// No page is split more often.
pub(crate) const DEPTH_MAX: u8 = 32;

/// A tag with fewer known bits is made anew from the key.
const KNOWN_BITS_MIN: u32 = 6;
/// The bits that all tags know.
const COMMON_MASK: u16 = !(u16::MAX >> KNOWN_BITS_MIN);

const MAGIC: u32 = u32::from_le_bytes(*b"KVSP");

/// The addresses whose tags fit a hash.
#[derive(Clone, Debug)]
pub(crate) struct Candidates<'a> {
    slots: slice::Iter<'a, u64>,
    wanted: u16,
}

impl Iterator for Candidates<'_> {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        let mut near = self.slots.by_ref().take_while(|&&slot| is_near(slot, self.wanted));
        near.find(|&&slot| fits(tag_of(slot), self.wanted)).map(|&slot| address_of(slot))
    }
}

/// The slots whose keys have hashes with one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    depth: u8,
    /// The first `depth` bits of the hashes, from the top; the rest is zero.
    prefix: u32,
    count: u16,
    slots: [u64; PAGE_SLOTS],
}

/// What a page must say of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpectedPage {
    pub(crate) file_id: u64,
    pub(crate) place: u32,
    pub(crate) depth: u8,
    pub(crate) prefix: u32,
    /// A page that was written for a later checkpoint than this has replaced the one that is expected.
    pub(crate) generation_max: u32,
}

/// Why bytes are not the page that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PageFault {
    #[error("magic {0:#010x} instead of {expected:#010x}", expected = MAGIC)]
    Magic(u32),
    #[error("checksum {stored:#010x} stored, {computed:#010x} computed")]
    Checksum { stored: u32, computed: u32 },
    #[error("it says that it is {field} {found:#x}, expected {expected:#x}")]
    Other { field: &'static str, found: u64, expected: u64 },
    #[error("it was written for checkpoint {found}, the newest that is known is {newest}")]
    Generation { found: u32, newest: u32 },
    #[error("{0} slots are too many or not in order")]
    Slots(u16),
}

impl Page {
    pub(crate) fn empty(depth: u8, prefix: u32) -> Page {
        Page { depth, prefix, count: 0, slots: [0; PAGE_SLOTS] }
    }

    pub(crate) fn depth(&self) -> u8 {
        self.depth
    }

    pub(crate) fn prefix(&self) -> u32 {
        self.prefix
    }

    pub(crate) fn is_full(&self) -> bool {
        usize::from(self.count) == PAGE_SLOTS
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.count)
    }

    fn slots(&self) -> &[u64] {
        &self.slots[..usize::from(self.count)]
    }

    /// The addresses that may belong to a key with this hash; `depth` and `len` are the page's.
    ///
    /// Nothing but slots is touched: what the page says of itself lies in another line of memory, for which a look-up
    /// would wait.
    #[inline]
    pub(crate) fn candidates(&self, hash: u64, depth: u8, len: u16) -> Candidates<'_> {
        let (slots, wanted) = (&self.slots[..usize::from(len)], bits_behind(hash, depth));
        Candidates { slots: slots[first_fitting(slots, wanted)..].iter(), wanted }
    }

    /// Reads slots near to those that [`Page::candidates`] looks at; `depth` and `len` are the page's.
    #[inline]
    pub(crate) fn touch(&self, hash: u64, depth: u8, len: u16) {
        let near = (usize::from(bits_behind(hash, depth)) * usize::from(len)) >> u16::BITS;
        // Where the tag says, give or take the root of the page's length: the lines of memory beside that one, too.
        for at in [near.saturating_sub(LINE_SLOTS), near, (near + LINE_SLOTS).min(PAGE_SLOTS - 1)] {
            black_box(self.slots[at]);
        }
    }

    /// Reads what the page says of itself.
    #[inline]
    pub(crate) fn touch_head(&self) {
        black_box(self.depth);
    }

    /// Where the slot is that has this address and a tag that fits.
    pub(crate) fn position(&self, hash: u64, address: u64) -> Option<usize> {
        let wanted = bits_behind(hash, self.depth);
        let first = first_fitting(self.slots(), wanted);
        let is_it = |&slot: &u64| fits(tag_of(slot), wanted) && address_of(slot) == address;
        let mut among = self.slots()[first..].iter().take_while(|&&slot| is_near(slot, wanted));
        among.position(is_it).map(|at| first + at)
    }

    /// Adds a slot.
    ///
    /// # Panics
    /// If the page is full or the hash is not of this page.
    pub(crate) fn insert(&mut self, hash: u64, address: u64) {
        assert!(!self.is_full(), "insert into a full page");
        assert!(address <= ADDRESS_MAX, "address {address:#x} has more than {ADDRESS_BITS} bits");
        assert_eq!(prefix_of(hash, self.depth), self.prefix, "hash {hash:#x} at depth {}", self.depth);
        let slot = slot_of(hash, self.depth, address);
        let count = usize::from(self.count);
        // As in `fitting`, from where the tag says.
        let mut at = (usize::from(tag_of(slot)) * count) >> u16::BITS;
        while at > 0 && self.slots[at - 1] > slot {
            at -= 1;
        }
        while at < count && self.slots[at] < slot {
            at += 1;
        }
        self.slots.copy_within(at..count, at + 1);
        self.slots[at] = slot;
        self.count += 1;
    }

    /// Removes a slot.
    pub(crate) fn remove_at(&mut self, at: usize) {
        let count = usize::from(self.count);
        self.slots.copy_within(at + 1..count, at);
        self.slots[count - 1] = 0;
        self.count -= 1;
    }

    /// Whether some addresses are among those that are meant.
    pub(crate) fn has_any(&self, is_meant: impl Fn(u64) -> bool) -> bool {
        self.slots().iter().any(|&slot| is_meant(address_of(slot)))
    }

    /// Removes the slots with the addresses that are meant.
    pub(crate) fn remove_all(&mut self, is_meant: impl Fn(u64) -> bool) {
        for at in (0..self.len()).rev() {
            if is_meant(address_of(self.slots[at])) {
                self.remove_at(at);
            }
        }
    }

    /// Gives the key of a slot, which has this hash, another address.
    ///
    /// # Panics
    /// If the address is too large.
    pub(crate) fn replace_at(&mut self, mut at: usize, hash: u64, address: u64) {
        assert!(address <= ADDRESS_MAX, "address {address:#x} has more than {ADDRESS_BITS} bits");
        self.slots[at] = slot_of(hash, self.depth, address);
        // Its tag begins as before, so its place is a few steps away at most.
        let slots = &mut self.slots[..usize::from(self.count)];
        while at > 0 && slots[at - 1] > slots[at] {
            slots.swap(at - 1, at);
            at -= 1;
        }
        while at + 1 < slots.len() && slots[at + 1] < slots[at] {
            slots.swap(at, at + 1);
            at += 1;
        }
    }

    /// The two halves of the page, by the next bit. `rehash` answers the hash of the key at an address.
    pub(crate) fn split<E>(
        &self,
        mut rehash: impl FnMut(u64) -> Result<u64, E>,
    ) -> Result<Result<[Page; 2], Misplaced>, E> {
        let depth = self.depth + 1;
        let mut halves =
            [Page::empty(depth, self.prefix), Page::empty(depth, self.prefix | 1 << (32 - u32::from(depth)))];
        for &slot in self.slots() {
            let tag = tag_of(slot);
            let half = &mut halves[usize::from(tag >> 15)];
            let mut shorter = tag << 1;
            if known_bits(shorter) < KNOWN_BITS_MIN {
                let hash = rehash(address_of(slot))?;
                if prefix_of(hash, depth) != half.prefix {
                    return Ok(Err(Misplaced { address: address_of(slot) }));
                }
                shorter = whole_tag(hash, depth);
            }
            half.slots[usize::from(half.count)] = (u64::from(shorter) << ADDRESS_BITS) | address_of(slot);
            half.count += 1;
        }
        for half in &mut halves {
            let count = usize::from(half.count);
            half.slots[..count].sort_unstable();
        }
        Ok(Ok(halves))
    }

    /// Writes the page's image for this place of this file; `generation` is that of the next checkpoint.
    pub(crate) fn encode(&self, image: &mut [u8], file_id: u64, place: u32, generation: u32) {
        image[..4].copy_from_slice(&MAGIC.to_le_bytes());
        image[8..16].copy_from_slice(&file_id.to_le_bytes());
        image[16..20].copy_from_slice(&place.to_le_bytes());
        image[20..24].copy_from_slice(&self.prefix.to_le_bytes());
        image[24..26].copy_from_slice(&self.count.to_le_bytes());
        image[26] = self.depth;
        image[27] = 0;
        image[28..PAGE_HEADER_BYTES].copy_from_slice(&generation.to_le_bytes());
        for (bytes, slot) in image[PAGE_HEADER_BYTES..].as_chunks_mut::<8>().0.iter_mut().zip(&self.slots) {
            *bytes = slot.to_le_bytes();
        }
        let checksum = crc32c(0, &image[8..PAGE_BYTES]);
        image[4..8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// The page in an image of [`PAGE_BYTES`] bytes, which should be the expected one.
    pub(crate) fn decode(image: &[u8], expected: &ExpectedPage) -> Result<Page, PageFault> {
        let ExpectedPage { file_id, place, depth, prefix, generation_max } = *expected;
        let u32_at = |at: usize| u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]]);
        let magic = u32_at(0);
        if magic != MAGIC {
            return Err(PageFault::Magic(magic));
        }
        let (stored, computed) = (u32_at(4), crc32c(0, &image[8..PAGE_BYTES]));
        if stored != computed {
            return Err(PageFault::Checksum { stored, computed });
        }
        let found_file = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
        for (field, found, expected) in [
            ("of file", found_file, file_id),
            ("page", u32_at(16).into(), place.into()),
            ("of prefix", u32_at(20).into(), prefix.into()),
            ("of depth", image[26].into(), depth.into()),
        ] {
            if found != expected {
                return Err(PageFault::Other { field, found, expected });
            }
        }
        let generation = u32_at(28);
        if generation > generation_max {
            return Err(PageFault::Generation { found: generation, newest: generation_max });
        }
        let count = u16::from_le_bytes([image[24], image[25]]);
        let mut page = Page::empty(depth, prefix);
        for (slot, bytes) in page.slots.iter_mut().zip(image[PAGE_HEADER_BYTES..].as_chunks::<8>().0) {
            *slot = u64::from_le_bytes(*bytes);
        }
        page.count = count;
        let is_sound = usize::from(count) <= PAGE_SLOTS
            && page.slots().is_sorted()
            && page
                .slots()
                .iter()
                .all(|&slot| tag_of(slot) != 0 && known_bits(tag_of(slot)) >= KNOWN_BITS_MIN);
        if is_sound { Ok(page) } else { Err(PageFault::Slots(count)) }
    }
}

/// The key at this address has a hash that does not belong to the page: the index and the log do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Misplaced {
    pub(crate) address: u64,
}

/// The first `depth` bits of a hash, from the top of the word.
pub(crate) fn prefix_of(hash: u64, depth: u8) -> u32 {
    let top = (hash >> 32) as u32;
    match depth {
        0 => 0,
        depth => top & (u32::MAX << (32 - u32::from(depth))),
    }
}

/// The 16 bits that follow the first `depth`.
fn bits_behind(hash: u64, depth: u8) -> u16 {
    ((hash << depth) >> 48) as u16
}

/// A tag that knows 15 bits.
fn whole_tag(hash: u64, depth: u8) -> u16 {
    bits_behind(hash, depth) | 1
}

/// A slot whose tag knows 15 bits.
fn slot_of(hash: u64, depth: u8, address: u64) -> u64 {
    (u64::from(whole_tag(hash, depth)) << ADDRESS_BITS) | address
}

fn tag_of(slot: u64) -> u16 {
    (slot >> ADDRESS_BITS) as u16
}

fn address_of(slot: u64) -> u64 {
    slot & ADDRESS_MAX
}

/// The bits above the marker.
fn known_bits(tag: u16) -> u32 {
    15u32.saturating_sub(tag.trailing_zeros())
}

/// The first of the slots whose tags begin with the common bits of those wanted, or where it would be.
#[inline]
fn first_fitting(slots: &[u64], wanted: u16) -> usize {
    let common = wanted & COMMON_MASK;
    // Hashes are spread evenly, so the tag says where to look: that touches one or two lines of memory where a
    // binary search touches six.
    let mut first = (usize::from(common) * slots.len()) >> u16::BITS;
    while first > 0 && tag_of(slots[first - 1]) >= common {
        first -= 1;
    }
    while first < slots.len() && tag_of(slots[first]) < common {
        first += 1;
    }
    first
}

/// Whether a slot's tag begins with the common bits of those wanted.
fn is_near(slot: u64, wanted: u16) -> bool {
    (tag_of(slot) ^ wanted) & COMMON_MASK == 0
}

/// Whether the bits that the tag knows are those wanted.
fn fits(tag: u16, wanted: u16) -> bool {
    let marker = tag & tag.wrapping_neg();
    (tag ^ wanted) & !(marker | marker.wrapping_sub(1)) == 0
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn hash(n: u64) -> u64 {
        n.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23).wrapping_mul(0xBF58_476D_1CE4_E5B9)
    }

    fn candidates(page: &Page, n: u64) -> Candidates<'_> {
        page.candidates(hash(n), page.depth, page.count)
    }

    fn rehash(address: u64) -> Result<u64, Infallible> {
        Ok(hash(address))
    }

    #[test]
    fn finds_what_was_put_and_nothing_that_was_removed() {
        let mut page = Page::empty(0, 0);
        (0..PAGE_SLOTS as u64).for_each(|n| page.insert(hash(n), n));
        assert!(page.is_full());
        for n in 0..PAGE_SLOTS as u64 {
            assert!(candidates(&page, n).any(|found| found == n));
            assert!(page.position(hash(n), n).is_some() && page.position(hash(n), n + 1000).is_none());
        }
        for n in (0..PAGE_SLOTS as u64).step_by(2) {
            let at = page.position(hash(n), n).unwrap();
            page.remove_at(at);
            assert_eq!(page.position(hash(n), n), None);
        }
        for n in 0..PAGE_SLOTS as u64 {
            assert_eq!(page.position(hash(n), n).is_some(), n % 2 == 1);
        }
    }

    #[test]
    fn a_replaced_address_leaves_the_slots_in_order() {
        let mut page = Page::empty(0, 0);
        (0..200).for_each(|n| page.insert(hash(n), n));
        // After splits tags know less.
        let [mut low, mut high] = page.split(rehash).unwrap().unwrap();
        for page in [&mut low, &mut high] {
            let prefix = page.prefix();
            for n in (0..200).filter(|&n| prefix_of(hash(n), 1) == prefix) {
                for address in [ADDRESS_MAX, 5000 + n, 0, 7000 + n] {
                    let old = if address == ADDRESS_MAX { n } else { last_of(n, address) };
                    let at = page.position(hash(n), old).unwrap();
                    page.replace_at(at, hash(n), address);
                    assert!(page.slots().is_sorted());
                }
                assert!(page.position(hash(n), 7000 + n).is_some());
            }
        }
        /// The address that is replaced by this one in the test.
        fn last_of(n: u64, address: u64) -> u64 {
            match address {
                0 => 5000 + n,
                address if address == 5000 + n => ADDRESS_MAX,
                _ => 0,
            }
        }
    }

    #[test]
    fn tags_stay_true_over_twenty_splits_and_need_few_keys() {
        // One key that stays, and 400 around it that are new after each split.
        let target = hash(7);
        let mut page = Page::empty(0, 0);
        page.insert(target, 7);
        let mut read = 0;
        for depth in 0..20u8 {
            for n in (0..400).map(|n| (u64::from(depth) << 20) + n + 100) {
                // Hashes with the page's prefix, random behind it.
                let inside = u64::from(page.prefix()) << 32 | (hash(n) >> depth);
                page.insert(inside, n);
            }
            let kept = page.slots().to_vec();
            let split: Result<_, Infallible> = page.split(|address| {
                read += 1;
                match address {
                    7 => Ok(target),
                    other => {
                        let of = (other >> 20) as u8;
                        Ok(u64::from(prefix_of(target, of)) << 32 | (hash(other) >> of))
                    }
                }
            });
            let halves = split.unwrap().unwrap();
            assert_eq!(halves[0].len() + halves[1].len(), kept.len());
            let [low, high] = halves;
            page = if prefix_of(target, depth + 1) == low.prefix() { low } else { high };
            assert!(page.position(target, 7).is_some(), "depth {}", depth + 1);
            // Only what is needed for the next round.
            while page.len() > 100 {
                let slot = *page.slots().iter().rev().find(|&&slot| address_of(slot) != 7).unwrap();
                let at = page.slots().iter().position(|&other| other == slot).unwrap();
                page.remove_at(at);
            }
        }
        assert!(read > 0 && read < 20 * 20, "{read} keys were read");
    }

    #[test]
    fn few_slots_fit_a_hash_that_is_not_there() {
        let mut page = Page::empty(0, 0);
        (0..PAGE_SLOTS as u64).for_each(|n| page.insert(hash(n), n));
        let fitting: usize = (1_000..101_000).map(|n| candidates(&page, n).count()).sum();
        // 508 slots, 15 bits each: 1.6 % of the look-ups.
        assert!((1_000..2_500).contains(&fitting), "{fitting}");
    }

    #[test]
    fn images_are_read_back_and_each_damage_has_its_error() {
        let mut page = Page::empty(3, prefix_of(hash(1), 3));
        page.insert(hash(1), 0x1234);
        let mut image = [0; PAGE_BYTES];
        page.encode(&mut image, 9, 5, 4);
        let good = ExpectedPage { file_id: 9, place: 5, depth: 3, prefix: page.prefix(), generation_max: 4 };
        let decode = |image: &[u8]| Page::decode(image, &good);
        assert_eq!(decode(&image).unwrap(), page);
        let mut bad = image;
        bad[0] ^= 1;
        assert!(matches!(decode(&bad), Err(PageFault::Magic(_))));
        for at in 4..PAGE_BYTES {
            let mut bad = image;
            bad[at] ^= 1;
            assert!(matches!(decode(&bad), Err(PageFault::Checksum { .. })), "byte {at}");
        }
        assert_eq!(
            Page::decode(&image, &ExpectedPage { file_id: 8, ..good }),
            Err(PageFault::Other { field: "of file", found: 9, expected: 8 })
        );
        assert_eq!(
            Page::decode(&image, &ExpectedPage { generation_max: 3, ..good }),
            Err(PageFault::Generation { found: 4, newest: 3 })
        );
        for other in [
            ExpectedPage { place: 6, ..good },
            ExpectedPage { depth: 4, ..good },
            ExpectedPage { prefix: good.prefix ^ 1 << 31, ..good },
        ] {
            assert!(matches!(Page::decode(&image, &other), Err(PageFault::Other { .. })), "{other:?}");
        }
        assert!(matches!(decode(&[0; PAGE_BYTES]), Err(PageFault::Magic(0))));
        // A count that is too large, with a checksum that fits.
        let mut bad = image;
        bad[24..26].copy_from_slice(&600u16.to_le_bytes());
        let checksum = crc32c(0, &bad[8..]);
        bad[4..8].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(decode(&bad), Err(PageFault::Slots(600)));
    }

    #[test]
    fn a_key_that_is_not_of_the_page_is_noticed_by_a_split() {
        let mut page = Page::empty(0, 0);
        page.insert(hash(3), 3);
        for _ in 0..9 {
            let [low, high] = page.split(rehash).unwrap().unwrap();
            page = if low.len() == 1 { low } else { high };
        }
        let Ok(lying) = page.split(|_| Ok::<_, Infallible>(!hash(3)));
        assert_eq!(lying, Err(Misplaced { address: 3 }));
    }
}
