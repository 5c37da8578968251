//! The dump speaks as docs/format.md does, of every file and of any bytes.

mod support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use lsfs::dump::{LAYOUTS, Part, dump};
use lsfs::io::SimDisk;
use lsfs::{Env, RecordStream, StreamOptions};
use support::{Choices, sim_env};

fn document() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/format.md");
    std::fs::read_to_string(path).unwrap()
}

/// Offset, bytes and name of each row of the first table behind a heading; rows without a fixed place are left out.
fn rows(document: &str, heading: &str) -> Vec<(usize, usize, String)> {
    let start = document
        .find(&format!("\n{heading}"))
        .unwrap_or_else(|| panic!("{heading:?} is not in the document"));
    let lines = document[start + 1..].lines().skip_while(|line| !line.starts_with("| offset"));
    let cells =
        lines.skip(2).take_while(|line| line.starts_with('|')).map(|line| line.split('|').map(str::trim));
    cells
        .filter_map(|mut cells| {
            let (offset, bytes, name) = (cells.nth(1)?, cells.next()?, cells.next()?);
            Some((offset.parse().ok()?, bytes.parse().ok()?, name.to_string()))
        })
        .collect()
}

#[test]
fn its_tables_are_those_of_the_document() {
    let document = document();
    for layout in LAYOUTS {
        let fields: Vec<_> =
            layout.fields.iter().map(|field| (field.offset, field.bytes, field.name.to_string())).collect();
        assert_eq!(fields, rows(&document, layout.heading), "{}", layout.heading);
    }
}

fn parts(env: &Env, path: &Path, block: Option<u32>) -> Vec<Part> {
    let mut parts = Vec::new();
    dump(env, path, block, |part| {
        parts.push(part);
        ControlFlow::Continue(())
    })
    .unwrap();
    parts
}

fn recorded() -> SimDisk {
    let disk = SimDisk::new(1);
    let options = StreamOptions {
        block_bytes: 512,
        segment_bytes: 512 * 24,
        in_flight_bytes: 2048,
        ..StreamOptions::default()
    };
    let stream = RecordStream::open_in(sim_env(&disk, 1), "/stream", options).unwrap();
    for index in 0..60u64 {
        stream.append(7, &vec![index as u8; (index * 31 % 900) as usize]).unwrap();
    }
    stream.close().unwrap();
    disk.restart()
}

#[test]
fn every_byte_of_a_block_file_is_shown_once() {
    let disk = recorded();
    let env = sim_env(&disk, 2);
    for path in disk.paths().into_iter().filter(|path| path.extension().is_some()) {
        let len = disk.contents(&path).unwrap().len() as u64;
        let parts = parts(&env, &path, None);
        let mut end = 0;
        for part in &parts {
            // The rest of block 0, behind the file header, is zero and has no fields.
            let is_behind_header = end == 80 && part.position == 512;
            assert!(
                part.position == end || is_behind_header,
                "{}: {part:?} behind byte {end}",
                path.display()
            );
            end = part.position + part.bytes;
            assert!(
                !part.notes.iter().any(|note| note.contains("BAD") || note.contains("damaged")),
                "{part:?}"
            );
        }
        assert_eq!(end, len, "{}", path.display());
    }
    let manifest = parts(&env, Path::new("/stream/manifest.a"), None);
    assert!(manifest.iter().any(|part| part.name == "manifest entry"));
}

#[test]
fn every_byte_of_other_files_is_shown_once() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1");
    let wanted = ["idx", "stats", "sparse", "log", "seg"];
    let mut seen = std::collections::BTreeSet::new();
    for directory in ["records-indexed", "mapped-rewritten", "mapped-closed", "set-closed", "set-reopened"] {
        for entry in std::fs::read_dir(golden.join(directory)).unwrap() {
            let path = entry.unwrap().path();
            let Some(kind) = wanted.iter().find(|kind| path.extension().is_some_and(|end| end == **kind))
            else {
                continue;
            };
            seen.insert(kind);
            let disk = SimDisk::new(1);
            let there = Path::new("/x").join(path.file_name().unwrap());
            let bytes = std::fs::read(&path).unwrap();
            disk.put(&there, &bytes).unwrap();
            let parts = parts(&sim_env(&disk, 1), &there, None);
            let mut end = 0;
            for part in &parts {
                // The rest of block 0, behind the file header, is zero and has no fields.
                let is_behind_header = end == 80 && [512, 4096].contains(&part.position);
                assert!(part.position == end || is_behind_header, "{}: {part:?}", path.display());
                end = part.position + part.bytes;
                let is_good = |note: &String| {
                    !["BAD", "not believed", "damaged", "cut short"].iter().any(|bad| note.contains(bad))
                };
                assert!(part.notes.iter().all(is_good), "{}: {part:?}", path.display());
            }
            assert_eq!(end, bytes.len() as u64, "{}", path.display());
        }
    }
    assert_eq!(seen.len(), wanted.len());
}

