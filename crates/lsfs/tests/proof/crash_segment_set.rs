//! Power failures and kills during everything a segment set does.

use std::collections::BTreeSet;
use std::sync::Arc;

use lsfs::codec::{FrameLayout, Pointer};
use lsfs::io::{CrashStyle, SimDisk};
use lsfs::{Durability, Error, SegmentSet, SegmentSetReader, SetKind, SetOptions, SpacePolicy};

use crate::crash::{Workload, crash_images};
use crate::support::{Choices, budget, sim_env};

const DIR: &str = "/set";

fn options(seed: u64) -> SetOptions {
    let mut choices = Choices::new(seed ^ 0xA5A5);
    SetOptions {
        segment_bytes: (32 << 10) << choices.below(2),
        in_flight_bytes: (8 << 10) << choices.below(2),
        cache_bytes: 16 << 10,
        space: [SpacePolicy::Adaptive, SpacePolicy::Allocate][choices.below(2) as usize],
        footer: (choices.below(2) == 0).then(|| Arc::new(|number: u32| vec![number as u8; 300]) as _),
        frame_layout: [FrameLayout::Aligned, FrameLayout::Packed][choices.below(2) as usize],
        ..SetOptions::default()
    }
}

#[derive(Clone, PartialEq)]
pub(crate) struct Item {
    pointer: Pointer,
    kind: u8,
    body: Arc<[u8]>,
    ends_batch: bool,
}

/// What a set holds, oldest first.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Model {
    items: Vec<Item>,
    /// So many of them are acknowledged as durable.
    durable: usize,
}

impl Model {
    /// Whether `found` may be what is left of this after a crash: all that is durable, and whole batches of the rest.
    fn admits(&self, found: &Model) -> bool {
        let count = found.items.len();
        (self.durable..=self.items.len()).contains(&count)
            && self.items[..count] == found.items[..]
            && found.items.last().is_none_or(|item| item.ends_batch)
    }

    fn show(&self) -> String {
        let last = self.items.last().map(|item| item.pointer);
        format!("{} entries, {} durable, the last {last:?}", self.items.len(), self.durable)
    }
}

/// One call: which operations of the recording belong to it, and what held before and after.
pub(crate) struct Call {
    name: String,
    start: usize,
    end: usize,
    before: Model,
    after: Model,
}

struct Run<'a> {
    disk: &'a SimDisk,
    choices: Choices,
    calls: Vec<Call>,
    model: Model,
    set: SegmentSet,
    seed: u64,
}

/// Half of the seeds append bodies of one size, a frame for each page or half of it: then leftovers of an abandoned tail
/// or of a recycled segment lie exactly where new frames are expected.
fn body(choices: &mut Choices, seed: u64, tag: u64) -> Arc<[u8]> {
    let len = match choices.below(12) {
        _ if seed.is_multiple_of(4) || is_short(seed) => 4076,
        _ if seed % 4 == 2 => 2028,
        0 => 0,
        1..=6 => choices.below(200),
        7..=9 => choices.below(3000),
        10 => choices.below(12_000),
        _ => 65_536 + choices.below(6000),
    };
    (0..len).map(|at| (tag * 7 + at / 3) as u8).collect()
}

/// Some seeds crash again and again after a few appends: what a torn batch left behind the end, the first append after
/// it would join.
fn is_short(seed: u64) -> bool {
    seed.is_multiple_of(3)
}

