//! One open file of the simulated disk.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::SimDisk;
use super::content::{PAGE_BYTES, Patch};
use super::fault::{FaultKind, OpKind};
use super::medium::{Effect, InodeId};
use super::state::{Op, State, eio, invalid, no_space};
use crate::io::{
    Access, File, FileMap, MapAdvice, OpenMode, SECTOR_BYTES, WriteSync, end_within_map, map_is_read_only,
    too_short_to_map,
};
use crate::mutant::{self, Mutant};

/// A handle. It insists on the alignment that [`Disk::open`](crate::io::Disk::open) agreed on, so that an
/// engine that forgets it is caught also where the real device would let it pass.
#[derive(Debug)]
pub(super) struct SimFile {
    disk: SimDisk,
    inode: InodeId,
    name: Arc<Path>,
    /// As the caller spelled it.
    path: PathBuf,
    mode: OpenMode,
    unit: usize,
    /// Where short writes ended, rounded down to a sector: `write_all_at` goes on from there.
    short_ends: Mutex<Vec<u64>>,
}

impl SimFile {
    pub(super) fn new(
        disk: SimDisk,
        inode: InodeId,
        name: Arc<Path>,
        path: &Path,
        mode: OpenMode,
        unit: usize,
    ) -> Self {
        SimFile { disk, inode, name, path: path.to_path_buf(), mode, unit, short_ends: Mutex::default() }
    }

    /// Checks a transfer. `may_resume` says whether it may start at that sector instead of at a whole unit,
    /// as the rest of a short transfer does.
    fn check(&self, buf: &[u8], position: u64, may_resume: impl FnOnce() -> bool) -> io::Result<()> {
        let address = buf.as_ptr() as usize;
        let unit = self.unit as u64;
        let fits_end = (position + buf.len() as u64).is_multiple_of(unit);
        let fits_start = position.is_multiple_of(unit) && buf.len().is_multiple_of(self.unit);
        let resumes = || fits_end && position.is_multiple_of(SECTOR_BYTES as u64) && may_resume();
        if address.is_multiple_of(SECTOR_BYTES) && (fits_start || resumes()) {
            return Ok(());
        }
        Err(invalid(format!(
            "{}: {} bytes at {position} from a buffer at {address:#x} are not aligned to units of {unit}",
            self.path.display(),
            buf.len()
        )))
    }

    fn check_writable(&self) -> io::Result<()> {
        match self.mode {
            OpenMode::Read => Err(io::Error::from_raw_os_error(libc::EBADF)),
            OpenMode::Write | OpenMode::CreateNew => Ok(()),
        }
    }

