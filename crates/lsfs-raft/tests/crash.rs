//! Power failures during everything a Raft log does.
//!
//! A seeded workload of terms, votes, appends, replacements, deletions, purges and snapshots runs on the simulated disk
//! and is recorded. For every operation of the recording the disk is made that a machine would find if power failed
//! during it; the log is opened there and compared with what had been acknowledged. What was called in order is there in
//! order: a vote only with every entry appended before it.
//!
//! The long run: `LSFS_RAFT_CRASH_IMAGES=1000000 cargo test --release -p lsfs-raft --test crash`. A failure prints its seed;
//! `LSFS_RAFT_CRASH_SEED=n` starts there.

mod support;

use lsfs::io::{CrashStyle, SimDisk, Trace};
use lsfs_raft::{EntryId, NewEntry, RaftLog, SnapshotMeta};
use support::{Choices, budget, sim_env, small_options};

const DIR: &str = "/raft";

/// What a log holds: of each entry its term and its tag.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    first: u64,
    entries: Vec<(u64, u64)>,
    /// Of these entries, so many are acknowledged.
    durable: u64,
    purged: Option<EntryId>,
    term: u64,
    vote: Option<u64>,
    commit: Option<u64>,
    snapshot: Option<(EntryId, u64)>,
}

impl Model {
    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn id_of(&self, index: u64) -> EntryId {
        EntryId { index, term: self.entries[(index - self.first) as usize].0, leader: 1 }
    }

    fn all_durable(&mut self) {
        self.durable = self.next();
    }

    /// Whether `found` may be what is left of this after a crash: all that is acknowledged, and a beginning of the rest.
    /// The commit index may be an older one.
    fn admits(&self, found: &Model) -> bool {
        found.first == self.first
            && (found.purged, found.term, found.vote, found.snapshot)
                == (self.purged, self.term, self.vote, self.snapshot)
            && found.commit <= self.commit
            && (self.durable..=self.next()).contains(&found.next())
            && found.entries[..] == self.entries[..found.entries.len()]
    }
}

/// A call of the workload: which operations of the recording belong to it, and what held before and after.
struct Call {
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
    log: RaftLog,
    tag: u64,
    entry_term: u64,
}

fn command(tag: u64) -> Vec<u8> {
    let mut bytes = tag.to_le_bytes().to_vec();
    bytes.extend((0..tag * 37 % 700).map(|at| (at + tag) as u8));
    bytes
}

