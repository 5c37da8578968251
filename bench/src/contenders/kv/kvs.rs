//! kvs, through its library.

use std::path::Path;

use anyhow::Result;
use kvs::{Batch, Durability, KvStore, Options};

use super::{Counters, KeyReader, KeyValue, KvPlan, ScanTally};
use crate::kv_data::Key;

/// Opens it with its default options, but for the budget of the index, and that it keeps keys in order if it is scanned.
pub fn open(dir: &Path, plan: &KvPlan, index_bytes: usize) -> Result<Box<dyn KeyValue>> {
    let durability = if plan.durable { Durability::Sync } else { Durability::Buffer };
    let options = Options { durability, index_bytes, ordered: plan.is_scanned, ..Options::default() };
    Ok(Box::new(Kvs { store: KvStore::open_with(dir, options)? }))
}

struct Kvs {
    store: KvStore,
}

impl KeyValue for Kvs {
    fn set(&self, key: &[u8], value: &[u8]) -> Result<()> {
        Ok(self.store.put(key, value)?)
    }

    fn set_batch(&self, pairs: &[(Key, &'static [u8])]) -> Result<()> {
        let mut batch = Batch::new();
        for (key, value) in pairs {
            batch.put(&key[..], *value);
        }
        Ok(self.store.write(&batch)?)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.store.delete(key)?;
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn KeyReader + '_>> {
        Ok(Box::new(Reader { store: self.store.clone() }))
    }

    fn scan(&self) -> Result<(u64, u64)> {
        let mut tally = ScanTally::default();
        self.store.iter()?.lend_each(|key, value| {
            tally.add(key, value);
            Ok::<_, kvs::Error>(())
        })?;
        Ok(tally.of())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.store.sync()?)
    }

    fn counters(&self) -> Counters {
        let stats = self.store.stats();
        Counters { zero_bytes: stats.zero_bytes, index_memory_bytes: Some(stats.index_memory_bytes) }
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.store.close()?)
    }
}

struct Reader {
    store: KvStore,
}

impl KeyReader for Reader {
    fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<bool> {
        Ok(self.store.get_into(key, value)?)
    }
}
