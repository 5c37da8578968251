//! The line that a writing command leaves on standard error when it is done.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::size::ByteSize;

/// Whether and how the summary is printed.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct SummaryArgs {
    /// No summary
    #[arg(long, short)]
    quiet: bool,
    /// The summary (on standard error) as one JSON object
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

impl SummaryArgs {
    /// Prints the summary on standard error.
    pub(crate) fn print(self, summary: &(impl Display + Serialize)) {
        if self.quiet {
            return;
        }
        let text = match self.json {
            true => serde_json::to_string(summary).unwrap_or_else(|error| error.to_string()),
            false => summary.to_string(),
        };
        // Without a standard error nobody misses the summary.
        let _closed = writeln!(io::stderr(), "{text}");
    }
}

/// Measures how long the work takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    pub(crate) fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    /// Seconds since the start, never zero.
    pub(crate) fn seconds(self) -> f64 {
        self.0.elapsed().max(Duration::from_micros(1)).as_secs_f64()
    }
}

/// "1.2 GiB in 3.45 s, 356 MiB/s".
pub(crate) fn bytes_in_time(bytes: u64, seconds: f64) -> String {
    let rate = ByteSize((bytes as f64 / seconds) as u64);
    format!("{} in {seconds:.2} s, {rate}/s", ByteSize(bytes))
}

/// "1 record", "2 records".
pub(crate) fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
