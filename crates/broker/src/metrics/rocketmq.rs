//! What RocketMQ's brokers show too, by its names and labels, so that the boards and alerts of its users go on working.
//! `docs/metrics.md` has the list, with what is not there and why. Runs on the probe's thread.
//!
//! The number of series is bounded: topics and groups beyond [`PAIRS_MAX`] are counted together under [`OTHERS`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::iter;
use std::sync::atomic::Ordering;

use karman_remoting::proto::v2::{ClientType, MessageType};
use karman_store::QueueNumber;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::latency::{CallLabels, MILLIS};
use crate::progress::GroupTopic;
use crate::spread::Spread;
use crate::traffic::{Delivered, SIZES, Traffic};

/// Topics, and groups on topics, that are told apart.
const PAIRS_MAX: usize = 10_000;
/// The name of all the others together.
const OTHERS: &str = "_others";
/// Queues that are asked when their oldest message was stored: each may cost a read from the device.
const AGES_MAX: usize = 2_000;
/// Reading and writing, as RocketMQ writes permissions.
const READ_WRITE: i64 = 6;

type Labels = Vec<(&'static str, String)>;

/// The metrics of one scrape.
pub(super) fn registry(broker: &Broker) -> Registry {
    let labels = [("cluster", &*broker.cluster), ("node_type", "broker"), ("node_id", &*broker.name)];
    let labels = labels.map(|(key, value)| (key.into(), value.to_owned().into()));
    let mut registry = Registry::with_prefix_and_labels("rocketmq", labels.into_iter());
    node(broker, &mut registry);
    incoming(broker, &mut registry);
    outgoing(broker, &mut registry);
    connections(broker, &mut registry);
    calls(broker, &mut registry);
    held(broker, &mut registry);
    registry
}

fn node(broker: &Broker, registry: &mut Registry) {
    let watermarks = broker.store.watermarks();
    let behind = |end: u64| watermarks.written.saturating_sub(end).cast_signed();
    for (name, help, value) in [
        ("broker_permission", "2: may be written, 4: may be read; together 6", READ_WRITE),
        ("topic_number", "Topics", broker.catalog.topics().len() as i64),
        ("consumer_group_number", "Consumer groups", broker.catalog.groups().len() as i64),
        ("storage_size", "Bytes of the CommitLog", behind(watermarks.log_start)),
        ("storage_flush_behind_bytes", "Written and not yet on the device", behind(watermarks.flushed)),
        ("storage_dispatch_behind_bytes", "Written and not yet to be seen", behind(watermarks.confirmed)),
    ] {
        registry.register(name, help, ConstGauge::new(value));
    }
}

/// Counts messages and bytes by labels, under the two names that RocketMQ has for a direction.
#[derive(Default)]
struct Flow {
    messages: Family<Labels, Counter>,
    bytes: Family<Labels, Counter>,
}

impl Flow {
    fn add(&self, labels: &Labels, traffic: &Traffic) {
        let (messages, bytes) = traffic.counts();
        self.messages.get_or_create(labels).inc_by(messages);
        self.bytes.get_or_create(labels).inc_by(bytes);
    }

    fn register(self, direction: &str, help: &str, registry: &mut Registry) {
        registry.register(format!("messages_{direction}"), format!("Messages {help}"), self.messages);
        let help = format!("Bytes of the records of messages {help}");
        registry.register(format!("throughput_{direction}"), help, self.bytes);
    }
}

fn incoming(broker: &Broker, registry: &mut Registry) {
    let flow = Flow::default();
    let sizes = Family::<Labels, Spread, fn() -> Spread>::new_with_constructor(|| Spread::new(&SIZES));
    for (at, topic) in broker.catalog.topics().iter().enumerate() {
        let (name, kind) = match at < PAIRS_MAX {
            true => (topic.name(), topic_type(topic)),
            false => (OTHERS, ""),
        };
        let labels = vec![
            ("topic", name.to_owned()),
            ("message_type", kind.to_owned()),
            ("is_system", false.to_string()),
        ];
        flow.add(&labels, &topic.stored.traffic);
        // Not by topic: each would have nine series.
        let labels = vec![("message_type", topic_type(topic).to_owned()), ("is_system", false.to_string())];
        sizes.get_or_create(&labels).add_all(&topic.stored.sizes);
    }
    flow.register("in", "stored for producers", registry);
    registry.register("message_size", "Bytes of the records of stored messages", sizes);
}

/// In RocketMQ's words.
fn topic_type(topic: &Topic) -> &'static str {
    match topic.message_type() {
        MessageType::Fifo => "fifo",
        MessageType::Delay => "delay",
        MessageType::Transaction => "transaction",
        MessageType::Lite => "lite",
        MessageType::Priority => "priority",
        _ => "normal",
    }
}

