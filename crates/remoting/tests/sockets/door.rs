//! Doors over real sockets: two brokers that only write down what reaches them, and a namesrv in front of both.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use karman_remoting::auth::Auth;
use karman_remoting::between::Between;
use karman_remoting::clients::ClientRegistry;
use karman_remoting::front::{Front, Local};
use karman_remoting::metadata;
use karman_remoting::proto::karman::route_change::Change;
use karman_remoting::proto::karman::{
    BrokerDelta, BrokerIdentity, BrokerState, GroupConfig, RouteChange, TopicRoute,
};
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::proto::v2::messaging_service_server::{MessagingService, MessagingServiceServer};
use karman_remoting::proto::v2::settings::PubSub;
use karman_remoting::proto::v2::telemetry_command::Command;
use karman_remoting::proto::v2::{self, ClientType, Code, MessageType, pull_message_response};
use karman_remoting::relay::Peers;
use karman_remoting::route_table::SharedRoutes;
use karman_remoting::secret::Secret;
use karman_remoting::server::{Server, ServerOptions};
use karman_remoting::token::{RecallHandle, TokenKey, TransactionId};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::codegen::BoxStream;
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::support::*;

/// A broker that says OK to everything, or what it is told to say about lite topics.
#[derive(Debug, Default)]
struct Notes {
    /// The calls that reached it, with `relayed` where a door passed them on.
    calls: Mutex<Vec<String>>,
    lite_code: Mutex<Option<Code>>,
}

struct Broker(Arc<Notes>);

impl Broker {
    fn note<T>(&self, name: &str, request: &Request<T>) -> Option<v2::Status> {
        let how = if metadata::is_relayed(request.metadata()) { " relayed" } else { "" };
        self.0.calls.lock().push(format!("{name}{how}"));
        Some(v2::Status { code: Code::Ok.into(), message: "OK".into() })
    }
}

#[tonic::async_trait]
impl MessagingService for Broker {
    async fn send_message(
        &self,
        request: Request<v2::SendMessageRequest>,
    ) -> Result<Response<v2::SendMessageResponse>, Status> {
        let status = self.note("send", &request);
        Ok(Response::new(v2::SendMessageResponse { status, ..Default::default() }))
    }

    async fn receive_message(
        &self,
        request: Request<v2::ReceiveMessageRequest>,
    ) -> Result<Response<BoxStream<v2::ReceiveMessageResponse>>, Status> {
        let content = self.note("receive", &request).map(v2::receive_message_response::Content::Status);
        Ok(Response::new(Box::pin(stream::iter([Ok(v2::ReceiveMessageResponse { content })]))))
    }

    async fn pull_message(
        &self,
        request: Request<v2::PullMessageRequest>,
    ) -> Result<Response<BoxStream<v2::PullMessageResponse>>, Status> {
        let status = self.note("pull", &request).map(pull_message_response::Content::Status);
        let frames = [
            status,
            Some(pull_message_response::Content::Message(Bytes::from_static(b"opaque"))),
            Some(pull_message_response::Content::NextOffset(7)),
        ];
        let frames = frames.map(|content| Ok(v2::PullMessageResponse { content }));
        Ok(Response::new(Box::pin(stream::iter(frames))))
    }

    async fn get_offset(
        &self,
        request: Request<v2::GetOffsetRequest>,
    ) -> Result<Response<v2::GetOffsetResponse>, Status> {
        Ok(Response::new(v2::GetOffsetResponse { status: self.note("get", &request), offset: 5 }))
    }

    async fn update_offset(
        &self,
        request: Request<v2::UpdateOffsetRequest>,
    ) -> Result<Response<v2::UpdateOffsetResponse>, Status> {
        Ok(Response::new(v2::UpdateOffsetResponse { status: self.note("update", &request) }))
    }

    async fn end_transaction(
        &self,
        request: Request<v2::EndTransactionRequest>,
    ) -> Result<Response<v2::EndTransactionResponse>, Status> {
        Ok(Response::new(v2::EndTransactionResponse { status: self.note("end", &request) }))
    }

    async fn recall_message(
        &self,
        request: Request<v2::RecallMessageRequest>,
    ) -> Result<Response<v2::RecallMessageResponse>, Status> {
        let status = self.note("recall", &request);
        Ok(Response::new(v2::RecallMessageResponse { status, message_id: "01AB".into() }))
    }

