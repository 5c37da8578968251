//! The whole API against the simplest thing that behaves the same, with reopening as an operation.
//!
//! More cases: `PROPTEST_CASES=5000 cargo test --release -p lsfs-raft --test models`.

mod support;

use lsfs::io::SimDisk;
use lsfs_raft::{
    ClusterConfig, ClusterNode, EntryId, EntryKind, Error, LogOptions, NewEntry, RaftLog, SnapshotMeta,
};
use proptest::prelude::*;
use support::{sim_env, small_options};

const DIR: &str = "/raft";

/// One call. `at` picks an index around those that there are.
#[derive(Clone, Debug)]
enum Op {
    Append { new_term: bool, len: u16, kind: u8 },
    AppendAll { count: u8, new_term_every: u8 },
    AppendAt { at: u16 },
    AppendAsync { count: u8 },
    Replace { at: u16, len: u16 },
    Insert { at: u16 },
    DeleteFrom { at: u16 },
    Commit { at: u16 },
    Applied { at: u16 },
    Purge { at: u16 },
    Install { at: u16, other_term: bool, len: u16 },
    Save { at: u16, len: u16 },
    SetTerm { by: u8 },
    IncrementTerm,
    Vote { candidate: u8 },
    Broken { is_broken: bool },
    Config { nodes: u8, pending: bool },
    Uri { uri: u8 },
    Sync,
    Reopen,
    Drop,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (any::<bool>(), 0u16..1500, 0u8..3)
            .prop_map(|(new_term, len, kind)| Op::Append { new_term, len, kind }),
        4 => (0u8..20, 1u8..12)
            .prop_map(|(count, new_term_every)| Op::AppendAll { count, new_term_every }),
        1 => any::<u16>().prop_map(|at| Op::AppendAt { at }),
        2 => (1u8..9).prop_map(|count| Op::AppendAsync { count }),
        3 => (any::<u16>(), 0u16..900).prop_map(|(at, len)| Op::Replace { at, len }),
        2 => any::<u16>().prop_map(|at| Op::Insert { at }),
        3 => any::<u16>().prop_map(|at| Op::DeleteFrom { at }),
        2 => any::<u16>().prop_map(|at| Op::Commit { at }),
        2 => any::<u16>().prop_map(|at| Op::Applied { at }),
        2 => any::<u16>().prop_map(|at| Op::Purge { at }),
        1 => (any::<u16>(), any::<bool>(), 0u16..3000)
            .prop_map(|(at, other_term, len)| Op::Install { at, other_term, len }),
        1 => (any::<u16>(), 0u16..3000).prop_map(|(at, len)| Op::Save { at, len }),
        1 => (0u8..3).prop_map(|by| Op::SetTerm { by }),
        1 => Just(Op::IncrementTerm),
        1 => (0u8..3).prop_map(|candidate| Op::Vote { candidate }),
        1 => any::<bool>().prop_map(|is_broken| Op::Broken { is_broken }),
        1 => (0u8..4, any::<bool>()).prop_map(|(nodes, pending)| Op::Config { nodes, pending }),
        1 => any::<u8>().prop_map(|uri| Op::Uri { uri }),
        1 => Just(Op::Sync),
        3 => Just(Op::Reopen),
        1 => Just(Op::Drop),
    ]
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored {
    term: u64,
    leader: u64,
    serial: u64,
    kind: EntryKind,
    command: Vec<u8>,
}

impl Stored {
    fn new(term: u64, len: u16, tag: u64) -> Stored {
        let command = (0..len).map(|at| (u64::from(at) * 3 + tag) as u8).collect();
        Stored { term, leader: term % 3, serial: tag, kind: EntryKind::Command, command }
    }

    fn entry(&self) -> NewEntry<'_> {
        let Stored { term, leader, serial, kind, command } = self;
        NewEntry { term: *term, leader: *leader, serial: *serial, kind: *kind, command }
    }
}

/// The reference: everything in vectors and options.
#[derive(Clone, Debug)]
struct Model {
    /// Index of the first of `entries`.
    first: u64,
    entries: Vec<Stored>,
    purged: Option<EntryId>,
    /// The term of entries to come.
    entry_term: u64,
    term: u64,
    vote: Option<u64>,
    commit: Option<u64>,
    applied: Option<u64>,
    snapshot: Option<(SnapshotMeta, Vec<u8>)>,
    broken: bool,
    config: Option<ClusterConfig>,
    uri: String,
    tag: u64,
}

