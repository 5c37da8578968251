//! From a key to its frame: addresses from the index, keys compared in the log.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use lsfs::codec::{Compression, Pointer};
use lsfs::{Entry, EntryHead, SegmentSet};
use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::index::Index;
use crate::lost::Lost;
use crate::order::Place as PlaceInLog;
use crate::record::{Command, Record, begins_with_key, is_remove, key_start_bytes};
use crate::segments::{Location, SegmentSlots};
use crate::settle::Tail;

/// A look-up that meets a reclaimed segment starts again; after so many times the segment is missing for good.
const ATTEMPTS: usize = 64;

/// What frames are read from: a log open for writing, or beside its writer.
pub(crate) trait ReadAt {
    /// The frame at a place.
    fn read_at(&self, segment: u32, position: u32) -> lsfs::Result<Entry>;
}

impl ReadAt for SegmentSet {
    fn read_at(&self, segment: u32, position: u32) -> lsfs::Result<Entry> {
        SegmentSet::read_at(self, segment, position)
    }
}

/// What finds frames: changes together.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) index: Index,
    pub(crate) slots: SegmentSlots,
    /// What the index has not yet.
    pub(crate) tail: Tail,
    /// What it cannot have.
    pub(crate) lost: Lost,
}

/// The index and the segments behind the lock that gets share.
#[derive(Debug)]
pub(crate) struct SharedTable(RwLock<Table>);

/// The places where a key may be, in the order in which they are looked at.
type Places = SmallVec<[Place; 4]>;

/// A place where a key may be.
#[derive(Clone, Copy, Debug)]
struct Place {
    location: Location,
    /// It is newer than what the index has for this hash.
    is_in_tail: bool,
}

impl Place {
    /// Whether what lies there is older than what lies at a place of the log.
    fn is_before(&self, place: PlaceInLog) -> bool {
        !self.is_in_tail && (self.location.segment, self.location.position) < place
    }
}

/// The frame to which the index points for a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hit {
    pub(crate) address: u64,
    pub(crate) head: EntryHead,
}

/// What a look-up makes of frames that do not verify, and might be the one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damaged {
    /// If no other frame is the key's, the look-up fails.
    Fail,
    /// They are not the key's.
    Ignore,
}

impl Hit {
    pub(crate) fn is_remove(&self) -> bool {
        is_remove(self.head.kind)
    }
}

/// Takes the frame apart.
pub(crate) fn record_of(entry: &Entry) -> Result<Record<'_>> {
    Record::decode(entry.kind, &entry.body).map_err(|fault| bad_record(entry.pointer, fault))
}

/// The error for a frame whose bytes verify, but are no command.
pub(crate) fn bad_record(pointer: Pointer, fault: impl ToString) -> Error {
    let Pointer { segment, position, .. } = pointer;
    Error::BadRecord { segment, position, reason: fault.to_string() }
}

/// The error for a segment that the log has by its own list, and whose file is not there or is another's.
pub(crate) fn missing(segment: u32) -> Error {
    let reason = "the segment's file is missing, or is that of another segment".to_string();
    Error::BadRecord { segment, position: 0, reason }
}

/// The value of a frame; `None` if it is a remove.
pub(crate) fn value_of(entry: &Entry) -> Result<Option<Vec<u8>>> {
    match record_of(entry)?.command {
        Command::Remove { .. } => Ok(None),
        Command::Set(value) => value.to_vec().map(Some).map_err(|fault| bad_record(entry.pointer, fault)),
    }
}

/// Makes the body of a frame the value of its key, if it is this key's: `None` if it is another's, `false` if it is a
/// remove.
fn keep_value(head: EntryHead, key: &[u8], body: &mut Vec<u8>) -> Result<Option<bool>> {
    let bad = |fault| bad_record(head.pointer, fault);
    let record = Record::decode(head.kind, body).map_err(bad)?;
    if record.key != key {
        return Ok(None);
    }
    match record.command {
        Command::Remove { .. } => return Ok(Some(false)),
        Command::Set(value) if value.compression == Compression::None => {
            let before = body.len() - value.stored.len();
            body.drain(..before);
        }
        Command::Set(value) => *body = value.to_vec().map_err(bad)?,
    }
    Ok(Some(true))
}

impl Table {
    /// Of an index that has everything.
    pub(crate) fn new(index: Index, slots: SegmentSlots) -> Table {
        Table { index, slots, tail: Tail::default(), lost: Lost::default() }
    }

    /// Adds where the log has these addresses.
    #[inline]
    fn locate(&self, candidates: impl IntoIterator<Item = u64>, places: &mut Places) -> Result<()> {
        for address in candidates {
            let unknown = || self.index.damaged(format!("address {address:#x} is in no segment"));
            let location = self.slots.locate(address).ok_or_else(unknown)?;
            places.push(Place { location, is_in_tail: false });
        }
        Ok(())
    }

