//! The index against a map, with small budgets, checkpoints, reopening and power failures.

use std::collections::HashMap;
use std::path::PathBuf;

use lsfs::io::{CrashStyle, DiskFault, FaultKind, OpKind, SimDisk, SimRuntime};
use proptest::prelude::*;

use super::*;

const DIR: &str = "/index";

fn env(disk: &SimDisk, seed: u64) -> Env {
    Env { disk: Arc::new(disk.clone()), runtime: Arc::new(SimRuntime::new(seed)) }
}

/// An index whose address `n` stands for the key `n`, and what it should hold.
struct Checked {
    env: Env,
    index: Index,
    model: HashMap<u64, u64>,
    next_address: u64,
    root: Option<(IndexRoot, HashMap<u64, u64>)>,
}

/// Addresses say their key, as the log would.
fn key_at(address: u64) -> u64 {
    address >> 20
}

impl Checked {
    fn new(disk: &SimDisk, seed: u64, budget_pages: usize) -> Checked {
        let env = env(disk, seed);
        env.disk.create_dir_all(Path::new(DIR)).unwrap();
        let index =
            Index::create(&env, Path::new(DIR), budget_pages * PAGE_BYTES, KeyHasher { seed }).unwrap();
        Checked { env, index, model: HashMap::new(), next_address: 0, root: None }
    }

    fn hash(&self, key: u64) -> u64 {
        self.index.hasher().hash(&key.to_le_bytes())
    }

    fn set(&mut self, key: u64) -> Result<()> {
        let (hash, hasher) = (self.hash(key), self.index.hasher());
        self.next_address += 1;
        let address = key << 20 | self.next_address;
        match self.model.get(&key) {
            Some(&old) => assert!(self.index.replace(hash, old, address)?),
            None => self.index.insert(hash, address, &mut |at| Ok(hasher.hash(&key_at(at).to_le_bytes())))?,
        }
        self.model.insert(key, address);
        Ok(())
    }

    fn remove(&mut self, key: u64) {
        let hash = self.hash(key);
        let removed = self.model.remove(&key);
        assert!(!self.index.remove(hash, 0xfff_ffff).unwrap());
        if let Some(address) = removed {
            assert!(self.index.remove(hash, address).unwrap());
            assert!(!self.index.load_candidates(hash).unwrap().contains(&address));
        }
    }

    fn checkpoint(&mut self) -> Result<()> {
        let checkpoint = self.index.begin_checkpoint();
        match checkpoint.write(&self.env, Path::new(DIR)) {
            Ok(()) => {
                self.root = Some((checkpoint.root(), self.model.clone()));
                self.index.checkpoint_done(checkpoint);
                self.give_space_back();
                Ok(())
            }
            Err(error) => {
                self.index.checkpoint_failed(checkpoint);
                Err(error)
            }
        }
    }

    /// As behind each checkpoint of a store.
    fn give_space_back(&mut self) {
        let space = self.index.withhold_free(4);
        let released = space.release();
        self.index.given_back(&space, released.is_ok());
    }

    /// What an open finds after the last checkpoint.
    fn reopen(&mut self, budget_pages: usize) {
        let Some((root, model)) = self.root.clone() else { return };
        self.index =
            Index::open(&self.env, Path::new(DIR), &root, budget_pages * PAGE_BYTES, OpenMode::Write)
                .unwrap();
        self.model = model;
    }

    fn check(&mut self) {
        for (&key, &address) in &self.model {
            let hash = self.index.hasher().hash(&key.to_le_bytes());
            let candidates = self.index.load_candidates(hash).unwrap();
            let of_key: Vec<_> = candidates.iter().filter(|&&at| key_at(at) == key).collect();
            assert_eq!(of_key, [&address], "key {key}");
            assert!(self.index.candidates(hash).unwrap().eq(candidates));
        }
        let stats = self.index.stats();
        let resident = self.index.pages.iter().filter(|entry| entry.resident.is_some()).count();
        let dirty = self.index.pages.iter().filter(|entry| entry.place.is_none()).count();
        assert_eq!((stats.resident_pages, stats.dirty_pages), (resident, dirty));
        assert!(resident <= self.index.cache.budget_pages, "{stats:?}");
        let slots: usize =
            (0..self.index.pages.len()).map(|number| self.index.load(number as u32).unwrap().len()).sum();
        assert_eq!(slots, self.model.len(), "nothing else is in the index");
    }
}

