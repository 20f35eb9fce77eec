//! Queries of whole stores against a linear scan of what was appended: stores of several segments, with equal and far
//! times, damaged records, with index files and without. Each property is asked 10,000 times; `KARMAN_MODEL_CASES` and
//! `KARMAN_MODEL_SEED` as in `model.rs`.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::TempDir;

use super::handmade::{Handmade, Laid};
use super::model::{model_cases, model_seed};
use super::support::*;
use crate::*;

const STORES: u64 = 20;
const QUEUES: u64 = 3;
const TAGS: u64 = 4;
const KEYS: u64 = 12;
/// Longer than the distance of two time marks.
const SEGMENT: u64 = 640 << 10;

/// A store, what is in it, and what of that was damaged.
struct Stored {
    store: Store,
    laid: Vec<Laid>,
    lost: Vec<u64>,
    /// Before it was damaged.
    was_indexed: bool,
    _scratch: TempDir,
}

fn key(number: u64) -> u64 {
    key_hash(5, &number.to_le_bytes())
}

fn lay_down(directory: &Path, random: &mut Random) -> Vec<Laid> {
    let mut log = Handmade::new(directory);
    let mut time_ms = 1_000_000;
    for segment in 0..4_u64 {
        while log.end() < (segment + 1) * SEGMENT - 100_000 {
            time_ms += [0, 0, 1, 40][random.below(4) as usize];
            let keys = (0..random.below(4)).map(|_| key(random.below(KEYS))).collect();
            let size =
                [random.below(300), random.below(5000), random.below(60_000)][random.below(3) as usize];
            let record = match random.below(12) {
                0 => other(RecordKind::Progress, vec![1; 40]),
                _ => message(QueueNumber(random.below(QUEUES) as u32), vec![2; size as usize]),
            };
            log.add(NewRecord { keys, tag_hash: random.below(TAGS), ..record }, time_ms);
        }
        if segment < 3 {
            log.roll(SEGMENT);
        }
    }
    log.finish(MIB)
}

impl Stored {
    fn new(random: &mut Random) -> Self {
        let scratch = scratch_in_memory();
        let laid = lay_down(scratch.path(), random);
        // The first start writes the index files; so damage that comes later is found by whoever reads it.
        let was_indexed = random.below(2) == 0;
        if was_indexed {
            open(scratch.path()).close().unwrap();
        }
        let mut lost = Vec::new();
        for _ in 0..random.below(3) {
            let hit = &laid[random.below(laid.len() as u64) as usize];
            // Not in the last segment, where it would be the end of a log that was torn; and not what a queue begins or
            // ends with: nothing else says that it was there.
            let own = || laid.iter().filter(|other| other.queue() == hit.queue());
            let is_inside = own().next().is_some_and(|first| first.at < hit.at)
                && own().next_back().is_some_and(|last| last.at > hit.at);
            if is_inside && hit.at < 3 * SEGMENT && hit.queue().is_some() && !lost.contains(&hit.at) {
                let path = segment_path(scratch.path(), hit.at / SEGMENT * SEGMENT);
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.write_all_at(&[0xaa; 3], hit.at % SEGMENT + random.below(u64::from(hit.size) - 3))
                    .unwrap();
                lost.push(hit.at);
            }
        }
        Self { store: open(scratch.path()), laid, lost, was_indexed, _scratch: scratch }
    }

    fn own(&self, queue: u64) -> impl DoubleEndedIterator<Item = &Laid> {
        self.laid.iter().filter(move |laid| laid.queue() == Some(QueueNumber(queue as u32)))
    }

    fn is_intact(&self, laid: &Laid) -> bool {
        !self.lost.contains(&laid.at)
    }

    fn draw_time(&self, random: &mut Random) -> u64 {
        let near = self.laid[random.below(self.laid.len() as u64) as usize].time_ms;
        [near, near + 1, near - 1, 0, u64::MAX][random.below(9).min(4) as usize]
    }
}

/// Asks every store its share of the cases.
fn for_stores(ask: impl Fn(&Stored, &mut Random) -> Result<(), String>) {
    let seed = model_seed();
    let mut random = Random::quiet(seed);
    for _ in 0..STORES {
        let stored = Stored::new(&mut random);
        for _ in 0..u64::from(model_cases()).div_ceil(STORES) {
            ask(&stored, &mut random).unwrap_or_else(|wrong| panic!("KARMAN_MODEL_SEED={seed}: {wrong}"));
        }
    }
}

