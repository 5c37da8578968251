//! Stories of what once went wrong.

mod support;

use std::sync::mpsc;

use lsfs::codec::Checksum;
use lsfs::io::{CrashStyle, SimDisk};
use lsfs::{Error, FinalData, FinalDataOptions, Reader, RecordStream, StreamOptions, verify};
use support::sim_env;

const DIR: &str = "/stream";

fn small() -> StreamOptions {
    StreamOptions { segment_bytes: 64 << 10, in_flight_bytes: 16 << 10, ..StreamOptions::default() }
}

fn filled(disk: &SimDisk, count: u64) -> RecordStream {
    let stream = RecordStream::open_in(sim_env(disk, 1), DIR, small()).unwrap();
    for index in 0..count {
        stream.append(0, format!("old {index}").as_bytes()).unwrap();
    }
    stream
}

#[test]
fn a_lost_manifest_is_corruption_and_not_a_new_stream() {
    for damage in ["flip", "remove"] {
        let disk = SimDisk::new(1);
        drop(filled(&disk, 100));
        let disk = disk.restart();
        for name in ["manifest.a", "manifest.b"] {
            let path = format!("{DIR}/{name}");
            if disk.contents(path.as_ref()).is_none() {
                continue;
            }
            match damage {
                "flip" => disk.zero_sector(path.as_ref(), 0).unwrap(),
                _ => lsfs::io::Disk::remove(&disk, path.as_ref()).unwrap(),
            }
        }
        let opened = RecordStream::open_in(sim_env(&disk, 2), DIR, small());
        assert!(opened.as_ref().is_err_and(Error::is_corruption), "{damage}: {opened:?}");
        assert!(
            disk.contents(format!("{DIR}/00000000000000000000.seg").as_ref()).is_some(),
            "the file stays"
        );
    }
}

#[test]
fn callbacks_come_although_a_full_buffer_was_flushed_inline() {
    // Small buffers, so that buffered appends keep flushing inline while others append with callbacks.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = StreamOptions { in_flight_bytes: 16 << 10, ..StreamOptions::default() };
    let stream = RecordStream::open(dir.path(), options).unwrap();
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2000 {
                stream.append_buffered(0, &[1; 3000]).unwrap();
            }
        });
        for _ in 0..2000 {
            let tell = tell.clone();
            stream.append_then(0, &[2; 100], move |outcome| tell.send(outcome).unwrap()).unwrap();
        }
    });
    for _ in 0..2000 {
        let outcome = told.recv_timeout(std::time::Duration::from_secs(20)).expect("every callback comes");
        outcome.unwrap();
    }
}

#[test]
fn a_panicking_callback_does_not_stop_the_stream() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let stream = RecordStream::open(dir.path(), small()).unwrap();
    stream.append_then(0, b"x", |_| panic!("on purpose")).unwrap();
    stream.sync().unwrap();
    stream.append(0, b"y").unwrap();
    stream.close().unwrap();
}

#[test]
fn a_cursor_follows_a_truncation() {
    let disk = SimDisk::new(3);
    let stream = filled(&disk, 10);
    let reader = Reader::open_in(sim_env(&disk, 2), DIR).unwrap();
    let mut cursor = reader.follow(0);
    for _ in 0..10 {
        cursor.next_record().unwrap().unwrap();
    }
    stream.truncate_after(4).unwrap();
    for index in 5..15 {
        stream.append(0, format!("new {index}").as_bytes()).unwrap();
    }
    for index in 10..15 {
        let record = cursor.next_record().unwrap().unwrap();
        assert_eq!((record.index, &record.payload[..]), (index, format!("new {index}").as_bytes()));
    }
    assert_eq!(reader.read(7).unwrap().payload, b"new 7");
}

#[test]
fn truncation_is_refused_where_there_is_no_record() {
    let disk = SimDisk::new(4);
    let stream = filled(&disk, 20);
    stream.purge_before(10).unwrap();
    for index in [9, 20, u64::MAX] {
        assert!(matches!(stream.truncate_after(index), Err(Error::OutOfRange { .. })), "{index}");
    }
    stream.truncate_after(10).unwrap();
    stream.append(0, b"next").unwrap();
    let report = verify(&sim_env(&disk, 5), DIR.as_ref(), |_| {}).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
}

#[test]
fn options_for_small_blocks_open_a_stream_of_large_ones() {
    let disk = SimDisk::new(5);
    let large = StreamOptions { block_bytes: 32 << 10, ..StreamOptions::default() };
    RecordStream::open_in(sim_env(&disk, 1), DIR, large).unwrap().append(0, b"large").unwrap();
    let tiny = StreamOptions {
        block_bytes: 512,
        in_flight_bytes: 2048,
        segment_bytes: 4096,
        ..StreamOptions::default()
    };
    let stream = RecordStream::open_in(sim_env(&disk, 2), DIR, tiny).unwrap();
    for _ in 0..50 {
        stream.append(0, &[3; 20_000]).unwrap();
    }
    assert_eq!(stream.read(0).unwrap().payload, b"large");
    assert_eq!(stream.next_index(), 51);
}

#[test]
fn a_closed_stream_holds_only_what_it_needs_and_an_empty_one_at_most_a_mebibyte() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let used = || -> u64 {
        let entries = std::fs::read_dir(dir.path()).unwrap();
        entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    let stream = RecordStream::open(dir.path(), StreamOptions::default()).unwrap();
    assert!(used() <= 1 << 20, "{} bytes while open", used());
    stream.close().unwrap();
    assert!(used() <= 1 << 20, "{} bytes when closed", used());
    let stream = RecordStream::open(dir.path(), StreamOptions::default()).unwrap();
    for _ in 0..3000 {
        stream.append_buffered(0, &[1; 4000]).unwrap();
    }
    stream.close().unwrap();
    let live = stream.stats().live_bytes;
    assert!(used() <= live + live / 4 + (2 << 20), "{} bytes used, {live} live", used());
    let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_str().unwrap().starts_with("spare-")));
}

