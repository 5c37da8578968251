//! Entries that took the place of others.
//!
//! The stream of entries is append-only, so an entry that supersedes another one, or is put back where one was lost,
//! lies in a stream beside it. Which one stands for which index is known in memory; opening reads that stream, which
//! has a record for each replacement since the last purge. What is cut off the entries is cut off here by a record.
//! What each record is of is written a second time, into the stream of names.

use std::path::{Path, PathBuf};

use lsfs::{Corruption, Env, Record, RecordStream, StreamOptions};

use crate::entry::EntryId;
use crate::error::{EntryFault, Error, Result};
use crate::names::{self, Name, Salvage, Standing};
use crate::options::LogOptions;

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

pub(crate) fn number_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The error for a stream that should have records and has none.
fn damaged(path: PathBuf, reason: String) -> Error {
    let damage = Corruption { path, position: 0, records: None, reason };
    Error::Engine(lsfs::Error::Corrupt(Box::new(damage)))
}

/// The two streams; record numbers are the same in both.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    entries: RecordStream,
    names: RecordStream,
}

impl Streams {
    fn open(env: &Env, dirs: &Directories, options: &LogOptions, create: bool) -> Result<Streams> {
        let open = |dir: &Path| {
            let options = StreamOptions { create, ..options.beside() };
            match RecordStream::open_in(env.clone(), dir, options) {
                Err(lsfs::Error::NotFound { path, reason, .. }) if !create => Err(damaged(path, reason)),
                other => Ok(other?),
            }
        };
        Ok(Streams { entries: open(&dirs.entries)?, names: open(&dirs.names)? })
    }

    /// Bytes of the entries on the disk.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.entries.stats().live_bytes
    }

    /// Writes the entry for an index; durable on return, and seen after [`ReplacedEntries::set`].
    pub(crate) fn write(&self, id: EntryId, kind: u64, payload: &[u8]) -> Result<u64> {
        self.append(Name::Entry(id), &record_of(id, kind, payload))
    }

    /// Forgets entries from an index on; durable on return. The entries themselves must be cut off already.
    pub(crate) fn write_cut(&self, index: u64) -> Result<()> {
        self.append(Name::Cut(index), &index.to_le_bytes())?;
        Ok(())
    }

    /// The name comes second: one without its record says that the record is lost.
    fn append(&self, name: Name, payload: &[u8]) -> Result<u64> {
        let record = self.entries.append(name.type_code(), payload)?;
        let named = self.names.append(name.type_code(), &name.encode())?;
        debug_assert_eq!(record, named, "names have the numbers of their records");
        Ok(record)
    }

    pub(crate) fn purge_before(&self, record: u64) -> Result<()> {
        self.entries.purge_before(record)?;
        Ok(self.names.purge_before(record)?)
    }

    pub(crate) fn close(&self) -> Result<()> {
        let entries = self.entries.close();
        self.names.close().and(entries).map_err(Error::from)
    }
}

/// Where the streams with a number lie.
#[derive(Clone, Debug)]
struct Directories {
    entries: PathBuf,
    names: PathBuf,
}

impl Directories {
    fn of(dir: &Path, number: u32) -> Directories {
        let at = |what| dir.join(format!("{what}-{number}"));
        Directories { entries: at("replaced"), names: at("names") }
    }
}

/// The entries that took the place of others, by index.
#[derive(Debug)]
pub(crate) struct ReplacedEntries {
    env: Env,
    dirs: Directories,
    options: LogOptions,
    /// Not there before the first replacement.
    streams: Option<Streams>,
    standing: Standing,
}

impl ReplacedEntries {
    fn none(env: &Env, dir: &Path, number: u32, options: &LogOptions) -> ReplacedEntries {
        ReplacedEntries {
            env: env.clone(),
            dirs: Directories::of(dir, number),
            options: options.clone(),
            streams: None,
            standing: Standing::new(),
        }
    }

