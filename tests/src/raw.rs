//! A gRPC client without manners: it sends exactly what a test says, also what no official client lets through.

mod requests;

use std::time::Duration;

use bytes::Bytes;
use karman_remoting::auth::SignedChannel;
use karman_remoting::auth::credentials::Credentials;
use karman_remoting::channel::{ChannelPool, ClientTls};
use karman_remoting::proto::karman::admin_client::AdminClient;
use karman_remoting::proto::karman::{
    BrokerStatus, CreateGroupRequest, CreateTopicRequest, DeleteTopicRequest, DescribeClusterRequest,
    ExplainMessageRequest, GroupConfig, ListTopicsRequest, MessageTrace, QueryMessagesRequest, StoredMessage,
    TopicConfig, TopicSummary, UpdateGroupRequest, UpdateTopicRequest,
};
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::proto::v2::{self, receive_message_response::Content};
use prost::Message as _;
use tokio::runtime::Runtime;
use tokio_stream::StreamExt as _;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

pub use self::requests::{delayed, message, millis, now_ms, receive_request, resource, seconds};
use crate::Cluster;

const CALL_DEADLINE: Duration = Duration::from_secs(10);
const CLIENT_ID: &str = "raw@test";

/// A blocking client of one endpoint.
#[derive(Debug)]
pub struct Raw {
    runtime: Runtime,
    channel: Channel,
    client: MessagingServiceClient<Channel>,
    admin: AdminClient<SignedChannel>,
    client_id: Option<&'static str>,
    credentials: Option<Credentials>,
    headers: Headers,
}

/// What a replayed client says of itself with each call.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    /// Names and values.
    pub metadata: Vec<(&'static str, String)>,
    /// `grpc-timeout` of a telemetry stream.
    pub of_stream: Option<&'static str>,
}

/// Makes a blocking method for a unary call. A gRPC error is a failure of the test: business errors travel in the body.
macro_rules! unary {
    ($($name:ident: $request:ident -> $response:ident;)*) => {
        impl Raw {
            $(
                #[doc = concat!("`", stringify!($request), "` as it is.")]
                pub fn $name(&self, request: v2::$request) -> v2::$response {
                    let mut client = self.client.clone();
                    self.runtime
                        .block_on(client.$name(self.request(request)))
                        .unwrap_or_else(|status| panic!("{}: {status:?}", stringify!($name)))
                        .into_inner()
                }
            )*
        }
    };
}

unary! {
    query_route: QueryRouteRequest -> QueryRouteResponse;
    heartbeat: HeartbeatRequest -> HeartbeatResponse;
    send_message: SendMessageRequest -> SendMessageResponse;
    query_assignment: QueryAssignmentRequest -> QueryAssignmentResponse;
    ack_message: AckMessageRequest -> AckMessageResponse;
    change_invisible_duration: ChangeInvisibleDurationRequest -> ChangeInvisibleDurationResponse;
    forward_message_to_dead_letter_queue:
        ForwardMessageToDeadLetterQueueRequest -> ForwardMessageToDeadLetterQueueResponse;
    update_offset: UpdateOffsetRequest -> UpdateOffsetResponse;
    get_offset: GetOffsetRequest -> GetOffsetResponse;
    query_offset: QueryOffsetRequest -> QueryOffsetResponse;
    end_transaction: EndTransactionRequest -> EndTransactionResponse;
    recall_message: RecallMessageRequest -> RecallMessageResponse;
    sync_lite_subscription: SyncLiteSubscriptionRequest -> SyncLiteSubscriptionResponse;
    notify_client_termination: NotifyClientTerminationRequest -> NotifyClientTerminationResponse;
}

impl Raw {
    /// A client of `endpoint` (`HOST:PORT`), plaintext. It connects with its first call.
    pub fn connect(endpoint: &str) -> Raw {
        Self::over(Endpoint::from_shared(format!("http://{endpoint}")).unwrap())
    }

