//! Repair: making a damaged directory usable again, explicitly, without dropping a record that verifies.
//!
//! [`plan`] looks and changes nothing. The [`RepairPlan`] says what is damaged, which records are lost, and what
//! [`RepairPlan::apply`] does, step by step; it does that and nothing else. What no longer verifies stays where it is,
//! its records stay named ([`RecordStream::lost_ranges`](crate::RecordStream::lost_ranges)), and writing goes on behind
//! them. A torn tail is no damage: the next open drops it, as ever.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let temporary = tempfile::tempdir()?;
//! # let dir = temporary.path().join("events");
//! # lsfs::RecordStream::open(&dir, lsfs::StreamOptions::default())?.append(1, b"kept")?;
//! use lsfs::repair::{RepairMode, plan};
//!
//! let plan = plan(&lsfs::Env::default(), &dir, RepairMode::Keep)?;
//! if !plan.steps.is_empty() {
//!     plan.apply()?;
//! }
//! let stream = lsfs::RecordStream::open(&dir, lsfs::StreamOptions::default())?;
//! assert_eq!(stream.lost_ranges(), []);
//! # Ok(())
//! # }
//! ```
//!
//! The order of steps, and why a crash between them is harmless, is in docs/durability.md, "Repair".

mod apply;
mod decide;
mod examine;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::codec::{FileHeader, Manifest};
use crate::data_stream::MARK_STEM;
use crate::directory::WriterLock;
use crate::env::Env;
use crate::error::{Corruption, Error, Result};
use crate::final_data::{STATE_STEM, State, StatePair, salvage};
use crate::io::ANY_UNIT_BYTES;
use crate::stream::Progress;
use crate::stream::look::is_written;

/// What becomes of the records behind those that are lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RepairMode {
    /// Every record that verifies is kept; those that are lost stay named, and their indexes are not given again.
    #[default]
    Keep,
    /// The stream ends before the first record that is lost. What is cut is copied before.
    Cut,
}

/// What a repair would do, and why.
#[derive(Clone, Debug)]
pub struct RepairPlan {
    env: Env,
    dir: PathBuf,
    mode: RepairMode,
    is_beyond_repair: bool,
    /// Everything that does not verify, in the order it was found; also what no step can mend.
    pub findings: Vec<Corruption>,
    /// What [`RepairPlan::apply`] does, in this order; empty if nothing is to be done.
    pub steps: Vec<RepairStep>,
    /// The records that are lost, in order, once it is done.
    pub lost: Vec<Range<u64>>,
    /// The records that [`RepairMode::Cut`] takes away, lost ones among them.
    pub cut: Option<Range<u64>>,
    /// The records that the stream holds once it is done, lost ones among them; `None` for final data.
    pub records: Option<Range<u64>>,
}

/// One step of a repair. Each is durable before the next begins, and can be done again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RepairStep {
    /// Copies bytes of a file, as they are, before anything changes.
    Copy {
        /// The file.
        from: PathBuf,
        /// Which of its bytes.
        bytes: Range<u64>,
        /// The new file.
        to: PathBuf,
    },
    /// Writes this plan, in words, beside the copies.
    Describe {
        /// The new file.
        to: PathBuf,
    },
    /// Writes the file header of a segment again; its blocks and the manifest say what it was.
    RewriteHeader {
        /// The segment.
        path: PathBuf,
        /// Its header.
        header: FileHeader,
    },
    /// Writes the tailer of a block again; it is a copy of what the block says of itself.
    MendTailer {
        /// The segment.
        path: PathBuf,
        /// The block.
        block: u32,
    },
    /// Makes an empty segment in which the stream goes on.
    BeginSegment {
        /// Its file.
        path: PathBuf,
        /// Its header but for the segment id, which is new.
        header: FileHeader,
    },
    /// Sets the manifest: the moment of the repair. A segment begun before gets its id.
    SetManifest {
        /// The manifest.
        manifest: Manifest,
        /// Both of its files are replaced, for they do not verify.
        anew: bool,
    },
    /// Rewrites the block in which a cut stream ends, without what lies behind the end.
    CleanEnd {
        /// The segment.
        path: PathBuf,
        /// Position behind the last record.
        position: u64,
    },
    /// Removes a segment that the manifest no longer names.
    Remove {
        /// Its file.
        path: PathBuf,
    },
    /// Replaces both files of final data, or of a data stream's marks, by one with this state.
    RewriteState {
        /// What the files are called before `.a` and `.b`.
        stem: &'static str,
        /// The state.
        state: State,
    },
}

