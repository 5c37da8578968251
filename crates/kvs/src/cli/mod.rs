//! Arguments, and what each command does with the store.
//!
//! Each command has a module of its own, with its arguments (whose doc comments are the help text) and a `run` function.
//! [`exit`] says which error gives which exit code, [`place`] opens the store, [`output`] writes to standard output.

mod backup;
mod batch;
mod bench;
mod cas;
mod compact;
mod completions;
mod dump;
mod exit;
mod get;
mod list;
mod load;
mod output;
mod place;
mod repair;
mod restore;
mod rm;
mod set;
mod stats;
mod verify;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::exit::Outcome;
use self::place::Place;

/// A durable key-value store in a directory.
///
/// Exit codes: 0 done, 1 no (key not found, value differs, changes given back), 2 wrong usage, 3 I/O error, 4 corruption, 5 locked by another
/// process for more than two seconds.
#[derive(Debug, Parser)]
#[command(name = "kvs", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Set(set::SetArgs),
    Get(get::GetArgs),
    Rm(rm::RmArgs),
    List(list::ListArgs),
    Cas(cas::CasArgs),
    Batch(batch::BatchArgs),
    Load(load::LoadArgs),
    Dump(dump::DumpArgs),
    Compact(compact::CompactArgs),
    Verify(verify::VerifyArgs),
    Repair(repair::RepairArgs),
    Stats(stats::StatsArgs),
    Watch(watch::WatchArgs),
    Backup(backup::BackupArgs),
    Restore(restore::RestoreArgs),
    Bench(bench::BenchArgs),
    Completions(completions::CompletionsArgs),
}

/// Runs the command.
pub(crate) fn run(cli: Cli) -> ExitCode {
    install_log();
    let place = &cli.place;
    exit::report(match cli.command {
        Command::Set(args) => set::run(place, &args),
        Command::Get(args) => get::run(place, &args),
        Command::Rm(args) => rm::run(place, &args),
        Command::List(args) => list::run(place, &args),
        Command::Cas(args) => cas::run(place, &args),
        Command::Batch(args) => batch::run(place, &args),
        Command::Load(args) => load::run(place, &args),
        Command::Dump(args) => dump::run(place, &args),
        Command::Compact(args) => compact::run(place, &args),
        Command::Verify(args) => verify::run(place, &args),
        Command::Repair(args) => repair::run(place, &args),
        Command::Stats(args) => stats::run(place, &args),
        Command::Watch(args) => watch::run(place, &args),
        Command::Backup(args) => backup::run(place, &args),
        Command::Restore(args) => restore::run(place, &args),
        Command::Bench(args) => bench::run(place, &args),
        Command::Completions(args) => completions::run(&args),
    })
}

/// What the store logs, if `RUST_LOG` asks for it; errors are said by the command itself.
fn install_log() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
}

/// The result of a command.
type CommandResult = anyhow::Result<Outcome>;
