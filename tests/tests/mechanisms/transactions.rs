//! What no producer decides, however often it is asked.

use karman_tests::stage::{DEADLINE, create_topic, named, two_brokers_with};
use karman_tests::{Language, Ledger, Stage, until};

const TOPIC: &str = "payments";

/// The producer does not know even when it is asked: it is asked three times, and the message is put aside.
fn given_up(language: Language) {
    let cluster = two_brokers_with(&[
        ("transactionTimeOut", "1000"),
        ("transactionCheckInterval", "1000"),
        ("transactionCheckMax", "3"),
    ]);
    create_topic(&cluster, TOPIC, "transaction");
    let stage = Stage::through_namesrv(&cluster, language);
    let mut consumer = stage.start("consume-push", TOPIC, &[("group", "booking")]);
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
fn java_is_not_asked_for_ever() {
    given_up(Language::Java);
}

#[test]
fn python_is_not_asked_for_ever() {
    given_up(Language::Python);
}
