//! What `lsfs inspect` and `lsfs verify` say of a path, for people and as JSON.

use std::fmt;
use std::path::PathBuf;

use lsfs::codec::{SegmentStatistics, TypeCount};
use lsfs::log::MmapSegmentInfo;
use lsfs::{Corruption, SegmentInfo};
use serde::Serialize;

use crate::repair::Records;
use crate::size::ByteSize;
use crate::summary::counted;

/// Types that are listed one by one; JSON has all.
const TYPES_SHOWN: usize = 8;

/// What is known of a path.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The path asked for.
    pub(crate) path: PathBuf,
    /// What lies there.
    pub(crate) kind: Kind,
    /// Identity of the stream or state.
    pub(crate) stream_id: String,
    /// Version of its format.
    pub(crate) format_version: u32,
    /// Bytes of a block.
    pub(crate) block_bytes: u32,
    /// How blocks are checked.
    pub(crate) checksum: &'static str,
    /// Whether this machine reaches the files with direct I/O.
    pub(crate) direct_io: bool,
    /// What it holds.
    #[serde(flatten)]
    pub(crate) contents: Contents,
    /// Its condition.
    pub(crate) health: Health,
}

/// Kinds of directories and files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    RecordStream,
    DataStream,
    MappedLog,
    FinalData,
    SegmentFile,
    FinalDataFile,
    SetSegmentFile,
}

/// What is known of a log in memory-mapped frames, which has neither identity nor checksums.
#[derive(Debug, Serialize)]
pub(crate) struct MappedReport {
    /// The path asked for.
    pub(crate) path: PathBuf,
    /// What lies there.
    pub(crate) kind: Kind,
    /// What it holds.
    #[serde(flatten)]
    pub(crate) contents: Contents,
    /// Its condition.
    pub(crate) health: Health,
}

impl fmt::Display for MappedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.path.display(), self.kind)?;
        field(f, "format", "plain frames and index entries, no checksums")?;
        field(f, "access", "memory-mapped")?;
        match &self.contents {
            Contents::Stream(stream) => {
                stream.fmt_fields(f)?;
                field(f, "health", &self.health)?;
                stream.fmt_segments(f)
            }
            Contents::State(_) | Contents::File(_) => field(f, "health", &self.health),
        }
    }
}

/// What a path holds, by kind.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Contents {
    Stream(StreamContents),
    State(StateContents),
    File(FileContents),
}

/// Records and segments of a record stream; a data stream's records are chunks of its bytes.
#[derive(Debug, Serialize)]
pub(crate) struct StreamContents {
    /// Index of the oldest record.
    pub(crate) first_index: u64,
    /// Index after the last record.
    pub(crate) next_index: u64,
    /// Records that a repair found to be lost.
    pub(crate) lost: Vec<Records>,
    /// Bytes before a data stream's last mark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) byte_count: Option<u64>,
    /// Oldest first.
    pub(crate) segments: Vec<Segment>,
}

/// One segment.
#[derive(Debug, Serialize)]
pub(crate) struct Segment {
    file: String,
    first_index: u64,
    next_index: u64,
    used_bytes: u64,
    file_bytes: u64,
    allocated_bytes: u64,
    sealed: bool,
    /// Records below this index are in the clerk's index.
    indexed_to: u64,
    /// What the clerk counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    statistics: Option<Statistics>,
}

/// What a clerk counted in a segment, up to where its index goes.
#[derive(Debug, Serialize)]
struct Statistics {
    records: u64,
    payload_bytes: u64,
    stored_bytes: u64,
    types: Vec<TypeRecords>,
    /// Records of types beyond those.
    other_types_records: u64,
}

/// How many records have a type code.
#[derive(Debug, Serialize)]
struct TypeRecords {
    #[serde(rename = "type")]
    type_code: u64,
    records: u64,
}

impl Statistics {
    fn of(counted: &SegmentStatistics) -> Statistics {
        let type_records =
            |count: &TypeCount| TypeRecords { type_code: count.type_code, records: count.records };
        Statistics {
            records: counted.records,
            payload_bytes: counted.payload_bytes,
            stored_bytes: counted.stored_bytes,
            types: counted.types.iter().map(type_records).collect(),
            other_types_records: counted.other_types_records,
        }
    }
}

