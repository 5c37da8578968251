//! Damage of a segment of 64 KiB: each bit flipped, each length, each sector zeroed, swapped with another, or replaced
//! by an older version of itself.
//!
//! The segment is the only one of a golden directory (active, closed or not) or the first of two (sealed). Whatever is
//! damaged, no reader answers a byte that was not written; what is lost is reported with the records that are lost;
//! damage is never taken for a torn tail, except in the last write of a stream that was not closed, which nothing
//! witnesses.
//!
//! Each damage is looked at by a reader that reads the records around it; each `THOROUGH_STEP`-th by everything there
//! is: all records forward, backward and by index, `verify`, and a writer. The test command takes one bit and one length
//! of each sixteen, drawn with `LSFS_DAMAGE_SEED`, and all sectors. `LSFS_DAMAGE=all` takes every bit and every length.

use std::collections::BTreeSet;
use std::fmt;
use std::iter::once;
use std::ops::Range;
use std::path::{Path, PathBuf};

use lsfs::codec::{BlockHeader, FileHeader, SliceView};
use lsfs::io::{CrashStyle, SimDisk, Trace};
use lsfs::{Error, Reader, RecordStream, StreamOptions};

use crate::golden::{DIR, Golden, make_recorded};
use crate::support::{Choices, budget, sim_env};

const SEGMENT: &str = "00000000000000001000.seg";
const SEGMENT_BYTES: u64 = 64 << 10;
const SECTOR_BYTES: u64 = 512;
/// Every so many damages one is looked at thoroughly.
const THOROUGH_STEP: u64 = 31;

/// One damage of the segment.
#[derive(Clone, Copy)]
enum Damage<'a> {
    Bit(u64),
    Length(u64),
    Zero(u64),
    Swap(u64, u64),
    Older(u64, &'a [u8]),
}

impl fmt::Debug for Damage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Bit(bit) => write!(f, "bit {bit} (byte {}) flipped", bit / 8),
            Damage::Length(len) => write!(f, "cut to {len} bytes"),
            Damage::Zero(sector) => write!(f, "sector {sector} zeroed"),
            Damage::Swap(one, other) => write!(f, "sectors {one} and {other} swapped"),
            Damage::Older(sector, _) => write!(f, "an older sector {sector}"),
        }
    }
}

/// A record and where it lies.
struct Place {
    type_code: u64,
    /// The blocks with its slices.
    blocks: Range<u64>,
}

/// What was there before the damage.
struct Original {
    name: &'static str,
    disk: SimDisk,
    first_index: u64,
    /// The records of the segment, and index after the last one of all segments.
    records: Vec<Place>,
    next_index: u64,
    block_bytes: u64,
    segment: Vec<u8>,
    /// Records below this index are witnessed to be durable.
    witnessed: u64,
    /// All records of the stream.
    payloads: Vec<Vec<u8>>,
}

/// How a damage ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    harmless: u64,
    detected: u64,
    torn: u64,
}

fn segment_path() -> PathBuf {
    Path::new(DIR).join(SEGMENT)
}

impl Original {
    fn golden(name: &'static str) -> Original {
        Original::of(name, Golden::load("v1", name).on_disk())
    }

    fn of(name: &'static str, disk: SimDisk) -> Original {
        let reader = Reader::open_in(sim_env(&disk, 1), DIR).unwrap();
        let bounds = reader.bounds().unwrap();
        let mut payloads = Vec::new();
        let mut types = Vec::new();
        let mut cursor = reader.iter(..).unwrap();
        while let Some(record) = cursor.next_record().unwrap() {
            payloads.push(record.payload.to_vec());
            types.push(record.type_code);
        }
        let segment = disk.contents(&segment_path()).unwrap();
        assert_eq!(segment.len() as u64, SEGMENT_BYTES);
        let header = FileHeader::decode(&segment).unwrap();
        let mut original = Original {
            name,
            disk,
            first_index: bounds.start,
            records: Vec::new(),
            next_index: bounds.end,
            block_bytes: u64::from(header.block_bytes),
            segment,
            witnessed: bounds.end,
            payloads,
        };
        original.records = original.places(&types);
        if name == "segment-open" {
            // Nothing but its own blocks says what was durable.
            original.witnessed = original.highest_watermark();
        }
        original
    }

