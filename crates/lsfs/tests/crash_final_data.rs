//! Power failures during everything final data and data streams do.
//!
//! As `crash_stream.rs`: a recorded workload, every operation as crash point, every style; the next generation goes on
//! from one of the disks.

mod support;

use std::io::{Read, Write};

use lsfs::io::{CrashStyle, SimDisk};
use lsfs::{
    DataReader, DataStream, DataStreamOptions, FinalData, FinalDataOptions, Reader, State, StreamOptions,
};
use support::{Choices, budget, sim_env};

const DIR: &str = "/data";

fn final_options(seed: u64) -> FinalDataOptions {
    let block_bytes = [512, 1024, 4096][(seed % 3) as usize];
    FinalDataOptions { block_bytes, limit_blocks: 6, ..FinalDataOptions::default() }
}

fn state_bytes(choices: &mut Choices, seed: u64, version: u64) -> Vec<u8> {
    // Some seeds use one size, so that leftovers of a torn state lie where the next one goes.
    let len = if seed.is_multiple_of(2) { 900 } else { choices.below(4000) };
    let mut bytes = vec![choices.next() as u8; len as usize];
    bytes.extend(version.to_le_bytes());
    bytes
}

/// What a crash may leave: this state, or the next one if it was being set.
struct Moment {
    operations: usize,
    state: Option<State>,
}

fn final_data_generation(disk: &SimDisk, seed: u64, generation: u64, found: Option<State>) -> Vec<Moment> {
    let mut choices = Choices::new(seed * 77 + generation);
    let env = sim_env(disk, seed * 3 + generation);
    let mut data = FinalData::open_in(env, DIR, final_options(seed)).unwrap();
    assert_eq!(data.get(), found);
    let mut moments = vec![Moment { operations: 0, state: found }];
    for n in 0..10 {
        if choices.below(5) == 0 {
            data.close().unwrap();
            data = FinalData::open_in(sim_env(disk, seed * 5 + n), DIR, final_options(seed)).unwrap();
        }
        let version =
            moments.last().and_then(|moment| moment.state.as_ref()).map_or(0, |state| state.version) + 1;
        let bytes = state_bytes(&mut choices, seed, version);
        assert_eq!(data.set(&bytes).unwrap(), version);
        let state = Some(State { version, bytes: bytes.into() });
        moments.push(Moment { operations: disk.trace_len(), state });
    }
    drop(disk.restart());
    moments
}

fn final_data_crashes(seed: u64) -> u64 {
    let mut images = 0;
    let mut disk = SimDisk::new(seed);
    let mut state = None;
    for generation in 0..5 {
        disk.start_trace();
        let moments = final_data_generation(&disk, seed, generation, state);
        let trace = disk.stop_trace();
        let mut choices = Choices::new(seed ^ generation);
        let next_start = choices.below(trace.len() as u64) as usize;
        let mut next = None;
        let mut crash_images = trace.images();
        loop {
            let point = crash_images.crash_point();
            for style in CrashStyle::ALL {
                let image = crash_images.image(style, choices.next());
                let original = image.power_fail(CrashStyle::EverythingUnsynced, 0);
                let context =
                    || format!("seed {seed}, generation {generation}, {}, {style:?}", trace.describe(point));
                let data = FinalData::open_in(sim_env(&image, 1), DIR, final_options(seed))
                    .unwrap_or_else(|error| panic!("{}: {error}", context()));
                let found = data.get();
                let last = moments.iter().rposition(|moment| moment.operations <= point).unwrap();
                let admitted = moments[last..].iter().take(2).any(|moment| moment.state == found);
                assert!(admitted, "{}: found version {:?}", context(), found.as_ref().map(|s| s.version));
                assert_eq!(FinalData::read_in(sim_env(&image, 2), DIR).unwrap(), found, "{}", context());
                drop(image.restart());
                images += 1;
                if point >= next_start && next.is_none() && style.is_random() && choices.below(3) == 0 {
                    next = Some((original, found));
                }
            }
            if !crash_images.advance() {
                break;
            }
        }
        let Some((image, found)) = next else { break };
        (disk, state) = (image, found);
    }
    images
}

#[test]
fn no_crash_loses_or_mixes_a_state() {
    let wanted = budget("LSFS_CRASH_IMAGES", 20_000);
    let (mut images, mut seed) = (0, budget("LSFS_CRASH_SEED", 1));
    while images < wanted {
        images += final_data_crashes(seed);
        seed += 1;
    }
    eprintln!("{images} crash images of final data, seeds up to {seed}");
}

