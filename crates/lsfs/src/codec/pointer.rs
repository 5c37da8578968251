//! Where an entry of a segment set lies.

use super::{Fields, FrameLayout, put};

/// Bytes of an encoded [`Pointer`].
pub const POINTER_BYTES: usize = 12;
/// Set in the length of a pointer into a packed segment; no body is that long.
const PACKED: u32 = 1 << 31;

/// Names an entry of a segment set for as long as its segment is not reclaimed. Ordered from oldest to newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pointer {
    /// Number of the segment; never used again for another.
    pub segment: u32,
    /// Byte position of the frame in the segment's file.
    pub position: u32,
    /// Bytes of the body.
    pub len: u32,
    /// How frames lie in the segment.
    pub layout: FrameLayout,
}

impl Pointer {
    /// To the frame at a position of a segment with this layout.
    pub fn new(segment: u32, position: u32, len: u32, layout: FrameLayout) -> Pointer {
        Pointer { segment, position, len, layout }
    }

    /// The pointer's bytes.
    pub fn encode(&self) -> [u8; POINTER_BYTES] {
        let mut bytes = [0; POINTER_BYTES];
        put(&mut bytes, 0, &self.segment.to_le_bytes());
        put(&mut bytes, 4, &self.position.to_le_bytes());
        let packed = if self.layout == FrameLayout::Packed { PACKED } else { 0 };
        put(&mut bytes, 8, &(self.len | packed).to_le_bytes());
        bytes
    }

    /// Reads a pointer. Any bytes are one; what does not point to an entry is found by the read.
    pub fn decode(bytes: &[u8; POINTER_BYTES]) -> Pointer {
        let fields = Fields(bytes);
        let word = fields.u32(8);
        let layout = if word & PACKED == 0 { FrameLayout::Aligned } else { FrameLayout::Packed };
        Pointer::new(fields.u32(0), fields.u32(4), word & !PACKED, layout)
    }

    /// Position behind the frame.
    #[inline]
    pub fn end(&self) -> u64 {
        self.layout.frame_end(self.position.into(), self.len)
    }

    /// Bytes that the entry takes in its segment: header, body and the gap between them.
    #[inline]
    pub fn frame_bytes(&self) -> u64 {
        self.end() - u64::from(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_is_ordered_by_age() {
        let aligned = |segment, position, len| Pointer::new(segment, position, len, FrameLayout::Aligned);
        let pointer = aligned(7, 4096, 5);
        assert_eq!(Pointer::decode(&pointer.encode()), pointer);
        assert_eq!(pointer.frame_bytes(), 25);
        assert!(pointer < aligned(7, 4121, 0));
        assert!(pointer < aligned(8, 0, 0));
        assert_eq!(Pointer::decode(&[0xFF; POINTER_BYTES]).end(), {
            let (len, position) = (u32::MAX >> 1, u64::from(u32::MAX));
            FrameLayout::Packed.frame_end(position, len)
        });
    }

    #[test]
    fn the_layout_says_where_the_frame_ends() {
        let (packed, aligned) = (FrameLayout::Packed, FrameLayout::Aligned);
        for (len, narrow, wide) in [(5, 14, 25), (65_536, 65_553, 8192 - 5000 + 65_536)] {
            let pointer = Pointer::new(7, 5000, len, packed);
            assert_eq!((pointer.frame_bytes(), pointer.encode()[11]), (narrow, 0x80));
            assert_eq!(Pointer::decode(&pointer.encode()), pointer);
            assert_eq!(Pointer { layout: aligned, ..pointer }.frame_bytes(), wide);
        }
    }
}
