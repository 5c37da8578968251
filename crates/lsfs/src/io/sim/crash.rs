//! Power failures: which of the pending changes survive.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::content::{Content, Patch};
use super::medium::{Effect, Inode, InodeId, Medium, NameOp, Pending};
use super::rng::SplitMix;

/// Which unsynced changes a power failure leaves on the medium.
///
/// "Change" means a write, a change of length, or a create, rename or remove. The write under way when power
/// fails counts as unsynced, also if it is a durable one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CrashStyle {
    /// No change survives.
    NothingUnsynced,
    /// Every change survives.
    EverythingUnsynced,
    /// The changes survive up to some point, in the order they were made; the write at that point is cut
    /// there.
    PrefixOfUnsynced,
    /// The changes survive from some point on: later ones are there, earlier ones are not.
    SuffixOnly,
    /// Each change survives whole or not at all, with probability 1/2.
    RandomWrites,
    /// Each 512-byte sector of each write survives with probability 1/2; so does each other change.
    TornSectors,
    /// The same with pages of 4 KiB.
    TornPages,
    /// Everything survives but the first sector of each write.
    FirstSectorLost,
    /// Everything survives but the last sector of each write.
    LastSectorLost,
    /// Of each written 4-KiB page only the first sector survives; so do all other changes.
    OnlyHeaderSector,
    /// Of each written 4-KiB page all but the first sector survives; so do all other changes.
    AllButHeaderSector,
}

impl CrashStyle {
    /// Every style.
    pub const ALL: [CrashStyle; 11] = [
        CrashStyle::NothingUnsynced,
        CrashStyle::EverythingUnsynced,
        CrashStyle::PrefixOfUnsynced,
        CrashStyle::SuffixOnly,
        CrashStyle::RandomWrites,
        CrashStyle::TornSectors,
        CrashStyle::TornPages,
        CrashStyle::FirstSectorLost,
        CrashStyle::LastSectorLost,
        CrashStyle::OnlyHeaderSector,
        CrashStyle::AllButHeaderSector,
    ];

    /// Whether the result depends on the seed (apart from shared pages): for the others one seed is enough.
    pub const fn is_random(self) -> bool {
        matches!(
            self,
            CrashStyle::PrefixOfUnsynced
                | CrashStyle::SuffixOnly
                | CrashStyle::RandomWrites
                | CrashStyle::TornSectors
                | CrashStyle::TornPages
        )
    }
}

/// The draw of one power failure.
pub(super) struct Fate {
    style: CrashStyle,
    rng: SplitMix,
    /// For the styles with a point in time: the operation at that point.
    point: u64,
}

/// Which sectors of a write survive.
#[derive(Clone, Copy)]
enum Keep {
    First(u32),
    Last(u32),
    RandomSectors,
    RandomPages,
    /// These sectors of each page.
    InPage(u8),
}

impl Fate {
    /// `changes` are the numbers of the operations with pending changes.
    pub(super) fn new(style: CrashStyle, mut rng: SplitMix, mut changes: Vec<u64>) -> Self {
        changes.sort_unstable();
        let count = changes.len() as u64;
        let point = match style {
            // One of the points is after the last change: everything survives.
            CrashStyle::PrefixOfUnsynced => changes.get(rng.below(count + 1) as usize).copied(),
            // There is no point before the first: something is lost, or it would be the prefix.
            CrashStyle::SuffixOnly if count > 0 => changes.get(rng.below(count) as usize).copied(),
            _ => None,
        };
        Fate { style, rng, point: point.unwrap_or(u64::MAX) }
    }

