//! The index: from the hash of a key to the addresses at which the log may hold it.
//!
//! The principal type is [`Index`]: a [`Directory`](directory::Directory) of [`Page`](page::Page)s in an index file,
//! behind a cache with a budget. It knows no keys and no log: its user compares the keys, and answers the hash of the
//! key at an address when a split needs it.
//!
//! **Invariants.** The pages of the last durable checkpoint are never overwritten. A page that is not in memory is at
//! its place in the file. What a [`Checkpoint`] holds does not change any more.

mod directory;
mod file;
mod hash;
mod page;

use std::hint::black_box;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lsfs::Env;
use lsfs::io::OpenMode;
use smallvec::SmallVec;

use self::directory::Directory;
pub(crate) use self::file::{FREE_PLACES_MAX, is_index_file};
use self::file::{PageFile, PageImage, Places};
pub(crate) use self::hash::KeyHasher;
pub(crate) use self::page::{ADDRESS_BITS, Candidates, PAGE_BYTES};
use self::page::{DEPTH_MAX, ExpectedPage, Page};
use crate::error::{Error, Result};

/// Pages that are looked at under one lock for obsolete addresses.
const SWEPT_PAGES: u32 = 64;
/// Pages that are in memory whatever the budget says.
const CACHED_PAGES_MIN: usize = 16;

/// What a checkpoint keeps of the index: enough to open it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IndexRoot {
    pub(crate) file_id: u64,
    pub(crate) hash_seed: u64,
    pub(crate) depth: u8,
    /// Number of the checkpoint; grows.
    pub(crate) generation: u32,
    /// Places of the directory's pages.
    pub(crate) directory: Vec<u32>,
}

/// The index of a store that is open for writing.
#[derive(Debug)]
pub(crate) struct Index {
    file: Arc<PageFile>,
    hasher: KeyHasher,
    directory: Directory,
    pages: Vec<PageEntry>,
    places: Places,
    cache: CacheState,
    /// Addresses that mean nothing, in order; pages that are in the file as they were opened may have some.
    obsolete: Vec<Range<u64>>,
    /// How many of them were taken out of pages.
    removed_obsolete: u64,
    /// Of the next checkpoint, and of the one that was opened.
    generation: u32,
    opened_generation: u32,
}

#[derive(Debug)]
struct CacheState {
    budget_pages: usize,
    resident: usize,
    dirty: usize,
    /// The page that is looked at next when one must go.
    hand: usize,
}

/// A page, wherever it is.
#[derive(Debug)]
struct PageEntry {
    resident: Option<Arc<Page>>,
    /// Where the file has the page as it is now; `None` if it was changed since.
    place: Option<u32>,
    /// `place` is that of the checkpoint that was opened.
    is_as_opened: bool,
    /// Used since the hand came by.
    used: AtomicBool,
    depth: u8,
    /// Slots of the page, if it is in memory: here a look-up finds it without another line of memory.
    len: u16,
    prefix: u32,
}

impl PageEntry {
    fn new_dirty(page: Page) -> PageEntry {
        PageEntry {
            depth: page.depth(),
            len: page.len() as u16,
            prefix: page.prefix(),
            resident: Some(Arc::new(page)),
            place: None,
            is_as_opened: false,
            used: AtomicBool::new(true),
        }
    }
}

/// The index at one moment, to be written without holding it up.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    file: Arc<PageFile>,
    hash_seed: u64,
    generation: u32,
    /// Places instead of pages.
    directory: Directory,
    directory_places: Vec<u32>,
    frozen: Vec<Frozen>,
}

/// Places of the index file that nobody uses.
#[derive(Debug)]
pub(crate) struct FreeSpace {
    file: Arc<PageFile>,
    places: Vec<Range<u32>>,
}

impl FreeSpace {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Gives their space back to the file system.
    pub(crate) fn release(&self) -> Result<()> {
        self.file.release(&self.places)
    }
}

#[derive(Debug)]
struct Frozen {
    number: u32,
    place: u32,
    page: Arc<Page>,
}

/// Counts of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexStats {
    pub(crate) pages: usize,
    pub(crate) resident_pages: usize,
    pub(crate) dirty_pages: usize,
    pub(crate) memory_bytes: usize,
    /// Pages of the file that take space.
    pub(crate) file_pages: usize,
    /// Of these, pages that are free.
    pub(crate) free_pages: usize,
}

