//! The library on the real disk, as its users call it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use kvs::{
    Batch, Compression, Durability, Error, KEY_BYTES_MAX, KvReader, KvStore, KvsEngine, Options, Result,
    Swap, VALUE_BYTES_MAX,
};
use tempfile::TempDir;

fn temporary() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Bytes of all files below a directory.
fn size_of(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(
            |entry| {
                if entry.path().is_dir() { size_of(&entry.path()) } else { entry.metadata().unwrap().len() }
            },
        )
        .sum()
}

#[test]
fn sets_gets_and_removes_strings() -> Result<()> {
    let dir = temporary();
    let store = KvStore::open(dir.path())?;
    store.set("key1".to_string(), "value1".to_string())?;
    store.set("key2".to_string(), "value2".to_string())?;
    assert_eq!(store.get("key1".to_string())?, Some("value1".to_string()));
    store.set("key1".to_string(), "value3".to_string())?;
    assert_eq!(store.get("key1".to_string())?, Some("value3".to_string()));
    store.remove("key2".to_string())?;
    assert_eq!(store.get("key2".to_string())?, None);
    let error = store.remove("key2".to_string()).unwrap_err();
    assert!(matches!(error, Error::KeyNotFound) && error.to_string().contains("not found"), "{error}");
    assert_eq!(store.get("never".to_string())?, None);
    drop(store);
    let store = KvStore::open(dir.path())?;
    assert_eq!(store.get("key1".to_string())?, Some("value3".to_string()));
    assert_eq!(store.get("key2".to_string())?, None);
    assert_eq!(store.stats().keys, 1);
    Ok(())
}

/// What a program that can take any engine does.
fn count_up<E: KvsEngine>(engine: &E, key: &str) -> Result<u32> {
    let next = engine.get(key.to_string())?.map_or(0, |text| text.parse().unwrap()) + 1;
    engine.set(key.to_string(), next.to_string())?;
    Ok(next)
}

#[test]
fn an_engine_is_shared_by_cloning_it() -> Result<()> {
    fn is_shared<T: Clone + Send + Sync + 'static>(_: &T) {}
    let dir = temporary();
    let store = KvStore::open(dir.path())?;
    is_shared(&store);
    let clone = store.clone();
    assert_eq!(thread::spawn(move || count_up(&clone, "n")).join().unwrap()?, 1);
    assert_eq!(count_up(&store, "n")?, 2);
    KvsEngine::remove(&store, "n".to_string())?;
    assert!(matches!(KvsEngine::remove(&store, "n".to_string()), Err(Error::KeyNotFound)));
    Ok(())
}

#[test]
fn any_bytes_and_all_sizes() -> Result<()> {
    let dir = temporary();
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let store = KvStore::open_with(dir.path(), Options { compression, ..Options::default() })?;
        let largest: Vec<u8> = (0..VALUE_BYTES_MAX).map(|at| (at / 1000) as u8).collect();
        let pairs: [(&[u8], &[u8]); 5] = [
            (b"", b""),
            (b"", b"a value for the empty key"),
            (b"\0\xff\n", b"\xff\xfe\0"),
            (&[b'k'; KEY_BYTES_MAX], b"of the longest key"),
            (b"large", &largest),
        ];
        for (key, value) in pairs {
            store.put(key, value)?;
            assert!(
                store.get_bytes(key)?.as_deref() == Some(value),
                "{compression:?}, {} bytes",
                value.len()
            );
        }
        drop(store);
        let store = KvStore::open(dir.path())?;
        for (key, value) in &pairs[1..] {
            assert!(store.get_bytes(key)?.as_deref() == Some(value), "{compression:?} after a reopen");
        }
    }
    let store = KvStore::open(dir.path())?;
    let error = store.put(vec![0; KEY_BYTES_MAX + 1], b"").unwrap_err();
    assert!(matches!(error, Error::TooLarge { what: "key", size_bytes: 65_536, limit_bytes: 65_535 }));
    let error = store.put(b"k", vec![0; VALUE_BYTES_MAX + 1]).unwrap_err();
    assert!(matches!(error, Error::TooLarge { what: "value", .. }));
    let mut batch = Batch::new();
    for n in 0..3u8 {
        batch.put([n], vec![0; 30 << 20]);
    }
    assert!(matches!(store.write(&batch), Err(Error::TooLarge { what: "batch", .. })));
    store.put("binary", b"ab\xff")?;
    let error = store.get("binary".to_string()).unwrap_err();
    assert!(matches!(&error, Error::NotUtf8 { valid_up_to: 2, .. }), "{error}");
    Ok(())
}

