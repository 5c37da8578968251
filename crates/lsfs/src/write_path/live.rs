//! The page on which a writer publishes what is durable, for readers in other processes.
//!
//! Recovery never reads it. A reader believes it only while a writer holds the lock, and only if its check word fits:
//! a page that a power failure left behind is at worst an earlier truth.

use crate::io::SharedPage;

const MAGIC: u64 = u64::from_le_bytes(*b"LSFSlive");
const WORDS: usize = 7;

/// What a writer publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    /// The writer's epoch.
    pub(crate) epoch: u32,
    /// Base index of the active segment.
    pub(crate) segment_base: u64,
    /// Records below this index are durable.
    pub(crate) durable_index: u64,
    /// Bytes of the active segment below this position are durable.
    pub(crate) durable_position: u64,
    /// Records below this index are purged.
    pub(crate) first_index: u64,
}

impl Published {
    /// Whether this speaks of the given epoch and active segment.
    pub(crate) fn is_of(&self, epoch: u32, segment_base: u64) -> bool {
        self.place() == (epoch, segment_base)
    }

    /// Epoch and base index of the active segment: a writer's places follow each other in this order.
    pub(crate) fn place(&self) -> (u32, u64) {
        (self.epoch, self.segment_base)
    }
}

/// Publishes; a single call is a few stores.
pub(crate) fn publish(page: &dyn SharedPage, state: &Published) {
    page.store(&words(state));
}

/// Withdraws what was published: the writer has gone.
pub(crate) fn withdraw(page: &dyn SharedPage) {
    page.store(&[0; WORDS]);
}

/// The page as it is, to be compared with a later look.
pub(crate) type Snapshot = [u64; WORDS];

/// The page's words, whatever they say.
pub(crate) fn snapshot(page: &dyn SharedPage) -> Snapshot {
    let mut words = [0; WORDS];
    page.load(&mut words);
    words
}

/// What is published now; `None` if nothing is, or if the look fell into a change every time.
pub(crate) fn published(page: &dyn SharedPage) -> Option<Published> {
    (0..100).find_map(|_| {
        let mut seen = [0; WORDS];
        page.load(&mut seen);
        let state = Published {
            epoch: u32::try_from(seen[1]).ok()?,
            segment_base: seen[2],
            durable_index: seen[3],
            durable_position: seen[4],
            first_index: seen[5],
        };
        (words(&state) == seen).then_some(state)
    })
}

fn words(state: &Published) -> [u64; WORDS] {
    let mut words = [
        MAGIC,
        u64::from(state.epoch),
        state.segment_base,
        state.durable_index,
        state.durable_position,
        state.first_index,
        0,
    ];
    // A mixture of two states must not pass: FNV-1a over the words (fast; this is no protection against malice).
    words[6] = words
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash: u64, word| (hash ^ word).wrapping_mul(0x0000_0100_0000_01B3));
    words
}
