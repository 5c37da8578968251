//! The worked examples of docs/format.md are what the codec writes and reads, byte for byte.
//!
//! An example is a fenced block behind a comment `<!-- example: NAME -->`. A line is bytes in hex, then perhaps `#`
//! and a remark; `00*421` stands for 421 zero bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use lsfs::codec::{
    BLOCK_HEADER_BYTES, BLOCK_TAILER_BYTES, BlockHeader, BlockTailer, Checksum, Compression,
    FILE_HEADER_BYTES, FOOTER_BYTES, FRAME_HEADER_BYTES_MAX, FileHeader, FileKind, Footer, FrameHeader,
    FrameIdentity, FrameLayout, INDEX_ENTRY_BYTES, IndexEntry, ListedSegment, MARK_BYTES, Manifest, Mark,
    POINTER_BYTES, Pointer, RECORD_HEADER_BYTES_MAX, RECORD_TAILER_BYTES, RecordHeader, RecordTailer,
    SEGMENT_STATISTICS_BYTES, SLICE_HEADER_BYTES, SLICE_TAILER_BYTES, SegmentEntry, SegmentList,
    SegmentStatistics, SliceView, SparseTable, StreamId, Tally, TypeCount, block_seed, check_pieces,
    piece_checksums, put_slice,
};
use lsfs::{Log, LogOptions, RecordStream, StoreKind, StreamOptions};

const STREAM_ID: StreamId = StreamId(*b"0123456789abcdef");
const SEGMENT_ID: u64 = 0x1122_3344_5566_7788;
const BLOCK_BYTES: usize = 512;

const FILE_HEADER: FileHeader = FileHeader {
    kind: FileKind::Segment,
    checksum: Checksum::Crc32c,
    compression: Compression::Lz4,
    block_bytes: BLOCK_BYTES as u32,
    stream_id: STREAM_ID,
    segment_id: SEGMENT_ID,
    base_index: 1000,
    epoch: 2,
    in_flight_bytes: 1 << 20,
    record_limit_bytes: 256 << 20,
    is_sparse: false,
    frame_layout: FrameLayout::Aligned,
};

/// The first block of that segment, with record 1000: type code 7, payload `hello`.
const BLOCK_HEADER: BlockHeader = BlockHeader {
    segment_id: SEGMENT_ID,
    block_number: 1,
    epoch: 3,
    first_index: 1000,
    durable_index: 1000,
    durable_position: 512,
    used_bytes: 91,
};

const RECORD_HEADER: RecordHeader =
    RecordHeader { type_code: 7, compression: Compression::None, stored_bytes: 5, raw_bytes: 5 };

const COMPRESSED_RECORD_HEADER: RecordHeader =
    RecordHeader { type_code: 7, compression: Compression::Zstd, stored_bytes: 300, raw_bytes: 900 };

const RECORD_TAILER: RecordTailer =
    RecordTailer { index: 1001, type_code: 7, first_block: 1, first_offset: 91 };

const MARK: Mark = Mark {
    number: 1,
    byte_count: 70_000,
    record_count: 2,
    first_segment_base: 0,
    first_block: 1,
    first_offset: 50,
    last_block: 18,
};

fn manifest() -> Manifest {
    let sealed =
        SegmentEntry { segment_id: SEGMENT_ID, base_index: 1000, next_index: 3000, end_position: 1_048_000 };
    let active = SegmentEntry {
        segment_id: 0x99AA_BBCC_DDEE_FF00,
        base_index: 3000,
        next_index: 3000,
        end_position: 512,
    };
    Manifest {
        stream_id: STREAM_ID,
        epoch: 3,
        closed: false,
        first_index: 1500,
        active_bytes: 1 << 20,
        segments: vec![sealed, active],
        lost: vec![],
    }
}

#[expect(clippy::single_range_in_vec_init, reason = "one lost range")]
fn manifest_with_lost() -> Manifest {
    Manifest { lost: vec![2000..2010], active_bytes: 0, ..manifest() }
}

const FRAME_HEADER: FrameHeader =
    FrameHeader { more: true, witness: true, footer: false, kind: 7, epoch: 0, body_bytes: 5 };

const POINTER: Pointer = Pointer { segment: 7, position: 4096, len: 5, layout: FrameLayout::Aligned };

