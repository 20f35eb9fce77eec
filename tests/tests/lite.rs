//! Lite topics, request by request: subscriptions and their limits, order within each lite topic, what consumers say about
//! messages they hold, and what is left of all that after a restart.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use karman_remoting::proto::karman::{GroupConfig, TopicConfig};
use karman_remoting::proto::v2::offset_option::{OffsetType, Policy};
use karman_remoting::proto::v2::settings::PubSub;
use karman_remoting::proto::v2::telemetry_command::Command;
use karman_remoting::proto::v2::{self, ClientType, Code, LiteSubscriptionAction, MessageType};
use karman_tests::cluster::Node;
use karman_tests::raw::{self, ids, is_ok, message, raw, receive_request, resource, seconds, system};
use karman_tests::{Cluster, Raw, until};

const PARENT: &str = "sessions";
const GROUP: &str = "agents";
const BROKER: &str = "broker-a";
const DEADLINE: Duration = Duration::from_secs(20);

fn broker() -> Cluster {
    let cluster = Cluster::builder().brokers(1).start();
    prepare(&raw(&cluster), GroupConfig::default());
    cluster
}

/// The parent, and the group bound to it.
fn prepare(raw: &Raw, group: GroupConfig) {
    let topic =
        TopicConfig { name: PARENT.into(), message_type: MessageType::Lite.into(), ..Default::default() };
    is_ok(raw.make_topic(topic));
    is_ok(raw.make_group(GroupConfig { name: GROUP.into(), lite_bind_topic: PARENT.into(), ..group }));
}

fn sync_request(action: LiteSubscriptionAction, lites: &[&str]) -> v2::SyncLiteSubscriptionRequest {
    v2::SyncLiteSubscriptionRequest {
        action: action.into(),
        topic: resource(PARENT),
        group: resource(GROUP),
        lite_topic_set: lites.iter().map(|lite| (*lite).to_owned()).collect(),
        ..Default::default()
    }
}

fn sync(raw: &Raw, action: LiteSubscriptionAction, lites: &[&str]) -> v2::Status {
    raw.sync_lite_subscription(sync_request(action, lites)).status.unwrap()
}

fn subscribe(raw: &Raw, lites: &[&str]) {
    is_ok(sync(raw, LiteSubscriptionAction::PartialAdd, lites));
}

fn subscribe_from(raw: &Raw, lite: &str, from: OffsetType) -> v2::Status {
    let offset_option = Some(v2::OffsetOption { offset_type: Some(from) });
    let request = sync_request(LiteSubscriptionAction::PartialAdd, &[lite]);
    raw.sync_lite_subscription(v2::SyncLiteSubscriptionRequest { offset_option, ..request }).status.unwrap()
}

fn lite_message(id: &str, lite: &str) -> v2::Message {
    let mut sent = message(PARENT, id);
    let system = sent.system_properties.as_mut().unwrap();
    system.message_type = MessageType::Lite.into();
    system.lite_topic = Some(lite.into());
    sent
}

/// The offset it is stored at.
fn send(raw: &Raw, id: &str, lite: &str) -> i64 {
    let response = raw.send(&[lite_message(id, lite)]);
    is_ok(response.status.unwrap());
    response.entries[0].offset
}

fn take_request(wait: i64) -> v2::ReceiveMessageRequest {
    let long_polling_timeout = Some(seconds(wait));
    v2::ReceiveMessageRequest { long_polling_timeout, ..receive_request(PARENT, GROUP, BROKER) }
}

/// What is there, without waiting.
fn take(raw: &Raw) -> Vec<v2::Message> {
    raw::take(raw, PARENT, GROUP)
}

/// The next messages, waiting for them if need be.
fn wait(raw: &Raw) -> Vec<v2::Message> {
    until("messages", DEADLINE, || Some(raw.receive(take_request(5)).1).filter(|taken| !taken.is_empty()))
}

/// As C# does it: without the lite topic.
fn ack_status(raw: &Raw, message: &v2::Message) -> v2::Status {
    let entry = v2::AckMessageEntry {
        message_id: system(message).message_id.clone(),
        receipt_handle: system(message).receipt_handle().to_owned(),
        lite_topic: None,
    };
    let (group, topic) = (resource(GROUP), resource(PARENT));
    raw.ack_message(v2::AckMessageRequest { group, topic, entries: vec![entry] }).status.unwrap()
}

fn ack(raw: &Raw, message: &v2::Message) {
    is_ok(ack_status(raw, message));
}

