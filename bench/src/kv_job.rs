//! One measurement of a key-value store, in a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::contenders::ContenderId;
use crate::contenders::kv::{self, KeyValue, KvPlan};
use crate::disk;
use crate::kv_data::{self, KEY_BYTES, Random, Zipf};
use crate::machine::{self, CpuClock};
use crate::metric::{Metric, Sample, median};

/// Keys of one batch where a store is only filled.
const FILL_BATCH: usize = 1000;
/// Between two looks at the space that a store takes.
const SPACE_PAUSE: Duration = Duration::from_millis(20);
/// Between two looks at the clock, in keys.
const KEYS_PER_LOOK: u64 = 64;
/// The most that is read once before gets are measured, in bytes of values.
const WARM_UP_BYTES: u64 = 1 << 30;

/// The keys of a store, which have the numbers from 0 on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct KvContent {
    /// How many.
    pub keys: u64,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Whether the store is told that it will be scanned, where it can be.
    pub is_scanned: bool,
}

impl KvContent {
    /// Bytes of all keys and values.
    fn bytes(&self) -> u64 {
        self.keys * (KEY_BYTES + self.value_bytes) as u64
    }
}

/// In which order keys are overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Rounds {
    /// All keys once, then all once more, and so on.
    InTurn,
    /// Any key at any time.
    Random,
}

/// What a child process is asked to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum KvJob {
    /// Set all keys, by `batch` of them as one and without a sync for each; then sync.
    Load {
        /// What to write.
        content: KvContent,
        /// Keys of one write.
        batch: usize,
        /// The load ends here, whatever is left.
        cap_seconds: f64,
    },
    /// In a store that holds this, set keys at random, one by one and without a sync for each; then sync.
    Set {
        /// What it holds.
        content: KvContent,
        /// For how long.
        seconds: f64,
    },
    /// Get keys of a store that holds this.
    Get {
        /// What it holds.
        content: KvContent,
        /// How many of each kind and for each thread.
        reads: u64,
        /// Whether also few keys often, keys that are not there, and two threads.
        all_kinds: bool,
    },
    /// Read a store that holds this in order.
    Scan(KvContent),
    /// Set all keys, then remove them one by one and without a sync for each; then sync. Only the removes are timed.
    Delete {
        /// What to write and remove.
        content: KvContent,
        /// The removes end here, whatever is left.
        cap_seconds: f64,
    },
    /// Set all keys, then again and again.
    Overwrite {
        /// The keys.
        content: KvContent,
        /// How often each is overwritten; in random order, on average.
        times: u64,
        /// In which order.
        order: Rounds,
        /// It ends here, whatever is left.
        cap_seconds: f64,
    },
    /// Set keys of a store that holds this at random, without a sync for each, until killed; the line `ready` comes
    /// after `sets` of them.
    SetUntilKilled {
        /// What it holds.
        content: KvContent,
        /// Sets before it is ready.
        sets: u64,
    },
    /// Start the command `kvs get` on the store.
    Command {
        /// What the store holds.
        content: KvContent,
        /// The command.
        program: PathBuf,
        /// How often, cached and not.
        runs: u32,
    },
}

/// Carries out a job.
pub fn carry_out(id: ContenderId, dir: &Path, job: &KvJob) -> Result<Sample> {
    match job {
        KvJob::Load { content, batch, cap_seconds } => load(id, dir, content, *batch, *cap_seconds),
        KvJob::Set { content, seconds } => set(id, dir, content, *seconds),
        KvJob::Get { content, reads, all_kinds } => get(id, dir, content, *reads, *all_kinds),
        KvJob::Scan(content) => scan(id, dir, content),
        KvJob::Delete { content, cap_seconds } => delete(id, dir, content, *cap_seconds),
        KvJob::Overwrite { content, times, order, cap_seconds } => {
            overwrite(id, dir, content, *times, *order, *cap_seconds)
        }
        KvJob::SetUntilKilled { content, sets } => set_until_killed(id, dir, content, *sets),
        KvJob::Command { content, program, runs } => command(dir, content, program, *runs),
    }
}

/// Opens the store without a sync for each write.
fn open(id: ContenderId, dir: &Path, content: &KvContent) -> Result<Box<dyn KeyValue>> {
    let KvContent { value_bytes, is_scanned, .. } = *content;
    kv::open(id, dir, &KvPlan { durable: false, value_bytes, is_scanned })
}

