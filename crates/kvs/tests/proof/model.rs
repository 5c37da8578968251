//! Random commands against a `BTreeMap`, with reopening, checkpoints and compaction among them.

use std::path::{Path, PathBuf};

use kvs::{Compression, Error, KvReader, KvStore, Options, Snapshot};
use lsfs::io::SimDisk;
use proptest::prelude::*;

use crate::order::{check_snapshot, check_store, scan};
use crate::support::{Choices, budget, sim_env};
use crate::{Command, DIR, Model, buffered, difference, expect, options};

const KEYS: u64 = 40;

#[derive(Clone, Debug)]
enum Op {
    Do(Command),
    Buffered(Command),
    Checkpoint,
    Compact,
    /// Closed, or only dropped with all that the system was not given.
    Reopen(bool),
    Kill,
    LoseIndex,
    Scan,
    TakeSnapshot,
    DropSnapshot,
    ReadBeside,
    DamageRuns(u64),
    CutRuns(u64),
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => (any::<u8>(), 0..300usize).prop_map(|(byte, len)| vec![byte; len]),
        1 => (any::<u8>(), 0..9_000usize).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let change = || (0..KEYS, prop::option::weighted(0.7, value()));
    prop_oneof![
        8 => (0..KEYS, value()).prop_map(|(n, value)| Command::Put(n, value)),
        3 => (0..KEYS).prop_map(Command::Delete),
        2 => prop::collection::vec(change(), 0..12).prop_map(Command::Batch),
        2 => (change(), any::<bool>()).prop_map(|((n, value), agrees)| Command::Swap(n, agrees, value)),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        30 => command().prop_map(Op::Do),
        10 => command().prop_map(Op::Buffered),
        2 => Just(Op::Checkpoint),
        2 => Just(Op::Compact),
        2 => any::<bool>().prop_map(Op::Reopen),
        1 => Just(Op::Kill),
        1 => Just(Op::LoseIndex),
        4 => Just(Op::Scan),
        3 => Just(Op::TakeSnapshot),
        2 => Just(Op::DropSnapshot),
        1 => Just(Op::ReadBeside),
        2 => any::<u64>().prop_map(Op::DamageRuns),
        1 => any::<u64>().prop_map(Op::CutRuns),
    ]
}

/// A store that is opened again and again.
struct Reopened {
    disk: SimDisk,
    seed: u64,
    compression: Compression,
    store: Option<KvStore>,
}

impl Reopened {
    fn open(&mut self) {
        self.seed += 1;
        let env = sim_env(&self.disk, self.seed);
        let background = !self.seed.is_multiple_of(3);
        let options = Options { compression: self.compression, background, ..options(env) };
        self.store = Some(KvStore::open_with(DIR, options).unwrap());
    }

    fn store(&self) -> &KvStore {
        self.store.as_ref().unwrap()
    }

    fn close(&mut self, explicitly: bool) {
        if explicitly {
            self.store().close().unwrap();
        }
        self.store = None;
    }
}

fn behaves(ops: Vec<Op>, seed: u64) {
    let disk = SimDisk::new(seed);
    let compression = [Compression::None, Compression::Lz4, Compression::Zstd][(seed % 3) as usize];
    let mut tested = Reopened { disk, seed: seed * 1000, compression, store: None };
    tested.open();
    let mut model = Model::new();
    let mut snapshots: Vec<Taken> = Vec::new();
    let mut choices = Choices::new(seed);
    for op in ops {
        match op {
            Op::Do(command) => {
                command.run(tested.store(), &model).unwrap();
                model = command.model(&model);
            }
            Op::Buffered(command) => {
                command.run(&buffered(tested.store()), &model).unwrap();
                model = command.model(&model);
            }
            Op::Checkpoint => tested.store().checkpoint().unwrap(),
            Op::Compact => tested.store().compact(|_| true).unwrap(),
            Op::Reopen(explicitly) => {
                // A snapshot keeps the store open, unless it is closed under it.
                if !explicitly {
                    snapshots.clear();
                }
                snapshots.iter_mut().for_each(|taken| taken.is_outlived = true);
                tested.close(explicitly);
                tested.open();
            }
            Op::Kill => {
                // Buffered commands may be lost by it, so they are made durable first.
                tested.store().sync().unwrap();
                tested.disk = tested.disk.restart();
                snapshots.clear();
                tested.store = None;
                tested.open();
            }
            Op::Scan => check_store(tested.store(), &model, &mut choices, KEYS),
            Op::TakeSnapshot => {
                let snapshot = tested.store().snapshot().unwrap();
                snapshots.push(Taken { snapshot, model: model.clone(), is_outlived: false });
            }
            Op::DropSnapshot => {
                if !snapshots.is_empty() {
                    snapshots.remove(choices.below(snapshots.len() as u64) as usize);
                }
            }
            Op::ReadBeside => {
                tested.store().sync().unwrap();
                let reader =
                    KvReader::open_with(DIR, options(sim_env(&tested.disk, choices.next()))).unwrap();
                let found = scan(&reader).unwrap();
                assert!(found == model, "beside the writer: {}", difference(&found, &model));
                check_snapshot(&reader.snapshot().unwrap(), &model, &mut choices, KEYS).unwrap();
            }
            Op::DamageRuns(at) => {
                for (path, len) in runs(&tested.disk) {
                    tested.disk.flip_bit(&path, at % (8 * len)).unwrap();
                }
            }
            Op::CutRuns(at) => {
                // A file that is mapped must not be cut.
                snapshots.clear();
                tested.close(true);
                for (path, len) in runs(&tested.disk) {
                    tested.disk.truncate_raw(&path, at % (len + 1)).unwrap();
                }
                tested.open();
            }
            Op::LoseIndex => {
                snapshots.iter_mut().for_each(|taken| taken.is_outlived = true);
                tested.close(true);
                for path in tested.disk.paths() {
                    if path.starts_with(Path::new(DIR).join("checkpoint")) {
                        tested.disk.truncate_raw(&path, 0).unwrap();
                    }
                }
                tested.open();
                assert!(tested.store().open_report().rebuilt);
            }
        }
        expect(tested.store(), &model, KEYS, "after each step");
        if choices.below(8) == 0 {
            for taken in &snapshots {
                taken.check(&mut choices);
            }
        }
    }
    snapshots.iter().for_each(|taken| taken.check(&mut choices));
    check_store(tested.store(), &model, &mut choices, KEYS);
    tested.close(true);
    drop(snapshots);
    tested.open();
    expect(tested.store(), &model, KEYS, "at the end");
    check_store(tested.store(), &model, &mut choices, KEYS);
}

