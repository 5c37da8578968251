//! Sorted parts, merged: of each key the last command.

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

use super::run::{Block, Run};
use super::sorted::{Sorted, Spot};
use super::{Keys, Part};
use crate::error::Result;

/// Which way keys are gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Ascending.
    Forward,
    /// Descending.
    Backward,
}

/// A place in one part.
#[derive(Debug)]
struct Cursor {
    source: Source,
    /// The present key; `None` at the end.
    at: Option<usize>,
}

#[derive(Debug)]
enum Source {
    Memory(Arc<Sorted>),
    Run(Arc<Run>, Block),
}

impl Source {
    fn keys(&self) -> &Sorted {
        match self {
            Source::Memory(keys) => keys,
            Source::Run(_, block) => &block.entries,
        }
    }
}

impl Cursor {
    /// At the first key in this direction that lies within a bound.
    fn seek(part: &Part, bound: Bound<&[u8]>, direction: Direction) -> Result<Cursor> {
        let source = match &part.keys {
            Keys::Memory(keys) => Source::Memory(Arc::clone(keys)),
            Keys::Run(run) => {
                let mut block = Block::default();
                if !run.load_leaf(bound, direction == Direction::Backward, &mut block)? {
                    return Ok(Cursor { source: Source::Run(Arc::clone(run), block), at: None });
                }
                Source::Run(Arc::clone(run), block)
            }
        };
        let keys = source.keys();
        let (at, is_before) = match direction {
            Direction::Forward => {
                let first = keys.first_within(bound);
                (first.min(keys.len().saturating_sub(1)), first == keys.len())
            }
            Direction::Backward => {
                let end = keys.end_within(bound);
                (end.saturating_sub(1), end == 0)
            }
        };
        let at = (keys.len() > 0).then_some(at);
        let mut cursor = Cursor { source, at };
        if is_before {
            // The leaf in which the key would lie ends before it, or begins behind it.
            cursor.advance(direction)?;
        }
        Ok(cursor)
    }

    fn key(&self) -> Option<&[u8]> {
        self.at.map(|at| self.source.keys().key(at))
    }

    fn advance(&mut self, direction: Direction) -> Result<()> {
        let Some(at) = self.at else { return Ok(()) };
        let keys = self.source.keys();
        let next = match direction {
            Direction::Forward => Some(at + 1).filter(|&next| next < keys.len()),
            Direction::Backward => at.checked_sub(1),
        };
        self.at = next;
        if next.is_none()
            && let Source::Run(run, block) = &mut self.source
        {
            self.at = match direction {
                Direction::Forward => run.load_next(block)?.then_some(0),
                Direction::Backward => run.load_previous(block)?.then(|| block.entries.len() - 1),
            };
        }
        Ok(())
    }
}

/// Goes through parts of which each is older than the next.
#[derive(Debug)]
pub(crate) struct Merge {
    /// The newest first.
    cursors: Vec<Cursor>,
    direction: Direction,
    /// The key answered last.
    key: Vec<u8>,
}

impl Merge {
    /// From the first key in this direction that lies within a bound.
    pub(crate) fn seek<'a>(
        parts: impl DoubleEndedIterator<Item = &'a Part>,
        bound: Bound<&[u8]>,
        direction: Direction,
    ) -> Result<Merge> {
        let cursors = parts.rev().map(|part| Cursor::seek(part, bound, direction));
        let cursors: Vec<Cursor> = cursors.collect::<Result<_>>()?;
        let cursors = cursors.into_iter().filter(|cursor| cursor.at.is_some()).collect();
        Ok(Merge { cursors, direction, key: Vec::new() })
    }

    /// The next key and its last command, be it a set or a remove.
    pub(crate) fn next(&mut self) -> Result<Option<(&[u8], Spot)>> {
        let Some(mut first) = self.cursors.first().map(|_| 0) else { return Ok(None) };
        let wanted = match self.direction {
            Direction::Forward => Ordering::Less,
            Direction::Backward => Ordering::Greater,
        };
        for n in 1..self.cursors.len() {
            // Of equal keys, the newest is that of the first cursor.
            if self.cursors[n].key().cmp(&self.cursors[first].key()) == wanted {
                first = n;
            }
        }
        let cursor = &self.cursors[first];
        let at = cursor.at.expect("cursors at their end are dropped");
        let spot = cursor.source.keys().spot(at);
        self.key.clear();
        self.key.extend_from_slice(cursor.source.keys().key(at));
        let (cursor, older) = self.cursors[first..].split_first_mut().expect("it was just found");
        cursor.advance(self.direction)?;
        let mut has_ended = cursor.at.is_none();
        for cursor in older {
            if cursor.key() == Some(&self.key[..]) {
                cursor.advance(self.direction)?;
                has_ended |= cursor.at.is_none();
            }
        }
        if has_ended {
            self.cursors.retain(|cursor| cursor.at.is_some());
        }
        Ok(Some((&self.key, spot)))
    }
}
