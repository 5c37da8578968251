//! `kvs repair`.

use super::exit::Outcome;
use super::place::Place;
use super::{CommandResult, output};

/// Make the index anew from the log, leaving out what is damaged there
///
/// Prints what was left out. Keys whose last command was left out have the value before it, or none.
///
/// Example:
///   cp -a store copy && kvs --dir copy repair
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RepairArgs {}

/// Repairs.
pub(crate) fn run(place: &Place, _args: &RepairArgs) -> CommandResult {
    let store = place.repair()?;
    let report = store.open_report().clone();
    let keys = store.stats().keys;
    store.checkpoint()?;
    store.close()?;
    let left_out = report.left_out.iter().map(|(segment, positions)| {
        format!("left out: segment {segment}, bytes {} to {} (exclusive)\n", positions.start, positions.end)
    });
    let mut text: String = left_out.collect();
    text += &format!("{} commands read, {keys} keys\n", report.replayed);
    output::print(text.as_bytes())?;
    Ok(Outcome::Done)
}
