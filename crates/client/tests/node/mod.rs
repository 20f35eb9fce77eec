//! Nodes that answer from a script.
#![allow(dead_code, unreachable_pub, missing_debug_implementations, reason = "each test uses a part of it")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use karman_client::{Client, ClientOptions, Code};
use karman_remoting::between::Between;
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::messaging_service_server::{MessagingService, MessagingServiceServer};
use karman_remoting::proto::v2::receive_message_response::Content;
use karman_remoting::proto::v2::retry_policy::Strategy;
use karman_remoting::proto::v2::settings::PubSub;
use karman_remoting::proto::v2::telemetry_command::Command;
use karman_remoting::server::{Limits, Server, ServerOptions, TlsMode};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

/// A node: it knows a route, gives the next answer of its script to each send, and remembers what it heard.
#[derive(Default)]
pub struct Node {
    pub route: Mutex<Vec<v2::MessageQueue>>,
    pub answers: Mutex<VecDeque<Code>>,
    pub sent: Mutex<Vec<Bytes>>,
    /// The bodies of each send that was answered, with the answer.
    pub requests: Mutex<Vec<(Vec<String>, Code)>>,
    /// Sends with a message of this body are refused.
    pub spoiled: Mutex<Option<String>>,
    /// Sends are not answered, while it is so.
    pub held: AtomicBool,
    pub deliveries: Mutex<VecDeque<Bytes>>,
    pub asked: Mutex<Vec<v2::ReceiveMessageRequest>>,
    pub acknowledged: Mutex<Vec<String>>,
    pub settings: Mutex<Vec<v2::Settings>>,
    pub farewells: Mutex<Vec<String>>,
    /// Which messages came back, and for how many milliseconds they are to stay away.
    pub changed: Mutex<Vec<(String, i64)>>,
    pub dead: Mutex<Vec<String>>,
    pub ended: Mutex<Vec<v2::EndTransactionRequest>>,
    /// How the group of whoever asks is to be consumed.
    pub fifo: AtomicBool,
    /// It never answers what the route is.
    pub silent: AtomicBool,
    /// The next delivery breaks off behind its first message.
    pub torn: AtomicBool,
    /// Why settings are refused, while they are.
    pub refuses: Mutex<Option<String>>,
    commands: Mutex<Option<mpsc::Sender<Result<v2::TelemetryCommand, Status>>>>,
}

fn status(code: Code) -> Option<v2::Status> {
    Some(v2::Status { code: code.into(), message: "as scripted".into() })
}

pub fn id_of(message: &Bytes) -> String {
    v2::Message::decode(message.clone()).unwrap().system_properties.unwrap().message_id
}

fn body_of(message: &Bytes) -> String {
    String::from_utf8(v2::Message::decode(message.clone()).unwrap().body.to_vec()).unwrap()
}

fn client_id<T>(request: &Request<T>) -> String {
    request.metadata().get("x-mq-client-id").unwrap().to_str().unwrap().to_owned()
}

impl Node {
    /// A group of at most two deliveries, 100 ms apart.
    fn answer(&self, sent: &v2::Settings) -> v2::TelemetryCommand {
        let mut settings = sent.clone();
        if let Some(PubSub::Subscription(subscription)) = &mut settings.pub_sub {
            subscription.fifo = Some(self.fifo.load(Ordering::Relaxed));
        }
        let next = vec![prost_types::Duration { seconds: 0, nanos: 100_000_000 }];
        let strategy = Some(Strategy::CustomizedBackoff(v2::CustomizedBackoff { next }));
        settings.backoff_policy = Some(v2::RetryPolicy { max_attempts: 2, strategy });
        v2::TelemetryCommand { status: status(Code::Ok), command: Some(Command::Settings(settings)) }
    }

