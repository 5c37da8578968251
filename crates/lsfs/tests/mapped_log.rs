//! The mapped store on directories as other programs write them, on damaged ones, on a disk that fails.
//!
//! The directories are written here byte by byte, not by the code under test.

mod support;

use std::path::Path;

use lsfs::io::{CrashStyle, DiskFault, FaultKind, OpKind, SimDisk};
use lsfs::{Env, Error, Log, LogOptions, StoreKind};
use support::{Choices, budget, sim_env};

const DIR: &str = "/log";

/// A segment as another program writes it.
#[derive(Clone, Default)]
struct Foreign {
    log: Vec<u8>,
    index: Vec<u8>,
    next: u64,
}

impl Foreign {
    fn at(base: u64) -> Foreign {
        Foreign { next: base, ..Foreign::default() }
    }

    fn frame(mut self, payload: &[u8]) -> Foreign {
        self.index.extend(self.next.to_le_bytes());
        self.index.extend((self.log.len() as u64).to_le_bytes());
        self.log.extend((payload.len() as u64).to_le_bytes());
        self.log.extend(payload);
        self.next += 1;
        self
    }

    fn frames(self, payloads: &[Vec<u8>]) -> Foreign {
        payloads.iter().fold(self, |foreign, payload| foreign.frame(payload))
    }

    fn put(&self, disk: &SimDisk, base: u64) {
        disk.put(&Path::new(DIR).join(format!("{base:020}.log")), &self.log).unwrap();
        disk.put(&Path::new(DIR).join(format!("{base:020}.idx")), &self.index).unwrap();
    }
}

fn payloads(count: u64) -> Vec<Vec<u8>> {
    (0..count).map(|n| (0..20 + n * 13 % 90).map(|at| (n * 7 + at) as u8 | 1).collect()).collect()
}

fn options() -> LogOptions {
    LogOptions { store: StoreKind::Mmap, segment_bytes: 32 << 10, ..LogOptions::default() }
}

fn open(disk: &SimDisk) -> lsfs::Result<Log> {
    Log::open_in(sim_env(disk, disk.op_count()), Path::new(DIR), options())
}

fn look(disk: &SimDisk) -> lsfs::Result<Log> {
    Log::open_read_only_in(sim_env(disk, 0), Path::new(DIR), options())
}

fn all(log: &Log) -> lsfs::Result<Vec<Vec<u8>>> {
    let mut records = log.iter(..)?;
    let mut found = Vec::new();
    while let Some(record) = records.next_record()? {
        assert_eq!(record.index, log.lowest_offset()? + found.len() as u64);
        found.push(record.payload.into_owned());
    }
    for (offset, payload) in (log.lowest_offset()?..).zip(&found) {
        assert_eq!(&log.read(offset)?.payload, payload);
    }
    Ok(found)
}

/// Reads it without changing it, then opens it for writing, appends, and reads again.
fn expect(disk: &SimDisk, expected: &[Vec<u8>], context: &str) {
    let before = disk.fingerprint();
    assert_eq!(all(&look(disk).unwrap()).unwrap(), expected, "{context}: read-only");
    assert_eq!(disk.fingerprint(), before, "{context}: looking changed something");
    let log = open(disk).unwrap();
    assert_eq!(all(&log).unwrap(), expected, "{context}: for writing");
    log.append(0, b"one more").unwrap();
    log.close().unwrap();
    let expected = [expected, &[b"one more".to_vec()]].concat();
    assert_eq!(all(&look(disk).unwrap()).unwrap(), expected, "{context}: after an append");
    let report = lsfs::log::verify_mmap(&sim_env(disk, 0), Path::new(DIR), |_| {}).unwrap();
    assert_eq!((report.records, report.damage.len()), (expected.len() as u64, 0), "{context}");
    // The index says what the frames are again, in a form that others understand.
    let names: Vec<_> = disk.paths().into_iter().filter(|path| path.ends_with("lock")).collect();
    assert_eq!(names.len(), 0, "{context}: no file of ours is left");
}

