//! Commands behind the checkpoint that an open has found and not yet put into the index.
//!
//! To put a command into the index is to find what it replaces: a page of the index and a frame of the log, each read at
//! random. An open does not wait for that. It keeps the commands by the hash of their keys, and look-ups see them before
//! the index. They are *settled* when their key is written, before a checkpoint, a compaction or a count, and else in
//! the background.
//!
//! **Invariants.** Of the commands for one hash the oldest is settled first, and it is in the index before it leaves the
//! tail. Only who holds the writer's lock settles. A frame of the tail counts as live until it is settled, and so does
//! what it replaces.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use lsfs::Entry;

use crate::error::{Error, Result};
use crate::lookup::{Damaged, missing, record_of};
use crate::lost::LOST_MAX;
use crate::open::listed_segments;
use crate::segments::{Location, SegmentSlots};
use crate::store::{Inner, Inside, Writer, release};
use crate::tail::{Part, Spot};

/// More commands are settled by the open itself: their places would take more memory than the time is worth.
pub(crate) const TAIL_COMMANDS_MAX: usize = 1 << 20;
/// Hashes that are settled under the writer's lock at a time.
const HASHES_PER_LOCK: usize = 64;
/// Times that the lock is taken in a step of the background.
const LOCKS_PER_STEP: usize = 64;
/// A command that was just appended.
#[derive(Clone, Copy, Debug)]
struct Appended {
    hash: u64,
    segment: u32,
    position: u32,
}

/// The commands that are not settled.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    /// What the open has found: stretches of the log, the oldest first.
    opened: Vec<Part>,
    /// What was appended since ([`Recent`](crate::recent::Recent)), in the order of the log.
    appended: Vec<Appended>,
    /// One bit for each of those, or for several, by its hash.
    appended_bits: [u64; APPENDED_BITS_WORDS],
}

/// With some dozens of commands, few look-ups of other keys find their bit set.
const APPENDED_BITS_WORDS: usize = 16;

/// The word and the bit of a hash.
fn bit_of(hash: u64) -> (usize, u64) {
    // The index uses the upper bits, so they tell less here.
    let bit = hash as usize % (APPENDED_BITS_WORDS * 64);
    (bit / 64, 1 << (bit % 64))
}

impl Tail {
    /// Whether it may have commands for a hash; if not, the index says everything.
    #[inline]
    pub(crate) fn may_have(&self, hash: u64) -> bool {
        let (word, bit) = bit_of(hash);
        self.appended_bits[word] & bit != 0 || self.has_opened()
    }

    /// Whether commands are left that the open has found.
    pub(crate) fn has_opened(&self) -> bool {
        !self.opened.is_empty()
    }

    /// Adds a command that was just appended. There is none for its hash that the open has found.
    pub(crate) fn push_appended(&mut self, hash: u64, segment: u32, position: u32) {
        self.appended.push(Appended { hash, segment, position });
        let (word, bit) = bit_of(hash);
        self.appended_bits[word] |= bit;
    }

    /// Where the last one lies of those that were appended.
    pub(crate) fn last_appended_segment(&self) -> Option<u32> {
        Some(self.appended.last()?.segment)
    }

    /// The oldest of those that were appended are in the index.
    pub(crate) fn settled_appended(&mut self, count: usize) {
        self.appended.drain(..count);
        self.appended_bits = Default::default();
        for command in &self.appended {
            let (word, bit) = bit_of(command.hash);
            self.appended_bits[word] |= bit;
        }
    }

    /// Adds the next stretch of the log that the open has found.
    pub(crate) fn push_opened(&mut self, part: Part) {
        if !part.is_empty() {
            self.opened.push(part);
        }
    }

    /// Where commands for a hash may lie, the newest first.
    pub(crate) fn locations(&self, hash: u64, slots: &SegmentSlots) -> impl Iterator<Item = Location> {
        let appended = self.appended.iter().rev().filter(move |command| command.hash == hash);
        let opened = self.opened.iter().rev().flat_map(move |part| part.spots(hash).rev());
        let places = appended.map(|command| (command.segment, command.position));
        places
            .chain(opened.map(|spot| (spot.segment, spot.position)))
            .filter_map(|(segment, position)| slots.location(segment, position))
    }

    /// The oldest that may be for a hash.
    fn oldest(&self, hash: u64) -> Option<Spot> {
        self.opened.iter().find_map(|part| part.spots(hash).next())
    }

    /// A hash for which there may be commands.
    fn any_hash(&self) -> Option<u64> {
        self.opened.first()?.any_hash()
    }

    /// The command, the oldest for its hash, is in the index.
    fn settled(&mut self, hash: u64, oldest: Spot) {
        if let Some(at) = self.opened.iter().position(|part| part.spots(hash).next() == Some(oldest)) {
            self.opened[at].settled(oldest);
            if self.opened[at].is_empty() {
                self.opened.remove(at);
            }
        }
    }
}

impl Inner {
    /// Settles what there may be for a hash.
    pub(crate) fn settle(&self, writer: &mut Writer, hash: u64) -> Result<()> {
        while self.has_unsettled.load(Ordering::Relaxed) {
            let oldest = self.table.read().tail.oldest(hash);
            let Some(command) = oldest else { return Ok(()) };
            match self.read_command(command) {
                Ok(entry) => self.settle_one(writer, &entry)?,
                Err(error) if error.is_corruption() => self.lose(command, error)?,
                Err(error) => return Err(error),
            }
            let mut table = self.table.write();
            table.tail.settled(hash, command);
            self.has_unsettled.store(table.tail.has_opened(), Ordering::Relaxed);
        }
        Ok(())
    }

