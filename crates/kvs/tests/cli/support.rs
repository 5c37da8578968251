//! Running the command.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// The command in a directory, with these arguments.
pub(crate) fn command(dir: &Path, arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvs"));
    command.current_dir(dir).args(arguments).env_remove("RUST_LOG").env_remove("KVS_DIR");
    command
}

/// What a finished command left.
#[derive(Debug)]
pub(crate) struct Finished(Output);

/// Runs the command to its end, with nothing on standard input.
pub(crate) fn kvs(dir: &Path, arguments: &[impl AsRef<OsStr>]) -> Finished {
    kvs_with_input(dir, arguments, b"")
}

/// Runs the command to its end.
pub(crate) fn kvs_with_input(dir: &Path, arguments: &[impl AsRef<OsStr>], input: &[u8]) -> Finished {
    let mut child = spawn(&mut command(dir, arguments));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // The command may end before it has read everything.
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    Finished(output)
}

pub(crate) fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Says that a test was skipped, past the harness, which shows nothing of tests that pass.
pub(crate) fn skipped<T>(reason: &str) -> Option<T> {
    let mut stderr = std::io::stderr().lock();
    writeln!(stderr, "SKIPPED: {reason}").unwrap();
    None
}

impl Finished {
    /// Fails unless it ended with this code and printed this; with code 0 or 1 nothing may be on standard error.
    #[track_caller]
    pub(crate) fn expect(self, code: i32, stdout: impl AsRef<[u8]>) -> Finished {
        let shown = String::from_utf8_lossy(&self.0.stdout);
        assert_eq!(self.0.status.code(), Some(code), "stdout: {shown}\nstderr: {}", self.stderr());
        assert!(self.0.stdout == stdout.as_ref(), "{shown:?}");
        if code < 2 {
            assert_eq!(self.stderr(), "");
        }
        self
    }

    /// Fails unless it ended with this code and said all of this on standard error.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, parts: &[&str]) -> Finished {
        assert_eq!(self.0.status.code(), Some(code), "stderr: {}", self.stderr());
        for part in parts {
            assert!(self.stderr().contains(part), "{part:?} is not in {:?}", self.stderr());
        }
        self
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }
}
