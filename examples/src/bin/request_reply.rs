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
        let message =
            Message::new(REQUESTS, body).property(REPLY_TO, REPLIES).property(REPLY_TAG, &self.name);
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

/// One queue of replies, for ever. Others' replies are passed over by the broker.
async fn read(
    consumer: Arc<PullConsumer>,
    queue: MessageQueue,
    mut offset: i64,
    filter: FilterExpression,
    waiting: Waiting,
) {
    loop {
        match consumer.pull(&queue, offset, 32, &filter, WAIT).await {
            Ok(pulled) => {
                offset = pulled.next_offset;
                for reply in pulled.messages {
                    let id = reply.property(CORRELATION_ID).unwrap_or_default();
                    let request = locked(&waiting).remove(id);
                    // A reply that came twice, or too late, has nobody who waits for it.
                    if let Some(request) = request {
                        let _ = request.send(reply);
                    }
                }
            }
            Err(error) => {
                eprintln!("replies of {queue:?} cannot be read: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A lock that is never held while anything can panic.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_id() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // The tag keeps requesters apart; within one a number will do.
    NEXT.fetch_add(1, Ordering::Relaxed).to_string()
}

/// Answers every request that can be answered. A request may come again: squaring twice does no harm.
fn service(client: &Client) -> anyhow::Result<PushConsumer> {
    let producer = client.producer();
    let handle = move |request: MessageView| {
        let producer = producer.clone();
        async move {
            let property = |name| request.property(name).map(str::to_owned);
            let (Some(topic), Some(tag), Some(id)) =
                (property(REPLY_TO), property(REPLY_TAG), property(CORRELATION_ID))
            else {
                println!("service: a request without a place for its reply");
                return anyhow::Ok(());
            };
            let number = std::str::from_utf8(request.body()).ok().and_then(|text| text.parse::<u64>().ok());
            let Some(square) = number.and_then(|number| number.checked_mul(number)) else {
                // An error is an answer too. This service keeps silent, to show what the requester sees.
                println!("service: {:?} has no square", request.body());
                return Ok(());
            };
            let reply = Message::new(topic, square.to_string()).tag(tag).property(CORRELATION_ID, id);
            producer.send(reply.time_to_live(TIMEOUT)).await?;
            Ok(())
        }
    };
    let subscription = [(REQUESTS, FilterExpression::all())];
    Ok(client.push_consumer("squares", subscription, &PushOptions::default(), handle)?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let endpoint = karman_examples::endpoint_argument()?;
    let client = Client::connect(&endpoint, ClientOptions::default()).await?;
    let operator = Operator::new(&endpoint)?;
    for topic in [REQUESTS, REPLIES] {
        operator.topic(&client, topic, MessageType::Normal).await?;
    }
    let service = service(&client)?;
    // Names of their own, also among other runs of this program.
    let names = ["anna", "berta"].map(|name| format!("{name}-{}", std::process::id()));
    let mut requesters = Vec::new();
    for name in &names {
        requesters.push(Requester::new(&client, name).await?);
    }
    for number in 1..=5_u64 {
        for requester in &requesters {
            let reply = requester.request(number.to_string(), TIMEOUT).await?;
            println!("{}: {number} squared is {:?}", requester.name, reply.body());
            ensure!(reply.body() == number.pow(2).to_string().as_bytes(), "that is wrong");
            ensure!(reply.tag() == Some(requester.name.as_str()), "it is for somebody else");
        }
    }
    let silence = requesters[0].request("a word".to_owned(), SHORT_TIMEOUT).await;
    let error = silence.err().context("there is an answer to what has none")?;
    println!("{}: {error:#}", requesters[0].name);
    ensure!(service.shutdown(TIMEOUT).await, "the service did not come to its end");
    client.close().await;
    println!("every request has its own answer, and what has none ended in time");
    Ok(())
}
