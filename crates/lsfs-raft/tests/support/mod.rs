//! What several tests need: an environment on the simulated disk, seeded choices, budgets.

#![allow(dead_code, reason = "each test uses a part of this")]

pub(crate) mod workload;

use std::sync::Arc;

use lsfs::Env;
use lsfs::io::{SimDisk, SimRuntime};
use lsfs_raft::LogOptions;

/// The simulated disk with a runtime that has no threads. Each open wants a seed of its own.
pub(crate) fn sim_env(disk: &SimDisk, seed: u64) -> Env {
    Env { disk: Arc::new(disk.clone()), runtime: Arc::new(SimRuntime::new(seed)) }
}

/// Small blocks and segments, so that little data crosses all their boundaries.
pub(crate) fn small_options(first_index: u64) -> LogOptions {
    let stream = lsfs::StreamOptions {
        block_bytes: 512,
        segment_bytes: 512 * 12,
        in_flight_bytes: 512 * 6,
        cache_bytes: 512 * 8,
        ..lsfs::StreamOptions::default()
    };
    LogOptions { first_index, stream, snapshot_mark_bytes: 1000, ..LogOptions::default() }
}

/// Seeded choices (splitmix64, public domain by Sebastiano Vigna).
#[derive(Clone, Debug)]
pub(crate) struct Choices(u64);

impl Choices {
    pub(crate) fn new(seed: u64) -> Self {
        Choices(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A number from the environment, for the long runs.
pub(crate) fn budget(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}
