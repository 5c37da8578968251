//! Reading a stretch of the log into a part.

use std::fmt::Debug;
use std::sync::Arc;

use lsfs::{Entries, Entry, SegmentHandle, SegmentSet, SegmentSetReader};

use super::sorted::{Gathered, Spot};
use super::{Keys, Part, Place};
use crate::error::{Error, Result};
use crate::lookup::{ReadAt, record_of};
use crate::open::next_there;
use crate::record::is_remove;

/// A log that can be gone through: open for writing, or beside its writer.
pub(crate) trait SegmentLog: ReadAt + Send + Sync + Debug {
    /// The durable entries from a place on; the place must still be there, unless it is the first of its segment.
    fn entries_from(&self, place: Place) -> Entries;
    /// A segment, which stays readable as long as the handle lives.
    fn segment(&self, number: u32) -> lsfs::Result<SegmentHandle>;
    /// Numbers of all segments, ascending.
    fn numbers(&self) -> lsfs::Result<Vec<u32>>;
}

impl SegmentLog for SegmentSet {
    fn entries_from(&self, place: Place) -> Entries {
        self.iter_from(place.0, place.1)
    }

    fn segment(&self, number: u32) -> lsfs::Result<SegmentHandle> {
        SegmentSet::segment(self, number)
    }

    fn numbers(&self) -> lsfs::Result<Vec<u32>> {
        Ok(self.segments().iter().map(|info| info.number).collect())
    }
}

impl SegmentLog for SegmentSetReader {
    fn entries_from(&self, place: Place) -> Entries {
        self.iter_from(place.0, place.1)
    }

    fn segment(&self, number: u32) -> lsfs::Result<SegmentHandle> {
        SegmentSetReader::segment(self, number)
    }

    fn numbers(&self) -> lsfs::Result<Vec<u32>> {
        Ok(self.segments()?.iter().map(|info| info.number).collect())
    }
}

/// Where the first entry of a segment lies, behind the page of its header.
const SEGMENT_START: u32 = 4096;

/// What [`gather`] has read.
#[derive(Debug)]
pub(super) struct GatheredPart {
    pub(super) part: Part,
    /// Nothing is left up to the end that was asked for.
    pub(super) is_whole: bool,
}

/// Reads the commands between two places, also those that are not durable yet; without an end, up to the durable one.
/// Stops early, between two batches, when what it holds has `memory_max` bytes.
pub(super) fn gather(
    log: &dyn SegmentLog,
    from: Place,
    end: Option<Place>,
    memory_max: usize,
) -> Result<GatheredPart> {
    let mut gathering = Gathering { gathered: Gathered::default(), commands: 0, end: from };
    let mut entries = log.entries_from(from);
    let mut is_whole = true;
    while end.is_none_or(|end| gathering.end < end) {
        if gathering.gathered.memory_bytes() >= memory_max && gathering.is_between_batches() {
            is_whole = false;
            break;
        }
        match next_there(&mut entries, |segment| Ok(log.numbers()?.contains(&segment))) {
            Ok(Some(entry)) => {
                if end.is_some_and(|end| (entry.pointer.segment, entry.pointer.position) >= end) {
                    break;
                }
                gathering.add(&entry)?;
            }
            Ok(None) => {
                let place = entries.place();
                // What lies behind the durable end is in memory.
                let Some(end) = end.filter(|&end| place < end) else { break };
                gathering.add_unsynced(log, place, end)?;
                entries = log.entries_from(gathering.next_place(place));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(GatheredPart { part: gathering.into_part(from, end.filter(|_| is_whole)), is_whole })
}

struct Gathering {
    gathered: Gathered,
    /// Up to the end of the last whole batch.
    commands: usize,
    end: Place,
}

impl Gathering {
    fn is_between_batches(&self) -> bool {
        self.commands == self.gathered.len()
    }

    /// Where the next entry is looked for, if nothing was read at `place`.
    fn next_place(&self, place: Place) -> Place {
        place.max(self.end)
    }

    fn add(&mut self, entry: &Entry) -> Result<()> {
        let key = record_of(entry)?.key;
        self.gathered.push(key, Spot { pointer: entry.pointer, is_remove: is_remove(entry.kind) });
        if entry.ends_batch {
            self.commands = self.gathered.len();
            self.end = (entry.pointer.segment, entry.pointer.end() as u32);
        }
        Ok(())
    }

    /// Adds what lies behind the durable end: in the active segment, and in the one before if that is not sealed yet.
    fn add_unsynced(&mut self, log: &dyn SegmentLog, place: Place, end: Place) -> Result<()> {
        let (mut segment, mut position) = place;
        let mut count = 0;
        while (segment, position) < end {
            match log.read_at(segment, position) {
                Ok(entry) => {
                    self.add(&entry)?;
                    position = entry.pointer.end() as u32;
                    count += 1;
                }
                // It goes on in the next one.
                Err(lsfs::Error::NoEntry { .. }) if end.0 > segment => {
                    (segment, position) = (segment + 1, SEGMENT_START)
                }
                // Reclaimed meanwhile, so what was read was sealed before.
                Err(lsfs::Error::Gone { .. }) if segment > place.0 => break,
                // The segment was sealed meanwhile: all of it is durable.
                Err(lsfs::Error::NoEntry { .. }) if count > 0 => break,
                Err(error) => return Err(Error::from(error)),
            }
        }
        Ok(())
    }

    fn into_part(mut self, from: Place, end: Option<Place>) -> Part {
        self.gathered.truncate(self.commands);
        let to = end.unwrap_or(self.end).max(self.end);
        Part { from, to, keys: Keys::Memory(Arc::new(self.gathered.into_sorted())) }
    }
}
