//! `lsfs completions`: a script that completes this command line in a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::output;

/// Print a completion script for a shell
///
/// For bash: lsfs completions bash > ~/.local/share/bash-completion/completions/lsfs
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    // The generator panics when it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "lsfs", &mut script);
    output::print(&script)
}
