//! What a cluster says of itself, and what two samples say of the time between them.

use std::collections::BTreeMap;
use std::time::Instant;

use karman_remoting::proto::karman as v1;
use serde::Serialize;

use super::SortWord;
use crate::node::{Node, code_of, message_of};
use crate::time;

/// What a cluster said at one time.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    at: Instant,
    at_ms: u64,
    brokers: Vec<v1::BrokerStatus>,
    topics: Vec<v1::TopicSummary>,
    groups: Vec<v1::GroupSummary>,
    /// What could not be asked.
    pub(super) errors: Vec<String>,
}

/// Asks for everything at once. Only a node that does not answer is an error.
pub(super) async fn take(node: &Node) -> anyhow::Result<Sample> {
    let [mut brokers, mut topics, mut groups] = [node.admin()?, node.admin()?, node.admin()?];
    let (brokers, topics, groups) = tokio::join!(
        node.answer(brokers.describe_cluster(node.request(v1::DescribeClusterRequest {}))),
        node.answer(topics.list_topics(node.request(v1::ListTopicsRequest {}))),
        node.answer(groups.list_groups(node.request(v1::ListGroupsRequest {}))),
    );
    let brokers = brokers?.brokers;
    let is_ok = |status: Option<&karman_remoting::proto::v2::Status>| {
        matches!(code_of(status).as_str_name(), "OK" | "CODE_UNSPECIFIED")
    };
    let silent = brokers.iter().filter(|broker| !is_ok(broker.status.as_ref()));
    let mut errors: Vec<String> = silent
        .map(|broker| format!("broker {}: {}", broker.broker_name, message_of(broker.status.as_ref())))
        .collect();
    let mut noted = |error: anyhow::Error| {
        let text = format!("{error:#}");
        if !errors.contains(&text) {
            errors.push(text);
        }
        Vec::new()
    };
    let topics = topics.map_or_else(&mut noted, |answer| answer.topics);
    let groups = groups.map_or_else(
        |error| {
            noted(error);
            Vec::new()
        },
        |answer| answer.groups,
    );
    Ok(Sample { at: Instant::now(), at_ms: time::now_ms(), brokers, topics, groups, errors })
}

