//! Random sequences of operations, with reopening among them, against the simplest thing that behaves the same: a `Vec` of
//! records, one value, a `Vec` of bytes.

mod support;

use std::io::{Read, Seek, SeekFrom, Write};
use std::task::{Context, Poll, Waker};

use lsfs::codec::{Checksum, Compression};
use lsfs::io::SimDisk;
use lsfs::{
    DataReader, DataStream, DataStreamOptions, Env, Error, FinalData, FinalDataOptions, Reader, RecordStream,
    StreamOptions,
};
use proptest::collection::vec;
use proptest::prelude::*;
use support::sim_env;

const DIR: &str = "/model";

#[derive(Clone, Debug)]
enum Op {
    Append(usize),
    Batch(Vec<usize>),
    Buffered(usize),
    Async(usize),
    Then(usize),
    Sync,
    Read(u64),
    Scan(u64, u64),
    ScanBack(u64, u64),
    Truncate(u64),
    Purge(u64),
    Reset(u64),
    Reopen,
    OtherReader,
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![4 => 0..300usize, 2 => 300..3000usize, 1 => 3000..60_000usize];
    prop_oneof![
        6 => len.clone().prop_map(Op::Append),
        4 => vec(0..800usize, 0..12).prop_map(Op::Batch),
        4 => len.clone().prop_map(Op::Buffered),
        3 => len.clone().prop_map(Op::Async),
        2 => len.prop_map(Op::Then),
        2 => Just(Op::Sync),
        5 => any::<u64>().prop_map(Op::Read),
        2 => (any::<u64>(), 0..50u64).prop_map(|(at, count)| Op::Scan(at, count)),
        2 => (any::<u64>(), 0..50u64).prop_map(|(at, count)| Op::ScanBack(at, count)),
        2 => (0..20u64).prop_map(Op::Truncate),
        1 => any::<u64>().prop_map(Op::Purge),
        1 => (0..1000u64).prop_map(Op::Reset),
        2 => Just(Op::Reopen),
        1 => Just(Op::OtherReader),
    ]
}

fn options(block: u8, compression: u8, checksum: u8) -> StreamOptions {
    let block_bytes = [512, 1024, 4096][usize::from(block) % 3];
    StreamOptions {
        block_bytes,
        segment_bytes: block_bytes as u64 * 16,
        in_flight_bytes: block_bytes * 6,
        cache_bytes: block_bytes * 10,
        compression: [Compression::None, Compression::Lz4, Compression::Zstd][usize::from(compression) % 3],
        checksum: [Checksum::Crc32c, Checksum::Crc32c, Checksum::None][usize::from(checksum) % 3],
        first_index: 5,
        ..StreamOptions::default()
    }
}

fn payload(seed: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (seed as usize * 13 + at / 5) as u8).collect()
}

/// An environment with randomness of its own: a stream that is opened twice must not draw the same identifiers.
fn fresh_env(disk: &SimDisk, seed: u64) -> Env {
    sim_env(disk, seed.wrapping_add(disk.op_count() * 1_000_003))
}

/// The reference: indexes and payloads.
struct Model {
    first: u64,
    base: u64,
    payloads: Vec<Vec<u8>>,
}

impl Model {
    fn next(&self) -> u64 {
        self.base + self.payloads.len() as u64
    }

    fn get(&self, index: u64) -> Option<&Vec<u8>> {
        (index >= self.first).then(|| self.payloads.get((index - self.base) as usize))?
    }

    /// Turns any number into an index near the records.
    fn near(&self, any: u64) -> u64 {
        (self.first + any % (self.next() - self.first + 4)).saturating_sub(2)
    }
}

fn check_read(stream: &RecordStream, model: &Model, index: u64) {
    match (stream.read(index), model.get(index)) {
        (Ok(record), Some(payload)) => {
            assert_eq!((record.index, record.type_code), (index, index + 1));
            assert_eq!(&record.payload, payload);
        }
        (Err(Error::OutOfRange { held, .. }), None) => assert_eq!(held, model.first..model.next()),
        (found, expected) => panic!("record {index}: {found:?}, expected {expected:?}"),
    }
}

