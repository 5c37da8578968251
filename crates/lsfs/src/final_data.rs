//! Final data: a complete state, replaced as a whole.
//!
//! The principal type is [`FinalData`]. A state lives in a pair of files, A and B. Each [`FinalData::set`] appends
//! one record (index = version) to the current file, beginning a new block, in one durable write. When the file has
//! reached its block limit, the same write goes to the start of the other file, behind a new file header with a new
//! id; the blocks of its former life no longer verify.
//!
//! **Invariants.** The bytes of the latest durable version are never overwritten before a later version is
//! durable. The first `set` after an open always changes files, so leftovers of a torn write are never continued.
//! Space is bounded by twice the larger of the block limit and the largest state.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::block::{BlockReader, BlockWriter, Identity, PendingRecord, Records, Step};
use crate::codec::{
    BLOCK_BYTES_DEFAULT, BLOCK_HEADER_BYTES, BlockHeader, Checksum, Compression, FileHeader, FileHeaderFault,
    FileKind, FrameLayout, StreamId, is_block_size,
};
use crate::directory::{self, WriterLock};
use crate::env::Env;
use crate::error::{Corruption, Error, Result};
use crate::io::{AlignedBuf, File, OpenMode, WriteSync};
use crate::mutant::{self, Mutant};

/// Settings of [`FinalData`].
#[derive(Clone, Debug)]
pub struct FinalDataOptions {
    /// Bytes of a block: a power of two from 512 to 32768. Fixed when the data is created.
    pub block_bytes: usize,
    /// How blocks are checked. Fixed when the data is created.
    pub checksum: Checksum,
    /// A file that would grow over this many blocks is followed by the other one.
    pub limit_blocks: u32,
    /// The largest state in bytes.
    pub state_limit_bytes: u32,
}

impl Default for FinalDataOptions {
    fn default() -> Self {
        FinalDataOptions {
            block_bytes: BLOCK_BYTES_DEFAULT,
            checksum: Checksum::default(),
            limit_blocks: 32,
            state_limit_bytes: 256 << 20,
        }
    }
}

/// A complete state with its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// 1 for the first state ever set, then 2, 3, ...
    pub version: u64,
    /// The state's bytes.
    pub bytes: Arc<[u8]>,
}

/// A complete state in a directory of its own, replaced as a whole by [`FinalData::set`].
///
/// One process has it open for writing; [`FinalData::read`] takes no lock.
#[derive(Debug)]
pub struct FinalData {
    pair: Mutex<StatePair>,
    _lock: WriterLock,
}

/// Stem of the pair of files of [`FinalData`].
pub(crate) const STATE_STEM: &str = "state";
/// A state is read whole, with its file around it.
const STATE_LIMIT_BYTES_MAX: u32 = 256 << 20;

impl FinalData {
    /// Opens or creates the final data in `dir`.
    ///
    /// # Errors
    /// [`Error::Locked`] if another writer has it open, [`Error::Corrupt`] if a durable state no longer verifies.
    pub fn open(dir: impl AsRef<Path>, options: FinalDataOptions) -> Result<FinalData> {
        FinalData::open_in(Env::default(), dir, options)
    }

    /// As [`FinalData::open`], on the given disk and runtime.
    pub fn open_in(env: Env, dir: impl AsRef<Path>, options: FinalDataOptions) -> Result<FinalData> {
        let dir = dir.as_ref();
        directory::create(&env, dir)?;
        let lock = WriterLock::acquire(&env, dir)?;
        if !StatePair::exists(&env, dir, STATE_STEM)? {
            directory::refuse_foreign(&env, dir, "final data")?;
        }
        Ok(FinalData { pair: Mutex::new(StatePair::open(env, dir, STATE_STEM, options)?), _lock: lock })
    }

    /// The latest state in `dir`, read without a lock; `None` if none was ever set.
    pub fn read(dir: impl AsRef<Path>) -> Result<Option<State>> {
        FinalData::read_in(Env::default(), dir)
    }

    /// As [`FinalData::read`], on the given disk and runtime.
    pub fn read_in(env: Env, dir: impl AsRef<Path>) -> Result<Option<State>> {
        read_state(&env, dir.as_ref(), STATE_STEM)
    }

