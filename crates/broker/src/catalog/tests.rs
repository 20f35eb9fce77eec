use super::*;
use crate::catalog_writer::topic_named;

fn make(catalog: &Catalog, name: &str) -> TopicRecord {
    let record = catalog.next_topic(topic_named(name, 2)).unwrap();
    catalog.change(Change::Topic(record.clone()));
    record
}

#[test]
fn numbers_of_deleted_topics_are_not_used_again_across_a_snapshot() {
    let catalog = Catalog::default();
    let first = make(&catalog, "a");
    catalog.change(Change::TopicDeleted(first.number));
    let restored = Catalog::default();
    restored.restore(&catalog.snapshot()).unwrap();
    let second = make(&restored, "a");
    assert_ne!(first.number, second.number);
    assert!(second.queues.iter().all(|queue| !first.queues.contains(queue)));
    assert!(restored.owner_of(QueueNumber(first.queues[0])).is_none());
}

#[test]
fn a_group_that_is_made_after_one_of_its_name_was_deleted_has_another_number_also_across_a_snapshot() {
    let catalog = Catalog::default();
    let named = || v1::GroupConfig { name: "g".into(), ..Default::default() };
    let first = catalog.next_group(named());
    catalog.change(Change::Group(first.clone()));
    catalog.change(Change::GroupDeleted(first.number));
    assert!(catalog.group("g").is_none() && catalog.group_numbered(first.number).is_none());
    let restored = Catalog::default();
    restored.restore(&catalog.snapshot()).unwrap();
    assert!(restored.groups().is_empty());
    let second = restored.next_group(named());
    assert_ne!(first.number, second.number);
    restored.change(Change::Group(second.clone()));
    // Applied once more, it does not take the second with it.
    restored.change(Change::GroupDeleted(first.number));
    assert_eq!(restored.group("g").unwrap().number, second.number);
}

#[test]
fn applying_a_topic_twice_keeps_its_readers() {
    let catalog = Catalog::default();
    let record = make(&catalog, "a");
    catalog.topic("a").unwrap().add_reader(Arc::default());
    catalog.change(Change::Topic(record));
    assert_eq!(catalog.topic("a").unwrap().readers.read().len(), 1);
}

#[test]
fn the_reserve_time_of_a_topic_is_its_own_or_the_brokers_also_across_a_snapshot() {
    let catalog = Catalog::default();
    make(&catalog, "a");
    let own = catalog.next_topic(v1::TopicConfig { reserved_hours: 24, ..topic_named("b", 1) }).unwrap();
    catalog.change(Change::Topic(own));
    let restored = Catalog::default();
    restored.restore(&catalog.snapshot()).unwrap();
    let reserved = |name| restored.topic(name).unwrap().reserved();
    assert_eq!((reserved("a"), reserved("b")), (None, Some(Duration::from_secs(86_400))));
}

#[test]
fn sends_go_to_the_queues_in_turn() {
    let catalog = Catalog::default();
    make(&catalog, "a");
    let topic = catalog.topic("a").unwrap();
    let ids: Vec<_> = (0..4).map(|_| topic.next_queue().0).collect();
    assert_eq!(ids, [0, 1, 0, 1]);
}