#[test]
fn batches_and_swaps() -> Result<()> {
    let dir = temporary();
    let store = KvStore::open(dir.path())?;
    store.write(&Batch::new())?;
    store.put("a", "0")?;
    let mut batch = Batch::new();
    batch.put("a", "1").put("b", "2").delete("c").put("d", "3").delete("d").put("a", "4");
    assert_eq!((batch.len(), batch.is_empty()), (6, false));
    store.write(&batch)?;
    let values = store.multi_get(&["a", "b", "c", "d"])?;
    assert_eq!(values, [Some(b"4".to_vec()), Some(b"2".to_vec()), None, None]);
    assert!(store.contains("a")? && !store.contains("d")?);
    assert_eq!(store.compare_and_swap("a", Some(b"4"), Some(b"5"))?, Swap::Done);
    let current = Some(b"5".to_vec());
    assert_eq!(
        store.compare_and_swap("a", Some(b"4"), Some(b"6"))?,
        Swap::Differs { current: current.clone() }
    );
    assert_eq!(store.compare_and_swap("a", None, Some(b"6"))?, Swap::Differs { current });
    assert_eq!(store.compare_and_swap("new", None, Some(b"1"))?, Swap::Done);
    assert_eq!(store.compare_and_swap("new", Some(b"1"), None)?, Swap::Done);
    assert_eq!(store.compare_and_swap("new", None, None)?, Swap::Done);
    assert_eq!(store.get_bytes("new")?, None);
    assert_eq!(store.stats().keys, 2);
    Ok(())
}

#[test]
fn swaps_of_many_threads_count_right() -> Result<()> {
    let dir = temporary();
    let store = KvStore::open(dir.path())?.with_durability(Durability::Buffer);
    let add = |store: &KvStore| -> Result<()> {
        loop {
            let current = store.get_bytes("n")?;
            let number: u64 =
                current.as_ref().map_or(0, |text| String::from_utf8_lossy(text).parse().unwrap());
            let next = (number + 1).to_string();
            if store.compare_and_swap("n", current.as_deref(), Some(next.as_bytes()))? == Swap::Done {
                return Ok(());
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..200).for_each(|_| add(&store).unwrap()));
        }
    });
    assert_eq!(store.get("n".to_string())?, Some("1600".to_string()));
    Ok(())
}

