//! Segment sets: entries found by pointers, for those who keep their own index.
//!
//! The principal type is [`SegmentSet`]. An entry is a byte string with a user's byte; [`SegmentSet::append`] answers a
//! [`Pointer`] to it, and that is the only name it has. Entries lie in segments, each entry in one piece, so that ranges
//! can be read without the rest. The owner says which entries are dead ([`SegmentSet::release`]), copies the living out
//! of the worst segments, and gives those back as a whole ([`SegmentSet::reclaim`]).
//!
//! The way of an entry: [`SegmentSet::append`] → [`appender`] (place, buffer, group commit) → [`image`] (frames) →
//! `io::File::write_at`. And back: [`SegmentSet::read`] → [`segment`] (bytes, checked) → the body.
//!
//! **Invariants.** The list decides, and it decides first: a segment that the durable list names is there before the
//! list is written, and one that it no longer names is touched only afterwards. A number is never used for two segments.

mod appender;
mod copy;
mod entry_buffer;
mod frames;
mod image;
mod options;
mod reader;
mod recovery;
mod segment;

use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

pub use copy::EntryHead;
pub use entry_buffer::EntryBuffer;
pub use frames::Entries;
pub use options::{Durability, FooterHook, SetKind, SetOptions};
pub use reader::SegmentSetReader;

use crate::codec::{Footer, FooterFault, ListedSegment, Pointer, SegmentList, StreamId, Tally};
use crate::directory::{self, WriterLock};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::final_data::{FinalDataOptions, StatePair};
use crate::io::{Access, OpenMode};
use crate::metrics::Latencies;
use crate::mutant::{self, Mutant};
use crate::write_path::space::{self, Space};
use appender::{Appender, Recovered};
use options::PAGE_BYTES;
use recovery::Layout;
use segment::{
    Expected, Frame, FrameSource, Segment, SegmentPlace, Window, number_of, read_frame, read_part,
};

/// Stem of the segment list's pair of files.
pub(crate) const LIST_STEM: &str = "set";
/// Blocks of a list's file before the other one takes over.
const LIST_LIMIT_BLOCKS: u32 = 16;
/// What stands at the path, for messages.
pub(crate) const SET: &str = "a segment set";

/// A segment set open for writing.
///
/// Cloning is cheap; all clones are one set. One process has it open for writing; others use [`SegmentSetReader`]. When
/// the last clone goes away the set is closed as by [`SegmentSet::close`], with errors logged instead of returned.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// use lsfs::{Durability, SegmentSet, SetOptions};
///
/// let set = SegmentSet::open(dir.path().join("values"), SetOptions::default())?;
/// let pointer = set.append(0, b"hello", Durability::Sync)?; // on the medium when it returns
/// assert_eq!(&set.read(pointer)?.body[..], b"hello");
/// set.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SegmentSet {
    owner: Arc<Owner>,
}

/// Closes the set when the last handle goes.
#[derive(Debug)]
struct Owner {
    appender: Arc<Appender>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Err(error) = self.appender.close() {
            tracing::warn!(dir = %self.appender.dir.display(), %error, "segment set was not closed cleanly");
        }
    }
}

/// The body of an entry, or a part of it: without a copy where it was in memory.
#[derive(Clone, Debug)]
pub struct Body(Window);

impl Body {
    /// The bytes as a vector.
    pub fn into_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

impl Deref for Body {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Body {
    fn eq(&self, other: &T) -> bool {
        self.0[..] == *other.as_ref()
    }
}

impl From<Window> for Body {
    fn from(window: Window) -> Self {
        Body(window)
    }
}

/// An entry that was read; its bytes verified.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where it lies.
    pub pointer: Pointer,
    /// The user's byte.
    pub kind: u8,
    /// Whether it is the last of the batch it was appended in.
    pub ends_batch: bool,
    /// Its bytes.
    pub body: Body,
}

impl Entry {
    /// What it is, without its body.
    pub fn head(&self) -> EntryHead {
        let Entry { pointer, kind, ends_batch, .. } = *self;
        EntryHead { pointer, kind, ends_batch }
    }

