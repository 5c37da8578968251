//! What the harness does to files itself: aligned buffers, cold caches, and counting the bytes that are live.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Advice, OFlags};

/// Alignment and smallest unit of direct I/O here.
pub const BLOCK_BYTES: usize = 4096;

/// Bytes per read or write where the size is the harness's own choice.
pub const CHUNK_BYTES: usize = 1 << 20;

/// A buffer whose first byte lies at a multiple of [`BLOCK_BYTES`].
pub struct AlignedBuffer {
    backing: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// A zeroed buffer of `len` bytes.
    pub fn new(len: usize) -> Self {
        let backing = vec![0; len + BLOCK_BYTES];
        let start = backing.as_ptr().align_offset(BLOCK_BYTES);
        AlignedBuffer { backing, start, len }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.backing[self.start..self.start + self.len]
    }

    /// The bytes, writable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.backing[self.start..self.start + self.len]
    }
}

/// Opens `path` for direct I/O, creating it when `create` is set.
pub fn open_direct(path: &Path, create: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(create)
        .create(create)
        .truncate(false)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(path)
        .with_context(|| format!("cannot open {} with O_DIRECT", path.display()))
}

/// Every regular file below `dir`, sorted by path.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            match entry.file_type()? {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Writes back everything dirty on the file system of `dir`, so that one run does not pay for another.
pub fn settle(dir: &Path) -> Result<()> {
    rustix::fs::syncfs(File::open(dir)?)?;
    Ok(())
}

/// Drops the files below `dir` from the page cache, so that the next run reads the device.
pub fn drop_caches(dir: &Path) -> Result<()> {
    settle(dir)?;
    for path in files(dir)? {
        rustix::fs::fadvise(File::open(&path)?, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// Reads every file below `dir` from front to back in direct reads of [`CHUNK_BYTES`]; returns the bytes read.
pub fn read_direct(dir: &Path) -> Result<u64> {
    let mut buffer = AlignedBuffer::new(CHUNK_BYTES);
    let mut total = 0;
    for path in files(dir)? {
        let file = open_direct(&path, false)?;
        let mut offset = 0;
        loop {
            let count = file.read_at(buffer.bytes_mut(), offset)?;
            offset += count as u64;
            if count < CHUNK_BYTES {
                break;
            }
        }
        total += offset;
    }
    Ok(total)
}

/// Bytes that the file system has allocated for the files below `dir` now; files that vanish meanwhile count nothing.
pub fn allocated_bytes(dir: &Path) -> Result<u64> {
    Ok(files(dir)?.iter().filter_map(|path| Some(fs::metadata(path).ok()?.blocks() * 512)).sum())
}

/// The space a directory takes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Space {
    /// Bytes up to the last one of each file that is not zero: what was written, without what was prepared.
    pub live_bytes: u64,
    /// Bytes allocated by the file system.
    pub allocated_bytes: u64,
}

/// Measures the space of all files below `dir`. Meant for files that were never recycled.
pub fn space(dir: &Path) -> Result<Space> {
    let mut space = Space::default();
    for path in files(dir)? {
        let file = File::open(&path)?;
        let metadata = file.metadata()?;
        space.live_bytes += live_bytes(&file, metadata.len())?;
        space.allocated_bytes += metadata.blocks() * 512;
    }
    Ok(space)
}

/// The position after the last byte of `file` that is not zero.
fn live_bytes(file: &File, len: u64) -> Result<u64> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut end = len;
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let chunk = &mut buffer[..(end - start) as usize];
        file.read_exact_at(chunk, start)?;
        if let Some(last) = chunk.iter().rposition(|&byte| byte != 0) {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned() {
        for len in [1, 4096, 1 << 20] {
            let buffer = AlignedBuffer::new(len);
            assert_eq!(buffer.bytes().as_ptr().align_offset(BLOCK_BYTES), 0);
            assert_eq!(buffer.bytes().len(), len);
        }
    }

    #[test]
    fn zero_tails_are_not_live() {
        let dir = std::env::temp_dir().join(format!("lsfs-bench-space-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut content = vec![7; 5000];
        content.resize(3 << 20, 0);
        fs::write(dir.join("a"), &content).unwrap();
        fs::write(dir.join("b"), vec![0; 4096]).unwrap();
        assert_eq!(space(&dir).unwrap().live_bytes, 5000);
        fs::remove_dir_all(&dir).unwrap();
    }
}
