//! Masters and slaves as processes of their own: the slave's log is the master's, sends wait for it when they ask for that,
//! and whoever must not follow is told why.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use karman_remoting::proto::karman::{Durability, TopicConfig};
use karman_remoting::proto::v2::{self, Code};
use karman_tests::cluster::Node;
use karman_tests::files::segments;
use karman_tests::raw::{message, receive_request, resource};
use karman_tests::replicas::{listed, wait_whole};
use karman_tests::{Cluster, Raw, until};

const DEADLINE: Duration = Duration::from_secs(30);

fn send(raw: &Raw, topic: &str, id: &str, body: usize) -> Code {
    let message = v2::Message { body: vec![7; body].into(), ..message(topic, id) };
    let response = raw.send(&[message]);
    let status = response.entries.first().and_then(|entry| entry.status.clone()).or(response.status);
    status.unwrap().code()
}

/// The segments of a broker's log, in order.
fn logs(directory: &Path) -> Vec<PathBuf> {
    let found = segments(&directory.join("store/commitlog")).unwrap();
    found.into_iter().map(|(_, path)| path).collect()
}

/// The log in `short` is a beginning of the one in `long`, and not an empty one.
fn assert_same_log(short: &Path, long: &Path) {
    let mut used = 0;
    for (one, other) in logs(short).iter().zip(logs(long)) {
        assert_eq!(one.file_name(), other.file_name());
        let (one, other) = (std::fs::read(one).unwrap(), std::fs::read(other).unwrap());
        let end = one.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        assert!(one[..end] == other[..end], "the logs differ");
        used += end;
    }
    assert!(used > 1000, "{used} bytes");
}

/// All messages that a new group gets of a topic, by id.
fn ids_of(raw: &Raw, topic: &str, group: &str, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    until(&format!("{count} messages of {topic}"), DEADLINE, || {
        let (_, messages) = raw.receive(receive_request(topic, group, "broker-a"));
        ids.extend(messages.into_iter().map(|message| message.system_properties.unwrap().message_id));
        (ids.len() >= count).then_some(())
    });
    ids.sort();
    ids
}

/// The former master, from now on a slave of the one that took its place.
fn deposed(cluster: &Cluster) -> Node {
    let settings = ["brokerRole=SLAVE".to_owned(), "brokerId=7".to_owned()];
    let mut deposed = cluster.broker_set_member("broker-a", &settings);
    deposed.start();
    deposed
}

fn end_with_one_log(cluster: &mut Cluster, mut deposed: Node) {
    wait_whole(cluster, 1, DEADLINE);
    deposed.stop();
    cluster.brokers[0].stop();
    assert_same_log(&cluster.path().join("broker-a"), &cluster.path().join("broker-a-1"));
}

#[test]
fn a_sync_master_answers_when_a_slave_has_it_and_refuses_without_one() {
    let mut cluster =
        Cluster::builder().namesrvs(1).brokers(1).slaves(1).set("brokerRole", "SYNC_MASTER").start();
    wait_whole(&cluster, 1, DEADLINE);
    cluster.create_topic("orders");
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    for number in 0..50 {
        assert_eq!(send(&raw, "orders", &format!("A{number:02}"), 1000), Code::Ok);
    }
    // The door of the slave leads to the master.
    let door = Raw::connect(&cluster.slaves[0].endpoint());
    assert_eq!(send(&door, "orders", "B", 10), Code::Ok);
    assert_eq!(ids_of(&door, "orders", "g", 51).len(), 51);

    let topic =
        TopicConfig { name: "local".into(), durability: Durability::Disk.into(), ..Default::default() };
    assert_eq!(raw.make_topic(topic).code(), Code::Ok);

    cluster.slaves[0].kill();
    let mut sent = 51;
    until("sends are refused", DEADLINE, || {
        let code = send(&raw, "orders", &format!("C{sent:03}"), 10);
        // One that was on its way is not answered OK, and not lost either.
        assert!(matches!(code, Code::Ok | Code::HaNotAvailable | Code::SlavePersistenceTimeout), "{code:?}");
        sent += usize::from(code != Code::HaNotAvailable);
        (code == Code::HaNotAvailable).then_some(())
    });
    assert_eq!(send(&raw, "orders", "refused", 10), Code::HaNotAvailable);
    // What does not ask for it goes on, also behind one that waits for the slave.
    assert_eq!(send(&raw, "local", "L", 10), Code::Ok);

    cluster.slaves[0].start();
    wait_whole(&cluster, 1, DEADLINE);
    assert_eq!(send(&raw, "orders", "refused", 10), Code::Ok, "it was not stored");
    assert_eq!(ids_of(&raw, "orders", "all", sent + 1).len(), sent + 1);
    wait_whole(&cluster, 1, DEADLINE);
    let broker = listed(&cluster);
    assert_eq!(
        (&broker["role"], &broker["in_sync"], &broker["in_sync_needed"]),
        (&"SYNC_MASTER".into(), &2.into(), &2.into())
    );
    cluster.slaves[0].stop();
    cluster.brokers[0].stop();
    assert_same_log(&cluster.path().join("broker-a-1"), &cluster.path().join("broker-a"));
}

