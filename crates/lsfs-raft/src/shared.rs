//! What readers and the writer share: the streams, and the state as it was last made durable.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use lsfs::{Cursor, Env, RecordStream};

use crate::entry::{Entry, EntryHeader, EntryId, EntryKind};
use crate::error::{Error, Result};
use crate::losses::{LostRange, Ranges};
use crate::options::LogOptions;
use crate::replaced::{Replaced, ReplacedEntries};
use crate::snapshot::Slots;
use crate::state::{State, Vote};
use crate::statistics::{Rate, Statistics};

/// Everything of an open log that does not belong to the owner of the turn alone.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) dir: PathBuf,
    pub(crate) options: LogOptions,
    /// The entries: record index = Raft index, type code = kind.
    pub(crate) entries: RecordStream,
    view: RwLock<View>,
    /// Entries below these are committed, and applied.
    pub(crate) commit_next: AtomicU64,
    pub(crate) applied_next: AtomicU64,
    pub(crate) slots: Slots,
    pub(crate) rate: Rate,
    losses: Mutex<Ranges>,
    has_losses: AtomicBool,
}

/// How far into a lost range single entries are looked for.
const EDGE_ENTRIES: usize = 1000;

/// The state as readers see it.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) state: State,
    pub(crate) replaced: ReplacedEntries,
}

/// The indexes that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) first: u64,
    pub(crate) next: u64,
}

impl Bounds {
    pub(crate) fn is_empty(self) -> bool {
        self.first >= self.next
    }

    /// Whether the entry is there; if not, why.
    pub(crate) fn check(self, index: u64) -> Result<()> {
        match index {
            _ if index < self.first => Err(Error::BelowFirst { index, first: self.first }),
            _ if index >= self.next => Err(Error::BeyondEnd { index, next: self.next }),
            _ => Ok(()),
        }
    }
}

impl Shared {
    pub(crate) fn new(
        env: Env,
        dir: PathBuf,
        options: LogOptions,
        entries: RecordStream,
        state: State,
        replaced: ReplacedEntries,
    ) -> Shared {
        let (commit_next, applied_next) = (state.commit_next, state.applied_next);
        Shared {
            env,
            dir,
            options,
            entries,
            view: RwLock::new(View { state, replaced }),
            commit_next: AtomicU64::new(commit_next),
            applied_next: AtomicU64::new(applied_next),
            slots: Slots::default(),
            rate: Rate::new(),
            losses: Mutex::default(),
            has_losses: AtomicBool::new(false),
        }
    }

