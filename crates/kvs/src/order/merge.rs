//! Sorted parts, merged: of each key the last command.

use std::ops::{Bound, ControlFlow};
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
        Ok(Merge { cursors, direction })
    }

    /// Hands over each key that follows, with its last command, be it a set or a remove; until `take` breaks, or to the
    /// end. Answers whether it came to the end.
    pub(crate) fn each(&mut self, mut take: impl FnMut(&[u8], Spot) -> ControlFlow<()>) -> Result<bool> {
        let mut is_stopped = false;
        while !is_stopped {
            let Some(first) = self.first_of(|_| true) else { return Ok(true) };
            let next = self.first_of(|n| n != first);
            let key_of = |n: usize| self.cursors[n].key().expect("cursors at their end are dropped");
            if next.is_some_and(|next| key_of(next) == key_of(first)) {
                is_stopped = self.take_newest(first, &mut take)?;
                continue;
            }
            // The keys of the loaded block before that of all others need no look at those.
            let Cursor { source, at } = &self.cursors[first];
            let (keys, from) = (source.keys(), at.expect("it has a key"));
            let mut last = from;
            loop {
                is_stopped = take(keys.key(last), keys.spot(last)).is_break();
                let after = match self.direction {
                    Direction::Forward => Some(last + 1).filter(|&after| after < keys.len()),
                    Direction::Backward => last.checked_sub(1),
                };
                match after {
                    Some(after)
                        if !is_stopped
                            && next.is_none_or(|next| self.is_before(keys.key(after), key_of(next))) =>
                    {
                        last = after;
                    }
                    _ => break,
                }
            }
            self.cursors[first].at = Some(last);
            self.cursors[first].advance(self.direction)?;
            self.drop_ended();
        }
        Ok(false)
    }

    /// Hands over the key of a cursor, and goes past it in all that have it.
    fn take_newest(
        &mut self,
        first: usize,
        take: &mut impl FnMut(&[u8], Spot) -> ControlFlow<()>,
    ) -> Result<bool> {
        let (cursor, older) = self.cursors[first..].split_first_mut().expect("there is this one");
        let (keys, at) = (cursor.source.keys(), cursor.at.expect("it has a key"));
        let key = keys.key(at);
        let is_stopped = take(key, keys.spot(at)).is_break();
        for cursor in older.iter_mut().filter(|cursor| cursor.key() == Some(key)) {
            cursor.advance(self.direction)?;
        }
        cursor.advance(self.direction)?;
        self.drop_ended();
        Ok(is_stopped)
    }

    fn is_before(&self, key: &[u8], other: &[u8]) -> bool {
        match self.direction {
            Direction::Forward => key < other,
            Direction::Backward => key > other,
        }
    }

    /// Of the cursors that are asked for, the one whose key comes first; of equal keys, the newest.
    fn first_of(&self, is_asked_for: impl Fn(usize) -> bool) -> Option<usize> {
        let mut found: Option<(usize, &[u8])> = None;
        for (n, cursor) in self.cursors.iter().enumerate().filter(|(n, _)| is_asked_for(*n)) {
            let key = cursor.key().expect("cursors at their end are dropped");
            if found.is_none_or(|(_, first)| self.is_before(key, first)) {
                found = Some((n, key));
            }
        }
        found.map(|(n, _)| n)
    }

    fn drop_ended(&mut self) {
        if self.cursors.iter().any(|cursor| cursor.at.is_none()) {
            self.cursors.retain(|cursor| cursor.at.is_some());
        }
    }
}