    /// The same over TLS, to a node with the certificate `root`; `identity`: the own certificate and its key. All are PEM.
    pub fn over_tls(endpoint: &str, root: &str, identity: Option<(&str, &str)>) -> Raw {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root));
        let tls = match identity {
            Some((cert, key)) => tls.identity(Identity::from_pem(cert, key)),
            None => tls,
        };
        Self::over(Endpoint::from_shared(format!("https://{endpoint}")).unwrap().tls_config(tls).unwrap())
    }

    /// The same over TLS, to whoever answers, with what a replayed client says of itself.
    pub fn replayed(endpoint: &str, headers: Headers) -> Raw {
        let pool = ChannelPool::with_tls(ClientTls::TrustAll);
        let raw = Self::through(|| pool.get(endpoint).unwrap());
        Raw { headers, client_id: None, ..raw }
    }

    fn over(address: Endpoint) -> Raw {
        Self::through(|| address.connect_lazy())
    }

    fn through(channel: impl FnOnce() -> Channel) -> Raw {
        const MAX_MESSAGE_BYTES: usize = 64 << 20;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let channel = runtime.block_on(async { channel() });
        let admin = AdminClient::new(SignedChannel::new(channel.clone(), None));
        let client = MessagingServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let headers = Headers::default();
        Raw { runtime, channel, client, admin, client_id: Some(CLIENT_ID), credentials: None, headers }
    }

    /// The same as another client.
    pub fn named(mut self, client_id: &'static str) -> Raw {
        self.client_id = Some(client_id);
        self
    }

    /// The same in the name of a user: every call is signed.
    pub fn signed_by(mut self, access_key: &str, secret_key: &str) -> Raw {
        self.credentials = Some(Credentials::new(access_key, secret_key).unwrap());
        self.admin = AdminClient::new(SignedChannel::new(self.channel.clone(), self.credentials.clone()));
        self
    }

    /// The same without the header that names the client.
    pub fn without_client_id(mut self) -> Raw {
        self.client_id = None;
        self
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(CALL_DEADLINE);
        if let Some(id) = self.client_id {
            request.metadata_mut().insert("x-mq-client-id", id.parse().unwrap());
        }
        for (name, value) in &self.headers.metadata {
            request.metadata_mut().insert(*name, value.parse().unwrap());
        }
        if let Some(credentials) = &self.credentials {
            credentials.sign(request.metadata_mut());
        }
        request
    }

    /// A stream, which has no deadline but that of a replayed client.
    fn stream_request<T>(&self, messages: T) -> tonic::Request<T> {
        let mut request = self.request(messages);
        request.metadata_mut().remove("grpc-timeout");
        if let Some(timeout) = self.headers.of_stream {
            request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        request
    }

    /// One message, or a batch.
    pub fn send(&self, messages: &[v2::Message]) -> v2::SendMessageResponse {
        let messages = messages.iter().map(|message| Bytes::from(message.encode_to_vec())).collect();
        self.send_message(v2::SendMessageRequest { messages })
    }

    /// The status of the call, which must come first and only once, and the messages.
    pub fn receive(&self, request: v2::ReceiveMessageRequest) -> (v2::Status, Vec<v2::Message>) {
        let mut client = self.client.clone();
        let mut statuses = Vec::new();
        let mut messages = Vec::new();
        self.runtime.block_on(async {
            let mut frames = client.receive_message(self.request(request)).await.unwrap().into_inner();
            while let Some(frame) = frames.next().await {
                match frame.unwrap().content {
                    Some(Content::Status(status)) => statuses.push(status),
                    Some(Content::Message(bytes)) => {
                        assert!(!statuses.is_empty(), "some clients take what comes first for the status");
                        messages.push(v2::Message::decode(bytes).unwrap());
                    }
                    Some(Content::DeliveryTimestamp(_)) | None => {}
                }
            }
        });
        assert_eq!(statuses.len(), 1, "one status frame in a stream: {statuses:?}");
        (statuses.remove(0), messages)
    }

    /// The status of a pull, which must be there exactly once, the messages, and where to go on.
    pub fn pull(&self, request: v2::PullMessageRequest) -> (v2::Status, Vec<v2::Message>, Option<i64>) {
        use v2::pull_message_response::Content;
        let mut client = self.client.clone();
        let (mut statuses, mut messages, mut next) = (Vec::new(), Vec::new(), None);
        self.runtime.block_on(async {
            let mut frames = client.pull_message(self.request(request)).await.unwrap().into_inner();
            while let Some(frame) = frames.next().await {
                match frame.unwrap().content {
                    Some(Content::Status(status)) => statuses.push(status),
                    Some(Content::Message(bytes)) => messages.push(v2::Message::decode(bytes).unwrap()),
                    Some(Content::NextOffset(offset)) => next = Some(offset),
                    None => {}
                }
            }
        });
        assert_eq!(statuses.len(), 1, "one status frame in a stream: {statuses:?}");
        (statuses.remove(0), messages, next)
    }

    /// What an answer about a group's offset says of a slave that gave it.
    pub fn answered_by_slave(&self, request: v2::GetOffsetRequest) -> Option<String> {
        let mut client = self.client.clone();
        let response = self.runtime.block_on(client.get_offset(self.request(request))).unwrap();
        let said = response.metadata().get("x-karman-answered-by-slave");
        said.map(|said| said.to_str().unwrap().to_owned())
    }

    /// Creates a topic with four queues on each broker of the cluster.
    pub fn create_topic(&self, name: &str, kind: v2::MessageType) -> v2::Status {
        self.make_topic(TopicConfig {
            name: name.to_owned(),
            message_type: kind.into(),
            queue_nums: 4,
            ..Default::default()
        })
    }

    /// Creates a topic just as it is said.
    pub fn make_topic(&self, topic: TopicConfig) -> v2::Status {
        let request = CreateTopicRequest { topic: Some(topic), if_not_exists: false };
        let mut admin = self.admin.clone();
        let response = self.runtime.block_on(admin.create_topic(self.request(request))).unwrap().into_inner();
        response.status.expect("a status")
    }

    /// Deletes a topic on every broker; what the answer says on the whole.
    pub fn delete_topic(&self, name: &str) -> v2::Status {
        let mut admin = self.admin.clone();
        let request = self.request(DeleteTopicRequest { name: name.to_owned() });
        self.runtime.block_on(admin.delete_topic(request)).unwrap().into_inner().status.expect("a status")
    }

    /// Creates a group just as it is said.
    pub fn make_group(&self, group: GroupConfig) -> v2::Status {
        let request = CreateGroupRequest { group: Some(group) };
        let mut admin = self.admin.clone();
        let response = self.runtime.block_on(admin.create_group(self.request(request))).unwrap().into_inner();
        response.status.expect("a status")
    }

    /// Replaces the settings of a group.
    pub fn update_group(&self, group: GroupConfig) -> v2::Status {
        let request = UpdateGroupRequest { group: Some(group) };
        let mut admin = self.admin.clone();
        let response = self.runtime.block_on(admin.update_group(self.request(request))).unwrap().into_inner();
        response.status.expect("a status")
    }

    /// Every topic, on each broker that has it.
    pub fn topics(&self) -> Vec<TopicSummary> {
        let mut admin = self.admin.clone();
        let answer = self.runtime.block_on(admin.list_topics(self.request(ListTopicsRequest {})));
        answer.unwrap().into_inner().topics
    }

    /// Messages as they are stored.
    pub fn stored(&self, request: QueryMessagesRequest) -> Vec<StoredMessage> {
        let mut admin = self.admin.clone();
        let answer = self.runtime.block_on(admin.query_messages(self.request(request))).unwrap().into_inner();
        is_ok(answer.status);
        answer.messages
    }

    /// The brokers, as they tell of themselves.
    pub fn brokers(&self) -> Vec<BrokerStatus> {
        let mut admin = self.admin.clone();
        let request = self.request(DescribeClusterRequest {});
        self.runtime.block_on(admin.describe_cluster(request)).unwrap().into_inner().brokers
    }

    /// Where a message lies, and what became of it.
    pub fn explain(&self, topic: &str, message_id: &str) -> Vec<MessageTrace> {
        let (topic, message_id) = (topic.to_owned(), message_id.to_owned());
        let request = ExplainMessageRequest { topic, message_id, group: String::new() };
        let mut admin = self.admin.clone();
        let answer =
            self.runtime.block_on(admin.explain_message(self.request(request))).unwrap().into_inner();
        is_ok(answer.status);
        answer.traces
    }

    /// Replaces the settings of a topic on one broker.
    pub fn update_topic_on(&self, broker: &str, topic: TopicConfig) -> v2::Status {
        let request = UpdateTopicRequest { topic: Some(topic), broker_name: broker.to_owned() };
        let mut admin = self.admin.clone();
        let response = self.runtime.block_on(admin.update_topic(self.request(request))).unwrap().into_inner();
        response.status.expect("a status")
    }

    /// A list of all topics, or why it is refused.
    pub fn try_list_topics(&self) -> Result<Vec<TopicSummary>, tonic::Status> {
        let mut admin = self.admin.clone();
        let answer = self.runtime.block_on(admin.list_topics(self.request(ListTopicsRequest {})));
        answer.map(|response| response.into_inner().topics)
    }

    /// The first answer on a telemetry stream with `settings`, or why there is none; and why the stream ends then, when it
    /// ends within `deadline`.
    pub fn telemetry_until(
        &self,
        settings: v2::Settings,
        deadline: Duration,
        meanwhile: impl FnOnce(),
    ) -> Result<Option<tonic::Status>, tonic::Status> {
        use v2::telemetry_command::Command;
        let (outbound, outgoing) = tokio::sync::mpsc::channel(8);
        let first = v2::TelemetryCommand { status: None, command: Some(Command::Settings(settings)) };
        outbound.try_send(first).unwrap();
        let mut client = self.client.clone();
        let request = self.stream_request(tokio_stream::wrappers::ReceiverStream::new(outgoing));
        let mut stream = self.runtime.block_on(client.telemetry(request))?.into_inner();
        self.runtime.block_on(stream.message())?;
        meanwhile();
        let ended = self.runtime.block_on(async { tokio::time::timeout(deadline, stream.message()).await });
        Ok(ended.ok().and_then(Result::err))
    }

    /// How many brokers this node knows; 0 while it is away.
    pub fn known_brokers(&self) -> usize {
        let mut admin = self.admin.clone();
        let answer = self.runtime.block_on(admin.describe_cluster(self.request(DescribeClusterRequest {})));
        answer.map_or(0, |response| response.into_inner().brokers.len())
    }

    /// Whether the caller may not know the route of `topic`.
    pub fn is_refused(&self, topic: &str) -> bool {
        let answer = self.query_route(v2::QueryRouteRequest { topic: resource(topic), endpoints: None });
        answer.status.is_some_and(|status| status.code() == v2::Code::Unauthorized)
    }

    /// The names of the brokers in the route of `topic`, sorted; none while the node is away or does not know it.
    pub fn route_brokers(&self, topic: &str) -> Vec<String> {
        let request = v2::QueryRouteRequest { topic: resource(topic), endpoints: None };
        let mut client = self.client.clone();
        let Ok(response) = self.runtime.block_on(client.query_route(self.request(request))) else {
            return Vec::new();
        };
        let queues = response.into_inner().message_queues;
        let mut names: Vec<String> =
            queues.into_iter().filter_map(|queue| Some(queue.broker?.name)).collect();
        names.sort();
        names
    }
}

