//! lsfs: the log engine.
mod block;
pub mod codec;
mod data_stream;
mod directory;
mod env;
mod error;
mod final_data;
pub mod io;
mod metrics;
mod stream;

pub use data_stream::{DataReader, DataStream, DataStreamOptions};
pub use env::Env;
pub use error::{Corruption, Error, Result};
pub use final_data::{FinalData, FinalDataOptions, State};
pub use metrics::Latencies;
pub use stream::*;
