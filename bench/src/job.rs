//! One measurement, carried out in a process of its own: a fresh process gives every run the same start, keeps
//! memory and processor time apart, and can be killed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::contenders::{self, ContenderId, StorePlan};
use crate::disk;
use crate::kv_job::{self, KvJob};
use crate::machine::{self, CpuClock};
use crate::measure::Load;
use crate::metric::{Metric, Sample};
use crate::payload::Feed;

/// What a child process is asked to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Job {
    /// Apply a load to a store and measure it.
    Append {
        /// Preparation of the store.
        plan: StorePlan,
        /// The load.
        load: Load,
    },
    /// Write records, close, and measure nothing.
    Fill(Content),
    /// Write records, close, and measure the space they take.
    Space(Content),
    /// Write for ever; the line `ready` tells when there is something to lose.
    WriteUntilKilled(Content),
    /// Read the whole store, which must hold exactly this.
    ReadBack(Content),
    /// Open the store.
    Open,
    /// Build the index of a store that holds this.
    BuildIndex(Content),
    /// Read records of a store that holds this at random indexes.
    ReadRandom {
        /// What it holds.
        content: Content,
        /// How many are read.
        reads: u64,
    },
    /// Keep the indexes of a store until killed.
    KeepIndexes,
    /// Read records of a store at random indexes until killed.
    ReadUntilKilled,
    /// Something only key-value stores do.
    KeyValue(KvJob),
}

/// Records in a store.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Content {
    /// How many.
    pub records: u64,
    /// Payload bytes of each.
    pub record_bytes: usize,
    /// Records of one append, made durable together.
    pub batch: usize,
}

impl Content {
    /// Records of `record_bytes` that make `total_bytes` together, appended in whole batches of `batch`.
    pub fn of_bytes(total_bytes: u64, record_bytes: usize, batch: usize) -> Self {
        let batches = total_bytes.div_ceil((record_bytes * batch) as u64);
        Content { records: batches * batch as u64, record_bytes, batch }
    }

    /// Payload bytes of all records.
    pub fn payload_bytes(&self) -> u64 {
        self.records * self.record_bytes as u64
    }
}

/// A job, its contender and its place: what travels on the command line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// Who is measured.
    pub contender: ContenderId,
    /// The directory of its files.
    pub dir: PathBuf,
    /// What to do.
    pub job: Job,
}

/// Carries out the order written as JSON in `text` and prints the sample as JSON.
pub fn run_as_child(text: &str) -> Result<bool> {
    let order: Order = serde_json::from_str(text).context("not an order of this harness")?;
    let sample = carry_out(&order)?;
    println!("{}", serde_json::to_string(&sample)?);
    Ok(true)
}

/// Carries out an order.
fn carry_out(order: &Order) -> Result<Sample> {
    let (id, dir) = (order.contender, order.dir.as_path());
    match &order.job {
        Job::Append { plan, load } => contenders::drive(id, dir, plan, load),
        Job::Fill(content) => fill(id, dir, content).map(|()| Sample::default()),
        Job::Space(content) => measure_space(id, dir, content),
        Job::WriteUntilKilled(content) => write_until_killed(id, dir, content),
        Job::ReadBack(content) => measure_read_back(id, dir, content),
        Job::Open => measure_open(id, dir),
        Job::BuildIndex(content) => measure_index(id, dir, content),
        Job::ReadRandom { content, reads } => measure_random_reads(id, dir, content, *reads),
        Job::KeepIndexes => contenders::keep_indexes(dir),
        Job::ReadUntilKilled => contenders::read_until_killed(dir),
        Job::KeyValue(job) => kv_job::carry_out(id, dir, job),
    }
}

/// Writes the content and closes the store.
fn fill(id: ContenderId, dir: &Path, content: &Content) -> Result<()> {
    let plan = StorePlan { expected_bytes: content.payload_bytes(), keeps_records: true, is_synced: true };
    let contender = contenders::open(id, dir, &plan)?;
    let mut producer = contender.producer(0)?;
    let mut feed = Feed::new(0, content.record_bytes);
    let mut batch = Vec::new();
    for _ in 0..content.records / content.batch as u64 {
        feed.fill(&mut batch, content.batch);
        producer.append(&batch)?;
    }
    drop(producer);
    contender.close()
}

/// Fills the store and looks at what it takes on disk.
fn measure_space(id: ContenderId, dir: &Path, content: &Content) -> Result<Sample> {
    const MIB: f64 = (1 << 20) as f64;
    fill(id, dir, content)?;
    let space = disk::space(dir)?;
    let overhead = space.live_bytes as f64 - content.payload_bytes() as f64;
    Ok(Sample::of([
        (Metric::OverheadBytes, overhead / content.records as f64),
        (Metric::LiveMib, space.live_bytes as f64 / MIB),
        (Metric::AllocatedMib, space.allocated_bytes as f64 / MIB),
    ]))
}

