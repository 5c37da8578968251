//! Power failures during everything: nothing acknowledged is lost, nothing removed comes back.
//!
//! A recorded workload (commands, checkpoints, compaction, reopening); at its operations power fails in every style, and
//! what the next open finds must be a state between the last one that was acknowledged as durable and the one that was
//! being made. The next generation goes on from one of the disks.

use kvs::{Error, KvReader, KvStore, Options, Snapshot};
use lsfs::io::{CrashStyle, SimDisk};

use crate::order::{check_snapshot, check_store, scan};
use crate::support::{Choices, budget, sim_env};
use crate::{Command, DIR, Model, buffered, contents, difference, key, options};

const KEYS: u64 = 24;

/// A call that has returned.
struct Call {
    name: String,
    /// Operations of the disk before it returned.
    end: usize,
    /// The state after it.
    model: Model,
    /// All of that state is durable.
    durable: bool,
}

struct Run<'a> {
    disk: &'a SimDisk,
    choices: Choices,
    store: Option<KvStore>,
    calls: Vec<Call>,
    snapshots: Vec<(Snapshot, Model)>,
}

impl Run<'_> {
    fn value(&mut self, tag: u64) -> Vec<u8> {
        let len =
            if self.choices.below(8) == 0 { self.choices.below(6_000) } else { self.choices.below(400) };
        let mut value = vec![tag as u8; len as usize];
        value.extend(tag.to_le_bytes());
        value
    }

    fn command(&mut self, tag: u64) -> Command {
        let n = self.choices.below(KEYS);
        match self.choices.below(10) {
            0..=4 => Command::Put(n, self.value(tag)),
            5..=7 => Command::Delete(n),
            8 => {
                let count = self.choices.below(8);
                let mut change = |at: u64| {
                    let value = (self.choices.below(3) > 0).then(|| self.value(tag * 10 + at));
                    (self.choices.below(KEYS), value)
                };
                Command::Batch((0..count).map(&mut change).collect())
            }
            _ => Command::Swap(n, true, Some(self.value(tag))),
        }
    }

    fn model(&self) -> &Model {
        &self.calls.last().unwrap().model
    }

    fn returned(&mut self, name: String, model: Model, durable: bool) {
        self.calls.push(Call { name, end: self.disk.trace_len(), model, durable });
    }

    fn step(&mut self, tag: u64) {
        let store = self.store.clone().unwrap();
        match self.choices.below(24) {
            20..=22 => {
                // From now on the background writes sorted runs.
                let model = self.model().clone();
                check_store(&store, &model, &mut self.choices, KEYS);
                self.returned("scan".to_string(), model, false);
            }
            23 => {
                // Held over what follows; it keeps the store open, so it is dropped before a reopen.
                let snapshot = store.snapshot().unwrap();
                self.snapshots.push((snapshot, self.model().clone()));
                self.returned("snapshot".to_string(), self.model().clone(), false);
            }
            choice @ 0..=14 => {
                let command = self.command(tag);
                let is_buffered = choice >= 12;
                let store = if is_buffered { buffered(&store) } else { store };
                command.run(&store, self.model()).unwrap();
                let model = command.model(self.model());
                // A command that changes nothing does not wait for those before it.
                let durable = !is_buffered && model != *self.model();
                self.returned(format!("{command:?}").chars().take(60).collect(), model, durable);
            }
            15 | 16 => {
                store.checkpoint().unwrap();
                self.returned("checkpoint".to_string(), self.model().clone(), true);
            }
            17 | 18 => {
                store.compact(|_| true).unwrap();
                self.returned("compact".to_string(), self.model().clone(), true);
            }
            _ => {
                for (snapshot, model) in std::mem::take(&mut self.snapshots) {
                    check_snapshot(&snapshot, &model, &mut self.choices, KEYS).unwrap();
                }
                store.close().unwrap();
                self.returned("close".to_string(), self.model().clone(), true);
                drop((store, self.store.take()));
                let seed = self.choices.next();
                self.store = Some(open(self.disk, seed).unwrap());
                self.returned("reopen".to_string(), self.model().clone(), true);
            }
        }
    }
}

fn open(disk: &SimDisk, seed: u64) -> kvs::Result<KvStore> {
    KvStore::open_with(DIR, Options { background: !seed.is_multiple_of(4), ..options(sim_env(disk, seed)) })
}

/// What is found without opening the store for writing: the same.
fn read_only(disk: &SimDisk, seed: u64) -> kvs::Result<Model> {
    let reader = match KvReader::open_with(DIR, options(sim_env(disk, seed))) {
        Err(Error::NotAStore { .. }) => return Ok(Model::new()),
        other => other?,
    };
    let mut found = Model::new();
    for n in 0..KEYS {
        if let Some(value) = reader.get_bytes(key(n))? {
            found.insert(key(n), value);
        }
    }
    let scanned = scan(&reader)?;
    assert!(scanned == found, "in order: {}", difference(&scanned, &found));
    Ok(found)
}

