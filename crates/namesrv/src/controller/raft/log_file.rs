//! The log of the consensus on disk: one file of frames, each of them what was flushed together. Used by the consensus
//! alone, which waits for it.
//!
//! A frame is length (u32, little-endian), CRC32C over length and payload (u32), payload: JSON. The first says up to where the log was
//! dropped (a snapshot has that), each further one is a row of entries. A frame is begun when the one before it is on disk;
//! so a frame that is not valid with a valid one behind it was damaged later, and one with nothing behind it was torn by a crash.
//! Dropping from either end writes the file anew.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use openraft::LogId;

use super::Entry;
use super::files::{Directory, OpenError};

const NAME: &str = "log";
const MAGIC: &[u8; 8] = b"KARMCLG1";
const FRAME_HEADER_BYTES: usize = 8;
/// A frame is what one message of a controller brought, or less.
const PAYLOAD_MAX_BYTES: usize = 64 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    end: u64,
}

/// What a log file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Everything up to it was dropped.
    pub(super) purged: Option<LogId<u64>>,
    pub(super) entries: Vec<Entry>,
    /// Bytes of a torn frame, which were cut.
    pub(super) cut_bytes: u64,
}

impl LogFile {
    /// Opens or makes the log; a torn tail is cut, durably.
    pub(super) fn open(directory: &Directory) -> Result<(Self, Contents), OpenError> {
        let path = directory.path(NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let new = Self::create(directory, None, &[]).map_err(OpenError::io("create", &path))?;
                return Ok((new, Contents::default()));
            }
            Err(error) => return Err(OpenError::io("read", &path)(error)),
        };
        let (mut contents, end) = parse(&path, &bytes)?;
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(OpenError::io("open", &path))?;
        contents.cut_bytes = (bytes.len() - end) as u64;
        if contents.cut_bytes > 0 {
            let cut = file.set_len(end as u64).and_then(|()| file.sync_all());
            cut.map_err(OpenError::io("cut", &path))?;
        }
        Ok((Self { file, end: end as u64 }, contents))
    }

    /// A file with these entries takes the place of the one that is there.
    pub(super) fn create(
        directory: &Directory,
        purged: Option<LogId<u64>>,
        entries: &[Entry],
    ) -> io::Result<Self> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(frame(&serde_json::to_vec(&purged)?)?);
        if !entries.is_empty() {
            bytes.extend(frame(&serde_json::to_vec(entries)?)?);
        }
        let file = directory.replace(NAME, &bytes)?;
        Ok(Self { file, end: bytes.len() as u64 })
    }

    /// Durable when it returns. After an error nothing may be appended any more.
    pub(super) fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let bytes = frame(&serde_json::to_vec(entries)?)?;
        self.file.write_all_at(&bytes, self.end)?;
        self.file.sync_data()?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

fn frame(payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= PAYLOAD_MAX_BYTES);
    let length = length.ok_or_else(|| io::Error::other("a row of log entries is too large"))?.to_le_bytes();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&length), payload);
    Ok([&length, &crc.to_le_bytes(), payload].concat())
}

/// Where the payload of the frame lies that begins at `at`, if that is valid.
fn payload(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let header = bytes.get(at..at + FRAME_HEADER_BYTES)?;
    let (length, crc) = header.split_at(4);
    let count = u32::from_le_bytes(length.try_into().ok()?) as usize;
    let begin = at + FRAME_HEADER_BYTES;
    let payload = bytes.get(begin..begin + count).filter(|_| (1..=PAYLOAD_MAX_BYTES).contains(&count))?;
    let expected = crc32c::crc32c_append(crc32c::crc32c(length), payload);
    (crc == expected.to_le_bytes()).then_some(begin..begin + count)
}

/// What the file holds, and where that ends.
fn parse(path: &Path, bytes: &[u8]) -> Result<(Contents, usize), OpenError> {
    let damaged = |offset: usize, why: &str| OpenError::Damaged {
        path: path.to_owned(),
        offset: offset as u64,
        why: why.to_owned(),
    };
    if !bytes.starts_with(MAGIC) {
        return Err(damaged(0, "it does not begin as a controller's log"));
    }
    // It was put in place with its first frame.
    let first = payload(bytes, MAGIC.len());
    let first = first.ok_or_else(|| damaged(MAGIC.len(), "its first frame is not valid"))?;
    let unread = |at: usize| move |error: serde_json::Error| damaged(at, &error.to_string());
    let purged: Option<LogId<u64>> =
        serde_json::from_slice(&bytes[first.clone()]).map_err(unread(MAGIC.len()))?;
    let mut contents = Contents { purged, ..Contents::default() };
    let mut next = purged.map_or(0, |purged| purged.index + 1);
    let mut at = first.end;
    while at < bytes.len() {
        let Some(range) = payload(bytes, at) else {
            return match (at + 1..bytes.len()).find(|later| payload(bytes, *later).is_some()) {
                Some(_) => Err(damaged(at, "what follows it is valid, so this was too")),
                None => Ok((contents, at)),
            };
        };
        let entries: Vec<Entry> = serde_json::from_slice(&bytes[range.clone()]).map_err(unread(at))?;
        for entry in entries {
            if entry.log_id.index != next {
                return Err(damaged(at, "an entry is missing in front of it"));
            }
            next += 1;
            contents.entries.push(entry);
        }
        at = range.end;
    }
    Ok((contents, at))
}

#[cfg(test)]
mod tests;
