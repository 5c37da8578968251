//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Measures lsfs against its peers and the raw device, in one run and in one directory.
#[derive(Parser, Debug)]
#[command(name = "lsfs-bench", version)]
pub struct Cli {
    #[command(flatten)]
    pub options: Options,

    /// Runs one measurement in this process and prints it: how the harness calls itself.
    #[arg(long, hide = true)]
    pub child: Option<String>,
}

/// What to measure, how often and where.
#[derive(clap::Args, Debug, Clone)]
pub struct Options {
    /// Measure only this case (may be repeated); `kv-*` is all that begin so. Default: every case but the large ones.
    #[arg(long = "case", value_name = "NAME")]
    pub cases: Vec<String>,

    /// Measure only this contender (may be repeated).
    #[arg(long = "contender", value_name = "NAME")]
    pub contenders: Vec<String>,

    /// Rounds; in each, every contender of a case runs once, one after the other.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Measured seconds of each timed run, after its warm-up.
    #[arg(long, default_value_t = 2.0, value_name = "S", value_parser = positive_seconds)]
    pub seconds_per_run: f64,

    /// Keys of the key-value cases.
    #[arg(long, default_value_t = 2_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(100..))]
    pub keys: u64,

    /// Gets of each kind in a run of the key-value cases.
    #[arg(long, default_value_t = 1_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(100..))]
    pub reads: u64,

    /// Loads, overwrites and deletes of the key-value cases end after this time, whatever is left to do.
    #[arg(long, default_value_t = 20.0, value_name = "S", value_parser = positive_seconds)]
    pub cap_seconds: f64,

    /// Keys of the store that the command `kvs get` is started on.
    #[arg(long, default_value_t = 10_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(100..))]
    pub command_keys: u64,

    /// The command `kvs` to measure.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/kvs"), value_name = "FILE")]
    pub kvs: PathBuf,

    /// Directory on the disk to measure. A fresh folder is made inside it and removed at the end.
    #[arg(long, default_value = "target/bench-data", value_name = "D")]
    pub dir: PathBuf,

    /// Write every sample, median, ratio and goal to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Also run the large cases (8 GiB of data).
    #[arg(long)]
    pub large: bool,

    /// List cases and contenders, and stop.
    #[arg(long)]
    pub list: bool,
}

/// Accepts a number of seconds above zero.
fn positive_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 3600.0 => Ok(seconds),
        Ok(_) => Err("must be above 0 and at most 3600".into()),
        Err(error) => Err(error.to_string()),
    }
}
