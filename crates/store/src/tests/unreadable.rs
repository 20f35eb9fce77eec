//! A device that does not give back what was written, under a running store: what the store reads on its own ends neither
//! the process nor the store.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::fault_disk::FaultDisk;
use super::handmade::Handmade;
use super::retention::{by_size, eventually_gone, fill, quick};
use super::support::*;
use crate::*;

/// Of a record with 8,000 bytes of payload and a key.
const LENGTH: u64 = 8072;
/// A queue that has but one record in the first segment, the sixth there.
const SELDOM: QueueNumber = QueueNumber(9);

/// A segment with its index file and a bit more.
fn filled(directory: &Path, disk: &Arc<FaultDisk>) -> Store {
    let store = open_on(disk.clone(), directory).unwrap();
    for number in 0..150_u64 {
        let queue = if number % 130 == 5 { SELDOM } else { QUEUE };
        let record = NewRecord { keys: vec![number], ..message(queue, vec![number as u8; 8000]) };
        store.append(vec![record], Durability::Memory).unwrap().wait().unwrap();
    }
    eventually("the index file is written", || store.segments()[0].store_times_ms.is_some());
    store
}

fn log_of_first_segment() -> String {
    segment::file_name(0, "log")
}

fn damage_index(directory: &Path) {
    let path = directory.join("commitlog").join(segment::file_name(0, "idx"));
    let end = std::fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0xee], end - 40).unwrap();
}

fn entries(store: &Store, queue: QueueNumber) -> Result<Vec<Entry>, ReadError> {
    let mut entries = Vec::new();
    let start = store.queue_range(queue).start;
    store.entries(queue, QueueOffset(start), usize::MAX, &mut entries).map(|()| entries)
}

#[test]
fn an_index_file_is_built_anew_from_a_segment_of_which_the_device_does_not_give_all() {
    let scratch = scratch();
    let disk = Arc::new(FaultDisk::default());
    filled(scratch.path(), &disk).close().unwrap();
    damage_index(scratch.path());
    let store = open_on(disk.clone(), scratch.path()).unwrap();
    // In the sixth record, over the end of the tenth, in the last of the segment.
    disk.make_unreadable(log_of_first_segment(), 5 * LENGTH + 1000..5 * LENGTH + 1001);
    disk.make_unreadable(log_of_first_segment(), 10 * LENGTH - 1..10 * LENGTH + 1);
    let last = MIB / LENGTH - 1;
    disk.make_unreadable(log_of_first_segment(), last * LENGTH + 5000..last * LENGTH + 5001);
    assert!(matches!(entries(&store, QUEUE), Err(ReadError::BadIndex { .. })));
    eventually("the index file is built anew", || entries(&store, QUEUE).is_ok());

    assert!(store.poisoned().borrow().is_none());
    let damage: Vec<_> = store.damage();
    assert!(damage.iter().all(|damage| damage.reason.contains("cannot be read")), "{damage:?}");
    let places: Vec<_> = damage.iter().map(|damage| (damage.from / LENGTH, damage.to / LENGTH)).collect();
    // The page with the end of the tenth record holds the beginning of the next.
    assert_eq!(places, [(5, 6), (9, 11), (last, last + 1)]);
    let read = entries(&store, QUEUE).unwrap();
    let lost: Vec<_> = (0..).zip(&read).filter(|(_, entry)| entry.is_lost()).map(|(at, _)| at).collect();
    // Counted without the sixth, which is of another queue.
    assert_eq!(lost, [8, 9, last - 1]);
    // All that this queue had in the segment; nothing leads to the damaged file any more.
    let seldom = entries(&store, SELDOM).unwrap();
    assert_eq!(seldom.len(), 1, "{seldom:?}");
    store.close().unwrap();
}

#[test]
fn what_a_device_gives_again_is_found_again() {
    let scratch = scratch();
    let disk = Arc::new(FaultDisk::default());
    filled(scratch.path(), &disk).close().unwrap();
    damage_index(scratch.path());
    let store = open_on(disk.clone(), scratch.path()).unwrap();
    disk.make_unreadable(log_of_first_segment(), 0..8 * LENGTH - 4096);
    assert!(entries(&store, QUEUE).is_err());
    eventually("the index file is built anew", || entries(&store, QUEUE).is_ok());
    assert_eq!((store.queue_range(QUEUE), store.queue_range(SELDOM)), (7..148, 1..2));
    disk.heal();
    // A scrub would find it out.
    assert!(!store.verify(0, &mut |_| true).unwrap().is_sound());
    eventually("all is there", || {
        store.queue_range(SELDOM) == (0..2) && store.queue_range(QUEUE) == (0..148)
    });
    assert_eq!((read_all(&store, QUEUE).len(), read_all(&store, SELDOM).len()), (148, 2));
    assert!(store.verify(0, &mut |_| true).unwrap().is_sound());
    store.close().unwrap();
}

