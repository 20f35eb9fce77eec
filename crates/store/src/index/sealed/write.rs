//! Writing an index file: the layout of `docs/storage-format.md`, from the contents of a segment.

use std::io;
use std::path::Path;

use super::{BLOCK_BYTES, Counts, HEADER_BYTES, IndexedSegment, MAGIC, bloom_bits};
use crate::disk::{self, Disk};
use crate::index::contents::{Contents, KeyAt};

/// So many bits for each key, six of them set: about one key in a hundred that is not there seems to be.
const BLOOM_BITS_PER_KEY: usize = 10;

/// Writes the file. `contents` are those of all records of the segment, in order; afterwards its keys are sorted.
pub(crate) fn write(
    disk: &dyn Disk,
    path: &Path,
    segment: IndexedSegment,
    contents: &mut Contents,
) -> io::Result<()> {
    disk::replace_file(disk, path, &encode(segment, contents))
}

/// The bytes of the file; sorts the keys.
pub(crate) fn encode(segment: IndexedSegment, contents: &mut Contents) -> Vec<u8> {
    contents.keys.sort_unstable();
    contents.keys.dedup();
    let contents = &*contents;
    let Contents { runs, keys, marks } = contents;
    let counts = Counts {
        runs: runs.len() as u32,
        marks: marks.list.len() as u32,
        blocks: (keys.len() * BLOOM_BITS_PER_KEY).div_ceil(8 * BLOCK_BYTES) as u32,
        keys: keys.len() as u32,
        entries: runs.values().map(|run| run.entries.len()).sum::<usize>() as u32,
    };
    let layout = counts.layout();
    let mut out = Vec::with_capacity(layout.footer.end);
    encode_header(&mut out, segment, counts, contents);
    let mut position = 0_u32;
    for (queue, run) in runs {
        let count = run.entries.len() as u32;
        out.extend_from_slice(&queue.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&run.first_queue_offset.to_le_bytes());
        out.extend_from_slice(&position.to_le_bytes());
        position += count;
    }
    for mark in &marks.list {
        out.extend_from_slice(&mark.store_time_ms.to_le_bytes());
        out.extend_from_slice(&mark.physical_offset.to_le_bytes());
    }
    encode_bloom(&mut out, keys, counts.blocks as usize);
    keys.iter().for_each(|(key, _)| out.extend_from_slice(&key.to_le_bytes()));
    keys.iter().for_each(|(_, position)| out.extend_from_slice(&position.to_le_bytes()));
    for entry in runs.values().flat_map(|run| &run.entries) {
        out.extend_from_slice(&entry.physical_offset.0.to_le_bytes());
        out.extend_from_slice(&entry.size.to_le_bytes());
        out.extend_from_slice(&entry.tag_hash.to_le_bytes());
    }
    let parts = [0..layout.marks.end, layout.bloom.start..layout.positions.end, layout.entries];
    let footer = parts.map(|part| crc32c::crc32c(&out[part]).to_le_bytes()).concat();
    out.extend_from_slice(&footer);
    out.extend_from_slice(&crc32c::crc32c(&footer).to_le_bytes());
    out.extend_from_slice(MAGIC);
    out
}

fn encode_header(out: &mut Vec<u8>, segment: IndexedSegment, counts: Counts, contents: &Contents) {
    let marks = &contents.marks;
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&counts.runs.to_le_bytes());
    out.extend_from_slice(&counts.entries.to_le_bytes());
    out.extend_from_slice(&segment.log.0);
    out.extend_from_slice(&segment.base.to_le_bytes());
    out.extend_from_slice(&segment.length.to_le_bytes());
    let first = marks.list.first().map_or(marks.last_store_time_ms, |mark| mark.store_time_ms);
    out.extend_from_slice(&first.to_le_bytes());
    out.extend_from_slice(&marks.last_store_time_ms.to_le_bytes());
    out.extend_from_slice(&counts.marks.to_le_bytes());
    out.extend_from_slice(&counts.keys.to_le_bytes());
    out.extend_from_slice(&counts.blocks.to_le_bytes());
    out.resize(HEADER_BYTES, 0);
}

fn encode_bloom(out: &mut Vec<u8>, keys: &[KeyAt], blocks: usize) {
    let start = out.len();
    out.resize(start + blocks * BLOCK_BYTES, 0);
    let bloom = &mut out[start..];
    for (key, _) in keys {
        let (block, bits) = bloom_bits(*key, blocks);
        bits.into_iter().for_each(|bit| bloom[block * BLOCK_BYTES + bit / 8] |= 1 << (bit % 8));
    }
}
