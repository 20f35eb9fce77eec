use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::support::*;
use crate::*;

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn ten_flushed(directory: &Path) -> Store {
    let store = open(directory);
    for number in 0..10 {
        put(&store, vec![number; 100], Durability::Disk).unwrap();
    }
    store
}

const RECORD: u64 = 168;

/// What a reader of the queue gets: payloads, or the stretch that was lost.
fn read_with_gaps(store: &Store) -> Vec<Result<Bytes, Range<u64>>> {
    let range = store.queue_range(QUEUE);
    let mut entries = Vec::new();
    store.entries(QUEUE, QueueOffset(range.start), usize::MAX, &mut entries).unwrap();
    assert_eq!(entries.len() as u64, range.end - range.start);
    let read = |entry: &Entry| match store.record(entry.physical_offset, entry.size) {
        Ok(record) => Ok(record.payload),
        Err(ReadError::Lost { from, to }) => Err(from..to),
        Err(error) => panic!("{error}"),
    };
    entries.iter().map(read).collect()
}

fn payload_of(number: u8) -> Result<Bytes, Range<u64>> {
    Ok(vec![number; 100].into())
}

#[test]
fn an_invalid_record_in_front_of_a_later_flush_is_stepped_over_and_nothing_is_changed() {
    let scratch = scratch();
    drop(ten_flushed(scratch.path()));
    fs::remove_file(scratch.path().join("cursor")).unwrap();
    let path = segment_path(scratch.path(), 0);
    overwrite(&path, 4 * RECORD + 100, &[0xff]);
    let before = fs::read(&path).unwrap();
    let store = open(scratch.path());
    let lost = 4 * RECORD..5 * RECORD;
    let damage = Damage { from: lost.start, to: lost.end, reason: "checksum mismatch".into() };
    assert_eq!(store.damage(), [damage]);
    let expected: Vec<_> = (0..10).map(|n| if n == 4 { Err(lost.clone()) } else { payload_of(n) }).collect();
    assert_eq!(read_with_gaps(&store), expected);
    assert!(matches!(store.record_at(PhysicalOffset(lost.start)), Err(ReadError::Lost { .. })));
    assert_eq!(fs::read(&path).unwrap(), before);
    put(&store, vec![10; 100], Durability::Disk).unwrap();
    store.close().unwrap();
    drop(store);
    // Repaired by other means, it is read again.
    overwrite(&path, 4 * RECORD + 100, &[4]);
    assert_eq!(read_all(&open(scratch.path()), QUEUE).len(), 11);
}

#[test]
fn an_invalid_record_below_the_cursor_is_damage_even_at_the_very_end() {
    let scratch = scratch();
    ten_flushed(scratch.path()).close().unwrap();
    overwrite(&segment_path(scratch.path(), 0), 9 * RECORD + 100, &[0xff]);
    let store = open(scratch.path());
    assert_eq!((store.damage()[0].from, store.damage()[0].to), (9 * RECORD, 10 * RECORD));
    assert_eq!(store.watermarks().confirmed, 10 * RECORD, "what lay there is not written over");
    put(&store, "goes on", Durability::Disk).unwrap();
    drop(store);
    let store = open(scratch.path());
    assert_eq!(store.damage().len(), 1, "it is found again");
    assert_eq!(store.watermarks().confirmed, 10 * RECORD + 72);
}

#[test]
fn damage_in_front_of_a_later_segment_hides_nothing_of_either() {
    let scratch = scratch();
    let store = open(scratch.path());
    for number in 0..12 {
        put(&store, vec![number; 100_000], Durability::Memory).unwrap();
    }
    drop(store);
    for file in ["cursor", "commitlog/00000000000000000000.idx"] {
        let _ = fs::remove_file(scratch.path().join(file));
    }
    overwrite(&segment_path(scratch.path(), 0), 70, &[0xff]);
    let store = open(scratch.path());
    let length = 100_064;
    assert_eq!((store.damage()[0].from, store.damage()[0].to), (0, length));
    let all = store.queue_range(QUEUE);
    assert_eq!(all, 1..12, "nothing says what the queue began with");
    assert_eq!(read_all(&store, QUEUE).len(), 11);
}

#[test]
fn records_lost_at_the_end_of_a_segment_leave_their_places_in_the_queue() {
    let scratch = scratch();
    let store = open(scratch.path());
    for number in 0..12 {
        put(&store, vec![number; 100_000], Durability::Memory).unwrap();
    }
    store.close().unwrap();
    drop(store);
    fs::remove_file(scratch.path().join("commitlog/00000000000000000000.idx")).unwrap();
    let last = 9;
    overwrite(&segment_path(scratch.path(), 0), last * 100_064 + 70, &[0xff]);
    for _ in 0..2 {
        let store = open(scratch.path());
        let found = read_with_gaps(&store);
        assert_eq!(found.len(), 12);
        let lost: Vec<_> = (0..12).filter(|&n| found[n].is_err()).collect();
        assert_eq!(lost, [last as usize]);
    }
}

#[test]
fn a_flipped_bit_is_found_when_the_record_is_read() {
    let scratch = scratch();
    let store = ten_flushed(scratch.path());
    overwrite(&segment_path(scratch.path(), 0), 4 * RECORD + 100, &[0xff]);
    let error = store.record(PhysicalOffset(4 * RECORD), RECORD as u32).unwrap_err();
    assert!(
        matches!(error, ReadError::Lost { from, to } if (from, to) == (4 * RECORD, 5 * RECORD)),
        "{error}"
    );
    assert_eq!(store.damage().len(), 1);
}

