//! Several processes at one store.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::{Duration, Instant};

use kvs::KvStore;
use rustix::process::{Pid, Signal};

use crate::support::{command, kvs, kvs_with_input, spawn};

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

/// The lines that a `kvs watch` with these arguments prints, and its exit code.
fn watched(dir: &Path, arguments: &[&str]) -> (Vec<serde_json::Value>, i32) {
    let arguments: Vec<&str> = ["watch"].iter().chain(arguments).copied().collect();
    let output = command(dir, &arguments).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (lines, output.status.code().unwrap())
}

#[test]
fn watch_prints_changes_of_other_processes_as_they_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    kvs(dir, &["watch"]).fails(3, &["not a key-value store"]);
    kvs(dir, &["watch", "--from", "yesterday"]).fails(2, &["yesterday", "not a position"]);
    kvs(dir, &["set", "user/1", "a"]).expect(0, "");
    let mut watching =
        spawn(&mut command(dir, &["watch", "--from", "first", "--prefix", "user/", "--count", "4"]));
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<serde_json::Value>(&lines.next().unwrap().unwrap()).unwrap();
    let first = next();
    assert_eq!((&first["key"], &first["value"]), (&"user/1".into(), &"a".into()));
    // Each line is there before the next change is made.
    kvs(dir, &["set", "other", "b"]).expect(0, "");
    kvs(dir, &["set", "user/2", "c"]).expect(0, "");
    let second = next();
    assert_eq!((&second["key"], &second["value"]), (&"user/2".into(), &"c".into()));
    kvs(dir, &["rm", "user/1"]).expect(0, "");
    let third = next();
    assert_eq!((&third["key"], &third["value"]), (&"user/1".into(), &serde_json::Value::Null));
    let bytes: [OsString; 3] = ["set".into(), OsString::from_vec(b"user/\xff".to_vec()), "d".into()];
    kvs(dir, &bytes).expect(0, "");
    assert_eq!(next()["key_base64"], "dXNlci//");
    assert!(watching.wait().unwrap().success(), "after four lines");

    let position = first["position"].as_str().unwrap();
    let (lines, code) = watched(dir, &["--from", position, "--no-wait"]);
    let keys: Vec<_> = lines.iter().map(|line| line["key"].as_str().unwrap_or("bytes")).collect();
    assert_eq!((keys, code), (vec!["other", "user/2", "user/1", "bytes"], 0));
    assert_eq!(watched(dir, &["--no-wait"]), (Vec::new(), 0));
    // What it prints can be loaded.
    let copy = tempfile::tempdir().unwrap();
    let text = command(dir, &["watch", "--from", "first", "--no-wait"]).output().unwrap().stdout;
    kvs_with_input(copy.path(), &["load"], &text).expect(0, "5\n");
    let sorted = |dir| {
        let dump = kvs(dir, &["dump"]).stdout();
        let mut lines: Vec<_> = dump.lines().map(str::to_string).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(copy.path()), sorted(dir));
    // Compaction leaves a watcher behind, and it says so.
    let lines: String = (0..3000).map(|n| format!("{{\"key\":\"k\",\"value\":\"{n:01000}\"}}\n")).collect();
    kvs_with_input(dir, &["load"], lines.as_bytes()).expect(0, "3000\n");
    kvs(dir, &["compact"]).fails(0, &[]);
    kvs(dir, &["watch", "--from", position, "--no-wait"]).fails(1, &["given back", "backup", position]);
    // In another store the position means nothing.
    kvs(copy.path(), &["watch", "--from", position]).fails(2, &["not a position of this store"]);
}

#[test]
fn watch_ends_when_nobody_reads_or_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    kvs(dir.path(), &["set", "a", "1"]).expect(0, "");
    let mut watching = spawn(&mut command(dir.path(), &["watch"]));
    drop(watching.stdout.take());
    assert!(watching.wait().unwrap().success());
    let watching = spawn(&mut command(dir.path(), &["watch"]));
    // Not SIGINT: where the tests run in the background of a shell without job control, every process ignores it.
    rustix::process::kill_process(Pid::from_child(&watching), Signal::TERM).unwrap();
    let output = watching.wait_with_output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
}

#[test]
fn backup_and_restore_beside_a_writer() {
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = |name: &str| root.path().join(name).to_str().unwrap().to_string();
    let (backup, restored) = (place("b/1"), place("restored"));
    kvs(dir.path(), &["backup", &backup]).fails(3, &["not a key-value store"]);
    assert!(!Path::new(&backup).exists());
    // The store is locked all the time.
    let store = KvStore::open(dir.path()).unwrap();
    for n in 0..100 {
        store.put(format!("key {n}"), n.to_string()).unwrap();
    }
    let said = kvs(dir.path(), &["backup", &backup, "--json"]).stdout();
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["keys"], 100);
    store.put("later", "1").unwrap();
    kvs(dir.path(), &["--dir", &backup, "get", "key 7"]).expect(0, "7\n");
    kvs(dir.path(), &["backup", &backup]).fails(3, &["is not empty"]);
    let said = kvs(dir.path(), &["--dir", &restored, "restore", &backup]).stdout();
    assert!(said.starts_with("100 keys, "), "{said}");
    kvs(dir.path(), &["--dir", &restored, "restore", &backup]).fails(3, &["is not empty"]);
    kvs(dir.path(), &["--dir", &restored, "get", "key 99"]).expect(0, "99\n");
    kvs(dir.path(), &["--dir", &restored, "get", "later"]).expect(0, "Key not found\n");
    kvs(dir.path(), &["--dir", &restored, "verify"]).fails(0, &[]);
    let position = report["position"].as_str().unwrap();
    let (lines, code) = watched(dir.path(), &["--from", position, "--no-wait"]);
    assert_eq!((lines.len(), lines[0]["key"].as_str(), code), (1, Some("later"), 0));
}
