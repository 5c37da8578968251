//! What can go wrong, for whoever must act on it.

use std::fmt;
use std::path::PathBuf;

use crate::losses::LostRange;

/// The result of a call of the log.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the Raft log. Each kind asks for a different action.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine failed: I/O, a full disk, a lock, damage that is not an entry's. After a failed write the log is
    /// stopped until it is opened again.
    #[error(transparent)]
    Engine(#[from] lsfs::Error),
    /// The entry was purged, or covered by a snapshot.
    #[error("entry {index} is below the first index {first}: it was purged; read the snapshot instead")]
    BelowFirst {
        /// The index asked for.
        index: u64,
        /// The lowest index that could be there.
        first: u64,
    },
    /// There is no such entry yet.
    #[error("entry {index} is beyond the end: the next entry will be {next}")]
    BeyondEnd {
        /// The index asked for.
        index: u64,
        /// The index the next entry will have.
        next: u64,
    },
    /// An entry must follow the last one, without a hole and without overwriting.
    #[error(
        "entry {index} does not follow: the next entry must be {next}; delete the suffix or fill the gap first"
    )]
    NotNext {
        /// The index given.
        index: u64,
        /// The index expected.
        next: u64,
    },
    /// Committed entries are never deleted, nor superseded by a snapshot of another term.
    #[error("entries from {index} on cannot be dropped: entries up to {commit} are committed")]
    Committed {
        /// Where the deletion should have begun.
        index: u64,
        /// The commit index.
        commit: u64,
    },
    /// Only committed entries are applied.
    #[error("entry {index} cannot be applied: only entries up to {} are committed", Shown(commit))]
    NotCommitted {
        /// The index given.
        index: u64,
        /// The commit index, if there is one.
        commit: Option<u64>,
    },
    /// Only applied entries are purged.
    #[error("entry {index} cannot be purged: only entries up to {} are applied", Shown(applied))]
    NotApplied {
        /// The index given.
        index: u64,
        /// The applied index, if there is one.
        applied: Option<u64>,
    },
    /// Terms never go back.
    #[error("term {given} is behind the current term {current}")]
    TermBehind {
        /// The term given.
        given: u64,
        /// The current term.
        current: u64,
    },
    /// A vote is given once in a term.
    #[error("the vote of term {term} was given to {voted_for}, it cannot go to {candidate}")]
    AlreadyVoted {
        /// The current term.
        term: u64,
        /// Who has the vote.
        voted_for: u64,
        /// Who asked.
        candidate: u64,
    },
    /// These entries were acknowledged and no longer verify. Fetch them from a peer and put them back with
    /// `RaftLog::restore`, or install a snapshot that covers them.
    #[error("{lost} lost: fetch them from a peer")]
    Lost {
        /// What is gone.
        lost: LostRange,
    },
    /// An entry that is given back must be of the term that was lost there.
    #[error("entry {index} of term {given} cannot be restored: {expected}")]
    NotLost {
        /// The index given.
        index: u64,
        /// The term given.
        given: u64,
        /// What would be right.
        expected: String,
    },
    /// A record of the log is no entry of a version that this program knows.
    #[error("entry {index}: {fault}")]
    Entry {
        /// Index of the entry.
        index: u64,
        /// What is wrong with it.
        fault: EntryFault,
    },
    /// The state beside the log is none of a version that this program knows.
    #[error("{}: {fault}", path.display())]
    State {
        /// The directory of the state.
        path: PathBuf,
        /// What is wrong with it.
        fault: StateFault,
    },
    /// There are entries without the state that belongs to them: files are missing.
    #[error("{} has entries but no state: restore its directory `state` from a copy, or start an empty log", path.display())]
    StateMissing {
        /// The log's directory.
        path: PathBuf,
    },
    /// The state is older than the entries: a later one was lost, and with it perhaps a vote.
    #[error(
        "{}: the state is older than the entries: entry {index} is of term {term}, the state says {}; repair the log",
        path.display(),
        Shown(known)
    )]
    StateBehind {
        /// The log's directory.
        path: PathBuf,
        /// The last entry.
        index: u64,
        /// Its term.
        term: u64,
        /// Its term as the state has it.
        known: Option<u64>,
    },
    /// The first index of a log is fixed when it is created.
    #[error("{} counts its entries from {stored}, not from {asked}", path.display())]
    FirstIndex {
        /// The log's directory.
        path: PathBuf,
        /// The first index of the log.
        stored: u64,
        /// The first index in the options.
        asked: u64,
    },
    /// The log was stopped; `RaftLog::start` goes on.
    #[error("{} is stopped; start it first", path.display())]
    Stopped {
        /// The log's directory.
        path: PathBuf,
    },
    /// A snapshot must not be older than what the log already stands on.
    #[error("a snapshot at {} is behind the one at {current}", Shown(index))]
    SnapshotBehind {
        /// Index of the snapshot given, if it is of any entry.
        index: Option<u64>,
        /// Index of the present one.
        current: u64,
    },
    /// The log has no snapshot.
    #[error("there is no snapshot")]
    NoSnapshot,
    /// A chunk must follow what has arrived; go on from the offset named here.
    #[error("a chunk at byte {given} does not follow: continue at byte {expected}")]
    ChunkOffset {
        /// Where the chunk begins.
        given: u64,
        /// Where it should.
        expected: u64,
    },
    /// An option has an impossible value.
    #[error("option {option}: {value} is not allowed, expected {expected}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// The value given.
        value: String,
        /// What would be good.
        expected: String,
    },
}

