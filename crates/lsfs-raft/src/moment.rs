//! What an entry says of the moment at which it is stored.

use std::sync::atomic::Ordering;

use crate::entry::{EntryHeader, NewEntry};
use crate::shared::Shared;

/// The time, and how far the log was committed and applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    commit_next: u64,
    applied_next: u64,
    pub(crate) ms: u64,
}

impl Moment {
    pub(crate) fn now(shared: &Shared) -> Moment {
        Moment {
            commit_next: shared.commit_next.load(Ordering::Acquire),
            applied_next: shared.applied_next.load(Ordering::Acquire),
            ms: shared.env.runtime.wall_clock_ms(),
        }
    }

    /// Appends the header of an entry.
    pub(crate) fn put_header(&self, out: &mut Vec<u8>, index: u64, (term, leader): (u64, u64), serial: u64) {
        let commit_next = self.commit_next.min(index);
        let applied_next = self.applied_next.min(commit_next);
        let header = EntryHeader {
            term,
            leader,
            serial,
            commit_lag: index - commit_next,
            applied_lag: commit_next - applied_next,
            stored_ms: self.ms,
        };
        header.encode(out);
    }

    /// Appends the payload of an entry's record.
    pub(crate) fn put(&self, out: &mut Vec<u8>, index: u64, entry: &NewEntry<'_>) {
        self.put_header(out, index, (entry.term, entry.leader), entry.serial);
        out.extend_from_slice(entry.command);
    }
}