/// Writes the content, says so, and goes on with the same records until somebody kills the process.
fn write_until_killed(id: ContenderId, dir: &Path, content: &Content) -> Result<Sample> {
    let plan = StorePlan { expected_bytes: content.payload_bytes(), keeps_records: true, is_synced: true };
    let contender = contenders::open(id, dir, &plan)?;
    let mut producer = contender.producer(0)?;
    let mut feed = Feed::new(0, content.record_bytes);
    let mut batch = Vec::new();
    let mut written = 0;
    loop {
        feed.fill(&mut batch, content.batch);
        producer.append(&batch)?;
        let before = written;
        written += content.batch as u64;
        if before < content.records && written >= content.records {
            let mut out = std::io::stdout().lock();
            writeln!(out, "ready")?;
            out.flush()?;
        }
    }
}

/// Reads the store back and holds it to its content.
fn measure_read_back(id: ContenderId, dir: &Path, content: &Content) -> Result<Sample> {
    machine::reset_peak_rss();
    let cpu = CpuClock::now();
    let read = contenders::read_back(id, dir)?;
    let (cpu_seconds, others_percent) = (cpu.own_seconds_since(), cpu.others_percent_since());
    let is_raw = id == ContenderId::RawRead;
    ensure!(
        is_raw || (read.records, read.payload_bytes) == (content.records, content.payload_bytes()),
        "read {} records of {} bytes, {} of {} were written",
        read.records,
        read.payload_bytes,
        content.records,
        content.payload_bytes()
    );
    Ok(Sample::of([
        (Metric::RecordsPerSecond, content.records as f64 / read.seconds),
        (Metric::MbPerSecond, content.payload_bytes() as f64 / read.seconds / 1e6),
        (Metric::CpuUsPerRecord, cpu_seconds * 1e6 / content.records as f64),
        (Metric::OthersCpuPercent, others_percent),
        (Metric::PeakRssMib, machine::peak_rss_mib()),
    ]))
}

/// Builds the index of the store with a cold cache.
fn measure_index(id: ContenderId, dir: &Path, content: &Content) -> Result<Sample> {
    disk::drop_caches(dir)?;
    machine::reset_peak_rss();
    let cpu = CpuClock::now();
    let begun = Instant::now();
    let records = contenders::build_index(id, dir)?;
    let seconds = begun.elapsed().as_secs_f64();
    let (cpu_seconds, others_percent) = (cpu.own_seconds_since(), cpu.others_percent_since());
    ensure!(records == content.records, "indexed {records} of {} records", content.records);
    Ok(Sample::of([
        (Metric::RecordsPerSecond, records as f64 / seconds),
        (Metric::MbPerSecond, content.payload_bytes() as f64 / seconds / 1e6),
        (Metric::CpuUsPerRecord, cpu_seconds * 1e6 / records as f64),
        (Metric::OthersCpuPercent, others_percent),
        (Metric::PeakRssMib, machine::peak_rss_mib()),
    ]))
}

/// Reads at random, twice; the first time brings what is read into memory and is not measured.
fn measure_random_reads(id: ContenderId, dir: &Path, content: &Content, reads: u64) -> Result<Sample> {
    let mut reader = contenders::random_reader(id, dir, content)?;
    let mut random = 0x2545_F491_4F6C_DD1Du64;
    let mut read_all = || -> Result<()> {
        for _ in 0..reads {
            // Marsaglia's xorshift64: a few instructions beside what is measured.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let found = reader.read(random % content.records)?;
            ensure!(found == content.record_bytes, "{found} bytes, expected {}", content.record_bytes);
        }
        Ok(())
    };
    read_all()?;
    machine::reset_peak_rss();
    let cpu = CpuClock::now();
    let begun = Instant::now();
    read_all()?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Sample::of([
        (Metric::RecordsPerSecond, reads as f64 / seconds),
        (Metric::CpuUsPerRecord, cpu.own_seconds_since() * 1e6 / reads as f64),
        (Metric::OthersCpuPercent, cpu.others_percent_since()),
        (Metric::PeakRssMib, machine::peak_rss_mib()),
    ]))
}

/// Opens the store with a cold cache.
fn measure_open(id: ContenderId, dir: &Path) -> Result<Sample> {
    disk::drop_caches(dir)?;
    machine::reset_peak_rss();
    let cpu = CpuClock::now();
    let seconds = contenders::time_open(id, dir)?;
    Ok(Sample::of([
        (Metric::OpenMs, seconds * 1e3),
        (Metric::OthersCpuPercent, cpu.others_percent_since()),
        (Metric::PeakRssMib, machine::peak_rss_mib()),
    ]))
}
