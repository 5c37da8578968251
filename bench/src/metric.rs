//! What is measured, and how several rounds become one figure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One measured quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Records made durable (or read back) per second.
    RecordsPerSecond,
    /// Payload megabytes (10^6 bytes) per second.
    MbPerSecond,
    /// Median latency of one synced append, in microseconds.
    P50Us,
    /// 99th percentile of the same.
    P99Us,
    /// The slowest append of all.
    MaxUs,
    /// User and system time of the whole process per record, in microseconds.
    CpuUsPerRecord,
    /// Processor time that the rest of the machine took meanwhile, as a part of all processors, in percent.
    OthersCpuPercent,
    /// Peak resident memory of the process while measured, in MiB.
    PeakRssMib,
    /// Time from calling open to a usable handle, in milliseconds.
    OpenMs,
    /// Live file bytes per record beyond its payload.
    OverheadBytes,
    /// Live file bytes, in MiB.
    LiveMib,
    /// Bytes the file system has allocated for the files, in MiB.
    AllocatedMib,
}

impl Metric {
    /// The heading of its column.
    pub fn heading(self) -> &'static str {
        match self {
            Metric::RecordsPerSecond => "records/s",
            Metric::MbPerSecond => "MB/s",
            Metric::P50Us => "p50 us",
            Metric::P99Us => "p99 us",
            Metric::MaxUs => "max us",
            Metric::CpuUsPerRecord => "CPU us/rec",
            Metric::OthersCpuPercent => "others CPU%",
            Metric::PeakRssMib => "RSS MiB",
            Metric::OpenMs => "open ms",
            Metric::OverheadBytes => "bytes/rec beyond payload",
            Metric::LiveMib => "live MiB",
            Metric::AllocatedMib => "allocated MiB",
        }
    }

    /// Digits after the point when printed.
    pub fn decimals(self) -> usize {
        match self {
            Metric::RecordsPerSecond
            | Metric::P50Us
            | Metric::P99Us
            | Metric::MaxUs
            | Metric::OthersCpuPercent => 0,
            Metric::MbPerSecond | Metric::PeakRssMib | Metric::LiveMib | Metric::AllocatedMib => 1,
            Metric::CpuUsPerRecord | Metric::OpenMs | Metric::OverheadBytes => 2,
        }
    }

    /// One figure for all rounds: the median, except that the slowest append stays the slowest.
    pub fn combine(self, rounds: &[f64]) -> f64 {
        match self {
            Metric::MaxUs => rounds.iter().copied().fold(f64::NAN, f64::max),
            _ => median(rounds),
        }
    }
}

/// What one run measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Sample(pub BTreeMap<Metric, f64>);

impl Sample {
    /// A sample of these values.
    pub fn of<const N: usize>(values: [(Metric, f64); N]) -> Self {
        Sample(BTreeMap::from(values))
    }

    /// The value of `metric`, if this run measured it.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        self.0.get(&metric).copied()
    }
}

/// The median; of an even number of values, the mean of the two in the middle. NaN for no values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_slowest_append_is_not_averaged_away() {
        assert_eq!(Metric::MaxUs.combine(&[1.0, 9.0, 2.0]), 9.0);
        assert_eq!(Metric::P99Us.combine(&[1.0, 9.0, 2.0]), 2.0);
    }
}