impl Index {
    /// An empty index in a new file, for keys that are hashed like this.
    pub(crate) fn create(env: &Env, dir: &Path, budget_bytes: usize, hasher: KeyHasher) -> Result<Index> {
        let file = Arc::new(PageFile::create(env, dir)?);
        Ok(Index {
            file,
            hasher,
            directory: Directory::of_one(0),
            pages: vec![PageEntry::new_dirty(Page::empty(0, 0))],
            places: Places::new(),
            cache: CacheState { budget_pages: budget_pages(budget_bytes), resident: 1, dirty: 1, hand: 0 },
            obsolete: Vec::new(),
            removed_obsolete: 0,
            generation: 1,
            opened_generation: 0,
        })
    }

    /// The index of a checkpoint. Reads the directory, and no page.
    pub(crate) fn open(
        env: &Env,
        dir: &Path,
        root: &IndexRoot,
        budget_bytes: usize,
        mode: OpenMode,
    ) -> Result<Index> {
        let file = Arc::new(PageFile::open(env, dir, root.file_id, mode)?);
        let damaged = |place, reason: String| file.damaged(place, reason);
        if Directory::chunk_count(root.depth) != Some(root.directory.len()) {
            let parts = root.directory.len();
            return Err(damaged(0, format!("a directory of depth {} in {parts} pages", root.depth)));
        }
        let mut images = Vec::with_capacity(root.directory.len());
        for &place in &root.directory {
            images.push((place, file.read_image(place)?));
        }
        let by_place = Directory::from_chunks(root.depth, root.file_id, root.generation, images.into_iter())
            .map_err(|(place, reason)| damaged(place, reason))?;
        let extents =
            by_place.extents().ok_or_else(|| damaged(root.directory[0], "pages overlap".to_string()))?;
        let page_places: Vec<u32> = extents.iter().map(|extent| extent.entry).collect();
        let file_pages = file.len_bytes()? / PAGE_BYTES as u64;
        if page_places.iter().any(|&place| u64::from(place) >= file_pages) {
            return Err(damaged(0, format!("it has {file_pages} pages, the directory names more")));
        }
        let places = Places::of_checkpoint(&page_places, &root.directory, file_pages)
            .ok_or_else(|| damaged(0, "one page is named twice".to_string()))?;
        let directory = Directory::numbered(&extents, root.depth);
        let pages = extents
            .iter()
            .map(|extent| PageEntry {
                resident: None,
                place: Some(extent.entry),
                is_as_opened: true,
                used: AtomicBool::new(false),
                depth: extent.depth,
                len: 0,
                prefix: extent.prefix,
            })
            .collect();
        Ok(Index {
            file,
            hasher: KeyHasher { seed: root.hash_seed },
            directory,
            pages,
            places,
            cache: CacheState { budget_pages: budget_pages(budget_bytes), resident: 0, dirty: 0, hand: 0 },
            obsolete: Vec::new(),
            removed_obsolete: 0,
            generation: root.generation.saturating_add(1),
            opened_generation: root.generation,
        })
    }

    /// The id of its file: another one when the index is made anew.
    pub(crate) fn file_id(&self) -> u64 {
        self.file.id
    }

