//! `kvs bench`.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kvs::{Durability, KvStore};
use serde_json::json;

use super::exit::Outcome;
use super::place::Place;
use super::{CommandResult, output};

/// Measure what a store reaches on this disk
///
/// Makes a store of its own in a new directory inside of the one given with --dir, and removes it at the end; one that was
/// cut short leaves `kvs-bench-...`, to be removed by hand. Keys have 16 bytes. Figures mean something on a machine that
/// does nothing else; run it several times.
///
/// Examples:
///   kvs --dir /srv bench
///   kvs --dir /srv bench --seconds 20 --value-bytes 4096 --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct BenchArgs {
    /// How long it takes in all, in seconds
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Bytes of each value
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    value_bytes: u32,
    /// As one line of JSON
    #[arg(long)]
    json: bool,
}

/// Threads of the case with many.
const THREADS: u64 = 16;
/// Cases that share the time.
const CASES: u32 = 4;

/// What a case has reached.
struct Case {
    name: &'static str,
    count: u64,
    elapsed: Duration,
    /// How long the calls took, ascending, in nanoseconds.
    latencies: Vec<u64>,
}

impl Case {
    fn per_second(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }

    /// So many hundredths of the calls took no longer, in microseconds.
    fn percentile_us(&self, percent: usize) -> f64 {
        let at = self.latencies.len().saturating_sub(1) * percent / 100;
        self.latencies.get(at).map_or(0.0, |&nanoseconds| nanoseconds as f64 / 1e3)
    }
}

/// Measures.
pub(crate) fn run(place: &Place, args: &BenchArgs) -> CommandResult {
    let parent = place.dir();
    ensure!(parent.is_dir(), "{} is not a directory", parent.display());
    let dir = parent.join(format!("kvs-bench-{}", std::process::id()));
    ensure!(!dir.exists(), "{} is already there", dir.display());
    let cases = measure(&dir, args);
    let removed = std::fs::remove_dir_all(&dir);
    let cases = cases?;
    removed.with_context(|| format!("could not remove {}", dir.display()))?;
    output::print(shown(&cases, args.json).as_bytes())?;
    Ok(Outcome::Done)
}

fn measure(dir: &Path, args: &BenchArgs) -> kvs::Result<Vec<Case>> {
    let store = KvStore::open(dir)?;
    let buffered = store.with_durability(Durability::Buffer);
    let share = Duration::from_secs(args.seconds) / CASES;
    let value = vec![0x6b; args.value_bytes as usize];
    let next = AtomicU64::new(0);
    let set = |store: &KvStore| store.put(key(next.fetch_add(1, Ordering::Relaxed)), &value);
    let mut cases = vec![
        repeat("durable sets, 1 thread", share, 1, |_| set(&store))?,
        repeat("durable sets, 16 threads", share, THREADS, |_| set(&store))?,
        repeat("sets without sync, 1 thread", share, 1, |_| set(&buffered))?,
    ];
    store.sync()?;
    let keys = next.load(Ordering::Relaxed).max(1);
    cases.push(repeat("gets, 1 thread", share, 1, |n| {
        // Far from each other, as keys of many users are.
        store.get_bytes(key(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % keys)).map(drop)
    })?);
    store.close()?;
    Ok(cases)
}

fn key(n: u64) -> String {
    format!("{n:016x}")
}

/// Calls `work` from so many threads for so long, with the number of the call in its thread.
fn repeat(
    name: &'static str,
    duration: Duration,
    threads: u64,
    work: impl Fn(u64) -> kvs::Result<()> + Sync,
) -> kvs::Result<Case> {
    let started = Instant::now();
    let one_thread = || -> kvs::Result<Vec<u64>> {
        let mut latencies = Vec::new();
        while started.elapsed() < duration {
            let before = Instant::now();
            work(latencies.len() as u64)?;
            latencies.push(before.elapsed().as_nanos() as u64);
        }
        Ok(latencies)
    };
    let mut latencies = Vec::new();
    thread::scope(|scope| -> kvs::Result<()> {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(one_thread)).collect();
        for handle in handles {
            let of_one = handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            latencies.extend(of_one?);
        }
        Ok(())
    })?;
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    Ok(Case { name, count: latencies.len() as u64, elapsed, latencies })
}

fn shown(cases: &[Case], json: bool) -> String {
    if json {
        let cases = cases.iter().map(|case| {
            json!({
                "name": case.name,
                "per_second": case.per_second(),
                "p50_us": case.percentile_us(50),
                "p99_us": case.percentile_us(99),
            })
        });
        return json!({"cases": cases.collect::<Vec<_>>()}).to_string() + "\n";
    }
    let rows = cases.iter().map(|case| {
        let (rate, p50, p99) = (case.per_second(), case.percentile_us(50), case.percentile_us(99));
        format!("{:<28} {rate:>12.0} {p50:>12.1} {p99:>12.1}\n", case.name)
    });
    let head = format!("{:<28} {:>12} {:>12} {:>12}\n", "", "per second", "p50 us", "p99 us");
    head + &rows.collect::<String>()
}