/// Plans the repair of the record stream, data stream or final data in `dir`; changes nothing.
///
/// Reads every byte of it. Beside a writer it is an error: a stream that can be written is repaired while nobody writes.
///
/// # Errors
/// [`Error::Locked`] if a writer has it open; [`Error::NotFound`] if there is nothing of ours; [`Error::Corrupt`] if
/// nothing is left to repair it from; [`Error::Format`] if it is of a newer format.
pub fn plan(env: &Env, dir: impl AsRef<Path>, mode: RepairMode) -> Result<RepairPlan> {
    plan_with_progress(env, dir, mode, |_| {})
}

/// As [`plan`], telling how far the reading has come.
///
/// # Errors
/// As for [`plan`].
pub fn plan_with_progress(
    env: &Env,
    dir: impl AsRef<Path>,
    mode: RepairMode,
    progress: impl FnMut(Progress),
) -> Result<RepairPlan> {
    let dir = dir.as_ref();
    if is_written(env, dir)? {
        return Err(Error::Locked { path: dir.to_path_buf(), pid: None });
    }
    look(env, dir, mode, progress)
}

fn look(env: &Env, dir: &Path, mode: RepairMode, progress: impl FnMut(Progress)) -> Result<RepairPlan> {
    let mut plan = RepairPlan {
        env: env.clone(),
        dir: dir.to_path_buf(),
        mode,
        is_beyond_repair: false,
        findings: Vec::new(),
        steps: Vec::new(),
        lost: Vec::new(),
        cut: None,
        records: None,
    };
    if StatePair::exists(env, dir, STATE_STEM)? {
        plan.mend_state(STATE_STEM)?;
    } else {
        let mark = match StatePair::exists(env, dir, MARK_STEM)? {
            true => plan.mend_state(MARK_STEM)?,
            false => None,
        };
        decide::for_stream(&mut plan, mark.as_ref(), progress)?;
    }
    if plan.steps.iter().any(|step| !matches!(step, RepairStep::Copy { .. })) {
        plan.describe_after_copies();
    }
    Ok(plan)
}

impl RepairPlan {
    /// Does what the plan says. Holds the directory's lock meanwhile.
    ///
    /// A crash at any moment loses nothing; planning and applying again completes the repair.
    ///
    /// # Errors
    /// [`Error::Locked`] if a writer has the directory open, [`Error::PlanOutdated`] if it has changed since the plan was
    /// made; nothing is changed then.
    pub fn apply(&self) -> Result<()> {
        let _lock = WriterLock::acquire(&self.env, &self.dir)?;
        let now = look(&self.env, &self.dir, self.mode, |_| {})?;
        if now.steps != self.steps {
            return Err(Error::PlanOutdated { path: self.dir.clone() });
        }
        apply::steps(self)
    }

    /// Where the copies are put: a new directory inside of the repaired one.
    pub fn workplace(&self) -> PathBuf {
        let numbered = |number: u32| self.dir.join(format!("{WORKPLACE_PREFIX}{number:04}"));
        let free = (1..u32::MAX).find(|number| !self.env.disk.exists(&numbered(*number)));
        numbered(free.unwrap_or(u32::MAX))
    }

    /// Whether something was found for which there is no step: it must come from a copy.
    pub fn is_beyond_repair(&self) -> bool {
        self.is_beyond_repair || (self.steps.is_empty() && !self.findings.is_empty())
    }

    /// Bytes that the copies take.
    pub fn copied_bytes(&self) -> u64 {
        let bytes = self.steps.iter().map(|step| match step {
            RepairStep::Copy { bytes, .. } => bytes.end - bytes.start,
            _ => 0,
        });
        bytes.sum()
    }

    /// Plans to keep a pair of final data readable; answers the state that then counts.
    fn mend_state(&mut self, stem: &'static str) -> Result<Option<State>> {
        let left = salvage(&self.env, &self.dir, stem)?;
        if left.damage.is_empty() {
            return Ok(left.state);
        }
        self.findings.extend(left.damage.iter().cloned());
        let Some(state) = &left.state else {
            // Both are bad: there is nothing to write into them.
            self.is_beyond_repair = true;
            return Ok(None);
        };
        let was_lost = left.watermark > state.version + 1;
        let version = if was_lost { left.next_version() } else { state.version };
        let state = State { version, bytes: state.bytes.clone() };
        self.copy_pair(stem)?;
        self.steps.push(RepairStep::RewriteState { stem, state: state.clone() });
        Ok(Some(state))
    }