/// A snapshot, and what the store was when it was taken.
struct Taken {
    snapshot: Snapshot,
    model: Model,
    /// The store was closed since: what it needs may be gone, but never wrong.
    is_outlived: bool,
}

impl Taken {
    fn check(&self, choices: &mut Choices) {
        match check_snapshot(&self.snapshot, &self.model, choices, KEYS) {
            Err(Error::Outdated { .. }) if self.is_outlived => {}
            other => other.unwrap(),
        }
    }
}

/// The sorted runs on a disk, with their lengths.
fn runs(disk: &SimDisk) -> Vec<(PathBuf, u64)> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    let paths = disk.paths().into_iter().filter(|path| name(path).starts_with("run-"));
    paths.map(|path| (path.clone(), disk.contents(&path).unwrap().len() as u64)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: budget("KVS_MODEL_CASES", 60) as u32,
        ..ProptestConfig::default()
    })]

    #[test]
    fn behaves_like_a_map(ops in prop::collection::vec(op(), 1..120), seed in 0..1_000_000u64) {
        behaves(ops, seed);
    }
}

#[test]
fn overwriting_everything_ten_times_leaves_little() {
    let disk = SimDisk::new(3);
    let options = Options { segment_bytes: 256 << 10, ..options(sim_env(&disk, 3)) };
    let store = buffered(&KvStore::open_with(DIR, options).unwrap());
    let value = |round: u64| vec![round as u8; 100];
    for round in 0..10 {
        for n in 0..6_000u64 {
            // Another order in each round.
            store.put((n * 7_919 % 6_000 * (round + 1) % 6_000).to_le_bytes(), value(round)).unwrap();
        }
        for n in 0..6_000u64 {
            store.put(n.to_le_bytes(), value(round)).unwrap();
        }
    }
    store.sync().unwrap();
    let stats = store.stats();
    let live = stats.log_bytes - stats.stale_bytes;
    let amplification = stats.log_bytes as f64 / live as f64;
    assert_eq!(stats.keys, 6_000);
    assert!(amplification <= 1.5, "in the middle of it: {amplification:.2}, {stats:?}");
    store.compact(|_| true).unwrap();
    let stats = store.stats();
    let amplification = stats.log_bytes as f64 / (stats.log_bytes - stats.stale_bytes) as f64;
    assert!(amplification <= 1.1, "compacted: {amplification:.2}, {stats:?}");
    for n in 0..6_000u64 {
        assert_eq!(store.get_bytes(n.to_le_bytes()).unwrap(), Some(value(9)));
    }
}

#[test]
fn removed_keys_give_all_their_space_back() {
    let disk = SimDisk::new(4);
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 4))).unwrap();
    let fast = buffered(&store);
    for n in 0..3_000u64 {
        fast.put(n.to_le_bytes(), [7; 60]).unwrap();
    }
    for n in 0..3_000u64 {
        assert!(fast.delete(n.to_le_bytes()).unwrap());
    }
    store.compact(|_| true).unwrap();
    let stats = store.stats();
    assert_eq!(stats.keys, 0);
    assert!(stats.log_bytes < 20_000, "of 180,000 written: {stats:?}");
    drop((store, fast));
    let store = KvStore::open_with(DIR, Options { repair: true, ..options(sim_env(&disk, 5)) }).unwrap();
    assert!(store.open_report().rebuilt);
    assert_eq!(store.stats().keys, 0, "also without the index");
}

