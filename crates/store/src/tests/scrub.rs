use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::retention::{by_size, eventually_gone, fill as fill_queue, quick};
use super::support::*;
use crate::*;

const LENGTH: u64 = 100_072;

/// Two full segments and a third one, with keys.
fn fill(store: &Store) {
    for number in 0..25 {
        let record = NewRecord { keys: vec![number], ..message(QUEUE, vec![number as u8; 100_000]) };
        store.append(vec![record], Durability::Memory).unwrap().wait().unwrap();
    }
    eventually("index files are written", || {
        store.segments()[..2].iter().all(|s| s.store_times_ms.is_some())
    });
}

fn filled(directory: &Path) {
    let store = open(directory);
    fill(&store);
    store.close().unwrap();
}

/// A store that is scrubbed as fast as it goes, over and over.
fn open_scrubbed(directory: &Path) -> Store {
    let config = StoreConfig {
        scrub_bytes_per_second: u64::MAX,
        scrub_interval: Duration::from_millis(1),
        ..config(directory)
    };
    Store::open(config, Vec::new(), Arc::new(Silent)).unwrap()
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn wait_for_a_pass(store: &Store) {
    // The one under way may have come beyond a place before that was changed.
    let wanted = store.scrub_status().passes + 2;
    eventually("a pass", || store.scrub_status().passes >= wanted);
}

#[test]
fn a_flipped_bit_in_a_sealed_segment_is_found_without_being_read() {
    let scratch = scratch();
    filled(scratch.path());
    let store = open_scrubbed(scratch.path());
    wait_for_a_pass(&store);
    assert_eq!(store.damage(), []);
    assert!(store.scrub_status().verified_bytes >= 2 * MIB);
    flip(&segment_path(scratch.path(), 0), 3 * LENGTH + 500);
    wait_for_a_pass(&store);
    let damage = store.damage();
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert_eq!((damage[0].from, damage[0].to), (3 * LENGTH, 4 * LENGTH));
    assert!(store.poisoned().borrow().is_none());
    put(&store, "goes on", Durability::Disk).unwrap();
    store.close().unwrap();
}

#[test]
fn every_flipped_byte_of_an_index_file_is_found() {
    let scratch = scratch();
    filled(scratch.path());
    let path = scratch.path().join("commitlog").join(segment::file_name(MIB, "idx"));
    let length = fs::metadata(&path).unwrap().len();
    let identity = fs::read(scratch.path().join("identity")).unwrap();
    let log = directory::Identity::read(&identity).unwrap().log;
    let about = index::sealed::IndexedSegment { log, base: MIB, length: MIB };
    let check = || {
        let file = fs::File::open(&path).unwrap();
        let mut read = |at: u64, into: &mut [u8]| Ok(file.read_exact_at(into, at));
        index::sealed::check_file(&file, about, &mut read).unwrap().unwrap()
    };
    assert_eq!(check(), Ok(()));
    for at in 0..length {
        flip(&path, at);
        assert!(check().is_err(), "byte {at}");
        flip(&path, at);
    }
}

#[test]
fn a_damaged_index_file_is_built_anew_before_anyone_reads_it() {
    let scratch = scratch();
    filled(scratch.path());
    let path = scratch.path().join("commitlog").join(segment::file_name(MIB, "idx"));
    let intact = fs::read(&path).unwrap();
    let store = open_scrubbed(scratch.path());
    for from_end in [30, 24 + 20 * 10 + 5] {
        flip(&path, (intact.len() - from_end) as u64);
        eventually("it is right again", || fs::read(&path).unwrap() == intact);
    }
    assert_eq!(store.damage(), []);
    store.close().unwrap();
}

#[test]
fn an_intact_index_file_that_does_not_lead_to_the_records_is_found() {
    let scratch = scratch();
    filled(scratch.path());
    let path = scratch.path().join("commitlog").join(segment::file_name(0, "idx"));
    let intact = fs::read(&path).unwrap();
    // The tag hash of the last entry, with the right checksum of the entries and of the footer.
    let mut bytes = intact.clone();
    let footer = bytes.len() - 24;
    bytes[footer - 1] ^= 1;
    let entries = footer - 10 * 20;
    let crc = crc32c::crc32c(&bytes[entries..footer]).to_le_bytes();
    bytes[footer + 8..footer + 12].copy_from_slice(&crc);
    let crc = crc32c::crc32c(&bytes[footer..footer + 12]).to_le_bytes();
    bytes[footer + 12..footer + 16].copy_from_slice(&crc);
    fs::write(&path, &bytes).unwrap();
    let store = open(scratch.path());
    let report = store.verify(0, &mut |_| true).unwrap();
    assert!(
        matches!(&report.segments[0].index, IndexState::Damaged(reason) if reason.contains("offset 9")),
        "{report:?}"
    );
    assert!(!report.is_sound());
    eventually("it is built anew", || fs::read(&path).unwrap() == intact);
    assert!(store.verify(0, &mut |_| true).unwrap().is_sound());
}

#[test]
fn closing_does_not_wait_for_a_slow_scrub() {
    let scratch = scratch();
    filled(scratch.path());
    let config = StoreConfig { scrub_bytes_per_second: 1, ..config(scratch.path()) };
    let store = Store::open(config, Vec::new(), Arc::new(Silent)).unwrap();
    eventually("the scrub has begun", || store.scrub_status().verified_bytes > 0);
    let began = Instant::now();
    store.close().unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(store.scrub_status().passes, 0);
}

#[test]
fn the_scrub_keeps_to_its_rate() {
    let scratch = scratch();
    filled(scratch.path());
    let began = Instant::now();
    let config = StoreConfig { scrub_bytes_per_second: 8 * MIB, ..config(scratch.path()) };
    let store = Store::open(config, Vec::new(), Arc::new(Silent)).unwrap();
    eventually("a pass", || store.scrub_status().passes == 1);
    // Two segments of 1 MiB, 250 ms; the last read is not waited for.
    assert!(began.elapsed() >= Duration::from_millis(150), "{:?}", began.elapsed());
    let read = store.scrub_status().verified_bytes;
    assert!((2 * MIB..3 * MIB).contains(&read), "{read}");
}

#[test]
fn verifying_a_running_store_tells_how_far_it_is_and_ends_when_told() {
    let scratch = scratch();
    let store = open(scratch.path());
    fill(&store);
    let mut steps = Vec::new();
    let report = store.verify(0, &mut |progress| {
        steps.push(progress);
        true
    });
    let report = report.unwrap();
    assert!(report.is_sound());
    assert_eq!(report.segments.iter().map(|segment| segment.records).sum::<u64>(), 25);
    assert!(steps.is_sorted_by_key(|step| step.verified_bytes), "{steps:?}");
    let last = steps.last().unwrap();
    assert_eq!(last.verified_bytes, last.total_bytes, "{steps:?}");
    assert!(store.verify(0, &mut |_| false).is_none());
    // The last segment as well.
    flip(&segment_path(scratch.path(), 2 * MIB), LENGTH + 80);
    let report = store.verify(0, &mut |_| true).unwrap();
    let damage: Vec<_> = report.damage().map(|damage| (damage.from, damage.to)).collect();
    assert_eq!(damage, [(2 * MIB + LENGTH, 2 * MIB + 2 * LENGTH)]);
    store.close().unwrap();
    assert!(store.verify(0, &mut |_| true).is_none(), "it is closed");
}

#[test]
fn a_segment_that_is_deleted_while_it_is_scrubbed_is_neither_damage_nor_kept() {
    // So slow that it is in the first segment when that goes; so fast that it is everywhere.
    for rate in [100_000, u64::MAX] {
        let scratch = scratch();
        let config = StoreConfig {
            scrub_bytes_per_second: rate,
            scrub_interval: Duration::from_millis(1),
            ..quick(scratch.path(), by_size(4))
        };
        let filled = StoreConfig { scrub_bytes_per_second: 0, ..config.clone() };
        let store = Store::open(filled, Vec::new(), Arc::new(Silent)).unwrap();
        fill_queue(&store, QUEUE, 2);
        store.close().unwrap();
        drop(store);
        let store = Store::open(config, Vec::new(), Arc::new(Silent)).unwrap();
        eventually("the scrub has begun", || store.scrub_status().verified_bytes > 0);
        fill_queue(&store, QUEUE, 20);
        eventually_gone("the first segments are gone", &store, || {
            store.watermarks().log_start >= 10 * MIB && !segment_path(scratch.path(), 0).exists()
        });
        assert_eq!(store.damage(), [], "at {rate} bytes/s");
        assert!(store.poisoned().borrow().is_none());
        store.close().unwrap();
    }
}
