//! Power failures during everything a record stream does.
//!
//! A seeded workload runs on the simulated disk and is recorded. For every operation of the recording the disk is made
//! that a machine would find if power failed during it, in every style of losing, tearing and reordering what was not
//! synced; the stream is opened there and compared with what had been acknowledged. Then the next generation of the
//! workload runs on one of these disks, its opening included, so that crashes hit recovery and what recovery left.
//!
//! The test command makes at least 10^5 images; the long run is
//! `LSFS_CRASH_IMAGES=5000000 cargo test --release -p lsfs --test crash_stream`. A failure prints the seed;
//! `LSFS_CRASH_SEED=n` starts there.

mod support;

use std::path::Path;
use std::sync::Arc;

use lsfs::codec::{BLOCK_HEADER_BYTES, BLOCK_TAILER_BYTES, record_overhead_bytes};
use lsfs::io::CrashStyle::{self, OnlyHeaderSector, RandomWrites, SuffixOnly, TornPages, TornSectors};
use lsfs::io::{SimDisk, Trace};
use lsfs::{RecordStream, SpacePolicy, StreamOptions};
use support::{Choices, budget, sim_env};

const DIR: &str = "/stream";

type Payload = Arc<[u8]>;

/// What a stream holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    first: u64,
    /// Records below this index are acknowledged as durable.
    durable: u64,
    /// Index of the first element of `records`.
    base: u64,
    records: Vec<Payload>,
}

impl Model {
    fn next(&self) -> u64 {
        self.base + self.records.len() as u64
    }

    fn get(&self, index: u64) -> &Payload {
        &self.records[(index - self.base) as usize]
    }

    /// Whether `found` may be what is left of this after a crash: all that is durable, and a beginning of the rest.
    fn admits(&self, found: &Model) -> bool {
        found.first == self.first
            && (self.durable..=self.next()).contains(&found.next())
            && (found.first..found.next()).all(|index| found.get(index) == self.get(index))
    }
}

/// One call of the workload: which operations of the recording belong to it, and what held before and after.
struct Call {
    name: String,
    start: usize,
    end: usize,
    before: Model,
    after: Model,
    /// Whether a part of the effect may survive, as of a batch of appends.
    partial: bool,
}

fn options(seed: u64) -> StreamOptions {
    let mut choices = Choices::new(seed ^ 0xA5A5);
    let block_bytes = [512, 512, 1024, 4096][choices.below(4) as usize];
    StreamOptions {
        block_bytes,
        segment_bytes: (block_bytes * [8, 12, 24][choices.below(3) as usize]) as u64,
        in_flight_bytes: block_bytes * [4, 6][choices.below(2) as usize],
        cache_bytes: block_bytes * 8,
        space: [SpacePolicy::Adaptive, SpacePolicy::Allocate][choices.below(2) as usize],
        compression: [lsfs::codec::Compression::None, lsfs::codec::Compression::Lz4]
            [choices.below(2) as usize],
        ..StreamOptions::default()
    }
}

/// Every other seed appends records of one size, a third of a block or a whole one: then leftovers of an abandoned tail
/// or of a recycled segment lie exactly where new records are expected.
fn payload(choices: &mut Choices, seed: u64, block_bytes: usize, tag: u64) -> Payload {
    let room = block_bytes - BLOCK_HEADER_BYTES - BLOCK_TAILER_BYTES;
    let whole = |parts: usize| (room / parts - record_overhead_bytes() - 8) as u64;
    let len = match choices.below(10) {
        _ if seed.is_multiple_of(4) => whole(1),
        _ if seed % 4 == 2 => whole(3),
        0 => 0,
        1..=5 => choices.below(120),
        6..=8 => choices.below(block_bytes as u64 * 2),
        _ => choices.below(block_bytes as u64 * 12),
    };
    let mut bytes: Vec<u8> = (0..len).map(|at| (tag * 7 + at / 3) as u8).collect();
    bytes.extend(tag.to_le_bytes());
    bytes.into()
}

struct Run<'a> {
    disk: &'a SimDisk,
    choices: Choices,
    calls: Vec<Call>,
    model: Model,
    stream: RecordStream,
    block_bytes: usize,
    seed: u64,
}

