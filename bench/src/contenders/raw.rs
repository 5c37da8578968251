//! The raw device: plain files and system calls, with nothing between the record and the disk.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Result, ensure};
use rustix::fs::FallocateFlags;
use rustix::io::ReadWriteFlags;

use super::{Contender, ContenderId, Producer, RandomReader, ReadBack, StorePlan};
use crate::disk::{self, AlignedBuffer, BLOCK_BYTES, CHUNK_BYTES};

/// Most bytes of a prepared file. A run that writes more starts over at its front: that is what recycling is.
const PREPARED_BYTES_MAX: u64 = 256 << 20;

/// Bytes by which a fallocated file grows.
const ALLOCATE_STEP_BYTES: u64 = 64 << 20;

/// How the bytes are made durable.
#[derive(Clone, Copy, PartialEq)]
enum Sync {
    /// pwrite, then fdatasync.
    Fdatasync,
    /// pwritev2 with RWF_DSYNC.
    Dsync,
}

/// Where the bytes go.
#[derive(Clone, Copy, PartialEq)]
enum Space {
    /// Over zeros written before, again and again.
    Zeroed { bytes: u64 },
    /// Into fresh space, allocated ahead step by step.
    Fallocated,
}

/// Opens one of the raw contenders.
pub fn open(id: ContenderId, dir: &Path, plan: &StorePlan) -> Result<Box<dyn Contender>> {
    let path = dir.join("raw");
    if id == ContenderId::RawBuffered {
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        File::open(dir)?.sync_all()?;
        return Ok(Box::new(Buffered { file, is_synced: plan.is_synced }));
    }
    let file = disk::open_direct(&path, true)?;
    let space = match id {
        ContenderId::RawFallocated => Space::Fallocated,
        _ => Space::Zeroed { bytes: write_zeros(&file, plan.expected_bytes)? },
    };
    let sync = if id == ContenderId::RawDsync { Sync::Dsync } else { Sync::Fdatasync };
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    Ok(Box::new(Direct { file, sync, space, state: Mutex::new(Position { next: 0, end: 0 }) }))
}

/// Fills the file with zeros for `expected` bytes, within limits; returns how many there are.
fn write_zeros(file: &File, expected: u64) -> Result<u64> {
    let zeros = AlignedBuffer::new(CHUNK_BYTES);
    let bytes = expected.clamp(1, PREPARED_BYTES_MAX).next_multiple_of(CHUNK_BYTES as u64);
    for offset in (0..bytes).step_by(CHUNK_BYTES) {
        file.write_all_at(zeros.bytes(), offset)?;
    }
    Ok(bytes)
}

/// An O_DIRECT file.
struct Direct {
    file: File,
    sync: Sync,
    space: Space,
    state: Mutex<Position>,
}

/// Where the next append goes, and where the prepared space ends.
struct Position {
    next: u64,
    end: u64,
}

impl Direct {
    /// Claims `len` bytes of the file.
    fn claim(&self, len: u64) -> Result<u64> {
        let mut position = self.state.lock().expect("no holder panics");
        match self.space {
            Space::Zeroed { bytes } => {
                ensure!(len <= bytes, "the append is larger than the prepared file");
                if position.next + len > bytes {
                    position.next = 0;
                }
            }
            Space::Fallocated if position.next + len > position.end => {
                let step = ALLOCATE_STEP_BYTES.max(len);
                rustix::fs::fallocate(&self.file, FallocateFlags::empty(), position.end, step)?;
                position.end += step;
            }
            Space::Fallocated => {}
        }
        position.next += len;
        Ok(position.next - len)
    }

    /// Writes an aligned buffer durably.
    fn write(&self, bytes: &[u8]) -> Result<()> {
        let offset = self.claim(bytes.len() as u64)?;
        match self.sync {
            Sync::Fdatasync => {
                self.file.write_all_at(bytes, offset)?;
                rustix::fs::fdatasync(&self.file)?;
            }
            Sync::Dsync => {
                let slices = [IoSlice::new(bytes)];
                let count = rustix::io::pwritev2(&self.file, &slices, offset, ReadWriteFlags::DSYNC)?;
                ensure!(count == bytes.len(), "short write: {count} of {} bytes", bytes.len());
            }
        }
        Ok(())
    }
}