fn change(raw: &Raw, message: &v2::Message, after: i64, suspend: bool) -> String {
    let response = raw.change_invisible_duration(v2::ChangeInvisibleDurationRequest {
        group: resource(GROUP),
        topic: resource(PARENT),
        receipt_handle: system(message).receipt_handle().to_owned(),
        invisible_duration: Some(seconds(after)),
        message_id: system(message).message_id.clone(),
        lite_topic: system(message).lite_topic.clone(),
        suspend: Some(suspend),
    });
    is_ok(response.status.unwrap());
    response.receipt_handle
}

#[test]
fn each_lite_topic_is_a_queue_of_its_own_in_strict_order() {
    let cluster = broker();
    let raw = raw(&cluster);
    assert_eq!(send(&raw, "early", "s-1"), 0);
    subscribe(&raw, &["s-1", "s-2", "s-3"]);
    assert_eq!((send(&raw, "a1", "s-1"), send(&raw, "b1", "s-2")), (1, 0));
    send(&raw, "a2", "s-1");
    send(&raw, "other", "s-9");
    let first = wait(&raw);
    assert_eq!(
        ids(&first),
        ["a1", "b1"],
        "a group begins at the end, and gets one message of each lite topic"
    );
    let lites: BTreeSet<&str> = first.iter().map(|message| system(message).lite_topic()).collect();
    assert_eq!(lites, BTreeSet::from(["s-1", "s-2"]));
    assert_eq!(system(&first[0]).delivery_attempt(), 1);
    assert_eq!(ids(&take(&raw)), [""; 0]);
    send(&raw, "b2", "s-2");
    assert_eq!(ids(&take(&raw)), [""; 0], "b1 is still with somebody");
    first.iter().for_each(|message| ack(&raw, message));
    let second = take(&raw);
    assert_eq!(ids(&second), ["a2", "b2"]);
    ack(&raw, &first[0]);
    second.iter().for_each(|message| ack(&raw, message));
    assert_eq!(ids(&take(&raw)), [""; 0]);
    let (status, _) = raw.receive(take_request(0));
    assert_eq!(status.code, Code::MessageNotFound as i32);
}

#[test]
fn a_message_wakes_the_client_that_waits_for_its_lite_topic() {
    let cluster = broker();
    let (me, you) = (raw(&cluster).named("me"), raw(&cluster).named("you"));
    subscribe(&me, &["mine"]);
    subscribe(&you, &["yours"]);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(&me));
        send(&you, "y", "yours");
        assert_eq!(ids(&wait(&you)), ["y"]);
        send(&you, "m", "mine");
        assert_eq!(ids(&waiting.join().unwrap()), ["m"]);
    });
}

#[test]
fn clients_of_a_group_share_a_lite_topic_and_what_they_ask_for_is_theirs() {
    let cluster = broker();
    let (me, you) = (raw(&cluster).named("me"), raw(&cluster).named("you"));
    subscribe(&me, &["both", "mine"]);
    subscribe(&you, &["both"]);
    send(&me, "1", "both");
    send(&me, "2", "both");
    let first = wait(&you);
    assert_eq!((ids(&first), ids(&take(&me))), (vec!["1".to_owned()], vec![]));
    ack(&you, &first[0]);
    assert_eq!(ids(&wait(&me)), ["2"], "in order, whoever has it");
    assert_eq!(ids(&take(&you)), [""; 0]);

    is_ok(sync(&you, LiteSubscriptionAction::CompleteAdd, &["new"]));
    is_ok(sync(&me, LiteSubscriptionAction::PartialRemove, &["mine", "never"]));
    for lite in ["mine", "new"] {
        send(&me, lite, lite);
    }
    assert_eq!((ids(&wait(&you)), ids(&take(&me))), (vec!["new".to_owned()], vec![]));
    is_ok(sync(&you, LiteSubscriptionAction::CompleteRemove, &[]));
    let ended = me.notify_client_termination(v2::NotifyClientTerminationRequest { group: resource(GROUP) });
    is_ok(ended.status.unwrap());
    send(&me, "3", "both");
    assert_eq!((ids(&take(&me)), ids(&take(&you))), (vec![], vec![]), "nobody wants it");
}

