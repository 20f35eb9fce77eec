//! Requests and the replies to them: the pattern of `docs/request-reply.md`.
//!
//! A requester has one task of its client, which owns a reader for each queue of the topic of replies; all end with the
//! last handle or with the client.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::DropGuard;

use karman_remoting::validate::message::TTL_PROPERTY;

use crate::client::Client;
use crate::codec::{Codec, CodecError};
use crate::error::ClientError;
use crate::message::{FilterExpression, Message};
use crate::producer::Producer;
use crate::pull_consumer::{MessageQueue, PullConsumer, QueryOffset};
use crate::view::MessageView;

/// Which request a reply belongs to.
const CORRELATION_ID: &str = "correlation-id";
/// The topic for the reply.
const REPLY_TO: &str = "reply-to";
/// The tag for the reply: the name of the requester.
const REPLY_TAG: &str = "reply-tag";

/// What one pull can bring, and how long it waits for it; servers give and wait no more.
const PULL_MAX: u32 = 32;
const PULL_WAIT: Duration = Duration::from_secs(20);
/// Between a pull that failed and the next one.
const PAUSE: Duration = Duration::from_secs(1);
/// How often queues are looked for that were not there before.
const QUEUES_INTERVAL: Duration = Duration::from_secs(5);

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Nothing was sent.
    #[error("{max} requests wait for their replies, as many as may; wait for some of them, or allow more")]
    TooManyPending {
        /// [`RequesterOptions::pending_max`].
        max: usize,
    },
    /// The request was not sent, or it is not known whether it was.
    #[error("the request was not sent: {0}")]
    Send(#[from] ClientError),
    /// The time was over. The service may have done its work all the same, or be about to.
    #[error(
        "no reply within {} ms to request {correlation_id} of {topic:?}; the service may have done its work all the same",
        .timeout.as_millis()
    )]
    NoReply {
        /// Where the request went.
        topic: String,
        /// What would have joined the reply to it.
        correlation_id: u64,
        /// How long it was waited for.
        timeout: Duration,
    },
}

/// Why there is no message to reply with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// It does not say where the reply goes.
    #[error(
        "message {message_id} of {topic:?} is no request: it has no property {property:?}; requests are sent by a Requester"
    )]
    NoRequest {
        /// Which message.
        message_id: String,
        /// Its topic.
        topic: String,
        /// What it lacks.
        property: &'static str,
    },
    /// The value cannot be written.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// How a [`Requester`] works.
///
/// ```
/// let options = karman_client::RequesterOptions::default().pending_max(64);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RequesterOptions {
    /// Requests that wait for their replies at the same time; one more is refused. 1024 by default.
    pub pending_max: usize,
}

impl Default for RequesterOptions {
    fn default() -> Self {
        Self { pending_max: 1024 }
    }
}

impl RequesterOptions {
    /// So many requests wait at the same time.
    #[must_use]
    pub fn pending_max(mut self, pending_max: usize) -> Self {
        self.pending_max = pending_max;
        self
    }
}

/// Sends requests and waits for their replies. A clone is a handle to the same; any number of tasks may use it at once.
///
/// It reads the topic of replies from where it ended when the requester was made, and only what bears its name, which is
/// made anew for each requester. Replies to a requester that has ended are read by nobody.
///
/// ```no_run
/// use std::time::Duration;
///
/// use karman_client::{Client, Message, RequestError, RequesterOptions};
///
/// # async fn example(client: Client) -> Result<(), RequestError> {
/// let options = RequesterOptions::default();
/// let requester = client.requester("squares-replies", "squares-requesters", &options).await?;
/// let reply = requester.request(Message::new("squares-requests", "5"), Duration::from_secs(3)).await?;
/// println!("{:?}", reply.body());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Requester(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    replies: String,
    producer: Producer,
    waiting: Arc<Waiting>,
    pending_max: usize,
    /// Ends the readers with the last handle.
    _open: DropGuard,
}

