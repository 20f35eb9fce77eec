//! The rows of the table, on a running broker and in recovery.

use std::sync::mpsc;
use std::time::Duration;

use karman_store::{MIN_SEGMENT_BYTES, PhysicalOffset, QueueOffset, Silent, StoreConfig};

use super::*;
use crate::catalog_writer::topic_named;
use crate::pop::MessageState;

#[test]
fn the_end_of_a_client_leaves_nothing_behind_in_recovery() {
    let (catalog, topic) = a_topic();
    let topic = topic.number;
    let table = ProgressTable::new(catalog);
    let of_client = Progress { group: 1, topic, client: Some("c".to_owned()), ..Progress::default() };
    table.apply_progress(&of_client);
    let reader = table.get(1, topic, Some("c")).unwrap().arrived.clone();
    table.apply_progress(&Progress { ended: true, ..of_client });
    assert!(table.all().is_empty());
    assert_eq!(Arc::strong_count(&reader), 1, "neither the table nor the topic knows it any more");
}

/// A topic, and the group with the number 1.
fn a_topic() -> (Arc<Catalog>, Arc<Topic>) {
    let catalog = Arc::new(Catalog::default());
    catalog.change(Change::Group(GroupRecord { number: 1, ..GroupRecord::default() }));
    catalog.change(Change::Topic(catalog.next_topic(topic_named("a", 2)).unwrap()));
    let topic = catalog.topic("a").unwrap();
    (catalog, topic)
}

fn dead_letter_of(origin: Origin) -> Record {
    Record {
        kind: RecordKind::DeadLetter,
        epoch: 0,
        physical_offset: PhysicalOffset(0),
        store_time_ms: 0,
        queue: Some(QueueNumber(9)),
        queue_offset: QueueOffset(0),
        tag_hash: 0,
        mark: 0,
        payload: origin.before(b""),
    }
}

#[test]
fn the_log_writer_does_not_wait_for_who_uses_a_row() {
    let (catalog, topic) = a_topic();
    let table = Arc::new(ProgressTable::new(catalog));
    table.apply_progress(&Progress { group: 1, topic: topic.number, ..Progress::default() });
    table.go_live();
    let row = table.get(1, topic.number, None).unwrap();
    let (applied, waiting) = mpsc::channel();
    let number = topic.number;
    let origin = move |offset| Origin { group: 1, topic: number, queue_id: 0, offset };
    let log_writer = {
        let table = table.clone();
        move || {
            table.apply(&dead_letter_of(origin(0)));
            applied.send(()).unwrap();
        }
    };
    let log_writer = row.run(|_| {
        let log_writer = std::thread::spawn(log_writer);
        waiting.recv_timeout(Duration::from_secs(10)).expect("it waits for the row");
        log_writer
    });
    log_writer.join().unwrap();
    let is_done =
        |offset| row.run(|pop| pop.message_state(Position { queue_id: 0, offset })) == MessageState::Done;
    assert!(is_done(0) && !is_done(1));
    table.apply(&dead_letter_of(origin(1)));
    assert!(is_done(1));
}

#[test]
fn who_waits_for_messages_of_a_group_that_is_deleted_is_woken_and_the_topic_forgets_it() {
    let (catalog, topic) = a_topic();
    let table = ProgressTable::new(catalog.clone());
    table.apply_progress(&Progress { group: 1, topic: topic.number, ..Progress::default() });
    table.go_live();
    let reader = table.get(1, topic.number, None).unwrap().arrived.clone();
    let metadata = Metadata { change: Some(Change::GroupDeleted(1)) };
    let payload = Bytes::from(metadata.encode_to_vec());
    let deleted =
        Record { kind: RecordKind::Metadata, payload, ..dead_letter_of(Origin::of(&[0; 20]).unwrap()) };
    catalog.apply(&deleted);
    table.apply(&deleted);
    assert!(table.all().is_empty() && table.of_group(1).is_empty());
    assert_eq!(Arc::strong_count(&reader), 1, "neither the table nor the topic knows it any more");
    let woken = futures_util::FutureExt::now_or_never(reader.notified());
    assert!(woken.is_some(), "it sees that its group is gone");
}

/// A store that takes nothing more: its segment is full, and there is no room for the next one.
fn full_store(directory: &std::path::Path) -> Store {
    let config = StoreConfig {
        segment_size_bytes: MIN_SEGMENT_BYTES,
        disk_reserve_bytes: 1 << 60,
        ..StoreConfig::new(directory)
    };
    let store = Store::open(config, Vec::new(), Arc::new(Silent)).unwrap();
    let mut bytes = MIN_SEGMENT_BYTES as usize / 4;
    while bytes > 0 {
        let fills = NewRecord { payload: vec![0; bytes].into(), ..record_of(&Progress::default()) };
        if store.append(vec![fills], Durability::Memory).and_then(Append::wait).is_err() {
            bytes /= 2;
        }
    }
    store
}

#[tokio::test]
async fn a_beginning_that_could_not_be_recorded_is_not_taken_for_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let store = tokio::task::spawn_blocking(move || full_store(&path)).await.unwrap();
    let (catalog, topic) = a_topic();
    let table = ProgressTable::new(catalog);
    let group = GroupRecord { number: 1, ..GroupRecord::default() };
    for _ in 0..2 {
        let opened = table.open(&store, Durability::Memory, &group, &topic, None).await;
        assert!(opened.is_err(), "what it reads from here on would begin elsewhere after a restart");
    }
}
