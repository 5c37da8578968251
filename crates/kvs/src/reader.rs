//! Reading a store beside its writer, without a lock.
//!
//! The principal type is [`KvReader`]. It has the index of the last checkpoint, read-only, and in memory the places of
//! all commands behind it, listed or read: a get asks the newest of those first, then the index.
//!
//! **Invariants.** Nothing is written. A page that the writer has overwritten since does not verify as the one of this
//! checkpoint, so that is noticed: then there is a newer checkpoint, and the reader starts again from that one. What lies in
//! a segment that is gone means nothing to who has read the log to its end *after* the segment went: what was needed of it
//! lies in what was read then. So a look-up that meets a reclaimed segment asks which ones are gone, reads on in the log, and
//! begins again.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lsfs::io::OpenMode;
use lsfs::{Entries, Entry, Env, FinalData, SegmentSetReader};
use smallvec::SmallVec;

use crate::backup::refuse_unfinished;
use crate::error::{Error, Result};
use crate::feed::{Feed, FeedLog, FeedStart, Position};
use crate::heal::without_index;
use crate::index::{Index, KeyHasher};
use crate::lookup::{Damaged, ReadAt, SharedTable, Table, missing, read_key, record_of, value_of};
use crate::lost::Lost;
use crate::open::{CHECKPOINT_NAME, LOG_NAME, decode_root, listed_segments, log_end, next_there, slots_of};
use crate::options::Options;
use crate::order::{ReaderOrder, View as OrderView};
use crate::root::Root;
use crate::tail::{Lists, Part};

/// The writer may make checkpoints and reclaim segments between our looks.
const ATTEMPTS: usize = 32;
/// So many of the newest places of a key are looked at before all of them are.
const PLACES_FIRST: usize = 4;
/// So many commands behind the checkpoint are reason to look for a newer one.
const TAIL_COMMANDS_MAX: usize = 1 << 18;

/// A store open for reading only: without a lock, beside a writer in this or another process, or without one.
///
/// It sees what is durable; what it sees grows while the writer writes. Cloning is cheap.
///
/// ```
/// # fn main() -> kvs::Result<()> {
/// # let temporary = tempfile::tempdir().unwrap();
/// # let dir = temporary.path().join("store");
/// use kvs::{KvReader, KvStore};
///
/// let store = KvStore::open(&dir)?;
/// store.put("key", "value")?;
/// let reader = KvReader::open(&dir)?; // in any process
/// assert_eq!(reader.get("key".to_string())?, Some("value".to_string()));
/// store.put("key", "newer")?;
/// assert_eq!(reader.get_bytes("key")?, Some(b"newer".to_vec()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct KvReader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    env: Env,
    dir: PathBuf,
    index_bytes: usize,
    log: SegmentSetReader,
    view: Mutex<View>,
    order: ReaderOrder,
}

/// The store as last looked at.
#[derive(Debug)]
struct View {
    hasher: KeyHasher,
    /// The checkpoint it begins with; `None` if it has everything from the log.
    checkpoint: Option<CheckpointId>,
    /// The last checkpoint, if it could not be used.
    passed_by: Option<DamagedCheckpoint>,
    table: Option<Arc<SharedTable>>,
    /// Commands behind the checkpoint of which there are lists, oldest first.
    lists: Vec<Part>,
    /// What comes behind them.
    entries: Entries,
    /// Places of the commands there by the hash of their key, oldest first.
    tail: HashMap<u64, SmallVec<[(u32, u32); 1]>>,
    tail_commands: usize,
    /// The segments that there were before the log was read on the last time.
    listed: Arc<Listed>,
    /// With so many a newer checkpoint is looked for.
    tail_commands_max: usize,
}

/// The segments of the log at a moment.
#[derive(Debug, Default)]
struct Listed {
    numbers: HashSet<u32>,
    last: u32,
}

impl Listed {
    fn now(log: &SegmentSetReader) -> Result<Listed> {
        let segments = log.segments()?;
        let last = segments.last().map_or(0, |active| active.number);
        Ok(Listed { numbers: listed_segments(&segments), last })
    }

    /// Whether a segment was gone at that moment; later ones were not there yet. What lies in it means nothing to who has
    /// read on in the log since.
    fn is_gone(&self, segment: u32) -> bool {
        segment < self.last && !self.numbers.contains(&segment)
    }
}

/// Index file and number of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CheckpointId {
    file_id: u64,
    generation: u32,
}

