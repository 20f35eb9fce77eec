//! Receiving: messages are asked for, and acknowledged one by one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use karman_remoting::proto::v2;
use karman_remoting::proto::v2::receive_message_response::Content;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;
use tonic::Streaming;

use crate::client::Shared;
use crate::error::ClientError;
use crate::message::{FilterExpression, ReceivedMessage, duration};
use crate::retry::{MAX_ATTEMPTS, backoff};
use crate::route::{BrokerRoute, resource};
use crate::session::Session;
use crate::transport::answer;

/// How long a receive waits for a message unless told otherwise; the servers wait no longer.
const AWAIT_DURATION: Duration = Duration::from_secs(20);
/// Handles in one request.
const ACK_MAX_ENTRIES: usize = 1024;

/// Receives and acknowledges the messages of a group. Its methods may be called by many tasks at once.
#[derive(Debug)]
pub struct SimpleConsumer {
    client: Arc<Shared>,
    session: Arc<Session>,
    group: String,
    subscriptions: Arc<[(String, FilterExpression)]>,
    await_duration: Duration,
    turn: AtomicUsize,
    /// Ends the session with the consumer.
    _open: DropGuard,
}

/// One thing to ask: a broker for a subscription.
struct Target<'a> {
    topic: &'a str,
    filter: &'a FilterExpression,
    broker: Arc<BrokerRoute>,
}

impl SimpleConsumer {
    pub(crate) fn new(
        client: Arc<Shared>,
        session: Arc<Session>,
        open: DropGuard,
        group: String,
        subscriptions: Arc<[(String, FilterExpression)]>,
    ) -> Self {
        let (await_duration, turn) = (AWAIT_DURATION, AtomicUsize::new(0));
        Self { client, session, group, subscriptions, await_duration, turn, _open: open }
    }

    /// How long [`SimpleConsumer::receive`] waits when there is no message; 20 s by default, which is also the most
    /// that servers wait for one broker and topic.
    #[must_use]
    pub fn with_await_duration(mut self, await_duration: Duration) -> Self {
        self.await_duration = await_duration;
        self
    }

