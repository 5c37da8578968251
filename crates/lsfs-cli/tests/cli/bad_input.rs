//! What is wrong with the input is said clearly, with the right exit code, and costs nothing that was acknowledged.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::lsfs;
use crate::support::{Scratch, SmallDisk, cat, record};

fn segments(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    segments.sort();
    segments
}

fn manifests(dir: &Path) -> Vec<PathBuf> {
    ["manifest.a", "manifest.b"].into_iter().map(|name| dir.join(name)).filter(|path| path.exists()).collect()
}

/// Names and bytes of all files, but for those that every writer touches.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths
        .filter(|path| !path.ends_with("lock") && !path.ends_with("live"))
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn wrong_usage_exits_with_2() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    lsfs!("record").run().expect(2);
    lsfs!("recrod", &dir).run().expect(2);
    lsfs!("record", &dir, "--sync", "sometimes").run().expect(2).says(&["each, batch, none"]);
    lsfs!("record", &dir, "--segment-size", "64M").run().expect(2).says(&["MiB"]);
    lsfs!("record", &dir, "--segment-size", "1").run().expect(2).says(&["segment_bytes"]);
    lsfs!("record", &dir, "--record-limit", "2GiB").run().expect(2).says(&["record_limit_bytes"]);
    lsfs!("record", &dir, "--type", "-1").run().expect(2);
    lsfs!("cat", &dir, "--follow", "--reverse").run().expect(2).says(&["cannot be used with"]);
    lsfs!("data", "write", &dir, "--resume", "--append").run().expect(2);
    lsfs!("data", "write", &dir, "--mark-every", "0").run().expect(2);
    lsfs!("cat", &dir, "--log", "lsfs=loudly").run().expect(2);
    assert!(!dir.exists(), "wrong usage creates nothing");
}

#[test]
fn help_version_and_completions_exit_with_0() {
    let version = lsfs!("--version").run().expect(0);
    assert_eq!(version.text(), format!("lsfs {}\n", env!("CARGO_PKG_VERSION")));
    for command in [
        "record",
        "cat",
        "data",
        "state",
        "inspect",
        "verify",
        "dump",
        "repair",
        "truncate",
        "purge",
        "bench",
        "completions",
    ] {
        lsfs!(command, "--help").run().expect(0);
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(lsfs!("completions", shell).run().expect(0).text().contains("lsfs"), "{shell}");
    }
}

#[test]
fn a_missing_directory_is_named() {
    let scratch = Scratch::new();
    let dir = scratch.path("nowhere");
    for command in ["cat", "inspect", "verify"] {
        lsfs!(command, &dir).run().expect(1).says(&["nowhere", "lsfs: "]);
    }
    lsfs!("data", "read", &dir).run().expect(1).says(&["nowhere"]);
    assert!(!dir.exists(), "reading creates nothing");
}

#[test]
fn a_directory_of_somebody_else_is_left_alone() {
    let scratch = Scratch::new();
    let dir = scratch.path("photos");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("cat.jpg"), "meow").unwrap();
    lsfs!("record", &dir).input(b"line").expect(1).says(&["photos", "cat.jpg"]);
    lsfs!("data", "write", &dir).input(b"line").expect(1).says(&["photos", "cat.jpg"]);
    lsfs!("state", "set", &dir).input(b"line").expect(1).says(&["photos", "cat.jpg"]);
    for command in ["cat", "inspect", "verify"] {
        lsfs!(command, &dir).run().expect(1).says(&["photos", "is not a record stream"]);
    }
    assert_eq!(contents(&dir), [(dir.join("cat.jpg"), b"meow".to_vec())]);
}

#[test]
fn a_directory_of_another_kind_is_left_alone() {
    let scratch = Scratch::new();
    let (records, data, state) = (scratch.path("records"), scratch.path("data"), scratch.path("state"));
    record(&records, &[b"one"]);
    lsfs!("data", "write", "-q", &data).input(b"one").expect(0);
    lsfs!("state", "set", "-q", &state).input(b"one").expect(0);
    let before = [contents(&records), contents(&data), contents(&state)];
    for other in [&data, &state] {
        lsfs!("record", other).input(b"two").expect(1).says(&["use `lsfs "]);
        lsfs!("cat", other).run().expect(1).says(&["use `lsfs "]);
    }
    for other in [&records, &state] {
        lsfs!("data", "write", "--append", other).input(b"two").expect(1).says(&["use `lsfs "]);
        lsfs!("data", "read", other).run().expect(1).says(&["use `lsfs "]);
    }
    for other in [&records, &data] {
        lsfs!("state", "set", other).input(b"two").expect(1).says(&["use `lsfs "]);
        lsfs!("state", "get", other).run().expect(1).says(&["use `lsfs "]);
    }
    assert_eq!(before, [contents(&records), contents(&data), contents(&state)]);
}