    fn read_command(&self, Spot { segment, position, .. }: Spot) -> Result<Entry> {
        let entry = match self.log.read_at(segment, position) {
            Err(lsfs::Error::Gone { .. }) if self.is_listed(segment) => return Err(missing(segment)),
            other => other?,
        };
        record_of(&entry)?;
        Ok(entry)
    }

    /// A command cannot be settled: it is set aside, and what is said of it from now on is that it is lost.
    fn lose(&self, command: Spot, error: Error) -> Result<()> {
        let mut table = self.table.write();
        if table.lost.spots().len() >= LOST_MAX {
            return Err(error);
        }
        let Spot { segment, position, .. } = command;
        tracing::error!(%error, segment, position, "a command is lost: keys that may be its own cannot be read until they are set or removed");
        table.lost.add(command);
        Ok(())
    }

    /// Puts a command into the index. After an error nothing has changed: it is settled another time.
    fn settle_one(&self, writer: &mut Writer, entry: &Entry) -> Result<()> {
        let key = record_of(entry)?.key;
        let hash = self.hasher.hash(key);
        let old = self.table.find_in_index(&self.log, key, hash, Damaged::Ignore)?;
        self.table.point(&self.log, hash, old.as_ref(), entry.pointer)?;
        writer.count_replaced(old.as_ref(), entry.kind, entry.pointer);
        if let Some(hit) = old {
            release(&self.log, hit.head.pointer);
        }
        Ok(())
    }

    /// Settles a few commands; `false` if none are left.
    fn settle_some(&self) -> Result<bool> {
        let _inside = Inside::enter();
        let mut writer = self.writer();
        for _ in 0..HASHES_PER_LOCK {
            let hash = self.table.read().tail.any_hash();
            match hash {
                Some(hash) => self.settle(&mut writer, hash)?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Settles everything.
    pub(crate) fn settle_all(&self) -> Result<()> {
        {
            let _inside = Inside::enter();
            self.settle_recent(&mut self.writer())?;
        }
        let mut are_left = self.has_unsettled.load(Ordering::Relaxed);
        while are_left {
            are_left = self.settle_some()?;
        }
        Ok(())
    }

    /// Settles everything, and takes out of the index what lies in segments that were gone at the open: then it is what a
    /// replay of the whole log would make.
    pub(crate) fn settle_whole(&self) -> Result<()> {
        self.settle_all()?;
        let mut next = 0;
        loop {
            let mut writer = self.writer();
            let mut table = self.table.write();
            if !table.index.has_obsolete() {
                return Ok(());
            }
            match table.index.remove_obsolete(next)? {
                ControlFlow::Continue(page) => next = page,
                ControlFlow::Break(removed) => {
                    // The open has added those that were removes to the keys.
                    writer.keys = writer.keys.saturating_sub(removed);
                    let there = listed_segments(&self.log.segments());
                    let gone: Vec<u32> =
                        table.slots.numbers().filter(|number| !there.contains(number)).collect();
                    gone.into_iter().for_each(|number| table.slots.forget(number));
                    return Ok(());
                }
            }
        }
    }

    /// Settles a part that a step of the background may take; `false` if nothing was left.
    pub(crate) fn settle_step(&self) -> Result<bool> {
        if !self.has_unsettled.load(Ordering::Relaxed) {
            return Ok(false);
        }
        for _ in 0..LOCKS_PER_STEP {
            if !self.settle_some()? {
                break;
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(commands: impl IntoIterator<Item = (u64, u32, u32)>) -> Part {
        let spot = |(hash, segment, position): (u64, u32, u32)| Spot::new(hash << 40, segment, position);
        Part::new(&commands.into_iter().map(spot).collect::<Vec<_>>())
    }

    #[test]
    fn a_key_that_was_set_very_often_is_settled_in_time() {
        const SETS: u32 = 200_000;
        let mut slots = SegmentSlots::default();
        assert!(slots.address(1, 0).is_some());
        let mut tail = Tail::default();
        tail.push_opened(part((0..SETS).map(|n| (7, 1, n))));
        // If each step went through all of them, this would take minutes.
        for n in 0..SETS {
            assert_eq!(tail.locations(7 << 40, &slots).next().unwrap().position, SETS - 1);
            let oldest = tail.oldest(7 << 40).unwrap();
            assert_eq!(oldest.position, n);
            tail.settled(7 << 40, oldest);
        }
        assert!(!tail.has_opened() && !tail.may_have(7));
    }

    #[test]
    fn commands_of_a_hash_are_found_newest_first_and_leave_oldest_first() {
        let mut slots = SegmentSlots::default();
        (1..=3).for_each(|segment| assert!(slots.address(segment, 0).is_some()));
        let mut tail = Tail::default();
        tail.push_opened(part([(7, 1, 100), (9, 1, 200), (7, 2, 50)]));
        tail.push_opened(part([(3, 2, 90), (7, 3, 10)]));
        let places = |tail: &Tail, hash: u64| -> Vec<(u32, u32)> {
            let locations = tail.locations(hash << 40, &slots);
            locations.map(|location| (location.segment, location.position)).collect()
        };
        assert_eq!(places(&tail, 7), [(3, 10), (2, 50), (1, 100)]);
        assert_eq!(places(&tail, 8), []);
        let mut left = 5;
        for (hash, expected) in [(7, 100), (7, 50), (9, 200), (7, 10), (3, 90)] {
            let oldest = tail.oldest(hash << 40).unwrap();
            assert_eq!(oldest.position, expected);
            tail.settled(hash << 40, oldest);
            left -= 1;
            assert_eq!(tail.has_opened(), left > 0);
            assert_eq!(tail.any_hash().is_none(), left == 0);
        }
        assert_eq!(places(&tail, 7), []);
    }
}
