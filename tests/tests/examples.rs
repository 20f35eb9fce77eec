//! The programs of `examples/` that use the official clients: what they send comes back and is done with.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use karman_tests::{Cluster, Language, until};

const DEADLINE: Duration = Duration::from_secs(10);

fn ships(language: Language) {
    let cluster = Cluster::builder().dev().start();
    cluster.create_topic("orders");
    let printed = language.example(&cluster.brokers[0].endpoint(), cluster.path());
    for number in 1..=5 {
        let line = format!("shipping order {number}, attempt 1");
        assert!(printed.contains(&line), "{line:?} is not in:\n{printed}");
    }
    assert!(printed.ends_with("all orders are shipped"), "{printed}");
    until("all is acknowledged", DEADLINE, || {
        let lag = cluster.karman(&["-o", "json", "group", "lag", "shipping"]);
        let topics: Vec<serde_json::Value> = serde_json::from_str(&lag).unwrap();
        let left = topics.iter().filter(|topic| topic["ready"] != 0 || topic["inflight"] != 0);
        (!topics.is_empty() && left.count() == 0).then_some(())
    });
}

#[test]
fn java_ships_all_orders() {
    ships(Language::Java);
}

#[test]
fn go_ships_all_orders() {
    ships(Language::Go);
}

#[test]
fn python_ships_all_orders() {
    ships(Language::Python);
}

#[test]
fn node_ships_all_orders() {
    ships(Language::Node);
}
