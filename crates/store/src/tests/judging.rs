//! Where a log ends and where it is damaged, place by place: `judge` on segments written by hand.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::handmade::{Handmade, Laid};
use super::support::*;
use crate::disk::SystemDisk;
use crate::recovery::scan::{Bounds, Verdict, judge, walk};
use crate::segment::Segment;
use crate::*;

const SEGMENT: u64 = 64 << 10;
const UNKNOWN: Bounds = Bounds { durable_below: 0, limit: u64::MAX, follows: false };

/// Records of 64 to 560 bytes, none of which says that anything was flushed; the last ends where the segment ends.
fn segment(directory: &Path) -> (Segment, Vec<Laid>) {
    let mut log = Handmade::new(directory);
    for number in 0.. {
        let size = (number * 8) % 500;
        if log.end() + 2 * (HEADER_BYTES as u64) + size > SEGMENT {
            break;
        }
        log.add(message(QUEUE, vec![5; size as usize]), 1);
    }
    let left = SEGMENT - log.end() - 2 * HEADER_BYTES as u64;
    log.add(message(QUEUE, vec![5; left as usize]), 1);
    log.add(message(QUEUE, ""), 1);
    assert_eq!(log.end(), SEGMENT);
    let laid = log.finish(SEGMENT);
    (open_segment(directory, 0), laid)
}

fn open_segment(directory: &Path, base: u64) -> Segment {
    Segment::open(Arc::new(SystemDisk), segment_path(directory, base), base).unwrap()
}

fn damage(segment: &Segment, laid: &Laid) {
    let file = OpenOptions::new().write(true).open(segment.path()).unwrap();
    file.write_all_at(&[0xee; 5], laid.at + 50).unwrap();
}

fn verdict(directory: &Path, segment: &Segment, bounds: Bounds) -> Verdict {
    let log = seal_of(directory);
    let stopped = walk(segment, 0, log, |_, _| {}).unwrap_err();
    judge(segment, stopped, &VecDeque::new(), log, bounds).unwrap()
}

#[test]
fn below_what_was_durable_the_log_goes_on_at_the_next_record_whatever_follows() {
    let scratch = scratch();
    let (segment, laid) = segment(scratch.path());
    damage(&segment, &laid[20]);
    for durable in 21..laid.len() {
        let bounds = Bounds { durable_below: laid[durable].at + 8, ..UNKNOWN };
        let to = laid[21].at;
        assert_eq!(verdict(scratch.path(), &segment, bounds), Verdict::Damaged { to }, "below {durable}");
    }
    // Nothing between it and what was not durable.
    for durable_below in [laid[20].at + 8, laid[21].at] {
        let bounds = Bounds { durable_below, ..UNKNOWN };
        assert_eq!(verdict(scratch.path(), &segment, bounds), Verdict::Damaged { to: durable_below });
    }
    let bounds = Bounds { durable_below: laid[20].at, ..UNKNOWN };
    assert_eq!(verdict(scratch.path(), &segment, bounds), Verdict::Torn { used: SEGMENT });
}

#[test]
fn behind_a_tear_records_are_looked_for_up_to_the_limit_and_not_beyond() {
    let scratch = scratch();
    let (segment, laid) = segment(scratch.path());
    let last = laid.len() - 1;
    damage(&segment, &laid[last - 1]);
    for (limit, used) in [(u64::MAX, SEGMENT), (SEGMENT, SEGMENT), (SEGMENT - 8, laid[last - 1].at)] {
        let found = verdict(scratch.path(), &segment, Bounds { limit, ..UNKNOWN });
        assert_eq!(found, Verdict::Torn { used }, "up to {limit}");
    }
}

#[test]
fn a_record_of_a_newer_version_behind_damage_is_where_the_log_goes_on() {
    let scratch = scratch();
    let (segment, laid) = segment(scratch.path());
    damage(&segment, &laid[20]);
    let newer = &laid[21];
    let mut bytes = segment.slice(newer.at..newer.end()).to_vec();
    bytes[8] = 2;
    let crc = crc32c::crc32c_append(seal_of(scratch.path()).0, &bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    OpenOptions::new().write(true).open(segment.path()).unwrap().write_all_at(&bytes, newer.at).unwrap();
    let bounds = Bounds { durable_below: SEGMENT, ..UNKNOWN };
    assert_eq!(verdict(scratch.path(), &segment, bounds), Verdict::Damaged { to: newer.at });
}

#[test]
fn an_index_file_is_built_anew_while_the_store_runs_from_a_segment_that_is_damaged_too() {
    let scratch = scratch();
    let mut log = Handmade::new(scratch.path());
    for number in 0..40 {
        log.add(NewRecord { keys: vec![number], ..message(QUEUE, vec![6; 1000]) }, 1000 + number);
    }
    log.roll(SEGMENT);
    log.add(message(QUEUE, "the last"), 2000);
    let laid = log.finish(MIB);
    open(scratch.path()).close().unwrap();
    // An entry in the index file, two records of the log.
    let index = scratch.path().join("commitlog").join(segment::file_name(0, "idx"));
    let length = std::fs::metadata(&index).unwrap().len();
    OpenOptions::new().write(true).open(&index).unwrap().write_all_at(&[0xee], length - 40).unwrap();
    let segment = open_segment(scratch.path(), 0);
    [17, 18].into_iter().for_each(|hit| damage(&segment, &laid[hit]));
    let store = open(scratch.path());
    let read = || {
        let mut entries = Vec::new();
        store.entries(QUEUE, QueueOffset(0), usize::MAX, &mut entries).map(|()| entries)
    };
    assert!(matches!(read(), Err(ReadError::BadIndex { .. })));
    eventually("the index is built anew", || read().is_ok());
    let entries = read().unwrap();
    assert_eq!(entries.len(), laid.len());
    for (number, (entry, laid)) in entries.iter().zip(&laid).enumerate() {
        let is_lost = [17, 18].contains(&number);
        assert_eq!(entry.is_lost(), is_lost, "{number}");
        assert!(is_lost || (entry.physical_offset.0, entry.size) == (laid.at, laid.size), "{number}");
    }
    let damage: Vec<_> = store.damage().iter().map(|damage| (damage.from, damage.to)).collect();
    let (first, last) = ((laid[17].at, laid[17].end()), (laid[18].at, laid[18].end()));
    assert!(damage == [first, last] || damage == [(first.0, last.1)], "{damage:?}");
}