/// Sets keys by their numbers until all are done or the time is up; answers how many.
fn set_numbers(
    store: &dyn KeyValue,
    numbers: impl Iterator<Item = (u64, u64)>,
    value_bytes: usize,
    batch: usize,
    deadline: Option<Instant>,
) -> Result<u64> {
    let (mut set, mut pairs) = (0, Vec::with_capacity(batch));
    for (number, version) in numbers {
        let (key, value) = (kv_data::key(number), kv_data::value(number, version, value_bytes));
        if batch == 1 {
            store.set(&key, value)?;
            set += 1;
        } else {
            pairs.push((key, value));
            if pairs.len() < batch {
                continue;
            }
            store.set_batch(&pairs)?;
            set += pairs.len() as u64;
            pairs.clear();
        }
        let is_look = batch > 1 || set % KEYS_PER_LOOK == 0;
        if is_look && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(set);
        }
    }
    if !pairs.is_empty() {
        store.set_batch(&pairs)?;
    }
    Ok(set + pairs.len() as u64)
}

/// Fills a store as fast as it can be.
fn fill(store: &dyn KeyValue, content: &KvContent) -> Result<()> {
    let batch = (FILL_BATCH * kv_data::VALUE_BYTES / content.value_bytes).max(1);
    set_numbers(store, (0..content.keys).map(|number| (number, 0)), content.value_bytes, batch, None)?;
    store.sync()
}

/// What is measured beside the time of a part of a run.
struct Clock {
    cpu: CpuClock,
    begun: Instant,
}

impl Clock {
    fn start() -> Self {
        machine::reset_peak_rss();
        Clock { cpu: CpuClock::now(), begun: Instant::now() }
    }

    fn deadline(&self, seconds: f64) -> Option<Instant> {
        Some(self.begun + Duration::from_secs_f64(seconds))
    }

    /// The figures of `keys` that were written or read since the start.
    fn stop(&self, keys: u64, value_bytes: usize) -> Sample {
        let seconds = self.begun.elapsed().as_secs_f64();
        Sample::of([
            (Metric::RecordsPerSecond, keys as f64 / seconds),
            (Metric::MbPerSecond, keys as f64 * value_bytes as f64 / seconds / 1e6),
            (Metric::CpuUsPerRecord, self.cpu.own_seconds_since() * 1e6 / keys.max(1) as f64),
            (Metric::OthersCpuPercent, self.cpu.others_percent_since()),
            (Metric::PeakRssMib, machine::peak_rss_mib()),
        ])
    }
}

/// Adds what a finished store wrote for `payload_bytes` of keys and values since the process began.
fn add_written(sample: &mut Sample, zero_bytes: u64, payload_bytes: u64) {
    let written = machine::written_bytes().saturating_sub(zero_bytes);
    sample.0.insert(Metric::WriteAmplification, written as f64 / payload_bytes as f64);
    sample.0.insert(Metric::ZeroMib, zero_bytes as f64 / f64::from(1 << 20));
}

fn load(id: ContenderId, dir: &Path, content: &KvContent, batch: usize, cap_seconds: f64) -> Result<Sample> {
    let store = open(id, dir, content)?;
    disk::settle(dir)?;
    let clock = Clock::start();
    let numbers = (0..content.keys).map(|number| (number, 0));
    let set = set_numbers(&*store, numbers, content.value_bytes, batch, clock.deadline(cap_seconds))?;
    store.sync()?;
    let mut sample = clock.stop(set, content.value_bytes);
    let counters = store.counters();
    store.close()?;
    let payload_bytes = KvContent { keys: set, ..*content }.bytes();
    add_written(&mut sample, counters.zero_bytes, payload_bytes);
    sample.0.insert(Metric::MillionsWritten, set as f64 / 1e6);
    sample.0.insert(Metric::FinalSpace, disk::allocated_bytes(dir)? as f64 / payload_bytes as f64);
    if let Some(bytes) = counters.index_memory_bytes {
        sample.0.insert(Metric::IndexBytesPerKey, bytes as f64 / set as f64);
    }
    Ok(sample)
}

/// Keys at random, with a version that grows.
fn random_numbers(content: &KvContent, seed: u64) -> impl Iterator<Item = (u64, u64)> {
    let (keys, mut random) = (content.keys, Random::new(seed));
    (1..).map(move |version| (random.below(keys), version))
}

fn set(id: ContenderId, dir: &Path, content: &KvContent, seconds: f64) -> Result<Sample> {
    let store = open(id, dir, content)?;
    disk::settle(dir)?;
    let clock = Clock::start();
    let numbers = random_numbers(content, u64::from(std::process::id()));
    let set = set_numbers(&*store, numbers, content.value_bytes, 1, clock.deadline(seconds))?;
    store.sync()?;
    let sample = clock.stop(set, content.value_bytes);
    store.close()?;
    Ok(sample)
}

