//! Opening: the last checkpoint, and the log behind it. The steps are those of docs/durability.md.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use lsfs::codec::FrameLayout;
use lsfs::io::OpenMode;
use lsfs::{Entries, Entry, Env, FinalData, FinalDataOptions, SegmentSet, SetOptions, SetSegmentInfo, State};

use crate::backup::UNFINISHED;
use crate::error::{Error, Result};
use crate::heal::{Replay, count_all_as_live};
use crate::index::{Index, KeyHasher, is_index_file};
use crate::lookup::{SharedTable, Table, missing, record_of};
use crate::lost::Lost;
use crate::maintenance::Maintenance;
use crate::options::{Options, SEGMENT_BYTES_MAX};
use crate::order::{Place, is_run};
use crate::record::BODY_BYTES_MAX;
use crate::root::{NO_SLOT, Root, RootSegment};
use crate::segments::SegmentSlots;
use crate::settle::TAIL_COMMANDS_MAX;
use crate::store::{Inner, OpenReport, Removes, Writer};
use crate::tail::{List, Lists, Part, Spot, TAIL_NAME, TailFile, Unlisted};

/// The log, below the store's directory.
pub(crate) const LOG_NAME: &str = "log";
/// The checkpoint, below the store's directory.
pub(crate) const CHECKPOINT_NAME: &str = "checkpoint";
/// Segments are so small a part of the log, where the log is short: what the active one has that is stale cannot be given
/// back.
const READY_PART: u64 = 64;
/// Blocks of a checkpoint's file before the other one takes over.
const CHECKPOINT_BLOCKS: u32 = 8;

