//! The clerk: builds indexes and statistics of streams, beside their writers.
//!
//! The principal type is [`Clerk`], which follows a stream in the background; [`run_once`] brings everything up to what
//! is durable now and ends; [`rebuild`] begins anew. A clerk sees a stream as any other reader does, takes no lock that
//! a writer or a reader looks at, and writes only files that nobody has to believe. Killing it at any moment changes
//! speed, never answers (docs/design/0008-index-and-clerk.md).
//!
//! **Invariants.** One clerk for a stream at a time, by a lock of its own. The statistics of a segment say how far its
//! index goes, and are written after it; a clerk that comes later believes both only as far as their checksums and the
//! segment bear them out.

mod check;
mod desk;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use check::{IndexFault, IndexReport, verify_index};

use crate::codec::{SegmentEntry, lost_range_of};
use crate::directory::{self, CLERK_LOCK_NAME};
use crate::env::Env;
use crate::error::{Corruption, Error, Result};
use crate::index;
use crate::io::{Background, LockError, LockGuard, Step};
use crate::stream::{Cursor, Extent, Reader};
use desk::Desk;

/// A clerk that found something looks again after this long, so that its work comes in batches.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// A clerk that finds nothing looks less and less often.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// What is indexed of a growing segment is written when it is this old, or when much has come together.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// The stream may be truncated or purged while it is looked at.
const ATTEMPTS: usize = 20;
/// Records between two looks whether the clerk should stop.
const RECORDS_PER_STEP: u64 = 1 << 15;

/// What a clerk has done, and what is indexed now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClerkReport {
    /// The records of the stream when it was last looked at.
    pub held: Range<u64>,
    /// Records below this index are in an index file.
    pub indexed_to: u64,
    /// Records indexed by this clerk.
    pub records: u64,
    /// Their payload bytes as they are stored.
    pub stored_bytes: u64,
    /// Segments that it finished.
    pub sealed_segments: u64,
    /// Segments whose index was begun anew: it was missing, damaged, or of a tail that was truncated.
    pub begun_segments: u64,
    /// Files of segments that are gone, which it removed.
    pub removed_files: u64,
    /// Damage that it met; the records from there to the end of the segment are not indexed.
    pub damage: Vec<Corruption>,
}

/// Follows one stream in the background until it is stopped or dropped.
#[derive(Debug)]
pub struct Clerk {
    shared: Arc<Shared>,
    background: Option<Box<dyn Background>>,
}

#[derive(Debug)]
struct Shared {
    work: Mutex<Work>,
    progress: Mutex<Progress>,
}

/// What others may ask while the clerk works.
#[derive(Debug, Default)]
struct Progress {
    report: ClerkReport,
    failure: Option<Error>,
}

impl Clerk {
    /// Starts a clerk for the stream in `dir`.
    ///
    /// # Errors
    /// [`Error::ClerkThere`] if there is one already; as for [`Reader::open`].
    pub fn start(dir: impl AsRef<Path>) -> Result<Clerk> {
        Clerk::start_in(Env::default(), dir)
    }

    /// As [`Clerk::start`], on the given disk and runtime.
    pub fn start_in(env: Env, dir: impl AsRef<Path>) -> Result<Clerk> {
        let work = Work::begin(&env, dir.as_ref())?;
        let shared = Arc::new(Shared { work: Mutex::new(work), progress: Mutex::default() });
        let task = {
            let shared = Arc::clone(&shared);
            Box::new(move || shared.step())
        };
        let background = env
            .runtime
            .spawn("lsfs-clerk", task)
            .map_err(|error| Error::io("start a thread for", dir.as_ref(), error))?;
        background.kick();
        Ok(Clerk { shared, background: Some(background) })
    }

    /// What it has done so far.
    pub fn report(&self) -> ClerkReport {
        self.shared.progress().report.clone()
    }

    /// Why it stopped by itself, if it did.
    pub fn failure(&self) -> Option<Error> {
        self.shared.progress().failure.clone()
    }