#[test]
fn a_file_instead_of_a_directory_is_refused() {
    let scratch = Scratch::new();
    let file = scratch.path("notes.txt");
    fs::write(&file, "notes").unwrap();
    for command in ["record", "cat", "verify"] {
        lsfs!(command, &file).input(b"line").expect(1).says(&["notes.txt", "file"]);
    }
    lsfs!("inspect", &file).run().expect(1).says(&["notes.txt"]);
    assert_eq!(fs::read(&file).unwrap(), b"notes");
}

#[test]
fn a_foreign_file_is_told_from_a_damaged_one() {
    let scratch = Scratch::new();
    for (name, bytes, reason) in [
        ("long", vec![b'x'; 10_000], "not an lsfs file"),
        ("short", b"x".to_vec(), "cut short"),
        ("empty", Vec::new(), "cut short"),
        ("zeros", vec![0; 10_000], "never written"),
    ] {
        let file = scratch.path(name);
        fs::write(&file, bytes).unwrap();
        lsfs!("inspect", &file).run().expect(1).says(&[name, reason]);
    }
}

#[test]
fn a_newer_version_asks_for_a_newer_program() {
    let scratch = Scratch::new();
    for (name, files) in [("manifest", manifests as fn(&Path) -> Vec<PathBuf>), ("segment", segments)] {
        let dir = scratch.path(name);
        record(&dir, &[b"one", b"two"]);
        for path in files(&dir) {
            // The version is the u32 at byte 8 of each file.
            fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[200], 8).unwrap();
        }
        let before = contents(&dir);
        for command in ["record", "cat", "inspect", "verify"] {
            lsfs!(command, &dir).input(b"three").expect(1).says(&["format version 200", "newer"]);
        }
        assert_eq!(contents(&dir), before, "a newer {name} is not touched");
    }
}

#[test]
fn emptied_manifests_are_corruption_and_cost_no_record() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    record(&dir, &[b"one", b"two"]);
    for path in manifests(&dir) {
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
    }
    let before = segments(&dir).into_iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
    for command in ["record", "cat", "inspect"] {
        lsfs!(command, &dir).input(b"three").expect(3).says(&["manifest"]);
    }
    let verified = lsfs!("verify", &dir).run().expect(3);
    assert!(verified.text().contains("manifest"), "{}", verified.text());
    let after = segments(&dir).into_iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
    assert!(before == after, "the segments are still there");
}

#[test]
fn removed_manifests_are_corruption_and_cost_no_record() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    record(&dir, &[b"one", b"two"]);
    manifests(&dir).into_iter().for_each(|path| fs::remove_file(path).unwrap());
    let before = segments(&dir).into_iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
    lsfs!("record", &dir).input(b"three").expect(3).says(&["manifest"]);
    let after = segments(&dir).into_iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
    assert!(before == after, "the segments are still there");
}

#[test]
fn an_emptied_segment_is_corruption() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    record(&dir, &[b"one", b"two"]);
    fs::OpenOptions::new().write(true).open(&segments(&dir)[0]).unwrap().set_len(0).unwrap();
    for command in ["record", "cat", "inspect", "verify"] {
        let finished = lsfs!(command, &dir).input(b"three").expect(3);
        let said = format!("{}{}", finished.text(), finished.stderr);
        assert!(said.contains("00000000000000000000.seg"), "{command}: {said}");
    }
}

#[test]
fn a_missing_middle_segment_is_corruption_that_names_it() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let input = "some words to fill segments with\n".repeat(60_000);
    lsfs!("record", "-q", "--segment-size", "512KiB", &dir).input(input.as_bytes()).expect(0);
    let middle = segments(&dir).remove(2);
    let name = middle.file_name().unwrap().to_str().unwrap().to_string();
    fs::remove_file(&middle).unwrap();
    lsfs!("record", &dir).input(b"three").expect(3).says(&[&name]);
    lsfs!("cat", &dir).run().expect(3).says(&[&name]);
    for command in ["inspect", "verify"] {
        let finished = lsfs!(command, &dir).run().expect(3);
        assert!(finished.text().contains(&name), "{command}: {finished:?}");
    }
}

