//! Recent records in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::block::Batch;
use crate::io::AlignedBuf;

/// The batches written last, kept as the images they were written from: direct I/O leaves nothing in the page cache,
/// and tailing readers should not cost the disk a read.
///
/// **Invariants.** Batches are in the order they were formed. A batch may begin with a newer image of the block the
/// one before ends with; the newest counts. The memory held is at most the limit plus the batch in flight.
#[derive(Debug)]
pub(crate) struct RecordCache {
    batches: VecDeque<Cached>,
    memory_bytes: usize,
    limit_bytes: usize,
    /// Buffers that fell out of the cache, for batches to come.
    spares: Vec<AlignedBuf>,
}

/// Most buffers kept for batches to come: one eviction may free two.
const SPARES_MAX: usize = 2;
/// A buffer may be this many times as large as what is wanted before it is given back.
const SPARE_WASTE_FACTOR: usize = 4;

#[derive(Debug)]
struct Cached {
    segment_base: u64,
    batch: Arc<Batch>,
}

impl RecordCache {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        RecordCache { batches: VecDeque::new(), memory_bytes: 0, limit_bytes, spares: Vec::new() }
    }

    /// Adds the batch formed last.
    pub(crate) fn push(&mut self, segment_base: u64, batch: Arc<Batch>) {
        // A lone writer rewrites its tail block many times: images that a newer one covers are of no use.
        while let Some(last) = self.batches.back()
            && last.segment_base == segment_base
            && last.batch.block_numbers().start >= batch.block_numbers().start
        {
            self.remove(self.batches.len() - 1);
        }
        self.memory_bytes += batch.memory_bytes();
        self.batches.push_back(Cached { segment_base, batch });
        while self.memory_bytes > self.limit_bytes && self.batches.len() > 1 {
            self.remove(0);
        }
    }

    fn remove(&mut self, at: usize) {
        let Some(removed) = self.batches.remove(at) else { return };
        self.memory_bytes -= removed.batch.memory_bytes();
        // Fresh memory costs a page fault for every 4 KiB.
        if let Some(batch) = Arc::into_inner(removed.batch)
            && self.spares.len() < SPARES_MAX
        {
            self.spares.push(batch.into_buffer());
        }
    }

    /// A buffer to form the next batch in, of `wanted_bytes` or a little more; what is much larger is given back.
    pub(crate) fn take_spare(&mut self, wanted_bytes: usize) -> Option<AlignedBuf> {
        self.spares.retain(|spare| spare.len() <= wanted_bytes * SPARE_WASTE_FACTOR);
        let fitting = self.spares.iter().position(|spare| spare.len() >= wanted_bytes);
        match fitting {
            Some(at) => Some(self.spares.swap_remove(at)),
            None => {
                // None will do: keeping them would only keep better ones out.
                self.spares.clear();
                None
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        while !self.batches.is_empty() {
            self.remove(0);
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes + self.spares.iter().map(|spare| spare.len()).sum::<usize>()
    }

    /// The block in which a record of the segment begins, if it is here.
    pub(crate) fn block_of(&self, segment_base: u64, index: u64) -> Option<u32> {
        self.of_segment(segment_base).find_map(|batch| batch.block_of(index))
    }

    /// Copies blocks from `first` on into `target`; `end` is where newer images than ours begin. Zero bytes if the
    /// block is not here.
    pub(crate) fn copy_blocks(&self, segment_base: u64, first: u32, end: u32, target: &mut [u8]) -> usize {
        let mut end = end;
        for batch in self.of_segment(segment_base) {
            let numbers = batch.block_numbers();
            if numbers.contains(&first) && first < end {
                let copied = batch.copy_blocks(first, target);
                let wanted = (end - first) as usize * (batch.bytes().len() / numbers.len());
                return copied.min(wanted);
            }
            end = end.min(numbers.start);
        }
        0
    }

    /// The lowest block of the segment that is here.
    pub(crate) fn first_block(&self, segment_base: u64) -> Option<u32> {
        self.of_segment(segment_base).last().map(|batch| batch.block_numbers().start)
    }

    /// The segment's batches, newest first.
    fn of_segment(&self, segment_base: u64) -> impl Iterator<Item = &Arc<Batch>> {
        self.batches
            .iter()
            .rev()
            .skip_while(move |cached| cached.segment_base != segment_base)
            .take_while(move |cached| cached.segment_base == segment_base)
            .map(|cached| &cached.batch)
    }
}
