//! `kvs dump`.

use std::io::Write;

use anyhow::Context;

use super::exit::Outcome;
use super::place::Place;
use super::{CommandResult, output};

/// Print all keys and values as lines of JSON, in the order of the keys
///
/// Takes no lock: it also answers while another process writes, and prints the store as it was at one moment. If the writer
/// gives back space that this needs, it ends with 3: start it again.
///
/// Examples:
///   kvs dump > store.jsonl
///   kvs dump | jq -r .key
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DumpArgs {}

/// Prints them.
pub(crate) fn run(place: &Place, _args: &DumpArgs) -> CommandResult {
    if let Some(store) = place.read()? {
        let mut output = output::open();
        store.snapshot()?.export(&mut output)?;
        output.flush().context(output::CANNOT_WRITE)?;
    }
    Ok(Outcome::Done)
}
