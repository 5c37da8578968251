//! The write path: what the owner of the turn does.
//!
//! **Invariants.** Each change but an append is durable before the turn is given back, and with it everything that was
//! appended before. The state is durable before what it decides is done to the entries; opening does again what a crash
//! left undone. The terms of entries are in the state before the entries are in the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use lsfs::{FinalData, Pending};

use crate::entry::{EntryId, HEADER_BYTES_MAX, NewEntry};
use crate::error::{Error, Result};
#[cfg(feature = "openraft")]
use crate::formed::FormedEntries;
use crate::losses::LostRange;
use crate::moment::Moment;
use crate::replaced;
use crate::shared::Shared;
use crate::snapshot;
use crate::state::{State, StoredSnapshot};

/// What only the owner of the turn touches.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// `None` when the log is stopped.
    state_file: Option<FinalData>,
    /// The first failure: nothing is written any more.
    failure: Option<Error>,
    /// Term and leader of the last run of entries.
    run: Option<(u64, u64)>,
    /// Where the next entry goes: nobody else appends, so that the stream need not be asked.
    next: u64,
    /// Where an entry is formed.
    scratch: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, state_file: FinalData) -> Writer {
        let run = shared.view().state.terms.last();
        let next = shared.bounds().next;
        Writer { shared, state_file: Some(state_file), failure: None, run, next, scratch: Vec::new() }
    }

    pub(crate) fn check_usable(&self) -> Result<()> {
        match (&self.failure, &self.state_file) {
            (Some(failure), _) => Err(failure.clone()),
            (None, None) => Err(Error::Stopped { path: self.shared.dir.clone() }),
            (None, Some(_)) => Ok(()),
        }
    }

    /// Notes a failure after which the disk may hold the change or not.
    fn failed<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && self.failure.is_none()
        {
            tracing::error!(dir = %self.shared.dir.display(), %error, "Raft log stopped by a failed write");
            self.failure = Some(error.clone());
        }
        result
    }

    // ---- the state ----

    /// Changes the state; durable on return, with everything that was appended before.
    pub(crate) fn change_state(&mut self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut state = self.shared.view().state.clone();
        change(&mut state);
        self.save(state)
    }

    fn save(&mut self, mut state: State) -> Result<()> {
        self.check_usable()?;
        state.commit_next = state.commit_next.max(self.shared.commit_next.load(Ordering::Acquire));
        state.applied_next = state.applied_next.max(self.shared.applied_next.load(Ordering::Acquire));
        let saved = self.write_state(&state);
        self.failed(saved)?;
        self.shared.advance(state.commit_next, state.applied_next);
        self.run = state.terms.last();
        self.shared.view_mut().state = state;
        Ok(())
    }

    fn write_state(&self, state: &State) -> Result<()> {
        let Some(file) = &self.state_file else {
            return Err(Error::Stopped { path: self.shared.dir.clone() });
        };
        // Nothing that comes later may be durable before what came earlier.
        self.shared.entries.sync()?;
        file.set(&state.encode())?;
        Ok(())
    }

    /// See [`RaftLog::set_term`](crate::RaftLog::set_term).
    pub(crate) fn set_term(&mut self, term: u64) -> Result<()> {
        let current = self.shared.view().state.term;
        if term < current {
            return Err(Error::TermBehind { given: term, current });
        }
        if term == current {
            return Ok(());
        }
        self.change_state(|state| (state.term, state.vote) = (term, None))
    }

    /// See [`RaftLog::increment_term`](crate::RaftLog::increment_term).
    pub(crate) fn increment_term(&mut self) -> Result<u64> {
        let term = self.shared.view().state.term + 1;
        self.set_term(term)?;
        Ok(term)
    }

    /// See [`RaftLog::vote_for`](crate::RaftLog::vote_for).
    pub(crate) fn vote_for(&mut self, candidate: u64) -> Result<()> {
        let (term, vote) = {
            let view = self.shared.view();
            (view.state.term, view.state.vote)
        };
        match vote {
            Some((voted_for, _)) if voted_for == candidate => Ok(()),
            Some((voted_for, _)) => Err(Error::AlreadyVoted { term, voted_for, candidate }),
            None => self.change_state(|state| state.vote = Some((candidate, false))),
        }
    }

    // ---- entries ----

    /// Where the first entry is, or would be.
    #[cfg(feature = "openraft")]
    pub(crate) fn first_index(&self) -> u64 {
        self.shared.bounds().first
    }

    /// Whether one of these entries is of another term or leader than the one before it.
    pub(crate) fn begins_run(&self, mut entries: impl Iterator<Item = (u64, u64)>) -> bool {
        entries.any(|of| self.run != Some(of))
    }

    /// Makes the state name the terms of entries that are about to be appended.
    fn begin_runs(&mut self, entries: impl Iterator<Item = (u64, u64)> + Clone) -> Result<()> {
        if !self.begins_run(entries.clone()) {
            return Ok(());
        }
        let mut run = self.run;
        let mut begun = Vec::new();
        for (of, index) in entries.zip(self.next..) {
            if run.replace(of) != Some(of) {
                begun.push(EntryId { index, term: of.0, leader: of.1 });
            }
        }
        self.change_state(|state| begun.into_iter().for_each(|id| state.terms.begin(id)))
    }

    /// Forms the record of an entry in `scratch`.
    fn form(&mut self, index: u64, entry: &NewEntry<'_>) {
        let moment = Moment::now(&self.shared);
        self.shared.rate.count(moment.ms, 1);
        self.scratch.clear();
        moment.put(&mut self.scratch, index, entry);
    }

    /// Before entries are appended or replaced: refuses one that no record could hold, now or when it is restored.
    fn check_sizes(&self, entries: &[NewEntry<'_>]) -> Result<()> {
        let sizes = entries.iter().map(|entry| entry.command.len() + HEADER_BYTES_MAX);
        self.check_payloads(sizes)
    }

    fn check_payloads(&self, mut sizes: impl Iterator<Item = usize>) -> Result<()> {
        let limit_bytes = u64::from(self.shared.entries.record_limit_bytes());
        let stored_bytes = |size| (size + replaced::PREFIX_BYTES) as u64;
        match sizes.find(|&size| stored_bytes(size) > limit_bytes) {
            None => Ok(()),
            Some(size) => Err(lsfs::Error::TooLarge { size_bytes: stored_bytes(size), limit_bytes }.into()),
        }
    }

    /// Puts an entry into the engine's buffer; the next sync makes it durable.
    fn buffer(&mut self, type_code: u64, payload: &[u8]) -> Result<()> {
        let appended = self.shared.entries.append_buffered(type_code, payload).map_err(Error::from);
        self.next = self.failed(appended)? + 1;
        Ok(())
    }

    /// Puts all entries but the last into the engine's buffer, when the terms of all are durable, and forms the last.
    fn buffer_all_but_last<'b>(&mut self, entries: &[NewEntry<'b>]) -> Result<Option<NewEntry<'b>>> {
        self.check_usable()?;
        self.check_sizes(entries)?;
        self.begin_runs(entries.iter().map(|entry| (entry.term, entry.leader)))?;
        let Some((last, before)) = entries.split_last() else { return Ok(None) };
        for entry in before {
            self.form(self.next, entry);
            let payload = std::mem::take(&mut self.scratch);
            let buffered = self.buffer(entry.kind.type_code(), &payload);
            self.scratch = payload;
            buffered?;
        }
        self.form(self.next, last);
        Ok(Some(*last))
    }

    /// Puts entries into the engine's buffer and answers a future of their durability; `None` without entries.
    pub(crate) fn append_pending(&mut self, entries: &[NewEntry<'_>]) -> Result<Option<Pending>> {
        let Some(last) = self.buffer_all_but_last(entries)? else { return Ok(None) };
        let pending = self.shared.entries.append_async(last.kind.type_code(), &self.scratch);
        let pending = self.failed(pending.map_err(Error::from))?;
        self.next = pending.index() + 1;
        Ok(Some(pending))
    }

    /// Puts entries into the engine's buffer and has `callback` called when all of them are durable, or failed.
    pub(crate) fn append_then(
        &mut self,
        entries: &[NewEntry<'_>],
        callback: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        match self.buffer_all_but_last(entries)? {
            Some(last) => {
                let payload = std::mem::take(&mut self.scratch);
                let appended = self.append_last_then(last.kind.type_code(), &payload, callback);
                self.scratch = payload;
                appended
            }
            None => {
                callback(self.sync_entries());
                Ok(())
            }
        }
    }

    /// As [`Writer::append_then`], for entries that were formed before it was their turn.
    #[cfg(feature = "openraft")]
    pub(crate) fn append_formed(
        &mut self,
        entries: &FormedEntries,
        callback: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        let Some(first_index) = entries.first_index() else {
            callback(self.sync_entries());
            return Ok(());
        };
        self.expect_next(first_index)?;
        self.check_payloads(entries.records().map(|(_, payload)| payload.len()))?;
        self.begin_runs(entries.ids())?;
        self.shared.rate.count(entries.ms, entries.len() as u64);
        let mut records = entries.records();
        for (type_code, payload) in records.by_ref().take(entries.len() - 1) {
            self.buffer(type_code, payload)?;
        }
        let (type_code, payload) = records.next().expect("there is a last one");
        self.append_last_then(type_code, payload, callback)
    }

    fn append_last_then(
        &mut self,
        type_code: u64,
        payload: &[u8],
        callback: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        let callback =
            move |outcome: lsfs::Result<u64>| callback(outcome.map(|_index| ()).map_err(Error::from));
        let appended = self.shared.entries.append_then(type_code, payload, callback);
        self.next = self.failed(appended.map_err(Error::from))? + 1;
        Ok(())
    }

    /// Makes all entries durable.
    fn sync_entries(&mut self) -> Result<()> {
        let synced = self.shared.entries.sync().map_err(Error::from);
        self.failed(synced)
    }

    /// Before entries that must begin at an index: an empty log that nothing was purged from begins there.
    pub(crate) fn expect_next(&mut self, index: u64) -> Result<()> {
        self.check_usable()?;
        if index == self.next {
            return Ok(());
        }
        let bounds = self.shared.bounds();
        let is_untouched = bounds.is_empty() && self.shared.view().state.purged.is_none();
        if !is_untouched || index < bounds.next {
            return Err(Error::NotNext { index, next: bounds.next });
        }
        let reset = self.shared.entries.reset_to(index).map_err(Error::from);
        self.failed(reset)?;
        self.next = index;
        Ok(())
    }

    /// Puts an entry in the place of the one that is there, durable on return; or behind the last one, and answers the
    /// future of its durability.
    pub(crate) fn insert(&mut self, index: u64, entry: &NewEntry<'_>) -> Result<Option<Pending>> {
        match index {
            _ if index == self.next => self.append_pending(std::slice::from_ref(entry)),
            _ if index > self.next => Err(Error::NotNext { index, next: self.next }),
            _ => self.replace(index, entry).map(|()| None),
        }
    }

    /// Puts back a lost entry; durable on return.
    pub(crate) fn restore(&mut self, index: u64, entry: &NewEntry<'_>) -> Result<()> {
        let not_lost = |expected| Err(Error::NotLost { index, given: entry.term, expected });
        // A loss that nobody has met since the log was opened is met here.
        let met = self.shared.read_with(index, |_raw| ());
        match met.err().and_then(|_| self.shared.lost_containing(index)) {
            None => not_lost("it is not lost".to_string()),
            Some(LostRange { term: Some(term), .. }) if term != entry.term => {
                not_lost(format!("the lost one is of term {term}"))
            }
            Some(_) => self.replace(index, entry),
        }
    }

    /// Puts an entry in the place of another one; durable on return.
    pub(crate) fn replace(&mut self, index: u64, entry: &NewEntry<'_>) -> Result<()> {
        self.check_usable()?;
        self.shared.bounds().check(index)?;
        self.check_sizes(std::slice::from_ref(entry))?;
        let streams = self.shared.view_mut().replaced.streams();
        let streams = self.failed(streams)?;
        // An entry is durable before the one that supersedes it.
        self.sync_entries()?;
        self.form(index, entry);
        let id = EntryId { index, term: entry.term, leader: entry.leader };
        let written = streams.write(id, entry.kind.type_code(), &self.scratch);
        let record = self.failed(written)?;
        let reach = self.shared.view().state.replaced;
        let (low, high) = reach.map_or((index, index), |(low, high)| (low.min(index), high.max(index)));
        if reach != Some((low, high)) {
            // If both streams of replaced entries are lost, this says which entries must not be believed.
            self.change_state(|state| state.replaced = Some((low, high)))?;
        }
        self.shared.view_mut().replaced.set(record, id);
        Ok(())
    }

    /// Deletes the entries from an index on; durable on return.
    pub(crate) fn delete_from(&mut self, index: u64) -> Result<()> {
        self.check_usable()?;
        let bounds = self.shared.bounds();
        if index >= bounds.next {
            return Ok(());
        }
        if index < bounds.first {
            return Err(Error::BelowFirst { index, first: bounds.first });
        }
        if let Some(commit) = self.shared.commit_index().filter(|&commit| index <= commit) {
            return Err(Error::Committed { index, commit });
        }
        let cut = match index == bounds.first {
            true => self.shared.entries.reset_to(index),
            false => self.shared.entries.truncate_after(index - 1),
        };
        self.failed(cut.map_err(Error::from))?;
        self.next = index;
        self.forget_from(index)
    }

    /// After the entries ended at an index: what speaks of later ones goes too, before others take their place.
    pub(crate) fn forget_from(&mut self, index: u64) -> Result<()> {
        let (state_reaches, replaced) = {
            let view = self.shared.view();
            let replaced = view.replaced.reach(index).then(|| view.replaced.opened()).flatten();
            (view.state.doubted.reach(index) || view.state.terms.reach(index), replaced)
        };
        if let Some(streams) = replaced {
            let cut = streams.write_cut(index);
            self.failed(cut)?;
            self.shared.view_mut().replaced.cut_from(index);
        }
        if state_reaches {
            self.change_state(|state| {
                state.terms.cut_from(index);
                state.doubted.remove(index..u64::MAX);
            })?;
        }
        self.shared.forget_losses(index..u64::MAX);
        Ok(())
    }

    /// Drops the entries up to an index, which must be applied; durable on return.
    pub(crate) fn purge_applied(&mut self, index: u64) -> Result<()> {
        let bounds = self.shared.bounds();
        if index < bounds.first {
            return Ok(());
        }
        bounds.check(index)?;
        let applied = self.shared.applied_index();
        if applied.is_none_or(|applied| applied < index) {
            return Err(Error::NotApplied { index, applied });
        }
        let id = self.shared.id_of(index).unwrap_or(EntryId { index, ..EntryId::default() });
        self.purge(id)
    }

    /// Drops the entries up to `last`, which need not be in the log; durable on return.
    pub(crate) fn purge(&mut self, last: EntryId) -> Result<()> {
        self.check_usable()?;
        let purged = self.shared.view().state.purged;
        match last.index < self.shared.bounds().first {
            true if purged.is_some_and(|purged| purged.index >= last.index) => Ok(()),
            // A log that began behind it is told what was there.
            true => self.change_state(|state| state.purged = Some(last)),
            false => self.drop_front(last, |_state| {}),
        }
    }

    fn drop_front(&mut self, last: EntryId, change: impl FnOnce(&mut State)) -> Result<()> {
        let begin = last.index + 1;
        // Entries behind `last` go on only if they follow it.
        let is_known = self.shared.id_of(last.index).is_some_and(|known| known.term == last.term);
        let restarted = self.shared.bounds().next < begin || !is_known;
        let commit = self.shared.commit_index();
        if let Some(commit) = commit.filter(|&commit| restarted && commit >= last.index)
            && self.shared.bounds().next >= begin
        {
            return Err(Error::Committed { index: last.index, commit });
        }
        self.change_state(|state| {
            change(state);
            (state.purged, state.restarted) = (Some(last), restarted);
            match restarted {
                true => state.terms.clear(),
                false => state.terms.cut_before(begin),
            }
            state.replaced = state
                .replaced
                .map(|(low, high)| (low.max(begin), high))
                .filter(|(low, high)| low <= high && !restarted);
            state.doubted.remove(0..if restarted { u64::MAX } else { begin });
        })?;
        let dropped = carry_out_purge(&self.shared, begin, restarted);
        self.failed(dropped)?;
        if restarted {
            self.next = begin;
            self.forget_from(begin)?;
        }
        let unneeded = self.shared.view_mut().replaced.cut_before(begin);
        if let Some((streams, first)) = unneeded {
            let purged = streams.purge_before(first);
            self.failed(purged)?;
        }
        self.shared.forget_losses(0..begin);
        Ok(())
    }

    // ---- snapshots ----

    /// Names the snapshot that arrives from now on; answers the one that did before.
    pub(crate) fn name_incoming(&mut self, snapshot: StoredSnapshot) -> Result<Option<StoredSnapshot>> {
        let former = self.shared.view().state.incoming.clone();
        self.change_state(|state| state.incoming = Some(snapshot))?;
        Ok(former)
    }

    /// Makes a snapshot whose bytes are durable the log's; answers the one before.
    pub(crate) fn name_snapshot(
        &mut self,
        snapshot: StoredSnapshot,
        drops_entries: bool,
    ) -> Result<Option<StoredSnapshot>> {
        self.check_usable()?;
        let last = snapshot.meta.last;
        let (former, incoming) = {
            let view = self.shared.view();
            (view.state.snapshot.clone(), view.state.incoming.clone())
        };
        let index_of = |last: Option<EntryId>| last.map(|last| last.index);
        if let Some(current) = former.as_ref().and_then(|former| index_of(former.meta.last))
            && index_of(last).is_none_or(|index| index < current)
        {
            return Err(Error::SnapshotBehind { index: index_of(last), current });
        }
        let arrived = incoming.as_ref().is_some_and(|incoming| incoming.slot == snapshot.slot);
        let change = move |state: &mut State| {
            if arrived {
                state.incoming = None;
            }
            // A state machine has applied what its snapshot contains.
            let applied_next = index_of(last).map_or(0, |index| index + 1);
            state.commit_next = state.commit_next.max(applied_next);
            state.applied_next = state.applied_next.max(applied_next);
            state.snapshot = Some(snapshot);
        };
        match last.filter(|last| drops_entries && last.index >= self.shared.bounds().first) {
            Some(last) => self.drop_front(last, change)?,
            None => self.change_state(change)?,
        }
        Ok(former)
    }

    // ---- the end ----

    /// Leaves witnesses and lets the locks go. What comes first failed is answered; the rest is closed all the same.
    pub(crate) fn close(&mut self) -> Result<()> {
        let Some(file) = self.state_file.take() else { return Ok(()) };
        let shared = Arc::clone(&self.shared);
        let is_saved = {
            let view = shared.view();
            view.state.commit_next == shared.commit_next.load(Ordering::Acquire)
                && view.state.applied_next == shared.applied_next.load(Ordering::Acquire)
        };
        let usable = self.failure.is_none();
        self.state_file = Some(file);
        let saved = if usable && !is_saved { self.change_state(|_state| {}) } else { Ok(()) };
        let file = self.state_file.take().expect("just put there");
        let entries = shared.entries.close().map_err(Error::from);
        let replaced = shared.view().replaced.opened().map_or(Ok(()), |streams| streams.close());
        let closed = file.close().map_err(Error::from);
        saved.and(entries).and(replaced).and(closed)
    }
}

/// Makes the entries begin at an index, as the durable state says.
pub(crate) fn carry_out_purge(shared: &Shared, begin: u64, restarted: bool) -> Result<()> {
    match restarted {
        true => shared.entries.reset_to(begin)?,
        false => shared.entries.purge_before(begin)?,
    }
    Ok(())
}

/// Removes what lies in the slots that the state does not name.
pub(crate) fn clear_unnamed_slots(shared: &Shared) {
    let named: Vec<u32> = {
        let view = shared.view();
        [&view.state.snapshot, &view.state.incoming].into_iter().flatten().map(|named| named.slot).collect()
    };
    // Slots are taken lowest first: there are hardly more than were ever in use at once.
    (0..SLOTS_LOOKED_AT)
        .filter(|slot| !named.contains(slot))
        .for_each(|slot| snapshot::clear_unused(shared, slot));
}

const SLOTS_LOOKED_AT: u32 = 4;
