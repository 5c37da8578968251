//! The smallest executor that can drive many producers as futures on one thread: one bit per producer says
//! whether it wants to be polled, and a parked thread is woken when the first bit is set.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use anyhow::Result;

/// Producers one executor can drive: the bits of its ready mask.
pub const MAX_SLOTS: usize = 64;

/// What the wakers of one executor share.
struct Ready {
    mask: AtomicU64,
    thread: Thread,
}

/// Wakes the future in one slot.
struct SlotWaker {
    ready: Arc<Ready>,
    bit: u64,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Only the first bit needs to wake the thread: it looks at all of them before it parks again.
        if self.ready.mask.fetch_or(self.bit, Ordering::AcqRel) == 0 {
            self.ready.thread.unpark();
        }
    }
}

/// Keeps `slots` futures in flight on the calling thread. `start` makes the first future of a slot, and the next
/// one when a future is ready; a slot for which it returns `None` rests, and the call ends when all rest.
pub fn drive<F, S>(slots: usize, mut start: S) -> Result<()>
where
    F: Future + Unpin,
    S: FnMut(usize, Option<F::Output>) -> Result<Option<F>>,
{
    assert!((1..=MAX_SLOTS).contains(&slots), "one to {MAX_SLOTS} slots");
    let ready = Arc::new(Ready { mask: AtomicU64::new(0), thread: thread::current() });
    let wakers: Vec<Waker> = (0..slots)
        .map(|slot| Waker::from(Arc::new(SlotWaker { ready: ready.clone(), bit: 1 << slot })))
        .collect();
    let mut futures = Vec::with_capacity(slots);
    for slot in 0..slots {
        futures.push(start(slot, None)?);
    }
    let mut mask = u64::MAX >> (MAX_SLOTS - slots);
    while futures.iter().any(Option::is_some) {
        if mask == 0 {
            mask = wait(&ready);
        }
        while mask != 0 {
            let slot = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            if advance(slot, &mut futures[slot], &wakers[slot], &mut start)? {
                // Polled again in the next sweep, so that a slot that is always ready does not starve the others.
                ready.mask.fetch_or(1 << slot, Ordering::AcqRel);
            }
        }
    }
    Ok(())
}

/// The slots to poll next; parks while there are none.
fn wait(ready: &Ready) -> u64 {
    loop {
        match ready.mask.swap(0, Ordering::AcqRel) {
            0 => thread::park(),
            mask => return mask,
        }
    }
}

/// Polls one slot once; returns whether its future was replaced by the next one, which then needs its first poll.
fn advance<F, S>(slot: usize, future: &mut Option<F>, waker: &Waker, start: &mut S) -> Result<bool>
where
    F: Future + Unpin,
    S: FnMut(usize, Option<F::Output>) -> Result<Option<F>>,
{
    let Some(running) = future else { return Ok(false) };
    match Pin::new(running).poll(&mut Context::from_waker(waker)) {
        Poll::Pending => Ok(false),
        Poll::Ready(output) => {
            *future = start(slot, Some(output))?;
            Ok(future.is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pending once, then ready, woken from another thread.
    struct Later(bool);

    impl Future for Later {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            if self.0 {
                return Poll::Ready(());
            }
            self.0 = true;
            let waker = context.waker().clone();
            thread::spawn(move || waker.wake());
            Poll::Pending
        }
    }

    #[test]
    fn every_slot_runs_to_its_end() {
        for slots in [1, 3, 64] {
            let mut done = vec![0; slots];
            drive(slots, |slot, output: Option<()>| {
                done[slot] += usize::from(output.is_some());
                Ok((done[slot] < 5).then_some(Later(false)))
            })
            .unwrap();
            assert_eq!(done, vec![5; slots]);
        }
    }
}
