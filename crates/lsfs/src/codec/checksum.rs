//! How blocks and slices are checked.

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
            Checksum::Crc32c => crc32c::crc32c_append(seed, bytes),
        }
    }

    /// Whether `stored` is the checksum of `bytes`; always true for [`Checksum::None`].
    pub fn matches(self, seed: u32, bytes: &[u8], stored: u32) -> bool {
        self == Checksum::None || self.of(seed, bytes) == stored
    }
}
