//! Transactions: what is committed comes once, nothing else ever does, and a producer is asked about what it left open.

use std::time::Duration;

use crate::stage::{DEADLINE, MANY_THREADS, create_topic, ids, named, sent_ids, set};
use crate::{Language, Ledger, Stage, let_run, until};

/// Of brokers: they ask about what is open every second.
pub(super) const SETTINGS: [(&str, &str); 2] =
    [("transactionTimeOut", "1000"), ("transactionCheckInterval", "1000")];

/// A quarter each, of 80: committed and rolled back at once, left open and decided when the broker asks.
const COUNT: usize = 80;
const COMMON: [(&str, &str); 2] = [("count", "80"), ("decide", "commit,rollback,unknown,commit")];
const OPEN: usize = COUNT / 4;
/// By then all that can be asked has been, some times.
const ASKED_BY: Duration = Duration::from_secs(6);

pub(super) fn decided(stage: &Stage<'_>, name: &str) {
    create_topic(stage.cluster, name, "transaction");
    if stage.language == Language::Rust {
        return decided_at_once(stage, name);
    }
    let mut consumer = stage.start("consume-push", name, &[("group", name)]);
    // Two producers, one after the other: the open ones are committed by the first and rolled back by the second.
    let mut ledger = Ledger::default();
    for (seed, check_decide, committed) in [("first", "commit", 3 * OPEN), ("second", "rollback", 5 * OPEN)] {
        let options = [&COMMON[..], &[("seed", seed), ("check-decide", check_decide)]].concat();
        let producer = stage.start("transaction", name, &options);
        until("the producer is asked about all that it left open", DEADLINE, || {
            let events = producer.events();
            let open = sent_ids(&events, |index| index % 4 == 2);
            let asked = set(ids(&events, "checked"));
            (open.len() == OPEN && open.iter().all(|id| asked.contains(id))).then_some(())
        });
        consumer.wait_count("message", committed, DEADLINE);
        let events = producer.stop();
        assert!(named(&events, "end-failed").next().is_none(), "{:?}", named(&events, "end-failed").next());
        ledger.add(events);
    }
    ledger.add(consumer.stop());
    assert_eq!(ledger.sent.len(), 2 * COUNT);
    ledger.assert_commits_once();
}

/// A client of which not every broker can ask: nothing of what stays open is ever seen.
fn decided_at_once(stage: &Stage<'_>, name: &str) {
    let consumer = stage.start("consume-simple", name, &[("group", name), MANY_THREADS]);
    let mut producer =
        stage.start("transaction", name, &[&COMMON[..], &[("check-decide", "rollback")]].concat());
    producer.wait_count("sent", COUNT, DEADLINE);
    until("what is committed is delivered", DEADLINE, || {
        (consumer.count("message") >= 2 * OPEN).then_some(())
    });
    let_run(ASKED_BY);
    let events = producer.stop();
    let asked = set(ids(&events, "checked")).len();
    assert!(asked < OPEN, "the defect is gone: all brokers asked");
    let mut ledger = Ledger::default();
    ledger.add(events);
    ledger.add(consumer.stop());
    assert_eq!(ledger.sent.len(), COUNT);
    ledger.assert_commits_once();
}
