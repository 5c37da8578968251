//! `lsfs cat --follow`: what other processes record appears.

use rustix::process::Signal;

use crate::lsfs;
use crate::support::{Scratch, record};

#[test]
fn records_of_other_processes_appear_also_after_they_are_killed_and_restarted() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    record(&dir, &[b"old"]);
    let mut following = lsfs!("cat", "--follow", &dir).spawn();
    assert_eq!(following.next_line().unwrap(), b"old");
    for round in 0..10 {
        let mut recording = lsfs!("record", "--ack", &dir).spawn();
        for line in 0..5 {
            let text = format!("round {round} line {line}");
            recording.feed(format!("{text}\n").as_bytes());
            assert_eq!(String::from_utf8(following.next_line().unwrap()).unwrap(), text);
        }
        if round % 2 == 0 {
            recording.signal(Signal::KILL);
            recording.wait();
        } else {
            recording.finish().expect(0);
        }
    }
}

#[test]
fn a_fast_writer_is_followed_over_many_segments_without_a_gap() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    record(&dir, &[b"0"]);
    let count = 200_000;
    let mut following = lsfs!("cat", "--follow", "--count", &(count + 1).to_string(), &dir).spawn();
    let input: String = (1..=count).map(|n| format!("{n}\n")).collect();
    let recording = lsfs!("record", "-q", "--segment-size", "512KiB", &dir);
    let recorder = std::thread::spawn(move || recording.input(input.as_bytes()).expect(0));
    for n in 0..=count {
        assert_eq!(following.next_index(), Some(n));
    }
    assert_eq!(following.next_line(), None);
    following.finish().expect(0).quietly();
    recorder.join().unwrap();
}

#[test]
fn it_ends_when_nobody_reads_it_any_more() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    record(&dir, &[b"old"]);
    let mut following = lsfs!("cat", "--follow", "--from", "1", &dir).spawn();
    following.close_stdout();
    assert_eq!(following.wait().code(), Some(0));
}
