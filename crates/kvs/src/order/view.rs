//! What a scan or a snapshot sees: the parts of the order at one moment, and the segments to which they point.

use std::collections::HashMap;
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lsfs::codec::Pointer;
use lsfs::{EntryBuffer, EntryHead, SegmentHandle};

use super::Part;
use super::gather::SegmentLog;
use super::merge::{Direction, Merge};
use super::sorted::{Sorted, Spot};
use crate::error::{Error, Result};
use crate::lookup::bad_record;
use crate::record::{Command, Record, StoredValue, plain_set};

/// What keeps a view's segments readable, and is told of mended parts.
pub(super) trait Keeper: Send + Sync + Debug {
    /// A run of this stretch was damaged; this part was made instead.
    fn mended(&self, part: &Part);
}

/// The store at one moment.
#[derive(Debug)]
pub(crate) struct View {
    parts: Mutex<Vec<Part>>,
    log: Arc<dyn SegmentLog>,
    /// The segments of the log when the view was made, ascending.
    numbers: Vec<u32>,
    handles: Mutex<Arc<Handles>>,
    keeper: Box<dyn Keeper>,
}

impl View {
    /// The view of parts, whose segments are there now or were reclaimed before.
    pub(super) fn new(parts: Vec<Part>, log: Arc<dyn SegmentLog>, keeper: Box<dyn Keeper>) -> Result<View> {
        let numbers = log.numbers()?;
        Ok(View::with_numbers(parts, log, numbers, keeper))
    }

    pub(super) fn with_numbers(
        parts: Vec<Part>,
        log: Arc<dyn SegmentLog>,
        numbers: Vec<u32>,
        keeper: Box<dyn Keeper>,
    ) -> View {
        View { parts: Mutex::new(parts), log, numbers, handles: Mutex::default(), keeper }
    }

    fn parts(&self) -> MutexGuard<'_, Vec<Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds the segments from now on, as many as `count`.
    pub(super) fn hold(&self, count: usize) -> Result<()> {
        self.numbers.iter().rev().take(count).try_for_each(|&number| self.handle(number).map(|_handle| ()))
    }

    /// Whether what lies in a segment says nothing any more: it was reclaimed before the view was made.
    pub(crate) fn is_dead(&self, segment: u32) -> bool {
        self.numbers.last().is_some_and(|&last| segment < last)
            && self.numbers.binary_search(&segment).is_err()
    }

    /// Goes through the keys from a bound on. Damaged runs that are met are errors: see [`View::mend`].
    pub(crate) fn merge(&self, bound: Bound<&[u8]>, direction: Direction) -> Result<Merge> {
        Merge::seek(self.parts().iter(), bound, direction)
    }

    /// After an error: makes the damaged run anew from the log, in memory. Any other error is answered.
    pub(crate) fn mend(&self, error: Error) -> Result<()> {
        let mended = super::mend(&*self.log, &mut self.parts(), &self.numbers, error)?;
        if let Some(part) = mended {
            self.keeper.mended(&part);
        }
        Ok(())
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(spot) = self.find(key)? else { return Ok(None) };
        let (pointer, segment) = (spot.pointer, spot.pointer.segment);
        let entry = self.handle(segment)?.read(pointer).map_err(|error| outdated(error, segment))?;
        SetFrame::of(entry.head(), &entry.body, key)?.to_vec().map(Some)
    }

    /// Where the value of a key is.
    pub(crate) fn find(&self, key: &[u8]) -> Result<Option<Spot>> {
        loop {
            let parts = self.parts().clone();
            let found = parts.iter().rev().find_map(|part| part.find(key).transpose());
            match found {
                None => return Ok(None),
                Some(Ok(spot)) => {
                    let is_there = !spot.is_remove && !self.is_dead(spot.pointer.segment);
                    return Ok(is_there.then_some(spot));
                }
                Some(Err(error)) => self.mend(error)?,
            }
        }
    }

