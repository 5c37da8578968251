//! A seeded workload of everything a Raft log does, and what must be found of it afterwards.
//!
//! Each call is noted with what the log held before and after it, so that a test can stop the world anywhere.

use std::sync::{Arc, Mutex};

use lsfs::io::SimDisk;
use lsfs_raft::{ClusterConfig, ClusterNode, EntryId, Error, NewEntry, RaftLog, Result, SnapshotMeta};

use super::Choices;

/// What a log holds: of each entry its term and its tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) first: u64,
    pub(crate) entries: Vec<(u64, u64)>,
    /// Entries below this index are acknowledged.
    pub(crate) durable: u64,
    pub(crate) state: State,
    pub(crate) commit: Option<u64>,
}

/// What is durable as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) purged: Option<EntryId>,
    pub(crate) term: u64,
    pub(crate) vote: Option<u64>,
    pub(crate) snapshot: Option<(EntryId, u64)>,
    /// The uri, why the node is broken, the nodes of its cluster.
    pub(crate) uri: String,
    pub(crate) broken: Option<String>,
    pub(crate) nodes: usize,
}

impl Model {
    pub(crate) fn empty() -> Model {
        Model { first: 1, entries: Vec::new(), durable: 1, state: State::default(), commit: None }
    }

    pub(crate) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn id_of(&self, index: u64) -> EntryId {
        EntryId { index, term: self.entries[(index - self.first) as usize].0, leader: 1 }
    }

    pub(crate) fn all_durable(&mut self) {
        self.durable = self.next();
    }

    /// Whether `found` may be what is left of this after a crash: all that is acknowledged, and a beginning of the rest.
    /// The commit index may be an older one.
    fn admits(&self, found: &Model) -> bool {
        found.first == self.first
            && found.state == self.state
            && found.commit <= self.commit
            && (self.durable..=self.next()).contains(&found.next())
            && found.entries[..] == self.entries[..found.entries.len()]
    }
}

/// A call of the workload: which operations of the disk belong to it, and what held before and after.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) before: Model,
    pub(crate) after: Model,
}

impl Call {
    /// Whether `found` may be left by a world that stopped during the call: what held before, perhaps with entries on
    /// their way, or what holds after it.
    pub(crate) fn admits_during(&self, found: &Model) -> std::result::Result<(), String> {
        let (before, after) = (&self.before, &self.after);
        let mut partly = after.clone();
        partly.durable = before.durable.min(partly.next());
        let grows = after.entries.starts_with(&before.entries) && after.first == before.first;
        let is_partly = partly.state == before.state && grows && partly.admits(found);
        if before.admits(found) || after.admits(found) || is_partly {
            return Ok(());
        }
        Err(format!("during {}: found {found:?}\nbefore {before:?}\nafter {after:?}", self.name))
    }

    /// Whether `found` may be left by a world that stopped after the call.
    pub(crate) fn admits_behind(&self, found: &Model) -> std::result::Result<(), String> {
        match self.after.admits(found) {
            true => Ok(()),
            false => Err(format!("after {}: found {found:?}\nadmitted {:?}", self.name, self.after)),
        }
    }
}

/// The command with a tag: the tag and bytes that follow from it.
pub(crate) fn command(tag: u64) -> Vec<u8> {
    let mut bytes = tag.to_le_bytes().to_vec();
    bytes.extend((0..tag.wrapping_mul(37) % 700).map(|at| at.wrapping_add(tag) as u8));
    bytes
}

/// The tag of a command, if it is one.
fn tag_of(bytes: &[u8]) -> Option<u64> {
    let tag = u64::from_le_bytes(*bytes.first_chunk()?);
    (bytes == command(tag)).then_some(tag)
}

/// What the callbacks of `append_then` were told: indexes that are durable.
pub(crate) type Told = Arc<Mutex<Vec<u64>>>;

/// A workload on an open log.
pub(crate) struct Run<'a> {
    disk: &'a SimDisk,
    choices: Choices,
    pub(crate) calls: Vec<Call>,
    pub(crate) model: Model,
    pub(crate) log: RaftLog,
    pub(crate) told: Told,
    tag: u64,
    entry_term: u64,
}

