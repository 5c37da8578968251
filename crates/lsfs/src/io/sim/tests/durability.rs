//! What survives, and which names.

use std::collections::BTreeSet;

use super::*;

#[test]
fn a_sync_keeps_the_bytes_and_not_the_name() {
    let disk = disk();
    let file = disk.open(&path("a"), OpenMode::CreateNew, UNIT).unwrap();
    write(&*file, 0, 1, WriteSync::Later).unwrap();
    assert_eq!(names(&disk.power_fail(CrashStyle::NothingUnsynced, 0)), [""; 0]);
    file.sync().unwrap();
    assert_eq!(names(&disk.power_fail(CrashStyle::NothingUnsynced, 0)), [""; 0]);
    disk.sync_dir(Path::new(DIR)).unwrap();
    write(&*file, 0, 2, WriteSync::Later).unwrap();
    write(&*file, 1, 2, WriteSync::Later).unwrap();
    assert_eq!(pages(&disk.power_fail(CrashStyle::NothingUnsynced, 0), "a"), [1]);
    assert_eq!(pages(&disk.power_fail(CrashStyle::EverythingUnsynced, 0), "a"), [2, 2]);
    assert_eq!(pages(&disk, "a"), [2, 2]);
}

#[test]
fn a_durable_write_keeps_itself_and_nothing_else() {
    let disk = disk();
    let file = create(&disk, "a");
    file.allocate(8 * PAGE).unwrap();
    write(&*file, 0, 1, WriteSync::Later).unwrap();
    write(&*file, 2, 2, WriteSync::Durable).unwrap();
    assert_eq!(pages(&disk.power_fail(CrashStyle::NothingUnsynced, 0), "a"), [0, 0, 2]);
    assert_eq!(pages(&disk.power_fail(CrashStyle::EverythingUnsynced, 0), "a"), [1, 0, 2, 0, 0, 0, 0, 0]);
}

#[test]
fn an_older_pending_write_never_overwrites_a_durable_one() {
    let disk = disk();
    let file = create(&disk, "a");
    file.write_at(&buf(3 * UNIT, 1), 0, WriteSync::Later).unwrap();
    write(&*file, 1, 2, WriteSync::Durable).unwrap();
    for style in CrashStyle::ALL {
        for seed in 0..20 {
            assert_eq!(sectors(&disk.power_fail(style, seed), "a", 1), [2; 8], "{style:?} {seed}");
        }
    }
    file.sync().unwrap();
    assert_eq!(pages(&disk.power_fail(CrashStyle::NothingUnsynced, 0), "a"), [1, 2, 1]);
}

#[test]
fn a_durable_write_after_a_cut_needs_the_cut() {
    let disk = disk();
    let file = create(&disk, "a");
    file.write_at(&buf(4 * UNIT, 1), 0, WriteSync::Durable).unwrap();
    write(&*file, 3, 9, WriteSync::Later).unwrap();
    file.set_len(PAGE).unwrap();
    assert_eq!(pages(&disk.power_fail(CrashStyle::NothingUnsynced, 0), "a"), [1; 4]);
    write(&*file, 2, 2, WriteSync::Durable).unwrap();
    for style in CrashStyle::ALL {
        assert_eq!(pages(&disk.power_fail(style, 3), "a"), [1, 0, 2], "{style:?}");
    }
}

#[test]
fn bytes_written_after_a_lost_cut_are_lost_with_it() {
    let disk = disk();
    let file = create(&disk, "a");
    file.write_at(&buf(4 * UNIT, 1), 0, WriteSync::Durable).unwrap();
    file.set_len(2 * PAGE).unwrap();
    file.write_at(&buf(4 * UNIT, 2), 0, WriteSync::Later).unwrap();
    let seen: BTreeSet<Vec<u8>> =
        (0..100).map(|seed| pages(&disk.power_fail(CrashStyle::RandomWrites, seed), "a")).collect();
    // Cut and write both lost, or one of them, or the write but not its extension.
    let lost_cut = [vec![1, 1, 1, 1], vec![2, 2, 1, 1]];
    let kept_cut = [vec![1, 1], vec![1, 1, 0, 0], vec![2, 2], vec![2, 2, 2, 2]];
    assert_eq!(seen, lost_cut.into_iter().chain(kept_cut).collect());
}

