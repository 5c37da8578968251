//! `kvs completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::exit::Outcome;
use super::{CommandResult, output};

/// Print a completion script for a shell
///
/// Examples:
///   kvs completions bash > ~/.local/share/bash-completion/completions/kvs
///   kvs completions zsh > ~/.zfunc/_kvs
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(args: &CompletionsArgs) -> CommandResult {
    // The generator panics when it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "kvs", &mut script);
    output::print(&script)?;
    Ok(Outcome::Done)
}
