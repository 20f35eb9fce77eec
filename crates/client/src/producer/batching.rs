//! Collecting: many messages in one request cost a server and a client a fifth of what they cost one by one. Any task.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use karman_remoting::settings::MAX_BODY_SIZE_BYTES;
use karman_remoting::validate::message::BATCH_MAX;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::ClientError;
use crate::message::{Message, Outgoing};
use crate::producer::lane::{Lane, Limits, ORDERED_LANES, Pending};
use crate::producer::{BatchingSink, Inner, SendReceipt};

/// What a message takes beside its bytes.
const OVERHEAD_BYTES: usize = 512;
/// Topics that lanes are kept for. What has no message ends by itself; more at a time are refused.
const TOPICS_MAX: usize = 4096;

/// How a [`BatchingProducer`] collects.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BatchingOptions {
    /// How long a message waits for others to share its request, to the microsecond; 500 µs by default. Requests that
    /// wait for their place collect without it.
    pub linger: Duration,
    /// Messages in one request, 1 to 4096; 512 by default.
    pub messages_max: usize,
    /// Bytes of their bodies together, at most 4 MiB; 1 MiB by default. A larger message travels alone.
    pub bytes_max: usize,
    /// Requests that wait for their answers at the same time, at least 1; 8 by default.
    pub requests_max: usize,
    /// Bytes of the messages that have no answer yet, at least those of one message, 4 GiB at most; 64 MiB by default.
    pub buffer_bytes_max: usize,
    /// How long a message may wait for its turn before it fails with [`ClientError::Expired`]; 30 s by default. Its
    /// attempts come on top of that.
    pub wait_max: Duration,
}

impl Default for BatchingOptions {
    fn default() -> Self {
        Self {
            linger: Duration::from_micros(500),
            messages_max: 512,
            bytes_max: 1024 * 1024,
            requests_max: 8,
            buffer_bytes_max: 64 * 1024 * 1024,
            wait_max: Duration::from_secs(30),
        }
    }
}

impl BatchingOptions {
    /// A message waits so long for others.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// So many messages in one request.
    #[must_use]
    pub fn messages_max(mut self, messages_max: usize) -> Self {
        self.messages_max = messages_max;
        self
    }

    /// So many bytes of bodies in one request.
    #[must_use]
    pub fn bytes_max(mut self, bytes_max: usize) -> Self {
        self.bytes_max = bytes_max;
        self
    }

    /// So many requests at the same time.
    #[must_use]
    pub fn requests_max(mut self, requests_max: usize) -> Self {
        self.requests_max = requests_max;
        self
    }

    /// So many bytes of messages without an answer.
    #[must_use]
    pub fn buffer_bytes_max(mut self, buffer_bytes_max: usize) -> Self {
        self.buffer_bytes_max = buffer_bytes_max;
        self
    }

    /// A message waits so long for its turn.
    #[must_use]
    pub fn wait_max(mut self, wait_max: Duration) -> Self {
        self.wait_max = wait_max;
        self
    }
}

/// Collects messages and sends those of a topic together; made by [`Producer::batching`](crate::Producer::batching). A
/// clone is a handle to the same.
///
/// Messages of one message group arrive in the order in which they were enqueued; so do those of one lite topic. Others
/// keep no order. What a server would refuse is refused at once, and never spoils the request of others.
///
/// When the last handle is dropped, what was collected is sent all the same, while the client is open.
/// [`Client::close`](crate::Client::close) waits for that.
#[derive(Clone, Debug)]
pub struct BatchingProducer(Arc<Hub>);

/// The lane of what has no order, and behind it those of what has one; `None` until they are needed.
type TopicLanes = [Option<Arc<Lane>>; 1 + ORDERED_LANES];

#[derive(Debug)]
struct Hub {
    producer: Arc<Inner>,
    limits: Arc<Limits>,
    /// Bytes.
    room: Arc<Semaphore>,
    room_bytes: u32,
    lanes: Mutex<HashMap<Arc<str>, TopicLanes>>,
    /// Ends the lanes when they have sent what they hold.
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// What became of a message that was enqueued: a future with its receipt. Dropping it takes nothing back.
///
/// Resolves at the latest after [`BatchingOptions::wait_max`] and the attempts of the requests before it.
#[derive(Debug)]
#[must_use = "without it nobody knows whether the message was stored"]
pub struct Delivery(oneshot::Receiver<Result<SendReceipt, ClientError>>);

impl Future for Delivery {
    type Output = Result<SendReceipt, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // Nobody is left to tell only when the client's runtime has ended under it.
        Poll::Ready(ready!(Pin::new(&mut self.0).poll(context)).unwrap_or(Err(ClientError::Closed)))
    }
}

impl BatchingProducer {
    pub(super) fn new(producer: Arc<Inner>, options: &BatchingOptions) -> Self {
        let limits = Limits {
            linger: options.linger,
            messages_max: options.messages_max.clamp(1, BATCH_MAX),
            bytes_max: options.bytes_max.clamp(1, MAX_BODY_SIZE_BYTES),
            wait_max: options.wait_max,
            requests: Arc::new(Semaphore::new(options.requests_max.clamp(1, Semaphore::MAX_PERMITS))),
        };
        let room_bytes = u32::try_from(options.buffer_bytes_max).unwrap_or(u32::MAX);
        let stop = producer.client.stop_token();
        Self(Arc::new(Hub {
            producer,
            limits: Arc::new(limits),
            room: Arc::new(Semaphore::new(room_bytes as usize)),
            room_bytes,
            lanes: Mutex::default(),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        }))
    }