#[test]
fn a_damaged_entry_of_a_set_is_shown_as_such() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1/set-closed/data-00001.seg");
    let bytes = std::fs::read(golden).unwrap();
    let path = Path::new("/x/data-00001.seg");
    let shown = |bytes: &[u8]| {
        let disk = SimDisk::new(1);
        disk.put(path, bytes).unwrap();
        parts(&sim_env(&disk, 1), path, None)
    };
    let whole = shown(&bytes);
    assert!(whole.iter().any(|part| part.name == "footer"), "{whole:?}");
    let body = whole.iter().find(|part| part.name.ends_with(": body") && part.bytes > 1).unwrap();
    let mut damaged = bytes.clone();
    damaged[body.position as usize] ^= 1;
    let part = shown(&damaged).into_iter().find(|part| part.name == body.name).unwrap();
    assert!(part.notes.iter().any(|note| note.contains("damaged")), "{part:?}");
    let mut headless = bytes.clone();
    headless[4096] ^= 1;
    let last = shown(&headless).pop().unwrap();
    assert!(last.name == "no frame" && last.position == 4096, "{last:?}");
    let cut = shown(&bytes[..body.position as usize + 1]).pop().unwrap();
    assert!(cut.notes.iter().any(|note| note.contains("cut short")), "{cut:?}");
}

#[test]
fn one_block_is_what_all_of_the_file_shows_of_it() {
    let disk = recorded();
    let env = sim_env(&disk, 2);
    let path =
        disk.paths().into_iter().find(|path| path.extension().is_some_and(|end| end == "seg")).unwrap();
    let all = parts(&env, &path, None);
    for block in 1..10u32 {
        let range = u64::from(block) * 512..u64::from(block + 1) * 512;
        let of_block: Vec<_> = all.iter().filter(|part| range.contains(&part.position)).cloned().collect();
        assert_eq!(parts(&env, &path, Some(block)), of_block, "block {block}");
    }
    assert!(dump(&env, &path, Some(100_000), |_| ControlFlow::Continue(())).is_err());
}

#[test]
fn damaged_and_foreign_bytes_are_shown() {
    let disk = recorded();
    let env = sim_env(&disk, 2);
    let path =
        disk.paths().into_iter().find(|path| path.extension().is_some_and(|end| end == "seg")).unwrap();
    let sound = disk.contents(&path).unwrap();
    let mut choices = Choices::new(7);
    for round in 0..500 {
        let mut bytes = sound.clone();
        for _ in 0..1 + choices.below(20) {
            let at = choices.below(bytes.len().min(6000) as u64) as usize;
            bytes[at] = choices.next() as u8;
        }
        bytes.truncate(choices.below(bytes.len() as u64 + 1) as usize);
        for name in [
            "/x/some.seg",
            "/x/live",
            "/x/some.idx",
            "/x/state.a",
            "/x/some.stats",
            "/x/some.sparse",
            "/x/some.log",
        ] {
            disk.put(Path::new(name), &bytes).unwrap();
            let shown = parts(&env, Path::new(name), None);
            assert!(bytes.is_empty() || !shown.is_empty(), "round {round}, {name}");
        }
    }
    let mut bytes = sound;
    bytes[512 + 60] ^= 1;
    disk.put(Path::new("/x/flipped.seg"), &bytes).unwrap();
    let shown = parts(&env, Path::new("/x/flipped.seg"), Some(1));
    let said: Vec<_> = shown.iter().flat_map(|part| &part.notes).collect();
    assert!(said.iter().any(|note| note.contains("damaged: slice checksum: stored")), "{said:?}");
}
