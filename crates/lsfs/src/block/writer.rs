//! Forming blocks.

use std::ops::Range;

use crate::codec::{
    BLOCK_HEADER_BYTES, BLOCK_TAILER_BYTES, BlockHeader, Checksum, Compression, RECORD_HEADER_BYTES_MAX,
    RECORD_TAILER_BYTES, RecordHeader, RecordTailer, SLICE_OVERHEAD_BYTES, block_seed, put_slice,
};
use crate::io::AlignedBuf;

/// A slice that does not end its record carries at least this much payload: shorter ones cost more than they hold.
const PARTIAL_PAYLOAD_BYTES_MIN: usize = 32;
/// A new buffer starts at this size and doubles as it fills.
const BUFFER_BYTES_MIN: usize = 16 * 1024;

/// What every block of a file has in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) segment_id: u64,
    pub(crate) epoch: u32,
    pub(crate) checksum: Checksum,
    pub(crate) block_bytes: usize,
}

/// A record on its way into blocks; a large one passes through several buffers.
pub(crate) struct PendingRecord<'a> {
    index: u64,
    type_code: u64,
    header: [u8; RECORD_HEADER_BYTES_MAX],
    header_bytes: usize,
    payload: &'a [u8],
    written_bytes: usize,
    slice_number: u32,
    first_block: u32,
    first_offset: u16,
}

impl<'a> PendingRecord<'a> {
    /// A record whose stored payload is `payload`; `raw_bytes` is its length before compression.
    pub(crate) fn new(
        index: u64,
        type_code: u64,
        compression: Compression,
        payload: &'a [u8],
        raw_bytes: u32,
    ) -> Self {
        let mut header = [0; RECORD_HEADER_BYTES_MAX];
        let stored_bytes = payload.len() as u32;
        let header_bytes =
            RecordHeader { type_code, compression, stored_bytes, raw_bytes }.encode(&mut header);
        PendingRecord {
            index,
            type_code,
            header,
            header_bytes,
            payload,
            written_bytes: 0,
            slice_number: 0,
            first_block: 0,
            first_offset: 0,
        }
    }

    /// Most bytes of blocks that a record of this many stored bytes takes, wherever it begins.
    pub(crate) fn space_bytes_max(stored_bytes: usize, block_bytes: usize) -> u64 {
        let capacity = block_bytes - BLOCK_HEADER_BYTES - BLOCK_TAILER_BYTES - SLICE_OVERHEAD_BYTES;
        let body = stored_bytes + RECORD_HEADER_BYTES_MAX + RECORD_TAILER_BYTES;
        (body.div_ceil(capacity) as u64 + 1) * block_bytes as u64
    }
}

/// The facts of a block that its header is made from once it is sealed.
#[derive(Clone, Copy, Debug)]
struct BlockFacts {
    first_index: u64,
    /// What the checksums of its slices begin with.
    seed: u32,
    used_bytes: u16,
    last_slice_start: u16,
    /// Whether the first slice belongs to a record that began in an earlier block.
    continues: bool,
}

/// Forms blocks in a buffer: the bytes of the next write.
///
/// The last block stays open until it is full: a following write repeats its bytes unchanged and adds slices behind
/// them, so a torn rewrite can only lose what was added (docs/durability.md, "The tail block").
#[derive(Debug)]
pub(crate) struct BlockWriter {
    identity: Identity,
    buf: AlignedBuf,
    buf_bytes_max: usize,
    first_block: u32,
    blocks: Vec<BlockFacts>,
    /// Bytes in the buffer's first block that an earlier write already carried.
    carried_bytes: usize,
}

/// A sealed run of blocks, ready to be written, and afterwards kept as a cache of recent records.
#[derive(Debug)]
pub(crate) struct Batch {
    buf: AlignedBuf,
    block_bytes: usize,
    first_block: u32,
    blocks: Vec<BlockFacts>,
    end_offset: u16,
}

impl BlockWriter {
    /// A writer whose next block is `first_block`; buffers grow up to `buf_bytes_max`, beginning with `spare` if given.
    pub(crate) fn new(
        identity: Identity,
        first_block: u32,
        buf_bytes_max: usize,
        spare: Option<AlignedBuf>,
    ) -> Self {
        let fresh = || AlignedBuf::zeroed(BUFFER_BYTES_MIN.max(identity.block_bytes).min(buf_bytes_max));
        BlockWriter {
            identity,
            buf: spare.filter(|spare| spare.len() >= identity.block_bytes).unwrap_or_else(fresh),
            buf_bytes_max,
            first_block,
            blocks: Vec::new(),
            carried_bytes: 0,
        }
    }

