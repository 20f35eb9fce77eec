use std::collections::{BTreeMap, BTreeSet};

use super::support::*;
use crate::*;

/// A message of `queue` with a tag and keys.
fn keyed(queue: u32, tag_hash: u64, keys: Vec<u64>, payload: Vec<u8>) -> NewRecord {
    NewRecord { tag_hash, keys, ..message(QueueNumber(queue), payload) }
}

/// What was appended: queue offset, store time, tag, keys, place.
#[derive(Debug, Clone)]
struct Known {
    queue: u32,
    offset: u64,
    time_ms: u64,
    tag: u64,
    keys: Vec<u64>,
    at: PhysicalOffset,
}

/// Some hundred messages over three queues and several segments, with times that differ.
fn filled(store: &Store) -> Vec<Known> {
    let mut random = Random::seeded(77);
    let mut known = Vec::new();
    for number in 0..400_u64 {
        let (queue, tag) = (random.below(3) as u32, random.below(4));
        let keys: Vec<u64> = (0..random.below(4)).map(|_| key_hash(1, &[random.below(40) as u8])).collect();
        let payload = vec![number as u8; random.below(20_000) as usize];
        let append = store.append(vec![keyed(queue, tag, keys.clone(), payload)], Durability::Memory);
        let appended = append.unwrap().wait().unwrap();
        known.push(Known {
            queue,
            offset: appended.queue_offset.0,
            time_ms: appended.store_time_ms,
            tag,
            keys,
            at: appended.physical_offset,
        });
        if number % 20 == 0 {
            let before = appended.store_time_ms;
            eventually("time goes on", || now_ms() > before);
        }
    }
    known
}

fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

fn check(store: &Store, known: &[Known]) {
    let times: Vec<u64> = known.iter().map(|one| one.time_ms).collect();
    let (first, last) = (times[0], times[times.len() - 1]);
    for queue in 0..3 {
        let own: Vec<&Known> = known.iter().filter(|one| one.queue == queue).collect();
        for time in first - 1..=last + 1 {
            let expected =
                own.iter().find(|one| one.time_ms >= time).map_or(own.len() as u64, |one| one.offset);
            let found = store.offset_by_time(QueueNumber(queue), time).unwrap();
            assert_eq!(found.0, expected, "queue {queue} at {time}");
        }
        for (from, to) in [(0, u64::MAX), (5, 60), (60, 5), (7, 8)] {
            let within = own.iter().filter(|one| (from..to).contains(&one.offset));
            let expected = within.clone().filter(|one| [1, 3].contains(&one.tag)).count() as u64;
            assert_eq!(store.count_by_tags(QueueNumber(queue), from..to, &[1, 3]).unwrap(), expected);
            assert_eq!(
                store.count_by_tags(QueueNumber(queue), from..to, &[]).unwrap(),
                within.count() as u64
            );
        }
    }
    let mut by_key: BTreeMap<u64, Vec<&Known>> = BTreeMap::new();
    for one in known.iter().rev() {
        let mut keys = one.keys.clone();
        keys.sort_unstable();
        keys.dedup();
        keys.iter().for_each(|key| by_key.entry(*key).or_default().push(one));
    }
    assert!(by_key.len() > 30);
    let middle = times[times.len() / 2];
    for (key, own) in by_key {
        for range in [0..u64::MAX, first..middle, middle..last + 1, middle..middle + 1, last + 1..u64::MAX] {
            let expected: Vec<_> =
                own.iter().filter(|one| range.contains(&one.time_ms)).map(|one| one.at).collect();
            for max in [1, usize::MAX >> 1] {
                let mut found = Vec::new();
                store.find(key, range.clone(), max, &mut found).unwrap();
                let found: Vec<_> = found.iter().map(|record| record.physical_offset).collect();
                assert_eq!(found, expected[..expected.len().min(max)], "key {key} in {range:?}");
            }
        }
    }
    for time in [0, first, middle, last, last + 1] {
        check_keys_since(store, known, time);
    }
    for one in known.iter().step_by(17) {
        let record = store.record_at(one.at).unwrap();
        assert_eq!((record.queue_offset.0, record.store_time_ms), (one.offset, one.time_ms));
    }
    let mut none = Vec::new();
    store.find(key_hash(2, &[1]), 0..u64::MAX, 10, &mut none).unwrap();
    assert!(none.is_empty(), "a key of another scope");
}

