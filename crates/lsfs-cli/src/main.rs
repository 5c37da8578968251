//! The command `lsfs`: records lines and bytes durably, reads them back, and tells what a file or directory is.
//!
//! Each subcommand has a module of its own, with its arguments (whose doc comments are the help text) and a `run`
//! function. Around them: [`input`] (standard input and its pauses), [`lines`] (lines of bounded length), [`output`]
//! (standard output), [`stop`] (Ctrl-C), [`size`] (byte sizes in words), [`progress`], [`log`] and [`exit`] (which
//! error gives which exit code).

mod bench;
mod block_file;
mod cat;
mod clerk;
mod completions;
mod data;
mod dump;
mod exit;
mod input;
mod inspect;
mod lines;
mod log;
mod mapped;
mod output;
mod place;
mod progress;
mod record;
mod repair;
mod report;
mod size;
mod state;
mod stop;
mod stream_args;
mod summary;
mod truncate;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Durable record streams, data streams and states in plain directories.
///
/// Exit codes: 0 done, 1 error, 2 wrong usage, 3 corruption found.
#[derive(Debug, Parser)]
#[command(name = "lsfs", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to log on standard error, as in RUST_LOG: `info`, `lsfs=debug`. Without it and RUST_LOG: warnings.
    #[arg(long, global = true, value_name = "FILTER", value_parser = log::parse_filter)]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Record(record::RecordArgs),
    Cat(cat::CatArgs),
    Data(data::DataArgs),
    State(state::StateArgs),
    Inspect(inspect::InspectArgs),
    Verify(verify::VerifyArgs),
    Dump(dump::DumpArgs),
    Repair(repair::RepairArgs),
    Truncate(truncate::TruncateArgs),
    Purge(truncate::PurgeArgs),
    Bench(bench::BenchArgs),
    Clerk(clerk::ClerkArgs),
    Index(clerk::IndexArgs),
    Completions(completions::CompletionsArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log::install(cli.log.as_deref());
    exit::report(match cli.command {
        Command::Record(args) => record::run(&args),
        Command::Cat(args) => cat::run(&args),
        Command::Data(args) => data::run(&args),
        Command::State(args) => state::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Dump(args) => dump::run(&args),
        Command::Repair(args) => repair::run(&args),
        Command::Truncate(args) => truncate::run_truncate(&args),
        Command::Purge(args) => truncate::run_purge(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Clerk(args) => clerk::run(&args),
        Command::Index(args) => clerk::run_rebuild(&args),
        Command::Completions(args) => completions::run(&args),
    })
}
