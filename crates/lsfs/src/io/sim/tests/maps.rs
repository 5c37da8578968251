//! Mapped files.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

#[test]
fn stores_are_seen_at_once_and_durable_after_a_flush_of_their_pages() {
    let disk = disk();
    let file = create(&disk, "a");
    let map = file.map_mut(4 * PAGE).unwrap();
    file.sync().unwrap();
    let reader = disk.new_process().open(&path("a"), OpenMode::Read, UNIT).unwrap().map(4 * PAGE).unwrap();
    for page in 0..3 {
        map.write(page * PAGE + 100, &[page as u8 + 1; 200]).unwrap();
    }
    let mut seen = [0; 4];
    reader.read(2 * PAGE + 298, &mut seen).unwrap();
    assert_eq!(seen, [3, 3, 0, 0]);
    map.flush(PAGE + 150..PAGE + 151).unwrap();
    let least = disk.power_fail(CrashStyle::NothingUnsynced, 0).contents(&path("a")).unwrap();
    assert_eq!((least[100], least[UNIT + 100], least[UNIT + 299], least[2 * UNIT + 100]), (0, 2, 2, 0));
    let torn: BTreeSet<(u8, u8)> = (0..20)
        .map(|seed| disk.power_fail(CrashStyle::TornPages, seed).contents(&path("a")).unwrap())
        .map(|bytes| (bytes[100], bytes[2 * UNIT + 100]))
        .collect();
    assert_eq!(torn, BTreeSet::from([(0, 0), (0, 3), (1, 0), (1, 3)]));
}

#[test]
fn each_store_is_a_crash_point_and_no_fault_strikes_it() {
    let disk = disk();
    let map = create(&disk, "a").map_mut(PAGE).unwrap();
    map.flush(0..PAGE).unwrap();
    disk.start_trace();
    disk.inject(DiskFault::nth(0, "", FaultKind::Eio).forever());
    map.write(0, &[1; 512]).unwrap();
    map.write(512, &[2; 512]).unwrap();
    assert!(is_raw_error(&map.flush(0..1).unwrap_err(), libc::EIO));
    let trace = disk.stop_trace();
    let kinds: Vec<_> = (0..trace.len()).map(|point| trace.kind(point).unwrap()).collect();
    assert_eq!(kinds, [OpKind::MapWrite, OpKind::MapWrite, OpKind::Sync]);
    let most = |point| sectors(&trace.image(point, CrashStyle::EverythingUnsynced, 0), "a", 0)[..2].to_vec();
    assert_eq!((most(0), most(1)), (vec![1, 0], vec![1, 2]));
}

#[test]
fn a_failed_flush_reads_clean_until_reopened() {
    let disk = disk();
    let file = create(&disk, "a");
    let map = file.map_mut(PAGE).unwrap();
    map.flush(0..PAGE).unwrap();
    map.write(0, &[1]).unwrap();
    disk.inject(DiskFault::nth(0, "a", FaultKind::SyncError));
    assert!(map.flush(0..1).is_err());
    map.flush(0..1).unwrap();
    let mut byte = [0];
    map.read(0, &mut byte).unwrap();
    assert_eq!(byte, [1]);
    open(&disk, "a").map(PAGE).unwrap().read(0, &mut byte).unwrap();
    assert_eq!(byte, [0]);
}

#[test]
fn a_full_disk_is_an_error_before_the_first_store() {
    let disk = SimDisk::with_capacity(0, 4 * PAGE);
    let file = disk.open(Path::new("a"), OpenMode::CreateNew, UNIT).unwrap();
    // A hole is not space.
    file.set_len(8 * PAGE).unwrap();
    assert_eq!(file.map_mut(5 * PAGE).unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.map_mut(4 * PAGE).unwrap().write(3 * PAGE, &[1]).unwrap();
    disk.inject(DiskFault::nth(0, "", FaultKind::Enospc));
    assert_eq!(file.map_mut(PAGE).unwrap_err().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn bounds_and_rights_are_checked() {
    let disk = disk();
    let file = create(&disk, "a");
    assert_eq!(file.map(1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let map = file.map_mut(700).unwrap();
    assert_eq!((map.len(), map.is_empty(), file.len().unwrap()), (700, false, 700));
    assert!(map.write(699, &[1, 2]).is_err() && map.read(u64::MAX, &mut [0]).is_err());
    assert!(map.flush(0..701).is_err());
    let reader = file.map(700).unwrap();
    assert!(reader.write(0, &[1]).is_err() && reader.flush(0..1).is_err());
    assert!(disk.open(&path("a"), OpenMode::Read, UNIT).unwrap().map_mut(700).is_err());
    drop(file);
    disk.remove(&path("a")).unwrap();
    map.write(0, &[5]).unwrap();
    let mut byte = [0];
    reader.read(0, &mut byte).unwrap();
    assert_eq!(byte, [5]);
    drop((map, reader));
    assert_eq!(disk.used_bytes(), 0);
}

#[test]
fn touching_what_was_cut_ends_the_program() {
    let disk = disk();
    let file = create(&disk, "a");
    let map = file.map_mut(2 * PAGE).unwrap();
    file.set_len(100).unwrap();
    let mut byte = [9];
    map.read(PAGE - 1, &mut byte).unwrap();
    assert_eq!(byte, [0]);
    let touched = catch_unwind(AssertUnwindSafe(|| map.read(PAGE, &mut [0])));
    let message = *touched.unwrap_err().downcast::<String>().unwrap();
    assert!(message.starts_with("SIGBUS"), "{message}");
}

#[test]
fn released_space_reads_as_zero_and_stays_mapped() {
    let disk = disk();
    let file = create(&disk, "a");
    let map = file.map_mut(4 * PAGE).unwrap();
    map.write(0, &[1; 4 * PAGE as usize]).unwrap();
    file.release(PAGE..9 * PAGE).unwrap();
    let mut bytes = [9; 2];
    map.read(PAGE - 1, &mut bytes).unwrap();
    assert_eq!((bytes, file.len().unwrap()), ([1, 0], 4 * PAGE));
    map.read(4 * PAGE - 2, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 0]);
}
