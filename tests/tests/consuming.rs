//! Ways to consume, and what brokers promise about them, request by request: order by message group, sends that are
//! repeated, pull, broadcasting, priority, time to live, groups that are suspended or begin elsewhere.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use karman_remoting::proto::karman::{ConsumeFromWhere, GroupConfig, TopicConfig};
use karman_remoting::proto::v2::{self, Code, MessageType};
use karman_tests::raw::{ids, is_ok, message, raw, receive_request, resource, seconds, system, take};
use karman_tests::{Cluster, Raw, until};

const BROKER: &str = "broker-a";
const DEADLINE: Duration = Duration::from_secs(20);

fn broker() -> Cluster {
    Cluster::builder().brokers(1).start()
}

fn topic(raw: &Raw, name: &str, kind: MessageType, more: TopicConfig) {
    let config = TopicConfig { name: name.into(), message_type: kind.into(), queue_nums: 4, ..more };
    is_ok(raw.make_topic(config));
}

fn group(name: &str) -> GroupConfig {
    GroupConfig { name: name.into(), ..Default::default() }
}

fn fifo(topic: &str, id: &str, message_group: &str) -> v2::Message {
    let mut sent = message(topic, id);
    let system = sent.system_properties.as_mut().unwrap();
    system.message_type = MessageType::Fifo.into();
    system.message_group = Some(message_group.into());
    sent
}

fn ack(raw: &Raw, group: &str, message: &v2::Message) {
    let entry = v2::AckMessageEntry {
        message_id: system(message).message_id.clone(),
        receipt_handle: system(message).receipt_handle.clone().unwrap(),
        ..Default::default()
    };
    let request =
        v2::AckMessageRequest { group: resource(group), topic: message.topic.clone(), entries: vec![entry] };
    is_ok(raw.ack_message(request).status);
}

fn nack(raw: &Raw, group: &str, message: &v2::Message, millis: i32) {
    let request = v2::ChangeInvisibleDurationRequest {
        group: resource(group),
        topic: message.topic.clone(),
        receipt_handle: system(message).receipt_handle.clone().unwrap(),
        invisible_duration: Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 }),
        ..Default::default()
    };
    is_ok(raw.change_invisible_duration(request).status);
}

#[test]
fn a_message_group_waits_for_its_first_message_over_retries_and_restarts() {
    let mut cluster = broker();
    let mut client = raw(&cluster);
    topic(&client, "ordered", MessageType::Fifo, TopicConfig::default());
    for (id, message_group) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("a3", "a"), ("b2", "b")] {
        is_ok(client.send(&[fifo("ordered", id, message_group)]).status);
    }
    let first = take(&client, "ordered", "g");
    assert_eq!(ids(&first), ["a1", "b1"]);
    assert!(take(&client, "ordered", "g").is_empty(), "each group has one with a consumer");
    let named = |id: &str| first.iter().find(|message| system(message).message_id == id).unwrap();
    nack(&client, "g", named("a1"), 1);
    ack(&client, "g", named("b1"));
    let second = until("a1 comes again", DEADLINE, || {
        let some = take(&client, "ordered", "g");
        (!some.is_empty()).then_some(some)
    });
    let mut both = second;
    while both.len() < 2 {
        both.extend(take(&client, "ordered", "g"));
    }
    assert_eq!(ids(&both), ["a1", "b2"]);
    let again = both.iter().find(|message| system(message).message_id == "a1").unwrap();
    assert_eq!(system(again).delivery_attempt, Some(2));
    // Nobody but the log remembers now; what was with a consumer is free again, in its order.
    cluster.brokers[0].kill();
    cluster.brokers[0].start();
    client = raw(&cluster);
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let some = until("the rest comes", Duration::from_secs(60), || {
            let some = take(&client, "ordered", "g");
            (!some.is_empty()).then_some(some)
        });
        for message in some {
            ack(&client, "g", &message);
            seen.push(system(&message).message_id.clone());
        }
    }
    let of = |letter: char| seen.iter().filter(|id| id.starts_with(letter)).cloned().collect::<Vec<_>>();
    assert_eq!((of('a'), of('b')), (vec!["a1".into(), "a2".into(), "a3".into()], vec!["b2".to_owned()]));
}