    /// Whether a change survives that is done whole or not at all.
    fn survives(&mut self, number: u64) -> bool {
        match self.style {
            CrashStyle::NothingUnsynced => false,
            CrashStyle::PrefixOfUnsynced => number < self.point,
            CrashStyle::SuffixOnly => number > self.point,
            CrashStyle::RandomWrites | CrashStyle::TornSectors | CrashStyle::TornPages => self.rng.coin(),
            CrashStyle::EverythingUnsynced
            | CrashStyle::FirstSectorLost
            | CrashStyle::LastSectorLost
            | CrashStyle::OnlyHeaderSector
            | CrashStyle::AllButHeaderSector => true,
        }
    }

    /// Whether the new length of an extending write survives, which is metadata and goes its own way.
    fn extension_survives(&mut self, number: u64) -> bool {
        if number == self.point { self.rng.coin() } else { self.survives(number) }
    }

    fn keep(&mut self, number: u64, total: u32) -> Keep {
        match self.style {
            CrashStyle::PrefixOfUnsynced if number == self.point => {
                Keep::First(self.rng.below(u64::from(total)) as u32)
            }
            CrashStyle::SuffixOnly if number == self.point => {
                Keep::Last(self.rng.below(u64::from(total)) as u32)
            }
            CrashStyle::TornSectors => Keep::RandomSectors,
            CrashStyle::TornPages => Keep::RandomPages,
            CrashStyle::FirstSectorLost => Keep::Last(total - 1),
            CrashStyle::LastSectorLost => Keep::First(total - 1),
            CrashStyle::OnlyHeaderSector => Keep::InPage(0x01),
            CrashStyle::AllButHeaderSector => Keep::InPage(0xfe),
            _ => Keep::First(if self.survives(number) { total } else { 0 }),
        }
    }

    fn settle_write(&mut self, content: &mut Content, number: u64, patch: &Patch) {
        let total = patch.sectors();
        if total > 0 {
            let keep = self.keep(number, total);
            let mut before = 0;
            for chunk in patch.chunks.iter() {
                let sectors = chunk.sectors();
                let kept = match keep {
                    Keep::First(count) => lowest(sectors, count.saturating_sub(before)),
                    Keep::Last(count) => sectors & !lowest(sectors, (total - count).saturating_sub(before)),
                    Keep::RandomSectors => sectors & self.rng.next() as u8,
                    Keep::RandomPages => {
                        if self.rng.coin() {
                            sectors
                        } else {
                            0
                        }
                    }
                    Keep::InPage(mask) => sectors & mask,
                };
                content.apply_sectors(chunk, kept);
                before += sectors.count_ones();
            }
        }
        if patch.end > content.len() && self.extension_survives(number) {
            content.extend(patch.end);
        }
    }

    /// The content of `inode` after the failure; `unfinished` is the change under way.
    pub(super) fn settle(&mut self, inode: &Inode, unfinished: Option<(u64, &Pending)>) -> Arc<Content> {
        let nothing = inode.pending.is_empty() && unfinished.is_none();
        if nothing || self.style == CrashStyle::NothingUnsynced {
            return Arc::clone(&inode.durable);
        }
        let mut content = Content::clone(&inode.durable);
        // Changes of one file's length and space reach the medium in order, so one that is lost takes the later ones
        // along; and bytes written after a lost cut, where the cut had freed the space, have no place to be.
        let mut length_lost = false;
        let mut lost_cut = u64::MAX;
        // The same for bytes written where a lost release had freed the space.
        let mut lost_releases: Vec<Range<u64>> = Vec::new();
        let changes = inode.pending.iter().map(|(number, change)| (*number, change));
        for (number, change) in changes.chain(unfinished) {
            match change {
                Pending::Write(patch) if lost_cut <= patch.position => {}
                Pending::Write(patch) => {
                    let mut patch = patch.clone();
                    if lost_cut < patch.end {
                        patch.cut(lost_cut);
                    }
                    lost_releases.iter().for_each(|lost| patch.forget(lost.start, lost.end));
                    self.settle_write(&mut content, number, &patch);
                }
                Pending::Allocate(len) => {
                    length_lost |= !self.survives(number);
                    if !length_lost {
                        content.allocate(*len);
                    }
                }
                Pending::SetLen { len, cut } => {
                    length_lost |= !self.survives(number);
                    if !length_lost {
                        content.set_len(*len);
                    } else if *cut {
                        lost_cut = lost_cut.min(*len);
                    }
                }
                Pending::Release(range) => {
                    length_lost |= !self.survives(number);
                    match length_lost {
                        true => lost_releases.push(range.clone()),
                        false => content.release(range),
                    }
                }
            }
        }
        content.clip();
        Arc::new(content)
    }
}

