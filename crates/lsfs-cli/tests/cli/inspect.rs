//! `lsfs inspect` and `lsfs verify` on what is in order.

use rustix::process::Signal;

use crate::lsfs;
use crate::support::{Scratch, record};

#[test]
fn a_record_stream_is_described_with_its_segments() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let input = "some words to fill segments with\n".repeat(50_000);
    lsfs!("record", "-q", "--segment-size", "512KiB", &dir).input(input.as_bytes()).expect(0);
    let text = lsfs!("inspect", &dir).run().expect(0).text().to_string();
    assert!(text.starts_with(&format!("{}: record stream\n", dir.display())), "{text}");
    for part in ["0 to 49999 (50000)", "closed cleanly", "4096-byte blocks", "crc32c", "sealed", "active"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let json = lsfs!("inspect", "--json", &dir).run().expect(0).json();
    assert_eq!((json["first_index"].as_u64(), json["next_index"].as_u64()), (Some(0), Some(50_000)));
    assert_eq!(json["health"]["condition"], "closed");
    let segments = json["segments"].as_array().unwrap();
    assert!(segments.len() > 3, "{json}");
    for pair in segments.windows(2) {
        assert_eq!(pair[0]["next_index"], pair[1]["first_index"]);
        assert_eq!(
            (pair[0]["sealed"].as_bool(), pair[0]["file_bytes"].as_u64() > Some(0)),
            (Some(true), true)
        );
    }
    // Each file on its own tells the same.
    for segment in segments {
        let path = dir.join(segment["file"].as_str().unwrap());
        let alone = lsfs!("inspect", "--json", &path).run().expect(0).json();
        assert_eq!(alone["kind"], "segment_file");
        assert_eq!(alone["stream_id"], json["stream_id"]);
        for field in ["first_index", "next_index", "used_bytes", "file_bytes"] {
            assert_eq!(alone[field], segment[field], "{field} of {}", path.display());
        }
    }
    let verified = lsfs!("verify", "--json", &dir).run().expect(0).quietly().json();
    assert_eq!(verified["records"], 50_000);
    assert_eq!(verified["stored_bytes"], input.len() - 50_000);
}

#[test]
fn health_tells_open_killed_and_closed_apart() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let health = || lsfs!("inspect", "--json", &dir).run().expect(0).json()["health"].clone();
    let mut recording = lsfs!("record", "--ack", &dir).spawn();
    recording.feed(b"one\n");
    recording.next_index().unwrap();
    assert_eq!(health(), serde_json::json!({"condition": "open", "pid": recording.pid()}));
    recording.signal(Signal::KILL);
    recording.wait();
    assert_eq!(health()["condition"], "not_closed");
    record(&dir, &[b"two"]);
    assert_eq!(health()["condition"], "closed");
}

#[test]
fn a_data_stream_and_a_state_are_described() {
    let scratch = Scratch::new();
    let (data, state) = (scratch.path("data"), scratch.path("state"));
    lsfs!("data", "write", "-q", &data).input(&[7; 100_000]).expect(0);
    lsfs!("state", "set", "-q", &state).input(b"on").expect(0);
    let text = lsfs!("inspect", &data).run().expect(0).text().to_string();
    assert!(text.contains(": data stream\n") && text.contains("100000 bytes"), "{text}");
    let text = lsfs!("inspect", &state).run().expect(0).text().to_string();
    assert!(text.contains(": final data\n") && text.contains("version 1, 2 bytes"), "{text}");
    let text = lsfs!("inspect", &state.join("state.a")).run().expect(0).text().to_string();
    assert!(text.contains("state.a: file of final data\n"), "{text}");
}

#[test]
fn a_buffered_file_system_is_told_from_direct_io() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    record(&dir, &[b"one"]);
    let json = lsfs!("inspect", "--json", &dir).run().expect(0).json();
    assert!(json["direct_io"].is_boolean(), "{json}");
}