    /// The headers of the blocks that hold something.
    fn headers(&self) -> impl Iterator<Item = (u64, &[u8], BlockHeader)> {
        let file = FileHeader::decode(&self.segment).unwrap();
        let blocks = self.segment.chunks(self.block_bytes as usize).enumerate().skip(1);
        blocks.map_while(move |(number, image)| {
            let header = BlockHeader::decode(image, file.segment_id, number as u32, file.checksum).ok()?;
            Some((number as u64, image, header))
        })
    }

    fn highest_watermark(&self) -> u64 {
        self.headers().map(|(_, _, header)| header.durable_index).max().unwrap()
    }

    /// Where the records lie, from the blocks themselves.
    fn places(&self, types: &[u64]) -> Vec<Place> {
        let checksum = FileHeader::decode(&self.segment).unwrap().checksum;
        let mut places: Vec<Place> = Vec::new();
        for (number, image, header) in self.headers() {
            let mut at = lsfs::codec::BLOCK_HEADER_BYTES;
            while at < usize::from(header.used_bytes) {
                let slice = SliceView::decode(image, &header, at, checksum).unwrap();
                let nth = (slice.index - self.first_index) as usize;
                if slice.number == 0 {
                    assert_eq!(nth, places.len());
                    places.push(Place { type_code: types[nth], blocks: number..number });
                }
                places[nth].blocks.end = number + 1;
                at = slice.end();
            }
        }
        places
    }

    /// The records that may be lost when these blocks are damaged: those with a slice in one of them.
    fn records_in(&self, blocks: Range<u64>) -> Range<u64> {
        let touches = |place: &Place| place.blocks.start < blocks.end && blocks.start < place.blocks.end;
        let mut touched = (self.first_index..).zip(&self.records).filter(|(_, place)| touches(place));
        match touched.next() {
            None => 0..0,
            Some((first, _)) => first..touched.last().map_or(first, |(last, _)| last) + 1,
        }
    }

    /// The blocks that a damage changes.
    fn blocks_of(&self, damage: Damage<'_>) -> Vec<Range<u64>> {
        let of_sector = |sector: u64| {
            let block = sector * SECTOR_BYTES / self.block_bytes;
            block..block + 1
        };
        match damage {
            Damage::Bit(bit) => once(of_sector(bit / 8 / SECTOR_BYTES)).collect(),
            Damage::Length(len) => once(len / self.block_bytes..SEGMENT_BYTES / self.block_bytes).collect(),
            Damage::Zero(sector) | Damage::Older(sector, _) => once(of_sector(sector)).collect(),
            Damage::Swap(one, other) => vec![of_sector(one), of_sector(other)],
        }
    }

    /// What may be lost, as ranges of records.
    fn may_be_lost(&self, damage: Damage<'_>) -> Vec<Range<u64>> {
        let blocks = self.blocks_of(damage);
        if blocks.iter().any(|blocks| blocks.start == 0) {
            return once(self.first_index..self.first_index + self.records.len() as u64).collect();
        }
        blocks
            .into_iter()
            .map(|blocks| self.records_in(blocks))
            .filter(|records| !records.is_empty())
            .collect()
    }

    fn damaged(&self, damage: Damage<'_>) -> SimDisk {
        let disk = self.disk.power_fail(CrashStyle::EverythingUnsynced, 0);
        self.apply(&disk, damage);
        disk
    }

    fn apply(&self, disk: &SimDisk, damage: Damage<'_>) {
        let path = segment_path();
        match damage {
            Damage::Bit(bit) => disk.flip_bit(&path, bit).unwrap(),
            Damage::Length(len) => disk.truncate_raw(&path, len).unwrap(),
            Damage::Zero(sector) => disk.zero_sector(&path, sector).unwrap(),
            Damage::Swap(one, other) => disk.swap_sectors(&path, one, other).unwrap(),
            Damage::Older(sector, bytes) => {
                let mut segment = self.segment.clone();
                segment[(sector * SECTOR_BYTES) as usize..][..bytes.len()].copy_from_slice(bytes);
                disk.put(&path, &segment).unwrap();
            }
        }
    }

    fn is_right(&self, index: u64, payload: &[u8]) -> bool {
        index
            .checked_sub(self.first_index)
            .and_then(|nth| self.payloads.get(nth as usize))
            .is_some_and(|right| right == payload)
    }

