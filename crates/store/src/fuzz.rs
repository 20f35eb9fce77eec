//! What a fuzzer may throw at the store: the readers of its files, each given any bytes. They must not panic, nor ask for
//! more memory than the bytes explain. Only built for the fuzzer (`crates/store/fuzz`) and for the test that replays its
//! corpus. Any thread.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::cursor;
use crate::directory::{Identity, LogId};
use crate::index::sealed::{self, IndexedSegment, SealedIndex};
use crate::record::{self, HEADER_BYTES, Seal};
use crate::snapshot;

const LOG: LogId = LogId([7; 16]);
/// No log is longer.
const MAX_OFFSET: u64 = 1 << 62;

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let number = bytes.get(at..at + 8).map(|part| part.try_into().expect("eight bytes"));
    number.map_or(0, u64::from_le_bytes)
}

/// Puts the checksum where random bytes never have it.
fn repair(bytes: &mut [u8], part: std::ops::Range<usize>, start: u32, at: usize) {
    let Some(crc) = bytes.get(part).map(|part| crc32c::crc32c_append(start, part)) else { return };
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

/// An input starts with a byte that says whether its checksums are to be put right.
fn input(data: &[u8]) -> (bool, Vec<u8>) {
    data.split_first().map_or((false, Vec::new()), |(first, rest)| (first & 1 == 1, rest.to_vec()))
}

/// The record decoder, at the place that the record says it lies at.
pub fn record(data: &[u8]) {
    let (repaired, mut bytes) = input(data);
    let seal = Seal(9);
    if repaired && bytes.len() >= HEADER_BYTES {
        let length = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let is_filler = matches!(bytes[9], 0 | 255);
        let covered = if is_filler { HEADER_BYTES } else { length.min(bytes.len()) };
        repair(&mut bytes, 8..covered, seal.0, 4);
    }
    let at = u64_at(&bytes, 16).min(MAX_OFFSET);
    let bytes = Bytes::from(bytes);
    let _ = record::peek(&bytes, at);
    if let Ok(header) = record::decode(&bytes, at, seal) {
        assert!(header.length as usize >= HEADER_BYTES && header.end() <= at + bytes.len() as u64);
        let _ = header.record(&bytes).map(|record| assert!(record.payload.len() < bytes.len()));
        assert_eq!(header.keys(&bytes).count(), usize::from(header.key_count));
    }
    let _ = record::decode_record(&bytes, at, seal);
}

/// An index file and all that is read from one.
pub fn index(data: &[u8]) {
    let (repaired, mut bytes) = input(data);
    let about = IndexedSegment {
        log: bytes.get(16..32).map_or(LOG, |log| LogId(log.try_into().expect("sixteen bytes"))),
        base: u64_at(&bytes, 32).min(MAX_OFFSET),
        length: u64_at(&bytes, 40).min(crate::MAX_SEGMENT_BYTES),
    };
    if repaired {
        sealed::repair_checksums(&mut bytes);
    }
    let Ok(index) = SealedIndex::read(PathBuf::from("fuzzed"), Bytes::from(bytes), about) else { return };
    let mut entries = Vec::new();
    for run in index.runs().take(64) {
        entries.clear();
        let _ = index.entries(run.position, run.count, &mut entries);
        assert!(entries.is_empty() || entries.len() == run.count as usize);
        let middle = about.base + about.length / 2;
        let _ =
            index.count_in_front(run.position, run.count, middle).map(|count| assert!(count <= run.count));
    }
    let (first, last) = index.store_times_ms();
    for time_ms in [0, first, last, u64::MAX] {
        let window = index.window(time_ms);
        for range in [0..u64::MAX, window] {
            let Ok(found) = index.find(time_ms, &range) else { continue };
            // Keys that are not sorted are found or not.
            found.take(64).for_each(|at| assert!(at >= about.base));
        }
    }
}

/// A snapshot file.
pub fn snapshot(data: &[u8]) {
    let (repaired, mut bytes) = input(data);
    if repaired && bytes.len() >= 4 {
        let end = bytes.len() - 4;
        repair(&mut bytes, 0..end, 0, end);
    }
    let log = bytes.get(8..24).map_or(LOG, |log| LogId(log.try_into().expect("sixteen bytes")));
    let offset = u64_at(&bytes, 24);
    if let Some(found) = snapshot::parse(Path::new("fuzzed"), &bytes, log, offset) {
        assert_eq!(found.log_offset, offset);
        let _ = found.section("progress");
    }
}

/// A cursor file.
pub fn cursor(data: &[u8]) {
    let (repaired, mut bytes) = input(data);
    for slot in [0, 4096] {
        if repaired {
            repair(&mut bytes, slot..slot + 56, 0, slot + 56);
        }
    }
    let log = bytes.get(8..24).map_or(LOG, |log| LogId(log.try_into().expect("sixteen bytes")));
    let (_, known) = cursor::parse(&bytes, log);
    assert!(known.limit >= known.flushed || repaired);
}

/// An identity file.
pub fn identity(data: &[u8]) {
    let (repaired, mut bytes) = input(data);
    if repaired && bytes.len() >= 4 {
        let end = bytes.len() - 4;
        repair(&mut bytes, 0..end, 0, end);
    }
    if let Ok(identity) = Identity::read(&bytes) {
        assert!(identity.owner.len() < bytes.len());
    }
}