    /// Up to `max` messages (a server gives at most 32 at once), which nobody else of the group gets for `invisible`.
    /// Empty when there was none for the await duration.
    ///
    /// Asks the brokers of the subscribed topics one after the other, beginning with another one on each call, and
    /// waits a share of the await duration at each; several calls at once are how to read several brokers at once. The
    /// longest it can take is the await duration and the request timeout of each broker.
    ///
    /// When this future is dropped, messages that were on their way are delivered again after `invisible`.
    pub async fn receive(&self, max: u32, invisible: Duration) -> Result<Vec<ReceivedMessage>, ClientError> {
        self.client.check_open()?;
        let targets = self.targets().await?;
        let share = self.await_duration / u32::try_from(targets.len()).unwrap_or(u32::MAX);
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut failure = None;
        for step in 0..targets.len() {
            let target = &targets[(start % targets.len() + step) % targets.len()];
            match self.receive_from(target, max, invisible, share).await {
                Ok(messages) if messages.is_empty() => {}
                Ok(messages) => return Ok(messages),
                Err(error) => {
                    self.learn(target.topic, &error);
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(Vec::new()), Err)
    }

    /// The message is done with: nobody of the group gets it again.
    ///
    /// May be repeated, and is, up to three times and through the access point when the broker cannot be reached.
    /// Refused with `INVALID_RECEIPT_HANDLE` when the invisible duration was over and another delivery has begun.
    pub async fn ack(&self, message: &ReceivedMessage) -> Result<(), ClientError> {
        let mut results = self.ack_all(std::slice::from_ref(message)).await;
        results.pop().expect("there is one result for each message")
    }

    /// Acknowledges messages of any topics and brokers, one request for all of a topic and broker. There is one result
    /// for each message, in their order.
    pub async fn ack_all(&self, messages: &[ReceivedMessage]) -> Vec<Result<(), ClientError>> {
        let mut groups: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
        for (index, message) in messages.iter().enumerate() {
            groups.entry((message.endpoint(), message.topic())).or_default().push(index);
        }
        let chunks = groups.iter().flat_map(|(&(endpoint, topic), indexes)| {
            indexes.chunks(ACK_MAX_ENTRIES).map(move |chunk| (endpoint, topic, chunk))
        });
        let calls = chunks.map(|(endpoint, topic, chunk)| async move {
            (chunk, self.ack_chunk(endpoint, topic, messages, chunk).await)
        });
        let mut results: Vec<Result<(), ClientError>> = messages.iter().map(|_| Ok(())).collect();
        for (chunk, outcomes) in futures_util::future::join_all(calls).await {
            for (&index, outcome) in chunk.iter().zip(outcomes) {
                results[index] = outcome;
            }
        }
        results
    }

    /// From now on the message stays invisible for `invisible`; zero gives it back to the group at once. The handle in
    /// `message` is renewed: a copy of the message made before cannot be acknowledged any more.
    ///
    /// When this future is dropped after the server acted, the handle is lost and the message comes again.
    pub async fn change_invisible_duration(
        &self,
        message: &mut ReceivedMessage,
        invisible: Duration,
    ) -> Result<(), ClientError> {
        self.client.check_open()?;
        let transport = &self.session.transport;
        let (endpoint, timeout) = (message.endpoint().to_owned(), transport.request_timeout);
        let request = v2::ChangeInvisibleDurationRequest {
            group: Some(resource(&self.group)),
            topic: Some(resource(message.topic())),
            receipt_handle: message.receipt_handle().to_owned(),
            invisible_duration: Some(duration(invisible)),
            message_id: message.message_id().to_owned(),
            ..Default::default()
        };
        // One attempt: a second one would come with a handle that the first may have made invalid.
        let mut service = transport.service(&endpoint)?;
        let call = service.change_invisible_duration(transport.request(request, timeout));
        let response = answer(&endpoint, timeout, call).await?;
        ClientError::of_status(&endpoint, response.status)?;
        if response.receipt_handle.is_empty() {
            return Err(ClientError::protocol(&endpoint, "no new receipt handle"));
        }
        message.set_receipt_handle(response.receipt_handle);
        Ok(())
    }

    async fn targets(&self) -> Result<Vec<Target<'_>>, ClientError> {
        let mut targets = Vec::new();
        for (topic, filter) in &*self.subscriptions {
            let route = self.session.routes.get(topic).await?;
            if route.readable().is_empty() {
                return Err(ClientError::NoQueue { topic: topic.clone(), wanted: "readable" });
            }
            targets.extend(route.readable().iter().map(|broker| Target {
                topic,
                filter,
                broker: broker.clone(),
            }));
        }
        Ok(targets)
    }

    async fn receive_from(
        &self,
        target: &Target<'_>,
        max: u32,
        invisible: Duration,
        wait: Duration,
    ) -> Result<Vec<ReceivedMessage>, ClientError> {
        let transport = &self.session.transport;
        let endpoint = &target.broker.endpoint;
        let timeout = wait.saturating_add(transport.request_timeout);
        let deadline = Instant::now() + timeout;
        let request = v2::ReceiveMessageRequest {
            group: Some(resource(&self.group)),
            message_queue: Some(target.broker.any_queue(target.topic)),
            filter_expression: Some(target.filter.to_proto()),
            batch_size: i32::try_from(max).unwrap_or(i32::MAX),
            invisible_duration: Some(duration(invisible)),
            auto_renew: false,
            long_polling_timeout: Some(duration(wait)),
            attempt_id: None,
        };
        let mut service = transport.service(endpoint)?;
        let call = service.receive_message(transport.request(request, timeout));
        let frames = answer(endpoint, timeout, call).await?;
        let mut messages = Vec::new();
        let ended =
            tokio::time::timeout_at(deadline, collect(frames, &target.broker, timeout, &mut messages));
        let result =
            ended.await.unwrap_or_else(|_| Err(ClientError::Timeout { endpoint: endpoint.clone(), timeout }));
        match result {
            // What has arrived is delivered, whatever became of the rest.
            _ if !messages.is_empty() => Ok(messages),
            Err(error) if error.code() == Some(v2::Code::MessageNotFound) => Ok(messages),
            other => other.map(|()| messages),
        }
    }

    async fn ack_chunk(
        &self,
        endpoint: &str,
        topic: &str,
        messages: &[ReceivedMessage],
        chunk: &[usize],
    ) -> Vec<Result<(), ClientError>> {
        let entry = |&index: &usize| v2::AckMessageEntry {
            message_id: messages[index].message_id().to_owned(),
            receipt_handle: messages[index].receipt_handle().to_owned(),
            lite_topic: None,
        };
        let request = v2::AckMessageRequest {
            group: Some(resource(&self.group)),
            topic: Some(resource(topic)),
            entries: chunk.iter().map(entry).collect(),
        };
        let mut endpoint = endpoint;
        let mut attempt = 1;
        let error = loop {
            let error = match self.ack_once(endpoint, request.clone()).await {
                Ok(results) => return results,
                Err(error) => error,
            };
            if attempt == MAX_ATTEMPTS || !error.is_retryable() {
                break error;
            }
            // Any node passes it on to the broker: perhaps one that can reach it.
            if matches!(error, ClientError::Unreachable { .. }) {
                endpoint = &self.session.transport.access_point;
            }
            tokio::time::sleep(backoff(attempt)).await;
            attempt += 1;
        };
        chunk.iter().map(|_| Err(error.clone())).collect()
    }

    async fn ack_once(
        &self,
        endpoint: &str,
        request: v2::AckMessageRequest,
    ) -> Result<Vec<Result<(), ClientError>>, ClientError> {
        self.client.check_open()?;
        let transport = &self.session.transport;
        let (timeout, count) = (transport.request_timeout, request.entries.len());
        let mut service = transport.service(endpoint)?;
        let response =
            answer(endpoint, timeout, service.ack_message(transport.request(request, timeout))).await?;
        if response.entries.len() == count {
            return Ok(response
                .entries
                .into_iter()
                .map(|entry| ClientError::of_status(endpoint, entry.status))
                .collect());
        }
        ClientError::of_status(endpoint, response.status)?;
        Err(ClientError::protocol(
            endpoint,
            format!("{} entries for {count} handles", response.entries.len()),
        ))
    }

    /// What a failure says about the route.
    fn learn(&self, topic: &str, error: &ClientError) {
        if error.code() == Some(v2::Code::TopicNotFound) {
            self.session.routes.forget(topic);
        } else if error.is_retryable() {
            self.session.routes.suspect();
        }
    }
}

/// Reads a stream to its end; what arrived before an error is in `messages`.
async fn collect(
    mut frames: Streaming<v2::ReceiveMessageResponse>,
    broker: &Arc<BrokerRoute>,
    timeout: Duration,
    messages: &mut Vec<ReceivedMessage>,
) -> Result<(), ClientError> {
    let mut status = None;
    loop {
        match frames.message().await {
            Ok(Some(frame)) => match frame.content {
                Some(Content::Status(said)) => status = Some(said),
                Some(Content::Message(bytes)) => messages.push(ReceivedMessage::decode(bytes, broker)?),
                Some(Content::DeliveryTimestamp(_)) | None => {}
            },
            Ok(None) => return ClientError::of_status(&broker.endpoint, status),
            Err(error) => return Err(ClientError::transport(&broker.endpoint, timeout, &error)),
        }
    }
}
