//! Our own segment set: entries found by pointers.

use std::path::Path;

use anyhow::{Context, Result};
use lsfs::codec::Pointer;
use lsfs::{Durability, SegmentSet, SegmentSetReader, SetKind, SetOptions};

use super::{Contender, ContenderId, Producer, RandomReader, StorePlan};

/// The user's byte of every entry.
const KIND: u8 = 1;

fn options(id: ContenderId) -> SetOptions {
    let kind = if id == ContenderId::LsfsSetCache { SetKind::Cache } else { SetKind::Durable };
    SetOptions { kind, ..SetOptions::default() }
}

/// Opens a set with its default options, new or existing.
pub fn open(id: ContenderId, dir: &Path, plan: &StorePlan) -> Result<Box<dyn Contender>> {
    let durability = if plan.is_synced { Durability::Sync } else { Durability::Buffer };
    Ok(Box::new(OpenSet { set: SegmentSet::open(dir, options(id))?, durability }))
}

/// An open set.
struct OpenSet {
    set: SegmentSet,
    durability: Durability,
}

impl Contender for OpenSet {
    fn producer(&self, _number: usize) -> Result<Box<dyn Producer + '_>> {
        Ok(Box::new(SetProducer { set: &self.set, durability: self.durability, batch: Vec::new() }))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.set.close()?)
    }
}

/// Appends and forgets the pointers, which a program would keep in its index.
struct SetProducer<'a> {
    set: &'a SegmentSet,
    durability: Durability,
    batch: Vec<(u8, &'static [u8])>,
}

impl Producer for SetProducer<'_> {
    fn append(&mut self, records: &[&'static [u8]]) -> Result<()> {
        if let [record] = records {
            self.set.append(KIND, record, self.durability)?;
        } else {
            self.batch.clear();
            self.batch.extend(records.iter().map(|&record| (KIND, record)));
            self.set.append_batch(&self.batch, self.durability)?;
        }
        Ok(())
    }
}

/// Reads entries by pointers that it holds in memory.
struct SetReads<F> {
    read: F,
    pointers: Vec<Pointer>,
}

impl<F: FnMut(Pointer) -> Result<usize>> RandomReader for SetReads<F> {
    fn read(&mut self, number: u64) -> Result<usize> {
        let pointer = *self.pointers.get(number as usize).context("the set has fewer entries")?;
        (self.read)(pointer)
    }
}

/// Seals what there is, and collects where everything lies.
fn seal_and_collect(dir: &Path) -> Result<(SegmentSet, Vec<Pointer>)> {
    let set = SegmentSet::open(dir, options(ContenderId::LsfsSet))?;
    set.seal()?;
    let mut pointers = Vec::new();
    let mut entries = set.iter();
    while let Some(entry) = entries.next_entry()? {
        pointers.push(entry.pointer);
    }
    drop(entries);
    Ok((set, pointers))
}

/// Opens it for reading by pointer from sealed segments: through the writer's handle, or as another process does.
pub fn random_reader(id: ContenderId, dir: &Path) -> Result<Box<dyn RandomReader>> {
    let (set, pointers) = seal_and_collect(dir)?;
    if id == ContenderId::LsfsSet {
        let read = move |pointer| Ok(set.read(pointer)?.body.len());
        return Ok(Box::new(SetReads { read, pointers }));
    }
    set.close()?;
    let reader = SegmentSetReader::open(dir)?;
    let read = move |pointer| Ok(reader.read(pointer)?.body.len());
    Ok(Box::new(SetReads { read, pointers }))
}
