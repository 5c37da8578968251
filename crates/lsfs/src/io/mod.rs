//! The only door to the disk, and to time, randomness and background work.
//!
//! [`Disk`] and [`File`] are what the engine knows of storage; [`Runtime`] is what it knows of time and
//! threads. The real ones are [`OsDisk`] (direct I/O, falling back to buffered) and [`OsRuntime`] (threads). With
//! the feature `testing` there is a third world, `SimDisk` and `SimRuntime`, in which every write can be lost,
//! torn, reordered or refused and background work runs inline in seeded order.
//!
//! **Invariants.** Nothing outside this module calls `std::fs` or creates a thread; `unsafe` occurs nowhere else.
//! Buffers handed to a [`File`] come from [`AlignedBuf`], positions and lengths are multiples of the
//! [`Disk::open`] unit.

mod aligned;
mod lock;
mod map;
mod os;
pub(crate) mod processor;
mod runtime;
#[cfg(feature = "testing")]
mod sim;
mod workers;

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use aligned::{AlignedBuf, MEMORY_ALIGNMENT};
pub use os::{OsDisk, memory_bytes};
pub(crate) use runtime::EventWord;
pub use runtime::{Background, OsRuntime, Runtime, Step, Task};
#[cfg(feature = "testing")]
pub use sim::{CrashImages, CrashStyle, DiskFault, FaultAt, FaultKind, OpKind, SimDisk, SimRuntime, Trace};

/// How [`Disk::open`] treats the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Read an existing file; writes fail.
    Read,
    /// Read and write an existing file.
    Write,
    /// Create a file that must not exist yet; the caller syncs the directory.
    CreateNew,
}

/// Whether a write returns before or after its bytes are on the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteSync {
    /// The bytes may be lost by a power failure until a later [`File::sync`].
    Later,
    /// The bytes are on the medium when the call returns (`RWF_DSYNC`: data and the metadata needed to read it).
    Durable,
}

/// How a file reaches the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `O_DIRECT`: transfers go between the caller's buffer and the device.
    Direct,
    /// Through the page cache, because the file system refused direct I/O for this unit.
    Buffered,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// File name without the directory.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
    /// Bytes the file system has allocated for it.
    pub allocated: u64,
}

/// Why [`Disk::lock`] did not give the lock.
#[derive(Debug)]
pub enum LockError {
    /// Somebody else holds it.
    Held {
        /// The holder's process id as it wrote it, if it could be read.
        pid: Option<u32>,
    },
    /// The lock file could not be opened or locked.
    Io(io::Error),
}

/// An exclusive lock, released on drop (and by the kernel when the process dies).
pub trait LockGuard: Send + Sync + Debug {}

/// A small page shared between one writer and any readers in this or other processes.
///
/// It carries hints that must be quick to publish; it is never synced and recovery never reads it.
pub trait SharedPage: Send + Sync + Debug {
    /// Replaces the words of the page. One writer at a time; readers may see a mixture, so the words must carry
    /// their own check.
    fn store(&self, words: &[u64]);
    /// Reads the words of the page, possibly a mixture of two stores.
    fn load(&self, words: &mut [u64]);
}

/// A directory tree on some storage.
///
/// Names become durable only by [`Disk::sync_dir`]: after a create, rename or remove a crash may show either the
/// old or the new name until then.
pub trait Disk: Send + Sync + Debug {
    /// Creates `dir` and its missing parents, and makes the new names durable.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Opens a file for transfers whose positions and lengths are multiples of `unit_bytes`.
    fn open(&self, path: &Path, mode: OpenMode, unit_bytes: usize) -> io::Result<Arc<dyn File>>;
    /// Renames a file, replacing the target if it exists.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Open handles keep reading it.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Lists the regular files of `dir`, in no particular order. A missing directory is an error.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    /// Whether something has this name.
    fn exists(&self, path: &Path) -> bool;
    /// Makes creates, renames and removes in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the exclusive lock at `path`, creating the file; never waits.
    fn lock(&self, path: &Path) -> Result<Box<dyn LockGuard>, LockError>;
    /// Whether anybody holds the lock at `path`, without taking it. A missing file is not locked.
    fn is_locked(&self, path: &Path) -> io::Result<bool>;
    /// Opens the shared page at `path`; a writer creates it.
    fn shared_page(&self, path: &Path, writable: bool) -> io::Result<Box<dyn SharedPage>>;
    /// Bytes still free for this user where `path` lies.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// One open file. All calls take `&self` and may come from several threads.
pub trait File: Send + Sync + Debug {
    /// Reads at `position` into an aligned buffer; less than asked only at the end of the file.
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize>;
    /// Writes some of `buf` at `position`, as `pwrite` does: the count may be short.
    fn write_at(&self, buf: &[u8], position: u64, sync: WriteSync) -> io::Result<usize>;
    /// Makes all written bytes durable. After an error nothing is known of them: do not retry, reopen.
    fn sync(&self) -> io::Result<()>;
    /// Reserves space up to `len` bytes and extends the file; reserved bytes read as zero.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Cuts or extends the file to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Gives the space of these bytes back to the file system, as far as it can; they read as zero. The length stays, so
    /// that a mapping of the file stays good. Not durable before [`File::sync`]: a crash may find the bytes as they were.
    fn release(&self, range: Range<u64>) -> io::Result<()>;
    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// The unit it was opened for: positions and lengths of transfers are multiples of it.
    fn unit_bytes(&self) -> usize;
    /// How the file reaches the device.
    fn access(&self) -> Access;
    /// The path it was opened by, for messages.
    fn path(&self) -> &Path;
    /// Whether the file still has a name.
    fn is_linked(&self) -> io::Result<bool>;
    /// Maps the first `len` bytes for reading. Longer than the file is an error (`UnexpectedEof`).
    fn map(&self, len: u64) -> io::Result<Box<dyn FileMap>>;
    /// Gives the first `len` bytes their space, extending a shorter file with zeros, and maps them for writing. A
    /// full disk is an error here and not a signal at the first store.
    fn map_mut(&self, len: u64) -> io::Result<Box<dyn FileMap>>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Writes all of `buf`, continuing after short writes from the last whole unit.
    fn write_all_at(&self, mut buf: &[u8], mut position: u64, sync: WriteSync) -> io::Result<()> {
        let mut stalls = 0;
        while !buf.is_empty() {
            let written = self.write_at(buf, position, sync)?;
            // Direct I/O needs aligned positions, so a partly written unit is written again.
            let whole = if written == buf.len() { written } else { written & !(self.unit_bytes() - 1) };
            stalls = if whole == 0 { stalls + 1 } else { 0 };
            if written == 0 || stalls > 3 {
                return Err(io::Error::new(
                    io::ErrorKind::WriteZero,
                    format!("wrote {written} of {} bytes at {position}", buf.len()),
                ));
            }
            buf = &buf[whole..];
            position += whole as u64;
        }
        Ok(())
    }

