//! Backups of real clusters, both ways killed in the middle: every byte of every message comes back, in its place.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use karman_remoting::proto::karman::query_messages_request::By;
use karman_remoting::proto::karman::{QueryMessagesRequest, QueuePosition};
use karman_remoting::proto::v2::{self, MessageType, TransactionResolution};
use karman_tests::cluster::{ROOT, program};
use karman_tests::raw::{delayed, is_ok, message, now_ms, receive_request, resource};
use karman_tests::{Cluster, Raw, until};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const BROKERS: [&str; 2] = ["broker-a", "broker-b"];

fn two_brokers() -> Cluster {
    Cluster::builder().namesrvs(1).brokers(2).start()
}

fn karman(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("karman"));
    command.args(["-o", "json", "-e", &cluster.brokers[0].endpoint()]).args(arguments);
    command.current_dir(cluster.path());
    command
}

fn output(mut command: Command) -> (Output, String) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

fn done(cluster: &Cluster, arguments: &[&str]) -> Value {
    let (output, said) = output(karman(cluster, arguments));
    assert!(output.status.success(), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn killed(cluster: &Cluster, arguments: &[&str], what: &str, mut when: impl FnMut() -> bool) {
    let mut child = karman(cluster, arguments).spawn().unwrap();
    until(what, DEADLINE, || {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        when().then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The messages of each queue as they are stored: topic, broker, queue.
type Stored = BTreeMap<(String, String, u64), Vec<Vec<u8>>>;

fn stored(cluster: &Cluster) -> Stored {
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let mut all = Stored::new();
    for topic in raw.topics() {
        let (broker, topic) = (topic.broker_name, topic.topic.unwrap().name);
        let shown: Value =
            serde_json::from_str(&cluster.karman(&["-o", "json", "topic", "show", &topic])).unwrap();
        for queue in shown["queues"].as_array().unwrap().iter().filter(|queue| queue["broker"] == broker) {
            let number = |name: &str| queue[name].as_u64().unwrap();
            let (id, end) = (number("queue"), number("max_offset"));
            let mut messages = Vec::new();
            while (messages.len() as u64) < end {
                let position = QueuePosition { queue_id: id as u32, offset: messages.len() as u64 };
                messages.extend(raw.stored(QueryMessagesRequest {
                    topic: topic.clone(),
                    by: Some(By::Queue(position)),
                    broker_name: broker.clone(),
                    max: 64,
                    ..Default::default()
                }));
            }
            // A topic is made on all brokers, also on those that have nothing for it.
            if end > 0 {
                let messages = messages.into_iter().map(|stored| stored.message).collect();
                all.insert((topic.clone(), broker.clone(), id), messages);
            }
        }
    }
    all
}

/// Where a group is: topic, broker, queue, and what is done.
fn places(cluster: &Cluster, group: &str) -> Vec<[Value; 4]> {
    let shown = done(cluster, &["group", "show", group]);
    let queues = shown["queues"].as_array().unwrap().iter();
    queues
        .map(|queue| ["topic", "broker", "queue", "committed_offset"].map(|key| queue[key].clone()))
        .collect()
}

fn fill(cluster: &Cluster) {
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    for (topic, kind) in [
        ("orders", MessageType::Normal),
        ("invoices", MessageType::Fifo),
        ("reminders", MessageType::Delay),
        ("payments", MessageType::Transaction),
    ] {
        is_ok(raw.create_topic(topic, kind));
        cluster.wait_route(topic);
    }
    cluster.produce("orders", 2, &["--batch", "32"]);
    cluster.produce("invoices", 1, &["--message-groups", "20", "--rate", "1000"]);
    let mut labelled = message("orders", "labelled");
    labelled.user_properties.insert("colour".into(), "red".into());
    let system = labelled.system_properties.as_mut().unwrap();
    (system.tag, system.keys) = (Some("new".into()), vec!["4711".into(), "4712".into()]);
    system.born_timestamp = Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 123_000_000 });
    is_ok(raw.send(&[labelled]).status);
    for (id, resolution) in [("paid", Some(TransactionResolution::Commit)), ("undecided", None)] {
        let mut half = message("payments", id);
        half.system_properties.as_mut().unwrap().set_message_type(MessageType::Transaction);
        let transaction_id = raw.send(&[half]).entries.remove(0).transaction_id;
        if let Some(resolution) = resolution {
            let request = v2::EndTransactionRequest {
                topic: resource("payments"),
                message_id: id.to_owned(),
                transaction_id,
                resolution: resolution.into(),
                ..Default::default()
            };
            is_ok(raw.end_transaction(request).status);
        }
    }
    for (id, ahead_ms) in [("late", 3_600_000), ("later", 3_600_001), ("soon", 6_000), ("past", -1_000)] {
        is_ok(raw.send(&[delayed("reminders", id, now_ms() + ahead_ms)]).status);
    }
    bury(&raw, "orders", "shipping");
    let receive = ["message", "receive", "orders", "--group", "shipping", "--count", "200"];
    cluster.karman(&receive);
    cluster.karman(&["group", "update", "shipping", "--retry-max-times", "5"]);
    cluster.karman(&["group", "create", "idle", "--orderly"]);
    cluster.karman(&["group", "suspend", "idle"]);
}

/// One message becomes a dead letter of the group.
fn bury(raw: &Raw, topic: &str, group: &str) {
    let received = until("a message", DEADLINE, || {
        let request =
            v2::ReceiveMessageRequest { batch_size: 1, ..receive_request(topic, group, "broker-a") };
        raw.receive(request).1.into_iter().next()
    });
    let system = received.system_properties.unwrap();
    let request = v2::ForwardMessageToDeadLetterQueueRequest {
        group: resource(group),
        topic: resource(topic),
        receipt_handle: system.receipt_handle.unwrap(),
        message_id: system.message_id,
        delivery_attempt: 1,
        max_delivery_attempts: 16,
        ..Default::default()
    };
    is_ok(raw.forward_message_to_dead_letter_queue(request).status);
}

fn held(cluster: &Cluster) -> [u64; 2] {
    let brokers = Raw::connect(&cluster.brokers[0].endpoint()).brokers();
    let sum =
        |count: fn(&karman_remoting::proto::karman::BrokerStatus) -> u64| brokers.iter().map(count).sum();
    [sum(|broker| broker.delayed_count), sum(|broker| broker.half_count)]
}

/// The largest file of a backup, with its bytes.
fn largest(backup: &Path) -> Option<(u64, PathBuf)> {
    let files = std::fs::read_dir(backup).ok()?.flatten();
    files.filter_map(|file| Some((file.metadata().ok()?.len(), file.path()))).max()
}

fn flip_a_bit(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

/// A backup that was killed in the middle, and went on; the directory's largest file.
fn interrupted_backup(source: &Cluster) -> (Value, PathBuf) {
    let backup = source.path().join("backup");
    let directory = backup.to_str().unwrap();
    let has_begun = || largest(&backup).is_some_and(|(bytes, _)| bytes > 3 << 19);
    killed(source, &["backup", directory], "some messages are copied", has_begun);
    let (refused, said) = output(karman(source, &["restore", directory]));
    assert!(!refused.status.success() && said.contains("interrupted"), "{said}");
    let (_, file) = largest(&backup).unwrap();
    // What half a frame was is not told from what was torn.
    let torn = std::fs::File::options().append(true).open(&file).unwrap();
    std::io::Write::write_all(&mut &torn, b"\x10\0\0\0half").unwrap();
    let made = done(source, &["backup", directory]);
    assert!(made["messages_before"].as_u64() > Some(0), "{made}");
    assert_eq!(made["lost"], 0, "{made}");
    (made, file)
}

/// A restore that was killed in the middle, and went on.
fn interrupted_restore(target: &Cluster, directory: &str) -> Value {
    let raw = Raw::connect(&target.brokers[0].endpoint());
    let is_half_way = || {
        let orders = raw.topics().into_iter();
        let orders = orders.filter(|row| row.topic.as_ref().is_some_and(|topic| topic.name == "orders"));
        orders.map(|row| row.message_count).sum::<u64>() > 2_000
    };
    killed(target, &["restore", directory], "some messages are restored", is_half_way);
    done(target, &["restore", directory])
}

/// The ids of what is in the queues of the topic `reminders`.
fn reminders(of: &Stored) -> Vec<String> {
    let own = of.iter().filter(|((topic, ..), _)| topic == "reminders").flat_map(|(_, all)| all);
    let id = |bytes: &Vec<u8>| {
        let message: v2::Message = prost::Message::decode(&bytes[..]).unwrap();
        message.system_properties.unwrap().message_id
    };
    let mut ids: Vec<String> = own.map(id).collect();
    ids.sort();
    ids
}

fn without_reminders(all: Stored) -> Stored {
    all.into_iter().filter(|((topic, ..), _)| topic != "reminders").collect()
}

#[test]
fn everything_comes_back_in_its_place_though_both_ways_are_killed() {
    let source = two_brokers();
    fill(&source);
    let (before, committed) = (stored(&source), places(&source, "shipping"));
    assert!(committed.iter().any(|place| place[3].as_u64() > Some(0)), "{committed:?}");
    let (made, file) = interrupted_backup(&source);
    let directory = made["directory"].as_str().unwrap();

    let target = two_brokers();
    let restored = interrupted_restore(&target, directory);
    let topics = restored["topics"].as_array().unwrap().iter();
    let there: u64 = topics.map(|topic| topic["there"].as_u64().unwrap()).sum();
    assert!(there > 0, "{restored}");
    assert_eq!(there + restored["messages"].as_u64().unwrap(), made["messages"].as_u64().unwrap());

    // What was delayed until now is there once, whether it was copied as delayed or as delivered or both.
    let after = until("the delayed message is delivered", DEADLINE, || {
        Some(stored(&target)).filter(|after| reminders(after).len() >= 2)
    });
    assert_eq!((reminders(&after), held(&target)), (vec!["past".to_owned(), "soon".to_owned()], [2, 0]));
    let (before, after) = (without_reminders(before), without_reminders(after));
    assert!(before.keys().any(|(topic, ..)| topic == "%DLQ%shipping"), "{:?}", before.keys());
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let count = |of: &Stored| of.values().map(Vec::len).sum::<usize>();
    assert!(before == after, "{} and {} messages differ", count(&before), count(&after));
    assert_eq!(committed, places(&target, "shipping"));
    groups_go_on(&target, &before, &committed);
    a_second_restore_changes_nothing(&target, directory, &after);
    flip_a_bit(&file);
    let (damaged, said) = output(karman(&target, &["restore", directory, "--dry-run"]));
    assert_eq!(damaged.status.code(), Some(4), "{said}");
    assert!(said.contains(&format!("{} is damaged at byte", file.display())), "{said}");
}

/// Settings are as they were; nothing that was done comes again, and nothing that was not is missing.
fn groups_go_on(target: &Cluster, stored: &Stored, committed: &[[Value; 4]]) {
    let shown = done(target, &["group", "show", "shipping"]);
    assert_eq!((&shown["retry_max_times"], &shown["suspended"]), (&5.into(), &false.into()), "{shown}");
    let idle = done(target, &["group", "show", "idle"]);
    assert_eq!((&idle["orderly"], &idle["suspended"]), (&true.into(), &true.into()), "{idle}");
    let lag = done(target, &["group", "lag", "shipping", "--topic", "orders"]);
    let orders = stored.iter().filter(|((topic, ..), _)| topic == "orders").map(|(_, all)| all.len() as u64);
    let done = committed.iter().filter(|place| place[0] == "orders");
    let done: u64 = done.map(|place| place[3].as_u64().unwrap()).sum();
    assert_eq!(lag[0]["ready"].as_u64().unwrap(), orders.sum::<u64>() - done, "{lag}");
    let raw = Raw::connect(&target.brokers[0].endpoint());
    let receives = |broker: &&str| !raw.receive(receive_request("orders", "shipping", broker)).1.is_empty();
    assert!(BROKERS.iter().all(receives));
}

/// What was restored is known, a group that is delivered to is not moved, and what somebody else has sent is not taken for ours.
fn a_second_restore_changes_nothing(target: &Cluster, directory: &str, before: &Stored) {
    let refused = |words: &str| {
        let (again, said) = output(karman(target, &["restore", directory]));
        assert!(!again.status.success() && said.contains(words), "{said}");
    };
    refused("karman group suspend shipping");
    target.karman(&["group", "suspend", "shipping"]);
    let again = done(target, &["restore", directory]);
    let changed = (&again["messages"], &again["delayed"], held(target));
    assert_eq!(changed, (&0.into(), &0.into(), [2, 0]), "{again}");
    assert!(*before == without_reminders(stored(target)));
    let raw = Raw::connect(&target.brokers[0].endpoint());
    is_ok(raw.send(&[delayed("reminders", "foreign", 1)]).status);
    refused("karman topic delete reminders");
}

#[test]
fn nothing_is_overwritten_and_other_brokers_take_the_place_of_those_that_were() {
    let source = two_brokers();
    source.create_topic("orders");
    for number in 0..20 {
        source.karman(&["message", "send", "orders", "--body", &format!("number {number}")]);
    }
    let directory = source.path().join("backup");
    let directory = directory.to_str().unwrap();
    done(&source, &["backup", directory]);
    let (complete, said) = output(karman(&source, &["backup", directory]));
    assert!(!complete.status.success() && said.contains("complete backup"), "{said}");

    let target = Cluster::builder().namesrvs(1).brokers(2).start();
    let refused = |more: &[&str], words: &str| {
        let (output, said) = output(karman(&target, &[&["restore", directory], more].concat()));
        assert!(!output.status.success() && said.contains(words), "{words}: {said}");
    };
    refused(&["--broker", "broker-a=broker-x"], "no broker broker-x");
    refused(&["--broker", "broker-a=broker-b"], "both go to broker broker-b");
    target.create_topic("orders");
    target.karman(&["message", "send", "orders", "--body", "somebody else's"]);
    let before = stored(&target);
    refused(&[], "karman topic delete orders");
    assert!(before == stored(&target));
    target.karman(&["topic", "delete", "orders", "--yes"]);
    is_ok(Raw::connect(&target.brokers[0].endpoint()).create_topic("orders", MessageType::Fifo));
    refused(&[], "was normal with 4 queues and is fifo with 4 queues");
    target.karman(&["topic", "delete", "orders", "--yes"]);

    let swapped = ["--broker", "broker-a=broker-b", "--broker", "broker-b=broker-a"];
    let restored = done(&target, &[&["restore", directory], &swapped[..]].concat());
    assert_eq!(restored["messages"], 20, "{restored}");
    let other = |broker: &str| if broker == "broker-a" { "broker-b" } else { "broker-a" }.to_owned();
    let expected: Stored = stored(&source)
        .into_iter()
        .map(|((topic, broker, queue), all)| ((topic, other(&broker), queue), all))
        .collect();
    assert!(expected == stored(&target));
}

#[test]
fn users_come_back_with_what_they_may_do_and_new_secrets() {
    let secured = || Cluster::builder().namesrvs(1).brokers(1).secured().start();
    let run = |cluster: &Cluster, who: (&str, &str), arguments: &[&str]| {
        let mut command = karman(cluster, arguments);
        command.env("KARMAN_ACCESS_KEY", who.0).env("KARMAN_SECRET_KEY", who.1);
        output(command)
    };
    let source = secured();
    source.karman(&["user", "create", "shop"]);
    source.karman(&["acl", "create", "shop", "--resource", "Topic:orders", "--actions", "Pub"]);
    source.create_topic("orders");
    let directory = source.path().join("backup");
    let directory = directory.to_str().unwrap();
    let (refused, said) = run(&source, ("shop", "wrong"), &["backup", directory]);
    assert!(!refused.status.success() && said.contains("Check signature failed"), "{said}");
    let (made, said) = run(&source, ROOT, &["backup", directory]);
    assert!(made.status.success(), "{said}");
    let text: Vec<u8> = std::fs::read_dir(directory)
        .unwrap()
        .flat_map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(
        !text.windows(ROOT.1.len()).any(|window| window == ROOT.1.as_bytes()),
        "a secret is in the backup"
    );

    let target = secured();
    let (first, said) = run(&target, ROOT, &["restore", directory]);
    let first: Value = serde_json::from_slice(&first.stdout).unwrap_or_else(|_| panic!("{said}"));
    assert!(first["not_kept"].to_string().contains("user shop: not made"), "{first}");
    let (second, said) = run(&target, ROOT, &["restore", directory, "--new-secrets", "secrets"]);
    assert!(second.status.success(), "{said}");
    let secrets = std::fs::read_to_string(target.path().join("secrets")).unwrap();
    let secret = secrets.trim().strip_prefix("shop ").unwrap();
    until("the user is known", DEADLINE, || {
        let raw = Raw::connect(&target.brokers[0].endpoint()).signed_by("shop", secret);
        (raw.send(&[message("orders", "id")]).status.unwrap().code() == v2::Code::Ok).then_some(())
    });
}
