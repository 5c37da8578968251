//! The API of segment sets on the real disk.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use lsfs::codec::{FrameLayout, Pointer};
use lsfs::{Durability, EntryBuffer, Error, SegmentSet, SegmentSetReader, SetKind, SetOptions};

fn body(seed: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (seed as usize * 31 + at / 7) as u8).collect()
}

fn small_segments() -> SetOptions {
    SetOptions { segment_bytes: 512 << 10, ..SetOptions::default() }
}

const LAYOUTS: [FrameLayout; 2] = [FrameLayout::Aligned, FrameLayout::Packed];

fn with_layout(frame_layout: FrameLayout) -> SetOptions {
    SetOptions { frame_layout, ..SetOptions::default() }
}

#[test]
fn entries_of_all_sizes_are_found_by_their_pointers() {
    LAYOUTS.into_iter().for_each(check_all_sizes);
}

fn check_all_sizes(layout: FrameLayout) {
    let dir = tempfile::tempdir().unwrap();
    let set = SegmentSet::open(dir.path(), with_layout(layout)).unwrap();
    let lens = [0, 1, 100, 1023, 1024, 4076, 65_535, 65_536, 65_537, 131_072, 1 << 20, 3 << 20];
    let pointers: Vec<Pointer> = lens
        .iter()
        .enumerate()
        .map(|(n, len)| set.append(n as u8, &body(n as u64, *len), Durability::Buffer).unwrap())
        .collect();
    let check = |read: &dyn Fn(Pointer) -> lsfs::Result<lsfs::Entry>,
                 read_at: &dyn Fn(Pointer) -> lsfs::Entry| {
        for (n, (pointer, len)) in pointers.iter().zip(lens).enumerate() {
            let entry = read(*pointer).unwrap();
            assert_eq!((entry.pointer, entry.kind, entry.ends_batch), (*pointer, n as u8, true));
            assert!(entry.body == body(n as u64, len), "entry {n}");
            assert!(read_at(*pointer).body == body(n as u64, len), "entry {n} without its length");
            let body_at = pointer.end() as usize - len;
            match layout {
                FrameLayout::Aligned if len < 65_536 => {}
                FrameLayout::Aligned => assert_eq!(body_at % 4096, 0, "large bodies are aligned"),
                FrameLayout::Packed => {
                    let header_bytes = if len < 1024 { 9 } else { 13 + 4 * len.div_ceil(65_536) };
                    assert_eq!(body_at, pointer.position as usize + header_bytes, "no body is");
                }
            }
        }
    };
    let in_set = |set: &SegmentSet| {
        check(&|pointer| set.read(pointer), &|pointer| {
            set.read_at(pointer.segment, pointer.position).unwrap()
        });
    };
    in_set(&set);
    set.sync().unwrap();
    in_set(&set);
    let beside = SegmentSetReader::open(dir.path()).unwrap();
    let in_reader = |reader: &SegmentSetReader| {
        check(&|pointer| reader.read(pointer), &|pointer| {
            reader.read_at(pointer.segment, pointer.position).unwrap()
        });
    };
    in_reader(&beside);
    set.close().unwrap();
    drop(set);
    in_reader(&SegmentSetReader::open(dir.path()).unwrap());
    in_set(&SegmentSet::open(dir.path(), SetOptions::default()).unwrap());
}