impl Contender for Direct {
    fn producer(&self, _number: usize) -> Result<Box<dyn Producer + '_>> {
        Ok(Box::new(DirectProducer { direct: self, buffer: AlignedBuffer::new(0) }))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Copies records into an aligned buffer of whole blocks and writes it.
struct DirectProducer<'a> {
    direct: &'a Direct,
    buffer: AlignedBuffer,
}

impl Producer for DirectProducer<'_> {
    fn append(&mut self, records: &[&'static [u8]]) -> Result<()> {
        let len = records.iter().map(|record| record.len()).sum::<usize>().next_multiple_of(BLOCK_BYTES);
        if self.buffer.bytes().len() != len {
            self.buffer = AlignedBuffer::new(len);
        }
        let mut rest = self.buffer.bytes_mut();
        for record in records {
            let (front, back) = rest.split_at_mut(record.len());
            front.copy_from_slice(record);
            rest = back;
        }
        self.direct.write(self.buffer.bytes())
    }
}

/// A growing file behind the page cache.
struct Buffered {
    file: File,
    is_synced: bool,
}

impl Contender for Buffered {
    fn producer(&self, _number: usize) -> Result<Box<dyn Producer + '_>> {
        Ok(Box::new(BufferedProducer { file: &self.file, is_synced: self.is_synced, buffer: Vec::new() }))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Collects records and appends them with one write, and one fdatasync if they are to be durable.
struct BufferedProducer<'a> {
    file: &'a File,
    is_synced: bool,
    buffer: Vec<u8>,
}

impl Producer for BufferedProducer<'_> {
    fn append(&mut self, records: &[&'static [u8]]) -> Result<()> {
        self.buffer.clear();
        for record in records {
            self.buffer.extend_from_slice(record);
        }
        self.file.write_all(&self.buffer)?;
        if self.is_synced {
            rustix::fs::fdatasync(self.file)?;
        }
        Ok(())
    }
}

/// Reads all files of the directory, whoever wrote them, and verifies nothing.
pub fn read_back(dir: &Path) -> Result<ReadBack> {
    disk::drop_caches(dir)?;
    let begun = Instant::now();
    let bytes = disk::read_direct(dir)?;
    Ok(ReadBack { records: 0, payload_bytes: bytes, seconds: begun.elapsed().as_secs_f64() })
}

/// Spreads numbers over the places of the large files below `dir` where `len` bytes fit.
pub struct Places {
    /// The files and their lengths.
    pub files: Vec<(std::path::PathBuf, u64)>,
    len: u64,
}

impl Places {
    /// Of the segments below `dir`.
    pub fn of(dir: &Path, len: usize) -> Result<Places> {
        let mut files = Vec::new();
        for path in disk::files(dir)? {
            let bytes = path.metadata()?.len();
            if bytes > 4 * len as u64 && path.extension().is_some_and(|extension| extension == "seg") {
                files.push((path, bytes));
            }
        }
        ensure!(!files.is_empty(), "{} holds no segments", dir.display());
        Ok(Places { files, len: len as u64 })
    }

    /// The number of a file and a position in it.
    pub fn place(&self, number: u64) -> (usize, u64) {
        let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let file = (mixed >> 32) as usize % self.files.len();
        (file, mixed % (self.files[file].1 - self.len))
    }
}

/// `pread` through the page cache.
struct RandomPread {
    places: Places,
    files: Vec<File>,
    buffer: Vec<u8>,
}

impl RandomReader for RandomPread {
    fn read(&mut self, number: u64) -> Result<usize> {
        let (file, position) = self.places.place(number);
        self.files[file].read_exact_at(&mut self.buffer, position)?;
        Ok(self.buffer.len())
    }
}

/// Reads `record_bytes` at a time from the files in `dir`.
pub fn random_pread(dir: &Path, record_bytes: usize) -> Result<Box<dyn RandomReader>> {
    let places = Places::of(dir, record_bytes)?;
    let files = places.files.iter().map(|(path, _)| File::open(path)).collect::<Result<_, _>>()?;
    Ok(Box::new(RandomPread { places, files, buffer: vec![0; record_bytes] }))
}
