//! Files made ready before they are needed: spare segments.
//!
//! A sync that also changes file-system metadata costs half as much again, so small appends go into space that was
//! written before: a purged segment, or zeros written ahead by a background task. What is made ready is bounded by a
//! part of the live bytes and 1 MiB, so a small store stays small.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::env::Env;
use crate::error::{Error, Result};
use crate::io::{AlignedBuf, File, OpenMode, WriteSync};
use crate::metrics::Counter;

/// The first segment, and the smallest a full disk makes us go on with.
const INITIAL_SEGMENT_BYTES: u64 = 512 << 10;
/// What may be made ready beyond a part of the live bytes, ...
const READY_BYTES_BASE: u64 = 1 << 20;
/// ... which is usually a quarter.
pub(crate) const READY_PART: u64 = 4;
/// Entries of so many bytes on average fill small segments so fast that sealing them takes longer than writing them: ...
const LARGE_ENTRY_BYTES: u64 = 2 << 10;
/// ... then a larger part than this is not asked to be smaller.
const READY_PART_OF_LARGE: u64 = 16;
/// [`SpacePolicy::Adaptive`] stops writing zeros when an average write is at least this long.
const BULK_WRITE_BYTES: u64 = 64 << 10;
/// Zeros are written in pieces of this size, so that appends get their turn on the device.
const ZERO_PIECE_BYTES: usize = 256 << 10;

const SPARE_PREFIX: &str = "spare-";

/// How space is made ready before it is written into. Dropped segments are always reused first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpacePolicy {
    /// [`SpacePolicy::Zeros`] while writes are small, [`SpacePolicy::Allocate`] once they are large.
    #[default]
    Adaptive,
    /// Write zeros ahead: each sync then touches no file-system metadata, but bytes are written twice.
    Zeros,
    /// Reserve without writing: each byte is written once, but small syncs cost about half as much again.
    Allocate,
}

/// What decides how much is made ready, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpaceOptions {
    /// The unit of transfers, and what lengths are multiples of.
    pub(crate) block_bytes: usize,
    /// Segments grow up to this size.
    pub(crate) segment_bytes: u64,
    pub(crate) policy: SpacePolicy,
    /// The next segment, and what is made ready, are at most this part of the live bytes (and a base); of large entries, a
    /// sixteenth if this is less.
    pub(crate) ready_part: u64,
}

/// A file ready to become a segment.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn File>,
    pub(crate) len: u64,
}

/// The spare segments of one directory.
#[derive(Debug)]
pub(crate) struct Space {
    env: Env,
    dir: PathBuf,
    options: SpaceOptions,
    ready: Mutex<Vec<Spare>>,
    /// Whether entries are large, as far as that is known.
    are_entries_large: AtomicBool,
    /// Making a spare failed: not tried again before the next segment.
    gave_up: AtomicBool,
    /// The directory is let go; changed under the lock of `ready`.
    discarded: AtomicBool,
    pub(crate) zero_bytes: Counter,
    pub(crate) recycled_segments: Counter,
}

/// Whether a file name is that of a spare.
pub(crate) fn is_spare(name: &str) -> bool {
    name.starts_with(SPARE_PREFIX)
}

impl Space {
    pub(crate) fn new(env: &Env, dir: &Path, options: SpaceOptions) -> Self {
        Space {
            env: env.clone(),
            dir: dir.to_path_buf(),
            options,
            ready: Mutex::new(Vec::new()),
            are_entries_large: AtomicBool::new(false),
            gave_up: AtomicBool::new(false),
            discarded: AtomicBool::new(false),
            zero_bytes: Counter::default(),
            recycled_segments: Counter::default(),
        }
    }

    /// What may still be made ready when `live_bytes` are in use and `unused_bytes` of the active segment are not.
    fn allowance(&self, live_bytes: u64, unused_bytes: u64) -> u64 {
        let part = match self.are_entries_large.load(Ordering::Relaxed) {
            true => self.options.ready_part.min(READY_PART_OF_LARGE),
            false => self.options.ready_part,
        };
        (live_bytes / part + READY_BYTES_BASE).saturating_sub(unused_bytes)
    }

    /// Says how long entries are on average.
    pub(crate) fn expect_entries_of(&self, bytes: u64) {
        self.are_entries_large.store(bytes >= LARGE_ENTRY_BYTES, Ordering::Relaxed);
    }

    /// Size of the next segment: as the store grows, in powers of two, up to the configured size.
    fn next_segment_bytes(&self, live_bytes: u64, unused_bytes: u64) -> u64 {
        let allowed = self.allowance(live_bytes, unused_bytes).max(INITIAL_SEGMENT_BYTES);
        let power = 1 << allowed.ilog2();
        power.min(
            self.options.segment_bytes / self.options.block_bytes as u64 * self.options.block_bytes as u64,
        )
    }

    fn writes_zeros(&self, average_write_bytes: u64) -> bool {
        match self.options.policy {
            SpacePolicy::Zeros => true,
            SpacePolicy::Allocate => false,
            SpacePolicy::Adaptive => average_write_bytes < BULK_WRITE_BYTES,
        }
    }

    /// The file of the first segment.
    pub(crate) fn first(&self) -> Result<Spare> {
        let len = INITIAL_SEGMENT_BYTES.min(self.options.segment_bytes) / self.options.block_bytes as u64
            * self.options.block_bytes as u64;
        self.create(len, self.options.policy != SpacePolicy::Allocate)
    }