/// A segment keeps its layout, and each has its own.
#[test]
fn a_set_goes_on_in_another_layout_with_the_next_segment() {
    let dir = tempfile::tempdir().unwrap();
    let mut entries = Vec::new();
    for (n, layout) in LAYOUTS.into_iter().chain(LAYOUTS).enumerate() {
        let set = SegmentSet::open(dir.path(), with_layout(layout)).unwrap();
        for len in [70_000, 5, 200_001] {
            let body = body(n as u64, len + n);
            entries.push((set.append(1, &body, Durability::Buffer).unwrap(), body));
        }
        // Only from here on it is the new one.
        set.seal().unwrap();
        let body = body(n as u64 + 50, 65_536);
        let pointer = set.append(1, &body, Durability::Buffer).unwrap();
        assert_eq!(pointer.layout, layout);
        entries.push((pointer, body));
        let total = set.segments().iter().map(|info| info.total_bytes).sum::<u64>();
        assert_eq!(total, entries.iter().map(|(pointer, _)| pointer.frame_bytes()).sum::<u64>());
        set.close().unwrap();
    }
    let reader = SegmentSetReader::open(dir.path()).unwrap();
    let mut cursor = reader.iter();
    for (pointer, body) in &entries {
        let entry = cursor.next_entry().unwrap().unwrap();
        assert!(entry.pointer == *pointer && entry.body == body[..], "{pointer:?}");
        assert!(reader.read(Pointer::decode(&pointer.encode())).unwrap().body == body[..], "{pointer:?}");
    }
    assert!(cursor.next_entry().unwrap().is_none());
}

#[test]
fn ranges_are_read_without_the_rest() {
    LAYOUTS.into_iter().for_each(check_ranges);
}

fn check_ranges(layout: FrameLayout) {
    let dir = tempfile::tempdir().unwrap();
    let set = SegmentSet::open(dir.path(), with_layout(layout)).unwrap();
    let bytes = body(5, 300_000);
    let pointer = set.append(0, &bytes, Durability::Sync).unwrap();
    let small = set.append(0, b"hello", Durability::Sync).unwrap();
    let read = |start: u32, end: u32| set.read_range(pointer, start..end);
    for (start, end) in
        [(0, 0), (0, 1), (65_535, 65_537), (70_000, 262_145), (299_999, 300_000), (0, 300_000)]
    {
        assert!(read(start, end).unwrap() == bytes[start as usize..end as usize], "{start}..{end}");
    }
    assert!(read(300_000, 300_000).unwrap() == b"");
    assert!(matches!(read(299_999, 300_001), Err(Error::NoEntry { .. })));
    assert!(set.read_range(small, 1..4).unwrap() == b"ell");
}

#[test]
fn many_entries_of_several_segments_are_read_into_one_buffer() {
    LAYOUTS.into_iter().for_each(check_entry_buffer);
}

fn check_entry_buffer(layout: FrameLayout) {
    let dir = tempfile::tempdir().unwrap();
    let set = SegmentSet::open(dir.path(), with_layout(layout)).unwrap();
    // More than is mapped of the active segment at a time, and large ones among them.
    let lens = (0..3_000).map(|n| if n % 500 == 7 { 70_000 } else { n % 900 });
    let bodies: Vec<Vec<u8>> = lens.enumerate().map(|(n, len)| body(n as u64, len)).collect();
    let entries: Vec<(u8, &Vec<u8>)> = bodies.iter().map(|body| (body.len() as u8, body)).collect();
    let (first, second) = entries.split_at(1_000);
    let mut pointers = set.append_batch(first, Durability::Buffer).unwrap();
    set.seal().unwrap();
    pointers.extend(set.append_batch(second, Durability::Buffer).unwrap());
    let numbers = [pointers[0].segment, pointers[1_000].segment];
    let handles_of = |segment: &dyn Fn(u32) -> lsfs::Result<lsfs::SegmentHandle>| {
        numbers.map(|number| segment(number).unwrap())
    };
    let nth_of = |pointer: &Pointer| numbers.iter().position(|number| *number == pointer.segment).unwrap();
    let mut buffer = EntryBuffer::default();
    let mut check = |handles: &[lsfs::SegmentHandle]| {
        // From the last to the first, then every other one: the order is the caller's, and a buffer is used again.
        for step in [1, 2] {
            let asked: Vec<usize> = (0..pointers.len()).rev().step_by(step).collect();
            let wanted: Vec<_> = asked.iter().map(|&n| (nth_of(&pointers[n]) as u32, pointers[n])).collect();
            buffer.read(handles, &wanted);
            for (at, &n) in asked.iter().enumerate() {
                let (head, body) = buffer.entry(at).unwrap();
                assert!(body == &bodies[n][..] && head.kind == bodies[n].len() as u8, "{:?}", head.pointer);
                assert_eq!((head.pointer, head.ends_batch), (pointers[n], n == 999 || n == 2_999));
            }
        }
    };
    let handles = handles_of(&|number| set.segment(number));
    check(&handles);
    set.sync().unwrap();
    check(&handles);
    let reader = SegmentSetReader::open(dir.path()).unwrap();
    check(&handles_of(&|number| reader.segment(number)));
    set.seal().unwrap();
    check(&handles);
    check(&handles_of(&|number| reader.segment(number)));
    // What is wrong is an error in its place.
    let longer = Pointer { len: pointers[6].len + 1, ..pointers[6] };
    let wanted = [(0, pointers[5]), (0, longer), (1, pointers[5]), (0, pointers[7])];
    buffer.read(&handles, &wanted);
    let found = [0, 1, 2, 3].map(|n| buffer.entry(n).map(|(_, body)| body.len()));
    assert!(
        matches!(found, [Ok(5), Err(Error::NoEntry { .. }), Err(Error::NoEntry { .. }), Ok(70_000)]),
        "{found:?}"
    );
    buffer.read(&[], &[]);
}

