//! Logs in memory-mapped frames: recorded, read, and taken over from other programs.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::lsfs;
use crate::support::{Scratch, record};

fn frame(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u64).to_le_bytes()[..], payload].concat()
}

fn bytes_below(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_mapped_log_is_recorded_and_read_like_a_stream() {
    let scratch = Scratch::new();
    let dir = scratch.path("log");
    let recorded = lsfs!("record", "--store", "mmap", "--ack", &dir).input(b"one\ntwo\r\n\xff\n");
    assert_eq!(recorded.expect(0).says(&["3 records"]).text(), "0\n1\n2\n");
    // The store of what is there is recognised.
    lsfs!("record", &dir).input(b"four\n").expect(0).says(&["1 record,", "next index 4"]);
    assert_eq!(lsfs!("cat", &dir).run().expect(0).stdout, b"one\ntwo\r\n\xff\nfour\n");
    assert_eq!(lsfs!("cat", "--reverse", "--count", "2", &dir).run().expect(0).stdout, b"four\n\xff\n");
    assert_eq!(
        lsfs!("cat", "--from", "3", "--follow", "--count", "1", &dir).run().expect(0).stdout,
        b"four\n"
    );
    lsfs!("cat", "--from", "9", &dir).run().expect(1).says(&["record 9 is not in the stream", "0 to 4"]);
    let inspected = lsfs!("inspect", &dir).run().expect(0);
    let text = inspected.text();
    assert!(text.contains("log in memory-mapped frames") && text.contains("0 to 3 (4)"), "{text}");
    assert!(lsfs!("verify", &dir).run().expect(0).text().contains("4 records verified"));
    lsfs!("record", "--store", "block", &dir)
        .input(b"x\n")
        .expect(1)
        .says(&["holds a log of the mmap store"]);
    lsfs!("record", &dir)
        .input(b"good\n\n")
        .expect(2)
        .says(&["line 2", "an empty frame looks like free space"]);
    lsfs!("record", "--type", "7", &dir).input(b"x\n").expect(2).says(&["no place for a type code"]);
    assert_eq!(lsfs!("cat", "--from", "4", &dir).run().expect(0).stdout, b"good\n");
}

#[test]
fn looking_at_what_another_program_wrote_changes_nothing() {
    let scratch = Scratch::new();
    let dir = scratch.path("foreign");
    fs::create_dir(&dir).unwrap();
    let mut log = [frame(b"first"), frame(b"second")].concat();
    // The last frame is torn, zeros follow.
    log.extend([&5000u64.to_le_bytes()[..], b"thi", &[0; 1000]].concat());
    fs::write(dir.join("00000000000000000000.log"), &log).unwrap();
    fs::write(dir.join("00000000000000000000.idx"), [0; 4096]).unwrap();
    let before = bytes_below(&dir);
    assert_eq!(lsfs!("cat", &dir).run().expect(0).stdout, b"first\nsecond\n");
    assert!(lsfs!("inspect", &dir).run().expect(0).text().contains("torn end"));
    lsfs!("verify", &dir).run().expect(0);
    assert_eq!(bytes_below(&dir), before);
    lsfs!("record", &dir).input(b"third\n").expect(0);
    assert_eq!(lsfs!("cat", &dir).run().expect(0).stdout, b"first\nsecond\nthird\n");
    let names: Vec<_> = bytes_below(&dir).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["00000000000000000000.idx", "00000000000000000000.log"], "nothing of ours is left");
    let log = fs::read(dir.join("00000000000000000000.log")).unwrap();
    let expected = [frame(b"first"), frame(b"second"), frame(b"third")].concat();
    assert_eq!(log[..expected.len()], expected);
    assert!(log[expected.len()..].iter().all(|&byte| byte == 0));
    let index = fs::read(dir.join("00000000000000000000.idx")).unwrap();
    let entries = [[0, 0], [1, 13], [2, 27]].concat();
    let entries: Vec<u8> = entries.into_iter().flat_map(u64::to_le_bytes).collect();
    assert_eq!(index[..48], entries);
}

#[test]
fn round_trip_from_block_to_mmap_to_block() {
    let scratch = Scratch::new();
    let lines: Vec<Vec<u8>> =
        (0..3000).map(|n| format!("line {n} {}", "x".repeat(n % 200)).into_bytes()).collect();
    let (first, middle, last) = (scratch.path("first"), scratch.path("middle"), scratch.path("last"));
    record(&first, &lines.iter().map(|line| &line[..]).collect::<Vec<_>>());
    let text = lsfs!("cat", &first).run().expect(0).stdout;
    lsfs!("record", "--store", "mmap", "--segment-size", "64KiB", &middle).input(&text).expect(0);
    let from_middle = lsfs!("cat", &middle).run().expect(0).stdout;
    lsfs!("record", "--store", "block", &last).input(&from_middle).expect(0);
    assert!(bytes_below(&middle).iter().filter(|(name, _)| name.ends_with(".log")).count() > 3);
    assert!(lsfs!("cat", &last).run().expect(0).stdout == text);
    for dir in [&first, &middle, &last] {
        assert!(lsfs!("verify", dir).run().expect(0).text().contains("3000 records verified"));
    }
}

#[test]
fn a_kill_costs_a_mapped_log_nothing_that_was_acknowledged() {
    let scratch = Scratch::new();
    let dir = scratch.path("log");
    let mut running = lsfs!("record", "--store", "mmap", "--sync", "each", "--ack", &dir).spawn();
    let mut expected = Vec::new();
    for n in 0..20 {
        let line = format!("record {n}\n");
        running.feed(line.as_bytes());
        assert_eq!(running.next_index(), Some(n));
        expected.extend(line.into_bytes());
    }
    running.signal(Signal::KILL);
    running.wait();
    assert_eq!(lsfs!("cat", &dir).run().expect(0).stdout, expected);
    lsfs!("record", &dir).input(b"after\n").expect(0);
    expected.extend(b"after\n");
    assert_eq!(lsfs!("cat", &dir).run().expect(0).stdout, expected);
}

/// One process writes through several segments, others read what it has acknowledged, all of it and in order.
#[test]
fn a_mapped_log_is_read_by_other_processes_while_one_writes() {
    const RECORDS: u64 = 1500;
    let scratch = Scratch::new();
    let dir = scratch.path("log");
    let line = |n: u64| [format!("{n} ").repeat(1 + n as usize % 60).as_bytes(), b"\n"].concat();
    let mut writer = lsfs!("record", "--store", "mmap", "--ack", "--segment-size", "32KiB", &dir).spawn();
    writer.feed(&line(0));
    assert_eq!(writer.next_index(), Some(0));
    let count = RECORDS.to_string();
    let follower = lsfs!("cat", "--follow", "--count", &count, &dir).spawn();
    for n in 1..RECORDS {
        writer.feed(&line(n));
        assert_eq!(writer.next_index(), Some(n));
        if n % 300 == 0 {
            let expected: Vec<u8> = (0..=n).flat_map(line).collect();
            assert_eq!(lsfs!("cat", &dir).run().expect(0).stdout, expected, "after record {n}");
            lsfs!("verify", &dir).run().expect(0);
        }
    }
    let expected: Vec<u8> = (0..RECORDS).flat_map(line).collect();
    assert_eq!(follower.finish().expect(0).stdout, expected, "the follower's records");
    let written = writer.finish().expect(0);
    written.says(&["1500 records"]);
    assert!(bytes_below(&dir).iter().filter(|(name, _)| name.ends_with(".log")).count() > 3);
}
