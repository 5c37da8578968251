//! Commands of a stretch of the log by the first bits of the hash of their keys, as they lie in the file.
//!
//! An open takes what is there for millions of commands, and most of them are never asked for before they are settled. So
//! nothing is unpacked: a look-up searches the bytes.

use std::ops::Range;
use std::sync::Arc;

use lsfs::io::AlignedBuf;

use super::{PAGE_BYTES, PREFIX_BITS, Spot, prefix_of, u32_at};
use crate::segments::POSITION_MAX;

/// Bytes of a span.
const SPAN_BYTES: usize = 12;
/// Bytes of the end of a bucket.
const END_BYTES: usize = 4;
/// Commands that a bucket has on average, or up to twice as many.
const BUCKET_COMMANDS: usize = 128;
/// More buckets would leave nothing to sort by.
const BUCKET_BITS_MAX: u32 = 16;
/// A command is read as a word of so many bytes, and more are there behind the last one.
const WORD_BYTES: usize = 8;

/// Bytes in memory: all of a buffer, or a part of one that others share.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) bytes: Arc<AlignedBuf>,
    /// Where the spans begin.
    pub(super) start: usize,
    /// Behind the last command. [`WORD_BYTES`] follow that belong to the buffer.
    pub(super) end: usize,
}

/// A part of a segment that has commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    segment: u32,
    /// Position of the first command.
    from: u32,
    /// From there to the last one.
    len: u32,
    /// Where it ends when offsets count through all spans.
    end: u64,
    /// What lies in a segment that is gone says nothing.
    is_gone: bool,
}

/// How commands are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    bucket_bits: u32,
    offset_bytes: usize,
}

/// The commands of a stretch of the log.
#[derive(Debug)]
pub(crate) struct Part {
    image: Image,
    spans: Vec<Span>,
    shape: Shape,
    count: usize,
    /// Nothing is left of those from here on.
    left: usize,
    /// A bit for each command that is settled.
    settled: Vec<u64>,
}

impl Shape {
    fn new(bucket_bits: u32, spans: &[Span]) -> Shape {
        let total = spans.last().map_or(0, |span| span.end);
        Shape { bucket_bits, offset_bytes: (u64::BITS - total.leading_zeros()).div_ceil(u8::BITS) as usize }
    }

    /// For so many commands in these spans.
    fn of(count: usize, spans: &[Span]) -> Shape {
        let bits = (count / BUCKET_COMMANDS).checked_ilog2().unwrap_or(0).min(BUCKET_BITS_MAX);
        let shape = Shape::new(bits, spans);
        // Long offsets leave a word less room for the rest of the prefix.
        let room_bits = 8 * WORD_BYTES.saturating_sub(shape.offset_bytes) as u32;
        Shape { bucket_bits: bits.max(PREFIX_BITS.saturating_sub(room_bits)), ..shape }
    }

    fn buckets(&self) -> usize {
        1 << self.bucket_bits
    }

    fn rest_bits(&self) -> u32 {
        PREFIX_BITS - self.bucket_bits
    }

    fn command_bytes(&self) -> usize {
        self.rest_bits().div_ceil(u8::BITS) as usize + self.offset_bytes
    }

    fn bucket(&self, prefix: u32) -> usize {
        (prefix >> self.rest_bits()) as usize
    }

    /// The least that a command with this prefix, in its bucket, is as a word.
    fn first_word(&self, prefix: u32) -> u64 {
        let rest = prefix & ((1 << self.rest_bits()) - 1);
        u64::from(rest) << (8 * self.offset_bytes as u32)
    }
}

fn spans_of(spots: &[Spot]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for &Spot { segment, position, .. } in spots {
        match spans.last_mut() {
            Some(span) if span.segment == segment => {
                let len = position - span.from;
                span.end += u64::from(len - span.len);
                span.len = len;
            }
            last => {
                let end = last.map_or(0, |span| span.end) + 1;
                spans.push(Span { segment, from: position, len: 0, end, is_gone: false });
            }
        }
    }
    spans
}

