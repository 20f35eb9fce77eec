//! What a start decides by: snapshots, index files, how much can have been lost.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::handmade::Handmade;
use super::retention::{by_size, eventually_gone, fill, quick};
use super::support::*;
use crate::disk::{Disk, SystemDisk};
use crate::snapshot::Kept;
use crate::*;

fn snapshot_path(directory: &Path, offset: u64) -> std::path::PathBuf {
    directory.join("snapshot").join(segment::file_name(offset, "snap"))
}

fn snapshots(directory: &Path) -> Vec<u64> {
    let list = snapshot::list(&directory.join("snapshot")).unwrap();
    list.into_iter().map(|(offset, _)| offset).collect()
}

#[test]
fn a_snapshot_from_where_the_log_starts_is_enough_and_an_older_one_is_not() {
    let scratch = scratch();
    let store = Store::open(quick(scratch.path(), by_size(3)), Vec::new(), Arc::new(Silent)).unwrap();
    fill(&store, QUEUE, 8);
    eventually_gone("the first segment", &store, || store.watermarks().log_start > 0);
    store.close().unwrap();
    let log_start = store.watermarks().log_start;
    let log = store.log.directory.log;
    drop(store);
    let with_snapshot = |offset: u64| {
        snapshots(scratch.path()).iter().for_each(|old| {
            fs::remove_file(snapshot_path(scratch.path(), *old)).unwrap();
        });
        fs::write(snapshot_path(scratch.path(), offset), snapshot::encode(log, offset, &[])).unwrap();
        try_open(scratch.path())
    };
    let error = with_snapshot(log_start - 8).unwrap_err();
    assert!(matches!(error, OpenError::NoSnapshot { .. }), "{error}");
    assert_eq!(with_snapshot(log_start).unwrap().watermarks().log_start, log_start);
}

/// Which snapshots a start finds; segments may be deleted that both cover.
fn kept(directory: &Path) -> Kept {
    let (disk, config): (Arc<dyn Disk>, _) = (Arc::new(SystemDisk), config(directory));
    let opened = directory::Directory::open(&*disk, directory, &config.owner, None).unwrap();
    recovery::recover(&disk, &opened, &config, &[]).unwrap().snapshots
}

#[test]
fn a_start_knows_the_snapshot_it_used_and_the_one_before_and_no_newer_one() {
    let scratch = scratch();
    for _ in 0..2 {
        let store = open(scratch.path());
        put(&store, "grows", Durability::Memory).unwrap();
        store.close().unwrap();
    }
    let [newest, before] = snapshots(scratch.path())[..] else { panic!("two are kept") };
    assert_eq!(kept(scratch.path()), Kept { newest, before });
    let mut bytes = fs::read(snapshot_path(scratch.path(), newest)).unwrap();
    bytes[30] ^= 1;
    fs::write(snapshot_path(scratch.path(), newest), bytes).unwrap();
    assert_eq!(kept(scratch.path()), Kept { newest: before, before: 0 });
}

#[test]
fn projections_see_what_lies_in_segments_with_index_files_behind_the_snapshot() {
    let scratch = scratch();
    let store = open(scratch.path());
    let mut expected = Vec::new();
    for number in 0..30 {
        put(&store, vec![0; 100_000], Durability::Memory).unwrap();
        expected.push(format!("{number:02}"));
        let note = other(RecordKind::Metadata, expected[number].clone());
        store.append(vec![note], Durability::Memory).unwrap().wait().unwrap();
    }
    eventually("index files are written", || {
        store.segments()[..2].iter().all(|segment| segment.store_times_ms.is_some())
    });
    // As a crash: without a snapshot.
    drop(store);
    assert!(snapshots(scratch.path()).is_empty());
    let seen = Arc::new(Seen::default());
    let _store = Store::open(config(scratch.path()), vec![seen.clone()], Arc::new(Silent)).unwrap();
    assert_eq!(seen.list(), expected);
}

/// Why the record behind a lost stretch of 1024 bytes is not believed, if it is not: so many places of its queue are
/// missing in front of it. The stretch was given up by a repair, or is damaged.
fn disbelieved(missing: u64, is_given_up: bool) -> Option<String> {
    let scratch = scratch();
    let mut log = Handmade::new(scratch.path());
    log.add(message(QUEUE, "first"), 1000);
    let lost = log.end();
    if is_given_up {
        log.give_up(1024);
        log.skip(QUEUE, missing);
    } else {
        log.add(message(QUEUE, vec![6; 1024 - HEADER_BYTES]), 1001);
        log.skip(QUEUE, missing - 1);
    }
    let at = log.end();
    log.add(message(QUEUE, "goes on"), 1002);
    log.roll(MIB);
    log.add(message(QueueNumber(4), "of another queue"), 1003);
    log.finish(MIB);
    if !is_given_up {
        let file = fs::OpenOptions::new().write(true).open(segment_path(scratch.path(), 0)).unwrap();
        file.write_all_at(&[0xee], lost + 100).unwrap();
    }
    let damage = open(scratch.path()).damage();
    damage.into_iter().find(|damage| damage.from == at).map(|damage| damage.reason)
}

#[test]
fn no_more_places_of_a_queue_are_missing_than_records_can_have_been_lost() {
    for is_given_up in [true, false] {
        // A header is the smallest record.
        assert_eq!(disbelieved(16, is_given_up), None, "given up: {is_given_up}");
        let reason = disbelieved(17, is_given_up).unwrap();
        assert!(reason.contains("is number 18 of queue 3, not 1"), "{reason}");
    }
}

/// Three segments of ten records each and one with a single record; damaged is what lies next to another segment, but for
/// that one.
#[test]
fn places_that_are_lost_where_segments_meet_stay_in_their_queue() {
    let scratch = scratch();
    let mut log = Handmade::new(scratch.path());
    for segment in 0..3 {
        for number in 0..10 {
            log.add(message(QUEUE, vec![segment * 10 + number; 500]), 1000);
        }
        log.roll(MIB);
    }
    log.add(message(QUEUE, "the last"), 1000);
    let laid = log.finish(MIB);
    let lost = [9, 10, 19, 20, 29];
    for number in lost {
        let path = segment_path(scratch.path(), laid[number].at / MIB * MIB);
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0xee], laid[number].at % MIB + 100).unwrap();
    }
    let check = |store: &Store| {
        for from in 0..31_usize {
            for max in [1, 2, 100] {
                let mut found = Vec::new();
                store.entries(QUEUE, QueueOffset(from as u64), max, &mut found).unwrap();
                assert_eq!(found.len(), max.min(31 - from), "{max} from {from}");
                for (number, entry) in (from..).zip(found) {
                    assert_eq!(entry.is_lost(), lost.contains(&number), "{number} of {max} from {from}");
                    match store.record(entry.physical_offset, entry.size) {
                        Ok(record) => assert_eq!(record.physical_offset.0, laid[number].at),
                        Err(error) => assert!(matches!(error, ReadError::Lost { .. }) && entry.is_lost()),
                    }
                }
            }
        }
    };
    // From the log; then from the index files.
    for _ in 0..2 {
        let store = open(scratch.path());
        check(&store);
        store.close().unwrap();
    }
}
