//! Who waits for whom at the door of the log writer: the inbox is bounded in bytes, a batch too, and a wait in time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::fault_disk::{Call, FaultDisk};
use super::support::*;
use crate::inbox::{Inbox, Request, Work};
use crate::*;

const LARGE: usize = 4 << 20;

fn request(bytes: usize) -> Request {
    // Nobody waits for the answer.
    let (reply, _) = oneshot::channel();
    Request {
        work: Work::Records(Vec::new()),
        bytes,
        durability: Durability::Disk,
        arrived: Instant::now(),
        reply,
    }
}

#[test]
fn a_batch_is_no_larger_than_it_may_be_and_leaves_nobody_out() {
    let mut random = Random::seeded(31);
    for _ in 0..300 {
        let (inbox, limit) = (Inbox::new(1_000_000), 1 + random.below(60_000) as usize);
        let sizes: Vec<usize> = (0..random.below(40)).map(|_| 64 + random.below(20_000) as usize).collect();
        let (mut taken, mut batch) = (Vec::new(), VecDeque::new());
        for size in &sizes {
            inbox.push(request(*size)).unwrap();
            if random.below(6) == 0 {
                take(&inbox, &mut batch, limit, &mut taken);
            }
        }
        inbox.close();
        while inbox.take(&mut batch, limit) {
            note(&mut batch, limit, &mut taken);
        }
        assert_eq!(taken, sizes, "in the order in which they came");
    }
}

fn take(inbox: &Inbox, batch: &mut VecDeque<Request>, limit: usize, taken: &mut Vec<usize>) {
    assert!(inbox.take(batch, limit));
    note(batch, limit, taken);
}

fn note(batch: &mut VecDeque<Request>, limit: usize, taken: &mut Vec<usize>) {
    let bytes: usize = batch.iter().map(|request| request.bytes).sum();
    assert!(batch.len() == 1 || (bytes <= limit && !batch.is_empty()), "{bytes} in a batch of {limit}");
    taken.extend(batch.drain(..).map(|request| request.bytes));
}

#[test]
fn an_inbox_never_holds_more_bytes_than_it_may() {
    const LIMIT: usize = 10_000;
    let (inbox, mut random) = (Inbox::new(LIMIT), Random::seeded(32));
    let (mut waiting, mut batch, mut refused) = (VecDeque::new(), VecDeque::new(), 0);
    for _ in 0..5000 {
        let bytes = 64 + random.below(3000) as usize;
        let held: usize = waiting.iter().sum();
        match inbox.push(request(bytes)) {
            Ok(()) => waiting.push_back(bytes),
            Err(AppendError::Overloaded { waiting_bytes, .. }) => {
                assert!(held + bytes > LIMIT && waiting_bytes == held, "{held} wait, {bytes} come");
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
        assert!(waiting.iter().sum::<usize>() <= LIMIT);
        if random.below(3) == 0 && !waiting.is_empty() {
            inbox.take(&mut batch, 1 + random.below(2 * LIMIT as u64) as usize);
            batch.drain(..).for_each(|request| assert_eq!(waiting.pop_front(), Some(request.bytes)));
        }
    }
    assert!(refused > 500, "{refused} were refused");
}

/// Holds the log writer back until it is opened, and notes how far the log was written when it was told of a queue.
#[derive(Debug, Default)]
struct Held {
    open: AtomicBool,
    reached: AtomicBool,
    order: Mutex<Vec<(QueueNumber, u64)>>,
    syncs: Mutex<Option<Arc<FaultDisk>>>,
}

impl Listener for Held {
    fn confirmed(&self, queue: QueueNumber, _count: u32) {
        self.reached.store(true, Ordering::Release);
        eventually("the log writer is let go", || self.open.load(Ordering::Acquire));
        let syncs = self.syncs.lock().as_ref().map_or(0, |disk| disk.count(Call::Sync));
        self.order.lock().push((queue, syncs));
    }
}

/// With appends of 4 MiB in front of and behind them, small ones wait for the one in front and for none behind.
#[test]
fn small_appends_wait_for_the_large_one_in_front_and_for_none_behind() {
    let (scratch, held, disk) = (scratch(), Arc::new(Held::default()), Arc::new(FaultDisk::default()));
    *held.syncs.lock() = Some(disk.clone());
    let config = StoreConfig { segment_size_bytes: 32 * MIB, ..config(scratch.path()) };
    let store = Store::open_on(disk, config, Vec::new(), held.clone()).unwrap();
    let append = |queue, bytes| {
        store.append(vec![message(QueueNumber(queue), vec![0; bytes])], Durability::Disk).unwrap()
    };
    let mut appends = vec![append(0, 1)];
    eventually("the log writer being held", || held.reached.load(Ordering::Acquire));
    appends.push(append(1, LARGE));
    appends.extend((0..10).map(|_| append(2, 100)));
    appends.push(append(3, LARGE));
    appends.extend((0..10).map(|_| append(4, 100)));
    held.open.store(true, Ordering::Release);
    for append in appends {
        append.wait().unwrap();
    }
    let order = held.order.lock().clone();
    let flushes_before = |queue: u32| order.iter().find(|(own, _)| own.0 == queue).unwrap().1;
    let first = flushes_before(0);
    let behind_first: Vec<u64> = (1..5).map(|queue| flushes_before(queue) - first).collect();
    assert_eq!(
        behind_first,
        [1, 2, 3, 4],
        "each large one and the small ones behind it are flushed on their own"
    );
}

#[test]
fn who_waited_longer_than_the_deadline_is_refused_and_who_came_later_is_not() {
    let (scratch, held) = (scratch(), Arc::new(Held::default()));
    let deadline = Duration::from_millis(300);
    let config = StoreConfig { append_deadline: deadline, ..config(scratch.path()) };
    let store = Store::open(config, Vec::new(), held.clone()).unwrap();
    let append = || store.append(vec![message(QUEUE, "waits")], Durability::Memory).unwrap();
    let first = append();
    eventually("the log writer being held", || held.reached.load(Ordering::Acquire));
    let (late, since) = (append(), Instant::now());
    eventually("the deadline passes", || since.elapsed() > deadline);
    let in_time = append();
    held.open.store(true, Ordering::Release);
    assert_eq!(first.wait().unwrap().queue_offset.0, 0);
    let error = late.wait().unwrap_err();
    assert!(matches!(error, AppendError::Expired { waited_ms } if waited_ms >= 300), "{error}");
    assert_eq!(in_time.wait().unwrap().queue_offset.0, 1, "nothing of the late one is in the log");
}
