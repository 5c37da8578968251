//! Repair: what verified before is there afterwards, what does not is named, and a crash in between costs nothing.

mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use lsfs::io::{CrashStyle, SimDisk};
use lsfs::repair::{RepairMode, plan};
use lsfs::{Error, Reader, RecordStream, StreamOptions};
use support::sim_env;

const DIR: &str = "/stream";
const BLOCK: usize = 512;

fn options() -> StreamOptions {
    StreamOptions {
        block_bytes: BLOCK,
        segment_bytes: (BLOCK * 12) as u64,
        in_flight_bytes: BLOCK * 4,
        cache_bytes: BLOCK * 4,
        ..StreamOptions::default()
    }
}

fn payload(index: u64) -> Vec<u8> {
    let mut bytes = vec![index as u8; (index * 37 % 400) as usize];
    bytes.extend(index.to_le_bytes());
    bytes
}

/// A stream of several segments, closed or as a killed writer leaves it.
fn recorded(seed: u64, records: u64, closed: bool) -> SimDisk {
    let disk = SimDisk::new(seed);
    let stream = RecordStream::open_in(sim_env(&disk, seed), DIR, options()).unwrap();
    for index in 0..records {
        stream.append(index % 5, &payload(index)).unwrap();
    }
    if closed {
        stream.close().unwrap();
    }
    disk.restart()
}

fn files(disk: &SimDisk, end: &str) -> Vec<PathBuf> {
    let is_wanted = |path: &PathBuf| {
        path.parent() == Some(Path::new(DIR)) && path.extension().is_some_and(|extension| extension == end)
    };
    disk.paths().into_iter().filter(is_wanted).collect()
}

/// What a reader without the writer's help can answer, one by one.
fn readable(disk: &SimDisk, seed: u64) -> BTreeMap<u64, Vec<u8>> {
    let Ok(reader) = Reader::open_in(sim_env(disk, seed), DIR) else { return BTreeMap::new() };
    let Ok(held) = reader.bounds() else { return BTreeMap::new() };
    held.filter_map(|index| reader.read(index).ok().map(|record| (index, record.payload))).collect()
}

fn is_in(ranges: &[Range<u64>], index: u64) -> bool {
    ranges.iter().any(|range| range.contains(&index))
}

/// Checks a repaired stream against what was appended and against what could be read before.
#[track_caller]
fn check(disk: &SimDisk, seed: u64, before: &BTreeMap<u64, Vec<u8>>, context: &str) -> Vec<Range<u64>> {
    let again = plan(&sim_env(disk, seed), DIR, RepairMode::Keep).unwrap();
    assert_eq!(again.steps, [], "{context}: repaired once is repaired: {again}");
    let stream = RecordStream::open_in(sim_env(disk, seed + 1), DIR, options())
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    let lost = stream.lost_ranges();
    for index in stream.first_index()..stream.next_index() {
        match stream.read(index) {
            Ok(record) => {
                assert!(!is_in(&lost, index), "{context}: record {index} is called lost: {lost:?}");
                assert_eq!(record.payload, payload(index), "{context}: record {index}");
            }
            Err(Error::Corrupt(damage)) => {
                let named = lost.iter().find(|range| range.contains(&index)).cloned();
                assert!(named.is_some(), "{context}: record {index} is not called lost ({lost:?}): {damage}");
                assert_eq!(damage.records, named, "{context}");
            }
            // Of a rewritten segment.
            Err(Error::LeftOut { .. }) => assert!(!before.contains_key(&index), "{context}: {index}"),
            Err(error) => panic!("{context}: record {index}: {error}"),
        }
    }
    for (index, bytes) in before {
        assert_eq!(
            stream.read(*index).map(|record| record.payload).ok().as_ref(),
            Some(bytes),
            "{context}: {index}"
        );
    }
    // It goes on, and stays as it is over a reopen.
    let next = stream.next_index();
    stream.append(1, b"on it goes").unwrap();
    stream.close().unwrap();
    let disk = disk.restart();
    let reader = Reader::open_in(sim_env(&disk, seed + 2), DIR).unwrap();
    assert_eq!(reader.lost_ranges().unwrap(), lost, "{context}");
    assert_eq!(reader.read(next).unwrap().payload, b"on it goes");
    let report = lsfs::verify(&sim_env(&disk, seed), Path::new(DIR), |_| {}).unwrap();
    assert_eq!(report.damage, [], "{context}");
    assert_eq!(report.lost, lost);
    lost
}

#[test]
fn a_sound_stream_needs_nothing() {
    for closed in [true, false] {
        let disk = recorded(1, 200, closed);
        let before = disk.fingerprint();
        let plan = plan(&sim_env(&disk, 2), DIR, RepairMode::Keep).unwrap();
        assert_eq!((&plan.steps[..], &plan.findings[..], &plan.lost[..]), (&[][..], &[][..], &[][..]));
        assert_eq!(plan.records, Some(0..200));
        plan.apply().unwrap();
        assert_eq!(disk.fingerprint(), before, "nothing is changed");
    }
}