    /// Whether nothing was added since the last [`BlockWriter::seal`].
    pub(crate) fn is_empty(&self) -> bool {
        match self.blocks.as_slice() {
            [] => true,
            [only] => usize::from(only.used_bytes) == self.carried_bytes,
            _ => false,
        }
    }

    /// Bytes that the next write would carry.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.blocks.len() * self.identity.block_bytes
    }

    /// Memory held, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.buf.len()
    }

    /// The size of a buffer that suits batches of this many bytes.
    pub(crate) fn buffer_bytes_for(&self, batch_bytes: usize) -> usize {
        batch_bytes.next_power_of_two().clamp(
            BUFFER_BYTES_MIN.max(self.identity.block_bytes).min(self.buf_bytes_max),
            self.buf_bytes_max,
        )
    }

    /// Gives up the buffer with all that is in it, for the next writer.
    pub(crate) fn take_buffer(&mut self) -> AlignedBuf {
        self.blocks.clear();
        std::mem::replace(&mut self.buf, AlignedBuf::zeroed(0))
    }

    /// Position behind the last slice.
    pub(crate) fn end_position(&self) -> u64 {
        let block_bytes = self.identity.block_bytes as u64;
        match self.blocks.last() {
            None => u64::from(self.first_block) * block_bytes,
            Some(last) => {
                let block = u64::from(self.first_block) + self.blocks.len() as u64 - 1;
                block * block_bytes + u64::from(last.used_bytes)
            }
        }
    }

    /// Whether a record of this many stored bytes is sure to fit the buffer.
    pub(crate) fn fits(&self, stored_bytes: usize) -> bool {
        let space = PendingRecord::space_bytes_max(stored_bytes, self.identity.block_bytes) as usize;
        self.pending_bytes() + space <= self.buf_bytes_max
    }

    /// Adds as much of the record as the buffer takes; `true` when it is complete.
    pub(crate) fn put(&mut self, record: &mut PendingRecord<'_>) -> bool {
        loop {
            let header_bytes = if record.slice_number == 0 { record.header_bytes } else { 0 };
            let tailer_bytes = if record.slice_number == 0 { 0 } else { RECORD_TAILER_BYTES };
            let rest = record.payload.len() - record.written_bytes;
            let room = self.room();
            if room >= SLICE_OVERHEAD_BYTES + header_bytes + rest + tailer_bytes {
                self.put_slice_of(record, rest, true);
                return true;
            }
            let partial_min = SLICE_OVERHEAD_BYTES + header_bytes + PARTIAL_PAYLOAD_BYTES_MIN;
            if room >= partial_min && rest > 0 {
                let taken = rest.min(room - SLICE_OVERHEAD_BYTES - header_bytes);
                self.put_slice_of(record, taken, false);
            }
            if !self.begin_block(record) {
                return false;
            }
        }
    }

    fn room(&self) -> usize {
        match self.blocks.last() {
            None => 0,
            Some(last) => self.identity.block_bytes - BLOCK_TAILER_BYTES - usize::from(last.used_bytes),
        }
    }

    fn begin_block(&mut self, record: &PendingRecord<'_>) -> bool {
        let block_bytes = self.identity.block_bytes;
        let start = self.blocks.len() * block_bytes;
        if start + block_bytes > self.buf_bytes_max {
            return false;
        }
        if start + block_bytes > self.buf.len() {
            self.buf = self.buf.grown((self.buf.len() * 2).min(self.buf_bytes_max));
        }
        let used_bytes = BLOCK_HEADER_BYTES as u16;
        let Identity { segment_id, epoch, .. } = self.identity;
        self.blocks.push(BlockFacts {
            first_index: record.index,
            seed: block_seed(segment_id, self.first_block + self.blocks.len() as u32, epoch),
            used_bytes,
            last_slice_start: used_bytes,
            continues: record.slice_number > 0,
        });
        true
    }

    fn put_slice_of(&mut self, record: &mut PendingRecord<'_>, payload_bytes: usize, is_last: bool) {
        let Identity { checksum, block_bytes, .. } = self.identity;
        let at = self.blocks.len() - 1;
        let number = self.first_block + at as u32;
        let facts = &mut self.blocks[at];
        let block = &mut self.buf[at * block_bytes..(at + 1) * block_bytes];
        let start = facts.used_bytes;
        if record.slice_number == 0 {
            record.first_block = number;
            record.first_offset = start;
        }
        let tailer = RecordTailer {
            index: record.index,
            type_code: record.type_code,
            first_block: record.first_block,
            first_offset: record.first_offset,
        }
        .encode();
        let parts = [
            if record.slice_number == 0 { &record.header[..record.header_bytes] } else { &[] },
            &record.payload[record.written_bytes..record.written_bytes + payload_bytes],
            if is_last && record.slice_number > 0 { &tailer } else { &[] },
        ];
        let delta =
            u16::try_from(record.index - facts.first_index).expect("a block holds under 65536 records");
        let end = put_slice(
            block,
            usize::from(start),
            facts.seed,
            checksum,
            delta,
            record.slice_number,
            is_last,
            parts,
        );
        facts.last_slice_start = start;
        facts.used_bytes = end as u16;
        record.written_bytes += payload_bytes;
        record.slice_number += 1;
    }

    fn header(
        &self,
        facts: &BlockFacts,
        at: usize,
        durable_index: u64,
        durable_position: u64,
    ) -> BlockHeader {
        BlockHeader {
            segment_id: self.identity.segment_id,
            block_number: self.first_block + at as u32,
            epoch: self.identity.epoch,
            first_index: facts.first_index,
            durable_index,
            durable_position,
            used_bytes: facts.used_bytes,
        }
    }

    /// Turns the blocks so far into a batch with this durable watermark and goes on behind it, in `spare` if given.
    pub(crate) fn seal(
        &mut self,
        durable_index: u64,
        durable_position: u64,
        spare: Option<AlignedBuf>,
    ) -> Batch {
        let block_bytes = self.identity.block_bytes;
        for (at, facts) in self.blocks.iter().enumerate() {
            let header = self.header(facts, at, durable_index, durable_position);
            let block = &mut self.buf[at * block_bytes..(at + 1) * block_bytes];
            // The buffer may have carried other blocks before.
            block[usize::from(facts.used_bytes)..].fill(0);
            header.encode(block, facts.last_slice_start, self.identity.checksum);
        }
        let fresh = spare.unwrap_or_else(|| AlignedBuf::zeroed(self.buffer_bytes_for(self.pending_bytes())));
        let last = *self.blocks.last().expect("only a non-empty writer is sealed");
        let batch = Batch {
            buf: std::mem::replace(&mut self.buf, fresh),
            block_bytes,
            first_block: self.first_block,
            blocks: std::mem::take(&mut self.blocks),
            end_offset: last.used_bytes,
        };
        self.first_block += batch.blocks.len() as u32;
        self.carried_bytes = 0;
        let room = block_bytes - BLOCK_TAILER_BYTES - usize::from(last.used_bytes);
        if room >= SLICE_OVERHEAD_BYTES + RECORD_HEADER_BYTES_MAX {
            self.first_block -= 1;
            self.buf[..block_bytes].copy_from_slice(&batch.bytes()[batch.bytes().len() - block_bytes..]);
            self.blocks.push(last);
            self.carried_bytes = usize::from(last.used_bytes);
        }
        batch
    }

    /// Number of the first block here.
    pub(crate) fn first_block(&self) -> u32 {
        self.first_block
    }

    /// The block here in which the record begins, if it does not begin before them.
    pub(crate) fn block_of(&self, index: u64) -> Option<u32> {
        find_block(&self.blocks, self.first_block, index)
    }

    /// Copies sealed images of the blocks from `first` on into `target`; returns how many bytes.
    pub(crate) fn copy_blocks(&self, first: u32, target: &mut [u8]) -> usize {
        let block_bytes = self.identity.block_bytes;
        let mut copied = 0;
        for at in (first - self.first_block) as usize..self.blocks.len() {
            let Some(image) = target.get_mut(copied..copied + block_bytes) else { break };
            image.copy_from_slice(&self.buf[at * block_bytes..(at + 1) * block_bytes]);
            let facts = &self.blocks[at];
            image[usize::from(facts.used_bytes)..].fill(0);
            self.header(facts, at, 0, 0).encode(image, facts.last_slice_start, self.identity.checksum);
            copied += block_bytes;
        }
        copied
    }
}

