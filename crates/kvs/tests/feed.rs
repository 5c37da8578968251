//! The change feed on the real disk, in the writer's process and beside it.

use std::thread;
use std::time::Duration;

use kvs::{Batch, Change, Durability, Error, Feed, FeedStart, KvReader, KvStore, Options, Position, Result};

fn shown(change: &Change) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let value = change.value.as_ref().map_or("-".to_string(), |value| text(value));
    format!("{}={value}{}", text(&change.key), if change.ends_batch { "." } else { "" })
}

fn rest(feed: &mut Feed) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    while let Some(change) = feed.next_change()? {
        assert_eq!(change.position, feed.position());
        changes.push(shown(&change));
    }
    Ok(changes)
}

#[test]
fn changes_come_in_order_and_go_on_from_a_position() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let store = KvStore::open(dir.path())?;
    let reader = KvReader::open(dir.path())?;
    store.put("a", "1")?;
    let mut feeds = [store.changes(FeedStart::First)?, reader.changes(FeedStart::First)?];
    let from_now = [store.changes(FeedStart::Now)?, reader.changes(FeedStart::Now)?];
    store.put("b", "2")?;
    store.delete("a")?;
    store.delete("never there")?;
    store.write(Batch::new().put("c", "3").put("d", "4").delete("b"))?;
    let expected = ["a=1.", "b=2.", "a=-.", "c=3", "d=4", "b=-."];
    for feed in &mut feeds {
        assert_eq!(rest(feed)?, expected);
        assert_eq!(feed.next_change()?, None);
    }
    for mut feed in from_now {
        assert_eq!(rest(&mut feed)?, expected[1..]);
    }
    store.put("e", "5")?;
    assert_eq!(rest(&mut feeds[1])?, ["e=5."]);
    // From each position on the rest comes, in another process or another time too.
    let mut feed = store.changes(FeedStart::First)?;
    let mut positions = vec![];
    while let Some(change) = feed.next_change()? {
        positions.push(change.position);
    }
    assert!(positions.is_sorted());
    store.checkpoint()?;
    drop((store, feed, feeds));
    let store = KvStore::open(dir.path())?;
    let expected = [&expected[..], &["e=5."]].concat();
    for (n, position) in positions.iter().enumerate() {
        let position: Position = position.to_string().parse()?;
        assert_eq!(rest(&mut store.changes(position.into())?)?, expected[n + 1..]);
        assert_eq!(rest(&mut reader.changes(FeedStart::At(position))?)?, expected[n + 1..]);
    }
    assert_eq!(store.position()?, reader.position()?);
    Ok(())
}

#[test]
fn only_what_is_durable_is_a_change() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let store = KvStore::open(dir.path())?;
    let mut feed = store.changes(FeedStart::First)?;
    store.with_durability(Durability::Buffer).put("a", "1")?;
    store.sync()?;
    assert_eq!(rest(&mut feed)?, ["a=1."]);
    Ok(())
}

#[test]
fn copies_of_compaction_are_no_changes_and_what_is_gone_is_said() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 64 << 10, background: false, ..Options::default() };
    let store = KvStore::open_with(dir.path(), options)?;
    let fast = store.with_durability(Durability::Buffer);
    for n in 0..100 {
        fast.put(format!("stays {n}"), [b'x'; 100])?;
        fast.put("changes", [b'y'; 900])?;
    }
    store.sync()?;
    let before = store.position()?;
    let (mut following, mut behind) = (store.changes(FeedStart::Now)?, store.changes(FeedStart::First)?);
    assert_eq!(shown(&behind.next_change()?.unwrap()).len(), "stays 0=".len() + 101);
    store.compact(|_| true)?;
    assert!(store.stats().reclaimed_segments > 0);
    store.put("after", "it")?;
    assert_eq!(rest(&mut following)?, ["after=it."], "copies are passed over");
    let reader = KvReader::open(dir.path())?;
    for changes in [store.changes(FeedStart::First), reader.changes(FeedStart::First)] {
        assert!(matches!(changes, Err(Error::PositionGone { .. })), "{changes:?}");
    }
    // A feed that was left behind ends with the error, again and again, and its position stays where it was.
    let error = loop {
        match behind.next_change() {
            Ok(change) => assert!(change.is_some(), "the end was reached over a gap"),
            Err(error) => break error,
        }
    };
    let position = behind.position();
    assert!(matches!(error, Error::PositionGone { position: of } if of == position), "{error}");
    assert!(error.to_string().contains(&position.to_string()) && error.to_string().contains("backup"));
    assert!(matches!(behind.next_change(), Err(Error::PositionGone { .. })));
    assert!(position < before);
    Ok(())
}

#[test]
fn positions_of_other_stores_are_refused() -> Result<()> {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (KvStore::open(one.path())?, KvStore::open(two.path())?);
    one.put("a", "1")?;
    let position = one.position()?;
    let refused = |from: Position| match one.changes(from.into()) {
        Err(Error::WrongPosition { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(matches!(two.changes(position.into()), Err(Error::WrongPosition { .. })));
    let text = position.to_string();
    let (place, _) = text.rsplit_once('-').unwrap();
    assert!(refused(format!("{place}-999999").parse()?).contains("the log ends at"));
    let (store, _) = place.rsplit_once('-').unwrap();
    assert!(refused(format!("{store}-9-4096").parse()?).contains("the log ends at"));
    Ok(())
}

#[test]
fn a_feed_waits_for_changes() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let store = KvStore::open(dir.path())?;
    let reader = KvReader::open(dir.path())?;
    assert_eq!(reader.changes(FeedStart::Now)?.wait_for_change(Some(Duration::from_millis(30)))?, None);
    const CHANGES: u64 = 300;
    let follow = |mut feed: Feed| {
        for n in 0..CHANGES {
            let change = feed.wait_for_change(None).unwrap().unwrap();
            assert_eq!(shown(&change), format!("key={n}."));
        }
    };
    let feeds = [store.changes(FeedStart::Now)?, reader.changes(FeedStart::Now)?];
    thread::scope(|scope| {
        for feed in feeds {
            scope.spawn(move || follow(feed));
        }
        for n in 0..CHANGES {
            store.put("key", n.to_string()).unwrap();
        }
    });
    Ok(())
}
