//! Memory that direct I/O accepts.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every [`AlignedBuf`] in bytes; enough for every device we know.
pub const MEMORY_ALIGNMENT: usize = 4096;

/// Buffers of this size and more ask for pages of this size: a transfer then pins and describes one page instead of
/// 512, and copying meets fewer address translations.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// An owned, zero-initialised byte buffer whose address is a multiple of [`MEMORY_ALIGNMENT`].
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer owns its memory alone, like a `Box<[u8]>`.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared references only read.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Allocates `len` zero bytes.
    ///
    /// # Panics
    /// If `len` is not a multiple of 512: such a buffer could not be transferred.
    pub fn zeroed(len: usize) -> Self {
        assert!(len.is_multiple_of(super::SECTOR_BYTES), "aligned buffer of {len} bytes");
        if len == 0 {
            return AlignedBuf { start: NonNull::dangling(), len };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout has a non-zero size.
        let start = unsafe { alloc(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        if len >= HUGE_PAGE_BYTES {
            let whole_pages = len / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
            // SAFETY: the range is ours and the advice changes no byte of it.
            let advised = unsafe {
                rustix::mm::madvise(start.as_ptr().cast(), whole_pages, rustix::mm::Advice::LinuxHugepage)
            };
            // A system without huge pages refuses, which costs speed only.
            if let Err(error) = advised {
                tracing::trace!(%error, "no huge pages for a buffer");
            }
        }
        // SAFETY: `len` bytes from `start` on were just allocated.
        unsafe { start.as_ptr().write_bytes(0, len) };
        AlignedBuf { start, len }
    }

    /// A larger buffer with the same first bytes.
    pub fn grown(&self, len: usize) -> Self {
        let mut grown = AlignedBuf::zeroed(len);
        grown[..self.len].copy_from_slice(self);
        grown
    }

    fn layout(len: usize) -> Layout {
        let alignment = if len >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { MEMORY_ALIGNMENT };
        Layout::from_size_align(len, alignment).expect("buffer length fits the address space")
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated in `zeroed` with this very layout.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) }
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `len` initialised bytes that we own.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_zeroed_and_grows() {
        let mut buf = AlignedBuf::zeroed(1024);
        assert_eq!(buf.as_ptr() as usize % MEMORY_ALIGNMENT, 0);
        assert!(buf.iter().all(|&byte| byte == 0));
        buf[1023] = 9;
        let grown = buf.grown(4096);
        assert_eq!((grown.len(), grown[1023], grown[1024]), (4096, 9, 0));
        assert_eq!(AlignedBuf::zeroed(0).len(), 0);
    }
}
