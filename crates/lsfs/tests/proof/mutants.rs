//! Known losers: every mutant of the engine must be caught by the drivers that are there to catch it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lsfs::Mutant;

use crate::crash::{Workload, crash_everywhere};
use crate::crash_data_stream::DataStreamWorkload;
use crate::crash_final_data::{FinalDataWorkload, damage_state};
use crate::crash_segment_set::SegmentSetWorkload;
use crate::crash_stream::StreamWorkload;
use crate::damage::damage_sectors;
use crate::faults::strike_everywhere;

/// A part of the suite that looks for broken promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    CrashStream,
    CrashFinalData,
    CrashDataStream,
    CrashSegmentSet,
    Faults,
    DamageSegment,
    DamageState,
}

use Driver::{
    CrashDataStream, CrashFinalData, CrashSegmentSet, CrashStream, DamageSegment, DamageState, Faults,
};

/// Who must catch whom.
const CAUGHT_BY: [(Mutant, &[Driver]); 26] = [
    (Mutant::AcknowledgeBeforeSync, &[CrashStream, CrashFinalData, CrashDataStream, CrashSegmentSet]),
    (Mutant::SwallowedError, &[Faults]),
    (Mutant::RetryAfterFailedSync, &[Faults]),
    (Mutant::NoDirectorySync, &[CrashStream, CrashFinalData, CrashDataStream, CrashSegmentSet]),
    (Mutant::TornSliceAccepted, &[CrashStream, CrashFinalData, DamageSegment]),
    (Mutant::StaleBlockAccepted, &[CrashStream]),
    (Mutant::EpochsMayFall, &[CrashStream]),
    (Mutant::NoEpochAtOpen, &[CrashStream]),
    (Mutant::NoEpochAtTruncation, &[CrashStream]),
    (Mutant::DamageTruncated, &[DamageSegment]),
    (Mutant::NoLookAhead, &[DamageSegment]),
    (Mutant::WatermarkTooHigh, &[CrashStream]),
    (Mutant::NoManifestAtRotation, &[CrashStream, CrashDataStream]),
    (Mutant::PurgeBeforeManifest, &[CrashStream]),
    (Mutant::CleanBeforeManifest, &[CrashStream]),
    (Mutant::NoSegmentSyncAtOpen, &[CrashStream, CrashSegmentSet]),
    (Mutant::NoStateSyncAtOpen, &[CrashFinalData]),
    (Mutant::StateOverwritten, &[CrashFinalData]),
    (Mutant::OlderStateAccepted, &[DamageState]),
    (Mutant::MarkBeforeData, &[CrashDataStream]),
    (Mutant::HalfBatchAccepted, &[CrashSegmentSet]),
    (Mutant::StaleFrameAccepted, &[CrashSegmentSet]),
    (Mutant::WitnessTooEarly, &[CrashSegmentSet]),
    (Mutant::OwnFramesSyncedOnly, &[CrashSegmentSet]),
    (Mutant::ReclaimBeforeList, &[CrashSegmentSet]),
    (Mutant::NextBeforeList, &[CrashSegmentSet]),
];

/// How many disks a crash driver may look at before it has to have found something.
const IMAGES_MAX: u64 = 120_000;

impl Driver {
    /// What it finds, if anything.
    fn finding(self) -> Option<String> {
        let searched = match self {
            CrashStream => crash_until::<StreamWorkload>(IMAGES_MAX),
            CrashFinalData => crash_until::<FinalDataWorkload>(IMAGES_MAX),
            CrashDataStream => crash_until::<DataStreamWorkload>(IMAGES_MAX),
            CrashSegmentSet => crash_until::<SegmentSetWorkload>(IMAGES_MAX),
            Faults => strike_everywhere(0).map(|_| ()),
            DamageSegment => damage_sectors(),
            DamageState => damage_state(),
        };
        searched.err()
    }
}

fn crash_until<W: Workload>(images_max: u64) -> Result<(), String> {
    let (mut images, mut seed) = (0, 1);
    while images < images_max {
        images += crash_everywhere::<W>(seed)?;
        seed += 1;
    }
    Ok(())
}

/// What the driver finds when the engine is that mutant; a panic of the engine is a finding as well.
fn finding(mutant: Mutant, driver: Driver) -> Option<String> {
    let search = AssertUnwindSafe(|| mutant.during(|| driver.finding()));
    catch_unwind(search).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().cloned();
        let message = message.or_else(|| panic.downcast_ref::<&str>().map(|message| message.to_string()));
        Some(format!("panic: {}", message.unwrap_or_default()))
    })
}

#[test]
fn every_mutant_is_caught_by_whom_it_should_be() {
    let mut survived = Vec::new();
    for (mutant, drivers) in CAUGHT_BY {
        for &driver in drivers {
            match finding(mutant, driver) {
                Some(finding) => {
                    let first = finding.lines().next().unwrap_or_default();
                    eprintln!("{mutant:?} caught by {driver:?}: {first}");
                }
                None => survived.push((mutant, driver)),
            }
        }
    }
    assert!(survived.is_empty(), "mutants that were not caught: {survived:?}");
}

#[test]
fn every_mutant_is_in_the_table() {
    let listed: Vec<Mutant> = CAUGHT_BY.iter().map(|(mutant, _)| *mutant).collect();
    assert_eq!(listed, Mutant::ALL);
    assert!(CAUGHT_BY.iter().all(|(_, drivers)| !drivers.is_empty()));
}
