//! Ctrl-C while recording: a clean end, and nothing acknowledged is lost.

use std::io::Write;

use rustix::process::Signal;

use crate::lsfs;
use crate::support::{Scratch, cat};

#[test]
fn a_signal_in_the_middle_ends_the_recording_in_good_order() {
    for (signal, sync) in [(Signal::INT, "batch"), (Signal::TERM, "each"), (Signal::HUP, "none")] {
        let scratch = Scratch::new();
        let dir = scratch.path("stream");
        let mut recording = lsfs!("record", "--ack", "--json", "--sync", sync, &dir).spawn();
        let mut stdin = recording.stdin.take().unwrap();
        // Lines without end, until the command closes its side.
        let feeder = std::thread::spawn(move || {
            for n in 0u64.. {
                if writeln!(stdin, "line {n}").is_err() {
                    return;
                }
            }
        });
        for index in 0..100 {
            assert_eq!(recording.next_index(), Some(index));
        }
        recording.signal(signal);
        let finished = recording.finish().expect(0);
        feeder.join().unwrap();
        let acked = 100 + finished.text().lines().count() as u64;
        let expected: String = (0..acked).map(|n| format!("line {n}\n")).collect();
        assert!(cat(&dir) == expected.as_bytes(), "exactly the {acked} acknowledged lines are there");
        let summary: serde_json::Value = serde_json::from_str(&finished.stderr).unwrap();
        assert_eq!(summary["stopped"], true);
        assert_eq!(summary["records"], acked);
        let inspected = lsfs!("inspect", "--json", &dir).run().expect(0).json();
        assert_eq!(inspected["health"]["condition"], "closed");
    }
}

#[test]
fn a_signal_while_waiting_for_input_ends_the_recording_too() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let mut recording = lsfs!("record", "--ack", &dir).spawn();
    recording.feed(b"complete\nincomplete");
    assert_eq!(recording.next_index(), Some(0));
    recording.signal(Signal::INT);
    // Its standard input stays open.
    assert_eq!(recording.wait().code(), Some(0));
    assert_eq!(cat(&dir), b"complete\n");
    recording.finish().expect(0).says(&["1 record,", "stopped by a signal"]);
}

#[test]
fn a_closed_acknowledgement_pipe_is_an_error_but_loses_nothing() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let mut recording = lsfs!("record", "--ack", &dir).spawn();
    recording.close_stdout();
    recording.feed(b"one\ntwo\n");
    assert_eq!(recording.wait().code(), Some(1));
    recording.finish().says(&["could not print acknowledgements"]);
    assert_eq!(cat(&dir), b"one\ntwo\n");
}
