//! Lite topics: a push consumer gets what it subscribes to and nothing else, each lite topic in the order of its sends, one
//! message at a time, also while some are refused.

use std::collections::HashSet;

use crate::stage::{DEADLINE, create_topic, ids, named, sent_ids};
use crate::{Ledger, Stage};

/// Of the lite topics l0 to l7 the consumer wants the first six.
const SENT: [(&str, &str); 3] = [("count", "160"), ("lite-count", "8"), ("seed", "lite")];
const WANTED: &str = "l0,l1,l2,l3,l4,l5";
const WANTED_MESSAGES: usize = 120;

fn is_wanted(index: u64) -> bool {
    index % 8 < 6
}

pub(super) fn play(stage: &Stage<'_>, name: &str) {
    create_topic(stage.cluster, name, "lite");
    stage.cluster.karman(&["group", "create", name, "--lite-topic", name, "--retry-steps", "1s"]);
    let options = [("group", name), ("lite-topics", WANTED), ("nack-attempts", "1"), ("nack-every", "20")];
    let mut consumer = stage.start("consume-lite", name, &options);
    assert_eq!(consumer.count("subscribe-failed"), 0, "{:?}", consumer.events());
    let mut produced = stage.produce(name, &SENT);
    consumer.wait_count("consumed", WANTED_MESSAGES, DEADLINE);
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
