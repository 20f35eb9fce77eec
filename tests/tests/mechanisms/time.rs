//! Delayed messages and recalls with the official clients on two brokers.

use karman_tests::stage::{DEADLINE, MANY_THREADS, create_topic, named, two_brokers};
use karman_tests::{Cluster, Language, Ledger, Stage};

const TOPIC: &str = "later";
const GROUP: &str = "billing";
/// Brokers promise less; here a client and its machine are in between.
const LATE_MS: u64 = 1000;
const MESSAGE_NOT_FOUND: i32 = 40401;

fn cluster() -> Cluster {
    let cluster = two_brokers();
    create_topic(&cluster, TOPIC, "delay");
    cluster
}

fn consumer_of(language: Language) -> &'static str {
    if language == Language::Rust { "consume-simple" } else { "consume-push" }
}

fn delayed(language: Language) {
    let cluster = cluster();
    let stage = Stage::through_namesrv(&cluster, language);
    let mut consumer = stage.start(consumer_of(language), TOPIC, &[("group", GROUP), MANY_THREADS]);
    let options = [("count", "60"), ("delay", "1500"), ("delay-spread", "2000"), ("seed", "later")];
    let mut ledger = Ledger::default();
    ledger.add(stage.produce(TOPIC, &options));
    consumer.wait_count("message", 60, DEADLINE);
    ledger.add(consumer.stop());
    ledger.assert_exactly_once();
    let late = ledger.assert_none_early();
    assert_eq!(late.len(), 60);
    eprintln!("{language:?}: {} ms late in the middle, {} ms at most", late[30], late[59]);
    assert!(late[30] <= LATE_MS, "how late, ms: {late:?}");
}

fn recalled(language: Language) {
    let cluster = cluster();
    let stage = Stage::through_namesrv(&cluster, language);
    let mut consumer = stage.start(consumer_of(language), TOPIC, &[("group", GROUP), MANY_THREADS]);
    let options = [("count", "20"), ("delay", "8000"), ("recall-twice", "1"), ("seed", "back")];
    let taken_back = stage.run("recall", TOPIC, &options);
    let outcomes: Vec<_> = named(&taken_back, "recalled").map(|event| event.outcome.as_deref()).collect();
    assert_eq!(outcomes, [Some("accepted"); 40], "once and once more");
    // What is due after them says that their time has passed.
    let mut ledger = Ledger::default();
    ledger.add(stage.produce(TOPIC, &[("count", "20"), ("delay", "8000"), ("seed", "later")]));
    // This one is gone before it is recalled.
    let options = [("count", "2"), ("delay", "2000"), ("recall-wait", "4000"), ("seed", "gone")];
    let gone = stage.run("recall", TOPIC, &options);
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

#[test]
fn java_gets_delayed_messages_in_time() {
    delayed(Language::Java);
}

#[test]
fn python_gets_delayed_messages_in_time() {
    delayed(Language::Python);
}

#[test]
fn go_gets_delayed_messages_in_time() {
    delayed(Language::Go);
}

#[test]
fn node_gets_delayed_messages_in_time() {
    delayed(Language::Node);
}

#[test]
fn rust_gets_delayed_messages_in_time() {
    delayed(Language::Rust);
}

#[test]
fn what_java_recalls_never_comes() {
    recalled(Language::Java);
}

#[test]
fn what_python_recalls_never_comes() {
    recalled(Language::Python);
}

#[test]
fn what_go_recalls_never_comes() {
    recalled(Language::Go);
}

#[test]
fn what_node_recalls_never_comes() {
    recalled(Language::Node);
}