const TALLY: Tally = Tally { end: 9000, last: 8000, entries: 11, body_bytes: 4000, digest: 0xABCD };

const FOOTER: Footer = Footer { number: 7, tally: TALLY, released_bytes: 500 };

fn segment_list() -> SegmentList {
    let sealed = ListedSegment { segment_id: SEGMENT_ID, number: 7, tally: TALLY, released_bytes: 500 };
    let active = ListedSegment {
        segment_id: 0x99AA_BBCC_DDEE_FF00,
        number: 8,
        tally: Tally::of_empty(),
        released_bytes: 0,
    };
    SegmentList { set_id: STREAM_ID, epoch: 3, closed: false, cache: false, segments: vec![sealed, active] }
}

/// The header of a packed segment of a set.
const PACKED_FILE_HEADER: FileHeader = FileHeader {
    kind: FileKind::SetSegment,
    compression: Compression::None,
    block_bytes: 4096,
    base_index: 7,
    record_limit_bytes: 1 << 20,
    frame_layout: FrameLayout::Packed,
    ..FILE_HEADER
};

const PACKED_FRAME_HEADER: FrameHeader =
    FrameHeader { more: false, witness: false, footer: false, kind: 7, epoch: 0, body_bytes: 65_536 };

const PACKED_POINTER: Pointer =
    Pointer { segment: 7, position: 4110, len: 65_536, layout: FrameLayout::Packed };

fn encoded(header: &FrameHeader, identity: &FrameIdentity, position: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; identity.layout.header_bytes(header.body_bytes)];
    header.encode(&mut bytes, identity, position.into(), piece_checksums(body));
    bytes.extend(body);
    bytes
}

fn narrow_frame() -> Vec<u8> {
    encoded(&FRAME_HEADER, &FrameIdentity::of(&PACKED_FILE_HEADER), POINTER.position, b"hello")
}

fn packed_frame() -> Vec<u8> {
    let identity = FrameIdentity::of(&PACKED_FILE_HEADER);
    encoded(&PACKED_FRAME_HEADER, &identity, PACKED_POINTER.position, &[0; 65_536])
}

fn file_header(header: &FileHeader) -> Vec<u8> {
    let mut bytes = vec![0; FILE_HEADER_BYTES];
    header.encode(&mut bytes);
    bytes
}

fn frame_identity() -> FrameIdentity {
    FrameIdentity::new(SEGMENT_ID, 1 << 20, FrameLayout::Aligned)
}

fn frame() -> Vec<u8> {
    encoded(&FRAME_HEADER, &frame_identity(), POINTER.position, b"hello")
}

fn record_header(header: &RecordHeader) -> Vec<u8> {
    let mut bytes = [0; RECORD_HEADER_BYTES_MAX];
    let len = header.encode(&mut bytes);
    bytes[..len].to_vec()
}

fn block() -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    let (seed, start) = (BLOCK_HEADER.seed(), BLOCK_HEADER_BYTES);
    let body: [&[u8]; 3] = [&record_header(&RECORD_HEADER), b"hello", &[]];
    let end = put_slice(&mut block, start, seed, Checksum::Crc32c, 0, 0, true, body);
    assert_eq!(end, usize::from(BLOCK_HEADER.used_bytes));
    BLOCK_HEADER.encode(&mut block, start as u16, Checksum::Crc32c);
    block
}

