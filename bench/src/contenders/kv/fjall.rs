//! The peer fjall, an LSM tree.

use std::path::Path;

use anyhow::Result;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};

use super::{CACHE_BYTES, KeyReader, KeyValue, KvPlan, ScanTally, copy_into};
use crate::kv_data::Key;

/// Opens it; its build here has no compression. Large values are kept apart from keys.
pub fn open(dir: &Path, plan: &KvPlan) -> Result<Box<dyn KeyValue>> {
    let database = Database::builder(dir).cache_size(CACHE_BYTES as u64).open()?;
    let separation = plan.separates_values().then(KvSeparationOptions::default);
    let keyspace =
        database.keyspace("bench", || KeyspaceCreateOptions::default().with_kv_separation(separation))?;
    Ok(Box::new(Fjall { database, keyspace, durable: plan.durable }))
}

struct Fjall {
    database: Database,
    keyspace: Keyspace,
    durable: bool,
}

impl Fjall {
    /// Its journal is in the system's hands after each write; a sync brings it to the medium.
    fn persist_if_durable(&self) -> Result<()> {
        if self.durable { self.sync() } else { Ok(()) }
    }
}

impl KeyValue for Fjall {
    fn set(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.keyspace.insert(key, value)?;
        self.persist_if_durable()
    }

    fn set_batch(&self, pairs: &[(Key, &'static [u8])]) -> Result<()> {
        let mut batch = self.database.batch();
        for (key, value) in pairs {
            batch.insert(&self.keyspace, &key[..], *value);
        }
        batch.commit()?;
        self.persist_if_durable()
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.keyspace.remove(key)?;
        self.persist_if_durable()
    }

    fn reader(&self) -> Result<Box<dyn KeyReader + '_>> {
        Ok(Box::new(Reader { keyspace: &self.keyspace }))
    }

    fn scan(&self) -> Result<(u64, u64)> {
        let mut tally = ScanTally::default();
        for pair in self.keyspace.iter() {
            let (key, value) = pair.into_inner()?;
            tally.add(&key, &value);
        }
        Ok(tally.of())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncData)?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.sync()
    }
}

struct Reader<'a> {
    keyspace: &'a Keyspace,
}

impl KeyReader for Reader<'_> {
    fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<bool> {
        let found = self.keyspace.get(key)?;
        if let Some(bytes) = &found {
            copy_into(value, bytes);
        }
        Ok(found.is_some())
    }
}
