//! The state beside the entries: term and vote, configuration, where the log begins, its terms, its snapshots.
//!
//! All of it is one complete declaration, replaced as a whole in final data: a vote, a configuration and a snapshot
//! are never durable in part, nor without what was decided before them. The layout is in docs/format.md, "Raft logs".

use crate::entry::EntryId;
use crate::error::StateFault;
use crate::fields::{FieldReader, FieldWriter};
use crate::losses::{Doubt, Doubts};
use crate::terms::Terms;

const STATE_MAGIC: u32 = u32::from_le_bytes(*b"LRST");
const STATE_VERSION: u32 = 2;

const FLAG_VOTED: u32 = 1;
const FLAG_VOTE_COMMITTED: u32 = 2;
const FLAG_BROKEN: u32 = 4;
const FLAG_PURGED: u32 = 8;
const FLAG_RESTARTED: u32 = 16;
const FLAG_CONFIG: u32 = 32;
const FLAG_SNAPSHOT: u32 = 64;
const FLAG_INCOMING: u32 = 128;
const FLAG_REPLACED: u32 = 256;
const FLAGS_KNOWN: u32 = 511;

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterNode {
    /// Its number.
    pub id: u64,
    /// How to reach it.
    pub uri: String,
    /// Whether it takes part in votes.
    pub is_voter: bool,
}

/// A configuration of the cluster, as one node keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterConfig {
    /// The members.
    pub nodes: Vec<ClusterNode>,
    /// Settings by name.
    pub settings: Vec<(String, String)>,
    /// A node that is about to join or to leave.
    pub pending: Option<ClusterNode>,
}

/// What a snapshot is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry that the snapshot contains; `None` for the state before any entry.
    pub last: Option<EntryId>,
    /// What the state machine needs to know besides its data, as a consensus layer's membership.
    pub about: Vec<u8>,
}

/// A snapshot and where its bytes are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredSnapshot {
    pub(crate) meta: SnapshotMeta,
    /// Number of the directory with its data stream.
    pub(crate) slot: u32,
    /// Bytes of its data; of an incoming one, 0.
    pub(crate) byte_count: u64,
}

/// The vote of the current term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The term.
    pub term: u64,
    /// Who has the vote.
    pub candidate: u64,
    /// Whether a majority gave it the same: then it is the leader of the term.
    pub is_committed: bool,
}

/// Everything a node declares beside its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Index of the first entry of a new log.
    pub(crate) origin: u64,
    pub(crate) term: u64,
    /// Candidate, and whether it is known to have won.
    pub(crate) vote: Option<(u64, bool)>,
    /// Why the node must not be used.
    pub(crate) broken: Option<String>,
    /// Entries below this index are committed, or applied.
    pub(crate) commit_next: u64,
    pub(crate) applied_next: u64,
    /// The last entry that was dropped at the front.
    pub(crate) purged: Option<EntryId>,
    /// The log begins anew behind `purged`: nothing that was there before goes on.
    pub(crate) restarted: bool,
    /// Lowest and highest index that was replaced or restored, in the present stream of those, and is not purged.
    pub(crate) replaced: Option<(u64, u64)>,
    /// Number of that stream's directory: a damaged one is left as it is.
    pub(crate) replaced_dir: u32,
    /// Entries that damaged ones of those streams had.
    pub(crate) doubted: Doubts,
    pub(crate) terms: Terms,
    pub(crate) uri: String,
    pub(crate) config: Option<ClusterConfig>,
    pub(crate) snapshot: Option<StoredSnapshot>,
    pub(crate) incoming: Option<StoredSnapshot>,
}

