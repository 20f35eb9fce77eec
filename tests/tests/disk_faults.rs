//! A real disk that is full, lies, fails or hangs, under a broker with both official clients.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::time::{Duration, Instant};

use bytes::Bytes;
use karman_remoting::proto::v2::{self, AckMessageEntry, Code};
use karman_tests::raw::{message, receive_request, resource, seconds};
use karman_tests::{Cluster, Load, LoopDevice, Raw, let_run, until};

const TOPIC: &str = "disk-faults";
/// Room for a few segments of 64 MiB beside what the broker leaves free. Sparse: a test takes what it writes.
const DISK_BYTES: u64 = 1 << 30;
const SEGMENT_MIB: usize = 64;
const FIRST_SEGMENT: &str = "store/commitlog/00000000000000000000.log";
const BALLAST: &str = "ballast";
const DEADLINE: Duration = Duration::from_secs(20);

/// A broker whose store is on `disk`, and a namesrv that is elsewhere.
fn cluster_on(disk: &LoopDevice) -> Cluster {
    let store = disk.path().to_str().unwrap();
    Cluster::builder().namesrvs(1).brokers(1).set("storePathRootDir", store).start()
}

fn load_on(cluster: &Cluster) -> Load {
    Load::start(cluster, &cluster.namesrvs[0].endpoint(), TOPIC)
}

/// The broker must have ended by itself, with an error that says why, and be gone from the namesrv's routes.
fn assert_failed(cluster: &mut Cluster, words: &[&str]) {
    let (status, log) = cluster.brokers[0].wait_end();
    assert_eq!(status.code(), Some(1), "{status}: {log}");
    let reason = log.lines().rfind(|line| line.starts_with("Error: the store has failed: "));
    let reason = reason.unwrap_or_else(|| panic!("no reason in {log}"));
    for word in words {
        assert!(reason.contains(word), "the reason must name {word:?}: {reason}");
    }
    eprintln!("{reason}");
    let namesrv = Raw::connect(&cluster.namesrvs[0].endpoint());
    until("the broker has left the routes", DEADLINE, || (namesrv.known_brokers() == 0).then_some(()));
}

/// Everything that was acknowledged is delivered, and is on the disk when the power goes now.
fn assert_nothing_lost(cluster: &mut Cluster, disk: &LoopDevice, mut load: Load) {
    load.advance(100);
    cluster.brokers[0].pause();
    disk.cut_power();
    cluster.brokers[0].kill();
    disk.remount();
    cluster.brokers[0].start();
    load.advance(10);
    load.finish(cluster);
}

/// Sends messages of 1 MiB to a topic of its own until one is refused; how many were taken.
fn send_until_refused(cluster: &Cluster) -> usize {
    cluster.create_topic(BALLAST);
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    for taken in 0.. {
        let mut message = message(BALLAST, &format!("{taken}"));
        message.body = Bytes::from(vec![b'x'; 1 << 20]);
        let status = raw.send(&[message]).status.unwrap();
        if status.code != Code::Ok as i32 {
            assert_refused(Some(status.code), &status.message);
            return taken;
        }
    }
    unreachable!()
}

fn assert_refused(code: Option<i32>, text: &str) {
    assert_eq!(code, Some(Code::InternalServerError as i32), "{text}");
    assert!(text.contains("the store takes no more messages: no room for the next segment"), "{text}");
}