    /// Asks the producer that has spoken last what became of a transaction.
    pub async fn check(&self, transaction_id: &str) {
        let message = v2::Message::decode(delivery("unused")).ok();
        let command =
            v2::RecoverOrphanedTransactionCommand { message, transaction_id: transaction_id.to_owned() };
        let command = Some(Command::RecoverOrphanedTransactionCommand(command));
        let commands = self.commands.lock().clone().unwrap();
        commands.send(Ok(v2::TelemetryCommand { status: None, command })).await.unwrap();
    }

    /// Whether [`Node::check`] has somebody to ask.
    pub fn has_stream(&self) -> bool {
        self.commands.lock().is_some()
    }
}

#[tonic::async_trait]
impl MessagingService for Node {
    async fn query_route(
        &self,
        _: Request<v2::QueryRouteRequest>,
    ) -> Result<Response<v2::QueryRouteResponse>, Status> {
        if self.silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
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
            message_id: id_of(bytes),
            offset: index as i64,
            transaction_id: "transaction".into(),
            recall_handle: "handle".into(),
        });
        let entries = entries.collect();
        let bodies: Vec<String> = messages.iter().map(body_of).collect();
        self.sent.lock().extend(messages);
        while self.held.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let is_spoiled = self.spoiled.lock().as_ref().is_some_and(|body| bodies.contains(body));
        let code = if is_spoiled { Some(Code::IllegalDeliveryTime) } else { self.answers.lock().pop_front() };
        let code = code.unwrap_or(Code::Ok);
        self.requests.lock().push((bodies, code));
        Ok(Response::new(v2::SendMessageResponse { status: status(code), entries }))
    }

    async fn receive_message(
        &self,
        request: Request<v2::ReceiveMessageRequest>,
    ) -> Result<Response<BoxStream<v2::ReceiveMessageResponse>>, Status> {
        let request = request.into_inner();
        self.asked.lock().push(request.clone());
        let max = request.batch_size.unsigned_abs() as usize;
        let deliveries: Vec<Bytes> = {
            let mut deliveries = self.deliveries.lock();
            let count = deliveries.len().min(max);
            if self.torn.swap(false, Ordering::Relaxed) {
                let contents =
                    [Content::Status(status(Code::Ok).unwrap()), Content::Message(deliveries[0].clone())];
                let frames =
                    contents.map(|content| Ok(v2::ReceiveMessageResponse { content: Some(content) }));
                let torn = [Err(Status::unknown("the connection broke, as scripted"))];
                return Ok(Response::new(Box::pin(tokio_stream::iter(frames.into_iter().chain(torn)))));
            }
            deliveries.drain(..count).collect()
        };
        let content = if deliveries.is_empty() {
            // A push consumer would ask again at once.
            tokio::time::sleep(Duration::from_millis(5)).await;
            vec![Content::Status(status(Code::MessageNotFound).unwrap())]
        } else {
            let first = Content::Status(status(Code::Ok).unwrap());
            std::iter::once(first).chain(deliveries.into_iter().map(Content::Message)).collect()
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
        if let Some(why) = self.refuses.lock().clone() {
            return Err(Status::invalid_argument(why));
        }
        let mut inbound = request.into_inner();
        let (commands, outbound) = mpsc::channel(16);
        let Some(Command::Settings(settings)) = inbound.message().await?.and_then(|first| first.command)
        else {
            return Err(Status::invalid_argument("no settings"));
        };
        let answer = self.answer(&settings);
        self.settings.lock().push(settings);
        commands.send(Ok(answer)).await.unwrap();
        *self.commands.lock() = Some(commands);
        // Read on, so that the stream is open as long as the client wants.
        let outbound = ReceiverStream::new(outbound)
            .take_until(async move { while let Ok(Some(_)) = inbound.message().await {} });
        Ok(Response::new(Box::pin(outbound)))
    }

    async fn heartbeat(
        &self,
        _: Request<v2::HeartbeatRequest>,
    ) -> Result<Response<v2::HeartbeatResponse>, Status> {
        Ok(Response::new(v2::HeartbeatResponse { status: status(Code::Ok) }))
    }

    async fn change_invisible_duration(
        &self,
        request: Request<v2::ChangeInvisibleDurationRequest>,
    ) -> Result<Response<v2::ChangeInvisibleDurationResponse>, Status> {
        let request = request.into_inner();
        let duration = request.invisible_duration.unwrap();
        let millis = duration.seconds * 1000 + i64::from(duration.nanos) / 1_000_000;
        self.changed.lock().push((request.receipt_handle, millis));
        let response =
            v2::ChangeInvisibleDurationResponse { status: status(Code::Ok), receipt_handle: "new".into() };
        Ok(Response::new(response))
    }

    async fn forward_message_to_dead_letter_queue(
        &self,
        request: Request<v2::ForwardMessageToDeadLetterQueueRequest>,
    ) -> Result<Response<v2::ForwardMessageToDeadLetterQueueResponse>, Status> {
        self.dead.lock().push(request.into_inner().receipt_handle);
        Ok(Response::new(v2::ForwardMessageToDeadLetterQueueResponse { status: status(Code::Ok) }))
    }

    async fn end_transaction(
        &self,
        request: Request<v2::EndTransactionRequest>,
    ) -> Result<Response<v2::EndTransactionResponse>, Status> {
        self.ended.lock().push(request.into_inner());
        let code = self.answers.lock().pop_front().unwrap_or(Code::Ok);
        Ok(Response::new(v2::EndTransactionResponse { status: status(code) }))
    }

    async fn recall_message(
        &self,
        request: Request<v2::RecallMessageRequest>,
    ) -> Result<Response<v2::RecallMessageResponse>, Status> {
        let code = self.answers.lock().pop_front().unwrap_or(Code::Ok);
        let message_id = format!("of {}", request.into_inner().recall_handle);
        Ok(Response::new(v2::RecallMessageResponse { status: status(code), message_id }))
    }

    async fn notify_client_termination(
        &self,
        request: Request<v2::NotifyClientTerminationRequest>,
    ) -> Result<Response<v2::NotifyClientTerminationResponse>, Status> {
        self.farewells.lock().push(client_id(&request));
        Ok(Response::new(v2::NotifyClientTerminationResponse { status: status(Code::Ok) }))
    }
}

