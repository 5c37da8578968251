//! Golden stores: what earlier versions wrote is opened, compared and written to by today's code, for ever.
//!
//! `tests/golden/vN/NAME/` is a store as format version N left it, `NAME.txt` beside it lists what is inside. What was
//! released is never written anew: [`write_what_is_missing`] adds stores and leaves alone those that are there.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvs::{Batch, Compression, KvReader, KvStore, Options};
use lsfs::Env;
use lsfs::io::{SimDisk, SimRuntime};

use crate::order::scan;
use crate::support::sim_env;
use crate::{DIR, Model, buffered, difference, options};

/// The folder of the version that is written now.
const VERSION: &str = "v2";
/// Without the process that held them they mean nothing.
const LEFT_OUT: [&str; 3] = ["lock", "live", "reserve"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// A golden store.
struct Golden {
    /// With the version, for messages.
    name: String,
    listing: String,
    /// Paths below the store's directory, and bytes.
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Golden {
    /// All of all versions.
    fn all() -> Vec<Golden> {
        let mut all = Vec::new();
        for version in sorted(&root()) {
            for listing in sorted(&version).iter().filter(|path| path.extension().is_some()) {
                let mut golden = Golden {
                    name: listing.with_extension("").strip_prefix(root()).unwrap().display().to_string(),
                    listing: fs::read_to_string(listing).unwrap(),
                    files: Vec::new(),
                };
                let dir = listing.with_extension("");
                for path in sorted(&dir) {
                    let files = if path.is_dir() { sorted(&path) } else { vec![path] };
                    for file in files {
                        let bytes = fs::read(&file).unwrap();
                        golden.files.push((file.strip_prefix(&dir).unwrap().to_path_buf(), bytes));
                    }
                }
                all.push(golden);
            }
        }
        all
    }

    /// Looks, opens for writing, adds, removes and compacts, and looks again.
    fn check(&self, dir: &Path, env: &dyn Fn() -> Env) {
        let name = &self.name;
        let (listed, mut model) = look(dir, &env());
        assert_eq!(listed, self.listing, "{name} holds something else");
        let store = open(dir, env());
        assert_eq!(opened(&store), self.listing.lines().next().unwrap(), "{name}");
        let damage = store.verify().unwrap().damage;
        assert!(damage.is_empty(), "{name}: {damage:?}");
        store.put("added by a later version", "value").unwrap();
        model.insert(b"added by a later version".to_vec(), b"value".to_vec());
        let removed = model.first_key_value().map(|(key, _)| key.clone()).unwrap();
        assert!(store.delete(&removed).unwrap(), "{name}");
        model.remove(&removed);
        for (key, value) in &mut model {
            value.extend(b" again");
            buffered(&store).put(key, &value).unwrap();
        }
        store.compact(|_| true).unwrap();
        store.close().unwrap();
        drop(store);
        let (_, found) = look(dir, &env());
        assert!(found == model, "{name}: {}", difference(&found, &model));
        let store = open(dir, env());
        assert!(!store.open_report().rebuilt, "{name}");
        assert_eq!(store.stats().keys, model.len() as u64, "{name}");
        assert!(store.verify().unwrap().damage.is_empty(), "{name}");
    }
}

/// What is below a directory, in order.
fn sorted(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn open(dir: &Path, env: Env) -> KvStore {
    KvStore::open_with(dir, Options { background: false, ..options(env) }).unwrap()
}

/// What the open made of the checkpoint.
fn opened(store: &KvStore) -> String {
    let report = store.open_report();
    let checkpoint = if report.rebuilt { "no checkpoint" } else { "a checkpoint" };
    format!("{checkpoint}, {} commands read, {} keys", report.replayed, store.stats().keys)
}

/// Lists what is inside, as a reader sees it that has no lock; the first line is that of a writer, on a copy.
fn look(dir: &Path, env: &Env) -> (String, Model) {
    let reader = KvReader::open_with(dir, options(env.clone())).unwrap();
    let found = scan(&reader).unwrap();
    for (key, value) in &found {
        assert_eq!(reader.get_bytes(key).unwrap().as_ref(), Some(value), "{}", key.escape_ascii());
    }
    let copy = SimDisk::new(2);
    for entry in ["", "log", "checkpoint"].map(|sub| dir.join(sub)) {
        if !env.disk.exists(&entry) {
            continue;
        }
        for file in env.disk.list(&entry).unwrap() {
            let path = entry.join(&file.name);
            if LEFT_OUT.contains(&&*file.name) {
                continue;
            }
            let source = env.disk.open(&path, lsfs::io::OpenMode::Read, 512).unwrap();
            let mut bytes = lsfs::io::AlignedBuf::zeroed((file.len as usize).next_multiple_of(512));
            source.read_full_at(&mut bytes, 0).unwrap();
            let below = path.strip_prefix(dir).unwrap();
            copy.put(&Path::new(DIR).join(below), &bytes[..file.len as usize]).unwrap();
        }
    }
    let mut listing = format!("{}\n", opened(&open(Path::new(DIR), sim_env(&copy, 3))));
    for (key, value) in &found {
        let (len, checksum) = (value.len(), lsfs::codec::crc32c(0, value));
        writeln!(listing, "{}: {len} bytes, crc32c {checksum:08x}", key.escape_ascii()).unwrap();
    }
    (listing, found)
}

#[test]
fn every_golden_store_is_read_and_written_by_todays_code() {
    let all = Golden::all();
    assert!(all.len() >= 4, "{} stores", all.len());
    for golden in all {
        let disk = SimDisk::new(1);
        for (path, bytes) in &golden.files {
            disk.put(&Path::new(DIR).join(path), bytes).unwrap();
        }
        let opens = std::cell::Cell::new(100);
        let env = || {
            opens.set(opens.get() + 1);
            sim_env(&disk, opens.get())
        };
        golden.check(Path::new(DIR), &env);
    }
}

#[test]
fn every_golden_store_opens_on_a_real_disk() {
    for golden in Golden::all() {
        let dir = tempfile::tempdir().unwrap();
        for (path, bytes) in &golden.files {
            fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            fs::write(dir.path().join(path), bytes).unwrap();
        }
        golden.check(dir.path(), &Env::default);
    }
}

// ---- the generator ----

/// How a store came to be: a name, and what was done. A store that is returned is killed.
type Recipe = (&'static str, fn(&Maker) -> Option<KvStore>);

/// The machine on which a store is made. Nothing on it depends on time or chance.
struct Maker {
    disk: SimDisk,
    opened: std::cell::Cell<u64>,
}

impl Maker {
    fn open(&self, compression: Compression) -> KvStore {
        self.opened.set(self.opened.get() + 1);
        // Background work waits until somebody would wait for it.
        let runtime = SimRuntime::with_inline_percent(self.opened.get(), 0);
        let env = Env { disk: Arc::new(self.disk.clone()), runtime: Arc::new(runtime) };
        KvStore::open_with(DIR, Options { background: false, compression, ..options(env) }).unwrap()
    }
}

fn value(n: u64, len: u64) -> Vec<u8> {
    (0..len).map(|at| b"value "[((n + at / 3) % 6) as usize]).collect()
}

fn set(store: &KvStore, numbers: impl IntoIterator<Item = u64>, len: u64) {
    for n in numbers {
        buffered(store).put(format!("key {n:04}"), value(n, len + n % 7)).unwrap();
    }
    store.sync().unwrap();
}

fn recipes() -> [Recipe; 5] {
    [
        ("closed", |maker| {
            let store = maker.open(Compression::None);
            set(&store, 0..20, 40);
            store.delete("key 0003").unwrap();
            store.put(b"\xff\0", b"").unwrap();
            store.put("large", value(5, 70_000)).unwrap();
            store
                .write(Batch::new().put("batch", "one").delete("key 0004").put("", "the empty key"))
                .unwrap();
            store.close().unwrap();
            None
        }),
        ("compressed", |maker| {
            for (n, compression) in [(0, Compression::Lz4), (50, Compression::Zstd)] {
                let store = maker.open(compression);
                set(&store, n..n + 10, 900);
                store.close().unwrap();
            }
            None
        }),
        ("killed-behind-a-checkpoint", |maker| {
            let store = maker.open(Compression::None);
            set(&store, 0..1_400, 10);
            store.checkpoint().unwrap();
            set(&store, (0..1_500).step_by(9), 20);
            (0..30).for_each(|n| assert!(store.delete(format!("key {n:04}")).unwrap()));
            Some(store)
        }),
        ("killed-without-a-checkpoint", |maker| {
            let store = maker.open(Compression::None);
            set(&store, 0..60, 100);
            Some(store)
        }),
        ("compacted-and-sorted", |maker| {
            let store = maker.open(Compression::None);
            for round in 0..4 {
                set(&store, 0..100, 200 + round);
            }
            (0..100).step_by(3).for_each(|n| assert!(store.delete(format!("key {n:04}")).unwrap()));
            store.compact(|_| true).unwrap();
            assert!(store.iter().unwrap().count() > 0);
            set(&store, 200..300, 60);
            store.close().unwrap();
            None
        }),
    ]
}

fn make(recipe: fn(&Maker) -> Option<KvStore>) -> SimDisk {
    let disk = SimDisk::new(7);
    let maker = Maker { disk: disk.clone(), opened: std::cell::Cell::new(0) };
    let open = recipe(&maker);
    let disk = disk.restart();
    // Its close does not reach the disk any more.
    drop(open);
    disk
}

#[test]
#[ignore = "writes the golden stores that are missing: once for a new recipe, or for a new format version"]
fn write_what_is_missing() {
    for (name, recipe) in recipes() {
        let dir = root().join(VERSION).join(name);
        if dir.exists() {
            continue;
        }
        let disk = make(recipe);
        let (listing, _) = look(Path::new(DIR), &sim_env(&disk, 50));
        for path in disk.paths() {
            let below = path.strip_prefix(DIR).unwrap();
            let file = path.file_name().and_then(|file| file.to_str()).expect("a name");
            if !LEFT_OUT.contains(&file) {
                fs::create_dir_all(dir.join(below).parent().unwrap()).unwrap();
                fs::write(dir.join(below), disk.contents(&path).unwrap()).unwrap();
            }
        }
        fs::write(dir.with_extension("txt"), listing).unwrap();
    }
}

#[test]
fn every_recipe_has_its_golden_store() {
    let there: Vec<String> = Golden::all().into_iter().map(|golden| golden.name).collect();
    for (name, _) in recipes() {
        assert!(there.contains(&format!("{VERSION}/{name}")), "{name}: run write_what_is_missing");
    }
}