/// What the codec makes of the values that docs/format.md names.
fn written() -> BTreeMap<&'static str, Vec<u8>> {
    let block = block();
    let slice = &block[BLOCK_HEADER_BYTES..usize::from(BLOCK_HEADER.used_bytes)];
    BTreeMap::from([
        ("file_header", file_header(&FILE_HEADER)),
        ("file_header_packed", file_header(&PACKED_FILE_HEADER)),
        ("frame_narrow", narrow_frame()),
        ("frame_packed", packed_frame()),
        ("pointer_packed", PACKED_POINTER.encode().to_vec()),
        ("block_seed", block_seed(SEGMENT_ID, 1, 3).to_le_bytes().to_vec()),
        ("block_header", block[..BLOCK_HEADER_BYTES].to_vec()),
        ("block_tailer", block[BLOCK_BYTES - BLOCK_TAILER_BYTES..].to_vec()),
        ("slice_header", slice[..SLICE_HEADER_BYTES].to_vec()),
        ("slice_tailer", slice[slice.len() - SLICE_TAILER_BYTES..].to_vec()),
        ("record_header", record_header(&RECORD_HEADER)),
        ("record_header_compressed", record_header(&COMPRESSED_RECORD_HEADER)),
        ("record_tailer", RECORD_TAILER.encode().to_vec()),
        ("block", block),
        ("manifest", manifest().encode()),
        ("manifest_with_lost", manifest_with_lost().encode()),
        ("mark", MARK.encode().to_vec()),
        ("live_page", live_page()),
        ("mapped_frames", mapped_log().0),
        ("mapped_index", mapped_log().1),
        ("sparse_table", sparse_table().encode()),
        ("frame", frame()),
        ("footer", FOOTER.encode().to_vec()),
        ("segment_list", segment_list().encode()),
        ("pointer", POINTER.encode().to_vec()),
        ("index", index()),
        ("segment_statistics", segment_statistics()),
    ])
}

fn sparse_table() -> SparseTable {
    SparseTable { rewrite_id: SEGMENT_ID, base_offset: 1000, next_offset: 2000, offsets: vec![1001, 1500] }
}

/// Data and index of a mapped log with two records, without the zeros behind them.
fn mapped_log() -> (Vec<u8>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { store: StoreKind::Mmap, first_offset: 1000, ..LogOptions::default() };
    let log = Log::open(dir.path(), options).unwrap();
    log.append_batch(&[(0, b"hello"), (0, b"mapped")]).unwrap();
    log.close().unwrap();
    let used = |extension: &str, len: usize| {
        let bytes = fs::read(dir.path().join(format!("{:020}.{extension}", 1000))).unwrap();
        assert!(bytes[len..].iter().all(|&byte| byte == 0));
        bytes[..len].to_vec()
    };
    (used("log", 27), used("idx", 32))
}

const INDEX: [IndexEntry; 2] =
    [IndexEntry { offset: 1000, position: 562 }, IndexEntry { offset: 1001, position: 603 }];

fn index() -> Vec<u8> {
    let mut bytes: Vec<u8> = INDEX.iter().flat_map(IndexEntry::encode).collect();
    bytes.resize(4096, 0);
    bytes
}

fn statistics() -> SegmentStatistics {
    SegmentStatistics {
        segment_id: SEGMENT_ID,
        first_index: 1000,
        next_index: 1002,
        end_position: 644,
        last_position: 603,
        last_epoch: 3,
        is_sealed: false,
        records: 2,
        payload_bytes: 10,
        stored_bytes: 10,
        index_checksum: Checksum::Crc32c.of(0, &index()[..2 * INDEX_ENTRY_BYTES]),
        types: vec![TypeCount { type_code: 7, records: 2 }],
        other_types_records: 0,
    }
}

fn segment_statistics() -> Vec<u8> {
    let mut bytes = vec![0; SEGMENT_STATISTICS_BYTES];
    statistics().encode(&mut bytes);
    bytes
}

/// The used part of the page that a new stream's writer publishes after one durable record of five bytes.
fn live_page() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let stream = RecordStream::open(dir.path(), StreamOptions::default()).unwrap();
    stream.append(7, b"hello").unwrap();
    let page = fs::read(dir.path().join("live")).unwrap();
    assert!(page[56..].iter().all(|&byte| byte == 0));
    page[..56].to_vec()
}

fn document() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/format.md");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The examples of the document by name.
fn examples() -> BTreeMap<String, Vec<u8>> {
    let document = document();
    let mut found = BTreeMap::new();
    for part in document.split("<!-- example: ").skip(1) {
        let (name, rest) = part
            .split_once(" -->\n```text\n")
            .unwrap_or_else(|| panic!("example {:?} is not followed by a text block", part.lines().next()));
        let (body, _) = rest.split_once("\n```").expect("the block ends");
        let earlier = found.insert(name.to_string(), bytes_of(name, body));
        assert!(earlier.is_none(), "example {name} occurs twice");
    }
    found
}

