//! The change feed: what was set and removed, in the order of the log, from a position on.
//!
//! The principal type is [`Feed`]; a [`Position`] says where to go on, also in another process and at another time.
//!
//! **Invariants.** Only durable changes are shown, each once and in the order in which they were made; copies that
//! compaction wrote are not changes. What is missing in the log between two changes is an error and never passed over.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use lsfs::codec::StreamId;
use lsfs::io::Runtime;
use lsfs::{Entries, Entry, SegmentSet, SegmentSetReader, SetSegmentInfo};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::lookup::{bad_record, record_of};
use crate::record::{Command, is_moved};
use crate::transfer::KeyChange;

/// A place in the log of one store: between two changes.
///
/// It stays good when the store is opened again, and in other processes, until compaction has given back what comes
/// behind it. As text (`Display`, `FromStr`, serde) it is `<store>-<segment>-<byte>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    store: u64,
    segment: u32,
    byte: u32,
}

/// Where a [`Feed`] begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedStart {
    /// With the first change that was ever made; an error if it is not there any more.
    First,
    /// With what is made from now on.
    Now,
    /// Behind a position.
    At(Position),
}

impl From<Position> for FeedStart {
    fn from(position: Position) -> FeedStart {
        FeedStart::At(position)
    }
}

/// A key was set or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Vec<u8>,
    /// What it was set to; `None` if it was removed.
    pub value: Option<Vec<u8>>,
    /// Whether it is the last change of its batch, or alone.
    pub ends_batch: bool,
    /// Behind the change: a feed from here goes on with the next one.
    pub position: Position,
}

/// The changes of a store, in the order in which they were made: from
/// [`KvStore::changes`](crate::KvStore::changes) or [`KvReader::changes`](crate::KvReader::changes).
///
/// It shows changes as soon as they are durable. It holds nothing back: a feed that is left behind by compaction ends
/// with [`Error::PositionGone`], and its reader begins again with a backup or an export.
///
/// ```
/// # fn main() -> kvs::Result<()> {
/// # let temporary = tempfile::tempdir().unwrap();
/// # let dir = temporary.path().join("store");
/// use kvs::{FeedStart, KvStore};
///
/// let store = KvStore::open(&dir)?;
/// let mut feed = store.changes(FeedStart::Now)?;
/// store.put("apples", "3")?;
/// store.delete("apples")?;
/// let change = feed.next_change()?.unwrap();
/// assert_eq!((&change.key[..], change.value.as_deref()), (&b"apples"[..], Some(&b"3"[..])));
/// let later = change.position.to_string(); // into a file, and back
/// let mut feed = store.changes(later.parse::<kvs::Position>()?.into())?;
/// assert_eq!(feed.next_change()?.unwrap().value, None);
/// assert_eq!(feed.next_change()?, None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Feed {
    log: FeedLog,
    runtime: Arc<dyn Runtime>,
    entries: Entries,
    position: Position,
}

/// The log, from inside the writer or beside it.
#[derive(Debug)]
pub(crate) enum FeedLog {
    Writer(SegmentSet),
    Reader(SegmentSetReader),
}

/// The number of the first segment of a log.
const FIRST_SEGMENT: u32 = 1;
/// Beside a writer the last page may be read while it is written, and a segment may be sealed during a look.
const ATTEMPTS: u32 = 20;
/// The first pause after a change is short, so that a steady stream is seen at once; an idle one costs little.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(20);

impl FeedLog {
    fn id(&self) -> StreamId {
        match self {
            FeedLog::Writer(log) => log.id(),
            FeedLog::Reader(log) => log.id(),
        }
    }

    fn segments(&self) -> Result<Vec<SetSegmentInfo>> {
        match self {
            FeedLog::Writer(log) => Ok(log.segments()),
            FeedLog::Reader(log) => Ok(log.segments()?),
        }
    }

    /// The end of what is durable.
    fn end(&self) -> Result<(u32, u32)> {
        match self {
            FeedLog::Writer(log) => {
                let stats = log.stats();
                Ok((stats.active, stats.durable_end))
            }
            FeedLog::Reader(log) => {
                let segments = log.segments()?;
                Ok(segments.last().map_or((FIRST_SEGMENT, 0), |active| (active.number, active.end)))
            }
        }
    }

    fn entries(&self, segment: u32, byte: u32) -> Entries {
        match self {
            FeedLog::Writer(log) => log.iter_from(segment, byte),
            FeedLog::Reader(log) => log.iter_from(segment, byte),
        }
    }

    /// What tells the store from others, short enough to be shown.
    fn store(&self) -> u64 {
        let id = u128::from_le_bytes(self.id().0);
        id as u64 ^ (id >> 64) as u64
    }

    /// The place behind what is durable now.
    pub(crate) fn position(&self) -> Result<Position> {
        let (segment, byte) = self.end()?;
        Ok(Position { store: self.store(), segment, byte })
    }

    /// Where a feed begins, checked.
    fn start(&self, from: FeedStart) -> Result<Position> {
        let position = match from {
            FeedStart::Now => return self.position(),
            FeedStart::First => Position { store: self.store(), segment: FIRST_SEGMENT, byte: 0 },
            FeedStart::At(position) => position,
        };
        let wrong = |reason: String| Err(Error::WrongPosition { position, reason });
        if position.store != self.store() {
            return wrong(format!(
                "it is one of store {:016x}, this is {:016x}",
                position.store,
                self.store()
            ));
        }
        let (segments, end) = (self.segments()?, self.end()?);
        if (position.segment, position.byte) > end {
            return wrong(format!(
                "the log ends at {}",
                Position { segment: end.0, byte: end.1, ..position }
            ));
        }
        match segments.iter().find(|info| info.number == position.segment) {
            None => Err(Error::PositionGone { position }),
            Some(info) if info.is_sealed && position.byte > info.end => {
                wrong(format!("segment {} ends at byte {}", info.number, info.end))
            }
            Some(_) => Ok(position),
        }
    }
}