    fn short_ends(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.short_ends.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Does the write with whatever the fault makes of it.
    fn write(
        &self,
        state: &mut State,
        mut op: Op,
        buf: &[u8],
        at: u64,
        durable: bool,
    ) -> (Effect, io::Result<usize>) {
        let mut bytes = Cow::Borrowed(buf);
        let mut position = at;
        let mut result = Ok(buf.len());
        let mut durable = durable;
        match op.fault {
            Some(FaultKind::Enospc) => return (Effect::Nothing, Err(no_space())),
            Some(FaultKind::LostWrite) => return (Effect::Nothing, result),
            Some(FaultKind::Eio) => {
                let reached = op.rng.below((buf.len() / SECTOR_BYTES) as u64) as usize * SECTOR_BYTES;
                bytes = Cow::Borrowed(&buf[..if op.rng.coin() { reached } else { 0 }]);
                durable = false;
                result = Err(eio());
            }
            Some(FaultKind::ShortWrite) => {
                let count = 1 + op.rng.below(buf.len() as u64 - 1) as usize;
                let sectors = count & !(SECTOR_BYTES - 1);
                let count = if op.rng.coin() && sectors > 0 { sectors } else { count };
                // A sector is written whole or not at all, whatever the count says of it.
                bytes = Cow::Borrowed(&buf[..count & !(SECTOR_BYTES - 1)]);
                result = Ok(count);
            }
            Some(FaultKind::MisdirectedWrite) => {
                let units =
                    state.file(self.inode).content.len().max(at + buf.len() as u64) / self.unit as u64;
                let units = units.max(2);
                let elsewhere = at / self.unit as u64 + 1 + op.rng.below(units - 1);
                position = elsewhere % units * self.unit as u64;
            }
            Some(FaultKind::BitRot) => {
                let bit = op.rng.below(buf.len() as u64 * 8) as usize;
                bytes.to_mut()[bit / 8] ^= 1 << (bit % 8);
            }
            _ => {}
        }
        let end = position + bytes.len() as u64;
        if !state.has_space(self.inode, position, end) {
            return (Effect::Nothing, Err(no_space()));
        }
        if bytes.is_empty() {
            return (Effect::Nothing, result);
        }
        let patch = Patch::new(position, &bytes);
        let file = state.file_mut(self.inode);
        Arc::make_mut(&mut file.content).apply(&patch);
        match op.fault {
            Some(FaultKind::SyncError | FaultKind::PartialSyncError) => {
                sync_failed(state, op, self.inode, Some(patch))
            }
            _ => (Effect::Write { inode: self.inode, patch, durable }, result),
        }
    }

    fn new_map(&self, state: &mut State, len: u64, writable: bool) -> Box<dyn FileMap> {
        state.file_mut(self.inode).handles += 1;
        let (disk, name) = (self.disk.clone(), Arc::clone(&self.name));
        Box::new(SimMap { disk, inode: self.inode, name, len, writable })
    }
}

fn sync_file(state: &mut State, inode: InodeId, name: &Arc<Path>) -> io::Result<()> {
    state.operate(OpKind::Sync, false, name, |state, op| match op.fault {
        Some(_) => sync_failed(state, op, inode, None),
        None => (Effect::Sync { inode }, Ok(())),
    })
}

/// What an engine with these mutants makes of a failed write or sync; the others pass it on.
fn seen_by_mutants<R>(
    state: &mut State,
    inode: InodeId,
    name: &Arc<Path>,
    error: io::Error,
    success: R,
) -> io::Result<R> {
    if mutant::is(Mutant::SwallowedError) {
        return Ok(success);
    }
    if mutant::is(Mutant::RetryAfterFailedSync) && error.raw_os_error() == Some(libc::EIO) {
        return sync_file(state, inode, name).map(|()| success);
    }
    Err(error)
}

fn sync_failed<R>(
    state: &mut State,
    mut op: Op,
    inode: InodeId,
    write: Option<Patch>,
) -> (Effect, io::Result<R>) {
    state.file_mut(inode).stale = true;
    let reached = (op.fault == Some(FaultKind::PartialSyncError)).then(|| op.rng.next());
    (Effect::SyncFailed { inode, write, reached }, Err(eio()))
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        let mut state = self.disk.enter()?;
        let len = state.file(self.inode).content.len();
        // A read that found the end within a unit may look once more.
        self.check(buf, position, || position >= len)?;
        state.read_fault(&self.name)?;
        Ok(state.file(self.inode).content.read(buf, position))
    }

