//! Snapshots: a state of the machine that stands for all entries up to an index.
//!
//! The bytes of a snapshot are a data stream in a numbered directory, its slot; what it is a snapshot of stands in the
//! state, which names it only when all of it is durable. A snapshot that arrives in pieces is named there too, so that
//! the transfer goes on after a restart where the last mark was set.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lsfs::{DataReader, DataStream, DataStreamOptions};

use crate::error::{Error, Result};
use crate::log::Core;
use crate::order::Deferred;
use crate::shared::Shared;
use crate::state::{SnapshotMeta, State, StoredSnapshot};
use crate::writer::Writer;

/// The slots that somebody reads or writes in this process.
#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<BTreeMap<u32, usize>>);

impl Slots {
    fn held(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a slot's files from being removed.
#[derive(Debug)]
struct SlotGuard {
    shared: Arc<Shared>,
    slot: u32,
}

impl SlotGuard {
    fn hold(shared: &Arc<Shared>, slot: u32) -> SlotGuard {
        *shared.slots.held().entry(slot).or_default() += 1;
        SlotGuard { shared: Arc::clone(shared), slot }
    }

    /// Holds the lowest slot that nobody uses and the state does not name.
    fn hold_free(shared: &Arc<Shared>, state: &State) -> SlotGuard {
        let mut held = shared.slots.held();
        let is_named =
            |slot| [&state.snapshot, &state.incoming].into_iter().flatten().any(|named| named.slot == slot);
        let slot = (0..).find(|slot| !held.contains_key(slot) && !is_named(*slot)).expect("few are in use");
        *held.entry(slot).or_default() += 1;
        SlotGuard { shared: Arc::clone(shared), slot }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        let mut held = self.shared.slots.held();
        match held.get_mut(&self.slot) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(held.remove(&self.slot)),
        }
    }
}

fn slot_dir(shared: &Shared, slot: u32) -> PathBuf {
    shared.dir.join("snapshots").join(format!("{slot:08}"))
}

/// Removes what lies in a slot, unless somebody reads it: then it goes when the slot is used again.
pub(crate) fn clear_unused(shared: &Shared, slot: u32) {
    if !shared.slots.held().contains_key(&slot)
        && let Err(error) = clear(shared, slot)
    {
        tracing::warn!(dir = %shared.dir.display(), slot, %error, "could not remove an old snapshot");
    }
}

fn clear(shared: &Shared, slot: u32) -> Result<()> {
    let (dir, disk) = (slot_dir(shared, slot), &shared.env.disk);
    if !disk.exists(&dir) {
        return Ok(());
    }
    let failed = |action, source: io::Error| {
        Error::Engine(lsfs::Error::Io { action, path: dir.clone(), source: Arc::new(source) })
    };
    for entry in disk.list(&dir).map_err(|error| failed("list", error))? {
        disk.remove(&dir.join(entry.name)).map_err(|error| failed("empty", error))?;
    }
    disk.sync_dir(&dir).map_err(|error| failed("sync", error))
}

fn data_options(shared: &Shared) -> DataStreamOptions {
    let stream = shared.options.beside();
    DataStreamOptions { compression: stream.compression, stream }
}

/// A snapshot that is being written here, or arrives from elsewhere.
///
/// Bytes come through [`Write`] or [`SnapshotWriter::write_chunk`]. The log knows nothing of them before
/// [`SnapshotWriter::install`] or [`SnapshotWriter::save`].
#[derive(Debug)]
pub struct SnapshotWriter {
    core: Arc<Core>,
    guard: SlotGuard,
    data: DataStream,
    meta: SnapshotMeta,
    unmarked_bytes: u64,
}

impl SnapshotWriter {
    /// A snapshot made by this node: after a crash it is begun anew.
    pub(crate) fn begin(core: &Arc<Core>, meta: SnapshotMeta) -> Result<SnapshotWriter> {
        // A state whose write failed may be durable all the same, and name a slot that looks free.
        drop(core.turn()?);
        SnapshotWriter::begin_in_turn(core, meta)
    }

    /// For whoever has the turn already, or had it just now.
    pub(crate) fn begin_in_turn(core: &Arc<Core>, meta: SnapshotMeta) -> Result<SnapshotWriter> {
        let shared = core.shared();
        let guard = SlotGuard::hold_free(shared, &shared.view().state);
        clear(shared, guard.slot)?;
        SnapshotWriter::open(core, guard, meta)
    }

