//! Where a set ends after a crash: docs/durability.md, "Segment sets".

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::codec::{
    FRAME_HEADER_BYTES_MAX, FrameFault, FrameHeader, SegmentList, SegmentListFault, Tally, check_pieces,
};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::io::{OpenMode, parent_of};
use crate::mutant::{self, Mutant};
use crate::segment_set::options::PAGE_BYTES;
use crate::segment_set::segment::{Segment, SegmentPlace, Window, number_of, segment_name};
use crate::segment_set::{LIST_STEM, SET};

/// Bytes read at once while the end is looked for.
const SCAN_BYTES: u64 = 1 << 20;

/// The segments of a set, and where it ends.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) sealed: Vec<Arc<Segment>>,
    /// `None` in a cache whose active segment was lost.
    pub(crate) active: Option<Arc<Segment>>,
    pub(crate) end: FoundEnd,
}

/// Where the active segment ends.
#[derive(Debug)]
pub(crate) struct FoundEnd {
    /// What lies in it.
    pub(crate) tally: Tally,
    /// Bytes before this position were durable and do not verify, or what lies behind them does not fit.
    pub(crate) damage: Option<Error>,
    /// Something was found behind the end that does not count.
    pub(crate) torn: Option<(u64, FrameFault)>,
}

impl Layout {
    /// Finds the segments that the list names and, unless the end is known already, the end of the active one.
    pub(crate) fn find(place: &SegmentPlace, list: &SegmentList, end: Option<Tally>) -> Result<Layout> {
        let Layout { sealed, active, .. } = named(place, list)?;
        let Some(active) = active else {
            return Ok(Layout { sealed, active: None, end: FoundEnd::empty() });
        };
        if list.cache && matches!(active.open(), Err(Error::Gone { .. })) {
            // Its header was lost in the crash.
            return Ok(Layout { sealed, active: None, end: FoundEnd::empty() });
        }
        let known = list.active().tally;
        let end = match end {
            Some(tally) => FoundEnd { tally, damage: None, torn: None },
            None if list.closed => FoundEnd { tally: known, damage: None, torn: None },
            None => match Scan::new(&active).and_then(|scan| scan.find_end(known, list)) {
                Err(Error::Gone { .. }) if list.cache => {
                    return Ok(Layout { sealed, active: None, end: FoundEnd::empty() });
                }
                other => other?,
            },
        };
        Ok(Layout { sealed, active: Some(active), end })
    }
}

impl FoundEnd {
    fn empty() -> Self {
        FoundEnd { tally: Tally::default(), damage: None, torn: None }
    }
}

/// The segments that the list names, each compared with the directory; the end is not looked for.
fn named(place: &SegmentPlace, list: &SegmentList) -> Result<Layout> {
    let dir = &place.dir;
    let entries = place.env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let lengths: BTreeMap<u32, u64> =
        entries.iter().filter_map(|entry| Some((number_of(&entry.name)?, entry.len))).collect();
    let (mut sealed, mut active) = (Vec::with_capacity(list.segments.len()), None);
    for entry in &list.segments {
        let segment = Arc::new(Segment::listed(place, entry));
        let is_active = entry.number == list.active().number;
        let found = lengths.get(&entry.number).copied();
        if found.is_none_or(|len| len < entry.tally.end.into()) {
            if place.is_cache {
                continue;
            }
            let reason = match found {
                None => "the segment list names this file, but it is not there".to_string(),
                Some(len) => format!("{len} bytes, {} were durable", entry.tally.end),
            };
            return Err(Error::corrupt(segment.path(), found.unwrap_or(0), None, reason));
        }
        if is_active {
            active = Some(segment);
        } else {
            segment.seal(entry.tally);
            sealed.push(segment);
        }
    }
    Ok(Layout { sealed, active, end: FoundEnd::empty() })
}

/// What lies at a position.
enum Seen {
    /// A frame that verifies: its header, the bytes of that, and its body.
    Frame(FrameHeader, Window, Window),
    /// None; but if its header verifies by itself, where it would end.
    Nothing { fault: FrameFault, frame_end: Option<u64> },
}

/// A walk over the frames of the active segment.
struct Scan<'a> {
    segment: &'a Segment,
    file_bytes: u64,
    window: Option<(u64, Window)>,
}

