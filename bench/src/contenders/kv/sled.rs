//! The peer sled. **Its flush is not power-safe**: on Linux it calls `sync_file_range`, which neither flushes the
//! device's cache nor writes the file's metadata, so its durable figures are no promise to compare with.

use std::path::Path;

use anyhow::Result;
use sled::{Batch, Config, Db};

use super::{CACHE_BYTES, KeyReader, KeyValue, KvPlan, ScanTally, copy_into};
use crate::kv_data::Key;

/// Opens it with its default options, but for the cache.
pub fn open(dir: &Path, plan: &KvPlan) -> Result<Box<dyn KeyValue>> {
    let store = Config::new().path(dir.join("sled")).cache_capacity(CACHE_BYTES as u64).open()?;
    Ok(Box::new(Sled { store, durable: plan.durable }))
}

struct Sled {
    store: Db,
    durable: bool,
}

impl Sled {
    fn flush_if_durable(&self) -> Result<()> {
        if self.durable { self.sync() } else { Ok(()) }
    }
}

impl KeyValue for Sled {
    fn set(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.store.insert(key, value)?;
        self.flush_if_durable()
    }

    fn set_batch(&self, pairs: &[(Key, &'static [u8])]) -> Result<()> {
        let mut batch = Batch::default();
        for (key, value) in pairs {
            batch.insert(&key[..], *value);
        }
        self.store.apply_batch(batch)?;
        self.flush_if_durable()
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.store.remove(key)?;
        self.flush_if_durable()
    }

    fn reader(&self) -> Result<Box<dyn KeyReader + '_>> {
        Ok(Box::new(Reader { store: &self.store }))
    }

    fn scan(&self) -> Result<(u64, u64)> {
        let mut tally = ScanTally::default();
        for pair in self.store.iter() {
            let (key, value) = pair?;
            tally.add(&key, &value);
        }
        Ok(tally.of())
    }

    fn sync(&self) -> Result<()> {
        self.store.flush()?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.sync()
    }
}

struct Reader<'a> {
    store: &'a Db,
}

impl KeyReader for Reader<'_> {
    fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<bool> {
        let found = self.store.get(key)?;
        if let Some(bytes) = &found {
            copy_into(value, bytes);
        }
        Ok(found.is_some())
    }
}
