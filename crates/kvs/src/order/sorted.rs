//! Keys in order, each with the place of its last command, in memory.

use std::cmp::Ordering;
use std::ops::Bound;

use lsfs::codec::Pointer;

/// The last command for a key in a stretch of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) pointer: Pointer,
    pub(crate) is_remove: bool,
}

/// Keys in ascending order, each once.
#[derive(Debug, Default)]
pub(crate) struct Sorted {
    /// All keys, one behind the other, and at least [`PIECE_BYTES`] behind them that say nothing.
    keys: Vec<u8>,
    /// Bytes of the keys.
    used: usize,
    slots: Vec<Slot>,
}

/// Keys are copied in pieces of this size, so that most copies are one load and one store.
const PIECE_BYTES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    key_at: usize,
    key_len: u16,
    spot: Spot,
}

impl Sorted {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn key(&self, n: usize) -> &[u8] {
        let slot = &self.slots[n];
        &self.keys[slot.key_at..slot.key_at + usize::from(slot.key_len)]
    }

    pub(crate) fn spot(&self, n: usize) -> Spot {
        self.slots[n].spot
    }

    /// Bytes of memory it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.keys.capacity() + self.slots.capacity() * size_of::<Slot>()
    }

    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.slots.clear();
    }

    /// Adds a key behind the last one: its first `shared` bytes are those of the last key.
    pub(crate) fn push_shared(&mut self, shared: usize, rest: &[u8], spot: Spot) {
        let (key_at, rest_at) = (self.used, self.used + shared);
        let end = rest_at + rest.len();
        if end + PIECE_BYTES > self.keys.len() {
            self.keys.resize((end + PIECE_BYTES).max(2 * self.keys.len()), 0);
        }
        if shared > 0 {
            let last = self.slots.last().map_or(0, |slot| slot.key_at);
            for at in (0..shared).step_by(PIECE_BYTES) {
                let piece: [u8; PIECE_BYTES] =
                    *self.keys[last + at..].first_chunk().expect("keys are padded");
                self.keys[key_at + at..][..PIECE_BYTES].copy_from_slice(&piece);
            }
        }
        self.keys[rest_at..end].copy_from_slice(rest);
        self.used = end;
        self.slots.push(Slot { key_at, key_len: (shared + rest.len()) as u16, spot });
    }

    /// Adds a key behind the last one.
    pub(crate) fn push(&mut self, key: &[u8], spot: Spot) {
        self.push_shared(0, key, spot);
    }

    /// The first key within a lower bound; [`Sorted::len`] if there is none.
    pub(crate) fn first_within(&self, bound: Bound<&[u8]>) -> usize {
        match bound {
            Bound::Unbounded => 0,
            Bound::Included(key) => self.count_below(|other| other < key),
            Bound::Excluded(key) => self.count_below(|other| other <= key),
        }
    }

    /// The number of keys within an upper bound.
    pub(crate) fn end_within(&self, bound: Bound<&[u8]>) -> usize {
        match bound {
            Bound::Unbounded => self.len(),
            Bound::Included(key) => self.count_below(|other| other <= key),
            Bound::Excluded(key) => self.count_below(|other| other < key),
        }
    }

    fn count_below(&self, is_below: impl Fn(&[u8]) -> bool) -> usize {
        self.slots.partition_point(|slot| {
            is_below(&self.keys[slot.key_at..slot.key_at + usize::from(slot.key_len)])
        })
    }

    /// What it says of a key.
    pub(crate) fn find(&self, key: &[u8]) -> Option<Spot> {
        let n = self.first_within(Bound::Included(key));
        (n < self.len() && self.key(n) == key).then(|| self.spot(n))
    }
}

/// Commands in the order of the log, to be sorted.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    commands: Sorted,
}

impl Gathered {
    pub(crate) fn push(&mut self, key: &[u8], spot: Spot) {
        self.commands.push(key, spot);
    }

    pub(crate) fn len(&self) -> usize {
        self.commands.len()
    }

