//! Golden directories: what earlier versions wrote is opened, compared and written to by today's code, for ever.
//!
//! `tests/golden/vN/NAME/` is a directory as format version N left it, `NAME.txt` beside it lists what is inside. The
//! rule (docs/format.md, "Versions"): what was released is never written anew. [`write_what_is_missing`] adds
//! directories; it leaves alone those that are there.
//!
//! A new format: a kind in [`Kind`], how to look at it in [`Kind::look`] and how to write to it in [`Kind::extend`],
//! and recipes in [`recipes`].

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lsfs::codec::{Checksum, Compression, FileHeader, FrameLayout, Pointer};
use lsfs::io::{SimDisk, SimRuntime, Trace};
use lsfs::repair::{RepairMode, plan};
use lsfs::{
    DataReader, DataStream, DataStreamOptions, Durability as SetDurability, Env, FinalData, FinalDataOptions,
    Log, LogOptions, Reader, RecordStream, SegmentSet, SegmentSetReader, SetOptions, StoreKind,
    StreamOptions,
};

use crate::support::sim_env;

pub(crate) const DIR: &str = "/golden";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// What a directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Records,
    Data,
    State,
    Set,
    Mapped,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Records, Kind::Data, Kind::State, Kind::Set, Kind::Mapped];

    fn name(self) -> &'static str {
        match self {
            Kind::Records => "record stream",
            Kind::Data => "data stream",
            Kind::State => "final data",
            Kind::Set => "segment set",
            Kind::Mapped => "mapped log",
        }
    }

    /// Lists what is inside, as a reader sees it that has no lock.
    fn look(self, env: &Env, dir: &Path) -> lsfs::Result<String> {
        let mut listing = format!("{}\n", self.name());
        let line = |listing: &mut String, line: String| writeln!(listing, "{line}").expect("a string grows");
        match self {
            Kind::Records => {
                let info = lsfs::inspect(env, dir)?;
                let (first, next) = (info.first_index, info.next_index);
                line(&mut listing, format!("records {first}..{next}, {} segments", info.segments.len()));
                line(&mut listing, format!("block size {}, {:?}", info.block_bytes, info.checksum));
                line(&mut listing, format!("closed {}, torn tail {}", info.is_closed, info.has_torn_tail));
                let index = lsfs::verify_index(env, dir, |_| {})?;
                if index.indexed_segments > 0 {
                    let (entries, faults) = (index.entries, index.faults.len());
                    line(&mut listing, format!("index of {entries} records, {faults} faults"));
                }
                let counted = info.segments.iter().filter_map(|segment| segment.statistics.as_ref());
                for (nth, counted) in counted.enumerate() {
                    let (records, bytes) = (counted.records, counted.payload_bytes);
                    line(&mut listing, format!("statistics {nth}: {records} records, {bytes} bytes"));
                }
                let reader = Reader::open_in(env.clone(), dir)?;
                let mut start = first;
                for lost in reader.lost_ranges()?.into_iter().chain(std::iter::once(next..next)) {
                    let mut cursor = reader.iter(start..lost.start)?;
                    while let Some(record) = cursor.next_record()? {
                        let bytes = bytes_in_short(&record.payload);
                        line(&mut listing, format!("{}: type {}, {bytes}", record.index, record.type_code));
                    }
                    if !lost.is_empty() {
                        line(&mut listing, format!("lost {}..{}", lost.start, lost.end));
                    }
                    start = lost.end;
                }
            }
            Kind::Set => {
                let reader = SegmentSetReader::open_in(env.clone(), dir)?;
                let mut entries = reader.iter();
                while let Some(entry) = entries.next_entry()? {
                    let Pointer { segment, position, .. } = entry.pointer;
                    let (kind, bytes) = (entry.kind, bytes_in_short(&entry.body));
                    let end = if entry.ends_batch { "" } else { ", the batch goes on" };
                    line(&mut listing, format!("{segment} at {position}: kind {kind}, {bytes}{end}"));
                }
            }
            Kind::Mapped => {
                let log = Log::open_read_only_in(env.clone(), dir, LogOptions::default())?;
                let mut records = log.iter(..)?;
                while let Some(record) = records.next_record()? {
                    line(&mut listing, format!("{}: {}", record.index, bytes_in_short(&record.payload)));
                }
            }
            Kind::Data => {
                let mut reader = DataReader::open_in(env.clone(), dir)?;
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).expect("the bytes before the mark are read");
                line(&mut listing, bytes_in_short(&bytes));
                if let Some(mark) = reader.last_mark() {
                    line(&mut listing, format!("mark {}: {} chunks", mark.number, mark.record_count));
                }
            }
            Kind::State => match FinalData::read_in(env.clone(), dir)? {
                None => line(&mut listing, "no state".to_string()),
                Some(state) => {
                    line(
                        &mut listing,
                        format!("version {}: {}", state.version, bytes_in_short(&state.bytes)),
                    );
                }
            },
        }
        Ok(listing)
    }

    /// Opens for writing, adds something, and closes; answers the lines that a look shows from now on.
    fn extend(self, env: &dyn Fn() -> Env, dir: &Path) -> lsfs::Result<Vec<String>> {
        let added = b"added by a later version";
        let short = bytes_in_short(added);
        Ok(match self {
            Kind::Records => {
                // The fixed settings are those of the directory, whatever is asked for.
                let stream = RecordStream::open_in(env(), dir, StreamOptions::default())?;
                let at_once = stream.append(77, added)?;
                let later = stream.append_batch(&[(78, &added[..]), (79, &added[..])])?;
                stream.close()?;
                vec![
                    format!("{at_once}: type 77, {short}"),
                    format!("{}: type 78, {short}", later.start),
                    format!("{}: type 79, {short}", later.start + 1),
                ]
            }
            Kind::Data => {
                let mut data = DataStream::open_in(env(), dir, DataStreamOptions::default())?;
                data.write_all(added).expect("the stream takes bytes");
                let mark = data.mark()?;
                data.close()?;
                vec![format!("mark {}: {} chunks", mark.number, mark.record_count)]
            }
            Kind::State => {
                let data = FinalData::open_in(env(), dir, FinalDataOptions::default())?;
                let version = data.set(added)?;
                data.close()?;
                vec![format!("version {version}: {short}")]
            }
            Kind::Set => {
                let set = SegmentSet::open_in(env(), dir, SetOptions::default())?;
                let Pointer { segment, position, .. } = set.append(9, added, SetDurability::Sync)?;
                set.close()?;
                vec![format!("{segment} at {position}: kind 9, {short}")]
            }
            Kind::Mapped => {
                let log = Log::open_in(env(), dir, LogOptions::default())?;
                let offset = log.append(0, added)?;
                log.close()?;
                vec![format!("{offset}: {short}")]
            }
        })
    }
}

