//! From what was found in a record stream to what is done about it.

use std::ops::Range;

use crate::codec::{FileHeader, FileKind, FrameLayout, Manifest, SegmentEntry, StreamId};
use crate::data_stream::read_mark;
use crate::directory;
use crate::error::{Corruption, Error, Result};
use crate::final_data::{Salvaged, State, salvage};
use crate::io::{ANY_UNIT_BYTES, DirEntry};
use crate::stream::options::StreamOptions;
use crate::stream::recovery::refuse_orphans;
use crate::stream::repair::examine::{Examined, Expected, Readable, examine};
use crate::stream::repair::{RepairMode, RepairPlan, RepairStep};
use crate::stream::survey::Surveyed;
use crate::stream::verify::{Progress, is_known};
use crate::stream::{MANIFEST_STEM, STREAM, decode_manifest, stream_exists};

/// One segment as it was found.
#[derive(Debug)]
struct Piece {
    entry: SegmentEntry,
    file: Option<Readable>,
    /// Position behind its last record that verifies, and the index after it.
    good_end: (u64, u64),
    /// Bytes of the file that were ever in use.
    written: Range<u64>,
    bad_tailers: Vec<u32>,
}

/// A stream as it was found.
#[derive(Debug)]
struct Found {
    stream_id: StreamId,
    /// The highest epoch seen.
    epoch: u32,
    closed: bool,
    first_index: u64,
    pieces: Vec<Piece>,
    lost: Vec<Range<u64>>,
    /// What the manifest calls lost.
    known_lost: Vec<Range<u64>>,
    /// The last segment cannot be written on.
    is_blocked: bool,
    /// The manifest was made from the segments.
    is_rebuilt: bool,
}

/// Plans the repair of the record stream in the plan's directory.
pub(super) fn for_stream(
    plan: &mut RepairPlan,
    mark: Option<&State>,
    mut progress: impl FnMut(Progress),
) -> Result<()> {
    let dir = plan.dir.clone();
    let bases = bases(plan)?;
    if !stream_exists(&plan.env, &dir)? && bases.is_empty() {
        let reason = "it has no manifest and no segments".to_string();
        return Err(Error::NotFound { path: dir, expected: STREAM, reason });
    }
    let total_bytes = bases.iter().map(|(_, len)| len).sum();
    let mut done_bytes = 0;
    let mut advance = |bytes: u64| {
        done_bytes += bytes;
        progress(Progress { done_bytes: done_bytes.min(total_bytes), total_bytes });
    };
    let left = salvage(&plan.env, &dir, MANIFEST_STEM)?;
    let manifest = latest_manifest(plan, &left)?;
    let chunks = read_mark(&dir, mark.map(|state| &*state.bytes))?.map_or(0, |mark| mark.record_count);
    let mut found = None;
    if let Some(manifest) = &manifest {
        found = of_manifest(plan, manifest, &mut advance)?;
    }
    let mut found = match found {
        Some(found) => found,
        None => {
            of_segments(plan, manifest.as_ref().or(readable_manifest(&left).as_ref()), &bases, &mut advance)?
        }
    };
    if found.is_rebuilt && left.state.is_none() && left.damage.is_empty() {
        if found.pieces.iter().all(|piece| piece.written.end <= piece.good_end.0 && found.lost.is_empty()) {
            // Its creation was cut short, which the next open does again.
            return Ok(());
        }
        let path = plan.dir.join(format!("{MANIFEST_STEM}.a"));
        let reason = "the manifest is missing".to_string();
        plan.findings.push(Corruption { path, position: 0, records: None, reason });
    }
    require(plan, &mut found, chunks);
    found.lost = merged(&found.lost, found.first_index);
    plan.lost.clone_from(&found.lost);
    plan.findings.retain(|damage| !is_known(damage, &found.known_lost));
    if plan.mode == RepairMode::Cut
        && let Some(range) = found.lost.first().filter(|range| range.start < chunks)
    {
        return Err(Error::InvalidOption {
            option: "cut",
            value: format!("at record {}", range.start),
            expected: format!("behind the last mark, which counts {chunks} chunks; repair without cutting"),
        });
    }
    let anew = !left.damage.is_empty() || left.state.is_none();
    act(plan, &found, anew)
}