    pub(crate) fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn view_mut(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn bounds(&self) -> Bounds {
        // The first index only grows, or falls together with the end: taken first, it is never beyond the end.
        let first = self.entries.first_index();
        Bounds { first, next: self.entries.next_index().max(first) }
    }

    /// The name of an entry, of the last purged one, or of the snapshot's last; `None` if the log does not know.
    pub(crate) fn id_of(&self, index: u64) -> Option<EntryId> {
        let bounds = self.bounds();
        let view = self.view();
        if (bounds.first..bounds.next).contains(&index) {
            return view.id_of(index);
        }
        [view.state.purged, view.state.snapshot.as_ref().and_then(|snapshot| snapshot.meta.last)]
            .into_iter()
            .flatten()
            .find(|id| id.index == index)
    }

    /// The last entry, or what stands for it: the last one purged.
    pub(crate) fn last_id(&self) -> Option<EntryId> {
        let bounds = self.bounds();
        let view = self.view();
        match bounds.is_empty() {
            true => view.state.purged,
            false => view.id_of(bounds.next - 1),
        }
    }

    /// The vote of the current term.
    pub(crate) fn vote(&self) -> Option<Vote> {
        let view = self.view();
        let (candidate, is_committed) = view.state.vote?;
        Some(Vote { term: view.state.term, candidate, is_committed })
    }

    pub(crate) fn statistics(&self) -> Result<Statistics> {
        let bounds = self.bounds();
        let record_count = bounds.next - bounds.first;
        let view = self.view();
        let snapshot = view.state.snapshot.as_ref().and_then(|snapshot| snapshot.meta.last);
        let replaced_bytes = view.replaced.opened().map_or(0, |streams| streams.live_bytes());
        drop(view);
        let snapshot_index = snapshot.map(|last| last.index);
        let total_bytes = self.entries.stats().live_bytes + replaced_bytes;
        let capacity_bytes = match self.options.capacity_bytes {
            Some(capacity_bytes) => capacity_bytes,
            None => {
                let free = self.env.disk.free_bytes(&self.dir).map_err(|source| lsfs::Error::Io {
                    action: "ask for the free space of",
                    path: self.dir.clone(),
                    source: Arc::new(source),
                })?;
                total_bytes.saturating_add(free)
            }
        };
        let left = capacity_bytes.saturating_sub(total_bytes) as f64 / capacity_bytes.max(1) as f64;
        let last_record_ms = match bounds.is_empty() {
            true => None,
            false => self.read_with(bounds.next - 1, |raw| raw.header.stored_ms).ok(),
        };
        Ok(Statistics {
            record_count,
            records_since_snapshot: snapshot_index
                .map_or(record_count, |index| record_count.min(bounds.next.saturating_sub(index + 1))),
            records_per_minute: self.rate.per_minute(self.env.runtime.wall_clock_ms()),
            total_bytes,
            capacity_left_percent: left * 100.0,
            snapshot_index,
            last_record_ms,
        })
    }

    // ---- reading ----

    /// Reads one entry and hands its parts to `take`.
    pub(crate) fn read_with<T>(&self, index: u64, take: impl FnOnce(RawEntry<'_>) -> T) -> Result<T> {
        self.bounds().check(index)?;
        let replaced = self.view().replaced.place_of(index);
        if let Some(replaced) = replaced {
            let record = replaced.read()?;
            let (kind, payload) = Replaced::split(index, &record)?;
            return RawEntry::decode(index, kind, payload).map(take);
        }
        self.check_not_lost(index)?;
        match self.entries.read(index) {
            Ok(record) => RawEntry::decode(index, record.type_code, &record.payload).map(take),
            Err(error) => Err(self.explain(index, error)),
        }
    }

    /// What an engine error at an index means.
    fn explain(&self, index: u64, error: lsfs::Error) -> Error {
        match error {
            // Purged or truncated since the bounds were asked for.
            lsfs::Error::OutOfRange { .. } | lsfs::Error::Gone { .. } => {
                self.bounds().check(index).err().unwrap_or(Error::Engine(error))
            }
            error if error.is_corruption() => self.lost_at(index).unwrap_or(Error::Engine(error)),
            error => Error::Engine(error),
        }
    }

    // ---- losses ----

    fn losses(&self) -> MutexGuard<'_, Ranges> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that these entries are gone, or in doubt.
    pub(crate) fn note_loss(&self, indexes: Range<u64>) {
        self.losses().add(indexes);
        self.has_losses.store(true, Ordering::Release);
    }

    /// Notes what a repair named lost, but for what can be read all the same: at the edges of the damage.
    pub(crate) fn note_repaired(&self, indexes: Range<u64>) {
        self.note_loss(indexes.clone());
        let middle = indexes.start + (indexes.end - indexes.start) / 2;
        let (before, behind) = (indexes.start..middle, (middle..indexes.end).rev());
        for index in before.take(EDGE_ENTRIES).chain(behind.take(EDGE_ENTRIES)) {
            if self.entries.read(index).is_ok() {
                self.forget_losses(index..index + 1);
            }
        }
    }

    /// What is known to be gone is not read again; what is in doubt must not be read at all.
    fn check_not_lost(&self, index: u64) -> Result<()> {
        if !self.has_losses.load(Ordering::Acquire) {
            return Ok(());
        }
        self.lost_containing(index).map_or(Ok(()), |lost| Err(Error::Lost { lost }))
    }

    /// Finds out how far the damage at `index` reaches, and names it.
    fn lost_at(&self, index: u64) -> Option<Error> {
        let is_lost = |index| self.entries.read(index).is_err_and(|error| error.is_corruption());
        if self.losses().containing(index).is_none() {
            let bounds = self.bounds();
            if !is_lost(index) {
                return None;
            }
            let mut range = index..index + 1;
            while range.start > bounds.first && is_lost(range.start - 1) {
                range.start -= 1;
            }
            while range.end < bounds.next && is_lost(range.end) {
                range.end += 1;
            }
            tracing::error!(dir = %self.dir.display(), ?range, "entries are lost");
            self.note_loss(range);
        }
        self.lost_containing(index).map(|lost| Error::Lost { lost })
    }

    /// The known losses, without what was restored, purged or cut off since, each of one term.
    pub(crate) fn lost(&self) -> Vec<LostRange> {
        let bounds = self.bounds();
        let mut ranges = self.losses().clone();
        ranges.remove(0..bounds.first);
        ranges.remove(bounds.next..u64::MAX);
        let view = self.view();
        ranges.add(self.missing_end(&view));
        view.replaced.indexes().for_each(|index| ranges.remove(index..index + 1));
        let mut lost = Vec::new();
        let parts = ranges.iter().flat_map(|range| view.state.doubted.split(range.clone()));
        for (range, doubt) in parts {
            let named = |indexes, of: Option<(u64, u64)>| LostRange {
                indexes,
                term: of.map(|(term, _)| term),
                leader: of.map(|(_, leader)| leader),
            };
            match doubt {
                Some(doubt) => lost.push(named(range, doubt.of)),
                None => lost.extend(
                    view.state
                        .terms
                        .split(range)
                        .into_iter()
                        .map(|(indexes, id)| named(indexes, id.map(|id| (id.term, id.leader)))),
                ),
            }
        }
        lost
    }

    /// Entries that were committed here, are in no snapshot, and are not there any more: the end of the log is lost.
    pub(crate) fn missing_end(&self, view: &View) -> Range<u64> {
        let snapshot = view.state.snapshot.as_ref().and_then(|snapshot| snapshot.meta.last);
        let covered = snapshot.map_or(0, |last| last.index + 1);
        self.bounds().next.max(covered)..self.commit_next.load(Ordering::Acquire)
    }

    /// Forgets losses from an index on: those entries were deleted, others will take their place.
    pub(crate) fn forget_losses(&self, indexes: Range<u64>) {
        self.losses().remove(indexes);
    }

    pub(crate) fn lost_containing(&self, index: u64) -> Option<LostRange> {
        self.lost().into_iter().find(|lost| lost.indexes.contains(&index))
    }

    /// Moves what is committed and applied forward, never back.
    pub(crate) fn advance(&self, commit_next: u64, applied_next: u64) {
        self.commit_next.fetch_max(commit_next, Ordering::AcqRel);
        self.applied_next.fetch_max(applied_next, Ordering::AcqRel);
    }

    pub(crate) fn commit_index(&self) -> Option<u64> {
        let next = self.commit_next.load(Ordering::Acquire);
        (next > self.view().state.origin).then(|| next - 1)
    }

    pub(crate) fn applied_index(&self) -> Option<u64> {
        let next = self.applied_next.load(Ordering::Acquire);
        (next > self.view().state.origin).then(|| next - 1)
    }
}

impl View {
    fn id_of(&self, index: u64) -> Option<EntryId> {
        match (self.replaced.id_of(index), self.state.doubted.containing(index)) {
            (Some(id), _) => Some(id),
            // Another entry was there than the one that the table of terms speaks of.
            (None, Some(doubt)) => doubt.of.map(|(term, leader)| EntryId { index, term, leader }),
            (None, None) => self.state.terms.id_of(index),
        }
    }
}

/// An entry as it lies in a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawEntry<'a> {
    pub(crate) index: u64,
    pub(crate) kind: EntryKind,
    pub(crate) header: EntryHeader,
    pub(crate) command: &'a [u8],
}

impl<'a> RawEntry<'a> {
    pub(crate) fn decode(index: u64, type_code: u64, payload: &'a [u8]) -> Result<RawEntry<'a>> {
        let wrong = |fault| Error::Entry { index, fault };
        let kind = EntryKind::from_type_code(type_code).map_err(wrong)?;
        let (header, command) = EntryHeader::decode(payload).map_err(wrong)?;
        Ok(RawEntry { index, kind, header, command })
    }

    pub(crate) fn id(&self) -> EntryId {
        EntryId { index: self.index, term: self.header.term, leader: self.header.leader }
    }

    /// The ends of what was committed and applied when the entry was stored.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let commit_next = self.index.saturating_sub(self.header.commit_lag);
        (commit_next, commit_next.saturating_sub(self.header.applied_lag))
    }

