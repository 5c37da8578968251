//! Logs on both stores against the simplest equal, a map: in order, reopened, truncated, rewritten, reset.

mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use lsfs::io::SimDisk;
use lsfs::{Error, Log, LogOptions, Record, StoreKind};
use proptest::prelude::*;
use support::{Choices, budget, sim_env};

const DIR: &str = "/log";
const STORES: [StoreKind; 2] = [StoreKind::Block, StoreKind::Mmap];

fn options(store: StoreKind, segment_entries: u64) -> LogOptions {
    LogOptions { store, segment_bytes: 32 << 10, segment_entries, ..LogOptions::default() }
}

fn open(disk: &SimDisk, seed: u64, options: &LogOptions) -> Log {
    Log::open_in(sim_env(disk, seed), Path::new(DIR), options.clone()).unwrap()
}

fn open_read_only(disk: &SimDisk, seed: u64) -> lsfs::Result<Log> {
    Log::open_read_only_in(sim_env(disk, seed), Path::new(DIR), LogOptions::default())
}

/// What a log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    lowest: u64,
    next: u64,
    /// Records below this are durable.
    durable: u64,
    records: BTreeMap<u64, Vec<u8>>,
}

impl Model {
    fn new(next: u64) -> Model {
        Model { lowest: next, next, durable: next, records: BTreeMap::new() }
    }

    fn append(&mut self, payload: &[u8], durable: bool) {
        self.records.insert(self.next, payload.to_vec());
        self.next += 1;
        if durable {
            self.durable = self.next;
        }
    }

    fn truncate_before(&mut self, lowest: u64) {
        self.lowest = lowest;
        self.records = self.records.split_off(&lowest);
    }

    /// Everything that can be asked of a log.
    fn check(&self, log: &Log, context: &str) {
        assert_eq!(log.lowest_offset().unwrap(), self.lowest, "{context}: lowest");
        assert_eq!(log.next_offset().unwrap(), self.next, "{context}: next");
        let highest = (self.next > self.lowest).then(|| self.next - 1);
        assert_eq!(log.highest_offset().unwrap(), highest, "{context}: highest");
        let segments = log.segments().unwrap();
        assert_eq!(log.segment_count().unwrap(), segments.len());
        assert_eq!(log.total_bytes().unwrap(), segments.iter().map(|segment| segment.bytes).sum::<u64>());
        assert!(segments.windows(2).all(|pair| pair[0].next_offset == pair[1].base_offset), "{segments:?}");
        assert!(segments.iter().rev().skip(1).all(|segment| segment.is_sealed), "{segments:?}");
        assert_eq!(found_in(log, self.lowest..u64::MAX).unwrap(), self.records, "{context}: all");
        for offset in self.lowest..self.next {
            match (log.read(offset), self.records.get(&offset)) {
                (Ok(record), Some(payload)) => {
                    assert_eq!((record.index, &record.payload), (offset, payload), "{context}");
                }
                (Err(Error::LeftOut { index, next }), None) => {
                    assert_eq!(index, offset);
                    assert!(next > offset && self.records.range(offset..next).next().is_none(), "{context}");
                }
                other => panic!("{context}: reading {offset}: {other:?}"),
            }
        }
        for outside in [self.lowest.checked_sub(1), Some(self.next), Some(u64::MAX)].into_iter().flatten() {
            assert!(matches!(log.read(outside), Err(Error::OutOfRange { .. })), "{context}: {outside}");
        }
    }
}

fn found_in(log: &Log, range: Range<u64>) -> lsfs::Result<BTreeMap<u64, Vec<u8>>> {
    let mut records = log.iter(range)?;
    let mut found = BTreeMap::new();
    while let Some(record) = records.next_record()? {
        assert!(found.last_key_value().is_none_or(|(last, _)| *last < record.index), "out of order");
        found.insert(record.index, record.payload.into_owned());
    }
    Ok(found)
}

fn payload(tag: u64, len: u64) -> Vec<u8> {
    (0..len.max(1)).map(|at| (tag * 31 + at * 7) as u8 | 1).collect()
}

/// A run of sealed segments and the records that a rewrite keeps of it.
fn rewrite(log: &Log, model: &mut Model, choices: &mut Choices) -> Option<(Range<u64>, Vec<Record>)> {
    let sealed: Vec<_> = log.segments().unwrap().into_iter().filter(|segment| segment.is_sealed).collect();
    if sealed.is_empty() {
        return None;
    }
    let first = choices.below(sealed.len() as u64) as usize;
    let last = first + choices.below((sealed.len() - first) as u64) as usize;
    let run = sealed[first].base_offset..sealed[last].next_offset;
    let keep = choices.below(4);
    let kept: Vec<Record> = model
        .records
        .range(run.clone())
        .filter(|_| choices.below(3) < keep)
        .map(|(&index, payload)| Record { index, type_code: 0, payload: payload.clone() })
        .collect();
    model.records.retain(|offset, _| !run.contains(offset));
    model.records.extend(kept.iter().map(|record| (record.index, record.payload.clone())));
    Some((run, kept))
}