/// Base indexes and lengths of the segment files, in order.
fn bases(plan: &RepairPlan) -> Result<Vec<(u64, u64)>> {
    let mut bases: Vec<_> = segment_files(plan)?.into_iter().map(|(base, _, len)| (base, len)).collect();
    bases.sort_unstable();
    // A crash may leave a rewritten segment beside the one it replaced.
    bases.dedup_by_key(|(base, _)| *base);
    Ok(bases)
}

/// Base index, name and length of each segment file.
fn segment_files(plan: &RepairPlan) -> Result<Vec<(u64, String, u64)>> {
    let entries = plan.env.disk.list(&plan.dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Error::NotFound {
            path: plan.dir.clone(),
            expected: STREAM,
            reason: "no such directory".to_string(),
        },
        _ => Error::io("list", &plan.dir, error),
    })?;
    let base_of = |name: &str| {
        directory::base_index_of(name).or_else(|| directory::rewritten_of(name).map(|(base, _)| base))
    };
    let file = |entry: DirEntry| Some((base_of(&entry.name)?, entry.name, entry.len));
    Ok(entries.into_iter().filter_map(file).collect())
}

fn readable_manifest(left: &Salvaged) -> Option<Manifest> {
    left.state.as_ref().and_then(|state| Manifest::decode(&state.bytes).ok())
}

