//! The log as openraft's log storage.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use ::openraft::OptionalSend;
use ::openraft::alias::{LogIdOf, VoteOf};
use ::openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use ::openraft::vote::{RaftLeaderId, RaftVote};

use super::{CommittedLeader, LogReader, StoredConfig, StoredEntry, entry_id, io_error, log_id};
use crate::entry::{EntryKind, NewEntry};
use crate::error::{Error, Result};
use crate::log::{Core, RaftLog};
use crate::writer::Writer;

/// A [`RaftLog`] as openraft's log storage.
#[derive(Debug)]
pub struct LogStore<C> {
    log: RaftLog,
    core: Arc<Core>,
    /// Where entries are encoded.
    encoded: Encoded,
    config: PhantomData<fn() -> C>,
}

/// Entries on their way to the log: all commands one behind the other.
#[derive(Debug, Default)]
struct Encoded {
    first_index: Option<u64>,
    entries: Vec<EncodedEntry>,
    commands: Vec<u8>,
}

#[derive(Debug)]
struct EncodedEntry {
    term: u64,
    leader: u64,
    kind: EntryKind,
    /// Where its command ends.
    end: usize,
}

impl Encoded {
    fn put<E: StoredEntry>(&mut self, entry: &E) {
        let (leader_id, index) = entry.log_id_parts();
        let (term, leader) = leader_id.parts();
        self.first_index.get_or_insert(index);
        entry.encode(&mut self.commands);
        self.entries.push(EncodedEntry { term, leader, kind: entry.kind(), end: self.commands.len() });
    }

    fn clear(&mut self) {
        self.first_index = None;
        self.entries.clear();
        self.commands.clear();
    }

    fn new_entries(&self) -> Vec<NewEntry<'_>> {
        let mut start = 0;
        let new_entry = |entry: &EncodedEntry| {
            let command = &self.commands[start..entry.end];
            start = entry.end;
            NewEntry { term: entry.term, leader: entry.leader, serial: 0, kind: entry.kind, command }
        };
        self.entries.iter().map(new_entry).collect()
    }

    fn append<C: StoredConfig>(&self, writer: &mut Writer, callback: IOFlushed<C>) -> Result<()> {
        if let Some(index) = self.first_index {
            writer.expect_next(index)?;
        }
        let flushed = move |outcome: Result<()>| callback.io_completed(outcome.map_err(io_error));
        writer.append_then(&self.new_entries(), flushed)
    }
}

impl<C: StoredConfig> LogStore<C> {
    /// The storage of a log that is started. It keeps the log open until it is dropped.
    ///
    /// # Errors
    /// [`Error::FirstIndex`] if the log does not count from 0, [`Error::Stopped`].
    pub fn new(log: &RaftLog) -> Result<LogStore<C>> {
        let core = log.core()?;
        let stored = core.shared().view().state.origin;
        if stored != 0 {
            return Err(Error::FirstIndex { path: log.dir().to_path_buf(), stored, asked: 0 });
        }
        Ok(LogStore { log: log.clone(), core, encoded: Encoded::default(), config: PhantomData })
    }

    /// The log below, for what openraft does not ask: losses, statistics, the broken flag.
    pub fn log(&self) -> &RaftLog {
        &self.log
    }

    /// Puts back an entry that was lost, as a peer has it; durable on return.
    ///
    /// # Errors
    /// As for [`RaftLog::restore`].
    pub fn restore(&self, entry: &C::Entry) -> Result<()> {
        let mut encoded = Encoded::default();
        encoded.put(entry);
        let index = encoded.first_index.expect("an entry was put");
        self.log.restore(index, &encoded.new_entries()[0])
    }

    async fn in_line<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let done = self.core.defer(|writer| {
            writer.check_usable()?;
            work(writer)
        });
        done.await.map_err(io_error)
    }
}

impl<C: StoredConfig> RaftLogStorage<C> for LogStore<C> {
    type LogReader = LogReader<C>;

    async fn get_log_state(&mut self) -> io::Result<LogState<C>> {
        let shared = self.core.shared();
        let (last_purged, missing) = {
            let view = shared.view();
            (view.state.purged, shared.missing_end(&view))
        };
        if let Some(lost) = shared.lost_containing(missing.start).filter(|_| !missing.is_empty()) {
            // With a shorter log than it acknowledged, the node could elect a leader that lacks committed entries.
            return Err(io_error(Error::Lost { lost }));
        }
        Ok(LogState {
            last_purged_log_id: last_purged.map(log_id::<C>),
            last_log_id: shared.last_id().map(log_id::<C>),
        })
    }

    async fn get_log_reader(&mut self) -> LogReader<C> {
        LogReader::new(Arc::clone(self.core.shared()))
    }

    async fn save_vote(&mut self, vote: &VoteOf<C>) -> io::Result<()> {
        let (term, candidate) = (vote.leader_id().term(), *vote.leader_id().node_id());
        let is_committed = vote.is_committed();
        self.in_line(move |writer| {
            writer.change_state(|state| (state.term, state.vote) = (term, Some((candidate, is_committed))))
        })
        .await
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<C>>) -> io::Result<()> {
        if let Some(committed) = committed {
            let shared = self.core.shared();
            shared.advance((committed.index + 1).min(shared.bounds().next), 0);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<C>>> {
        let shared = self.core.shared();
        let Some(index) = shared.commit_index() else { return Ok(None) };
        // What was purged is committed; of a commit beyond the last entry, the last one is.
        let known = match shared.bounds() {
            bounds if index < bounds.first => shared.id_of(index).or(shared.view().state.purged),
            _ => shared.id_of(index).or_else(|| shared.last_id()),
        };
        Ok(known.map(log_id::<C>))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> io::Result<()>
    where
        I: IntoIterator<Item = C::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.encoded.clear();
        entries.into_iter().for_each(|entry| self.encoded.put(&entry));
        let must_wait = {
            let mut turn = self.core.turn().map_err(io_error)?;
            // A new term is made durable first, and entries none are behind a sync: neither is waited for here.
            let must_wait =
                turn.begins_run(self.encoded.entries.iter().map(|entry| (entry.term, entry.leader)));
            if !must_wait && !self.encoded.entries.is_empty() {
                return self.encoded.append(&mut turn, callback).map_err(io_error);
            }
            must_wait
        };
        debug_assert!(must_wait || self.encoded.entries.is_empty());
        let encoded = std::mem::take(&mut self.encoded);
        self.in_line(move |writer| encoded.append(writer, callback)).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogIdOf<C>>) -> io::Result<()> {
        self.in_line(move |writer| {
            let from = last_log_id.map_or_else(|| writer.first_index(), |last| last.index + 1);
            writer.delete_from(from)
        })
        .await
    }

    async fn purge(&mut self, log_id: LogIdOf<C>) -> io::Result<()> {
        let last = entry_id::<C>(&log_id);
        self.in_line(move |writer| writer.purge(last)).await
    }
}