    fn new(segment: &Segment, frame: Frame) -> Result<Entry> {
        let EntryHead { pointer, kind, ends_batch } = EntryHead::new(segment, frame.pointer, &frame.header)?;
        Ok(Entry { pointer, kind, ends_batch, body: frame.body.into() })
    }
}

/// A segment, seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetSegmentInfo {
    /// Its number, as in pointers.
    pub number: u32,
    /// Whether it is sealed: only then it can be reclaimed.
    pub is_sealed: bool,
    /// Entries.
    pub entries: u32,
    /// Bytes of their bodies.
    pub body_bytes: u32,
    /// Bytes of their frames: what reclaiming the segment would give back.
    pub total_bytes: u64,
    /// Of these, bytes of entries that were not released. A hint after a crash: see [`SegmentSet::release`].
    pub live_bytes: u64,
    /// Position behind the last entry.
    pub end: u32,
    /// Position of the last entry; 0 if there is none.
    pub last: u32,
    /// CRC-32C over the checksums of all entries: two segments with the same entries have the same.
    pub digest: u32,
}

impl SetSegmentInfo {
    fn new(segment: &Segment, tally: Tally) -> Self {
        let total_bytes = u64::from(tally.end).saturating_sub(PAGE_BYTES as u64);
        SetSegmentInfo {
            number: segment.number,
            is_sealed: segment.sealed().is_some(),
            entries: tally.entries,
            body_bytes: tally.body_bytes,
            total_bytes,
            live_bytes: total_bytes.saturating_sub(segment.released_bytes()),
            end: tally.end,
            last: tally.last,
            digest: tally.digest,
        }
    }
}

/// What a set has counted since it was opened, and what it holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetStats {
    /// Segment files.
    pub segments: u64,
    /// Number of the active segment; of the one before, until everything in it is durable and it is sealed.
    pub active: u32,
    /// Bytes of the active segment known durable (in a cache: handed to the system).
    pub durable_end: u32,
    /// Entries in all segments.
    pub entries: u64,
    /// Bytes of segments in use, their headers included.
    pub used_bytes: u64,
    /// Bytes of frames that were not released.
    pub live_bytes: u64,
    /// Bytes made ready for entries to come: the rest of the active segment, and spares.
    pub ready_bytes: u64,
    /// Memory held by recent entries and the buffer being filled.
    pub memory_bytes: u64,
    /// Entries appended since the open.
    pub appended_entries: u64,
    /// Bytes of their bodies.
    pub appended_bytes: u64,
    /// Writes of frames since the open.
    pub writes: u64,
    /// Bytes of pages they carried.
    pub written_bytes: u64,
    /// How many writes were synced, or followed by a sync.
    pub syncs: u64,
    /// Zeros written ahead, which no entry asked for.
    pub zero_bytes: u64,
    /// Segments reclaimed since the open.
    pub reclaimed_segments: u64,
    /// Of these, files kept to be used again.
    pub recycled_segments: u64,
    /// How long writes of frames took, syncs included.
    pub write_latency: Latencies,
    /// Whether the active segment is written with direct I/O.
    pub access: Access,
    /// The writer's epoch: grows with every open.
    pub epoch: u32,
    /// Whether a failed write has stopped the set: every append fails until it is opened again.
    pub is_stopped: bool,
}

impl SegmentSet {
    /// Opens the set in `dir` for writing, or creates it.
    ///
    /// Opening reads the list and what was written since it was (at most 8 MiB and a write); sealed segments are not
    /// looked at. After a crash it drops what a torn write left (docs/durability.md).
    ///
    /// # Errors
    /// [`Error::Locked`] if another writer has it open; [`Error::Corrupt`] if durable bytes no longer verify: then
    /// nothing is changed, and [`SegmentSetReader`] still reads what is intact; [`Error::NotFound`] if there is
    /// something else; [`Error::InvalidOption`] also for another [`SetKind`] than the set was created with.
    pub fn open(dir: impl AsRef<Path>, options: SetOptions) -> Result<SegmentSet> {
        SegmentSet::open_in(Env::default(), dir, options)
    }

