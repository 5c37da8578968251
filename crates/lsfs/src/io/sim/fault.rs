//! Faults to inject.

use std::path::Path;

/// What an operation does, for choosing where a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// `File::write_at`, durable or not.
    Write,
    /// `FileMap::write`: a store to memory, which no fault strikes.
    MapWrite,
    /// `File::sync` or `FileMap::flush`.
    Sync,
    /// `File::allocate` or `File::map_mut`.
    Allocate,
    /// `File::set_len`.
    SetLen,
    /// `File::release`.
    Release,
    /// A new file: `Disk::open` with `CreateNew`, or the first use of a lock or shared page.
    Create,
    /// `Disk::rename`.
    Rename,
    /// `Disk::remove`.
    Remove,
    /// `Disk::sync_dir`.
    SyncDir,
    /// `Disk::create_dir_all`, if a directory was missing.
    CreateDir,
    /// Damage done by the test (`SimDisk::flip_bit` and the like); no fault strikes it.
    Damage,
    /// `File::read_at`. Not numbered, for it changes nothing.
    Read,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// The operation fails with EIO. A write may have changed its first sectors, unsynced, as the seed has
    /// it; a failed sync is a [`FaultKind::SyncError`]; other operations change nothing.
    Eio,
    /// The operation fails with ENOSPC and changes nothing: writes (also of allocated space, as on
    /// copy-on-write file systems), allocations, extensions, creates and renames.
    Enospc,
    /// A write returns less than asked, by the seed a multiple of a sector or not.
    ShortWrite,
    /// A sync or durable write fails with EIO, and what was unsynced in the file never becomes durable,
    /// although reads show it until the file is opened again ("pages read clean").
    SyncError,
    /// The same, but sectors drawn from the seed did reach the medium.
    PartialSyncError,
    /// A read fails with EIO.
    ReadEio,
    /// A write reports success and lands at another place of the file.
    MisdirectedWrite,
    /// A write reports success and never happens.
    LostWrite,
    /// A write reports success with one bit of it flipped.
    BitRot,
}

/// Which operation a fault strikes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultAt {
    /// The first operation with this number ([`SimDisk::op_count`](super::SimDisk::op_count)) or a higher one
    /// that the fault can strike.
    Op(u64),
    /// The `nth` operation (from 0) after the injection that the fault can strike and that fits.
    Nth {
        /// Only operations of this kind.
        kind: Option<OpKind>,
        /// Only paths that end so; the empty string fits all. A rename fits by its old name.
        path_suffix: String,
        /// How many fitting operations pass unharmed.
        nth: u64,
    },
}

/// A fault to inject with [`SimDisk::inject`](super::SimDisk::inject).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFault {
    /// Where it strikes.
    pub at: FaultAt,
    /// What goes wrong.
    pub kind: FaultKind,
    /// Whether it strikes every fitting operation from there on, or just one.
    pub forever: bool,
}

impl DiskFault {
    /// Strikes once, the first operation it can with this number or a higher one.
    pub fn at_op(number: u64, kind: FaultKind) -> Self {
        DiskFault { at: FaultAt::Op(number), kind, forever: false }
    }

    /// Strikes once, the `nth` (from 0) fitting operation on a path with this ending.
    pub fn nth(nth: u64, path_suffix: &str, kind: FaultKind) -> Self {
        let at = FaultAt::Nth { kind: None, path_suffix: path_suffix.to_string(), nth };
        DiskFault { at, kind, forever: false }
    }

    /// Strikes only operations of this kind; has no meaning with [`FaultAt::Op`].
    pub fn only(mut self, op: OpKind) -> Self {
        if let FaultAt::Nth { kind, .. } = &mut self.at {
            *kind = Some(op);
        }
        self
    }

    /// Strikes again and again.
    pub fn forever(mut self) -> Self {
        self.forever = true;
        self
    }
}

impl FaultKind {
    fn strikes(self, op: OpKind, durable_write: bool) -> bool {
        match self {
            FaultKind::Eio => !matches!(op, OpKind::Read | OpKind::Damage | OpKind::MapWrite),
            FaultKind::Enospc => matches!(
                op,
                OpKind::Write
                    | OpKind::Allocate
                    | OpKind::SetLen
                    | OpKind::Create
                    | OpKind::Rename
                    | OpKind::CreateDir
            ),
            FaultKind::SyncError | FaultKind::PartialSyncError => durable_write || op == OpKind::Sync,
            FaultKind::ReadEio => op == OpKind::Read,
            FaultKind::ShortWrite
            | FaultKind::MisdirectedWrite
            | FaultKind::LostWrite
            | FaultKind::BitRot => op == OpKind::Write,
        }
    }
}

/// The faults still to come.
#[derive(Debug, Default)]
pub(super) struct Faults {
    armed: Vec<Armed>,
    fired: u64,
}

#[derive(Debug)]
struct Armed {
    fault: DiskFault,
    passed: u64,
}

impl Faults {
    pub(super) fn inject(&mut self, fault: DiskFault) {
        self.armed.push(Armed { fault, passed: 0 });
    }

    pub(super) fn fired(&self) -> u64 {
        self.fired
    }

    pub(super) fn clear(&mut self) {
        self.armed.clear();
    }

    /// The fault that strikes this operation. Of several the first injected wins; the others still count it.
    pub(super) fn strike(
        &mut self,
        number: u64,
        op: OpKind,
        durable_write: bool,
        path: &Path,
    ) -> Option<FaultKind> {
        let mut struck = None;
        for at in 0..self.armed.len() {
            let Armed { fault, passed } = &mut self.armed[at];
            if !fault.kind.strikes(op, durable_write) {
                continue;
            }
            let due = match &fault.at {
                FaultAt::Op(from) => number >= *from,
                FaultAt::Nth { kind, path_suffix, nth } => {
                    let fits = kind.is_none_or(|kind| kind == op)
                        && path.as_os_str().as_encoded_bytes().ends_with(path_suffix.as_bytes());
                    *passed += u64::from(fits);
                    fits && *passed > *nth
                }
            };
            if due && struck.is_none() {
                struck = Some((at, fault.kind, fault.forever));
            }
        }
        let (at, kind, forever) = struck?;
        if !forever {
            self.armed.remove(at);
        }
        self.fired += 1;
        Some(kind)
    }
}
