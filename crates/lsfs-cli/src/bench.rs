//! `lsfs bench`: what this disk can do, and what the engine reaches on it.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lsfs::io::{Access, AlignedBuf, File, OpenMode, WriteSync};
use lsfs::{Env, Reader, RecordStream, StreamOptions};
use serde::Serialize;

use crate::output;
use crate::size::ByteSize;
use crate::stop::StopRequest;

/// Measure this disk and the engine on it, side by side
///
/// Writes into a new directory inside of DIR and removes it at the end, also after Ctrl-C. Figures mean something on a
/// machine that does nothing else; run it several times.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// A directory on the disk to measure
    dir: PathBuf,
    /// How long it takes in all, in seconds
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// The largest file it writes; twice as much must be free
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    size: ByteSize,
    /// Threads of the many-writers case
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

fn parse_size(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    match size.0 {
        SIZE_MIN..=SIZE_MAX => Ok(size),
        _ => Err(format!("from {} to {}", ByteSize(SIZE_MIN), ByteSize(SIZE_MAX))),
    }
}

const SIZE_MIN: u64 = 8 << 20;
const SIZE_MAX: u64 = 1 << 40;
/// Small records, as of an event log.
const RECORD_BYTES: usize = 256;
/// Records of the bulk case.
const BULK_RECORD_BYTES: usize = 64 << 10;
const PAGE_BYTES: usize = 4096;
const RUN_BYTES: usize = 1 << 20;
/// Appends under way in the futures case.
const FUTURES: usize = 256;
/// Cases that take a share of the time.
const CASES: u64 = 8;

/// Measures and prints.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let env = Env::default();
    let metadata =
        args.dir.metadata().with_context(|| format!("could not look at {}", args.dir.display()))?;
    ensure!(metadata.is_dir(), "{} is not a directory", args.dir.display());
    let needed = args.size.0.saturating_mul(2);
    let free = env
        .disk
        .free_bytes(&args.dir)
        .with_context(|| format!("could not measure {}", args.dir.display()))?;
    ensure!(
        free >= needed,
        "{} has {} free, {} are needed; give a smaller --size",
        args.dir.display(),
        ByteSize(free),
        ByteSize(needed)
    );
    let stop = StopRequest::install()?;
    let place = Workplace::make(&env, &args.dir)?;
    let share = Duration::from_secs_f64(args.seconds as f64 / CASES as f64);
    let bench =
        Bench { env, dir: place.0.clone(), share, size: args.size.0, threads: args.threads, stop: &stop };
    let report = bench.run();
    drop(place);
    if stop.is_made() {
        bail!("stopped by a signal; nothing is left in {}", args.dir.display());
    }
    let report = report?;
    match args.json {
        true => output::print_json(&report),
        false => output::print(report.to_string().as_bytes()),
    }
}

/// A directory that goes away with the value.
struct Workplace(PathBuf);

impl Workplace {
    fn make(env: &Env, dir: &Path) -> anyhow::Result<Workplace> {
        let path = dir.join(format!("lsfs-bench-{}-{:08x}", std::process::id(), env.runtime.random() as u32));
        ensure!(!env.disk.exists(&path), "{} is already there", path.display());
        env.disk.create_dir_all(&path).with_context(|| format!("could not create {}", path.display()))?;
        Ok(Workplace(path))
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "could not remove what the bench wrote");
        }
    }
}

struct Bench<'a> {
    env: Env,
    dir: PathBuf,
    share: Duration,
    size: u64,
    threads: u32,
    stop: &'a StopRequest,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    direct_io: bool,
    /// Processes that wanted to run during the last minute, and processors.
    load: Option<f64>,
    processors: usize,
    cases: Vec<Case>,
    warnings: Vec<String>,
}

/// One case.
#[derive(Debug, Serialize)]
struct Case {
    name: &'static str,
    /// Operations or bytes a second.
    per_second: f64,
    unit: &'static str,
    /// The raw case that this one is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<&'static str>,
    /// This one divided by that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
}

