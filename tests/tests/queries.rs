//! Looking for stored messages and offsets, and verifying stores, through any node of a cluster.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

use karman_remoting::proto::v2::{self, Code, QueryOffsetPolicy};
use karman_tests::cluster::program;
use karman_tests::raw::{message, resource};
use karman_tests::{Cluster, Raw};
use serde_json::Value;

const TOPIC: &str = "asked";

fn karman(endpoint: &str, arguments: &[&str]) -> Output {
    Command::new(program("karman")).args(["-e", endpoint, "-o", "json"]).args(arguments).output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn query(
    raw: &Raw,
    broker: &str,
    id: i32,
    policy: impl Into<i32>,
    millis: Option<i64>,
) -> v2::QueryOffsetResponse {
    raw.query_offset(v2::QueryOffsetRequest {
        message_queue: Some(v2::MessageQueue {
            topic: resource(TOPIC),
            id,
            broker: Some(v2::Broker { name: broker.to_owned(), ..Default::default() }),
            ..Default::default()
        }),
        query_offset_policy: policy.into(),
        timestamp: millis.map(|millis| prost_types::Timestamp {
            seconds: millis / 1000,
            nanos: i32::try_from(millis % 1000).unwrap() * 1_000_000,
        }),
    })
}

#[test]
fn what_several_brokers_hold_is_found_through_every_node() {
    let cluster = Cluster::builder().namesrvs(1).brokers(2).start();
    cluster.create_topic(TOPIC);
    // To each broker directly: it keeps what it is given.
    for number in 0..20 {
        let raw = Raw::connect(&cluster.brokers[number % 2].endpoint());
        let mut sent = message(TOPIC, &format!("id-{number}"));
        sent.system_properties.as_mut().unwrap().keys = vec!["shared".to_owned(), format!("key-{number}")];
        assert_eq!(raw.send(&[sent]).status.unwrap().code, Code::Ok as i32);
    }
    let nodes = cluster.namesrvs.iter().chain(&cluster.brokers);
    for endpoint in nodes.map(karman_tests::cluster::Node::endpoint) {
        let all = lines(&karman(&endpoint, &["message", "query", TOPIC, "--key", "shared"]));
        assert_eq!(all.len(), 20);
        let times: Vec<u64> = all.iter().map(|one| one["store_ms"].as_u64().unwrap()).collect();
        assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
        let few = lines(&karman(&endpoint, &["message", "query", TOPIC, "--key", "shared", "--max", "3"]));
        assert_eq!(few[..], all[..3]);
        for number in [0, 1, 19] {
            let found =
                lines(&karman(&endpoint, &["message", "query", TOPIC, "--id", &format!("id-{number}")]));
            assert_eq!(found.len(), 1);
            assert_eq!(found[0]["keys"][1], format!("key-{number}"));
            let of = ["broker-a", "broker-b"][number % 2];
            assert_eq!(found[0]["broker"], of);
            let other = ["broker-b", "broker-a"][number % 2];
            let id = format!("id-{number}");
            let none = karman(&endpoint, &["message", "query", TOPIC, "--id", &id, "--broker", other]);
            assert_eq!(none.status.code(), Some(3));
        }
        let reports = lines(&karman(&endpoint, &["store", "verify", "--live"])).remove(0);
        let names: Vec<_> = reports.as_array().unwrap().iter().map(|row| &row["broker"]).collect();
        assert_eq!(names, ["broker-a", "broker-b"], "{reports}");
        assert!(reports.as_array().unwrap().iter().all(|row| row["sound"] == true), "{reports}");
        let one = lines(&karman(&endpoint, &["store", "verify", "--live", "--broker", "broker-b"])).remove(0);
        assert_eq!((one.as_array().unwrap().len(), &one[0]["broker"]), (1, &"broker-b".into()));
    }
}

#[test]
fn the_offsets_of_a_queue_are_answered_on_every_node() {
    let cluster = Cluster::builder().namesrvs(1).brokers(2).start();
    cluster.create_topic(TOPIC);
    let owner = Raw::connect(&cluster.brokers[1].endpoint());
    // Two for each of the four queues, and one more.
    for number in 0..9 {
        owner.send(&[message(TOPIC, &format!("id-{number}"))]);
    }
    let found = lines(&karman(&cluster.brokers[1].endpoint(), &["message", "query", TOPIC, "--id", "id-8"]))
        .remove(0);
    let stored = found["store_ms"].as_i64().unwrap();
    let queue = i32::try_from(found["queue"].as_i64().unwrap()).unwrap();
    let nodes = cluster.namesrvs.iter().chain(&cluster.brokers);
    for endpoint in nodes.map(karman_tests::cluster::Node::endpoint) {
        let raw = Raw::connect(&endpoint);
        let ask = |policy: QueryOffsetPolicy, millis| {
            let answer = query(&raw, "broker-b", queue, policy, millis);
            assert_eq!(answer.status.unwrap().code, Code::Ok as i32);
            answer.offset
        };
        assert_eq!(ask(QueryOffsetPolicy::Beginning, None), 0);
        assert_eq!(ask(QueryOffsetPolicy::End, None), 3);
        assert_eq!(ask(QueryOffsetPolicy::Timestamp, Some(0)), 0);
        assert!(ask(QueryOffsetPolicy::Timestamp, Some(stored)) <= 2);
        assert_eq!(ask(QueryOffsetPolicy::Timestamp, Some(stored + 1)), 3);
        let unknown = query(&raw, "broker-b", queue, 9, None).status.unwrap();
        assert_eq!(unknown.code, Code::BadRequest as i32);
        assert!(unknown.message.contains("policy 9"), "{}", unknown.message);
        let refused = |broker, id, policy: QueryOffsetPolicy| {
            query(&raw, broker, id, policy, None).status.unwrap().code
        };
        assert_eq!(refused("broker-b", 99, QueryOffsetPolicy::End), Code::BadRequest as i32);
        assert_eq!(refused("broker-b", -1, QueryOffsetPolicy::End), Code::BadRequest as i32);
        assert_eq!(refused("broker-z", 0, QueryOffsetPolicy::End), Code::BadRequest as i32);
        assert_eq!(refused("broker-b", 0, QueryOffsetPolicy::Timestamp), Code::BadRequest as i32);
    }
}