    /// Makes the index point to a frame, instead of another or of none.
    pub(crate) fn point_at(
        &mut self,
        log: &SegmentSet,
        hash: u64,
        old: Option<&Hit>,
        pointer: Pointer,
    ) -> Result<()> {
        match self.slots.address(pointer.segment, pointer.position) {
            Some(address) => self.point(log, hash, old.map(|hit| hit.address), address),
            None => Err(self.index.damaged(format!("{pointer:?} has no address"))),
        }
    }

    /// Adds or changes the address under a hash. `log` answers the keys that a split of a page needs.
    fn point(&mut self, log: &SegmentSet, hash: u64, old: Option<u64>, new: u64) -> Result<()> {
        match old {
            Some(old) if self.index.replace(hash, old, new)? => Ok(()),
            Some(old) => Err(self.index.damaged(format!("address {old:#x} was there and is not any more"))),
            None => {
                let Table { index, slots, .. } = self;
                let hasher = index.hasher();
                index.insert(hash, new, &mut |address| hash_at(log, slots, address, hasher))
            }
        }
    }
}

fn hash_at(
    log: &SegmentSet,
    slots: &SegmentSlots,
    address: u64,
    hasher: crate::index::KeyHasher,
) -> Result<u64> {
    let location = slots.locate(address).ok_or_else(|| Error::BadRecord {
        segment: u32::MAX,
        position: 0,
        reason: format!("address {address:#x} of the index is in no segment"),
    })?;
    let entry = log.read_at(location.segment, location.position)?;
    Ok(hasher.hash(record_of(&entry)?.key))
}

