//! Whole segment files under bytes that nobody wrote: readers, `verify`, a writer and the repair come to an answer, and
//! no bytes are answered that were never appended. See `fuzz.rs`.
//!
//! An input is the number of a segment among those of the golden directories, whether its checksums were mended, and the
//! bytes that its file has from now on. Where checksums were mended, a forged record is a record.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use lsfs::io::SimDisk;
use lsfs::repair::{RepairMode, RepairPlan, plan};
use lsfs::{Reader, RecordStream, StreamOptions};

use crate::fuzz::{Fuzz, mend_block, put_crc};
use crate::golden::{DIR, Golden};
use crate::support::sim_env;

/// Their segments are small enough to be changed as a whole.
const RECORDS: [&str; 12] = [
    "records-empty",
    "records-large",
    "records-lz4",
    "records-open",
    "records-purged",
    "records-reopened",
    "records-reset",
    "records-segments",
    "records-torn",
    "records-truncated",
    "records-without-checksums",
    "records-zstd",
];
/// Here nothing tells a changed payload.
const WITHOUT_CHECKSUMS: &str = "records-without-checksums";

/// Of records that cannot be read one after the other, so many are read by their index.
const SINGLE_READS: u64 = 40;

/// A segment of a golden directory.
struct Place {
    golden: usize,
    file: String,
    bytes: Vec<u8>,
}

/// The golden directories with all that was ever answered from them.
struct Sound {
    directories: Vec<(&'static str, Golden)>,
    places: Vec<Place>,
    records: BTreeMap<u64, Vec<Vec<u8>>>,
}

fn sound() -> &'static Sound {
    static SOUND: OnceLock<Sound> = OnceLock::new();
    SOUND.get_or_init(|| {
        let directories = Vec::from(RECORDS.map(|name| (name, Golden::load("v1", name))));
        let mut records = BTreeMap::<u64, Vec<Vec<u8>>>::new();
        let mut places = Vec::new();
        for (number, (_, golden)) in directories.iter().enumerate() {
            let reader = Reader::open_in(sim_env(&golden.on_disk(), 1), DIR).unwrap();
            let mut cursor = reader.iter(..).unwrap();
            while let Some(record) = cursor.next_record().unwrap() {
                records.entry(record.index).or_default().push(record.payload.to_vec());
            }
            let place = |(file, bytes): (&str, &[u8])| Place {
                golden: number,
                file: file.to_string(),
                bytes: bytes.to_vec(),
            };
            places.extend(golden.segments().map(place));
        }
        Sound { directories, places, records }
    })
}

/// What is answered of a stream whose segment holds anything.
struct Answers<'a> {
    disk: &'a SimDisk,
    /// Nothing may be answered that is not among these.
    appended: Option<&'a BTreeMap<u64, Vec<Vec<u8>>>>,
}

impl Answers<'_> {
    fn check(&self, index: u64, payload: &[u8]) {
        let Some(appended) = self.appended else { return };
        let known = appended.get(&index).is_some_and(|all| all.iter().any(|known| known == payload));
        assert!(known, "record {index} with {} bytes was never appended", payload.len());
    }

    fn read(&self) {
        let Ok(reader) = Reader::open_in(sim_env(self.disk, 1), DIR) else { return };
        let Ok(bounds) = reader.bounds() else { return };
        let mut next = bounds.start;
        let mut cursor = reader.iter(..).unwrap();
        while let Ok(Some(record)) = cursor.next_record() {
            assert!(record.index >= next && record.index < bounds.end, "{} of {bounds:?}", record.index);
            self.check(record.index, &record.payload);
            next = record.index + 1;
        }
        let mut end = bounds.end;
        let mut cursor = reader.iter_reverse(..).unwrap();
        while let Ok(Some(record)) = cursor.next_record() {
            assert!(record.index < end, "{} behind {end}", record.index);
            self.check(record.index, &record.payload);
            end = record.index;
        }
        for index in bounds.clone().take(SINGLE_READS as usize) {
            if let Ok(record) = reader.read(index) {
                assert_eq!(record.index, index);
                self.check(index, &record.payload);
            }
        }
    }

    fn look(&self) {
        let _report = lsfs::verify(&sim_env(self.disk, 1), Path::new(DIR), |_| {});
        let _info = lsfs::inspect(&sim_env(self.disk, 1), Path::new(DIR));
    }

    /// What a writer that opens it appends is there.
    fn write(&self, seed: u64) -> lsfs::Result<()> {
        let stream = RecordStream::open_in(sim_env(self.disk, seed), DIR, StreamOptions::default())?;
        if let Ok(index) = stream.append(1, b"next") {
            assert_eq!(stream.read(index).unwrap().payload, b"next");
        }
        stream.close()
    }

    fn has_no_damage(&self, planned: &RepairPlan) {
        let mut report = lsfs::verify(&sim_env(self.disk, 1), Path::new(DIR), |_| {}).unwrap();
        if self.appended.is_none() {
            // A forged block may hold more than its records; what costs no record has no name.
            report.damage.retain(|damage| damage.records.as_ref().is_none_or(|records| !records.is_empty()));
        }
        assert!(report.damage.is_empty(), "{:?}\n{planned}", report.damage);
    }

    /// A repair leaves nothing to repair, and what can be written.
    fn repair(&self) {
        let Ok(planned) = plan(&sim_env(self.disk, 3), DIR, RepairMode::Keep) else { return };
        if planned.is_beyond_repair() {
            return;
        }
        if let Err(error) = planned.apply() {
            panic!("{error}\n{planned}");
        }
        // Between blocks forged with two epochs, the first repair believes the one before the manifest's end.
        let rounds = if self.appended.is_some() { 1 } else { 2 };
        for round in 1..=rounds {
            let again = plan(&sim_env(self.disk, 3 + round), DIR, RepairMode::Keep);
            let again = again.unwrap_or_else(|error| panic!("{error}\n{planned}"));
            if again.steps.is_empty() {
                break;
            }
            assert!(round < rounds, "repaired is repaired:\n{planned}\n{again}");
            again.apply().unwrap_or_else(|error| panic!("{error}\n{again}"));
        }
        self.read();
        self.has_no_damage(&planned);
        self.write(5).unwrap_or_else(|error| panic!("{error}\n{planned}"));
        // A forged epoch that was unknown is one like any other once a writer has come to it.
        if self.appended.is_some() {
            self.has_no_damage(&planned);
        }
    }
}

