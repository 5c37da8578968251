//! Bytes to values and back: the layouts of `docs/format.md`, as pure functions.
//!
//! A file is a sequence of blocks. Block 0 is the [`FileHeader`]; every other block is a [`BlockHeader`], slices,
//! free space and a block tailer. A [`slice`](SliceView) carries a piece of one record; the record layer puts a
//! [`RecordHeader`] before the payload and, when the record spans slices, a record tailer behind it. Segments of a
//! segment set hold frames instead: a [`FrameHeader`], then the body in one piece.
//!
//! **Invariants.** No function here does I/O, allocates by a length it has not checked, or panics on any input.
//! Zero bytes are never a valid header. All integers are little-endian.

mod block;
mod checksum;
mod compression;
mod file_header;
mod footer;
mod frame;
mod index_entry;
mod manifest;
mod mapped_frame;
mod mark;
mod pointer;
mod record;
mod segment_list;
mod segment_statistics;
mod slice;
mod sparse_table;

pub use block::{BLOCK_HEADER_BYTES, BLOCK_TAILER_BYTES, BlockFault, BlockHeader, BlockTailer, block_seed};
pub use checksum::{Checksum, crc32c};
pub use compression::{Compression, DecompressFault};
pub use file_header::{FILE_HEADER_BYTES, FORMAT_VERSION, FileHeader, FileHeaderFault, FileKind, StreamId};
pub use footer::{FOOTER_BYTES, Footer, FooterFault};
pub use frame::{
    FRAME_BODY_ALIGNMENT, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES_MAX, FRAME_PIECE_BYTES, FrameFault,
    FrameHeader, FrameIdentity, FrameLayout, SHORT_BODY_BYTES_END, check_pieces, piece_checksums,
    piece_checksums_of,
};
pub use index_entry::{INDEX_ENTRY_BYTES, IndexEntry};
pub(crate) use manifest::lost_range_of;
pub use manifest::{Manifest, ManifestFault, SegmentEntry};
pub use mapped_frame::{MAPPED_FRAME_HEADER_BYTES, MappedFrameLook, mapped_frame_header};
pub use mark::{MARK_BYTES, Mark, MarkFault};
pub use pointer::{POINTER_BYTES, Pointer};
pub use record::{
    RECORD_HEADER_BYTES_MAX, RECORD_TAILER_BYTES, RecordFault, RecordHeader, RecordTailer,
    record_overhead_bytes,
};
pub use segment_list::{ListedSegment, SegmentList, SegmentListFault, Tally};
pub use segment_statistics::{
    SEGMENT_STATISTICS_BYTES, SegmentStatistics, StatisticsFault, TYPE_COUNTS_MAX, TypeCount,
};
pub use slice::{
    SLICE_HEADER_BYTES, SLICE_OVERHEAD_BYTES, SLICE_TAILER_BYTES, SliceFault, SliceView, put_slice,
};
pub use sparse_table::{SPARSE_TABLE_HEADER_BYTES, SparseTable, SparseTableFault};

/// The smallest block: one sector.
pub const BLOCK_BYTES_MIN: usize = 512;
/// The largest block: offsets inside a block are 16 bits.
pub const BLOCK_BYTES_MAX: usize = 32 * 1024;
/// The block size unless an option says otherwise.
pub const BLOCK_BYTES_DEFAULT: usize = 4096;

/// Whether `bytes` can be a block size.
pub fn is_block_size(bytes: usize) -> bool {
    bytes.is_power_of_two() && (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&bytes)
}

/// A little-endian reader over a byte string whose length the caller has checked.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }
}

fn put(target: &mut [u8], at: usize, bytes: &[u8]) {
    target[at..at + bytes.len()].copy_from_slice(bytes);
}
