//! Changes of whole segments: sealing on demand, and replacing sealed segments by a sparse one.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{Payload, Recorder, identity};
use crate::block::{BlockWriter, PendingRecord};
use crate::codec::{FileHeader, FileKind, FrameLayout};
use crate::directory;
use crate::error::{Error, Result};
use crate::io::{AlignedBuf, File, OpenMode, WriteSync};
use crate::log::{check_rewritten, find_run};
use crate::stream::cursor::Source;
use crate::stream::segment::{Extent, Segment};
use crate::stream::{Record, read_one};
use crate::write_path::group_commit::WritePath;

/// A block's records have indexes within this of its first.
const BLOCK_INDEX_SPAN_MAX: u64 = u16::MAX as u64;

impl Recorder {
    /// See `RecordStream::rotate`.
    pub(crate) fn rotate(&self) -> Result<()> {
        let tail = self.enter_exclusive(self.tail())?;
        if tail.next_index == tail.active.base_index {
            self.leave_exclusive(tail);
            return Ok(());
        }
        self.seal_active(tail, PendingRecord::space_bytes_max(0, self.options.block_bytes))
    }

    /// See `RecordStream::replace_sealed`. The new file is whole and durable before the manifest names it: that is the
    /// moment of the change.
    pub(crate) fn replace_sealed(
        &self,
        run: Range<u64>,
        records: &mut dyn Iterator<Item = Result<Record>>,
    ) -> Result<()> {
        let (_, replaced) = self.extents_of(&run)?;
        let rewritten = self.write_rewritten(&run, records)?;
        let path = rewritten.segment.path().to_path_buf();
        let switched = self.change(|| self.switch(&run, &replaced, rewritten));
        self.drop_unnamed(&path, switched)
    }

    /// Makes the file of a rewritten segment; what a failure left of it is removed.
    fn write_rewritten(
        &self,
        run: &Range<u64>,
        records: &mut dyn Iterator<Item = Result<Record>>,
    ) -> Result<Extent> {
        let epoch = self.tail().epoch;
        let header = FileHeader {
            kind: FileKind::Segment,
            checksum: self.options.checksum,
            compression: self.options.compression,
            block_bytes: self.options.block_bytes as u32,
            stream_id: self.stream_id,
            segment_id: self.env.runtime.random(),
            base_index: run.start,
            epoch,
            in_flight_bytes: self.options.in_flight_bytes as u32,
            record_limit_bytes: self.options.record_limit_bytes,
            is_sparse: true,
            frame_layout: FrameLayout::Aligned,
        };
        let path = directory::rewritten_path(&self.dir, run.start, header.segment_id);
        let written = self.write_sparse(&path, &header, run, records);
        let (file, end_position) = self.drop_unnamed(&path, written)?;
        let files = Arc::clone(&self.tail().active.files);
        let segment = Arc::new(Segment::created(&self.env, path, file, header, &files));
        Ok(Extent { segment, next_index: run.end, end_position })
    }

    /// What no manifest names goes; after a failed save it may be named, and the next open decides.
    fn drop_unnamed<T>(&self, path: &Path, result: Result<T>) -> Result<T> {
        if result.is_err() && self.check_usable(&self.tail()).is_ok() {
            self.space.remove(path);
        }
        result
    }

    /// The sealed segments that hold exactly this run, and the place of the first.
    fn extents_of(&self, run: &Range<u64>) -> Result<(usize, Vec<Extent>)> {
        let tail = self.tail();
        self.check_usable(&tail)?;
        let ranges = tail.sealed.iter().map(|extent| extent.segment.base_index..extent.next_index);
        let (first, count) = find_run(run, ranges)?;
        Ok((first, tail.sealed[first..first + count].to_vec()))
    }

    /// Writes the file of a sparse segment; durable with its name. Answers the position behind its last record.
    fn write_sparse(
        &self,
        path: &Path,
        header: &FileHeader,
        run: &Range<u64>,
        records: &mut dyn Iterator<Item = Result<Record>>,
    ) -> Result<(Arc<dyn File>, u64)> {
        let block_bytes = self.options.block_bytes;
        let failed = |error| Error::write("write a rewritten segment", path, block_bytes as u64, error);
        let file = self.env.disk.open(path, OpenMode::CreateNew, block_bytes).map_err(failed)?;
        let mut block = AlignedBuf::zeroed(block_bytes);
        header.encode(&mut block);
        file.write_all_at(&block, 0, WriteSync::Later).map_err(failed)?;
        let identity = identity(&self.options, header.segment_id, header.epoch);
        let buffer_bytes = self.options.in_flight_bytes;
        let mut writer = BlockWriter::new(identity, 1, buffer_bytes, None);
        // A sealed segment needs no watermark: the manifest says where it ends.
        let flush = |writer: &mut BlockWriter| {
            let batch = writer.seal(run.start, block_bytes as u64, None);
            file.write_all_at(batch.bytes(), batch.position(), WriteSync::Later).map_err(failed)
        };
        let (mut previous, mut first_of_run) = (None, None);
        for record in records {
            let record = record?;
            check_rewritten(run, previous, &record)?;
            let payload = Payload::new(&record.payload, &self.options)?;
            let first = *first_of_run.get_or_insert(record.index);
            if record.index - first > BLOCK_INDEX_SPAN_MAX {
                // Beyond what a block can say: the next one begins here.
                if !writer.is_empty() {
                    flush(&mut writer)?;
                }
                let next_block = writer.end_position().div_ceil(block_bytes as u64) as u32;
                writer = BlockWriter::new(identity, next_block, buffer_bytes, None);
                first_of_run = Some(record.index);
            }
            let mut pending = payload.pending(record.index, record.type_code);
            while !writer.put(&mut pending) {
                flush(&mut writer)?;
            }
            previous = Some(record.index);
        }
        if !writer.is_empty() {
            flush(&mut writer)?;
        }
        file.sync().map_err(failed)?;
        directory::sync_parent(&self.env, path)?;
        Ok((file, writer.end_position()))
    }

