//! Statistics of one segment, in a file beside it.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::codec::{SEGMENT_STATISTICS_BYTES, SegmentStatistics};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::io::{ANY_UNIT_BYTES, AlignedBuf, File, OpenMode, WriteSync};

/// The statistics at `path`; `None` if there are none that verify.
///
/// # Errors
/// Only if the file cannot be read.
pub(crate) fn read_statistics(env: &Env, path: &Path) -> Result<Option<SegmentStatistics>> {
    let file = match env.disk.open(path, OpenMode::Read, ANY_UNIT_BYTES) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path, error)),
    };
    let mut bytes = AlignedBuf::zeroed(SEGMENT_STATISTICS_BYTES);
    let count = file.read_full_at(&mut bytes, 0).map_err(|error| Error::io("read", path, error))?;
    match SegmentStatistics::decode(&bytes[..count]) {
        Ok(statistics) => Ok(Some(statistics)),
        Err(fault) => {
            // Beside a clerk it may be read while it is written; a clerk that comes to it counts again.
            tracing::debug!(path = %path.display(), %fault, "statistics are not believed");
            Ok(None)
        }
    }
}

/// Puts the statistics at `path`, in place: a torn write leaves bytes that do not verify.
pub(crate) fn write_statistics(
    env: &Env,
    path: &Path,
    statistics: &SegmentStatistics,
    sync: WriteSync,
) -> Result<()> {
    let failed = |error| Error::write("write", path, SEGMENT_STATISTICS_BYTES as u64, error);
    let file: Arc<dyn File> = match env.disk.open(path, OpenMode::Write, ANY_UNIT_BYTES) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            env.disk.open(path, OpenMode::CreateNew, ANY_UNIT_BYTES).map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    let mut bytes = AlignedBuf::zeroed(SEGMENT_STATISTICS_BYTES);
    statistics.encode(&mut bytes);
    file.write_all_at(&bytes, 0, sync).map_err(failed)
}
