//! Our own engine, used as any program would use it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lsfs::io::{Disk, FileMap, OpenMode, OsDisk};
use lsfs::{Clerk, Env, Reader, RecordStream, StreamOptions};

use super::raw::Places;
use super::{Contender, ContenderId, Producer, RandomReader, ReadBack};
use crate::disk;
use crate::executor;
use crate::job::{Job, Order};
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

/// A stream, and processes beside it that end with it.
struct Beside {
    stream: Lsfs,
    others: Vec<Child>,
}

impl Contender for Beside {
    fn producer(&self, number: usize) -> Result<Box<dyn Producer + '_>> {
        self.stream.producer(number)
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        for other in &mut self.others {
            ensure!(other.try_wait()?.is_none(), "a process beside the writer has ended");
        }
        Ok(self.stream.stream.close()?)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        for other in &mut self.others {
            // Already gone is fine.
            drop(other.kill());
            drop(other.wait());
        }
    }
}

/// Opens a stream, and starts a clerk and a reader for it.
pub fn open_beside(dir: &Path) -> Result<Box<dyn Contender>> {
    let stream = Lsfs { stream: open_stream(dir)?, retains: false };
    let mut beside = Beside { stream, others: Vec::new() };
    for job in [Job::KeepIndexes, Job::ReadUntilKilled] {
        let order = Order { contender: ContenderId::LsfsBeside, dir: dir.to_path_buf(), job };
        let child = Command::new(std::env::current_exe()?)
            .args(["--child", &serde_json::to_string(&order)?])
            .stdout(Stdio::null())
            .spawn()?;
        beside.others.push(child);
    }
    Ok(Box::new(beside))
}

/// Keeps the indexes of the stream in `dir` until the process is killed.
pub fn keep_indexes(dir: &Path) -> Result<()> {
    let clerk = Clerk::start(dir)?;
    loop {
        std::thread::sleep(Duration::from_secs(1));
        if let Some(failure) = clerk.failure() {
            return Err(failure.into());
        }
    }
}

/// Asks for a record at random every millisecond until the process is killed.
pub fn read_until_killed(dir: &Path) -> Result<()> {
    let reader = Reader::open(dir)?;
    let mut number = 0u64;
    loop {
        let held = reader.bounds()?;
        if !held.is_empty() {
            number = number.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            reader.read(held.start + (number >> 16) % (held.end - held.start))?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Builds the index of the stream in `dir` anew.
pub fn build_index(dir: &Path) -> Result<u64> {
    Ok(lsfs::rebuild(&Env::default(), dir)?.records)
}

impl RandomReader for Reader {
    fn read(&mut self, number: u64) -> Result<usize> {
        Ok(Reader::read(self, number)?.payload.len())
    }
}

/// Opens a reader of the stream in `dir`, with an index or without.
pub fn random_reader(dir: &Path, indexed: bool) -> Result<Box<dyn RandomReader>> {
    if indexed {
        lsfs::run_once(&Env::default(), dir)?;
    } else {
        let has_index = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "idx");
        disk::files(dir)?.iter().filter(|path| has_index(path)).try_for_each(std::fs::remove_file)?;
    }
    Ok(Box::new(Reader::open(dir)?))
}

/// Copies from mappings, by the engine's own door to them.
struct RandomCopies {
    places: Places,
    maps: Vec<Box<dyn FileMap>>,
    buffer: Vec<u8>,
}

impl RandomReader for RandomCopies {
    fn read(&mut self, number: u64) -> Result<usize> {
        let (file, position) = self.places.place(number);
        self.maps[file].read(position, &mut self.buffer)?;
        Ok(self.buffer.len())
    }
}

/// Copies `record_bytes` at a time from the files in `dir`.
pub fn random_copies(dir: &Path, record_bytes: usize) -> Result<Box<dyn RandomReader>> {
    let places = Places::of(dir, record_bytes)?;
    let map = |(path, len): &(PathBuf, u64)| OsDisk::new().open(path, OpenMode::Read, 4096)?.map(*len);
    let maps = places.files.iter().map(map).collect::<Result<_, _>>()?;
    Ok(Box::new(RandomCopies { places, maps, buffer: vec![0; record_bytes] }))
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