impl Part {
    /// Of commands in the order of the log.
    pub(crate) fn new(spots: &[Spot]) -> Part {
        let spans = spans_of(spots);
        let shape = Shape::of(spots.len(), &spans);
        let mut commands: Vec<(u32, u64)> = Vec::with_capacity(spots.len());
        let mut at = 0;
        for &Spot { prefix, segment, position } in spots {
            if spans[at].segment != segment {
                at += 1;
            }
            let Span { from, len, end, .. } = spans[at];
            commands.push((prefix, end - u64::from(len) - 1 + u64::from(position - from)));
        }
        commands.sort_unstable();
        let commands_at = spans.len() * SPAN_BYTES + shape.buckets() * END_BYTES;
        let end = commands_at + commands.len() * shape.command_bytes();
        let mut bytes = AlignedBuf::zeroed((end + WORD_BYTES).next_multiple_of(PAGE_BYTES));
        for (n, span) in spans.iter().enumerate() {
            for (m, number) in [span.segment, span.from, span.len].into_iter().enumerate() {
                bytes[n * SPAN_BYTES + 4 * m..][..4].copy_from_slice(&number.to_le_bytes());
            }
        }
        let mut next = 0;
        for bucket in 0..shape.buckets() {
            next += commands[next..].partition_point(|(prefix, _)| shape.bucket(*prefix) <= bucket);
            bytes[spans.len() * SPAN_BYTES + bucket * END_BYTES..][..END_BYTES]
                .copy_from_slice(&(next as u32).to_le_bytes());
        }
        for (n, (prefix, offset)) in commands.iter().enumerate() {
            let word = shape.first_word(*prefix) | offset;
            let len = shape.command_bytes();
            bytes[commands_at + n * len..][..len].copy_from_slice(&word.to_le_bytes()[..len]);
        }
        let count = commands.len();
        let image = Image { bytes: Arc::new(bytes), start: 0, end };
        Part { image, spans, shape, count, left: count, settled: Vec::new() }
    }

    /// What these bytes are; `None` if they contradict themselves.
    pub(super) fn from_image(image: Image, spans: usize, bucket_bits: u32, count: usize) -> Option<Part> {
        let bytes = image.bytes.get(image.start..image.end)?;
        let span_bytes = bytes.get(..spans.checked_mul(SPAN_BYTES)?)?;
        let mut end = 0;
        let spans: Vec<Span> = span_bytes
            .as_chunks::<SPAN_BYTES>()
            .0
            .iter()
            .map(|span| {
                let (segment, from, len) = (u32_at(span, 0), u32_at(span, 4), u32_at(span, 8));
                end += u64::from(len) + 1;
                Span { segment, from, len, end, is_gone: false }
            })
            .collect();
        let is_in_order = spans.is_sorted_by(|one, other| one.segment < other.segment);
        let is_outside = |span: &Span| u64::from(span.from) + u64::from(span.len) > POSITION_MAX.into();
        let has_no_place = spans.is_empty() && count > 0;
        if !is_in_order || has_no_place || spans.iter().any(is_outside) || bucket_bits > BUCKET_BITS_MAX {
            return None;
        }
        let shape = Shape::new(bucket_bits, &spans);
        if shape.command_bytes() > WORD_BYTES
            || image.end + WORD_BYTES > image.bytes.len()
            || span_bytes.len() + shape.buckets() * END_BYTES + count.checked_mul(shape.command_bytes())?
                != bytes.len()
        {
            return None;
        }
        let part = Part { image, spans, shape, count, left: count, settled: Vec::new() };
        let are_in_order = (1..shape.buckets()).all(|bucket| part.end_of(bucket - 1) <= part.end_of(bucket));
        (are_in_order && part.end_of(shape.buckets() - 1) == count).then_some(part)
    }

    /// Its bytes, how many spans they begin with, and the bits of a bucket.
    pub(super) fn encoded(&self) -> (&[u8], usize, u32) {
        let bytes = &self.image.bytes[self.image.start..self.image.end];
        (bytes, self.spans.len(), self.shape.bucket_bits)
    }

