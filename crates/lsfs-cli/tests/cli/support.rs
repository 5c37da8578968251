//! Running the command, and the places it runs in.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything here takes on a busy machine; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The command with its arguments, given as strings and paths.
#[macro_export]
macro_rules! lsfs {
    ($($argument:expr),* $(,)?) => {
        $crate::support::Lsfs::new(&[$(std::ffi::OsStr::new($argument)),*])
    };
}

/// A command line to run.
pub(crate) struct Lsfs(Command);

/// What a finished command left.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Lsfs {
    pub(crate) fn new(arguments: &[&OsStr]) -> Lsfs {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lsfs"));
        command.args(arguments).env_remove("RUST_LOG");
        Lsfs(command)
    }

    /// Lets it have at most this many files open.
    pub(crate) fn with_open_files_max(self, count: u32) -> Lsfs {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {count}; exec \"$0\" \"$@\"")]);
        command.arg(self.0.get_program()).args(self.0.get_args()).env_remove("RUST_LOG");
        Lsfs(command)
    }

    /// Runs it with this standard input to the end.
    pub(crate) fn input(self, input: &[u8]) -> Finished {
        let mut running = self.spawn();
        let mut stdin = running.stdin.take().unwrap();
        let input = input.to_vec();
        // The command may end before it has read everything.
        let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let finished = running.finish();
        feeder.join().unwrap();
        finished
    }

    /// Runs it with a file as standard input.
    pub(crate) fn input_file(mut self, path: &Path) -> Finished {
        let output = self.0.stdin(std::fs::File::open(path).unwrap()).output().unwrap();
        Finished {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs it with an empty standard input.
    pub(crate) fn run(self) -> Finished {
        self.input(b"")
    }

    /// Starts it.
    pub(crate) fn spawn(mut self) -> Running {
        let mut child =
            self.0.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let mut stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        Running { child, stdin, lines: None, stderr: Some(stderr) }
    }
}

impl Finished {
    /// Fails unless the command ended with this code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Finished {
        let stdout = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(2000)]);
        assert_eq!(self.code, Some(code), "\nstdout: {stdout}\nstderr: {}", self.stderr);
        self
    }

    /// Fails unless standard error has all these parts.
    #[track_caller]
    pub(crate) fn says(self, parts: &[&str]) -> Finished {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {:?}", self.stderr);
        }
        self
    }

    /// Fails if anything was said on standard error.
    #[track_caller]
    pub(crate) fn quietly(self) -> Finished {
        assert_eq!(self.stderr, "");
        self
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap()
    }
}

/// A command that runs; killed when it goes out of scope.
pub(crate) struct Running {
    child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    lines: Option<Receiver<Vec<u8>>>,
    stderr: Option<std::thread::JoinHandle<String>>,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its standard input.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(bytes).and_then(|()| stdin.flush()).unwrap();
    }

    /// The next line of its standard output, without the `\n`; `None` at its end.
    #[track_caller]
    pub(crate) fn next_line(&mut self) -> Option<Vec<u8>> {
        let child = &mut self.child;
        let lines = self.lines.get_or_insert_with(|| {
            let mut stdout = BufReader::new(child.stdout.take().unwrap());
            let (sender, receiver) = channel();
            std::thread::spawn(move || {
                loop {
                    let mut line = Vec::new();
                    match stdout.read_until(b'\n', &mut line) {
                        Ok(1..) if line.pop() == Some(b'\n') && sender.send(line).is_ok() => {}
                        _ => return,
                    }
                }
            });
            receiver
        });
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line after {PATIENCE:?}"),
        }
    }

    /// The next line as a number.
    #[track_caller]
    pub(crate) fn next_index(&mut self) -> Option<u64> {
        self.next_line().map(|line| String::from_utf8(line).unwrap().parse().unwrap())
    }

    /// Stops reading its standard output.
    pub(crate) fn close_stdout(&mut self) {
        drop(self.child.stdout.take());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "still running after {PATIENCE:?}");
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// Closes its standard input and waits for its end; standard output holds what `next_line` did not take.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        drop(self.stdin.take());
        let mut stdout = Vec::new();
        match self.child.stdout.take() {
            Some(mut rest) => drop(rest.read_to_end(&mut stdout).unwrap()),
            None => {
                while self.lines.is_some()
                    && let Some(line) = self.next_line()
                {
                    stdout.extend_from_slice(&line);
                    stdout.push(b'\n');
                }
            }
        }
        let status = self.wait();
        Finished { code: status.code(), stdout, stderr: self.stderr.take().unwrap().join().unwrap() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is fine.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A directory that goes away with the value.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch(tempfile::tempdir().unwrap())
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// A small file system of its own, unmounted with the value.
pub(crate) struct SmallDisk(Scratch);

impl SmallDisk {
    /// Mounts it; says why not on standard error if that is impossible here.
    pub(crate) fn mount(size: &str) -> Option<SmallDisk> {
        let scratch = Scratch::new();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", scratch.0.path(), "tmpfs", flags, options.as_c_str()) {
            Ok(()) => Some(SmallDisk(scratch)),
            Err(error) => {
                eprintln!("skipped: cannot mount a tmpfs here ({error}); this test needs to be root");
                None
            }
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    pub(crate) fn remount(&self, read_only: bool, size: &str) {
        let flags =
            if read_only { rustix::mount::MountFlags::RDONLY } else { rustix::mount::MountFlags::empty() };
        rustix::mount::mount_remount(self.0.0.path(), flags, format!("size={size}")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(self.0.0.path(), rustix::mount::UnmountFlags::DETACH);
        unmounted.unwrap_or_else(|error| eprintln!("could not unmount {:?}: {error}", self.0.0.path()));
    }
}

/// Random numbers that a seed repeats (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    /// From `LSFS_SEED`, else new each time; the seed is printed.
    pub(crate) fn seeded() -> Random {
        let now = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = std::env::var("LSFS_SEED").map_or_else(|_| now(), |text| text.parse().unwrap());
        eprintln!("LSFS_SEED={seed}");
        Random(seed)
    }

    pub(crate) fn from(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}

/// Waits until the condition holds.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what} did not happen in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Records these lines in one run.
#[track_caller]
pub(crate) fn record(dir: &Path, lines: &[&[u8]]) {
    let input: Vec<u8> = lines.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect();
    lsfs!("record", "--quiet", dir).input(&input).expect(0).quietly();
}

/// Everything in the stream, as `lsfs cat` prints it.
#[track_caller]
pub(crate) fn cat(dir: &Path) -> Vec<u8> {
    lsfs!("cat", dir).run().expect(0).quietly().stdout
}
