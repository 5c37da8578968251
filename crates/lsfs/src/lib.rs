//! A log engine: durable record streams, data streams and final data in fixed-size blocks, written with direct I/O.
//!
//! The principal types:
//!
//! - [`RecordStream`]: a log of numbered records in segments. [`append`](RecordStream::append) is durable on return;
//!   many producers share one sync. [`Reader`] reads beside the writer, in this process or another.
//! - [`DataStream`]: a stream of bytes with durable [marks](codec::Mark); [`DataReader`] reads them back.
//! - [`FinalData`]: one complete state, replaced as a whole.
//! - [`SegmentSet`]: entries found by [pointers](codec::Pointer), for those who keep their own index;
//!   [`SegmentSetReader`] reads beside the writer.
//!
//! What each call promises about power failures is in `docs/durability.md`, the bytes on disk in `docs/format.md`, the
//! way of a record through the code in `ARCHITECTURE.md`.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let temporary = tempfile::tempdir()?;
//! # let dir = temporary.path().join("events");
//! use lsfs::{Reader, RecordStream, StreamOptions};
//!
//! let stream = RecordStream::open(&dir, StreamOptions::default())?;
//! stream.append(1, b"signed in")?; // on the medium when it returns
//! stream.append_batch(&[(2, "viewed"), (3, "bought")])?; // two records, one sync
//! stream.close()?;
//!
//! let mut cursor = Reader::open(&dir)?.iter(..)?;
//! while let Some(record) = cursor.next_record()? {
//!     println!("{} {} {}", record.index, record.type_code, String::from_utf8_lossy(&record.payload));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The engine is synchronous and needs no runtime; [`Pending`] is a future for any executor. Linux only.

mod block;
mod clerk;
pub mod codec;
mod data_stream;
mod directory;
pub mod dump;
mod env;
mod error;
mod final_data;
mod index;
pub mod io;
pub mod log;
mod metrics;
mod mutant;
mod segment_set;
mod stream;
mod write_path;

pub use clerk::{Clerk, ClerkReport, IndexFault, IndexReport, rebuild, run_once, verify_index};
pub use data_stream::{DataReader, DataStream, DataStreamOptions};
pub use env::Env;
pub use error::{Corruption, Error, Result};
pub use final_data::{FinalData, FinalDataOptions, State};
pub use log::{Log, LogOptions, StoreKind};
pub use metrics::Latencies;
#[cfg(feature = "testing")]
pub use mutant::Mutant;
pub use segment_set::{
    Body, Durability, Entries, Entry, EntryBuffer, EntryHead, FooterHook, SegmentHandle, SegmentSet,
    SegmentSetReader, SetKind, SetOptions, SetSegmentInfo, SetStats,
};
pub use stream::repair;
pub use stream::{
    Cursor, Pending, Progress, Reader, Record, RecordRef, RecordStream, ReverseCursor, SegmentInfo,
    StreamInfo, StreamOptions, StreamStats, VerifyReport, inspect, verify,
};
pub use write_path::space::SpacePolicy;