#[test]
fn a_time_is_not_told_while_the_device_does_not_give_the_record_that_has_it() {
    let scratch = scratch();
    let mut log = Handmade::new(scratch.path());
    (0..40).for_each(|number| log.add(message(QUEUE, vec![6; 1000]), 1000 + number));
    let laid = log.finish(MIB);
    let disk = Arc::new(FaultDisk::default());
    let store = open_on(disk.clone(), scratch.path()).unwrap();
    let eleventh = &laid[10];
    // Its header; then only what its checksum needs.
    for hit in [eleventh.at, eleventh.end() - 1] {
        disk.make_unreadable(log_of_first_segment(), hit..hit + 1);
        let error = store.offset_by_time(QUEUE, 1010).unwrap_err();
        assert!(matches!(error, ReadError::Device { offset, .. } if offset == eleventh.at), "{error}");
        disk.heal();
    }
    assert_eq!(store.offset_by_time(QUEUE, 1010).unwrap(), QueueOffset(10));
}

/// Needs the records that are not messages, by their lengths, wherever they lie.
#[derive(Debug, Default)]
struct Needy(parking_lot::Mutex<BTreeMap<usize, PhysicalOffset>>);

impl Projection for Needy {
    fn name(&self) -> &'static str {
        "needy"
    }

    fn apply(&self, record: &Record) {
        if record.kind == RecordKind::Metadata {
            self.0.lock().insert(record.payload.len(), record.physical_offset);
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&self, _bytes: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn pinned(&self, below: PhysicalOffset, _max: usize) -> Vec<PhysicalOffset> {
        self.0.lock().values().copied().filter(|at| *at < below).collect()
    }
}

/// The segment that holds what is needed goes, and the intact record of 5000 bytes is there all the same.
fn check_moved(store: &Store, needy: &Needy) {
    eventually_gone("the first segment", store, || store.watermarks().log_start > 0);
    let at = needy.0.lock()[&5000];
    assert!(store.record_at(at).unwrap().payload == vec![7; 5000]);
}

#[test]
fn a_segment_stays_while_the_device_does_not_give_what_is_needed_of_it() {
    let scratch = scratch();
    let (disk, needy) = (Arc::new(FaultDisk::default()), Arc::new(Needy::default()));
    let config = quick(scratch.path(), by_size(3));
    let store = Store::open_on(disk.clone(), config, vec![needy.clone()], Arc::new(Silent)).unwrap();
    store.append(vec![other(RecordKind::Metadata, vec![7; 5000])], Durability::Disk).unwrap().wait().unwrap();
    disk.make_unreadable(log_of_first_segment(), 4096..4097);
    fill(&store, QUEUE, 8);
    eventually_gone("it is tried", &store, || disk.hits() > 0);
    assert_eq!(store.watermarks().log_start, 0);
    assert!(store.poisoned().borrow().is_none());
    disk.heal();
    check_moved(&store, &needy);
    store.close().unwrap();
}

#[test]
fn what_is_damaged_for_good_does_not_hold_its_segment_up() {
    let scratch = scratch();
    let (disk, needy) = (Arc::new(FaultDisk::default()), Arc::new(Needy::default()));
    let config = || quick(scratch.path(), by_size(3));
    let open = || Store::open_on(disk.clone(), config(), vec![needy.clone()], Arc::new(Silent)).unwrap();
    let store = open();
    for bytes in [4000, 5000] {
        let note = other(RecordKind::Metadata, vec![7; bytes]);
        store.append(vec![note], Durability::Disk).unwrap().wait().unwrap();
    }
    let log = OpenOptions::new().write(true).open(segment_path(scratch.path(), 0)).unwrap();
    log.write_all_at(&[8], 2000).unwrap();
    fill(&store, QUEUE, 8);
    check_moved(&store, &needy);
    let log_start = store.watermarks().log_start;
    store.close().unwrap();
    drop(store);
    // The projection still names the place.
    let store = open();
    fill(&store, QUEUE, 2);
    eventually_gone("another segment", &store, || store.watermarks().log_start > log_start);
    store.close().unwrap();
}