/// What waits for a group in a topic.
#[derive(Default)]
struct Lag {
    ready: u64,
    inflight: u64,
    withheld: u64,
    /// When the oldest was stored of what is not done, and of what was not handed out; 0: there is none, or it is not known.
    undone_ms: u64,
    ready_ms: u64,
}

/// Groups on topics, by their names as far as these are told apart.
struct Pairs {
    groups: HashMap<u32, String>,
    known: HashSet<(u32, u32)>,
}

impl Pairs {
    fn labels(&mut self, group: u32, topic: &Topic) -> Labels {
        let is_known = self.known.contains(&(group, topic.number))
            || self.known.len() < PAIRS_MAX && self.known.insert((group, topic.number));
        let (topic, group) = match self.groups.get(&group).filter(|_| is_known) {
            Some(group) => (topic.name(), group.as_str()),
            None => (OTHERS, OTHERS),
        };
        let [topic, group] = [topic, group].map(str::to_owned);
        let (is_retry, is_system) = (false.to_string(), false.to_string());
        vec![("topic", topic), ("consumer_group", group), ("is_retry", is_retry), ("is_system", is_system)]
    }
}

fn outgoing(broker: &Broker, registry: &mut Registry) {
    let groups = broker.catalog.groups();
    let groups = groups.iter().map(|group| (group.number, group.name().to_owned())).collect();
    let mut pairs = Pairs { groups, known: HashSet::new() };
    let (flow, letters) = (Flow::default(), Family::<Labels, Counter>::default());
    let mut lags: BTreeMap<Labels, Lag> = BTreeMap::new();
    let mut ages_left = AGES_MAX;
    let count = |labels: &Labels, delivered: &Delivered| {
        flow.add(labels, &delivered.traffic);
        letters.get_or_create(labels).inc_by(delivered.letters());
    };
    for row in broker.progress.all() {
        let labels = pairs.labels(row.group, &row.topic);
        count(&labels, &row.delivered);
        // Each client of a broadcasting group has all messages to itself.
        if row.client.is_none() {
            add_lag(broker, &row, lags.entry(labels).or_default(), &mut ages_left);
        }
    }
    for row in broker.lite.all() {
        let labels = pairs.labels(row.group, &row.topic);
        count(&labels, &row.delivered);
        let lag = lags.entry(labels).or_default();
        for (queue, cursor) in row.run(|pop| pop.cursors()) {
            let range = broker.store.queue_range(QueueNumber(queue));
            let waits = range.end.saturating_sub(cursor.floor.max(range.start));
            // One of each lite topic at most is with a consumer, or waits for its retry.
            let inflight = u64::from(cursor.visible_at_ms > 0).min(waits);
            lag.inflight += inflight;
            lag.ready += waits - inflight;
        }
    }
    for topic in broker.catalog.topics().iter().take(PAIRS_MAX) {
        let labels = ["topic", "consumer_group", "is_retry", "is_system"];
        // Who pulls keeps its own place: no group is behind it that the broker knows of.
        let values = [topic.name(), "", "false", "false"].map(str::to_owned);
        if topic.pulled.counts().0 > 0 {
            flow.add(&iter::zip(labels, values).collect(), &topic.pulled);
        }
    }
    flow.register("out", "handed to consumers", registry);
    registry.register("send_to_dlq_messages", "Messages copied to the dead letters of a group", letters);
    register_lags(broker, &lags, registry);
}

