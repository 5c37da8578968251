//! A durable key-value store whose log is its values.
//!
//! The principal type is [`KvStore`]: a map from byte strings to byte strings in a directory. Commands go into a log (a
//! segment set of the engine), and values are read from there; an index of about 12 bytes a key says where. [`Options`]
//! has the settings, [`KvReader`] reads beside the writer, in any process, [`Batch`] is several commands as one,
//! [`Range`] goes through keys in order, [`Snapshot`] is the store at one moment, [`KvsEngine`] is the small trait for
//! those who want to exchange the engine.
//!
//! What each call promises about power failures is in `docs/durability.md`, the bytes on disk in `docs/format.md`, the
//! reasons in `docs/design/0013-kvs.md`.
//!
//! ```
//! # fn main() -> kvs::Result<()> {
//! # let temporary = tempfile::tempdir().unwrap();
//! # let dir = temporary.path().join("store");
//! use kvs::{Batch, Durability, KvStore, Swap};
//!
//! let store = KvStore::open(&dir)?;
//! store.put("apples", "3")?;
//! store.write(Batch::new().put("pears", "5").delete("apples"))?; // both or none
//! assert_eq!(store.multi_get(&["apples", "pears"])?, [None, Some(b"5".to_vec())]);
//! assert_eq!(store.compare_and_swap("pears", Some(b"5"), Some(b"6"))?, Swap::Done);
//!
//! let fast = store.with_durability(Durability::Buffer); // durable a little later
//! fast.put("counter", "1")?;
//! store.sync()?; // durable now
//! # Ok(())
//! # }
//! ```

mod backup;
mod batch;
mod engine;
mod error;
mod feed;
#[cfg(test)]
mod format_examples;
mod heal;
mod idle;
mod index;
mod lookup;
mod lost;
mod maintenance;
mod open;
mod options;
mod order;
mod range;
mod reader;
mod recent;
mod record;
mod reserve;
mod root;
mod segments;
mod settle;
mod snapshot;
mod store;
mod tail;
mod transfer;

pub use backup::{BackupReport, restore};
pub use batch::Batch;
pub use engine::KvsEngine;
pub use error::{Error, Result};
pub use feed::{Change, Feed, FeedStart, Position};
pub use lsfs::Durability;
pub use lsfs::codec::Compression;
pub use options::Options;
pub use range::{Keys, Range, Strings, end_of_prefix};
pub use reader::KvReader;
pub use record::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
pub use snapshot::Snapshot;
pub use store::{KvStore, OpenReport, Stats, Swap, VerifyReport};
pub use transfer::{JsonLines, KeyChange, write_json_line};
