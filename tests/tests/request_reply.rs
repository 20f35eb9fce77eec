//! The example of `docs/request-reply.md`: every requester gets its own answers, and none where there is none.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use karman_tests::Cluster;

fn answers(cluster: &Cluster) {
    let printed = cluster.example("request_reply");
    for part in ["5 squared is b\"25\"", "no reply within 1s", "every request has its own answer"] {
        assert!(printed.contains(part), "{part:?} is not in:\n{printed}");
    }
}

#[test]
fn requests_are_answered() {
    answers(&Cluster::builder().dev().start());
}

#[test]
fn requests_are_answered_with_two_brokers() {
    answers(&Cluster::builder().namesrvs(1).brokers(2).start());
}