#[test]
fn wrong_pointers_are_errors_that_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let set = SegmentSet::open(dir.path(), SetOptions::default()).unwrap();
    let pointer = set.append(0, b"hello", Durability::Sync).unwrap();
    let no_entry = |pointer: Pointer| match set.read(pointer) {
        Err(Error::NoEntry { reason, .. }) => reason,
        other => panic!("{pointer:?}: {other:?}"),
    };
    assert!(no_entry(Pointer { len: 4, ..pointer }).contains("the pointer says 4 bytes"));
    assert!(no_entry(Pointer { position: 0, ..pointer }).contains("lie from 4096"));
    assert!(no_entry(Pointer { position: u32::MAX, len: u32::MAX, ..pointer }).contains("lie from 4096"));
    assert!(matches!(set.read(Pointer { segment: 9, ..pointer }), Err(Error::Gone { .. })));
    assert!(matches!(set.append(0, &vec![0; 300 << 20], Durability::Sync), Err(Error::TooLarge { .. })));
    assert!(set.append_batch::<&[u8]>(&[], Durability::Sync).unwrap().is_empty());
    assert_eq!(&set.read(pointer).unwrap().body[..], b"hello");
}

#[test]
fn many_threads_share_writes_and_find_what_they_appended() {
    let dir = tempfile::tempdir().unwrap();
    let set = SegmentSet::open(dir.path(), small_segments()).unwrap();
    let pointers = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for thread in 0..16u64 {
            let (set, pointers) = (set.clone(), &pointers);
            scope.spawn(move || {
                for n in 0..40u64 {
                    let durability = if n % 3 == 0 { Durability::Buffer } else { Durability::Sync };
                    let seed = thread * 1000 + n;
                    let bytes = body(seed, 50 + (seed as usize * 37) % 4000);
                    let pointer = set.append(7, &bytes, durability).unwrap();
                    assert!(set.read(pointer).unwrap().body == bytes);
                    pointers.lock().unwrap().push((pointer, seed));
                }
            });
        }
    });
    set.sync().unwrap();
    let stats = set.stats();
    assert_eq!((stats.appended_entries, stats.entries), (640, 640));
    assert!(stats.writes < 640, "{} writes", stats.writes);
    drop(set);
    let set = SegmentSet::open(dir.path(), small_segments()).unwrap();
    let mut pointers = pointers.into_inner().unwrap();
    pointers.sort();
    let mut entries = set.iter();
    for (pointer, seed) in pointers {
        let entry = entries.next_entry().unwrap().expect("an entry");
        assert_eq!(entry.pointer, pointer);
        assert!(entry.body == body(seed, 50 + (seed as usize * 37) % 4000));
    }
    assert!(entries.next_entry().unwrap().is_none());
}