fn data_options(seed: u64) -> DataStreamOptions {
    let block_bytes = [512, 4096][(seed % 2) as usize];
    let stream = StreamOptions {
        block_bytes,
        segment_bytes: (block_bytes * 16) as u64,
        in_flight_bytes: block_bytes * 4,
        ..StreamOptions::default()
    };
    DataStreamOptions { stream, ..DataStreamOptions::default() }
}

fn data_stream_crashes(seed: u64) -> u64 {
    let mut images = 0;
    let mut disk = SimDisk::new(seed);
    let mut bytes: Vec<u8> = Vec::new();
    for generation in 0..3 {
        let mut choices = Choices::new(seed * 13 + generation);
        disk.start_trace();
        let mut data =
            DataStream::open_in(sim_env(&disk, seed * 10 + generation), DIR, data_options(seed)).unwrap();
        assert_eq!(data.position(), bytes.len() as u64);
        // (operations, bytes up to the mark)
        let mut marks = vec![(0, bytes.len())];
        for _ in 0..8 {
            let piece: Vec<u8> = (0..choices.below(9000)).map(|_| choices.next() as u8).collect();
            data.write_all(&piece).unwrap();
            bytes.extend(&piece);
            if choices.below(3) > 0 {
                let mark = data.mark().unwrap();
                assert_eq!(mark.byte_count, bytes.len() as u64);
                marks.push((disk.trace_len(), bytes.len()));
            }
        }
        let trace = disk.stop_trace();
        drop(disk.restart());
        drop(data);
        let next_start = choices.below(trace.len() as u64) as usize;
        let mut next = None;
        let mut crash_images = trace.images();
        loop {
            let point = crash_images.crash_point();
            for style in CrashStyle::ALL {
                let image = crash_images.image(style, choices.next());
                let original = image.power_fail(CrashStyle::EverythingUnsynced, 0);
                let context =
                    || format!("seed {seed}, generation {generation}, {}, {style:?}", trace.describe(point));
                let data = DataStream::open_in(sim_env(&image, 1), DIR, data_options(seed))
                    .unwrap_or_else(|error| panic!("{}: {error}", context()));
                let found = data.position() as usize;
                let last = marks.iter().rposition(|(operations, _)| *operations <= point).unwrap();
                assert!(
                    marks[last..].iter().take(2).any(|(_, len)| *len == found),
                    "{}: {found} bytes, marks {marks:?}",
                    context()
                );
                let mut back = Vec::new();
                DataReader::open_in(sim_env(&image, 2), DIR).unwrap().read_to_end(&mut back).unwrap();
                assert!(back == bytes[..found], "{}: bytes differ", context());
                drop(image.restart());
                images += 1;
                if point >= next_start && next.is_none() && style.is_random() && choices.below(3) == 0 {
                    next = Some((original, found));
                }
            }
            if !crash_images.advance() {
                break;
            }
        }
        let Some((image, found)) = next else { break };
        disk = image;
        bytes.truncate(found);
    }
    images
}

#[test]
fn no_crash_loses_marked_bytes() {
    let wanted = budget("LSFS_CRASH_IMAGES", 20_000);
    let (mut images, mut seed) = (0, budget("LSFS_CRASH_SEED", 1));
    while images < wanted {
        images += data_stream_crashes(seed);
        seed += 1;
    }
    eprintln!("{images} crash images of data streams, seeds up to {seed}");
}

#[test]
fn a_reader_is_not_fooled_by_a_damaged_state() {
    let disk = SimDisk::new(1);
    let data = FinalData::open_in(sim_env(&disk, 1), DIR, final_options(0)).unwrap();
    for version in 1..=3u8 {
        data.set(&[version; 700]).unwrap();
    }
    data.close().unwrap();
    let path = format!("{DIR}/state.b");
    let len = disk.contents(path.as_ref()).unwrap().len() as u64;
    let good = FinalData::read_in(sim_env(&disk, 1), DIR).unwrap().unwrap();
    let (mut lost, mut harmless) = (0, 0);
    for bit in (0..len * 8).step_by(5) {
        disk.flip_bit(path.as_ref(), bit).unwrap();
        match FinalData::read_in(sim_env(&disk, 1), DIR) {
            Ok(state) => {
                assert_eq!(state.as_ref(), Some(&good), "bit {bit}");
                harmless += 1;
            }
            Err(error) => {
                assert!(error.is_corruption() || error.to_string().contains("version"), "bit {bit}: {error}");
                lost += 1;
            }
        }
        disk.flip_bit(path.as_ref(), bit).unwrap();
    }
    assert!(lost > 500 && harmless > 500, "{lost} {harmless}");
    assert!(Reader::open_in(sim_env(&disk, 1), DIR).is_err());
}
