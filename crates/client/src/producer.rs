//! Sending. Any task.

mod batching;
mod choice;
mod lane;
mod sink;

use std::sync::Arc;
use std::time::SystemTime;

use karman_remoting::proto::v2;
use karman_remoting::settings::MAX_BODY_SIZE_BYTES;
use karman_remoting::status::Rejection;
use karman_remoting::validate::message::BATCH_MAX;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

pub use self::batching::{BatchingOptions, BatchingProducer, Delivery};
use self::choice::Brokers;
pub use self::choice::{BrokerChoice, ChooseBroker, Choosing};
pub use self::sink::BatchingSink;
use crate::client::Shared;
use crate::error::ClientError;
use crate::message::{Birth, Message, Outgoing};
use crate::retry::{MAX_ATTEMPTS, backoff};
use crate::route::{BrokerRoute, Route, resource};
use crate::session::Session;
use crate::transport::{Transport, answer};

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

/// How a [`Producer`] sends.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProducerOptions {
    /// Which broker takes a message. [`BrokerChoice::RoundRobin`] by default.
    pub choice: BrokerChoice,
    /// Requests that may wait for their answers at the same time, at least 1; 1024 by default. One more waits for room,
    /// at most for the request timeout, and fails with [`ClientError::Full`].
    pub inflight_max: usize,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self { choice: BrokerChoice::default(), inflight_max: 1024 }
    }
}

impl ProducerOptions {
    /// Brokers are chosen so.
    #[must_use]
    pub fn choice(mut self, choice: BrokerChoice) -> Self {
        self.choice = choice;
        self
    }

    /// So many requests at the same time.
    #[must_use]
    pub fn inflight_max(mut self, inflight_max: usize) -> Self {
        self.inflight_max = inflight_max;
        self
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) client: Arc<Shared>,
    pub(crate) session: Arc<Session>,
    brokers: Brokers,
    inflight_max: usize,
    /// For one request each.
    places: Semaphore,
    /// Ends the session with the last handle.
    _open: DropGuard,
}

/// Messages of one topic as they travel, at least one. Those with a message group or a lite topic have one home.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) topic: Arc<str>,
    pub(crate) in_transaction: bool,
    pub(crate) messages: Vec<Outgoing>,
}

impl Producer {
    pub(crate) fn new(
        client: Arc<Shared>,
        session: Arc<Session>,
        options: &ProducerOptions,
        open: DropGuard,
    ) -> Self {
        let inflight_max = options.inflight_max.clamp(1, Semaphore::MAX_PERMITS);
        let (brokers, places) = (Brokers::new(options.choice.clone()), Semaphore::new(inflight_max));
        Self(Arc::new(Inner { client, session, brokers, inflight_max, places, _open: open }))
    }

    /// A producer that collects messages and sends them together, through this one.
    ///
    /// ```no_run
    /// # use karman_client::{BatchingOptions, Client, ClientError, Message};
    /// # async fn example(client: Client) -> Result<(), ClientError> {
    /// let producer = client.producer().batching(&BatchingOptions::default());
    /// let mut deliveries = Vec::new();
    /// for n in 0..1000 {
    ///     deliveries.push(producer.enqueue(Message::new("orders", format!("order {n}"))).await?);
    /// }
    /// for delivery in deliveries {
    ///     println!("{}", delivery.await?.message_id);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn batching(&self, options: &BatchingOptions) -> BatchingProducer {
        BatchingProducer::new(self.0.clone(), options)
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

    pub(crate) fn inner(&self) -> Arc<Inner> {
        self.0.clone()
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
        let timeout = self.session.transport.request_timeout;
        let place = tokio::time::timeout(timeout, self.places.acquire()).await;
        let _place = place.map_err(|_| ClientError::Full {
            limit: format!(
                "so many sends wait for their answers as may ({}, inflight_max); send less at once",
                self.inflight_max
            ),
            waited: timeout,
        })?;
        self.deliver(&batch).await
    }

