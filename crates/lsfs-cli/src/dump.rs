//! `lsfs dump`: the bytes of a file, field by field.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, bail};
use lsfs::Env;
use lsfs::dump::{Field, Part};
use serde::Serialize;

use crate::output::{self, Output};

/// Show the bytes of a file, field by field
///
/// Each field of docs/format.md with its position, bytes, name and meaning, and whether checksums fit. Damaged and
/// foreign bytes are shown too; nothing is locked or changed.
#[derive(Debug, clap::Args)]
pub(crate) struct DumpArgs {
    /// A file: a segment, manifest, state, mark, index, spare, live page
    file: PathBuf,
    /// Only this block; 0 is the file header
    #[arg(long, value_name = "N")]
    block: Option<u32>,
    /// One JSON object a line for each part of the file
    #[arg(long)]
    json: bool,
}

/// Dumps the file.
pub(crate) fn run(args: &DumpArgs) -> anyhow::Result<()> {
    let metadata =
        args.file.metadata().with_context(|| format!("could not look at {}", args.file.display()))?;
    if metadata.is_dir() {
        bail!("{} is a directory: dump one of its files, or `lsfs inspect` it", args.file.display());
    }
    let mut output = output::open()?;
    let mut printed = Ok(());
    let dumped = lsfs::dump::dump(&Env::default(), &args.file, args.block, |part| {
        printed = if args.json { print_json(&mut output, &part) } else { print(&mut output, &part) };
        if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let flushed = printed.and_then(|()| output.flush());
    dumped?;
    flushed.context(output::CANNOT_WRITE)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

fn print(output: &mut Output, part: &Part) -> std::io::Result<()> {
    writeln!(output, "{:>10}  {}, {} bytes", part.position, part.name, part.bytes)?;
    for field in &part.fields {
        let mut lines = field.bytes.chunks(16).map(hex);
        let first = lines.next().unwrap_or_default();
        writeln!(output, "{:>10}    {first:<48}  {}: {}", field.position, field.name, field.meaning)?;
        for (number, line) in (1u64..).zip(lines) {
            writeln!(output, "{:>10}    {line}", field.position + number * 16)?;
        }
    }
    part.notes.iter().try_for_each(|note| writeln!(output, "{:>10}    = {note}", ""))
}

/// A part as JSON.
#[derive(Serialize)]
struct PartLine<'a> {
    name: &'a str,
    position: u64,
    bytes: u64,
    fields: Vec<FieldLine<'a>>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct FieldLine<'a> {
    name: &'a str,
    position: u64,
    hex: String,
    meaning: &'a str,
}

impl<'a> FieldLine<'a> {
    fn of(field: &'a Field) -> FieldLine<'a> {
        FieldLine {
            name: field.name,
            position: field.position,
            hex: hex(&field.bytes),
            meaning: &field.meaning,
        }
    }
}

fn print_json(output: &mut Output, part: &Part) -> std::io::Result<()> {
    let fields = part.fields.iter().map(FieldLine::of).collect();
    let line =
        PartLine { name: &part.name, position: part.position, bytes: part.bytes, fields, notes: &part.notes };
    serde_json::to_writer(&mut *output, &line)?;
    output.write_all(b"\n")
}
