//! Doing what a plan says. Each step is durable before the next begins.

use std::path::Path;

use crate::block::BlockReader;
use crate::codec::{BlockTailer, FileHeader, Manifest};
use crate::directory;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::final_data::{FinalDataOptions, State, StatePair, salvage};
use crate::io::{ANY_UNIT_BYTES, AlignedBuf, File, OpenMode, WriteSync};
use crate::stream::options::StreamOptions;
use crate::stream::recorder::{NewSegment, create_segment};
use crate::stream::recovery::clean_end;
use crate::stream::repair::{RepairPlan, RepairStep};
use crate::stream::segment::{Segment, read_file_header};
use crate::stream::{MANIFEST_LIMIT_BLOCKS, MANIFEST_STEM};
use crate::write_path::space::Space;

/// Takes the steps of a plan, in order.
pub(super) fn steps(plan: &RepairPlan) -> Result<()> {
    let (env, dir) = (&plan.env, &plan.dir);
    // Before the first copy: afterwards the name of the next one would be free.
    let workplace = plan.workplace();
    if !plan.steps.is_empty() {
        directory::create(env, &workplace)?;
    }
    let mut begun = None;
    for step in &plan.steps {
        tracing::info!(dir = %dir.display(), %step, "repairing");
        match step {
            RepairStep::Copy { from, bytes, to } => copy(env, from, bytes.start, bytes.end, to)?,
            RepairStep::Describe { to } => put(env, to, plan.to_string().as_bytes())?,
            RepairStep::RewriteHeader { path, header } => rewrite_header(env, path, header)?,
            RepairStep::MendTailer { path, block } => mend_tailer(env, path, *block)?,
            RepairStep::BeginSegment { header, .. } => begun = Some(begin_segment(env, dir, header)?),
            RepairStep::SetManifest { manifest, anew } => {
                set_manifest(env, dir, manifest, begun, *anew, &workplace)?;
            }
            RepairStep::CleanEnd { path, position } => {
                clean_end(&writable(env, path)?, *position)?;
            }
            RepairStep::Remove { path } => remove(env, path)?,
            RepairStep::RewriteState { stem, state } => {
                salvage(env, dir, stem)?.rewrite(env, dir, stem, state, &workplace)?;
            }
        }
    }
    Ok(())
}

const COPY_PIECE_BYTES: usize = 1 << 20;

/// Copies bytes into a new file; durable on return, its name too.
fn copy(env: &Env, from: &Path, start: u64, end: u64, to: &Path) -> Result<()> {
    let reading = |error| Error::io("read", from, error);
    let source = env.disk.open(from, OpenMode::Read, ANY_UNIT_BYTES).map_err(reading)?;
    let target = create(env, to, end - start)?;
    let mut piece = AlignedBuf::zeroed(COPY_PIECE_BYTES);
    let mut position = start;
    while position < end {
        let wanted = COPY_PIECE_BYTES.min((end - position).next_multiple_of(ANY_UNIT_BYTES as u64) as usize);
        let count = source.read_full_at(&mut piece[..wanted], position).map_err(reading)?;
        piece[count..wanted].fill(0);
        write(&*target, &piece[..wanted], position - start)?;
        position += wanted as u64;
    }
    finish(env, &*target, end - start)
}

/// Writes a new file; durable on return, its name too.
fn put(env: &Env, to: &Path, bytes: &[u8]) -> Result<()> {
    let target = create(env, to, bytes.len() as u64)?;
    let mut image = AlignedBuf::zeroed(bytes.len().next_multiple_of(ANY_UNIT_BYTES));
    image[..bytes.len()].copy_from_slice(bytes);
    write(&*target, &image, 0)?;
    finish(env, &*target, bytes.len() as u64)
}

fn create(env: &Env, to: &Path, bytes: u64) -> Result<std::sync::Arc<dyn File>> {
    let file = env.disk.open(to, OpenMode::CreateNew, ANY_UNIT_BYTES);
    file.map_err(|error| Error::write("create", to, bytes, error))
}

fn write(file: &dyn File, bytes: &[u8], position: u64) -> Result<()> {
    file.write_all_at(bytes, position, WriteSync::Later)
        .map_err(|error| Error::write("write", file.path(), bytes.len() as u64, error))
}

