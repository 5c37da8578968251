//! A recorded run, and the disks a machine would find if power failed during it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::SimDisk;
use super::crash::CrashStyle;
use super::fault::OpKind;
use super::medium::{Effect, Medium, NameOp};

/// One operation of a recorded run.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) kind: OpKind,
    pub(super) path: Arc<Path>,
    pub(super) effect: Effect,
}

/// A recorded run of a [`SimDisk`], from which the disk after a power failure at any moment can be made.
///
/// The operations are counted from the start of the recording, failed ones included. *Crash point* `c` means
/// that power failed during operation `c`: the operations before it have returned, it has not, and none after
/// it began. So what a caller was told when [`SimDisk::trace_len`] was `n` binds the images of the crash
/// points from `n` on.
#[derive(Clone, Debug)]
pub struct Trace {
    inner: Arc<Recording>,
}

#[derive(Clone, Debug)]
pub(super) struct Recording {
    pub(super) base: Medium,
    /// The number of the first operation.
    pub(super) first: u64,
    pub(super) events: Vec<Event>,
    pub(super) capacity: u64,
}

impl Trace {
    pub(super) fn new(recording: Recording) -> Self {
        Trace { inner: Arc::new(recording) }
    }

    /// How many operations were recorded. The crash points are `0..=len()`; the last one is after all of
    /// them.
    pub fn len(&self) -> usize {
        self.inner.events.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.inner.events.is_empty()
    }

    /// What kind of operation is under way at this crash point; `None` at the last.
    pub fn kind(&self, crash_point: usize) -> Option<OpKind> {
        self.inner.events.get(crash_point).map(|event| event.kind)
    }

    /// The operation under way at this crash point, for messages.
    pub fn describe(&self, crash_point: usize) -> String {
        match self.inner.events.get(crash_point) {
            Some(event) => format!("op {crash_point}: {event}"),
            None => format!("op {crash_point}: (end of the trace)"),
        }
    }

    /// A walk over the crash points, for making many images.
    pub fn images(&self) -> CrashImages {
        CrashImages { trace: self.clone(), medium: self.inner.base.clone(), point: 0 }
    }

    /// The disk found after power failed at `crash_point`. For many of them [`Trace::images`] is faster: this
    /// replays the run from its start.
    ///
    /// # Panics
    /// If `crash_point > len()`.
    pub fn image(&self, crash_point: usize, style: CrashStyle, seed: u64) -> SimDisk {
        let mut images = self.images();
        images.seek(crash_point);
        images.image(style, seed)
    }
}

/// A walk over the crash points of a [`Trace`] in increasing order. It keeps the state of the medium between
/// the points, so an image costs little more than a pointer per page.
#[derive(Clone, Debug)]
pub struct CrashImages {
    trace: Trace,
    medium: Medium,
    point: usize,
}

impl CrashImages {
    /// The current crash point; 0 at first.
    pub fn crash_point(&self) -> usize {
        self.point
    }

    /// Goes to the next crash point; `false` if this is the last.
    pub fn advance(&mut self) -> bool {
        let Some(event) = self.trace.inner.events.get(self.point) else { return false };
        self.medium.apply(self.trace.inner.first + self.point as u64, &event.effect);
        self.point += 1;
        true
    }

    /// Goes to a crash point; going back starts again from the first.
    ///
    /// # Panics
    /// If the trace has no such crash point.
    pub fn seek(&mut self, crash_point: usize) {
        assert!(crash_point <= self.trace.len(), "crash point {crash_point} of {}", self.trace.len());
        if crash_point < self.point {
            *self = self.trace.images();
        }
        while self.point < crash_point {
            self.advance();
        }
    }

    /// How many changes could be lost here, the operation under way included. With none, all styles and seeds
    /// give the same files (shared pages apart), and one image is enough.
    pub fn unsynced(&self) -> usize {
        let unfinished = match self.trace.inner.events.get(self.point).map(|event| &event.effect) {
            None | Some(Effect::Nothing | Effect::Sync { .. } | Effect::SyncDir { .. }) => 0,
            Some(Effect::Damage { .. } | Effect::SyncFailed { write: None, .. }) => 0,
            Some(_) => 1,
        };
        self.medium.unsynced() + unfinished
    }

    /// The disk found after power failed here: nobody holds a lock, nothing is pending, operations are
    /// counted from zero, no faults are armed.
    pub fn image(&self, style: CrashStyle, seed: u64) -> SimDisk {
        let recording = &self.trace.inner;
        let effect = recording.events.get(self.point).map(|event| &event.effect);
        let medium = self.medium.after_crash(recording.first + self.point as u64, effect, style, seed);
        SimDisk::from_medium(medium, recording.capacity, seed)
    }

    /// The machine on which every process was killed here, and power did not fail: what was unsynced is seen by all,
    /// and still unsynced. The write under way got as far as the seed says; it is unsynced also if it was a durable
    /// one, for nobody waited for its end.
    pub fn killed(&self, seed: u64) -> SimDisk {
        let recording = &self.trace.inner;
        let number = recording.first + self.point as u64;
        let mut medium = self.medium.clone();
        medium.break_off(number, recording.events.get(self.point).map(|event| &event.effect), seed);
        SimDisk::from_medium(medium, recording.capacity, seed)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.path.display())?;
        match &self.effect {
            Effect::Nothing => write!(f, " (no effect)"),
            Effect::Write { patch, durable, .. } => {
                let how = if *durable { " durable" } else { "" };
                write!(f, " {}..{}{how}", patch.position, patch.end)
            }
            Effect::Release { range, .. } => write!(f, " {}..{}", range.start, range.end),
            Effect::SyncFailed { .. } => write!(f, " (failed)"),
            Effect::Allocate { len, .. } | Effect::SetLen { len, .. } => write!(f, " {len}"),
            Effect::Name(NameOp::Rename { to, .. }) => write!(f, " to {}", to.display()),
            Effect::Damage { damage, .. } => write!(f, " {damage:?}"),
            Effect::Name(_) | Effect::Sync { .. } | Effect::SyncDir { .. } | Effect::CreateDirs { .. } => {
                Ok(())
            }
        }
    }
}