#[derive(Clone, Debug)]
enum Op {
    Append { len: u64, durable: bool },
    Batch(Vec<u64>),
    Flush,
    Rotate,
    TruncateBefore(u64),
    Replace(u64),
    Reset(u64),
    Reopen,
    Kill,
    LookFromOutside,
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![8 => 1..200u64, 2 => 200..6000u64, 1 => 30_000..70_000u64];
    prop_oneof![
        8 => (len.clone(), any::<bool>()).prop_map(|(len, durable)| Op::Append { len, durable }),
        3 => proptest::collection::vec(1..400u64, 0..12).prop_map(Op::Batch),
        1 => Just(Op::Flush),
        2 => Just(Op::Rotate),
        1 => (0..60u64).prop_map(Op::TruncateBefore),
        2 => any::<u64>().prop_map(Op::Replace),
        1 => (0..500u64).prop_map(Op::Reset),
        1 => Just(Op::Reopen),
        1 => Just(Op::Kill),
        1 => Just(Op::LookFromOutside),
    ]
}

fn run(store: StoreKind, entries: u64, ops: &[Op]) {
    let mut disk = SimDisk::new(1);
    let options = options(store, entries);
    let mut seed = 1;
    let mut log = open(&disk, seed, &options);
    let mut model = Model::new(0);
    let outside = open_read_only(&disk.new_process(), 1000).unwrap();
    let mut is_outside_alive = true;
    for (at, op) in ops.iter().enumerate() {
        match op {
            Op::Append { len, durable } => {
                let payload = payload(at as u64, *len);
                let offset =
                    if *durable { log.append(0, &payload) } else { log.append_buffered(0, &payload) };
                assert_eq!(offset.unwrap(), model.next);
                model.append(&payload, *durable);
            }
            Op::Batch(lens) => {
                let payloads: Vec<_> = lens.iter().map(|len| payload(at as u64 + len, *len)).collect();
                let records: Vec<_> = payloads.iter().map(|payload| (0, &payload[..])).collect();
                let start = model.next;
                payloads.iter().for_each(|payload| model.append(payload, true));
                assert_eq!(log.append_batch(&records).unwrap(), start..model.next);
            }
            Op::Flush => log.flush().unwrap(),
            Op::Rotate => log.rotate().unwrap(),
            Op::TruncateBefore(delta) => {
                let offset = (model.lowest + delta).min(model.next);
                let sealed = log.segments().unwrap().into_iter().filter(|segment| segment.is_sealed);
                let lowest = sealed.map(|segment| segment.next_offset).filter(|next| *next <= offset).max();
                log.truncate_before(offset).unwrap();
                model.truncate_before(lowest.unwrap_or(model.lowest));
                assert!(matches!(log.truncate_before(model.next + 1), Err(Error::OutOfRange { .. })));
            }
            Op::Replace(seed) => {
                if let Some((run, kept)) = rewrite(&log, &mut model, &mut Choices::new(*seed)) {
                    log.replace(run, kept.into_iter().map(Ok)).unwrap();
                }
            }
            Op::Reset(offset) => {
                log.reset(*offset).unwrap();
                model = Model::new(*offset);
            }
            Op::Reopen => {
                log.close().unwrap();
                assert!(matches!(log.append(0, b"x"), Err(Error::Closed { .. })));
                drop(log);
                seed += 1;
                log = open(&disk, seed, &options);
            }
            Op::Kill => {
                log.flush().unwrap();
                disk = disk.restart();
                drop(log);
                seed += 1;
                log = open(&disk, seed, &options);
                is_outside_alive = true;
            }
            Op::LookFromOutside => {
                log.flush().unwrap();
                let fresh = open_read_only(&disk.new_process(), 2000 + at as u64).unwrap();
                model.check(&fresh, &format!("{store:?}, read-only after {at}"));
                if is_outside_alive {
                    model.check(&outside, &format!("{store:?}, read-only since the beginning after {at}"));
                }
            }
        }
        if at % 8 == 7 || at + 1 == ops.len() {
            model.check(&log, &format!("{store:?} after {at}: {op:?}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: budget("LSFS_LOG_CASES", 60) as u32,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_log_is_a_map(
        entries in prop_oneof![Just(3u64), Just(17), Just(u64::MAX)],
        ops in proptest::collection::vec(op(), 1..60),
    ) {
        for store in STORES {
            run(store, entries, &ops);
        }
    }
}