#[test]
fn buffered_entries_are_written_without_being_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let set = SegmentSet::open(dir.path(), SetOptions::default()).unwrap();
    let pointer = set.append(0, b"buffered", Durability::Buffer).unwrap();
    assert_eq!(set.stats().writes, 0);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while set.stats().writes == 0 {
        assert!(std::time::Instant::now() < deadline, "never written");
        thread::yield_now();
    }
    assert_eq!(set.stats().syncs, 0, "written, not synced");
    let reader = SegmentSetReader::open(dir.path()).unwrap();
    assert!(matches!(reader.read(pointer), Err(Error::NoEntry { .. })), "others see durable entries only");
    set.sync().unwrap();
    assert_eq!(&reader.read(pointer).unwrap().body[..], b"buffered");
}

#[test]
fn footers_carry_what_the_owner_puts_into_them() {
    let dir = tempfile::tempdir().unwrap();
    let hook: lsfs::FooterHook = Arc::new(|number| body(number.into(), 100_000));
    let options = SetOptions { footer: Some(hook), ..small_segments() };
    let set = SegmentSet::open(dir.path(), options).unwrap();
    let pointers: Vec<_> =
        (0..20).map(|n| set.append(1, &body(n, 100_000), Durability::Buffer).unwrap()).collect();
    set.release(pointers[0]).unwrap();
    let sealed = set.seal().unwrap();
    let infos = set.segments();
    assert!(infos.len() > 3 && infos.iter().rev().skip(1).all(|info| info.is_sealed));
    for info in infos.iter().filter(|info| info.is_sealed) {
        let (footer, users) = set.segment(info.number).unwrap().footer().unwrap().expect("sealed");
        assert!(users == body(info.number.into(), 100_000));
        assert_eq!((footer.number, footer.tally.entries), (info.number, info.entries));
        assert_eq!((footer.tally.last, footer.tally.end), (info.last, info.end));
        let end = footer.tally.end;
        assert!(matches!(set.read_at(info.number, end), Err(Error::NoEntry { .. })));
    }
    assert!(set.segment(sealed + 1).unwrap().footer().unwrap().is_none());
    let reader = SegmentSetReader::open(dir.path()).unwrap();
    assert!(reader.segment(1).unwrap().footer().unwrap().is_some());
}

#[test]
fn live_bytes_are_counted_and_survive_a_close() {
    let dir = tempfile::tempdir().unwrap();
    let set = SegmentSet::open(dir.path(), small_segments()).unwrap();
    assert!(set.live_bytes_are_exact());
    let pointers: Vec<_> =
        (0..10).map(|n| set.append(0, &body(n, 1000), Durability::Buffer).unwrap()).collect();
    for pointer in &pointers[..4] {
        set.release(*pointer).unwrap();
    }
    let live = |set: &SegmentSet| set.segments()[0].live_bytes;
    assert_eq!((live(&set), set.segments()[0].total_bytes), (6 * 1020, 10 * 1020));
    set.close().unwrap();
    drop(set);
    let set = SegmentSet::open(dir.path(), small_segments()).unwrap();
    assert!(set.live_bytes_are_exact());
    assert_eq!(live(&set), 6 * 1020);
    set.set_live_bytes(1, 1020).unwrap();
    assert_eq!(set.stats().live_bytes, 1020);
}

#[test]
fn what_was_written_is_read_into_the_page_cache_once() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing recent is kept but the last write.
    let options = || SetOptions { cache_bytes: 0, ..small_segments() };
    let set = SegmentSet::open(dir.path(), options()).unwrap();
    let mut pointers = vec![set.append(0, &body(0, 9_000), Durability::Sync).unwrap()];
    assert_eq!(set.load_from(1, 0).unwrap(), 0, "all of it is in the memory of the process");
    pointers.extend((1..5).map(|n| set.append(0, &body(n, 9_000), Durability::Sync).unwrap()));
    let loaded = set.load_from(1, 0).unwrap();
    assert!(loaded.is_multiple_of(4096) && loaded > 4096 && loaded <= pointers[4].position, "{loaded}");
    assert_eq!(set.load_from(1, loaded).unwrap(), loaded);
    assert_eq!(set.seal().unwrap(), 1);
    let end = set.segments()[0].end;
    assert_eq!(set.load_from(1, loaded).unwrap(), end);
    assert_eq!(set.load_from(1, end).unwrap(), end);
    for (n, pointer) in pointers.iter().enumerate() {
        assert!(set.read(*pointer).unwrap().body == body(n as u64, 9_000));
    }
    set.reclaim(&[1]).unwrap();
    assert!(matches!(set.load_from(1, 0), Err(Error::Gone { .. })));
}