/// Runs a generation of the workload; what the disk holds at its start is `model`.
fn run(disk: &SimDisk, seed: u64, generation: u64, model: Model) -> Vec<Call> {
    let choices = Choices::new(seed * 1009 + generation);
    let start = Call { name: "nothing".to_string(), end: 0, model, durable: true };
    let mut run = Run { disk, choices, store: None, calls: vec![start], snapshots: Vec::new() };
    run.store = Some(open(disk, seed * 31 + generation).unwrap_or_else(|error| panic!("open: {error}")));
    run.returned("open".to_string(), run.model().clone(), true);
    for n in 0..40 {
        run.step(generation * 100 + n);
    }
    let (store, snapshots) = (run.store.take(), std::mem::take(&mut run.snapshots));
    let calls = std::mem::take(&mut run.calls);
    // The handle's close must not write any more.
    drop(disk.restart());
    drop((store, snapshots));
    calls
}

fn crash_everywhere(seed: u64, images_wanted: u64) -> u64 {
    let mut images = 0;
    let mut disk = SimDisk::new(seed);
    let mut model = Model::new();
    for generation in 0..4 {
        disk.start_trace();
        let trace_disk = disk.clone();
        let calls = run(&trace_disk, seed, generation, model.clone());
        let trace = disk.stop_trace();
        let mut choices = Choices::new(seed ^ (generation << 32));
        let next_start = choices.below(trace.len() as u64) as usize;
        let mut next = None;
        let mut crash_images = trace.images();
        loop {
            let point = crash_images.crash_point();
            for style in CrashStyle::ALL {
                // All points are met over the seeds; not all styles at each.
                if choices.below(6) > 0 {
                    continue;
                }
                let image = crash_images.image(style, choices.next());
                let original = image.power_fail(CrashStyle::EverythingUnsynced, 0);
                let last = calls.iter().rposition(|call| call.end <= point).unwrap();
                let context = || {
                    let under_way = calls.get(last + 1).map_or("the end", |call| &call.name);
                    let at = trace.describe(point);
                    format!("seed {seed}, generation {generation}, {at}, {style:?}, during {under_way}")
                };
                let read = read_only(&image, choices.next());
                let store =
                    open(&image, choices.next()).unwrap_or_else(|error| panic!("{}: {error}", context()));
                let found = contents(&store, KEYS).unwrap_or_else(|error| panic!("{}: {error}", context()));
                let first = calls[..=last].iter().rposition(|call| call.durable).unwrap();
                let admitted = &calls[first..calls.len().min(last + 2)];
                assert!(
                    admitted.iter().any(|call| call.model == found),
                    "{}: {}",
                    context(),
                    difference(&found, &calls[last].model)
                );
                assert_eq!(store.stats().keys, found.len() as u64, "{}", context());
                let read = read.unwrap_or_else(|error| panic!("{}, without a lock: {error}", context()));
                assert!(read == found, "{}, without a lock: {}", context(), difference(&read, &found));
                if images % 3 == 0 {
                    check_store(&store, &found, &mut choices, KEYS);
                }
                // It goes on, and what the log alone says is the same.
                store.put("new", "value").unwrap();
                if images % 4 == 0 {
                    store.close().unwrap();
                    drop(store);
                    let options = Options { repair: true, ..options(sim_env(&image, choices.next())) };
                    let store = KvStore::open_with(DIR, options).unwrap();
                    let again = contents(&store, KEYS).unwrap();
                    assert!(again == found, "{}, rebuilt: {}", context(), difference(&again, &found));
                    assert_eq!(store.get_bytes("new").unwrap(), Some(b"value".to_vec()));
                }
                drop(image.restart());
                images += 1;
                if point >= next_start && next.is_none() && choices.below(3) == 0 {
                    next = Some((original, found));
                }
            }
            if images >= images_wanted || !crash_images.advance() {
                break;
            }
        }
        let Some((image, found)) = next else { break };
        (disk, model) = (image, found);
    }
    images
}

#[test]
fn no_crash_loses_or_revives_a_key() {
    let wanted = budget("KVS_CRASH_IMAGES", 6_000);
    let (mut images, mut seed) = (0, budget("KVS_CRASH_SEED", 1));
    while images < wanted {
        images += crash_everywhere(seed, wanted - images);
        seed += 1;
    }
    eprintln!("{images} crash images, seeds up to {seed}");
}
