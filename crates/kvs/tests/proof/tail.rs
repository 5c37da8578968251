//! What lies behind the last checkpoint: segments that were given back, so that what its index has at their addresses means
//! nothing; and lists of commands, so that an open need not read them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvs::{KvReader, KvStore, Options};
use lsfs::Env;
use lsfs::io::{CrashStyle, Disk as _, SimDisk, SimRuntime};

use crate::healing::{PAGE_BYTES, copy, index_file, pages_of};
use crate::order::scan;
use crate::support::{Choices, budget, sim_env};
use crate::{DIR, Model, buffered, difference, options};

const KEYS: u64 = 700;

fn key(n: u64) -> Vec<u8> {
    format!("key {n:05}").into_bytes()
}

/// Looks keys up one by one, each for itself.
fn check(get: impl Fn(&[u8]) -> kvs::Result<Option<Vec<u8>>>, model: &Model, context: &str) {
    let found: Model = (0..KEYS)
        .filter_map(|n| {
            get(&key(n)).unwrap_or_else(|error| panic!("{context}: {error}")).map(|v| (key(n), v))
        })
        .collect();
    assert!(found == *model, "{context}: {}", difference(&found, model));
}

/// Sets and removes keys until segments have gone since the last checkpoint; the reader is opened at that checkpoint.
fn write_until_gone(
    store: &KvStore,
    model: &mut Model,
    choices: &mut Choices,
    reader_seed: u64,
    disk: &SimDisk,
) -> KvReader {
    let mut reader = None;
    let (mut tail_bytes, mut reclaimed) = (u64::MAX, 0);
    for tag in 0..100_000u64 {
        let n = choices.below(KEYS);
        if choices.below(4) == 0 {
            assert_eq!(store.delete(key(n)).unwrap(), model.remove(&key(n)).is_some());
        } else {
            let value = [&tag.to_le_bytes()[..], &vec![7; choices.below(60) as usize]].concat();
            store.put(key(n), &value).unwrap();
            model.insert(key(n), value);
        }
        let stats = store.stats();
        if stats.tail_bytes < tail_bytes {
            reclaimed = stats.reclaimed_segments;
            reader = Some(KvReader::open_with(DIR, options(sim_env(disk, reader_seed + tag))).unwrap());
        }
        tail_bytes = stats.tail_bytes;
        // Two and more, so that their numbers are used again before the end.
        if stats.reclaimed_segments > reclaimed + 1 {
            return reader.expect("tail bytes fall from the greatest there are");
        }
    }
    panic!("segments go only with checkpoints: {:?}", store.stats());
}

#[test]
fn addresses_in_segments_that_are_gone_mean_nothing_after_a_kill() {
    for seed in 1..=budget("KVS_GONE_SEEDS", 12) {
        let mut choices = Choices::new(seed);
        let (mut disk, mut model) = (SimDisk::new(seed), Model::new());
        for life in 0..4 {
            let context = format!("seed {seed}, life {life}");
            let opened = seed * 1_000_000 + life * 250_000;
            let store = KvStore::open_with(DIR, options(sim_env(&disk, opened))).unwrap();
            // After a kill: what is met first is the index of the checkpoint, then what the log says later.
            match life % 3 {
                0 => check(|key| store.get_bytes(key), &model, &context),
                1 => assert!(store.verify().unwrap().damage.is_empty(), "{context}"),
                _ => {}
            }
            let reader = write_until_gone(&store, &mut model, &mut choices, opened + 1, &disk);
            check(|key| reader.get_bytes(key), &model, &format!("{context}, reader"));
            check(|key| store.get_bytes(key), &model, &context);
            assert!(scan(&reader).unwrap() == model, "{context}");
            disk = disk.restart();
            drop(store);
            // A reader of what the killed process left, which nobody has settled.
            let reader = KvReader::open_with(DIR, options(sim_env(&disk, opened + 200_000))).unwrap();
            check(|key| reader.get_bytes(key), &model, &format!("{context}, later reader"));
        }
        let store = KvStore::open_with(DIR, options(sim_env(&disk, seed * 1_000_000 + 999_999))).unwrap();
        let context = format!("seed {seed}, at the end");
        assert!(!store.open_report().rebuilt, "{context}");
        assert_eq!(store.stats().keys, model.len() as u64, "{context}");
        check(|key| store.get_bytes(key), &model, &context);
        assert!(store.verify().unwrap().damage.is_empty(), "{context}");
        store.compact(|_| true).unwrap();
        check(|key| store.get_bytes(key), &model, &context);
    }
}

