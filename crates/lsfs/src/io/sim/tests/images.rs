//! Crash styles, traces and images.

use std::collections::BTreeSet;
use std::io::Write as _;

use super::super::rng::SplitMix;
use super::*;

/// A file of four pages of 1, then pages 1..4 overwritten by 2 in one unsynced write, then page 0 by 3.
fn overwritten() -> SimDisk {
    let disk = disk();
    let file = create(&disk, "a");
    file.write_at(&buf(4 * UNIT, 1), 0, WriteSync::Durable).unwrap();
    file.write_at(&buf(3 * UNIT, 2), PAGE, WriteSync::Later).unwrap();
    write(&*file, 0, 3, WriteSync::Later).unwrap();
    disk
}

#[test]
fn sector_styles_do_as_they_say() {
    let disk = overwritten();
    let page = |style, page| sectors(&disk.power_fail(style, 0), "a", page);
    assert_eq!(page(CrashStyle::FirstSectorLost, 1), [1, 2, 2, 2, 2, 2, 2, 2]);
    assert_eq!(page(CrashStyle::FirstSectorLost, 2), [2; 8]);
    assert_eq!(page(CrashStyle::FirstSectorLost, 0), [1, 3, 3, 3, 3, 3, 3, 3]);
    assert_eq!(page(CrashStyle::LastSectorLost, 2), [2; 8]);
    assert_eq!(page(CrashStyle::LastSectorLost, 3), [2, 2, 2, 2, 2, 2, 2, 1]);
    for number in 1..4 {
        assert_eq!(page(CrashStyle::OnlyHeaderSector, number), [2, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(page(CrashStyle::AllButHeaderSector, number), [1, 2, 2, 2, 2, 2, 2, 2]);
    }
}

#[test]
fn random_styles_cover_what_they_should() {
    let disk = overwritten();
    let all = |style| -> BTreeSet<Vec<u8>> {
        (0..300).map(|seed| disk.power_fail(style, seed).contents(&path("a")).unwrap()).collect()
    };
    let by_pages = |images: &BTreeSet<Vec<u8>>| -> BTreeSet<Vec<u8>> {
        images.iter().map(|image| image.chunks(UNIT).map(|page| page[0]).collect()).collect()
    };
    let whole = |bytes: &[[u8; 4]]| bytes.iter().map(|bytes| bytes.to_vec()).collect::<BTreeSet<_>>();
    let writes = all(CrashStyle::RandomWrites);
    assert_eq!(by_pages(&writes), whole(&[[1, 1, 1, 1], [3, 1, 1, 1], [1, 2, 2, 2], [3, 2, 2, 2]]));
    assert_eq!(writes.len(), 4);
    let torn = all(CrashStyle::TornPages);
    assert_eq!((torn.len(), by_pages(&torn).len()), (16, 16));
    assert!(all(CrashStyle::TornSectors).len() > 250);
    // 24 cuts within the first write, 8 within the second, and the whole.
    let prefixes = all(CrashStyle::PrefixOfUnsynced);
    assert_eq!(prefixes.len(), 33);
    for image in &prefixes {
        let survived: Vec<bool> = (8..32).chain(0..8).map(|sector: usize| image[sector * 512] != 1).collect();
        assert!(survived.is_sorted_by(|one, other| one >= other), "{survived:?}");
    }
    let suffixes = all(CrashStyle::SuffixOnly);
    assert_eq!(suffixes.len(), 32);
    for image in &suffixes {
        let survived: Vec<bool> = (8..32).chain(0..8).map(|sector: usize| image[sector * 512] != 1).collect();
        assert!(survived.is_sorted() && !survived[0], "{survived:?}");
    }
}

#[test]
fn an_extension_may_be_lost_or_come_without_its_bytes() {
    let disk = disk();
    let file = create(&disk, "a");
    write(&*file, 0, 1, WriteSync::Durable).unwrap();
    write(&*file, 1, 2, WriteSync::Later).unwrap();
    let seen: BTreeSet<Vec<u8>> =
        (0..50).map(|seed| pages(&disk.power_fail(CrashStyle::RandomWrites, seed), "a")).collect();
    assert_eq!(seen, BTreeSet::from([vec![1], vec![1, 0], vec![1, 2]]));
    assert_eq!(pages(&disk.power_fail(CrashStyle::FirstSectorLost, 0), "a"), [1, 0]);
}

#[test]
fn crash_points_are_the_operations_under_way() {
    let disk = disk();
    let file = create(&disk, "a");
    disk.start_trace();
    write(&*file, 0, 1, WriteSync::Durable).unwrap();
    write(&*file, 1, 2, WriteSync::Later).unwrap();
    assert!(disk.open(&path("a"), OpenMode::CreateNew, UNIT).is_err());
    assert_eq!(disk.trace_len(), 2);
    file.sync().unwrap();
    disk.rename(&path("a"), &path("b")).unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    let trace = disk.stop_trace();
    assert_eq!((trace.len(), trace.is_empty()), (5, false));
    assert_eq!((trace.kind(2), trace.kind(5)), (Some(OpKind::Sync), None));
    assert_eq!(trace.describe(0), "op 0: Write db/a 0..4096 durable");
    let least: Vec<(String, Vec<u8>)> = (0..=5)
        .map(|point| {
            let image = trace.image(point, CrashStyle::NothingUnsynced, 0);
            let name = names(&image).pop().unwrap();
            (name.clone(), pages(&image, &name))
        })
        .collect();
    let expected: [(&str, &[u8]); 6] =
        [("a", &[]), ("a", &[1]), ("a", &[1]), ("a", &[1, 2]), ("a", &[1, 2]), ("b", &[1, 2])];
    assert_eq!(least, expected.map(|(name, bytes)| (name.to_string(), bytes.to_vec())));
    let most = |point| pages(&trace.image(point, CrashStyle::EverythingUnsynced, 0), "a");
    assert_eq!((most(0), most(1)), (vec![1], vec![1, 2]));
    let mut images = trace.images();
    let unsynced: Vec<usize> = (0..=5)
        .map(|point| {
            images.seek(point);
            images.unsynced()
        })
        .collect();
    assert_eq!(unsynced, [1, 1, 1, 1, 1, 0]);
    assert!(!images.advance());
    images.seek(1);
    assert_eq!(images.crash_point(), 1);
    // The power failure that tears the durable write under way.
    assert_eq!(sectors(&trace.image(0, CrashStyle::LastSectorLost, 0), "a", 0), [1, 1, 1, 1, 1, 1, 1, 0]);
}

#[test]
fn what_was_pending_before_the_recording_is_older_than_what_came_in_it() {
    let disk = disk();
    let file = create(&disk, "a");
    file.write_at(&buf(2 * UNIT, 1), 0, WriteSync::Durable).unwrap();
    write(&*file, 0, 2, WriteSync::Later).unwrap();
    disk.start_trace();
    write(&*file, 1, 2, WriteSync::Later).unwrap();
    file.sync().unwrap();
    let trace = disk.stop_trace();
    let cuts: BTreeSet<Vec<u8>> = (0..200)
        .map(|seed| trace.image(1, CrashStyle::PrefixOfUnsynced, seed))
        .map(|image| [sectors(&image, "a", 0), sectors(&image, "a", 1)].concat())
        .collect();
    assert_eq!(cuts.len(), 17);
    assert!(cuts.iter().all(|image| image.is_sorted_by(|one, other| one >= other)), "{cuts:?}");
}

#[test]
fn the_write_at_the_point_of_a_prefix_extends_the_file_or_not() {
    let disk = disk();
    let file = create(&disk, "a");
    file.write_at(&buf(2 * UNIT, 1), 0, WriteSync::Later).unwrap();
    let lens: BTreeSet<(usize, usize)> = (0..200)
        .map(|seed| disk.power_fail(CrashStyle::PrefixOfUnsynced, seed).contents(&path("a")).unwrap())
        .map(|bytes| (bytes.len(), bytes.chunks(512).filter(|sector| sector[0] == 1).count()))
        .collect();
    let expected = [(0, 0), (2 * UNIT, 16)].into_iter().chain((0..16).map(|count| (2 * UNIT, count)));
    assert_eq!(lens, expected.collect());
}

#[test]
fn a_directory_being_created_is_there_or_not() {
    let disk = SimDisk::new(0);
    disk.start_trace();
    disk.create_dir_all(Path::new("a/b/c")).unwrap();
    disk.create_dir_all(Path::new("a/b/c")).unwrap();
    let trace = disk.stop_trace();
    assert_eq!(trace.len(), 1);
    let depths: BTreeSet<usize> = (0..50)
        .map(|seed| {
            let image = trace.image(0, CrashStyle::TornPages, seed);
            ["a", "a/b", "a/b/c"].iter().filter(|dir| image.list(Path::new(dir)).is_ok()).count()
        })
        .collect();
    assert_eq!(depths, BTreeSet::from([0, 1, 2, 3]));
    assert!(trace.image(1, CrashStyle::NothingUnsynced, 0).list(Path::new("a/b/c")).is_ok());
}

#[test]
fn an_image_is_a_disk_of_its_own_and_can_crash_again() {
    let disk = overwritten();
    disk.start_trace();
    let _held = disk.lock(&path("lock")).unwrap();
    write(&*open(&disk, "a"), 2, 4, WriteSync::Durable).unwrap();
    let trace = disk.stop_trace();
    let mut images = trace.images();
    images.seek(trace.len());
    let image = images.image(CrashStyle::EverythingUnsynced, 5);
    assert_eq!(image.op_count(), 0);
    let before = image.fingerprint();
    let _held_again = image.lock(&path("lock")).unwrap();
    image.start_trace();
    let file = open(&image, "a");
    write(&*file, 3, 6, WriteSync::Later).unwrap();
    write(&*file, 0, 6, WriteSync::Durable).unwrap();
    let again = image.stop_trace().image(1, CrashStyle::EverythingUnsynced, 0);
    assert_eq!(pages(&again, "a"), [6, 2, 4, 6]);
    assert_eq!(pages(&image.power_fail(CrashStyle::NothingUnsynced, 0), "a"), [6, 2, 4, 2]);
    // Neither the walk nor the first disk felt it.
    assert_eq!(images.image(CrashStyle::EverythingUnsynced, 5).fingerprint(), before);
    assert_eq!(pages(&disk, "a"), [3, 2, 4, 2]);
}

/// A seeded run over a few files.
fn random_run(seed: u64, steps: usize) -> (SimDisk, Trace) {
    let mut rng = SplitMix::new(seed);
    let disk = disk();
    disk.start_trace();
    for step in 0..steps {
        let name = ["a", "b", "c"][rng.below(3) as usize];
        let other = ["a", "b", "c", "d"][rng.below(4) as usize];
        let byte = (step % 250) as u8 + 1;
        let mode = if disk.contents(&path(name)).is_some() { OpenMode::Write } else { OpenMode::CreateNew };
        let file = disk.open(&path(name), mode, UNIT).unwrap();
        let bytes = buf((1 + rng.below(3) as usize) * UNIT, byte);
        let position = rng.below(12) * PAGE;
        match rng.below(12) {
            0..5 => assert!(file.write_at(&bytes, position, WriteSync::Later).is_ok()),
            5..7 => assert!(file.write_at(&bytes, position, WriteSync::Durable).is_ok()),
            7 => file.sync().unwrap(),
            8 => disk.sync_dir(Path::new(DIR)).unwrap(),
            9 => file.set_len(rng.below(16) * PAGE).unwrap(),
            10 => file.allocate(position).unwrap(),
            _ if rng.coin() => disk.rename(&path(name), &path(other)).unwrap(),
            _ => disk.remove(&path(name)).unwrap(),
        }
    }
    let trace = disk.stop_trace();
    (disk, trace)
}

#[test]
fn the_same_seeds_give_the_same_images_however_they_are_made() {
    for seed in 0..10 {
        let ((_, one), (_, two)) = (random_run(seed, 60), random_run(seed, 60));
        let mut images = one.images();
        let mut different = BTreeSet::new();
        loop {
            for style in CrashStyle::ALL {
                let image = images.image(style, seed);
                let again = two.image(images.crash_point(), style, seed);
                assert_eq!(image.fingerprint(), again.fingerprint());
                different.insert(image.fingerprint());
            }
            if !images.advance() {
                break;
            }
        }
        assert!(different.len() > 50);
    }
}

#[test]
fn the_extreme_images_agree_with_the_live_disk() {
    let disk = overwritten();
    let file = create(&disk, "b");
    file.write_at(&buf(5 * UNIT, 8), PAGE, WriteSync::Later).unwrap();
    file.set_len(2 * PAGE).unwrap();
    file.allocate(4 * PAGE).unwrap();
    disk.rename(&path("b"), &path("c")).unwrap();
    assert_eq!(disk.power_fail(CrashStyle::EverythingUnsynced, 0).fingerprint(), disk.fingerprint());
    for name in ["a", "c"] {
        open(&disk, name).sync().unwrap();
    }
    disk.sync_dir(Path::new(DIR)).unwrap();
    for style in CrashStyle::ALL {
        assert_eq!(disk.power_fail(style, 7).fingerprint(), disk.fingerprint(), "{style:?}");
    }
}

#[test]
fn random_runs_lose_nothing_if_everything_survives_and_never_invent_bytes() {
    for seed in 0..60 {
        let (disk, trace) = random_run(seed, 80);
        let image = trace.image(trace.len(), CrashStyle::EverythingUnsynced, 0);
        assert_eq!(image.fingerprint(), disk.fingerprint(), "seed {seed}");
        let mut images = trace.images();
        loop {
            for style in CrashStyle::ALL {
                let image = images.image(style, seed);
                for name in names(&image) {
                    let bytes = image.contents(&path(&name)).unwrap();
                    let whole = |sector: &[u8]| sector.iter().all(|byte| *byte == sector[0]);
                    assert!(bytes.chunks(512).all(whole), "a sector is never torn");
                }
            }
            if !images.advance() {
                break;
            }
        }
    }
}

/// An oracle of its own: every sector of an image holds its last durable value or one written since.
#[test]
fn every_sector_of_an_image_is_one_that_was_written() {
    for seed in 0..40 {
        let mut rng = SplitMix::new(seed);
        let disk = disk();
        let file = create(&disk, "a");
        file.write_at(&buf(8 * UNIT, 255), 0, WriteSync::Durable).unwrap();
        disk.start_trace();
        // Of each sector the values it may have, oldest first; and that for each crash point.
        let mut current = vec![vec![255]; 64];
        let mut allowed = Vec::new();
        for step in 0..40u8 {
            if rng.below(6) == 0 {
                // While a sync is under way nothing is certain that was not before.
                allowed.push(current.clone());
                file.sync().unwrap();
                current.iter_mut().for_each(|values| drop(values.drain(..values.len() - 1)));
                continue;
            }
            let (page, count) = (rng.below(7), 1 + rng.below(2));
            let sync = if rng.coin() { WriteSync::Durable } else { WriteSync::Later };
            file.write_at(&buf(count as usize * UNIT, step), page * PAGE, sync).unwrap();
            let touched = page as usize * 8..(page + count) as usize * 8;
            current[touched.clone()].iter_mut().for_each(|values| values.push(step));
            allowed.push(current.clone());
            if sync == WriteSync::Durable {
                current[touched].fill(vec![step]);
            }
        }
        let trace = disk.stop_trace();
        let mut images = trace.images();
        for allowed in &allowed {
            for style in CrashStyle::ALL {
                let bytes = images.image(style, seed).contents(&path("a")).unwrap();
                for (at, sector) in bytes.chunks(512).enumerate() {
                    let fine = allowed[at].contains(&sector[0]);
                    assert!(
                        fine,
                        "seed {seed} {style:?} {}: sector {at}",
                        trace.describe(images.crash_point())
                    );
                }
            }
            images.advance();
        }
    }
}

/// `cargo test --release -- --ignored --nocapture image_speed`
#[test]
#[ignore = "a measurement"]
fn image_speed() {
    let disk = disk();
    for name in ["meta-a", "meta-b"] {
        write(&*create(&disk, name), 0, 1, WriteSync::Durable).unwrap();
    }
    let files: Vec<_> = ["1", "2", "3", "4"].iter().map(|name| create(&disk, name)).collect();
    for file in &files {
        file.write_at(&buf(15 * UNIT, 1), 0, WriteSync::Durable).unwrap();
    }
    disk.start_trace();
    for step in 0..1000u64 {
        let sync = if step % 4 == 3 { WriteSync::Durable } else { WriteSync::Later };
        write(&*files[3], step % 15, step as u8, sync).unwrap();
        if step % 40 == 39 {
            files[3].sync().unwrap();
        }
    }
    let trace = disk.stop_trace();
    for style in CrashStyle::ALL {
        let start = std::time::Instant::now();
        let mut images = trace.images();
        let mut made = 0;
        loop {
            for seed in 0..20 {
                std::hint::black_box(images.image(style, seed));
                made += 1;
            }
            if !images.advance() {
                break;
            }
        }
        let each = start.elapsed().as_secs_f64() * 1e6 / f64::from(made);
        writeln!(io::stderr(), "{style:?}: {each:.2} us").unwrap();
    }
}

#[test]
fn a_kill_leaves_what_programs_saw_and_makes_nothing_durable() {
    let disk = disk();
    let file = create(&disk, "a");
    write(&*file, 0, 1, WriteSync::Durable).unwrap();
    disk.start_trace();
    write(&*file, 1, 2, WriteSync::Later).unwrap();
    file.write_at(&buf(2 * UNIT, 3), 2 * PAGE, WriteSync::Durable).unwrap();
    create(&disk, "b");
    let trace = disk.stop_trace();
    let mut images = trace.images();
    images.seek(1);
    let mut reached = BTreeSet::new();
    for seed in 0..200 {
        let killed = images.killed(seed);
        let seen = pages(&killed, "a");
        assert_eq!(seen[..2], [1, 2], "seed {seed}");
        let sectors = killed.contents(&path("a")).unwrap().len() / 512;
        reached.insert(sectors);
        // Nobody waited for the end of the durable write: only a sync makes it durable.
        assert_eq!(pages(&killed.power_fail(CrashStyle::NothingUnsynced, 0), "a"), [1]);
        open(&killed, "a").sync().unwrap();
        let synced = killed.power_fail(CrashStyle::NothingUnsynced, 0);
        assert_eq!(pages(&synced, "a"), seen);
    }
    assert!(reached.len() > 10 && reached.contains(&16) && reached.contains(&32), "{reached:?}");
    images.seek(3);
    let killed = images.killed(0);
    assert_eq!(names(&killed), ["a", "b"]);
    assert_eq!(names(&killed.power_fail(CrashStyle::NothingUnsynced, 0)), ["a"]);
    killed.sync_dir(Path::new(DIR)).unwrap();
    assert_eq!(names(&killed.power_fail(CrashStyle::NothingUnsynced, 0)), ["a", "b"]);
}
