//! Sending.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use karman_remoting::proto::v2;
use tokio_util::sync::DropGuard;

use crate::client::Shared;
use crate::error::ClientError;
use crate::message::{Birth, Message};
use crate::retry::{MAX_ATTEMPTS, backoff};
use crate::route::{BrokerRoute, Route, resource};
use crate::session::Session;
use crate::transport::{Transport, answer};

/// What the bodies of one batch may have together, in bytes.
const BATCH_MAX_BYTES: usize = 4 * 1024 * 1024;

/// A stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendReceipt {
    /// The id it was given here and is delivered with.
    pub message_id: String,
    /// The name of the broker that stored it.
    pub broker: String,
    /// Its place in its queue; of no meaning while it is held back, for its time or for a transaction.
    pub offset: i64,
    /// Of a message with a delivery time: what [`Producer::recall`] takes.
    pub recall_handle: Option<String>,
}

/// A stored message with what its transaction needs.
pub(crate) struct Stored {
    pub(crate) receipt: SendReceipt,
    /// Empty when it is of no transaction.
    pub(crate) transaction_id: String,
    /// Where it was stored.
    pub(crate) endpoint: String,
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
    /// What their order is kept within.
    order_key: Option<String>,
    in_transaction: bool,
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
    /// After [`ClientError::Timeout`] or [`ClientError::Disconnected`] the message may have been stored all the same, and
    /// so it may when this future is dropped. A broker that gets the same message again, as a repeated attempt, does not
    /// store it twice; two brokers may each have stored it when the first one's answer was lost: consumers tell by the id.
    pub async fn send(&self, message: Message) -> Result<SendReceipt, ClientError> {
        let mut receipts = self.send_batch(vec![message]).await?;
        receipts.pop().expect("there is one result for each message")
    }

    /// Sends messages of one topic in one request, which is much cheaper than one request each. Their bodies may have
    /// 4 MiB together. There is one result for each message, in their order; each stands for itself.
    ///
    /// Messages with a message group keep their order; those of one batch must be of one group, unless the topic is on one
    /// broker alone. Fails as a whole, after the same attempts as [`Producer::send`], when no server took the request.
    pub async fn send_batch(
        &self,
        messages: Vec<Message>,
    ) -> Result<Vec<Result<SendReceipt, ClientError>>, ClientError> {
        let stored = self.0.send(messages, false).await?;
        Ok(stored.into_iter().map(|result| result.map(|stored| stored.receipt)).collect())
    }

    /// Takes back a message that waits for its delivery time; `recall_handle` is that of its [`SendReceipt`], which may be
    /// kept anywhere meanwhile. The id of the message.
    ///
    /// May be repeated, and is, up to three times. Refused with `MESSAGE_NOT_FOUND` when it is too late.
    pub async fn recall(&self, topic: &str, recall_handle: &str) -> Result<String, ClientError> {
        self.0.client.check_open()?;
        let transport = self.transport();
        // Any node passes it on to the broker that the handle names.
        let (endpoint, timeout) = (&*transport.access_point, transport.request_timeout);
        let request = v2::RecallMessageRequest {
            topic: Some(resource(topic)),
            recall_handle: recall_handle.to_owned(),
        };
        let recall = |endpoint: Arc<str>| {
            let request = transport.request(request.clone(), timeout);
            async move {
                let mut service = transport.service(&endpoint)?;
                let response = answer(&endpoint, timeout, service.recall_message(request)).await?;
                ClientError::of_status(&endpoint, response.status).map(|()| response.message_id)
            }
        };
        transport.repeated(endpoint, recall).await
    }

    /// Stores the message of a transaction where nobody sees it yet.
    pub(crate) async fn send_half(&self, message: Message) -> Result<Stored, ClientError> {
        let mut stored = self.0.send(vec![message], true).await?;
        let half = stored.pop().expect("there is one result for each message")?;
        if half.transaction_id.is_empty() {
            return Err(ClientError::protocol(&half.endpoint, "no transaction id"));
        }
        Ok(half)
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.0.session.transport
    }
}