    async fn sync_lite_subscription(
        &self,
        request: Request<v2::SyncLiteSubscriptionRequest>,
    ) -> Result<Response<v2::SyncLiteSubscriptionResponse>, Status> {
        let ok = self.note("lite", &request);
        let refused = |code: Code| v2::Status { code: code.into(), message: "as the test wants".into() };
        let status = self.0.lite_code.lock().map(refused).or(ok);
        Ok(Response::new(v2::SyncLiteSubscriptionResponse { status }))
    }
}

pub(crate) struct Node {
    server: Server,
    pub(crate) routes: SharedRoutes,
    clients: Arc<ClientRegistry>,
    notes: Arc<Notes>,
    stopping: CancellationToken,
}

impl Node {
    pub(crate) fn start(broker: Option<&str>) -> Self {
        let (routes, clients) = (SharedRoutes::default(), Arc::new(ClientRegistry::default()));
        let (notes, stopping) = (Arc::new(Notes::default()), CancellationToken::new());
        let local = broker
            .map(|name| Local { broker_name: name.to_owned(), service: Arc::new(Broker(notes.clone())) });
        let peers = Peers::new(Between::default());
        let front = Front::new(
            routes.clone(),
            clients.clone(),
            peers,
            Auth::off(Secret::default()),
            local,
            stopping.clone(),
        );
        let options = ServerOptions { shutdown_grace: Duration::ZERO, ..options() };
        let server = Server::start(options, Routes::new(MessagingServiceServer::new(front))).expect("start");
        Self { server, routes, clients, notes, stopping }
    }

    pub(crate) fn client(&self) -> MessagingServiceClient<Channel> {
        plaintext(&self.server)
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.calls.lock())
    }
}

/// What a broker reports.
pub(crate) fn state(name: &str, node: &Node) -> RouteChange {
    let topic = |name: &str, kind: MessageType| TopicRoute {
        name: name.into(),
        message_type: kind.into(),
        read_queue_nums: 1,
        write_queue_nums: 1,
        permission: v2::Permission::ReadWrite.into(),
    };
    let identity = BrokerIdentity {
        broker_name: name.into(),
        internal_address: node.server.local_addr().to_string(),
        ..Default::default()
    };
    let topics = vec![
        topic("fifo", MessageType::Fifo),
        topic("parent", MessageType::Lite),
        topic("normal", MessageType::Normal),
        topic(&format!("of-{name}"), MessageType::Normal),
    ];
    let bound = GroupConfig {
        name: "bound".into(),
        lite_bind_topic: "parent".into(),
        lite_client_quota: 3,
        ..Default::default()
    };
    let state = BrokerState { identity: Some(identity), topics, groups: vec![bound] };
    RouteChange { change: Some(Change::Joined(state)) }
}

/// Brokers `a` and `b`, and a namesrv; all know the same routes.
pub(crate) fn cluster() -> [Node; 3] {
    let nodes = [Node::start(Some("a")), Node::start(Some("b")), Node::start(None)];
    for (name, node) in [("a", &nodes[0]), ("b", &nodes[1])] {
        for other in &nodes {
            other.routes.apply(state(name, node));
        }
    }
    nodes
}

pub(crate) fn from<T>(client_id: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-mq-client-id", MetadataValue::from_static(client_id));
    request
}

pub(crate) fn resource(name: &str) -> Option<v2::Resource> {
    Some(v2::Resource { resource_namespace: String::new(), name: name.into() })
}

pub(crate) fn sending(topic: &str, groups: &[&str]) -> v2::SendMessageRequest {
    let message = |group: &&str| {
        let message_group = (!group.is_empty()).then(|| (*group).to_owned());
        let system = v2::SystemProperties { message_group, ..Default::default() };
        let message =
            v2::Message { topic: resource(topic), system_properties: Some(system), ..Default::default() };
        Bytes::from(message.encode_to_vec())
    };
    v2::SendMessageRequest { messages: groups.iter().map(message).collect() }
}

