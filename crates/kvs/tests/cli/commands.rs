//! What each command prints, and how it ends.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use crate::support::{command, kvs, kvs_with_input, spawn};

const NOT_FOUND: &str = "Key not found\n";

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn set_get_and_rm() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    kvs(dir, &["set", "key1", "value1"]).expect(0, "");
    kvs(dir, &["get", "key1"]).expect(0, "value1\n");
    kvs(dir, &["get", "-n", "key1"]).expect(0, "value1");
    kvs(dir, &["set", "key1", "value2"]).expect(0, "");
    kvs(dir, &["get", "key1"]).expect(0, "value2\n");
    kvs(dir, &["get", "key2"]).expect(0, NOT_FOUND);
    kvs(dir, &["get", "-e", "key2"]).expect(1, NOT_FOUND);
    kvs(dir, &["rm", "key2"]).expect(1, NOT_FOUND);
    kvs(dir, &["rm", "key1"]).expect(0, "");
    kvs(dir, &["get", "key1"]).expect(0, NOT_FOUND);
    kvs(dir, &["rm", "key1"]).expect(1, NOT_FOUND);
}

#[test]
fn wrong_usage_ends_with_two_and_creates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let wrong: [&[&str]; 10] = [
        &[],
        &["get"],
        &["get", "a", "b"],
        &["set", "a"],
        &["set"],
        &["set", "a", "b", "c"],
        &["rm"],
        &["unknown"],
        &["set", "a", "b", "--compression", "rar"],
        &["cas", "a", "--expect", "b"],
    ];
    for arguments in wrong {
        kvs(dir.path(), arguments).fails(2, &["--help"]);
        assert!(is_empty(dir.path()), "{arguments:?}");
    }
    let version = format!("kvs {}\n", env!("CARGO_PKG_VERSION"));
    kvs(dir.path(), &["-V"]).expect(0, &version);
    kvs(dir.path(), &["get", "a"]).expect(0, NOT_FOUND);
    kvs(dir.path(), &["rm", "a"]).expect(1, NOT_FOUND);
    kvs(dir.path(), &["dump"]).expect(0, "");
    assert!(is_empty(dir.path()), "reading creates nothing");
}

#[test]
fn the_directory_is_given_or_the_current_one() {
    let root = tempfile::tempdir().unwrap();
    let deep = root.path().join("not/yet/there");
    kvs(root.path(), &["--dir", deep.to_str().unwrap(), "set", "a", "1"]).expect(0, "");
    kvs(&deep, &["get", "a"]).expect(0, "1\n");
    let output = command(root.path(), &["get", "a"]).env("KVS_DIR", &deep).output().unwrap();
    assert_eq!(output.stdout, b"1\n");
    kvs(root.path(), &["get", "a", "--dir", "elsewhere"]).expect(0, NOT_FOUND);
    assert!(!root.path().join("elsewhere").exists());
}

#[test]
fn values_of_any_bytes_from_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let bytes = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    kvs(dir, &[bytes(b"set"), bytes(b"\xff\xfe"), bytes(b"\x80")]).expect(0, "");
    kvs(dir, &[bytes(b"get"), bytes(b"\xff\xfe")]).expect(0, b"\x80\n");
    kvs(dir, &["set", "", ""]).expect(0, "");
    kvs(dir, &["get", ""]).expect(0, "\n");
    kvs(dir, &["set", "n", "-5"]).expect(0, "");
    kvs(dir, &["get", "n"]).expect(0, "-5\n");
    kvs_with_input(dir, &["set", "in", "-"], b"two\nlines\n\0").expect(0, "");
    kvs(dir, &["get", "in", "-n"]).expect(0, b"two\nlines\n\0");
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("value");
    let large: Vec<u8> = (0..3_000_000).map(|at| (at % 251) as u8).collect();
    fs::write(&file, &large).unwrap();
    let file = file.to_str().unwrap();
    kvs(dir, &["set", "large", "--file", file, "--compression", "zstd"]).expect(0, "");
    kvs(dir, &["get", "-n", "large"]).expect(0, &large);
    kvs(dir, &["set", "x", "--file", "/nowhere"]).fails(3, &["/nowhere"]);
    kvs(dir, &["set", &"k".repeat(65_536), "v"]).fails(2, &["key", "65536", "65535"]);
}

