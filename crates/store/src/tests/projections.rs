use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::fault_disk::FaultDisk;
use super::retention::{by_size, eventually_gone, fill, quick};
use super::support::*;
use crate::*;

fn open_with(directory: &Path, seen: &Arc<Seen>) -> Store {
    try_open_with(config(directory), seen).unwrap()
}

fn try_open_with(config: StoreConfig, seen: &Arc<Seen>) -> Result<Store, OpenError> {
    Store::open_on(Arc::new(FaultDisk::default()), config, vec![seen.clone()], Arc::new(Silent))
}

fn note(store: &Store, text: &str) {
    store
        .append(vec![other(RecordKind::Metadata, text.to_owned())], Durability::Memory)
        .unwrap()
        .wait()
        .unwrap();
}

fn snapshots(directory: &Path) -> Vec<std::path::PathBuf> {
    let found = snapshot::list(&directory.join("snapshot")).unwrap();
    found.into_iter().map(|(_, path)| path).collect()
}

#[test]
fn an_answered_record_has_been_applied() {
    let scratch = scratch();
    let seen = Arc::new(Seen::default());
    let store = open_with(scratch.path(), &seen);
    note(&store, "topic");
    assert_eq!(seen.list(), ["topic"]);
    let dead = NewRecord { kind: RecordKind::DeadLetter, ..message(QUEUE, "dead") };
    store.append(vec![message(QUEUE, "alive"), dead], Durability::Disk).unwrap().wait().unwrap();
    assert_eq!(seen.list(), ["topic", "dead"]);
    assert_eq!(read_all(&store, QUEUE), ["alive", "dead"]);
}

#[test]
fn projections_are_as_they_were_after_a_crash_and_after_a_close() {
    let scratch = scratch();
    let mut expected = Vec::new();
    for round in 0..6 {
        let seen = Arc::new(Seen::default());
        let store = open_with(scratch.path(), &seen);
        assert_eq!(seen.list(), expected, "round {round}");
        for number in 0..30 {
            put(&store, vec![0; 20_000], Durability::Memory).unwrap();
            expected.push(format!("{round} {number}"));
            note(&store, &expected[expected.len() - 1]);
        }
        if round % 2 == 1 {
            store.close().unwrap();
        }
    }
    assert_eq!(snapshots(scratch.path()).len(), 2);
}

#[test]
fn a_start_applies_only_what_the_snapshot_does_not_cover() {
    let scratch = scratch();
    let seen = Arc::new(Seen::default());
    let store = open_with(scratch.path(), &seen);
    (0..10).for_each(|_| note(&store, "old"));
    store.close().unwrap();
    drop(store);
    let store = open_with(scratch.path(), &seen);
    note(&store, "new");
    drop(store);
    let seen = Arc::new(Seen::default());
    let _store = open_with(scratch.path(), &seen);
    assert_eq!((seen.applied.load(Ordering::Relaxed), seen.list().len()), (1, 11));
}

#[test]
fn a_bad_newest_snapshot_falls_back_to_the_one_before_and_then_to_the_log() {
    let scratch = scratch();
    for round in 0..3 {
        let store = open_with(scratch.path(), &Arc::new(Seen::default()));
        note(&store, &format!("round {round}"));
        store.close().unwrap();
    }
    for applied in [1, 3] {
        let path = &snapshots(scratch.path())[usize::from(applied == 3)];
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
        let seen = Arc::new(Seen::default());
        drop(open_with(scratch.path(), &seen));
        assert_eq!(seen.list(), ["round 0", "round 1", "round 2"]);
        assert_eq!(seen.applied.load(Ordering::Relaxed), applied);
    }
}

#[test]
fn a_projection_that_no_snapshot_knows_sees_the_whole_log() {
    let scratch = scratch();
    let store = open(scratch.path());
    note(&store, "before it existed");
    store.close().unwrap();
    drop(store);
    let seen = Arc::new(Seen::default());
    let _store = open_with(scratch.path(), &seen);
    assert_eq!(seen.list(), ["before it existed"]);
}

/// Follows dead letters only, and came to the store after [`Seen`].
#[derive(Debug)]
struct Later {
    seen: Seen,
    was_added_later: bool,
}

impl Later {
    fn new(was_added_later: bool) -> Arc<Self> {
        Arc::new(Self { seen: Seen::default(), was_added_later })
    }
}

