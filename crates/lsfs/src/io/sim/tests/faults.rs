//! Injected faults and damage.

use std::collections::BTreeSet;

use super::*;

#[test]
fn eio_fails_each_kind_of_operation_once() {
    let disk = disk();
    let file = create(&disk, "a");
    file.write_at(&buf(2 * UNIT, 1), 0, WriteSync::Durable).unwrap();
    let fails = |kind: OpKind, act: &dyn Fn() -> io::Result<()>| {
        disk.inject(DiskFault::nth(0, "", FaultKind::Eio).only(kind));
        let before = disk.fingerprint();
        assert!(is_raw_error(&act().unwrap_err(), libc::EIO), "{kind:?}");
        if kind != OpKind::Write {
            assert_eq!(disk.fingerprint(), before, "{kind:?}");
        }
    };
    fails(OpKind::Write, &|| write(&*file, 1, 9, WriteSync::Durable).map(drop));
    fails(OpKind::Allocate, &|| file.allocate(8 * PAGE));
    fails(OpKind::SetLen, &|| file.set_len(0));
    fails(OpKind::Create, &|| disk.open(&path("b"), OpenMode::CreateNew, UNIT).map(drop));
    fails(OpKind::Rename, &|| disk.rename(&path("a"), &path("b")));
    fails(OpKind::Remove, &|| disk.remove(&path("a")));
    fails(OpKind::SyncDir, &|| disk.sync_dir(Path::new(DIR)));
    fails(OpKind::CreateDir, &|| disk.create_dir_all(Path::new("other")));
    fails(OpKind::Sync, &|| file.sync());
    assert_eq!(disk.faults_fired(), 9);
    file.sync().unwrap();
    assert_eq!(sectors(&disk, "a", 0), [1; 8]);
}

#[test]
fn a_failed_write_may_have_changed_its_first_sectors() {
    let reached: BTreeSet<usize> = (0..60)
        .map(|seed| {
            let disk = SimDisk::new(seed);
            disk.put(&path("a"), &[1; UNIT]).unwrap();
            disk.inject(DiskFault::at_op(disk.op_count(), FaultKind::Eio));
            assert!(write(&*open(&disk, "a"), 0, 2, WriteSync::Durable).is_err());
            assert_eq!(sectors(&disk.power_fail(CrashStyle::NothingUnsynced, 0), "a", 0), [1; 8]);
            sectors(&disk, "a", 0).iter().take_while(|byte| **byte == 2).count()
        })
        .collect();
    assert_eq!(reached, (0..8).collect());
}

#[test]
fn a_failed_sync_drops_what_was_pending_and_reads_stay_clean_until_reopened() {
    let disk = disk();
    let file = create(&disk, "a");
    file.write_at(&buf(2 * UNIT, 1), 0, WriteSync::Durable).unwrap();
    write(&*file, 0, 2, WriteSync::Later).unwrap();
    disk.inject(DiskFault::nth(1, "a", FaultKind::SyncError).only(OpKind::Sync));
    disk.inject(DiskFault::nth(0, "b", FaultKind::SyncError));
    disk.inject(DiskFault::nth(0, "a", FaultKind::SyncError).only(OpKind::Write));
    assert!(is_raw_error(&write(&*file, 1, 3, WriteSync::Durable).unwrap_err(), libc::EIO));
    file.sync().unwrap();
    assert_eq!(pages(&disk, "a"), [2, 3]);
    for style in CrashStyle::ALL {
        assert_eq!(pages(&disk.power_fail(style, 1), "a"), [1, 1], "{style:?}");
    }
    write(&*file, 1, 4, WriteSync::Later).unwrap();
    assert_eq!(pages(&disk, "a"), [2, 4]);
    let reopened = open(&disk, "a");
    assert_eq!(pages(&disk, "a"), [1, 4]);
    assert!(file.sync().is_err());
    drop(reopened);
    open(&disk, "a").sync().unwrap();
    assert_eq!(pages(&disk, "a"), [1, 1]);
}

#[test]
fn a_partial_sync_error_leaves_some_sectors() {
    let survived: BTreeSet<Vec<u8>> = (0..20)
        .map(|seed| {
            let disk = SimDisk::new(seed);
            disk.put(&path("a"), &[1; UNIT]).unwrap();
            let file = open(&disk, "a");
            disk.inject(DiskFault::nth(0, "", FaultKind::PartialSyncError));
            write(&*file, 0, 2, WriteSync::Later).unwrap();
            assert!(file.sync().is_err());
            assert_eq!(sectors(&disk, "a", 0), [2; 8]);
            drop(open(&disk, "a"));
            assert_eq!(disk.power_fail(CrashStyle::EverythingUnsynced, 0).fingerprint(), disk.fingerprint());
            sectors(&disk, "a", 0)
        })
        .collect();
    assert!(survived.len() > 10);
}