impl Inner {
    /// Opens the store; the caller starts the background.
    pub(crate) fn open(dir: PathBuf, options: Options) -> Result<Inner> {
        let env = options.env.clone();
        if options.segment_bytes > SEGMENT_BYTES_MAX {
            return Err(Error::Engine(lsfs::Error::InvalidOption {
                option: "segment_bytes",
                value: options.segment_bytes.to_string(),
                expected: format!("at most {SEGMENT_BYTES_MAX}"),
            }));
        }
        prepare_directory(&env, &dir, options.create)?;
        let log = SegmentSet::open_in(env.clone(), dir.join(LOG_NAME), log_options(&options))?;
        let final_data = open_checkpoint(&env, &dir.join(CHECKPOINT_NAME))?;
        let root = match options.repair {
            true => None,
            false => decode_root(final_data.get()),
        };
        let opened = root.and_then(|root| match restore(&env, &dir, &options, &log, &root) {
            Ok(table) => Some((root, table)),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "the checkpoint cannot be used: the index is made anew");
                None
            }
        });
        let (table, writer, start) = match opened {
            Some((root, table)) => {
                if let Some(end) = end_before(&log, root.log_end) {
                    let (segment, position) = root.log_end;
                    let reason = format!("the log ends at {end:?}, before what the last checkpoint knows");
                    return Err(Error::BadRecord { segment, position, reason });
                }
                table.index.remove_other_files(&env, &dir)?;
                (SharedTable::new(table), count_from(&log, &root)?, Some(root.log_end))
            }
            None => {
                // Nothing of it is used. On a full disk that makes the room for what follows.
                Index::remove_files(&env, &dir)?;
                if final_data.get().is_some_and(|state| !state.bytes.is_empty()) {
                    // It must not be used later either, should the file come back.
                    final_data.set(&[])?;
                }
                count_all_as_live(&log)?;
                let hasher = KeyHasher { seed: env.runtime.random() };
                let index = Index::create(&env, &dir, options.index_bytes, hasher)?;
                let table = Table::new(index, SegmentSlots::default());
                (SharedTable::new(table), Writer::new(0, HashMap::new()), None)
            }
        };
        // Opening the active segment has emptied the page cache of it, not of the others.
        let active = log.segments().last().map_or(0, |active| active.number);
        let mut inner = Inner::new(
            dir,
            options,
            log,
            table,
            Maintenance::new(final_data, active),
            writer,
            OpenReport { rebuilt: start.is_none(), ..OpenReport::default() },
        );
        inner.report = inner.replay(start)?;
        if inner.report.rebuilt {
            inner.table.read().index.remove_other_files(&env, &inner.dir)?;
            if inner.report.replayed > 0 && inner.rebuilds.load(Ordering::Relaxed) == 0 {
                inner.rebuilds.store(1, Ordering::Relaxed);
                match inner.checkpoint() {
                    Err(error) if error.is_full() => {
                        tracing::warn!(dir = %inner.dir.display(), %error, "the new index is in memory only, until the next checkpoint");
                    }
                    other => other?,
                }
            }
        }
        Ok(inner)
    }

    /// Carries out the commands of the log from a place on, or all of them; all if the index of the checkpoint turns out to
    /// be damaged.
    fn replay(&self, start: Option<(u32, u32)>) -> Result<OpenReport> {
        let Some((segment, position)) = start else {
            let Options { repair, .. } = self.options;
            let replay = Replay { log: &self.log, table: &self.table, hasher: self.hasher, repair };
            return replay.run(&mut self.writer());
        };
        match self.find_tail((segment, position)) {
            Err(error) if error.index_damage().is_some() => self.heal_within(&mut self.maintenance(), &error),
            other => other,
        }
    }

    /// Takes note of the commands behind the checkpoint, to be settled later: of those in lists, and of those that are
    /// read from the log.
    fn find_tail(&self, checkpoint: Place) -> Result<OpenReport> {
        let mut maintenance = self.maintenance();
        let index_id = self.table.read().index.file_id();
        let lists =
            Lists::read(&self.options.env, &self.dir, index_id, checkpoint, log_end(&self.log.segments()));
        let tail = TailFile::behind(checkpoint, index_id, &lists);
        let (segment, position) = tail.listed_to;
        for list in lists.lists {
            self.keep_listed(list)?;
        }
        let (report, unlisted) = self.read_tail(self.log.iter_from(segment, position))?;
        if self.options.background
            && let Some(unlisted) = unlisted
        {
            self.writer().unlisted = unlisted;
            maintenance.tail = Some(tail);
        }
        Ok(report)
    }

    fn keep_listed(&self, list: List) -> Result<()> {
        let mut writer = self.writer();
        writer.tail_bytes += list.frame_bytes;
        writer.tail_commands += list.part.count() as u64;
        let there = listed_segments(&self.log.segments());
        let mut table = self.table.write();
        for segment in list.part.segments().filter(|segment| there.contains(segment)) {
            if table.slots.address(segment, 0).is_none() {
                return Err(table.index.damaged(format!("segment {segment} has no address")));
            }
        }
        table.tail.push_opened(list.part_of(&there));
        self.has_unsettled.store(table.tail.has_opened(), Ordering::Relaxed);
        Ok(())
    }

    /// Takes note of the commands of the log from a place on. Answers them, too, for the next list, if they are not too many.
    fn read_tail(&self, mut entries: Entries) -> Result<(OpenReport, Option<Unlisted>)> {
        let (mut report, mut spots, mut is_all) = (OpenReport::default(), Vec::new(), true);
        let mut frame_bytes = 0;
        let mut writer = self.writer();
        while let Some(entry) = next_there(&mut entries, |segment| Ok(self.is_listed(segment)))? {
            let (hash, pointer) = (self.hasher.hash(record_of(&entry)?.key), entry.pointer);
            {
                let mut table = self.table.write();
                if table.slots.address(pointer.segment, pointer.position).is_none() {
                    return Err(table.index.damaged(format!("{pointer:?} has no address")));
                }
            }
            spots.push(Spot::new(hash, pointer.segment, pointer.position));
            frame_bytes += pointer.frame_bytes();
            report.replayed += 1;
            if spots.len() == TAIL_COMMANDS_MAX {
                self.keep_read(std::mem::take(&mut spots));
                is_all = false;
                drop(writer);
                self.settle_all()?;
                writer = self.writer();
            }
        }
        writer.log_end = entries.place();
        writer.tail_bytes += frame_bytes;
        writer.tail_commands += report.replayed;
        self.keep_read(spots.clone());
        Ok((report, is_all.then(|| Unlisted::beginning_with(spots, frame_bytes))))
    }

    /// Whether the log has a segment by its own list.
    pub(crate) fn is_listed(&self, segment: u32) -> bool {
        self.log.segments().iter().any(|info| info.number == segment)
    }

    fn keep_read(&self, spots: Vec<Spot>) {
        let mut table = self.table.write();
        table.tail.push_opened(Part::new(&spots));
        self.has_unsettled.store(table.tail.has_opened(), Ordering::Relaxed);
    }
}