pub(crate) fn queue(topic: &str, broker: &str) -> Option<v2::MessageQueue> {
    let broker = Some(v2::Broker { name: broker.into(), ..Default::default() });
    Some(v2::MessageQueue { topic: resource(topic), broker, ..Default::default() })
}

pub(crate) fn code(status: Option<v2::Status>) -> Code {
    status.expect("a status").code()
}

#[tokio::test]
async fn the_messages_of_a_group_meet_at_one_broker_whichever_door_they_come_through() {
    let [a, b, namesrv] = cluster();
    let mut homes = [0, 0];
    for n in 0..20 {
        let group = format!("order-{n}");
        for door in [&a, &b, &namesrv] {
            let sent = soon(door.client().send_message(from("p", sending("fifo", &[&group])))).await;
            assert_eq!(code(sent.expect("answered").into_inner().status), Code::Ok);
        }
        let (at_a, at_b) = (a.calls(), b.calls());
        assert_eq!(at_a.len() + at_b.len(), 3);
        assert!(at_a.is_empty() || at_b.is_empty(), "{group}: {at_a:?} {at_b:?}");
        homes[usize::from(at_a.is_empty())] += 1;
    }
    assert!(homes.iter().all(|&count| count > 0), "{homes:?}");
    let groups: Vec<String> = (0..20).map(|n| format!("order-{n}")).collect();
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let mixed = soon(a.client().send_message(from("p", sending("fifo", &groups)))).await;
    let status = mixed.expect("answered").into_inner().status;
    assert!(status.as_ref().is_some_and(|status| status.message.contains("send them apart")), "{status:?}");
    assert_eq!(code(status), Code::IllegalMessageGroup);
    // What needs no order stays where it comes in; what is wrong is refused by the broker.
    for topic in ["normal", "fifo"] {
        soon(a.client().send_message(from("p", sending(topic, &["", ""])))).await.expect("answered");
        assert_eq!((a.calls(), b.calls()), (vec!["send".to_owned()], vec![]), "{topic}");
    }
    assert_eq!(a.clients.of("p").expect("it was heard").publishing, ["fifo", "normal"]);
}

#[tokio::test]
async fn a_call_with_a_token_or_a_queue_reaches_the_broker_that_is_named_in_it() {
    let [a, b, namesrv] = cluster();
    let key = TokenKey::new([7; 32]);
    let recall_handle =
        RecallHandle { broker: "b".into(), topic_id: 1, timer_id: 2, deliver_ms: 3 }.encode(&key);
    let transaction_id =
        TransactionId { broker: "b".into(), topic_id: 1, half_id: 2, check_ms: 3 }.encode(&key);
    for (door, how) in [(&b, ""), (&a, " relayed"), (&namesrv, " relayed")] {
        let mut client = door.client();
        let recall =
            v2::RecallMessageRequest { topic: resource("normal"), recall_handle: recall_handle.clone() };
        let recalled = soon(client.recall_message(from("c", recall))).await.expect("answered").into_inner();
        assert_eq!((code(recalled.status), recalled.message_id.as_str()), (Code::Ok, "01AB"));
        let end = v2::EndTransactionRequest { transaction_id: transaction_id.clone(), ..Default::default() };
        let ended = soon(client.end_transaction(from("c", end))).await.expect("answered").into_inner();
        assert_eq!(code(ended.status), Code::Ok);
        let get = v2::GetOffsetRequest { group: resource("g"), message_queue: queue("normal", "b") };
        let got = soon(client.get_offset(from("c", get))).await.expect("answered").into_inner();
        assert_eq!((code(got.status), got.offset), (Code::Ok, 5));
        let update =
            v2::UpdateOffsetRequest { group: resource("g"), message_queue: queue("of-b", ""), offset: 1 };
        let updated = soon(client.update_offset(from("c", update))).await.expect("answered").into_inner();
        assert_eq!(code(updated.status), Code::Ok);
        let pull = v2::PullMessageRequest { message_queue: queue("normal", "b"), ..Default::default() };
        let mut frames = soon(client.pull_message(from("c", pull))).await.expect("answered").into_inner();
        let mut contents = Vec::new();
        while let Some(frame) = soon(frames.message()).await.expect("no error") {
            contents.extend(frame.content);
        }
        assert_eq!(contents.len(), 3, "{contents:?}");
        assert_eq!(contents[1], pull_message_response::Content::Message(Bytes::from_static(b"opaque")));
        let reached = b.calls();
        assert_eq!(reached, ["recall", "end", "get", "update", "pull"].map(|call| format!("{call}{how}")));
        assert!(a.calls().is_empty());
    }
}

