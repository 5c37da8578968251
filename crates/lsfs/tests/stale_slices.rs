//! Torn writes over old bytes, with slices that begin exactly at sectors.
//!
//! The records are sized so that each block of 4 KiB is filled to the last byte and every slice begins at a 512-byte
//! sector. A torn write then leaves new slices followed by whole old ones, at the offsets and with the numbers that the
//! new ones would have: only what seeds their checksums tells them apart.

mod support;

use lsfs::io::{CrashStyle, SimDisk};
use lsfs::{RecordStream, SpacePolicy, StreamOptions};
use support::sim_env;

const DIR: &str = "/stream";
/// 50 bytes of block header, then slices of 462, six of 512 and one of 504, each with 36 bytes of overhead.
const PAYLOAD_BYTES: [usize; 8] = [426, 476, 476, 476, 476, 476, 476, 468];
const SEGMENT_BLOCKS: u64 = 8;

fn options() -> StreamOptions {
    StreamOptions {
        segment_bytes: SEGMENT_BLOCKS * 4096,
        in_flight_bytes: 8 * 4096,
        space: SpacePolicy::Allocate,
        ..StreamOptions::default()
    }
}

/// Records that fill this many blocks.
fn blocks_of(count: usize, life: u8) -> Vec<(u64, Vec<u8>)> {
    (0..count * PAYLOAD_BYTES.len())
        .map(|n| (u64::from(life), vec![life ^ n as u8; PAYLOAD_BYTES[n % PAYLOAD_BYTES.len()]]))
        .collect()
}

/// Crashes during each operation that `act` does, and checks that no record of an earlier life comes back.
fn crash_during(disk: &SimDisk, stream: &RecordStream, life: u8, act: impl FnOnce(&RecordStream) -> u64) {
    let kept = stream.next_index();
    disk.start_trace();
    let first_new = act(stream);
    let trace = disk.stop_trace();
    assert!(first_new <= kept);
    let mut images = trace.images();
    let mut partial = 0;
    loop {
        for style in CrashStyle::ALL {
            for seed in 0..20 {
                let image = images.image(style, seed);
                let found = RecordStream::open_in(sim_env(&image, 1), DIR, options()).unwrap();
                let mut cursor = found.iter(..);
                let mut new_records = 0;
                while let Some(record) = cursor.next_record().unwrap() {
                    if record.index < first_new {
                        continue;
                    }
                    // Before the truncation took hold, the old records are still the right ones.
                    let old_is_right = found.next_index() == kept && first_new < kept;
                    assert!(
                        old_is_right || record.type_code == u64::from(life),
                        "{}, {style:?}, seed {seed}: record {} is of life {}",
                        trace.describe(images.crash_point()),
                        record.index,
                        record.type_code
                    );
                    new_records += 1;
                }
                partial += u32::from(new_records % PAYLOAD_BYTES.len() != 0);
                drop(image.restart());
            }
        }
        if !images.advance() {
            break;
        }
    }
    assert!(partial > 10, "torn blocks kept a part of their records {partial} times");
}

#[test]
fn the_layout_is_as_said() {
    let disk = SimDisk::new(1);
    let stream = RecordStream::open_in(sim_env(&disk, 1), DIR, options()).unwrap();
    stream.append_batch(&blocks_of(3, 1)).unwrap();
    assert_eq!(stream.stats().live_bytes, 4 * 4096, "three blocks filled to their tailers");
}

#[test]
fn no_slice_of_a_recycled_file_is_accepted() {
    let disk = SimDisk::new(2);
    let stream = RecordStream::open_in(sim_env(&disk, 2), DIR, options()).unwrap();
    for _ in 0..4 {
        stream.append_batch(&blocks_of(6, 1)).unwrap();
    }
    assert!(stream.stats().segments > 2);
    stream.purge_before(stream.next_index()).unwrap();
    assert!(stream.stats().recycled_segments > 0);
    // Roll into a recycled file, then write over its old blocks.
    stream.append_batch(&blocks_of(6, 2)).unwrap();
    let segments = stream.stats().segments;
    let roll = blocks_of(1, 2);
    while stream.stats().segments == segments {
        stream.append_batch(&roll).unwrap();
    }
    crash_during(&disk, &stream, 3, |stream| stream.append_batch(&blocks_of(3, 3)).unwrap().start);
}

#[test]
fn no_slice_of_a_truncated_tail_is_accepted() {
    let disk = SimDisk::new(3);
    let stream = RecordStream::open_in(sim_env(&disk, 3), DIR, options()).unwrap();
    stream.append_batch(&blocks_of(5, 1)).unwrap();
    let keep = PAYLOAD_BYTES.len() as u64;
    stream.truncate_after(keep - 1).unwrap();
    crash_during(&disk, &stream, 2, |stream| stream.append_batch(&blocks_of(4, 2)).unwrap().start);
}