    /// Reads what is there of the streams with a number in the directory of a log.
    ///
    /// # Errors
    /// A corruption if they are damaged, or missing although something was replaced.
    pub(crate) fn open(
        env: &Env,
        dir: &Path,
        number: u32,
        options: &LogOptions,
        is_expected: bool,
    ) -> Result<ReplacedEntries> {
        let mut replaced = ReplacedEntries::none(env, dir, number, options);
        if !env.disk.exists(&replaced.dirs.entries) && !is_expected {
            return Ok(replaced);
        }
        let streams = Streams::open(env, &replaced.dirs, options, !is_expected)?;
        let (next, named) = (streams.entries.next_index(), streams.names.next_index());
        if is_expected && next == 0 {
            return Err(damaged(replaced.dirs.entries, "it has no records".to_string()));
        }
        if named > next {
            let reason = format!("its records from {next} to {} are missing", named - 1);
            return Err(damaged(replaced.dirs.entries, reason));
        }
        let mut names = streams.names.iter(..);
        while names.next_record()?.is_some() {}
        let mut cursor = streams.entries.iter(..);
        while let Some(record) = cursor.next_record()? {
            let record = record.into_owned();
            let name = Name::of_replaced(&record)?;
            names::replay(&mut replaced.standing, record.index, name);
            if record.index >= named {
                // The machine stopped between a record and its name.
                streams.names.append(name.type_code(), &name.encode())?;
            }
        }
        replaced.streams = Some(streams);
        Ok(replaced)
    }

    /// What is left of the damaged streams with a number, whose indexes are within `reach`.
    pub(crate) fn salvage(env: &Env, dir: &Path, number: u32, reach: Option<(u64, u64)>) -> Result<Salvage> {
        let dirs = Directories::of(dir, number);
        names::salvage(env, &dirs.entries, &dirs.names, reach)
    }

    /// Writes what is left into new streams; durable on return. What an attempt before this one left there is dropped.
    pub(crate) fn renew(
        env: &Env,
        dir: &Path,
        number: u32,
        options: &LogOptions,
        salvage: &Salvage,
    ) -> Result<ReplacedEntries> {
        let mut replaced = ReplacedEntries::none(env, dir, number, options);
        if let Some(reader) = &salvage.entries {
            let streams = replaced.streams()?;
            for stream in [&streams.entries, &streams.names] {
                if stream.next_index() > 0 {
                    stream.reset_to(0)?;
                }
            }
            for &(record, id) in salvage.standing.values() {
                let payload = reader.read(record)?.payload;
                let name = Name::Entry(id);
                let record = streams.entries.append_buffered(name.type_code(), &payload)?;
                streams.names.append_buffered(name.type_code(), &name.encode())?;
                replaced.set(record, id);
            }
            streams.entries.sync()?;
            streams.names.sync()?;
        }
        Ok(replaced)
    }

    pub(crate) fn place_of(&self, index: u64) -> Option<Replaced> {
        let &(record, _) = self.standing.get(&index)?;
        let stream = self.streams.as_ref()?.entries.clone();
        Some(Replaced { stream, record })
    }

    pub(crate) fn id_of(&self, index: u64) -> Option<EntryId> {
        self.standing.get(&index).map(|&(_, id)| id)
    }

    pub(crate) fn indexes(&self) -> impl Iterator<Item = u64> {
        self.standing.keys().copied()
    }

    /// Lowest and highest index that was replaced.
    pub(crate) fn reach_of(&self) -> Option<(u64, u64)> {
        let (low, _) = self.standing.first_key_value()?;
        let (high, _) = self.standing.last_key_value()?;
        Some((*low, *high))
    }

    /// The streams, made if they are not there.
    pub(crate) fn streams(&mut self) -> Result<Streams> {
        match &self.streams {
            Some(streams) => Ok(streams.clone()),
            None => {
                let streams = Streams::open(&self.env, &self.dirs, &self.options, true)?;
                Ok(self.streams.insert(streams).clone())
            }
        }
    }

    pub(crate) fn opened(&self) -> Option<Streams> {
        self.streams.clone()
    }

    pub(crate) fn set(&mut self, record: u64, id: EntryId) {
        names::replay(&mut self.standing, record, Name::Entry(id));
    }

    /// Whether an entry from this index on was replaced.
    pub(crate) fn reach(&self, index: u64) -> bool {
        self.standing.range(index..).next().is_some()
    }

    pub(crate) fn cut_from(&mut self, index: u64) {
        self.standing.split_off(&index);
    }

    /// Forgets entries before an index: nobody asks for them any more. Answers the first record still needed, if that
    /// is not the first one there is.
    pub(crate) fn cut_before(&mut self, index: u64) -> Option<(Streams, u64)> {
        self.standing = self.standing.split_off(&index);
        let streams = self.streams.as_ref()?;
        let next = streams.entries.next_index();
        let needed = self.standing.values().map(|&(record, _)| record).min().unwrap_or(next);
        (needed > streams.entries.first_index()).then(|| (streams.clone(), needed))
    }
}
