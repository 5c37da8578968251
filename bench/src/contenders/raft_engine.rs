//! The peer raft-engine: batches written with `sync = true`, compression off, one region for each producer (as
//! it is meant to be used: a region is the log of one Raft group).

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use raft_engine::{Config, Engine, LogBatch, ReadableSize};

use super::raft_entry::{RaftEntry, RaftEntryExt};
use super::{Contender, Producer, RandomReader, ReadBack, StorePlan};
use crate::disk;
use crate::payload::Feed;

/// File size of the warm arrangement: small enough that a run begins in a recycled file after little writing.
const WARM_FILE_BYTES: u64 = 32 << 20;

/// Entries fetched at once when reading back.
const FETCH_ENTRIES: u64 = 1024;

/// The region that warms an engine up; no producer has it.
const WARM_UP_REGION: u64 = u64::MAX;

/// raft-engine's own defaults, except that nothing is compressed.
fn config(dir: &Path) -> Result<Config> {
    let dir = dir.to_str().context("raft-engine wants a directory name in UTF-8")?.to_owned();
    Ok(Config { dir, batch_compression_threshold: ReadableSize(0), ..Config::default() })
}

/// Opens it with its default configuration.
pub fn open(dir: &Path) -> Result<Box<dyn Contender>> {
    Ok(Box::new(Raft { engine: Engine::open(config(dir)?)? }))
}

/// Opens it with enough zero-filled files for the run, and writes until the first of them is in use: the best
/// state it can be in, that of a server which has recycled its files for a while.
pub fn open_warm(dir: &Path, plan: &StorePlan) -> Result<Box<dyn Contender>> {
    // It prepares half as many files again as the limit asks for.
    let prefill_bytes = (plan.expected_bytes / 3 * 2).max(2 * WARM_FILE_BYTES);
    let engine = Engine::open(Config {
        target_file_size: ReadableSize(WARM_FILE_BYTES),
        purge_threshold: ReadableSize(prefill_bytes),
        prefill_for_recycle: true,
        prefill_limit: Some(ReadableSize(prefill_bytes)),
        ..config(dir)?
    })?;
    fill_first_file(&engine)?;
    disk::settle(dir)?;
    Ok(Box::new(Raft { engine }))
}

/// Writes one file's worth of entries, so that the next write rotates into a recycled file.
fn fill_first_file(engine: &Engine) -> Result<()> {
    let mut feed = Feed::new(0, disk::CHUNK_BYTES);
    let mut batch = LogBatch::default();
    for index in 1..=WARM_FILE_BYTES / disk::CHUNK_BYTES as u64 + 1 {
        batch.add_entries::<RaftEntryExt>(WARM_UP_REGION, &[RaftEntry::new(index, feed.next_record())])?;
        engine.write(&mut batch, false)?;
    }
    Ok(engine.sync()?)
}

/// An open engine.
struct Raft {
    engine: Engine,
}

impl Contender for Raft {
    fn producer(&self, number: usize) -> Result<Box<dyn Producer + '_>> {
        let region = number as u64 + 1;
        let next_index = self.engine.last_index(region).map_or(1, |last| last + 1);
        let producer = RaftProducer {
            engine: &self.engine,
            region,
            next_index,
            entries: Vec::new(),
            batch: LogBatch::default(),
        };
        Ok(Box::new(producer))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Writes the log of one region.
struct RaftProducer<'a> {
    engine: &'a Engine,
    region: u64,
    next_index: u64,
    entries: Vec<RaftEntry>,
    batch: LogBatch,
}

impl Producer for RaftProducer<'_> {
    fn append(&mut self, records: &[&'static [u8]]) -> Result<()> {
        let indexes = self.next_index..;
        self.entries.clear();
        self.entries.extend(indexes.zip(records).map(|(index, record)| RaftEntry::new(index, record)));
        self.next_index += records.len() as u64;
        self.batch.add_entries::<RaftEntryExt>(self.region, &self.entries)?;
        self.engine.write(&mut self.batch, true)?;
        Ok(())
    }
}

/// Fetches all entries of all regions in order. Opening, which reads the whole log once, is not counted.
pub fn read_back(dir: &Path) -> Result<ReadBack> {
    let engine = Engine::open(config(dir)?)?;
    // Opening has read every file into the page cache; fetching should start as cold as everybody else.
    disk::drop_caches(dir)?;
    let mut read = ReadBack { records: 0, payload_bytes: 0, seconds: 0.0 };
    let begun = Instant::now();
    for region in engine.raft_groups() {
        fetch_region(&engine, region, &mut read)?;
    }
    read.seconds = begun.elapsed().as_secs_f64();
    Ok(read)
}

/// Gets single entries of the one region that was filled.
struct RaftReader {
    engine: Engine,
    region: u64,
    first: u64,
}

impl RandomReader for RaftReader {
    fn read(&mut self, number: u64) -> Result<usize> {
        let entry = self.engine.get_entry::<RaftEntryExt>(self.region, self.first + number)?;
        Ok(entry.context("the entry is missing")?.data.len())
    }
}

/// Opens it for reading at random.
pub fn random_reader(dir: &Path) -> Result<Box<dyn RandomReader>> {
    let engine = Engine::open(config(dir)?)?;
    let region = *engine.raft_groups().first().context("the engine holds no region")?;
    let first = engine.first_index(region).context("the region is empty")?;
    Ok(Box::new(RaftReader { engine, region, first }))
}

/// Adds the entries of one region to `read`.
fn fetch_region(engine: &Engine, region: u64, read: &mut ReadBack) -> Result<()> {
    let (Some(first), Some(last)) = (engine.first_index(region), engine.last_index(region)) else {
        return Ok(());
    };
    let mut entries = Vec::with_capacity(FETCH_ENTRIES as usize);
    for begin in (first..=last).step_by(FETCH_ENTRIES as usize) {
        entries.clear();
        let end = (begin + FETCH_ENTRIES).min(last + 1);
        engine.fetch_entries_to::<RaftEntryExt>(region, begin, end, None, &mut entries)?;
        read.records += entries.len() as u64;
        read.payload_bytes += entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
    }
    Ok(())
}