#[test]
fn a_thousand_threads_set_and_get_through_clones() -> Result<()> {
    let dir = temporary();
    let store = KvStore::open(dir.path())?;
    let right = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..1000)
        .map(|n| {
            let (store, right) = (store.clone(), Arc::clone(&right));
            let body = move || {
                let (key, value) = (format!("key{n}"), format!("value{n}"));
                store.set(key.clone(), value.clone()).unwrap();
                assert_eq!(store.get(key).unwrap(), Some(value));
                right.fetch_add(1, Ordering::Relaxed);
            };
            thread::Builder::new().stack_size(256 << 10).spawn(body).unwrap()
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(right.load(Ordering::Relaxed), 1000);
    drop(store);
    let store = KvStore::open(dir.path())?;
    for n in 0..1000 {
        assert_eq!(store.get(format!("key{n}"))?, Some(format!("value{n}")));
    }
    Ok(())
}

#[test]
fn a_thousand_keys_overwritten_a_thousand_times_shrink_and_reopen_right() -> Result<()> {
    let dir = temporary();
    let store = KvStore::open(dir.path())?.with_durability(Durability::Buffer);
    let (mut largest, mut has_shrunk) = (0, false);
    for round in 0..1000 {
        for n in 0..1000 {
            store.put(format!("key{n}"), format!("value {round} of a key with a number"))?;
        }
        let size = size_of(dir.path());
        has_shrunk |= size < largest;
        largest = largest.max(size);
    }
    assert!(has_shrunk, "at most {largest} bytes");
    assert!(largest < 16 << 20, "60 MB were written, the directory had {largest} bytes");
    drop(store);
    let store = KvStore::open(dir.path())?;
    for n in 0..1000 {
        let value = store.get(format!("key{n}"))?;
        assert_eq!(value, Some("value 999 of a key with a number".to_string()), "key{n}");
    }
    assert_eq!(store.open_report().replayed, 0, "a clean close leaves nothing to replay");
    Ok(())
}

#[test]
fn a_small_index_budget_only_costs_speed() -> Result<()> {
    let dir = temporary();
    let options = || Options { index_bytes: 64 << 10, ..Options::default() };
    let store = KvStore::open_with(dir.path(), options())?.with_durability(Durability::Buffer);
    for n in 0..40_000u64 {
        store.put(n.to_le_bytes(), n.to_string())?;
    }
    let stats = store.stats();
    assert!(stats.index_pages > 60 && stats.index_memory_bytes < 100_000, "{stats:?}");
    store.sync()?;
    drop(store);
    let store = KvStore::open_with(dir.path(), options())?;
    for n in (0..40_000u64).step_by(37) {
        assert_eq!(store.get_bytes(n.to_le_bytes())?, Some(n.to_string().into_bytes()));
    }
    assert_eq!(store.verify()?.live, 40_000);
    Ok(())
}

#[test]
fn what_is_exported_can_be_imported() -> Result<()> {
    let dir = temporary();
    let store = KvStore::open(dir.path())?.with_durability(Durability::Buffer);
    let mut model = BTreeMap::new();
    for n in 0..500u64 {
        let (key, value) = (format!("key {}", n % 300).into_bytes(), n.to_le_bytes().to_vec());
        store.put(&key, &value)?;
        model.insert(key, value);
    }
    store.delete("key 7")?;
    model.remove(&b"key 7"[..]);
    let mut text = Vec::new();
    assert_eq!(store.export(&mut text)?, 299);
    let mut lines = kvs::JsonLines::new(&text[..]);
    let mut found = BTreeMap::new();
    while let Some((key, value)) = lines.next_change().unwrap() {
        found.insert(key, value.unwrap());
    }
    assert_eq!(found, model);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert!(matches!(store.export(full), Err(Error::Export(_))));
    Ok(())
}

#[test]
fn a_closed_store_refuses_writes_and_can_be_opened_again() -> Result<()> {
    let dir = temporary();
    let store = KvStore::open(dir.path())?;
    store.put("a", "b")?;
    store.close()?;
    assert!(store.put("c", "d").is_err());
    let again = KvStore::open(dir.path())?;
    assert_eq!(again.get_bytes("a")?, Some(b"b".to_vec()));
    assert!(KvStore::open(dir.path()).unwrap_err().is_locked());
    Ok(())
}

#[test]
fn a_reader_beside_the_writer_never_goes_back() -> Result<()> {
    let dir = temporary();
    // Small segments: the log is compacted and checkpoints are made all the time.
    let options = Options { segment_bytes: 64 << 10, ..Options::default() };
    let store = KvStore::open_with(dir.path(), options)?.with_durability(Durability::Buffer);
    let keys = 50u64;
    for key in 0..keys {
        store.put(key.to_le_bytes(), 0u64.to_le_bytes())?;
    }
    store.sync()?;
    let is_done = AtomicU64::new(0);
    thread::scope(|scope| {
        let reading = |seed: u64| {
            let reader = KvReader::open(dir.path()).unwrap();
            let (mut seen, mut gets) = (vec![0u64; keys as usize], 0u64);
            while is_done.load(Ordering::Relaxed) == 0 || gets < 1_000 {
                let key = (gets * 7 + seed) % keys;
                let value = reader.get_bytes(key.to_le_bytes()).unwrap().expect("always there");
                let version = u64::from_le_bytes(value[..8].try_into().unwrap());
                assert!(version >= seen[key as usize], "key {key}: {version} after {}", seen[key as usize]);
                seen[key as usize] = version;
                assert_eq!(reader.get_bytes(b"never").unwrap(), None);
                gets += 1;
            }
            gets
        };
        let readers: Vec<_> = (0..2).map(|seed| scope.spawn(move || reading(seed))).collect();
        for version in 1..=400u64 {
            for key in 0..keys {
                let value = [version.to_le_bytes().to_vec(), vec![0; 100]].concat();
                store.put(key.to_le_bytes(), value).unwrap();
            }
            if version % 50 == 0 {
                store.checkpoint().unwrap();
            }
        }
        store.sync().unwrap();
        is_done.store(1, Ordering::Relaxed);
        let gets: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        assert!(gets >= 2_000);
    });
    assert!(store.stats().reclaimed_segments > 10, "{:?}", store.stats());
    let reader = KvReader::open(dir.path())?;
    let last = |reader: &KvReader| reader.get_bytes(7u64.to_le_bytes()).map(|value| value.unwrap()[0]);
    assert_eq!(last(&reader)?, (400 % 256) as u8);
    store.delete(7u64.to_le_bytes())?;
    store.sync()?;
    assert!(!reader.contains(7u64.to_le_bytes())?, "it follows");
    drop(store);
    assert_eq!(
        reader.multi_get(&[8u64.to_le_bytes(), 7u64.to_le_bytes()])?[1],
        None,
        "also without a writer"
    );
    let missing = dir.path().join("missing");
    assert!(matches!(KvReader::open(&missing), Err(Error::NotAStore { .. })));
    assert!(!missing.exists());
    Ok(())
}

/// All files of the directory count, the index too, but not what is made ready for the next writes: that is bounded by
/// itself.
#[test]
fn space_at_rest_is_at_most_1_3_times_the_data_after_overwriting_everything_ten_times() -> Result<()> {
    const KEYS: u64 = 12_000;
    let value = |n: u64, round: u64| format!("{round} {n:01000}");
    // In the order of the keys, and in another one each time.
    for is_random in [false, true] {
        let dir = temporary();
        let store = KvStore::open(dir.path())?.with_durability(Durability::Buffer);
        let mut data_bytes = 0;
        for round in 0..=10 {
            data_bytes = 0;
            for at in 0..KEYS {
                let n = if is_random { (at * 7_919 + round * 1_013) % KEYS } else { at };
                let (key, value) = (format!("key {n}"), value(n, round));
                data_bytes += (key.len() + value.len()) as u64;
                store.put(key, value)?;
            }
        }
        drop(store);
        let size = size_of(dir.path());
        let store = KvStore::open(dir.path())?;
        let ready_bytes = store.stats().ready_bytes;
        assert!(
            ready_bytes <= data_bytes / 4 + (1 << 20),
            "{ready_bytes} bytes ready for {data_bytes} of data"
        );
        let amplification = (size - ready_bytes) as f64 / data_bytes as f64;
        eprintln!("{size} bytes, {ready_bytes} of them ready, for {data_bytes} of data: {amplification:.2}");
        assert!(amplification <= 1.3, "{size} bytes, {ready_bytes} of them ready, for {data_bytes} of data");
        assert_eq!(store.stats().keys, KEYS);
        for n in (0..KEYS).step_by(7) {
            assert_eq!(store.get(format!("key {n}"))?, Some(value(n, 10)), "key {n}");
        }
    }
    Ok(())
}

#[test]
fn ranges_and_prefixes_from_both_ends() -> Result<()> {
    let dir = temporary();
    let store = KvStore::open(dir.path())?;
    for key in [&b""[..], b"a", b"ab", b"b", b"\xff", b"\xff\xff"] {
        store.put(key, key)?;
    }
    let keys = |range: kvs::Range| range.keys().collect::<Result<Vec<_>>>();
    assert_eq!(keys(store.range("a".."b")?)?, [&b"a"[..], b"ab"]);
    assert_eq!(keys(store.range("a"..="b")?)?, [&b"a"[..], b"ab", b"b"]);
    assert_eq!(keys(store.range::<str>(..)?)?.len(), 6);
    assert_eq!(keys(store.range("b".."a")?)?, [b""; 0], "nothing lies between, and nothing panics");
    assert_eq!(keys(store.prefix(b"\xff")?)?, [&b"\xff"[..], b"\xff\xff"]);
    assert_eq!(keys(store.prefix("")?)?.len(), 6);
    let mut range = store.iter()?;
    assert_eq!(range.next().unwrap()?.0, b"");
    assert_eq!(range.next_back().unwrap()?.0, b"\xff\xff");
    assert_eq!(range.map(|pair| pair.map(|(key, _)| key)).collect::<Result<Vec<_>>>()?.len(), 4);
    let lent = |range: kvs::Range| -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut pairs = Vec::new();
        range.lend_each::<Error>(|key, value| {
            pairs.push((key.to_vec(), value.to_vec()));
            Ok(())
        })?;
        Ok(pairs)
    };
    assert_eq!(lent(store.iter()?)?, store.iter()?.collect::<Result<Vec<_>>>()?);
    assert_eq!(lent(store.range("b".."a")?)?, []);
    let mut range = store.iter()?;
    assert!(range.next().is_some() && range.next_back().is_some());
    let left: Vec<_> = lent(range)?.into_iter().map(|(key, _)| key).collect();
    assert_eq!(left, [&b"a"[..], b"ab", b"b", b"\xff"], "only what neither end has answered");
    let mut seen = 0;
    let stopped = store.iter()?.lend_each(|key, _| {
        seen += 1;
        if key == b"ab" {
            Err(Error::TooLarge { what: "test", size_bytes: 1, limit_bytes: 0 })
        } else {
            Ok(())
        }
    });
    assert!(matches!(stopped, Err(Error::TooLarge { .. })) && seen == 3, "{stopped:?} behind {seen}");
    let texts: Vec<_> = store.iter()?.strings().collect();
    assert_eq!(texts.iter().filter(|text| matches!(text, Err(Error::KeyNotUtf8 { .. }))).count(), 2);
    store.put("binary", b"\xff")?;
    let error = store.prefix("bin")?.strings().next().unwrap().unwrap_err();
    assert!(matches!(&error, Error::NotUtf8 { valid_up_to: 0, .. }), "{error}");
    Ok(())
}

