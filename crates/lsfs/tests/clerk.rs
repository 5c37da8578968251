//! Clerks, their indexes, and readers that use them: whatever an index says, and whenever a clerk dies, reads are right.
//!
//! The test command makes a few thousand crash images; the long run is
//! `LSFS_CLERK_SEEDS=2000 LSFS_CLERK_CASES=5000 cargo test --release -p lsfs --test clerk`.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lsfs::codec::{Checksum, Compression, INDEX_ENTRY_BYTES, IndexEntry, SegmentStatistics, TypeCount};
use lsfs::io::{CrashStyle, OsDisk, OsRuntime, SimDisk, SimRuntime};
use lsfs::repair::{RepairMode, plan};
use lsfs::{Clerk, Env, Error, Reader, RecordStream, StreamOptions, verify_index};
use proptest::collection::vec;
use proptest::prelude::*;
use support::{Choices, budget, sim_env};

const DIR: &str = "/stream";

fn dir() -> &'static Path {
    Path::new(DIR)
}

/// Small segments, so that few records fill several.
fn options(block_bytes: usize) -> StreamOptions {
    StreamOptions {
        block_bytes,
        segment_bytes: block_bytes as u64 * 16,
        in_flight_bytes: block_bytes * 4,
        cache_bytes: block_bytes * 4,
        ..StreamOptions::default()
    }
}

fn payload(index: u64, generation: u64) -> Vec<u8> {
    let len = (index * 37 + generation * 11) % 400 + if index % 31 == 7 { 3000 } else { 0 };
    let mut bytes: Vec<u8> = (0..len).map(|at| (index * 7 + at / 3 + generation) as u8).collect();
    bytes.extend(index.to_le_bytes());
    bytes.extend(generation.to_le_bytes());
    bytes
}

fn append(stream: &RecordStream, count: u64, generation: u64) {
    for _ in 0..count {
        let index = stream.next_index();
        stream.append_buffered(index % 3, &payload(index, generation)).unwrap();
    }
    stream.sync().unwrap();
}

/// Files of `dir` with this extension, sorted.
fn files(disk: &SimDisk, extension: &str) -> Vec<PathBuf> {
    let mut paths = disk.paths();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    paths
}

/// A sim environment of another process on the same disk.
fn other_process(disk: &SimDisk, seed: u64) -> Env {
    sim_env(&disk.new_process(), seed)
}

#[track_caller]
fn expect_clean_index(env: &Env, dir: &Path) -> lsfs::IndexReport {
    let report = verify_index(env, dir, |_| {}).unwrap();
    assert_eq!(report.faults, [], "{report:?}");
    report
}

// ---- what a clerk makes ----

