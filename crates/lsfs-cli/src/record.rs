//! `lsfs record`: lines of standard input become records.
//!
//! The engine writes whole buffers in the background while the next lines are read; what this module adds is when to
//! insist: after each record, when the input pauses, or at the end. The background writes are durable ones, at half a
//! MiB each, so that never more than about 1 MiB is pending whatever the mode.
//!
//! **Invariants.** An index is printed only after the engine called its record durable, in order and without gaps.
//! Before the command waits for input (unless `--sync none`), and before it ends for whatever reason, everything read so
//! far is durable and acknowledged.

use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use lsfs::codec::{FILE_HEADER_BYTES, FileHeader};
use lsfs::{Log, RecordStream, StreamOptions};
use serde::Serialize;

use crate::input::{CANNOT_READ, Input, Readiness, Wait};
use crate::lines::LineReader;
use crate::mapped;
use crate::output::{self, Output};
use crate::place::{self, Place};
use crate::size::ByteSize;
use crate::stop::StopRequest;
use crate::stream_args::StreamArgs;
use crate::summary::{Stopwatch, SummaryArgs, bytes_in_time, counted};

/// The engine's default, as one writes it.
const RECORD_LIMIT_DEFAULT: &str = "256MiB";

/// Record each line of standard input, durably
///
/// Appends to the record stream (or mapped log) in DIR and creates it if it is missing. Lines are bytes: only `\n` ends one, and a last
/// line without it is a record too (`lsfs cat` prints a `\n` after every record).
///
/// Ctrl-C, SIGTERM and SIGHUP end the recording in good order: what was recorded is made durable and acknowledged, a
/// line that was not complete is left out, and the exit code is 0. A second signal ends the process at once.
#[derive(Debug, clap::Args)]
pub(crate) struct RecordArgs {
    /// The stream's directory
    dir: PathBuf,
    /// How a new log keeps its records; a directory that holds one keeps its own [default: block]
    #[arg(long, value_enum)]
    store: Option<StoreArg>,
    /// Type code of the records, any 64-bit number
    #[arg(long = "type", value_name = "N", default_value_t = 0)]
    type_code: u64,
    /// When records are made durable
    #[arg(long, value_enum, default_value_t)]
    sync: SyncMode,
    /// Print the index of each record once it is durable, one a line
    #[arg(long)]
    ack: bool,
    /// Largest record of a new stream, at most 1 GiB; a stream that exists keeps its own limit
    #[arg(long, value_name = "SIZE", default_value = RECORD_LIMIT_DEFAULT)]
    record_limit: ByteSize,
    #[command(flatten)]
    stream: StreamArgs,
    #[command(flatten)]
    summary: SummaryArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StoreArg {
    /// A record stream: checksummed blocks, direct I/O
    Block,
    /// Plain frames in memory-mapped files, without checksums and type codes, for trusted directories
    Mmap,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum SyncMode {
    /// Each record before the next line is looked at
    Each,
    /// Whenever the input pauses or 1 MiB is pending
    #[default]
    Batch,
    /// Only at the end of the input; full buffers are written as they come
    None,
}

/// Records standard input until it ends or somebody stops the command.
pub(crate) fn run(args: &RecordArgs) -> anyhow::Result<()> {
    let store = store_of(args)?;
    let stop = StopRequest::install()?;
    let record_limit_bytes = u32::try_from(args.record_limit.0).unwrap_or(u32::MAX);
    let options = StreamOptions { record_limit_bytes, ..args.stream.options() };
    let input = Input::open()?;
    let (stream, limit_bytes) = match store {
        StoreArg::Block => {
            let stream = RecordStream::open(&args.dir, options)?;
            (Sink::Block(stream), record_limit_of(&args.dir).unwrap_or(record_limit_bytes))
        }
        StoreArg::Mmap => {
            let log = mapped::create(&args.dir, options.segment_bytes, record_limit_bytes)?;
            let durable = log.next_offset()?;
            (Sink::Mmap { log, durable }, record_limit_bytes)
        }
    };
    let acks =
        if args.ack { Some(Acks { output: output::open()?, next: stream.durable_index() }) } else { None };
    let mut recording = Recording {
        first_index: stream.durable_index(),
        stream,
        type_code: args.type_code,
        mode: args.sync,
        acks,
        records: 0,
        bytes: 0,
        pending_bytes: 0,
        stopwatch: Stopwatch::start(),
    };
    let outcome = recording.record_all(&mut LineReader::new(input, limit_bytes.into()), &stop);
    // Whatever ended it: what can be made durable is, and what is durable is acknowledged.
    let finished = recording.finish();
    args.summary.print(&recording.summary(stop.is_made()));
    outcome.and(finished).map_err(|error| recording.explain(error))
}

/// The store asked for, or the one that is there.
fn store_of(args: &RecordArgs) -> anyhow::Result<StoreArg> {
    let found = match place::look(&args.dir) {
        Ok(Place::MappedLog) => Some(StoreArg::Mmap),
        Ok(Place::RecordStream) => Some(StoreArg::Block),
        _ => None,
    };
    if let (Some(found), Some(wanted)) = (found, args.store)
        && found != wanted
    {
        let name = if found == StoreArg::Block { "block" } else { "mmap" };
        bail!("{} holds a log of the {name} store; record into another directory", args.dir.display());
    }
    if found.is_none() {
        place::refuse_other(&args.dir, Place::RecordStream)?;
    }
    Ok(found.or(args.store).unwrap_or(StoreArg::Block))
}

/// Where records go.
enum Sink {
    Block(RecordStream),
    Mmap {
        log: Log,
        /// Records below this offset are durable.
        durable: u64,
    },
}

impl Sink {
    fn append(&mut self, type_code: u64, line: &[u8]) -> lsfs::Result<()> {
        match self {
            Sink::Block(stream) => stream.append(type_code, line).map(drop),
            Sink::Mmap { log, durable } => log.append(type_code, line).map(|offset| *durable = offset + 1),
        }
    }

    fn append_buffered(&mut self, type_code: u64, line: &[u8]) -> lsfs::Result<()> {
        match self {
            Sink::Block(stream) => stream.append_buffered(type_code, line).map(drop),
            Sink::Mmap { log, .. } => log.append_buffered(type_code, line).map(drop),
        }
    }

    fn sync(&mut self) -> lsfs::Result<()> {
        match self {
            Sink::Block(stream) => stream.sync(),
            Sink::Mmap { log, durable } => {
                log.flush()?;
                *durable = log.next_offset()?;
                Ok(())
            }
        }
    }

    fn durable_index(&self) -> u64 {
        match self {
            Sink::Block(stream) => stream.durable_index(),
            Sink::Mmap { durable, .. } => *durable,
        }
    }

    fn close(&self) -> lsfs::Result<()> {
        match self {
            Sink::Block(stream) => stream.close(),
            Sink::Mmap { log, .. } => log.close(),
        }
    }
}

/// The record limit of the stream in `dir`, as its segments' headers have it.
fn record_limit_of(dir: &Path) -> Option<u32> {
    let header = |path: PathBuf| {
        let mut bytes = [0; FILE_HEADER_BYTES];
        std::fs::File::open(path).ok()?.read_exact(&mut bytes).ok()?;
        FileHeader::decode(&bytes).ok()
    };
    let paths = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut segments = paths.filter(|path| path.extension().is_some_and(|extension| extension == "seg"));
    segments.find_map(header).map(|header| header.record_limit_bytes)
}

struct Recording {
    stream: Sink,
    type_code: u64,
    mode: SyncMode,
    acks: Option<Acks>,
    first_index: u64,
    records: u64,
    bytes: u64,
    /// Bytes since the last look at what must be synced.
    pending_bytes: u64,
    stopwatch: Stopwatch,
}

/// A mapped log writes nothing by itself: so much is pending at most.
const PENDING_BYTES_MAX: u64 = 1 << 20;

impl Recording {
    /// Makes what is pending durable where the engine does not do so in the background.
    fn sync_mapped(&mut self) -> anyhow::Result<()> {
        self.pending_bytes = 0;
        if let Sink::Mmap { .. } = &self.stream {
            self.stream.sync()?;
        }
        Ok(())
    }

    fn record_all(&mut self, lines: &mut LineReader<Input>, stop: &StopRequest) -> anyhow::Result<()> {
        loop {
            self.record_what_is_read(lines, stop)?;
            if lines.is_at_end() || self.wait_for_input(lines.input(), stop)? == Readiness::Stopped {
                return Ok(());
            }
            lines.read_more().context(CANNOT_READ)?;
        }
    }

    fn record_what_is_read(
        &mut self,
        lines: &mut LineReader<Input>,
        stop: &StopRequest,
    ) -> anyhow::Result<()> {
        while !stop.is_made()
            && let Some(line) = lines.next_read()?
        {
            let appended = match self.mode {
                SyncMode::Each => self.stream.append(self.type_code, line),
                SyncMode::Batch | SyncMode::None => self.stream.append_buffered(self.type_code, line),
            };
            let bytes = line.len() as u64;
            appended.with_context(|| format!("line {}", lines.lines()))?;
            self.records += 1;
            self.bytes += bytes;
            self.pending_bytes += bytes;
            if self.mode == SyncMode::Batch && self.pending_bytes >= PENDING_BYTES_MAX {
                self.sync_mapped()?;
            }
            if self.mode == SyncMode::Each {
                self.acknowledge()?;
            }
        }
        self.acknowledge()
    }

    /// Answers [`Readiness::Ready`] or [`Readiness::Stopped`]; before it waits, it syncs if the mode says so.
    fn wait_for_input(&mut self, input: &Input, stop: &StopRequest) -> anyhow::Result<Readiness> {
        match input.readiness(stop, Wait::No)? {
            Readiness::Paused => {}
            now => return Ok(now),
        }
        if self.mode == SyncMode::Batch {
            self.stream.sync()?;
            self.acknowledge()?;
        }
        input.readiness(stop, Wait::Forever)
    }

    /// Prints what has become durable.
    fn acknowledge(&mut self) -> anyhow::Result<()> {
        match &mut self.acks {
            Some(acks) => acks.print_below(self.stream.durable_index()),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        let synced = self.stream.sync();
        let acknowledged = self.acknowledge();
        let closed = self.stream.close();
        synced?;
        closed?;
        acknowledged
    }

    fn summary(&self, stopped: bool) -> Summary {
        let durable_index = self.stream.durable_index();
        Summary {
            records: self.records,
            bytes: self.bytes,
            seconds: self.stopwatch.seconds(),
            first_index: self.first_index,
            durable_index,
            lost_records: (self.first_index + self.records).saturating_sub(durable_index),
            stopped,
        }
    }

    /// Adds what is safe to an error of the engine.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let durable = self.stream.durable_index();
        match error.is::<lsfs::Error>() {
            true => error.context(format!("records below {durable} are durable, recording ended")),
            false => error,
        }
    }
}

/// Prints indexes of durable records.
struct Acks {
    output: Output,
    next: u64,
}

impl Acks {
    fn print_below(&mut self, durable_index: u64) -> anyhow::Result<()> {
        if self.next == durable_index {
            return Ok(());
        }
        let mut indexes = self.next..durable_index;
        self.next = durable_index;
        let printed = indexes.try_for_each(|index| writeln!(self.output, "{index}"));
        // Not a cause of its own: here a closed pipe is an error, since somebody relies on the acknowledgements.
        printed
            .and_then(|()| self.output.flush())
            .map_err(|error| anyhow!("could not print acknowledgements to standard output: {error}"))
    }
}

/// What the recording came to.
#[derive(Debug, Serialize)]
struct Summary {
    records: u64,
    bytes: u64,
    seconds: f64,
    /// Index of the first record of this run.
    first_index: u64,
    /// Records below this index are durable.
    durable_index: u64,
    /// Records that were read and not made durable; there are some only after an error.
    lost_records: u64,
    /// A signal ended it, not the end of the input.
    stopped: bool,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.records as f64 / self.seconds;
        let (records, bytes) = (counted(self.records, "record"), bytes_in_time(self.bytes, self.seconds));
        write!(f, "{records}, {bytes}, {rate:.0} records/s; next index {}", self.durable_index)?;
        if self.lost_records > 0 {
            write!(f, "; {} not durable", counted(self.lost_records, "record"))?;
        }
        if self.stopped { write!(f, "; stopped by a signal") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_limit_is_the_engines() {
        let ByteSize(bytes) = RECORD_LIMIT_DEFAULT.parse().unwrap();
        assert_eq!(bytes, u64::from(StreamOptions::default().record_limit_bytes));
    }
}