/// The lowest `count` of the set bits of `mask`, which are contiguous.
fn lowest(mask: u8, count: u32) -> u8 {
    let ones = (1u16 << count.min(8)) - 1;
    mask & ((ones << mask.trailing_zeros().min(8)) & 0xff) as u8
}

impl Medium {
    /// How many changes a power failure now could lose.
    pub(super) fn unsynced(&self) -> usize {
        self.pending_names.len() + self.inodes.values().map(|inode| inode.pending.len()).sum::<usize>()
    }

    /// What is found after power failed during operation `number` (`None` as its effect: before it changed
    /// anything). Nothing is pending in the result.
    pub(super) fn after_crash(
        &self,
        number: u64,
        effect: Option<&Effect>,
        style: CrashStyle,
        seed: u64,
    ) -> Medium {
        let rng = SplitMix::from_parts(&[seed, number, style as u64]);
        let unfinished = effect.and_then(Medium::unfinished);
        let unfinished_name = match effect {
            Some(Effect::Name(op)) => Some((number, op)),
            _ => None,
        };
        let mut changes: Vec<u64> = Vec::new();
        if matches!(style, CrashStyle::PrefixOfUnsynced | CrashStyle::SuffixOnly) {
            changes.extend(self.pending_names.iter().map(|(number, _)| *number));
            changes.extend(self.inodes.values().flat_map(|inode| &inode.pending).map(|(number, _)| *number));
            changes.extend((unfinished.is_some() || unfinished_name.is_some()).then_some(number));
        }
        let mut fate = Fate::new(style, rng, changes);
        let mut names = Arc::clone(&self.names);
        let mut new_pages = Vec::new();
        for (number, op) in self.pending_names.iter().map(|(number, op)| (*number, op)).chain(unfinished_name)
        {
            if fate.survives(number) {
                op.apply(Arc::make_mut(&mut names));
            }
            if let (NameOp::Create { inode, page: Some(page), .. }, None) = (op, self.inodes.get(&op.inode()))
            {
                new_pages.push((*inode, Arc::clone(page)));
            }
        }
        let mut found: Vec<InodeId> = names.values().copied().collect();
        found.sort_unstable();
        let empty = Inode::default();
        let mut settle = |id: InodeId| {
            let inode = self.inodes.get(&id).unwrap_or(&empty);
            let under_way =
                unfinished.as_ref().filter(|(of, _)| *of == id).map(|(_, change)| (number, change));
            let durable = fate.settle(inode, under_way);
            let page = inode
                .page
                .as_ref()
                .or_else(|| new_pages.iter().find(|(of, _)| *of == id).map(|(_, page)| page));
            let page = page.map(|page| Arc::new(page.after_crash(number, &mut fate.rng)));
            (id, Inode { durable, pending: Vec::new(), page })
        };
        let inodes = found.into_iter().map(&mut settle).collect();
        let mut dirs = Arc::clone(&self.dirs);
        if let Some(Effect::CreateDirs { dirs: missing }) = effect {
            let made = match style {
                CrashStyle::NothingUnsynced => 0,
                _ if style.is_random() => fate.rng.below(missing.len() as u64 + 1) as usize,
                _ => missing.len(),
            };
            Arc::<BTreeSet<_>>::make_mut(&mut dirs).extend(missing[..made].iter().cloned());
        }
        Medium { inodes, names, pending_names: Vec::new(), dirs }
    }
}
