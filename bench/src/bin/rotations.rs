//! What a new segment costs those who append, and what it costs with many segments behind it.
//!
//! `cargo run --release --bin rotations -- [SEGMENTS] [DIR]`. First appends with default options, one writer and 64, and
//! how long the slowest of them took: there the rotations are. Then streams and sets in which each append begins a new
//! segment: what the list of segments takes, and how long a rotation and an open take as it grows.
//! docs/design/0003-space.md has the figures.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use lsfs::{Durability, RecordStream, SegmentSet, SetOptions, SpacePolicy, StreamOptions};

/// Payload bytes of a record, where its size does not matter.
const RECORD_BYTES: usize = 4096;
/// Payload bytes that are appended with default options.
const LOAD_BYTES: usize = 512 << 20;
/// Writers of the concurrent row.
const WRITERS: usize = 64;
/// Bytes of a segment where only their number matters.
const SMALL_SEGMENT_BYTES: u64 = 64 << 10;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rotations: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let segments: u64 = arguments.next().map_or(Ok(10_000), |text| text.parse()).context("SEGMENTS")?;
    let place = arguments.next().map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let dir = place.join(format!("rotations-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let measured = measure(&dir, segments);
    std::fs::remove_dir_all(&dir)?;
    measured
}

fn measure(dir: &Path, segments: u64) -> Result<()> {
    println!("appends of {RECORD_BYTES} B, default options, {} MiB\n", LOAD_BYTES >> 20);
    println!("{:<28} {:>9} {}", "", "segments", heading());
    for (name, writers) in [("stream, 1 writer", 1), ("stream, 64 writers", WRITERS)] {
        let stream = RecordStream::open(dir.join(name), StreamOptions::default())?;
        let taken = in_parallel(writers, |record| stream.append(1, record).map(drop))?;
        println!("{name:<28} {:>9} {}", stream.stats().segments, row(&taken));
        stream.close()?;
    }
    for (name, writers) in [("set, 1 writer", 1), ("set, 64 writers", WRITERS)] {
        let set = SegmentSet::open(dir.join(name), SetOptions::default())?;
        let taken = in_parallel(writers, |record| set.append(1, record, Durability::Sync).map(drop))?;
        println!("{name:<28} {:>9} {}", set.segments().len(), row(&taken));
        set.close()?;
    }
    println!("\na new segment with each append\n");
    println!("{:<28} {:>9} {} {:>12} {:>9}", "", "segments", heading(), "list, bytes", "open, ms");
    grow_stream(&dir.join("many of a stream"), segments)?;
    grow_set(&dir.join("many of a set"), segments)
}

/// Appends [`LOAD_BYTES`] by `writers` threads; answers how long each append took.
fn in_parallel(writers: usize, append: impl Fn(&[u8]) -> lsfs::Result<()> + Sync) -> Result<Histogram<u64>> {
    let record = vec![7u8; RECORD_BYTES];
    let one = || -> Result<Histogram<u64>> {
        let mut taken = histogram()?;
        for _ in 0..LOAD_BYTES / RECORD_BYTES / writers {
            let begun = Instant::now();
            append(&record)?;
            taken.saturating_record(begun.elapsed().as_nanos() as u64);
        }
        Ok(taken)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..writers).map(|_| scope.spawn(one)).collect();
        let mut sum = histogram()?;
        for thread in threads {
            sum += thread.join().expect("a writer panicked")?;
        }
        Ok(sum)
    })
}

/// Makes a stream of as many segments, and says what its manifest and an open take at each power of ten.
fn grow_stream(dir: &Path, segments: u64) -> Result<()> {
    let options = StreamOptions {
        segment_records: 1,
        segment_bytes: SMALL_SEGMENT_BYTES,
        space: SpacePolicy::Allocate,
        ..StreamOptions::default()
    };
    let mut steps = Steps::new("stream", dir, "manifest")?;
    let mut stream = RecordStream::open(dir, options.clone())?;
    for number in 1..=segments {
        steps.time(|| stream.append(1, b"record").map(drop))?;
        if Steps::is_due(number, segments) {
            stream.close()?;
            drop(stream);
            let begun = Instant::now();
            stream = RecordStream::open(dir, options.clone())?;
            steps.show(stream.stats().segments, begun.elapsed())?;
        }
    }
    Ok(stream.close()?)
}

/// The same for a segment set.
fn grow_set(dir: &Path, segments: u64) -> Result<()> {
    let options = SetOptions {
        segment_bytes: SMALL_SEGMENT_BYTES,
        space: SpacePolicy::Allocate,
        spares: false,
        ..SetOptions::default()
    };
    let mut steps = Steps::new("set", dir, "set")?;
    let mut set = SegmentSet::open(dir, options.clone())?;
    for number in 1..=segments {
        steps.time(|| set.append(1, b"entry", Durability::Buffer).and_then(|_| set.seal()).map(drop))?;
        if Steps::is_due(number, segments) {
            set.close()?;
            drop(set);
            let begun = Instant::now();
            set = SegmentSet::open(dir, options.clone())?;
            steps.show(set.segments().len() as u64, begun.elapsed())?;
        }
    }
    Ok(set.close()?)
}

/// Rotations from one power of ten to the next.
struct Steps {
    name: &'static str,
    dir: PathBuf,
    /// What the names of the two files begin with that list the segments.
    stem: &'static str,
    taken: Histogram<u64>,
}

impl Steps {
    fn new(name: &'static str, dir: &Path, stem: &'static str) -> Result<Steps> {
        Ok(Steps { name, dir: dir.to_path_buf(), stem, taken: histogram()? })
    }

    fn time(&mut self, rotate: impl FnOnce() -> lsfs::Result<()>) -> Result<()> {
        let begun = Instant::now();
        rotate()?;
        self.taken.saturating_record(begun.elapsed().as_nanos() as u64);
        Ok(())
    }

    fn is_due(number: u64, segments: u64) -> bool {
        number == segments || (number >= 10 && 10u64.pow(number.ilog10()) == number)
    }

    fn show(&mut self, segments: u64, opened_in: Duration) -> Result<()> {
        let length = |end| std::fs::metadata(self.dir.join(format!("{}.{end}", self.stem)));
        let list_bytes = ["a", "b"].into_iter().filter_map(|end| Some(length(end).ok()?.len())).sum::<u64>();
        let opened_ms = opened_in.as_secs_f64() * 1e3;
        println!("{:<28} {segments:>9} {} {list_bytes:>12} {opened_ms:>9.2}", self.name, row(&self.taken));
        self.taken.reset();
        Ok(())
    }
}

fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

fn heading() -> String {
    format!("{:>9} {:>9} {:>9} {:>9}", "p50 us", "p99 us", "p99.9 us", "max us")
}

fn row(taken: &Histogram<u64>) -> String {
    let us = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let at = |quantile| us(taken.value_at_quantile(quantile));
    format!("{:>9.0} {:>9.0} {:>9.0} {:>9.0}", at(0.5), at(0.99), at(0.999), us(taken.max()))
}