fn run_stream(env: &dyn Fn() -> Env, dir: &std::path::Path, options: StreamOptions, ops: Vec<Op>) {
    let mut stream = RecordStream::open_in(env(), dir, options.clone()).unwrap();
    let mut model = Model { first: 5, base: 5, payloads: Vec::new() };
    let mut pending = Vec::new();
    let (tell, called) = std::sync::mpsc::channel();
    let mut calls_expected = 0;
    for op in ops {
        let next = model.next();
        match op {
            Op::Append(len) => {
                model.payloads.push(payload(next, len));
                assert_eq!(stream.append(next + 1, &payload(next, len)).unwrap(), next);
                assert_eq!(stream.durable_index(), next + 1);
            }
            Op::Batch(lens) => {
                let records: Vec<_> =
                    (next..).zip(&lens).map(|(index, len)| (index + 1, payload(index, *len))).collect();
                model.payloads.extend(records.iter().map(|(_, payload)| payload.clone()));
                assert_eq!(stream.append_batch(&records).unwrap(), next..next + lens.len() as u64);
            }
            Op::Buffered(len) => {
                model.payloads.push(payload(next, len));
                assert_eq!(stream.append_buffered(next + 1, &payload(next, len)).unwrap(), next);
            }
            Op::Async(len) => {
                model.payloads.push(payload(next, len));
                let append = stream.append_async(next + 1, &payload(next, len)).unwrap();
                assert_eq!(append.index(), next);
                pending.push(append);
            }
            Op::Then(len) => {
                model.payloads.push(payload(next, len));
                let tell = tell.clone();
                let told = move |outcome: Result<u64, Error>| tell.send(outcome.unwrap()).unwrap();
                assert_eq!(stream.append_then(next + 1, &payload(next, len), told).unwrap(), next);
                calls_expected += 1;
            }
            Op::Sync => {
                stream.sync().unwrap();
                assert_eq!(stream.durable_index(), next);
                for append in &mut pending {
                    let mut context = Context::from_waker(Waker::noop());
                    let polled = std::pin::Pin::new(&mut *append).poll(&mut context);
                    assert!(matches!(polled, Poll::Ready(Ok(_))), "durable after sync: {polled:?}");
                }
                pending.clear();
            }
            Op::Read(any) => check_read(&stream, &model, model.near(any)),
            Op::Scan(any, count) => {
                let from = model.near(any).max(model.first);
                let mut cursor = stream.iter(from..from + count);
                for index in from..(from + count).min(next) {
                    let record = cursor.next_record().unwrap().expect("a record");
                    assert_eq!((record.index, &*record.payload), (index, &model.get(index).unwrap()[..]));
                }
                assert_eq!(cursor.next_record().unwrap(), None);
            }
            Op::ScanBack(any, count) => {
                let to = model.near(any).min(next);
                let from = to.saturating_sub(count).max(model.first);
                let mut cursor = stream.iter_reverse(from..to);
                for index in (from..to).rev() {
                    let record = cursor.next_record().unwrap().expect("a record");
                    assert_eq!((record.index, &record.payload), (index, model.get(index).unwrap()));
                }
                assert_eq!(cursor.next_record().unwrap(), None);
            }
            Op::Truncate(back) if next > model.first => {
                let index = (next - 1).saturating_sub(back).max(model.first);
                stream.truncate_after(index).unwrap();
                model.payloads.truncate((index + 1 - model.base) as usize);
            }
            Op::Purge(any) if next > model.first => {
                let index = model.first + any % (next - model.first + 1);
                stream.sync().unwrap();
                stream.purge_before(index).unwrap();
                model.first = index;
            }
            Op::Reset(index) => {
                stream.reset_to(index).unwrap();
                model = Model { first: index, base: index, payloads: Vec::new() };
            }
            Op::Reopen => {
                stream.close().unwrap();
                assert!(matches!(stream.append(0, b""), Err(Error::Closed { .. })));
                stream = RecordStream::open_in(env(), dir, options.clone()).unwrap();
            }
            Op::OtherReader => {
                stream.sync().unwrap();
                let reader = Reader::open_in(env(), dir).unwrap();
                assert_eq!(reader.bounds().unwrap(), model.first..model.next());
                let mut cursor = reader.iter(..).unwrap();
                for index in model.first..model.next() {
                    let record = cursor.next_record().unwrap().expect("a record");
                    assert_eq!((record.index, &*record.payload), (index, &model.get(index).unwrap()[..]));
                }
            }
            Op::Truncate(_) | Op::Purge(_) => {}
        }
        assert_eq!((stream.first_index(), stream.next_index()), (model.first, model.next()));
    }
    stream.sync().unwrap();
    for _ in 0..calls_expected {
        called.recv().expect("every callback is called");
    }
    for index in model.first..model.next() {
        check_read(&stream, &model, index);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: support::budget("LSFS_MODEL_CASES", 300) as u32, ..ProptestConfig::default() })]

    #[test]
    fn a_record_stream_is_a_vec(block: u8, compression: u8, checksum: u8, seed: u64, ops in vec(op(), 1..80)) {
        let disk = SimDisk::new(seed);
        run_stream(&|| fresh_env(&disk, seed), DIR.as_ref(), options(block, compression, checksum), ops);
    }

    #[test]
    fn final_data_is_one_value(seed: u64, block in 0..3usize, ops in vec((0..8u8, 0..6000usize), 1..60)) {
        let disk = SimDisk::new(seed);
        let options = FinalDataOptions { block_bytes: [512, 1024, 4096][block], limit_blocks: 8, ..FinalDataOptions::default() };
        let open = || FinalData::open_in(fresh_env(&disk, seed), DIR, options.clone()).unwrap();
        let mut data = open();
        let mut model = (0, Vec::new());
        for (kind, len) in ops {
            if kind == 0 {
                data.close().unwrap();
                data = open();
            } else {
                model = (model.0 + 1, payload(model.0, len));
                prop_assert_eq!(data.set(&model.1).unwrap(), model.0);
            }
            let state = data.get();
            prop_assert_eq!(state.as_ref().map_or(0, |state| state.version), model.0);
            prop_assert_eq!(state.as_ref().map_or(&[][..], |state| &state.bytes), &model.1[..]);
        }
        // Never more than two files of twice the larger of the limit and the largest state.
        prop_assert!(disk.used_bytes() <= 64 << 10, "{} bytes used", disk.used_bytes());
    }

    #[test]
    fn a_data_stream_is_a_vec_of_bytes(seed: u64, compression: u8, ops in vec((0..10u8, 0..150_000usize), 1..25)) {
        let disk = SimDisk::new(seed);
        let options = DataStreamOptions { compression: super_compression(compression), stream: options(2, 0, 0) };
        let open = || DataStream::open_in(fresh_env(&disk, seed), DIR, options.clone()).unwrap();
        let mut data = open();
        let (mut model, mut marked) = (Vec::new(), 0);
        for (kind, len) in ops {
            match kind {
                0 => {
                    // Reopening resumes at the last mark.
                    drop(data);
                    model.truncate(marked);
                    data = open();
                    prop_assert_eq!(data.position(), marked as u64);
                }
                1..=3 => {
                    let number = data.last_mark().map_or(0, |mark| mark.number);
                    let mark = data.mark().unwrap();
                    marked = model.len();
                    prop_assert_eq!((mark.number, mark.byte_count), (number + 1, marked as u64));
                }
                4..=5 => {
                    let mut reader = DataReader::open_in(sim_env(&disk, seed), DIR).unwrap();
                    prop_assert_eq!(reader.byte_count(), marked as u64);
                    let from = len.min(marked);
                    reader.seek(SeekFrom::Start(from as u64)).unwrap();
                    let mut back = Vec::new();
                    reader.read_to_end(&mut back).unwrap();
                    prop_assert!(back == model[from..marked], "bytes from {} differ", from);
                }
                _ => {
                    let bytes = payload(len as u64, len);
                    data.write_all(&bytes).unwrap();
                    model.extend(bytes);
                }
            }
        }
    }
}

fn super_compression(code: u8) -> Compression {
    [Compression::None, Compression::Lz4, Compression::Zstd][usize::from(code) % 3]
}

#[test]
fn the_model_holds_on_the_real_disk() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    for round in 0..15u8 {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let ops = vec(op(), 40..80).new_tree(&mut runner).unwrap().current();
        run_stream(&Env::default, dir.path(), options(2, round, 0), ops);
    }
}
