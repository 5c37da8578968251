//! `lsfs verify`: reads every byte and checks every checksum.

use std::fmt;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::bail;
use lsfs::log::verify_mmap;
use lsfs::{DataReader, Env, Error, FinalData, IndexFault, IndexReport, Progress, VerifyReport};
use serde::Serialize;

use crate::exit::DamageFound;
use crate::output;
use crate::place::{self, Place};
use crate::progress;
use crate::repair::Records;
use crate::report::Damage;
use crate::summary::{Stopwatch, bytes_in_time, counted};

/// Check every byte of a stream or a state, every frame of a mapped log
///
/// Names each damaged file, the position in it and the records concerned, and ends with exit code 3 if there are any.
/// Nothing is locked or changed; beside a live writer, what was durable at the beginning is checked.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// The directory of a record stream, a data stream or a state
    dir: PathBuf,
    /// Compare every entry of the stream's indexes, and the statistics, with the segments too
    #[arg(long)]
    index: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Verifies the directory.
pub(crate) fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let dir = &args.dir;
    let stopwatch = Stopwatch::start();
    let place = place::look(dir)?;
    let mut verified = match place {
        Place::RecordStream => Verified::stream(dir)?,
        Place::DataStream => Verified::data_stream(dir)?,
        Place::MappedLog => Verified::mapped_log(dir)?,
        Place::FinalData if args.index => bail!("{} is final data: it has no index", dir.display()),
        Place::FinalData => Verified::final_data(dir)?,
        Place::File => bail!("{} is a file: verify its directory, or `lsfs inspect` the file", dir.display()),
    };
    // A mapped log's own index is compared with it in any case.
    if args.index && place != Place::MappedLog {
        verified.index = Some(IndexVerified::of(dir)?);
    }
    verified.seconds = stopwatch.seconds();
    match args.json {
        true => output::print_json(&verified)?,
        false => output::print(verified.to_string().as_bytes())?,
    }
    let index_faults = verified.index.as_ref().map_or(0, |index| index.faults.len() as u64);
    match verified.damage.len() as u64 {
        0 if index_faults == 0 => Ok(()),
        0 => {
            let what =
                format!("the index of {} is wrong in {}", dir.display(), counted(index_faults, "place"));
            Err(DamageFound(format!("{what}; `lsfs index` builds it anew")).into())
        }
        count => {
            Err(DamageFound(format!("{} is damaged in {}", dir.display(), counted(count, "place"))).into())
        }
    }
}

/// What was verified.
#[derive(Debug, Default, Serialize)]
struct Verified {
    path: PathBuf,
    /// Records (in a data stream chunks, in final data the state) that verified.
    records: u64,
    /// Their bytes as stored.
    stored_bytes: u64,
    blocks: u64,
    seconds: f64,
    /// Damage that is not yet named by a repair.
    damage: Vec<Damage>,
    /// Records that a repair found to be lost.
    lost: Vec<Records>,
    /// With --index.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<IndexVerified>,
}

/// What is to be said of a stream's indexes.
#[derive(Debug, Serialize)]
struct IndexVerified {
    indexed_segments: u64,
    unindexed_segments: u64,
    /// Entries that are right.
    entries: u64,
    /// Records that no entry is for.
    unindexed_records: u64,
    faults: Vec<Fault>,
}

/// Something wrong in an index.
#[derive(Debug, Serialize)]
struct Fault {
    file: PathBuf,
    index: Option<u64>,
    reason: String,
}

impl IndexVerified {
    fn of(dir: &Path) -> anyhow::Result<IndexVerified> {
        let bar = progress::bar("comparing", 0);
        let report = lsfs::verify_index(&Env::default(), dir, |progress| {
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.done_bytes);
        });
        bar.finish_and_clear();
        let IndexReport { indexed_segments, unindexed_segments, entries, unindexed_records, faults } =
            report?;
        let fault = |fault: IndexFault| Fault { file: fault.path, index: fault.index, reason: fault.reason };
        let faults = faults.into_iter().map(fault).collect();
        Ok(IndexVerified { indexed_segments, unindexed_segments, entries, unindexed_records, faults })
    }
}