#[test]
fn a_group_that_is_not_orderly_reads_an_ordered_topic_at_once() {
    let cluster = broker();
    let client = raw(&cluster);
    topic(&client, "ordered", MessageType::Fifo, TopicConfig::default());
    is_ok(Some(client.make_group(GroupConfig { orderly: Some(false), ..group("all") })));
    for number in 0..5 {
        is_ok(client.send(&[fifo("ordered", &format!("m{number}"), "same")]).status);
    }
    assert_eq!(take(&client, "ordered", "all").len(), 5);
    assert_eq!(ids(&take(&client, "ordered", "one")), ["m0"]);
}

#[test]
fn one_queue_is_a_global_order_for_an_orderly_group() {
    let cluster = broker();
    let client = raw(&cluster);
    is_ok(client.make_topic(TopicConfig { name: "all".into(), queue_nums: 1, ..Default::default() }));
    is_ok(Some(client.make_group(GroupConfig { orderly: Some(true), ..group("g") })));
    let sent: Vec<_> = (0..5).map(|number| message("all", &format!("m{number}"))).collect();
    is_ok(client.send(&sent).status);
    for id in ["m0", "m1", "m2", "m3", "m4"] {
        let refused = take(&client, "all", "g");
        assert_eq!(ids(&refused), [id]);
        assert!(take(&client, "all", "g").is_empty(), "{id} is with a consumer");
        nack(&client, "g", &refused[0], 0);
        let again = take(&client, "all", "g");
        assert_eq!((ids(&again), system(&again[0]).delivery_attempt), (vec![id.to_owned()], Some(2)));
        ack(&client, "g", &again[0]);
    }
    assert!(take(&client, "all", "g").is_empty());
}

#[test]
fn who_repeats_a_receive_gets_the_same_messages_as_the_same_delivery() {
    let cluster = broker();
    let client = raw(&cluster);
    topic(&client, "ordered", MessageType::Fifo, TopicConfig::default());
    is_ok(client.send(&[fifo("ordered", "m", "x")]).status);
    let request = v2::ReceiveMessageRequest {
        attempt_id: Some("attempt-1".into()),
        long_polling_timeout: Some(seconds(0)),
        ..receive_request("ordered", "g", BROKER)
    };
    let first = client.receive(request.clone()).1;
    let again = client.receive(request.clone()).1;
    assert_eq!((ids(&first), ids(&again)), (vec!["m".to_owned()], vec!["m".to_owned()]));
    assert_eq!(system(&again[0]).delivery_attempt, Some(1));
    // The same word of another client is its own.
    assert!(raw(&cluster).named("other@test").receive(request).1.is_empty());
    ack(&client, "g", &again[0]);
}

#[test]
fn a_message_that_is_sent_twice_is_stored_once_also_over_a_restart() {
    let mut cluster = broker();
    let mut client = raw(&cluster);
    topic(&client, "once", MessageType::Normal, TopicConfig::default());
    let off = TopicConfig { dedup_window_minutes: Some(0), ..Default::default() };
    topic(&client, "often", MessageType::Normal, off);
    let send = |client: &Raw, topic: &str, id: &str| {
        let response = client.send(&[message(topic, id)]);
        is_ok(response.status);
        response.entries[0].offset
    };
    let first = send(&client, "once", "m1");
    assert_eq!(send(&client, "once", "m1"), first, "the first result");
    send(&client, "often", "m1");
    send(&client, "often", "m1");
    // In a batch the known ones are left out, and each is answered in its place.
    let batch = client.send(&[message("once", "m2"), message("once", "m1"), message("once", "m3")]);
    is_ok(batch.status);
    let answered: Vec<_> = batch.entries.iter().map(|entry| entry.message_id.as_str()).collect();
    assert_eq!(answered, ["m2", "m1", "m3"]);
    assert_eq!(batch.entries[1].offset, first);
    let twice = client.send(&[message("once", "m4"), message("once", "m4")]);
    assert_eq!(twice.status.unwrap().code, Code::IllegalMessageId as i32);
    cluster.brokers[0].kill();
    cluster.brokers[0].start();
    client = raw(&cluster);
    assert_eq!(send(&client, "once", "m1"), first);
    assert_eq!(ids(&take(&client, "once", "g")), ["m1", "m2", "m3"]);
    assert_eq!(ids(&take(&client, "often", "g")), ["m1", "m1"]);
}

