//! Standard input without a buffer of its own, so that its pauses can be seen.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::stop::StopRequest;

/// What to say when standard input cannot be read.
pub(crate) const CANNOT_READ: &str = "could not read standard input";

/// Whether a read failed only because it was disturbed, or because there is nothing yet and somebody made the input
/// non-blocking.
pub(crate) fn is_no_input_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

/// Standard input.
#[derive(Debug)]
pub(crate) struct Input {
    file: File,
}

/// What reading would find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// Bytes, the end, or an error: reading does not wait.
    Ready,
    /// Nothing yet.
    Paused,
    /// Somebody asked the command to stop.
    Stopped,
}

/// Whether [`Input::readiness`] may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Answer at once.
    No,
    /// Wait for input or a request to stop.
    Forever,
}

impl Input {
    /// Opens standard input.
    pub(crate) fn open() -> anyhow::Result<Input> {
        let descriptor = io::stdin().as_fd().try_clone_to_owned().context(CANNOT_READ)?;
        Ok(Input { file: File::from(descriptor) })
    }

    /// What reading would find.
    pub(crate) fn readiness(&self, stop: &StopRequest, wait: Wait) -> anyhow::Result<Readiness> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = (wait == Wait::No).then_some(&zero);
        loop {
            if stop.is_made() {
                return Ok(Readiness::Stopped);
            }
            let mut watched = [PollFd::new(&self.file, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            match poll(&mut watched, timeout) {
                Ok(0) => return Ok(Readiness::Paused),
                Ok(_) if !watched[1].revents().is_empty() => return Ok(Readiness::Stopped),
                Ok(_) => return Ok(Readiness::Ready),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error)).context(CANNOT_READ),
            }
        }
    }

    /// Bytes that are left, if the input is a file.
    pub(crate) fn remaining_bytes(&mut self) -> Option<u64> {
        let metadata = self.file.metadata().ok().filter(|metadata| metadata.is_file())?;
        let position = self.file.stream_position().ok()?;
        Some(metadata.len().saturating_sub(position))
    }

    /// Passes over the first `count` bytes: by seeking in a file, by reading anything else.
    pub(crate) fn skip(&mut self, count: u64) -> anyhow::Result<()> {
        let skipped = match self.remaining_bytes() {
            Some(remaining) if remaining >= count => {
                let offset = i64::try_from(count).context(CANNOT_READ)?;
                self.file.seek(SeekFrom::Current(offset)).context(CANNOT_READ)?;
                count
            }
            Some(remaining) => remaining,
            None => io::copy(&mut self.by_ref().take(count), &mut io::sink()).context(CANNOT_READ)?,
        };
        if skipped < count {
            bail!("the input has only {skipped} bytes, {count} are already durable: is it the same input?");
        }
        Ok(())
    }
}

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }
}
