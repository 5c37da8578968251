//! Entries, and their bytes in a record.
//!
//! The record's index is the entry's, the record's type code its kind. The payload is a short header of numbers, each in
//! as many bytes as it needs, and the command (docs/format.md, "Raft logs").

use crate::error::EntryFault;

/// First byte of every entry: kind of record and version of the layout.
pub const ENTRY_MAGIC: u8 = 0xE1;

/// What an entry is for; the type code of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// The first entry of a leader: it commits what earlier terms left.
    TermStart,
    /// A command of a client, for the state machine.
    Command,
    /// A configuration of the cluster.
    Configuration,
}

impl EntryKind {
    /// The type code of records of this kind.
    pub fn type_code(self) -> u64 {
        match self {
            EntryKind::TermStart => 1,
            EntryKind::Command => 2,
            EntryKind::Configuration => 3,
        }
    }

    /// The kind with this type code.
    ///
    /// # Errors
    /// [`EntryFault::Kind`] for any other number.
    pub fn from_type_code(type_code: u64) -> Result<EntryKind, EntryFault> {
        match type_code {
            1 => Ok(EntryKind::TermStart),
            2 => Ok(EntryKind::Command),
            3 => Ok(EntryKind::Configuration),
            found => Err(EntryFault::Kind { found }),
        }
    }
}

/// What names an entry: its place, and the leader that put it there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EntryId {
    /// Number of the entry.
    pub index: u64,
    /// Term of the leader that created it.
    pub term: u64,
    /// That leader; 0 where the consensus does not tell leaders of a term apart.
    pub leader: u64,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of the entry.
    pub index: u64,
    /// Term of the leader that created it.
    pub term: u64,
    /// That leader.
    pub leader: u64,
    /// The client's number for the command, to recognise one that comes twice; 0 where it is not used.
    pub serial: u64,
    /// What it is for.
    pub kind: EntryKind,
    /// When this node stored it: milliseconds since the Unix epoch by its own clock.
    pub stored_ms: u64,
    /// The command, as the client gave it.
    pub command: Vec<u8>,
}

impl Entry {
    /// What names the entry.
    pub fn id(&self) -> EntryId {
        EntryId { index: self.index, term: self.term, leader: self.leader }
    }
}

/// An entry to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewEntry<'a> {
    /// Term of the leader that created it.
    pub term: u64,
    /// That leader.
    pub leader: u64,
    /// The client's number for the command; 0 where it is not used.
    pub serial: u64,
    /// What it is for.
    pub kind: EntryKind,
    /// The command.
    pub command: &'a [u8],
}

impl<'a> NewEntry<'a> {
    /// A client's command.
    pub fn command(term: u64, leader: u64, command: &'a [u8]) -> Self {
        NewEntry { term, leader, serial: 0, kind: EntryKind::Command, command }
    }

    /// The first entry of a term.
    pub fn term_start(term: u64, leader: u64) -> Self {
        NewEntry { term, leader, serial: 0, kind: EntryKind::TermStart, command: &[] }
    }
}

/// A [`NewEntry`] that outlives the call that gave it.
#[derive(Debug)]
pub(crate) struct OwnedEntry {
    of: NewEntry<'static>,
    command: Vec<u8>,
}

impl OwnedEntry {
    pub(crate) fn of(entry: &NewEntry<'_>) -> OwnedEntry {
        let NewEntry { term, leader, serial, kind, command } = *entry;
        let of = NewEntry { term, leader, serial, kind, command: &[] };
        OwnedEntry { of, command: command.to_vec() }
    }

    pub(crate) fn borrowed(&self) -> NewEntry<'_> {
        NewEntry { command: &self.command, ..self.of }
    }
}

/// The numbers before the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// Term of the leader that created the entry.
    pub term: u64,
    /// That leader.
    pub leader: u64,
    /// The client's number for the command.
    pub serial: u64,
    /// How many of the entries before this one were not yet committed when it was stored.
    pub commit_lag: u64,
    /// How many of the committed ones were not yet applied.
    pub applied_lag: u64,
    /// When it was stored, in milliseconds since the Unix epoch.
    pub stored_ms: u64,
}

