//! Files shown byte for byte.

use std::fs;

use crate::damage::flip_bit;
use crate::lsfs;
use crate::support::{Scratch, record};

#[test]
fn a_segment_is_shown_field_by_field() {
    let scratch = Scratch::new();
    let dir = scratch.path("stream");
    record(&dir, &[b"hello", b"world"]);
    let segment = dir.join("00000000000000000000.seg");
    let all = lsfs!("dump", &segment).run().expect(0).quietly();
    for part in [
        "file header, 80 bytes",
        "checksum ok",
        "magic: \"LSFSfile\"",
        "\"hello\"",
        "record 1, the record ends here",
        "free",
    ] {
        assert!(all.text().contains(part), "{part:?} is not in\n{}", all.text());
    }
    let block = lsfs!("dump", "--block", "1", &segment).run().expect(0);
    assert!(block.text().contains("block 1: header") && !block.text().contains("LSFSfile"));
    for line in lsfs!("dump", "--json", &segment).run().expect(0).text().lines() {
        let part: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(part["position"].is_u64() && part["fields"].is_array(), "{part}");
    }
    flip_bit(&segment, 4096 + 70);
    let damaged = lsfs!("dump", "--block", "1", &segment).run().expect(0);
    assert!(damaged.text().contains("damaged: slice checksum: stored"), "{}", damaged.text());
    for name in ["manifest.a", "live", "lock"] {
        lsfs!("dump", &dir.join(name)).run().expect(0);
    }
}

#[test]
fn anything_else_is_shown_or_refused() {
    let scratch = Scratch::new();
    let file = scratch.path("notes.txt");
    fs::write(&file, "notes").unwrap();
    let shown = lsfs!("dump", &file).run().expect(0);
    assert!(shown.text().contains("\"notes\""), "{}", shown.text());
    lsfs!("dump").run().expect(2);
    lsfs!("dump", &scratch.path("")).run().expect(1).says(&["is a directory"]);
    lsfs!("dump", &scratch.path("missing")).run().expect(1).says(&["missing"]);
    let dir = scratch.path("stream");
    record(&dir, &[b"one"]);
    lsfs!("dump", "--block", "9999", &dir.join("00000000000000000000.seg")).run().expect(2).says(&["below"]);
}
