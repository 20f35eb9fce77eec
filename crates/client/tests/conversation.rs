//! What the SDK says to servers and makes of their answers, against nodes that answer from a script.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use karman_client::{Client, ClientError, ClientOptions, Code, FilterExpression, Message};
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::messaging_service_server::{MessagingService, MessagingServiceServer};
use karman_remoting::proto::v2::receive_message_response::Content;
use karman_remoting::server::{Limits, Server, ServerOptions, TlsMode};
use parking_lot::Mutex;
use prost::Message as _;
use tonic::codegen::BoxStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

/// A node: it knows a route, gives the next answer of its script to each send, and remembers what it heard.
#[derive(Default)]
struct Node {
    route: Mutex<Vec<v2::MessageQueue>>,
    answers: Mutex<VecDeque<Code>>,
    sent: Mutex<Vec<Bytes>>,
    deliveries: Mutex<VecDeque<Bytes>>,
    acknowledged: Mutex<Vec<String>>,
    settings: Mutex<Vec<v2::Settings>>,
    farewells: Mutex<Vec<String>>,
}

fn status(code: Code) -> Option<v2::Status> {
    Some(v2::Status { code: code.into(), message: "as scripted".into() })
}

fn client_id<T>(request: &Request<T>) -> String {
    request.metadata().get("x-mq-client-id").unwrap().to_str().unwrap().to_owned()
}

#[tonic::async_trait]
impl MessagingService for Node {
    async fn query_route(
        &self,
        _: Request<v2::QueryRouteRequest>,
    ) -> Result<Response<v2::QueryRouteResponse>, Status> {
        let message_queues = self.route.lock().clone();
        Ok(Response::new(v2::QueryRouteResponse { status: status(Code::Ok), message_queues }))
    }

    async fn send_message(
        &self,
        request: Request<v2::SendMessageRequest>,
    ) -> Result<Response<v2::SendMessageResponse>, Status> {
        let messages = request.into_inner().messages;
        let entries = messages.iter().enumerate().map(|(index, bytes)| v2::SendResultEntry {
            status: status(Code::Ok),
            message_id: v2::Message::decode(bytes.clone()).unwrap().system_properties.unwrap().message_id,
            offset: index as i64,
            ..Default::default()
        });
        let entries = entries.collect();
        self.sent.lock().extend(messages);
        let code = self.answers.lock().pop_front().unwrap_or(Code::Ok);
        Ok(Response::new(v2::SendMessageResponse { status: status(code), entries }))
    }

    async fn receive_message(
        &self,
        _: Request<v2::ReceiveMessageRequest>,
    ) -> Result<Response<BoxStream<v2::ReceiveMessageResponse>>, Status> {
        let content = match self.deliveries.lock().pop_front() {
            None => vec![Content::Status(status(Code::MessageNotFound).unwrap())],
            Some(message) => vec![Content::Status(status(Code::Ok).unwrap()), Content::Message(message)],
        };
        let frames =
            content.into_iter().map(|content| Ok(v2::ReceiveMessageResponse { content: Some(content) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(frames.collect::<Vec<_>>()))))
    }

    async fn ack_message(
        &self,
        request: Request<v2::AckMessageRequest>,
    ) -> Result<Response<v2::AckMessageResponse>, Status> {
        let handles = request.into_inner().entries.into_iter().map(|entry| entry.receipt_handle);
        let entries = handles.map(|receipt_handle| {
            self.acknowledged.lock().push(receipt_handle.clone());
            let code = if receipt_handle == "late" { Code::InvalidReceiptHandle } else { Code::Ok };
            v2::AckMessageResultEntry { receipt_handle, status: status(code), ..Default::default() }
        });
        let entries = entries.collect();
        Ok(Response::new(v2::AckMessageResponse { status: status(Code::MultipleResults), entries }))
    }

    async fn telemetry(
        &self,
        request: Request<Streaming<v2::TelemetryCommand>>,
    ) -> Result<Response<BoxStream<v2::TelemetryCommand>>, Status> {
        let mut commands = request.into_inner();
        if let Some(v2::telemetry_command::Command::Settings(settings)) =
            commands.message().await?.and_then(|command| command.command)
        {
            self.settings.lock().push(settings);
        }
        Ok(Response::new(Box::pin(commands)))
    }

    async fn heartbeat(
        &self,
        _: Request<v2::HeartbeatRequest>,
    ) -> Result<Response<v2::HeartbeatResponse>, Status> {
        Ok(Response::new(v2::HeartbeatResponse { status: status(Code::Ok) }))
    }