/// A checkpoint that is damaged.
#[derive(Clone, Debug)]
struct DamagedCheckpoint {
    id: CheckpointId,
    damage: Error,
}

impl KvReader {
    /// Opens the store in a directory for reading.
    ///
    /// # Errors
    /// [`Error::NotAStore`] if there is none; else as for [`KvReader::get_bytes`].
    pub fn open(path: impl Into<PathBuf>) -> Result<KvReader> {
        KvReader::open_with(path, Options::default())
    }

    /// As [`KvReader::open`], with the index budget and the environment of the options.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(path: impl Into<PathBuf>, options: Options) -> Result<KvReader> {
        let (dir, Options { env, index_bytes, .. }) = (path.into(), options);
        let not_a_store = |reason: &str| Error::NotAStore { path: dir.clone(), reason: reason.to_string() };
        refuse_unfinished(&env, &dir)?;
        if !env.disk.exists(&dir.join(LOG_NAME)) {
            return Err(not_a_store("there is no log in it"));
        }
        let log = match SegmentSetReader::open_in(env.clone(), dir.join(LOG_NAME)) {
            Err(lsfs::Error::NotFound { .. }) => {
                return Err(not_a_store("its log was begun and never finished"));
            }
            other => other?,
        };
        let view = View::load(&env, &dir, index_bytes, &log, None)?;
        let (view, order) = (Mutex::new(view), ReaderOrder::default());
        Ok(KvReader { shared: Arc::new(Shared { env, dir, index_bytes, log, view, order }) })
    }

    /// The value of a key; `None` if it is not there.
    ///
    /// # Errors
    /// As for [`KvReader::get_bytes`]; [`Error::NotUtf8`] if the value is not a string.
    pub fn get(&self, key: String) -> Result<Option<String>> {
        let value = self.get_bytes(&key)?;
        crate::store::string_of(key, value)
    }

    /// The value of a key; `None` if it is not there.
    ///
    /// # Errors
    /// An error that [is corruption](Error::is_corruption) if the value, a frame that may be the key's, or a command
    /// behind the last checkpoint does not verify.
    pub fn get_bytes(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        self.shared.find(key.as_ref())?.map_or(Ok(None), |entry| value_of(&entry))
    }

    /// The values of several keys, in their order; not of one moment.
    ///
    /// # Errors
    /// As for [`KvReader::get_bytes`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Vec<u8>>>> {
        keys.iter().map(|key| self.get_bytes(key)).collect()
    }

    /// Whether a key has a value.
    ///
    /// # Errors
    /// As for [`KvReader::get_bytes`].
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        let entry = self.shared.find(key.as_ref())?;
        Ok(entry.is_some_and(|entry| !crate::record::is_remove(entry.kind)))
    }

    /// The damage because of which the index of the last checkpoint is not used: everything is read from the log instead,
    /// until a writer has made the index anew.
    pub fn index_damage(&self) -> Option<Error> {
        self.shared.view().passed_by.as_ref().map(|passed_by| passed_by.damage.clone())
    }

    /// The place in the log behind everything that is durable now.
    ///
    /// # Errors
    /// An I/O error.
    pub fn position(&self) -> Result<Position> {
        FeedLog::Reader(self.shared.log.clone()).position()
    }

    /// The changes from a place on, in the order in which they were made. They are followed while a writer makes them,
    /// in whatever process.
    ///
    /// # Errors
    /// [`Error::PositionGone`] if compaction has given them back, [`Error::WrongPosition`] for a position of another
    /// store.
    pub fn changes(&self, from: FeedStart) -> Result<Feed> {
        let (log, runtime) = (self.shared.log.clone(), Arc::clone(&self.shared.env.runtime));
        Feed::new(FeedLog::Reader(log), runtime, from)
    }
}

impl KvReader {
    pub(crate) fn env(&self) -> &Env {
        &self.shared.env
    }

    /// A view of what is durable now, for scans.
    pub(crate) fn view_in_order(&self) -> Result<Arc<OrderView>> {
        let Shared { env, dir, log, order, .. } = &*self.shared;
        let root = read_root(env, &dir.join(CHECKPOINT_NAME))?;
        order.view(env, dir, log, root.map(|root| root.index.file_id))
    }
}

