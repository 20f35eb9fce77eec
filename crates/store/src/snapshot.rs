//! Snapshots of the projections: one file per snapshot, named by the log offset it stands for; two are kept.
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
/// The section that says how much of the log the others may know.
const REACH: &str = "reach";
/// The section of a snapshot that a repair wrote when none was left: in place of those of the projections.
const GIVEN_UP: &str = "given up";

/// What was read from a snapshot file.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) path: PathBuf,
    /// Everything below is in the sections.
    pub(crate) log_offset: u64,
    sections: Vec<(String, Vec<u8>)>,
}

impl Snapshot {
    /// The state that this would hold was given up: the projections start empty, and see no consumer progress of the log in
    /// front of what is returned. It may be ahead of queues of which nothing else is known any more, and nobody would get
    /// the messages in between; without it groups get some twice.
    pub(crate) fn given_up_below(&self) -> Option<u64> {
        Some(u64::from_le_bytes(self.section(GIVEN_UP)?.try_into().ok()?))
    }

    /// It knows nothing of what lies at or behind this: its sections were taken while the log went on.
    pub(crate) fn reaches_to(&self) -> u64 {
        let reach = self.section(REACH).and_then(|bytes| bytes.try_into().ok());
        reach.map_or(u64::MAX, u64::from_le_bytes)
    }

    pub(crate) fn section(&self, name: &str) -> Option<&[u8]> {
        self.sections.iter().find(|(own, _)| own == name).map(|(_, bytes)| bytes.as_slice())
    }
}

/// The snapshots that are kept. A start uses the newest, or the one before when that turns out bad.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Offset of the newest that is known to be good; 0 if there is none.
    pub(crate) newest: u64,
    /// Offset of the one before; 0 if there is none.
    pub(crate) before: u64,
}

/// What [`Snapshot::reaches_to`] will say.
pub(crate) fn reach(applied: u64) -> (&'static str, Vec<u8>) {
    (REACH, applied.to_le_bytes().to_vec())
}

/// Writes a snapshot and removes all but this one and the one at `former`, which is known to be good.
pub(crate) fn write(
    disk: &dyn Disk,
    directory: &Path,
    log: LogId,
    log_offset: u64,
    sections: &[(&str, Vec<u8>)],
    former: u64,
) -> io::Result<()> {
    let out = encode(log, log_offset, sections);
    disk::replace_file(disk, &directory.join(file_name(log_offset, "snap")), &out)?;
    for (offset, path) in list(directory)? {
        if offset != log_offset && offset != former {
            disk.remove_file(&path)?;
        }
    }
    Ok(())
}

/// Writes a snapshot that says that the state was given up which the log had at `log_start`; `below`: where it ends.
pub(crate) fn write_given_up(
    disk: &dyn Disk,
    directory: &Path,
    log: LogId,
    log_start: u64,
    below: u64,
) -> io::Result<()> {
    let out = encode(log, log_start, &[(GIVEN_UP, below.to_le_bytes().to_vec())]);
    disk::replace_file(disk, &directory.join(file_name(log_start, "snap")), &out)
}

pub(crate) fn encode(log: LogId, log_offset: u64, sections: &[(&str, Vec<u8>)]) -> Vec<u8> {
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
    out
}

/// The newest snapshot that is intact and has a section for each projection, or none because it is older than the
/// projection. Others are passed over with a warning.
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
        let is_missing = |part: &&std::sync::Arc<dyn Projection>| {
            snapshot.section(part.name()).is_none() && !part.was_added_later()
        };
        if snapshot.given_up_below().is_none()
            && let Some(missing) = projections.iter().find(is_missing)
        {
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

/// What a file with the offset of its name holds; `None` if it is not as it was written.
pub(crate) fn parse(path: &Path, bytes: &[u8], log: LogId, log_offset: u64) -> Option<Snapshot> {
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

/// The log that an intact snapshot file names.
pub(crate) fn log_id(bytes: &[u8]) -> Option<LogId> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    let log = body.strip_prefix(MAGIC)?.first_chunk::<16>()?;
    (crc32c::crc32c(body) == u32::from_le_bytes(*crc)).then_some(LogId(*log))
}

fn take<'a>(rest: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(usize::try_from(count).ok()?)?;
    *rest = left;
    Some(taken)
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?))
}