#[test]
fn a_snapshot_holds_its_segments_and_no_others() -> Result<()> {
    let dir = temporary();
    let options = Options { segment_bytes: 64 << 10, ..Options::default() };
    let store = KvStore::open_with(dir.path(), options.clone())?;
    let fast = store.with_durability(Durability::Buffer);
    let write = |round: u32| (0..400u32).try_for_each(|n| fast.put(n.to_be_bytes(), [round as u8; 1000]));
    write(0)?;
    let snapshot = store.snapshot()?;
    let iterator = store.range::<[u8]>(..)?;
    for round in 1..8 {
        write(round)?;
        store.compact(|_| true)?;
    }
    // 400 kB of the snapshot, as much that is live, and what a compaction leaves.
    let held = store.stats().log_bytes;
    assert!((800_000..1_300_000).contains(&held), "{held}");
    let is_of_round = |round: u8| {
        move |pair: Result<(Vec<u8>, Vec<u8>)>| pair.is_ok_and(|(_, value)| value == vec![round; 1000])
    };
    assert_eq!(snapshot.iter().filter(|pair| pair.is_ok()).count(), 400);
    assert!(snapshot.iter().rev().all(is_of_round(0)) && iterator.rev().all(is_of_round(0)));
    assert_eq!(snapshot.get_bytes(7u32.to_be_bytes())?, Some(vec![0; 1000]));
    assert!(store.iter()?.all(is_of_round(7)));
    // It keeps the store open.
    drop((store, fast));
    assert!(KvStore::open_with(dir.path(), options.clone()).unwrap_err().is_locked());
    assert!(snapshot.iter().all(is_of_round(0)));
    drop(snapshot);
    let store = KvStore::open_with(dir.path(), options)?;
    store.compact(|_| true)?;
    let left = store.stats().log_bytes;
    assert!(left < 520_000, "{left}");
    assert!(store.iter()?.all(is_of_round(7)));
    Ok(())
}