    fn handles(&self) -> MutexGuard<'_, Arc<Handles>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, segment: u32) -> Result<SegmentHandle> {
        let mut handles = self.handles();
        let nth = self.number_of_handle(&mut handles, segment)?;
        Ok(handles.all[nth as usize].clone())
    }

    /// The number of a segment's handle, which is got if there is none yet.
    fn number_of_handle(&self, handles: &mut Arc<Handles>, segment: u32) -> Result<u32> {
        if let Some(&nth) = handles.numbers.get(&segment) {
            return Ok(nth);
        }
        let handle = self.log.segment(segment).map_err(|error| outdated(error, segment))?;
        let handles = Arc::make_mut(handles);
        let nth = handles.all.len() as u32;
        handles.all.push(handle);
        handles.numbers.insert(segment, nth);
        Ok(nth)
    }

    /// Reads the frames of sets in the order of their keys: nothing of them is near to its neighbours, whatever the order,
    /// and what is in memory is asked for ahead.
    pub(crate) fn read_frames(&self, keys: &Sorted, frames: &mut SetFrames) {
        let SetFrames { entries, wanted, numbers, errors, handle_of } = frames;
        wanted.clear();
        numbers.clear();
        errors.clear();
        let handles = {
            let mut handles = self.handles();
            for n in 0..keys.len() {
                let pointer = keys.spot(n).pointer;
                let known = handle_of.get(pointer.segment);
                let nth = known.map_or_else(|| self.number_of_handle(&mut handles, pointer.segment), Ok);
                match nth {
                    Ok(nth) => {
                        handle_of.put(pointer.segment, nth);
                        numbers.push(wanted.len() as u32);
                        wanted.push((nth, pointer));
                    }
                    Err(error) => {
                        numbers.push(NOT_READ);
                        errors.insert(n, error);
                    }
                }
            }
            Arc::clone(&handles)
        };
        entries.read(&handles.all, wanted);
    }
}

/// The segments that a view holds. A number names the same one for as long as the view lives.
#[derive(Clone, Debug, Default)]
struct Handles {
    all: Vec<SegmentHandle>,
    numbers: HashMap<u32, u32>,
}

/// Frames of a chunk of keys.
#[derive(Debug, Default)]
pub(crate) struct SetFrames {
    entries: EntryBuffer,
    /// The number of the segment's handle in the view, and the place.
    wanted: Vec<(u32, Pointer)>,
    /// For each key, its number among the entries; [`NOT_READ`] if its segment is not there.
    numbers: Vec<u32>,
    errors: HashMap<usize, Error>,
    handle_of: SegmentTable<u32>,
}

const NOT_READ: u32 = u32::MAX;

impl SetFrames {
    /// The value of the key with this number, if it is there and lies there as it is.
    #[inline]
    pub(crate) fn plain_value(&self, n: usize, key: &[u8]) -> Option<&[u8]> {
        let number = self.numbers[n];
        let (head, body) = if number == NOT_READ { None } else { self.entries.entry(number as usize).ok() }?;
        plain_set(head.kind, body).filter(|(found, _)| *found == key).map(|(_, value)| value)
    }

    /// The frame of the key with this number, which must be a set of that key.
    pub(crate) fn get(&self, n: usize, key: &[u8]) -> Result<SetFrame<'_>> {
        match self.numbers[n] {
            NOT_READ => Err(self.errors[&n].clone()),
            number => match self.entries.entry(number as usize) {
                Ok((head, body)) => SetFrame::of(head, body, key),
                Err(error) => Err(outdated(error.clone(), self.wanted[number as usize].1.segment)),
            },
        }
    }
}

/// What is known of a few segments, found without a search: segments that are scanned together have numbers near to each
/// other.
#[derive(Debug, Default)]
pub(crate) struct SegmentTable<T> {
    slots: Vec<Option<(u32, T)>>,
}

/// A power of two.
const SEGMENT_SLOTS: usize = 1024;

impl<T: Copy> SegmentTable<T> {
    #[inline]
    pub(crate) fn get(&self, segment: u32) -> Option<T> {
        match self.slots.get(segment as usize % SEGMENT_SLOTS) {
            Some(&Some((known, what))) if known == segment => Some(what),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn put(&mut self, segment: u32, what: T) {
        if self.slots.is_empty() {
            self.slots.resize(SEGMENT_SLOTS, None);
        }
        self.slots[segment as usize % SEGMENT_SLOTS] = Some((segment, what));
    }
}

/// The frame of a set; its bytes are lent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SetFrame<'a> {
    pub(crate) head: EntryHead,
    pub(crate) body: &'a [u8],
    pub(crate) key: &'a [u8],
    value: StoredValue<'a>,
}

impl<'a> SetFrame<'a> {
    /// Takes an entry apart, which must be a set of this key.
    fn of(head: EntryHead, body: &'a [u8], key: &[u8]) -> Result<SetFrame<'a>> {
        let record = Record::decode(head.kind, body).map_err(|fault| bad_record(head.pointer, fault))?;
        match record.command {
            Command::Set(value) if record.key == key => Ok(SetFrame { head, body, key: record.key, value }),
            _ => Err(bad_record(head.pointer, "it is not the set that the order of keys has there")),
        }
    }
}

impl SetFrame<'_> {
    /// The value's bytes.
    pub(crate) fn to_vec(self) -> Result<Vec<u8>> {
        self.value.to_vec().map_err(|fault| bad_record(self.head.pointer, fault))
    }
}

/// A segment that is gone although the view needs it.
fn outdated(error: lsfs::Error, segment: u32) -> Error {
    match error {
        lsfs::Error::Gone { .. } => Error::Outdated { segment },
        other => other.into(),
    }
}