/// Segment and position behind the last durable frame.
pub(crate) fn log_end(segments: &[SetSegmentInfo]) -> Place {
    segments.last().map_or((0, 0), |active| (active.number, active.end))
}

fn log_options(options: &Options) -> SetOptions {
    SetOptions {
        // Values are copied out, never sent or mapped: a gap before each large one would be of no use.
        frame_layout: FrameLayout::Packed,
        body_limit_bytes: BODY_BYTES_MAX as u32,
        segment_bytes: options.segment_bytes,
        cache_bytes: options.cache_bytes,
        spares: options.background,
        ready_part: READY_PART,
        create: options.create,
        ..SetOptions::default()
    }
}

/// Creates the directory, or checks that what is there is a store or nothing.
fn prepare_directory(env: &Env, dir: &Path, create: bool) -> Result<()> {
    let not_a_store = |reason: &str| Error::NotAStore { path: dir.to_path_buf(), reason: reason.to_string() };
    if env.disk.exists(&dir.join(LOG_NAME)) {
        return Ok(());
    }
    if !create {
        return Err(not_a_store(match env.disk.exists(dir) {
            true => "there is no log in it",
            false => "there is no such directory",
        }));
    }
    env.disk.create_dir_all(dir).map_err(|error| Error::io("create directory", dir, 4096, error))?;
    let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, 0, error))?;
    let is_ours = |name: &str| is_index_file(name) || is_run(name) || name == TAIL_NAME || name == UNFINISHED;
    match entries.iter().find(|entry| !is_ours(&entry.name)) {
        Some(entry) => {
            Err(not_a_store(&format!("it holds the file {}; use an empty or new directory", entry.name)))
        }
        None => Ok(()),
    }
}

/// Opens the checkpoint's final data. One that is damaged is begun anew: it holds nothing that the log does not.
fn open_checkpoint(env: &Env, dir: &Path) -> Result<FinalData> {
    let options = || FinalDataOptions { limit_blocks: CHECKPOINT_BLOCKS, ..FinalDataOptions::default() };
    match FinalData::open_in(env.clone(), dir, options()) {
        Err(error) if error.is_corruption() => {
            tracing::warn!(dir = %dir.display(), %error, "the checkpoint is damaged: the index is made anew");
            for name in ["state.a", "state.b"] {
                let path = dir.join(name);
                if env.disk.exists(&path) {
                    env.disk.remove(&path).map_err(|error| Error::io("remove", &path, 0, error))?;
                }
            }
            env.disk.sync_dir(dir).map_err(|error| Error::io("sync directory", dir, 0, error))?;
            Ok(FinalData::open_in(env.clone(), dir, options())?)
        }
        other => Ok(other?),
    }
}

/// The root in the state of a checkpoint; `None` if there is none, or it was withdrawn or cannot be used.
pub(crate) fn decode_root(state: Option<State>) -> Option<Root> {
    let state = state.filter(|state| !state.bytes.is_empty())?;
    match Root::decode(&state.bytes) {
        Ok(root) => Some(root),
        Err(fault) => {
            tracing::warn!(%fault, version = state.version, "the root of the last checkpoint cannot be used");
            None
        }
    }
}

