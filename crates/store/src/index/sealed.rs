//! The `.idx` file of a sealed segment: written once by the maintenance thread (or by recovery, when it is missing),
//! then mapped and read by everyone. It can be built anew from its segment at any time.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;

use super::{Entry, SegmentRuns};
use crate::directory::StoreId;
use crate::disk::{self, Disk};
use crate::error::ReadError;
use crate::record::PhysicalOffset;
use crate::segment;

const MAGIC: &[u8; 8] = b"KARMIDX1";
const HEADER_BYTES: usize = 64;
const RUN_BYTES: usize = 20;
const ENTRY_BYTES: usize = 20;
const FOOTER_BYTES: usize = 16;

/// A run as the file's directory has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DirectoryRun {
    pub(crate) queue: u32,
    pub(crate) count: u32,
    pub(crate) first_queue_offset: u64,
    pub(crate) position: u32,
}

/// Which segment an index file is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexedSegment {
    pub(crate) store: StoreId,
    pub(crate) base: u64,
    pub(crate) length: u64,
}

#[derive(Debug)]
pub(crate) struct SealedIndex {
    path: PathBuf,
    bytes: Bytes,
    run_count: usize,
    last_store_time_ms: u64,
    /// Entries are checked when they are first read: at open that would cost time per message stored.
    entries_intact: OnceLock<bool>,
}

/// Writes the file; `runs` are the entries of all records of the segment, `last_store_time_ms` is that of its last.
pub(crate) fn write(
    disk: &dyn Disk,
    path: &Path,
    segment: IndexedSegment,
    last_store_time_ms: u64,
    runs: &SegmentRuns,
) -> io::Result<()> {
    let entry_count: usize = runs.values().map(|run| run.entries.len()).sum();
    let size = HEADER_BYTES + runs.len() * RUN_BYTES + entry_count * ENTRY_BYTES + FOOTER_BYTES;
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&(runs.len() as u32).to_le_bytes());
    out.extend_from_slice(&(entry_count as u32).to_le_bytes());
    out.extend_from_slice(&segment.store.0);
    out.extend_from_slice(&segment.base.to_le_bytes());
    out.extend_from_slice(&segment.length.to_le_bytes());
    out.extend_from_slice(&last_store_time_ms.to_le_bytes());
    out.resize(HEADER_BYTES, 0);
    let mut position = 0_u32;
    for (queue, run) in runs {
        let count = run.entries.len() as u32;
        out.extend_from_slice(&queue.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&run.first_queue_offset.to_le_bytes());
        out.extend_from_slice(&position.to_le_bytes());
        position += count;
    }
    let entries_at = out.len();
    for entry in runs.values().flat_map(|run| &run.entries) {
        out.extend_from_slice(&entry.physical_offset.0.to_le_bytes());
        out.extend_from_slice(&entry.size.to_le_bytes());
        out.extend_from_slice(&entry.tag_hash.to_le_bytes());
    }
    let entries_crc = crc32c::crc32c(&out[entries_at..]);
    let directory_crc = crc32c::crc32c(&out[..entries_at]);
    out.extend_from_slice(&entries_crc.to_le_bytes());
    out.extend_from_slice(&directory_crc.to_le_bytes());
    out.extend_from_slice(MAGIC);
    disk::replace_file(disk, path, &out)
}

impl SealedIndex {
    /// Maps and checks the index of `segment`; the error says why the file cannot be used.
    pub(crate) fn open(path: PathBuf, segment: IndexedSegment) -> Result<Self, String> {
        let file = File::open(&path).map_err(|error| error.to_string())?;
        let bytes = segment::map_read_only(&file).map_err(|error| error.to_string())?;
        if bytes.len() < HEADER_BYTES + FOOTER_BYTES || bytes[..8] != *MAGIC {
            return Err("it is no index file".into());
        }
        let (run_count, entry_count) = (u32_at(&bytes, 8) as usize, u32_at(&bytes, 12) as usize);
        let entries_at = HEADER_BYTES + run_count * RUN_BYTES;
        let footer_at = entries_at + entry_count * ENTRY_BYTES;
        if bytes.len() != footer_at + FOOTER_BYTES || bytes[footer_at + 8..] != *MAGIC {
            return Err(format!("it has {} bytes", bytes.len()));
        }
        if crc32c::crc32c(&bytes[..entries_at]) != u32_at(&bytes, footer_at + 4) {
            return Err("its directory does not match its checksum".into());
        }
        let store = StoreId(bytes[16..32].try_into().expect("sixteen bytes"));
        let found = IndexedSegment { store, base: u64_at(&bytes, 32), length: u64_at(&bytes, 40) };
        if found != segment {
            return Err(format!("it is about {found:?}"));
        }
        let last_store_time_ms = u64_at(&bytes, 48);
        Ok(Self { path, bytes, run_count, last_store_time_ms, entries_intact: OnceLock::new() })
    }

    /// Store time of the segment's last record.
    pub(crate) fn last_store_time_ms(&self) -> u64 {
        self.last_store_time_ms
    }

    /// The queues that have entries here, by number.
    pub(crate) fn runs(&self) -> impl Iterator<Item = DirectoryRun> + '_ {
        (0..self.run_count).map(|run| {
            let at = HEADER_BYTES + run * RUN_BYTES;
            DirectoryRun {
                queue: u32_at(&self.bytes, at),
                count: u32_at(&self.bytes, at + 4),
                first_queue_offset: u64_at(&self.bytes, at + 8),
                position: u32_at(&self.bytes, at + 16),
            }
        })
    }

    /// Appends `count` entries from entry number `position` on to `out`.
    pub(crate) fn read(&self, position: u32, count: u32, out: &mut Vec<Entry>) -> Result<(), ReadError> {
        let entries = &self.bytes[HEADER_BYTES + self.run_count * RUN_BYTES..];
        let (entries, footer) = entries.split_at(entries.len() - FOOTER_BYTES);
        if !*self.entries_intact.get_or_init(|| crc32c::crc32c(entries) == u32_at(footer, 0)) {
            return Err(ReadError::BadIndex { path: self.path.clone() });
        }
        let from = position as usize * ENTRY_BYTES;
        let wanted = &entries[from..from + count as usize * ENTRY_BYTES];
        out.extend(wanted.chunks_exact(ENTRY_BYTES).map(|entry| Entry {
            physical_offset: PhysicalOffset(u64_at(entry, 0)),
            size: u32_at(entry, 8),
            tag_hash: u64_at(entry, 12),
        }));
        Ok(())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