#[test]
fn blocks_over_four_kibibytes_need_checksums() {
    let disk = SimDisk::new(6);
    let options = StreamOptions { block_bytes: 8192, checksum: Checksum::None, ..StreamOptions::default() };
    let opened = RecordStream::open_in(sim_env(&disk, 1), DIR, options);
    assert!(matches!(opened, Err(Error::InvalidOption { option: "block_bytes", .. })));
}

#[test]
fn a_manifest_older_than_the_records_is_corruption() {
    let disk = SimDisk::new(7);
    drop(filled(&disk, 5));
    // The second open writes its manifest to the other file; its records then need that manifest.
    let stream = RecordStream::open_in(sim_env(&disk, 8), DIR, small()).unwrap();
    stream.append(0, b"in a later epoch").unwrap();
    let disk = disk.restart();
    disk.zero_sector(format!("{DIR}/manifest.b").as_ref(), 0).unwrap();
    let opened = RecordStream::open_in(sim_env(&disk, 9), DIR, small());
    assert!(opened.as_ref().is_err_and(Error::is_corruption), "{opened:?}");
}

/// A rewritten segment's file has a name of its own: a stream that went on in one was not found again.
#[test]
fn nothing_is_appended_to_a_rewritten_segment() {
    let payload = |index: u64| format!("record {index}").into_bytes();
    type End = fn(&RecordStream);
    let reset: End = |stream| stream.reset_to(4).unwrap();
    let inside: End = |stream| stream.truncate_after(5).unwrap();
    let at_its_end: End = |stream| stream.truncate_after(7).unwrap();
    let before_another: End = |stream| {
        let kept = [8, 11].map(|index| stream.read(index).unwrap());
        stream.replace_sealed(8..12, &mut kept.into_iter().map(Ok)).unwrap();
        stream.truncate_after(7).unwrap();
    };
    let kept: [(End, &[u64]); 4] = [
        (reset, &[]),
        (inside, &[0, 1, 2, 3, 5]),
        (at_its_end, &[0, 1, 2, 3, 5, 7]),
        (before_another, &[0, 1, 2, 3, 5, 7]),
    ];
    for (case, (end, kept)) in kept.into_iter().enumerate() {
        let mut disk = SimDisk::new(1);
        let stream = RecordStream::open_in(sim_env(&disk, 1), DIR, small()).unwrap();
        for index in 0..14 {
            if index > 0 && index % 4 == 0 {
                stream.rotate().unwrap();
            }
            stream.append(0, &payload(index)).unwrap();
        }
        let odd = [5, 7].map(|index| stream.read(index).unwrap());
        stream.replace_sealed(4..8, &mut odd.into_iter().map(Ok)).unwrap();
        end(&stream);
        let next = stream.next_index();
        assert_eq!(next, kept.last().map_or(4, |last| last + 1), "case {case}");
        assert_eq!(stream.append(0, b"behind").unwrap(), next);
        for opened in 0..3 {
            let context = format!("case {case}, opened {opened} times");
            let reader = Reader::open_in(sim_env(&disk, 20), DIR).unwrap();
            let mut cursor = reader.iter(..).unwrap();
            for &index in kept {
                let record = cursor.next_record().unwrap().unwrap_or_else(|| panic!("{context}: {index}"));
                assert_eq!((record.index, &record.payload[..]), (index, &payload(index)[..]), "{context}");
            }
            let record = cursor.next_record().unwrap().unwrap();
            assert_eq!((record.index, &record.payload[..]), (next, &b"behind"[..]), "{context}");
            let report = verify(&sim_env(&disk, 21), DIR.as_ref(), |_| {}).unwrap();
            assert!(report.damage.is_empty(), "{context}: {:?}", report.damage);
            disk = disk.restart();
            let stream = RecordStream::open_in(sim_env(&disk, 30 + opened), DIR, small()).unwrap();
            assert_eq!(stream.append(0, b"more").unwrap(), next + 1 + opened, "{context}");
        }
    }
}

/// A process is killed at every operation of a set, the next one sets something else, and then power fails. A file that
/// the first one had created was not made durable by name: the second one found it and took it for granted.
#[test]
fn what_is_set_after_a_kill_survives_a_power_failure() {
    const STATE: &str = "/state";
    let open =
        |disk: &SimDisk, seed| FinalData::open_in(sim_env(disk, seed), STATE, FinalDataOptions::default());
    let disk = SimDisk::new(1);
    open(&disk, 1).unwrap().set(b"first").unwrap();
    let disk = disk.restart();
    disk.start_trace();
    open(&disk, 2).unwrap().set(b"never acknowledged").unwrap();
    let trace = disk.stop_trace();
    let mut images = trace.images();
    loop {
        let killed = images.killed(3);
        open(&killed, 4).unwrap().set(b"acknowledged").unwrap();
        let left = killed.power_fail(CrashStyle::NothingUnsynced, 5);
        let state = open(&left, 6).unwrap().get().unwrap();
        assert_eq!(
            state.bytes[..],
            b"acknowledged"[..],
            "killed during {}",
            trace.describe(images.crash_point())
        );
        if !images.advance() {
            break;
        }
    }
}