    /// As [`SegmentSet::open`], on the given disk and runtime.
    pub fn open_in(env: Env, dir: impl AsRef<Path>, options: SetOptions) -> Result<SegmentSet> {
        let dir = dir.as_ref();
        options.check()?;
        if options.create {
            directory::create(&env, dir)?;
        }
        let exists = set_exists(&env, dir)?;
        if !exists {
            if !options.create {
                let reason = "it has no segment list".to_string();
                return Err(Error::NotFound { path: dir.to_path_buf(), expected: SET, reason });
            }
            refuse_occupied(&env, dir)?;
        }
        let lock = WriterLock::acquire(&env, dir)?;
        let list_options =
            FinalDataOptions { limit_blocks: LIST_LIMIT_BLOCKS, ..FinalDataOptions::default() };
        let pair = StatePair::open(env.clone(), dir, LIST_STEM, list_options)?;
        let is_cache = options.kind == SetKind::Cache;
        let place =
            SegmentPlace { env: env.clone(), dir: dir.to_path_buf(), mode: OpenMode::Write, is_cache };
        let space = Space::new(&env, dir, options.space());
        let recovered = match pair.state() {
            Some(state) => {
                let list = recovery::decode_list(dir, &state.bytes)?;
                recover(&place, &options, &space, pair, list)?
            }
            None => create(&place, &options, &space, pair)?,
        };
        let appender = Appender::start(place, options, space, lock, recovered)?;
        Ok(SegmentSet { owner: Arc::new(Owner { appender }) })
    }

    fn appender(&self) -> &Appender {
        &self.owner.appender
    }

    /// What tells this set from every other one; chosen when it was created.
    pub fn id(&self) -> StreamId {
        self.appender().set_id
    }

    /// Appends an entry; `durability` says when the call returns. Answers its place.
    ///
    /// Do not keep the pointer where it survives a crash before the entry does: in place of an entry that was lost, the
    /// next ones are appended. (In a cache places are not used again, so pointers may be kept; what was lost is
    /// [`Error::Gone`].)
    ///
    /// # Errors
    /// [`Error::TooLarge`] and [`Error::NoSpace`] change nothing: the latter means that no new segment could be made,
    /// and reclaiming gives space back. [`Error::IndeterminateEntries`] if the write that carried the entry failed:
    /// after reopening it may be there or not. [`Error::Poisoned`] after any earlier failure.
    pub fn append(&self, kind: u8, body: &[u8], durability: Durability) -> Result<Pointer> {
        self.append_parts(kind, [body, &[]], durability)
    }

    /// As [`SegmentSet::append`], of an entry whose body lies in two parts: they need not be put together before.
    ///
    /// # Errors
    /// As for [`SegmentSet::append`].
    pub fn append_parts(&self, kind: u8, body: [&[u8]; 2], durability: Durability) -> Result<Pointer> {
        let entry = appender::Entry::new(kind, body, &self.appender().options)?;
        let mut pointer = None;
        self.appender().append(&[entry], durability, |placed| pointer = Some(placed))?;
        Ok(pointer.expect("an entry that was appended has a place"))
    }

    /// Appends entries as one: after a crash all of them are there, or none. They lie one behind the other.
    ///
    /// # Errors
    /// As for [`SegmentSet::append`]; [`Error::TooLarge`] also if they do not fit one segment of 2 GiB.
    pub fn append_batch<B: AsRef<[u8]>>(
        &self,
        entries: &[(u8, B)],
        durability: Durability,
    ) -> Result<Vec<Pointer>> {
        self.append_batch_of_parts(
            entries.iter().map(|(kind, body)| (*kind, [body.as_ref(), &[]])),
            durability,
        )
    }

