//! Settings of a store.

use lsfs::codec::Compression;
use lsfs::{Durability, Env};

/// Settings of a [`KvStore`](crate::KvStore); the defaults suit most.
#[derive(Clone, Debug)]
pub struct Options {
    /// When writes return, unless a handle says otherwise
    /// ([`KvStore::with_durability`](crate::KvStore::with_durability)).
    pub durability: Durability,
    /// How values are compressed when they are written. Each value says how it was, so this may change at any time.
    pub compression: Compression,
    /// Memory for pages of the index, in bytes; about 12 bytes for each key keep all of it in memory. Less than 64 KiB
    /// counts as 64 KiB.
    pub index_bytes: usize,
    /// Memory for frames written last, in bytes.
    pub cache_bytes: usize,
    /// As long as the log is not longer than this, in bytes, the background reads what was written into the system's page
    /// cache: sets and gets compare keys in the log, and direct I/O leaves nothing in that cache. Default: half of the
    /// machine's memory.
    pub page_cache_bytes: u64,
    /// While the store is written, compaction begins when the stale bytes are more than so many hundredths of the live
    /// ones, and a 64th of `segment_bytes`; a part of that is taken by what lies beside the log meanwhile. A close leaves a
    /// ninth, if it can do so without writing more than an eighth of what was written since the open. Less stale bytes cost
    /// more writing (docs/design/0013-kvs.md).
    pub stale_percent: u32,
    /// Segments of the log grow up to this size in bytes, from 32 KiB to 64 MiB. What maintenance waits for before it
    /// begins is in proportion to it.
    pub segment_bytes: u64,
    /// Whether a missing store is created.
    pub create: bool,
    /// Whether checkpoints and compaction are made in the background. Without it they are made by
    /// [`KvStore::checkpoint`](crate::KvStore::checkpoint), [`KvStore::compact`](crate::KvStore::compact) and, when much
    /// was written or is stale, by the close.
    pub background: bool,
    /// Whether the background and the close make sorted runs of the keys from the start. Without it, they do so once a
    /// scan or a snapshot was asked for, the close also if the store has a run: a store that is never scanned then pays
    /// nothing for the order of its keys.
    pub ordered: bool,
    /// Forget the index and make it anew from the log, leaving out frames that do not verify; they are named in
    /// [`OpenReport`](crate::OpenReport).
    pub repair: bool,
    /// Disk and threads.
    pub env: Env,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            durability: Durability::Sync,
            compression: Compression::None,
            index_bytes: 256 << 20,
            cache_bytes: 4 << 20,
            page_cache_bytes: lsfs::io::memory_bytes() / 2,
            stale_percent: 68,
            segment_bytes: SEGMENT_BYTES_MAX,
            create: true,
            background: true,
            ordered: false,
            repair: false,
            env: Env::default(),
        }
    }
}

/// A batch may make a segment twice as long, and positions in addresses have 27 bits.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 64 << 20;

impl Options {
    /// What maintenance counts in: 1 MiB with segments of the usual size.
    pub(crate) fn unit_bytes(&self) -> u64 {
        self.segment_bytes / 64
    }
}