/// Length and checksum, and the beginning of what can be read.
fn bytes_in_short(bytes: &[u8]) -> String {
    let beginning: String = bytes.iter().take(12).map(|byte| byte.escape_ascii().to_string()).collect();
    format!("{} bytes, crc32c {:08x}, \"{beginning}\"", bytes.len(), lsfs::codec::crc32c(0, bytes))
}

/// A golden directory.
pub(crate) struct Golden {
    /// With the version, for messages.
    name: String,
    kind: Kind,
    listing: String,
    files: Vec<(String, Vec<u8>)>,
}

impl Golden {
    /// All of all versions.
    fn all() -> Vec<Golden> {
        let mut all = Vec::new();
        for version in sorted_names(&root()) {
            for name in sorted_names(&root().join(&version)) {
                let Some(name) = name.strip_suffix(".txt") else { continue };
                all.push(Golden::load(&version, name));
            }
        }
        all
    }

    pub(crate) fn load(version: &str, name: &str) -> Golden {
        let dir = root().join(version).join(name);
        let listing = fs::read_to_string(dir.with_extension("txt")).unwrap();
        let kind = Kind::ALL.into_iter().find(|kind| listing.starts_with(kind.name()));
        let kind = kind.unwrap_or_else(|| panic!("{name}: of no known kind"));
        let files = sorted_names(&dir)
            .into_iter()
            .map(|file| (file.clone(), fs::read(dir.join(file)).unwrap()))
            .collect();
        Golden { name: format!("{version}/{name}"), kind, listing, files }
    }

