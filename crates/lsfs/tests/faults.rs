//! I/O errors at every operation: nothing acknowledged is lost, nothing is acknowledged after a failure.
//!
//! The same workload runs once without faults to count its operations, then once for every operation and kind of fault,
//! striking once and striking for good. After the failure the machine goes on (the process is killed, the disk is good
//! again) and the stream is reopened.

mod support;

use lsfs::io::{DiskFault, FaultKind, OpKind, SimDisk};
use lsfs::{Error, RecordStream, StreamOptions};
use support::{budget, sim_env};

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
fn workload(disk: &SimDisk, seed: u64) -> Told {
    let mut told = Told::default();
    if let Err(error) = try_workload(disk, seed, &mut told) {
        told.failure = Some(error);
    }
    told
}

fn try_workload(disk: &SimDisk, seed: u64, told: &mut Told) -> Result<(), Error> {
    for round in 0..3 {
        let stream = RecordStream::open_in(sim_env(disk, seed + round), DIR, options())?;
        for n in 0..12u64 {
            let index = told.submitted;
            told.submitted += 1;
            let appended = if n % 3 == 0 {
                stream.append_batch(&[(0, payload(index))]).map(|_| index)
            } else {
                stream.append(0, &payload(index))
            };
            match appended {
                Ok(at) => {
                    assert_eq!(at, index);
                    told.acknowledged = index + 1;
                }
                Err(error) => {
                    assert_stopped(&stream, told.acknowledged);
                    return Err(error);
                }
            }
        }
        if round == 1 {
            told.purge_asked = told.acknowledged - 5;
            if let Err(error) = stream.purge_before(told.purge_asked) {
                assert_stopped(&stream, told.acknowledged);
                return Err(error);
            }
            told.purged = told.purge_asked;
        }
        stream.close()?;
    }
    Ok(())
}

/// After a failure nothing is acknowledged any more, and what was acknowledged is still read.
fn assert_stopped(stream: &RecordStream, acknowledged: u64) {
    assert!(matches!(stream.append(0, b"more"), Err(Error::Poisoned { .. })));
    assert!(matches!(stream.sync(), Ok(()) | Err(Error::Poisoned { .. } | Error::Indeterminate { .. })));
    assert!(matches!(stream.truncate_after(0), Err(Error::Poisoned { .. })));
    assert!(stream.durable_index() >= acknowledged);
    assert_eq!(stream.next_index(), stream.durable_index(), "nothing unacknowledged is shown");
}

fn check(disk: &SimDisk, told: &Told, context: &str) {
    disk.clear_faults();
    let disk = disk.restart();
    let stream = RecordStream::open_in(sim_env(&disk, 99), DIR, options())
        .unwrap_or_else(|error| panic!("{context}: reopen: {error}\n{told:?}"));
    let (first, next) = (stream.first_index(), stream.next_index());
    assert!(first == told.purged || first == told.purge_asked, "{context}: first {first}, {told:?}");
    assert!((told.acknowledged..=told.submitted).contains(&next), "{context}: next {next}, {told:?}");
    for index in first..next {
        let record = stream.read(index).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(record.payload, payload(index), "{context}: record {index}");
    }
    assert_eq!(stream.append(0, b"goes on").unwrap(), next, "{context}");
}

#[test]
fn every_fault_at_every_operation_is_reported_and_loses_nothing() {
    let disk = SimDisk::new(1);
    let told = workload(&disk, 5);
    assert!(told.failure.is_none(), "without faults: {:?}", told.failure);
    let operations = disk.op_count();
    assert!(operations > 60, "{operations} operations");
    let kinds = [
        FaultKind::Eio,
        FaultKind::Enospc,
        FaultKind::ShortWrite,
        FaultKind::SyncError,
        FaultKind::PartialSyncError,
    ];
    let mut fired = 0;
    for seed in 0..budget("LSFS_FAULT_SEEDS", 3) {
        for kind in kinds {
            for at in 0..operations {
                for forever in [false, true] {
                    let disk = SimDisk::new(seed * 1000 + at);
                    let fault = DiskFault::at_op(at, kind);
                    disk.inject(if forever { fault.forever() } else { fault });
                    let told = workload(&disk, 5);
                    let context = format!("seed {seed}, {kind:?} at operation {at}, forever {forever}");
                    if disk.faults_fired() == 0 {
                        continue;
                    }
                    fired += 1;
                    if kind == FaultKind::ShortWrite && !forever {
                        assert!(told.failure.is_none(), "{context}: a short write is continued: {told:?}");
                    }
                    check(&disk, &told, &context);
                }
            }
        }
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
        assert_stopped(&stream, 1);
        assert_eq!(stream.read(0).unwrap().payload, b"good");
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