#[test]
fn many_that_send_the_same_at_once_store_it_once() {
    let cluster = broker();
    let client = raw(&cluster);
    topic(&client, "once", MessageType::Normal, TopicConfig::default());
    let endpoint = cluster.brokers[0].endpoint();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let raw = Raw::connect(&endpoint);
                for number in 0..50 {
                    is_ok(raw.send(&[message("once", &format!("m{number}"))]).status);
                }
            });
        }
    });
    let mut got = Vec::new();
    while got.len() < 50 {
        let some = take(&client, "once", "g");
        assert!(!some.is_empty(), "{} of 50", got.len());
        got.extend(some);
    }
    assert!(take(&client, "once", "g").is_empty());
    let mut ids = ids(&got);
    ids.dedup();
    assert_eq!(ids.len(), 50);
}

fn queue_of(topic: &str, id: i32) -> Option<v2::MessageQueue> {
    Some(v2::MessageQueue {
        topic: resource(topic),
        id,
        broker: Some(v2::Broker { name: BROKER.into(), ..Default::default() }),
        ..Default::default()
    })
}

fn pull(topic: &str, queue: i32, offset: i64, polling: i64) -> v2::PullMessageRequest {
    v2::PullMessageRequest {
        group: resource("puller"),
        message_queue: queue_of(topic, queue),
        offset,
        batch_size: 2,
        filter_expression: None,
        long_polling_timeout: Some(seconds(polling)),
    }
}

#[test]
fn a_queue_is_pulled_from_any_offset_and_the_group_keeps_its_place() {
    let cluster = broker();
    let client = raw(&cluster);
    let one = TopicConfig { name: "pulled".into(), queue_nums: 1, ..Default::default() };
    is_ok(Some(client.make_topic(one)));
    for number in 0..5 {
        is_ok(client.send(&[message("pulled", &format!("m{number}"))]).status);
    }
    let (status, messages, next) = client.pull(pull("pulled", 0, 1, 0));
    is_ok(Some(status));
    assert_eq!((ids(&messages), next), (vec!["m1".to_owned(), "m2".into()], Some(3)));
    assert_eq!(system(&messages[0]).queue_offset, Some(1));
    let (status, messages, next) = client.pull(pull("pulled", 0, 5, 0));
    assert_eq!((status.code, messages.len(), next), (Code::MessageNotFound as i32, 0, Some(5)));
    for (offset, next) in [(6, 5), (-1, 0)] {
        let (status, _, answered) = client.pull(pull("pulled", 0, offset, 0));
        assert_eq!((status.code, answered), (Code::IllegalOffset as i32, Some(next)), "{status:?}");
    }
    assert_eq!(client.pull(pull("pulled", 7, 0, 0)).0.code, Code::BadRequest as i32);
    // A pull that waits is woken by a message.
    let endpoint = cluster.brokers[0].endpoint();
    let waiting = std::thread::spawn(move || Raw::connect(&endpoint).pull(pull("pulled", 0, 5, 8)));
    is_ok(client.send(&[message("pulled", "m5")]).status);
    assert_eq!(ids(&waiting.join().unwrap().1), ["m5"]);

    let get = || {
        client.get_offset(v2::GetOffsetRequest {
            group: resource("puller"),
            message_queue: queue_of("pulled", 0),
        })
    };
    assert_eq!(get().status.unwrap().code, Code::OffsetNotFound as i32);
    let set = |offset| {
        client.update_offset(v2::UpdateOffsetRequest {
            group: resource("puller"),
            message_queue: queue_of("pulled", 0),
            offset,
        })
    };
    for offset in [4, 2] {
        is_ok(set(offset).status);
        assert_eq!(get().offset, offset);
    }
    assert_eq!(set(7).status.unwrap().code, Code::IllegalOffset as i32);
    assert_eq!(
        ids(&take(&client, "pulled", "puller")),
        ["m2", "m3", "m4", "m5"],
        "receiving is the same progress"
    );
}