    /// The directory on a simulated disk.
    pub(crate) fn on_disk(&self) -> SimDisk {
        let disk = SimDisk::new(1);
        for (name, bytes) in &self.files {
            disk.put(&Path::new(DIR).join(name), bytes).unwrap();
        }
        disk
    }

    /// The bytes of its files whose names begin so, one behind the other.
    pub(crate) fn joined(&self, prefix: &str) -> Vec<u8> {
        let files = self.files.iter().filter(|(name, _)| name.starts_with(prefix));
        files.flat_map(|(_, bytes)| bytes.iter().copied()).collect()
    }

    /// Its segments: name and bytes.
    pub(crate) fn segments(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let all = self.files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
        all.filter(|(name, _)| name.ends_with(".seg") || name.ends_with(".log"))
    }

    /// Its first segment.
    pub(crate) fn segment(&self) -> &[u8] {
        let found = self.files.iter().find(|(name, _)| name.ends_with(".seg"));
        &found.expect("it has a segment").1
    }

    /// Looks, looks again after an opening for writing that wrote nothing, adds, and looks again.
    fn check(&self, env: &dyn Fn() -> Env, dir: &Path) {
        let fail = |what: &str, error: lsfs::Error| -> ! { panic!("{}: {what}: {error}", self.name) };
        let listed = self.kind.look(&env(), dir).unwrap_or_else(|error| fail("look", error));
        assert_eq!(listed, self.listing, "{} holds something else", self.name);
        let added = self.kind.extend(env, dir).unwrap_or_else(|error| fail("extend", error));
        let listed = self.kind.look(&env(), dir).unwrap_or_else(|error| fail("look again", error));
        if self.kind == Kind::Records {
            let verified = lsfs::verify(&env(), dir, |_| {}).unwrap();
            assert!(verified.damage.is_empty(), "{}: {:?}", self.name, verified.damage);
        }
        let head = match self.kind {
            Kind::Records => Some(4),
            Kind::Set | Kind::Mapped => Some(1),
            Kind::Data | Kind::State => None,
        };
        for line in self.listing.lines().skip(head.unwrap_or(usize::MAX)) {
            assert!(listed.lines().any(|there| there == line), "{}: {line:?} was lost", self.name);
        }
        let tail: Vec<&str> = listed.lines().rev().take(added.len()).collect();
        let expected: Vec<&str> = added.iter().rev().map(String::as_str).collect();
        assert_eq!(tail, expected, "{}: what was added is not what is there", self.name);
    }
}

fn sorted_names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().expect("names are ASCII")).collect();
    names.sort();
    names
}

#[test]
fn every_golden_directory_is_read_and_written_by_todays_code() {
    let all = Golden::all();
    assert!(all.len() >= 30, "{} directories", all.len());
    for golden in all {
        let disk = golden.on_disk();
        let opens = std::cell::Cell::new(100);
        let env = || {
            opens.set(opens.get() + 1);
            sim_env(&disk, opens.get())
        };
        golden.check(&env, Path::new(DIR));
    }
}

#[test]
fn every_golden_directory_opens_on_a_real_disk() {
    for golden in Golden::all() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in &golden.files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        golden.check(&Env::default, dir.path());
    }
}

// ---- the generator ----

/// The folder of a directory's format version: that of the newest file in it.
fn version_of(disk: &SimDisk) -> String {
    let in_dir = disk.paths().into_iter().filter(|path| path.parent() == Some(Path::new(DIR)));
    let headers = in_dir.filter_map(|path| FileHeader::decode(&disk.contents(&path).unwrap()).ok());
    format!("v{}", headers.map(|header| header.version()).max().unwrap_or(1))
}

