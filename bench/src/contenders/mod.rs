//! Everything that is measured, behind one door: the raw device, the peers and lsfs.

pub mod kv;
#[cfg(feature = "lsfs")]
pub mod lsfs;
#[cfg(feature = "lsfs")]
mod lsfs_log;
#[cfg(feature = "lsfs")]
mod lsfs_raft;
#[cfg(feature = "lsfs")]
mod lsfs_set;
mod okaywal;
mod raft_engine;
mod raft_entry;
mod raft_log;
mod raw;

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::job::Content;
use crate::measure::{self, Load};
use crate::metric::Sample;

/// A store that is open for appending.
pub trait Contender: Send + Sync {
    /// The appending side for producer `number`, counted from 0. Each producer is used by one thread.
    fn producer(&self, number: usize) -> Result<Box<dyn Producer + '_>>;

    /// Closes the store the way a well-behaved program does.
    fn close(self: Box<Self>) -> Result<()>;
}

/// One appending side of a [`Contender`].
pub trait Producer {
    /// Appends the records; when it returns, all of them are durable, by one sync where the store allows it.
    fn append(&mut self, records: &[&'static [u8]]) -> Result<()>;
}

/// Names of all contenders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContenderId {
    /// A zero-filled file, O_DIRECT, pwrite and fdatasync.
    RawDirect,
    /// The same file with pwritev2 and RWF_DSYNC.
    RawDsync,
    /// A growing file behind the page cache, write and fdatasync.
    RawBuffered,
    /// A fallocated file, O_DIRECT, pwrite and fdatasync: first writes convert extents.
    RawFallocated,
    /// O_DIRECT reads of another contender's files, front to back.
    RawRead,
    /// raft-engine in a fresh directory: files grow by fallocate.
    RaftEngine,
    /// raft-engine writing into recycled, zero-filled files (`prefill-for-recycle`), past its first rotation.
    RaftEngineWarm,
    /// okaywal, which recycles its files by design.
    Okaywal,
    /// lsfs in a fresh directory.
    Lsfs,
    /// lsfs with futures in flight from one executor thread.
    LsfsFutures,
    /// lsfs with a stream of its own for each producer.
    LsfsStreams,
    /// lsfs with retention: the oldest segments are purged and written again.
    LsfsRecycled,
    /// lsfs-raft, through openraft's storage traits.
    LsfsRaft,
    /// raft-log, databend's log store.
    RaftLog,
    /// lsfs with the index of a clerk.
    LsfsIndexed,
    /// lsfs beside a clerk and a reader, which are processes of their own.
    LsfsBeside,
    /// lsfs as a `Log` over its block store.
    LsfsLogBlock,
    /// lsfs as a `Log` over its mapped store.
    LsfsLogMmap,
    /// A segment set of lsfs; reads go through the writer's handle.
    LsfsSet,
    /// A segment set that is a cache: nothing in it is ever synced.
    LsfsSetCache,
    /// A segment set seen by a reader of another process.
    LsfsSetReader,
    /// `pread` from random places of another contender's files, cached.
    RawPread,
    /// Copies from random places of a mapping of another contender's files.
    RawMap,
    /// The key-value store kvs.
    Kvs,
    /// kvs with 2 MiB for its index.
    #[serde(rename = "kvs-2mib")]
    KvsSmall,
    /// fjall, an LSM tree in Rust.
    Fjall,
    /// redb, a B-tree in Rust.
    Redb,
    /// sled, whose flush is not power-safe.
    Sled,
    /// LMDB; each get begins a transaction, and so sees the newest state.
    Lmdb,
    /// LMDB; all gets of a thread are one transaction.
    LmdbView,
    /// RocksDB.
    #[serde(rename = "rocksdb")]
    RocksDb,
}

impl ContenderId {
    /// Every contender, in the order of reports.
    pub const ALL: [ContenderId; 31] = [
        ContenderId::RawDirect,
        ContenderId::RawDsync,
        ContenderId::RawBuffered,
        ContenderId::RawFallocated,
        ContenderId::RawRead,
        ContenderId::RaftEngine,
        ContenderId::RaftEngineWarm,
        ContenderId::Okaywal,
        ContenderId::Lsfs,
        ContenderId::LsfsFutures,
        ContenderId::LsfsStreams,
        ContenderId::LsfsRecycled,
        ContenderId::LsfsRaft,
        ContenderId::RaftLog,
        ContenderId::LsfsIndexed,
        ContenderId::LsfsBeside,
        ContenderId::LsfsLogBlock,
        ContenderId::LsfsLogMmap,
        ContenderId::LsfsSet,
        ContenderId::LsfsSetCache,
        ContenderId::LsfsSetReader,
        ContenderId::RawPread,
        ContenderId::RawMap,
        ContenderId::Kvs,
        ContenderId::KvsSmall,
        ContenderId::Fjall,
        ContenderId::Redb,
        ContenderId::Sled,
        ContenderId::Lmdb,
        ContenderId::LmdbView,
        ContenderId::RocksDb,
    ];