    /// Reads records with a reader; answers what ended it, if it was not the end of the range.
    fn read(&self, reader: &Reader, range: Range<u64>) -> Result<Option<(u64, Error)>, String> {
        let mut expected = range.start;
        let mut cursor = match reader.iter(range.clone()) {
            Ok(cursor) => cursor,
            Err(error) => return Ok(Some((expected, error))),
        };
        loop {
            match cursor.next_record() {
                Ok(Some(record)) => {
                    let nth = record.index.wrapping_sub(self.first_index) as usize;
                    let right_type =
                        self.records.get(nth).is_none_or(|place| place.type_code == record.type_code);
                    if record.index != expected
                        || !right_type
                        || !self.is_right(record.index, &record.payload)
                    {
                        return Err(format!("reader answers wrong bytes as record {}", record.index));
                    }
                    expected += 1;
                }
                Ok(None) if expected == range.end => return Ok(None),
                Ok(None) => return Err(format!("reader ends at record {expected} of {range:?}")),
                Err(error) => return Ok(Some((expected, error))),
            }
        }
    }

    /// Looks at the damage with a reader, at the records around it; `Err` is a finding.
    fn look(&self, disk: &SimDisk, damage: Damage<'_>, around: u64) -> Result<Tally, String> {
        let lost = self.may_be_lost(damage);
        let detected = Ok(Tally { detected: 1, ..Tally::default() });
        let reader = match Reader::open_in(sim_env(disk, 1), DIR) {
            Ok(reader) => reader,
            Err(error) => return self.is_detected(damage, &error).and(detected),
        };
        let bounds = reader.bounds().map_err(|error| format!("bounds: {error}"))?;
        let reported = reader.damage();
        if bounds.start != self.first_index || bounds.end > self.next_index {
            return Err(format!(
                "bounds are {bounds:?}, they were {}..{}",
                self.first_index, self.next_index
            ));
        }
        let mut found = reported.is_some();
        if bounds.end < self.next_index && bounds.end < self.witnessed && reported.is_none() {
            return Err(format!(
                "the end is taken for {}, records below {} are witnessed, of {}",
                bounds.end, self.witnessed, self.next_index
            ));
        }
        if let Some(records) = reported.and_then(|damage| damage.records) {
            // Of a file that was cut behind its last record nobody knows that it was the last.
            let is_behind = matches!(damage, Damage::Length(_)) && records.start == self.next_index;
            if !is_behind {
                self.is_right_range(&lost, records)?;
            }
        }
        let start = lost.first().map_or(self.next_index, |lost| lost.start);
        let end = lost.last().map_or(self.next_index, |lost| lost.end);
        let from = start.saturating_sub(around).max(self.first_index);
        let to = end.saturating_add(around).min(bounds.end);
        let mut at = from;
        while at < to {
            let Some((index, error)) = self.read(&reader, at..to)? else { break };
            if !error.is_corruption() {
                self.is_detected(damage, &error)?;
            }
            let Some(of) = lost.iter().find(|lost| lost.contains(&index)) else {
                return Err(format!("record {index} is not touched by the damage, but: {error}"));
            };
            found = true;
            at = of.end;
        }
        let torn = bounds.end < self.next_index && !found;
        if found {
            return detected;
        }
        if torn {
            Ok(Tally { torn: 1, ..Tally::default() })
        } else {
            Ok(Tally { harmless: 1, ..Tally::default() })
        }
    }

    /// Damage is corruption, except that a file header may now say that it is of a later version, or not ours.
    fn is_detected(&self, damage: Damage<'_>, error: &Error) -> Result<(), String> {
        let is_format = matches!(error, Error::Format { .. });
        let in_version = matches!(damage, Damage::Bit(bit) if (8 * 8..12 * 8).contains(&bit));
        if error.is_corruption() || (is_format && in_version) {
            return Ok(());
        }
        Err(format!("damage is reported as: {error}"))
    }

    fn is_right_range(&self, lost: &[Range<u64>], reported: Range<u64>) -> Result<(), String> {
        let within =
            |of: &Range<u64>| of.start <= reported.start && reported.start < of.end.max(of.start + 1);
        if reported.is_empty() || lost.iter().any(within) {
            return Ok(());
        }
        Err(format!("reported are records {reported:?}, damaged are {lost:?}"))
    }