    /// Has it look at the stream now.
    pub fn kick(&self) {
        if let Some(background) = &self.background {
            background.kick();
        }
    }

    /// Writes what is indexed, and ends.
    ///
    /// # Errors
    /// What stopped it before, or if the last indexes cannot be written.
    pub fn stop(mut self) -> Result<ClerkReport> {
        self.background = None;
        let mut work = self.shared.work();
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        work.write()?;
        Ok(work.report.clone())
    }
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self) -> Step {
        let mut work = self.work();
        let step = work.step();
        let mut progress = self.progress();
        progress.report = work.report.clone();
        match step {
            Ok(step) => step,
            Err(error) => {
                tracing::error!(dir = %work.dir.display(), %error, "the clerk stopped");
                progress.failure = Some(error);
                Step::Idle
            }
        }
    }
}

/// Indexes everything that is durable now, and ends.
///
/// # Errors
/// As for [`Clerk::start`]; and if an index cannot be written. Damage in the stream is part of the report.
pub fn run_once(env: &Env, dir: &Path) -> Result<ClerkReport> {
    let mut work = Work::begin(env, dir)?;
    work.catch_up()?;
    Ok(work.report)
}

/// Removes the indexes and statistics of the stream and makes them anew.
///
/// # Errors
/// As for [`run_once`].
pub fn rebuild(env: &Env, dir: &Path) -> Result<ClerkReport> {
    let mut work = Work::begin(env, dir)?;
    work.remove_files(&|_| true)?;
    work.report.removed_files = 0;
    work.catch_up()?;
    Ok(work.report)
}

/// Where the records go on behind those that a repair has named lost, if that is why `index` cannot be read.
fn end_of_loss(reader: &Reader, error: &Error, index: u64) -> Result<Option<u64>> {
    if !error.is_corruption() {
        return Ok(None);
    }
    Ok(lost_range_of(&reader.lost_ranges()?, index).map(|range| range.end))
}

/// The state of a clerk at work.
#[derive(Debug)]
struct Work {
    env: Env,
    dir: PathBuf,
    reader: Reader,
    /// Segments whose index is complete, and is that of a segment that ends so.
    done: BTreeMap<u64, SegmentEntry>,
    /// Segments that are damaged, and were when they ended so: they are not tried again.
    given_up: BTreeMap<u64, SegmentEntry>,
    /// The segment under way.
    desk: Option<Desk>,
    cursor: Option<Cursor>,
    /// Base indexes of the segments when leftovers were last removed.
    known_bases: Vec<u64>,
    written_at: Duration,
    pause: Duration,
    report: ClerkReport,
    _lock: Box<dyn LockGuard>,
}

impl Work {
    fn begin(env: &Env, dir: &Path) -> Result<Work> {
        // First: a directory that is no stream should not be given a lock file.
        let reader = Reader::open_in(env.clone(), dir)?;
        let lock_path = dir.join(CLERK_LOCK_NAME);
        let lock = match env.disk.lock(&lock_path) {
            Ok(lock) => lock,
            Err(LockError::Held { pid }) => return Err(Error::ClerkThere { path: dir.to_path_buf(), pid }),
            Err(LockError::Io(error)) => return Err(Error::write("lock", &lock_path, 4096, error)),
        };
        Ok(Work {
            env: env.clone(),
            dir: dir.to_path_buf(),
            reader,
            done: BTreeMap::new(),
            given_up: BTreeMap::new(),
            desk: None,
            cursor: None,
            known_bases: Vec::new(),
            written_at: env.runtime.now(),
            pause: PAUSE_MIN,
            report: ClerkReport::default(),
            _lock: lock,
        })
    }