impl Shared {
    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The frame of a key, be it a set or a remove.
    fn find(&self, key: &[u8]) -> Result<Option<Entry>> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let Missed { checkpoint, gone, error } = match self.look(key, PLACES_FIRST) {
                Ok(entry) => return Ok(entry),
                Err(missed) => missed,
            };
            let mut view = self.view();
            if let Some(segment) = gone {
                // All that are gone by now: a key may have been set in each of them.
                let listed = Listed::now(&self.log)?;
                if !listed.is_gone(segment) {
                    last = Some(missing(segment));
                    continue;
                }
                view.listed = Arc::new(listed);
            } else if !may_be_outdated(&error) {
                return Err(error);
            } else if view.checkpoint == checkpoint {
                let passed_by = match (checkpoint, error.index_damage()) {
                    (Some(id), Some(damage)) => Some(DamagedCheckpoint { id, damage: damage.clone() }),
                    _ => view.passed_by.clone(),
                };
                *view = View::load(&self.env, &self.dir, self.index_bytes, &self.log, passed_by)?;
            }
            last = Some(error);
        }
        Err(last.expect("only an error starts the look-up again"))
    }

    /// Looks a key up in what is known, at the newest places first; at all of them only if the key is at none of so many.
    fn look(&self, key: &[u8], places_max: usize) -> std::result::Result<Option<Entry>, Missed> {
        let mut view = self.view();
        let checkpoint = view.checkpoint;
        let of_this = |error: Error| Missed { checkpoint, gone: None, error };
        view.follow(&self.log).map_err(of_this)?;
        if view.tail_commands > view.tail_commands_max {
            view.tail_commands_max *= 2;
            let passed_by = view.passed_by.clone();
            let newer = View::load(&self.env, &self.dir, self.index_bytes, &self.log, passed_by);
            *view = newer.map_err(of_this)?;
        }
        let hash = view.hasher.hash(key);
        let places = view.newest(hash, places_max);
        let (table, listed) = (view.table.clone(), Arc::clone(&view.listed));
        drop(view);
        let missed_at =
            |segment, error| Missed { gone: Some(segment).filter(|_| is_gone(&error)), ..of_this(error) };
        for &(segment, position) in &places {
            let entry = self.log.read_at(segment, position);
            let entry = entry.map_err(|error| missed_at(segment, error.into()))?;
            if record_of(&entry).map_err(of_this)?.key == key {
                return Ok(Some(entry));
            }
        }
        if places.len() == places_max {
            // Another key has this hash, or begins as it does, and is set all the time.
            return self.look(key, usize::MAX);
        }
        let Some(table) = table else { return Ok(None) };
        let mut gone = None;
        let found = table.search_once(hash, Damaged::Fail, |location| {
            if listed.is_gone(location.segment) {
                return Ok(None);
            }
            let read = read_key(&self.log, location, key);
            if read.as_ref().is_err_and(is_gone) {
                gone = Some(location.segment);
            }
            read
        });
        found.map_err(|error| Missed { gone: gone.filter(|_| is_gone(&error)), ..of_this(error) })
    }
}

/// Why a look-up has no answer.
#[derive(Debug)]
struct Missed {
    /// What it began with.
    checkpoint: Option<CheckpointId>,
    /// A segment was reclaimed since the log was read.
    gone: Option<u32>,
    error: Error,
}

fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Engine(lsfs::Error::Gone { .. }))
}

/// Whether a newer checkpoint may help.
fn may_be_outdated(error: &Error) -> bool {
    is_gone(error) || error.index_damage().is_some()
}

impl View {
    /// Reads the last checkpoint, and finds what is behind it. One that is damaged is passed by: the log alone says
    /// everything as well.
    fn load(
        env: &Env,
        dir: &Path,
        index_bytes: usize,
        log: &SegmentSetReader,
        mut passed_by: Option<DamagedCheckpoint>,
    ) -> Result<View> {
        for _ in 0..ATTEMPTS {
            let Some(root) = read_root(env, &dir.join(CHECKPOINT_NAME))? else {
                return View::from_log(log, None);
            };
            let id = CheckpointId { file_id: root.index.file_id, generation: root.index.generation };
            if passed_by.as_ref().is_some_and(|passed_by| passed_by.id == id) {
                // It was the last one when the damage was met and is so still, so nobody has overwritten it.
                break;
            }
            match View::of_checkpoint(env, dir, index_bytes, log, &root, id) {
                Err(error) if error.index_damage().is_some() => {
                    passed_by = Some(DamagedCheckpoint { id, damage: error });
                }
                Err(error) if may_be_outdated(&error) => {}
                other => return other,
            }
        }
        let damage = passed_by.as_ref().map(|passed_by| tracing::field::display(&passed_by.damage));
        tracing::warn!(damage, "the last checkpoint cannot be used: the whole log is read");
        View::from_log(log, passed_by)
    }

