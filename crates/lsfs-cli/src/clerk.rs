//! `lsfs clerk` and `lsfs index`: build the indexes of streams, beside their writers.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use lsfs::{Clerk, ClerkReport, Env};
use serde::Serialize;

use crate::exit::DamageFound;
use crate::place::{self, Place};
use crate::report::Damage;
use crate::stop::StopRequest;
use crate::summary::{Stopwatch, SummaryArgs, bytes_in_time, counted};

/// How often the clerks are asked whether they are well.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Keep the indexes and statistics of streams, beside their writers
///
/// Follows each stream and writes, beside each segment, where its records begin (`.idx`) and what it holds (`.stats`).
/// Readers are faster with them and right without them: a clerk may be killed, restarted or never run. Takes no lock that
/// a writer or reader minds; one clerk for a stream at a time.
///
/// Ctrl-C, SIGTERM and SIGHUP end it in good order; the exit code is 0, or 3 if it met damage.
#[derive(Debug, clap::Args)]
pub(crate) struct ClerkArgs {
    /// The directories of the streams
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Index what is durable now, and end
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    summary: SummaryArgs,
}

/// Build the index and statistics of a stream anew
///
/// For when `lsfs verify --index` finds them wrong. What is there is removed first; nothing else is changed, and the
/// stream may be written and read meanwhile. Exit code 3 if the stream is damaged: then the records before the damage are
/// indexed.
#[derive(Debug, clap::Args)]
pub(crate) struct IndexArgs {
    /// The stream's directory
    dir: PathBuf,
    #[command(flatten)]
    summary: SummaryArgs,
}

/// Follows the streams, or brings their indexes up to date.
pub(crate) fn run(args: &ClerkArgs) -> anyhow::Result<()> {
    args.dirs.iter().try_for_each(|dir| refuse_no_stream(dir))?;
    if !args.once {
        return follow(args);
    }
    let mut damaged = Damaged::default();
    for dir in &args.dirs {
        let stopwatch = Stopwatch::start();
        let report = lsfs::run_once(&Env::default(), dir)?;
        args.summary.print(&damaged.note(Summary::of(dir, "indexed", &report, stopwatch)));
    }
    damaged.outcome()
}

/// Builds an index anew.
pub(crate) fn run_rebuild(args: &IndexArgs) -> anyhow::Result<()> {
    refuse_no_stream(&args.dir)?;
    let stopwatch = Stopwatch::start();
    let report = lsfs::rebuild(&Env::default(), &args.dir)?;
    let mut damaged = Damaged::default();
    args.summary.print(&damaged.note(Summary::of(&args.dir, "rebuilt", &report, stopwatch)));
    damaged.outcome()
}

fn refuse_no_stream(dir: &Path) -> anyhow::Result<()> {
    match place::look(dir)? {
        Place::RecordStream | Place::DataStream => Ok(()),
        Place::MappedLog => bail!("{} is a mapped log: it keeps its index itself", dir.display()),
        Place::FinalData => bail!("{} is final data: it has no records to index", dir.display()),
        Place::File => bail!("{} is a file: name the directory of its stream", dir.display()),
    }
}

/// A clerk at work on one directory.
struct Post<'a> {
    dir: &'a Path,
    clerk: Clerk,
    /// It has said that it caught up.
    is_following: bool,
}

fn follow(args: &ClerkArgs) -> anyhow::Result<()> {
    let stop = StopRequest::install()?;
    let stopwatch = Stopwatch::start();
    let start = |dir: &'_ PathBuf| Clerk::start(dir);
    let mut posts = Vec::new();
    for dir in &args.dirs {
        posts.push(Post { dir, clerk: start(dir)?, is_following: false });
    }
    while !stop.wait(LOOK_INTERVAL)? {
        for post in &mut posts {
            if let Some(failure) = post.clerk.failure() {
                return Err(failure.into());
            }
            let report = post.clerk.report();
            if !post.is_following && report.held.end > 0 && report.indexed_to == report.held.end {
                post.is_following = true;
                args.summary.print(&Summary::of(post.dir, "following", &report, stopwatch));
            }
        }
    }
    let mut damaged = Damaged::default();
    for post in posts {
        let report = post.clerk.stop()?;
        args.summary.print(&damaged.note(Summary::of(post.dir, "stopped", &report, stopwatch)));
    }
    damaged.outcome()
}

/// Which streams are damaged.
#[derive(Default)]
struct Damaged(Vec<String>);

impl Damaged {
    fn note<'a>(&mut self, summary: Summary<'a>) -> Summary<'a> {
        if !summary.damage.is_empty() {
            self.0.push(summary.path.display().to_string());
        }
        summary
    }

    fn outcome(self) -> anyhow::Result<()> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(DamageFound(format!("damage met in {}", self.0.join(", "))).into()),
        }
    }
}

/// What became of one stream's indexes.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    path: &'a Path,
    /// `indexed`, `rebuilt`, `following` (caught up) or `stopped`.
    event: &'static str,
    /// The records that the stream holds.
    first_index: u64,
    next_index: u64,
    /// Records below this index are indexed.
    indexed_to: u64,
    /// Records indexed by this run.
    records: u64,
    stored_bytes: u64,
    seconds: f64,
    sealed_segments: u64,
    begun_segments: u64,
    removed_files: u64,
    damage: Vec<Damage>,
}

impl Summary<'_> {
    fn of<'a>(dir: &'a Path, event: &'static str, report: &ClerkReport, stopwatch: Stopwatch) -> Summary<'a> {
        Summary {
            path: dir,
            event,
            first_index: report.held.start,
            next_index: report.held.end,
            indexed_to: report.indexed_to,
            records: report.records,
            stored_bytes: report.stored_bytes,
            seconds: stopwatch.seconds(),
            sealed_segments: report.sealed_segments,
            begun_segments: report.begun_segments,
            removed_files: report.removed_files,
            damage: report.damage.iter().map(Damage::from).collect(),
        }
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for damage in &self.damage {
            writeln!(f, "{damage}")?;
        }
        let (path, records) = (self.path.display(), counted(self.records, "record"));
        let bytes = bytes_in_time(self.stored_bytes, self.seconds);
        write!(f, "{path}: {}, {records}, {bytes}; indexed to {}", self.event, self.indexed_to)?;
        if self.indexed_to < self.next_index {
            write!(f, " of {}", self.next_index)?;
        }
        match self.removed_files {
            0 => Ok(()),
            count => write!(f, "; {} of dropped segments removed", counted(count, "file")),
        }
    }
}