    /// Up to three attempts, on another broker where there is one, all with the same message ids.
    pub(crate) async fn deliver(
        &self,
        batch: &Batch,
    ) -> Result<Vec<Result<Stored, ClientError>>, ClientError> {
        self.session.declare(&batch.topic);
        let mut failed: Vec<Arc<BrokerRoute>> = Vec::new();
        // Who may have stored the half message: a second one elsewhere would be a second transaction.
        let mut bound: Option<Arc<BrokerRoute>> = None;
        let mut attempt = 1;
        loop {
            let route = self.session.routes.get(&batch.topic).await?;
            let broker = match &bound {
                Some(broker) => broker.clone(),
                None => self.next_broker(batch, &route, &failed)?,
            };
            let error = match self.attempt(batch, &broker).await {
                Ok(results) => return Ok(results),
                Err(error) => error,
            };
            self.session.learn(&batch.topic, &error);
            if !error.is_retryable() {
                return Err(error);
            }
            self.brokers.failed(&broker.name, Instant::now());
            if attempt == MAX_ATTEMPTS {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "send is tried again");
            if batch.in_transaction && error.is_uncertain() {
                bound = Some(broker);
            } else {
                failed.push(broker);
            }
            // Another broker is tried at once, unless this one asked for less load.
            let is_new = |one: &Arc<BrokerRoute>| failed.iter().all(|other| other.name != one.name);
            let another = bound.is_none() && route.writers().iter().any(is_new);
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
        if messages.len() > BATCH_MAX {
            let rejection = Rejection::TooManyMessages { count: messages.len(), limit: BATCH_MAX };
            return Err(ClientError::illegal(rejection));
        }
        let mut outgoing = Vec::with_capacity(messages.len());
        let now = SystemTime::now();
        for (index, message) in messages.into_iter().enumerate() {
            outgoing.push(self.outgoing(index, message, now, in_transaction)?);
        }
        let size = outgoing.iter().map(|message| message.body_size).sum();
        if size > MAX_BODY_SIZE_BYTES {
            return Err(ClientError::illegal(Rejection::BatchTooLarge { size, limit: MAX_BODY_SIZE_BYTES }));
        }
        Ok(Batch { topic: topic.into(), in_transaction, messages: outgoing })
    }

    /// A message as it will travel, with an id of its own.
    pub(crate) fn outgoing(
        &self,
        index: usize,
        message: Message,
        time: SystemTime,
        in_transaction: bool,
    ) -> Result<Outgoing, ClientError> {
        let birth = Birth { time, host: &self.session.transport.host, in_transaction };
        message.encode(index, self.client.ids.next(time), &birth)
    }

    fn next_broker(
        &self,
        batch: &Batch,
        route: &Route,
        failed: &[Arc<BrokerRoute>],
    ) -> Result<Arc<BrokerRoute>, ClientError> {
        let first = batch.messages.first().expect("a batch holds a message");
        let broker = match &first.order_key {
            Some(key) => route.home(key, failed).cloned(),
            None => self.brokers.choose(&batch.topic, first.key.as_deref(), route, failed, Instant::now()),
        };
        broker.ok_or_else(|| ClientError::NoQueue { topic: batch.topic.to_string(), wanted: "writable" })
    }

    async fn attempt(
        &self,
        batch: &Batch,
        broker: &BrokerRoute,
    ) -> Result<Vec<Result<Stored, ClientError>>, ClientError> {
        let transport = &self.session.transport;
        let (endpoint, timeout) = (&broker.endpoint, transport.request_timeout);
        let mut service = transport.service(endpoint)?;
        let messages = batch.messages.iter().map(|message| message.bytes.clone()).collect();
        let request = v2::SendMessageRequest { messages };
        let begin = Instant::now();
        let response =
            answer(endpoint, timeout, service.send_message(transport.request(request, timeout))).await?;
        let now = Instant::now();
        self.brokers.answered(&broker.name, now - begin, now);
        let mixed =
            response.status.as_ref().is_some_and(|status| status.code == v2::Code::MultipleResults as i32);
        if !mixed {
            ClientError::of_status(endpoint, response.status)?;
        }
        if response.entries.len() != batch.messages.len() {
            let why = format!("{} entries for {} messages", response.entries.len(), batch.messages.len());
            return Err(ClientError::protocol(endpoint, why));
        }
        let stored = |(entry, message): (v2::SendResultEntry, &Outgoing)| {
            ClientError::of_status(endpoint, entry.status)?;
            let receipt = SendReceipt {
                message_id: message.id.clone(),
                broker: broker.name.clone(),
                offset: entry.offset,
                recall_handle: Some(entry.recall_handle).filter(|handle| !handle.is_empty()),
            };
            Ok(Stored { receipt, transaction_id: entry.transaction_id, endpoint: endpoint.clone() })
        };
        Ok(response.entries.into_iter().zip(&batch.messages).map(stored).collect())
    }
}