#[test]
fn a_damaged_header_is_lost_when_it_is_read_and_a_place_where_none_is_stays_an_error() {
    let scratch = scratch();
    let store = ten_flushed(scratch.path());
    for (number, byte) in [(4, 0), (5, 16), (7, 3)] {
        overwrite(&segment_path(scratch.path(), 0), number * RECORD + byte, &[0xff]);
        for (at, size) in [(number * RECORD + 8, 64), (RECORD, 64), (2 * RECORD, 2 * RECORD as u32)] {
            let error = store.record(PhysicalOffset(at), size).unwrap_err();
            assert!(matches!(error, ReadError::Corrupt { .. }), "{error}");
        }
        let error = store.record(PhysicalOffset(number * RECORD), RECORD as u32).unwrap_err();
        let lost = number * RECORD..(number + 1) * RECORD;
        assert!(matches!(error, ReadError::Lost { from, to } if (from..to) == lost), "{error}");
    }
    assert_eq!(store.damage().len(), 3);
}

#[test]
fn a_store_of_another_owner_is_refused() {
    let scratch = scratch();
    let owned = |owner: &str| StoreConfig { owner: owner.into(), ..config(scratch.path()) };
    let try_open = |owner| Store::open(owned(owner), Vec::new(), Arc::new(Silent));
    try_open("shop/broker-a").unwrap().close().unwrap();
    let error = try_open("shop/broker-b").unwrap_err();
    assert!(matches!(error, OpenError::ForeignOwner { .. }), "{error}");
    assert!(error.to_string().contains("karman store repair"), "{error}");
    try_open("shop/broker-a").unwrap();
}

#[test]
fn a_segment_of_another_store_is_not_taken_for_this_one() {
    let (own, other) = (scratch(), scratch());
    drop(ten_flushed(own.path()));
    drop(ten_flushed(other.path()));
    fs::copy(segment_path(other.path(), 0), segment_path(own.path(), 0)).unwrap();
    let store = open(own.path());
    assert_eq!(store.queue_range(QUEUE), 0..0, "no record of the other is read");
}

#[test]
fn a_missing_segment_is_named() {
    let scratch = scratch();
    let store = open(scratch.path());
    for number in 0..40 {
        put(&store, vec![number; 100_000], Durability::Memory).unwrap();
    }
    store.close().unwrap();
    drop(store);
    let path = segment_path(scratch.path(), MIB);
    let moved = scratch.path().join("moved");
    for (base, expected) in [(MIB, MIB), (0, 0), (3 * MIB, 3 * MIB)] {
        let path = segment_path(scratch.path(), base);
        fs::rename(&path, &moved).unwrap();
        let error = try_open(scratch.path()).unwrap_err();
        assert!(matches!(error, OpenError::MissingSegment { offset, .. } if offset == expected), "{error}");
        fs::rename(&moved, &path).unwrap();
    }
    assert!(path.exists());
    assert_eq!(read_all(&open(scratch.path()), QUEUE).len(), 40);
}

#[test]
fn a_record_of_an_unknown_version_or_kind_is_named() {
    for (at, value, expected) in [(8, 2, Invalid::Version(2)), (9, 77, Invalid::Kind(77))] {
        let scratch = scratch();
        drop(ten_flushed(scratch.path()));
        let path = segment_path(scratch.path(), 0);
        let bytes = fs::read(&path).unwrap();
        let mut last = bytes[9 * RECORD as usize..10 * RECORD as usize].to_vec();
        last[at] = value;
        let crc = crc32c::crc32c_append(seal_of(scratch.path()).0, &last[8..]).to_le_bytes();
        last[4..8].copy_from_slice(&crc);
        overwrite(&path, 9 * RECORD, &last);
        let error = try_open(scratch.path()).unwrap_err();
        assert!(matches!(error, OpenError::Unsupported { reason, .. } if reason == expected), "{error}");
    }
}

#[test]
fn a_store_is_opened_once_at_a_time() {
    let scratch = scratch();
    let store = open(scratch.path());
    let error = try_open(scratch.path()).unwrap_err();
    assert!(matches!(&error, OpenError::Locked { directory } if directory == scratch.path()));
    assert!(error.to_string().contains(scratch.path().to_str().unwrap()));
    store.close().unwrap();
    open(scratch.path()).close().unwrap();
}

#[test]
fn what_is_not_a_store_of_this_version_is_refused() {
    let scratch = scratch();
    open(scratch.path()).close().unwrap();
    let identity = scratch.path().join("identity");
    let good = fs::read(&identity).unwrap();
    let refused = |expected: &str| {
        let error = try_open(scratch.path()).unwrap_err();
        assert!(
            matches!(error, OpenError::NotAStore { .. }) && error.to_string().contains(expected),
            "{error}"
        );
    };
    let newer = [&good[..8], &2_u32.to_le_bytes(), &good[12..]].concat();
    fs::write(&identity, newer).unwrap();
    refused("format version 2, known is 1");
    let damaged = [&good[..20], &[good[20] ^ 1], &good[21..]].concat();
    fs::write(&identity, damaged).unwrap();
    refused("checksum");
    fs::write(&identity, "something else").unwrap();
    refused("not one of a store");
    fs::remove_file(&identity).unwrap();
    refused("identity is missing");
    fs::write(&identity, good).unwrap();
    open(scratch.path());
}

#[test]
fn settings_out_of_range_are_named() {
    let scratch = scratch();
    for size in [0, 4096, MIB + 1, 4 << 30] {
        let config = StoreConfig { segment_size_bytes: size, ..config(scratch.path()) };
        let error = Store::open(config, Vec::new(), Arc::new(Silent)).unwrap_err();
        assert!(error.to_string().contains(&format!("segment_size_bytes is {size}; allowed")), "{error}");
    }
}
