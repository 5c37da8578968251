//! Every bit of a segment's file flipped: what is read is right, or an error.

use std::path::Path;

use lsfs::codec::{FrameLayout, Pointer};
use lsfs::io::SimDisk;
use lsfs::{Durability, Error, SegmentSet, SegmentSetReader, SetOptions};

use crate::support::sim_env;

const DIR: &str = "/set";

fn options() -> SetOptions {
    SetOptions { segment_bytes: 32 << 10, in_flight_bytes: 8 << 10, ..SetOptions::default() }
}

fn body(number: usize) -> Vec<u8> {
    (0..number * 23 % 90).map(|at| (number * 7 + at) as u8).collect()
}

/// A set with entries in `data-00001.seg`, each synced by itself; the last write is a batch of two.
fn entries(disk: &SimDisk) -> (SegmentSet, Vec<(Pointer, Vec<u8>)>) {
    let set = SegmentSet::open_in(sim_env(disk, 1), DIR, options()).unwrap();
    let mut entries: Vec<(Pointer, Vec<u8>)> = (0..12)
        .map(|number| (set.append(0, &body(number), Durability::Sync).unwrap(), body(number)))
        .collect();
    let batch = [(0, body(20)), (0, body(21))];
    let pointers = set.append_batch(&batch, Durability::Sync).unwrap();
    entries.extend(pointers.into_iter().zip(batch.into_iter().map(|(_, body)| body)));
    (set, entries)
}

/// Flips each bit that may matter, and one in a thousand of the rest; calls `check` with the damaged disk and the byte.
fn flip_everything(disk: &SimDisk, used_bytes: u64, check: impl Fn(&SimDisk, u64)) {
    let path = Path::new(DIR).join("data-00001.seg");
    let whole = disk.contents(&path).unwrap().len() as u64;
    let matters = |byte: u64| byte < 80 || (4096..used_bytes).contains(&byte);
    for bit in (0..whole * 8).filter(|bit| matters(bit / 8) || bit % 1009 == 0) {
        disk.flip_bit(&path, bit).unwrap();
        check(disk, bit / 8);
        disk.flip_bit(&path, bit).unwrap();
    }
}

fn is_hit(pointer: &Pointer, byte: u64) -> bool {
    (u64::from(pointer.position)..pointer.end()).contains(&byte)
}

/// In a sealed segment, and in one that was closed, exactly what was hit is corrupt.
fn check_exactly(disk: &SimDisk, entries: &[(Pointer, Vec<u8>)], byte: u64) {
    let reader = match SegmentSetReader::open_in(sim_env(disk, 9), DIR) {
        Ok(reader) => reader,
        Err(error) => panic!("byte {byte}: {error}"),
    };
    for (pointer, bytes) in entries {
        match reader.read(*pointer) {
            Ok(entry) => assert!(entry.body == *bytes && !is_hit(pointer, byte), "byte {byte}, {pointer:?}"),
            Err(Error::Corrupt(damage)) => {
                assert!(is_hit(pointer, byte) || byte < 80, "byte {byte}, {pointer:?}: {damage}");
            }
            // With another version, kind or id in its header it is no segment of this set.
            Err(Error::Format { .. } | Error::Gone { .. }) if byte < 80 => {}
            Err(error) => panic!("byte {byte}, {pointer:?}: {error}"),
        }
    }
    // A cursor names the damage and goes on behind it.
    if (4096..entries.last().unwrap().0.end()).contains(&byte) {
        let (mut cursor, mut seen, mut skipped) = (reader.iter(), 0, 0);
        loop {
            match cursor.next_entry() {
                Ok(Some(entry)) => {
                    assert!(
                        entries
                            .iter()
                            .any(|(pointer, bytes)| *pointer == entry.pointer && entry.body == *bytes)
                    );
                    seen += 1;
                }
                Ok(None) => break,
                Err(Error::Corrupt(_)) => {
                    let (segment, lost) = cursor.skip_damage().unwrap().expect("there was damage");
                    assert!(segment == 1 && lost.contains(&byte), "byte {byte}: {lost:?}");
                    skipped += 1;
                }
                Err(error) => panic!("byte {byte}: {error}"),
            }
        }
        assert_eq!((seen, skipped), (entries.len() - 1, 1), "byte {byte}");
    }
}

#[test]
fn no_flipped_bit_of_a_packed_large_body_goes_unseen() {
    let disk = SimDisk::new(1);
    let options = SetOptions { frame_layout: FrameLayout::Packed, ..SetOptions::default() };
    let set = SegmentSet::open_in(sim_env(&disk, 1), DIR, options).unwrap();
    let entries: Vec<(Pointer, Vec<u8>)> = [66_000, 3, 131_080]
        .into_iter()
        .map(|len| {
            let body: Vec<u8> = (0..len).map(|at| (len + at / 3) as u8).collect();
            (set.append(0, &body, Durability::Sync).unwrap(), body)
        })
        .collect();
    set.close().unwrap();
    let path = Path::new(DIR).join("data-00001.seg");
    let end = entries.last().unwrap().0.end();
    for bit in (4096 * 8..end * 8).step_by(2503) {
        disk.flip_bit(&path, bit).unwrap();
        let reader = SegmentSetReader::open_in(sim_env(&disk, 9), DIR).unwrap();
        for (pointer, body) in &entries {
            match reader.read(*pointer) {
                Ok(entry) => {
                    assert!(entry.body == body[..] && !is_hit(pointer, bit / 8), "bit {bit}, {pointer:?}")
                }
                Err(error) => {
                    assert!(error.is_corruption() && is_hit(pointer, bit / 8), "bit {bit}: {error}")
                }
            }
            // Of a part the damage may lie elsewhere.
            let half = pointer.len / 2..pointer.len;
            match reader.read_range(*pointer, half.clone()) {
                Ok(part) => assert!(part == body[half.start as usize..], "bit {bit}, {pointer:?}"),
                Err(error) => {
                    assert!(error.is_corruption() && is_hit(pointer, bit / 8), "bit {bit}: {error}")
                }
            }
        }
        disk.flip_bit(&path, bit).unwrap();
    }
}

