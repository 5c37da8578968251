//! `lsfs truncate` and `lsfs purge`: drop the newest or the oldest records of a stream.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context;
use lsfs::{Env, Error, Reader, RecordStream, StreamOptions};
use serde::Serialize;

use crate::output;
use crate::place::{self, Place};
use crate::report::records_in_words;
use crate::size::ByteSize;

/// Drop the newest records: all behind a given one
///
/// They are gone for good when the command ends; the next record gets the index behind the last one kept. Needs the
/// stream for itself.
#[derive(Debug, clap::Args)]
pub(crate) struct TruncateArgs {
    /// The stream's directory
    dir: PathBuf,
    /// Index of the last record to keep
    #[arg(long, value_name = "N")]
    after: u64,
    #[command(flatten)]
    how: HowArgs,
}

/// Drop the oldest records: all before a given one
///
/// They are gone for good when the command ends; space comes back in whole segments. Needs the stream for itself.
#[derive(Debug, clap::Args)]
pub(crate) struct PurgeArgs {
    /// The stream's directory
    dir: PathBuf,
    /// Index of the oldest record to keep; the next index of the stream drops all
    #[arg(long, value_name = "N")]
    before: u64,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct HowArgs {
    /// Only say what would go
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// What went as one JSON object
    #[arg(long)]
    json: bool,
}

/// Drops the newest records.
pub(crate) fn run_truncate(args: &TruncateArgs) -> anyhow::Result<()> {
    let index = args.after;
    drop_records(
        &args.dir,
        args.how,
        |held| match held.contains(&index) {
            true => Ok(index + 1..held.end),
            false => Err(Error::OutOfRange { index, held: held.clone() }),
        },
        |stream| stream.truncate_after(index),
    )
}

/// Drops the oldest records.
pub(crate) fn run_purge(args: &PurgeArgs) -> anyhow::Result<()> {
    let index = args.before;
    drop_records(
        &args.dir,
        args.how,
        |held| match index <= held.end {
            true => Ok(held.start..index.max(held.start)),
            false => Err(Error::OutOfRange { index, held: held.clone() }),
        },
        |stream| stream.purge_before(index),
    )
}

fn drop_records(
    dir: &Path,
    how: HowArgs,
    dropped: impl FnOnce(&Range<u64>) -> lsfs::Result<Range<u64>>,
    act: impl FnOnce(&RecordStream) -> lsfs::Result<()>,
) -> anyhow::Result<()> {
    place::refuse_other(dir, Place::RecordStream)?;
    let summary = if how.dry_run {
        if let Some(writer) = place::writer_of(dir).context("could not look at the lock")? {
            return Err(Error::Locked { path: dir.to_path_buf(), pid: writer.pid }.into());
        }
        let held = Reader::open(dir)?.bounds()?;
        Summary::of(dir, &held, &dropped(&held)?, true, 0)
    } else {
        let stream = RecordStream::open(dir, StreamOptions { create: false, ..StreamOptions::default() })?;
        let held = stream.first_index()..stream.next_index();
        let dropped = dropped(&held)?;
        let before = allocated_bytes(dir)?;
        act(&stream)?;
        stream.close()?;
        let freed = before.saturating_sub(allocated_bytes(dir)?);
        Summary::of(dir, &held, &dropped, false, freed)
    };
    match how.json {
        true => output::print_json(&summary),
        false => output::print(summary.to_string().as_bytes()),
    }
}

fn allocated_bytes(dir: &Path) -> anyhow::Result<u64> {
    let entries =
        Env::default().disk.list(dir).with_context(|| format!("could not list {}", dir.display()))?;
    Ok(entries.iter().map(|entry| entry.allocated).sum())
}

/// What went.
#[derive(Debug, Serialize)]
struct Summary {
    path: PathBuf,
    /// The records that went: the first of them, and the index after the last.
    dropped_first_index: u64,
    dropped_next_index: u64,
    /// The records that are left.
    first_index: u64,
    next_index: u64,
    /// Bytes that the directory takes less.
    freed_bytes: u64,
    dry_run: bool,
}

impl Summary {
    fn of(dir: &Path, held: &Range<u64>, dropped: &Range<u64>, dry_run: bool, freed_bytes: u64) -> Summary {
        let kept = match dropped.end == held.end {
            // Behind the last kept record, or everything.
            true if dropped.start > held.start => held.start..dropped.start,
            _ => dropped.end..held.end,
        };
        Summary {
            path: dir.to_path_buf(),
            dropped_first_index: dropped.start,
            dropped_next_index: dropped.end,
            first_index: kept.start,
            next_index: kept.end,
            freed_bytes,
            dry_run,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gone = records_in_words(self.dropped_first_index, self.dropped_next_index);
        let kept = records_in_words(self.first_index, self.next_index);
        match (self.dry_run, self.dropped_first_index == self.dropped_next_index) {
            (_, true) => writeln!(f, "{}: nothing to drop; it holds {kept}", self.path.display()),
            (true, _) => writeln!(f, "{}: {gone} would go, {kept} would stay", self.path.display()),
            (false, _) => {
                let freed = ByteSize(self.freed_bytes);
                writeln!(f, "{}: {gone} gone, {kept} left; {freed} less in use", self.path.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_what_went() {
        let kept = |held: Range<u64>, dropped: Range<u64>| {
            let summary = Summary::of(Path::new("d"), &held, &dropped, true, 0);
            summary.first_index..summary.next_index
        };
        assert_eq!(kept(3..10, 8..10), 3..8, "truncated");
        assert_eq!(kept(3..10, 3..6), 6..10, "purged");
        assert_eq!(kept(3..10, 3..10), 10..10, "purged whole");
        assert_eq!(kept(3..10, 10..10), 3..10, "nothing behind the last");
        assert_eq!(kept(3..10, 3..3), 3..10, "nothing before the first");
    }
}
