//! Consistent views, and scans of a store and of a reader: each is of one moment.

use std::io::Write;
use std::ops::RangeBounds;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::order::{View, view_of};
use crate::range::Range;
use crate::reader::KvReader;
use crate::store::{KvStore, string_of};
use crate::transfer::write_json_line;

/// The store as it was at one moment, while writes and compaction go on. Cloning is cheap.
///
/// A snapshot of a [`KvStore`] keeps the segments it needs from being given back, so the space of what is overwritten
/// while it lives comes back when it goes, and it keeps the store open. One of a [`KvReader`] holds the segments
/// itself; the writer may still use their files again, which is [`Error::Outdated`](crate::Error::Outdated).
///
/// ```
/// # fn main() -> kvs::Result<()> {
/// # let temporary = tempfile::tempdir().unwrap();
/// # let dir = temporary.path().join("store");
/// use kvs::KvStore;
///
/// let store = KvStore::open(&dir)?;
/// store.put("a", "1")?;
/// let snapshot = store.snapshot()?;
/// store.put("a", "2")?;
/// store.put("b", "3")?;
/// assert_eq!(snapshot.get_bytes("a")?, Some(b"1".to_vec()));
/// assert_eq!(snapshot.iter().count(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Snapshot {
    view: Arc<View>,
}

impl Snapshot {
    /// The value that a key had; `None` if it was not there.
    ///
    /// # Errors
    /// As for [`Snapshot::get_bytes`]; [`Error::NotUtf8`](crate::Error::NotUtf8) if the value is not a string.
    pub fn get(&self, key: String) -> Result<Option<String>> {
        let value = self.get_bytes(&key)?;
        string_of(key, value)
    }

    /// The value that a key had; `None` if it was not there.
    ///
    /// # Errors
    /// An error that [is corruption](crate::Error::is_corruption) if the value does not verify; of a reader's snapshot
    /// also [`Error::Outdated`](crate::Error::Outdated).
    pub fn get_bytes(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        self.view.get(key.as_ref())
    }

    /// The values that several keys had, in the order of the keys asked for.
    ///
    /// # Errors
    /// As for [`Snapshot::get_bytes`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Vec<u8>>>> {
        keys.iter().map(|key| self.get_bytes(key)).collect()
    }

    /// Whether a key had a value.
    ///
    /// # Errors
    /// As for [`Snapshot::get_bytes`].
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.view.find(key.as_ref())?.is_some())
    }

    /// The keys between two bounds, with their values; see [`KvStore::range`].
    pub fn range<K: AsRef<[u8]> + ?Sized>(&self, bounds: impl RangeBounds<K>) -> Range {
        Range::new(Arc::clone(&self.view), &bounds)
    }

    /// The keys that begin with a prefix, with their values.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Range {
        Range::with_prefix(Arc::clone(&self.view), prefix.as_ref())
    }

    /// All keys with their values.
    pub fn iter(&self) -> Range {
        self.prefix([])
    }

    /// Writes all keys and values as lines of JSON, which [`JsonLines`](crate::JsonLines) reads, in the order of the keys;
    /// answers how many.
    ///
    /// # Errors
    /// As for [`Snapshot::get_bytes`], and errors of `target`.
    pub fn export(&self, mut target: impl Write) -> Result<u64> {
        let mut count = 0;
        self.iter().lend_each::<Error>(|key, value| {
            write_json_line(&mut target, key, Some(value)).map_err(|error| Error::Export(Arc::new(error)))?;
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }
}

impl IntoIterator for &Snapshot {
    type Item = <Range as Iterator>::Item;
    type IntoIter = Range;

    fn into_iter(self) -> Range {
        self.iter()
    }
}

impl KvStore {
    /// The store as it is now, to be read while writes go on.
    ///
    /// Like a get, it shows what is not durable yet. The first snapshot or scan of a store reads the part of the log of
    /// which there is no sorted run; see [`Options::ordered`](crate::Options::ordered).
    ///
    /// # Errors
    /// An error that [is corruption](crate::Error::is_corruption) if that part of the log does not verify; I/O errors.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Ok(Snapshot { view: view_of(self.owner())? })
    }

    /// The keys between two bounds in ascending order, with their values as they are now; `rev` gives them in descending
    /// order.
    ///
    /// The iterator has a view of its own, as a [`Snapshot`] has. Keys are compared as bytes.
    ///
    /// ```
    /// # fn main() -> kvs::Result<()> {
    /// # let temporary = tempfile::tempdir().unwrap();
    /// # let store = kvs::KvStore::open(temporary.path().join("store"))?;
    /// store.put("a", "1")?;
    /// store.put("b", "2")?;
    /// store.put("c", "3")?;
    /// let pairs: Vec<_> = store.range("a".."c")?.rev().collect::<kvs::Result<_>>()?;
    /// assert_eq!(pairs, [(b"b".to_vec(), b"2".to_vec()), (b"a".to_vec(), b"1".to_vec())]);
    /// assert_eq!(store.range("b"..)?.strings().next().unwrap()?, ("b".to_string(), "2".to_string()));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`KvStore::snapshot`].
    pub fn range<K: AsRef<[u8]> + ?Sized>(&self, bounds: impl RangeBounds<K>) -> Result<Range> {
        Ok(self.snapshot()?.range(bounds))
    }

    /// The keys that begin with a prefix in ascending order, with their values as they are now.
    ///
    /// # Errors
    /// As for [`KvStore::snapshot`].
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Result<Range> {
        Ok(self.snapshot()?.prefix(prefix))
    }

    /// All keys in ascending order, with their values as they are now.
    ///
    /// # Errors
    /// As for [`KvStore::snapshot`].
    pub fn iter(&self) -> Result<Range> {
        Ok(self.snapshot()?.iter())
    }
}

impl KvReader {
    /// What is durable now, to be read while the writer goes on.
    ///
    /// Memory is in proportion to the commands in the part of the log of which the writer has made no sorted run.
    ///
    /// # Errors
    /// As for [`KvStore::snapshot`].
    pub fn snapshot(&self) -> Result<Snapshot> {
        Ok(Snapshot { view: self.view_in_order()? })
    }

    /// The keys between two bounds in ascending order, with their values; see [`KvStore::range`].
    ///
    /// # Errors
    /// As for [`KvStore::snapshot`].
    pub fn range<K: AsRef<[u8]> + ?Sized>(&self, bounds: impl RangeBounds<K>) -> Result<Range> {
        Ok(self.snapshot()?.range(bounds))
    }

    /// The keys that begin with a prefix in ascending order, with their values.
    ///
    /// # Errors
    /// As for [`KvStore::snapshot`].
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Result<Range> {
        Ok(self.snapshot()?.prefix(prefix))
    }

    /// All keys in ascending order, with their values.
    ///
    /// # Errors
    /// As for [`KvStore::snapshot`].
    pub fn iter(&self) -> Result<Range> {
        Ok(self.snapshot()?.iter())
    }
}
