//! From samples to tables and JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cases::Case;
use crate::goal::Verdict;
use crate::machine::Machine;
use crate::metric::{Metric, Sample, median};
use crate::table::Table;

/// Everything one run of the harness found out.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// Rounds asked for.
    pub rounds: u32,
    /// Measured seconds of each timed run.
    pub seconds_per_run: f64,
    /// One per case.
    pub cases: Vec<CaseReport>,
}

/// The figures of one case.
#[derive(Debug, Serialize)]
pub struct CaseReport {
    /// Name of the case.
    pub name: &'static str,
    /// Heading of the table.
    pub title: String,
    /// Remarks below the heading.
    pub notes: Vec<String>,
    /// One per entry.
    pub rows: Vec<RowReport>,
    #[serde(skip)]
    columns: Vec<Metric>,
    #[serde(skip)]
    ratio_metric: Metric,
    #[serde(skip)]
    ratio_against: Vec<&'static str>,
}

/// The figures of one row.
#[derive(Debug, Serialize)]
pub struct RowReport {
    /// Label of the row.
    pub label: &'static str,
    /// One figure per metric, over all rounds.
    pub combined: BTreeMap<Metric, f64>,
    /// The distance between the best and the worst round, as a part of the median.
    pub spread: f64,
    /// Ratios to other rows, by their labels.
    pub ratios: BTreeMap<&'static str, Ratio>,
    /// Goals of this row.
    pub verdicts: Vec<Verdict>,
    /// What every round measured; nothing where it failed.
    pub rounds: Vec<Option<Sample>>,
}

/// The ratio of two rows, computed within each round, so that drift of the machine falls out.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Ratio {
    /// Over all rounds.
    pub median: f64,
    /// Smallest of a round.
    pub min: f64,
    /// Largest of a round.
    pub max: f64,
}

/// Samples of one entry, one per round; nothing where a round failed.
pub type Rounds = Vec<Option<Sample>>;

impl CaseReport {
    /// Reduces the samples of all entries of a case.
    pub fn new(case: &Case, samples: Vec<Rounds>) -> Self {
        let rows = (0..samples.len()).map(|row| row_report(case, &samples, row)).collect();
        CaseReport {
            name: case.name,
            title: case.title.clone(),
            notes: case.notes.clone(),
            rows,
            columns: case.columns.clone(),
            ratio_metric: case.ratio_metric,
            ratio_against: case.ratio_against.clone(),
        }
    }

    /// Whether every round of every row was measured.
    pub fn is_complete(&self) -> bool {
        self.rows.iter().all(|row| row.rounds.iter().all(Option::is_some))
    }

    /// The table as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("## {}: {}", self.name, self.title)];
        lines.extend(self.notes.iter().map(|note| format!("   {note}")));
        lines.push(format!("   ratio columns and spread: {}", self.ratio_metric.heading()));
        lines.push(String::new());
        lines.extend(self.table().lines());
        lines
    }

    fn table(&self) -> Table {
        let headings = ["contender".to_string()]
            .into_iter()
            .chain(self.columns.iter().map(|metric| metric.heading().to_string()))
            .chain(["spread".to_string()])
            .chain(self.ratio_against.iter().map(|label| format!("x {label}")))
            .chain(["goal".to_string()]);
        let mut table = Table::new(headings.collect(), true);
        for row in &self.rows {
            self.push_row(&mut table, row);
        }
        table
    }

    /// Adds a row, and a further line for each goal after the first.
    fn push_row(&self, table: &mut Table, row: &RowReport) {
        let failures = row.rounds.iter().filter(|round| round.is_none()).count();
        let mut goals = row.verdicts.iter().map(|verdict| verdict.text.clone()).collect::<Vec<_>>();
        if failures > 0 {
            goals.insert(0, format!("FAILED in {failures} of {} rounds", row.rounds.len()));
        }
        let mut goals = goals.into_iter();
        let mut cells = vec![row.label.to_string()];
        cells.extend(self.columns.iter().map(|&metric| figure(row.combined.get(&metric), metric.decimals())));
        cells.push(format!("{:.0}%", row.spread * 100.0));
        cells.extend(
            self.ratio_against
                .iter()
                .map(|label| figure(row.ratios.get(label).map(|ratio| &ratio.median), 2)),
        );
        cells.push(goals.next().unwrap_or_default());
        let columns = cells.len();
        table.push(cells);
        for goal in goals {
            let mut cells = vec![String::new(); columns];
            cells[columns - 1] = goal;
            table.push(cells);
        }
    }
}

