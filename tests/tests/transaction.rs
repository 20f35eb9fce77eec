//! Transactions through brokers as processes: decided once, asked about, given up, across `kill -9`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use karman_remoting::proto::v2::telemetry_command::Command;
use karman_remoting::proto::v2::{self, Code, MessageType, TransactionResolution};
use karman_tests::cluster::Builder;
use karman_tests::raw::{Telemetry, ids, is_ok, message, receive_request, resource, seconds, take};
use karman_tests::{Cluster, Raw, let_run, until};

const TOPIC: &str = "payments";
const GROUP: &str = "billing";
const GIVEN_UP: &str = "TRANS_CHECK_MAX_TIME_TOPIC";
const DEADLINE: Duration = Duration::from_secs(20);

use TransactionResolution::{Commit, Rollback, Unspecified};

fn builder() -> Builder {
    Cluster::builder().namesrvs(1).brokers(1)
}

fn start(builder: Builder) -> Cluster {
    let cluster = builder.start();
    create(&cluster, TOPIC, MessageType::Transaction);
    cluster
}

fn create(cluster: &Cluster, topic: &str, kind: MessageType) {
    is_ok(Raw::connect(&cluster.brokers[0].endpoint()).create_topic(topic, kind));
    cluster.wait_route(topic);
}

fn doors(cluster: &Cluster) -> [Raw; 2] {
    [Raw::connect(&cluster.brokers[0].endpoint()), Raw::connect(&cluster.namesrvs[0].endpoint())]
}

fn half(topic: &str, id: &str) -> v2::Message {
    let mut message = message(topic, id);
    let system = message.system_properties.as_mut().unwrap();
    system.set_message_type(MessageType::Transaction);
    system.tag = Some("tag".into());
    system.keys = vec!["key".into()];
    message.user_properties.insert("a".into(), "1".into());
    message
}

/// The transaction of a half message that was stored.
fn begin(raw: &Raw, message: v2::Message) -> String {
    let mut response = raw.send(&[message]);
    assert_eq!(response.status.unwrap().code, Code::Ok as i32);
    let entry = response.entries.remove(0);
    assert!(!entry.transaction_id.is_empty() && entry.offset == 0);
    entry.transaction_id
}

fn end(raw: &Raw, message_id: &str, transaction: &str, resolution: TransactionResolution) -> v2::Status {
    let request = v2::EndTransactionRequest {
        topic: resource(TOPIC),
        message_id: message_id.to_owned(),
        transaction_id: transaction.to_owned(),
        resolution: resolution.into(),
        ..Default::default()
    };
    raw.end_transaction(request).status.unwrap()
}

fn assert_code(status: &v2::Status, code: Code, named: &str) {
    assert_eq!(status.code, code as i32, "{code:?} expected: {status:?}");
    assert!(status.message.contains(named), "{named:?} in {:?}", status.message);
}

/// Receives until `count` messages have come.
fn receive(raw: &Raw, topic: &str, count: usize) -> Vec<v2::Message> {
    let mut received = Vec::new();
    until(&format!("{count} messages are delivered"), DEADLINE, || {
        received.extend(raw.receive(receive_request(topic, GROUP, "broker-a")).1);
        (received.len() >= count).then_some(())
    });
    received
}

fn assert_none_left(raw: &Raw, topic: &str) {
    assert_eq!(take(raw, topic, GROUP), []);
}

/// A producer of the topic that can be asked.
fn producer(raw: &Raw) -> Telemetry {
    let topics = vec![resource(TOPIC).unwrap()];
    raw.telemetry(v2::Settings {
        client_type: Some(v2::ClientType::Producer.into()),
        pub_sub: Some(v2::settings::PubSub::Publishing(v2::Publishing { topics, ..Default::default() })),
        ..Default::default()
    })
}

fn asked(telemetry: &Telemetry) -> (v2::Message, String) {
    match telemetry.next(DEADLINE) {
        Command::RecoverOrphanedTransactionCommand(command) => {
            (command.message.unwrap(), command.transaction_id)
        }
        other => panic!("no check: {other:?}"),
    }
}

#[test]
fn a_commit_shows_the_message_once_and_a_rollback_never() {
    let cluster = start(builder());
    let [broker, namesrv] = doors(&cluster);
    let transactions: Vec<String> =
        (0..6).map(|number| begin(&broker, half(TOPIC, &format!("id-{number}")))).collect();
    assert_none_left(&broker, TOPIC);
    for (number, transaction) in transactions.iter().enumerate() {
        let id = format!("id-{number}");
        let (wanted, other, was) =
            if number < 3 { (Commit, Rollback, "committed") } else { (Rollback, Commit, "rolled back") };
        for door in [&broker, &namesrv] {
            assert_code(&end(door, &id, transaction, Unspecified), Code::Ok, "");
        }
        for door in [&namesrv, &broker, &namesrv] {
            assert_code(&end(door, &id, transaction, wanted), Code::Ok, "");
            assert_code(&end(door, &id, transaction, other), Code::InvalidTransactionId, was);
        }
    }
    let received = receive(&broker, TOPIC, 3);
    assert_eq!(ids(&received), ["id-0", "id-1", "id-2"]);
    for message in &received {
        let system = message.system_properties.as_ref().unwrap();
        assert_eq!((system.message_type, system.tag()), (MessageType::Transaction as i32, "tag"));
    }
    assert_none_left(&broker, TOPIC);
}

