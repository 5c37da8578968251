//! `kvs get`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use super::CommandResult;
use super::exit::Outcome;
use super::output::{self, KEY_NOT_FOUND};
use super::place::Place;

/// Print the value of a key
///
/// Takes no lock: it also answers while another process writes. Prints `Key not found` if it is not there, and ends with 0 all the same.
///
/// Examples:
///   kvs get user/7
///   kvs --dir /srv/store get -n picture > picture.png   the bytes of the value and no more
///   kvs get -e user/7 || echo missing
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct GetArgs {
    /// The key
    key: OsString,
    /// End with 1 if the key is not there
    #[arg(short, long)]
    exit_code: bool,
    /// Print no line end behind the value
    #[arg(short = 'n', long)]
    no_newline: bool,
}

/// Prints the value.
pub(crate) fn run(place: &Place, args: &GetArgs) -> CommandResult {
    let value = match place.read()? {
        Some(store) => store.get_bytes(args.key.as_bytes())?,
        None => None,
    };
    match value {
        Some(mut value) => {
            if !args.no_newline {
                value.push(b'\n');
            }
            output::print(&value)?;
            Ok(Outcome::Done)
        }
        None => {
            output::print(KEY_NOT_FOUND)?;
            Ok(if args.exit_code { Outcome::No } else { Outcome::Done })
        }
    }
}
