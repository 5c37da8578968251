//! An event log: the program of README.md. `cargo run --example event_log`
#![allow(clippy::print_stdout, reason = "an example shows what it read")]

use lsfs::{Reader, RecordStream, StreamOptions};

const SIGNED_IN: u64 = 1;
const SIGNED_OUT: u64 = 2;

fn main() -> lsfs::Result<()> {
    let dir = std::env::temp_dir().join("lsfs-event-log");
    let events = RecordStream::open(&dir, StreamOptions::default())?;

    let index = events.append(SIGNED_IN, b"ada")?; // durable on return
    assert_eq!(events.read(index)?.payload, b"ada");

    events.append_buffered(SIGNED_IN, b"grace")?; // durable after the next sync
    events.append_buffered(SIGNED_OUT, b"ada")?;
    events.sync()?;

    // A reader takes no lock: beside the writer, in this or another process.
    let reader = Reader::open(&dir)?;
    let mut records = reader.iter(index..)?;
    while let Some(record) = records.next_record()? {
        println!("{} {} {}", record.index, record.type_code, String::from_utf8_lossy(&record.payload));
    }
    events.close()
}