#[test]
fn a_reclaimed_segment_stays_readable_for_those_who_hold_it() {
    let dir = tempfile::tempdir().unwrap();
    let set = SegmentSet::open(dir.path(), small_segments()).unwrap();
    let old = set.append(0, &body(1, 200_000), Durability::Sync).unwrap();
    let kept = set.append(0, &body(2, 1000), Durability::Sync).unwrap();
    let number = set.seal().unwrap();
    let handle = set.segment(number).unwrap();
    let outside = SegmentSetReader::open(dir.path()).unwrap();
    assert!(outside.read(old).unwrap().body == body(1, 200_000));
    assert!(matches!(set.reclaim(&[number + 1]), Err(Error::NoEntry { .. })), "the active one");
    set.reclaim(&[number]).unwrap();
    assert!(matches!(set.reclaim(&[number]), Err(Error::Gone { .. })));
    assert!(matches!(set.read(old), Err(Error::Gone { .. })));
    assert!(handle.read(old).unwrap().body == body(1, 200_000));
    assert!(handle.read_range(kept, 5..10).unwrap() == body(2, 1000)[5..10]);
    // In another process the file is still open there: right bytes or gone, whatever happened to it.
    match outside.read(old) {
        Ok(entry) => assert!(entry.body == body(1, 200_000)),
        Err(error) => assert!(matches!(error, Error::Gone { .. }), "{error}"),
    }
    drop(handle);
    assert!(!dir.path().join("data-00001.seg").exists());
}

#[test]
fn readers_see_right_bytes_or_gone_while_segments_are_reclaimed_and_recycled() {
    let dir = tempfile::tempdir().unwrap();
    let set = SegmentSet::open(dir.path(), small_segments()).unwrap();
    let newest = Mutex::new(Vec::new());
    let is_over = AtomicBool::new(false);
    let read_all = |read: &dyn Fn(Pointer) -> lsfs::Result<lsfs::Entry>| {
        let (mut found, mut gone) = (0, 0);
        while !is_over.load(Ordering::Relaxed) {
            let pointers: Vec<(Pointer, u64)> = newest.lock().unwrap().clone();
            for (pointer, seed) in pointers {
                match read(pointer) {
                    Ok(entry) => {
                        assert!(entry.body == body(seed, 5000), "{pointer:?}");
                        found += 1;
                    }
                    Err(Error::Gone { .. }) => gone += 1,
                    Err(error) => panic!("{pointer:?}: {error}"),
                }
            }
        }
        (found, gone)
    };
    thread::scope(|scope| {
        let inside = scope.spawn(|| read_all(&|pointer| set.read(pointer)));
        let outside = scope.spawn(|| {
            let reader = SegmentSetReader::open(dir.path()).unwrap();
            read_all(&|pointer| reader.read(pointer))
        });
        for round in 0..40u64 {
            let pointers = (0..60).map(|n| {
                let seed = round * 100 + n;
                (set.append(0, &body(seed, 5000), Durability::Buffer).unwrap(), seed)
            });
            let pointers: Vec<_> = pointers.collect();
            let number = set.seal().unwrap();
            let before = std::mem::replace(&mut *newest.lock().unwrap(), pointers);
            let numbers: Vec<u32> =
                set.segments().iter().map(|info| info.number).filter(|other| *other < number).collect();
            let kept = newest.lock().unwrap().iter().map(|(pointer, _)| pointer.segment).min().unwrap();
            drop(before);
            set.reclaim(&numbers.into_iter().filter(|other| *other < kept).collect::<Vec<_>>()).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        for reader in [inside, outside] {
            let (found, gone) = reader.join().unwrap();
            assert!(found > 0, "{found} found, {gone} gone");
        }
    });
    let stats = set.stats();
    assert!(stats.recycled_segments > 0, "{stats:?}");
    assert!(stats.used_bytes < 4 << 20, "{stats:?}");
}

#[test]
fn cursors_go_on_from_a_place_and_see_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let set = SegmentSet::open(dir.path(), small_segments()).unwrap();
    let reader = SegmentSetReader::open(dir.path()).unwrap();
    let (mut own, mut foreign) = (set.iter(), reader.iter());
    let mut seen = 0u64;
    for round in 0..30u64 {
        let batch: Vec<(u8, Vec<u8>)> =
            (0..round % 5 + 1).map(|n| (n as u8, body(round * 10 + n, 20_000))).collect();
        let pointers = set.append_batch(&batch, Durability::Sync).unwrap();
        for cursor in [&mut own, &mut foreign] {
            for (number, ((kind, bytes), pointer)) in batch.iter().zip(&pointers).enumerate() {
                let entry = cursor.next_entry().unwrap().expect("a durable entry");
                assert_eq!((entry.pointer, entry.kind), (*pointer, *kind));
                assert_eq!(entry.ends_batch, number + 1 == batch.len());
                assert!(entry.body == *bytes);
                seen += 1;
            }
            assert!(cursor.next_entry().unwrap().is_none());
        }
        let (segment, position) = own.place();
        own = set.iter_from(segment, position);
    }
    assert!(seen > 60 && set.stats().segments > 1);
    let first = set.segments()[0].number;
    set.reclaim(&[first]).unwrap();
    assert!(matches!(set.iter_from(first, 4096).next_entry(), Err(Error::Gone { .. })));
    assert_eq!(set.iter().next_entry().unwrap().unwrap().pointer.segment, first + 1);
}

