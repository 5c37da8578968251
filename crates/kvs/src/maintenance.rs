//! Checkpoints, compaction, and giving back space.
//!
//! **Invariants.** A page of a durable checkpoint names only frames that are durable: the log is synced before the pages
//! are written. Of each frame in a segment that is reclaimed, the durable log says elsewhere what became of its key: a
//! moved copy, a newer command, or nothing, if that was a remove that hid nothing any more. So an address in a segment
//! that is gone means nothing. Segments are reclaimed inside calls of the owner.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use lsfs::codec::Pointer;
use lsfs::io::Step;
use lsfs::{Entry, FinalData, SetSegmentInfo};

use crate::error::{Error, Result};
use crate::idle::Rest;
use crate::index::{FREE_PLACES_MAX, IndexStats, PAGE_BYTES};
use crate::lookup::{Hit, missing, record_of};
use crate::recent::Replaces;
use crate::record::{Command, Record, encode_moved};
use crate::reserve;
use crate::root::{NO_SLOT, Root, RootSegment};
use crate::store::{Inner, Inside, Writer, release};
use crate::tail::{self, Lists, TailFile, Unlisted};

/// A checkpoint is not worth it for less than so many units of the log, unless it is asked for.
const TAIL_UNITS_MIN: u64 = 8;
/// What the log may be longer than the pages that a checkpoint writes, before one is made; ...
pub(crate) const TAIL_PER_PAGE_BYTE: u64 = 4;
/// ... and if an open need not read it, since its commands are listed.
const LISTED_TAIL_PER_PAGE_BYTE: u64 = 30;
/// An open reads at most so many units, whatever a checkpoint costs; ...
const TAIL_UNITS_MAX: u64 = 128;
/// ... or finds so many commands in lists.
const LISTED_COMMANDS_MAX: u64 = 7 << 19;
/// So many units of the log make a list.
const LIST_UNITS: u64 = 4;
/// A close without a background makes a checkpoint from here on.
const CLOSE_TAIL_UNITS: u64 = 1;
/// A writer compacts by itself when so many units more are stale than should be: the background does not keep up, ...
const OVERDUE_UNITS: u64 = 4;
/// ... or this part of what is live, if that is more.
const OVERDUE_PART: u64 = 64;
/// Without a background, a close compacts when more is stale than live, and so many units.
const CLOSE_OVERDUE_UNITS: u64 = 4;
/// Space is put by for a store with so many keys that this for each makes a unit, ...
const RESERVE_PER_KEY_BYTES: u64 = 64;
/// ... or with a log of so many units.
const RESERVE_LOG_UNITS: u64 = 16;
/// A segment with a smaller stale share, in percent, is not compacted.
const SEGMENT_STALE_PERCENT_MIN: u64 = 5;
/// Bytes of frames that are moved under the writer's lock at a time.
const MOVE_BYTES: usize = 64 << 10;

/// Room for a checkpoint's pages is made in the last so many thousandths of the way to it.
const ROOM_PERMILLE: u64 = 250;
/// What a command takes in a list.
const BYTES_PER_LISTED: u64 = 5;
/// What lies beside the log takes at most this part of what may be stale, times the percentage of that: 27 % of it where
/// 68 % may be. The less may be stale, the more moves each byte less costs.
const BESIDE_PERCENT_PART: u64 = 250;

/// While the store is written, the index gives space back in stretches of at least so many pages.
const RELEASED_PAGES_MIN: usize = 8;

/// Segments whose frames are longer on average are not read into the page cache: it would hold few keys for its size.
const LOADED_BODY_BYTES_MAX: u64 = 16 << 10;

/// A store that comes to rest keeps so small a part of the stale bytes that it may have while it is written, ...
const REST_PARTS: u64 = 9;
/// ... as far as moving so many units achieves that, and this part of what was written since the open: a close takes long
/// only after long work.
const REST_MOVED_UNITS: u64 = 8;
const REST_MOVED_PART: u64 = 8;

/// How far compaction goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// To what the options admit.
    Usual,
    /// To what a store has at rest.
    Rest,
    /// To every segment that is worth it.
    All,
}

/// A frame that may have to be moved.
struct LiveFrame<'a> {
    entry: &'a Entry,
    record: Record<'a>,
    hash: u64,
    /// Its own.
    address: u64,
    /// The index points to it; if not, its page is not in memory.
    is_checked: bool,
}

