//! Space is given back: what goes, what stays, and who notices.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::fault_disk::FaultDisk;
use super::support::*;
use crate::*;

const OTHER: QueueNumber = QueueNumber(9);
const DAYS: Duration = Duration::from_secs(3 * 86_400);

/// Looks often, and takes a snapshot about twice in a segment.
pub(super) fn quick(directory: &Path, retention: Retention) -> StoreConfig {
    StoreConfig {
        flush_interval: Duration::from_millis(3),
        cleanup_interval: Duration::from_millis(3),
        snapshot_interval_bytes: 400_000,
        retention,
        ..config(directory)
    }
}

/// Nothing goes but by size.
pub(super) fn by_size(segments: u64) -> Retention {
    Retention { size_limit_bytes: Some(segments * MIB), reserved: DAYS, ..lenient() }
}

fn lenient() -> Retention {
    Retention {
        delete_hours: Vec::new(),
        max_used_percent: 100,
        clean_forcibly_percent: 100,
        warning_percent: 100,
        ..Retention::default()
    }
}

fn any_hour(reserved: Duration) -> Retention {
    Retention { reserved, delete_hours: (0..24).collect(), ..lenient() }
}

fn open_with(config: StoreConfig) -> Store {
    Store::open_on(Arc::new(FaultDisk::default()), config, Vec::new(), Arc::new(Silent)).unwrap()
}

/// About so many segments of messages of 100 kB that say their number.
pub(super) fn fill(store: &Store, queue: QueueNumber, segments: u64) {
    for _ in 0..segments * MIB / 100_000 {
        let number = store.queue_range(queue).end;
        put_in(store, queue, numbered(number), Durability::Memory).unwrap();
    }
}

pub(super) fn numbered(number: u64) -> Vec<u8> {
    let mut payload = vec![number as u8; 100_000];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload
}

/// Waits for a deletion. It needs two snapshots behind the segment, so the log grows a little for each of them.
pub(super) fn eventually_gone(what: &str, store: &Store, condition: impl Fn() -> bool) {
    eventually(what, || {
        let snapshots = snapshot::list(&store.log.directory.snapshots).unwrap_or_default();
        if snapshots.first().is_some_and(|(newest, _)| *newest == store.watermarks().written) {
            let note = vec![other(RecordKind::Progress, "tick")];
            store.append(note, Durability::Memory).unwrap().wait().unwrap();
        }
        condition()
    });
}

/// What a queue holds is whole.
pub(super) fn check_numbered(store: &Store, queue: QueueNumber) {
    for (number, payload) in store.queue_range(queue).zip(read_all(store, queue)) {
        assert_eq!(payload, numbered(number), "message {number}");
    }
}

fn log_start(store: &Store) -> u64 {
    store.watermarks().log_start
}

/// Inodes of the files of the log, by name. A file may go while this looks.
fn files(directory: &Path) -> BTreeMap<String, u64> {
    let file = |entry: fs::DirEntry| {
        let inode = entry.metadata().ok()?.ino();
        Some((entry.file_name().into_string().unwrap(), inode))
    };
    let entries = fs::read_dir(directory.join("commitlog")).unwrap();
    entries.filter_map(|entry| file(entry.unwrap())).collect()
}

fn first_entry(store: &Store, queue: QueueNumber) -> Entry {
    let mut entries = Vec::new();
    store.entries(queue, QueueOffset(store.queue_range(queue).start), 1, &mut entries).unwrap();
    entries[0]
}