impl Client {
    /// A requester whose replies come by `replies`, a topic of the type NORMAL that is there already. It pulls in the name
    /// of `group`, which need not be there and keeps nothing of it.
    pub async fn requester(
        &self,
        replies: impl Into<String>,
        group: impl Into<String>,
        options: &RequesterOptions,
    ) -> Result<Requester, ClientError> {
        let (replies, consumer) = (replies.into(), self.pull_consumer(group)?);
        let name = format!("{:032x}", rand::random::<u128>());
        let waiting = Arc::new(Waiting::default());
        // Before the first request, so that no reply is missed.
        let queues = consumer.queues(&replies).await?;
        if queues.is_empty() {
            return Err(ClientError::NoQueue { topic: replies, wanted: "readable" });
        }
        let ends = queues.iter().map(|queue| consumer.query_offset(queue, QueryOffset::End));
        let ends = futures_util::future::try_join_all(ends).await?;
        let filter = FilterExpression::tag(&name);
        let reading = Reading { consumer, replies: replies.clone(), filter, waiting: waiting.clone() };
        let places = queues.into_iter().zip(ends).collect();
        let stop = self.0.stop_token();
        let open = stop.clone().drop_guard();
        let closed = waiting.clone();
        self.0.spawn(async move {
            stop.run_until_cancelled(Arc::new(reading).run(places)).await;
            closed.close();
        });
        let (producer, pending_max) = (self.producer(), options.pending_max);
        Ok(Requester(Arc::new(Inner { name, replies, producer, waiting, pending_max, _open: open })))
    }
}

impl Requester {
    /// Sends `message` as a request, and waits for its reply at most for `timeout`, which is also the request's time to
    /// live: a service that was away does not work for who has given up.
    ///
    /// The request is handled at least once, as every message is. When this future is dropped the reply is too.
    pub async fn request(&self, message: Message, timeout: Duration) -> Result<MessageView, RequestError> {
        let Inner { name, replies, producer, waiting, pending_max, .. } = &*self.0;
        let topic = message.topic().to_owned();
        let (pending, reply) = waiting.begin(*pending_max)?;
        let correlation_id = pending.id;
        let request = message
            .property(CORRELATION_ID, correlation_id.to_string())
            .property(REPLY_TO, replies)
            .property(REPLY_TAG, name)
            .time_to_live(timeout);
        let answered = tokio::time::timeout(timeout, async {
            producer.send(request).await?;
            // Nobody who could reply is left: the client is closed.
            reply.await.map_err(|_| RequestError::Send(ClientError::Closed))
        });
        answered.await.unwrap_or(Err(RequestError::NoReply { topic, correlation_id, timeout }))
    }

    /// Replies that had nobody who waited for them: they came too late, or a second time.
    ///
    /// ```no_run
    /// # fn example(requester: karman_client::Requester) {
    /// println!("{} replies were dropped", requester.late_replies());
    /// # }
    /// ```
    pub fn late_replies(&self) -> u64 {
        self.0.waiting.late.load(Ordering::Relaxed)
    }
}

impl MessageView {
    /// The reply to a request, to be sent by any producer: it has the topic, the tag and the correlation id that the request
    /// asks for, and its time to live.
    ///
    /// A service sends it before the request is done with: when that fails, the handler fails and the request comes again. A
    /// request that cannot be answered is best answered with an error, in whatever form the two have agreed upon.
    ///
    /// ```no_run
    /// use karman_client::{Client, ClientError, FilterExpression, MessageView, PushConsumer, PushOptions};
    ///
    /// fn service(client: &Client) -> Result<PushConsumer, ClientError> {
    ///     let producer = client.producer();
    ///     let handle = move |request: MessageView| {
    ///         let producer = producer.clone();
    ///         async move {
    ///             let reply = request.reply(format!("{} bytes", request.body().len()))?;
    ///             producer.send(reply).await?;
    ///             Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    ///         }
    ///     };
    ///     let requests = [("requests", FilterExpression::all())];
    ///     client.push_consumer("service", requests, &PushOptions::default(), handle)
    /// }
    /// ```
    pub fn reply(&self, body: impl Into<Bytes>) -> Result<Message, ReplyError> {
        let address = Address::of(self)?;
        Ok(address.write_on(Message::new(address.topic, body)))
    }

