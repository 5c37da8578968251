//! The peer LMDB, a copy-on-write B-tree in a mapping, through `heed`.

use std::path::Path;

use anyhow::Result;
use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, RoTxn, WithTls};

use super::{KeyReader, KeyValue, KvPlan, ScanTally, copy_into};
use crate::kv_data::Key;

/// Address space of the mapping, and so the most that it can hold.
const MAP_BYTES: usize = 32 << 30;

/// What gets see.
#[derive(Clone, Copy, PartialEq)]
pub enum View {
    /// The newest state: each get is a transaction.
    Newest,
    /// One state for the whole run: one transaction, which spares the work of beginning it.
    Kept,
}

/// Opens it; without durability its commits are not synced, and a power failure may then damage the whole file.
pub fn open(dir: &Path, plan: &KvPlan, view: View) -> Result<Box<dyn KeyValue>> {
    let mut options = EnvOpenOptions::new();
    options.map_size(MAP_BYTES);
    // SAFETY: nobody else has the files in `dir` open, which `heed` asks for; the flag is about durability only.
    #[allow(unsafe_code)]
    let env = unsafe {
        if !plan.durable {
            options.flags(EnvFlags::NO_SYNC);
        }
        options.open(dir)?
    };
    let mut begun = env.write_txn()?;
    let database = env.create_database(&mut begun, None)?;
    begun.commit()?;
    Ok(Box::new(Lmdb { env, database, view }))
}

struct Lmdb {
    env: Env,
    database: Database<Bytes, Bytes>,
    view: View,
}

impl KeyValue for Lmdb {
    fn set(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let mut begun = self.env.write_txn()?;
        self.database.put(&mut begun, key, value)?;
        Ok(begun.commit()?)
    }

    fn set_batch(&self, pairs: &[(Key, &'static [u8])]) -> Result<()> {
        let mut begun = self.env.write_txn()?;
        for (key, value) in pairs {
            self.database.put(&mut begun, key, value)?;
        }
        Ok(begun.commit()?)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        let mut begun = self.env.write_txn()?;
        self.database.delete(&mut begun, key)?;
        Ok(begun.commit()?)
    }

    fn reader(&self) -> Result<Box<dyn KeyReader + '_>> {
        Ok(match self.view {
            View::Newest => Box::new(NewestReader { store: self }),
            View::Kept => Box::new(KeptReader { database: self.database, begun: self.env.read_txn()? }),
        })
    }

    fn scan(&self) -> Result<(u64, u64)> {
        let begun = self.env.read_txn()?;
        let mut tally = ScanTally::default();
        for pair in self.database.iter(&begun)? {
            let (key, value) = pair?;
            tally.add(key, value);
        }
        Ok(tally.of())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.sync()?;
        self.env.prepare_for_closing().wait();
        Ok(())
    }
}

struct NewestReader<'a> {
    store: &'a Lmdb,
}

impl KeyReader for NewestReader<'_> {
    fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<bool> {
        let begun = self.store.env.read_txn()?;
        let found = self.store.database.get(&begun, key)?;
        if let Some(bytes) = found {
            copy_into(value, bytes);
        }
        Ok(found.is_some())
    }
}

struct KeptReader<'a> {
    database: Database<Bytes, Bytes>,
    begun: RoTxn<'a, WithTls>,
}

impl KeyReader for KeptReader<'_> {
    fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<bool> {
        let found = self.database.get(&self.begun, key)?;
        if let Some(bytes) = found {
            copy_into(value, bytes);
        }
        Ok(found.is_some())
    }
}
