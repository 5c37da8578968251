//! System calls of the command that fail: `strace` injects the errors into the built binary.
//!
//! A run without faults says which calls a command makes at the store. Each of them is then made to fail, once and for
//! good. By default some of them; all with `KVS_FAULTS=all` (some minutes).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use kvs::{KvReader, KvStore, Options};

use crate::support::{command, skipped};

/// Calls by which bytes, names and locks reach the disk or come from there.
const CALLS: [&str; 17] = [
    "openat",
    "pwritev2",
    "pwritev",
    "pwrite64",
    "write",
    "fdatasync",
    "fsync",
    "msync",
    "fallocate",
    "ftruncate",
    "rename",
    "unlink",
    "mkdir",
    "mmap",
    "pread64",
    "getdents64",
    "fcntl",
];
/// Without `KVS_FAULTS=all` about so many runs a command.
const RUNS: usize = 40;

/// A command with its input, and what it does to the store.
struct Case {
    arguments: &'static [&'static str],
    input: String,
    /// Keys and values after it; `None` for a key that is gone.
    effect: Vec<(String, Option<String>)>,
}

/// The system call to fail, as `strace` counts: the `nth` of its name in the main thread.
#[derive(Clone, Debug)]
struct Site {
    call: String,
    nth: usize,
    shown: String,
}

/// A store with something to compact and something to replay; answers what it holds.
fn prepare(dir: &Path) -> BTreeMap<String, String> {
    let options = Options { segment_bytes: 64 << 10, background: false, ..Options::default() };
    let store = KvStore::open_with(dir, options).unwrap();
    let mut model = BTreeMap::new();
    for n in 0..300 {
        let (key, value) = (format!("key {}", n % 60), format!("{n:0700}"));
        store.with_durability(kvs::Durability::Buffer).put(&key, &value).unwrap();
        model.insert(key, value);
        if n == 200 {
            store.checkpoint().unwrap();
        }
    }
    store.close().unwrap();
    model
}

fn contents(dir: &Path) -> BTreeMap<String, String> {
    let reader = KvReader::open(dir).unwrap();
    let keys = (0..60).map(|n| format!("key {n}")).chain(["new".to_string()]);
    keys.filter_map(|key| Some((key.clone(), reader.get(key).unwrap()?))).collect()
}