#[test]
fn two_that_commit_at_once_show_one_message() {
    let cluster = start(builder());
    let endpoint = cluster.brokers[0].endpoint();
    let raw = Raw::connect(&endpoint);
    let transactions: Vec<(String, String)> = (0..20)
        .map(|number| format!("id-{number:02}"))
        .map(|id| (id.clone(), begin(&raw, half(TOPIC, &id))))
        .collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let raw = Raw::connect(&endpoint);
                for (id, transaction) in &transactions {
                    assert_code(&end(&raw, id, transaction, Commit), Code::Ok, "");
                }
            });
        }
    });
    let sent: Vec<&str> = transactions.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids(&receive(&raw, TOPIC, 20)), sent);
    assert_none_left(&raw, TOPIC);
}

#[test]
fn a_producer_is_asked_with_the_whole_message_until_it_answers() {
    let short = builder().set("transactionTimeOut", "400").set("transactionCheckInterval", "400");
    let cluster = start(short);
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    begin(&raw, half(TOPIC, "id-1"));
    // Nobody can be asked: that does not count, though three intervals go by.
    let_run(Duration::from_millis(1500));
    let other = Raw::connect(&cluster.brokers[0].endpoint()).named("other@test");
    let telemetry = producer(&other);
    let (message, transaction) = asked(&telemetry);
    assert_eq!(message.topic, resource(TOPIC));
    assert_eq!(message.user_properties["a"], "1");
    let system = message.system_properties.clone().unwrap();
    assert_eq!(
        (&*system.message_id, system.tag(), &system.keys[..]),
        ("id-1", "tag", &["key".to_owned()][..])
    );
    assert_eq!(system.message_type, MessageType::Transaction as i32);
    assert_eq!(system.body_encoding, v2::Encoding::Identity as i32);
    assert!(system.born_timestamp.is_some() && system.store_timestamp.is_some());
    let digest = system.body_digest.unwrap();
    assert_eq!((digest.r#type, digest.checksum.len()), (v2::DigestType::Sha1 as i32, 40));
    assert!(!system.store_host.is_empty());
    // Not known yet: it is asked again.
    assert_code(&end(&other, "id-1", &transaction, Unspecified), Code::Ok, "");
    let (_, again) = asked(&telemetry);
    assert_eq!(again, transaction);
    assert_code(&end(&other, "id-1", &again, Commit), Code::Ok, "");
    assert_eq!(ids(&receive(&raw, TOPIC, 1)), ["id-1"]);
    drop(telemetry.waiting());
    let_run(Duration::from_millis(1000));
    assert_eq!(telemetry.waiting(), [], "it is decided");
}

#[test]
fn a_message_may_say_when_it_is_asked_about_first() {
    let cluster = start(builder().set("transactionTimeOut", "60000"));
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let telemetry = producer(&raw);
    begin(&raw, half(TOPIC, "patient"));
    let mut impatient = half(TOPIC, "impatient");
    let system = impatient.system_properties.as_mut().unwrap();
    system.orphaned_transaction_recovery_duration = Some(seconds(1));
    begin(&raw, impatient);
    assert_eq!(ids(&[asked(&telemetry).0]), ["impatient"]);
}

#[test]
fn what_nobody_decides_is_given_up_and_can_be_read() {
    let short = builder()
        .set("transactionTimeOut", "200")
        .set("transactionCheckInterval", "200")
        .set("transactionCheckMax", "3");
    let cluster = start(short);
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let telemetry = producer(&raw);
    let transaction = begin(&raw, half(TOPIC, "id-1"));
    for _ in 0..3 {
        assert_eq!(asked(&telemetry).1, transaction);
    }
    until("the topic of those is made", DEADLINE, || (!raw.route_brokers(GIVEN_UP).is_empty()).then_some(()));
    let received = receive(&raw, GIVEN_UP, 1);
    let system = received[0].system_properties.clone().unwrap();
    let origin = system.dead_letter_queue.unwrap();
    assert_eq!((&*system.message_id, &*origin.topic, &*origin.message_id), ("id-1", TOPIC, "id-1"));
    assert_eq!(received[0].topic, resource(GIVEN_UP));
    for decision in [Commit, Rollback] {
        assert_code(&end(&raw, "id-1", &transaction, decision), Code::InvalidTransactionId, GIVEN_UP);
    }
    assert_eq!(telemetry.waiting(), [], "three times, no more");
    assert_none_left(&raw, TOPIC);
}

#[test]
fn decided_and_undecided_transactions_survive_kill_9() {
    let mut cluster = start(builder().set("transactionTimeOut", "2000"));
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let transactions: Vec<String> =
        (0..9).map(|number| begin(&raw, half(TOPIC, &format!("id-{number}")))).collect();
    let decide = |raw: &Raw, number: usize, resolution| {
        let id = format!("id-{number}");
        end(raw, &id, &transactions[number], resolution)
    };
    (0..3).for_each(|number| assert_code(&decide(&raw, number, Commit), Code::Ok, ""));
    (3..5).for_each(|number| assert_code(&decide(&raw, number, Rollback), Code::Ok, ""));
    cluster.brokers[0].kill();
    cluster.brokers[0].start();
    cluster.wait_route(TOPIC);
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    (0..3).for_each(|number| assert_code(&decide(&raw, number, Commit), Code::Ok, ""));
    assert_code(&decide(&raw, 0, Rollback), Code::InvalidTransactionId, "committed");
    assert_code(&decide(&raw, 3, Commit), Code::InvalidTransactionId, "rolled back");
    (5..7).for_each(|number| assert_code(&decide(&raw, number, Commit), Code::Ok, ""));
    // The others are asked about, as if nothing had been.
    let telemetry = producer(&raw);
    for _ in 7..9 {
        let (message, transaction) = asked(&telemetry);
        let id = message.system_properties.unwrap().message_id;
        let decision = if id == "id-7" { Commit } else { Rollback };
        assert_code(&end(&raw, &id, &transaction, decision), Code::Ok, "");
    }
    let received = receive(&raw, TOPIC, 6);
    assert_eq!(ids(&received), ["id-0", "id-1", "id-2", "id-5", "id-6", "id-7"]);
    assert_none_left(&raw, TOPIC);
}

#[test]
fn a_repeated_send_of_a_half_message_is_the_same_transaction() {
    let cluster = start(builder());
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let transaction = begin(&raw, half(TOPIC, "id-1"));
    assert_eq!(begin(&raw, half(TOPIC, "id-1")), transaction);
    assert_code(&end(&raw, "id-1", &transaction, Commit), Code::Ok, "");
    assert_eq!(begin(&raw, half(TOPIC, "id-1")), transaction, "also when it is committed");
    assert_eq!(ids(&receive(&raw, TOPIC, 1)), ["id-1"]);
    assert_none_left(&raw, TOPIC);
}

#[test]
fn what_is_wrong_about_a_transaction_is_refused() {
    let cluster = start(builder());
    create(&cluster, "normal", MessageType::Normal);
    create(&cluster, "other", MessageType::Transaction);
    for (number, raw) in doors(&cluster).iter().enumerate() {
        let send = |message: v2::Message| raw.send(&[message]).status.unwrap();
        assert_code(&send(half("normal", "x")), Code::MessagePropertyConflictWithType, "TRANSACTION");
        assert_code(&send(message(TOPIC, "x")), Code::MessagePropertyConflictWithType, "NORMAL");
        for (duration, named) in [(seconds(3601), "3601000"), (seconds(-1), "-1000")] {
            let mut impatient = half(TOPIC, "x");
            let system = impatient.system_properties.as_mut().unwrap();
            system.orphaned_transaction_recovery_duration = Some(duration);
            assert_code(&send(impatient), Code::BadRequest, named);
        }
        let id = format!("id-{number}");
        let transaction = begin(raw, half(TOPIC, &id));
        assert_code(&end(raw, &id, "", Commit), Code::InvalidTransactionId, "blank");
        assert_code(&end(raw, &id, "nonsense", Commit), Code::InvalidTransactionId, "not an id");
        let last = if transaction.ends_with('A') { 'B' } else { 'A' };
        let changed = format!("{}{last}", &transaction[..transaction.len() - 1]);
        assert_code(&end(raw, &id, &changed, Commit), Code::InvalidTransactionId, "not an id");
        assert_code(&end(raw, "other-id", &transaction, Commit), Code::InvalidTransactionId, "message id");
        let request = |topic, resolution| v2::EndTransactionRequest {
            topic: resource(topic),
            message_id: id.clone(),
            transaction_id: transaction.clone(),
            resolution,
            ..Default::default()
        };
        for (topic, code, named) in [
            ("other", Code::InvalidTransactionId, "another topic"),
            ("normal", Code::InvalidTransactionId, "TRANSACTION"),
            ("nowhere", Code::TopicNotFound, "nowhere"),
            ("a/b", Code::IllegalTopic, "a/b"),
        ] {
            let status = raw.end_transaction(request(topic, Commit.into())).status.unwrap();
            assert_code(&status, code, named);
        }
        let status = raw.end_transaction(request(TOPIC, 99)).status.unwrap();
        assert_code(&status, Code::BadRequest, "99");
        assert_none_left(raw, TOPIC);
        assert_code(&end(raw, &id, &transaction, Rollback), Code::Ok, "");
    }
}