    /// Works until everything that is durable now is indexed.
    fn catch_up(&mut self) -> Result<()> {
        let end = self.reader.bounds()?.end;
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            let before = self.report.records;
            let is_behind = self.advance()?;
            if !is_behind && (self.report.indexed_to >= end || self.report.held.end < end) {
                break;
            }
            // Not a step further: the stream is being changed, or what is left is damaged.
            attempts = if self.report.records > before { 0 } else { attempts + 1 };
        }
        self.write()
    }

    /// A part of the work, for the background.
    fn step(&mut self) -> Result<Step> {
        let before = (self.report.records, self.report.removed_files);
        if self.advance()? {
            self.pause = PAUSE_MIN;
            return Ok(Step::Again);
        }
        let found_something = (self.report.records, self.report.removed_files) != before;
        self.pause = if found_something { PAUSE_MIN } else { (self.pause * 2).min(PAUSE_MAX) };
        let now = self.env.runtime.now();
        let has_much = self.desk.as_ref().is_some_and(Desk::has_much);
        if has_much || now.saturating_sub(self.written_at) >= WRITE_INTERVAL {
            self.write()?;
        }
        Ok(Step::After(self.pause))
    }

    /// Looks at the stream and indexes what is new, up to the records of one step; whether there is more to do.
    fn advance(&mut self) -> Result<bool> {
        let (bounds, extents) = self.reader.segments()?;
        self.report.held = bounds.first_index..bounds.next_index;
        self.forget_dropped(&extents)?;
        let mut budget = RECORDS_PER_STEP;
        for (at, extent) in extents.iter().enumerate() {
            let (base, entry) = (extent.segment.base_index, extent.entry());
            if self.done.get(&base) == Some(&entry) || self.given_up.get(&base) == Some(&entry) {
                continue;
            }
            let is_sealed = at + 1 < extents.len();
            let outcome = self.index(extent, is_sealed, bounds.epoch, &mut budget);
            match outcome {
                Ok(()) => {}
                // The stream changed under the look: another one shows how.
                Err(Error::Gone { .. } | Error::OutOfRange { .. }) => {
                    (self.desk, self.cursor) = (None, None);
                    return Ok(false);
                }
                Err(Error::Corrupt(damage)) if self.is_unchanged(extent, bounds.epoch)? => {
                    self.give_up(base, entry, *damage);
                }
                Err(Error::Corrupt(_)) => {
                    (self.desk, self.cursor) = (None, None);
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
            if budget == 0 {
                return Ok(true);
            }
        }
        let growing = self.desk.as_ref().map(|desk| desk.statistics().next_index);
        let lost = self.report.damage.iter().filter_map(|damage| Some(damage.records.as_ref()?.start)).min();
        let indexed_to = growing.unwrap_or(bounds.next_index).min(lost.unwrap_or(u64::MAX));
        self.report.indexed_to = indexed_to.max(self.report.held.start);
        Ok(false)
    }

    /// Indexes one segment as far as it goes.
    fn index(&mut self, extent: &Extent, is_sealed: bool, epoch: u32, budget: &mut u64) -> Result<()> {
        let (base, segment_id) = (extent.segment.base_index, extent.segment.segment_id);
        if self.desk.as_ref().is_some_and(|desk| desk.segment_id() != segment_id) {
            self.write()?;
            self.desk = None;
        }
        // Taken out while it works: after an error it is opened anew, from what it has written.
        let mut desk = match self.desk.take() {
            Some(desk) if desk.epoch() == epoch || desk.still_holds(extent)? => desk,
            Some(_) => Desk::anew(&self.env, extent)?,
            None => Desk::open(&self.env, extent, is_sealed)?,
        };
        if desk.is_sealed() {
            self.done.insert(base, extent.entry());
            return Ok(());
        }
        self.report.begun_segments += u64::from(desk.take_begun());
        desk.set_epoch(epoch);
        let next = desk.statistics().next_index;
        let mut cursor = match self.cursor.take() {
            Some(cursor) if cursor.position() == next => cursor,
            _ => self.reader.places(next),
        };
        while cursor.position() < extent.next_index && *budget > 0 {
            let placed = match cursor.next_place() {
                Ok(Some(placed)) => placed,
                Ok(None) => break,
                Err(error) => match end_of_loss(&self.reader, &error, cursor.position())? {
                    Some(end) => {
                        let end = end.min(extent.next_index);
                        desk.skip_to(end);
                        cursor = self.reader.places(end);
                        continue;
                    }
                    None => return Err(error),
                },
            };
            if placed.segment_id != segment_id && is_sealed && placed.found.index >= extent.next_index {
                // The last records of a rewritten segment may be left out.
                desk.skip_to(extent.next_index);
                cursor = self.reader.places(extent.next_index);
                break;
            }
            if placed.segment_id != segment_id {
                return Err(Error::Gone { path: extent.segment.path().to_path_buf() });
            }
            desk.add(&placed, extent)?;
            *budget -= 1;
            self.report.records += 1;
            self.report.stored_bytes += u64::from(placed.found.stored_bytes);
        }
        // What was read while the stream was truncated may be of both sides of it.
        if self.reader.epoch()? != epoch {
            return Err(Error::Gone { path: extent.segment.path().to_path_buf() });
        }
        self.cursor = Some(cursor);
        if is_sealed && desk.statistics().next_index == extent.next_index {
            desk.seal()?;
            self.report.sealed_segments += 1;
            self.done.insert(base, extent.entry());
            self.desk = None;
        } else {
            self.desk = Some(desk);
        }
        Ok(())
    }

    /// Whether the segment is still what it was at the last look: neither purged nor truncated.
    fn is_unchanged(&self, extent: &Extent, epoch: u32) -> Result<bool> {
        let (bounds, extents) = self.reader.segments()?;
        let is_same = |now: &Extent| now.segment.segment_id == extent.segment.segment_id;
        Ok(bounds.epoch == epoch && extents.iter().any(is_same))
    }

    /// Leaves a damaged segment with the index of what is before the damage.
    fn give_up(&mut self, base: u64, entry: SegmentEntry, damage: Corruption) {
        tracing::warn!(dir = %self.dir.display(), %damage, "a segment cannot be indexed to its end");
        (self.desk, self.cursor) = (None, None);
        self.given_up.insert(base, entry);
        self.report.damage.retain(|known| known.path != damage.path);
        self.report.damage.push(damage);
    }

    /// Writes what is indexed and not written yet.
    fn write(&mut self) -> Result<()> {
        self.written_at = self.env.runtime.now();
        match &mut self.desk {
            Some(desk) => desk.write(),
            None => Ok(()),
        }
    }

    /// Forgets segments that the stream no longer has, and removes what is left of them.
    fn forget_dropped(&mut self, extents: &[Extent]) -> Result<()> {
        let bases: Vec<u64> = extents.iter().map(|extent| extent.segment.base_index).collect();
        if bases == self.known_bases {
            return Ok(());
        }
        let is_held = |base: &u64| bases.binary_search(base).is_ok();
        self.done.retain(|base, _| is_held(base));
        self.given_up.retain(|base, _| is_held(base));
        self.report.damage.retain(|damage| extents.iter().any(|extent| extent.segment.path() == damage.path));
        if self.desk.as_ref().is_some_and(|desk| !is_held(&desk.base_index())) {
            (self.desk, self.cursor) = (None, None);
        }
        self.remove_files(&|base| !is_held(&base))?;
        self.known_bases = bases;
        Ok(())
    }

    /// Removes indexes and statistics of segments by their base index, and indexes that were never finished.
    fn remove_files(&mut self, is_unwanted: &dyn Fn(u64) -> bool) -> Result<()> {
        let entries = self.env.disk.list(&self.dir).map_err(|error| Error::io("list", &self.dir, error))?;
        for entry in entries {
            let of_segment = directory::companion_base_of(&entry.name).is_some_and(is_unwanted);
            let is_under_way = self.desk.is_some() && index::is_unfinished(&entry.name);
            if of_segment || (index::is_unfinished(&entry.name) && !is_under_way) {
                let path = self.dir.join(&entry.name);
                match self.env.disk.remove(&path) {
                    Ok(()) => self.report.removed_files += 1,
                    // The writer removes them too.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(Error::io("remove", &path, error)),
                }
            }
        }
        Ok(())
    }
}
