//! The index file: pages at places, and which places are free.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use lsfs::Env;
use lsfs::codec::crc32c;
use lsfs::io::{AlignedBuf, File, FileMap, MapAdvice, OpenMode, WriteSync};

use super::page::{ExpectedPage, PAGE_BYTES, Page};
use crate::error::{Error, Result};

/// Names of index files: this, then 16 hexadecimal digits of the file's id.
const NAME_PREFIX: &str = "index-";
const MAGIC: [u8; 8] = *b"KVSindex";
const VERSION: u32 = 1;
/// Pages of one write.
const RUN_PAGES: usize = 64;

/// An open index file.
///
/// Pages are written around the page cache and read through it: writing drops what the cache has of them, and none is
/// read while it is written, since it is in memory then.
#[derive(Debug)]
pub(crate) struct PageFile {
    pub(crate) id: u64,
    file: Arc<dyn File>,
    /// The file in memory, as long as it was at some time.
    map: RwLock<Option<Box<dyn FileMap>>>,
}

impl PageFile {
    /// Creates a file with a new id; its name is durable when the checkpoint that first names it is.
    pub(crate) fn create(env: &Env, dir: &Path) -> Result<PageFile> {
        let id = env.runtime.random();
        let path = path_of(dir, id);
        let error = |error| Error::io("create", &path, PAGE_BYTES as u64, error);
        let file = env.disk.open(&path, OpenMode::CreateNew, PAGE_BYTES).map_err(error)?;
        let mut image = AlignedBuf::zeroed(PAGE_BYTES);
        encode_header(&mut image, id);
        file.write_all_at(&image, 0, WriteSync::Later).map_err(error)?;
        Ok(PageFile { id, file, map: RwLock::default() })
    }

    /// Opens the file with this id.
    pub(crate) fn open(env: &Env, dir: &Path, id: u64, mode: OpenMode) -> Result<PageFile> {
        let path = path_of(dir, id);
        let file = env.disk.open(&path, mode, PAGE_BYTES);
        let file = file.map_err(|error| damaged(&path, 0, format!("it cannot be opened: {error}")))?;
        let file = PageFile { id, file, map: RwLock::default() };
        let image = file.read_image(0)?;
        check_header(&image, id).map_err(|reason| file.damaged(0, reason))?;
        Ok(file)
    }

    /// Reads a page.
    pub(crate) fn read(&self, expected: &ExpectedPage) -> Result<Page> {
        let mut image = [0; PAGE_BYTES];
        if self.read_mapped(expected.place, &mut image)
            && let Ok(page) = Page::decode(&image, expected)
        {
            return Ok(page);
        }
        let image = self.read_image(expected.place)?;
        Page::decode(&image, expected).map_err(|fault| self.damaged(expected.place, fault))
    }

    /// Reads a page through the page cache; `false` if the file cannot be mapped as far as that.
    fn read_mapped(&self, place: u32, image: &mut [u8; PAGE_BYTES]) -> bool {
        let position = position_of(place);
        // A file that was cut by a foreign hand must not be touched through a mapping.
        if self.file.len().is_ok_and(|len| position + PAGE_BYTES as u64 > len) {
            return false;
        }
        let read = |map: &Option<Box<dyn FileMap>>, image: &mut [u8; PAGE_BYTES]| {
            map.as_ref().is_some_and(|map| map.read(position, image).is_ok())
        };
        if read(&self.map.read().unwrap_or_else(PoisonError::into_inner), image) {
            return true;
        }
        // It has grown since, or was not mapped yet.
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let newer = self.file.len().and_then(|len| self.file.map(len));
        if let Ok(newer) = newer {
            newer.advise(MapAdvice::Random);
            *map = Some(newer);
        }
        read(&map, image)
    }

    pub(super) fn read_image(&self, place: u32) -> Result<AlignedBuf> {
        let mut image = AlignedBuf::zeroed(PAGE_BYTES);
        let count = self.file.read_full_at(&mut image, position_of(place));
        let count = count.map_err(|error| self.damaged(place, format!("it cannot be read: {error}")))?;
        if count < PAGE_BYTES {
            return Err(self.damaged(place, format!("the file has {count} of its {PAGE_BYTES} bytes")));
        }
        Ok(image)
    }