    /// Takes a message; the receipt comes by the [`Delivery`]. Waits while the buffer is full, at most for the request
    /// timeout, then fails with [`ClientError::Full`] and the message was not taken.
    pub async fn enqueue(&self, message: Message) -> Result<Delivery, ClientError> {
        let hub = &self.0;
        hub.producer.client.check_open()?;
        let topic = message.topic().to_owned();
        let outgoing = hub.producer.outgoing(0, message, SystemTime::now(), false)?;
        let room = hub.room_for(&outgoing).await?;
        let (told, delivery) = oneshot::channel();
        hub.push(&topic, Pending { message: outgoing, since: Instant::now(), told, _room: room })?;
        Ok(Delivery(delivery))
    }

    /// Sends one message together with others, and waits for its receipt. When this future is dropped, the message is
    /// sent all the same if it was taken.
    pub async fn send(&self, message: Message) -> Result<SendReceipt, ClientError> {
        self.enqueue(message).await?.await
    }

    /// Sends what was collected without waiting for more, and returns when each message that was enqueued before has its
    /// answer. Messages that are enqueued meanwhile wait.
    pub async fn flush(&self) {
        self.hurry();
        // In turn with those who wait for room. The semaphore is never closed.
        let _all = self.0.room.acquire_many(self.0.room_bytes).await;
    }

    /// The same as a [`Sink`](futures_util::Sink) of messages, for streams to be forwarded to.
    pub fn into_sink(self) -> BatchingSink {
        BatchingSink::new(self)
    }

    pub(super) fn hurry(&self) {
        let lanes: Vec<Arc<Lane>> = self.0.lanes.lock().values().flatten().flatten().cloned().collect();
        lanes.iter().for_each(|lane| lane.flush());
    }
}

impl Hub {
    async fn room_for(&self, message: &Outgoing) -> Result<OwnedSemaphorePermit, ClientError> {
        let size =
            u32::try_from(message.bytes.len() + OVERHEAD_BYTES).unwrap_or(u32::MAX).min(self.room_bytes);
        if let Ok(room) = self.room.clone().try_acquire_many_owned(size) {
            return Ok(room);
        }
        self.wait_for_room(size).await
    }

    async fn wait_for_room(&self, size: u32) -> Result<OwnedSemaphorePermit, ClientError> {
        let waited = self.producer.session.transport.request_timeout;
        let room = tokio::time::timeout(waited, self.room.clone().acquire_many_owned(size)).await;
        let limit = || {
            let rule = "messages without an answer fill buffer_bytes_max";
            format!("{rule} ({} bytes); send less at once, or give it more", self.room_bytes)
        };
        // The semaphore is never closed.
        room.map_err(|_| ClientError::Full { limit: limit(), waited })?.map_err(|_| ClientError::Closed)
    }

    fn push(&self, topic: &str, mut pending: Pending) -> Result<(), ClientError> {
        let place = match &pending.message.order_key {
            None => 0,
            Some(key) => {
                let mut hasher = DefaultHasher::new();
                key.hash(&mut hasher);
                1 + usize::try_from(hasher.finish() % ORDERED_LANES as u64).unwrap_or(0)
            }
        };
        loop {
            let lane = self.lane(topic, place)?;
            match lane.push(pending, &self.limits) {
                None => return Ok(()),
                // The lane has ended: for want of messages, then there is a new one, or with the client.
                Some(given_back) => pending = given_back,
            }
            if self.stop.is_cancelled() {
                return Err(ClientError::Closed);
            }
            let mut lanes = self.lanes.lock();
            if let Some(slot) = lanes.get_mut(topic).map(|of_topic| &mut of_topic[place]) {
                slot.take_if(|current| Arc::ptr_eq(current, &lane));
            }
        }
    }

    fn lane(&self, topic: &str, place: usize) -> Result<Arc<Lane>, ClientError> {
        let mut lanes = self.lanes.lock();
        if let Some(lane) = lanes.get(topic).and_then(|of_topic| of_topic[place].as_ref()) {
            return Ok(lane.clone());
        }
        if lanes.len() >= TOPICS_MAX && !lanes.contains_key(topic) {
            lanes.retain(|_, of_topic| of_topic.iter().flatten().any(|lane| !lane.is_closed()));
        }
        if lanes.len() >= TOPICS_MAX && !lanes.contains_key(topic) {
            let limit = format!("{TOPICS_MAX} topics have messages that wait; use another producer");
            return Err(ClientError::Full { limit, waited: Duration::ZERO });
        }
        let name: Arc<str> = topic.into();
        let lane = Arc::new(Lane::new(name.clone(), place > 0));
        let running = lane.clone().run(self.producer.clone(), self.limits.clone(), self.stop.clone());
        self.producer.client.spawn(running);
        lanes.entry(name).or_default()[place] = Some(lane.clone());
        Ok(lane)
    }
}
