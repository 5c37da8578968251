//! `lsfs state`: the latest state, whole.

use crate::lsfs;
use crate::support::{Random, Scratch};

#[test]
fn the_latest_state_comes_back_byte_for_byte() {
    let scratch = Scratch::new();
    let dir = scratch.path("state");
    let mut random = Random::from(6);
    for (version, len) in [0, 1, 4096, 300_000, 3, 0, 70].into_iter().enumerate() {
        let state = random.bytes(len);
        let set = lsfs!("state", "set", &dir).input(&state).expect(0);
        set.says(&[&format!("state version {}, {len} bytes", version + 1)]);
        assert_eq!(lsfs!("state", "get", &dir).run().expect(0).quietly().stdout, state);
    }
    lsfs!("verify", &dir).run().expect(0);
    let inspected = lsfs!("inspect", "--json", &dir).run().expect(0).json();
    assert_eq!(inspected["kind"], "final_data");
    assert_eq!(inspected["state_version"], 7);
    assert_eq!(inspected["state_bytes"], 70);
}

#[test]
fn json_is_lossless() {
    let scratch = Scratch::new();
    let dir = scratch.path("state");
    lsfs!("state", "set", "-q", &dir).input(b"text\n").expect(0).quietly();
    let json = lsfs!("state", "get", "--json", &dir).run().expect(0).json();
    assert_eq!((json["version"].as_u64(), json["state"].as_str()), (Some(1), Some("text\n")));
    lsfs!("state", "set", "--json", &dir).input(b"\xff").expect(0).says(&[r#""version":2"#]);
    assert_eq!(lsfs!("state", "get", "--json", &dir).run().json()["state_base64"], "/w==");
}

#[test]
fn nothing_set_is_an_error() {
    let scratch = Scratch::new();
    lsfs!("state", "get", &scratch.path("nowhere")).run().expect(1).says(&["nowhere", "No such file"]);
    std::fs::create_dir(scratch.path("empty")).unwrap();
    lsfs!("state", "get", &scratch.path("empty")).run().expect(1).says(&["empty", "it holds no files"]);
    // A set that was cut short before its first write.
    std::fs::write(scratch.path("empty/state.a"), "").unwrap();
    lsfs!("state", "get", &scratch.path("empty")).run().expect(1).says(&["no state was ever set"]);
}