    pub(super) fn damaged(&self, place: u32, reason: impl ToString) -> Error {
        damaged(self.file.path(), place, reason)
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Writes images at their places; neighbours in one write. Not durable before [`PageFile::sync`].
    pub(crate) fn write(&self, pages: &mut [(u32, &dyn PageImage)], generation: u32) -> Result<()> {
        pages.sort_by_key(|&(place, _)| place);
        let mut rest = &pages[..];
        let mut buf = AlignedBuf::zeroed(RUN_PAGES.min(pages.len()) * PAGE_BYTES);
        while let Some(&(first, _)) = rest.first() {
            let follows = |&(n, &(place, _)): &(usize, &(u32, _))| place as usize == first as usize + n;
            let run = rest.iter().enumerate().take(RUN_PAGES).take_while(follows).count();
            for (&(place, page), image) in rest[..run].iter().zip(buf.chunks_exact_mut(PAGE_BYTES)) {
                page.encode(image, self.id, place, generation);
            }
            let bytes = &buf[..run * PAGE_BYTES];
            self.file
                .write_all_at(bytes, position_of(first), WriteSync::Later)
                .map_err(|error| Error::io("write", self.file.path(), bytes.len() as u64, error))?;
            rest = &rest[run..];
        }
        Ok(())
    }

    /// Makes everything written durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|error| Error::io("sync", self.file.path(), 0, error))
    }

    /// Gives the space of places back to the file system; they read as zeros, which is no page.
    pub(super) fn release(&self, places: &[Range<u32>]) -> Result<()> {
        for range in places {
            let bytes = position_of(range.start)..position_of(range.end);
            let count = bytes.end - bytes.start;
            self.file
                .release(bytes)
                .map_err(|error| Error::io("give back space of", self.file.path(), count, error))?;
        }
        Ok(())
    }

    pub(crate) fn len_bytes(&self) -> Result<u64> {
        self.file.len().map_err(|error| Error::io("measure", self.file.path(), 0, error))
    }
}

/// The error for a page that does not verify or cannot be read: the index is derived, so it is no error of the store.
fn damaged(path: &Path, page: u32, reason: impl ToString) -> Error {
    Error::IndexDamaged { path: path.to_path_buf(), page, reason: reason.to_string() }
}

/// What can be written to a place.
pub(crate) trait PageImage {
    /// Fills an image of [`PAGE_BYTES`] bytes.
    fn encode(&self, image: &mut [u8], file_id: u64, place: u32, generation: u32);
}

impl PageImage for Page {
    fn encode(&self, image: &mut [u8], file_id: u64, place: u32, generation: u32) {
        Page::encode(self, image, file_id, place, generation);
    }
}

fn path_of(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{NAME_PREFIX}{id:016x}"))
}

