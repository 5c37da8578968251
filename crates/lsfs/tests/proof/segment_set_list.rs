//! The list of a segment set decides first: what it still names durably is there for everybody.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use lsfs::io::{
    Access, DirEntry, Disk, File, FileMap, LockError, LockGuard, OpenMode, SharedPage, SimDisk, SimRuntime,
    WriteSync,
};
use lsfs::{Durability, Env, Error, SegmentSet, SegmentSetReader, SetOptions};

const DIR: &str = "/set";

type Look = Box<dyn FnMut() -> io::Result<()> + Send>;

/// Called before each write to the files of the list; an error is what the write answers.
#[derive(Clone, Default)]
struct Watch(Arc<Mutex<Option<Look>>>);

impl Watch {
    fn set(&self, look: impl FnMut() -> io::Result<()> + Send + 'static) {
        *self.0.lock().unwrap() = Some(Box::new(look));
    }

    fn stop(&self) {
        *self.0.lock().unwrap() = None;
    }

    fn before_write(&self) -> io::Result<()> {
        self.0.lock().unwrap().as_mut().map_or(Ok(()), |look| look())
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// The simulated disk, with a look at what happens before the list is written.
#[derive(Debug)]
struct WatchedDisk(SimDisk, Watch);

#[derive(Debug)]
struct WatchedFile(Arc<dyn File>, Watch);

impl Disk for WatchedDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir_all(dir)
    }
    fn open(&self, path: &Path, mode: OpenMode, unit_bytes: usize) -> io::Result<Arc<dyn File>> {
        let file = self.0.open(path, mode, unit_bytes)?;
        let is_list = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("set."));
        Ok(if is_list { Arc::new(WatchedFile(file, self.1.clone())) } else { file })
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.list(dir)
    }
    fn exists(&self, path: &Path) -> bool {
        self.0.exists(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> Result<Box<dyn LockGuard>, LockError> {
        self.0.lock(path)
    }
    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        self.0.is_locked(path)
    }
    fn shared_page(&self, path: &Path, writable: bool) -> io::Result<Box<dyn SharedPage>> {
        self.0.shared_page(path, writable)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.0.free_bytes(path)
    }
}

