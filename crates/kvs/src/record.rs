//! What a frame of the log says: `docs/format.md`, "The key-value store".

use lsfs::codec::{Compression, DecompressFault};
use smallvec::SmallVec;

/// The largest key in bytes.
pub const KEY_BYTES_MAX: usize = u16::MAX as usize;
/// The largest value in bytes.
pub const VALUE_BYTES_MAX: usize = 64 << 20;
/// The largest body of a frame.
pub(crate) const BODY_BYTES_MAX: usize = KEY_LEN_BYTES + KEY_BYTES_MAX + RAW_LEN_BYTES + VALUE_BYTES_MAX;

/// Bytes of a key's length, at most: most keys need one.
const KEY_LEN_BYTES: usize = 2;
const RAW_LEN_BYTES: usize = 4;
const BORN_BYTES: usize = 4;

const OP_MASK: u8 = 0x0F;
const OP_SET: u8 = 1;
const OP_REMOVE: u8 = 2;
const MOVED: u8 = 0x10;
const COMPRESSION_SHIFT: u32 = 5;
const SHORT_KEY: u8 = 0x80;

/// A command, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) command: Command<'a>,
}

/// What is done to the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command<'a> {
    Set(StoredValue<'a>),
    Remove {
        /// The segment in which the remove was first written, if this is a copy.
        born: Option<u32>,
    },
}

/// A value as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredValue<'a> {
    pub(crate) compression: Compression,
    /// Bytes after decompression.
    pub(crate) raw_bytes: u32,
    pub(crate) stored: &'a [u8],
}

/// Why a frame is not a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordFault {
    #[error("command byte {0:#04x} is not known")]
    Kind(u8),
    #[error("a command of {found} bytes is too short, expected at least {expected}")]
    Short { found: usize, expected: usize },
    #[error("a remove of {found} bytes, expected {expected}")]
    Length { found: usize, expected: usize },
    #[error("a value of {0} bytes is over the limit of {VALUE_BYTES_MAX}")]
    ValueLength(u64),
    #[error(transparent)]
    Decompress(#[from] DecompressFault),
}

/// A command as bytes: the frame's kind, and its body in two parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EncodedRecord<'a> {
    pub(crate) kind: u8,
    /// What had to be put together.
    head: Head,
    /// What follows it as it was given: a value, or a whole body.
    rest: &'a [u8],
}

/// Heads up to this length are made without an allocation.
const HEAD_ON_STACK_BYTES: usize = 128;

/// The beginning of a body.
type Head = SmallVec<[u8; HEAD_ON_STACK_BYTES]>;

impl EncodedRecord<'_> {
    /// The parts of the body.
    pub(crate) fn parts(&self) -> [&[u8]; 2] {
        [&self.head, self.rest]
    }

    pub(crate) fn body_bytes(&self) -> usize {
        self.head.len() + self.rest.len()
    }

    /// The body in one piece.
    #[cfg(test)]
    pub(crate) fn body(&self) -> Vec<u8> {
        self.parts().concat()
    }
}

/// Encodes a set; the value is compressed if that makes it shorter. The caller has checked the lengths.
pub(crate) fn encode_set<'a>(key: &[u8], value: &'a [u8], compression: Compression) -> EncodedRecord<'a> {
    let compressed = compression.compress(value).filter(|stored| stored.len() + RAW_LEN_BYTES < value.len());
    let Some(stored) = compressed else {
        let (short_key, head) = with_key(key, 0);
        return EncodedRecord { kind: OP_SET | short_key, head, rest: value };
    };
    let (short_key, mut head) = with_key(key, RAW_LEN_BYTES + stored.len());
    head.extend_from_slice(&(value.len() as u32).to_le_bytes());
    head.extend_from_slice(&stored);
    let kind = OP_SET | compression.code() << COMPRESSION_SHIFT;
    EncodedRecord { kind: kind | short_key, head, rest: &[] }
}

/// Encodes a remove.
pub(crate) fn encode_remove(key: &[u8]) -> EncodedRecord<'static> {
    let (short_key, head) = with_key(key, 0);
    EncodedRecord { kind: OP_REMOVE | short_key, head, rest: &[] }
}

/// The copy of a command that compaction writes; `segment` is where the original lies.
pub(crate) fn encode_moved<'a>(
    kind: u8,
    body: &'a [u8],
    record: &Record<'_>,
    segment: u32,
) -> EncodedRecord<'a> {
    let kind = kind | MOVED;
    if let Command::Remove { born: None } = record.command {
        let mut head = Head::from_slice(body);
        head.extend_from_slice(&segment.to_le_bytes());
        return EncodedRecord { kind, head, rest: &[] };
    }
    EncodedRecord { kind, head: Head::new(), rest: body }
}