    /// [`MessageView::reply`] with a value as body, as [`Message::encoded`] writes it.
    ///
    /// ```
    /// use karman_client::{Message, MessageView, Protobuf, ReplyError};
    ///
    /// fn answer(request: &MessageView) -> Result<Message, ReplyError> {
    ///     request.reply_encoded(Protobuf, &"a book".to_owned())
    /// }
    /// ```
    pub fn reply_encoded<T, C: Codec<T>>(&self, codec: C, value: &T) -> Result<Message, ReplyError> {
        let address = Address::of(self)?;
        Ok(address.write_on(Message::encoded(address.topic, codec, value)?))
    }
}

/// What a request says of its reply.
struct Address<'a> {
    topic: &'a str,
    tag: &'a str,
    correlation_id: &'a str,
    time_to_live: Option<Duration>,
}

impl<'a> Address<'a> {
    fn of(request: &'a MessageView) -> Result<Self, ReplyError> {
        let needed = |property| {
            request.property(property).ok_or_else(|| ReplyError::NoRequest {
                message_id: request.message_id().to_owned(),
                topic: request.topic().to_owned(),
                property,
            })
        };
        let time_to_live = request.property(TTL_PROPERTY).and_then(|text| text.parse().ok());
        Ok(Self {
            topic: needed(REPLY_TO)?,
            tag: needed(REPLY_TAG)?,
            correlation_id: needed(CORRELATION_ID)?,
            time_to_live: time_to_live.map(Duration::from_millis),
        })
    }

    fn write_on(&self, reply: Message) -> Message {
        let reply = reply.tag(self.tag).property(CORRELATION_ID, self.correlation_id);
        match self.time_to_live {
            Some(time_to_live) => reply.time_to_live(time_to_live),
            None => reply,
        }
    }
}

/// The requests that wait, by their correlation ids.
#[derive(Debug, Default)]
struct Waiting {
    requests: Mutex<Requests>,
    late: AtomicU64,
}

#[derive(Debug, Default)]
struct Requests {
    waiting: HashMap<u64, oneshot::Sender<MessageView>>,
    next_id: u64,
    is_closed: bool,
}

/// Forgets its request when it is dropped.
#[derive(Debug)]
struct Pending<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.waiting.requests.lock().waiting.remove(&self.id);
    }
}

impl Waiting {
    fn begin(&self, max: usize) -> Result<(Pending<'_>, oneshot::Receiver<MessageView>), RequestError> {
        let mut requests = self.requests.lock();
        if requests.is_closed {
            return Err(ClientError::Closed.into());
        }
        if requests.waiting.len() >= max {
            return Err(RequestError::TooManyPending { max });
        }
        let id = requests.next_id;
        requests.next_id += 1;
        let (sender, reply) = oneshot::channel();
        requests.waiting.insert(id, sender);
        Ok((Pending { waiting: self, id }, reply))
    }

