//! A file in memory, by `mmap`.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, MremapFlags, MsyncFlags, ProtFlags};

use super::{FileMap, MapAdvice, end_within_map, map_is_read_only};

const WORD_BYTES: usize = size_of::<u64>();
/// Granularity of `msync`; a multiple of it is aligned on machines with smaller pages too.
const PAGE_BYTES: u64 = 4096;

/// A shared mapping of the first bytes of a file.
///
/// The memory is only touched through atomics on whole words, so that a writer in this process or another is a source
/// of unexpected bytes and nothing worse; who sees a store sees those before it. On x86-64 these are plain loads and
/// stores.
#[derive(Debug)]
pub(super) struct OsMap {
    /// `None` if nothing is mapped: the kernel refuses empty mappings.
    start: Option<NonNull<AtomicU64>>,
    len: usize,
    writable: bool,
}

// SAFETY: the mapping belongs to the value, lives until its drop, and is only touched through atomics.
unsafe impl Send for OsMap {}
// SAFETY: as above.
unsafe impl Sync for OsMap {}

impl OsMap {
    /// Maps `len` bytes. The caller has made sure that the file is as long, and for a writable map that the file
    /// system has given them their space: otherwise touching them could be a signal.
    pub(super) fn new(file: &fs::File, len: u64, writable: bool) -> io::Result<Self> {
        let len = usize::try_from(len)
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, format!("a map of {len} bytes")))?;
        if len == 0 {
            return Ok(OsMap { start: None, len, writable });
        }
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a fresh mapping at an address the kernel picks; nothing else refers to it.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file.as_fd(), 0)?
        };
        Ok(OsMap { start: NonNull::new(start.cast()), len, writable })
    }

    /// The mapped words. The last one may reach beyond `len`, never beyond its page.
    fn words(&self) -> &[AtomicU64] {
        match self.start {
            // SAFETY: the mapping starts at a page, reaches to the end of the page of its last byte, and lives until
            // drop; `AtomicU64` has no invalid values. Read-only mappings are never stored to, see `write`.
            Some(start) => unsafe {
                std::slice::from_raw_parts(start.as_ptr(), self.len.div_ceil(WORD_BYTES))
            },
            None => &[],
        }
    }
}

/// Words of a cache line.
const CACHE_LINE_WORDS: usize = 64 / WORD_BYTES;

/// Asks the processor for a cache line.
#[cfg(target_arch = "x86_64")]
fn prefetch_line(word: &AtomicU64) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, which may be given for any address; it changes no memory and raises no fault.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(word).cast()) }
}

/// Asks the processor for a cache line, where we know how.
#[cfg(not(target_arch = "x86_64"))]
fn prefetch_line(_word: &AtomicU64) {}

/// Bytes of a huge page.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Gives advice on a part of a mapping; it changes speed only.
fn advise(start: NonNull<AtomicU64>, range: Range<usize>, advice: Advice) {
    // SAFETY: the callers' ranges lie within the mapping that begins at `start`, which they hold; none of the advices they
    // give changes its bytes.
    let given = unsafe {
        rustix::mm::madvise(start.as_ptr().cast::<u8>().add(range.start).cast(), range.len(), advice)
    };
    if let Err(error) = given {
        tracing::debug!(%error, ?advice, "madvise refused");
    }
}

/// Reads a part of a mapping into the page cache, and into the page tables.
fn populate(start: NonNull<AtomicU64>, range: Range<usize>) {
    // The first reads in large pieces whatever was advised; the second waits for them, and spares who reads the faults.
    // Kernels before 5.14 do not know it.
    for advice in [Advice::WillNeed, Advice::LinuxPopulateRead] {
        advise(start, range.clone(), advice);
    }
}

impl OsMap {
    /// The part of the mapping in a range, from the page on in which that begins; `None` if it is empty.
    fn pages(&self, range: Range<u64>) -> Option<(NonNull<AtomicU64>, Range<usize>)> {
        let range = (range.start - range.start % PAGE_BYTES) as usize..range.end.min(self.len()) as usize;
        self.start.filter(|_| !range.is_empty()).map(|start| (start, range))
    }

    /// Reads a part of the file into the page cache in huge pages, where the file system has them.
    ///
    /// A mapping of its own asks for them: in the lasting one, a later read of a page that was given up would read a huge
    /// one.
    fn load_huge(&self, start: NonNull<AtomicU64>, range: Range<usize>) {
        // SAFETY: without a length to take away, the kernel makes a second mapping of the same shared pages, at an address it
        // picks, and leaves the first as it is.
        let second = unsafe { rustix::mm::mremap(start.as_ptr().cast(), 0, self.len, MremapFlags::MAYMOVE) };
        let second = match second.map(|second| NonNull::new(second.cast::<AtomicU64>())) {
            Ok(Some(second)) => second,
            other => return tracing::debug!(?other, "no second mapping"),
        };
        advise(second, range.clone(), Advice::LinuxHugepage);
        advise(second, range, Advice::LinuxPopulateRead);
        unmap(second, self.len);
    }
}

