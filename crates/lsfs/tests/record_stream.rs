//! Record streams through the public API, on the real disk.

use lsfs::{Error, Reader, RecordStream, StreamOptions};

fn small_segments() -> StreamOptions {
    StreamOptions { segment_bytes: 512 << 10, in_flight_bytes: 64 << 10, ..StreamOptions::default() }
}

fn payload(index: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (index as usize * 31 + at) as u8).collect()
}

#[test]
fn appended_records_are_read_back_before_and_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let lengths = [0, 1, 255, 256, 3000, 4096, 5000, 70_000, 300_000, 1_000_000];
    {
        let stream = RecordStream::open(dir.path(), small_segments()).unwrap();
        for (index, len) in lengths.iter().enumerate() {
            assert_eq!(stream.append(index as u64 * 10, &payload(index as u64, *len)).unwrap(), index as u64);
            let record = stream.read(index as u64).unwrap();
            assert_eq!((record.type_code, record.payload.len()), (index as u64 * 10, *len));
        }
    }
    let stream = RecordStream::open(dir.path(), small_segments()).unwrap();
    assert_eq!(stream.next_index(), lengths.len() as u64);
    for (index, len) in lengths.iter().enumerate() {
        let record = stream.read(index as u64).unwrap();
        assert_eq!(record.payload, payload(index as u64, *len), "record {index}");
    }
    let mut backward = stream.iter_reverse(..);
    for index in (0..lengths.len()).rev() {
        let record = backward.next_record().unwrap().unwrap();
        assert_eq!(record.payload, payload(index as u64, lengths[index]));
    }
    assert_eq!(backward.next_record().unwrap(), None);
}

#[test]
fn many_producers_get_dense_indexes_and_survive_without_a_close() {
    let dir = tempfile::tempdir().unwrap();
    let stream = RecordStream::open(dir.path(), small_segments()).unwrap();
    std::thread::scope(|scope| {
        for producer in 0..8u64 {
            let stream = stream.clone();
            scope.spawn(move || {
                for n in 0..500u64 {
                    let index = stream.append(producer, &n.to_le_bytes().repeat(30)).unwrap();
                    assert_eq!(stream.read(index).unwrap().type_code, producer);
                }
            });
        }
    });
    assert_eq!(stream.durable_index(), 4000);
    let reader = Reader::open(dir.path()).unwrap();
    assert_eq!(reader.bounds().unwrap(), 0..4000);
    let mut seen = [0u64; 8];
    let mut cursor = reader.iter(..).unwrap();
    while let Some(record) = cursor.next_record().unwrap() {
        let n = u64::from_le_bytes(record.payload[..8].try_into().unwrap());
        assert_eq!(n, seen[record.type_code as usize], "each producer's records are in its order");
        seen[record.type_code as usize] += 1;
    }
    assert_eq!(seen, [500; 8]);
    eprintln!("{:?}", stream.stats());
}

#[test]
fn truncation_purge_and_reset() {
    let dir = tempfile::tempdir().unwrap();
    let stream = RecordStream::open(dir.path(), small_segments()).unwrap();
    for index in 0..3000u64 {
        stream.append_buffered(0, &payload(index, 700)).unwrap();
    }
    stream.sync().unwrap();
    assert!(stream.stats().segments > 2, "{:?}", stream.stats());
    stream.truncate_after(1499).unwrap();
    assert_eq!(stream.next_index(), 1500);
    assert!(matches!(stream.read(1500), Err(Error::OutOfRange { .. })));
    assert_eq!(stream.append(1, b"new").unwrap(), 1500);
    assert_eq!(stream.read(1499).unwrap().payload, payload(1499, 700));
    assert_eq!(stream.read(1500).unwrap().payload, b"new");
    stream.purge_before(1400).unwrap();
    assert!(matches!(stream.read(1399), Err(Error::OutOfRange { .. })));
    drop(stream);
    let stream = RecordStream::open(dir.path(), small_segments()).unwrap();
    assert_eq!((stream.first_index(), stream.next_index()), (1400, 1501));
    let mut cursor = stream.iter(..);
    for index in 1400..1500 {
        assert_eq!(cursor.next_record().unwrap().unwrap().payload[..], payload(index, 700));
    }
    assert_eq!(&cursor.next_record().unwrap().unwrap().payload[..], b"new");
    stream.reset_to(9000).unwrap();
    assert_eq!(stream.append(0, b"far").unwrap(), 9000);
    drop(stream);
    let stream = RecordStream::open(dir.path(), small_segments()).unwrap();
    assert_eq!((stream.first_index(), stream.next_index()), (9000, 9001));
    stream.reset_to(9000).unwrap();
    assert_eq!((stream.first_index(), stream.next_index()), (9000, 9000));
}

#[test]
fn a_second_writer_is_told_who_holds_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let _stream = RecordStream::open(dir.path(), small_segments()).unwrap();
    match RecordStream::open(dir.path(), small_segments()) {
        Err(Error::Locked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
        other => panic!("{other:?}"),
    }
}

/// Rotations, close by close: a look from outside that falls between two of the writer's steps still sees everything
/// that was acknowledged before it.
#[test]
fn whoever_looks_beside_a_rotating_writer_sees_all_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        StreamOptions { segment_bytes: 32 << 10, in_flight_bytes: 16 << 10, ..StreamOptions::default() };
    let stream = RecordStream::open(dir.path(), options).unwrap();
    let env = lsfs::Env::default();
    stream.append(0, &payload(0, 6000)).unwrap();
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let followed = Reader::open(dir.path()).unwrap();
            for _ in 0..150 {
                let acknowledged = stream.durable_index();
                let opened = Reader::open(dir.path()).unwrap().bounds().unwrap().end;
                assert!(opened >= acknowledged, "a new reader sees {opened} of {acknowledged} records");
                let seen = followed.bounds().unwrap().end;
                assert!(seen >= acknowledged, "a reader sees {seen} of {acknowledged} records");
                let verified = lsfs::verify(&env, dir.path(), |_| {}).unwrap();
                assert_eq!(verified.damage, [], "beside a writer");
                let first = lsfs::inspect(&env, dir.path()).unwrap().first_index;
                let verified = verified.records + first;
                assert!(verified >= acknowledged, "verified {verified} of {acknowledged} records");
            }
        });
        let mut index = 1;
        while !looking.is_finished() {
            stream.append(0, &payload(index, 6000)).unwrap();
            index += 1;
            if index % 40 == 0 {
                stream.purge_before(index - 20).unwrap();
            }
        }
        looking.join().unwrap();
    });
}
