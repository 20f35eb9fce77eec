//! What `deploy/grafana` asks for is what the nodes show: each name of a metric and of a label in the board's queries and in the
//! alerts is looked up in `/metrics` of a live controller, master and slave.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::time::Duration;

use karman_remoting::proto::v2;
use karman_tests::cluster::Node;
use karman_tests::raw::{is_ok, message, receive_request, resource};
use karman_tests::{Cluster, Raw, until};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);
/// Of PromQL, as far as it is used.
const LANGUAGE: [&str; 13] = [
    "and",
    "by",
    "count",
    "deriv",
    "histogram_quantile",
    "increase",
    "label_values",
    "max",
    "min",
    "on",
    "or",
    "rate",
    "sum",
];
/// Prometheus itself makes them, of every scrape; `namespace` where it finds the nodes through Kubernetes.
const OF_PROMETHEUS: [&str; 4] = ["up", "instance", "job", "namespace"];

/// What is shown: names of samples and of labels.
#[derive(Debug, Default)]
struct Shown {
    samples: BTreeSet<String>,
    /// The names that `# TYPE` gives, without the ends of samples.
    families: BTreeSet<String>,
    labels: BTreeSet<String>,
    lines: Vec<String>,
}

impl Shown {
    fn add(&mut self, text: &str) {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        self.families.extend(types.map(str::to_owned));
        self.lines.extend(text.lines().map(str::to_owned));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (sample, rest) = line.split_at(line.find(['{', ' ']).unwrap());
            self.samples.insert(sample.to_owned());
            let labels = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let labels = labels.into_iter().flat_map(|(labels, _)| labels.split(','));
            self.labels.extend(labels.filter_map(|label| Some(label.split_once('=')?.0.to_owned())));
        }
    }

    /// The value of the one sample that has all these labels.
    fn value(&self, sample: &str, labels: &[(&str, &str)]) -> &str {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let all = self.lines.iter().filter(|line| line.split(['{', ' ']).next() == Some(sample));
        let all: Vec<_> = all.collect();
        let is_it = |line: &&&String| labels.iter().all(|label| line.contains(label.as_str()));
        let mut found = all.iter().filter(is_it);
        let (Some(line), None) = (found.next(), found.next()) else {
            panic!("not one {sample} with {labels:?}: {all:#?}");
        };
        line.rsplit(' ').next().unwrap()
    }

    /// What is asked for and not shown.
    fn unknown(&self, query: &str) -> Vec<String> {
        let known = |name: &String| {
            let word = name.as_str();
            self.samples.contains(name)
                || self.labels.contains(name)
                || LANGUAGE.contains(&word)
                || OF_PROMETHEUS.contains(&word)
        };
        words(query).into_iter().filter(|word| !known(word)).collect()
    }
}

/// Names in a query: neither strings nor numbers, nor durations, which begin with a digit.
fn words(query: &str) -> Vec<String> {
    let outside: String = query.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = outside.split(|c: char| !is_word(c)).filter(|word| !word.is_empty());
    words.filter(|word| !word.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned).collect()
}

fn metrics(node: &Node) -> String {
    let mut connection = TcpStream::connect(node.ready("metrics")).unwrap();
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Of a namesrv with a controller, a master and its slave.
fn shown() -> &'static Shown {
    static SHOWN: OnceLock<Shown> = OnceLock::new();
    SHOWN.get_or_init(of_a_cluster)
}

fn of_a_cluster() -> Shown {
    let cluster = Cluster::builder().namesrvs(1).controlled(2).start();
    let texts = || cluster.namesrvs.iter().chain(&cluster.members).map(metrics).collect::<Vec<_>>();
    until("a slave is in sync", DEADLINE, || {
        let texts = texts();
        let has = |sample| texts.iter().any(|text| text.contains(sample));
        (has("karman_replicas_in_sync 2") && has("karman_slave_lag_bytes 0")).then_some(())
    });
    // A topic, a group that reads it, and two clients.
    let client = |id| Raw::connect(&cluster.namesrvs[0].endpoint()).named(id);
    let (producer, consumer) = (client("producer"), client("consumer"));
    assert_eq!(producer.create_topic("t", v2::MessageType::Normal).code(), v2::Code::Ok);
    is_ok(producer.send(&[message("t", "1"), message("t", "2")]).status);
    let one = v2::ReceiveMessageRequest { batch_size: 1, ..receive_request("t", "g", "") };
    assert_eq!(consumer.receive(one).1.len(), 1);
    let client_type = v2::ClientType::PushConsumer.into();
    is_ok(consumer.heartbeat(v2::HeartbeatRequest { group: resource("g"), client_type }).status);
    let mut shown = Shown::default();
    texts().iter().for_each(|text| shown.add(text));
    shown
}

fn file(name: &str) -> String {
    std::fs::read_to_string(format!("{}/../deploy/grafana/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The strings under `key`, wherever it is.
fn under<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get(key).and_then(Value::as_str));
            object.values().for_each(|value| under(value, key, found));
        }
        Value::Array(array) => array.iter().for_each(|value| under(value, key, found)),
        _ => {}
    }
}

