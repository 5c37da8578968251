//! Random operations on a segment set against a vector of what was appended.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use lsfs::codec::{FrameLayout, Pointer};
use lsfs::io::SimDisk;
use lsfs::{Durability, Error, SegmentHandle, SegmentSet, SegmentSetReader, SetKind, SetOptions};
use proptest::prelude::*;
use support::{budget, sim_env};

const DIR: &str = "/set";

#[derive(Clone, Debug)]
enum Op {
    Append { lens: Vec<usize>, sync: bool },
    Sync,
    Seal,
    Release(prop::sample::Index),
    Reclaim(prop::sample::Index),
    Hold(prop::sample::Index),
    Read(prop::sample::Index),
    ReadPart(prop::sample::Index, u32, u32),
    Reopen { close: bool },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let len = prop_oneof![4 => 0..200usize, 3 => 0..5000usize, 1 => 60_000..140_000usize];
    let index = any::<prop::sample::Index>();
    let op = prop_oneof![
        8 => (prop::collection::vec(len, 1..5), any::<bool>())
            .prop_map(|(lens, sync)| Op::Append { lens, sync }),
        1 => Just(Op::Sync),
        2 => Just(Op::Seal),
        3 => index.clone().prop_map(Op::Release),
        2 => index.clone().prop_map(Op::Reclaim),
        1 => index.clone().prop_map(Op::Hold),
        5 => index.clone().prop_map(Op::Read),
        4 => (index, 0..150_000u32, 0..150_000u32).prop_map(|(at, one, other)| Op::ReadPart(at, one, other)),
        1 => any::<bool>().prop_map(|close| Op::Reopen { close }),
    ];
    prop::collection::vec(op, 1..60)
}

/// What the set should hold.
#[derive(Default)]
struct Model {
    entries: BTreeMap<Pointer, (u8, Vec<u8>)>,
    /// Entries that are durable if the process is killed now.
    durable: BTreeSet<Pointer>,
    released: BTreeSet<Pointer>,
    gone: BTreeSet<Pointer>,
    appended: u64,
}

impl Model {
    fn pick(&self, index: &prop::sample::Index) -> Option<Pointer> {
        (!self.entries.is_empty()).then(|| *self.entries.keys().nth(index.index(self.entries.len())).unwrap())
    }

    fn sync(&mut self) {
        self.durable = self.entries.keys().copied().collect();
    }
}

fn check(set: &SegmentSet, model: &Model) {
    for pointer in &model.gone {
        assert!(matches!(set.read(*pointer), Err(Error::Gone { .. })), "{pointer:?}");
    }
    for info in set.segments() {
        let of_it = |pointer: &&Pointer| pointer.segment == info.number;
        let entries = model.entries.keys().filter(of_it).count();
        assert_eq!(info.entries as usize, entries, "{info:?}");
        let sum =
            |pointers: &mut dyn Iterator<Item = &Pointer>| pointers.map(Pointer::frame_bytes).sum::<u64>();
        assert_eq!(info.total_bytes, sum(&mut model.entries.keys().filter(of_it)), "{info:?}");
        let released = sum(&mut model.released.iter().filter(of_it));
        assert_eq!(info.live_bytes, info.total_bytes - released, "{info:?}");
    }
}

fn replay(mut cursor: lsfs::Entries) -> BTreeMap<Pointer, (u8, Vec<u8>)> {
    let mut found = BTreeMap::new();
    while let Some(entry) = cursor.next_entry().unwrap() {
        if let Some((last, _)) = found.last_key_value() {
            assert!(*last < entry.pointer, "out of order");
        }
        found.insert(entry.pointer, (entry.kind, entry.body.to_vec()));
    }
    found
}