/// Gets `numbers` with `threads` threads at once, each in an order of its own; answers the rate of all together.
fn get_rate(store: &dyn KeyValue, content: &KvContent, numbers: &[Vec<u64>]) -> Result<f64> {
    let begun = Instant::now();
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let threads: Vec<_> = numbers
            .iter()
            .map(|numbers| scope.spawn(move || get_numbers(store, content, numbers.iter().copied())))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a reader panicked")).collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    outcomes.into_iter().collect::<Result<()>>()?;
    Ok(numbers.iter().map(Vec::len).sum::<usize>() as f64 / seconds)
}

/// Gets keys by their numbers and holds them to what they should be; numbers that are too high are not there.
fn get_numbers(store: &dyn KeyValue, content: &KvContent, numbers: impl Iterator<Item = u64>) -> Result<()> {
    let mut reader = store.reader()?;
    let mut value = Vec::new();
    for number in numbers {
        let is_there = reader.get(&kv_data::key(number), &mut value)?;
        ensure!(is_there == (number < content.keys), "key {number} is there: {is_there}");
        if is_there {
            let expected = kv_data::value(number, 0, content.value_bytes);
            // The whole comparison would be a part of what is measured.
            let is_right = value.len() == expected.len() && value.last() == expected.last();
            ensure!(is_right, "key {number} has another value of {} bytes", value.len());
        }
    }
    Ok(())
}

fn get(id: ContenderId, dir: &Path, content: &KvContent, reads: u64, all_kinds: bool) -> Result<Sample> {
    let store = open(id, dir, content)?;
    let warm_up = content.keys.min(WARM_UP_BYTES / content.value_bytes as u64);
    get_numbers(&*store, content, 0..warm_up)?;
    let draw = |seed: u64, next: &dyn Fn(&mut Random) -> u64| -> Vec<u64> {
        let mut random = Random::new(seed);
        (0..reads).map(|_| next(&mut random)).collect()
    };
    let two = |next: &dyn Fn(&mut Random) -> u64| [draw(1, next), draw(2, next)];
    let zipf = Zipf::new(content.keys);
    let uniform = two(&|random| random.below(content.keys));
    let kinds = match all_kinds {
        false => vec![(uniform, Metric::Gets, None)],
        true => vec![
            (uniform, Metric::Gets, Some(Metric::Gets2)),
            (two(&|random| zipf.draw(random)), Metric::ZipfGets, Some(Metric::ZipfGets2)),
            (two(&|random| content.keys + random.below(content.keys)), Metric::Misses, Some(Metric::Misses2)),
        ],
    };
    machine::reset_peak_rss();
    let cpu = CpuClock::now();
    let mut sample = Sample::default();
    for (numbers, one, two) in kinds {
        sample.0.insert(one, get_rate(&*store, content, &numbers[..1])?);
        if let Some(two) = two {
            sample.0.insert(two, get_rate(&*store, content, &numbers)?);
        }
    }
    sample.0.insert(Metric::OthersCpuPercent, cpu.others_percent_since());
    sample.0.insert(Metric::PeakRssMib, machine::peak_rss_mib());
    if let Some(bytes) = store.counters().index_memory_bytes {
        sample.0.insert(Metric::IndexBytesPerKey, bytes as f64 / content.keys as f64);
    }
    store.close()?;
    Ok(sample)
}

fn scan(id: ContenderId, dir: &Path, content: &KvContent) -> Result<Sample> {
    let store = open(id, dir, content)?;
    let scan = || -> Result<u64> {
        let (pairs, bytes) = store.scan()?;
        let found = (pairs, bytes);
        ensure!(found == (content.keys, content.bytes()), "the scan found {found:?} pairs and bytes");
        Ok(pairs)
    };
    scan()?;
    let clock = Clock::start();
    let pairs = scan()?;
    let sample = clock.stop(pairs, content.value_bytes);
    store.close()?;
    Ok(sample)
}

