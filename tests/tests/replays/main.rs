//! What the official C++ (5.1.1) and C# (5.2.1) clients send, replayed: they do not build here. Each request has the fields that
//! the client sets and no others, and is on the wire what Google's protobuf makes of it; the calls go over TLS to whoever answers,
//! to the nodes that the client asks, in its order, with its headers. What each client demands of an answer is asserted.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cpp;
mod csharp;

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use karman_remoting::auth::signature;
use karman_remoting::channel::trusting_all;
use karman_remoting::proto::v2::{self, Code};
use karman_tests::cluster::Node;
use karman_tests::raw::{Headers, is_ok, resource, system};
use karman_tests::stage::{create_topic, two_brokers_with};
use karman_tests::{Cluster, Raw, until};
use rustls::pki_types::ServerName;

const TOPIC: &str = "orders";
const GROUP: &str = "shipping";
const DEADLINE: Duration = Duration::from_secs(15);
/// When the replayed messages say that they were born.
const BORN: prost_types::Timestamp = prost_types::Timestamp { seconds: 1_790_000_000, nanos: 123_456_789 };

/// Which client is replayed.
trait Client {
    const ID: &'static str;

    /// The headers of a call, in the name of a user if that is given with its secret.
    fn headers(user: Option<(&str, &str)>) -> Headers;

    fn settings(access_point: v2::Endpoints, kind: v2::ClientType) -> v2::Settings;

    /// A message that is nothing else yet.
    fn message(id: &str, kind: v2::MessageType) -> v2::Message;

    fn connect(endpoint: &str) -> Raw {
        Raw::replayed(endpoint, Self::headers(None))
    }
}

fn cluster(kind: &str) -> Cluster {
    let soon = [("transactionTimeOut", "1000"), ("transactionCheckInterval", "1000")];
    let cluster = two_brokers_with(&soon);
    create_topic(&cluster, TOPIC, kind);
    cluster
}