fn same<T: PartialEq + std::fmt::Debug>(
    found: T,
    expected: T,
    what: impl FnOnce() -> String,
) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{}: {found:?} instead of {expected:?}", what())) }
}

#[test]
fn an_offset_by_time_is_what_a_linear_scan_finds() {
    for_stores(|stored, random| {
        let (queue, time_ms) = (random.below(QUEUES), stored.draw_time(random));
        let later = || stored.own(queue).filter(|laid| laid.time_ms >= time_ms);
        let end = stored.own(queue).count() as u64;
        let expected = later().find(|laid| stored.is_intact(laid)).map_or(end, |laid| laid.queue_offset);
        let found = stored.store.offset_by_time(QueueNumber(queue as u32), time_ms).unwrap().0;
        // One that was damaged after it was indexed may be taken for what it was.
        if later().next().is_some_and(|laid| laid.queue_offset == found) && stored.was_indexed {
            return Ok(());
        }
        same(found, expected, || format!("queue {queue} at {time_ms}, lost {:?}", stored.lost))
    });
}

#[test]
fn a_count_by_tags_is_what_a_linear_scan_counts() {
    for_stores(|stored, random| {
        let queue = random.below(QUEUES);
        let end = stored.own(queue).count() as u64;
        let range = random.below(end + 2)..random.below(end + 9);
        let tags: Vec<u64> = (0..random.below(3)).map(|_| random.below(TAGS + 1)).collect();
        let wanted = |laid: &&Laid| {
            range.contains(&laid.queue_offset) && (tags.is_empty() || tags.contains(&laid.record.tag_hash))
        };
        // What was damaged after it was indexed is known only to whoever reads it.
        let intact = stored.own(queue).filter(wanted).filter(|laid| stored.is_intact(laid)).count() as u64;
        let all = if stored.was_indexed { stored.own(queue).filter(wanted).count() as u64 } else { intact };
        let found = stored.store.count_by_tags(QueueNumber(queue as u32), range.clone(), &tags).unwrap();
        if (intact..=all).contains(&found) {
            return Ok(());
        }
        Err(format!("{found} instead of {intact} to {all} of tags {tags:?} in {range:?} of queue {queue}"))
    });
}

#[test]
fn what_is_found_by_key_is_what_a_linear_scan_finds() {
    for_stores(|stored, random| {
        let key = key(random.below(KEYS + 1));
        let times = stored.draw_time(random)..stored.draw_time(random);
        let max = [1, 2, usize::MAX >> 1][random.below(3) as usize];
        let keyed = stored.laid.iter().rev().filter(|laid| laid.record.keys.contains(&key));
        let wanted = keyed.filter(|laid| times.contains(&laid.time_ms) && stored.is_intact(laid));
        let expected: Vec<u64> = wanted.map(|laid| laid.at).take(max).collect();
        let mut found = Vec::new();
        stored.store.find(key, times.clone(), max, &mut found).unwrap();
        let found = found.iter().map(|record| record.physical_offset.0).collect();
        same(found, expected, || format!("key {key} in {times:?}, lost {:?}", stored.lost))
    });
}

#[test]
fn entries_and_records_are_what_was_appended_and_losses_keep_their_places() {
    for_stores(|stored, random| {
        let queue = random.below(QUEUES);
        let number = QueueNumber(queue as u32);
        let (from, max) = (random.below(stored.own(queue).count() as u64 + 2), random.below(9) as usize);
        let mut entries = Vec::new();
        stored.store.entries(number, QueueOffset(from), max, &mut entries).unwrap();
        let expected: Vec<_> = stored.own(queue).skip(from as usize).take(max).collect();
        same(entries.len(), expected.len(), || format!("{max} entries from {from} of queue {queue}"))?;
        for (entry, laid) in entries.iter().zip(expected) {
            match stored.store.record(entry.physical_offset, entry.size) {
                Ok(record) => {
                    let found = (record.physical_offset.0, record.queue_offset.0, record.payload);
                    same(found, (laid.at, laid.queue_offset, laid.record.payload.clone()), || {
                        "a record".into()
                    })?;
                }
                Err(ReadError::Lost { .. }) if !stored.is_intact(laid) => {}
                Err(error) => return Err(format!("{error}: {laid:?}")),
            }
        }
        Ok(())
    });
}