#[test]
fn what_is_refused_or_suspended_holds_up_its_lite_topic_and_no_other() {
    let cluster = broker();
    let raw = raw(&cluster);
    subscribe(&raw, &["a", "b"]);
    send(&raw, "a1", "a");
    send(&raw, "a2", "a");
    let first = wait(&raw);
    change(&raw, &first[0], 0, false);
    let again = wait(&raw);
    assert_eq!((ids(&again), system(&again[0]).delivery_attempt()), (vec!["a1".to_owned()], 2));
    assert_eq!(ack_status(&raw, &first[0]).code, Code::InvalidReceiptHandle as i32, "a newer handle exists");
    change(&raw, &again[0], 2, true);
    send(&raw, "b1", "b");
    assert_eq!(ids(&wait(&raw)), ["b1"]);
    assert_eq!(ids(&take(&raw)), [""; 0], "a is suspended");
    let after = wait(&raw);
    assert_eq!((ids(&after), system(&after[0]).delivery_attempt()), (vec!["a1".to_owned()], 2));
    ack(&raw, &after[0]);
    assert_eq!(ids(&wait(&raw)), ["a2"]);
}

#[test]
fn a_message_that_is_given_up_goes_to_the_dead_letters_and_the_next_one_follows() {
    let cluster = Cluster::builder().brokers(1).start();
    let raw = raw(&cluster);
    prepare(&raw, GroupConfig { retry_max_times: Some(1), ..Default::default() });
    subscribe(&raw, &["a"]);
    for id in ["forwarded", "worn-out", "good"] {
        send(&raw, id, "a");
    }
    let first = wait(&raw).remove(0);
    let forwarded = raw.forward_message_to_dead_letter_queue(v2::ForwardMessageToDeadLetterQueueRequest {
        group: resource(GROUP),
        topic: resource(PARENT),
        receipt_handle: system(&first).receipt_handle().to_owned(),
        message_id: system(&first).message_id.clone(),
        delivery_attempt: 1,
        max_delivery_attempts: 2,
        lite_topic: None,
    });
    is_ok(forwarded.status.unwrap());
    for attempt in 1..=2 {
        let taken = wait(&raw).remove(0);
        assert_eq!((&*system(&taken).message_id, system(&taken).delivery_attempt()), ("worn-out", attempt));
        change(&raw, &taken, 0, false);
    }
    assert_eq!(ids(&wait(&raw)), ["good"]);
    cluster.wait_dead_letters(GROUP);
    let (_, dead) = raw.receive(receive_request("%DLQ%agents", "readers", BROKER));
    assert_eq!(ids(&dead), ["forwarded", "worn-out"]);
    let origin = system(&dead[0]).dead_letter_queue.clone().unwrap();
    assert_eq!(origin.topic, PARENT);
}

fn survives(end: fn(&mut Node)) {
    let mut cluster = broker();
    let before = raw(&cluster);
    subscribe(&before, &["a", "b", "empty"]);
    for id in ["a1", "a2", "a3"] {
        send(&before, id, "a");
    }
    send(&before, "b1", "b");
    let first = wait(&before);
    assert_eq!(ids(&first), ["a1", "b1"]);
    let a1 = first.iter().find(|message| system(message).message_id == "a1").unwrap();
    let b1 = first.iter().find(|message| system(message).message_id == "b1").unwrap();
    ack(&before, a1);
    let a2 = wait(&before).remove(0);
    change(&before, &a2, 0, false);

    end(&mut cluster.brokers[0]);
    cluster.brokers[0].start();
    cluster.wait_route(PARENT);

    let after = raw(&cluster);
    assert_eq!(send(&after, "e1", "empty"), 0);
    assert_eq!(ids(&take(&after)), [""; 0], "the client has not said yet what it wants");
    ack(&after, b1);
    is_ok(sync(&after, LiteSubscriptionAction::CompleteAdd, &["a", "b", "empty"]));
    let taken = wait(&after);
    assert_eq!(ids(&taken), ["a2", "e1"], "what came between is not missed, what was acknowledged is done");
    let a2 = taken.iter().find(|message| system(message).message_id == "a2").unwrap();
    assert_eq!(system(a2).delivery_attempt(), 2);
    ack(&after, a2);
    assert_eq!(ids(&wait(&after)), ["a3"]);
}

#[test]
fn a_broker_that_is_killed_goes_on_where_it_was() {
    survives(Node::kill);
}

#[test]
fn a_broker_that_is_stopped_goes_on_where_it_was() {
    survives(Node::stop);
}