#[test]
fn a_directory_with_other_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    kvs(dir.path(), &["set", "a", "b"]).fails(3, &["notes.txt", "not a key-value store"]);
    kvs(dir.path(), &["get", "a"]).fails(3, &["not a key-value store"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn cas_changes_only_what_is_as_expected() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    kvs(dir, &["cas", "a", "--expect", "0", "--set", "1"]).expect(1, NOT_FOUND);
    kvs(dir, &["cas", "a", "--expect-missing", "--set", "1"]).expect(0, "");
    kvs(dir, &["cas", "a", "--expect-missing", "--set", "2"]).expect(1, "1\n");
    kvs(dir, &["cas", "a", "--expect", "1", "--set", "-2"]).expect(0, "");
    kvs(dir, &["cas", "a", "--expect", "-2", "--rm"]).expect(0, "");
    kvs(dir, &["get", "a"]).expect(0, NOT_FOUND);
}

#[test]
fn dump_load_and_batch() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lines = b"{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key_base64\":\"/w==\",\"value\":\"2\"}\n{\"key\":\"c\",\"value\":\"3\"}\n";
    kvs_with_input(one.path(), &["load"], lines).expect(0, "3\n");
    kvs_with_input(
        one.path(),
        &["batch"],
        b"{\"key\":\"c\",\"value\":null}\n{\"key\":\"d\",\"value\":\"4\"}",
    )
    .expect(0, "");
    let dump = kvs(one.path(), &["dump"]).stdout();
    assert_eq!(dump.lines().count(), 3, "{dump}");
    kvs_with_input(two.path(), &["load", "--compression", "lz4"], dump.as_bytes()).expect(0, "3\n");
    assert_eq!(kvs(two.path(), &["dump"]).stdout(), dump);
    kvs(two.path(), &["get", "d"]).expect(0, "4\n");
    let wrong = b"{\"key\":\"a\",\"value\":\"9\"}\n{\"key\":7,\"value\":\"x\"}\n";
    kvs_with_input(two.path(), &["batch"], wrong).fails(2, &["line 2", "key is not a string"]);
    kvs(two.path(), &["get", "a"]).expect(0, "1\n");
    let nothing = tempfile::tempdir().unwrap();
    kvs_with_input(nothing.path(), &["load"], b"nonsense").fails(2, &["line 1"]);
    assert!(is_empty(nothing.path()));
}

