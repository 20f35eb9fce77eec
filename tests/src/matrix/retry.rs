//! Refused messages: they come again after the back-off of their group, die after the last attempt, say why, and go back when
//! they are told to.

use std::collections::BTreeMap;

use crate::ledger::check_content;
use crate::stage::{
    DEADLINE, MANY_THREADS, attempts, create_topic, deliveries, ids, named, said, sent_ids, wait_letters,
};
use crate::{Event, Language, Stage};

/// Every second of these is refused.
const COUNT: &str = "10";
const DEAD: usize = 5;
/// The waits after the first and after the second attempt.
const WAITS_MS: [u64; 2] = [1000, 2000];
/// Steps that wait so, and a curve.
const STEPS: [&str; 2] = ["--retry-steps", "1s,2s"];
const CURVE: [&str; 2] = ["--retry-exponential", "1s,60s,2"];

pub(super) fn play(stage: &Stage<'_>, name: &str) {
    match stage.language {
        Language::Rust => dead_by_silence(stage, name),
        // It takes its seconds for milliseconds.
        Language::Node => refused_until_dead_and_redriven(stage, name, CURVE, [1, 2]),
        _ => refused_until_dead_and_redriven(stage, name, STEPS, WAITS_MS),
    }
}

/// `policy`: of the group, as `karman group create` takes it.
pub fn refused_until_dead_and_redriven(stage: &Stage<'_>, name: &str, policy: [&str; 2], waits_ms: [u64; 2]) {
    create_topic(stage.cluster, name, "normal");
    stage.cluster.karman(&["group", "create", name, "--retry-max-times", "2", policy[0], policy[1]]);
    let produced = stage.produce(name, &[("count", COUNT), ("seed", name)]);
    let options = [("group", name), ("nack-attempts", "99"), ("nack-every", "2")];
    let mut consumer = stage.start("consume-push", name, &options);
    consumer.wait_count("nacked", 3 * DEAD, DEADLINE);
    wait_letters(stage.cluster, name, DEAD as u64);
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
    letters_say_why(stage, name, &dead, "3");
    redriven(stage, name, &dead);
}

fn letters_say_why(stage: &Stage<'_>, name: &str, dead: &[String], attempts: &str) {
    let options = [("group", &*format!("{name}-burying")), ("count", &*dead.len().to_string()), MANY_THREADS];
    let letters = stage.run("consume-simple", &format!("%DLQ%{name}"), &options);
    assert_eq!(ids(&letters, "message"), dead);
    for letter in named(&letters, "message") {
        check_content(letter, &format!("%DLQ%{name}"), name);
        let reason = format!("delivered {attempts} times");
        let expected = BTreeMap::from([
            ("DLQ_ATTEMPTS", attempts),
            ("DLQ_ORIGIN_MESSAGE_ID", letter.id.as_deref().unwrap()),
            ("DLQ_ORIGIN_TOPIC", name),
            ("DLQ_REASON", &*reason),
        ]);
        assert_eq!(said(letter), expected);
    }
    let why = stage.cluster.karman(&["message", "why", &dead[0], name]);
    assert!(why.contains(&format!("group {name}: dead")), "{why}");
}

/// The same consumer, healed, gets them once more; the group has no letters to send back after that.
fn redriven(stage: &Stage<'_>, name: &str, dead: &[String]) {
    let mut consumer = stage.start("consume-push", name, &[("group", name)]);
    let redrive = || stage.cluster.karman(&["dlq", "redrive", name, "--yes"]);
    let said = redrive();
    assert!(said.starts_with("5 dead letters"), "{said}");
    consumer.wait_count("consumed", DEAD, DEADLINE);
    let said = redrive();
    assert!(said.starts_with("0 dead letters"), "each letter goes back once: {said}");
    let consumed: Vec<Event> = consumer.stop();
    assert_eq!(ids(&consumed, "message"), dead);
    for message in named(&consumed, "message") {
        check_content(message, name, name);
        assert_eq!(message.attempt, 1, "{message:?}");
    }
}

/// Of a client that cannot refuse: what it forgets comes again when its invisible time is over, and dies of that.
fn dead_by_silence(stage: &Stage<'_>, name: &str) {
    create_topic(stage.cluster, name, "normal");
    stage.cluster.karman(&["group", "create", name, "--retry-max-times", "1"]);
    let produced = stage.produce(name, &[("count", COUNT), ("seed", name)]);
    let options = [("group", name), ("ignore-attempts", "99"), ("invisible", "10"), MANY_THREADS];
    let consumer = stage.start("consume-simple", name, &options);
    wait_letters(stage.cluster, name, 10);
    for (id, attempts) in attempts(&consumer.stop()) {
        assert_eq!(attempts, [1, 2], "{id}");
    }
    letters_say_why(stage, name, &sent_ids(&produced, |_| true), "2");
}