/// What happened between two samples. These keys stay.
#[derive(Debug, Serialize)]
pub(super) struct Rates {
    pub(super) cluster: String,
    pub(super) at_ms: u64,
    /// Between the two samples.
    pub(super) seconds: f64,
    pub(super) brokers: Vec<BrokerRates>,
    /// On all brokers together.
    pub(super) topics: Vec<TopicRates>,
    pub(super) groups: Vec<GroupRates>,
    /// What could not be asked.
    pub(super) errors: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct BrokerRates {
    pub(super) broker: String,
    pub(super) role: String,
    pub(super) in_per_second: f64,
    pub(super) out_per_second: f64,
    pub(super) cpu_percent: f64,
    pub(super) disk_used_percent: Option<u32>,
    pub(super) log_bytes: u64,
    pub(super) delayed: u64,
    pub(super) undecided: u64,
    pub(super) slaves: Vec<SlaveState>,
}

#[derive(Debug, Serialize)]
pub(super) struct SlaveState {
    pub(super) broker_id: i32,
    pub(super) in_sync: bool,
    pub(super) lag_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct TopicRates {
    pub(super) topic: String,
    pub(super) in_per_second: f64,
    pub(super) out_per_second: f64,
    pub(super) messages: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct GroupRates {
    pub(super) group: String,
    /// Empty when the group has not read yet.
    pub(super) topic: String,
    /// How fast its topic grows.
    pub(super) in_per_second: f64,
    pub(super) out_per_second: f64,
    pub(super) ready: u64,
    pub(super) inflight: u64,
    pub(super) suspended: bool,
}

/// A tenth is more than a rate of a second is good for.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl Rates {
    pub(super) fn between(before: &Sample, last: &Sample, sort: SortWord) -> Self {
        let seconds = last.at.saturating_duration_since(before.at).as_secs_f64();
        let change = Change { seconds };
        let (mut topics, mut groups) = (change.topics(before, last), change.groups(before, last));
        let ins: BTreeMap<&str, f64> =
            topics.iter().map(|topic| (topic.topic.as_str(), topic.in_per_second)).collect();
        for group in &mut groups {
            group.in_per_second = ins.get(group.topic.as_str()).copied().unwrap_or(0.0);
        }
        let mut outs: BTreeMap<&str, f64> = BTreeMap::new();
        for group in &groups {
            *outs.entry(group.topic.as_str()).or_default() += group.out_per_second;
        }
        for topic in &mut topics {
            topic.out_per_second = outs.get(topic.topic.as_str()).copied().map_or(0.0, rounded);
        }
        // What is the same keeps the order of the names.
        let descending = |a: f64, b: f64| b.total_cmp(&a);
        topics.sort_by(|a, b| match sort {
            SortWord::Ready => b.messages.cmp(&a.messages),
            SortWord::In => descending(a.in_per_second, b.in_per_second),
            SortWord::Out => descending(a.out_per_second, b.out_per_second),
            SortWord::Name => a.topic.cmp(&b.topic),
        });
        groups.sort_by(|a, b| match sort {
            SortWord::Ready => b.ready.cmp(&a.ready),
            SortWord::In => descending(a.in_per_second, b.in_per_second),
            SortWord::Out => descending(a.out_per_second, b.out_per_second),
            SortWord::Name => a.group.cmp(&b.group),
        });
        Self {
            cluster: last.brokers.first().map(|broker| broker.cluster.clone()).unwrap_or_default(),
            at_ms: last.at_ms,
            seconds: (seconds * 1000.0).round() / 1000.0,
            brokers: change.brokers(before, last),
            topics,
            groups,
            errors: last.errors.clone(),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.brokers.iter().map(|broker| broker.broker.as_str())
    }
}

/// The time between two samples.
struct Change {
    seconds: f64,
}

impl Change {
    /// A counter that is smaller than before began anew with its process.
    fn rate(&self, before: u64, last: u64) -> f64 {
        if self.seconds == 0.0 {
            return 0.0;
        }
        rounded(last.checked_sub(before).unwrap_or(last) as f64 / self.seconds)
    }

    fn brokers(&self, before: &Sample, last: &Sample) -> Vec<BrokerRates> {
        let row = |broker: &v1::BrokerStatus| {
            // One that was not there before has no rates yet.
            let known = before.brokers.iter().find(|known| known.broker_name == broker.broker_name);
            let known = known.unwrap_or(broker);
            let slave = |slave: &v1::ReplicaStatus| SlaveState {
                broker_id: slave.broker_id,
                in_sync: slave.in_sync,
                lag_bytes: slave.lag_bytes,
            };
            BrokerRates {
                broker: broker.broker_name.clone(),
                role: broker.role.clone(),
                in_per_second: self.rate(known.messages_in, broker.messages_in),
                out_per_second: self.rate(known.messages_out, broker.messages_out),
                // Of one core: micros of a second are ten thousand times a percent.
                cpu_percent: rounded(self.rate(known.cpu_micros, broker.cpu_micros) / 1e4),
                disk_used_percent: broker.disk_used_percent,
                log_bytes: broker.log_end_offset.saturating_sub(broker.log_start_offset),
                delayed: broker.delayed_count,
                undecided: broker.half_count,
                slaves: broker.replicas.iter().map(slave).collect(),
            }
        };
        last.brokers.iter().map(row).collect()
    }

    fn topics(&self, before: &Sample, last: &Sample) -> Vec<TopicRates> {
        fn name(row: &v1::TopicSummary) -> &str {
            row.topic.as_ref().map_or("", |topic| &topic.name)
        }
        let known: BTreeMap<(&str, &str), u64> = before
            .topics
            .iter()
            .map(|row| ((name(row), row.broker_name.as_str()), row.messages_in))
            .collect();
        let mut topics: BTreeMap<&str, TopicRates> = BTreeMap::new();
        for row in &last.topics {
            let before = known.get(&(name(row), row.broker_name.as_str())).copied();
            let topic = topics.entry(name(row)).or_insert_with(|| TopicRates {
                topic: name(row).to_owned(),
                in_per_second: 0.0,
                out_per_second: 0.0,
                messages: 0,
            });
            topic.messages += row.message_count;
            topic.in_per_second += self.rate(before.unwrap_or(row.messages_in), row.messages_in);
        }
        topics.into_values().collect()
    }

    fn groups(&self, before: &Sample, last: &Sample) -> Vec<GroupRates> {
        fn key(row: &v1::GroupSummary) -> (&str, &str) {
            (row.group.as_ref().map_or("", |group| &group.name), &row.topic)
        }
        let known: BTreeMap<_, u64> = before
            .groups
            .iter()
            .map(|row| ((key(row), row.broker_name.as_str()), row.messages_out))
            .collect();
        let mut groups: BTreeMap<(&str, &str), GroupRates> = BTreeMap::new();
        for row in &last.groups {
            let (name, topic) = key(row);
            let before = known.get(&((name, topic), row.broker_name.as_str())).copied();
            let group = groups.entry((name, topic)).or_insert_with(|| GroupRates {
                group: name.to_owned(),
                topic: topic.to_owned(),
                in_per_second: 0.0,
                out_per_second: 0.0,
                ready: 0,
                inflight: 0,
                suspended: row.group.as_ref().is_some_and(|group| group.suspended),
            });
            group.ready += row.ready_count;
            group.inflight += row.inflight_count;
            group.out_per_second += self.rate(before.unwrap_or(row.messages_out), row.messages_out);
        }
        groups.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn topic(name: &str, broker: &str, messages_in: u64) -> v1::TopicSummary {
        let topic = Some(v1::TopicConfig { name: name.into(), ..Default::default() });
        v1::TopicSummary { topic, broker_name: broker.into(), messages_in, message_count: 7 }
    }

    fn group(name: &str, topic: &str, messages_out: u64, ready_count: u64) -> v1::GroupSummary {
        let group = Some(v1::GroupConfig { name: name.into(), ..Default::default() });
        v1::GroupSummary { group, topic: topic.into(), messages_out, ready_count, ..Default::default() }
    }

    fn sample(at: Instant, topics: Vec<v1::TopicSummary>, groups: Vec<v1::GroupSummary>) -> Sample {
        Sample { at, at_ms: 0, brokers: Vec::new(), topics, groups, errors: Vec::new() }
    }

    #[test]
    fn rates_are_of_all_brokers_and_a_restart_or_a_newcomer_is_no_burst() {
        let at = Instant::now();
        let before = sample(
            at,
            vec![topic("orders", "a", 100), topic("orders", "b", 900)],
            vec![group("shipping", "orders", 10, 0), group("audit", "orders", 0, 0)],
        );
        let topics = vec![topic("bills", "a", 5_000), topic("orders", "a", 300), topic("orders", "b", 40)];
        let groups = vec![group("shipping", "orders", 110, 3), group("audit", "orders", 20, 9)];
        let last = sample(at + Duration::from_secs(2), topics, groups);
        let rates = Rates::between(&before, &last, SortWord::Ready);
        let of = |name: &str| rates.topics.iter().find(|topic| topic.topic == name).unwrap();
        // 200 on one broker; 40 since the other began anew.
        assert_eq!(
            (of("orders").in_per_second, of("orders").out_per_second, of("orders").messages),
            (120.0, 60.0, 14)
        );
        assert_eq!(of("bills").in_per_second, 0.0);
        let groups: Vec<_> =
            rates.groups.iter().map(|group| (group.group.as_str(), group.out_per_second)).collect();
        assert_eq!(groups, [("audit", 10.0), ("shipping", 50.0)]);
        assert_eq!(Rates::between(&last, &last, SortWord::Out).groups[0].out_per_second, 0.0);
    }

    #[test]
    fn what_comes_first_can_be_chosen() {
        let at = Instant::now();
        let before = sample(at, vec![topic("a", "x", 0), topic("b", "x", 0)], Vec::new());
        let last =
            sample(at + Duration::from_secs(1), vec![topic("a", "x", 1), topic("b", "x", 2)], Vec::new());
        let first = |sort| Rates::between(&before, &last, sort).topics[0].topic.clone();
        assert_eq!((first(SortWord::In), first(SortWord::Name)), ("b".to_owned(), "a".to_owned()));
    }
}
