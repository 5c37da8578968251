//! `lsfs state`: a complete state, replaced as a whole.

use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use lsfs::{FinalData, FinalDataOptions};
use serde::Serialize;

use crate::input::CANNOT_READ;
use crate::output;
use crate::place::{self, Place};
use crate::summary::SummaryArgs;

/// Set and get a state: final data, replaced as a whole
#[derive(Debug, clap::Args)]
pub(crate) struct StateArgs {
    #[command(subcommand)]
    command: StateCommand,
}

#[derive(Debug, Subcommand)]
enum StateCommand {
    Set(SetArgs),
    Get(GetArgs),
}

/// Replace the state by standard input, durably
///
/// Whenever it is interrupted, the state is either the old or the new one.
#[derive(Debug, clap::Args)]
struct SetArgs {
    /// The state's directory; created if it is missing
    dir: PathBuf,
    #[command(flatten)]
    summary: SummaryArgs,
}

/// Print the latest state, byte for byte
#[derive(Debug, clap::Args)]
struct GetArgs {
    /// The state's directory
    dir: PathBuf,
    /// One JSON object: version and state, or state_base64 if it is not UTF-8
    #[arg(long)]
    json: bool,
}

/// Sets or gets.
pub(crate) fn run(args: &StateArgs) -> anyhow::Result<()> {
    match &args.command {
        StateCommand::Set(args) => set(args),
        StateCommand::Get(args) => get(args),
    }
}

fn set(args: &SetArgs) -> anyhow::Result<()> {
    place::refuse_other(&args.dir, Place::FinalData)?;
    let options = FinalDataOptions::default();
    let limit_bytes = u64::from(options.state_limit_bytes);
    let mut bytes = Vec::new();
    io::stdin().lock().take(limit_bytes + 1).read_to_end(&mut bytes).context(CANNOT_READ)?;
    ensure!(bytes.len() as u64 <= limit_bytes, "the state is over the limit of {limit_bytes} bytes");
    let data = FinalData::open(&args.dir, options)?;
    let version = data.set(&bytes)?;
    data.close()?;
    args.summary.print(&Summary { version, bytes: bytes.len() as u64 });
    Ok(())
}

/// What was set.
#[derive(Debug, Serialize)]
struct Summary {
    version: u64,
    bytes: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "state version {}, {} bytes", self.version, self.bytes)
    }
}

/// A state as JSON.
#[derive(Serialize)]
struct StateLine<'a> {
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_base64: Option<String>,
}

fn get(args: &GetArgs) -> anyhow::Result<()> {
    place::refuse_other(&args.dir, Place::FinalData)?;
    let Some(state) = FinalData::read(&args.dir)? else {
        // Says what is there instead, if it is not final data in which nothing was set yet.
        place::look(&args.dir)?;
        bail!("no state was ever set in {}", args.dir.display());
    };
    if !args.json {
        return output::print(&state.bytes);
    }
    let text = std::str::from_utf8(&state.bytes).ok();
    let state_base64 = text.is_none().then(|| STANDARD.encode(&state.bytes));
    output::print_json(&StateLine { version: state.version, state: text, state_base64 })
}
