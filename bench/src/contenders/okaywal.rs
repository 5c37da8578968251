//! The peer okaywal. It is a write-ahead log for another store: when a file is full, its entries are handed to a
//! checkpoint and the file is used again. Where records must be kept, checkpoints are put off for ever.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Result, ensure};
use okaywal::{
    Configuration, Entry, EntryId, LogManager, LogVoid, ReadChunkResult, SegmentReader, WriteAheadLog,
};

use super::{Contender, Producer, ReadBack, StorePlan};
use crate::disk;

/// Opens it: recycling as by default, or keeping everything.
pub fn open(dir: &Path, plan: &StorePlan) -> Result<Box<dyn Contender>> {
    let log = match plan.keeps_records {
        true => keeping(dir).open(Counting::default())?,
        false => Configuration::default_for(dir).open(LogVoid)?,
    };
    Ok(Box::new(Okaywal { log }))
}

/// A configuration that never checkpoints.
fn keeping(dir: &Path) -> Configuration {
    Configuration::default_for(dir).checkpoint_after_bytes(u64::MAX)
}

/// An open log.
struct Okaywal {
    log: WriteAheadLog,
}

impl Contender for Okaywal {
    fn producer(&self, _number: usize) -> Result<Box<dyn Producer + '_>> {
        Ok(Box::new(OkaywalProducer { log: &self.log }))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.log.shutdown()?)
    }
}

/// Writes one entry for each append, one chunk in it for each record.
struct OkaywalProducer<'a> {
    log: &'a WriteAheadLog,
}

impl Producer for OkaywalProducer<'_> {
    fn append(&mut self, records: &[&'static [u8]]) -> Result<()> {
        let mut entry = self.log.begin_entry()?;
        for record in records {
            entry.write_chunk(record)?;
        }
        entry.commit()?;
        Ok(())
    }
}

/// Counts what recovery hands over, with every checksum verified.
#[derive(Debug, Default)]
struct Counting {
    seen: Arc<Mutex<Seen>>,
}

/// Records and bytes recovered.
#[derive(Debug, Default)]
struct Seen {
    records: u64,
    payload_bytes: u64,
    corrupt: u64,
}

impl LogManager for Counting {
    fn recover(&mut self, entry: &mut Entry<'_>) -> io::Result<()> {
        let mut seen = self.seen.lock().expect("no holder panics");
        let mut record = Vec::new();
        while let ReadChunkResult::Chunk(mut chunk) = entry.read_chunk()? {
            record.clear();
            io::Read::read_to_end(&mut chunk, &mut record)?;
            seen.records += 1;
            seen.payload_bytes += record.len() as u64;
            seen.corrupt += u64::from(!chunk.check_crc()?);
        }
        Ok(())
    }

    fn checkpoint_to(
        &mut self,
        _last: EntryId,
        _entries: &mut SegmentReader,
        _log: &WriteAheadLog,
    ) -> io::Result<()> {
        Ok(())
    }
}

/// Reads everything back by the only way there is: recovery.
pub fn read_back(dir: &Path) -> Result<ReadBack> {
    disk::drop_caches(dir)?;
    let counting = Counting::default();
    let seen = counting.seen.clone();
    let begun = Instant::now();
    let log = keeping(dir).open(counting)?;
    let seconds = begun.elapsed().as_secs_f64();
    log.shutdown()?;
    let seen = seen.lock().expect("no holder panics");
    ensure!(seen.corrupt == 0, "{} chunks did not verify", seen.corrupt);
    Ok(ReadBack { records: seen.records, payload_bytes: seen.payload_bytes, seconds })
}