#[test]
fn the_oldest_go_when_the_log_is_too_large_and_readers_behind_are_told_where_it_begins() {
    let scratch = scratch();
    let store = open_with(quick(scratch.path(), by_size(4)));
    put(&store, numbered(0), Durability::Disk).unwrap();
    let first = first_entry(&store, QUEUE);
    fill(&store, QUEUE, 9);
    eventually_gone("the limit", &store, || store.segments().len() <= 3);
    let range = store.queue_range(QUEUE);
    assert!(range.start > 0 && range.end > 80, "{range:?}");
    assert_eq!(log_start(&store), store.segments()[0].base);
    check_numbered(&store, QUEUE);

    let below = store.entries(QUEUE, QueueOffset(range.start - 1), 9, &mut Vec::new()).unwrap_err();
    let minimum = range.start;
    assert!(matches!(below, ReadError::BelowMinimum { minimum: at, .. } if at == minimum), "{below}");
    let gone = store.record(first.physical_offset, first.size).unwrap_err();
    assert!(matches!(gone, ReadError::OutOfRange { .. }) && gone.is_final() && below.is_final(), "{gone}");
    assert_eq!(store.offset_by_time(QUEUE, 0).unwrap().0, minimum);
    let start = log_start(&store);
    eventually("the files", || {
        let bases = files(scratch.path()).into_keys().map(|name| name[..20].parse::<u64>().unwrap());
        bases.into_iter().all(|base| base >= start)
    });
    store.close().unwrap();
    drop(store);
    let store = open_with(quick(scratch.path(), by_size(4)));
    assert!(store.queue_range(QUEUE).start >= range.start);
    check_numbered(&store, QUEUE);
}

#[test]
fn what_has_expired_goes_at_its_hour() {
    let scratch = scratch();
    let store = open_with(quick(scratch.path(), any_hour(Duration::ZERO)));
    fill(&store, QUEUE, 5);
    eventually_gone("all but the one that is written", &store, || store.segments().len() == 1);
    let start = log_start(&store);
    fill(&store, QUEUE, 3);
    eventually_gone("the next ones", &store, || log_start(&store) > start && store.segments().len() <= 2);
    check_numbered(&store, QUEUE);
}

#[test]
fn the_ladder_of_the_disk() {
    let scratch = scratch();
    let disk = Arc::new(FaultDisk::default());
    let rungs = Retention { delete_hours: Vec::new(), reserved: DAYS, ..Retention::default() };
    let config = quick(scratch.path(), rungs);
    const GB: u64 = 1 << 30;
    disk.set_space(85 * GB, 15 * GB);
    let store = Store::open_on(disk.clone(), config, Vec::new(), Arc::new(Silent)).unwrap();
    fill(&store, QUEUE, 4);
    let before = store.queue_range(QUEUE);
    assert_eq!(before.start, 0);

    disk.set_space(86 * GB, 14 * GB);
    eventually_gone("the second rung", &store, || store.segments().len() <= 2 && log_start(&store) > 0);
    disk.set_space(91 * GB, 9 * GB);
    let send = || put(&store, "one more", Durability::Memory);
    eventually("the third rung", || send().is_err());
    let error = send().unwrap_err();
    assert!(matches!(error, AppendError::DiskUsed { used_percent: 91, limit_percent: 90 }), "{error}");
    assert_eq!(store.disk_used_percent(), Some(91));
    store.append(vec![other(RecordKind::Progress, "goes on")], Durability::Disk).unwrap().wait().unwrap();
    let dead = NewRecord { kind: RecordKind::DeadLetter, ..message(QUEUE, "a copy") };
    assert!(store.append(vec![dead], Durability::Disk).is_err(), "copies take room as well");
    assert!(!store.queue_range(QUEUE).is_empty());

    disk.set_space(10 * GB, 90 * GB);
    eventually("room", || send().is_ok());
}

#[test]
fn who_reads_a_deleted_segment_finishes_unharmed() {
    let scratch = scratch();
    let store = open_with(quick(scratch.path(), by_size(3)));
    fill(&store, QUEUE, 1);
    let first = first_entry(&store, QUEUE);
    let held = store.record(first.physical_offset, first.size).unwrap();
    let held_file = files(scratch.path())["00000000000000000000.log"];
    for _ in 0..60 {
        put_and_wait(&store);
        let mut later = files(scratch.path()).into_iter();
        let again = later.find(|(name, file)| *file == held_file && name != "00000000000000000000.log");
        assert_eq!(again, None, "it is not written anew");
    }
    assert!(log_start(&store) > 4 * MIB);
    assert_eq!(held.payload, numbered(0));
    check_numbered(&store, QUEUE);
}

/// One message, and the deletion that it calls for: it comes before the next segment is made, so its file can become
/// that.
fn put_and_wait(store: &Store) {
    put(store, numbered(store.queue_range(QUEUE).end), Durability::Disk).unwrap();
    eventually_gone("the limit", store, || store.segments().len() <= 2);
}

