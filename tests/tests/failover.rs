//! A broker set that elects its master: killed, stopped, cut off and started anew, and everything that was answered OK is there.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use karman_remoting::proto::v2::{self, Code};
use karman_tests::raw::{message, receive_request};
use karman_tests::{Cluster, Raw, until};

const DEADLINE: Duration = Duration::from_secs(30);
/// What a failover may take: detection, election and start of the new master.
const FAILOVER_MAX: Duration = Duration::from_secs(6);

/// What `karman cluster list` says of the set, `null` while no master is registered.
fn listed(cluster: &Cluster) -> serde_json::Value {
    let list = cluster.karman(&["-o", "json", "cluster", "list"]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    list[0].clone()
}

/// Waits until so many brokers of the set count, and says which of them is the master: its index.
fn wait_in_sync(cluster: &Cluster, count: u64) -> usize {
    let master = until(&format!("{count} brokers are in sync"), DEADLINE, || {
        let set = listed(cluster);
        (set["in_sync"].as_u64() == Some(count)).then(|| set["internal_address"].as_str().unwrap().to_owned())
    });
    let is_master = |index: &usize| cluster.members[*index].ready("internal") == master;
    (0..cluster.members.len()).find(is_master).expect("the master is one of the members")
}

fn send(raw: &Raw, id: &str) -> Code {
    let response = raw.send(&[message("t", id)]);
    let status = response.entries.first().and_then(|entry| entry.status.clone()).or(response.status);
    let status = status.unwrap_or_default();
    status.code()
}

/// Sends until one is answered OK; how long that took.
fn send_until_ok(raw: &Raw, id: &str, sent: &mut BTreeSet<String>) -> Duration {
    let began = Instant::now();
    until(&format!("{id} is answered OK"), DEADLINE, || (send(raw, id) == Code::Ok).then_some(()));
    sent.insert(id.to_owned());
    began.elapsed()
}

/// A new group gets everything that was answered OK.
fn assert_all_there(raw: &Raw, group: &str, sent: &BTreeSet<String>) {
    let mut missing = sent.clone();
    until("all that was answered OK is there", DEADLINE, || {
        let (_, messages) = raw.receive(receive_request("t", group, "broker-a"));
        for message in messages {
            missing.remove(&message.system_properties.unwrap().message_id);
        }
        missing.is_empty().then_some(())
    });
}

fn start() -> (Cluster, Raw) {
    let cluster = Cluster::builder().namesrvs(3).controlled(3).start();
    wait_in_sync(&cluster, 3);
    let raw = Raw::connect(&cluster.namesrvs[0].endpoint());
    let status = raw.create_topic("t", v2::MessageType::Normal);
    assert_eq!(status.code(), Code::Ok, "{status:?}");
    cluster.wait_topic("t");
    (cluster, raw)
}

#[test]
fn a_set_survives_the_loss_of_its_master_again_and_again() {
    let (mut cluster, raw) = start();
    let mut sent = BTreeSet::new();
    for round in 0..4 {
        for number in 0..20 {
            send_until_ok(&raw, &format!("{round}-{number}"), &mut sent);
        }
        let master = wait_in_sync(&cluster, 3);
        cluster.members[master].kill();
        let took = send_until_ok(&raw, &format!("{round}-first"), &mut sent);
        println!("round {round}: the first send after a kill was answered after {took:?}");
        assert!(took < FAILOVER_MAX, "{took:?}");
        // Old handles, what was delivered: nothing stops the group.
        assert_all_there(&raw, &format!("g{round}"), &sent);
        cluster.members[master].start();
    }
    wait_in_sync(&cluster, 3);
    assert_all_there(&raw, "last", &sent);
}

#[test]
fn a_master_that_is_stopped_in_order_hands_over() {
    let (mut cluster, raw) = start();
    let mut sent = BTreeSet::new();
    for round in 0..3 {
        send_until_ok(&raw, &format!("{round}"), &mut sent);
        let master = wait_in_sync(&cluster, 3);
        cluster.members[master].stop();
        let took = send_until_ok(&raw, &format!("{round}-first"), &mut sent);
        println!("round {round}: the first send after a handover was answered after {took:?}");
        cluster.members[master].start();
    }
    wait_in_sync(&cluster, 3);
    assert_all_there(&raw, "g", &sent);
}

#[test]
fn a_master_that_stood_still_answers_nothing_and_follows_its_successor() {
    let (mut cluster, raw) = start();
    let mut sent = BTreeSet::new();
    send_until_ok(&raw, "before", &mut sent);
    let old = wait_in_sync(&cluster, 3);
    cluster.members[old].pause();
    // Who asks it meanwhile waits for as long as it likes; afterwards the routes lead to another.
    let new = wait_in_sync(&cluster, 2);
    send_until_ok(&raw, "after", &mut sent);
    assert_ne!(old, new);
    cluster.members[old].resume();
    assert_eq!(wait_in_sync(&cluster, 3), new);
    // Its door leads to the new master.
    let door = Raw::connect(&cluster.members[old].endpoint());
    send_until_ok(&door, "through the old one", &mut sent);
    assert_all_there(&raw, "g", &sent);
}

#[test]
fn all_at_once_go_and_come_back() {
    let (mut cluster, raw) = start();
    let mut sent = BTreeSet::new();
    for number in 0..50 {
        send_until_ok(&raw, &format!("{number}"), &mut sent);
    }
    cluster.namesrvs.iter_mut().chain(&mut cluster.members).for_each(karman_tests::cluster::Node::kill);
    cluster.namesrvs.iter_mut().chain(&mut cluster.members).for_each(karman_tests::cluster::Node::start);
    wait_in_sync(&cluster, 3);
    assert_all_there(&raw, "g", &sent);
    send_until_ok(&raw, "again", &mut sent);
}
