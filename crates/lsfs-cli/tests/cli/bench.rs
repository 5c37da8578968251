//! A bench that leaves nothing behind.

use std::fs;

use rustix::process::Signal;

use crate::lsfs;
use crate::support::{Scratch, wait_until};

#[test]
fn it_measures_in_bounded_time_and_cleans_up() {
    let scratch = Scratch::new();
    let dir = scratch.path("disk");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("mine"), "untouched").unwrap();
    let json = lsfs!("bench", &dir, "--seconds", "1", "--size", "8MiB", "--threads", "4", "--json")
        .run()
        .expect(0)
        .json();
    let cases = json["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    assert!(cases.iter().all(|case| case["per_second"].as_f64().unwrap() > 0.0), "{json}");
    assert_eq!(cases.iter().filter(|case| case["ratio"].is_number()).count(), 5);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    assert_eq!(fs::read(dir.join("mine")).unwrap(), b"untouched");
}

#[test]
fn a_signal_ends_it_without_leftovers() {
    let scratch = Scratch::new();
    let dir = scratch.path("disk");
    fs::create_dir(&dir).unwrap();
    let mut running = lsfs!("bench", &dir, "--seconds", "3000", "--size", "8MiB").spawn();
    wait_until("its directory", || fs::read_dir(&dir).unwrap().count() > 0);
    running.signal(Signal::INT);
    assert_eq!(running.wait().code(), Some(1));
    running.finish().says(&["stopped by a signal"]);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn what_it_cannot_measure_is_said() {
    let scratch = Scratch::new();
    lsfs!("bench").run().expect(2);
    lsfs!("bench", &scratch.path(""), "--seconds", "0").run().expect(2);
    lsfs!("bench", &scratch.path(""), "--size", "1B").run().expect(2).says(&["8 MiB"]);
    lsfs!("bench", &scratch.path("missing")).run().expect(1).says(&["missing"]);
    lsfs!("bench", &scratch.path(""), "--size", "1TiB").run().expect(1).says(&["free", "--size"]);
}
