//! The bytes of a file, field by field, in the names and at the offsets of `docs/format.md`.
//!
//! The principal function is [`dump`]: it takes one file of any kind apart and hands over [`Part`]s, whatever their bytes
//! are. Damaged and foreign bytes are shown as such. [`LAYOUTS`] are the tables it reads by; a test compares them with
//! those of the document. A new kind of file is one more arm of [`dump`] and its tables.

use std::fmt::Write;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use crate::codec::{
    BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES, BLOCK_TAILER_BYTES, BlockFault, BlockHeader, BlockTailer, Checksum,
    FILE_HEADER_BYTES, FOOTER_BYTES, FRAME_PIECE_BYTES, FileHeader, FileKind, Footer, FrameFault,
    FrameHeader, FrameIdentity, FrameLayout, MARK_BYTES, MappedFrameLook, RECORD_TAILER_BYTES, RecordHeader,
    SLICE_HEADER_BYTES, SLICE_OVERHEAD_BYTES, SLICE_TAILER_BYTES, SegmentStatistics, SliceView, SparseTable,
    check_pieces, is_block_size,
};
use crate::directory::{LIVE_NAME, LOCK_NAME};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::io::{ANY_UNIT_BYTES, AlignedBuf, File, OpenMode};

/// How the bytes of a field are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Text.
    Text,
    /// A little-endian number.
    Number,
    /// A number that only identifies: in hexadecimal.
    Id,
    /// Bytes, as they are.
    Bytes,
}

/// One field of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldLayout {
    /// Offset in the layout.
    pub offset: usize,
    /// Its bytes.
    pub bytes: usize,
    /// Its name in the document.
    pub name: &'static str,
    /// How it is read.
    pub show: Show,
}

/// A table of fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What it is called in a dump.
    pub name: &'static str,
    /// The beginning of the heading, or of the line, above its table in the document.
    pub heading: &'static str,
    /// Its fields.
    pub fields: &'static [FieldLayout],
}

const fn field(offset: usize, bytes: usize, name: &'static str, show: Show) -> FieldLayout {
    FieldLayout { offset, bytes, name, show }
}

const FILE_HEADER: Layout = Layout {
    name: "file header",
    heading: "### File header",
    fields: &[
        field(0, 8, "magic", Show::Text),
        field(8, 4, "format version", Show::Number),
        field(12, 4, "checksum", Show::Id),
        field(16, 1, "kind", Show::Number),
        field(17, 1, "checksum kind", Show::Number),
        field(18, 1, "compression", Show::Number),
        field(19, 1, "flags", Show::Number),
        field(20, 4, "block size", Show::Number),
        field(24, 16, "stream id", Show::Bytes),
        field(40, 8, "segment id", Show::Id),
        field(48, 8, "base index", Show::Number),
        field(56, 4, "epoch", Show::Number),
        field(60, 4, "in-flight limit", Show::Number),
        field(64, 4, "record limit", Show::Number),
        field(68, 12, "reserved", Show::Bytes),
    ],
};

const BLOCK_HEADER: Layout = Layout {
    name: "block header",
    heading: "### Block header",
    fields: &[
        field(0, 4, "magic", Show::Text),
        field(4, 4, "checksum", Show::Id),
        field(8, 8, "segment id", Show::Id),
        field(16, 4, "block number", Show::Number),
        field(20, 4, "epoch", Show::Number),
        field(24, 8, "first index", Show::Number),
        field(32, 8, "durable index", Show::Number),
        field(40, 8, "durable position", Show::Number),
        field(48, 2, "used", Show::Number),
    ],
};

const BLOCK_TAILER: Layout = Layout {
    name: "block tailer",
    heading: "### Block tailer",
    fields: &[
        field(0, 2, "last slice start", Show::Number),
        field(2, 2, "used", Show::Number),
        field(4, 4, "magic", Show::Text),
    ],
};

const SLICE_HEADER: Layout = Layout {
    name: "slice header",
    heading: "### Slice header",
    fields: &[
        field(0, 1, "magic", Show::Id),
        field(1, 1, "flags", Show::Number),
        field(2, 2, "index delta", Show::Number),
        field(4, 4, "slice number", Show::Number),
        field(8, 2, "body length", Show::Number),
    ],
};

const SLICE_TAILER: Layout = Layout {
    name: "slice tailer",
    heading: "### Slice tailer",
    fields: &[
        field(0, 4, "slice number", Show::Number),
        field(4, 2, "index delta", Show::Number),
        field(6, 2, "start", Show::Number),
        field(8, 1, "magic", Show::Id),
        field(9, 4, "checksum", Show::Id),
    ],
};

const RECORD_HEADER: Layout = Layout {
    name: "record header",
    heading: "### Record header",
    fields: &[
        field(0, 1, "magic and compression", Show::Id),
        field(1, 8, "type code", Show::Number),
        field(9, 4, "stored length", Show::Number),
        field(13, 4, "raw length", Show::Number),
    ],
};

