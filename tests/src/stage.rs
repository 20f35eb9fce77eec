//! One official client at one access point of a cluster, and what tests ask of the cluster around it. Owned by one test.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::Node;
use crate::driver::Plan;
use crate::{Cluster, Driver, Event, Language, until};

/// Generous: two cores carry the brokers, JVMs and other tests.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// A simple consumer asks one broker at a time, for up to 20 s: with many threads one of them sits at the right one.
pub const MANY_THREADS: (&str, &str) = ("threads", "16");

/// What a letter has in front of the user's properties.
const LETTER_PREFIX: &str = "DLQ_";

/// One client at one access point.
#[derive(Clone, Debug)]
pub struct Stage<'a> {
    /// Which client.
    pub language: Language,
    /// The access point.
    pub endpoint: String,
    /// What is behind it.
    pub cluster: &'a Cluster,
}

impl<'a> Stage<'a> {
    /// A client that is told the first namesrv.
    pub fn through_namesrv(cluster: &'a Cluster, language: Language) -> Stage<'a> {
        Stage { language, endpoint: cluster.namesrvs[0].endpoint(), cluster }
    }

    /// The command line of a driver.
    pub fn plan<'b>(
        &'b self,
        scenario: &'b str,
        topic: &'b str,
        options: &'b [(&'b str, &'b str)],
    ) -> Plan<'b> {
        eprintln!("{:?} {scenario} {topic} {options:?}", self.language);
        Plan { language: self.language, scenario, endpoint: &self.endpoint, topic, options }
    }

    /// Runs a driver until it ends by itself; what it reported.
    pub fn run(&self, scenario: &str, topic: &str, options: &[(&str, &str)]) -> Vec<Event> {
        Driver::run(&self.plan(scenario, topic, options), self.cluster.path(), DEADLINE)
    }

    /// Sends all that `options` say; panics when a send failed.
    pub fn produce(&self, topic: &str, options: &[(&str, &str)]) -> Vec<Event> {
        let events = self.run("produce", topic, options);
        let failed: Vec<_> = events.iter().filter(|event| event.event == "failed").collect();
        assert!(failed.is_empty(), "{} sends failed: {:?}", failed.len(), failed.first());
        events
    }

    /// Starts a driver; its client has started.
    pub fn start(&self, scenario: &str, topic: &str, options: &[(&str, &str)]) -> Driver {
        Driver::start_ready(&self.plan(scenario, topic, options), self.cluster.path())
    }
}

/// Two brokers and a namesrv.
pub fn two_brokers() -> Cluster {
    two_brokers_with(&[])
}

/// The same, with settings of the brokers.
pub fn two_brokers_with(settings: &[(&str, &str)]) -> Cluster {
    cluster_with(1, settings)
}

/// Two brokers with these settings, and so many namesrvs.
pub fn cluster_with(namesrvs: usize, settings: &[(&str, &str)]) -> Cluster {
    let builder = Cluster::builder().namesrvs(namesrvs).brokers(2);
    settings.iter().fold(builder, |builder, (key, value)| builder.set(key, value)).start()
}

/// Creates a topic of the type that `karman topic create --type` calls `kind`; every node knows it.
pub fn create_topic(cluster: &Cluster, name: &str, kind: &str) {
    cluster.karman(&["topic", "create", name, "--type", kind]);
    cluster.wait_route(name);
}

/// What `karman -o json ...` says, which is an array.
fn rows(cluster: &Cluster, arguments: &[&str]) -> Vec<Value> {
    serde_json::from_str(&cluster.karman(&[&["-o", "json"], arguments].concat())).unwrap()
}

/// Panics unless every broker has messages of `topic`.
pub fn assert_on_all_brokers(cluster: &Cluster, topic: &str) {
    assert_eq!(
        brokers_with(cluster, topic),
        cluster.brokers.len(),
        "not every broker has messages of {topic}"
    );
}

/// How many brokers have messages of `topic`.
pub fn brokers_with(cluster: &Cluster, topic: &str) -> usize {
    let topics = rows(cluster, &["topic", "list"]);
    topics.iter().filter(|row| row["topic"] == topic && row["messages"].as_u64().unwrap() > 0).count()
}

/// What `/metrics` of all brokers say of this counter, together.
pub fn counted(cluster: &Cluster, name: &str) -> u64 {
    let count = |broker: &Node| {
        let mut connection = TcpStream::connect(broker.ready("metrics")).unwrap();
        connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let value = answer.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        value.unwrap_or_else(|| panic!("no {name} in {answer}"))
    };
    cluster.brokers.iter().map(count).sum()
}

/// Waits until `group` has `count` dead letters, and until clients can find them.
pub fn wait_letters(cluster: &Cluster, group: &str, count: u64) {
    until(&format!("{count} dead letters of {group}"), DEADLINE, || {
        let lists = rows(cluster, &["dlq", "list"]);
        let of_group = lists.iter().filter(|row| row["group"] == group);
        let letters: u64 = of_group.filter_map(|row| row["letters"].as_u64()).sum();
        (letters >= count).then_some(())
    });
    cluster.wait_dead_letters(group);
}

/// The events of this name.
pub fn named<'a>(events: &'a [Event], name: &str) -> impl Iterator<Item = &'a Event> {
    let name = name.to_owned();
    events.iter().filter(move |event| event.event == name)
}

/// The ids in the events of this name, each as often as it is there, sorted.
pub fn ids(events: &[Event], name: &str) -> Vec<String> {
    let mut ids: Vec<String> = named(events, name).filter_map(|event| event.id.clone()).collect();
    ids.sort();
    ids
}

/// The ids of the messages with an index that `choose` takes, sorted.
pub fn sent_ids(produced: &[Event], choose: impl Fn(u64) -> bool) -> Vec<String> {
    let chosen = named(produced, "sent").filter(|event| choose(event.index));
    let mut ids: Vec<String> = chosen.filter_map(|event| event.id.clone()).collect();
    ids.sort();
    ids
}

/// The same without an order.
pub fn set(ids: Vec<String>) -> HashSet<String> {
    ids.into_iter().collect()
}

/// The deliveries of each message, in their order.
pub fn deliveries(events: &[Event]) -> BTreeMap<String, Vec<&Event>> {
    let mut deliveries: BTreeMap<String, Vec<&Event>> = BTreeMap::new();
    for event in named(events, "message") {
        deliveries.entry(event.id.clone().unwrap()).or_default().push(event);
    }
    assert!(!deliveries.is_empty(), "nothing was delivered");
    deliveries
}

/// The attempts of each message in the order of their deliveries.
pub fn attempts(events: &[Event]) -> BTreeMap<String, Vec<u32>> {
    let attempts = |deliveries: Vec<&Event>| deliveries.iter().map(|event| event.attempt).collect();
    deliveries(events).into_iter().map(|(id, deliveries)| (id, attempts(deliveries))).collect()
}

/// What a dead letter says about its death.
pub fn said(letter: &Event) -> BTreeMap<&str, &str> {
    let all = letter.properties.iter().map(|(name, value)| (&**name, &**value));
    all.filter(|(name, _)| name.starts_with(LETTER_PREFIX)).collect()
}
