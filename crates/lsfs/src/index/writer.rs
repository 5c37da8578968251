//! Appending entries to an index file.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::{INDEX_ENTRY_BYTES, IndexEntry};
use crate::directory;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::io::{ANY_UNIT_BYTES, AlignedBuf, File, OpenMode, WriteSync};

/// Entries are written when this many bytes of them are there, or when they are asked for.
const BUFFER_BYTES: usize = 256 << 10;
/// Behind the name of an index that is being written anew.
const NEW_SUFFIX: &str = ".new";

/// Appends entries in any order.
///
/// What is appended is in memory until [`IndexWriter::flush`] or [`IndexWriter::seal`], or until much has come together.
/// The file is written in units of 4096 bytes; behind the last entry there are zeros.
#[derive(Debug)]
pub(crate) struct IndexWriter {
    env: Env,
    path: PathBuf,
    /// Where the file is until [`IndexWriter::seal`] gives it its name, if it replaces another.
    new_path: Option<PathBuf>,
    file: Arc<dyn File>,
    /// Bytes of the file from `buf_position` on; those before `written` are in the file.
    buf: AlignedBuf,
    buf_position: u64,
    used: usize,
    written: usize,
}

/// Whether a file name is that of an index that was never finished.
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(NEW_SUFFIX)
        .is_some_and(|name| directory::base_index_before(name, directory::INDEX_EXTENSION).is_some())
}

