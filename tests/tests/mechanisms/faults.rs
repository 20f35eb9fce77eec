//! Order, timers and repeated sends with the official clients while brokers are killed or stand still.

use std::collections::HashSet;
use std::time::Duration;

use karman_tests::cluster::Node;
use karman_tests::stage::{DEADLINE, counted, create_topic, deliveries, ids, named, set, two_brokers};
use karman_tests::{Cluster, Driver, Language, Ledger, Stage, let_run, until};

const ORDERED: &str = "ordered";
const LATER: &str = "later";
const GROUP: &str = "shipping";
/// Longer than a client waits for an answer, and shorter than it goes on trying.
const STANDSTILL: Duration = Duration::from_secs(5);

fn wait_delivered(consumers: &[&Driver], sent: &HashSet<String>) {
    until("all that was acknowledged is delivered", DEADLINE, || {
        let seen: HashSet<String> =
            consumers.iter().flat_map(|consumer| ids(&consumer.events(), "message")).collect();
        sent.is_subset(&seen).then_some(())
    });
}

#[test]
fn order_and_timers_survive_kill_9() {
    let mut cluster = two_brokers();
    create_topic(&cluster, ORDERED, "fifo");
    create_topic(&cluster, LATER, "delay");
    let start = |cluster: &Cluster, language, scenario, topic, options: &[(&str, &str)]| {
        Stage::through_namesrv(cluster, language).start(scenario, topic, options)
    };
    let consumer = |language, topic| start(&cluster, language, "consume-push", topic, &[("group", GROUP)]);
    let shippers = [consumer(Language::Java, ORDERED), consumer(Language::Python, ORDERED)];
    let biller = consumer(Language::Python, LATER);
    let python = Stage::through_namesrv(&cluster, Language::Python);
    let far = [("count", "20"), ("delay", "25000")];
    let recalled = python.run("recall", LATER, &[&far[..], &[("seed", "back")]].concat());
    let delayed = python.produce(LATER, &[&far[..], &[("delay-spread", "5000"), ("seed", "later")]].concat());
    let paced = [("group-count", "16"), ("pause", "10"), ("seed", "ordered")];
    let mut producer = start(&cluster, Language::Java, "produce", ORDERED, &paced);
    producer.wait_count("sent", 200, DEADLINE);
    for broker in 0..2 {
        cluster.brokers[broker].kill();
        cluster.brokers[broker].start();
        let sent = producer.count("sent");
        producer.wait_count("sent", sent + 200, DEADLINE);
    }
    let ordered = producer.stop();
    wait_delivered(&[&shippers[0], &shippers[1]], &set(ids(&ordered, "sent")));
    let mut ledger = Ledger::default();
    ledger.add(ordered);
    shippers.into_iter().for_each(|shipper| ledger.add(shipper.stop()));
    ledger.assert_nothing_lost();
    ledger.assert_in_order(&HashSet::new());

    wait_delivered(&[&biller], &set(ids(&delayed, "sent")));
    let mut ledger = Ledger::default();
    ledger.add(delayed);
    ledger.add(biller.stop());
    ledger.assert_nothing_lost();
    ledger.assert_none_early();
    assert_eq!(
        named(&recalled, "recalled").filter(|one| one.outcome.as_deref() == Some("accepted")).count(),
        20
    );
    ledger.add(recalled);
    ledger.assert_recalled_unseen();
}

/// Messages of a message group go to the same broker again, which knows their ids.
fn what_a_client_sends_again_is_stored_once(language: Language) {
    let mut cluster = two_brokers();
    create_topic(&cluster, ORDERED, "fifo");
    let options = [("group-count", "16"), ("pause", "20"), ("threads", "16"), ("seed", "again")];
    let mut producer = Stage::through_namesrv(&cluster, language).start("produce", ORDERED, &options);
    producer.wait_count("sent", 50, DEADLINE);
    cluster.brokers.iter_mut().for_each(Node::pause);
    let_run(STANDSTILL);
    cluster.brokers.iter_mut().for_each(Node::resume);
    let sent = producer.count("sent");
    producer.wait_count("sent", sent + 100, DEADLINE);
    let sent = producer.stop();
    let repeated = counted(&cluster, "karman_sends_repeated_total");
    assert!(repeated > 0, "no message reached its broker twice");
    eprintln!("{language:?}: {repeated} of {} messages came twice", named(&sent, "sent").count());
    let stage = Stage::through_namesrv(&cluster, language);
    let consumer = stage.start("consume-push", ORDERED, &[("group", GROUP)]);
    wait_delivered(&[&consumer], &set(ids(&sent, "sent")));
    for (id, deliveries) in deliveries(&consumer.stop()) {
        assert_eq!(deliveries.len(), 1, "{id}: {deliveries:?}");
    }
}

#[test]
fn what_java_sends_again_is_stored_once() {
    what_a_client_sends_again_is_stored_once(Language::Java);
}

#[test]
fn what_python_sends_again_is_stored_once() {
    what_a_client_sends_again_is_stored_once(Language::Python);
}

#[test]
fn what_go_sends_again_is_stored_once() {
    what_a_client_sends_again_is_stored_once(Language::Go);
}

#[test]
fn what_node_sends_again_is_stored_once() {
    what_a_client_sends_again_is_stored_once(Language::Node);
}
