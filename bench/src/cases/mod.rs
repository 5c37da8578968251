//! The cases: which contenders meet under which load, what is shown, and what lsfs should reach.

mod append;
mod bulk;
mod index;
mod kv;
mod open;
mod raft;
mod read;
mod set;
mod space;
mod stores;

use std::collections::HashSet;

use crate::cli::Options;
use crate::contenders::ContenderId;
use crate::goal::Goal;
use crate::job::Job;
use crate::kv_job::Rounds;
use crate::metric::Metric;

/// One comparison, which becomes one table.
pub struct Case {
    /// Its name on the command line.
    pub name: &'static str,
    /// The heading of its table.
    pub title: String,
    /// What a reader should know beside the figures.
    pub notes: Vec<String>,
    /// The rows.
    pub entries: Vec<Entry>,
    /// The columns.
    pub columns: Vec<Metric>,
    /// The metric the ratio columns compare.
    pub ratio_metric: Metric,
    /// Labels of the rows that others are compared with.
    pub ratio_against: Vec<&'static str>,
    /// What lsfs should reach.
    pub goals: Vec<Goal>,
    /// Measured only when named or with `--large`.
    pub is_large: bool,
    /// Whether one round says it all, since nothing varies.
    pub is_steady: bool,
}

/// One row of a case.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Name of the row.
    pub label: &'static str,
    /// Who is measured.
    pub contender: ContenderId,
    /// Done once before the rounds; the files it leaves are kept for all of them.
    pub setup: Option<Job>,
    /// Use the files of the row with this label.
    pub files_of: Option<&'static str>,
    /// Before each round: a writer that is killed once it says it is ready.
    pub killed_writer: Option<Job>,
    /// What is measured in each round.
    pub job: Job,
}

impl Entry {
    /// An entry that begins each round in an empty directory.
    pub fn fresh(contender: ContenderId, job: Job) -> Self {
        let label = contender.name();
        Entry { label, contender, setup: None, files_of: None, killed_writer: None, job }
    }

    /// The same under another label.
    pub fn labelled(self, label: &'static str) -> Self {
        Entry { label, ..self }
    }

    /// The same on files that `setup` makes once.
    pub fn after(self, setup: Job) -> Self {
        Entry { setup: Some(setup), ..self }
    }

    /// Whether its directory outlives a round.
    pub fn keeps_files(&self) -> bool {
        self.setup.is_some()
    }
}

/// All cases, with the times that the options ask for.
pub fn all(options: &Options) -> Vec<Case> {
    vec![
        append::one_writer("one-256", 256, options),
        append::one_writer("one-4k", 4096, options),
        append::many_producers("many-256", 256, options),
        append::many_producers("many-4k", 4096, options),
        append::many_streams(options),
        bulk::bulk(options),
        read::read_back("read-256", 256),
        read::read_back("read-4k", 4096),
        index::build("index-100", 100),
        index::build("index-256", 256),
        index::random_reads("random-256", 256),
        index::beside("beside-256", 256, options),
        open::open_1g(),
        open::open_8g(),
        space::space(),
        stores::one(options),
        stores::batch(options),
        stores::unsynced(options),
        stores::read(),
        stores::random(),
        stores::open(),
        set::appends(options),
        set::cache(options),
        set::reads(),
        set::open(),
        raft::appends("raft-256", 256, options),
        raft::appends("raft-4k", 4096, options),
        raft::open(),
        kv::load_single(options),
        kv::load_batches(options),
        kv::durable("kv-durable-1", 1, options),
        kv::durable("kv-durable-16", 16, options),
        kv::set(options),
        kv::get(options),
        kv::scan(options),
        kv::delete(options),
        kv::overwrite("kv-overwrite", Rounds::InTurn, options),
        kv::overwrite("kv-overwrite-random", Rounds::Random, options),
        kv::open(options),
        kv::load_large("kv-load-4k", 4096, options),
        kv::load_large("kv-load-64k", 64 << 10, options),
        kv::get_large("kv-get-4k", 4096, options),
        kv::get_large("kv-get-64k", 64 << 10, options),
        kv::command(options),
    ]
}

/// The cases to run: those named, or all but the large ones; reduced to the contenders asked for.
pub fn selected(options: &Options) -> anyhow::Result<Vec<Case>> {
    let mut cases = all(options);
    check_names("case", &options.cases, cases.iter().map(|case| case.name))?;
    check_names("contender", &options.contenders, ContenderId::ALL.iter().map(|id| id.name()))?;
    cases.retain(|case| match options.cases.is_empty() {
        true => options.large || !case.is_large,
        false => options.cases.iter().any(|name| is_named(name, case.name)),
    });
    for case in &mut cases {
        case.entries.retain(|entry| entry.contender.is_available() && is_wanted(options, entry.contender));
        let labels: HashSet<_> = case.entries.iter().map(|entry| entry.label).collect();
        case.entries.retain(|entry| entry.files_of.is_none_or(|label| labels.contains(label)));
        case.ratio_against.retain(|label| labels.contains(label));
    }
    cases.retain(|case| !case.entries.is_empty());
    Ok(cases)
}

/// Whether the options leave this contender in.
fn is_wanted(options: &Options, id: ContenderId) -> bool {
    options.contenders.is_empty() || options.contenders.iter().any(|name| name == id.name())
}

/// Whether `asked` is the name, or its beginning and a star.
fn is_named(asked: &str, name: &str) -> bool {
    asked.strip_suffix('*').map_or(asked == name, |beginning| name.starts_with(beginning))
}

/// Refuses names that nothing has.
fn check_names<'a>(
    kind: &str,
    asked: &[String],
    known: impl Iterator<Item = &'a str> + Clone,
) -> anyhow::Result<()> {
    for name in asked {
        let all = || known.clone().collect::<Vec<_>>().join(", ");
        let is_known = known.clone().any(|known| is_named(name, known));
        anyhow::ensure!(is_known, "no {kind} {name}; there are {}", all());
    }
    Ok(())
}
