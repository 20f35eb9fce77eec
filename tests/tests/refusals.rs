//! Brokers that may not join a cluster: both sides say why, and operators see it without a log.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use karman_tests::failover::wait_in_sync;
use karman_tests::{CLUSTER_SECRET, Cluster, Node, until};

const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `cluster show` has a refusal by the namesrv with these words, and shows the same as a table and beside
/// `cluster list`.
fn shown(cluster: &Cluster, words: &str) -> serde_json::Value {
    let show = ["cluster", "show", "--cluster-secret", CLUSTER_SECRET];
    let refused = until(&format!("{words:?} is shown"), DEADLINE, || {
        let shown = cluster.karman(&[&["-o", "json"], &show[..]].concat());
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let refused = shown["refused"].as_array().unwrap().iter();
        let by_namesrv = |one: &&serde_json::Value| one["by"].as_str().unwrap().starts_with("namesrv ");
        let is_it = |one: &&serde_json::Value| one["why"].as_str().unwrap().contains(words);
        refused.filter(by_namesrv).find(is_it).cloned()
    });
    let by = refused["by"].as_str().unwrap();
    until("the table shows it", DEADLINE, || {
        let table = cluster.karman(&show).replace('\n', " ");
        table.contains(&format!("Refused by {by}: 127.0.0.1: ")).then_some(())
    });
    refused
}

fn says(node: &Node, words: &str) {
    let what = format!("{} says {words:?}", node.name());
    until(&what, DEADLINE, || node.log().contains(words).then_some(()));
}

#[test]
fn a_broker_with_another_secret_or_a_taken_name_is_shown_by_the_namesrv() {
    let mut cluster = Cluster::builder().namesrvs(1).controlled(2).secured().start();
    wait_in_sync(&cluster, 2);

    let mut stranger = cluster.broker_set_member("stranger", &["clusterSecret=another-secret".to_owned()]);
    stranger.start();
    let refused = shown(&cluster, "secret");
    assert_eq!(refused["who"], "127.0.0.1", "{refused}");
    says(&stranger, "registration ended");
    let said = refused["why"].as_str().unwrap();
    says(&stranger, said);
    says(&cluster.namesrvs[0], said);
    assert!(!said.contains("another-secret") && !said.contains(CLUSTER_SECRET), "{said}");
    stranger.stop();

    // It says that it is the master of the set, and nobody elected it.
    let mut twin = cluster.broker_set_member("twin", &[]);
    twin.start();
    shown(&cluster, "is the name used twice?");
    twin.stop();
    // What is not repeated is not shown for long.
    until("nobody is refused", DEADLINE, || {
        let list = cluster.karman(&["-o", "json", "cluster", "show", "--cluster-secret", CLUSTER_SECRET]);
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        list["refused"].as_array().unwrap().is_empty().then_some(())
    });
    wait_in_sync(&cluster, 2);
}