/// The latest state of final data.
#[derive(Debug, Serialize)]
pub(crate) struct StateContents {
    /// 0 if none was ever set.
    pub(crate) state_version: u64,
    /// Its size.
    pub(crate) state_bytes: u64,
    /// The files A and B, as far as they are there.
    pub(crate) files: Vec<StateFile>,
}

/// A file of final data.
#[derive(Debug, Serialize)]
pub(crate) struct StateFile {
    /// Its name.
    pub(crate) file: String,
    /// Its length.
    pub(crate) file_bytes: u64,
}

/// A single file, from its header and its blocks.
#[derive(Debug, Serialize)]
pub(crate) struct FileContents {
    /// The file's own identity.
    pub(crate) segment_id: String,
    /// The writer's epoch when the file was begun.
    pub(crate) epoch: u32,
    /// Compression asked for when the file was begun.
    pub(crate) compression: &'static str,
    /// The largest record.
    pub(crate) record_limit_bytes: u32,
    /// Index of the first record that may be in it.
    pub(crate) first_index: u64,
    /// Index after the last record in it.
    pub(crate) next_index: u64,
    /// Bytes in use.
    pub(crate) used_bytes: u64,
    /// Length of the file.
    pub(crate) file_bytes: u64,
}

/// The condition of what was inspected.
#[derive(Debug, Serialize)]
#[serde(tag = "condition", rename_all = "snake_case")]
pub(crate) enum Health {
    /// The last writer closed it.
    Closed,
    /// A writer has it open.
    Open {
        /// Its process id, if it could be read.
        pid: Option<u32>,
    },
    /// The last writer went without closing it, and left nothing behind the end.
    NotClosed,
    /// Behind the end lies a torn write.
    TornTail,
    /// What is there verifies.
    Intact,
    /// In a single file, blocks verify behind some that do not: only the directory tells a torn write from damage.
    Gap {
        /// Where the bytes end that verify.
        position: u64,
    },
    /// Durable bytes do not verify.
    Damaged {
        /// Where.
        #[serde(flatten)]
        damage: Damage,
    },
}

/// A [`Corruption`] in the words of the command.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Damage {
    file: PathBuf,
    position: u64,
    first_index: Option<u64>,
    next_index: Option<u64>,
    reason: String,
}

impl Segment {
    /// Records that the clerk has not come to.
    fn unindexed_records(&self) -> u64 {
        self.next_index.saturating_sub(self.indexed_to)
    }

    /// From the engine's description.
    pub(crate) fn of(info: &SegmentInfo) -> Segment {
        Segment {
            file: info.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            first_index: info.base_index,
            next_index: info.next_index,
            used_bytes: info.used_bytes,
            file_bytes: info.file_bytes,
            allocated_bytes: info.allocated_bytes,
            sealed: info.is_sealed,
            indexed_to: info.statistics.as_ref().map_or(info.base_index, |counted| counted.next_index),
            statistics: info.statistics.as_ref().map(Statistics::of),
        }
    }
}

impl Segment {
    /// From the engine's description of a mapped log.
    pub(crate) fn mapped(info: &MmapSegmentInfo) -> Segment {
        Segment {
            file: info.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            first_index: info.base_offset,
            next_index: info.next_offset,
            used_bytes: info.used_bytes,
            file_bytes: info.file_bytes,
            allocated_bytes: info.allocated_bytes,
            sealed: info.is_sealed,
            // The store keeps its index itself.
            indexed_to: info.next_offset,
            statistics: None,
        }
    }
}