    /// Whether this is its file.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        self.file.path() == path
    }

    /// How keys are hashed for this index.
    pub(crate) fn hasher(&self) -> KeyHasher {
        self.hasher
    }

    /// Touches the memory in which a look-up under a hash looks, as far as it is there. Nothing depends on what is read,
    /// so the processor goes on to the next hash meanwhile.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        let entry = &self.pages[self.directory.find(hash) as usize];
        if let Some(page) = &entry.resident {
            page.touch(hash, entry.depth, entry.len);
        }
    }

    /// As [`Index::prefetch`], also for what a change needs besides.
    #[inline]
    pub(crate) fn prefetch_for_change(&self, hash: u64) {
        let entry = &self.pages[self.directory.find(hash) as usize];
        if let Some(page) = &entry.resident {
            page.touch(hash, entry.depth, entry.len);
            page.touch_head();
            black_box(Arc::strong_count(page));
        }
    }

    /// The addresses that may hold the key; `None` if the page is not in memory ([`Index::load`]).
    #[inline]
    pub(crate) fn candidates(&self, hash: u64) -> Option<Candidates<'_>> {
        let entry = &self.pages[self.directory.find(hash) as usize];
        let page = entry.resident.as_ref()?;
        // A store only if it changes something: readers on other processors have the line too.
        if !entry.used.load(Ordering::Relaxed) {
            entry.used.store(true, Ordering::Relaxed);
        }
        Some(page.candidates(hash, entry.depth, entry.len))
    }

    /// The addresses that may hold the key; reads the page if necessary.
    pub(crate) fn load_candidates(&mut self, hash: u64) -> Result<SmallVec<[u64; 4]>> {
        self.load(self.directory.find(hash))?;
        Ok(self.candidates(hash).expect("just read").collect())
    }

    /// Adds an address. `rehash` answers the hash of the key at an address.
    pub(crate) fn insert(
        &mut self,
        hash: u64,
        address: u64,
        rehash: &mut dyn FnMut(u64) -> Result<u64>,
    ) -> Result<()> {
        self.prepare(hash, rehash)?;
        self.change(self.directory.find(hash), |page| page.insert(hash, address));
        Ok(())
    }

    /// Makes room for an insert under this hash, in memory.
    fn prepare(&mut self, hash: u64, rehash: &mut dyn FnMut(u64) -> Result<u64>) -> Result<()> {
        loop {
            let number = self.directory.find(hash);
            if !self.load(number)?.is_full() {
                return Ok(());
            }
            self.split(number, rehash)?;
        }
    }

    /// Changes the address of a key; `false` if the index does not have the old one.
    pub(crate) fn replace(&mut self, hash: u64, old: u64, new: u64) -> Result<bool> {
        let number = self.directory.find(hash);
        let Some(at) = self.load(number)?.position(hash, old) else { return Ok(false) };
        self.change(number, |page| page.replace_at(at, hash, new));
        Ok(true)
    }

    /// Removes an address; `false` if the index does not have it.
    pub(crate) fn remove(&mut self, hash: u64, address: u64) -> Result<bool> {
        let number = self.directory.find(hash);
        let Some(at) = self.load(number)?.position(hash, address) else { return Ok(false) };
        self.change(number, |page| page.remove_at(at));
        Ok(true)
    }

    /// Says that addresses in these ranges mean nothing: no look-up finds them from now on. The index was just opened.
    pub(crate) fn make_obsolete(&mut self, mut addresses: Vec<Range<u64>>) {
        addresses.sort_by_key(|range| range.start);
        self.obsolete = addresses;
    }

    /// Whether pages may have obsolete addresses.
    pub(crate) fn has_obsolete(&self) -> bool {
        !self.obsolete.is_empty()
    }

    /// Takes obsolete addresses out of some pages from `number` on; answers where to go on, and at the end how many there
    /// were in all pages.
    pub(crate) fn remove_obsolete(&mut self, number: u32) -> Result<ControlFlow<u64, u32>> {
        let end = self.pages.len() as u32;
        let next = number.saturating_add(SWEPT_PAGES).min(end);
        for number in number..next {
            if self.pages[number as usize].is_as_opened {
                self.load(number)?;
            }
        }
        if next < end {
            return Ok(ControlFlow::Continue(next));
        }
        self.obsolete = Vec::new();
        Ok(ControlFlow::Break(std::mem::take(&mut self.removed_obsolete)))
    }

    /// Reads all pages, also those that are in memory, and counts their slots; what does not verify goes to `damaged`.
    pub(crate) fn count_slots(&mut self, mut damaged: impl FnMut(Error)) -> Result<u64> {
        let mut slots = 0;
        for number in 0..self.pages.len() as u32 {
            if let PageEntry { resident: Some(page), place: Some(place), .. } = &self.pages[number as usize]
                // A page that a checkpoint holds may not be written yet.
                && Arc::strong_count(page) == 1
                && let Err(error) = self.read(number, *place)
            {
                damaged(error);
            }
            match self.load(number) {
                Ok(page) => slots += page.len() as u64,
                Err(error @ Error::IndexDamaged { .. }) => damaged(error),
                Err(error) => return Err(error),
            }
        }
        Ok(slots)
    }

    /// The error for an index that contradicts the log.
    pub(crate) fn damaged(&self, reason: String) -> Error {
        self.file.damaged(0, reason)
    }

    pub(crate) fn stats(&self) -> IndexStats {
        IndexStats {
            pages: self.pages.len(),
            resident_pages: self.cache.resident,
            dirty_pages: self.cache.dirty,
            memory_bytes: self.cache.resident * PAGE_BYTES
                + self.pages.len() * size_of::<PageEntry>()
                + self.directory.len() * 4,
            file_pages: self.places.with_space(),
            free_pages: self.places.free_with_space(),
        }
    }

    /// Reads a page that the file has at this place.
    fn read(&self, number: u32, place: u32) -> Result<Page> {
        let entry = &self.pages[number as usize];
        self.file.read(&ExpectedPage {
            file_id: self.file.id,
            place,
            depth: entry.depth,
            prefix: entry.prefix,
            generation_max: if entry.is_as_opened { self.opened_generation } else { u32::MAX },
        })
    }

    /// The page, read if it is not in memory.
    fn load(&mut self, number: u32) -> Result<&Page> {
        let entry = &self.pages[number as usize];
        if entry.resident.is_none() {
            let place = entry.place.expect("a page that is not in memory is in the file");
            let page = self.read(number, place)?;
            self.make_room(number)?;
            let entry = &mut self.pages[number as usize];
            entry.len = page.len() as u16;
            entry.resident = Some(Arc::new(page));
            self.cache.resident += 1;
            if entry.is_as_opened && !self.obsolete.is_empty() {
                self.take_out_obsolete(number);
            }
        }
        let entry = &self.pages[number as usize];
        entry.used.store(true, Ordering::Relaxed);
        Ok(entry.resident.as_ref().expect("just read"))
    }

    /// Takes obsolete addresses out of a page that was just read.
    fn take_out_obsolete(&mut self, number: u32) {
        let obsolete = std::mem::take(&mut self.obsolete);
        let page = self.pages[number as usize].resident.as_ref().expect("the caller has read it");
        let before = page.len();
        if page.has_any(|address| is_within(&obsolete, address)) {
            self.change(number, |page| page.remove_all(|address| is_within(&obsolete, address)));
            self.removed_obsolete += (before - usize::from(self.pages[number as usize].len)) as u64;
        }
        self.obsolete = obsolete;
    }

    /// Changes a page; a checkpoint that holds it keeps it as it was.
    fn change(&mut self, number: u32, change: impl FnOnce(&mut Page)) {
        let entry = &mut self.pages[number as usize];
        if let Some(place) = entry.place.take() {
            entry.is_as_opened = false;
            self.places.leave(place);
            self.cache.dirty += 1;
        }
        let page = Arc::make_mut(entry.resident.as_mut().expect("the caller has loaded it"));
        change(page);
        entry.len = page.len() as u16;
    }

    fn split(&mut self, number: u32, rehash: &mut dyn FnMut(u64) -> Result<u64>) -> Result<()> {
        let page =
            Arc::clone(self.pages[number as usize].resident.as_ref().expect("the caller has loaded it"));
        let (prefix, depth) = (page.prefix(), page.depth());
        let damaged =
            |reason: String| self.file.damaged(self.pages[number as usize].place.unwrap_or(0), reason);
        if depth == DEPTH_MAX {
            return Err(damaged(format!("more than {} keys share {depth} bits of their hash", page.len())));
        }
        let [low, high] = page.split(rehash)?.map_err(|misplaced| {
            damaged(format!("the key at {:#x} does not belong to page {prefix:#010x}", misplaced.address))
        })?;
        drop(page);
        self.make_room(number)?;
        let second = u32::try_from(self.pages.len()).expect("an index has at most 2^32 pages");
        self.change(number, |page| *page = low);
        self.pages[number as usize].depth = depth + 1;
        self.pages.push(PageEntry::new_dirty(high));
        self.cache.resident += 1;
        self.cache.dirty += 1;
        self.directory.split(prefix, depth, second);
        Ok(())
    }

    /// Gives up pages until there is room for one more; never the page `kept`, and none that a checkpoint holds. On a full
    /// disk changed pages stay: then the budget gives way, so that everything can be read, removed and given back.
    fn make_room(&mut self, kept: u32) -> Result<()> {
        let (mut looked_at, mut is_disk_full) = (0, false);
        while self.cache.resident >= self.cache.budget_pages && looked_at < 2 * self.pages.len() {
            looked_at += 1;
            let number = self.cache.hand;
            self.cache.hand = (number + 1) % self.pages.len();
            let entry = &mut self.pages[number];
            let Some(page) = &entry.resident else { continue };
            let is_held = Arc::strong_count(page) > 1 || number == kept as usize;
            if is_held || entry.used.swap(false, Ordering::Relaxed) {
                continue;
            }
            if entry.place.is_none() {
                if is_disk_full {
                    continue;
                }
                let place = self.places.take_current();
                if let Err(error) =
                    self.file.write(&mut [(place, &**page as &dyn PageImage)], self.generation)
                {
                    self.places.leave(place);
                    if !error.is_full() {
                        return Err(error);
                    }
                    is_disk_full = true;
                    continue;
                }
                entry.place = Some(place);
                self.cache.dirty -= 1;
            }
            entry.resident = None;
            self.cache.resident -= 1;
        }
        Ok(())
    }

    /// Freezes the index as it is now. Every checkpoint that was begun must be finished before the next.
    pub(crate) fn begin_checkpoint(&mut self) -> Checkpoint {
        let mut frozen = Vec::new();
        for (number, entry) in self.pages.iter_mut().enumerate() {
            let place = match entry.place {
                Some(place) => place,
                None => {
                    let place = self.places.take_current();
                    let page = Arc::clone(entry.resident.as_ref().expect("a changed page is in memory"));
                    frozen.push(Frozen { number: number as u32, place, page });
                    entry.place = Some(place);
                    place
                }
            };
            self.places.hold(place);
        }
        self.cache.dirty = 0;
        let pages = &self.pages;
        let directory = self.directory.map(|number| pages[number as usize].place.expect("given above"));
        let directory_places = directory.chunks().map(|_| self.places.take_pending()).collect();
        let generation = self.generation;
        self.generation = generation.saturating_add(1);
        Checkpoint {
            file: Arc::clone(&self.file),
            hash_seed: self.hasher.seed,
            generation,
            directory,
            directory_places,
            frozen,
        }
    }

    /// The root of the checkpoint is durable: it is the last one now.
    pub(crate) fn checkpoint_done(&mut self, checkpoint: Checkpoint) {
        drop(checkpoint);
        self.places.checkpoint_done();
    }

    /// The checkpoint was not written: its pages are in memory only.
    pub(crate) fn checkpoint_failed(&mut self, checkpoint: Checkpoint) {
        for frozen in &checkpoint.frozen {
            let entry = &mut self.pages[frozen.number as usize];
            if entry.place == Some(frozen.place) {
                entry.place = None;
                self.cache.dirty += 1;
                self.places.leave(frozen.place);
            }
        }
        self.places.checkpoint_failed();
    }

    /// Takes out the free places of the file, to give their space back, in stretches of at least `least` pages; if there
    /// are too few to be worth it, there is nothing in it. Nobody gets such a place before [`Index::given_back`].
    pub(crate) fn withhold_free(&mut self, least: usize) -> FreeSpace {
        FreeSpace { file: Arc::clone(&self.file), places: self.places.withhold_free(least) }
    }

    /// The space was given back, or could not be.
    pub(crate) fn given_back(&mut self, space: &FreeSpace, is_released: bool) {
        // If the index was made anew meanwhile, the file is on its way out.
        if Arc::ptr_eq(&space.file, &self.file) {
            self.places.give_back(&space.places, is_released);
        }
    }

    /// Removes all index files of `dir`.
    pub(crate) fn remove_files(env: &Env, dir: &Path) -> Result<()> {
        file::remove_others(env, dir, None)
    }

    /// Removes the index files of `dir` that are not this index's.
    pub(crate) fn remove_other_files(&self, env: &Env, dir: &Path) -> Result<()> {
        file::remove_others(env, dir, Some(self.file.id))
    }
}