const RECORD_TAILER: Layout = Layout {
    name: "record tailer",
    heading: "### Record tailer",
    fields: &[
        field(0, 8, "record index", Show::Number),
        field(8, 8, "type code", Show::Number),
        field(16, 4, "first block", Show::Number),
        field(20, 2, "first offset", Show::Number),
        field(22, 1, "magic", Show::Id),
    ],
};

const MANIFEST: Layout = Layout {
    name: "manifest",
    heading: "## The manifest",
    fields: &[
        field(0, 4, "magic", Show::Text),
        field(4, 4, "version", Show::Number),
        field(8, 16, "stream id", Show::Bytes),
        field(24, 4, "epoch", Show::Number),
        field(28, 4, "closed", Show::Number),
        field(32, 8, "first index", Show::Number),
        field(40, 4, "lost ranges", Show::Number),
        field(44, 4, "segments", Show::Number),
    ],
};

const MANIFEST_ENTRY: Layout = Layout {
    name: "manifest entry",
    heading: "An entry:",
    fields: &[
        field(0, 8, "segment id", Show::Id),
        field(8, 8, "base index", Show::Number),
        field(16, 8, "next index", Show::Number),
        field(24, 8, "end position", Show::Number),
    ],
};

const LOST_RANGE: Layout = Layout {
    name: "lost range",
    heading: "A lost range,",
    fields: &[field(0, 8, "first lost", Show::Number), field(8, 8, "next kept", Show::Number)],
};

const MARK: Layout = Layout {
    name: "mark",
    heading: "### Mark",
    fields: &[
        field(0, 4, "magic", Show::Text),
        field(4, 4, "version", Show::Number),
        field(8, 8, "number", Show::Number),
        field(16, 8, "byte count", Show::Number),
        field(24, 8, "record count", Show::Number),
        field(32, 8, "first segment", Show::Number),
        field(40, 4, "first block", Show::Number),
        field(44, 4, "last block", Show::Number),
        field(48, 2, "first offset", Show::Number),
        field(50, 10, "reserved", Show::Bytes),
    ],
};

const LIVE_PAGE: Layout = Layout {
    name: "live page",
    heading: "## The live page",
    fields: &[
        field(0, 8, "magic", Show::Text),
        field(8, 8, "epoch", Show::Number),
        field(16, 8, "segment", Show::Number),
        field(24, 8, "durable index", Show::Number),
        field(32, 8, "durable position", Show::Number),
        field(40, 8, "first index", Show::Number),
        field(48, 8, "check", Show::Id),
    ],
};

const INDEX_ENTRY: Layout = Layout {
    name: "entry",
    heading: "### Index entry",
    fields: &[field(0, 8, "offset", Show::Number), field(8, 8, "position", Show::Number)],
};

const SEGMENT_STATISTICS: Layout = Layout {
    name: "segment statistics",
    heading: "### Segment statistics",
    fields: &[
        field(0, 8, "magic", Show::Text),
        field(8, 4, "version", Show::Number),
        field(12, 4, "checksum", Show::Id),
        field(16, 8, "segment id", Show::Id),
        field(24, 8, "first index", Show::Number),
        field(32, 8, "next index", Show::Number),
        field(40, 8, "end position", Show::Number),
        field(48, 8, "last position", Show::Number),
        field(56, 8, "records", Show::Number),
        field(64, 8, "payload bytes", Show::Number),
        field(72, 8, "stored bytes", Show::Number),
        field(80, 8, "other records", Show::Number),
        field(88, 4, "last epoch", Show::Number),
        field(92, 4, "flags", Show::Number),
        field(96, 4, "index checksum", Show::Id),
        field(100, 4, "types", Show::Number),
        field(104, 8, "reserved", Show::Bytes),
    ],
};

/// An item of the statistics' last row.
const TYPE_COUNT: Layout = Layout {
    name: "type",
    heading: "### Segment statistics",
    fields: &[field(0, 8, "type code", Show::Number), field(8, 8, "records", Show::Number)],
};

const SPARSE_TABLE: Layout = Layout {
    name: "sparse table",
    heading: "### Sparse table",
    fields: &[
        field(0, 8, "magic", Show::Text),
        field(8, 4, "version", Show::Number),
        field(12, 4, "checksum", Show::Id),
        field(16, 8, "rewrite id", Show::Id),
        field(24, 8, "base offset", Show::Number),
        field(32, 8, "next offset", Show::Number),
        field(40, 8, "frames", Show::Number),
    ],
};

/// An item of the sparse table's last row.
const SPARSE_OFFSET: Layout =
    Layout { name: "frame", heading: "### Sparse table", fields: &[field(0, 8, "offset", Show::Number)] };

const SET_FRAME: Layout = Layout {
    name: "frame header",
    heading: "### Frame header",
    fields: &[
        field(0, 4, "checksum", Show::Id),
        field(4, 4, "tag", Show::Id),
        field(8, 1, "magic and flags", Show::Id),
        field(9, 1, "kind", Show::Number),
        field(10, 2, "epoch", Show::Number),
        field(12, 4, "body length", Show::Number),
    ],
};