    /// Looks at the damage in every way there is.
    fn look_thoroughly(&self, disk: &SimDisk, damage: Damage<'_>) -> Result<Tally, String> {
        let tally = self.look(disk, damage, u64::MAX)?;
        let lost = self.may_be_lost(damage);
        let is_lost = |index: u64| lost.iter().any(|lost| lost.contains(&index));
        self.verify(disk, damage, &lost, tally)?;
        if let Ok(reader) = Reader::open_in(sim_env(disk, 1), DIR) {
            let bounds = reader.bounds().map_err(|error| format!("bounds: {error}"))?;
            for index in bounds.clone() {
                match reader.read(index) {
                    Ok(record) if self.is_right(index, &record.payload) => {}
                    Ok(_) => return Err(format!("read answers wrong bytes as record {index}")),
                    Err(error) if is_lost(index) => self.is_detected(damage, &error)?,
                    Err(error) => return Err(format!("read of record {index}: {error}")),
                }
            }
            let mut cursor = reader.iter_reverse(..).map_err(|error| format!("reverse: {error}"))?;
            for index in bounds.rev() {
                match cursor.next_record() {
                    Ok(Some(record)) if record.index == index && self.is_right(index, &record.payload) => {}
                    Ok(other) => return Err(format!("backward, record {index} is answered as {other:?}")),
                    Err(error) if is_lost(index) => {
                        self.is_detected(damage, &error)?;
                        break;
                    }
                    Err(error) => return Err(format!("backward, record {index}: {error}")),
                }
            }
        }
        self.write(disk, damage, tally)?;
        Ok(tally)
    }

    /// `verify` names what is lost, and nothing else.
    fn verify(
        &self,
        disk: &SimDisk,
        damage: Damage<'_>,
        lost: &[Range<u64>],
        tally: Tally,
    ) -> Result<(), String> {
        let report = match lsfs::verify(&sim_env(disk, 1), Path::new(DIR), |_| {}) {
            Ok(report) => report,
            Err(error) => return self.is_detected(damage, &error),
        };
        if tally.detected > 0 && report.damage.is_empty() {
            return Err("reading fails, but verify finds nothing".to_string());
        }
        for found in &report.damage {
            if let Some(records) = &found.records
                && records.start < self.next_index
            {
                self.is_right_range(lost, records.clone())
                    .map_err(|problem| format!("verify: {problem}: {found}"))?;
            }
        }
        let in_damage: u64 = lost.iter().map(|lost| lost.end - lost.start).sum();
        let whole = self.next_index - self.first_index;
        if report.damage.is_empty() && tally.torn == 0 && report.records != whole {
            return Err(format!("verify counts {} records of {whole}", report.records));
        }
        if report.records + in_damage < self.witnessed - self.first_index
            && !report.damage.iter().any(|found| found.position == 0 || found.records.is_none())
        {
            return Err(format!(
                "verify counts {} records of {whole}, {in_damage} may be lost",
                report.records
            ));
        }
        Ok(())
    }

    /// A writer refuses, and changes nothing; or it opens, and nothing but a torn tail is lost by that.
    fn write(&self, disk: &SimDisk, damage: Damage<'_>, tally: Tally) -> Result<(), String> {
        let before = disk.contents(&segment_path());
        let stream = match RecordStream::open_in(sim_env(disk, 77), DIR, StreamOptions::default()) {
            Ok(stream) => stream,
            Err(error) => {
                self.is_detected(damage, &error)?;
                if tally.detected == 0 {
                    return Err(format!("a reader finds nothing, a writer: {error}"));
                }
                if disk.contents(&segment_path()) != before {
                    return Err("a writer refused to open, and changed the segment".to_string());
                }
                return Ok(());
            }
        };
        let next = stream.next_index();
        if next != self.next_index && (next < self.witnessed || next > self.next_index) {
            return Err(format!(
                "a writer goes on at {next}, records below {} are witnessed",
                self.witnessed
            ));
        }
        let index = stream.append(5, b"after the damage").map_err(|error| format!("append: {error}"))?;
        let record = stream.read(index).map_err(|error| format!("read what was appended: {error}"))?;
        if index != next || record.payload != b"after the damage" {
            return Err("what was appended is not read back".to_string());
        }
        Ok(())
    }

