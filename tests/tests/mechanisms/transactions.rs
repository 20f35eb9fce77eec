//! Transactions with the official clients on two brokers: what is committed comes once, nothing else ever does, and a
//! producer is asked about what it left open.

use karman_tests::stage::{
    DEADLINE, MANY_THREADS, create_topic, ids, named, sent_ids, set, two_brokers_with,
};
use karman_tests::{Cluster, Language, Ledger, Stage, until};

const TOPIC: &str = "payments";
const GROUP: &str = "booking";
/// A quarter each, of 80: committed and rolled back at once, left open and decided when the broker asks.
const COUNT: usize = 80;
const COMMON: [(&str, &str); 2] = [("count", "80"), ("decide", "commit,rollback,unknown,commit")];
const OPEN: usize = COUNT / 4;

/// Asks about what is open every second, and three times at most.
fn cluster() -> Cluster {
    let cluster = two_brokers_with(&[
        ("transactionTimeOut", "1000"),
        ("transactionCheckInterval", "1000"),
        ("transactionCheckMax", "3"),
    ]);
    create_topic(&cluster, TOPIC, "transaction");
    cluster
}

fn transactions(language: Language) {
    let cluster = cluster();
    let stage = Stage::through_namesrv(&cluster, language);
    let mut consumer = stage.start("consume-push", TOPIC, &[("group", GROUP)]);
    // Two producers, one after the other: the open ones are committed by the first and rolled back by the second.
    let mut ledger = Ledger::default();
    for (seed, check_decide, committed) in [("first", "commit", 3 * OPEN), ("second", "rollback", 5 * OPEN)] {
        let options = [&COMMON[..], &[("seed", seed), ("check-decide", check_decide)]].concat();
        let producer = stage.start("transaction", TOPIC, &options);
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

/// The producer does not know even when it is asked: it is asked three times, and the message is put aside.
fn given_up(language: Language) {
    let cluster = cluster();
    let stage = Stage::through_namesrv(&cluster, language);
    let mut consumer = stage.start("consume-push", TOPIC, &[("group", GROUP)]);
    let options = [("count", "9"), ("decide", "commit,unknown,unknown"), ("check-decide", "unknown")];
    let mut producer = stage.start("transaction", TOPIC, &options);
    producer.wait_count("checked", 3 * 6, DEADLINE);
    consumer.wait_count("message", 3, DEADLINE);
    let put_aside = "TRANS_CHECK_MAX_TIME_TOPIC";
    until("what nobody decides is put aside", DEADLINE, || {
        let topics = cluster.karman(&["-o", "json", "topic", "list"]);
        let topics: Vec<serde_json::Value> = serde_json::from_str(&topics).unwrap();
        let rows = topics.iter().filter(|row| row["topic"] == put_aside);
        let messages: u64 = rows.map(|row| row["messages"].as_u64().unwrap()).sum();
        (messages == 6).then_some(())
    });
    let events = producer.stop();
    assert_eq!(named(&events, "checked").count(), 18, "three times each");
    let mut ledger = Ledger::default();
    ledger.add(events);
    ledger.add(consumer.stop());
    ledger.assert_commits_once();
}

#[test]
fn transactions_of_java() {
    transactions(Language::Java);
}

#[test]
fn transactions_of_python() {
    transactions(Language::Python);
}

#[test]
fn transactions_of_go() {
    transactions(Language::Go);
}

#[test]
fn transactions_of_node() {
    transactions(Language::Node);
}

/// Its client is asked by its access point alone, which is no broker here: it leaves nothing open.
#[test]
fn transactions_of_rust() {
    let cluster = cluster();
    let stage = Stage::through_namesrv(&cluster, Language::Rust);
    let mut consumer = stage.start("consume-simple", TOPIC, &[("group", GROUP), MANY_THREADS]);
    let options = [("count", "80"), ("decide", "commit,rollback"), ("linger", "0")];
    let mut ledger = Ledger::default();
    ledger.add(stage.run("transaction", TOPIC, &options));
    consumer.wait_count("message", COUNT / 2, DEADLINE);
    ledger.add(consumer.stop());
    assert_eq!(ledger.sent.len(), COUNT);
    ledger.assert_commits_once();
}

#[test]
fn java_is_not_asked_for_ever() {
    given_up(Language::Java);
}

#[test]
fn python_is_not_asked_for_ever() {
    given_up(Language::Python);
}
