//! I/O errors at every operation of a segment set.

use std::collections::BTreeSet;

use lsfs::codec::Pointer;
use lsfs::io::{DiskFault, FaultKind, OpKind, SimDisk};
use lsfs::{Durability, Error, SegmentSet, SetOptions};

use crate::support::{budget, sim_env};

const DIR: &str = "/set";

fn options() -> SetOptions {
    SetOptions { segment_bytes: 32 << 10, in_flight_bytes: 8 << 10, ..SetOptions::default() }
}

fn body(number: u64) -> Vec<u8> {
    vec![number as u8; 20 + (number as usize * 937) % 6000]
}

/// What the workload was told.
#[derive(Debug, Default)]
struct Told {
    /// Entries that were acknowledged as durable, with their numbers.
    durable: Vec<(Pointer, u64)>,
    /// Those that were asked for in vain: they may be there or not.
    doubtful: BTreeSet<u64>,
    next: u64,
    /// Segments whose reclaim was acknowledged, and asked for.
    reclaimed: BTreeSet<u32>,
    reclaim_asked: BTreeSet<u32>,
    failure: Option<Error>,
}

fn workload(disk: &SimDisk, seed: u64) -> Told {
    let mut told = Told::default();
    for round in 0..3 {
        match SegmentSet::open_in(sim_env(disk, seed + round), DIR, options()) {
            Ok(set) => {
                if let Err(error) = appends(&set, round, &mut told) {
                    check_stopped(&set, &error, &told);
                    told.failure = Some(error);
                }
            }
            Err(error) => told.failure = Some(error),
        }
        if told.failure.is_some() {
            break;
        }
    }
    told
}

fn appends(set: &SegmentSet, round: u64, told: &mut Told) -> Result<(), Error> {
    for n in 0..14u64 {
        let numbers: Vec<u64> = (0..1 + n % 3).map(|at| told.next + at).collect();
        told.next += numbers.len() as u64;
        told.doubtful.extend(&numbers);
        let batch: Vec<(u8, Vec<u8>)> = numbers.iter().map(|number| (0, body(*number))).collect();
        let pointers = if n % 4 == 0 {
            let pointers = set.append_batch(&batch, Durability::Buffer)?;
            set.sync()?;
            pointers
        } else {
            set.append_batch(&batch, Durability::Sync)?
        };
        numbers.iter().for_each(|number| assert!(told.doubtful.remove(number)));
        told.durable.extend(pointers.into_iter().zip(numbers));
    }
    if round == 1 {
        let sealed = set.segments().iter().find(|info| info.is_sealed).map(|info| info.number);
        told.reclaim_asked.extend(sealed);
        set.reclaim(&sealed.into_iter().collect::<Vec<_>>())?;
        told.reclaimed = told.reclaim_asked.clone();
    }
    set.close()
}

/// After a failure nothing is acknowledged any more, and what was can be read.
fn check_stopped(set: &SegmentSet, error: &Error, told: &Told) {
    // Where no new segment could be made, nothing was written and the set goes on.
    let goes_on = matches!(error, Error::NoSpace { .. } | Error::Closed { .. });
    if !goes_on {
        let again = set.append(0, b"more", Durability::Sync);
        assert!(matches!(again, Err(Error::Poisoned { .. } | Error::Closed { .. })), "{error}: {again:?}");
        assert!(set.seal().is_err());
    }
    for (pointer, number) in &told.durable {
        match set.read(*pointer) {
            Ok(entry) => assert!(entry.body == body(*number), "{pointer:?}"),
            Err(Error::Gone { .. }) => assert!(told.reclaim_asked.contains(&pointer.segment)),
            Err(error) => panic!("{pointer:?}: {error}"),
        }
    }
}

/// Opens what the failure left, on a disk that is good again.
fn check(disk: &SimDisk, told: &Told, context: &str) {
    disk.clear_faults();
    let disk = disk.restart();
    let set = SegmentSet::open_in(sim_env(&disk, 99), DIR, options())
        .unwrap_or_else(|error| panic!("{context}: reopen: {error}\n{told:?}"));
    for (pointer, number) in &told.durable {
        match set.read(*pointer) {
            Ok(entry) => {
                assert!(entry.body == body(*number), "{context}: {pointer:?}");
                assert!(!told.reclaimed.contains(&pointer.segment), "{context}: {pointer:?} came back");
            }
            Err(Error::Gone { .. }) if told.reclaim_asked.contains(&pointer.segment) => {}
            Err(error) => panic!("{context}: {pointer:?}: {error}\n{told:?}"),
        }
    }
    let mut known: BTreeSet<Pointer> = told.durable.iter().map(|(pointer, _)| *pointer).collect();
    let mut entries = set.iter();
    while let Some(entry) = entries.next_entry().unwrap() {
        let is_doubtful = told.doubtful.iter().any(|number| entry.body == body(*number));
        assert!(known.remove(&entry.pointer) || is_doubtful, "{context}: {:?}", entry.pointer);
    }
    let pointer =
        set.append(0, b"goes on", Durability::Sync).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(set.read(pointer).unwrap().body == b"goes on");
}

