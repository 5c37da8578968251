//! Ctrl-C, SIGTERM and SIGHUP as a request to stop in good order.

use std::io::{PipeReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Whether somebody asked the command to stop; its descriptor becomes readable then.
#[derive(Debug)]
pub(crate) struct StopRequest {
    asked: Arc<AtomicBool>,
    wake: PipeReader,
}

impl StopRequest {
    /// Takes the signals over. A second one ends the process at once, in case the first cannot be followed, such as
    /// when a disk does not answer.
    pub(crate) fn install() -> anyhow::Result<StopRequest> {
        const WHAT: &str = "could not take over Ctrl-C";
        let (wake, mut waker) = std::io::pipe().context(WHAT)?;
        let asked = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&asked);
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(1);
            }
            // The pipe is empty, so there is room; the flag says it all the same.
            let _written = waker.write(&[0]);
        })
        .context(WHAT)?;
        Ok(StopRequest { asked, wake })
    }

    /// Whether the command should stop.
    pub(crate) fn is_made(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Waits for so long, or until the command should stop; whether it should.
    pub(crate) fn wait(&self, duration: Duration) -> anyhow::Result<bool> {
        let timeout = Timespec::try_from(duration).context("so long cannot be waited")?;
        match poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(self.is_made()),
            Err(error) => Err(error).context("could not wait for a signal"),
        }
    }
}

impl AsFd for StopRequest {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