pub struct Cluster {
    pub nodes: Vec<(Arc<Node>, Server)>,
}

impl Cluster {
    /// Nodes `broker-0`, `broker-1`, ..., each with one queue of every topic; any is an access point.
    pub fn start(count: usize) -> Self {
        let start = |_| {
            let node = Arc::new(Node::default());
            let options = ServerOptions {
                name: "node",
                listen: "127.0.0.1:0".parse().unwrap(),
                threads: 1,
                tls: None,
                tls_mode: TlsMode::Disabled,
                nodes: Between::default(),
                shutdown_grace: Duration::from_millis(100),
                takes_over: false,
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

    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index].0
    }

    pub async fn client(&self) -> Client {
        self.client_with(ClientOptions::default()).await
    }

    pub async fn client_with(&self, options: ClientOptions) -> Client {
        let access_point = self.nodes[0].1.local_addr().to_string();
        Client::connect(&access_point, options).await.unwrap()
    }
}

pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waited)
        .await
        .unwrap_or_else(|_| panic!("not within 10 s: {what}"));
}

pub fn delivery(handle: &str) -> Bytes {
    delivery_of(handle, None, 1)
}

/// A message named by its handle.
pub fn delivery_of(handle: &str, message_group: Option<&str>, attempt: i32) -> Bytes {
    let system_properties = v2::SystemProperties {
        receipt_handle: Some(handle.to_owned()),
        message_id: handle.to_owned(),
        message_group: message_group.map(str::to_owned),
        delivery_attempt: Some(attempt),
        ..Default::default()
    };
    let message = v2::Message {
        topic: Some(v2::Resource { resource_namespace: String::new(), name: "orders".into() }),
        system_properties: Some(system_properties),
        body: "a book".into(),
        ..Default::default()
    };
    message.encode_to_vec().into()
}
