//! The shop of `examples/` ends by itself and keeps its promise, whatever goes wrong in it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use karman_tests::Cluster;

/// Every mishap has happened, and no order has suffered.
fn keeps_its_promise(cluster: &Cluster) {
    let printed = cluster.example("shop");
    for part in [
        "left without a decision: Commit",
        "left without a decision: Rollback",
        "is paid, its cancellation is recalled",
        "was not paid in time and is cancelled",
        "was done before, attempt 2",
        "cannot be done, attempt 2",
        "dead letters go back to the stock keeper",
        "every order is paid and its stock reduced once, or cancelled and its stock untouched",
    ] {
        assert!(printed.contains(part), "{part:?} is not in:\n{printed}");
    }
}

#[test]
fn the_shop_keeps_its_promise_and_what_a_run_leaves_does_not_disturb_the_next() {
    let cluster = Cluster::builder().dev().start();
    keeps_its_promise(&cluster);
    keeps_its_promise(&cluster);
}

#[test]
fn the_shop_keeps_its_promise_with_two_brokers() {
    keeps_its_promise(&Cluster::builder().namesrvs(1).brokers(2).start());
}
