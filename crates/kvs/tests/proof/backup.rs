//! A backup whose power fails, or whose disk does: it is whole, or nobody can open it.

use std::path::Path;

use kvs::{Error, KvReader, KvStore};
use lsfs::io::{CrashStyle, DiskFault, FaultKind, SimDisk};

use crate::support::{Choices, budget, sim_env};
use crate::{DIR, Model, buffered, contents, difference, expect, key, options};

const KEYS: u64 = 30;
const BACKUP: &str = "/backup";

/// A store with stale values, removes and several segments.
fn prepare(disk: &SimDisk, seed: u64) -> (KvStore, Model) {
    let store = KvStore::open_with(DIR, options(sim_env(disk, seed))).unwrap();
    let (mut choices, mut model) = (Choices::new(seed), Model::new());
    for tag in 0..120u64 {
        let key = key(choices.below(KEYS));
        if choices.below(4) == 0 {
            buffered(&store).delete(&key).unwrap();
            model.remove(&key);
        } else {
            let value = vec![tag as u8; choices.below(1_500) as usize];
            buffered(&store).put(&key, &value).unwrap();
            model.insert(key, value);
        }
    }
    store.sync().unwrap();
    (store, model)
}

/// What can be opened at the backup's place; `None` if nothing can.
fn backup_of(disk: &SimDisk, seed: u64, context: &str) -> Option<Model> {
    match KvReader::open_with(BACKUP, options(sim_env(disk, seed))) {
        Err(Error::NotAStore { .. }) => {
            let opened = KvStore::open_with(
                BACKUP,
                kvs::Options { create: false, ..options(sim_env(disk, seed + 1)) },
            );
            assert!(matches!(opened, Err(Error::NotAStore { .. })), "{context}: {opened:?}");
            None
        }
        Err(error) => panic!("{context}: {error}"),
        Ok(_) => {
            let store = KvStore::open_with(BACKUP, options(sim_env(disk, seed + 2))).unwrap();
            Some(contents(&store, KEYS).unwrap_or_else(|error| panic!("{context}: {error}")))
        }
    }
}

#[test]
fn a_backup_that_power_fails_is_whole_or_none() {
    let wanted = budget("KVS_BACKUP_IMAGES", 600);
    let (mut images, mut whole, mut seed) = (0, 0, budget("KVS_BACKUP_SEED", 1));
    while images < wanted {
        let disk = SimDisk::new(seed);
        let (store, model) = prepare(&disk, seed);
        disk.start_trace();
        let reader = KvReader::open_with(DIR, options(sim_env(&disk, seed + 500))).unwrap();
        match seed % 2 {
            0 => store.backup(BACKUP).unwrap(),
            _ => reader.backup(BACKUP).unwrap(),
        };
        let end = disk.trace_len();
        let trace = disk.stop_trace();
        assert_eq!(backup_of(&disk, seed + 900, "without a crash").as_ref(), Some(&model));
        let mut choices = Choices::new(seed);
        let mut crash_images = trace.images();
        loop {
            let point = crash_images.crash_point();
            for style in CrashStyle::ALL {
                if choices.below(8) > 0 && point < end {
                    continue;
                }
                let image = crash_images.image(style, choices.next());
                let context = format!("seed {seed}, {}, {style:?}", trace.describe(point));
                let found = backup_of(&image, choices.next(), &context);
                if let Some(found) = &found {
                    assert!(*found == model, "{context}: {}", difference(found, &model));
                    whole += 1;
                }
                assert!(found.is_some() || point < end, "{context}: it had returned");
                // The store itself is as it was.
                let store = KvStore::open_with(DIR, options(sim_env(&image, choices.next())))
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                expect(&store, &model, KEYS, &context);
                images += 1;
            }
            if !crash_images.advance() {
                break;
            }
        }
        seed += 1;
    }
    eprintln!("{images} crash images, {whole} whole backups");
    assert!(whole > 0 && whole < images);
}

#[test]
fn a_fault_in_a_backup_is_told() {
    let disk = SimDisk::new(7);
    let (_, model) = prepare(&disk, 7);
    let first = disk.op_count();
    let backup = |disk: &SimDisk| KvReader::open_with(DIR, options(sim_env(disk, 77)))?.backup(BACKUP);
    let before = disk.restart();
    let operations = {
        let disk = before.power_fail(CrashStyle::EverythingUnsynced, 0);
        backup(&disk).unwrap();
        disk.op_count()
    };
    let (mut failed, mut succeeded) = (0, 0);
    for kind in [FaultKind::Eio, FaultKind::Enospc, FaultKind::SyncError] {
        for at in (0..operations.max(first)).step_by(budget("KVS_FAULT_STEP", 2) as usize) {
            let disk = before.power_fail(CrashStyle::EverythingUnsynced, 0);
            disk.inject(DiskFault::at_op(disk.op_count() + at, kind));
            let result = backup(&disk);
            if disk.faults_fired() == 0 {
                break;
            }
            disk.clear_faults();
            let context = format!("{kind:?} at {at}: {result:?}");
            let found = backup_of(&disk.restart(), 99, &context);
            match result {
                Ok(_) => {
                    assert_eq!(found.as_ref(), Some(&model), "{context}");
                    succeeded += 1;
                }
                Err(_) => {
                    // The last step may have failed behind the removal of the mark: then the copy is whole.
                    assert!(found.is_none() || found.as_ref() == Some(&model), "{context}");
                    failed += 1;
                }
            }
            assert!(disk.paths().iter().any(|path| path.starts_with(Path::new(DIR))));
        }
    }
    eprintln!("{failed} backups failed, {succeeded} did not");
    assert!(failed > 30, "{failed}");
}
