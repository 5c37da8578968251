//! `kvs stats`.

use serde_json::json;

use super::exit::Outcome;
use super::place::Place;
use super::{CommandResult, output};

/// Print what the store holds
///
/// Examples:
///   kvs stats
///   kvs stats --json | jq .keys
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct StatsArgs {
    /// As one line of JSON
    #[arg(long)]
    json: bool,
}

/// Prints the counts.
pub(crate) fn run(place: &Place, args: &StatsArgs) -> CommandResult {
    let store = place.open_existing()?;
    let (stats, replayed) = (store.stats(), store.open_report().replayed);
    let rows = [
        ("keys", stats.keys),
        ("segments", stats.segments),
        ("log_bytes", stats.log_bytes),
        ("stale_bytes", stats.stale_bytes),
        ("index_pages", stats.index_pages),
        ("replayed_commands", replayed),
        ("index_rebuilds", stats.index_rebuilds),
        ("sorted_runs", stats.sorted_runs),
        ("unsorted_bytes", stats.unsorted_bytes),
        ("lost_commands", stats.lost_commands),
    ];
    let text = match args.json {
        true => {
            let object: serde_json::Map<_, _> =
                rows.iter().map(|(name, count)| (name.to_string(), json!(count))).collect();
            serde_json::Value::Object(object).to_string() + "\n"
        }
        false => rows.iter().map(|(name, count)| format!("{name:<18} {count:>16}\n")).collect(),
    };
    output::print(text.as_bytes())?;
    Ok(Outcome::Done)
}