/// How a directory came to be: a name, what it holds, and what was done.
type Recipe = (&'static str, Kind, fn(&Maker));

/// The machine on which a directory is made. Nothing on it depends on time or chance.
struct Maker {
    disk: SimDisk,
    opened: std::cell::Cell<u64>,
}

impl Maker {
    fn env(&self) -> Env {
        self.opened.set(self.opened.get() + 1);
        // Background work waits until somebody would wait for it: no spares, which nobody wants to keep.
        let runtime = SimRuntime::with_inline_percent(self.opened.get(), 0);
        Env { disk: Arc::new(self.disk.clone()), runtime: Arc::new(runtime) }
    }

    fn records(&self, options: &StreamOptions) -> RecordStream {
        RecordStream::open_in(self.env(), DIR, options.clone()).unwrap()
    }

    fn data(&self) -> DataStream {
        let stream = small(512);
        DataStream::open_in(self.env(), DIR, DataStreamOptions { stream, ..Default::default() }).unwrap()
    }

    fn set(&self) -> SegmentSet {
        self.set_with(FrameLayout::Aligned)
    }

    fn set_with(&self, frame_layout: FrameLayout) -> SegmentSet {
        let options = SetOptions { frame_layout, segment_bytes: 32 << 10, ..SetOptions::default() };
        SegmentSet::open_in(self.env(), DIR, options).unwrap()
    }

    fn mapped(&self) -> Log {
        let options = LogOptions {
            store: StoreKind::Mmap,
            segment_entries: 10,
            first_offset: 100,
            ..LogOptions::default()
        };
        Log::open_in(self.env(), DIR, options).unwrap()
    }

    fn state(&self) -> FinalData {
        let options = FinalDataOptions { block_bytes: 512, limit_blocks: 8, ..Default::default() };
        FinalData::open_in(self.env(), DIR, options).unwrap()
    }
}

fn small(block_bytes: usize) -> StreamOptions {
    StreamOptions {
        block_bytes,
        segment_bytes: block_bytes as u64 * 16,
        in_flight_bytes: block_bytes * 4,
        ..StreamOptions::default()
    }
}

/// Text of so many bytes that compresses a little.
fn text(tag: u64, len: usize) -> Vec<u8> {
    let words = ["log", "block", "slice", "record", "torn", "sealed", "epoch", "mark"];
    let mut state = tag.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut text = format!("{tag}:").into_bytes();
    while text.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.extend_from_slice(words[(state % 8) as usize].as_bytes());
        text.push(b' ');
    }
    text.truncate(len);
    text
}

fn append(stream: &RecordStream, lens: impl IntoIterator<Item = usize>) {
    for len in lens {
        let index = stream.next_index();
        stream.append(index * 3, &text(index, len)).unwrap();
    }
}

fn append_batch(stream: &RecordStream, lens: impl IntoIterator<Item = usize>) {
    let first = stream.next_index();
    let records: Vec<_> = (first..).zip(lens).map(|(index, len)| (index * 3, text(index, len))).collect();
    stream.append_batch(&records).unwrap();
}

fn append_entries(set: &SegmentSet, lens: impl IntoIterator<Item = usize>) {
    for (tag, len) in (1..).zip(lens) {
        set.append(tag as u8, &text(tag, len), SetDurability::Sync).unwrap();
    }
}

fn append_frames(log: &Log, count: u64) {
    for tag in 1..=count {
        log.append(0, &text(tag, 10 + tag as usize * 7)).unwrap();
    }
}

const MIXED: [usize; 12] = [0, 5, 100, 40, 900, 1, 300, 77, 2000, 12, 400, 33];

/// Fills a segment of 64 KiB up to a last write of several blocks; for the tests of damage.
fn fill_64_kib(stream: &RecordStream) {
    while stream.stats().live_bytes < 52 << 10 {
        append_batch(stream, MIXED);
        append(stream, [60, 1500, 250]);
    }
    append_batch(stream, [700, 0, 3000, 90, 90, 90]);
}