#[test]
fn directories_as_other_programs_write_them() {
    let records = payloads(60);
    let plain = Foreign::at(0).frames(&records);
    let with = |change: &dyn Fn(&mut Foreign)| {
        let mut foreign = plain.clone();
        change(&mut foreign);
        foreign
    };
    let cut = plain.log.len() - 5;
    let torn_by_length = |foreign: &mut Foreign| {
        foreign.log.extend(1000u64.to_le_bytes());
        foreign.log.extend([7; 100]);
    };
    let table: Vec<(&str, Foreign, usize)> = vec![
        ("exactly long", plain.clone(), 60),
        ("zeros to the end", with(&|f| f.log.resize(200_000, 0)), 60),
        ("zeros of an odd length", with(&|f| f.log.resize(f.log.len() + 3, 0)), 60),
        ("index with zeros", with(&|f| f.index.resize(1 << 16, 0)), 60),
        ("both with zeros", with(&|f| (f.log.resize(1 << 17, 0), f.index.resize(4096, 0)).0), 60),
        ("last frame cut", with(&|f| f.log.truncate(cut)), 59),
        ("last frame longer than the file", with(&torn_by_length), 60),
        ("half a length", with(&|f| f.log.extend([9, 0, 0])), 60),
        ("absurd length", with(&|f| f.log.extend([0xff; 40])), 60),
        ("index behind", with(&|f| f.index.truncate(16 * 20)), 60),
        ("index empty", with(&|f| f.index.clear()), 60),
        ("index ahead", with(&|f| f.log.truncate(cut - 200)), 0),
        ("index with half an entry", with(&|f| f.index.truncate(16 * 30 + 7)), 60),
        ("index wrong", with(&|f| f.index.iter_mut().for_each(|byte| *byte ^= 0x15)), 60),
        ("index backward", with(&|f| f.index.reverse()), 60),
        ("nothing", Foreign::default(), 0),
        ("only zeros", Foreign { log: vec![0; 8192], index: vec![0; 8192], next: 0 }, 0),
    ];
    for (name, foreign, count) in table {
        let disk = SimDisk::new(1);
        foreign.put(&disk, 0);
        // How many frames are whole is counted here for the one case where it is not said.
        let count = if name == "index ahead" { whole_frames(&foreign.log) } else { count };
        expect(&disk, &records[..count], name);
    }
}

fn whole_frames(log: &[u8]) -> usize {
    let (mut at, mut count) = (0, 0);
    while let Some(header) = log.get(at..at + 8) {
        at += 8 + u64::from_le_bytes(header.try_into().unwrap()) as usize;
        if at > log.len() {
            break;
        }
        count += 1;
    }
    count
}

#[test]
fn several_segments_any_base_and_no_index_at_all() {
    let records = payloads(90);
    let disk = SimDisk::new(1);
    Foreign::at(700).frames(&records[..40]).put(&disk, 700);
    Foreign::at(740).frames(&records[40..80]).put(&disk, 740);
    Foreign::at(780).frames(&records[80..]).put(&disk, 780);
    expect(&disk, &records, "three segments");
    let disk = SimDisk::new(1);
    for (base, range) in [(0, 0..40), (40, 40..80), (80, 80..90)] {
        let foreign = Foreign::at(base).frames(&records[range]);
        disk.put(&Path::new(DIR).join(format!("{base:020}.log")), &foreign.log).unwrap();
    }
    expect(&disk, &records, "no index");
}

#[test]
fn every_length_of_a_small_directory() {
    let records = payloads(12);
    let foreign = Foreign::at(0).frames(&records);
    for len in 0..=foreign.log.len() {
        let disk = SimDisk::new(1);
        Foreign { log: foreign.log[..len].to_vec(), ..foreign.clone() }.put(&disk, 0);
        expect(&disk, &records[..whole_frames(&foreign.log[..len])], &format!("log of {len} bytes"));
    }
    for len in 0..=foreign.index.len() {
        let disk = SimDisk::new(1);
        Foreign { index: foreign.index[..len].to_vec(), ..foreign.clone() }.put(&disk, 0);
        expect(&disk, &records, &format!("index of {len} bytes"));
    }
}

#[test]
fn no_bit_of_an_index_changes_an_answer() {
    let records = payloads(30);
    let disk = SimDisk::new(1);
    Foreign::at(0).frames(&records[..20]).put(&disk, 0);
    Foreign::at(20).frames(&records[20..]).put(&disk, 20);
    for (name, entries) in [(format!("{DIR}/{:020}.idx", 0), 20), (format!("{DIR}/{:020}.idx", 20), 10)] {
        for bit in 0..entries * 128 {
            disk.flip_bit(Path::new(&name), bit).unwrap();
            assert_eq!(all(&look(&disk).unwrap()).unwrap(), records, "{name} bit {bit}");
            // Backward, so that no look-up profits from the one before.
            let log = look(&disk).unwrap();
            for offset in (0..30).rev() {
                assert_eq!(log.read(offset).unwrap().payload, records[offset as usize], "{name} bit {bit}");
            }
            disk.flip_bit(Path::new(&name), bit).unwrap();
        }
    }
}

