//! Which error gives which exit code, and how it is said.
//!
//! 0 done, 1 error, 2 wrong usage, 3 corruption found. A closed pipe behind standard output is no error: whoever read
//! it has had enough.

use std::error::Error as StdError;
use std::io::{self, Write};
use std::process::ExitCode;

const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const CORRUPTION: u8 = 3;

/// The command found damage and has already described it; the message is a summary.
#[derive(Debug)]
pub(crate) struct DamageFound(pub(crate) String);

impl std::fmt::Display for DamageFound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for DamageFound {}

/// Says the error, if there is one, and answers the exit code.
pub(crate) fn report(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do when standard error is closed too.
            let _closed = writeln!(io::stderr(), "lsfs: {}", message(&error));
            ExitCode::from(code(&error))
        }
    }
}

fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<DamageFound>() {
            return CORRUPTION;
        }
        match engine_error(cause) {
            Some(error) if error.is_corruption() => return CORRUPTION,
            Some(lsfs::Error::InvalidOption { .. }) => return USAGE,
            _ => {}
        }
    }
    FAILURE
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The engine's error in a link of the chain, also when an [`io::Error`] carries it.
fn engine_error<'a>(cause: &'a (dyn StdError + 'static)) -> Option<&'a lsfs::Error> {
    let carried = || cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref();
    cause.downcast_ref().or_else(carried)
}

/// The chain of causes, each said once: some errors say their cause themselves.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let text =
            engine_error(cause).map_or_else(|| cause.to_string(), |error| first_cause(error).to_string());
        if !message.contains(&text) {
            let colon = if message.is_empty() { "" } else { ": " };
            message = format!("{message}{colon}{text}");
        }
        if engine_error(cause).is_some() {
            break;
        }
    }
    message
}

/// "Stopped by an earlier failure" is news only to a program that goes on; a command ends with the failure itself.
fn first_cause(error: &lsfs::Error) -> &lsfs::Error {
    match error {
        lsfs::Error::Poisoned { cause, .. } => first_cause(cause),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use anyhow::Context;

    use super::*;

    fn corrupt() -> lsfs::Error {
        lsfs::Error::Corrupt(Box::new(lsfs::Corruption {
            path: PathBuf::from("x.seg"),
            position: 4096,
            records: Some(3..4),
            reason: "slice checksum".to_string(),
        }))
    }

    #[test]
    fn corruption_is_recognised_however_it_is_wrapped() {
        assert_eq!(code(&corrupt().into()), CORRUPTION);
        assert_eq!(code(&io::Error::other(corrupt()).into()), CORRUPTION);
        let wrapped: anyhow::Result<()> = Err(io::Error::other(corrupt())).context("reading");
        assert_eq!(code(&wrapped.unwrap_err()), CORRUPTION);
        let poisoned = lsfs::Error::Poisoned { path: PathBuf::from("d"), cause: Box::new(corrupt()) };
        assert_eq!(code(&poisoned.into()), CORRUPTION);
        assert_eq!(code(&DamageFound("2 places".to_string()).into()), CORRUPTION);
        assert_eq!(code(&anyhow::anyhow!("anything else")), FAILURE);
    }

    #[test]
    fn each_cause_is_said_once() {
        let source = Arc::new(io::Error::from(io::ErrorKind::PermissionDenied));
        let error = lsfs::Error::Io { action: "open", path: PathBuf::from("d/lock"), source };
        let chain: anyhow::Result<()> = Err(error.clone()).context("cannot record");
        assert_eq!(message(&chain.unwrap_err()), "cannot record: could not open d/lock: permission denied");
        let poisoned = lsfs::Error::Poisoned { path: PathBuf::from("d"), cause: Box::new(error) };
        assert_eq!(message(&io::Error::other(poisoned).into()), "could not open d/lock: permission denied");
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let closed: anyhow::Result<()> = Err(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing");
        assert!(is_broken_pipe(&closed.unwrap_err()));
    }
}