#[test]
fn list_and_dump_are_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    kvs(dir, &["list"]).expect(0, "");
    assert!(is_empty(dir), "reading creates nothing");
    for (key, value) in [("b", "2"), ("app", "x"), ("a", "1"), ("apple", "3"), ("", "nothing"), ("c", "gone")]
    {
        kvs(dir, &["set", key, value]).expect(0, "");
    }
    kvs(dir, &["rm", "c"]).expect(0, "");
    kvs(dir, &["list"]).expect(0, "\tnothing\na\t1\napp\tx\napple\t3\nb\t2\n");
    kvs(dir, &["list", "--reverse", "--keys"]).expect(0, "b\napple\napp\na\n\n");
    kvs(dir, &["list", "app"]).expect(0, "app\tx\napple\t3\n");
    kvs(dir, &["list", "app", "--reverse", "-n", "1"]).expect(0, "apple\t3\n");
    kvs(dir, &["list", "--from", "a", "--to", "apple"]).expect(0, "a\t1\napp\tx\n");
    kvs(dir, &["list", "a", "--from", "ap", "--to", "b", "-k"]).expect(0, "app\napple\n");
    kvs(dir, &["list", "--from", "b", "--to", "a"]).expect(0, "");
    kvs(dir, &["list", "--limit", "0"]).expect(0, "");
    kvs(dir, &["list", "a", "-0", "-n2"]).expect(0, "a\x001\0app\0x\0");
    kvs(dir, &["list", "-k0", "ap"]).expect(0, "app\0apple\0");
    kvs(dir, &["list", "b", "--json"]).expect(0, "{\"key\":\"b\",\"value\":\"2\"}\n");
    kvs(dir, &["list", "b", "--json", "--keys"]).expect(0, "{\"key\":\"b\"}\n");
    kvs(dir, &["list", "nowhere"]).expect(0, "");
    kvs(dir, &["list", "--json", "-0"]).fails(2, &["--help"]);
    kvs(dir, &["list", "a", "b"]).fails(2, &["--help"]);
    kvs(dir, &["list", "--limit", "-1"]).fails(2, &["--help"]);
    let bytes = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    kvs(dir, &[bytes(b"set"), bytes(b"\xff\xfe"), bytes(b"\x80")]).expect(0, "");
    kvs(dir, &[bytes(b"list"), bytes(b"\xff")]).expect(0, b"\xff\xfe\t\x80\n");
    let lines = kvs(dir, &["dump"]).stdout();
    let keys: Vec<&str> = lines.lines().map(|line| line.split('"').nth(3).unwrap()).collect();
    assert_eq!(keys, ["", "a", "app", "apple", "b", "//4="]);
    kvs(dir, &["compact"]);
    assert_eq!(kvs(dir, &["dump"]).stdout(), lines, "from a sorted run");
    kvs(dir, &["list", "ap", "-r"]).expect(0, "apple\t3\napp\tx\n");
}

#[test]
fn a_large_list_needs_no_lock_and_is_read_from_runs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lines = (0..30_000).map(|n| n * 7_919 % 30_000);
    let lines =
        lines.map(|n| format!("{{\"key\":\"key {n:06}\",\"value\":\"{n:050}\"}}\n")).collect::<String>();
    kvs_with_input(dir, &["load"], lines.as_bytes()).expect(0, "30000\n");
    let stats = kvs(dir, &["stats", "--json"]).stdout();
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(
        (stats["sorted_runs"].as_u64(), stats["unsorted_bytes"].as_u64()),
        (Some(1), Some(0)),
        "{stats}"
    );
    let _writer = kvs::KvStore::open(dir).unwrap();
    let keys = kvs(dir, &["list", "--keys"]).stdout();
    assert!(keys.lines().eq((0..30_000).map(|n| format!("key {n:06}")).collect::<Vec<_>>()));
    kvs(dir, &["list", "key 0123", "--reverse", "-n", "2", "-k"]).expect(0, "key 012399\nkey 012398\n");
    assert_eq!(kvs(dir, &["dump"]).stdout().lines().count(), 30_000);

    // A damaged value is named, the others are printed.
    let log = dir.join("log");
    let damaged = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path()).find_map(|path| {
        let bytes = fs::read(&path).ok()?;
        let needle = format!("{:050}", 4_321);
        let at = bytes.windows(50).position(|window| window == needle.as_bytes())?;
        Some((path, bytes, at))
    });
    let (path, mut bytes, at) = damaged.expect("the value lies there");
    bytes[at] ^= 1;
    drop(_writer);
    fs::write(&path, bytes).unwrap();
    let listed = kvs(dir, &["list", "key 00432"]).fails(4, &["data-"]).stdout();
    let keys: Vec<&str> = listed.lines().map(|line| line.split('\t').next().unwrap()).collect();
    let wanted: Vec<String> = (4_320..4_330).filter(|&n| n != 4_321).map(|n| format!("key {n:06}")).collect();
    assert_eq!(keys, wanted);
    assert_eq!(kvs(dir, &["list", "key 00432", "-k"]).stdout().lines().count(), 10, "no value is read");
    kvs(dir, &["dump"]).fails(4, &["data-"]);
}