#[derive(Clone, Debug)]
enum Op {
    SetMany(u64, u64),
    Set(u64),
    Remove(u64),
    Checkpoint,
    FailCheckpoint(u64),
    Reopen(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..30_000u64;
    prop_oneof![
        4 => (key.clone(), 1..4_000u64).prop_map(|(first, count)| Op::SetMany(first, count)),
        4 => key.clone().prop_map(Op::Set),
        4 => key.prop_map(Op::Remove),
        3 => Just(Op::Checkpoint),
        1 => (0..6u64).prop_map(Op::FailCheckpoint),
        2 => (16..200usize).prop_map(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_map(ops in prop::collection::vec(op(), 1..40), seed in 0..1000u64) {
        let disk = SimDisk::new(seed);
        let mut checked = Checked::new(&disk, seed, 20);
        for op in ops {
            match op {
                Op::SetMany(first, count) => {
                    for key in first..first + count {
                        checked.set(key).unwrap();
                    }
                }
                Op::Set(key) => checked.set(key).unwrap(),
                Op::Remove(key) => checked.remove(key),
                Op::Checkpoint => checked.checkpoint().unwrap(),
                Op::FailCheckpoint(nth) => {
                    disk.inject(DiskFault::nth(nth, "", FaultKind::Eio).only(OpKind::Write));
                    let _either_is_fine = checked.checkpoint();
                    disk.clear_faults();
                }
                Op::Reopen(budget_pages) => checked.reopen(budget_pages),
            }
        }
        checked.check();
        checked.checkpoint().unwrap();
        checked.reopen(16);
        checked.check();
    }
}

#[test]
fn a_power_failure_leaves_the_last_checkpoint() {
    let disk = SimDisk::new(5);
    let mut checked = Checked::new(&disk, 5, 16);
    for key in 0..9_000 {
        checked.set(key).unwrap();
    }
    checked.checkpoint().unwrap();
    let first = checked.root.clone().unwrap();
    disk.start_trace();
    for key in (0..9_000).step_by(7).chain(20_000..24_000) {
        checked.set(key).unwrap();
    }
    let begun = disk.trace_len();
    checked.checkpoint().unwrap();
    let done = disk.trace_len();
    let second = checked.root.clone().unwrap();
    for key in 30_000..33_000 {
        checked.set(key).unwrap();
    }
    let trace = disk.stop_trace();
    assert!(begun > 10 && done < trace.len(), "pages were given up before and after the checkpoint");
    let mut images = trace.images();
    let mut seen = 0;
    loop {
        let point = images.crash_point();
        for style in CrashStyle::ALL {
            let image = images.image(style, point as u64);
            // The root of the second checkpoint is made durable after its write has returned; then it counts.
            let roots: &[_] = if point >= done { &[&second] } else { &[&first] };
            for (root, model) in roots {
                let env = env(&image, 1);
                let index = Index::open(&env, Path::new(DIR), root, 1 << 20, OpenMode::Read).unwrap();
                let (model, root) = (model.clone(), None);
                Checked { env, index, model, next_address: 0, root }.check();
                seen += 1;
            }
        }
        // Some points, and all around the checkpoint.
        let step = if (begun..=done + 2).contains(&point) { 1 } else { 40 };
        if !(0..step).all(|_| images.advance()) {
            break;
        }
    }
    assert!(seen > 200, "{seen}");
}

#[test]
fn damaged_pages_and_directories_are_errors() {
    let disk = SimDisk::new(6);
    let mut checked = Checked::new(&disk, 6, 64);
    for key in 0..5_000 {
        checked.set(key).unwrap();
    }
    checked.checkpoint().unwrap();
    let (root, model) = checked.root.clone().unwrap();
    let path = PathBuf::from(DIR).join(format!("index-{:016x}", root.file_id));
    let pages = disk.contents(&path).unwrap().len() / PAGE_BYTES;
    for page in (0..pages).step_by(3) {
        disk.flip_bit(&path, (page * PAGE_BYTES + 20) as u64 * 8).unwrap();
        let damaged = match Index::open(&checked.env, Path::new(DIR), &root, 1 << 20, OpenMode::Read) {
            Err(error) => vec![error],
            Ok(mut index) => model
                .keys()
                .filter_map(|key| index.load_candidates(checked.hash(*key)).err())
                .take(1)
                .collect(),
        };
        assert!(matches!(&damaged[..], [Error::IndexDamaged { .. }]), "page {page}: {damaged:?}");
        disk.flip_bit(&path, (page * PAGE_BYTES + 20) as u64 * 8).unwrap();
    }
    for root in [
        IndexRoot { depth: root.depth + 1, ..root.clone() },
        IndexRoot { depth: 60, ..root.clone() },
        IndexRoot { directory: vec![9_999], ..root.clone() },
        IndexRoot { directory: vec![0], ..root.clone() },
    ] {
        let opened = Index::open(&checked.env, Path::new(DIR), &root, 1 << 20, OpenMode::Read);
        assert!(matches!(opened, Err(Error::IndexDamaged { .. })), "{root:?}");
    }
    let other = IndexRoot { file_id: 1, ..root };
    assert!(matches!(
        Index::open(&checked.env, Path::new(DIR), &other, 1 << 20, OpenMode::Read),
        Err(Error::IndexDamaged { .. })
    ));
}

#[test]
fn a_key_takes_about_twelve_bytes_at_every_size() {
    let disk = SimDisk::new(7);
    let mut checked = Checked::new(&disk, 7, 100_000);
    let mut worst = 0f64;
    for key in 0..150_000u64 {
        checked.set(key).unwrap();
        if key > 40_000 && key % 1_000 == 0 {
            worst = worst.max(checked.index.stats().memory_bytes as f64 / key as f64);
        }
    }
    assert!(worst < 12.4, "{worst} bytes a key");
}

#[test]
fn the_file_does_not_grow_with_the_number_of_checkpoints() {
    let disk = SimDisk::new(8);
    let mut checked = Checked::new(&disk, 8, 64);
    for round in 0..60 {
        for key in 0..5_000 {
            if key % 3 == round % 3 {
                checked.set(key).unwrap();
            }
        }
        checked.checkpoint().unwrap();
    }
    let pages = checked.index.pages.len() as u64;
    let len = checked.index.file.len_bytes().unwrap() / PAGE_BYTES as u64;
    assert!(len <= 3 * pages + 8, "{len} places for {pages} pages");
}

#[test]
fn a_checkpoint_gives_back_the_space_of_the_one_before_whatever_power_failures_leave() {
    let disk = SimDisk::new(9);
    let mut checked = Checked::new(&disk, 9, 16);
    let set_all = |checked: &mut Checked| (0..60_000).for_each(|key| checked.set(key).unwrap());
    set_all(&mut checked);
    checked.checkpoint().unwrap();
    let used_by_one = disk.used_bytes();
    set_all(&mut checked);
    disk.start_trace();
    checked.checkpoint().unwrap();
    assert!(disk.used_bytes() * 4 < used_by_one * 5, "{} bytes instead of {used_by_one}", disk.used_bytes());
    let (root, model) = checked.root.clone().unwrap();
    // Pages are given up into places that have no space any more.
    (0..60_000).step_by(50).for_each(|key| checked.set(key).unwrap());
    checked.check();
    let trace = disk.stop_trace();
    let is_release = |point: usize| trace.describe(point).contains("Release");
    let released = (0..trace.len()).rev().find(|&point| is_release(point)).expect("space was given back");
    assert!(released + 20 < trace.len(), "pages were written behind it");
    let mut images = trace.images();
    let mut seen = 0;
    loop {
        let point = images.crash_point();
        // The checkpoint is durable before anything is given back.
        if (0..trace.len()).take(point + 1).any(is_release) {
            for style in CrashStyle::ALL {
                let env = env(&images.image(style, point as u64), 1);
                let mut index = Index::open(&env, Path::new(DIR), &root, 1 << 20, OpenMode::Read).unwrap();
                let slots = index.count_slots(|error| panic!("{style:?} at {point}: {error}")).unwrap();
                assert_eq!(slots, model.len() as u64);
                seen += 1;
            }
        }
        let step = if point < released + 3 { 1 } else { 9 };
        if !(0..step).all(|_| images.advance()) {
            break;
        }
    }
    assert!(seen > 50, "{seen}");
    checked.reopen(16);
    checked.check();
}

#[test]
fn look_ups_go_on_where_no_changed_page_can_be_written() {
    let disk = SimDisk::new(10);
    let mut checked = Checked::new(&disk, 10, 16);
    (0..9_000).for_each(|key| checked.set(key).unwrap());
    checked.checkpoint().unwrap();
    disk.set_capacity(0);
    (0..9_000).step_by(11).for_each(|key| checked.set(key).unwrap());
    let has_all = |checked: &mut Checked| {
        checked.model.clone().into_iter().all(|(key, address)| {
            let candidates = checked.index.load_candidates(checked.hash(key)).unwrap();
            candidates.contains(&address)
        })
    };
    assert!(has_all(&mut checked));
    let stats = checked.index.stats();
    assert!(stats.dirty_pages > 16 && stats.resident_pages > 16, "{stats:?}");
    checked.checkpoint().unwrap_err();
    disk.set_capacity(1 << 30);
    checked.checkpoint().unwrap();
    assert!(has_all(&mut checked));
    checked.reopen(16);
    checked.check();
}
