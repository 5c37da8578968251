//! Reading beside a writer that gives segments back, and where files are missing.

use std::path::{Path, PathBuf};

use kvs::{Error, KvReader, KvStore, Options};
use lsfs::io::{Disk as _, SimDisk};

use crate::support::sim_env;
use crate::{DIR, options};

/// Compaction happens when it is asked for.
fn at_rest(disk: &SimDisk, seed: u64) -> Options {
    Options { background: false, ..options(sim_env(disk, seed)) }
}

#[test]
fn a_reader_learns_of_all_segments_that_are_gone_at_once() {
    const SETS: u64 = 60;
    let disk = SimDisk::new(1);
    let store = KvStore::open_with(DIR, at_rest(&disk, 1)).unwrap();
    store.put("other", "value").unwrap();
    store.checkpoint().unwrap();
    let behind = KvReader::open_with(DIR, at_rest(&disk, 2)).unwrap();
    let without_checkpoint = {
        let disk = SimDisk::new(2);
        let store = KvStore::open_with(DIR, at_rest(&disk, 3)).unwrap();
        store.put("other", "value").unwrap();
        let reader = KvReader::open_with(DIR, at_rest(&disk, 4)).unwrap();
        (store, reader)
    };
    for (store, reader) in [(store, behind), without_checkpoint] {
        for n in 0..SETS {
            store.put("key", n.to_le_bytes()).unwrap();
            store.put(format!("filler {n}"), vec![1; 25_000]).unwrap();
            assert_eq!(reader.get_bytes("key").unwrap(), Some(n.to_le_bytes().to_vec()));
        }
        assert!(store.stats().segments >= 40, "{:?}", store.stats());
        assert!(store.delete("key").unwrap());
        for n in 0..SETS {
            assert!(store.delete(format!("filler {n}")).unwrap());
        }
        assert_eq!(reader.get_bytes("key").unwrap(), None, "the remove is in the log");
        store.compact(|_| true).unwrap();
        assert!(store.stats().segments <= 3, "{:?}", store.stats());
        assert_eq!(reader.get_bytes("key").unwrap(), None, "and no trace of it");
        assert_eq!(reader.get_bytes("other").unwrap(), Some(b"value".to_vec()));
        // A segment that came later is not taken for one that is gone.
        store.put("key", "again").unwrap();
        assert_eq!(reader.get_bytes("key").unwrap(), Some(b"again".to_vec()));
    }
}

#[test]
fn what_an_open_found_or_a_moment_ago_was_removed_is_compacted() {
    let disk = SimDisk::new(4);
    let store = KvStore::open_with(DIR, at_rest(&disk, 7)).unwrap();
    for n in 0..30u64 {
        store.put(n.to_be_bytes(), vec![1; 25_000]).unwrap();
    }
    (0..20u64).for_each(|n| assert!(store.delete(n.to_be_bytes()).unwrap()));
    // Nothing has asked for counts, so the removes are only noted.
    let mut compacted = 0;
    store
        .compact(|done| {
            compacted = done;
            true
        })
        .unwrap();
    assert!(compacted >= 15, "{compacted}");
    (20..30u64).for_each(|n| assert!(store.delete(n.to_be_bytes()).unwrap()));
    let disk = disk.restart();
    drop(store);
    let store = KvStore::open_with(DIR, at_rest(&disk, 8)).unwrap();
    assert!(!store.open_report().rebuilt && store.open_report().replayed >= 10, "{:?}", store.open_report());
    store.compact(|_| true).unwrap();
    assert!(store.stats().segments <= 2, "{:?}", store.stats());
}