#[test]
fn short_writes_are_short_and_continued() {
    let mut kinds = BTreeSet::new();
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        disk.put(&path("a"), &[1; 4 * UNIT]).unwrap();
        let file = open(&disk, "a");
        let fault = DiskFault::nth(0, "", FaultKind::ShortWrite);
        disk.inject(fault.clone());
        let written = file.write_at(&buf(2 * UNIT, 2), PAGE, WriteSync::Durable).unwrap();
        assert!(written > 0 && written < 2 * UNIT);
        kinds.insert(written.is_multiple_of(512));
        let bytes = disk.power_fail(CrashStyle::NothingUnsynced, 0).contents(&path("a")).unwrap();
        let whole = written / 512 * 512;
        assert!(bytes[UNIT..UNIT + whole].iter().all(|byte| *byte == 2));
        assert!(bytes[UNIT + whole..].iter().all(|byte| *byte == 1));
        disk.inject(fault);
        file.write_all_at(&buf(2 * UNIT, 3), 0, WriteSync::Durable).unwrap();
        assert_eq!(pages(&disk, "a"), [3, 3, bytes[2 * UNIT], 1]);
    }
    assert_eq!(kinds.len(), 2);
}

#[test]
fn read_errors_strike_reads_only() {
    let disk = disk();
    let file = create(&disk, "a.seg");
    disk.inject(DiskFault::nth(1, ".seg", FaultKind::ReadEio).forever());
    write(&*file, 0, 1, WriteSync::Durable).unwrap();
    let mut read = buf(UNIT, 0);
    assert!(file.read_at(&mut read, 0).is_ok());
    for _ in 0..3 {
        assert!(is_raw_error(&file.read_at(&mut read, 0).unwrap_err(), libc::EIO));
    }
    disk.clear_faults();
    assert!(file.read_at(&mut read, 0).is_ok());
    assert_eq!(disk.faults_fired(), 3);
}

#[test]
fn silent_faults_report_success() {
    let struck = |kind| {
        let disk = SimDisk::new(3);
        disk.put(&path("a"), &[1; 4 * UNIT]).unwrap();
        disk.inject(DiskFault::nth(0, "", kind));
        assert_eq!(write(&*open(&disk, "a"), 1, 2, WriteSync::Durable).unwrap(), UNIT);
        assert_eq!((disk.faults_fired(), disk.trace_len()), (1, 0));
        assert_eq!(disk.power_fail(CrashStyle::NothingUnsynced, 0).fingerprint(), disk.fingerprint());
        disk.contents(&path("a")).unwrap()
    };
    assert!(struck(FaultKind::LostWrite).iter().all(|byte| *byte == 1));
    let misdirected = struck(FaultKind::MisdirectedWrite);
    assert_eq!(misdirected[UNIT], 1);
    assert_eq!(misdirected.iter().filter(|byte| **byte == 2).count(), UNIT);
    let rotten = struck(FaultKind::BitRot);
    let wrong: u32 = rotten[UNIT..2 * UNIT].iter().map(|byte| (byte ^ 2).count_ones()).sum();
    assert_eq!(wrong, 1);
}

#[test]
fn damage_by_hand() {
    let disk = disk();
    let file = create(&disk, "a");
    for page in 0..2 {
        write(&*file, page, page as u8 + 1, WriteSync::Durable).unwrap();
    }
    let name = path("a");
    disk.flip_bit(&name, 8 * 100 + 3).unwrap();
    disk.swap_sectors(&name, 1, 9).unwrap();
    disk.zero_sector(&name, 15).unwrap();
    let bytes = disk.power_fail(CrashStyle::NothingUnsynced, 0).contents(&name).unwrap();
    assert_eq!(bytes, disk.contents(&name).unwrap());
    assert_eq!((bytes[100], bytes[512], bytes[9 * 512], bytes[15 * 512]), (1 ^ 8, 2, 1, 0));
    assert!(disk.zero_sector(&name, 16).is_err());
    disk.truncate_raw(&name, 1000).unwrap();
    assert_eq!(disk.contents(&name).unwrap().len(), 1000);
}

#[test]
fn a_full_disk_refuses_new_space_and_never_old() {
    let disk = SimDisk::with_capacity(0, 4 * PAGE);
    let file = disk.open(Path::new("a"), OpenMode::CreateNew, UNIT).unwrap();
    file.allocate(3 * PAGE).unwrap();
    assert_eq!(disk.free_bytes(Path::new("a")).unwrap(), PAGE);
    let full = file.write_at(&buf(2 * UNIT, 1), 3 * PAGE, WriteSync::Later).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    assert!(is_raw_error(&full, 28));
    assert!(file.allocate(5 * PAGE).is_err());
    file.write_at(&buf(4 * UNIT, 1), 0, WriteSync::Later).unwrap();
    disk.set_capacity(0);
    write(&*file, 0, 2, WriteSync::Durable).unwrap();
    file.set_len(0).unwrap();
    assert_eq!(disk.used_bytes(), 0);
    disk.set_capacity(1 << 30);
    disk.inject(DiskFault::nth(0, "", FaultKind::Enospc));
    assert_eq!(file.allocate(PAGE).unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.allocate(PAGE).unwrap();
}
