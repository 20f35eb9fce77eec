//! The `.idx` file of a sealed segment: written once by the maintenance thread (or by recovery, when it is missing),
//! then mapped and read by everyone. It can be built anew from its segment at any time.

mod check;
mod write;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;

use super::Entry;
use super::contents::{Mark, key_offset, key_position};
use crate::directory::LogId;
use crate::error::ReadError;
use crate::record::PhysicalOffset;
use crate::segment;

pub(crate) use check::{about, check_file};
#[cfg(test)]
pub(crate) use write::encode;
pub(crate) use write::write;

const MAGIC: &[u8; 8] = b"KARMIDX1";
const HEADER_BYTES: usize = 80;
const RUN_BYTES: usize = 20;
const MARK_BYTES: usize = 16;
const BLOCK_BYTES: usize = 64;
const ENTRY_BYTES: usize = 20;
const FOOTER_BYTES: usize = 24;
const BAD_DIRECTORY: &str = "its directory does not match its checksum";

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
    pub(crate) log: LogId,
    pub(crate) base: u64,
    pub(crate) length: u64,
}

/// Where the parts of a file lie, from its counts.
#[derive(Debug, Clone)]
struct Layout {
    runs: Range<usize>,
    marks: Range<usize>,
    bloom: Range<usize>,
    hashes: Range<usize>,
    positions: Range<usize>,
    entries: Range<usize>,
    footer: Range<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Counts {
    runs: u32,
    marks: u32,
    blocks: u32,
    keys: u32,
    entries: u32,
}

impl Counts {
    /// Counts come from a file: sums of them do not overflow, since each is at most 4 Gi of at most 64 bytes.
    fn layout(self) -> Layout {
        let mut at = HEADER_BYTES;
        let mut part = |count: u32, bytes: usize| {
            let from = at;
            at += count as usize * bytes;
            from..at
        };
        Layout {
            runs: part(self.runs, RUN_BYTES),
            marks: part(self.marks, MARK_BYTES),
            bloom: part(self.blocks, BLOCK_BYTES),
            hashes: part(self.keys, 8),
            positions: part(self.keys, 4),
            entries: part(self.entries, ENTRY_BYTES),
            footer: part(1, FOOTER_BYTES),
        }
    }
}

#[derive(Debug)]
pub(crate) struct SealedIndex {
    path: PathBuf,
    about: IndexedSegment,
    bytes: Bytes,
    layout: Layout,
    first_store_time_ms: u64,
    last_store_time_ms: u64,
    /// Entries and keys are checked when they are first read: at open that would cost time per message stored.
    entries_intact: OnceLock<bool>,
    keys_intact: OnceLock<bool>,
}

impl SealedIndex {
    /// Maps and checks the index of `about`; the error says why the file cannot be used.
    pub(crate) fn open(path: PathBuf, about: IndexedSegment) -> Result<Self, String> {
        let file = File::open(&path).map_err(|error| error.to_string())?;
        let bytes = segment::map_read_only(&file).map_err(|error| error.to_string())?;
        Self::read(path, bytes, about)
    }