/// Sets keys until there are many commands behind the checkpoint, and kills the writer.
fn kill_behind_lists(disk: &SimDisk, seed: u64) -> (SimDisk, Model) {
    let store = KvStore::open_with(DIR, options(sim_env(disk, seed))).unwrap();
    let mut model = Model::new();
    let mut set = |n: u64, tag: u8| {
        buffered(&store).put(key(n % KEYS), [tag; 20]).unwrap();
        model.insert(key(n % KEYS), vec![tag; 20]);
    };
    (0..KEYS).for_each(|n| set(n, 0));
    store.checkpoint().unwrap();
    (0..400).for_each(|n| set(n * 7, 1 + (n / 100) as u8));
    store.sync().unwrap();
    let after = disk.restart();
    drop(store);
    (after, model)
}

#[test]
fn an_open_after_a_kill_reads_only_what_is_not_listed() {
    let (disk, model) = kill_behind_lists(&SimDisk::new(1), 1);
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 2))).unwrap();
    let report = store.open_report();
    assert!(!report.rebuilt && report.replayed < 100, "of 400: {report:?}");
    check(|key| store.get_bytes(key), &model, "before anything is settled");
    // The lists go on where they ended.
    for n in 0..150 {
        buffered(&store).put(key(n), "after").unwrap();
    }
    store.sync().unwrap();
    let disk = disk.restart();
    drop(store);
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 3))).unwrap();
    assert!(store.open_report().replayed < 100, "of 550: {:?}", store.open_report());
    assert_eq!(store.get_bytes(key(149)).unwrap().as_deref(), Some(&b"after"[..]));
    assert_eq!(store.stats().keys, KEYS);
    assert!(store.verify().unwrap().damage.is_empty());
    store.close().unwrap();
    assert!(!disk.paths().iter().any(|path| path.ends_with("tail")), "a closed store needs no list");
}

#[test]
fn lists_that_are_damaged_or_missing_are_not_missed() {
    let (disk, model) = kill_behind_lists(&SimDisk::new(2), 1);
    let path = Path::new(DIR).join("tail");
    let lists = disk.contents(&path).unwrap();
    assert!(lists.len() >= 3 * 4096, "{} bytes", lists.len());
    let undamaged =
        KvStore::open_with(DIR, options(sim_env(&copy(&disk), 2))).unwrap().open_report().replayed;
    for at in (0..lists.len()).step_by(509) {
        let disk = copy(&disk);
        let mut damaged = lists.clone();
        damaged[at] ^= 0x10;
        disk.put(&path, &damaged).unwrap();
        let context = format!("byte {at}");
        let reader = KvReader::open_with(DIR, options(sim_env(&disk, 3))).unwrap();
        check(|key| reader.get_bytes(key), &model, &context);
        let store = KvStore::open_with(DIR, options(sim_env(&disk, 4))).unwrap();
        assert!(store.open_report().replayed >= undamaged, "{context}");
        check(|key| store.get_bytes(key), &model, &context);
        assert_eq!(store.stats().keys, model.len() as u64, "{context}");
    }
    disk.remove(&path).unwrap();
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 5))).unwrap();
    assert!(store.open_report().replayed >= 400, "{:?}", store.open_report());
    check(|key| store.get_bytes(key), &model, "without lists");
}

/// Damages all pages of the index but those of its directory, which the open reads.
fn damage_slots(disk: &SimDisk) {
    let path = index_file(disk);
    let damage = |disk: &SimDisk, page: u64| disk.flip_bit(&path, (page * PAGE_BYTES + 900) * 8).unwrap();
    let is_of_directory = |page: &u64| {
        let disk = copy(disk);
        damage(&disk, *page);
        let store = KvStore::open_with(DIR, options(sim_env(&disk, 100 + page))).unwrap();
        store.open_report().rebuilt
    };
    let pages: Vec<u64> = (1..pages_of(disk, &path)).filter(|page| !is_of_directory(page)).collect();
    pages.into_iter().for_each(|page| damage(disk, page));
}