/// The index of a checkpoint and the table of its segments.
fn restore(env: &Env, dir: &Path, options: &Options, log: &SegmentSet, root: &Root) -> Result<Table> {
    let mut index = Index::open(env, dir, &root.index, options.index_bytes, OpenMode::Write)?;
    let slots = slots_of(&index, root)?;
    index.make_obsolete(gone_since(log, root).filter_map(|gone| slots.addresses_of(gone.number)).collect());
    Ok(Table { lost: Lost::new(root.lost.clone()), ..Table::new(index, slots) })
}

/// The segments that were given back since the checkpoint.
fn gone_since<'a>(log: &SegmentSet, root: &'a Root) -> impl Iterator<Item = &'a RootSegment> {
    let there = listed_segments(&log.segments());
    root.segments.iter().filter(move |segment| !there.contains(&segment.number))
}

/// The segments that the log has by its own list. One that is there and cannot be read is damaged, not gone.
pub(crate) fn listed_segments(segments: &[SetSegmentInfo]) -> HashSet<u32> {
    segments.iter().map(|info| info.number).collect()
}

/// The next command of the log. A segment that is gone says nothing (see `maintenance`); one that the log lists is missing.
pub(crate) fn next_there(
    entries: &mut Entries,
    is_listed: impl Fn(u32) -> lsfs::Result<bool>,
) -> Result<Option<Entry>> {
    let mut attempts = LOOKS_MAX;
    loop {
        match entries.next_entry() {
            Err(lsfs::Error::Gone { .. }) => match entries.place().0 {
                // Beside a writer that is quick a look may come between the list and the file.
                segment if is_listed(segment)? => {
                    attempts -= 1;
                    if attempts == 0 {
                        return Err(missing(segment));
                    }
                }
                _ => entries.skip_gone(),
            },
            other => return Ok(other?),
        }
    }
}

/// A segment that the list has and whose file is not there is looked at so often before it is taken for missing.
const LOOKS_MAX: usize = 16;

/// The segments that addresses of a checkpoint's index stand for.
pub(crate) fn slots_of(index: &Index, root: &Root) -> Result<SegmentSlots> {
    let with_slot = root.segments.iter().filter(|segment| segment.slot != NO_SLOT);
    SegmentSlots::from_pairs(with_slot.map(|segment| (segment.slot, segment.number)))
        .ok_or_else(|| index.damaged("two segments have one slot".to_string()))
}

/// Segment and position where the log ends, if that is before a place.
fn end_before(log: &SegmentSet, place: (u32, u32)) -> Option<(u32, u32)> {
    // The segment of the place may be gone, but then there is a later one.
    let segment = log.segments().into_iter().find(|segment| segment.number >= place.0);
    let end = segment.map_or((0, 0), |segment| (segment.number, segment.end));
    (end < place).then_some(end)
}

/// The counts of a checkpoint. What was written later is live until the replay says otherwise.
fn count_from(log: &SegmentSet, root: &Root) -> Result<Writer> {
    let by_number: HashMap<u32, &RootSegment> =
        root.segments.iter().map(|segment| (segment.number, segment)).collect();
    for segment in log.segments() {
        let stale = by_number.get(&segment.number).map_or(0, |known| known.stale_bytes);
        log.set_live_bytes(segment.number, segment.total_bytes.saturating_sub(stale))?;
    }
    let removes_in = |segment: &RootSegment| Removes { count: segment.removes, bytes: segment.remove_bytes };
    let there = listed_segments(&log.segments());
    let there =
        by_number.into_values().filter(|segment| segment.removes > 0 && there.contains(&segment.number));
    // When the addresses of gone segments are taken out of the index, each counts as a key.
    let removed: u64 = gone_since(log, root).map(|gone| u64::from(gone.removes)).sum();
    Ok(Writer::new(root.keys + removed, there.map(|segment| (segment.number, removes_in(segment))).collect()))
}
