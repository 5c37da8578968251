//! The slice: the part of a record that lies in one block.

use super::{BLOCK_HEADER_BYTES, BlockHeader, Checksum, Fields, put};
use crate::mutant::{self, Mutant};

/// Bytes of a slice header.
pub const SLICE_HEADER_BYTES: usize = 10;
/// Bytes of a slice tailer.
pub const SLICE_TAILER_BYTES: usize = 13;
/// Bytes a slice adds to its body.
pub const SLICE_OVERHEAD_BYTES: usize = SLICE_HEADER_BYTES + SLICE_TAILER_BYTES;

const HEADER_MAGIC: u8 = 0x5A;
const TAILER_MAGIC: u8 = 0xA5;
const FLAG_LAST: u8 = 1;

/// A verified slice, borrowed from its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceView<'a> {
    /// The record it belongs to.
    pub index: u64,
    /// 0 for the record's first slice, then 1, 2, ... in consecutive blocks.
    pub number: u32,
    /// Whether the record ends here.
    pub is_last: bool,
    /// Offset of the slice in its block.
    pub start: u16,
    /// What it carries.
    pub body: &'a [u8],
}

impl SliceView<'_> {
    /// Offset of the first byte after the slice.
    pub fn end(&self) -> usize {
        usize::from(self.start) + SLICE_OVERHEAD_BYTES + self.body.len()
    }
}

/// Why bytes are not a valid slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SliceFault {
    /// The header does not begin like a slice.
    #[error("slice magic is {0:#04x}, expected {HEADER_MAGIC:#04x}")]
    Magic(u8),
    /// The slice would end behind the block's used bytes.
    #[error("slice of {body_bytes} bytes does not fit the block's {used_bytes} used bytes")]
    Length {
        /// Length in the slice header.
        body_bytes: u16,
        /// Used bytes in the block header.
        used_bytes: u16,
    },
    /// The slice's bytes changed.
    #[error("slice checksum: stored {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// In the tailer.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// Header and tailer disagree.
    #[error("slice tailer does not match its header")]
    Tailer,
}

/// Writes a slice with the given body parts at `start`; returns the offset behind it.
///
/// `seed` is [`block_seed`](super::block_seed) of the block and `first_index` that of its header.
///
/// # Panics
/// If the slice does not fit the block: the block writer asked wrongly.
#[expect(clippy::too_many_arguments, reason = "the fields of a slice; a struct would only rename them")]
pub fn put_slice(
    block: &mut [u8],
    start: usize,
    seed: u32,
    checksum: Checksum,
    index_delta: u16,
    number: u32,
    is_last: bool,
    parts: [&[u8]; 3],
) -> usize {
    let body_bytes = parts.iter().map(|part| part.len()).sum::<usize>();
    let slice = &mut block[start..start + SLICE_OVERHEAD_BYTES + body_bytes];
    slice[0] = HEADER_MAGIC;
    slice[1] = if is_last { FLAG_LAST } else { 0 };
    put(slice, 2, &index_delta.to_le_bytes());
    put(slice, 4, &number.to_le_bytes());
    put(slice, 8, &(body_bytes as u16).to_le_bytes());
    let mut at = SLICE_HEADER_BYTES;
    for part in parts {
        put(slice, at, part);
        at += part.len();
    }
    put(slice, at, &number.to_le_bytes());
    put(slice, at + 4, &index_delta.to_le_bytes());
    put(slice, at + 6, &(start as u16).to_le_bytes());
    slice[at + 8] = TAILER_MAGIC;
    let crc = checksum.of(seed, &slice[..at + 9]);
    put(slice, at + 9, &crc.to_le_bytes());
    start + slice.len()
}

