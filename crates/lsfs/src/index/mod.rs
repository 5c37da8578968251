//! Indexes: for each record of a segment, where it begins.
//!
//! The principal types are [`IndexTable`], the entries of one segment in memory, and [`IndexWriter`], which appends
//! them to a `.idx` file beside the segment. It is the same file for every store that has one: 16-byte entries,
//! offset and position ([`IndexEntry`](crate::codec::IndexEntry)), in any order while the segment grows, in order once
//! it is sealed. [`IndexView`] looks up a file where it lies. Beside the index are the segment's statistics.
//!
//! **Invariants.** An index is derived from its segment and never trusted: a look-up answers a hint, which the caller
//! compares with the bytes of the segment, and an index that lies is at worst slow. No length in a file is believed
//! before it is compared with a limit. A file is never cut by more than the unused end of its last 4096 bytes, and
//! replaced by a rename: another process may have it mapped.

mod statistics;
mod table;
mod view;
mod writer;

pub(crate) use statistics::{read_statistics, write_statistics};
pub(crate) use table::{IndexTable, StoredIndex};
pub(crate) use view::IndexView;
pub(crate) use writer::{IndexWriter, is_unfinished};
