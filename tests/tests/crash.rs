//! `kill -9` of brokers while both official clients send and receive: what was acknowledged is there afterwards.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use karman_tests::driver::Plan;
use karman_tests::ledger::check_content;
use karman_tests::{Cluster, Driver, Language, Ledger, seed, until};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

const TOPIC: &str = "crash";
const ROUNDS: usize = 20;
/// A round lasts from the moment the broker is back until it is killed again.
const ROUND_MS: std::ops::Range<u64> = 50..1500;
const DRAIN_DEADLINE: Duration = Duration::from_secs(120);

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Waits for as long as `ms`, which is work for the clients: the moment of a crash must not hang on any condition.
fn let_run(ms: u64) {
    let end = now_ms() + ms;
    until("the moment of the crash", Duration::from_secs(60), || (now_ms() >= end).then_some(()));
}

fn survives_kills(cluster: &mut Cluster, endpoint: &str) {
    let mut random = StdRng::seed_from_u64(seed());
    cluster.create_topic(TOPIC);
    let directory = cluster.path().to_owned();
    let producer = |language, seed| {
        // Not faster than consumers on slow cores can follow.
        let options = [("seed", seed), ("threads", "2"), ("pause", "2")];
        Driver::start_ready(
            &Plan { language, scenario: "produce", endpoint, topic: TOPIC, options: &options },
            &directory,
        )
    };
    let mut producers = [producer(Language::Java, "java"), producer(Language::Python, "python")];
    let consumer = |language| {
        // A thread of a simple consumer asks one broker at a time, and waits there for 20 s when it has nothing.
        let options = [("group", "crash"), ("threads", "16"), ("invisible", "10")];
        let plan = Plan { language, scenario: "consume-simple", endpoint, topic: TOPIC, options: &options };
        Driver::start_ready(&plan, &directory)
    };
    let consumers = [consumer(Language::Java), consumer(Language::Python)];

    let mut crashes = Vec::new();
    for round in 0..ROUNDS {
        let before: Vec<usize> = producers.iter().map(|producer| producer.count("sent")).collect();
        for (producer, before) in producers.iter_mut().zip(before) {
            producer.wait_count("sent", before + 10, DRAIN_DEADLINE);
        }
        let_run(random.random_range(ROUND_MS));
        let victim = random.random_range(0..cluster.brokers.len());
        cluster.brokers[victim].kill();
        crashes.push(now_ms());
        cluster.brokers[victim].start();
        eprintln!("round {round}: killed {}", cluster.brokers[victim].name());
    }

    let mut ledger = Ledger::default();
    for producer in producers {
        ledger.add(producer.stop());
    }
    let sent = ledger.sent.len();
    assert!(sent > ROUNDS * 20, "only {sent} messages in all rounds");
    let mut seen = [0; 2];
    let mut waiting: HashSet<String> = ledger.sent.keys().cloned().collect();
    // Not "acknowledged by a consumer": the answer to that may have been lost with the broker.
    until("all that was acknowledged is delivered", DRAIN_DEADLINE, || {
        for (consumer, seen) in consumers.iter().zip(&mut seen) {
            let events = consumer.events_from(*seen);
            *seen += events.len();
            events
                .iter()
                .filter(|event| event.event == "message")
                .filter_map(|event| event.id.as_ref())
                .for_each(|id| {
                    waiting.remove(id);
                });
        }
        waiting.is_empty().then_some(())
    });
    for consumer in consumers {
        let events = consumer.stop();
        for event in events.iter().filter(|event| event.event == "message") {
            let from = event.keys.iter().find_map(|key| key.strip_prefix("key-")?.split('-').next()).unwrap();
            check_content(event, TOPIC, from);
        }
        ledger.add(events);
    }
    ledger.assert_nothing_lost();
    ledger.assert_none_twice_but_in_flight(&crashes);
    eprintln!("{sent} messages, {} deliveries", ledger.delivered.values().map(Vec::len).sum::<usize>());
}

#[test]
fn a_lone_broker_keeps_what_it_acknowledged() {
    let mut cluster = Cluster::builder().namesrvs(1).brokers(1).start();
    let endpoint = cluster.namesrvs[0].endpoint();
    survives_kills(&mut cluster, &endpoint);
}

#[test]
fn two_brokers_keep_what_they_acknowledged() {
    let mut cluster = Cluster::builder().namesrvs(1).brokers(2).start();
    let endpoint = cluster.namesrvs[0].endpoint();
    survives_kills(&mut cluster, &endpoint);
}
