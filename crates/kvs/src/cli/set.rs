//! `kvs set`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::Context;
use kvs::{Compression, Error, VALUE_BYTES_MAX};

use super::CommandResult;
use super::exit::Outcome;
use super::place::Place;

/// Set a key to a value
///
/// Prints nothing. The pair is durable when the command ends with 0.
///
/// Examples:
///   kvs set user/7 Ada
///   kvs set picture --file picture.png --compression zstd
///   date | kvs set started -
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct SetArgs {
    /// The key, any bytes
    key: OsString,
    /// The value, any bytes; `-` reads it from standard input
    #[arg(allow_hyphen_values = true, required_unless_present = "file")]
    value: Option<OsString>,
    /// Take the value from a file
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    file: Option<PathBuf>,
    /// Compress the value, if that makes it shorter
    #[arg(long, value_name = "KIND", default_value = "none", value_parser = parse_compression)]
    compression: Compression,
}

/// Reads the name of a compression.
pub(crate) fn parse_compression(text: &str) -> Result<Compression, String> {
    match text {
        "none" => Ok(Compression::None),
        "lz4" => Ok(Compression::Lz4),
        "zstd" => Ok(Compression::Zstd),
        _ => Err("expected none, lz4 or zstd".to_string()),
    }
}

/// Sets the key.
pub(crate) fn run(place: &Place, args: &SetArgs) -> CommandResult {
    let value = value(args)?;
    let store = place.create(args.compression)?;
    store.put(args.key.as_bytes(), &value)?;
    store.close()?;
    Ok(Outcome::Done)
}

fn value(args: &SetArgs) -> anyhow::Result<Vec<u8>> {
    match (&args.value, &args.file) {
        (_, Some(path)) => {
            let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
            read_value(file).with_context(|| format!("could not read {}", path.display()))
        }
        (Some(value), None) if value == "-" => {
            read_value(io::stdin()).context("could not read standard input")
        }
        (Some(value), None) => Ok(value.as_bytes().to_vec()),
        (None, None) => unreachable!("one of them is required"),
    }
}

fn read_value(source: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut value = Vec::new();
    source.take(VALUE_BYTES_MAX as u64 + 1).read_to_end(&mut value)?;
    if value.len() > VALUE_BYTES_MAX {
        let (size_bytes, limit_bytes) = (value.len() as u64, VALUE_BYTES_MAX as u64);
        return Err(Error::TooLarge { what: "value", size_bytes, limit_bytes }.into());
    }
    Ok(value)
}
