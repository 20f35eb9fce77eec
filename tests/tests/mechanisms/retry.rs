//! Refused messages with the official clients on two brokers: they come again after the back-off of their group, die after
//! the last attempt, say why, and go back when they are told to.

use std::collections::BTreeMap;

use karman_tests::ledger::check_content;
use karman_tests::stage::{
    DEADLINE, MANY_THREADS, create_topic, deliveries, ids, named, said, sent_ids, two_brokers, wait_letters,
};
use karman_tests::{Event, Language, Stage};

const TOPIC: &str = "orders";
const GROUP: &str = "shipping";
/// Every second of these is refused.
const COUNT: &str = "10";
const DEAD: usize = 5;
/// The waits after the first and after the second attempt.
const WAITS_MS: [u64; 2] = [1000, 2000];

fn refused_until_dead_and_redriven(language: Language, policy: [&str; 2], waits_ms: [u64; 2]) {
    let cluster = two_brokers();
    create_topic(&cluster, TOPIC, "normal");
    cluster.karman(&["group", "create", GROUP, "--retry-max-times", "2", policy[0], policy[1]]);
    let stage = Stage::through_namesrv(&cluster, language);
    let produced = stage.produce(TOPIC, &[("count", COUNT), ("seed", "orders")]);
    let options = [("group", GROUP), ("nack-attempts", "99"), ("nack-every", "2")];
    let mut consumer = stage.start("consume-push", TOPIC, &options);
    consumer.wait_count("nacked", 3 * DEAD, DEADLINE);
    wait_letters(&cluster, GROUP, DEAD as u64);
    let consumed = consumer.stop();
    let dead = sent_ids(&produced, |index| index % 2 == 0);
    for (id, deliveries) in deliveries(&consumed) {
        let expected: &[u32] = if dead.contains(&id) { &[1, 2, 3] } else { &[1] };
        let attempts: Vec<u32> = deliveries.iter().map(|event| event.attempt).collect();
        assert_eq!(attempts, expected, "{id}");
        for (pair, wait_ms) in deliveries.windows(2).zip(waits_ms) {
            let waited_ms = pair[1].at - pair[0].at;
            assert!(waited_ms >= wait_ms, "{id} came again after {waited_ms} ms: {pair:?}");
        }
    }
    letters_say_why(&stage, &dead);
    redriven(&stage, &dead);
}

fn letters_say_why(stage: &Stage<'_>, dead: &[String]) {
    let options = [("group", "burying"), ("count", &*DEAD.to_string()), MANY_THREADS];
    let letters = stage.run("consume-simple", &format!("%DLQ%{GROUP}"), &options);
    assert_eq!(ids(&letters, "message"), dead);
    for letter in named(&letters, "message") {
        check_content(letter, &format!("%DLQ%{GROUP}"), "orders");
        let expected = BTreeMap::from([
            ("DLQ_ATTEMPTS", "3"),
            ("DLQ_ORIGIN_MESSAGE_ID", letter.id.as_deref().unwrap()),
            ("DLQ_ORIGIN_TOPIC", TOPIC),
            ("DLQ_REASON", "delivered 3 times"),
        ]);
        assert_eq!(said(letter), expected);
    }
    let why = stage.cluster.karman(&["message", "why", &dead[0], TOPIC]);
    assert!(why.contains(&format!("group {GROUP}: dead")), "{why}");
}

/// The same consumer, healed, gets them once more; the group has no letters to send back after that.
fn redriven(stage: &Stage<'_>, dead: &[String]) {
    let mut consumer = stage.start("consume-push", TOPIC, &[("group", GROUP)]);
    let redrive = || stage.cluster.karman(&["dlq", "redrive", GROUP, "--yes"]);
    let said = redrive();
    assert!(said.starts_with("5 dead letters"), "{said}");
    consumer.wait_count("consumed", DEAD, DEADLINE);
    let said = redrive();
    assert!(said.starts_with("0 dead letters"), "each letter goes back once: {said}");
    let consumed: Vec<Event> = consumer.stop();
    assert_eq!(ids(&consumed, "message"), dead);
    for message in named(&consumed, "message") {
        check_content(message, TOPIC, "orders");
        assert_eq!(message.attempt, 1, "{message:?}");
    }
}

#[test]
fn what_java_refuses_dies_and_goes_back() {
    refused_until_dead_and_redriven(Language::Java, ["--retry-steps", "1s,2s"], WAITS_MS);
}

#[test]
fn what_java_refuses_waits_by_a_curve_too() {
    refused_until_dead_and_redriven(Language::Java, ["--retry-exponential", "1s,60s,2"], WAITS_MS);
}

#[test]
fn what_python_refuses_dies_and_goes_back() {
    refused_until_dead_and_redriven(Language::Python, ["--retry-steps", "1s,2s"], WAITS_MS);
}

/// Python knows steps only; it is given those that the curve takes.
#[test]
fn what_python_refuses_waits_by_a_curve_too() {
    refused_until_dead_and_redriven(Language::Python, ["--retry-exponential", "1s,60s,2"], WAITS_MS);
}

#[test]
fn what_go_refuses_dies_and_goes_back() {
    refused_until_dead_and_redriven(Language::Go, ["--retry-steps", "1s,2s"], WAITS_MS);
}

/// Node knows a curve only, and takes its seconds for milliseconds.
#[test]
fn what_node_refuses_dies_and_goes_back() {
    refused_until_dead_and_redriven(Language::Node, ["--retry-exponential", "1s,60s,2"], [1, 2]);
}

#[test]
fn what_node_refuses_dies_when_the_group_has_steps() {
    refused_until_dead_and_redriven(Language::Node, ["--retry-steps", "1s,2s"], [1, 2]);
}