#[test]
fn every_damaged_block_costs_its_own_records_and_no_others() {
    for closed in [true, false] {
        let sound = recorded(3, 60, closed);
        for path in files(&sound, "seg") {
            let sectors = sound.contents(&path).unwrap().len() as u64 / 512;
            for sector in 0..sectors {
                let disk = sound.power_fail(CrashStyle::EverythingUnsynced, 0);
                disk.zero_sector(&path, sector).unwrap();
                let context = format!("closed {closed}, {} sector {sector}", path.display());
                let before = readable(&disk, 5);
                let could_open = {
                    let copy = disk.power_fail(CrashStyle::EverythingUnsynced, 0);
                    RecordStream::open_in(sim_env(&copy, 6), DIR, options()).map(drop)
                };
                let plan = plan(&sim_env(&disk, 7), DIR, RepairMode::Keep)
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                if let Err(error) = could_open {
                    assert!(!plan.steps.is_empty(), "{context}: nothing is planned for {error}");
                }
                plan.apply().unwrap_or_else(|error| panic!("{context}: {error}\n{plan}"));
                let lost = check(&disk, 8, &before, &context);
                assert_eq!(lost, plan.lost, "{context}");
            }
        }
    }
}

/// A stream with damage that its repair has to do with every kind of step for.
fn damaged(seed: u64, kind: usize) -> SimDisk {
    let disk = recorded(seed, 60, seed.is_multiple_of(2));
    let segments = files(&disk, "seg");
    let (middle, active) = (&segments[1], segments.last().unwrap());
    match kind {
        // The end of the active segment, and a file that is gone.
        0 => {
            disk.zero_sector(active, 1).unwrap();
            disk.truncate_raw(middle, 0).unwrap();
        }
        // Both manifests, and a file header.
        1 => {
            for path in files(&disk, "a").iter().chain(&files(&disk, "b")) {
                let sectors = disk.contents(path).unwrap().len() as u64 / 512;
                (0..sectors).for_each(|sector| disk.zero_sector(path, sector).unwrap());
                disk.flip_bit(path, 3).unwrap();
            }
            disk.flip_bit(middle, 8 * 50).unwrap();
        }
        // A file header, and a record in the middle.
        _ => {
            disk.flip_bit(active, 8 * 20).unwrap();
            disk.zero_sector(middle, 3).unwrap();
        }
    }
    disk
}

#[test]
fn a_crash_at_any_moment_of_a_repair_costs_nothing() {
    for mode in [RepairMode::Keep, RepairMode::Cut] {
        for kind in 0..3 {
            let seed = 10 + kind as u64;
            let disk = damaged(seed, kind);
            let whole = disk.power_fail(CrashStyle::EverythingUnsynced, 0);
            let wanted = plan(&sim_env(&whole, 20), DIR, mode).unwrap();
            wanted.apply().unwrap_or_else(|error| panic!("{mode:?} {kind}: {error}\n{wanted}"));
            let repaired = readable(&whole, 21);
            assert!(!wanted.steps.is_empty() && !repaired.is_empty(), "{mode:?} {kind}: {wanted}");

            disk.start_trace();
            plan(&sim_env(&disk, 20), DIR, mode).unwrap().apply().unwrap();
            let trace = disk.stop_trace();
            let mut images = trace.images();
            let mut round = 0;
            loop {
                let point = images.crash_point();
                // Every third style at each point, the others at its neighbours.
                for &style in CrashStyle::ALL.iter().skip(point % 3).step_by(3) {
                    round += 1;
                    let image = images.image(style, round);
                    let context = format!("{mode:?} {kind} {style:?} {}", trace.describe(point));
                    let again = plan(&sim_env(&image, 30 + round), DIR, mode)
                        .unwrap_or_else(|error| panic!("{context}: {error}"));
                    again.apply().unwrap_or_else(|error| panic!("{context}: {error}\n{again}"));
                    assert_eq!(readable(&image, 31), repaired, "{context}");
                    if round % 16 == 0 {
                        check(&image, 1000 + round, &repaired, &context);
                    }
                }
                if !images.advance() {
                    break;
                }
            }
        }
    }
}

/// A stream whose second and third segments were rewritten as one, without two thirds of their records.
fn rewritten(seed: u64) -> SimDisk {
    let disk = recorded(seed, 60, true);
    let stream = RecordStream::open_in(sim_env(&disk, seed + 1), DIR, options()).unwrap();
    let bases: Vec<u64> = files(&disk, "seg")
        .iter()
        .map(|path| path.file_stem().unwrap().to_str().unwrap().parse().unwrap())
        .collect();
    let run = bases[1]..bases[3];
    let kept: Vec<_> = run.clone().filter(|index| index % 3 == 1).map(|index| stream.read(index)).collect();
    stream.replace_sealed(run, &mut kept.into_iter()).unwrap();
    stream.close().unwrap();
    disk.restart()
}

