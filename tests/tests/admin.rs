//! Operating groups on two brokers through any node: dead letters that go back, groups that are moved and suspended, and
//! where a message is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};
use std::time::Duration;

use karman_remoting::proto::karman::{TopicConfig, TopicSummary};
use karman_remoting::proto::v2::{self, Code, MessageType};
use karman_tests::cluster::{Node, program};
use karman_tests::raw::{message, receive_request, resource, seconds};
use karman_tests::{Cluster, Raw, until};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(20);
const BROKERS: [&str; 2] = ["broker-a", "broker-b"];

fn two_brokers() -> Cluster {
    Cluster::builder().namesrvs(1).brokers(2).start()
}

fn run(endpoint: &str, arguments: &[&str]) -> Output {
    Command::new(program("karman")).args(["-e", endpoint, "-o", "json"]).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn done(endpoint: &str, arguments: &[&str]) -> Value {
    let output = run(endpoint, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn lines(endpoint: &str, arguments: &[&str]) -> Vec<Value> {
    let output = run(endpoint, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn is_ok(status: Option<v2::Status>) {
    let status = status.unwrap();
    assert_eq!(status.code, Code::Ok as i32, "{status:?}");
}

fn raws(cluster: &Cluster) -> Vec<Raw> {
    cluster.brokers.iter().map(|node| Raw::connect(&node.endpoint())).collect()
}

/// Through the door of the broker itself: it keeps what it is given.
fn send(raw: &Raw, topic: &str, ids: &[&str]) {
    for id in ids {
        is_ok(raw.send(&[message(topic, id)]).status);
    }
}

/// What `count` messages of a broker there are for a group.
fn take(raw: &Raw, topic: &str, group: &str, broker: &str, count: usize) -> Vec<v2::Message> {
    let mut taken = Vec::new();
    until(&format!("{count} messages of {topic} on {broker}"), DEADLINE, || {
        let request = v2::ReceiveMessageRequest {
            long_polling_timeout: Some(seconds(0)),
            ..receive_request(topic, group, broker)
        };
        taken.extend(raw.receive(request).1);
        (taken.len() >= count).then_some(())
    });
    assert_eq!(taken.len(), count);
    taken
}

fn id(message: &v2::Message) -> &str {
    &message.system_properties.as_ref().unwrap().message_id
}

fn handle(message: &v2::Message) -> String {
    message.system_properties.as_ref().unwrap().receipt_handle.clone().unwrap()
}

fn give_up(raw: &Raw, group: &str, message: &v2::Message) {
    let request = v2::ForwardMessageToDeadLetterQueueRequest {
        group: resource(group),
        topic: message.topic.clone(),
        receipt_handle: handle(message),
        message_id: id(message).to_owned(),
        delivery_attempt: 1,
        max_delivery_attempts: 16,
        ..Default::default()
    };
    is_ok(raw.forward_message_to_dead_letter_queue(request).status);
}

fn ack(raw: &Raw, group: &str, message: &v2::Message) {
    let entry = v2::AckMessageEntry {
        message_id: id(message).to_owned(),
        receipt_handle: handle(message),
        ..Default::default()
    };
    let request =
        v2::AckMessageRequest { group: resource(group), topic: message.topic.clone(), entries: vec![entry] };
    is_ok(raw.ack_message(request).status);
}

fn nodes(cluster: &Cluster) -> Vec<String> {
    cluster.namesrvs.iter().chain(&cluster.brokers).map(Node::endpoint).collect()
}

fn sum(rows: &Value, name: &str) -> u64 {
    rows.as_array().unwrap().iter().map(|row| row[name].as_u64().unwrap()).sum()
}

#[test]
fn dead_letters_of_all_brokers_go_back_once_and_as_they_were() {
    let mut cluster = two_brokers();
    cluster.create_topic("orders");
    let namesrv = cluster.namesrvs[0].endpoint();
    let kill = |raws: &[Raw], ids: [&[&str]; 2]| {
        for ((raw, broker), ids) in raws.iter().zip(BROKERS).zip(ids) {
            for letter in take(raw, "orders", "killing", broker, ids.len()) {
                assert!(ids.contains(&id(&letter)) && letter.user_properties.is_empty(), "{letter:?}");
                give_up(raw, "killing", &letter);
            }
        }
    };
    let ids: [&[&str]; 2] = [&["a-1", "a-2", "a-3"], &["b-1", "b-2"]];
    let connected = raws(&cluster);
    for (raw, ids) in connected.iter().zip(ids) {
        send(raw, "orders", ids);
    }
    done(&namesrv, &["group", "create", "killing"]);
    assert_eq!(done(&namesrv, &["dlq", "redrive", "killing", "--dry-run"])["count"], 0);
    kill(&connected, ids);
    cluster.wait_dead_letters("killing");

    for endpoint in nodes(&cluster) {
        assert_eq!(sum(&done(&endpoint, &["dlq", "list"]), "letters"), 5);
        let letters = lines(&endpoint, &["dlq", "show", "killing"]);
        assert_eq!(letters.len(), 5);
        for letter in &letters {
            let said = &letter["properties"];
            assert_eq!(
                (&said["DLQ_ORIGIN_TOPIC"], &said["DLQ_ORIGIN_MESSAGE_ID"], &said["DLQ_ATTEMPTS"]),
                (&json!("orders"), &letter["message_id"], &json!("1"))
            );
            assert_eq!(said["DLQ_REASON"], "given up by client raw@test");
        }
        assert_eq!(lines(&endpoint, &["dlq", "export", "killing"]).len(), 5);
        assert_eq!(done(&endpoint, &["dlq", "redrive", "killing", "--dry-run"])["count"], 5);
        let why = done(&endpoint, &["message", "why", "b-1", "--group", "killing"]);
        assert_eq!(
            (why.as_array().unwrap().len(), &why[0]["groups"][0]["state"]),
            (2, &json!("dead")),
            "{why}"
        );
    }

    let one = done(&namesrv, &["dlq", "redrive", "killing", "--id", "a-2", "--yes"]);
    assert_eq!((&one["count"], &one["done"]), (&json!(1), &json!(true)));
    let sent_back = take(&connected[0], "orders", "killing", "broker-a", 1).remove(0);
    assert_eq!(id(&sent_back), "a-2");
    ack(&connected[0], "killing", &sent_back);
    let again = done(&namesrv, &["dlq", "redrive", "killing", "--id", "a-2", "--yes"]);
    assert!(
        again["count"] == 0 && again["skipped"][0].as_str().unwrap().contains("went back before"),
        "{again}"
    );
    assert_eq!(
        done(&namesrv, &["dlq", "redrive", "killing", "--max", "1", "--yes"])["count"],
        2,
        "one on each"
    );
    // What went back is known after a crash, too.
    cluster.brokers[0].kill();
    cluster.brokers[0].start();
    cluster.wait_whole();
    cluster.wait_dead_letters("killing");
    assert_eq!(done(&namesrv, &["dlq", "redrive", "killing", "--yes"])["count"], 2);
    assert_eq!(done(&namesrv, &["dlq", "redrive", "killing", "--yes"])["count"], 0);
    let connected = raws(&cluster);
    kill(&connected, [&["a-1", "a-3"], &["b-1", "b-2"]]);

    done(&namesrv, &["topic", "delete", "orders", "--yes"]);
    let orphans = done(&namesrv, &["dlq", "redrive", "killing", "--yes"]);
    assert_eq!(
        (&orphans["count"], orphans["skipped"].as_array().unwrap().len()),
        (&json!(0), 4),
        "{orphans}"
    );
    assert!(orphans["skipped"][0].as_str().unwrap().contains("topic orders does not exist"), "{orphans}");
}

#[test]
fn a_topic_keeps_what_is_not_named_as_each_broker_has_it_and_goes_when_that_is_confirmed() {
    let cluster = two_brokers();
    cluster.create_topic("orders");
    let namesrv = cluster.namesrvs[0].endpoint();
    let raw = Raw::connect(&namesrv);
    let topic = TopicConfig { name: "orders".into(), reserved_hours: 5, ..Default::default() };
    is_ok(Some(raw.update_topic_on("broker-b", topic.clone())));
    assert_eq!(raw.update_topic_on("broker-c", topic).code, Code::BadRequest as i32);
    let changed = done(&namesrv, &["topic", "update", "orders", "--ttl", "1h"]);
    assert_eq!(changed["brokers"].as_array().unwrap().len(), 2);
    let settings = |row: TopicSummary| {
        let topic = row.topic.unwrap();
        (row.broker_name, topic.ttl_seconds, topic.reserved_hours)
    };
    let settings: Vec<_> = raw.topics().into_iter().map(settings).collect();
    assert_eq!(settings, [(BROKERS[0].to_owned(), 3600, 0), (BROKERS[1].to_owned(), 3600, 5)]);

    send(&raw, "orders", &["a-1", "a-2"]);
    let plan = done(&namesrv, &["topic", "delete", "orders", "--dry-run"]);
    assert_eq!((&plan["done"], sum(&plan["brokers"], "messages")), (&json!(false), 2));
    let unconfirmed = run(&namesrv, &["topic", "delete", "orders"]);
    assert_eq!(unconfirmed.status.code(), Some(2), "{}", stderr(&unconfirmed));
    done(&namesrv, &["topic", "show", "orders"]);
    done(&namesrv, &["topic", "delete", "orders", "--yes"]);
    let gone = run(&namesrv, &["topic", "delete", "orders", "--dry-run"]);
    assert_eq!(gone.status.code(), Some(3), "{}", stderr(&gone));
}

#[test]
fn a_group_that_one_broker_knows_is_changed_and_moved_on_all() {
    let cluster = two_brokers();
    cluster.create_topic("orders");
    let connected = raws(&cluster);
    for (raw, prefix) in connected.iter().zip(["a", "b"]) {
        let ids: Vec<String> = (0..4).map(|number| format!("{prefix}-{number}")).collect();
        send(raw, "orders", &ids.iter().map(String::as_str).collect::<Vec<_>>());
    }
    // It comes into being on the broker that it reads from.
    assert_eq!(take(&connected[0], "orders", "reading", "broker-a", 4).len(), 4);
    let endpoint = cluster.brokers[1].endpoint();
    let shown = done(&endpoint, &["group", "show", "reading"]);
    assert_eq!(
        (sum(&shown["queues"], "inflight"), shown["queues"].as_array().unwrap().len()),
        (4, 4),
        "{shown}"
    );

    let planned = done(&endpoint, &["offset", "skip", "reading", "orders", "--dry-run"]);
    assert_eq!(
        (planned["moves"].as_array().unwrap().len(), sum(&planned["moves"], "to")),
        (8, 8),
        "{planned}"
    );
    let refused = run(
        &endpoint,
        &["offset", "reset", "reading", "orders", "--offset", "2", "--broker", "broker-b", "--yes"],
    );
    assert!(stderr(&refused).contains("between 0 and 1"), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("ILLEGAL_OFFSET"), "{}", stderr(&refused));
    let listed = done(&endpoint, &["group", "list"]);
    assert!(
        listed.as_array().unwrap().iter().all(|row| row["broker"] == "broker-a"),
        "nothing was changed: {listed}"
    );

    assert_eq!(done(&endpoint, &["offset", "skip", "reading", "orders", "--yes"])["moves"], planned["moves"]);
    let shown = done(&endpoint, &["group", "show", "reading"]);
    assert_eq!((sum(&shown["queues"], "ready"), sum(&shown["queues"], "inflight")), (0, 0), "{shown}");
    for (raw, broker) in connected.iter().zip(BROKERS) {
        take(raw, "orders", "reading", broker, 0);
        send(raw, "orders", &["new"]);
    }
    let suspended = done(&endpoint, &["group", "suspend", "reading"]);
    assert_eq!(suspended["brokers"].as_array().unwrap().len(), 2);
    for (raw, broker) in connected.iter().zip(BROKERS) {
        let (status, messages) = raw.receive(v2::ReceiveMessageRequest {
            long_polling_timeout: Some(seconds(0)),
            ..receive_request("orders", "reading", broker)
        });
        assert_eq!((status.code, messages.len()), (Code::MessageNotFound as i32, 0));
    }
    let why = done(&endpoint, &["message", "why", "new", "orders"]);
    assert!(why[0]["groups"][0]["reason"].as_str().unwrap().contains("suspended"), "{why}");
    done(&endpoint, &["group", "resume", "reading"]);
    for (raw, broker) in connected.iter().zip(BROKERS) {
        take(raw, "orders", "reading", broker, 1);
    }
}

#[test]
fn a_message_behind_another_of_its_message_group_says_whom_it_waits_for() {
    let cluster = Cluster::builder().brokers(1).start();
    let raw = &raws(&cluster)[0];
    let endpoint = cluster.brokers[0].endpoint();
    let config = TopicConfig {
        name: "invoices".into(),
        message_type: MessageType::Fifo.into(),
        queue_nums: 2,
        ..Default::default()
    };
    is_ok(Some(raw.make_topic(config)));
    for id in ["first", "second"] {
        let mut sent = message("invoices", id);
        let system = sent.system_properties.as_mut().unwrap();
        system.message_type = MessageType::Fifo.into();
        system.message_group = Some("customer-7".into());
        is_ok(raw.send(&[sent]).status);
    }
    let first = take(raw, "invoices", "billing", "broker-a", 1).remove(0);
    let fate = |id: &str| done(&endpoint, &["message", "why", id, "invoices"])[0]["groups"][0].clone();
    assert_eq!((&fate("first")["state"], &fate("first")["attempt"]), (&json!("delivered"), &json!(1)));
    let second = fate("second");
    let reason = second["reason"].as_str().unwrap();
    assert_eq!(second["state"], "withheld", "{second}");
    assert!(reason.contains("message first of message group customer-7"), "{second}");
    let shown = done(&endpoint, &["group", "show", "billing"]);
    assert_eq!((sum(&shown["queues"], "inflight"), sum(&shown["queues"], "withheld")), (1, 1), "{shown}");
    ack(raw, "billing", &first);
    assert_eq!((&fate("first")["state"], &fate("second")["state"]), (&json!("done"), &json!("waiting")));
}

#[test]
fn clients_and_their_filters_are_known_on_every_node() {
    let cluster = two_brokers();
    cluster.create_topic("orders");
    let [a, b] = [0, 1].map(|index| cluster.brokers[index].endpoint());
    let producer = Raw::connect(&a).named("sender");
    let mut plain = message("orders", "plain");
    plain.system_properties.as_mut().unwrap().tag = Some("blue".to_owned());
    is_ok(producer.send(&[plain]).status);
    let filtered = |expression: &str| v2::ReceiveMessageRequest {
        filter_expression: Some(v2::FilterExpression {
            r#type: v2::FilterType::Tag.into(),
            expression: expression.to_owned(),
        }),
        long_polling_timeout: Some(seconds(0)),
        ..receive_request("orders", "reading", "broker-a")
    };
    let reader = Raw::connect(&a).named("reader");
    assert!(reader.receive(filtered("red")).1.is_empty());
    for endpoint in [&a, &b, &cluster.namesrvs[0].endpoint()] {
        let members = done(endpoint, &["client", "list", "--group", "reading"]);
        assert_eq!(
            (members.as_array().unwrap().len(), &members[0]["client"]),
            (1, &json!("reader")),
            "{members}"
        );
        assert_eq!(members[0]["subscriptions"][0]["expression"], "red");
        let of_topic = done(endpoint, &["client", "list", "--topic", "orders"]);
        let names: Vec<_> = of_topic.as_array().unwrap().iter().map(|client| &client["client"]).collect();
        assert_eq!(names, ["reader", "sender"], "{of_topic}");
        // It exits with 1 where the disk of this machine is full.
        let report: Value = serde_json::from_slice(&run(endpoint, &["doctor"]).stdout).unwrap();
        let reached = report["findings"].as_array().unwrap().iter().filter(|one| one["check"] == "reachable");
        let nodes: Vec<&str> = reached.map(|one| one["node"].as_str().unwrap()).collect();
        for (address, broker) in [(&a, "broker-a"), (&b, "broker-b")] {
            let address = address.trim_start_matches("http://");
            assert!(nodes.contains(&&*format!("{address} ({broker})")), "{report}");
        }
        let why = done(endpoint, &["message", "why", "plain", "orders"]);
        let reason = why[0]["groups"][0]["reason"].as_str().unwrap();
        assert!(reason.contains("no client's filter matches it"), "{why}");
    }
    let other = Raw::connect(&a).named("other");
    assert!(other.receive(filtered("green")).1.is_empty());
    let shown = done(&b, &["group", "show", "reading"]);
    assert_eq!(shown["clients"].as_array().unwrap().len(), 2, "{shown}");
    let contradiction = shown["contradictions"][0].as_str().unwrap();
    assert!(contradiction.contains("red") && contradiction.contains("green"), "{shown}");
}

#[test]
fn a_message_that_nobody_may_see_yet_says_what_it_waits_for() {
    let cluster = Cluster::builder().brokers(1).start();
    let raw = &raws(&cluster)[0];
    let endpoint = cluster.brokers[0].endpoint();
    for (name, kind) in [("later", MessageType::Delay), ("paid", MessageType::Transaction)] {
        is_ok(Some(raw.create_topic(name, kind)));
    }
    let mut delayed = message("later", "tea");
    let system = delayed.system_properties.as_mut().unwrap();
    system.message_type = MessageType::Delay.into();
    system.delivery_timestamp = Some((std::time::SystemTime::now() + Duration::from_secs(3600)).into());
    let sent = raw.send(&[delayed]);
    is_ok(sent.status.clone());
    let mut half = message("paid", "order");
    half.system_properties.as_mut().unwrap().message_type = MessageType::Transaction.into();
    let prepared = raw.send(&[half]);
    is_ok(prepared.status.clone());

    let trace = |id: &str| {
        let whole = done(&endpoint, &["message", "why", id]);
        let rows = whole.as_array().unwrap().clone();
        rows.into_iter()
            .map(|row| (row["kind"].as_str().unwrap().to_owned(), row["state"].to_string()))
            .collect::<Vec<_>>()
    };
    let [(kind, state)] = &trace("tea")[..] else { panic!("{:?}", trace("tea")) };
    assert!(kind == "delayed" && state.contains("delayed until"), "{kind}: {state}");
    let [(kind, state)] = &trace("order")[..] else { panic!("{:?}", trace("order")) };
    assert!(
        kind == "half" && state.contains("undecided since") && state.contains("asked 0 times"),
        "{state}"
    );

    let recall = v2::RecallMessageRequest {
        topic: resource("later"),
        recall_handle: sent.entries[0].recall_handle.clone(),
    };
    is_ok(raw.recall_message(recall).status);
    assert!(trace("tea")[0].1.contains("recalled"), "{:?}", trace("tea"));
    let commit = v2::EndTransactionRequest {
        topic: resource("paid"),
        message_id: "order".to_owned(),
        transaction_id: prepared.entries[0].transaction_id.clone(),
        resolution: v2::TransactionResolution::Commit.into(),
        source: v2::TransactionSource::SourceClient.into(),
        ..Default::default()
    };
    is_ok(raw.end_transaction(commit).status);
    let kinds: Vec<String> = trace("order").into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["half", "released"], "{:?}", trace("order"));
    assert!(trace("order")[0].1.contains("committed"), "{:?}", trace("order"));
}
