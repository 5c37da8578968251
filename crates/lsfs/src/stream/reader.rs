//! Reading a stream beside its writer.

use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::codec::Manifest;
use crate::env::Env;
use crate::error::{Corruption, Result};
use crate::final_data::read_state;
use crate::io::{Runtime, SharedPage};
use crate::stream::cursor::{Cursor, Record, ReverseCursor, Source};
use crate::stream::live::Published;
use crate::stream::look::{Look, is_written, published};
use crate::stream::recorder::Bounds;
use crate::stream::segment::{Extent, Segment};
use crate::stream::{MANIFEST_STEM, backward, forward, read_one};

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
    view: Mutex<View>,
}

/// The stream as last looked at.
#[derive(Debug)]
struct View {
    manifest_version: u64,
    epoch: u32,
    closed: bool,
    first_index: u64,
    extents: Vec<Extent>,
    damage: Option<Corruption>,
    page: Option<Box<dyn SharedPage>>,
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
        let view = View::load(&env, &dir)?;
        Ok(Reader { shared: Arc::new(Shared { env, dir, view: Mutex::new(view) }) })
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
    pub fn bounds(&self) -> Result<std::ops::Range<u64>> {
        let bounds = self.shared.bounds()?;
        Ok(bounds.first_index..bounds.next_index)
    }

    /// The damage at the end of the stream that keeps it from being written, if there is any.
    pub fn damage(&self) -> Option<Corruption> {
        self.shared.lock().damage.clone()
    }

    fn source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.shared) as Arc<dyn Source>
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again, cheaply if the writer's page says that only the active segment grew.
    fn refresh(&self, view: &mut View) -> Result<()> {
        let published = published(view.page.as_deref());
        if let Some(published) = published
            && view.follow(&published)
        {
            return Ok(());
        }
        let state = read_state(&self.env, &self.dir, MANIFEST_STEM)?;
        let version = state.map_or(0, |state| state.version);
        if version == view.manifest_version
            && published.is_none()
            && !view.is_growing(&self.env, &self.dir)?
        {
            return Ok(());
        }
        *view = View::load(&self.env, &self.dir)?;
        Ok(())
    }
}

impl Source for Shared {
    fn bounds(&self) -> Result<Bounds> {
        let mut view = self.lock();
        self.refresh(&mut view)?;
        let next_index = view.extents.last().map_or(view.first_index, |extent| extent.next_index);
        Ok(Bounds { first_index: view.first_index, next_index, durable_index: next_index, epoch: view.epoch })
    }

    fn extent_of(&self, index: u64) -> Result<Extent> {
        let view = self.lock();
        let at = view.extents.partition_point(|extent| extent.next_index <= index);
        let last = view.extents.len() - 1;
        Ok(view.extents[at.min(last)].clone())
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
}

impl View {
    fn load(env: &Env, dir: &Path) -> Result<View> {
        let Look { manifest, manifest_version, layout, page } = Look::at(env, dir)?;
        let mut extents = layout.sealed;
        extents.push(layout.active);
        let damage = layout.damage;
        let Manifest { epoch, closed, first_index, .. } = manifest;
        Ok(View { manifest_version, epoch, closed, first_index, extents, damage, page })
    }

    /// Takes over what the writer published; `false` if it speaks of another segment or epoch than this view.
    fn follow(&mut self, published: &Published) -> bool {
        let Some(active) = self.extents.last_mut() else { return false };
        if !published.is_of(self.epoch, active.segment.base_index)
            || published.first_index != self.first_index
        {
            return false;
        }
        active.next_index = published.durable_index;
        active.end_position = published.durable_position;
        true
    }

    /// Whether a writer has come, or was there before and left, since the last look.
    fn is_growing(&self, env: &Env, dir: &Path) -> Result<bool> {
        Ok(self.page.is_some() || (!self.closed && is_written(env, dir)?))
    }
}