    fn write_at(&self, buf: &[u8], position: u64, sync: WriteSync) -> io::Result<usize> {
        self.check_writable()?;
        self.check(buf, position, || self.short_ends().contains(&position))?;
        let mut state = self.disk.enter()?;
        if buf.is_empty() {
            return Ok(0);
        }
        let durable = sync == WriteSync::Durable && !mutant::is(Mutant::AcknowledgeBeforeSync);
        let written = state
            .operate(OpKind::Write, durable, &self.name, |state, op| {
                self.write(state, op, buf, position, durable)
            })
            .or_else(|error| seen_by_mutants(&mut state, self.inode, &self.name, error, buf.len()))?;
        if written < buf.len() {
            let whole = written & !(SECTOR_BYTES - 1);
            self.short_ends().push(position + whole as u64);
        }
        Ok(written)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.enter()?;
        sync_file(&mut state, self.inode, &self.name)
            .or_else(|error| seen_by_mutants(&mut state, self.inode, &self.name, error, ()))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.disk.enter()?;
        state.operate(OpKind::Allocate, false, &self.name, |state, _| {
            if !state.has_space(self.inode, 0, len) {
                return (Effect::Nothing, Err(no_space()));
            }
            Arc::make_mut(&mut state.file_mut(self.inode).content).allocate(len);
            (Effect::Allocate { inode: self.inode, len }, Ok(()))
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.disk.enter()?;
        state.operate(OpKind::SetLen, false, &self.name, |state, _| {
            let content = Arc::make_mut(&mut state.file_mut(self.inode).content);
            let cut = len < content.len();
            content.set_len(len);
            (Effect::SetLen { inode: self.inode, len, cut }, Ok(()))
        })
    }

    fn release(&self, range: Range<u64>) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.disk.enter()?;
        state.operate(OpKind::Release, false, &self.name, |state, _| {
            Arc::make_mut(&mut state.file_mut(self.inode).content).release(&range);
            (Effect::Release { inode: self.inode, range }, Ok(()))
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.enter()?.file(self.inode).content.len())
    }

    fn unit_bytes(&self) -> usize {
        self.unit
    }

    fn access(&self) -> Access {
        Access::Direct
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn is_linked(&self) -> io::Result<bool> {
        Ok(self.disk.enter()?.file(self.inode).linked)
    }

    fn map(&self, len: u64) -> io::Result<Box<dyn FileMap>> {
        let mut state = self.disk.enter()?;
        let file_len = state.file(self.inode).content.len();
        if len > file_len {
            return Err(too_short_to_map(len, file_len));
        }
        Ok(self.new_map(&mut state, len, false))
    }

    fn map_mut(&self, len: u64) -> io::Result<Box<dyn FileMap>> {
        self.allocate(len)?;
        Ok(self.new_map(&mut *self.disk.enter()?, len, true))
    }
}

/// A map of a file. Stores are unsynced writes; a touch that would be a signal on a real disk is a panic.
#[derive(Debug)]
struct SimMap {
    disk: SimDisk,
    inode: InodeId,
    name: Arc<Path>,
    len: u64,
    writable: bool,
}

impl SimMap {
    /// Ends the program as the kernel would if the file no longer reaches to `end` in its last page.
    fn touch(&self, state: &State, end: u64) {
        let file_len = state.file(self.inode).content.len();
        let mapped_end = file_len.next_multiple_of(PAGE_BYTES as u64);
        let name = self.name.display();
        assert!(end <= mapped_end, "SIGBUS: byte {end} of {name}, which was cut to {file_len} bytes");
    }
}

impl FileMap for SimMap {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, position: u64, target: &mut [u8]) -> io::Result<()> {
        let end = end_within_map(position, target.len(), self.len)?;
        let state = self.disk.enter()?;
        self.touch(&state, end);
        let count = state.file(self.inode).content.read(target, position);
        target[count..].fill(0);
        Ok(())
    }

    fn write(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.writable {
            return Err(map_is_read_only());
        }
        let end = end_within_map(position, bytes.len(), self.len)?;
        let mut state = self.disk.enter()?;
        self.touch(&state, end);
        let name = self.name.display();
        assert!(state.has_space(self.inode, position, end), "SIGBUS: no space for byte {position} of {name}");
        // Bytes beyond the end of a file that was cut within its last page go nowhere.
        let within = state.file(self.inode).content.len().saturating_sub(position).min(bytes.len() as u64);
        if within == 0 {
            return Ok(());
        }
        state.operate(OpKind::MapWrite, false, &self.name, |state, _| {
            let patch = Patch::new(position, &bytes[..within as usize]);
            Arc::make_mut(&mut state.file_mut(self.inode).content).apply(&patch);
            (Effect::Write { inode: self.inode, patch, durable: false }, Ok(()))
        })
    }

    fn flush(&self, range: Range<u64>) -> io::Result<()> {
        if !self.writable {
            return Err(map_is_read_only());
        }
        let end = end_within_map(range.start, range.end.saturating_sub(range.start) as usize, self.len)?;
        let mut state = self.disk.enter()?;
        if range.is_empty() {
            return Ok(());
        }
        let flushed = state.operate(OpKind::Sync, false, &self.name, |state, op| {
            if op.fault.is_some() {
                return sync_failed(state, op, self.inode, None);
            }
            // The pages of the range as they are now; those of an earlier failed sync count as clean.
            let start = range.start - range.start % PAGE_BYTES as u64;
            let mut pages = vec![0; (end.next_multiple_of(PAGE_BYTES as u64) - start) as usize];
            let file = state.file(self.inode);
            let dirty = state.medium.inodes.get(&self.inode).filter(|_| file.stale).map(|inode| inode.view());
            let count = dirty.as_ref().unwrap_or(&file.content).read(&mut pages, start);
            let patch = Patch::new(start, &pages[..count]);
            (Effect::Write { inode: self.inode, patch, durable: true }, Ok(()))
        });
        flushed.or_else(|error| seen_by_mutants(&mut state, self.inode, &self.name, error, ()))
    }

    fn advise(&self, _access: MapAdvice) {}
}

impl Drop for SimMap {
    fn drop(&mut self) {
        self.disk.state().handle_closed(self.inode);
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.state().handle_closed(self.inode);
    }
}