/// The state of what goes on beside writing; one at a time.
#[derive(Debug)]
pub(crate) struct Maintenance {
    /// `None` once the store is closed.
    final_data: Option<FinalData>,
    /// A checkpoint may or may not be durable: its pages and those of the one before must stay.
    in_doubt: Option<Error>,
    /// Not to be compacted: something in them does not verify.
    damaged: BTreeSet<u32>,
    /// The log up to here was read into the page cache, or may be there since an earlier process wrote it.
    loaded_to: (u32, u32),
    /// Where the next list of commands goes; `None` without a checkpoint, and if nobody makes lists.
    pub(crate) tail: Option<TailFile>,
    /// Why the index cannot be made anew.
    pub(crate) heal_failure: Option<Error>,
    /// When the log was last seen to grow, if a checkpoint waits for that to end.
    pub(crate) rest: Option<Rest>,
}

impl Maintenance {
    pub(crate) fn new(final_data: FinalData, active: u32) -> Maintenance {
        Maintenance {
            final_data: Some(final_data),
            in_doubt: None,
            damaged: BTreeSet::new(),
            loaded_to: (active, 0),
            tail: None,
            heal_failure: None,
            rest: None,
        }
    }

    /// Something in a segment does not verify: it is left as it is.
    fn keep_damaged(&mut self, number: u32, error: &Error) {
        tracing::error!(%error, segment = number, "damaged: the segment is kept as it is");
        self.damaged.insert(number);
    }

    fn check(&self, dir: &Path) -> Result<&FinalData> {
        if let Some(error) = &self.in_doubt {
            return Err(error.clone());
        }
        self.final_data.as_ref().ok_or_else(|| lsfs::Error::Closed { path: dir.to_path_buf() }.into())
    }
}

impl Inner {
    pub(crate) fn maintenance(&self) -> MutexGuard<'_, Maintenance> {
        self.maintenance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step of the background.
    pub(crate) fn maintain(&self) -> Step {
        if Inside::is_occupied() {
            self.is_postponed.store(true, Ordering::Relaxed);
            return Step::Idle;
        }
        let _inside = Inside::enter();
        let mut maintenance = self.maintenance();
        if maintenance.final_data.is_none() {
            return Step::Idle;
        }
        match self.maintain_once(&mut maintenance) {
            Ok(step) => step,
            Err(error) => {
                // The next kick tries again; what is wrong with the log is said by the writes.
                tracing::warn!(dir = %self.dir.display(), %error, "maintenance failed");
                Step::Idle
            }
        }
    }

    fn maintain_once(&self, maintenance: &mut Maintenance) -> Result<Step> {
        maintenance.check(&self.dir)?;
        self.load_written(maintenance);
        match self.settle_step() {
            Ok(false) => {}
            Err(error) if error.index_damage().is_some() => drop(self.heal_within(maintenance, &error)?),
            other => return other.map(|_settled| Step::Again),
        }
        // Before compaction, which may have no end as long as the store is written.
        let recorded = match self.checkpoint_is_due() {
            true => self.write_checkpoint(maintenance),
            false => self.list_tail(maintenance),
        };
        // Also on a full disk: it gives space back.
        if let Some(victim) = self.victim(maintenance, Aim::Usual) {
            self.compact(maintenance, victim)?;
            return recorded.map(|()| Step::Again);
        }
        recorded?;
        self.tend_order(maintenance)?;
        self.rest(maintenance)
    }

    /// Reads what was written since the last time into the page cache: the next set of a key compares it with the key in
    /// its last frame.
    fn load_written(&self, maintenance: &mut Maintenance) {
        let segments = self.log.segments();
        let log_bytes: u64 = segments.iter().map(|info| info.total_bytes).sum();
        let (number, position) = maintenance.loaded_to;
        for info in segments.iter().filter(|info| info.number >= number) {
            let from = if info.number == number { position } else { 0 };
            let is_worth_it = log_bytes <= self.options.page_cache_bytes
                && u64::from(info.body_bytes) <= u64::from(info.entries) * LOADED_BODY_BYTES_MAX;
            let to = match is_worth_it {
                true => self.log.load_from(info.number, from).unwrap_or(from),
                false => info.end,
            };
            maintenance.loaded_to = (info.number, to);
            if !info.is_sealed {
                // What is left of a segment that is being sealed is loaded the next time.
                break;
            }
        }
    }