impl Run<'_> {
    fn call(
        &mut self,
        name: String,
        after: Model,
        act: impl FnOnce(&SegmentSet) -> lsfs::Result<()>,
    ) -> Result<(), String> {
        let start = self.disk.trace_len();
        act(&self.set).map_err(|error| format!("{name}: {error}"))?;
        let end = self.disk.trace_len();
        let before = std::mem::replace(&mut self.model, after.clone());
        self.calls.push(Call { name, start, end, before, after });
        Ok(())
    }

    fn append(&mut self, bodies: &[(u8, Arc<[u8]>)], durability: Durability) -> Result<(), String> {
        let start = self.disk.trace_len();
        let name =
            format!("append {:?} {durability:?}", bodies.iter().map(|(_, b)| b.len()).collect::<Vec<_>>());
        let pointers =
            self.set.append_batch(bodies, durability).map_err(|error| format!("{name}: {error}"))?;
        let before = self.model.clone();
        for (number, (pointer, (kind, body))) in pointers.into_iter().zip(bodies).enumerate() {
            let ends_batch = number + 1 == bodies.len();
            self.model.items.push(Item { pointer, kind: *kind, body: Arc::clone(body), ends_batch });
        }
        if durability == Durability::Sync {
            self.model.durable = self.model.items.len();
        }
        let end = self.disk.trace_len();
        self.calls.push(Call { name, start, end, before, after: self.model.clone() });
        Ok(())
    }

    fn step(&mut self, tag: u64) -> Result<(), String> {
        let mut after = self.model.clone();
        let all_durable = |mut model: Model| {
            model.durable = model.items.len();
            model
        };
        match self.choices.below(if is_short(self.seed) { 13 } else { 20 }) {
            draw @ 0..=9 => {
                let count = if draw < 3 { 1 } else { 1 + self.choices.below(5) };
                let bodies: Vec<_> =
                    (0..count).map(|n| (n as u8, body(&mut self.choices, self.seed, tag * 10 + n))).collect();
                let durability =
                    if self.choices.below(3) == 0 { Durability::Buffer } else { Durability::Sync };
                self.append(&bodies, durability)
            }
            10 | 11 => self.call("sync".to_string(), all_durable(after), |set| set.sync()),
            12 => self.call("checkpoint".to_string(), all_durable(after), |set| set.checkpoint()),
            13 | 14 => self.call("seal".to_string(), all_durable(after), |set| set.seal().map(|_| ())),
            15..=17 => {
                let sealed: Vec<u32> = self
                    .set
                    .segments()
                    .iter()
                    .filter(|info| info.is_sealed)
                    .map(|info| info.number)
                    .collect();
                let chosen: BTreeSet<u32> =
                    sealed.into_iter().filter(|_| self.choices.below(3) > 0).collect();
                // Sealed segments are durable as a whole.
                let durable = after.items[..after.durable]
                    .iter()
                    .filter(|item| !chosen.contains(&item.pointer.segment))
                    .count();
                after.items.retain(|item| !chosen.contains(&item.pointer.segment));
                after.durable = durable;
                let numbers: Vec<u32> = chosen.into_iter().collect();
                self.call(format!("reclaim {numbers:?}"), after, |set| set.reclaim(&numbers))
            }
            _ => {
                self.call("close".to_string(), all_durable(after), |set| set.close())?;
                let start = self.disk.trace_len();
                let env = sim_env(self.disk, self.choices.next());
                // Segments from here on may be of the other layout.
                let frame_layout = options(self.choices.next()).frame_layout;
                let options = SetOptions { frame_layout, ..options(self.seed) };
                self.set =
                    SegmentSet::open_in(env, DIR, options).map_err(|error| format!("reopen: {error}"))?;
                if !self.set.live_bytes_are_exact() {
                    return Err("live bytes are not exact after a close".to_string());
                }
                let (end, model) = (self.disk.trace_len(), self.model.clone());
                let (before, after) = (model.clone(), model);
                self.calls.push(Call { name: "reopen".to_string(), start, end, before, after });
                Ok(())
            }
        }
    }
}

/// All entries that a cursor shows.
fn items(mut entries: lsfs::Entries) -> Result<Vec<Item>, String> {
    let mut items = Vec::new();
    while let Some(entry) = entries.next_entry().map_err(|error| format!("iterate: {error}"))? {
        let lsfs::Entry { pointer, kind, ends_batch, body } = entry;
        items.push(Item { pointer, kind, ends_batch, body: body.into_vec().into() });
    }
    Ok(items)
}

/// A segment set that is appended to, sealed, reclaimed from and reopened.
pub(crate) struct SegmentSetWorkload {
    seed: u64,
}

impl Workload for SegmentSetWorkload {
    type State = Model;
    type History = Vec<Call>;
    type Open = SegmentSet;