    fn of_checkpoint(
        env: &Env,
        dir: &Path,
        index_bytes: usize,
        log: &SegmentSetReader,
        root: &Root,
        id: CheckpointId,
    ) -> Result<View> {
        let index = Index::open(env, dir, &root.index, index_bytes, OpenMode::Read)?;
        let hasher = index.hasher();
        let slots = slots_of(&index, root)?;
        let lists = Lists::read(env, dir, root.index.file_id, root.log_end, log_end(&log.segments()?));
        let (segment, position) = lists.end().unwrap_or(root.log_end);
        let mut view = View::new(hasher, log.iter_from(segment, position));
        // Before the log is read on.
        let listed = Listed::now(log)?;
        view.lists = lists.lists.into_iter().map(|list| list.part_of(&listed.numbers)).collect();
        view.listed = Arc::new(listed);
        view.checkpoint = Some(id);
        let lost = Lost::new(root.lost.clone());
        view.table = Some(Arc::new(SharedTable::new(Table { lost, ..Table::new(index, slots) })));
        view.follow_to_now(log)?;
        Ok(view)
    }

    /// Without a checkpoint: everything is behind it.
    fn from_log(log: &SegmentSetReader, passed_by: Option<DamagedCheckpoint>) -> Result<View> {
        let mut view = View::new(KeyHasher { seed: 0 }, log.iter());
        view.passed_by = passed_by;
        view.follow_to_now(log).map_err(without_index)?;
        Ok(view)
    }

    fn new(hasher: KeyHasher, entries: Entries) -> View {
        View {
            hasher,
            checkpoint: None,
            passed_by: None,
            table: None,
            lists: Vec::new(),
            entries,
            tail: HashMap::new(),
            tail_commands: 0,
            listed: Arc::default(),
            tail_commands_max: TAIL_COMMANDS_MAX,
        }
    }

    /// So many of the newest places behind the checkpoint where a key with this hash may be. There may be millions, of a key
    /// that is set all the time.
    fn newest(&self, hash: u64, places_max: usize) -> SmallVec<[(u32, u32); PLACES_FIRST]> {
        let read = self.tail.get(&hash).map_or(&[][..], |places| places).iter().rev().copied();
        let listed = self.lists.iter().rev().flat_map(|part| part.spots(hash).rev());
        let places = read.chain(listed.map(|spot| (spot.segment, spot.position)));
        places.filter(|&(segment, _)| !self.listed.is_gone(segment)).take(places_max).collect()
    }

    /// Takes note of what is there. Only when that has doubled it is worth it to look for a newer checkpoint.
    fn follow_to_now(&mut self, log: &SegmentSetReader) -> Result<()> {
        self.follow(log)?;
        self.tail_commands_max = TAIL_COMMANDS_MAX.max(2 * self.tail_commands);
        Ok(())
    }

    /// Takes note of what was written since.
    fn follow(&mut self, log: &SegmentSetReader) -> Result<()> {
        let is_listed = |segment| Ok(listed_segments(&log.segments()?).contains(&segment));
        while let Some(entry) = next_there(&mut self.entries, is_listed)? {
            let hash = self.hasher.hash(record_of(&entry)?.key);
            self.tail.entry(hash).or_default().push((entry.pointer.segment, entry.pointer.position));
            self.tail_commands += 1;
        }
        Ok(())
    }
}

/// The root of the last checkpoint; `None` if there is none that can be used.
fn read_root(env: &Env, dir: &Path) -> Result<Option<Root>> {
    if !env.disk.exists(dir) {
        return Ok(None);
    }
    match FinalData::read_in(env.clone(), dir) {
        Err(error) if error.is_corruption() => {
            tracing::warn!(%error, "the checkpoint is damaged: the whole log is read");
            Ok(None)
        }
        other => Ok(decode_root(other?)),
    }
}

impl ReadAt for SegmentSetReader {
    fn read_at(&self, segment: u32, position: u32) -> lsfs::Result<Entry> {
        SegmentSetReader::read_at(self, segment, position)
    }
}
