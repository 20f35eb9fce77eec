//! The power goes while both official clients send and receive: what was acknowledged as `disk` is there afterwards.
//! The same with class `memory` must lose something, or the first proves nothing.

use std::time::Duration;

use karman_tests::driver::Plan;
use karman_tests::load::held_ids;
use karman_tests::{Cluster, Driver, Language, Ledger, Load, LoopDevice, let_run, seed};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

const TOPIC: &str = "power-cut";
/// Large messages beside: the log goes through several segments, and their indexes are written, while the power goes.
const BULK: &str = "bulk";
const BULK_BYTES: &str = "1000000";
const ROUNDS: usize = 20;
const CONTROL_ROUNDS: usize = 3;
/// A round lasts from the moment the broker is back until the power goes again.
const ROUND_MS: std::ops::Range<u64> = 50..1500;
/// Sparse: a test takes what it writes.
const DISK_BYTES: u64 = 2 << 30;
const FIRST_INDEX: &str = "store/commitlog/00000000000000000000.idx";

/// A broker whose store is on `disk`, and a namesrv that is elsewhere.
fn cluster_on(disk: &LoopDevice, flush: &str) -> Cluster {
    let store = disk.path().to_str().expect("a plain name");
    let builder = Cluster::builder().namesrvs(1).brokers(1);
    builder.set("storePathRootDir", store).set("flushDiskType", flush).start()
}

/// So many rounds of load and power cuts.
fn cut_again_and_again(rounds: usize, cluster: &mut Cluster, disk: &LoopDevice, load: &mut Load) {
    let mut random = StdRng::seed_from_u64(seed());
    for round in 0..rounds {
        load.advance(10);
        let_run(Duration::from_millis(random.random_range(ROUND_MS)));
        let broker = &mut cluster.brokers[0];
        // The processor stops with the disk: nobody is told anything after that.
        broker.pause();
        disk.cut_power();
        broker.kill();
        disk.remount();
        broker.start();
        eprintln!("round {round}: {} messages so far", load.sent());
    }
}

fn start_bulk(cluster: &Cluster, endpoint: &str) -> Driver {
    cluster.create_topic(BULK);
    let options = [("seed", BULK), ("size", BULK_BYTES), ("threads", "1")];
    let (language, scenario) = (Language::Python, "produce");
    let plan = Plan { language, scenario, endpoint, topic: BULK, options: &options };
    Driver::start_ready(&plan, cluster.path())
}

#[test]
fn what_was_acknowledged_as_disk_survives() {
    let disk = LoopDevice::new(DISK_BYTES);
    let mut cluster = cluster_on(&disk, "SYNC_FLUSH");
    let endpoint = cluster.namesrvs[0].endpoint();
    let mut load = Load::start(&cluster, &endpoint, TOPIC);
    let bulk = start_bulk(&cluster, &endpoint);
    cut_again_and_again(ROUNDS, &mut cluster, &disk, &mut load);
    let mut large = Ledger::default();
    large.add(bulk.stop());
    let lost = large.not_among(&held_ids(&cluster, BULK)).len();
    assert_eq!(lost, 0, "of {} acknowledged large messages", large.sent.len());
    assert!(disk.path().join(FIRST_INDEX).exists(), "{} large messages fill no segment", large.sent.len());
    let ledger = load.finish(&cluster);
    assert!(ledger.sent.len() > ROUNDS * 20, "only {} messages in all rounds", ledger.sent.len());
}

#[test]
fn some_that_was_acknowledged_as_memory_does_not() {
    let disk = LoopDevice::new(DISK_BYTES);
    let mut cluster = cluster_on(&disk, "ASYNC_FLUSH");
    let mut load = Load::start(&cluster, &cluster.namesrvs[0].endpoint(), TOPIC);
    cut_again_and_again(CONTROL_ROUNDS, &mut cluster, &disk, &mut load);
    let ledger = load.stop_sending();
    let lost = ledger.not_among(&held_ids(&cluster, TOPIC)).len();
    eprintln!("{lost} of {} messages lost", ledger.sent.len());
    assert!(
        lost > 0,
        "nothing was lost that was never flushed: these power cuts cut nothing, and prove nothing"
    );
}
