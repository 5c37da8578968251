//! What the processes of one simulated machine share: the live view of the files, locks, faults, the
//! recording.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::content::Content;
use super::fault::{FaultKind, Faults, OpKind};
use super::medium::{Effect, InodeId, Medium, NameOp, Names};
use super::page::PageWords;
use super::rng::SplitMix;
use super::trace::{Event, Recording};

pub(super) struct State {
    pub(super) medium: Medium,
    /// The names that programs see.
    pub(super) names: Arc<Names>,
    pub(super) files: BTreeMap<InodeId, Live>,
    pub(super) next_inode: InodeId,
    pub(super) locks: BTreeMap<Arc<Path>, u64>,
    pub(super) next_process: u64,
    pub(super) ended: BTreeSet<u64>,
    pub(super) ops: u64,
    pub(super) seed: u64,
    pub(super) capacity: u64,
    pub(super) faults: Faults,
    pub(super) recording: Option<Recording>,
}

/// A file as programs see it.
#[derive(Clone, Default)]
pub(super) struct Live {
    pub(super) content: Arc<Content>,
    pub(super) page: Option<Arc<PageWords>>,
    pub(super) handles: usize,
    pub(super) linked: bool,
    /// A sync failed: reads show bytes that the medium will never have, until the next open.
    pub(super) stale: bool,
}

/// The operation under way.
pub(super) struct Op {
    pub(super) fault: Option<FaultKind>,
    pub(super) rng: SplitMix,
}

impl State {
    /// Runs one operation: numbers it, lets a fault strike, and records what `act` says it did. A fault that
    /// `act` has no own way of failing by makes it fail before it changes anything.
    pub(super) fn operate<R>(
        &mut self,
        kind: OpKind,
        durable_write: bool,
        path: &Arc<Path>,
        act: impl FnOnce(&mut State, Op) -> (Effect, io::Result<R>),
    ) -> io::Result<R> {
        let number = self.ops;
        self.ops += 1;
        let fault = self.faults.strike(number, kind, durable_write, path);
        let (effect, result) = match (kind, fault) {
            (OpKind::Write | OpKind::Sync, _) | (_, None) => {
                act(self, Op { fault, rng: SplitMix::from_parts(&[self.seed, number]) })
            }
            (_, Some(FaultKind::Enospc)) => (Effect::Nothing, Err(no_space())),
            (_, Some(_)) => (Effect::Nothing, Err(eio())),
        };
        self.medium.apply(number, &effect);
        if let Some(recording) = &mut self.recording {
            recording.events.push(Event { kind, path: Arc::clone(path), effect });
        }
        result
    }

    pub(super) fn read_fault(&mut self, path: &Path) -> io::Result<()> {
        match self.faults.strike(self.ops, OpKind::Read, false, path) {
            Some(_) => Err(eio()),
            None => Ok(()),
        }
    }

    pub(super) fn file(&self, inode: InodeId) -> &Live {
        &self.files[&inode]
    }

    pub(super) fn file_mut(&mut self, inode: InodeId) -> &mut Live {
        self.files.get_mut(&inode).expect("a file with a name or a handle is kept")
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.files.values().map(|file| file.content.allocated_bytes()).sum()
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.capacity.saturating_sub(self.used_bytes())
    }

    /// Whether `position..end` of a file can be given the space it lacks.
    pub(super) fn has_space(&self, inode: InodeId, position: u64, end: u64) -> bool {
        let missing = self.file(inode).content.unallocated_bytes(position, end);
        missing == 0 || missing <= self.free_bytes()
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<InodeId> {
        self.names.get(path).copied().ok_or_else(|| not_found(path))
    }

    pub(super) fn need_dir(&self, dir: &Path) -> io::Result<()> {
        if is_root(dir) || self.medium.dirs.contains(dir) { Ok(()) } else { Err(not_found(dir)) }
    }

    pub(super) fn create(&mut self, path: &Arc<Path>, page: Option<Arc<PageWords>>) -> io::Result<InodeId> {
        self.need_dir(parent(path))?;
        self.operate(OpKind::Create, false, path, |state, _| {
            let inode = state.next_inode;
            state.next_inode += 1;
            if state.recording.is_some() {
                page.iter().for_each(|page| page.keep_all());
            }
            state.files.insert(inode, Live { page: page.clone(), linked: true, ..Live::default() });
            Arc::make_mut(&mut state.names).insert(Arc::clone(path), inode);
            (Effect::Name(NameOp::Create { path: Arc::clone(path), inode, page }), Ok(inode))
        })
    }

    pub(super) fn unlinked(&mut self, inode: InodeId) {
        self.file_mut(inode).linked = false;
        self.forget_unused(inode);
    }

    pub(super) fn forget_unused(&mut self, inode: InodeId) {
        if self.files.get(&inode).is_some_and(|file| !file.linked && file.handles == 0) {
            self.files.remove(&inode);
        }
    }

    pub(super) fn handle_closed(&mut self, inode: InodeId) {
        self.file_mut(inode).handles -= 1;
        self.forget_unused(inode);
    }
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The root and the current directory always exist.
pub(super) fn is_root(dir: &Path) -> bool {
    dir.parent().is_none()
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{}: no such file or directory", path.display()))
}

pub(super) fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

pub(super) fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

pub(super) fn no_space() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}
