//! A damaged stream made usable again, as an operator does it.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::damage::{flip_bit, recorded};
use crate::lsfs;
use crate::support::{Scratch, SmallDisk, cat, record};

fn segments(dir: &Path) -> Vec<PathBuf> {
    let inspected = lsfs!("inspect", "--json", dir).run().expect(0).json();
    let segments = inspected["segments"].as_array().unwrap();
    segments.iter().map(|segment| dir.join(segment["file"].as_str().unwrap())).collect()
}

/// All files below a directory, with their bytes.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

fn range_of(value: &serde_json::Value) -> Range<u64> {
    value["first_index"].as_u64().unwrap()..value["next_index"].as_u64().unwrap()
}

/// The lines of an input but for a range of them.
fn without(input: &str, lost: &Range<u64>) -> String {
    let kept = (0u64..).zip(input.lines()).filter(|(index, _)| !lost.contains(index));
    kept.map(|(_, line)| format!("{line}\n")).collect()
}

/// Everything that can be printed, with the lost records left out by hand.
fn cat_around(dir: &Path, lost: &Range<u64>) -> String {
    let count = lost.start.to_string();
    let before = lsfs!("cat", "--count", &count, dir).run().expect(0);
    let behind = lsfs!("cat", "--from", &lost.end.to_string(), dir).run().expect(0);
    format!("{}{}", before.text(), behind.text())
}

#[test]
fn nothing_is_done_to_a_sound_stream() {
    let scratch = Scratch::new();
    let (dir, data, state) = (scratch.path("stream"), scratch.path("data"), scratch.path("state"));
    recorded(&dir);
    lsfs!("data", "write", "-q", &data).input(b"some bytes").expect(0);
    lsfs!("state", "set", "-q", &state).input(b"a state").expect(0);
    for dir in [&dir, &data, &state] {
        let before = contents(dir);
        let said = lsfs!("repair", dir).run().expect(0);
        assert!(said.text().contains("nothing to repair"), "{}", said.text());
        lsfs!("repair", "--yes", dir).run().expect(0);
        lsfs!("repair", "--yes", "--cut", dir).run().expect(0);
        let json = lsfs!("repair", "--json", dir).run().expect(0).json();
        assert_eq!((&json["steps"], &json["applied"]), (&serde_json::json!([]), &false.into()));
        assert_eq!(contents(dir), before);
    }
}

#[test]
fn damage_at_the_end_costs_its_records_and_no_others() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let input = recorded(&dir);
    let active = segments(&dir).pop().unwrap();
    let inspected = lsfs!("inspect", "--json", &dir).run().expect(0).json();
    let used = inspected["segments"].as_array().unwrap().last().unwrap()["used_bytes"].as_u64().unwrap();
    flip_bit(&active, (used - 1) / 4096 * 4096 + 20);
    lsfs!("record", &dir).input(b"refused").expect(3);

    // Without a terminal or --yes nothing is done.
    let before = contents(&dir);
    let planned = lsfs!("repair", &dir).run().expect(3).says(&["not repaired", "--yes"]);
    assert!(planned.text().contains("begin the segment"), "{}", planned.text());
    lsfs!("repair", "--dry-run", &dir).run().expect(3);
    assert_eq!(contents(&dir), before);

    let done = lsfs!("repair", "--yes", "--json", &dir).run().expect(0).json();
    assert_eq!(done["applied"], true);
    let lost = range_of(&done["lost"][0]);
    assert!(lost.end == 30_000 && lost.start > 29_000, "{lost:?}");
    // What was changed is in the copies, byte for byte.
    let copies = PathBuf::from(done["copies_in"].as_str().unwrap());
    assert!(copies.starts_with(&dir));
    for (name, bytes) in before.iter().filter(|(path, _)| path.to_str().unwrap().contains("manifest.")) {
        let name = name.file_name().unwrap().to_str().unwrap();
        let copy = copies.join(format!("{name}.0-{}", bytes.len()));
        assert_eq!(&fs::read(&copy).unwrap(), bytes, "{}", copy.display());
    }
    assert!(fs::read_to_string(copies.join("plan.txt")).unwrap().contains("set the manifest"));

    // It can be written, and what is lost stays named.
    lsfs!("record", "-q", &dir).input(b"one more\n").expect(0);
    assert_eq!(cat_around(&dir, &lost), format!("{}one more\n", without(&input, &lost)));
    let first_lost = lost.start.to_string();
    lsfs!("cat", "--from", &first_lost, &dir)
        .run()
        .expect(3)
        .says(&[&format!("records {} to {} exclusive", lost.start, lost.end), "lost"]);
    let inspected = lsfs!("inspect", "--json", &dir).run().expect(0).json();
    assert_eq!(range_of(&inspected["lost"][0]), lost);
    let verified = lsfs!("verify", &dir).run().expect(0);
    assert!(verified.text().contains("no further damage"), "{}", verified.text());
    assert!(lsfs!("repair", &dir).run().expect(0).text().contains("nothing to repair"));
}

