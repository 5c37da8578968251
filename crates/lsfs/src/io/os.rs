//! The real disk: direct I/O where the file system allows it, buffered I/O elsewhere.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{Advice, AtFlags, FallocateFlags, SeekFrom, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::map::OsMap;
use super::{
    Access, DirEntry, Disk, File, FileMap, LockError, LockGuard, OpenMode, SharedPage, WriteSync, lock,
    parent_of,
};

/// The file system of the operating system.
///
/// Files are opened with `O_DIRECT`. Where that is refused, or the device's alignment is coarser than the unit
/// asked for, transfers go through the page cache and are made durable by `fdatasync`; this is logged once and
/// visible as [`File::access`].
#[derive(Debug, Default)]
pub struct OsDisk {
    buffered_only: bool,
    fallback_logged: AtomicBool,
}

impl OsDisk {
    /// A disk that tries direct I/O first.
    pub fn new() -> Self {
        OsDisk::default()
    }

    /// A disk that never uses direct I/O, for comparison and for tests of the fallback.
    pub fn buffered() -> Self {
        OsDisk { buffered_only: true, ..OsDisk::default() }
    }

    fn open_direct(
        &self,
        path: &Path,
        options: &fs::OpenOptions,
        unit_bytes: usize,
    ) -> io::Result<Option<fs::File>> {
        if self.buffered_only {
            return Ok(None);
        }
        let file = match options.clone().custom_flags(libc::O_DIRECT).open(path) {
            Ok(file) => file,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(match direct_alignment(&file) {
            Some(alignment) if alignment <= unit_bytes => Some(file),
            _ => None,
        })
    }
}

/// The position alignment that direct I/O on this file needs, in bytes: what `statx` says, or where the file
/// system does not say, the smallest power of two it lets us read by. `None` if there is none up to 4096.
fn direct_alignment(file: &fs::File) -> Option<usize> {
    // STATX_DIOALIGN (Linux 6.1), which rustix does not name yet.
    let dio_align = StatxFlags::from_bits_retain(0x2000);
    if let Ok(stat) = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, dio_align)
        && stat.stx_mask & dio_align.bits() != 0
        && stat.stx_dio_offset_align != 0
    {
        return Some(stat.stx_dio_offset_align as usize);
    }
    let mut buf = super::AlignedBuf::zeroed(4096);
    [512, 1024, 2048, 4096].into_iter().find(|&size| file.read_at(&mut buf[..size], size as u64).is_ok())
}

impl Disk for OsDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let parent = parent_of(dir);
        if !parent.exists() {
            self.create_dir_all(&parent)?;
        }
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            other => other?,
        }
        self.sync_dir(&parent)
    }

    fn open(&self, path: &Path, mode: OpenMode, unit_bytes: usize) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(mode != OpenMode::Read);
        if mode == OpenMode::CreateNew {
            // Created apart from the open, so that a refused O_DIRECT leaves no doubt about who created it.
            drop(options.clone().create_new(true).open(path)?);
        }
        let (file, access) = match self.open_direct(path, &options, unit_bytes)? {
            Some(file) => (file, Access::Direct),
            None => (options.open(path)?, Access::Buffered),
        };
        let fell_back = access == Access::Buffered && !self.buffered_only;
        if fell_back && !self.fallback_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(path = %path.display(), unit_bytes, "direct I/O refused: using buffered I/O and fdatasync");
        }
        if access == Access::Buffered || mode == OpenMode::Write {
            // Recovery must read the device, mapped files too: drop what the page cache believes.
            drop_cached_pages(&file);
        }
        Ok(Arc::new(OsFile { file, path: path.to_path_buf(), access, unit_bytes }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Removed between the listing and the look: a reader beside a writer sees this.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if let (true, Some(name)) = (metadata.is_file(), entry.file_name().to_str()) {
                let allocated = metadata.blocks() * 512;
                entries.push(DirEntry { name: name.to_string(), len: metadata.len(), allocated });
            }
        }
        Ok(entries)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn LockGuard>, LockError> {
        lock::acquire(path)
    }

    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        lock::is_held(path)
    }

    fn shared_page(&self, path: &Path, writable: bool) -> io::Result<Box<dyn SharedPage>> {
        let file =
            fs::OpenOptions::new().read(true).write(writable).create(writable).truncate(false).open(path)?;
        if file.metadata()?.len() < PAGE_BYTES as u64 {
            if !writable {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "shared page is too short"));
            }
            // Written, not only extended: storing into a hole of a full disk would be SIGBUS.
            file.write_all_at(&[0; PAGE_BYTES], 0)?;
        }
        Ok(Box::new(MappedPage::map(&file, writable)?))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Bytes of memory that the machine has.