#[test]
fn crashes_while_an_index_heals_over_a_listed_tail_lose_nothing() {
    let mut images = 0;
    for seed in 1..=budget("KVS_HEAL_CRASH_SEEDS", 3) {
        let (disk, mut model) = kill_behind_lists(&SimDisk::new(seed), 1);
        damage_slots(&disk);
        disk.start_trace();
        let store = KvStore::open_with(DIR, options(sim_env(&disk, 2))).unwrap();
        assert!(!store.open_report().rebuilt, "the open does not meet the damage");
        let mut states = vec![(disk.trace_len(), model.clone())];
        for n in 0..80 {
            store.put(key(n * 11 % KEYS), n.to_le_bytes()).unwrap();
            model.insert(key(n * 11 % KEYS), n.to_le_bytes().to_vec());
            states.push((disk.trace_len(), model.clone()));
        }
        assert_eq!(store.stats().index_rebuilds, 1, "it was healed on the way");
        let trace = disk.stop_trace();
        drop(disk.restart());
        drop(store);
        let mut choices = Choices::new(seed);
        let mut crash_images = trace.images();
        loop {
            let point = crash_images.crash_point();
            for style in CrashStyle::ALL {
                if choices.below(4) > 0 {
                    continue;
                }
                let image = crash_images.image(style, choices.next());
                let context = format!("seed {seed}, {}, {style:?}", trace.describe(point));
                let store = KvStore::open_with(DIR, options(sim_env(&image, choices.next()))).unwrap();
                let last = states.iter().rposition(|(end, _)| *end <= point).unwrap_or(0);
                let found: Model =
                    (0..KEYS).filter_map(|n| Some((key(n), store.get_bytes(key(n)).unwrap()?))).collect();
                let is_admitted = states[last..].iter().take(2).any(|(_, model)| *model == found);
                assert!(is_admitted, "{context}: {}", difference(&found, &states[last].1));
                assert_eq!(store.stats().keys, found.len() as u64, "{context}");
                assert!(store.verify().unwrap().damage.is_empty(), "{context}");
                drop(image.restart());
                images += 1;
            }
            if !crash_images.advance() {
                break;
            }
        }
    }
    assert!(images > 300, "{images}");
}

