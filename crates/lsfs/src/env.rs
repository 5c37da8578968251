//! What the engine runs on.

use std::sync::Arc;

use crate::io::{Disk, OsDisk, OsRuntime, Runtime};

/// A disk and a runtime; cheap to clone.
#[derive(Clone, Debug)]
pub struct Env {
    /// Where bytes are kept.
    pub disk: Arc<dyn Disk>,
    /// Clock, randomness, background work.
    pub runtime: Arc<dyn Runtime>,
}

impl Default for Env {
    /// The operating system's disk and threads.
    fn default() -> Self {
        Env { disk: Arc::new(OsDisk::new()), runtime: Arc::new(OsRuntime::default()) }
    }
}
