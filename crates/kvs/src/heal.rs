//! Making the index anew from the log, while the store is open.
//!
//! The index is derived: the log alone says everything. So a call that meets a damaged index does not fail. The whole index
//! is made anew, once, and the call is carried out again.
//!
//! **Invariants.** The order of locks is that of [`store`](crate::store). While the log is read, nobody writes; gets go on
//! with the old index. The old index file stays until a durable checkpoint names the new one.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use lsfs::{Entry, SegmentSet};

use crate::error::{Error, Result};
use crate::index::{Index, KeyHasher};
use crate::lookup::{Damaged, SharedTable, Table, missing, record_of};
use crate::maintenance::Maintenance;
use crate::segments::SegmentSlots;
use crate::store::{Inner, Inside, OpenReport, Writer, release};

/// What makes an index say what a log says.
pub(crate) struct Replay<'a> {
    pub(crate) log: &'a SegmentSet,
    pub(crate) table: &'a SharedTable,
    pub(crate) hasher: KeyHasher,
    /// Whether what does not verify is left out.
    pub(crate) repair: bool,
}

impl Replay<'_> {
    /// Carries out all durable commands of the log.
    pub(crate) fn run(&self, writer: &mut Writer) -> Result<OpenReport> {
        let mut report = OpenReport { rebuilt: true, ..OpenReport::default() };
        let mut entries = self.log.iter();
        loop {
            let carried_out = match entries.next_entry() {
                Ok(Some(entry)) => self.carry_out(writer, &entry),
                Ok(None) => break,
                // Nobody gives segments back meanwhile.
                Err(lsfs::Error::Gone { .. }) => Err(missing(entries.place().0)),
                Err(error) if error.is_corruption() && self.repair => {
                    let Some(left_out) = entries.skip_damage()? else { return Err(error.into()) };
                    tracing::warn!(%error, segment = left_out.0, positions = ?left_out.1, "left out");
                    report.left_out.push(left_out);
                    continue;
                }
                Err(error) => Err(error.into()),
            };
            carried_out.map_err(without_index)?;
            report.replayed += 1;
        }
        writer.log_end = entries.place();
        Ok(report)
    }

    fn carry_out(&self, writer: &mut Writer, entry: &Entry) -> Result<()> {
        let hash = self.hasher.hash(record_of(entry)?.key);
        let key = record_of(entry)?.key;
        let old = self.table.find(self.log, key, hash, Damaged::Ignore)?;
        self.table.point(self.log, hash, old.as_ref(), entry.pointer)?;
        writer.count_appended(hash, entry.pointer);
        writer.count_replaced(old.as_ref(), entry.kind, entry.pointer);
        if let Some(hit) = old {
            release(self.log, hit.head.pointer);
        }
        Ok(())
    }
}

/// The error for a log that is damaged where there is no index that knows better.
pub(crate) fn without_index(error: Error) -> Error {
    match error.is_corruption() && error.index_damage().is_none() {
        true => Error::LogAndIndexDamaged { log: Box::new(error) },
        false => error,
    }
}

impl Inner {
    /// Carries out a call of the owner that holds no lock. If it meets a damaged index, that is made anew, and the call
    /// begins again, once.
    pub(crate) fn healing<T>(&self, mut call: impl FnMut() -> Result<T>) -> Result<T> {
        match call() {
            Ok(done) => Ok(done),
            Err(error) if error.index_damage().is_some() => {
                self.heal(&error)?;
                call()
            }
            Err(error) => Err(error),
        }
    }

    /// After damage of the index, with no lock held: makes it anew.
    pub(crate) fn heal(&self, damage: &Error) -> Result<()> {
        let _inside = Inside::enter();
        self.heal_within(&mut self.maintenance(), damage).map(drop)
    }

    /// As [`Inner::heal`], for maintenance. Answers what was read; nothing if somebody else had made the index anew since
    /// the damage was met.
    pub(crate) fn heal_within(&self, maintenance: &mut Maintenance, damage: &Error) -> Result<OpenReport> {
        if let Some(failure) = &maintenance.heal_failure {
            return Err(failure.clone());
        }
        let Some(Error::IndexDamaged { path, .. }) = damage.index_damage() else {
            return Err(damage.clone());
        };
        if !self.table.read().index.is_at(path) {
            return Ok(OpenReport::default());
        }
        tracing::warn!(dir = %self.dir.display(), %damage, "the index is made anew from the log");
        let report = match self.make_index_anew() {
            Ok(report) => report,
            Err(error) => {
                if error.is_corruption() {
                    // Reading all of it again would tell nothing new.
                    maintenance.heal_failure = Some(error.clone());
                }
                return Err(error);
            }
        };
        self.rebuilds.fetch_add(1, Ordering::Relaxed);
        // Runs belong to an index file.
        self.order.forget_runs();
        self.has_reclaimable.store(true, Ordering::Relaxed);
        let (env, dir) = (&self.options.env, &self.dir);
        let saved = self
            .write_checkpoint(maintenance)
            .and_then(|()| self.table.read().index.remove_other_files(env, dir));
        if let Err(error) = saved {
            tracing::warn!(dir = %dir.display(), %error, "the new index is in memory only, until the next checkpoint");
        }
        tracing::warn!(dir = %dir.display(), commands = report.replayed, "the index was made anew from the log");
        Ok(report)
    }

    /// Settles everything, for maintenance.
    pub(crate) fn settle_healing(&self, maintenance: &mut Maintenance) -> Result<()> {
        match self.settle_whole() {
            Err(error) if error.index_damage().is_some() => self.heal_within(maintenance, &error).map(drop),
            other => other,
        }
    }

    fn make_index_anew(&self) -> Result<OpenReport> {
        // Nothing is reclaimed meanwhile; and before the writer's lock: who reclaims takes them in this order.
        let mut reclaimable = self.reclaimable();
        let mut writer = self.writer();
        // A replay reads what is durable.
        self.log.sync()?;
        let counts = self.log.segments();
        let made = self.replay_into_new();
        let (table, counted, report) = match made {
            Ok(made) => made,
            Err(error) => {
                for info in counts {
                    self.log.set_live_bytes(info.number, info.live_bytes)?;
                }
                let current = self.table.read();
                if let Err(error) = current.index.remove_other_files(&self.options.env, &self.dir) {
                    tracing::debug!(%error, "the index file that was begun was not removed");
                }
                return Err(error);
            }
        };
        *self.table.write() = table.into_inner();
        self.has_unsettled.store(false, Ordering::Relaxed);
        *writer = counted;
        // A remove that compaction has dropped is in the index again: nothing is to be reclaimed.
        reclaimable.clear();
        Ok(report)
    }

    /// A new index of the whole log, under the same hashes, and what was counted on the way.
    fn replay_into_new(&self) -> Result<(SharedTable, Writer, OpenReport)> {
        let index = Index::create(&self.options.env, &self.dir, self.options.index_bytes, self.hasher)?;
        let table = SharedTable::new(Table::new(index, SegmentSlots::default()));
        let mut counted = Writer::new(0, HashMap::new());
        count_all_as_live(&self.log)?;
        let replay = Replay { log: &self.log, table: &table, hasher: self.hasher, repair: false };
        let report = replay.run(&mut counted)?;
        Ok((table, counted, report))
    }
}

/// Before a replay of everything, which then counts what is stale.
pub(crate) fn count_all_as_live(log: &SegmentSet) -> Result<()> {
    for segment in log.segments() {
        log.set_live_bytes(segment.number, segment.total_bytes)?;
    }
    Ok(())
}
