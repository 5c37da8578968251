//! `lsfs cat`: prints records.

use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lsfs::{Error, Log, Reader};
use serde::Serialize;

use crate::mapped;
use crate::output::{self, Output};
use crate::place::{self, Place};

/// Print records, one a line
///
/// Reads beside a writer, on a read-only file system, and what is intact of a damaged stream; prints durable records
/// only. A payload that holds `\n` takes several lines; --json keeps them apart.
#[derive(Debug, clap::Args)]
pub(crate) struct CatArgs {
    /// The stream's directory
    dir: PathBuf,
    /// Index of the first record printed [default: the oldest; with --reverse the newest]
    #[arg(long, value_name = "N")]
    from: Option<u64>,
    /// Print at most this many records
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    count: u64,
    /// From the newest to the oldest
    #[arg(long)]
    reverse: bool,
    /// Wait for new records at the end, until stopped
    #[arg(long, short, conflicts_with = "reverse")]
    follow: bool,
    /// One JSON object a line: index, type, and payload, or payload_base64 if it is not UTF-8
    #[arg(long)]
    json: bool,
}

/// Prints the records asked for.
pub(crate) fn run(args: &CatArgs) -> anyhow::Result<()> {
    if matches!(place::look(&args.dir), Ok(Place::MappedLog)) {
        return print_mapped(args);
    }
    place::refuse_other(&args.dir, Place::RecordStream)?;
    let reader = Reader::open(&args.dir)?;
    let held = reader.bounds()?;
    let mut printer = Printer { output: output::open()?, json: args.json, left: args.count };
    let printed = match (args.follow, args.reverse) {
        (true, _) => follow(&reader, args.from.unwrap_or(held.start), &mut printer),
        (false, false) => forward(&reader, args.from, held, &mut printer),
        (false, true) => backward(&reader, args.from, held, &mut printer),
    };
    // What was read before an error is printed before it is said.
    let flushed = printer.output.flush().context(output::CANNOT_WRITE);
    printed.and(flushed)
}

/// As for a stream; records are printed as soon as they are appended, also before they are durable.
fn print_mapped(args: &CatArgs) -> anyhow::Result<()> {
    let log = mapped::open(&args.dir)?;
    let mut printer = Printer { output: output::open()?, json: args.json, left: args.count };
    let printed = match args.reverse {
        true => mapped::each_backward(&log, args.from, |record| {
            if printer.left > 0 {
                printer.print(record.index, record.type_code, &record.payload)?;
            }
            Ok(printer.left > 0)
        }),
        false => print_mapped_forward(&log, args, &mut printer),
    };
    let flushed = printer.output.flush().context(output::CANNOT_WRITE);
    printed.and(flushed)
}

fn print_mapped_forward(log: &Log, args: &CatArgs, printer: &mut Printer) -> anyhow::Result<()> {
    let mut records = mapped::records_from(log, args.from)?;
    let mut pause = PAUSE_MIN;
    while printer.left > 0 {
        if let Some(record) = records.next_record()? {
            printer.print(record.index, record.type_code, &record.payload)?;
            pause = PAUSE_MIN;
            continue;
        }
        if !args.follow {
            break;
        }
        printer.output.flush().context(output::CANNOT_WRITE)?;
        if !output::sleep_while_read(&printer.output, pause).context(output::CANNOT_WRITE)? {
            break;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok(())
}

fn forward(
    reader: &Reader,
    from: Option<u64>,
    held: Range<u64>,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    let from = from.unwrap_or(held.start);
    if from > held.end {
        return Err(Error::OutOfRange { index: from, held }.into());
    }
    let mut cursor = reader.iter(from..)?;
    while printer.left > 0
        && let Some(record) = cursor.next_record()?
    {
        printer.print(record.index, record.type_code, &record.payload)?;
    }
    Ok(())
}

fn backward(
    reader: &Reader,
    from: Option<u64>,
    held: Range<u64>,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    if let Some(index) = from
        && !held.contains(&index)
    {
        return Err(Error::OutOfRange { index, held }.into());
    }
    let mut cursor = match from {
        Some(from) => reader.iter_reverse(..=from)?,
        None => reader.iter_reverse(..)?,
    };
    while printer.left > 0
        && let Some(record) = cursor.next_record()?
    {
        printer.print(record.index, record.type_code, &record.payload)?;
    }
    Ok(())
}

/// The first pause after a record is short, so that a steady stream is seen at once; an idle one costs little.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// How often a segment may go away under the reader without a record in between.
const REOPENS_MAX: u32 = 20;

fn follow(reader: &Reader, from: u64, printer: &mut Printer) -> anyhow::Result<()> {
    let mut cursor = reader.follow(from);
    let (mut pause, mut reopens) = (PAUSE_MIN, 0);
    while printer.left > 0 {
        let next = match cursor.next_record() {
            Ok(Some(record)) => {
                printer.print(record.index, record.type_code, &record.payload)?;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        match next {
            Ok(true) => (pause, reopens) = (PAUSE_MIN, 0),
            Ok(false) => {
                printer.output.flush().context(output::CANNOT_WRITE)?;
                if !output::sleep_while_read(&printer.output, pause).context(output::CANNOT_WRITE)? {
                    return Ok(());
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
            // A writer came back and replaced the segment; the record is elsewhere now, or the next look says why not.
            Err(Error::Gone { .. }) if reopens < REOPENS_MAX => {
                reopens += 1;
                cursor = reader.follow(cursor.position());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

struct Printer {
    output: Output,
    json: bool,
    /// Records that may still be printed.
    left: u64,
}

/// A record as JSON.
#[derive(Serialize)]
struct RecordLine<'a> {
    index: u64,
    #[serde(rename = "type")]
    type_code: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl Printer {
    fn print(&mut self, index: u64, type_code: u64, payload: &[u8]) -> anyhow::Result<()> {
        self.left -= 1;
        let written = if self.json {
            self.write_json(index, type_code, payload)
        } else {
            self.output.write_all(payload).and_then(|()| self.output.write_all(b"\n"))
        };
        written.context(output::CANNOT_WRITE)
    }

    fn write_json(&mut self, index: u64, type_code: u64, payload: &[u8]) -> std::io::Result<()> {
        let text = std::str::from_utf8(payload).ok();
        let payload_base64 = text.is_none().then(|| STANDARD.encode(payload));
        serde_json::to_writer(
            &mut self.output,
            &RecordLine { index, type_code, payload: text, payload_base64 },
        )?;
        self.output.write_all(b"\n")
    }
}
