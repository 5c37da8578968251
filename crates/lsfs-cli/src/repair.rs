//! `lsfs repair`: makes a damaged directory usable again, after it has said how.

use std::fmt;
use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use lsfs::repair::{RepairMode, RepairPlan, plan_with_progress};
use lsfs::{Env, Error};
use serde::Serialize;

use crate::exit::DamageFound;
use crate::output;
use crate::place::{self, Place};
use crate::progress;
use crate::report::{Damage, records_in_words};
use crate::size::ByteSize;
use crate::summary::counted;

/// Make a damaged stream or state usable again, after saying how
///
/// Reads everything, says what is damaged, which records are lost and what would be done; then asks, or does it with
/// --yes, or ends with exit code 3. Every record that verifies is kept, at its index; lost ones stay named. What is
/// changed is copied before, to a new directory `repair-NNNN` inside of DIR. Interrupt it when you like: the next run
/// completes it. A torn end is no damage: the next writer drops it.
///
/// Exit codes: 0 in order, or repaired; 1 error; 3 damage that is not repaired.
#[derive(Debug, clap::Args)]
pub(crate) struct RepairArgs {
    /// The directory of a record stream, a data stream or a state
    dir: PathBuf,
    /// Do it without asking
    #[arg(long, short)]
    yes: bool,
    /// Only say what would be done, and do not ask
    #[arg(long, short = 'n', conflicts_with = "yes")]
    dry_run: bool,
    /// End the stream before the first lost record; all records behind it go, after they were copied
    #[arg(long)]
    cut: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Plans, says, and does it if it is asked for.
pub(crate) fn run(args: &RepairArgs) -> anyhow::Result<()> {
    let dir = &args.dir;
    if place::look(dir)? == Place::File {
        bail!("{} is a file: repair its directory", dir.display());
    }
    if let Some(writer) = place::writer_of(dir).context("could not look at the lock")? {
        return Err(Error::Locked { path: dir.clone(), pid: writer.pid }.into());
    }
    let mode = if args.cut { RepairMode::Cut } else { RepairMode::Keep };
    let bar = progress::bar("reading", 0);
    let planned = plan_with_progress(&Env::default(), dir, mode, |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
    });
    bar.finish_and_clear();
    let plan = planned?;
    let mut report = RepairReport::of(dir, &plan);
    if !args.json {
        output::print(report.to_string().as_bytes())?;
    }
    let is_wanted = !plan.steps.is_empty() && !args.dry_run && (args.yes || (!args.json && ask(dir)?));
    if is_wanted {
        plan.apply()?;
        report.applied = true;
    }
    if args.json {
        output::print_json(&report)?;
    } else if is_wanted {
        output::print(report.outcome().as_bytes())?;
    }
    match (report.damage.is_empty(), is_wanted) {
        (true, _) => Ok(()),
        (false, true) if !report.is_beyond_repair => Ok(()),
        (false, true) => Err(DamageFound(format!("{} cannot be repaired in full", dir.display())).into()),
        (false, false) if plan.steps.is_empty() => {
            let message =
                format!("{} is damaged, and nothing can be done here: restore it from a copy", dir.display());
            Err(DamageFound(message).into())
        }
        (false, false) => {
            let message =
                format!("{} is damaged and not repaired; --yes does what is said above", dir.display());
            Err(DamageFound(message).into())
        }
    }
}

/// Asks whether to do it; without a terminal the answer is no.
fn ask(dir: &Path) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(false);
    }
    const CANNOT_ASK: &str = "could not ask";
    write!(io::stderr(), "Repair {} like this? [y/N] ", dir.display()).context(CANNOT_ASK)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context(CANNOT_ASK)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A plan in the words of the command.
#[derive(Debug, Serialize)]
struct RepairReport {
    path: PathBuf,
    /// What does not verify and is not yet named lost.
    damage: Vec<Damage>,
    /// What is done, in order.
    steps: Vec<String>,
    /// Records that are lost once it is done.
    lost: Vec<Records>,
    /// Records that --cut takes away, lost ones among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<Records>,
    /// Records of the stream once it is done, lost ones among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<Records>,
    /// Where copies of what is changed are put.
    #[serde(skip_serializing_if = "Option::is_none")]
    copies_in: Option<PathBuf>,
    copied_bytes: u64,
    /// Damage is found for which no step is known.
    is_beyond_repair: bool,
    applied: bool,
}

/// A range of records.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Records {
    first_index: u64,
    next_index: u64,
}

impl From<&Range<u64>> for Records {
    fn from(range: &Range<u64>) -> Records {
        Records { first_index: range.start, next_index: range.end }
    }
}

impl fmt::Display for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&records_in_words(self.first_index, self.next_index))
    }
}

impl RepairReport {
    fn of(dir: &Path, plan: &RepairPlan) -> RepairReport {
        RepairReport {
            path: dir.to_path_buf(),
            damage: plan.findings.iter().map(Damage::from).collect(),
            steps: plan.steps.iter().map(ToString::to_string).collect(),
            lost: plan.lost.iter().map(Records::from).collect(),
            cut: plan.cut.as_ref().map(Records::from),
            records: plan.records.as_ref().map(Records::from),
            copies_in: (!plan.steps.is_empty()).then(|| plan.workplace()),
            copied_bytes: plan.copied_bytes(),
            is_beyond_repair: plan.is_beyond_repair(),
            applied: false,
        }
    }

    fn outcome(&self) -> String {
        let copies = self.copies_in.as_deref().unwrap_or(Path::new("")).display();
        format!("{}: repaired; copies of what was changed are in {copies}\n", self.path.display())
    }
}

impl fmt::Display for RepairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for damage in &self.damage {
            writeln!(f, "{damage}")?;
        }
        for lost in &self.lost {
            writeln!(f, "lost: {lost}")?;
        }
        if let Some(cut) = &self.cut {
            writeln!(f, "cut: {cut}")?;
        }
        let path = self.path.display();
        if self.steps.is_empty() {
            return match self.damage.len() as u64 {
                0 => writeln!(f, "{path}: nothing to repair"),
                count => writeln!(f, "{path}: damaged in {}; nothing can be done", counted(count, "place")),
            };
        }
        writeln!(f, "{path}: {} would do it", counted(self.steps.len() as u64, "step"))?;
        for (number, step) in (1..).zip(&self.steps) {
            writeln!(f, "  {number}. {step}")?;
        }
        match &self.records {
            Some(records) => {
                writeln!(f, "then it holds {records}; copies take {}", ByteSize(self.copied_bytes))
            }
            None => writeln!(f, "copies take {}", ByteSize(self.copied_bytes)),
        }
    }
}