#[test]
fn every_fault_at_every_operation_is_reported_and_loses_no_entry() {
    let disk = SimDisk::new(1);
    let told = workload(&disk, 5);
    assert!(told.failure.is_none(), "without faults: {:?}", told.failure);
    assert!(!told.reclaimed.is_empty());
    let operations = disk.op_count();
    let kinds = [
        FaultKind::Eio,
        FaultKind::Enospc,
        FaultKind::ShortWrite,
        FaultKind::SyncError,
        FaultKind::PartialSyncError,
    ];
    let mut fired = 0;
    for seed in 0..budget("LSFS_FAULT_SEEDS", 2) {
        for kind in kinds {
            for (at, forever) in (0..operations).flat_map(|at| [(at, false), (at, true)]) {
                let disk = SimDisk::new(seed * 1000 + at);
                let fault = DiskFault::at_op(at, kind);
                disk.inject(if forever { fault.forever() } else { fault });
                let told = workload(&disk, 5);
                if disk.faults_fired() == 0 {
                    continue;
                }
                fired += 1;
                let context = format!("seed {seed}, {kind:?} at operation {at}, forever {forever}");
                if kind == FaultKind::ShortWrite && !forever {
                    assert!(told.failure.is_none(), "{context}: a short write is continued: {told:?}");
                }
                check(&disk, &told, &context);
            }
        }
    }
    eprintln!("{operations} operations, {fired} faults");
    assert!(fired > 500, "{fired}");
}

#[test]
fn a_failed_write_is_indeterminate_and_then_poisoned() {
    for kind in [FaultKind::Eio, FaultKind::SyncError] {
        let disk = SimDisk::new(3);
        let set = SegmentSet::open_in(sim_env(&disk, 3), DIR, options()).unwrap();
        let good = set.append(0, b"good", Durability::Sync).unwrap();
        let buffered = set.append(0, b"buffered", Durability::Buffer).unwrap();
        disk.inject(DiskFault::nth(0, "", kind).only(OpKind::Write));
        let positions = match set.append(0, b"lost?", Durability::Sync) {
            Err(Error::IndeterminateEntries { path, positions, .. }) => {
                assert!(path.ends_with("data-00001.seg"));
                positions
            }
            other => panic!("{kind:?}: {other:?}"),
        };
        assert_eq!(positions, u64::from(buffered.position)..buffered.end() + 25);
        assert!(matches!(set.sync(), Err(Error::Poisoned { .. } | Error::IndeterminateEntries { .. })));
        assert!(matches!(set.append(0, b"more", Durability::Buffer), Err(Error::Poisoned { .. })));
        assert!(matches!(set.reclaim(&[9]), Err(Error::Poisoned { .. })));
        assert!(matches!(set.read(buffered), Err(Error::NoEntry { .. })), "nothing unacknowledged is shown");
        assert!(set.read(good).unwrap().body == b"good");
    }
}

#[test]
fn read_errors_are_errors_not_corruption_and_not_the_end() {
    let disk = SimDisk::new(4);
    let set = SegmentSet::open_in(sim_env(&disk, 4), DIR, options()).unwrap();
    let pointers: Vec<Pointer> =
        (0..30).map(|number| set.append(0, &body(number), Durability::Sync).unwrap()).collect();
    let mut disk = disk.restart();
    drop(set);
    for at in 0..60 {
        disk = disk.restart();
        disk.inject(DiskFault::nth(at, "", FaultKind::ReadEio));
        match SegmentSet::open_in(sim_env(&disk, 5 + at), DIR, options()) {
            Err(error) => assert!(matches!(error, Error::Io { .. }), "read {at}: {error:?}"),
            Ok(set) => {
                for (number, pointer) in pointers.iter().enumerate() {
                    match set.read(*pointer) {
                        Ok(entry) => assert!(entry.body == body(number as u64)),
                        Err(error) => assert!(matches!(error, Error::Io { .. }), "read {at}: {error:?}"),
                    }
                }
            }
        }
        disk.clear_faults();
    }
}

#[test]
fn on_a_full_disk_reads_and_reclaim_work_and_space_comes_back() {
    let disk = SimDisk::with_capacity(5, 700 << 10);
    let set = SegmentSet::open_in(sim_env(&disk, 5), DIR, options()).unwrap();
    let mut pointers = Vec::new();
    let error = loop {
        let number = pointers.len() as u64;
        match set.append(0, &body(number), Durability::Sync) {
            Ok(pointer) => pointers.push((pointer, number)),
            Err(error) => break error,
        }
    };
    assert!(pointers.len() > 50, "{}", pointers.len());
    let message = error.to_string();
    assert!(message.contains("no space left") && message.contains("bytes needed"), "{message}");
    let read_all = |set: &SegmentSet, from: u32| {
        for (pointer, number) in pointers.iter().filter(|(pointer, _)| pointer.segment >= from) {
            assert!(set.read(*pointer).unwrap().body == body(*number));
        }
    };
    read_all(&set, 0);
    let used = disk.used_bytes();
    set.reclaim(&[1, 2, 3]).unwrap();
    assert!(disk.used_bytes() < used, "{} of {used}", disk.used_bytes());
    read_all(&set, 4);
    while set.append(0, &body(1), Durability::Sync).is_ok() {}
    // The machine may also be started again while the disk is full.
    let disk = disk.restart();
    drop(set);
    let set = SegmentSet::open_in(sim_env(&disk, 6), DIR, options()).unwrap();
    read_all(&set, 4);
    set.reclaim(&[4, 5, 6]).unwrap();
    for _ in 0..2 {
        set.append(0, &body(1), Durability::Sync).unwrap();
        set.seal().unwrap();
    }
    read_all(&set, 7);
}