    /// A file of at least `min_bytes` for the next segment: a spare, or a new one.
    pub(crate) fn take(&self, live_bytes: u64, min_bytes: u64, average_write_bytes: u64) -> Result<Spare> {
        self.gave_up.store(false, Ordering::Relaxed);
        let min_bytes = min_bytes.next_multiple_of(self.options.block_bytes as u64);
        let mut ready = self.lock();
        if let Some(at) = ready.iter().position(|spare| spare.len >= min_bytes) {
            return Ok(ready.swap_remove(at));
        }
        drop(ready);
        let mut len = self.next_segment_bytes(live_bytes, 0).max(min_bytes);
        loop {
            // Inline zeros only for what is quickly written; nobody should wait for 64 MiB of them.
            let zeros = self.writes_zeros(average_write_bytes) && len <= 2 * INITIAL_SEGMENT_BYTES;
            match self.create(len, zeros) {
                Err(Error::NoSpace { .. }) if len / 2 >= min_bytes.max(INITIAL_SEGMENT_BYTES) => len /= 2,
                other => return other,
            }
        }
    }

    /// A file that is ready, of whatever length.
    pub(crate) fn take_ready(&self) -> Option<Spare> {
        self.lock().pop()
    }

    /// Whether a file is ready.
    pub(crate) fn has_spare(&self) -> bool {
        !self.lock().is_empty()
    }

    /// Makes a spare ready if there is none and the bound allows one; for the background.
    pub(crate) fn prepare(&self, live_bytes: u64, unused_bytes: u64, average_write_bytes: u64) -> Result<()> {
        if !self.wants_spare(live_bytes, unused_bytes) {
            return Ok(());
        }
        let zeros = self.writes_zeros(average_write_bytes);
        let spare = self
            .create(self.next_segment_bytes(live_bytes, unused_bytes), zeros)
            .inspect_err(|_| self.gave_up.store(true, Ordering::Relaxed))?;
        let mut ready = self.lock();
        if self.discarded.load(Ordering::Relaxed) {
            self.remove(&spare.path);
        } else {
            ready.push(spare);
        }
        Ok(())
    }

    /// Whether [`Space::prepare`] would do something.
    pub(crate) fn wants_spare(&self, live_bytes: u64, unused_bytes: u64) -> bool {
        !self.gave_up.load(Ordering::Relaxed)
            && self.allowance(live_bytes, unused_bytes) >= self.next_segment_bytes(live_bytes, unused_bytes)
            && !self.discarded.load(Ordering::Relaxed)
            && self.lock().is_empty()
    }

    fn create(&self, len: u64, zeros: bool) -> Result<Spare> {
        let path = self.spare_path();
        let no_room = |error| Error::write("make space in", &path, len, error);
        let file =
            self.env.disk.open(&path, OpenMode::CreateNew, self.options.block_bytes).map_err(no_room)?;
        let made = if zeros { self.write_zeros(&*file, len) } else { file.allocate(len) };
        match made.and_then(|()| file.sync()) {
            Ok(()) => Ok(Spare { path, file, len }),
            Err(error) => {
                self.remove(&path);
                Err(no_room(error))
            }
        }
    }

    fn write_zeros(&self, file: &dyn File, len: u64) -> std::io::Result<()> {
        let piece_bytes = ZERO_PIECE_BYTES.next_multiple_of(self.options.block_bytes).min(len as usize);
        let zeros = AlignedBuf::zeroed(piece_bytes);
        let mut position = 0;
        while position < len {
            let piece = &zeros[..((len - position) as usize).min(piece_bytes)];
            file.write_all_at(piece, position, WriteSync::Later)?;
            position += piece.len() as u64;
            self.zero_bytes.add(piece.len() as u64);
        }
        Ok(())
    }

    /// Takes the file of a dropped segment: as a spare if one is of use and the bound allows it, else it is removed.
    ///
    /// The caller has made durable that nothing names the segment any more.
    pub(crate) fn recycle(
        &self,
        path: &Path,
        file: Option<Arc<dyn File>>,
        live_bytes: u64,
        unused_bytes: u64,
    ) {
        let Some((file, len)) = file.and_then(|file| file.len().ok().map(|len| (file, len))) else {
            return self.remove(path);
        };
        let held: u64 = self.lock().iter().map(|spare| spare.len).sum();
        let useful = len >= self.next_segment_bytes(live_bytes, 0) / 2
            && len.is_multiple_of(self.options.block_bytes as u64);
        if !useful || held + len > self.allowance(live_bytes, unused_bytes) {
            return self.remove(path);
        }
        let spare_path = self.spare_path();
        // What was given back when the segment was sealed is reserved again: a full disk shows here, not in an append.
        match file.allocate(len).and_then(|()| self.env.disk.rename(path, &spare_path)) {
            Ok(()) => {
                self.recycled_segments.add(1);
                self.lock().push(Spare { path: spare_path, file, len });
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "could not keep a dropped segment as a spare");
                self.remove(path);
            }
        }
    }

    /// Removes every spare: a closed store holds only what it needs.
    pub(crate) fn discard(&self) {
        let mut ready = self.lock();
        self.discarded.store(true, Ordering::Relaxed);
        let spares = std::mem::take(&mut *ready);
        drop(ready);
        spares.iter().for_each(|spare| self.remove(&spare.path));
    }

    /// Removes a file nothing names; failing to do so loses space, not data, and the next open tries again.
    pub(crate) fn remove(&self, path: &Path) {
        if let Err(error) = self.env.disk.remove(path) {
            tracing::warn!(path = %path.display(), %error, "could not remove an unused file");
        }
    }

    /// Bytes in spares.
    pub(crate) fn ready_bytes(&self) -> u64 {
        self.lock().iter().map(|spare| spare.len).sum()
    }

    fn spare_path(&self) -> PathBuf {
        self.dir.join(format!("{SPARE_PREFIX}{:016x}", self.env.runtime.random()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
