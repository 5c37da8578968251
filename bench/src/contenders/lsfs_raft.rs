//! Our own Raft log: through openraft's storage traits where appends are measured, as itself where it is filled.

use std::io;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures_util::FutureExt;
use lsfs_raft::openraft::{LogStore, Stored};
use lsfs_raft::{LogOptions, NewEntry, RaftLog};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderIdExt;

use super::{Contender, Producer};
use crate::disk;
use crate::executor;
use crate::measure::{self, Load, Stage, Tally};
use crate::metric::Sample;
use crate::payload::Feed;

/// Term and leader of all entries.
const TERM: u64 = 1;
const LEADER: u64 = 1;

/// A command: bytes that are there for the whole run, so that no contender is charged for making them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Command(&'static [u8]);

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Stored for Command {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0);
    }

    fn decode(_bytes: &[u8]) -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "the benchmark only appends"))
    }
}

openraft::declare_raft_types!(
    Types:
        D = Command,
        R = (),
        Node = openraft::impls::EmptyNode,
        AsyncRuntime = openraft_rt_tokio::TokioRuntime,
);

type Entry = openraft::alias::EntryOf<Types>;
type LogId = openraft::alias::LogIdOf<Types>;
type LeaderId = openraft::alias::LeaderIdOf<Types>;

fn open_log(dir: &Path) -> Result<RaftLog> {
    Ok(RaftLog::open(dir, LogOptions { first_index: 0, ..LogOptions::default() })?)
}

/// Opens a log with its default options, new or existing.
pub fn open(dir: &Path) -> Result<Box<dyn Contender>> {
    Ok(Box::new(Log { log: open_log(dir)? }))
}

struct Log {
    log: RaftLog,
}

impl Contender for Log {
    fn producer(&self, _number: usize) -> Result<Box<dyn Producer + '_>> {
        Ok(Box::new(LogProducer { log: self.log.clone(), batch: Vec::new() }))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.log.stop()?)
    }
}

struct LogProducer {
    log: RaftLog,
    batch: Vec<NewEntry<'static>>,
}

impl Producer for LogProducer {
    fn append(&mut self, records: &[&'static [u8]]) -> Result<()> {
        self.batch.clear();
        self.batch.extend(records.iter().map(|&record| NewEntry::command(TERM, LEADER, record)));
        self.log.append_all(&self.batch)?;
        Ok(())
    }
}

/// Applies `load` through [`RaftLogStorage`]: each producer has one append on its way and waits for its `IOFlushed`.
pub fn drive(dir: &Path, load: &Load) -> Result<Sample> {
    ensure!(load.batch == 1, "an append has one entry");
    let log = open_log(dir)?;
    let mut store = LogStore::<Types>::new(&log)?;
    // The first entry of a term makes that durable: it is not part of the load.
    log.append(&NewEntry::term_start(TERM, LEADER))?;
    disk::settle(dir)?;
    let sample = measure::conduct(load, |stage| produce(&mut store, load, stage))?;
    log.stop()?;
    Ok(sample)
}

/// The closed loop of all producers, on the calling thread.
fn produce(store: &mut LogStore<Types>, load: &Load, stage: &Stage) -> Result<Tally> {
    let mut tally = Tally::new();
    let leader = LeaderId::new_committed(TERM, LEADER);
    let mut next_index = store.log().next_index()?;
    let mut producers: Vec<_> =
        (0..load.producers).map(|number| (Feed::new(number, load.record_bytes), Instant::now())).collect();
    executor::drive(load.producers, |slot, outcome: Option<Result<io::Result<()>, _>>| {
        let (feed, begun) = &mut producers[slot];
        if let Some(outcome) = outcome {
            outcome.context("a callback was dropped")??;
            stage.finished(&mut tally, 1, load.record_bytes, begun.elapsed());
        }
        if !stage.is_running() {
            return Ok(None);
        }
        *begun = Instant::now();
        let entry = Entry::new_normal(LogId::new(leader, next_index), Command(feed.next_record()));
        next_index += 1;
        let (flushed, receiver) = Types::oneshot();
        let appended = store.append([entry], IOFlushed::signal(flushed));
        appended.now_or_never().context("an append of the same term waited")??;
        Ok(Some(receiver))
    })?;
    Ok(tally)
}
