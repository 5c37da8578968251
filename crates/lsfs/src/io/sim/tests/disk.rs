//! Alignment, locks, processes, shared pages.

use std::collections::BTreeSet;

use super::*;
use crate::io::LockError;

#[test]
fn misaligned_transfers_are_refused() {
    let disk = disk();
    let file = create(&disk, "a");
    let mut bytes = buf(3 * UNIT, 1);
    file.write_at(&bytes, 0, WriteSync::Later).unwrap();
    let mut refused = |from: usize, len: usize, position: u64| {
        let part = &mut bytes[from..from + len];
        let write = file.write_at(part, position, WriteSync::Later).unwrap_err();
        let read = file.read_at(part, position).unwrap_err();
        assert_eq!((write.kind(), read.kind()), (io::ErrorKind::InvalidInput, io::ErrorKind::InvalidInput));
    };
    refused(0, UNIT, 512);
    refused(0, 512, 0);
    refused(0, UNIT + 512, 0);
    refused(0, UNIT - 512, 512);
    refused(8, UNIT, 0);
    let ops = disk.op_count();
    file.write_at(&bytes[512..512 + UNIT], 0, WriteSync::Later).unwrap();
    assert_eq!(disk.op_count(), ops + 1);
    assert!(disk.open(&path("a"), OpenMode::Read, 100).is_err());
    let reader = disk.open(&path("a"), OpenMode::Read, UNIT).unwrap();
    assert!(reader.write_at(&bytes[..UNIT], 0, WriteSync::Later).is_err());
    assert!(reader.set_len(0).is_err());
}

#[test]
fn a_lock_has_one_holder_and_dies_with_its_process() {
    let disk = disk();
    let guard = disk.lock(&path("lock")).unwrap();
    let other = disk.new_process();
    assert!(matches!(other.lock(&path("lock")), Err(LockError::Held { pid: Some(0) })));
    assert!(other.is_locked(&path("lock")).unwrap());
    assert!(!disk.power_fail(CrashStyle::EverythingUnsynced, 0).is_locked(&path("lock")).unwrap());
    let file = create(&disk, "a");
    write(&*file, 0, 1, WriteSync::Later).unwrap();
    let restarted = disk.restart();
    assert_eq!(pages(&restarted, "a"), [1]);
    assert_eq!(pages(&restarted.power_fail(CrashStyle::NothingUnsynced, 0), "a"), [0; 0]);
    // What is left of the old process changes nothing, the drop of its guard included.
    assert!(write(&*file, 0, 2, WriteSync::Later).is_err());
    assert!(disk.remove(&path("a")).is_err());
    let held = restarted.lock(&path("lock")).unwrap();
    drop((guard, file));
    assert!(other.is_locked(&path("lock")).unwrap());
    drop(held);
    other.lock(&path("lock")).unwrap();
}

#[test]
fn a_shared_page_is_seen_by_other_processes_and_stale_after_a_crash() {
    let disk = disk();
    assert_eq!(disk.shared_page(&path("page"), false).unwrap_err().kind(), io::ErrorKind::NotFound);
    disk.start_trace();
    let page = disk.shared_page(&path("page"), true).unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    page.store(&[1, 2]);
    let reader = disk.new_process().shared_page(&path("page"), false).unwrap();
    let mut words = [9; 3];
    reader.load(&mut words);
    assert_eq!(words, [1, 2, 0]);
    drop(create(&disk, "a"));
    page.store(&[3, 4]);
    let trace = disk.stop_trace();
    let seen = |point| -> BTreeSet<[u64; 2]> {
        let image = |seed| trace.image(point, CrashStyle::EverythingUnsynced, seed);
        let load = |image: SimDisk| {
            let mut words = [0; 2];
            image.shared_page(&path("page"), false).unwrap().load(&mut words);
            words
        };
        (0..60).map(|seed| load(image(seed))).collect()
    };
    assert_eq!(seen(0), BTreeSet::from([[0, 0]]));
    assert_eq!(seen(2), BTreeSet::from([[0, 0], [1, 2]]));
    assert_eq!(seen(4), BTreeSet::from([[0, 0], [1, 2], [3, 4], [1, 4], [3, 2]]));
    assert_eq!(
        disk.list(Path::new(DIR)).unwrap().iter().find(|entry| entry.name == "page").unwrap().len,
        4096
    );
}
