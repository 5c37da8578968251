//! `kvs dump`.

use std::io::Write;

use anyhow::Context;

use super::exit::Outcome;
use super::place::Place;
use super::{CommandResult, output};

/// Print all keys and values as lines of JSON, in no order
#[derive(Debug, clap::Args)]
pub(crate) struct DumpArgs {}

/// Prints them.
pub(crate) fn run(place: &Place, _args: &DumpArgs) -> CommandResult {
    if let Some(store) = place.open()? {
        let mut output = output::open();
        store.export(&mut output)?;
        output.flush().context(output::CANNOT_WRITE)?;
    }
    Ok(Outcome::Done)
}
