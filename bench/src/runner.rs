//! The rounds: each contender of a case runs once, then each once more, every run in a process of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cases::{self, Case, Entry};
use crate::cli::Options;
use crate::contenders::ContenderId;
use crate::disk;
use crate::job::{Job, Order};
use crate::machine::Machine;
use crate::metric::Sample;
use crate::report::{CaseReport, Report, Rounds};

/// How long a writer goes on after it said that it is ready, before it is killed.
const TIME_TO_KILL: Duration = Duration::from_millis(20);

/// Runs what the options ask for; returns whether everything was measured.
pub fn run(options: &Options) -> Result<bool> {
    if options.list {
        list(options);
        return Ok(true);
    }
    let cases = cases::selected(options)?;
    ensure!(!cases.is_empty(), "no case is left to run");
    let scratch = Scratch::create(&options.dir)?;
    let mut report = Report {
        machine: Machine::observe(&scratch.path),
        rounds: options.rounds,
        seconds_per_run: options.seconds_per_run,
        cases: Vec::new(),
    };
    print_head(&report);
    for case in &cases {
        let case_report = run_case(case, options, &scratch.path)?;
        println!("\n{}", case_report.lines().join("\n"));
        report.cases.push(case_report);
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(report.cases.iter().all(CaseReport::is_complete))
}

/// Prints the names of cases and contenders.
fn list(options: &Options) {
    for case in cases::all(options) {
        println!("case       {:<16}  {}", case.name, case.title);
    }
    for id in ContenderId::ALL.into_iter().filter(|id| id.is_available()) {
        println!("contender  {}", id.name());
    }
}

/// Prints what holds for all tables.
fn print_head(report: &Report) {
    println!("# lsfs-bench: {} rounds, {} s per timed run", report.rounds, report.seconds_per_run);
    println!("{}", report.machine.lines().join("\n"));
    println!(
        "records      pseudo-random bytes, the same for everybody; nobody compresses (raft-engine: off)"
    );
    println!(
        "figures      medians of the rounds, max over all; ratios: median of the ratios within each round"
    );
    println!("             spread: distance of best and worst round as a part of the median");
    if report.machine.is_memory_backed() {
        println!(
            "WARNING      these files live in memory: a sync costs nothing here, and the figures mean nothing"
        );
    }
    if cfg!(debug_assertions) {
        println!("WARNING      this is a debug build");
    }
}

/// A folder of our own, removed with all its content at the end.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn create(parent: &Path) -> Result<Self> {
        let path = parent.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Scratch { path: path.canonicalize()? })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Runs all rounds of a case.
fn run_case(case: &Case, options: &Options, scratch: &Path) -> Result<CaseReport> {
    let dirs: Vec<PathBuf> = (0..case.entries.len()).map(|entry| scratch.join(format!("{entry}"))).collect();
    for (entry, dir) in case.entries.iter().zip(&dirs) {
        if let Some(setup) = &entry.setup {
            eprintln!("{}: preparing {}", case.name, entry.label);
            make_empty(dir)?;
            run_child(entry.contender, dir, setup)?;
        }
    }
    let rounds = if case.is_steady { 1 } else { options.rounds as usize };
    let mut samples: Vec<Rounds> = vec![Vec::new(); case.entries.len()];
    for round in 0..rounds {
        for turn in 0..case.entries.len() {
            // Another contender begins each round, so that nobody always follows the same one.
            let index = (round + turn) % case.entries.len();
            let entry = &case.entries[index];
            eprintln!("{}: round {} of {rounds}, {}", case.name, round + 1, entry.label);
            let outcome = run_entry(entry, directory_of(case, index, &dirs));
            samples[index].push(outcome.inspect_err(|error| eprintln!("  failed: {error:#}")).ok());
        }
    }
    for dir in dirs.iter().filter(|dir| dir.exists()) {
        fs::remove_dir_all(dir)?;
    }
    Ok(CaseReport::new(case, samples))
}

/// The directory an entry works in: its own, or that of the row whose files it reads.
fn directory_of<'a>(case: &Case, index: usize, dirs: &'a [PathBuf]) -> &'a Path {
    let owner = case.entries[index].files_of;
    let owner = owner.and_then(|label| case.entries.iter().position(|entry| entry.label == label));
    &dirs[owner.unwrap_or(index)]
}

/// One run of one entry.
fn run_entry(entry: &Entry, dir: &Path) -> Result<Sample> {
    let is_fresh = !entry.keeps_files() && entry.files_of.is_none();
    if is_fresh {
        make_empty(dir)?;
    }
    if let Some(job) = &entry.killed_writer {
        run_and_kill(entry.contender, dir, job)?;
    }
    let sample = run_child(entry.contender, dir, &entry.job);
    if is_fresh {
        fs::remove_dir_all(dir)?;
    }
    sample
}

/// Makes `dir` an empty directory, with the file system at rest.
fn make_empty(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    disk::settle(dir)
}

/// Starts this program once more to carry out a job.
fn spawn(contender: ContenderId, dir: &Path, job: &Job) -> Result<Child> {
    let order = Order { contender, dir: dir.to_path_buf(), job: job.clone() };
    Command::new(std::env::current_exe()?)
        .arg("--child")
        .arg(serde_json::to_string(&order)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start a child process")
}

/// Runs a job to its end and returns what it printed.
fn run_child(contender: ContenderId, dir: &Path, job: &Job) -> Result<Sample> {
    let output = spawn(contender, dir, job)?.wait_with_output()?;
    ensure!(output.status.success(), "{} ended with {}", contender.name(), output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().context("the child printed nothing")?;
    serde_json::from_str(line).with_context(|| format!("not a sample: {line}"))
}

/// Runs a job until it says `ready`, and kills it a moment later.
fn run_and_kill(contender: ContenderId, dir: &Path, job: &Job) -> Result<()> {
    let mut child = spawn(contender, dir, job)?;
    let mut line = String::new();
    let outcome = match child.stdout.take() {
        Some(out) => BufReader::new(out).read_line(&mut line).context("cannot read from the writer"),
        None => bail!("the writer has no output"),
    };
    thread::sleep(TIME_TO_KILL);
    child.kill()?;
    child.wait()?;
    outcome?;
    ensure!(line.trim() == "ready", "{} ended before it could be killed", contender.name());
    Ok(())
}