#[test]
fn an_index_that_leaves_a_record_out_or_points_into_payloads_is_not_believed() {
    // The payloads are frames themselves.
    let inner = |n: u64| [frame(&[n as u8 | 1; 9]), frame(&[n as u8 | 2; 15]), frame(&[3; 4])].concat();
    let records: Vec<Vec<u8>> = (0..20).map(inner).collect();
    let foreign = Foreign::at(0).frames(&records);
    let mut left_out = foreign.clone();
    // Entry 5 is gone, the others close up under dense offsets.
    for number in 5..19usize {
        let position: [u8; 8] = left_out.index[(number + 1) * 16 + 8..(number + 2) * 16].try_into().unwrap();
        left_out.index[number * 16 + 8..(number + 1) * 16].copy_from_slice(&position);
    }
    let mut into = foreign.clone();
    for number in 3..8usize {
        let at = number * 16 + 8;
        let position = u64::from_le_bytes(into.index[at..at + 8].try_into().unwrap());
        into.index[at..at + 8].copy_from_slice(&(position + 8).to_le_bytes());
    }
    for (name, foreign) in [("left out", left_out), ("into payloads", into)] {
        let disk = SimDisk::new(1);
        foreign.put(&disk, 0);
        Foreign::at(20).frame(b"next segment").put(&disk, 20);
        let expected = [&records[..], &[b"next segment".to_vec()]].concat();
        for offset in (0..20).rev() {
            let found = look(&disk).unwrap().read(offset).unwrap().payload;
            assert_eq!(found, expected[offset as usize], "{name}: {offset}");
        }
        expect(&disk, &expected, name);
    }
}

fn frame(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u64).to_le_bytes()[..], payload].concat()
}

#[test]
fn what_does_not_belong_is_an_error_and_not_silence() {
    // Over the record limit, although it is all there.
    let disk = SimDisk::new(1);
    Foreign::at(0).frame(b"small").frame(&[5; 5000]).frame(b"behind").put(&disk, 0);
    let limited = LogOptions { record_limit_bytes: 1000, ..options() };
    let before = disk.fingerprint();
    let error = Log::open_in(sim_env(&disk, 1), Path::new(DIR), limited.clone()).unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains("over the record limit of 1000"), "{error}");
    let log = Log::open_read_only_in(sim_env(&disk, 1), Path::new(DIR), limited).unwrap();
    assert_eq!(log.read(0).unwrap().payload, b"small");
    let mut records = log.iter(..).unwrap();
    assert!(records.next_record().unwrap().is_some());
    assert!(records.next_record().unwrap_err().is_corruption());
    assert_eq!(disk.fingerprint(), before, "nothing was cut");
    assert_eq!(all(&open(&disk).unwrap()).unwrap().len(), 3);

    // Frames missing in a sealed segment.
    let disk = SimDisk::new(1);
    Foreign::at(0).frames(&payloads(5)).put(&disk, 0);
    Foreign::at(9).frame(b"nine").put(&disk, 9);
    let log = look(&disk).unwrap();
    assert_eq!(log.read(4).unwrap().payload, payloads(5)[4]);
    assert_eq!(log.read(9).unwrap().payload, b"nine");
    let error = log.read(6).unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains("zeros where a frame should be"), "{error}");
    let report = lsfs::log::verify_mmap(&sim_env(&disk, 0), Path::new(DIR), |_| {}).unwrap();
    assert_eq!(report.damage.len(), 1);

    // What a frame cannot hold.
    let log = open(&SimDisk::new(1)).unwrap();
    assert!(log.append(0, b"").unwrap_err().to_string().contains("an empty frame looks like free space"));
    assert!(log.append(7, b"x").unwrap_err().to_string().contains("no place for a type code"));
    let huge = vec![1; (256 << 20) + 1];
    assert!(matches!(log.append(0, &huge), Err(Error::TooLarge { .. })));
    assert_eq!(log.next_offset().unwrap(), 0);
}