impl Run<'_> {
    fn call(&mut self, name: String, after: Model, act: impl FnOnce(&RaftLog)) {
        let start = self.disk.trace_len();
        act(&self.log);
        let end = self.disk.trace_len();
        let before = std::mem::replace(&mut self.model, after.clone());
        self.calls.push(Call { name, start, end, before, after });
    }

    /// New entries, and the model with them at the end.
    fn more(&mut self, count: u64) -> (Vec<(u64, Vec<u8>)>, Model) {
        let mut after = self.model.clone();
        let mut entries = Vec::new();
        for _ in 0..count {
            self.tag += 1;
            self.entry_term += u64::from(self.choices.below(6) == 0);
            entries.push((self.entry_term, command(self.tag)));
            after.entries.push((self.entry_term, self.tag));
        }
        (entries, after)
    }

    fn step(&mut self) {
        let mut after = self.model.clone();
        let held = after.entries.len() as u64;
        let pick = self.choices.below(held.max(1));
        match self.choices.below(16) {
            0..=3 => {
                let count = 1 + self.choices.below(9);
                let (entries, mut after) = self.more(count);
                after.all_durable();
                let given: Vec<_> = entries.iter().map(|(term, c)| NewEntry::command(*term, 1, c)).collect();
                self.call(format!("append {count}"), after, |log| {
                    log.append_all(&given).unwrap();
                });
            }
            4..=6 => {
                let (entries, after) = self.more(1);
                let given = NewEntry::command(entries[0].0, 1, &entries[0].1);
                self.call("append later".to_string(), after, |log| {
                    drop(log.append_async(&given).unwrap());
                });
            }
            7 | 8 => {
                after.term += 1 + self.choices.below(2);
                after.vote = None;
                after.all_durable();
                let term = after.term;
                self.call(format!("term {term}"), after, |log| log.set_term(term).unwrap());
            }
            9 if self.model.vote.is_none() => {
                after.vote = Some(self.choices.below(3));
                after.all_durable();
                let candidate = after.vote.unwrap();
                self.call(format!("vote {candidate}"), after, |log| log.vote_for(candidate).unwrap());
            }
            10 | 11 if held > 0 => {
                self.tag += 1;
                let (index, bytes) = (after.first + pick, command(self.tag));
                after.entries[pick as usize] = (self.entry_term, self.tag);
                after.all_durable();
                let given = NewEntry::command(self.entry_term, 1, &bytes);
                self.call(format!("replace {index}"), after, |log| log.replace(index, &given).unwrap());
            }
            12 if held > 0 && self.model.commit.is_none_or(|commit| after.first + pick > commit) => {
                let index = after.first + pick;
                after.entries.truncate(pick as usize);
                after.all_durable();
                self.call(format!("delete from {index}"), after, |log| log.delete_all_from(index).unwrap());
            }
            13 if held > 0 => {
                let index = after.first + pick;
                after.commit = after.commit.max(Some(index));
                self.call(format!("commit {index}"), after, |log| {
                    log.set_commit_index(index).unwrap();
                    log.set_applied_index(index).unwrap();
                });
            }
            14 if held > 0 && self.model.commit >= Some(after.first + pick) => {
                let index = after.first + pick;
                after.purged = Some(after.id_of(index));
                after.entries.drain(..=pick as usize);
                after.first = index + 1;
                after.all_durable();
                self.call(format!("purge {index}"), after, |log| log.purge(index).unwrap());
            }
            15 => {
                // A little behind the end at most, as from a leader that is ahead.
                let index = after.next() + self.choices.below(4);
                let last = EntryId { index, term: self.entry_term, leader: 1 };
                self.tag += 1;
                let (meta, tag) = (SnapshotMeta { last: Some(last), about: vec![1] }, self.tag);
                (after.purged, after.snapshot, after.commit) = (Some(last), Some((last, tag)), Some(index));
                (after.first, after.entries) = (index + 1, Vec::new());
                after.all_durable();
                self.call(format!("snapshot {index}"), after, |log| {
                    log.install_snapshot(meta, &command(tag)).unwrap();
                });
            }
            _ => {
                after.all_durable();
                self.call("sync".to_string(), after, |log| log.sync().unwrap());
            }
        }
    }
}

fn run(disk: &SimDisk, seed: u64, generation: u64, model: Model) -> (Vec<Call>, Trace) {
    disk.start_trace();
    let log = RaftLog::open_in(sim_env(disk, seed * 31 + generation), DIR, small_options(1)).unwrap();
    let end = disk.trace_len();
    let opened =
        Call { name: "open".to_string(), start: 0, end, before: model.clone(), after: model.clone() };
    let choices = Choices::new(seed * 1009 + generation);
    let (tag, entry_term) = (generation * 1000, generation * 10 + 1);
    let mut run = Run { disk, choices, calls: vec![opened], model, log, tag, entry_term };
    for _ in 0..14 {
        run.step();
    }
    let trace = disk.stop_trace();
    // What the log still wants to write goes to a disk that nobody looks at.
    drop(disk.restart());
    (run.calls, trace)
}

/// Opens what a crash left and reads all of it.
fn recover(image: &SimDisk, seed: u64) -> Result<Model, String> {
    let opened = RaftLog::open_in(sim_env(image, seed), DIR, small_options(1));
    let log = opened.map_err(|error| format!("open: {error}"))?;
    let mut model = read(&log).map_err(|error| format!("read: {error}"))?;
    let lost = log.lost().map_err(|error| error.to_string())?;
    if !lost.is_empty() {
        return Err(format!("lost {lost:?}"));
    }
    // Terms without reading are those of the entries.
    for (&(term, _), index) in model.entries.iter().zip(model.first..) {
        let known = log.id_of(index).map_err(|error| error.to_string())?;
        if known.map(|id| id.term) != Some(term) {
            return Err(format!("entry {index} is of term {term}, its id is {known:?}"));
        }
    }
    model.all_durable();
    drop(image.restart());
    Ok(model)
}

