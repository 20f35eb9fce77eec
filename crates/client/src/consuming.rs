//! What all consumers of a group say to brokers: give, done, later, never again. Any task.

use std::sync::Arc;
use std::time::Duration;

use karman_remoting::proto::v2;
use karman_remoting::proto::v2::receive_message_response::Content;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;
use tonic::Streaming;

use crate::client::Shared;
use crate::error::ClientError;
use crate::message::{FilterExpression, duration};
use crate::route::{BrokerRoute, resource};
use crate::session::{Session, Subscriptions};
use crate::transport::answer;
use crate::view::{Receipt, ReceivedMessage};

/// One consumer.
#[derive(Debug)]
pub(crate) struct Consuming {
    pub(crate) client: Arc<Shared>,
    pub(crate) session: Arc<Session>,
    pub(crate) group: String,
    pub(crate) subscriptions: Subscriptions,
    /// Ends the session with the consumer.
    pub(crate) _open: DropGuard,
}

/// One thing to ask: a broker for a subscription.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) topic: String,
    pub(crate) filter: FilterExpression,
    pub(crate) broker: Arc<BrokerRoute>,
}

/// What is asked of a target.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) max: u32,
    /// `None`: the broker keeps what it gives invisible as long as this client lives.
    pub(crate) invisible: Option<Duration>,
    pub(crate) wait: Duration,
    /// The same in a repeated ask: what the first one was given comes again, in an orderly group.
    pub(crate) attempt_id: Option<String>,
    /// An answer that breaks off is an error: the ask is repeated. Else what has arrived of it is delivered.
    pub(crate) whole: bool,
}

impl Consuming {
    /// The brokers to ask for one subscription.
    pub(crate) async fn targets(
        &self,
        (topic, filter): &(String, FilterExpression),
    ) -> Result<Vec<Target>, ClientError> {
        let route = self.session.routes.get(topic).await?;
        if route.readable().is_empty() {
            return Err(ClientError::NoQueue { topic: topic.clone(), wanted: "readable" });
        }
        let target = |broker: &Arc<BrokerRoute>| Target {
            topic: topic.clone(),
            filter: filter.clone(),
            broker: broker.clone(),
        };
        Ok(route.readable().iter().map(target).collect())
    }

    /// Messages, or none when there was none for the time of waiting.
    pub(crate) async fn receive(
        &self,
        target: &Target,
        ask: Ask,
    ) -> Result<Vec<ReceivedMessage>, ClientError> {
        let transport = &self.session.transport;
        let endpoint = &target.broker.endpoint;
        let timeout = ask.wait.saturating_add(transport.request_timeout);
        let deadline = Instant::now() + timeout;
        let request = v2::ReceiveMessageRequest {
            group: Some(resource(&self.group)),
            message_queue: Some(target.broker.any_queue(&target.topic)),
            filter_expression: Some(target.filter.to_proto()),
            batch_size: i32::try_from(ask.max).unwrap_or(i32::MAX),
            invisible_duration: ask.invisible.map(duration),
            auto_renew: ask.invisible.is_none(),
            long_polling_timeout: Some(duration(ask.wait)),
            attempt_id: ask.attempt_id,
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
            Err(error) if ask.whole && error.is_uncertain() => Err(error),
            // What has arrived is delivered, whatever became of the rest.
            _ if !messages.is_empty() => Ok(messages),
            Err(error) if error.code() == Some(v2::Code::MessageNotFound) => Ok(messages),
            other => other.map(|()| messages),
        }
    }

    /// The result for each entry. Up to three attempts, through the access point when the broker cannot be reached.
    pub(crate) async fn ack(
        &self,
        endpoint: &str,
        topic: &str,
        entries: Vec<v2::AckMessageEntry>,
    ) -> Vec<Result<(), ClientError>> {
        let count = entries.len();
        let request = v2::AckMessageRequest {
            group: Some(resource(&self.group)),
            topic: Some(resource(topic)),
            entries,
        };
        let ack = |endpoint: Arc<str>| {
            let request = request.clone();
            async move { self.ack_once(&endpoint, request).await }
        };
        let acknowledged = self.session.transport.repeated(endpoint, ack).await;
        acknowledged.unwrap_or_else(|error| vec![Err(error); count])
    }

    async fn ack_once(
        &self,
        endpoint: &str,
        request: v2::AckMessageRequest,
    ) -> Result<Vec<Result<(), ClientError>>, ClientError> {
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

    /// The new handle. One attempt: a second one would come with a handle that the first may have made invalid.
    pub(crate) async fn change_invisible_duration(
        &self,
        receipt: &Receipt,
        invisible: Duration,
    ) -> Result<String, ClientError> {
        let transport = &self.session.transport;
        let (endpoint, timeout) = (&receipt.endpoint, transport.request_timeout);
        let request = v2::ChangeInvisibleDurationRequest {
            group: Some(resource(&self.group)),
            topic: Some(resource(&receipt.topic)),
            receipt_handle: receipt.handle.clone(),
            invisible_duration: Some(duration(invisible)),
            message_id: receipt.message_id.clone(),
            ..Default::default()
        };
        let mut service = transport.service(endpoint)?;
        let call = service.change_invisible_duration(transport.request(request, timeout));
        let response = answer(endpoint, timeout, call).await?;
        ClientError::of_status(endpoint, response.status)?;
        if response.receipt_handle.is_empty() {
            return Err(ClientError::protocol(endpoint, "no new receipt handle"));
        }
        Ok(response.receipt_handle)
    }

    /// The message is given up: it becomes a dead letter of the group.
    pub(crate) async fn forward_to_dead_letters(
        &self,
        receipt: &Receipt,
        attempts_max: i32,
    ) -> Result<(), ClientError> {
        let transport = &self.session.transport;
        let (endpoint, timeout) = (&receipt.endpoint, transport.request_timeout);
        let request = v2::ForwardMessageToDeadLetterQueueRequest {
            group: Some(resource(&self.group)),
            topic: Some(resource(&receipt.topic)),
            receipt_handle: receipt.handle.clone(),
            message_id: receipt.message_id.clone(),
            delivery_attempt: receipt.delivery_attempt,
            max_delivery_attempts: attempts_max,
            lite_topic: None,
        };
        let mut service = transport.service(endpoint)?;
        let call = service.forward_message_to_dead_letter_queue(transport.request(request, timeout));
        ClientError::of_status(endpoint, answer(endpoint, timeout, call).await?.status)
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