#[test]
fn lengths_of_one_file_keep_their_order() {
    let disk = disk();
    let file = create(&disk, "a");
    file.allocate(PAGE).unwrap();
    file.allocate(2 * PAGE).unwrap();
    file.set_len(3 * PAGE).unwrap();
    file.allocate(4 * PAGE).unwrap();
    let seen: BTreeSet<Vec<u64>> = (0..200)
        .map(|seed| disk.power_fail(CrashStyle::RandomWrites, seed))
        .map(|image| vec![image.contents(&path("a")).unwrap().len() as u64 / PAGE, image.used_bytes() / PAGE])
        .collect();
    // Were the second lost alone, three pages would have one allocated, and four would too.
    assert_eq!(seen, BTreeSet::from([vec![0, 0], vec![1, 1], vec![2, 2], vec![3, 2], vec![4, 4]]));
    // An allocation whose cut was lost would show the old bytes.
    let file = create(&disk, "b");
    file.write_at(&buf(3 * UNIT, 1), 0, WriteSync::Durable).unwrap();
    file.set_len(PAGE).unwrap();
    file.allocate(4 * PAGE).unwrap();
    let seen: BTreeSet<Vec<u8>> =
        (0..50).map(|seed| pages(&disk.power_fail(CrashStyle::RandomWrites, seed), "b")).collect();
    assert_eq!(seen, BTreeSet::from([vec![1, 1, 1], vec![1], vec![1, 0, 0, 0]]));
}

#[test]
fn bytes_beyond_a_lost_extension_do_not_come_back() {
    let disk = disk();
    let file = create(&disk, "a");
    write(&*file, 0, 1, WriteSync::Durable).unwrap();
    write(&*file, 1, 2, WriteSync::Later).unwrap();
    let mut lost = 0;
    for seed in 0..50 {
        let image = disk.power_fail(CrashStyle::TornSectors, seed);
        if pages(&image, "a").len() == 1 {
            lost += 1;
            assert_eq!(image.used_bytes(), PAGE);
            open(&image, "a").set_len(2 * PAGE).unwrap();
            assert_eq!(sectors(&image, "a", 1), [0; 8]);
        }
    }
    assert!(lost > 10);
}

#[test]
fn a_reader_of_the_live_disk_sees_unsynced_bytes_and_the_end() {
    let disk = disk();
    let file = create(&disk, "a");
    file.write_at(&buf(2 * UNIT, 7), 0, WriteSync::Later).unwrap();
    let mut read = buf(4 * UNIT, 1);
    assert_eq!(file.read_at(&mut read, PAGE).unwrap(), UNIT);
    assert_eq!((read[0], read[UNIT - 1], read[UNIT]), (7, 7, 1));
    assert_eq!(file.read_at(&mut read, 8 * PAGE).unwrap(), 0);
    disk.truncate_raw(&path("a"), 1536).unwrap();
    assert_eq!(file.read_full_at(&mut read[..UNIT], 0).unwrap(), 1536);
}

