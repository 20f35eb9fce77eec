//! Lite topics with the official clients on two brokers: a push consumer gets what it subscribes to and nothing else, each
//! lite topic in the order of its sends, one message at a time, also while some are refused.

use std::collections::HashSet;
use std::time::Duration;

use karman_tests::cluster::Node;
use karman_tests::stage::{DEADLINE, create_topic, ids, named, sent_ids, two_brokers};
use karman_tests::{Cluster, Event, Language, Ledger, Stage, let_run};

const PARENT: &str = "sessions";
const GROUP: &str = "agents";
/// Of the lite topics l0 to l7 the consumer wants the first six.
const SENT: [(&str, &str); 3] = [("count", "160"), ("lite-count", "8"), ("seed", "lite")];
const WANTED: &str = "l0,l1,l2,l3,l4,l5";
const WANTED_MESSAGES: usize = 120;

fn is_wanted(index: u64) -> bool {
    index % 8 < 6
}

fn lite_push(language: Language) {
    let cluster = two_brokers();
    create_topic(&cluster, PARENT, "lite");
    cluster.karman(&["group", "create", GROUP, "--lite-topic", PARENT, "--retry-steps", "1s"]);
    let stage = Stage::through_namesrv(&cluster, language);
    let options = [("group", GROUP), ("lite-topics", WANTED), ("nack-attempts", "1"), ("nack-every", "20")];
    let mut consumer = stage.start("consume-lite", PARENT, &options);
    let failed: Vec<Event> =
        consumer.events().into_iter().filter(|event| event.event == "subscribe-failed").collect();
    assert!(failed.is_empty(), "{failed:?}");
    let mut produced = stage.produce(PARENT, &SENT);
    consumer.wait_count("consumed", WANTED_MESSAGES, DEADLINE);
    assert_waiting_costs_nothing(&cluster);
    let consumed = consumer.stop();
    assert_eq!(ids(&consumed, "consumed"), sent_ids(&produced, is_wanted));
    let refused = named(&produced, "sent").filter(|event| event.index % 20 == 0 && is_wanted(event.index));
    assert_eq!(named(&consumed, "nacked").count(), refused.count(), "each once");
    produced.retain(|event| is_wanted(event.index));
    let mut ledger = Ledger::default();
    ledger.add(produced);
    ledger.add(consumed);
    ledger.assert_nothing_lost();
    ledger.assert_in_order(&HashSet::new());
}

/// The consumer has all there is, and its calls wait for more.
fn assert_waiting_costs_nothing(cluster: &Cluster) {
    const WHILE: Duration = Duration::from_secs(2);
    let taken = || cluster.brokers.iter().map(Node::processor_time).sum::<Duration>();
    let before = taken();
    let_run(WHILE);
    let cost = taken() - before;
    assert!(cost < WHILE / 5, "{cost:?} of processor time while nothing happened");
}

#[test]
fn java_gets_the_lite_topics_it_wants() {
    lite_push(Language::Java);
}

#[test]
fn python_gets_the_lite_topics_it_wants() {
    lite_push(Language::Python);
}

#[test]
fn go_gets_the_lite_topics_it_wants() {
    lite_push(Language::Go);
}

#[test]
fn node_gets_the_lite_topics_it_wants() {
    lite_push(Language::Node);
}
