//! The directory: which page has the keys whose hashes begin with some bits; and its images in the index file.

use lsfs::codec::crc32c;

use super::file::PageImage;
use super::page::{DEPTH_MAX, PAGE_BYTES};

/// Entries of one page of the directory.
pub(crate) const CHUNK_ENTRIES: usize = (PAGE_BYTES - CHUNK_HEADER_BYTES) / 4;
const CHUNK_HEADER_BYTES: usize = 32;
const MAGIC: u32 = u32::from_le_bytes(*b"KVSD");

/// Numbers of pages by the first `depth` bits of the hash.
///
/// **Invariant.** There are `1 << depth` entries; a page whose keys share `d` bits has `1 << (depth - d)` of them, one
/// behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    depth: u8,
    entries: Vec<u32>,
}

/// A page as the directory sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) entry: u32,
    pub(crate) depth: u8,
    pub(crate) prefix: u32,
}

impl Directory {
    /// One page for everything.
    pub(crate) fn of_one(page: u32) -> Directory {
        Directory { depth: 0, entries: vec![page] }
    }

    /// The directory whose pages are numbered in the order of these extents, which are all of it.
    pub(crate) fn numbered(extents: &[Extent], depth: u8) -> Directory {
        let entries = extents.iter().enumerate();
        let entries = entries
            .flat_map(|(number, extent)| std::iter::repeat_n(number as u32, 1 << (depth - extent.depth)));
        Directory { depth, entries: entries.collect() }
    }

    pub(crate) fn depth(&self) -> u8 {
        self.depth
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry for a hash.
    pub(crate) fn find(&self, hash: u64) -> u32 {
        let at = if self.depth == 0 { 0 } else { hash >> (64 - u32::from(self.depth)) };
        self.entries[at as usize]
    }

    /// The page with this prefix of `depth` bits was split: the second half of its entries are those of `second`.
    pub(crate) fn split(&mut self, prefix: u32, depth: u8, second: u32) {
        if depth == self.depth {
            self.entries = self.entries.iter().flat_map(|&entry| [entry, entry]).collect();
            self.depth += 1;
        }
        let count = 1usize << (self.depth - depth);
        let first = (u64::from(prefix) >> (32 - u32::from(self.depth))) as usize;
        self.entries[first + count / 2..first + count].fill(second);
    }

    /// The directory with other names for its pages.
    pub(crate) fn map(&self, name: impl Fn(u32) -> u32) -> Directory {
        Directory { depth: self.depth, entries: self.entries.iter().map(|&entry| name(entry)).collect() }
    }

    /// The pages in order; `None` if the entries are not those of a directory.
    pub(crate) fn extents(&self) -> Option<Vec<Extent>> {
        let mut extents = Vec::new();
        let mut at = 0;
        for run in self.entries.chunk_by(|one, next| one == next) {
            let is_aligned = run.len().is_power_of_two() && at % run.len() == 0;
            if !is_aligned {
                return None;
            }
            let depth = self.depth - run.len().ilog2() as u8;
            let prefix = ((at as u64) << (32 - u32::from(self.depth))) as u32;
            extents.push(Extent { entry: run[0], depth, prefix });
            at += run.len();
        }
        Some(extents)
    }

    /// The images of the directory.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = Chunk<'_>> {
        self.entries.chunks(CHUNK_ENTRIES).enumerate().map(|(number, entries)| Chunk {
            number: number as u32,
            depth: self.depth,
            entries,
        })
    }

    /// How many images a directory of this depth has.
    pub(crate) fn chunk_count(depth: u8) -> Option<usize> {
        (depth <= DEPTH_MAX).then(|| (1usize << depth).div_ceil(CHUNK_ENTRIES))
    }

    /// Puts a directory together from the images of its chunks, in order.
    pub(crate) fn from_chunks(
        depth: u8,
        file_id: u64,
        generation: u32,
        images: impl Iterator<Item = (u32, impl std::ops::Deref<Target = [u8]>)>,
    ) -> Result<Directory, (u32, String)> {
        let mut entries = Vec::new();
        for (number, (place, image)) in images.enumerate() {
            decode_chunk(&image, (file_id, place, number as u32, depth, generation), &mut entries)
                .map_err(|reason| (place, reason))?;
        }
        if entries.len() != 1 << depth {
            return Err((0, format!("a directory of {} entries and depth {depth}", entries.len())));
        }
        Ok(Directory { depth, entries })
    }
}

/// A page of the directory.
pub(crate) struct Chunk<'a> {
    number: u32,
    depth: u8,
    entries: &'a [u32],
}