impl fmt::Display for IndexVerified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.faults {
            writeln!(f, "index fault in {}: {}", fault.file.display(), fault.reason)?;
        }
        let segments = counted(self.indexed_segments, "segment");
        write!(f, "index: {} entries of {segments} right", self.entries)?;
        if self.unindexed_records > 0 {
            write!(f, ", {} not indexed", counted(self.unindexed_records, "record"))?;
        }
        match self.faults.len() as u64 {
            0 => writeln!(f, "; none wrong"),
            count => writeln!(f, "; wrong in {}", counted(count, "place")),
        }
    }
}

impl Verified {
    fn stream(dir: &Path) -> anyhow::Result<Verified> {
        Verified::with_bar(dir, |progress| lsfs::verify(&Env::default(), dir, progress))
    }

    /// There are no checksums: frames, indexes and names are compared.
    fn mapped_log(dir: &Path) -> anyhow::Result<Verified> {
        Verified::with_bar(dir, |progress| verify_mmap(&Env::default(), dir, progress))
    }

    fn with_bar(
        dir: &Path,
        verify: impl FnOnce(&mut dyn FnMut(Progress)) -> lsfs::Result<VerifyReport>,
    ) -> anyhow::Result<Verified> {
        let bar = progress::bar("verifying", 0);
        let report = verify(&mut |progress| {
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.done_bytes);
        });
        bar.finish_and_clear();
        let VerifyReport { records, stored_bytes, blocks, damage, lost, .. } = report?;
        let damage = damage.iter().map(Damage::from).collect();
        let lost = lost.iter().map(Records::from).collect();
        Ok(Verified {
            path: dir.to_path_buf(),
            records,
            stored_bytes,
            blocks,
            damage,
            lost,
            ..Verified::default()
        })
    }

    /// As a stream; and the last marked byte is there.
    fn data_stream(dir: &Path) -> anyhow::Result<Verified> {
        let mut verified = Verified::stream(dir)?;
        match read_last_byte(dir) {
            Ok(()) => {}
            Err(Error::Corrupt(damage)) if verified.damage.is_empty() => {
                verified.damage.push(Damage::from(&*damage));
            }
            // The damage found already explains it.
            Err(_) if !verified.damage.is_empty() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(verified)
    }

    fn final_data(dir: &Path) -> anyhow::Result<Verified> {
        let mut verified = Verified { path: dir.to_path_buf(), ..Verified::default() };
        match FinalData::read(dir) {
            Ok(Some(state)) => {
                verified.records = 1;
                verified.stored_bytes = state.bytes.len() as u64;
            }
            Ok(None) => {}
            Err(Error::Corrupt(damage)) => verified.damage.push(Damage::from(&*damage)),
            Err(error) => return Err(error.into()),
        }
        Ok(verified)
    }
}

fn read_last_byte(dir: &Path) -> lsfs::Result<()> {
    let mut reader = DataReader::open(dir)?;
    if reader.byte_count() == 0 {
        return Ok(());
    }
    let engine_error = |error: std::io::Error| match error.downcast::<Error>() {
        Ok(error) => error,
        Err(source) => Error::Io { action: "read", path: dir.to_path_buf(), source: source.into() },
    };
    reader.seek(SeekFrom::End(-1)).and_then(|_| reader.read_exact(&mut [0])).map_err(engine_error)
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for damage in &self.damage {
            writeln!(f, "{damage}")?;
        }
        for lost in &self.lost {
            writeln!(f, "lost, as a repair found: {lost}")?;
        }
        let (path, records) = (self.path.display(), counted(self.records, "record"));
        let bytes = bytes_in_time(self.stored_bytes, self.seconds);
        write!(f, "{path}: {records} verified, {bytes}")?;
        match self.damage.len() as u64 {
            0 if self.lost.is_empty() => writeln!(f, "; no damage"),
            0 => writeln!(f, "; no further damage"),
            count => writeln!(f, "; {} damaged", counted(count, "place")),
        }?;
        self.index.as_ref().map_or(Ok(()), |index| index.fmt(f))
    }
}
