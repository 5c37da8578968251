//! Damage to the files of a log: what is lost is named exactly, with its terms, and nothing is ever answered wrong.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lsfs::codec::FileHeaderFault;
use lsfs::io::{CrashStyle, SimDisk};
use lsfs_raft::{Entry, Error, LostRange, NewEntry, RaftLog, repair};
use proptest::prelude::*;
use support::{sim_env, small_options};

const DIR: &str = "/raft";
const ENTRIES: u64 = 300;

fn term_of(index: u64) -> u64 {
    1 + index / 23
}

fn command(index: u64) -> Vec<u8> {
    (0..20 + index % 90).map(|at| (at * 5 + index) as u8).collect()
}

/// A stopped log of many terms in many segments, with a vote; everything in it is committed.
fn written() -> SimDisk {
    let disk = SimDisk::new(3);
    let log = open(&disk, 1).unwrap();
    for index in 1..=ENTRIES {
        let command = command(index);
        assert_eq!(log.append(&NewEntry::command(term_of(index), 5, &command)).unwrap(), index);
    }
    log.set_term(term_of(ENTRIES)).unwrap();
    log.vote_for(2).unwrap();
    log.set_commit_index(ENTRIES).unwrap();
    log.stop().unwrap();
    disk
}

fn open(disk: &SimDisk, seed: u64) -> lsfs_raft::Result<RaftLog> {
    RaftLog::open_in(sim_env(disk, seed), DIR, small_options(1))
}

/// Opens a damaged log, after a repair if it cannot be opened without one.
fn open_repaired(disk: &SimDisk, seed: u64) -> Result<RaftLog, Error> {
    match open(disk, seed) {
        Err(error) if error.is_corruption() => {
            repair(&sim_env(disk, seed + 1000), DIR)?;
            open(disk, seed + 2000)
        }
        other => other,
    }
}

fn files_of(disk: &SimDisk, part: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        disk.paths().into_iter().filter(|path| path.starts_with(Path::new(DIR).join(part))).collect();
    paths.sort();
    paths
}

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    files_of(disk, "entries")
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .collect()
}

/// The entry is as it was written.
fn expect_entry(index: u64, entry: &Entry) {
    assert_eq!((entry.index, entry.term, &entry.command), (index, term_of(index), &command(index)));
}

