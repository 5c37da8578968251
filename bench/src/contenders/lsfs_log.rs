//! Our own engine as a `Log`, over either of its local stores.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use lsfs::{Log, LogOptions, StoreKind};

use super::{Contender, ContenderId, Producer, RandomReader, ReadBack, StorePlan};
use crate::disk;

/// The mapped store has no place for another one.
const TYPE_CODE: u64 = 0;

/// Opens a log with its default options, new or existing.
pub fn open(id: ContenderId, dir: &Path, plan: &StorePlan) -> Result<Box<dyn Contender>> {
    let store = if id == ContenderId::LsfsLogMmap { StoreKind::Mmap } else { StoreKind::Block };
    let log = Log::open(dir, LogOptions { store, ..LogOptions::default() })?;
    Ok(Box::new(OpenLog { log, is_synced: plan.is_synced }))
}

/// Reads everything back in order, through a handle that only reads.
pub fn read_back(dir: &Path) -> Result<ReadBack> {
    disk::drop_caches(dir)?;
    let log = Log::open_read_only(dir)?;
    let mut read = ReadBack { records: 0, payload_bytes: 0, seconds: 0.0 };
    let begun = Instant::now();
    let mut cursor = log.iter(..)?;
    while let Some(record) = cursor.next_record()? {
        read.records += 1;
        read.payload_bytes += record.payload.len() as u64;
    }
    read.seconds = begun.elapsed().as_secs_f64();
    Ok(read)
}

impl RandomReader for Log {
    fn read(&mut self, number: u64) -> Result<usize> {
        Ok(Log::read(self, number)?.payload.len())
    }
}

/// Opens it for reading at random.
pub fn random_reader(dir: &Path) -> Result<Box<dyn RandomReader>> {
    Ok(Box::new(Log::open_read_only(dir)?))
}

/// An open log.
struct OpenLog {
    log: Log,
    is_synced: bool,
}

impl Contender for OpenLog {
    fn producer(&self, _number: usize) -> Result<Box<dyn Producer + '_>> {
        Ok(Box::new(LogProducer { log: &self.log, is_synced: self.is_synced, batch: Vec::new() }))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.log.close()?)
    }
}

/// Appends through the shared handle, as each thread of a program would.
struct LogProducer<'a> {
    log: &'a Log,
    is_synced: bool,
    batch: Vec<(u64, &'static [u8])>,
}

impl Producer for LogProducer<'_> {
    fn append(&mut self, records: &[&'static [u8]]) -> Result<()> {
        match records {
            _ if !self.is_synced => {
                for record in records {
                    self.log.append_buffered(TYPE_CODE, record)?;
                }
            }
            [record] => {
                self.log.append(TYPE_CODE, record)?;
            }
            _ => {
                self.batch.clear();
                self.batch.extend(records.iter().map(|&record| (TYPE_CODE, record)));
                self.log.append_batch(&self.batch)?;
            }
        }
        Ok(())
    }
}
