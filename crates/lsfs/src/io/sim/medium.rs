//! What is durable, what is pending, and what each operation does to both.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::content::{Content, Damage, Patch, sector_start};
use super::crash::{CrashStyle, Fate};
use super::page::PageWords;
use super::rng::SplitMix;

pub(super) type InodeId = u64;
pub(super) type Names = BTreeMap<Arc<Path>, InodeId>;

/// The state that a power failure acts upon. Cloning costs a few pointers per file.
#[derive(Clone, Debug, Default)]
pub(super) struct Medium {
    pub(super) inodes: BTreeMap<InodeId, Inode>,
    /// The durable names.
    pub(super) names: Arc<Names>,
    pub(super) pending_names: Vec<(u64, NameOp)>,
    /// Directories are durable as soon as they are created, see `Disk::create_dir_all`.
    pub(super) dirs: Arc<BTreeSet<Arc<Path>>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    pub(super) durable: Arc<Content>,
    /// Oldest first, each with the number of its operation.
    pub(super) pending: Vec<(u64, Pending)>,
    pub(super) page: Option<Arc<PageWords>>,
}

/// An unsynced change of a file.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    Write(Patch),
    Allocate(u64),
    /// `cut`: it made the file shorter.
    SetLen {
        len: u64,
        cut: bool,
    },
    Release(Range<u64>),
}

/// A change of a directory.
#[derive(Clone, Debug)]
pub(super) enum NameOp {
    Create { path: Arc<Path>, inode: InodeId, page: Option<Arc<PageWords>> },
    Rename { from: Arc<Path>, to: Arc<Path>, inode: InodeId },
    Remove { path: Arc<Path>, inode: InodeId },
}

/// What an operation did.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    /// It failed, or there was nothing to do.
    Nothing,
    Write {
        inode: InodeId,
        patch: Patch,
        durable: bool,
    },
    Sync {
        inode: InodeId,
    },
    /// A failed sync, of a `write` if it was a durable write: what was pending will never be durable, except
    /// a part of it drawn from the seed in `reached`.
    SyncFailed {
        inode: InodeId,
        write: Option<Patch>,
        reached: Option<u64>,
    },
    Allocate {
        inode: InodeId,
        len: u64,
    },
    SetLen {
        inode: InodeId,
        len: u64,
        cut: bool,
    },
    Release {
        inode: InodeId,
        range: Range<u64>,
    },
    Name(NameOp),
    SyncDir {
        dir: Arc<Path>,
    },
    /// Missing directories, outermost first.
    CreateDirs {
        dirs: Vec<Arc<Path>>,
    },
    /// Damage of the durable bytes.
    Damage {
        inode: InodeId,
        damage: Damage,
    },
}

impl Medium {
    /// Lets operation `number` happen.
    pub(super) fn apply(&mut self, number: u64, effect: &Effect) {
        match effect {
            Effect::Nothing => {}
            Effect::Name(op) => {
                if let NameOp::Create { inode, page, .. } = op {
                    self.inodes.insert(*inode, Inode { page: page.clone(), ..Inode::default() });
                }
                self.pending_names.push((number, op.clone()));
            }
            Effect::SyncDir { dir } => self.sync_dir(dir),
            Effect::CreateDirs { dirs } => Arc::make_mut(&mut self.dirs).extend(dirs.iter().cloned()),
            Effect::Write { inode: id, .. }
            | Effect::Sync { inode: id }
            | Effect::SyncFailed { inode: id, .. }
            | Effect::Allocate { inode: id, .. }
            | Effect::SetLen { inode: id, .. }
            | Effect::Release { inode: id, .. }
            | Effect::Damage { inode: id, .. } => {
                // A file whose last name is durably gone cannot be found by any crash: nothing to keep.
                if let Some(inode) = self.inodes.get_mut(id) {
                    inode.apply(number, effect);
                }
            }
        }
    }

