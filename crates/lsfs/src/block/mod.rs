//! Blocks in memory: forming them ([`BlockWriter`]) and taking records out of them ([`BlockReader`]).
//!
//! Neither does I/O. The writer turns records into block images for one write; the reader turns verified block
//! images back into records. Streams and final data share both.

mod reader;
mod writer;

pub(crate) use reader::{BlockReader, Fault, FoundRecord, Reason, Records, Step};
pub(crate) use writer::{Batch, BlockWriter, Identity, PendingRecord};
