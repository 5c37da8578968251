//! The log as openraft's log storage.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use ::openraft::OptionalSend;
use ::openraft::alias::{LogIdOf, VoteOf};
use ::openraft::entry::RaftEntry;
use ::openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use ::openraft::vote::{RaftLeaderId, RaftVote};

use super::{CommittedLeader, LogReader, StoredConfig, StoredEntry, entry_id, io_error, log_id};
use crate::entry::NewEntry;
use crate::error::{Error, Result};
use crate::formed::FormedEntries;
use crate::log::{Core, RaftLog};
use crate::moment::Moment;
use crate::writer::Writer;

/// A [`RaftLog`] as openraft's log storage.
#[derive(Debug)]
pub struct LogStore<C> {
    log: RaftLog,
    core: Arc<Core>,
    /// Where entries are formed.
    formed: FormedEntries,
    config: PhantomData<fn() -> C>,
}

/// Forms an entry; those of one call follow each other.
fn put<E: StoredEntry>(formed: &mut FormedEntries, moment: &Moment, entry: &E) -> Result<()> {
    let (leader_id, index) = entry.log_id_parts();
    if let Some(next) = formed.first_index().map(|first| first + formed.len() as u64)
        && index != next
    {
        return Err(Error::NotNext { index, next });
    }
    formed.put(moment, index, leader_id.parts(), entry.kind(), |out| entry.encode(out));
    Ok(())
}

fn append<C: StoredConfig>(
    writer: &mut Writer,
    formed: &FormedEntries,
    callback: IOFlushed<C>,
) -> Result<()> {
    writer.append_formed(formed, move |outcome| callback.io_completed(outcome.map_err(io_error)))
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
        Ok(LogStore { log: log.clone(), core, formed: FormedEntries::default(), config: PhantomData })
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
        let (leader_id, index) = entry.log_id_parts();
        let (term, leader) = leader_id.parts();
        let mut command = Vec::new();
        entry.encode(&mut command);
        let entry = NewEntry { term, leader, serial: 0, kind: entry.kind(), command: &command };
        self.log.restore(index, &entry)
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
        let (bounds, last) = (shared.bounds(), shared.last_id());
        if last.is_none()
            && let Some(lost) = shared.lost_containing(bounds.next.saturating_sub(1))
        {
            return Err(io_error(Error::Lost { lost }));
        }
        Ok(LogState { last_purged_log_id: last_purged.map(log_id::<C>), last_log_id: last.map(log_id::<C>) })
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
        let moment = Moment::now(self.core.shared());
        self.formed.clear();
        for entry in entries {
            put(&mut self.formed, &moment, &entry).map_err(io_error)?;
        }
        {
            let mut turn = self.core.turn().map_err(io_error)?;
            // A new term is made durable first, and entries none are behind a sync: neither is waited for here.
            if self.formed.len() > 0 && !turn.begins_run(self.formed.ids()) {
                return append(&mut turn, &self.formed, callback).map_err(io_error);
            }
        }
        let formed = std::mem::take(&mut self.formed);
        self.in_line(move |writer| append(writer, &formed, callback)).await
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
