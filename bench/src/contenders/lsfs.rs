//! Our own engine, used as any program would use it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use lsfs::{RecordStream, StreamOptions};

use super::{Contender, Producer, ReadBack};
use crate::disk;
use crate::executor;
use crate::measure::{self, Load, Stage, Tally};
use crate::metric::Sample;
use crate::payload::Feed;

/// The user type code of every benchmark record.
const TYPE_CODE: u64 = 1;

/// Payload bytes that a stream with retention keeps: enough that whole segments of full size are used again.
const RETAINED_BYTES: u64 = 384 << 20;

/// Payload bytes appended between two purges.
const PURGE_EVERY_BYTES: u64 = 16 << 20;

/// Payload bytes of the records that bring a stream with retention to its steady state.
const FILLER_BYTES: usize = 64 << 10;

/// Records of one filling batch.
const FILLER_BATCH: usize = 16;

/// Opens a stream with its default options.
fn open_stream(dir: &Path) -> Result<RecordStream> {
    Ok(RecordStream::open(dir, StreamOptions::default())?)
}

/// Opens a stream with its default options, new or existing.
pub fn open(dir: &Path) -> Result<Box<dyn Contender>> {
    Ok(Box::new(Lsfs { stream: open_stream(dir)?, retains: false }))
}

/// Opens a stream with retention in its steady state: it is full, the oldest segments are purged as new records come,
/// and what is purged is written again.
pub fn open_recycled(dir: &Path) -> Result<Box<dyn Contender>> {
    let stream = open_stream(dir)?;
    let mut producer = LsfsProducer::new(&stream, true);
    let mut feed = Feed::new(0, FILLER_BYTES);
    let mut batch = Vec::with_capacity(FILLER_BATCH);
    for _ in 0..2 * RETAINED_BYTES / (FILLER_BYTES * FILLER_BATCH) as u64 {
        feed.fill(&mut batch, FILLER_BATCH);
        producer.append(&batch)?;
    }
    ensure!(stream.stats().recycled_segments > 0, "no segment was recycled");
    Ok(Box::new(Lsfs { stream, retains: true }))
}

/// A directory of streams, one for each producer.
pub fn open_streams(dir: &Path) -> Box<dyn Contender> {
    Box::new(Streams { dir: dir.to_path_buf() })
}

/// Streams side by side on one disk, each opened by its producer and closed with it.
struct Streams {
    dir: PathBuf,
}

impl Contender for Streams {
    fn producer(&self, number: usize) -> Result<Box<dyn Producer + '_>> {
        let stream = open_stream(&self.dir.join(number.to_string()))?;
        Ok(Box::new(LsfsProducer::new(&stream, false)))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// An open stream.
struct Lsfs {
    stream: RecordStream,
    retains: bool,
}

impl Contender for Lsfs {
    fn producer(&self, _number: usize) -> Result<Box<dyn Producer + '_>> {
        Ok(Box::new(LsfsProducer::new(&self.stream, self.retains)))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.stream.close()?)
    }
}

/// Appends through a clone of the stream, as each thread of a program would.
struct LsfsProducer {
    stream: RecordStream,
    batch: Vec<(u64, &'static [u8])>,
    retains: bool,
    bytes_since_purge: u64,
}

impl LsfsProducer {
    fn new(stream: &RecordStream, retains: bool) -> Self {
        LsfsProducer { stream: stream.clone(), batch: Vec::new(), retains, bytes_since_purge: 0 }
    }

    /// Purges what lies more than [`RETAINED_BYTES`] behind `next_index`, counted in records of this size.
    fn retain(&mut self, next_index: u64, record_bytes: usize) -> Result<()> {
        self.bytes_since_purge = 0;
        Ok(self.stream.purge_before(next_index.saturating_sub(RETAINED_BYTES / record_bytes as u64))?)
    }
}

impl Producer for LsfsProducer {
    fn append(&mut self, records: &[&'static [u8]]) -> Result<()> {
        let next_index = if let [record] = records {
            self.stream.append(TYPE_CODE, record)? + 1
        } else {
            self.batch.clear();
            self.batch.extend(records.iter().map(|&record| (TYPE_CODE, record)));
            self.stream.append_batch(&self.batch)?.end
        };
        self.bytes_since_purge += records.iter().map(|record| record.len() as u64).sum::<u64>();
        if self.retains && self.bytes_since_purge >= PURGE_EVERY_BYTES {
            self.retain(next_index, records[0].len())?;
        }
        Ok(())
    }
}

/// Applies `load` with futures in the place of threads: one thread drives them all.
pub fn drive_futures(dir: &Path, load: &Load) -> Result<Sample> {
    ensure!(load.batch == 1, "futures append one record each");
    let stream = open_stream(dir)?;
    disk::settle(dir)?;
    let sample = measure::conduct(load, |stage| produce_futures(&stream, load, stage))?;
    stream.close()?;
    Ok(sample)
}

/// The closed loop of all producers, on the calling thread.
fn produce_futures(stream: &RecordStream, load: &Load, stage: &Stage) -> Result<Tally> {
    let mut tally = Tally::new();
    let mut producers: Vec<_> =
        (0..load.producers).map(|number| (Feed::new(number, load.record_bytes), Instant::now())).collect();
    executor::drive(load.producers, |slot, outcome: Option<Result<u64, lsfs::Error>>| {
        let (feed, begun) = &mut producers[slot];
        if let Some(outcome) = outcome {
            outcome?;
            stage.finished(&mut tally, 1, load.record_bytes, begun.elapsed());
        }
        if !stage.is_running() {
            return Ok(None);
        }
        *begun = Instant::now();
        Ok(Some(stream.append_async(TYPE_CODE, feed.next_record())?))
    })?;
    Ok(tally)
}

/// Iterates over the whole stream; the cursor verifies every record.
pub fn read_back(dir: &Path) -> Result<ReadBack> {
    disk::drop_caches(dir)?;
    let stream = open_stream(dir)?;
    let mut read = ReadBack { records: 0, payload_bytes: 0, seconds: 0.0 };
    let begun = Instant::now();
    let mut cursor = stream.iter(0..);
    while let Some(record) = cursor.next_record()? {
        read.records += 1;
        read.payload_bytes += record.payload.len() as u64;
    }
    read.seconds = begun.elapsed().as_secs_f64();
    drop(cursor);
    stream.close()?;
    Ok(read)
}
