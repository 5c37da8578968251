//! Backup and restore on the real disk.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kvs::{Compression, Durability, Error, KvReader, KvStore, Options, Result, restore};

fn all(store: &KvStore) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    store.iter()?.collect()
}

#[test]
fn a_backup_is_a_store_and_can_be_restored() -> Result<()> {
    let root = tempfile::tempdir().unwrap();
    let (dir, backup, again) =
        (root.path().join("store"), root.path().join("b/monday"), root.path().join("again"));
    let store = KvStore::open_with(&dir, Options { compression: Compression::Zstd, ..Options::default() })?;
    let fast = store.with_durability(Durability::Buffer);
    for n in 0..3_000 {
        fast.put(format!("key {}", n % 1_500), format!("{n:0300}"))?;
    }
    for n in 0..100 {
        fast.delete(format!("key {n}"))?;
    }
    fast.put(b"\xff\xfe", b"")?;
    let expected = all(&store)?;
    let report = store.backup(&backup)?;
    assert_eq!(report.keys, 1_401);
    // Values stay compressed: each would have 300 bytes without.
    assert!(report.log_bytes < 150_000, "{report:?}");
    store.put("later", "on")?;
    store.delete("key 200")?;

    let reader = KvReader::open(&backup)?;
    assert_eq!(reader.get_bytes("key 1499")?, Some(format!("{:0300}", 2_999).into_bytes()));
    let restored = restore(&backup, &again)?;
    assert_eq!(restored.keys, 1_401);
    let copy = KvStore::open(&again)?;
    assert_eq!(all(&copy)?, expected);
    assert!(copy.verify()?.damage.is_empty());
    // What the backup does not have comes from the feed.
    let mut feed = store.changes(report.position.into())?;
    while let Some(change) = feed.next_change()? {
        match change.value {
            Some(value) => copy.put(change.key, value)?,
            None => drop(copy.delete(change.key)?),
        }
    }
    assert_eq!(all(&copy)?, all(&store)?);
    // Positions are of one store each, also of a restored one.
    assert!(matches!(copy.changes(report.position.into()), Err(Error::WrongPosition { .. })));
    Ok(())
}

#[test]
fn only_empty_directories_are_filled_and_nothing_is_created_without_a_source() -> Result<()> {
    let root = tempfile::tempdir().unwrap();
    let store = KvStore::open(root.path().join("store"))?;
    store.put("a", "1")?;
    let taken = root.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("notes.txt"), "mine").unwrap();
    for target in [taken.as_path(), store.path()] {
        let error = store.backup(target).unwrap_err();
        assert!(matches!(&error, Error::NotEmpty { .. }), "{error}");
        assert!(matches!(restore(store.path(), target), Err(Error::NotEmpty { .. })));
    }
    assert_eq!(store.get_bytes("a")?, Some(b"1".to_vec()));
    assert_eq!(std::fs::read_dir(&taken).unwrap().count(), 1);
    let target = root.path().join("target");
    let missing = restore(root.path().join("missing"), &target);
    assert!(matches!(missing, Err(Error::NotAStore { .. })), "{missing:?}");
    assert!(!target.exists());
    Ok(())
}

#[test]
fn an_unfinished_backup_is_no_store() -> Result<()> {
    let root = tempfile::tempdir().unwrap();
    let store = KvStore::open(root.path().join("store"))?;
    store.put("a", "1")?;
    let backup = root.path().join("backup");
    store.backup(&backup)?;
    std::fs::write(backup.join("unfinished"), "").unwrap();
    let says = |error: Error| {
        assert!(matches!(&error, Error::NotAStore { .. }), "{error}");
        assert!(
            error.to_string().contains("not finished") && error.to_string().contains("remove"),
            "{error}"
        );
    };
    says(KvStore::open(&backup).unwrap_err());
    says(KvReader::open(&backup).unwrap_err());
    says(restore(&backup, root.path().join("again")).unwrap_err());
    says(store.backup(&backup).unwrap_err());
    assert!(!root.path().join("again").exists());
    Ok(())
}

#[test]
fn what_is_damaged_is_not_backed_up_as_if_it_were_whole() -> Result<()> {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("store");
    let store = KvStore::open(&dir)?;
    store.put("a", "a value that can be found in the file")?;
    drop(store);
    let segment = dir.join("log/data-00001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(7).position(|part| part == b"a value").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let backup = root.path().join("backup");
    let error = KvReader::open(&dir)?.backup(&backup).unwrap_err();
    assert!(error.is_corruption(), "{error}");
    assert!(KvStore::open(&backup).is_err(), "it is not finished");
    Ok(())
}

/// Each key has the number of the round in which it was set; a round goes through the keys in order, so at any moment
/// the keys of the round under way come before those of the last.
#[test]
fn a_backup_is_of_one_moment_while_writes_and_compaction_go_on() -> Result<()> {
    const KEYS: u64 = 300;
    let root = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 256 << 10, ..Options::default() };
    let store = KvStore::open_with(root.path().join("store"), options)?;
    let write_round = |round: u64| {
        let fast = store.with_durability(Durability::Buffer);
        for n in 0..KEYS {
            fast.put(format!("key {n:03}"), format!("{round} {n:0400}")).unwrap();
        }
    };
    write_round(0);
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !is_done.load(Ordering::Relaxed) {
                round += 1;
                write_round(round);
            }
        });
        let mut last = 0;
        for n in 0..8 {
            let backup = root.path().join(format!("backup {n}"));
            // In the writer's process, or as another one does it.
            let report = match n % 2 {
                0 => store.backup(&backup),
                _ => KvReader::open(store.path()).and_then(|reader| reader.backup(&backup)),
            };
            let report = match report {
                Err(Error::Outdated { .. }) if n % 2 == 1 => continue,
                other => other.unwrap(),
            };
            assert_eq!(report.keys, KEYS);
            let copy = KvStore::open(&backup).unwrap();
            let rounds: Vec<u64> = all(&copy)
                .unwrap()
                .into_values()
                .map(|value| String::from_utf8(value).unwrap().split(' ').next().unwrap().parse().unwrap())
                .collect();
            assert!(
                rounds.is_sorted_by(|a, b| a >= b) && rounds[0] - rounds[KEYS as usize - 1] <= 1,
                "{rounds:?}"
            );
            assert!(rounds[0] >= last, "a later backup is of a later moment");
            last = rounds[0];
        }
        is_done.store(true, Ordering::Relaxed);
        assert!(last > 0);
    });
    assert!(store.stats().reclaimed_segments > 0, "{:?}", store.stats());
    Ok(())
}
