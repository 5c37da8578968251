//! Several commands that become durable as one.

/// Commands to be written as one by [`KvStore::write`](crate::KvStore::write): after a crash all of them are there, or
/// none. Of several commands for one key the last one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub(crate) changes: Vec<Change>,
}

/// A command for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: Vec<u8>,
    /// `None` removes the key.
    pub(crate) value: Option<Vec<u8>>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Sets a key.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> &mut Batch {
        self.changes.push(Change { key: key.into(), value: Some(value.into()) });
        self
    }

    /// Removes a key; one that is not there is left as it is.
    pub fn delete(&mut self, key: impl Into<Vec<u8>>) -> &mut Batch {
        self.changes.push(Change { key: key.into(), value: None });
        self
    }

    /// How many commands it has.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}