    /// How many commands it has, settled or not.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The segments in which they lie.
    pub(crate) fn segments(&self) -> impl Iterator<Item = u32> {
        self.spans.iter().map(|span| span.segment)
    }

    /// Leaves out what lies in segments that are gone.
    pub(crate) fn leave_out(&mut self, is_gone: impl Fn(u32) -> bool) {
        for span in &mut self.spans {
            span.is_gone |= is_gone(span.segment);
        }
        self.trim();
    }

    /// Whether everything is settled.
    pub(crate) fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// What is not settled of what a key with this hash may have, the oldest first. There may be very many, of one key that is
    /// set all the time.
    pub(crate) fn spots(&self, hash: u64) -> impl DoubleEndedIterator<Item = Spot> {
        self.range_of(prefix_of(hash)).filter_map(|n| self.spot(n))
    }

    /// A hash for which there may be commands.
    pub(crate) fn any_hash(&self) -> Option<u64> {
        let spot = self.spot(self.left.checked_sub(1)?)?;
        Some(u64::from(spot.prefix) << (u64::BITS - PREFIX_BITS))
    }

    /// The oldest command for its hash is settled.
    pub(crate) fn settled(&mut self, oldest: Spot) {
        let range = self.range_of(oldest.prefix);
        let is_there = |n: &usize| self.spot(*n).is_some();
        let Some(found) = range.clone().find(is_there).filter(|n| self.spot(*n) == Some(oldest)) else {
            return;
        };
        self.settled.resize(self.count.div_ceil(64), 0);
        for n in range.start..=found {
            self.settled[n / 64] |= 1 << (n % 64);
        }
        self.trim();
    }

    /// Forgets those at the end of which nothing is left.
    fn trim(&mut self) {
        while self.left > 0 && (self.is_settled(self.left - 1) || self.spot(self.left - 1).is_none()) {
            self.left -= 1;
        }
    }

    fn is_settled(&self, n: usize) -> bool {
        self.settled.get(n / 64).is_some_and(|word| word >> (n % 64) & 1 == 1)
    }

    /// Number of the first command behind a bucket.
    fn end_of(&self, bucket: usize) -> usize {
        let ends_at = self.image.start + self.spans.len() * SPAN_BYTES;
        u32_at(&self.image.bytes, ends_at + bucket * END_BYTES) as usize
    }

    /// The rest of a command's prefix, and its offset.
    fn word(&self, n: usize) -> u64 {
        let len = self.shape.command_bytes();
        let at = self.image.end - (self.count - n) * len;
        let word = self.image.bytes[at..].first_chunk().expect("a word follows the last command");
        u64::from_le_bytes(*word) & (u64::MAX >> (u64::BITS - 8 * len as u32))
    }

    /// A command, unless its segment is gone.
    fn spot(&self, n: usize) -> Option<Spot> {
        let word = self.word(n);
        let offset_bits = 8 * self.shape.offset_bytes as u32;
        let (rest, offset) = ((word >> offset_bits) as u32, word & ((1 << offset_bits) - 1));
        let bucket = first_of(0..self.shape.buckets(), |bucket| self.end_of(bucket) <= n) as u32;
        let prefix = bucket << self.shape.rest_bits() | rest;
        match self.spans.get(self.spans.partition_point(|span| span.end <= offset)) {
            Some(span) if span.is_gone => None,
            Some(Span { segment, from, len, end, .. }) => {
                let position = from + (offset + u64::from(*len) + 1 - end) as u32;
                Some(Spot { prefix, segment: *segment, position })
            }
            // No list of ours has such an offset; a place where no frame is makes an error.
            None => Some(Spot { prefix, segment: self.spans.last()?.segment, position: POSITION_MAX }),
        }
    }

