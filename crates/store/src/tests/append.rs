use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::fault_disk::{Call, FaultDisk};
use super::support::*;
use crate::*;

#[test]
fn records_of_a_call_lie_behind_one_another() {
    let scratch = scratch();
    let store = open(scratch.path());
    put(&store, "first", Durability::Memory).unwrap();
    let records = vec![message(QUEUE, "a"), other(RecordKind::Progress, "p"), message(QUEUE, "b")];
    let appended = store.append(records, Durability::Disk).unwrap().wait().unwrap();
    assert_eq!(appended.queue_offset, QueueOffset(1));
    assert_eq!(read_all(&store, QUEUE), ["first", "a", "b"]);
    let progress = PhysicalOffset(appended.physical_offset.0 + 72);
    let record = store.record(progress, 72).unwrap();
    assert_eq!((record.queue, record.payload), (None, "p".into()));
    assert_eq!(record.store_time_ms, appended.store_time_ms);
}

#[test]
fn calls_that_contradict_themselves_or_are_too_large_are_refused() {
    let scratch = scratch();
    let store = open(scratch.path());
    let refused = |records| store.append(records, Durability::Disk).unwrap_err();
    assert!(matches!(refused(vec![]), AppendError::Invalid(_)));
    assert!(matches!(
        refused(vec![message(QUEUE, ""), message(QueueNumber(4), "")]),
        AppendError::Invalid(_)
    ));
    assert!(matches!(refused(vec![other(RecordKind::Message, "")]), AppendError::Invalid(_)));
    assert!(matches!(refused(vec![message(QueueNumber(u32::MAX), "")]), AppendError::Invalid(_)));
    let with_queue = NewRecord { queue: Some(QUEUE), ..other(RecordKind::Progress, "") };
    assert!(matches!(refused(vec![with_queue]), AppendError::Invalid(_)));
    let too_large = refused(vec![message(QUEUE, vec![0; MAX_PAYLOAD_BYTES + 1])]);
    assert_eq!(too_large.to_string(), "a payload has 33554433 bytes; at most 33554432 are possible");
    let too_large = refused(vec![message(QUEUE, vec![0; MIB as usize - HEADER_BYTES + 1])]);
    assert_eq!(
        too_large.to_string(),
        "an append with its headers has 1048584 bytes; at most 1048576 are possible"
    );
    put(&store, vec![1; MIB as usize - HEADER_BYTES], Durability::Disk).unwrap();
    assert_eq!(read_all(&store, QUEUE)[0].len(), MIB as usize - HEADER_BYTES);
}

/// Holds the log writer back until it is opened.
#[derive(Debug, Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
    reached: AtomicBool,
}

impl Gate {
    fn open(&self) {
        *self.open.lock() = true;
        self.opened.notify_all();
    }
}

impl Listener for Gate {
    fn confirmed(&self, _queue: QueueNumber, _count: u32) {
        self.reached.store(true, Ordering::Release);
        let mut open = self.open.lock();
        while !*open {
            self.opened.wait(&mut open);
        }
    }
}

#[test]
fn a_full_inbox_refuses_at_once_and_takes_again_when_drained() {
    let scratch = scratch();
    let gate = Arc::new(Gate::default());
    let config = StoreConfig { inbox_bytes: 10_000, ..config(scratch.path()) };
    let store = Store::open(config, Vec::new(), gate.clone()).unwrap();
    let append = |bytes| store.append(vec![message(QUEUE, vec![0; bytes])], Durability::Memory);
    let first = append(0).unwrap();
    eventually("the log writer being held", || gate.reached.load(Ordering::Acquire));
    let second = append(8000).unwrap();
    let error = append(3000).unwrap_err();
    assert!(matches!(
        error,
        AppendError::Overloaded { bytes: 3064, waiting_bytes: 8064, limit_bytes: 10_000 }
    ));
    gate.open();
    first.wait().unwrap();
    second.wait().unwrap();
    append(3000).unwrap().wait().unwrap();
}

#[test]
fn what_came_during_a_flush_is_flushed_together() {
    let scratch = scratch();
    let (gate, disk) = (Arc::new(Gate::default()), Arc::new(FaultDisk::default()));
    let store = Store::open_on(disk.clone(), config(scratch.path()), Vec::new(), gate.clone()).unwrap();
    let append = || store.append(vec![message(QUEUE, "x")], Durability::Disk).unwrap();
    let mut appends = vec![append()];
    eventually("the log writer being held", || gate.reached.load(Ordering::Acquire));
    let syncs = disk.count(Call::Sync);
    appends.extend((0..100).map(|_| append()));
    gate.open();
    for append in appends {
        append.wait().unwrap();
    }
    assert_eq!(disk.count(Call::Sync), syncs + 1);
}

#[test]
fn the_memory_class_is_flushed_by_and_by() {
    let scratch = scratch();
    let config = StoreConfig { flush_interval: Duration::from_millis(10), ..config(scratch.path()) };
    let store = Store::open(config, Vec::new(), Arc::new(Silent)).unwrap();
    put(&store, "soon", Durability::Memory).unwrap();
    eventually("a flush", || store.watermarks().flushed == store.watermarks().written);
    assert_eq!(store.watermarks().written, 72);
}

#[test]
fn a_dropped_append_is_appended() {
    let scratch = scratch();
    let store = open(scratch.path());
    drop(store.append(vec![message(QUEUE, "fire")], Durability::Disk).unwrap());
    put(&store, "forget", Durability::Disk).unwrap();
    assert_eq!(read_all(&store, QUEUE), ["fire", "forget"]);
}

