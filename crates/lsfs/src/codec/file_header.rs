//! Block 0 of every file: what the file is.

use std::fmt;

use super::{Checksum, Compression, Fields, FrameLayout, crc32c, is_block_size, put};

/// Bytes of the file header; the rest of block 0 is zero.
pub const FILE_HEADER_BYTES: usize = 80;
/// The newest version that this code reads. It writes the oldest that knows what the file needs.
pub const FORMAT_VERSION: u32 = 2;
/// The version of files that need nothing newer.
const VERSION_FIRST: u32 = 1;
/// The version of files with a flag of [`FLAGS_OF_2`].
const VERSION_OF_FLAGS: u32 = 2;

const MAGIC: [u8; 8] = *b"LSFSfile";

/// A stream's identity, 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamId(pub [u8; 16]);

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({self})")
    }
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A segment of a record stream.
    Segment,
    /// One of the two files of final data.
    FinalData,
    /// A segment of a segment set.
    SetSegment,
}

impl FileKind {
    fn code(self) -> u8 {
        match self {
            FileKind::Segment => 1,
            FileKind::FinalData => 2,
            FileKind::SetSegment => 3,
        }
    }
}

/// The header of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// What the file holds.
    pub kind: FileKind,
    /// How its blocks are checked.
    pub checksum: Checksum,
    /// The compression asked for when it was created; each record says its own.
    pub compression: Compression,
    /// Bytes of every block of the file, including this one.
    pub block_bytes: u32,
    /// The stream it belongs to.
    pub stream_id: StreamId,
    /// Its own identity, 64 random bits: in every block of the file, so that no bytes of its past verify.
    pub segment_id: u64,
    /// Index of the first record that may be in it.
    pub base_index: u64,
    /// The writer's epoch when it was created; in final data, the number of the switch between A and B.
    pub epoch: u32,
    /// The most bytes of blocks that were ever written but not yet synced: how far recovery must look ahead.
    pub in_flight_bytes: u32,
    /// The largest payload a record of the file may have, in bytes.
    pub record_limit_bytes: u32,
    /// Whether records may be left out: indexes rise from each record to the next, not by one. Of a rewritten segment.
    pub is_sparse: bool,
    /// How frames lie in a segment of a segment set.
    pub frame_layout: FrameLayout,
}

/// Set in the flags of a sparse segment.
const FLAG_SPARSE: u8 = 1;
/// Set in the flags of a segment of a set with [`FrameLayout::Packed`].
const FLAG_PACKED: u8 = 2;
/// The flags that version 1 does not know.
const FLAGS_OF_2: u8 = FLAG_PACKED;

