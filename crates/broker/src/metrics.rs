//! What `/metrics` shows, in the OpenMetrics text format: `rocketmq` has what RocketMQ shows too, by its names; what it does
//! not have is here. Runs on the probe's thread.

mod rocketmq;

use std::sync::atomic::Ordering;

use karman_remoting::quota::Refusals;
use karman_remoting::server::RefusedConnections;
use karman_store::Store;
use prometheus_client::encoding::text::{encode, encode_registry};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use crate::broker::Broker;
use crate::process;
use crate::replication::repair::repaired_bytes;
use crate::replication::slave::SlaveStatus;

/// The text of one scrape.
pub fn text(broker: &Broker) -> String {
    let mut registry = Registry::with_prefix("karman");
    let counters = &broker.counters;
    for (name, help, counter) in [
        ("expired", "Messages not delivered because their time to live was over", &counters.expired),
        (
            "filter_errors",
            "Messages that a filter could not be put to, and that were not delivered",
            &counters.filter_errors,
        ),
    ] {
        registry.register(name, help, ConstCounter::new(counter.load(Ordering::Relaxed)));
    }
    held(broker, &mut registry);
    let repeated = broker.dedupe.repeated.load(Ordering::Relaxed);
    registry.register(
        "sends_repeated",
        "Sends answered with an earlier result, because their message id was stored already",
        ConstCounter::new(repeated),
    );
    let watermarks = broker.store.watermarks();
    for (name, help, offset) in [
        ("log_start", "Where the CommitLog begins", watermarks.log_start),
        ("log_confirmed", "How far the CommitLog is as durable as promised", watermarks.confirmed),
    ] {
        let offset = ConstGauge::new(offset.cast_signed());
        registry.register_with_unit(name, help, Unit::Bytes, offset);
    }
    registry.register_with_unit(
        "store_damaged",
        "Of the CommitLog, what is known to be lost",
        Unit::Bytes,
        ConstGauge::new(broker.damaged_bytes().cast_signed()),
    );
    repaired(repaired_bytes(&broker.store), &mut registry);
    disk_used(broker.store.disk_used_percent(), &mut registry);
    let scrub = broker.store.scrub_status();
    for (name, help, count) in [
        (
            "store_scrub_passes",
            "Times that all of what is stored was verified in the background",
            scrub.passes,
        ),
        ("store_scrub_verified_bytes", "Bytes verified in the background", scrub.verified_bytes),
    ] {
        registry.register(name, help, ConstCounter::new(count));
    }
    let lite = &broker.lite;
    for (name, help, count) in [
        ("lite_topics", "Lite topics of all parents", lite.topics.count()),
        ("lite_subscriptions", "Lite topics that clients are subscribed to", lite.subscriptions()),
    ] {
        registry.register(name, help, ConstGauge::new(count as i64));
    }
    registry.register("clients", "Clients heard from lately", ConstGauge::new(broker.clients.count() as i64));
    let dropped = broker.traces.as_ref().map_or(0, |traces| traces.dropped());
    registry.register(
        "trace_spans_dropped",
        "Spans that did not reach otlpEndpoint",
        ConstCounter::new(dropped),
    );
    quotas(broker, &mut registry);
    refused_connections(&broker.refused_connections, &mut registry);
    replication(broker, &mut registry);
    written(registry, Some(&rocketmq::registry(broker)))
}

