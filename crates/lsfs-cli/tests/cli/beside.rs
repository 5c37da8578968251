//! Reading beside a busy writer: never an error, never damage, never anything but a prefix of what was written.

use std::io::Write;
use std::process::ChildStdin;
use std::time::Duration;

use rustix::process::Signal;

use crate::lsfs;
use crate::support::{Random, Scratch, wait_until};

/// Feeds numbered lines, some 20 MB/s, until the reader is gone.
fn feed_lines(mut stdin: ChildStdin) {
    for n in 0u64.. {
        if writeln!(stdin, "{n} {}", "x".repeat((n * 31 % 900) as usize)).is_err() {
            return;
        }
        if n.is_multiple_of(50) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_busy_record_stream_can_be_read_inspected_and_verified() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let mut recording = lsfs!("record", "-q", "--segment-size", "512KiB", &dir).spawn();
    let stdin = recording.stdin.take().unwrap();
    let feeder = std::thread::spawn(|| feed_lines(stdin));
    wait_until("the stream", || lsfs!("cat", &dir).run().code == Some(0));
    let mut seen = 0;
    for _ in 0..10 {
        let printed = lsfs!("cat", &dir).run().expect(0).quietly();
        let numbers =
            printed.text().lines().map(|line| line.split(' ').next().unwrap().parse::<u64>().unwrap());
        let count = printed.text().lines().count() as u64;
        assert!(numbers.eq(0..count) && count >= seen, "{count} lines behind {seen}");
        seen = count;
        let verified = lsfs!("verify", "--json", &dir).run().expect(0).json();
        assert!(verified["records"].as_u64() >= Some(seen), "{verified}");
        let inspected = lsfs!("inspect", "--json", &dir).run().expect(0).json();
        assert_eq!(inspected["health"]["condition"], "open", "{inspected}");
        assert!(inspected["next_index"].as_u64() >= Some(seen), "{inspected}");
        // The newest records, which are in no sealed segment yet.
        let printed = lsfs!("cat", "--reverse", "--count", "3", &dir).run().expect(0).quietly();
        assert_eq!(printed.text().lines().count(), 3);
    }
    recording.signal(Signal::INT);
    recording.finish().expect(0);
    feeder.join().unwrap();
}

#[test]
fn a_busy_data_stream_can_be_read_inspected_and_verified() {
    let scratch = Scratch::new();
    let dir = scratch.path("data");
    let bytes = Random::from(10).bytes(48 << 20);
    let mut writing = lsfs!("data", "write", "-q", "--mark-every", "128KiB", &dir).spawn();
    let (mut stdin, fed) = (writing.stdin.take().unwrap(), bytes.clone());
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&fed)));
    wait_until("the data stream", || lsfs!("data", "read", &dir).run().code == Some(0));
    let mut seen = 0;
    while seen < bytes.len() {
        let read = lsfs!("data", "read", &dir).run().expect(0).quietly().stdout;
        assert!(read.len() >= seen && read == bytes[..read.len()], "{} bytes behind {seen}", read.len());
        seen = read.len();
        lsfs!("verify", &dir).run().expect(0);
        lsfs!("inspect", &dir).run().expect(0);
    }
    feeder.join().unwrap();
    writing.finish().expect(0);
}

#[test]
fn a_busy_state_is_always_whole() {
    let scratch = Scratch::new();
    let dir = scratch.path("state");
    let setting = std::thread::spawn({
        let dir = dir.clone();
        move || {
            for n in 0..60u8 {
                let state = vec![n; 1000 * usize::from(n)];
                lsfs!("state", "set", "-q", &dir).input(&state).expect(0).quietly();
            }
        }
    });
    wait_until("a state", || lsfs!("state", "get", &dir).run().code == Some(0));
    while !setting.is_finished() {
        let state = lsfs!("state", "get", &dir).run().expect(0).stdout;
        let n = state.first().copied().unwrap_or(0);
        assert!(state == vec![n; 1000 * usize::from(n)], "state {n} has {} bytes", state.len());
        lsfs!("verify", &dir).run().expect(0);
        lsfs!("inspect", &dir).run().expect(0);
    }
    setting.join().unwrap();
}