#[test]
fn a_clerk_indexes_and_counts_every_record() {
    for (block_bytes, checksum, compression) in [
        (512, Checksum::Crc32c, Compression::None),
        (512, Checksum::None, Compression::None),
        (4096, Checksum::Crc32c, Compression::Lz4),
    ] {
        let disk = SimDisk::new(1);
        let env = sim_env(&disk, 1);
        let options = StreamOptions { checksum, compression, ..options(block_bytes) };
        let stream = RecordStream::open_in(env.clone(), DIR, options).unwrap();
        append(&stream, 700, 0);
        let done = lsfs::run_once(&env, dir()).unwrap();
        assert_eq!((done.held.clone(), done.indexed_to, done.records), (0..700, 700, 700), "{done:?}");
        let report = expect_clean_index(&env, dir());
        assert_eq!((report.entries, report.unindexed_records), (700, 0));
        assert_eq!(report.indexed_segments, stream.stats().segments);
        // The statistics say what is in the segments.
        let counted: Vec<SegmentStatistics> = files(&disk, "stats")
            .iter()
            .map(|path| SegmentStatistics::decode(&disk.contents(path).unwrap()).unwrap())
            .collect();
        assert_eq!(counted.iter().map(|counted| counted.records).sum::<u64>(), 700);
        let bytes: u64 = (0..700).map(|index| payload(index, 0).len() as u64).sum();
        assert_eq!(counted.iter().map(|counted| counted.payload_bytes).sum::<u64>(), bytes);
        for type_code in 0..3 {
            let of_type = |count: &&TypeCount| count.type_code == type_code;
            let counts = counted.iter().flat_map(|counted| counted.types.iter().find(of_type));
            let expected = (0..700).filter(|index| index % 3 == type_code).count() as u64;
            assert_eq!(counts.map(|count| count.records).sum::<u64>(), expected);
        }
        for pair in counted.windows(2) {
            assert_eq!(pair[0].next_index, pair[1].first_index);
            assert!(pair[0].is_sealed);
        }
        // A sealed segment's index has its entries and nothing else.
        for (path, counted) in files(&disk, "idx").iter().zip(&counted).take(counted.len() - 1) {
            let bytes = disk.contents(path).unwrap();
            assert_eq!(bytes.len() as u64, counted.records * INDEX_ENTRY_BYTES as u64);
            let first = IndexEntry::decode(bytes.first_chunk().unwrap());
            assert_eq!(first, IndexEntry { offset: counted.first_index, position: block_bytes as u64 + 50 });
        }
        // A second look finds nothing to do; more records are added to what is there.
        let again = lsfs::run_once(&env, dir()).unwrap();
        assert_eq!((again.records, again.begun_segments), (0, 0));
        append(&stream, 50, 0);
        let more = lsfs::run_once(&env, dir()).unwrap();
        assert_eq!((more.records, more.indexed_to), (50, 750), "{more:?}");
        expect_clean_index(&env, dir());
        assert_eq!(lsfs::rebuild(&env, dir()).unwrap().records, 750);
        expect_clean_index(&env, dir());
    }
}

#[test]
fn a_clerk_follows_a_writer_in_the_background() {
    let disk = SimDisk::new(2);
    let stream = RecordStream::open_in(sim_env(&disk, 2), DIR, options(512)).unwrap();
    append(&stream, 10, 0);
    let runtime = SimRuntime::new(3);
    let env = Env { disk: Arc::new(disk.new_process()), runtime: Arc::new(runtime.clone()) };
    let clerk = Clerk::start_in(env.clone(), DIR).unwrap();
    for round in 0..40 {
        append(&stream, 25, 0);
        if round % 3 == 0 {
            runtime.advance(Duration::from_secs(2));
            runtime.settle();
            assert_eq!(clerk.report().indexed_to, stream.durable_index(), "round {round}");
            expect_clean_index(&other_process(&disk, 4), dir());
        }
        if round == 20 {
            stream.purge_before(400).unwrap();
        }
    }
    append(&stream, 5, 0);
    clerk.kick();
    runtime.settle();
    let report = clerk.stop().unwrap();
    assert_eq!((report.indexed_to, report.damage.len()), (1015, 0));
    let checked = expect_clean_index(&other_process(&disk, 5), dir());
    assert_eq!(checked.unindexed_records, 0);
    assert_eq!(files(&disk, "idx").len(), files(&disk, "seg").len(), "{:?}", disk.paths());
}

#[test]
fn one_clerk_is_enough() {
    let disk = SimDisk::new(2);
    let stream = RecordStream::open_in(sim_env(&disk, 2), DIR, options(512)).unwrap();
    append(&stream, 10, 0);
    let clerk = Clerk::start_in(other_process(&disk, 1), DIR).unwrap();
    assert!(matches!(lsfs::run_once(&other_process(&disk, 2), dir()), Err(Error::ClerkThere { .. })));
    assert!(matches!(lsfs::rebuild(&sim_env(&disk, 2), dir()), Err(Error::ClerkThere { .. })));
    drop(clerk);
    lsfs::run_once(&other_process(&disk, 3), dir()).unwrap();
    assert!(matches!(Clerk::start_in(sim_env(&disk, 2), "/none"), Err(Error::NotFound { .. })));
}