    /// As [`SegmentSet::append_batch`], of entries whose bodies lie in two parts.
    ///
    /// # Errors
    /// As for [`SegmentSet::append_batch`].
    pub fn append_batch_of_parts<'a>(
        &self,
        entries: impl IntoIterator<Item = (u8, [&'a [u8]; 2])>,
        durability: Durability,
    ) -> Result<Vec<Pointer>> {
        let entries = self.prepared(entries)?;
        let mut pointers = Vec::with_capacity(entries.len());
        self.appender().append(&entries, durability, |placed| pointers.push(placed))?;
        Ok(pointers)
    }

    /// Appends entries as by [`SegmentSet::append`] with [`Durability::Buffer`] for each of them, which is faster; their
    /// bodies lie in two parts. Tells `placed` where each lies, in their order.
    ///
    /// # Errors
    /// As for [`SegmentSet::append`]; entries that `placed` was told of were appended.
    pub fn append_each<'a>(
        &self,
        entries: impl IntoIterator<Item = (u8, [&'a [u8]; 2])>,
        placed: impl FnMut(Pointer),
    ) -> Result<()> {
        self.appender().append_each(&self.prepared(entries)?, placed)
    }

    fn prepared<'a>(
        &self,
        entries: impl IntoIterator<Item = (u8, [&'a [u8]; 2])>,
    ) -> Result<Vec<appender::Entry<'a>>> {
        let options = &self.appender().options;
        entries.into_iter().map(|(kind, body)| appender::Entry::new(kind, body, options)).collect()
    }

    /// Returns when everything appended before the call is durable; in a cache, when it is handed to the system.
    ///
    /// # Errors
    /// As for [`SegmentSet::append`].
    pub fn sync(&self) -> Result<()> {
        self.appender().sync()
    }

    /// The entry at a place, also if it is not durable yet.
    ///
    /// # Errors
    /// [`Error::Gone`] if its segment was reclaimed, or in a cache lost; [`Error::NoEntry`] if the pointer is not one
    /// that an append answered; [`Error::Corrupt`] if the bytes do not verify.
    pub fn read(&self, pointer: Pointer) -> Result<Entry> {
        let segment = self.appender().segment(pointer.segment)?;
        read_pointer(self.appender(), &segment, pointer)
    }

    /// As [`SegmentSet::read`], for those who do not keep the length. A wrong place is [`Error::Corrupt`] as well.
    ///
    /// # Errors
    /// As for [`SegmentSet::read`].
    pub fn read_at(&self, segment: u32, position: u32) -> Result<Entry> {
        let segment = self.appender().segment(segment)?;
        read_position(self.appender(), &segment, position)
    }

    /// As [`SegmentSet::read_at`], into a buffer of the caller, which then holds the body and nothing else.
    ///
    /// The bytes are copied once, and nothing is allocated where the buffer has room.
    ///
    /// # Errors
    /// As for [`SegmentSet::read`]; the buffer then holds anything.
    pub fn read_at_into(&self, segment: u32, position: u32, body: &mut Vec<u8>) -> Result<EntryHead> {
        let segment = self.appender().segment(segment)?;
        copy::read_into(self.appender(), &segment, position, body)
    }

    /// The entry at a place, of which only the first bytes are read: as many as `start` holds, or the body has. Answers
    /// how many, too. **They are not verified**, only that the entry is there.
    ///
    /// # Errors
    /// As for [`SegmentSet::read`].
    pub fn peek_at(&self, segment: u32, position: u32, start: &mut [u8]) -> Result<(EntryHead, usize)> {
        let segment = self.appender().segment(segment)?;
        copy::peek(self.appender(), &segment, position, start)
    }

    /// Asks the processor for the beginnings of entries that are about to be read, given as segments and positions: as far
    /// as they are read from mapped memory, it then fetches several at a time. A hint that changes nothing and never
    /// waits.
    pub fn prefetch(&self, places: impl IntoIterator<Item = (u32, u32)>) {
        self.appender().visit(places.into_iter(), copy::prefetch);
    }

    /// Reads what lies in a segment from a position on into the system's page cache, so that reads by pointer need not
    /// wait for the disk: direct I/O leaves nothing there. Answers up to where; the rest of an active segment is in the
    /// memory of this process, and moves on as more is appended. Blocks meanwhile; only a matter of speed.
    ///
    /// # Errors
    /// [`Error::Gone`] if the segment was reclaimed.
    pub fn load_from(&self, segment: u32, position: u32) -> Result<u32> {
        Ok(self.appender().segment(segment)?.load_from(position.into()) as u32)
    }

    /// A part of an entry's body. Only the pieces of 64 KiB that it touches are read and verified.
    ///
    /// # Errors
    /// As for [`SegmentSet::read`]; [`Error::NoEntry`] also if the body is shorter.
    pub fn read_range(&self, pointer: Pointer, range: Range<u32>) -> Result<Body> {
        let segment = self.appender().segment(pointer.segment)?;
        read_pointed_part(self.appender(), &segment, pointer, range)
    }

    /// A handle on a segment, which stays readable as long as the handle lives, also if it is reclaimed meanwhile.
    ///
    /// # Errors
    /// [`Error::Gone`] if there is none with this number.
    pub fn segment(&self, number: u32) -> Result<SegmentHandle> {
        let segment = self.appender().segment(number)?;
        segment.hold()?;
        Ok(SegmentHandle { segment, source: self.source() })
    }

    /// All entries, oldest first, as far as they are durable when the cursor comes to them.
    pub fn iter(&self) -> Entries {
        Entries::from_segment(self.source(), 0)
    }

    /// The entries from a place on: of an entry, or behind the last one that was seen ([`Entries::place`]).
    pub fn iter_from(&self, segment: u32, position: u32) -> Entries {
        Entries::from_place(self.source(), segment, position)
    }

    fn source(&self) -> Arc<dyn FrameSource> {
        Arc::clone(&self.owner.appender) as Arc<dyn FrameSource>
    }

    /// Says that an entry is not needed any more. Its bytes stay until its segment is reclaimed.
    ///
    /// Each entry is to be released once; this is not checked. The sum for each segment is made durable when a segment
    /// is sealed or reclaimed and when the set is closed. After a clean close it is what it was; after a crash it is a
    /// hint, too low by what was released since: see [`SegmentSet::live_bytes_are_exact`].
    ///
    /// # Errors
    /// [`Error::Gone`] if its segment was reclaimed.
    pub fn release(&self, pointer: Pointer) -> Result<()> {
        self.appender().segment(pointer.segment)?.release(pointer.frame_bytes());
        Ok(())
    }

    /// As [`SegmentSet::release`] for each of several entries, under one lock. Those in segments that were reclaimed are
    /// left out.
    pub fn release_each(&self, pointers: impl IntoIterator<Item = Pointer>) {
        let places = pointers.into_iter().map(|pointer| (pointer.segment, pointer.frame_bytes()));
        self.appender().visit(places, |segment, frame_bytes| segment.release(frame_bytes));
    }

    /// Replaces the count of a segment's live bytes, by an owner who has counted them.
    ///
    /// # Errors
    /// [`Error::Gone`] if there is none with this number.
    pub fn set_live_bytes(&self, segment: u32, live_bytes: u64) -> Result<()> {
        let segment = self.appender().segment(segment)?;
        let total = self.appender().appended_end(&segment) - PAGE_BYTES as u64;
        segment.set_released_bytes(total.saturating_sub(live_bytes));
        Ok(())
    }

    /// Whether the counts of live bytes found at the open were exact: the set had been closed, or was new.
    pub fn live_bytes_are_exact(&self) -> bool {
        self.appender().were_live_bytes_exact
    }

    /// Ends the active segment with a footer and goes on in a new one. Answers the sealed segment's number. Appends do
    /// this by themselves when a segment is full.
    ///
    /// # Errors
    /// As for [`SegmentSet::append`].
    pub fn seal(&self) -> Result<u32> {
        self.appender().seal_active()
    }

    /// Gives back sealed segments with all their entries; durable on return, and none of them ever comes back. Their
    /// files are removed, or kept to be used again, within the call. Handles and cursors that hold one go on reading.
    ///
    /// Works also after an append has failed with [`Error::NoSpace`].
    ///
    /// # Errors
    /// [`Error::Gone`] if there is none with one of the numbers, [`Error::NoEntry`] if it is the active one: then
    /// nothing is changed. After any other error the segments are reclaimed or not, and the set is stopped.
    pub fn reclaim(&self, segments: &[u32]) -> Result<()> {
        self.appender().reclaim(segments)
    }

    /// All segments, oldest first.
    pub fn segments(&self) -> Vec<SetSegmentInfo> {
        let tallies = self.appender().tallies();
        tallies.iter().map(|(segment, tally)| SetSegmentInfo::new(segment, *tally)).collect()
    }

    /// What the set counted and holds.
    pub fn stats(&self) -> SetStats {
        let appender = self.appender();
        let (segments, facts, metrics) = (self.segments(), appender.facts(), &appender.metrics);
        SetStats {
            segments: segments.len() as u64,
            active: facts.active,
            durable_end: facts.durable_end,
            entries: segments.iter().map(|segment| u64::from(segment.entries)).sum(),
            used_bytes: facts.used_bytes,
            live_bytes: segments.iter().map(|segment| segment.live_bytes).sum(),
            ready_bytes: facts.unused_bytes + facts.next_bytes + appender.space.ready_bytes(),
            memory_bytes: facts.memory_bytes,
            appended_entries: facts.appended_entries,
            appended_bytes: facts.appended_bytes,
            writes: metrics.writes.get(),
            written_bytes: metrics.written_bytes.get(),
            syncs: metrics.syncs.get(),
            zero_bytes: appender.space.zero_bytes.get(),
            reclaimed_segments: metrics.reclaimed_segments.get(),
            recycled_segments: appender.space.recycled_segments.get(),
            write_latency: metrics.write_latency.summary(),
            access: facts.access,
            epoch: facts.epoch,
            is_stopped: facts.is_stopped,
        }
    }

    /// Makes the counts of live bytes and the end of the active segment durable in the list: the next open verifies
    /// what is written after this.
    ///
    /// # Errors
    /// As for [`SegmentSet::append`].
    pub fn checkpoint(&self) -> Result<()> {
        self.sync()?;
        self.appender().refresh_list()
    }

    /// Makes everything durable, leaves a witness of it, and lets the lock go. Later appends fail with
    /// [`Error::Closed`].
    ///
    /// # Errors
    /// As for [`SegmentSet::append`]; the lock is let go all the same.
    pub fn close(&self) -> Result<()> {
        self.appender().close()
    }
}

/// A segment that can be read as long as this lives, also if it is reclaimed meanwhile.
#[derive(Clone, Debug)]
pub struct SegmentHandle {
    segment: Arc<Segment>,
    source: Arc<dyn FrameSource>,
}

impl SegmentHandle {
    /// Its number.
    pub fn number(&self) -> u32 {
        self.segment.number
    }

    /// As [`SegmentSet::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read(&self, pointer: Pointer) -> Result<Entry> {
        read_pointer(&*self.source, &self.segment, pointer)
    }

    /// As [`SegmentSet::read_at`].
    ///
    /// # Errors
    /// As there.
    pub fn read_at(&self, position: u32) -> Result<Entry> {
        read_position(&*self.source, &self.segment, position)
    }

    /// As [`SegmentSet::read_range`].
    ///
    /// # Errors
    /// As there.
    pub fn read_range(&self, pointer: Pointer, range: Range<u32>) -> Result<Body> {
        read_pointed_part(&*self.source, &self.segment, pointer, range)
    }

    /// The footer of a sealed segment and the bytes that its owner put into it; `None` while the segment is active.
    ///
    /// # Errors
    /// As for [`SegmentSet::read`].
    pub fn footer(&self) -> Result<Option<(Footer, Body)>> {
        let Some(tally) = self.segment.sealed() else { return Ok(None) };
        let position = u64::from(tally.end);
        let expected = Expected { position, len: None, end: self.segment.file_bytes()? };
        let frame = read_frame(&*self.source, &self.segment, expected)?;
        let fault = |fault: FooterFault| Error::corrupt(self.segment.path(), position, None, fault);
        let (footer, users) = Footer::decode(&frame.body).map_err(fault)?;
        let users_bytes = frame.body.len() - users.len()..frame.body.len();
        Ok(Some((footer, frame.body.part(users_bytes).into())))
    }
}

fn other_segment(segment: &Segment, pointer: &Pointer) -> Error {
    let reason = format!("the pointer is one into segment {}", pointer.segment);
    segment.no_entry(pointer.position.into(), reason)
}

fn read_pointer(source: &dyn FrameSource, segment: &Segment, pointer: Pointer) -> Result<Entry> {
    if pointer.segment != segment.number {
        return Err(other_segment(segment, &pointer));
    }
    let end = source.readable_end(segment, pointer.end())?;
    let frame = read_frame(source, segment, Expected::of(&pointer, end))?;
    Entry::new(segment, frame)
}

fn read_position(source: &dyn FrameSource, segment: &Segment, position: u32) -> Result<Entry> {
    let position = u64::from(position);
    let end = source.readable_end(segment, position + 1)?;
    let frame = read_frame(source, segment, Expected { position, len: None, end })?;
    Entry::new(segment, frame)
}

fn read_pointed_part(
    source: &dyn FrameSource,
    segment: &Segment,
    pointer: Pointer,
    range: Range<u32>,
) -> Result<Body> {
    if pointer.segment != segment.number {
        return Err(other_segment(segment, &pointer));
    }
    let end = source.readable_end(segment, pointer.end())?;
    Ok(read_part(source, segment, Expected::of(&pointer, end), range)?.into())
}

/// Whether `dir` holds a segment set.
pub(crate) fn set_exists(env: &Env, dir: &Path) -> Result<bool> {
    let not_found =
        |reason: &str| Error::NotFound { path: dir.to_path_buf(), expected: SET, reason: reason.to_string() };
    match env.disk.list(dir) {
        Ok(_) => StatePair::exists(env, dir, LIST_STEM),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(not_found("no such directory")),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            Err(not_found("it is a file, not a directory"))
        }
        Err(error) => Err(Error::io("list", dir, error)),
    }
}

