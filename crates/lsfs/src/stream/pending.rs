//! A future of durability.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::Result;
use crate::stream::recorder::{Recorder, Sequence};

/// An append on its way to the disk. Resolves to the record's index once it is durable; needs no particular runtime.
///
/// Dropping it changes nothing: the record is written all the same.
#[derive(Debug)]
#[must_use = "a record whose outcome nobody looks at may be lost without notice"]
pub struct Pending {
    recorder: Arc<Recorder>,
    index: u64,
    batch: Sequence,
    slot: Option<usize>,
}

impl Pending {
    pub(crate) fn new(recorder: Arc<Recorder>, index: u64, batch: Sequence) -> Self {
        Pending { recorder, index, batch, slot: None }
    }

    /// The record's index, known from the start.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Blocks until the record is durable.
    ///
    /// # Errors
    /// As for `RecordStream::append`.
    pub fn wait(self) -> Result<u64> {
        self.recorder.wait_done(self.batch)?;
        Ok(self.index)
    }
}

impl Future for Pending {
    type Output = Result<u64>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let index = this.index;
        this.recorder.poll_done(this.batch, context, &mut this.slot).map(|outcome| outcome.map(|()| index))
    }
}
