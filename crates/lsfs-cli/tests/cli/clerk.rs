//! `lsfs clerk`, `lsfs index`, `lsfs verify --index` and `lsfs inspect`: a writer, a clerk that is killed again and again,
//! and readers, each a process of its own.
//!
//! The test command takes a part of the full counts, of which 10 million records and 100,000 random reads are
//! `LSFS_CLERK_RECORDS=10000000 LSFS_CLERK_READS=100000 cargo test --release -p lsfs-cli clerk::`, and `bench/`
//! measures the rates.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lsfs::{Error, Reader};
use rustix::process::Signal;

use crate::lsfs;
use crate::support::{Random, Scratch, record, wait_until};

fn budget(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// The line of a record.
fn line(index: u64) -> String {
    format!("{index} {}", "words ".repeat((index % 60) as usize))
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = dir.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    paths
}

/// A stream of 60,000 short records in several segments.
fn several_segments(dir: &Path) {
    let input = "some words to fill segments with\n".repeat(60_000);
    lsfs!("record", "-q", "--segment-size", "512KiB", dir).input(input.as_bytes()).expect(0);
}

#[test]
fn once_indexes_several_streams_and_inspect_shows_it() {
    let scratch = Scratch::new();
    let (one, two) = (scratch.path("one"), scratch.path("two"));
    several_segments(&one);
    record(&two, &[b"a", b"bc"]);
    let bare = lsfs!("inspect", &one).run().expect(0).text().to_string();
    assert!(bare.contains("index         none"), "{bare}");
    lsfs!("clerk", "--once", &one, &two).run().expect(0).says(&[
        "one: indexed, 60000 records",
        "indexed to 60000",
        "two: indexed, 2 records",
    ]);
    let text = lsfs!("inspect", &one).run().expect(0).text().to_string();
    for part in ["index         complete", "60000 records", "0: 60000", "sealed, indexed"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let json = lsfs!("inspect", "--json", &two).run().expect(0).json();
    let statistics = &json["segments"][0]["statistics"];
    assert_eq!((statistics["records"].as_u64(), statistics["payload_bytes"].as_u64()), (Some(2), Some(3)));
    assert_eq!(json["segments"][0]["indexed_to"], 2);
    // What was done is not done again, and the summary says so as JSON too.
    let again = lsfs!("clerk", "--once", "--json", &one).run().expect(0);
    let again: serde_json::Value = serde_json::from_str(&again.stderr).unwrap();
    assert_eq!((again["records"].as_u64(), again["indexed_to"].as_u64()), (Some(0), Some(60_000)));
    assert_eq!(
        lsfs!("cat", "--from", "59999", &one).run().expect(0).stdout,
        b"some words to fill segments with\n"
    );
}

#[test]
fn a_wrong_index_is_named_and_built_anew() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    several_segments(&dir);
    lsfs!("clerk", "--once", "-q", &dir).run().expect(0).quietly();
    let verified = lsfs!("verify", "--index", &dir).run().expect(0).quietly().text().to_string();
    assert!(verified.contains("index: 60000 entries") && verified.contains("none wrong"), "{verified}");
    let indexes = files(&dir, "idx");
    let mut bytes = std::fs::read(&indexes[1]).unwrap();
    bytes[16 * 7 + 9] ^= 1;
    std::fs::write(&indexes[1], &bytes).unwrap();
    std::fs::remove_file(&indexes[2]).unwrap();
    let verified = lsfs!("verify", "--index", "--json", &dir).run().expect(3).says(&["lsfs index"]).json();
    assert_eq!(verified["damage"].as_array().unwrap().len(), 0, "the records are as good as ever");
    assert_eq!(verified["index"]["faults"].as_array().unwrap().len(), 1, "{verified}");
    assert_eq!(verified["index"]["unindexed_segments"], 1, "{verified}");
    // Without --index nothing is wrong.
    lsfs!("verify", &dir).run().expect(0);
    lsfs!("index", &dir).run().expect(0).says(&["rebuilt, 60000 records"]);
    lsfs!("verify", "--index", &dir).run().expect(0);
}

#[test]
fn what_has_no_records_is_refused() {
    let scratch = Scratch::new();
    let (state, stream) = (scratch.path("state"), scratch.path("stream"));
    lsfs!("state", "set", "-q", &state).input(b"on").expect(0);
    record(&stream, &[b"one"]);
    lsfs!("clerk", "--once", &state).run().expect(1).says(&["no records to index"]);
    lsfs!("index", &state).run().expect(1).says(&["no records to index"]);
    lsfs!("verify", "--index", &state).run().expect(1).says(&["no index"]);
    lsfs!("clerk").run().expect(2);
    lsfs!("clerk", &scratch.path("none")).run().expect(1).says(&["none"]);
    let _clerk = lsfs::Clerk::start(&stream).unwrap();
    lsfs!("clerk", &stream).run().expect(1).says(&["one clerk is enough", &std::process::id().to_string()]);
}

#[test]
fn a_damaged_stream_is_indexed_as_far_as_it_goes() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    several_segments(&dir);
    let segment = &files(&dir, "seg")[1];
    let mut bytes = std::fs::read(segment).unwrap();
    bytes[20 * 4096 + 100] ^= 1;
    std::fs::write(segment, &bytes).unwrap();
    lsfs!("clerk", "--once", &dir).run().expect(3).says(&["damage in", "damage met in"]);
    lsfs!("verify", "--index", &dir).run().expect(3);
    assert_eq!(
        lsfs!("cat", "--from", "59999", &dir).run().expect(0).stdout,
        b"some words to fill segments with\n"
    );
}