#[test]
fn each_client_of_a_broadcasting_group_gets_everything() {
    let mut cluster = broker();
    let client = raw(&cluster);
    topic(&client, "news", MessageType::Normal, TopicConfig::default());
    is_ok(Some(client.make_group(GroupConfig { broadcast: true, ..group("all") })));
    for number in 0..3 {
        is_ok(client.send(&[message("news", &format!("n{number}"))]).status);
    }
    for name in ["one@test", "two@test"] {
        let client = raw(&cluster).named(name);
        let got = take(&client, "news", "all");
        assert_eq!(ids(&got), ["n0", "n1", "n2"], "{name}");
        got.iter().for_each(|message| ack(&client, "all", message));
    }
    cluster.brokers[0].kill();
    cluster.brokers[0].start();
    is_ok(raw(&cluster).send(&[message("news", "n3")]).status);
    for (name, expected) in [("one@test", vec!["n3"]), ("three@test", vec!["n0", "n1", "n2", "n3"])] {
        assert_eq!(ids(&take(&raw(&cluster).named(name), "news", "all")), expected, "{name}");
    }
}

#[test]
fn what_has_a_higher_priority_is_received_first() {
    let cluster = broker();
    let client = raw(&cluster);
    topic(&client, "urgent", MessageType::Priority, TopicConfig::default());
    for (id, priority) in [("low", 0), ("high", 3), ("middle", 1), ("beyond", 99)] {
        let mut sent = message("urgent", id);
        let system = sent.system_properties.as_mut().unwrap();
        system.message_type = MessageType::Priority.into();
        system.priority = Some(priority);
        is_ok(client.send(&[sent]).status);
    }
    let got = take(&client, "urgent", "g");
    let order: Vec<_> = got.iter().map(|message| system(message).message_id.as_str()).collect();
    assert_eq!(order, ["high", "beyond", "middle", "low"]);
    let mut negative = message("urgent", "bad");
    negative.system_properties.as_mut().unwrap().priority = Some(-1);
    negative.system_properties.as_mut().unwrap().message_type = MessageType::Priority.into();
    assert_eq!(client.send(&[negative]).status.unwrap().code, Code::BadRequest as i32);
}

#[test]
fn what_has_lived_too_long_is_not_delivered() {
    let cluster = broker();
    let client = raw(&cluster);
    topic(&client, "fresh", MessageType::Normal, TopicConfig { ttl_seconds: 3600, ..Default::default() });
    let with_ttl = |id: &str, ttl: &str| {
        let mut sent = message("fresh", id);
        sent.user_properties.insert("KARMAN_TTL_MS".into(), ttl.into());
        sent
    };
    is_ok(client.send(&[with_ttl("short", "1")]).status);
    is_ok(client.send(&[with_ttl("long", "60000"), message("fresh", "plain")]).status);
    assert_eq!(ids(&take(&client, "fresh", "g")), ["long", "plain"]);
    for bad in ["0", "soon", "-5"] {
        let refused = client.send(&[with_ttl("bad", bad)]).status.unwrap();
        assert_eq!(refused.code, Code::IllegalMessagePropertyKey as i32, "{refused:?}");
    }
}

