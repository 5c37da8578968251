//! Per-record compression.

/// How a record's payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    /// Stored as given.
    #[default]
    None,
    /// LZ4 block format: fast, about 2x on text.
    Lz4,
    /// Zstandard, level 3: slower, about 3x on text.
    Zstd,
}

const ZSTD_LEVEL: i32 = 3;

/// Why stored bytes could not be decompressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecompressFault {
    /// The stored bytes are not valid compressed data.
    #[error("stored payload does not decompress: {0}")]
    Invalid(String),
    /// They decompress to another length than the record header says.
    #[error("stored payload decompresses to {found} bytes, the record says {expected}")]
    Length {
        /// In the record header.
        expected: u32,
        /// Of the result.
        found: usize,
    },
}

impl Compression {
    /// The code stored in record headers.
    pub fn code(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Lz4 => 1,
            Compression::Zstd => 2,
        }
    }

    /// The kind with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        [Compression::None, Compression::Lz4, Compression::Zstd].into_iter().find(|kind| kind.code() == code)
    }

    /// The compressed payload, or `None` if compression is off or would not make it smaller.
    pub fn compress(self, payload: &[u8]) -> Option<Vec<u8>> {
        let compressed = match self {
            Compression::None => return None,
            Compression::Lz4 => lz4_flex::block::compress(payload),
            Compression::Zstd => zstd::bulk::compress(payload, ZSTD_LEVEL).ok()?,
        };
        (compressed.len() < payload.len()).then_some(compressed)
    }

    /// Decompresses `stored` into exactly `raw_bytes` bytes, which the caller has checked against its limit.
    pub fn decompress(self, stored: &[u8], raw_bytes: u32) -> Result<Vec<u8>, DecompressFault> {
        let expected = raw_bytes as usize;
        let raw = match self {
            Compression::None => stored.to_vec(),
            Compression::Lz4 => lz4_flex::block::decompress(stored, expected)
                .map_err(|error| DecompressFault::Invalid(error.to_string()))?,
            Compression::Zstd => zstd::bulk::decompress(stored, expected)
                .map_err(|error| DecompressFault::Invalid(error.to_string()))?,
        };
        if raw.len() != expected {
            return Err(DecompressFault::Length { expected: raw_bytes, found: raw.len() });
        }
        Ok(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_wrong_lengths() {
        let text = b"the same words, the same words, the same words, the same words".repeat(20);
        for kind in [Compression::Lz4, Compression::Zstd] {
            let stored = kind.compress(&text).unwrap();
            assert!(stored.len() < text.len() / 4);
            assert_eq!(kind.decompress(&stored, text.len() as u32).unwrap(), text);
            assert!(kind.decompress(&stored, text.len() as u32 + 1).is_err());
            assert!(kind.decompress(&stored, text.len() as u32 - 1).is_err());
            assert!(kind.decompress(b"\xff\xff\xff", 100).is_err());
            assert_eq!(kind.compress(b"short"), None, "never larger than the payload");
        }
    }
}
