//! The peer redb, a copy-on-write B-tree.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use redb::{
    Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::{CACHE_BYTES, KeyReader, KeyValue, KvPlan, ScanTally, copy_into};
use crate::kv_data::Key;

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("bench");

/// Without durability, every so many commits one is durable: only those give space back.
const COMMITS_PER_DURABLE: u64 = 1000;

/// Opens it.
pub fn open(dir: &Path, plan: &KvPlan) -> Result<Box<dyn KeyValue>> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(dir.join("redb"))?;
    let begun = database.begin_write()?;
    begun.open_table(TABLE)?;
    begun.commit()?;
    Ok(Box::new(Redb { database, durable: plan.durable, commits: AtomicU64::new(0) }))
}

struct Redb {
    database: Database,
    durable: bool,
    commits: AtomicU64,
}

impl Redb {
    fn begin(&self, durable: bool) -> Result<WriteTransaction> {
        let mut begun = self.database.begin_write()?;
        let commits = self.commits.fetch_add(1, Ordering::Relaxed) + 1;
        let is_durable = durable || commits.is_multiple_of(COMMITS_PER_DURABLE);
        begun.set_durability(if is_durable { Durability::Immediate } else { Durability::None })?;
        Ok(begun)
    }
}

impl KeyValue for Redb {
    fn set(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let begun = self.begin(self.durable)?;
        begun.open_table(TABLE)?.insert(key, value)?;
        Ok(begun.commit()?)
    }

    fn set_batch(&self, pairs: &[(Key, &'static [u8])]) -> Result<()> {
        let begun = self.begin(self.durable)?;
        {
            let mut table = begun.open_table(TABLE)?;
            for (key, value) in pairs {
                table.insert(&key[..], *value)?;
            }
        }
        Ok(begun.commit()?)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        let begun = self.begin(self.durable)?;
        begun.open_table(TABLE)?.remove(key)?;
        Ok(begun.commit()?)
    }

    fn reader(&self) -> Result<Box<dyn KeyReader + '_>> {
        let table = self.database.begin_read()?.open_table(TABLE)?;
        Ok(Box::new(Reader { table }))
    }

    fn scan(&self) -> Result<(u64, u64)> {
        let table = self.database.begin_read()?.open_table(TABLE)?;
        let mut tally = ScanTally::default();
        for pair in table.iter()? {
            let (key, value) = pair?;
            tally.add(key.value(), value.value());
        }
        Ok(tally.of())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.begin(true)?.commit()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.sync()
    }
}

/// Gets of one transaction, which is kept for the whole run.
struct Reader {
    table: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl KeyReader for Reader {
    fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<bool> {
        let found = self.table.get(key)?;
        if let Some(bytes) = &found {
            copy_into(value, bytes.value());
        }
        Ok(found.is_some())
    }
}