impl Projection for Later {
    fn name(&self) -> &'static str {
        "later"
    }

    fn apply(&self, record: &Record) {
        if record.kind == RecordKind::DeadLetter {
            self.seen.apply(record);
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        self.seen.snapshot()
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), String> {
        self.seen.restore(bytes)
    }

    fn was_added_later(&self) -> bool {
        self.was_added_later
    }
}

/// The directory of a store whose log does not begin at 0 any more, left by a version that knew [`Seen`] only.
fn left_by_an_earlier_version() -> tempfile::TempDir {
    let scratch = scratch();
    let seen = Arc::new(Seen::default());
    let store = try_open_with(quick(scratch.path(), by_size(3)), &seen).unwrap();
    note(&store, "topic");
    fill(&store, QUEUE, 8);
    eventually_gone("the first segment", &store, || store.watermarks().log_start > 0);
    store.close().unwrap();
    scratch
}

#[test]
fn a_projection_that_was_added_later_starts_empty_at_a_snapshot_without_it() {
    let scratch = left_by_an_earlier_version();
    let open = |seen: &Arc<Seen>, later: &Arc<Later>| {
        let projections: Vec<Arc<dyn Projection>> = vec![seen.clone(), later.clone()];
        Store::open(config(scratch.path()), projections, Arc::new(Silent)).unwrap()
    };
    // A crash follows: the snapshot has still no section when the log has records of the new kind. Then one that has.
    for (round, is_closed) in [(0, false), (1, true), (2, false), (3, false)] {
        let (seen, later) = (Arc::new(Seen::default()), Later::new(true));
        let store = open(&seen, &later);
        assert!(seen.list().contains(&"topic".to_owned()), "round {round}");
        let expected: Vec<_> = (0..round).map(|round| format!("dead {round}")).collect();
        assert_eq!(later.seen.list(), expected);
        let dead = NewRecord { kind: RecordKind::DeadLetter, ..message(QUEUE, format!("dead {round}")) };
        store.append(vec![dead], Durability::Disk).unwrap().wait().unwrap();
        if is_closed {
            store.close().unwrap();
        }
    }
}

#[test]
fn a_projection_that_may_have_missed_something_refuses_a_snapshot_without_it() {
    let scratch = left_by_an_earlier_version();
    let projections: Vec<Arc<dyn Projection>> = vec![Arc::new(Seen::default()), Later::new(false)];
    let error = Store::open(config(scratch.path()), projections, Arc::new(Silent)).unwrap_err();
    assert!(matches!(error, OpenError::NoSnapshot { .. }), "{error}");
}

#[test]
fn a_projection_that_refuses_its_snapshot_stops_the_start() {
    let scratch = scratch();
    let store = open_with(scratch.path(), &Arc::new(Seen::default()));
    note(&store, "x");
    store.close().unwrap();
    drop(store);

    struct Picky;
    impl Projection for Picky {
        fn name(&self) -> &'static str {
            "seen"
        }
        fn apply(&self, _record: &Record) {}
        fn snapshot(&self) -> Vec<u8> {
            Vec::new()
        }
        fn restore(&self, _bytes: &[u8]) -> Result<(), String> {
            Err("version 9".into())
        }
    }
    let error = Store::open(config(scratch.path()), vec![Arc::new(Picky)], Arc::new(Silent)).unwrap_err();
    assert!(error.to_string().contains("version 9"), "{error}");
}

#[test]
fn snapshots_are_taken_by_bytes_and_by_time() {
    let scratch = scratch();
    let seen = Arc::new(Seen::default());
    let by_bytes = StoreConfig {
        snapshot_interval_bytes: 100_000,
        flush_interval: Duration::from_millis(5),
        ..config(scratch.path())
    };
    let store = try_open_with(by_bytes, &seen).unwrap();
    put(&store, vec![0; 100_000], Durability::Memory).unwrap();
    eventually("a snapshot by bytes", || snapshots(scratch.path()).len() == 1);
    drop(store);
    let by_time = StoreConfig { snapshot_interval: Duration::from_millis(20), ..config(scratch.path()) };
    let store = try_open_with(by_time, &seen).unwrap();
    note(&store, "due");
    eventually("a snapshot by time", || snapshots(scratch.path()).len() == 2);
    assert_eq!(
        store.watermarks().flushed,
        store.watermarks().written,
        "a snapshot is never ahead of the device"
    );
}
