//! `lsfs data`: bytes in, the same bytes out, also after interruptions.

use std::path::Path;

use rustix::process::Signal;

use crate::lsfs;
use crate::support::{Random, Scratch, wait_until};

fn marked_bytes(dir: &Path) -> u64 {
    let inspected = lsfs!("inspect", "--json", dir).run();
    // Before the first mark there is nothing to inspect yet.
    if inspected.code == Some(0) { inspected.json()["byte_count"].as_u64().unwrap_or(0) } else { 0 }
}

#[test]
fn bytes_come_back_identical_in_whole_and_in_part() {
    let scratch = Scratch::new();
    let dir = scratch.path("data");
    let bytes = Random::from(3).bytes(5_000_001);
    lsfs!("data", "write", "--mark-every", "1MiB", &dir)
        .input(&bytes)
        .expect(0)
        .says(&["5000001 bytes in all"]);
    assert_eq!(lsfs!("data", "read", &dir).run().expect(0).quietly().stdout, bytes);
    for (offset, length, range) in [
        ("0", "10", 0..10),
        ("1MiB", "64KiB", 1 << 20..(1 << 20) + (64 << 10)),
        ("5000000", "100", 5_000_000..5_000_001),
        ("5000001", "100", 5_000_001..5_000_001),
        ("123", "4000000", 123..4_000_123),
    ] {
        let read = lsfs!("data", "read", "--offset", offset, "--length", length, &dir).run().expect(0);
        assert_eq!(read.stdout, bytes[range], "{offset} {length}");
    }
    lsfs!("data", "read", "--offset", "5000002", &dir).run().expect(1).says(&["5000002", "5000001 bytes"]);
}

#[test]
fn an_empty_input_is_a_data_stream_too() {
    let scratch = Scratch::new();
    let dir = scratch.path("data");
    lsfs!("data", "write", &dir).run().expect(0);
    assert_eq!(lsfs!("data", "read", &dir).run().expect(0).stdout, b"");
    lsfs!("verify", &dir).run().expect(0);
}

#[test]
fn present_bytes_are_not_written_again_by_accident() {
    let scratch = Scratch::new();
    let dir = scratch.path("data");
    lsfs!("data", "write", &dir).input(b"once").expect(0);
    lsfs!("data", "write", &dir).input(b"once").expect(1).says(&["4 bytes", "--resume", "--append"]);
    assert_eq!(lsfs!("data", "read", &dir).run().stdout, b"once");
    lsfs!("data", "write", "--append", &dir).input(b" more").expect(0);
    assert_eq!(lsfs!("data", "read", &dir).run().stdout, b"once more");
    lsfs!("data", "write", "--resume", &dir).input(b"once more, and again").expect(0);
    assert_eq!(lsfs!("data", "read", &dir).run().stdout, b"once more, and again");
    lsfs!("data", "write", "--resume", &dir)
        .input(b"short")
        .expect(1)
        .says(&["5 bytes", "20 are already durable"]);
}

#[test]
fn a_killed_write_is_resumed_from_a_pipe_and_from_a_file() {
    let scratch = Scratch::new();
    let (dir, file) = (scratch.path("data"), scratch.path("input"));
    let bytes = Random::from(4).bytes(24 << 20);
    std::fs::write(&file, &bytes).unwrap();
    let mut seen = 0;
    for round in 1..=4 {
        let mut writing = lsfs!("data", "write", "--resume", "--mark-every", "256KiB", &dir).spawn();
        // Not all of it, so that the write cannot end before it is killed.
        let part = bytes[..bytes.len() / 5 * round].to_vec();
        let mut stdin = writing.stdin.take().unwrap();
        let feeder = std::thread::spawn(move || {
            drop(std::io::Write::write_all(&mut stdin, &part));
            stdin
        });
        wait_until("another mark", || marked_bytes(&dir) > seen);
        writing.signal(Signal::KILL);
        writing.wait();
        drop(feeder.join().unwrap());
        seen = marked_bytes(&dir);
        assert_eq!(lsfs!("data", "read", &dir).run().expect(0).stdout, bytes[..seen as usize]);
    }
    assert!(seen > 0 && seen < bytes.len() as u64);
    let finished = lsfs!("data", "write", "--resume", &dir).input_file(&file).expect(0);
    finished.says(&[&format!("{seen} of them were there before")]);
    assert_eq!(lsfs!("data", "read", &dir).run().expect(0).stdout, bytes);
    lsfs!("verify", &dir).run().expect(0);
}

#[test]
fn a_signal_marks_what_was_read_and_says_how_to_go_on() {
    let scratch = Scratch::new();
    let dir = scratch.path("data");
    let bytes = Random::from(5).bytes(3_000_000);
    let mut writing = lsfs!("data", "write", "--mark-every", "1000000B", &dir).spawn();
    writing.feed(&bytes[..2_500_000]);
    wait_until("the second mark", || marked_bytes(&dir) >= 2_000_000);
    writing.signal(Signal::TERM);
    writing.wait();
    writing.finish().expect(1).says(&["stopped by a signal", "--resume"]);
    let marked = marked_bytes(&dir) as usize;
    assert!((2_000_000..=2_500_000).contains(&marked), "{marked}");
    assert_eq!(lsfs!("data", "read", &dir).run().expect(0).stdout, bytes[..marked]);
    lsfs!("data", "write", "--resume", &dir).input(&bytes).expect(0);
    assert_eq!(lsfs!("data", "read", &dir).run().expect(0).stdout, bytes);
}