impl Inner {
    async fn send(
        &self,
        messages: Vec<Message>,
        in_transaction: bool,
    ) -> Result<Vec<Result<Stored, ClientError>>, ClientError> {
        self.client.check_open()?;
        let batch = self.encode(messages, in_transaction)?;
        self.session.declare(&batch.topic);
        let mut failed: Vec<Arc<BrokerRoute>> = Vec::new();
        // Who may have stored the half message: a second one elsewhere would be a second transaction.
        let mut bound: Option<Arc<BrokerRoute>> = None;
        let mut attempt = 1;
        loop {
            let route = self.session.routes.get(&batch.topic).await?;
            let broker = match &bound {
                Some(broker) => broker.clone(),
                None => self.next_broker(&batch, &route, &failed)?,
            };
            let error = match self.attempt(&batch, &broker).await {
                Ok(results) => return Ok(results),
                Err(error) => error,
            };
            self.session.learn(&batch.topic, &error);
            if attempt == MAX_ATTEMPTS || !error.is_retryable() {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "send is tried again");
            if batch.in_transaction && error.is_uncertain() {
                bound = Some(broker);
            } else {
                failed.push(broker);
            }
            // Another broker is tried at once, unless this one asked for less load.
            let another = bound.is_none()
                && route
                    .writable(0, &failed)
                    .is_some_and(|next| failed.iter().all(|one| one.name != next.name));
            if !another || error.code() == Some(v2::Code::TooManyRequests) {
                tokio::time::sleep(backoff(attempt)).await;
            }
            attempt += 1;
        }
    }

    fn encode(&self, messages: Vec<Message>, in_transaction: bool) -> Result<Batch, ClientError> {
        let invalid = |what: String| Err(ClientError::InvalidArgument(what));
        let Some(first) = messages.first() else { return invalid("the batch holds no message".into()) };
        let topic = first.topic().to_owned();
        if let Some(other) = messages.iter().find(|message| message.topic() != topic) {
            return invalid(format!(
                "a batch goes to one topic, this one names {topic:?} and {:?}",
                other.topic()
            ));
        }
        let size: usize = messages.iter().map(Message::body_size).sum();
        if size > BATCH_MAX_BYTES {
            let rule = format!("{BATCH_MAX_BYTES} are allowed in one request; send less at once");
            return invalid(format!("the bodies have {size} bytes together, {rule}"));
        }
        let order_key = first.order_key().map(str::to_owned);
        let host = &self.session.transport.host;
        let birth = Birth { time: SystemTime::now(), host, in_transaction };
        let (mut ids, mut encoded) = (Vec::with_capacity(messages.len()), Vec::with_capacity(messages.len()));
        for message in messages {
            let id = self.client.ids.next();
            encoded.push(message.encode(&id, &birth)?);
            ids.push(id);
        }
        Ok(Batch { topic, order_key, in_transaction, ids, encoded })
    }

    fn next_broker(
        &self,
        batch: &Batch,
        route: &Route,
        failed: &[Arc<BrokerRoute>],
    ) -> Result<Arc<BrokerRoute>, ClientError> {
        let broker = match &batch.order_key {
            Some(key) => route.home(key, failed),
            None => route.writable(self.turn.fetch_add(1, Ordering::Relaxed), failed),
        };
        broker.cloned().ok_or_else(|| ClientError::NoQueue { topic: batch.topic.clone(), wanted: "writable" })
    }

    async fn attempt(
        &self,
        batch: &Batch,
        broker: &BrokerRoute,
    ) -> Result<Vec<Result<Stored, ClientError>>, ClientError> {
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
        let stored = |(entry, id): (v2::SendResultEntry, &String)| {
            ClientError::of_status(endpoint, entry.status)?;
            let receipt = SendReceipt {
                message_id: id.clone(),
                broker: broker.name.clone(),
                offset: entry.offset,
                recall_handle: Some(entry.recall_handle).filter(|handle| !handle.is_empty()),
            };
            Ok(Stored { receipt, transaction_id: entry.transaction_id, endpoint: endpoint.clone() })
        };
        Ok(response.entries.into_iter().zip(&batch.ids).map(stored).collect())
    }
}