/// What stands between `{{` and `}}`.
fn templates(text: &str) -> impl Iterator<Item = &str> {
    text.split("{{").skip(1).filter_map(|rest| rest.split_once("}}")).map(|(inside, _)| inside.trim())
}

#[test]
fn every_query_of_the_board_and_the_alerts_is_answered_by_a_node() {
    let (board, alerts) = (file("karman.json"), file("alerts.yml"));
    let board: Value = serde_json::from_str(&board).unwrap();
    let mut queries = Vec::new();
    under(&board, "expr", &mut queries);
    under(&board["templating"], "query", &mut queries);
    queries.retain(|query| *query != "prometheus");
    let expressions = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    queries.extend(expressions);
    assert!(queries.len() > 50, "the queries are not found: {queries:?}");

    let mut legends = Vec::new();
    under(&board, "legendFormat", &mut legends);
    let labels = legends.into_iter().flat_map(templates);
    let labels = labels.chain(templates(&alerts).filter_map(|inside| inside.strip_prefix("$labels.")));

    let shown = shown();
    let unknown: Vec<_> = queries.iter().map(|query| (query, shown.unknown(query))).collect();
    let unknown: Vec<_> = unknown.into_iter().filter(|(_, names)| !names.is_empty()).collect();
    assert!(unknown.is_empty(), "no node shows what these ask for: {unknown:#?}");
    for label in labels {
        assert!(shown.labels.contains(label) || OF_PROMETHEUS.contains(&label), "no label {label:?}");
    }
}

#[test]
fn the_figures_of_a_topic_and_of_a_group_are_right() {
    let shown = shown();
    let (topic, group) = (("topic", "t"), ("consumer_group", "g"));
    let of_master = [("cluster", "test"), ("node_type", "broker"), ("node_id", "broker-a")];
    let with = |more: &[(&'static str, &'static str)]| [&of_master[..], more].concat();
    // Two were sent; one is with the consumer that has asked for one.
    assert_eq!(shown.value("rocketmq_messages_in_total", &with(&[topic, ("message_type", "normal")])), "2");
    assert_eq!(shown.value("rocketmq_messages_out_total", &with(&[topic, group])), "1");
    for (name, figure) in [("lag", "2"), ("inflight", "1"), ("ready", "1")] {
        assert_eq!(
            shown.value(&format!("rocketmq_consumer_{name}_messages"), &with(&[topic, group])),
            figure
        );
    }
    let bytes = |direction: &str| {
        let name = format!("rocketmq_throughput_{direction}_total");
        shown.value(&name, &with(&[topic])).parse::<u64>().unwrap()
    };
    assert!(bytes("out") > 50 && bytes("in") == 2 * bytes("out"), "{} {}", bytes("in"), bytes("out"));
    let latency: u64 = shown.value("rocketmq_consumer_lag_latency", &with(&[group])).parse().unwrap();
    assert!((1..120_000).contains(&latency), "{latency} ms");
    assert_eq!(shown.value("rocketmq_send_to_dlq_messages_total", &with(&[topic, group])), "0");
    assert_eq!(shown.value("rocketmq_message_size_count", &with(&[("message_type", "normal")])), "2");
    let sent = [("request_code", "send_message"), ("response_code", "OK"), ("is_long_polling", "false")];
    assert_eq!(shown.value("rocketmq_rpc_latency_count", &with(&sent)), "1");
    let took: f64 = shown.value("rocketmq_rpc_latency_sum", &with(&sent)).parse().unwrap();
    assert!(took > 0.0 && took < 60_000.0, "{took} ms");
    let push = [group, ("consume_mode", "push"), ("language", "unknown")];
    assert_eq!(shown.value("rocketmq_consumer_connections", &with(&push)), "1");
}

/// The names in the first column of the tables of `docs/metrics.md`, by whether they stand under a heading with `word`.
fn documented(word: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(format!("{}/../docs/metrics.md", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let sections = text.split("\n## ").filter(|section| section.lines().next().unwrap().contains(word));
    let rows = sections.flat_map(str::lines).filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    rows.map(str::to_owned).collect()
}

#[test]
fn every_metric_is_documented_and_what_is_documented_is_shown() {
    let shown = &shown().families;
    let ours: BTreeSet<String> = documented("shown").into_iter().collect();
    assert_eq!(shown.difference(&ours).collect::<Vec<_>>(), [""; 0], "not in docs/metrics.md");
    assert_eq!(ours.difference(shown).collect::<Vec<_>>(), [""; 0], "no node shows it");
    assert!(shown.is_disjoint(&documented("not")));
}

#[test]
fn the_boards_panels_lie_beside_one_another() {
    let board: Value = serde_json::from_str(&file("karman.json")).unwrap();
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in board["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "an id twice: {panel}");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "wider than a board: {panel}");
        for column in place("x")..place("x") + place("w") {
            for line in place("y")..place("y") + place("h") {
                assert!(taken.insert((column, line)), "it lies over another: {panel}");
            }
        }
    }
}