/// A telemetry stream that stays open until this is dropped.
#[derive(Debug)]
pub struct Telemetry {
    /// What the server answered first.
    pub settings: v2::Settings,
    outbound: tokio::sync::mpsc::Sender<v2::TelemetryCommand>,
    commands: std::sync::mpsc::Receiver<v2::telemetry_command::Command>,
}

impl Telemetry {
    /// The next command of the server; panics when none comes within `deadline`.
    pub fn next(&self, deadline: Duration) -> v2::telemetry_command::Command {
        self.commands.recv_timeout(deadline).unwrap_or_else(|error| panic!("a command: {error}"))
    }

    /// Says something to the server.
    pub fn say(&self, command: v2::telemetry_command::Command) {
        let status = v2::Status { code: v2::Code::Ok.into(), message: String::new() };
        let command = v2::TelemetryCommand { status: Some(status), command: Some(command) };
        self.outbound.try_send(command).unwrap();
    }

    /// The commands that have come and were not taken yet.
    pub fn waiting(&self) -> Vec<v2::telemetry_command::Command> {
        self.commands.try_iter().collect()
    }
}

impl Raw {
    /// Opens a telemetry stream with `settings` and waits for the server's settings.
    pub fn telemetry(&self, settings: v2::Settings) -> Telemetry {
        use v2::telemetry_command::Command;
        let (outbound, outgoing) = tokio::sync::mpsc::channel(8);
        let (incoming, commands) = std::sync::mpsc::channel();
        let first = v2::TelemetryCommand { status: None, command: Some(Command::Settings(settings)) };
        outbound.try_send(first).unwrap();
        let mut client = self.client.clone();
        let request = self.stream_request(tokio_stream::wrappers::ReceiverStream::new(outgoing));
        self.runtime.spawn(async move {
            let mut stream = client.telemetry(request).await.unwrap().into_inner();
            while let Some(Ok(command)) = stream.next().await {
                let Some(command) = command.command else { continue };
                // Whoever asked for it may be gone.
                if incoming.send(command).is_err() {
                    break;
                }
            }
        });
        let answer = commands.recv_timeout(CALL_DEADLINE).unwrap_or_else(|error| panic!("settings: {error}"));
        let Command::Settings(settings) = answer else { panic!("not settings: {answer:?}") };
        Telemetry { settings, outbound, commands }
    }
}