/// The manifest, if nothing says that a later one was lost.
fn latest_manifest(plan: &mut RepairPlan, left: &Salvaged) -> Result<Option<Manifest>> {
    plan.findings.extend(left.damage.iter().cloned());
    let Some(state) = &left.state else { return Ok(None) };
    let manifest = match decode_manifest(&plan.dir, &state.bytes) {
        Ok(manifest) => manifest,
        Err(Error::Corrupt(damage)) => {
            plan.findings.push(*damage);
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    match refuse_orphans(&plan.env, &plan.dir, Some(&manifest)) {
        Ok(()) => {}
        Err(Error::Corrupt(damage)) => {
            plan.findings.push(*damage);
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    let was_lost = left.watermark > state.version + 1;
    Ok((!was_lost).then_some(manifest))
}

/// The stream as its manifest names it; `None` if a segment shows that a later manifest was lost.
fn of_manifest(
    plan: &mut RepairPlan,
    manifest: &Manifest,
    advance: &mut impl FnMut(u64),
) -> Result<Option<Found>> {
    let mut found = Found {
        stream_id: manifest.stream_id,
        epoch: manifest.epoch,
        closed: manifest.closed,
        first_index: manifest.first_index,
        pieces: Vec::new(),
        lost: Vec::new(),
        known_lost: manifest.lost.clone(),
        is_blocked: false,
        is_rebuilt: false,
    };
    let findings_before = plan.findings.len();
    for (at, entry) in manifest.segments.iter().enumerate() {
        let is_active = at + 1 == manifest.segments.len();
        let expected = Expected {
            base_index: entry.base_index,
            stream_id: Some(manifest.stream_id),
            named: Some((entry, manifest.epoch)),
        };
        let file = match examine(&plan.env, &plan.dir, expected)? {
            Examined::Readable(file) => file,
            Examined::Unreadable(damage) => {
                plan.findings.push(damage);
                found.lost.push(entry.base_index..entry.next_index);
                found.is_blocked |= is_active;
                let good_end = (0, entry.base_index);
                let piece =
                    Piece { entry: *entry, file: None, good_end, written: 0..0, bad_tailers: Vec::new() };
                found.pieces.push(piece);
                continue;
            }
            Examined::Newer => {
                plan.findings.truncate(findings_before);
                return Ok(None);
            }
        };
        let mut surveyed = file.known(entry.next_index, entry.end_position, manifest.epoch, |_| {})?;
        if !is_active {
            surveyed.damage.extend(file.cut_end(entry, &surveyed)?);
        }
        let start = (file.block_bytes(), entry.base_index);
        let mut good_end = surveyed.end.unwrap_or(start);
        let mut entry = *entry;
        let mut written = 0..entry.end_position.next_multiple_of(file.block_bytes());
        let mut bad_tailers = surveyed.bad_tailers.clone();
        note(plan, &mut found, surveyed);
        if is_active {
            let end_is_damaged = good_end.0 < entry.end_position.max(start.0);
            let (behind, witness) = file.behind(Some((&entry, manifest.epoch)), |_| {})?;
            if witness.epoch > manifest.epoch {
                plan.findings.truncate(findings_before);
                return Ok(None);
            }
            found.is_blocked = end_is_damaged || !behind.damage.is_empty();
            good_end = behind.end.unwrap_or(good_end).max(good_end);
            written.end = written.end.max(file.written(&witness).end);
            let lost_end =
                behind.damage.iter().filter_map(|damage| damage.records.as_ref()).map(|lost| lost.end).max();
            bad_tailers.extend(&behind.bad_tailers);
            note(plan, &mut found, behind);
            if let Some(damage) = file.cut_active(manifest, good_end)? {
                plan.findings.push(damage);
                found.is_blocked = true;
            }
            if found.is_blocked {
                entry.next_index = entry.next_index.max(good_end.1).max(lost_end.unwrap_or(0));
                entry.end_position = good_end.0;
            }
        }
        advance(written.end);
        found.pieces.push(Piece { entry, file: Some(file), good_end, written, bad_tailers });
    }
    Ok(Some(found))
}

/// Takes over what a survey found.
fn note(plan: &mut RepairPlan, found: &mut Found, surveyed: Surveyed) {
    found.lost.extend(surveyed.damage.iter().filter_map(|damage| damage.records.clone()));
    plan.findings.extend(surveyed.damage);
}

/// The stream as its segment files show it. What is known of it from an earlier manifest is only a hint.
fn of_segments(
    plan: &mut RepairPlan,
    hint: Option<&Manifest>,
    bases: &[(u64, u64)],
    advance: &mut impl FnMut(u64),
) -> Result<Found> {
    let stream_id = match hint {
        Some(manifest) => Some(manifest.stream_id),
        None => only_stream_id(plan, bases)?,
    };
    let mut epoch = hint.map_or(0, |manifest| manifest.epoch);
    let mut pieces: Vec<(Piece, Surveyed, u32)> = Vec::new();
    for &(base_index, _) in bases {
        let entry_in_hint = hint.and_then(|manifest| {
            let entry = manifest.segments.iter().find(|entry| entry.base_index == base_index)?;
            Some((entry, u32::MAX))
        });
        let expected = Expected { base_index, stream_id, named: None };
        let mut examined = examine(&plan.env, &plan.dir, expected)?;
        if let (Examined::Unreadable(_), Some(_)) = (&examined, entry_in_hint) {
            examined = examine(&plan.env, &plan.dir, Expected { named: entry_in_hint, ..expected })?;
        }
        let file = match examined {
            Examined::Readable(file) => file,
            Examined::Unreadable(damage) => {
                plan.findings.push(damage);
                continue;
            }
            Examined::Newer => continue,
        };
        let (surveyed, witness) = file.behind(None, |_| {})?;
        advance(file.written(&witness).end);
        let good_end = surveyed.end.unwrap_or((file.block_bytes(), base_index));
        let lost_end =
            surveyed.damage.iter().filter_map(|damage| damage.records.as_ref()).map(|lost| lost.end).max();
        let entry = SegmentEntry {
            segment_id: file.header.segment_id,
            base_index,
            next_index: good_end.1.max(lost_end.unwrap_or(0)),
            end_position: good_end.0,
        };
        epoch = epoch.max(witness.epoch).max(file.header.epoch);
        let written = file.written(&witness);
        let bad_tailers = Vec::new();
        let piece = Piece { entry, file: Some(file), good_end, written, bad_tailers };
        join(&mut pieces, (piece, surveyed, witness.epoch))?;
    }
    let Some(stream_id) = stream_id.filter(|_| !pieces.is_empty()) else {
        let reason = "neither a manifest nor a segment verifies; restore the directory from a copy";
        return Err(Error::corrupt(&plan.dir.join(format!("{MANIFEST_STEM}.a")), 0, None, reason));
    };
    let first_base = pieces[0].0.entry.base_index;
    // A purge inside of a segment is known to the manifest alone.
    let purged = hint.filter(|manifest| {
        let is_there = |entry: &SegmentEntry| {
            pieces.iter().any(|(piece, _, _)| piece.entry.segment_id == entry.segment_id)
        };
        manifest.segments.iter().any(is_there)
    });
    let mut found = Found {
        stream_id,
        epoch,
        closed: true,
        first_index: purged.map_or(first_base, |manifest| manifest.first_index).max(first_base),
        pieces: Vec::new(),
        lost: Vec::new(),
        known_lost: Vec::new(),
        is_blocked: false,
        is_rebuilt: true,
    };
    let last = pieces.len() - 1;
    for (at, (mut piece, surveyed, _)) in pieces.into_iter().enumerate() {
        piece.bad_tailers.clone_from(&surveyed.bad_tailers);
        note(plan, &mut found, surveyed);
        let is_sparse = piece.file.as_ref().is_some_and(|file| file.header.is_sparse);
        found.is_blocked = at == last && (is_sparse || piece.good_end.1 < piece.entry.next_index);
        found.pieces.push(piece);
    }
    Ok(found)
}

/// The stream that all segments are of whose header verifies.
fn only_stream_id(plan: &RepairPlan, bases: &[(u64, u64)]) -> Result<Option<StreamId>> {
    let mut seen: Option<StreamId> = None;
    for &(base_index, _) in bases {
        let expected = Expected { base_index, stream_id: None, named: None };
        let Examined::Readable(file) = examine(&plan.env, &plan.dir, expected)? else { continue };
        let id = file.header.stream_id;
        if *seen.get_or_insert(id) != id {
            let reason = format!(
                "segments of two streams, {} and {id}; move one of them elsewhere",
                seen.unwrap_or(id)
            );
            return Err(Error::corrupt(&file.path, 0, None, reason));
        }
    }
    Ok(seen)
}

/// Puts a segment behind those before it: they end where it begins, for it was begun when all before it was durable.
fn join(
    pieces: &mut Vec<(Piece, Surveyed, u32)>,
    (piece, surveyed, epoch): (Piece, Surveyed, u32),
) -> Result<()> {
    let base_index = piece.entry.base_index;
    if let Some((before, before_surveyed, before_epoch)) = pieces.last_mut() {
        let header_epoch = piece.file.as_ref().map_or(0, |file| file.header.epoch);
        if before.entry.next_index > base_index && header_epoch <= *before_epoch {
            // The records went on in the segment before, after a truncation that dropped this one.
            return Ok(());
        }
        if before.entry.next_index != base_index
            && let Some(file) = &before.file
        {
            let known = file.known(base_index, before.written.end, u32::MAX, |_| {})?;
            before.good_end = known.end.unwrap_or((file.block_bytes(), before.entry.base_index));
            before.entry.end_position = before.good_end.0;
            before.entry.next_index = base_index;
            *before_surveyed = known;
        }
    }
    pieces.push((piece, surveyed, epoch));
    Ok(())
}

/// The stream must reach record `chunks`, which a mark counts: what is not there is lost.
fn require(plan: &mut RepairPlan, found: &mut Found, chunks: u64) {
    let Some(active) = found.pieces.last_mut() else { return };
    let next_index = active.good_end.1.max(active.entry.next_index);
    if next_index >= chunks {
        return;
    }
    plan.findings.push(Corruption {
        path: directory::segment_path(&plan.dir, active.entry.base_index),
        position: active.good_end.0,
        records: Some(next_index..chunks),
        reason: format!("the last mark counts {chunks} chunks, {next_index} are there"),
    });
    found.lost.push(next_index..chunks);
    found.is_blocked = true;
    active.entry.next_index = chunks;
    active.entry.end_position = active.good_end.0;
}

/// Ranges in order, none touching the next, and none below the first record.
fn merged(ranges: &[Range<u64>], first_index: u64) -> Vec<Range<u64>> {
    let mut sorted: Vec<Range<u64>> = ranges
        .iter()
        .map(|range| range.start.max(first_index)..range.end)
        .filter(|range| !range.is_empty())
        .collect();
    sorted.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Plans the steps.
fn act(plan: &mut RepairPlan, found: &Found, anew: bool) -> Result<()> {
    let end_of = |piece: &Piece| piece.entry.next_index.max(piece.good_end.1);
    let next_index = found.pieces.last().map_or(found.first_index, end_of);
    plan.records = Some(found.first_index..next_index);
    let cut_at = found.lost.first().map(|range| range.start).filter(|_| plan.mode == RepairMode::Cut);
    let kept_pieces =
        found.pieces.iter().filter(|piece| cut_at.is_none_or(|index| piece.entry.base_index < index));
    mend_in_place(plan, found, kept_pieces)?;
    let is_renamed = found.lost != found.known_lost;
    if !(found.is_rebuilt || found.is_blocked || is_renamed || anew || cut_at.is_some()) {
        return Ok(());
    }
    plan.copy_pair(MANIFEST_STEM)?;
    let mut manifest = Manifest {
        stream_id: found.stream_id,
        epoch: found.epoch,
        closed: found.closed,
        first_index: found.first_index,
        active_bytes: 0,
        segments: found.pieces.iter().map(|piece| piece.entry).collect(),
        lost: found.lost.clone(),
    };
    let mut after = Vec::new();
    if let Some(index) = cut_at {
        plan.cut = Some(index..next_index);
        plan.records = Some(found.first_index..index);
        plan.lost.clear();
        manifest.lost.clear();
        after = cut(plan, found, index, &mut manifest)?;
    } else if found.is_blocked {
        go_on_behind(plan, found, &mut manifest)?;
    } else if found.is_rebuilt {
        let piece = found.pieces.last().expect("a rebuilt stream has a segment");
        // The rest of the block with the end is free: the manifest's end is that of its records.
        copy_behind(plan, piece, piece.entry.end_position.next_multiple_of(ANY_UNIT_BYTES as u64));
        manifest.epoch = directory::next_epoch(&plan.dir, manifest.epoch)?;
    }
    if found.is_rebuilt {
        after.extend(put_aside(plan, found)?);
    }
    plan.steps.push(RepairStep::SetManifest { manifest, anew });
    plan.steps.extend(after);
    Ok(())
}

/// Plans to write again what other bytes say: file headers and block tailers.
fn mend_in_place<'a>(
    plan: &mut RepairPlan,
    found: &Found,
    pieces: impl Iterator<Item = &'a Piece>,
) -> Result<()> {
    let settings = settings_of(found);
    let mut steps = Vec::new();
    for piece in pieces {
        let Some(file) = &piece.file else { continue };
        let name = file.name();
        if file.is_inferred {
            let FileHeader { compression, in_flight_bytes, record_limit_bytes, .. } = settings;
            let header = FileHeader { compression, in_flight_bytes, record_limit_bytes, ..file.header };
            plan.copy_part(&name, 0..ANY_UNIT_BYTES as u64);
            steps.push(RepairStep::RewriteHeader { path: file.path.clone(), header });
        }
        for &block in &piece.bad_tailers {
            let position = u64::from(block) * file.block_bytes();
            plan.copy_part(&name, position..position + file.block_bytes());
            steps.push(RepairStep::MendTailer { path: file.path.clone(), block });
        }
    }
    plan.steps.extend(steps);
    Ok(())
}

/// The settings of a new segment: those of the stream, as far as a file header still says them.
fn settings_of(found: &Found) -> FileHeader {
    let headers = || found.pieces.iter().filter_map(|piece| piece.file.as_ref());
    let sound = headers().rfind(|file| !file.is_inferred);
    let defaults = StreamOptions::default();
    let fallback = FileHeader {
        kind: FileKind::Segment,
        checksum: defaults.checksum,
        compression: defaults.compression,
        block_bytes: defaults.block_bytes as u32,
        stream_id: found.stream_id,
        segment_id: 0,
        base_index: 0,
        epoch: 0,
        in_flight_bytes: defaults.in_flight_bytes as u32,
        record_limit_bytes: StreamOptions::RECORD_LIMIT_BYTES_MAX,
        is_sparse: false,
        frame_layout: FrameLayout::Aligned,
    };
    sound.or_else(|| headers().next_back()).map_or(fallback, |file| file.header)
}

/// Plans a new active segment behind everything that was ever acknowledged; the damaged one stays as it is.
fn go_on_behind(plan: &mut RepairPlan, found: &Found, manifest: &mut Manifest) -> Result<()> {
    manifest.epoch = directory::next_epoch(&plan.dir, manifest.epoch)?;
    manifest.closed = true;
    let Some(damaged) = found.pieces.last() else { return Ok(()) };
    let index = damaged.entry.next_index;
    if index > damaged.entry.base_index {
        return begin_segment(plan, found, index, manifest);
    }
    // Nothing in it is to be kept.
    manifest.segments.pop();
    match &damaged.file {
        Some(file) => {
            reuse(plan, damaged, file, manifest);
            Ok(())
        }
        None => begin_segment(plan, found, index, manifest),
    }
}

/// Plans to go on in a segment from its beginning.
fn reuse(plan: &mut RepairPlan, piece: &Piece, file: &Readable, manifest: &mut Manifest) {
    let base_index = piece.entry.base_index;
    plan.copy(&file.name(), piece.written.clone());
    manifest.segments.push(SegmentEntry {
        next_index: base_index,
        end_position: file.block_bytes(),
        ..piece.entry
    });
}

/// Plans a new segment that begins with record `index`.
fn begin_segment(plan: &mut RepairPlan, found: &Found, index: u64, manifest: &mut Manifest) -> Result<()> {
    let header = FileHeader {
        stream_id: found.stream_id,
        segment_id: 0,
        base_index: index,
        epoch: manifest.epoch,
        is_sparse: false,
        ..settings_of(found)
    };
    let path = directory::segment_path(&plan.dir, index);
    // Whatever has the name is replaced.
    let replaced = segment_name(index);
    if let Some((_, name, len)) = segment_files(plan)?.into_iter().find(|(_, name, _)| *name == replaced) {
        plan.copy(&name, 0..len);
    }
    plan.steps.push(RepairStep::BeginSegment { path, header });
    manifest.segments.push(SegmentEntry {
        segment_id: 0,
        base_index: index,
        next_index: index,
        end_position: header.block_bytes.into(),
    });
    Ok(())
}

/// Plans to end the stream before record `index`; answers what is to be done behind the manifest.
fn cut(plan: &mut RepairPlan, found: &Found, index: u64, manifest: &mut Manifest) -> Result<Vec<RepairStep>> {
    let at = found.pieces.partition_point(|piece| piece.entry.base_index <= index).saturating_sub(1);
    let (piece, dropped) = (&found.pieces[at], &found.pieces[at + 1..]);
    manifest.epoch = directory::next_epoch(&plan.dir, manifest.epoch)?;
    manifest.closed = true;
    manifest.segments.truncate(at);
    let mut after = Vec::new();
    let before = match &piece.file {
        Some(file) => {
            file.known(index, piece.written.end, found.epoch, |_| {})?.end.filter(|(_, next)| *next == index)
        }
        None => None,
    };
    match (&piece.file, before) {
        (Some(file), Some((position, _))) => {
            copy_behind(plan, piece, position);
            manifest.segments.push(SegmentEntry { next_index: index, end_position: position, ..piece.entry });
            let clean = RepairStep::CleanEnd { path: file.path.clone(), position };
            if file.header.is_sparse {
                // Nothing is written on in a rewritten segment. No open cleans the end of a sealed one, so that comes
                // before the manifest: what is cut here is lost or behind what is lost.
                plan.steps.push(clean);
                begin_segment(plan, found, index, manifest)?;
            } else {
                after.push(clean);
            }
        }
        (Some(file), None) if piece.entry.base_index == index && !file.header.is_sparse => {
            reuse(plan, piece, file, manifest);
        }
        _ => {
            if piece.entry.base_index != index
                || piece.file.as_ref().is_some_and(|file| file.header.is_sparse)
            {
                after.extend(take_away(plan, piece));
            }
            begin_segment(plan, found, index, manifest)?;
        }
    }
    after.extend(dropped.iter().flat_map(|piece| take_away(plan, piece)).collect::<Vec<_>>());
    Ok(after)
}

/// Plans to copy and then remove a segment.
fn take_away(plan: &mut RepairPlan, piece: &Piece) -> Option<RepairStep> {
    let file = piece.file.as_ref()?;
    plan.copy(&file.name(), piece.written.clone());
    Some(RepairStep::Remove { path: file.path.clone() })
}

/// Plans to copy what a segment holds behind a position.
fn copy_behind(plan: &mut RepairPlan, piece: &Piece, position: u64) {
    if let Some(file) = piece.file.as_ref().filter(|_| position < piece.written.end) {
        let start = position / ANY_UNIT_BYTES as u64 * ANY_UNIT_BYTES as u64;
        plan.copy(&file.name(), start..piece.written.end);
    }
}

/// Plans to copy and remove the segment files that a rebuilt manifest does not name: the next open would remove them.
fn put_aside(plan: &mut RepairPlan, found: &Found) -> Result<Vec<RepairStep>> {
    let is_named = |name: &str| {
        found.pieces.iter().any(|piece| piece.file.as_ref().is_some_and(|file| file.name() == name))
    };
    let mut steps = Vec::new();
    for (_, name, len) in segment_files(plan)?.into_iter().filter(|(_, name, _)| !is_named(name)) {
        plan.copy(&name, 0..len);
        let path = plan.dir.join(name);
        let is_replaced = plan
            .steps
            .iter()
            .any(|step| matches!(step, RepairStep::BeginSegment { path: begun, .. } if *begun == path));
        if !is_replaced {
            steps.push(RepairStep::Remove { path });
        }
    }
    Ok(steps)
}

fn segment_name(base_index: u64) -> String {
    format!("{base_index:020}.{}", directory::SEGMENT_EXTENSION)
}