/// Every entry is right or named lost, one by one and in order; answers what is lost.
fn examine(log: &RaftLog) -> Vec<u64> {
    let lost = log.check().unwrap();
    let mut missing: Vec<u64> = Vec::new();
    for LostRange { indexes, term, leader } in &lost {
        for index in indexes.clone() {
            assert_eq!((*term, *leader), (Some(term_of(index)), Some(5)), "entry {index}");
            missing.push(index);
        }
    }
    let next = log.next_index().unwrap();
    for index in 1..=ENTRIES {
        match log.read(index) {
            Ok(entry) => {
                expect_entry(index, &entry);
                assert!(!missing.contains(&index), "entry {index} is named lost and is not");
            }
            Err(Error::Lost { lost }) => {
                assert!(lost.indexes.contains(&index) && missing.contains(&index), "entry {index}: {lost}");
            }
            Err(Error::BeyondEnd { .. }) => {
                assert!(index >= next && missing.contains(&index), "entry {index} is missing and not named");
            }
            Err(error) => panic!("entry {index}: {error}"),
        }
    }
    let mut entries = log.entries(..).unwrap();
    let mut expected = 1;
    loop {
        match entries.next_entry() {
            Ok(Some(entry)) => {
                assert_eq!(entry.index, expected);
                expect_entry(expected, &entry);
                expected += 1;
            }
            Ok(None) => break,
            Err(Error::Lost { lost }) => {
                assert_eq!(entries.next_index(), lost.indexes.start.max(expected));
                expected = lost.indexes.end;
                entries.skip_to(expected);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(expected, next);
    missing
}

/// Gives back what is lost, as a peer would, and finds all of it again, also after reopening.
fn mend(disk: &SimDisk, log: RaftLog, missing: &[u64]) {
    let next = log.next_index().unwrap();
    for &index in missing {
        let command = command(index);
        let entry = NewEntry::command(term_of(index), 5, &command);
        if index >= next {
            log.append_at(index, &[entry]).unwrap();
            continue;
        }
        let wrong = NewEntry::command(term_of(index) + 1, 5, &command);
        assert!(matches!(log.restore(index, &wrong), Err(Error::NotLost { .. })));
        log.restore(index, &entry).unwrap();
        assert!(matches!(log.restore(index, &entry), Err(Error::NotLost { .. })));
    }
    log.stop().unwrap();
    let log = open(disk, 77).unwrap();
    assert_eq!(examine(&log), []);
    assert_eq!((log.term().unwrap(), log.voted_for().unwrap()), (term_of(ENTRIES), Some(2)));
    let next = log.next_index().unwrap();
    assert_eq!(log.append(&NewEntry::command(99, 1, b"goes on")).unwrap(), next);
}

/// The entries whose bytes lie in a range of a segment, by the engine's own reading of it before the damage.
fn entries_touched(disk: &SimDisk, damage: impl Fn(&SimDisk)) -> (Vec<u64>, SimDisk) {
    damage(disk);
    let log = open_repaired(disk, 11).unwrap();
    let missing = examine(&log);
    mend(disk, log, &missing);
    (missing, disk.clone())
}

#[test]
fn a_lost_block_in_the_middle_is_named_and_filled_again() {
    let disk = written();
    let all = segments(&disk);
    assert!(all.len() > 3, "{all:?}");
    let (missing, _) = entries_touched(&disk, |disk| disk.zero_sector(&all[1], 5).unwrap());
    // One block of 512 bytes: a handful of entries, one behind the other.
    assert!(!missing.is_empty() && missing.len() < 20, "{missing:?}");
    assert!(missing.windows(2).all(|pair| pair[1] == pair[0] + 1), "{missing:?}");
}

#[test]
fn a_lost_segment_is_named_and_filled_again() {
    let disk = written();
    let victim = segments(&disk)[2].clone();
    let base = |path: &Path| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let range: Vec<u64> = (base(&victim)..base(&segments(&disk)[3])).collect();
    let (missing, _) = entries_touched(&disk, |disk| disk.truncate_raw(&victim, 512).unwrap());
    assert_eq!(missing, range);
}

#[test]
fn a_cut_end_is_named_by_the_commit_index() {
    let disk = written();
    let last = segments(&disk).pop().unwrap();
    disk.truncate_raw(&last, 512).unwrap();
    let error = open(&disk, 11).unwrap_err();
    assert!(error.is_corruption(), "{error}");
    let report = repair(&sim_env(&disk, 12), DIR).unwrap();
    assert!(!report.findings.is_empty() && !report.state_is_doubtful, "{report:?}");
    let log = open(&disk, 13).unwrap();
    let missing = examine(&log);
    assert_eq!(missing.last(), Some(&ENTRIES), "{missing:?}");
    mend(&disk, log, &missing);
}

#[test]
fn a_damaged_state_marks_the_node_as_broken() {
    let disk = written();
    let newest = {
        // The pair has a file with the last states and one with earlier ones; either may be hit.
        let files = files_of(&disk, "state");
        files.into_iter().filter(|path| path.ends_with("state.a") || path.ends_with("state.b"))
    };
    for path in newest {
        let disk = disk.power_fail(lsfs::io::CrashStyle::NothingUnsynced, 0);
        let len = disk.contents(&path).unwrap().len() as u64;
        disk.truncate_raw(&path, len / 512 / 4 * 512).unwrap();
        match open(&disk, 21) {
            // The other file has the latest state.
            Ok(log) => assert_eq!(log.voted_for().unwrap(), Some(2)),
            Err(error) => {
                assert!(error.is_corruption(), "{error}");
                let report = repair(&sim_env(&disk, 22), DIR).unwrap();
                assert!(report.state_is_doubtful, "{report:?}");
                let log = open(&disk, 23).unwrap();
                assert!(log.broken().unwrap().unwrap().contains("vote"), "{:?}", log.broken());
            }
        }
    }
}

/// A log of which entries were replaced, some of them twice, some cut off; and what it should answer.
struct Replacements {
    disk: SimDisk,
    /// Term and command of each entry, from index 1 on.
    entries: Vec<(u64, Vec<u8>)>,
    /// Which record of the stream of replaced entries stands for an index.
    standing: BTreeMap<u64, u64>,
    records: u64,
}

impl Replacements {
    /// With `is_stopped` the log is closed, without it power fails.
    fn new(is_stopped: bool) -> Replacements {
        let mut made = Replacements {
            disk: SimDisk::new(17),
            entries: Vec::new(),
            standing: BTreeMap::new(),
            records: 0,
        };
        let log = open(&made.disk, 1).unwrap();
        (1..=90).for_each(|index| made.append(&log, 1 + index / 23));
        for index in (3..80).step_by(3).chain([6, 30, 31, 32]) {
            made.replace(&log, index, 50 + index % 4);
        }
        log.delete_all_from(60).unwrap();
        made.entries.truncate(59);
        made.standing.split_off(&60);
        made.records += 1;
        (60..=75).for_each(|_| made.append(&log, 70));
        [12, 61, 62, 75].into_iter().for_each(|index| made.replace(&log, index, 71));
        log.set_term(99).unwrap();
        match is_stopped {
            true => log.stop().unwrap(),
            false => {
                let disk = made.disk.power_fail(CrashStyle::NothingUnsynced, 5);
                drop(log);
                made.disk = disk;
            }
        }
        made
    }

    fn append(&mut self, log: &RaftLog, term: u64) {
        let bytes = command(self.entries.len() as u64);
        log.append(&NewEntry::command(term, 5, &bytes)).unwrap();
        self.entries.push((term, bytes));
    }

    fn replace(&mut self, log: &RaftLog, index: u64, term: u64) {
        let bytes = command(1000 + self.records);
        log.replace(index, &NewEntry::command(term, 6, &bytes)).unwrap();
        self.entries[index as usize - 1] = (term, bytes);
        self.standing.insert(index, self.records);
        self.records += 1;
    }

    fn files(&self, part: &str) -> Vec<PathBuf> {
        let is_data = |path: &PathBuf| !path.ends_with("live") && !path.ends_with("lock");
        files_of(&self.disk, part).into_iter().filter(is_data).collect()
    }

    /// The entries whose bytes no longer verify, by the engine's own reading of the stream.
    fn unreadable(&self, disk: &SimDisk) -> Vec<u64> {
        let reader = lsfs::Reader::open_in(sim_env(disk, 7), Path::new(DIR).join("replaced-0"));
        let is_lost = |record: u64| reader.as_ref().map_or(true, |reader| reader.read(record).is_err());
        self.standing.iter().filter(|&(_, &record)| is_lost(record)).map(|(&index, _)| index).collect()
    }

    /// Every entry is right or named lost; answers those, with whether their terms are known.
    fn examine(&self, log: &RaftLog, context: &str) -> Vec<(u64, bool)> {
        let mut named = Vec::new();
        for LostRange { indexes, term, leader } in log.check().unwrap() {
            for index in indexes {
                let expected = self.entries[index as usize - 1].0;
                assert!(term.is_none_or(|term| term == expected), "{context}: {index} of {term:?}");
                assert_eq!(term.is_none(), leader.is_none(), "{context}: {index}");
                named.push((index, term.is_some()));
            }
        }
        for (index, (term, bytes)) in (1..).zip(&self.entries) {
            let is_named = named.iter().any(|&(lost, _)| lost == index);
            match log.read(index) {
                Ok(entry) => {
                    assert!(!is_named, "{context}: {index} is there and named lost");
                    assert_eq!((entry.term, &entry.command), (*term, bytes), "{context}: {index}");
                    assert_eq!(log.id_of(index).unwrap(), Some(entry.id()), "{context}: {index}");
                }
                Err(Error::Lost { .. }) => assert!(is_named, "{context}: {index}"),
                Err(error) => panic!("{context}: {index}: {error}"),
            }
        }
        named
    }

    /// Gives back what is lost and finds all of it again.
    fn mend(&self, disk: &SimDisk, log: &RaftLog, named: &[(u64, bool)], context: &str) {
        for &(index, _) in named {
            let (term, bytes) = &self.entries[index as usize - 1];
            let leader = log.id_of(index).unwrap().map_or(6, |id| id.leader);
            log.restore(index, &NewEntry::command(*term, leader, bytes)).unwrap();
        }
        assert_eq!(self.examine(log, context), [], "{context}");
        log.stop().unwrap();
        assert_eq!(self.examine(&open(disk, 33).unwrap(), context), [], "{context}");
    }

    /// Damages the log, opens it, and expects exactly the loss of what no longer verifies.
    fn expect_exact(&self, context: &str, damage: impl Fn(&SimDisk)) -> usize {
        let disk = self.disk.power_fail(CrashStyle::NothingUnsynced, 0);
        damage(&disk);
        let log = match open(&disk, 32) {
            // A flipped bit in the version of a file: it could be of a newer program, and nothing is said of it.
            Err(Error::Engine(lsfs::Error::Format { fault: FileHeaderFault::Version { .. }, .. })) => {
                return 0;
            }
            opened => opened.unwrap_or_else(|error| panic!("{context}: {error}")),
        };
        let expected = self.unreadable(&disk);
        let named = self.examine(&log, context);
        let exact: Vec<_> = expected.iter().map(|&index| (index, true)).collect();
        assert_eq!(named, exact, "{context}");
        if !named.is_empty() {
            self.mend(&disk, &log, &named, context);
        }
        named.len()
    }
}

/// Bits flipped in every region of every file, and files cut anywhere: of the replaced entries exactly those are lost
/// whose bytes are gone, of their names none.
#[test]
fn exactly_the_damaged_replacements_are_lost() {
    for is_stopped in [true, false] {
        let made = Replacements::new(is_stopped);
        let (mut hits, mut losses) = (0, 0);
        for part in ["replaced-0", "names-0"] {
            for path in made.files(part) {
                let len = made.disk.contents(&path).unwrap().len() as u64;
                let used = made.disk.contents(&path).unwrap().iter().rposition(|&byte| byte != 0).unwrap_or(0)
                    as u64;
                for place in (0..used).step_by(37) {
                    let context = format!("{}, byte {place}, stopped {is_stopped}", path.display());
                    let lost = made
                        .expect_exact(&context, |disk| disk.flip_bit(&path, place * 8 + place % 8).unwrap());
                    hits += 1;
                    losses += lost;
                    assert!(part == "replaced-0" || lost == 0, "{context}");
                }
                for end in (0..len.min(used + 512)).step_by(512) {
                    let context = format!("{} cut at {end}, stopped {is_stopped}", path.display());
                    losses += made.expect_exact(&context, |disk| disk.truncate_raw(&path, end).unwrap());
                }
            }
            let context = format!("no {part}, stopped {is_stopped}");
            losses += made.expect_exact(&context, |disk| {
                made.files(part).iter().for_each(|path| disk.truncate_raw(path, 0).unwrap());
            });
        }
        assert!(hits > 100 && losses > 100, "{hits} {losses}");
    }
}

/// With both streams damaged at once nobody knows what some records were of: too much is named, nothing answered wrong.
#[test]
fn replacements_that_nothing_names_are_in_doubt() {
    let made = Replacements::new(true);
    let damaged = |parts: &[&str]| {
        let disk = made.disk.power_fail(CrashStyle::NothingUnsynced, 0);
        for part in parts {
            made.files(part).iter().for_each(|path| disk.truncate_raw(path, 0).unwrap());
        }
        disk
    };
    let disk = damaged(&["replaced-0", "names-0"]);
    let log = open(&disk, 32).unwrap();
    let named = made.examine(&log, "both gone");
    let expected: Vec<_> = (3..=75).map(|index| (index, false)).collect();
    assert_eq!(named, expected);
    assert_eq!(log.last_id().unwrap(), None, "the last entry's term is not known");
    made.mend(&disk, &log, &named, "both gone");
    // One sector of each: records around the same place.
    let segments =
        |part| made.files(part).into_iter().filter(|path| path.extension().is_some_and(|e| e == "seg"));
    for entries in segments("replaced-0") {
        for names in segments("names-0") {
            for (one, other) in (1..10).flat_map(|one| (1..4).map(move |other| (one, other))) {
                let disk = made.disk.power_fail(CrashStyle::NothingUnsynced, 0);
                let hit = disk.zero_sector(&entries, one).and_then(|()| disk.zero_sector(&names, other));
                if hit.is_err() {
                    continue;
                }
                let context = format!("{} {one}, {} {other}", entries.display(), names.display());
                let log = open(&disk, 32).unwrap_or_else(|error| panic!("{context}: {error}"));
                let named = made.examine(&log, &context);
                made.mend(&disk, &log, &named, &context);
            }
        }
    }
}

/// Power fails anywhere while the log saves what is left of damaged replacements.
#[test]
fn a_crash_while_replacements_are_saved_loses_no_more() {
    let made = Replacements::new(true);
    let path = made.files("replaced-0").into_iter().find(|path| path.extension().is_some()).unwrap();
    made.disk.zero_sector(&path, 2).unwrap();
    let expected: Vec<_> = made.unreadable(&made.disk).into_iter().map(|index| (index, true)).collect();
    assert!(!expected.is_empty());
    let disk = made.disk.power_fail(CrashStyle::NothingUnsynced, 0);
    disk.start_trace();
    assert_eq!(made.examine(&open(&disk, 40).unwrap(), "undisturbed"), expected);
    let trace = disk.stop_trace();
    let mut images = trace.images();
    let mut count = 0;
    loop {
        for (at, style) in CrashStyle::ALL.into_iter().enumerate() {
            let context = format!("{}, {style:?}", trace.describe(images.crash_point()));
            let image = images.image(style, at as u64);
            let log = open(&image, 41 + count).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(made.examine(&log, &context), expected, "{context}");
            drop(image.restart());
            count += 1;
        }
        if !images.advance() {
            break;
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn entries_without_their_state_are_refused() {
    let disk = written();
    let fresh = SimDisk::new(9);
    // The page that readers look at while a log is open is no data.
    for path in files_of(&disk, "entries").into_iter().filter(|path| !path.ends_with("live")) {
        fresh.put(&path, &disk.contents(&path).unwrap()).unwrap();
    }
    let error = open(&fresh, 41).unwrap_err();
    assert!(matches!(error, Error::StateMissing { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Flipped bits, zeroed sectors and cuts anywhere in the entries: never a wrong entry, never a loss unnamed.
    #[test]
    fn no_damage_is_answered(
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u32>(), 0u8..3), 1..4),
    ) {
        let disk = written();
        let all = segments(&disk);
        for (which, place, how) in &hits {
            let path = which.get(&all);
            let len = disk.contents(path).unwrap().len() as u64;
            if len == 0 {
                continue;
            }
            let place = u64::from(*place);
            match how {
                0 => disk.flip_bit(path, place % (len * 8)).unwrap(),
                1 => disk.zero_sector(path, place % (len / 512).max(1)).unwrap(),
                _ => disk.truncate_raw(path, place % len / 512 * 512).unwrap(),
            }
        }
        let log = open_repaired(&disk, 51).unwrap();
        let missing = examine(&log);
        mend(&disk, log, &missing);
    }
}