    /// A snapshot from another node; the same one is gone on with at its last mark.
    pub(crate) fn receive(core: &Arc<Core>, meta: SnapshotMeta) -> Result<SnapshotWriter> {
        let shared = core.shared();
        let mut writer = core.turn()?;
        let known = shared.view().state.incoming.clone().filter(|incoming| incoming.meta == meta);
        if let Some(incoming) = known {
            let guard = SlotGuard::hold(shared, incoming.slot);
            drop(writer);
            return SnapshotWriter::open(core, guard, meta);
        }
        let guard = SlotGuard::hold_free(shared, &shared.view().state);
        clear(shared, guard.slot)?;
        let former =
            writer.name_incoming(StoredSnapshot { meta: meta.clone(), slot: guard.slot, byte_count: 0 })?;
        if let Some(former) = former {
            clear_unused(shared, former.slot);
        }
        drop(writer);
        SnapshotWriter::open(core, guard, meta)
    }

    fn open(core: &Arc<Core>, guard: SlotGuard, meta: SnapshotMeta) -> Result<SnapshotWriter> {
        let shared = core.shared();
        let dir = slot_dir(shared, guard.slot);
        let data = DataStream::open_in(shared.env.clone(), dir, data_options(shared))?;
        Ok(SnapshotWriter { core: Arc::clone(core), guard, data, meta, unmarked_bytes: 0 })
    }

    /// What it is a snapshot of.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Bytes that have arrived: where the next chunk begins.
    pub fn position(&self) -> u64 {
        self.data.position()
    }

    /// Takes a chunk that begins at a byte. Every so many bytes what arrived is made durable.
    ///
    /// # Errors
    /// [`Error::ChunkOffset`] if it does not follow what has arrived; nothing has changed then.
    pub fn write_chunk(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let expected = self.position();
        if offset != expected {
            return Err(Error::ChunkOffset { given: offset, expected });
        }
        self.write_all(bytes).map_err(engine_error)
    }

    /// Makes what has arrived durable: a transfer goes on here after a crash.
    ///
    /// # Errors
    /// If the disk fails; the transfer must then be begun again.
    pub fn checkpoint(&mut self) -> Result<()> {
        self.data.mark()?;
        self.unmarked_bytes = 0;
        Ok(())
    }

    /// All bytes are here: makes it the log's snapshot and drops the entries it covers; durable on return.
    ///
    /// Entries behind it stay if they follow it, that is if the log has its last entry in the same term; otherwise the
    /// log begins anew behind the snapshot.
    ///
    /// # Errors
    /// [`Error::SnapshotBehind`] if the log has a later one.
    pub fn install(self) -> Result<()> {
        self.finish(true)
    }

    /// As [`SnapshotWriter::install`], but the entries stay until they are purged.
    ///
    /// # Errors
    /// As for [`SnapshotWriter::install`].
    pub fn save(self) -> Result<()> {
        self.finish(false)
    }

    /// As [`SnapshotWriter::install`], in line with all other writes.
    pub fn install_async(self) -> Deferred<Result<()>> {
        self.finish_in_line(true)
    }

    /// As [`SnapshotWriter::save`], in line with all other writes.
    pub fn save_async(self) -> Deferred<Result<()>> {
        self.finish_in_line(false)
    }

    /// As [`SnapshotWriter::write_chunk`], aside; gives the writer back with the outcome.
    pub fn write_chunk_async(
        mut self,
        offset: u64,
        bytes: Vec<u8>,
    ) -> Deferred<(SnapshotWriter, Result<()>)> {
        let core = Arc::clone(&self.core);
        core.defer_beside(move || {
            let written = self.write_chunk(offset, &bytes);
            (self, written)
        })
    }

