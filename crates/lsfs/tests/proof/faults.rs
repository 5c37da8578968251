//! I/O errors at every operation: nothing acknowledged is lost, nothing is acknowledged after a failure.
//!
//! The same workload runs once without faults to count its operations, then once for every operation and kind of fault,
//! striking once and striking for good. After the failure the machine goes on (the process is killed, the disk is good
//! again) and the stream is reopened.

use lsfs::io::{DiskFault, FaultKind, OpKind, SimDisk};
use lsfs::{Error, RecordStream, StreamOptions};

use crate::support::{budget, sim_env};

const DIR: &str = "/stream";

fn options() -> StreamOptions {
    StreamOptions {
        block_bytes: 512,
        segment_bytes: 8 * 512,
        in_flight_bytes: 4 * 512,
        ..StreamOptions::default()
    }
}

fn payload(index: u64) -> Vec<u8> {
    vec![index as u8; 20 + (index as usize * 37) % 900]
}

/// What the workload was told.
#[derive(Debug, Default)]
struct Told {
    /// Records below this index were acknowledged.
    acknowledged: u64,
    /// Records up to here were handed over; what lies between may be there or not.
    submitted: u64,
    /// Purges that were acknowledged, and asked for.
    purged: u64,
    purge_asked: u64,
    failure: Option<Error>,
}

/// Appends, rotates, purges and reopens until the first error, then checks that the stream stays stopped.
///
/// # Errors
/// A finding. What the stream answered as an error is in what was told.
fn workload(disk: &SimDisk, seed: u64) -> Result<Told, String> {
    let mut told = Told::default();
    for round in 0..3 {
        match RecordStream::open_in(sim_env(disk, seed + round), DIR, options()) {
            Ok(stream) => appends(&stream, round, &mut told)?,
            Err(error) => told.failure = Some(error),
        }
        if told.failure.is_some() {
            break;
        }
    }
    Ok(told)
}

fn appends(stream: &RecordStream, round: u64, told: &mut Told) -> Result<(), String> {
    let fail = |told: &mut Told, error| {
        told.failure = Some(error);
        check_stopped(stream, told.acknowledged)
    };
    for n in 0..12u64 {
        let index = told.submitted;
        told.submitted += 1;
        let appended = if n % 3 == 0 {
            stream.append_batch(&[(0, payload(index))]).map(|range| range.start)
        } else {
            stream.append(0, &payload(index))
        };
        match appended {
            Ok(at) if at == index => told.acknowledged = index + 1,
            Ok(at) => return Err(format!("record {index} was given index {at}")),
            Err(error) => return fail(told, error),
        }
    }
    if round == 1 {
        told.purge_asked = told.acknowledged.saturating_sub(5);
        if let Err(error) = stream.purge_before(told.purge_asked) {
            return fail(told, error);
        }
        told.purged = told.purge_asked;
    }
    told.failure = stream.close().err();
    Ok(())
}

/// After a failure nothing is acknowledged any more, and nothing unacknowledged is shown.
fn check_stopped(stream: &RecordStream, acknowledged: u64) -> Result<(), String> {
    let ensure = |holds: bool, what: &str| if holds { Ok(()) } else { Err(format!("stopped, but {what}")) };
    ensure(matches!(stream.append(0, b"more"), Err(Error::Poisoned { .. })), "append answers")?;
    let synced = matches!(stream.sync(), Ok(()) | Err(Error::Poisoned { .. } | Error::Indeterminate { .. }));
    ensure(synced, "sync fails otherwise")?;
    ensure(matches!(stream.truncate_after(0), Err(Error::Poisoned { .. })), "truncate_after answers")?;
    ensure(stream.durable_index() >= acknowledged, "acknowledged records are not shown")?;
    ensure(stream.next_index() == stream.durable_index(), "unacknowledged records are shown")
}

/// Opens what the failure left, on a disk that is good again.
fn check(disk: &SimDisk, told: &Told) -> Result<(), String> {
    disk.clear_faults();
    let disk = disk.restart();
    let stream = RecordStream::open_in(sim_env(&disk, 99), DIR, options())
        .map_err(|error| format!("reopen: {error}"))?;
    let (first, next) = (stream.first_index(), stream.next_index());
    if first != told.purged && first != told.purge_asked {
        return Err(format!("first index {first}"));
    }
    if !(told.acknowledged..=told.submitted).contains(&next) {
        return Err(format!("next index {next}"));
    }
    for index in first..next {
        let record = stream.read(index).map_err(|error| format!("read: {error}"))?;
        if record.payload != payload(index) {
            return Err(format!("record {index} has other bytes"));
        }
    }
    let appended = stream.append(0, b"goes on").map_err(|error| format!("append: {error}"))?;
    if appended == next { Ok(()) } else { Err(format!("the next record got index {appended}")) }
}

