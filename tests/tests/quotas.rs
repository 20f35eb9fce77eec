//! Quotas on real nodes: of topics, of users, of connections. What is refused says whose quota it was and what to do, and
//! nobody else is touched.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use karman_remoting::proto::v2::{self, Code};
use karman_tests::attack::Attacker;
use karman_tests::raw::{is_ok, message, raw};
use karman_tests::stage::counted;
use karman_tests::{Cluster, Raw, until};

/// A bucket of a second is full again by then.
const REFILLED: Duration = Duration::from_secs(5);
const SECRET: &str = "secret of the shop";

/// Sends one by one until one is refused, but no more than `max`: how many went through, and the refusal.
fn until_refused(raw: &Raw, topic: &str, max: usize) -> (usize, v2::Status) {
    for sent in 0..max {
        let status = raw.send(&[message(topic, &format!("{sent}"))]).status.unwrap();
        if status.code() != Code::Ok {
            return (sent, status);
        }
    }
    panic!("{max} sends to {topic:?} went through")
}

fn refused(status: &v2::Status, named: &[&str]) {
    assert_eq!(status.code(), Code::TooManyRequests, "{status:?}");
    for named in named {
        assert!(status.message.contains(named), "it must name {named:?}: {}", status.message);
    }
}

#[test]
fn a_topic_takes_no_more_than_its_quota_on_each_broker_and_the_rest_is_untouched() {
    let mut cluster = Cluster::builder().namesrvs(1).brokers(1).start();
    cluster.karman(&[
        "topic",
        "create",
        "clicks",
        "--max-messages-per-second",
        "20",
        "--dedup-window-minutes",
        "0",
    ]);
    cluster.create_topic("orders");
    let broker = raw(&cluster);
    let namesrv = Raw::connect(&cluster.namesrvs[0].endpoint());
    for (door, least) in [(&broker, 20), (&namesrv, 0)] {
        let began = Instant::now();
        let (sent, status) = until_refused(door, "clicks", 1000);
        let allowed = 20 + 20 * (began.elapsed().as_secs() as usize + 1);
        assert!((least..=allowed).contains(&sent), "{sent} in {:?}", began.elapsed());
        let remedy = "karman topic update clicks";
        refused(
            &status,
            &["topic \"clicks\" on broker \"broker-a\"", "20 messages per second", remedy, " ms"],
        );
        // The one beside it is not asked.
        is_ok(door.send(&[message("orders", "1")]).status);
        until("something came back", REFILLED, || {
            (door.send(&[message("clicks", "again")]).status.unwrap().code() == Code::Ok).then_some(())
        });
    }
    assert!(
        counted(&cluster, "karman_quota_refusals_total{of=\"topic\",name=\"clicks\",quota=\"messages\"}")
            >= 2
    );
    // What is in the log holds after a crash too.
    cluster.brokers[0].kill();
    cluster.brokers[0].start();
    let (_, status) = until_refused(&raw(&cluster), "clicks", 1000);
    refused(&status, &["20 messages per second"]);
    cluster.karman(&[
        "topic",
        "update",
        "clicks",
        "--max-messages-per-second",
        "0",
        "--max-bytes-per-second",
        "100",
    ]);
    let shown = cluster.karman(&["topic", "show", "clicks"]);
    assert!(shown.contains("takes at most 100 bytes/s on each broker"), "{shown}");
    let shown: serde_json::Value =
        serde_json::from_str(&cluster.karman(&["-o", "json", "topic", "show", "clicks"])).unwrap();
    assert_eq!(
        (&shown["max_messages_per_second"], &shown["max_bytes_per_second"]),
        (&None::<u64>.into(), &100.into())
    );
    let broker = raw(&cluster);
    // One that is larger than the whole quota passes; what it took is waited for.
    let mut large = message("clicks", "large");
    large.body = vec![b'x'; 2000].into();
    let began = Instant::now();
    until("the bucket is not empty", REFILLED, || {
        (broker.send(std::slice::from_ref(&large)).status.unwrap().code() == Code::Ok).then_some(())
    });
    assert!(began.elapsed() < REFILLED);
    refused(&broker.send(&[large]).status.unwrap(), &["100 bytes per second", "send again in 19"]);
    cluster.karman(&["topic", "update", "clicks", "--max-bytes-per-second", "0"]);
    for n in 0..100 {
        is_ok(broker.send(&[message("clicks", &format!("free-{n}"))]).status);
    }
}

