//! The footer: the last frame of a sealed segment, which sums it up.

use super::{Fields, Tally, put};

/// Bytes of a footer before the user's own.
pub const FOOTER_BYTES: usize = 40;

const MAGIC: u32 = u32::from_le_bytes(*b"LFTR");
const VERSION: u32 = 1;

/// What the body of a footer frame says. The user's bytes follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Number of the segment.
    pub number: u32,
    /// What lies in the segment, without the footer.
    pub tally: Tally,
    /// Bytes of frames that were released when the segment was sealed.
    pub released_bytes: u32,
}

/// Why bytes are not a footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FooterFault {
    /// Too short.
    #[error("a footer has at least {FOOTER_BYTES} bytes, found {0}")]
    Length(usize),
    /// Not a footer.
    #[error("not a footer: magic {0:#010x}")]
    Magic(u32),
    /// From a newer program.
    #[error("footer version {0}, this program reads version {VERSION}: use a newer lsfs")]
    Version(u32),
}

impl Footer {
    /// The footer's bytes.
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        put(&mut bytes, 0, &MAGIC.to_le_bytes());
        put(&mut bytes, 4, &VERSION.to_le_bytes());
        put(&mut bytes, 8, &self.number.to_le_bytes());
        put(&mut bytes, 12, &self.tally.end.to_le_bytes());
        put(&mut bytes, 16, &self.tally.last.to_le_bytes());
        put(&mut bytes, 20, &self.tally.entries.to_le_bytes());
        put(&mut bytes, 24, &self.tally.body_bytes.to_le_bytes());
        put(&mut bytes, 28, &self.tally.digest.to_le_bytes());
        put(&mut bytes, 32, &self.released_bytes.to_le_bytes());
        bytes
    }

    /// Reads a footer and finds the user's bytes behind it. Integrity is the frame's checksum.
    pub fn decode(bytes: &[u8]) -> Result<(Footer, &[u8]), FooterFault> {
        if bytes.len() < FOOTER_BYTES {
            return Err(FooterFault::Length(bytes.len()));
        }
        let fields = Fields(bytes);
        if fields.u32(0) != MAGIC {
            return Err(FooterFault::Magic(fields.u32(0)));
        }
        if fields.u32(4) != VERSION {
            return Err(FooterFault::Version(fields.u32(4)));
        }
        let tally = Tally {
            end: fields.u32(12),
            last: fields.u32(16),
            entries: fields.u32(20),
            body_bytes: fields.u32(24),
            digest: fields.u32(28),
        };
        let footer = Footer { number: fields.u32(8), tally, released_bytes: fields.u32(32) };
        Ok((footer, &bytes[FOOTER_BYTES..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let tally = Tally { end: 9000, last: 8000, entries: 11, body_bytes: 4000, digest: 0xABCD };
        let footer = Footer { number: 3, tally, released_bytes: 20 };
        let mut bytes = footer.encode().to_vec();
        bytes.extend(b"mine");
        assert_eq!(Footer::decode(&bytes), Ok((footer, &b"mine"[..])));
        assert_eq!(Footer::decode(&bytes[..39]), Err(FooterFault::Length(39)));
        assert_eq!(Footer::decode(&[0; 40]), Err(FooterFault::Magic(0)));
        bytes[4] = 2;
        assert_eq!(Footer::decode(&bytes), Err(FooterFault::Version(2)));
    }
}
