//! Order by message group: each group in the order of its sends, one message at a time, also while messages are refused and
//! die.

use std::collections::HashSet;

use crate::stage::{
    DEADLINE, MANY_THREADS, assert_on_all_brokers, create_topic, deliveries, ids, named, said, sent_ids, set,
    wait_letters,
};
use crate::{Event, Language, Ledger, Stage};

/// Of 16 message groups; of these, groups 0, 4, 8 and 12 have two messages each that are always refused.
const SENT: [(&str, &str); 3] = [("count", "160"), ("group-count", "16"), ("seed", "ordered")];
const REFUSED: [(&str, &str); 2] = [("nack-attempts", "99"), ("nack-every", "20")];
const DEAD: u64 = 8;
const ALIVE: usize = 152;
const ATTEMPTS: usize = 3;

/// Sends, lets a consumer of this kind work until the last message is done or dead, and judges what it saw; the letters.
fn ordered_with_dead_letters(stage: &Stage<'_>, name: &str, scenario: &str, done: &str) -> Vec<Event> {
    create_topic(stage.cluster, name, "fifo");
    stage.cluster.karman(&["group", "create", name, "--retry-max-times", "2", "--retry-steps", "1s"]);
    let produced = stage.produce(name, &SENT);
    assert_on_all_brokers(stage.cluster, name);
    let options = [&REFUSED[..], &[MANY_THREADS, ("group", name)]].concat();
    let mut consumer = stage.start(scenario, name, &options);
    consumer.wait_count(done, ALIVE, DEADLINE);
    wait_letters(stage.cluster, name, DEAD);
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
    let options = [("group", &*format!("{name}-burying")), ("count", &*DEAD.to_string()), MANY_THREADS];
    let letters = stage.run("consume-simple", &format!("%DLQ%{name}"), &options);
    assert_eq!(set(ids(&letters, "message")), dead);
    letters
}

fn reasons(letters: &[Event]) -> HashSet<String> {
    named(letters, "message").map(|letter| said(letter)["DLQ_REASON"].to_owned()).collect()
}

/// The client tries again by itself, with the back-off of the group, and gives the message up by itself.
pub(super) fn push(stage: &Stage<'_>, name: &str) {
    for reason in reasons(&ordered_with_dead_letters(stage, name, "consume-push", "consumed")) {
        assert!(reason.starts_with("given up by client "), "{reason}");
    }
}

/// The client gives a message back, and the broker counts.
pub(super) fn simple(stage: &Stage<'_>, name: &str) {
    if stage.language == Language::Rust {
        return without_refusing(stage, name);
    }
    let letters = ordered_with_dead_letters(stage, name, "consume-simple", "acked");
    assert_eq!(reasons(&letters), HashSet::from(["delivered 3 times".to_owned()]));
}

/// Of a client that cannot refuse a message.
fn without_refusing(stage: &Stage<'_>, name: &str) {
    create_topic(stage.cluster, name, "fifo");
    let mut ledger = Ledger::default();
    ledger.add(stage.produce(name, &SENT));
    assert_on_all_brokers(stage.cluster, name);
    ledger.add(stage.run("consume-simple", name, &[("group", name), ("count", "160"), MANY_THREADS]));
    ledger.assert_exactly_once();
    ledger.assert_in_order(&HashSet::new());
}
