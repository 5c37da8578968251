//! The simulated disk: what tests do to it, and the [`Disk`] trait.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::content::{Damage, Patch, sector_start};
use super::crash::CrashStyle;
use super::fault::{DiskFault, Faults, OpKind};
use super::file::SimFile;
use super::medium::{Effect, Inode, Medium, NameOp};
use super::page::PageWords;
use super::rng::SplitMix;
use super::state::{Live, State, invalid, is_root, parent};
use super::trace::{Recording, Trace};
use crate::io::{DirEntry, Disk, File, LockError, LockGuard, OpenMode, SECTOR_BYTES, SharedPage};
use crate::mutant::{self, Mutant};

const DEFAULT_CAPACITY: u64 = 1 << 40;

/// A disk in memory on which every write can be lost, torn, reordered or refused.
///
/// The handle stands for a process: [`SimDisk::new_process`] gives the same disk to another one, and
/// [`SimDisk::restart`] ends this one as `kill -9` does. A clone is the same process.
///
/// Every call that changes something is an operation with a number, whether it succeeds or not; see
/// [`SimDisk::op_count`].
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Mutex<State>>,
    process: u64,
}

impl SimDisk {
    /// An empty disk of 1 TiB. The seed decides what the faults leave open and the order of listings.
    pub fn new(seed: u64) -> Self {
        SimDisk::from_medium(Medium::default(), DEFAULT_CAPACITY, seed)
    }

    /// The same with a capacity in bytes. Space is counted in 4-KiB pages of file content.
    pub fn with_capacity(seed: u64, bytes: u64) -> Self {
        SimDisk::from_medium(Medium::default(), bytes, seed)
    }

    /// A machine on which no program runs yet, with `medium`: just booted, or all of them killed.
    pub(super) fn from_medium(medium: Medium, capacity: u64, seed: u64) -> Self {
        let live = |inode: &Inode| Live {
            content: inode.view(),
            page: inode.page.clone(),
            linked: true,
            ..Live::default()
        };
        let names = medium.names_in_view();
        let files = names.values().map(|id| (*id, live(&medium.inodes[id]))).collect();
        let state = State {
            names,
            files,
            next_inode: medium.inodes.last_key_value().map_or(0, |(id, _)| id + 1),
            medium,
            locks: BTreeMap::new(),
            next_process: 1,
            ended: BTreeSet::new(),
            ops: 0,
            seed,
            capacity,
            faults: Faults::default(),
            recording: None,
        };
        SimDisk { shared: Arc::new(Mutex::new(state)), process: 0 }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The state, for a program: refused after its process has ended.
    pub(super) fn enter(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.ended.contains(&self.process) {
            return Err(io::Error::other("this process of the simulation has ended"));
        }
        Ok(state)
    }

    /// Another process on the same disk: it sees the same files and competes for the locks.
    pub fn new_process(&self) -> SimDisk {
        let mut state = self.state();
        state.next_process += 1;
        SimDisk { shared: Arc::clone(&self.shared), process: state.next_process - 1 }
    }

    /// `kill -9` of this process, and a new one: the files stay as programs saw them, pending changes stay
    /// pending, locks vanish. Whatever is left of the old process fails from here on and changes nothing.
    /// Other processes go on.
    #[must_use = "the old handle is dead; go on with the new one"]
    pub fn restart(&self) -> SimDisk {
        let mut state = self.state();
        state.ended.insert(self.process);
        state.locks.retain(|_, holder| *holder != self.process);
        drop(state);
        self.new_process()
    }

    /// The disk that would be found if power failed now, between two operations. This disk stays as it is.
    #[must_use = "the image is another disk"]
    pub fn power_fail(&self, style: CrashStyle, seed: u64) -> SimDisk {
        let state = self.state();
        SimDisk::from_medium(state.medium.after_crash(state.ops, None, style, seed), state.capacity, seed)
    }

    /// Starts recording operations, anew if it was already on.
    pub fn start_trace(&self) {
        let mut state = self.state();
        state.files.values().filter_map(|file| file.page.as_ref()).for_each(|page| page.keep_all());
        let (base, first, capacity) = (state.medium.clone(), state.ops, state.capacity);
        state.recording = Some(Recording { base, first, events: Vec::new(), capacity });
    }

    /// The number of operations recorded so far; zero without a recording. See [`Trace`] for what it binds.
    pub fn trace_len(&self) -> usize {
        self.state().recording.as_ref().map_or(0, |recording| recording.events.len())
    }

    /// Ends the recording and returns it.
    ///
    /// # Panics
    /// If there is none.
    pub fn stop_trace(&self) -> Trace {
        Trace::new(self.state().recording.take().expect("start_trace was called"))
    }

    /// The number of operations so far, which is the number of the next one.
    pub fn op_count(&self) -> u64 {
        self.state().ops
    }

    /// Arms a fault.
    pub fn inject(&self, fault: DiskFault) {
        self.state().faults.inject(fault);
    }

    /// How many times a fault struck.
    pub fn faults_fired(&self) -> u64 {
        self.state().faults.fired()
    }

    /// Disarms all faults, as if the disk had been repaired.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Changes the capacity; if it is less than the space in use, nothing more can be allocated.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// Bytes allocated to files, removed ones included while a handle is open.
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// Silently flips a bit on the medium (bit 0 is the lowest of byte 0).
    pub fn flip_bit(&self, path: &Path, bit: u64) -> io::Result<()> {
        self.damage(path, Damage::FlipBit(bit), bit / 8)
    }

    /// Silently zeroes the 512-byte sector with this number in the file.
    pub fn zero_sector(&self, path: &Path, sector: u64) -> io::Result<()> {
        self.damage(path, Damage::ZeroSector(sector), sector_start(sector))
    }

    /// Silently exchanges two 512-byte sectors of a file.
    pub fn swap_sectors(&self, path: &Path, one: u64, other: u64) -> io::Result<()> {
        self.damage(path, Damage::SwapSectors(one, other), sector_start(one.max(other)))
    }

    /// Silently cuts a file on the medium, or extends it with zeros.
    pub fn truncate_raw(&self, path: &Path, len: u64) -> io::Result<()> {
        self.damage(path, Damage::Truncate(len), 0)
    }

    /// Damages both what is durable and what is seen; pending writes are not damaged. `last` must lie in the
    /// file.
    fn damage(&self, path: &Path, damage: Damage, last: u64) -> io::Result<()> {
        let path = clean(path);
        let mut state = self.state();
        let inode = state.find(&path)?;
        if last >= state.files[&inode].content.len().max(1) {
            return Err(invalid(format!("{damage:?} lies beyond the end of {}", path.display())));
        }
        state.operate(OpKind::Damage, false, &path, |state, _| {
            Arc::make_mut(&mut state.file_mut(inode).content).damage(&damage);
            (Effect::Damage { inode, damage }, Ok(()))
        })
    }

    /// Places a durable file, replacing what was there; missing directories are made. Takes several
    /// operations.
    pub fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let path = clean(path);
        let dir = parent(&path).to_path_buf();
        self.create_dir_all(&dir)?;
        if self.enter()?.names.contains_key(&path) {
            self.remove(&path)?;
        }
        let mut state = self.enter()?;
        let inode = state.create(&path, None)?;
        state.operate(OpKind::Write, true, &path, |state, _| {
            let patch = Patch::new(0, bytes);
            Arc::make_mut(&mut state.file_mut(inode).content).apply(&patch);
            (Effect::Write { inode, patch, durable: true }, Ok(()))
        })?;
        drop(state);
        self.sync_dir(&dir)
    }