    /// Fills `buf` from `position`; returns how many bytes the file had.
    fn read_full_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.read_at(&mut buf[filled..], position + filled as u64)? {
                0 => break,
                count => filled += count,
            }
            // A direct read may only continue at an aligned position: a short count is the end of the file.
            if filled % self.unit_bytes() != 0 {
                break;
            }
        }
        Ok(filled)
    }
}

/// The first bytes of a file in memory. It stays valid when the file is closed, renamed or removed.
///
/// Reading and writing copy: another process, or another mapping, may change the bytes at any time, so whatever is to
/// be verified is verified on the copy. A copy may mix old and new bytes of a concurrent write.
///
/// **A mapped file must not be cut.** Touching a page that lies wholly beyond the file's end is a signal (`SIGBUS`)
/// that ends the process. A mapping never reaches beyond the length the file had when it was made, and the engine
/// never cuts a file that readers map; a file cut by a foreign hand remains (docs/durability.md), as does a disk
/// that cannot read a mapped page, which is the same signal.
pub trait FileMap: Send + Sync + Debug {
    /// How many bytes are mapped.
    fn len(&self) -> u64;
    /// Fills `target` with the bytes at `position`; `UnexpectedEof` if they are not all mapped.
    fn read(&self, position: u64, target: &mut [u8]) -> io::Result<()>;
    /// Stores `bytes` at `position`; `UnexpectedEof` if that is not all mapped, an error also on a read-only map.
    /// Others that map or read the file see the bytes at once; they are durable after [`FileMap::flush`]. One
    /// writer at a time: two that store next to each other may undo each other's bytes.
    fn write(&self, position: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes the bytes of `range` durable, and the file's length as far as they need it (`msync`). After an error
    /// nothing is known of them: do not retry, reopen.
    fn flush(&self, range: Range<u64>) -> io::Result<()>;
    /// Says how it will be read.
    fn advise(&self, access: MapAdvice);
    /// Says that `len` bytes at `position` are read soon, so that the processor fetches them meanwhile; what is not
    /// mapped is left alone. Only a matter of speed.
    fn prefetch(&self, _position: u64, _len: u64) {}
    /// Reads a range of the file into the system's cache, so that [`FileMap::read`] does not wait for the disk there;
    /// what stays there for long is laid out for that. Only a matter of speed: what cannot be read now is an error when
    /// it is.
    fn load(&self, _range: Range<u64>) {}
    /// Says that a range is read at once, all of it: what is not in the system's cache is read from the disk in one piece
    /// and not page by page. Only a matter of speed.
    fn fetch(&self, _range: Range<u64>) {}

    /// Whether nothing is mapped.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How a [`FileMap`] will be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapAdvice {
    /// Front to back: read ahead, forget behind.
    Sequential,
    /// Here and there: do not read ahead.
    Random,
}

/// The end of `len` bytes at `position`, if it lies within a map of `map_len` bytes.
fn end_within_map(position: u64, len: usize, map_len: u64) -> io::Result<u64> {
    position.checked_add(len as u64).filter(|end| *end <= map_len).ok_or_else(|| {
        let message = format!("{len} bytes at {position} of a map of {map_len} bytes");
        io::Error::new(io::ErrorKind::UnexpectedEof, message)
    })
}

/// A file of `file_len` bytes is too short for a map of `len` bytes.
fn too_short_to_map(len: u64, file_len: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("a map of {len} bytes of a file of {file_len} bytes"),
    )
}

/// A write or flush of a map that was made for reading.
fn map_is_read_only() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the map is read-only")
}

/// What a power failure writes or loses as a whole; see docs/format.md, media assumptions.
pub const SECTOR_BYTES: usize = 512;

/// A unit that every device transfers, for files whose own block size is not known yet.
pub(crate) const ANY_UNIT_BYTES: usize = 4096;

/// The directory that holds `path`.
pub(crate) fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