    fn deliver(&self, reply: MessageView) {
        let id = reply.property(CORRELATION_ID).and_then(|id| id.parse::<u64>().ok());
        let request = id.and_then(|id| self.requests.lock().waiting.remove(&id));
        if request.is_none_or(|request| request.send(reply).is_err()) {
            self.late.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// No reply will come any more.
    fn close(&self) {
        let mut requests = self.requests.lock();
        requests.is_closed = true;
        requests.waiting.clear();
    }
}

struct Reading {
    consumer: PullConsumer,
    replies: String,
    filter: FilterExpression,
    waiting: Arc<Waiting>,
}

impl Reading {
    /// For ever. A queue that was not there before is read from its beginning: what is in it for this requester came later.
    async fn run(self: Arc<Self>, places: Vec<(MessageQueue, i64)>) {
        let mut known = HashSet::new();
        let mut readers = JoinSet::new();
        for (queue, offset) in places {
            known.insert(key_of(&queue));
            readers.spawn(self.clone().read(queue, Some(offset)));
        }
        loop {
            tokio::time::sleep(QUEUES_INTERVAL).await;
            match self.consumer.queues(&self.replies).await {
                Ok(queues) => {
                    for queue in queues.into_iter().filter(|queue| known.insert(key_of(queue))) {
                        readers.spawn(self.clone().read(queue, None));
                    }
                }
                Err(error) => tracing::debug!(topic = self.replies, %error, "no route for replies"),
            }
        }
    }

    /// One queue, for ever. Others' replies are passed over by the broker.
    async fn read(self: Arc<Self>, mut queue: MessageQueue, mut place: Option<i64>) {
        loop {
            let Err(error) = self.step(&queue, &mut place).await else { continue };
            tracing::debug!(?queue, %error, "replies cannot be read");
            if error.code() == Some(crate::Code::IllegalOffset) {
                // What lay there is gone, by its age or with a broker that had it alone.
                place = None;
            }
            tokio::time::sleep(PAUSE).await;
            // Its broker may be another node meanwhile.
            let queues = self.consumer.queues(&self.replies).await.unwrap_or_default();
            if let Some(same) = queues.into_iter().find(|other| key_of(other) == key_of(&queue)) {
                queue = same;
            }
        }
    }

    async fn step(&self, queue: &MessageQueue, place: &mut Option<i64>) -> Result<(), ClientError> {
        let offset = match *place {
            Some(offset) => offset,
            None => self.consumer.query_offset(queue, QueryOffset::Beginning).await?,
        };
        let pulled = self.consumer.pull(queue, offset, PULL_MAX, &self.filter, PULL_WAIT).await?;
        *place = Some(pulled.next_offset);
        pulled.messages.into_iter().for_each(|reply| self.waiting.deliver(reply));
        Ok(())
    }
}

fn key_of(queue: &MessageQueue) -> (String, i32) {
    (queue.broker().to_owned(), queue.id())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::message::Birth;

    fn delivered(message: Message) -> MessageView {
        let birth = Birth { time: SystemTime::UNIX_EPOCH, host: "here", in_transaction: false };
        MessageView::decode(message.encode(0, "01AB".into(), &birth).unwrap().bytes, "n:1").unwrap()
    }

    fn reply_to(id: u64) -> MessageView {
        delivered(Message::new("replies", "25").property(CORRELATION_ID, id.to_string()))
    }

    #[test]
    fn a_reply_goes_where_the_request_asks_for_it_and_lives_as_long() {
        let request =
            Message::new("requests", "5").property(CORRELATION_ID, "17").property(REPLY_TO, "replies");
        let request = delivered(request.property(REPLY_TAG, "anna").time_to_live(Duration::from_secs(3)));
        let reply = Message::new("replies", "25").tag("anna").property(CORRELATION_ID, "17");
        let reply = reply.time_to_live(Duration::from_secs(3));
        assert_eq!(request.reply("25").unwrap(), reply);
        let encoded = request.reply_encoded(crate::Raw, &Bytes::from_static(b"25")).unwrap();
        assert_eq!(encoded, reply.property("content-type", "application/octet-stream"));
    }

    #[test]
    fn what_is_no_request_cannot_be_replied_to_and_is_named() {
        let message =
            Message::new("requests", "5").property(CORRELATION_ID, "17").property(REPLY_TO, "replies");
        let error = delivered(message).reply("25").unwrap_err().to_string();
        assert!(error.contains("01AB") && error.contains(REPLY_TAG), "{error}");
    }

    #[tokio::test]
    async fn a_reply_comes_to_its_request_and_late_ones_and_second_ones_are_counted() {
        let waiting = Waiting::default();
        let (first, first_reply) = waiting.begin(9).unwrap();
        let (second, second_reply) = waiting.begin(9).unwrap();
        waiting.deliver(reply_to(second.id));
        waiting.deliver(reply_to(second.id));
        assert_eq!(second_reply.await.unwrap(), reply_to(second.id));
        assert_eq!(waiting.late.load(Ordering::Relaxed), 1);
        let id = first.id;
        drop(first);
        waiting.deliver(reply_to(id));
        assert!(first_reply.await.is_err());
        waiting.deliver(delivered(Message::new("replies", "to nobody")));
        assert_eq!(waiting.late.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn requests_are_bounded_and_end_when_the_client_is_closed() {
        let waiting = Waiting::default();
        let (held, reply) = waiting.begin(1).unwrap();
        assert!(matches!(waiting.begin(1), Err(RequestError::TooManyPending { max: 1 })));
        drop(held);
        let (_held, other) = waiting.begin(1).unwrap();
        waiting.close();
        assert!(reply.await.is_err() && other.await.is_err());
        assert!(matches!(waiting.begin(9), Err(RequestError::Send(ClientError::Closed))));
    }
}