impl From<&Corruption> for Damage {
    fn from(found: &Corruption) -> Damage {
        Damage {
            file: found.path.clone(),
            position: found.position,
            first_index: found.records.as_ref().map(|records| records.start),
            next_index: found.records.as_ref().map(|records| records.end),
            reason: found.reason.clone(),
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "damage in {} at byte {}", self.file.display(), self.position)?;
        match (self.first_index, self.next_index) {
            (Some(first), Some(next)) if next == first + 1 => write!(f, ", record {first}")?,
            (Some(first), Some(next)) if next > first => write!(f, ", records {first} to {}", next - 1)?,
            _ => {}
        }
        write!(f, ": {}", self.reason)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::RecordStream => "record stream",
            Kind::DataStream => "data stream",
            Kind::MappedLog => "log in memory-mapped frames",
            Kind::FinalData => "final data",
            Kind::SegmentFile => "segment of a record stream",
            Kind::FinalDataFile => "file of final data",
            Kind::SetSegmentFile => "segment of a segment set",
        })
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Health::Closed => f.write_str("closed cleanly"),
            Health::Open { pid: Some(pid) } => write!(f, "open for writing by process {pid}"),
            Health::Open { pid: None } => f.write_str("open for writing by another process"),
            Health::NotClosed => f.write_str("not closed by its last writer; nothing is torn"),
            Health::TornTail => {
                f.write_str("not closed by its last writer; the torn end is dropped by the next one")
            }
            Health::Intact => f.write_str("intact"),
            Health::Gap { position } => {
                write!(f, "broken off at byte {position}: inspect the directory to learn if that is damage")
            }
            Health::Damaged { damage } => damage.fmt(f),
        }
    }
}

/// Writes a named value, aligned with the others.
fn field(f: &mut fmt::Formatter<'_>, name: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(f, "  {name:<14}{value}")
}

/// "records 17 to 20 (4)", "record 17", "no records".
pub(crate) fn records_in_words(first_index: u64, next_index: u64) -> String {
    match next_index.saturating_sub(first_index) {
        0 => "no records".to_string(),
        1 => format!("record {first_index}"),
        count => format!("records {first_index} to {} ({count})", next_index - 1),
    }
}

/// "0 to 4 (5)".
fn range_in_words(first_index: u64, next_index: u64) -> String {
    match next_index.saturating_sub(first_index) {
        0 => format!("none, the next one is {next_index}"),
        count => format!("{first_index} to {} ({count})", next_index - 1),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.path.display(), self.kind)?;
        field(f, "id", &self.stream_id)?;
        let (version, block_bytes, checksum) = (self.format_version, self.block_bytes, self.checksum);
        field(
            f,
            "format",
            format_args!("version {version}, {block_bytes}-byte blocks, checksum {checksum}"),
        )?;
        field(f, "access", if self.direct_io { "direct I/O" } else { "buffered (no direct I/O here)" })?;
        match &self.contents {
            Contents::Stream(stream) => stream.fmt_fields(f)?,
            Contents::State(state) => state.fmt_fields(f)?,
            Contents::File(file) => file.fmt_fields(f)?,
        }
        field(f, "health", &self.health)?;
        match &self.contents {
            Contents::Stream(stream) => stream.fmt_segments(f),
            Contents::State(_) | Contents::File(_) => Ok(()),
        }
    }
}

impl StreamContents {
    fn fmt_fields(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let records = range_in_words(self.first_index, self.next_index);
        match self.byte_count {
            Some(bytes) => {
                field(f, "marked", format_args!("{bytes} bytes ({})", ByteSize(bytes)))?;
                field(f, "chunks", records)?;
            }
            None => field(f, "records", records)?,
        }
        self.lost.iter().try_for_each(|lost| field(f, "lost", lost))?;
        let used = ByteSize(self.segments.iter().map(|segment| segment.used_bytes).sum());
        let allocated = ByteSize(self.segments.iter().map(|segment| segment.allocated_bytes).sum());
        let segments = counted(self.segments.len() as u64, "segment");
        field(f, "size", format_args!("{used} used, {allocated} allocated, in {segments}"))?;
        self.fmt_index(f)
    }