impl Run<'_> {
    fn call(&mut self, name: String, partial: bool, after: Model, act: impl FnOnce(&RecordStream)) {
        let start = self.disk.trace_len();
        act(&self.stream);
        let end = self.disk.trace_len();
        let before = std::mem::replace(&mut self.model, after.clone());
        self.calls.push(Call { name, start, end, before, after, partial });
    }

    fn step(&mut self, tag: u64) {
        let mut after = self.model.clone();
        match self.choices.below(24) {
            0..=8 => {
                let payload = payload(&mut self.choices, self.seed, self.block_bytes, tag);
                after.records.push(payload.clone());
                after.durable = after.next();
                self.call(format!("append {}", payload.len()), true, after, |stream| {
                    stream.append(tag, &payload).unwrap();
                });
            }
            9..=12 => {
                let batch: Vec<(u64, Payload)> = (0..1 + self.choices.below(16))
                    .map(|n| (tag, payload(&mut self.choices, self.seed, self.block_bytes, tag * 100 + n)))
                    .collect();
                after.records.extend(batch.iter().map(|(_, payload)| payload.clone()));
                after.durable = after.next();
                self.call(format!("batch of {}", batch.len()), true, after, |stream| {
                    stream.append_batch(&batch).unwrap();
                });
            }
            13..=15 => {
                let payload = payload(&mut self.choices, self.seed, self.block_bytes, tag);
                after.records.push(payload.clone());
                self.call(format!("append_buffered {}", payload.len()), true, after, |stream| {
                    stream.append_buffered(tag, &payload).unwrap();
                });
            }
            16 => {
                let payload = payload(&mut self.choices, self.seed, self.block_bytes, tag);
                after.records.push(payload.clone());
                self.call(format!("append_async {}", payload.len()), true, after, |stream| {
                    drop(stream.append_async(tag, &payload).unwrap());
                });
            }
            17 => {
                after.durable = after.next();
                self.call("sync".to_string(), true, after, |stream| stream.sync().unwrap());
            }
            18 | 19 if self.model.next() > self.model.first => {
                let held = self.model.next() - self.model.first;
                let index = self.model.next() - 1 - self.choices.below(held.min(12));
                after.records.truncate((index + 1 - after.base) as usize);
                after.durable = after.next();
                self.call(format!("truncate_after {index}"), false, after, |stream| {
                    stream.truncate_after(index).unwrap();
                });
            }
            20 | 21 if self.model.durable > self.model.first => {
                let index = self.model.first + 1 + self.choices.below(self.model.durable - self.model.first);
                after.first = index;
                self.call(format!("purge_before {index}"), false, after, |stream| {
                    stream.purge_before(index).unwrap();
                });
            }
            22 => {
                let index = match self.choices.below(3) {
                    0 => self.model.next() + self.choices.below(100),
                    1 => self.model.first,
                    _ => self.choices.below(50),
                };
                let after = Model { first: index, durable: index, base: index, records: Vec::new() };
                self.call(format!("reset_to {index}"), false, after, |stream| {
                    stream.reset_to(index).unwrap()
                });
            }
            _ => {
                after.durable = after.next();
                self.call("close".to_string(), true, after.clone(), |stream| stream.close().unwrap());
                let (disk, seed) = (self.disk.clone(), self.choices.next());
                let options = options(self.seed);
                let start = self.disk.trace_len();
                self.stream = RecordStream::open_in(sim_env(&disk, seed), DIR, options).unwrap();
                let end = self.disk.trace_len();
                let model = self.model.clone();
                self.calls.push(Call {
                    name: "reopen".to_string(),
                    start,
                    end,
                    before: model.clone(),
                    after: model,
                    partial: false,
                });
            }
        }
    }
}

/// Runs a generation of the workload on `disk`; what it holds at the beginning is `model`.
fn run(disk: &SimDisk, seed: u64, generation: u64, model: Model) -> (Vec<Call>, Trace) {
    disk.start_trace();
    let options = options(seed);
    let block_bytes = options.block_bytes;
    let env = sim_env(disk, seed * 31 + generation);
    let stream = RecordStream::open_in(env, DIR, options).unwrap_or_else(|error| panic!("open: {error}"));
    let opened = Call {
        name: "open".to_string(),
        start: 0,
        end: disk.trace_len(),
        before: model.clone(),
        after: model.clone(),
        partial: false,
    };
    let choices = Choices::new(seed * 1009 + generation);
    let mut run = Run { disk, choices, calls: vec![opened], model, stream, block_bytes, seed };
    for n in 0..18 {
        run.step(generation * 1000 + n);
    }
    let trace = disk.stop_trace();
    drop(disk.restart());
    (run.calls, trace)
}

