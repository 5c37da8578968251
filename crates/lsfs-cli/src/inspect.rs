//! `lsfs inspect`: what a directory or file is, and in which condition.

use std::path::{Path, PathBuf};

use anyhow::Context;
use lsfs::codec::{Checksum, Compression, FileKind};
use lsfs::io::{Access, OpenMode};
use lsfs::{DataReader, Env, FinalData, StreamInfo};

use crate::block_file::{self, BlockFile};
use crate::exit::DamageFound;
use crate::mapped;
use crate::output;
use crate::place::{self, Place, Writer};
use crate::repair::Records;
use crate::report::{
    Contents, FileContents, Health, Kind, Report, Segment, StateContents, StateFile, StreamContents,
};

/// Say what a directory or file is: segments, ranges, sizes, health
///
/// PATH is the directory of a record stream, a data stream or a state, or a single segment or state file. Nothing is
/// locked or changed. Exit code 3 if damage shows; `lsfs verify` reads every byte.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// A directory or file
    path: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Describes what lies at the path.
pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let path = &args.path;
    let report = match place::look(path)? {
        Place::MappedLog => return inspect_mapped(args),
        Place::RecordStream => of_stream(path, None)?,
        Place::DataStream => of_stream(path, Some(DataReader::open(path)?.byte_count()))?,
        Place::FinalData => of_final_data(path)?,
        Place::File => of_file(path, &block_file::read(path)?),
    };
    match args.json {
        true => output::print_json(&report)?,
        false => output::print(report.to_string().as_bytes())?,
    }
    match report.health {
        Health::Damaged { .. } => Err(DamageFound(format!("{} is damaged", path.display())).into()),
        _ => Ok(()),
    }
}

fn inspect_mapped(args: &InspectArgs) -> anyhow::Result<()> {
    let dir = &args.path;
    let report = mapped::inspect(dir, writer_of(dir)?.and_then(|writer| writer.pid))?;
    match args.json {
        true => output::print_json(&report),
        false => output::print(report.to_string().as_bytes()),
    }
}

fn of_stream(dir: &Path, byte_count: Option<u64>) -> anyhow::Result<Report> {
    let info = lsfs::inspect(&Env::default(), dir)?;
    Ok(Report {
        path: dir.to_path_buf(),
        kind: if byte_count.is_some() { Kind::DataStream } else { Kind::RecordStream },
        stream_id: info.stream_id.to_string(),
        format_version: info.format_version,
        block_bytes: info.block_bytes,
        checksum: checksum_name(info.checksum),
        direct_io: info.access == Access::Direct,
        contents: Contents::Stream(StreamContents {
            first_index: info.first_index,
            next_index: info.next_index,
            lost: info.lost.iter().map(Records::from).collect(),
            byte_count,
            segments: info.segments.iter().map(Segment::of).collect(),
        }),
        health: health_of(dir, &info)?,
    })
}

fn health_of(dir: &Path, info: &StreamInfo) -> anyhow::Result<Health> {
    Ok(match &info.damage {
        Some(damage) => Health::Damaged { damage: damage.into() },
        None if info.is_open => Health::Open { pid: writer_of(dir)?.and_then(|writer| writer.pid) },
        None if info.has_torn_tail => Health::TornTail,
        None if info.is_closed => Health::Closed,
        None => Health::NotClosed,
    })
}

fn of_final_data(dir: &Path) -> anyhow::Result<Report> {
    // Reads both files as the engine does: damage is its error.
    let state = FinalData::read(dir)?;
    let entries =
        Env::default().disk.list(dir).with_context(|| format!("could not list {}", dir.display()))?;
    let state_file = |entry: lsfs::io::DirEntry| StateFile { file: entry.name, file_bytes: entry.len };
    let mut files: Vec<StateFile> = entries.into_iter().map(state_file).collect();
    files.retain(|file| file.file.starts_with("state."));
    files.sort_by(|one, other| one.file.cmp(&other.file));
    let readable = files.iter().filter_map(|file| block_file::read(&dir.join(&file.file)).ok());
    let newest = readable.max_by_key(|file| file.header.epoch);
    let newest = newest.with_context(|| format!("no state was ever set in {}", dir.display()))?;
    Ok(Report {
        kind: Kind::FinalData,
        direct_io: is_direct(&dir.join(&files[0].file), newest.header.block_bytes),
        contents: Contents::State(StateContents {
            state_version: state.as_ref().map_or(0, |state| state.version),
            state_bytes: state.as_ref().map_or(0, |state| state.bytes.len() as u64),
            files,
        }),
        health: writer_of(dir)?.map_or(Health::Intact, |writer| Health::Open { pid: writer.pid }),
        ..of_file(dir, &newest)
    })
}

fn of_file(path: &Path, file: &BlockFile) -> Report {
    let header = &file.header;
    Report {
        path: path.to_path_buf(),
        kind: match header.kind {
            FileKind::Segment => Kind::SegmentFile,
            FileKind::FinalData => Kind::FinalDataFile,
            FileKind::SetSegment => Kind::SetSegmentFile,
        },
        stream_id: header.stream_id.to_string(),
        format_version: file.format_version,
        block_bytes: header.block_bytes,
        checksum: checksum_name(header.checksum),
        direct_io: is_direct(path, header.block_bytes),
        contents: Contents::File(FileContents {
            segment_id: format!("{:#018x}", header.segment_id),
            epoch: header.epoch,
            compression: compression_name(header.compression),
            record_limit_bytes: header.record_limit_bytes,
            first_index: header.base_index,
            next_index: file.next_index,
            used_bytes: file.used_bytes,
            file_bytes: file.file_bytes,
        }),
        health: match &file.damage {
            Some(damage) => Health::Damaged { damage: damage.into() },
            None if file.has_gap => Health::Gap { position: file.used_bytes },
            None => Health::Intact,
        },
    }
}

fn writer_of(dir: &Path) -> anyhow::Result<Option<Writer>> {
    place::writer_of(dir).with_context(|| format!("could not look at the lock of {}", dir.display()))
}

fn is_direct(path: &Path, block_bytes: u32) -> bool {
    let file = Env::default().disk.open(path, OpenMode::Read, block_bytes as usize);
    file.is_ok_and(|file| file.access() == Access::Direct)
}

fn checksum_name(checksum: Checksum) -> &'static str {
    match checksum {
        Checksum::None => "none",
        Checksum::Crc32c => "crc32c",
    }
}

fn compression_name(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
}