pub fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(info.mem_unit.into())
}

fn drop_cached_pages(file: &fs::File) {
    if let Err(error) = rustix::fs::fadvise(file, 0, None, Advice::DontNeed) {
        tracing::debug!(%error, "fadvise(DONTNEED) refused");
    }
}

#[derive(Debug)]
struct OsFile {
    file: fs::File,
    path: PathBuf,
    access: Access,
    unit_bytes: usize,
}

impl File for OsFile {
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        loop {
            match self.file.read_at(buf, position) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => return other,
            }
        }
    }

    fn write_at(&self, buf: &[u8], position: u64, sync: WriteSync) -> io::Result<usize> {
        let flags = match sync {
            WriteSync::Later => ReadWriteFlags::empty(),
            WriteSync::Durable => ReadWriteFlags::DSYNC,
        };
        loop {
            match rustix::io::pwritev2(&self.file, &[io::IoSlice::new(buf)], position, flags) {
                Err(Errno::INTR) => continue,
                // No RWF_DSYNC on this file system: the same promise in two calls.
                Err(Errno::OPNOTSUPP) if sync == WriteSync::Durable => {
                    let written = self.file.write_at(buf, position)?;
                    self.file.sync_data()?;
                    return Ok(written);
                }
                other => return Ok(other?),
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            // File systems without fallocate allocate as they are written.
            Err(Errno::OPNOTSUPP) => self.set_len(len),
            other => Ok(other?),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn release(&self, range: Range<u64>) -> io::Result<()> {
        let len = self.len()?.min(range.end).saturating_sub(range.start);
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, range.start, len) {
            // Where a file cannot have holes, the space stays with it.
            Err(Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn unit_bytes(&self) -> usize {
        self.unit_bytes
    }

    fn access(&self) -> Access {
        self.access
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn is_linked(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() > 0)
    }

    fn map(&self, len: u64) -> io::Result<Box<dyn FileMap>> {
        let file_len = self.len()?;
        if len > file_len {
            return Err(super::too_short_to_map(len, file_len));
        }
        Ok(Box::new(OsMap::new(&self.file, len, false)?))
    }

    fn map_mut(&self, len: u64) -> io::Result<Box<dyn FileMap>> {
        if len > 0 {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
                Err(Errno::OPNOTSUPP) => self.fill_holes(len)?,
                other => other?,
            }
        }
        Ok(Box::new(OsMap::new(&self.file, len, true)?))
    }
}

impl OsFile {
    /// What `fallocate` does, for file systems that lack it: writes zeros where the first `len` bytes have no
    /// space yet.
    fn fill_holes(&self, len: u64) -> io::Result<()> {
        if self.len()? < len {
            self.set_len(len)?;
        }
        let unit = self.unit_bytes as u64;
        let zeros = super::AlignedBuf::zeroed(ZEROS_BYTES.max(self.unit_bytes));
        let mut position = 0;
        while position < len {
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(position))?;
            if hole >= len {
                break;
            }
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(hole)) {
                Ok(data) => data.min(len),
                Err(Errno::NXIO) => len,
                Err(error) => return Err(error.into()),
            };
            // Holes begin and end at blocks of the file system, except at the end of the file.
            let end = data.next_multiple_of(unit);
            let mut at = hole.next_multiple_of(unit);
            while at < end {
                let count = zeros.len().min((end - at) as usize);
                self.write_all_at(&zeros[..count], at, WriteSync::Later)?;
                at += count as u64;
            }
            position = data.max(hole + 1);
        }
        Ok(())
    }
}

/// How much of a hole is filled at once.
const ZEROS_BYTES: usize = 64 << 10;

const PAGE_BYTES: usize = 4096;
const PAGE_WORDS: usize = PAGE_BYTES / 8;

/// A shared page in memory: stores and loads cost no system call.
#[derive(Debug)]
struct MappedPage {
    words: *const AtomicU64,
    writable: bool,
}

// SAFETY: the mapping lives as long as the value and is only touched through atomics.
unsafe impl Send for MappedPage {}
// SAFETY: as above.
unsafe impl Sync for MappedPage {}

impl MappedPage {
    fn map(file: &fs::File, writable: bool) -> io::Result<Self> {
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a fresh mapping at an address the kernel picks; nothing else refers to it. The file was written
        // to full length and is never cut, so touching the page cannot fault for want of space.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), PAGE_BYTES, protection, MapFlags::SHARED, file.as_fd(), 0)?
        };
        Ok(MappedPage { words: start as *const AtomicU64, writable })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is one page, page-aligned, and lives until drop. A read-only one is never stored to.
        unsafe { std::slice::from_raw_parts(self.words, PAGE_WORDS) }
    }
}