/// Puts the bytes in a segment's place and asks for everything.
fn check(place: &Place, was_mended: bool, bytes: &[u8]) {
    let sound = sound();
    let (name, golden) = &sound.directories[place.golden];
    let disk = || {
        let disk = golden.on_disk();
        disk.put(&Path::new(DIR).join(&place.file), bytes).unwrap();
        disk
    };
    let appended = (!was_mended && *name != WITHOUT_CHECKSUMS).then_some(&sound.records);
    let damaged = disk();
    let answers = Answers { disk: &damaged, appended };
    answers.look();
    answers.read();
    let repaired = disk();
    Answers { disk: &repaired, appended }.repair();
    let _refused = answers.write(2);
}

fn mend(file: &mut [u8]) {
    put_crc(file, 12, 16..80);
    let block_bytes = file.get(20..24).map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().unwrap()));
    if block_bytes.is_power_of_two() && (512..=32_768).contains(&block_bytes) {
        file.chunks_mut(block_bytes as usize).skip(1).for_each(mend_block);
    }
}

#[test]
fn fuzz_segments() {
    let target = |input: &[u8]| {
        let &[place, was_mended, ref bytes @ ..] = input else { return };
        let places = &sound().places;
        check(&places[usize::from(place) % places.len()], was_mended != 0, bytes);
    };
    let mend = |input: &mut [u8]| {
        let [_, was_mended, file @ ..] = input else { return };
        *was_mended = 1;
        mend(file);
    };
    let seed = |(number, place): (usize, &Place)| [&[number as u8, 0], &place.bytes[..]].concat();
    let seeds = sound().places.iter().enumerate().map(seed).collect();
    Fuzz { seeds, mend, target }.run("segments");
}

/// A directory and a segment of it, where bytes are changed into which, and how long it is then.
type Finding = (&'static str, &'static str, Vec<(usize, Vec<u8>)>, usize);

/// What this target once found.
#[test]
fn what_was_found_once_is_found_no_more() {
    let u64_at = |position: usize, value: u64| (position, value.to_le_bytes().to_vec());
    let long = usize::MAX;
    // Fields of block headers as docs/format.md numbers them; blocks of 512 bytes.
    let (first_index, durable_index, durable_position) = (24, 32, 40);
    let findings: [Finding; 8] = [
        // A watermark far behind the end: opening hung, and the repair saw nothing to repair.
        ("records-open", "00000000000000000000", vec![u64_at(512 + durable_position, u64::MAX - 1)], long),
        ("records-segments", "00000000000000000019", vec![u64_at(3 * 512 + durable_position, 1 << 33)], 2793),
        // One that calls more records durable than there are.
        (
            "records-segments",
            "00000000000000000019",
            vec![u64_at(3 * 512 + durable_index, 8215), (3 * 512 + 300, vec![0xFF; 8])],
            2160,
        ),
        // Two that contradict each other: opening and the repair believed different ones.
        (
            "records-zstd",
            "00000000000000000000",
            vec![u64_at(512 + durable_index, 4), u64_at(1024 + durable_position, 512)],
            long,
        ),
        // Records that begin before what is durable: the writer counted below zero.
        (
            "records-large",
            "00000000000000000002",
            vec![u64_at(512 + first_index, 0), u64_at(512 + durable_index, 2)],
            long,
        ),
        // An epoch that no manifest knows: each repair found more to repair.
        ("records-truncated", "00000000000000000000", vec![(512 + 20, vec![1, 0, 16, 0])], long),
        // A header of another version: called damaged by the repair, and refused by all others.
        ("records-segments", "00000000000000000008", vec![(8, vec![1, 0, 0, 0x4C])], 232),
        // A sealed segment cut short, with records that are whole: the repair saw nothing to repair.
        (
            "records-large",
            "00000000000000000000",
            vec![
                (512 + 48, vec![91, 0]),
                (512 + 50, vec![0x5A, 1, 0, 0, 0, 0, 0, 0, 18, 0, 0xD0]),
                (512 + 69, vec![5, 0, 0, 0]),
                (512 + 78, vec![0, 0, 0, 0, 0, 0, 50, 0, 0xA5]),
            ],
            1722,
        ),
    ];
    for (directory, base, changes, len) in findings {
        let is_it =
            |place: &&Place| sound().directories[place.golden].0 == directory && place.file.starts_with(base);
        let place = sound().places.iter().find(is_it).unwrap();
        let mut bytes = place.bytes.clone();
        for (at, change) in changes {
            bytes[at..at + change.len()].copy_from_slice(&change);
        }
        bytes.truncate(len);
        mend(&mut bytes);
        check(place, true, &bytes);
        check(place, true, &place.bytes);
    }
}