/// Two time marks lie at most so far from one another: 256 KiB and a record.
const BETWEEN_MARKS: u64 = (256 << 10) + 21_000;

fn check_keys_since(store: &Store, known: &[Known], time_ms: u64) {
    let mut visited = Vec::new();
    store.keys_since(time_ms, &mut |key, at| visited.push((at, key))).unwrap();
    assert!(visited.is_sorted_by_key(|(at, _)| *at), "in the order of the log");
    // Index files have a record's keys once, each.
    let all: BTreeSet<_> = known.iter().flat_map(|one| one.keys.iter().map(|key| (one.at, *key))).collect();
    let found: BTreeSet<_> = visited.iter().copied().collect();
    let wanted = known.iter().filter(|one| one.time_ms >= time_ms).map(|one| one.at).min();
    let end = store.watermarks().confirmed;
    let wanted = wanted.unwrap_or(PhysicalOffset(end));
    let expected: BTreeSet<_> = all.range((wanted, 0)..).copied().collect();
    assert!(expected.is_subset(&found), "since {time_ms}");
    let about = PhysicalOffset(wanted.0.saturating_sub(BETWEEN_MARKS));
    assert!(found.iter().all(|one| all.contains(one) && one.0 >= about), "since {time_ms}");
}

#[test]
fn nothing_is_visited_when_the_keys_of_an_index_file_are_damaged_and_all_when_it_is_built_anew() {
    let scratch = scratch();
    let known = filled(&open(scratch.path()));
    let second = scratch.path().join("commitlog").join(segment::file_name(MIB, "idx"));
    let store = open(scratch.path());
    eventually("the index file is written", || second.exists());
    let entries = store.log.index.file_of(MIB).unwrap().runs().map(|run| run.count).sum::<u32>();
    let file = std::fs::OpenOptions::new().write(true).open(&second).unwrap();
    let behind_keys = file.metadata().unwrap().len() - 24 - u64::from(entries) * 20;
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 2], behind_keys - 2).unwrap();
    let mut visited = 0;
    let error = store.keys_since(0, &mut |_, _| visited += 1).unwrap_err();
    assert!(matches!(error, ReadError::BadIndex { segment: MIB, .. }), "{error}");
    assert_eq!(visited, 0);
    eventually("it is built anew", || store.keys_since(0, &mut |_, _| {}).is_ok());
    check_keys_since(&store, &known, 0);
}

#[test]
fn time_tags_and_keys_are_found_exactly_in_memory_in_files_and_after_a_rebuild() {
    let scratch = scratch();
    let store = open(scratch.path());
    let known = filled(&store);
    check(&store, &known);
    store.close().unwrap();
    assert!(store.segments().len() > 3, "several segments");
    check(&store, &known);
    drop(store);
    check(&open(scratch.path()), &known);
    for file in std::fs::read_dir(scratch.path().join("commitlog")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "idx") {
            std::fs::remove_file(path).unwrap();
        }
    }
    check(&open(scratch.path()), &known);
}

#[test]
fn a_place_where_no_record_starts_is_an_error() {
    let scratch = scratch();
    let store = open(scratch.path());
    put(&store, vec![1; 500], Durability::Memory).unwrap();
    for at in [8, 64, 568, u64::MAX - 8] {
        assert!(store.record_at(PhysicalOffset(at)).is_err(), "{at}");
    }
}

#[test]
fn more_keys_than_a_record_can_have_are_refused() {
    let scratch = scratch();
    let store = open(scratch.path());
    let append =
        |count: u64| store.append(vec![keyed(1, 0, (0..count).collect(), vec![1])], Durability::Memory);
    assert!(matches!(append(4096), Err(AppendError::Invalid(_))));
    append(4095).unwrap().wait().unwrap();
    let mut found = Vec::new();
    store.find(4094, 0..u64::MAX, 10, &mut found).unwrap();
    assert_eq!(found.len(), 1);
}

#[test]
fn an_append_that_waited_too_long_is_refused_and_leaves_nothing() {
    let scratch = scratch();
    let config =
        StoreConfig { append_deadline: std::time::Duration::from_nanos(1), ..config(scratch.path()) };
    let store = Store::open(config, Vec::new(), std::sync::Arc::new(Silent)).unwrap();
    let error = put(&store, "late", Durability::Disk).unwrap_err();
    assert!(matches!(error, AppendError::Expired { .. }), "{error}");
    assert_eq!(store.watermarks().written, 0);
}
