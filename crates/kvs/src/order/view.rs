//! What a scan or a snapshot sees: the parts of the order at one moment, and the segments to which they point.

use std::collections::HashMap;
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lsfs::{Entry, SegmentHandle};

use super::Part;
use super::gather::SegmentLog;
use super::merge::{Direction, Merge};
use super::sorted::{Sorted, Spot};
use crate::error::{Error, Result};
use crate::lookup::{bad_record, record_of};
use crate::record::{Command, StoredValue};

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

    /// Reads the values of keys, in the order in which they lie in the log, and hands each over with its number.
    pub(crate) fn read_values(&self, keys: &Sorted, mut each: impl FnMut(usize, Result<&[u8]>)) {
        self.read_frames(keys, |n, frame| {
            let value = frame
                .and_then(|(entry, value)| value.to_vec().map_err(|fault| bad_record(entry.pointer, fault)));
            match value {
                Ok(value) => each(n, Ok(&value)),
                Err(error) => each(n, Err(error)),
            }
        });
    }

    /// Reads the sets of keys, in the order in which they lie in the log, and hands each over with its number.
    pub(crate) fn read_frames(
        &self,
        keys: &Sorted,
        mut each: impl FnMut(usize, Result<(&Entry, StoredValue<'_>)>),
    ) {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_unstable_by_key(|&n| keys.spot(n).pointer);
        let mut handle: Option<SegmentHandle> = None;
        for n in order {
            let pointer = keys.spot(n).pointer;
            if handle.as_ref().is_none_or(|handle| handle.number() != pointer.segment) {
                match self.handle(pointer.segment) {
                    Ok(found) => handle = Some(found),
                    Err(error) => {
                        each(n, Err(error));
                        continue;
                    }
                }
            }
            let handle = handle.as_ref().expect("just found");
            let entry = handle.read(pointer).map_err(|error| outdated(error, pointer.segment));
            let set = entry.as_ref().map_err(Error::clone).and_then(|entry| {
                let record = record_of(entry)?;
                match record.command {
                    Command::Set(value) if record.key == keys.key(n) => Ok((entry, value)),
                    _ => Err(bad_record(entry.pointer, "it is not the set that a sorted run has there")),
                }
            });
            each(n, set);
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