    /// How far a clerk came, and what it counted.
    fn fmt_index(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted_segments = || self.segments.iter().filter_map(|segment| segment.statistics.as_ref());
        let records: u64 = counted_segments().map(|counted| counted.records).sum();
        let missing: u64 = self.segments.iter().map(Segment::unindexed_records).sum();
        if records == 0 {
            // A mapped log has its own index, an empty stream needs none.
            return if missing > 0 { field(f, "index", "none") } else { Ok(()) };
        }
        match missing {
            0 => field(f, "index", "complete")?,
            missing => field(f, "index", format_args!("{} not indexed", counted(missing, "record")))?,
        }
        let payload = ByteSize(counted_segments().map(|counted| counted.payload_bytes).sum());
        let stored = ByteSize(counted_segments().map(|counted| counted.stored_bytes).sum());
        let counts = counted(records, "record");
        field(f, "counted", format_args!("{counts}, {payload} of payload, {stored} as stored"))?;
        let mut types = std::collections::BTreeMap::<u64, u64>::new();
        for count in counted_segments().flat_map(|counted| &counted.types) {
            *types.entry(count.type_code).or_default() += count.records;
        }
        let others = records - types.values().sum::<u64>().min(records);
        let mut largest: Vec<(u64, u64)> = types.into_iter().collect();
        largest.sort_by_key(|(type_code, records)| (std::cmp::Reverse(*records), *type_code));
        let listed: Vec<String> =
            largest.iter().take(TYPES_SHOWN).map(|(code, records)| format!("{code}: {records}")).collect();
        let rest = others + largest.iter().skip(TYPES_SHOWN).map(|(_, records)| records).sum::<u64>();
        let rest = if rest > 0 { format!(", others: {rest}") } else { String::new() };
        field(f, "by type", format_args!("{}{rest}", listed.join(", ")))
    }

    fn fmt_segments(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = ["segment", "first", "next", "used", "file", "allocated"];
        writeln!(f)?;
        fmt_row(f, titles.map(String::from), "")?;
        self.segments.iter().try_for_each(|segment| {
            let row = [
                segment.file.clone(),
                segment.first_index.to_string(),
                segment.next_index.to_string(),
                ByteSize(segment.used_bytes).to_string(),
                ByteSize(segment.file_bytes).to_string(),
                ByteSize(segment.allocated_bytes).to_string(),
            ];
            let state = if segment.sealed { "sealed" } else { "active" };
            let index = match (segment.unindexed_records(), &segment.statistics) {
                (0, Some(_)) => ", indexed",
                (_, Some(_)) => ", partly indexed",
                (_, None) => "",
            };
            fmt_row(f, row, &format!("  {state}{index}"))
        })
    }
}

fn fmt_row(f: &mut fmt::Formatter<'_>, cells: [String; 6], end: &str) -> fmt::Result {
    let [name, first, next, used, file, allocated] = cells;
    writeln!(f, "  {name:<24}  {first:>12}  {next:>12}  {used:>10}  {file:>10}  {allocated:>10}{end}")
}

impl StateContents {
    fn fmt_fields(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        field(f, "state", format_args!("version {}, {} bytes", self.state_version, self.state_bytes))?;
        self.files.iter().try_for_each(|file| field(f, &file.file, ByteSize(file.file_bytes)))
    }
}

impl FileContents {
    fn fmt_fields(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        field(f, "file id", format_args!("{}, epoch {}", self.segment_id, self.epoch))?;
        let limit = ByteSize(self.record_limit_bytes.into());
        field(f, "options", format_args!("compression {}, records up to {limit}", self.compression))?;
        field(f, "records", range_in_words(self.first_index, self.next_index))?;
        field(f, "size", format_args!("{} used of {}", ByteSize(self.used_bytes), ByteSize(self.file_bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_names_file_position_and_records() {
        let mut found = Corruption {
            path: PathBuf::from("d/x.seg"),
            position: 81920,
            records: Some(17..21),
            reason: "slice checksum".to_string(),
        };
        let words = |found: &Corruption| Damage::from(found).to_string();
        assert_eq!(words(&found), "damage in d/x.seg at byte 81920, records 17 to 20: slice checksum");
        found.records = Some(17..18);
        assert_eq!(words(&found), "damage in d/x.seg at byte 81920, record 17: slice checksum");
        found.records = Some(17..17);
        assert_eq!(words(&found), "damage in d/x.seg at byte 81920: slice checksum");
        found.records = None;
        assert_eq!(words(&found), "damage in d/x.seg at byte 81920: slice checksum");
    }

    #[test]
    fn ranges_of_records_read_naturally() {
        assert_eq!(range_in_words(0, 5), "0 to 4 (5)");
        assert_eq!(range_in_words(9, 10), "9 to 9 (1)");
        assert_eq!(range_in_words(7, 7), "none, the next one is 7");
    }
}
