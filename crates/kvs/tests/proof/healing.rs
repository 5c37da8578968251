//! Damage of what is derived: the index and the sorted runs. No call fails, no answer changes.

use std::path::{Path, PathBuf};

use kvs::{Batch, Error, KvReader, KvStore, Options, Swap};
use lsfs::io::{CrashStyle, Disk, DiskFault, FaultKind, OpKind, SimDisk};

use crate::support::{Choices, budget, sim_env};
use crate::{DIR, Model, buffered, difference, options};

/// So many keys that the index has several times the pages that its memory holds.
const KEYS: u64 = 9_000;
pub(crate) const PAGE_BYTES: u64 = 4096;

fn key(n: u64) -> Vec<u8> {
    format!("key {n:05}").into_bytes()
}

/// Segments of usual size compact less; the index still has little memory.
fn small_cache(disk: &SimDisk, seed: u64) -> Options {
    Options { segment_bytes: 1 << 20, ..options(sim_env(disk, seed)) }
}

/// A closed store with overwritten and removed keys, and a checkpoint of all of it.
fn filled(seed: u64) -> (SimDisk, Model) {
    let disk = SimDisk::new(seed);
    let store = KvStore::open_with(DIR, small_cache(&disk, seed)).unwrap();
    let fast = buffered(&store);
    let mut model = Model::new();
    for n in 0..KEYS {
        fast.put(key(n), n.to_le_bytes()).unwrap();
        model.insert(key(n), n.to_le_bytes().to_vec());
    }
    for n in (0..KEYS).step_by(7) {
        fast.delete(key(n)).unwrap();
        model.remove(&key(n));
    }
    store.close().unwrap();
    (disk, model)
}

/// A disk of its own with the same files.
pub(crate) fn copy(disk: &SimDisk) -> SimDisk {
    disk.power_fail(CrashStyle::EverythingUnsynced, 1)
}

pub(crate) fn index_file(disk: &SimDisk) -> PathBuf {
    let is_index =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_str().unwrap().starts_with("index-"));
    let found: Vec<PathBuf> = disk.paths().into_iter().filter(is_index).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

pub(crate) fn pages_of(disk: &SimDisk, path: &Path) -> u64 {
    disk.contents(path).unwrap().len() as u64 / PAGE_BYTES
}

/// All keys, and some that are not there.
#[track_caller]
fn expect_all(get: impl Fn(&[u8]) -> kvs::Result<Option<Vec<u8>>>, model: &Model, context: &str) {
    for n in 0..KEYS + 20 {
        let found = get(&key(n)).unwrap_or_else(|error| panic!("{context}: key {n}: {error}"));
        assert_eq!(found.as_ref(), model.get(&key(n)), "{context}: key {n}");
    }
}

/// Pages to be damaged: a part of them, all with `KVS_HEAL_PAGES=1`.
fn damaged_pages(pages: u64) -> impl Iterator<Item = u64> {
    let step = budget("KVS_HEAL_PAGES", 5);
    (0..pages).filter(move |page| page % step == 0 || *page < 3 || *page + 2 > pages)
}

#[test]
fn a_page_damaged_while_the_store_is_open_is_made_anew() {
    let (disk, model) = filled(1);
    let pages = pages_of(&disk, &index_file(&disk));
    assert!(pages > 24, "{pages} pages fit into memory");
    let mut healed = 0;
    for page in damaged_pages(pages) {
        let disk = copy(&disk);
        let context = format!("page {page} of {pages}");
        let store = KvStore::open_with(DIR, small_cache(&disk, 100 + page)).unwrap();
        let path = index_file(&disk);
        disk.flip_bit(&path, (page * PAGE_BYTES + 17 + page * 31 % 4000) * 8).unwrap();
        expect_all(|key| store.get_bytes(key), &model, &context);
        let stats = store.stats();
        assert!(stats.index_rebuilds <= 1, "{context}: {stats:?}");
        assert_eq!(stats.keys, model.len() as u64, "{context}");
        healed += stats.index_rebuilds;
        if stats.index_rebuilds == 1 {
            assert_ne!(index_file(&disk), path, "the old file is gone");
            assert!(store.verify().unwrap().damage.is_empty(), "{context}");
        }
        store.put("goes", "on").unwrap();
        drop(store);
        let store = KvStore::open_with(DIR, small_cache(&disk, 200 + page)).unwrap();
        assert_eq!(store.get_bytes("goes").unwrap(), Some(b"on".to_vec()), "{context}");
        store.delete("goes").unwrap();
        expect_all(|key| store.get_bytes(key), &model, &context);
        assert!(store.verify().unwrap().damage.is_empty(), "{context}");
    }
    assert!(healed > 3, "{healed} of {pages} pages were met");
}