#[test]
fn a_damaged_segment_is_indexed_up_to_the_damage_and_reported() {
    let disk = SimDisk::new(2);
    let env = sim_env(&disk, 2);
    let stream = RecordStream::open_in(env.clone(), DIR, options(512)).unwrap();
    append(&stream, 300, 0);
    stream.close().unwrap();
    let damaged = files(&disk, "seg")[1].clone();
    disk.flip_bit(&damaged, (5 * 512 + 300) * 8).unwrap();
    let report = lsfs::run_once(&env, dir()).unwrap();
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert!(report.indexed_to < 300 && report.records > 100, "{report:?}");
    let checked = expect_clean_index(&env, dir());
    assert!(checked.unindexed_records > 0, "{checked:?}");
    // The records around the damage are as readable as without an index.
    let reader = Reader::open_in(env.clone(), DIR).unwrap();
    let readable = (0..300).filter(|index| match reader.read(*index) {
        Ok(record) => record.payload == payload(*index, 0),
        Err(error) => !error.is_corruption(),
    });
    assert!(readable.count() >= 298);
}

// ---- what an index may be ----

/// A stream of three segments with indexes, closed; and what it holds.
fn indexed_stream(checksum: Checksum) -> SimDisk {
    let disk = SimDisk::new(7);
    let stream =
        RecordStream::open_in(sim_env(&disk, 7), DIR, StreamOptions { checksum, ..options(512) }).unwrap();
    append(&stream, 120, 0);
    stream.close().unwrap();
    lsfs::run_once(&sim_env(&disk, 8), dir()).unwrap();
    disk
}

fn expect_all_readable(disk: &SimDisk, seed: u64) {
    let reader = Reader::open_in(other_process(disk, seed), DIR).unwrap();
    for index in (0..120).chain([119, 0, 60]) {
        assert_eq!(reader.read(index).unwrap().payload, payload(index, 0), "record {index}");
    }
    let mut cursor = reader.iter(57..).unwrap();
    assert_eq!(cursor.next_record().unwrap().unwrap().payload[..], payload(57, 0));
}

#[derive(Clone, Debug)]
enum Lie {
    Bytes(Vec<u8>),
    /// Entries that point anywhere near where records are.
    Entries(Vec<(u64, u64)>),
    /// The true index, some entries shifted to others' positions.
    Shifted(u64, u64),
    Missing,
    Cut(u64),
}

fn lie() -> impl Strategy<Value = Lie> {
    prop_oneof![
        vec(any::<u8>(), 0..3000).prop_map(Lie::Bytes),
        vec((0..130u64, 0..16 * 512u64), 0..200).prop_map(Lie::Entries),
        (0..60u64, 0..60u64).prop_map(|(at, by)| Lie::Shifted(at, by)),
        Just(Lie::Missing),
        (0..2000u64).prop_map(Lie::Cut),
    ]
}

fn tell(disk: &SimDisk, path: &Path, lie: &Lie) {
    let truth = disk.contents(path).unwrap();
    match lie {
        Lie::Bytes(bytes) => disk.put(path, bytes).unwrap(),
        Lie::Entries(entries) => {
            let entry = |&(offset, position): &(u64, u64)| IndexEntry { offset, position }.encode();
            disk.put(path, &entries.iter().flat_map(entry).collect::<Vec<_>>()).unwrap();
        }
        Lie::Shifted(at, by) => {
            let mut entries: Vec<_> = truth.as_chunks().0.iter().map(IndexEntry::decode).collect();
            for entry in *at..(entries.len() as u64).saturating_sub(*by) {
                entries[entry as usize].position = entries[(entry + by) as usize].position;
            }
            disk.put(path, &entries.iter().flat_map(IndexEntry::encode).collect::<Vec<_>>()).unwrap();
        }
        Lie::Missing => disk.put(path, &[]).unwrap(),
        Lie::Cut(len) => disk.put(path, &truth[..truth.len().min(*len as usize)]).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: budget("LSFS_CLERK_CASES", 60) as u32, ..ProptestConfig::default() })]

    #[test]
    fn no_index_changes_an_answer(lies in vec(lie(), 3), none: bool, stats in vec(any::<u8>(), 0..5000), seed: u64) {
        let disk = indexed_stream(if none { Checksum::None } else { Checksum::Crc32c });
        for (path, lie) in files(&disk, "idx").iter().zip(&lies) {
            tell(&disk, path, lie);
        }
        expect_all_readable(&disk, seed);
        // A clerk comes to the truth whatever it finds; with statistics that vouch for nothing, it begins anew.
        for path in files(&disk, "stats") {
            if seed % 2 == 0 {
                disk.put(&path, &stats).unwrap();
            }
        }
        let report = lsfs::run_once(&other_process(&disk, seed ^ 1), dir()).unwrap();
        prop_assert_eq!((report.indexed_to, report.damage.len()), (120, 0));
        let checked = verify_index(&other_process(&disk, seed), dir(), |_| {}).unwrap();
        prop_assert_eq!((checked.faults.len(), checked.entries), (0, 120));
        expect_all_readable(&disk, seed);
    }
}

