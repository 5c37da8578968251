//! `kvs rm`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use super::CommandResult;
use super::exit::Outcome;
use super::output::{self, KEY_NOT_FOUND};
use super::place::Place;

/// Remove a key
///
/// Prints nothing; or `Key not found`, and ends with 1, if it is not there.
///
/// Examples:
///   kvs rm user/7
///   kvs rm -- -key                                     a key that begins with a dash
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RmArgs {
    /// The key
    key: OsString,
}

/// Removes the key.
pub(crate) fn run(place: &Place, args: &RmArgs) -> CommandResult {
    if let Some(store) = place.open()? {
        let was_there = store.delete(args.key.as_bytes())?;
        store.close()?;
        if was_there {
            return Ok(Outcome::Done);
        }
    }
    output::print(KEY_NOT_FOUND)?;
    Ok(Outcome::No)
}
