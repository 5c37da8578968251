//! Reading a stream beside its writer.

use std::ops::{Range, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use crate::codec::Manifest;
use crate::directory::LIVE_NAME;
use crate::env::Env;
use crate::error::{Corruption, Result};
use crate::final_data::read_state;
use crate::io::{Runtime, SharedPage};
use crate::stream::cursor::{Cursor, Record, ReverseCursor, Source};
use crate::stream::look::{Look, is_written};
use crate::stream::recorder::Bounds;
use crate::stream::segment::{Extent, Segment};
use crate::stream::{MANIFEST_STEM, backward, forward, read_one};
use crate::write_path::live::{self, Published, Snapshot};

/// A stream open for reading only: without a lock, beside a writer in this or another process, on a read-only file
/// system, or on a damaged stream that can no longer be written.
///
/// It sees durable records only. What it sees grows when the writer writes. A range that was purged meanwhile is an error;
/// a record that was truncated meanwhile may still be answered as it was; neither is ever wrong bytes.
#[derive(Clone, Debug)]
pub struct Reader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    env: Env,
    dir: PathBuf,
    view: RwLock<View>,
}

/// How long a reader without a writer goes without a look at the manifest: a writer that comes shows on its page.
const UNWRITTEN_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The stream as last looked at.
#[derive(Debug)]
struct View {
    manifest_version: u64,
    epoch: u32,
    closed: bool,
    first_index: u64,
    extents: Vec<Extent>,
    lost: Vec<Range<u64>>,
    damage: Option<Corruption>,
    /// The page of the writer that was there.
    page: Option<Box<dyn SharedPage>>,
    /// Without a writer: the page on which one would show, as it was before the look, and when that was.
    unwritten: Option<(Box<dyn SharedPage>, Snapshot, Duration)>,
}

impl Reader {
    /// Opens the stream in `dir` for reading.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if there is no stream, [`Error::Corrupt`](crate::Error::Corrupt) if its manifest is damaged. Damaged segments are
    /// reported by the reads that meet them.
    pub fn open(dir: impl AsRef<Path>) -> Result<Reader> {
        Reader::open_in(Env::default(), dir)
    }

    /// As [`Reader::open`], on the given disk and runtime.
    pub fn open_in(env: Env, dir: impl AsRef<Path>) -> Result<Reader> {
        let dir = dir.as_ref().to_path_buf();
        let view = View::load(&env, &dir, &[])?;
        Ok(Reader { shared: Arc::new(Shared { env, dir, view: RwLock::new(view) }) })
    }

    /// The record with this index.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) if there is none, [`Error::Corrupt`](crate::Error::Corrupt) if its bytes do not verify.
    pub fn read(&self, index: u64) -> Result<Record> {
        read_one(&self.source(), index)
    }

    /// Reads forward over a range of indexes.
    ///
    /// # Errors
    /// If the stream's present bounds cannot be read.
    pub fn iter(&self, range: impl RangeBounds<u64>) -> Result<Cursor> {
        Ok(forward(self.source(), range, self.shared.bounds()?.first_index, true))
    }

    /// Reads backward over a range of indexes.
    ///
    /// # Errors
    /// If the stream's present bounds cannot be read.
    pub fn iter_reverse(&self, range: impl RangeBounds<u64>) -> Result<ReverseCursor> {
        Ok(backward(self.source(), range, self.shared.bounds()?.next_index))
    }

    /// Reads forward from `index` for ever; `None` means: not yet.
    pub fn follow(&self, index: u64) -> Cursor {
        Cursor::new(self.source(), index, u64::MAX, true)
    }

    /// Index of the oldest record and of the one after the last durable record.
    ///
    /// # Errors
    /// If the stream changed and cannot be read any more.
    pub fn bounds(&self) -> Result<Range<u64>> {
        let bounds = self.shared.bounds()?;
        Ok(bounds.first_index..bounds.next_index)
    }

    /// The records that a repair found to be lost, in order; see [`RecordStream::lost_ranges`](crate::RecordStream::lost_ranges).
    ///
    /// # Errors
    /// If the stream's present state cannot be read.
    pub fn lost_ranges(&self) -> Result<Vec<Range<u64>>> {
        self.shared.bounds()?;
        Ok(self.shared.view().lost.clone())
    }

    /// The damage at the end of the stream that keeps it from being written, if there is any.
    pub fn damage(&self) -> Option<Corruption> {
        self.shared.view().damage.clone()
    }

    /// The bounds and the segments as they are now, oldest first; the last one is active.
    pub(crate) fn segments(&self) -> Result<(Bounds, Vec<Extent>)> {
        let mut view = self.shared.view_mut();
        self.shared.refresh(&mut view)?;
        Ok((view.bounds(), view.extents.clone()))
    }

    /// The epoch as it is now: it changes with every open, truncation and reset.
    pub(crate) fn epoch(&self) -> Result<u32> {
        Ok(self.shared.bounds()?.epoch)
    }

    /// Goes forward from `index` over the places of durable records, also of purged ones whose segment is there.
    pub(crate) fn places(&self, index: u64) -> Cursor {
        Cursor::of_places(self.source(), index)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.shared.dir
    }

    fn source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.shared) as Arc<dyn Source>
    }
}