    fn new(seed: u64) -> Self {
        SegmentSetWorkload { seed }
    }

    fn generations(&self) -> u64 {
        5
    }

    fn nothing(&self) -> Model {
        Model::default()
    }

    fn run(&self, disk: &SimDisk, generation: u64, found: Model) -> Result<(Vec<Call>, SegmentSet), String> {
        let env = sim_env(disk, self.seed * 31 + generation);
        let set =
            SegmentSet::open_in(env, DIR, options(self.seed)).map_err(|error| format!("open: {error}"))?;
        let opened = Call {
            name: "open".to_string(),
            start: 0,
            end: disk.trace_len(),
            before: found.clone(),
            after: found.clone(),
        };
        let choices = Choices::new(self.seed * 1009 + generation);
        let mut run = Run { disk, choices, calls: vec![opened], model: found, set, seed: self.seed };
        let steps = if is_short(self.seed) { 4 } else { 16 };
        for n in 0..steps {
            run.step(generation * 1000 + n)?;
        }
        Ok((run.calls, run.set))
    }

    fn recover(&self, disk: &SimDisk, seed: u64, thorough: bool) -> Result<Model, String> {
        if thorough {
            // A look from outside, before anybody recovers; the list may not be there yet.
            match SegmentSetReader::open_in(sim_env(disk, !seed), DIR) {
                Ok(reader) => drop(items(reader.iter())?),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(format!("look: {error}")),
            }
        }
        let set = SegmentSet::open_in(sim_env(disk, seed), DIR, options(self.seed))
            .map_err(|error| format!("open: {error}"))?;
        let items = items(set.iter())?;
        if thorough {
            for item in &items {
                let read = set.read(item.pointer).map_err(|error| format!("read: {error}"))?;
                let Pointer { segment, position, len, .. } = item.pointer;
                let placed = set.read_at(segment, position).map_err(|error| format!("read_at: {error}"))?;
                let half = set.read_range(item.pointer, len / 2..len).map_err(|error| error.to_string())?;
                if read.body != item.body || placed.body != item.body || half != item.body[len as usize / 2..]
                {
                    return Err(format!("{:?} is read differently", item.pointer));
                }
            }
            for info in set.segments() {
                let in_it = items.iter().filter(|item| item.pointer.segment == info.number);
                let (entries, bytes) =
                    in_it.fold((0, 0), |(entries, bytes), item| (entries + 1, bytes + item.body.len()));
                if (info.entries, info.body_bytes as usize) != (entries, bytes) {
                    return Err(format!("{info:?}, found are {entries} entries of {bytes} bytes"));
                }
                if info.is_sealed {
                    let handle = set.segment(info.number).map_err(|error| error.to_string())?;
                    let footer = handle.footer().map_err(|error| format!("footer: {error}"))?;
                    let (footer, _) = footer.expect("a sealed segment has one");
                    if (footer.tally.entries, footer.tally.digest) != (info.entries, info.digest) {
                        return Err(format!("{footer:?}, the list says {info:?}"));
                    }
                }
            }
        }
        // The handle's close must not write any more.
        drop(disk.restart());
        let durable = items.len();
        Ok(Model { items, durable })
    }

    fn opened(&self, history: &Vec<Call>) -> usize {
        history[0].end
    }

    fn judge(&self, history: &Vec<Call>, point: usize, found: &Model) -> Result<(), String> {
        // The crash fell into the call whose operations include the point, or between two calls.
        let under_way = history.iter().find(|call| (call.start..call.end).contains(&point));
        let (before, after) = match under_way {
            Some(call) => (&call.before, Some(&call.after)),
            None => {
                let done = history.iter().rfind(|call| call.end <= point).expect("the open is a call");
                (&done.after, None)
            }
        };
        let admitted_after =
            after.map(|after| Model { durable: before.durable.min(after.durable), ..after.clone() });
        if before.admits(found) || admitted_after.as_ref().is_some_and(|after| after.admits(found)) {
            return Ok(());
        }
        let call = under_way.map_or("between calls", |call| &call.name);
        let after = after.map_or(String::new(), |after| format!(" or {}", after.show()));
        Err(format!("during {call}: found {}, admitted {}{after}", found.show(), before.show()))
    }