    /// The bytes of a file as programs see them.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        let inode = state.find(&clean(path)).ok()?;
        Some(state.files[&inode].content.to_vec())
    }

    /// The paths of all files as programs see them, in order.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.state().names.keys().map(|path| path.to_path_buf()).collect()
    }

    /// A number that depends on the names, lengths and bytes of all files as programs see them (not on shared
    /// pages): equal for equal trees within one build of the program.
    pub fn fingerprint(&self) -> u64 {
        let state = self.state();
        let mut hasher = DefaultHasher::new();
        for (path, inode) in state.names.iter() {
            path.hash(&mut hasher);
            state.files[inode].content.to_vec().hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Copies all files into a directory of the real file system, to look at them with the tools.
    pub fn export(&self, to: &Path) -> io::Result<()> {
        let state = self.state();
        for (path, inode) in state.names.iter() {
            let target = to.join(path.strip_prefix("/").unwrap_or(path));
            std::fs::create_dir_all(parent(&target))?;
            std::fs::write(&target, state.files[inode].content.to_vec())?;
        }
        Ok(())
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "SimDisk(process {}, {} files, {} operations)", self.process, state.names.len(), state.ops)
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let dir = clean(dir);
        let mut state = self.enter()?;
        let is_missing = |dir: &&Path| !is_root(dir) && !state.medium.dirs.contains(*dir);
        let mut dirs: Vec<Arc<Path>> = dir.ancestors().take_while(is_missing).map(Arc::from).collect();
        if let Some(file) = dir.ancestors().find(|dir| state.names.contains_key(*dir)) {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, file.display().to_string()));
        }
        if dirs.is_empty() {
            return Ok(());
        }
        dirs.reverse();
        state.operate(OpKind::CreateDir, false, &dir, |_, _| (Effect::CreateDirs { dirs }, Ok(())))
    }

    fn open(&self, path: &Path, mode: OpenMode, unit_bytes: usize) -> io::Result<Arc<dyn File>> {
        if !unit_bytes.is_power_of_two() || unit_bytes < SECTOR_BYTES {
            return Err(invalid(format!("a unit of {unit_bytes} bytes")));
        }
        let name = clean(path);
        let mut state = self.enter()?;
        let inode = match (mode, state.find(&name)) {
            (OpenMode::CreateNew, Ok(_)) => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, path.display().to_string()));
            }
            (OpenMode::CreateNew, Err(_)) => state.create(&name, None)?,
            (OpenMode::Read | OpenMode::Write, found) => found?,
        };
        if state.file(inode).stale {
            // What the failed sync left in memory is dropped: this open reads the device.
            let view = state.medium.inodes.get(&inode).map(|inode| inode.view());
            let file = state.file_mut(inode);
            file.content = view.unwrap_or_default();
            file.stale = false;
        }
        state.file_mut(inode).handles += 1;
        drop(state);
        Ok(Arc::new(SimFile::new(self.clone(), inode, name, path, mode, unit_bytes)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (clean(from), clean(to));
        let mut state = self.enter()?;
        let inode = state.find(&from)?;
        state.need_dir(parent(&to))?;
        if state.medium.dirs.contains(&to) {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, to.display().to_string()));
        }
        if from == to {
            return Ok(());
        }
        state.operate(OpKind::Rename, false, &from, |state, _| {
            let names = Arc::make_mut(&mut state.names);
            names.remove(&from);
            if let Some(replaced) = names.insert(Arc::clone(&to), inode) {
                state.unlinked(replaced);
            }
            (Effect::Name(NameOp::Rename { from: Arc::clone(&from), to, inode }), Ok(()))
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let path = clean(path);
        let mut state = self.enter()?;
        let inode = state.find(&path)?;
        state.operate(OpKind::Remove, false, &path, |state, _| {
            Arc::make_mut(&mut state.names).remove(&path);
            state.unlinked(inode);
            (Effect::Name(NameOp::Remove { path: Arc::clone(&path), inode }), Ok(()))
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let dir = clean(dir);
        let state = self.enter()?;
        state.need_dir(&dir)?;
        let mut entries = Vec::new();
        for (path, inode) in
            state.names.range(Arc::clone(&dir)..).take_while(|(path, _)| path.starts_with(&dir))
        {
            if let (true, Some(name)) =
                (parent(path) == &*dir, path.file_name().and_then(|name| name.to_str()))
            {
                let file = state.file(*inode);
                // A shared page is written when it is created.
                let page = if file.page.is_some() { 4096 } else { 0 };
                let (len, allocated) = (file.content.len() + page, file.content.allocated_bytes() + page);
                entries.push(DirEntry { name: name.to_string(), len, allocated });
            }
        }
        // Nobody may rely on the order.
        let mut rng = SplitMix::from_parts(&[state.seed, state.ops, 1]);
        for at in (1..entries.len()).rev() {
            entries.swap(at, rng.below(at as u64 + 1) as usize);
        }
        Ok(entries)
    }

    fn exists(&self, path: &Path) -> bool {
        let path = clean(path);
        self.enter().is_ok_and(|state| state.names.contains_key(&path) || state.need_dir(&path).is_ok())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = clean(dir);
        let mut state = self.enter()?;
        state.need_dir(&dir)?;
        if mutant::is(Mutant::NoDirectorySync) {
            return Ok(());
        }
        state
            .operate(OpKind::SyncDir, false, &dir, |_, _| (Effect::SyncDir { dir: Arc::clone(&dir) }, Ok(())))
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn LockGuard>, LockError> {
        let path = clean(path);
        let mut state = self.enter().map_err(LockError::Io)?;
        if let Some(holder) = state.locks.get(&path) {
            return Err(LockError::Held { pid: Some(*holder as u32) });
        }
        if !state.names.contains_key(&path) {
            state.create(&path, None).map_err(LockError::Io)?;
        }
        state.locks.insert(Arc::clone(&path), self.process);
        drop(state);
        Ok(Box::new(SimLock { disk: self.clone(), path }))
    }

    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        Ok(self.enter()?.locks.contains_key(&clean(path)))
    }

    fn shared_page(&self, path: &Path, writable: bool) -> io::Result<Box<dyn SharedPage>> {
        let path = clean(path);
        let mut state = self.enter()?;
        let inode = match state.find(&path) {
            Err(_) if writable => state.create(&path, Some(Arc::default()))?,
            found => found?,
        };
        let Some(words) = state.file(inode).page.clone() else {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "shared page is too short"));
        };
        drop(state);
        Ok(Box::new(SimPage { disk: self.clone(), words, writable }))
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(self.enter()?.free_bytes())
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    path: Arc<Path>,
}

impl LockGuard for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        // After a restart the lock may belong to another process.
        if state.locks.get(&self.path) == Some(&self.disk.process) {
            state.locks.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct SimPage {
    disk: SimDisk,
    words: Arc<PageWords>,
    writable: bool,
}

impl SharedPage for SimPage {
    fn store(&self, words: &[u64]) {
        assert!(self.writable, "a read-only shared page is never stored to");
        // A process that has ended stores nothing.
        if let Ok(state) = self.disk.enter() {
            self.words.store(words, state.ops);
        }
    }

    fn load(&self, words: &mut [u64]) {
        self.words.load(words);
    }
}

/// The path without `.` components.
fn clean(path: &Path) -> Arc<Path> {
    if path.components().any(|part| part == Component::CurDir) {
        let parts: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
        return Arc::from(parts);
    }
    Arc::from(path)
}