#[test]
fn a_second_writer_learns_who_is_writing() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let mut first = lsfs!("record", "--ack", &dir).spawn();
    first.feed(b"one\n");
    first.next_index().unwrap();
    let second = lsfs!("record", &dir).input(b"two\n").expect(1);
    second.says(&[&format!("process {}", first.pid()), "open for writing"]);
    assert_eq!(cat(&dir), b"one\n");
    first.feed(b"three\n");
    first.next_index().unwrap();
    first.finish().expect(0);
    assert_eq!(cat(&dir), b"one\nthree\n");
}

#[test]
fn a_read_only_file_system_can_be_read() {
    let Some(disk) = SmallDisk::mount("32m") else { return };
    let dir = disk.path("stream");
    record(&dir, &[b"one", b"two"]);
    lsfs!("data", "write", "-q", &disk.path("data")).input(b"bytes").expect(0);
    lsfs!("state", "set", "-q", &disk.path("state")).input(b"state").expect(0);
    disk.remount(true, "32m");
    for arguments in ["record stream", "record new", "data-write data", "state-set state"] {
        let (command, name) = arguments.split_once(' ').unwrap();
        let command: Vec<_> = command.split('-').map(std::ffi::OsStr::new).collect();
        let path = disk.path(name);
        let finished = crate::support::Lsfs::new(&[&command[..], &[path.as_os_str()]].concat()).input(b"x");
        finished.expect(1).says(&[path.to_str().unwrap(), "Read-only file system"]);
    }
    assert_eq!(cat(&dir), b"one\ntwo\n");
    assert_eq!(lsfs!("data", "read", &disk.path("data")).run().expect(0).stdout, b"bytes");
    assert_eq!(lsfs!("state", "get", &disk.path("state")).run().expect(0).stdout, b"state");
    for name in ["stream", "data", "state"] {
        lsfs!("verify", &disk.path(name)).run().expect(0);
        lsfs!("inspect", &disk.path(name)).run().expect(0);
    }
}

#[test]
fn a_read_only_directory_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let dir = scratch.path("parent");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(dir.join("probe"), "").is_ok() {
        eprintln!("skipped: this user (root?) may write in a read-only directory");
        return;
    }
    lsfs!("record", &dir.join("stream")).input(b"x").expect(1).says(&["parent", "ermission denied"]);
    lsfs!("record", &dir).input(b"x").expect(1).says(&["parent", "ermission denied"]);
}

#[test]
fn a_full_disk_keeps_what_was_acknowledged() {
    let Some(disk) = SmallDisk::mount("8m") else { return };
    let dir = disk.path("stream");
    let line = [&[b'x'; 999][..], b"\n"].concat();
    let finished = lsfs!("record", "--ack", &dir).input(&line.repeat(20_000)).expect(1);
    let acked = finished.text().lines().count();
    assert!(finished.text().lines().map(str::to_string).eq((0..acked).map(|index| index.to_string())));
    assert!(acked > 1000, "{acked} acknowledged");
    finished.says(&["no space left for", dir.to_str().unwrap(), "bytes needed", "are durable"]);
    let kept = cat(&dir);
    assert!(kept.len() >= acked * line.len(), "{} of {acked} lines kept", kept.len() / line.len());
    assert!(kept.chunks(line.len()).all(|kept| kept == line));
    lsfs!("verify", &dir).run().expect(0);
    // Still full: reading works, writing says so again. With more space it goes on.
    disk.remount(false, "64m");
    lsfs!("record", "-q", &dir).input(&line.repeat(5_000)).expect(0);
    assert_eq!(cat(&dir).len(), kept.len() + 5_000 * line.len());
}

#[test]
fn a_full_disk_does_not_cost_data_streams_and_states() {
    let Some(disk) = SmallDisk::mount("8m") else { return };
    let (data, state) = (disk.path("data"), disk.path("state"));
    lsfs!("state", "set", "-q", &state).input(b"before").expect(0);
    let bytes = vec![7; 20 << 20];
    let finished = lsfs!("data", "write", "--mark-every", "1MiB", &data).input(&bytes).expect(1);
    finished.says(&["no space left for", "bytes needed"]);
    let kept = lsfs!("data", "read", &data).run().expect(0).stdout;
    assert!(kept.len() >= 1 << 20 && kept == bytes[..kept.len()], "{} bytes kept", kept.len());
    lsfs!("state", "set", &state).input(&vec![1; 16 << 20]).expect(1).says(&["no space left for"]);
    assert_eq!(lsfs!("state", "get", &state).run().expect(0).stdout, b"before");
    disk.remount(false, "128m");
    lsfs!("data", "write", "-q", "--resume", &data).input(&bytes).expect(0);
    assert!(lsfs!("data", "read", &data).run().expect(0).stdout == bytes);
}
