//! What an index costs by its shape: a flat file of 16-byte entries with dense offsets, the same with gaps (binary search), a
//! `BTreeMap`, and a B-tree on disk (redb), all with the same entries, looked up in the same random order.
//!
//! `cargo run --release --bin index-shapes -- [ENTRIES] [DIR]`; time is processor time of this thread, so that a busy machine
//! changes it little. docs/design/0008-index-and-clerk.md has the figures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lsfs::io::{Disk, FileMap, OpenMode, OsDisk};
use redb::{Database, ReadableDatabase, TableDefinition};
use rustix::time::{ClockId, clock_gettime};

/// Look-ups of each shape, after as many that warm it.
const LOOKUPS: u64 = 2_000_000;
/// Bytes of an entry.
const ENTRY_BYTES: u64 = 16;
/// Bytes that a record takes in its segment.
const RECORD_BYTES: u64 = 292;

const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("index");

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("index-shapes: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures each shape and prints a line for it.
fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let entries: u64 = arguments.next().map_or(Ok(4_000_000), |text| text.parse()).context("ENTRIES")?;
    let place = arguments.next().map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let dir = place.join(format!("index-shapes-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    println!("{entries} entries, {LOOKUPS} look-ups each, processor time of one thread\n");
    println!("{:<34} {:>14} {:>14} {:>14}", "shape", "bytes an entry", "ns to build", "ns a look-up");
    let measured = measure_all(&dir, entries);
    std::fs::remove_dir_all(&dir)?;
    measured
}

fn measure_all(dir: &Path, entries: u64) -> Result<()> {
    for (name, step) in [("flat, dense: the place follows", 1), ("flat, with gaps: binary search", 3)] {
        let path = dir.join(format!("{step}.idx"));
        let begun = cpu_seconds();
        write_flat(&path, entries, step)?;
        let built = cpu_seconds() - begun;
        let flat = Flat::open(&path, entries)?;
        measure(name, entries, step, std::fs::metadata(&path)?.len(), built, |offset| flat.get(offset))?;
    }
    let begun = cpu_seconds();
    let tree: BTreeMap<u64, u64> = (0..entries).map(|number| (number, position_of(number))).collect();
    let built = cpu_seconds() - begun;
    // Keys and values in leaves that bulk building fills; inner nodes add a tenth.
    let bytes = entries * ENTRY_BYTES * 11 / 10;
    measure("BTreeMap in memory (size by rule)", entries, 1, bytes, built, |offset| {
        Ok(tree.get(&offset).copied())
    })?;
    let path = dir.join("tree.redb");
    let begun = cpu_seconds();
    let database = build_redb(&path, entries)?;
    let built = cpu_seconds() - begun;
    let bytes = std::fs::metadata(&path)?.len();
    let transaction = database.begin_read()?;
    let table = transaction.open_table(TABLE)?;
    measure("redb: a B-tree on disk", entries, 1, bytes, built, |offset| {
        Ok(table.get(offset)?.map(|position| position.value()))
    })
}

/// Looks entries up in random order, twice; prints the second time.
fn measure(
    name: &str,
    entries: u64,
    step: u64,
    bytes: u64,
    built: f64,
    get: impl Fn(u64) -> Result<Option<u64>>,
) -> Result<()> {
    let mut random = 0x2545_F491_4F6C_DD1Du64;
    let mut seconds = 0.0;
    for _round in 0..2 {
        let begun = cpu_seconds();
        for _ in 0..LOOKUPS {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let number = random % entries;
            let found = get(number * step)?;
            ensure!(found == Some(position_of(number)), "{name}: offset {} is at {found:?}", number * step);
        }
        seconds = cpu_seconds() - begun;
    }
    let per = |seconds: f64, count: u64| seconds * 1e9 / count as f64;
    let (size, build, look) = (bytes as f64 / entries as f64, per(built, entries), per(seconds, LOOKUPS));
    println!("{name:<34} {size:>14.1} {build:>14.0} {look:>14.0}");
    Ok(())
}

/// Where the record with this number would be.
fn position_of(number: u64) -> u64 {
    4096 + number * RECORD_BYTES
}

fn write_flat(path: &Path, entries: u64, step: u64) -> Result<()> {
    let mut bytes = Vec::with_capacity((entries * ENTRY_BYTES) as usize);
    for number in 0..entries {
        bytes.extend((number * step).to_le_bytes());
        bytes.extend(position_of(number).to_le_bytes());
    }
    Ok(std::fs::write(path, bytes)?)
}

/// A flat index, mapped by the engine's own door.
struct Flat {
    map: Box<dyn FileMap>,
    entries: u64,
}

impl Flat {
    fn open(path: &Path, entries: u64) -> Result<Flat> {
        let map = OsDisk::new().open(path, OpenMode::Read, 4096)?.map(entries * ENTRY_BYTES)?;
        Ok(Flat { map, entries })
    }

    fn entry(&self, slot: u64) -> Result<(u64, u64)> {
        let mut bytes = [0; ENTRY_BYTES as usize];
        self.map.read(slot * ENTRY_BYTES, &mut bytes)?;
        let (offset, position) = bytes.split_at(8);
        Ok((u64::from_le_bytes(offset.try_into()?), u64::from_le_bytes(position.try_into()?)))
    }

    /// As the engine looks up: first where a dense index has it, then by halving.
    fn get(&self, offset: u64) -> Result<Option<u64>> {
        if offset < self.entries
            && let (found, position) = self.entry(offset)?
            && found == offset
        {
            return Ok(Some(position));
        }
        let (mut low, mut high) = (0, offset.min(self.entries));
        while low < high {
            let middle = low + (high - low) / 2;
            let (found, position) = self.entry(middle)?;
            match found.cmp(&offset) {
                std::cmp::Ordering::Equal => return Ok(Some(position)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }
}

/// Builds the tree in one transaction, in order: its best case.
fn build_redb(path: &Path, entries: u64) -> Result<Database> {
    let database = Database::create(path)?;
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(TABLE)?;
        for number in 0..entries {
            table.insert(number, position_of(number))?;
        }
    }
    transaction.commit()?;
    Ok(database)
}

/// Processor time of this thread.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
