//! I/O errors and full disks: what was acknowledged stays, a failure is told, and the store goes on when it can.

use kvs::{Error, KvStore, Options};
use lsfs::io::{DiskFault, FaultKind, SimDisk};

use crate::healing::index_file;
use crate::support::{Choices, budget, sim_env};
use crate::{Command, DIR, Model, buffered, contents, difference, options};

const KEYS: u64 = 12;

/// What the workload was told.
struct Told {
    /// The state after the last command that was acknowledged.
    model: Model,
    /// The state if the command that failed was carried out all the same.
    maybe: Option<Model>,
    failure: Option<Error>,
}

fn workload(disk: &SimDisk, seed: u64) -> Told {
    let mut told = Told { model: Model::new(), maybe: None, failure: None };
    if let Err(error) = try_workload(disk, seed, &mut told) {
        told.failure = Some(error);
    }
    told
}

fn try_workload(disk: &SimDisk, seed: u64, told: &mut Told) -> kvs::Result<()> {
    let mut choices = Choices::new(seed);
    for round in 0..3u64 {
        let store = KvStore::open_with(DIR, options(sim_env(disk, seed + round)))?;
        for n in 0..14u64 {
            let value = vec![n as u8; 30 + choices.below(1_500) as usize];
            let command = match choices.below(4) {
                0 => Command::Delete(choices.below(KEYS)),
                1 => {
                    Command::Batch((0..3).map(|at| (choices.below(KEYS) + at, Some(value.clone()))).collect())
                }
                _ => Command::Put(choices.below(KEYS), value),
            };
            told.maybe = Some(command.model(&told.model));
            command.run(&store, &told.model)?;
            told.model = told.maybe.take().expect("just put there");
            if n % 5 == 4 {
                let found: Model = store.iter()?.collect::<kvs::Result<_>>()?;
                assert!(found == told.model, "in order: {}", difference(&found, &told.model));
            }
        }
        match round {
            0 => store.checkpoint()?,
            1 => store.compact(|_| true)?,
            _ => {}
        }
        store.close()?;
    }
    Ok(())
}

#[test]
fn every_fault_at_every_operation_is_told_and_loses_nothing() {
    let disk = SimDisk::new(1);
    let told = workload(&disk, 5);
    assert!(told.failure.is_none(), "without faults: {:?}", told.failure);
    let operations = disk.op_count();
    let kinds = [FaultKind::Eio, FaultKind::Enospc, FaultKind::SyncError, FaultKind::PartialSyncError];
    let (mut fired, step) = (0, budget("KVS_FAULT_STEP", 2));
    for kind in kinds {
        for at in (0..operations).step_by(step as usize) {
            for forever in [false, true] {
                let disk = SimDisk::new(at);
                let fault = DiskFault::at_op(at, kind);
                disk.inject(if forever { fault.forever() } else { fault });
                let told = workload(&disk, 5);
                if disk.faults_fired() == 0 {
                    continue;
                }
                fired += 1;
                let context = format!("{kind:?} at operation {at}, forever {forever}, {:?}", told.failure);
                disk.clear_faults();
                let disk = disk.restart();
                let store = KvStore::open_with(DIR, options(sim_env(&disk, 99)))
                    .unwrap_or_else(|error| panic!("{context}: reopen: {error}"));
                let found = contents(&store, KEYS + 3).unwrap_or_else(|error| panic!("{context}: {error}"));
                let is_admitted = found == told.model || told.maybe.as_ref() == Some(&found);
                assert!(is_admitted, "{context}: {}", difference(&found, &told.model));
                let scanned: Model = store.iter().unwrap().collect::<kvs::Result<_>>().unwrap();
                assert!(scanned == found, "{context}: in order: {}", difference(&scanned, &found));
                store.put("goes", "on").unwrap_or_else(|error| panic!("{context}: {error}"));
            }
        }
    }
    eprintln!("{fired} faults at {operations} operations");
    assert!(fired > 300, "{fired}");
}

#[test]
fn a_full_disk_keeps_everything_readable_and_gives_space_back() {
    let disk = SimDisk::with_capacity(5, 2 << 20);
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 5))).unwrap();
    let value = vec![1; 2_000];
    let mut written = 0u64;
    let error = loop {
        match store.put(written.to_le_bytes(), &value) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Engine(lsfs::Error::NoSpace { .. })), "{error:?}");
    assert!(written > 300, "{written}");
    for n in 0..written {
        assert_eq!(store.get_bytes(n.to_le_bytes()).unwrap().as_ref(), Some(&value));
    }
    drop(store);
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 6))).unwrap();
    assert_eq!(store.stats().keys, written);
    disk.set_capacity(4 << 20);
    for n in 0..written {
        store.put(n.to_le_bytes(), b"shorter").unwrap();
    }
    store.compact(|_| true).unwrap();
    assert!(store.stats().log_bytes < 100_000, "{:?}", store.stats());
}

