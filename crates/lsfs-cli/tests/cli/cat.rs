//! `lsfs cat`: which records are printed, and how.

use std::path::PathBuf;

use crate::lsfs;
use crate::support::{Scratch, record};

fn ten_records(scratch: &Scratch) -> PathBuf {
    let dir = scratch.path("stream");
    record(&dir, &[b"r0", b"r1", b"r2", b"r3", b"r4", b"r5", b"r6", b"r7", b"r8", b"r9"]);
    dir
}

#[test]
fn from_count_and_reverse_choose_records() {
    let scratch = Scratch::new();
    let dir = ten_records(&scratch);
    for (options, expected) in [
        ("", "r0 r1 r2 r3 r4 r5 r6 r7 r8 r9"),
        ("--from 7", "r7 r8 r9"),
        ("--from 10", ""),
        ("--count 2", "r0 r1"),
        ("--count 0", ""),
        ("--from 3 --count 2", "r3 r4"),
        ("--from 8 --count 100", "r8 r9"),
        ("--reverse", "r9 r8 r7 r6 r5 r4 r3 r2 r1 r0"),
        ("--reverse --count 3", "r9 r8 r7"),
        ("--reverse --from 1", "r1 r0"),
        ("--reverse --from 9 --count 1", "r9"),
        ("--follow --count 3", "r0 r1 r2"),
        ("--follow --from 8 --count 2", "r8 r9"),
    ] {
        let arguments: Vec<_> =
            ["cat"].into_iter().chain(options.split_whitespace()).map(std::ffi::OsStr::new).collect();
        let finished = crate::support::Lsfs::new(&[&arguments[..], &[dir.as_os_str()]].concat()).run();
        let printed = finished.expect(0).quietly().text().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(printed, expected, "{options}");
    }
}

#[test]
fn an_index_that_is_not_there_is_an_error() {
    let scratch = Scratch::new();
    let dir = ten_records(&scratch);
    lsfs!("cat", "--from", "11", &dir).run().expect(1).says(&["record 11 is not in the stream", "0 to 10"]);
    lsfs!("cat", "--from", "10", "--reverse", &dir).run().expect(1).says(&["record 10 is not in the stream"]);
}

#[test]
fn json_lines_are_lossless() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let lines: [&[u8]; 4] = ["text \u{1F980} \"quoted\" \\".as_bytes(), b"", b"\r\0\x1b", b"\xff\x00\xfe"];
    record(&dir, &lines);
    let finished = lsfs!("cat", "--json", &dir).run().expect(0);
    let objects: Vec<serde_json::Value> =
        finished.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 4);
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(objects[index]["index"], index);
        assert_eq!(objects[index]["payload"].as_str(), std::str::from_utf8(line).ok());
    }
    assert_eq!(objects[3]["payload_base64"], "/wD+");
    assert_eq!(objects[0]["payload_base64"], serde_json::Value::Null);
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let input = b"a line of some length, so that all of them do not fit the pipe\n".repeat(100_000);
    lsfs!("record", "-q", &dir).input(&input).expect(0);
    let mut printing = lsfs!("cat", &dir).spawn();
    printing.close_stdout();
    printing.finish().expect(0).quietly();
}

#[test]
fn reading_backward_is_the_reverse_of_reading_forward_over_many_segments() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let input: String =
        (0..20_000).map(|n: u32| format!("{n} {}\n", "x".repeat((n * 7 % 400) as usize))).collect();
    lsfs!("record", "-q", "--segment-size", "1MiB", &dir).input(input.as_bytes()).expect(0);
    let forward = lsfs!("cat", &dir).run().expect(0);
    assert_eq!(forward.text(), input);
    let backward = lsfs!("cat", "--reverse", &dir).run().expect(0);
    assert!(backward.text().lines().eq(input.lines().rev()), "the same lines in reverse");
}
