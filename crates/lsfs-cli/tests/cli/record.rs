//! `lsfs record`: what goes in comes out.

use crate::lsfs;
use crate::support::{Random, Scratch, cat, record};

#[test]
fn lines_of_any_bytes_come_back_identical() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let long = Random::from(1).bytes(1_000_000).iter().map(|&byte| byte.max(b'\n' + 1)).collect::<Vec<_>>();
    let lines: [&[u8]; 9] = [
        b"plain",
        b"",
        b"carriage return\r",
        b"\r",
        b"nul\0in\0side",
        b"\0",
        b"\xff\xfe\x80",
        &long,
        b"  spaces  ",
    ];
    let input = lines.join(&b'\n');
    // The last line has no newline; cat adds one.
    lsfs!("record", &dir).input(&input).expect(0).says(&["9 records", "next index 9"]);
    assert_eq!(cat(&dir), [&input[..], b"\n"].concat());
}

#[test]
fn a_final_newline_does_not_begin_another_record() {
    let scratch = Scratch::new();
    for (name, input, records) in
        [("a", "", 0), ("b", "\n", 1), ("c", "x\n", 1), ("d", "x\n\n", 2), ("e", "\n\nx", 3)]
    {
        let dir = scratch.path(name);
        let finished = lsfs!("record", "--json", &dir).input(input.as_bytes()).expect(0);
        let summary: serde_json::Value = serde_json::from_str(&finished.stderr).unwrap();
        assert_eq!(summary["records"], records, "{input:?}");
        assert_eq!(summary["durable_index"], records);
        assert_eq!(summary["stopped"], false);
    }
}

#[test]
fn every_sync_mode_and_compression_records_and_acknowledges_all() {
    let scratch = Scratch::new();
    let mut random = Random::from(2);
    let mut input = Vec::new();
    for _ in 0..500 {
        let len = random.below(400) as usize;
        input.extend(random.bytes(len).iter().map(|byte| b'a' + byte % 3));
        input.push(b'\n');
    }
    let acks: String = (0..500).map(|index| format!("{index}\n")).collect();
    for sync in ["each", "batch", "none"] {
        for compression in ["none", "lz4", "zstd"] {
            let dir = scratch.path(&format!("{sync}-{compression}"));
            let finished = lsfs!("record", &dir, "--ack", "-q", "--sync", sync, "--compression", compression)
                .input(&input);
            assert_eq!(finished.expect(0).quietly().text(), acks, "{sync} {compression}");
            assert_eq!(cat(&dir), input, "{sync} {compression}");
        }
    }
}

#[test]
fn a_pause_of_the_input_makes_everything_durable_and_acknowledged() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let mut recording = lsfs!("record", &dir, "--ack").spawn();
    for round in 0..5u64 {
        recording.feed(b"one\ntwo\nand a half");
        assert_eq!(recording.next_index(), Some(round * 3));
        assert_eq!(recording.next_index(), Some(round * 3 + 1));
        // Another process sees both, and not the line that is incomplete.
        assert_eq!(lsfs!("cat", &dir).run().expect(0).text().lines().count() as u64, round * 3 + 2);
        recording.feed(b"\n");
        assert_eq!(recording.next_index(), Some(round * 3 + 2));
    }
    let finished = recording.finish().expect(0);
    assert_eq!(finished.text(), "");
    assert!(finished.stderr.starts_with("15 records"), "{}", finished.stderr);
}

#[test]
fn a_later_run_continues_with_the_next_index() {
    let scratch = Scratch::new();
    let dir = scratch.path("made/with/its/parents");
    record(&dir, &[b"first"]);
    let finished =
        lsfs!("record", "--type", "18446744073709551615", "--ack", "-q", &dir).input(b"second\nthird");
    assert_eq!(finished.expect(0).text(), "1\n2\n");
    let types: Vec<_> = lsfs!("cat", "--json", &dir)
        .run()
        .expect(0)
        .text()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["type"].as_u64().unwrap())
        .collect();
    assert_eq!(types, [0, u64::MAX, u64::MAX]);
}

#[test]
fn a_line_over_the_limit_is_named_and_the_ones_before_are_safe() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let input = [&b"one\ntwo\n"[..], &[b'x'; 1025], b"\nfour\n"].concat();
    let finished = lsfs!("record", "--ack", "--record-limit", "1KiB", &dir).input(&input).expect(1);
    assert_eq!(finished.text(), "0\n1\n");
    finished.says(&["line 3 ", "1 KiB"]);
    assert_eq!(cat(&dir), b"one\ntwo\n");
    // The limit is the stream's, whatever is asked for later; at the limit is not over it.
    let input = [&[b'y'; 1024][..], b"\n", &[b'z'; 1025]].concat();
    lsfs!("record", "--record-limit", "1MiB", &dir).input(&input).expect(1).says(&["line 2 ", "1 KiB"]);
    assert_eq!(cat(&dir).len(), 8 + 1025);
}

#[test]
fn an_endless_line_ends_the_command_soon() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let finished = lsfs!("record", "--record-limit", "1MiB", &dir).input_file("/dev/zero".as_ref());
    finished.expect(1).says(&["line 1 is over the record limit of 1 MiB"]);
}

#[test]
fn more_segments_than_open_files_are_no_problem() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let input: String = (0..100_000).map(|n: u32| format!("{n} {}\n", "x".repeat(300))).collect();
    let record = lsfs!("record", "-q", "--segment-size", "512KiB", &dir).with_open_files_max(40);
    record.input(input.as_bytes()).expect(0).quietly();
    for arguments in [["cat", "--from=0"], ["verify", "--json"], ["inspect", "--json"]] {
        lsfs!(arguments[0], arguments[1], &dir).with_open_files_max(40).run().expect(0);
    }
    assert!(cat(&dir) == input.as_bytes());
}
