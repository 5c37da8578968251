//! The simulated disk and runtime: the fault model of every test above the engine.
//!
//! [`SimDisk`] keeps, for each file, what is *durable* and the list of changes that are not yet; what
//! programs see is both together. A power failure is then a choice of which of the pending changes survive,
//! sector by sector: [`CrashStyle`] names the choices, [`Trace`] and [`CrashImages`] make the disk that a
//! machine would find for any moment of a recorded run. [`SimRuntime`] has no threads: background steps run
//! inline, in an order drawn from a seed. Everything is a function of the seeds, so a failing test is
//! replayed by its numbers.
//!
//! **Media assumptions**, the same as in docs/format.md: a 512-byte sector is written whole or not at all; a
//! sector that is not being written does not change; what a sync confirmed stays, except where a test damages
//! it. Nothing is assumed about the order in which unsynced sectors, lengths and names reach the medium,
//! except that changes of one file's length keep their order.
//!
//! The parts: `content` (the bytes of a file), `medium` (durable and pending state, what each operation does
//! to it), `crash` (which pending changes survive), `trace` (recorded runs and their images), `state` (what
//! programs see), `disk` and `file` (the traits), `fault`, `page` (shared pages), `runtime`.

mod content;
mod crash;
mod disk;
mod fault;
mod file;
mod medium;
mod page;
mod rng;
mod runtime;
mod state;
mod trace;

pub use crash::CrashStyle;
pub use disk::SimDisk;
pub use fault::{DiskFault, FaultAt, FaultKind, OpKind};
pub use runtime::SimRuntime;
pub use trace::{CrashImages, Trace};

#[cfg(test)]
mod tests;