#[test]
fn verification_names_each_wrong_entry() {
    let disk = indexed_stream(Checksum::Crc32c);
    let env = sim_env(&disk, 9);
    let path = files(&disk, "idx")[0].clone();
    let truth = disk.contents(&path).unwrap();
    let mut lying = truth.clone();
    lying[3 * 16 + 8] ^= 1;
    lying.extend(IndexEntry { offset: 1 << 40, position: 600 }.encode());
    disk.put(&path, &lying).unwrap();
    let report = verify_index(&env, dir(), |_| {}).unwrap();
    let indexes: Vec<_> = report.faults.iter().map(|fault| fault.index).collect();
    assert_eq!(indexes, [Some(3), Some(1 << 40)], "{report:?}");
    assert!(report.faults[0].to_string().contains("record 3"), "{}", report.faults[0]);
    disk.put(&path, &truth).unwrap();
    let path = files(&disk, "stats")[0].clone();
    let mut counted = SegmentStatistics::decode(&disk.contents(&path).unwrap()).unwrap();
    counted.stored_bytes += 1;
    let mut bytes = disk.contents(&path).unwrap();
    counted.encode(&mut bytes);
    disk.put(&path, &bytes).unwrap();
    let report = verify_index(&env, dir(), |_| {}).unwrap();
    assert_eq!(report.faults.len(), 1, "{report:?}");
    assert_eq!(report.faults[0].path, path);
}

// ---- crashes and changes ----

#[test]
fn a_crash_of_the_clerk_at_every_operation_is_harmless() {
    let seeds = budget("LSFS_CLERK_SEEDS", 12);
    let mut images = 0;
    for seed in 1..=seeds {
        let disk = SimDisk::new(seed);
        let stream = RecordStream::open_in(sim_env(&disk, seed), DIR, options(512)).unwrap();
        append(&stream, 40 + seed * 3, 0);
        if seed % 3 == 0 {
            lsfs::run_once(&other_process(&disk, seed), dir()).unwrap();
            stream.truncate_after(20).unwrap();
            append(&stream, 60, 1);
        }
        let generation_of = |index: u64| u64::from(seed % 3 == 0 && index > 20);
        let end = stream.next_index();
        stream.close().unwrap();
        disk.start_trace();
        lsfs::run_once(&other_process(&disk, seed + 1000), dir()).unwrap();
        let trace = disk.stop_trace();
        let mut crash_images = trace.images();
        loop {
            let styles: &[CrashStyle] =
                if crash_images.unsynced() == 0 { &CrashStyle::ALL[..1] } else { &CrashStyle::ALL };
            for &style in styles {
                let image = crash_images.image(style, images);
                let point = crash_images.crash_point();
                let context = || format!("seed {seed}, {}, {style:?}", trace.describe(point));
                let env = sim_env(&image, images);
                let reader = Reader::open_in(env.clone(), DIR).unwrap();
                for index in 0..end {
                    let record = reader.read(index).unwrap_or_else(|error| panic!("{}: {error}", context()));
                    assert!(record.payload == payload(index, generation_of(index)), "{}: {index}", context());
                }
                let report = lsfs::run_once(&env, dir()).unwrap();
                assert_eq!((report.indexed_to, report.damage.len()), (end, 0), "{}", context());
                let checked = verify_index(&env, dir(), |_| {}).unwrap();
                assert_eq!((checked.faults, checked.entries), (vec![], end), "{}", context());
                assert!(files(&image, "new").is_empty(), "{}", context());
                images += 1;
            }
            if !crash_images.advance() {
                break;
            }
        }
    }
    eprintln!("{images} crash images");
}

