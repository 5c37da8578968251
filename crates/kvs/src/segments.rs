//! Addresses of the index, and the places in the log that they stand for.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::index::ADDRESS_BITS;

/// Bits of an address that say the position in a segment.
const POSITION_BITS: u32 = 27;
/// The most segments that can be live at once.
const SLOTS_MAX: usize = 1 << (ADDRESS_BITS - POSITION_BITS);
/// A frame may begin before this position.
pub(crate) const POSITION_MAX: u32 = (1 << POSITION_BITS) - 1;

/// Segment numbers grow for ever, an address has 21 bits for the segment: so it names a slot of this table, and slots
/// are used again.
///
/// **Invariant.** A slot is given up only when the index has no address with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SegmentSlots {
    numbers: Vec<Option<u32>>,
    slots: BTreeMap<u32, u32>,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) address: u64,
    pub(crate) segment: u32,
    pub(crate) position: u32,
}

impl SegmentSlots {
    /// The table with these slots; `None` if it is not one.
    pub(crate) fn from_pairs(pairs: impl Iterator<Item = (u32, u32)>) -> Option<SegmentSlots> {
        let mut table = SegmentSlots::default();
        for (slot, number) in pairs {
            let at = slot as usize;
            if at >= SLOTS_MAX || table.slots.insert(number, slot).is_some() {
                return None;
            }
            if table.numbers.len() <= at {
                table.numbers.resize(at + 1, None);
            }
            if table.numbers[at].replace(number).is_some() {
                return None;
            }
        }
        Some(table)
    }

    /// The slot of a segment, if it has one.
    pub(crate) fn slot_of(&self, segment: u32) -> Option<u32> {
        self.slots.get(&segment).copied()
    }

    /// The address of a place; `None` if it cannot have one: too many segments, or too far in one.
    pub(crate) fn address(&mut self, segment: u32, position: u32) -> Option<u64> {
        if let Some(slot) = self.slot_of(segment) {
            return address_of(slot, position);
        }
        let free = self.numbers.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.numbers.len());
        if slot == SLOTS_MAX {
            return None;
        }
        if free.is_none() {
            self.numbers.push(None);
        }
        self.numbers[slot] = Some(segment);
        self.slots.insert(segment, slot as u32);
        address_of(slot as u32, position)
    }

    /// The address of a place, if its segment has a slot.
    pub(crate) fn known_address(&self, segment: u32, position: u32) -> Option<u64> {
        address_of(self.slot_of(segment)?, position)
    }

    /// The place of an address; `None` if its slot is not in use.
    pub(crate) fn locate(&self, address: u64) -> Option<Location> {
        let segment = *self.numbers.get((address >> POSITION_BITS) as usize)?;
        Some(Location { address, segment: segment?, position: address as u32 & POSITION_MAX })
    }

    /// A place whose segment has a slot.
    pub(crate) fn location(&self, segment: u32, position: u32) -> Option<Location> {
        Some(Location { address: self.known_address(segment, position)?, segment, position })
    }

    /// The addresses that a segment may have; `None` if it has no slot.
    pub(crate) fn addresses_of(&self, segment: u32) -> Option<Range<u64>> {
        let slot = u64::from(self.slot_of(segment)?);
        Some(slot << POSITION_BITS..(slot + 1) << POSITION_BITS)
    }

    /// The segments that have a slot.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.slots.keys().copied()
    }

    /// The segment is gone.
    pub(crate) fn forget(&mut self, segment: u32) {
        if let Some(slot) = self.slots.remove(&segment) {
            self.numbers[slot as usize] = None;
        }
    }
}

/// The address of a position in a slot's segment; `None` if it lies too far.
fn address_of(slot: u32, position: u32) -> Option<u64> {
    (position <= POSITION_MAX).then_some(u64::from(slot) << POSITION_BITS | u64::from(position))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_and_addresses_lead_back() {
        let mut slots = SegmentSlots::default();
        let one = slots.address(1_000_000, 5).unwrap();
        let two = slots.address(1_000_001, POSITION_MAX).unwrap();
        assert_eq!(slots.locate(one), Some(Location { address: one, segment: 1_000_000, position: 5 }));
        assert_eq!(slots.locate(two).unwrap().position, POSITION_MAX);
        assert_eq!(slots.address(1_000_001, POSITION_MAX + 1), None);
        slots.forget(1_000_000);
        slots.forget(77);
        assert_eq!(slots.locate(one), None);
        assert_eq!(slots.address(2_000_000, 5), Some(one));
        let numbers = [2_000_000, 1_000_001];
        let pairs = numbers.into_iter().map(|number| (slots.slot_of(number).unwrap(), number));
        assert_eq!(SegmentSlots::from_pairs(pairs).unwrap(), slots);
        assert!(slots.locate(1 << 47).is_none());
    }

    #[test]
    fn tables_that_contradict_themselves_are_refused() {
        assert!(SegmentSlots::from_pairs([(0, 5), (1, 5)].into_iter()).is_none());
        assert!(SegmentSlots::from_pairs([(0, 5), (0, 6)].into_iter()).is_none());
        assert!(SegmentSlots::from_pairs([(u32::MAX, 5)].into_iter()).is_none());
    }
}
