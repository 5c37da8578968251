//! Ctrl-C, SIGTERM and SIGHUP as a request to stop in good order.

use std::io::{PipeReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

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
}

impl AsFd for StopRequest {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