fn read(log: &RaftLog) -> lsfs_raft::Result<Model> {
    let mut entries = Vec::new();
    let mut reading = log.entries(..)?;
    while let Some(entry) = reading.next_entry()? {
        let tag = u64::from_le_bytes(entry.command[..8].try_into().unwrap());
        assert_eq!(entry.command, command(tag), "entry {}", entry.index);
        entries.push((entry.term, tag));
    }
    let snapshot = match log.snapshot()? {
        None => None,
        Some(meta) => {
            let bytes = log.read_snapshot()?.chunk(0, 1 << 20)?.bytes;
            let tag = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert_eq!(bytes, command(tag), "snapshot {meta:?}");
            Some((meta.last.unwrap(), tag))
        }
    };
    let first = log.next_index()? - entries.len() as u64;
    let (purged, term, vote) = (log.purged_id()?, log.term()?, log.voted_for()?);
    Ok(Model { first, entries, durable: 0, purged, term, vote, commit: log.commit_index()?, snapshot })
}

fn judge(calls: &[Call], point: usize, found: &Model) -> Result<(), String> {
    let under_way = calls.iter().find(|call| (call.start..call.end).contains(&point));
    let Some(call) = under_way else {
        let done = calls.iter().rfind(|call| call.end <= point).expect("the open is a call");
        return match done.after.admits(found) {
            true => Ok(()),
            false => Err(format!("after {}: found {found:?}\nadmitted {:?}", done.name, done.after)),
        };
    };
    // During a call: what held before, perhaps with entries on their way, or what holds after it.
    let mut partly = call.after.clone();
    partly.durable = call.before.durable.min(partly.next());
    let same_state = (partly.term, partly.vote, partly.purged, partly.snapshot)
        == (call.before.term, call.before.vote, call.before.purged, call.before.snapshot);
    let grows = call.after.entries.starts_with(&call.before.entries) && call.after.first == call.before.first;
    if call.before.admits(found) || call.after.admits(found) || (same_state && grows && partly.admits(found))
    {
        return Ok(());
    }
    Err(format!("during {}: found {found:?}\nbefore {:?}\nafter {:?}", call.name, call.before, call.after))
}

#[test]
fn no_crash_loses_or_reorders_what_was_acknowledged() {
    let wanted = budget("LSFS_RAFT_CRASH_IMAGES", 12_000);
    let first_seed = budget("LSFS_RAFT_CRASH_SEED", 1);
    let (mut images, mut seed) = (0, first_seed);
    while images < wanted {
        images += crash_everywhere(seed);
        seed += 1;
    }
    eprintln!("{images} crash images, seeds {first_seed}..{seed}");
}

fn crash_everywhere(seed: u64) -> u64 {
    let mut images = 0;
    let mut disk = SimDisk::new(seed);
    let mut model = Model {
        first: 1,
        entries: Vec::new(),
        durable: 1,
        purged: None,
        term: 0,
        vote: None,
        commit: None,
        snapshot: None,
    };
    for generation in 0..4 {
        let (calls, trace) = run(&disk, seed, generation, model.clone());
        let mut crash_images = trace.images();
        let mut choices = Choices::new(seed ^ (generation << 32));
        let next_start = choices.below(trace.len() as u64 + 1) as usize;
        let mut next = None;
        loop {
            let point = crash_images.crash_point();
            // Every point, in styles drawn anew for each.
            let count = if crash_images.unsynced() == 0 { 1 } else { 3 };
            for _ in 0..count {
                let style = CrashStyle::ALL[choices.below(CrashStyle::ALL.len() as u64) as usize];
                let image = crash_images.image(style, choices.next());
                let original = image.power_fail(CrashStyle::EverythingUnsynced, 0);
                let context = |problem: String| {
                    let at = trace.describe(point);
                    let calls: Vec<_> = calls
                        .iter()
                        .map(|call| format!("{}..{} {}", call.start, call.end, call.name))
                        .collect();
                    let calls = calls.join("\n");
                    format!("seed {seed}, generation {generation}, {at}, style {style:?}: {problem}\n{calls}")
                };
                let found = recover(&image, choices.next());
                let found = found.unwrap_or_else(|problem| panic!("{}", context(problem)));
                judge(&calls, point, &found).unwrap_or_else(|problem| panic!("{}", context(problem)));
                images += 1;
                if point >= next_start && next.is_none() && choices.below(3) == 0 {
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