#[test]
fn an_open_file_is_readable_after_its_removal_and_then_frees_its_space() {
    let disk = disk();
    let file = create(&disk, "a");
    write(&*file, 0, 7, WriteSync::Durable).unwrap();
    disk.remove(&path("a")).unwrap();
    assert_eq!(disk.open(&path("a"), OpenMode::Read, UNIT).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(file.read_at(&mut buf(UNIT, 0), 0).unwrap(), UNIT);
    assert_eq!(disk.used_bytes(), PAGE);
    assert_eq!(pages(&disk.power_fail(CrashStyle::NothingUnsynced, 0), "a"), [7]);
    disk.sync_dir(Path::new(DIR)).unwrap();
    assert_eq!(names(&disk.power_fail(CrashStyle::NothingUnsynced, 0)), [""; 0]);
    write(&*file, 0, 8, WriteSync::Durable).unwrap();
    drop(file);
    assert_eq!(disk.used_bytes(), 0);
}

#[test]
fn a_rename_is_atomic_and_replaces() {
    let disk = disk();
    for name in ["old", "new"] {
        write(&*create(&disk, name), 0, name.as_bytes()[0], WriteSync::Durable).unwrap();
    }
    disk.rename(&path("new"), &path("old")).unwrap();
    assert_eq!(pages(&disk, "old"), [b'n']);
    let seen: BTreeSet<(Vec<String>, Vec<u8>)> = CrashStyle::ALL
        .iter()
        .flat_map(|style| (0..20).map(|seed| disk.power_fail(*style, seed)))
        .map(|image| (names(&image), pages(&image, "old")))
        .collect();
    let both = (vec!["new".to_string(), "old".to_string()], vec![b'o']);
    assert_eq!(seen, BTreeSet::from([both, (vec!["old".to_string()], vec![b'n'])]));
    disk.sync_dir(Path::new(DIR)).unwrap();
    assert_eq!(names(&disk.power_fail(CrashStyle::NothingUnsynced, 0)), ["old"]);
}

#[test]
fn lost_renames_never_lose_or_double_a_file() {
    let disk = disk();
    write(&*create(&disk, "a"), 0, 1, WriteSync::Durable).unwrap();
    disk.rename(&path("a"), &path("b")).unwrap();
    disk.rename(&path("b"), &path("c")).unwrap();
    let file = disk.open(&path("a"), OpenMode::CreateNew, UNIT).unwrap();
    write(&*file, 0, 2, WriteSync::Durable).unwrap();
    let seen: BTreeSet<Vec<(String, u8)>> = CrashStyle::ALL
        .iter()
        .flat_map(|style| (0..50).map(|seed| disk.power_fail(*style, seed)))
        .map(|image| names(&image).into_iter().map(|name| (name.clone(), pages(&image, &name)[0])).collect())
        .collect();
    let tree = |files: &[(&str, u8)]| files.iter().map(|(name, byte)| (name.to_string(), *byte)).collect();
    let legal = [&[("a", 1)][..], &[("b", 1)], &[("c", 1)], &[("a", 2), ("b", 1)], &[("a", 2), ("c", 1)]];
    assert_eq!(seen, legal.into_iter().map(tree).collect());
}

#[test]
fn a_file_moved_between_directories_has_one_name() {
    let disk = disk();
    disk.create_dir_all(Path::new("other/deep")).unwrap();
    let from = Path::new("other/deep/x");
    drop(disk.open(from, OpenMode::CreateNew, UNIT).unwrap());
    disk.rename(from, &path("x")).unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    for style in CrashStyle::ALL {
        assert_eq!(disk.power_fail(style, 1).paths(), [path("x")], "{style:?}");
    }
}

#[test]
fn directories_and_listings() {
    let disk = disk();
    disk.create_dir_all(Path::new("db/sub")).unwrap();
    disk.put(Path::new("./db/sub/b"), b"bytes").unwrap();
    disk.put(&path("a"), &[1; 5000]).unwrap();
    let entries = disk.list(Path::new("./db")).unwrap();
    assert_eq!((entries.len(), entries[0].name.as_str(), entries[0].len), (1, "a", 5000));
    assert_eq!(entries[0].allocated, 8192);
    let there = ["db", "./db/sub", "db/a", "", "db/b", "a"].map(|name| disk.exists(Path::new(name)));
    assert_eq!(there, [true, true, true, true, false, false]);
    assert_eq!(disk.list(Path::new("nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.list(Path::new("")).unwrap(), []);
    assert!(disk.open(Path::new("nowhere/a"), OpenMode::CreateNew, UNIT).is_err());
    assert!(disk.rename(&path("a"), Path::new("nowhere/a")).is_err());
    let again = disk.open(&path("a"), OpenMode::CreateNew, UNIT).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    let image = disk.power_fail(CrashStyle::NothingUnsynced, 0);
    assert_eq!(image.contents(Path::new("db/sub/b")).unwrap(), b"bytes");
    assert_eq!(image.fingerprint(), disk.fingerprint());
    let target = tempfile::tempdir().unwrap();
    disk.export(target.path()).unwrap();
    assert_eq!(std::fs::read(target.path().join("db/sub/b")).unwrap(), b"bytes");
}

#[test]
fn released_space_is_lost_or_kept_as_a_whole_and_what_is_written_there_later_needs_it() {
    let disk = disk();
    let file = create(&disk, "a");
    file.write_at(&buf(4 * UNIT, 1), 0, WriteSync::Durable).unwrap();
    file.release(PAGE..3 * PAGE).unwrap();
    assert_eq!((pages(&disk, "a"), disk.used_bytes()), (vec![1, 0, 0, 1], 2 * PAGE));
    write(&*file, 2, 2, WriteSync::Later).unwrap();
    let seen: BTreeSet<Vec<u8>> =
        (0..100).map(|seed| pages(&disk.power_fail(CrashStyle::RandomWrites, seed), "a")).collect();
    assert_eq!(seen, BTreeSet::from([vec![1, 1, 1, 1], vec![1, 0, 0, 1], vec![1, 0, 2, 1]]));
    // A durable write needs what was released before it, and takes no other write along.
    write(&*file, 0, 3, WriteSync::Durable).unwrap();
    assert_eq!(pages(&disk.power_fail(CrashStyle::NothingUnsynced, 0), "a"), [3, 0, 0, 1]);
    file.sync().unwrap();
    assert_eq!(pages(&disk.power_fail(CrashStyle::NothingUnsynced, 0), "a"), [3, 0, 2, 1]);
}
