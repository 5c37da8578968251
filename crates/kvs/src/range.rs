//! Iterators over keys in order.
//!
//! The principal type is [`Range`]. It works in chunks: the keys of a chunk come from the merged parts of the order, and
//! then their values are read. Chunks begin small and grow, so that a short scan
//! reads little and a long one asks for much at a time.

use std::ops::{Bound, ControlFlow, RangeBounds};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::order::{Direction, Merge, SegmentTable, SetFrame, SetFrames, Sorted, View, is_above, is_below};

/// Keys of the first chunk and of the largest.
const CHUNK_KEYS: std::ops::RangeInclusive<usize> = 16..=1024;
/// A chunk is ended when its values have so many bytes in the log.
const CHUNK_BYTES_MAX: u64 = 1 << 20;

/// Keys in order with their values, from both ends; see [`KvStore::range`](crate::KvStore::range).
///
/// It sees the store as it was when it was made. A value that does not verify is an error in its place, and the iterator
/// goes on behind it; after any other error it has ended.
#[derive(Debug)]
pub struct Range {
    keys: KeyRange,
    front: Values,
    back: Values,
}

/// Keys in order, from both ends; see [`Range::keys`].
#[derive(Debug)]
pub struct Keys {
    keys: KeyRange,
}

/// Keys and values in order as strings; see [`Range::strings`].
#[derive(Debug)]
pub struct Strings {
    range: Range,
}

/// What is left to be gone through, from both ends.
#[derive(Debug)]
struct KeyRange {
    view: Arc<View>,
    /// What no chunk has had yet lies between these.
    lower: Bound<Vec<u8>>,
    upper: Bound<Vec<u8>>,
    is_exhausted: bool,
    front: Side,
    back: Side,
    /// Of a few segments, whether what lies in them says nothing any more.
    is_dead: SegmentTable<bool>,
}

/// One of the two ends.
#[derive(Debug)]
struct Side {
    merge: Option<Merge>,
    /// In the order of the direction.
    chunk: Sorted,
    /// Those of the chunk that were not answered yet.
    left: std::ops::Range<usize>,
    chunk_keys: usize,
}

impl Default for Side {
    fn default() -> Side {
        Side { merge: None, chunk: Sorted::default(), left: 0..0, chunk_keys: *CHUNK_KEYS.start() }
    }
}

/// The values of a side's chunk.
#[derive(Debug, Default)]
struct Values {
    frames: SetFrames,
    /// The last value that was compressed.
    decompressed: Vec<u8>,
}

/// Which chunk an answer is in, and where.
#[derive(Clone, Copy, Debug)]
struct Answer {
    is_front: bool,
    at: usize,
    /// The chunk is new: its values were not read yet.
    is_new: bool,
}

impl KeyRange {
    fn new(view: Arc<View>, lower: Bound<Vec<u8>>, upper: Bound<Vec<u8>>) -> KeyRange {
        let (front, back) = (Side::default(), Side::default());
        KeyRange { view, lower, upper, is_exhausted: false, front, back, is_dead: SegmentTable::default() }
    }

    /// The next key from one end.
    fn next(&mut self, direction: Direction) -> Result<Option<Answer>> {
        let is_front = direction == Direction::Forward;
        let mut is_new = false;
        loop {
            let (near, far) = match is_front {
                true => (&mut self.front, &mut self.back),
                false => (&mut self.back, &mut self.front),
            };
            if let Some(at) = near.left.next() {
                return Ok(Some(Answer { is_front, at, is_new }));
            }
            if self.is_exhausted {
                // What the other end has fetched and not answered.
                let at = far.left.next_back();
                return Ok(at.map(|at| Answer { is_front: !is_front, at, is_new: false }));
            }
            if let Err(error) = self.fill(direction) {
                self.is_exhausted = true;
                return Err(error);
            }
            is_new = true;
        }
    }

