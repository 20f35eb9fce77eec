//! Delayed messages over a real store: in time, once, and across crashes and retention.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::v2;
use karman_store::{
    Append, Durability, NewRecord, QueueNumber, QueueOffset, Record, RecordKind, Retention, Silent, Store,
    StoreConfig,
};
use prost::Message as _;

use super::{Deliverer, Trouble};
use crate::catalog::{Catalog, Topic};
use crate::catalog_writer::topic_named;
use crate::clock::Clock;
use crate::held::HeldTable;
use crate::label::Label;
use crate::records::{Change, HeldHead, Hold, Metadata, message_of};
use crate::service::send;

const DEADLINE: Duration = Duration::from_secs(20);
const QUEUES: u32 = 3;

struct Node {
    store: Arc<Store>,
    catalog: Arc<Catalog>,
    held: Arc<HeldTable>,
    clock: Clock,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.held.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn config(directory: &std::path::Path) -> StoreConfig {
    let retention = Retention {
        max_used_percent: 100,
        clean_forcibly_percent: 100,
        warning_percent: 100,
        ..Retention::default()
    };
    StoreConfig {
        segment_size_bytes: 1 << 20,
        disk_reserve_bytes: 0,
        retention,
        ..StoreConfig::new(directory)
    }
}

fn open(config: StoreConfig) -> Node {
    let (catalog, held) = (Arc::new(Catalog::default()), Arc::new(HeldTable::default()));
    let store = Store::open(config, vec![catalog.clone(), held.clone()], Arc::new(Silent)).unwrap();
    Node { store: Arc::new(store), catalog, held, clock: Clock::default(), thread: None }
}

impl Node {
    fn deliverer(&self) -> Deliverer {
        let (store, catalog, held) = (self.store.clone(), self.catalog.clone(), self.held.clone());
        Deliverer { store, catalog, held, clock: self.clock, durability: Durability::Disk }
    }

    fn deliver(&mut self) {
        self.thread = Some(self.deliverer().start().unwrap());
    }

    fn metadata(&self, change: Change) {
        let payload = Metadata { change: Some(change) }.encode_to_vec().into();
        self.append(NewRecord {
            kind: RecordKind::Metadata,
            queue: None,
            tag_hash: 0,
            mark: 0,
            keys: vec![],
            payload,
        });
    }

    fn topic(&self, name: &str) -> Arc<Topic> {
        if self.catalog.topic(name).is_none() {
            self.metadata(Change::Topic(self.catalog.next_topic(topic_named(name, QUEUES)).unwrap()));
        }
        self.catalog.topic(name).unwrap()
    }

    fn append(&self, record: NewRecord) {
        self.store.append(vec![record], Durability::Disk).and_then(Append::wait).unwrap();
    }

    fn hold(&self, topic: &Topic, id: u64, due_ms: u64) {
        let message = message(topic.name(), id);
        let head = HeldHead { id, due_ms, topic: topic.number, hold: Hold::Timer };
        let payload = head.before(&message.bytes);
        let record = send::record(&message, QueueNumber(0), topic.number);
        self.append(NewRecord { kind: RecordKind::Held, queue: None, payload, ..record });
    }

    /// What is visible: the records with the ids of their messages.
    fn visible(&self, topic: &Topic) -> Vec<(String, Record)> {
        let mut visible = Vec::new();
        for &queue in &topic.queues {
            let (queue, mut entries) = (QueueNumber(queue), Vec::new());
            self.store.entries(queue, QueueOffset(0), 1000, &mut entries).unwrap();
            for entry in entries {
                let record = self.store.record(entry.physical_offset, entry.size).unwrap();
                let message = v2::Message::decode(message_of(&record)).unwrap();
                visible.push((message.system_properties.unwrap().message_id, record));
            }
        }
        visible
    }