/// A new set starts in an empty directory, or in one where starting was interrupted.
fn refuse_occupied(env: &Env, dir: &Path) -> Result<()> {
    let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let ours = |name: &str| space::is_spare(name) || number_of(name).is_some() || directory::is_control(name);
    match entries.iter().find(|entry| !ours(&entry.name)) {
        None => Ok(()),
        Some(entry) => Err(Error::NotFound {
            path: dir.to_path_buf(),
            expected: SET,
            reason: format!("it holds the file {}; use an empty or new directory", entry.name),
        }),
    }
}

const FIRST_NUMBER: u32 = 1;

/// Makes the first segment and the first list.
fn create(
    place: &SegmentPlace,
    options: &SetOptions,
    space: &Space,
    mut pair: StatePair,
) -> Result<Recovered> {
    let SegmentPlace { env, dir, .. } = place;
    // Without a list there are no entries, unless the list was lost: those are not to be removed.
    recovery::refuse_orphans(env, dir, None)?;
    remove_unnamed(env, dir, space, &[])?;
    let set_id = directory::new_stream_id(env);
    let active = appender::create_segment(place, options, set_id, 1, FIRST_NUMBER, space.first()?)?;
    let tally = Tally::of_empty();
    let list = SegmentList {
        set_id,
        epoch: 1,
        closed: false,
        cache: place.is_cache,
        segments: vec![active.entry(tally)],
    };
    pair.set(&list.encode())?;
    // A full disk must not keep anybody from opening the set again, which writes to the other file.
    pair.prepare_other()?;
    tracing::info!(dir = %dir.display(), %set_id, "segment set created");
    Ok(Recovered { set_id, epoch: 1, pair, sealed: Vec::new(), active, tally, were_live_bytes_exact: true })
}