impl PageImage for Chunk<'_> {
    fn encode(&self, image: &mut [u8], file_id: u64, place: u32, generation: u32) {
        image.fill(0);
        image[..4].copy_from_slice(&MAGIC.to_le_bytes());
        image[8..16].copy_from_slice(&file_id.to_le_bytes());
        image[16..20].copy_from_slice(&place.to_le_bytes());
        image[20..24].copy_from_slice(&self.number.to_le_bytes());
        image[24..26].copy_from_slice(&(self.entries.len() as u16).to_le_bytes());
        image[26] = self.depth;
        image[28..CHUNK_HEADER_BYTES].copy_from_slice(&generation.to_le_bytes());
        for (bytes, entry) in image[CHUNK_HEADER_BYTES..].as_chunks_mut::<4>().0.iter_mut().zip(self.entries)
        {
            *bytes = entry.to_le_bytes();
        }
        let checksum = crc32c(0, &image[8..PAGE_BYTES]);
        image[4..8].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// Checks a page of the directory and takes its entries; `expected` are file, page, part, depth and generation.
fn decode_chunk(
    image: &[u8],
    expected: (u64, u32, u32, u8, u32),
    entries: &mut Vec<u32>,
) -> Result<(), String> {
    let u32_at = |at: usize| u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]]);
    if u32_at(0) != MAGIC {
        return Err(format!("magic {:#010x} instead of {MAGIC:#010x}", u32_at(0)));
    }
    let (stored, computed) = (u32_at(4), crc32c(0, &image[8..PAGE_BYTES]));
    if stored != computed {
        return Err(format!("checksum {stored:#010x} stored, {computed:#010x} computed"));
    }
    let file = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
    let found = (file, u32_at(16), u32_at(20), image[26], u32_at(28));
    if found != expected {
        return Err(format!("(file, page, part, depth, checkpoint) is {found:x?}, expected {expected:x?}"));
    }
    let count = usize::from(u16::from_le_bytes([image[24], image[25]]));
    if count > CHUNK_ENTRIES {
        return Err(format!("{count} entries, at most {CHUNK_ENTRIES} fit"));
    }
    let stored = image[CHUNK_HEADER_BYTES..].as_chunks::<4>().0.iter().take(count);
    entries.extend(stored.map(|bytes| u32::from_le_bytes(*bytes)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown() -> Directory {
        let mut directory = Directory::of_one(0);
        directory.split(0, 0, 1);
        directory.split(0x8000_0000, 1, 2);
        directory.split(0xC000_0000, 2, 3);
        directory.split(0, 1, 4);
        directory
    }

    #[test]
    fn splits_give_the_second_half_to_the_new_page() {
        let directory = grown();
        assert_eq!(directory.entries, [0, 0, 4, 4, 1, 1, 2, 3]);
        assert_eq!(directory.find(0), 0);
        assert_eq!(directory.find(u64::MAX), 3);
        assert_eq!(directory.find(0x4000_0000_0000_0000), 4);
        let extents = directory.extents().unwrap();
        let shown: Vec<_> = extents.iter().map(|e| (e.entry, e.depth, e.prefix >> 24)).collect();
        assert_eq!(shown, [(0, 2, 0), (4, 2, 0x40), (1, 2, 0x80), (2, 3, 0xC0), (3, 3, 0xE0)]);
    }

    #[test]
    fn entries_that_are_no_directory_are_refused() {
        let of = |entries: &[u32]| Directory { depth: 2, entries: entries.to_vec() }.extents();
        assert!(of(&[1, 1, 1, 2]).is_none());
        assert!(of(&[1, 2, 2, 3]).is_none());
        assert!(of(&[1, 1, 2, 3]).is_some());
    }

    #[test]
    fn images_are_read_back_and_damage_is_named() {
        let mut directory = grown();
        let mut next = 5;
        while directory.len() < 4096 {
            let extent = *directory.extents().unwrap().iter().min_by_key(|extent| extent.depth).unwrap();
            directory.split(extent.prefix, extent.depth, next);
            next += 1;
        }
        let images: Vec<(u32, Vec<u8>)> = directory
            .chunks()
            .enumerate()
            .map(|(n, chunk)| {
                let mut image = vec![0; PAGE_BYTES];
                chunk.encode(&mut image, 8, 100 + n as u32, 6);
                (100 + n as u32, image)
            })
            .collect();
        assert_eq!(images.len(), Directory::chunk_count(directory.depth()).unwrap());
        let read = |images: &[(u32, Vec<u8>)]| {
            Directory::from_chunks(
                directory.depth(),
                8,
                6,
                images.iter().map(|(place, image)| (*place, &image[..])),
            )
        };
        assert_eq!(read(&images).unwrap(), directory);
        assert!(read(&images[1..]).is_err() && read(&images[..1]).is_err());
        for at in [0, 5, 9, 17, 21, 24, 26, 28, 40, 4000] {
            let mut bad = images.clone();
            bad[1].1[at] ^= 0x10;
            assert_eq!(read(&bad).unwrap_err().0, 101, "byte {at}");
        }
    }
}