impl Batch {
    /// The bytes to write.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf[..self.blocks.len() * self.block_bytes]
    }

    /// Where to write them.
    pub(crate) fn position(&self) -> u64 {
        u64::from(self.first_block) * self.block_bytes as u64
    }

    /// Position behind the last slice.
    pub(crate) fn end_position(&self) -> u64 {
        self.position() + ((self.blocks.len() - 1) * self.block_bytes) as u64 + u64::from(self.end_offset)
    }

    /// Numbers of the blocks here.
    pub(crate) fn block_numbers(&self) -> Range<u32> {
        self.first_block..self.first_block + self.blocks.len() as u32
    }

    /// Memory held, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.buf.len()
    }

    /// The block here in which the record begins, if it does not begin before them.
    pub(crate) fn block_of(&self, index: u64) -> Option<u32> {
        find_block(&self.blocks, self.first_block, index)
    }

    /// Copies the blocks from `first` on into `target`; returns how many bytes.
    pub(crate) fn copy_blocks(&self, first: u32, target: &mut [u8]) -> usize {
        let from = (first - self.first_block) as usize * self.block_bytes;
        let len = (self.bytes().len() - from).min(target.len() / self.block_bytes * self.block_bytes);
        target[..len].copy_from_slice(&self.bytes()[from..from + len]);
        len
    }

    /// The buffer, for the next writer.
    pub(crate) fn into_buffer(self) -> AlignedBuf {
        self.buf
    }
}

