//! Reading for openraft: from memory at once, from the disk on a thread that may block.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::{Range, RangeBounds};
use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream;

use ::openraft::OptionalSend;
use ::openraft::alias::{LeaderIdOf, VoteOf};
use ::openraft::errors::LeaderChanged;
use ::openraft::storage::{LeaderBoundedStreamError, RaftLogReader};
use ::openraft::type_config::TypeConfigExt;
use ::openraft::vote::{RaftLeaderId, RaftVote};

use super::{StoredConfig, StoredEntry, io_error, log_id};
use crate::log::range_of;
use crate::shared::{RawEntries, RawEntry, Shared};

/// Reads entries and the vote for openraft.
#[derive(Debug)]
pub struct LogReader<C> {
    shared: Arc<Shared>,
    config: PhantomData<fn() -> C>,
}

impl<C> Clone for LogReader<C> {
    fn clone(&self) -> Self {
        LogReader { shared: Arc::clone(&self.shared), config: PhantomData }
    }
}

/// How much of a range is read at once, so that a stream holds little.
const CHUNK_ENTRIES: usize = 256;
const CHUNK_BYTES: usize = 1 << 20;

/// Entries of a range that were read and not yet taken.
struct Ahead<C: StoredConfig> {
    /// `None` while a thread reads with it.
    raw: Option<RawEntries>,
    read: VecDeque<C::Entry>,
    failed: bool,
}

fn decode<C: StoredConfig>(raw: RawEntry<'_>) -> io::Result<C::Entry> {
    C::Entry::decode(log_id::<C>(raw.id()), raw.kind, raw.command)
}

/// Reads on until there is enough, or the range ends.
fn read_chunk<C: StoredConfig>(raw: &mut RawEntries, entries: usize) -> io::Result<VecDeque<C::Entry>> {
    let mut read = VecDeque::new();
    let mut bytes = 0;
    while read.len() < entries && bytes < CHUNK_BYTES {
        let next = raw.next_with(|raw| (raw.command.len(), decode::<C>(raw))).map_err(io_error)?;
        let Some((command_bytes, entry)) = next else { break };
        bytes += command_bytes;
        read.push_back(entry?);
    }
    Ok(read)
}

impl<C: StoredConfig> Ahead<C> {
    fn new(shared: &Arc<Shared>, range: Range<u64>) -> Self {
        let raw = RawEntries::new(Arc::clone(shared), range);
        Ahead { raw: Some(raw), read: VecDeque::new(), failed: false }
    }

    /// The next chunk: at once if its entries are in memory.
    async fn read(&mut self, entries: usize) -> io::Result<VecDeque<C::Entry>> {
        let Some(mut raw) = self.raw.take() else { return Ok(VecDeque::new()) };
        if raw.is_in_memory() {
            let chunk = read_chunk::<C>(&mut raw, entries);
            self.raw = Some(raw);
            return chunk;
        }
        let work = move || {
            let chunk = read_chunk::<C>(&mut raw, entries);
            (raw, chunk)
        };
        let (raw, chunk) = C::spawn_blocking(work).await?;
        self.raw = Some(raw);
        chunk
    }

    async fn next(&mut self) -> Option<io::Result<C::Entry>> {
        if self.failed {
            return None;
        }
        if self.read.is_empty() {
            match self.read(CHUNK_ENTRIES).await {
                Ok(chunk) => self.read = chunk,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        self.read.pop_front().map(Ok)
    }
}

impl<C: StoredConfig> LogReader<C> {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        LogReader { shared, config: PhantomData }
    }

    fn vote(&self) -> Option<VoteOf<C>> {
        let vote = self.shared.vote()?;
        let leader_id = <LeaderIdOf<C> as RaftLeaderId>::new(vote.term, vote.candidate);
        Some(VoteOf::<C>::from_leader_id(leader_id, vote.is_committed))
    }

    /// Whether this leader still leads; if not, who votes for whom.
    fn check_leader(&self, leader: &LeaderIdOf<C>) -> Result<(), LeaderBoundedStreamError<C>> {
        let vote = self.vote();
        match &vote {
            Some(vote) if vote.leader_id() == leader && vote.is_committed() => Ok(()),
            _ => Err(LeaderChanged::new(leader.clone(), vote).into()),
        }
    }
}

impl<C: StoredConfig> RaftLogReader<C> for LogReader<C> {
    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: LeaderIdOf<C>,
        range: RB,
    ) -> impl Stream<Item = Result<C::Entry, LeaderBoundedStreamError<C>>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let ahead = Ahead::<C>::new(&self.shared, range_of(&range));
        let reader = self.clone();
        Box::pin(stream::unfold(Some((ahead, reader, leader)), |state| async move {
            let (mut ahead, reader, leader) = state?;
            let next = ahead.next().await;
            // Looked at behind the read: what was read under another leader is not handed out.
            if let Err(changed) = reader.check_leader(&leader) {
                return Some((Err(changed), None));
            }
            let next = next?.map_err(LeaderBoundedStreamError::from);
            Some((next, Some((ahead, reader, leader))))
        }))
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<C::Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let ahead = Ahead::<C>::new(&self.shared, range_of(&range));
        Box::pin(stream::unfold(ahead, |mut ahead| async move {
            let next = ahead.next().await?;
            Some((next, ahead))
        }))
    }

    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<C::Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let mut ahead = Ahead::<C>::new(&self.shared, range_of(&range));
        let mut entries = Vec::new();
        while let Some(entry) = ahead.next().await {
            entries.push(entry?);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<C::Entry>> {
        let mut ahead = Ahead::<C>::new(&self.shared, start..end);
        Ok(ahead.read(CHUNK_ENTRIES).await?.into())
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<C>>> {
        Ok(self.vote())
    }
}
