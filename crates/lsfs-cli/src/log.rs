//! Logging of the engine's state changes, on standard error.

use std::io::{self, IsTerminal};

use tracing::Level;
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::prelude::*;

/// Checks a filter given on the command line.
pub(crate) fn parse_filter(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_string()),
        Err(error) => Err(format!("{error}; good ones are `debug` or `warn,lsfs=trace`")),
    }
}

/// Starts logging: what `filter` says, else what `RUST_LOG` says, else warnings.
///
/// Errors are not among the warnings: the engine returns each one too, and it then ends the command with a message.
pub(crate) fn install(filter: Option<&str>) {
    let asked = filter.map(EnvFilter::new).or_else(|| EnvFilter::try_from_default_env().ok());
    let layer =
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    match asked {
        Some(asked) => tracing_subscriber::registry().with(layer.with_filter(asked)).init(),
        None => {
            let warnings = filter_fn(|event| *event.level() == Level::WARN);
            let layer = layer.without_time().with_target(false).with_filter(warnings);
            tracing_subscriber::registry().with(layer).init();
        }
    }
}
