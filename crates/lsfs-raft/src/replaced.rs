//! Entries that took the place of others.
//!
//! The stream of entries is append-only, so an entry that supersedes another one, or is put back where one was lost,
//! lies in a stream beside it. Which one stands for which index is known in memory; opening reads that stream, which
//! has a record for each replacement since the last purge. What is cut off the entries is cut off here by a record.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lsfs::{Corruption, Env, Record, RecordStream, StreamOptions};

use crate::entry::{EntryHeader, EntryId};
use crate::error::{EntryFault, Error, Result};
use crate::options::LogOptions;

/// Type codes of the records: an entry for an index, or a cut of all from an index on.
const REPLACED: u64 = 1;
const CUT: u64 = 2;
/// Index and kind before the bytes of the entry.
pub(crate) const PREFIX_BYTES: usize = 16;

/// Where the entry for an index lies.
#[derive(Clone, Debug)]
pub(crate) struct Replaced {
    stream: RecordStream,
    record: u64,
}

impl Replaced {
    pub(crate) fn read(&self) -> Result<Record> {
        Ok(self.stream.read(self.record)?)
    }

    /// The kind and the payload of the entry in such a record.
    pub(crate) fn split(index: u64, record: &Record) -> Result<(u64, &[u8])> {
        let prefix = record.payload.first_chunk::<PREFIX_BYTES>();
        let fault = EntryFault::Short { field: "replaced index" };
        let prefix = prefix.ok_or(Error::Entry { index, fault })?;
        Ok((number_at(prefix, 8), &record.payload[PREFIX_BYTES..]))
    }
}

/// The record of an entry that stands for the one with its index.
pub(crate) fn record_of(id: EntryId, kind: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + payload.len());
    bytes.extend(id.index.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn number_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The error for a stream that should have records and has none.
fn damaged(path: PathBuf, reason: String) -> Error {
    let damage = Corruption { path, position: 0, records: None, reason };
    Error::Engine(lsfs::Error::Corrupt(Box::new(damage)))
}

/// The entries that took the place of others, by index.
#[derive(Debug)]
pub(crate) struct ReplacedEntries {
    env: Env,
    dir: PathBuf,
    options: LogOptions,
    /// Not there before the first replacement.
    stream: Option<RecordStream>,
    by_index: BTreeMap<u64, (u64, EntryId)>,
}

impl ReplacedEntries {
    /// Reads what is there.
    ///
    /// # Errors
    /// A corruption if it is damaged, or missing although something was replaced.
    pub(crate) fn open(
        env: &Env,
        dir: PathBuf,
        options: &LogOptions,
        is_expected: bool,
    ) -> Result<ReplacedEntries> {
        let mut replaced = ReplacedEntries {
            env: env.clone(),
            options: options.clone(),
            stream: None,
            by_index: BTreeMap::new(),
            dir,
        };
        if env.disk.exists(&replaced.dir) || is_expected {
            let stream = replaced.open_stream(!is_expected)?;
            if is_expected && stream.next_index() == 0 {
                return Err(damaged(replaced.dir, "it has no records".to_string()));
            }
            let mut cursor = stream.iter(..);
            while let Some(record) = cursor.next_record()? {
                let record = record.into_owned();
                replaced.replay(&record)?;
            }
            replaced.stream = Some(stream);
        }
        Ok(replaced)
    }

    fn open_stream(&self, create: bool) -> Result<RecordStream> {
        let options = StreamOptions { create, ..self.options.beside() };
        match RecordStream::open_in(self.env.clone(), &self.dir, options) {
            Err(lsfs::Error::NotFound { path, reason, .. }) if !create => Err(damaged(path, reason)),
            other => Ok(other?),
        }
    }

    fn replay(&mut self, record: &Record) -> Result<()> {
        let index = match record.payload.first_chunk::<8>() {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => {
                let fault = EntryFault::Short { field: "replaced index" };
                return Err(Error::Entry { index: record.index, fault });
            }
        };
        match record.type_code {
            CUT => drop(self.by_index.split_off(&index)),
            REPLACED => {
                let (_, payload) = Replaced::split(index, record)?;
                let (header, _) =
                    EntryHeader::decode(payload).map_err(|fault| Error::Entry { index, fault })?;
                let id = EntryId { index, term: header.term, leader: header.leader };
                self.by_index.insert(index, (record.index, id));
            }
            found => return Err(Error::Entry { index, fault: EntryFault::Kind { found } }),
        }
        Ok(())
    }

    pub(crate) fn place_of(&self, index: u64) -> Option<Replaced> {
        let &(record, _) = self.by_index.get(&index)?;
        let stream = self.stream.clone()?;
        Some(Replaced { stream, record })
    }

    pub(crate) fn id_of(&self, index: u64) -> Option<EntryId> {
        self.by_index.get(&index).map(|&(_, id)| id)
    }

    pub(crate) fn indexes(&self) -> impl Iterator<Item = u64> {
        self.by_index.keys().copied()
    }

    /// Lowest and highest index that was replaced.
    pub(crate) fn reach_of(&self) -> Option<(u64, u64)> {
        let (low, _) = self.by_index.first_key_value()?;
        let (high, _) = self.by_index.last_key_value()?;
        Some((*low, *high))
    }

    /// The stream, made if it is not there.
    pub(crate) fn stream(&mut self) -> Result<RecordStream> {
        match &self.stream {
            Some(stream) => Ok(stream.clone()),
            None => Ok(self.stream.insert(self.open_stream(true)?).clone()),
        }
    }

    pub(crate) fn opened(&self) -> Option<RecordStream> {
        self.stream.clone()
    }

    /// Writes the entry for an index; durable on return, and seen after [`ReplacedEntries::set`].
    pub(crate) fn write(stream: &RecordStream, id: EntryId, kind: u64, payload: &[u8]) -> Result<u64> {
        Ok(stream.append(REPLACED, &record_of(id, kind, payload))?)
    }

    pub(crate) fn set(&mut self, record: u64, id: EntryId) {
        self.by_index.insert(id.index, (record, id));
    }

    /// Whether an entry from this index on was replaced.
    pub(crate) fn reach(&self, index: u64) -> bool {
        self.by_index.range(index..).next().is_some()
    }

    /// Forgets entries from an index on; durable on return. The entries themselves must be cut off already.
    pub(crate) fn write_cut(stream: &RecordStream, index: u64) -> Result<()> {
        stream.append(CUT, &index.to_le_bytes())?;
        Ok(())
    }

    pub(crate) fn cut_from(&mut self, index: u64) {
        self.by_index.split_off(&index);
    }

    /// Forgets entries before an index: nobody asks for them any more. Answers the first record still needed, if that
    /// is not the first one there is.
    pub(crate) fn cut_before(&mut self, index: u64) -> Option<(RecordStream, u64)> {
        self.by_index = self.by_index.split_off(&index);
        let stream = self.stream.as_ref()?;
        let needed = self.by_index.values().map(|&(record, _)| record).min().unwrap_or(stream.next_index());
        (needed > stream.first_index()).then(|| (stream.clone(), needed))
    }
}
