//! What lite topics cost: `cargo run --release -p karman-broker --example lite_report [LITE_TOPICS]`.
//!
//! A broker and its client in one process, over a socket: makes lite topics by sending to each, subscribes one client to all of
//! them, and compares receiving from a few that have messages among few and among all. Times and processor time are those of
//! both sides together.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement ends when something fails, and prints"
)]

use std::time::{Duration, Instant};

use karman_broker::{BrokerConfig, process};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::admin_client::AdminClient;
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::proto::v2::receive_message_response::Content;
use karman_remoting::proto::v2::{self, LiteSubscriptionAction, MessageType};
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::Request;
use tonic::transport::Channel;

const PARENT: &str = "sessions";
const GROUP: &str = "agents";
/// Sends under way at the same time.
const SENDERS: usize = 256;
/// Lite topics that have messages while receiving is measured: what one receive can take.
const ACTIVE: usize = 32;
const MESSAGES: usize = 32_000;
const RUNS: usize = 5;

type Client = MessagingServiceClient<Channel>;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let count = std::env::args().nth(1).map_or(100_000, |text| text.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        store_path_root_dir: directory.path().display().to_string(),
        grpc_listen_address: "127.0.0.1:0".into(),
        internal_listen_address: "127.0.0.1:0".into(),
        metrics_listen_address: "127.0.0.1:0".into(),
        ..BrokerConfig::default()
    };
    let started = |config| tokio::task::spawn_blocking(move || karman_broker::start(&config).unwrap());
    let broker = started(config.clone()).await.unwrap();
    let client = prepare(&broker.clients_address().to_string(), count).await;

    let before = process::used().resident_bytes;
    let began = Instant::now();
    make(&client, count).await;
    let made = process::used().resident_bytes;
    println!("made by their first message: {count} lite topics in {:.2} s", began.elapsed().as_secs_f64());
    println!("memory: {} bytes for each, with its message in the index", each(before, made, count));

    let few = receive_cost(&client, "few", ACTIVE).await;
    let before = process::used().resident_bytes;
    let began = Instant::now();
    subscribe(&client, "all", count).await;
    println!("subscribed by one client: {count} in {:.2} s", began.elapsed().as_secs_f64());
    let subscribed = process::used().resident_bytes;
    println!("memory: {} bytes for each, with the group's place in it", each(before, subscribed, count));
    let all = receive_cost(&client, "all", count).await;
    println!("received and acknowledged, {ACTIVE} lite topics with messages, median of {RUNS}:");
    for (subscribed, (micros, cpu)) in [(ACTIVE, few), (count, all)] {
        println!("  {subscribed:>7} subscribed: {micros:.1} us, {cpu:.1} us of processor for a message");
    }
    broker.shutdown().await.unwrap();
    let began = Instant::now();
    let again = started(config).await.unwrap();
    println!("started again in {:.2} s", began.elapsed().as_secs_f64());
    again.shutdown().await.unwrap();
}

fn each(before: u64, after: u64, count: usize) -> u64 {
    after.saturating_sub(before) / count as u64
}

async fn prepare(address: &str, count: usize) -> Client {
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut admin = AdminClient::new(channel.clone());
    let topic =
        v1::TopicConfig { name: PARENT.into(), message_type: MessageType::Lite.into(), ..Default::default() };
    let create = v1::CreateTopicRequest { topic: Some(topic), if_not_exists: false };
    admin.create_topic(create).await.unwrap();
    let group = v1::GroupConfig {
        name: GROUP.into(),
        lite_bind_topic: PARENT.into(),
        lite_client_quota: u32::try_from(count).unwrap(),
        ..Default::default()
    };
    admin.create_group(v1::CreateGroupRequest { group: Some(group) }).await.unwrap();
    MessagingServiceClient::new(channel).max_encoding_message_size(64 << 20)
}

fn resource(name: &str) -> Option<v2::Resource> {
    Some(v2::Resource { resource_namespace: String::new(), name: name.into() })
}

fn request<T>(client_id: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-mq-client-id", client_id.parse().unwrap());
    request
}

fn lite_name(number: usize) -> String {
    format!("session-{number:07}")
}

