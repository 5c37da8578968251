//! One writer per directory: an open-file-description lock that names its holder.
//!
//! OFD locks rather than `flock`, because their state can be asked (`F_OFD_GETLK`) without taking them: a reader
//! must know whether a writer lives, and must never be in a starting writer's way.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{LockError, LockGuard};

#[derive(Debug)]
struct OfdLock {
    /// Keeping the description open keeps the lock.
    _file: File,
}

impl LockGuard for OfdLock {}

pub(super) fn acquire(path: &Path) -> Result<Box<dyn LockGuard>, LockError> {
    let mut file = loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(LockError::Io)?;
        match control(&file, libc::F_OFD_SETLK) {
            // The last holder may have removed the file between the open and the lock: then it is nobody's.
            Ok(_) if file.metadata().is_ok_and(|metadata| metadata.nlink() == 0) => {}
            Ok(_) => break file,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Err(LockError::Held { pid: read_pid(&mut file) });
            }
            Err(error) => return Err(LockError::Io(error)),
        }
    };
    let name_holder = |file: &mut File| -> io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    // On a full disk the pid may not fit; the lock is held all the same.
    if let Err(error) = name_holder(&mut file) {
        tracing::debug!(%error, path = %path.display(), "could not write the pid into the lock file");
    }
    Ok(Box::new(OfdLock { _file: file }))
}

pub(super) fn is_held(path: &Path) -> io::Result<bool> {
    match File::open(path) {
        Ok(file) => Ok(control(&file, libc::F_OFD_GETLK)? != libc::F_UNLCK as libc::c_short),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Runs an OFD lock command for an exclusive lock on the whole file and returns the lock type it answers.
fn control(file: &File, command: libc::c_int) -> io::Result<libc::c_short> {
    // SAFETY: `flock` is a plain C struct for which all-zero bytes are a value (whole file, pid 0 as OFD asks).
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open and `lock` outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(lock.l_type) }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_holder_learns_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!is_held(&path).unwrap());
        let guard = acquire(&path).unwrap();
        assert!(is_held(&path).unwrap());
        match acquire(&path) {
            Err(LockError::Held { pid }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("expected the lock to be held, got {other:?}"),
        }
        drop(guard);
        assert!(!is_held(&path).unwrap());
        acquire(&path).unwrap();
    }
}
