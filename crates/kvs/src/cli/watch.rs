//! `kvs watch`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use anyhow::Context;
use kvs::{FeedStart, Position};

use super::exit::Outcome;
use super::place::Place;
use super::{CommandResult, output};

/// How often it is looked whether anybody still reads.
const LOOK: Duration = Duration::from_millis(200);

/// Print changes as they are made, as lines of JSON
///
/// One line a change, in the order in which they were made, as soon as they are durable:
/// {"key":"k","value":"v","position":"..."}, with `null` for a remove, and `key_base64` or `value_base64` for other bytes
/// than UTF-8. `kvs load` and `kvs batch` read such lines. Takes no lock.
///
/// Ends with 1 if compaction has given back changes behind the position: begin again from a backup or a dump.
///
/// Examples:
///   kvs watch                                  from now on, until Ctrl-C
///   kvs watch --prefix user/ --count 10        the next ten changes of these keys
///   kvs watch --from POSITION --no-wait        what was changed since, and no more
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct WatchArgs {
    /// Begin behind a position of an earlier line, or at `first`, the first change ever made, or `now`
    #[arg(long, value_name = "POSITION", default_value = "now", value_parser = parse_start)]
    from: FeedStart,
    /// Only keys that begin with this
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<OsString>,
    /// End after so many lines
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End when there are no more changes, instead of waiting for them
    #[arg(long)]
    no_wait: bool,
}

fn parse_start(text: &str) -> kvs::Result<FeedStart> {
    match text {
        "first" => Ok(FeedStart::First),
        "now" => Ok(FeedStart::Now),
        _ => text.parse::<Position>().map(FeedStart::At),
    }
}

/// Prints them.
pub(crate) fn run(place: &Place, args: &WatchArgs) -> CommandResult {
    let mut feed = place.read_existing()?.changes(args.from)?;
    let prefix = args.prefix.as_ref().map_or(&b""[..], |prefix| prefix.as_bytes());
    let mut output = io::stdout().lock();
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let change = match args.no_wait {
            true => feed.next_change()?,
            false => feed.wait_for_change(Some(LOOK))?,
        };
        match change {
            Some(change) if change.key.starts_with(prefix) => {
                change.write_line(&mut output).and_then(|()| output.flush()).context(output::CANNOT_WRITE)?;
                left -= 1;
            }
            Some(_) => {}
            None if args.no_wait => break,
            None if output::is_closed().context(output::CANNOT_WRITE)? => break,
            None => {}
        }
    }
    Ok(Outcome::Done)
}