impl SharedTable {
    pub(crate) fn new(table: Table) -> SharedTable {
        SharedTable(RwLock::new(table))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn into_inner(self) -> Table {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the index point to a frame, instead of another or of none.
    pub(crate) fn point(
        &self,
        log: &SegmentSet,
        hash: u64,
        old: Option<&Hit>,
        pointer: Pointer,
    ) -> Result<()> {
        self.write().point_at(log, hash, old, pointer)
    }

    /// Adds the places where a key with this hash may be. Only so many of the tail, if there are some: there may be very
    /// many, of one key that was set all the time, and the newest is enough. Answers the place of the last lost command
    /// that may be the key's; all in the tail is newer.
    fn places(&self, hash: u64, tail_max: usize, places: &mut Places) -> Result<Option<PlaceInLog>> {
        let lost = {
            let table = self.read();
            if table.tail.may_have(hash) {
                let newer = table.tail.locations(hash, &table.slots).take(tail_max);
                places.extend(newer.map(|location| Place { location, is_in_tail: true }));
                if places.len() == tail_max {
                    return Ok(None);
                }
            }
            let lost = table.lost.behind(hash, (0, 0));
            if let Some(candidates) = table.index.candidates(hash) {
                table.locate(candidates, places)?;
                return Ok(lost);
            }
            lost
        };
        // What is settled between the two looks is met twice.
        self.places_in_index(hash, places)?;
        Ok(lost)
    }

    fn places_in_index(&self, hash: u64, places: &mut Places) -> Result<()> {
        {
            let table = self.read();
            if let Some(candidates) = table.index.candidates(hash) {
                return table.locate(candidates, places);
            }
        }
        let mut table = self.write();
        let candidates = table.index.load_candidates(hash)?;
        table.locate(candidates, places)
    }

    /// Looks at the places where a key with this hash may be, until `look` finds it to be one of them.
    pub(crate) fn search<T>(
        &self,
        hash: u64,
        damaged: Damaged,
        mut look: impl FnMut(Location) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let mut attempts = ATTEMPTS;
        loop {
            attempts -= 1;
            let mut gone = None;
            let looked = self.search_once(hash, damaged, |location| {
                let looked = look(location);
                if let Err(Error::Engine(lsfs::Error::Gone { .. })) = looked {
                    gone = Some(location.segment);
                }
                looked
            });
            match looked {
                Err(Error::Engine(lsfs::Error::Gone { .. })) if attempts > 0 => {}
                Err(error @ Error::Engine(lsfs::Error::Gone { .. })) => {
                    return Err(gone.map_or(error, missing));
                }
                other => return other,
            }
        }
    }

    /// As [`SharedTable::search`]; a segment that was reclaimed since is an error.
    pub(crate) fn search_once<T>(
        &self,
        hash: u64,
        damaged: Damaged,
        mut look: impl FnMut(Location) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let mut places = Places::new();
        let mut lost = self.places(hash, 1, &mut places)?;
        let are_more = places.first().is_some_and(|place| place.is_in_tail);
        let mut found = look_at(&places, damaged, &mut look)?;
        if found.is_none() && are_more {
            // Two keys have one hash: the other places count too.
            places.clear();
            lost = self.places(hash, usize::MAX, &mut places)?;
            found = look_at(&places, damaged, look)?;
        }
        if let Some(lost) = lost
            && damaged == Damaged::Fail
            && found.as_ref().is_none_or(|(_, place)| place.is_before(lost))
        {
            return Err(Error::CommandLost { segment: lost.0, position: lost.1 });
        }
        Ok(found.map(|(found, _)| found))
    }

    /// The frame of a key, be it a set or a remove; `None` if the index has none. Its value is not read.
    pub(crate) fn find(
        &self,
        log: &SegmentSet,
        key: &[u8],
        hash: u64,
        damaged: Damaged,
    ) -> Result<Option<Hit>> {
        self.search(hash, damaged, hit_at(log, key))
    }

    /// As [`SharedTable::find`], without what the index has not yet.
    pub(crate) fn find_in_index(
        &self,
        log: &SegmentSet,
        key: &[u8],
        hash: u64,
        damaged: Damaged,
    ) -> Result<Option<Hit>> {
        let mut places = Places::new();
        self.places_in_index(hash, &mut places)?;
        look_at_hits(&places, damaged, log, key)
    }

    /// As [`SharedTable::find_in_index`] for several keys, given with their hashes. The memory of all their frames is asked
    /// for before the first is waited for. The caller holds the writer's lock, so the index stays as it is.
    pub(crate) fn find_each_in_index(
        &self,
        log: &SegmentSet,
        keys: &[(u64, &[u8])],
        damaged: Damaged,
    ) -> Result<Vec<Option<Hit>>> {
        let (mut places, mut ends) = (Places::new(), Vec::with_capacity(keys.len()));
        {
            let table = self.read();
            for &(hash, _) in keys {
                let end = match table.index.candidates(hash) {
                    Some(candidates) => {
                        table.locate(candidates, &mut places)?;
                        Some(places.len())
                    }
                    None => None,
                };
                ends.push(end);
            }
        }
        let locations = places.iter().map(|place| place.location);
        log.prefetch(locations.map(|Location { segment, position, .. }| (segment, position)));
        let mut first = 0;
        let look = |(end, &(hash, key)): (Option<usize>, &(u64, &[u8]))| {
            let Some(end) = end else {
                // Its page is not in memory.
                let mut places = Places::new();
                self.places_in_index(hash, &mut places)?;
                return look_at_hits(&places, damaged, log, key);
            };
            let of_key = &places[std::mem::replace(&mut first, end)..end];
            look_at_hits(of_key, damaged, log, key)
        };
        ends.into_iter().zip(keys).map(look).collect()
    }

    /// Makes `value` the value of a key; `false` if it has none.
    pub(crate) fn get(&self, log: &SegmentSet, key: &[u8], hash: u64, value: &mut Vec<u8>) -> Result<bool> {
        let found = self.search(hash, Damaged::Fail, |Location { segment, position, .. }| {
            let head = log.read_at_into(segment, position, value)?;
            keep_value(head, key, value)
        })?;
        Ok(found.unwrap_or(false))
    }
}

/// The frame of a key at one of some places.
fn look_at_hits(places: &[Place], damaged: Damaged, log: &SegmentSet, key: &[u8]) -> Result<Option<Hit>> {
    Ok(look_at(places, damaged, hit_at(log, key))?.map(|(hit, _)| hit))
}

/// Looks at places until `look` finds what it looks for; answers where, too.
fn look_at<T>(
    places: &[Place],
    damaged: Damaged,
    mut look: impl FnMut(Location) -> Result<Option<T>>,
) -> Result<Option<(T, Place)>> {
    let (mut damage, mut gone) = (None, None);
    for &place in places {
        let Place { location, is_in_tail } = place;
        match look(location) {
            Ok(None) => {}
            Ok(Some(found)) => return Ok(Some((found, place))),
            Err(error @ Error::Engine(lsfs::Error::Gone { .. })) => gone = Some(error),
            // The index has an older command for the same key, which does not count.
            Err(error) if error.is_corruption() && is_in_tail => return Err(error),
            Err(error) if error.is_corruption() => damage = damage.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    match gone.or(damage) {
        Some(error) if damaged == Damaged::Fail || !error.is_corruption() => Err(error),
        Some(error) => {
            tracing::warn!(%error, "a frame that may be the key's is damaged and ignored");
            Ok(None)
        }
        None => Ok(None),
    }
}

/// Looks whether a frame is the key's.
fn hit_at(log: &SegmentSet, key: &[u8]) -> impl FnMut(Location) -> Result<Option<Hit>> {
    // A byte more than a frame of this key begins with would tell nothing more.
    let mut start: SmallVec<[u8; KEY_ON_STACK_BYTES]> = SmallVec::from_elem(0, key_start_bytes(key));
    move |Location { address, segment, position }| {
        let (head, count) = match log.peek_at(segment, position, &mut start) {
            // That its file has vanished is damage; that it was given back is for the caller to know.
            Err(lsfs::Error::Gone { .. }) if log.segments().iter().any(|info| info.number == segment) => {
                return Err(missing(segment));
            }
            other => other?,
        };
        Ok(begins_with_key(head.kind, &start[..count], key).then_some(Hit { address, head }))
    }
}

/// Keys up to this length are compared without an allocation.
const KEY_ON_STACK_BYTES: usize = 64;

/// The frame at a place, if it is the key's.
pub(crate) fn read_key(log: &impl ReadAt, location: Location, key: &[u8]) -> Result<Option<Entry>> {
    let entry = log.read_at(location.segment, location.position)?;
    Ok((record_of(&entry)?.key == key).then_some(entry))
}
