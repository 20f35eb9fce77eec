//! The cursor: a small file that bounds what a crash can have torn. Moved by the maintenance thread, by the log writer
//! when that was too slow, and before segments are deleted; read by recovery.
//!
//! It makes three promises that a crash cannot break: the log starts at `log_start`; everything below `flushed` is
//! durable, so what is invalid there is damage; nothing was ever written at or behind `limit`, so whoever looks for
//! records behind a tear need not look further. Two slots are written in turn, so that a torn one leaves the other.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::directory::LogId;
use crate::disk::{self, Disk};

/// The log writer may write so far beyond what the cursor says is flushed.
pub(crate) const REACH_BYTES: u64 = 256 << 20;
pub(crate) const FILE_NAME: &str = "cursor";
const MAGIC: &[u8; 8] = b"KARMCUR1";
/// Slots lie in pages of their own: a torn page cannot take both.
const SLOT_BYTES: u64 = 4096;
const USED_BYTES: usize = 60;

/// What the cursor promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Promise {
    /// Where the log starts; files in front of it are what a deletion left behind.
    pub(crate) log_start: u64,
    /// Everything below is durable.
    pub(crate) flushed: u64,
    /// Nothing at or behind it was ever written.
    pub(crate) limit: u64,
}

/// What recovery may rely on. When a slot is damaged it may have been the newer one, which deleted or allowed more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    /// `None`: not known.
    pub(crate) log_start: Option<u64>,
    pub(crate) flushed: u64,
    /// `u64::MAX`: not known.
    pub(crate) limit: u64,
}

impl Known {
    pub(crate) const NOTHING: Known = Known { log_start: None, flushed: 0, limit: u64::MAX };
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Cursor {
    path: PathBuf,
    file: File,
    disk: Arc<dyn Disk>,
    log: LogId,
    sequence: u64,
}

impl Cursor {
    /// Opens the file, making it if there is none, and reads what it promises.
    pub(crate) fn open(disk: &Arc<dyn Disk>, root: &Path, log: LogId) -> io::Result<(Self, Known)> {
        let path = root.join(FILE_NAME);
        if !path.try_exists()? {
            disk::replace_file(&**disk, &path, &[0; 2 * SLOT_BYTES as usize])?;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let (sequence, known) = parse(&std::fs::read(&path)?, log);
        Ok((Self { path, file, disk: disk.clone(), log, sequence }, known))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the promise, durably. `flushed` must be so already.
    pub(crate) fn write(&mut self, promise: Promise) -> io::Result<()> {
        self.sequence += 1;
        let bytes = encode(self.log, self.sequence, promise);
        self.disk.write_at(&self.file, &bytes, self.sequence % 2 * SLOT_BYTES)?;
        self.disk.sync_data(&self.file)
    }
}

/// The highest sequence number in a cursor file and what it promises.
pub(crate) fn parse(bytes: &[u8], log: LogId) -> (u64, Known) {
    let (even, odd) = bytes.split_at(bytes.len().min(SLOT_BYTES as usize));
    let slots = [even, odd].map(|slot| decode(slot, log));
    let newest = slots.iter().flatten().max_by_key(|(sequence, _)| *sequence);
    let Some(&(sequence, promise)) = newest else { return (0, Known::NOTHING) };
    // The first promise goes to the odd slot, when nothing was in the other yet.
    let is_first = sequence == 1 && even.iter().all(|byte| *byte == 0);
    if !is_first && slots.iter().any(Option::is_none) {
        return (sequence, Known { flushed: promise.flushed, ..Known::NOTHING });
    }
    let Promise { log_start, flushed, limit } = promise;
    (sequence, Known { log_start: Some(log_start), flushed, limit })
}

/// The logs that intact slots of a cursor file name.
pub(crate) fn log_ids(bytes: &[u8]) -> impl Iterator<Item = LogId> + '_ {
    bytes.chunks(SLOT_BYTES as usize).filter_map(|slot| {
        let log = LogId(slot.get(8..24)?.try_into().ok()?);
        decode(slot, log).map(|_| log)
    })
}

fn encode(log: LogId, sequence: u64, promise: Promise) -> [u8; USED_BYTES] {
    let mut bytes = [0; USED_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..24].copy_from_slice(&log.0);
    bytes[24..32].copy_from_slice(&sequence.to_le_bytes());
    bytes[32..40].copy_from_slice(&promise.log_start.to_le_bytes());
    bytes[40..48].copy_from_slice(&promise.flushed.to_le_bytes());
    bytes[48..56].copy_from_slice(&promise.limit.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..56]);
    bytes[56..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(slot: &[u8], log: LogId) -> Option<(u64, Promise)> {
    let bytes = slot.first_chunk::<USED_BYTES>()?;
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let intact = bytes[..8] == *MAGIC
        && bytes[8..24] == log.0
        && crc32c::crc32c(&bytes[..56]).to_le_bytes() == bytes[56..];
    let promise = Promise { log_start: number(32)?, flushed: number(40)?, limit: number(48)? };
    intact.then_some((number(24)?, promise))
}
