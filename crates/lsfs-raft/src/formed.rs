//! Entries that are formed before it is their turn to be written.

use crate::entry::EntryKind;
use crate::moment::Moment;

/// Entries with the indexes they will have, formed: the payloads of their records one behind
/// the other.
#[derive(Debug, Default)]
pub(crate) struct FormedEntries {
    payloads: Vec<u8>,
    entries: Vec<FormedEntry>,
    first_index: u64,
    pub(crate) ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct FormedEntry {
    /// Term and leader.
    of: (u64, u64),
    kind: EntryKind,
    /// Where its payload ends.
    end: usize,
}

/// Memory for payloads that is kept for the next entries.
const KEPT_BYTES: usize = 1 << 20;

impl FormedEntries {
    pub(crate) fn clear(&mut self) {
        self.payloads.clear();
        self.payloads.shrink_to(KEPT_BYTES);
        self.entries.clear();
    }

    /// Adds an entry; `command` appends its command.
    pub(crate) fn put(
        &mut self,
        moment: &Moment,
        index: u64,
        of: (u64, u64),
        kind: EntryKind,
        command: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.entries.is_empty() {
            (self.first_index, self.ms) = (index, moment.ms);
        }
        moment.put_header(&mut self.payloads, index, of, 0);
        command(&mut self.payloads);
        self.entries.push(FormedEntry { of, kind, end: self.payloads.len() });
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Index of the first entry, if there is one.
    pub(crate) fn first_index(&self) -> Option<u64> {
        (!self.entries.is_empty()).then_some(self.first_index)
    }

    /// Term and leader of each.
    pub(crate) fn ids(&self) -> impl Iterator<Item = (u64, u64)> + Clone {
        self.entries.iter().map(|entry| entry.of)
    }

    /// Type code and payload of each.
    pub(crate) fn records(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut start = 0;
        self.entries.iter().map(move |entry| {
            let payload = &self.payloads[std::mem::replace(&mut start, entry.end)..entry.end];
            (entry.kind.type_code(), payload)
        })
    }
}
