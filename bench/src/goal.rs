//! What lsfs should reach, and whether it did.

use serde::Serialize;

use crate::metric::Metric;

/// A bound on one figure of one row, absolute or relative to another row.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    /// Label of the row it is about.
    pub row: &'static str,
    /// The figure.
    pub metric: Metric,
    /// Label of the row the figure is divided by, if the goal is a ratio.
    pub against: Option<&'static str>,
    direction: Direction,
    bound: f64,
    is_stretch: bool,
}

/// On which side of the bound the figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Direction {
    AtLeast,
    AtMost,
}

/// A goal held against a figure.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// The goal in words.
    pub goal: String,
    /// The figure, or nothing if it was not measured.
    pub value: Option<f64>,
    /// Whether the goal is met.
    pub is_met: bool,
    /// Whether it is more than what is asked.
    pub is_stretch: bool,
    /// The verdict in words.
    pub text: String,
}

impl Goal {
    /// The figure should be at least `bound`.
    pub fn at_least(row: &'static str, metric: Metric, bound: f64) -> Self {
        Goal { row, metric, against: None, direction: Direction::AtLeast, bound, is_stretch: false }
    }

    /// The figure should be at most `bound`.
    pub fn at_most(row: &'static str, metric: Metric, bound: f64) -> Self {
        Goal { direction: Direction::AtMost, ..Goal::at_least(row, metric, bound) }
    }

    /// The same as a multiple of another row's figure.
    pub fn against(self, label: &'static str) -> Self {
        Goal { against: Some(label), ..self }
    }

    /// The same, as a wish.
    pub fn stretch(self) -> Self {
        Goal { is_stretch: true, ..self }
    }

    /// Holds the goal against a figure (a ratio if the goal is one).
    pub fn judge(&self, value: Option<f64>) -> Verdict {
        let goal = self.in_words();
        let unit = if self.against.is_some() { "x" } else { "" };
        let is_met = value.is_some_and(|value| match self.direction {
            Direction::AtLeast => value >= self.bound,
            Direction::AtMost => value <= self.bound,
        });
        let text = match value {
            None => format!("{goal}: not measured"),
            Some(value) if is_met => format!("{goal}: met ({value:.2}{unit})"),
            Some(value) => {
                let percent = (value / self.bound - 1.0).abs() * 100.0;
                format!("{goal}: MISSED by {percent:.0} % ({value:.2}{unit})")
            }
        };
        Verdict { goal, value, is_met, is_stretch: self.is_stretch, text }
    }

    /// The goal in words.
    fn in_words(&self) -> String {
        let sign = if self.direction == Direction::AtLeast { ">=" } else { "<=" };
        let stretch = if self.is_stretch { " (stretch)" } else { "" };
        let (metric, bound) = (self.metric.heading(), self.bound);
        match self.against {
            Some(label) => format!("{metric} {sign} {bound}x {label}{stretch}"),
            None => format!("{metric} {sign} {bound}{stretch}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_say_by_how_much() {
        let goal = Goal::at_least("lsfs", Metric::RecordsPerSecond, 0.95).against("raw-direct");
        assert_eq!(goal.judge(Some(0.96)).text, "records/s >= 0.95x raw-direct: met (0.96x)");
        assert_eq!(goal.judge(Some(0.76)).text, "records/s >= 0.95x raw-direct: MISSED by 20 % (0.76x)");
        let goal = Goal::at_most("lsfs", Metric::OpenMs, 10.0);
        assert_eq!(goal.judge(Some(15.0)).text, "open ms <= 10: MISSED by 50 % (15.00)");
        assert!(!goal.judge(None).is_met);
    }
}
