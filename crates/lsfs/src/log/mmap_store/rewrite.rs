//! Replacing a run of sealed segments, and beginning anew.

use std::ops::Range;
use std::sync::Arc;

use super::files::{self, LOG_EXTENSION, MappedFile, RESET_EXTENSION, SPARSE_EXTENSION};
use super::segment::Sealed;
use super::{Flushed, Shared, recovery};
use crate::codec::{
    INDEX_ENTRY_BYTES, IndexEntry, MAPPED_FRAME_HEADER_BYTES, SparseTable, mapped_frame_header,
};
use crate::directory::{self, INDEX_EXTENSION};
use crate::error::{Error, Result};
use crate::log::check_rewritten;
use crate::stream::Record;

impl Shared {
    /// See `StorageBackend::replace`. The table of offsets gets its name last: that is the moment of the change.
    pub(super) fn replace(
        &self,
        run: Range<u64>,
        records: &mut dyn Iterator<Item = Result<Record>>,
    ) -> Result<()> {
        // Others may append meanwhile, but not flush, rotate or drop: this is one change of the sealed segments.
        let mut flushed = self.flushing();
        let (first, count) = self.find_run(&run)?;
        let rewrite_id = self.env.runtime.random();
        let log_path = files::rewritten_path(&self.dir, run.start, rewrite_id);
        let index_path = files::new_path(&self.dir, run.start, INDEX_EXTENSION);
        let table_path = files::new_path(&self.dir, run.start, SPARSE_EXTENSION);
        let written = self.write_run(&run, rewrite_id, records, [&log_path, &index_path, &table_path]);
        if let Err(error) = written {
            for path in [&log_path, &index_path, &table_path] {
                if let Err(error) = recovery::remove_if_there(&self.env, path) {
                    tracing::debug!(%error, "could not remove what a failed rewrite left");
                }
            }
            return Err(error);
        }
        let path = files::path_of(&self.dir, run.start, SPARSE_EXTENSION);
        let switched = directory::sync_parent(&self.env, &log_path)
            .and_then(|()| {
                let renamed = self.env.disk.rename(&table_path, &path);
                renamed.map_err(|error| Error::io("rename a sparse table to", &path, error))
            })
            .and_then(|()| directory::sync_parent(&self.env, &path))
            .and_then(|()| {
                recovery::finish_rewrite(&self.env, &self.dir, run.start, rewrite_id, &*self.cleanup)
            });
        if let Err(error) = switched {
            // Which of the two is on the medium is not known: the next open decides.
            let next = flushed.next;
            return self.fail(next..next, error);
        }
        let mut state = self.write_state();
        let log_path = files::path_of(&self.dir, run.start, LOG_EXTENSION);
        let segment = Arc::new(Sealed::new(run.start, run.end, log_path));
        state.sealed.splice(first..first + count, [segment]);
        self.kept.forget();
        flushed.base = flushed.base.max(run.end);
        tracing::info!(dir = %self.dir.display(), ?run, replaced = count, "segments rewritten");
        Ok(())
    }

    /// The sealed segments that stand for exactly this run: the first of them, and how many.
    fn find_run(&self, run: &Range<u64>) -> Result<(usize, usize)> {
        let state = self.read_state();
        self.check_usable(&state)?;
        let ranges = state.sealed.iter().map(|sealed| sealed.base..sealed.next);
        crate::log::find_run(run, ranges)
    }

    fn write_run(
        &self,
        run: &Range<u64>,
        rewrite_id: u64,
        records: &mut dyn Iterator<Item = Result<Record>>,
        [log_path, index_path, table_path]: [&std::path::Path; 3],
    ) -> Result<()> {
        let mut log = MappedFile::create(&self.env, log_path, 0)?;
        let mut offsets = Vec::new();
        let mut entries = Vec::new();
        let mut position = 0;
        for record in records {
            let record = record?;
            check_rewritten(run, offsets.last().copied(), &record)?;
            self.check_payload(record.type_code, &record.payload)?;
            let end = position + MAPPED_FRAME_HEADER_BYTES + record.payload.len() as u64;
            log.reserve(end, u64::MAX / 2)?;
            log.write(position, &mapped_frame_header(record.payload.len() as u64))?;
            log.write(position + MAPPED_FRAME_HEADER_BYTES, &record.payload)?;
            offsets.push(record.index);
            entries.extend(IndexEntry { offset: record.index, position }.encode());
            position = end;
        }
        log.flush(0..log.len())?;
        // Padded with entries of zeros, as an index made ready is.
        entries.resize(entries.len().max(INDEX_ENTRY_BYTES), 0);
        files::write_whole(&self.env, index_path, &entries)?;
        let table = SparseTable { rewrite_id, base_offset: run.start, next_offset: run.end, offsets };
        files::write_whole(&self.env, table_path, &table.encode())
    }

    /// See `StorageBackend::reset`. A marker gets its name first: that is the moment of the change.
    pub(super) fn reset(&self, offset: u64) -> Result<()> {
        let mut flushed = self.flushing();
        let mut state = self.write_state();
        self.check_usable(&state)?;
        let marker = files::path_of(&self.dir, offset, RESET_EXTENSION);
        let decided = files::write_whole(&self.env, &marker, &[])
            .and_then(|()| directory::sync_parent(&self.env, &marker))
            .and_then(|()| recovery::finish_reset(&self.env, &self.dir, offset, &*self.cleanup));
        match decided {
            Ok(active) => {
                state.sealed.clear();
                state.active = active;
                self.kept.forget();
                *flushed = Flushed { base: offset, next: offset, position: 0 };
                tracing::info!(dir = %self.dir.display(), offset, "log reset");
                Ok(())
            }
            Err(error) => {
                let next = state.active.next();
                drop(state);
                self.fail(next..next, error)
            }
        }
    }
}
