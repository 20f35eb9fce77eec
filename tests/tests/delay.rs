//! Delayed messages through brokers as processes: not early, once, across `kill -9`, and taken back by their handles.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use karman_remoting::proto::v2::{self, Code, MessageType};
use karman_tests::raw::{delayed, is_ok, message, millis, now_ms, receive_request, resource, system, take};
use karman_tests::{Cluster, Raw, until};
use prost_types::Timestamp;

const TOPIC: &str = "later";
const GROUP: &str = "billing";
const DEADLINE: Duration = Duration::from_secs(20);

fn cluster() -> Cluster {
    let cluster = Cluster::builder().namesrvs(1).brokers(1).start();
    create(&cluster, TOPIC, MessageType::Delay);
    cluster
}

fn create(cluster: &Cluster, topic: &str, kind: MessageType) {
    is_ok(Raw::connect(&cluster.brokers[0].endpoint()).create_topic(topic, kind));
    cluster.wait_route(topic);
}

fn doors(cluster: &Cluster) -> [(&'static str, Raw); 2] {
    [
        ("broker", Raw::connect(&cluster.brokers[0].endpoint())),
        ("namesrv", Raw::connect(&cluster.namesrvs[0].endpoint())),
    ]
}

/// Its entry in the answer.
fn send(raw: &Raw, message: v2::Message) -> v2::SendResultEntry {
    let mut response = raw.send(&[message]);
    assert_eq!(response.status.unwrap().code, Code::Ok as i32);
    response.entries.remove(0)
}

fn recall(raw: &Raw, topic: &str, handle: &str) -> v2::RecallMessageResponse {
    let recall_handle = handle.to_owned();
    raw.recall_message(v2::RecallMessageRequest { topic: resource(topic), recall_handle })
}

fn id_of(message: &v2::Message) -> String {
    system(message).message_id.clone()
}

/// Receives until `count` messages have come.
fn receive(raw: &Raw, count: usize) -> Vec<v2::Message> {
    let mut received = Vec::new();
    until(&format!("{count} messages are delivered"), DEADLINE, || {
        received.extend(raw.receive(receive_request(TOPIC, GROUP, "broker-a")).1);
        (received.len() >= count).then_some(())
    });
    received
}

fn assert_none_left(raw: &Raw) {
    assert_eq!(take(raw, TOPIC, GROUP), []);
}

#[test]
fn a_message_comes_at_its_time_and_not_before() {
    let cluster = cluster();
    let [(_, broker), (_, namesrv)] = doors(&cluster);
    let start_ms = now_ms();
    let due = |number: i64| start_ms + 1500 - 150 * number;
    for number in 0..6 {
        let door = if number % 2 == 0 { &broker } else { &namesrv };
        let entry = send(door, delayed(TOPIC, &format!("id-{number}"), due(number)));
        assert_eq!((entry.offset, entry.recall_handle.is_empty()), (0, false));
    }
    let at_once = send(&broker, delayed(TOPIC, "at-once", start_ms - 1));
    assert!(at_once.recall_handle.is_empty(), "it is delivered already");
    let mut received = Vec::new();
    while received.len() < 7 {
        let batch = receive(&broker, 1);
        let now_ms = now_ms();
        for message in batch {
            let system = message.system_properties.clone().unwrap();
            let (due_ms, stored_ms) =
                (millis(&system.delivery_timestamp.unwrap()), millis(&system.store_timestamp.unwrap()));
            assert!(now_ms >= due_ms && stored_ms >= due_ms, "{} is early", system.message_id);
            assert_eq!(system.message_type, MessageType::Delay as i32);
            received.push(system.message_id);
        }
    }
    assert_eq!(received, ["at-once", "id-5", "id-4", "id-3", "id-2", "id-1", "id-0"]);
    assert_none_left(&broker);
}

#[test]
fn what_is_recalled_never_comes_and_may_be_recalled_again_until_its_time() {
    let cluster = cluster();
    let [(_, broker), (_, namesrv)] = doors(&cluster);
    let due_ms = now_ms() + 4000;
    let entries: Vec<_> =
        (0..8).map(|number| send(&broker, delayed(TOPIC, &format!("id-{number}"), due_ms))).collect();
    for (number, entry) in entries.iter().enumerate().take(6) {
        for door in [&broker, &namesrv, &broker] {
            let recalled = recall(door, TOPIC, &entry.recall_handle);
            assert_eq!(recalled.status.unwrap().code, Code::Ok as i32);
            assert_eq!(recalled.message_id, format!("id-{number}"));
        }
    }
    assert!(now_ms() < due_ms, "too slow a machine for this test");
    let mut received: Vec<String> = receive(&broker, 2).iter().map(id_of).collect();
    received.sort();
    assert_eq!(received, ["id-6", "id-7"]);
    assert_none_left(&broker);
    for entry in [&entries[0], &entries[6]] {
        let late = recall(&broker, TOPIC, &entry.recall_handle).status.unwrap();
        assert_eq!(late.code, Code::MessageNotFound as i32);
        assert!(late.message.contains(&due_ms.to_string()), "{}", late.message);
    }
}

#[test]
fn pending_and_recalled_messages_survive_kill_9() {
    let mut cluster = cluster();
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let start_ms = now_ms();
    // Some are due while the broker is away, some when it is back.
    let due_ms = |number: i64| start_ms + 300 + 150 * number;
    let entries: Vec<_> = (0..40)
        .map(|number| send(&raw, delayed(TOPIC, &format!("id-{number:02}"), due_ms(number))))
        .collect();
    let far = send(&raw, delayed(TOPIC, "far", start_ms + 60_000));
    for handle in [&entries[38].recall_handle, &far.recall_handle] {
        assert_eq!(recall(&raw, TOPIC, handle).status.unwrap().code, Code::Ok as i32);
    }
    cluster.brokers[0].kill();
    cluster.brokers[0].start();
    cluster.wait_route(TOPIC);
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let again = recall(&raw, TOPIC, &far.recall_handle);
    assert_eq!((again.status.unwrap().code, &*again.message_id), (Code::Ok as i32, "far"));
    let received = receive(&raw, 39);
    for message in &received {
        let system = message.system_properties.as_ref().unwrap();
        let times = [system.delivery_timestamp, system.store_timestamp].map(|time| millis(&time.unwrap()));
        assert!(times[0] <= times[1], "{} is early", system.message_id);
    }
    let mut ids: Vec<String> = received.iter().map(id_of).collect();
    ids.sort();
    let expected: Vec<String> =
        (0..40).filter(|number| *number != 38).map(|number| format!("id-{number:02}")).collect();
    assert_eq!(ids, expected);
    assert_none_left(&raw);
}

#[test]
fn a_send_that_is_repeated_gets_the_same_handle_and_is_delivered_once() {
    let cluster = cluster();
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let message = delayed(TOPIC, "once", now_ms() + 1000);
    let (first, second) = (send(&raw, message.clone()), send(&raw, message));
    assert_eq!(first, second);
    let began = Instant::now();
    assert_eq!(receive(&raw, 1).len(), 1);
    assert!(began.elapsed() < Duration::from_secs(5), "the long poll was woken");
    assert_none_left(&raw);
}

#[test]
fn what_cannot_be_delayed_or_recalled_is_refused() {
    let cluster = cluster();
    create(&cluster, "normal", MessageType::Normal);
    create(&cluster, "other", MessageType::Delay);
    for (door, raw) in doors(&cluster) {
        let code = |status: Option<v2::Status>, code: Code, named: &str| {
            let status = status.unwrap();
            assert_eq!(status.code, code as i32, "{door}: {code:?} expected: {status:?}");
            assert!(status.message.contains(named), "{door}: {named:?} in {:?}", status.message);
        };
        let due_ms = now_ms() + 60_000;
        let send_code =
            |message: v2::Message, expected, named| code(raw.send(&[message]).status, expected, named);
        let far = delayed(TOPIC, "far", now_ms() + 86_400_000 + 60_000);
        send_code(far, Code::IllegalDeliveryTime, "86400000");
        let mut endless = delayed(TOPIC, "endless", 0);
        let system = endless.system_properties.as_mut().unwrap();
        system.delivery_timestamp = Some(Timestamp { seconds: i64::MAX, nanos: i32::MAX });
        send_code(endless, Code::IllegalDeliveryTime, "86400000");
        send_code(delayed("normal", "x", due_ms), Code::MessagePropertyConflictWithType, "DELAY");
        send_code(message(TOPIC, "x"), Code::MessagePropertyConflictWithType, "NORMAL");
        let mut grouped = delayed(TOPIC, "x", due_ms);
        grouped.system_properties.as_mut().unwrap().message_group = Some("group".into());
        send_code(grouped, Code::MessagePropertyConflictWithType, "DELAY");

        let handle = send(&raw, delayed(TOPIC, &format!("far-{door}"), due_ms)).recall_handle;
        let recall_code =
            |topic, handle: &str, expected, named| code(recall(&raw, topic, handle).status, expected, named);
        recall_code(TOPIC, "", Code::BadRequest, "handle");
        recall_code(TOPIC, "nonsense", Code::BadRequest, "handle");
        let changed =
            format!("{}{}", &handle[..handle.len() - 1], if handle.ends_with('A') { 'B' } else { 'A' });
        recall_code(TOPIC, &changed, Code::BadRequest, "handle");
        recall_code("other", &handle, Code::BadRequest, "another topic");
        recall_code("normal", &handle, Code::BadRequest, "NORMAL");
        recall_code("nowhere", &handle, Code::TopicNotFound, "nowhere");
        recall_code("a/b", &handle, Code::IllegalTopic, "a/b");
        assert_eq!(recall(&raw, TOPIC, &handle).status.unwrap().code, Code::Ok as i32, "still there");
    }
}