impl Shared {
    fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn view_mut(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again, cheaply if the writer's page says that only the active segment grew, or that none has come.
    fn refresh(&self, view: &mut View) -> Result<()> {
        let published = live::published(view.page.as_deref(), &self.env);
        if let Some(published) = published
            && view.follow(&published)
        {
            return Ok(());
        }
        if view.is_still_unwritten(&self.env) {
            return Ok(());
        }
        let state = read_state(&self.env, &self.dir, MANIFEST_STEM)?;
        let version = state.map_or(0, |state| state.version);
        if version == view.manifest_version
            && published.is_none()
            && !view.is_growing(&self.env, &self.dir)?
        {
            if let Some((_, _, looked_at)) = &mut view.unwritten {
                *looked_at = self.env.runtime.now();
            }
            return Ok(());
        }
        *view = View::load(&self.env, &self.dir, &view.extents)?;
        Ok(())
    }
}

impl Source for Shared {
    fn bounds(&self) -> Result<Bounds> {
        let mut view = self.view_mut();
        self.refresh(&mut view)?;
        Ok(view.bounds())
    }

    fn look_anew(&self) -> Result<()> {
        let mut view = self.view_mut();
        *view = View::load(&self.env, &self.dir, &view.extents)?;
        Ok(())
    }

    fn extent_of(&self, index: u64) -> Result<Extent> {
        let view = self.view();
        let at = view.extents.partition_point(|extent| extent.next_index <= index);
        let last = view.extents.len() - 1;
        Ok(view.extents[at.min(last)].clone())
    }

    fn sealed_extent_of(&self, index: u64) -> Result<Option<Extent>> {
        let view = self.view();
        if view.is_current(&self.env) {
            return Ok(view.sealed_extent_of(index));
        }
        drop(view);
        let mut view = self.view_mut();
        self.refresh(&mut view)?;
        Ok(view.sealed_extent_of(index))
    }

    fn fetch(&self, extent: &Extent, first: u32, target: &mut [u8]) -> Result<usize> {
        let segment = &extent.segment;
        let end = extent.last_block() + 1;
        let len = (end.saturating_sub(first) as usize * segment.block_bytes).min(target.len());
        segment.read_blocks(first, &mut target[..len])
    }

    fn block_in_memory(&self, _segment: &Segment, _index: u64) -> Option<u32> {
        None
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::clone(&self.env.runtime)
    }

    fn lost_ranges(&self) -> Vec<Range<u64>> {
        self.view().lost.clone()
    }
}

impl View {
    /// Looks at the stream; segments that were `known` before keep what is open of them.
    fn load(env: &Env, dir: &Path, known: &[Extent]) -> Result<View> {
        let now = env.runtime.now();
        let watched = env.disk.shared_page(&dir.join(LIVE_NAME), false).ok();
        let unwritten = watched.map(|page| {
            let snapshot = live::snapshot(&*page);
            (page, snapshot, now)
        });
        let Look { manifest, manifest_version, layout, page } = Look::at(env, dir)?;
        let mut extents = layout.sealed;
        extents.push(layout.active);
        for extent in &mut extents {
            let id = extent.segment.segment_id;
            if let Some(known) = known.iter().find(|known| known.segment.segment_id == id)
                && known.segment.base_index == extent.segment.base_index
            {
                extent.segment = Arc::clone(&known.segment);
            }
        }
        let damage = layout.damage;
        let Manifest { epoch, closed, first_index, lost, .. } = manifest;
        let unwritten = unwritten.filter(|_| page.is_none());
        Ok(View { manifest_version, epoch, closed, first_index, extents, lost, damage, page, unwritten })
    }

    fn bounds(&self) -> Bounds {
        let next_index = self.extents.last().map_or(self.first_index, |extent| extent.next_index);
        Bounds { first_index: self.first_index, next_index, durable_index: next_index, epoch: self.epoch }
    }

    /// Without a writer the last segment is as good as sealed: nothing is written to it either.
    fn sealed_extent_of(&self, index: u64) -> Option<Extent> {
        let count = self.extents.len() - usize::from(self.unwritten.is_none());
        let sealed = &self.extents[..count];
        let at = sealed.partition_point(|extent| extent.next_index <= index);
        sealed.get(at).filter(|_| index >= self.first_index).cloned()
    }

    /// Whether no sealed segment has come or gone since the last look, as far as pages in memory tell.
    fn is_current(&self, env: &Env) -> bool {
        match live::published(self.page.as_deref(), env) {
            Some(published) => self.is_of(&published),
            None => self.is_still_unwritten(env),
        }
    }

    /// Whether there was no writer at the last look and none has come: it would have changed its page.
    fn is_still_unwritten(&self, env: &Env) -> bool {
        self.unwritten.as_ref().is_some_and(|(page, seen, looked_at)| {
            live::snapshot(&**page) == *seen
                && env.runtime.now().saturating_sub(*looked_at) < UNWRITTEN_LOOK_INTERVAL
        })
    }

    /// Whether what was published speaks of the same segments as this view.
    fn is_of(&self, published: &Published) -> bool {
        let active_base = self.extents.last().map_or(0, |extent| extent.segment.base_index);
        published.is_of(self.epoch, active_base) && published.first_index == self.first_index
    }

    /// Takes over what the writer published; `false` if it speaks of another segment or epoch than this view.
    fn follow(&mut self, published: &Published) -> bool {
        if !self.is_of(published) {
            return false;
        }
        let Some(active) = self.extents.last_mut() else { return false };
        active.next_index = published.durable_index;
        active.end_position = published.durable_position;
        true
    }

    /// Whether a writer has come, or was there before and left, since the last look.
    fn is_growing(&self, env: &Env, dir: &Path) -> Result<bool> {
        Ok(self.page.is_some() || (!self.closed && is_written(env, dir)?))
    }
}
