//! How openraft's values are stored: commands, nodes, memberships.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use ::openraft::entry::{EntryPayload, RaftEntry};
use ::openraft::impls::{BasicNode, EmptyNode};
use ::openraft::vote::{RaftCommittedLeaderId, leader_id_adv, leader_id_std};
use ::openraft::{AppData, Entry, LogId, Membership, Node};

use crate::entry::EntryKind;
use crate::error::StateFault;
use crate::fields::{FieldReader, FieldWriter};

/// A value that says how it is stored. What is decoded was written by the same program, or an older version of it.
pub trait Stored: Sized {
    /// Appends the value's bytes.
    fn encode(&self, out: &mut Vec<u8>);

    /// The value of these bytes, all of them.
    ///
    /// # Errors
    /// If these are not the bytes of a value.
    fn decode(bytes: &[u8]) -> io::Result<Self>;
}

impl Stored for String {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
    fn decode(bytes: &[u8]) -> io::Result<Self> {
        String::from_utf8(bytes.to_vec()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl Stored for () {
    fn encode(&self, _out: &mut Vec<u8>) {}
    fn decode(bytes: &[u8]) -> io::Result<Self> {
        expect_empty(bytes)
    }
}

impl Stored for EmptyNode {
    fn encode(&self, _out: &mut Vec<u8>) {}
    fn decode(bytes: &[u8]) -> io::Result<Self> {
        expect_empty(bytes).map(|()| EmptyNode {})
    }
}

impl Stored for BasicNode {
    fn encode(&self, out: &mut Vec<u8>) {
        self.addr.encode(out);
    }
    fn decode(bytes: &[u8]) -> io::Result<Self> {
        String::decode(bytes).map(|addr| BasicNode { addr })
    }
}

fn invalid(fault: StateFault) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, fault)
}

fn expect_empty(bytes: &[u8]) -> io::Result<()> {
    FieldReader::new(bytes).end().map_err(invalid)
}

/// The parts of the id of an elected leader.
pub trait CommittedLeader: RaftCommittedLeaderId {
    /// Term and node; 0 for the node if the id does not contain it.
    fn parts(&self) -> (u64, u64);
}

impl CommittedLeader for leader_id_adv::LeaderId<u64, u64> {
    fn parts(&self) -> (u64, u64) {
        (self.term, self.node_id)
    }
}

impl CommittedLeader for leader_id_std::CommittedLeaderId<u64> {
    fn parts(&self) -> (u64, u64) {
        (self.term, 0)
    }
}

/// An entry that says how it is stored: [`Entry`] does, if its data and nodes do.
pub trait StoredEntry: RaftEntry<CommittedLeaderId: CommittedLeader> + Sized {
    /// What it is for.
    fn kind(&self) -> EntryKind;

    /// Appends the bytes of its payload.
    fn encode(&self, out: &mut Vec<u8>);

    /// The entry with this id, kind and payload.
    ///
    /// # Errors
    /// If these are not the bytes of a payload of that kind.
    fn decode(log_id: LogId<Self::CommittedLeaderId>, kind: EntryKind, bytes: &[u8]) -> io::Result<Self>;
}

impl<L, D, N> StoredEntry for Entry<L, EntryPayload<D, u64, N>>
where
    L: CommittedLeader,
    D: AppData + Stored,
    N: Node + Stored,
    Self: RaftEntry<CommittedLeaderId = L>,
{
    fn kind(&self) -> EntryKind {
        match self.payload {
            EntryPayload::Blank => EntryKind::TermStart,
            EntryPayload::Normal(_) => EntryKind::Command,
            EntryPayload::Membership(_) => EntryKind::Configuration,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match &self.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(data) => data.encode(out),
            EntryPayload::Membership(membership) => {
                let mut fields = FieldWriter::default();
                put_membership(&mut fields, membership);
                out.extend(fields.into_bytes());
            }
        }
    }

    fn decode(log_id: LogId<L>, kind: EntryKind, bytes: &[u8]) -> io::Result<Self> {
        let payload = match kind {
            EntryKind::TermStart => expect_empty(bytes).map(|()| EntryPayload::Blank)?,
            EntryKind::Command => EntryPayload::Normal(D::decode(bytes)?),
            EntryKind::Configuration => {
                let mut fields = FieldReader::new(bytes);
                let membership = take_membership(&mut fields)?;
                fields.end().map_err(invalid)?;
                EntryPayload::Membership(membership)
            }
        };
        Ok(Entry { log_id, payload })
    }
}

/// Voters of each configuration, then all nodes with what is known of them.
pub(super) fn put_membership<N: Node + Stored>(out: &mut FieldWriter, membership: &Membership<u64, N>) {
    let configs = membership.get_joint_config();
    out.put_u32(configs.len() as u32);
    for voters in configs {
        out.put_u32(voters.len() as u32);
        voters.iter().for_each(|&voter| out.put_u64(voter));
    }
    let nodes: Vec<_> = membership.nodes().collect();
    out.put_u32(nodes.len() as u32);
    for (&id, node) in nodes {
        let mut bytes = Vec::new();
        node.encode(&mut bytes);
        out.put_u64(id);
        out.put_bytes(&bytes);
    }
}

pub(super) fn take_membership<N: Node + Stored>(
    fields: &mut FieldReader<'_>,
) -> io::Result<Membership<u64, N>> {
    let mut configs = Vec::new();
    for _ in 0..fields.count(4, "configurations").map_err(invalid)? {
        let mut voters = BTreeSet::new();
        for _ in 0..fields.count(8, "voters").map_err(invalid)? {
            voters.insert(fields.u64("voter").map_err(invalid)?);
        }
        configs.push(voters);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..fields.count(12, "nodes").map_err(invalid)? {
        let id = fields.u64("node id").map_err(invalid)?;
        nodes.insert(id, N::decode(fields.bytes("node").map_err(invalid)?)?);
    }
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}
