//! Settings of a segment set.

use std::fmt;
use std::sync::Arc;

use crate::codec::{FRAME_BODY_BYTES_MAX, FrameLayout};
use crate::error::{Error, Result};
use crate::write_path::space::{READY_PART, SpaceOptions, SpacePolicy};

/// What a set promises. Fixed when it is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetKind {
    /// What was synced survives power failures.
    #[default]
    Durable,
    /// Entries are never synced: after a crash any of them may be gone, but none is ever wrong. Bytes that do not
    /// verify are [`Error::Gone`], not corruption.
    Cache,
}

/// When an append returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When the entry is on the medium. In a [`SetKind::Cache`] the same as `Buffer`.
    #[default]
    Sync,
    /// At once: the entry may still be in the memory of this process, is handed to the system within 100 ms or 1 MiB,
    /// and becomes durable with the next synced append, `sync`, seal or close.
    Buffer,
}

/// Makes the bytes that go into the footer of the segment with this number, when it is sealed.
///
/// It is called while appends wait, after the segment's last entry was appended; it must not append to the set.
pub type FooterHook = Arc<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// Settings of a segment set. Those marked *fixed* are kept from its creation on.
#[derive(Clone)]
pub struct SetOptions {
    /// What the set promises. Fixed.
    pub kind: SetKind,
    /// Largest body of an entry in bytes, 4096 to 1 GiB; also limits what a footer carries. Fixed per segment.
    pub body_limit_bytes: u32,
    /// How frames lie. `Packed` saves 11 bytes of each entry below 1 KiB, and up to 4095 of one from 64 KiB on; to look at the
    /// start of one below 1 KiB then takes all of it. Programs before format version 2 refuse such segments. Fixed per
    /// segment.
    pub frame_layout: FrameLayout,
    /// Segments grow up to this size, from half a MiB in proportion to the live bytes; at most 2 GiB.
    pub segment_bytes: u64,
    /// A write takes at most so many bytes, but for a batch that is larger by itself: how far recovery looks ahead.
    /// Fixed per segment.
    pub in_flight_bytes: usize,
    /// Memory for recent entries, in bytes.
    pub cache_bytes: usize,
    /// How space is made ready.
    pub space: SpacePolicy,
    /// A new segment, and space that is made ready, take at most this part of the bytes in use (and 1 MiB): 4 is a quarter.
    /// An owner that compacts gives space back by segment, so the greater, the less it has to keep.
    /// Where entries have 2 KiB and more on average, it is a sixteenth at least.
    pub ready_part: u64,
    /// Whether spare segments are made ready in the background; off for a program that opens, writes a little and ends.
    pub spares: bool,
    /// Whether a missing set is created.
    pub create: bool,
    /// What goes into the footers, if anything.
    pub footer: Option<FooterHook>,
}

impl Default for SetOptions {
    fn default() -> Self {
        SetOptions {
            kind: SetKind::default(),
            body_limit_bytes: 256 << 20,
            frame_layout: FrameLayout::default(),
            segment_bytes: 64 << 20,
            in_flight_bytes: 2 << 20,
            cache_bytes: 4 << 20,
            space: SpacePolicy::default(),
            ready_part: READY_PART,
            spares: true,
            create: true,
            footer: None,
        }
    }
}

impl fmt::Debug for SetOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetOptions")
            .field("kind", &self.kind)
            .field("body_limit_bytes", &self.body_limit_bytes)
            .field("frame_layout", &self.frame_layout)
            .field("segment_bytes", &self.segment_bytes)
            .field("in_flight_bytes", &self.in_flight_bytes)
            .field("cache_bytes", &self.cache_bytes)
            .field("space", &self.space)
            .field("ready_part", &self.ready_part)
            .field("spares", &self.spares)
            .field("create", &self.create)
            .field("footer", &self.footer.is_some())
            .finish()
    }
}

/// The unit of I/O and of the file header's block.
pub(crate) const PAGE_BYTES: usize = 4096;
/// The smallest segment: the header's page, and some.
const SEGMENT_BYTES_MIN: u64 = 8 * PAGE_BYTES as u64;
/// The largest segment and the largest batch: with a footer behind it, positions still fit 32 bits.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 2 << 30;

impl SetOptions {
    /// What spare segments need to know.
    pub(crate) fn space(&self) -> SpaceOptions {
        let SetOptions { segment_bytes, space: policy, ready_part, .. } = *self;
        SpaceOptions { block_bytes: PAGE_BYTES, segment_bytes, policy, ready_part }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let within = |option, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            let expected = format!("from {least} to {most} bytes");
            Err(Error::InvalidOption { option, value: value.to_string(), expected })
        };
        let page = PAGE_BYTES as u64;
        within("body_limit_bytes", self.body_limit_bytes.into(), page, FRAME_BODY_BYTES_MAX.into())?;
        within("segment_bytes", self.segment_bytes, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)?;
        within("in_flight_bytes", self.in_flight_bytes as u64, 2 * page, 1 << 30)?;
        if self.ready_part == 0 {
            return Err(Error::InvalidOption {
                option: "ready_part",
                value: self.ready_part.to_string(),
                expected: "at least 1".to_string(),
            });
        }
        Ok(())
    }
}