#[test]
fn a_page_damaged_while_the_store_is_closed_is_made_anew_and_readers_go_around_it() {
    let (disk, model) = filled(2);
    let path = index_file(&disk);
    let pages = pages_of(&disk, &path);
    let (mut healed, mut passed_by, mut reported) = (0, 0, 0);
    for page in damaged_pages(pages) {
        let disk = copy(&disk);
        let context = format!("page {page} of {pages}");
        disk.flip_bit(&path, (page * PAGE_BYTES + 5 + page * 37 % 4000) * 8 + 3).unwrap();
        let reader = KvReader::open_with(DIR, small_cache(&disk.new_process(), 300 + page)).unwrap();
        expect_all(|key| reader.get_bytes(key), &model, &context);
        if let Some(damage) = reader.index_damage() {
            assert!(damage.to_string().contains("index-"), "{damage}");
            passed_by += 1;
        }
        let store = KvStore::open_with(DIR, small_cache(&disk, 100 + page)).unwrap();
        let damage = store.verify().unwrap().damage;
        if store.stats().index_rebuilds == 0 && !damage.is_empty() {
            let named = format!("at page {page}:");
            assert!(
                matches!(&damage[..], [error] if error.to_string().contains(&named)),
                "{context}: {damage:?}"
            );
            assert_eq!(store.stats().index_rebuilds, 0, "verify only says what it finds");
            reported += 1;
        }
        expect_all(|key| store.get_bytes(key), &model, &context);
        assert!(store.verify().unwrap().damage.is_empty(), "{context}");
        healed += store.stats().index_rebuilds;
        // What the reader saw of the old index is not what it sees now; the answers are the same.
        store.put("goes", "on").unwrap();
        assert_eq!(reader.get_bytes("goes").unwrap(), Some(b"on".to_vec()), "{context}");
        expect_all(|key| reader.get_bytes(key), &model, &context);
    }
    assert!(healed > 3 && passed_by > 3 && reported > 1, "{healed}, {passed_by}, {reported} of {pages}");
}

#[test]
fn a_cut_or_missing_index_file_is_made_anew() {
    let (disk, model) = filled(3);
    let path = index_file(&disk);
    let len = pages_of(&disk, &path) * PAGE_BYTES;
    for (n, cut) in
        [0, 100, PAGE_BYTES, len / 2, len / 2 + 700, len - PAGE_BYTES, len - 1].into_iter().enumerate()
    {
        for is_open in [false, true] {
            let (disk, context) = (copy(&disk), format!("cut to {cut} of {len}, open {is_open}"));
            let seed = 50 + n as u64;
            let early = is_open.then(|| KvStore::open_with(DIR, small_cache(&disk, seed)).unwrap());
            let early_reader = is_open
                .then(|| KvReader::open_with(DIR, small_cache(&disk.new_process(), seed + 20)).unwrap());
            // Somebody reads all of it, so that it is mapped.
            early.iter().for_each(|store| expect_all(|key| store.get_bytes(key), &model, &context));
            early_reader.iter().for_each(|reader| expect_all(|key| reader.get_bytes(key), &model, &context));
            disk.truncate_raw(&path, cut).unwrap();
            let reader = early_reader.unwrap_or_else(|| {
                KvReader::open_with(DIR, small_cache(&disk.new_process(), seed + 20)).unwrap()
            });
            expect_all(|key| reader.get_bytes(key), &model, &context);
            let store = early.unwrap_or_else(|| KvStore::open_with(DIR, small_cache(&disk, seed)).unwrap());
            expect_all(|key| store.get_bytes(key), &model, &context);
            assert!(store.stats().index_rebuilds <= 1, "{context}");
            store.close().unwrap();
        }
    }
    disk.remove(&path).unwrap();
    let reader = KvReader::open_with(DIR, small_cache(&disk.new_process(), 70)).unwrap();
    expect_all(|key| reader.get_bytes(key), &model, "removed");
    let store = KvStore::open_with(DIR, small_cache(&disk, 71)).unwrap();
    expect_all(|key| store.get_bytes(key), &model, "removed");
    assert_eq!(store.stats().index_rebuilds, 1);
}

/// Every page but the header damaged: whatever the first call is, it meets damage.
fn damage_all(disk: &SimDisk) {
    let path = index_file(disk);
    (1..pages_of(disk, &path)).for_each(|page| disk.flip_bit(&path, (page * PAGE_BYTES + 900) * 8).unwrap());
}