/// A stream that is appended to, truncated, purged and reset while a clerk and a reader are at work: the reader's answers
/// are those of the stream at that moment, and the clerk's indexes are right whenever it has caught up.
#[test]
fn readers_and_clerks_keep_up_with_every_change() {
    for seed in 0..budget("LSFS_CLERK_SEEDS", 40) {
        let mut choices = Choices::new(seed);
        let disk = SimDisk::new(seed);
        let options = options([512, 512, 1024][(seed % 3) as usize]);
        let open =
            |n: u64| RecordStream::open_in(sim_env(&disk, seed * 977 + n), DIR, options.clone()).unwrap();
        let mut stream = open(0);
        // The generation of each record from `base` on.
        let (mut base, mut generations) = (0u64, Vec::<u64>::new());
        append(&stream, 5, 0);
        generations.extend([0; 5]);
        let runtime = SimRuntime::new(seed + 5);
        let clerk_env = Env { disk: Arc::new(disk.new_process()), runtime: Arc::new(runtime.clone()) };
        let mut clerk = Clerk::start_in(clerk_env.clone(), DIR).unwrap();
        let reader = Reader::open_in(other_process(&disk, seed + 9), DIR).unwrap();
        for step in 1..60 {
            let next = base + generations.len() as u64;
            let first = stream.first_index();
            match choices.below(12) {
                0..=4 => {
                    let count = choices.below(60);
                    append(&stream, count, step);
                    generations.extend(vec![step; count as usize]);
                }
                5 | 6 if next > first => {
                    let index = next - 1 - choices.below((next - first).min(40));
                    stream.truncate_after(index).unwrap();
                    generations.truncate((index + 1 - base) as usize);
                }
                7 if next > first => stream.purge_before(first + choices.below(next - first)).unwrap(),
                8 if choices.below(3) == 0 => {
                    let index = [first, next, 0][choices.below(3) as usize];
                    stream.reset_to(index).unwrap();
                    (base, generations) = (index, Vec::new());
                }
                9 => {
                    stream.close().unwrap();
                    stream = open(step);
                }
                10 => {
                    // The clerk is killed, and another one comes.
                    drop(clerk);
                    clerk = Clerk::start_in(clerk_env.clone(), DIR).unwrap();
                }
                _ => {}
            }
            match choices.below(4) {
                0 => runtime.advance(Duration::from_millis(300)),
                1 => {
                    runtime.advance(Duration::from_secs(2));
                    runtime.settle();
                }
                _ => {}
            }
            let (first, next) = (stream.first_index(), base + generations.len() as u64);
            assert_eq!(reader.bounds().unwrap(), first..next, "seed {seed}, step {step}");
            for _ in 0..12 {
                let index = first.saturating_sub(2) + choices.below(next - first + 4);
                for found in [reader.read(index), stream.read(index)] {
                    match found {
                        Ok(record) => {
                            assert!((first..next).contains(&index), "seed {seed}, step {step}: {index}");
                            let expected = payload(index, generations[(index - base) as usize]);
                            assert!(record.payload == expected, "seed {seed}, step {step}: record {index}");
                        }
                        Err(Error::OutOfRange { held, .. }) => {
                            assert_eq!(held, first..next, "seed {seed}, step {step}");
                            assert!(!held.contains(&index));
                        }
                        Err(error) => panic!("seed {seed}, step {step}, record {index}: {error}"),
                    }
                }
            }
        }
        assert!(clerk.failure().is_none(), "seed {seed}: {:?}", clerk.failure());
        drop(clerk);
        let env = other_process(&disk, seed);
        let report = lsfs::run_once(&env, dir()).unwrap();
        assert_eq!((report.indexed_to, report.damage.len()), (stream.durable_index(), 0), "seed {seed}");
        let checked = verify_index(&env, dir(), |_| {}).unwrap();
        assert_eq!((checked.faults, checked.unindexed_records), (vec![], 0), "seed {seed}");
        assert_eq!(files(&disk, "idx").len(), files(&disk, "seg").len(), "seed {seed}: {:?}", disk.paths());
    }
}

// ---- the real disk ----

/// Where direct I/O is what it is elsewhere: not the memory of `/tmp`.
fn real_dir() -> tempfile::TempDir {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::tempdir_in(place).unwrap()
}