/// Receives and acknowledges what [`send_until_refused`] sent; how many there were.
fn consume_ballast(cluster: &Cluster) -> usize {
    let broker = &cluster.brokers[0];
    let raw = Raw::connect(&broker.endpoint());
    let mut request = receive_request(BALLAST, "ballast", broker.name());
    (request.batch_size, request.long_polling_timeout) = (8, Some(seconds(1)));
    let mut count = 0;
    loop {
        let (status, messages) = raw.receive(request.clone());
        if status.code == Code::MessageNotFound as i32 {
            return count;
        }
        count += messages.len();
        let entry = |message: v2::Message| {
            let properties = message.system_properties.unwrap();
            let receipt_handle = properties.receipt_handle.unwrap();
            AckMessageEntry { message_id: properties.message_id, receipt_handle, ..Default::default() }
        };
        let entries = messages.into_iter().map(entry).collect();
        let (group, topic) = (resource("ballast"), resource(BALLAST));
        let status = raw.ack_message(v2::AckMessageRequest { group, topic, entries }).status.unwrap();
        assert_eq!(status.code, Code::Ok as i32, "{status:?}");
    }
}

#[test]
fn a_full_disk_refuses_sends_and_nothing_else() {
    let disk = LoopDevice::new(DISK_BYTES);
    let mut cluster = cluster_on(&disk);
    disk.fill();
    let ballast = send_until_refused(&cluster);
    assert!(ballast > SEGMENT_MIB / 2, "the segment that is there takes only {ballast} of {SEGMENT_MIB} MiB");
    let mut load = load_on(&cluster);
    for failure in load.wait_failed(20) {
        assert_refused(failure.code, &failure.message.unwrap_or_default());
    }
    load.wait_consumed();
    assert_eq!(consume_ballast(&cluster), ballast, "what is there is handed out");

    // A broker that starts on a full disk knows what was acknowledged, by consumers too, and still refuses.
    cluster.brokers[0].kill();
    cluster.brokers[0].start();
    load.wait_failed(20);
    assert_eq!(consume_ballast(&cluster), 0, "progress is recorded on a full disk");

    disk.free();
    assert_nothing_lost(&mut cluster, &disk, load);
    assert!(cluster.brokers[0].is_running());
}

#[test]
fn a_flush_that_fails_once_is_the_last() {
    const KEPT_BYTES: u64 = 256 << 20;
    let disk = LoopDevice::thin(DISK_BYTES, KEPT_BYTES);
    let mut cluster = cluster_on(&disk);
    let mut load = load_on(&cluster);
    load.advance(100);
    let active = File::open(disk.path().join(FIRST_SEGMENT)).unwrap();
    disk.fill_backing();
    assert_failed(&mut cluster, &["cannot flush", "commitlog"]);
    // Each open file is told once, then all is well again as far as the kernel is concerned.
    active.sync_data().expect_err("the flush has failed for everyone who had the file open");
    active.sync_data().expect("a disk that says OK after it has lost pages");
    drop(active);

    disk.free_backing();
    // The page cache still shows what the disk has not.
    cluster.brokers[0].start();
    assert_nothing_lost(&mut cluster, &disk, load);
}

#[test]
fn a_disk_that_is_gone_ends_the_broker() {
    let disk = LoopDevice::new(DISK_BYTES);
    let mut cluster = cluster_on(&disk);
    let mut load = load_on(&cluster);
    load.advance(100);
    disk.cut_power();
    assert_failed(&mut cluster, &["cannot", "commitlog", "Input/output error"]);
    disk.remount();
    cluster.brokers[0].start();
    assert_nothing_lost(&mut cluster, &disk, load);
}

#[test]
fn a_disk_that_hangs_is_waited_for() {
    const HANGS: Duration = Duration::from_secs(5);
    let disk = LoopDevice::new(DISK_BYTES);
    let mut cluster = cluster_on(&disk);
    let mut load = load_on(&cluster);
    load.advance(100);
    let began = Instant::now();
    let frozen = disk.freeze();
    // What was flushed before is still answered.
    let_run(Duration::from_secs(1));
    let sent = load.sent();
    let_run(HANGS.saturating_sub(began.elapsed()));
    assert_eq!(load.sent(), sent, "nothing is acknowledged that cannot be flushed");
    drop(frozen);
    load.advance(100);
    assert!(cluster.brokers[0].is_running());
    assert_nothing_lost(&mut cluster, &disk, load);
}
