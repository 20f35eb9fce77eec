//! One broker as the tasks of the load see it: raw gRPC calls with a deadline. It may be away at any time; of several doors
//! to it, that of the last call that went well is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::proto::v2::{self, Code, receive_message_response::Content};
use prost::Message as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::Target;
use super::plan::now_ms;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
const MESSAGE_MAX_BYTES: usize = 64 << 20;
/// After a failure, before the next attempt.
pub(super) const PAUSE: Duration = Duration::from_millis(150);

type Client = MessagingServiceClient<Channel>;

/// Connections of its own to one broker.
#[derive(Clone, Debug)]
pub(super) struct Broker {
    pub(super) name: String,
    client_id: String,
    doors: Vec<Client>,
    /// Which of them is used; clones go through the same.
    turn: Arc<AtomicUsize>,
}

/// What a call for messages brought.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// Each with the time at which it came.
    pub(super) messages: Vec<(u64, v2::Message)>,
    /// The broker's time at the end of the stream.
    pub(super) end_ms: Option<u64>,
    /// It ended well; otherwise more may have been on its way.
    pub(super) whole: bool,
}

impl Broker {
    /// Connects with the first call, and again when the connection is lost. Within a runtime.
    pub(super) fn new(target: &Target, client_id: &str) -> Self {
        let door = |endpoint: &String| {
            let address =
                Endpoint::from_shared(format!("http://{endpoint}")).expect("an endpoint is host:port");
            let channel = address.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect_lazy();
            MessagingServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES)
        };
        let doors: Vec<_> = target.endpoints.iter().map(door).collect();
        // Not all through the same: a door that fails is seen by some only.
        let first = client_id.bytes().map(usize::from).sum();
        Self {
            name: target.name.clone(),
            client_id: client_id.to_owned(),
            doors,
            turn: Arc::new(AtomicUsize::new(first)),
        }
    }

    fn door(&self) -> (usize, Client) {
        let turn = self.turn.load(Ordering::Relaxed);
        (turn, self.doors[turn % self.doors.len()].clone())
    }

    /// The call through door `turn` failed.
    fn failed(&self, turn: usize) {
        // Of several that failed at the same time one goes on.
        let _ = self.turn.compare_exchange(turn, turn + 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The answer of one call. One without an answer leads to the next door.
    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(Client) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        let (turn, client) = self.door();
        let answer = call(client).await;
        if answer.is_err() {
            self.failed(turn);
        }
        answer.map(tonic::Response::into_inner)
    }

    fn request<T>(&self, message: T, timeout: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        let id = self.client_id.parse().expect("client ids are plain");
        request.metadata_mut().insert("x-mq-client-id", id);
        request
    }

    /// One request; the entries of the answer are those of the messages.
    pub(super) async fn send(&self, messages: Vec<Bytes>) -> Result<v2::SendMessageResponse, Status> {
        let request = self.request(v2::SendMessageRequest { messages }, CALL_TIMEOUT);
        self.call(async |mut client| client.send_message(request).await).await
    }

    /// Takes what there is, or waits for `poll`.
    pub(super) async fn receive(&self, request: v2::ReceiveMessageRequest, poll: Duration) -> Received {
        let mut received = Received::default();
        let request = self.request(request, poll + CALL_TIMEOUT);
        let (turn, mut client) = self.door();
        let Ok(frames) = client.receive_message(request).await else {
            self.failed(turn);
            return received;
        };
        let mut frames = frames.into_inner();
        let mut refused = false;
        loop {
            match frames.message().await {
                Ok(None) => received.whole = !refused,
                Ok(Some(frame)) => {
                    match frame.content {
                        Some(Content::Message(bytes)) => {
                            let message = v2::Message::decode(bytes).expect("a broker sends messages");
                            received.messages.push((now_ms(), message));
                        }
                        Some(Content::DeliveryTimestamp(at)) => {
                            received.end_ms =
                                u64::try_from(at.seconds * 1000 + i64::from(at.nanos) / 1_000_000).ok();
                        }
                        // A door that has lost the broker says so behind what it had of it.
                        Some(Content::Status(status)) => {
                            refused |= !matches!(status.code(), Code::Ok | Code::MessageNotFound);
                        }
                        None => {}
                    }
                    continue;
                }
                Err(_) => self.failed(turn),
            }
            return received;
        }
    }

    /// Acknowledges; the status of each entry, or nothing when there was no answer.
    pub(super) async fn ack(&self, request: v2::AckMessageRequest) -> Vec<Option<v2::Status>> {
        let request = self.request(request, CALL_TIMEOUT);
        let answer = self.call(async |mut client| client.ack_message(request).await).await;
        let entries = answer.map(|answer| answer.entries).unwrap_or_default();
        entries.into_iter().map(|entry| entry.status).collect()
    }

    /// Changes when a message is visible again; the status of the answer.
    pub(super) async fn change_invisible(
        &self,
        request: v2::ChangeInvisibleDurationRequest,
    ) -> Option<v2::Status> {
        let request = self.request(request, CALL_TIMEOUT);
        let answer = self.call(async |mut client| client.change_invisible_duration(request).await).await;
        answer.ok()?.status
    }

    /// Gives a message up.
    pub(super) async fn bury(
        &self,
        request: v2::ForwardMessageToDeadLetterQueueRequest,
    ) -> Option<v2::Status> {
        let request = self.request(request, CALL_TIMEOUT);
        let answer =
            self.call(async |mut client| client.forward_message_to_dead_letter_queue(request).await).await;
        answer.ok()?.status
    }

    /// Ends a transaction.
    pub(super) async fn end_transaction(&self, request: v2::EndTransactionRequest) -> Option<v2::Status> {
        let request = self.request(request, CALL_TIMEOUT);
        self.call(async |mut client| client.end_transaction(request).await).await.ok()?.status
    }

    /// Where a group is in a queue.
    pub(super) async fn offset(&self, request: v2::GetOffsetRequest) -> Option<u64> {
        let request = self.request(request, CALL_TIMEOUT);
        let answer = self.call(async |mut client| client.get_offset(request).await).await.ok()?;
        let well = answer.status.is_some_and(|status| status.code == v2::Code::Ok as i32);
        u64::try_from(answer.offset).ok().filter(|_| well)
    }

    /// A telemetry stream that begins with `settings`; it ends when the sender is dropped, or the broker.
    pub(super) async fn telemetry(
        &self,
        settings: v2::Settings,
    ) -> Result<
        (tokio::sync::mpsc::Sender<v2::TelemetryCommand>, tonic::Streaming<v2::TelemetryCommand>),
        Status,
    > {
        use v2::telemetry_command::Command;
        let (outbound, outgoing) = tokio::sync::mpsc::channel(8);
        let first = v2::TelemetryCommand { status: None, command: Some(Command::Settings(settings)) };
        outbound.try_send(first).expect("there is room for eight");
        let mut request = self.request(tokio_stream::wrappers::ReceiverStream::new(outgoing), CALL_TIMEOUT);
        request.metadata_mut().remove("grpc-timeout");
        Ok((outbound, self.call(async |mut client| client.telemetry(request).await).await?))
    }
}