/// The set of a frame, be that a copy or not, as if it were made now.
pub(crate) fn encode_original(kind: u8, body: &[u8]) -> EncodedRecord<'_> {
    EncodedRecord { kind: kind & !MOVED, head: Head::new(), rest: body }
}

/// Key and value of a set that is not compressed; `None` for everything else.
#[inline]
pub(crate) fn plain_set(kind: u8, body: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_plain = kind & !(MOVED | SHORT_KEY) == OP_SET;
    split_key(kind, body).filter(|_| is_plain)
}

/// A body that begins with a key, and what the kind says of that.
fn with_key(key: &[u8], more: usize) -> (u8, Head) {
    let mut body = Head::with_capacity(KEY_LEN_BYTES + key.len() + more);
    let short_key = match u8::try_from(key.len()) {
        Ok(len) => {
            body.push(len);
            SHORT_KEY
        }
        Err(_) => {
            body.extend_from_slice(&(key.len() as u16).to_le_bytes());
            0
        }
    };
    body.extend_from_slice(key);
    (short_key, body)
}

/// The length of a body's key, and what follows that.
#[inline]
fn split_key_len(kind: u8, body: &[u8]) -> Option<(usize, &[u8])> {
    match kind & SHORT_KEY {
        0 => body.split_first_chunk().map(|(len, rest)| (u16::from_le_bytes(*len).into(), rest)),
        _ => body.split_first().map(|(len, rest)| ((*len).into(), rest)),
    }
}

/// The key of a body, and what follows it.
#[inline]
fn split_key(kind: u8, body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = split_key_len(kind, body)?;
    rest.split_at_checked(len)
}

/// How many bytes a frame has at most up to the end of this key.
pub(crate) fn key_start_bytes(key: &[u8]) -> usize {
    KEY_LEN_BYTES + key.len()
}

/// Whether `start`, the first bytes of a frame of this kind, says that it is this key's.
pub(crate) fn begins_with_key(kind: u8, start: &[u8], key: &[u8]) -> bool {
    split_key(kind, start).is_some_and(|(found, _)| found == key)
}

/// Whether a frame is a copy that compaction wrote.
pub(crate) fn is_moved(kind: u8) -> bool {
    kind & MOVED != 0
}

/// Whether a frame is a remove.
pub(crate) fn is_remove(kind: u8) -> bool {
    kind & OP_MASK == OP_REMOVE
}

