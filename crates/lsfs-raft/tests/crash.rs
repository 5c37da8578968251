//! Power failures during everything a Raft log does.
//!
//! A seeded workload of terms, votes, appends, replacements, deletions, purges and snapshots runs on the simulated disk
//! and is recorded. For every operation of the recording the disk is made that a machine would find if power failed
//! during it; the log is opened there and compared with what had been acknowledged. What was called in order is there in
//! order: a vote only with every entry appended before it.
//!
//! The long run: `LSFS_RAFT_CRASH_IMAGES=1000000 cargo test --release -p lsfs-raft --test crash`. A failure prints its seed;
//! `LSFS_RAFT_CRASH_SEED=n` starts there.

mod support;

use lsfs::io::{CrashStyle, SimDisk, Trace};
use lsfs_raft::RaftLog;
use support::workload::{self, Call, Model, Run};
use support::{Choices, budget, sim_env, small_options};

const DIR: &str = "/raft";

fn run(disk: &SimDisk, seed: u64, generation: u64, model: Model) -> (Vec<Call>, Trace) {
    disk.start_trace();
    let log = RaftLog::open_in(sim_env(disk, seed * 31 + generation), DIR, small_options(1)).unwrap();
    let end = disk.trace_len();
    let opened =
        Call { name: "open".to_string(), start: 0, end, before: model.clone(), after: model.clone() };
    let mut run = Run::new(disk, log, model, seed, generation);
    run.calls.push(opened);
    for _ in 0..14 {
        run.step().unwrap();
    }
    let trace = disk.stop_trace();
    // What the log still wants to write goes to a disk that nobody looks at.
    drop(disk.restart());
    (run.calls, trace)
}

/// Opens what a crash left and reads all of it.
fn recover(image: &SimDisk, seed: u64) -> Result<Model, String> {
    let opened = RaftLog::open_in(sim_env(image, seed), DIR, small_options(1));
    let log = opened.map_err(|error| format!("open: {error}"))?;
    let mut model = workload::read(&log)?;
    model.all_durable();
    drop(image.restart());
    Ok(model)
}

fn judge(calls: &[Call], point: usize, found: &Model) -> Result<(), String> {
    let under_way = calls.iter().find(|call| (call.start..call.end).contains(&point));
    match under_way {
        Some(call) => call.admits_during(found),
        None => {
            calls.iter().rfind(|call| call.end <= point).expect("the open is a call").admits_behind(found)
        }
    }
}

#[test]
fn no_crash_loses_or_reorders_what_was_acknowledged() {
    let wanted = budget("LSFS_RAFT_CRASH_IMAGES", 12_000);
    let first_seed = budget("LSFS_RAFT_CRASH_SEED", 1);
    let (mut images, mut seed) = (0, first_seed);
    while images < wanted {
        images += crash_everywhere(seed);
        seed += 1;
    }
    eprintln!("{images} crash images, seeds {first_seed}..{seed}");
}

fn crash_everywhere(seed: u64) -> u64 {
    let mut images = 0;
    let mut disk = SimDisk::new(seed);
    let mut model = Model::empty();
    for generation in 0..4 {
        let (calls, trace) = run(&disk, seed, generation, model.clone());
        let mut crash_images = trace.images();
        let mut choices = Choices::new(seed ^ (generation << 32));
        let next_start = choices.below(trace.len() as u64 + 1) as usize;
        let mut next = None;
        loop {
            let point = crash_images.crash_point();
            // Every point, in styles drawn anew for each.
            let count = if crash_images.unsynced() == 0 { 1 } else { 3 };
            for _ in 0..count {
                let style = CrashStyle::ALL[choices.below(CrashStyle::ALL.len() as u64) as usize];
                let image = crash_images.image(style, choices.next());
                let original = image.power_fail(CrashStyle::EverythingUnsynced, 0);
                let context = |problem: String| {
                    let at = trace.describe(point);
                    let calls: Vec<_> = calls
                        .iter()
                        .map(|call| format!("{}..{} {}", call.start, call.end, call.name))
                        .collect();
                    let calls = calls.join("\n");
                    format!("seed {seed}, generation {generation}, {at}, style {style:?}: {problem}\n{calls}")
                };
                let found = recover(&image, choices.next());
                let found = found.unwrap_or_else(|problem| panic!("{}", context(problem)));
                judge(&calls, point, &found).unwrap_or_else(|problem| panic!("{}", context(problem)));
                images += 1;
                if point >= next_start && next.is_none() && choices.below(3) == 0 {
                    next = Some((original, found));
                }
            }
            if !crash_images.advance() {
                break;
            }
        }
        let Some((image, found)) = next else { return images };
        (disk, model) = (image, found);
    }
    images
}