    /// Has `write` write a snapshot and saves it.
    pub(crate) fn build(
        core: &Arc<Core>,
        meta: SnapshotMeta,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()> {
        let mut writer = SnapshotWriter::begin(core, meta)?;
        write(&mut writer).map_err(engine_error)?;
        writer.save()
    }

    /// Makes the bytes durable; answers what the log is to name, and the slot, which stays held.
    fn seal(mut self) -> Result<(Arc<Core>, SlotGuard, StoredSnapshot)> {
        self.data.mark()?;
        let byte_count = self.data.position();
        self.data.close()?;
        let snapshot = StoredSnapshot { meta: self.meta, slot: self.guard.slot, byte_count };
        Ok((self.core, self.guard, snapshot))
    }

    fn finish(self, drops_entries: bool) -> Result<()> {
        // Before it is our turn: others need not wait for the bytes.
        let (core, guard, snapshot) = self.seal()?;
        let mut turn = core.turn()?;
        name(&mut turn, core.shared(), guard, snapshot, drops_entries)
    }

    /// For whoever has the turn already.
    pub(crate) fn finish_in_turn(self, writer: &mut Writer, drops_entries: bool) -> Result<()> {
        let (core, guard, snapshot) = self.seal()?;
        name(writer, core.shared(), guard, snapshot, drops_entries)
    }

    fn finish_in_line(self, drops_entries: bool) -> Deferred<Result<()>> {
        let core = Arc::clone(&self.core);
        core.defer(move |writer| {
            writer.check_usable()?;
            self.finish_in_turn(writer, drops_entries)
        })
    }
}

/// Makes a whole snapshot the log's, and empties the slot of the former one.
fn name(
    writer: &mut Writer,
    shared: &Shared,
    guard: SlotGuard,
    snapshot: StoredSnapshot,
    drops_entries: bool,
) -> Result<()> {
    let former = writer.name_snapshot(snapshot, drops_entries)?;
    if let Some(former) = former.filter(|former| former.slot != guard.slot) {
        clear_unused(shared, former.slot);
    }
    Ok(())
}

impl Write for SnapshotWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.data.write(bytes)?;
        self.unmarked_bytes += taken as u64;
        if self.unmarked_bytes >= self.core.shared().options.snapshot_mark_bytes {
            self.checkpoint().map_err(io::Error::other)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.data.flush()
    }
}

/// The error inside an [`io::Error`] of a data stream.
fn engine_error(error: io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<lsfs::Error>()) {
        Some(engine) => Error::Engine(engine.clone()),
        None => match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(own) => own.clone(),
            None => Error::Engine(lsfs::Error::Io {
                action: "transfer",
                path: PathBuf::from("snapshot"),
                source: Arc::new(error),
            }),
        },
    }
}

/// A piece of a snapshot on its way to another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    /// Where in the snapshot it begins.
    pub offset: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether nothing follows.
    pub is_last: bool,
}

/// Reads the log's snapshot: [`Read`] and [`Seek`], or chunk by chunk from any byte.
///
/// It goes on reading its snapshot when the log has taken another one.
#[derive(Debug)]
pub struct SnapshotReader {
    data: DataReader,
    meta: SnapshotMeta,
    #[cfg_attr(
        not(feature = "openraft"),
        allow(dead_code, reason = "held for its drop; only openraft asks it")
    )]
    guard: SlotGuard,
}

impl SnapshotReader {
    pub(crate) fn open(shared: &Arc<Shared>) -> Result<SnapshotReader> {
        let (snapshot, guard) = {
            // Held together: a slot that the state names cannot be emptied before it is held.
            let view = shared.view();
            let snapshot = view.state.snapshot.clone().ok_or(Error::NoSnapshot)?;
            let guard = SlotGuard::hold(shared, snapshot.slot);
            (snapshot, guard)
        };
        let data = DataReader::open_in(shared.env.clone(), slot_dir(shared, snapshot.slot))?;
        Ok(SnapshotReader { data, meta: snapshot.meta, guard })
    }

    /// What it is a snapshot of.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Whether it reads the present snapshot of this log.
    #[cfg(feature = "openraft")]
    pub(crate) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.guard.shared, shared)
            && shared.view().state.snapshot.as_ref().is_some_and(|current| current.slot == self.guard.slot)
    }

    /// Bytes of the snapshot.
    pub fn byte_count(&self) -> u64 {
        self.data.byte_count()
    }

    /// At most `limit_bytes` bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::ChunkOffset`] behind the end; if the bytes no longer verify.
    pub fn chunk(&mut self, offset: u64, limit_bytes: usize) -> Result<SnapshotChunk> {
        let count = self.byte_count();
        if offset > count {
            return Err(Error::ChunkOffset { given: offset, expected: count });
        }
        let len = (count - offset).min(limit_bytes as u64);
        let mut bytes = vec![0; len as usize];
        self.data.seek(SeekFrom::Start(offset)).map_err(engine_error)?;
        self.data.read_exact(&mut bytes).map_err(engine_error)?;
        Ok(SnapshotChunk { offset, bytes, is_last: offset + len == count })
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.data.read(buf)
    }
}

impl Seek for SnapshotReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.data.seek(to)
    }
}
