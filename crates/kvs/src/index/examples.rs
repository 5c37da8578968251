//! The pages that docs/format.md shows.

use super::directory::Directory;
use super::file::{PageImage, encode_header};
use super::page::{ExpectedPage, PAGE_BYTES, Page};

const FILE_ID: u64 = 0x1122_3344_5566_7788;
const HASH: u64 = 0xB123_4567_89AB_CDEF;
const ADDRESS: u64 = 2 << 27 | 4096;

/// The file header.
pub(crate) fn header_image() -> Vec<u8> {
    let mut image = vec![0; PAGE_BYTES];
    encode_header(&mut image, FILE_ID);
    image[..24].to_vec()
}

/// A page of slots, up to its first slot.
pub(crate) fn page_image() -> Vec<u8> {
    let mut page = Page::empty(3, 0xA000_0000);
    page.insert(HASH, ADDRESS);
    let mut image = vec![0; PAGE_BYTES];
    page.encode(&mut image, FILE_ID, 5, 4);
    let expected =
        ExpectedPage { file_id: FILE_ID, place: 5, depth: 3, prefix: 0xA000_0000, generation_max: 4 };
    assert_eq!(Page::decode(&image, &expected), Ok(page));
    assert!(image[40..].iter().all(|&byte| byte == 0));
    image[..40].to_vec()
}

/// A page of the directory, up to its last entry.
pub(crate) fn directory_image() -> Vec<u8> {
    let mut directory = Directory::of_one(5);
    directory.split(0, 0, 7);
    let mut image = vec![0; PAGE_BYTES];
    for chunk in directory.chunks() {
        chunk.encode(&mut image, FILE_ID, 6, 4);
    }
    assert!(image[40..].iter().all(|&byte| byte == 0));
    image[..40].to_vec()
}