    /// Numbers of the commands with a prefix that are not settled.
    fn range_of(&self, prefix: u32) -> Range<usize> {
        let bucket = self.shape.bucket(prefix);
        let start = if bucket == 0 { 0 } else { self.end_of(bucket - 1) };
        let of_bucket = start.min(self.left)..self.end_of(bucket).min(self.left);
        let word = self.shape.first_word(prefix);
        let behind = word.saturating_add(1 << (8 * self.shape.offset_bytes));
        let first = first_of(of_bucket.clone(), |n| self.word(n) < word);
        let end = first_of(first..of_bucket.end, |n| self.word(n) < behind);
        // The oldest leave first.
        first_of(first..end, |n| self.is_settled(n))..end
    }
}

/// The first number in a range of which `is_before` is not true, as of all behind it.
fn first_of(mut range: Range<usize>, is_before: impl Fn(usize) -> bool) -> usize {
    while !range.is_empty() {
        let middle = range.start + range.len() / 2;
        match is_before(middle) {
            true => range.start = middle + 1,
            false => range.end = middle,
        }
    }
    range.start
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Some commands in the order of a log, many of them for few hashes.
    pub(crate) fn many_spots(seed: u64) -> Vec<Spot> {
        let mut state = seed.wrapping_add(1);
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let (mut segment, mut position) = (next(100) as u32, 4096);
        let (count, few) = (next(2_000), next(2) == 0);
        let mut spots = Vec::new();
        for _ in 0..count {
            if next(50) == 0 {
                (segment, position) = (segment + 1 + next(3) as u32, 4096);
            }
            let prefix = if few { next(10) * 0x19_9999 } else { next(1 << 24) };
            spots.push(Spot::new(prefix << 40, segment, position));
            position += 24 + next(1 << (4 + seed % 12)) as u32;
        }
        spots
    }

    /// Compares with the commands it was made of.
    pub(crate) fn check(part: &Part, spots: &[Spot]) {
        assert_eq!(part.count(), spots.len());
        let mut prefixes: Vec<u32> = spots.iter().map(|spot| spot.prefix).collect();
        prefixes.extend([0, 1, (1 << PREFIX_BITS) - 1]);
        for prefix in prefixes {
            let expected = spots.iter().filter(|spot| spot.prefix == prefix);
            assert!(part.spots(u64::from(prefix) << 40).eq(expected.copied()), "{prefix:#x}");
        }
    }

    #[test]
    fn commands_are_found_by_their_hash_in_the_order_of_the_log() {
        for seed in 0..100 {
            let spots = many_spots(seed);
            check(&Part::new(&spots), &spots);
        }
        check(&Part::new(&[]), &[]);
    }

    #[test]
    fn long_offsets_leave_room_for_the_prefix() {
        // Each segment but for its first and last command is empty: offsets of 7 bytes.
        let spots: Vec<Spot> = (0..1 << 20)
            .flat_map(|segment| [(segment, 0), (segment, POSITION_MAX)])
            .map(|(segment, position)| {
                Spot::new(u64::from(segment).wrapping_mul(0x9E37_79B9_7F4A_7C15), segment, position)
            })
            .collect();
        let part = Part::new(&spots);
        assert_eq!((part.shape.offset_bytes, part.shape.command_bytes()), (6, 8));
        for wanted in spots.iter().step_by(9_973) {
            let hash = u64::from(wanted.segment).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            assert!(part.spots(hash).any(|spot| spot == *wanted));
        }
    }

    #[test]
    fn what_is_settled_or_gone_is_not_found() {
        for seed in 0..20 {
            let mut spots = many_spots(seed);
            let mut part = Part::new(&spots);
            let is_gone = |segment: u32| segment.is_multiple_of(3);
            part.leave_out(is_gone);
            spots.retain(|spot| !is_gone(spot.segment));
            while let Some(hash) = part.any_hash() {
                let prefix = prefix_of(hash);
                let at = spots.iter().position(|spot| spot.prefix == prefix).expect("a command of that hash");
                let oldest = part.spots(hash).next().unwrap();
                assert_eq!(oldest, spots[at]);
                part.settled(oldest);
                spots.remove(at);
                let left = spots.iter().filter(|spot| spot.prefix == prefix);
                assert!(part.spots(hash).eq(left.copied()), "seed {seed}");
            }
            assert!(spots.is_empty() && part.is_empty(), "seed {seed}");
        }
    }
}