#[test]
fn compact_stats_verify_and_repair() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for round in 0..40 {
        let lines = (0..50).map(|n| (n, round * 50 + n));
        let lines = lines.map(|(key, n)| format!("{{\"key\":\"{key}\",\"value\":\"{n:0500}\"}}\n"));
        kvs_with_input(dir, &["load"], lines.collect::<String>().as_bytes()).expect(0, "50\n");
    }
    let stats = |name: &str| {
        let text = kvs(dir, &["stats", "--json"]).stdout();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()[name].as_u64().unwrap()
    };
    assert_eq!(stats("keys"), 50);
    let before = stats("log_bytes");
    let sizes = kvs(dir, &["compact"]).stdout();
    let after = stats("log_bytes");
    assert_eq!(sizes, format!("{before} {after}\n"));
    assert!(after < 60_000 && before > 2 * after, "{before} {after}");
    kvs(dir, &["get", "7"]).expect(0, format!("{:0500}\n", 1957));
    assert!(kvs(dir, &["stats"]).stdout().contains("keys                             50\n"));
    kvs(dir, &["verify"]).expect(0, "50 commands, 50 of them in use, 0 damaged\n");

    // One byte of one value.
    let log = dir.join("log");
    let newest = fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().path());
    let newest = newest.filter(|path| path.extension().is_some_and(|is| is == "seg")).max().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    let at = bytes.windows(4).position(|four| four == b"1957").expect("the value lies there");
    bytes[at] ^= 1;
    fs::write(&newest, bytes).unwrap();
    kvs(dir, &["get", "7"]).fails(4, &["data-", "corruption"]);
    kvs(dir, &["get", "8"]).expect(0, format!("{:0500}\n", 1958));
    let report = kvs(dir, &["verify"]).fails(4, &[]);
    assert!(report.stdout().contains("1 damaged"), "{}", report.stdout());
    let report = kvs(dir, &["repair"]).stdout();
    assert!(report.contains("left out: segment") && report.contains("49 keys"), "{report}");
    kvs(dir, &["get", "7"]).expect(0, NOT_FOUND);
    kvs(dir, &["set", "7", "again"]).expect(0, "");
    kvs(dir, &["get", "7"]).expect(0, "again\n");
    let nothing = tempfile::tempdir().unwrap();
    kvs(nothing.path(), &["stats"]).fails(3, &["not a key-value store"]);
}

