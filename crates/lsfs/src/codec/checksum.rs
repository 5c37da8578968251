//! How blocks and slices are checked.

use crc_fast::{CrcAlgorithm, Digest};

use crate::io::processor;

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4) of `bytes` continued from `seed`, the CRC of what stands before them; 0
/// if nothing does.
#[inline]
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    // The register holds the complement of the CRC.
    if let Some(register) = processor::crc32c_register(!seed, bytes) {
        return !register;
    }
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!seed));
    digest.update(bytes);
    digest.finalize() as u32
}

/// The checksum of a file's block headers and slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checksum {
    /// No checksums: stored as zero, never compared. For file systems that check below us; torn writes are then
    /// only recognised if the medium writes 4 KiB atomically.
    None,
    /// CRC-32C (Castagnoli, RFC 3720 appendix B.4), seeded so that bytes of another file, block or epoch never
    /// verify.
    #[default]
    Crc32c,
}

impl Checksum {
    /// The code stored in file headers.
    pub fn code(self) -> u8 {
        match self {
            Checksum::None => 1,
            Checksum::Crc32c => 2,
        }
    }

    /// The kind with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        [Checksum::None, Checksum::Crc32c].into_iter().find(|kind| kind.code() == code)
    }

    /// The checksum of `bytes` continued from `seed`; zero for [`Checksum::None`].
    pub fn of(self, seed: u32, bytes: &[u8]) -> u32 {
        match self {
            Checksum::None => 0,
            Checksum::Crc32c => crc32c(seed, bytes),
        }
    }

    /// Whether `stored` is the checksum of `bytes`; always true for [`Checksum::None`].
    pub fn matches(self, seed: u32, bytes: &[u8], stored: u32) -> bool {
        self == Checksum::None || self.of(seed, bytes) == stored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_crc_of_rfc_3720() {
        // Appendix B.4.
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(0, &[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(0, &[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(0, &ascending), 0x46DD_794E);
        assert_eq!(crc32c(0, &descending), 0x113F_DB5C);
        assert_eq!(crc32c(0, &[]), 0);
    }

    #[test]
    fn a_seed_continues() {
        // Bit by bit, as the polynomial says: no other library is asked.
        let plain = |bytes: &[u8]| {
            !bytes.iter().fold(!0u32, |register, byte| {
                (0..8).fold(register ^ u32::from(*byte), |register, _| {
                    if register & 1 == 1 { (register >> 1) ^ 0x82F6_3B78 } else { register >> 1 }
                })
            })
        };
        let bytes: Vec<u8> = (0..9000u32).map(|at| ((at * at) >> 3) as u8).collect();
        for len in (0..800).chain([1023, 4015, 9000]) {
            for cut in [0, 1, len / 3, len] {
                let cut = cut.min(len);
                assert_eq!(
                    crc32c(crc32c(0, &bytes[..cut]), &bytes[cut..len]),
                    plain(&bytes[..len]),
                    "{len} bytes cut at {cut}"
                );
            }
        }
    }
}
