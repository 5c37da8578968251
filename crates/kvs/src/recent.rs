//! Commands of this process that are in the log and not yet in the index.
//!
//! To put a command into the index is to find what it replaces: a page of the index and a frame of the log, each of which
//! is a wait for memory, one behind the other. So a set only appends its frame and takes a note here. When there are some
//! dozens of notes, their commands are *settled*: put into the index together, so that the memory of all of them is
//! asked for before the first is waited for. Look-ups see them before the index, in the [`Tail`](crate::settle::Tail).
//!
//! A command that was noted cannot fail any more. What may fail, a page that cannot be read or written, fails when
//! commands are settled: before the next one is appended.
//!
//! **Invariants.** Commands are settled in the order of the log. Only who holds the writer's lock notes or settles. Who
//! takes that lock for anything that relies on the index, or adds to the log what is in it, settles first: a checkpoint, a
//! count, a copy that compaction makes. A frame counts as live until what replaced it is settled.

use std::ops::Range;

use lsfs::codec::Pointer;

use crate::error::Result;
use crate::lookup::{Damaged, Hit};
use crate::store::{Inner, Writer};

/// So many commands are settled at a time: far more than the memory answers at once. Look-ups walk over them.
const NOTES_MAX: usize = 64;
/// Keys that are kept for it, in bytes.
const KEY_BYTES_MAX: usize = 64 << 10;

/// The commands, in the order of the log.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    notes: Vec<Note>,
    keys: Vec<u8>,
}

/// A command that is not settled.
#[derive(Debug)]
struct Note {
    hash: u64,
    kind: u8,
    pointer: Pointer,
    replaces: Replaces<Range<usize>>,
}

/// What a command replaces.
#[derive(Clone, Debug)]
pub(crate) enum Replaces<Key> {
    /// This, or nothing. It was looked up when all commands before were in the index or noted, so that is still right when
    /// they are settled.
    Known(Option<Hit>),
    /// The last command for this key.
    LastOf(Key),
}

impl Recent {
    /// Whether enough was noted to be settled before the next command.
    pub(crate) fn is_full(&self) -> bool {
        self.notes.len() >= NOTES_MAX || self.keys.len() >= KEY_BYTES_MAX
    }

    fn push(&mut self, hash: u64, kind: u8, pointer: Pointer, replaces: Replaces<&[u8]>) {
        let replaces = match replaces {
            Replaces::Known(hit) => Replaces::Known(hit),
            Replaces::LastOf(key) => {
                self.keys.extend_from_slice(key);
                Replaces::LastOf(self.keys.len() - key.len()..self.keys.len())
            }
        };
        self.notes.push(Note { hash, kind, pointer, replaces });
    }

    /// The oldest notes, so many that none of them replaces another and that are looked up together.
    fn independent(&self) -> &[Note] {
        let first = &self.notes[..self.notes.len().min(NOTES_MAX)];
        let is_repeated = |at: &usize| first[..*at].iter().any(|note| note.hash == first[*at].hash);
        let end = (1..first.len()).find(is_repeated).unwrap_or(first.len());
        &first[..end]
    }

    /// The oldest notes are settled.
    fn remove_oldest(&mut self, count: usize) {
        self.notes.drain(..count);
        if self.notes.is_empty() {
            self.keys.clear();
        }
    }
}

impl Inner {
    /// Takes note of commands that were just appended, in their order.
    pub(crate) fn note<'a>(
        &self,
        writer: &mut Writer,
        commands: impl IntoIterator<Item = (u64, u8, Pointer, Replaces<&'a [u8]>)>,
    ) {
        let mut table = self.table.write();
        for (hash, kind, pointer, replaces) in commands {
            if table.tail.last_appended_segment() != Some(pointer.segment) {
                // Look-ups need a slot for the segment. There are more than segments can be made; were there none left,
                // the command could not be settled.
                let _address = table.slots.address(pointer.segment, pointer.position);
            }
            table.tail.push_appended(hash, pointer.segment, pointer.position);
            writer.recent.push(hash, kind, pointer, replaces);
            writer.count_appended(hash, pointer);
        }
    }

    /// Settles every command that was noted. After an error those that were not settled are still noted.
    pub(crate) fn settle_recent(&self, writer: &mut Writer) -> Result<()> {
        while !writer.recent.notes.is_empty() {
            self.settle_independent(writer)?;
        }
        Ok(())
    }

    fn settle_independent(&self, writer: &mut Writer) -> Result<()> {
        let notes = writer.recent.independent();
        let unknown: Vec<(u64, &[u8])> = notes
            .iter()
            .filter_map(|note| match &note.replaces {
                Replaces::LastOf(key) => Some((note.hash, &writer.recent.keys[key.clone()])),
                Replaces::Known(_) => None,
            })
            .collect();
        {
            let table = self.table.read();
            notes.iter().for_each(|note| table.index.prefetch_for_change(note.hash));
        }
        let mut found = self.table.find_each_in_index(&self.log, &unknown, Damaged::Ignore)?.into_iter();
        let mut settled: Vec<(Option<Hit>, u8, Pointer)> = Vec::with_capacity(notes.len());
        let outcome = {
            let mut table = self.table.write();
            let outcome = notes.iter().try_for_each(|note| {
                let old = match note.replaces {
                    Replaces::Known(hit) => hit,
                    Replaces::LastOf(_) => found.next().expect("each of these was looked up"),
                };
                table.point_at(&self.log, note.hash, old.as_ref(), note.pointer)?;
                settled.push((old, note.kind, note.pointer));
                Ok(())
            });
            table.tail.settled_appended(settled.len());
            outcome
        };
        for (old, kind, pointer) in &settled {
            writer.count_replaced(old.as_ref(), *kind, *pointer);
        }
        let replaced = settled.iter().filter_map(|(old, ..)| Some(old.as_ref()?.head.pointer));
        self.log.release_each(replaced);
        writer.recent.remove_oldest(settled.len());
        outcome
    }
}

#[cfg(test)]
mod tests {
    use lsfs::codec::FrameLayout;

    use super::*;

    fn pointer(position: u32) -> Pointer {
        Pointer::new(1, position, 10, FrameLayout::Packed)
    }

    #[test]
    fn commands_for_one_hash_are_not_settled_together() {
        let mut recent = Recent::default();
        for (position, hash) in [5, 6, 7, 6, 5, 5].into_iter().enumerate() {
            recent.push(hash, 1, pointer(position as u32), Replaces::LastOf(b"key"));
        }
        let mut parts = Vec::new();
        while !recent.notes.is_empty() {
            let part: Vec<u64> = recent.independent().iter().map(|note| note.hash).collect();
            recent.remove_oldest(part.len());
            parts.push(part);
        }
        assert_eq!(parts, [vec![5, 6, 7], vec![6, 5], vec![5]]);
        assert!(recent.keys.is_empty());
    }

    #[test]
    fn many_commands_or_long_keys_are_enough() {
        let mut recent = Recent::default();
        for n in 0..NOTES_MAX as u32 {
            assert!(!recent.is_full(), "{n}");
            recent.push(n.into(), 1, pointer(n), Replaces::Known(None));
        }
        assert!(recent.is_full());
        let mut recent = Recent::default();
        recent.push(1, 1, pointer(0), Replaces::LastOf(&[0; KEY_BYTES_MAX]));
        assert!(recent.is_full());
    }
}
