//! What a scan or a snapshot sees: the parts of the order at one moment, and the segments to which they point.

use std::collections::HashMap;
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lsfs::codec::Compression;
use lsfs::{EntryHead, SegmentHandle};

use super::Part;
use super::gather::SegmentLog;
use super::merge::{Direction, Merge};
use super::sorted::{Sorted, Spot};
use crate::error::{Error, Result};
use crate::lookup::bad_record;
use crate::record::{Command, Record, StoredValue};

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
    handles: Mutex<HashMap<u32, SegmentHandle>>,
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
        let mended = super::mend(&*self.log, &mut self.parts(), error)?;
        if let Some(part) = mended {
            self.keeper.mended(&part);
        }
        Ok(())
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(spot) = self.find(key)? else { return Ok(None) };
        let mut keys = Sorted::default();
        keys.push(key, spot);
        let mut found = None;
        self.read_values(&keys, |_, value| found = Some(value.map(<[u8]>::to_vec)));
        found.transpose()
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

    fn handle(&self, segment: u32) -> Result<SegmentHandle> {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = handles.get(&segment) {
            return Ok(handle.clone());
        }
        let handle = self.log.segment(segment).map_err(|error| outdated(error, segment))?;
        handles.insert(segment, handle.clone());
        Ok(handle)
    }

    /// Reads the values of keys, segment by segment, and hands each over with its number.
    pub(crate) fn read_values(&self, keys: &Sorted, mut each: impl FnMut(usize, Result<&[u8]>)) {
        self.read_frames(keys, |n, frame| match frame {
            Ok(frame) if frame.value.compression == Compression::None => each(n, Ok(frame.value.stored)),
            Ok(frame) => match frame.value.to_vec() {
                Ok(value) => each(n, Ok(&value)),
                Err(fault) => each(n, Err(bad_record(frame.head.pointer, fault))),
            },
            Err(error) => each(n, Err(error)),
        });
    }

    /// Reads the sets of keys, segment by segment, and hands each over with its number.
    pub(crate) fn read_frames(&self, keys: &Sorted, mut each: impl FnMut(usize, Result<SetFrame<'_>>)) {
        // Segment and number in one word. Within a segment the order of places gains nothing: what is in memory is asked
        // for ahead, what is not is read page by page.
        let segment_of = |word: u64| (word >> 32) as u32;
        let number_of = |word: u64| word as u32 as usize;
        let words = (0..keys.len()).map(|n| u64::from(keys.spot(n).pointer.segment) << 32 | n as u64);
        let mut order: Vec<u64> = words.collect();
        order.sort_unstable();
        let mut pointers = Vec::with_capacity(order.len());
        for group in order.chunk_by(|&one, &other| segment_of(one) == segment_of(other)) {
            let segment = segment_of(group[0]);
            pointers.clear();
            pointers.extend(group.iter().map(|&word| keys.spot(number_of(word)).pointer));
            let read = self.handle(segment).and_then(|handle| {
                let each_entry = |at: usize, entry: lsfs::Result<(EntryHead, &[u8])>| {
                    let n = number_of(group[at]);
                    match entry {
                        Ok((head, body)) => each(n, SetFrame::of(head, body, keys.key(n))),
                        Err(error) => each(n, Err(outdated(error, segment))),
                    }
                };
                handle.read_each(&pointers, each_entry).map_err(|error| outdated(error, segment))
            });
            if let Err(error) = read {
                group.iter().for_each(|&word| each(number_of(word), Err(error.clone())));
            }
        }
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

/// A segment that is gone although the view needs it.
fn outdated(error: lsfs::Error, segment: u32) -> Error {
    match error {
        lsfs::Error::Gone { .. } => Error::Outdated { segment },
        other => other.into(),
    }
}
