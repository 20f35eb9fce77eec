//! Stores, records, projections and disks for tests.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tempfile::TempDir;

use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::disk::{Disk, SystemDisk};
use crate::*;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const QUEUE: QueueNumber = QueueNumber(3);

/// Small segments, no snapshot or flush on its own within a test.
pub(super) fn config(directory: &Path) -> StoreConfig {
    StoreConfig {
        segment_size_bytes: MIB,
        disk_reserve_bytes: 0,
        flush_interval: Duration::from_secs(3600),
        snapshot_interval: Duration::from_secs(3600),
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
    open_on(Arc::new(FaultyDisk::default()), directory)
}

pub(super) fn open_on(disk: Arc<FaultyDisk>, directory: &Path) -> Result<Store, OpenError> {
    Store::open_on(disk, config(directory), Vec::new(), Arc::new(Silent))
}

pub(super) fn message(queue: QueueNumber, payload: impl Into<Bytes>) -> NewRecord {
    NewRecord {
        kind: RecordKind::Message,
        queue: Some(queue),
        tag_hash: 11,
        mark: 12,
        payload: payload.into(),
    }
}

pub(super) fn other(kind: RecordKind, payload: impl Into<Bytes>) -> NewRecord {
    NewRecord { kind, queue: None, tag_hash: 0, mark: 0, payload: payload.into() }
}

pub(super) fn put(
    store: &Store,
    payload: impl Into<Bytes>,
    durability: Durability,
) -> Result<Appended, AppendError> {
    store.append(vec![message(QUEUE, payload)], durability)?.wait()
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
        lines.collect::<String>().into_bytes()
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Allocate,
    Write,
    Sync,
    Rename,
    SyncDirectory,
}

/// A disk that fails as told. Without being told it does everything but wait for the device: these tests end processes
/// at most in thought, and the page cache outlives that.
#[derive(Debug, Default)]
pub(super) struct FaultyDisk {
    failing: Mutex<Option<(Operation, i32)>>,
    available: Mutex<Option<u64>>,
    pub(super) syncs: AtomicU64,
}

pub(super) const EIO: i32 = 5;
pub(super) const ENOSPC: i32 = 28;

impl FaultyDisk {
    pub(super) fn fail(&self, operation: Operation, errno: i32) {
        *self.failing.lock() = Some((operation, errno));
    }

    pub(super) fn heal(&self) {
        *self.failing.lock() = None;
        *self.available.lock() = None;
    }

    pub(super) fn set_available(&self, bytes: u64) {
        *self.available.lock() = Some(bytes);
    }

    fn check(&self, operation: Operation) -> io::Result<()> {
        match *self.failing.lock() {
            Some((failing, errno)) if failing == operation => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }
}

impl Disk for FaultyDisk {
    fn create_file(&self, path: &Path) -> io::Result<File> {
        SystemDisk.create_file(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove_file(path)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_directory(path)
    }

    fn allocate(&self, file: &File, length: u64) -> io::Result<()> {
        self.check(Operation::Allocate)?;
        SystemDisk.allocate(file, length)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check(Operation::Write)?;
        SystemDisk.write_at(file, bytes, offset)
    }

    fn sync_data(&self, _file: &File) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.check(Operation::Sync)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(Operation::Rename)?;
        SystemDisk.rename(from, to)
    }

    fn sync_directory(&self, _directory: &Path) -> io::Result<()> {
        self.check(Operation::SyncDirectory)
    }

    fn available_bytes(&self, directory: &Path) -> io::Result<u64> {
        self.available.lock().map_or_else(|| SystemDisk.available_bytes(directory), Ok)
    }
}