    /// The name in tables, JSON and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            ContenderId::RawDirect => "raw-direct",
            ContenderId::RawDsync => "raw-dsync",
            ContenderId::RawBuffered => "raw-buffered",
            ContenderId::RawFallocated => "raw-fallocated",
            ContenderId::RawRead => "raw-read",
            ContenderId::RaftEngine => "raft-engine",
            ContenderId::RaftEngineWarm => "raft-engine-warm",
            ContenderId::Okaywal => "okaywal",
            ContenderId::Lsfs => "lsfs",
            ContenderId::LsfsFutures => "lsfs-futures",
            ContenderId::LsfsStreams => "lsfs-streams",
            ContenderId::LsfsRecycled => "lsfs-recycled",
            ContenderId::LsfsRaft => "lsfs-raft",
            ContenderId::RaftLog => "raft-log",
            ContenderId::LsfsIndexed => "lsfs-indexed",
            ContenderId::LsfsBeside => "lsfs-beside",
            ContenderId::LsfsLogBlock => "lsfs-log-block",
            ContenderId::LsfsLogMmap => "lsfs-log-mmap",
            ContenderId::LsfsSet => "lsfs-set",
            ContenderId::LsfsSetCache => "lsfs-set-cache",
            ContenderId::LsfsSetReader => "lsfs-set-reader",
            ContenderId::RawPread => "raw-pread",
            ContenderId::RawMap => "raw-map",
            ContenderId::Kvs => "kvs",
            ContenderId::KvsSmall => "kvs-2mib",
            ContenderId::Fjall => "fjall",
            ContenderId::Redb => "redb",
            ContenderId::Sled => "sled",
            ContenderId::Lmdb => "lmdb",
            ContenderId::LmdbView => "lmdb-view",
            ContenderId::RocksDb => "rocksdb",
        }
    }

    /// Whether this is our own engine.
    pub fn is_lsfs(self) -> bool {
        matches!(
            self,
            ContenderId::Lsfs
                | ContenderId::LsfsFutures
                | ContenderId::LsfsStreams
                | ContenderId::LsfsRecycled
                | ContenderId::LsfsRaft
                | ContenderId::LsfsIndexed
                | ContenderId::LsfsBeside
                | ContenderId::LsfsLogBlock
                | ContenderId::LsfsLogMmap
                | ContenderId::LsfsSet
                | ContenderId::LsfsSetCache
                | ContenderId::LsfsSetReader
                | ContenderId::Kvs
                | ContenderId::KvsSmall
        )
    }

    /// Whether its appends can be left unsynced.
    fn can_leave_syncs_out(self) -> bool {
        matches!(
            self,
            ContenderId::RawBuffered
                | ContenderId::LsfsLogBlock
                | ContenderId::LsfsLogMmap
                | ContenderId::LsfsSet
                | ContenderId::LsfsSetCache
        )
    }

    /// Whether this is a key-value store.
    pub fn is_key_value(self) -> bool {
        self >= ContenderId::Kvs
    }

    /// Whether this build can run it.
    pub fn is_available(self) -> bool {
        match self {
            ContenderId::RocksDb => cfg!(feature = "rocksdb"),
            // The engine's own mapping is the raw one too.
            ContenderId::RawMap => cfg!(feature = "lsfs"),
            id => cfg!(feature = "lsfs") || !id.is_lsfs(),
        }
    }
}

/// What a store is opened for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct StorePlan {
    /// Payload bytes the run may write: how much to prepare where a contender prepares files.
    pub expected_bytes: u64,
    /// Whether all records must still be there afterwards.
    pub keeps_records: bool,
    /// Whether each append is durable when it returns. Without it, appends are left to whatever writes them later.
    pub is_synced: bool,
}

/// Opens `id` in `dir`, with all preparation that the measured window must not see.
pub fn open(id: ContenderId, dir: &Path, plan: &StorePlan) -> Result<Box<dyn Contender>> {
    ensure!(plan.is_synced || id.can_leave_syncs_out(), "{} syncs each append", id.name());
    match id {
        ContenderId::RawDirect
        | ContenderId::RawDsync
        | ContenderId::RawBuffered
        | ContenderId::RawFallocated => raw::open(id, dir, plan),
        ContenderId::RaftEngine => raft_engine::open(dir),
        ContenderId::RaftEngineWarm => raft_engine::open_warm(dir, plan),
        ContenderId::Okaywal => okaywal::open(dir, plan),
        #[cfg(feature = "lsfs")]
        ContenderId::Lsfs | ContenderId::LsfsFutures => lsfs::open(dir),
        #[cfg(feature = "lsfs")]
        ContenderId::LsfsStreams => Ok(lsfs::open_streams(dir)),
        #[cfg(feature = "lsfs")]
        ContenderId::LsfsRecycled => lsfs::open_recycled(dir),
        #[cfg(feature = "lsfs")]
        ContenderId::LsfsRaft => lsfs_raft::open(dir),
        ContenderId::RaftLog => raft_log::open(dir),
        #[cfg(feature = "lsfs")]
        ContenderId::LsfsBeside => lsfs::open_beside(dir),
        #[cfg(feature = "lsfs")]
        ContenderId::LsfsLogBlock | ContenderId::LsfsLogMmap => lsfs_log::open(id, dir, plan),
        #[cfg(feature = "lsfs")]
        ContenderId::LsfsSet | ContenderId::LsfsSetCache => lsfs_set::open(id, dir, plan),
        id if id.is_key_value() => kv::KvContender::open(id, dir),
        _ => bail!("{} cannot be opened for appending", id.name()),
    }
}