impl Model {
    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// An index from a little before the first entry to a little behind the last.
    fn pick(&self, at: u16) -> u64 {
        let low = self.first.saturating_sub(2);
        low + u64::from(at) % (self.next() + 3 - low)
    }

    fn check(&self, index: u64) -> Result<(), String> {
        match index {
            _ if index < self.first => Err(format!("BelowFirst {index} {}", self.first)),
            _ if index >= self.next() => Err(format!("BeyondEnd {index} {}", self.next())),
            _ => Ok(()),
        }
    }

    fn id_of(&self, index: u64) -> Option<EntryId> {
        let at = index.checked_sub(self.first)? as usize;
        let entry = self.entries.get(at)?;
        Some(EntryId { index, term: entry.term, leader: entry.leader })
    }

    fn new_entry(&mut self, len: u16) -> Stored {
        self.tag += 1;
        Stored::new(self.entry_term, len, self.tag)
    }

    fn replace(&mut self, index: u64, entry: Stored) {
        let at = (index - self.first) as usize;
        self.entries[at] = entry;
    }

    fn purge(&mut self, last: EntryId) {
        if last.index < self.first {
            return;
        }
        let follows = self.id_of(last.index).is_some_and(|id| id.term == last.term);
        match follows {
            true => drop(self.entries.drain(..=(last.index - self.first) as usize)),
            false => self.entries.clear(),
        }
        self.first = last.index + 1;
        self.purged = Some(last);
    }
}

/// Which error, with its numbers; the words are tested elsewhere.
fn short(error: Error) -> String {
    match error {
        Error::BelowFirst { index, first } => format!("BelowFirst {index} {first}"),
        Error::BeyondEnd { index, next } => format!("BeyondEnd {index} {next}"),
        Error::NotNext { index, next } => format!("NotNext {index} {next}"),
        Error::Committed { index, commit } => format!("Committed {index} {commit}"),
        Error::NotCommitted { index, commit } => format!("NotCommitted {index} {commit:?}"),
        Error::NotApplied { index, applied } => format!("NotApplied {index} {applied:?}"),
        Error::TermBehind { given, current } => format!("TermBehind {given} {current}"),
        Error::AlreadyVoted { term, voted_for, candidate } => {
            format!("AlreadyVoted {term} {voted_for} {candidate}")
        }
        Error::SnapshotBehind { index, current } => format!("SnapshotBehind {index:?} {current}"),
        error => panic!("unexpected: {error}"),
    }
}

struct Run {
    disk: SimDisk,
    options: LogOptions,
    opens: u64,
    log: RaftLog,
    model: Model,
}

impl Run {
    fn new(first_index: u64) -> Run {
        let (disk, options) = (SimDisk::new(7), small_options(first_index));
        let log = RaftLog::open_in(sim_env(&disk, 0), DIR, options.clone()).unwrap();
        let model = Model {
            first: first_index,
            entries: Vec::new(),
            purged: None,
            entry_term: 1,
            term: 0,
            vote: None,
            commit: None,
            applied: None,
            snapshot: None,
            broken: false,
            config: None,
            uri: String::new(),
            tag: 0,
        };
        Run { disk, options, opens: 0, log, model }
    }

    fn open(&mut self) {
        self.opens += 1;
        let env = sim_env(&self.disk, self.opens);
        self.log = RaftLog::open_in(env, DIR, self.options.clone()).unwrap();
    }

