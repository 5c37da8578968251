//! The page on which a writer publishes what is durable, for readers in other processes.
//!
//! Recovery never reads it. A reader believes it only while a writer holds the lock, and only if its check word fits:
//! a page that a power failure left behind is at worst an earlier truth.

use crate::env::Env;
use crate::io::SharedPage;

const MAGIC: u64 = u64::from_le_bytes(*b"LSFSlive");
const WORDS: usize = 7;
/// A change is a few stores, so a look that falls into one is soon repeated; ...
const LOOKS_IN_A_ROW: u32 = 100;
/// ... after so many no writer is in the middle of one: a power failure has left the page.
const LOOKS_MAX: u32 = 20_000;

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

/// What a page says, if there is one; `None` also if nothing is published, or a mixture that no writer completes.
pub(crate) fn published(page: Option<&dyn SharedPage>, env: &Env) -> Option<Published> {
    let page = page?;
    for look in 0..LOOKS_MAX {
        let seen = snapshot(page);
        if seen == [0; WORDS] {
            return None;
        }
        let state = Published {
            epoch: seen[1] as u32,
            segment_base: seen[2],
            durable_index: seen[3],
            durable_position: seen[4],
            first_index: seen[5],
        };
        if words(&state) == seen {
            return Some(state);
        }
        if look >= LOOKS_IN_A_ROW {
            // The writer has lost its processor in the middle of a change.
            env.runtime.yield_now();
        }
    }
    None
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A page whose writer has stopped in the middle of a change, for so many looks.
    #[derive(Debug)]
    struct Torn {
        looks_left: Mutex<u32>,
        state: Published,
    }

    impl SharedPage for Torn {
        fn store(&self, _words: &[u64]) {}

        fn load(&self, target: &mut [u64]) {
            let mut left = self.looks_left.lock().unwrap();
            target.copy_from_slice(&words(&self.state));
            if *left > 0 {
                *left -= 1;
                target[3] += 1;
            }
        }
    }

    #[test]
    fn a_change_that_takes_long_is_waited_for_and_one_that_nobody_completes_is_not() {
        let state =
            Published { epoch: 1, segment_base: 2, durable_index: 3, durable_position: 4, first_index: 5 };
        let look = |looks_left| {
            published(Some(&Torn { looks_left: Mutex::new(looks_left), state }), &Env::default())
        };
        assert_eq!(look(0), Some(state));
        assert_eq!(look(LOOKS_MAX / 2), Some(state));
        assert_eq!(look(u32::MAX), None);
    }
}
