use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

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

#[test]
fn an_invalid_record_in_front_of_a_later_flush_is_damage_and_nothing_is_changed() {
    let scratch = scratch();
    drop(ten_flushed(scratch.path()));
    let path = segment_path(scratch.path(), 0);
    overwrite(&path, 4 * RECORD + 100, &[0xff]);
    let before = fs::read(&path).unwrap();
    let error = try_open(scratch.path()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { offset, next_valid: Some(next), .. }
        if offset == 4 * RECORD && next == 5 * RECORD));
    let text = error.to_string();
    assert!(
        text.contains("damaged at offset 672: checksum mismatch; the next valid record is at 840"),
        "{text}"
    );
    assert_eq!(fs::read(&path).unwrap(), before);
    overwrite(&path, 4 * RECORD + 100, &[4]);
    assert_eq!(read_all(&open(scratch.path()), QUEUE).len(), 10);
}

#[test]
fn an_invalid_record_below_a_snapshot_is_damage_even_at_the_very_end() {
    let scratch = scratch();
    ten_flushed(scratch.path()).close().unwrap();
    overwrite(&segment_path(scratch.path(), 0), 9 * RECORD + 100, &[0xff]);
    let error = try_open(scratch.path()).unwrap_err();
    assert!(
        matches!(error, OpenError::Damaged { offset, next_valid: None, .. } if offset == 9 * RECORD),
        "{error}"
    );
}

#[test]
fn an_invalid_record_in_front_of_a_later_segment_is_damage() {
    let scratch = scratch();
    let store = open(scratch.path());
    for number in 0..12 {
        put(&store, vec![number; 100_000], Durability::Memory).unwrap();
    }
    drop(store);
    let _ = fs::remove_file(scratch.path().join("commitlog/00000000000000000000.idx"));
    overwrite(&segment_path(scratch.path(), 0), 70, &[0xff]);
    let error = try_open(scratch.path()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { offset: 0, .. }), "{error}");
}

#[test]
fn a_flipped_bit_is_found_when_the_record_is_read() {
    let scratch = scratch();
    let store = ten_flushed(scratch.path());
    overwrite(&segment_path(scratch.path(), 0), 4 * RECORD + 100, &[0xff]);
    let error = store.record(PhysicalOffset(4 * RECORD), RECORD as u32).unwrap_err();
    assert!(matches!(error, ReadError::Corrupt { reason: Invalid::Checksum, .. }), "{error}");
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
        let crc = crc32c::crc32c(&last[8..]).to_le_bytes();
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