impl IndexWriter {
    /// Begins a new index under a name of its own; [`IndexWriter::publish`] or [`IndexWriter::seal`] put it in the place
    /// of the one at `path`, if there is one.
    pub(crate) fn replace(env: &Env, path: &Path) -> Result<IndexWriter> {
        let mut name = path.as_os_str().to_owned();
        name.push(NEW_SUFFIX);
        let new_path = PathBuf::from(name);
        match env.disk.remove(&new_path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io("remove", &new_path, error));
            }
            _ => {}
        }
        let file = env
            .disk
            .open(&new_path, OpenMode::CreateNew, ANY_UNIT_BYTES)
            .map_err(|error| Error::write("create", &new_path, BUFFER_BYTES as u64, error))?;
        Ok(IndexWriter::at(env, path, Some(new_path), file))
    }

    /// Goes on behind the first `count` entries of the index at `path`.
    ///
    /// The caller has read that many. If there is anything but zeros behind them the index is begun anew with them; if
    /// the file is shorter, with those that are there: [`IndexWriter::entries`] says how many.
    pub(crate) fn resume(env: &Env, path: &Path, count: u64) -> Result<IndexWriter> {
        let file = match env.disk.open(path, OpenMode::Write, ANY_UNIT_BYTES) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return IndexWriter::replace(env, path),
            Err(error) => return Err(Error::io("open", path, error)),
        };
        let io_error = |error| Error::io("read", path, error);
        let len = file.len().map_err(io_error)?;
        let kept = count.min(len / INDEX_ENTRY_BYTES as u64) * INDEX_ENTRY_BYTES as u64;
        let mut writer = IndexWriter::at(env, path, None, Arc::clone(&file));
        let unit = ANY_UNIT_BYTES as u64;
        writer.buf_position = kept / unit * unit;
        let read =
            file.read_full_at(&mut writer.buf[..ANY_UNIT_BYTES], writer.buf_position).map_err(io_error)?;
        writer.used = (kept - writer.buf_position) as usize;
        writer.written = writer.used;
        let rest_is_zero = writer.buf[writer.used..read.max(writer.used)].iter().all(|&byte| byte == 0);
        if kept == count * INDEX_ENTRY_BYTES as u64 && rest_is_zero && len <= writer.buf_position + unit {
            writer.buf[writer.used..ANY_UNIT_BYTES].fill(0);
            return Ok(writer);
        }
        let mut anew = IndexWriter::replace(env, path)?;
        let mut piece = AlignedBuf::zeroed(BUFFER_BYTES);
        let mut position = 0;
        while position < kept {
            let read = file.read_full_at(&mut piece, position).map_err(io_error)?;
            let usable = read.min((kept - position) as usize);
            for entry in piece[..usable].as_chunks().0 {
                anew.append(IndexEntry::decode(entry))?;
            }
            if read < piece.len() {
                break;
            }
            position += read as u64;
        }
        Ok(anew)
    }

    fn at(env: &Env, path: &Path, new_path: Option<PathBuf>, file: Arc<dyn File>) -> IndexWriter {
        IndexWriter {
            env: env.clone(),
            path: path.to_path_buf(),
            new_path,
            file,
            buf: AlignedBuf::zeroed(BUFFER_BYTES),
            buf_position: 0,
            used: 0,
            written: 0,
        }
    }

    /// Entries in the file and in memory.
    pub(crate) fn entries(&self) -> u64 {
        (self.buf_position + self.used as u64) / INDEX_ENTRY_BYTES as u64
    }

    /// Bytes that are not in the file yet.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.used - self.written
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// If much had come together and could not be written.
    pub(crate) fn append(&mut self, entry: IndexEntry) -> Result<()> {
        if self.used == self.buf.len() {
            self.flush()?;
            self.buf_position += self.used as u64;
            (self.used, self.written) = (0, 0);
            self.buf.fill(0);
        }
        self.buf[self.used..self.used + INDEX_ENTRY_BYTES].copy_from_slice(&entry.encode());
        self.used += INDEX_ENTRY_BYTES;
        Ok(())
    }

    /// Writes what was appended. Not durable: it can be derived again.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if self.pending_bytes() == 0 {
            return Ok(());
        }
        let start = self.written / ANY_UNIT_BYTES * ANY_UNIT_BYTES;
        let end = self.used.next_multiple_of(ANY_UNIT_BYTES);
        let position = self.buf_position + start as u64;
        self.file
            .write_all_at(&self.buf[start..end], position, WriteSync::Later)
            .map_err(|error| Error::write("write", self.file.path(), (end - start) as u64, error))?;
        self.written = self.used;
        Ok(())
    }

    /// Flushes, and puts a new index in its place; entries may still be appended.
    pub(crate) fn publish(&mut self) -> Result<()> {
        self.flush()?;
        if let Some(new_path) = &self.new_path {
            self.env
                .disk
                .rename(new_path, &self.path)
                .map_err(|error| Error::io("rename a new index to", &self.path, error))?;
            self.new_path = None;
        }
        Ok(())
    }

    /// Writes everything, cuts the zeros behind the last entry, and makes the bytes durable; then the index is at its
    /// place.
    pub(crate) fn seal(mut self) -> Result<()> {
        self.flush()?;
        let failed = |error| Error::write("seal", &self.path, 0, error);
        self.file.set_len(self.buf_position + self.used as u64).map_err(failed)?;
        self.file.sync().map_err(failed)?;
        self.publish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{IndexTable, StoredIndex};

    fn entry(n: u64) -> IndexEntry {
        IndexEntry { offset: 100 + n, position: 4146 + n * 40 }
    }

    fn stored(env: &Env, path: &Path) -> StoredIndex {
        IndexTable::read(env, path, entry(0), 1 << 30).unwrap().unwrap()
    }

    fn expect(env: &Env, path: &Path, count: u64) {
        let entries = (0..count).map(entry).collect();
        let expected =
            StoredIndex { table: IndexTable::from_entries(entries), is_in_order: true, surplus_bytes: 0 };
        assert!(stored(env, path) == expected, "{count} entries");
    }

    #[test]
    fn a_growing_index_is_readable_after_each_flush_and_exact_once_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let (env, path) = (Env::default(), dir.path().join("x.idx"));
        let mut writer = IndexWriter::replace(&env, &path).unwrap();
        for n in 0..40_000 {
            writer.append(entry(n)).unwrap();
            if n % 7919 == 0 {
                writer.publish().unwrap();
                assert_eq!(writer.pending_bytes(), 0);
                expect(&env, &path, n + 1);
            }
        }
        writer.seal().unwrap();
        expect(&env, &path, 40_000);
        assert_eq!(path.metadata().unwrap().len(), 640_000);
    }

    #[test]
    fn resuming_keeps_what_is_asked_for_and_nothing_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let (env, path) = (Env::default(), dir.path().join("x.idx"));
        for there in [0, 1, 255, 256, 257, 20_000] {
            for keep in [0, 1, 254, 256, 300, 19_999, 20_000, 20_001] {
                let mut writer = IndexWriter::replace(&env, &path).unwrap();
                (0..there).for_each(|n| writer.append(entry(n)).unwrap());
                writer.seal().unwrap();
                let mut writer = IndexWriter::resume(&env, &path, keep).unwrap();
                let kept = writer.entries();
                assert_eq!(kept, keep.min(there), "of {there}, asked for {keep}");
                (kept..kept + 300).for_each(|n| writer.append(entry(n)).unwrap());
                writer.publish().unwrap();
                expect(&env, &path, kept + 300);
            }
        }
    }

    #[test]
    fn an_unfinished_index_is_known_by_its_name() {
        assert!(is_unfinished("00000000000000000042.idx.new"));
        assert!(!is_unfinished("00000000000000000042.idx") && !is_unfinished("notes.new"));
    }
}
