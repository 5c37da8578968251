//! The block store: a record stream as a log's storage.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::directory::{self, INDEX_EXTENSION};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::log::backend::{Durability, LogRecords, LogSegment, StorageBackend, StoreKind};
use crate::log::cleanup::{DroppedSegment, StorageCleanup};
use crate::stream::{Cursor, Extent, Reader, Record, RecordRef, RecordStream, StreamOptions};

/// A log in a record stream. See the module.
#[derive(Debug)]
pub(crate) struct BlockStore {
    stream: Stream,
    cleanup: Arc<dyn StorageCleanup>,
}

#[derive(Debug)]
enum Stream {
    Writer(RecordStream),
    Reader(Reader),
}

impl BlockStore {
    /// Opens the stream in `dir` for writing, or makes it.
    pub(crate) fn open(
        env: Env,
        dir: &Path,
        options: StreamOptions,
        cleanup: Arc<dyn StorageCleanup>,
    ) -> Result<BlockStore> {
        let stream = RecordStream::open_in(env.clone(), dir, options)?;
        let store = BlockStore { stream: Stream::Writer(stream), cleanup };
        store.remove_orphans(&env, dir)?;
        Ok(store)
    }

    /// Opens the stream in `dir` for reading.
    pub(crate) fn open_read_only(
        env: Env,
        dir: &Path,
        cleanup: Arc<dyn StorageCleanup>,
    ) -> Result<BlockStore> {
        Ok(BlockStore { stream: Stream::Reader(Reader::open_in(env, dir)?), cleanup })
    }

    /// Removes indexes of segments that are gone: a crash came between the one and the other.
    fn remove_orphans(&self, env: &Env, dir: &Path) -> Result<()> {
        let bases: Vec<u64> = self.extents()?.iter().map(|extent| extent.segment.base_index).collect();
        let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
        for base in
            entries.iter().filter_map(|entry| directory::base_index_before(&entry.name, INDEX_EXTENSION))
        {
            if !bases.contains(&base) {
                self.remove_indexes([base])?;
            }
        }
        Ok(())
    }

    fn remove_indexes(&self, bases: impl IntoIterator<Item = u64>) -> Result<()> {
        bases.into_iter().try_for_each(|base_offset| {
            let names = vec![format!("{base_offset:020}.{INDEX_EXTENSION}")];
            self.cleanup.remove(&DroppedSegment { base_offset, names })
        })
    }

    fn extents(&self) -> Result<Vec<Extent>> {
        match &self.stream {
            Stream::Writer(stream) => Ok(stream.extents()),
            Stream::Reader(reader) => Ok(reader.segments()?.1),
        }
    }

    fn writer(&self) -> Result<&RecordStream> {
        match &self.stream {
            Stream::Writer(stream) => Ok(stream),
            Stream::Reader(reader) => {
                let source = std::io::Error::new(
                    std::io::ErrorKind::ReadOnlyFilesystem,
                    "the log is open for reading only",
                );
                Err(Error::io("write to", reader.dir(), source))
            }
        }
    }

    /// Runs `change` and removes the indexes of the segments that are gone or new after it.
    fn change(&self, change: impl FnOnce(&RecordStream) -> Result<()>) -> Result<()> {
        let stream = self.writer()?;
        let identities = |extents: Vec<Extent>| -> Vec<(u64, u64)> {
            extents.iter().map(|extent| (extent.segment.base_index, extent.segment.segment_id)).collect()
        };
        let before = identities(stream.extents());
        change(stream)?;
        let after = identities(stream.extents());
        self.remove_indexes(before.iter().filter(|identity| !after.contains(identity)).map(|(base, _)| *base))
    }
}

impl StorageBackend for BlockStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Block
    }

    fn append(&self, type_code: u64, payload: &[u8], durability: Durability) -> Result<u64> {
        let stream = self.writer()?;
        match durability {
            Durability::Buffered => stream.append_buffered(type_code, payload),
            Durability::Durable => stream.append(type_code, payload),
        }
    }

    fn flush(&self) -> Result<()> {
        self.writer()?.sync()
    }

    fn read(&self, offset: u64) -> Result<Record> {
        match &self.stream {
            Stream::Writer(stream) => stream.read(offset),
            Stream::Reader(reader) => reader.read(offset),
        }
    }

    fn records(&self, range: Range<u64>) -> Result<Box<dyn LogRecords>> {
        Ok(Box::new(match &self.stream {
            Stream::Writer(stream) => stream.iter(range),
            Stream::Reader(reader) => reader.iter(range)?,
        }))
    }

    fn range(&self) -> Result<Range<u64>> {
        match &self.stream {
            Stream::Writer(stream) => Ok(stream.first_index()..stream.next_index()),
            Stream::Reader(reader) => reader.bounds(),
        }
    }

    fn segments(&self) -> Result<Vec<LogSegment>> {
        let extents = self.extents()?;
        let last = extents.len().saturating_sub(1);
        let segment = |(at, extent): (usize, &Extent)| LogSegment {
            base_offset: extent.segment.base_index,
            next_offset: extent.next_index,
            bytes: extent.end_position,
            is_sealed: at < last,
        };
        Ok(extents.iter().enumerate().map(segment).collect())
    }

    fn rotate(&self) -> Result<()> {
        self.writer()?.rotate()
    }

    fn drop_before(&self, offset: u64) -> Result<()> {
        self.change(|stream| {
            let held = stream.first_index()..stream.next_index();
            if offset > held.end {
                return Err(Error::OutOfRange { index: offset, held });
            }
            let mut extents = stream.extents();
            extents.pop();
            match extents.iter().rfind(|extent| extent.next_index <= offset) {
                Some(last) => stream.purge_before(last.next_index),
                None => Ok(()),
            }
        })
    }

    fn replace(&self, run: Range<u64>, records: &mut dyn Iterator<Item = Result<Record>>) -> Result<()> {
        self.change(|stream| stream.replace_sealed(run, records))
    }

    fn reset(&self, offset: u64) -> Result<()> {
        self.change(|stream| stream.reset_to(offset))
    }

    fn close(&self) -> Result<()> {
        match &self.stream {
            Stream::Writer(stream) => stream.close(),
            Stream::Reader(_) => Ok(()),
        }
    }
}

impl LogRecords for Cursor {
    fn next_record(&mut self) -> Result<Option<RecordRef<'_>>> {
        Cursor::next_record(self)
    }
}