fn bytes_of(name: &str, body: &str) -> Vec<u8> {
    let words = body.lines().flat_map(|line| line.split('#').next().unwrap_or("").split_whitespace());
    words
        .flat_map(|word| {
            let (hex, count) = word.split_once('*').unwrap_or((word, "1"));
            assert_eq!(hex.len(), 2, "example {name}: {word:?}");
            let byte = u8::from_str_radix(hex, 16).unwrap_or_else(|_| panic!("example {name}: {word:?}"));
            std::iter::repeat_n(byte, count.parse().expect("a count"))
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    bytes.chunks(16).map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_example_is_what_the_codec_writes() {
    let (written, examples) = (written(), examples());
    for (name, bytes) in &written {
        let example =
            examples.get(*name).unwrap_or_else(|| panic!("example {name} is missing:\n{}", hex(bytes)));
        assert!(
            example == bytes,
            "example {name} differs.\nwritten:\n{}\nexample:\n{}",
            hex(bytes),
            hex(example)
        );
    }
    for name in examples.keys() {
        assert!(written.contains_key(name.as_str()), "example {name} is not checked by this test");
    }
}

#[test]
fn every_example_is_read_back_as_the_values_it_shows() {
    let examples = examples();
    assert_eq!(FileHeader::decode(&examples["file_header"]), Ok(FILE_HEADER));
    let block = &examples["block"];
    assert_eq!(BlockHeader::decode(block, SEGMENT_ID, 1, Checksum::Crc32c), Ok(BLOCK_HEADER));
    assert_eq!(BlockTailer::decode(block), Some(BlockTailer { last_slice_start: 50, used_bytes: 91 }));
    let slice = SliceView::decode(block, &BLOCK_HEADER, BLOCK_HEADER_BYTES, Checksum::Crc32c).unwrap();
    assert_eq!((slice.index, slice.number, slice.is_last), (1000, 0, true));
    assert_eq!(slice.body, [&examples["record_header"][..], b"hello"].concat());
    assert_eq!(RecordHeader::decode(slice.body, 1 << 20), Ok((RECORD_HEADER, 13)));
    assert_eq!(
        RecordHeader::decode(&examples["record_header_compressed"], 1 << 20),
        Ok((COMPRESSED_RECORD_HEADER, 17))
    );
    assert_eq!(RecordTailer::decode(&examples["record_tailer"]), Ok(RECORD_TAILER));
    assert_eq!(Manifest::decode(&examples["manifest"]), Ok(manifest()));
    assert_eq!(Manifest::decode(&examples["manifest_with_lost"]), Ok(manifest_with_lost()));
    assert_eq!(Mark::decode(&examples["mark"]), Ok(MARK));
    assert_eq!(SparseTable::decode(&examples["sparse_table"]), Ok(sparse_table()));
    let frame = &examples["frame"];
    assert_eq!(FrameHeader::decode(frame, &frame_identity(), POINTER.position.into()), Ok(FRAME_HEADER));
    let (header, body) = frame.split_at(FRAME_HEADER_BYTES_MAX);
    let stored = FRAME_HEADER.stored_checksums(header, FrameLayout::Aligned);
    assert_eq!(check_pieces(stored, 0, body), Ok(()));
    assert_eq!(FileHeader::decode(&examples["file_header_packed"]), Ok(PACKED_FILE_HEADER));
    let identity = FrameIdentity::of(&PACKED_FILE_HEADER);
    let narrow = &examples["frame_narrow"];
    assert_eq!(FrameHeader::decode(narrow, &identity, POINTER.position.into()), Ok(FRAME_HEADER));
    assert_eq!((narrow.len(), identity.frame_end(4096, 5)), (14, 4110));
    let frame = &examples["frame_packed"];
    assert_eq!(FrameHeader::decode(frame, &identity, 4110), Ok(PACKED_FRAME_HEADER));
    assert_eq!(identity.body_position(4110, 65_536), 4127);
    assert_eq!((identity.frame_end(4110, 65_536), PACKED_POINTER.end()), (69_663, 69_663));
    assert_eq!(frame.len(), 69_663 - 4110);
    assert_eq!(Pointer { position: 4121, layout: FrameLayout::Aligned, ..PACKED_POINTER }.end(), 73_728);
    assert_eq!(Pointer::decode(&examples["pointer_packed"][..].try_into().unwrap()), PACKED_POINTER);
    assert_eq!(Footer::decode(&examples["footer"]), Ok((FOOTER, &[][..])));
    assert_eq!(SegmentList::decode(&examples["segment_list"]), Ok(segment_list()));
    assert_eq!(Pointer::decode(&examples["pointer"][..].try_into().unwrap()), POINTER);
    let entries = examples["index"].as_chunks().0.iter().map(IndexEntry::decode);
    assert_eq!(entries.take(2).collect::<Vec<_>>(), INDEX);
    assert_eq!(SegmentStatistics::decode(&examples["segment_statistics"]), Ok(statistics()));
}

/// The live page has no public codec: its rules are applied here as the document states them.
#[test]
fn the_live_page_follows_the_rules_of_the_document() {
    let page = &examples()["live_page"];
    let words: Vec<u64> = page.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let (check, stated) = words.split_last().unwrap();
    let hash = stated
        .iter()
        .chain(&[0])
        .fold(0xCBF2_9CE4_8422_2325, |hash: u64, word| (hash ^ word).wrapping_mul(0x0000_0100_0000_01B3));
    assert_eq!(stated, [u64::from_le_bytes(*b"LSFSlive"), 1, 0, 1, 4096 + 91, 0]);
    assert_eq!(*check, hash);
}

#[test]
fn sizes_stated_in_the_document_are_the_codecs() {
    let document = document();
    for (what, bytes) in [
        ("File header", FILE_HEADER_BYTES),
        ("Block header", BLOCK_HEADER_BYTES),
        ("Block tailer", BLOCK_TAILER_BYTES),
        ("Slice header", SLICE_HEADER_BYTES),
        ("Slice tailer", SLICE_TAILER_BYTES),
        ("Record tailer", RECORD_TAILER_BYTES),
        ("Mark", MARK_BYTES),
        ("Frame header", FRAME_HEADER_BYTES_MAX),
        ("Narrow frame header", FrameLayout::Packed.header_bytes_min()),
        ("Footer", FOOTER_BYTES),
        ("Pointer", POINTER_BYTES),
        ("Index entry", INDEX_ENTRY_BYTES),
        ("Segment statistics", SEGMENT_STATISTICS_BYTES),
    ] {
        let heading = format!("### {what}: {bytes} bytes\n");
        assert!(document.contains(&heading), "docs/format.md lacks the heading {heading:?}");
    }
}

#[test]
fn limits_stated_in_the_document_are_the_defaults() {
    let document = document();
    let defaults = StreamOptions::default();
    for (what, bytes) in [
        ("| payload of a record |", u64::from(defaults.record_limit_bytes)),
        ("| segment size (option) |", defaults.segment_bytes),
        ("| in-flight limit (option) |", defaults.in_flight_bytes as u64),
    ] {
        let line = document.lines().find(|line| line.starts_with(what)).expect(what);
        let default = format!("{} MiB by default", bytes >> 20);
        assert!(line.contains(&default), "the line {line:?} lacks {default:?}");
    }
    assert!(document.contains(&format!("{} by default |", defaults.block_bytes)));
}

/// The overhead that the document states for small records, from a stream written in batches.
#[test]
fn the_stated_overhead_of_256_byte_records_is_what_a_stream_takes() {
    const RECORDS: u64 = 3_000;
    let dir = tempfile::tempdir().unwrap();
    let stream = RecordStream::open(dir.path(), StreamOptions::default()).unwrap();
    for _ in 0..RECORDS {
        stream.append_buffered(0, &[7; 256]).unwrap();
    }
    stream.sync().unwrap();
    let stats = stream.stats();
    let blocks_bytes = stats.live_bytes - stats.segments * 4096;
    let overhead = blocks_bytes as f64 / RECORDS as f64 - 256.0;
    let stated = document()
        .lines()
        .find_map(|line| line.strip_prefix("Measured overhead of a 256-byte record: ")?.split(' ').next())
        .and_then(|number| number.parse::<f64>().ok())
        .expect("docs/format.md states the overhead");
    assert!((overhead - stated).abs() < 0.1, "document {stated}, stream {overhead:.2}");
}