/// What was refused because of the quotas of topics and users: those alone who were refused something, bounded in number.
fn quotas(broker: &Broker, registry: &mut Registry) {
    let topics = broker.catalog.topics();
    let topics =
        Refusals::by_name(topics.iter().map(|topic| (topic.name().to_owned(), topic.quota.refusals())));
    let refused = Family::<Vec<(&'static str, String)>, Counter>::default();
    for (of, all) in [("topic", topics), ("user", broker.catalog.users().refusals())] {
        for (name, refusals) in all {
            for (quota, count) in refusals.counts().into_iter().filter(|(_, count)| *count > 0) {
                let labels = vec![("of", of.to_owned()), ("name", name.clone()), ("quota", quota.to_owned())];
                refused.get_or_create(&labels).inc_by(count);
            }
        }
    }
    registry.register("quota_refusals", "Calls refused because a quota was used up", refused);
}

fn refused_connections(counts: &RefusedConnections, registry: &mut Registry) {
    let refused = Family::<Vec<(&'static str, String)>, Counter>::default();
    for (limit, count) in counts.counts() {
        refused.get_or_create(&vec![("limit", limit.to_owned())]).inc_by(count);
    }
    registry.register(
        "connections_refused",
        "Connections closed at once because a limit was reached",
        refused,
    );
}

fn disk_used(percent: Option<u8>, registry: &mut Registry) {
    if let Some(percent) = percent {
        let help = "How full the disk of the CommitLog is, as the rules of retention count it";
        registry.register("store_disk_used_percent", help, ConstGauge::new(i64::from(percent)));
    }
}

fn repaired(bytes: u64, registry: &mut Registry) {
    let help = "Of the CommitLog, what was damaged and fetched from another broker";
    registry.register_with_unit("store_repaired", help, Unit::Bytes, ConstCounter::new(bytes));
}

/// The text of one scrape of a slave; `store`: what it has open.
pub fn slave_text(status: &SlaveStatus, store: Option<&Store>, refused: &RefusedConnections) -> String {
    let mut registry = Registry::with_prefix("karman");
    refused_connections(refused, &mut registry);
    let connected = ConstGauge::new(i64::from(status.connected));
    registry.register("slave_connected", "1 while this slave follows its master", connected);
    disk_used(store.and_then(Store::disk_used_percent), &mut registry);
    if let Some(log) = status.log {
        let lag = status.master_end.saturating_sub(log.written);
        for (name, help, bytes) in [
            ("log_start", "Where the CommitLog begins", log.log_start),
            ("log_confirmed", "How far the CommitLog can be read", log.confirmed),
            ("slave_lag", "What the master has of the CommitLog and this slave has not", lag),
            ("store_damaged", "Of the CommitLog, what is known to be lost", status.damaged.0),
        ] {
            registry.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(bytes.cast_signed()));
        }
        repaired(status.damaged.1, &mut registry);
    }
    written(registry, None)
}

/// The slaves of a master, and which count.
fn replication(broker: &Broker, registry: &mut Registry) {
    let (replicas, in_sync, needed) = broker.followers.status();
    for (name, help, count) in [
        ("replicas_in_sync", "Brokers of the set that are in sync, the master included", in_sync),
        ("replicas_needed", "Brokers that must have what asks for replicas, the master included", needed),
        ("epoch", "Of this master", broker.store.epoch() as usize),
    ] {
        registry.register(name, help, ConstGauge::new(count as i64));
    }
    let lag = Family::<Vec<(String, String)>, Gauge>::default();
    for replica in replicas {
        let label = vec![("broker_id".to_owned(), replica.broker_id.to_string())];
        lag.get_or_create(&label).set(replica.lag_bytes.cast_signed());
    }
    registry.register_with_unit(
        "replica_lag",
        "What a slave does not have of the CommitLog",
        Unit::Bytes,
        lag,
    );
}

/// With what every process shows.
fn written(mut registry: Registry, more: Option<&Registry>) -> String {
    let used = process::used();
    registry.register_with_unit(
        "process_cpu",
        "Processor time used",
        Unit::Seconds,
        ConstCounter::new(used.cpu_micros as f64 / 1e6),
    );
    registry.register_with_unit(
        "process_resident_memory",
        "Memory held",
        Unit::Bytes,
        ConstGauge::new(used.resident_bytes.cast_signed()),
    );
    let mut text = String::new();
    // Writing to a String does not fail.
    if let Some(more) = more {
        let _ = encode_registry(&mut text, more);
    }
    let _ = encode(&mut text, &registry);
    text
}

fn held(broker: &Broker, registry: &mut Registry) {
    let counters = &broker.held.counters;
    for (name, help, counter) in [
        ("delayed_recalled", "Delayed messages taken back", &counters.recalled),
        ("transaction_checks", "Times that a producer was asked about a transaction", &counters.checks),
        ("transactions_given_up", "Transactions that nobody decided in time", &counters.given_up),
        ("held_dropped", "Delayed and half messages lost to damage or with their topic", &counters.dropped),
    ] {
        registry.register(name, help, ConstCounter::new(counter.load(Ordering::Relaxed)));
    }
    let oldest_ms = broker.held.oldest_half_ms();
    let age_ms = oldest_ms.map_or(0, |stored_ms| broker.clock.latest_ms().saturating_sub(stored_ms));
    let (name, help) = ("half_oldest_age", "How long the oldest undecided transaction has been so");
    registry.register_with_unit(name, help, Unit::Seconds, ConstGauge::new(age_ms as f64 / 1000.0));
    let (name, help) = ("delayed_lateness", "How long after their time delayed messages became visible");
    registry.register_with_unit(name, help, Unit::Seconds, counters.lateness.clone());
}