    /// The change of a file that `effect` leaves pending, if power fails during it.
    pub(super) fn unfinished(effect: &Effect) -> Option<(InodeId, Pending)> {
        match effect {
            Effect::Write { inode, patch, .. } | Effect::SyncFailed { inode, write: Some(patch), .. } => {
                Some((*inode, Pending::Write(patch.clone())))
            }
            Effect::Allocate { inode, len } => Some((*inode, Pending::Allocate(*len))),
            Effect::SetLen { inode, len, cut } => Some((*inode, Pending::SetLen { len: *len, cut: *cut })),
            Effect::Release { inode, range } => Some((*inode, Pending::Release(range.clone()))),
            _ => None,
        }
    }

    /// The names that programs see: durable and pending ones.
    pub(super) fn names_in_view(&self) -> Arc<Names> {
        let mut names = Arc::clone(&self.names);
        for (_, op) in &self.pending_names {
            op.apply(Arc::make_mut(&mut names));
        }
        names
    }

    /// Lets operation `number` begin and its process end before it does.
    pub(super) fn break_off(&mut self, number: u64, effect: Option<&Effect>, seed: u64) {
        let mut rng = SplitMix::from_parts(&[seed, number, 3]);
        for inode in self.inodes.values_mut() {
            // The next writer has a page of its own; nobody believes this one until then.
            inode.page = inode.page.take().map(|page| Arc::new(page.after_crash(number, &mut rng)));
        }
        let Some(effect) = effect.filter(|_| rng.below(3) > 0) else { return };
        match effect {
            Effect::Write { inode, patch, .. } => {
                let mut patch = patch.clone();
                if rng.coin() {
                    patch.cut(patch.position + sector_start(rng.below(u64::from(patch.sectors()) + 1)));
                }
                self.apply(number, &Effect::Write { inode: *inode, patch, durable: false });
            }
            // A sync that nobody waited for says nothing.
            Effect::Sync { .. } | Effect::SyncDir { .. } | Effect::SyncFailed { .. } => {}
            other => self.apply(number, other),
        }
    }

    fn sync_dir(&mut self, dir: &Path) {
        if self.pending_names.is_empty() {
            return;
        }
        let names = Arc::make_mut(&mut self.names);
        let (now, mut later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending_names).into_iter().partition(|(_, op)| op.touches(dir));
        for (number, op) in &now {
            op.apply(names);
            if let NameOp::Rename { inode, .. } = op {
                // The file arrived from a directory that was not synced: how it came to its name there is
                // history.
                later.retain(|(other, op)| other > number || op.inode() != *inode);
            }
        }
        self.pending_names = later;
        let reachable: BTreeSet<InodeId> =
            self.names.values().copied().chain(self.pending_names.iter().map(|(_, op)| op.inode())).collect();
        self.inodes.retain(|id, _| reachable.contains(id));
    }
}

impl NameOp {
    pub(super) fn inode(&self) -> InodeId {
        match self {
            NameOp::Create { inode, .. } | NameOp::Rename { inode, .. } | NameOp::Remove { inode, .. } => {
                *inode
            }
        }
    }

    fn touches(&self, dir: &Path) -> bool {
        let within = |path: &Arc<Path>| path.parent() == Some(dir);
        match self {
            NameOp::Create { path, .. } | NameOp::Remove { path, .. } => within(path),
            NameOp::Rename { from, to, .. } => within(from) || within(to),
        }
    }

    /// Makes the change in a directory where earlier changes may have been lost; the result is one that a
    /// file system could show: no name is used twice, no file has two names, no other file disappears.
    pub(super) fn apply(&self, names: &mut Names) {
        match self {
            NameOp::Create { path, inode, .. } => {
                // Taken, if the rename or remove that vacated the name was lost: then the create is lost with
                // it.
                names.entry(Arc::clone(path)).or_insert(*inode);
            }
            NameOp::Rename { from, to, inode } => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                } else {
                    names.retain(|_, other| other != inode);
                }
                names.insert(Arc::clone(to), *inode);
            }
            NameOp::Remove { path, inode } => {
                if names.get(path) == Some(inode) {
                    names.remove(path);
                }
            }
        }
    }
}