#[test]
fn a_slave_that_stands_still_does_not_stop_its_master_for_longer_than_it_may() {
    let mut cluster = Cluster::builder()
        .namesrvs(1)
        .brokers(1)
        .slaves(2)
        .set("brokerRole", "SYNC_MASTER")
        .set("allAckInSyncStateSet", "true")
        .set("haMaxTimeSlaveNotCatchup", "1500")
        .set("slaveTimeout", "500")
        .start();
    wait_whole(&cluster, 2, DEADLINE);
    cluster.create_topic("t");
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    assert_eq!(send(&raw, "t", "1", 10), Code::Ok);
    cluster.slaves[0].pause();
    assert_eq!(send(&raw, "t", "2", 10), Code::SlavePersistenceTimeout, "all that are in sync must have it");
    let began = std::time::Instant::now();
    until("sends are answered again", DEADLINE, || (send(&raw, "t", "3", 10) == Code::Ok).then_some(()));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // The same id, whatever became of it before, is one message.
    assert_eq!(ids_of(&raw, "t", "g", 3), ["1", "2", "3"]);
    cluster.slaves[0].resume();
    wait_whole(&cluster, 2, DEADLINE);
}

/// Or a failover would take it back.
#[test]
fn what_a_consumer_is_told_is_with_the_slave() {
    let builder = Cluster::builder().namesrvs(1).brokers(1).slaves(1).set("brokerRole", "SYNC_MASTER");
    let mut cluster = builder.set("haMaxTimeSlaveNotCatchup", "60000").start();
    wait_whole(&cluster, 1, DEADLINE);
    cluster.create_topic("t");
    cluster.create_topic("u");
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    assert_eq!(send(&raw, "t", "1", 10), Code::Ok);
    assert_eq!(send(&raw, "u", "2", 10), Code::Ok);
    let (_, messages) = raw.receive(receive_request("t", "g", "broker-a"));
    let held = messages[0].system_properties.clone().unwrap();
    wait_whole(&cluster, 1, DEADLINE);
    // An acknowledgement.
    answered_with_the_slave(&mut cluster, |raw| {
        let entry = v2::AckMessageEntry {
            message_id: held.message_id.clone(),
            receipt_handle: held.receipt_handle.clone().unwrap(),
            ..Default::default()
        };
        let request =
            v2::AckMessageRequest { group: resource("g"), topic: resource("t"), entries: vec![entry] };
        let response = raw.ack_message(request);
        assert_eq!(response.status.unwrap().code(), Code::Ok);
    });
    // Where a group begins.
    answered_with_the_slave(&mut cluster, |raw| {
        let (_, messages) = raw.receive(receive_request("u", "g", "broker-a"));
        assert_eq!(messages.len(), 1);
    });
}

/// Makes a call to the master while its slave stands still: nothing else is on its way.
fn answered_with_the_slave(cluster: &mut Cluster, call: impl Fn(&Raw) + Sync) {
    cluster.slaves[0].pause();
    let endpoint = cluster.brokers[0].endpoint();
    let answered = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            call(&Raw::connect(&endpoint));
            answered.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_millis(700));
        assert!(!answered.load(std::sync::atomic::Ordering::SeqCst), "no slave has it");
        cluster.slaves[0].resume();
    });
    assert!(answered.into_inner());
    wait_whole(cluster, 1, DEADLINE);
}

#[test]
fn a_new_slave_begins_with_a_copy_and_takes_the_place_of_its_master() {
    let mut cluster = Cluster::builder().namesrvs(1).brokers(1).start();
    cluster.create_topic("t");
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    // More than a segment.
    for number in 0..45 {
        assert_eq!(send(&raw, "t", &format!("A{number:02}"), 2_000_000), Code::Ok);
    }
    let mut slave = cluster.slave(1, &[]);
    slave.start();
    wait_whole(&cluster, 1, DEADLINE);
    assert!(slave.log().contains("copies its master's store"), "{}", slave.log());
    assert_eq!(send(&raw, "t", "B", 10), Code::Ok);
    let (_, taken) = raw.receive(receive_request("t", "half", "broker-a"));
    assert!(!taken.is_empty());
    wait_whole(&cluster, 1, DEADLINE);

    // What the master writes now, nobody has.
    slave.pause();
    assert_eq!(send(&raw, "t", "lost", 10), Code::Ok);
    cluster.brokers[0].kill();
    slave.kill();
    let settings = ["brokerRole=ASYNC_MASTER".to_owned()];
    let mut promoted = cluster.broker_set_member("broker-a-1", &settings);
    promoted.start();
    let deposed = deposed(&cluster);
    cluster.brokers[0] = promoted;
    cluster.wait_whole();
    wait_whole(&cluster, 1, DEADLINE);
    assert!(deposed.log().contains("it is cut"), "{}", deposed.log());
    assert!(cluster.path().join("broker-a/store/quarantine").is_dir());
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    assert_eq!(send(&raw, "t", "C", 10), Code::Ok);
    let ids = ids_of(&raw, "t", "all", 47);
    assert!(ids.contains(&"C".to_owned()) && !ids.contains(&"lost".to_owned()), "{ids:?}");
    assert_eq!(listed(&cluster)["epoch"], 2);
    end_with_one_log(&mut cluster, deposed);
}