#[test]
fn removes_work_on_a_full_disk() {
    let disk = SimDisk::with_capacity(6, 64 << 20);
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 6))).unwrap();
    let value = vec![1; 2_000];
    for n in 0..500u64 {
        store.put(n.to_le_bytes(), &value).unwrap();
    }
    store.checkpoint().unwrap();
    // Somebody else fills the disk.
    disk.set_capacity(disk.used_bytes());
    let mut written = 500u64;
    let error = loop {
        match store.put(written.to_le_bytes(), &value) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Engine(lsfs::Error::NoSpace { .. })), "{error:?}");
    for n in 0..written {
        assert!(store.delete(n.to_le_bytes()).unwrap_or_else(|error| panic!("key {n}: {error}")));
    }
    assert_eq!(store.stats().keys, 0);
    store.compact(|_| true).unwrap();
    for n in 0..100u64 {
        store.put(n.to_le_bytes(), &value).unwrap();
    }
    drop(store);
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 7))).unwrap();
    assert_eq!(store.stats().keys, 100);
}

/// A killed store whose index has several times the pages that its memory holds, with many commands behind the checkpoint.
fn killed_with_a_large_index(disk: &SimDisk, keys: u64) -> (SimDisk, Model) {
    let large = |seed| Options { segment_bytes: 1 << 20, ..options(sim_env(disk, seed)) };
    let store = KvStore::open_with(DIR, large(1)).unwrap();
    let mut model = Model::new();
    for round in 0..2u64 {
        for n in (0..keys).step_by(1 + 2 * round as usize) {
            let value = [round as u8; 12];
            buffered(&store).put(n.to_be_bytes(), value).unwrap();
            model.insert(n.to_be_bytes().to_vec(), value.to_vec());
        }
        if round == 0 {
            store.checkpoint().unwrap();
        }
    }
    store.sync().unwrap();
    let after = disk.restart();
    drop(store);
    (after, model)
}