    async fn notify_client_termination(
        &self,
        request: Request<v2::NotifyClientTerminationRequest>,
    ) -> Result<Response<v2::NotifyClientTerminationResponse>, Status> {
        self.farewells.lock().push(client_id(&request));
        Ok(Response::new(v2::NotifyClientTerminationResponse { status: status(Code::Ok) }))
    }
}

struct Cluster {
    nodes: Vec<(Arc<Node>, Server)>,
}

impl Cluster {
    /// Nodes `broker-0`, `broker-1`, ..., each with one queue of every topic; any is an access point.
    fn start(count: usize) -> Self {
        let start = |_| {
            let node = Arc::new(Node::default());
            let options = ServerOptions {
                name: "node",
                listen: "127.0.0.1:0".parse().unwrap(),
                threads: 1,
                tls: None,
                tls_mode: TlsMode::Disabled,
                shutdown_grace: Duration::from_millis(100),
                limits: Limits::default(),
            };
            let routes = Routes::new(MessagingServiceServer::from_arc(node.clone()));
            (node, Server::start(options, routes).unwrap())
        };
        let nodes: Vec<_> = (0..count).map(start).collect();
        let queue = |(index, (_, server)): (usize, &(Arc<Node>, Server))| {
            let address = v2::Address { host: "127.0.0.1".into(), port: server.local_addr().port().into() };
            let endpoints =
                v2::Endpoints { scheme: v2::AddressScheme::IPv4.into(), addresses: vec![address] };
            v2::MessageQueue {
                permission: v2::Permission::ReadWrite.into(),
                broker: Some(v2::Broker {
                    name: format!("broker-{index}"),
                    id: 0,
                    endpoints: Some(endpoints),
                }),
                ..Default::default()
            }
        };
        let route: Vec<_> = nodes.iter().enumerate().map(queue).collect();
        for (node, _) in &nodes {
            *node.route.lock() = route.clone();
        }
        Self { nodes }
    }

    fn node(&self, index: usize) -> &Node {
        &self.nodes[index].0
    }

    async fn client(&self) -> Client {
        let access_point = self.nodes[0].1.local_addr().to_string();
        Client::connect(&access_point, ClientOptions::default()).await.unwrap()
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waited)
        .await
        .unwrap_or_else(|_| panic!("not within 10 s: {what}"));
}

fn delivery(handle: &str) -> Bytes {
    let system_properties =
        v2::SystemProperties { receipt_handle: Some(handle.to_owned()), ..Default::default() };
    let message = v2::Message {
        topic: Some(v2::Resource { resource_namespace: String::new(), name: "orders".into() }),
        system_properties: Some(system_properties),
        body: "a book".into(),
        ..Default::default()
    };
    message.encode_to_vec().into()
}

#[tokio::test]
async fn a_send_that_fails_goes_to_another_broker_with_the_same_id() {
    let cluster = Cluster::start(2);
    for index in 0..2 {
        cluster.node(index).answers.lock().push_back(Code::InternalServerError);
    }
    let client = cluster.client().await;
    let receipt = client.producer().send(Message::new("orders", "a book")).await.unwrap();

    let sent: Vec<Bytes> = (0..2).flat_map(|index| cluster.node(index).sent.lock().clone()).collect();
    assert_eq!(sent.len(), 3, "two refusals and a success");
    assert!(sent.iter().all(|bytes| *bytes == sent[0]), "the attempts differ");
    let id = v2::Message::decode(sent[0].clone()).unwrap().system_properties.unwrap().message_id;
    assert_eq!(receipt.message_id, id);
}

#[tokio::test]
async fn a_broker_that_is_gone_costs_an_attempt_and_not_the_message() {
    let mut cluster = Cluster::start(2);
    let client = cluster.client().await;
    let (_, gone) = cluster.nodes.pop().unwrap();
    gone.shutdown().await;
    let producer = client.producer();
    for _ in 0..4 {
        assert_eq!(producer.send(Message::new("orders", "a book")).await.unwrap().broker, "broker-0");
    }
}

#[tokio::test]
async fn a_refusal_that_another_attempt_cannot_mend_is_told_at_once() {
    let cluster = Cluster::start(2);
    for index in 0..2 {
        cluster.node(index).answers.lock().push_back(Code::MessagePropertiesTooLarge);
    }
    let client = cluster.client().await;
    let error = client.producer().send(Message::new("orders", "a book")).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::MessagePropertiesTooLarge));
    assert_eq!(cluster.node(0).sent.lock().len() + cluster.node(1).sent.lock().len(), 1);
}