fn real_options() -> StreamOptions {
    StreamOptions { segment_bytes: 512 << 10, in_flight_bytes: 64 << 10, ..StreamOptions::default() }
}

#[test]
fn random_reads_beside_a_writer_a_clerk_and_purges_are_right_or_gone() {
    let dir = real_dir();
    let stream = RecordStream::open(dir.path(), real_options()).unwrap();
    append(&stream, 2000, 0);
    let clerk = Clerk::start(dir.path()).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (dir, done) = (dir.path(), &done);
            scope.spawn(move || {
                let reader = Reader::open(dir).unwrap();
                let mut choices = Choices::new(seed);
                let (mut right, mut gone) = (0u64, 0u64);
                while !done.load(std::sync::atomic::Ordering::Relaxed) || right == 0 {
                    let held = reader.bounds().unwrap();
                    let index = held.start + choices.below(held.end - held.start);
                    match reader.read(index) {
                        Ok(record) => {
                            assert!(record.payload == payload(index, 0), "record {index}");
                            right += 1;
                        }
                        Err(Error::OutOfRange { .. } | Error::Gone { .. }) => gone += 1,
                        Err(error) => panic!("record {index}: {error}"),
                    }
                }
                eprintln!("{right} right, {gone} gone");
            });
        }
        // Segments are recycled under the readers: retention keeps the newest.
        for _ in 0..60 {
            append(&stream, 1000, 0);
            stream.purge_before(stream.next_index() - 6000.min(stream.next_index())).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(stream.stats().recycled_segments > 5, "{:?}", stream.stats());
    let report = clerk.stop().unwrap();
    assert_eq!(report.damage, []);
    lsfs::run_once(&Env::default(), dir.path()).unwrap();
    expect_clean_index(&Env::default(), dir.path());
}

#[test]
fn buffered_file_systems_are_read_from_memory_too() {
    let dir = real_dir();
    let env = Env { disk: Arc::new(OsDisk::buffered()), runtime: Arc::new(OsRuntime::default()) };
    let stream = RecordStream::open_in(env.clone(), dir.path(), real_options()).unwrap();
    append(&stream, 9000, 0);
    stream.truncate_after(4000).unwrap();
    append(&stream, 5000, 1);
    lsfs::run_once(&env, dir.path()).unwrap();
    let reader = Reader::open_in(env.clone(), dir.path()).unwrap();
    for index in (0..9001).rev() {
        let expected = payload(index, u64::from(index > 4000));
        assert!(reader.read(index).unwrap().payload == expected, "record {index}");
        assert!(stream.read(index).unwrap().payload == expected, "record {index}");
    }
    expect_clean_index(&env, dir.path());
}

#[test]
fn records_that_a_repair_has_named_lost_are_left_out() {
    let disk = SimDisk::new(2);
    let stream = RecordStream::open_in(sim_env(&disk, 2), DIR, options(512)).unwrap();
    append(&stream, 300, 0);
    stream.close().unwrap();
    let damaged = files(&disk, "seg")[1].clone();
    disk.flip_bit(&damaged, (5 * 512 + 300) * 8).unwrap();
    let disk = disk.restart();
    let plan = plan(&sim_env(&disk, 3), DIR, RepairMode::Keep).unwrap();
    plan.apply().unwrap();
    let env = sim_env(&disk, 4);
    let reader = Reader::open_in(env.clone(), DIR).unwrap();
    let lost: u64 = reader.lost_ranges().unwrap().iter().map(|range| range.end - range.start).sum();
    assert!(lost > 0, "{plan}");
    let report = lsfs::run_once(&env, dir()).unwrap();
    assert_eq!((report.indexed_to, report.records, report.damage.len()), (300, 300 - lost, 0), "{report:?}");
    let checked = expect_clean_index(&env, dir());
    assert_eq!((checked.entries, checked.unindexed_records), (300 - lost, lost));
    let readable =
        (0..300).filter(|index| reader.read(*index).is_ok_and(|record| record.payload == payload(*index, 0)));
    assert_eq!(readable.count() as u64, 300 - lost);
    assert_eq!(lsfs::run_once(&env, dir()).unwrap().records, 0, "all of it is done");
}
