//! A broker set that elects its master: killed, stopped, cut off and started anew, and everything that was answered OK is there.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use karman_remoting::proto::v2::{self, Code};
use karman_tests::failover::{TOPIC, interrupted, send_until_ok, start, wait_in_sync};
use karman_tests::files::segments;
use karman_tests::raw::{message, receive_request};
use karman_tests::{Raw, until};

const DEADLINE: Duration = Duration::from_secs(30);
/// What a failover may take: detection, election and start of the new master.
const FAILOVER_MAX: Duration = Duration::from_secs(6);

/// A new group gets everything that was answered OK.
fn assert_all_there(raw: &Raw, group: &str, sent: &BTreeSet<String>) {
    let mut missing = sent.clone();
    until("all that was answered OK is there", DEADLINE, || {
        let (_, messages) = raw.receive(receive_request(TOPIC, group, "broker-a"));
        for message in messages {
            missing.remove(&message.system_properties.unwrap().message_id);
        }
        missing.is_empty().then_some(())
    });
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
        let (took, _) = send_until_ok(&raw, &format!("{round}-first"), &mut sent);
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
        let (took, _) = send_until_ok(&raw, &format!("{round}-first"), &mut sent);
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

#[test]
fn a_drained_broker_stays_a_slave() {
    let (mut cluster, raw) = start();
    let drained = wait_in_sync(&cluster, 3);
    let id = (drained + 1).to_string();
    let drain = ["cluster", "drain", "broker-a", &id];
    let (longest, again) = interrupted(&raw, "drain", || drop(cluster.karman(&drain)));
    println!("sends were not answered for {longest:?}, the same one was sent again {again} times");
    let second = wait_in_sync(&cluster, 3);
    assert_ne!(second, drained);
    let shown = cluster.karman(&["cluster", "show"]);
    assert_eq!(shown.matches(" drained ").count(), 1, "{shown}");

    // Nor after a start, while another can be master.
    cluster.members[drained].stop();
    cluster.members[drained].start();
    // Ready means that the next one may be stopped.
    cluster.karman(&["ready", cluster.members[drained].ready("metrics"), "--wait", "30s"]);
    let shown: serde_json::Value =
        serde_json::from_str(&cluster.karman(&["-o", "json", "cluster", "show"])).unwrap();
    assert_eq!(shown["sets"][0]["in_sync"].as_array().unwrap().len(), 3, "{shown}");
    assert_eq!(wait_in_sync(&cluster, 3), second);
    cluster.members[second].kill();
    let third = wait_in_sync(&cluster, 2);
    assert_ne!(third, drained);
    cluster.members[second].start();
    wait_in_sync(&cluster, 3);
    cluster.karman(&[&drain[..], &["--undo"]].concat());
    assert!(!cluster.karman(&["cluster", "show"]).contains(" drained "));
}

/// As behind a deep cut: its log does not reach back to its beginning, and no snapshot says what was there.
#[test]
fn a_member_that_cannot_use_its_log_any_more_begins_with_a_copy() {
    let (mut cluster, raw) = start();
    let mut sent = BTreeSet::new();
    // More than a segment.
    for number in 0..35 {
        let id = format!("A{number}");
        let message = v2::Message { body: vec![7; 2_000_000].into(), ..message(TOPIC, &id) };
        assert_eq!(raw.send(&[message]).status.unwrap().code(), Code::Ok);
        sent.insert(id);
    }
    let master = wait_in_sync(&cluster, 3);
    let slave = (master + 1) % 3;
    cluster.members[slave].stop();
    let store = cluster.path().join(format!("broker-a-{}/store", slave + 1));
    let log = segments(&store.join("commitlog")).unwrap();
    assert!(log.len() > 1, "{log:?}");
    std::fs::remove_file(&log[0].1).unwrap();
    std::fs::remove_file(store.join("cursor")).unwrap();
    for snapshot in std::fs::read_dir(store.join("snapshot")).unwrap() {
        std::fs::remove_file(snapshot.unwrap().path()).unwrap();
    }
    cluster.members[slave].start();
    // Until then it may still count as in sync, from before it was stopped.
    until("what was left of it is set aside", DEADLINE, || {
        segments(&store.join("quarantine")).ok().filter(|left| !left.is_empty())
    });
    wait_in_sync(&cluster, 3);
    // It can lead.
    cluster.members[master].stop();
    send_until_ok(&raw, "B", &mut sent);
    assert_all_there(&raw, "g", &sent);
}

/// What only a master finds out is shown by the controllers too.
#[test]
fn a_member_with_another_log_is_refused_and_shown() {
    let (mut cluster, _) = start();
    let master = wait_in_sync(&cluster, 3);
    let slave = (master + 1) % 3;
    cluster.members[slave].stop();
    let own = format!("broker-a-{}/store", slave + 1);
    std::fs::remove_dir_all(cluster.path().join(&own)).unwrap();
    let mut stranger = cluster.broker_set_member("stranger", &["namesrvAddr=".to_owned()]);
    stranger.start();
    stranger.stop();
    std::fs::rename(cluster.path().join("stranger/store"), cluster.path().join(&own)).unwrap();
    cluster.members[slave].start();
    let shown = until("it is shown", DEADLINE, || {
        let shown = cluster.karman(&["-o", "json", "cluster", "show"]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let refused = shown["refused"].as_array().unwrap().first().cloned();
        refused.filter(|refused| refused["by"] == "broker broker-a")
    });
    let (who, why) = (shown["who"].as_str().unwrap(), shown["why"].as_str().unwrap());
    assert!(who.starts_with(&format!("brokerId {} ", slave + 1)), "{shown}");
    assert!(why.contains("another log"), "{shown}");
    let table = cluster.karman(&["cluster", "show"]);
    assert!(table.contains("Refused by broker broker-a: brokerId"), "{table}");
}