impl<'a> Record<'a> {
    /// Takes a frame apart.
    pub(crate) fn decode(kind: u8, body: &'a [u8]) -> Result<Record<'a>, RecordFault> {
        let compression =
            Compression::from_code(kind >> COMPRESSION_SHIFT & 3).ok_or(RecordFault::Kind(kind))?;
        let short = |expected| RecordFault::Short { found: body.len(), expected };
        let len_bytes = if kind & SHORT_KEY == 0 { KEY_LEN_BYTES } else { 1 };
        let (key_len, rest) = split_key_len(kind, body).ok_or(short(len_bytes))?;
        let before = len_bytes + key_len;
        let (key, rest) = rest.split_at_checked(key_len).ok_or(short(before))?;
        let command = match kind & OP_MASK {
            OP_SET if compression == Compression::None => Command::Set(StoredValue {
                compression,
                raw_bytes: u32::try_from(rest.len())
                    .map_err(|_| RecordFault::ValueLength(rest.len() as u64))?,
                stored: rest,
            }),
            OP_SET => {
                let (raw, stored) =
                    rest.split_first_chunk::<RAW_LEN_BYTES>().ok_or(short(before + RAW_LEN_BYTES))?;
                Command::Set(StoredValue { compression, raw_bytes: u32::from_le_bytes(*raw), stored })
            }
            OP_REMOVE if compression == Compression::None => {
                let expected = if is_moved(kind) { BORN_BYTES } else { 0 };
                if rest.len() != expected {
                    return Err(RecordFault::Length { found: body.len(), expected: before + expected });
                }
                let born = rest.first_chunk::<BORN_BYTES>().map(|born| u32::from_le_bytes(*born));
                Command::Remove { born }
            }
            _ => return Err(RecordFault::Kind(kind)),
        };
        Ok(Record { key, command })
    }
}

impl StoredValue<'_> {
    /// The value's bytes.
    pub(crate) fn to_vec(self) -> Result<Vec<u8>, RecordFault> {
        if self.raw_bytes as usize > VALUE_BYTES_MAX {
            return Err(RecordFault::ValueLength(self.raw_bytes.into()));
        }
        Ok(self.compression.decompress(self.stored, self.raw_bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_of(encoded: &EncodedRecord<'_>) -> Vec<u8> {
        match Record::decode(encoded.kind, &encoded.body()).unwrap().command {
            Command::Set(value) => value.to_vec().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sets_of_all_sizes_are_read_back() {
        let text = b"one line like the other\n".repeat(50);
        for value in [&b""[..], b"v", &text] {
            for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
                for key in [&b""[..], b"key", &[0xff; 255], &[0xff; 256], &[0xff; KEY_BYTES_MAX]] {
                    let encoded = encode_set(key, value, compression);
                    let body = encoded.body();
                    assert_eq!(Record::decode(encoded.kind, &body).unwrap().key, key);
                    assert_eq!(value_of(&encoded), value);
                    let len_bytes = if key.len() < 256 { 1 } else { 2 };
                    assert!(
                        encoded.body_bytes() <= len_bytes + key.len() + value.len(),
                        "never longer than plain"
                    );
                    let plain = plain_set(encoded.kind, &body);
                    assert_eq!(plain.is_some(), encoded.body_bytes() == len_bytes + key.len() + value.len());
                    assert!(plain.is_none_or(|found| found == (key, value)));
                    let record = Record::decode(encoded.kind, &body).unwrap();
                    let moved = encode_moved(encoded.kind, &body, &record, 7);
                    assert!(is_moved(moved.kind) && !is_remove(moved.kind));
                    assert_eq!(value_of(&moved), value);
                }
            }
        }
    }

    #[test]
    fn a_remove_keeps_its_first_segment_over_copies() {
        let encoded = encode_remove(b"key");
        let body = encoded.body();
        let record = Record::decode(encoded.kind, &body).unwrap();
        assert_eq!(record, Record { key: b"key", command: Command::Remove { born: None } });
        let moved = encode_moved(encoded.kind, &body, &record, 7);
        let body = moved.body();
        let record = Record::decode(moved.kind, &body).unwrap();
        assert_eq!(record.command, Command::Remove { born: Some(7) });
        let again = encode_moved(moved.kind, &body, &record, 9);
        assert_eq!((again.kind, again.body()), (moved.kind, moved.body()));
        assert!(is_remove(again.kind));
    }

    #[test]
    fn the_first_bytes_tell_whose_frame_it_is() {
        let long = [7; 300];
        for (key, others) in [
            (&b"key"[..], [&b"kez"[..], b"ke", b"keyv", b"", &long]),
            (&long, [&[7; 299], &[7; 301], &[7; 44], b"", b"key"]),
        ] {
            let encoded = encode_set(key, b"value", Compression::None);
            let (kind, body) = (encoded.kind, encoded.body());
            let start = |key| &body[..key_start_bytes(key).min(body.len())];
            assert!(begins_with_key(kind, start(key), key));
            for other in others {
                assert!(!begins_with_key(kind, start(other), other), "{other:?}");
            }
        }
        let remove = encode_remove(b"");
        assert!(!begins_with_key(1, b"", b"") && begins_with_key(remove.kind, &remove.body(), b""));
    }

    #[test]
    fn what_is_no_command_is_refused() {
        let fault = |kind: u8, body: &[u8]| Record::decode(kind, body).map(|_| ()).unwrap_err();
        for kind in [0, 3, 0x0F, 0x61, 0x22, 0x83] {
            assert_eq!(fault(kind, b"\0\0"), RecordFault::Kind(kind), "{kind:#x}");
        }
        assert_eq!(fault(1, b""), RecordFault::Short { found: 0, expected: 2 });
        assert_eq!(fault(1, b"\x05\0key"), RecordFault::Short { found: 5, expected: 7 });
        assert_eq!(fault(0x81, b""), RecordFault::Short { found: 0, expected: 1 });
        assert_eq!(fault(0x81, b"\x05key"), RecordFault::Short { found: 4, expected: 6 });
        assert_eq!(fault(0x21, b"\x01\0k\0\0"), RecordFault::Short { found: 5, expected: 7 });
        assert_eq!(fault(2, b"\x01\0k!"), RecordFault::Length { found: 4, expected: 3 });
        assert_eq!(fault(0x12, b"\x01\0k!"), RecordFault::Length { found: 4, expected: 7 });
        let huge = Record::decode(0x21, b"\x01\0k\xff\xff\xff\xffxyz").unwrap();
        let Command::Set(value) = huge.command else { panic!("{huge:?}") };
        assert_eq!(value.to_vec(), Err(RecordFault::ValueLength(u32::MAX.into())));
    }
}