    /// Runs a call on both; they answer the same.
    fn apply(&mut self, op: &Op) -> Result<(), String> {
        let (log, model) = (&self.log, &mut self.model);
        match *op {
            Op::Append { new_term, len, kind } => {
                model.entry_term += u64::from(new_term);
                let mut entry = model.new_entry(len);
                let kinds = [EntryKind::TermStart, EntryKind::Command, EntryKind::Configuration];
                entry.kind = kinds[usize::from(kind)];
                assert_eq!(log.append(&entry.entry()).unwrap(), model.next());
                model.entries.push(entry);
            }
            Op::AppendAll { count, new_term_every } => {
                let start = model.next();
                let entries: Vec<Stored> = (1..=count)
                    .map(|n| {
                        model.entry_term += u64::from(n % new_term_every == 0);
                        model.new_entry(u16::from(n) * 7)
                    })
                    .collect();
                let given: Vec<NewEntry<'_>> = entries.iter().map(Stored::entry).collect();
                assert_eq!(log.append_all(&given).unwrap(), start..start + u64::from(count));
                model.entries.extend(entries);
            }
            Op::AppendAt { at } => {
                let (index, entry) = (model.pick(at), model.new_entry(20));
                let may_jump = model.entries.is_empty() && model.purged.is_none() && index > model.next();
                let expected = match index == model.next() || may_jump {
                    true => Ok(()),
                    false => Err(format!("NotNext {index} {}", model.next())),
                };
                assert_eq!(log.append_at(index, &[entry.entry()]).map_err(short), expected);
                if expected.is_ok() {
                    model.first = if may_jump { index } else { model.first };
                    model.entries.push(entry);
                }
            }
            Op::AppendAsync { count } => {
                let mut appending = Vec::new();
                for n in 0..count {
                    let entry = model.new_entry(u16::from(n));
                    let pending = log.append_async(&entry.entry()).unwrap();
                    assert_eq!(pending.index(), model.next());
                    model.entries.push(entry);
                    // Readable at once.
                    let last = log.read_last().unwrap().unwrap();
                    assert_eq!(last.serial, model.tag);
                    appending.push(pending);
                }
                for pending in appending {
                    pending.wait().unwrap();
                }
            }
            Op::Replace { at, len } => {
                let (index, entry) = (model.pick(at), model.new_entry(len));
                assert_eq!(log.replace(index, &entry.entry()).map_err(short), model.check(index));
                if model.check(index).is_ok() {
                    model.replace(index, entry);
                }
            }
            Op::Insert { at } => {
                let (index, entry) = (model.pick(at), model.new_entry(30));
                let expected = match index {
                    _ if index > model.next() => Err(format!("NotNext {index} {}", model.next())),
                    _ if index == model.next() => Ok(()),
                    _ => model.check(index),
                };
                assert_eq!(log.insert(index, &entry.entry()).map_err(short), expected);
                match expected {
                    Ok(()) if index == model.next() => model.entries.push(entry),
                    Ok(()) => model.replace(index, entry),
                    Err(_) => {}
                }
            }
            Op::DeleteFrom { at } => {
                let index = model.pick(at);
                let expected = match model.commit {
                    _ if index >= model.next() => Ok(()),
                    _ if index < model.first => Err(format!("BelowFirst {index} {}", model.first)),
                    Some(commit) if index <= commit => Err(format!("Committed {index} {commit}")),
                    _ => Ok(()),
                };
                assert_eq!(log.delete_all_from(index).map_err(short), expected);
                if expected.is_ok() {
                    model.entries.truncate(index.saturating_sub(model.first) as usize);
                }
            }
            Op::Commit { at } => {
                let index = model.pick(at);
                let expected = match index >= model.next() {
                    true => Err(format!("BeyondEnd {index} {}", model.next())),
                    false => Ok(()),
                };
                assert_eq!(log.set_commit_index(index).map_err(short), expected);
                if expected.is_ok() && index >= self.options.first_index {
                    model.commit = model.commit.max(Some(index));
                }
            }
            Op::Applied { at } => {
                let index = model.pick(at);
                let expected = match model.commit {
                    Some(commit) if index <= commit => Ok(()),
                    commit => Err(format!("NotCommitted {index} {commit:?}")),
                };
                assert_eq!(log.set_applied_index(index).map_err(short), expected);
                if expected.is_ok() && index >= self.options.first_index {
                    model.applied = model.applied.max(Some(index));
                }
            }
            Op::Purge { at } => {
                let index = model.pick(at);
                let expected = match model.applied {
                    _ if index < model.first => Ok(()),
                    _ if index >= model.next() => model.check(index),
                    Some(applied) if applied >= index => Ok(()),
                    applied => Err(format!("NotApplied {index} {applied:?}")),
                };
                assert_eq!(log.purge(index).map_err(short), expected);
                if let Some(id) = model.id_of(index).filter(|_| expected.is_ok()) {
                    model.purge(id);
                }
            }
            Op::Install { at, other_term, len } => {
                let index = model.pick(at).max(self.options.first_index);
                let term = model.id_of(index).map_or(model.entry_term, |id| id.term);
                let last = EntryId { index, term: term + u64::from(other_term), leader: 9 };
                let (meta, bytes) =
                    (SnapshotMeta { last: Some(last), about: vec![9; 40] }, vec![index as u8; len.into()]);
                let conflicts = model.id_of(index).is_some_and(|id| id.term != last.term);
                let expected = match (self.check_snapshot(index), self.model.commit) {
                    (Ok(()), Some(commit)) if conflicts && commit >= index => {
                        Err(format!("Committed {index} {commit}"))
                    }
                    (expected, _) => expected,
                };
                let installed = self.log.install_snapshot(meta.clone(), &bytes);
                assert_eq!(installed.map_err(short), expected);
                if expected.is_ok() {
                    self.model.purge(last);
                    self.model.commit = self.model.commit.max(Some(index));
                    self.model.applied = self.model.applied.max(Some(index));
                    self.model.snapshot = Some((meta, bytes));
                }
            }
            Op::Save { at, len } => {
                let index = model.pick(at).max(self.options.first_index);
                let Some(last) = model.id_of(index) else { return Ok(()) };
                let (meta, bytes) =
                    (SnapshotMeta { last: Some(last), about: Vec::new() }, vec![index as u8; len.into()]);
                let expected = self.check_snapshot(index);
                let mut writer = self.log.begin_snapshot(meta.clone()).unwrap();
                writer.write_chunk(0, &bytes).unwrap();
                assert_eq!(writer.save().map_err(short), expected);
                if expected.is_ok() {
                    self.model.commit = self.model.commit.max(Some(index));
                    self.model.applied = self.model.applied.max(Some(index));
                    self.model.snapshot = Some((meta, bytes));
                }
            }
            Op::SetTerm { by } => {
                let term = (model.term + u64::from(by)).saturating_sub(1);
                let expected = match term < model.term {
                    true => Err(format!("TermBehind {term} {}", model.term)),
                    false => Ok(()),
                };
                assert_eq!(log.set_term(term).map_err(short), expected);
                if term > model.term {
                    (model.term, model.vote) = (term, None);
                }
            }
            Op::IncrementTerm => {
                (model.term, model.vote) = (model.term + 1, None);
                assert_eq!(log.increment_term().unwrap(), model.term);
            }
            Op::Vote { candidate } => {
                let candidate = u64::from(candidate);
                let expected = match model.vote {
                    Some(other) if other != candidate => {
                        Err(format!("AlreadyVoted {} {other} {candidate}", model.term))
                    }
                    _ => Ok(()),
                };
                assert_eq!(log.vote_for(candidate).map_err(short), expected);
                model.vote = model.vote.or(Some(candidate));
            }
            Op::Broken { is_broken } => {
                model.broken = is_broken;
                if is_broken { log.set_broken("a test").unwrap() } else { log.set_fixed().unwrap() }
            }
            Op::Config { nodes, pending } => {
                let node =
                    |id: u8| ClusterNode { id: id.into(), uri: format!("tcp://{id}"), is_voter: id != 2 };
                let config = ClusterConfig {
                    nodes: (0..nodes).map(node).collect(),
                    settings: vec![("nodes".to_string(), nodes.to_string())],
                    pending: pending.then(|| node(77)),
                };
                log.save_cluster_config(config.clone()).unwrap();
                model.config = Some(config);
            }
            Op::Uri { uri } => {
                model.uri = format!("tcp://node-{uri}");
                log.set_uri(&model.uri).unwrap();
            }
            Op::Sync => log.sync().unwrap(),
            Op::Reopen => {
                log.stop().unwrap();
                assert!(matches!(log.term(), Err(Error::Stopped { .. })));
                self.open();
            }
            Op::Drop => {
                let log = self.log.clone();
                log.stop().unwrap();
                log.start().unwrap();
            }
        }
        Ok(())
    }

