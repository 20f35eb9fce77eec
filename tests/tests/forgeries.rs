//! What is handed in that was never handed out, or was handed out to somebody else or for something else: names that are paths,
//! handles and ids that were made up, calls that were recorded. Each is refused, and leaves no trace.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use karman_remoting::auth::credentials::Credentials;
use karman_remoting::auth::{operator, signature};
use karman_remoting::civil;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::admin_client::AdminClient;
use karman_remoting::proto::v2::{self, Code, MessageType};
use karman_tests::cluster::{Node, ROOT, program};
use karman_tests::raw::{
    delayed, is_ok, message, now_ms, raw, receive_request, resource, seconds, system, take,
};
use karman_tests::{Cluster, Raw, until};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

const PATHS: [&str; 9] = [
    "../../../../tmp/evil",
    "..",
    ".",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "orders/../../bills",
    "orders\0",
    "%2e%2e%2fevil.",
];
const DEADLINE: Duration = Duration::from_secs(10);

/// All files under a directory, by their paths.
fn files(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        found.insert(entry.path().to_str().unwrap().to_owned());
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        }
    }
    found
}

#[test]
fn a_path_is_no_name_of_a_topic_or_group_whoever_asks() {
    let cluster = Cluster::builder().namesrvs(1).brokers(1).set("autoCreateTopicEnable", "true").start();
    cluster.create_topic("orders");
    let before = files(cluster.path());
    for door in [&cluster.brokers[0], &cluster.namesrvs[0]] {
        let raw = Raw::connect(&door.endpoint());
        for name in PATHS {
            let illegal = |status: Option<v2::Status>, code: Code| {
                assert_eq!(status.unwrap().code(), code, "{name:?} at {}", door.name());
            };
            let topic = Code::IllegalTopic;
            illegal(raw.send(&[message(name, "1")]).status, topic);
            illegal(
                raw.query_route(v2::QueryRouteRequest { topic: resource(name), endpoints: None }).status,
                topic,
            );
            illegal(Some(raw.receive(receive_request(name, "g", "broker-a")).0), topic);
            illegal(
                Some(raw.receive(receive_request("orders", name, "broker-a")).0),
                Code::IllegalConsumerGroup,
            );
            illegal(Some(raw.create_topic(name, MessageType::Normal)), topic);
            let group = v1::GroupConfig { name: name.into(), ..Default::default() };
            illegal(Some(raw.make_group(group)), Code::IllegalConsumerGroup);
            assert_ne!(raw.delete_topic(name).code(), Code::Ok, "{name:?}");
        }
    }
    let new: Vec<_> = files(cluster.path()).difference(&before).cloned().collect();
    assert!(new.iter().all(|path| !path.contains("evil") && !path.contains("bills")), "{new:?}");
    assert!(!Path::new("/tmp/evil").exists());
    assert_eq!(cluster.brokers[0].name(), "broker-a");
    is_ok(raw(&cluster).send(&[message("orders", "1")]).status);
}

/// Everything that can be made of a token by changing one bit of one of its characters, cutting it, or adding to it.
fn forged(token: &str) -> Vec<String> {
    let mut all = Vec::new();
    for at in 0..token.len() {
        for bit in 0..7 {
            let mut bytes = token.as_bytes().to_vec();
            bytes[at] ^= 1 << bit;
            all.push(String::from_utf8(bytes).unwrap());
        }
    }
    all.extend((0..token.len()).map(|length| token[..length].to_owned()));
    all.extend([format!("{token}A"), format!("A{token}"), token.repeat(2), "A".repeat(100_000)]);
    all.extend((0..50).map(|_| rand_token(token.len())));
    all.retain(|other| other != token);
    all
}

fn rand_token(length: usize) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    (0..length).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
}

fn ack(raw: &Raw, topic: &str, group: &str, handle: &str) -> Code {
    let entry = v2::AckMessageEntry { receipt_handle: handle.into(), ..Default::default() };
    let (topic, group) = (resource(topic), resource(group));
    raw.ack_message(v2::AckMessageRequest { topic, group, entries: vec![entry] }).status.unwrap().code()
}