    /// Checks all of `bytes` that is needed to find the rest.
    pub(crate) fn read(path: PathBuf, bytes: Bytes, about: IndexedSegment) -> Result<Self, String> {
        if bytes.len() < HEADER_BYTES + FOOTER_BYTES {
            return Err("it is no index file".into());
        }
        let (header, footer) = (&bytes[..HEADER_BYTES], &bytes[bytes.len() - FOOTER_BYTES..]);
        let (counts, layout) = frame(header, footer, bytes.len(), about)?;
        if crc32c::crc32c(&bytes[..layout.marks.end]) != u32_at(footer, 0) {
            return Err(BAD_DIRECTORY.into());
        }
        let (first_store_time_ms, last_store_time_ms) = (u64_at(&bytes, 48), u64_at(&bytes, 56));
        let (entries_intact, keys_intact) = (OnceLock::new(), OnceLock::new());
        let index = Self {
            path,
            about,
            bytes,
            layout,
            first_store_time_ms,
            last_store_time_ms,
            entries_intact,
            keys_intact,
        };
        let is_outside =
            |run: &DirectoryRun| run.position.checked_add(run.count).is_none_or(|end| end > counts.entries);
        let outside = index.runs().find(is_outside);
        match outside {
            Some(run) => Err(format!("the entries of queue {} lie outside of it", run.queue)),
            None => Ok(index),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn length_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn about(&self) -> IndexedSegment {
        self.about
    }

    /// Store times of the segment's first and last record.
    pub(crate) fn store_times_ms(&self) -> (u64, u64) {
        (self.first_store_time_ms, self.last_store_time_ms)
    }

    fn check_entries(&self) -> Result<(), ReadError> {
        self.check(&self.entries_intact, self.layout.entries.clone(), 8)
    }

    /// `Err` once it is known that the keys are damaged.
    pub(crate) fn check_keys(&self) -> Result<(), ReadError> {
        self.check(&self.keys_intact, self.layout.bloom.start..self.layout.positions.end, 4)
    }

    fn check(&self, intact: &OnceLock<bool>, part: Range<usize>, crc_at: usize) -> Result<(), ReadError> {
        let crc = u32_at(&self.bytes, self.layout.footer.start + crc_at);
        match intact.get_or_init(|| crc32c::crc32c(&self.bytes[part]) == crc) {
            true => Ok(()),
            false => Err(ReadError::BadIndex { path: self.path.clone(), segment: self.about.base }),
        }
    }

    /// The queues that have entries here, by number.
    pub(crate) fn runs(&self) -> impl Iterator<Item = DirectoryRun> + '_ {
        self.bytes[self.layout.runs.clone()].chunks_exact(RUN_BYTES).map(|run| DirectoryRun {
            queue: u32_at(run, 0),
            count: u32_at(run, 4),
            first_queue_offset: u64_at(run, 8),
            position: u32_at(run, 16),
        })
    }

    /// Appends `count` entries from entry number `position` on to `out`.
    pub(crate) fn entries(&self, position: u32, count: u32, out: &mut Vec<Entry>) -> Result<(), ReadError> {
        self.check_entries()?;
        let from = self.layout.entries.start + position as usize * ENTRY_BYTES;
        let wanted = &self.bytes[from..from + count as usize * ENTRY_BYTES];
        out.extend(wanted.chunks_exact(ENTRY_BYTES).map(|entry| Entry {
            physical_offset: PhysicalOffset(u64_at(entry, 0)),
            size: u32_at(entry, 8),
            tag_hash: u64_at(entry, 12),
        }));
        Ok(())
    }

    /// How many of the `count` entries from `position` on lie in front of `physical_offset`.
    pub(crate) fn count_in_front(
        &self,
        position: u32,
        count: u32,
        physical_offset: u64,
    ) -> Result<u32, ReadError> {
        self.check_entries()?;
        let entries = self.layout.entries.start + position as usize * ENTRY_BYTES;
        let offset_of = |number: u32| u64_at(&self.bytes, entries + number as usize * ENTRY_BYTES);
        Ok(partition(count, |number| offset_of(number) < physical_offset))
    }

    /// Where the first record with a store time of at least `time_ms` lies: not in front of the start of the range, and
    /// not behind its end.
    pub(crate) fn window(&self, time_ms: u64) -> Range<u64> {
        let marks = &self.bytes[self.layout.marks.clone()];
        let mark = |number: u32| Mark {
            store_time_ms: u64_at(marks, number as usize * MARK_BYTES),
            physical_offset: u64_at(marks, number as usize * MARK_BYTES + 8),
        };
        let count = (marks.len() / MARK_BYTES) as u32;
        let behind = partition(count, |number| mark(number).store_time_ms < time_ms);
        let from = behind.checked_sub(1).map_or(self.about.base, |last| mark(last).physical_offset);
        let to =
            if behind < count { mark(behind).physical_offset } else { self.about.base + self.about.length };
        from..to
    }

    /// Physical offsets of the records with this key that lie in `range`, the last first.
    pub(crate) fn find(
        &self,
        key: u64,
        range: &Range<u64>,
    ) -> Result<impl Iterator<Item = u64> + '_, ReadError> {
        self.check_keys()?;
        let bytes = &self.bytes;
        let (hashes, positions) = (self.layout.hashes.clone(), self.layout.positions.clone());
        let key_at = move |number: u32| {
            let number = number as usize;
            (u64_at(bytes, hashes.start + number * 8), u32_at(bytes, positions.start + number * 4))
        };
        let count = if self.may_hold(key) { (self.layout.hashes.len() / 8) as u32 } else { 0 };
        let base = self.about.base;
        let end = base + self.about.length;
        let inside = range.start.clamp(base, end)..range.end.clamp(base, end);
        let inside = key_position(base, inside.start)..key_position(base, inside.end);
        let from = partition(count, |number| key_at(number) < (key, inside.start));
        let to = partition(count, |number| key_at(number) < (key, inside.end)).max(from);
        Ok((from..to).rev().map(move |number| key_offset(base, key_at(number).1)))
    }