#[test]
fn a_cut_ends_the_stream_at_the_damage_and_keeps_a_copy() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let input = recorded(&dir);
    let path = segments(&dir).remove(1);
    flip_bit(&path, 200_000);
    let damaged = fs::read(&path).unwrap();
    let planned = lsfs!("repair", "--cut", "--json", &dir).run().expect(3).json();
    let cut = range_of(&planned["cut"]);
    assert_eq!(cut.end, 30_000);
    lsfs!("repair", "--cut", "--yes", &dir).run().expect(0);
    let kept = without(&input, &cut);
    assert!(cat(&dir) == kept.as_bytes());
    // Everything from the cut on is in the copies.
    let copies = PathBuf::from(planned["copies_in"].as_str().unwrap());
    let of_cut = contents(&copies).into_iter().find(|(copy, _)| {
        copy.file_name().unwrap().to_str().unwrap().starts_with(path.file_name().unwrap().to_str().unwrap())
    });
    let (copy, bytes) = of_cut.expect("the cut part of the segment is copied");
    let name = copy.to_str().unwrap().rsplit_once('.').unwrap().1.to_string();
    let (start, end) = name.split_once('-').unwrap();
    let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
    assert!(start <= 200_000 && bytes == damaged[start..end]);
    lsfs!("record", "-q", &dir).input(b"behind the cut\n").expect(0);
    assert_eq!(cat(&dir), format!("{kept}behind the cut\n").as_bytes());
    lsfs!("verify", &dir).run().expect(0);
}

#[test]
fn lost_files_cost_only_what_was_in_them() {
    let scratch = Scratch::new();
    for (name, lose) in [
        ("removed", (|path| fs::remove_file(path)) as fn(&Path) -> std::io::Result<()>),
        ("emptied", |path| fs::OpenOptions::new().write(true).open(path)?.set_len(0)),
        ("replaced", |path| fs::write(path, "not a segment".repeat(1000))),
    ] {
        let dir = scratch.path(name);
        let input = recorded(&dir);
        let inspected = lsfs!("inspect", "--json", &dir).run().expect(0).json();
        let gone = range_of(&inspected["segments"][1]);
        lose(&segments(&dir)[1]).unwrap();
        lsfs!("verify", &dir).run().expect(3);
        lsfs!("repair", "--yes", &dir).run().expect(0);
        assert_eq!(cat_around(&dir, &gone), without(&input, &gone), "{name}");
        lsfs!("verify", &dir).run().expect(0);
        lsfs!("record", "-q", &dir).input(b"on\n").expect(0);
    }
}

#[test]
fn a_lost_manifest_is_made_from_the_segments() {
    let scratch = Scratch::new();
    for (name, lose) in [
        ("removed", (|path| fs::remove_file(path)) as fn(&Path) -> std::io::Result<()>),
        ("emptied", |path| fs::OpenOptions::new().write(true).open(path)?.set_len(0)),
        ("damaged", |path| fs::OpenOptions::new().write(true).open(path)?.write_all_at(&[0xAA; 65536], 0)),
    ] {
        let dir = scratch.path(name);
        let input = recorded(&dir);
        for end in ["a", "b"] {
            let path = dir.join(format!("manifest.{end}"));
            if path.exists() {
                lose(&path).unwrap();
            }
        }
        lsfs!("repair", &dir).run().expect(3);
        lsfs!("repair", "--yes", &dir).run().expect(0);
        assert!(cat(&dir) == input.as_bytes(), "{name}");
        lsfs!("verify", &dir).run().expect(0);
        lsfs!("record", "-q", &dir).input(b"on\n").expect(0);
        assert!(cat(&dir) == format!("{input}on\n").as_bytes(), "{name}");
    }
}

