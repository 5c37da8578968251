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
    /// Gets of one thread per second, of keys that are equally likely.
    Gets,
    /// The same of two threads together.
    Gets2,
    /// Gets of one thread per second, of keys of which few are asked for often.
    ZipfGets,
    /// The same of two threads together.
    ZipfGets2,
    /// Gets of one thread per second, of keys that are not there.
    Misses,
    /// The same of two threads together.
    Misses2,
    /// Bytes written to files over bytes of keys and values; zeros written ahead are left out where they are counted.
    WriteAmplification,
    /// Zeros written ahead, in MiB, where the contender counts them.
    ZeroMib,
    /// Most space that the files took at any time, over the bytes of the keys and values that are there.
    PeakSpace,
    /// Space that the files take after the close, over the same.
    FinalSpace,
    /// How many keys were written, in millions: fewer than asked for where the time was up.
    MillionsWritten,
    /// Memory of the index for each key, in bytes.
    IndexBytesPerKey,
    /// Wall time of a command in a process of its own, in milliseconds.
    CommandMs,
    /// The same with none of the store's files in the page cache.
    ColdCommandMs,
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
            Metric::Gets => "gets/s",
            Metric::Gets2 => "gets/s x2",
            Metric::ZipfGets => "zipf/s",
            Metric::ZipfGets2 => "zipf/s x2",
            Metric::Misses => "misses/s",
            Metric::Misses2 => "misses/s x2",
            Metric::WriteAmplification => "write amp",
            Metric::ZeroMib => "zeros MiB",
            Metric::PeakSpace => "peak space x",
            Metric::FinalSpace => "final space x",
            Metric::MillionsWritten => "M written",
            Metric::IndexBytesPerKey => "index B/key",
            Metric::CommandMs => "command ms",
            Metric::ColdCommandMs => "uncached ms",
        }
    }

    /// Digits after the point when printed.
    pub fn decimals(self) -> usize {
        match self {
            Metric::RecordsPerSecond
            | Metric::P50Us
            | Metric::P99Us
            | Metric::MaxUs
            | Metric::OthersCpuPercent
            | Metric::Gets
            | Metric::Gets2
            | Metric::ZipfGets
            | Metric::ZipfGets2
            | Metric::Misses
            | Metric::Misses2 => 0,
            Metric::MbPerSecond
            | Metric::PeakRssMib
            | Metric::LiveMib
            | Metric::AllocatedMib
            | Metric::ZeroMib
            | Metric::CommandMs
            | Metric::ColdCommandMs => 1,
            Metric::CpuUsPerRecord
            | Metric::OpenMs
            | Metric::OverheadBytes
            | Metric::WriteAmplification
            | Metric::PeakSpace
            | Metric::FinalSpace
            | Metric::MillionsWritten
            | Metric::IndexBytesPerKey => 2,
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
