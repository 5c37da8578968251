//! Known losers: the engine with one promise broken, chosen at run time, to prove that the tests would see it.
//!
//! A hook in the engine asks [`is`]; without the feature `testing` the answer is the constant `false`, and nothing of
//! it is left in the program. A mutant holds for one thread, so tests that run beside each other do not meet: on the
//! simulated runtime everything an engine does happens on the thread of its caller.
//! What each breaks, and which driver must catch it, is in docs/design/0010-proof-kit.md.

#[cfg(feature = "testing")]
use std::cell::Cell;

/// One broken promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "testing"),
    allow(
        unreachable_pub,
        dead_code,
        reason = "public with the feature `testing` only, some named by it only"
    )
)]
pub enum Mutant {
    /// Durable writes return before they are durable.
    AcknowledgeBeforeSync,
    /// A failed write or sync is taken for a success.
    SwallowedError,
    /// A failed sync is tried again, and what the second one says is believed.
    RetryAfterFailedSync,
    /// Directories are never synced.
    NoDirectorySync,
    /// A slice counts although its checksum does not fit: half of it may be old bytes.
    TornSliceAccepted,
    /// A block of an earlier life of the file counts.
    StaleBlockAccepted,
    /// A block of a lower epoch may follow one of a higher.
    EpochsMayFall,
    /// A reopened stream goes on in the epoch of the manifest.
    NoEpochAtOpen,
    /// A truncated stream goes on in the same epoch.
    NoEpochAtTruncation,
    /// Damage below a durable watermark is taken for a torn tail.
    DamageTruncated,
    /// Recovery believes the end that its search came to, without looking ahead.
    NoLookAhead,
    /// Blocks say that they are durable themselves.
    WatermarkTooHigh,
    /// A rotation does not tell the manifest.
    NoManifestAtRotation,
    /// A purge removes files before the manifest is durable.
    PurgeBeforeManifest,
    /// A truncation cleans the end before the manifest is durable.
    CleanBeforeManifest,
    /// Recovery relies on bytes of the active segment that it read and did not sync.
    NoSegmentSyncAtOpen,
    /// An opened pair of final data relies on a state that it read and did not sync.
    NoStateSyncAtOpen,
    /// A switch of final data writes over the file with the latest state.
    StateOverwritten,
    /// The loss of a durable state of final data goes unseen, and an older one is answered.
    OlderStateAccepted,
    /// A mark is set before its bytes are durable.
    MarkBeforeData,
    /// The beginning of a batch of a segment set counts without its end.
    HalfBatchAccepted,
    /// A frame of an earlier epoch continues a segment set.
    StaleFrameAccepted,
    /// A frame says that everything before it is durable though some of it was not synced.
    WitnessTooEarly,
    /// A synced append of a segment set does not sync what was written before it without a sync.
    OwnFramesSyncedOnly,
    /// A reclaim removes files before the list is durable.
    ReclaimBeforeList,
    /// Frames are written into the next segment of a set while the list still has the one before as the active one.
    NextBeforeList,
}

#[cfg(feature = "testing")]
thread_local! {
    static CHOSEN: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Whether this thread runs that mutant.
#[cfg(feature = "testing")]
pub(crate) fn is(mutant: Mutant) -> bool {
    CHOSEN.get() == Some(mutant)
}

/// Never: there are no mutants without the feature `testing`.
#[cfg(not(feature = "testing"))]
pub(crate) const fn is(_mutant: Mutant) -> bool {
    false
}

#[cfg(feature = "testing")]
impl Mutant {
    /// Every mutant.
    pub const ALL: [Mutant; 26] = [
        Mutant::AcknowledgeBeforeSync,
        Mutant::SwallowedError,
        Mutant::RetryAfterFailedSync,
        Mutant::NoDirectorySync,
        Mutant::TornSliceAccepted,
        Mutant::StaleBlockAccepted,
        Mutant::EpochsMayFall,
        Mutant::NoEpochAtOpen,
        Mutant::NoEpochAtTruncation,
        Mutant::DamageTruncated,
        Mutant::NoLookAhead,
        Mutant::WatermarkTooHigh,
        Mutant::NoManifestAtRotation,
        Mutant::PurgeBeforeManifest,
        Mutant::CleanBeforeManifest,
        Mutant::NoSegmentSyncAtOpen,
        Mutant::NoStateSyncAtOpen,
        Mutant::StateOverwritten,
        Mutant::OlderStateAccepted,
        Mutant::MarkBeforeData,
        Mutant::HalfBatchAccepted,
        Mutant::StaleFrameAccepted,
        Mutant::WitnessTooEarly,
        Mutant::OwnFramesSyncedOnly,
        Mutant::ReclaimBeforeList,
        Mutant::NextBeforeList,
    ];

    /// Runs `act` with this mutant in place of the engine, on this thread.
    pub fn during<T>(self, act: impl FnOnce() -> T) -> T {
        struct Restore(Option<Mutant>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CHOSEN.set(self.0);
            }
        }
        let _restore = Restore(CHOSEN.replace(Some(self)));
        act()
    }
}
