//! `kvs load`.

use std::io;

use kvs::{Batch, Compression, JsonLines};

use super::batch::next_line;
use super::exit::Outcome;
use super::place::Place;
use super::set::parse_compression;
use super::{CommandResult, output};

/// About so many bytes become durable at a time.
const BATCH_BYTES: usize = 1 << 20;

/// Set keys from standard input, in lines as `dump` prints them
///
/// Prints how many lines were carried out. They become durable in parts; if the command fails, those before the failing
/// part are there.
///
/// Examples:
///   kvs --dir old dump | kvs --dir new load
///   kvs load --compression zstd < store.jsonl
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct LoadArgs {
    /// Compress values, if that makes them shorter
    #[arg(long, value_name = "KIND", default_value = "none", value_parser = parse_compression)]
    compression: Compression,
}

/// Loads them.
pub(crate) fn run(place: &Place, args: &LoadArgs) -> CommandResult {
    let mut lines = JsonLines::new(io::stdin().lock());
    let first = next_line(&mut lines)?;
    let store = place.create_in_order(args.compression)?;
    let (mut batch, mut bytes, mut count) = (Batch::new(), 0, 0u64);
    let mut next = first;
    while let Some((key, value)) = next {
        bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        count += 1;
        match value {
            Some(value) => batch.put(key, value),
            None => batch.delete(key),
        };
        if bytes >= BATCH_BYTES {
            store.write(&batch)?;
            // Whoever reads beside this, or opens the store after a kill, reads the log from here on.
            store.checkpoint_if_due()?;
            (batch, bytes) = (Batch::new(), 0);
        }
        next = next_line(&mut lines)?;
    }
    store.write(&batch)?;
    store.close()?;
    output::print(format!("{count}\n").as_bytes())?;
    Ok(Outcome::Done)
}