fn secured() -> Cluster {
    let cluster = Cluster::builder().namesrvs(1).brokers(1).secured().start();
    cluster.create_topic("orders");
    let file = cluster.path().join("secret");
    std::fs::write(&file, SECRET).unwrap();
    let file = file.to_str().unwrap();
    for user in ["shop", "other"] {
        cluster.karman(&["user", "create", user, "--secret-file", file]);
        cluster.karman(&["acl", "create", user, "--resource", "*", "--actions", "All"]);
    }
    cluster
}

fn of(cluster: &Cluster, user: &str) -> Raw {
    Raw::connect(&cluster.brokers[0].endpoint()).signed_by(user, SECRET)
}

#[test]
fn a_user_sends_no_more_than_its_quota_and_others_are_untouched() {
    let cluster = secured();
    cluster.karman(&["user", "update", "shop", "--max-messages-per-second", "20"]);
    let (shop, other) = (of(&cluster, "shop"), of(&cluster, "other"));
    until("the quota is known", REFILLED, || {
        let refused = |n: &u32| shop.send(&[message("orders", &n.to_string())]).status.unwrap();
        (0..100).map(|n| refused(&n)).find(|status| status.code() == Code::TooManyRequests)
    });
    let (sent, status) = until_refused(&shop, "orders", 1000);
    assert!(sent <= 20 * 5, "{sent}");
    refused(&status, &["user \"shop\"", "20 messages per second", "karman user update shop"]);
    for n in 0..50 {
        is_ok(other.send(&[message("orders", &format!("other-{n}"))]).status);
    }
    // A batch counts as what it is; through another node it counts there.
    let batch: Vec<_> = (0..32).map(|n| message("orders", &format!("batch-{n}"))).collect();
    let elsewhere = Raw::connect(&cluster.namesrvs[0].endpoint()).signed_by("shop", SECRET);
    is_ok(elsewhere.send(&batch).status);
    refused(&elsewhere.send(&batch).status.unwrap(), &["user \"shop\""]);
    let of_shop = "karman_quota_refusals_total{of=\"user\",name=\"shop\",quota=\"messages\"}";
    assert!(counted(&cluster, of_shop) > 0);
    let shown = cluster.karman(&["user", "show", "shop"]);
    assert!(shown.contains("sends at most 20 messages/s through each node"), "{shown}");
}

#[test]
fn a_user_has_no_more_connections_than_its_quota() {
    let cluster = secured();
    cluster.karman(&["user", "update", "shop", "--max-connections", "2"]);
    let shown: serde_json::Value =
        serde_json::from_str(&cluster.karman(&["-o", "json", "user", "show", "shop"])).unwrap();
    assert_eq!(shown["max_connections"], 2);
    let known = || of(&cluster, "shop").send(&[message("orders", "1")]).status.unwrap();
    let [one, two] = [of(&cluster, "shop"), of(&cluster, "shop")];
    for open in [&one, &two] {
        is_ok(open.send(&[message("orders", "1")]).status);
    }
    let status = until("the quota is known", REFILLED, || {
        Some(known()).filter(|status| status.code() == Code::TooManyRequests)
    });
    refused(&status, &["user \"shop\" has 2 connections", "karman user update shop --max-connections"]);
    // Those it has go on, and so do others.
    is_ok(one.send(&[message("orders", "2")]).status);
    is_ok(of(&cluster, "other").send(&[message("orders", "3")]).status);
    drop(two);
    until("a place is free again", REFILLED, || (known().code() == Code::Ok).then_some(()));
}

#[test]
fn one_address_does_not_take_all_places() {
    let cluster = Cluster::builder()
        .brokers(1)
        .set("maxConnections", "40")
        .set("maxConnectionsPerAddress", "30")
        .start();
    let address = cluster.brokers[0].endpoint();
    let greedy: Vec<Attacker> = (0..60).map(|_| Attacker::from("127.0.0.2", &address)).collect();
    let open = until("the rest is closed", REFILLED, || {
        let open = greedy.iter().filter(|one| !one.is_closed()).count();
        (open <= 30).then_some(open)
    });
    assert_eq!(open, 30);
    assert_eq!(counted(&cluster, "karman_connections_refused_total{limit=\"address\"}"), 30);
    cluster.create_topic("orders");
    is_ok(raw(&cluster).send(&[message("orders", "1")]).status);
    drop(greedy);
}
