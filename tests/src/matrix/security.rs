//! A cluster that asks every caller who it is, and clients that sign their calls: with the right secret all goes as ever, with
//! another, or without the right, nothing does.

use std::time::Duration;

use crate::cluster::Node;
use crate::stage::{ids, named};
use crate::{Cluster, Driver, Event, Raw, Stage, until};

/// Start of a JVM, and the tries of a client.
const REFUSED_BY: Duration = Duration::from_secs(90);
const KNOWN_BY: Duration = Duration::from_secs(10);
const SECRET: &str = "secret of the shop";

/// The user `shop` may use what begins with `acl-`.
pub(super) fn cluster() -> Cluster {
    let cluster = Cluster::builder().namesrvs(2).brokers(2).secured().start();
    let file = cluster.path().join("shop");
    std::fs::write(&file, format!("{SECRET}\n")).unwrap();
    cluster.karman(&["user", "create", "shop", "--secret-file", file.to_str().unwrap()]);
    cluster.karman(&["acl", "create", "shop", "--resource", "Topic:acl-*", "--actions", "Pub,Sub"]);
    cluster.karman(&["acl", "create", "shop", "--resource", "Group:acl-*", "--actions", "Sub"]);
    let nodes = || cluster.namesrvs.iter().chain(&cluster.brokers);
    until("every node knows the user", KNOWN_BY, || {
        let is_known =
            |node: &Node| !Raw::connect(&node.endpoint()).signed_by("shop", SECRET).is_refused("acl-none");
        nodes().all(is_known).then_some(())
    });
    cluster
}

pub(super) fn signed(stage: &Stage<'_>, column: &str) {
    let (open, closed) = (format!("acl-{column}"), format!("closed-{column}"));
    stage.cluster.create_topic(&open);
    stage.cluster.create_topic(&closed);
    let shop = [("access-key", "shop"), ("secret-key", SECRET), ("count", "20")];
    let produced = stage.produce(&open, &shop);
    assert_eq!(named(&produced, "sent").count(), 20);
    let consumed = stage.run("consume-simple", &open, &[&shop[..], &[("group", &open)]].concat());
    assert_eq!(ids(&consumed, "acked"), ids(&produced, "sent"));
    // Why it is refused stands in the log of the client.
    for (secret_key, topic) in [("another secret", &open), (SECRET, &closed)] {
        let options = [("access-key", "shop"), ("secret-key", secret_key), ("count", "1")];
        let driver = Driver::start(&stage.plan("produce", topic, &options), stage.cluster.path());
        until("the client is refused", REFUSED_BY, || {
            let is_refused = |event: &Event| event.event == "fatal" || event.event == "failed";
            driver.events().iter().any(is_refused).then_some(())
        });
        assert_eq!(driver.count("sent"), 0, "{secret_key} on {topic}");
    }
}