/// Each takes the next epoch, which is the same, at the same place.
#[test]
fn two_that_were_masters_without_one_another_come_to_one_log() {
    let mut cluster = Cluster::builder().namesrvs(1).brokers(1).slaves(1).start();
    cluster.create_topic("t");
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    assert_eq!(send(&raw, "t", "both", 1000), Code::Ok);
    wait_whole(&cluster, 1, DEADLINE);
    cluster.brokers[0].stop();
    cluster.slaves[0].stop();
    let as_master = ["brokerRole=ASYNC_MASTER".to_owned()];
    for (directory, id) in [("broker-a-1", "slave"), ("broker-a", "master")] {
        cluster.brokers[0] = cluster.broker_set_member(directory, &as_master);
        cluster.brokers[0].start();
        let raw = Raw::connect(&cluster.brokers[0].endpoint());
        assert_eq!(send(&raw, "t", id, 1000), Code::Ok);
        cluster.brokers[0].stop();
    }
    cluster.brokers[0] = cluster.broker_set_member("broker-a-1", &as_master);
    cluster.brokers[0].start();
    let deposed = deposed(&cluster);
    cluster.wait_whole();
    wait_whole(&cluster, 1, DEADLINE);
    assert!(deposed.log().contains("it is cut"), "{}", deposed.log());
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    assert_eq!(ids_of(&raw, "t", "all", 2), ["both", "slave"]);
    end_with_one_log(&mut cluster, deposed);
}

/// Nothing says any more what was in front of its log, for both of its snapshots know of what its master does not have.
#[test]
fn a_slave_that_is_cut_in_front_of_its_snapshots_begins_with_a_copy() {
    // Three segments of 64 MiB.
    let builder = Cluster::builder().namesrvs(1).brokers(1).slaves(1);
    let mut cluster = builder.set("commitLogSizeLimitBytes", "201326592").start();
    cluster.create_topic("t");
    let [here, there] = ["broker-a", "broker-a-1"].map(|name| cluster.path().join(name));
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let mut sent = 0;
    until("its first segment is deleted", DEADLINE, || {
        sent += 1;
        assert_eq!(send(&raw, "t", &format!("A{sent}"), 3_000_000), Code::Ok);
        (segments(&here.join("store/commitlog")).unwrap()[0].0 > 0).then_some(())
    });
    wait_whole(&cluster, 1, DEADLINE);
    cluster.slaves[0].kill();
    for round in ["B", "C"] {
        // Each leaves a snapshot.
        cluster.brokers[0].stop();
        cluster.brokers[0].start();
        let raw = Raw::connect(&cluster.brokers[0].endpoint());
        assert_eq!(send(&raw, "t", round, 10), Code::Ok);
    }
    cluster.brokers[0].stop();
    cluster.brokers[0] = cluster.broker_set_member("broker-a-1", &["brokerRole=ASYNC_MASTER".to_owned()]);
    // Its epoch is to be the later one.
    for _ in 0..3 {
        cluster.brokers[0].start();
        cluster.brokers[0].stop();
    }
    cluster.brokers[0].start();
    let mut deposed = deposed(&cluster);
    cluster.wait_whole();
    wait_whole(&cluster, 1, DEADLINE);
    for said in ["it is cut", "its log cannot be used: "] {
        assert!(deposed.log().contains(said), "{said}: {}", deposed.log());
    }
    let kept = segments(&here.join("store/quarantine")).unwrap();
    assert!(kept.len() > 1, "its log is in quarantine: {kept:?}");
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    assert_eq!(send(&raw, "t", "D", 10), Code::Ok);
    wait_whole(&cluster, 1, DEADLINE);
    deposed.stop();
    cluster.brokers[0].stop();
    assert_same_log(&here, &there);
}