    fn may_hold(&self, key: u64) -> bool {
        let bloom = &self.bytes[self.layout.bloom.clone()];
        let blocks = bloom.len() / BLOCK_BYTES;
        blocks > 0 && {
            let (block, bits) = bloom_bits(key, blocks);
            let block = &bloom[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES];
            bits.into_iter().all(|bit| block[bit / 8] & 1 << (bit % 8) != 0)
        }
    }
}

/// For a fuzzer, which never guesses a checksum: puts those of a file right whose counts fit its length.
#[cfg(any(test, fuzzing))]
pub(crate) fn repair_checksums(bytes: &mut [u8]) {
    if bytes.len() < HEADER_BYTES + FOOTER_BYTES {
        return;
    }
    let count = |at| u32_at(bytes, at);
    let counts =
        Counts { runs: count(8), entries: count(12), marks: count(64), keys: count(68), blocks: count(72) };
    let layout = counts.layout();
    if layout.footer.end == bytes.len() {
        let parts = [0..layout.marks.end, layout.bloom.start..layout.positions.end, layout.entries];
        let footer = parts.map(|part| crc32c::crc32c(&bytes[part]).to_le_bytes()).concat();
        bytes[layout.footer.start..][..12].copy_from_slice(&footer);
        bytes[layout.footer.start + 12..][..4].copy_from_slice(&crc32c::crc32c(&footer).to_le_bytes());
    }
}

/// What header and footer of a file of so many bytes say; the error says why it is not the index of `about`.
fn frame(
    header: &[u8],
    footer: &[u8],
    length: usize,
    about: IndexedSegment,
) -> Result<(Counts, Layout), String> {
    if header[..8] != *MAGIC {
        return Err("it is no index file".into());
    }
    let count = |at| u32_at(header, at);
    let counts =
        Counts { runs: count(8), entries: count(12), marks: count(64), keys: count(68), blocks: count(72) };
    let layout = counts.layout();
    if length != layout.footer.end {
        return Err(format!("it has {length} bytes instead of {}", layout.footer.end));
    }
    if footer[16..] != *MAGIC || crc32c::crc32c(&footer[..12]) != u32_at(footer, 12) {
        return Err("its footer is damaged".into());
    }
    let log = LogId(header[16..32].try_into().expect("sixteen bytes"));
    let found = IndexedSegment { log, base: u64_at(header, 32), length: u64_at(header, 40) };
    if found != about {
        return Err(format!("it is about {found:?}"));
    }
    Ok((counts, layout))
}

/// A key sets a few bits of one block of 64 bytes: whoever asks touches one cache line.
fn bloom_bits(key: u64, blocks: usize) -> (usize, [usize; 6]) {
    let block = ((u128::from(key) * blocks as u128) >> 64) as usize;
    // The place of the block used the high bits.
    let (start, step) = (key as usize & 511, (key >> 9) as usize & 511 | 1);
    (block, [0, 1, 2, 3, 4, 5].map(|number| (start + number * step) & 511))
}

/// The first number below `count` for which `in_front` is false, if it is true up to there.
fn partition(count: u32, in_front: impl Fn(u32) -> bool) -> u32 {
    let (mut from, mut to) = (0, count);
    while from < to {
        let middle = from + (to - from) / 2;
        match in_front(middle) {
            true => from = middle + 1,
            false => to = middle,
        }
    }
    from
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