const RAW_SYNC: &str = "raw: 4 KiB synced writes, one writer";
const RAW_WRITE: &str = "raw: sequential write";
const RAW_READ: &str = "raw: sequential read";

impl Bench<'_> {
    fn run(&self) -> anyhow::Result<Report> {
        let path = self.dir.join("raw");
        let file =
            self.env.disk.open(&path, OpenMode::CreateNew, PAGE_BYTES).context("could not create a file")?;
        let (written, raw_write) = self.raw_write(&*file)?;
        let raw_sync = self.raw_sync(&*file, written)?;
        let raw_read = self.raw_read(&*file, written)?;
        drop(file);
        self.env.disk.remove(&path).context("could not remove a file")?;
        let case = |name, per_second, unit| Case { name, per_second, unit, against: None, ratio: None };
        let mut cases = vec![
            case(RAW_SYNC, raw_sync, "writes/s"),
            case(RAW_WRITE, raw_write, "bytes/s"),
            case(RAW_READ, raw_read, "bytes/s"),
        ];
        let small = RecordStream::open(self.dir.join("small"), StreamOptions::default())?;
        let against = |name, per_second, unit, against, raw: f64| Case {
            ratio: (raw > 0.0).then(|| per_second / raw),
            against: Some(against),
            ..case(name, per_second, unit)
        };
        let one = self.many_writers(&small, 1)?;
        cases.push(against("engine: 256 B appends, one writer", one, "records/s", RAW_SYNC, raw_sync));
        let many = self.many_writers(&small, self.threads)?;
        cases.push(against("engine: 256 B appends, many writers", many, "records/s", RAW_SYNC, raw_sync));
        let futures = self.futures(&small)?;
        cases.push(against(
            "engine: 256 B appends, futures of one thread",
            futures,
            "records/s",
            RAW_SYNC,
            raw_sync,
        ));
        small.close()?;
        let bulk_dir = self.dir.join("bulk");
        let bulk = self.bulk(&bulk_dir)?;
        cases.push(against("engine: 64 KiB records, bulk", bulk, "bytes/s", RAW_WRITE, raw_write));
        let read = self.read_back(&bulk_dir)?;
        cases.push(against("engine: reading them back", read, "bytes/s", RAW_READ, raw_read));
        self.report(cases)
    }

    fn report(&self, cases: Vec<Case>) -> anyhow::Result<Report> {
        let probe = self.env.disk.open(&self.dir.join("probe"), OpenMode::CreateNew, PAGE_BYTES);
        let direct_io = probe.context("could not create a file")?.access() == Access::Direct;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let load_text = std::fs::read_to_string("/proc/loadavg").ok();
        let load = load_text.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
        let mut warnings = Vec::new();
        if !direct_io {
            warnings.push(
                "the file system refuses direct I/O: all figures are through the page cache".to_string(),
            );
        }
        if load.is_some_and(|load| load > processors as f64 * 0.75) {
            warnings.push(format!(
                "the machine is busy (load {:.1} on {processors} processors): figures are too low",
                load.unwrap_or(0.0)
            ));
        }
        Ok(Report { direct_io, load, processors, cases, warnings })
    }

    /// Whether a case that began at `started` goes on.
    fn goes_on(&self, started: Instant) -> bool {
        started.elapsed() < self.share && !self.stop.is_made()
    }

    /// Writes a file from its beginning; it is what the synced writes then overwrite.
    fn raw_write(&self, file: &dyn File) -> anyhow::Result<(u64, f64)> {
        let run = AlignedBuf::zeroed(RUN_BYTES);
        let started = Instant::now();
        let mut position = 0;
        // At least some megabytes, so that there is something to overwrite and to read.
        while position < self.size && (self.goes_on(started) || position < SIZE_MIN) && !self.stop.is_made() {
            file.write_all_at(&run, position, WriteSync::Later).context("could not write")?;
            position += RUN_BYTES as u64;
        }
        file.sync().context("could not sync")?;
        Ok((position, rate(position, started)))
    }

    fn raw_sync(&self, file: &dyn File, len: u64) -> anyhow::Result<f64> {
        let page = AlignedBuf::zeroed(PAGE_BYTES);
        let started = Instant::now();
        let mut count = 0;
        while self.goes_on(started) {
            let position = count * PAGE_BYTES as u64 % len.max(PAGE_BYTES as u64);
            file.write_all_at(&page, position, WriteSync::Durable).context("could not write")?;
            count += 1;
        }
        Ok(rate(count, started))
    }

    fn raw_read(&self, file: &dyn File, len: u64) -> anyhow::Result<f64> {
        let mut run = AlignedBuf::zeroed(RUN_BYTES);
        let started = Instant::now();
        let mut bytes = 0;
        while bytes < len && self.goes_on(started) {
            bytes += file.read_full_at(&mut run, bytes).context("could not read")? as u64;
        }
        Ok(rate(bytes, started))
    }

    fn many_writers(&self, stream: &RecordStream, threads: u32) -> anyhow::Result<f64> {
        let payload = [7; RECORD_BYTES];
        let count = AtomicU64::new(0);
        let started = Instant::now();
        std::thread::scope(|scope| {
            let write = || -> lsfs::Result<()> {
                while self.goes_on(started) {
                    stream.append(1, &payload)?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            };
            let writers: Vec<_> = (0..threads).map(|_| scope.spawn(write)).collect();
            writers.into_iter().try_for_each(|writer| writer.join().expect("a writer does not panic"))
        })?;
        Ok(rate(count.into_inner(), started))
    }

    fn futures(&self, stream: &RecordStream) -> anyhow::Result<f64> {
        let payload = [7; RECORD_BYTES];
        let mut under_way = VecDeque::new();
        let started = Instant::now();
        let mut count = 0;
        while self.goes_on(started) {
            under_way.push_back(stream.append_async(1, &payload)?);
            if under_way.len() >= FUTURES
                && let Some(oldest) = under_way.pop_front()
            {
                oldest.wait()?;
                count += 1;
            }
        }
        for pending in under_way {
            pending.wait()?;
            count += 1;
        }
        Ok(rate(count, started))
    }

    fn bulk(&self, dir: &Path) -> anyhow::Result<f64> {
        let stream = RecordStream::open(dir, StreamOptions::default())?;
        let payload = vec![7; BULK_RECORD_BYTES];
        let started = Instant::now();
        let mut bytes = 0;
        while bytes < self.size && self.goes_on(started) {
            stream.append_buffered(1, &payload)?;
            bytes += payload.len() as u64;
        }
        stream.sync()?;
        let rate = rate(bytes, started);
        stream.close()?;
        Ok(rate)
    }

    fn read_back(&self, dir: &Path) -> anyhow::Result<f64> {
        let reader = Reader::open(dir)?;
        let mut cursor = reader.iter(..)?;
        let started = Instant::now();
        let mut bytes = 0;
        while self.goes_on(started)
            && let Some(record) = cursor.next_record()?
        {
            bytes += record.payload.len() as u64;
        }
        Ok(rate(bytes, started))
    }
}

fn rate(count: u64, started: Instant) -> f64 {
    count as f64 / started.elapsed().max(Duration::from_micros(1)).as_secs_f64()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        for case in &self.cases {
            let figure = match case.unit {
                "bytes/s" => format!("{}/s", ByteSize(case.per_second as u64)),
                unit => format!("{:.0} {unit}", case.per_second),
            };
            write!(f, "{:<48}{figure:>20}", case.name)?;
            match (case.ratio, case.against) {
                (Some(ratio), Some(against)) => writeln!(f, "  {ratio:.2} x {against}")?,
                _ => writeln!(f)?,
            }
        }
        Ok(())
    }
}