/// Strikes every operation of the workload with every kind of fault; answers how many struck.
///
/// # Errors
/// The first finding.
pub(crate) fn strike_everywhere(seed: u64) -> Result<u64, String> {
    let disk = SimDisk::new(1);
    let told = workload(&disk, 5)?;
    if let Some(error) = &told.failure {
        return Err(format!("without faults: {error}"));
    }
    let operations = disk.op_count();
    let kinds = [
        FaultKind::Eio,
        FaultKind::Enospc,
        FaultKind::ShortWrite,
        FaultKind::SyncError,
        FaultKind::PartialSyncError,
    ];
    let mut fired = 0;
    for kind in kinds {
        for (at, forever) in (0..operations).flat_map(|at| [(at, false), (at, true)]) {
            let disk = SimDisk::new(seed * 1000 + at);
            let fault = DiskFault::at_op(at, kind);
            disk.inject(if forever { fault.forever() } else { fault });
            let context = |problem: String, told: &Told| {
                format!("seed {seed}, {kind:?} at operation {at}, forever {forever}: {problem}\n{told:?}")
            };
            let told = workload(&disk, 5).map_err(|problem| context(problem, &Told::default()))?;
            if disk.faults_fired() == 0 {
                continue;
            }
            fired += 1;
            if kind == FaultKind::ShortWrite && !forever && told.failure.is_some() {
                return Err(context("a short write was not continued".to_string(), &told));
            }
            check(&disk, &told).map_err(|problem| context(problem, &told))?;
        }
    }
    Ok(fired)
}

#[test]
fn every_fault_at_every_operation_is_reported_and_loses_nothing() {
    let mut fired = 0;
    for seed in 0..budget("LSFS_FAULT_SEEDS", 3) {
        fired += strike_everywhere(seed).unwrap_or_else(|finding| panic!("{finding}"));
    }
    eprintln!("{fired} faults");
    assert!(fired > 500);
}

#[test]
fn a_failed_data_write_is_indeterminate_and_then_poisoned() {
    for kind in [FaultKind::Eio, FaultKind::SyncError, FaultKind::Enospc] {
        let disk = SimDisk::new(3);
        let stream = RecordStream::open_in(sim_env(&disk, 3), DIR, options()).unwrap();
        stream.append(0, b"good").unwrap();
        disk.inject(DiskFault::nth(0, "", kind).only(OpKind::Write));
        match stream.append(0, b"lost?") {
            Err(Error::Indeterminate { records, cause }) => {
                assert_eq!(records, 1..2);
                let message = cause.to_string();
                assert!(message.contains("00000000000000000000.seg"), "{message}");
                if kind == FaultKind::Enospc {
                    assert!(matches!(*cause, Error::NoSpace { needed_bytes: 512, .. }), "{cause:?}");
                }
            }
            other => panic!("{kind:?}: {other:?}"),
        }
        check_stopped(&stream, 1).unwrap();
        assert_eq!(stream.read(0).unwrap().payload, b"good");
    }
}

#[test]
fn sync_after_a_failure_in_the_background_tells_what_failed() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let stream = RecordStream::open_in(sim_env(&disk, seed), DIR, options()).unwrap();
        stream.append(0, b"good").unwrap();
        disk.inject(DiskFault::nth(0, "", FaultKind::SyncError).only(OpKind::Write));
        // Written by the committer, here or at the next call, or by the sync itself.
        let pending = stream.append_async(0, b"lost?").unwrap();
        let buffered = stream.append_buffered(0, b"lost, too");
        let error = stream.sync().expect_err("the write failed");
        assert!(
            matches!(error, Error::Poisoned { .. } | Error::Indeterminate { .. }),
            "seed {seed}: {error:?} after {buffered:?}"
        );
        for (call, error) in [("sync", error), ("wait", pending.wait().expect_err("the write failed"))] {
            let message = error.to_string();
            assert!(
                message.contains("could not write") && message.contains("00000000000000000000.seg"),
                "seed {seed}, {call}: {message}"
            );
        }
        check_stopped(&stream, 1).unwrap();
    }
}

#[test]
fn read_errors_are_errors_not_corruption_and_not_the_end() {
    let disk = SimDisk::new(4);
    let stream = RecordStream::open_in(sim_env(&disk, 4), DIR, options()).unwrap();
    for index in 0..30 {
        stream.append(0, &payload(index)).unwrap();
    }
    stream.close().unwrap();
    drop(stream);
    let operations = 40;
    for at in 0..operations {
        let disk = disk.restart();
        disk.inject(DiskFault::nth(at, "", FaultKind::ReadEio));
        let opened = RecordStream::open_in(sim_env(&disk, 4), DIR, options());
        match opened {
            Err(error) => assert!(matches!(error, Error::Io { .. }), "read {at}: {error:?}"),
            Ok(stream) => {
                for index in 0..30 {
                    match stream.read(index) {
                        Ok(record) => assert_eq!(record.payload, payload(index)),
                        Err(error) => assert!(matches!(error, Error::Io { .. }), "read {at}: {error:?}"),
                    }
                }
            }
        }
        disk.clear_faults();
    }
}

#[test]
fn a_full_disk_keeps_what_was_acknowledged_and_goes_on_when_there_is_room() {
    let disk = SimDisk::with_capacity(5, 64 << 10);
    let mut acknowledged = 0;
    let error = {
        let stream = RecordStream::open_in(sim_env(&disk, 5), DIR, options()).unwrap();
        let error = loop {
            match stream.append(0, &payload(acknowledged)) {
                Ok(_) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        for index in 0..acknowledged {
            assert_eq!(stream.read(index).unwrap().payload, payload(index));
        }
        error
    };
    assert!(acknowledged > 20);
    let message = error.to_string();
    assert!(message.contains("no space left") && message.contains("bytes needed"), "{message}");
    disk.set_capacity(1 << 20);
    let stream = RecordStream::open_in(sim_env(&disk, 6), DIR, options()).unwrap();
    assert!(stream.next_index() >= acknowledged);
    stream.append(0, b"room again").unwrap();
}
