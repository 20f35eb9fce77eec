//! Delayed messages and recalls.

use crate::stage::{DEADLINE, MANY_THREADS, create_topic, named};
use crate::{Language, Ledger, Stage};

/// Brokers promise less; here a client and its machine are in between.
const LATE_MS: u64 = 1500;
const MESSAGE_NOT_FOUND: i32 = 40401;

fn consumer_of(language: Language) -> &'static str {
    if language == Language::Rust { "consume-simple" } else { "consume-push" }
}

pub(super) fn delayed(stage: &Stage<'_>, name: &str) {
    create_topic(stage.cluster, name, "delay");
    let options = [("group", name), MANY_THREADS];
    let mut consumer = stage.start(consumer_of(stage.language), name, &options);
    let options = [("count", "60"), ("delay", "1500"), ("delay-spread", "2000"), ("seed", "later")];
    let mut ledger = Ledger::default();
    ledger.add(stage.produce(name, &options));
    consumer.wait_count("message", 60, DEADLINE);
    ledger.add(consumer.stop());
    ledger.assert_exactly_once();
    let late = ledger.assert_none_early();
    assert_eq!(late.len(), 60);
    eprintln!("{name}: {} ms late in the middle, {} ms at most", late[30], late[59]);
    assert!(late[30] <= LATE_MS, "how late, ms: {late:?}");
}

pub(super) fn recalled(stage: &Stage<'_>, name: &str) {
    create_topic(stage.cluster, name, "delay");
    let mut consumer = stage.start(consumer_of(stage.language), name, &[("group", name), MANY_THREADS]);
    let options = [("count", "20"), ("delay", "8000"), ("recall-twice", "1"), ("seed", "back")];
    let taken_back = stage.run("recall", name, &options);
    let outcomes: Vec<_> = named(&taken_back, "recalled").map(|event| event.outcome.as_deref()).collect();
    assert_eq!(outcomes, [Some("accepted"); 40], "once and once more");
    // What is due after them says that their time has passed.
    let mut ledger = Ledger::default();
    ledger.add(stage.produce(name, &[("count", "20"), ("delay", "8000"), ("seed", "later")]));
    // This one is gone before it is recalled.
    let options = [("count", "2"), ("delay", "2000"), ("recall-wait", "4000"), ("seed", "gone")];
    let gone = stage.run("recall", name, &options);
    for event in named(&gone, "recalled") {
        assert_eq!(event.outcome.as_deref(), Some("refused"), "{event:?}");
        let text = event.message.as_deref().unwrap_or_default();
        assert!(event.code == Some(MESSAGE_NOT_FOUND) || text.contains("40401"), "{event:?}");
    }
    ledger.add(gone);
    consumer.wait_count("message", 22, DEADLINE);
    ledger.add(consumer.stop());
    ledger.assert_exactly_once();
    ledger.assert_none_early();
    ledger.add(taken_back);
    ledger.assert_recalled_unseen();
}
