//! Damage to the files of a log: what is lost is named exactly, with its terms, and nothing is ever answered wrong.

mod support;

use std::path::{Path, PathBuf};

use lsfs::io::SimDisk;
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

#[test]
fn damaged_replacements_are_in_doubt_and_never_answered_as_they_were() {
    let disk = written();
    let log = open(&disk, 31).unwrap();
    for index in [40, 44] {
        log.replace(index, &NewEntry::command(term_of(index), 5, b"superseded")).unwrap();
    }
    log.stop().unwrap();
    for path in files_of(&disk, "replaced-0").iter().filter(|path| path.extension().is_some()) {
        disk.truncate_raw(path, 0).unwrap();
    }
    let log = open(&disk, 32).unwrap();
    let named: Vec<u64> = log.lost().unwrap().into_iter().flat_map(|lost| lost.indexes).collect();
    assert_eq!(named, [40, 41, 42, 43, 44]);
    for index in named {
        assert!(matches!(log.read(index), Err(Error::Lost { .. })), "entry {index}");
        let command = command(index);
        log.restore(index, &NewEntry::command(term_of(index), 5, &command)).unwrap();
    }
    assert_eq!(examine(&log), []);
    log.stop().unwrap();
    assert_eq!(examine(&open(&disk, 33).unwrap()), []);
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
