//! `kvs backup`.

use std::path::PathBuf;

use kvs::BackupReport;
use serde_json::json;

use super::exit::Outcome;
use super::place::Place;
use super::{CommandResult, output};

/// Copy the store, as it is at one moment, into an empty or new directory
///
/// Takes no lock: other processes go on writing. The copy is verified and durable when the command ends with 0; one that
/// was cut short cannot be opened, remove it and begin again. The copy is a store itself: `kvs --dir COPY get KEY` reads it.
///
/// Prints how many keys it has, and the position from which `kvs watch --from` has all later changes.
///
/// Examples:
///   kvs backup /backups/monday
///   kvs --dir /srv/store backup --json /backups/monday
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct BackupArgs {
    /// Where the copy is made
    target: PathBuf,
    /// As one line of JSON
    #[arg(long)]
    json: bool,
}

/// Copies.
pub(crate) fn run(place: &Place, args: &BackupArgs) -> CommandResult {
    let report = place.read_existing()?.backup(&args.target)?;
    output::print(shown(&report, args.json).as_bytes())?;
    Ok(Outcome::Done)
}

/// What was copied, in words or as JSON.
pub(crate) fn shown(report: &BackupReport, json: bool) -> String {
    let BackupReport { keys, log_bytes, position } = report;
    match json {
        true => json!({"keys": keys, "log_bytes": log_bytes, "position": position}).to_string() + "\n",
        false => format!("{keys} keys, {log_bytes} bytes, up to position {position}\n"),
    }
}
