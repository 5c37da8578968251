//! The store on the simulated disk: against a model, under power failures, under faults.

#[path = "../../../lsfs/tests/support/mod.rs"]
mod support;

mod backup;
mod crash;
mod faults;
mod feed;
mod golden;

mod healing;
mod model;
mod order;
mod reading;
mod tail;

use std::collections::BTreeMap;

use kvs::{Batch, Durability, KvStore, Options, Swap};
use lsfs::Env;

pub(crate) const DIR: &str = "/store";

/// What a store should hold.
pub(crate) type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Small segments and little memory, so that a short run rotates, spills and compacts.
pub(crate) fn options(env: Env) -> Options {
    Options {
        segment_bytes: 32 << 10,
        index_bytes: 64 << 10,
        cache_bytes: 16 << 10,
        stale_percent: 20,
        env,
        ..Options::default()
    }
}

/// All keys that tests use.
pub(crate) fn key(n: u64) -> Vec<u8> {
    match n {
        0 => Vec::new(),
        1 => vec![0xff; 300],
        n => format!("key {n}").into_bytes(),
    }
}

/// A command on a store and its model.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    Put(u64, Vec<u8>),
    Delete(u64),
    Batch(Vec<(u64, Option<Vec<u8>>)>),
    /// Sets the key if its value is what the model says (`true`) or something else (`false`).
    Swap(u64, bool, Option<Vec<u8>>),
}

impl Command {
    /// What the command makes of the model.
    pub(crate) fn model(&self, model: &Model) -> Model {
        let mut model = model.clone();
        let mut set = |n: u64, value: &Option<Vec<u8>>| {
            match value {
                Some(value) => model.insert(key(n), value.clone()),
                None => model.remove(&key(n)),
            };
        };
        match self {
            Command::Put(n, value) => set(*n, &Some(value.clone())),
            Command::Delete(n) => set(*n, &None),
            Command::Batch(changes) => changes.iter().for_each(|(n, value)| set(*n, value)),
            Command::Swap(n, true, value) => set(*n, value),
            Command::Swap(_, false, _) => {}
        }
        model
    }

    /// Carries it out, and checks the answer against the model before it.
    pub(crate) fn run(&self, store: &KvStore, model: &Model) -> kvs::Result<()> {
        match self {
            Command::Put(n, value) => store.put(key(*n), value),
            Command::Delete(n) => {
                assert_eq!(store.delete(key(*n))?, model.contains_key(&key(*n)));
                Ok(())
            }
            Command::Batch(changes) => {
                let mut batch = Batch::new();
                for (n, value) in changes {
                    match value {
                        Some(value) => batch.put(key(*n), value.clone()),
                        None => batch.delete(key(*n)),
                    };
                }
                store.write(&batch)
            }
            Command::Swap(n, agrees, new) => {
                let current = model.get(&key(*n));
                let expected = if *agrees { current.cloned() } else { Some(b"never set".to_vec()) };
                let swap = store.compare_and_swap(key(*n), expected.as_deref(), new.as_deref())?;
                let wanted = match agrees {
                    true => Swap::Done,
                    false => Swap::Differs { current: current.cloned() },
                };
                assert_eq!(swap, wanted);
                Ok(())
            }
        }
    }
}

/// Everything in the store, by looking up all keys there can be.
pub(crate) fn contents(store: &KvStore, keys: u64) -> kvs::Result<Model> {
    let mut found = Model::new();
    for n in 0..keys {
        if let Some(value) = store.get_bytes(key(n))? {
            found.insert(key(n), value);
        }
    }
    Ok(found)
}

/// Checks the store against the model.
#[track_caller]
pub(crate) fn expect(store: &KvStore, model: &Model, keys: u64, context: &str) {
    let found = contents(store, keys).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(found == *model, "{context}: {}", difference(&found, model));
    assert_eq!(store.stats().keys, model.len() as u64, "{context}: the count of keys");
}

/// What differs, in short.
pub(crate) fn difference(found: &Model, wanted: &Model) -> String {
    let keys = found.keys().chain(wanted.keys());
    let shown = |model: &Model, key: &[u8]| {
        model.get(key).map_or("nothing".to_string(), |value| {
            format!("{} bytes of {:?}", value.len(), value.first().copied())
        })
    };
    let different = keys.filter(|key| found.get(*key) != wanted.get(*key)).map(|key| {
        format!("{:?}: {}, expected {}", String::from_utf8_lossy(key), shown(found, key), shown(wanted, key))
    });
    different.collect::<Vec<_>>().join("; ")
}

pub(crate) fn buffered(store: &KvStore) -> KvStore {
    store.with_durability(Durability::Buffer)
}