#[test]
fn a_damaged_block_of_a_rewritten_segment_costs_its_own_records_and_no_others() {
    let sound = rewritten(20);
    let path = files(&sound, "seg").into_iter().find(|path| path.to_str().unwrap().contains('-')).unwrap();
    let sectors = sound.contents(&path).unwrap().len() as u64 / 512;
    for (mode, lose_manifest) in
        [(RepairMode::Keep, false), (RepairMode::Cut, false), (RepairMode::Keep, true)]
    {
        for sector in 0..sectors {
            let disk = sound.power_fail(CrashStyle::EverythingUnsynced, 0);
            disk.zero_sector(&path, sector).unwrap();
            let context = format!("{mode:?}, manifest lost {lose_manifest}, sector {sector}");
            let mut before = readable(&disk, 25);
            if lose_manifest {
                for path in files(&disk, "a").iter().chain(&files(&disk, "b")) {
                    disk.truncate_raw(path, 0).unwrap();
                }
            }
            let plan =
                plan(&sim_env(&disk, 27), DIR, mode).unwrap_or_else(|error| panic!("{context}: {error}"));
            plan.apply().unwrap_or_else(|error| panic!("{context}: {error}\n{plan}"));
            if let Some(cut) = &plan.cut {
                before.retain(|index, _| *index < cut.start);
            }
            let lost = check(&disk, 28, &before, &context);
            assert_eq!(lost, plan.lost, "{context}");
        }
    }
}

#[test]
fn a_cut_leaves_no_holes() {
    let disk = damaged(11, 0);
    let before = readable(&disk, 12);
    let planned = plan(&sim_env(&disk, 12), DIR, RepairMode::Cut).unwrap();
    let cut = planned.cut.clone().expect("records are lost");
    planned.apply().unwrap();
    let kept: BTreeMap<_, _> = readable(&disk, 13);
    assert_eq!(kept.keys().copied().collect::<Vec<_>>(), (0..cut.start).collect::<Vec<_>>());
    assert!(before.range(..cut.start).all(|(index, bytes)| kept.get(index) == Some(bytes)));
    assert_eq!(check(&disk, 14, &kept, "cut"), []);
}

#[test]
fn an_active_file_that_was_cut_is_written_on_in_a_new_segment() {
    let sound = recorded(9, 60, false);
    let active = files(&sound, "seg").pop().unwrap();
    let blocks = sound.contents(&active).unwrap().len() as u64 / BLOCK as u64;
    for kept in 0..blocks {
        let context = format!("{kept} of {blocks} blocks");
        let disk = sound.power_fail(CrashStyle::EverythingUnsynced, 0);
        disk.truncate_raw(&active, kept * BLOCK as u64).unwrap();
        let opened = RecordStream::open_in(sim_env(&disk, 5), DIR, options());
        assert!(opened.is_err_and(|error| error.is_corruption()), "{context}");
        let before = readable(&disk, 5);
        let plan = plan(&sim_env(&disk, 6), DIR, RepairMode::Keep).unwrap();
        assert!(!plan.findings.is_empty() && !plan.steps.is_empty(), "{context}: {plan}");
        plan.apply().unwrap_or_else(|error| panic!("{context}: {error}\n{plan}"));
        assert_eq!(check(&disk, 7, &before, &context), plan.lost, "{context}");
    }
}

#[test]
fn a_plan_that_no_longer_holds_is_refused() {
    let disk = damaged(11, 0);
    let old = plan(&sim_env(&disk, 12), DIR, RepairMode::Keep).unwrap();
    old.apply().unwrap();
    assert!(matches!(old.apply(), Err(Error::PlanOutdated { .. })));
}

#[test]
fn lost_records_leave_with_what_is_truncated_or_purged() {
    let disk = damaged(11, 0);
    plan(&sim_env(&disk, 12), DIR, RepairMode::Keep).unwrap().apply().unwrap();
    let stream = RecordStream::open_in(sim_env(&disk, 13), DIR, options()).unwrap();
    let lost = stream.lost_ranges();
    assert!(lost.len() > 1, "{lost:?}");
    let (first, last) = (lost[0].clone(), lost[lost.len() - 1].clone());
    stream.truncate_after(last.start - 1).unwrap();
    assert_eq!(stream.lost_ranges(), lost[..lost.len() - 1]);
    assert_eq!(stream.append(1, &payload(last.start)).unwrap(), last.start);
    assert_eq!(stream.read(last.start).unwrap().payload, payload(last.start));
    stream.purge_before(first.start + 1).unwrap();
    assert_eq!(stream.lost_ranges()[0], first.start + 1..first.end);
    stream.reset_to(5).unwrap();
    assert_eq!(stream.lost_ranges(), []);
}