fn hex(message: &impl prost::Message) -> String {
    message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An access point `127.0.0.1:PORT`, as both clients write it.
fn endpoints(endpoint: &str) -> v2::Endpoints {
    let (host, port) = endpoint.rsplit_once(':').unwrap();
    let address = v2::Address { host: host.to_owned(), port: port.parse().unwrap() };
    v2::Endpoints { scheme: v2::AddressScheme::IPv4.into(), addresses: vec![address] }
}

/// The route that the access point gives, with what makes these clients stop or fail if it is otherwise.
fn route(raw: &Raw, access_point: &str) -> Vec<v2::MessageQueue> {
    let request = v2::QueryRouteRequest { topic: resource(TOPIC), endpoints: Some(endpoints(access_point)) };
    let answer = raw.query_route(request);
    is_ok(answer.status);
    assert!(!answer.message_queues.is_empty());
    for queue in &answer.message_queues {
        assert_eq!(queue.topic.as_ref().unwrap().name, TOPIC, "C++ asserts it");
        assert_eq!(queue.permission(), v2::Permission::ReadWrite, "C# throws when it is not set");
        let broker = queue.broker.as_ref().unwrap();
        assert_eq!(broker.id, 0, "masters alone");
        let endpoints = broker.endpoints.as_ref().unwrap();
        assert_ne!(endpoints.scheme(), v2::AddressScheme::Unspecified);
        assert!(!endpoints.addresses.is_empty());
        assert!(queue.accept_message_types().all(|kind| kind != v2::MessageType::Unspecified), "C# throws");
    }
    answer.message_queues
}

fn address_of(queue: &v2::MessageQueue) -> String {
    let endpoints = queue.broker.as_ref().unwrap().endpoints.as_ref().unwrap();
    format!("{}:{}", endpoints.addresses[0].host, endpoints.addresses[0].port)
}

/// The first queue of each broker, by the broker's address.
fn by_broker(queues: Vec<v2::MessageQueue>) -> BTreeMap<String, v2::MessageQueue> {
    let mut brokers = BTreeMap::new();
    for queue in queues {
        brokers.entry(address_of(&queue)).or_insert(queue);
    }
    assert_eq!(brokers.len(), 2, "{brokers:?}");
    brokers
}

/// What both clients demand of the answer to one message.
fn sent(answer: v2::SendMessageResponse, id: &str) -> v2::SendResultEntry {
    is_ok(answer.status);
    let [entry] = <[_; 1]>::try_from(answer.entries).unwrap();
    is_ok(entry.status.clone());
    assert_eq!(entry.message_id, id);
    entry
}

/// A delivered message has what C# dereferences without looking, and what C++ compares.
fn complete(message: &v2::Message) -> &v2::SystemProperties {
    let properties = system(message);
    assert_eq!(message.topic.as_ref().unwrap().name, TOPIC);
    assert_eq!(properties.born_timestamp, Some(BORN));
    let digest = properties.body_digest.as_ref().unwrap();
    assert_ne!(digest.r#type(), v2::DigestType::Unspecified);
    assert!(!digest.checksum.is_empty() && digest.checksum.chars().all(|c| !c.is_ascii_lowercase()));
    assert_ne!(properties.body_encoding(), v2::Encoding::Unspecified);
    assert!(!properties.receipt_handle().is_empty() && properties.queue_offset.is_some());
    properties
}

/// The first message of the group at any of the brokers.
fn received(raws: &BTreeMap<String, (Raw, v2::ReceiveMessageRequest)>) -> (&Raw, v2::Message) {
    until("a message", DEADLINE, || {
        raws.values().find_map(|(raw, request)| {
            let request =
                v2::ReceiveMessageRequest { long_polling_timeout: Some(NOT_LONG), ..request.clone() };
            let (status, messages) = raw.receive(request);
            let [message] = <[_; 1]>::try_from(messages).ok()?;
            is_ok(status);
            Some((raw, message))
        })
    })
}

const NOT_LONG: prost_types::Duration = prost_types::Duration { seconds: 0, nanos: 1_000_000 };

fn acked(raw: &Raw, message: &v2::Message) {
    let entry = v2::AckMessageEntry {
        message_id: system(message).message_id.clone(),
        receipt_handle: system(message).receipt_handle().to_owned(),
        ..Default::default()
    };
    let answer = raw.ack_message(v2::AckMessageRequest {
        group: resource(GROUP),
        topic: resource(TOPIC),
        entries: vec![entry.clone()],
    });
    is_ok(answer.status);
    assert_eq!(answer.entries.len(), 1, "one for each");
    assert_eq!(answer.entries[0].message_id, entry.message_id);
    is_ok(answer.entries[0].status.clone());
}

/// Gives the message back for so long; it comes again as its second attempt.
fn refused(
    raws: &BTreeMap<String, (Raw, v2::ReceiveMessageRequest)>,
    raw: &Raw,
    message: &v2::Message,
    invisible: prost_types::Duration,
) -> v2::Message {
    let answer = raw.change_invisible_duration(v2::ChangeInvisibleDurationRequest {
        group: resource(GROUP),
        topic: resource(TOPIC),
        receipt_handle: system(message).receipt_handle().to_owned(),
        invisible_duration: Some(invisible),
        message_id: system(message).message_id.clone(),
        ..Default::default()
    });
    is_ok(answer.status);
    assert!(!answer.receipt_handle.is_empty());
    let again = received(raws).1;
    assert_eq!(complete(&again).message_id, system(message).message_id);
    assert_eq!(system(&again).delivery_attempt(), 2);
    again
}

/// The broker asks a producer on its stream, and the producer's answer, which does not say that it was asked, decides.
fn asked_back<C: Client>() {
    let cluster = cluster("transaction");
    let access_point = cluster.namesrvs[0].endpoint();
    let queues = by_broker(route(&C::connect(&access_point), &access_point));
    let (address, queue) = queues.first_key_value().unwrap();
    let raw = C::connect(address);
    let producer = raw.telemetry(C::settings(endpoints(&access_point), v2::ClientType::Producer));
    is_ok(raw.heartbeat(producers_heartbeat()).status);
    let mut half = C::message("half", v2::MessageType::Transaction);
    half.system_properties.as_mut().unwrap().queue_id = queue.id;
    let entry = sent(raw.send(&[half]), "half");
    assert!(!entry.transaction_id.is_empty());
    let command = until("the question", DEADLINE, || {
        producer.waiting().into_iter().find_map(|command| match command {
            v2::telemetry_command::Command::RecoverOrphanedTransactionCommand(command) => Some(command),
            _ => None,
        })
    });
    let message = command.message.unwrap();
    let properties = system(&message);
    assert_eq!((command.transaction_id, &*properties.message_id), (entry.transaction_id.clone(), "half"));
    assert!(properties.born_timestamp.is_some() && properties.body_digest.is_some(), "C# dereferences both");
    assert_eq!(properties.body_encoding(), v2::Encoding::Identity);
    let answer = raw.end_transaction(v2::EndTransactionRequest {
        topic: resource(TOPIC),
        message_id: "half".to_owned(),
        transaction_id: entry.transaction_id,
        resolution: v2::TransactionResolution::Commit.into(),
        ..Default::default()
    });
    is_ok(answer.status);
    let message = until("what was committed", DEADLINE, || {
        karman_tests::raw::take_of(&raw, TOPIC, GROUP, &queue.broker.as_ref().unwrap().name).pop()
    });
    assert_eq!(complete(&message).message_id, "half");
}

fn producers_heartbeat() -> v2::HeartbeatRequest {
    v2::HeartbeatRequest { group: None, client_type: v2::ClientType::Producer.into() }
}

/// Every node takes the signature, which is made of the time as it stands in the header; with another secret it is refused.
fn signed<C: Client>() {
    const SECRET: &str = "secret of the shop";
    let cluster = Cluster::builder().namesrvs(1).brokers(2).secured().start();
    cluster.create_topic(TOPIC);
    let file = cluster.path().join("shop");
    std::fs::write(&file, SECRET).unwrap();
    cluster.karman(&["user", "create", "shop", "--secret-file", file.to_str().unwrap()]);
    cluster.karman(&["acl", "create", "shop", "--resource", "Topic:orders", "--actions", "Pub,Sub"]);
    let ask = |node: &Node, secret: &str| {
        let raw = Raw::replayed(&node.endpoint(), C::headers(Some(("shop", secret))));
        let endpoints = Some(endpoints(&node.endpoint()));
        raw.query_route(v2::QueryRouteRequest { topic: resource(TOPIC), endpoints }).status.unwrap()
    };
    for node in cluster.namesrvs.iter().chain(&cluster.brokers) {
        until("the user is known", DEADLINE, || (ask(node, SECRET).code() == Code::Ok).then_some(()));
        let status = ask(node, "another");
        assert_eq!(status.code(), Code::Unauthorized, "{status:?}");
        assert!(status.message.contains("Check signature failed for accessKey=shop"), "{status:?}");
    }
}

/// As both clients write it: in upper case.
fn signature(secret: &str, time: &str) -> String {
    let header = signature::sign("", &signature::key(secret), time);
    header.rsplit_once("Signature=").unwrap().1.to_uppercase()
}

/// What is offered in the handshake, by a client that believes any certificate; what the server chose.
fn alpn(address: &str, offered: &[&[u8]]) -> Option<Vec<u8>> {
    let config = rustls::ClientConfig::builder().dangerous().with_custom_certificate_verifier(trusting_all());
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).unwrap();
    }
    tls.alpn_protocol().map(<[u8]>::to_vec)
}

/// gRPC's own library offers a name of its own before HTTP/2, and .NET the older HTTP behind it.
#[test]
fn http_2_is_chosen_of_what_cpp_and_csharp_offer() {
    let cluster = Cluster::builder().namesrvs(1).brokers(1).start();
    for node in cluster.namesrvs.iter().chain(&cluster.brokers) {
        for offered in [&[&b"grpc-exp"[..], b"h2"][..], &[b"h2"], &[b"h2", b"http/1.1"]] {
            assert_eq!(alpn(&node.endpoint(), offered).as_deref(), Some(&b"h2"[..]), "{}", node.name());
        }
    }
}
