//! Snapshots for a state machine of openraft.

use std::io::{self, Write};
use std::marker::PhantomData;
use std::sync::Arc;

use ::openraft::StoredMembership;
use ::openraft::alias::{SnapshotMetaOf, SnapshotOf, StoredMembershipOf};

use super::encoding::{put_membership, take_membership};
use super::{StoredConfig, entry_id, io_error, log_id};
use crate::entry::EntryId;
use crate::error::{Error, Result};
use crate::fields::{FieldReader, FieldWriter};
use crate::log::{Core, RaftLog};
use crate::snapshot::{SnapshotReader, SnapshotWriter};
use crate::state::SnapshotMeta;

/// A snapshot in openraft's hands: the `SnapshotData` of a state machine.
#[derive(Debug)]
pub enum SnapshotData {
    /// One that a store holds, to be read: it goes to other nodes.
    Stored(SnapshotReader),
    /// One that has arrived whole, to be installed.
    Received(SnapshotWriter),
}

/// Keeps the snapshots of a state machine beside its log.
#[derive(Debug)]
pub struct SnapshotStore<C> {
    core: Arc<Core>,
    config: PhantomData<fn() -> C>,
}

impl<C> Clone for SnapshotStore<C> {
    fn clone(&self) -> Self {
        SnapshotStore { core: Arc::clone(&self.core), config: PhantomData }
    }
}

impl<C: StoredConfig> SnapshotStore<C> {
    /// The snapshots of a log that is started.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn new(log: &RaftLog) -> Result<Self> {
        Ok(SnapshotStore { core: log.core()?, config: PhantomData })
    }

    /// The current snapshot, for `get_current_snapshot`.
    ///
    /// # Errors
    /// If it cannot be opened, or what is said about it is not of this configuration.
    pub fn current(&self) -> io::Result<Option<SnapshotOf<C, SnapshotData>>> {
        match SnapshotReader::open(self.core.shared()) {
            Ok(reader) => {
                let meta = decode_meta::<C>(reader.meta())?;
                Ok(Some(SnapshotOf::<C, SnapshotData> { meta, snapshot: SnapshotData::Stored(reader) }))
            }
            Err(Error::NoSnapshot) => Ok(None),
            Err(error) => Err(io_error(error)),
        }
    }

    /// Makes a snapshot of what `write` writes, for `build_snapshot`. It is durable and the current one when the future
    /// resolves. `write` runs beside the log's other work, not on the executor; entries are appended all the while.
    ///
    /// # Errors
    /// If `write` fails, or the disk; the current snapshot stays.
    pub async fn build(
        &self,
        meta: &SnapshotMetaOf<C>,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> io::Result<SnapshotOf<C, SnapshotData>> {
        let (core, meta) = (Arc::clone(&self.core), encode_meta::<C>(meta));
        let built = self.core.defer_beside(move || SnapshotWriter::build(&core, meta, write));
        built.await.map_err(io_error)?;
        self.current()?.ok_or_else(|| io_error(Error::NoSnapshot))
    }

    /// Takes a snapshot from another node, chunk by chunk; what arrived of the same one before is kept. When it is whole
    /// it goes to openraft as [`SnapshotData::Received`].
    ///
    /// # Errors
    /// If its files cannot be made.
    pub fn receive(&self, meta: &SnapshotMetaOf<C>) -> io::Result<SnapshotWriter> {
        SnapshotWriter::receive(&self.core, encode_meta::<C>(meta)).map_err(io_error)
    }

    /// Makes a snapshot the current one, for `install_snapshot`; durable when the future resolves. Answers a reader of
    /// its data, for the state machine.
    ///
    /// # Errors
    /// If it cannot be written or read.
    pub async fn install(&self, meta: &SnapshotMetaOf<C>, data: SnapshotData) -> io::Result<SnapshotReader> {
        let saved = match data {
            SnapshotData::Received(writer) => Some(writer.save_async()),
            // Openraft installs the current snapshot again when a node starts.
            SnapshotData::Stored(reader) if reader.is_of(self.core.shared()) => None,
            SnapshotData::Stored(mut reader) => {
                let (core, meta) = (Arc::clone(&self.core), encode_meta::<C>(meta));
                let copy = move |out: &mut dyn Write| io::copy(&mut reader, out).map(drop);
                Some(self.core.defer_beside(move || SnapshotWriter::build(&core, meta, copy)))
            }
        };
        if let Some(saved) = saved {
            saved.await.map_err(io_error)?;
        }
        SnapshotReader::open(self.core.shared()).map_err(io_error)
    }
}

fn encode_meta<C: StoredConfig>(meta: &SnapshotMetaOf<C>) -> SnapshotMeta {
    let mut about = FieldWriter::default();
    let since = meta.last_membership.log_id().as_ref().map(entry_id::<C>);
    let id = since.unwrap_or_default();
    about.put_u32(u32::from(since.is_some()));
    [id.index, id.term, id.leader].into_iter().for_each(|number| about.put_u64(number));
    put_membership(&mut about, meta.last_membership.membership());
    SnapshotMeta { last: meta.last_log_id.as_ref().map(entry_id::<C>), about: about.into_bytes() }
}

fn decode_meta<C: StoredConfig>(meta: &SnapshotMeta) -> io::Result<SnapshotMetaOf<C>> {
    let invalid = |fault| io::Error::new(io::ErrorKind::InvalidData, fault);
    let mut about = FieldReader::new(&meta.about);
    let is_since = about.truth("membership since").map_err(invalid)?;
    let mut number = || about.u64("membership since").map_err(invalid);
    let id = EntryId { index: number()?, term: number()?, leader: number()? };
    let membership = take_membership(&mut about)?;
    about.end().map_err(invalid)?;
    let last_membership: StoredMembershipOf<C> =
        StoredMembership::new(is_since.then(|| log_id::<C>(id)), membership);
    Ok(SnapshotMetaOf::<C> { last_log_id: meta.last.map(log_id::<C>), last_membership })
}
