//! The worked examples of docs/format.md, "Raft logs", are what the code writes and reads, byte for byte.

use std::collections::BTreeMap;
use std::path::Path;

use lsfs::Record;

use crate::entry::{EntryHeader, EntryId};
use crate::names::Name;
use crate::replaced::{self, Replaced};
use crate::shared::RawEntry;
use crate::state::State;
use crate::terms::Terms;

/// The bytes of each `<!-- raft example: NAME -->`: hex, a remark behind `#`; `00*24` stands for 24 zero bytes.
fn examples() -> BTreeMap<String, Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/format.md");
    let text = std::fs::read_to_string(path).unwrap();
    let example = |part: &str| {
        let (name, rest) = part.split_once(" -->").unwrap();
        let (_, rest) = rest.split_once("```text\n").unwrap();
        let (lines, _) = rest.split_once("```").unwrap();
        let words = lines.lines().flat_map(|line| line.split('#').next().unwrap().split_whitespace());
        let bytes = words.flat_map(|word| {
            let (hex, count) = word.split_once('*').unwrap_or((word, "1"));
            vec![u8::from_str_radix(hex, 16).unwrap(); count.parse().unwrap()]
        });
        (name.to_string(), bytes.collect())
    };
    text.split("<!-- raft example: ").skip(1).map(example).collect()
}

#[test]
fn the_examples_are_what_is_written_and_read() {
    let examples = examples();
    assert_eq!(examples.keys().collect::<Vec<_>>(), ["cut", "entry", "name", "replaced", "state"]);

    let header = EntryHeader {
        term: 3,
        leader: 7,
        serial: 0,
        commit_lag: 1,
        applied_lag: 2,
        stored_ms: 1_735_689_600_000,
    };
    let mut bytes = Vec::new();
    header.encode(&mut bytes);
    bytes.extend(b"x=1");
    assert_eq!(bytes, examples["entry"]);
    let entry = RawEntry::decode(1000, 2, &examples["entry"]).unwrap();
    assert_eq!((entry.header, entry.command, entry.progress()), (header, &b"x=1"[..], (999, 997)));

    let id = EntryId { index: 1000, term: 3, leader: 7 };
    let mut payload = Vec::new();
    EntryHeader { commit_lag: 0, applied_lag: 0, stored_ms: 0, ..header }.encode(&mut payload);
    payload.extend(b"x=2");
    assert_eq!(replaced::record_of(id, 2, &payload), examples["replaced"]);
    let record = Record { index: 0, type_code: 1, payload: examples["replaced"].clone() };
    assert_eq!(Replaced::split(1000, &record).unwrap(), (2, &payload[..]));
    assert_eq!(Name::of_replaced(&record).unwrap(), Name::Entry(id));
    let cut = Record { index: 0, type_code: 2, payload: examples["cut"].clone() };
    assert_eq!(
        (Name::of_replaced(&cut).unwrap(), Name::decode(&cut).unwrap()),
        (Name::Cut(1000), Name::Cut(1000))
    );
    assert_eq!(Name::Cut(1000).encode(), examples["cut"]);
    assert_eq!(Name::Entry(id).encode(), examples["name"]);
    let name = Record { index: 0, type_code: 1, payload: examples["name"].clone() };
    assert_eq!(Name::decode(&name).unwrap(), Name::Entry(id));

    let mut terms = Terms::default();
    terms.begin(EntryId { index: 1, term: 3, leader: 7 });
    let state = State {
        term: 9,
        vote: Some((7, false)),
        commit_next: 999,
        applied_next: 997,
        terms,
        uri: "n1".to_string(),
        ..State::new(1)
    };
    assert_eq!(state.encode(), examples["state"]);
    assert_eq!(State::decode(&examples["state"]), Ok(state));
}
