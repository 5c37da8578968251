//! Fuzzing: decoders and sequences of operations under bytes that nobody wrote.
//!
//! A target is a function of bytes, of the form that libFuzzer takes; it panics at a finding. The mutations are our own,
//! so that it runs on the stable toolchain within the test command (docs/design/0010-proof-kit.md): they begin with the
//! examples of docs/format.md and the golden directories, and mend the checksums of most mutants, so that what is behind
//! a checksum is reached.
//!
//! `LSFS_FUZZ_SECONDS` is the time of all targets together, 120 by default; ten minutes each are
//! `LSFS_FUZZ_SECONDS=6600 cargo test --release -p lsfs --test proof fuzz`. `LSFS_FUZZ_SEED` is the first seed; a finding
//! names the seed and shows the input.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use lsfs::codec::{
    BLOCK_HEADER_BYTES, BLOCK_TAILER_BYTES, BlockHeader, BlockTailer, Checksum, Compression, FileHeader,
    Footer, FrameHeader, FrameIdentity, FrameLayout, Manifest, MappedFrameLook, Mark, RecordHeader,
    RecordTailer, SLICE_OVERHEAD_BYTES, SegmentList, SegmentStatistics, SliceView, SparseTable, crc32c,
};
use lsfs::io::SimDisk;
use lsfs::{DataReader, Error, FinalData, RecordStream, StreamOptions};

use crate::golden::{DIR, Golden};
use crate::support::{Choices, budget, sim_env};

/// Bytes of an input at most.
const INPUT_BYTES_MAX: usize = 16 << 10;
/// No input may take longer: a decoder that hangs is a finding.
const INPUT_TIME_MAX: Duration = Duration::from_secs(20);
/// No input may make the address space grow by more: a length that is believed before it is checked is a finding.
const INPUT_GROWTH_MAX: u64 = 1 << 30;
const TARGETS: u64 = 11;

/// What is fuzzed: bytes to begin with, how their checksums are mended, and the target itself.
pub(crate) struct Fuzz {
    pub(crate) seeds: Vec<Vec<u8>>,
    pub(crate) mend: fn(&mut [u8]),
    pub(crate) target: fn(&[u8]),
}

/// The most bytes of address space that this process has had.
fn address_space_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

impl Fuzz {
    pub(crate) fn run(&self, name: &str) {
        let time = Duration::from_secs(budget("LSFS_FUZZ_SECONDS", 120)) / TARGETS as u32;
        let first_seed = budget("LSFS_FUZZ_SEED", 1);
        let started = Instant::now();
        let mut seed = first_seed;
        while started.elapsed() < time || seed < first_seed + 100 {
            let input = self.input(seed);
            let (began, peak) = (Instant::now(), address_space_peak());
            let outcome = catch_unwind(AssertUnwindSafe(|| (self.target)(&input)));
            let (took, growth) = (began.elapsed(), address_space_peak() - peak);
            if outcome.is_err() || took > INPUT_TIME_MAX || growth > INPUT_GROWTH_MAX {
                let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
                let len = input.len();
                panic!(
                    "{name}: LSFS_FUZZ_SEED={seed}, {took:?}, {growth} bytes more, input of {len} bytes: {hex}"
                );
            }
            seed += 1;
        }
        eprintln!("{name}: {} inputs", seed - first_seed);
    }

    /// The input of a seed: one of the bytes to begin with, changed in a few places.
    fn input(&self, seed: u64) -> Vec<u8> {
        let mut choices = Choices::new(seed);
        let mut input = self.pick(&mut choices).to_vec();
        for _ in 0..choices.below(6) {
            self.change(&mut input, &mut choices);
        }
        input.truncate(INPUT_BYTES_MAX);
        if choices.below(4) > 0 {
            (self.mend)(&mut input);
        }
        input
    }

    fn pick(&self, choices: &mut Choices) -> &[u8] {
        &self.seeds[choices.below(self.seeds.len() as u64) as usize]
    }