#[test]
fn what_an_open_found_is_no_burden_on_a_full_disk() {
    const KEYS: u64 = 9_000;
    let (disk, mut model) = killed_with_a_large_index(&SimDisk::with_capacity(11, 64 << 20), KEYS);
    let large = |seed| Options { segment_bytes: 1 << 20, ..options(sim_env(&disk, seed)) };
    let store = KvStore::open_with(DIR, large(2)).unwrap();
    assert!(!store.open_report().rebuilt);
    disk.set_capacity(disk.used_bytes());
    // What is settled and what is read needs pages in memory, and those that are there cannot be written.
    let mut refused = 0;
    for n in 0..KEYS {
        match buffered(&store).put(n.to_be_bytes(), [9; 12]) {
            Ok(()) => drop(model.insert(n.to_be_bytes().to_vec(), vec![9; 12])),
            Err(error) => {
                assert!(matches!(error, Error::Engine(lsfs::Error::NoSpace { .. })), "key {n}: {error:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 1_000, "the log cannot grow: {refused}");
    let check = |store: &KvStore, model: &Model| {
        for n in 0..KEYS {
            let found = store.get_bytes(n.to_be_bytes()).unwrap_or_else(|error| panic!("key {n}: {error}"));
            assert_eq!(found.as_ref(), model.get(&n.to_be_bytes()[..]), "key {n}");
        }
        assert_eq!(store.stats().keys, model.len() as u64);
    };
    check(&store, &model);
    for n in (0..KEYS).step_by(2) {
        assert!(store.delete(n.to_be_bytes()).unwrap_or_else(|error| panic!("key {n}: {error}")));
        model.remove(&n.to_be_bytes()[..]);
    }
    check(&store, &model);
    store.compact(|_| true).unwrap();
    store.put([7; 8], [7; 2_000]).unwrap();
    model.insert(vec![7; 8], vec![7; 2_000]);
    drop(store);
    let store = KvStore::open_with(DIR, large(3)).unwrap();
    check(&store, &model);
    assert!(store.verify().unwrap().damage.is_empty());
}

#[test]
fn an_index_is_made_anew_on_a_full_disk() {
    const KEYS: u64 = 9_000;
    let (disk, mut model) = killed_with_a_large_index(&SimDisk::with_capacity(12, 64 << 20), KEYS);
    let large = |seed| Options { segment_bytes: 1 << 20, ..options(sim_env(&disk, seed)) };
    disk.flip_bit(&index_file(&disk), 3 * 8).unwrap();
    disk.set_capacity(disk.used_bytes());
    let store = KvStore::open_with(DIR, large(2)).unwrap();
    assert!(store.open_report().rebuilt);
    let check = |store: &KvStore, model: &Model| {
        for n in 0..KEYS {
            let found = store.get_bytes(n.to_be_bytes()).unwrap_or_else(|error| panic!("key {n}: {error}"));
            assert_eq!(found.as_ref(), model.get(&n.to_be_bytes()[..]), "key {n}");
        }
    };
    check(&store, &model);
    disk.set_capacity(64 << 20);
    store.put(5u64.to_be_bytes(), "goes on").unwrap();
    model.insert(5u64.to_be_bytes().to_vec(), b"goes on".to_vec());
    drop(store);
    let store = KvStore::open_with(DIR, large(3)).unwrap();
    assert!(!store.open_report().rebuilt);
    check(&store, &model);
    assert!(store.verify().unwrap().damage.is_empty());
}

#[test]
fn damage_is_named_and_the_rest_stays_readable() {
    let disk = SimDisk::new(8);
    let in_order = Options { ordered: true, ..options(sim_env(&disk, 8)) };
    let store = KvStore::open_with(DIR, in_order).unwrap();
    for n in 0..200u64 {
        store.put(n.to_le_bytes(), vec![n as u8; 1_000]).unwrap();
    }
    store.close().unwrap();
    drop(store);
    let segment = disk.paths().into_iter().find(|path| path.ends_with("data-00001.seg"));
    let segment = segment.unwrap_or_else(|| panic!("{:?}", disk.paths()));
    disk.flip_bit(&segment, 12_345 * 8).unwrap();
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 9))).unwrap();
    let mut lost = Vec::new();
    for n in 0..200u64 {
        match store.get_bytes(n.to_le_bytes()) {
            Ok(value) => assert_eq!(value, Some(vec![n as u8; 1_000])),
            Err(error) => {
                assert!(error.is_corruption(), "{error}");
                assert!(error.to_string().contains("data-00001.seg"), "{error}");
                lost.push(n);
            }
        }
    }
    assert_eq!(lost.len(), 1, "one bit, one value: {lost:?}");
    let mut before = 0;
    let scanned = store.iter().unwrap().lend_each::<Error>(|key, value| {
        assert_eq!(value, [key[0]; 1_000]);
        before += 1;
        Ok(())
    });
    let error = scanned.expect_err("a scan that lends ends at the damage");
    assert!(error.is_corruption() && error.to_string().contains("data-00001.seg"), "{error}");
    assert_eq!(before, lost[0], "what lies before it in order was handed over");
    store.compact(|_| true).unwrap();
    // It can be removed, and that is so also after a kill.
    assert!(store.delete(lost[0].to_le_bytes()).unwrap());
    assert_eq!(store.get_bytes(lost[0].to_le_bytes()).unwrap(), None);
    let disk = disk.restart();
    drop(store);
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 11))).unwrap();
    assert_eq!(store.get_bytes(lost[0].to_le_bytes()).unwrap(), None);
    // A new value for it is as good as any.
    store.put(lost[0].to_le_bytes(), b"new").unwrap();
    assert_eq!(store.get_bytes(lost[0].to_le_bytes()).unwrap(), Some(b"new".to_vec()));
    drop(store);
    let repaired = Options { repair: true, ..options(sim_env(&disk, 10)) };
    let store = KvStore::open_with(DIR, repaired).unwrap();
    assert_eq!(store.open_report().left_out.len(), 1, "{:?}", store.open_report());
    assert_eq!(store.stats().keys, 200);
}

#[test]
fn other_things_in_the_directory_are_left_alone() {
    let disk = SimDisk::new(9);
    let env = sim_env(&disk, 9);
    env.disk.create_dir_all(std::path::Path::new(DIR)).unwrap();
    disk.put(std::path::Path::new("/store/notes.txt"), b"mine").unwrap();
    let error = KvStore::open_with(DIR, options(env)).unwrap_err();
    assert!(matches!(&error, Error::NotAStore { .. }) && error.to_string().contains("notes.txt"), "{error}");
    let missing = Options { create: false, ..options(sim_env(&disk, 10)) };
    assert!(matches!(KvStore::open_with("/other", missing), Err(Error::NotAStore { .. })));
    assert!(!disk.paths().iter().any(|path| path.starts_with("/other")));
}

#[test]
fn a_second_writer_is_told_who_is_first() {
    let disk = SimDisk::new(10);
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 10))).unwrap();
    let second = KvStore::open_with(DIR, options(sim_env(&disk.new_process(), 11)));
    assert!(matches!(&second, Err(error) if error.is_locked()), "{second:?}");
    store.put("a", "b").unwrap();
}