/// What its master still has of its log begins behind where the two parted.
#[test]
fn a_log_that_has_nothing_in_common_with_the_masters_is_kept_when_a_copy_takes_its_place() {
    let mut cluster = Cluster::builder().namesrvs(1).brokers(1).slaves(1).start();
    cluster.create_topic("t");
    let [here, there] = ["broker-a", "broker-a-1"].map(|name| cluster.path().join(name));
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    assert_eq!(send(&raw, "t", "both", 1000), Code::Ok);
    wait_whole(&cluster, 1, DEADLINE);
    cluster.brokers[0].stop();
    cluster.slaves[0].stop();
    // Three segments of 64 MiB.
    let as_master = ["brokerRole=ASYNC_MASTER", "commitLogSizeLimitBytes=201326592"].map(str::to_owned);
    let mut begins = Vec::new();
    for (directory, path) in [("broker-a", &here), ("broker-a-1", &there)] {
        cluster.brokers[0] = cluster.broker_set_member(directory, &as_master);
        cluster.brokers[0].start();
        let raw = Raw::connect(&cluster.brokers[0].endpoint());
        let mut sent = 0;
        let begin = until("its first segment is deleted", DEADLINE, || {
            sent += 1;
            assert_eq!(send(&raw, "t", &format!("{directory}{sent}"), 3_000_000), Code::Ok);
            let first = segments(&path.join("store/commitlog")).unwrap()[0].0;
            (first > 0).then_some(first)
        });
        begins.push(begin);
        if directory == "broker-a" {
            cluster.brokers[0].stop();
        }
    }
    let kept = |part: &str| {
        let files = segments(&here.join(part)).unwrap_or_default().into_iter();
        files.map(|(base, path)| (base, std::fs::read(path).unwrap())).collect::<Vec<_>>()
    };
    let before = kept("store/commitlog");
    let deposed = deposed(&cluster);
    cluster.wait_whole();
    wait_whole(&cluster, 1, DEADLINE);
    assert!(deposed.log().contains("nothing in common with its master's"), "{}", deposed.log());
    let quarantine = kept("store/quarantine");
    assert!(before.len() > 1 && before == quarantine, "{begins:?}: its log is in quarantine");
}

#[test]
fn who_must_not_follow_is_told_why_and_nothing_is_touched() {
    // Without a namesrv: a slave can be told where its master is.
    let mut cluster = Cluster::builder().start();
    let mut main = cluster.broker_set_member("main", &["clusterSecret=s3cret".to_owned()]);
    main.start();
    let master = format!("haMasterAddress={}", main.ready("internal"));
    cluster.brokers.push(main);
    let main = &cluster.brokers[0];
    let mut good = cluster.slave(2, &["clusterSecret=s3cret", &master]);
    good.start();
    let follows = "follows its master";
    until("it follows", DEADLINE, || good.log().contains(follows).then_some(()));
    let is_refusal = |line: &str| line.contains("\"a slave is refused\"") && line.contains("WARN");
    let refused = |own: &str, settings: &[&str], why: &str| {
        let mut all = vec!["brokerRole=SLAVE".to_owned(), "clusterSecret=s3cret".to_owned(), master.clone()];
        all.extend(settings.iter().map(|&setting| setting.to_owned()));
        let mut slave = cluster.broker_set_member(own, &all);
        slave.start();
        until(&format!("it says {why:?}"), DEADLINE, || slave.log().contains(why).then_some(()));
        assert!(!slave.log().contains(follows));
        // Its master says so too, and not each time.
        let told = || main.log().lines().filter(|line| is_refusal(line) && line.contains(why)).count();
        let again = std::time::Instant::now() + Duration::from_millis(500);
        until("it has tried again", DEADLINE, || (std::time::Instant::now() > again).then_some(()));
        assert_eq!(told(), 1, "{}", main.log());
        // And to whoever asks the cluster.
        let list = cluster.karman(&["--cluster-secret", "s3cret", "-o", "json", "cluster", "list"]);
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        let mut refused = list[0]["refused"].as_array().unwrap().iter();
        assert!(refused.any(|refused| refused["why"].as_str().unwrap().contains(why)), "{list:#}");
        slave.stop();
    };
    refused("secret", &["brokerId=3", "clusterSecret=guess"], "clusterSecret");
    refused("twice", &["brokerId=2"], "belongs to the slave at");
    refused("cluster", &["brokerId=3", "brokerClusterName=other"], "brokerClusterName is");
    refused("name", &["brokerId=3", "brokerName=broker-b"], "brokerName is");
    // Another log: a broker that was a master of its own.
    let mut own = cluster.broker_set_member("stranger", &[]);
    own.start();
    own.stop();
    let before = logs(&cluster.path().join("stranger"))
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect::<Vec<_>>();
    refused("stranger", &["brokerId=3"], "another log");
    let after = logs(&cluster.path().join("stranger"))
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect::<Vec<_>>();
    assert!(before == after, "its log was touched");
}