fn message(id: String, lite: usize) -> bytes::Bytes {
    let system = v2::SystemProperties {
        message_id: id,
        message_type: MessageType::Lite.into(),
        body_encoding: v2::Encoding::Identity.into(),
        born_timestamp: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
        lite_topic: Some(lite_name(lite)),
        ..Default::default()
    };
    let body = bytes::Bytes::from_static(&[7; 100]);
    let message =
        v2::Message { topic: resource(PARENT), body, system_properties: Some(system), ..Default::default() };
    message.encode_to_vec().into()
}

async fn send(mut client: Client, messages: Vec<bytes::Bytes>) {
    let sent = client.send_message(request("producer", v2::SendMessageRequest { messages })).await.unwrap();
    let status = sent.into_inner().status.unwrap();
    assert_eq!(status.code, v2::Code::Ok as i32, "{status:?}");
}

/// Sends one message to each lite topic, each in a call of its own.
async fn make(client: &Client, count: usize) {
    let mut sends = JoinSet::new();
    for lite in 0..count {
        if sends.len() == SENDERS {
            sends.join_next().await.unwrap().unwrap();
        }
        sends.spawn(send(client.clone(), vec![message(format!("first-{lite}"), lite)]));
    }
    while let Some(sent) = sends.join_next().await {
        sent.unwrap();
    }
}

async fn subscribe(client: &Client, client_id: &'static str, count: usize) {
    let sync = v2::SyncLiteSubscriptionRequest {
        action: LiteSubscriptionAction::CompleteAdd.into(),
        topic: resource(PARENT),
        group: resource(GROUP),
        lite_topic_set: (0..count).map(lite_name).collect(),
        ..Default::default()
    };
    let synced = client.clone().sync_lite_subscription(request(client_id, sync)).await.unwrap();
    let status = synced.into_inner().status.unwrap();
    assert_eq!(status.code, v2::Code::Ok as i32, "{status:?}");
}

/// Microseconds and microseconds of processor time for a message, with a client that subscribed to so many.
async fn receive_cost(client: &Client, client_id: &'static str, subscribed: usize) -> (f64, f64) {
    subscribe(client, client_id, subscribed).await;
    let mut runs = Vec::new();
    for run in 0..RUNS {
        for from in (0..MESSAGES).step_by(320) {
            let id = |number| message(format!("{client_id}-{run}-{number}"), number % ACTIVE);
            send(client.clone(), (from..from + 320).map(id).collect()).await;
        }
        let (began, cpu) = (Instant::now(), process::used().cpu_micros);
        let mut received = 0;
        while received < MESSAGES {
            received += receive_and_ack(client, client_id).await;
        }
        let each = |micros: f64| micros / MESSAGES as f64;
        let cpu = (process::used().cpu_micros - cpu) as f64;
        runs.push((each(began.elapsed().as_secs_f64() * 1e6), each(cpu)));
    }
    // Whoever comes next does not share with this one.
    let removed = v2::SyncLiteSubscriptionRequest {
        action: LiteSubscriptionAction::CompleteRemove.into(),
        topic: resource(PARENT),
        group: resource(GROUP),
        ..Default::default()
    };
    client.clone().sync_lite_subscription(request(client_id, removed)).await.unwrap();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    runs[RUNS / 2]
}

async fn receive_and_ack(client: &Client, client_id: &'static str) -> usize {
    let receive = v2::ReceiveMessageRequest {
        group: resource(GROUP),
        message_queue: Some(v2::MessageQueue { topic: resource(PARENT), ..Default::default() }),
        batch_size: 32,
        long_polling_timeout: Some(Duration::from_secs(5).try_into().unwrap()),
        ..Default::default()
    };
    let frames = client.clone().receive_message(request(client_id, receive)).await.unwrap();
    let (mut frames, mut entries) = (frames.into_inner(), Vec::new());
    while let Some(frame) = frames.message().await.unwrap() {
        if let Some(Content::Message(bytes)) = frame.content {
            let system = v2::Message::decode(bytes).unwrap().system_properties.unwrap();
            let receipt_handle = system.receipt_handle.unwrap();
            entries.push(v2::AckMessageEntry {
                message_id: system.message_id,
                receipt_handle,
                lite_topic: None,
            });
        }
    }
    let count = entries.len();
    if count > 0 {
        let ack = v2::AckMessageRequest { group: resource(GROUP), topic: resource(PARENT), entries };
        let acked = client.clone().ack_message(request(client_id, ack)).await.unwrap().into_inner();
        assert_eq!(acked.status.unwrap().code, v2::Code::Ok as i32);
    }
    count
}
