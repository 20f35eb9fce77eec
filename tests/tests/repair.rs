//! What is damaged of a broker's log comes back from the other broker of its set, while both serve.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use karman_remoting::proto::v2::{self, Code};
use karman_tests::files::{flip, segments};
use karman_tests::raw::{message, receive_request};
use karman_tests::replicas::{listed, wait_whole};
use karman_tests::{Cluster, Raw, until};

const DEADLINE: Duration = Duration::from_secs(60);
/// More than three segments.
const MESSAGES: usize = 54;
const BODY_BYTES: usize = 4_000_000;
const SEGMENT_BYTES: u64 = 64 << 20;
const SCRUB_RATE: &str = "scrubRateBytesPerSecond=200000000";

fn ids_of(raw: &Raw, group: &str) -> Vec<String> {
    let mut ids = Vec::new();
    until("all messages", DEADLINE, || {
        let (_, messages) = raw.receive(receive_request("t", group, "broker-a"));
        ids.extend(messages.into_iter().map(|message| message.system_properties.unwrap().message_id));
        (ids.len() >= MESSAGES).then_some(())
    });
    ids.sort();
    ids
}

/// Flips a bit in the first segment and takes another one away, with its index file.
fn damage(directory: &Path, flipped: u64, missing: usize) {
    let files = segments(&directory.join("store/commitlog")).unwrap();
    flip(&files[0].1, flipped).unwrap();
    fs::remove_file(&files[missing].1).unwrap();
    fs::remove_file(files[missing].1.with_extension("idx")).unwrap();
}

#[test]
fn flipped_bits_and_missing_segments_of_master_and_slave_are_repaired_while_they_serve() {
    let (key, value) = SCRUB_RATE.split_once('=').unwrap();
    let builder = Cluster::builder().namesrvs(1).brokers(1).set("brokerRole", "SYNC_MASTER");
    let mut cluster = builder.set(key, value).start();
    let mut slave = cluster.slave(1, &[SCRUB_RATE]);
    slave.start();
    wait_whole(&cluster, 1, DEADLINE);
    cluster.create_topic("t");
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    for number in 0..MESSAGES {
        let message =
            v2::Message { body: vec![7; BODY_BYTES].into(), ..message("t", &format!("M{number:02}")) };
        assert_eq!(raw.send(&[message]).status.unwrap().code(), Code::Ok);
    }
    wait_whole(&cluster, 1, DEADLINE);
    cluster.brokers[0].stop();
    slave.stop();

    let (master_files, slave_files) = (cluster.path().join("broker-a"), cluster.path().join("broker-a-1"));
    // The last one is written on.
    let whole: Vec<_> = segments(&master_files.join("store/commitlog")).unwrap();
    let whole: Vec<_> = whole[..3].iter().map(|(_, path)| fs::read(path).unwrap()).collect();
    damage(&slave_files, 10_000_000, 1);
    damage(&master_files, 30_000_000, 2);

    cluster.brokers[0].start();
    slave.start();
    cluster.wait_whole();
    until("the master is repaired", DEADLINE, || {
        let broker = listed(&cluster);
        // All of a segment, and a record.
        let all = broker["repaired_bytes"].as_u64().unwrap() > SEGMENT_BYTES + BODY_BYTES as u64;
        (all && broker["damaged_bytes"] == 0).then_some(())
    });
    until("the slave is repaired", DEADLINE, || {
        (slave.log().matches("is repaired from").count() >= 2).then_some(())
    });

    let report = || -> serde_json::Value {
        serde_json::from_str(&cluster.karman(&["-o", "json", "store", "verify", "--live"])).unwrap()
    };
    let report = report();
    assert_eq!(report[0]["sound"], true, "{report}");
    let from_slave = |repaired: &serde_json::Value| repaired["source"] == slave.ready("internal");
    assert!(report[0]["repaired"].as_array().unwrap().iter().all(from_slave), "{report}");
    assert!(slave.log().contains(&format!("is repaired from {}", cluster.brokers[0].ready("internal"))));

    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let ids = ids_of(&raw, "all");
    assert_eq!(ids, (0..MESSAGES).map(|number| format!("M{number:02}")).collect::<Vec<_>>());
    for directory in [&master_files, &slave_files] {
        for ((_, path), expected) in segments(&directory.join("store/commitlog")).unwrap().iter().zip(&whole)
        {
            assert!(fs::read(path).unwrap() == *expected, "{} is not what it was", path.display());
        }
    }

    // The slave has the index of all of it too: it takes its master's place.
    wait_whole(&cluster, 1, DEADLINE);
    cluster.brokers[0].stop();
    slave.stop();
    let mut promoted = cluster.broker_set_member("broker-a-1", &["brokerRole=ASYNC_MASTER".to_owned()]);
    promoted.start();
    cluster.brokers[0] = promoted;
    cluster.wait_whole();
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    assert_eq!(ids_of(&raw, "at-the-slave").len(), MESSAGES);
}
