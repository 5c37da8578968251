//! `kvs list`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;

use anyhow::Context;
use kvs::{Error, Range, end_of_prefix, write_json_line};

use super::exit::{self, Outcome};
use super::place::Place;
use super::{CommandResult, output};

/// Print keys and values in the order of the keys
///
/// A line for each key: the key, a tab, the value. Keys are compared as bytes. Takes no lock: it also answers while another
/// process writes, and shows the store as it was at the start; if the writer gives back space meanwhile, the rest may be as
/// it was a little later. A value that is damaged is named on standard error, and the command ends with 4.
///
/// Examples:
///   kvs list user/                                     keys that begin with it
///   kvs list --from b --to d --keys
///   kvs list --reverse -n 10                           the last ten
///   kvs list -0 --keys | xargs -0 -n 1 kvs rm
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ListArgs {
    /// Only keys that begin with this
    prefix: Option<OsString>,
    /// Only this key and those behind it
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    from: Option<OsString>,
    /// Only keys before this one
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    to: Option<OsString>,
    /// At most so many
    #[arg(short = 'n', long, value_name = "COUNT")]
    limit: Option<u64>,
    /// The last key first
    #[arg(short, long)]
    reverse: bool,
    /// Only keys, no values
    #[arg(short, long)]
    keys: bool,
    /// Lines of JSON, as `dump` prints them
    #[arg(long, conflicts_with = "null")]
    json: bool,
    /// A zero byte behind each key and each value, instead of tab and line end
    #[arg(short = '0', long)]
    null: bool,
}

/// A key, and its value unless only keys are asked for.
type Pair = (Vec<u8>, Option<Vec<u8>>);

/// Prints them.
pub(crate) fn run(place: &Place, args: &ListArgs) -> CommandResult {
    let Some(store) = place.read()? else { return Ok(Outcome::Done) };
    let (mut output, mut outcome) = (output::open(), Outcome::Done);
    let (mut lower, mut upper) = bounds(args);
    let mut left = args.limit.unwrap_or(u64::MAX);
    'view: while left > 0 {
        for pair in pairs(args, store.range::<Vec<u8>>((lower.clone(), upper.clone()))?) {
            match pair {
                Ok((key, value)) => {
                    print(&mut output, args, &key, value.as_deref()).context(output::CANNOT_WRITE)?;
                    *(if args.reverse { &mut upper } else { &mut lower }) = Bound::Excluded(key);
                }
                // It goes on where it was, with the store as it is now.
                Err(Error::Outdated { .. }) => continue 'view,
                Err(damage) if damage.is_corruption() => {
                    output.flush().context(output::CANNOT_WRITE)?;
                    exit::say(&damage);
                    outcome = Outcome::Damaged;
                }
                Err(error) => return Err(error.into()),
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
        break;
    }
    output.flush().context(output::CANNOT_WRITE)?;
    Ok(outcome)
}

/// The bounds that prefix, `--from` and `--to` give together.
fn bounds(args: &ListArgs) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let bytes = |key: &Option<OsString>| key.as_ref().map(|key| key.as_bytes().to_vec());
    let prefix = bytes(&args.prefix);
    let end = prefix.as_deref().and_then(end_of_prefix);
    let lower = prefix.into_iter().chain(bytes(&args.from)).max();
    let upper = end.into_iter().chain(bytes(&args.to)).min();
    (lower.map_or(Bound::Unbounded, Bound::Included), upper.map_or(Bound::Unbounded, Bound::Excluded))
}

fn pairs(args: &ListArgs, range: Range) -> Box<dyn Iterator<Item = kvs::Result<Pair>>> {
    let with_value = |pair: kvs::Result<(Vec<u8>, Vec<u8>)>| pair.map(|(key, value)| (key, Some(value)));
    let without = |key: kvs::Result<Vec<u8>>| key.map(|key| (key, None));
    match (args.keys, args.reverse) {
        (false, false) => Box::new(range.map(with_value)),
        (false, true) => Box::new(range.rev().map(with_value)),
        (true, false) => Box::new(range.keys().map(without)),
        (true, true) => Box::new(range.keys().rev().map(without)),
    }
}

fn print(output: &mut impl Write, args: &ListArgs, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
    if args.json {
        return write_json_line(output, key, value);
    }
    let (between, end) = if args.null { (b"\0", b"\0") } else { (b"\t", b"\n") };
    output.write_all(key)?;
    if let Some(value) = value {
        output.write_all(between)?;
        output.write_all(value)?;
    }
    output.write_all(end)
}