    /// Ends the stream in a rewritten segment, before record `next_index`, and goes on in a segment behind it. What is
    /// kept of a part of it is rewritten again: a sealed segment is read to the end of its last block.
    pub(super) fn end_in_rewritten(
        &self,
        source: &Arc<dyn Source>,
        extent: &Extent,
        next_index: u64,
    ) -> Result<()> {
        let start = self.options.block_bytes as u64;
        if let Some(behind) = self.writable_extent_at(next_index)? {
            return self.end_at(Extent { next_index, ..behind }, next_index, start);
        }
        let epoch = directory::next_epoch(&self.dir, self.tail().epoch)?;
        let (base_index, first_index) = (extent.segment.base_index, self.bounds().first_index);
        let rewritten = match extent.next_index == next_index {
            true => extent.clone(),
            false => {
                let held = base_index.max(first_index)..next_index;
                let mut kept = held.filter_map(|index| match read_one(source, index) {
                    Err(Error::LeftOut { .. }) => None,
                    other => Some(other),
                });
                self.write_rewritten(&(base_index..next_index), &mut kept)?
            }
        };
        let (live, _, average) = self.tail().space_facts();
        let (segment, capacity) = self.new_segment(next_index, start * 2, live, average)?;
        let mut manifest = self.manifest();
        let mut tail = self.tail();
        let is_before = |candidate: &Extent| {
            candidate.segment.base_index < base_index && candidate.next_index > first_index
        };
        let (mut kept, mut dropped): (Vec<Extent>, Vec<Extent>) =
            tail.take_all_extents().into_iter().partition(is_before);
        dropped.retain(|dropped| dropped.segment.segment_id != rewritten.segment.segment_id);
        kept.push(rewritten);
        tail.sealed_bytes = kept.iter().map(|extent| extent.end_position).sum();
        tail.sealed = kept;
        tail.next_index = next_index;
        tail.epoch = epoch;
        tail.begin_segment(&self.options, segment, capacity);
        drop(tail);
        manifest.save(self)?;
        self.publish(&self.tail());
        tracing::info!(dir = %self.dir.display(), next_index, "stream truncated in a rewritten segment");
        self.drop_segments(dropped);
        Ok(())
    }

    /// Makes the manifest name the rewritten segment instead of those it replaces.
    fn switch(&self, run: &Range<u64>, replaced: &[Extent], rewritten: Extent) -> Result<()> {
        let (first, now) = self.extents_of(run)?;
        let ids = |extents: &[Extent]| -> Vec<u64> {
            extents.iter().map(|extent| extent.segment.segment_id).collect()
        };
        if ids(&now) != ids(replaced) {
            return Err(Error::InvalidOption {
                option: "run",
                value: format!("{} to {} (exclusive)", run.start, run.end),
                expected: "segments that nobody else rewrites meanwhile".to_string(),
            });
        }
        let mut manifest = self.manifest();
        let mut tail = self.tail();
        // Readers in other processes see by the epoch that segments have changed.
        tail.epoch = directory::next_epoch(&self.dir, tail.epoch)?;
        let mut sealed_bytes = tail.sealed_bytes + rewritten.end_position;
        sealed_bytes -= now.iter().map(|extent| extent.end_position).sum::<u64>();
        tail.sealed.splice(first..first + now.len(), [rewritten]);
        tail.sealed_bytes = sealed_bytes;
        tail.cache.clear();
        let end_position = tail.writer.end_position();
        tail.resume_at(&self.options, end_position);
        drop(tail);
        manifest.save(self)?;
        drop(manifest);
        self.publish(&self.tail());
        tracing::info!(dir = %self.dir.display(), ?run, replaced = now.len(), "segments rewritten");
        drop(now);
        self.drop_segments(replaced.to_vec());
        Ok(())
    }
}