    /// If the background cannot keep up, the one who writes does its work: the stale bytes stay in proportion.
    pub(crate) fn catch_up(&self) {
        if !self.is_overdue() {
            return;
        }
        let _inside = Inside::enter();
        let mut maintenance = self.maintenance();
        if let Err(error) = self.try_catch_up(&mut maintenance, Inner::is_overdue) {
            tracing::warn!(dir = %self.dir.display(), %error, "maintenance failed");
        }
    }

    /// Whether much more is stale than should be.
    fn is_overdue(&self) -> bool {
        let (live, stale) = self.live_and_stale();
        // A store of which much is removed takes no more than it did: there nobody has to wait for the background, and what
        // is moved now is soon stale.
        let most = self.most_live_bytes.fetch_max(live, Ordering::Relaxed).max(live);
        let slack = (most / OVERDUE_PART).max(OVERDUE_UNITS * self.options.unit_bytes());
        let beside = self.bytes_beside_log(&self.writer());
        stale > slack && stale - slack > self.admitted(most, Aim::Usual, beside)
    }

    fn is_overdue_for_a_close(&self) -> bool {
        let (live, stale) = self.live_and_stale();
        stale > live + CLOSE_OVERDUE_UNITS * self.options.unit_bytes()
    }

    fn live_and_stale(&self) -> (u64, u64) {
        let segments = self.log.segments();
        let live: u64 = segments.iter().map(|info| info.live_bytes).sum();
        (live, segments.iter().map(|info| info.total_bytes).sum::<u64>() - live)
    }

