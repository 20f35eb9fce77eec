//! Order by message group with the official clients on two brokers: each group in the order of its sends, one message at a
//! time, also while messages are refused and die.

use std::collections::HashSet;

use karman_tests::stage::{
    DEADLINE, MANY_THREADS, assert_on_all_brokers, create_topic, deliveries, ids, named, said, sent_ids, set,
    two_brokers, wait_letters,
};
use karman_tests::{Cluster, Event, Language, Ledger, Stage};

const TOPIC: &str = "ordered";
const GROUP: &str = "shipping";
/// Of 16 message groups; of these, groups 0, 4, 8 and 12 have two messages each that are always refused.
const SENT: [(&str, &str); 3] = [("count", "160"), ("group-count", "16"), ("seed", "ordered")];
const REFUSED: [(&str, &str); 3] = [("group", GROUP), ("nack-attempts", "99"), ("nack-every", "20")];
const DEAD: u64 = 8;
const ALIVE: usize = 152;
const ATTEMPTS: usize = 3;

fn cluster() -> Cluster {
    let cluster = two_brokers();
    create_topic(&cluster, TOPIC, "fifo");
    cluster.karman(&["group", "create", GROUP, "--retry-max-times", "2", "--retry-steps", "1s"]);
    cluster
}

/// Sends, lets a consumer of this kind work until the last message is done or dead, and judges what it saw; the letters.
fn ordered_with_dead_letters(stage: &Stage<'_>, scenario: &str, done: &str) -> Vec<Event> {
    let produced = stage.produce(TOPIC, &SENT);
    assert_on_all_brokers(stage.cluster, TOPIC);
    let mut consumer = stage.start(scenario, TOPIC, &[&REFUSED[..], &[MANY_THREADS]].concat());
    consumer.wait_count(done, ALIVE, DEADLINE);
    wait_letters(stage.cluster, GROUP, DEAD);
    let consumed = consumer.stop();
    let dead = set(sent_ids(&produced, |index| index % 20 == 0));
    for (id, deliveries) in deliveries(&consumed) {
        let expected = if dead.contains(&id) { ATTEMPTS } else { 1 };
        assert_eq!(deliveries.len(), expected, "deliveries of {id}: {deliveries:?}");
    }
    let mut ledger = Ledger::default();
    ledger.add(produced);
    ledger.add(consumed);
    ledger.assert_nothing_lost();
    ledger.assert_in_order(&dead);
    let options = [("group", "burying"), ("count", &*DEAD.to_string()), MANY_THREADS];
    let letters = stage.run("consume-simple", &format!("%DLQ%{GROUP}"), &options);
    assert_eq!(set(ids(&letters, "message")), dead);
    letters
}

fn reasons(letters: &[Event]) -> HashSet<String> {
    named(letters, "message").map(|letter| said(letter)["DLQ_REASON"].to_owned()).collect()
}

/// The client tries again by itself, with the back-off of the group, and gives the message up by itself.
fn push(language: Language) {
    let cluster = cluster();
    let stage = Stage::through_namesrv(&cluster, language);
    let letters = ordered_with_dead_letters(&stage, "consume-push", "consumed");
    for reason in reasons(&letters) {
        assert!(reason.starts_with("given up by client "), "{reason}");
    }
}

/// The client gives a message back, and the broker counts.
fn simple(language: Language) {
    let cluster = cluster();
    let stage = Stage::through_namesrv(&cluster, language);
    let letters = ordered_with_dead_letters(&stage, "consume-simple", "acked");
    assert_eq!(reasons(&letters), HashSet::from(["delivered 3 times".to_owned()]));
}

#[test]
fn java_push_consumers_keep_order() {
    push(Language::Java);
}

#[test]
fn python_push_consumers_keep_order() {
    push(Language::Python);
}

#[test]
fn go_push_consumers_keep_order() {
    push(Language::Go);
}

#[test]
fn node_push_consumers_keep_order() {
    push(Language::Node);
}

#[test]
fn java_simple_consumers_keep_order() {
    simple(Language::Java);
}

#[test]
fn python_simple_consumers_keep_order() {
    simple(Language::Python);
}

#[test]
fn go_simple_consumers_keep_order() {
    simple(Language::Go);
}

#[test]
fn node_simple_consumers_keep_order() {
    simple(Language::Node);
}

/// Its client cannot refuse a message.
#[test]
fn rust_simple_consumers_keep_order() {
    let cluster = cluster();
    let stage = Stage::through_namesrv(&cluster, Language::Rust);
    let mut ledger = Ledger::default();
    ledger.add(stage.produce(TOPIC, &SENT));
    assert_on_all_brokers(&cluster, TOPIC);
    ledger.add(stage.run("consume-simple", TOPIC, &[("group", GROUP), ("count", "160"), MANY_THREADS]));
    ledger.assert_exactly_once();
    ledger.assert_in_order(&HashSet::new());
}