impl Inode {
    /// What a program sees that reads the device: durable and pending bytes.
    pub(super) fn view(&self) -> Arc<Content> {
        let mut view = Arc::clone(&self.durable);
        for (_, change) in &self.pending {
            change.apply(Arc::make_mut(&mut view));
        }
        view
    }

    fn apply(&mut self, number: u64, effect: &Effect) {
        match effect {
            Effect::Write { patch, durable: true, .. } => self.write_durably(patch),
            Effect::Sync { .. } => {
                let durable = Arc::make_mut(&mut self.durable);
                self.pending.drain(..).for_each(|(_, change)| change.apply(durable));
            }
            Effect::SyncFailed { write, reached, .. } => {
                self.pending.extend(write.clone().map(|patch| (number, Pending::Write(patch))));
                if let Some(seed) = reached {
                    let numbers = self.pending.iter().map(|(number, _)| *number).collect();
                    let mut fate = Fate::new(CrashStyle::TornSectors, SplitMix::new(*seed), numbers);
                    self.durable = fate.settle(self, None);
                }
                self.pending.clear();
            }
            Effect::Damage { damage, .. } => Arc::make_mut(&mut self.durable).damage(damage),
            _ => self.pending.extend(Medium::unfinished(effect).map(|(_, change)| (number, change))),
        }
    }

    /// Makes one write durable and none of the other pending bytes.
    fn write_durably(&mut self, patch: &Patch) {
        if !self.pending.is_empty() {
            self.commit_lengths();
            // The medium has the newer bytes: an older write of the same place cannot come after them.
            for (_, change) in &mut self.pending {
                if let Pending::Write(older) = change {
                    older.forget(patch.position, patch.end);
                }
            }
        }
        let durable = Arc::make_mut(&mut self.durable);
        durable.apply(patch);
        let len = durable.len();
        self.pending.retain(|(_, change)| match change {
            Pending::Write(older) => !older.chunks.is_empty() || older.end > len,
            Pending::Allocate(_) | Pending::SetLen { .. } | Pending::Release(_) => true,
        });
    }

    /// Makes the changes of length and space up to the last `set_len` or `release` durable, without the bytes written in
    /// between: the metadata of one file reaches the journal in order, and a durable write needs the cuts before it.
    fn commit_lengths(&mut self) {
        let frees =
            |(_, change): &(u64, Pending)| matches!(change, Pending::SetLen { .. } | Pending::Release(_));
        let Some(last) = self.pending.iter().rposition(frees) else { return };
        let durable = Arc::make_mut(&mut self.durable);
        let mut kept: Vec<(u64, Pending)> = Vec::new();
        for (at, (number, change)) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            match change {
                Pending::Allocate(len) if at < last => durable.allocate(len),
                Pending::SetLen { len, .. } => {
                    durable.set_len(len);
                    for (_, change) in &mut kept {
                        if let Pending::Write(older) = change {
                            older.cut(len);
                        }
                    }
                }
                Pending::Release(range) => {
                    durable.release(&range);
                    for (_, change) in &mut kept {
                        if let Pending::Write(older) = change {
                            older.forget(range.start, range.end);
                        }
                    }
                }
                change => kept.push((number, change)),
            }
        }
        self.pending = kept;
    }
}

impl Pending {
    pub(super) fn apply(&self, content: &mut Content) {
        match self {
            Pending::Write(patch) => content.apply(patch),
            Pending::Allocate(len) => content.allocate(*len),
            Pending::SetLen { len, .. } => content.set_len(*len),
            Pending::Release(range) => content.release(range),
        }
    }
}