/// A number with `decimals` digits, or a dash.
fn figure(value: Option<&f64>, decimals: usize) -> String {
    match value {
        Some(value) if value.is_finite() => format!("{value:.decimals$}"),
        _ => "-".into(),
    }
}

/// Reduces the samples of one row.
fn row_report(case: &Case, samples: &[Rounds], row: usize) -> RowReport {
    let rounds = &samples[row];
    let entry = &case.entries[row];
    let ratio = |metric, label: &str| {
        let other = case.entries.iter().position(|entry| entry.label == label)?;
        ratio(rounds, &samples[other], metric)
    };
    let verdicts = case.goals.iter().filter(|goal| goal.row == entry.label).map(|goal| {
        goal.judge(match goal.against {
            Some(label) => ratio(goal.metric, label).map(|ratio| ratio.median),
            None => combined(rounds, goal.metric),
        })
    });
    RowReport {
        label: entry.label,
        combined: case
            .columns
            .iter()
            .filter_map(|&metric| Some((metric, combined(rounds, metric)?)))
            .collect(),
        spread: spread(rounds, case.ratio_metric),
        ratios: case
            .ratio_against
            .iter()
            .filter_map(|&label| Some((label, ratio(case.ratio_metric, label)?)))
            .collect(),
        verdicts: verdicts.collect(),
        rounds: rounds.clone(),
    }
}

/// The values of a metric in the rounds that have it.
fn values(rounds: &Rounds, metric: Metric) -> Vec<f64> {
    rounds.iter().flatten().filter_map(|sample| sample.get(metric)).collect()
}

/// One figure for all rounds.
fn combined(rounds: &Rounds, metric: Metric) -> Option<f64> {
    let values = values(rounds, metric);
    (!values.is_empty()).then(|| metric.combine(&values))
}

/// The distance between the extremes as a part of the median.
fn spread(rounds: &Rounds, metric: Metric) -> f64 {
    let values = values(rounds, metric);
    let (min, max) = extremes(&values);
    (max - min) / median(&values)
}

/// Smallest and largest value.
fn extremes(values: &[f64]) -> (f64, f64) {
    (values.iter().copied().fold(f64::NAN, f64::min), values.iter().copied().fold(f64::NAN, f64::max))
}

/// The ratio of two rows, over the rounds that both have.
fn ratio(ours: &Rounds, theirs: &Rounds, metric: Metric) -> Option<Ratio> {
    let ratios: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .filter_map(|(ours, theirs)| Some(ours.as_ref()?.get(metric)? / theirs.as_ref()?.get(metric)?))
        .collect();
    let (min, max) = extremes(&ratios);
    (!ratios.is_empty()).then(|| Ratio { median: median(&ratios), min, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(values: &[f64]) -> Rounds {
        values.iter().map(|&value| Some(Sample::of([(Metric::OpenMs, value)]))).collect()
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        let mut ours = rounds(&[1.0, 20.0, 300.0, 5.0]);
        let theirs = rounds(&[2.0, 10.0, 100.0, 1.0]);
        ours[3] = None;
        let ratio = ratio(&ours, &theirs, Metric::OpenMs).unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (0.5, 2.0, 3.0));
        assert!(super::ratio(&ours, &theirs, Metric::P99Us).is_none());
    }
}
