//! Our own engine, used as any program would use it.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use lsfs::{RecordStream, StreamOptions};

use super::{Contender, Producer, ReadBack, StorePlan};
use crate::executor;
use crate::measure::{self, Load, Stage, Tally};
use crate::metric::Sample;
use crate::payload::Feed;
use crate::{contenders, disk};

/// The user type code of every benchmark record.
const TYPE_CODE: u64 = 1;

/// Payload bytes of the records that fill segments which are then purged.
const FILLER_BYTES: usize = 64 << 10;

/// Records of one filling batch.
const FILLER_BATCH: usize = 16;

/// Opens a stream with its default options.
fn open_stream(dir: &Path) -> Result<RecordStream> {
    Ok(RecordStream::open(dir, StreamOptions::default())?)
}

/// Opens a stream with its default options, new or existing.
pub fn open(dir: &Path) -> Result<Box<dyn Contender>> {
    Ok(Box::new(Lsfs { stream: open_stream(dir)? }))
}

/// Opens a stream whose first segments were written and purged, so that the run writes over them: the steady state
/// of a log with retention.
pub fn open_recycled(dir: &Path, plan: &StorePlan) -> Result<Box<dyn Contender>> {
    let stream = open_stream(dir)?;
    let mut feed = Feed::new(0, FILLER_BYTES);
    let mut next = 0;
    for _ in 0..plan.expected_bytes.div_ceil((FILLER_BYTES * FILLER_BATCH) as u64) {
        let records: Vec<_> = (0..FILLER_BATCH).map(|_| (TYPE_CODE, feed.next_record())).collect();
        next = stream.append_batch(&records)?.end;
    }
    stream.purge_before(next)?;
    Ok(Box::new(Lsfs { stream }))
}

/// An open stream.
struct Lsfs {
    stream: RecordStream,
}

impl Contender for Lsfs {
    fn producer(&self, _number: usize) -> Result<Box<dyn Producer + '_>> {
        Ok(Box::new(LsfsProducer { stream: self.stream.clone(), batch: Vec::new() }))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.stream.close()?)
    }
}

/// Appends through a clone of the stream, as each thread of a program would.
struct LsfsProducer {
    stream: RecordStream,
    batch: Vec<(u64, &'static [u8])>,
}

impl Producer for LsfsProducer {
    fn append(&mut self, records: &[&'static [u8]]) -> Result<()> {
        if let [record] = records {
            self.stream.append(TYPE_CODE, record)?;
            return Ok(());
        }
        self.batch.clear();
        self.batch.extend(records.iter().map(|&record| (TYPE_CODE, record)));
        self.stream.append_batch(&self.batch)?;
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
    let mut read = contenders::ReadBack { records: 0, payload_bytes: 0, seconds: 0.0 };
    let begun = Instant::now();
    let mut cursor = stream.iter(0..)?;
    while let Some(record) = cursor.next_record()? {
        read.records += 1;
        read.payload_bytes += record.payload.len() as u64;
    }
    read.seconds = begun.elapsed().as_secs_f64();
    drop(cursor);
    stream.close()?;
    Ok(read)
}