fn add_lag(broker: &Broker, row: &GroupTopic, lag: &mut Lag, ages_left: &mut usize) {
    let all = 0..row.topic.queue_nums();
    let states: Vec<_> = row.run(|pop| all.filter_map(|id| pop.queue_state(id)).collect());
    for (state, &queue) in iter::zip(states, &row.topic.queues) {
        let queue = QueueNumber(queue);
        let range = broker.store.queue_range(queue);
        // What was deleted unread waits no more.
        let (floor, next) = (state.floor.max(range.start), state.next.max(range.start));
        lag.ready += range.end.saturating_sub(next);
        lag.inflight += state.inflight;
        lag.withheld += state.withheld;
        if floor < range.end && *ages_left > 0 {
            *ages_left -= 1;
            lag.undone_ms = older(lag.undone_ms, broker.first_stored_ms(queue, floor));
            lag.ready_ms = older(lag.ready_ms, broker.first_stored_ms(queue, next));
        }
    }
}

/// The earlier of two times, of which 0 is none.
fn older(a: u64, b: u64) -> u64 {
    if a == 0 || b == 0 { a.max(b) } else { a.min(b) }
}

fn register_lags(broker: &Broker, lags: &BTreeMap<Labels, Lag>, registry: &mut Registry) {
    let now_ms = broker.clock.latest_ms();
    let age = |stored_ms: u64| if stored_ms == 0 { 0 } else { now_ms.saturating_sub(stored_ms) };
    let mut show = |name: &str, help: &str, figure: &dyn Fn(&Lag) -> u64| {
        let family = Family::<Labels, Gauge>::default();
        for (labels, lag) in lags {
            family.get_or_create(labels).set(figure(lag).cast_signed());
        }
        registry.register(name, help, family);
    };
    show("consumer_lag_messages", "Messages that are not done", &|lag| {
        lag.ready + lag.inflight + lag.withheld
    });
    let help = "Messages with consumers, or waiting for another delivery";
    show("consumer_inflight_messages", help, &|lag| lag.inflight);
    show("consumer_ready_messages", "Messages that were not handed out yet", &|lag| lag.ready);
    let help = "Milliseconds since the oldest was stored that is not done";
    show("consumer_lag_latency", help, &|lag| age(lag.undone_ms));
    let help = "Milliseconds since the oldest was stored that was not handed out";
    show("consumer_queueing_latency", help, &|lag| age(lag.ready_ms));
}

fn connections(broker: &Broker, registry: &mut Registry) {
    let (producers, consumers) = (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge>::default());
    for (kind, count) in broker.clients.kinds() {
        let mut labels = vec![("language", kind.language.to_owned()), ("version", kind.version)];
        let mode = match kind.client_type {
            ClientType::PushConsumer | ClientType::LitePushConsumer => "push",
            ClientType::SimpleConsumer | ClientType::LiteSimpleConsumer => "simple",
            ClientType::PullConsumer => "pull",
            ClientType::Producer | ClientType::Unspecified => {
                producers.get_or_create(&labels).inc_by(count);
                continue;
            }
        };
        labels.push(("consumer_group", kind.group.unwrap_or_default()));
        labels.push(("consume_mode", mode.to_owned()));
        labels.push(("is_system", false.to_string()));
        consumers.get_or_create(&labels).inc_by(count);
    }
    registry.register("producer_connections", "Producers heard from lately", producers);
    registry.register("consumer_connections", "Consumers heard from lately", consumers);
}

/// Calls of clients that this broker answered, whichever node they asked.
fn calls(broker: &Broker, registry: &mut Registry) {
    let all = Family::<CallLabels, Spread, fn() -> Spread>::new_with_constructor(|| Spread::new(&MILLIS));
    broker.counters.latencies.for_each(|labels, took| all.get_or_create(&labels).add_all(took));
    registry.register("rpc_latency", "Milliseconds that calls of clients took", all);
}

fn held(broker: &Broker, registry: &mut Registry) {
    let (delayed, half) = broker.held.counts();
    for (name, help, count) in [
        ("timing_messages", "Messages that wait for their delivery time", delayed),
        ("half_messages", "Messages of undecided transactions", half),
    ] {
        registry.register(name, help, ConstGauge::new(count as i64));
    }
    let counters = &broker.held.counters;
    let help = "Seconds from a half message to its commit";
    registry.register("finish_message_latency", help, counters.finished.clone());
    for (name, help, counter) in [
        ("timer_dequeue", "Delayed messages delivered", &counters.delivered),
        ("commit_messages", "Transactions committed", &counters.committed),
        ("rollback_messages", "Transactions rolled back", &counters.rolled_back),
    ] {
        let count = counter.load(Ordering::Relaxed);
        registry.register(name, help, ConstCounter::new(count));
    }
}
