//! Several processes at one store.

use std::time::{Duration, Instant};

use kvs::KvStore;

use crate::support::{command, kvs, spawn};

#[test]
fn a_locked_store_is_waited_for_and_then_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = KvStore::open(dir.path()).unwrap();
    let started = Instant::now();
    store.put("here", "now").unwrap();
    kvs(dir.path(), &["get", "here"]).expect(0, "now\n");
    kvs(dir.path(), &["set", "a", "1"]).fails(5, &["is open for writing by process"]);
    assert!(started.elapsed() >= Duration::from_secs(2));
    let waiting = spawn(&mut command(dir.path(), &["set", "a", "2"]));
    store.put("b", "3").unwrap();
    drop(store);
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    kvs(dir.path(), &["get", "a"]).expect(0, "2\n");
    kvs(dir.path(), &["get", "b"]).expect(0, "3\n");
}

#[test]
fn writers_at_the_same_time_come_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let dir = dir.path();
            scope.spawn(move || {
                for n in 0..8 {
                    kvs(dir, &["set", &format!("key {writer} {n}"), &n.to_string()]).expect(0, "");
                }
            });
        }
    });
    let store = KvStore::open(dir.path()).unwrap();
    assert_eq!(store.stats().keys, 32);
    for writer in 0..4 {
        for n in 0..8 {
            let value = store.get(format!("key {writer} {n}")).unwrap();
            assert_eq!(value, Some(n.to_string()));
        }
    }
}