/// Reads random records until it has read so many, each right.
fn read_at_random(dir: &Path, count: u64, mut random: Random) -> u64 {
    let reader = Reader::open(dir).unwrap();
    let (mut right, mut again) = (0, 0);
    while right < count {
        let held = reader.bounds().unwrap();
        if held.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let index = held.start + random.below(held.end - held.start);
        match reader.read(index) {
            Ok(record) => {
                assert!(record.payload == line(index).as_bytes(), "record {index}: {:?}", record.payload);
                right += 1;
            }
            Err(Error::Gone { .. }) => again += 1,
            Err(error) => panic!("record {index}: {error}"),
        }
    }
    again
}

#[test]
fn a_writer_a_clerk_killed_again_and_again_and_readers_beside_it() {
    let records = budget("LSFS_CLERK_RECORDS", 300_000);
    let reads = budget("LSFS_CLERK_READS", 10_000);
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    record(&dir, &[line(0).as_bytes()]);
    let mut recording = lsfs!("record", "-q", "--segment-size", "4MiB", &dir).spawn();
    let mut stdin = recording.stdin.take().unwrap();
    let mut random = Random::seeded();
    std::thread::scope(|scope| {
        let feeder = scope.spawn(move || {
            for index in 1..records {
                writeln!(stdin, "{}", line(index)).unwrap();
                // Slow enough that there is something beside it, unless many are asked for.
                if index.is_multiple_of(20_000) && records < 1_000_000 {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        });
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (dir, random) = (&dir, Random::from(random.next()));
                scope.spawn(move || read_at_random(dir, reads / 2, random))
            })
            .collect();
        let mut kills = 0;
        while kills < 8 || !feeder.is_finished() {
            let mut clerk = lsfs!("clerk", &dir).spawn();
            std::thread::sleep(Duration::from_millis(random.below(150)));
            clerk.signal(Signal::KILL);
            assert_eq!(clerk.wait().code(), None, "killed by the signal");
            kills += 1;
        }
        feeder.join().unwrap();
        let again: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        eprintln!("{kills} kills, {again} reads tried again");
    });
    recording.finish().expect(0);
    let last = files(&dir, "seg").pop().unwrap().with_extension("stats");
    // A killed clerk may have come to the end: what is waited for is the work of the next one.
    if last.exists() {
        std::fs::remove_file(&last).unwrap();
    }
    let clerk = lsfs!("clerk", &dir).spawn();
    wait_until("the index", || {
        let json = lsfs!("inspect", "--json", &dir).run().expect(0).json();
        json["segments"].as_array().unwrap().last().unwrap()["indexed_to"] == records
    });
    clerk.signal(Signal::TERM);
    clerk.finish().expect(0).says(&["stopped", &format!("indexed to {records}")]);
    let verified = lsfs!("verify", "--index", "--json", &dir).run().expect(0).json();
    assert_eq!(verified["index"]["entries"], records, "{verified}");
    assert_eq!(read_at_random(&dir, reads / 2, random), 0);
}

#[test]
fn indexes_go_with_their_segments() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    several_segments(&dir);
    lsfs!("clerk", "--once", "-q", &dir).run().expect(0);
    // A clerk that was not there when segments went.
    let orphan = dir.join("00000000000000000003.idx");
    std::fs::write(&orphan, [0; 16]).unwrap();
    let stream = lsfs::RecordStream::open(&dir, lsfs::StreamOptions::default()).unwrap();
    assert!(!orphan.exists(), "an open removes what belongs to nothing");
    stream.purge_before(50_000).unwrap();
    std::fs::write(&orphan, [0; 16]).unwrap();
    lsfs!("clerk", "--once", &dir).run().expect(0).says(&["1 file of dropped segments removed"]);
    assert_eq!(files(&dir, "idx").len(), files(&dir, "seg").len());
    assert_eq!(files(&dir, "stats").len(), files(&dir, "seg").len());
}