/// Appends until one of the files was another one before, and returns where it starts.
fn fill_until_recycled(store: &Store, directory: &Path) -> u64 {
    let mut known = BTreeMap::new();
    // The next segment may be made before the oldest goes, but not each time.
    for _ in 0..200 {
        for (name, file) in files(directory).into_iter().filter(|(name, _)| name.ends_with(".log")) {
            if known.entry(file).or_insert_with(|| name.clone()) != &name {
                return name[..20].parse().unwrap();
            }
        }
        put_and_wait(store);
    }
    panic!("no file was used again");
}

#[test]
fn a_file_is_used_again_and_its_former_life_is_never_data() {
    let scratch = scratch();
    let config = || quick(scratch.path(), by_size(3));
    let mut store = open_with(config());
    for round in 0..6 {
        let base = fill_until_recycled(&store, scratch.path());
        if round % 2 == 1 {
            store.close().unwrap();
        }
        let range = store.queue_range(QUEUE);
        drop(store);
        store = open_with(config());
        assert_eq!(store.queue_range(QUEUE).end, range.end, "the file at {base} was another one before");
        assert_eq!(store.damage(), []);
        check_numbered(&store, QUEUE);
        // Into it, so that the end lies somewhere in a file that is full of old bytes.
        (0..3 + 2 * round).for_each(|_| put_and_wait(&store));
    }
}

#[test]
fn a_queue_of_which_nothing_is_left_goes_on_where_it_ended() {
    let scratch = scratch();
    let config = || quick(scratch.path(), by_size(3));
    let mut store = open_with(config());
    for number in 0..3 {
        assert_eq!(put_in(&store, OTHER, "x", Durability::Disk).unwrap().queue_offset.0, number);
    }
    fill(&store, QUEUE, 6);
    eventually_gone("an empty queue", &store, || store.queue_range(OTHER) == (3..3));
    let below = store.entries(OTHER, QueueOffset(0), 9, &mut Vec::new()).unwrap_err();
    assert!(matches!(below, ReadError::BelowMinimum { minimum: 3, .. }), "{below}");
    let mut none = Vec::new();
    store.entries(OTHER, QueueOffset(3), 9, &mut none).unwrap();
    assert_eq!(none, []);
    for is_clean in [false, true, false] {
        if is_clean {
            store.close().unwrap();
        }
        drop(store);
        store = open_with(config());
        assert_eq!(store.queue_range(OTHER), 3..3);
    }
    assert_eq!(put_in(&store, OTHER, "y", Durability::Disk).unwrap().queue_offset.0, 3);
    assert_eq!(read_all(&store, OTHER), ["y"]);
    drop(store);
    assert_eq!(open_with(config()).queue_range(OTHER), 3..4);
}

#[test]
fn after_a_deletion_the_snapshot_before_the_newest_is_still_enough_for_a_start() {
    let scratch = scratch();
    let config = || quick(scratch.path(), by_size(3));
    let seen = Arc::new(Seen::default());
    let projections = || -> Vec<Arc<dyn Projection>> { vec![seen.clone()] };
    let disk = Arc::new(FaultDisk::default());
    let store = Store::open_on(disk.clone(), config(), projections(), Arc::new(Silent)).unwrap();
    put_in(&store, OTHER, "x", Durability::Disk).unwrap();
    for number in 0..8 {
        let note = other(RecordKind::Metadata, format!("note {number}"));
        store.append(vec![note], Durability::Disk).unwrap().wait().unwrap();
        fill(&store, QUEUE, 1);
    }
    eventually_gone("a deletion", &store, || store.queue_range(OTHER) == (1..1));
    let notes = |seen: &Seen| seen.list().into_iter().filter(|text| text.starts_with("note")).count();
    assert_eq!(notes(&seen), 8);
    drop(store);
    // The second time the newest is the one that was written while there was a bad one: it must not have been kept in
    // place of a good one.
    for round in 0..2 {
        let snapshots = snapshot::list(&scratch.path().join("snapshot")).unwrap();
        assert_eq!(snapshots.len(), 2);
        let mut bytes = fs::read(&snapshots[0].1).unwrap();
        bytes[50] ^= 1;
        fs::write(&snapshots[0].1, bytes).unwrap();
        seen.payloads.lock().clear();
        let store = Store::open_on(disk.clone(), config(), projections(), Arc::new(Silent)).unwrap();
        assert_eq!((notes(&seen), store.queue_range(OTHER)), (8, 1..1), "round {round}");
        put(&store, "more", Durability::Disk).unwrap();
        store.close().unwrap();
    }
}

