//! The worked examples of docs/format.md are what this crate writes and reads, byte for byte.
//!
//! An example is a fenced block behind a comment `<!-- kvs example: NAME -->`, written as those of the engine.

use std::collections::BTreeMap;

use crate::index::IndexRoot;
use crate::index::examples::{directory_image, header_image, page_image};
use crate::order;
use crate::record::{Command, Record, encode_moved, encode_remove, encode_set};
use crate::root::{Root, RootSegment};
use crate::tail::Spot;

fn root() -> Root {
    Root {
        index: IndexRoot {
            file_id: 0x1122_3344_5566_7788,
            hash_seed: 7,
            depth: 1,
            generation: 4,
            directory: vec![6],
        },
        log_end: (3, 8192),
        keys: 2,
        segments: vec![RootSegment { slot: 2, number: 3, stale_bytes: 100, remove_bytes: 0, removes: 0 }],
        lost: vec![Spot::from_numbers([0x20_0001, 3, 4096])],
    }
}

/// What the code makes of the values that the document names.
fn written() -> BTreeMap<&'static str, Vec<u8>> {
    let remove = encode_remove(b"key");
    let body = remove.body();
    let record = Record::decode(remove.kind, &body).unwrap();
    BTreeMap::from([
        ("set", encode_set(b"key", b"value", lsfs::codec::Compression::None).body()),
        ("moved_remove", encode_moved(remove.kind, &body, &record, 3).body()),
        ("index_header", header_image()),
        ("index_page", page_image()),
        ("index_directory", directory_image()),
        ("root", root().encode()),
        ("tail_list", crate::tail::examples::encoded(&crate::tail::examples::list(), 0x1122_3344_5566_7788)),
        ("run_header", order::examples::header_image()),
        ("run_block", order::examples::block_image()),
    ])
}

fn examples() -> BTreeMap<String, Vec<u8>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/format.md");
    let document = std::fs::read_to_string(path).unwrap();
    let parts = document.split("<!-- kvs example: ").skip(1);
    let example = |part: &str| {
        let (name, rest) = part.split_once(" -->\n```text\n").expect("a text block follows");
        let (body, _) = rest.split_once("\n```").expect("the block ends");
        let words = body.lines().flat_map(|line| line.split('#').next().unwrap_or("").split_whitespace());
        let bytes = words.flat_map(|word| {
            let (hex, count) = word.split_once('*').unwrap_or((word, "1"));
            let byte = u8::from_str_radix(hex, 16).unwrap_or_else(|_| panic!("example {name}: {word:?}"));
            std::iter::repeat_n(byte, count.parse().expect("a count"))
        });
        (name.to_string(), bytes.collect())
    };
    parts.map(example).collect()
}

#[test]
fn every_example_is_what_the_code_writes() {
    let (written, examples) = (written(), examples());
    for (name, bytes) in &written {
        assert_eq!(examples.get(*name).map(Vec::as_slice), Some(&bytes[..]), "example {name}: {bytes:02x?}");
    }
    assert_eq!(written.len(), examples.len(), "every example is checked: {:?}", examples.keys());
}

#[test]
fn commands_and_root_are_read_back() {
    let examples = examples();
    assert_eq!(Root::decode(&examples["root"]), Ok(root()));
    let set = Record::decode(0x81, &examples["set"]).unwrap();
    assert!(set.key == b"key" && matches!(set.command, Command::Set(value) if value.stored == b"value"));
    let remove = Record::decode(0x92, &examples["moved_remove"]).unwrap();
    assert_eq!(remove.command, Command::Remove { born: Some(3) });
}
