//! Messages that are nothing but messages: they come back once and whole, also in batches and at the limit of the size; filters
//! select; a push consumer keeps what it works on.

use crate::ledger::{check_content, sha256_of, tag_of};
use crate::stage::{
    DEADLINE, MANY_THREADS, assert_on_all_brokers, create_topic, deliveries, ids, named, sent_ids,
};
use crate::{Event, Language, Ledger, Stage};

const COUNT: &str = "300";
const SQL: &str = "(TAGS = 'red' AND index BETWEEN 100 AND 199) OR index IN ('7', '8') OR text IS NULL";
const BODY_LIMIT: usize = 4 << 20;
/// What some clients have above the body in what they take for 4 MiB.
const ROOM: usize = 64 << 10;

pub(super) fn normal(stage: &Stage<'_>, name: &str) {
    create_topic(stage.cluster, name, "normal");
    let produced = stage.produce(name, &[("count", COUNT), ("seed", name)]);
    assert_on_all_brokers(stage.cluster, name);
    come_back(stage, name, "consume-simple", produced);
}

pub(super) fn push(stage: &Stage<'_>, name: &str) {
    create_topic(stage.cluster, name, "normal");
    let produced = stage.produce(name, &[("count", COUNT), ("seed", name)]);
    come_back(stage, name, "consume-push", produced);
}

pub(super) fn batch(stage: &Stage<'_>, name: &str) {
    create_topic(stage.cluster, name, "normal");
    let options = [("count", COUNT), ("seed", name), ("batch", "32")];
    let produced = stage.run("produce-batch", name, &options);
    assert!(named(&produced, "failed").next().is_none(), "{:?}", named(&produced, "failed").next());
    come_back(stage, name, "consume-simple", produced);
}

/// All of it, once and whole.
fn come_back(stage: &Stage<'_>, name: &str, scenario: &str, produced: Vec<Event>) {
    assert_eq!(named(&produced, "sent").count().to_string(), COUNT);
    let consumed = stage.run(scenario, name, &[("count", COUNT), ("group", name), MANY_THREADS]);
    for event in named(&consumed, "message") {
        check_content(event, name, name);
        assert_eq!(event.attempt, 1, "{event:?}");
    }
    let mut ledger = Ledger::default();
    ledger.add(produced);
    ledger.add(consumed);
    ledger.assert_exactly_once();
}

/// A simple consumer selects by tag, and a push consumer, where there is one, by SQL.
pub(super) fn filters(stage: &Stage<'_>, name: &str) {
    create_topic(stage.cluster, name, "normal");
    let produced = stage.produce(name, &[("count", COUNT), ("seed", name)]);
    let by_tag = sent_ids(&produced, |index| tag_of(index) != "green");
    let by_sql = sent_ids(&produced, |index| {
        tag_of(index) == "red" && (100..200).contains(&index) || [7, 8].contains(&index)
    });
    let push = if stage.language == Language::Rust { "consume-simple" } else { "consume-push" };
    for (scenario, kind, filter, wanted) in
        [("consume-simple", "tag", "red || blue", by_tag), (push, "sql", SQL, by_sql)]
    {
        let group = format!("{name}-{kind}");
        let count = wanted.len().to_string();
        let options =
            [("group", &*group), ("count", &count), ("filter", filter), ("filter-type", kind), MANY_THREADS];
        let selected = stage.run(scenario, name, &options);
        assert_eq!(ids(&selected, "message"), wanted, "{scenario} {filter}");
    }
}

/// The listener takes longer than one renewal lasts, which is a minute.
pub(super) fn renewed(stage: &Stage<'_>, name: &str) {
    create_topic(stage.cluster, name, "normal");
    stage.produce(name, &[("count", "4"), ("seed", name)]);
    let options = [("group", name), ("work", "70000"), ("count", "4")];
    let consumed = stage.run("consume-push", name, &options);
    for (id, deliveries) in deliveries(&consumed) {
        assert_eq!(deliveries.len(), 1, "{id} came again while it was worked on: {deliveries:?}");
    }
    let mut consumer = stage.start("consume-push", name, &[("group", name)]);
    stage.produce(name, &[("count", "1"), ("seed", "after")]);
    consumer.wait_count("consumed", 1, DEADLINE);
    assert_eq!(consumer.stop().iter().filter(|event| event.event == "message").count(), 1, "all were done");
}

/// The largest body there may be, and where the client cannot receive that, one that leaves room for the rest.
pub(super) fn large(stage: &Stage<'_>, name: &str) {
    let cannot_receive = [Language::Node, Language::Rust].contains(&stage.language);
    if cannot_receive {
        let too_large = format!("{name}-refused");
        sent(stage, &too_large, BODY_LIMIT);
        let mut consumer = stage.start("consume-simple", &too_large, &[("group", name), MANY_THREADS]);
        consumer.wait_count("receive-failed", 1, DEADLINE);
        let events = consumer.stop();
        assert!(named(&events, "message").next().is_none(), "the defect is gone: it came");
    }
    let size = if cannot_receive { BODY_LIMIT - ROOM } else { BODY_LIMIT };
    let produced = sent(stage, name, size);
    let options = [("count", "2"), ("group", name), ("batch", "1"), MANY_THREADS];
    let consumed = stage.run("consume-simple", name, &options);
    assert_eq!(ids(&consumed, "acked"), ids(&produced, "sent"));
    for message in named(&consumed, "message") {
        let index: u64 = message.properties["index"].parse().unwrap();
        assert_eq!((message.length, &message.sha256), (size, &sha256_of(name, index, size)));
    }
}

/// Two messages with bodies of so many bytes.
fn sent(stage: &Stage<'_>, topic: &str, size: usize) -> Vec<Event> {
    create_topic(stage.cluster, topic, "normal");
    stage.produce(topic, &[("count", "2"), ("seed", topic), ("size", &size.to_string())])
}