fn in_64_kib() -> StreamOptions {
    StreamOptions {
        segment_bytes: 64 << 10,
        in_flight_bytes: 8 << 10,
        compression: Compression::Lz4,
        first_index: 1000,
        ..small(1024)
    }
}

fn recipes() -> Vec<Recipe> {
    vec![
        ("records-empty", Kind::Records, |maker| maker.records(&small(512)).close().unwrap()),
        ("records-closed", Kind::Records, |maker| {
            let stream = maker.records(&StreamOptions { segment_bytes: 32 << 10, ..small(4096) });
            append(&stream, MIXED);
            append_batch(&stream, MIXED);
            stream.close().unwrap();
        }),
        ("records-open", Kind::Records, |maker| {
            let stream = maker.records(&small(512));
            append(&stream, [10, 500, 20]);
            append_batch(&stream, [600, 5, 5]);
            stream.append_buffered(1, b"in memory only").unwrap();
            drop(maker.disk.restart());
        }),
        ("records-segments", Kind::Records, |maker| {
            let stream = maker.records(&StreamOptions { segment_bytes: 8 * 512, ..small(512) });
            append(&stream, MIXED);
            append(&stream, [200; 12]);
            drop(maker.disk.restart());
        }),
        ("records-reopened", Kind::Records, |maker| {
            for round in 0..4 {
                let stream = maker.records(&small(512));
                append(&stream, [30 + round, 30, 700]);
                if round % 2 == 0 {
                    stream.close().unwrap();
                }
            }
        }),
        ("records-lz4", Kind::Records, |maker| {
            let stream = maker.records(&StreamOptions { compression: Compression::Lz4, ..small(512) });
            append(&stream, MIXED);
            stream.close().unwrap();
        }),
        ("records-zstd", Kind::Records, |maker| {
            let stream = maker.records(&StreamOptions { compression: Compression::Zstd, ..small(512) });
            append(&stream, MIXED);
            drop(maker.disk.restart());
        }),
        ("records-without-checksums", Kind::Records, |maker| {
            let stream = maker.records(&StreamOptions { checksum: Checksum::None, ..small(512) });
            append(&stream, MIXED);
            stream.close().unwrap();
        }),
        ("records-large", Kind::Records, |maker| {
            // The second is larger than the in-flight limit and than a segment.
            let stream = maker.records(&small(512));
            append(&stream, [3000, 12_000, 50]);
            stream.close().unwrap();
        }),
        ("records-truncated", Kind::Records, |maker| {
            let stream = maker.records(&small(512));
            append_batch(&stream, [300; 14]);
            stream.truncate_after(4).unwrap();
            append(&stream, [40, 40]);
            stream.truncate_after(5).unwrap();
            append(&stream, [90]);
            drop(maker.disk.restart());
        }),
        ("records-torn", Kind::Records, |maker| {
            let stream = maker.records(&StreamOptions { in_flight_bytes: 8 * 512, ..small(512) });
            append(&stream, [40, 40]);
            let segment = Path::new(DIR).join("00000000000000000000.seg");
            append_batch(&stream, [450, 450]);
            drop(maker.disk.restart());
            // Of the last write the second block never arrived.
            maker.disk.zero_sector(&segment, 2).unwrap();
        }),
        ("records-purged", Kind::Records, |maker| {
            let stream = maker.records(&StreamOptions { segment_bytes: 8 * 512, ..small(512) });
            append(&stream, [400; 30]);
            stream.purge_before(20).unwrap();
            append(&stream, [400; 3]);
            stream.close().unwrap();
        }),
        ("records-reset", Kind::Records, |maker| {
            let stream = maker.records(&small(512));
            append(&stream, [400; 5]);
            stream.reset_to(1 << 40).unwrap();
            append(&stream, [50, 60]);
            stream.close().unwrap();
        }),
        ("records-indexed", Kind::Records, |maker| {
            let stream = maker.records(&StreamOptions { segment_bytes: 8 * 512, ..small(512) });
            append(&stream, MIXED);
            append(&stream, [200; 12]);
            stream.close().unwrap();
            lsfs::run_once(&maker.env(), Path::new(DIR)).unwrap();
        }),
        ("records-rewritten", Kind::Records, |maker| {
            let stream = maker.records(&StreamOptions { segment_bytes: 8 * 512, ..small(512) });
            append(&stream, [300; 30]);
            let segments = lsfs::inspect(&maker.env(), Path::new(DIR)).unwrap().segments;
            let run = segments[1].base_index..segments[2].next_index;
            let kept: Vec<_> = run.clone().step_by(3).map(|index| stream.read(index)).collect();
            stream.replace_sealed(run, &mut kept.into_iter()).unwrap();
            stream.close().unwrap();
        }),
        ("records-repaired", Kind::Records, |maker| {
            let stream = maker.records(&StreamOptions { segment_bytes: 8 * 512, ..small(512) });
            append(&stream, [300; 30]);
            stream.close().unwrap();
            drop(stream);
            let segment = Path::new(DIR).join("00000000000000000000.seg");
            maker.disk.zero_sector(&segment, 3).unwrap();
            let plan = plan(&maker.env(), DIR, RepairMode::Keep).unwrap();
            plan.apply().unwrap();
        }),
        ("set-closed", Kind::Set, |maker| {
            let set = maker.set();
            append_entries(&set, MIXED);
            let batch: Vec<(u8, Vec<u8>)> = (1..4).map(|tag| (tag, text(tag.into(), 700))).collect();
            set.append_batch(&batch, SetDurability::Sync).unwrap();
            set.seal().unwrap();
            append_entries(&set, [70_000, 5, 0]);
            set.close().unwrap();
        }),
        ("set-open", Kind::Set, |maker| {
            let set = maker.set();
            append_entries(&set, MIXED);
            drop(maker.disk.restart());
        }),
        ("set-reopened", Kind::Set, |maker| {
            for _ in 0..3 {
                let set = maker.set();
                append_entries(&set, [5000, 7000, 40]);
                let pointer = set.append(1, &text(1, 90), SetDurability::Sync).unwrap();
                set.release(pointer).unwrap();
                set.seal().unwrap();
                set.close().unwrap();
            }
            let set = maker.set();
            set.reclaim(&[1]).unwrap();
            set.close().unwrap();
        }),
        ("set-packed", Kind::Set, |maker| {
            // The first segment is of the other layout.
            let set = maker.set();
            append_entries(&set, [70_000, 5]);
            set.close().unwrap();
            drop(set);
            let set = maker.set_with(FrameLayout::Packed);
            append_entries(&set, [66_000, 20]);
            set.seal().unwrap();
            append_entries(&set, [65_535, 65_536, 0, 140_000, 1023, 1024, 33]);
            set.seal().unwrap();
            append_entries(&set, [12, 65_600]);
            drop(maker.disk.restart());
        }),
        ("mapped-closed", Kind::Mapped, |maker| {
            let log = maker.mapped();
            append_frames(&log, 24);
            log.close().unwrap();
        }),
        ("mapped-rewritten", Kind::Mapped, |maker| {
            let log = maker.mapped();
            append_frames(&log, 34);
            let kept: Vec<_> = [103, 107, 115].map(|offset| log.read(offset)).into();
            log.replace(100..120, kept).unwrap();
            log.close().unwrap();
        }),
        ("segment-sealed", Kind::Records, |maker| {
            let stream = maker.records(&in_64_kib());
            fill_64_kib(&stream);
            while stream.stats().segments < 2 {
                append(&stream, [120]);
            }
            append(&stream, [120, 130]);
            stream.close().unwrap();
        }),
        ("segment-closed", Kind::Records, |maker| {
            let stream = maker.records(&in_64_kib());
            fill_64_kib(&stream);
            stream.close().unwrap();
        }),
        ("segment-open", Kind::Records, |maker| {
            let stream = maker.records(&in_64_kib());
            fill_64_kib(&stream);
            drop(maker.disk.restart());
        }),
        ("data-marked", Kind::Data, |maker| {
            let mut data = maker.data();
            data.write_all(&text(1, 3000)).unwrap();
            data.mark().unwrap();
            data.write_all(&text(2, 5000)).unwrap();
            data.mark().unwrap();
            data.close().unwrap();
        }),
        ("data-behind-the-mark", Kind::Data, |maker| {
            let mut data = maker.data();
            data.write_all(&text(1, 2000)).unwrap();
            data.mark().unwrap();
            data.write_all(&text(2, 1000)).unwrap();
            data.flush().unwrap();
            drop(maker.disk.restart());
        }),
        ("data-without-a-mark", Kind::Data, |maker| {
            maker.data().write_all(b"given up").unwrap();
            drop(maker.disk.restart());
        }),
        ("state-first", Kind::State, |maker| {
            maker.state().set(&text(1, 100)).unwrap();
            drop(maker.disk.restart());
        }),
        ("state-switched", Kind::State, |maker| {
            let data = maker.state();
            for version in 1..=9 {
                data.set(&text(version, 700)).unwrap();
            }
            data.close().unwrap();
        }),
        ("state-open", Kind::State, |maker| {
            let data = maker.state();
            data.set(&text(1, 3000)).unwrap();
            data.set(b"").unwrap();
            data.close().unwrap();
            maker.state().set(&text(3, 20)).unwrap();
            drop(maker.disk.restart());
        }),
    ]
}