#[test]
fn a_set_is_not_taken_for_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let set = SegmentSet::open(dir.path().join("set"), SetOptions::default()).unwrap();
    assert!(matches!(
        SegmentSet::open(dir.path().join("set"), SetOptions::default()),
        Err(Error::Locked { .. })
    ));
    drop(set);
    let stream = lsfs::RecordStream::open(dir.path().join("set"), lsfs::StreamOptions::default());
    assert!(matches!(stream, Err(Error::NotFound { .. })), "{stream:?}");
    let stream = lsfs::RecordStream::open(dir.path().join("log"), lsfs::StreamOptions::default()).unwrap();
    drop(stream);
    let set = SegmentSet::open(dir.path().join("log"), SetOptions::default());
    assert!(matches!(set, Err(Error::NotFound { .. })), "{set:?}");
    let cache = SetOptions { kind: SetKind::Cache, ..SetOptions::default() };
    let set = SegmentSet::open(dir.path().join("set"), cache);
    assert!(matches!(set, Err(Error::InvalidOption { option: "kind", .. })), "{set:?}");
    let missing = SetOptions { create: false, ..SetOptions::default() };
    assert!(matches!(SegmentSet::open(dir.path().join("no"), missing), Err(Error::NotFound { .. })));
    assert!(matches!(SegmentSetReader::open(dir.path().join("no")), Err(Error::NotFound { .. })));
}

#[test]
fn a_cache_syncs_nothing_and_reopens_with_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let options = SetOptions { kind: SetKind::Cache, ..small_segments() };
    let set = SegmentSet::open(dir.path(), options.clone()).unwrap();
    let pointers: Vec<_> =
        (0..30).map(|n| (set.append(0, &body(n, 100_000), Durability::Sync).unwrap(), n)).collect();
    set.sync().unwrap();
    let stats = set.stats();
    assert_eq!(stats.syncs, 0);
    assert!(stats.segments > 3 && stats.writes > 0);
    set.close().unwrap();
    drop(set);
    let set = SegmentSet::open(dir.path(), options).unwrap();
    for (pointer, seed) in pointers {
        assert!(set.read(pointer).unwrap().body == body(seed, 100_000));
    }
}