/// Ends a mapping.
fn unmap(start: NonNull<AtomicU64>, len: usize) {
    // SAFETY: mapped by the caller with this length; no reference to it is left.
    if let Err(error) = unsafe { rustix::mm::munmap(start.as_ptr().cast(), len) } {
        tracing::debug!(%error, "munmap failed");
    }
}

impl FileMap for OsMap {
    fn len(&self) -> u64 {
        self.len as u64
    }

    fn read(&self, position: u64, target: &mut [u8]) -> io::Result<()> {
        end_within_map(position, target.len(), self.len())?;
        let (first, skipped) = (position as usize / WORD_BYTES, position as usize % WORD_BYTES);
        let words = &self.words()[first..];
        let (head, rest) = target.split_at_mut(((WORD_BYTES - skipped) % WORD_BYTES).min(target.len()));
        let load = |word: &AtomicU64| word.load(Ordering::Acquire).to_le().to_le_bytes();
        let words = if head.is_empty() {
            words
        } else {
            head.copy_from_slice(&load(&words[0])[skipped..][..head.len()]);
            &words[1..]
        };
        let (whole, tail) = rest.as_chunks_mut::<WORD_BYTES>();
        let (words, last) = words.split_at(whole.len());
        for (chunk, word) in whole.iter_mut().zip(words) {
            *chunk = load(word);
        }
        if !tail.is_empty() {
            tail.copy_from_slice(&load(&last[0])[..tail.len()]);
        }
        Ok(())
    }

    fn write(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.writable {
            return Err(map_is_read_only());
        }
        end_within_map(position, bytes.len(), self.len())?;
        let (first, skipped) = (position as usize / WORD_BYTES, position as usize % WORD_BYTES);
        let words = &self.words()[first..];
        let (head, rest) = bytes.split_at(((WORD_BYTES - skipped) % WORD_BYTES).min(bytes.len()));
        let patch = |word: &AtomicU64, from: usize, bytes: &[u8]| {
            let mut value = word.load(Ordering::Relaxed).to_le().to_le_bytes();
            value[from..from + bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(value).to_le(), Ordering::Release);
        };
        let words = if head.is_empty() {
            words
        } else {
            patch(&words[0], skipped, head);
            &words[1..]
        };
        let (whole, tail) = rest.as_chunks::<WORD_BYTES>();
        for (chunk, word) in whole.iter().zip(words) {
            word.store(u64::from_le_bytes(*chunk).to_le(), Ordering::Release);
        }
        if !tail.is_empty() {
            patch(&words[whole.len()], 0, tail);
        }
        Ok(())
    }

    fn flush(&self, range: Range<u64>) -> io::Result<()> {
        if !self.writable {
            return Err(map_is_read_only());
        }
        end_within_map(range.start, range.end.saturating_sub(range.start) as usize, self.len())?;
        let Some(start) = self.start.filter(|_| !range.is_empty()) else { return Ok(()) };
        let from = (range.start - range.start % PAGE_BYTES) as usize;
        // SAFETY: `from..range.end` lies within the mapping, and `msync` changes no bytes of it.
        unsafe {
            let address = start.as_ptr().cast::<u8>().add(from).cast();
            rustix::mm::msync(address, range.end as usize - from, MsyncFlags::SYNC)?;
        }
        Ok(())
    }

    fn prefetch(&self, position: u64, len: u64) {
        let words = self.words();
        let end = (position.saturating_add(len) as usize).div_ceil(WORD_BYTES).min(words.len());
        // Lines begin at multiples of their size: mappings begin at pages.
        let first = position as usize / WORD_BYTES / CACHE_LINE_WORDS * CACHE_LINE_WORDS;
        let Some(asked_for) = words.get(first..end) else { return };
        asked_for.iter().step_by(CACHE_LINE_WORDS).for_each(prefetch_line);
    }

    fn load(&self, range: Range<u64>) {
        let Some((start, range)) = self.pages(range) else { return };
        // What is read here and there costs a look into the page tables each time, unless pages are huge: 152 and 112 ns
        // for each entry of a scan. What is there of a block in small pages, read before it was whole or ahead of what was
        // asked for, is given up first: one of them, and the block cannot be huge.
        let block_of = |position: usize| position / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
        let blocks = block_of(range.start)..block_of(range.end);
        if blocks.is_empty() {
            return populate(start, range);
        }
        advise(start, blocks.clone(), Advice::LinuxPageOut);
        self.load_huge(start, blocks.clone());
        populate(start, blocks.start..range.end);
    }