/// Brings a set back: docs/durability.md, "Segment sets".
fn recover(
    place: &SegmentPlace,
    options: &SetOptions,
    space: &Space,
    mut pair: StatePair,
    mut list: SegmentList,
) -> Result<Recovered> {
    let SegmentPlace { env, dir, .. } = place;
    if list.cache != place.is_cache {
        let name = |is_cache| if is_cache { "Cache" } else { "Durable" };
        return Err(Error::InvalidOption {
            option: "kind",
            value: name(place.is_cache).to_string(),
            expected: format!("{}, as the set was created", name(list.cache)),
        });
    }
    if !place.is_cache {
        recovery::refuse_orphans(env, dir, Some(&list))?;
    }
    let Layout { mut sealed, active, end } = Layout::find(place, &list, None)?;
    if let Some(damage) = end.damage {
        return Err(damage);
    }
    let were_live_bytes_exact = list.closed;
    list.epoch = directory::next_epoch(dir, list.epoch)?;
    list.closed = false;
    let (active, tally) = match active {
        // Entries of a cache that a crash took may still be pointed to: their places are not used again.
        Some(lost) if place.is_cache && !were_live_bytes_exact => {
            lost.seal(end.tally);
            sealed.push(lost);
            (None, Tally::of_empty())
        }
        active => (active, end.tally),
    };
    let (active, tally) = match active {
        Some(active) => {
            // What was read may still be in the device's cache only; from now on others may rely on it.
            if !place.is_cache && !mutant::is(Mutant::NoSegmentSyncAtOpen) {
                let file = &active.open()?.file;
                file.sync().map_err(|error| Error::io("sync", active.path(), error))?;
            }
            (active, tally)
        }
        None => {
            let number = list.active().number + 1;
            let spare = space.first()?;
            let made = appender::create_segment(place, options, list.set_id, list.epoch, number, spare)?;
            (made, Tally::of_empty())
        }
    };
    // The decision where the set ends is durable before anything changes; a new epoch shuts out what lies behind.
    list.segments = sealed
        .iter()
        .filter_map(|segment| Some(segment.entry(*segment.sealed()?)))
        .chain([active.entry(tally)])
        .collect();
    pair.set(&list.encode())?;
    remove_unnamed(env, dir, space, &list.segments)?;
    if let Some((position, fault)) = end.torn {
        tracing::warn!(path = %active.path().display(), position, %fault, "torn tail dropped");
    }
    tracing::info!(dir = %dir.display(), segments = list.segments.len(), "segment set opened");
    let SegmentList { set_id, epoch, .. } = list;
    Ok(Recovered { set_id, epoch, pair, sealed, active, tally, were_live_bytes_exact })
}

