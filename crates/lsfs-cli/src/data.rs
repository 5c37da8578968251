//! `lsfs data`: a stream of bytes with durable marks, from standard input and to standard output.

use std::fmt;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::Subcommand;
use indicatif::ProgressBar;
use lsfs::{DataReader, DataStream, DataStreamOptions, Error};
use serde::Serialize;

use crate::input::{CANNOT_READ, Input, Readiness, Wait, is_no_input_yet};
use crate::output;
use crate::place::{self, Place};
use crate::progress;
use crate::size::ByteSize;
use crate::stop::StopRequest;
use crate::stream_args::StreamArgs;
use crate::summary::{Stopwatch, SummaryArgs, bytes_in_time, counted};

const CHUNK_BYTES: usize = 1 << 20;

/// Write and read a data stream: bytes with durable marks
#[derive(Debug, clap::Args)]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    Write(WriteArgs),
    Read(ReadArgs),
}

/// Write standard input into a data stream
///
/// What was written is durable at each mark and at the end. After an interruption, give the same input again with
/// --resume: it continues behind the last mark.
///
/// Ctrl-C, SIGTERM and SIGHUP set a mark behind what was read and end with exit code 1, since the input is not complete.
/// A second signal ends the process at once.
#[derive(Debug, clap::Args)]
struct WriteArgs {
    /// The data stream's directory; created if it is missing
    dir: PathBuf,
    /// Continue an interrupted write: skip as much of the input as is already durable
    #[arg(long)]
    resume: bool,
    /// Write the input behind what is there
    #[arg(long, conflicts_with = "resume")]
    append: bool,
    /// Set a mark each time this much was written
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = parse_mark_every)]
    mark_every: ByteSize,
    #[command(flatten)]
    stream: StreamArgs,
    #[command(flatten)]
    summary: SummaryArgs,
}

/// Print the bytes of a data stream up to its last mark
#[derive(Debug, clap::Args)]
struct ReadArgs {
    /// The data stream's directory
    dir: PathBuf,
    /// Begin behind this many bytes
    #[arg(long, value_name = "SIZE", default_value = "0")]
    offset: ByteSize,
    /// Print at most this many bytes
    #[arg(long, value_name = "SIZE")]
    length: Option<ByteSize>,
}

fn parse_mark_every(text: &str) -> Result<ByteSize, String> {
    match text.parse()? {
        ByteSize(0) => Err("a mark needs at least one byte before it".to_string()),
        size => Ok(size),
    }
}

/// Writes or reads.
pub(crate) fn run(args: &DataArgs) -> anyhow::Result<()> {
    match &args.command {
        DataCommand::Write(args) => write(args),
        DataCommand::Read(args) => read(args),
    }
}

fn write(args: &WriteArgs) -> anyhow::Result<()> {
    place::refuse_other(&args.dir, Place::DataStream)?;
    let stop = StopRequest::install()?;
    let mut input = Input::open()?;
    let options =
        DataStreamOptions { compression: args.stream.options().compression, stream: args.stream.options() };
    let stream = DataStream::open(&args.dir, options)?;
    let present = stream.position();
    if args.resume {
        input.skip(present)?;
    } else if !args.append && present > 0 {
        let dir = args.dir.display();
        bail!(
            "{dir} already holds {present} bytes: use --resume if the input begins with them, \
             --append to write behind them"
        );
    }
    let total_bytes = input.remaining_bytes();
    let mut writing = Writing {
        stream,
        mark_every: args.mark_every.0,
        summary: Summary { skipped_bytes: if args.resume { present } else { 0 }, ..Summary::default() },
        bar: total_bytes.map_or_else(ProgressBar::hidden, |total| progress::bar("writing", total)),
    };
    let stopwatch = Stopwatch::start();
    let outcome = writing.copy(&mut input, &stop);
    // Also after an error of the input: what was read of it is kept.
    let marked = writing.mark_rest();
    writing.bar.finish_and_clear();
    let mut summary = writing.summary;
    summary.seconds = stopwatch.seconds();
    summary.total_bytes = writing.stream.last_mark().map_or(0, |mark| mark.byte_count);
    let closed = writing.stream.close();
    args.summary.print(&summary);
    outcome.and(marked).and_then(|()| Ok(closed?))?;
    ensure!(
        !stop.is_made(),
        "stopped by a signal before the end of the input; {} bytes are durable: continue with --resume",
        summary.total_bytes
    );
    Ok(())
}

struct Writing {
    stream: DataStream,
    mark_every: u64,
    summary: Summary,
    bar: ProgressBar,
}

impl Writing {
    fn copy(&mut self, input: &mut Input, stop: &StopRequest) -> anyhow::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        while input.readiness(stop, Wait::Forever)? == Readiness::Ready {
            let room = self.mark_every.saturating_sub(self.unmarked_bytes()).min(CHUNK_BYTES as u64) as usize;
            let count = match input.read(&mut chunk[..room]) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if is_no_input_yet(&error) => continue,
                Err(error) => return Err(error).context(CANNOT_READ),
            };
            self.stream.write_all(&chunk[..count])?;
            self.summary.bytes += count as u64;
            self.bar.inc(count as u64);
            if self.unmarked_bytes() >= self.mark_every {
                self.mark_rest()?;
            }
        }
        Ok(())
    }

    fn unmarked_bytes(&self) -> u64 {
        self.stream.position() - self.stream.last_mark().map_or(0, |mark| mark.byte_count)
    }

    fn mark_rest(&mut self) -> anyhow::Result<()> {
        if self.unmarked_bytes() > 0 || self.stream.last_mark().is_none() {
            self.stream.mark()?;
            self.summary.marks += 1;
        }
        Ok(())
    }
}

/// What the write came to.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Summary {
    /// Written by this run.
    bytes: u64,
    /// Of the input, because they were durable already.
    skipped_bytes: u64,
    /// In the data stream up to its last mark.
    total_bytes: u64,
    marks: u64,
    seconds: f64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, marks) = (bytes_in_time(self.bytes, self.seconds), counted(self.marks, "mark"));
        write!(f, "{bytes}, {marks}; {} bytes in all", self.total_bytes)?;
        match self.skipped_bytes {
            0 => Ok(()),
            skipped => write!(f, ", {skipped} of them were there before"),
        }
    }
}

fn read(args: &ReadArgs) -> anyhow::Result<()> {
    place::refuse_other(&args.dir, Place::DataStream)?;
    let mut reader = DataReader::open(&args.dir)?;
    let byte_count = reader.byte_count();
    ensure!(
        args.offset.0 <= byte_count,
        "offset {} is behind the end of {}, which holds {byte_count} bytes",
        args.offset.0,
        args.dir.display()
    );
    reader.seek(SeekFrom::Start(args.offset.0))?;
    let mut left = args.length.map_or(u64::MAX, |length| length.0).min(byte_count - args.offset.0);
    let mut output = output::open()?;
    let mut chunk = vec![0; CHUNK_BYTES];
    while left > 0 {
        let room = left.min(CHUNK_BYTES as u64) as usize;
        // What was read before an error is printed when the buffer goes away.
        let count = reader.read(&mut chunk[..room])?;
        if count == 0 {
            return Err(Error::OutOfRange { index: byte_count - left, held: 0..byte_count }.into());
        }
        output.write_all(&chunk[..count]).context(output::CANNOT_WRITE)?;
        left -= count as u64;
    }
    output.flush().context(output::CANNOT_WRITE)
}
