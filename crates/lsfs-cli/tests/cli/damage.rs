//! Bytes that changed on the disk: named, never passed off as records, and exit code 3.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::lsfs;
use crate::support::{Random, Scratch};

/// A stream of several segments; its input.
pub(crate) fn recorded(dir: &Path) -> String {
    let input: String = (0..30_000).map(|n| format!("record number {n} of the stream\n")).collect();
    lsfs!("record", "-q", "--segment-size", "512KiB", dir).input(input.as_bytes()).expect(0);
    input
}

pub(crate) fn flip_bit(path: &Path, position: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], position).unwrap();
}

#[test]
fn verify_names_the_file_the_position_and_the_records() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let input = recorded(&dir);
    let inspected = lsfs!("inspect", "--json", &dir).run().expect(0).json();
    let segment = &inspected["segments"][1];
    let path = dir.join(segment["file"].as_str().unwrap());
    let position = 200_000;
    flip_bit(&path, position);
    let verified = lsfs!("verify", &dir).run().expect(3);
    assert!(verified.text().contains(path.to_str().unwrap()), "{}", verified.text());
    let verified = verified.says(&["is damaged in 1 place"]);
    assert!(verified.text().lines().last().unwrap().contains("1 place damaged"));

    let json = lsfs!("verify", "--json", &dir).run().expect(3).json();
    let damage = &json["damage"][0];
    assert_eq!(damage["file"].as_str(), path.to_str());
    let at = damage["position"].as_u64().unwrap();
    assert!((position - 4096..=position).contains(&at), "{damage}");
    let (first, next) = (damage["first_index"].as_u64().unwrap(), damage["next_index"].as_u64().unwrap());
    assert!(first < next && next - first < 100, "{damage}");
    assert!(
        segment["first_index"].as_u64().unwrap() <= first && next <= segment["next_index"].as_u64().unwrap()
    );
    assert_eq!(json["records"].as_u64().unwrap(), 30_000 - (next - first), "all the others verify");

    // What lies before the damage is printed, what lies behind it can be had, in either direction.
    let lines: Vec<_> = input.lines().collect();
    let printed = lsfs!("cat", &dir).run().expect(3).says(&["corruption in", path.to_str().unwrap()]);
    assert!(printed.text().lines().eq(lines[..first as usize].iter().copied()));
    let printed = lsfs!("cat", "--from", &next.to_string(), &dir).run().expect(0);
    assert!(printed.text().lines().eq(lines[next as usize..].iter().copied()));
    let printed = lsfs!("cat", "--reverse", &dir).run().expect(3);
    let backward: Vec<_> = printed.text().lines().collect();
    assert!(backward.iter().eq(lines.iter().rev().take(backward.len())));
    assert!(backward.len() as u64 >= 30_000 - next - 200, "{} records from the end", backward.len());
}

#[test]
fn any_flipped_bit_is_found_or_harmless() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let input = recorded(&dir);
    let inspected = lsfs!("inspect", "--json", &dir).run().expect(0).json();
    let mut random = Random::seeded();
    for _ in 0..40 {
        let segments = inspected["segments"].as_array().unwrap();
        let segment = &segments[random.below(segments.len() as u64) as usize];
        let path = dir.join(segment["file"].as_str().unwrap());
        let position = random.below(segment["used_bytes"].as_u64().unwrap());
        flip_bit(&path, position);
        let verified = lsfs!("verify", &dir).run();
        let printed = lsfs!("cat", &dir).run();
        match (verified.code, printed.code) {
            // Unused bytes, such as those between the last slice of a block and its tailer.
            (Some(0), Some(0)) | (Some(3), Some(0)) => assert_eq!(printed.text(), input, "bit at {position}"),
            (Some(3), Some(3)) => {
                assert!(input.as_bytes().starts_with(&printed.stdout), "bit at {position} of {path:?}");
                let alone = lsfs!("inspect", &path).run();
                assert!(matches!(alone.code, Some(0 | 1 | 3)), "{alone:?}");
            }
            _ => panic!("bit at {position} of {path:?}: {verified:?} {:?} {}", printed.code, printed.stderr),
        }
        flip_bit(&path, position);
    }
    assert_eq!(lsfs!("cat", &dir).run().expect(0).text(), input);
}

#[test]
fn damage_in_a_data_stream_and_in_a_state_is_found() {
    let scratch = Scratch::new();
    let (data, state) = (scratch.path("data"), scratch.path("state"));
    let bytes = Random::from(9).bytes(2_000_000);
    lsfs!("data", "write", "-q", &data).input(&bytes).expect(0);
    let segment: PathBuf = fs::read_dir(&data)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "seg"))
        .min()
        .unwrap();
    flip_bit(&segment, 300_000);
    lsfs!("verify", &data).run().expect(3);
    let printed = lsfs!("data", "read", &data).run().expect(3).says(&["corruption in"]);
    assert!(bytes.starts_with(&printed.stdout));

    for text in [&b"one"[..], b"two"] {
        lsfs!("state", "set", "-q", &state).input(text).expect(0);
    }
    // The first set wrote to A, the second, after reopening, to B: block 1 holds the state.
    flip_bit(&state.join("state.b"), 4096 + 80);
    lsfs!("verify", &state).run().expect(3);
    lsfs!("inspect", &state).run().expect(3);
    lsfs!("state", "get", &state).run().expect(3).says(&["state version 2", "no longer verifies"]);
}

#[test]
fn a_single_segment_file_shows_what_it_can() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    for _ in 0..3 {
        lsfs!("record", "-q", &dir).input(&b"some line of the stream\n".repeat(1_000)).expect(0);
    }
    let path = dir.join("00000000000000000000.seg");
    let used = lsfs!("inspect", "--json", &path).run().expect(0).json()["used_bytes"].as_u64().unwrap();
    // Later blocks say that the first third was durable; of the last run's bytes none does.
    flip_bit(&path, used / 6);
    let inspected = lsfs!("inspect", &path).run().expect(3);
    assert!(inspected.text().contains("damage in"), "{}", inspected.text());
    flip_bit(&path, used / 6);
    flip_bit(&path, used / 6 * 5);
    let inspected = lsfs!("inspect", &path).run().expect(0);
    assert!(inspected.text().contains("broken off at byte"), "{}", inspected.text());
    // The directory knows more: the manifest of a closed stream names its end.
    lsfs!("inspect", &dir).run();
    lsfs!("verify", &dir).run().expect(3);
}
