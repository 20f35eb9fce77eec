//! One broker as the tasks of the load see it: raw gRPC calls with a deadline. It may be away at any time.

use std::time::Duration;

use bytes::Bytes;
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::proto::v2::{self, receive_message_response::Content};
use prost::Message as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::plan::now_ms;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
const MESSAGE_MAX_BYTES: usize = 64 << 20;
/// After a failure, before the next attempt.
pub(super) const PAUSE: Duration = Duration::from_millis(150);

/// A connection of its own to one broker.
#[derive(Clone, Debug)]
pub(super) struct Broker {
    pub(super) name: String,
    client_id: String,
    client: MessagingServiceClient<Channel>,
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
    pub(super) fn new(name: &str, endpoint: &str, client_id: &str) -> Self {
        let address = Endpoint::from_shared(format!("http://{endpoint}")).expect("an endpoint is host:port");
        let channel = address.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect_lazy();
        let client = MessagingServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES);
        Self { name: name.to_owned(), client_id: client_id.to_owned(), client }
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
        Ok(self.client.clone().send_message(request).await?.into_inner())
    }

    /// Takes what there is, or waits for `poll`.
    pub(super) async fn receive(&self, request: v2::ReceiveMessageRequest, poll: Duration) -> Received {
        let mut received = Received::default();
        let request = self.request(request, poll + CALL_TIMEOUT);
        let Ok(frames) = self.client.clone().receive_message(request).await else { return received };
        let mut frames = frames.into_inner();
        loop {
            match frames.message().await {
                Ok(None) => received.whole = true,
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
                        Some(Content::Status(_)) | None => {}
                    }
                    continue;
                }
                Err(_) => {}
            }
            return received;
        }
    }

    /// Acknowledges; the status of each entry, or nothing when there was no answer.
    pub(super) async fn ack(&self, request: v2::AckMessageRequest) -> Vec<Option<v2::Status>> {
        let answer = self.client.clone().ack_message(self.request(request, CALL_TIMEOUT)).await;
        let entries = answer.map(|answer| answer.into_inner().entries).unwrap_or_default();
        entries.into_iter().map(|entry| entry.status).collect()
    }

    /// Changes when a message is visible again; the status of the answer.
    pub(super) async fn change_invisible(
        &self,
        request: v2::ChangeInvisibleDurationRequest,
    ) -> Option<v2::Status> {
        let answer = self.client.clone().change_invisible_duration(self.request(request, CALL_TIMEOUT)).await;
        answer.ok()?.into_inner().status
    }

    /// Gives a message up.
    pub(super) async fn bury(
        &self,
        request: v2::ForwardMessageToDeadLetterQueueRequest,
    ) -> Option<v2::Status> {
        let request = self.request(request, CALL_TIMEOUT);
        let answer = self.client.clone().forward_message_to_dead_letter_queue(request).await;
        answer.ok()?.into_inner().status
    }

    /// Ends a transaction.
    pub(super) async fn end_transaction(&self, request: v2::EndTransactionRequest) -> Option<v2::Status> {
        let answer = self.client.clone().end_transaction(self.request(request, CALL_TIMEOUT)).await;
        answer.ok()?.into_inner().status
    }

    /// Where a group is in a queue.
    pub(super) async fn offset(&self, request: v2::GetOffsetRequest) -> Option<u64> {
        let answer =
            self.client.clone().get_offset(self.request(request, CALL_TIMEOUT)).await.ok()?.into_inner();
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
        Ok((outbound, self.client.clone().telemetry(request).await?.into_inner()))
    }
}