fn delete(id: ContenderId, dir: &Path, content: &KvContent, cap_seconds: f64) -> Result<Sample> {
    let store = open(id, dir, content)?;
    fill(&*store, content)?;
    disk::settle(dir)?;
    let clock = Clock::start();
    let deadline = clock.deadline(cap_seconds);
    let mut removed = 0;
    for number in kv_data::shuffled(content.keys) {
        store.delete(&kv_data::key(number))?;
        removed += 1;
        if removed % KEYS_PER_LOOK == 0 && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break;
        }
    }
    store.sync()?;
    let mut sample = clock.stop(removed, content.value_bytes);
    sample.0.insert(Metric::MillionsWritten, removed as f64 / 1e6);
    store.close()?;
    sample.0.insert(Metric::AllocatedMib, disk::allocated_bytes(dir)? as f64 / f64::from(1 << 20));
    Ok(sample)
}

fn overwrite(
    id: ContenderId,
    dir: &Path,
    content: &KvContent,
    times: u64,
    order: Rounds,
    cap_seconds: f64,
) -> Result<Sample> {
    let store = open(id, dir, content)?;
    let (is_done, peak_bytes) = (AtomicBool::new(false), AtomicU64::new(0));
    let look = || -> Result<()> {
        peak_bytes.fetch_max(disk::allocated_bytes(dir)?, Ordering::Relaxed);
        Ok(())
    };
    let (mut sample, overwritten) = thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<()> {
            while !is_done.load(Ordering::Relaxed) {
                look()?;
                thread::park_timeout(SPACE_PAUSE);
            }
            Ok(())
        });
        let outcome = (|| -> Result<(Sample, u64)> {
            fill(&*store, content)?;
            let clock = Clock::start();
            let deadline = clock.deadline(cap_seconds);
            let sets = content.keys * times;
            let numbers: Box<dyn Iterator<Item = (u64, u64)>> = match order {
                Rounds::InTurn => Box::new(
                    (content.keys..).map(|n| (n % content.keys, n / content.keys)).take(sets as usize),
                ),
                Rounds::Random => Box::new(random_numbers(content, 7).take(sets as usize)),
            };
            let set = set_numbers(&*store, numbers, content.value_bytes, FILL_BATCH / 10, deadline)?;
            store.sync()?;
            Ok((clock.stop(set, content.value_bytes), set))
        })();
        is_done.store(true, Ordering::Relaxed);
        watcher.thread().unpark();
        watcher.join().expect("the watcher panicked")?;
        outcome
    })?;
    let counters = store.counters();
    look()?;
    store.close()?;
    look()?;
    let all = KvContent { keys: content.keys + overwritten, ..*content };
    add_written(&mut sample, counters.zero_bytes, all.bytes());
    let over_live = |bytes: u64| bytes as f64 / content.bytes() as f64;
    sample.0.insert(Metric::MillionsWritten, overwritten as f64 / 1e6);
    sample.0.insert(Metric::PeakSpace, over_live(peak_bytes.load(Ordering::Relaxed)));
    sample.0.insert(Metric::FinalSpace, over_live(disk::allocated_bytes(dir)?));
    Ok(sample)
}

/// Never returns, but for an error.
fn set_until_killed(id: ContenderId, dir: &Path, content: &KvContent, sets: u64) -> Result<Sample> {
    let store = open(id, dir, content)?;
    let mut numbers = random_numbers(content, 11);
    set_numbers(&*store, numbers.by_ref().take(sets as usize), content.value_bytes, 1, None)?;
    println!("ready");
    set_numbers(&*store, numbers, content.value_bytes, 1, None)?;
    Ok(Sample::default())
}

/// Starts `kvs get` again and again.
fn command(dir: &Path, content: &KvContent, program: &Path, runs: u32) -> Result<Sample> {
    let build =
        "build it with `cargo build --release -p kvs` in the project's root, or name another with --kvs";
    ensure!(program.exists(), "{} is missing: {build}", program.display());
    let mut random = Random::new(5);
    let mut run_all = |drop_caches: bool| -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..runs {
            if drop_caches {
                disk::drop_caches(dir)?;
            }
            let number = random.below(content.keys);
            let key = String::from_utf8(kv_data::key(number).to_vec())?;
            let begun = Instant::now();
            let output = Command::new(program)
                .args([Path::new("--dir"), dir, Path::new("get"), Path::new(&key)])
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("cannot start {}", program.display()))?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            let value = kv_data::value(number, 0, content.value_bytes);
            ensure!(output.status.success(), "kvs get ended with {}", output.status);
            ensure!(output.stdout.starts_with(value), "kvs get {key} printed another value");
        }
        Ok(median(&times))
    };
    let uncached = run_all(true)?;
    run_all(false)?;
    Ok(Sample::of([(Metric::ColdCommandMs, uncached), (Metric::CommandMs, run_all(false)?)]))
}