    fn show(&self, history: &Vec<Call>) -> String {
        let lines = history.iter().map(|call| format!("{}..{} {}", call.start, call.end, call.name));
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn no_crash_loses_or_invents_an_entry() {
    crash_images::<SegmentSetWorkload>("segment sets", 30_000);
}

/// In a cache anything may be missing after a crash, but what is found is what was appended.
#[test]
fn no_crash_makes_a_cache_answer_wrong_bytes() {
    let (mut found, mut gone) = (0, 0);
    for seed in 0..budget("LSFS_CACHE_SEEDS", 12) {
        let disk = SimDisk::new(seed);
        let options = SetOptions { kind: SetKind::Cache, ..options(seed) };
        let mut choices = Choices::new(seed);
        let mut appended: Vec<(Pointer, Arc<[u8]>)> = Vec::new();
        disk.start_trace();
        for round in 0..3 {
            let set = SegmentSet::open_in(sim_env(&disk, seed * 10 + round), DIR, options.clone()).unwrap();
            for n in 0..12 {
                let bytes = body(&mut choices, seed, round * 100 + n);
                appended.push((set.append(0, &bytes, Durability::Sync).unwrap(), bytes));
                if choices.below(6) == 0 {
                    let number = set.seal().unwrap();
                    set.reclaim(&[number]).unwrap();
                }
            }
            set.sync().unwrap();
            set.close().unwrap();
        }
        let trace = disk.stop_trace();
        let mut images = trace.images();
        loop {
            for style in CrashStyle::ALL {
                let image = images.image(style, choices.next());
                let context = || format!("seed {seed}, {}, {style:?}", trace.describe(images.crash_point()));
                let set = match SegmentSet::open_in(sim_env(&image, seed + 999), DIR, options.clone()) {
                    Ok(set) => set,
                    Err(error) => panic!("{}: {error}", context()),
                };
                for (pointer, bytes) in &appended {
                    match set.read(*pointer) {
                        Ok(entry) => {
                            // Numbers are used again where a crash took a segment before anybody was told of it.
                            assert!(
                                appended
                                    .iter()
                                    .any(|(other, bytes)| other == pointer && entry.body == *bytes),
                                "{}: {pointer:?}, wanted {} bytes",
                                context(),
                                bytes.len()
                            );
                            found += 1;
                        }
                        Err(Error::Gone { .. } | Error::NoEntry { .. }) => gone += 1,
                        Err(error) => panic!("{}: {error}", context()),
                    }
                }
                set.append(0, b"goes on", Durability::Sync).unwrap();
                drop(image.restart());
            }
            if !images.advance() {
                break;
            }
        }
    }
    assert!(found > 1000 && gone > 1000, "{found} found, {gone} gone");
}

/// While a full segment is sealed, the next one is filled: nothing in that is durable yet, and nobody is told so.
#[test]
fn the_durable_place_never_runs_ahead_of_what_a_cursor_shows() {
    let mut half_sealed = 0;
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let options = SetOptions { footer: None, ..options(seed) };
        let set = SegmentSet::open_in(sim_env(&disk, seed), DIR, options).unwrap();
        let mut choices = Choices::new(seed);
        for n in 0..150 {
            let bytes = vec![n as u8; 500 + choices.below(2000) as usize];
            let pointer = set.append(0, &bytes, Durability::Buffer).unwrap();
            assert_eq!(set.read(pointer).unwrap().body[..], bytes);
            let mut entries = set.iter();
            while entries.next_entry().unwrap().is_some() {}
            let stats = set.stats();
            assert_eq!(entries.place(), (stats.active, stats.durable_end), "seed {seed}, entry {n}");
            half_sealed += u32::from(set.segments().iter().filter(|info| !info.is_sealed).count() > 1);
            if choices.below(20) == 0 {
                set.sync().unwrap();
            }
        }
        set.close().unwrap();
    }
    assert!(half_sealed > 20, "{half_sealed}");
}
