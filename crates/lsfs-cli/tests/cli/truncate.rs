//! Dropping the newest or the oldest records.

use crate::lsfs;
use crate::support::{Scratch, cat, record};

#[test]
fn truncate_and_purge_drop_what_they_say() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    record(&dir, &[b"0", b"1", b"2", b"3", b"4", b"5"]);
    for dry in
        [lsfs!("truncate", &dir, "--after", "3", "--dry-run"), lsfs!("purge", &dir, "-n", "--before", "2")]
    {
        let said = dry.run().expect(0).quietly();
        assert!(said.text().contains("would go"), "{}", said.text());
    }
    assert_eq!(cat(&dir), b"0\n1\n2\n3\n4\n5\n");
    let said = lsfs!("truncate", &dir, "--after", "3").run().expect(0);
    assert!(said.text().contains("records 4 to 5 (2) gone, records 0 to 3 (4) left"), "{}", said.text());
    assert_eq!(cat(&dir), b"0\n1\n2\n3\n");
    let json = lsfs!("purge", &dir, "--before", "2", "--json").run().expect(0).json();
    let expected = serde_json::json!([0, 2, 2, 4, false]);
    let keys = ["dropped_first_index", "dropped_next_index", "first_index", "next_index", "dry_run"];
    assert_eq!(serde_json::Value::from(keys.map(|key| json[key].clone()).to_vec()), expected);
    assert_eq!(cat(&dir), b"2\n3\n");
    let said = lsfs!("truncate", &dir, "--after", "3").run().expect(0);
    assert!(said.text().contains("nothing to drop"), "{}", said.text());
    lsfs!("purge", &dir, "--before", "4").run().expect(0);
    assert_eq!(cat(&dir), b"");
    record(&dir, &[b"goes on"]);
    assert_eq!(lsfs!("cat", "--json", &dir).run().expect(0).json()["index"], 4);
}

#[test]
fn purged_segments_give_their_space_back() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    let input = "some words to fill segments with\n".repeat(60_000);
    lsfs!("record", "-q", "--segment-size", "512KiB", &dir).input(input.as_bytes()).expect(0);
    let json = lsfs!("purge", &dir, "--before", "59990", "--json").run().expect(0).json();
    assert!(json["freed_bytes"].as_u64().unwrap() > 2 << 20, "{json}");
    assert_eq!(lsfs!("cat", &dir).run().expect(0).text().lines().count(), 10);
}

#[test]
fn what_is_not_there_is_refused() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    for command in ["truncate", "purge"] {
        lsfs!(command, &dir).run().expect(2);
        lsfs!(command, &dir, "--after", "x").run().expect(2);
    }
    lsfs!("truncate", &dir, "--after", "1").run().expect(1).says(&["stream"]);
    assert!(!dir.exists(), "nothing is created");
    record(&dir, &[b"0", b"1"]);
    for dry in ["--json", "--dry-run"] {
        lsfs!("truncate", &dir, "--after", "2", dry).run().expect(1).says(&["record 2 is not in the stream"]);
        lsfs!("purge", &dir, "--before", "3", dry).run().expect(1).says(&["record 3 is not in the stream"]);
    }
    lsfs!("state", "set", "-q", &scratch.path("state")).input(b"x").expect(0);
    lsfs!("truncate", &scratch.path("state"), "--after", "0").run().expect(1).says(&["use `lsfs state`"]);
    let mut writing = lsfs!("record", "--ack", &dir).spawn();
    writing.feed(b"2\n");
    writing.next_index().unwrap();
    let holder = format!("process {}", writing.pid());
    for dry in ["--json", "--dry-run"] {
        lsfs!("truncate", &dir, "--after", "0", dry).run().expect(1).says(&[&holder]);
        lsfs!("purge", &dir, "--before", "1", dry).run().expect(1).says(&[&holder]);
    }
    writing.finish().expect(0);
    assert_eq!(cat(&dir), b"0\n1\n2\n");
}