fn sql(expression: &str) -> Option<v2::FilterExpression> {
    Some(v2::FilterExpression { r#type: v2::FilterType::Sql.into(), expression: expression.into() })
}

#[test]
fn an_expression_selects_messages_by_their_properties_and_passes_the_rest() {
    let cluster = broker();
    let client = raw(&cluster);
    topic(&client, "priced", MessageType::Normal, TopicConfig::default());
    let batch: Vec<_> = (0..2000)
        .map(|number| {
            let mut sent = message("priced", &format!("m{number}"));
            sent.user_properties.insert("price".into(), number.to_string());
            if number % 2 == 0 {
                sent.user_properties.insert("region".into(), "north".into());
            }
            sent
        })
        .collect();
    is_ok(client.send(&batch).status);
    let request = |expression: &str| v2::ReceiveMessageRequest {
        filter_expression: sql(expression),
        ..receive_request("priced", "g", BROKER)
    };
    let few = "price BETWEEN 1990 AND 1999 AND region = 'north' OR price = 3 AND region IS NULL";
    let mut got = Vec::new();
    while got.len() < 6 {
        let (status, some) = client.receive(request(few));
        is_ok(Some(status));
        some.iter().for_each(|message| ack(&client, "g", message));
        got.extend(some);
    }
    assert_eq!(ids(&got), ["m1990", "m1992", "m1994", "m1996", "m1998", "m3"]);
    // What was passed over is done: nobody of the group gets it any more.
    assert!(take(&client, "priced", "g").is_empty());
    for (bad, position) in [("price >", "7"), ("price = 'x", "8"), ("", "0")] {
        let status = client.receive(request(bad)).0;
        assert_eq!(status.code, Code::IllegalFilterExpression as i32, "{bad}: {status:?}");
        assert!(status.message.contains(position), "{bad}: {status:?}");
    }
    let pulled = client
        .pull(v2::PullMessageRequest { filter_expression: sql("price < 5"), ..pull("priced", 0, 0, 0) });
    assert!(pulled.1.len() <= 2, "{pulled:?}");
}

#[test]
fn a_suspended_group_gets_nothing_until_it_goes_on() {
    let cluster = broker();
    let client = raw(&cluster);
    topic(&client, "held", MessageType::Normal, TopicConfig::default());
    is_ok(Some(client.make_group(GroupConfig { suspended: true, ..group("g") })));
    is_ok(client.send(&[message("held", "m")]).status);
    let request = |polling| v2::ReceiveMessageRequest {
        long_polling_timeout: Some(seconds(polling)),
        ..receive_request("held", "g", BROKER)
    };
    let (status, messages) = client.receive(request(0));
    assert_eq!((status.code, messages.len()), (Code::MessageNotFound as i32, 0));
    assert!(status.message.contains("suspended"), "{status:?}");
    let endpoint = cluster.brokers[0].endpoint();
    let waiting = std::thread::spawn(move || Raw::connect(&endpoint).receive(request(8)).1);
    is_ok(Some(client.update_group(group("g"))));
    assert_eq!(ids(&waiting.join().unwrap()), ["m"]);
}

#[test]
fn a_group_begins_where_it_says() {
    let cluster = broker();
    let client = raw(&cluster);
    topic(&client, "begun", MessageType::Normal, TopicConfig::default());
    is_ok(client.send(&[message("begun", "early")]).status);
    let last = GroupConfig { consume_from: ConsumeFromWhere::ConsumeFromLastOffset.into(), ..group("last") };
    is_ok(Some(client.make_group(last)));
    assert!(take(&client, "begun", "last").is_empty());
    is_ok(client.send(&[message("begun", "late")]).status);
    assert_eq!(ids(&take(&client, "begun", "last")), ["late"]);
    assert_eq!(ids(&take(&client, "begun", "first")), ["early", "late"]);
}

#[test]
fn what_a_message_group_or_a_type_must_not_be_is_refused() {
    let cluster = broker();
    let client = raw(&cluster);
    topic(&client, "ordered", MessageType::Fifo, TopicConfig::default());
    topic(&client, "plain", MessageType::Normal, TopicConfig::default());
    let delayed = Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 });
    let mut several = ["delay", "priority", "lite"].map(|id| fifo("ordered", id, "g"));
    several[0].system_properties.as_mut().unwrap().delivery_timestamp = delayed;
    several[1].system_properties.as_mut().unwrap().priority = Some(1);
    several[2].system_properties.as_mut().unwrap().lite_topic = Some("l".into());
    for sent in several {
        let status = client.send(&[sent]).status.unwrap();
        assert_eq!(status.code, Code::MessagePropertyConflictWithType as i32, "{status:?}");
    }
    let cases = [
        (fifo("ordered", "m", &"g".repeat(64)), Code::IllegalMessageGroup),
        (fifo("ordered", "m", " "), Code::IllegalMessageGroup),
        (fifo("ordered", "m", "a\u{1}"), Code::IllegalMessageGroup),
        (fifo("plain", "m", "g"), Code::MessagePropertyConflictWithType),
        (message("ordered", "m"), Code::MessagePropertyConflictWithType),
    ];
    for (sent, code) in cases {
        let status = client.send(&[sent]).status.unwrap();
        assert_eq!(status.code, code as i32, "{status:?}");
    }
    assert!(take(&client, "ordered", "g").is_empty() && take(&client, "plain", "g").is_empty());
}