#[test]
fn a_damaged_index_changes_no_answer_and_mends_itself() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lines = |value: &str| -> String {
        (0..20_000).map(|n| format!("{{\"key\":\"key {n:05}\",\"value\":\"{value} {n}\"}}\n")).collect()
    };
    kvs_with_input(dir, &["load"], lines("value").as_bytes()).expect(0, "20000\n");
    let index = || {
        let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let found: Vec<_> = paths.filter(|path| path.to_str().unwrap().contains("/index-")).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found.into_iter().next().unwrap()
    };
    let rot = || {
        let (path, mut bytes) = (index(), fs::read(index()).unwrap());
        // Not the pages of the directory, which the open reads.
        let pages = bytes.chunks_mut(4096).skip(1).filter(|page| !page.starts_with(b"KVSD"));
        pages.for_each(|page| page[300] ^= 4);
        fs::write(path, bytes).unwrap();
    };
    let cut = || fs::OpenOptions::new().write(true).open(index()).unwrap().set_len(5_000).unwrap();
    let remove = || fs::remove_file(index()).unwrap();
    let harms: [&dyn Fn(); 3] = [&rot, &cut, &remove];
    for (n, harm) in harms.iter().enumerate() {
        harm();
        kvs(dir, &["get", "key 00777"]).expect(0, "value 777\n");
        kvs(dir, &["get", "nowhere"]).expect(0, NOT_FOUND);
        kvs(dir, &["list", "key 0077", "-k", "-n", "1"]).expect(0, "key 00770\n");
        kvs(dir, &["rm", "nowhere"]).expect(1, NOT_FOUND);
        kvs(dir, &["set", "new", "value"]).expect(0, "");
        kvs(dir, &["rm", "new"]).expect(0, "");
        kvs(dir, &["get", "key 19999"]).expect(0, "value 19999\n");
        kvs(dir, &["list", "key 1999", "-k", "-n", "1"]).expect(0, "key 19990\n");
        let verified = kvs(dir, &["verify"]);
        assert!(verified.stdout().ends_with(" 0 damaged\n"), "{n}: {}", verified.stdout());
        let stats = kvs(dir, &["stats", "--json"]).stdout();
        assert!(stats.contains("\"keys\":20000") && stats.contains("\"index_rebuilds\":0"), "{n}: {stats}");
    }
    // `verify` names what it finds, and changes nothing; `repair` need not be asked, and may be. Behind it there is a
    // checkpoint, so the open does not meet the damage first.
    kvs(dir, &["repair"]).expect(0, "20006 commands read, 20000 keys\n");
    rot();
    for _ in 0..2 {
        let verified = kvs(dir, &["verify"]).fails(4, &[]);
        let said = verified.stdout();
        assert!(
            said.contains("index-") && said.contains("nothing is lost") && said.contains("repair"),
            "{said}"
        );
    }
    kvs(dir, &["repair"]).expect(0, "20006 commands read, 20000 keys\n");
    assert!(kvs(dir, &["verify"]).stdout().ends_with(" 0 damaged\n"));
    kvs(dir, &["get", "key 00777"]).expect(0, "value 777\n");
}

#[test]
fn completions_name_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = kvs(dir.path(), &["completions", shell]).stdout();
        assert!(script.contains("compact") && script.contains("repair"), "{shell}");
        for name in ["watch", "backup", "restore", "bench", "no-wait", "value-bytes"] {
            assert!(script.contains(name), "{shell}: {name}");
        }
    }
}

#[test]
fn an_answer_that_cannot_be_printed_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    kvs(dir.path(), &["set", "a", "b"]).expect(0, "");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(dir.path(), &["get", "a"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard output"));
    let mut child = spawn(&mut command(dir.path(), &["set", "c", "-"]));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success(), "an empty value");
    kvs(dir.path(), &["get", "c"]).expect(0, "\n");
}

#[test]
fn bench_measures_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    kvs(&dir.path().join("."), &["--dir", "missing", "bench"]).fails(3, &["missing is not a directory"]);
    let text = kvs(dir.path(), &["bench", "--seconds", "1", "--json"]).stdout();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        assert!(case["per_second"].as_f64().unwrap() > 0.0, "{case}");
        assert!(case["p50_us"].as_f64() <= case["p99_us"].as_f64(), "{case}");
    }
    assert!(is_empty(dir.path()));
    kvs(dir.path(), &["bench", "--seconds", "0"]).fails(2, &["--seconds"]);
}

#[test]
fn every_command_shows_an_example_that_it_understands() {
    let dir = tempfile::tempdir().unwrap();
    let help = kvs(dir.path(), &["--help"]).stdout();
    let listed = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let names: Vec<&str> = listed
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        let help = kvs(dir.path(), &["help", name]).stdout();
        let mut examples = 0;
        for line in
            help.lines().map(str::trim).filter(|line| line.contains("kvs ") && help.contains("Example"))
        {
            let words = line
                .split_whitespace()
                .skip_while(|word| *word != "kvs")
                .take_while(|word| !matches!(*word, "|" | ">" | "||" | "<"));
            let options: Vec<&str> = words.filter(|word| word.starts_with("--") && word.len() > 2).collect();
            for option in &options {
                assert!(
                    help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n")),
                    "{name}: {line}: {option}"
                );
            }
            examples += 1;
        }
        assert!(examples > 0, "{name} shows no example: {help}");
    }
}
