//! The peer RocksDB, an LSM tree.

use std::path::Path;

use anyhow::Result;
use rocksdb::{BlockBasedOptions, Cache, DB, Options, ReadOptions, WriteBatch, WriteOptions};

use super::{CACHE_BYTES, KeyReader, KeyValue, KvPlan, ScanTally, copy_into};
use crate::kv_data::Key;

/// Bits for each key in the Bloom filters.
const FILTER_BITS: f64 = 10.0;
/// Bytes that a scan reads ahead.
const READ_AHEAD_BYTES: usize = 1 << 20;

/// Opens it with a block cache, Bloom filters and a thread for each core; large values go to blob files.
pub fn open(dir: &Path, plan: &KvPlan) -> Result<Box<dyn KeyValue>> {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
    blocks.set_bloom_filter(FILTER_BITS, false);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&blocks);
    options.increase_parallelism(std::thread::available_parallelism().map_or(1, |cores| cores.get() as i32));
    if plan.separates_values() {
        options.set_enable_blob_files(true);
        options.set_enable_blob_gc(true);
    }
    let mut writes = WriteOptions::default();
    writes.set_sync(plan.durable);
    Ok(Box::new(RocksDb { store: DB::open(&options, dir)?, writes }))
}

struct RocksDb {
    store: DB,
    writes: WriteOptions,
}

impl KeyValue for RocksDb {
    fn set(&self, key: &[u8], value: &[u8]) -> Result<()> {
        Ok(self.store.put_opt(key, value, &self.writes)?)
    }

    fn set_batch(&self, pairs: &[(Key, &'static [u8])]) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in pairs {
            batch.put(key, value);
        }
        Ok(self.store.write_opt(batch, &self.writes)?)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        Ok(self.store.delete_opt(key, &self.writes)?)
    }

    fn reader(&self) -> Result<Box<dyn KeyReader + '_>> {
        Ok(Box::new(Reader { store: &self.store }))
    }

    fn scan(&self) -> Result<(u64, u64)> {
        let mut options = ReadOptions::default();
        options.set_readahead_size(READ_AHEAD_BYTES);
        let mut tally = ScanTally::default();
        // The raw iterator lends its bytes; the other one allocates them anew.
        let mut pairs = self.store.raw_iterator_opt(options);
        pairs.seek_to_first();
        while let Some((key, value)) = pairs.item() {
            tally.add(key, value);
            pairs.next();
        }
        pairs.status()?;
        Ok(tally.of())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.store.flush_wal(true)?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.sync()?;
        self.store.cancel_all_background_work(true);
        Ok(())
    }
}

struct Reader<'a> {
    store: &'a DB,
}

impl KeyReader for Reader<'_> {
    fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<bool> {
        let found = self.store.get_pinned(key)?;
        if let Some(bytes) = &found {
            copy_into(value, bytes);
        }
        Ok(found.is_some())
    }
}
