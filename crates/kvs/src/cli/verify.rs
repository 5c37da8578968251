//! `kvs verify`.

use super::exit::Outcome;
use super::place::Place;
use super::{CommandResult, output};

/// Read everything and check it
///
/// Prints what is damaged, one line each, and ends with 4 if anything is.
///
/// Example:
///   kvs verify || echo damaged
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct VerifyArgs {}

/// Verifies.
pub(crate) fn run(place: &Place, _args: &VerifyArgs) -> CommandResult {
    let store = place.open_existing()?;
    let report = store.verify()?;
    let mut text: String = report.damage.iter().map(|damage| format!("{damage}\n")).collect();
    text += &format!(
        "{} commands, {} of them in use, {} damaged\n",
        report.commands,
        report.live,
        report.damage.len()
    );
    output::print(text.as_bytes())?;
    Ok(if report.damage.is_empty() { Outcome::Done } else { Outcome::Damaged })
}
