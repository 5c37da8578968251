//! Which outcome gives which exit code, and how errors are said.

use std::io::{self, Write};
use std::process::ExitCode;

const NO: u8 = 1;
const USAGE: u8 = 2;
const IO: u8 = 3;
const CORRUPTION: u8 = 4;
const LOCKED: u8 = 5;

/// How a command ended that met no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done.
    Done,
    /// The answer is no; it was printed.
    No,
    /// Damage was found, and described.
    Damaged,
}

/// What was given on the command line or standard input is wrong; nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongInput(pub(crate) String);

/// Says the error, if there is one, and answers the exit code.
pub(crate) fn report(result: anyhow::Result<Outcome>) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::No) => NO.into(),
        Ok(Outcome::Damaged) => CORRUPTION.into(),
        Err(error) => {
            say(&format_args!("{error:#}"));
            code(&error).into()
        }
    }
}

/// Says on standard error what is wrong.
pub(crate) fn say(what: &dyn std::fmt::Display) {
    // Nothing is left to do when standard error is closed too.
    let _closed = writeln!(io::stderr(), "kvs: {what}");
}

fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<WrongInput>() {
            return USAGE;
        }
        match cause.downcast_ref::<kvs::Error>() {
            Some(error) if error.is_corruption() => return CORRUPTION,
            Some(error) if error.is_locked() => return LOCKED,
            Some(kvs::Error::TooLarge { .. } | kvs::Error::WrongPosition { .. }) => return USAGE,
            Some(kvs::Error::PositionGone { .. }) => return NO,
            _ => {}
        }
    }
    IO
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn each_kind_of_error_has_its_code() {
        let wrapped = |error: kvs::Error| code(&Err::<(), _>(error).context("opening").unwrap_err());
        let locked = lsfs::Error::Locked { path: "d".into(), pid: None };
        assert_eq!(wrapped(locked.into()), LOCKED);
        let damaged = kvs::Error::BadRecord { segment: 1, position: 2, reason: "x".to_string() };
        assert_eq!(wrapped(kvs::Error::LogAndIndexDamaged { log: Box::new(damaged) }), CORRUPTION);
        let full = lsfs::Error::NoSpace { path: "d".into(), needed_bytes: 1 };
        assert_eq!(wrapped(full.into()), IO);
        assert_eq!(wrapped(kvs::Error::TooLarge { what: "key", size_bytes: 2, limit_bytes: 1 }), USAGE);
        assert_eq!(code(&WrongInput("no".to_string()).into()), USAGE);
        assert_eq!(code(&anyhow::anyhow!("anything else")), IO);
    }
}
