//! Power failures and kills during everything a record stream does.
//!
//! The test command makes at least 10^5 images; the long run is
//! `LSFS_CRASH_IMAGES=5000000 cargo test --release -p lsfs --test proof crash_stream`. A failure prints the seed;
//! `LSFS_CRASH_SEED=n` starts there.

use std::path::Path;
use std::sync::Arc;

use lsfs::codec::{BLOCK_HEADER_BYTES, BLOCK_TAILER_BYTES, record_overhead_bytes};
use lsfs::io::SimDisk;
use lsfs::{Error, RecordStream, SpacePolicy, StreamOptions};

use crate::crash::{Workload, crash_images};
use crate::support::{Choices, sim_env};

const DIR: &str = "/stream";

type Payload = Arc<[u8]>;

/// What a stream holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
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
pub(crate) struct Call {
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

/// Some seeds crash again and again after a few appends of a block each: what a torn batch left behind the end, the
/// first append after it would join.
fn is_short(seed: u64) -> bool {
    seed % 8 == 4
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
    fn call<T>(
        &mut self,
        name: String,
        partial: bool,
        after: Model,
        act: impl FnOnce(&RecordStream) -> Result<T, Error>,
    ) -> Result<(), String> {
        let start = self.disk.trace_len();
        act(&self.stream).map_err(|error| format!("{name}: {error}"))?;
        let end = self.disk.trace_len();
        let before = std::mem::replace(&mut self.model, after.clone());
        self.calls.push(Call { name, start, end, before, after, partial });
        Ok(())
    }

    fn step(&mut self, tag: u64) -> Result<(), String> {
        let mut after = self.model.clone();
        let kinds = if is_short(self.seed) { 13 } else { 24 };
        match self.choices.below(kinds) {
            0..=8 => {
                let payload = payload(&mut self.choices, self.seed, self.block_bytes, tag);
                after.records.push(payload.clone());
                after.durable = after.next();
                self.call(format!("append {}", payload.len()), true, after, |stream| {
                    stream.append(tag, &payload)
                })
            }
            9..=12 => {
                let batch: Vec<(u64, Payload)> = (0..1 + self.choices.below(16))
                    .map(|n| (tag, payload(&mut self.choices, self.seed, self.block_bytes, tag * 100 + n)))
                    .collect();
                after.records.extend(batch.iter().map(|(_, payload)| payload.clone()));
                after.durable = after.next();
                self.call(format!("batch of {}", batch.len()), true, after, |stream| {
                    stream.append_batch(&batch)
                })
            }
            13..=15 => {
                let payload = payload(&mut self.choices, self.seed, self.block_bytes, tag);
                after.records.push(payload.clone());
                self.call(format!("append_buffered {}", payload.len()), true, after, |stream| {
                    stream.append_buffered(tag, &payload)
                })
            }
            16 => {
                let payload = payload(&mut self.choices, self.seed, self.block_bytes, tag);
                after.records.push(payload.clone());
                self.call(format!("append_async {}", payload.len()), true, after, |stream| {
                    stream.append_async(tag, &payload)
                })
            }
            17 => {
                after.durable = after.next();
                self.call("sync".to_string(), true, after, |stream| stream.sync())
            }
            18 | 19 if self.model.next() > self.model.first => {
                let held = self.model.next() - self.model.first;
                let index = self.model.next() - 1 - self.choices.below(held.min(12));
                after.records.truncate((index + 1 - after.base) as usize);
                after.durable = after.next();
                self.call(format!("truncate_after {index}"), false, after, |stream| {
                    stream.truncate_after(index)
                })
            }
            20 | 21 if self.model.durable > self.model.first => {
                let index = self.model.first + 1 + self.choices.below(self.model.durable - self.model.first);
                after.first = index;
                self.call(format!("purge_before {index}"), false, after, |stream| stream.purge_before(index))
            }
            22 => {
                let index = match self.choices.below(3) {
                    0 => self.model.next() + self.choices.below(100),
                    1 => self.model.first,
                    _ => self.choices.below(50),
                };
                let after = Model { first: index, durable: index, base: index, records: Vec::new() };
                self.call(format!("reset_to {index}"), false, after, |stream| stream.reset_to(index))
            }
            _ => {
                after.durable = after.next();
                self.call("close".to_string(), true, after.clone(), |stream| stream.close())?;
                let (disk, seed) = (self.disk.clone(), self.choices.next());
                let options = options(self.seed);
                let start = self.disk.trace_len();
                self.stream = RecordStream::open_in(sim_env(&disk, seed), DIR, options)
                    .map_err(|error| format!("reopen: {error}"))?;
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
                Ok(())
            }
        }
    }
}

/// A stream that is appended to, truncated, purged, reset and reopened.
pub(crate) struct StreamWorkload {
    seed: u64,
}

impl Workload for StreamWorkload {
    type State = Model;
    type History = Vec<Call>;
    type Open = RecordStream;

    fn new(seed: u64) -> Self {
        StreamWorkload { seed }
    }

    fn generations(&self) -> u64 {
        if is_short(self.seed) { 40 } else { 6 }
    }

    fn nothing(&self) -> Model {
        Model { first: 0, durable: 0, base: 0, records: Vec::new() }
    }

    fn run(
        &self,
        disk: &SimDisk,
        generation: u64,
        found: Model,
    ) -> Result<(Vec<Call>, RecordStream), String> {
        let options = options(self.seed);
        let block_bytes = options.block_bytes;
        let env = sim_env(disk, self.seed * 31 + generation);
        let stream = RecordStream::open_in(env, DIR, options).map_err(|error| format!("open: {error}"))?;
        let opened = Call {
            name: "open".to_string(),
            start: 0,
            end: disk.trace_len(),
            before: found.clone(),
            after: found.clone(),
            partial: false,
        };
        let choices = Choices::new(self.seed * 1009 + generation);
        let mut run =
            Run { disk, choices, calls: vec![opened], model: found, stream, block_bytes, seed: self.seed };
        let steps = if is_short(self.seed) { 3 } else { 18 };
        for n in 0..steps {
            run.step(generation * 1000 + n)?;
        }
        Ok((run.calls, run.stream))
    }

    fn recover(&self, disk: &SimDisk, seed: u64, thorough: bool) -> Result<Model, String> {
        recover(disk, options(self.seed), seed, thorough)
    }

    fn opened(&self, history: &Vec<Call>) -> usize {
        history[0].end
    }

    fn judge(&self, history: &Vec<Call>, point: usize, found: &Model) -> Result<(), String> {
        judge(history, point, found)
    }

    fn show(&self, history: &Vec<Call>) -> String {
        let lines = history.iter().map(|call| format!("{}..{} {}", call.start, call.end, call.name));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Opens what a crash left and reads all of it, forward and by `verify`.
fn recover(image: &SimDisk, options: StreamOptions, seed: u64, check_all: bool) -> Result<Model, String> {
    let env = sim_env(image, seed);
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
    crash_images::<StreamWorkload>("record streams", 100_000);
}
