//! Who may do what, on real nodes: a namesrv and two brokers that ask every caller who it is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use karman_remoting::proto::v2::{self, Code};
use karman_tests::cluster::{Cluster, Node, program};
use karman_tests::raw::{is_ok, message, receive_request, resource, seconds};
use karman_tests::{Raw, until};

/// A change holds on every node after so long.
const EFFECTIVE: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(10);
const SECRET: &str = "secret of the shop";

fn code(status: Option<v2::Status>) -> Code {
    status.expect("a status").code()
}

fn text(status: Option<v2::Status>) -> String {
    status.expect("a status").message
}

fn secret_file(cluster: &Cluster, name: &str, secret: &str) -> String {
    let path = cluster.path().join(name);
    std::fs::write(&path, format!("{secret}\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn nodes(cluster: &Cluster) -> impl Iterator<Item = &Node> {
    cluster.namesrvs.iter().chain(&cluster.brokers)
}

fn route(raw: &Raw, topic: &str) -> Option<v2::Status> {
    raw.query_route(v2::QueryRouteRequest { topic: resource(topic), endpoints: None }).status
}

/// A cluster with two topics and the user `shop`, who may send to one of them and receive from it.
fn cluster() -> Cluster {
    let cluster = Cluster::builder().namesrvs(1).brokers(2).secured().start();
    cluster.create_topic("orders");
    cluster.create_topic("bills");
    let file = secret_file(&cluster, "shop", SECRET);
    cluster.karman(&["user", "create", "shop", "--secret-file", &file]);
    cluster.karman(&["acl", "create", "shop", "--resource", "Topic:orders", "--actions", "Pub,Sub"]);
    cluster.karman(&["acl", "create", "shop", "--resource", "Group:shop-*", "--actions", "Sub"]);
    let is_known = |node: &&Node| code(route(&shop(node), "orders")) == Code::Ok;
    until("all nodes know the user", EFFECTIVE, || nodes(&cluster).all(|node| is_known(&node)).then_some(()));
    cluster
}

fn shop(node: &Node) -> Raw {
    Raw::connect(&node.endpoint()).signed_by("shop", SECRET)
}

fn receive(raw: &Raw, topic: &str, group: &str, wait_s: i64) -> (v2::Status, Vec<v2::Message>) {
    let request = receive_request(topic, group, "broker-a");
    raw.receive(v2::ReceiveMessageRequest { long_polling_timeout: Some(seconds(wait_s)), ..request })
}

fn subscription(group: &str, topic: &str) -> v2::Settings {
    let entry = v2::SubscriptionEntry { topic: resource(topic), expression: None };
    v2::Settings {
        client_type: Some(v2::ClientType::SimpleConsumer.into()),
        pub_sub: Some(v2::settings::PubSub::Subscription(v2::Subscription {
            group: resource(group),
            subscriptions: vec![entry],
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// What every call says that a client may make, in the name of `raw`, about `topic` and `group`.
fn all_calls(raw: &Raw, topic: &str, group: &str) -> Vec<(&'static str, v2::Status)> {
    let queue = receive_request(topic, group, "broker-a").message_queue;
    let entry = v2::AckMessageEntry { receipt_handle: "h".into(), ..Default::default() };
    let (t, g) = (|| resource(topic), || resource(group));
    let consumer = v2::ClientType::SimpleConsumer.into();
    let answers = [
        ("route", route(raw, topic)),
        (
            "assignment",
            raw.query_assignment(v2::QueryAssignmentRequest { topic: t(), group: g(), endpoints: None })
                .status,
        ),
        ("send", raw.send(&[message(topic, "id")]).status),
        ("heartbeat", raw.heartbeat(v2::HeartbeatRequest { group: g(), client_type: consumer }).status),
        ("receive", Some(receive(raw, topic, group, 0).0)),
        (
            "pull",
            Some(
                raw.pull(v2::PullMessageRequest {
                    group: g(),
                    message_queue: queue.clone(),
                    batch_size: 1,
                    ..Default::default()
                })
                .0,
            ),
        ),
        (
            "ack",
            raw.ack_message(v2::AckMessageRequest { group: g(), topic: t(), entries: vec![entry] }).status,
        ),
        (
            "change invisible",
            raw.change_invisible_duration(v2::ChangeInvisibleDurationRequest {
                group: g(),
                topic: t(),
                ..Default::default()
            })
            .status,
        ),
        (
            "forward",
            raw.forward_message_to_dead_letter_queue(v2::ForwardMessageToDeadLetterQueueRequest {
                group: g(),
                topic: t(),
                ..Default::default()
            })
            .status,
        ),
        (
            "end transaction",
            raw.end_transaction(v2::EndTransactionRequest {
                topic: t(),
                transaction_id: "x".into(),
                ..Default::default()
            })
            .status,
        ),
        (
            "recall",
            raw.recall_message(v2::RecallMessageRequest { topic: t(), recall_handle: "x".into() }).status,
        ),
        (
            "get offset",
            raw.get_offset(v2::GetOffsetRequest { group: g(), message_queue: queue.clone() }).status,
        ),
        (
            "update offset",
            raw.update_offset(v2::UpdateOffsetRequest {
                group: g(),
                message_queue: queue.clone(),
                offset: 0,
            })
            .status,
        ),
        (
            "query offset",
            raw.query_offset(v2::QueryOffsetRequest { message_queue: queue, ..Default::default() }).status,
        ),
        (
            "lite",
            raw.sync_lite_subscription(v2::SyncLiteSubscriptionRequest {
                topic: t(),
                group: g(),
                ..Default::default()
            })
            .status,
        ),
        (
            "terminate",
            raw.notify_client_termination(v2::NotifyClientTerminationRequest { group: g() }).status,
        ),
    ];
    answers.into_iter().map(|(call, status)| (call, status.expect(call))).collect()
}

#[test]
fn every_call_of_a_stranger_is_refused_and_says_why() {
    let cluster = cluster();
    for node in nodes(&cluster) {
        let raw = || Raw::connect(&node.endpoint());
        for (who, raw, why) in [
            ("nobody", raw(), "authorization"),
            ("unknown", raw().signed_by("other", SECRET), "Username is not matched"),
            ("wrong", raw().signed_by("shop", "another secret"), "Check signature failed for accessKey=shop"),
        ] {
            for (call, status) in all_calls(&raw, "orders", "shop-1") {
                let context = format!("{who} {call} at {}: {status:?}", node.name());
                assert_eq!(status.code(), Code::Unauthorized, "{context}");
                assert!(status.message.contains(why), "{context}");
            }
            let refused = raw.telemetry_until(subscription("shop-1", "orders"), DEADLINE, || {}).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{who}: {refused:?}");
            let refused = raw.try_list_topics().unwrap_err();
            assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{who}: {refused:?}");
        }
    }
}

#[test]
fn a_user_does_what_policies_allow_and_nothing_else() {
    let cluster = cluster();
    for node in nodes(&cluster) {
        let raw = shop(node);
        for (call, status) in all_calls(&raw, "orders", "shop-1") {
            assert_ne!(status.code(), Code::Unauthorized, "{call} at {}: {status:?}", node.name());
        }
        // Changing the time of a message and leaving are about the group alone; the topic is another's.
        for (call, status) in all_calls(&raw, "bills", "shop-1") {
            let is_of_group = ["heartbeat", "change invisible", "terminate"].contains(&call);
            let context = format!("{call} at {}: {status:?}", node.name());
            assert_eq!(status.code() == Code::Unauthorized, !is_of_group, "{context}");
            assert!(is_of_group || status.message.contains("Topic:bills from 127.0.0.1"), "{context}");
        }
        let other = receive(&raw, "orders", "other", 0).0;
        assert!(other.message.contains("Group:other"), "{other:?}");
        assert_eq!(raw.try_list_topics().unwrap_err().code(), tonic::Code::PermissionDenied);
        let refused = raw.telemetry_until(subscription("shop-1", "bills"), DEADLINE, || {}).unwrap_err();
        assert!(refused.message().contains("Topic:bills"), "{refused:?}");
    }
    // All the way: sent at one door, received and acknowledged at the other, which relays.
    let raw = shop(&cluster.namesrvs[0]);
    is_ok(raw.send(&[message("orders", "first")]).status);
    let received = until("the message", DEADLINE, || {
        ["broker-a", "broker-b"]
            .into_iter()
            .find_map(|broker| raw.receive(receive_request("orders", "shop-1", broker)).1.into_iter().next())
    });
    let receipt_handle = received.system_properties.unwrap().receipt_handle.unwrap();
    let entries = vec![v2::AckMessageEntry { receipt_handle, ..Default::default() }];
    let ack = v2::AckMessageRequest { group: resource("shop-1"), topic: resource("orders"), entries };
    is_ok(raw.ack_message(ack).status);
}

#[test]
fn a_bench_measures_in_the_name_of_its_user() {
    let cluster = cluster();
    let bench = |secret: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(program("karman"));
        command.env("KARMAN_SECRET_KEY", secret).args(["-o", "json", "--access-key", "shop"]);
        command.args(["-e", &cluster.brokers[0].endpoint(), "bench"]).args(arguments);
        command.output().unwrap()
    };
    let figures = |arguments: &[&str]| -> serde_json::Value {
        let output = bench(SECRET, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(figures["messages"].as_u64() > Some(0) && figures["errors"] == 0, "{arguments:?}: {figures}");
        figures
    };
    let sent = figures(&["produce", "orders", "--rate", "200", "--seconds", "1"]);
    // Without a rate the tasks sign for themselves.
    figures(&["produce", "orders", "--inflight", "2", "--batch", "4", "--seconds", "1"]);
    let read = figures(&["consume", "orders", "--group", "shop-1", "--seconds", "2"]);
    assert!(read["messages"].as_u64() >= sent["messages"].as_u64(), "{sent} {read}");
    let both = figures(&["latency", "orders", "--group", "shop-2", "--rate", "50", "--seconds", "1"]);
    assert_eq!(both["received"], both["messages"], "{both}");

    let refused = bench("another secret", &["produce", "orders", "--seconds", "1"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("Check signature failed"), "{said}");
}

#[test]
fn a_user_that_is_disabled_is_out_everywhere_within_a_second() {
    let cluster = cluster();
    let raw = shop(&cluster.brokers[1]);
    // Calls that were let in and wait.
    let (polled, watched) = std::thread::scope(|scope| {
        let poll = scope.spawn(|| receive(&shop(&cluster.brokers[0]), "orders", "shop-1", 9));
        let ended = raw.telemetry_until(subscription("shop-1", "orders"), DEADLINE, || {
            cluster.karman(&["user", "update", "shop", "--disable"]);
            let since = Instant::now();
            for node in nodes(&cluster) {
                until(&format!("{} refuses", node.name()), EFFECTIVE, || {
                    (code(route(&shop(node), "orders")) == Code::Unauthorized).then_some(())
                });
            }
            assert!(since.elapsed() < EFFECTIVE, "{:?}", since.elapsed());
        });
        (poll.join().unwrap(), ended.unwrap())
    });
    assert_eq!(polled.0.code(), Code::Unauthorized, "{polled:?}");
    assert_eq!(watched.map(|status| status.code()), Some(tonic::Code::Unauthenticated));
    assert!(text(route(&raw, "orders")).contains("Username is not matched"));
    cluster.karman(&["user", "update", "shop", "--enable"]);
    until("it may call again", EFFECTIVE, || (code(route(&raw, "orders")) == Code::Ok).then_some(()));
}

#[test]
fn users_survive_a_restart_and_a_broker_that_joins_later_learns_them() {
    let mut cluster = cluster();
    cluster.karman(&[
        "user",
        "create",
        "gone",
        "--secret-file",
        &secret_file(&cluster, "gone", "secret of gone"),
    ]);
    cluster.karman(&["user", "delete", "gone", "--yes"]);
    // Everything goes; the second broker comes back alone, then a namesrv that knows nothing.
    cluster.namesrvs[0].stop();
    cluster.brokers[0].kill();
    cluster.brokers[1].kill();
    cluster.brokers[1].start();
    assert_eq!(code(route(&shop(&cluster.brokers[1]), "orders")), Code::Ok);
    cluster.namesrvs[0].start();
    until("the namesrv learns the user", DEADLINE, || {
        (code(route(&shop(&cluster.namesrvs[0]), "orders")) == Code::Ok).then_some(())
    });
    // One with an empty log.
    std::fs::remove_dir_all(cluster.path().join("broker-a")).unwrap();
    cluster.brokers[0].start();
    let raw = shop(&cluster.brokers[0]);
    until("the new broker learns the user", DEADLINE, || {
        (code(route(&raw, "orders")) == Code::Ok).then_some(())
    });
    let gone = Raw::connect(&cluster.brokers[0].endpoint()).signed_by("gone", "secret of gone");
    assert!(text(route(&gone, "orders")).contains("Username is not matched"));
    // It has written them down: it knows them alone too.
    until("it is in its log", DEADLINE, || {
        cluster.brokers[0].log().matches("user recorded").count().ge(&2).then_some(())
    });
    cluster.namesrvs[0].stop();
    cluster.brokers[1].stop();
    cluster.brokers[0].kill();
    cluster.brokers[0].start();
    let own = shop(&cluster.brokers[0]);
    assert_ne!(code(route(&own, "orders")), Code::Unauthorized);
}

#[test]
fn what_operators_do_is_written_down_without_secrets() {
    let cluster = cluster();
    assert!(shop(&cluster.brokers[0]).try_list_topics().is_err());
    let status =
        std::panic::catch_unwind(|| shop(&cluster.brokers[0]).create_topic("mine", v2::MessageType::Normal));
    assert!(status.is_err(), "{status:?}");
    let log = cluster.brokers[0].log();
    let audited = |words: &[&str]| {
        let has_all = |line: &&str| line.contains("audit") && words.iter().all(|word| line.contains(word));
        assert!(log.lines().any(|line| has_all(&line)), "{words:?} in\n{log}");
    };
    audited(&["change_user", "User:root", "127.0.0.1", "true"]);
    audited(&["create_topic", "User:shop", "Create Topic:mine", "false"]);
    audited(&["list_topics", "User:shop", "false"]);
    let kept = std::fs::metadata(cluster.path().join("broker-a/store")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&kept.permissions()) & 0o777, 0o700);
    for node in nodes(&cluster) {
        let log = node.log();
        assert!(!log.contains(SECRET) && !log.contains("secret of root"), "{}", node.name());
    }
    let shown = cluster.karman(&["user", "show", "shop", "-o", "json"]);
    assert!(!shown.contains(SECRET) && shown.contains("Topic:orders"), "{shown}");
    assert!(cluster.karman(&["user", "list"]).contains("root"));
    assert!(cluster.karman(&["acl", "list"]).contains("Group:shop-*"));
}

#[test]
fn the_sdk_and_the_command_sign_their_calls() {
    let cluster = cluster();
    cluster.karman(&["message", "send", "orders", "--body", "a book"]);
    let received = cluster.karman(&["message", "receive", "orders", "--group", "shop-1"]);
    assert!(received.contains("a book"), "{received}");
}

#[test]
fn a_call_that_pretends_to_come_from_a_node_is_refused() {
    use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
    let cluster = cluster();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for secret in [None, Some("a guess")] {
        let mut request =
            tonic::Request::new(v2::QueryRouteRequest { topic: resource("orders"), endpoints: None });
        let metadata = request.metadata_mut();
        metadata.insert("x-mq-client-id", "c".parse().unwrap());
        metadata.insert("x-karman-hop", "1".parse().unwrap());
        if let Some(secret) = secret {
            metadata.insert("x-karman-secret", secret.parse().unwrap());
        }
        let endpoint = format!("http://{}", cluster.brokers[0].endpoint());
        let answer = runtime.block_on(async {
            let channel = tonic::transport::Endpoint::from_shared(endpoint).unwrap().connect_lazy();
            let mut client = MessagingServiceClient::new(channel);
            client.query_route(request).await.unwrap().into_inner()
        });
        assert_eq!(code(answer.status), Code::Unauthorized);
    }
}