    fn check_snapshot(&self, index: u64) -> Result<(), String> {
        match &self.model.snapshot {
            Some((SnapshotMeta { last: Some(last), .. }, _)) if last.index > index => {
                Err(format!("SnapshotBehind {:?} {}", Some(index), last.index))
            }
            _ => Ok(()),
        }
    }

    /// Everything that can be asked for is as the model says.
    fn compare(&self) {
        let (log, model) = (&self.log, &self.model);
        let last = model.entries.last();
        let first = (!model.entries.is_empty()).then_some(model.first);
        assert_eq!(log.first_index().unwrap(), first);
        assert_eq!(log.next_index().unwrap(), model.next());
        let last_index =
            if last.is_some() { model.next() - 1 } else { model.purged.map_or(0, |id| id.index) };
        assert_eq!(log.last_index().unwrap(), last_index);
        assert_eq!(log.first_term().unwrap(), model.entries.first().map_or(0, |entry| entry.term));
        let purged_term = model.purged.map_or(0, |id| id.term);
        assert_eq!(log.last_term().unwrap(), last.map_or(purged_term, |entry| entry.term));
        assert_eq!(log.purged_id().unwrap(), model.purged);
        assert_eq!((log.term().unwrap(), log.voted_for().unwrap()), (model.term, model.vote));
        assert_eq!(
            (log.commit_index().unwrap(), log.applied_index().unwrap()),
            (model.commit, model.applied)
        );
        assert_eq!(log.broken().unwrap().is_some(), model.broken);
        assert_eq!(log.cluster_config().unwrap(), model.config);
        assert_eq!(log.uri().unwrap(), model.uri);
        assert_eq!(log.lost().unwrap(), []);
        assert_eq!(log.snapshot().unwrap(), model.snapshot.as_ref().map(|(meta, _)| meta.clone()));
        let statistics = log.statistics().unwrap();
        assert_eq!(statistics.record_count, model.entries.len() as u64);
        assert_eq!(
            statistics.snapshot_index,
            model.snapshot.as_ref().map(|(meta, _)| meta.last.unwrap().index)
        );
        let behind_snapshot =
            model.next() - statistics.snapshot_index.map_or(model.first, |at| at + 1).max(model.first);
        assert_eq!(statistics.records_since_snapshot, behind_snapshot);
        assert!((0.0..=100.0).contains(&statistics.capacity_left_percent), "{statistics:?}");
        let entry_bytes: u64 = model.entries.iter().map(|entry| entry.command.len() as u64).sum();
        assert!(statistics.total_bytes >= entry_bytes, "{statistics:?}");
        assert_eq!(log.read_range(model.first..model.next()).unwrap().len(), model.entries.len());
        if model.entries.len() > 2 {
            let middle = model.first + 1..model.next() - 1;
            let found = log.read_range(middle.clone()).unwrap();
            assert!(found.iter().map(|entry| entry.index).eq(middle));
            assert!(
                found
                    .iter()
                    .zip(&model.entries[1..])
                    .all(|(found, expected)| found.command == expected.command)
            );
        }
        let too_far = log.read_range(model.first..model.next() + 1).map(drop).map_err(short);
        assert_eq!(too_far, model.check(if model.entries.is_empty() { model.first } else { model.next() }));
        let mut entries = log.entries(..).unwrap();
        for (expected, index) in model.entries.iter().zip(model.first..) {
            let entry = entries.next_entry().unwrap().unwrap();
            let found = Stored {
                term: entry.term,
                leader: entry.leader,
                serial: entry.serial,
                kind: entry.kind,
                command: entry.command,
            };
            assert_eq!((entry.index, &found), (index, expected));
            assert_eq!(log.id_of(index).unwrap(), model.id_of(index));
        }
        assert_eq!(entries.next_entry().unwrap(), None);
        for index in [model.first.wrapping_sub(1), model.next()] {
            assert_eq!(log.read(index).map(|_| ()).map_err(short), model.check(index));
        }
        if let Some((meta, bytes)) = &model.snapshot {
            let mut reader = log.read_snapshot().unwrap();
            assert_eq!((reader.meta(), reader.byte_count()), (meta, bytes.len() as u64));
            let middle = bytes.len() / 3;
            let chunk = reader.chunk(middle as u64, 500).unwrap();
            let end = (middle + 500).min(bytes.len());
            assert_eq!((&chunk.bytes[..], chunk.is_last), (&bytes[middle..end], end == bytes.len()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_log_behaves_as_its_model(first_index in 0u64..2, ops in prop::collection::vec(op(), 1..60)) {
        let mut run = Run::new(first_index);
        for op in &ops {
            run.apply(op).unwrap();
            run.compare();
        }
        run.log.stop().unwrap();
        run.open();
        run.compare();
    }
}

/// A transfer goes on where it was checkpointed, takes no chunk twice and leaves none out.
#[test]
fn a_snapshot_goes_in_chunks_from_log_to_log_across_reopens() {
    let bytes: Vec<u8> = (0..10_000u32).map(|at| (at * 7 % 251) as u8).collect();
    let (from, disk) = (SimDisk::new(1), SimDisk::new(2));
    let sender = RaftLog::open_in(sim_env(&from, 1), DIR, small_options(1)).unwrap();
    for _ in 0..20 {
        sender.append(&NewEntry::command(3, 1, b"command")).unwrap();
    }
    let last = Some(EntryId { term: 3, leader: 1, index: 12 });
    let meta = SnapshotMeta { last, ..SnapshotMeta::default() };
    sender.install_snapshot(meta, &bytes).unwrap();
    let mut reader = sender.read_snapshot().unwrap();
    let behind_end = reader.chunk(10_001, 1).unwrap_err();
    assert!(matches!(behind_end, Error::ChunkOffset { given: 10_001, expected: 10_000 }), "{behind_end}");

    let mut seed = 2;
    loop {
        let receiver = RaftLog::open_in(sim_env(&disk, seed), DIR, small_options(1)).unwrap();
        seed += 1;
        let mut writer = receiver.receive_snapshot(reader.meta().clone()).unwrap();
        let start = writer.position();
        for wrong in [start + 1, start.wrapping_sub(1)] {
            let refused = writer.write_chunk(wrong, b"never").unwrap_err();
            let is_named = matches!(refused, Error::ChunkOffset { given, expected } if (given, expected) == (wrong, start));
            assert!(is_named, "{refused}");
        }
        let chunk = reader.chunk(start, 3000).unwrap();
        writer.write_chunk(chunk.offset, &chunk.bytes).unwrap();
        writer.checkpoint().unwrap();
        if chunk.is_last {
            writer.install().unwrap();
            break;
        }
        drop(writer);
        receiver.stop().unwrap();
    }
    assert_eq!(seed, 6, "four transfers of at most 3000 bytes");
    let receiver = RaftLog::open_in(sim_env(&disk, seed), DIR, small_options(1)).unwrap();
    let mut arrived = receiver.read_snapshot().unwrap();
    assert_eq!(arrived.chunk(0, bytes.len()).unwrap().bytes, bytes);
    assert_eq!((receiver.first_index().unwrap(), receiver.last_index().unwrap()), (None, 12));
    assert_eq!(receiver.last_term().unwrap(), 3);
    assert!(sender.statistics().unwrap().last_record_ms.is_some());
}

/// Nothing is written of what no record could hold, and the log goes on.
#[test]
fn an_entry_that_is_too_large_changes_nothing() {
    let mut options = small_options(1);
    options.stream.record_limit_bytes = 1000;
    let log = RaftLog::open_in(sim_env(&SimDisk::new(1), 1), DIR, options).unwrap();
    let small = NewEntry::command(1, 1, &[1; 100]);
    let large = NewEntry::command(1, 1, &[1; 990]);
    log.append(&small).unwrap();
    let refused = [
        log.append(&large).map(drop),
        log.append_all(&[small, large]).map(drop),
        log.append_at(2, &[small, large]),
        log.append_then(&[small, large], |_| panic!("nothing was appended")),
        log.replace(1, &large),
        log.insert(2, &large),
        log.replace_async(1, &large).unwrap().wait(),
    ];
    for refusal in refused {
        let error = refusal.unwrap_err();
        let is_size = matches!(error, Error::Engine(lsfs::Error::TooLarge { limit_bytes: 1000, .. }));
        assert!(is_size, "{error}");
    }
    assert_eq!(log.last_index().unwrap(), 1);
    assert_eq!(log.append_all(&[small, small]).unwrap(), 2..4);
}
