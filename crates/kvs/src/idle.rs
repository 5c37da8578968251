//! A checkpoint of a store that is not written to any more: an open after a kill then has nothing to read.
//!
//! While a store is written, a checkpoint is made when enough has come together that its pages are a small part of what was
//! written. When nobody writes for a while, that may never be; so one is made with less, but not with so little that pauses
//! in the writing make it write much more: again and again it can only be as much is written again.

use std::time::Duration;

use lsfs::io::Step;

use crate::error::Result;
use crate::index::PAGE_BYTES;
use crate::maintenance::{Maintenance, TAIL_PER_PAGE_BYTE};
use crate::order::Place;
use crate::store::Inner;

/// So long nobody writes.
const PAUSE: Duration = Duration::from_secs(1);
/// So many units of the log at least.
const TAIL_UNITS_MIN: u64 = 1;

/// Since when the log has its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    log_end: Place,
    since: Duration,
}

impl Inner {
    /// Behind a step of the background that has left nothing to do: makes the checkpoint, or says when to look again.
    pub(crate) fn rest(&self, maintenance: &mut Maintenance) -> Result<Step> {
        let (tail_bytes, log_end) = {
            let writer = self.writer();
            (writer.tail_bytes, writer.log_end)
        };
        let page_bytes = (self.table.read().index.stats().dirty_pages * PAGE_BYTES) as u64;
        let least_bytes = (TAIL_UNITS_MIN * self.options.unit_bytes()).max(TAIL_PER_PAGE_BYTE * page_bytes);
        if tail_bytes < least_bytes {
            maintenance.rest = None;
            return Ok(Step::Idle);
        }
        let now = self.options.env.runtime.now();
        let since = match maintenance.rest {
            Some(rest) if rest.log_end == log_end => rest.since,
            _ => now,
        };
        maintenance.rest = Some(Rest { log_end, since });
        match PAUSE.checked_sub(now.saturating_sub(since)) {
            Some(left) if !left.is_zero() => Ok(Step::After(left)),
            _ => {
                maintenance.rest = None;
                self.write_checkpoint(maintenance)?;
                Ok(Step::Idle)
            }
        }
    }
}