    fn try_catch_up(&self, maintenance: &mut Maintenance, is_overdue: impl Fn(&Inner) -> bool) -> Result<()> {
        while is_overdue(self) {
            let victim = self.victim(maintenance, Aim::Usual);
            if let Some(victim) = victim {
                self.compact(maintenance, victim)?;
            }
            self.reclaim_compacted()?;
            if victim.is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    // ---- checkpoints ----

    pub(crate) fn checkpoint_is_due(&self) -> bool {
        let writer = self.writer();
        let dirty_pages = self.table.read().index.stats().dirty_pages;
        self.permille_to_checkpoint(&writer, dirty_pages) >= 1000
    }

    /// How much of the way to the next checkpoint is done, in thousandths.
    fn permille_to_checkpoint(&self, writer: &Writer, dirty_pages: usize) -> u64 {
        let unit = self.options.unit_bytes();
        let dirty_bytes = (dirty_pages * PAGE_BYTES) as u64;
        let (done, longest, per_page_byte) = match writer.unlisted.is_on() {
            true => (writer.tail_commands, LISTED_COMMANDS_MAX, LISTED_TAIL_PER_PAGE_BYTE),
            false => (writer.tail_bytes, TAIL_UNITS_MAX * unit, TAIL_PER_PAGE_BYTE),
        };
        let worth_it_bytes = (TAIL_UNITS_MIN * unit).max(per_page_byte * dirty_bytes);
        (done * 1000 / longest).max(writer.tail_bytes * 1000 / worth_it_bytes.max(1))
    }

    /// Lists the commands that were appended since the last list, if they are many: an open need not read them then.
    fn list_tail(&self, maintenance: &mut Maintenance) -> Result<()> {
        let Some(tail) = &mut maintenance.tail else { return Ok(()) };
        let (unlisted, end) = {
            let mut writer = self.writer();
            if writer.unlisted.frame_bytes() < LIST_UNITS * self.options.unit_bytes() {
                return Ok(());
            }
            (writer.unlisted.take(), writer.log_end)
        };
        let list = unlisted.list(tail.listed_to, end);
        // The log's own recovery, too, begins behind what is listed.
        let listed = self.log.checkpoint().map_err(Error::from);
        let listed = listed.and_then(|()| tail.append(&self.options.env, &self.dir, &list));
        if listed.is_err() {
            self.writer().unlisted.put_back(unlisted);
        }
        listed
    }

    pub(crate) fn checkpoint(&self) -> Result<()> {
        let _inside = Inside::enter();
        self.write_checkpoint(&mut self.maintenance())
    }

    pub(crate) fn write_checkpoint(&self, maintenance: &mut Maintenance) -> Result<()> {
        maintenance.check(&self.dir)?;
        self.settle_healing(maintenance)?;
        // Before the writer's lock: who reclaims takes them the other way round.
        let reclaimable = self.reclaimable().clone();
        let (frozen, root, behind) = {
            let mut writer = self.writer();
            self.settle_recent(&mut writer)?;
            let mut table = self.table.write();
            let frozen = table.index.begin_checkpoint();
            let segments = self.log.segments();
            let slot_of = |number| table.slots.slot_of(number).unwrap_or(NO_SLOT);
            let segments = segments.iter().map(|info| {
                let removes = writer.removes.get(&info.number).copied().unwrap_or_default();
                RootSegment {
                    // It may go at any moment, and no address is in it any more.
                    slot: if reclaimable.contains(&info.number) { NO_SLOT } else { slot_of(info.number) },
                    number: info.number,
                    stale_bytes: info.total_bytes - info.live_bytes,
                    remove_bytes: removes.bytes,
                    removes: removes.count,
                }
            });
            let root = Root {
                index: frozen.root(),
                log_end: writer.log_end,
                keys: writer.keys,
                segments: segments.collect(),
                lost: table.lost.spots().to_vec(),
            };
            let behind = (writer.tail_bytes, writer.tail_commands, writer.unlisted.take());
            (writer.tail_bytes, writer.tail_commands) = (0, 0);
            if self.options.background {
                writer.unlisted = Unlisted::beginning_with(Vec::new(), 0);
            }
            (frozen, root, behind)
        };
        let written =
            self.log.sync().map_err(Error::from).and_then(|()| frozen.write(&self.options.env, &self.dir));
        if let Err(error) = written {
            self.table.write().index.checkpoint_failed(frozen);
            let mut writer = self.writer();
            let (tail_bytes, tail_commands, unlisted) = behind;
            writer.tail_bytes += tail_bytes;
            writer.tail_commands += tail_commands;
            writer.unlisted.put_back(unlisted);
            return Err(error);
        }
        if let Err(error) = maintenance.check(&self.dir)?.set(&root.encode()) {
            let error = Error::from(error);
            maintenance.in_doubt = Some(error.clone());
            return Err(error);
        }
        tracing::debug!(pages = frozen.dirty_pages(), keys = root.keys, log_end = ?root.log_end, "checkpoint");
        self.table.write().index.checkpoint_done(frozen);
        self.release_index_space(RELEASED_PAGES_MIN);
        if self.options.background {
            let (place, index_id) = (root.log_end, root.index.file_id);
            maintenance.tail = Some(match maintenance.tail.take() {
                Some(tail) => tail.begin_anew(place, index_id),
                None => TailFile::behind(place, index_id, &Lists::default()),
            });
        }
        let unit = self.options.unit_bytes();
        let log_bytes: u64 = self.log.segments().iter().map(|info| info.total_bytes).sum();
        if root.keys * RESERVE_PER_KEY_BYTES >= unit || log_bytes >= RESERVE_LOG_UNITS * unit {
            reserve::keep(&self.options.env, &self.dir, log_bytes);
        }
        Ok(())
    }

    /// Gives back the space of pages of the index that no checkpoint needs any more, in stretches of so many.
    fn release_index_space(&self, least: usize) {
        let space = self.table.write().index.withhold_free(least);
        if space.is_empty() {
            return;
        }
        let released = space.release();
        self.table.write().index.given_back(&space, released.is_ok());
        if let Err(error) = released {
            tracing::warn!(dir = %self.dir.display(), %error, "the index keeps space that it does not need");
        }
    }

    /// Nothing in these segments is needed: once the log says so durably, the owner may reclaim them.
    fn hand_over(&self, segments: impl IntoIterator<Item = u32>) -> Result<()> {
        self.log.sync()?;
        self.reclaimable().extend(segments);
        self.has_reclaimable.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn reclaimable(&self) -> MutexGuard<'_, Vec<u32>> {
        self.reclaimable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back the segments that were compacted, and that no view needs.
    pub(crate) fn reclaim_compacted(&self) -> Result<()> {
        let _inside = Inside::enter();
        self.remove_obsolete_runs();
        let mut reclaimable = self.reclaimable();
        let pinned_to = self.order.pinned_to();
        let (kept, free): (Vec<u32>, Vec<u32>) = reclaimable.iter().partition(|&&number| number <= pinned_to);
        if !free.is_empty() {
            self.log.reclaim(&free)?;
            let mut writer = self.writer();
            let mut table = self.table.write();
            for number in free {
                table.slots.forget(number);
                writer.removes.remove(&number);
            }
        }
        self.has_reclaimable.store(!kept.is_empty(), Ordering::Relaxed);
        *reclaimable = kept;
        Ok(())
    }

    // ---- compaction ----

    /// The segment to compact next.
    fn victim(&self, maintenance: &Maintenance, aim: Aim) -> Option<u32> {
        let reclaimable = self.reclaimable().clone();
        let is_kept = |info: &SetSegmentInfo| !reclaimable.contains(&info.number);
        let segments: Vec<SetSegmentInfo> = self.log.segments().into_iter().filter(is_kept).collect();
        let writer = self.writer();
        let removes = |number: u32| writer.removes.get(&number).map_or(0, |removes| removes.bytes);
        // Removes in the oldest segment hide nothing any more.
        let oldest = self.log.segments().first().map(|info| info.number);
        let stale = |info: &SetSegmentInfo| {
            let hidden = if Some(info.number) == oldest { removes(info.number) } else { 0 };
            info.total_bytes - info.live_bytes + hidden
        };
        let beside = self.bytes_beside_log(&writer);
        let admitted = |live: u64| self.admitted(live, aim, beside);
        let live_total: u64 = segments.iter().map(|info| info.live_bytes).sum();
        let stale_total: u64 = segments.iter().map(&stale).sum();
        let removes_total: u64 = segments.iter().map(|info| removes(info.number)).sum();
        let sealed =
            segments.iter().filter(|info| info.is_sealed && !maintenance.damaged.contains(&info.number));
        // They can go only when everything older has gone. What a view keeps is still there: then they would be moved again
        // and again.
        if removes_total > admitted(live_total.saturating_sub(removes_total))
            && let Some(first) = sealed.clone().next()
            && Some(first.number) == oldest
        {
            return oldest;
        }
        if aim != Aim::All && stale_total <= admitted(live_total) {
            return None;
        }
        let share = |info: &SetSegmentInfo| stale(info) * 1000 / info.total_bytes.max(1);
        sealed
            .filter(|info| share(info) >= SEGMENT_STALE_PERCENT_MIN * 10 || info.live_bytes == 0)
            .max_by_key(|info| share(info))
            .map(|info| info.number)
    }

    /// How much may be stale where so much is live, and so much is taken beside the log.
    fn admitted(&self, live: u64, aim: Aim, beside: u64) -> u64 {
        let percent = u64::from(self.options.stale_percent);
        let usual = live.saturating_mul(percent) / 100 + self.options.unit_bytes();
        match aim {
            Aim::Rest => usual / REST_PARTS,
            Aim::Usual | Aim::All => {
                usual - beside.min(usual.saturating_mul(percent.min(100)) / BESIDE_PERCENT_PART)
            }
        }
    }

    /// Bytes that the store takes beside its log, and not at rest: the log gets along with so much less meanwhile.
    fn bytes_beside_log(&self, writer: &Writer) -> u64 {
        let IndexStats { pages, dirty_pages, file_pages, free_pages, .. } = self.table.read().index.stats();
        let permille = self.permille_to_checkpoint(writer, dirty_pages).min(1000);
        // The next checkpoint needs its pages beside those of the last one. The room is made shortly before.
        let missing = dirty_pages.saturating_sub(free_pages) as u64;
        let soon = missing * permille.saturating_sub(1000 - ROOM_PERMILLE) / ROOM_PERMILLE;
        let idle = file_pages.saturating_sub(pages + FREE_PLACES_MAX) as u64;
        let index_bytes = (idle + soon) * PAGE_BYTES as u64;
        let list_bytes = if writer.unlisted.is_on() { writer.tail_commands * BYTES_PER_LISTED } else { 0 };
        index_bytes + list_bytes
    }

    /// Moves what is live out of a segment.
    fn compact(&self, maintenance: &mut Maintenance, number: u32) -> Result<()> {
        self.settle_healing(maintenance)?;
        if self.log.segments().iter().any(|info| info.number == number && info.live_bytes == 0) {
            // Nothing to move: it need not be read.
            return self.hand_over([number]);
        }
        // The oldest that is left when this one is gone; what is to be reclaimed is still there.
        let oldest_left = self.log.segments().iter().map(|info| info.number).find(|&other| other != number);
        let mut entries = self.log.iter_from(number, 0);
        let (mut group, mut group_bytes, mut unloaded_bytes) = (Vec::new(), 0, 0);
        let mut is_moved = true;
        loop {
            let entry = match entries.next_entry() {
                Ok(entry) => entry.filter(|entry| entry.pointer.segment == number),
                // Nobody gives it back meanwhile: its file has vanished.
                Err(error) if error.is_corruption() || matches!(error, lsfs::Error::Gone { .. }) => {
                    maintenance.keep_damaged(number, &error.into());
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            let is_end = entry.is_none();
            group_bytes += entry.as_ref().map_or(0, |entry| entry.body.len());
            group.extend(entry);
            if is_end || group_bytes >= MOVE_BYTES {
                match self.move_live(&group, oldest_left) {
                    Ok(is_whole) => is_moved &= is_whole,
                    // A frame that is no command, or that of a command lost.
                    Err(error) if error.is_corruption() && error.index_damage().is_none() => {
                        maintenance.keep_damaged(number, &error);
                        return Ok(());
                    }
                    Err(error) => {
                        self.heal_within(maintenance, &error)?;
                        // Removes that were let go before are in the new index again: the segment has its turn once more.
                        return Ok(());
                    }
                }
                group.clear();
                unloaded_bytes += std::mem::take(&mut group_bytes);
                // A segment takes long: others go on writing meanwhile.
                if unloaded_bytes as u64 >= self.options.unit_bytes() {
                    self.load_written(maintenance);
                    unloaded_bytes = 0;
                }
            }
            if is_end {
                break;
            }
        }
        if !is_moved {
            maintenance.damaged.insert(number);
            return Ok(());
        }
        tracing::debug!(segment = number, "compacted");
        self.hand_over([number])
    }

    /// Appends again what is live of these frames, and lets go what hides nothing any more. `false` if something had to stay,
    /// since a lost command may be newer: a copy would be newer than that.
    fn move_live(&self, group: &[Entry], oldest_left: Option<u32>) -> Result<bool> {
        let mut frames = Vec::with_capacity(group.len());
        for entry in group {
            let record = record_of(entry)?;
            let hash = self.hasher.hash(record.key);
            frames.push(LiveFrame { entry, record, hash, address: 0, is_checked: false });
        }
        // Most frames are stale, and stay so: whoever writes waits only for those that were live a moment ago.
        let live = self.live_of(frames)?;
        if live.is_empty() {
            return Ok(true);
        }
        let mut writer = self.writer();
        // What was set meanwhile must not be hidden by the copy of what it replaces.
        self.settle_recent(&mut writer)?;
        let is_needless =
            |frame: &LiveFrame<'_>| hides_nothing(&frame.record, frame.entry.pointer.segment, oldest_left);
        let live = self.live_of(live)?;
        let (doubtful, live): (Vec<_>, Vec<_>) = {
            let table = self.table.read();
            let is_doubtful = |frame: &LiveFrame<'_>| {
                let Pointer { segment, position, .. } = frame.entry.pointer;
                table.lost.behind(frame.hash, (segment, position)).is_some()
            };
            live.into_iter().partition(is_doubtful)
        };
        let (needless, moved): (Vec<_>, Vec<_>) = live.into_iter().partition(is_needless);
        for LiveFrame { entry, hash, address, .. } in needless {
            self.table.write().index.remove(hash, address)?;
            writer.uncount_remove(entry.pointer);
            release(&self.log, entry.pointer);
        }
        self.move_all(&mut writer, &moved)?;
        self.settle_recent(&mut writer)?;
        Ok(doubtful.is_empty())
    }

    /// Those of some frames to which the index points, with their addresses.
    fn live_of<'a>(&self, mut frames: Vec<LiveFrame<'a>>) -> Result<Vec<LiveFrame<'a>>> {
        {
            let table = self.table.read();
            frames.iter().for_each(|frame| table.index.prefetch(frame.hash));
            frames.retain_mut(|frame| {
                let Pointer { segment, position, .. } = frame.entry.pointer;
                let Some(address) = table.slots.known_address(segment, position) else { return false };
                frame.address = address;
                let candidates = table.index.candidates(frame.hash);
                frame.is_checked = candidates.is_some();
                candidates.is_none_or(|mut candidates| candidates.any(|candidate| candidate == address))
            });
        }
        if frames.iter().all(|frame| frame.is_checked) {
            return Ok(frames);
        }
        let mut live = Vec::with_capacity(frames.len());
        for frame in frames {
            if frame.is_checked || self.live_address(frame.entry, frame.hash)? == Some(frame.address) {
                live.push(frame);
            }
        }
        Ok(live)
    }

    /// Appends live frames again, and notes where they are now.
    fn move_all(&self, writer: &mut Writer, frames: &[LiveFrame<'_>]) -> Result<()> {
        let copies: Vec<_> = frames
            .iter()
            .map(|LiveFrame { entry, record, .. }| {
                encode_moved(entry.kind, &entry.body, record, entry.pointer.segment)
            })
            .collect();
        let mut placed = Vec::with_capacity(copies.len());
        let appended = self
            .log
            .append_each(copies.iter().map(|copy| (copy.kind, copy.parts())), |pointer| placed.push(pointer));
        // Also after an error: what was appended is in the log.
        let notes = frames.iter().zip(&copies).zip(placed).map(|((frame, copy), pointer)| {
            let old = Hit { address: frame.address, head: frame.entry.head() };
            (frame.hash, copy.kind, pointer, Replaces::Known(Some(old)))
        });
        self.note(writer, notes);
        Ok(appended?)
    }

    /// The frame's address, if the index points to it.
    fn live_address(&self, entry: &Entry, hash: u64) -> Result<Option<u64>> {
        let Pointer { segment, position, .. } = entry.pointer;
        {
            let table = self.table.read();
            let Some(address) = table.slots.known_address(segment, position) else { return Ok(None) };
            if let Some(mut candidates) = table.index.candidates(hash) {
                return Ok(candidates.find(|&candidate| candidate == address));
            }
        }
        let mut table = self.table.write();
        let Some(address) = table.slots.known_address(segment, position) else { return Ok(None) };
        Ok(table.index.load_candidates(hash)?.contains(&address).then_some(address))
    }

    /// Compacts everything that is worth it, and gives back the space.
    pub(crate) fn compact_all(&self, mut progress: impl FnMut(u64) -> bool) -> Result<()> {
        let _inside = Inside::enter();
        let mut done = 0;
        {
            let mut maintenance = self.maintenance();
            maintenance.check(&self.dir)?;
            // What is stale is known when everything is in the index.
            self.settle_healing(&mut maintenance)?;
            // A segment that is full is sealed then, and can be compacted.
            self.log.sync()?;
            self.reclaim_compacted()?;
            let is_active_worth_it = self.log.segments().last().is_some_and(|active| {
                let stale = active.total_bytes - active.live_bytes;
                stale * 100 >= active.total_bytes * SEGMENT_STALE_PERCENT_MIN && stale > 0
            });
            if is_active_worth_it {
                match self.log.seal().map_err(Error::from) {
                    // What can be given back of the others may make the room for it.
                    Err(error) if error.is_full() => self.try_free_space().map(drop)?,
                    other => drop(other?),
                }
            }
            while let Some(victim) = self.victim(&maintenance, Aim::All) {
                match self.compact(&mut maintenance, victim) {
                    Err(error) if error.is_full() && self.use_reserve() => {
                        self.compact(&mut maintenance, victim)?;
                    }
                    other => other?,
                }
                self.reclaim_compacted()?;
                done += 1;
                if !progress(done) {
                    break;
                }
            }
        }
        self.checkpoint()?;
        let sorted = self.sort_log(&mut self.maintenance(), true);
        self.remove_obsolete_runs();
        match sorted {
            // What is damaged is said by the scans that need it.
            Err(error) if error.is_full() || error.is_corruption() => {
                tracing::warn!(dir = %self.dir.display(), %error, "no sorted run was written");
                Ok(())
            }
            other => other,
        }
    }

    /// After a full disk, inside a call of the owner: gives back what needs no space to be given back. `true` if
    /// something was.
    pub(crate) fn free_space(&self) -> bool {
        let _inside = Inside::enter();
        let _maintenance = self.maintenance();
        match self.try_free_space() {
            Ok(freed) => freed,
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), %error, "no space could be given back");
                false
            }
        }
    }