/// Whether a file name is that of an index file.
pub(crate) fn is_index_file(name: &str) -> bool {
    name.strip_prefix(NAME_PREFIX)
        .is_some_and(|id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Removes the index files of `dir` but the one with the id `keep`.
pub(crate) fn remove_others(env: &Env, dir: &Path, keep: Option<u64>) -> Result<()> {
    let kept = keep.map(|id| path_of(dir, id));
    for entry in env.disk.list(dir).map_err(|error| Error::io("list", dir, 0, error))? {
        let path = dir.join(&entry.name);
        if is_index_file(&entry.name) && Some(&path) != kept.as_ref() {
            match env.disk.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path, 0, error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn position_of(place: u32) -> u64 {
    u64::from(place) * PAGE_BYTES as u64
}

/// Writes the file header into the image of place 0.
pub(crate) fn encode_header(image: &mut [u8], id: u64) {
    image[..8].copy_from_slice(&MAGIC);
    image[8..12].copy_from_slice(&VERSION.to_le_bytes());
    image[16..24].copy_from_slice(&id.to_le_bytes());
    let checksum = crc32c(0, &image[16..24]);
    image[12..16].copy_from_slice(&checksum.to_le_bytes());
}

fn check_header(image: &[u8], id: u64) -> Result<(), String> {
    let u32_at = |at: usize| u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]]);
    if image[..8] != MAGIC {
        return Err(format!("magic {:02x?} instead of {:02x?}", &image[..8], MAGIC));
    }
    if u32_at(8) != VERSION {
        return Err(format!("format version {}, this program knows version {VERSION}", u32_at(8)));
    }
    let (stored, computed) = (u32_at(12), crc32c(0, &image[16..24]));
    if stored != computed {
        return Err(format!("checksum {stored:#010x} stored, {computed:#010x} computed"));
    }
    let found = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
    if found != id { Err(format!("file id {found:016x}, expected {id:016x}")) } else { Ok(()) }
}

/// So many free places keep their space, ...
pub(crate) const FREE_PLACES_MAX: usize = 64;
/// ... and this part of the places that are in use: they will be used again.
const FREE_PART: usize = 16;
/// A file is not more times as long as what a checkpoint uses of it.
const FILE_TIMES_MAX: usize = 4;

/// Who uses a place.
const CURRENT: u8 = 1;
const CHECKPOINT: u8 = 2;
const PENDING: u8 = 4;
/// Nobody's, but not to be given out: its space is being given back.
const WITHHELD: u8 = 8;
/// Free, and its space was given back.
const RELEASED: u8 = 16;

/// Which places of the file are in use, and by what.
///
/// **Invariant.** A place that the last durable checkpoint or the one being written uses is never given out, and its space
/// is never given back. While the space of a place is given back, nobody gets the place.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Users of each place; place 0 is the file header.
    users: Vec<u8>,
    free: Vec<u32>,
    /// How many were given back.
    released: usize,
}

impl Places {
    pub(crate) fn new() -> Places {
        Places { users: vec![CURRENT], ..Places::default() }
    }

    /// Makes the table from the places of a checkpoint: those of pages, which are also the present ones, and those
    /// of the directory, in a file of so many places. `None` if a place occurs twice.
    pub(crate) fn of_checkpoint(pages: &[u32], directory: &[u32], file_places: u64) -> Option<Places> {
        let end = pages.iter().chain(directory).max().map_or(1, |&last| last as usize + 1);
        // Behind them the file may have free places that take space. One much longer was not made so by us.
        let file_places = usize::try_from(file_places).unwrap_or(usize::MAX);
        let mut users = vec![0; file_places.clamp(end, FILE_TIMES_MAX * end + FREE_PLACES_MAX)];
        users[0] = CURRENT;
        let marked = pages.iter().map(|&page| (page, CURRENT | CHECKPOINT));
        for (place, user) in marked.chain(directory.iter().map(|&place| (place, CHECKPOINT))) {
            let slot = &mut users[place as usize];
            if *slot != 0 {
                return None;
            }
            *slot = user;
        }
        let mut places = Places { users, ..Places::default() };
        places.collect_free();
        Some(places)
    }

    /// Lowest places last, so that they are given out first and in order; those without space when there are no others.
    fn collect_free(&mut self) {
        let free = |like: u8| {
            let places = self.users.iter().enumerate().rev();
            places.filter(move |&(_, &users)| users == like).map(|(place, _)| place as u32)
        };
        self.free = free(RELEASED).chain(free(0)).collect();
    }

    fn take(&mut self, user: u8) -> u32 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.users.push(0);
            u32::try_from(self.users.len() - 1).expect("an index file has at most 2^32 pages")
        });
        let users = &mut self.users[place as usize];
        self.released -= usize::from(*users & RELEASED != 0);
        *users = user;
        place
    }

    /// A place for a page of the present index.
    pub(crate) fn take_current(&mut self) -> u32 {
        self.take(CURRENT)
    }

    /// A place for a page of the directory of the checkpoint that is being made.
    pub(crate) fn take_pending(&mut self) -> u32 {
        self.take(PENDING)
    }

    /// The present index does not use this place any more.
    pub(crate) fn leave(&mut self, place: u32) {
        let users = &mut self.users[place as usize];
        *users &= !CURRENT;
        if *users == 0 {
            self.free.push(place);
        }
    }

    /// The checkpoint that is being made uses the place.
    pub(crate) fn hold(&mut self, place: u32) {
        self.users[place as usize] |= PENDING;
    }

    /// The checkpoint that was being made is durable: the one before gives up its places.
    pub(crate) fn checkpoint_done(&mut self) {
        for users in &mut self.users {
            let is_pending = *users & PENDING != 0;
            *users = (*users & (CURRENT | WITHHELD | RELEASED)) | if is_pending { CHECKPOINT } else { 0 };
        }
        self.collect_free();
    }

    /// Takes out the free places whose space can be given back, in stretches of at least `least` places, if there are so
    /// many that it is worth it. Nobody gets them until [`Places::give_back`].
    pub(crate) fn withhold_free(&mut self, least: usize) -> Vec<Range<u32>> {
        let is_held = |&users: &u8| users != 0;
        let idle = self.users.len() - self.users.iter().filter(|users| is_held(users)).count();
        if idle <= FREE_PLACES_MAX + (self.users.len() - self.released - idle) / FREE_PART {
            return Vec::new();
        }
        let mut at = 0;
        let mut stretches = Vec::new();
        for stretch in self.users.chunk_by(|one, next| is_held(one) == is_held(next)) {
            let range = at..at + stretch.len();
            at = range.end;
            if stretch[0] == 0 && range.len() >= least {
                stretches.push(range);
            }
        }
        for range in &stretches {
            self.users[range.clone()].fill(WITHHELD);
        }
        self.collect_free();
        stretches.into_iter().map(|range| range.start as u32..range.end as u32).collect()
    }

    /// Places that were withheld are free again, with or without their space.
    pub(crate) fn give_back(&mut self, withheld: &[Range<u32>], is_released: bool) {
        for range in withheld {
            let range = range.start as usize..range.end as usize;
            self.users[range.clone()].fill(if is_released { RELEASED } else { 0 });
            self.released += if is_released { range.len() } else { 0 };
        }
        self.collect_free();
    }

    /// How many places take space.
    pub(crate) fn with_space(&self) -> usize {
        self.users.len() - self.released
    }

    /// How many of them are free, and not being given back.
    pub(crate) fn free_with_space(&self) -> usize {
        self.free.len().saturating_sub(self.released)
    }

    /// The checkpoint that was being made has failed.
    pub(crate) fn checkpoint_failed(&mut self) {
        self.users.iter_mut().for_each(|users| *users &= !PENDING);
        self.collect_free();
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    #[test]
    fn places_of_a_checkpoint_are_kept_until_the_next_is_durable() {
        let mut places = Places::new();
        let (one, two) = (places.take_current(), places.take_current());
        assert_eq!((one, two), (1, 2));
        places.hold(one);
        places.hold(two);
        let directory = places.take_pending();
        // The page at `one` changes while the checkpoint is written.
        places.leave(one);
        assert_eq!(places.take_current(), 4);
        places.checkpoint_done();
        assert_eq!(places.take_current(), 5, "1 belongs to the checkpoint");
        places.leave(two);
        places.hold(4);
        places.hold(5);
        assert_eq!(places.take_pending(), 6);
        places.checkpoint_done();
        let mut given = [places.take_current(), places.take_current(), places.take_current()];
        given.sort_unstable();
        assert_eq!(given, [one, two, directory]);
    }

    #[test]
    fn a_failed_checkpoint_leaves_the_one_before() {
        let mut places = Places::of_checkpoint(&[1, 3], &[2], 4).unwrap();
        places.leave(1);
        let new = places.take_current();
        assert_eq!(new, 4);
        places.hold(3);
        places.hold(new);
        places.take_pending();
        places.checkpoint_failed();
        assert_eq!(places.take_current(), 5, "only the directory's place was given back");
    }

    #[test]
    fn a_place_has_one_owner() {
        assert!(Places::of_checkpoint(&[1, 1], &[], 2).is_none());
        assert!(Places::of_checkpoint(&[1], &[1], 2).is_none());
        assert!(Places::of_checkpoint(&[0], &[], 1).is_none(), "the file header");
    }

    #[test]
    fn space_is_given_back_only_of_free_places_and_nobody_gets_them_meanwhile() {
        let mut places = Places::of_checkpoint(&[1, 200], &[150], 1_000).unwrap();
        assert_eq!(places.with_space(), 868, "a file that is much longer is not ours");
        assert_eq!(places.take_current(), 2);
        let withheld = places.withhold_free(60);
        assert_eq!(withheld, [3..150, 201..868], "and not 151..200");
        assert_eq!(places.take_current(), 151);
        // A checkpoint meanwhile takes none of them, either.
        [1, 2, 151, 200].into_iter().for_each(|place| places.hold(place));
        assert_eq!(places.take_pending(), 152);
        places.checkpoint_done();
        assert_eq!(places.take_current(), 150, "of the directory before");
        places.give_back(&withheld, true);
        assert_eq!(places.with_space(), 868 - 147 - 667);
        assert_eq!(places.withhold_free(1), [], "little is left");
        let taken: Vec<u32> = (0..49).map(|_| places.take_current()).collect();
        assert!(taken.into_iter().eq((153..200).chain([3, 4])), "those without space come last");
        assert_eq!(places.with_space(), 868 - 147 - 667 + 2);
    }

    #[test]
    fn space_that_could_not_be_given_back_is_used_again() {
        let mut places = Places::of_checkpoint(&[1], &[2], 300).unwrap();
        let withheld = places.withhold_free(1);
        assert_eq!(withheld, slice::from_ref(&(3..76)));
        places.give_back(&withheld, false);
        assert_eq!((places.with_space(), places.take_current()), (76, 3));
        assert_eq!(places.withhold_free(1), slice::from_ref(&(4..76)));
    }

    #[test]
    fn headers_are_checked_in_order() {
        let mut image = [0; PAGE_BYTES];
        encode_header(&mut image, 5);
        assert_eq!(check_header(&image, 5), Ok(()));
        for (at, part) in [(0, "magic"), (8, "version"), (13, "checksum"), (17, "checksum")] {
            let mut bad = image;
            bad[at] ^= 1;
            assert!(check_header(&bad, 5).unwrap_err().contains(part), "byte {at}");
        }
        assert!(check_header(&image, 6).unwrap_err().contains("file id"));
    }
}
