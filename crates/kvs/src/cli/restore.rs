//! `kvs restore`.

use std::path::PathBuf;

use super::backup::shown;
use super::exit::Outcome;
use super::place::Place;
use super::{CommandResult, output};

/// Make the store from a backup; its directory must be empty or not there
///
/// The backup is only read. The store is verified and durable when the command ends with 0; one that was cut short cannot
/// be opened, remove it and begin again.
///
/// Example:
///   kvs --dir /srv/store restore /backups/monday
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RestoreArgs {
    /// The backup
    backup: PathBuf,
    /// As one line of JSON
    #[arg(long)]
    json: bool,
}

/// Restores.
pub(crate) fn run(place: &Place, args: &RestoreArgs) -> CommandResult {
    let report = kvs::restore(&args.backup, place.dir())?;
    output::print(shown(&report, args.json).as_bytes())?;
    Ok(Outcome::Done)
}