#[test]
fn every_kind_of_call_heals() {
    let (disk, model) = filled(4);
    type Call = fn(&KvStore, &mut Model);
    let calls: [(&str, Call); 8] = [
        ("put", |store, model| {
            store.put(key(3), "new").unwrap();
            model.insert(key(3), b"new".to_vec());
        }),
        ("delete", |store, model| {
            assert!(store.delete(key(1)).unwrap());
            assert!(!store.delete(key(7)).unwrap(), "was removed before");
            model.remove(&key(1));
        }),
        ("contains", |store, _| {
            assert!(store.contains(key(2)).unwrap() && !store.contains(key(14)).unwrap());
        }),
        ("batch", |store, model| {
            let mut batch = Batch::new();
            (0..KEYS).step_by(11).fold(&mut batch, |batch, n| batch.put(key(n), "batch"));
            store.write(&batch).unwrap();
            (0..KEYS).step_by(11).for_each(|n| drop(model.insert(key(n), b"batch".to_vec())));
        }),
        ("swap", |store, model| {
            let swap = store.compare_and_swap(key(5), Some(&5u64.to_le_bytes()), Some(b"swapped")).unwrap();
            assert_eq!(swap, Swap::Done);
            model.insert(key(5), b"swapped".to_vec());
        }),
        ("compact", |store, _| store.compact(|_| true).unwrap()),
        ("multi_get", |store, model| {
            let keys: Vec<_> = (0..50).map(key).collect();
            let found = store.multi_get(&keys).unwrap();
            assert!(found.iter().zip(&keys).all(|(value, key)| value.as_ref() == model.get(key)));
        }),
        ("unsynced", |store, model| {
            // Not on the medium yet, and not lost by the replay.
            buffered(store).put(key(7), "buffered").unwrap();
            model.insert(key(7), b"buffered".to_vec());
        }),
    ];
    for (n, (name, call)) in calls.into_iter().enumerate() {
        let (disk, mut model) = (copy(&disk), model.clone());
        let store = KvStore::open_with(DIR, small_cache(&disk, 10 + n as u64)).unwrap();
        damage_all(&disk);
        call(&store, &mut model);
        expect_all(|key| store.get_bytes(key), &model, name);
        assert_eq!(store.stats().index_rebuilds, 1, "{name}");
        let scanned: Model = store.iter().unwrap().collect::<kvs::Result<_>>().unwrap();
        assert!(scanned == model, "{name}: {}", difference(&scanned, &model));
        store.compact(|_| true).unwrap();
        assert!(store.verify().unwrap().damage.is_empty(), "{name}");
        drop(store);
        let store = KvStore::open_with(DIR, small_cache(&disk, 30 + n as u64)).unwrap();
        expect_all(|key| store.get_bytes(key), &model, name);
    }
}

#[test]
fn a_damaged_page_met_by_the_open_is_made_anew() {
    let (disk, mut model) = filled(5);
    let store = KvStore::open_with(DIR, small_cache(&disk, 6)).unwrap();
    for n in 0..200 {
        store.put(key(n), "behind the checkpoint").unwrap();
        model.insert(key(n), b"behind the checkpoint".to_vec());
    }
    // A crash: the open replays what is behind the checkpoint, and meets the pages.
    let disk = disk.power_fail(CrashStyle::NothingUnsynced, 7);
    damage_all(&disk);
    let store = KvStore::open_with(DIR, small_cache(&disk, 8)).unwrap();
    assert_eq!(store.stats().index_rebuilds, 1);
    expect_all(|key| store.get_bytes(key), &model, "after the crash");
}

#[test]
fn where_the_log_is_damaged_too_the_error_is_the_logs_and_repair_mends_both() {
    let (disk, model) = filled(6);
    let store = KvStore::open_with(DIR, small_cache(&disk, 9)).unwrap();
    damage_all(&disk);
    let segment = disk.paths().into_iter().find(|path| path.ends_with("data-00001.seg")).unwrap();
    disk.flip_bit(&segment, 6_000 * 8).unwrap();
    let says_what_to_do = |error: Error| {
        assert!(error.is_corruption(), "{error:?}");
        let said = error.to_string();
        assert!(said.contains("data-00001.seg") && said.contains("repair"), "{said}");
    };
    let errors: Vec<Error> = (0..KEYS).filter_map(|n| store.get_bytes(key(n)).err()).collect();
    assert!(errors.len() > 100, "{}", errors.len());
    errors.into_iter().for_each(says_what_to_do);
    let before = disk.op_count();
    (0..50).for_each(|_| drop(store.get_bytes(key(1))));
    assert!(disk.op_count() - before < 500, "the log is not read again each time");
    // A set looks at the index only when it is put into it, with some dozens of others.
    let refused = (0..200).find_map(|_| store.put(key(1), &model[&key(1)]).err());
    says_what_to_do(refused.expect("no more is accepted than can be kept for later"));
    assert_eq!(store.stats().index_rebuilds, 0);
    drop(store);
    let reader = KvReader::open_with(DIR, small_cache(&disk.new_process(), 10));
    says_what_to_do(reader.and_then(|reader| reader.get_bytes(key(1))).unwrap_err());
    let repaired = Options { repair: true, ..small_cache(&disk, 11) };
    let store = KvStore::open_with(DIR, repaired).unwrap();
    assert_eq!(store.open_report().left_out.len(), 1);
    let differing =
        (0..KEYS).filter(|&n| store.get_bytes(key(n)).unwrap().as_ref() != model.get(&key(n))).count();
    assert!(differing <= 1, "{differing}");
}

