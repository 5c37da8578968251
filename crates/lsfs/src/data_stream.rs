//! Data streams: bytes with durable marks.
//!
//! The principal types are [`DataStream`], which appends, and [`DataReader`], which reads up to the last mark. The bytes
//! are cut into chunks; each chunk is a record of a [`RecordStream`] whose type code is the position of its first byte,
//! so the records themselves are the index for seeking (docs/design/0005-data-streams-on-records.md). The last mark
//! lives in final data beside them.
//!
//! **Invariants.** A mark is written after the bytes before it are durable. Reopening drops what lies behind the last
//! mark, so the bytes of a stream are always those before a mark and those written since.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::codec::{Compression, Mark};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::final_data::{FinalDataOptions, StatePair, read_state};
use crate::mutant::{self, Mutant};
use crate::stream::{Cursor, Reader, RecordStream, StreamOptions};

/// Bytes are cut into chunks of this size; marks may end a chunk earlier.
const CHUNK_BYTES: usize = 64 << 10;
/// Stem of the pair of files with the last mark.
pub(crate) const MARK_STEM: &str = "mark";

/// Settings of a data stream.
#[derive(Clone, Debug, Default)]
pub struct DataStreamOptions {
    /// Compression of the chunks.
    pub compression: Compression,
    /// Settings of the record stream below; its `compression` and `first_index` are not used.
    pub stream: StreamOptions,
}

/// A stream of bytes open for appending: an [`io::Write`] with [`DataStream::mark`].
///
/// Opening resumes at the last mark. Errors of [`io::Write`] wrap an [`Error`].
#[derive(Debug)]
pub struct DataStream {
    records: RecordStream,
    marks: StatePair,
    last_mark: Option<Mark>,
    /// Bytes taken so far, marked or not.
    position: u64,
    chunk: Vec<u8>,
}

impl DataStream {
    /// Opens the data stream in `dir` for appending, or creates it. Bytes behind the last mark are dropped.
    ///
    /// # Errors
    /// As for [`RecordStream::open`]; [`Error::Corrupt`] if the marked bytes are not all there.
    pub fn open(dir: impl AsRef<Path>, options: DataStreamOptions) -> Result<DataStream> {
        DataStream::open_in(Env::default(), dir, options)
    }

    /// As [`DataStream::open`], on the given disk and runtime.
    pub fn open_in(env: Env, dir: impl AsRef<Path>, options: DataStreamOptions) -> Result<DataStream> {
        let dir = dir.as_ref();
        let stream_options =
            StreamOptions { compression: options.compression, first_index: 0, ..options.stream };
        let mark_options = FinalDataOptions {
            block_bytes: stream_options.block_bytes,
            checksum: stream_options.checksum,
            limit_blocks: MARK_LIMIT_BLOCKS,
            ..FinalDataOptions::default()
        };
        // A directory with records but no marks is a record stream: the first mark is written before the first byte.
        if stream_options.create {
            crate::directory::create(&env, dir)?;
        }
        let has_marks = DataStream::is_in(&env, dir)?;
        let records = RecordStream::open_records(env.clone(), dir, stream_options)?;
        if !has_marks && records.next_index() > 0 {
            return Err(not_data(dir, "it is a record stream, not a data stream"));
        }
        let mut marks = StatePair::open(env, dir, MARK_STEM, mark_options)?;
        let last_mark = read_mark(dir, marks.state().map(|state| &*state.bytes))?;
        match &last_mark {
            None => {
                give_up_behind(&records, 0)?;
                // An empty mark makes the directory a data stream.
                marks.set(&[])?;
            }
            Some(mark) => resume(dir, &records, mark)?,
        }
        let position = last_mark.map_or(0, |mark| mark.byte_count);
        Ok(DataStream { records, marks, last_mark, position, chunk: Vec::new() })
    }

