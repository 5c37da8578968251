//! Processes that are ended in the middle of something.
//!
//! `KVS_KILLS` says how many `kvs set` loops are killed (50), and a fifth as many of everything else.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvs::{KvStore, Options};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::support::{command, kvs, kvs_with_input, spawn};

fn kills() -> u64 {
    std::env::var("KVS_KILLS").map_or(50, |text| text.parse().unwrap())
}

/// Opens the store; the lock goes with the killed process, which may be a moment later.
fn open(dir: &Path, background: bool) -> KvStore {
    loop {
        match KvStore::open_with(dir, Options { background, ..Options::default() }) {
            Err(error) if error.is_locked() => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

#[test]
fn what_a_killed_loop_has_set_is_there() {
    let kills = kills();
    let dir = tempfile::tempdir().unwrap();
    let (mut acknowledged, mut maybe) = (BTreeMap::new(), BTreeMap::<String, Vec<String>>::new());
    let mut killed_in_the_middle = 0;
    for round in 0..kills {
        // A loop in a shell, which prints what was set; the whole group is killed after some of it.
        let script = format!(
            "n=0; while [ $n -lt 1000 ]; do \"$0\" set \"key $((n % 7))\" \"{round} $n\" && echo $n || exit 9; n=$((n + 1)); done"
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_kvs")]).current_dir(dir.path()).env_remove("KVS_DIR");
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        let mut child = spawn(&mut shell);
        // From at once to some sets: the time differs from round to round, the place in a set with it.
        std::thread::sleep(Duration::from_micros(2_000 + round * 2_417 % 60_000));
        kill_process_group(Pid::from_child(&child), Signal::KILL).unwrap();
        drop(child.stdin.take());
        let output = child.wait_with_output().unwrap();
        assert_ne!(output.status.code(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8(output.stdout).unwrap();
        let done: Vec<u64> =
            printed.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).collect();
        for n in &done {
            acknowledged.insert(format!("key {}", n % 7), format!("{round} {n}"));
            maybe.remove(&format!("key {}", n % 7));
        }
        // Two more may have been set: one whose line was not printed, and the one that was under way.
        let next = done.last().map_or(0, |n| n + 1);
        for n in next..next + 2 {
            maybe.entry(format!("key {}", n % 7)).or_default().push(format!("{round} {n}"));
        }
        let store = open(dir.path(), round % 2 == 0);
        for n in 0..7 {
            let key = format!("key {n}");
            let found = store.get(key.clone()).unwrap();
            let unsure = maybe.get(&key).map_or(&[][..], Vec::as_slice);
            let is_right = found.as_ref() == acknowledged.get(&key)
                || found.as_ref().is_some_and(|found| unsure.contains(found));
            assert!(is_right, "round {round}: {key} is {found:?}, set to {:?}", acknowledged.get(&key));
            if let Some(found) = found
                && unsure.contains(&found)
            {
                killed_in_the_middle += 1;
                acknowledged.insert(key, found);
            }
        }
        maybe.clear();
    }
    eprintln!("{kills} kills, {killed_in_the_middle} sets without an answer were there");
    assert!(!acknowledged.is_empty());
}

/// Starts a command that reads from a file.
fn start(dir: &Path, arguments: &[&str], input: &Path) -> Child {
    let mut command = command(dir, arguments);
    command.stdin(Stdio::from(std::fs::File::open(input).unwrap()));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// How commands are ended: by `kill -9`, Ctrl-C and `kill`, in turn.
fn signal(round: u64) -> Signal {
    [Signal::KILL, Signal::INT, Signal::TERM][(round % 3) as usize]
}

#[test]
fn a_killed_load_leaves_a_first_part_of_it() {
    const LINES: u64 = 6_000;
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let input = outside.path().join("input");
    let write_input = |round: u64| {
        let mut file = std::io::BufWriter::new(std::fs::File::create(&input).unwrap());
        for n in 0..LINES {
            writeln!(file, "{{\"key\":\"key {n}\",\"value\":\"{round} {n:01000}\"}}").unwrap();
        }
        file.flush().unwrap();
    };
    write_input(0);
    let started = Instant::now();
    let whole = start(dir.path(), &["load"], &input).wait_with_output().unwrap();
    assert!(whole.status.success(), "{whole:?}");
    let (usual, mut values) = (started.elapsed().as_micros() as u64, vec![0; LINES as usize]);
    let (mut in_the_middle, mut succeeded) = (0, 0);
    for round in 1..=kills() / 5 {
        write_input(round);
        let child = start(dir.path(), &["load"], &input);
        // Another moment in each round, up to a little after the usual end.
        std::thread::sleep(Duration::from_micros(usual * 11 / 10 * (round * 37 % 101) / 101));
        kill_process(Pid::from_child(&child), signal(round)).unwrap();
        let output = child.wait_with_output().unwrap();
        let store = open(dir.path(), round % 2 == 0);
        let round_of = |n: u64| {
            let value = store.get(format!("key {n}")).unwrap().expect("always there");
            value.split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let found: Vec<u64> = (0..LINES).map(round_of).collect();
        let first_old = found.iter().position(|&of| of != round).unwrap_or(LINES as usize);
        for n in first_old..LINES as usize {
            assert_eq!(found[n], values[n], "round {round}: key {n} behind {first_old}");
        }
        if output.status.success() {
            assert_eq!(first_old, LINES as usize, "it said that it was done");
            succeeded += 1;
        }
        in_the_middle += u64::from((1..LINES as usize).contains(&first_old));
        assert_eq!(store.stats().keys, LINES);
        values = found;
    }
    eprintln!("{} loads, {in_the_middle} ended in the middle, {succeeded} came to their end", kills() / 5);
}

#[test]
fn a_killed_compaction_loses_and_revives_nothing() {
    const KEYS: u64 = 3_000;
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let nothing = outside.path().join("nothing");
    std::fs::write(&nothing, "").unwrap();
    let mut usual = 20_000;
    for round in 0..=kills() / 5 {
        // Stale bytes in all segments: every third key is set again, every fifth is removed.
        let lines = (0..KEYS).map(|n| {
            let value = if n % 5 == round % 5 { "null".to_string() } else { format!("\"{round} {n:0500}\"") };
            let is_changed = round == 0 || n % 3 == round % 3 || n % 5 == round % 5;
            (n, value, is_changed)
        });
        let input: String = lines
            .filter(|(.., is_changed)| *is_changed)
            .map(|(n, value, _)| format!("{{\"key\":\"key {n}\",\"value\":{value}}}\n"))
            .collect();
        kvs_with_input(dir.path(), &["load"], input.as_bytes())
            .expect(0, format!("{}\n", input.lines().count()));
        let all = |store: &KvStore| -> Vec<_> {
            (0..KEYS).map(|n| store.get(format!("key {n}")).unwrap()).collect()
        };
        let before = all(&open(dir.path(), false));
        let started = Instant::now();
        let child = start(dir.path(), &["compact", "--quiet"], &nothing);
        if round > 0 {
            std::thread::sleep(Duration::from_micros(usual * 11 / 10 * (round * 37 % 101) / 101));
            kill_process(Pid::from_child(&child), signal(round)).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        if round == 0 {
            assert!(output.status.success(), "{output:?}");
            usual = started.elapsed().as_micros() as u64;
        }
        let store = open(dir.path(), round % 2 == 0);
        assert!(all(&store) == before, "round {round}");
        assert_eq!(store.stats().keys, before.iter().flatten().count() as u64, "round {round}");
    }
    kvs(dir.path(), &["compact"]).fails(0, &[]);
    let store = open(dir.path(), false);
    let stats = store.stats();
    assert!(stats.stale_bytes * 10 <= stats.log_bytes, "what was cut short can be done later: {stats:?}");
    assert!(store.verify().unwrap().damage.is_empty());
}

#[test]
fn a_killed_backup_is_never_taken_for_a_whole_one() {
    const KEYS: usize = 4_000;
    let (dir, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let nothing = root.path().join("nothing");
    std::fs::write(&nothing, "").unwrap();
    let lines = (0..KEYS).map(|n| format!("{{\"key\":\"key {n}\",\"value\":\"{n:01000}\"}}\n"));
    kvs_with_input(dir.path(), &["load"], lines.collect::<String>().as_bytes()).expect(0, "4000\n");
    let (mut usual, mut unfinished, mut whole) = (0, 0, 0);
    for round in 0..=kills() / 5 {
        let target = root.path().join(format!("backup {round}"));
        let target = target.to_str().unwrap();
        let started = Instant::now();
        let child = start(dir.path(), &["backup", target], &nothing);
        if round > 0 {
            std::thread::sleep(Duration::from_micros(usual * 11 / 10 * (round * 37 % 101) / 101));
            kill_process(Pid::from_child(&child), signal(round)).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        if round == 0 {
            usual = started.elapsed().as_micros() as u64;
        }
        let opened = loop {
            match KvStore::open_with(target, Options { create: false, ..Options::default() }) {
                Err(error) if error.is_locked() => std::thread::yield_now(),
                other => break other,
            }
        };
        match opened {
            Ok(store) => {
                assert_eq!(store.stats().keys, KEYS as u64, "round {round}");
                assert!(store.verify().unwrap().damage.is_empty());
                whole += 1;
            }
            Err(error) => {
                assert!(!output.status.success(), "round {round}: it said that it was done: {error}");
                assert!(matches!(error, kvs::Error::NotAStore { .. }), "round {round}: {error}");
                unfinished += 1;
            }
        }
        std::fs::remove_dir_all(target)
            .or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })
            .unwrap();
    }
    eprintln!("{unfinished} backups were cut short, {whole} are whole");
}

#[test]
fn a_long_load_makes_checkpoints_so_that_little_is_read_after_a_kill() {
    const LINES: u64 = 14_000;
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn(&mut command(dir.path(), &["load"]));
    let mut stdin = child.stdin.take().unwrap();
    for n in 0..LINES {
        writeln!(stdin, "{{\"key\":\"key {n}\",\"value\":\"{n:01000}\"}}").unwrap();
    }
    // Killed when most of it is there; the rest waits in a batch that is not full.
    let reader = loop {
        match kvs::KvReader::open(dir.path()) {
            Err(_) => std::thread::yield_now(),
            Ok(reader) => break reader,
        }
    };
    while !reader.contains(format!("key {}", LINES - 3_000)).unwrap() {
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    let store = open(dir.path(), false);
    let (keys, replayed) = (store.stats().keys, store.open_report().replayed);
    assert!(keys > LINES - 3_000 && replayed < keys * 2 / 3, "{replayed} of {keys} were read");
}
