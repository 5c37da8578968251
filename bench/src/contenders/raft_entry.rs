//! The log entry given to raft-engine, which takes protobuf messages: an index and the payload, encoded as
//! generated code would, and nothing else, so that the peer carries the least overhead it can.

use std::any::Any;
use std::borrow::Cow;
use std::sync::LazyLock;

use protobuf::reflect::MessageDescriptor;
use protobuf::rt;
use protobuf::wire_format::WireType;
use protobuf::{
    CachedSize, Clear, CodedInputStream, CodedOutputStream, Message, ProtobufResult, UnknownFields,
};
use raft_engine::MessageExt;

const INDEX_FIELD: u32 = 1;
const DATA_FIELD: u32 = 2;

/// One entry: `message Entry { uint64 index = 1; bytes data = 2; }`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RaftEntry {
    /// Number of the entry in its group.
    pub index: u64,
    /// The record; borrowed when it is written, so that no copy is made for the peer.
    pub data: Cow<'static, [u8]>,
    unknown: UnknownFields,
    cached_size: CachedSize,
}

impl RaftEntry {
    /// An entry that borrows its record.
    pub fn new(index: u64, record: &'static [u8]) -> Self {
        RaftEntry { index, data: Cow::Borrowed(record), ..RaftEntry::default() }
    }
}

/// Tells raft-engine where the index stands.
pub struct RaftEntryExt;

impl MessageExt for RaftEntryExt {
    type Entry = RaftEntry;

    fn index(entry: &RaftEntry) -> u64 {
        entry.index
    }
}

impl Clear for RaftEntry {
    fn clear(&mut self) {
        *self = RaftEntry::default();
    }
}

impl Message for RaftEntry {
    fn descriptor(&self) -> &'static MessageDescriptor {
        unreachable!("raft-engine does not reflect on entries")
    }

    fn is_initialized(&self) -> bool {
        true
    }

    fn merge_from(&mut self, input: &mut CodedInputStream<'_>) -> ProtobufResult<()> {
        while !input.eof()? {
            let (field, wire_type) = input.read_tag_unpack()?;
            match (field, wire_type) {
                (INDEX_FIELD, WireType::WireTypeVarint) => self.index = input.read_uint64()?,
                (DATA_FIELD, WireType::WireTypeLengthDelimited) => self.data = input.read_bytes()?.into(),
                _ => input.skip_field(wire_type)?,
            }
        }
        Ok(())
    }

    fn write_to_with_cached_sizes(&self, output: &mut CodedOutputStream<'_>) -> ProtobufResult<()> {
        output.write_uint64(INDEX_FIELD, self.index)?;
        output.write_bytes(DATA_FIELD, &self.data)
    }

    fn compute_size(&self) -> u32 {
        let size = rt::value_size(INDEX_FIELD, self.index, WireType::WireTypeVarint)
            + rt::bytes_size(DATA_FIELD, &self.data);
        self.cached_size.set(size);
        size
    }

    fn get_cached_size(&self) -> u32 {
        self.cached_size.get()
    }

    fn get_unknown_fields(&self) -> &UnknownFields {
        &self.unknown
    }

    fn mut_unknown_fields(&mut self) -> &mut UnknownFields {
        &mut self.unknown
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn new() -> Self {
        RaftEntry::default()
    }

    fn default_instance() -> &'static Self {
        static DEFAULT: LazyLock<RaftEntry> = LazyLock::new(RaftEntry::default);
        &DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_the_round_trip() {
        let entry = RaftEntry::new(1 << 40, b"a record");
        let bytes = entry.write_to_bytes().unwrap();
        let read = RaftEntry::parse_from_bytes(&bytes).unwrap();
        assert_eq!((read.index, read.data.as_ref()), (1 << 40, b"a record".as_slice()));
    }
}