impl Feed {
    pub(crate) fn new(log: FeedLog, runtime: Arc<dyn Runtime>, from: FeedStart) -> Result<Feed> {
        let position = log.start(from)?;
        let mut entries = log.entries(position.segment, position.byte);
        // A feed that has seen everything must not be told that something is gone when its segment goes.
        match entries.hold() {
            Err(lsfs::Error::Gone { .. }) => return Err(Error::PositionGone { position }),
            other => other?,
        }
        Ok(Feed { log, runtime, entries, position })
    }

    /// Behind the change that was answered last: where a feed goes on later.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next change; `None` if there is none that is durable. More may come: call again.
    ///
    /// # Errors
    /// [`Error::PositionGone`] if the next change was given back by compaction; an error that
    /// [is corruption](Error::is_corruption) if it does not verify. The same call then gives the same error.
    pub fn next_change(&mut self) -> Result<Option<Change>> {
        while let Some(entry) = self.next_entry()? {
            self.check_nothing_is_missing(entry.pointer.segment)?;
            let change = change_of(&entry)?;
            let (segment, byte) = self.entries.place();
            self.position = Position { segment, byte, ..self.position };
            if let Some((key, value)) = change {
                return Ok(Some(Change {
                    key,
                    value,
                    ends_batch: entry.ends_batch,
                    position: self.position,
                }));
            }
        }
        Ok(None)
    }

    /// As [`Feed::next_change`], but waits for a change: for so long, or for ever. `None` if the time is over.
    ///
    /// # Errors
    /// As there.
    pub fn wait_for_change(&mut self, timeout: Option<Duration>) -> Result<Option<Change>> {
        let deadline = timeout.map(|timeout| self.runtime.now().saturating_add(timeout));
        let mut pause = PAUSE_MIN;
        loop {
            if let Some(change) = self.next_change()? {
                return Ok(Some(change));
            }
            let left = deadline.map(|deadline| deadline.saturating_sub(self.runtime.now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            self.runtime.sleep(pause.min(left.unwrap_or(pause)));
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The next frame. What does not verify, or is not found, is looked for again from the last good place.
    fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut attempts = ATTEMPTS;
        loop {
            attempts -= 1;
            let error = match self.entries.next_entry() {
                Ok(entry) => return Ok(entry),
                Err(error) => error,
            };
            let Position { segment, byte, .. } = self.position;
            self.entries = self.log.entries(segment, byte);
            let is_gone = matches!(error, lsfs::Error::Gone { .. });
            if is_gone && !self.log.segments()?.iter().any(|info| info.number == segment) {
                return Err(Error::PositionGone { position: self.position });
            }
            if attempts == 0 || !is_gone && !error.is_corruption() {
                return Err(error.into());
            }
        }
    }

    /// The segments between the last change and the next must be there, be they empty.
    fn check_nothing_is_missing(&mut self, segment: u32) -> Result<()> {
        let between = self.position.segment + 1..segment;
        if between.is_empty() {
            return Ok(());
        }
        let segments = self.log.segments()?;
        if between.clone().all(|number| segments.iter().any(|info| info.number == number)) {
            return Ok(());
        }
        self.entries = self.log.entries(self.position.segment, self.position.byte);
        Err(Error::PositionGone { position: self.position })
    }
}

/// Key and value of a frame; `None` for a copy.
fn change_of(entry: &Entry) -> Result<Option<KeyChange>> {
    if is_moved(entry.kind) {
        return Ok(None);
    }
    let record = record_of(entry)?;
    let value = match record.command {
        Command::Remove { .. } => None,
        Command::Set(value) => Some(value.to_vec().map_err(|fault| bad_record(entry.pointer, fault))?),
    };
    Ok(Some((record.key.to_vec(), value)))
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}-{}", self.store, self.segment, self.byte)
    }
}

impl FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Position> {
        let parse = || {
            let (store, place) = text.split_once('-')?;
            let (segment, byte) = place.split_once('-')?;
            let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            let is_store = store.len() == 16 && store.bytes().all(|byte| byte.is_ascii_hexdigit());
            (is_store && is_number(segment) && is_number(byte)).then_some(())?;
            Some(Position {
                store: u64::from_str_radix(store, 16).ok()?,
                segment: segment.parse().ok()?,
                byte: byte.parse().ok()?,
            })
        };
        parse().ok_or_else(|| Error::NotAPosition { text: text.chars().take(80).collect() })
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Position, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_back_and_anything_else_is_refused() {
        let position = Position { store: 0xAB, segment: 7, byte: 4096 };
        assert_eq!(position.to_string(), "00000000000000ab-7-4096");
        assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        let json = serde_json::to_string(&position).unwrap();
        assert_eq!(json, "\"00000000000000ab-7-4096\"");
        assert_eq!(serde_json::from_str::<Position>(&json).unwrap(), position);
        for wrong in [
            "",
            "7",
            "00000000000000ab-7",
            "00000000000000ab-7-",
            "00000000000000ab--4096",
            "00000000000000ab-7-4096-",
            "00000000000000ab-+7-4096",
            "00000000000000ab-7-4294967296",
            "+0000000000000ab-7-4096",
            "ab-7-4096",
            "start",
        ] {
            let error = wrong.parse::<Position>().unwrap_err();
            assert!(matches!(error, Error::NotAPosition { .. }), "{wrong}");
            assert!(serde_json::from_str::<Position>(&format!("{wrong:?}")).is_err());
        }
    }
}
