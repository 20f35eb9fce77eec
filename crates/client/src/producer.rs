//! Sending.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use karman_remoting::proto::v2;
use tokio_util::sync::DropGuard;

use crate::client::Shared;
use crate::error::ClientError;
use crate::message::Message;
use crate::retry::{MAX_ATTEMPTS, backoff};
use crate::route::{BrokerRoute, Route};
use crate::session::Session;
use crate::transport::answer;

/// What the bodies of one batch may have together, in bytes.
const BATCH_MAX_BYTES: usize = 4 * 1024 * 1024;

/// A stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendReceipt {
    /// The id it was given here and is delivered with.
    pub message_id: String,
    /// The name of the broker that stored it.
    pub broker: String,
    /// Its place in its queue.
    pub offset: i64,
}

/// Sends messages. A clone is a handle to the same producer; all methods may be called by many tasks at once.
///
/// OK from the server means that the message survives what the topic's durability class says it survives.
#[derive(Clone, Debug)]
pub struct Producer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Arc<Shared>,
    session: Arc<Session>,
    turn: AtomicUsize,
    /// Ends the session with the last handle.
    _open: DropGuard,
}

/// Messages of one topic, encoded, with their ids.
struct Batch {
    topic: String,
    /// Follows from the message group of all of them.
    turn: Option<usize>,
    ids: Vec<String>,
    encoded: Vec<Bytes>,
}

impl Producer {
    pub(crate) fn new(client: Arc<Shared>, session: Arc<Session>, open: DropGuard) -> Self {
        Self(Arc::new(Inner { client, session, turn: AtomicUsize::new(0), _open: open }))
    }

    /// Sends one message: up to three attempts, each with the request timeout, on another broker where there is one,
    /// all with the same message id.
    ///
    /// After [`ClientError::Timeout`] or [`ClientError::Unreachable`] the message may have been stored all the same.
    /// So it may when this future is dropped, or twice when an attempt's answer was lost: consumers tell by the id.
    pub async fn send(&self, message: Message) -> Result<SendReceipt, ClientError> {
        let mut receipts = self.send_batch(vec![message]).await?;
        receipts.pop().expect("there is one result for each message")
    }

    /// Sends messages of one topic, and of one message group if they have one, in one request, which is much cheaper than one request each. Their bodies may have
    /// 4 MiB together. There is one result for each message, in their order; each stands for itself.
    ///
    /// Fails as a whole, after the same attempts as [`Producer::send`], when no server took the request.
    pub async fn send_batch(
        &self,
        messages: Vec<Message>,
    ) -> Result<Vec<Result<SendReceipt, ClientError>>, ClientError> {
        let inner = &*self.0;
        inner.client.check_open()?;
        let batch = inner.encode(messages)?;
        inner.session.declare(&batch.topic);
        let mut failed = Vec::new();
        let mut attempt = 1;
        loop {
            let route = inner.session.routes.get(&batch.topic).await?;
            let broker = inner.next_broker(&batch, &route, &failed)?;
            let error = match inner.attempt(&batch, &broker).await {
                Ok(results) => return Ok(results),
                Err(error) => error,
            };
            inner.learn(&batch.topic, &error);
            if attempt == MAX_ATTEMPTS || !error.is_retryable() {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "send is tried again");
            // Messages of a group stay where those before them are: elsewhere they would overtake them.
            if batch.turn.is_none() {
                failed.push(broker);
            }
            // Another broker is tried at once, unless this one asked for less load.
            let is_fresh = |next: &Arc<BrokerRoute>| failed.iter().all(|one| one.name != next.name);
            let another = batch.turn.is_none() && route.writable(0, &failed).is_some_and(is_fresh);
            if !another || error.code() == Some(v2::Code::TooManyRequests) {
                tokio::time::sleep(backoff(attempt)).await;
            }
            attempt += 1;
        }
    }
}

impl Inner {
    fn encode(&self, messages: Vec<Message>) -> Result<Batch, ClientError> {
        let invalid = |what: String| Err(ClientError::InvalidArgument(what));
        let Some(first) = messages.first() else { return invalid("the batch holds no message".into()) };
        let topic = first.topic().to_owned();
        if let Some(other) = messages.iter().find(|message| message.topic() != topic) {
            return invalid(format!(
                "a batch goes to one topic, this one names {topic:?} and {:?}",
                other.topic()
            ));
        }
        if messages.iter().any(|message| message.group() != first.group()) {
            return invalid("a batch has one message group; send a request for each".into());
        }
        let turn = first.group().map(turn_of);
        let size: usize = messages.iter().map(Message::body_size).sum();
        if size > BATCH_MAX_BYTES {
            let rule = format!("{BATCH_MAX_BYTES} are allowed in one request; send less at once");
            return invalid(format!("the bodies have {size} bytes together, {rule}"));
        }
        let now = SystemTime::now();
        let host = &self.session.transport.host;
        let (mut ids, mut encoded) = (Vec::with_capacity(messages.len()), Vec::with_capacity(messages.len()));
        for message in messages {
            let id = self.client.ids.next();
            encoded.push(message.encode(&id, now, host));
            ids.push(id);
        }
        Ok(Batch { topic, turn, ids, encoded })
    }

    fn next_broker(
        &self,
        batch: &Batch,
        route: &Route,
        failed: &[Arc<BrokerRoute>],
    ) -> Result<Arc<BrokerRoute>, ClientError> {
        let turn = batch.turn.unwrap_or_else(|| self.turn.fetch_add(1, Ordering::Relaxed));
        route
            .writable(turn, failed)
            .cloned()
            .ok_or_else(|| ClientError::NoQueue { topic: batch.topic.clone(), wanted: "writable" })
    }

    async fn attempt(
        &self,
        batch: &Batch,
        broker: &BrokerRoute,
    ) -> Result<Vec<Result<SendReceipt, ClientError>>, ClientError> {
        let transport = &self.session.transport;
        let (endpoint, timeout) = (&broker.endpoint, transport.request_timeout);
        let mut service = transport.service(endpoint)?;
        let request = v2::SendMessageRequest { messages: batch.encoded.clone() };
        let response =
            answer(endpoint, timeout, service.send_message(transport.request(request, timeout))).await?;
        let mixed =
            response.status.as_ref().is_some_and(|status| status.code == v2::Code::MultipleResults as i32);
        if !mixed {
            ClientError::of_status(endpoint, response.status)?;
        }
        if response.entries.len() != batch.ids.len() {
            let why = format!("{} entries for {} messages", response.entries.len(), batch.ids.len());
            return Err(ClientError::protocol(endpoint, why));
        }
        let receipt = |(entry, id): (v2::SendResultEntry, &String)| {
            ClientError::of_status(endpoint, entry.status)?;
            Ok(SendReceipt { message_id: id.clone(), broker: broker.name.clone(), offset: entry.offset })
        };
        Ok(response.entries.into_iter().zip(&batch.ids).map(receipt).collect())
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

/// Which of the brokers a message group belongs to: the same in every process (FNV-1a).
fn turn_of(group: &str) -> usize {
    let hash = group.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    usize::try_from(hash >> 33).expect("31 bits")
}
