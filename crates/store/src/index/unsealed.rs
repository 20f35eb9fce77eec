//! Keys and times of records whose segment has no index file yet. The log writer adds, the maintenance thread takes a
//! segment's part out when its file is written, everyone searches.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::contents::{Contents, KeyAt, Marks, key_offset, key_position};

/// A search looks at the keys one by one, at about ten a nanosecond's worth of memory; only those of the chunk that is
/// being filled are looked at under the lock.
const CHUNK_KEYS: usize = 64 << 10;

#[derive(Debug, Default)]
pub(crate) struct Unsealed {
    segments: Mutex<VecDeque<Segment>>,
}

#[derive(Debug)]
struct Segment {
    base: u64,
    marks: Marks,
    full: Vec<Arc<Chunk>>,
    filling: Chunk,
}

/// Kept apart, so that a search reads nothing but hashes.
#[derive(Debug, Clone)]
struct Chunk {
    hashes: Vec<u64>,
    positions: Vec<u32>,
}

impl Chunk {
    fn new() -> Self {
        Self { hashes: Vec::with_capacity(CHUNK_KEYS), positions: Vec::with_capacity(CHUNK_KEYS) }
    }

    fn push(&mut self, key: u64, position: u32) {
        self.hashes.push(key);
        self.positions.push(position);
    }

    fn find(&self, key: u64, found: &mut Vec<u32>) {
        let hits = self.hashes.iter().zip(&self.positions).rev().filter(|(hash, _)| **hash == key);
        found.extend(hits.map(|(_, position)| position));
    }
}

/// The keys of a segment as they were when they were asked for.
#[derive(Debug)]
pub(crate) struct SegmentKeys {
    pub(crate) base: u64,
    chunks: Vec<Arc<Chunk>>,
}

impl SegmentKeys {
    /// Each with the physical offset of its record, in log order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let keys = self.chunks.iter().flat_map(|chunk| chunk.hashes.iter().zip(&chunk.positions));
        keys.map(|(hash, position)| (*hash, key_offset(self.base, *position)))
    }
}

impl Segment {
    /// The part of the segment that starts at `base`: the last one, or a new one behind it.
    fn of(segments: &mut VecDeque<Segment>, base: u64) -> &mut Segment {
        if segments.back().is_none_or(|segment| segment.base != base) {
            let (marks, full) = (Marks::default(), Vec::new());
            segments.push_back(Segment { base, marks, full, filling: Chunk::new() });
        }
        segments.back_mut().expect("one was added if there was none")
    }

    fn push(&mut self, key: u64, position: u32) {
        if self.filling.hashes.len() == CHUNK_KEYS {
            self.full.push(Arc::new(std::mem::replace(&mut self.filling, Chunk::new())));
        }
        self.filling.push(key, position);
    }
}

impl Unsealed {
    /// Adds a record of the segment that starts at `base`: that of the last one added, or a later one.
    pub(crate) fn add(&self, base: u64, physical_offset: u64, store_time_ms: u64, keys: &[u64]) {
        let mut segments = self.segments.lock();
        let segment = Segment::of(&mut segments, base);
        segment.marks.see(physical_offset, store_time_ms);
        let position = key_position(base, physical_offset);
        keys.iter().for_each(|key| segment.push(*key, position));
    }

    /// Adds what recovery has found in the segment that starts at `base`.
    pub(crate) fn restore(&self, base: u64, contents: &Contents) {
        let mut segments = self.segments.lock();
        let segment = Segment::of(&mut segments, base);
        segment.marks = contents.marks.clone();
        contents.keys.iter().for_each(|(key, position)| segment.push(*key, *position));
    }

    /// Everything known of the segment that starts at `base`.
    pub(crate) fn of(&self, base: u64) -> (Vec<KeyAt>, Marks) {
        let segments = self.segments.lock();
        let Some(segment) = segments.iter().find(|segment| segment.base == base) else {
            return Default::default();
        };
        let chunks = segment.full.iter().map(|chunk| &**chunk).chain([&segment.filling]);
        let keys = chunks.flat_map(|chunk| chunk.hashes.iter().copied().zip(chunk.positions.iter().copied()));
        (keys.collect(), segment.marks.clone())
    }

    /// The keys of each segment, in log order. Copies what is being filled, and holds up the log writer for that.
    pub(crate) fn keys(&self) -> Vec<SegmentKeys> {
        let segments = self.segments.lock();
        let keys = |segment: &Segment| {
            let filling = Arc::new(segment.filling.clone());
            let chunks = segment.full.iter().cloned().chain([filling]).collect();
            SegmentKeys { base: segment.base, chunks }
        };
        segments.iter().map(keys).collect()
    }

    /// Forgets the segment that starts at `base` and those in front of it.
    pub(crate) fn forget(&self, base: u64) {
        self.segments.lock().retain(|segment| segment.base > base);
    }

    /// Where the first record here with a store time of at least `time_ms` lies: not in front of the start of the range,
    /// and not behind its end.
    pub(crate) fn window(&self, time_ms: u64) -> Range<u64> {
        let segments = self.segments.lock();
        let mut window = 0..u64::MAX;
        for segment in segments.iter().rev() {
            let marks = &segment.marks.list;
            let behind = marks.partition_point(|mark| mark.store_time_ms < time_ms);
            if let Some(mark) = marks.get(behind) {
                window.end = mark.physical_offset;
            }
            if let Some(last) = behind.checked_sub(1) {
                window.start = marks[last].physical_offset;
                break;
            }
        }
        window
    }

    /// Physical offsets of the records with this key that lie in `range`, the last first, by segment.
    pub(crate) fn find(&self, key: u64, range: &Range<u64>) -> Vec<u64> {
        let mut found = Vec::new();
        let bases: Vec<u64> = self.segments.lock().iter().rev().map(|segment| segment.base).collect();
        for base in bases {
            let mut positions = Vec::new();
            let full = {
                let segments = self.segments.lock();
                let Some(segment) = segments.iter().find(|segment| segment.base == base) else { continue };
                segment.filling.find(key, &mut positions);
                segment.full.clone()
            };
            full.iter().rev().for_each(|chunk| chunk.find(key, &mut positions));
            let offsets = positions.into_iter().map(|position| key_offset(base, position));
            found.extend(offsets.filter(|offset| range.contains(offset)));
        }
        found
    }
}
