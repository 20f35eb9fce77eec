use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;

use super::fault_disk::FaultDisk;
use super::support::*;
use crate::*;

/// Payloads by queue, as many as fill several segments.
fn write_many(store: &Store, random: &mut Random, count: usize, expected: &mut [Vec<Bytes>]) {
    for number in 0..count {
        let queue = random.below(expected.len() as u64) as usize;
        let payload = Bytes::from(vec![number as u8; random.below(30_000) as usize]);
        store
            .append(vec![message(QueueNumber(queue as u32), payload.clone())], Durability::Memory)
            .unwrap()
            .wait()
            .unwrap();
        expected[queue].push(payload);
    }
}

fn check(store: &Store, expected: &[Vec<Bytes>]) {
    for (queue, payloads) in expected.iter().enumerate() {
        assert!(read_all(store, QueueNumber(queue as u32)) == *payloads, "queue {queue}");
    }
}

#[test]
fn many_segments_are_written_read_and_opened_again_with_and_without_their_index_files() {
    let scratch = scratch();
    let mut random = Random::seeded(7);
    let mut expected = vec![Vec::new(); 5];
    for round in 0..4 {
        let store = open(scratch.path());
        check(&store, &expected);
        write_many(&store, &mut random, 300, &mut expected);
        check(&store, &expected);
        if round % 2 == 0 {
            store.close().unwrap();
        }
    }
    let log = scratch.path().join("commitlog");
    let files = || -> Vec<_> { fs::read_dir(&log).unwrap().map(|file| file.unwrap().path()).collect() };
    let indexes: Vec<_> = files().into_iter().filter(|path| path.extension().unwrap() == "idx").collect();
    assert!(indexes.len() > 10);
    for (number, path) in indexes.iter().enumerate() {
        let bytes = fs::read(path).unwrap();
        match number % 4 {
            0 => fs::remove_file(path).unwrap(),
            1 => fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
            2 => fs::write(path, [&bytes[..70], &[bytes[70] ^ 1], &bytes[71..]].concat()).unwrap(),
            _ => {}
        }
    }
    check(&open(scratch.path()), &expected);
    assert!(files().iter().filter(|path| path.extension().unwrap() == "idx").count() >= indexes.len());
    check(&open(scratch.path()), &expected);
}

#[test]
fn entries_are_read_from_any_offset_across_segments() {
    let scratch = scratch();
    let store = open(scratch.path());
    let mut expected = vec![Vec::new(); 3];
    write_many(&store, &mut Random::seeded(8), 400, &mut expected);
    let mut all = Vec::new();
    store.entries(QueueNumber(1), QueueOffset(0), usize::MAX, &mut all).unwrap();
    assert_eq!(all.len(), expected[1].len());
    for from in 0..all.len() + 2 {
        for max in [0, 1, 2, 7, 64, 1000] {
            let mut entries = Vec::new();
            store.entries(QueueNumber(1), QueueOffset(from as u64), max, &mut entries).unwrap();
            assert_eq!(entries, all[from.min(all.len())..(from.saturating_add(max)).min(all.len())]);
        }
    }
}

#[test]
fn a_damaged_part_of_an_index_file_is_an_error_once_and_is_built_anew_by_itself() {
    let scratch = scratch();
    let store = open(scratch.path());
    for number in 0..12 {
        let keys = vec![number];
        let record = NewRecord { keys, ..message(QUEUE, vec![0; 100_000]) };
        store.append(vec![record], Durability::Memory).unwrap().wait().unwrap();
    }
    store.close().unwrap();
    drop(store);
    let path = scratch.path().join("commitlog").join(segment::file_name(0, "idx"));
    let intact = fs::read(&path).unwrap();
    for from_end in [30, 24 + 20 * 10 + 5] {
        let mut bytes = intact.clone();
        let at = bytes.len() - from_end;
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        let store = open(scratch.path());
        let read = || {
            let (mut entries, mut found) = (Vec::new(), Vec::new());
            store.entries(QUEUE, QueueOffset(0), 1, &mut entries)?;
            store.find(3, 0..u64::MAX, 1, &mut found).map(|()| entries.len() + found.len())
        };
        let error = read().unwrap_err();
        assert!(matches!(&error, ReadError::BadIndex { path: bad, segment: 0 } if *bad == path), "{error}");
        eventually("the index is built anew", || read().is_ok_and(|found| found == 2));
        assert_eq!(fs::read(&path).unwrap(), intact);
    }
}

#[test]
fn a_segment_made_ahead_while_the_log_rolls_never_takes_the_place_of_another() {
    let scratch = scratch_in_memory();
    let store = open(scratch.path());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                store.log.prepare_next(MIB).unwrap();
            }
        });
        for number in 0..200_u8 {
            put(&store, vec![number; 600_000], Durability::Memory).unwrap();
        }
        done.store(true, Ordering::Release);
    });
    assert!(read_all(&store, QUEUE).iter().zip(0..).all(|(payload, number)| payload[0] == number));
}

#[test]
fn the_segment_size_may_change_between_starts() {
    let scratch = scratch();
    for (round, size) in [MIB, 3 * MIB, 2 * MIB].into_iter().enumerate() {
        let config = StoreConfig { segment_size_bytes: size, ..config(scratch.path()) };
        let disk = Arc::new(FaultDisk::default());
        let store = Store::open_on(disk, config, Vec::new(), Arc::new(Silent)).unwrap();
        for _ in 0..6 {
            put(&store, vec![round as u8; size as usize - 64], Durability::Memory).unwrap();
        }
    }
    let store = open(scratch.path());
    let sizes: Vec<_> = read_all(&store, QUEUE).iter().map(|payload| payload.len() as u64 / MIB).collect();
    assert_eq!(sizes, [0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]);
}

#[test]
fn the_blocks_of_the_next_segment_are_written_before_the_log_needs_them() {
    let scratch = scratch();
    let mut expected = vec![Vec::new()];
    let store = open(scratch.path());
    let length = config(scratch.path()).segment_size_bytes;
    // Blocks that were reserved but never written are a hole.
    let written = || {
        let next = fs::File::open(segment_path(scratch.path(), length)).ok()?;
        rustix::fs::seek(&next, rustix::fs::SeekFrom::Hole(0)).ok()
    };
    let mut random = Random::seeded(11);
    let flushed = || put_in(&store, QueueNumber(1), "flushed", Durability::Disk).unwrap();
    while store.watermarks().written < length * 7 / 10 {
        write_many(&store, &mut random, 1, &mut expected);
        flushed();
    }
    eventually("all blocks of the next segment are written", || written() == Some(length));
    let next = fs::read(segment_path(scratch.path(), length)).unwrap();
    assert!(next.iter().all(|byte| *byte == 0), "and hold nothing");
    drop(store);

    let store = open(scratch.path());
    while store.watermarks().written < length * 3 / 2 {
        write_many(&store, &mut random, 1, &mut expected);
    }
    drop(store);
    check(&open(scratch.path()), &expected);
}
