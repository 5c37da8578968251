//! What the write paths of record streams and segment sets are made of: group commit, spare files, the live page.
//!
//! **Invariant.** Nothing here knows blocks, records or frames.

pub(crate) mod group_commit;
pub(crate) mod live;
pub(crate) mod space;
