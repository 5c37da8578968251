//! `lsfs-bench`: measures lsfs, its peers and the raw device in one run, with the same records, in the same
//! directory. See the README beside this crate for what each case means.

mod cases;
mod cli;
mod contenders;
mod disk;
#[cfg(feature = "lsfs")]
mod executor;
mod goal;
mod job;
mod kv_data;
mod kv_job;
mod machine;
mod measure;
mod metric;
mod payload;
mod report;
mod runner;
mod table;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli.child {
        Some(job) => finish(job::run_as_child(&job)),
        None => finish(runner::run(&cli.options)),
    }
}

/// Turns the outcome into an exit code, with the whole chain of causes on standard error.
fn finish(outcome: anyhow::Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lsfs-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