impl<'a> Scan<'a> {
    fn new(segment: &'a Segment) -> Result<Self> {
        let open = segment.open()?;
        let file_bytes = open.file.len().map_err(|error| Error::io("measure", segment.path(), error))?;
        Ok(Scan { segment, file_bytes, window: None })
    }

    /// The bytes of a range, which lies in the file.
    fn bytes(&mut self, range: Range<u64>) -> Result<Window> {
        if let Some((start, window)) = &self.window
            && *start <= range.start
            && range.end <= start + window.len() as u64
        {
            return Ok(window.part((range.start - start) as usize..(range.end - start) as usize));
        }
        let end = range.end.max(range.start + SCAN_BYTES).min(self.file_bytes);
        let window = self.segment.read_window(range.start..end)?;
        let part = window.part(0..(range.end - range.start) as usize);
        self.window = Some((range.start, window));
        Ok(part)
    }

    /// The frame at a position, header and body verified.
    fn frame(&mut self, position: u64) -> Result<Seen> {
        let identity = self.segment.open()?.identity;
        let left = self.file_bytes.saturating_sub(position);
        let mut header_bytes = self.bytes(position..position + left.min(FRAME_HEADER_BYTES_MAX as u64))?;
        let mut decoded = FrameHeader::decode(&header_bytes, &identity, position);
        if let Err(FrameFault::Short { needed, .. }) = decoded
            && needed <= left
        {
            header_bytes = self.bytes(position..position + needed)?;
            decoded = FrameHeader::decode(&header_bytes, &identity, position);
        }
        let header = match decoded {
            Ok(header) => header,
            Err(fault) => return Ok(Seen::Nothing { fault, frame_end: None }),
        };
        let end = identity.frame_end(position, header.body_bytes);
        if end > self.file_bytes {
            let fault = FrameFault::Short { needed: end - position, found: left };
            return Ok(Seen::Nothing { fault, frame_end: None });
        }
        let body = self.bytes(identity.body_position(position, header.body_bytes)..end)?;
        match check_pieces(header.stored_checksums(&header_bytes, identity.layout), 0, &body) {
            Ok(()) => Ok(Seen::Frame(header, header_bytes, body)),
            Err(fault) => Ok(Seen::Nothing { fault, frame_end: Some(end) }),
        }
    }

    /// Walks from the known end to the first thing that does not follow, and decides what that is.
    fn find_end(mut self, known: Tally, list: &SegmentList) -> Result<FoundEnd> {
        let open = self.segment.open()?;
        let epoch_of = |header: &FrameHeader| u64::from(open.header.epoch) + u64::from(header.epoch);
        let known_epoch = u64::from(list.epoch);
        // What is complete, and what belongs to a batch of which more must follow.
        let (mut tally, mut open_batch) = (known, known);
        let mut stopped = None;
        let mut reach = 0;
        loop {
            let position = u64::from(open_batch.end);
            if position + open.identity.layout.header_bytes_min() as u64 > self.file_bytes {
                break;
            }
            match self.frame(position)? {
                Seen::Frame(header, ..) if epoch_of(&header) > known_epoch => {
                    let fault = FrameFault::Epoch { found: epoch_of(&header), known: known_epoch };
                    stopped = Some((position, fault));
                    if !list.cache {
                        let damage = Error::corrupt(self.segment.path(), position, None, fault);
                        return Ok(FoundEnd { tally, damage: Some(damage), torn: None });
                    }
                    break;
                }
                // A leftover of an abandoned tail, or the footer of a seal that was cut short.
                Seen::Frame(header, ..)
                    if header.footer
                        || (epoch_of(&header) < known_epoch && !mutant::is(Mutant::StaleFrameAccepted)) =>
                {
                    break;
                }
                Seen::Frame(header, header_bytes, body) => {
                    let checksums = header.piece_checksums(&header_bytes, open.identity.layout, &body);
                    open_batch = open_batch.with(&open.identity, position, header.body_bytes, checksums);
                    if !header.more || mutant::is(Mutant::HalfBatchAccepted) {
                        tally = open_batch;
                    }
                }
                Seen::Nothing { fault, frame_end } => {
                    stopped = (fault != FrameFault::Empty).then_some((position, fault));
                    reach = frame_end.unwrap_or(0);
                    break;
                }
            }
        }
        let stop = u64::from(open_batch.end);
        if !list.cache {
            // The next write begins at most so far behind, with a frame that may be verified as a whole only.
            let frame_bytes = open.identity.layout.decoded_bytes_max(open.identity.body_limit_bytes) as u64;
            let look_to = reach.max(stop) + u64::from(open.header.in_flight_bytes) + frame_bytes;
            if let Some(witness) = self.last_witness(stop..look_to, &epoch_of, known_epoch)?
                && witness > u64::from(tally.end)
            {
                let fault = match stopped {
                    Some((_, fault)) => format!("{fault}; {}", FrameFault::Witnessed { witness }),
                    None => FrameFault::Witnessed { witness }.to_string(),
                };
                let damage = Error::corrupt(self.segment.path(), stop, None, fault);
                return Ok(FoundEnd { tally, damage: Some(damage), torn: None });
            }
        }
        Ok(FoundEnd { tally, damage: None, torn: stopped })
    }

