//! The command `kvs`: a key-value store in the directory it is started in.
//!
//! Each command opens the store, does its work, closes the store and ends. It ends only when everything it wrote is
//! durable, and it starts no background work.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