/// Why bytes are not a file header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileHeaderFault {
    /// Nothing was written.
    #[error("the file header was never written (zeros)")]
    Empty,
    /// Too short for a header.
    #[error("the file is cut short: {0} bytes")]
    Short(usize),
    /// Not one of our files.
    #[error("not an lsfs file: magic {0:02x?}")]
    Magic([u8; 8]),
    /// Written by a newer program.
    #[error("format version {found}, this program reads up to {FORMAT_VERSION}: use a newer lsfs")]
    Version {
        /// In the file.
        found: u32,
    },
    /// The header's bytes changed.
    #[error("file header checksum: stored {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// In the header.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// A field has an impossible value although the checksum is right.
    #[error("file header field {field} has the value {value}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl FileHeader {
    /// The format version of the file.
    pub fn version(&self) -> u32 {
        if self.flags() & FLAGS_OF_2 == 0 { VERSION_FIRST } else { VERSION_OF_FLAGS }
    }

    fn flags(&self) -> u8 {
        let sparse = if self.is_sparse { FLAG_SPARSE } else { 0 };
        match self.frame_layout {
            FrameLayout::Aligned => sparse,
            FrameLayout::Packed => sparse | FLAG_PACKED,
        }
    }

    /// Writes the header at the start of `block`. It is always checksummed, whatever the blocks are.
    pub fn encode(&self, block: &mut [u8]) {
        put(block, 0, &MAGIC);
        put(block, 8, &self.version().to_le_bytes());
        block[16] = self.kind.code();
        block[17] = self.checksum.code();
        block[18] = self.compression.code();
        block[19] = self.flags();
        put(block, 20, &self.block_bytes.to_le_bytes());
        put(block, 24, &self.stream_id.0);
        put(block, 40, &self.segment_id.to_le_bytes());
        put(block, 48, &self.base_index.to_le_bytes());
        put(block, 56, &self.epoch.to_le_bytes());
        put(block, 60, &self.in_flight_bytes.to_le_bytes());
        put(block, 64, &self.record_limit_bytes.to_le_bytes());
        let crc = crc32c(0, &block[16..FILE_HEADER_BYTES]);
        put(block, 12, &crc.to_le_bytes());
    }

    /// Reads and checks a file header: magic, then version, then checksum, then fields.
    pub fn decode(bytes: &[u8]) -> Result<FileHeader, FileHeaderFault> {
        if bytes.len() < FILE_HEADER_BYTES {
            return Err(FileHeaderFault::Short(bytes.len()));
        }
        let fields = Fields(bytes);
        let magic = fields.array(0);
        if magic != MAGIC {
            let empty = bytes[..FILE_HEADER_BYTES].iter().all(|&byte| byte == 0);
            return Err(if empty { FileHeaderFault::Empty } else { FileHeaderFault::Magic(magic) });
        }
        let version = fields.u32(8);
        if version == 0 || version > FORMAT_VERSION {
            return Err(FileHeaderFault::Version { found: version });
        }
        let (stored, computed) = (fields.u32(12), crc32c(0, &bytes[16..FILE_HEADER_BYTES]));
        if stored != computed {
            return Err(FileHeaderFault::Checksum { stored, computed });
        }
        let wrong = |field, value: u64| FileHeaderFault::Field { field, value };
        let known_flags = if version < VERSION_OF_FLAGS { FLAG_SPARSE } else { FLAG_SPARSE | FLAGS_OF_2 };
        let is_packed = bytes[19] & FLAG_PACKED != 0;
        if bytes[19] & !known_flags != 0 || (is_packed && bytes[16] != FileKind::SetSegment.code()) {
            return Err(wrong("flags", bytes[19].into()));
        }
        let block_bytes = fields.u32(20);
        if !is_block_size(block_bytes as usize) {
            return Err(wrong("block size", block_bytes.into()));
        }
        // A writer could not go on with less, nor would a reader look ahead over more.
        let in_flight_bytes = fields.u32(60);
        let in_flight_limits = block_bytes * 4..=1 << 30;
        let fits = in_flight_limits.contains(&in_flight_bytes) && in_flight_bytes.is_multiple_of(block_bytes);
        if bytes[16] == FileKind::Segment.code() && !fits {
            return Err(wrong("in-flight limit", in_flight_bytes.into()));
        }
        Ok(FileHeader {
            kind: [FileKind::Segment, FileKind::FinalData, FileKind::SetSegment]
                .into_iter()
                .find(|kind| kind.code() == bytes[16])
                .ok_or(wrong("kind", bytes[16].into()))?,
            checksum: Checksum::from_code(bytes[17]).ok_or(wrong("checksum", bytes[17].into()))?,
            compression: Compression::from_code(bytes[18]).ok_or(wrong("compression", bytes[18].into()))?,
            block_bytes,
            stream_id: StreamId(fields.array(24)),
            segment_id: fields.u64(40),
            base_index: fields.u64(48),
            epoch: fields.u32(56),
            in_flight_bytes,
            record_limit_bytes: fields.u32(64),
            is_sparse: bytes[19] & FLAG_SPARSE != 0,
            frame_layout: if is_packed { FrameLayout::Packed } else { FrameLayout::Aligned },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FileHeader {
        FileHeader {
            kind: FileKind::Segment,
            checksum: Checksum::Crc32c,
            compression: Compression::Zstd,
            block_bytes: 4096,
            stream_id: StreamId(*b"0123456789abcdef"),
            segment_id: 77,
            base_index: 1 << 50,
            epoch: 2,
            in_flight_bytes: 1 << 20,
            record_limit_bytes: 1 << 28,
            is_sparse: true,
            frame_layout: FrameLayout::Aligned,
        }
    }

    fn encoded() -> Vec<u8> {
        let mut block = vec![0; 512];
        header().encode(&mut block);
        block
    }

    #[test]
    fn round_trip() {
        assert_eq!(FileHeader::decode(&encoded()), Ok(header()));
    }

    #[test]
    fn packed_bodies_need_version_2() {
        let packed = FileHeader { kind: FileKind::SetSegment, frame_layout: FrameLayout::Packed, ..header() };
        let mut block = vec![0; 512];
        packed.encode(&mut block);
        assert_eq!((encoded()[8], block[8]), (1, 2));
        assert_eq!(FileHeader::decode(&block), Ok(packed));
        block[8] = 1;
        let flags = FileHeaderFault::Field { field: "flags", value: 3 };
        assert_eq!(FileHeader::decode(&block), Err(flags), "version 1 does not know the flag");
    }

    #[test]
    fn magic_version_and_checksum_fail_differently() {
        assert_eq!(FileHeader::decode(&[0; 512]), Err(FileHeaderFault::Empty));
        assert_eq!(FileHeader::decode(&[1; 8]), Err(FileHeaderFault::Short(8)));
        assert!(matches!(FileHeader::decode(&[b'x'; 512]), Err(FileHeaderFault::Magic(_))));
        let mut newer = encoded();
        newer[8] = 3;
        assert_eq!(FileHeader::decode(&newer), Err(FileHeaderFault::Version { found: 3 }));
        for at in 12..FILE_HEADER_BYTES {
            let mut damaged = encoded();
            damaged[at] ^= 1;
            assert!(
                matches!(FileHeader::decode(&damaged), Err(FileHeaderFault::Checksum { .. })),
                "byte {at}"
            );
        }
        let mut block = vec![0; 512];
        FileHeader { block_bytes: 1000, ..header() }.encode(&mut block);
        assert_eq!(
            FileHeader::decode(&block),
            Err(FileHeaderFault::Field { field: "block size", value: 1000 })
        );
    }
}