#[test]
fn a_subscriber_may_choose_where_its_group_goes_on() {
    let cluster = broker();
    let raw = raw(&cluster);
    for id in ["0", "1", "2", "3"] {
        send(&raw, id, "a");
    }
    let from = |from| {
        is_ok(subscribe_from(&raw, "a", from));
        take(&raw).first().map(|message| system(message).message_id.clone())
    };
    assert_eq!(from(OffsetType::Policy(Policy::Last.into())), None, "a new group begins at the end");
    assert_eq!(from(OffsetType::TailN(1)).as_deref(), Some("3"));
    assert_eq!(from(OffsetType::Policy(Policy::Min.into())).as_deref(), Some("0"));
    assert_eq!(from(OffsetType::Offset(2)).as_deref(), Some("2"));
    assert_eq!(from(OffsetType::Timestamp(1)).as_deref(), Some("0"));
    assert_eq!(from(OffsetType::Policy(Policy::Max.into())), None);
    for bad in
        [OffsetType::Offset(-1), OffsetType::TailN(-1), OffsetType::Timestamp(-1), OffsetType::Policy(9)]
    {
        assert_eq!(subscribe_from(&raw, "a", bad).code, Code::BadRequest as i32, "{bad:?}");
    }
}

#[test]
fn subscriptions_and_lite_topics_have_limits() {
    let cluster = Cluster::builder()
        .brokers(1)
        .set("maxLiteTopics", "400")
        .set("maxLiteSubscriptionCount", "350")
        .start();
    let raw = raw(&cluster);
    prepare(&raw, GroupConfig { lite_client_quota: 2, ..Default::default() });
    let names: Vec<String> = (0..500).map(|n| format!("s-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let code = |raw: &Raw, action, lites: &[&str]| sync(raw, action, lites).code();
    for action in [LiteSubscriptionAction::PartialAdd, LiteSubscriptionAction::CompleteAdd] {
        assert_eq!(code(&raw, action, &names[..303]), Code::LiteSubscriptionQuotaExceeded);
    }
    subscribe(&raw, &names[..300]);
    subscribe(&raw, &names[..302]);
    assert_eq!(
        code(&raw, LiteSubscriptionAction::PartialAdd, &names[302..303]),
        Code::LiteSubscriptionQuotaExceeded
    );
    is_ok(sync(&raw, LiteSubscriptionAction::CompleteAdd, &names[..302]));
    let other = Raw::connect(&cluster.brokers[0].endpoint()).named("other");
    subscribe(&other, &names[..48]);
    assert_eq!(
        code(&other, LiteSubscriptionAction::PartialAdd, &names[48..49]),
        Code::LiteSubscriptionQuotaExceeded,
        "all clients of the broker together"
    );
    is_ok(sync(&other, LiteSubscriptionAction::CompleteAdd, &[]));
    for name in &names[302..400] {
        send(&raw, name, name);
    }
    let refused = raw.send(&[lite_message("more", names[400])]).status.unwrap();
    assert_eq!(refused.code(), Code::LiteTopicQuotaExceeded, "{refused:?}");
    assert_eq!(code(&other, LiteSubscriptionAction::PartialAdd, &["more"]), Code::LiteTopicQuotaExceeded);
    send(&raw, "known", names[0]);
}

fn lite_settings(client_type: ClientType) -> v2::Settings {
    let subscription = v2::Subscription {
        group: resource(GROUP),
        subscriptions: vec![v2::SubscriptionEntry { topic: resource(PARENT), expression: None }],
        ..Default::default()
    };
    v2::Settings {
        client_type: Some(client_type.into()),
        pub_sub: Some(PubSub::Subscription(subscription)),
        ..Default::default()
    }
}

#[test]
fn an_exclusive_lite_topic_goes_to_its_new_subscriber_and_the_former_is_told() {
    let cluster = Cluster::builder().brokers(1).start();
    let (me, you) = (raw(&cluster).named("me"), raw(&cluster).named("you"));
    prepare(&me, GroupConfig { lite_exclusive: true, ..Default::default() });
    let told = me.telemetry(lite_settings(ClientType::LitePushConsumer));
    let expect_told = |lite: &str| {
        let command = told.next(Duration::from_secs(20));
        let Command::NotifyUnsubscribeLiteCommand(command) = command else { panic!("{command:?}") };
        assert_eq!(command.lite_topic, lite);
    };
    subscribe(&me, &["a", "b"]);
    subscribe(&you, &["b"]);
    expect_told("b");
    // It says its whole set once more, before it has heard.
    is_ok(sync(&me, LiteSubscriptionAction::CompleteAdd, &["a", "b"]));
    expect_told("b");
    send(&me, "a", "a");
    send(&me, "b", "b");
    assert_eq!((ids(&wait(&me)), ids(&wait(&you))), (vec!["a".to_owned()], vec!["b".to_owned()]));
}

#[test]
fn what_is_not_for_lite_topics_is_refused_with_its_code() {
    let cluster = broker();
    let raw = raw(&cluster);
    is_ok(raw.create_topic("orders", MessageType::Normal));
    is_ok(raw.create_topic("others", MessageType::Lite));
    is_ok(raw.make_group(GroupConfig { name: "plain".into(), ..Default::default() }));
    let add = LiteSubscriptionAction::PartialAdd;
    let status = |topic: &str, group: &str| {
        let request = sync_request(add, &["a"]);
        let request =
            v2::SyncLiteSubscriptionRequest { topic: resource(topic), group: resource(group), ..request };
        raw.sync_lite_subscription(request).status.unwrap().code()
    };
    assert_eq!(status("orders", GROUP), Code::IllegalTopic);
    assert_eq!(status("others", GROUP), Code::IllegalTopic);
    assert_eq!(status("nowhere", GROUP), Code::TopicNotFound);
    assert_eq!(status(PARENT, "plain"), Code::IllegalConsumerGroup);
    assert_eq!(status(PARENT, "new"), Code::Ok, "a group is made at its first use");
    let receive = |topic: &str, group: &str| raw.receive(receive_request(topic, group, BROKER)).0.code();
    assert_eq!(receive("orders", GROUP), Code::IllegalTopic);
    assert_eq!(receive("others", GROUP), Code::IllegalTopic);
    assert_eq!(receive(PARENT, "plain"), Code::IllegalConsumerGroup);

    let long = "x".repeat(65);
    for bad in ["", " ", "a.b", "a b", "ä", "%DLQ%a", long.as_str()] {
        assert_eq!(sync(&raw, add, &["good", bad]).code(), Code::IllegalLiteTopic, "{bad:?}");
        let sent = raw.send(&[lite_message("1", bad)]).status.unwrap();
        assert_eq!(sent.code(), Code::IllegalLiteTopic, "{bad:?}");
    }
    let mut grouped = lite_message("1", "a");
    grouped.system_properties.as_mut().unwrap().message_group = Some("g".into());
    for (wrong, topic) in
        [(lite_message("1", "a"), "orders"), (message(PARENT, "1"), PARENT), (grouped, PARENT)]
    {
        let refused = raw.send(&[v2::Message { topic: resource(topic), ..wrong }]).status.unwrap();
        assert_eq!(refused.code(), Code::MessagePropertyConflictWithType, "{refused:?}");
    }
    let mut unknown = sync_request(add, &["a"]);
    unknown.action = 9;
    assert_eq!(raw.sync_lite_subscription(unknown).status.unwrap().code(), Code::BadRequest);

    let forged = {
        let mut held = lite_message("1", "a");
        held.system_properties.as_mut().unwrap().receipt_handle = Some("a-handle".into());
        ack_status(&raw, &held).code()
    };
    assert_eq!(forged, Code::InvalidReceiptHandle);
    for (minutes, code) in [(14, Code::BadRequest), (15, Code::Ok)] {
        let status = raw.make_topic(TopicConfig {
            name: format!("minutes-{minutes}"),
            message_type: MessageType::Lite.into(),
            lite_expiration_minutes: minutes,
            ..Default::default()
        });
        assert_eq!(status.code(), code, "{status:?}");
    }
    subscribe(&raw, &["good"]);
    assert_eq!(ids(&take(&raw)), [""; 0], "nothing of all that was stored");
}

#[test]
fn two_brokers_and_a_namesrv_share_the_lite_topics_of_a_parent() {
    let cluster = Cluster::builder().namesrvs(1).brokers(2).start();
    let door = Raw::connect(&cluster.namesrvs[0].endpoint());
    prepare(&door, GroupConfig::default());
    cluster.wait_route(PARENT);
    let route = door.query_route(v2::QueryRouteRequest { topic: resource(PARENT), endpoints: None });
    for queue in route.message_queues {
        assert_eq!(queue.accept_message_types, [MessageType::Lite as i32]);
    }
    let names: Vec<String> = (0..20).map(|n| format!("s-{n}")).collect();
    is_ok(sync(
        &door,
        LiteSubscriptionAction::CompleteAdd,
        &names.iter().map(String::as_str).collect::<Vec<_>>(),
    ));
    for name in &names {
        send(&door, name, name);
    }
    let mut received = BTreeSet::new();
    for broker in ["broker-a", "broker-b"] {
        let before = received.len();
        let request = v2::ReceiveMessageRequest {
            long_polling_timeout: Some(seconds(0)),
            ..receive_request(PARENT, GROUP, broker)
        };
        for message in door.receive(request).1 {
            received.insert(system(&message).lite_topic().to_owned());
            ack(&door, &message);
        }
        assert!(received.len() > before, "{broker} has some");
    }
    assert_eq!(received, names.into_iter().collect());
}
