//! Request and reply: a service that computes squares, requesters that wait for its answers, each for its own.
//!
//! The pattern and its limits are described in `docs/request-reply.md`.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use karman_client::{
    Client, ClientOptions, FilterExpression, Message, MessageQueue, MessageView, Producer, PullConsumer,
    PushConsumer, PushOptions, QueryOffset,
};
use karman_examples::Operator;
use karman_remoting::proto::v2::MessageType;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

const REQUESTS: &str = "squares-requests";
const REPLIES: &str = "squares-replies";
/// Which request a reply belongs to.
const CORRELATION_ID: &str = "correlation-id";
/// The topic for the reply.
const REPLY_TO: &str = "reply-to";
/// The tag for the reply: the name of the requester.
const REPLY_TAG: &str = "reply-tag";

const TIMEOUT: Duration = Duration::from_secs(5);
/// For an answer that will not come.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1);
const WAIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_secs(1);

/// Requests that wait, by their correlation id.
type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<MessageView>>>>;

/// Sends requests and waits for their replies. Any number of tasks may use it at once.
struct Requester {
    name: String,
    producer: Producer,
    waiting: Waiting,
    /// Reads the replies; ends with the requester.
    _readers: JoinSet<()>,
}

impl Requester {
    /// Reads every queue of the topic of replies from its end on: what was said before is for nobody here.
    async fn new(client: &Client, name: &str) -> anyhow::Result<Self> {
        let consumer = Arc::new(client.pull_consumer("squares-requesters")?);
        let waiting = Waiting::default();
        let mut readers = JoinSet::new();
        for queue in consumer.queues(REPLIES).await? {
            let end = consumer.query_offset(&queue, QueryOffset::End).await?;
            let filter = FilterExpression::tag(name);
            readers.spawn(read(consumer.clone(), queue, end, filter, waiting.clone()));
        }
        let (name, producer) = (name.to_owned(), client.producer());
        Ok(Self { name, producer, waiting, _readers: readers })
    }

    /// The answer, or an error when there is none within `timeout`: the service may have done its work all the same.
    async fn request(&self, body: String, timeout: Duration) -> anyhow::Result<MessageView> {
        let message = Message::new(REQUESTS, body).property(REPLY_TO, REPLIES).property(REPLY_TAG, &self.name);
        // Nobody answers what nobody waits for any more.
        let message = message.time_to_live(timeout);
        let correlation_id = new_id();
        let (sender, reply) = oneshot::channel();
        locked(&self.waiting).insert(correlation_id.clone(), sender);
        let result = tokio::time::timeout(timeout, async {
            self.producer.send(message.property(CORRELATION_ID, &correlation_id)).await?;
            reply.await.context("the requester is gone")
        });
        let result = result.await;
        locked(&self.waiting).remove(&correlation_id);
        result.with_context(|| format!("no reply within {timeout:?}"))?
    }
}
