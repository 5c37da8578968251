//! `kvs compact`.

use std::io::{self, IsTerminal, Write};

use super::exit::Outcome;
use super::place::Place;
use super::{CommandResult, output};

/// Give back the space of what no key needs any more
///
/// Prints the bytes of the log before and after.
///
/// Examples:
///   kvs compact
///   kvs --dir /srv/store compact --quiet
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct CompactArgs {
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Compacts.
pub(crate) fn run(place: &Place, args: &CompactArgs) -> CommandResult {
    let store = place.open_existing()?;
    let before = store.stats().log_bytes;
    let shows_progress = !args.quiet && io::stderr().is_terminal();
    store.compact(|segments| {
        if shows_progress {
            // A terminal that went away does not stop the work.
            let _gone = write!(io::stderr(), "\r{segments} segments compacted");
        }
        true
    })?;
    if shows_progress {
        let _gone = writeln!(io::stderr());
    }
    let after = store.stats().log_bytes;
    store.close()?;
    output::print(format!("{before} {after}\n").as_bytes())?;
    Ok(Outcome::Done)
}