#[test]
fn a_state_comes_from_the_file_that_is_left() {
    let scratch = Scratch::new();
    let dir = scratch.path("state");
    for state in ["one", "two", "three"] {
        lsfs!("state", "set", "-q", &dir).input(state.as_bytes()).expect(0);
    }
    // Each run of the command changes files: the third state is in A, the second in B.
    fs::OpenOptions::new().write(true).open(dir.join("state.a")).unwrap().write_all_at(&[9; 80], 0).unwrap();
    lsfs!("state", "get", &dir).run().expect(3);
    lsfs!("repair", "--yes", &dir).run().expect(0);
    assert_eq!(lsfs!("state", "get", &dir).run().expect(0).stdout, b"two");
    lsfs!("state", "set", "-q", &dir).input(b"four").expect(0);
    assert_eq!(lsfs!("state", "get", &dir).run().expect(0).stdout, b"four");

    for end in ["a", "b"] {
        let file = fs::OpenOptions::new().write(true).open(dir.join(format!("state.{end}")));
        file.unwrap().write_all_at(&[9; 8192], 0).unwrap();
    }
    let before = contents(&dir);
    lsfs!("repair", "--yes", &dir).run().expect(3).says(&["restore it from a copy"]);
    assert_eq!(contents(&dir), before);
}

#[test]
fn a_data_stream_keeps_its_length() {
    let scratch = Scratch::new();
    let dir = scratch.path("data");
    let bytes: Vec<u8> = (0..3_000_000u32).flat_map(|n| (n / 7).to_le_bytes()).take(3_000_000).collect();
    lsfs!("data", "write", "-q", &dir).input(&bytes).expect(0);
    let segment = segments(&dir).pop().unwrap();
    let used = lsfs!("inspect", "--json", &dir).run().expect(0).json()["segments"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()["used_bytes"]
        .as_u64()
        .unwrap();
    flip_bit(&segment, used - 30);
    lsfs!("data", "write", "--append", &dir).input(b"more").expect(3);
    lsfs!("repair", "--yes", "--cut", &dir).run().expect(2).says(&["last mark"]);
    lsfs!("repair", "--yes", &dir).run().expect(0);
    lsfs!("data", "write", "-q", "--append", &dir).input(b"more").expect(0);
    let tail = lsfs!("data", "read", "--offset", "3000000", &dir).run().expect(0);
    assert_eq!(tail.stdout, b"more");
    lsfs!("data", "read", &dir).run().expect(3).says(&["lost"]);
}

#[test]
fn what_cannot_be_repaired_is_refused() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    lsfs!("repair").run().expect(2);
    lsfs!("repair", "--yes", "--dry-run", &dir).run().expect(2);
    lsfs!("repair", &dir).run().expect(1).says(&["stream"]);
    fs::write(scratch.path("file"), "x").unwrap();
    lsfs!("repair", &scratch.path("file")).run().expect(1).says(&["is a file"]);
    let mut writing = lsfs!("record", "--ack", &dir).spawn();
    writing.feed(b"one\n");
    writing.next_index().unwrap();
    lsfs!("repair", &dir).run().expect(1).says(&[&format!("process {}", writing.pid())]);
    writing.finish().expect(0);
    assert_eq!(cat(&dir), b"one\n");
}

#[test]
fn a_read_only_stream_is_planned_and_not_repaired() {
    let Some(disk) = SmallDisk::mount("32m") else { return };
    let dir = disk.path("stream");
    record(&dir, &[b"one", b"two"]);
    let active = segments(&dir).pop().unwrap();
    flip_bit(&active, 4096 + 60);
    disk.remount(true, "32m");
    let planned = lsfs!("repair", &dir).run().expect(3);
    assert!(planned.text().contains("lost: records 0 to 1"), "{}", planned.text());
    lsfs!("repair", "--yes", &dir).run().expect(1).says(&["Read-only file system"]);
    disk.remount(false, "32m");
    fs::set_permissions(&active, fs::Permissions::from_mode(0o644)).unwrap();
    lsfs!("repair", "--yes", &dir).run().expect(0);
}
