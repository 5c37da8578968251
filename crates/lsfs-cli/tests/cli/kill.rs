//! `kill -9` while recording: every printed index is there, with its bytes.

use std::io::Write;
use std::path::Path;
use std::process::ChildStdin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::lsfs;
use crate::support::{Random, Scratch, cat};

const KILLS: u64 = 200;

/// The `n`-th line fed in a round.
fn line(round: u64, n: u64) -> Vec<u8> {
    let mut random = Random::from(round << 32 | n);
    let len = match random.below(100) {
        0..60 => random.below(100),
        60..95 => random.below(3_000),
        95..99 => random.below(20_000),
        _ => random.below(300_000),
    };
    let mut line = format!("{round} {n} ").into_bytes();
    line.extend(random.bytes(len as usize));
    line.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
    line
}

/// Feeds lines in bursts with pauses between, until the reader is gone.
fn feed(mut stdin: ChildStdin, round: u64, mut random: Random, stop: &AtomicBool) {
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..1 + random.below(30) {
            if stdin.write_all(&[line(round, n), b"\n".to_vec()].concat()).is_err() {
                return;
            }
            n += 1;
        }
        if random.below(3) == 0 {
            std::thread::sleep(Duration::from_micros(random.below(2_000)));
        }
    }
}

/// Records until killed behind a random number of acknowledgements; answers the indexes printed.
fn record_and_kill(dir: &Path, round: u64, random: &mut Random) -> Vec<u64> {
    let sync = if round.is_multiple_of(4) { "each" } else { "batch" };
    let mut recording = lsfs!("record", "--ack", "--segment-size", "1MiB", "--sync", sync, dir).spawn();
    let stop = Arc::new(AtomicBool::new(false));
    let (stdin, feeder_random) = (recording.stdin.take().unwrap(), Random::from(random.next()));
    let feeder = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || feed(stdin, round, feeder_random, &stop)
    });
    let mut acked = Vec::new();
    if random.below(10) == 0 {
        // Also while it opens the stream.
        std::thread::sleep(Duration::from_micros(random.below(10_000)));
    } else {
        for _ in 0..random.below(200) {
            acked.push(recording.next_index().expect("the recording goes on until it is killed"));
        }
    }
    recording.signal(Signal::KILL);
    assert_eq!(recording.wait().code(), None, "killed by the signal");
    // What it printed until then counts too.
    while let Some(index) = recording.next_index() {
        acked.push(index);
    }
    stop.store(true, Ordering::Relaxed);
    feeder.join().unwrap();
    acked
}

#[test]
fn two_hundred_kills_lose_nothing_that_was_acknowledged() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let mut random = Random::seeded();
    let mut expected = Vec::new();
    let (mut next_index, mut acknowledged) = (0u64, 0);
    for round in 0..KILLS {
        let acked = record_and_kill(&dir, round, &mut random);
        assert!(
            acked.iter().copied().eq(next_index..next_index + acked.len() as u64),
            "round {round}: {acked:?}"
        );
        acknowledged += acked.len();
        if !dir.join("manifest.a").exists() {
            assert!(acked.is_empty(), "killed before there was a stream");
            continue;
        }
        // Records that were not acknowledged may be there too, if they are those that were fed next.
        let kept = lsfs!("cat", "--from", &next_index.to_string(), &dir).run();
        if acked.is_empty() && next_index == 0 && kept.code == Some(1) {
            continue;
        }
        let kept = kept.expect(0).quietly().stdout;
        let kept: Vec<_> = kept.split_inclusive(|&byte| byte == b'\n').collect();
        assert!(
            kept.len() >= acked.len(),
            "round {round}: {} kept of {} acknowledged",
            kept.len(),
            acked.len()
        );
        for (n, kept) in kept.iter().enumerate() {
            let index = next_index + n as u64;
            let fed = [line(round, n as u64), b"\n".to_vec()].concat();
            assert!(*kept == fed, "round {round}: record {index} is not the line that was fed");
        }
        next_index += kept.len() as u64;
        expected.extend(kept.concat());
    }
    assert!(cat(&dir) == expected, "all rounds are still there at the end");
    lsfs!("verify", &dir).run().expect(0);
    eprintln!("{KILLS} kills, {acknowledged} acknowledged, {next_index} kept, {} bytes", expected.len());
    assert!(acknowledged > 1_000, "only {acknowledged} were acknowledged");
}