/// One queue is kept for as long as it is told.
#[derive(Debug, Default)]
struct Owner {
    reserved: Mutex<Option<Duration>>,
    asked: AtomicU64,
}

impl Listener for Owner {
    fn confirmed(&self, _queue: QueueNumber, _count: u32) {}

    fn reserved(&self, queue: QueueNumber) -> Option<Duration> {
        if queue != OTHER {
            return None;
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        *self.reserved.lock()
    }
}

#[test]
fn a_queue_that_is_kept_for_a_shorter_time_begins_later() {
    let scratch = scratch();
    let owner = Arc::new(Owner::default());
    let config = || quick(scratch.path(), any_hour(DAYS));
    let disk = Arc::new(FaultDisk::default());
    let store = Store::open_on(disk.clone(), config(), Vec::new(), owner.clone()).unwrap();
    for _ in 0..3 {
        put_in(&store, OTHER, "old", Durability::Disk).unwrap();
    }
    fill(&store, QUEUE, 2);
    put_in(&store, OTHER, "old", Durability::Disk).unwrap();
    let asked = owner.asked.load(Ordering::Relaxed);
    eventually("some looks", || owner.asked.load(Ordering::Relaxed) > asked + 3);
    assert_eq!(store.queue_range(OTHER), 0..4);

    *owner.reserved.lock() = Some(Duration::ZERO);
    eventually("an empty queue", || store.queue_range(OTHER) == (4..4));
    *owner.reserved.lock() = Some(DAYS / 2);
    put_in(&store, OTHER, "new", Durability::Disk).unwrap();
    assert_eq!(store.queue_range(OTHER), 4..5, "what was deleted does not come back");
    assert_eq!(read_all(&store, OTHER), ["new"]);
    assert_eq!((log_start(&store), store.queue_range(QUEUE).start), (0, 0), "others are not touched");
    store.close().unwrap();
    drop(store);
    *owner.reserved.lock() = None;
    let store = Store::open_on(disk, config(), Vec::new(), owner).unwrap();
    assert_eq!(store.queue_range(OTHER), 4..5, "nor after a restart");
}

#[test]
fn a_segment_stays_as_long_as_one_of_its_queues() {
    let scratch = scratch();
    let owner = Arc::new(Owner { reserved: Mutex::new(Some(DAYS)), asked: AtomicU64::new(0) });
    let config = quick(scratch.path(), any_hour(Duration::ZERO));
    let disk = Arc::new(FaultDisk::default());
    let store = Store::open_on(disk, config, Vec::new(), owner.clone()).unwrap();
    fill(&store, QUEUE, 3);
    put_in(&store, OTHER, "kept", Durability::Disk).unwrap();
    let kept_in = store.watermarks().written;
    fill(&store, QUEUE, 4);
    eventually_gone("what lies in front", &store, || log_start(&store) > 0);
    eventually("an index file and a look at it", || {
        store.segments().iter().any(|segment| segment.base < kept_in && segment.store_times_ms.is_some())
    });
    let asked = owner.asked.load(Ordering::Relaxed);
    eventually("some looks", || owner.asked.load(Ordering::Relaxed) > asked + 20);
    assert_eq!(read_all(&store, OTHER), ["kept"]);
    *owner.reserved.lock() = None;
    eventually_gone("the rest", &store, || log_start(&store) > kept_in);
    assert_eq!(store.queue_range(OTHER), 1..1);
}

/// Remembers where the record with each text lies, and needs all of them.
#[derive(Debug, Default)]
struct Needy {
    places: Mutex<BTreeMap<String, u64>>,
    asked: AtomicU64,
    /// It does not notice that records move.
    blind: AtomicBool,
}

impl Projection for Needy {
    fn name(&self) -> &'static str {
        "needy"
    }