/// Sends a message and takes it: its handle.
fn handed_out(raw: &Raw, topic: &str, group: &str, id: &str) -> String {
    is_ok(raw.send(&[message(topic, id)]).status);
    let taken = until("it is there", DEADLINE, || take(raw, topic, group).pop());
    system(&taken).receipt_handle.clone().unwrap()
}

#[test]
fn no_receipt_handle_but_the_one_that_was_handed_out_is_taken() {
    let cluster = Cluster::builder().namesrvs(1).brokers(2).start();
    for topic in ["orders", "bills"] {
        cluster.create_topic(topic);
    }
    let stranger = Cluster::builder().brokers(1).start();
    stranger.create_topic("orders");
    let raw = raw(&cluster);
    let handle = handed_out(&raw, "orders", "billing", "1");
    let all = forged(&handle);
    // Of another cluster, whose broker has the same name; of another topic; for another group.
    let foreign = handed_out(&karman_tests::raw::raw(&stranger), "orders", "billing", "1");
    let refused = |topic: &str, group: &str, handle: &str| {
        let code = ack(&raw, topic, group, handle);
        assert!(matches!(code, Code::InvalidReceiptHandle | Code::BadRequest), "{code:?} for {handle:?}");
    };
    for forged in &all {
        refused("orders", "billing", forged);
    }
    refused("orders", "billing", &foreign);
    refused("bills", "billing", &handle);
    refused("orders", "another", &handle);
    for forged in all.iter().step_by(50) {
        let change = raw.change_invisible_duration(v2::ChangeInvisibleDurationRequest {
            group: resource("billing"),
            topic: resource("orders"),
            receipt_handle: forged.clone(),
            invisible_duration: Some(seconds(20)),
            ..Default::default()
        });
        assert_ne!(change.status.unwrap().code(), Code::Ok, "{forged:?}");
        let letter = raw.forward_message_to_dead_letter_queue(v2::ForwardMessageToDeadLetterQueueRequest {
            group: resource("billing"),
            topic: resource("orders"),
            receipt_handle: forged.clone(),
            max_delivery_attempts: 1,
            ..Default::default()
        });
        assert_ne!(letter.status.unwrap().code(), Code::Ok, "{forged:?}");
    }
    println!("{} forged handles", all.len());
    assert_eq!(ack(&raw, "orders", "billing", &handle), Code::Ok, "the true one still is");
}

#[test]
fn no_recall_handle_or_transaction_id_but_the_one_that_was_handed_out_is_taken() {
    let cluster = Cluster::builder().brokers(1).start();
    let raw = raw(&cluster);
    is_ok(raw.create_topic("later", MessageType::Delay));
    is_ok(raw.create_topic("deals", MessageType::Transaction));
    is_ok(raw.create_topic("others", MessageType::Delay));
    let entry = raw.send(&[delayed("later", "1", now_ms() + 3_600_000)]).entries.remove(0);
    let recall = |topic: &str, handle: &str| {
        let request = v2::RecallMessageRequest { topic: resource(topic), recall_handle: handle.into() };
        raw.recall_message(request).status.unwrap().code()
    };
    let mut half = message("deals", "2");
    half.system_properties.as_mut().unwrap().set_message_type(MessageType::Transaction);
    let transaction = raw.send(&[half]).entries.remove(0).transaction_id;
    let end = |topic: &str, id: &str, message_id: &str| {
        let request = v2::EndTransactionRequest {
            topic: resource(topic),
            message_id: message_id.into(),
            transaction_id: id.into(),
            resolution: v2::TransactionResolution::Commit.into(),
            ..Default::default()
        };
        raw.end_transaction(request).status.unwrap().code()
    };
    for forged in forged(&entry.recall_handle).iter().chain([&transaction]) {
        assert_ne!(recall("later", forged), Code::Ok, "{forged:?}");
    }
    for forged in forged(&transaction).iter().chain([&entry.recall_handle]) {
        assert_ne!(end("deals", forged, "2"), Code::Ok, "{forged:?}");
    }
    assert_ne!(recall("others", &entry.recall_handle), Code::Ok);
    assert_ne!(end("later", &transaction, "2"), Code::Ok);
    assert!(take(&raw, "deals", "g").is_empty(), "nothing was committed");
    assert_eq!(recall("later", &entry.recall_handle), Code::Ok);
    assert_eq!(end("deals", &transaction, "2"), Code::Ok);
}