/// The block among these in which record `index` begins, if it is not before them.
fn find_block(blocks: &[BlockFacts], first_block: u32, index: u64) -> Option<u32> {
    let at = blocks.partition_point(|facts| facts.first_index < index);
    let begins_there = blocks.get(at).is_some_and(|facts| facts.first_index == index && !facts.continues);
    let at = if begins_there { at } else { at.checked_sub(1)? };
    Some(first_block + at as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(block_bytes: usize) -> BlockWriter {
        let identity = Identity { segment_id: 1, epoch: 1, checksum: Checksum::Crc32c, block_bytes };
        BlockWriter::new(identity, 1, 64 * block_bytes, None)
    }

    fn put(writer: &mut BlockWriter, index: u64, payload: &[u8]) {
        let mut record = PendingRecord::new(index, 7, Compression::None, payload, payload.len() as u32);
        assert!(writer.put(&mut record));
    }

    #[test]
    fn a_rewritten_tail_block_repeats_its_bytes() {
        let mut writer = writer(512);
        put(&mut writer, 0, b"first");
        let first = writer.seal(0, 512, None);
        assert!(writer.is_empty());
        put(&mut writer, 1, b"second");
        let second = writer.seal(1, first.end_position(), None);
        assert_eq!(first.position(), second.position());
        let slices = BLOCK_HEADER_BYTES..(first.end_position() - first.position()) as usize;
        assert_eq!(first.bytes()[slices.clone()], second.bytes()[slices]);
    }

    #[test]
    fn a_record_is_found_in_the_block_where_it_begins() {
        let mut writer = writer(512);
        put(&mut writer, 10, &[1; 100]);
        put(&mut writer, 11, &[2; 2000]);
        put(&mut writer, 12, &[3; 10]);
        assert_eq!(writer.block_of(10), Some(1));
        assert_eq!(writer.block_of(11), Some(1));
        let last = writer.block_of(12).unwrap();
        assert!(last > 4, "record 11 spans several blocks, record 12 begins in {last}");
        assert_eq!(writer.block_of(9), None);
    }

    #[test]
    fn a_full_buffer_takes_the_rest_after_a_seal() {
        let mut writer = BlockWriter::new(writer(512).identity, 1, 1024, None);
        let payload = vec![9; 3000];
        let mut record = PendingRecord::new(0, 0, Compression::None, &payload, 3000);
        let mut batches = 0;
        while !writer.put(&mut record) {
            let batch = writer.seal(0, 512, None);
            assert_eq!(batch.bytes().len(), 1024);
            batches += 1;
        }
        assert!(batches >= 3);
        assert_eq!(writer.end_position(), writer.seal(0, 512, None).end_position());
    }
}
