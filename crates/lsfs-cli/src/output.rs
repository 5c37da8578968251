//! Standard output without the line buffering of the standard library.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const BUFFER_BYTES: usize = 1 << 20;

/// Standard output behind a large buffer; whoever writes to it flushes it.
pub(crate) type Output = BufWriter<File>;

/// Opens standard output.
pub(crate) fn open() -> anyhow::Result<Output> {
    let descriptor = io::stdout().as_fd().try_clone_to_owned().context("could not open standard output")?;
    Ok(BufWriter::with_capacity(BUFFER_BYTES, File::from(descriptor)))
}

/// What to say when standard output cannot be written.
pub(crate) const CANNOT_WRITE: &str = "could not write to standard output";

/// Prints a whole answer.
pub(crate) fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut output = open()?;
    output.write_all(bytes).and_then(|()| output.flush()).context(CANNOT_WRITE)
}

/// Prints a value as one line of JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    print(&line)
}

/// Sleeps, but not longer than somebody may still read: `false` once the pipe behind standard output is closed.
pub(crate) fn sleep_while_read(output: &Output, duration: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(duration).map_err(io::Error::other)?;
    let mut watched = [PollFd::new(output.get_ref(), PollFlags::empty())];
    match poll(&mut watched, Some(&timeout)) {
        Ok(_) => Ok(!watched[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
