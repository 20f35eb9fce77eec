//! `kill -9` of brokers while both official clients send and receive: what was acknowledged is there afterwards.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use karman_tests::{Cluster, Load, let_run, seed};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

const TOPIC: &str = "crash";
const ROUNDS: usize = 20;
/// A round lasts from the moment the broker is back until it is killed again.
const ROUND_MS: std::ops::Range<u64> = 50..1500;

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

fn survives_kills(cluster: &mut Cluster) {
    let mut random = StdRng::seed_from_u64(seed());
    let mut load = Load::start(cluster, &cluster.namesrvs[0].endpoint(), TOPIC);
    let mut crashes = Vec::new();
    for round in 0..ROUNDS {
        load.advance(10);
        let_run(Duration::from_millis(random.random_range(ROUND_MS)));
        let victim = random.random_range(0..cluster.brokers.len());
        cluster.brokers[victim].kill();
        crashes.push(now_ms());
        cluster.brokers[victim].start();
        eprintln!("round {round}: killed {}", cluster.brokers[victim].name());
    }
    let ledger = load.finish(cluster);
    assert!(ledger.sent.len() > ROUNDS * 20, "only {} messages in all rounds", ledger.sent.len());
    ledger.assert_none_twice_but_in_flight(&crashes);
}

#[test]
fn a_lone_broker_keeps_what_it_acknowledged() {
    survives_kills(&mut Cluster::builder().namesrvs(1).brokers(1).start());
}

#[test]
fn two_brokers_keep_what_they_acknowledged() {
    survives_kills(&mut Cluster::builder().namesrvs(1).brokers(2).start());
}