impl<'a> Run<'a> {
    /// Goes on with a log that holds `model`; generations have commands and terms of their own.
    pub(crate) fn new(disk: &'a SimDisk, log: RaftLog, model: Model, seed: u64, generation: u64) -> Run<'a> {
        let choices = Choices::new(seed * 1009 + generation);
        let (tag, entry_term) = (generation * 1000, generation * 10 + 1);
        Run { disk, choices, calls: Vec::new(), model, log, told: Told::default(), tag, entry_term }
    }

    /// Makes a call and notes it; what it does is in `after` if it succeeds.
    fn call(
        &mut self,
        name: String,
        mut after: Model,
        act: impl FnOnce(&RaftLog, bool) -> Result<()>,
    ) -> Result<()> {
        let start = self.disk.trace_len();
        let acted = act(&self.log, self.choices.below(2) == 0);
        let end = self.disk.trace_len();
        after.durable = after.durable.min(after.next());
        self.calls.push(Call { name, start, end, before: self.model.clone(), after: after.clone() });
        acted?;
        self.model = after;
        Ok(())
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

    /// Entries from here on are no longer what callbacks spoke of.
    fn forget_told(&self, from: u64) {
        self.told.lock().unwrap().retain(|&index| index < from);
    }

    /// One call, chosen by the seed. Where there are a blocking and an async version, either.
    pub(crate) fn step(&mut self) -> Result<()> {
        let mut after = self.model.clone();
        let held = after.entries.len() as u64;
        let pick = self.choices.below(held.max(1));
        let place = after.first + pick;
        match self.choices.below(22) {
            0..=2 => {
                let count = 1 + self.choices.below(9);
                let (entries, mut after) = self.more(count);
                after.all_durable();
                let given: Vec<_> = entries.iter().map(|(term, c)| NewEntry::command(*term, 1, c)).collect();
                let next = self.model.next();
                self.call(format!("append {count}"), after, |log, one| match one && count == 1 {
                    true => log.append(&given[0]).map(drop),
                    false => log.append_at(next, &given),
                })
            }
            3..=5 => {
                let (entries, after) = self.more(1);
                let given = NewEntry::command(entries[0].0, 1, &entries[0].1);
                self.call("append later".to_string(), after, |log, _| log.append_async(&given).map(drop))
            }
            6 => {
                let (entries, after) = self.more(1);
                let given = NewEntry::command(entries[0].0, 1, &entries[0].1);
                let (index, told) = (self.model.next(), Arc::clone(&self.told));
                self.call("append then".to_string(), after, |log, _| {
                    log.append_then(&[given], move |outcome| {
                        if outcome.is_ok() {
                            told.lock().unwrap().push(index);
                        }
                    })
                })
            }
            7 | 8 => {
                after.state.term += 1 + self.choices.below(2);
                after.state.vote = None;
                after.all_durable();
                let (term, next) = (after.state.term, after.state.term == self.model.state.term + 1);
                self.call(format!("term {term}"), after, |log, waits| match (next, waits) {
                    (true, true) => log.increment_term().map(drop),
                    (true, false) => log.increment_term_async()?.wait().map(drop),
                    (false, true) => log.set_term(term),
                    (false, false) => log.set_term_async(term)?.wait(),
                })
            }
            9 if self.model.state.vote.is_none() => {
                let candidate = self.choices.below(3);
                after.state.vote = Some(candidate);
                after.all_durable();
                self.call(format!("vote {candidate}"), after, |log, waits| match waits {
                    true => log.vote_for(candidate),
                    false => log.vote_for_async(candidate)?.wait(),
                })
            }
            10 | 11 if held > 0 => {
                self.tag += 1;
                let bytes = command(self.tag);
                after.entries[pick as usize] = (self.entry_term, self.tag);
                after.all_durable();
                let given = NewEntry::command(self.entry_term, 1, &bytes);
                let inserts = self.choices.below(2) == 0;
                self.call(format!("replace {place}"), after, |log, waits| match (inserts, waits) {
                    (false, true) => log.replace(place, &given),
                    (false, false) => log.replace_async(place, &given)?.wait(),
                    (true, true) => log.insert(place, &given),
                    (true, false) => log.insert_async(place, &given)?.wait(),
                })
            }
            12 if held > 0 && self.model.commit.is_none_or(|commit| place > commit) => {
                after.entries.truncate(pick as usize);
                after.all_durable();
                let deleted = self.call(format!("delete from {place}"), after, |log, waits| match waits {
                    true => log.delete_all_from(place),
                    false => log.delete_all_from_async(place)?.wait(),
                });
                self.forget_told(place);
                deleted
            }
            13 | 14 if held > 0 => {
                after.commit = after.commit.max(Some(place));
                self.call(format!("commit {place}"), after, |log, _| {
                    log.set_commit_index(place)?;
                    log.set_applied_index(place)
                })
            }
            15 if held > 0 && self.model.commit >= Some(place) => {
                after.state.purged = Some(after.id_of(place));
                after.entries.drain(..=pick as usize);
                after.first = place + 1;
                after.all_durable();
                self.call(format!("purge {place}"), after, |log, waits| match waits {
                    true => log.purge(place),
                    false => log.purge_async(place)?.wait(),
                })
            }
            16 => {
                // A little behind the end at most, as from a leader that is ahead.
                let index = after.next() + self.choices.below(4);
                let last = EntryId { index, term: self.entry_term, leader: 1 };
                self.tag += 1;
                let (meta, bytes) = (SnapshotMeta { last: Some(last), about: vec![1] }, command(self.tag));
                (after.state.purged, after.state.snapshot) = (Some(last), Some((last, self.tag)));
                (after.commit, after.first, after.entries) = (Some(index), index + 1, Vec::new());
                after.all_durable();
                let comes_whole = self.choices.below(2) == 0;
                let name = format!("snapshot {index}");
                let installed = self.call(name, after, |log, waits| match (comes_whole, waits) {
                    (true, true) => log.install_snapshot(meta, &bytes),
                    (true, false) => log.install_snapshot_async(meta, bytes)?.wait(),
                    (false, waits) => receive(log, &meta, &bytes, waits),
                });
                self.forget_told(0);
                installed
            }
            17 if held > 0 && self.model.commit >= Some(place) => {
                let last = after.id_of(place);
                if after.state.snapshot.is_some_and(|(former, _)| former.index > place) {
                    return Ok(());
                }
                self.tag += 1;
                let (meta, bytes) = (SnapshotMeta { last: Some(last), about: Vec::new() }, command(self.tag));
                after.state.snapshot = Some((last, self.tag));
                after.all_durable();
                self.call(format!("save a snapshot at {place}"), after, |log, waits| match waits {
                    true => {
                        let mut writer = log.begin_snapshot(meta)?;
                        writer.write_chunk(0, &bytes)?;
                        writer.save()
                    }
                    false => log.build_snapshot_async(meta, move |out| out.write_all(&bytes))?.wait(),
                })
            }
            18 => {
                let uri = format!("tcp://{}", self.choices.below(100));
                after.state.uri.clone_from(&uri);
                after.all_durable();
                self.call(uri.clone(), after, |log, _| log.set_uri(&uri))
            }
            19 => {
                let reason = (self.choices.below(2) == 0).then(|| "a test".to_string());
                after.state.broken.clone_from(&reason);
                after.all_durable();
                self.call(format!("broken {reason:?}"), after, |log, _| match &reason {
                    Some(reason) => log.set_broken(reason),
                    None => log.set_fixed(),
                })
            }
            20 => {
                let count = self.choices.below(5);
                after.state.nodes = count as usize;
                after.all_durable();
                let node = |id| ClusterNode { id, uri: format!("tcp://{id}"), is_voter: true };
                let config =
                    ClusterConfig { nodes: (0..count).map(node).collect(), ..ClusterConfig::default() };
                self.call(format!("{count} nodes"), after, |log, waits| match waits {
                    true => log.save_cluster_config(config),
                    false => log.save_cluster_config_async(config)?.wait(),
                })
            }
            _ => {
                after.all_durable();
                self.call("sync".to_string(), after, |log, waits| match waits {
                    true => log.sync(),
                    false => log.sync_async()?.wait(),
                })
            }
        }
    }
}

/// Takes a snapshot in two pieces, with an interruption between them.
fn receive(log: &RaftLog, meta: &SnapshotMeta, bytes: &[u8], waits: bool) -> Result<()> {
    let mut writer = log.receive_snapshot(meta.clone())?;
    let middle = bytes.len() / 2;
    writer.write_chunk(0, &bytes[..middle])?;
    writer.checkpoint()?;
    drop(writer);
    let mut writer = match waits {
        true => log.receive_snapshot(meta.clone())?,
        false => log.receive_snapshot_async(meta.clone())?.wait()?,
    };
    let at = writer.position();
    assert_eq!(at as usize, middle, "it goes on at its last mark");
    let rest = &bytes[middle..];
    match waits {
        true => {
            writer.write_chunk(at, rest)?;
            writer.install()
        }
        false => {
            let (writer, written) = writer.write_chunk_async(at, rest.to_vec()).wait();
            written?;
            writer.install_async().wait()
        }
    }
}

/// Reads all that a log holds and checks that it agrees with itself.
pub(crate) fn read(log: &RaftLog) -> std::result::Result<Model, String> {
    let model = read_all(log).map_err(|error| format!("read: {error}"))?;
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
    Ok(model)
}

fn read_all(log: &RaftLog) -> Result<Model> {
    let mut entries = Vec::new();
    let mut reading = log.entries(..)?;
    while let Some(entry) = reading.next_entry()? {
        let tag = tag_of(&entry.command).unwrap_or_else(|| panic!("nobody wrote {entry:?}"));
        entries.push((entry.term, tag));
    }
    let snapshot = match log.snapshot()? {
        None => None,
        Some(meta) => {
            let bytes = log.read_snapshot()?.chunk(0, 1 << 20)?.bytes;
            let tag = tag_of(&bytes).unwrap_or_else(|| panic!("nobody wrote snapshot {meta:?}"));
            Some((meta.last.unwrap(), tag))
        }
    };
    let first = log.next_index()? - entries.len() as u64;
    let state = State {
        purged: log.purged_id()?,
        term: log.term()?,
        vote: log.voted_for()?,
        snapshot,
        uri: log.uri()?,
        broken: log.broken()?,
        nodes: log.cluster_config()?.map_or(0, |config| config.nodes.len()),
    };
    Ok(Model { first, entries, durable: first, state, commit: log.commit_index()? })
}

/// Whether an error means that the log is stopped until it is opened again.
pub(crate) fn is_stopped(log: &RaftLog) -> bool {
    log.sync().is_err()
}

/// Calls that write, all of which must be refused by a log that was stopped by a failure.
pub(crate) fn refused_calls(log: &RaftLog) -> Vec<(&'static str, Result<(), Error>)> {
    let entry = NewEntry::command(1 << 40, 1, b"refused");
    let next = log.next_index().unwrap();
    let last = EntryId { index: next + 9, term: 1 << 40, leader: 1 };
    let meta = SnapshotMeta { last: Some(last), about: Vec::new() };
    let wait =
        |deferred: Result<lsfs_raft::Deferred<Result<()>>>| deferred.and_then(lsfs_raft::Deferred::wait);
    vec![
        ("append", log.append(&entry).map(drop)),
        ("append all", log.append_all(&[entry, entry]).map(drop)),
        ("append at", log.append_at(next, &[entry])),
        ("append async", log.append_async(&entry).and_then(lsfs_raft::Appending::wait).map(drop)),
        ("append then", log.append_then(&[entry], |outcome| assert!(outcome.is_err()))),
        ("insert", log.insert(next, &entry)),
        ("insert async", wait(log.insert_async(next, &entry))),
        ("replace", log.replace(next.saturating_sub(1), &entry)),
        ("replace async", wait(log.replace_async(next.saturating_sub(1), &entry))),
        ("delete", log.delete_all_from(1)),
        ("delete async", wait(log.delete_all_from_async(1))),
        ("term", log.set_term(1 << 50)),
        ("term async", wait(log.set_term_async(1 << 50))),
        ("increment", log.increment_term().map(drop)),
        ("config", log.save_cluster_config(ClusterConfig::default())),
        ("broken", log.set_broken("refused")),
        ("fixed", log.set_fixed()),
        ("sync", log.sync()),
        ("sync async", wait(log.sync_async())),
        ("snapshot", log.install_snapshot(meta.clone(), b"refused")),
        ("snapshot async", wait(log.install_snapshot_async(meta.clone(), b"refused".to_vec()))),
        ("receive", log.receive_snapshot(meta.clone()).map(drop)),
        ("build", wait(log.build_snapshot_async(meta, |out| out.write_all(b"refused")))),
    ]
}