fn run(ops: Vec<Op>, kind: SetKind) {
    // Each opening asks for the other layout: the next segments have it.
    let options = |opens: u64| SetOptions {
        kind,
        frame_layout: [FrameLayout::Packed, FrameLayout::Aligned][opens as usize % 2],
        segment_bytes: 64 << 10,
        in_flight_bytes: 16 << 10,
        cache_bytes: 32 << 10,
        ..SetOptions::default()
    };
    let mut disk = SimDisk::new(1);
    let mut opens = 1;
    let mut set = SegmentSet::open_in(sim_env(&disk, opens), DIR, options(opens)).unwrap();
    let mut model = Model::default();
    let mut held: Vec<(SegmentHandle, Pointer, Vec<u8>)> = Vec::new();
    for op in ops {
        match op {
            Op::Append { lens, sync } => {
                let batch: Vec<(u8, Vec<u8>)> = lens
                    .iter()
                    .map(|len| {
                        model.appended += 1;
                        let tag = model.appended;
                        (tag as u8, (0..*len).map(|at| (tag as usize + at / 5) as u8).collect())
                    })
                    .collect();
                let durability = if sync { Durability::Sync } else { Durability::Buffer };
                let pointers = set.append_batch(&batch, durability).unwrap();
                assert!(pointers.windows(2).all(|pair| pair[0].end() == u64::from(pair[1].position)));
                model.entries.extend(pointers.into_iter().zip(batch));
                if sync && kind == SetKind::Durable {
                    model.sync();
                }
            }
            Op::Sync => {
                set.sync().unwrap();
                model.sync();
            }
            Op::Seal => {
                set.seal().unwrap();
                model.sync();
            }
            Op::Release(index) => {
                if let Some(pointer) = model.pick(&index).filter(|pointer| model.released.insert(*pointer)) {
                    set.release(pointer).unwrap();
                }
            }
            Op::Reclaim(index) => {
                let sealed: Vec<u32> =
                    set.segments().iter().filter(|info| info.is_sealed).map(|info| info.number).collect();
                if !sealed.is_empty() {
                    let number = sealed[index.index(sealed.len())];
                    set.reclaim(&[number]).unwrap();
                    let is_in = |pointer: &Pointer| pointer.segment == number;
                    model.gone.extend(model.entries.keys().filter(|pointer| is_in(pointer)));
                    model.entries.retain(|pointer, _| !is_in(pointer));
                    model.durable.retain(|pointer| !is_in(pointer));
                    model.released.retain(|pointer| !is_in(pointer));
                }
            }
            Op::Hold(index) => {
                if let Some(pointer) = model.pick(&index) {
                    let body = model.entries[&pointer].1.clone();
                    held.push((set.segment(pointer.segment).unwrap(), pointer, body));
                }
            }
            Op::Read(index) => {
                if let Some(pointer) = model.pick(&index) {
                    let (kind, body) = &model.entries[&pointer];
                    for entry in [set.read(pointer), set.read_at(pointer.segment, pointer.position)] {
                        let entry = entry.unwrap();
                        assert_eq!((entry.kind, entry.pointer), (*kind, pointer));
                        assert!(entry.body == *body);
                    }
                }
            }
            Op::ReadPart(index, one, other) => {
                if let Some(pointer) = model.pick(&index) {
                    let body = &model.entries[&pointer].1;
                    let range = one.min(other)..one.max(other);
                    match (
                        set.read_range(pointer, range.clone()),
                        body.get(range.start as usize..range.end as usize),
                    ) {
                        (Ok(found), Some(expected)) => assert!(found == *expected),
                        (Err(Error::NoEntry { .. }), None) => {}
                        (found, expected) => {
                            panic!("{range:?}: {found:?}, expected {:?}", expected.map(<[u8]>::len))
                        }
                    }
                }
            }
            Op::Reopen { close } => {
                if close {
                    set.close().unwrap();
                    model.sync();
                }
                held.clear();
                let next = disk.restart();
                drop(set);
                disk = next;
                opens += 1;
                set = SegmentSet::open_in(sim_env(&disk, opens), DIR, options(opens)).unwrap();
                assert_eq!(set.live_bytes_are_exact(), close);
                if !close {
                    // What was written, also without a sync, survives a kill; what was not may be missing from the end.
                    let found = replay(set.iter());
                    assert!(model.durable.iter().all(|pointer| found.contains_key(pointer)));
                    model.entries.retain(|pointer, entry| {
                        found.get(pointer).inspect(|found| assert!(*found == entry)).is_some()
                    });
                    assert_eq!(found.len(), model.entries.len());
                    model.sync();
                    // Live bytes are a hint now; the owner counts anew.
                    model.released.retain(|pointer| model.entries.contains_key(pointer));
                    for info in set.segments() {
                        let of_it = model.entries.keys().filter(|pointer| pointer.segment == info.number);
                        let live = of_it.filter(|pointer| !model.released.contains(pointer));
                        set.set_live_bytes(info.number, live.map(Pointer::frame_bytes).sum()).unwrap();
                    }
                }
            }
        }
        check(&set, &model);
        for (handle, pointer, body) in &held {
            assert!(handle.read(*pointer).unwrap().body == *body, "a held segment");
        }
    }
    set.sync().unwrap();
    assert!(replay(set.iter()) == model.entries);
    let reader = SegmentSetReader::open_in(sim_env(&disk, 0), DIR).unwrap();
    assert!(replay(reader.iter()) == model.entries);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: budget("LSFS_MODEL_CASES", 150) as u32, ..ProptestConfig::default() })]

    #[test]
    fn a_durable_set_holds_what_the_model_holds(ops in ops()) {
        run(ops, SetKind::Durable);
    }

    #[test]
    fn a_cache_holds_what_the_model_holds_as_long_as_the_power_is_on(ops in ops()) {
        run(ops, SetKind::Cache);
    }
}