#[tokio::test]
async fn too_many_requests_is_tried_three_times() {
    let cluster = Cluster::start(1);
    cluster.node(0).answers.lock().extend([Code::TooManyRequests; 3]);
    let client = cluster.client().await;
    let producer = client.producer();
    let error = producer.send(Message::new("orders", "a book")).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::TooManyRequests));
    assert_eq!(cluster.node(0).sent.lock().len(), 3);
    assert!(producer.send(Message::new("orders", "a book")).await.is_ok());
}

#[tokio::test]
async fn a_batch_is_one_request_of_one_topic_within_the_limit() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let producer = client.producer();
    let receipts =
        producer.send_batch(vec![Message::new("orders", "1"), Message::new("orders", "2")]).await.unwrap();
    assert_eq!(receipts[1].as_ref().unwrap().offset, 1);

    let body = vec![0; 3 * 1024 * 1024];
    for wrong in [
        vec![],
        vec![Message::new("orders", "1"), Message::new("bills", "2")],
        vec![Message::new("orders", body.clone()), Message::new("orders", body)],
    ] {
        assert!(matches!(producer.send_batch(wrong).await, Err(ClientError::InvalidArgument(_))));
    }
}

#[tokio::test]
async fn receiving_asks_every_broker_and_results_of_acks_are_each_messages_own() {
    let cluster = Cluster::start(2);
    let client = cluster.client().await;
    let consumer = client.simple_consumer("shipping", [("orders", FilterExpression::all())]).unwrap();
    assert_eq!(consumer.receive(32, Duration::from_secs(30)).await.unwrap(), []);

    cluster.node(1).deliveries.lock().extend([delivery("good"), delivery("late")]);
    let mut messages = Vec::new();
    while messages.len() < 2 {
        messages.extend(consumer.receive(32, Duration::from_secs(30)).await.unwrap());
    }
    let results = consumer.ack_all(&messages).await;
    assert_eq!(results[0], Ok(()));
    assert_eq!(results[1].as_ref().unwrap_err().code(), Some(Code::InvalidReceiptHandle));
    assert_eq!(*cluster.node(1).acknowledged.lock(), ["good", "late"]);
}

#[tokio::test]
async fn an_ack_takes_the_way_through_the_access_point_when_the_broker_cannot_be_reached() {
    let mut cluster = Cluster::start(2);
    let client = cluster.client().await;
    let consumer = client.simple_consumer("shipping", [("orders", FilterExpression::all())]).unwrap();
    cluster.node(1).deliveries.lock().push_back(delivery("good"));
    let messages = consumer.receive(32, Duration::from_secs(30)).await.unwrap();
    let (_, gone) = cluster.nodes.pop().unwrap();
    gone.shutdown().await;
    consumer.ack(&messages[0]).await.unwrap();
    assert_eq!(*cluster.node(0).acknowledged.lock(), ["good"]);
}

#[tokio::test]
async fn brokers_hear_the_settings_and_a_farewell() {
    let cluster = Cluster::start(2);
    let client = cluster.client().await;
    let producer = client.producer();
    producer.send(Message::new("orders", "a book")).await.unwrap();
    for index in 0..2 {
        until("settings", || !cluster.node(index).settings.lock().is_empty()).await;
        let settings = cluster.node(index).settings.lock()[0].clone();
        let Some(v2::settings::PubSub::Publishing(publishing)) = settings.pub_sub else {
            panic!("no publishing")
        };
        assert_eq!(publishing.topics[0].name, "orders");
    }
    client.close().await;
    assert_eq!(cluster.node(0).farewells.lock().len(), 1);
    assert_eq!(*cluster.node(0).farewells.lock(), *cluster.node(1).farewells.lock());
    assert_eq!(producer.send(Message::new("orders", "a book")).await, Err(ClientError::Closed));
}

#[tokio::test]
async fn a_producer_that_is_dropped_says_farewell() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let producer = client.producer();
    producer.send(Message::new("orders", "a book")).await.unwrap();
    until("settings", || !cluster.node(0).settings.lock().is_empty()).await;
    drop(producer);
    until("farewell", || !cluster.node(0).farewells.lock().is_empty()).await;
}