    /// Fills the chunk of one side with what comes next.
    fn fill(&mut self, direction: Direction) -> Result<()> {
        let KeyRange { view, lower, upper, is_exhausted, front, back, is_dead } = self;
        let (side, near, far) = match direction {
            Direction::Forward => (front, as_slice(lower), as_slice(upper)),
            Direction::Backward => (back, as_slice(upper), as_slice(lower)),
        };
        let Side { merge, chunk, left, chunk_keys } = side;
        let is_within = |key: &[u8]| match direction {
            Direction::Forward => is_below(key, far),
            Direction::Backward => is_above(key, far),
        };
        let mut is_dead = |segment: u32| {
            is_dead.get(segment).unwrap_or_else(|| {
                let dead = view.is_dead(segment);
                is_dead.put(segment, dead);
                dead
            })
        };
        chunk.clear();
        let (mut bytes, mut is_full) = (0, false);
        while !*is_exhausted && !is_full {
            let merged = match merge {
                Some(merge) => merge.each(|key, spot| {
                    if !is_within(key) {
                        *is_exhausted = true;
                        return ControlFlow::Break(());
                    }
                    if !spot.is_remove && !is_dead(spot.pointer.segment) {
                        bytes += spot.pointer.frame_bytes();
                        chunk.push(key, spot);
                        is_full = chunk.len() >= *chunk_keys || bytes >= CHUNK_BYTES_MAX;
                    }
                    if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                }),
                None => {
                    // Behind what the chunk has, if a run was mended in the middle of it.
                    let near = match chunk.len() {
                        0 => near,
                        len => Bound::Excluded(chunk.key(len - 1)),
                    };
                    view.merge(near, direction).map(|merged| {
                        *merge = Some(merged);
                        false
                    })
                }
            };
            match merged {
                Ok(is_at_end) => *is_exhausted |= is_at_end,
                Err(error) => {
                    *merge = None;
                    view.mend(error)?;
                }
            }
        }
        *chunk_keys = (2 * *chunk_keys).min(*CHUNK_KEYS.end());
        *left = 0..chunk.len();
        if let Some(last) = chunk.len().checked_sub(1) {
            let taken = Bound::Excluded(chunk.key(last).to_vec());
            match direction {
                Direction::Forward => *lower = taken,
                Direction::Backward => *upper = taken,
            }
        }
        Ok(())
    }

    fn chunk(&self, is_front: bool) -> &Sorted {
        if is_front { &self.front.chunk } else { &self.back.chunk }
    }

    fn key(&self, answer: Answer) -> Vec<u8> {
        self.chunk(answer.is_front).key(answer.at).to_vec()
    }
}

impl Range {
    pub(crate) fn new<K: AsRef<[u8]> + ?Sized>(view: Arc<View>, bounds: &impl RangeBounds<K>) -> Range {
        let keys = KeyRange::new(view, owned(bounds.start_bound()), owned(bounds.end_bound()));
        Range { keys, front: Values::default(), back: Values::default() }
    }

    pub(crate) fn with_prefix(view: Arc<View>, prefix: &[u8]) -> Range {
        let end = end_of_prefix(prefix).map_or(Bound::Unbounded, Bound::Excluded);
        let keys = KeyRange::new(view, Bound::Included(prefix.to_vec()), end);
        Range { keys, front: Values::default(), back: Values::default() }
    }

    /// Only the keys; no value is read.
    pub fn keys(self) -> Keys {
        Keys { keys: self.keys }
    }

    /// Keys and values as strings. What is not UTF-8 is [`Error::NotUtf8`], and the iterator goes on behind it.
    pub fn strings(self) -> Strings {
        Strings { range: self }
    }

