//! `kvs cas`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use kvs::{Compression, Swap};

use super::CommandResult;
use super::exit::Outcome;
use super::output::{self, KEY_NOT_FOUND};
use super::place::Place;

/// Change a key only if its value is as expected
///
/// Prints nothing if that was so. Otherwise prints the key's value (or `Key not found`), and ends with 1.
///
/// Examples:
///   kvs cas counter --expect 7 --set 8
///   kvs cas lock --expect-missing --set me || echo taken
///   kvs cas lock --expect me --remove
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
#[command(group = clap::ArgGroup::new("expected").required(true))]
#[command(group = clap::ArgGroup::new("new").required(true))]
pub(crate) struct CasArgs {
    /// The key
    key: OsString,
    /// The value that the key must have
    #[arg(long, value_name = "VALUE", group = "expected", allow_hyphen_values = true)]
    expect: Option<OsString>,
    /// The key must not be there
    #[arg(long, group = "expected")]
    expect_missing: bool,
    /// The value that it gets
    #[arg(long, value_name = "VALUE", group = "new", allow_hyphen_values = true)]
    set: Option<OsString>,
    /// The key is removed
    #[arg(long, group = "new")]
    rm: bool,
}

/// Changes the key.
pub(crate) fn run(place: &Place, args: &CasArgs) -> CommandResult {
    let store = place.create(Compression::None)?;
    let (expected, new) = (args.expect.as_deref(), args.set.as_deref());
    let swap = store.compare_and_swap(
        args.key.as_bytes(),
        expected.map(OsStrExt::as_bytes),
        new.map(OsStrExt::as_bytes),
    )?;
    store.close()?;
    match swap {
        Swap::Done => return Ok(Outcome::Done),
        Swap::Differs { current: Some(mut current) } => {
            current.push(b'\n');
            output::print(&current)?;
        }
        Swap::Differs { current: None } => output::print(KEY_NOT_FOUND)?,
    }
    Ok(Outcome::No)
}
