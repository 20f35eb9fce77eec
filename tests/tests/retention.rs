//! A broker gives space back: what was deleted is gone for groups that were behind, and for nobody else.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use karman_remoting::proto::v2::{self, AckMessageEntry, Code};
use karman_tests::raw::{message, receive_request, resource, seconds};
use karman_tests::{Cluster, LoopDevice, Raw, until};

const TOPIC: &str = "kept-for-a-while";
const GROUP: &str = "behind";
/// Three segments of 64 MiB, the least that is possible.
const LIMIT: &str = "201326592";
const DEADLINE: Duration = Duration::from_secs(60);

/// Sends a message of 1 MiB that says its number.
fn send(raw: &Raw, number: usize) -> v2::Status {
    let mut message = message(TOPIC, &format!("{number}"));
    message.body = Bytes::from(vec![number as u8; 1 << 20]);
    raw.send(&[message]).status.unwrap()
}

/// Receives and acknowledges up to `max` messages; their ids.
fn receive(raw: &Raw, broker: &str, max: i32) -> Vec<String> {
    let mut request = receive_request(TOPIC, GROUP, broker);
    (request.batch_size, request.long_polling_timeout) = (max, Some(seconds(1)));
    let (status, messages) = raw.receive(request);
    assert!([Code::Ok as i32, Code::MessageNotFound as i32].contains(&status.code), "{status:?}");
    let mut ids = Vec::new();
    let entries: Vec<_> = messages
        .into_iter()
        .map(|message| {
            let properties = message.system_properties.unwrap();
            ids.push(properties.message_id.clone());
            let receipt_handle = properties.receipt_handle.unwrap();
            AckMessageEntry { message_id: properties.message_id, receipt_handle, ..Default::default() }
        })
        .collect();
    if !entries.is_empty() {
        let (group, topic) = (resource(GROUP), resource(TOPIC));
        let status = raw.ack_message(v2::AckMessageRequest { group, topic, entries }).status.unwrap();
        assert_eq!(status.code, Code::Ok as i32, "{status:?}");
    }
    ids
}

/// Sums of the smallest and the largest offsets of the topic's queues.
fn offsets(cluster: &Cluster) -> (u64, u64) {
    let shown = cluster.karman(&["-o", "json", "topic", "show", TOPIC]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let queues = shown["queues"].as_array().unwrap();
    let sum = |key: &str| queues.iter().map(|queue| queue[key].as_u64().unwrap()).sum();
    (sum("min_offset"), sum("max_offset"))
}

#[test]
fn a_group_that_is_behind_goes_on_at_what_there_is() {
    let mut cluster = Cluster::builder().brokers(1).set("commitLogSizeLimitBytes", LIMIT).start();
    cluster.create_topic(TOPIC);
    let broker = cluster.brokers[0].name().to_owned();
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    assert_eq!(send(&raw, 0).code, Code::Ok as i32);
    assert_eq!(receive(&raw, &broker, 1), ["0"], "the group has begun");
    let mut sent = 1;
    let deleted = until("a deletion", DEADLINE, || {
        (0..20).for_each(|number| assert_eq!(send(&raw, sent + number).code, Code::Ok as i32));
        sent += 20;
        Some(offsets(&cluster).0).filter(|deleted| *deleted > 60)
    });
    // It must also be so for a broker that did not see it happen.
    cluster.brokers[0].kill();
    cluster.brokers[0].start();
    cluster.wait_route(TOPIC);
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let mut received = BTreeSet::new();
    loop {
        let ids = receive(&raw, &broker, 16);
        if ids.is_empty() {
            break;
        }
        received.extend(ids);
    }
    let (min, max) = offsets(&cluster);
    assert_eq!(max, sent as u64, "offsets go on");
    assert!(min >= deleted, "{min}");
    // Some may have gone meanwhile, after they were received.
    assert!(
        received.len() as u64 >= max - min && received.len() as u64 <= max - deleted,
        "{}",
        received.len()
    );
    let newest = (sent - 50..sent).map(|number| number.to_string());
    assert!(newest.into_iter().all(|id| received.contains(&id)));
    let groups: serde_json::Value =
        serde_json::from_str(&cluster.karman(&["-o", "json", "group", "list"])).unwrap();
    let group = groups.as_array().unwrap().iter().find(|row| row["group"] == GROUP).unwrap();
    assert_eq!((group["ready"].as_u64(), group["inflight"].as_u64()), (Some(0), Some(0)), "{group}");
    assert_eq!(send(&raw, sent).code, Code::Ok as i32);
    assert_eq!(receive(&raw, &broker, 1), [sent.to_string()]);
}

#[test]
fn a_disk_that_is_used_too_much_takes_no_messages_until_there_is_room() {
    let disk = LoopDevice::new(1 << 30);
    let store = disk.path().to_str().unwrap();
    let builder = Cluster::builder().brokers(1).set("storePathRootDir", store);
    let cluster = builder
        .set("diskSpaceWarningLevelRatio", "90")
        .set("diskSpaceCleanForciblyRatio", "90")
        .set("diskMaxUsedSpaceRatio", "90")
        .start();
    cluster.create_topic(TOPIC);
    let broker = cluster.brokers[0].name().to_owned();
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    assert_eq!(send(&raw, 0).code, Code::Ok as i32);
    disk.fill();
    let mut sent = 1;
    let refused = until("a refusal", DEADLINE, || {
        let status = send(&raw, sent);
        sent += 1;
        (status.code != Code::Ok as i32).then_some(status)
    });
    assert_eq!(refused.code, Code::InternalServerError as i32, "{refused:?}");
    assert!(
        refused.message.contains("no room for messages: 100 % of the disk is used, at most 90 % may be"),
        "{refused:?}"
    );
    let mut received = 0;
    until("what is there", DEADLINE, || {
        received += receive(&raw, &broker, 16).len();
        (received == sent - 1).then_some(())
    });
    disk.free();
    until("room", DEADLINE, || (send(&raw, sent).code == Code::Ok as i32).then_some(()));
}
