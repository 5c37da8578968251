//! The words of a simulated shared page, with enough of their past to find them stale after a crash.

use std::sync::{Mutex, MutexGuard};

use super::rng::SplitMix;

const PAGE_WORDS: usize = 512;

#[derive(Debug, Default)]
pub(super) struct PageWords {
    past: Mutex<Past>,
}

#[derive(Debug, Default)]
struct Past {
    /// Each store with the number of the next disk operation at that time, oldest first.
    stores: Vec<(u64, Vec<u64>)>,
    /// A trace needs every store; otherwise the last two are enough for "current" and "stale".
    keep_all: bool,
}

impl PageWords {
    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    pub(super) fn keep_all(&self) {
        self.past().keep_all = true;
    }

    pub(super) fn store(&self, words: &[u64], now: u64) {
        let mut past = self.past();
        let words = &words[..words.len().min(PAGE_WORDS)];
        let mut next = past.stores.last().map_or_else(Vec::new, |(_, last)| last.clone());
        next.resize(next.len().max(words.len()), 0);
        next[..words.len()].copy_from_slice(words);
        past.stores.push((now, next));
        if !past.keep_all && past.stores.len() > 2 {
            past.stores.remove(0);
        }
    }

    pub(super) fn load(&self, words: &mut [u64]) {
        let past = self.past();
        let current = past.stores.last().map_or(&[][..], |(_, words)| words);
        for (at, word) in words.iter_mut().enumerate() {
            *word = current.get(at).copied().unwrap_or(0);
        }
    }

    /// What a power failure during operation `now` may leave: the current words, older ones, a mixture, or
    /// zeros.
    pub(super) fn after_crash(&self, now: u64, rng: &mut SplitMix) -> PageWords {
        let past = self.past();
        let stored = past.stores.partition_point(|(at, _)| *at <= now);
        let after = PageWords::default();
        if stored == 0 {
            return after;
        }
        let current = &past.stores[stored - 1].1;
        let older = &past.stores[rng.below(stored as u64) as usize].1;
        match rng.below(4) {
            0 => after.store(current, 0),
            1 => after.store(older, 0),
            2 => {
                let mix = |(at, word): (usize, &u64)| {
                    if rng.coin() { *word } else { older.get(at).copied().unwrap_or(0) }
                };
                let mixed: Vec<u64> = current.iter().enumerate().map(mix).collect();
                after.store(&mixed, 0);
            }
            _ => {}
        }
        after
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_crash_leaves_current_stale_mixed_or_zero_words_but_none_of_the_future() {
        let page = PageWords::default();
        page.keep_all();
        for at in 1..=3 {
            page.store(&[at, at * 10], at);
        }
        let seen: BTreeSet<[u64; 2]> = (0..200)
            .map(|seed| {
                let mut words = [7; 2];
                page.after_crash(2, &mut SplitMix::new(seed)).load(&mut words);
                words
            })
            .collect();
        assert_eq!(seen, BTreeSet::from([[0, 0], [1, 10], [2, 20], [1, 20], [2, 10]]));
    }

    #[test]
    fn without_a_trace_only_two_stores_are_kept() {
        let page = PageWords::default();
        (0..100).for_each(|at| page.store(&[at], at));
        assert_eq!(page.past().stores.len(), 2);
    }
}