/// Applies `load` to `id` in `dir`.
pub fn drive(id: ContenderId, dir: &Path, plan: &StorePlan, load: &Load) -> Result<Sample> {
    #[cfg(feature = "lsfs")]
    if id == ContenderId::LsfsFutures {
        return lsfs::drive_futures(dir, load);
    }
    #[cfg(feature = "lsfs")]
    if id == ContenderId::LsfsRaft {
        return lsfs_raft::drive(dir, load);
    }
    if id == ContenderId::RaftLog {
        return raft_log::drive(dir, load);
    }
    let contender = open(id, dir, plan)?;
    crate::disk::settle(dir)?;
    let sample = measure::drive_threads(contender.as_ref(), load)?;
    contender.close()?;
    Ok(sample)
}

/// What reading a store from front to back yielded.
#[derive(Debug, Clone, Copy)]
pub struct ReadBack {
    /// Records read and verified; the raw device counts none.
    pub records: u64,
    /// Their payload bytes.
    pub payload_bytes: u64,
    /// Seconds from the first record asked for to the end.
    pub seconds: f64,
}

/// Reads everything in `dir` back in order, verified as far as the contender verifies.
pub fn read_back(id: ContenderId, dir: &Path) -> Result<ReadBack> {
    match id {
        ContenderId::RawRead => raw::read_back(dir),
        ContenderId::RaftEngine => raft_engine::read_back(dir),
        ContenderId::Okaywal => okaywal::read_back(dir),
        #[cfg(feature = "lsfs")]
        ContenderId::Lsfs => lsfs::read_back(dir),
        #[cfg(feature = "lsfs")]
        ContenderId::LsfsLogBlock | ContenderId::LsfsLogMmap => lsfs_log::read_back(dir),
        _ => bail!("{} cannot be read back", id.name()),
    }
}

/// Reads single records of a store.
pub trait RandomReader {
    /// Reads the record with this number, counted from 0, and verifies it as far as the contender verifies; answers its
    /// length.
    fn read(&mut self, number: u64) -> Result<usize>;
}

/// Opens `id` in `dir`, which holds `content`, for reading at random.
pub fn random_reader(id: ContenderId, dir: &Path, content: &Content) -> Result<Box<dyn RandomReader>> {
    match id {
        ContenderId::RawPread => raw::random_pread(dir, content.record_bytes),
        ContenderId::RaftEngine => raft_engine::random_reader(dir),
        #[cfg(feature = "lsfs")]
        ContenderId::RawMap => lsfs::random_copies(dir, content.record_bytes),
        #[cfg(feature = "lsfs")]
        ContenderId::Lsfs => lsfs::random_reader(dir, false),
        #[cfg(feature = "lsfs")]
        ContenderId::LsfsIndexed => lsfs::random_reader(dir, true),
        #[cfg(feature = "lsfs")]
        ContenderId::LsfsLogBlock | ContenderId::LsfsLogMmap => lsfs_log::random_reader(dir),
        #[cfg(feature = "lsfs")]
        ContenderId::LsfsSet | ContenderId::LsfsSetReader => lsfs_set::random_reader(id, dir),
        _ => bail!("{} does not read at random", id.name()),
    }
}

/// Builds the index of the store in `dir` anew; answers how many records it has.
pub fn build_index(id: ContenderId, dir: &Path) -> Result<u64> {
    match id {
        #[cfg(feature = "lsfs")]
        ContenderId::Lsfs => lsfs::build_index(dir),
        _ => bail!("{} builds no index of {}", id.name(), dir.display()),
    }
}

/// Keeps the indexes of the stream in `dir` until the process is killed.
pub fn keep_indexes(dir: &Path) -> Result<Sample> {
    #[cfg(feature = "lsfs")]
    lsfs::keep_indexes(dir)?;
    bail!("there is no clerk for {}", dir.display())
}

/// Reads the stream in `dir` at random until the process is killed.
pub fn read_until_killed(dir: &Path) -> Result<Sample> {
    #[cfg(feature = "lsfs")]
    lsfs::read_until_killed(dir)?;
    bail!("there is no reader for {}", dir.display())
}

/// Opens the existing store in `dir`, closes it again, and returns the seconds that opening took.
pub fn time_open(id: ContenderId, dir: &Path) -> Result<f64> {
    let plan = StorePlan { expected_bytes: 0, keeps_records: true, is_synced: true };
    let begun = std::time::Instant::now();
    let contender = open(id, dir, &plan)?;
    let seconds = begun.elapsed().as_secs_f64();
    contender.close()?;
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_text_and_json() {
        for id in ContenderId::ALL {
            assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{}\"", id.name()));
        }
    }
}
