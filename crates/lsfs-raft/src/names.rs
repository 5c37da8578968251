//! The names of replaced entries, once more.
//!
//! Beside the stream of replaced entries lies one that has a small record for each of its records, with the same
//! number: which entry it is of, or from where on it cuts. Damage to the one is told from the other, so that exactly the
//! entries whose bytes are gone are lost.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use lsfs::{Env, Reader, Record};

use crate::entry::{EntryHeader, EntryId};
use crate::error::{EntryFault, Error, Result};
use crate::losses::{Doubts, Ranges};
use crate::replaced::{PREFIX_BYTES, number_at};

/// What a record does: an entry stands for an index, or none does from an index on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Entry(EntryId),
    Cut(u64),
}

const REPLACED: u64 = 1;
const CUT: u64 = 2;

impl Name {
    /// The type code of the record in both streams.
    pub(crate) fn type_code(self) -> u64 {
        match self {
            Name::Entry(_) => REPLACED,
            Name::Cut(_) => CUT,
        }
    }

    /// The payload of the record in the stream of names.
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            Name::Entry(id) => [id.index, id.term, id.leader].map(u64::to_le_bytes).concat(),
            Name::Cut(index) => index.to_le_bytes().to_vec(),
        }
    }

    pub(crate) fn decode(record: &Record) -> Result<Name> {
        let fault = |fault| Error::Entry { index: record.index, fault };
        match (record.type_code, record.payload.len()) {
            (REPLACED, 24) => {
                let number = |at| number_at(&record.payload, at);
                Ok(Name::Entry(EntryId { index: number(0), term: number(8), leader: number(16) }))
            }
            (CUT, 8) => Ok(Name::Cut(number_at(&record.payload, 0))),
            (REPLACED | CUT, _) => Err(fault(EntryFault::Short { field: "name of a replaced entry" })),
            (found, _) => Err(fault(EntryFault::Kind { found })),
        }
    }

    /// The name of a record in the stream of replaced entries.
    pub(crate) fn of_replaced(record: &Record) -> Result<Name> {
        let fault = |fault| Error::Entry { index: record.index, fault };
        let short = || fault(EntryFault::Short { field: "replaced index" });
        match record.type_code {
            CUT if record.payload.len() == 8 => Ok(Name::Cut(number_at(&record.payload, 0))),
            REPLACED if record.payload.len() >= PREFIX_BYTES => {
                let (header, _) = EntryHeader::decode(&record.payload[PREFIX_BYTES..]).map_err(fault)?;
                let index = number_at(&record.payload, 0);
                Ok(Name::Entry(EntryId { index, term: header.term, leader: header.leader }))
            }
            REPLACED | CUT => Err(short()),
            found => Err(fault(EntryFault::Kind { found })),
        }
    }
}

/// Which record stands for which index.
pub(crate) type Standing = BTreeMap<u64, (u64, EntryId)>;

/// Takes a record into account; they come in order.
pub(crate) fn replay(standing: &mut Standing, record: u64, name: Name) {
    match name {
        Name::Entry(id) => drop(standing.insert(id.index, (record, id))),
        Name::Cut(index) => drop(standing.split_off(&index)),
    }
}

/// What is left of a damaged pair of streams.
#[derive(Debug, Default)]
pub(crate) struct Salvage {
    /// The entries that can be read.
    pub(crate) standing: Standing,
    /// Those that cannot.
    pub(crate) doubts: Doubts,
    /// Reads the former.
    pub(crate) entries: Option<Reader>,
}

/// What of a stream can be read.
struct Remains {
    bounds: Range<u64>,
    names: BTreeMap<u64, Name>,
    reader: Reader,
}

impl Remains {
    /// `None` if nothing can be read.
    fn read(env: &Env, dir: &Path, name_of: fn(&Record) -> Result<Name>) -> Result<Option<Remains>> {
        let reader = match Reader::open_in(env.clone(), dir) {
            Ok(reader) => reader,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let bounds = match reader.bounds() {
            Ok(bounds) => bounds,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut names = BTreeMap::new();
        for record in bounds.clone() {
            match reader.read(record) {
                Ok(found) => drop(names.insert(record, name_of(&found)?)),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(Remains { bounds, names, reader }))
    }
}

/// Whether an error means that there is nothing to be read here, now or later. A file of a newer version is not gone.
pub(crate) fn is_gone(error: &lsfs::Error) -> bool {
    use lsfs::Error::{Format, NotFound, OutOfRange};
    match error {
        NotFound { .. } | OutOfRange { .. } => true,
        Format { fault, .. } => !matches!(fault, lsfs::codec::FileHeaderFault::Version { .. }),
        _ => error.is_corruption(),
    }
}

/// Finds out what is left of the replaced entries and which are lost. A record that neither stream knows may be of any
/// entry in `reach`, the lowest and highest index that was replaced.
pub(crate) fn salvage(
    env: &Env,
    entries_dir: &Path,
    names_dir: &Path,
    reach: Option<(u64, u64)>,
) -> Result<Salvage> {
    let entries = Remains::read(env, entries_dir, Name::of_replaced)?;
    let names = Remains::read(env, names_dir, Name::decode)?;
    let bounds = || [&entries, &names].into_iter().flatten().map(|remains| remains.bounds.clone());
    let first = bounds().map(|bounds| bounds.start).max().unwrap_or(0);
    // Streams without a record are new ones in the place of those that are gone: there was at least one record.
    let next = bounds().map(|bounds| bounds.end).max().unwrap_or(0).max(1);
    let mut standing = Standing::new();
    let mut unknown = Ranges::default();
    let name_of = |remains: &Option<Remains>, record| remains.as_ref()?.names.get(&record).copied();
    for record in first..next {
        let Some(name) = name_of(&entries, record).or_else(|| name_of(&names, record)) else {
            // Whatever stood before it may have been replaced again, or cut off.
            standing.clear();
            reach.into_iter().for_each(|(low, high)| unknown.add(low..high.saturating_add(1)));
            continue;
        };
        replay(&mut standing, record, name);
        match name {
            Name::Entry(id) => unknown.remove(id.index..id.index + 1),
            Name::Cut(index) => unknown.remove(index..u64::MAX),
        }
    }
    let mut salvage = Salvage::default();
    unknown.iter().for_each(|range| salvage.doubts.add(range.clone(), None));
    for (index, (record, id)) in standing {
        match name_of(&entries, record) {
            Some(_) => drop(salvage.standing.insert(index, (record, id))),
            None => salvage.doubts.add(index..index + 1, Some((id.term, id.leader))),
        }
    }
    salvage.entries = entries.map(|remains| remains.reader);
    Ok(salvage)
}