    /// Hands over the frames of all keys.
    pub(crate) fn for_each_frame(mut self, mut each: impl FnMut(&SetFrame<'_>) -> Result<()>) -> Result<()> {
        while let Some(answer) = self.keys.next(Direction::Forward)? {
            let (chunk, frames) = (self.keys.chunk(answer.is_front), &mut self.front.frames);
            if answer.is_new {
                self.keys.view.read_frames(chunk, frames);
            }
            each(&frames.get(answer.at, chunk.key(answer.at))?)?;
        }
        Ok(())
    }

    /// Hands over what is left, in ascending order; keys and values are only lent, so that nothing is allocated for each.
    /// What reads much in order is fastest so.
    ///
    /// # Errors
    /// The first error, be it of the store (as the iterator gives them) or of `each`, ends it.
    ///
    /// ```
    /// # fn main() -> kvs::Result<()> {
    /// # let temporary = tempfile::tempdir().unwrap();
    /// # let store = kvs::KvStore::open(temporary.path().join("store"))?;
    /// store.put("a", "one")?;
    /// store.put("b", "three")?;
    /// let mut bytes = 0;
    /// store.iter()?.lend_each(|key, value| {
    ///     bytes += key.len() + value.len();
    ///     Ok::<_, kvs::Error>(())
    /// })?;
    /// assert_eq!(bytes, 10);
    /// # Ok(())
    /// # }
    /// ```
    pub fn lend_each<E: From<Error>>(
        mut self,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(pair) = self.lend(Direction::Forward) {
            let (key, value) = pair?;
            each(key, value)?;
            // The rest of the chunk without a look at both ends for each pair.
            let side = &mut self.keys.front;
            for n in std::mem::take(&mut side.left) {
                let (key, value) = self.front.pair(n, &side.chunk)?;
                each(key, value)?;
            }
        }
        Ok(())
    }

    /// The next pair from one end.
    fn lend(&mut self, direction: Direction) -> Option<Result<(&[u8], &[u8])>> {
        let answer = match self.keys.next(direction).transpose()? {
            Ok(answer) => answer,
            Err(error) => return Some(Err(error)),
        };
        let values = if answer.is_front { &mut self.front } else { &mut self.back };
        let chunk = self.keys.chunk(answer.is_front);
        if answer.is_new {
            self.keys.view.read_frames(chunk, &mut values.frames);
        }
        Some(values.pair(answer.at, chunk))
    }

    fn answer(&mut self, direction: Direction) -> Option<Result<(Vec<u8>, Vec<u8>)>> {
        let pair = self.lend(direction)?;
        Some(pair.map(|(key, value)| (key.to_vec(), value.to_vec())))
    }
}

impl Values {
    /// Key and value with this number in the chunk.
    #[inline]
    fn pair<'a>(&'a mut self, n: usize, chunk: &'a Sorted) -> Result<(&'a [u8], &'a [u8])> {
        let key = chunk.key(n);
        if let Some(value) = self.frames.plain_value(n, key) {
            return Ok((key, value));
        }
        self.decompressed = self.frames.get(n, key)?.to_vec()?;
        Ok((key, &self.decompressed))
    }
}

impl Iterator for Range {
    type Item = Result<(Vec<u8>, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.answer(Direction::Forward)
    }
}

impl DoubleEndedIterator for Range {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.answer(Direction::Backward)
    }
}

impl Keys {
    fn answer(&mut self, direction: Direction) -> Option<Result<Vec<u8>>> {
        let answer = self.keys.next(direction).transpose()?;
        Some(answer.map(|answer| self.keys.key(answer)))
    }
}

impl Iterator for Keys {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.answer(Direction::Forward)
    }
}

impl DoubleEndedIterator for Keys {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.answer(Direction::Backward)
    }
}

impl Iterator for Strings {
    type Item = Result<(String, String)>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.range.next()?.and_then(to_strings))
    }
}

impl DoubleEndedIterator for Strings {
    fn next_back(&mut self) -> Option<Self::Item> {
        Some(self.range.next_back()?.and_then(to_strings))
    }
}

fn to_strings((key, value): (Vec<u8>, Vec<u8>)) -> Result<(String, String)> {
    let key = String::from_utf8(key).map_err(|error| Error::KeyNotUtf8 {
        valid_up_to: error.utf8_error().valid_up_to(),
        key: error.into_bytes(),
    })?;
    match String::from_utf8(value) {
        Ok(value) => Ok((key, value)),
        Err(error) => Err(Error::NotUtf8 { key, valid_up_to: error.utf8_error().valid_up_to() }),
    }
}

fn owned<K: AsRef<[u8]> + ?Sized>(bound: Bound<&K>) -> Bound<Vec<u8>> {
    bound.map(|key| key.as_ref().to_vec())
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

/// The first key behind all that begin with a prefix: their upper bound. `None` if no key lies behind them.
pub fn end_of_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte < 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_where_they_should() {
        assert_eq!(end_of_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(end_of_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(end_of_prefix(b"\xff"), None);
        assert_eq!(end_of_prefix(b""), None);
    }
}