#[test]
fn an_append_is_a_future() {
    let scratch = scratch();
    let store = open(scratch.path());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let append = store.append(vec![message(QUEUE, "async")], Durability::Disk).unwrap();
    assert_eq!(runtime.block_on(append).unwrap().queue_offset, QueueOffset(0));
}

#[test]
fn reading_outside_of_what_is_there_is_an_answer_or_an_error_never_a_panic() {
    let scratch = scratch();
    let store = open(scratch.path());
    let end = put(&store, "one", Durability::Disk).unwrap().physical_offset.0 + 72;
    let mut entries = Vec::new();
    store.entries(QUEUE, QueueOffset(1), 10, &mut entries).unwrap();
    store.entries(QUEUE, QueueOffset(u64::MAX), usize::MAX, &mut entries).unwrap();
    store.entries(QueueNumber(99), QueueOffset(0), 10, &mut entries).unwrap();
    store.entries(QUEUE, QueueOffset(0), 0, &mut entries).unwrap();
    assert_eq!((entries.len(), store.queue_range(QueueNumber(99))), (0, 0..0));
    for (at, size) in [(end, 72), (0, 80), (u64::MAX, 1), (MIB, 64)] {
        assert!(matches!(store.record(PhysicalOffset(at), size), Err(ReadError::OutOfRange { .. })), "{at}");
    }
    assert!(matches!(store.record(PhysicalOffset(0), 0), Err(ReadError::Lost { .. })));
    for (at, size) in [(0, 64), (8, 64)] {
        assert!(matches!(store.record(PhysicalOffset(at), size), Err(ReadError::Corrupt { .. })), "{at}");
    }
}

#[test]
fn a_closed_store_refuses_appends_and_still_reads() {
    let scratch = scratch();
    let store = open(scratch.path());
    put(&store, "kept", Durability::Memory).unwrap();
    store.close().unwrap();
    store.close().unwrap();
    assert!(matches!(put(&store, "late", Durability::Disk), Err(AppendError::Closed)));
    assert_eq!(read_all(&store, QUEUE), ["kept"]);
    let payload = read_all(&store, QUEUE).remove(0);
    drop(store);
    assert_eq!(payload, "kept");
}

/// Notes how far each queue was announced.
#[derive(Debug, Default)]
struct Announced(Mutex<HashMap<QueueNumber, u64>>);

impl Listener for Announced {
    fn confirmed(&self, queue: QueueNumber, count: u32) {
        *self.0.lock().entry(queue).or_default() += u64::from(count);
    }
}

#[test]
fn many_threads_append_while_others_read_everything_in_order() {
    const PRODUCERS: u32 = 8;
    const PER_PRODUCER: u32 = 1500;
    let scratch = scratch();
    let announced = Arc::new(Announced::default());
    let disk = Arc::new(FaultDisk::default());
    let store = Store::open_on(disk, config(scratch.path()), Vec::new(), announced.clone()).unwrap();
    let payload = |producer: u32, number: u32| {
        let filler = vec![producer as u8; (number as usize * 37) % 900];
        Bytes::from([&producer.to_le_bytes(), &number.to_le_bytes(), &filler[..]].concat())
    };
    thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            let store = &store;
            scope.spawn(move || {
                let queue = QueueNumber(producer % 4);
                for number in 0..PER_PRODUCER {
                    let class = if number % 3 == 0 { Durability::Disk } else { Durability::Memory };
                    let append =
                        store.append(vec![message(queue, payload(producer, number))], class).unwrap();
                    if number % 50 == 0 {
                        append.wait().unwrap();
                    }
                }
            });
        }
        for queue in (0..4).map(QueueNumber) {
            let (store, announced) = (&store, &announced);
            scope.spawn(move || {
                let (mut next, mut seen, mut entries) = (0, HashMap::new(), Vec::new());
                let end = u64::from(PER_PRODUCER * PRODUCERS / 4);
                let deadline = std::time::Instant::now() + Duration::from_secs(30);
                while next < end {
                    assert!(std::time::Instant::now() < deadline, "the queue came to {next} only");
                    let known = announced.0.lock().get(&queue).copied().unwrap_or(0);
                    assert!(store.queue_range(queue).end >= known, "announced before readable");
                    entries.clear();
                    store.entries(queue, QueueOffset(next), 32, &mut entries).unwrap();
                    for entry in &entries {
                        let record = store.record(entry.physical_offset, entry.size).unwrap();
                        assert_eq!(record.queue_offset.0, next);
                        let producer = u32::from_le_bytes(record.payload[..4].try_into().unwrap());
                        let number = seen.entry(producer).or_insert(0);
                        assert_eq!(record.payload, payload(producer, *number));
                        *number += 1;
                        next += 1;
                    }
                }
            });
        }
    });
    store.close().unwrap();
    drop(store);
    let store = open(scratch.path());
    assert!((0..4).all(|queue| store.queue_range(QueueNumber(queue)) == (0..3000)));
    assert!(store.watermarks().written > 5 * MIB, "it rolled several times");
}

#[test]
fn a_queue_may_have_any_number_but_the_one_that_means_none() {
    let scratch = scratch();
    let store = open(scratch.path());
    let numbers = [0, 1, 63, 64, 4096, 1 << 31, u32::MAX - 1].map(QueueNumber);
    for queue in numbers {
        put_in(&store, queue, queue.0.to_string(), Durability::Memory).unwrap();
    }
    for queue in numbers {
        assert_eq!(read_all(&store, queue), [queue.0.to_string()]);
    }
    assert_eq!(store.queue_count(), u32::MAX);
    assert!(put_in(&store, QueueNumber(u32::MAX), "none", Durability::Memory).is_err());
}