#[test]
fn a_segment_that_cannot_be_read_is_not_taken_for_one_that_is_gone() {
    let (disk, model) = kill_behind_lists(&SimDisk::new(3), 1);
    let is_segment = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "seg");
    let segments: Vec<_> = disk.paths().into_iter().filter(is_segment).collect();
    assert!(segments.len() > 1, "{segments:?}");
    for segment in segments {
        let disk = copy(&disk);
        // Its file header.
        disk.flip_bit(&segment, 20 * 8).unwrap();
        let Ok(store) = KvStore::open_with(DIR, options(sim_env(&disk, 2))) else { continue };
        let (mut found, mut refused) = (0, 0);
        for n in 0..KEYS {
            match store.get_bytes(key(n)) {
                Ok(value) => {
                    assert_eq!(value.as_ref(), model.get(&key(n)), "{}: key {n}", segment.display());
                    found += 1;
                }
                Err(error) => {
                    assert!(error.is_corruption(), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(found > 0 && refused > 0, "{}: {found} found, {refused} refused", segment.display());
    }
}

/// Damages the last frame that sets a key to this value.
fn damage_frame(disk: &SimDisk, key: &[u8], value: &[u8]) {
    let is_segment = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "seg");
    let wanted = [key, value].concat();
    let found = disk.paths().into_iter().filter(is_segment).filter_map(|path| {
        let bytes = disk.contents(&path).unwrap();
        let at = bytes.windows(wanted.len()).rposition(|window| window == wanted)?;
        Some((path, at))
    });
    let (path, at) = found.max().unwrap_or_else(|| panic!("{wanted:?} is in no segment"));
    disk.flip_bit(&path, (at as u64 + wanted.len() as u64 - 1) * 8).unwrap();
}

/// What a key with a lost command is afterwards.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Lost,
    Set,
    Removed,
}

/// Looks up all keys; those whose command is lost are refused, and the place is named.
fn check_fates(
    get: impl Fn(&[u8]) -> kvs::Result<Option<Vec<u8>>>,
    model: &Model,
    fates: &BTreeMap<u64, Fate>,
    context: &str,
) {
    for n in 0..KEYS + 2 {
        let found = get(&key(n));
        if fates.get(&n) == Some(&Fate::Lost) {
            let error = found.expect_err("an older value is not answered, nor that there is none");
            let is_named =
                ["in segment ", ".seg at byte"].iter().any(|place| error.to_string().contains(place));
            assert!(error.is_corruption() && is_named, "{context}: {error}");
            continue;
        }
        let found = found.unwrap_or_else(|error| panic!("{context}: key {n}: {error}"));
        assert_eq!(found.as_ref(), model.get(&key(n)), "{context}: key {n}");
    }
}

#[test]
fn a_listed_command_that_is_damaged_is_named_and_the_store_goes_on() {
    // Older values are there, of other tags; the last key is a new one.
    let lost_keys = [5u64, 40, 77, KEYS + 1];
    for is_settled_before_checkpoint in [false, true] {
        let disk = SimDisk::new(4);
        let uncompacted = Options { stale_percent: 100_000, ..options(sim_env(&disk, 1)) };
        let store = KvStore::open_with(DIR, uncompacted).unwrap();
        let mut model = Model::new();
        (0..KEYS).for_each(|n| buffered(&store).put(key(n), [0; 20]).unwrap());
        // The values before lie in other segments than what is lost.
        (0..100).for_each(|n| buffered(&store).put(format!("filler {n}"), [3; 900]).unwrap());
        store.checkpoint().unwrap();
        for n in (0..400).chain([KEYS + 1]).chain(400..KEYS) {
            if n == 390 {
                buffered(&store).put(key(391), [9; 20]).unwrap();
            }
            buffered(&store).put(key(n), [1; 20]).unwrap();
            model.insert(key(n), vec![1; 20]);
        }
        store.sync().unwrap();
        let disk = disk.restart();
        drop(store);
        for n in lost_keys {
            damage_frame(&disk, &key(n), &[1; 20]);
            model.remove(&key(n));
        }
        // Older than the last command of its key: of no concern.
        damage_frame(&disk, &key(391), &[9; 20]);
        let mut fates = BTreeMap::from(lost_keys.map(|n| (n, Fate::Lost)));
        let open = |disk: &SimDisk, seed| KvStore::open_with(DIR, options(sim_env(disk, seed))).unwrap();
        let store = open(&disk, 2);
        assert!(
            !store.open_report().rebuilt && store.open_report().replayed < 100,
            "{:?}",
            store.open_report()
        );
        check_fates(|key| store.get_bytes(key), &model, &fates, "as opened");
        if is_settled_before_checkpoint {
            assert_eq!(store.stats().lost_commands, 5);
            check_fates(|key| store.get_bytes(key), &model, &fates, "settled");
        }
        assert!(store.compare_and_swap(key(5), Some(&[0; 20]), Some(b"new")).unwrap_err().is_corruption());
        assert!(store.compare_and_swap(key(KEYS + 1), None, Some(b"new")).unwrap_err().is_corruption());
        store.checkpoint().unwrap();
        assert!(!store.verify().unwrap().damage.is_empty());
        let reader = KvReader::open_with(DIR, options(sim_env(&disk, 3))).unwrap();
        check_fates(|key| reader.get_bytes(key), &model, &fates, "reader");
        // A key is set and one is removed, and everything else is written again and compacted, twice.
        store.put(key(40), "set again").unwrap();
        model.insert(key(40), b"set again".to_vec());
        assert!(store.delete(key(77)).unwrap(), "whatever it was, it is gone");
        fates.extend([(40, Fate::Set), (77, Fate::Removed)]);
        for round in 0..2u8 {
            for n in (0..KEYS).filter(|n| !lost_keys.contains(n)) {
                buffered(&store).put(key(n), [2 + round; 20]).unwrap();
                model.insert(key(n), vec![2 + round; 20]);
            }
            store.compact(|_| true).unwrap();
            let context = format!("compacted, round {round}");
            check_fates(|key| store.get_bytes(key), &model, &fates, &context);
            check_fates(|key| reader.get_bytes(key), &model, &fates, &context);
            assert_eq!(store.stats().lost_commands, 5);
        }
        assert!(store.stats().reclaimed_segments > 0, "{:?}", store.stats());
        let disk = disk.restart();
        drop((store, reader));
        let store = open(&disk, 4);
        assert!(!store.open_report().rebuilt);
        check_fates(|key| store.get_bytes(key), &model, &fates, "after another kill");
        store.close().unwrap();
        drop(store);
        let store = open(&disk, 5);
        check_fates(|key| store.get_bytes(key), &model, &fates, "after a close");
        drop(store);
        let reader = KvReader::open_with(DIR, options(sim_env(&disk, 6))).unwrap();
        check_fates(|key| reader.get_bytes(key), &model, &fates, "reader of the closed store");
        let repaired = Options { repair: true, ..options(sim_env(&disk, 7)) };
        let store = KvStore::open_with(DIR, repaired).unwrap();
        assert!(store.open_report().left_out.len() >= 4, "{:?}", store.open_report());
        assert_eq!(store.stats().lost_commands, 0);
        fates.retain(|_, fate| *fate != Fate::Lost);
        model.insert(key(5), vec![0; 20]);
        check_fates(|key| store.get_bytes(key), &model, &fates, "repaired: the values before");
    }
}

#[test]
fn a_store_that_comes_to_rest_makes_one_checkpoint_and_no_more() {
    let (disk, runtime) = (SimDisk::new(5), SimRuntime::always_inline(1));
    let env = Env { disk: Arc::new(disk.clone()), runtime: Arc::new(runtime.clone()) };
    let store = KvStore::open_with(DIR, options(env)).unwrap();
    (0..KEYS).for_each(|n| store.put(key(n), [0; 20]).unwrap());
    store.checkpoint().unwrap();
    let pass = |millis| {
        runtime.advance(Duration::from_millis(millis));
        runtime.settle();
    };
    // Little by little, with pauses: not worth the pages each time.
    let mut tail_bytes = 0;
    for round in 0..40u64 {
        (0..5).for_each(|n| store.put(key(n), round.to_le_bytes()).unwrap());
        pass(1_100);
        assert!(store.stats().tail_bytes > tail_bytes, "round {round}");
        tail_bytes = store.stats().tail_bytes;
    }
    let write = |rounds: u64| (0..rounds).for_each(|n| store.put(key(n % 10), [1; 20]).unwrap());
    write(1_500);
    assert!(store.stats().tail_bytes > 40 << 10, "{:?}", store.stats());
    pass(600);
    write(20);
    pass(600);
    assert!(store.stats().tail_bytes > 40 << 10, "it is written still");
    pass(500);
    assert_eq!(store.stats().tail_bytes, 0);
    let operations = disk.op_count();
    (0..20).for_each(|_| pass(1_500));
    assert_eq!(disk.op_count(), operations, "it rests");
    let disk = disk.restart();
    drop(store);
    let store = KvStore::open_with(DIR, options(sim_env(&disk, 2))).unwrap();
    assert_eq!((store.open_report().replayed, store.open_report().rebuilt), (0, false));
    assert_eq!(store.stats().keys, KEYS);
}

/// Lists of a key that is set all the time take more than a store may have that is stale.
#[test]
fn however_much_may_be_stale_lists_beside_the_log_do_not_take_all_of_it() {
    let disk = SimDisk::new(1);
    let options = Options { stale_percent: 300, ..options(sim_env(&disk, 1)) };
    let store = KvStore::open_with(DIR, options).unwrap();
    store.put("key", "first").unwrap();
    store.checkpoint().unwrap();
    let writing = buffered(&store);
    for n in 0..3000 {
        writing.put("key", format!("value {n}")).unwrap();
    }
    assert_eq!(store.get_bytes("key").unwrap().unwrap(), b"value 2999");
    store.close().unwrap();
}
