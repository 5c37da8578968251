//! Reading a set beside its writer.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::codec::{Pointer, StreamId, Tally};
use crate::directory;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::final_data::read_state;
use crate::io::{OpenMode, SharedPage};
use crate::segment_set::frames::Entries;
use crate::segment_set::recovery::{self, Layout};
use crate::segment_set::segment::{FrameSource, Segment, SegmentPlace, Window, segment_name};
use crate::segment_set::{
    Body, Entry, LIST_STEM, SET, SegmentHandle, SetSegmentInfo, read_pointed_part, read_pointer,
    read_position, set_exists,
};
use crate::write_path::live::{self, Published};

/// A set open for reading only: without a lock, beside a writer in this or another process, or without one.
///
/// It sees entries that are durable (in a cache: that were handed to the system). What it sees grows when the writer
/// writes. A segment that was reclaimed meanwhile is [`Error::Gone`]; never are wrong bytes answered.
#[derive(Clone, Debug)]
pub struct SegmentSetReader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    env: Env,
    dir: PathBuf,
    view: Mutex<View>,
}

/// The set as last looked at.
#[derive(Debug)]
struct View {
    set_id: StreamId,
    list_version: u64,
    epoch: u32,
    segments: BTreeMap<u32, Arc<Segment>>,
    active: u32,
    /// What lies in the active segment.
    tally: Tally,
    damage: Option<Error>,
    /// The writer's page, if a writer lived at the look.
    page: Option<Box<dyn SharedPage>>,
}

/// The writer may seal, reclaim, come or go between our looks at its files.
const ATTEMPTS: usize = 20;

impl SegmentSetReader {
    /// Opens the set in `dir` for reading.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no set, [`Error::Corrupt`] if its list is damaged. Damaged segments are reported
    /// by the reads that meet them.
    pub fn open(dir: impl AsRef<Path>) -> Result<SegmentSetReader> {
        SegmentSetReader::open_in(Env::default(), dir)
    }

    /// As [`SegmentSetReader::open`], on the given disk and runtime.
    pub fn open_in(env: Env, dir: impl AsRef<Path>) -> Result<SegmentSetReader> {
        let dir = dir.as_ref().to_path_buf();
        let view = Mutex::new(View::load(&env, &dir)?);
        Ok(SegmentSetReader { shared: Arc::new(Shared { env, dir, view }) })
    }

    /// What tells this set from every other one; chosen when it was created.
    pub fn id(&self) -> StreamId {
        self.shared.lock().set_id
    }

    /// The entry at a place.
    ///
    /// # Errors
    /// As for [`SegmentSet::read`](crate::SegmentSet::read).
    pub fn read(&self, pointer: Pointer) -> Result<Entry> {
        let segment = self.shared.segment(pointer.segment)?;
        self.settle(|| read_pointer(&*self.shared, &segment, pointer))
    }

    /// As [`SegmentSetReader::read`], for those who do not keep the length.
    ///
    /// # Errors
    /// As for [`SegmentSet::read_at`](crate::SegmentSet::read_at).
    pub fn read_at(&self, segment: u32, position: u32) -> Result<Entry> {
        let segment = self.shared.segment(segment)?;
        self.settle(|| read_position(&*self.shared, &segment, position))
    }

    /// A part of an entry's body.
    ///
    /// # Errors
    /// As for [`SegmentSet::read_range`](crate::SegmentSet::read_range).
    pub fn read_range(&self, pointer: Pointer, range: Range<u32>) -> Result<Body> {
        let segment = self.shared.segment(pointer.segment)?;
        self.settle(|| read_pointed_part(&*self.shared, &segment, pointer, range.clone()))
    }

    /// Reads again what does not verify: the last page of the active segment may be written at this moment.
    fn settle<T>(&self, read: impl Fn() -> Result<T>) -> Result<T> {
        (1..READ_ATTEMPTS)
            .find_map(|_| match read() {
                Err(error) if error.is_corruption() => None,
                other => Some(other),
            })
            .unwrap_or_else(read)
    }

    /// A handle on a segment. Its file may still be recycled by the writer, in another process: then its reads are
    /// [`Error::Gone`].
    ///
    /// # Errors
    /// [`Error::Gone`] if there is none with this number.
    pub fn segment(&self, number: u32) -> Result<SegmentHandle> {
        let segment = self.shared.segment(number)?;
        segment.hold()?;
        Ok(SegmentHandle { segment, source: self.source() })
    }

    /// All entries, oldest first.
    pub fn iter(&self) -> Entries {
        Entries::from_segment(self.source(), 0)
    }

    /// The entries from a place on.
    pub fn iter_from(&self, segment: u32, position: u32) -> Entries {
        Entries::from_place(self.source(), segment, position)
    }

    /// All segments, oldest first. Live bytes are as the writer last made them durable.
    ///
    /// # Errors
    /// As for [`SegmentSetReader::open`].
    pub fn segments(&self) -> Result<Vec<SetSegmentInfo>> {
        let mut view = self.shared.lock();
        self.shared.refresh(&mut view)?;
        let tally = view.tally;
        let info =
            |segment: &Arc<Segment>| SetSegmentInfo::new(segment, segment.sealed().copied().unwrap_or(tally));
        Ok(view.segments.values().map(info).collect())
    }

    /// The damage at the end of the set that keeps it from being written, if there is any.
    pub fn damage(&self) -> Option<Error> {
        self.shared.lock().damage.clone()
    }

    fn source(&self) -> Arc<dyn FrameSource> {
        Arc::clone(&self.shared) as Arc<dyn FrameSource>
    }
}