const NARROW_FRAME: Layout = Layout {
    name: "narrow frame header",
    heading: "### Narrow frame header",
    fields: &[
        field(0, 4, "checksum", Show::Id),
        field(4, 2, "epoch, masked", Show::Id),
        field(6, 2, "length and flags", Show::Id),
        field(8, 1, "kind", Show::Number),
        // Only of a body that is not short.
        field(9, 4, "body length", Show::Number),
    ],
};

const FOOTER: Layout = Layout {
    name: "footer",
    heading: "### Footer",
    fields: &[
        field(0, 4, "magic", Show::Text),
        field(4, 4, "version", Show::Number),
        field(8, 4, "number", Show::Number),
        field(12, 4, "end", Show::Number),
        field(16, 4, "last", Show::Number),
        field(20, 4, "entries", Show::Number),
        field(24, 4, "body bytes", Show::Number),
        field(28, 4, "digest", Show::Id),
        field(32, 4, "released bytes", Show::Number),
        field(36, 4, "reserved", Show::Bytes),
    ],
};

const MAPPED_FRAME: Layout =
    Layout { name: "frame", heading: "## The mapped store", fields: &[field(0, 8, "length", Show::Number)] };

/// Every table that a dump reads by and that `docs/format.md` has.
pub const LAYOUTS: [Layout; 19] = [
    FILE_HEADER,
    BLOCK_HEADER,
    BLOCK_TAILER,
    SLICE_HEADER,
    SLICE_TAILER,
    RECORD_HEADER,
    RECORD_TAILER,
    MANIFEST,
    MANIFEST_ENTRY,
    LOST_RANGE,
    MARK,
    LIVE_PAGE,
    INDEX_ENTRY,
    SEGMENT_STATISTICS,
    SPARSE_TABLE,
    SET_FRAME,
    NARROW_FRAME,
    FOOTER,
    MAPPED_FRAME,
];

/// A run of bytes that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub name: String,
    /// Where it begins in the file.
    pub position: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// Its fields, or none if it has no layout.
    pub fields: Vec<Field>,
    /// Whether it verifies, and what else is to be said of it.
    pub notes: Vec<String>,
}

/// One field of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in the document.
    pub name: &'static str,
    /// Where it begins in the file.
    pub position: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What they say.
    pub meaning: String,
}

/// What is handed over; a [`ControlFlow::Break`] ends the dump.
type See<'a> = dyn FnMut(Part) -> ControlFlow<()> + 'a;

/// Takes the file at `path` apart, all of it or one block (0 is the file header), in the order of its bytes.
///
/// # Errors
/// If the file cannot be read, or has no such block. Damage is no error: it is part of the dump.
pub fn dump(
    env: &Env,
    path: &Path,
    block: Option<u32>,
    mut see: impl FnMut(Part) -> ControlFlow<()>,
) -> Result<()> {
    let file = env
        .disk
        .open(path, OpenMode::Read, ANY_UNIT_BYTES)
        .map_err(|error| Error::io("open", path, error))?;
    let len = file.len().map_err(|error| Error::io("measure", path, error))?;
    let dump = Dump { path, file: &*file, len };
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    // The reader wants no more.
    let _ended = match name.rsplit('.').next() {
        _ if name == LOCK_NAME => dump.text(&mut see)?,
        _ if name == LIVE_NAME => dump.live_page(&mut see)?,
        Some("idx") => dump.items(0..len, &INDEX_ENTRY, true, &mut see)?,
        Some("stats") => dump.statistics(&mut see)?,
        Some("sparse") => dump.sparse_table(&mut see)?,
        Some("log") => dump.frames(&mut see)?,
        _ => dump.block_file(block, &mut see)?,
    };
    Ok(())
}

struct Dump<'a> {
    path: &'a Path,
    file: &'a dyn File,
    len: u64,
}

const RUN_BYTES: usize = 1 << 20;
/// This much of bytes without a layout is shown.
const PREVIEW_BYTES: usize = 64;
/// Where the types begin in the statistics, and the offsets in a sparse table.
const STATISTICS_TYPES_START: usize = 112;
const SPARSE_TABLE_START: usize = 48;
/// A sparse table up to this size is read whole to compare its checksum.
const SPARSE_CHECKED_BYTES_MAX: u64 = 64 << 20;