/// Runs the command under `strace`; `None` where nothing can be traced.
fn traced(dir: &Path, case: &Case, options: &[String]) -> Option<Output> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq"]).args(options).arg("--");
    let plain = command(dir, case.arguments);
    strace.arg(plain.get_program()).args(plain.get_args()).current_dir(dir);
    strace.env_remove("RUST_LOG").env_remove("KVS_DIR");
    let input = dir.with_extension("input");
    std::fs::write(&input, &case.input).unwrap();
    strace.stdin(Stdio::from(std::fs::File::open(&input).unwrap()));
    let output = match strace.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return skipped("strace is not installed, so no system call can be made to fail");
        }
        other => other.unwrap(),
    };
    if output.stderr.starts_with(b"strace:") {
        return skipped(&format!("strace cannot trace here: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Some(output)
}

/// The calls that the command makes from the moment when it turns to the store.
fn sites(dir: &Path, case: &Case) -> Option<Vec<Site>> {
    let log = dir.with_extension("trace");
    let calls = format!("trace={},statx", CALLS.join(","));
    let output =
        traced(dir, case, &["-o".to_string(), log.to_str().unwrap().to_string(), "-e".to_string(), calls])?;
    assert!(output.status.success(), "{:?} without faults: {output:?}", case.arguments);
    let text = std::fs::read_to_string(&log).unwrap();
    let main_thread = text.split(' ').next().unwrap().to_string();
    let (mut counts, mut sites, mut has_begun) = (BTreeMap::<String, usize>::new(), Vec::new(), false);
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((name, arguments)) = call.trim_start().split_once('(') else { continue };
        has_begun |= name == "statx" && arguments.contains("/log\"");
        if thread != main_thread || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            continue;
        }
        let nth = counts.entry(name.to_string()).or_default();
        *nth += 1;
        if has_begun && name != "statx" {
            let shown = line.chars().take(120).collect();
            sites.push(Site { call: name.to_string(), nth: *nth, shown });
        }
    }
    Some(sites)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Fails each site of the command in turn; answers how many runs failed and how many succeeded all the same.
fn fail_everywhere(case: &Case) -> Option<(u32, u32)> {
    let root = tempfile::tempdir().unwrap();
    let template = root.path().join("template");
    let before = prepare(&template);
    let mut after = before.clone();
    for (key, value) in &case.effect {
        match value {
            Some(value) => drop(after.insert(key.clone(), value.clone())),
            None => drop(after.remove(key)),
        }
    }
    let unharmed = root.path().join("unharmed");
    copy(&template, &unharmed);
    let sites = sites(&unharmed, case)?;
    assert_eq!(contents(&unharmed), after, "{:?} without faults", case.arguments);
    let variants = [("EIO", ""), ("ENOSPC", ""), ("EIO", "+"), ("ENOSPC", "+")];
    let runs: Vec<_> = sites.iter().flat_map(|site| variants.iter().map(move |how| (site, how))).collect();
    let is_all = std::env::var("KVS_FAULTS").is_ok_and(|which| which == "all");
    // An odd step meets all variants.
    let step = if is_all { 1 } else { (runs.len() / RUNS).max(1) | 1 };
    let (mut failed, mut succeeded) = (0, 0);
    for (n, (site, (error, forever))) in runs.iter().enumerate().step_by(step) {
        let dir = root.path().join(format!("run{n}"));
        copy(&template, &dir);
        let inject = format!("inject={}:error={error}:when={}{forever}", site.call, site.nth);
        let options = ["-o", "/dev/null", "-e", &format!("trace={}", site.call), "-e", &inject];
        let output = traced(&dir, case, &options.map(str::to_string))?;
        let context = format!("{:?}, {error}{forever} at {}", case.arguments, site.shown);
        let message = String::from_utf8_lossy(&output.stderr);
        let found = contents(&dir);
        match output.status.code() {
            Some(0) => {
                assert_eq!(found, after, "{context}: {message}");
                succeeded += 1;
            }
            code => {
                // Without memory the program is ended by the standard library, which says so; and if nothing can be
                // written any more, the message cannot either.
                let is_said = message.starts_with("kvs: ") || site.call == "write" && *forever == "+";
                let is_told = code == Some(3) && is_said || site.call == "mmap" && !message.is_empty();
                assert!(is_told, "{context}: {code:?}, {message}");
                let is_part = found
                    .iter()
                    .all(|pair| [&before, &after].iter().any(|whole| whole.get(pair.0) == Some(pair.1)));
                assert!(found == before || found == after || is_part && case.effect.len() > 1, "{context}");
                failed += 1;
            }
        }
        // It goes on.
        let store = KvStore::open(&dir).unwrap_or_else(|error| panic!("{context}: reopen: {error}"));
        store.put("goes", "on").unwrap_or_else(|error| panic!("{context}: {error}"));
        assert!(store.verify().unwrap().damage.is_empty(), "{context}");
        drop(store);
        std::fs::remove_dir_all(&dir).unwrap();
    }
    eprintln!("{:?}: {} sites, {failed} runs failed, {succeeded} not", case.arguments, sites.len());
    Some((failed, succeeded))
}

fn check(case: &Case) {
    if let Some((failed, _)) = fail_everywhere(case) {
        assert!(failed >= 10, "{:?}: {failed}", case.arguments);
    }
}

#[test]
fn a_set_that_succeeds_is_durable_whatever_system_call_fails() {
    let effect = vec![("new".to_string(), Some("value".to_string()))];
    check(&Case { arguments: &["set", "new", "value"], input: String::new(), effect });
}

#[test]
fn a_remove_that_succeeds_is_durable_whatever_system_call_fails() {
    let effect = vec![("key 7".to_string(), None)];
    check(&Case { arguments: &["rm", "key 7"], input: String::new(), effect });
}

#[test]
fn a_load_that_succeeds_is_durable_whatever_system_call_fails() {
    let effect: Vec<_> = (0..60).map(|n| (format!("key {n}"), Some(format!("{n:050000}")))).collect();
    let line = |(key, value): &(String, Option<String>)| {
        format!("{{\"key\":\"{key}\",\"value\":\"{}\"}}\n", value.as_ref().unwrap())
    };
    let input = effect.iter().map(line).collect();
    check(&Case { arguments: &["load"], input, effect });
}

#[test]
fn a_compaction_changes_nothing_whatever_system_call_fails() {
    check(&Case { arguments: &["compact"], input: String::new(), effect: Vec::new() });
}

#[test]
fn what_cannot_be_read_is_an_error_and_not_a_missing_key() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("store");
    let model = prepare(&dir);
    let case = Case { arguments: &["get", "key 7"], input: String::new(), effect: Vec::new() };
    let Some(sites) = sites(&dir, &case) else { return };
    let expected: OsString = format!("{}\n", model["key 7"]).into();
    let mut failed = 0;
    for site in sites.iter().filter(|site| !["mmap", "write"].contains(&site.call.as_str())) {
        for forever in ["", "+"] {
            let inject = format!("inject={}:error=EIO:when={}{forever}", site.call, site.nth);
            let options = ["-o", "/dev/null", "-e", &format!("trace={}", site.call), "-e", &inject];
            let Some(output) = traced(&dir, &case, &options.map(str::to_string)) else { return };
            let message = String::from_utf8_lossy(&output.stderr);
            match output.status.code() {
                Some(0) => assert_eq!(output.stdout, expected.as_encoded_bytes(), "{site:?}"),
                code => {
                    assert!(code == Some(3) && message.starts_with("kvs: "), "{site:?}: {code:?}, {message}");
                    failed += 1;
                }
            }
        }
    }
    assert!(failed >= 5, "{failed}");
}
