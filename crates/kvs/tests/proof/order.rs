//! Scans and snapshots against a `BTreeMap`.

use std::ops::Bound;

use kvs::{KvReader, KvStore, Range, Snapshot};

use crate::support::Choices;
use crate::{Model, difference, key};

type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// Random bounds, also such that nothing lies between them.
pub(crate) fn bounds(choices: &mut Choices, keys: u64) -> Bounds {
    let mut bound = || {
        let key = key(choices.below(keys));
        match choices.below(4) {
            0 => Bound::Unbounded,
            1 => Bound::Excluded(key),
            _ => Bound::Included(key),
        }
    };
    (bound(), bound())
}

fn wanted(model: &Model, (lower, upper): &Bounds) -> Vec<(Vec<u8>, Vec<u8>)> {
    let is_within = |key: &Vec<u8>| {
        let above = match lower {
            Bound::Unbounded => true,
            Bound::Included(bound) => key >= bound,
            Bound::Excluded(bound) => key > bound,
        };
        let below = match upper {
            Bound::Unbounded => true,
            Bound::Included(bound) => key <= bound,
            Bound::Excluded(bound) => key < bound,
        };
        above && below
    };
    let pairs = model.iter().filter(|(key, _)| is_within(key));
    pairs.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Goes through a range from both ends, in a random order of ends, and puts it together again.
fn from_both_ends(mut range: Range, choices: &mut Choices) -> kvs::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    let turns = choices.next();
    for turn in 0.. {
        let next = match choices.below(7) {
            0 => turns & 1 == 0,
            _ => turns >> (turn % 64) & 1 == 0,
        };
        let next = if next {
            range.next().map(|pair| (true, pair))
        } else {
            range.next_back().map(|pair| (false, pair))
        };
        match next {
            Some((true, pair)) => front.push(pair?),
            Some((false, pair)) => back.push(pair?),
            None => break,
        }
    }
    assert!(range.next().is_none() && range.next_back().is_none(), "an iterator that has ended has ended");
    front.extend(back.into_iter().rev());
    Ok(front)
}

/// Checks a view against the model.
pub(crate) fn check_snapshot(
    snapshot: &Snapshot,
    model: &Model,
    choices: &mut Choices,
    keys: u64,
) -> kvs::Result<()> {
    let mut found = Model::new();
    snapshot.iter().lend_each::<kvs::Error>(|key, value| {
        assert!(found.last_key_value().is_none_or(|(last, _)| &last[..] < key), "in order");
        found.insert(key.to_vec(), value.to_vec());
        Ok(())
    })?;
    assert!(found == *model, "{}", difference(&found, model));
    let all = (Bound::Unbounded, Bound::Unbounded);
    let descending: Vec<_> = snapshot.iter().rev().collect::<kvs::Result<_>>()?;
    assert!(descending.iter().rev().eq(&wanted(model, &all)), "descending");
    for _ in 0..3 {
        let bounds = bounds(choices, keys);
        let wanted = wanted(model, &bounds);
        let found = from_both_ends(snapshot.range::<Vec<u8>>(bounds.clone()), choices)?;
        assert!(found == wanted, "{bounds:?}: {} keys, expected {}", found.len(), wanted.len());
        let found: Vec<_> =
            snapshot.range::<Vec<u8>>(bounds.clone()).keys().rev().collect::<kvs::Result<_>>()?;
        assert!(found.iter().rev().eq(wanted.iter().map(|(key, _)| key)), "{bounds:?}: keys, descending");
    }
    let of = key(choices.below(keys));
    let prefix = &of[..choices.below(of.len() as u64 + 1) as usize];
    let found: Vec<_> = snapshot.prefix(prefix).keys().collect::<kvs::Result<_>>()?;
    assert!(found.iter().eq(model.keys().filter(|key| key.starts_with(prefix))), "prefix {prefix:?}");
    for n in 0..keys.min(8) {
        let key = key((choices.next() ^ n) % keys);
        assert_eq!(snapshot.get_bytes(&key)?.as_ref(), model.get(&key));
        assert_eq!(snapshot.contains(&key)?, model.contains_key(&key));
    }
    Ok(())
}

/// Checks scans of a store.
#[track_caller]
pub(crate) fn check_store(store: &KvStore, model: &Model, choices: &mut Choices, keys: u64) {
    check_snapshot(&store.snapshot().unwrap(), model, choices, keys).unwrap();
}

/// What a reader without a lock finds by scanning.
pub(crate) fn scan(reader: &KvReader) -> kvs::Result<Model> {
    reader.iter()?.collect()
}
