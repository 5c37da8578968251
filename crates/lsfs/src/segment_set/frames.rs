//! Entries in the order they were appended.

use std::ops::Range;
use std::sync::Arc;

use crate::codec::{FrameFault, FrameHeader};
use crate::error::{Error, Result};
use crate::segment_set::Entry;
use crate::segment_set::options::PAGE_BYTES;
use crate::segment_set::segment::{
    Expected, FIRST_LOOK_BYTES, Frame, FrameSource, Segment, Window, read_frame,
};

/// Bytes read at once.
const RUN_BYTES: u64 = 256 << 10;

/// Walks over the entries of a set, oldest first; see [`SegmentSet::iter`](crate::SegmentSet::iter).
#[derive(Debug)]
pub struct Entries {
    source: Arc<dyn FrameSource>,
    /// The segment that is being read, once it was found.
    segment: Option<Arc<Segment>>,
    number: u32,
    position: u64,
    /// Where the entries of the segment ended when that was last asked.
    end: u64,
    /// Whether an exact place was asked for, which must still be there.
    is_exact: bool,
    run: Option<(u64, Window)>,
    /// Where the last error was, for [`Entries::skip_damage`].
    damage: Option<u64>,
}

/// A source that answers from the run that was read last.
#[derive(Debug)]
struct InRun<'a> {
    source: &'a dyn FrameSource,
    run: Option<&'a (u64, Window)>,
}

impl FrameSource for InRun<'_> {
    fn segment_from(&self, number: u32) -> Result<Option<Arc<Segment>>> {
        self.source.segment_from(number)
    }

    fn shown_end(&self, segment: &Segment) -> Result<u64> {
        self.source.shown_end(segment)
    }

    fn readable_end(&self, segment: &Segment, wanted: u64) -> Result<u64> {
        self.source.readable_end(segment, wanted)
    }

    fn window(&self, segment: &Segment, range: Range<u64>) -> Result<Window> {
        if let Some((start, run)) = self.run
            && *start <= range.start
            && range.end <= start + run.len() as u64
        {
            return Ok(run.part((range.start - start) as usize..(range.end - start) as usize));
        }
        self.source.window(segment, range)
    }
}

impl Entries {
    /// From the first entry of segment `number`, or of the next one there is.
    pub(crate) fn from_segment(source: Arc<dyn FrameSource>, number: u32) -> Self {
        let position = PAGE_BYTES as u64;
        Entries { source, segment: None, number, position, end: 0, is_exact: false, run: None, damage: None }
    }

    /// From the entry at a place.
    pub(crate) fn from_place(source: Arc<dyn FrameSource>, segment: u32, position: u32) -> Self {
        let position = u64::from(position).max(PAGE_BYTES as u64);
        Entries { position, is_exact: true, ..Entries::from_segment(source, segment) }
    }

    /// Segment and position of the next entry, for going on there later with `iter_from`.
    pub fn place(&self) -> (u32, u32) {
        (self.number, self.position as u32)
    }

    /// Takes hold of the segment of the next entry, which then stays readable if it is reclaimed before that is asked for.
    ///
    /// # Errors
    /// As for [`Entries::next_entry`].
    pub fn hold(&mut self) -> Result<()> {
        self.find_segment().map(drop)
    }