    /// Whether `dir` holds a data stream.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn is_in(env: &Env, dir: &Path) -> Result<bool> {
        StatePair::exists(env, dir, MARK_STEM)
    }

    /// Bytes in the stream, marked or not.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The last durable mark; `None` before the first.
    pub fn last_mark(&self) -> Option<Mark> {
        self.last_mark
    }

    /// Makes all bytes so far durable and names the place. Costs two durable writes.
    ///
    /// # Errors
    /// As for [`RecordStream::append`]; the mark may then be set or not, as reopening shows.
    pub fn mark(&mut self) -> Result<Mark> {
        self.put_chunk()?;
        if !mutant::is(Mutant::MarkBeforeData) {
            self.records.sync()?;
        }
        let record_count = self.records.next_index();
        let mut mark = Mark {
            number: self.last_mark.map_or(0, |mark| mark.number) + 1,
            byte_count: self.position,
            record_count,
            first_segment_base: 0,
            first_block: 0,
            first_offset: 0,
            last_block: 0,
        };
        let first_new = self.last_mark.map_or(0, |mark| mark.record_count);
        if record_count > 0 {
            let first = self.records.place_of(first_new.min(record_count - 1))?;
            let last = self.records.place_of(record_count - 1)?;
            mark.first_segment_base = first.segment_base;
            (mark.first_block, mark.first_offset) = first.start;
            mark.last_block = last.end.0;
        }
        self.marks.set(&mark.encode())?;
        self.last_mark = Some(mark);
        Ok(mark)
    }

    fn put_chunk(&mut self) -> Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let start = self.position - self.chunk.len() as u64;
        self.records.append_buffered(start, &self.chunk)?;
        self.chunk.clear();
        Ok(())
    }

    /// Closes the stream; bytes behind the last mark are given up.
    ///
    /// # Errors
    /// As for [`RecordStream::close`].
    pub fn close(mut self) -> Result<()> {
        self.marks.close()?;
        self.records.close()
    }
}

/// Blocks of a mark file before the other one takes over.
const MARK_LIMIT_BLOCKS: u32 = 16;

impl Write for DataStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        self.position += taken as u64;
        if self.chunk.len() == CHUNK_BYTES {
            self.put_chunk().map_err(io::Error::other)?;
        }
        Ok(taken)
    }

    /// Hands all bytes to the engine; only [`DataStream::mark`] makes them durable.
    fn flush(&mut self) -> io::Result<()> {
        self.put_chunk().map_err(io::Error::other)
    }
}

fn not_data(dir: &Path, reason: &str) -> Error {
    Error::NotFound { path: dir.to_path_buf(), expected: "a data stream", reason: reason.to_string() }
}

/// The mark in a state; none in the empty state that makes a directory a data stream.
pub(crate) fn read_mark(dir: &Path, state: Option<&[u8]>) -> Result<Option<Mark>> {
    match state {
        None | Some([]) => Ok(None),
        Some(bytes) => Mark::decode(bytes)
            .map(Some)
            .map_err(|fault| Error::corrupt(&dir.join(format!("{MARK_STEM}.a")), 0, None, fault)),
    }
}

/// Drops the chunks behind the last mark.
fn resume(dir: &Path, records: &RecordStream, mark: &Mark) -> Result<()> {
    let next = records.next_index();
    if next < mark.record_count {
        let reason = format!("mark {} counts {} chunks, {next} are there", mark.number, mark.record_count);
        return Err(Error::corrupt(dir, mark.byte_count, Some(next..mark.record_count), reason));
    }
    give_up_behind(records, mark.record_count)
}

fn give_up_behind(records: &RecordStream, record_count: u64) -> Result<()> {
    match record_count {
        count if count == records.next_index() => Ok(()),
        0 => records.reset_to(0),
        count => records.truncate_after(count - 1),
    }
}

/// Reads the bytes of a data stream up to its last mark: [`Read`] and [`Seek`], without a lock.
#[derive(Debug)]
pub struct DataReader {
    records: Reader,
    last_mark: Option<Mark>,
    byte_count: u64,
    record_count: u64,
    position: u64,
    cursor: Option<Cursor>,
    chunk: Vec<u8>,
    chunk_start: u64,
}

impl DataReader {
    /// Opens the data stream in `dir` for reading up to its present last mark.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none, [`Error::Corrupt`] if its mark is damaged.
    pub fn open(dir: impl AsRef<Path>) -> Result<DataReader> {
        DataReader::open_in(Env::default(), dir)
    }