#[tokio::test]
async fn an_offset_without_a_broker_is_refused_where_two_have_the_topic() {
    let [a, _b, namesrv] = cluster();
    for door in [&a, &namesrv] {
        let get = v2::GetOffsetRequest { group: resource("g"), message_queue: queue("normal", "") };
        let status =
            soon(door.client().get_offset(from("c", get))).await.expect("answered").into_inner().status;
        assert!(status.as_ref().is_some_and(|status| status.message.contains("2 brokers")), "{status:?}");
        assert_eq!(code(status), Code::BadRequest);
    }
}

#[tokio::test]
async fn a_lite_subscription_is_told_to_every_broker_once() {
    let [a, b, namesrv] = cluster();
    let sync = || v2::SyncLiteSubscriptionRequest {
        topic: resource("parent"),
        group: resource("bound"),
        lite_topic_set: vec!["session-1".into()],
        ..Default::default()
    };
    for door in [&a, &b, &namesrv] {
        let synced = soon(door.client().sync_lite_subscription(from("c", sync()))).await.expect("answered");
        assert_eq!(code(synced.into_inner().status), Code::Ok);
        assert_eq!((a.calls().len(), b.calls().len()), (1, 1));
    }
    *b.notes.lite_code.lock() = Some(Code::LiteSubscriptionQuotaExceeded);
    let refused = soon(a.client().sync_lite_subscription(from("c", sync()))).await.expect("answered");
    assert_eq!(code(refused.into_inner().status), Code::LiteSubscriptionQuotaExceeded);
    // A broker that is away is told by the next sync.
    b.server.shutdown().await;
    let synced = soon(a.client().sync_lite_subscription(from("c", sync()))).await.expect("answered");
    assert_eq!(code(synced.into_inner().status), Code::Ok);
}

/// A telemetry stream with both its ends.
struct Telemetry {
    says: mpsc::Sender<v2::TelemetryCommand>,
    hears: Streaming<v2::TelemetryCommand>,
}

impl Telemetry {
    async fn open(node: &Node, client_id: &'static str, sent: v2::Settings) -> Self {
        let (says, said) = mpsc::channel(4);
        let settings = v2::TelemetryCommand { status: None, command: Some(Command::Settings(sent)) };
        says.send(settings).await.expect("open");
        let stream = from(client_id, ReceiverStream::new(said));
        let hears = soon(node.client().telemetry(stream)).await.expect("begins").into_inner();
        Self { says, hears }
    }

    async fn hear(&mut self) -> Result<v2::TelemetryCommand, Status> {
        soon(self.hears.message()).await.map(|command| command.expect("not ended"))
    }

    async fn settings(&mut self) -> v2::Settings {
        let command = self.hear().await.expect("no error");
        assert_eq!(command.status.expect("Python waits for it").code(), Code::Ok);
        match command.command {
            Some(Command::Settings(settings)) => settings,
            other => panic!("no settings: {other:?}"),
        }
    }
}

fn consumer(client_type: ClientType, group: &str, topic: &str) -> v2::Settings {
    let entry = v2::SubscriptionEntry { topic: resource(topic), expression: None };
    let subscription =
        v2::Subscription { group: resource(group), subscriptions: vec![entry], ..Default::default() };
    v2::Settings {
        client_type: Some(client_type.into()),
        pub_sub: Some(PubSub::Subscription(subscription)),
        ..Default::default()
    }
}

fn subscription(settings: &v2::Settings) -> &v2::Subscription {
    match &settings.pub_sub {
        Some(PubSub::Subscription(subscription)) => subscription,
        other => panic!("another case: {other:?}"),
    }
}

