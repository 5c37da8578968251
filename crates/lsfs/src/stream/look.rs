//! What a stream is, seen from outside: without its lock, beside a writer or without one.

use std::cmp::Ordering;
use std::path::Path;

use crate::codec::Manifest;
use crate::directory;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::final_data::read_state;
use crate::io::{OpenMode, SharedPage};
use crate::stream::recovery::{Layout, refuse_orphans};
use crate::stream::{MANIFEST_STEM, STREAM, decode_manifest, stream_exists};
use crate::write_path::live;

/// One look at a stream.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) manifest: Manifest,
    pub(crate) manifest_version: u64,
    pub(crate) layout: Layout,
    /// The writer's page, if a writer lives.
    pub(crate) page: Option<Box<dyn SharedPage>>,
}

/// The writer may rotate, purge, come or go between our looks at its files.
const ATTEMPTS: usize = 20;

impl Look {
    /// Looks at the stream in `dir`.
    ///
    /// Beside a writer the end is what it published; searching for it would race with its writes.
    pub(crate) fn at(env: &Env, dir: &Path) -> Result<Look> {
        for _ in 1..ATTEMPTS {
            match Look::once(env, dir) {
                Err(Error::Gone { .. }) => continue,
                Err(error) if error.is_corruption() && is_written(env, dir)? => continue,
                Ok(look) if look.layout.damage.is_some() && is_written(env, dir)? => {}
                other => return other,
            }
        }
        Look::once(env, dir)
    }

    fn once(env: &Env, dir: &Path) -> Result<Look> {
        let not_found = |reason: &str| Error::NotFound {
            path: dir.to_path_buf(),
            expected: STREAM,
            reason: reason.to_string(),
        };
        if !stream_exists(env, dir)? {
            return Err(not_found("it has no manifest"));
        }
        let page = match is_written(env, dir)? {
            true => env.disk.shared_page(&dir.join(directory::LIVE_NAME), false).ok(),
            false => None,
        };
        let Some(state) = read_state(env, dir, MANIFEST_STEM)? else {
            // Its creation was cut short, unless there are records: then the manifest was lost.
            refuse_orphans(env, dir, None)?;
            return Err(not_found("it was never completed"));
        };
        let manifest = decode_manifest(dir, &state.bytes)?;
        let layout = match live::published(page.as_deref(), env) {
            // A page of an earlier epoch is what a killed writer left; the one that holds the lock is still recovering.
            Some(published) if published.epoch >= manifest.epoch => {
                let mut layout = Layout::named(env, dir, &manifest, OpenMode::Read)?;
                let active = &mut layout.active;
                match published.place().cmp(&(manifest.epoch, active.segment.base_index)) {
                    // Nothing is durable in the new segment yet, and the manifest knows all of the one before.
                    Ordering::Less => {}
                    Ordering::Equal => {
                        active.next_index = published.durable_index;
                        active.end_position = published.durable_position;
                    }
                    // The writer rotated after we had read the manifest.
                    Ordering::Greater => {
                        return Err(Error::Gone { path: active.segment.path().to_path_buf() });
                    }
                }
                layout
            }
            _ => Layout::find(env, dir, &manifest, OpenMode::Read)?,
        };
        Ok(Look { manifest, manifest_version: state.version, layout, page })
    }
}

/// Whether a writer has the stream open.
pub(crate) fn is_written(env: &Env, dir: &Path) -> Result<bool> {
    let path = dir.join(directory::LOCK_NAME);
    env.disk.is_locked(&path).map_err(|error| Error::io("look at the lock", &path, error))
}