impl EntryHeader {
    /// Appends the header's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        // Formed aside: one look at the capacity of `out` for all of it.
        let mut bytes = [ENTRY_MAGIC; HEADER_BYTES_MAX];
        let mut len = 1;
        for number in [self.term, self.leader, self.serial, self.commit_lag, self.applied_lag, self.stored_ms]
        {
            len += put_number(&mut bytes[len..], number);
        }
        out.extend_from_slice(&bytes[..len]);
    }

    /// Takes the header off a record's payload; the rest is the command.
    ///
    /// # Errors
    /// If these are not the bytes of an entry.
    pub fn decode(payload: &[u8]) -> Result<(EntryHeader, &[u8]), EntryFault> {
        let Some((&magic, mut rest)) = payload.split_first() else {
            return Err(EntryFault::Short { field: "magic" });
        };
        if magic != ENTRY_MAGIC {
            return Err(EntryFault::Magic { found: magic, expected: ENTRY_MAGIC });
        }
        let header = EntryHeader {
            term: take_number(&mut rest, "term")?,
            leader: take_number(&mut rest, "leader")?,
            serial: take_number(&mut rest, "serial")?,
            commit_lag: take_number(&mut rest, "commit lag")?,
            applied_lag: take_number(&mut rest, "applied lag")?,
            stored_ms: take_number(&mut rest, "stored")?,
        };
        Ok((header, rest))
    }
}

/// Magic, and six numbers of ten bytes each at most.
pub(crate) const HEADER_BYTES_MAX: usize = 1 + 6 * 10;

/// Seven bits a byte, the lowest first; the high bit says that more follow. Answers how many bytes there are.
fn put_number(out: &mut [u8], mut number: u64) -> usize {
    let mut len = 0;
    while number >= 0x80 {
        out[len] = number as u8 | 0x80;
        number >>= 7;
        len += 1;
    }
    out[len] = number as u8;
    len + 1
}

fn take_number(bytes: &mut &[u8], field: &'static str) -> Result<u64, EntryFault> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let Some((&byte, rest)) = bytes.split_first() else { return Err(EntryFault::Short { field }) };
        *bytes = rest;
        let part = u64::from(byte & 0x7F);
        if (part << shift) >> shift != part {
            return Err(EntryFault::TooLong { field });
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(EntryFault::TooLong { field })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(numbers: [u64; 6]) -> EntryHeader {
        let [term, leader, serial, commit_lag, applied_lag, stored_ms] = numbers;
        EntryHeader { term, leader, serial, commit_lag, applied_lag, stored_ms }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for numbers in [[0; 6], [1, 2, 3, 4, 5, 6], [127, 128, 16383, 16384, 1 << 62, 1 << 63], [u64::MAX; 6]]
        {
            let mut bytes = Vec::new();
            header(numbers).encode(&mut bytes);
            bytes.extend(b"command");
            assert_eq!(EntryHeader::decode(&bytes), Ok((header(numbers), &b"command"[..])), "{numbers:?}");
        }
        for kind in [EntryKind::TermStart, EntryKind::Command, EntryKind::Configuration] {
            assert_eq!(EntryKind::from_type_code(kind.type_code()), Ok(kind));
        }
    }

    #[test]
    fn every_cut_and_every_wrong_byte_is_named() {
        let mut bytes = Vec::new();
        header([1, 300, 70000, 1, 0, 1 << 40]).encode(&mut bytes);
        for len in 0..bytes.len() {
            assert!(matches!(EntryHeader::decode(&bytes[..len]), Err(EntryFault::Short { .. })), "{len}");
        }
        let expected = ENTRY_MAGIC;
        assert_eq!(EntryHeader::decode(&[0; 9]), Err(EntryFault::Magic { found: 0, expected }));
        let mut long = vec![ENTRY_MAGIC];
        long.extend([0xFF; 10]);
        assert_eq!(EntryHeader::decode(&long), Err(EntryFault::TooLong { field: "term" }));
        let mut eleven = vec![ENTRY_MAGIC];
        eleven.extend([0x80; 12]);
        assert_eq!(EntryHeader::decode(&eleven), Err(EntryFault::TooLong { field: "term" }));
        assert_eq!(EntryKind::from_type_code(0), Err(EntryFault::Kind { found: 0 }));
        assert_eq!(EntryKind::from_type_code(4), Err(EntryFault::Kind { found: 4 }));
    }
}