impl Dump<'_> {
    /// Bytes from an aligned position on, as many as there are.
    fn read(&self, position: u64, wanted: usize) -> Result<Vec<u8>> {
        let mut buf = AlignedBuf::zeroed(wanted.next_multiple_of(ANY_UNIT_BYTES));
        let count = self
            .file
            .read_full_at(&mut buf, position)
            .map_err(|error| Error::io("read", self.path, error))?;
        Ok(buf[..count.min(wanted)].to_vec())
    }

    /// Bytes from any position on, as many as there are.
    fn read_at(&self, position: u64, wanted: usize) -> Result<Vec<u8>> {
        let page = position / ANY_UNIT_BYTES as u64 * ANY_UNIT_BYTES as u64;
        let skipped = (position - page) as usize;
        let mut bytes = self.read(page, skipped + wanted)?;
        bytes.drain(..skipped.min(bytes.len()));
        Ok(bytes)
    }

    fn text(&self, see: &mut See<'_>) -> Result<ControlFlow<()>> {
        let bytes = self.read(0, ANY_UNIT_BYTES)?;
        Ok(see(raw("process id of the last writer", 0, &bytes)))
    }

    fn live_page(&self, see: &mut See<'_>) -> Result<ControlFlow<()>> {
        let bytes = self.read(0, ANY_UNIT_BYTES)?;
        let mut part = laid_out(&LIVE_PAGE, 0, &bytes);
        match bytes.get(..56) {
            None => part.notes.push("cut short".to_string()),
            Some(page) if page.iter().all(|&byte| byte == 0) => {
                part.notes.push("nothing is published".to_string())
            }
            Some(page) => {
                let words = page.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
                let hash = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x0000_0100_0000_01B3);
                let computed = hash(words.clone().take(6).fold(0xCBF2_9CE4_8422_2325, hash), 0);
                let stored = words.clone().nth(6).unwrap_or(0);
                part.notes.push(verdict("check", stored, computed));
            }
        }
        Ok(see(part))
    }

    /// Items of one layout in a range of positions; if zeros behind the first one are free space, up to there.
    fn items(
        &self,
        range: Range<u64>,
        layout: &Layout,
        zeros_are_free: bool,
        see: &mut See<'_>,
    ) -> Result<ControlFlow<()>> {
        let item_bytes = layout.fields.last().map_or(1, |field| field.offset + field.bytes);
        let (mut at, mut number) = (range.start, 0u64);
        while at < range.end {
            let page = at / ANY_UNIT_BYTES as u64 * ANY_UNIT_BYTES as u64;
            let run = self.read(page, RUN_BYTES)?;
            let run = &run[..run.len().min((range.end - page) as usize)];
            let Some(run) = run.get((at - page) as usize..).filter(|run| !run.is_empty()) else { break };
            for item in run.chunks(item_bytes) {
                if item.len() < item_bytes && at + (item.len() as u64) < range.end {
                    // The run ends inside of it.
                    break;
                }
                if item.len() < item_bytes {
                    return Ok(see(raw(&format!("a part of {} {number}", layout.name), at, item)));
                }
                if zeros_are_free && number > 0 && item.iter().all(|&byte| byte == 0) {
                    let note = "zeros from here on are free space";
                    return Ok(see(noted("free", at, range.end - at, note)));
                }
                let mut part = laid_out(layout, at, item);
                part.name = format!("{} {number}", layout.name);
                if see(part).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                number += 1;
                at += item_bytes as u64;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn statistics(&self, see: &mut See<'_>) -> Result<ControlFlow<()>> {
        let bytes = self.read(0, ANY_UNIT_BYTES)?;
        let mut part = laid_out(&SEGMENT_STATISTICS, 0, &bytes);
        if let Err(fault) = SegmentStatistics::decode(&bytes) {
            part.notes.push(format!("not believed: {fault}"));
        }
        part.notes.extend(checksum_behind_it(&bytes));
        if see(part).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let types =
            bytes.get(100..104).map_or(0, |count| u32::from_le_bytes(count.try_into().expect("four")));
        let mut at = STATISTICS_TYPES_START.min(bytes.len());
        for (number, item) in bytes[at..].chunks_exact(16).take(types as usize).enumerate() {
            let mut part = laid_out(&TYPE_COUNT, at as u64, item);
            part.name = format!("type {number}");
            if see(part).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            at += item.len();
        }
        match self.len.saturating_sub(at as u64) {
            0 => Ok(ControlFlow::Continue(())),
            rest => Ok(see(noted("free", at as u64, rest, "room for more types"))),
        }
    }

    fn sparse_table(&self, see: &mut See<'_>) -> Result<ControlFlow<()>> {
        let head = self.read(0, SPARSE_TABLE_START)?;
        let mut part = laid_out(&SPARSE_TABLE, 0, &head);
        let frames = head.get(40..48).map_or(0, |count| u64::from_le_bytes(count.try_into().expect("eight")));
        let start = head.len() as u64;
        let end = start.saturating_add(frames.saturating_mul(8)).min(self.len);
        if end > SPARSE_CHECKED_BYTES_MAX {
            part.notes.push("too large for its checksum to be compared".to_string());
        } else {
            let bytes = self.read(0, end as usize)?;
            part.notes
                .extend(SparseTable::decode(&bytes).err().map(|fault| format!("not believed: {fault}")));
            part.notes.extend(checksum_behind_it(&bytes));
        }
        if see(part).is_break() || self.items(start..end, &SPARSE_OFFSET, false, see)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        match self.len - end {
            0 => Ok(ControlFlow::Continue(())),
            rest => Ok(see(noted("free", end, rest, "behind the table"))),
        }
    }

    /// The frames of a mapped log, up to what is none.
    fn frames(&self, see: &mut See<'_>) -> Result<ControlFlow<()>> {
        let (mut at, mut number) = (0u64, 0u64);
        while at < self.len {
            let page = at / ANY_UNIT_BYTES as u64 * ANY_UNIT_BYTES as u64;
            let run = self.read(page, 2 * ANY_UNIT_BYTES)?;
            let Some(bytes) = run.get((at - page) as usize..).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            let header = &bytes[..bytes.len().min(8)];
            let (name, end, note) = match MappedFrameLook::at(header, at, self.len, u64::MAX) {
                MappedFrameLook::Frame { end, .. } => (format!("frame {number}"), end, None),
                MappedFrameLook::Free => {
                    return Ok(see(noted("free", at, self.len - at, "zeros: free space")));
                }
                MappedFrameLook::Torn { payload_bytes } => {
                    let note = format!("torn: {payload_bytes} bytes reach beyond the file");
                    ("torn frame".to_string(), self.len, Some(note))
                }
                MappedFrameLook::OverLimit { payload_bytes } => {
                    let note = format!("{payload_bytes} bytes are more than any record has");
                    ("frame over the limit".to_string(), self.len, Some(note))
                }
            };
            let mut part = laid_out(&MAPPED_FRAME, at, bytes);
            part.name = name;
            part.bytes = end - at;
            let payload = bytes.get(8..bytes.len().min((end - at) as usize)).unwrap_or(&[]);
            let mut shown = raw("payload", at + 8, payload).fields;
            part.fields.append(&mut shown);
            part.notes.extend(note);
            if see(part).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            (at, number) = (end, number + 1);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The frames of a segment of a set, up to what is none.
    fn set_frames(&self, header: &FileHeader, see: &mut See<'_>) -> Result<ControlFlow<()>> {
        let identity = FrameIdentity::of(header);
        let (mut at, mut number) = (u64::from(header.block_bytes), 0u64);
        while at < self.len {
            let bytes = self.read_at(at, identity.layout.decoded_bytes_max(header.record_limit_bytes))?;
            let frame = match FrameHeader::decode(&bytes, &identity, at) {
                Ok(frame) => frame,
                Err(FrameFault::Empty) => {
                    let note = "no frame begins here: zeros, perhaps with leftovers behind them";
                    return Ok(see(noted("free", at, self.len - at, note)));
                }
                Err(fault) => {
                    let mut part =
                        raw("no frame", at, &bytes[..bytes.len().min(identity.layout.header_bytes_min())]);
                    part.bytes = self.len - at;
                    part.notes.push(fault.to_string());
                    return Ok(see(part));
                }
            };
            let header_bytes = identity.layout.header_bytes(frame.body_bytes);
            let head = &bytes[..header_bytes];
            let mut part = match identity.layout {
                FrameLayout::Aligned => laid_out(&SET_FRAME, at, head),
                FrameLayout::Packed => {
                    let mut part = laid_out(&NARROW_FRAME, at, head);
                    part.notes.push(format!("epoch {}, body of {} bytes", frame.epoch, frame.body_bytes));
                    part
                }
            };
            part.name = format!("frame {number}: header");
            part.bytes = header_bytes as u64;
            let checksums = frame.stored_checksums(head, identity.layout);
            if !checksums.is_empty() {
                let first = field(header_bytes - checksums.len(), 4, "piece checksum", Show::Id);
                part.fields.extend(fields_of(&[first], at, head));
            }
            let flags =
                [(frame.more, "its batch goes on"), (frame.witness, "witness"), (frame.footer, "footer")];
            part.notes.extend(flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag.to_string()));
            if see(part).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let (start, body) = (at + header_bytes as u64, identity.body_position(at, frame.body_bytes));
            if body > start && see(noted("gap", start, body - start, "before an aligned body")).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if self.set_body(&frame, number, body, checksums, see)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            (at, number) = (identity.frame_end(at, frame.body_bytes), number + 1);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The body of a frame, piece by piece compared with its checksums.
    fn set_body(
        &self,
        frame: &FrameHeader,
        number: u64,
        position: u64,
        checksums: &[u8],
        see: &mut See<'_>,
    ) -> Result<ControlFlow<()>> {
        let (len, first) = (frame.body_bytes as usize, self.read_at(position, FRAME_PIECE_BYTES)?);
        let first = &first[..first.len().min(len)];
        let mut fault = None;
        for piece in 0..checksums.len() / 4 {
            let start = piece * FRAME_PIECE_BYTES;
            let wanted = FRAME_PIECE_BYTES.min(len - start);
            let bytes = match piece {
                0 => first.to_vec(),
                _ => self.read_at(position + start as u64, wanted)?,
            };
            if bytes.len() < wanted {
                fault = Some(format!("cut short at {} of {len} bytes", start + bytes.len()));
            } else if let Err(found) = check_pieces(checksums, piece, &bytes) {
                fault = Some(format!("damaged: {found}"));
            }
            if fault.is_some() {
                break;
            }
        }
        let verified = fault.unwrap_or_else(|| "checksums ok".to_string());
        let rest = if frame.footer && first.len() >= FOOTER_BYTES {
            let mut part = laid_out(&FOOTER, position, first);
            part.notes.push(verified.clone());
            part.notes.extend(Footer::decode(first).err().map(|fault| fault.to_string()));
            if see(part).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            FOOTER_BYTES
        } else {
            0
        };
        if rest == len {
            return Ok(ControlFlow::Continue(()));
        }
        let mut part = raw(&format!("frame {number}: body"), position + rest as u64, &first[rest..]);
        part.bytes = (len - rest) as u64;
        part.notes.push(verified);
        Ok(see(part))
    }

    fn block_file(&self, only: Option<u32>, see: &mut See<'_>) -> Result<ControlFlow<()>> {
        let head = self.read(0, BLOCK_BYTES_MAX)?;
        let header = FileHeader::decode(&head);
        let claimed =
            head.get(20..24).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        let block_bytes = claimed.map_or(0, |bytes| bytes as usize);
        let is_ours = head.starts_with(b"LSFSfile") || find_blocks(&head).is_some();
        if !is_ours {
            let note = match &header {
                Err(fault) => fault.to_string(),
                Ok(_) => String::new(),
            };
            let mut part = raw("bytes", 0, &head);
            part.bytes = self.len;
            part.notes.push(note);
            return Ok(see(part));
        }
        let block_bytes = if is_block_size(block_bytes) {
            block_bytes
        } else {
            find_blocks(&head).unwrap_or(ANY_UNIT_BYTES)
        };
        let blocks = u32::try_from(self.len.div_ceil(block_bytes as u64)).unwrap_or(u32::MAX);
        if let Some(number) = only.filter(|number| *number >= blocks) {
            return Err(Error::InvalidOption {
                option: "block",
                value: number.to_string(),
                expected: format!("below {blocks}, the blocks of {}", self.path.display()),
            });
        }
        if only.is_none_or(|number| number == 0) {
            let mut part = laid_out(&FILE_HEADER, 0, &head[..head.len().min(FILE_HEADER_BYTES)]);
            if let Some(covered) = head.get(16..FILE_HEADER_BYTES) {
                let stored = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
                part.notes.push(verdict("checksum", stored.into(), Checksum::Crc32c.of(0, covered).into()));
            }
            part.notes.extend(header.as_ref().err().map(ToString::to_string));
            if see(part).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        if let Ok(header) = &header
            && header.kind == FileKind::SetSegment
        {
            return match only {
                Some(number) if number > 0 => Err(Error::InvalidOption {
                    option: "block",
                    value: number.to_string(),
                    expected: "0: behind its file header a segment of a set has frames, not blocks"
                        .to_string(),
                }),
                Some(_) => Ok(ControlFlow::Continue(())),
                None => self.set_frames(header, see),
            };
        }
        let first = only.unwrap_or(1).max(1);
        let end = only.map_or(blocks, |number| number + 1);
        let walk = BlockWalk { header: header.ok(), block_bytes };
        let mut unwritten: Option<Range<u64>> = None;
        let per_run = (RUN_BYTES / block_bytes) as u32;
        let mut number = first;
        while number < end {
            // Reads begin at whole pages, whatever the block size.
            let position = u64::from(number) * block_bytes as u64;
            let page = position / ANY_UNIT_BYTES as u64 * ANY_UNIT_BYTES as u64;
            let run = self.read(page, RUN_BYTES)?;
            let run = run.get((position - page) as usize..).unwrap_or(&[]);
            if run.is_empty() {
                break;
            }
            for image in run.chunks(block_bytes).take(per_run.min(end - number) as usize) {
                let position = u64::from(number) * block_bytes as u64;
                number += 1;
                if image.iter().all(|&byte| byte == 0) {
                    let start = unwritten.map_or(position, |range| range.start);
                    unwritten = Some(start..position + image.len() as u64);
                    continue;
                }
                if let Some(range) = unwritten.take()
                    && see(never_written(&range)).is_break()
                {
                    return Ok(ControlFlow::Break(()));
                }
                if walk.block(image, number - 1, position, see).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(unwritten.map_or(ControlFlow::Continue(()), |range| see(never_written(&range))))
    }
}

/// The block size at which the bytes behind a damaged file header hold a block.
fn find_blocks(head: &[u8]) -> Option<usize> {
    let sizes = (9..=14).map(|shift| 1usize << shift);
    sizes.into_iter().find(|&size| head.get(size..size + 4) == Some(b"LBLK"))
}

struct BlockWalk {
    header: Option<FileHeader>,
    block_bytes: usize,
}

impl BlockWalk {
    fn block(&self, image: &[u8], number: u32, position: u64, see: &mut See<'_>) -> ControlFlow<()> {
        if image.len() < self.block_bytes {
            return see(raw(&format!("a part of block {number}"), position, image));
        }
        let mut part = laid_out(&BLOCK_HEADER, position, &image[..BLOCK_HEADER_BYTES]);
        part.name = format!("block {number}: header");
        let checksum = self.header.map_or(Checksum::Crc32c, |header| header.checksum);
        let id_in_block = u64::from_le_bytes(image[8..16].try_into().expect("eight bytes"));
        let segment_id = self.header.map_or(id_in_block, |header| header.segment_id);
        let stored = u32::from_le_bytes(image[4..8].try_into().expect("four bytes"));
        part.notes.push(match checksum {
            Checksum::None => "checksum: none in this file".to_string(),
            Checksum::Crc32c => {
                verdict("checksum", stored.into(), checksum.of(0, &image[8..BLOCK_HEADER_BYTES]).into())
            }
        });
        let decoded = match BlockHeader::decode(image, segment_id, number, checksum) {
            // A leftover of an earlier life of the file: its slices are those of that life.
            Err(fault @ BlockFault::Segment { .. }) => {
                part.notes.push(format!("{fault}: a leftover of an earlier life of the file"));
                BlockHeader::decode(image, id_in_block, number, checksum).ok()
            }
            Err(fault) => {
                part.notes.push(fault.to_string());
                None
            }
            Ok(header) => Some(header),
        };
        see(part)?;
        let Some(header) = decoded else {
            return see(raw(
                "bytes that no header describes",
                position + BLOCK_HEADER_BYTES as u64,
                &image[BLOCK_HEADER_BYTES..],
            ));
        };
        self.slices(image, &header, checksum, position, see)?;
        let tailer = image.len() - BLOCK_TAILER_BYTES;
        let used = usize::from(header.used_bytes);
        if used < tailer {
            let free = &image[used..tailer];
            let note =
                if free.iter().all(|&byte| byte == 0) { "zeros" } else { "leftovers of an earlier write" };
            see(noted("free", position + used as u64, free.len() as u64, note))?;
        }
        let mut part = laid_out(&BLOCK_TAILER, position + tailer as u64, &image[tailer..]);
        match BlockTailer::decode(image) {
            Some(tailer) if tailer.used_bytes == header.used_bytes => {}
            Some(_) => part.notes.push("does not fit the header: not believed".to_string()),
            None => part.notes.push("no tailer: the block is walked forward".to_string()),
        }
        see(part)
    }

    fn slices(
        &self,
        image: &[u8],
        header: &BlockHeader,
        checksum: Checksum,
        position: u64,
        see: &mut See<'_>,
    ) -> ControlFlow<()> {
        let used = usize::from(header.used_bytes);
        let mut start = BLOCK_HEADER_BYTES;
        while start < used {
            match SliceView::decode(image, header, start, checksum) {
                Ok(slice) => {
                    self.slice(image, &slice, header, checksum, position, see)?;
                    start = slice.end();
                }
                Err(fault) => {
                    let bytes = &image[start..used];
                    let mut part = laid_out(&SLICE_HEADER, position + start as u64, bytes);
                    part.notes.push(format!("damaged: {fault}"));
                    see(part)?;
                    let rest = SLICE_HEADER_BYTES.min(bytes.len());
                    let at = position + (start + rest) as u64;
                    return see(raw("bytes behind the damage", at, &bytes[rest..]));
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn slice(
        &self,
        image: &[u8],
        slice: &SliceView<'_>,
        header: &BlockHeader,
        checksum: Checksum,
        position: u64,
        see: &mut See<'_>,
    ) -> ControlFlow<()> {
        let start = usize::from(slice.start);
        let at = position + start as u64;
        let mut part = laid_out(&SLICE_HEADER, at, &image[start..start + SLICE_HEADER_BYTES]);
        let rest = if slice.is_last { ", the record ends here" } else { ", the record goes on" };
        part.notes.push(format!("record {}{rest}", slice.index));
        see(part)?;
        let mut body = slice.body;
        let mut body_at = at + SLICE_HEADER_BYTES as u64;
        let limit = self.header.map_or(u32::MAX, |header| header.record_limit_bytes);
        let mut note = "payload".to_string();
        if slice.number == 0 {
            match RecordHeader::decode(body, limit) {
                Ok((record, bytes)) => {
                    see(laid_out(&RECORD_HEADER, body_at, &body[..bytes]))?;
                    (body, body_at) = (&body[bytes..], body_at + bytes as u64);
                    note = format!("payload of record {}, type {}", slice.index, record.type_code);
                }
                Err(fault) => note = format!("no record header: {fault}"),
            }
        }
        let tailer_bytes =
            if slice.is_last && slice.number > 0 { RECORD_TAILER_BYTES.min(body.len()) } else { 0 };
        let (payload, tailer) = body.split_at(body.len() - tailer_bytes);
        self.payload(&note, body_at, payload, see)?;
        if !tailer.is_empty() {
            see(laid_out(&RECORD_TAILER, body_at + payload.len() as u64, tailer))?;
        }
        let tailer_start = start + SLICE_OVERHEAD_BYTES + slice.body.len() - SLICE_TAILER_BYTES;
        let mut part = laid_out(
            &SLICE_TAILER,
            position + tailer_start as u64,
            &image[tailer_start..tailer_start + SLICE_TAILER_BYTES],
        );
        if checksum == Checksum::Crc32c {
            let stored = &image[tailer_start + 9..tailer_start + SLICE_TAILER_BYTES];
            let stored = u32::from_le_bytes(stored.try_into().expect("four bytes"));
            let computed = checksum.of(header.seed(), &image[start..tailer_start + 9]);
            part.notes.push(verdict("checksum", stored.into(), computed.into()));
        }
        see(part)
    }

    /// A payload, taken apart if it is a manifest or a mark.
    fn payload(&self, note: &str, at: u64, payload: &[u8], see: &mut See<'_>) -> ControlFlow<()> {
        let count = |offset: usize| {
            let bytes = payload.get(offset..offset + 4);
            bytes.map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize)
        };
        let is_final_data =
            self.header.is_some_and(|header| header.kind == crate::codec::FileKind::FinalData);
        if is_final_data && payload.starts_with(b"LMAN") && payload.len() >= 48 {
            see(laid_out(&MANIFEST, at, &payload[..48]))?;
            let entries = payload[48..].chunks(32).take(count(44));
            let mut end = 48;
            for entry in entries {
                see(laid_out(&MANIFEST_ENTRY, at + end as u64, entry))?;
                end += entry.len();
            }
            for range in payload[end..].chunks(16) {
                see(laid_out(&LOST_RANGE, at + end as u64, range))?;
                end += range.len();
            }
            return ControlFlow::Continue(());
        }
        if is_final_data && payload.starts_with(b"LMRK") && payload.len() == MARK_BYTES {
            return see(laid_out(&MARK, at, payload));
        }
        see(raw(note, at, payload))
    }
}

/// The verdict on a checksum at byte 12 of all that is behind it.
fn checksum_behind_it(bytes: &[u8]) -> Option<String> {
    let stored = bytes.get(12..16)?;
    let stored = u32::from_le_bytes([stored[0], stored[1], stored[2], stored[3]]);
    Some(verdict("checksum", stored.into(), Checksum::Crc32c.of(0, &bytes[16..]).into()))
}

fn never_written(range: &Range<u64>) -> Part {
    noted("free", range.start, range.end - range.start, "zeros: nothing was written here")
}

fn noted(name: &str, position: u64, bytes: u64, note: &str) -> Part {
    Part { name: name.to_string(), position, bytes, fields: Vec::new(), notes: vec![note.to_string()] }
}

/// Bytes without a layout: their beginning, in hexadecimal and as text.
fn raw(name: &str, position: u64, bytes: &[u8]) -> Part {
    let shown = &bytes[..bytes.len().min(PREVIEW_BYTES)];
    let more = if shown.len() < bytes.len() { " ..." } else { "" };
    let field = Field {
        name: "bytes",
        position,
        bytes: shown.to_vec(),
        meaning: format!("{}{more}", text_of(shown)),
    };
    let fields = if bytes.is_empty() { Vec::new() } else { vec![field] };
    Part { name: name.to_string(), position, bytes: bytes.len() as u64, fields, notes: Vec::new() }
}

/// Bytes read by a table; as many fields as there are bytes for.
fn laid_out(layout: &Layout, position: u64, bytes: &[u8]) -> Part {
    let fields = fields_of(layout.fields, position, bytes);
    let len = fields.last().map_or(0, |field| field.position + field.bytes.len() as u64 - position);
    Part { name: layout.name.to_string(), position, bytes: len, fields, notes: Vec::new() }
}

fn fields_of(layout: &[FieldLayout], position: u64, bytes: &[u8]) -> Vec<Field> {
    let fields = layout.iter().filter_map(|field| {
        let bytes = bytes.get(field.offset..field.offset + field.bytes)?;
        Some(Field {
            name: field.name,
            position: position + field.offset as u64,
            bytes: bytes.to_vec(),
            meaning: meaning(field.show, bytes),
        })
    });
    fields.collect()
}

fn meaning(show: Show, bytes: &[u8]) -> String {
    let number = bytes.iter().rev().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    match show {
        Show::Text => text_of(bytes),
        Show::Number => number.to_string(),
        Show::Id => format!("{number:#0width$x}", width = 2 + bytes.len() * 2),
        Show::Bytes => bytes.iter().fold(String::new(), |mut text, byte| {
            let _infallible = write!(text, "{byte:02x}");
            text
        }),
    }
}

fn text_of(bytes: &[u8]) -> String {
    let text = |&byte: &u8| if (b' '..=b'~').contains(&byte) { char::from(byte) } else { '.' };
    format!("\"{}\"", bytes.iter().map(text).collect::<String>())
}

fn verdict(name: &str, stored: u64, computed: u64) -> String {
    match stored == computed {
        true => format!("{name} ok: {stored:#010x}"),
        false => format!("{name} BAD: stored {stored:#010x}, computed {computed:#010x}"),
    }
}