    fn fetch(&self, range: Range<u64>) {
        // Pages that are there cost a look each; to enter them into the page tables as well would cost more than the faults.
        if let Some((start, range)) = self.pages(range) {
            advise(start, range, Advice::WillNeed);
        }
    }

    fn advise(&self, access: MapAdvice) {
        let Some(start) = self.start else { return };
        let advice = match access {
            MapAdvice::Sequential => Advice::Sequential,
            MapAdvice::Random => Advice::Random,
        };
        self::advise(start, 0..self.len, advice);
    }
}

impl Drop for OsMap {
    fn drop(&mut self) {
        let Some(start) = self.start else { return };
        unmap(start, self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Disk, OpenMode, OsDisk};

    #[test]
    fn ranges_of_any_alignment_are_copied_in_and_out() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("file");
        let file = OsDisk::new().open(&path, OpenMode::CreateNew, 4096).unwrap();
        let map = file.map_mut(5003).unwrap();
        let reader = file.map(5003).unwrap();
        let mut expected = vec![0; 5003];
        for (position, len) in [
            (0, 0),
            (0, 1),
            (3, 2),
            (5, 3),
            (6, 9),
            (8, 8),
            (7, 64),
            (4090, 20),
            (4995, 8),
            (5000, 3),
            (5003, 0),
        ] {
            let bytes: Vec<u8> = (0..len).map(|at| (at + position) as u8 | 1).collect();
            map.write(position as u64, &bytes).unwrap();
            expected[position..position + len].copy_from_slice(&bytes);
            let mut back = vec![9; len];
            reader.read(position as u64, &mut back).unwrap();
            assert_eq!(back, bytes, "{len} bytes at {position}");
            let mut all = vec![9; 5003];
            reader.read(0, &mut all).unwrap();
            assert_eq!(all, expected, "{len} bytes at {position}");
        }
        map.flush(4091..5003).unwrap();
        map.flush(7..7).unwrap();
        map.prefetch(4999, 100);
        map.prefetch(u64::MAX - 5, 100);
        reader.load(0..5003);
        reader.load(4097..u64::MAX);
        reader.load(6000..7000);
        map.advise(MapAdvice::Random);
        reader.advise(MapAdvice::Sequential);
        drop((map, reader));
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }

    #[test]
    fn loading_huge_pages_changes_no_byte() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..5_u32 << 20).map(|at| (at / 7) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = OsDisk::new().open(&path, OpenMode::Read, 4096).unwrap().map(bytes.len() as u64).unwrap();
        map.advise(MapAdvice::Random);
        // Within a block, over its end in the middle of it, whole blocks, the rest, and all of it again.
        for range in
            [0..5000, 9000..1 << 20, 1 << 20..3 << 20, 2 << 20..4 << 20, 4 << 20..u64::MAX, 0..5 << 20]
        {
            map.load(range.clone());
            map.fetch(range.clone());
            let mut read = vec![0; bytes.len()];
            map.read(0, &mut read).unwrap();
            assert!(read == bytes, "{range:?}");
        }
    }

    #[test]
    fn what_is_not_mapped_is_an_error() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let disk = OsDisk::new();
        let path = dir.path().join("file");
        let file = disk.open(&path, OpenMode::CreateNew, 4096).unwrap();
        assert_eq!(file.map(1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(file.map(0).unwrap().is_empty());
        assert!(file.map_mut(0).unwrap().is_empty());
        let map = file.map_mut(100).unwrap();
        assert_eq!((map.len(), file.len().unwrap()), (100, 100));
        let outside =
            |result: io::Result<()>| assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        outside(map.write(99, &[1, 2]));
        outside(map.read(100, &mut [0]));
        outside(map.read(u64::MAX, &mut [0]));
        outside(map.flush(0..101));
        // A longer map is another map; a shorter one leaves the file as it is.
        assert_eq!(file.map_mut(50).unwrap().len(), 50);
        assert_eq!(file.len().unwrap(), 100);
        let reader = disk.open(&path, OpenMode::Read, 4096).unwrap().map(100).unwrap();
        assert_eq!(reader.write(0, &[1]).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(reader.flush(0..1).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(disk.open(&path, OpenMode::Read, 4096).unwrap().map_mut(100).is_err());
        disk.remove(&path).unwrap();
        map.write(0, &[5]).unwrap();
        let mut byte = [0];
        reader.read(0, &mut byte).unwrap();
        assert_eq!(byte, [5]);
    }
}