/// Opens what a crash left and reads all of it, forward and by `verify`.
fn recover(image: &SimDisk, seed: u64, check_all: bool) -> Result<Model, String> {
    let env = sim_env(image, seed);
    let options = StreamOptions { create: true, ..options(seed) };
    let stream =
        RecordStream::open_in(env.clone(), DIR, options).map_err(|error| format!("open: {error}"))?;
    let first = stream.first_index();
    let mut model = Model { first, durable: stream.next_index(), base: first, records: Vec::new() };
    let mut cursor = stream.iter(..);
    while let Some(record) = cursor.next_record().map_err(|error| format!("read: {error}"))? {
        model.records.push(record.payload.to_vec().into());
    }
    if model.next() != stream.next_index() {
        return Err(format!("read to {}, next index is {}", model.next(), stream.next_index()));
    }
    if check_all {
        let report =
            lsfs::verify(&env, Path::new(DIR), |_| {}).map_err(|error| format!("verify: {error}"))?;
        if let Some(damage) = report.damage.first() {
            return Err(format!("verify: {damage}"));
        }
        let mut backward = stream.iter_reverse(..);
        for index in (model.first..model.next()).rev() {
            let record = backward.next_record().map_err(|error| format!("backward: {error}"))?;
            if record.is_none_or(|record| record.payload[..] != model.get(index)[..]) {
                return Err(format!("backward: record {index} differs"));
            }
        }
    }
    // The handle's close must not write any more.
    drop(image.restart());
    Ok(model)
}

fn judge(calls: &[Call], point: usize, found: &Model) -> Result<(), String> {
    // The crash fell into the call whose operations include the point, or between two calls.
    let under_way = calls.iter().find(|call| (call.start..call.end).contains(&point));
    let (before, after) = match under_way {
        Some(call) => (&call.before, Some(call)),
        None => {
            let done = calls.iter().rfind(|call| call.end <= point).expect("the open is a call");
            (&done.after, None)
        }
    };
    if before.admits(found) {
        return Ok(());
    }
    let Some(call) = after else {
        return Err(format!("found {}..{}, admitted {}", found.first, found.next(), show(before)));
    };
    let mut admitted = call.after.clone();
    if call.partial {
        admitted.durable = call.before.durable;
    }
    if admitted.admits(found) {
        return Ok(());
    }
    let (before, after) = (show(before), show(&admitted));
    Err(format!(
        "during {}: found {}..{}, admitted {before} or {after}",
        call.name,
        found.first,
        found.next()
    ))
}

fn show(model: &Model) -> String {
    format!("{}..{} (durable to {})", model.first, model.next(), model.durable)
}

#[test]
fn no_crash_loses_or_invents_a_record() {
    let wanted = budget("LSFS_CRASH_IMAGES", 100_000);
    let first_seed = budget("LSFS_CRASH_SEED", 1);
    let mut images = 0u64;
    let mut seed = first_seed;
    while images < wanted {
        images += crash_everywhere(seed);
        seed += 1;
    }
    eprintln!("{images} crash images, seeds {first_seed}..{seed}");
}

fn crash_everywhere(seed: u64) -> u64 {
    let mut images = 0;
    let mut disk = SimDisk::new(seed);
    let mut model = Model { first: 0, durable: 0, base: 0, records: Vec::new() };
    for generation in 0..6 {
        let (calls, trace) = run(&disk, seed, generation, model.clone());
        let mut crash_images = trace.images();
        let mut choices = Choices::new(seed ^ (generation << 32));
        let next_start = choices.below(trace.len() as u64 + 1) as usize;
        let mut next = None;
        loop {
            let point = crash_images.crash_point();
            let styles: &[CrashStyle] =
                if crash_images.unsynced() == 0 { &CrashStyle::ALL[..1] } else { &CrashStyle::ALL };
            for &style in styles {
                let image = crash_images.image(style, choices.next());
                let original = image.power_fail(CrashStyle::EverythingUnsynced, 0);
                let context = |problem: String| {
                    let calls: Vec<_> =
                        calls.iter().map(|c| format!("{}..{} {}", c.start, c.end, c.name)).collect();
                    format!(
                        "seed {seed}, generation {generation}, {}, style {style:?}: {problem}\n{}",
                        trace.describe(point),
                        calls.join("\n")
                    )
                };
                let found = recover(&image, seed, images % 8 == 0);
                let found = found.unwrap_or_else(|problem| panic!("{}", context(problem)));
                judge(&calls, point, &found).unwrap_or_else(|problem| panic!("{}", context(problem)));
                images += 1;
                let is_torn =
                    matches!(style, SuffixOnly | RandomWrites | TornSectors | TornPages | OnlyHeaderSector);
                if point >= next_start && next.is_none() && is_torn && choices.below(3) == 0 {
                    next = Some((original, found));
                }
            }
            if !crash_images.advance() {
                break;
            }
        }
        let Some((image, found)) = next else { return images };
        (disk, model) = (image, found);
    }
    images
}
