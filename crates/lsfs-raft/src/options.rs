//! Settings of a Raft log.

use lsfs::StreamOptions;

use crate::error::{Error, Result};

/// Settings of a Raft log. Those marked *fixed* are kept from its creation on.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Index of the first entry of a new log: 1 as in the Raft paper, 0 for openraft. Fixed.
    pub first_index: u64,
    /// Settings of the stream of entries: segment size, memory for recent entries, compression; its `first_index` is
    /// not used.
    pub stream: StreamOptions,
    /// The space meant for entries, in bytes; `None` for all that the disk has. Only statistics use it.
    pub capacity_bytes: Option<u64>,
    /// A snapshot that arrives is made durable every so many bytes: so much at most is sent again after a crash.
    pub snapshot_mark_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            first_index: 1,
            stream: StreamOptions::default(),
            capacity_bytes: None,
            snapshot_mark_bytes: 4 << 20,
        }
    }
}

impl LogOptions {
    pub(crate) fn check(&self) -> Result<()> {
        if self.snapshot_mark_bytes == 0 {
            let (value, expected) = ("0".to_string(), "at least 1".to_string());
            return Err(Error::InvalidOption { option: "snapshot_mark_bytes", value, expected });
        }
        Ok(())
    }

    /// Settings for the streams beside the entries, which are small.
    pub(crate) fn beside(&self) -> StreamOptions {
        let stream = self.stream.clone();
        StreamOptions { cache_bytes: stream.cache_bytes.min(256 << 10), first_index: 0, ..stream }
    }
}