    /// As [`DataReader::open`], on the given disk and runtime.
    pub fn open_in(env: Env, dir: impl AsRef<Path>) -> Result<DataReader> {
        let dir = dir.as_ref();
        let records = Reader::open_in(env.clone(), dir)?;
        let state = read_state(&env, dir, MARK_STEM)?.ok_or_else(|| not_data(dir, "it has no marks"))?;
        let mark = read_mark(dir, Some(&state.bytes))?;
        Ok(DataReader {
            records,
            last_mark: mark,
            byte_count: mark.map_or(0, |mark| mark.byte_count),
            record_count: mark.map_or(0, |mark| mark.record_count),
            position: 0,
            cursor: None,
            chunk: Vec::new(),
            chunk_start: 0,
        })
    }

    /// The mark up to which it reads; `None` before the first.
    pub fn last_mark(&self) -> Option<Mark> {
        self.last_mark
    }

    /// Bytes before the last mark.
    pub fn byte_count(&self) -> u64 {
        self.byte_count
    }

    /// Index of the chunk with the byte at `position`. Chunks are of one size except before marks, so the first guess is
    /// mostly right.
    fn chunk_of(&self, position: u64) -> Result<u64> {
        let (mut low, mut high) = (0, self.record_count);
        let mut guess = position / CHUNK_BYTES as u64;
        while high - low > 1 {
            let middle = guess.clamp(low + 1, high - 1);
            let Some((probed, start)) = self.start_behind(middle, high)? else {
                high = middle;
                guess = low + (high - low) / 2;
                continue;
            };
            if start <= position {
                low = probed
            } else {
                high = middle
            }
            // From the found start on, full chunks would lead here; halving takes over where they are not full.
            let ahead = position.saturating_sub(start) / CHUNK_BYTES as u64;
            guess = if start <= position && ahead < (high - low) / 2 {
                middle + ahead.max(1)
            } else {
                low + (high - low) / 2
            };
        }
        Ok(low)
    }

    /// The first chunk of a range that is not lost, and where it begins.
    fn start_behind(&self, first: u64, end: u64) -> Result<Option<(u64, u64)>> {
        for index in first..end {
            match self.records.read(index) {
                Ok(record) => return Ok(Some((index, record.type_code))),
                Err(error) if error.is_corruption() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Makes `chunk` the one with the byte at `position`.
    fn load(&mut self) -> Result<()> {
        let chunk_end = self.chunk_start + self.chunk.len() as u64;
        if (self.chunk_start..chunk_end).contains(&self.position) {
            return Ok(());
        }
        if self.cursor.is_none() || self.position != chunk_end {
            let first = self.chunk_of(self.position)?;
            self.cursor = Some(self.records.iter(first..self.record_count)?);
        }
        let cursor = self.cursor.as_mut().expect("just set");
        let Some(record) = cursor.next_record()? else {
            return Err(self.missing());
        };
        (self.chunk_start, self.chunk) = (record.type_code, record.payload.into_owned());
        let chunk_end = self.chunk_start + self.chunk.len() as u64;
        if (self.chunk_start..chunk_end).contains(&self.position) { Ok(()) } else { Err(self.missing()) }
    }

    fn missing(&self) -> Error {
        Error::OutOfRange { index: self.position, held: 0..self.byte_count }
    }
}

impl Read for DataReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || self.position >= self.byte_count {
            return Ok(0);
        }
        if let Err(error) = self.load() {
            self.cursor = None;
            return Err(io::Error::other(error));
        }
        let from = (self.position - self.chunk_start) as usize;
        let until_mark = usize::try_from(self.byte_count - self.position).unwrap_or(usize::MAX);
        let count = buf.len().min(self.chunk.len() - from).min(until_mark);
        buf[..count].copy_from_slice(&self.chunk[from..from + count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for DataReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(position) => {
                self.position = position;
                return Ok(position);
            }
            SeekFrom::End(offset) => (self.byte_count, offset),
            SeekFrom::Current(offset) => (self.position, offset),
        };
        self.position = base.checked_add_signed(offset).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "seek to a position before the first byte")
        })?;
        Ok(self.position)
    }
}