const DELETE_TOPIC: &str = "/karman.v1.Admin/DeleteTopic";

/// The operators' service of a node, without anything that signs.
fn operators(runtime: &Runtime, node: &Node) -> AdminClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", node.endpoint())).unwrap();
    AdminClient::new(runtime.block_on(async { endpoint.connect_lazy() }))
}

/// What the node wants calls signed for.
fn number_of(runtime: &Runtime, node: &Node) -> String {
    let mut question = tonic::Request::new(v1::ListTopicsRequest {});
    question.metadata_mut().insert(operator::ASKS, "node".parse().unwrap());
    let said = runtime.block_on(operators(runtime, node).list_topics(question)).expect_err("it is no call");
    said.metadata().get(operator::NODE).expect("the number").to_str().unwrap().to_owned()
}

/// `message` with the headers of a call of [`DELETE_TOPIC`] that the super user has signed some seconds ago.
fn signed_ago<T>(message: T, node: &str, seconds_ago: i64) -> tonic::Request<T> {
    let date_time = civil::format_ms(u64::try_from(now_ms() - seconds_ago * 1000).unwrap());
    let nonce = operator::random();
    let call = operator::Call { path: DELETE_TOPIC, node, nonce: &nonce, date_time: &date_time };
    let header = call.sign(ROOT.0, &signature::key(ROOT.1));
    let mut request = tonic::Request::new(message);
    for (name, value) in [
        (signature::AUTHORIZATION, &*header),
        (signature::DATE_TIME, &date_time),
        (operator::NODE, node),
        (operator::NONCE, &nonce),
    ] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    request
}

fn refused<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, tonic::Status>, why: &str) {
    let refused = answer.expect_err(why);
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused:?}");
    assert!(refused.message().contains(why), "{refused:?}");
}

#[test]
fn an_operator_s_call_that_was_recorded_is_refused_again_elsewhere_and_later() {
    let mut cluster = Cluster::builder().namesrvs(1).brokers(1).secured().start();
    cluster.create_topic("orders");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (broker, namesrv) = (&cluster.brokers[0], &cluster.namesrvs[0]);
    for (node, other) in [(broker, namesrv), (namesrv, broker)] {
        let (mut here, mut there) = (operators(&runtime, node), operators(&runtime, other));
        let number = number_of(&runtime, node);
        let sign =
            |seconds_ago| signed_ago(v1::DeleteTopicRequest { name: "none".into() }, &number, seconds_ago);
        let recorded = sign(0);
        let again = || {
            let mut again = tonic::Request::new(recorded.get_ref().clone());
            *again.metadata_mut() = recorded.metadata().clone();
            again
        };
        let mut group = tonic::Request::new(v1::ListTopicsRequest {});
        *group.metadata_mut() = recorded.metadata().clone();
        refused(runtime.block_on(here.list_topics(group)), "Check signature failed");
        refused(runtime.block_on(there.delete_topic(again())), "for another node");
        runtime.block_on(here.delete_topic(again())).expect("it is let in once");
        refused(runtime.block_on(here.delete_topic(again())), "was taken already");
        refused(runtime.block_on(here.delete_topic(sign(400))), "within 300 s");
        refused(runtime.block_on(here.delete_topic(sign(-400))), "within 300 s");
        // A client's signature, of now, in the form of our own programs.
        let mut of_client = tonic::Request::new(v1::DeleteTopicRequest { name: "none".into() });
        Credentials::new(ROOT.0, ROOT.1).unwrap().sign(of_client.metadata_mut());
        refused(runtime.block_on(here.delete_topic(of_client)), "a client's signature");
    }
    let number = number_of(&runtime, broker);
    cluster.brokers[0].kill();
    cluster.brokers[0].start();
    let forgotten = signed_ago(v1::DeleteTopicRequest { name: "orders".into() }, &number, 0);
    let mut started_anew = operators(&runtime, &cluster.brokers[0]);
    refused(runtime.block_on(started_anew.delete_topic(forgotten)), "before this one was started");
}