/// Removes spares and segments that no list names: leftovers of a seal or reclaim cut short.
fn remove_unnamed(env: &Env, dir: &Path, space: &Space, named: &[ListedSegment]) -> Result<()> {
    let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    for entry in entries {
        let unnamed = number_of(&entry.name)
            .is_some_and(|number| named.binary_search_by_key(&number, |segment| segment.number).is_err());
        if unnamed || space::is_spare(&entry.name) {
            tracing::debug!(file = entry.name, "removing an unnamed file");
            space.remove(&dir.join(&entry.name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames have 16 bits for the writer's epoch, counted from the one in which their segment was made.
    #[test]
    fn a_segment_that_was_opened_too_often_is_followed_by_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::default();
        let open = || SegmentSet::open_in(env.clone(), dir.path(), SetOptions::default()).unwrap();
        let mut pointers = vec![open().append(0, b"first", Durability::Sync).unwrap()];
        for epoch in [65_534u32, 65_536, 1 << 20] {
            let mut pair =
                StatePair::open(env.clone(), dir.path(), LIST_STEM, FinalDataOptions::default()).unwrap();
            let state = pair.state().unwrap().bytes.clone();
            let list = SegmentList { epoch, ..SegmentList::decode(&state).unwrap() };
            pair.set(&list.encode()).unwrap();
            drop(pair);
            for _ in 0..2 {
                let set = open();
                pointers.push(set.append(0, b"more", Durability::Sync).unwrap());
            }
        }
        let set = open();
        let mut entries = set.iter();
        for pointer in &pointers {
            assert_eq!(entries.next_entry().unwrap().unwrap().pointer, *pointer);
        }
        assert!(entries.next_entry().unwrap().is_none());
        assert!((2..6).contains(&set.segments().len()), "{:?}", set.segments());
    }
}
