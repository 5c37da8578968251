//! A closed-loop load on one contender: warm-up, a measured window, and what came of it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::contenders::{Contender, Producer};
use crate::machine::{self, CpuClock};
use crate::metric::{Metric, Sample};
use crate::payload::Feed;

/// How a store is written to.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Load {
    /// Payload bytes of a record.
    pub record_bytes: usize,
    /// Producers; each has one append in flight and makes the next when it returns.
    pub producers: usize,
    /// Records per append, made durable together.
    pub batch: usize,
    /// Seconds before measuring starts.
    pub warmup_seconds: f64,
    /// Seconds measured.
    pub seconds: f64,
    /// The run ends early once this many payload bytes are written in the measured window.
    pub cap_bytes: u64,
}

/// What the producers should be doing.
const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const STOPPED: u8 = 2;

/// The stage shared by the conductor and the producers of one run.
pub struct Stage {
    phase: AtomicU8,
    bytes: AtomicU64,
    cap_bytes: u64,
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stage {
    fn new(cap_bytes: u64) -> Self {
        Stage {
            phase: AtomicU8::new(WARMING_UP),
            bytes: AtomicU64::new(0),
            cap_bytes,
            stopped: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    /// Whether producers should go on.
    pub fn is_running(&self) -> bool {
        self.phase.load(Ordering::Relaxed) != STOPPED
    }

    /// Ends the run for everybody.
    fn stop(&self) {
        self.phase.store(STOPPED, Ordering::Relaxed);
        *self.stopped.lock().expect("no holder panics") = true;
        self.changed.notify_all();
    }

    /// Lets the load run for `time`, or until it is stopped from inside.
    fn let_run(&self, time: Duration) {
        let stopped = self.stopped.lock().expect("no holder panics");
        let _ = self.changed.wait_timeout_while(stopped, time, |stopped| !*stopped);
    }

    /// Counts a finished append into `tally` if it belongs to the measured window.
    pub fn finished(&self, tally: &mut Tally, records: usize, bytes: usize, took: Duration) {
        if self.phase.load(Ordering::Relaxed) != MEASURING {
            return;
        }
        tally.add(records, bytes, took);
        if self.cap_bytes < u64::MAX
            && self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64 >= self.cap_bytes
        {
            self.stop();
        }
    }
}

/// What one producer did in the measured window.
pub struct Tally {
    records: u64,
    bytes: u64,
    latencies_ns: Histogram<u64>,
    slowest: Duration,
}

impl Tally {
    /// Nothing yet. The histogram keeps two significant digits: plenty, and small beside 64 producers.
    pub fn new() -> Self {
        let latencies_ns =
            Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("constant bounds are valid");
        Tally { records: 0, bytes: 0, latencies_ns, slowest: Duration::ZERO }
    }

    fn add(&mut self, records: usize, bytes: usize, took: Duration) {
        self.records += records as u64;
        self.bytes += bytes as u64;
        self.latencies_ns.saturating_record(took.as_nanos() as u64);
        self.slowest = self.slowest.max(took);
    }

    fn merge(&mut self, other: &Tally) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.latencies_ns += &other.latencies_ns;
        self.slowest = self.slowest.max(other.slowest);
    }

    fn quantile_us(&self, quantile: f64) -> f64 {
        self.latencies_ns.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Runs `load` on `contender` with one thread for each producer.
pub fn drive_threads(contender: &dyn Contender, load: &Load) -> Result<Sample> {
    conduct(load, |stage| {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..load.producers)
                .map(|number| scope.spawn(move || stop_on_error(stage, work(contender, number, load, stage))))
                .collect();
            let mut total = Tally::new();
            for worker in workers {
                total.merge(&worker.join().expect("a producer panicked")?);
            }
            Ok(total)
        })
    })
}

/// Opens the producer of one thread and runs it until the stage stops.
fn work(contender: &dyn Contender, number: usize, load: &Load, stage: &Stage) -> Result<Tally> {
    produce(contender.producer(number)?.as_mut(), number, load, stage)
}

/// The closed loop of one producer.
fn produce(producer: &mut dyn Producer, number: usize, load: &Load, stage: &Stage) -> Result<Tally> {
    let mut feed = Feed::new(number, load.record_bytes);
    let mut tally = Tally::new();
    let mut batch = Vec::with_capacity(load.batch);
    while stage.is_running() {
        feed.fill(&mut batch, load.batch);
        let begun = Instant::now();
        producer.append(&batch)?;
        stage.finished(&mut tally, load.batch, load.batch * load.record_bytes, begun.elapsed());
    }
    Ok(tally)
}

/// A producer that fails ends the run of all the others, too.
fn stop_on_error<T>(stage: &Stage, outcome: Result<T>) -> Result<T> {
    if outcome.is_err() {
        stage.stop();
    }
    outcome
}

/// Leads a run through warm-up and measured window while `load_generator` runs beside it.
pub fn conduct<F>(load: &Load, load_generator: F) -> Result<Sample>
where
    F: FnOnce(&Stage) -> Result<Tally> + Send,
{
    let stage = Stage::new(load.cap_bytes);
    thread::scope(|scope| {
        let generator = scope.spawn(|| stop_on_error(&stage, load_generator(&stage)));
        stage.let_run(Duration::from_secs_f64(load.warmup_seconds));
        machine::reset_peak_rss();
        let cpu = CpuClock::now();
        let begun = Instant::now();
        // Leaves a stop from inside (a failed producer) in force.
        let _ = stage.phase.compare_exchange(WARMING_UP, MEASURING, Ordering::Relaxed, Ordering::Relaxed);
        stage.let_run(Duration::from_secs_f64(load.seconds));
        let seconds = begun.elapsed().as_secs_f64();
        let (cpu_seconds, others_percent) = (cpu.own_seconds_since(), cpu.others_percent_since());
        stage.stop();
        let peak_rss_mib = machine::peak_rss_mib();
        let tally = generator.join().expect("the load generator panicked")?;
        let mut sample = sample(&tally, seconds, cpu_seconds);
        sample.0.insert(Metric::OthersCpuPercent, others_percent);
        sample.0.insert(Metric::PeakRssMib, peak_rss_mib);
        Ok(sample)
    })
}

/// Turns counts into figures.
fn sample(tally: &Tally, seconds: f64, cpu_seconds: f64) -> Sample {
    Sample::of([
        (Metric::RecordsPerSecond, tally.records as f64 / seconds),
        (Metric::MbPerSecond, tally.bytes as f64 / seconds / 1e6),
        (Metric::P50Us, tally.quantile_us(0.50)),
        (Metric::P99Us, tally.quantile_us(0.99)),
        (Metric::MaxUs, tally.slowest.as_secs_f64() * 1e6),
        (Metric::CpuUsPerRecord, cpu_seconds * 1e6 / (tally.records.max(1)) as f64),
    ])
}