#[test]
fn a_full_disk_is_an_error_and_writing_goes_on_when_there_is_room() {
    let disk = SimDisk::with_capacity(1, 200 << 10);
    let log =
        Log::open_in(sim_env(&disk, 1), Path::new(DIR), LogOptions { segment_bytes: 1 << 20, ..options() })
            .unwrap();
    let mut expected = Vec::new();
    let error = loop {
        let payload = vec![expected.len() as u8 | 1; 3000];
        match log.append(0, &payload) {
            Ok(_) => expected.push(payload),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert!(expected.len() > 30);
    assert_eq!(all(&log).unwrap(), expected);
    disk.set_capacity(1 << 20);
    log.append(0, b"room again").unwrap();
    expected.push(b"room again".to_vec());
    assert_eq!(all(&log).unwrap(), expected);
}

#[test]
fn a_failed_sync_stops_the_log_and_is_never_swallowed() {
    for kind in [FaultKind::Eio, FaultKind::SyncError, FaultKind::PartialSyncError] {
        let disk = SimDisk::new(1);
        let log = open(&disk).unwrap();
        log.append(0, b"safe").unwrap();
        disk.inject(DiskFault::nth(0, ".log", kind).only(OpKind::Sync));
        let error = log.append(0, b"in doubt").unwrap_err();
        assert!(
            matches!(&error, Error::Indeterminate { records, .. } if *records == (1..2)),
            "{kind:?}: {error}"
        );
        for _ in 0..2 {
            assert!(matches!(log.append(0, b"later"), Err(Error::Poisoned { .. })), "{kind:?}");
            assert!(matches!(log.flush(), Err(Error::Poisoned { .. })), "{kind:?}");
        }
        assert_eq!(log.read(0).unwrap().payload, b"safe");
        drop(log);
        let log = open(&disk).unwrap();
        assert_eq!(log.read(0).unwrap().payload, b"safe");
        let next = log.append(0, b"after").unwrap();
        drop(log);
        let image = disk.power_fail(CrashStyle::NothingUnsynced, 1);
        assert_eq!(look(&image).unwrap().read(next).unwrap().payload, b"after", "{kind:?}");
    }
}

/// After a power failure everything flushed is there, at every operation of a run and in every style; and so it is
/// after a failure during the recovery.
#[test]
fn flushed_records_survive_power_failures() {
    let seeds = budget("LSFS_MAPPED_CRASH_SEEDS", 6);
    let mut images_made = 0;
    for seed in 0..seeds {
        let disk = SimDisk::new(seed);
        let mut choices = Choices::new(seed);
        disk.start_trace();
        let log = open(&disk).unwrap();
        let mut records: Vec<Vec<u8>> = Vec::new();
        let mut lowest = 0;
        // Length of the trace, and what was durable and the lowest offset asked for by then.
        let mut promises = vec![(0, 0, 0)];
        for n in 0..40u64 {
            let payload = vec![(n as u8) | 1; 1 + choices.below(2500) as usize];
            records.push(payload.clone());
            match choices.below(4) {
                0 => {
                    log.append(0, &payload).unwrap();
                }
                _ => {
                    log.append_buffered(0, &payload).unwrap();
                }
            }
            if choices.below(6) == 0 {
                log.flush().unwrap();
            }
            if choices.below(10) == 0 {
                log.rotate().unwrap();
            }
            if choices.below(12) == 0 {
                let offset = choices.below(log.next_offset().unwrap() + 1);
                // From its beginning on the removal may be seen.
                lowest = lowest.max(offset);
                promises.push((disk.trace_len(), promises.last().unwrap().1, lowest));
                log.truncate_before(offset).unwrap();
            }
            if choices.below(5) == 0 {
                log.flush().unwrap();
                promises.push((disk.trace_len(), log.next_offset().unwrap(), lowest));
            }
        }
        log.flush().unwrap();
        promises.push((disk.trace_len(), log.next_offset().unwrap(), lowest));
        drop(log);
        let trace = disk.stop_trace();
        let mut images = trace.images();
        loop {
            let point = images.crash_point();
            let (durable, lowest) = promises
                .iter()
                .filter(|(len, ..)| *len <= point)
                .fold((0, 0), |(durable, lowest), promise| (durable.max(promise.1), lowest.max(promise.2)));
            let styles: &[CrashStyle] =
                if images.unsynced() == 0 { &[CrashStyle::NothingUnsynced] } else { &CrashStyle::ALL };
            for style in styles {
                images_made += 1;
                let image = images.image(*style, seed);
                let context = format!("seed {seed} {style:?} {}", trace.describe(point));
                if image.paths().iter().all(|path| path.extension().is_none()) && durable == 0 {
                    continue;
                }
                image.start_trace();
                let log = open(&image).unwrap_or_else(|error| panic!("{context}: {error}"));
                check_survivors(&log, &records, durable, lowest, &context);
                drop(log);
                if point.is_multiple_of(16) {
                    let recovery = image.stop_trace();
                    let inner = recovery.image(recovery.len() / 2, CrashStyle::TornSectors, seed);
                    let log = open(&inner).unwrap_or_else(|error| panic!("{context}, again: {error}"));
                    check_survivors(&log, &records, durable, lowest, &context);
                }
            }
            if !images.advance() {
                break;
            }
        }
    }
    assert!(images_made > 1000, "{images_made} images");
}

fn check_survivors(log: &Log, records: &[Vec<u8>], durable: u64, lowest: u64, context: &str) {
    let held = log.lowest_offset().unwrap()..log.next_offset().unwrap();
    assert!(
        held.end >= durable && held.start <= lowest,
        "{context}: {held:?}, {durable} durable, {lowest} lowest"
    );
    for offset in held.start..durable {
        assert_eq!(log.read(offset).unwrap().payload, records[offset as usize], "{context}: {offset}");
    }
    let offset = log.append(0, b"behind").unwrap();
    assert_eq!(log.read(offset).unwrap().payload, b"behind", "{context}");
    assert_eq!(log.next_offset().unwrap(), offset + 1, "{context}: nothing comes back");
}

/// A rewrite and a reset are whole or not at all, whenever power fails.
#[test]
fn rewrites_and_resets_are_atomic() {
    for store in [StoreKind::Block, StoreKind::Mmap] {
        for change in ["replace", "reset"] {
            let disk = SimDisk::new(3);
            let options = LogOptions { store, segment_entries: 10, ..options() };
            let open =
                |disk: &SimDisk, seed| Log::open_in(sim_env(disk, seed), Path::new(DIR), options.clone());
            let open_read_only =
                |disk: &SimDisk, seed| Log::open_read_only_in(sim_env(disk, seed), DIR, options.clone());
            let log = open(&disk, 1).unwrap();
            let records = payloads(45);
            for payload in &records {
                log.append(0, payload).unwrap();
            }
            let contents = |log: &Log| {
                let mut found = Vec::new();
                let mut records = log.iter(..).unwrap();
                while let Some(record) = records.next_record().unwrap() {
                    found.push((record.index, record.payload.into_owned()));
                }
                (log.next_offset().unwrap(), found)
            };
            let before = contents(&log);
            disk.start_trace();
            match change {
                "replace" => {
                    let kept = (10..40).filter(|offset| offset % 3 == 0);
                    let kept = kept.map(|offset| log.read(offset)).collect::<Vec<_>>();
                    log.replace(10..40, kept).unwrap();
                }
                _ => log.reset(20).unwrap(),
            }
            let trace = disk.stop_trace();
            let after = contents(&log);
            assert_ne!(before, after);
            assert_eq!(after.1.len(), if change == "reset" { 0 } else { 25 });
            let (mut images, mut seen) = (trace.images(), [0, 0]);
            loop {
                for (style, seed) in CrashStyle::ALL.into_iter().zip(0..) {
                    let image = images.image(style, seed);
                    let context =
                        format!("{store:?} {change} {style:?} {}", trace.describe(images.crash_point()));
                    let looked =
                        open_read_only(&image, 90).unwrap_or_else(|error| panic!("{context}: {error}"));
                    let looked = contents(&looked);
                    let found =
                        contents(&open(&image, 100).unwrap_or_else(|error| panic!("{context}: {error}")));
                    assert!(found == before || found == after, "{context}: {} records", found.1.len());
                    assert!(looked == found, "{context}: a reader sees something else before it is opened");
                    seen[usize::from(found == after)] += 1;
                    let is_done = images.crash_point() == trace.len();
                    assert!(!is_done || found == after, "{context}: lost after its return");
                }
                if !images.advance() {
                    break;
                }
            }
            assert!(seen[0] > 0 && seen[1] > 0, "{store:?} {change}: {seen:?}");
        }
    }
}

#[test]
fn a_log_is_read_beside_its_writer_in_another_process_on_real_files() {
    for store in [StoreKind::Block, StoreKind::Mmap] {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions { store, segment_bytes: 64 << 10, ..LogOptions::default() };
        let log = Log::open(dir.path().join("log"), options).unwrap();
        log.append(0, &0u64.to_le_bytes().repeat(20)).unwrap();
        let reader = Log::open_read_only(dir.path().join("log")).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..4000u64 {
                    log.append_buffered(0, &n.to_le_bytes().repeat(20)).unwrap();
                }
                log.flush().unwrap();
            });
            let mut records = reader.iter(0..4000).unwrap();
            let mut next = 0u64;
            while next < 4000 {
                match records.next_record().unwrap() {
                    Some(record) => {
                        assert_eq!(
                            (record.index, &record.payload[..]),
                            (next, &next.to_le_bytes().repeat(20)[..])
                        );
                        next += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
        assert!(log.segment_count().unwrap() > 5);
        assert!(matches!(
            Log::open(dir.path().join("log"), LogOptions::default()),
            Err(Error::Locked { .. })
        ));
        log.close().unwrap();
        assert_eq!(lsfs::log::store_in(&Env::default(), &dir.path().join("log")).unwrap(), Some(store));
    }
}