    fn apply(&self, record: &Record) {
        if matches!(record.kind, RecordKind::Metadata | RecordKind::Held | RecordKind::Kept) {
            let text = String::from_utf8(record.payload.to_vec()).unwrap();
            let mut places = self.places.lock();
            if !self.blind.load(Ordering::Relaxed) || !places.contains_key(&text) {
                places.insert(text, record.physical_offset.0);
            }
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        let places = self.places.lock();
        places.iter().map(|(text, at)| format!("{at} {text}\n")).collect::<String>().into_bytes()
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), String> {
        let lines = std::str::from_utf8(bytes).unwrap().lines();
        let place = |line: &str| {
            let (at, text) = line.split_once(' ').unwrap();
            (text.to_owned(), at.parse().unwrap())
        };
        *self.places.lock() = lines.map(place).collect();
        Ok(())
    }

    fn pinned(&self, below: PhysicalOffset, max: usize) -> Vec<PhysicalOffset> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let places = self.places.lock();
        places.values().filter(|at| **at < below.0).take(max).map(|at| PhysicalOffset(*at)).collect()
    }
}

#[test]
fn what_a_projection_still_needs_moves_to_the_end_before_its_segment_goes() {
    let scratch = scratch();
    let needy = Arc::new(Needy::default());
    let config = || quick(scratch.path(), by_size(3));
    let disk = Arc::new(FaultDisk::default());
    let open = |needy: &Arc<Needy>| {
        Store::open_on(disk.clone(), config(), vec![needy.clone() as Arc<dyn Projection>], Arc::new(Silent))
            .unwrap()
    };
    let store = open(&needy);
    // More than are asked for at once.
    const COUNT: usize = 2500;
    for number in 0..COUNT {
        let keys = vec![number as u64, 77];
        let kind = if number % 2 == 0 { RecordKind::Metadata } else { RecordKind::Held };
        let note = NewRecord { keys, mark: 5, ..other(kind, format!("timer {number}")) };
        store.append(vec![note], Durability::Memory).unwrap().wait().unwrap();
    }
    let first_end = store.watermarks().written;
    for _ in 0..4 {
        let start = log_start(&store);
        fill(&store, QUEUE, 2);
        eventually_gone("a deletion", &store, || log_start(&store) > start);
    }
    assert!(log_start(&store) >= first_end);
    let check = |store: &Store, needy: &Needy| {
        for number in 0..COUNT {
            let text = format!("timer {number}");
            // It may move between the two lines, but not for ever.
            let read = || store.record_at(PhysicalOffset(needy.places.lock()[&text]));
            let record = (0..9).find_map(|_| read().ok()).unwrap();
            // A message that is held says that it is a copy.
            let kind = if number % 2 == 0 { RecordKind::Metadata } else { RecordKind::Kept };
            assert_eq!((record.payload, record.mark, record.kind), (text.into(), 5, kind));
        }
        let mut found = Vec::new();
        store.find(7, 0..u64::MAX, 9, &mut found).unwrap();
        assert_eq!(found[0].payload, "timer 7", "with its keys");
    };
    check(&store, &needy);
    drop(store);
    let needy = Arc::new(Needy::default());
    check(&open(&needy), &needy);
}

#[test]
fn a_segment_with_something_that_cannot_move_stays() {
    for is_message in [false, true] {
        let scratch = scratch();
        let needy = Arc::new(Needy::default());
        needy.blind.store(true, Ordering::Relaxed);
        let disk = Arc::new(FaultDisk::default());
        let config = quick(scratch.path(), by_size(3));
        let projections: Vec<Arc<dyn Projection>> = vec![needy.clone()];
        let store = Store::open_on(disk, config, projections, Arc::new(Silent)).unwrap();
        let at = match is_message {
            true => put(&store, numbered(0), Durability::Disk).unwrap(),
            false => {
                let note = other(RecordKind::Metadata, "stays");
                store.append(vec![note], Durability::Disk).unwrap().wait().unwrap()
            }
        };
        needy.places.lock().insert("stays".into(), at.physical_offset.0);
        fill(&store, QUEUE, 6);
        eventually_gone("some looks", &store, || needy.asked.load(Ordering::Relaxed) > 20);
        assert_eq!((log_start(&store), store.queue_range(QUEUE).start), (0, 0));
        assert!(store.record_at(at.physical_offset).is_ok());
        needy.places.lock().clear();
        eventually_gone("the deletion", &store, || log_start(&store) > 0);
    }
}