/// What compaction lets go is in the index again when that is made anew: then the segment is needed still.
#[test]
fn a_compaction_that_heals_the_index_on_its_way_keeps_the_segment() {
    let many_segments = |disk: &SimDisk, seed| Options { background: false, ..options(sim_env(disk, seed)) };
    let disk = SimDisk::new(20);
    let store = KvStore::open_with(DIR, many_segments(&disk, 20)).unwrap();
    let mut model = Model::new();
    // Removes in the oldest segments, which hide nothing, and everywhere a part that is stale.
    for n in 0..KEYS {
        buffered(&store).put(key(n), n.to_le_bytes()).unwrap();
        model.insert(key(n), n.to_le_bytes().to_vec());
        if n % 4 == 3 {
            buffered(&store).delete(key(n - 1)).unwrap();
            model.remove(&key(n - 1));
        }
    }
    store.close().unwrap();
    let pages = pages_of(&disk, &index_file(&disk));
    let mut healed = 0;
    for page in damaged_pages(pages) {
        let disk = copy(&disk);
        let context = format!("page {page} of {pages}");
        let store = KvStore::open_with(DIR, many_segments(&disk, 100 + page)).unwrap();
        disk.flip_bit(&index_file(&disk), (page * PAGE_BYTES + 40 + page * 31 % 4000) * 8).unwrap();
        store.compact(|_| true).unwrap_or_else(|error| panic!("{context}: {error}"));
        let stats = store.stats();
        healed += stats.index_rebuilds;
        expect_all(|key| store.get_bytes(key), &model, &context);
        assert_eq!(stats.keys, model.len() as u64, "{context}");
        assert!(stats.stale_bytes * 10 < stats.log_bytes, "{context}: {stats:?}");
        assert!(store.verify().unwrap().damage.is_empty(), "{context}");
        let scanned: Model = store.iter().unwrap().collect::<kvs::Result<_>>().unwrap();
        assert!(scanned == model, "{context}: {}", difference(&scanned, &model));
        let disk = disk.restart();
        drop(store);
        let store = KvStore::open_with(DIR, many_segments(&disk, 200 + page)).unwrap();
        expect_all(|key| store.get_bytes(key), &model, &context);
    }
    assert!(healed > 3, "{healed} of {pages} pages were met");
}

