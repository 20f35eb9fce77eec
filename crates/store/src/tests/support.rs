//! Stores, records and projections for tests.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tempfile::TempDir;

use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::fault_disk::FaultDisk;
use crate::*;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const QUEUE: QueueNumber = QueueNumber(3);

/// Small segments, no snapshot, flush or scrub on its own within a test.
pub(super) fn config(directory: &Path) -> StoreConfig {
    StoreConfig {
        segment_size_bytes: MIB,
        disk_reserve_bytes: 0,
        flush_interval: Duration::from_secs(3600),
        snapshot_interval: Duration::from_secs(3600),
        append_deadline: Duration::from_secs(3600),
        scrub_bytes_per_second: 0,
        // Whatever the disk of this machine says.
        retention: Retention {
            max_used_percent: 100,
            clean_forcibly_percent: 100,
            warning_percent: 100,
            ..Retention::default()
        },
        ..StoreConfig::new(directory)
    }
}

pub(super) fn scratch() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// For tests that open a store a thousand times.
pub(super) fn scratch_in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| scratch())
}

pub(super) fn open(directory: &Path) -> Store {
    try_open(directory).unwrap()
}

pub(super) fn try_open(directory: &Path) -> Result<Store, OpenError> {
    open_on(Arc::new(FaultDisk::default()), directory)
}

pub(super) fn open_on(disk: Arc<FaultDisk>, directory: &Path) -> Result<Store, OpenError> {
    Store::open_on(disk, config(directory), Vec::new(), Arc::new(Silent))
}

pub(super) fn message(queue: QueueNumber, payload: impl Into<Bytes>) -> NewRecord {
    NewRecord {
        kind: RecordKind::Message,
        queue: Some(queue),
        tag_hash: 11,
        mark: 12,
        keys: Vec::new(),
        payload: payload.into(),
    }
}

pub(super) fn other(kind: RecordKind, payload: impl Into<Bytes>) -> NewRecord {
    NewRecord { kind, queue: None, tag_hash: 0, mark: 0, keys: Vec::new(), payload: payload.into() }
}

pub(super) fn put(
    store: &Store,
    payload: impl Into<Bytes>,
    durability: Durability,
) -> Result<Appended, AppendError> {
    put_in(store, QUEUE, payload, durability)
}

pub(super) fn put_in(
    store: &Store,
    queue: QueueNumber,
    payload: impl Into<Bytes>,
    durability: Durability,
) -> Result<Appended, AppendError> {
    store.append(vec![message(queue, payload)], durability)?.wait()
}

/// The payloads of a queue; checks on the way that entries and records agree.
pub(super) fn read_all(store: &Store, queue: QueueNumber) -> Vec<Bytes> {
    let range = store.queue_range(queue);
    let mut entries = Vec::new();
    store.entries(queue, QueueOffset(range.start), usize::MAX, &mut entries).unwrap();
    assert_eq!(entries.len() as u64, range.end - range.start);
    let records = entries.iter().zip(range).map(|(entry, offset)| {
        let record = store.record(entry.physical_offset, entry.size).unwrap();
        assert_eq!((record.queue, record.queue_offset.0), (Some(queue), offset));
        assert_eq!((record.physical_offset, record.tag_hash), (entry.physical_offset, entry.tag_hash));
        record.payload
    });
    records.collect()
}

pub(super) fn segment_path(directory: &Path, base: u64) -> std::path::PathBuf {
    directory.join("commitlog").join(segment::file_name(base, "log"))
}

/// What the checksums of a store's records start from.
pub(super) fn seal_of(directory: &Path) -> record::Seal {
    let bytes = std::fs::read(directory.join(directory::IDENTITY)).unwrap();
    directory::Identity::read(&bytes).unwrap().log.seal()
}

/// Waits for something another thread does.
pub(super) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        thread::yield_now();
    }
}

/// Small, seeded, and the same everywhere.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn seeded(seed: u64) -> Self {
        println!("seed {seed}");
        Self(seed)
    }

    /// Of a seed that is printed elsewhere.
    pub(super) fn quiet(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

/// Keeps the payloads it has seen, by physical offset, so that seeing one twice changes nothing.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) payloads: Mutex<std::collections::BTreeMap<u64, Vec<u8>>>,
    pub(super) applied: AtomicU64,
}

impl Seen {
    pub(super) fn list(&self) -> Vec<String> {
        self.payloads.lock().values().map(|bytes| String::from_utf8(bytes.clone()).unwrap()).collect()
    }
}

impl Projection for Seen {
    fn name(&self) -> &'static str {
        "seen"
    }

    fn apply(&self, record: &Record) {
        assert_ne!(record.kind, RecordKind::Message);
        self.applied.fetch_add(1, Ordering::Relaxed);
        self.payloads.lock().insert(record.physical_offset.0, record.payload.to_vec());
    }

    fn snapshot(&self) -> Vec<u8> {
        let payloads = self.payloads.lock();
        let lines =
            payloads.iter().map(|(at, bytes)| format!("{at} {}\n", std::str::from_utf8(bytes).unwrap()));
        let snapshot = lines.collect::<String>().into_bytes();
        drop(payloads);
        // The log goes on meanwhile.
        thread::sleep(Duration::from_micros(200));
        snapshot
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        *self.payloads.lock() = text
            .lines()
            .map(|line| {
                let (at, payload) = line.split_once(' ').unwrap();
                (at.parse().unwrap(), payload.as_bytes().to_vec())
            })
            .collect();
        Ok(())
    }
}
