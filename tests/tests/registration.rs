//! Brokers that may not register with a namesrv: the reason is told on both sides, and shown to whoever asks the cluster.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use karman_tests::cluster::{CLUSTER_SECRET, Node};
use karman_tests::{Cluster, until};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(20);
/// Less than a refusal is remembered that is not repeated.
const AT_ONCE: Duration = Duration::from_secs(6);

fn cluster(cluster: &Cluster, arguments: &[&str]) -> String {
    cluster.karman_at(&cluster.namesrvs[0], &[&["--cluster-secret", CLUSTER_SECRET], arguments].concat())
}

fn json(of: &Cluster, command: &str) -> Value {
    serde_json::from_str(&cluster(of, &["-o", "json", "cluster", command])).unwrap()
}

/// What the namesrv says to `who` in `refused`.
fn why(refused: &Value, who: &str) -> Option<String> {
    let mut refused = refused.as_array().unwrap().iter();
    let own = refused.find(|refused| refused["by"] == "the namesrv" && refused["who"] == who)?;
    Some(own["why"].as_str().unwrap().to_owned())
}

fn of_set(set: &str, node: &Node) -> String {
    format!("broker 0 of set {set} at {}", node.ready("internal"))
}

#[test]
fn a_broker_that_may_not_register_is_shown_with_the_reason_until_it_may() {
    let mut own = Cluster::builder().namesrvs(1).controlled(0).brokers(1).secured().start();
    let start = |directory: &str, settings: &[&str]| {
        let settings: Vec<_> = settings.iter().map(|&setting| setting.to_owned()).collect();
        let mut node = own.broker_set_member(directory, &settings);
        node.start();
        node
    };
    let mut stranger = start("stranger", &["brokerName=broker-b", "clusterSecret=guess"]);
    let mut elsewhere = start("elsewhere", &["brokerName=broker-c", "brokerClusterName=other"]);
    let mut twice = start("twice", &[]);
    let first = own.brokers[0].ready("internal").to_owned();
    let expected = [
        (&stranger, "a broker at 127.0.0.1".to_owned(), "does not carry this cluster's secret".to_owned()),
        (&elsewhere, of_set("broker-c", &elsewhere), "brokerClusterName is \"other\"".to_owned()),
        (
            &twice,
            of_set("broker-a", &twice),
            format!("brokerId 0 of broker \"broker-a\" is the broker at {first}"),
        ),
    ];
    for (node, who, reason) in &expected {
        let shown = until(&format!("{who} is shown"), DEADLINE, || why(&json(&own, "show")["refused"], who));
        assert!(shown.contains(reason.as_str()), "{shown}");
        let list = json(&own, "list");
        assert_eq!(list.as_array().unwrap().len(), 1, "it has no place in the routes: {list:#}");
        assert_eq!(list[0]["internal_address"], first);
        assert_eq!(why(&list[0]["refused"], who), Some(shown.clone()));
        // Lines break where they are full.
        let table = cluster(&own, &["cluster", "show"]);
        let table = table.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(table.contains(&format!("Refused by the namesrv: {who}: {shown}")), "{table}");
        // As JSON has it.
        let reason = reason.replace('"', "\\\"");
        until("it says so itself", DEADLINE, || node.log().contains(&reason).then_some(()));
        let is_told = |line: &str| line.contains("\"a broker is refused\"") && line.contains(who.as_str());
        assert!(own.namesrvs[0].log().lines().any(is_told), "{}", own.namesrvs[0].log());
    }
    let who = of_set("broker-a", &twice);
    own.brokers[0].stop();
    until("its place is free", AT_ONCE, || why(&json(&own, "show")["refused"], &who).is_none().then_some(()));
    assert_eq!(json(&own, "list")[0]["internal_address"], twice.ready("internal"));
    for node in [&mut stranger, &mut elsewhere] {
        node.stop();
    }
    until("who does not come back is forgotten", DEADLINE, || {
        json(&own, "show")["refused"].as_array().unwrap().is_empty().then_some(())
    });
    twice.stop();
}