#[test]
fn no_flipped_bit_of_a_sealed_segment_goes_unseen() {
    let disk = SimDisk::new(1);
    let (set, entries) = entries(&disk);
    set.seal().unwrap();
    set.close().unwrap();
    let end = u64::from(set.segments()[0].end);
    flip_everything(&disk, end, |disk, byte| check_exactly(disk, &entries, byte));
    // The footer lies behind the entries.
    flip_everything(&disk, end + 60, |disk, byte| {
        if (end..end + 60).contains(&byte) {
            let reader = SegmentSetReader::open_in(sim_env(disk, 9), DIR).unwrap();
            let footer = reader.segment(1).unwrap().footer();
            assert!(matches!(footer, Err(Error::Corrupt(_))), "byte {byte}: {footer:?}");
        }
    });
}

#[test]
fn no_flipped_bit_of_a_closed_segment_goes_unseen() {
    let disk = SimDisk::new(2);
    let (set, entries) = entries(&disk);
    set.close().unwrap();
    let end = u64::from(set.segments()[0].end);
    flip_everything(&disk, end, |disk, byte| check_exactly(disk, &entries, byte));
}

/// After a kill, the last write has no witness: it may be taken for torn, as a whole. Everything before is corrupt if it
/// does not verify.
#[test]
fn no_flipped_bit_of_a_segment_that_was_not_closed_is_taken_for_a_torn_tail() {
    let disk = SimDisk::new(3);
    let (set, entries) = entries(&disk);
    let end = u64::from(set.segments()[0].end);
    let disk = disk.restart();
    drop(set);
    let (witnessed, last) = entries.split_at(12);
    flip_everything(&disk, end, |disk, byte| {
        let reader = match SegmentSetReader::open_in(sim_env(disk, 9), DIR) {
            Ok(reader) => reader,
            Err(Error::Corrupt(_) | Error::Format { .. } | Error::Gone { .. }) if byte < 80 => return,
            Err(error) => panic!("byte {byte}: {error}"),
        };
        let is_witnessed_hit = witnessed.iter().any(|(pointer, _)| is_hit(pointer, byte));
        assert_eq!(reader.damage().is_some(), is_witnessed_hit, "byte {byte}: {:?}", reader.damage());
        for (pointer, bytes) in &entries {
            match reader.read(*pointer) {
                Ok(entry) => assert!(entry.body == *bytes, "byte {byte}, {pointer:?}"),
                // The damage was reported by the look, or by the writer's open.
                Err(Error::Corrupt(_) | Error::NoEntry { .. }) if is_witnessed_hit => {}
                Err(Error::NoEntry { .. }) => {
                    let is_last = |(other, _): &(Pointer, Vec<u8>)| other == pointer;
                    assert!(last.iter().any(is_last), "byte {byte}: {pointer:?} was dropped");
                    assert!(last.iter().any(|(pointer, _)| is_hit(pointer, byte)), "byte {byte}");
                }
                Err(error) => panic!("byte {byte}, {pointer:?}: {error}"),
            }
        }
        if byte % 16 == 0 {
            let image = disk.power_fail(lsfs::io::CrashStyle::EverythingUnsynced, 0);
            let opened = SegmentSet::open_in(sim_env(&image, 77), DIR, options());
            assert_eq!(opened.is_err(), is_witnessed_hit, "byte {byte}: {opened:?}");
            drop(image.restart());
        }
    });
}

/// The frame that says that a full write was durable is the one that did not fit it.
#[test]
fn damage_at_the_beginning_of_a_full_write_is_not_taken_for_a_torn_tail() {
    for frame_layout in [FrameLayout::Aligned, FrameLayout::Packed] {
        let disk = SimDisk::new(4);
        let options = SetOptions { frame_layout, ..options() };
        let set = SegmentSet::open_in(sim_env(&disk, 1), DIR, options.clone()).unwrap();
        let first = set.append(0, &[1; 1000], Durability::Buffer).unwrap();
        let mut last = first;
        while last.end() + first.frame_bytes() <= u64::from(first.position) + options.in_flight_bytes as u64 {
            last = set.append(0, &[1; 1000], Durability::Buffer).unwrap();
        }
        set.sync().unwrap();
        assert_eq!(set.stats().writes, 1);
        set.append(0, &[2; 1000], Durability::Sync).unwrap();
        let disk = disk.restart();
        drop(set);
        disk.flip_bit(&Path::new(DIR).join("data-00001.seg"), (u64::from(first.position) + 2) * 8).unwrap();
        let opened = SegmentSet::open_in(sim_env(&disk, 2), DIR, options);
        assert!(matches!(opened, Err(Error::Corrupt(_))), "{frame_layout:?}: {opened:?}");
    }
}