/// A client of the first broker.
pub fn raw(cluster: &Cluster) -> Raw {
    Raw::connect(&cluster.brokers[0].endpoint())
}

/// A status that must be there, and OK.
pub fn is_ok(status: impl Into<Option<v2::Status>>) {
    let status = status.into().unwrap();
    assert_eq!(status.code, v2::Code::Ok as i32, "{status:?}");
}

/// The system properties, which every message has.
pub fn system(message: &v2::Message) -> &v2::SystemProperties {
    message.system_properties.as_ref().unwrap()
}

/// The message ids, sorted.
pub fn ids(messages: &[v2::Message]) -> Vec<String> {
    let mut ids: Vec<String> = messages.iter().map(|message| system(message).message_id.clone()).collect();
    ids.sort();
    ids
}

/// What a group is given of a topic of the first broker, without waiting.
pub fn take(raw: &Raw, topic: &str, group: &str) -> Vec<v2::Message> {
    take_of(raw, topic, group, "broker-a")
}

/// The same of another broker.
pub fn take_of(raw: &Raw, topic: &str, group: &str, broker: &str) -> Vec<v2::Message> {
    let long_polling_timeout = Some(seconds(0));
    let request = receive_request(topic, group, broker);
    raw.receive(v2::ReceiveMessageRequest { long_polling_timeout, ..request }).1
}
