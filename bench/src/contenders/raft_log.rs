//! The peer raft-log, databend's log store: entries go to its writer thread, which batches the syncs of all flushes that
//! wait for it.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::{Callback, Config, RaftLog, Types};

use super::{Contender, Producer};
use crate::disk;
use crate::executor;
use crate::measure::{self, Load, Stage, Tally};
use crate::metric::Sample;
use crate::payload::Feed;

/// Term of all entries.
const TERM: u64 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct LogTypes;

impl Types for LogTypes {
    type LogId = (u64, u64);
    type LogPayload = Vec<u8>;
    type Vote = (u64, u64);
    type Callback = Flushed;
    type UserData = String;

    fn log_index(log_id: &Self::LogId) -> u64 {
        log_id.1
    }

    fn payload_size(payload: &Self::LogPayload) -> u64 {
        payload.len() as u64
    }
}

/// The outcome of a flush on its way from the writer thread to a future.
#[derive(Debug, Default)]
struct Slot {
    outcome: Option<io::Result<()>>,
    waker: Option<Waker>,
}

/// Called by the writer thread.
#[derive(Debug)]
struct Flushed(Arc<Mutex<Slot>>);

impl Callback for Flushed {
    fn send(self, outcome: io::Result<()>) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.outcome = Some(outcome);
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Waits for a [`Flushed`].
#[derive(Debug, Default)]
struct Flushing(Arc<Mutex<Slot>>);

impl Future for Flushing {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn open_log(dir: &Path) -> Result<RaftLog<LogTypes>> {
    let dir = dir.to_str().context("raft-log wants a directory name in UTF-8")?;
    Ok(RaftLog::open(Arc::new(Config::new(dir)))?)
}

/// Opens a log with its default configuration, new or existing.
pub fn open(dir: &Path) -> Result<Box<dyn Contender>> {
    Ok(Box::new(Log(Mutex::new(open_log(dir)?))))
}

struct Log(Mutex<RaftLog<LogTypes>>);

impl Contender for Log {
    fn producer(&self, number: usize) -> Result<Box<dyn Producer + '_>> {
        ensure!(number == 0, "a log has one writer");
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next_index = log.log_state().last().map_or(0, |last| last.1 + 1);
        drop(log);
        Ok(Box::new(LogProducer { log: &self.0, next_index }))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct LogProducer<'a> {
    log: &'a Mutex<RaftLog<LogTypes>>,
    next_index: u64,
}

impl Producer for LogProducer<'_> {
    fn append(&mut self, records: &[&'static [u8]]) -> Result<()> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let first = self.next_index;
        let entries = records.iter().zip(first..).map(|(record, index)| ((TERM, index), record.to_vec()));
        log.append(entries)?;
        self.next_index += records.len() as u64;
        let flushing = Flushing::default();
        log.flush(true, Some(Flushed(Arc::clone(&flushing.0))))?;
        drop(log);
        let mut flushing = Some(flushing);
        executor::drive(1, |_slot, outcome: Option<io::Result<()>>| {
            outcome.transpose()?;
            Ok(flushing.take())
        })
    }
}

/// Applies `load` with one append and flush on its way for each producer, all from one thread.
pub fn drive(dir: &Path, load: &Load) -> Result<Sample> {
    ensure!(load.batch == 1, "an append has one entry");
    let mut log = open_log(dir)?;
    disk::settle(dir)?;
    measure::conduct(load, |stage| produce(&mut log, load, stage))
}

/// The closed loop of all producers, on the calling thread.
fn produce(log: &mut RaftLog<LogTypes>, load: &Load, stage: &Stage) -> Result<Tally> {
    let mut tally = Tally::new();
    let mut next_index = 0;
    let mut producers: Vec<_> =
        (0..load.producers).map(|number| (Feed::new(number, load.record_bytes), Instant::now())).collect();
    executor::drive(load.producers, |slot, outcome: Option<io::Result<()>>| {
        let (feed, begun) = &mut producers[slot];
        if let Some(outcome) = outcome {
            outcome?;
            stage.finished(&mut tally, 1, load.record_bytes, begun.elapsed());
        }
        if !stage.is_running() {
            return Ok(None);
        }
        *begun = Instant::now();
        log.append([((TERM, next_index), feed.next_record().to_vec())])?;
        next_index += 1;
        let flushing = Flushing::default();
        log.flush(true, Some(Flushed(Arc::clone(&flushing.0))))?;
        Ok(Some(flushing))
    })?;
    Ok(tally)
}