    pub(crate) fn to_entry(self) -> Entry {
        Entry {
            index: self.index,
            term: self.header.term,
            leader: self.header.leader,
            serial: self.header.serial,
            kind: self.kind,
            stored_ms: self.header.stored_ms,
            command: self.command.to_vec(),
        }
    }
}

/// Reads forward over a range of entries; what was replaced or restored comes in its place.
#[derive(Debug)]
pub(crate) struct RawEntries {
    shared: Arc<Shared>,
    next: u64,
    end: u64,
    cursor: Option<(Cursor, u64)>,
}

impl RawEntries {
    /// The range is cut to what there is at this moment.
    pub(crate) fn new(shared: Arc<Shared>, range: Range<u64>) -> RawEntries {
        let bounds = shared.bounds();
        RawEntries {
            next: range.start.max(bounds.first),
            end: range.end.min(bounds.next),
            shared,
            cursor: None,
        }
    }

    /// Index of the entry that comes next.
    pub(crate) fn next_index(&self) -> u64 {
        self.next
    }

    /// Whether the next entry can be read without waiting for the disk.
    #[cfg(feature = "openraft")]
    pub(crate) fn is_in_memory(&self) -> bool {
        self.next >= self.end || self.shared.entries.is_in_memory(self.next)
    }

    /// Goes on at a later entry, as behind a loss.
    pub(crate) fn skip_to(&mut self, index: u64) {
        self.next = self.next.max(index);
    }

    /// Hands the parts of the next entry to `take`; `None` at the end of the range.
    pub(crate) fn next_with<T>(&mut self, take: impl FnOnce(RawEntry<'_>) -> T) -> Result<Option<T>> {
        if self.next >= self.end {
            return Ok(None);
        }
        let index = self.next;
        if self.shared.view().replaced.place_of(index).is_some() {
            let taken = self.shared.read_with(index, take)?;
            self.next += 1;
            return Ok(Some(taken));
        }
        self.shared.check_not_lost(index)?;
        let mut cursor = match self.cursor.take() {
            Some((cursor, at)) if at == index => cursor,
            _ => self.shared.entries.iter(index..self.end),
        };
        let taken = match cursor.next_record() {
            Ok(Some(record)) if record.index == index => {
                RawEntry::decode(index, record.type_code, &record.payload).map(take)?
            }
            // Cut off or purged meanwhile, or damage nearby: a read of this entry alone knows which.
            Ok(_) => self.shared.read_with(index, take)?,
            Err(error) if error.is_corruption() => self.shared.read_with(index, take)?,
            Err(error) => return Err(self.shared.explain(index, error)),
        };
        self.next += 1;
        self.cursor = Some((cursor, self.next));
        Ok(Some(taken))
    }
}
