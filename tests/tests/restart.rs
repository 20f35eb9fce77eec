//! Servers that stop in order and start again, and the command line around it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::Duration;

use karman_remoting::proto::v2::Code;
use karman_tests::cluster::{Node, program};
use karman_tests::driver::Plan;
use karman_tests::raw::receive_request;
use karman_tests::{Cluster, Driver, Event, Language, Ledger, Raw};

const TOPIC: &str = "kept";
const DEADLINE: Duration = Duration::from_secs(60);

fn run(cluster: &Cluster, scenario: &str, count: &str, group: &str) -> Vec<Event> {
    let endpoint = cluster.brokers[0].endpoint();
    let options = [("count", count), ("group", group), ("threads", "1"), ("batch", "1")];
    let plan =
        Plan { language: Language::Python, scenario, endpoint: &endpoint, topic: TOPIC, options: &options };
    Driver::run(&plan, cluster.path(), DEADLINE)
}

fn keeps_everything(cluster: &mut Cluster, end: fn(&mut Node)) {
    cluster.create_topic(TOPIC);
    let sent = run(cluster, "produce", "100", "unused");
    let mut before = Ledger::default();
    before.add(run(cluster, "consume-simple", "40", "half"));
    assert_eq!(before.acked.len(), 40);
    let topics = cluster.karman(&["-o", "json", "topic", "list"]);

    end(&mut cluster.brokers[0]);
    cluster.brokers[0].start();

    cluster.wait_route(TOPIC);
    assert_eq!(cluster.karman(&["-o", "json", "topic", "list"]), topics, "topics and their messages");
    let mut after = Ledger::default();
    after.add(sent.clone());
    after.add(run(cluster, "consume-simple", "60", "half"));
    assert_eq!(after.acked.len(), 60);
    let again: Vec<_> = after.acked.keys().filter(|id| before.acked.contains_key(*id)).collect();
    assert!(again.is_empty(), "acknowledged before the restart and delivered again: {again:?}");

    let mut all = Ledger::default();
    all.add(sent);
    all.add(run(cluster, "consume-simple", "100", "new"));
    all.assert_exactly_once();

    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let broker = raw.route_brokers(TOPIC).remove(0);
    let (status, messages) = raw.receive(receive_request(TOPIC, "half", &broker));
    assert_eq!((status.code, messages.len()), (Code::MessageNotFound as i32, 0), "the group is at the end");
}

#[test]
fn karman_dev_stopped_in_order_keeps_everything() {
    keeps_everything(&mut Cluster::builder().dev().start(), Node::stop);
}

#[test]
fn karman_dev_killed_keeps_everything() {
    keeps_everything(&mut Cluster::builder().dev().start(), Node::kill);
}

#[test]
fn a_broker_stopped_in_order_keeps_everything() {
    keeps_everything(&mut Cluster::builder().namesrvs(1).brokers(1).start(), Node::stop);
}

#[test]
fn karman_dev_takes_any_free_port_and_makes_the_topics_it_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:0";
    let arguments = ["dev", "--grpc", any, "--namesrv", any, "--internal", any, "--metrics", any];
    let topic = ["--topic", "orders", "--topic", "steps:normal:2"];
    let mut node = Node::start_with("karman", &[&arguments[..], &topic[..]].concat(), directory.path());
    for door in ["endpoint", "namesrv"] {
        let raw = Raw::connect(node.ready(door));
        assert_eq!(raw.route_brokers("orders").len(), 8, "{door}");
        assert_eq!(raw.route_brokers("steps").len(), 2, "{door}");
    }
    assert!(directory.path().join("karman-data").is_dir(), "the default of --data");
    node.stop();
}

#[test]
fn a_second_broker_on_the_same_directory_is_refused() {
    let cluster = Cluster::builder().dev().start();
    let any = "127.0.0.1:0";
    let flags =
        ["dev", "--data", "data", "--grpc", any, "--namesrv", any, "--internal", any, "--metrics", any];
    let second = Command::new(program("karman")).args(flags).current_dir(cluster.path()).output().unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("data"), "the text names the directory: {text}");
    assert!(second.stdout.is_empty(), "it was never ready: {}", String::from_utf8_lossy(&second.stdout));
}

#[test]
fn a_wrong_configuration_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let wrong = [
        ("karman-broker", "flushDiskType=MAYBE", ["flushDiskType", "MAYBE", "SYNC_FLUSH"]),
        ("karman-broker", "mappedFileSizeCommitLog=5", ["mappedFileSizeCommitLog", "5", "64 MiB"]),
        ("karman-broker", "flushDiskTyp=SYNC_FLUSH", ["flushDiskTyp", "flushDiskType", "unknown"]),
        ("karman-broker", "grpcListenAddress=nowhere", ["grpcListenAddress", "nowhere", "PORT"]),
        ("karman-namesrv", "grpcListenAddress=nowhere", ["grpcListenAddress", "nowhere", "PORT"]),
    ];
    for (name, setting, named) in wrong {
        let output = Command::new(program(name))
            .args(["--set", setting])
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(!output.status.success(), "{name} started with {setting}");
        let text = String::from_utf8_lossy(&output.stderr);
        for word in named {
            assert!(text.contains(word), "{name} --set {setting}: the text must name {word:?}: {text}");
        }
    }
}
