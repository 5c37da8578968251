//! Power failures and kills during everything final data does.

use lsfs::io::SimDisk;
use lsfs::{FinalData, FinalDataOptions, Reader, State};

use crate::crash::{Workload, crash_images};
use crate::support::{Choices, sim_env};

const DIR: &str = "/data";

fn options(seed: u64) -> FinalDataOptions {
    let block_bytes = [512, 1024, 4096][(seed % 3) as usize];
    FinalDataOptions { block_bytes, limit_blocks: 6, ..FinalDataOptions::default() }
}

fn state_bytes(choices: &mut Choices, seed: u64, version: u64) -> Vec<u8> {
    // Some seeds use one size, so that leftovers of a torn state lie where the next one goes.
    let len = if seed.is_multiple_of(2) { 900 } else { choices.below(4000) };
    let mut bytes = vec![choices.next() as u8; len as usize];
    bytes.extend(version.to_le_bytes());
    bytes
}

/// What a crash may leave: this state, or the next one if it was being set.
pub(crate) struct Moment {
    operations: usize,
    state: Option<State>,
}

/// Final data that is set and reopened.
pub(crate) struct FinalDataWorkload {
    seed: u64,
}

impl FinalDataWorkload {
    fn open(&self, disk: &SimDisk, seed: u64) -> Result<FinalData, String> {
        FinalData::open_in(sim_env(disk, seed), DIR, options(self.seed))
            .map_err(|error| format!("open: {error}"))
    }
}

impl Workload for FinalDataWorkload {
    type State = Option<State>;
    type History = Vec<Moment>;
    type Open = FinalData;

    fn new(seed: u64) -> Self {
        FinalDataWorkload { seed }
    }

    fn generations(&self) -> u64 {
        5
    }

    fn nothing(&self) -> Option<State> {
        None
    }

    fn run(
        &self,
        disk: &SimDisk,
        generation: u64,
        found: Option<State>,
    ) -> Result<(Vec<Moment>, FinalData), String> {
        let mut choices = Choices::new(self.seed * 77 + generation);
        let mut data = self.open(disk, self.seed * 1000 + generation * 100)?;
        let mut version = found.as_ref().map_or(0, |state| state.version);
        if data.get() != found {
            return Err("opened again, it is another state".to_string());
        }
        let mut moments = vec![Moment { operations: disk.trace_len(), state: found }];
        for n in 1..=10 {
            if choices.below(5) == 0 {
                data.close().map_err(|error| format!("close: {error}"))?;
                data = self.open(disk, self.seed * 1000 + generation * 100 + n)?;
            }
            version += 1;
            let bytes = state_bytes(&mut choices, self.seed, version);
            let set = data.set(&bytes).map_err(|error| format!("set: {error}"))?;
            if set != version {
                return Err(format!("set answered version {set}, expected {version}"));
            }
            let state = Some(State { version, bytes: bytes.into() });
            moments.push(Moment { operations: disk.trace_len(), state });
        }
        Ok((moments, data))
    }

    fn recover(&self, disk: &SimDisk, seed: u64, thorough: bool) -> Result<Option<State>, String> {
        let found = self.open(disk, seed)?.get();
        if thorough {
            let read =
                FinalData::read_in(sim_env(disk, !seed), DIR).map_err(|error| format!("read: {error}"))?;
            if read != found {
                return Err("a reader sees another state than the writer".to_string());
            }
        }
        drop(disk.restart());
        Ok(found)
    }

    fn opened(&self, history: &Vec<Moment>) -> usize {
        history[0].operations
    }

    fn judge(&self, history: &Vec<Moment>, point: usize, found: &Option<State>) -> Result<(), String> {
        let last = history.iter().rposition(|moment| moment.operations <= point).unwrap_or(0);
        if history[last..].iter().take(2).any(|moment| moment.state == *found) {
            return Ok(());
        }
        let version = |state: &Option<State>| state.as_ref().map_or(0, |state| state.version);
        Err(format!(
            "found version {} (or other bytes), admitted {} or the next",
            version(found),
            version(&history[last].state)
        ))
    }

    fn show(&self, history: &Vec<Moment>) -> String {
        let ends = history.iter().map(|moment| moment.operations.to_string());
        format!("sets ended at {}", ends.collect::<Vec<_>>().join(", "))
    }
}

#[test]
fn no_crash_loses_or_mixes_a_state() {
    crash_images::<FinalDataWorkload>("final data", 20_000);
}

/// Flips bits of the file with the latest state, which a witness says is durable: it is answered, or its loss is.
pub(crate) fn damage_state() -> Result<(), String> {
    let disk = SimDisk::new(1);
    let data = FinalData::open_in(sim_env(&disk, 1), DIR, options(0)).map_err(|error| error.to_string())?;
    for version in 1..=3u8 {
        data.set(&[version; 700]).map_err(|error| error.to_string())?;
    }
    data.close().map_err(|error| error.to_string())?;
    let path = format!("{DIR}/state.b");
    let len = disk.contents(path.as_ref()).map_or(0, |bytes| bytes.len() as u64);
    let good = FinalData::read_in(sim_env(&disk, 1), DIR).map_err(|error| error.to_string())?;
    let (mut lost, mut harmless) = (0, 0);
    for bit in (0..len * 8).step_by(5) {
        disk.flip_bit(path.as_ref(), bit).expect("the bit is in the file");
        match FinalData::read_in(sim_env(&disk, 1), DIR) {
            Ok(state) if state == good => harmless += 1,
            Ok(_) => return Err(format!("bit {bit} flipped: another state is answered")),
            Err(error) if error.is_corruption() || error.to_string().contains("version") => lost += 1,
            Err(error) => return Err(format!("bit {bit} flipped: {error}")),
        }
        disk.flip_bit(path.as_ref(), bit).expect("the bit is in the file");
    }
    let enough = lost > 500 && harmless > 500;
    if enough { Ok(()) } else { Err(format!("{lost} flips lost a state, {harmless} did not")) }
}

#[test]
fn a_damaged_state_is_reported_and_no_older_one_answered() {
    damage_state().unwrap();
    assert!(Reader::open_in(sim_env(&SimDisk::new(1), 1), DIR).is_err());
}