/// Sets are in the log before they are in the index. Where they cannot be put into it, they are kept, and later ones fail
/// before they change anything.
#[test]
fn commands_that_the_index_cannot_take_yet_are_kept_for_later() {
    let (disk, mut model) = filled(13);
    let store = KvStore::open_with(DIR, small_cache(&disk, 14)).unwrap();
    let fast = buffered(&store);
    let name = index_file(&disk).file_name().unwrap().to_str().unwrap().to_string();
    let mut choices = Choices::new(15);
    for round in 0..3u64 {
        // Pages must leave the memory to make room for others, and cannot.
        disk.inject(DiskFault::nth(0, &name, FaultKind::Eio).only(OpKind::Write).forever());
        let mut refused = 0;
        for turn in 0..1_000u64 {
            let (n, value) = (choices.below(KEYS), (turn << 8 | round).to_le_bytes());
            let is_remove = turn % 5 == 0;
            match if is_remove { fast.delete(key(n)).map(drop) } else { fast.put(key(n), value) } {
                Ok(()) if is_remove => drop(model.remove(&key(n))),
                Ok(()) => drop(model.insert(key(n), value.to_vec())),
                Err(error) => {
                    assert!(!error.is_corruption() && !error.to_string().contains("stopped"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!((500..990).contains(&refused), "{refused} of 1000 were refused");
        disk.clear_faults();
        expect_all(|key| store.get_bytes(key), &model, "after the faults");
        assert_eq!(store.stats().keys, model.len() as u64);
        fast.put(key(round), "taken again").unwrap();
        model.insert(key(round), b"taken again".to_vec());
    }
    let scanned: Model = store.iter().unwrap().collect::<kvs::Result<_>>().unwrap();
    assert!(scanned == model, "{}", difference(&scanned, &model));
    assert!(store.verify().unwrap().damage.is_empty());
    assert_eq!(store.stats().index_rebuilds, 0);
    store.close().unwrap();
    let store = KvStore::open_with(DIR, small_cache(&disk, 16)).unwrap();
    expect_all(|key| store.get_bytes(key), &model, "opened again");
}

#[test]
fn threads_that_meet_the_same_damage_heal_it_once() {
    let temporary = tempfile::tempdir().unwrap();
    let little = || Options { index_bytes: 64 << 10, background: false, ..Options::default() };
    let store = KvStore::open_with(temporary.path(), little()).unwrap();
    let fast = buffered(&store);
    for n in 0..KEYS {
        fast.put(key(n), n.to_le_bytes()).unwrap();
    }
    store.checkpoint().unwrap();
    let path = std::fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().path());
    let path = path.into_iter().find(|path| path.to_str().unwrap().contains("/index-")).unwrap();
    let mut choices = Choices::new(12);
    for round in 1..=3 {
        match round {
            // In place, as rot does: the store has the file open and mapped.
            1 => {
                let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                let pages = file.metadata().unwrap().len() / PAGE_BYTES;
                for page in 1..pages {
                    let at = page * PAGE_BYTES + choices.below(4_000);
                    std::os::unix::fs::FileExt::write_all_at(&file, b"rotten", at).unwrap();
                }
            }
            // The file of now, cut.
            2 => {
                let path = std::fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().path());
                let path = path.into_iter().find(|path| path.to_str().unwrap().contains("/index-")).unwrap();
                std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(PAGE_BYTES * 2).unwrap();
            }
            _ => {}
        }
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let store = store.clone();
                scope.spawn(move || {
                    for n in (0..KEYS).filter(|n| n % 4 == thread) {
                        assert_eq!(
                            store.get_bytes(key(n)).unwrap(),
                            Some(n.to_le_bytes().to_vec()),
                            "key {n}"
                        );
                    }
                });
            }
        });
        assert_eq!(store.stats().index_rebuilds, round.min(2), "round {round}");
        assert!(store.verify().unwrap().damage.is_empty());
    }
}

#[test]
fn damaged_runs_are_named_by_verify_and_made_anew_by_who_scans() {
    let disk = SimDisk::new(30);
    let in_order = Options { ordered: true, ..options(sim_env(&disk, 30)) };
    let store = KvStore::open_with(DIR, in_order).unwrap();
    let mut model = Model::new();
    for n in 0..600 {
        buffered(&store).put(key(n), n.to_le_bytes()).unwrap();
        model.insert(key(n), n.to_le_bytes().to_vec());
    }
    store.close().unwrap();
    drop(store);
    let is_run =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_str().unwrap().starts_with("run-"));
    let run = disk.paths().into_iter().find(is_run).expect("a close leaves a run");
    let len = disk.contents(&run).unwrap().len() as u64;
    let (mut named, mut passed) = (0, 0);
    let positions = (0..88).step_by(9).chain((PAGE_BYTES..len).step_by(151));
    for (n, at) in positions.enumerate() {
        let (disk, context) = (copy(&disk), format!("byte {at} of {len}"));
        disk.flip_bit(&run, at * 8 + 3).unwrap();
        let store = KvStore::open_with(DIR, options(sim_env(&disk, 100 + n as u64))).unwrap();
        match &store.verify().unwrap().damage[..] {
            [] => passed += 1,
            [error @ Error::RunDamaged { path, .. }] => {
                assert!(*path == run && error.is_corruption(), "{context}: {error}");
                named += 1;
            }
            other => panic!("{context}: {other:?}"),
        }
        let scanned: Model = store.iter().unwrap().collect::<kvs::Result<_>>().unwrap();
        assert!(scanned == model, "{context}: {}", difference(&scanned, &model));
        store.put(key(0), model[&key(0)].clone()).unwrap();
        store.compact(|_| true).unwrap();
        assert!(store.verify().unwrap().damage.is_empty(), "{context}");
        assert!(store.stats().sorted_runs == 1 && !disk.exists(&run), "{context}");
    }
    assert!(named > 20, "{named} named, {passed} without meaning");
}