impl File for WatchedFile {
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        self.0.read_at(buf, position)
    }
    fn write_at(&self, buf: &[u8], position: u64, sync: WriteSync) -> io::Result<usize> {
        self.1.before_write()?;
        self.0.write_at(buf, position, sync)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn release(&self, range: Range<u64>) -> io::Result<()> {
        self.0.release(range)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn unit_bytes(&self) -> usize {
        self.0.unit_bytes()
    }
    fn access(&self) -> Access {
        self.0.access()
    }
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn is_linked(&self) -> io::Result<bool> {
        self.0.is_linked()
    }
    fn map(&self, len: u64) -> io::Result<Box<dyn FileMap>> {
        self.0.map(len)
    }
    fn map_mut(&self, len: u64) -> io::Result<Box<dyn FileMap>> {
        self.0.map_mut(len)
    }
}

#[test]
fn segments_are_there_until_the_list_without_them_is_durable() {
    for fails in [false, true] {
        let (disk, watch) = (SimDisk::new(1), Watch::default());
        let env = |seed| Env {
            disk: Arc::new(WatchedDisk(disk.clone(), watch.clone())),
            runtime: Arc::new(SimRuntime::new(seed)),
        };
        let set = SegmentSet::open_in(env(1), DIR, SetOptions::default()).unwrap();
        let pointers: Vec<_> = (0..4u8)
            .map(|n| {
                let pointer = set.append(0, &[n; 500], Durability::Sync).unwrap();
                set.seal().unwrap();
                pointer
            })
            .collect();
        let reclaimed = [pointers[1].segment, pointers[2].segment];
        let looks = Arc::new(Mutex::new(0));
        watch.set({
            let (set, pointers, looks) = (set.clone(), pointers.clone(), Arc::clone(&looks));
            move || {
                for (n, pointer) in pointers.iter().enumerate() {
                    let entry = set.read(*pointer).expect("the durable list still names it");
                    assert!(entry.body == [n as u8; 500]);
                }
                assert!(
                    reclaimed.iter().all(|number| set.segments().iter().any(|info| info.number == *number))
                );
                *looks.lock().unwrap() += 1;
                if fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
            }
        });
        let outcome = set.reclaim(&reclaimed);
        watch.stop();
        assert!(*looks.lock().unwrap() > 0, "the list was written");
        assert_eq!(outcome.is_err(), fails, "{outcome:?}");
        assert_eq!(set.stats().is_stopped, fails);
        let is_there = |set: &SegmentSet, n: usize| match set.read(pointers[n]) {
            Ok(entry) => entry.body == [n as u8; 500],
            Err(error) => {
                assert!(matches!(error, Error::Gone { .. }), "{error}");
                false
            }
        };
        assert_eq!((0..4).map(|n| is_there(&set, n)).collect::<Vec<_>>(), [true, fails, fails, true]);
        let outside = SegmentSetReader::open_in(env(2), DIR).unwrap();
        assert_eq!(outside.read(pointers[1]).is_ok(), fails, "the list on the disk says the same");
        let disk = disk.restart();
        drop((set, outside));
        let env = Env { disk: Arc::new(disk), runtime: Arc::new(SimRuntime::new(3)) };
        let set = SegmentSet::open_in(env, DIR, SetOptions::default()).unwrap();
        assert_eq!((0..4).map(|n| is_there(&set, n)).collect::<Vec<_>>(), [true, fails, fails, true]);
        set.append(0, b"goes on", Durability::Sync).unwrap();
    }
}

/// A segment is sealed behind the appends, here by who reclaims: before the list says so, what lies in it is found from
/// every process; and whoever appends meanwhile is not forgotten.
#[test]
fn who_seals_before_reclaiming_looks_after_those_who_append_meanwhile() {
    let (disk, watch) = (SimDisk::new(1), Watch::default());
    let runtime = SimRuntime::with_inline_percent(1, 0);
    let disk_of = |watch: &Watch| Arc::new(WatchedDisk(disk.clone(), watch.clone()));
    let env = Env { disk: disk_of(&watch), runtime: Arc::new(runtime.clone()) };
    let options = SetOptions { segment_bytes: 32 << 10, ..SetOptions::default() };
    let set = SegmentSet::open_in(env, DIR, options).unwrap();
    let first = set.append(0, &[1; 500], Durability::Sync).unwrap();
    set.seal().unwrap();
    // The next segment is made when half of the active one is used.
    for _ in 0..20 {
        set.append(0, &[2; 1000], Durability::Sync).unwrap();
        runtime.settle();
    }
    let mut last = set.append(0, &[3; 1000], Durability::Buffer).unwrap();
    let sealing = last.segment;
    loop {
        let pointer = set.append(0, &[3; 1000], Durability::Buffer).unwrap();
        if pointer.segment != sealing {
            break;
        }
        last = pointer;
    }
    assert!(!set.segments().iter().any(|info| info.number == sealing && info.is_sealed), "nothing waited");
    let (active, durable_end) = (set.stats().active, set.stats().durable_end);
    assert!(active == sealing && u64::from(durable_end) < last.end(), "nothing behind that is durable");
    let outside = Env { disk: disk_of(&Watch::default()), runtime: Arc::new(SimRuntime::new(2)) };
    let outside = SegmentSetReader::open_in(outside, DIR).unwrap();
    let (told, is_told) = std::sync::mpsc::channel();
    watch.set({
        let (set, mut told) = (set.clone(), Some(told));
        move || {
            let Some(told) = told.take() else { return Ok(()) };
            assert_eq!(*outside.read(last).expect("it is durable").body, [3; 1000]);
            let set = set.clone();
            let appended_before = set.stats().appended_bytes;
            let appending = set.clone();
            let one = thread::spawn(move || told.send(appending.append(0, b"meanwhile", Durability::Sync)));
            // It is seen when it has let the lock go, and that is when it waits to be told.
            while set.stats().appended_bytes == appended_before && !one.is_finished() {
                thread::yield_now();
            }
            Ok(())
        }
    });
    set.reclaim(&[first.segment]).unwrap();
    watch.stop();
    runtime.settle();
    let appended = is_told.recv_timeout(Duration::from_secs(20)).expect("an answer").unwrap();
    assert_eq!(*set.read(appended).unwrap().body, *b"meanwhile");
}
