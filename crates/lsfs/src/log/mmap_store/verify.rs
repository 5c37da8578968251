//! Looking at a mapped store without changing it.

use std::path::{Path, PathBuf};

use super::files::{self, LOG_EXTENSION};
use super::segment::{OpenSegments, Place, damage};
use super::{MmapOptions, is_written, recovery};
use crate::codec::MappedFrameLook;
use crate::directory;
use crate::env::Env;
use crate::error::{Corruption, Error, Result};
use crate::log::LogOptions;
use crate::stream::{Progress, VerifyReport};

/// What a mapped log is made of.
#[derive(Clone, Debug)]
pub struct MmapInfo {
    /// Lowest offset.
    pub first_offset: u64,
    /// Offset after the last record.
    pub next_offset: u64,
    /// Segments, oldest first; the last is active.
    pub segments: Vec<MmapSegmentInfo>,
    /// Whether a writer has the log open now.
    pub is_open: bool,
    /// Behind the last record lies what a torn write left; the next writer clears it.
    pub has_torn_tail: bool,
}

/// One segment of a mapped log.
#[derive(Clone, Debug)]
pub struct MmapSegmentInfo {
    /// Its data file.
    pub path: PathBuf,
    /// First offset that may be in it.
    pub base_offset: u64,
    /// Offset after the last that may be in it.
    pub next_offset: u64,
    /// Bytes of frames.
    pub used_bytes: u64,
    /// Length of the data file.
    pub file_bytes: u64,
    /// Bytes the file system has allocated for it.
    pub allocated_bytes: u64,
    /// Whether it is closed for good.
    pub is_sealed: bool,
    /// Whether it was rewritten and may hold gaps.
    pub is_sparse: bool,
}

fn options() -> MmapOptions {
    LogOptions::default().mmap()
}

/// Describes the mapped log in `dir` without a lock.
///
/// # Errors
/// [`Error::NotFound`] if there is none; [`Error::Corrupt`] if a segment's frames cannot be followed.
pub fn inspect_mmap(env: &Env, dir: &Path) -> Result<MmapInfo> {
    let options = options();
    let (sealed, active) = recovery::look(env, dir, &options)?;
    let is_open = is_written(env, dir)?;
    let entries = env.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let sizes = |path: &Path| {
        let entry = entries.iter().find(|entry| path.ends_with(&entry.name));
        entry.map_or((0, 0), |entry| (entry.len, entry.allocated))
    };
    let kept = OpenSegments::default();
    let mut segments = Vec::with_capacity(sealed.len() + 1);
    for sealed in &sealed {
        let open = sealed.open(env, dir, options.record_limit_bytes, &kept)?;
        let (file_bytes, allocated_bytes) = sizes(&sealed.log_path);
        segments.push(MmapSegmentInfo {
            path: sealed.log_path.clone(),
            base_offset: sealed.base,
            next_offset: sealed.next,
            used_bytes: open.used_bytes()?,
            file_bytes,
            allocated_bytes,
            is_sealed: true,
            is_sparse: open.is_sparse(),
        });
    }
    let (file_bytes, allocated_bytes) = sizes(&active.log.path);
    segments.push(MmapSegmentInfo {
        path: active.log.path.clone(),
        base_offset: active.base,
        next_offset: active.next(),
        used_bytes: active.end,
        file_bytes,
        allocated_bytes,
        is_sealed: false,
        is_sparse: false,
    });
    Ok(MmapInfo {
        first_offset: segments[0].base_offset,
        next_offset: active.next(),
        has_torn_tail: !is_open && active.behind != MappedFrameLook::Free,
        segments,
        is_open,
    })
}

/// Follows every frame of the mapped log in `dir`, and compares names, frames, indexes and tables, without a lock.
///
/// There are no checksums in this layout: a changed payload is not noticed. A torn frame at the very end is no damage.
///
/// # Errors
/// If there is no mapped log, or reading itself fails.
pub fn verify_mmap(env: &Env, dir: &Path, mut progress: impl FnMut(Progress)) -> Result<VerifyReport> {
    let options = options();
    let limit_bytes = options.record_limit_bytes;
    let mut report = VerifyReport::default();
    let (sealed, active) = match recovery::look(env, dir, &options) {
        Err(Error::Corrupt(damage)) => {
            report.damage.push(*damage);
            return Ok(report);
        }
        other => other?,
    };
    let (kept, total_bytes) = (OpenSegments::default(), sealed.len() as u64 + 1);
    for (at, segment) in sealed.iter().enumerate() {
        let open = match segment.open(env, dir, limit_bytes, &kept) {
            Err(Error::Corrupt(damage)) => {
                report.damage.push(*damage);
                continue;
            }
            // Dropped since the look.
            Err(Error::Gone { .. }) if !env.disk.exists(&segment.log_path) => continue,
            other => other?,
        };
        let (table, behind, end) = open.walk()?;
        let count = table.entries().len() as u64;
        report.records += count;
        report.stored_bytes += end - count * crate::codec::MAPPED_FRAME_HEADER_BYTES;
        if count < open.expected_count() || behind != MappedFrameLook::Free {
            let next = table.entries().last().map_or(segment.base, |entry| entry.offset + 1);
            push_corruption(
                &mut report,
                damage(&segment.log_path, Place { offset: next, position: end }, behind, limit_bytes),
            );
        } else if count > open.expected_count() {
            let path = segment.log_path.clone();
            let reason = format!("{count} frames, but the next segment begins at {}", segment.next);
            let records = Some(segment.next..segment.base + count);
            report.damage.push(Corruption { path, position: end, records, reason });
        }
        if open.index_agrees(&table)? == Some(false) {
            let path = files::path_of(dir, segment.base, directory::INDEX_EXTENSION);
            tracing::warn!(path = %path.display(), "the index does not match its segment; it is not used");
        }
        progress(Progress { done_bytes: at as u64 + 1, total_bytes });
    }
    report.records += active.positions.len() as u64;
    report.stored_bytes +=
        active.end - active.positions.len() as u64 * crate::codec::MAPPED_FRAME_HEADER_BYTES;
    if let look @ MappedFrameLook::OverLimit { .. } = active.behind {
        let place = Place { offset: active.next(), position: active.end };
        push_corruption(
            &mut report,
            damage(&files::path_of(dir, active.base, LOG_EXTENSION), place, look, limit_bytes),
        );
    }
    progress(Progress { done_bytes: total_bytes, total_bytes });
    Ok(report)
}

fn push_corruption(report: &mut VerifyReport, error: Error) {
    if let Error::Corrupt(damage) = error {
        report.damage.push(*damage);
    }
}