impl Drop for MappedPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; no reference outlives `self`.
        if let Err(error) = unsafe { rustix::mm::munmap(self.words as *mut _, PAGE_BYTES) } {
            tracing::debug!(%error, "munmap of the shared page failed");
        }
    }
}

impl SharedPage for MappedPage {
    fn store(&self, words: &[u64]) {
        assert!(self.writable, "a read-only shared page is never stored to");
        for (slot, word) in self.words().iter().zip(words) {
            slot.store(word.to_le(), Ordering::Release);
        }
    }

    fn load(&self, words: &mut [u64]) {
        for (slot, word) in self.words().iter().zip(words) {
            *word = u64::from_le(slot.load(Ordering::Acquire));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::AlignedBuf;

    fn round_trip(disk: &OsDisk) -> Access {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("deep/er/file");
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        let file = disk.open(&path, OpenMode::CreateNew, 4096).unwrap();
        assert_eq!(
            disk.open(&path, OpenMode::CreateNew, 4096).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        file.allocate(16384).unwrap();
        let mut buf = AlignedBuf::zeroed(4096);
        buf.fill(7);
        file.write_all_at(&buf, 8192, WriteSync::Durable).unwrap();
        file.write_all_at(&buf, 4096, WriteSync::Later).unwrap();
        file.sync().unwrap();
        let mut back = AlignedBuf::zeroed(16384 + 4096);
        assert_eq!(file.read_full_at(&mut back, 0).unwrap(), 16384);
        assert!(back[..4096].iter().all(|&byte| byte == 0));
        assert!(back[4096..12288].iter().all(|&byte| byte == 7));
        disk.rename(&path, &dir.path().join("deep/moved")).unwrap();
        disk.sync_dir(&dir.path().join("deep")).unwrap();
        let names: Vec<_> =
            disk.list(&dir.path().join("deep")).unwrap().into_iter().map(|e| e.name).collect();
        assert_eq!(names, ["moved"]);
        file.access()
    }

    #[test]
    fn direct_or_fallback_round_trip() {
        round_trip(&OsDisk::new());
    }

    #[test]
    fn released_space_comes_back_and_the_length_stays() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("file");
        let file = OsDisk::new().open(&path, OpenMode::CreateNew, 4096).unwrap();
        let mut buf = AlignedBuf::zeroed(1 << 20);
        buf.fill(7);
        file.write_all_at(&buf, 0, WriteSync::Durable).unwrap();
        let map = file.map(1 << 20).unwrap();
        file.release(4096..2 << 20).unwrap();
        file.release(2 << 20..3 << 20).unwrap();
        assert_eq!(file.len().unwrap(), 1 << 20);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 1 << 19);
        let mut seen = [1; 2];
        map.read(4095, &mut seen).unwrap();
        assert_eq!(seen, [7, 0]);
    }

    #[test]
    fn buffered_round_trip() {
        assert_eq!(round_trip(&OsDisk::buffered()), Access::Buffered);
    }

    #[test]
    fn holes_are_filled_where_fallocate_is_missing() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let file = fs::File::options().read(true).write(true).create_new(true).open(dir.path().join("file"));
        let file =
            OsFile { file: file.unwrap(), path: PathBuf::new(), access: Access::Buffered, unit_bytes: 4096 };
        file.file.write_all_at(&[7; 5000], 300_000).unwrap();
        file.fill_holes(1 << 20).unwrap();
        let metadata = file.file.metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 20);
        assert!(metadata.blocks() * 512 >= 1 << 20, "{} blocks", metadata.blocks());
        let mut bytes = vec![1; 1 << 20];
        file.file.read_exact_at(&mut bytes, 0).unwrap();
        let mut expected = vec![0; 1 << 20];
        expected[300_000..305_000].fill(7);
        assert!(bytes == expected);
    }

    #[test]
    fn readers_see_what_the_writer_stores_in_the_shared_page() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page");
        let disk = OsDisk::new();
        let writer = disk.shared_page(&path, true).unwrap();
        let reader = disk.shared_page(&path, false).unwrap();
        writer.store(&[1, 2, 3]);
        let mut seen = [0; 3];
        reader.load(&mut seen);
        assert_eq!(seen, [1, 2, 3]);
    }
}
