//! Power failures and kills during everything a data stream does.

use std::io::{Read, Write};

use lsfs::io::SimDisk;
use lsfs::{DataReader, DataStream, DataStreamOptions, StreamOptions};

use crate::crash::{Workload, crash_images};
use crate::support::{Choices, sim_env};

const DIR: &str = "/data";

fn options(seed: u64) -> DataStreamOptions {
    let block_bytes = [512, 4096][(seed % 2) as usize];
    let stream = StreamOptions {
        block_bytes,
        segment_bytes: (block_bytes * 16) as u64,
        in_flight_bytes: block_bytes * 4,
        ..StreamOptions::default()
    };
    DataStreamOptions { stream, ..DataStreamOptions::default() }
}

/// A data stream that is written to, marked and reopened.
pub(crate) struct DataStreamWorkload {
    seed: u64,
}

/// The bytes that were written, and the marks: operations of the recording, and bytes before the mark.
pub(crate) struct Marks {
    bytes: Vec<u8>,
    marks: Vec<(usize, usize)>,
}

impl DataStreamWorkload {
    fn open(&self, disk: &SimDisk, seed: u64) -> Result<DataStream, String> {
        DataStream::open_in(sim_env(disk, seed), DIR, options(self.seed))
            .map_err(|error| format!("open: {error}"))
    }
}

impl Workload for DataStreamWorkload {
    /// The marked bytes.
    type State = Vec<u8>;
    type History = Marks;
    type Open = DataStream;

    fn new(seed: u64) -> Self {
        DataStreamWorkload { seed }
    }

    fn generations(&self) -> u64 {
        3
    }

    fn nothing(&self) -> Vec<u8> {
        Vec::new()
    }

    fn run(&self, disk: &SimDisk, generation: u64, found: Vec<u8>) -> Result<(Marks, DataStream), String> {
        let mut choices = Choices::new(self.seed * 13 + generation);
        let mut data = self.open(disk, self.seed * 1000 + generation * 100)?;
        if data.position() != found.len() as u64 {
            return Err(format!("opened again at byte {}, it had {}", data.position(), found.len()));
        }
        let mut marks = vec![(disk.trace_len(), found.len())];
        let mut bytes = found;
        for n in 1..=8 {
            if choices.below(8) == 0 {
                data.close().map_err(|error| format!("close: {error}"))?;
                data = self.open(disk, self.seed * 1000 + generation * 100 + n)?;
                bytes.truncate(marks.last().expect("there is one before all").1);
            }
            let piece: Vec<u8> = (0..choices.below(9000)).map(|_| choices.next() as u8).collect();
            data.write_all(&piece).map_err(|error| format!("write: {error}"))?;
            bytes.extend(&piece);
            if choices.below(3) > 0 {
                let mark = data.mark().map_err(|error| format!("mark: {error}"))?;
                if mark.byte_count != bytes.len() as u64 {
                    return Err(format!("marked {} bytes, written were {}", mark.byte_count, bytes.len()));
                }
                marks.push((disk.trace_len(), bytes.len()));
            }
        }
        Ok((Marks { bytes, marks }, data))
    }

    fn recover(&self, disk: &SimDisk, seed: u64, _thorough: bool) -> Result<Vec<u8>, String> {
        let data = self.open(disk, seed)?;
        let mut reader =
            DataReader::open_in(sim_env(disk, !seed), DIR).map_err(|error| format!("read: {error}"))?;
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(|error| format!("read: {error}"))?;
        if data.position() != bytes.len() as u64 {
            return Err(format!("the writer is at byte {}, a reader reads {}", data.position(), bytes.len()));
        }
        drop(disk.restart());
        Ok(bytes)
    }

    fn opened(&self, history: &Marks) -> usize {
        history.marks[0].0
    }

    fn judge(&self, history: &Marks, point: usize, found: &Vec<u8>) -> Result<(), String> {
        let Marks { bytes, marks } = history;
        let last = marks.iter().rposition(|(operations, _)| *operations <= point).unwrap_or(0);
        if !marks[last..].iter().take(2).any(|(_, len)| *len == found.len()) {
            return Err(format!("found {} bytes, the last mark before had {}", found.len(), marks[last].1));
        }
        // A reopened stream goes on from its last mark: bytes behind it were given up and written anew.
        if found[..] == bytes[..found.len()] { Ok(()) } else { Err("bytes differ".to_string()) }
    }

    fn show(&self, history: &Marks) -> String {
        format!("marks (operations, bytes): {:?}", history.marks)
    }
}

#[test]
fn no_crash_loses_marked_bytes() {
    crash_images::<DataStreamWorkload>("data streams", 20_000);
}
