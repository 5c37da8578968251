//! The rules of the simulated disk, one test each.

mod disk;
mod durability;
mod faults;
mod images;
mod maps;

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::io::{AlignedBuf, Disk, File, OpenMode, WriteSync};

const UNIT: usize = 4096;
const PAGE: u64 = UNIT as u64;
const DIR: &str = "db";

fn path(name: &str) -> std::path::PathBuf {
    Path::new(DIR).join(name)
}

fn buf(len: usize, byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    buf.fill(byte);
    buf
}

fn disk() -> SimDisk {
    let disk = SimDisk::new(1);
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk
}

fn create(disk: &SimDisk, name: &str) -> Arc<dyn File> {
    let file = disk.open(&path(name), OpenMode::CreateNew, UNIT).unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    file
}

fn open(disk: &SimDisk, name: &str) -> Arc<dyn File> {
    disk.open(&path(name), OpenMode::Write, UNIT).unwrap()
}

fn write(file: &dyn File, page: u64, byte: u8, sync: WriteSync) -> io::Result<usize> {
    file.write_at(&buf(UNIT, byte), page * PAGE, sync)
}

/// The first byte of each page.
fn pages(disk: &SimDisk, name: &str) -> Vec<u8> {
    disk.contents(&path(name)).unwrap().chunks(UNIT).map(|page| page[0]).collect()
}

/// The first byte of each sector of a page.
fn sectors(disk: &SimDisk, name: &str, page: usize) -> Vec<u8> {
    disk.contents(&path(name)).unwrap()[page * UNIT..][..UNIT].chunks(512).map(|sector| sector[0]).collect()
}

fn names(disk: &SimDisk) -> Vec<String> {
    let mut names: Vec<_> = disk.list(Path::new(DIR)).unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    names
}

fn is_raw_error(error: &io::Error, code: i32) -> bool {
    error.raw_os_error() == Some(code)
}