    /// Plans copies of both files of a pair, as far as they are there.
    fn copy_pair(&mut self, stem: &str) -> Result<()> {
        let entries = self.env.disk.list(&self.dir).map_err(|error| Error::io("list", &self.dir, error))?;
        for end in ["a", "b"] {
            let name = format!("{stem}.{end}");
            if let Some(entry) = entries.iter().find(|entry| entry.name == name) {
                self.copy(&name, 0..entry.len);
            }
        }
        Ok(())
    }

    /// Plans a copy of a part of one of the directory's files.
    fn copy(&mut self, name: &str, bytes: Range<u64>) {
        if bytes.is_empty() {
            return;
        }
        let to = self.workplace().join(format!("{name}.{}-{}", bytes.start, bytes.end));
        let step = RepairStep::Copy { from: self.dir.join(name), bytes, to };
        if !self.steps.contains(&step) {
            self.steps.push(step);
        }
    }

    /// Plans a copy of what is overwritten in place, in whole pages.
    fn copy_part(&mut self, name: &str, bytes: Range<u64>) {
        let page = ANY_UNIT_BYTES as u64;
        let (start, end) = (bytes.start / page * page, bytes.end.next_multiple_of(page));
        self.copy(name, start..end);
    }

    /// Copies come first, then the description: nothing changes before all of them are durable.
    fn describe_after_copies(&mut self) {
        let to = self.workplace().join("plan.txt");
        self.steps.sort_by_key(|step| !matches!(step, RepairStep::Copy { .. }));
        let copies = self.steps.iter().take_while(|step| matches!(step, RepairStep::Copy { .. })).count();
        self.steps.insert(copies, RepairStep::Describe { to });
    }
}

/// Directories with what repairs copied begin with this.
const WORKPLACE_PREFIX: &str = "repair-";

impl fmt::Display for RepairPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(
                f,
                "found: {} at byte {}: {}",
                finding.path.display(),
                finding.position,
                finding.reason
            )?;
        }
        for range in &self.lost {
            writeln!(f, "lost: records {} to {} (exclusive)", range.start, range.end)?;
        }
        if let Some(cut) = &self.cut {
            writeln!(f, "cut: records {} to {} (exclusive)", cut.start, cut.end)?;
        }
        self.steps.iter().try_for_each(|step| writeln!(f, "step: {step}"))?;
        match &self.records {
            Some(records) => writeln!(f, "then: records {} to {} (exclusive)", records.start, records.end),
            None => Ok(()),
        }
    }
}

impl fmt::Display for RepairStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RepairStep::Copy { from, bytes, to } => {
                let (from, to) = (from.display(), to.display());
                write!(f, "copy bytes {} to {} of {from} to {to}", bytes.start, bytes.end)
            }
            RepairStep::Describe { to } => write!(f, "write this plan to {}", to.display()),
            RepairStep::RewriteHeader { path, header } => {
                write!(
                    f,
                    "write the file header of {} again: segment {:#018x}",
                    path.display(),
                    header.segment_id
                )
            }
            RepairStep::MendTailer { path, block } => {
                write!(f, "write the tailer of block {block} of {} again", path.display())
            }
            RepairStep::BeginSegment { path, .. } => write!(f, "begin the segment {}", path.display()),
            RepairStep::SetManifest { manifest, anew } => {
                let active = manifest.active();
                let how = if *anew { "replace both manifest files" } else { "set the manifest" };
                write!(
                    f,
                    "{how}: epoch {}, {} segments, records {} to {} (exclusive), {} lost ranges",
                    manifest.epoch,
                    manifest.segments.len(),
                    manifest.first_index,
                    active.next_index,
                    manifest.lost.len()
                )
            }
            RepairStep::CleanEnd { path, position } => {
                write!(f, "end {} at byte {position}", path.display())
            }
            RepairStep::Remove { path } => write!(f, "remove {}", path.display()),
            RepairStep::RewriteState { stem, state } => {
                let (version, bytes) = (state.version, state.bytes.len());
                write!(f, "replace {stem}.a and {stem}.b by version {version}, {bytes} bytes")
            }
        }
    }
}