fn finish(env: &Env, file: &dyn File, len: u64) -> Result<()> {
    file.set_len(len)
        .and_then(|()| file.sync())
        .map_err(|error| Error::write("sync", file.path(), len, error))?;
    directory::sync_parent(env, file.path())
}

fn rewrite_header(env: &Env, path: &Path, header: &FileHeader) -> Result<()> {
    let mut block = AlignedBuf::zeroed(header.block_bytes as usize);
    header.encode(&mut block);
    let file =
        env.disk.open(path, OpenMode::Write, block.len()).map_err(|error| Error::io("open", path, error))?;
    file.write_all_at(&block, 0, WriteSync::Durable)
        .map_err(|error| Error::write("write the header of", path, block.len() as u64, error))
}

/// The segment at a path whose header verifies.
fn writable(env: &Env, path: &Path) -> Result<Segment> {
    let opening = |error| Error::io("open", path, error);
    let file = env.disk.open(path, OpenMode::Read, ANY_UNIT_BYTES).map_err(opening)?;
    let header = read_file_header(&*file, ANY_UNIT_BYTES)?;
    let file = env.disk.open(path, OpenMode::Write, header.block_bytes as usize).map_err(opening)?;
    Ok(Segment::created(env, path.to_path_buf(), file, header, &Default::default()))
}

fn mend_tailer(env: &Env, path: &Path, block: u32) -> Result<()> {
    let segment = writable(env, path)?;
    let reader: BlockReader = segment.open()?.reader;
    let mut image = AlignedBuf::zeroed(segment.block_bytes);
    segment.read_blocks(block, &mut image)?;
    let position = segment.position_of(block);
    let header = reader.header(&image, block).map_err(|fault| Error::corrupt(path, position, None, fault))?;
    let Some(last) = reader.slices(&image, header).map_while(|slice| slice.ok()).last() else {
        return Ok(());
    };
    let last_slice_start = last.start;
    header.encode(&mut image, last_slice_start, reader.checksum);
    debug_assert!(BlockTailer::decode(&image).is_some());
    segment
        .open()?
        .file
        .write_all_at(&image, position, WriteSync::Durable)
        .map_err(|error| Error::write("write", path, image.len() as u64, error))
}

/// Makes the segment in which the stream goes on; answers its id.
fn begin_segment(env: &Env, dir: &Path, header: &FileHeader) -> Result<u64> {
    let options = StreamOptions {
        block_bytes: header.block_bytes as usize,
        checksum: header.checksum,
        compression: header.compression,
        in_flight_bytes: header.in_flight_bytes as usize,
        record_limit_bytes: header.record_limit_bytes,
        ..StreamOptions::default()
    };
    let spare = Space::new(env, dir, options.space()).first()?;
    let FileHeader { stream_id, base_index, epoch, .. } = *header;
    let new = NewSegment { stream_id, base_index, epoch, files: Default::default() };
    Ok(create_segment(env, dir, &options, new, &spare)?.segment_id)
}

fn set_manifest(
    env: &Env,
    dir: &Path,
    manifest: &Manifest,
    begun: Option<u64>,
    anew: bool,
    workplace: &Path,
) -> Result<()> {
    let mut manifest = manifest.clone();
    if let (Some(segment_id), Some(active)) = (begun, manifest.segments.last_mut()) {
        active.segment_id = segment_id;
    }
    let bytes = manifest.encode();
    if anew {
        let left = salvage(env, dir, MANIFEST_STEM)?;
        let state = State { version: left.next_version(), bytes: bytes.into() };
        return left.rewrite(env, dir, MANIFEST_STEM, &state, workplace);
    }
    let options = FinalDataOptions { limit_blocks: MANIFEST_LIMIT_BLOCKS, ..FinalDataOptions::default() };
    let mut pair = StatePair::open(env.clone(), dir, MANIFEST_STEM, options)?;
    pair.set(&bytes)?;
    pair.close()
}

fn remove(env: &Env, path: &Path) -> Result<()> {
    match env.disk.remove(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => directory::sync_parent(env, path),
    }
}
