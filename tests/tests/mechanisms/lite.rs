//! What consumers of lite topics cost while nothing comes.

use std::time::Duration;

use karman_tests::cluster::Node;
use karman_tests::stage::{DEADLINE, create_topic, two_brokers};
use karman_tests::{Cluster, Language, Stage, let_run};

const NAME: &str = "sessions";

#[test]
fn waiting_for_lite_topics_costs_nothing() {
    let cluster = two_brokers();
    create_topic(&cluster, NAME, "lite");
    cluster.karman(&["group", "create", NAME, "--lite-topic", NAME]);
    let stage = Stage::through_namesrv(&cluster, Language::Java);
    let options = [("group", NAME), ("lite-topics", "l0,l1,l2,l3")];
    let mut consumer = stage.start("consume-lite", NAME, &options);
    stage.produce(NAME, &[("count", "40"), ("lite-count", "4"), ("seed", "lite")]);
    consumer.wait_count("consumed", 40, DEADLINE);
    assert_waiting_costs_nothing(&cluster);
    consumer.stop();
}

/// The consumer has all there is, and its calls wait for more.
fn assert_waiting_costs_nothing(cluster: &Cluster) {
    const WHILE: Duration = Duration::from_secs(2);
    let taken = || cluster.brokers.iter().map(Node::processor_time).sum::<Duration>();
    let before = taken();
    let_run(WHILE);
    let cost = taken() - before;
    assert!(cost < WHILE / 5, "{cost:?} of processor time while nothing happened");
}