    /// Looks at every damage of an iterator; each must be undone by itself or by a fresh disk.
    fn strike<'a>(&self, damages: impl Iterator<Item = Damage<'a>>) -> Result<Tally, String> {
        let disk = self.damaged(Damage::Length(SEGMENT_BYTES));
        let mut sum = Tally::default();
        for (nth, damage) in (0..).zip(damages) {
            let outcome = if nth % THOROUGH_STEP == 0 {
                self.look_thoroughly(&self.damaged(damage), damage)
            } else if let Damage::Bit(_) | Damage::Swap(..) = damage {
                // Done twice, it is undone.
                self.apply(&disk, damage);
                let outcome = self.look(&disk, damage, 3);
                self.apply(&disk, damage);
                outcome
            } else {
                self.look(&self.damaged(damage), damage, 3)
            };
            let tally = outcome.map_err(|problem| format!("{}: {damage:?}: {problem}", self.name))?;
            sum.harmless += tally.harmless;
            sum.detected += tally.detected;
            sum.torn += tally.torn;
        }
        Ok(sum)
    }

    fn bits(&self) -> Result<Tally, String> {
        self.strike(some_of(SEGMENT_BYTES * 8).map(Damage::Bit))
    }

    fn lengths(&self) -> Result<Tally, String> {
        self.strike(some_of(SEGMENT_BYTES).map(Damage::Length))
    }

    fn sectors(&self) -> Result<Tally, String> {
        let sectors = SEGMENT_BYTES / SECTOR_BYTES;
        let zeros = (0..sectors).map(Damage::Zero);
        let swaps =
            (0..sectors).flat_map(|one| (one + 1..sectors).map(move |other| Damage::Swap(one, other)));
        self.strike(zeros.chain(swaps))
    }
}

/// One of each sixteen numbers below `end`, or all.
fn some_of(end: u64) -> impl Iterator<Item = u64> {
    let step = if std::env::var("LSFS_DAMAGE").is_ok_and(|value| value == "all") { 1 } else { 16 };
    let mut choices = Choices::new(budget("LSFS_DAMAGE_SEED", 1));
    (0..end).step_by(step).map(move |from| from + choices.below(step as u64))
}

/// What the sectors of the segment held before they held what they hold now, zeros apart.
fn older_versions(trace: &Trace) -> BTreeSet<(u64, Vec<u8>)> {
    let mut images = trace.images();
    let (mut seen, mut now) = (BTreeSet::new(), Vec::new());
    loop {
        let image = images.image(CrashStyle::EverythingUnsynced, 0);
        if let Some(segment) = image.contents(&segment_path()) {
            now = segment.chunks(SECTOR_BYTES as usize).map(<[u8]>::to_vec).collect::<Vec<_>>();
            seen.extend((0..).zip(now.iter().cloned()));
        }
        if !images.advance() {
            break;
        }
    }
    seen.retain(|(sector, bytes)| now[*sector as usize] != *bytes && bytes.iter().any(|&byte| byte != 0));
    seen
}

/// Looks for damage that goes unseen, among the sectors of each segment; for the tests of the tests.
pub(crate) fn damage_sectors() -> Result<(), String> {
    for name in ["segment-open", "segment-closed", "segment-sealed"] {
        Original::golden(name).sectors()?;
    }
    Ok(())
}

fn expect(name: &'static str, strike: fn(&Original) -> Result<Tally, String>) -> Tally {
    let original = Original::golden(name);
    let started = std::time::Instant::now();
    let tally = strike(&original).unwrap_or_else(|finding| panic!("{finding}"));
    eprintln!("{name}: {tally:?} {:?}", started.elapsed());
    assert!(tally.torn == 0 || original.witnessed < original.next_index);
    tally
}

#[test]
fn every_bit_of_a_sealed_segment() {
    expect("segment-sealed", Original::bits);
}

#[test]
fn every_bit_of_a_closed_segment() {
    expect("segment-closed", Original::bits);
}

#[test]
fn every_bit_of_an_open_segment() {
    expect("segment-open", Original::bits);
}

#[test]
fn every_length_of_a_segment() {
    for name in ["segment-sealed", "segment-closed", "segment-open"] {
        expect(name, Original::lengths);
    }
}

#[test]
fn every_sector_of_a_segment() {
    for name in ["segment-sealed", "segment-closed", "segment-open"] {
        expect(name, Original::sectors);
    }
}

#[test]
fn every_older_sector_of_a_segment() {
    for name in ["segment-sealed", "segment-closed", "segment-open"] {
        let (disk, trace) = make_recorded(name);
        let original = Original::of(name, disk);
        let older = older_versions(&trace);
        assert!(older.len() > 100, "{name}: {} older sectors", older.len());
        let damages = older.iter().map(|(sector, bytes)| Damage::Older(*sector, bytes));
        let tally = original.strike(damages).unwrap_or_else(|finding| panic!("{finding}"));
        eprintln!("{name}: {} older sectors, {tally:?}", older.len());
    }
}