/// Passes one connection on to `node`, and keeps what was said to the node.
fn recorder(node: &str) -> (String, std::thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut to_node = TcpStream::connect(node).unwrap();
    let recording = std::thread::spawn(move || {
        let (mut from_client, _) = listener.accept().unwrap();
        let (mut from_node, mut to_client) = (to_node.try_clone().unwrap(), from_client.try_clone().unwrap());
        let answers = std::thread::spawn(move || std::io::copy(&mut from_node, &mut to_client));
        let (mut heard, mut part) = (Vec::new(), [0; 4096]);
        while let Ok(read @ 1..) = from_client.read(&mut part) {
            heard.extend_from_slice(&part[..read]);
            if to_node.write_all(&part[..read]).is_err() {
                break;
            }
        }
        let _ = to_node.shutdown(Shutdown::Both);
        drop(answers.join());
        heard
    });
    (address, recording)
}

#[test]
fn what_an_operator_s_command_said_is_of_no_use_to_who_says_it_again() {
    let cluster = Cluster::builder().brokers(1).secured().start();
    let node = &cluster.brokers[0];
    cluster.create_topic("orders");
    let file = cluster.path().join("root.secret");
    std::fs::write(&file, ROOT.1).unwrap();
    let (address, recording) = recorder(&node.endpoint());
    let mut karman = std::process::Command::new(program("karman"));
    karman.args(["-e", &address, "--access-key", ROOT.0, "--secret-key-file", file.to_str().unwrap()]);
    let said = karman.args(["topic", "delete", "orders", "--yes"]).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let heard = recording.join().unwrap();
    cluster.create_topic("orders");
    let refusals = || node.log().matches("was taken already").count();
    let (before, mut again) = (refusals(), TcpStream::connect(node.endpoint()).unwrap());
    again.write_all(&heard).unwrap();
    until("it is refused", DEADLINE, || (refusals() > before).then_some(()));
    let topics = cluster.raw(node).topics();
    let is_there =
        topics.iter().any(|topic| topic.topic.as_ref().is_some_and(|topic| topic.name == "orders"));
    assert!(is_there, "{topics:?}");
}

#[test]
fn what_was_recorded_is_worth_nothing_once_the_secret_is_another() {
    let cluster = Cluster::builder().brokers(1).secured().start();
    cluster.create_topic("orders");
    let file = cluster.path().join("secret");
    std::fs::write(&file, "secret of the shop").unwrap();
    let file = file.to_str().unwrap();
    cluster.karman(&["user", "create", "shop", "--secret-file", file]);
    cluster.karman(&["acl", "create", "shop", "--resource", "*", "--actions", "Pub"]);
    // The same headers on and on, as if they had been read on their way: of a client's call that is so for as long as the secret
    // is the same, for official clients' clocks are in any time zone.
    let (date_time, runtime) = ("20200101T000000Z", tokio::runtime::Runtime::new().unwrap());
    let header = signature::sign("shop", &signature::key("secret of the shop"), date_time);
    let route = || {
        let mut request =
            tonic::Request::new(v2::QueryRouteRequest { topic: resource("orders"), endpoints: None });
        request.metadata_mut().insert("x-mq-client-id", "c".parse().unwrap());
        request.metadata_mut().insert(signature::AUTHORIZATION, header.parse().unwrap());
        request.metadata_mut().insert(signature::DATE_TIME, date_time.parse().unwrap());
        let endpoint = format!("http://{}", cluster.brokers[0].endpoint());
        runtime.block_on(async {
            let channel = tonic::transport::Endpoint::from_shared(endpoint).unwrap().connect_lazy();
            let mut client = v2::messaging_service_client::MessagingServiceClient::new(channel);
            client.query_route(request).await.unwrap().into_inner().status.unwrap().code()
        })
    };
    until("the user is known", DEADLINE, || (route() == Code::Ok).then_some(()));
    std::fs::write(file, "another secret of the shop").unwrap();
    cluster.karman(&["user", "update", "shop", "--secret-file", file]);
    until("the old secret is refused", DEADLINE, || (route() == Code::Unauthorized).then_some(()));
}