#[tokio::test]
async fn every_node_answers_settings_from_the_group_and_again_when_it_changes() {
    let [a, _b, namesrv] = cluster();
    for node in [&a, &namesrv] {
        let sent = consumer(ClientType::PushConsumer, "g", "fifo");
        let mut telemetry = Telemetry::open(node, "c", sent).await;
        let settings = telemetry.settings().await;
        assert_eq!(settings.backoff_policy.as_ref().expect("a policy").max_attempts, 17);
        assert!(subscription(&settings).fifo(), "its topic is FIFO");
        let group = GroupConfig {
            name: "g".into(),
            retry_max_times: Some(4),
            orderly: Some(false),
            ..Default::default()
        };
        let delta = BrokerDelta { broker_name: "a".into(), groups: vec![group], ..Default::default() };
        node.routes.apply(RouteChange { change: Some(Change::Changed(delta)) });
        let settings = telemetry.settings().await;
        assert_eq!(settings.backoff_policy.as_ref().expect("a policy").max_attempts, 5);
        assert!(!subscription(&settings).fifo());
        let state = node.clients.of("c").expect("it was heard");
        assert!(state.address.starts_with("127.0.0.1:"), "{}", state.address);
    }
}

#[tokio::test]
async fn a_bound_group_takes_lite_consumers_and_no_others() {
    let [a, _b, namesrv] = cluster();
    for node in [&a, &namesrv] {
        let sent = consumer(ClientType::LitePushConsumer, "bound", "parent");
        let settings = Telemetry::open(node, "lite", sent).await.settings().await;
        assert_eq!(subscription(&settings).lite_subscription_quota, Some(3));
        assert_eq!(subscription(&settings).max_lite_topic_size, Some(64));
        for (client_type, group) in
            [(ClientType::PushConsumer, "bound"), (ClientType::LitePushConsumer, "plain")]
        {
            let delta = BrokerDelta {
                broker_name: "a".into(),
                groups: vec![GroupConfig { name: "plain".into(), ..Default::default() }],
                ..Default::default()
            };
            node.routes.apply(RouteChange { change: Some(Change::Changed(delta)) });
            let sent = consumer(client_type, group, "parent");
            let refused = Telemetry::open(node, "wrong", sent).await.hear().await.expect_err("refused");
            assert!(refused.message().contains("lite_bind_topic"), "{refused:?}");
        }
    }
    let receive = || v2::ReceiveMessageRequest {
        group: resource("bound"),
        message_queue: queue("parent", "a"),
        ..Default::default()
    };
    let beat = v2::HeartbeatRequest { group: None, client_type: ClientType::PushConsumer.into() };
    soon(namesrv.client().heartbeat(from("push", beat))).await.expect("answered");
    for (client_id, expected) in [("lite", Code::Ok), ("push", Code::IllegalConsumerGroup)] {
        let mut frames = soon(namesrv.client().receive_message(from(client_id, receive())))
            .await
            .expect("answered")
            .into_inner();
        let frame = soon(frames.message()).await.expect("no error").expect("a frame");
        let Some(v2::receive_message_response::Content::Status(status)) = frame.content else {
            panic!("no status: {frame:?}");
        };
        assert_eq!(status.code(), expected, "{client_id}: {status:?}");
    }
}

#[tokio::test]
async fn a_client_answers_a_question_down_its_stream() {
    let [a, ..] = cluster();
    let sent = consumer(ClientType::PushConsumer, "g", "normal");
    let mut telemetry = Telemetry::open(&a, "c", sent).await;
    telemetry.settings().await;
    let verify = |nonce| Command::VerifyMessageCommand(v2::VerifyMessageCommand { nonce, message: None });
    let answering = async {
        let asked = telemetry.hear().await.expect("no error");
        let Some(Command::VerifyMessageCommand(v2::VerifyMessageCommand { nonce, .. })) = asked.command
        else {
            panic!("another command");
        };
        let status = Some(v2::Status { code: Code::FailedToConsumeMessage.into(), message: String::new() });
        let command = Some(Command::VerifyMessageResult(v2::VerifyMessageResult { nonce }));
        telemetry.says.send(v2::TelemetryCommand { status, command }).await.expect("open");
    };
    let (answer, ()) = tokio::join!(a.clients.ask("c", SOON, verify), answering);
    assert_eq!(code(answer.expect("answered").status), Code::FailedToConsumeMessage);
    a.stopping.cancel();
    assert!(soon(telemetry.hears.message()).await.expect("no error").is_none());
}