impl State {
    pub(crate) fn new(origin: u64) -> State {
        State { origin, commit_next: origin, applied_next: origin, ..State::default() }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = FieldWriter::default();
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        let vote = self.vote.unwrap_or_default();
        let purged = self.purged.unwrap_or_default();
        let replaced = self.replaced.unwrap_or_default();
        out.put_u32(STATE_MAGIC);
        out.put_u32(STATE_VERSION);
        out.put_u32(
            flag(self.vote.is_some(), FLAG_VOTED)
                | flag(vote.1, FLAG_VOTE_COMMITTED)
                | flag(self.broken.is_some(), FLAG_BROKEN)
                | flag(self.purged.is_some(), FLAG_PURGED)
                | flag(self.restarted, FLAG_RESTARTED)
                | flag(self.config.is_some(), FLAG_CONFIG)
                | flag(self.snapshot.is_some(), FLAG_SNAPSHOT)
                | flag(self.incoming.is_some(), FLAG_INCOMING)
                | flag(self.replaced.is_some(), FLAG_REPLACED),
        );
        let runs: Vec<_> = self.terms.runs().collect();
        out.put_u32(runs.len() as u32);
        out.put_u64(self.origin);
        out.put_u64(self.term);
        out.put_u64(vote.0);
        out.put_u64(self.commit_next);
        out.put_u64(self.applied_next);
        put_id(&mut out, &purged);
        out.put_u64(replaced.0);
        out.put_u64(replaced.1);
        out.put_u32(self.replaced_dir);
        out.put_u32(self.doubted.iter().len() as u32);
        runs.iter().for_each(|run| put_id(&mut out, run));
        self.doubted.iter().for_each(|doubt| put_doubt(&mut out, doubt));
        out.put_bytes(self.uri.as_bytes());
        if let Some(reason) = &self.broken {
            out.put_bytes(reason.as_bytes());
        }
        if let Some(config) = &self.config {
            put_config(&mut out, config);
        }
        for snapshot in [&self.snapshot, &self.incoming].into_iter().flatten() {
            out.put_u32(u32::from(snapshot.meta.last.is_some()));
            put_id(&mut out, &snapshot.meta.last.unwrap_or_default());
            out.put_u64(snapshot.byte_count);
            out.put_u32(snapshot.slot);
            out.put_bytes(&snapshot.meta.about);
        }
        out.into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<State, StateFault> {
        let mut fields = FieldReader::new(bytes);
        let found = fields.u32("magic")?;
        if found != STATE_MAGIC {
            return Err(StateFault::Magic { found, expected: STATE_MAGIC });
        }
        let found = fields.u32("version")?;
        if found != STATE_VERSION {
            return Err(StateFault::Version { found, known: STATE_VERSION });
        }
        let flags = fields.u32("flags")?;
        if flags & !FLAGS_KNOWN != 0 {
            return Err(StateFault::Value { field: "flags", found: flags });
        }
        let has = |flag: u32| flags & flag != 0;
        let run_count = fields.u32("terms")?;
        let origin = fields.u64("origin")?;
        let term = fields.u64("term")?;
        let candidate = fields.u64("vote")?;
        let commit_next = fields.u64("commit")?;
        let applied_next = fields.u64("applied")?;
        let purged = take_id(&mut fields, "purged")?;
        let replaced = (fields.u64("replaced")?, fields.u64("replaced")?);
        let replaced_dir = fields.u32("replaced directory")?;
        let doubt_count = fields.u32("doubted")?;
        let mut terms = Terms::default();
        for _ in 0..run_count {
            terms.begin(take_id(&mut fields, "terms")?);
        }
        let mut doubted = Doubts::default();
        for _ in 0..doubt_count {
            let (start, end) = (fields.u64("doubted")?, fields.u64("doubted")?);
            let is_known = fields.truth("doubted term is known")?;
            let of = (fields.u64("doubted term")?, fields.u64("doubted leader")?);
            if !is_known && of != (0, 0) {
                return Err(StateFault::Value { field: "doubted term", found: of.0 as u32 });
            }
            doubted.add(start..end, is_known.then_some(of));
        }
        let uri = fields.string("uri")?;
        let broken = if has(FLAG_BROKEN) { Some(fields.string("broken")?) } else { None };
        let config = if has(FLAG_CONFIG) { Some(take_config(&mut fields)?) } else { None };
        let snapshot = if has(FLAG_SNAPSHOT) { Some(take_snapshot(&mut fields)?) } else { None };
        let incoming = if has(FLAG_INCOMING) { Some(take_snapshot(&mut fields)?) } else { None };
        fields.end()?;
        Ok(State {
            origin,
            term,
            vote: has(FLAG_VOTED).then_some((candidate, has(FLAG_VOTE_COMMITTED))),
            broken,
            commit_next,
            applied_next,
            purged: has(FLAG_PURGED).then_some(purged),
            restarted: has(FLAG_RESTARTED),
            replaced: has(FLAG_REPLACED).then_some(replaced),
            replaced_dir,
            doubted,
            terms,
            uri,
            config,
            snapshot,
            incoming,
        })
    }
}

fn put_id(out: &mut FieldWriter, id: &EntryId) {
    out.put_u64(id.index);
    out.put_u64(id.term);
    out.put_u64(id.leader);
}

/// Indexes, whether term and leader are known, and these.
fn put_doubt(out: &mut FieldWriter, doubt: &Doubt) {
    out.put_u64(doubt.indexes.start);
    out.put_u64(doubt.indexes.end);
    out.put_u32(u32::from(doubt.of.is_some()));
    let (term, leader) = doubt.of.unwrap_or_default();
    out.put_u64(term);
    out.put_u64(leader);
}

fn take_id(fields: &mut FieldReader<'_>, field: &'static str) -> Result<EntryId, StateFault> {
    Ok(EntryId { index: fields.u64(field)?, term: fields.u64(field)?, leader: fields.u64(field)? })
}

fn put_node(out: &mut FieldWriter, node: &ClusterNode) {
    out.put_u64(node.id);
    out.put_u32(u32::from(node.is_voter));
    out.put_bytes(node.uri.as_bytes());
}

fn take_node(fields: &mut FieldReader<'_>) -> Result<ClusterNode, StateFault> {
    let id = fields.u64("node id")?;
    let is_voter = fields.truth("node is voter")?;
    Ok(ClusterNode { id, is_voter, uri: fields.string("node uri")? })
}

fn put_config(out: &mut FieldWriter, config: &ClusterConfig) {
    out.put_u32(config.nodes.len() as u32);
    config.nodes.iter().for_each(|node| put_node(out, node));
    out.put_u32(config.settings.len() as u32);
    for (name, value) in &config.settings {
        out.put_bytes(name.as_bytes());
        out.put_bytes(value.as_bytes());
    }
    out.put_u32(u32::from(config.pending.is_some()));
    if let Some(node) = &config.pending {
        put_node(out, node);
    }
}

fn take_config(fields: &mut FieldReader<'_>) -> Result<ClusterConfig, StateFault> {
    let mut config = ClusterConfig::default();
    for _ in 0..fields.count(16, "nodes")? {
        config.nodes.push(take_node(fields)?);
    }
    for _ in 0..fields.count(8, "settings")? {
        config.settings.push((fields.string("setting")?, fields.string("setting")?));
    }
    if fields.truth("pending node")? {
        config.pending = Some(take_node(fields)?);
    }
    Ok(config)
}

fn take_snapshot(fields: &mut FieldReader<'_>) -> Result<StoredSnapshot, StateFault> {
    let has_entries = fields.truth("snapshot has entries")?;
    let last = Some(take_id(fields, "snapshot")?).filter(|_| has_entries);
    let byte_count = fields.u64("snapshot size")?;
    let slot = fields.u32("snapshot slot")?;
    let about = fields.bytes("about the snapshot")?.to_vec();
    Ok(StoredSnapshot { meta: SnapshotMeta { last, about }, slot, byte_count })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> State {
        let id = |index| EntryId { index, term: index / 2, leader: 7 };
        let mut terms = Terms::default();
        [id(11), id(40)].into_iter().for_each(|run| terms.begin(run));
        let mut doubted = Doubts::default();
        doubted.add(11..12, None);
        doubted.add(14..16, Some((8, 7)));
        let node = ClusterNode { id: 3, uri: "tcp://three".to_string(), is_voter: true };
        State {
            origin: 1,
            term: 9,
            vote: Some((3, true)),
            broken: Some("disk replaced".to_string()),
            commit_next: 50,
            applied_next: 49,
            purged: Some(id(10)),
            restarted: true,
            replaced: Some((12, 13)),
            replaced_dir: 2,
            doubted,
            terms,
            uri: "tcp://one".to_string(),
            config: Some(ClusterConfig {
                nodes: vec![node.clone(), ClusterNode::default()],
                settings: vec![("heartbeat".to_string(), "50 ms".to_string())],
                pending: Some(node),
            }),
            snapshot: Some(StoredSnapshot {
                meta: SnapshotMeta { last: Some(id(10)), about: b"members".to_vec() },
                slot: 1,
                byte_count: 1 << 40,
            }),
            incoming: Some(StoredSnapshot {
                meta: SnapshotMeta { last: Some(id(60)), about: Vec::new() },
                slot: 2,
                byte_count: 0,
            }),
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for state in [State::new(0), State::new(1), full()] {
            assert_eq!(State::decode(&state.encode()), Ok(state));
        }
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_refused_or_another_state() {
        let bytes = full().encode();
        for len in 0..bytes.len() {
            assert!(State::decode(&bytes[..len]).is_err(), "{len}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(State::decode(&longer), Err(StateFault::Rest { rest: 1 }));
        for at in 0..bytes.len() {
            for change in [1, 0x80, 0xFF] {
                let mut changed = bytes.clone();
                changed[at] ^= change;
                // Whatever a wrong byte means, it neither panics nor allocates without bound.
                assert_ne!(State::decode(&changed), Ok(full()), "byte {at}");
            }
        }
        assert!(matches!(State::decode(&[0; 64]), Err(StateFault::Magic { found: 0, .. })));
        let mut newer = bytes;
        newer[4] = 3;
        assert_eq!(State::decode(&newer), Err(StateFault::Version { found: 3, known: 2 }));
    }
}