impl Error {
    /// Whether acknowledged bytes were found damaged.
    pub fn is_corruption(&self) -> bool {
        match self {
            Error::Engine(error) => error.is_corruption(),
            Error::Lost { .. } | Error::StateBehind { .. } => true,
            _ => false,
        }
    }
}

struct Shown<'a>(&'a Option<u64>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(index) => write!(f, "{index}"),
            None => f.write_str("none"),
        }
    }
}

/// What is wrong with a record that should be an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// The first byte is not that of an entry.
    #[error("the record begins with {found:#04x}, expected {expected:#04x}: it is no entry of this format")]
    Magic {
        /// The byte there.
        found: u8,
        /// The byte of an entry.
        expected: u8,
    },
    /// The record ends inside the entry's header.
    #[error("the record ends inside field {field}")]
    Short {
        /// The field that is not there.
        field: &'static str,
    },
    /// A number has more than 64 bits.
    #[error("field {field} has more than 64 bits")]
    TooLong {
        /// The field.
        field: &'static str,
    },
    /// The record's type code is no entry kind.
    #[error("type code {found} is no kind of entry, expected 1 to 3")]
    Kind {
        /// The record's type code.
        found: u64,
    },
    /// The fields contradict each other.
    #[error("field {field} is {value}, at most {limit} is possible there")]
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The largest possible.
        limit: u64,
    },
}

/// What is wrong with the bytes of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateFault {
    /// The first bytes are not those of a Raft state.
    #[error("the state begins with {found:#010x}, expected {expected:#010x}")]
    Magic {
        /// The number there.
        found: u32,
        /// The number of a state.
        expected: u32,
    },
    /// Another program wrote it.
    #[error("the state has version {found}, this program knows {known}")]
    Version {
        /// The version there.
        found: u32,
        /// The version known.
        known: u32,
    },
    /// A field is not there whole.
    #[error("field {field} at byte {at} needs {needed} bytes, {rest} are left")]
    Short {
        /// The field.
        field: &'static str,
        /// Where it begins.
        at: usize,
        /// Bytes it needs.
        needed: usize,
        /// Bytes left.
        rest: usize,
    },
    /// A text is not UTF-8.
    #[error("field {field} is not UTF-8")]
    NotText {
        /// The field.
        field: &'static str,
    },
    /// A field has a value that has no meaning.
    #[error("field {field} has the impossible value {found}")]
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u32,
    },
    /// There are bytes behind the last field.
    #[error("{rest} bytes follow behind the last field")]
    Rest {
        /// How many.
        rest: usize,
    },
}