    /// The last frame in a range of positions that says that everything before it was durable.
    fn last_witness(
        &mut self,
        range: Range<u64>,
        epoch_of: &dyn Fn(&FrameHeader) -> u64,
        epoch: u64,
    ) -> Result<Option<u64>> {
        let range = range.start..range.end.min(self.file_bytes);
        if range.is_empty() {
            return Ok(None);
        }
        let open = self.segment.open()?;
        let identity = open.identity;
        let epoch_in_frames = epoch.checked_sub(open.header.epoch.into()).and_then(|n| u16::try_from(n).ok());
        let bytes = self.bytes(range.clone())?;
        let mut found = None;
        for at in (0..bytes.len()).filter(|&at| identity.may_begin(&bytes[at..], epoch_in_frames)) {
            let position = range.start + at as u64;
            if let Ok(header) = FrameHeader::decode(&bytes[at..], &identity, position)
                && header.witness
                && epoch_of(&header) == epoch
            {
                found = Some(position);
            }
        }
        Ok(found)
    }
}

/// Decodes the segment list of the set in `dir`.
pub(crate) fn decode_list(dir: &Path, bytes: &[u8]) -> Result<SegmentList> {
    SegmentList::decode(bytes).map_err(|fault| match fault {
        SegmentListFault::Version(_) => {
            Error::NotFound { path: dir.to_path_buf(), expected: SET, reason: fault.to_string() }
        }
        _ => Error::corrupt(&dir.join(format!("{LIST_STEM}.a")), 0, None, fault),
    })
}

/// Refuses to go on if there is a segment with frames that a lost list must have named: any if there is no list, else
/// one behind the active segment, of this set and made in the list's epoch or later.
pub(crate) fn refuse_orphans(env: &Env, dir: &Path, list: Option<&SegmentList>) -> Result<()> {
    let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    for number in entries.iter().filter_map(|entry| number_of(&entry.name)) {
        if list.is_some_and(|list| number <= list.active().number) {
            continue;
        }
        let path = dir.join(segment_name(number));
        if let Some(reason) = orphan(env, &path, list)? {
            return Err(Error::corrupt(&path, 0, None, reason));
        }
    }
    Ok(())
}

/// Why a segment that no list names must have been named by one that is lost.
fn orphan(env: &Env, path: &Path, list: Option<&SegmentList>) -> Result<Option<String>> {
    let file = match env.disk.open(path, OpenMode::Read, PAGE_BYTES) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path, error)),
    };
    let header = match crate::segment_set::segment::read_file_header(&*file) {
        Ok(header) => header,
        // Making it was cut short before its header was durable.
        Err(error) if error.is_corruption() => return Ok(None),
        Err(error) => return Err(error),
    };
    if list.is_some_and(|list| header.stream_id != list.set_id || header.epoch < list.epoch) {
        return Ok(None);
    }
    let place =
        SegmentPlace { env: env.clone(), dir: parent_of(path), mode: OpenMode::Read, is_cache: false };
    let segment = Segment::created(&place, file, header);
    let mut scan = Scan::new(&segment)?;
    if scan.file_bytes <= PAGE_BYTES as u64 {
        return Ok(None);
    }
    Ok(match scan.frame(PAGE_BYTES as u64)? {
        Seen::Frame(..) | Seen::Nothing { frame_end: Some(_), .. } => {
            Some("the segment holds entries, but no segment list names it: a later list is gone".to_string())
        }
        Seen::Nothing { .. } => None,
    })
}
