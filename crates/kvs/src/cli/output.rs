//! Standard output.

use std::io::{self, BufWriter, StdoutLock, Write};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Standard output behind a buffer; whoever writes to it flushes it.
pub(crate) fn open() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(1 << 16, io::stdout().lock())
}

/// What to say when standard output cannot be written.
pub(crate) const CANNOT_WRITE: &str = "could not write to standard output";

/// Prints a whole answer.
pub(crate) fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut output = open();
    output.write_all(bytes).and_then(|()| output.flush()).context(CANNOT_WRITE)
}

/// Whether nobody will read any more: the pipe behind standard output is closed.
pub(crate) fn is_closed() -> io::Result<bool> {
    let stdout = io::stdout();
    let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
    match poll(&mut watched, Some(&Timespec::default())) {
        Ok(_) => Ok(watched[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What is printed for a key that is not there.
pub(crate) const KEY_NOT_FOUND: &[u8] = b"Key not found\n";