const READ_ATTEMPTS: usize = 3;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The segment with this number; looks at the set again if it is not known.
    fn segment(&self, number: u32) -> Result<Arc<Segment>> {
        let mut view = self.lock();
        if let Some(segment) = view.segments.get(&number) {
            return Ok(Arc::clone(segment));
        }
        self.refresh(&mut view)?;
        let known = view.segments.get(&number).cloned();
        known.ok_or_else(|| Error::Gone { path: self.dir.join(segment_name(number)) })
    }

    /// Looks again, cheaply if the writer's page says that only the active segment grew.
    fn refresh(&self, view: &mut View) -> Result<()> {
        if let Some(published) = live::published(view.page.as_deref(), &self.env)
            && view.follow(&published)
        {
            return Ok(());
        }
        let state = read_state(&self.env, &self.dir, LIST_STEM)?;
        let is_same_list = state.is_some_and(|state| state.version == view.list_version);
        if is_same_list && view.page.is_none() && !is_written(&self.env, &self.dir)? {
            return Ok(());
        }
        let mut new = View::load(&self.env, &self.dir)?;
        // Segments that are open stay so.
        for (number, segment) in &mut new.segments {
            if let Some(known) = view.segments.get(number)
                && known.segment_id == segment.segment_id
            {
                if let Some(tally) = segment.sealed() {
                    known.seal(*tally);
                }
                known.set_released_bytes(segment.released_bytes());
                *segment = Arc::clone(known);
            }
        }
        *view = new;
        Ok(())
    }
}

impl FrameSource for Shared {
    fn segment_from(&self, number: u32) -> Result<Option<Arc<Segment>>> {
        let mut view = self.lock();
        self.refresh(&mut view)?;
        Ok(view.segments.range(number..).next().map(|(_, segment)| Arc::clone(segment)))
    }

    fn shown_end(&self, segment: &Segment) -> Result<u64> {
        if let Some(tally) = segment.sealed() {
            return Ok(tally.end.into());
        }
        let mut view = self.lock();
        self.refresh(&mut view)?;
        // It may have been sealed since, or have gone.
        match segment.sealed() {
            Some(tally) => Ok(tally.end.into()),
            None if view.active == segment.number => Ok(view.tally.end.into()),
            None => Err(Error::Gone { path: segment.path().to_path_buf() }),
        }
    }

    fn readable_end(&self, segment: &Segment, wanted: u64) -> Result<u64> {
        if segment.sealed().is_none() {
            let view = self.lock();
            if view.active == segment.number && wanted <= view.tally.end.into() {
                return Ok(view.tally.end.into());
            }
        }
        self.shown_end(segment)
    }

    fn window(&self, segment: &Segment, range: Range<u64>) -> Result<Window> {
        segment.read_window(range)
    }
}

impl View {
    fn load(env: &Env, dir: &Path) -> Result<View> {
        for _ in 1..ATTEMPTS {
            match View::load_once(env, dir) {
                Err(Error::Gone { .. }) => continue,
                Err(error) if error.is_corruption() && is_written(env, dir)? => continue,
                Ok(view) if view.damage.is_some() && is_written(env, dir)? => continue,
                other => return other,
            }
        }
        View::load_once(env, dir)
    }

    fn load_once(env: &Env, dir: &Path) -> Result<View> {
        let not_found = |reason: &str| Error::NotFound {
            path: dir.to_path_buf(),
            expected: SET,
            reason: reason.to_string(),
        };
        if !set_exists(env, dir)? {
            return Err(not_found("it has no segment list"));
        }
        let page = match is_written(env, dir)? {
            true => env.disk.shared_page(&dir.join(directory::LIVE_NAME), false).ok(),
            false => None,
        };
        let Some(state) = read_state(env, dir, LIST_STEM)? else {
            recovery::refuse_orphans(env, dir, None)?;
            return Err(not_found("it was never completed"));
        };
        let list = recovery::decode_list(dir, &state.bytes)?;
        let place = SegmentPlace {
            env: env.clone(),
            dir: dir.to_path_buf(),
            mode: OpenMode::Read,
            is_cache: list.cache,
        };
        // Beside a writer the end is what it published; searching for it would race with its writes. It publishes behind
        // the list, so who looks in that order knows whether the list is still the latest.
        let (known, active) = (list.active().tally, u64::from(list.active().number));
        let end = match live::published(page.as_deref(), env) {
            None => None,
            Some(published) if published.segment_base > active => {
                return Err(Error::Gone { path: dir.join(segment_name(list.active().number)) });
            }
            // Nothing was published of a segment that was just begun.
            Some(published) if published.segment_base < active => Some(known),
            Some(published) => Some(Tally {
                end: published.durable_position as u32,
                entries: published.durable_index as u32,
                ..known
            }),
        };
        let Layout { sealed, active, end } = Layout::find(&place, &list, end)?;
        Ok(View {
            set_id: list.set_id,
            list_version: state.version,
            epoch: list.epoch,
            active: list.active().number,
            segments: sealed.into_iter().chain(active).map(|segment| (segment.number, segment)).collect(),
            tally: end.tally,
            damage: end.damage,
            page,
        })
    }

    /// Takes over what the writer published; `false` if it speaks of another list than this view knows.
    fn follow(&mut self, published: &Published) -> bool {
        let is_of_view = published.epoch == self.epoch
            && published.segment_base == self.active.into()
            && published.first_index == self.list_version;
        if is_of_view {
            self.tally.end = published.durable_position as u32;
            self.tally.entries = published.durable_index as u32;
        }
        is_of_view
    }
}

/// Whether a writer has the set open.
fn is_written(env: &Env, dir: &Path) -> Result<bool> {
    let path = dir.join(directory::LOCK_NAME);
    env.disk.is_locked(&path).map_err(|error| Error::io("look at the lock", &path, error))
}
