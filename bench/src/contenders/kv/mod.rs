//! Key-value stores behind one door: kvs and its peers, each in a small adapter.

mod fjall;
#[cfg(feature = "lsfs")]
mod kvs;
mod lmdb;
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;
mod sled;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{Contender, ContenderId, Producer};
use crate::kv_data::{self, Key};

/// Memory for pages or blocks that every store gets which can be told, and the most that the index of kvs may take.
pub const CACHE_BYTES: usize = 256 << 20;

/// The budget of `kvs-2mib`.
#[cfg(feature = "lsfs")]
const SMALL_BUDGET_BYTES: usize = 2 << 20;

/// What a store is opened for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct KvPlan {
    /// Whether each write is on the medium when it returns; else only [`KeyValue::sync`] says so.
    pub durable: bool,
    /// Bytes of a value: from 1 KiB on, log-structured peers keep values apart from keys.
    pub value_bytes: usize,
    /// Whether it will be scanned.
    pub is_scanned: bool,
}

impl KvPlan {
    /// Whether a store that can keep values apart from keys should.
    fn separates_values(&self) -> bool {
        self.value_bytes >= 1024
    }
}

/// What a store says of itself, where it does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    /// Zeros written ahead, which no entry asked for.
    pub zero_bytes: u64,
    /// Memory of the index.
    pub index_memory_bytes: Option<u64>,
}

/// A key-value store that is open for writing.
pub trait KeyValue: Send + Sync {
    /// Sets a key, as durably as the plan says.
    fn set(&self, key: &[u8], value: &[u8]) -> Result<()>;

    /// Sets keys as one.
    fn set_batch(&self, pairs: &[(Key, &'static [u8])]) -> Result<()>;

    /// Removes a key.
    fn delete(&self, key: &[u8]) -> Result<()>;

    /// The reading side of one thread.
    fn reader(&self) -> Result<Box<dyn KeyReader + '_>>;

    /// Reads all keys and values in the order of the keys; answers how many there are, and their bytes.
    fn scan(&self) -> Result<(u64, u64)>;

    /// Returns when everything written before is on the medium.
    fn sync(&self) -> Result<()>;

    /// What it counts itself.
    fn counters(&self) -> Counters {
        Counters::default()
    }

    /// Closes the store the way a well-behaved program does.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Gets of one thread.
pub trait KeyReader {
    /// Puts a copy of the key's value into `value`; `false` if it is not there.
    fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<bool>;
}

/// Replaces what is in `target`.
fn copy_into(target: &mut Vec<u8>, bytes: &[u8]) {
    target.clear();
    target.extend_from_slice(bytes);
}

/// Counts the pairs of a scan.
#[derive(Default)]
struct ScanTally {
    pairs: u64,
    bytes: u64,
}

impl ScanTally {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.pairs += 1;
        self.bytes += (key.len() + value.len()) as u64;
    }

    fn of(self) -> (u64, u64) {
        (self.pairs, self.bytes)
    }
}

/// Opens the store `id` in `dir`, or creates it.
pub fn open(id: ContenderId, dir: &Path, plan: &KvPlan) -> Result<Box<dyn KeyValue>> {
    match id {
        #[cfg(feature = "lsfs")]
        ContenderId::Kvs => kvs::open(dir, plan, CACHE_BYTES),
        #[cfg(feature = "lsfs")]
        ContenderId::KvsSmall => kvs::open(dir, plan, SMALL_BUDGET_BYTES),
        ContenderId::Fjall => fjall::open(dir, plan),
        ContenderId::Redb => redb::open(dir, plan),
        ContenderId::Sled => sled::open(dir, plan),
        ContenderId::Lmdb => lmdb::open(dir, plan, lmdb::View::Newest),
        ContenderId::LmdbView => lmdb::open(dir, plan, lmdb::View::Kept),
        #[cfg(feature = "rocksdb")]
        ContenderId::RocksDb => rocksdb::open(dir, plan),
        _ => bail!("{} is no key-value store", id.name()),
    }
}

/// A key-value store that new keys are appended to, each set durable.
pub struct KvContender {
    store: Box<dyn KeyValue>,
    keys_begun: AtomicU64,
}

/// Keys that one producer takes at a time, so that no two use the same.
const KEYS_TAKEN: u64 = 1 << 32;

impl KvContender {
    /// Opens the store for durable sets.
    pub fn open(id: ContenderId, dir: &Path) -> Result<Box<dyn Contender>> {
        let plan = KvPlan { durable: true, value_bytes: kv_data::VALUE_BYTES, is_scanned: false };
        let store = open(id, dir, &plan)?;
        Ok(Box::new(KvContender { store, keys_begun: AtomicU64::new(1) }))
    }
}

impl Contender for KvContender {
    fn producer(&self, _number: usize) -> Result<Box<dyn Producer + '_>> {
        let next = self.keys_begun.fetch_add(1, Ordering::Relaxed) * KEYS_TAKEN;
        Ok(Box::new(KvProducer { store: &*self.store, next }))
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.store.close()
    }
}

/// Sets new keys to the records.
struct KvProducer<'a> {
    store: &'a dyn KeyValue,
    next: u64,
}

impl Producer for KvProducer<'_> {
    fn append(&mut self, records: &[&'static [u8]]) -> Result<()> {
        let first = self.next;
        self.next += records.len() as u64;
        if let [record] = records {
            return self.store.set(&kv_data::key(first), record);
        }
        let pairs: Vec<_> =
            records.iter().enumerate().map(|(n, record)| (kv_data::key(first + n as u64), *record)).collect();
        self.store.set_batch(&pairs)
    }
}
