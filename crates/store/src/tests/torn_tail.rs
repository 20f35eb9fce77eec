use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::support::*;
use crate::*;

/// Several hundred records, few of them large, as a crash leaves them: never closed. Returns where each starts.
fn crashed_store(directory: &Path) -> (Vec<u64>, u64) {
    let store = open(directory);
    let mut starts = Vec::new();
    for number in 0..500_usize {
        let size = match number {
            200 => 64 << 10,
            300 => 10_000,
            492.. => (number - 492) * 29,
            _ => number % 700,
        };
        let appended = put(&store, vec![number as u8; size], Durability::Memory).unwrap();
        starts.push(appended.physical_offset.0);
    }
    (starts, store.watermarks().written)
}

#[test]
fn a_log_cut_at_any_byte_keeps_exactly_its_whole_records_and_goes_on() {
    let scratch = scratch_in_memory();
    let (starts, end) = crashed_store(scratch.path());
    let path = segment_path(scratch.path(), 0);
    let intact = fs::read(&path).unwrap();
    // Each start moves the cursor; a crash leaves the one that was there before.
    let (cursor, before) = (scratch.path().join("cursor"), fs::read(scratch.path().join("cursor")).unwrap());
    let mut random = Random::seeded(20_240_601);
    // The cursor says that nothing is flushed; so does its absence.
    for (cut, has_cursor) in (starts[492]..=end).flat_map(|cut| [(cut, true), (cut, false)]) {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let from = starts[492] as usize;
        let mut tail = intact[from..end as usize + 4096].to_vec();
        // What was not written holds zeros, or anything.
        let lost = &mut tail[cut as usize - from..];
        lost.fill(0);
        if cut % 3 == 0 {
            lost.iter_mut().for_each(|byte| *byte = random.below(256) as u8);
        }
        file.write_all_at(&tail, from as u64).unwrap();
        match has_cursor {
            true => fs::write(&cursor, &before).unwrap(),
            false => fs::remove_file(&cursor).unwrap(),
        }

        // A record is whole if what was lost of it looks the same: zeros of its padding.
        let whole = |index: usize| {
            let record_end = starts.get(index + 1).copied().unwrap_or(end);
            record_end <= cut
                || intact[cut as usize..record_end as usize]
                    == tail[cut as usize - from..][..(record_end - cut) as usize]
        };
        let expected = (492..500).take_while(|index| whole(*index)).count() + 492;

        let store = open(scratch.path());
        let expected_end = starts.get(expected).copied().unwrap_or(end);
        assert_eq!(store.watermarks().confirmed, expected_end, "cut at {cut}");
        assert_eq!(store.queue_range(QUEUE), 0..expected as u64);
        let appended = put(&store, "goes on", Durability::Memory).unwrap();
        assert_eq!((appended.physical_offset.0, appended.queue_offset.0), (expected_end, expected as u64));
        drop(store);
        let store = open(scratch.path());
        let payloads = read_all(&store, QUEUE);
        assert_eq!((payloads.len(), &payloads[expected][..]), (expected + 1, &b"goes on"[..]));
    }
}

#[test]
fn what_was_answered_survives_a_store_that_was_never_closed() {
    let scratch = scratch();
    for round in 0..5_u64 {
        let store = open(scratch.path());
        assert_eq!(store.queue_range(QUEUE), 0..round * 20);
        for number in 0..20 {
            let class = if number % 2 == 0 { Durability::Disk } else { Durability::Memory };
            put(&store, format!("{round} {number}"), class).unwrap();
        }
        drop(store);
    }
    assert_eq!(read_all(&open(scratch.path()), QUEUE)[99], "4 19");
}

#[test]
fn records_behind_a_tear_never_come_back() {
    // One page each: the zeros that fill a page would hide the next record otherwise.
    const RECORD: usize = 4096;
    const PAYLOAD: usize = RECORD - HEADER_BYTES;
    let scratch = scratch();
    let store = open(scratch.path());
    let records = (0..10).map(|number| message(QUEUE, vec![number; PAYLOAD])).collect();
    // One append, one unflushed stretch: a power cut may keep any of its pages.
    store.append(records, Durability::Memory).unwrap().wait().unwrap();
    drop(store);
    let file = OpenOptions::new().write(true).open(segment_path(scratch.path(), 0)).unwrap();
    file.write_all_at(&[0xff; 8], 4 * RECORD as u64 + 70).unwrap();

    let store = open(scratch.path());
    assert_eq!(store.queue_range(QUEUE), 0..4);
    // Exactly as long as the lost one, so that the next of the old records would follow if it were still there.
    put(&store, vec![99; PAYLOAD], Durability::Memory).unwrap();
    drop(store);
    let store = open(scratch.path());
    assert_eq!(store.queue_range(QUEUE), 0..5);
    assert_eq!(read_all(&store, QUEUE)[4], vec![99; PAYLOAD]);
}

#[test]
fn the_clock_of_the_log_does_not_go_back() {
    let scratch = scratch();
    let mut last = 0;
    for _ in 0..3 {
        let store = open(scratch.path());
        for _ in 0..100 {
            let now = put(&store, "tick", Durability::Memory).unwrap().store_time_ms;
            assert!(now >= last);
            last = now;
        }
    }
}