impl Checkpoint {
    /// How many pages it writes.
    pub(crate) fn dirty_pages(&self) -> usize {
        self.frozen.len()
    }

    /// What must be made durable when [`Checkpoint::write`] has returned.
    pub(crate) fn root(&self) -> IndexRoot {
        IndexRoot {
            file_id: self.file.id,
            hash_seed: self.hash_seed,
            depth: self.directory.depth(),
            generation: self.generation,
            directory: self.directory_places.clone(),
        }
    }

    /// Writes pages and directory, and makes them and the file's name durable.
    pub(crate) fn write(&self, env: &Env, dir: &Path) -> Result<()> {
        let chunks: Vec<_> = self.directory.chunks().collect();
        let mut images: Vec<(u32, &dyn PageImage)> =
            self.frozen.iter().map(|frozen| (frozen.place, &*frozen.page as &dyn PageImage)).collect();
        images.extend(self.directory_places.iter().zip(&chunks).map(|(&place, chunk)| (place, chunk as _)));
        self.file.write(&mut images, self.generation)?;
        self.file.sync()?;
        env.disk.sync_dir(dir).map_err(|error| Error::io("sync directory", dir, 0, error))?;
        Ok(())
    }
}

fn is_within(ranges: &[Range<u64>], address: u64) -> bool {
    let behind = ranges.partition_point(|range| range.start <= address);
    ranges[..behind].last().is_some_and(|range| address < range.end)
}

fn budget_pages(budget_bytes: usize) -> usize {
    (budget_bytes / PAGE_BYTES).max(CACHED_PAGES_MIN)
}

#[cfg(test)]
pub(crate) mod examples;
#[cfg(test)]
mod tests;