#[test]
fn removes_are_not_moved_again_and_again_while_a_view_keeps_what_they_hide() {
    let disk = SimDisk::new(10);
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 10))).unwrap();
    let fast = buffered(&store);
    for n in 0..3_000u64 {
        fast.put(n.to_le_bytes(), [7; 20]).unwrap();
    }
    let snapshot = store.snapshot().unwrap();
    let before = store.stats().written_bytes;
    for n in 0..3_000u64 {
        assert!(fast.delete(n.to_le_bytes()).unwrap());
    }
    store.sync().unwrap();
    let (written, removes) = (store.stats().written_bytes - before, 3_000 * 30);
    assert!(written < 4 * removes, "{written} bytes written for {removes} of removes");
    assert_eq!(snapshot.iter().count(), 3_000);
    drop(snapshot);
    store.compact(|_| true).unwrap();
    assert!(store.stats().log_bytes < 20_000, "{:?}", store.stats());
}

#[test]
fn a_remove_is_kept_as_long_as_the_value_that_it_hides() {
    let disk = SimDisk::new(5);
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 5))).unwrap();
    // A segment that stays, all of it in use but for one value, and the beginning of the next one.
    for n in 0..230u64 {
        store.put(n.to_le_bytes(), [3; 100]).unwrap();
    }
    assert!(store.delete(7u64.to_le_bytes()).unwrap());
    // The remove comes to lie among what is stale, and is moved again and again.
    for round in 0..4u8 {
        for _ in 0..200 {
            store.put("changing", [round; 500]).unwrap();
        }
        store.compact(|_| true).unwrap();
    }
    assert!(store.stats().reclaimed_segments > 8, "{:?}", store.stats());
    drop(store);
    let store = KvStore::open_with(DIR, Options { repair: true, ..options(sim_env(&disk, 6)) }).unwrap();
    assert_eq!(store.get_bytes(7u64.to_le_bytes()).unwrap(), None, "by the log alone");
    assert_eq!(store.stats().keys, 230);
}

#[test]
fn a_store_without_a_background_gives_space_back_when_it_is_closed() {
    let disk = SimDisk::new(9);
    let mut largest = 0;
    for round in 0..40u64 {
        let options = Options { background: false, ..options(sim_env(&disk, round)) };
        let store = KvStore::open_with(DIR, options).unwrap();
        for n in 0..40u64 {
            store.put(n.to_le_bytes(), [round as u8; 500]).unwrap();
        }
        largest = largest.max(store.stats().log_bytes);
        store.close().unwrap();
    }
    // 21,000 are live, as much again may be stale, and a round comes on top.
    assert!(largest < 110_000, "of 850,000 written: {largest}");
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 99))).unwrap();
    for n in 0..40u64 {
        assert_eq!(store.get_bytes(n.to_le_bytes()).unwrap(), Some(vec![39; 500]));
    }
}

/// After a kill the commands behind the checkpoint are put into the index one by one, while it is read and written.
#[test]
fn commands_behind_a_checkpoint_count_from_the_open_on() {
    for seed in 1..budget("KVS_KILL_SEEDS", 60) {
        let (disk, mut choices) = (SimDisk::new(seed), Choices::new(seed));
        let mut tested = Reopened { disk, seed: seed * 1000, compression: Compression::None, store: None };
        let mut model = Model::new();
        for life in 0..6 {
            tested.open();
            for n in 0..choices.below(60) {
                let tag = vec![(life * 60 + n) as u8; 10 + choices.below(200) as usize];
                let at = choices.below(KEYS);
                let command = match choices.below(8) {
                    0..=3 => Command::Put(at, tag),
                    4 => Command::Delete(at),
                    5 => Command::Swap(at, true, Some(tag)),
                    6 => Command::Swap(at, false, Some(tag)),
                    _ => {
                        let value = |n: u64| (!n.is_multiple_of(3)).then(|| tag.clone());
                        Command::Batch((0..5).map(|n| ((at + n * 7) % KEYS, value(n + at))).collect())
                    }
                };
                command.run(&buffered(tested.store()), &model).unwrap();
                model = command.model(&model);
                for read in [at, choices.below(KEYS)].map(crate::key) {
                    let store = tested.store();
                    assert_eq!(store.get_bytes(&read).unwrap(), model.get(&read).cloned(), "seed {seed}");
                    assert_eq!(store.contains(&read).unwrap(), model.contains_key(&read), "seed {seed}");
                }
                match choices.below(120) {
                    0 => tested.store().checkpoint().unwrap(),
                    1 => tested.store().compact(|_| true).unwrap(),
                    2 => check_store(tested.store(), &model, &mut choices, KEYS),
                    3 => assert!(tested.store().verify().unwrap().damage.is_empty(), "seed {seed}"),
                    _ => {}
                }
            }
            if choices.below(4) > 0 {
                tested.store().sync().unwrap();
                tested.disk = tested.disk.restart();
                tested.store = None;
            } else {
                tested.close(choices.below(2) == 0);
            }
        }
        tested.open();
        expect(tested.store(), &model, KEYS, &format!("seed {seed}, at the end"));
        assert!(tested.store().verify().unwrap().damage.is_empty(), "seed {seed}");
    }
}