/// Makes a directory of the present version on a simulated disk.
fn make(recipe: fn(&Maker)) -> SimDisk {
    let maker = Maker { disk: SimDisk::new(7), opened: std::cell::Cell::new(0) };
    recipe(&maker);
    maker.disk.restart()
}

/// The same with a recording of how it came to be.
pub(crate) fn make_recorded(name: &str) -> (SimDisk, Trace) {
    let (_, _, recipe) = recipes().into_iter().find(|(of, _, _)| *of == name).expect("a recipe of this name");
    let maker = Maker { disk: SimDisk::new(7), opened: std::cell::Cell::new(0) };
    maker.disk.start_trace();
    recipe(&maker);
    let trace = maker.disk.stop_trace();
    (maker.disk.restart(), trace)
}

#[test]
#[ignore = "writes the golden directories that are missing: once for a new recipe, or for a new format version"]
fn write_what_is_missing() {
    for (name, kind, recipe) in recipes() {
        let disk = make(recipe);
        let dir = root().join(version_of(&disk)).join(name);
        if dir.exists() {
            continue;
        }
        let listing = kind.look(&sim_env(&disk, 50), Path::new(DIR)).unwrap();
        fs::create_dir_all(&dir).unwrap();
        for path in disk.paths() {
            let file = path.file_name().and_then(|file| file.to_str()).expect("a name").to_string();
            // Neither means anything without the process that held it; nor are copies that a repair made kept.
            if path.parent() == Some(Path::new(DIR)) && !["lock", "live", "clerk"].contains(&file.as_str()) {
                fs::write(dir.join(file), disk.contents(&path).unwrap()).unwrap();
            }
        }
        fs::write(dir.with_extension("txt"), listing).unwrap();
    }
}

#[test]
fn every_recipe_has_its_directory() {
    let there: Vec<String> = Golden::all().into_iter().map(|golden| golden.name).collect();
    for (name, _, recipe) in recipes() {
        let version = version_of(&make(recipe));
        assert!(there.contains(&format!("{version}/{name}")), "{name}: run write_what_is_missing");
    }
}

/// A recipe that today's code does otherwise is fine; one that it does differently each time is not.
#[test]
fn recipes_follow_from_nothing_but_their_steps() {
    for (name, _, recipe) in recipes() {
        assert_eq!(make(recipe).fingerprint(), make(recipe).fingerprint(), "{name}");
    }
}