    fn change(&self, input: &mut Vec<u8>, choices: &mut Choices) {
        const NUMBERS: [u64; 12] =
            [0, 1, 7, 50, 255, 512, 4096, 65_535, 1 << 31, u32::MAX as u64, 1 << 63, u64::MAX];
        let at = choices.below(input.len() as u64 + 1) as usize;
        let number = if choices.below(3) == 0 { choices.next() } else { NUMBERS[choices.below(12) as usize] };
        let width = 1 << choices.below(4);
        match choices.below(8) {
            0..=2 => {
                let end = (at + width).min(input.len());
                input[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
            3 if at < input.len() => input[at] ^= 1 << choices.below(8),
            4 => input.truncate(at),
            5 => {
                let end = (at + choices.below(64) as usize).min(input.len());
                input.drain(at..end);
            }
            6 => {
                let other = self.pick(choices);
                let end = (at + choices.below(200) as usize).min(other.len());
                let piece = other[at.min(end)..end].to_vec();
                input.splice(at..at, piece);
            }
            _ => input.extend(std::iter::repeat_n(number as u8, choices.below(100) as usize)),
        }
    }
}

/// The worked examples of docs/format.md, whatever they are examples of.
fn examples() -> Vec<Vec<u8>> {
    let document = include_str!("../../../../docs/format.md");
    let blocks = document.split("<!-- example: ").skip(1).filter_map(|part| {
        let (_, rest) = part.split_once("```text\n")?;
        Some(rest.split_once("\n```")?.0)
    });
    let word = |word: &str| {
        let (hex, count) = word.split_once('*').unwrap_or((word, "1"));
        std::iter::repeat_n(u8::from_str_radix(hex, 16).unwrap(), count.parse().unwrap())
    };
    let line =
        |line: &str| line.split('#').next().unwrap().split_whitespace().flat_map(word).collect::<Vec<_>>();
    blocks.map(|block| block.lines().flat_map(line).collect()).collect()
}

/// The blocks of the golden segments.
fn golden_blocks() -> Vec<Vec<u8>> {
    let blocks = |name: &str, block_bytes: usize| {
        let golden = Golden::load("v1", name);
        let segment = golden.segment().to_vec();
        segment.chunks_exact(block_bytes).skip(1).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let mut all = blocks("segment-open", 1024);
    all.extend(blocks("records-zstd", 512));
    all.extend(blocks("records-large", 512));
    all.retain(|block| block.iter().any(|&byte| byte != 0));
    all
}

pub(crate) fn put_crc(input: &mut [u8], at: usize, covered: std::ops::Range<usize>) {
    if at + 4 <= input.len() && covered.start <= covered.end && covered.end <= input.len() {
        let crc = crc32c(0, &input[covered]);
        input[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

fn u16_at(input: &[u8], at: usize) -> usize {
    input.get(at..at + 2).map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])))
}

/// Makes the checksums of a block's header and of its slices fit.
pub(crate) fn mend_block(input: &mut [u8]) {
    put_crc(input, 4, 8..BLOCK_HEADER_BYTES);
    if input.len() < BLOCK_HEADER_BYTES {
        return;
    }
    let seed = crc32c(0, &[&input[8..16], &input[16..20], &input[20..24]].concat());
    let (mut at, used) = (BLOCK_HEADER_BYTES, u16_at(input, 48));
    while at + SLICE_OVERHEAD_BYTES <= used.min(input.len()) {
        let end = at + SLICE_OVERHEAD_BYTES + u16_at(input, at + 8);
        if end > input.len() {
            return;
        }
        let crc = crc32c(seed, &input[at..end - 4]);
        input[end - 4..end].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
}

fn nothing(_: &mut [u8]) {}

#[test]
fn fuzz_file_headers() {
    let mend = |input: &mut [u8]| put_crc(input, 12, 16..80);
    let target = |input: &[u8]| {
        if let Ok(header) = FileHeader::decode(input) {
            let mut again = vec![0; header.block_bytes as usize];
            header.encode(&mut again);
            assert_eq!(FileHeader::decode(&again), Ok(header));
        }
    };
    Fuzz { seeds: examples(), mend, target }.run("file headers");
}

#[test]
fn fuzz_blocks_slices_and_records() {
    fn target(input: &[u8]) {
        if input.len() < BLOCK_HEADER_BYTES + BLOCK_TAILER_BYTES {
            return;
        }
        let segment_id = u64::from_le_bytes(input[8..16].try_into().unwrap());
        let number = u32::from_le_bytes(input[16..20].try_into().unwrap());
        BlockTailer::decode(input);
        for checksum in [Checksum::Crc32c, Checksum::None] {
            let Ok(header) = BlockHeader::decode(input, segment_id, number, checksum) else { continue };
            for start in 0..input.len() {
                let Ok(slice) = SliceView::decode(input, &header, start, checksum) else { continue };
                assert!(slice.end() <= usize::from(header.used_bytes) && slice.end() > start);
                SliceView::start_of_previous(input, slice.end());
                let _tailer = RecordTailer::decode(slice.body);
                if let Ok((record, header_bytes)) = RecordHeader::decode(slice.body, 1 << 20) {
                    assert!(record.stored_bytes <= 1 << 20 && record.raw_bytes <= 1 << 20);
                    let _raw = record.compression.decompress(&slice.body[header_bytes..], record.raw_bytes);
                }
            }
        }
    }
    let seeds = [golden_blocks(), examples()].concat();
    Fuzz { seeds, mend: mend_block, target }.run("blocks");
}

#[test]
fn fuzz_compression() {
    let target = |input: &[u8]| {
        let Some((raw, stored)) = input.split_at_checked(3) else { return };
        let raw_bytes = u32::from_le_bytes([raw[0], raw[1], raw[2], 0]);
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            if let Ok(bytes) = compression.decompress(stored, raw_bytes) {
                assert_eq!(bytes.len(), raw_bytes as usize);
            }
        }
    };
    let text = b"a block, a block, a block, a slice, a block, a record, a block ".repeat(20);
    let seed = |compression: Compression| {
        [&(text.len() as u32).to_le_bytes()[..3], &compression.compress(&text).unwrap()].concat()
    };
    let seeds = vec![seed(Compression::Lz4), seed(Compression::Zstd)];
    Fuzz { seeds, mend: nothing, target }.run("compression");
}

#[test]
fn fuzz_manifests() {
    let target = |input: &[u8]| {
        if let Ok(manifest) = Manifest::decode(input) {
            assert!(manifest.first_index >= manifest.segments[0].base_index);
            assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        }
    };
    Fuzz { seeds: examples(), mend: nothing, target }.run("manifests");
}

#[test]
fn fuzz_marks() {
    let target = |input: &[u8]| {
        if let Ok(mark) = Mark::decode(input) {
            assert_eq!(Mark::decode(&mark.encode()), Ok(mark));
        }
    };
    Fuzz { seeds: examples(), mend: nothing, target }.run("marks");
}

#[test]
fn fuzz_frames_footers_and_lists() {
    fn target(input: &[u8]) {
        let _list = SegmentList::decode(input);
        let _footer = Footer::decode(input);
        for layout in [FrameLayout::Aligned, FrameLayout::Packed] {
            let identity = FrameIdentity::new(0x1122_3344_5566_7788, 1 << 20, layout);
            if let Ok(header) = FrameHeader::decode(input, &identity, 4096) {
                let _checksums = header.stored_checksums(input, layout);
            }
        }
        let _look = MappedFrameLook::at(&input[..input.len().min(8)], input.len() as u64, u64::MAX, 1 << 20);
    }
    Fuzz { seeds: examples(), mend: nothing, target }.run("frames");
}

#[test]
fn fuzz_statistics_and_sparse_tables() {
    fn target(input: &[u8]) {
        let _statistics = SegmentStatistics::decode(input);
        let _table = SparseTable::decode(input);
    }
    let mend = |input: &mut [u8]| put_crc(input, 12, 16..input.len());
    let mut seeds = examples();
    seeds.push([b"LSFSstat".as_slice(), &[1, 0, 0, 0], &[0; 300]].concat());
    Fuzz { seeds, mend, target }.run("statistics");
}

/// Final data as a directory of two files: the state that is answered is one that verifies, or there is an error.
#[test]
fn fuzz_final_data() {
    fn target(input: &[u8]) {
        let disk = SimDisk::new(1);
        let (a, b) = input.split_at(input.len() / 2);
        disk.put(&Path::new(DIR).join("state.a"), a).unwrap();
        disk.put(&Path::new(DIR).join("state.b"), b).unwrap();
        let _state = FinalData::read_in(sim_env(&disk, 1), DIR);
        if let Ok(data) = FinalData::open_in(sim_env(&disk, 2), DIR, Default::default())
            && let Ok(version) = data.set(b"next")
        {
            assert_eq!(data.get().unwrap().version, version);
        }
    }
    fn mend(input: &mut [u8]) {
        for half in [0, input.len() / 2] {
            let end = if half == 0 { input.len() / 2 } else { input.len() };
            let file = &mut input[half..end];
            put_crc(file, 12, 16..80);
            file.chunks_mut(512).skip(1).for_each(mend_block);
        }
    }
    let seeds = ["state-switched", "state-open"].map(|name| Golden::load("v1", name).joined("state."));
    Fuzz { seeds: seeds.to_vec(), mend, target }.run("final data");
}

/// A data stream whose files hold anything.
#[test]
fn fuzz_data_streams() {
    fn target(input: &[u8]) {
        let disk = Golden::load("v1", "data-marked").on_disk();
        disk.put(&Path::new(DIR).join("mark.a"), input).unwrap();
        if let Ok(mut reader) = DataReader::open_in(sim_env(&disk, 1), DIR) {
            let mut bytes = Vec::new();
            if reader.read_to_end(&mut bytes).is_ok() {
                assert_eq!(bytes.len() as u64, reader.byte_count());
            }
        }
    }
    fn mend(input: &mut [u8]) {
        put_crc(input, 12, 16..80);
        input.chunks_mut(512).skip(1).for_each(mend_block);
    }
    Fuzz { seeds: vec![Golden::load("v1", "data-marked").joined("mark.a")], mend, target }
        .run("data streams");
}

/// A watermark that no writer wrote, far behind the end of the file, costs a look at the file and no more.
#[test]
fn a_forged_watermark_is_damage_that_is_found_at_once() {
    let golden = Golden::load("v1", "records-open");
    let mut segment = golden.segment().to_vec();
    // The fields of the block header as docs/format.md numbers them: the watermark's index and position.
    for block in segment.chunks_mut(512).skip(1).filter(|block| block[..4] != [0; 4]) {
        block[32..40].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
        block[40..48].copy_from_slice(&(u64::MAX - 1).to_le_bytes());
        mend_block(block);
    }
    let disk = golden.on_disk();
    disk.put(&Path::new(DIR).join("00000000000000000000.seg"), &segment).unwrap();
    let began = Instant::now();
    let report = lsfs::verify(&sim_env(&disk, 1), Path::new(DIR), |_| {}).unwrap();
    assert!(!report.damage.is_empty());
    assert!(RecordStream::open_in(sim_env(&disk, 2), DIR, StreamOptions::default()).is_err());
    assert!(began.elapsed() < INPUT_TIME_MAX, "{:?}", began.elapsed());
}

/// Each two bytes are an operation; a `Vec` says what must be there.
#[test]
fn fuzz_operations() {
    fn target(input: &[u8]) {
        let options = StreamOptions {
            block_bytes: 512,
            segment_bytes: 8 * 512,
            in_flight_bytes: 4 * 512,
            ..StreamOptions::default()
        };
        let mut disk = SimDisk::new(1);
        let open =
            |disk: &SimDisk, nth| RecordStream::open_in(sim_env(disk, nth), DIR, options.clone()).unwrap();
        let mut stream = open(&disk, 1);
        let (mut first, mut base, mut records, mut durable) = (0u64, 0u64, Vec::<Vec<u8>>::new(), 0u64);
        for (nth, operation) in (2u64..).zip(input.chunks_exact(2).take(60)) {
            let (what, with) = (operation[0], u64::from(operation[1]));
            let next = base + records.len() as u64;
            match what % 10 {
                0..=3 => {
                    let payload = vec![operation[1]; with as usize * usize::from(what / 10)];
                    if what % 2 == 0 {
                        assert_eq!(stream.append(with, &payload).unwrap(), next);
                        durable = next + 1;
                    } else {
                        assert_eq!(stream.append_buffered(with, &payload).unwrap(), next);
                    }
                    records.push(payload);
                }
                4 => {
                    let index = next.saturating_sub(with % 16);
                    match stream.truncate_after(index) {
                        Ok(()) => records.truncate((index + 1 - base) as usize),
                        Err(error) => assert!(matches!(error, Error::OutOfRange { .. }), "{error}"),
                    }
                    durable = durable.max(base + records.len() as u64).min(base + records.len() as u64);
                }
                5 => match stream.purge_before(first + with % 20) {
                    Ok(()) => first = (first + with % 20).max(first),
                    Err(error) => assert!(matches!(error, Error::OutOfRange { .. }), "{error}"),
                },
                6 => {
                    stream.reset_to(with).unwrap();
                    (first, base, durable) = (with, with, with);
                    records.clear();
                }
                7 => stream.sync().map(|()| durable = next).unwrap(),
                8 => {
                    stream.close().unwrap();
                    stream = open(&disk, nth);
                    durable = next;
                }
                _ => {
                    disk = disk.restart();
                    stream = open(&disk, nth);
                    let found = stream.next_index();
                    assert!((durable..=next).contains(&found), "{found}, {durable} to {next}");
                    records.truncate((found - base) as usize);
                    durable = found;
                }
            }
            assert_eq!((stream.first_index(), stream.next_index()), (first, base + records.len() as u64));
        }
        for (index, payload) in (base..).zip(&records).filter(|(index, _)| *index >= first) {
            assert_eq!(stream.read(index).unwrap().payload, *payload);
        }
    }
    let mut choices = Choices::new(3);
    let seeds = (0..40).map(|_| (0..60).map(|_| choices.next() as u8).collect()).collect();
    Fuzz { seeds, mend: nothing, target }.run("operations");
}