#[test]
fn a_verify_beside_writes_and_compaction_finds_no_damage() -> Result<()> {
    let dir = temporary();
    let options = Options { segment_bytes: 64 << 10, ..Options::default() };
    let store = KvStore::open_with(dir.path(), options)?.with_durability(Durability::Buffer);
    thread::scope(|scope| -> Result<()> {
        let verifier = scope.spawn(|| -> Result<()> {
            for _ in 0..20 {
                let damage = store.verify()?.damage;
                assert!(damage.is_empty(), "{damage:?}");
            }
            Ok(())
        });
        let written = (0..60_000u32).try_for_each(|n| store.put((n % 1_000).to_be_bytes(), [n as u8; 50]));
        verifier.join().unwrap()?;
        written
    })?;
    assert!(store.stats().reclaimed_segments > 0, "{:?}", store.stats());
    Ok(())
}

#[test]
fn many_threads_scan_while_others_write() -> Result<()> {
    let dir = temporary();
    let options = Options { segment_bytes: 64 << 10, ordered: true, ..Options::default() };
    let store = KvStore::open_with(dir.path(), options)?.with_durability(Durability::Buffer);
    // All keys always have one value: a batch sets them.
    let set_all = |round: u32| {
        let mut batch = Batch::new();
        for n in 0..200u32 {
            batch.put(n.to_be_bytes(), [round.to_be_bytes(); 20].concat());
        }
        store.write(&batch)
    };
    set_all(0)?;
    // A reader beside the store sees only what is durable.
    store.sync()?;
    let is_done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let scanners: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| -> Result<u64> {
                    let (reader, mut scans) = (KvReader::open(dir.path())?, 0);
                    while !is_done.load(Ordering::Relaxed) || scans < 5 {
                        for range in [store.iter()?, reader.iter()?] {
                            let pairs: Vec<_> = match range.collect::<Result<_>>() {
                                // The writer used a file again that the reader's view needs.
                                Err(Error::Outdated { .. }) => continue,
                                other => other?,
                            };
                            assert_eq!(pairs.len(), 200);
                            assert!(pairs.iter().all(|(_, value)| *value == pairs[0].1), "a torn batch");
                        }
                        scans += 1;
                    }
                    Ok(scans)
                })
            })
            .collect();
        let written = (1..300).try_for_each(set_all);
        is_done.store(true, Ordering::Relaxed);
        for scanner in scanners {
            assert!(scanner.join().unwrap()? >= 5);
        }
        written
    })?;
    assert!(store.stats().reclaimed_segments > 0, "{:?}", store.stats());
    Ok(())
}