#[test]
fn a_segment_whose_file_vanishes_is_damage_and_not_taken_for_one_that_is_gone() {
    const KEYS: u64 = 400;
    let disk = SimDisk::new(5);
    let store = KvStore::open_with(DIR, at_rest(&disk, 10)).unwrap();
    for round in 0..2u8 {
        (0..KEYS).for_each(|n| store.put(n.to_be_bytes(), vec![round; 300]).unwrap());
    }
    store.checkpoint().unwrap();
    // Not the last one, which an open reads.
    let number = store.stats().segments - 1;
    let disk = disk.restart();
    drop(store);
    let store = KvStore::open_with(DIR, at_rest(&disk, 11)).unwrap();
    let reader = KvReader::open_with(DIR, at_rest(&disk, 12)).unwrap();
    disk.remove(&Path::new(DIR).join(format!("log/data-{number:05}.seg"))).unwrap();
    let is_named = |error: &Error| {
        let named = [format!("segment {number} "), format!("data-{number:05}.seg")];
        let is_named = named.iter().any(|name| error.to_string().contains(name));
        assert!(error.is_corruption() && is_named, "{error}");
    };
    type Get<'a> = &'a dyn Fn(&[u8]) -> kvs::Result<Option<Vec<u8>>>;
    let check = |get: Get<'_>| {
        let (mut found, mut refused) = (0, 0);
        for n in 0..KEYS {
            match get(&n.to_be_bytes()) {
                Ok(value) => {
                    assert_eq!(value, Some(vec![1; 300]), "key {n}");
                    found += 1;
                }
                Err(error) => {
                    is_named(&error);
                    refused += 1;
                }
            }
        }
        assert!(found > 0 && refused > 0, "{found} found, {refused} refused");
    };
    check(&|key| reader.get_bytes(key));
    is_named(&reader.iter().unwrap_err());
    check(&|key| store.get_bytes(key));
    is_named(&store.iter().unwrap_err());
    is_named(&store.verify().unwrap().damage[0]);
    // Setting the keys again mends them, and what is whole of the log is compacted.
    for round in 2..6u8 {
        (0..KEYS).for_each(|n| store.put(n.to_be_bytes(), vec![round; 300]).unwrap());
    }
    let before = store.stats().reclaimed_segments;
    store.compact(|_| true).unwrap();
    assert!(store.stats().reclaimed_segments > before, "{:?}", store.stats());
    (0..KEYS).for_each(|n| assert_eq!(store.get_bytes(n.to_be_bytes()).unwrap(), Some(vec![5; 300])));
}

#[test]
fn a_snapshot_whose_run_is_damaged_is_outdated_where_the_log_has_gone_on() {
    const KEYS: u64 = 300;
    let disk = SimDisk::new(6);
    let in_order = Options { ordered: true, ..at_rest(&disk, 13) };
    let store = KvStore::open_with(DIR, in_order).unwrap();
    (0..KEYS).for_each(|n| store.put(n.to_be_bytes(), vec![1; 300]).unwrap());
    store.close().unwrap();
    drop(store);
    let reader = KvReader::open_with(DIR, at_rest(&disk, 14)).unwrap();
    let snapshot = reader.snapshot().unwrap();
    assert_eq!(snapshot.iter().count() as u64, KEYS);
    let is_run =
        |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_str().unwrap().starts_with("run-"));
    let paths = disk.paths();
    let run = paths.iter().find(is_run).expect("a close leaves a run");
    let pages = disk.contents(run).unwrap().len() as u64 / 4096;
    (1..pages).for_each(|page| disk.flip_bit(run, (page * 4096 + 60) * 8).unwrap());
    let store = KvStore::open_with(DIR, at_rest(&disk, 15)).unwrap();
    (0..KEYS).for_each(|n| store.put(n.to_be_bytes(), "newer").unwrap());
    store.compact(|_| true).unwrap();
    assert!(store.stats().reclaimed_segments > 2, "{:?}", store.stats());
    let mut outdated = 0;
    for n in 0..KEYS {
        match snapshot.get_bytes(n.to_be_bytes()) {
            Ok(value) => assert_eq!(value, Some(vec![1; 300]), "key {n}"),
            Err(Error::Outdated { .. }) => outdated += 1,
            Err(error) => panic!("key {n}: {error}"),
        }
    }
    assert!(outdated > 0);
    assert_eq!(reader.iter().unwrap().count() as u64, KEYS, "a new view is whole");
}
