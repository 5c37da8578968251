//! Facts of the machine, printed at the head of every report: a number without them says little.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

/// Ticks of a second in `/proc/stat`: fixed by the kernel's interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a reader needs to know to compare two reports.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Operating system and kernel release.
    pub kernel: String,
    /// Processor model.
    pub cpu: String,
    /// Processors this process may use.
    pub cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// File system type below the measured directory, and its mount options.
    pub file_system: String,
    /// Load average when the report began: other work on the machine shows here.
    pub load_average: String,
}

impl Machine {
    /// Gathers the facts; `dir` must exist.
    pub fn observe(dir: &Path) -> Self {
        let uname = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        Machine {
            kernel: format!("{} {} {}", text(uname.sysname()), text(uname.release()), text(uname.machine())),
            cpu: cpu_model(),
            cores: cores(),
            memory_mib: memory_mib(),
            file_system: file_system(dir),
            load_average: load_average(),
        }
    }

    /// The facts as lines of text.
    pub fn lines(&self) -> Vec<String> {
        vec![
            format!("kernel       {}", self.kernel),
            format!("cpu          {}, {} cores, {} MiB of memory", self.cpu, self.cores, self.memory_mib),
            format!("file system  {}", self.file_system),
            format!("load average {} (at the start)", self.load_average),
        ]
    }

    /// Whether files here live in memory, where durability costs nothing and the figures mean nothing.
    pub fn is_memory_backed(&self) -> bool {
        ["tmpfs", "ramfs"].iter().any(|kind| self.file_system.starts_with(kind))
    }
}

/// The first value of `key` in a file of `key : value` lines.
fn field(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_string())
    })
}

/// The processor's name for itself.
fn cpu_model() -> String {
    field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into())
}

/// Processors this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// All memory, in MiB.
fn memory_mib() -> u64 {
    field("/proc/meminfo", "MemTotal")
        .and_then(|value| value.trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(0, |kib| kib / 1024)
}

/// The three load averages.
fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Type and options of the file system that holds `dir`.
fn file_system(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .filter_map(parse_mount)
        .filter(|mount| dir.starts_with(mount.point))
        // Of mounts at one place, the last hides the earlier ones; max_by_key keeps the last.
        .max_by_key(|mount| mount.point.len())
        .map_or_else(|| "unknown".into(), |mount| format!("{} ({})", mount.kind, mount.options))
}

/// One line of `/proc/self/mountinfo`, as far as it is needed here.
struct Mount<'a> {
    point: &'a str,
    options: &'a str,
    kind: &'a str,
}

/// Parses `36 35 98:0 /root /point options optional... - type source super-options`.
fn parse_mount(line: &str) -> Option<Mount<'_>> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(4);
    Some(Mount { point: fields.next()?, options: fields.next()?, kind: right.split(' ').next()? })
}

/// Peak resident memory of this process in MiB, since the last [`reset_peak_rss`].
pub fn peak_rss_mib() -> f64 {
    field("/proc/self/status", "VmHWM")
        .and_then(|value| value.trim_end_matches(" kB").parse::<f64>().ok())
        .map_or(f64::NAN, |kib| kib / 1024.0)
}

/// Starts the measurement of peak memory anew. Where the kernel refuses, the peak is that of the whole process.
pub fn reset_peak_rss() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Bytes that this process has caused to be written to files so far, whenever the system writes them.
pub fn written_bytes() -> u64 {
    field("/proc/self/io", "write_bytes").and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// Processor time of this process and of the whole machine at one moment.
pub struct CpuClock {
    own_seconds: f64,
    all_seconds: f64,
    at: Instant,
}

impl CpuClock {
    /// Reads the clocks.
    pub fn now() -> Self {
        CpuClock { own_seconds: own_cpu_seconds(), all_seconds: all_cpu_seconds(), at: Instant::now() }
    }

    /// User and system time this process took since.
    pub fn own_seconds_since(&self) -> f64 {
        own_cpu_seconds() - self.own_seconds
    }

    /// What the rest of the machine took since, as a part of all processors, in percent. Kernel threads that work for
    /// this process count here, too.
    pub fn others_percent_since(&self) -> f64 {
        let others = all_cpu_seconds() - self.all_seconds - self.own_seconds_since();
        let capacity = self.at.elapsed().as_secs_f64() * cores() as f64;
        (others / capacity * 100.0).clamp(0.0, 100.0)
    }
}

/// User and system time of this process so far.
fn own_cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Time all processors together spent on anything but idling and waiting for I/O.
fn all_cpu_seconds() -> f64 {
    busy_ticks(&fs::read_to_string("/proc/stat").unwrap_or_default()) as f64 / TICKS_PER_SECOND
}

/// Sums `user nice system` and `irq softirq steal` of the first line of `/proc/stat`.
fn busy_ticks(stat: &str) -> u64 {
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
    fields
        .enumerate()
        .filter(|(index, _)| !matches!(index, 3 | 4)) // idle, iowait
        .filter_map(|(_, ticks)| ticks.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_busy() {
        assert_eq!(busy_ticks("cpu  1 2 4 1000 2000 8 16 32 0 0\ncpu0 1 1 1 1"), 63);
        assert_eq!(busy_ticks(""), 0);
    }

    #[test]
    fn mount_lines_with_and_without_optional_fields() {
        let plain = parse_mount("29 1 254:0 / / rw,relatime - ext4 /dev/root rw").unwrap();
        assert_eq!((plain.point, plain.options, plain.kind), ("/", "rw,relatime", "ext4"));
        let shared = parse_mount("30 29 0:5 / /dev/shm rw shared:3 master:1 - tmpfs tmpfs rw").unwrap();
        assert_eq!((shared.point, shared.kind), ("/dev/shm", "tmpfs"));
    }
}