impl<'a> SliceView<'a> {
    /// Reads and verifies the slice at `start` of a block with this header.
    pub fn decode(
        block: &'a [u8],
        header: &BlockHeader,
        start: usize,
        checksum: Checksum,
    ) -> Result<SliceView<'a>, SliceFault> {
        SliceView::decode_seeded(block, header, header.seed(), start, checksum)
    }

    /// As [`SliceView::decode`] for who reads many slices of a block; `seed` is [`BlockHeader::seed`].
    pub fn decode_seeded(
        block: &'a [u8],
        header: &BlockHeader,
        seed: u32,
        start: usize,
        checksum: Checksum,
    ) -> Result<SliceView<'a>, SliceFault> {
        let used = usize::from(header.used_bytes).min(block.len());
        if start + SLICE_OVERHEAD_BYTES > used {
            return Err(SliceFault::Length { body_bytes: 0, used_bytes: header.used_bytes });
        }
        let rest = &block[start..used];
        if rest[0] != HEADER_MAGIC {
            return Err(SliceFault::Magic(rest[0]));
        }
        let body_bytes = Fields(rest).u16(8);
        let slice = rest
            .get(..SLICE_OVERHEAD_BYTES + usize::from(body_bytes))
            .ok_or(SliceFault::Length { body_bytes, used_bytes: header.used_bytes })?;
        let fields = Fields(slice);
        let tailer = slice.len() - SLICE_TAILER_BYTES;
        let stored = fields.u32(tailer + 9);
        if !checksum.matches(seed, &slice[..tailer + 9], stored) && !mutant::is(Mutant::TornSliceAccepted) {
            let computed = checksum.of(seed, &slice[..tailer + 9]);
            return Err(SliceFault::Checksum { stored, computed });
        }
        let (delta, number) = (fields.u16(2), fields.u32(4));
        let agree = fields.u32(tailer) == number
            && fields.u16(tailer + 4) == delta
            && usize::from(fields.u16(tailer + 6)) == start
            && slice[tailer + 8] == TAILER_MAGIC
            && slice[1] & !FLAG_LAST == 0;
        if !agree {
            return Err(SliceFault::Tailer);
        }
        Ok(SliceView {
            index: header.first_index.wrapping_add(u64::from(delta)),
            number,
            is_last: slice[1] & FLAG_LAST != 0,
            start: start as u16,
            body: &slice[SLICE_HEADER_BYTES..tailer],
        })
    }

    /// Offset behind the slice that begins at `start`, as its header says; unverified.
    pub fn end_of(block: &[u8], start: usize) -> Option<usize> {
        let fields = Fields(block.get(start..)?.get(..SLICE_HEADER_BYTES)?);
        (fields.0[0] == HEADER_MAGIC).then(|| start + SLICE_OVERHEAD_BYTES + usize::from(fields.u16(8)))
    }

    /// Whether the slice that begins at `start` is the first and the last of its record, as its header says; unverified.
    #[inline]
    pub fn is_whole_record(block: &[u8], start: usize) -> bool {
        block.get(start..).and_then(|rest| rest.get(..SLICE_HEADER_BYTES)).is_some_and(|header| {
            header[0] == HEADER_MAGIC && header[1] == FLAG_LAST && Fields(header).u32(4) == 0
        })
    }

    /// Offset and number of the slice of record `index` in the used bytes of a block, as the slices' headers say;
    /// unverified.
    pub fn find(used: &[u8], header: &BlockHeader, index: u64) -> Option<(usize, u32)> {
        let wanted = index.checked_sub(header.first_index)?;
        let mut start = BLOCK_HEADER_BYTES;
        while let Some(end) = SliceView::end_of(used, start) {
            let fields = Fields(&used[start..]);
            if u64::from(fields.u16(2)) == wanted {
                return Some((start, fields.u32(4)));
            }
            start = end;
        }
        None
    }

    /// Offset of the slice that ends where `end` is, as its tailer says; unverified.
    pub fn start_of_previous(block: &[u8], end: usize) -> Option<usize> {
        let tailer = end.checked_sub(SLICE_TAILER_BYTES)?;
        let fields = Fields(block.get(tailer..end)?);
        (fields.0[8] == TAILER_MAGIC).then(|| usize::from(fields.u16(6)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::block_seed;

    fn block_with_slice(checksum: Checksum) -> (Vec<u8>, BlockHeader) {
        let mut block = vec![0; 512];
        let end = put_slice(
            &mut block,
            BLOCK_HEADER_BYTES,
            block_seed(5, 1, 1),
            checksum,
            2,
            7,
            true,
            [b"he", b"ll", b"o"],
        );
        let header = BlockHeader {
            segment_id: 5,
            block_number: 1,
            epoch: 1,
            first_index: 100,
            durable_index: 0,
            durable_position: 0,
            used_bytes: end as u16,
        };
        header.encode(&mut block, BLOCK_HEADER_BYTES as u16, checksum);
        (block, header)
    }

    #[test]
    fn round_trip() {
        for checksum in [Checksum::None, Checksum::Crc32c] {
            let (block, header) = block_with_slice(checksum);
            let slice = SliceView::decode(&block, &header, 50, checksum).unwrap();
            assert_eq!((slice.index, slice.number, slice.is_last, slice.body), (102, 7, true, &b"hello"[..]));
            assert_eq!(slice.end(), usize::from(header.used_bytes));
            assert_eq!(SliceView::start_of_previous(&block, slice.end()), Some(50));
            assert_eq!(SliceView::end_of(&block, 50), Some(slice.end()));
            assert_eq!(SliceView::end_of(&block, 51), None);
            assert!(!SliceView::is_whole_record(&block, 50), "it is number 7");
            assert!(!SliceView::is_whole_record(&block, usize::MAX - 9));
            assert_eq!(SliceView::end_of(&block, usize::MAX - 9), None);
            let used = &block[..slice.end()];
            assert_eq!(SliceView::find(used, &header, 102), Some((50, 7)));
            assert_eq!(
                (SliceView::find(used, &header, 103), SliceView::find(used, &header, 99)),
                (None, None)
            );
        }
    }

    #[test]
    fn no_changed_bit_verifies() {
        let (block, header) = block_with_slice(Checksum::Crc32c);
        for bit in 50 * 8..usize::from(header.used_bytes) * 8 {
            let mut damaged = block.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SliceView::decode(&damaged, &header, 50, Checksum::Crc32c).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_slice_of_another_epoch_block_or_segment_does_not_verify() {
        let (block, header) = block_with_slice(Checksum::Crc32c);
        for other in [
            BlockHeader { epoch: 2, ..header },
            BlockHeader { block_number: 2, ..header },
            BlockHeader { segment_id: 6, ..header },
        ] {
            assert!(matches!(
                SliceView::decode(&block, &other, 50, Checksum::Crc32c),
                Err(SliceFault::Checksum { .. })
            ));
        }
    }

    #[test]
    fn lengths_are_checked_before_use() {
        let (mut block, header) = block_with_slice(Checksum::None);
        assert!(matches!(
            SliceView::decode(&block, &header, 500, Checksum::None),
            Err(SliceFault::Length { .. })
        ));
        block[58..60].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(
            SliceView::decode(&block, &header, 50, Checksum::None),
            Err(SliceFault::Length { body_bytes: u16::MAX, used_bytes: header.used_bytes })
        );
        assert_eq!(SliceView::decode(&[0; 512], &header, 50, Checksum::None), Err(SliceFault::Magic(0)));
    }
}