    /// Forgets what came behind the first `len` commands.
    pub(crate) fn truncate(&mut self, len: usize) {
        if let Some(slot) = self.commands.slots.get(len) {
            self.commands.used = slot.key_at;
            self.commands.slots.truncate(len);
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.commands.memory_bytes()
    }

    /// The last command of each key, in the order of the keys.
    pub(crate) fn into_sorted(self) -> Sorted {
        let commands = self.commands;
        // The first bytes beside the number: most comparisons then touch no key.
        let mut order: Vec<(u64, u32)> =
            (0..commands.len()).map(|n| (head_of(commands.key(n)), n as u32)).collect();
        order.sort_unstable_by(|&(head, n), &(other_head, other)| {
            let by_key = || commands.key(n as usize).cmp(commands.key(other as usize));
            head.cmp(&other_head).then_with(by_key).then(n.cmp(&other))
        });
        let mut sorted = Sorted {
            keys: vec![0; commands.used + PIECE_BYTES],
            used: 0,
            slots: Vec::with_capacity(commands.slots.len()),
        };
        for (at, &(_, n)) in order.iter().enumerate() {
            let key = commands.key(n as usize);
            let is_last = order.get(at + 1).is_none_or(|&(_, next)| commands.key(next as usize) != key);
            if is_last {
                sorted.push(key, commands.spot(n as usize));
            }
        }
        sorted
    }
}

/// The first eight bytes of a key as a number that compares as they do.
fn head_of(key: &[u8]) -> u64 {
    let mut head = [0; 8];
    let len = key.len().min(8);
    head[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(head)
}

/// Whether a key lies within a lower bound.
pub(crate) fn is_above(key: &[u8], bound: Bound<&[u8]>) -> bool {
    match bound {
        Bound::Unbounded => true,
        Bound::Included(bound) => key >= bound,
        Bound::Excluded(bound) => key > bound,
    }
}

/// Whether a key lies within an upper bound.
pub(crate) fn is_below(key: &[u8], bound: Bound<&[u8]>) -> bool {
    match bound {
        Bound::Unbounded => true,
        Bound::Included(bound) => key.cmp(bound) != Ordering::Greater,
        Bound::Excluded(bound) => key.cmp(bound) == Ordering::Less,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(position: u32) -> Spot {
        Spot {
            pointer: Pointer::new(1, position, 3, lsfs::codec::FrameLayout::Packed),
            is_remove: position.is_multiple_of(3),
        }
    }

    #[test]
    fn the_last_command_of_each_key_is_kept_in_order() {
        let keys: [&[u8]; 9] =
            [b"b", b"", b"prefix 11", b"prefix 1", b"b", b"\xff", b"prefix 11", b"b\0", b""];
        let mut gathered = Gathered::default();
        for (n, key) in keys.iter().enumerate() {
            gathered.push(key, spot(n as u32));
        }
        gathered.push(b"not yet whole", spot(99));
        gathered.truncate(keys.len());
        assert_eq!(gathered.len(), keys.len());
        let sorted = gathered.into_sorted();
        let found: Vec<_> =
            (0..sorted.len()).map(|n| (sorted.key(n), sorted.spot(n).pointer.position)).collect();
        let wanted: [(&[u8], u32); 6] =
            [(b"", 8), (b"b", 4), (b"b\0", 7), (b"prefix 1", 3), (b"prefix 11", 6), (b"\xff", 5)];
        assert_eq!(found, wanted);
        assert_eq!(sorted.find(b"b"), Some(spot(4)));
        assert_eq!(sorted.find(b"c"), None);
        assert_eq!(sorted.find(b"\xff\xff"), None);
    }

    #[test]
    fn bounds_lie_where_a_map_has_them() {
        let mut sorted = Sorted::default();
        sorted.push(b"aa", spot(1));
        sorted.push_shared(1, b"c", spot(2));
        sorted.push_shared(2, b"", spot(3)); // A key twice would be wrong; it is only looked at by position here.
        assert_eq!((sorted.key(1), sorted.key(2)), (&b"ac"[..], &b"ac"[..]));
        for (bound, first, end) in [
            (Bound::Unbounded, 0, 3),
            (Bound::Included(&b"aa"[..]), 0, 1),
            (Bound::Excluded(&b"aa"[..]), 1, 0),
            (Bound::Included(&b"ab"[..]), 1, 1),
            (Bound::Excluded(&b"b"[..]), 3, 3),
        ] {
            assert_eq!((sorted.first_within(bound), sorted.end_within(bound)), (first, end), "{bound:?}");
            for n in 0..3 {
                assert_eq!(is_above(sorted.key(n), bound), n >= first, "{bound:?} {n}");
                assert_eq!(is_below(sorted.key(n), bound), n < end, "{bound:?} {n}");
            }
        }
    }
}