#[test]
fn a_close_sorts_only_what_somebody_wants_in_order() -> Result<()> {
    let dir = temporary();
    let close_after = |ordered: bool, round: u8, scan: bool| -> Result<u64> {
        let options = Options { segment_bytes: 64 << 10, ordered, ..Options::default() };
        let store = KvStore::open_with(dir.path(), options)?.with_durability(Durability::Buffer);
        let runs = store.stats().sorted_runs;
        (0..2_000u32).try_for_each(|n| store.put(n.to_be_bytes(), [round; 100]))?;
        if scan {
            assert_eq!(store.iter()?.count(), 2_000);
        }
        store.close()?;
        Ok(runs)
    };
    assert_eq!(close_after(false, 0, false)?, 0);
    assert_eq!(close_after(false, 1, true)?, 0, "nobody asked for order before");
    assert!(close_after(false, 2, false)? > 0, "a scan did");
    let store = KvStore::open(dir.path())?;
    assert!(store.stats().sorted_runs > 0);
    assert_eq!(store.stats().unsorted_bytes, 0, "a store that has a run keeps it up to date");
    drop(store);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("run-")) {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(close_after(false, 3, false)?, 0);
    assert_eq!(close_after(true, 4, false)?, 0);
    assert!(close_after(false, 5, false)? > 0, "it was opened to be in order");
    Ok(())
}
