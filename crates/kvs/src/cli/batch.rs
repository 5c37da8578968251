//! `kvs batch`.

use std::io;

use anyhow::Context;
use kvs::{Batch, Compression, JsonLines, KeyChange};

use super::CommandResult;
use super::exit::{Outcome, WrongInput};
use super::place::Place;

/// Carry out several commands from standard input as one
///
/// One JSON object a line: {"key":"k","value":"v"} sets, {"key":"k","value":null} removes; `key_base64` and
/// `value_base64` are for other bytes than UTF-8. After a crash all of them were carried out, or none.
///
/// Example:
///   printf '%s\n' '{"key":"a","value":"1"}' '{"key":"b","value":null}' | kvs batch
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct BatchArgs {}

/// Carries them out.
pub(crate) fn run(place: &Place, _args: &BatchArgs) -> CommandResult {
    let mut batch = Batch::new();
    let mut lines = JsonLines::new(io::stdin().lock());
    while let Some((key, value)) = next_line(&mut lines)? {
        match value {
            Some(value) => batch.put(key, value),
            None => batch.delete(key),
        };
    }
    let store = place.create(Compression::None)?;
    store.write(&batch)?;
    store.close()?;
    Ok(Outcome::Done)
}

/// The next line of standard input; what is wrong with it is the user's to mend.
pub(crate) fn next_line(lines: &mut JsonLines<impl io::BufRead>) -> anyhow::Result<Option<KeyChange>> {
    match lines.next_change() {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(WrongInput(error.to_string()).into()),
        other => other.context("could not read standard input"),
    }
}
