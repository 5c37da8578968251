//! What a key-value engine can do, for those who want to be free to use another one.

use crate::error::Result;
use crate::store::KvStore;

/// A map from strings to strings that can be shared between threads by cloning it.
pub trait KvsEngine: Clone + Send + 'static {
    /// Sets a key to a value, whether it was there or not.
    ///
    /// # Errors
    /// If the pair could not be made durable.
    fn set(&self, key: String, value: String) -> Result<()>;

    /// The value of a key; `None` if it is not there.
    ///
    /// # Errors
    /// If that could not be found out.
    fn get(&self, key: String) -> Result<Option<String>>;

    /// Removes a key.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`](crate::Error::KeyNotFound) if it is not there.
    fn remove(&self, key: String) -> Result<()>;
}

impl KvsEngine for KvStore {
    fn set(&self, key: String, value: String) -> Result<()> {
        KvStore::set(self, key, value)
    }

    fn get(&self, key: String) -> Result<Option<String>> {
        KvStore::get(self, key)
    }

    fn remove(&self, key: String) -> Result<()> {
        KvStore::remove(self, key)
    }
}
