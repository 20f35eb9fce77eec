//! Snapshots of the projections: one file per snapshot, named by the log offset it stands for, the newest two kept.
//! Written by the maintenance thread, read by the opening thread.
//!
//! A snapshot is only written when the log is flushed beyond everything it contains, so its offset also says how far
//! the log was certainly durable: recovery must find at least that much.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Projection;
use crate::directory::LogId;
use crate::disk::{self, Disk};
use crate::segment::file_name;

const MAGIC: &[u8; 8] = b"KARMSNP1";
const KEPT: usize = 2;

/// What was read from a snapshot file.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) path: PathBuf,
    /// Everything below is in the sections.
    pub(crate) log_offset: u64,
    sections: Vec<(String, Vec<u8>)>,
}

impl Snapshot {
    pub(crate) fn section(&self, name: &str) -> Option<&[u8]> {
        self.sections.iter().find(|(own, _)| own == name).map(|(_, bytes)| bytes.as_slice())
    }
}

/// Writes a snapshot and removes all but the newest two.
pub(crate) fn write(
    disk: &dyn Disk,
    directory: &Path,
    log: LogId,
    log_offset: u64,
    sections: &[(&str, Vec<u8>)],
) -> io::Result<()> {
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&log.0);
    out.extend_from_slice(&log_offset.to_le_bytes());
    out.extend_from_slice(&(sections.len() as u64).to_le_bytes());
    for (name, bytes) in sections {
        out.extend_from_slice(&(name.len() as u64).to_le_bytes());
        out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(bytes);
    }
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    disk::replace_file(disk, &directory.join(file_name(log_offset, "snap")), &out)?;
    for (_, path) in list(directory)?.into_iter().skip(KEPT) {
        disk.remove_file(&path)?;
    }
    Ok(())
}

/// The newest snapshot that is intact and has a section for each projection. Others are passed over with a warning.
pub(crate) fn newest(
    directory: &Path,
    log: LogId,
    projections: &[std::sync::Arc<dyn Projection>],
) -> io::Result<Option<Snapshot>> {
    for (log_offset, path) in list(directory)? {
        let bytes = fs::read(&path)?;
        let Some(snapshot) = parse(&path, &bytes, log, log_offset) else {
            tracing::warn!(snapshot = %path.display(), "passed over a damaged snapshot");
            continue;
        };
        if let Some(missing) = projections.iter().find(|part| snapshot.section(part.name()).is_none()) {
            tracing::warn!(snapshot = %path.display(), projection = missing.name(), "passed over a snapshot without");
            continue;
        }
        return Ok(Some(snapshot));
    }
    Ok(None)
}

/// Snapshot files, newest first.
pub(crate) fn list(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        if let Some(offset) = offset_of(&path, "snap") {
            found.push((offset, path));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// The offset in a name like `00000000000001048576.snap`.
pub(crate) fn offset_of(path: &Path, extension: &str) -> Option<u64> {
    let stem = path.file_stem()?.to_str()?;
    let named_so = path.extension()? == extension && stem.len() == 20;
    named_so.then(|| stem.parse().ok()).flatten()
}

fn parse(path: &Path, bytes: &[u8], log: LogId, log_offset: u64) -> Option<Snapshot> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut rest = body.strip_prefix(MAGIC)?.strip_prefix(&log.0)?;
    if take_u64(&mut rest)? != log_offset {
        return None;
    }
    let count = take_u64(&mut rest)?;
    let mut sections = Vec::new();
    for _ in 0..count {
        let (name_bytes, data_bytes) = (take_u64(&mut rest)?, take_u64(&mut rest)?);
        let name = take(&mut rest, name_bytes)?;
        let data = take(&mut rest, data_bytes)?;
        sections.push((String::from_utf8(name.to_vec()).ok()?, data.to_vec()));
    }
    rest.is_empty().then(|| Snapshot { path: path.to_owned(), log_offset, sections })
}

fn take<'a>(rest: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(usize::try_from(count).ok()?)?;
    *rest = left;
    Some(taken)
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?))
}
