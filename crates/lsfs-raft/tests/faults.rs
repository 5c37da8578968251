//! I/O errors at every operation of everything a Raft log does: none is swallowed, after one nothing is acknowledged
//! until the log is opened again, and then all that was acknowledged is there.
//!
//! More seeds: `LSFS_RAFT_FAULT_SEEDS=20 cargo test --release -p lsfs-raft --test faults`.

mod support;

use lsfs::io::{CrashStyle, DiskFault, FaultKind, SimDisk};
use lsfs_raft::RaftLog;
use support::workload::{self, Call, Model, Run};
use support::{budget, sim_env, small_options};

const DIR: &str = "/raft";
const STEPS: usize = 30;
const OPENS: u64 = 2;

/// How the workload ended.
struct Outcome {
    /// The last call that was made; what it answered is next to it.
    last: Call,
    /// Whether the last call failed, with its error.
    failed: Option<String>,
    /// Calls that failed and left the log open.
    survived: usize,
    /// Indexes that a callback said were durable.
    told: Vec<u64>,
}

fn opening(before: &Model, after: &Model) -> Call {
    Call { name: "open".to_string(), start: 0, end: 0, before: before.clone(), after: after.clone() }
}

/// Opens the log several times and works on it, until something fails for good.
fn run_workload(disk: &SimDisk, seed: u64) -> Outcome {
    let mut model = Model::empty();
    let mut outcome = Outcome { last: opening(&model, &model), failed: None, survived: 0, told: Vec::new() };
    for generation in 0..OPENS {
        outcome.last = opening(&model, &model);
        let log = match RaftLog::open_in(sim_env(disk, seed * 31 + generation), DIR, small_options(1)) {
            Ok(log) => log,
            Err(error) => {
                outcome.failed = Some(error.to_string());
                return outcome;
            }
        };
        let mut run = Run::new(disk, log, model.clone(), seed, generation);
        for _ in 0..STEPS {
            let calls = run.calls.len();
            let stepped = run.step();
            let Some(call) = run.calls.get(calls).cloned() else { continue };
            outcome.last = call;
            let Err(error) = stepped else { continue };
            if workload::is_stopped(&run.log) {
                check_stopped(&run.log, &error);
                outcome.failed = Some(error.to_string());
                outcome.told = run.told.lock().unwrap().clone();
                return outcome;
            }
            // The bytes of a snapshot could not be written: the log itself goes on, and nothing has changed.
            assert!(outcome.last.name.contains("snapshot"), "{}: {error}", outcome.last.name);
            outcome.survived += 1;
            run.model.all_durable();
        }
        outcome.told = run.told.lock().unwrap().clone();
        let (log, mut after) = (run.log, run.model);
        let before = after.clone();
        after.all_durable();
        outcome.last = Call { name: "stop".to_string(), start: 0, end: 0, before, after: after.clone() };
        if let Err(error) = log.stop() {
            outcome.failed = Some(error.to_string());
            return outcome;
        }
        outcome.told.clear();
        model = after;
    }
    outcome
}

/// Nothing is acknowledged any more; what is there can be asked for.
fn check_stopped(log: &RaftLog, error: &lsfs_raft::Error) {
    for (name, outcome) in workload::refused_calls(log) {
        assert!(outcome.is_err(), "{name} was acknowledged after: {error}");
    }
    log.statistics().unwrap();
}

/// Opens what the failure left, on a disk that is good again.
fn check(disk: &SimDisk, outcome: &Outcome, style: Option<CrashStyle>, context: &str) {
    disk.clear_faults();
    let disk = match style {
        None => disk.restart(),
        Some(style) => disk.power_fail(style, 7),
    };
    let log = RaftLog::open_in(sim_env(&disk, 99), DIR, small_options(1))
        .unwrap_or_else(|error| panic!("{context}: reopen: {error}\n{:?}", outcome.last));
    let found = workload::read(&log).unwrap_or_else(|problem| panic!("{context}: {problem}"));
    let judged = match outcome.failed {
        Some(_) => outcome.last.admits_during(&found),
        None => outcome.last.admits_behind(&found),
    };
    judged.unwrap_or_else(|problem| panic!("{context}: {problem}"));
    for index in &outcome.told {
        assert!(*index < found.next(), "{context}: a callback said that entry {index} is durable");
    }
    log.set_uri("goes on").unwrap_or_else(|error| panic!("{context}: {error}"));
    let entry = lsfs_raft::NewEntry::command(1 << 40, 1, b"goes on");
    let index = log.append(&entry).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(log.read(index).unwrap().command, b"goes on", "{context}");
}

#[test]
fn every_fault_at_every_operation_is_reported_and_loses_nothing() {
    let kinds = [
        FaultKind::Eio,
        FaultKind::Enospc,
        FaultKind::ShortWrite,
        FaultKind::SyncError,
        FaultKind::PartialSyncError,
    ];
    let (mut fired, mut reported, mut survived) = (0, 0, 0);
    for seed in 1..=budget("LSFS_RAFT_FAULT_SEEDS", 1) {
        let disk = SimDisk::new(seed);
        let plain = run_workload(&disk, seed);
        assert!(plain.failed.is_none() && plain.survived == 0, "without faults: {:?}", plain.failed);
        let operations = disk.op_count();
        for kind in kinds {
            for (at, forever) in (0..operations).flat_map(|at| [(at, false), (at, true)]) {
                let disk = SimDisk::new(seed * 1000 + at);
                let fault = DiskFault::at_op(at, kind);
                disk.inject(if forever { fault.forever() } else { fault });
                let outcome = run_workload(&disk, seed);
                if disk.faults_fired() == 0 {
                    continue;
                }
                fired += 1;
                reported += usize::from(outcome.failed.is_some());
                survived += outcome.survived;
                let context = format!(
                    "seed {seed}, {kind:?} at operation {at}, forever {forever}, last call {}, failed {:?}",
                    outcome.last.name, outcome.failed
                );
                if kind == FaultKind::ShortWrite && !forever {
                    assert!(outcome.failed.is_none(), "{context}: a short write is continued");
                }
                let styles = [None, Some(CrashStyle::ALL[at as usize % CrashStyle::ALL.len()])];
                check(&disk, &outcome, styles[(at % 2) as usize], &context);
            }
        }
        eprintln!("seed {seed}: {operations} operations");
    }
    eprintln!("{fired} faults, {reported} reported, {survived} survived by the log");
    assert!(fired > 500 && reported > 500, "{fired} {reported}");
}