    /// The next entry; `None` at the durable end (in a cache: the written one). More may come: call again.
    ///
    /// # Errors
    /// [`Error::Gone`] if the segment was reclaimed: [`Entries::skip_gone`] goes on behind it. [`Error::Corrupt`] if an entry does not verify: then the same call
    /// gives the same error, and [`Entries::skip_damage`] goes on behind it.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        loop {
            let Some(segment) = self.find_segment()? else { return Ok(None) };
            if self.position >= self.end {
                let was_sealed = segment.sealed().is_some();
                self.end = self.source.shown_end(&segment)?;
                if self.position >= self.end && !was_sealed {
                    if segment.sealed().is_none() {
                        return Ok(None);
                    }
                    // Sealed while its end was looked for, perhaps with more entries: that end counts.
                    continue;
                }
            }
            let end = self.end;
            if self.position >= end {
                self.go_to(segment.number + 1, PAGE_BYTES as u64);
                continue;
            }
            self.read_run(&segment, end)?;
            let expected = Expected { position: self.position, len: None, end };
            let source = InRun { source: &*self.source, run: self.run.as_ref() };
            let frame = match read_frame(&source, &segment, expected) {
                Ok(frame) => frame,
                Err(error) => {
                    self.damage = error.is_corruption().then_some(self.position);
                    return Err(error);
                }
            };
            let Frame { pointer, header: FrameHeader { kind, more, .. }, body } = frame;
            self.position = pointer.end();
            return Ok(Some(Entry { pointer, kind, ends_batch: !more, body: body.into() }));
        }
    }

    /// After [`Error::Gone`]: goes on with the next segment there is.
    pub fn skip_gone(&mut self) {
        self.go_to(self.number + 1, PAGE_BYTES as u64);
    }

    fn go_to(&mut self, number: u32, position: u64) {
        (self.number, self.position, self.end) = (number, position, 0);
        (self.segment, self.run, self.is_exact) = (None, None, false);
    }

    fn find_segment(&mut self) -> Result<Option<Arc<Segment>>> {
        if let Some(segment) = &self.segment {
            return Ok(Some(Arc::clone(segment)));
        }
        let Some(segment) = self.source.segment_from(self.number)? else { return Ok(None) };
        if segment.number != self.number {
            if self.is_exact {
                let path = segment.path().with_file_name(super::segment::segment_name(self.number));
                return Err(Error::Gone { path });
            }
            self.go_to(segment.number, PAGE_BYTES as u64);
        }
        self.segment = Some(Arc::clone(&segment));
        Ok(Some(segment))
    }

    /// Reads ahead, if what is looked at first of the next frame is not in the run that was read last.
    fn read_run(&mut self, segment: &Segment, end: u64) -> Result<()> {
        let wanted = self.position..(self.position + FIRST_LOOK_BYTES).min(end);
        if let Some((start, run)) = &self.run
            && *start <= wanted.start
            && wanted.end <= start + run.len() as u64
        {
            return Ok(());
        }
        let run = self.source.window(segment, self.position..(self.position + RUN_BYTES).min(end))?;
        self.run = Some((self.position, run));
        Ok(())
    }

    /// After [`Error::Corrupt`]: goes to the next entry that can be found, and answers the bytes that were left out as
    /// segment and positions; `None` if the last call found no damage.
    ///
    /// Damage of a body that has checksums of its own leaves out that entry; other damage, all up to the next header that
    /// verifies.
    pub fn skip_damage(&mut self) -> Result<Option<(u32, Range<u64>)>> {
        let (Some(from), Some(segment)) = (self.damage.take(), self.segment.clone()) else { return Ok(None) };
        let end = self.source.shown_end(&segment)?;
        self.position = next_header(&*self.source, &segment, from..end)?;
        self.run = None;
        Ok(Some((segment.number, from..self.position)))
    }
}

/// The position of the first header that verifies behind the frame at the start of the range; the range's end if there
/// is none.
fn next_header(source: &dyn FrameSource, segment: &Segment, range: Range<u64>) -> Result<u64> {
    let identity = segment.identity()?;
    let looked_at_max = identity.layout.decoded_bytes_max(identity.body_limit_bytes) as u64;
    let mut from = range.start;
    while from < range.end {
        // A run that ends inside a header is read again from there on.
        let run = source.window(segment, from..(from + RUN_BYTES + looked_at_max).min(range.end))?;
        let is_last = from + run.len() as u64 >= range.end;
        let searched =
            if is_last { run.len() } else { run.len().saturating_sub(looked_at_max as usize).max(1) };
        for at in (0..searched).filter(|&at| identity.may_begin(&run[at..], None)) {
            let position = from + at as u64;
            match FrameHeader::decode(&run[at..], &identity, position) {
                // Its own header verifies: only the body is damaged.
                Ok(header) if position == range.start => {
                    return Ok(identity.frame_end(position, header.body_bytes).min(range.end));
                }
                Ok(_) => return Ok(position),
                Err(FrameFault::Short { .. } | FrameFault::Checksum { .. }) | Err(_) => {}
            }
        }
        from += searched as u64;
    }
    Ok(range.end)
}
