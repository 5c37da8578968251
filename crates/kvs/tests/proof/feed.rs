//! The change feed against a model: who follows it, over restarts, crashes and compaction, has what the store has.

use kvs::{Error, Feed, FeedStart, KvReader, KvStore, Options, Position};
use lsfs::io::{CrashStyle, SimDisk};

use crate::support::{Choices, budget, sim_env};
use crate::{Command, DIR, Model, buffered, contents, difference, options};

const KEYS: u64 = 20;

/// Follows the feed; what it has not seen is behind its position.
struct Replica {
    position: Position,
    model: Model,
    begun_again: u64,
}

impl Replica {
    /// Takes over what the feed has.
    fn follow(&mut self, mut feed: Feed) -> kvs::Result<()> {
        while let Some(change) = feed.next_change()? {
            match change.value {
                Some(value) => self.model.insert(change.key, value),
                None => self.model.remove(&change.key),
            };
            self.position = change.position;
        }
        self.position = feed.position();
        Ok(())
    }

    /// As [`Replica::follow`]; begins with a copy of the store if it was left behind.
    fn catch_up(&mut self, store: &KvStore, disk: &SimDisk, seed: u64) {
        let from = FeedStart::At(self.position);
        // In the writer's process or in another one.
        let feed = match seed.is_multiple_of(2) {
            true => store.changes(from),
            false => KvReader::open_with(DIR, options(sim_env(disk, seed))).unwrap().changes(from),
        };
        match feed.and_then(|feed| self.follow(feed)) {
            Ok(()) => {}
            Err(Error::PositionGone { .. }) => {
                // A copy must not have what a crash can still take.
                store.sync().unwrap();
                self.position = store.position().unwrap();
                self.model = contents(store, KEYS).unwrap();
                self.begun_again += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn open(disk: &SimDisk, seed: u64) -> KvStore {
    let options = Options { background: !seed.is_multiple_of(3), ..options(sim_env(disk, seed)) };
    KvStore::open_with(DIR, options).unwrap()
}

fn command(choices: &mut Choices, tag: u64) -> Command {
    let n = choices.below(KEYS);
    let value = vec![tag as u8; choices.below(900) as usize];
    match choices.below(6) {
        0 => Command::Delete(n),
        1 => Command::Batch((0..4).map(|at| ((n + at) % KEYS, (at != 2).then(|| value.clone()))).collect()),
        _ => Command::Put(n, value),
    }
}

/// Answers how often the replica was left behind.
fn follows_everything(seed: u64) -> u64 {
    let mut choices = Choices::new(seed);
    let mut disk = SimDisk::new(seed);
    let mut store = open(&disk, choices.next());
    let position = store.position().unwrap();
    let mut replica = Replica { position, model: Model::new(), begun_again: 0 };
    let mut model = Model::new();
    for tag in 0..250 {
        let context = || format!("seed {seed}, step {tag}");
        match choices.below(30) {
            0 => store.checkpoint().unwrap(),
            1 => store.compact(|_| true).unwrap(),
            2..=4 => {
                store.sync().unwrap();
                replica.catch_up(&store, &disk, choices.next());
                assert!(replica.model == model, "{}: {}", context(), difference(&replica.model, &model));
            }
            5 => {
                // What the replica has seen is durable: the store has it too, whatever the crash took.
                replica.catch_up(&store, &disk, choices.next());
                let styles = CrashStyle::ALL;
                let style = styles[choices.below(styles.len() as u64) as usize];
                let crashed = disk.power_fail(style, choices.next());
                drop(disk.restart());
                disk = crashed;
                store = open(&disk, choices.next());
                model = contents(&store, KEYS).unwrap();
                replica.catch_up(&store, &disk, choices.next());
                assert!(replica.model == model, "{}: {}", context(), difference(&replica.model, &model));
            }
            choice => {
                let command = command(&mut choices, tag);
                let handle = if choice < 20 { buffered(&store) } else { store.clone() };
                command.run(&handle, &model).unwrap();
                model = command.model(&model);
            }
        }
    }
    replica.begun_again
}

#[test]
fn who_follows_the_feed_has_what_the_store_has() {
    let (first, cases) = (budget("KVS_FEED_SEED", 1), budget("KVS_FEED_CASES", 60));
    let begun_again: u64 = (first..first + cases).map(follows_everything).sum();
    eprintln!("{cases} cases, {begun_again} times left behind");
    assert!(begun_again > 0, "no case was left behind by compaction");
}
