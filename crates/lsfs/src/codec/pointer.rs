//! Where an entry of a segment set lies.

use super::{Fields, frame_end, put};

/// Bytes of an encoded [`Pointer`].
pub const POINTER_BYTES: usize = 12;

/// Names an entry of a segment set for as long as its segment is not reclaimed. Ordered from oldest to newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pointer {
    /// Number of the segment; never used again for another.
    pub segment: u32,
    /// Byte position of the frame in the segment's file.
    pub position: u32,
    /// Bytes of the body.
    pub len: u32,
}

impl Pointer {
    /// The pointer's bytes.
    pub fn encode(&self) -> [u8; POINTER_BYTES] {
        let mut bytes = [0; POINTER_BYTES];
        put(&mut bytes, 0, &self.segment.to_le_bytes());
        put(&mut bytes, 4, &self.position.to_le_bytes());
        put(&mut bytes, 8, &self.len.to_le_bytes());
        bytes
    }

    /// Reads a pointer. Any bytes are one; what does not point to an entry is found by the read.
    pub fn decode(bytes: &[u8; POINTER_BYTES]) -> Pointer {
        let fields = Fields(bytes);
        Pointer { segment: fields.u32(0), position: fields.u32(4), len: fields.u32(8) }
    }

    /// Position behind the frame.
    pub fn end(&self) -> u64 {
        frame_end(self.position.into(), self.len)
    }

    /// Bytes that the entry takes in its segment: header, body and the gap between them.
    pub fn frame_bytes(&self) -> u64 {
        self.end() - u64::from(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_is_ordered_by_age() {
        let pointer = Pointer { segment: 7, position: 4096, len: 5 };
        assert_eq!(Pointer::decode(&pointer.encode()), pointer);
        assert_eq!(pointer.frame_bytes(), 25);
        assert!(pointer < Pointer { segment: 7, position: 4121, len: 0 });
        assert!(pointer < Pointer { segment: 8, position: 0, len: 0 });
        assert_eq!(Pointer::decode(&[0xFF; POINTER_BYTES]).end(), {
            let (len, position) = (u32::MAX, u64::from(u32::MAX));
            frame_end(position, len)
        });
    }
}
