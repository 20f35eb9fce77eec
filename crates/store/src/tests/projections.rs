use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::fault_disk::FaultDisk;
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