    /// After a full disk, for what gives space back: the space put by.
    pub(crate) fn use_reserve(&self) -> bool {
        reserve::give_up(&self.options.env, &self.dir)
    }

    fn try_free_space(&self) -> Result<bool> {
        let had_some = self.has_reclaimable.load(Ordering::Relaxed);
        if let Err(error) = self.settle_all() {
            tracing::warn!(dir = %self.dir.display(), %error, "not everything that is stale is known");
        }
        self.reclaim_compacted()?;
        // Views may keep some that were handed over.
        let kept = self.reclaimable().clone();
        let is_dead =
            |info: &SetSegmentInfo| info.is_sealed && info.live_bytes == 0 && !kept.contains(&info.number);
        let dead: Vec<u32> =
            self.log.segments().into_iter().filter(is_dead).map(|info| info.number).collect();
        if dead.is_empty() {
            return Ok(had_some);
        }
        self.hand_over(dead)?;
        self.reclaim_compacted()?;
        Ok(true)
    }

    // ---- reading everything ----

    /// Calls `each` for all frames in the order of the log, with the address if the index points to them, and `damaged` for
    /// what does not verify. A page of the index that does not verify points to nothing. A frame that is moved meanwhile may
    /// be met twice.
    pub(crate) fn for_each_frame(
        &self,
        mut each: impl FnMut(&Entry, &Record<'_>, Option<u64>) -> Result<()>,
        mut damaged: impl FnMut(Error) -> Result<()>,
    ) -> Result<()> {
        match self.settle_whole() {
            Err(error) if error.index_damage().is_some() => {}
            other => other?,
        }
        let mut entries = self.log.iter();
        loop {
            let entry = match entries.next_entry() {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok(()),
                // Reclaimed under the cursor: what was live in it lies ahead.
                Err(lsfs::Error::Gone { .. }) => {
                    let (segment, _) = entries.place();
                    if self.is_listed(segment) {
                        damaged(missing(segment))?;
                    }
                    entries.skip_gone();
                    continue;
                }
                Err(error) => {
                    let is_corruption = error.is_corruption();
                    damaged(error.clone().into())?;
                    if !is_corruption || entries.skip_damage()?.is_none() {
                        return Err(error.into());
                    }
                    continue;
                }
            };
            match record_of(&entry) {
                Ok(record) => {
                    let address = match self.live_address(&entry, self.hasher.hash(record.key)) {
                        Err(error) if error.index_damage().is_some() => None,
                        other => other?,
                    };
                    each(&entry, &record, address)?;
                }
                Err(error) => damaged(error)?,
            }
        }
    }

    // ---- the end ----

    pub(crate) fn close(&self) -> Result<()> {
        let _inside = Inside::enter();
        let mut maintenance = self.maintenance();
        if maintenance.final_data.is_none() {
            return Ok(());
        }
        let checkpointed = self.last_checkpoint(&mut maintenance);
        let final_data = maintenance.final_data.take();
        let closed = final_data.map_or(Ok(()), FinalData::close);
        self.log.close()?;
        checkpointed?;
        Ok(closed?)
    }

    fn last_checkpoint(&self, maintenance: &mut Maintenance) -> Result<()> {
        self.log.sync()?;
        // Without a background this is the only moment; what was written is durable, whatever comes of it.
        if self.is_overdue_for_a_close()
            && let Err(error) = self.try_catch_up(maintenance, Inner::is_overdue_for_a_close)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "maintenance failed");
        }
        if self.options.background
            && let Err(error) = self.come_to_rest(maintenance)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "maintenance failed");
        }
        let tail = self.writer().tail_bytes;
        let is_worth_it = if self.options.background {
            tail > 0
        } else {
            tail >= CLOSE_TAIL_UNITS * self.options.unit_bytes()
        };
        if is_worth_it {
            self.write_checkpoint(maintenance)?;
            self.release_index_space(1);
        }
        if self.writer().tail_bytes == 0
            && let Err(error) = tail::remove(&self.options.env, &self.dir)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "what is not needed any more was not removed");
        }
        if let Err(error) = self.sort_at_close(maintenance) {
            tracing::warn!(dir = %self.dir.display(), %error, "no sorted run was written");
        }
        self.reclaim_compacted()
    }

    /// Compacts a little more than while the store is written.
    fn come_to_rest(&self, maintenance: &mut Maintenance) -> Result<()> {
        self.settle_healing(maintenance)?;
        let written_bytes = self.log.stats().appended_bytes;
        let mut left_bytes = REST_MOVED_UNITS * self.options.unit_bytes() + written_bytes / REST_MOVED_PART;
        while let Some(victim) = self.victim(maintenance, Aim::Rest) {
            let infos = self.log.segments();
            let live_bytes =
                infos.iter().find(|info| info.number == victim).map_or(0, |info| info.live_bytes);
            let Some(left) = left_bytes.checked_sub(live_bytes) else { break };
            left_bytes = left;
            self.compact(maintenance, victim)?;
            // A close is a call of the owner.
            self.reclaim_compacted()?;
        }
        Ok(())
    }
}

/// Whether a remove has nothing left to hide when only segments from `oldest_left` on remain.
fn hides_nothing(record: &Record<'_>, segment: u32, oldest_left: Option<u32>) -> bool {
    match record.command {
        Command::Set(_) => false,
        Command::Remove { born } => oldest_left.is_none_or(|oldest| oldest > born.unwrap_or(segment)),
    }
}