    /// Whether `dir` holds final data.
    pub fn is_in(env: &Env, dir: &Path) -> Result<bool> {
        StatePair::exists(env, dir, STATE_STEM)
    }

    /// Replaces the state; durable on return. Answers the new version.
    ///
    /// # Errors
    /// [`Error::TooLarge`] changes nothing. After any other error the latest state may be the old or the new one,
    /// and every later call fails with [`Error::Poisoned`] until reopened.
    pub fn set(&self, bytes: &[u8]) -> Result<u64> {
        self.lock().set(bytes)
    }

    /// The latest durable state; `None` if none was ever set.
    pub fn get(&self) -> Option<State> {
        self.lock().state.clone()
    }

    /// Leaves a witness that the latest state is durable, and releases the lock.
    pub fn close(self) -> Result<()> {
        self.lock().close()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StatePair> {
        self.pair.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The two files of a final state; the caller holds the directory's lock.
#[derive(Debug)]
pub(crate) struct StatePair {
    env: Env,
    paths: [PathBuf; 2],
    options: FinalDataOptions,
    stream_id: StreamId,
    state: Option<State>,
    /// The file that holds `state`.
    holder: usize,
    /// Number of the last switch.
    generation: u32,
    /// Which of the names this process has made durable. One that it found may be a killed process's.
    durable_names: [bool; 2],
    /// Open for appending; `None` until the first set after an open, which switches.
    tail: Option<Tail>,
    failure: Option<Error>,
}

#[derive(Debug)]
struct Tail {
    file: Arc<dyn File>,
    segment_id: u64,
    next_block: u32,
    durable_position: u64,
}

fn pair_paths(dir: &Path, stem: &str) -> [PathBuf; 2] {
    [dir.join(format!("{stem}.a")), dir.join(format!("{stem}.b"))]
}

/// The latest complete state of a pair, without opening it for writing.
pub(crate) fn read_state(env: &Env, dir: &Path, stem: &str) -> Result<Option<State>> {
    let paths = pair_paths(dir, stem);
    // A writer may switch files between our looks at A and B: then neither shows a state that both would.
    for _ in 0..READ_ATTEMPTS {
        match Found::scan(env, &paths) {
            Err(error) if error.is_corruption() => continue,
            other => return Ok(other?.state),
        }
    }
    Ok(Found::scan(env, &paths)?.state)
}

const READ_ATTEMPTS: usize = 5;

/// What is left of a pair that may be damaged.
#[derive(Clone, Debug)]
pub(crate) struct Salvaged {
    /// The latest state that verifies.
    pub(crate) state: Option<State>,
    /// Versions below this one were durable.
    pub(crate) watermark: u64,
    /// Number of the last switch that can be seen.
    generation: u32,
    /// A valid file header, the newest of the two.
    header: Option<FileHeader>,
    /// What keeps the pair from being read or from keeping two versions.
    pub(crate) damage: Vec<Corruption>,
}

/// Reads what is left of a pair, whatever is damaged.
///
/// # Errors
/// [`Error::Format`] if both files are of a newer format, or foreign.
pub(crate) fn salvage(env: &Env, dir: &Path, stem: &str) -> Result<Salvaged> {
    let paths = pair_paths(dir, stem);
    let scanned = [Scanned::read(env, &paths[0])?, Scanned::read(env, &paths[1])?];
    let mut damage: Vec<Corruption> = Vec::new();
    let newest = scanned.iter().filter_map(|file| file.header).max_by_key(|header| header.epoch);
    let watermark = scanned.iter().map(|file| file.watermark).max().unwrap_or(0);
    for (file, path) in scanned.iter().zip(&paths) {
        match file.header_fault {
            // Made, and not written yet.
            None | Some(FileHeaderFault::Empty | FileHeaderFault::Short(_)) => {}
            Some(fault @ FileHeaderFault::Version { .. }) if newest.is_none() => {
                return Err(Error::Format { path: path.clone(), fault });
            }
            Some(fault) => {
                let reason = fault.to_string();
                damage.push(Corruption { path: path.clone(), position: 0, records: None, reason });
            }
        }
    }
    match Found::scan(env, &paths) {
        Err(Error::Corrupt(found)) if !damage.iter().any(|known| known.path == found.path) => {
            damage.push(*found);
        }
        Err(error @ Error::Io { .. }) => return Err(error),
        _ => {}
    }
    let state = scanned.into_iter().filter_map(|file| file.state).max_by_key(|state| state.version);
    let generation = newest.map_or(0, |header| header.epoch);
    Ok(Salvaged { state, watermark, generation, header: newest, damage })
}

impl Salvaged {
    /// A version that none of the pair's states has had.
    pub(crate) fn next_version(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.version).max(self.watermark) + 1
    }

    /// Replaces both files of a pair by one that holds this state, made in `workplace` and durable before anything
    /// changes.
    ///
    /// A crash leaves the pair as it was, or the new file beside the old second one, which it outranks.
    pub(crate) fn rewrite(
        &self,
        env: &Env,
        dir: &Path,
        stem: &str,
        state: &State,
        workplace: &Path,
    ) -> Result<()> {
        let version = state.version;
        let options = FinalDataOptions::default();
        let [target, second] = pair_paths(dir, stem);
        let made = workplace.join(format!("{stem}.new"));
        let block_bytes = self.header.map_or(options.block_bytes, |header| header.block_bytes as usize);
        let mut pair = StatePair {
            env: env.clone(),
            paths: [made.clone(), second.clone()],
            options: FinalDataOptions { block_bytes, ..options },
            stream_id: self.header.map_or_else(|| directory::new_stream_id(env), |header| header.stream_id),
            state: (version > 1).then(|| State { version: version - 1, bytes: Arc::default() }),
            // The first path is written: a first state goes to the holder, every other one to the other file.
            holder: usize::from(version > 1),
            generation: self.generation,
            durable_names: [false; 2],
            tail: None,
            failure: None,
        };
        pair.set(&state.bytes)?;
        pair.close()?;
        env.disk.rename(&made, &target).map_err(|error| Error::io("rename a new file to", &target, error))?;
        directory::sync_parent(env, &target)?;
        if env.disk.exists(&second) {
            env.disk.remove(&second).map_err(|error| Error::io("remove", &second, error))?;
            directory::sync_parent(env, &second)?;
        }
        Ok(())
    }
}

impl StatePair {
    /// Whether either file of the pair is there.
    pub(crate) fn exists(env: &Env, dir: &Path, stem: &str) -> Result<bool> {
        let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
        let paths = pair_paths(dir, stem);
        Ok(entries.iter().any(|entry| paths.iter().any(|path| path.ends_with(&entry.name))))
    }

    /// Opens the pair for writing, or begins a new one.
    pub(crate) fn open(env: Env, dir: &Path, stem: &str, options: FinalDataOptions) -> Result<StatePair> {
        if !is_block_size(options.block_bytes) {
            return Err(Error::InvalidOption {
                option: "block_bytes",
                value: options.block_bytes.to_string(),
                expected: "a power of two from 512 to 32768".to_string(),
            });
        }
        if options.state_limit_bytes > STATE_LIMIT_BYTES_MAX {
            return Err(Error::InvalidOption {
                option: "state_limit_bytes",
                value: options.state_limit_bytes.to_string(),
                expected: format!("at most {STATE_LIMIT_BYTES_MAX}"),
            });
        }
        let paths = pair_paths(dir, stem);
        let found = Found::scan(&env, &paths)?;
        let mut options = options;
        if let Some(header) = found.header {
            options.block_bytes = header.block_bytes as usize;
            options.checksum = header.checksum;
        }
        let stream_id = match found.header {
            Some(header) => header.stream_id,
            None => directory::new_stream_id(&env),
        };
        if found.state.is_some() && !mutant::is(Mutant::NoStateSyncAtOpen) {
            // What was read may still be in the device's cache only; from now on others may rely on it.
            let path = &paths[found.holder];
            let file = env.disk.open(path, OpenMode::Write, options.block_bytes);
            file.and_then(|file| file.sync()).map_err(|error| Error::io("sync", path, error))?;
        }
        Ok(StatePair {
            env,
            paths,
            options,
            stream_id,
            state: found.state,
            holder: found.holder,
            generation: found.generation,
            durable_names: [false; 2],
            tail: None,
            failure: None,
        })
    }

    /// The latest state.
    pub(crate) fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    /// See [`FinalData::set`].
    pub(crate) fn set(&mut self, bytes: &[u8]) -> Result<u64> {
        if let Some(cause) = &self.failure {
            let path = self.paths[self.holder].clone();
            return Err(Error::Poisoned { path, cause: Box::new(cause.clone()) });
        }
        if bytes.len() as u64 > u64::from(self.options.state_limit_bytes) {
            return Err(Error::TooLarge {
                size_bytes: bytes.len() as u64,
                limit_bytes: self.options.state_limit_bytes.into(),
            });
        }
        self.write(bytes).inspect_err(|error| self.failure = Some(error.clone()))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<u64> {
        let version = self.state.as_ref().map_or(0, |state| state.version).saturating_add(1);
        let space = PendingRecord::space_bytes_max(bytes.len(), self.options.block_bytes);
        let block_bytes = self.options.block_bytes as u64;
        let limit = u64::from(self.options.limit_blocks);
        match &mut self.tail {
            Some(tail) if u64::from(tail.next_block) + space / block_bytes <= limit => {
                let batch = form(&self.options, tail.segment_id, self.generation, tail, version, bytes);
                write_durably(&*tail.file, batch.bytes(), batch.position())?;
                tail.next_block = batch.block_numbers().end;
                tail.durable_position = batch.end_position();
            }
            _ => self.switch(version, bytes, space)?,
        }
        self.state = Some(State { version, bytes: bytes.into() });
        Ok(version)
    }

    /// Writes the state to the start of the other file, together with a new file header.
    fn switch(&mut self, version: u64, bytes: &[u8], space: u64) -> Result<()> {
        let block_bytes = self.options.block_bytes;
        let stays = self.state.is_none() || mutant::is(Mutant::StateOverwritten);
        let other = if stays { self.holder } else { 1 - self.holder };
        let planned =
            (u64::from(self.options.limit_blocks) * block_bytes as u64).max(block_bytes as u64 + space);
        let file = self.prepare(other, planned)?;
        let segment_id = self.env.runtime.random();
        let generation = self.generation.saturating_add(1);
        let header = FileHeader {
            kind: FileKind::FinalData,
            checksum: self.options.checksum,
            compression: Compression::None,
            block_bytes: block_bytes as u32,
            stream_id: self.stream_id,
            segment_id,
            base_index: version,
            epoch: generation,
            in_flight_bytes: 0,
            record_limit_bytes: self.options.state_limit_bytes,
            is_sparse: false,
            frame_layout: FrameLayout::Aligned,
        };
        let mut tail = Tail { file, segment_id, next_block: 1, durable_position: block_bytes as u64 };
        let batch = form(&self.options, segment_id, generation, &tail, version, bytes);
        let mut image = AlignedBuf::zeroed(block_bytes + batch.bytes().len());
        header.encode(&mut image);
        image[block_bytes..].copy_from_slice(batch.bytes());
        write_durably(&*tail.file, &image, 0)?;
        tail.next_block = batch.block_numbers().end;
        tail.durable_position = batch.end_position();
        self.generation = generation;
        self.holder = other;
        self.tail = Some(tail);
        Ok(())
    }

    /// Makes the file of the next switch now, for those who must be able to switch on a full disk.
    pub(crate) fn prepare_other(&mut self) -> Result<()> {
        let planned_bytes = u64::from(self.options.limit_blocks) * self.options.block_bytes as u64;
        self.prepare(1 - self.holder, planned_bytes).map(|_file| ())
    }

    /// Opens or creates the file of the next switch and gives it its working length.
    fn prepare(&mut self, which: usize, planned_bytes: u64) -> Result<Arc<dyn File>> {
        let path = &self.paths[which];
        let unit = self.options.block_bytes;
        let file = match self.env.disk.open(path, OpenMode::Write, unit) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => self
                .env
                .disk
                .open(path, OpenMode::CreateNew, unit)
                .map_err(|error| Error::write("create", path, planned_bytes, error))?,
            Err(error) => return Err(Error::io("open", path, error)),
        };
        if !self.durable_names[which] {
            // Also of a file that was there: whoever created it may have been killed before this.
            directory::sync_parent(&self.env, path)?;
            self.durable_names[which] = true;
        }
        let len = file.len().map_err(|error| Error::io("measure", path, error))?;
        let wrong_length = |error| Error::write("give its length to", path, planned_bytes, error);
        if len < planned_bytes {
            // Zeros written once, so that every later write is a plain overwrite.
            let zeros = AlignedBuf::zeroed((planned_bytes - len / unit as u64 * unit as u64) as usize);
            file.write_all_at(&zeros, len / unit as u64 * unit as u64, WriteSync::Later)
                .map_err(wrong_length)?;
            file.sync().map_err(wrong_length)?;
        } else if len > planned_bytes * 2 {
            // Left by one large state.
            file.set_len(planned_bytes).map_err(wrong_length)?;
        }
        Ok(file)
    }

    /// Writes a block without slices whose watermark says that the latest state is durable.
    pub(crate) fn close(&mut self) -> Result<()> {
        let (Some(tail), Some(state), None) = (&self.tail, &self.state, &self.failure) else {
            return Ok(());
        };
        let mut image = AlignedBuf::zeroed(self.options.block_bytes);
        let header = BlockHeader {
            segment_id: tail.segment_id,
            block_number: tail.next_block,
            epoch: self.generation,
            first_index: state.version.saturating_add(1),
            durable_index: state.version.saturating_add(1),
            durable_position: tail.durable_position,
            used_bytes: BLOCK_HEADER_BYTES as u16,
        };
        header.encode(&mut image, BLOCK_HEADER_BYTES as u16, self.options.checksum);
        let position = u64::from(tail.next_block) * self.options.block_bytes as u64;
        let result = write_durably(&*tail.file, &image, position);
        self.tail = None;
        result
    }
}

fn write_durably(file: &dyn File, bytes: &[u8], position: u64) -> Result<()> {
    file.write_all_at(bytes, position, WriteSync::Durable)
        .map_err(|error| Error::write("write", file.path(), bytes.len() as u64, error))
}

fn form(
    options: &FinalDataOptions,
    segment_id: u64,
    epoch: u32,
    tail: &Tail,
    version: u64,
    bytes: &[u8],
) -> crate::block::Batch {
    let identity =
        Identity { segment_id, epoch, checksum: options.checksum, block_bytes: options.block_bytes };
    let space = PendingRecord::space_bytes_max(bytes.len(), options.block_bytes) as usize;
    let mut writer = BlockWriter::new(identity, tail.next_block, space, None);
    let mut record = PendingRecord::new(version, 0, Compression::None, bytes, bytes.len() as u32);
    assert!(writer.put(&mut record), "the buffer was sized for the state");
    writer.seal(version, tail.durable_position, None)
}

/// What the two files hold.
struct Found {
    state: Option<State>,
    holder: usize,
    generation: u32,
    /// A valid file header, the newest of the two.
    header: Option<FileHeader>,
}

/// What one file holds.
#[derive(Default)]
struct Scanned {
    header: Option<FileHeader>,
    header_fault: Option<FileHeaderFault>,
    state: Option<State>,
    /// The highest durable watermark in any block that verifies, whatever file it was written for.
    watermark: u64,
    fault: Option<(u64, String)>,
}

impl Found {
    fn scan(env: &Env, paths: &[PathBuf; 2]) -> Result<Found> {
        let mut scanned = [Scanned::read(env, &paths[0])?, Scanned::read(env, &paths[1])?];
        if scanned.iter().all(|file| file.header.is_none()) {
            // A file that is not ours, or newer, must not be taken for an absent one.
            for (file, path) in scanned.iter().zip(paths) {
                match file.header_fault {
                    Some(fault @ (FileHeaderFault::Magic(_) | FileHeaderFault::Version { .. })) => {
                        return Err(Error::Format { path: path.clone(), fault });
                    }
                    Some(fault) if file.watermark > 1 => {
                        return Err(Error::corrupt(path, 0, Some(0..file.watermark), fault));
                    }
                    _ => {}
                }
            }
        }
        for (file, path) in scanned.iter().zip(paths) {
            if let Some(fault @ FileHeaderFault::Version { .. }) = file.header_fault {
                return Err(Error::Format { path: path.clone(), fault });
            }
        }
        let version = |file: &Scanned| file.state.as_ref().map_or(0, |state| state.version);
        let holder = usize::from(version(&scanned[1]) > version(&scanned[0]));
        let best = version(&scanned[holder]);
        let watermark = scanned.iter().map(|file| file.watermark).max().unwrap_or(0);
        if watermark > best.saturating_add(1) && !mutant::is(Mutant::OlderStateAccepted) {
            // Versions below the watermark were durable; the one before it is not to be found.
            let at = usize::from(scanned[1].watermark > scanned[0].watermark);
            let (position, reason) = match (&scanned[at].fault, &scanned[at].header_fault) {
                (_, Some(fault)) => (0, fault.to_string()),
                (Some((position, reason)), None) => (*position, reason.clone()),
                (None, None) => (0, "the state is missing".to_string()),
            };
            let reason =
                format!("state version {} was durable and no longer verifies: {reason}", watermark - 1);
            return Err(Error::corrupt(&paths[at], position, Some(best + 1..watermark), reason));
        }
        let newest = scanned.iter().filter_map(|file| file.header).max_by_key(|header| header.epoch);
        Ok(Found {
            state: scanned[holder].state.take(),
            holder,
            generation: newest.map_or(0, |header| header.epoch),
            header: newest,
        })
    }
}

impl Scanned {
    fn read(env: &Env, path: &Path) -> Result<Scanned> {
        let Some(image) = directory::read_whole(env, path)? else {
            return Ok(Scanned::default());
        };
        let header = match FileHeader::decode(&image) {
            Ok(header) => header,
            Err(fault) => {
                let mut scanned = Scanned { header_fault: Some(fault), ..Scanned::default() };
                // Without the header the block size is unknown; watermarks are found at any of them.
                for shift in 9..=15 {
                    scanned.collect_watermarks(&image, 1 << shift, Checksum::Crc32c);
                }
                return Ok(scanned);
            }
        };
        let mut scanned = Scanned { header: Some(header), ..Scanned::default() };
        scanned.walk(&image, &header);
        scanned.collect_watermarks(&image, header.block_bytes as usize, header.checksum);
        Ok(scanned)
    }

    fn walk(&mut self, image: &[u8], header: &FileHeader) {
        let block_bytes = header.block_bytes as usize;
        let reader = BlockReader {
            segment_id: header.segment_id,
            checksum: header.checksum,
            block_bytes,
            record_limit_bytes: header.record_limit_bytes,
            is_sparse: false,
        };
        let Some(run) = image.get(block_bytes..) else { return };
        let mut records = Records::new(reader, 1, 0, Some(header.base_index), true);
        loop {
            match records.next(run, 1, u32::MAX) {
                Ok(Step::Record(found)) => {
                    let bytes = match found.in_run {
                        Some(range) => &run[range],
                        None => records.assembled(),
                    };
                    self.state = Some(State { version: found.index, bytes: bytes.into() });
                }
                Ok(Step::EndOfRun) => return,
                Err(fault) => {
                    let position = u64::from(fault.block) * block_bytes as u64 + fault.offset as u64;
                    self.fault = Some((position, fault.to_string()));
                    return;
                }
            }
        }
    }

    /// Blocks of any file's life: an older life has lower watermarks, so they never mislead.
    fn collect_watermarks(&mut self, image: &[u8], block_bytes: usize, checksum: Checksum) {
        if checksum == Checksum::None {
            return;
        }
        for (number, block) in image.chunks_exact(block_bytes).enumerate().skip(1) {
            let segment_id = u64::from_le_bytes(block[8..16].try_into().expect("eight bytes"));
            if let Ok(header) = BlockHeader::decode(block, segment_id, number as u32, checksum) {
                self.watermark = self.watermark.max(header.durable_index);
            }
        }
    }
}
