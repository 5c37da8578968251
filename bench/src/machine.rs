//! Facts of the machine, printed at the head of every report: a number without them says little.

use std::fs;
use std::path::Path;

use serde::Serialize;

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
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
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

/// User and system time of this process so far, in seconds.
pub fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines_with_and_without_optional_fields() {
        let plain = parse_mount("29 1 254:0 / / rw,relatime - ext4 /dev/root rw").unwrap();
        assert_eq!((plain.point, plain.options, plain.kind), ("/", "rw,relatime", "ext4"));
        let shared = parse_mount("30 29 0:5 / /dev/shm rw shared:3 master:1 - tmpfs tmpfs rw").unwrap();
        assert_eq!((shared.point, shared.kind), ("/dev/shm", "tmpfs"));
    }
}
