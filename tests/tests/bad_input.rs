//! What must be refused: each request gets its exact code and a text that names the value, and leaves no trace.
//!
//! Every request goes to the broker and through the namesrv, which relays it: the answer must be the same.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use karman_remoting::proto::v2::{self, Code, FilterType, MessageType};
use karman_tests::raw::{message, receive_request, resource, seconds};
use karman_tests::{Cluster, Raw, until};
use prost_types::Timestamp;

const TOPIC: &str = "orders";
const GROUP: &str = "billing";
const BODY_LIMIT: usize = 4 << 20;
const PROPERTIES_LIMIT: usize = 16 << 10;

fn cluster() -> Cluster {
    let cluster = Cluster::builder().namesrvs(1).brokers(1).start();
    cluster.create_topic(TOPIC);
    cluster
}

/// A door to the cluster, and its name for messages of failed tests.
fn doors(cluster: &Cluster) -> [(&'static str, Raw); 2] {
    [
        ("broker", Raw::connect(&cluster.brokers[0].endpoint())),
        ("namesrv", Raw::connect(&cluster.namesrvs[0].endpoint())),
    ]
}

fn expect(door: &str, status: Option<v2::Status>, code: Code, named: &str) {
    let status = status.expect("a status");
    assert_eq!(status.code, code as i32, "{door}: {code:?} expected: {status:?}");
    assert!(status.message.contains(named), "{door}: the text must name {named:?}: {}", status.message);
}

fn properties(message: &mut v2::Message) -> &mut v2::SystemProperties {
    message.system_properties.as_mut().unwrap()
}

fn changed(change: impl FnOnce(&mut v2::Message)) -> v2::Message {
    let mut message = message(TOPIC, "id-1");
    change(&mut message);
    message
}

/// User properties whose keys and values together have `total` bytes.
fn user_properties(total: usize) -> Vec<(String, String)> {
    let mut left = total;
    let mut properties = Vec::new();
    while left > 0 {
        let key = format!("p{:03}", properties.len());
        let value = "v".repeat((left - key.len()).min(1000));
        left -= key.len() + value.len();
        properties.push((key, value));
    }
    properties
}

#[test]
fn refused_sends_say_why_and_leave_nothing() {
    let cluster = cluster();
    let cases = refused_messages();
    for (door, raw) in doors(&cluster) {
        let mut wrong = Vec::new();
        for (what, code, named, messages) in &cases {
            let response = raw.send(messages);
            let status = response.status.expect("a status");
            // Official clients read the entries of a refused send too: none, or the same refusal.
            let same =
                |entry: &v2::SendResultEntry| entry.status.as_ref().is_some_and(|s| s.code == *code as i32);
            let entries = response.entries.iter().all(same);
            if status.code != *code as i32 || !status.message.contains(named) || !entries {
                wrong.push(format!("{what}: {code:?} naming {named:?} expected: {status:?}"));
            }
        }
        assert!(wrong.is_empty(), "{door}: {wrong:#?}");
        let (status, received) = raw.receive(receive_request(TOPIC, GROUP, "broker-a"));
        assert_eq!(status.code, Code::MessageNotFound as i32, "{door}: {status:?}: {received:?}");
    }
}

type Case = (&'static str, Code, String, Vec<v2::Message>);

fn refused_messages() -> Vec<Case> {
    let mut cases = refused_names();
    cases.extend(refused_sizes());
    let case = |what, code, named: &str, messages| (what, code, named.to_owned(), messages);
    let one = |change: &dyn Fn(&mut v2::Message)| vec![changed(|message| change(message))];
    cases.extend([
        case("no message", Code::MessageCorrupted, "", vec![]),
        case("two topics", Code::MessageCorrupted, "other", vec![message(TOPIC, "1"), message("other", "2")]),
        case(
            "a FIFO message to a NORMAL topic",
            Code::MessagePropertyConflictWithType,
            TOPIC,
            one(&|message| {
                properties(message).message_type = MessageType::Fifo.into();
                properties(message).message_group = Some("group".to_owned());
            }),
        ),
        case(
            "a DELAY message to a NORMAL topic",
            Code::MessagePropertyConflictWithType,
            TOPIC,
            one(&|message| {
                properties(message).message_type = MessageType::Delay.into();
                properties(message).delivery_timestamp = Some(Timestamp { seconds: 4_000_000_000, nanos: 0 });
            }),
        ),
        case(
            "a TRANSACTION message to a NORMAL topic",
            Code::MessagePropertyConflictWithType,
            TOPIC,
            one(&|message| properties(message).message_type = MessageType::Transaction.into()),
        ),
        case(
            "called NORMAL, with a message group",
            Code::MessagePropertyConflictWithType,
            "",
            one(&|message| properties(message).message_group = Some("group".to_owned())),
        ),
    ]);
    cases
}

fn refused_names() -> Vec<Case> {
    let case = |what, code, named: &str, message| (what, code, named.to_owned(), vec![message]);
    let user_property = |key: &str, value: &str| {
        changed(|message| drop(message.user_properties.insert(key.to_owned(), value.to_owned())))
    };
    let tag = |tag: &str| changed(|message| properties(message).tag = Some(tag.to_owned()));
    let key = |key: &str| changed(|message| properties(message).keys = vec![key.to_owned()]);
    let no_route = "CODE: 17  DESC: No topic route info in name server for the topic: unknown";
    vec![
        case("an unknown topic", Code::TopicNotFound, no_route, message("unknown", "1")),
        case("a dot in the topic", Code::IllegalTopic, "a.b", message("a.b", "1")),
        case("an empty topic", Code::IllegalTopic, "", message("", "1")),
        case("no topic", Code::IllegalTopic, "", changed(|message| message.topic = None)),
        case("a long topic", Code::IllegalTopic, "127", message(&"t".repeat(128), "1")),
        case("a system topic", Code::IllegalTopic, "rmq_sys_x", message("rmq_sys_x", "1")),
        case("a blank tag", Code::IllegalMessageTag, "", tag(" ")),
        case("a tag with |", Code::IllegalMessageTag, "a|b", tag("a|b")),
        case("a control character in the tag", Code::IllegalMessageTag, "", tag("a\u{1}b")),
        case("a blank key", Code::IllegalMessageKey, "", key(" ")),
        case("a control character in a key", Code::IllegalMessageKey, "", key("a\u{1}b")),
        case(
            "a reserved property",
            Code::IllegalMessagePropertyKey,
            "UNIQ_KEY",
            user_property("UNIQ_KEY", "v"),
        ),
        case(
            "a control character in a property",
            Code::IllegalMessagePropertyKey,
            "",
            user_property("a\u{1}", "v"),
        ),
        case(
            "a control character in a value",
            Code::IllegalMessagePropertyKey,
            "k",
            user_property("k", "a\u{1}"),
        ),
        case(
            "a blank id",
            Code::IllegalMessageId,
            "",
            changed(|message| properties(message).message_id = " ".into()),
        ),
    ]
}

fn refused_sizes() -> Vec<Case> {
    let sized = |bytes: usize| changed(|message| message.body = Bytes::from(vec![b'x'; bytes]));
    let with = |all: Vec<(String, String)>| changed(|message| message.user_properties.extend(all));
    let many: Vec<_> = (0..129).map(|n| (format!("p{n}"), "v".to_owned())).collect();
    let tagged = |tag: &str| {
        let mut message = with(user_properties(PROPERTIES_LIMIT));
        properties(&mut message).tag = Some(tag.to_owned());
        message
    };
    let keyed = || {
        let mut message = with(user_properties(PROPERTIES_LIMIT));
        properties(&mut message).keys = vec!["k".to_owned()];
        message
    };
    let too_large = Code::MessagePropertiesTooLarge;
    vec![
        ("an empty body", Code::MessageBodyEmpty, String::new(), vec![sized(0)]),
        ("a large body", Code::MessageBodyTooLarge, BODY_LIMIT.to_string(), vec![sized(BODY_LIMIT + 1)]),
        ("many properties", too_large, "129".to_owned(), vec![with(many)]),
        (
            "large properties",
            too_large,
            PROPERTIES_LIMIT.to_string(),
            vec![with(user_properties(PROPERTIES_LIMIT + 1))],
        ),
        ("the tag counts", too_large, String::new(), vec![tagged("t")]),
        ("the keys count", too_large, String::new(), vec![keyed()]),
    ]
}

#[test]
fn a_message_at_every_limit_is_taken_and_comes_back_whole() {
    let cluster = cluster();
    for (door, raw) in doors(&cluster) {
        let sent = changed(|message| {
            properties(message).message_id = format!("id-{door}");
            message.body = Bytes::from(vec![b'x'; BODY_LIMIT]);
            message.user_properties.extend(user_properties(PROPERTIES_LIMIT));
        });
        let response = raw.send(std::slice::from_ref(&sent));
        expect(door, response.status, Code::Ok, "");
        assert_eq!(response.entries.len(), 1);
        assert_eq!(response.entries[0].message_id, format!("id-{door}"));
        let (status, received) = raw.receive(receive_request(TOPIC, GROUP, "broker-a"));
        expect(door, Some(status), Code::Ok, "");
        assert_eq!(received.len(), 1);
        assert!(received[0].body == sent.body, "{door}: another body");
        assert_eq!(received[0].user_properties, sent.user_properties);
    }
}

#[test]
fn a_batch_has_one_entry_for_each_message() {
    let cluster = cluster();
    for (door, raw) in doors(&cluster) {
        let batch: Vec<_> = (0..32).map(|n| message(TOPIC, &format!("{door}-{n}"))).collect();
        let response = raw.send(&batch);
        expect(door, response.status, Code::Ok, "");
        let ids: Vec<_> = response.entries.iter().map(|entry| entry.message_id.clone()).collect();
        let sent: Vec<_> = (0..32).map(|n| format!("{door}-{n}")).collect();
        assert_eq!(ids, sent);
        assert!(
            response
                .entries
                .iter()
                .all(|entry| entry.status.as_ref().is_some_and(|s| s.code == Code::Ok as i32))
        );
    }
}

#[test]
fn every_call_needs_a_client_id() {
    let cluster = cluster();
    for (door, raw) in doors(&cluster) {
        let raw = raw.without_client_id();
        let missing = |status| expect(door, status, Code::ClientIdRequired, "x-mq-client-id");
        missing(raw.query_route(v2::QueryRouteRequest { topic: resource(TOPIC), endpoints: None }).status);
        missing(raw.heartbeat(v2::HeartbeatRequest::default()).status);
        missing(raw.send(&[message(TOPIC, "1")]).status);
        missing(raw.query_assignment(v2::QueryAssignmentRequest::default()).status);
        missing(Some(raw.receive(receive_request(TOPIC, GROUP, "broker-a")).0));
        missing(raw.ack_message(v2::AckMessageRequest::default()).status);
        missing(raw.change_invisible_duration(v2::ChangeInvisibleDurationRequest::default()).status);
        let forward = v2::ForwardMessageToDeadLetterQueueRequest::default();
        missing(raw.forward_message_to_dead_letter_queue(forward).status);
        missing(raw.notify_client_termination(v2::NotifyClientTerminationRequest::default()).status);
        missing(raw.end_transaction(v2::EndTransactionRequest::default()).status);
    }
}

#[test]
fn refused_names_of_topics_and_groups() {
    let cluster = cluster();
    for (door, raw) in doors(&cluster) {
        let route =
            |topic: &str| raw.query_route(v2::QueryRouteRequest { topic: resource(topic), endpoints: None });
        let unknown = "CODE: 17  DESC: No topic route info in name server for the topic: unknown";
        let response = route("unknown");
        expect(door, response.status, Code::TopicNotFound, unknown);
        assert!(response.message_queues.is_empty());
        expect(door, route("a.b").status, Code::IllegalTopic, "a.b");
        expect(door, route("rmq_sys_x").status, Code::IllegalTopic, "rmq_sys_x");

        let assign = |topic: &str, group: &str| {
            raw.query_assignment(v2::QueryAssignmentRequest {
                topic: resource(topic),
                group: resource(group),
                endpoints: None,
            })
            .status
        };
        expect(door, assign("unknown", GROUP), Code::TopicNotFound, unknown);
        expect(door, assign("a.b", GROUP), Code::IllegalTopic, "a.b");

        let receive =
            |topic: &str, group: &str| Some(raw.receive(receive_request(topic, group, "broker-a")).0);
        expect(door, receive("unknown", GROUP), Code::TopicNotFound, unknown);
        expect(door, receive("a.b", GROUP), Code::IllegalTopic, "a.b");
        expect(door, receive(TOPIC, "a.b"), Code::IllegalConsumerGroup, "a.b");
        expect(door, receive(TOPIC, ""), Code::IllegalConsumerGroup, "");
        expect(door, receive(TOPIC, &"g".repeat(121)), Code::IllegalConsumerGroup, "120");
        expect(door, receive(TOPIC, "CID_RMQ_SYS_x"), Code::IllegalConsumerGroup, "CID_RMQ_SYS_x");
    }
}

#[test]
fn refused_receives() {
    let cluster = cluster();
    for (door, raw) in doors(&cluster) {
        let receive = |change: &dyn Fn(&mut v2::ReceiveMessageRequest)| {
            let mut request = receive_request(TOPIC, GROUP, "broker-a");
            change(&mut request);
            Some(raw.receive(request).0)
        };
        let filter = |r#type: FilterType, expression: &str| {
            Some(v2::FilterExpression { r#type: r#type.into(), expression: expression.to_owned() })
        };
        expect(
            door,
            receive(&|r| r.invisible_duration = Some(seconds(9))),
            Code::IllegalInvisibleTime,
            "9000",
        );
        let thirteen_hours = Some(seconds(13 * 3600));
        expect(
            door,
            receive(&|r| r.invisible_duration = thirteen_hours),
            Code::IllegalInvisibleTime,
            "46800000",
        );
        let broken = receive(&|r| r.filter_expression = filter(FilterType::Tag, "a | b"));
        expect(door, broken, Code::IllegalFilterExpression, "a | b");
        let sql = receive(&|r| r.filter_expression = filter(FilterType::Sql, "a = "));
        expect(door, sql, Code::IllegalFilterExpression, "position");
        let unknown = v2::FilterExpression { r#type: 9, expression: "*".to_owned() };
        let unknown = receive(&|r| r.filter_expression = Some(unknown.clone()));
        expect(door, unknown, Code::IllegalFilterExpression, "type 9");
        let elsewhere = Some(raw.receive(receive_request(TOPIC, GROUP, "broker-z")).0);
        expect(door, elsewhere, Code::BadRequest, "broker-z");
    }
}

/// Sends one message and takes it: what the broker made of it.
fn delivered(raw: &Raw, id: &str, invisible: i64) -> v2::Message {
    expect("send", raw.send(&[message(TOPIC, id)]).status, Code::Ok, "");
    let mut request = receive_request(TOPIC, GROUP, "broker-a");
    request.invisible_duration = Some(seconds(invisible));
    let (status, mut messages) = raw.receive(request);
    expect("receive", Some(status), Code::Ok, "");
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

fn handle_of(message: &v2::Message) -> String {
    message
        .system_properties
        .as_ref()
        .and_then(|properties| properties.receipt_handle.clone())
        .expect("a handle")
}

fn ack(raw: &Raw, topic: &str, group: &str, handles: &[&str]) -> v2::AckMessageResponse {
    let entry = |handle: &&str| v2::AckMessageEntry {
        message_id: "id".to_owned(),
        receipt_handle: (*handle).to_owned(),
        lite_topic: None,
    };
    let entries = handles.iter().map(entry).collect();
    raw.ack_message(v2::AckMessageRequest { group: resource(group), topic: resource(topic), entries })
}

fn change(raw: &Raw, group: &str, handle: &str, duration: i64) -> v2::ChangeInvisibleDurationResponse {
    raw.change_invisible_duration(v2::ChangeInvisibleDurationRequest {
        group: resource(group),
        topic: resource(TOPIC),
        receipt_handle: handle.to_owned(),
        invisible_duration: Some(seconds(duration)),
        message_id: "id".to_owned(),
        ..Default::default()
    })
}

#[test]
fn forged_and_foreign_receipt_handles_are_refused() {
    let cluster = cluster();
    for (door, raw) in doors(&cluster) {
        let handle = handle_of(&delivered(&raw, door, 30));
        let middle = handle.len() / 2;
        let other = if handle.as_bytes()[middle] == b'A' { "B" } else { "A" };
        let forged = format!("{}{other}{}", &handle[..middle], &handle[middle + 1..]);
        for wrong in [forged.as_str(), "", "nonsense", &handle[1..]] {
            let response = ack(&raw, TOPIC, GROUP, &[wrong]);
            expect(door, response.status, Code::InvalidReceiptHandle, "");
            assert_eq!(response.entries.len(), 1, "{door}: each entry is answered");
            expect(door, response.entries[0].status.clone(), Code::InvalidReceiptHandle, "");
            assert_eq!(response.entries[0].receipt_handle, wrong);
            expect(door, change(&raw, GROUP, wrong, 1).status, Code::InvalidReceiptHandle, "");
        }
        expect(door, ack(&raw, TOPIC, "another-group", &[&handle]).status, Code::InvalidReceiptHandle, "");

        let both = ack(&raw, TOPIC, GROUP, &[&handle, "nonsense"]);
        expect(door, both.status, Code::MultipleResults, "");
        expect(door, both.entries[0].status.clone(), Code::Ok, "");
        expect(door, both.entries[1].status.clone(), Code::InvalidReceiptHandle, "");
    }
}

#[test]
fn a_receipt_handle_ends_with_its_invisible_time() {
    let cluster = cluster();
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let first = delivered(&raw, "1", 10);
    // Ten seconds are the least a receive may ask for.
    let second = until("the message comes again", Duration::from_secs(20), || {
        let (_, mut messages) = raw.receive(receive_request(TOPIC, GROUP, "broker-a"));
        messages.pop()
    });
    assert_eq!(second.system_properties.as_ref().and_then(|p| p.delivery_attempt), Some(2));
    expect("expired", ack(&raw, TOPIC, GROUP, &[&handle_of(&first)]).status, Code::InvalidReceiptHandle, "");
    expect("expired", change(&raw, GROUP, &handle_of(&first), 10).status, Code::InvalidReceiptHandle, "");
    expect("valid", ack(&raw, TOPIC, GROUP, &[&handle_of(&second)]).status, Code::Ok, "");
}

#[test]
fn a_changed_invisible_time_needs_the_new_handle() {
    let cluster = cluster();
    for (door, raw) in doors(&cluster) {
        let first = handle_of(&delivered(&raw, door, 30));
        let response = change(&raw, GROUP, &first, 20);
        expect(door, response.status, Code::Ok, "");
        assert!(
            !response.receipt_handle.is_empty(),
            "official clients overwrite theirs with what comes back"
        );
        let too_long = change(&raw, GROUP, &response.receipt_handle, 13 * 3600);
        expect(door, too_long.status, Code::IllegalInvisibleTime, "46800000");
        let negative = change(&raw, GROUP, &response.receipt_handle, -1);
        expect(door, negative.status, Code::IllegalInvisibleTime, "-1000");
        expect(door, ack(&raw, TOPIC, GROUP, &[&response.receipt_handle]).status, Code::Ok, "");
    }
}

#[test]
fn a_text_that_is_no_token_is_refused_by_every_door() {
    let cluster = cluster();
    for (door, raw) in doors(&cluster) {
        let end = |id: &str| v2::EndTransactionRequest {
            topic: resource(TOPIC),
            message_id: "1".to_owned(),
            transaction_id: id.to_owned(),
            ..Default::default()
        };
        for (id, named) in [("", "blank"), (" ", "blank"), ("1", "not an id")] {
            expect(door, raw.end_transaction(end(id)).status, Code::InvalidTransactionId, named);
        }
        let recall = v2::RecallMessageRequest { topic: resource(TOPIC), recall_handle: "1".to_owned() };
        expect(door, raw.recall_message(recall).status, Code::BadRequest, "recall handle");
    }
}
