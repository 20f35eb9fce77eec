//! Checking an index file: as a file, with all its checksums, and against the records it is about.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{
    BAD_DIRECTORY, DirectoryRun, FOOTER_BYTES, HEADER_BYTES, IndexedSegment, MARK_BYTES, RUN_BYTES,
    SealedIndex, frame, partition, u32_at, u64_at,
};
use crate::directory::LogId;
use crate::index::contents::{KeyAt, Mark, key_offset};
use crate::record::{Header, PhysicalOffset};
use crate::verify::Halt;

/// Fills bytes from an offset of a file on.
type ReadAt<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> Result<io::Result<()>, Halt>;

/// So much of a file is read at once.
const PIECE_BYTES: usize = 256 << 10;

/// Reads all of a file by `read`, which fills bytes from an offset on, and checks it. The innermost error says what is
/// wrong with it; the one around it is that of the device.
pub(crate) fn check_file(
    file: &File,
    about: IndexedSegment,
    read: ReadAt<'_>,
) -> Result<io::Result<Result<(), String>>, Halt> {
    let length = match file.metadata() {
        Ok(metadata) => metadata.len() as usize,
        Err(error) => return Ok(Err(error)),
    };
    if length < HEADER_BYTES + FOOTER_BYTES {
        return Ok(Ok(Err("it is no index file".into())));
    }
    let (mut header, mut footer) = ([0; HEADER_BYTES], [0; FOOTER_BYTES]);
    for (at, into) in [(0, &mut header[..]), (length - FOOTER_BYTES, &mut footer[..])] {
        if let Err(error) = read(at as u64, into)? {
            return Ok(Err(error));
        }
    }
    let layout = match frame(&header, &footer, length, about) {
        Ok((_, layout)) => layout,
        Err(reason) => return Ok(Ok(Err(reason))),
    };
    let parts = [
        (0..layout.marks.end, BAD_DIRECTORY),
        (layout.bloom.start..layout.positions.end, "its keys do not match their checksum"),
        (layout.entries, "its entries do not match their checksum"),
    ];
    for (number, (part, reason)) in parts.into_iter().enumerate() {
        match checksum(part, read)? {
            Ok(crc) if crc == u32_at(&footer, 4 * number) => {}
            Ok(_) => return Ok(Ok(Err(reason.into()))),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(Ok(())))
}

/// What an intact index file is about.
pub(crate) fn about(path: &Path) -> Option<IndexedSegment> {
    let file = File::open(path).ok()?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0).ok()?;
    let log = LogId(header[16..32].try_into().expect("sixteen bytes"));
    let about = IndexedSegment { log, base: u64_at(&header, 32), length: u64_at(&header, 40) };
    let checked = check_file(&file, about, &mut |at, into: &mut [u8]| Ok(file.read_exact_at(into, at)));
    matches!(checked, Ok(Ok(Ok(())))).then_some(about)
}

fn checksum(part: Range<usize>, read: ReadAt<'_>) -> Result<io::Result<u32>, Halt> {
    let mut buffer = vec![0; part.len().min(PIECE_BYTES)];
    let (mut crc, mut at) = (0, part.start);
    while at < part.end {
        let piece = &mut buffer[..(part.end - at).min(PIECE_BYTES)];
        if let Err(error) = read(at as u64, piece)? {
            return Ok(Err(error));
        }
        crc = crc32c::crc32c_append(crc, piece);
        at += piece.len();
    }
    Ok(Ok(crc))
}

impl SealedIndex {
    /// What is wrong if this record is not found by its queue and each of its keys; `bytes` starts with it.
    pub(crate) fn misses(&self, header: &Header, bytes: &[u8]) -> Option<String> {
        let at = header.physical_offset;
        if let Some(queue) = header.queue {
            let mut found = Vec::new();
            let run = self.run(queue.0);
            let number = run.and_then(|run| header.queue_offset.checked_sub(run.first_queue_offset));
            if let Some((run, number)) =
                run.zip(number).filter(|(run, number)| *number < u64::from(run.count))
                && let Err(error) = self.entries(run.position + number as u32, 1, &mut found)
            {
                return Some(error.to_string());
            }
            let leads_here = found.first().is_some_and(|entry| {
                let places = (entry.physical_offset, entry.size) == (PhysicalOffset(at), header.length);
                places && entry.tag_hash == header.tag_hash
            });
            if !leads_here {
                let (queue, offset) = (queue.0, header.queue_offset);
                return Some(format!("offset {offset} of queue {queue} does not lead to the record at {at}"));
            }
        }
        let unfound = header.keys(bytes).find(|&key| match self.find(key, &(at..at + 1)) {
            Ok(mut found) => !found.any(|found| found == at),
            Err(_) => true,
        });
        unfound.map(|key| format!("key {key:016x} does not lead to the record at {at}"))
    }

    /// All keys, each with the physical offset of its record.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (u64, KeyAt)> + '_ {
        let hashes = self.bytes[self.layout.hashes.clone()].chunks_exact(8).map(|hash| u64_at(hash, 0));
        let positions =
            self.bytes[self.layout.positions.clone()].chunks_exact(4).map(|place| u32_at(place, 0));
        hashes.zip(positions).map(|key| (key_offset(self.about.base, key.1), key))
    }

    /// All time marks.
    pub(crate) fn marks(&self) -> impl Iterator<Item = Mark> + '_ {
        let marks = self.bytes[self.layout.marks.clone()].chunks_exact(MARK_BYTES);
        marks.map(|mark| Mark { store_time_ms: u64_at(mark, 0), physical_offset: u64_at(mark, 8) })
    }

    fn run(&self, queue: u32) -> Option<DirectoryRun> {
        let runs = &self.bytes[self.layout.runs.clone()];
        let count = (runs.len() / RUN_BYTES) as u32;
        let run_at = |number: u32| &runs[number as usize * RUN_BYTES..(number as usize + 1) * RUN_BYTES];
        let number = partition(count, |number| u32_at(run_at(number), 0) < queue);
        let run = (number < count).then(|| run_at(number)).filter(|run| u32_at(run, 0) == queue)?;
        let first_queue_offset = u64_at(run, 8);
        Some(DirectoryRun { queue, count: u32_at(run, 4), first_queue_offset, position: u32_at(run, 16) })
    }
}