    fn visible_ids(&self, topic: &Topic) -> Vec<String> {
        let mut ids: Vec<String> = self.visible(topic).into_iter().map(|(id, _)| id).collect();
        ids.sort();
        ids
    }
}

fn message(topic: &str, id: u64) -> EncodedMessage {
    let message = v2::Message {
        topic: Some(v2::Resource { name: topic.into(), ..Default::default() }),
        system_properties: Some(v2::SystemProperties {
            message_id: format!("id-{id:02}"),
            tag: Some("tag".into()),
            ..Default::default()
        }),
        body: Bytes::from(vec![7; 100]),
        ..Default::default()
    };
    EncodedMessage::read(message.encode_to_vec().into()).unwrap()
}

fn ids(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|id| format!("id-{id:02}")).collect()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn messages_become_visible_at_their_time_in_the_queues_of_their_topic_and_never_early() {
    let directory = tempfile::tempdir().unwrap();
    let mut node = open(config(directory.path()));
    node.deliver();
    let topic = node.topic("delayed");
    let start_ms = node.clock.now_ms();
    // The later ones first: the thread sleeps when an earlier one comes.
    for id in (0..30).rev() {
        node.hold(&topic, id, start_ms + 300 + 10 * id);
    }
    assert!(node.visible(&topic).is_empty() || node.clock.now_ms() >= start_ms + 300);
    until("all are visible", || node.visible(&topic).len() == 30);
    assert_eq!(node.visible_ids(&topic), ids(0..30));
    for (id, record) in node.visible(&topic) {
        let head = HeldHead::of(&record.payload).unwrap();
        assert!(record.store_time_ms >= head.due_ms, "{id} is early: {head:?} at {}", record.store_time_ms);
        assert_eq!(
            (record.kind, record.tag_hash),
            (RecordKind::Released, Label::of(&message("delayed", 0).system_properties).0)
        );
    }
    // A message is visible a moment before that is known.
    until("all are counted", || node.held.counters.delivered.load(Ordering::Relaxed) == 30);
    assert_eq!(node.held.counts(), (0, 0));
    let filled = topic.queues.iter().filter(|queue| !node.store.queue_range(QueueNumber(**queue)).is_empty());
    assert_eq!(filled.count(), QUEUES as usize, "all queues are used");
}

#[test]
fn pending_messages_survive_a_crash_and_are_delivered_once() {
    let directory = tempfile::tempdir().unwrap();
    let node = open(config(directory.path()));
    let topic = node.topic("delayed");
    let due_ms = node.clock.now_ms();
    (0..20).for_each(|id| node.hold(&topic, id, due_ms + 1));
    // Without its thread nothing is delivered; dropping the store is a crash.
    drop(node);
    for _ in 0..2 {
        let mut node = open(config(directory.path()));
        let topic = node.topic("delayed");
        node.deliver();
        until("all are delivered", || node.held.counts() == (0, 0));
        assert_eq!(node.visible_ids(&topic), ids(0..20));
    }
}

#[test]
fn messages_of_a_deleted_topic_are_dropped_for_good() {
    let directory = tempfile::tempdir().unwrap();
    let mut node = open(config(directory.path()));
    let (kept, deleted) = (node.topic("kept"), node.topic("deleted"));
    let due_ms = node.clock.now_ms();
    (0..4).for_each(|id| node.hold(if id < 2 { &kept } else { &deleted }, id, due_ms + 1));
    node.metadata(Change::TopicDeleted(deleted.number));
    node.deliver();
    until("all are finished", || node.held.counts() == (0, 0));
    assert_eq!(node.visible_ids(&kept), ids(0..2));
    until("they are counted", || node.held.counters.dropped.load(Ordering::Relaxed) == 2);
    drop(node);
    assert_eq!(open(config(directory.path())).held.counts(), (0, 0));
}

#[test]
fn retention_moves_pending_messages_and_they_are_delivered_once_from_where_they_lie_then() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path());
    config.retention.size_limit_bytes = Some(3 << 20);
    config.cleanup_interval = Duration::from_millis(10);
    config.snapshot_interval = Duration::from_millis(20);
    let mut node = open(config.clone());
    let topic = node.topic("delayed");
    let due_ms = node.clock.now_ms() + 86_400_000;
    (0..20).for_each(|id| node.hold(&topic, id, due_ms));
    let other = node.topic("other");
    let fill = |node: &Node| {
        let mut record = send::record(&message("other", 0), QueueNumber(other.queues[0]), other.number);
        record.payload = vec![0; 100_000].into();
        node.append(record);
    };
    let held_end = node.store.watermarks().confirmed;
    until("their segment is gone", || {
        fill(&node);
        node.store.watermarks().log_start > held_end
    });
    assert_eq!(node.held.counts(), (20, 0));
    drop(node);
    node = open(config);
    assert_eq!(node.held.counts(), (20, 0));
    // Their time comes when the clock says so.
    node.clock = Clock::ahead(Duration::from_secs(86_401));
    let topic = node.topic("delayed");
    node.deliver();
    until("all are delivered", || node.held.counts() == (0, 0));
    assert_eq!(node.visible_ids(&topic), ids(0..20));
}

#[test]
fn a_wall_clock_that_is_set_ahead_makes_messages_due() {
    const HOUR_MS: u64 = 3_600_000;
    static SET_AHEAD_MS: AtomicU64 = AtomicU64::new(0);
    let directory = tempfile::tempdir().unwrap();
    let mut node = open(config(directory.path()));
    node.clock = Clock::beside(|| Clock::default().now_ms() + SET_AHEAD_MS.load(Ordering::Relaxed));
    let topic = node.topic("delayed");
    node.hold(&topic, 1, node.clock.now_ms() + HOUR_MS);
    node.deliver();
    let sleeps = || node.held.is_delivery_asleep();
    until("the thread sleeps", sleeps);
    SET_AHEAD_MS.store(2 * HOUR_MS, Ordering::Relaxed);
    until("it is delivered", || node.held.counts() == (0, 0));
    assert_eq!(node.visible_ids(&topic), ids(1..2));
}

#[test]
fn what_a_full_disk_refuses_stays_due_and_is_delivered_later() {
    let directory = tempfile::tempdir().unwrap();
    let node = open(config(directory.path()));
    let topic = node.topic("delayed");
    let due_ms = node.clock.now_ms();
    (0..20).for_each(|id| node.hold(&topic, id, due_ms + 1));
    drop(node);
    let mut full = config(directory.path());
    full.retention =
        Retention { max_used_percent: 1, clean_forcibly_percent: 1, warning_percent: 1, ..full.retention };
    let node = open(full);
    let record = || send::record(&message("delayed", 99), QueueNumber(topic.queues[0]), topic.number);
    until("the disk is too full", || node.store.append(vec![record()], Durability::Memory).is_err());
    // What the thread does in one round, which is too short to be watched.
    let due = node.held.wait_due(&node.clock, 64).unwrap();
    assert_eq!(due.len(), 20);
    let is_free = || node.held.shared_held(|held| held.timers.first_due()).is_some();
    assert!(!is_free(), "they are claimed");
    assert!(matches!(node.deliverer().deliver(due), Err(Trouble::Refused(_))));
    assert!(is_free(), "and given back");
    assert_eq!((node.held.counts(), node.held.counters.delivered.load(Ordering::Relaxed)), ((20, 0), 0));
    drop(node);
    let mut node = open(config(directory.path()));
    node.deliver();
    until("all are delivered", || node.held.counts() == (0, 0));
    let mut delivered = node.visible_ids(&topic);
    delivered.retain(|id| id != "id-99");
    assert_eq!(delivered, ids(0..20));
}
